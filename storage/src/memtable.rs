//! `Memtable`: what every key's register holds, in memory and in order.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use dunlin_protocol::{KeyspaceId, PartitionId};

use crate::engine::{Entry, KeyRef};
use crate::place::Position;

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
}

type Keys = BTreeMap<Box<[u8]>, Entry>;
type Forgotten = (Position, PartitionId, KeyspaceId, Box<[u8]>);

/// The keys of the partitions of one lock.
#[derive(Default)]
pub(crate) struct Shard {
    keys: BTreeMap<(PartitionId, KeyspaceId), Keys>,
}

impl Shard {
    pub(crate) fn entry(&self, key: KeyRef<'_>) -> Entry {
        self.keys.get(&(key.partition, key.keyspace)).and_then(|keys| keys.get(key.key)).copied().unwrap_or_default()
    }
}

pub(crate) struct Memtable {
    shards: Vec<Mutex<Shard>>,
    len: AtomicU64,
    /// Keys that are absent again by a frame that is not durable yet: until it is, a reply that says so has to wait for it.
    forgotten: Mutex<Vec<Forgotten>>,
}

impl Memtable {
    pub(crate) fn new(shards: usize) -> Self {
        let shards = (0..shards).map(|_| Mutex::default()).collect();
        Self { shards, len: AtomicU64::new(0), forgotten: Mutex::default() }
    }

    pub(crate) fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    pub(crate) fn lock(&self, partition: PartitionId) -> MutexGuard<'_, Shard> {
        let shard = &self.shards[usize::from(partition.0) % self.shards.len()];
        shard.lock().expect("no thread panics while it holds a shard")
    }

    /// Puts an entry, whose absence is remembered until [`drop_forgotten`](Self::drop_forgotten).
    pub(crate) fn put(&self, shard: &mut Shard, key: KeyRef<'_>, entry: Entry) {
        if entry.register.is_absent() {
            let mut forgotten = self.forgotten.lock().expect("no thread panics while it holds this list");
            forgotten.push((entry.position, key.partition, key.keyspace, key.key.into()));
        }
        let keys = shard.keys.entry((key.partition, key.keyspace)).or_default();
        match keys.get_mut(key.key) {
            Some(slot) => *slot = entry,
            None => {
                keys.insert(key.key.into(), entry);
                self.len.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Removes what was forgotten by frames that are durable now.
    pub(crate) fn drop_forgotten(&self, durable: Position) {
        let mut forgotten = self.forgotten.lock().expect("no thread panics while it holds this list");
        // A shard's lock is taken before this one's: the list is not held while shards are locked.
        let gone: Vec<_> = forgotten.extract_if(.., |(position, ..)| *position <= durable).collect();
        drop(forgotten);
        for (_, partition, keyspace, key) in gone {
            let mut shard = self.lock(partition);
            let entry = shard.entry(KeyRef { partition, keyspace, key: &key });
            if entry.register.is_absent() && entry.position <= durable {
                self.remove(&mut shard, KeyRef { partition, keyspace, key: &key });
            }
        }
    }

    /// The canary: an acceptor that forgets at a restart what it promised and accepted. The simulator must notice.
    #[cfg(feature = "canary")]
    pub(crate) fn forget_votes(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock().expect("no thread panics while it holds a shard");
            for entry in shard.keys.values_mut().flat_map(|keys| keys.values_mut()) {
                entry.register.promised = dunlin_protocol::Ballot::ZERO;
                entry.register.pending = None;
            }
        }
    }

    fn remove(&self, shard: &mut Shard, key: KeyRef<'_>) {
        let at = (key.partition, key.keyspace);
        if let Some(keys) = shard.keys.get_mut(&at)
            && keys.remove(key.key).is_some()
        {
            self.len.fetch_sub(1, Ordering::Relaxed);
            if keys.is_empty() {
                shard.keys.remove(&at);
            }
        }
    }

    /// See [`Engine::scan`](crate::Engine::scan).
    pub(crate) fn scan(
        &self,
        range: &ScanRange<'_>,
        limit: usize,
        visit: &mut dyn FnMut(PartitionId, &[u8], &Entry) -> bool,
    ) -> bool {
        let mut left = limit;
        for partition in range.first.0..=range.last.0 {
            let partition = PartitionId(partition);
            let mut after = if partition == range.first { range.after.map(Box::from) } else { None };
            loop {
                let step = self.copy(range, partition, after.as_deref());
                for (key, entry) in &step {
                    if left == 0 || !visit(partition, key, entry) {
                        return false;
                    }
                    left -= 1;
                }
                match step.into_iter().nth(SCAN_STEP - 1) {
                    Some((key, _)) => after = Some(key),
                    None => break,
                }
            }
        }
        true
    }

    fn copy(&self, range: &ScanRange<'_>, partition: PartitionId, after: Option<&[u8]>) -> Vec<(Box<[u8]>, Entry)> {
        let first = range.start.max(range.prefix);
        let lower = match after {
            Some(after) if after >= first => Bound::Excluded(after),
            _ => Bound::Included(first),
        };
        let shard = self.lock(partition);
        let Some(keys) = shard.keys.get(&(partition, range.keyspace)) else { return Vec::new() };
        keys.range::<[u8], _>((lower, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(range.prefix) && (range.end.is_empty() || &***key < range.end))
            .take(SCAN_STEP)
            .map(|(key, entry)| (key.clone(), *entry))
            .collect()
    }
}
