//! Reading keys, records, and ranges.

use std::sync::Arc;

use bytes::Bytes;
use dunlin_protocol::register::Held;
use dunlin_protocol::{KeyspaceId, PartitionId, RecordHead};

use crate::engine::{Engine, Entry, KeyRef, Stored, count};
use crate::error::{Affected, Damage, DamageKind, ReadError};
use crate::frame::{self, Frame, Malformed};
use crate::full_key::FullKey;
use crate::indexed::Indexed;
use crate::memtable::{Copied, Memtable, Prefix};
use crate::place::{Place, Position};
use crate::table::{Merging, key as full_key, split_key};
use crate::view::{Glance, View};

/// How many entries a scan copies under one lock.
const SCAN_STEP: usize = 64;

/// What a scan visits, in the order of partition and key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScanRange<'a> {
    /// In this keyspace.
    pub keyspace: KeyspaceId,
    /// From this partition.
    pub first: PartitionId,
    /// To this one, inclusive.
    pub last: PartitionId,
    /// In the first partition only keys behind this one: where an earlier scan stopped.
    pub after: Option<&'a [u8]>,
    /// Only keys that begin with this.
    pub prefix: &'a [u8],
    /// Only keys at or above this.
    pub start: &'a [u8],
    /// Only keys below this; empty: no such bound.
    pub end: &'a [u8],
}

impl ScanRange<'_> {
    /// All keys of a keyspace in these partitions.
    pub fn all(keyspace: KeyspaceId, first: PartitionId, last: PartitionId) -> Self {
        Self { keyspace, first, last, after: None, prefix: b"", start: b"", end: b"" }
    }

    /// Where the range begins in a partition, and whether that key belongs to it.
    fn start_in(&self, partition: PartitionId) -> (&[u8], bool) {
        let first = self.start.max(self.prefix);
        match self.after {
            Some(after) if partition == self.first && after >= first => (after, false),
            _ => (first, true),
        }
    }

    /// Whether a key at or above the start lies in the range.
    fn contains(&self, key: &[u8]) -> bool {
        key.starts_with(self.prefix) && (self.end.is_empty() || key < self.end)
    }
}

/// An entry that a scan visits.
pub struct Visited<'a> {
    /// Its partition.
    pub partition: PartitionId,
    /// Its key.
    pub key: &'a [u8],
    /// What is held for it.
    pub entry: Entry,
    indexed: Indexed<'a>,
}

impl Visited<'_> {
    /// The record, where it is small enough to lie in the index; otherwise [`Engine::load`] has it.
    ///
    /// # Errors
    /// None where it lies elsewhere, or there is none.
    pub fn record(&self) -> Option<Stored> {
        let held = self.entry.register.record?;
        let body = self.indexed.record?;
        let item = Bytes::copy_from_slice(body.bytes);
        let copied = frame::Body { bytes: &item, ..body };
        let (lineage, content) = copied.decode(held.head.tombstone, &item).ok()?;
        Some(Stored { lineage, content })
    }

    /// The bytes of the record's value, without copying them, where they lie in the index.
    pub fn value(&self) -> Option<&[u8]> {
        self.indexed.record?.value().ok()
    }
}

impl Engine {
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.read().expect("no thread panics while it holds the view").clone()
    }

    /// What is held for a key.
    ///
    /// # Errors
    /// The key has not been used for long, and cannot be read.
    pub fn entry(&self, key: KeyRef<'_>) -> Result<Entry, ReadError> {
        let full = FullKey::new(key);
        let mut entry = self.with_body(key, &full, |body, position| {
            let register = body.map(Indexed::decode).transpose().map_err(|bad| self.malformed(key, bad))?;
            Ok(Entry { register: register.unwrap_or_default().register, position })
        })?;
        entry.position = self.shown_position(&entry);
        Ok(entry)
    }

    /// Calls with the body that the index has for a key.
    pub(crate) fn with_body<T>(
        &self,
        key: KeyRef<'_>,
        full: &FullKey,
        call: impl FnOnce(Option<&[u8]>, Position) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let shard = self.memtable.lock(key.partition);
        if let Some(slot) = shard.find(full.hash, full.bytes()) {
            return call(Some(shard.body(slot)), shard.position(slot));
        }
        // Taken under the lock: what was in the memtable then is in it still, or in the view.
        let view = self.view();
        drop(shard);
        match view.glance(full.bytes(), full.hash) {
            Glance::Found(body, position) => call(Some(body), position),
            Glance::Absent => call(None, Position::ZERO),
            Glance::Unknown => call(self.find_in_tables(&view, full)?.as_deref(), Position::ZERO),
        }
    }

    pub(crate) fn find_in_tables(&self, view: &View, full: &FullKey) -> Result<Option<Bytes>, ReadError> {
        let found = view.find_in_tables(full.bytes(), full.hash, &self.blocks);
        found.inspect_err(|error| self.note_damage(error))
    }

    /// What is held now; absent for long: it waits for nothing.
    pub(crate) fn shown_position(&self, entry: &Entry) -> Position {
        match entry.register.is_absent() && entry.position <= self.durable_upto() {
            true => Position::ZERO,
            false => entry.position,
        }
    }

    pub(crate) fn malformed(&self, key: KeyRef<'_>, Malformed: Malformed) -> ReadError {
        let error = ReadError::Damaged(Damage {
            file: String::new(),
            offset: 0,
            kind: DamageKind::Malformed,
            expected: 0,
            found: 0,
            affected: Affected::Partition(key.partition),
        });
        self.note_damage(&error);
        error
    }

    /// Reads a record that a register of this key held a moment ago, checksum verified; also one that is not written yet.
    ///
    /// # Errors
    /// [`ReadError::Superseded`]: meanwhile it holds another one.
    pub fn load(&self, key: KeyRef<'_>, held: &Held<Place>) -> Result<Stored, ReadError> {
        count(&self.counters.reads, 1);
        if !held.place.is_inline() {
            match self.load_frame(&held.place) {
                // It was moved meanwhile.
                Err(ReadError::Gone { .. }) => {}
                loaded => return loaded.inspect_err(|error| self.note_damage(error)),
            }
        }
        let full = FullKey::new(key);
        let found = self.with_body(key, &full, |body, _| {
            let Some(body) = body else { return Ok(None) };
            let item = Bytes::copy_from_slice(body);
            let indexed = Indexed::decode(&item).map_err(|bad| self.malformed(key, bad))?;
            if let Some(stored) = indexed.stored(&held.head, &item) {
                return stored.map(|stored| Some(Ok(stored))).map_err(|bad| self.malformed(key, bad));
            }
            let moved = indexed.held().find(|(other, _)| other.head == held.head);
            Ok(moved.map(|(held, _)| Err(held.place)))
        })?;
        match found {
            Some(Ok(stored)) => Ok(stored),
            // It was not moved: the segment is missing, which was reported when the engine was opened.
            Some(Err(place)) if place == held.place && !place.is_inline() => {
                Err(ReadError::Gone { segment: place.segment })
            }
            Some(Err(place)) if !place.is_inline() => {
                self.load_frame(&place).inspect_err(|error| self.note_damage(error))
            }
            _ => Err(ReadError::Superseded),
        }
    }

    /// What is held for a key, and its record, in one look.
    pub fn get(&self, key: KeyRef<'_>) -> Result<(Entry, Option<Stored>), ReadError> {
        count(&self.counters.reads, 1);
        let full = FullKey::new(key);
        loop {
            let (mut entry, stored) = self.with_body(key, &full, |body, position| {
                let Some(body) = body else { return Ok((Entry { position, ..Entry::default() }, None)) };
                let indexed = Indexed::decode(body).map_err(|bad| self.malformed(key, bad))?;
                let entry = Entry { register: indexed.register, position };
                let stored = Visited { partition: key.partition, key: key.key, entry, indexed }.record();
                Ok((entry, stored))
            })?;
            entry.position = self.shown_position(&entry);
            let Some(held) = entry.register.record.filter(|_| stored.is_none()) else { return Ok((entry, stored)) };
            match self.load(key, &held) {
                // Overwritten and collected between the two looks: what it is now counts.
                Err(ReadError::Superseded) => {}
                loaded => return Ok((entry, Some(loaded?))),
            }
        }
    }

    fn load_frame(&self, place: &Place) -> Result<Stored, ReadError> {
        let item = Bytes::from(self.read(place)?);
        let damaged = |kind, expected: u32, found: u32, affected| {
            let file = place.segment.file_name();
            let (expected, found) = (expected.into(), found.into());
            ReadError::Damaged(Damage { file, offset: place.offset, kind, expected, found, affected })
        };
        let head = frame::check(&item, place.segment, place.offset).map_err(|bad| {
            let affected = bad.head.map_or(Affected::Everything, |head| Affected::Partition(head.partition));
            damaged(DamageKind::Checksum, bad.expected, bad.found, affected)
        })?;
        let malformed = |_| damaged(DamageKind::Malformed, 0, 0, Affected::Partition(head.partition));
        let frame = Frame::read(&item).map_err(malformed)?;
        let Some(RecordHead { tombstone, .. }) = frame.record else {
            return Err(ReadError::NoRecord { place: *place });
        };
        let (lineage, content) = frame.body().decode(tombstone, &item).map_err(malformed)?;
        Ok(Stored { lineage, content })
    }

    fn read(&self, place: &Place) -> Result<Vec<u8>, ReadError> {
        let segment = self.segments.get(place.segment).ok_or(ReadError::Gone { segment: place.segment })?;
        let is_written = || place.offset.checked_add(place.len.into()).is_some_and(|end| end <= segment.written());
        // What is found in neither place was written between the two looks.
        if !is_written()
            && let Some(frame) = self.log.find(place)
        {
            return Ok(frame);
        }
        let mut frame = vec![0; place.len as usize];
        let read = segment.file.read_at(place.offset, &mut frame).map_err(|source| ReadError::Io {
            file: place.segment.file_name(),
            offset: place.offset,
            source,
        })?;
        // A file that ends early does not check.
        frame.truncate(read);
        Ok(frame)
    }

    /// Visits keys in the order of partition and key, until `visit` returns false or `limit` keys were visited. Returns whether the range
    /// ended; if not, the last key visited is where another scan goes on ([`ScanRange::after`]). Sees every key that is there all the time
    /// and any others as they come and go; deleted, promised, and just forgotten keys, too. No lock is held during a visit.
    pub fn scan(
        &self,
        range: ScanRange<'_>,
        limit: usize,
        visit: &mut dyn FnMut(PartitionId, &[u8], &Entry) -> bool,
    ) -> Result<bool, ReadError> {
        self.scan_with(range, limit, &mut |visited| visit(visited.partition, visited.key, &visited.entry))
    }

    /// Like [`scan`](Self::scan), with the records of those that are small at hand.
    pub fn scan_with(
        &self,
        range: ScanRange<'_>,
        limit: usize,
        visit: &mut dyn FnMut(&Visited<'_>) -> bool,
    ) -> Result<bool, ReadError> {
        let mut left = limit;
        let mut below = None;
        for partition in (range.first.0..=range.last.0).map(PartitionId) {
            let ended = self.scan_partition(&range, partition, &mut below, &mut left, visit);
            if !ended.inspect_err(|error| self.note_damage(error))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn scan_partition(
        &self,
        range: &ScanRange<'_>,
        partition: PartitionId,
        below: &mut Option<Below>,
        left: &mut usize,
        visit: &mut dyn FnMut(&Visited<'_>) -> bool,
    ) -> Result<bool, ReadError> {
        let full = |key: &[u8]| full_key(KeyRef { partition, keyspace: range.keyspace, key });
        let (start, mut inclusive) = range.start_in(partition);
        let mut from = full(start);
        let prefix: Prefix = *from.first_chunk().expect("partition and keyspace");
        loop {
            // The memtable's next entries, and what lies below them: at one moment.
            let mut shard = self.memtable.lock(partition);
            let copied = Memtable::copy(&mut shard, &prefix, &from, inclusive, SCAN_STEP);
            let view = self.view();
            drop(shard);
            let upto = match copied.len() {
                SCAN_STEP => copied.last().map(|last| last.key.clone()),
                _ => None,
            };
            let below = Below::at(below, view, &from, inclusive)?;
            match self.visit(copied, &mut below.merging, range, &prefix, upto.as_deref(), left, visit)? {
                Reached::Stop => return Ok(false),
                Reached::EndOfRange => return Ok(true),
                Reached::Upto => {}
            }
            match upto {
                Some(upto) => (from, inclusive) = (upto, false),
                None => return Ok(true),
            }
        }
    }

    /// Visits what comes, newer entries and those below them, as far as `upto`, which it includes.
    #[expect(clippy::too_many_arguments, reason = "it is the inner half of one function")]
    fn visit(
        &self,
        newer: Vec<Copied>,
        below: &mut Merging,
        range: &ScanRange<'_>,
        prefix: &Prefix,
        upto: Option<&[u8]>,
        left: &mut usize,
        visit: &mut dyn FnMut(&Visited<'_>) -> bool,
    ) -> Result<Reached, ReadError> {
        let durable = self.durable_upto();
        let mut newer = newer.iter().peekable();
        loop {
            let next_below = below.key().filter(|key| upto.is_none_or(|upto| *key <= upto));
            let (is_newer, is_below) = match (newer.peek(), next_below) {
                (None, None) => return Ok(Reached::Upto),
                (Some(_), None) => (true, false),
                (None, Some(_)) => (false, true),
                (Some(newer), Some(below)) => (*newer.key <= *below, *below <= *newer.key),
            };
            let newest = if is_newer { newer.next() } else { None };
            let (full, body, position) = match (newest, next_below) {
                (Some(newest), _) => (&*newest.key, &*newest.body, newest.position),
                (None, Some(key)) => (key, below.body(), below.position()),
                (None, None) => return Ok(Reached::Upto),
            };
            let Some(key) = split_key(full) else { return Err(self.malformed_key()) };
            if !full.starts_with(prefix) || !range.contains(key.key) {
                return Ok(Reached::EndOfRange);
            }
            let indexed = Indexed::decode(body).map_err(|bad| self.malformed(key, bad))?;
            let entry = Entry { register: indexed.register, position };
            // A forgotten key is shown until that is durable, so that who says "absent" waits for it.
            if !entry.register.is_absent() || entry.position > durable {
                let visited = Visited { partition: key.partition, key: key.key, entry, indexed };
                if *left == 0 || !visit(&visited) {
                    return Ok(Reached::Stop);
                }
                *left -= 1;
            }
            if is_below {
                below.advance()?;
            }
        }
    }

    fn malformed_key(&self) -> ReadError {
        let (kind, affected) = (DamageKind::Malformed, Affected::Everything);
        ReadError::Damaged(Damage { file: String::new(), offset: 0, kind, expected: 0, found: 0, affected })
    }
}

/// What lies below the memtable, from where a scan is on. Kept from step to step while nothing else is below.
struct Below {
    view: Arc<View>,
    merging: Merging,
}

impl Below {
    /// From a key on, which it includes or not; at or behind which it stands already, or never came to.
    fn at<'a>(
        kept: &'a mut Option<Self>,
        view: Arc<View>,
        from: &[u8],
        inclusive: bool,
    ) -> Result<&'a mut Self, ReadError> {
        let is_good = |kept: &Self| Arc::ptr_eq(&kept.view, &view) && kept.merging.key().is_none_or(|key| key >= from);
        if !kept.as_ref().is_some_and(is_good) {
            let merging = view.sources(from)?;
            *kept = Some(Self { view, merging });
        }
        let below = kept.as_mut().expect("just put there");
        if !inclusive && below.merging.key() == Some(from) {
            below.merging.advance()?;
        }
        Ok(below)
    }
}

/// Where a visit ended.
enum Reached {
    /// At the last key wanted now.
    Upto,
    /// At the end of the range.
    EndOfRange,
    /// Nobody wants more.
    Stop,
}
