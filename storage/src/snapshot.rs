//! Snapshots: a manifest and hard links.

use std::io;

use crate::blob::encode_blob;
use crate::disk::write_all;
use crate::engine::Engine;
use crate::error::{WriteError, is_disk_full};
use crate::manifest::{MANIFEST, Manifest};
use crate::place::SEGMENTS_DIR;
use crate::table::TABLES_DIR;

/// The directory of the snapshots, relative to the data directory.
const SNAPSHOTS_DIR: &str = "snapshots";

impl Engine {
    /// Makes a snapshot: `snapshots/<name>` is then a data directory of its own, with all keys as they were at one moment between call and return, and
    /// without what else its owner keeps (identity, clock). Nothing is copied: files are linked, and what an engine later does in either directory does not
    /// show in the other. The memtable is flushed first. False: the log is not written so far yet; call it again after the writer's next step.
    ///
    /// # Errors
    /// There is no snapshot then, or only a part of one: [`remove_snapshot`](Self::remove_snapshot). The engine is as it was.
    pub fn snapshot(&self, name: &str) -> Result<bool, WriteError> {
        let mut maintenance = self.maintenance.lock().expect("upkeep does not panic");
        if self.log.is_poisoned() {
            return Err(WriteError::Poisoned);
        }
        self.mark_noted()?;
        if self.view().frozen.is_empty() {
            self.freeze();
        }
        while !self.view().frozen.is_empty() {
            if self.flush_step(&mut maintenance, u64::MAX)?.is_none() {
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
        for sub in [SEGMENTS_DIR, TABLES_DIR] {
            self.disk.make_dir(&format!("{dir}/{sub}"))?;
        }
        for file in segments.chain(tables) {
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
        self.disk.sync_dir(SNAPSHOTS_DIR)
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
        if !listing.is_behind(position) {
            // The engine goes on writing to it, behind this.
            listing.end = position.saturating_sub(listing.base);
            listing.capacity = listing.end;
        }
    }
    manifest
}
