//! `HotEntries`: entries of tables that were read lately, by key.
//!
//! A block of 4 KiB keeps some thirty entries in memory for the one that is asked for; here that one is kept alone, and is found with two or three
//! cache misses. Each shard of the [memtable](crate::memtable) has its own, under the same lock, and that is why nothing in it is ever stale. The
//! invariant: **a key that is here is in no memtable, frozen ones included, and its body is the newest one in the tables.**
//!
//! - A key is put here only where it was looked up under the lock in a shard that had frozen as many memtables as it has now, and where the memtable does
//!   not have it now ([`Shard::keep`](crate::memtable::Shard::keep)). Every change goes through the memtable, and an entry leaves the
//!   memtable only by a freeze: so nothing has changed since that look.
//! - A key that comes into the memtable is taken out of here under the same lock.
//! - Flushes and merges change where a key's newest body lies, never what it is, as long as the key stays out of the memtable.
//!
//! Entries lie behind one another in chunks; the oldest chunk is used again when all are full, and those of its entries that were read meanwhile stay, up to
//! half of it (CLOCK). An index of buckets of [`WAYS`] slots, one cache line each, finds them by hash.

/// Slots of a bucket.
const WAYS: usize = 8;
/// For so many bytes, of index and entries together, there is one bucket: about five entries of 150 bytes.
const BYTES_PER_BUCKET: usize = 768;
const CHUNK_LEN: usize = 16 << 10;
const MIN_CHUNK_LEN: usize = 512;
/// Larger entries are left to the blocks.
const MAX_ENTRY_LEN: usize = 2 << 10;
/// Before key and body: the low half of the hash (4), the lengths of key and body (2 each).
const HEAD_LEN: usize = 8;
/// In a slot: the entry was read since it was put here, or last passed over.
const WAS_READ: u32 = 1 << 31;

#[derive(Clone, Copy)]
struct Slot {
    tag: u32,
    /// Where the entry lies, and [`WAS_READ`].
    at: u32,
}

impl Slot {
    const EMPTY: Self = Self { tag: 0, at: u32::MAX };

    fn is_empty(self) -> bool {
        self.at == u32::MAX
    }

    fn start(self) -> usize {
        (self.at & !WAS_READ) as usize
    }
}

/// Where an entry's body lies, until the next change.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    at: usize,
    len: usize,
}

/// Entries of tables that were read lately, of one shard.
#[derive(Default)]
pub(crate) struct HotEntries {
    capacity: usize,
    chunk_len: usize,
    /// Buckets, and chunks; made when the first entry comes.
    slots: Vec<Slot>,
    arena: Vec<u8>,
    /// How far each chunk is filled.
    filled: Vec<usize>,
    /// The chunk that is being filled.
    chunk: usize,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
}

impl HotEntries {
    /// At most so many bytes, index included; with less than two chunks, none.
    pub(crate) fn new(bytes: u64) -> Self {
        let capacity = usize::try_from(bytes).unwrap_or(usize::MAX).min(1 << 30);
        let chunk_len = (capacity / 8).clamp(MIN_CHUNK_LEN, CHUNK_LEN);
        Self { capacity, chunk_len, ..Self::default() }
    }

    /// Finds a key, and counts it.
    #[inline]
    pub(crate) fn find(&mut self, hash: u64, key: &[u8]) -> Option<Found> {
        let found = self.slot(hash, key);
        match found {
            Some(slot) => {
                self.hits += 1;
                self.slots[slot].at |= WAS_READ;
                let at = self.slots[slot].start();
                let (key_len, len) = self.lengths(at);
                Some(Found { at: at + HEAD_LEN + key_len, len })
            }
            None => {
                self.misses += 1;
                None
            }
        }
    }

    pub(crate) fn body(&self, found: Found) -> &[u8] {
        &self.arena[found.at..found.at + found.len]
    }

    /// Puts an entry here that lies in tables, and in no memtable.
    pub(crate) fn insert(&mut self, hash: u64, key: &[u8], body: &[u8]) {
        let len = HEAD_LEN + key.len() + body.len();
        if len > MAX_ENTRY_LEN.min(self.chunk_len / 2) || !self.make() || self.slot(hash, key).is_some() {
            return;
        }
        // What stays in a chunk fills half of it at most, and so there is room in the next one.
        if self.filled[self.chunk] + len > self.chunk_len {
            self.use_oldest();
        }
        let at = self.chunk * self.chunk_len + self.filled[self.chunk];
        let (head, rest) = self.arena[at..at + len].split_at_mut(HEAD_LEN);
        head[..4].copy_from_slice(&(hash as u32).to_le_bytes());
        head[4..6].copy_from_slice(&(key.len() as u16).to_le_bytes());
        head[6..].copy_from_slice(&(body.len() as u16).to_le_bytes());
        rest[..key.len()].copy_from_slice(key);
        rest[key.len()..].copy_from_slice(body);
        self.filled[self.chunk] += len;
        let bucket = self.bucket(hash as u32);
        let slots = &self.slots[bucket..bucket + WAYS];
        let free = slots.iter().position(|slot| slot.is_empty());
        let unread = || slots.iter().position(|slot| slot.at & WAS_READ == 0);
        let slot = bucket + free.or_else(unread).unwrap_or(at % WAYS);
        self.slots[slot] = Slot { tag: hash as u32, at: at as u32 };
    }

    /// Takes a key out that is about to change.
    #[inline]
    pub(crate) fn remove(&mut self, hash: u64, key: &[u8]) {
        if let Some(slot) = self.slot(hash, key) {
            self.slots[slot] = Slot::EMPTY;
        }
    }

    /// Makes index and chunks; false: there is no room for any.
    fn make(&mut self) -> bool {
        if self.slots.is_empty() {
            let buckets = self.capacity / BYTES_PER_BUCKET;
            let chunks = (self.capacity - buckets * WAYS * size_of::<Slot>()) / self.chunk_len;
            if chunks < 2 || buckets == 0 {
                return false;
            }
            self.slots = vec![Slot::EMPTY; buckets * WAYS];
            self.arena = vec![0; chunks * self.chunk_len];
            self.filled = vec![0; chunks];
        }
        true
    }

    /// The first slot of a bucket.
    fn bucket(&self, tag: u32) -> usize {
        let buckets = (self.slots.len() / WAYS) as u64;
        ((u64::from(tag) * buckets) >> 32) as usize * WAYS
    }

    #[inline]
    fn slot(&self, hash: u64, key: &[u8]) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        let tag = hash as u32;
        let bucket = self.bucket(tag);
        let is_it = |slot: &Slot| slot.tag == tag && !slot.is_empty() && self.key(slot.start()) == key;
        self.slots[bucket..bucket + WAYS].iter().position(is_it).map(|way| bucket + way)
    }

    /// The lengths of key and body of the entry at an offset.
    fn lengths(&self, at: usize) -> (usize, usize) {
        let head = &self.arena[at..at + HEAD_LEN];
        let len = |at: usize| usize::from(u16::from_le_bytes([head[at], head[at + 1]]));
        (len(4), len(6))
    }

    fn key(&self, at: usize) -> &[u8] {
        let (key_len, _) = self.lengths(at);
        &self.arena[at + HEAD_LEN..][..key_len]
    }

    /// Goes on to the oldest chunk. Of its entries those that were read stay, and have to be read again to stay once more.
    fn use_oldest(&mut self) {
        self.chunk = (self.chunk + 1) % self.filled.len();
        let start = self.chunk * self.chunk_len;
        let (mut from, end, mut to) = (start, start + self.filled[self.chunk], start);
        while from < end {
            let (key_len, body_len) = self.lengths(from);
            let len = HEAD_LEN + key_len + body_len;
            let head = &self.arena[from..from + 4];
            let bucket = self.bucket(u32::from_le_bytes([head[0], head[1], head[2], head[3]]));
            let slots = &mut self.slots[bucket..bucket + WAYS];
            // No slot points at what was taken out, or pushed out.
            if let Some(slot) = slots.iter_mut().find(|slot| !slot.is_empty() && slot.start() == from) {
                if slot.at & WAS_READ != 0 && to + len <= start + self.chunk_len / 2 {
                    slot.at = to as u32;
                    self.arena.copy_within(from..from + len, to);
                    to += len;
                } else {
                    *slot = Slot::EMPTY;
                }
            }
            from += len;
        }
        self.filled[self.chunk] = to - start;
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.arena.len() + self.slots.len() * size_of::<Slot>()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::table::hash;

    fn look(hot: &mut HotEntries, key: &[u8]) -> Option<Vec<u8>> {
        let found = hot.find(hash(key), key)?;
        Some(hot.body(found).to_vec())
    }

    #[test]
    fn what_is_read_stays_and_the_rest_goes() {
        let mut hot = HotEntries::new(64 << 10);
        let mut missed = 0;
        for n in 0..10_000u32 {
            // Two hundred keys are read again and again; what comes by once must not push them out.
            for n in [n, n % 200] {
                let (key, body) = (n.to_be_bytes(), [n as u8; 100]);
                match look(&mut hot, &key) {
                    Some(found) => assert_eq!(found, body),
                    None => {
                        missed += 1;
                        hot.insert(hash(&key), &key, &body);
                    }
                }
            }
        }
        assert!(missed < 10_800, "{missed}");
        let left = (200..10_000u32).filter(|n| look(&mut hot, &n.to_be_bytes()).is_some()).count();
        assert!((100..600).contains(&left), "{left}");
        assert!(hot.bytes() <= 64 << 10 && hot.bytes() > 56 << 10, "{}", hot.bytes());
        assert_eq!((hot.hits + hot.misses, hot.misses), (20_000 + 9_800, missed + 9_800 - left as u64));
    }

    #[test]
    fn without_room_nothing_is_kept() {
        for bytes in [0, 100, 1000] {
            let mut hot = HotEntries::new(bytes);
            hot.insert(1, b"a", b"b");
            assert!(look(&mut hot, b"a").is_none() && hot.bytes() == 0, "{bytes}");
        }
        let mut hot = HotEntries::new(1 << 20);
        hot.insert(hash(b"a"), b"a", &[0; MAX_ENTRY_LEN]);
        assert!(look(&mut hot, b"a").is_none());
    }

    proptest! {
        /// Whatever comes and goes: a key that is found has the body that it was put here with last.
        #[test]
        fn nothing_else_is_found(
            bytes in 1200u64..8000,
            steps in prop::collection::vec((0u8..3, 0u16..60, 0usize..240), 0..600),
        ) {
            let mut hot = HotEntries::new(bytes);
            let mut model = BTreeMap::new();
            let mut version = 0u8;
            for (step, number, len) in steps {
                let key = vec![number as u8; usize::from(number)];
                // Few buckets have keys of one tag: they collide.
                let hash = u64::from(number % 16) << 60 | u64::from(number % 5) << 30;
                match step {
                    0 => {
                        version = version.wrapping_add(1);
                        let body = vec![version; len];
                        hot.remove(hash, &key);
                        hot.insert(hash, &key, &body);
                        model.insert(key, body);
                    }
                    1 => {
                        hot.remove(hash, &key);
                        model.remove(&key);
                    }
                    _ => {
                        if let Some(found) = hot.find(hash, &key) {
                            prop_assert_eq!(Some(hot.body(found)), model.get(&key).map(|body| &body[..]));
                        }
                    }
                }
                prop_assert!(hot.bytes() as u64 <= bytes);
            }
        }
    }
}
