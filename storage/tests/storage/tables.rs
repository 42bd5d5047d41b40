//! Tables under the memtable: flushed, merged, read, forgotten, opened again.

use std::collections::BTreeMap;
use std::sync::Arc;

use dunlin_protocol::register::Change;
use dunlin_protocol::{KeyspaceId, PartitionId};
use dunlin_storage::{Engine, MemoryDisk, Options, Position, ScanRange, WriteError};

use crate::support::{Random, SMALL, TINY, change, flush, key, look, maintain, record, stamp, store, tombstone, value};

pub(crate) type Model = BTreeMap<(u16, Vec<u8>), Vec<u8>>;

pub(crate) fn open_with(disk: &MemoryDisk, options: Options) -> Engine {
    let (engine, recovery) = Engine::open(Arc::new(disk.clone()), options).expect("opens");
    assert_eq!(recovery.damaged, []);
    engine
}

fn settle(engine: &Engine) {
    flush(engine);
    maintain(engine);
}

/// Stores, overwrites and forgets at random.
pub(crate) fn churn(engine: &Engine, random: &mut Random, model: &mut Model, steps: u64, n: &mut u64) {
    for _ in 0..steps {
        *n += 1;
        let name = format!("key-{:03}", random.below(300)).into_bytes();
        let at = ((random.below(5) * 300) as u16, name);
        let done = match random.below(8) {
            0 => {
                let done = change(engine, key(at.0, &at.1), Change::Forget, None);
                done.map(|_| model.remove(&at))
            }
            _ => {
                let value = vec![*n as u8; random.below(250) as usize];
                let stored = store(engine, key(at.0, &at.1), &record(*n, &value));
                stored.map(|_| model.insert(at, value))
            }
        };
        match done {
            Ok(_) => {}
            Err(WriteError::Overloaded) => settle(engine),
            Err(error) => panic!("{error}"),
        }
        if random.below(20) == 0 {
            flush(engine);
            engine.maintain(random.below(2000)).expect("maintains");
        }
    }
}

pub(crate) fn check(engine: &Engine, model: &Model) {
    let mut found = Model::new();
    let all = ScanRange::all(KeyspaceId::DEFAULT, PartitionId(0), PartitionId(2000));
    let ended = engine.scan(all, usize::MAX, &mut |partition, name, entry| {
        if entry.register.is_absent() {
            // Forgotten, and not durably yet.
            return entry.position > engine.durable_upto();
        }
        found.insert((partition.0, name.to_vec()), value(engine, key(partition.0, name)).expect("a value"));
        true
    });
    assert!(ended.expect("reads"));
    assert_eq!(&found, model);
    assert_eq!(engine.stats().keys, model.len() as u64);
}

#[test]
fn what_was_put_is_there_through_flushes_merges_and_restarts() {
    let disk = MemoryDisk::new();
    let (mut random, mut model, mut n, mut collected) = (Random(7), Model::new(), 0, 0);
    for round in 0..12 {
        let engine = open_with(&disk, TINY);
        churn(&engine, &mut random, &mut model, 500, &mut n);
        check(&engine, &model);
        settle(&engine);
        check(&engine, &model);
        let stats = engine.stats();
        assert!(stats.flushes > 0 && stats.merges > 0 && stats.tables > 0, "{stats:?}");
        // At rest no more than a fifth is superseded, and the log is short.
        assert!(stats.table_entries <= stats.keys + stats.keys / 4 + 64, "{stats:?}");
        collected += stats.collected;
        let used = disk.used() - stats.room_bytes;
        assert!(used < 2 * (stats.live_segment_bytes + stats.table_bytes) + (40 << 10), "{used} bytes, {stats:?}");
        if round % 3 == 0 {
            disk.crash(round);
        }
    }
    assert!(collected > 20, "{collected}");
    // Every page of a scan goes on where the one before it stopped.
    let engine = open_with(&disk, TINY);
    let whole = ScanRange::all(KeyspaceId::DEFAULT, PartitionId(0), PartitionId(2000));
    let mut seen: Vec<(u16, Vec<u8>)> = Vec::new();
    loop {
        let last = seen.last().cloned();
        let range = match &last {
            Some((partition, name)) => ScanRange { first: PartitionId(*partition), after: Some(name), ..whole },
            None => whole,
        };
        let ended = engine.scan(range, 37, &mut |partition, name, _| {
            seen.push((partition.0, name.to_vec()));
            true
        });
        if ended.expect("reads") {
            break;
        }
    }
    assert!(seen.iter().eq(model.keys()));
    let middle = ScanRange { start: b"key-050", end: b"key-060", ..whole };
    let mut count = 0;
    engine
        .scan(middle, usize::MAX, &mut |_, name, _| {
            assert!((&b"key-050"[..]..&b"key-060"[..]).contains(&name));
            count += 1;
            true
        })
        .expect("reads");
    assert_eq!(count, model.keys().filter(|(_, name)| (&b"key-050"[..]..&b"key-060"[..]).contains(&&**name)).count());
}

#[test]
fn a_cold_key_keeps_all_of_its_register() {
    let disk = MemoryDisk::new();
    let engine = open_with(&disk, TINY);
    let at = key(1, b"a");
    store(&engine, at, &record(5, "small")).expect("stores");
    change(&engine, at, Change::Promise { ballot: stamp(9) }, None).expect("promises");
    let fill = |engine: &Engine| {
        for n in 0..40u64 {
            if store(engine, key(2, &n.to_be_bytes()), &record(n + 1, [1; 90])).is_err() {
                settle(engine);
            }
        }
        settle(engine);
    };
    fill(&engine);
    assert_eq!((look(&engine, at).position, value(&engine, at)), (Position::ZERO, Some(b"small".to_vec())));
    // What is cold is changed as if it were not.
    let accept = Change::Accept { ballot: stamp(9), promised: stamp(10) };
    change(&engine, at, accept, Some(&record(9, [2; 300]))).expect("accepts");
    let register = look(&engine, at).register;
    assert_eq!((register.promised, register.head().stamp), (stamp(10), stamp(5)));
    fill(&engine);
    change(&engine, at, Change::Commit { ballot: stamp(9) }, None).expect("commits what is pending in a table");
    assert_eq!(value(&engine, at), Some(vec![2; 300]));
    flush(&engine);
    drop(engine);
    let engine = open_with(&disk, TINY);
    assert_eq!(value(&engine, at), Some(vec![2; 300]));
    fill(&engine);
    store(&engine, at, &tombstone(20)).expect("deletes");
    change(&engine, at, Change::Forget, None).expect("forgets");
    fill(&engine);
    assert!(look(&engine, at).register.is_absent());
    drop(engine);
    assert!(look(&open_with(&disk, TINY), at).register.is_absent());
}

#[test]
fn only_the_log_behind_the_tables_is_replayed_and_what_lies_before_is_removed() {
    let disk = MemoryDisk::new();
    let options = Options { memtable_bytes: 8 << 10, ..SMALL };
    let engine = open_with(&disk, options);
    for n in 0..600u64 {
        if n % 8 == 0 {
            settle(&engine);
        }
        store(&engine, key((n % 3) as u16, &n.to_be_bytes()), &record(n + 1, [n as u8; 90])).expect("stores");
    }
    settle(&engine);
    let stats = engine.stats();
    assert!(stats.segment_bytes < 40 << 10 && stats.live_segment_bytes == 0, "{stats:?}");
    drop(engine);
    let (engine, recovery) = Engine::open(Arc::new(disk.clone()), options).expect("opens");
    assert!(recovery.frames < 150 && recovery.segments < 15, "{recovery:?}");
    assert_eq!(engine.stats().keys, 600);
    for n in 0..600u64 {
        assert_eq!(value(&engine, key((n % 3) as u16, &n.to_be_bytes())), Some(vec![n as u8; 90]));
    }
}

#[test]
fn at_rest_the_log_gives_back_what_it_does_not_need() {
    let disk = MemoryDisk::new();
    let options = Options {
        segment_bytes: 8 << 20,
        pending_limit_bytes: 4 << 20,
        disk_reserve_bytes: 64 << 10,
        memtable_bytes: 64 << 20,
        ..SMALL
    };
    let engine = open_with(&disk, options);
    let rest = |engine: &Engine| {
        flush(engine);
        maintain(engine);
        while engine.rest().expect("rests") {
            maintain(engine);
        }
    };
    for round in 0..3u64 {
        for n in 0..20_000u64 {
            let at = n.to_be_bytes();
            while store(&engine, key(1, &at), &record(1 + round, [n as u8; 90])).is_err() {
                flush(&engine);
            }
        }
        rest(&engine);
        let stats = engine.stats();
        assert!(stats.segments <= 2 && stats.segment_bytes < 200 && stats.room_bytes < 4 << 20, "{stats:?}");
        assert!(disk.used() < stats.table_bytes * 115 / 100 + (4 << 20), "{} bytes used, {stats:?}", disk.used());
        // A little more is not worth a flush, and nothing is given up for it.
        store(&engine, key(2, &round.to_be_bytes()), &record(1, "little")).expect("stores");
        rest(&engine);
        assert_eq!(engine.stats().flushes, stats.flushes);
        // What may be appended at once is the same as ever as soon as somebody writes.
        store(&engine, key(2, &round.to_be_bytes()), &record(2, "little")).expect("stores");
        flush(&engine);
        assert!(engine.stats().room_bytes >= 4 << 20);
    }
    disk.kill();
    drop(engine);
    let engine = open_with(&disk, options);
    assert_eq!(engine.stats().keys, 20_003);
    for n in 0..20_000u64 {
        assert_eq!(look(&engine, key(1, &n.to_be_bytes())).register.head().stamp, stamp(3));
    }
}

#[test]
fn without_upkeep_writes_are_refused_before_memory_runs_away() {
    let engine = open_with(&MemoryDisk::new(), TINY);
    let mut refused = None;
    for n in 0..200u64 {
        match store(&engine, key(1, &n.to_be_bytes()), &record(n + 1, [1; 50])) {
            Ok(_) => flush(&engine),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    assert!(matches!(refused, Some(WriteError::Overloaded)) && engine.wants_upkeep());
    assert!(engine.stats().memtable_bytes < 2 * TINY.memtable_bytes + 300);
    store(&engine, key(1, &[9; 8]), &tombstone(900)).expect("deletes go on");
    settle(&engine);
    store(&engine, key(1, b"x"), &record(901, [1; 50])).expect("there is room again");
}

#[test]
fn what_is_counted_adds_up() {
    let disk = MemoryDisk::new();
    let engine = open_with(&disk, TINY);
    let (mut random, mut model, mut n) = (Random(3), Model::new(), 0);
    churn(&engine, &mut random, &mut model, 900, &mut n);
    // Refused until the writer has had its turn: one time in which nothing was taken, of whatever was asked for meanwhile.
    let before = engine.stats();
    flush(&engine);
    let at = key(1, b"stalled");
    while store(&engine, at, &record(n + 1, [1; 200])).is_ok() {}
    assert!(store(&engine, at, &record(n + 1, [1; 200])).is_err());
    assert!(change(&engine, at, Change::Promise { ballot: stamp(n + 2) }, None).is_ok(), "it may use the reserve");
    assert_eq!(engine.stats().stall_time.count(), before.stall_time.count(), "it has not ended");
    settle(&engine);
    let stats = engine.stats();
    assert!(stats.flushes > 2 && stats.merges > 2 && stats.collected > 0 && stats.batches > 20, "{stats:?}");
    // What neither flush nor merge left to do.
    assert_eq!((stats.merge_debt_bytes, stats.collection_debt_bytes), (0, 0));
    assert!(stats.dead_segment_bytes <= stats.segment_bytes - stats.live_segment_bytes);
    assert_eq!(stats.level_bytes.iter().sum::<u64>(), stats.table_bytes);
    assert_eq!((stats.sync_time.count(), stats.sync_time.sum()), (stats.syncs, stats.sync_nanos));
    assert_eq!((stats.batch_frames.count(), stats.batch_frames.sum()), (stats.batches, stats.writes));
    assert_eq!((stats.batch_len.count(), stats.batch_len.sum()), (stats.batches, stats.batch_bytes));
    assert_eq!((stats.flush_time.count(), stats.merge_time.count()), (stats.flushes, stats.merges));
    store(&engine, at, &record(n + 3, [1; 20])).expect("takes writes again");
    let ended = engine.stats().stall_time;
    assert_eq!(ended.count(), before.stall_time.count() + 1);
    assert!(ended.sum() > 0);
    store(&engine, at, &record(n + 4, [1; 20])).expect("stores");
    assert_eq!(engine.stats().stall_time, ended);
    // What waits to be done is seen.
    let (mut merge_debt, mut collection_debt, mut dead) = (0, 0, 0);
    for _ in 0..400 {
        churn(&engine, &mut random, &mut model, 20, &mut n);
        flush(&engine);
        engine.maintain(100).expect("maintains");
        let stats = engine.stats();
        merge_debt = merge_debt.max(stats.merge_debt_bytes);
        collection_debt = collection_debt.max(stats.collection_debt_bytes);
        dead = dead.max(stats.dead_segment_bytes);
    }
    assert!(merge_debt > 0 && collection_debt > 0 && dead >= collection_debt, "{merge_debt} {collection_debt} {dead}");
}

/// An entry that was read lies at hand, until it changes; that is counted.
#[test]
fn what_is_read_again_costs_no_block() {
    let engine = open_with(&MemoryDisk::new(), Options { memtable_bytes: 16 << 10, cache_bytes: 64 << 10, ..SMALL });
    let name = |n: u64| n.to_be_bytes();
    let put = |n: u64, version: u64| {
        let value = vec![(n + version) as u8; 80];
        store(&engine, key(n as u16 % 7, &name(n)), &record(version, value)).expect("stores");
        flush(&engine);
    };
    let read = |n: u64, version: u64| {
        let (_, stored) = engine.get(key(n as u16 % 7, &name(n))).expect("reads");
        let value = stored.expect("it is there").content.bytes().cloned();
        assert_eq!(value, Some(vec![(n + version) as u8; 80].into()), "{n}");
    };
    let to_tables = |version: u64| {
        (1000..1100).for_each(|n| put(n, version));
        settle(&engine);
        assert_eq!(engine.stats().memtable_bytes, 0);
    };
    (0..50).for_each(|n| put(n, 1));
    to_tables(1);
    let blocks = || engine.stats().block_hits + engine.stats().block_misses;
    (0..50).for_each(|n| read(n, 1));
    assert_eq!((engine.stats().hot_hits, blocks()), (0, 50));
    (0..50).for_each(|n| read(n, 1));
    assert_eq!((engine.stats().hot_hits, blocks()), (50, 50));
    // Of one half there is something newer: first in memory, then in a table.
    (0..25).for_each(|n| put(n, 2));
    (0..50).for_each(|n| read(n, if n < 25 { 2 } else { 1 }));
    to_tables(2);
    let hits = engine.stats().hot_hits;
    (0..50).for_each(|n| read(n, if n < 25 { 2 } else { 1 }));
    assert_eq!(engine.stats().hot_hits, hits + 25);
    let before = engine.stats();
    (2000..2100).for_each(|n| {
        let (entry, stored) = engine.get(key(1, &name(n))).expect("reads");
        assert!(entry.register.is_absent() && stored.is_none());
    });
    let stats = engine.stats();
    let passed = stats.table_looks - before.table_looks;
    assert!(passed < 20 && stats.filter_misses - before.filter_misses >= passed, "{stats:?}");
    assert_eq!(stats.hot_misses - before.hot_misses, 100);
}
