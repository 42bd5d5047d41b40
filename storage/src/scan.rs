//! Scans: ranges of keys in order.

use std::sync::Arc;

use bytes::Bytes;
use dunlin_protocol::{KeyspaceId, PartitionId};

use crate::digest::Leaf;
use crate::disk::Wait;
use crate::engine::{Engine, Entry, KeyRef, Stored};
use crate::error::{Affected, Damage, DamageKind, ReadError};
use crate::frame::Body;
use crate::frozen::Frozen;
use crate::indexed::Indexed;
use crate::memtable::{Copied, Memtable, Prefix};
use crate::pin::Pin;
use crate::place::Position;
use crate::table::{Merging, key as full_key, split_key};
use crate::view::View;

/// How many entries a scan copies under one lock: few at first, more when it goes on.
const SCAN_STEP: usize = 64;
const MAX_SCAN_STEP: usize = 256;

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
    /// Its keyspace.
    pub keyspace: KeyspaceId,
    /// Its partition.
    pub partition: PartitionId,
    /// Its key.
    pub key: &'a [u8],
    /// What is held for it.
    pub entry: &'a Entry,
    /// The record's body, where it lies in the index.
    pub(crate) body: Option<Body<'a>>,
}

impl Visited<'_> {
    /// The record, where it is small enough to lie in the index; otherwise [`Engine::load`] has it.
    ///
    /// # Errors
    /// None where it lies elsewhere, or there is none.
    pub fn record(&self) -> Option<Stored> {
        let held = self.entry.register.record?;
        let (lineage, content) = self.body?.decode(held.head.tombstone, Bytes::copy_from_slice).ok()?;
        Some(Stored { lineage, content })
    }

    /// The bytes of the record's value, without copying them, where they lie in the index.
    pub fn value(&self) -> Option<&[u8]> {
        self.body?.value().ok()
    }

    /// The leaf of its partition's digest that the key belongs to.
    pub fn leaf(&self) -> Leaf {
        Leaf::of(KeyRef { partition: self.partition, keyspace: self.keyspace, key: self.key })
    }
}

impl Engine {
    /// Visits keys in the order of partition and key, until `visit` returns false or `limit` keys were visited. Returns whether the range
    /// ended; if not, the last key visited is where another scan goes on ([`ScanRange::after`]). Sees every key that is there all the time
    /// and any others as they come and go; deleted, promised, and just forgotten keys, too. No lock is held during a visit.
    pub fn scan(
        &self,
        range: ScanRange<'_>,
        limit: usize,
        visit: &mut dyn FnMut(PartitionId, &[u8], &Entry) -> bool,
    ) -> Result<bool, ReadError> {
        self.try_scan(range, limit, Wait::Allowed, visit)
    }

    /// Like [`scan`](Self::scan), but waiting for the disk only where that is allowed; otherwise [`ReadError::WouldBlock`], perhaps after some visits.
    pub fn try_scan(
        &self,
        range: ScanRange<'_>,
        limit: usize,
        wait: Wait,
        visit: &mut dyn FnMut(PartitionId, &[u8], &Entry) -> bool,
    ) -> Result<bool, ReadError> {
        let visit = &mut |visited: &Visited<'_>| visit(visited.partition, visited.key, visited.entry);
        self.scan_of(None, range, limit, wait, visit)
    }

    /// Like [`scan`](Self::scan), with the records of those that are small at hand.
    pub fn scan_with(
        &self,
        range: ScanRange<'_>,
        limit: usize,
        visit: &mut dyn FnMut(&Visited<'_>) -> bool,
    ) -> Result<bool, ReadError> {
        self.scan_of(None, range, limit, Wait::Allowed, visit)
    }

    /// Scans what there is now, or what there was at a moment that is kept.
    pub(crate) fn scan_of(
        &self,
        pin: Option<&Pin>,
        range: ScanRange<'_>,
        limit: usize,
        wait: Wait,
        visit: &mut dyn FnMut(&Visited<'_>) -> bool,
    ) -> Result<bool, ReadError> {
        let mut left = limit;
        let mut below = Below { wait, kept: None };
        for partition in (range.first.0..=range.last.0).map(PartitionId) {
            let ended = self.scan_partition(pin, &range, partition, &mut below, &mut left, visit);
            if !ended.inspect_err(|error| self.note_damage(error))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn scan_partition(
        &self,
        pin: Option<&Pin>,
        range: &ScanRange<'_>,
        partition: PartitionId,
        below: &mut Below,
        left: &mut usize,
        visit: &mut dyn FnMut(&Visited<'_>) -> bool,
    ) -> Result<bool, ReadError> {
        let full = |key: &[u8]| full_key(KeyRef { partition, keyspace: range.keyspace, key });
        let (start, mut inclusive) = range.start_in(partition);
        let mut from = full(start);
        let prefix: Prefix = *from.first_chunk().expect("partition and keyspace");
        let mut step = SCAN_STEP;
        loop {
            let wanted = Wanted { partition, prefix: &prefix, from: &from, inclusive, step };
            let Newer { entries, upto, shown_from, view } = match pin {
                None => self.newer(&wanted),
                Some(pin) => self.newer_pinned(pin, &wanted),
            };
            step = (2 * step).min(MAX_SCAN_STEP);
            let merging = below.at(view, &from, inclusive)?;
            let newer = (&entries[..], shown_from);
            match self.visit(newer, merging, range, &prefix, upto.as_deref(), left, visit)? {
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

    /// The memtable's next entries, and what lies below them: both of one moment.
    fn newer(&self, wanted: &Wanted<'_>) -> Newer {
        let Wanted { partition, prefix, from, inclusive, step } = *wanted;
        let mut shard = self.memtable.lock(partition);
        let entries = Memtable::copy(&mut shard, prefix, from, inclusive, step);
        let view = self.view();
        drop(shard);
        Newer { upto: wanted.upto(&entries), entries, shown_from: self.durable_upto(), view }
    }

    /// The same, at a moment that is kept.
    fn newer_pinned(&self, pin: &Pin, wanted: &Wanted<'_>) -> Newer {
        let Wanted { partition, prefix, from, inclusive, step } = *wanted;
        let of_frozen = |frozen: &Frozen| {
            let mut entries = frozen.copy(prefix, from, inclusive, step);
            let upto = wanted.upto(&entries);
            pin.restore(&mut entries);
            (entries, upto)
        };
        let of_memtable = || {
            let mut shard = self.memtable.lock(partition);
            if pin.frozen().is_some() {
                return None;
            }
            let mut entries = Memtable::copy(&mut shard, prefix, from, inclusive, step);
            let upto = wanted.upto(&entries);
            pin.restore(&mut entries);
            Some((entries, upto))
        };
        let (entries, upto) = loop {
            match pin.frozen() {
                Some(frozen) => break of_frozen(frozen),
                // It may be frozen between the two looks.
                None => match of_memtable() {
                    Some(copied) => break copied,
                    None => continue,
                },
            }
        };
        Newer { entries, upto, shown_from: Position(u64::MAX), view: pin.view.clone() }
    }

    /// Visits what comes, newer entries and those below them, as far as `upto`, which it includes.
    #[expect(clippy::too_many_arguments, reason = "it is the inner half of one function")]
    fn visit(
        &self,
        (newer, shown_from): (&[Copied], Position),
        below: &mut Merging,
        range: &ScanRange<'_>,
        prefix: &Prefix,
        upto: Option<&[u8]>,
        left: &mut usize,
        visit: &mut dyn FnMut(&Visited<'_>) -> bool,
    ) -> Result<Reached, ReadError> {
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
            let indexed = match Indexed::decode(body) {
                Ok(indexed) => indexed,
                Err(bad) => return Err(self.malformed(key, bad)),
            };
            let entry = Entry { register: indexed.register, position };
            // A forgotten key is shown until that is durable, so that who says "absent" waits for it.
            if !entry.register.is_absent() || entry.position > shown_from {
                let KeyRef { partition, keyspace, key } = key;
                let visited = Visited { keyspace, partition, key, entry: &entry, body: indexed.record };
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

/// Which of the memtable's entries are wanted next.
struct Wanted<'a> {
    partition: PartitionId,
    prefix: &'a Prefix,
    /// From this key on, which is wanted or not.
    from: &'a [u8],
    inclusive: bool,
    /// At most so many.
    step: usize,
}

impl Wanted<'_> {
    /// The last of what was copied, where there may be more behind it.
    fn upto(&self, entries: &[Copied]) -> Option<Vec<u8>> {
        entries.get(self.step - 1).map(|last| last.key.clone())
    }
}

/// The memtable's next entries.
struct Newer {
    entries: Vec<Copied>,
    /// There are more behind this key; none: that is all of the partition.
    upto: Option<Vec<u8>>,
    /// A forgotten key is shown where its position lies behind this.
    shown_from: Position,
    view: Arc<View>,
}

/// What lies below the memtable, from where a scan is on. Kept from step to step while nothing else is below.
struct Below {
    wait: Wait,
    kept: Option<(Arc<View>, Merging)>,
}

impl Below {
    /// From a key on, which it includes or not; at or behind which it stands already, or never came to.
    fn at(&mut self, view: Arc<View>, from: &[u8], inclusive: bool) -> Result<&mut Merging, ReadError> {
        let is_good = |(of, merging): &(Arc<View>, Merging)| {
            Arc::ptr_eq(of, &view) && merging.key().is_none_or(|key| key >= from)
        };
        if !self.kept.as_ref().is_some_and(is_good) {
            let merging = view.sources(from, self.wait)?;
            self.kept = Some((view, merging));
        }
        let (_, merging) = self.kept.as_mut().expect("just put there");
        if !inclusive && merging.key() == Some(from) {
            merging.advance()?;
        }
        Ok(merging)
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
