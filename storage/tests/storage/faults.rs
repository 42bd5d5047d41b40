//! Disks that fail, one operation at a time, and disks that are full.

use std::sync::Arc;

use dunlin_protocol::register::Change;
use dunlin_protocol::{KeyspaceId, PartitionId, Status};
use dunlin_storage::{Engine, KeyRef, MemoryDisk, Options, WriteError};

use crate::crash::World;
use crate::support::{SMALL, TINY, change, flush, key, look, open, record, stamp, store, tombstone, value};

/// Runs with a fault planned at every place where it can come, until one comes no more.
fn check(name: &str, plan: impl Fn(&MemoryDisk, u64)) {
    let (mut failed, mut n) = (0, 1);
    for seed in 20..23 {
        n = 1;
        loop {
            let mut world = World::new(seed, TINY, format!("seed {seed}, {name} {n} fails"));
            plan(&world.disk, n);
            world.run(60);
            if world.disk.has_plan() {
                break;
            }
            failed += u64::from(world.has_failed());
            world.crash(n);
            world.run(5);
            world.flush();
            world.crash(n + 1);
            n += 1;
        }
    }
    assert!(failed > 0 && n > 3, "{name}: too few failures to prove anything");
}

#[test]
fn a_failed_sync_poisons_and_loses_nothing_acknowledged() {
    check("sync", MemoryDisk::fail_sync);
}

#[test]
fn a_failed_write_poisons_and_loses_nothing_acknowledged() {
    check("write", MemoryDisk::fail_write);
}

#[test]
fn a_short_write_poisons_and_loses_nothing_acknowledged() {
    check("short write", MemoryDisk::short_write);
}

#[test]
fn a_failed_rename_poisons_and_loses_nothing_acknowledged() {
    check("rename", MemoryDisk::fail_rename);
}

#[test]
fn a_file_that_cannot_be_made_poisons_or_is_tried_again() {
    check("create", MemoryDisk::fail_create);
}

#[test]
fn a_failed_resize_poisons_and_loses_nothing_acknowledged() {
    check("resize", MemoryDisk::fail_resize);
}

/// Runs with a fault planned at every place where it can come, none of which poisons.
fn check_harmless(name: &str, plan: impl Fn(&MemoryDisk, u64)) {
    let (mut refused, mut n) = (0, 1);
    for seed in 20..24 {
        n = 1;
        loop {
            let mut world = World::new(seed, TINY, format!("seed {seed}, {name} {n} fails"));
            plan(&world.disk, n);
            world.run(100);
            if world.disk.has_plan() {
                break;
            }
            assert!(!world.has_failed(), "seed {seed}, {name} {n}");
            refused += world.refused_upkeep;
            world.crash(n);
            world.run(5);
            world.flush();
            world.crash(n + 1);
            n += 1;
        }
    }
    assert!(refused > 0 && n > 3, "{name}: too few failures to prove anything");
}

#[test]
fn what_cannot_be_removed_waits_until_the_engine_is_opened_again() {
    check_harmless("removal", MemoryDisk::fail_remove);
}

#[test]
fn a_failed_link_is_no_snapshot() {
    check_harmless("link", MemoryDisk::fail_link);
}

/// The disk is full from every operation on that needs room, and has room again later.
#[test]
fn a_disk_that_fills_up_at_any_operation_fails_nothing() {
    let mut refused = 0;
    for seed in 40..43 {
        let mut n = 1;
        loop {
            let mut world = World::new(seed, TINY, format!("seed {seed}, full from {n} on"));
            world.disk.fill_at(n);
            world.run(80);
            if world.disk.has_plan() {
                break;
            }
            assert!(!world.has_failed(), "a full disk was found after a write was taken: seed {seed}, {n}");
            refused += world.refused + world.refused_upkeep;
            world.disk.set_capacity(None);
            world.run(10);
            world.crash(n);
            world.run(5);
            world.flush();
            assert!(world.is_open());
            n += 1;
        }
        assert!(n > 20, "{n}");
    }
    assert!(refused > 100, "{refused} refused: too few to prove anything");
}

#[test]
fn a_full_disk_refuses_and_fails_nothing() {
    let mut refused = 0;
    for seed in 30..33 {
        for capacity in (0..40_000).step_by(700) {
            let mut world = World::new(seed, TINY, format!("seed {seed}, capacity {capacity}"));
            world.disk.set_capacity(Some(capacity));
            world.run(120);
            assert!(!world.has_failed(), "a full disk was found after a write was taken: seed {seed}, {capacity}");
            refused += world.refused;
            world.disk.set_capacity(None);
            world.crash(capacity);
            world.run(5);
            world.flush();
            assert!(world.is_open());
        }
    }
    assert!(refused > 100, "{refused} refused: too few to prove anything");
}

#[test]
fn on_a_full_disk_promises_deletes_and_reads_go_on_and_with_room_everything() {
    let disk = MemoryDisk::new();
    let (engine, _) = open(&disk);
    disk.set_capacity(Some(disk.used()));
    let mut n = 0;
    let refused = loop {
        n += 1;
        match store(&engine, key(1, b"a"), &record(n, [7; 100])) {
            Ok(_) => flush(&engine),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, WriteError::DiskFull) && refused.status() == Status::DiskFull);
    assert!(engine.stats().disk_full && engine.stats().room_bytes > 0);
    assert_eq!(value(&engine, key(1, b"a")), Some(vec![7; 100]));
    let system = KeyRef { keyspace: KeyspaceId::SYSTEM, ..key(1, b"topology") };
    store(&engine, system, &record(n, [1; 30])).expect("the reserve is for this");
    change(&engine, key(1, b"b"), Change::Promise { ballot: stamp(5) }, None).expect("the reserve is for this");
    store(&engine, key(1, b"a"), &tombstone(n + 1)).expect("the reserve is for this");
    flush(&engine);
    assert!(matches!(store(&engine, key(1, b"a"), &record(n + 2, "")), Err(WriteError::DiskFull)));
    assert!(matches!(engine.mark_suspect(PartitionId(3)), Err(WriteError::DiskFull)));
    assert!(engine.suspect_partitions().contains(PartitionId(3)) && !engine.is_poisoned());
    // The reserve ends, too; what it took is there.
    let mut promised = 5;
    while change(&engine, key(1, b"b"), Change::Promise { ballot: stamp(promised + 1) }, None).is_ok() {
        promised += 1;
        flush(&engine);
    }
    assert!(promised > 6 && !engine.is_poisoned());
    disk.set_capacity(Some(disk.used() + 100_000));
    assert!(engine.wait_pending(std::time::Duration::ZERO), "a refusal asks the writer to look for room");
    assert!(!engine.write_pending().expect("makes room"));
    store(&engine, key(1, b"a"), &record(n + 2, "back")).expect("there is room again");
    engine.mark_suspect(PartitionId(3)).expect("there is room again");
    flush(&engine);
    disk.crash(1);
    let (engine, recovery) = open(&disk);
    assert_eq!(value(&engine, key(1, b"a")), Some(b"back".to_vec()));
    assert_eq!(look(&engine, key(1, b"b")).register.promised, stamp(promised));
    assert!(recovery.suspects.contains(PartitionId(3)));
}

/// Fills a disk of this size with values of this length, deletes them all, and lets upkeep win the room back; then it is written to as at first.
fn check_won_back(capacity: u64, value_len: usize) {
    let disk = MemoryDisk::new();
    disk.set_capacity(Some(capacity));
    let options = Options { memtable_bytes: 2 << 10, ..SMALL };
    let (engine, _) = Engine::open(Arc::new(disk.clone()), options).expect("opens");
    // What upkeep cannot do for lack of room it tries again.
    let tend = || {
        flush(&engine);
        loop {
            match engine.maintain(1 << 20) {
                Ok(true) => {}
                Ok(false) | Err(WriteError::DiskFull) => break,
                Err(error) => panic!("{error}"),
            }
        }
        flush(&engine);
    };
    let fill = |round: u64| {
        let mut count = 0u64;
        let mut refusals = 0;
        while refusals < 20 {
            match store(&engine, key(1, &count.to_be_bytes()), &record(round, vec![count as u8; value_len])) {
                Ok(_) => (count, refusals) = (count + 1, 0),
                Err(WriteError::Overloaded | WriteError::DiskFull) => {
                    refusals += 1;
                    tend();
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(engine.is_disk_full());
        count
    };
    let first = fill(1);
    assert!(first * value_len as u64 > capacity / 4, "{first} values of {value_len} in {capacity}");
    let mut count = first;
    for round in 2..5u64 {
        for n in 0..count {
            let at = n.to_be_bytes();
            assert_eq!(value(&engine, key(1, &at)), Some(vec![n as u8; value_len]));
            let delete = || store(&engine, key(1, &at), &tombstone(10 * round)).is_ok();
            let forget = || change(&engine, key(1, &at), Change::Forget, None).is_ok();
            for act in [&delete as &dyn Fn() -> bool, &forget] {
                let is_done = (0..20).any(|_| act() || (tend(), false).1);
                assert!(is_done, "deletes go on: {n} of {count} in round {round}, {:?}", engine.stats());
            }
        }
        (0..20).for_each(|_| tend());
        assert!(!engine.is_disk_full() && engine.stats().keys == 0, "{:?}", engine.stats());
        count = fill(round);
        assert!(count >= first * 3 / 4, "{count} of {first} fit again in round {round}, {:?}", engine.stats());
    }
    disk.crash(capacity);
    drop(engine);
    let (engine, recovery) = Engine::open(Arc::new(disk.clone()), options).expect("opens");
    assert_eq!((recovery.damaged, engine.stats().keys), (vec![], count));
}

#[test]
fn a_full_disk_is_won_back_by_deleting() {
    for capacity in [60_000, 100_000, 250_000] {
        check_won_back(capacity, 60);
        check_won_back(capacity, 700);
    }
}

#[test]
fn a_full_disk_opens() {
    let disk = MemoryDisk::new();
    let (engine, _) = open(&disk);
    disk.set_capacity(Some(disk.used()));
    let mut n = 0;
    while store(&engine, key(1, b"a"), &record(n + 1, [7; 100])).is_ok() {
        n += 1;
        flush(&engine);
    }
    for seed in 0..5 {
        disk.crash(seed);
        let (engine, recovery) = Engine::open(Arc::new(disk.clone()), SMALL).expect("the room ahead is given back");
        assert_eq!(recovery.damaged, []);
        assert_eq!(look(&engine, key(1, b"a")).register.head().stamp, stamp(n));
    }
}
