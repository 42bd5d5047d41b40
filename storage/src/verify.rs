//! Checking everything that lies on the disk.

use std::sync::Arc;

use bytes::Bytes;

use crate::disk::{Disk, DiskFile};
use crate::engine::Engine;
use crate::error::{Affected, Damage, DamageKind, FileError, OpenError, ReadError};
use crate::frame::{self, Frame, HEAD_LEN, MAX_FRAME_LEN};
use crate::indexed::Indexed;
use crate::manifest::{Listing, Manifest};
use crate::place::{Place, SegmentId};
use crate::replay::Findings;
use crate::segment::{BadHeader, SEGMENT_HEADER_LEN, SegmentHeader};
use crate::table::{BlockCursor, Table, TableId, split_key};

/// So much of a segment is read in one go.
const READ_LEN: usize = 4 << 20;

/// What a check of everything found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verification {
    /// Segments and tables that were read.
    pub files: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Frames, and entries of tables, that were checked.
    pub items: u64,
    /// What is damaged or missing; at most 1,000 are listed.
    pub damaged: Vec<Damage>,
    /// How many there were.
    pub damage_count: u64,
}

/// Checks a data directory that no engine has open: every checksum, and that what tables refer to is there and belongs to its key. Writes nothing.
/// The end of the log, behind what is known to have been synced, is not judged: that is what opening is for.
///
/// # Errors
/// A file cannot be read, or is of a newer version.
pub fn verify(disk: &dyn Disk) -> Result<Verification, OpenError> {
    let manifest = match Manifest::load(disk) {
        Ok(Some(Ok(manifest))) => manifest,
        Ok(None) => return Ok(Verification::default()),
        Ok(Some(Err(_))) => {
            let damage = crate::blob::damage(crate::manifest::MANIFEST, DamageKind::Malformed, 0, 0);
            return Ok(Verification { damaged: vec![damage], damage_count: 1, ..Verification::default() });
        }
        Err(FileError::Damaged(damage)) => {
            return Ok(Verification { damaged: vec![damage], damage_count: 1, ..Verification::default() });
        }
        Err(error) => return Err(error.into()),
    };
    verify_listed(disk, &manifest)
}

impl Engine {
    /// Checks what is on the disk while the engine is used, as [`verify`] does; what changes meanwhile may be left out. What is damaged is
    /// suspect afterwards.
    ///
    /// # Errors
    /// As [`verify`].
    pub fn verify(&self) -> Result<Verification, OpenError> {
        // Files that are merged or collected meanwhile would be missed: upkeep waits.
        let _upkeep = self.maintenance.lock().expect("upkeep does not panic");
        let manifest = self.lock_manifest().clone();
        let found = verify_listed(&*self.disk, &manifest)?;
        for damage in &found.damaged {
            self.note_damage(&ReadError::Damaged(damage.clone()));
        }
        Ok(found)
    }
}

/// Where the scrubber is: everything is read again and again, a little at a time.
#[derive(Clone, Copy, Default)]
pub(crate) struct Scrub {
    /// In the tables, from this one's block on; or else in the segments, from this one's offset on.
    is_in_segments: bool,
    id: u64,
    at: u64,
}

/// What a step of the scrubber did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Scrubbed {
    /// Bytes that were read.
    pub bytes: u64,
    /// Whether everything was read once since the last time.
    pub ended: bool,
    /// What is damaged: suspect now, durably with the next step of upkeep.
    pub damaged: Vec<Damage>,
}

impl Engine {
    /// The scrubber's step: reads and checks the next part, of about so many bytes, of what is not written to any more. Its owner calls it at the
    /// rate at which everything is to be read once, say, a week.
    ///
    /// # Errors
    /// A file cannot be read; the next step tries the next one.
    pub fn scrub(&self, slice_bytes: u64) -> Result<Scrubbed, OpenError> {
        let mut scrub = self.scrub.lock().expect("the scrubber does not panic");
        let manifest = self.lock_manifest().clone();
        let synced_upto = manifest.position;
        let (findings, found) = (Findings::default(), Verification::default());
        let mut check = Check { disk: &*self.disk, manifest: &manifest, synced_upto, findings, found };
        let mut ended = false;
        while check.found.bytes < slice_bytes && !ended {
            ended = match scrub.is_in_segments {
                false => self.scrub_table(&mut check, &mut scrub)?,
                true => self.scrub_segment(&mut check, &mut scrub, slice_bytes)?,
            };
        }
        for damage in &check.findings.damaged {
            self.note_damage(&ReadError::Damaged(damage.clone()));
        }
        Ok(Scrubbed { bytes: check.found.bytes, ended, damaged: check.findings.damaged })
    }

    fn scrub_table(&self, check: &mut Check<'_>, scrub: &mut Scrub) -> Result<bool, OpenError> {
        let view = self.view();
        let Some(table) = view.levels.tables().filter(|t| t.id().0 >= scrub.id).min_by_key(|t| t.id()) else {
            *scrub = Scrub { is_in_segments: true, ..Scrub::default() };
            return Ok(false);
        };
        let number = if table.id().0 == scrub.id { scrub.at as usize } else { 0 };
        *scrub = match number + 1 < table.blocks() {
            true => Scrub { id: table.id().0, at: number as u64 + 1, ..*scrub },
            false => Scrub { id: table.id().0 + 1, at: 0, ..*scrub },
        };
        check.found.bytes += crate::table::BLOCK_LEN as u64;
        match table.read_block(number) {
            Ok(_) => Ok(false),
            Err(ReadError::Damaged(damage)) => {
                check.findings.add(damage);
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether that was the last one.
    fn scrub_segment(&self, check: &mut Check<'_>, scrub: &mut Scrub, slice: u64) -> Result<bool, OpenError> {
        let position = check.manifest.position;
        let mut rest = check.manifest.segments.range(SegmentId(scrub.id)..);
        let Some((&id, _)) = rest.find(|(_, listing)| listing.is_behind(position)) else {
            *scrub = Scrub::default();
            return Ok(true);
        };
        let start = if id.0 == scrub.id { scrub.at.max(SEGMENT_HEADER_LEN as u64) } else { SEGMENT_HEADER_LEN as u64 };
        // Next time the one behind it, whatever happens here.
        *scrub = Scrub { id: id.0 + 1, at: 0, ..*scrub };
        // One that was collected meanwhile is gone.
        let Some(segment) = self.segments.get(id) else { return Ok(false) };
        let end = segment.written();
        let stopped = check.frames(&*segment.file, id, start, end, start + slice)?;
        if stopped < end {
            *scrub = Scrub { id: id.0, at: stopped, ..*scrub };
        }
        Ok(false)
    }
}

fn verify_listed(disk: &dyn Disk, manifest: &Manifest) -> Result<Verification, OpenError> {
    let synced_upto = manifest.segments.values().map(|listing| listing.synced_upto).max().unwrap_or(0);
    let synced_upto = synced_upto.max(manifest.position);
    let mut check =
        Check { disk, manifest, synced_upto, findings: Findings::default(), found: Verification::default() };
    for (&id, listing) in &manifest.segments {
        check.segment(id, listing)?;
    }
    for &(id, _) in &manifest.tables {
        check.table(id)?;
    }
    let Check { findings, found, .. } = check;
    Ok(Verification { damaged: findings.damaged, damage_count: findings.count, ..found })
}

struct Check<'a> {
    disk: &'a dyn Disk,
    manifest: &'a Manifest,
    /// The log is known to have been synced up to here.
    synced_upto: u64,
    findings: Findings,
    found: Verification,
}

impl Check<'_> {
    fn damage(
        &mut self,
        file: String,
        offset: u64,
        kind: DamageKind,
        (expected, found): (u64, u64),
        affected: Affected,
    ) {
        self.findings.add(Damage { file, offset, kind, expected, found, affected });
    }

    fn open(&mut self, name: &str) -> Result<Option<Arc<dyn DiskFile>>, OpenError> {
        match self.disk.open(name) {
            Ok(file) => {
                self.found.files += 1;
                Ok(Some(file))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.damage(name.to_owned(), 0, DamageKind::MissingFile, (1, 0), Affected::Everything);
                Ok(None)
            }
            Err(error) => Err(OpenError::io(name)(error)),
        }
    }

    fn segment(&mut self, id: SegmentId, listing: &Listing) -> Result<(), OpenError> {
        let name = id.file_name();
        let Some(file) = self.open(&name)? else { return Ok(()) };
        let len = file.len().map_err(OpenError::io(&name))?;
        let mut header = [0; SEGMENT_HEADER_LEN];
        let read = file.read_at(0, &mut header).map_err(OpenError::io(&name))?;
        match SegmentHeader::decode(&header[..read]) {
            Ok(header) if header.id == id => {}
            Ok(header) => {
                self.damage(name, 0, DamageKind::SwappedFile, (id.0, header.id.0), Affected::Everything);
                return Ok(());
            }
            Err(BadHeader::Version(found)) => {
                return Err(OpenError::Version { file: name, found, known: crate::segment::SEGMENT_VERSION });
            }
            Err(BadHeader::Checksum { expected, found }) => {
                let sums = (expected.into(), found.into());
                self.damage(name.clone(), 0, DamageKind::Checksum, sums, Affected::Nothing);
            }
        }
        // What is still written to is judged as far as it is known to be synced.
        let synced = self.synced_upto.saturating_sub(listing.base).min(len);
        let end = if listing.end > 0 { listing.end } else { synced };
        if listing.is_cut_short(len) || len < end {
            let expected = end.max(listing.least_len);
            self.damage(name.clone(), len, DamageKind::CutShort, (expected, len), Affected::Everything);
        }
        self.frames(&*file, id, SEGMENT_HEADER_LEN as u64, end.min(len), u64::MAX)?;
        Ok(())
    }

    /// Checks the frames from an offset on, until one begins at `limit` or behind. Returns where it stopped; `end` or more: there are no more.
    fn frames(
        &mut self,
        file: &dyn DiskFile,
        id: SegmentId,
        mut start: u64,
        end: u64,
        limit: u64,
    ) -> Result<u64, OpenError> {
        let name = id.file_name();
        let mut at = 0;
        let mut bytes = Vec::new();
        loop {
            if start + at as u64 >= limit {
                return Ok(start + at as u64);
            }
            let is_last = start + bytes.len() as u64 >= end;
            if !is_last && bytes.len() - at < MAX_FRAME_LEN {
                start += at as u64;
                bytes.resize(READ_LEN.min(usize::try_from(end - start).unwrap_or(usize::MAX)), 0);
                let read = file.read_at(start, &mut bytes).map_err(OpenError::io(&name))?;
                bytes.truncate(read);
                self.found.bytes += read as u64;
                at = 0;
                if read == 0 {
                    return Ok(end);
                }
                continue;
            }
            if bytes.len() - at < HEAD_LEN {
                return Ok(end);
            }
            let offset = start + at as u64;
            match frame::check(&bytes[at..], id, offset) {
                Ok(head) => {
                    self.found.items += 1;
                    at += head.len as usize;
                }
                // Allocated and never used: the file was left and not cut off.
                Err(_) if bytes[at..].iter().all(|&byte| byte == 0) => return Ok(end),
                Err(bad) => {
                    let sums = (bad.expected.into(), bad.found.into());
                    let affected = match bad.head {
                        Some(head) if head.is_batch() => Affected::Nothing,
                        Some(head) => Affected::Partition(head.partition),
                        None => Affected::Everything,
                    };
                    self.damage(name.clone(), offset, DamageKind::Checksum, sums, affected);
                    let next = match bad.head {
                        Some(head) => Some(at + head.len as usize),
                        // Offsets are part of the checksum: the rest is looked through as if the segment began where it was read.
                        None => frame::find_batch_at(&bytes, at, id, start),
                    };
                    match next {
                        Some(next) if next <= bytes.len() => at = next,
                        _ => return Ok(end),
                    }
                }
            }
        }
    }

    fn table(&mut self, id: TableId) -> Result<(), OpenError> {
        self.found.files += 1;
        let table = match Table::open(self.disk, id)? {
            Ok((table, damage)) => {
                damage.into_iter().for_each(|damage| self.findings.add(damage));
                table
            }
            Err(damage) => {
                self.findings.add(damage);
                return Ok(());
            }
        };
        self.found.bytes += table.meta().file_len;
        for number in 0..table.blocks() {
            match self.block(&table, number) {
                Ok(()) => {}
                Err(ReadError::Damaged(damage)) => self.findings.add(damage),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn block(&mut self, table: &Table, number: usize) -> Result<(), ReadError> {
        let malformed = || table.malformed(number);
        let mut cursor = BlockCursor::first(table.read_block(number)?).map_err(|_| malformed())?;
        while let Some(key) = cursor.key() {
            let key = split_key(key).ok_or_else(malformed)?;
            let indexed = Indexed::decode(cursor.body()).map_err(|_| malformed())?;
            self.found.items += 1;
            for (held, _) in indexed.held().filter(|(held, _)| !held.place.is_inline()) {
                self.reference(key, &held.place)?;
            }
            cursor.advance().map_err(|_| malformed())?;
        }
        Ok(())
    }

    /// What a table refers to is there, and is the key's. An entry that a newer one hides may refer to what is gone.
    fn reference(&mut self, key: crate::engine::KeyRef<'_>, place: &Place) -> Result<(), ReadError> {
        if !self.manifest.segments.contains_key(&place.segment) {
            return Ok(());
        }
        let (name, affected) = (place.segment.file_name(), Affected::Partition(key.partition));
        let Ok(file) = self.disk.open(&name) else { return Ok(()) };
        let mut item = vec![0; place.len as usize];
        let read = file.read_at(place.offset, &mut item);
        let read = read.map_err(|source| ReadError::Io { file: name.clone(), offset: place.offset, source })?;
        item.truncate(read);
        match frame::check(&item, place.segment, place.offset) {
            // It was found when the segment was read, or nothing reads it but this.
            Err(bad) => {
                let sums = (bad.expected.into(), bad.found.into());
                self.damage(name, place.offset, DamageKind::Checksum, sums, affected);
            }
            Ok(_) => {
                let item = Bytes::from(item);
                let is_its = Frame::read(&item).is_ok_and(|frame| frame.key == key && frame.record.is_some());
                if !is_its {
                    self.damage(name, place.offset, DamageKind::Malformed, (0, 0), affected);
                }
            }
        }
        Ok(())
    }
}
