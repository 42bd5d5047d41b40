//! Snapshots: a manifest and hard links.

use std::io;

use crate::blob::encode_blob;
use crate::disk::write_all;
use crate::engine::Engine;
use crate::error::{WriteError, is_disk_full};
use crate::manifest::{MANIFEST, Manifest};
use crate::place::SEGMENTS_DIR;
use crate::sync::atomic::Ordering;
use crate::table::TABLES_DIR;

/// The directory of the snapshots, relative to the data directory.
const SNAPSHOTS_DIR: &str = "snapshots";

impl Engine {
    /// Makes a snapshot: `snapshots/<name>` is then a data directory of its own, with all keys as they were at one moment between call and return, and
    /// without what else its owner keeps (identity, clock). Nothing is copied: files are linked, and what an engine later does in either directory does not
    /// show in the other. The memtable is flushed first. False: the log is not written so far yet; call it again after the writer's next step, and the call
    /// meant is the first one.
    ///
    /// # Errors
    /// There is no snapshot then, or only a part of one: [`remove_snapshot`](Self::remove_snapshot). The engine is as it was.
    pub fn snapshot(&self, name: &str) -> Result<bool, WriteError> {
        let mut maintenance = self.maintenance.lock().expect("upkeep does not panic");
        if self.log.is_poisoned() {
            return Err(WriteError::Poisoned);
        }
        self.mark_noted()?;
        // Not what happens to be flushed now: everything up to here.
        let asked = match maintenance.asked_snapshot.take() {
            Some((same, asked)) if same == name => asked,
            _ => self.log.end().0,
        };
        loop {
            let is_flushed = || self.covered.load(Ordering::Relaxed) >= asked;
            if self.view().frozen.is_empty() && (is_flushed() || !self.freeze()) {
                break;
            }
            if self.flush_step(&mut maintenance, u64::MAX)?.is_none() {
                maintenance.asked_snapshot = Some((name.to_owned(), asked));
                return Ok(false);
            }
        }
        // While upkeep waits no file goes.
        let manifest = of_snapshot(self.lock_manifest().clone());
        let dir = format!("{SNAPSHOTS_DIR}/{name}");
        let failed = |source: io::Error| match is_disk_full(&source) {
            true => WriteError::DiskFull,
            false => WriteError::Io { file: dir.clone(), source },
        };
        self.link_all(&manifest, &dir).map_err(failed)?;
        Ok(true)
    }

    fn link_all(&self, manifest: &Manifest, dir: &str) -> io::Result<()> {
        let segments = manifest.segments.keys().map(|id| id.file_name());
        let tables = manifest.tables.iter().map(|(id, _)| id.file_name());
        let digests = manifest.digests.map(|id| id.file_name());
        for sub in [SEGMENTS_DIR, TABLES_DIR] {
            self.disk.make_dir(&format!("{dir}/{sub}"))?;
        }
        for file in segments.chain(tables).chain(digests) {
            self.disk.link(&file, &format!("{dir}/{file}"))?;
        }
        for sub in [SEGMENTS_DIR, TABLES_DIR] {
            self.disk.sync_dir(&format!("{dir}/{sub}"))?;
        }
        // The manifest comes last: without it a directory is no snapshot.
        let file = self.disk.create(&format!("{dir}/{MANIFEST}"))?;
        write_all(&*file, 0, &encode_blob(MANIFEST, &manifest.encode()))?;
        file.sync()?;
        self.disk.sync_dir(dir)?;
        self.disk.sync_dir(SNAPSHOTS_DIR)?;
        // The directory of the snapshots may be new itself.
        self.disk.sync_dir("")
    }

    /// Removes a snapshot's files; a snapshot that is not there is none.
    pub fn remove_snapshot(&self, name: &str) -> Result<(), WriteError> {
        let dir = format!("{SNAPSHOTS_DIR}/{name}");
        let remove = || {
            for dir in [dir.clone(), format!("{dir}/{SEGMENTS_DIR}"), format!("{dir}/{TABLES_DIR}")] {
                let names = match self.disk.list(&dir) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    names => names?,
                };
                for name in names {
                    self.disk.remove(&format!("{dir}/{name}"))?;
                }
                self.disk.sync_dir(&dir)?;
            }
            Ok(())
        };
        remove().map_err(WriteError::io(dir.clone()))
    }
}

/// What of the manifest makes a data directory without a log: tables, and the segments that they refer to, none of which is appended to.
fn of_snapshot(mut manifest: Manifest) -> Manifest {
    let position = manifest.position;
    manifest.segments.retain(|_, listing| listing.live > 0);
    for listing in manifest.segments.values_mut() {
        // What was synced since is not in the snapshot, and not missing from it.
        listing.synced_upto = listing.synced_upto.min(position);
        if !listing.is_behind(position) {
            // The engine goes on writing to it, behind this.
            listing.end = position.saturating_sub(listing.base);
            listing.capacity = listing.end;
        }
    }
    manifest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Listing;
    use crate::place::SegmentId;

    /// The writer may have gone on to a new segment between the flush and the look at the manifest.
    #[test]
    fn a_snapshot_ends_where_its_tables_do() {
        let listing = Listing { capacity: 4096, cut: u64::MAX, ..Listing::default() };
        let behind = Listing { base: 0, end: 4000, live: 300, synced_upto: 900, ..listing };
        let written_to = Listing { base: 4096, live: 300, synced_upto: 7500, ..listing };
        let made_since = Listing { base: 8192, synced_upto: 7500, ..listing };
        let segments = [behind, written_to, made_since].into_iter().enumerate();
        let segments = segments.map(|(id, listing)| (SegmentId(id as u64), listing)).collect();
        let manifest = of_snapshot(Manifest { position: 7000, segments, ..Manifest::default() });
        let listed: Vec<_> = manifest.segments.into_values().collect();
        let cut = Listing { end: 7000 - 4096, capacity: 7000 - 4096, synced_upto: 7000, ..written_to };
        assert_eq!(listed, [behind, cut]);
    }
}
