//! What the tests share: an engine on a memory disk, and how it is written to.

use std::sync::Arc;

use dunlin_protocol::register::{Change, Register};
use dunlin_protocol::{Ballot, Content, KeyspaceId, Millis, PartitionId, Record, Stamp};
use dunlin_storage::{Engine, Entry, KeyRef, MemoryDisk, Options, Place, Position, Recovery, Updated, WriteError};

/// Small segments, so that a run makes many of them.
pub(crate) const SMALL: Options = Options {
    segment_bytes: 4096,
    sync: dunlin_storage::Sync::Always,
    pending_limit_bytes: 2048,
    disk_reserve_bytes: 512,
    shards: 4,
    inline_bytes: 100,
    stage_bytes: 300,
    memtable_bytes: 1 << 20,
    table_bytes: 4096,
    cache_bytes: 8192,
    garbage_percent: 25,
};

/// A small memtable, too, so that a run flushes and merges often.
pub(crate) const TINY: Options = Options { memtable_bytes: 1 << 10, ..SMALL };

pub(crate) fn open(disk: &MemoryDisk) -> (Engine, Recovery) {
    Engine::open(Arc::new(disk.clone()), SMALL).expect("opens")
}

pub(crate) fn key(partition: u16, key: &[u8]) -> KeyRef<'_> {
    KeyRef { partition: PartitionId(partition), keyspace: KeyspaceId::DEFAULT, key }
}

pub(crate) fn stamp(n: u64) -> Stamp {
    Stamp::new(Millis(n), 0, 7)
}

pub(crate) fn record(n: u64, value: impl AsRef<[u8]>) -> Record {
    Record::plain(stamp(n), Content::value(value.as_ref().to_vec()), Millis::NONE)
}

pub(crate) fn tombstone(n: u64) -> Record {
    Record::plain(stamp(n), Content::Tombstone, Millis::NONE)
}

/// Carries out a change whatever the register holds.
pub(crate) fn change(
    engine: &Engine,
    key: KeyRef<'_>,
    change: Change,
    record: Option<&Record>,
) -> Result<Updated<()>, WriteError> {
    engine.update(key, record, Millis(1), |_: &Register<Place>| ((), Some(change)))
}

pub(crate) fn store(engine: &Engine, key: KeyRef<'_>, record: &Record) -> Result<Position, WriteError> {
    let stored = change(engine, key, Change::Store { ballot: Ballot::ZERO }, Some(record))?;
    Ok(stored.entry.position)
}

pub(crate) fn look(engine: &Engine, key: KeyRef<'_>) -> Entry {
    engine.entry(key).expect("reads")
}

/// The value of the record, read back.
pub(crate) fn value(engine: &Engine, key: KeyRef<'_>) -> Option<Vec<u8>> {
    let held = look(engine, key).register.record?;
    let stored = engine.load(key, &held).expect("loads");
    let (same, in_one_look) = engine.get(key).expect("reads");
    assert_eq!((same.register.record, in_one_look), (Some(held), Some(stored.clone())));
    stored.content.bytes().map(|bytes| bytes.to_vec())
}

/// Does all the upkeep there is.
pub(crate) fn maintain(engine: &Engine) {
    while engine.maintain(1 << 20).expect("maintains") {}
}

pub(crate) fn flush(engine: &Engine) {
    while engine.write_pending().expect("writes") {}
    assert_eq!(engine.durable_upto(), engine.end());
}

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ x >> 31) % n
    }
}
