//! `Frozen`: a memtable that changes no more, until it was flushed.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use crate::digests::Captured;
use crate::memtable::{Copied, Prefix, Shard};
use crate::place::{Position, SegmentId};
use crate::table::split_key;

/// A memtable that changes no more.
pub(crate) struct Frozen {
    shards: Vec<Shard>,
    /// In order, each with its slots.
    prefixes: Vec<Slots>,
    bytes: u64,
    pub(crate) moment: Moment,
}

/// What was so when a memtable was frozen.
#[derive(Default)]
pub(crate) struct Moment {
    /// The log's end: all changes before it, and none behind it, are in this memtable and what lies below.
    pub(crate) position: u64,
    /// How many keys were held.
    pub(crate) keys: u64,
    /// How many bytes of each segment were referred to.
    pub(crate) live: BTreeMap<SegmentId, u64>,
    /// The digests of all partitions.
    pub(crate) digests: Captured,
}

struct Slots {
    prefix: Prefix,
    shard: usize,
    unsorted: Vec<u32>,
    sorted: OnceLock<Vec<u32>>,
}

impl Frozen {
    /// Cheap: nothing is sorted before somebody asks.
    pub(crate) fn new(mut shards: Vec<Shard>, bytes: u64, moment: Moment) -> Self {
        let mut prefixes = Vec::new();
        for (number, shard) in shards.iter_mut().enumerate() {
            prefixes.extend(shard.prefixes().map(|(prefix, unsorted)| Slots {
                prefix,
                shard: number,
                unsorted,
                sorted: OnceLock::new(),
            }));
        }
        prefixes.sort_unstable_by_key(|slots| slots.prefix);
        Self { shards, prefixes, bytes, moment }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A key's body and position.
    #[inline]
    pub(crate) fn get(&self, hash: u64, key: &[u8]) -> Option<(&[u8], Position)> {
        let shard = &self.shards[usize::from(split_key(key)?.partition.0) % self.shards.len()];
        let slot = shard.find(hash, key)?;
        Some((shard.body(slot), shard.position(slot)))
    }

    /// The first entries of a partition and keyspace from `start` on, which it includes or not.
    pub(crate) fn copy(&self, prefix: &Prefix, start: &[u8], inclusive: bool, limit: usize) -> Vec<Copied> {
        let Ok(at) = self.prefixes.binary_search_by_key(prefix, |slots| slots.prefix) else { return Vec::new() };
        let (shard, sorted) = self.sorted(at);
        shard.copy_of(sorted, start, inclusive, limit)
    }

    fn sorted(&self, prefix: usize) -> (&Shard, &[u32]) {
        let slots = &self.prefixes[prefix];
        let shard = &self.shards[slots.shard];
        let sorted = slots.sorted.get_or_init(|| {
            let mut sorted = slots.unsorted.clone();
            shard.sort(&mut sorted);
            sorted
        });
        (shard, sorted)
    }
}

/// A place in a frozen memtable.
pub(crate) struct FrozenCursor {
    frozen: Arc<Frozen>,
    prefix: usize,
    at: usize,
}

impl FrozenCursor {
    /// At the first key at or above `key`.
    pub(crate) fn seek(frozen: Arc<Frozen>, key: &[u8]) -> Self {
        let mut cursor = Self { frozen, prefix: 0, at: 0 };
        let own: Prefix = key.first_chunk().copied().unwrap_or_default();
        cursor.prefix = cursor.frozen.prefixes.partition_point(|slots| slots.prefix < own);
        if cursor.frozen.prefixes.get(cursor.prefix).is_some_and(|slots| slots.prefix == own) {
            let (shard, sorted) = cursor.frozen.sorted(cursor.prefix);
            let at = sorted.partition_point(|slot| shard.key(*slot) < key);
            cursor.at = at;
            cursor.settle();
        }
        cursor
    }

    fn settle(&mut self) {
        while self.prefix < self.frozen.prefixes.len() && self.at >= self.frozen.sorted(self.prefix).1.len() {
            (self.prefix, self.at) = (self.prefix + 1, 0);
        }
    }

    fn slot(&self) -> Option<(&Shard, u32)> {
        if self.prefix >= self.frozen.prefixes.len() {
            return None;
        }
        let (shard, sorted) = self.frozen.sorted(self.prefix);
        Some((shard, *sorted.get(self.at)?))
    }

    pub(crate) fn key(&self) -> Option<&[u8]> {
        self.slot().map(|(shard, slot)| shard.key(slot))
    }

    pub(crate) fn body(&self) -> &[u8] {
        self.slot().map_or(&[], |(shard, slot)| shard.body(slot))
    }

    pub(crate) fn position(&self) -> Position {
        self.slot().map_or(Position::ZERO, |(shard, slot)| shard.position(slot))
    }

    pub(crate) fn advance(&mut self) {
        self.at += 1;
        self.settle();
    }
}
