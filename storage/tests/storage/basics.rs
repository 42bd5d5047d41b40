//! What an engine does when nothing goes wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dunlin_protocol::register::Change;
use dunlin_protocol::{Ancestor, Attributes, Ballot, Content, KeyspaceId, Millis, PartitionId, Record, Status};
use dunlin_storage::{
    Engine, FileDisk, KeyRef, MAX_VALUE_LEN, MemoryDisk, OpenError, Options, Position, ReadError, ScanRange, Sync,
    WriteError,
};

use crate::support::{SMALL, change, flush, key, look, open, record, stamp, store, tombstone, value};

#[test]
fn what_is_written_is_read_before_during_and_after_the_disk_has_it() {
    let disk = MemoryDisk::new();
    let (engine, recovery) = open(&disk);
    assert!(recovery.is_new && recovery.damaged.is_empty() && recovery.suspects.is_empty());
    let position = store(&engine, key(1, b"a"), &record(5, "hello")).expect("stores");
    assert!(position > engine.durable_upto());
    let entry = look(&engine, key(1, b"a"));
    assert_eq!(entry.position, position);
    assert_eq!(value(&engine, key(1, b"a")), Some(b"hello".to_vec()));
    flush(&engine);
    assert!(position <= engine.durable_upto());
    assert_eq!(value(&engine, key(1, b"a")), Some(b"hello".to_vec()));
    assert!(!engine.write_pending().expect("nothing to write"));
    drop(engine);
    let (engine, recovery) = open(&disk);
    assert!(!recovery.is_new);
    assert_eq!((recovery.frames, recovery.rewritten_frames, recovery.torn_bytes), (1, 1, 0));
    let entry = look(&engine, key(1, b"a"));
    assert_eq!(entry.position, Position::ZERO);
    assert_eq!(entry.register.head(), record(5, "hello").head());
    assert_eq!(value(&engine, key(1, b"a")), Some(b"hello".to_vec()));
    assert!(look(&engine, key(1, b"b")).register.is_absent());
    assert!(look(&engine, key(2, b"a")).register.is_absent());
}

#[test]
fn a_record_comes_back_whole() {
    let disk = MemoryDisk::new();
    let (engine, _) = open(&disk);
    let lineage = (1..5).map(|n| Ancestor { op_id: stamp(n), stamp: stamp(n + 1) }).collect::<Vec<_>>();
    let attributes = Attributes(vec![("type".into(), "text".into()), (String::new(), "ä".into())]);
    let record = Record {
        stamp: stamp(9),
        op_id: stamp(8),
        reach: stamp(3),
        expires_at: Millis(77),
        lineage: lineage.clone(),
        content: Content::Value(b"v".to_vec().into(), attributes),
    };
    let accept = Change::Accept { ballot: stamp(10), promised: stamp(12) };
    change(&engine, key(3, b"k"), accept, Some(&record)).expect("accepts");
    flush(&engine);
    let check = |engine: &Engine, expected_ballot: Ballot| {
        let register = look(engine, key(3, b"k")).register;
        let held = register.pending.map(|(_, held)| held).or(register.record).expect("held");
        assert_eq!((held.head, register.promised, register.ballot), (record.head(), stamp(12), expected_ballot));
        let stored = engine.load(key(3, b"k"), &held).expect("loads");
        assert_eq!((&stored.lineage, &stored.content), (&lineage, &record.content));
    };
    check(&engine, Ballot::ZERO);
    drop(engine);
    let (engine, _) = open(&disk);
    check(&engine, Ballot::ZERO);
    let committed = engine.update(key(3, b"k"), None, Millis(6), |register| {
        (register.pending.map(|(ballot, _)| ballot), Some(Change::Commit { ballot: stamp(10) }))
    });
    assert_eq!(committed.expect("commits").reply, Some(stamp(10)));
    flush(&engine);
    drop(engine);
    let (engine, _) = open(&disk);
    check(&engine, stamp(10));
    assert_eq!(look(&engine, key(3, b"k")).register.stored_at, Millis(6));
}

#[test]
fn a_rule_that_changes_nothing_appends_nothing() {
    let disk = MemoryDisk::new();
    let (engine, _) = open(&disk);
    let position = store(&engine, key(1, b"a"), &record(5, "x")).expect("stores");
    let updated = engine.update(key(1, b"a"), None, Millis(1), |register| (register.head().stamp, None));
    let updated = updated.expect("does not fail");
    assert_eq!((updated.reply, updated.entry.position), (stamp(5), position));
    assert_eq!((engine.stats().writes, engine.stats().keys), (1, 1));
}

#[test]
fn forgetting_is_seen_until_it_is_durable_and_gone_then() {
    let disk = MemoryDisk::new();
    let (engine, _) = open(&disk);
    store(&engine, key(1, b"a"), &tombstone(5)).expect("stores");
    flush(&engine);
    let forgotten = change(&engine, key(1, b"a"), Change::Forget, None).expect("forgets").entry;
    assert!(forgotten.register.is_absent());
    // A reply that says "absent" has to wait for the frame.
    assert_eq!(look(&engine, key(1, b"a")).position, forgotten.position);
    assert_eq!(engine.stats().keys, 0);
    flush(&engine);
    assert_eq!((look(&engine, key(1, b"a")).position, engine.stats().keys), (Position::ZERO, 0));
    drop(engine);
    let (engine, _) = open(&disk);
    assert_eq!((look(&engine, key(1, b"a")).register.is_absent(), engine.stats().keys), (true, 0));
}

#[test]
fn a_key_written_again_while_it_is_being_forgotten_stays() {
    let disk = MemoryDisk::new();
    let (engine, _) = open(&disk);
    store(&engine, key(1, b"a"), &tombstone(5)).expect("stores");
    change(&engine, key(1, b"a"), Change::Forget, None).expect("forgets");
    store(&engine, key(1, b"a"), &record(6, "again")).expect("stores");
    flush(&engine);
    assert_eq!(value(&engine, key(1, b"a")), Some(b"again".to_vec()));
}

#[test]
fn segments_rotate_and_positions_rise() {
    let disk = MemoryDisk::new();
    let (mut engine, _) = open(&disk);
    let mut last = engine.end();
    for n in 1..=60u64 {
        let position = store(&engine, key(n as u16 % 5, &n.to_be_bytes()), &record(n, [n as u8; 300])).expect("stores");
        assert!(position > last);
        last = position;
        if n % 3 == 0 {
            flush(&engine);
        }
        if n % 20 == 0 {
            flush(&engine);
            engine = open(&disk).0;
            assert!(engine.end() >= last && engine.durable_upto() == engine.end());
        }
    }
    assert!(engine.stats().segments > 5, "{:?}", engine.stats());
    for n in 1..=60u64 {
        assert_eq!(value(&engine, key(n as u16 % 5, &n.to_be_bytes())), Some(vec![n as u8; 300]));
    }
    // An engine that was opened again and again without a write has no more segments than before.
    drop(engine);
    engine = open(&disk).0;
    let segments = engine.stats().segments;
    for _ in 0..5 {
        drop(engine);
        engine = open(&disk).0;
    }
    assert_eq!(engine.stats().segments, segments);
}

#[test]
fn scans_go_in_order_and_stop_where_they_should() {
    let disk = MemoryDisk::new();
    let (engine, _) = open(&disk);
    let mut all = Vec::new();
    for partition in 0..6u16 {
        for n in 0..150u32 {
            let name = format!("{}{n:03}", if n < 75 { "a" } else { "b" });
            store(&engine, key(partition, name.as_bytes()), &record(5, "")).expect("stores");
            all.push((partition, name));
            if n % 8 == 0 {
                flush(&engine);
            }
        }
        flush(&engine);
    }
    let other = KeyRef { keyspace: KeyspaceId::SYSTEM, ..key(2, b"a000") };
    store(&engine, other, &record(5, "")).expect("stores");
    let scan = |range: ScanRange<'_>, limit: usize| {
        let mut seen = Vec::new();
        let ended = engine.scan(range, limit, &mut |partition, key, entry| {
            assert!(!entry.register.is_absent());
            seen.push((partition.0, String::from_utf8(key.to_vec()).expect("a name")));
            true
        });
        (seen, ended.expect("reads"))
    };
    let whole = ScanRange::all(KeyspaceId::DEFAULT, PartitionId(0), PartitionId(u16::MAX));
    assert_eq!(scan(whole, usize::MAX), (all.clone(), true));
    let mut pages = Vec::new();
    let mut range = whole;
    let mut after = String::new();
    loop {
        let (page, ended) = scan(range, 37);
        pages.extend(page);
        if ended {
            break;
        }
        let (partition, name) = pages.last().expect("a page that did not end has keys");
        after.clone_from(name);
        range = ScanRange { first: PartitionId(*partition), after: Some(after.as_bytes()), ..whole };
    }
    assert_eq!(pages, all);
    let expect = |range: ScanRange<'_>, is_in: &dyn Fn(u16, &str) -> bool| {
        let expected: Vec<_> = all.iter().filter(|(p, name)| is_in(*p, name)).cloned().collect();
        assert_eq!(scan(range, usize::MAX), (expected, true), "{range:?}");
    };
    expect(ScanRange { prefix: b"b", ..whole }, &|_, name| name.starts_with('b'));
    expect(ScanRange { start: b"a070", end: b"b080", ..whole }, &|_, name| ("a070".."b080").contains(&name));
    expect(ScanRange { start: b"a070", prefix: b"b", ..whole }, &|_, name| name.starts_with('b'));
    expect(ScanRange { prefix: b"c", ..whole }, &|_, _| false);
    let (first, last) = (PartitionId(2), PartitionId(3));
    expect(ScanRange { first, last, after: Some(b"b100"), ..whole }, &|p, name| p == 2 && name > "b100" || p == 3);
    expect(ScanRange { first, last, after: Some(b"a"), prefix: b"b", ..whole }, &|p, name| {
        (2..=3).contains(&p) && name.starts_with('b')
    });
    let mut visits = 0;
    let ended = engine.scan(whole, usize::MAX, &mut |_, _, _| {
        visits += 1;
        visits < 3
    });
    assert!(!ended.expect("reads"));
    assert_eq!(visits, 3);
    assert!(!engine.scan(whole, 0, &mut |_, _, _| panic!("no visit")).expect("reads"));
}

#[test]
fn what_is_too_large_is_refused() {
    let disk = MemoryDisk::new();
    let (engine, _) = Engine::open(Arc::new(disk.clone()), Options::default()).expect("opens");
    let too_large = |record: &Record, key: KeyRef<'_>| {
        let error = store(&engine, key, record).expect_err("too large");
        assert!(matches!(error, WriteError::TooLarge { .. }) && error.status() == Status::ValueTooLarge);
        assert!(look(&engine, key).register.is_absent());
    };
    too_large(&record(5, vec![0; MAX_VALUE_LEN + 1]), key(1, b"a"));
    too_large(&record(5, ""), key(1, &[0; 4097]));
    let attributes = Attributes(vec![("x".repeat(4097), String::new())]);
    too_large(&Record { content: Content::Value(b"".to_vec().into(), attributes), ..record(5, "") }, key(1, b"a"));
    let ancestor = Ancestor { op_id: stamp(1), stamp: stamp(1) };
    too_large(&Record { lineage: vec![ancestor; 1025], ..record(5, "") }, key(1, b"a"));
    let largest = Record {
        lineage: vec![ancestor; 1024],
        content: Content::Value(
            vec![1; MAX_VALUE_LEN].into(),
            Attributes(vec![(String::new(), String::new()); Attributes::MAX_LEN]),
        ),
        ..record(5, "")
    };
    store(&engine, key(1, &[1; 4096]), &largest).expect("fits");
    flush(&engine);
    drop(engine);
    let (engine, _) = Engine::open(Arc::new(disk), Options::default()).expect("opens");
    let held = look(&engine, key(1, &[1; 4096])).register.record.expect("held");
    assert_eq!(engine.load(key(1, &[1; 4096]), &held).expect("loads").content, largest.content);
    let (small, _) = open(&MemoryDisk::new());
    assert!(matches!(store(&small, key(1, b"a"), &record(5, [0; 4096])), Err(WriteError::TooLarge { .. })));
}

#[test]
fn too_much_at_once_is_refused_and_then_taken() {
    let disk = MemoryDisk::new();
    let (engine, _) = open(&disk);
    let mut taken = 0;
    let refused = loop {
        match store(&engine, key(1, b"a"), &record(taken + 1, [0; 100])) {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, WriteError::Overloaded) && refused.status() == Status::Overloaded);
    assert_eq!(look(&engine, key(1, b"a")).register.head().stamp, stamp(taken));
    assert!((5..20).contains(&taken) && engine.stats().refused == 1);
    flush(&engine);
    store(&engine, key(1, b"a"), &record(taken + 1, [0; 100])).expect("taken now");
}

#[test]
fn the_waker_is_called_once_for_each_time_something_is_pending() {
    let (engine, _) = open(&MemoryDisk::new());
    let calls = Arc::new(AtomicU64::new(0));
    let counter = calls.clone();
    engine.set_waker(Box::new(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    }));
    assert!(!engine.wait_pending(Duration::ZERO));
    for round in 1..4 {
        store(&engine, key(1, b"a"), &record(5, "")).expect("stores");
        store(&engine, key(1, b"b"), &record(5, "")).expect("stores");
        assert_eq!(calls.load(Ordering::Relaxed), round);
        assert!(engine.wait_pending(Duration::from_secs(3600)));
        flush(&engine);
        assert!(!engine.wait_pending(Duration::ZERO));
    }
}

#[test]
fn the_waker_of_a_turn_is_called_at_its_end_and_never_while_the_writer_is_busy() {
    let (engine, _) = open(&MemoryDisk::new());
    let calls = Arc::new(AtomicU64::new(0));
    let counter = calls.clone();
    engine.set_turn_waker(Box::new(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    }));
    let put = |n: u64| store(&engine, key(1, b"a"), &record(n, "")).expect("stores");
    let called = || calls.load(Ordering::Relaxed);
    put(1);
    put(2);
    assert_eq!(called(), 0);
    engine.end_turn();
    engine.end_turn();
    assert_eq!(called(), 1);
    assert!(engine.write_pending().expect("writes"));
    // The writer comes again by itself.
    put(3);
    engine.end_turn();
    assert_eq!(called(), 1);
    assert!(engine.write_pending().expect("writes"));
    assert!(!engine.write_pending().expect("nothing to write"));
    put(4);
    engine.end_turn();
    assert_eq!(called(), 2);
}

#[test]
fn without_sync_only_promises_and_accepts_are_synced() {
    let disk = MemoryDisk::new();
    let options = Options { sync: Sync::Never, ..SMALL };
    let (engine, _) = Engine::open(Arc::new(disk.clone()), options).expect("opens");
    store(&engine, key(1, b"a"), &record(5, "x")).expect("stores");
    flush(&engine);
    assert_eq!(engine.stats().syncs, 0);
    change(&engine, key(1, b"b"), Change::Promise { ballot: stamp(6) }, None).expect("promises");
    flush(&engine);
    assert_eq!(engine.stats().syncs, 1);
    for n in 0..100 {
        store(&engine, key(1, b"c"), &record(n, [0; 200])).expect("stores");
        flush(&engine);
    }
    let stats = engine.stats();
    assert!(stats.syncs < 20 && stats.segments > 4, "sealed segments are synced, and nothing else: {stats:?}");
    for seed in 0..20 {
        disk.crash(seed);
        let (engine, recovery) = Engine::open(Arc::new(disk.clone()), options).expect("opens");
        assert_eq!(recovery.damaged, []);
        assert_eq!(look(&engine, key(1, b"b")).register.promised, stamp(6));
        assert_eq!(value(&engine, key(1, b"a")), Some(b"x".to_vec()));
    }
}

#[test]
fn with_an_interval_what_was_written_is_synced_when_the_owner_says_so() {
    let interval = std::time::Duration::from_millis(50);
    let options = Options { sync: Sync::Interval(interval), ..SMALL };
    let mut lost = 0;
    for seed in 0..20 {
        let disk = MemoryDisk::new();
        let (engine, _) = Engine::open(Arc::new(disk.clone()), options).expect("opens");
        let put = |n: u64| {
            store(&engine, key(1, b"a"), &record(n, "x")).expect("stores");
            flush(&engine);
        };
        let synced = || (engine.stats().syncs, engine.sync_within());
        assert_eq!(synced(), (0, None));
        store(&engine, key(1, b"a"), &record(4, "w")).expect("stores");
        assert_eq!(synced(), (0, None), "it is not written yet");
        put(5);
        assert_eq!(synced(), (0, Some(interval)));
        put(6);
        engine.sync_written().expect("syncs");
        assert_eq!(synced(), (1, None));
        engine.sync_written().expect("there is nothing to sync");
        change(&engine, key(1, b"b"), Change::Promise { ballot: stamp(6) }, None).expect("promises");
        flush(&engine);
        assert_eq!(synced(), (2, None));
        put(7);
        disk.crash(seed);
        let (engine, recovery) = Engine::open(Arc::new(disk.clone()), options).expect("opens");
        assert_eq!(recovery.damaged, []);
        assert_eq!(look(&engine, key(1, b"b")).register.promised, stamp(6));
        let newest = look(&engine, key(1, b"a")).register.head().stamp;
        assert!(newest == stamp(6) || newest == stamp(7));
        lost += u64::from(newest == stamp(6));
        store(&engine, key(1, b"a"), &record(8, "z")).expect("stores");
        flush(&engine);
        disk.fail_sync(1);
        assert!(engine.sync_written().is_err() && engine.is_poisoned());
        assert!(matches!(engine.sync_written(), Err(WriteError::Poisoned)));
    }
    assert!((1..20).contains(&lost), "{lost}");
}

#[test]
fn a_directory_in_use_and_options_out_of_range() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = Arc::new(FileDisk::open(dir.path()).expect("opens"));
    let (engine, _) = Engine::open(disk, Options::default()).expect("opens");
    let error = FileDisk::open(dir.path()).expect_err("in use");
    assert!(matches!(error, OpenError::DataDirInUse { .. }) && error.status() == Status::DataDirInUse);
    drop(engine);
    let disk = Arc::new(FileDisk::open(dir.path()).expect("opens again"));
    for options in [
        Options { segment_bytes: 100, ..SMALL },
        Options { segment_bytes: 1 << 31, ..SMALL },
        Options { shards: 0, ..SMALL },
    ] {
        assert!(matches!(Engine::open(disk.clone(), options), Err(OpenError::InvalidOption { .. })));
    }
}

#[test]
fn real_files_work_the_same() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = Options { segment_bytes: 1 << 20, pending_limit_bytes: 1 << 20, ..Options::default() };
    for round in 0..4u64 {
        let disk = Arc::new(FileDisk::open(dir.path()).expect("opens"));
        let (engine, recovery) = Engine::open(disk, options).expect("opens");
        assert_eq!((recovery.damaged, recovery.frames), (vec![], round * 200));
        for n in 0..200 * round {
            assert_eq!(
                value(&engine, key((n % 50) as u16, &n.to_be_bytes())),
                Some(vec![n as u8; (n * 37 % 9000) as usize])
            );
        }
        for n in 200 * round..200 * (round + 1) {
            let record = record(n, vec![n as u8; (n * 37 % 9000) as usize]);
            store(&engine, key((n % 50) as u16, &n.to_be_bytes()), &record).expect("stores");
            if n % 16 == 0 {
                flush(&engine);
            }
        }
        flush(&engine);
        if round % 2 == 0 {
            engine.close().expect("closes");
        }
    }
}

#[test]
fn a_place_that_is_none() {
    let disk = MemoryDisk::new();
    let (engine, _) = open(&disk);
    let (small, large) = (key(1, b"a"), key(1, b"b"));
    store(&engine, small, &record(5, "x")).expect("stores");
    store(&engine, large, &record(5, [1; 300])).expect("stores");
    flush(&engine);
    let held = |key| look(&engine, key).register.record.expect("held");
    let (other, _) = open(&MemoryDisk::new());
    assert!(matches!(other.load(small, &held(small)), Err(ReadError::Superseded)));
    assert!(matches!(other.load(large, &held(large)), Err(ReadError::Damaged(_))));
    // What was overwritten meanwhile is no longer found in the index.
    let before = held(small);
    store(&engine, small, &record(6, "y")).expect("stores");
    assert!(matches!(engine.load(small, &before), Err(ReadError::Superseded)));
}
