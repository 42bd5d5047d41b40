//! `Check`: one file after another, checked against a manifest.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::digests::{self, DigestsId};
use crate::disk::{Disk, DiskFile, Wait};
use crate::engine::KeyRef;
use crate::error::{Affected, Damage, DamageKind, OpenError, ReadError};
use crate::frame::{self, BATCH_LEN, Frame, HEAD_LEN, MAX_FRAME_LEN};
use crate::indexed::Indexed;
use crate::manifest::{Listing, Manifest};
use crate::place::{Place, SegmentId};
use crate::replay::Findings;
use crate::segment::{BadHeader, SEGMENT_HEADER_LEN, SEGMENT_VERSION, SegmentHeader, ends_with_seal};
use crate::table::{BlockCursor, Table, TableId, split_key};

/// So much of a segment is read in one go.
const READ_LEN: u64 = 4 << 20;
/// So many segments that tables refer to are kept open.
const OPEN_SEGMENTS: usize = 64;

pub(crate) struct Check<'a> {
    disk: &'a dyn Disk,
    pub(crate) manifest: &'a Manifest,
    /// The log is known to have been synced up to here.
    synced_upto: u64,
    pub(crate) findings: Findings,
    /// Bytes that were read.
    pub(crate) bytes: u64,
    /// Frames, and entries of tables, that were checked.
    pub(crate) items: u64,
    /// Segments that tables refer to; none: gone.
    referred: BTreeMap<SegmentId, Option<Arc<dyn DiskFile>>>,
}

impl<'a> Check<'a> {
    pub(crate) fn new(disk: &'a dyn Disk, manifest: &'a Manifest, synced_upto: u64) -> Self {
        let (findings, referred) = (Findings::default(), BTreeMap::new());
        Self { disk, manifest, synced_upto, findings, bytes: 0, items: 0, referred }
    }

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

    /// A listed file is not there.
    pub(crate) fn missing(&mut self, name: String) {
        self.damage(name, 0, DamageKind::MissingFile, (1, 0), Affected::Everything);
    }

    /// Digests can be made anew: whatever is wrong with them, no data is lost.
    pub(crate) fn digests(&mut self, id: DigestsId) -> Result<(), OpenError> {
        let (damage, len) = digests::check(self.disk, id)?;
        self.bytes += len;
        damage.into_iter().for_each(|damage| self.findings.add(damage));
        Ok(())
    }

    pub(crate) fn segment(&mut self, id: SegmentId, file: &dyn DiskFile) -> Result<(), OpenError> {
        let Some(listing) = self.manifest.segments.get(&id) else { return Ok(()) };
        let name = id.file_name();
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
                return Err(OpenError::Version { file: name, found, known: SEGMENT_VERSION });
            }
            Err(BadHeader::Checksum { expected, found }) => {
                let sums = (expected.into(), found.into());
                self.damage(name.clone(), 0, DamageKind::Checksum, sums, Affected::Nothing);
            }
        }
        // What is still written to is judged as far as it is known to be synced, and not void.
        let later = self.manifest.segments.range(id..).skip(1);
        let cut = later.map(|(_, later)| later.cut).min().unwrap_or(u64::MAX);
        let synced = self.synced_upto.min(cut).saturating_sub(listing.base).min(len);
        let end = if listing.end > 0 { listing.end } else { synced };
        // An opening that was itself cut off has given back the unused room.
        let is_sealed = || listing.end == 0 && ends_with_seal(file, id, len).unwrap_or(false);
        if (listing.is_cut_short(len) || len < end) && !is_sealed() {
            let expected = end.max(listing.least_len);
            self.damage(name.clone(), len, DamageKind::CutShort, (expected, len), Affected::Everything);
        }
        self.frames(file, id, SEGMENT_HEADER_LEN as u64..end.min(len), u64::MAX)?;
        Ok(())
    }

    /// Checks the frames of a part of a segment, until one begins at `limit` or behind. Returns where it stopped; the part's end or more: there are
    /// no more.
    pub(crate) fn frames(
        &mut self,
        file: &dyn DiskFile,
        id: SegmentId,
        part: Range<u64>,
        limit: u64,
    ) -> Result<u64, OpenError> {
        let name = id.file_name();
        let Range { mut start, mut end } = part;
        let mut at = 0;
        let mut bytes = Vec::new();
        // Behind damage that hides where the next frame begins.
        let mut is_lost = false;
        loop {
            let offset = start + at as u64;
            if offset >= limit {
                return Ok(offset);
            }
            let is_last = start + bytes.len() as u64 >= end;
            if !is_last && bytes.len() - at < MAX_FRAME_LEN {
                (start, at) = (offset, 0);
                let wanted = READ_LEN.min(limit - start).saturating_add(MAX_FRAME_LEN as u64).min(end - start);
                bytes.resize(usize::try_from(wanted).unwrap_or(usize::MAX), 0);
                let read = file.read_at(start, &mut bytes).map_err(OpenError::io(&name))?;
                bytes.truncate(read);
                if (read as u64) < wanted {
                    // It was cut off meanwhile.
                    end = start + read as u64;
                }
                continue;
            }
            if bytes.len() - at < HEAD_LEN {
                return Ok(end);
            }
            let next = match frame::check(&bytes[at..], id, offset) {
                Ok(head) => {
                    is_lost = false;
                    self.items += 1;
                    Some(at + head.len as usize)
                }
                Err(_) if !is_lost && self.is_unused(file, id, offset)? => return Ok(end),
                Err(bad) => {
                    if !is_lost {
                        let sums = (bad.expected.into(), bad.found.into());
                        let affected = match bad.head {
                            Some(head) if head.is_batch() => Affected::Nothing,
                            Some(head) => Affected::Partition(head.partition),
                            None => Affected::Everything,
                        };
                        self.damage(name.clone(), offset, DamageKind::Checksum, sums, affected);
                    }
                    match bad.head {
                        Some(head) => Some(at + head.len as usize),
                        // Offsets are part of the checksum: the rest is looked through as if the segment began where it was read.
                        None => frame::find_batch_at(&bytes, at, id, start),
                    }
                }
            };
            let before = at;
            at = match next {
                Some(next) if next <= bytes.len() => next,
                _ if is_last => return Ok(end),
                _ => {
                    is_lost = true;
                    (at + 1).max(bytes.len() + 1 - BATCH_LEN)
                }
            };
            self.bytes += (at - before) as u64;
        }
    }

    /// Whether a segment that the log has left, and whose end the manifest does not know yet, has nothing but zeros from here on.
    fn is_unused(&self, file: &dyn DiskFile, id: SegmentId, from: u64) -> Result<bool, OpenError> {
        let is_left = |listing: &Listing| {
            listing.end == 0 && !listing.is_cold && listing.base + listing.capacity < self.synced_upto
        };
        if !self.manifest.segments.get(&id).is_some_and(is_left) {
            return Ok(false);
        }
        let mut bytes = vec![0; 64 << 10];
        let mut at = from;
        loop {
            let read = file.read_at(at, &mut bytes).map_err(OpenError::io(id.file_name()))?;
            if read == 0 || bytes[..read].iter().any(|&byte| byte != 0) {
                return Ok(read == 0);
            }
            at += read as u64;
        }
    }

    pub(crate) fn table(&mut self, id: TableId, file: Arc<dyn DiskFile>) -> Result<(), OpenError> {
        let table = match Table::of_file(file, id)? {
            Ok((table, damage)) => {
                damage.into_iter().for_each(|damage| self.findings.add(damage));
                table
            }
            Err(damage) => {
                self.findings.add(damage);
                return Ok(());
            }
        };
        self.bytes += table.meta().file_len;
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
        let mut cursor = BlockCursor::first(table.read_block(number, Wait::Allowed)?).map_err(|_| malformed())?;
        while let Some(key) = cursor.key() {
            let key = split_key(key).ok_or_else(malformed)?;
            let indexed = Indexed::decode(cursor.body()).map_err(|_| malformed())?;
            self.items += 1;
            for (held, _) in indexed.held().filter(|(held, _)| !held.place.is_inline()) {
                self.reference(key, &held.place)?;
            }
            cursor.advance().map_err(|_| malformed())?;
        }
        Ok(())
    }

    /// What a table refers to is there, and is the key's. An entry that a newer one hides may refer to what is gone.
    fn reference(&mut self, key: KeyRef<'_>, place: &Place) -> Result<(), ReadError> {
        let (name, affected) = (place.segment.file_name(), Affected::Partition(key.partition));
        let failed = |source: io::Error| ReadError::Io { file: name.clone(), offset: place.offset, source };
        let Some(file) = self.referred(place.segment).map_err(failed)? else { return Ok(()) };
        let mut item = vec![0; place.len as usize];
        let read = file.read_at(place.offset, &mut item).map_err(failed)?;
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

    /// A segment's file; none where it is not listed, or was removed meanwhile: a listed one that is missing is found when it is its turn.
    fn referred(&mut self, id: SegmentId) -> io::Result<Option<Arc<dyn DiskFile>>> {
        if !self.manifest.segments.contains_key(&id) {
            return Ok(None);
        }
        if let Some(file) = self.referred.get(&id) {
            return Ok(file.clone());
        }
        let file = match self.disk.open(&id.file_name()) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if self.referred.len() >= OPEN_SEGMENTS {
            self.referred.clear();
        }
        self.referred.insert(id, file.clone());
        Ok(file)
    }
}
