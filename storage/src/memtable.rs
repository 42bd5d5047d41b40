//! `Memtable`: what changed since the last flush, in memory.
//!
//! A shard finds a key by its hash in one look; the order that scans and flushes need is made when they ask for it, by sorting what is new
//! since they last did. Keys and bodies (see [`indexed`](crate::indexed)) lie behind one another in one arena a shard.

use std::collections::BTreeMap;
use std::sync::Arc;

use dunlin_protocol::PartitionId;
use dunlin_protocol::register::Register;
use hashbrown::HashTable;

use crate::digests::{Captured, Digests, LEAVES_LEN};
use crate::frozen::{Frozen, Moment};
use crate::hot::HotEntries;
use crate::pin::{Pin, Saved};
use crate::place::{Place, Position};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};
use crate::table::PREFIX_LEN;

/// What an entry takes besides key and body: slot, and place in the hash table and in the order.
const ENTRY_OVERHEAD: usize = size_of::<Slot>() + 12;

pub(crate) struct Slot {
    hash: u64,
    position: u64,
    key_at: u32,
    body_at: u32,
    body_len: u32,
    body_capacity: u32,
    key_len: u16,
}

/// An entry copied out of a memtable.
pub(crate) struct Copied {
    pub(crate) key: Vec<u8>,
    pub(crate) body: Vec<u8>,
    pub(crate) position: Position,
}

/// The slots of a partition and keyspace.
#[derive(Default)]
pub(crate) struct Order {
    sorted: Vec<u32>,
    /// Added since.
    new: Vec<u32>,
}

pub(crate) type Prefix = [u8; PREFIX_LEN];

/// The keys of the partitions of one lock. Keys are those of [`table`](crate::table).
#[derive(Default)]
pub(crate) struct Shard {
    table: HashTable<u32>,
    slots: Vec<Slot>,
    arena: Vec<u8>,
    orders: BTreeMap<Prefix, Order>,
    /// Of all that these partitions hold, and not of what changed only.
    pub(crate) digests: Digests,
    /// Moments of this memtable that are kept.
    pins: Vec<Arc<Pin>>,
    /// Of keys that are in tables only.
    pub(crate) hot: HotEntries,
    /// How many memtables this shard was a part of that are frozen now.
    pub(crate) freezes: u64,
}

impl Shard {
    #[inline]
    pub(crate) fn find(&self, hash: u64, key: &[u8]) -> Option<u32> {
        let is_it = |&slot: &u32| {
            let found = &self.slots[slot as usize];
            found.hash == hash && self.key(slot) == key
        };
        self.table.find(hash, is_it).copied()
    }

    /// Keeps at hand what was found in tables, after a look at this shard, which had no entry, when so many memtables had been frozen. It does not count
    /// where the key may have come into the memtable since: see [`hot`](crate::hot).
    pub(crate) fn keep(&mut self, freezes: u64, hash: u64, key: &[u8], body: &[u8]) {
        if freezes == self.freezes && self.find(hash, key).is_none() {
            self.hot.insert(hash, key, body);
        }
    }

    /// Takes all entries out, to be frozen. Digests stay, and what is hot: of keys that are not among them.
    fn take(&mut self) -> Self {
        let (hot, freezes) = (std::mem::take(&mut self.hot), self.freezes + 1);
        let digests = std::mem::take(&mut self.digests);
        std::mem::replace(self, Self { hot, freezes, digests, ..Self::default() })
    }

    pub(crate) fn key(&self, slot: u32) -> &[u8] {
        let slot = &self.slots[slot as usize];
        &self.arena[slot.key_at as usize..][..slot.key_len.into()]
    }

    pub(crate) fn body(&self, slot: u32) -> &[u8] {
        let slot = &self.slots[slot as usize];
        &self.arena[slot.body_at as usize..][..slot.body_len as usize]
    }

    pub(crate) fn position(&self, slot: u32) -> Position {
        Position(self.slots[slot as usize].position)
    }

    pub(crate) fn prefixes(&mut self) -> impl Iterator<Item = (Prefix, Vec<u32>)> {
        std::mem::take(&mut self.orders).into_iter().map(|(prefix, mut order)| {
            order.sorted.append(&mut order.new);
            (prefix, order.sorted)
        })
    }

    pub(crate) fn sort(&self, slots: &mut [u32]) {
        slots.sort_unstable_by(|a, b| self.key(*a).cmp(self.key(*b)));
    }

    /// Makes room for so many bytes more. By quarters: doubling would hold up to twice of what is counted.
    fn reserve(&mut self, len: usize) {
        if self.arena.capacity() - self.arena.len() < len {
            self.arena.reserve_exact(len.max(self.arena.len() / 4));
        }
    }

    /// Puts a body where `find` found the key, or found none. Returns by how much the shard grew.
    fn put(&mut self, slot: Option<u32>, hash: u64, key: &[u8], body: &[u8], position: Position) -> usize {
        if !self.pins.is_empty() {
            self.save(slot, key);
        }
        let before = self.arena.len();
        self.reserve(key.len() + body.len());
        match slot {
            Some(number) => {
                let slot = &mut self.slots[number as usize];
                slot.position = position.0;
                slot.body_len = body.len() as u32;
                if slot.body_capacity >= slot.body_len {
                    self.arena[slot.body_at as usize..][..body.len()].copy_from_slice(body);
                } else {
                    (slot.body_at, slot.body_capacity) = (self.arena.len() as u32, slot.body_len);
                    self.arena.extend_from_slice(body);
                }
                self.arena.len() - before
            }
            None => {
                self.hot.remove(hash, key);
                let number = self.slots.len() as u32;
                self.arena.extend_from_slice(key);
                self.arena.extend_from_slice(body);
                let (key_at, body_at, len) = (before as u32, (before + key.len()) as u32, body.len() as u32);
                let (position, key_len) = (position.0, key.len() as u16);
                let slot = Slot { hash, position, key_at, body_at, body_len: len, body_capacity: len, key_len };
                self.slots.push(slot);
                let slots = &self.slots;
                self.table.insert_unique(hash, number, |&slot| slots[slot as usize].hash);
                let prefix = key.first_chunk().copied().unwrap_or_default();
                self.orders.entry(prefix).or_default().new.push(number);
                self.arena.len() - before + ENTRY_OVERHEAD
            }
        }
    }

    /// Saves for the pins what they see of a key, before it is put.
    #[cold]
    fn save(&self, slot: Option<u32>, key: &[u8]) {
        let mut saved = None;
        let mut copy = || Saved::new(key, slot.map(|slot| (self.body(slot), self.position(slot))));
        for pin in &self.pins {
            pin.save(key, || saved.get_or_insert_with(&mut copy).clone());
        }
    }

    /// The first entries of a partition and keyspace from `start` on, which it includes or not.
    fn copy(&mut self, prefix: &Prefix, start: &[u8], inclusive: bool, limit: usize) -> Vec<Copied> {
        let Some(mut order) = self.orders.get_mut(prefix).map(std::mem::take) else { return Vec::new() };
        if !order.new.is_empty() {
            self.sort(&mut order.new);
            order.sorted = self.merged(&order.sorted, &order.new);
            order.new.clear();
        }
        let copied = self.copy_of(&order.sorted, start, inclusive, limit);
        self.orders.insert(*prefix, order);
        copied
    }

    /// The first of these entries, which are in order, from `start` on, which it includes or not.
    pub(crate) fn copy_of(&self, sorted: &[u32], start: &[u8], inclusive: bool, limit: usize) -> Vec<Copied> {
        let is_below = |slot: &u32| if inclusive { self.key(*slot) < start } else { self.key(*slot) <= start };
        let from = sorted.partition_point(is_below);
        let copied = sorted[from..].iter().take(limit).map(|&slot| Copied {
            key: self.key(slot).to_vec(),
            body: self.body(slot).to_vec(),
            position: self.position(slot),
        });
        copied.collect()
    }

    fn merged(&self, a: &[u32], b: &[u32]) -> Vec<u32> {
        let mut merged = Vec::with_capacity(a.len() + b.len());
        let (mut a, mut b) = (a, b);
        while let ([first_a, rest_a @ ..], [first_b, rest_b @ ..]) = (a, b) {
            if self.key(*first_a) < self.key(*first_b) {
                merged.push(*first_a);
                a = rest_a;
            } else {
                merged.push(*first_b);
                b = rest_b;
            }
        }
        merged.extend_from_slice(a);
        merged.extend_from_slice(b);
        merged
    }
}

pub(crate) struct Memtable {
    shards: Vec<Mutex<Shard>>,
    bytes: AtomicU64,
    digest_bytes: AtomicU64,
}

impl Memtable {
    /// `hot_bytes`: see [`hot`](crate::hot).
    pub(crate) fn new(shards: usize, hot_bytes: u64) -> Self {
        let shard = || Shard { hot: HotEntries::new(hot_bytes / shards as u64), ..Shard::default() };
        Self {
            shards: (0..shards).map(|_| Mutex::new(shard())).collect(),
            bytes: AtomicU64::new(0),
            digest_bytes: AtomicU64::new(0),
        }
    }

    /// What it takes in memory.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// What digests take in memory, whatever is flushed.
    pub(crate) fn digest_bytes(&self) -> u64 {
        self.digest_bytes.load(Ordering::Relaxed)
    }

    /// The digests of what tables hold, before anything is put.
    pub(crate) fn begin_with(&self, digests: Digests) {
        self.digest_bytes.store(digests.len() as u64 * LEAVES_LEN, Ordering::Relaxed);
        for (prefix, leaves) in digests.into_iter() {
            let [p0, p1, ..] = prefix;
            self.lock(PartitionId(u16::from_be_bytes([p0, p1]))).digests.insert(prefix, leaves);
        }
    }

    /// A register changed; the shard is its key's. `hash` and `key` are those of the whole key.
    pub(crate) fn change_digest(
        &self,
        shard: &mut Shard,
        (hash, key): (u64, &[u8]),
        old: &Register<Place>,
        new: &Register<Place>,
    ) {
        let before = shard.digests.len();
        shard.digests.change(hash, key, old, new);
        let after = shard.digests.len();
        if after > before {
            self.digest_bytes.fetch_add(LEAVES_LEN, Ordering::Relaxed);
        } else if after < before {
            self.digest_bytes.fetch_sub(LEAVES_LEN, Ordering::Relaxed);
        }
    }

    pub(crate) fn lock(&self, partition: PartitionId) -> MutexGuard<'_, Shard> {
        let shard = &self.shards[usize::from(partition.0) % self.shards.len()];
        shard.lock().expect("no thread panics while it holds a shard")
    }

    /// How many looks found a hot entry, and how many did not.
    pub(crate) fn hot_looks(&self) -> (u64, u64) {
        let shards = self.shards.iter().map(|shard| shard.lock().expect("no thread panics while it holds a shard"));
        shards.fold((0, 0), |(hits, misses), shard| (hits + shard.hot.hits, misses + shard.hot.misses))
    }

    /// See [`Shard::find`] for `slot`.
    pub(crate) fn put(
        &self,
        shard: &mut Shard,
        slot: Option<u32>,
        hash: u64,
        key: &[u8],
        body: &[u8],
        position: Position,
    ) {
        let grown = shard.put(slot, hash, key, body, position);
        if grown > 0 {
            self.bytes.fetch_add(grown as u64, Ordering::Relaxed);
        }
    }

    /// Copies entries out; the shard is locked by the caller.
    pub(crate) fn copy(shard: &mut Shard, prefix: &Prefix, start: &[u8], inclusive: bool, limit: usize) -> Vec<Copied> {
        shard.copy(prefix, start, inclusive, limit)
    }

    /// Takes everything out at one moment, while no shard is used: `moment` is called then, with the digests, and `publish` with what was taken, before any shard
    /// is used again. False: there is nothing, and it was not asked for even so.
    pub(crate) fn freeze(
        &self,
        even_empty: bool,
        moment: impl FnOnce(Captured) -> Moment,
        publish: impl FnOnce(Arc<Frozen>),
    ) -> bool {
        let mut shards = self.lock_all();
        if !even_empty && shards.iter().all(|shard| shard.slots.is_empty()) {
            return false;
        }
        let (mut pins, mut captured) = (Vec::new(), Captured::new());
        let taken = shards.iter_mut().map(|shard| {
            pins = std::mem::take(&mut shard.pins);
            shard.digests.capture(&mut captured);
            shard.take()
        });
        let taken = taken.collect();
        let frozen = Arc::new(Frozen::new(taken, self.bytes.swap(0, Ordering::Relaxed), moment(captured)));
        pins.iter().for_each(|pin| pin.freeze(&frozen));
        publish(frozen);
        true
    }

    /// Keeps a moment from now on: `make` is called while no shard is used.
    pub(crate) fn pin(&self, make: impl FnOnce() -> Arc<Pin>) -> Arc<Pin> {
        let mut shards = self.lock_all();
        let pin = make();
        shards.iter_mut().for_each(|shard| shard.pins.push(pin.clone()));
        pin
    }

    /// A moment is kept no more.
    pub(crate) fn unpin(&self, pin: &Arc<Pin>) {
        for shard in &self.shards {
            let mut shard = shard.lock().expect("no thread panics while it holds a shard");
            shard.pins.retain(|other| !Arc::ptr_eq(other, pin));
        }
    }

    fn lock_all(&self) -> Vec<MutexGuard<'_, Shard>> {
        self.shards.iter().map(|shard| shard.lock().expect("no thread panics while it holds a shard")).collect()
    }

    /// The canary: an acceptor that forgets at a restart what it promised and accepted. The simulator must notice.
    #[cfg(feature = "canary")]
    pub(crate) fn forget_votes(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock().expect("no thread panics while it holds a shard");
            for number in 0..shard.slots.len() as u32 {
                let mut body = Vec::new();
                if let Ok(mut indexed) = crate::indexed::Indexed::decode(shard.body(number)) {
                    indexed.register.promised = dunlin_protocol::Ballot::ZERO;
                    (indexed.register.pending, indexed.pending) = (None, None);
                    indexed.encode(&mut body);
                }
                let position = shard.position(number);
                shard.put(Some(number), 0, &[], &body, position);
            }
        }
    }
}
