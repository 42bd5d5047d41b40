//! Staging, the cache by key, and pinned moments, beside the writer and upkeep; and marks that are made at the same time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use dunlin_protocol::register::{Change, Held};
use dunlin_protocol::{KeyspaceId, Millis, PartitionId};
use dunlin_storage::{Engine, MemoryDisk, Pinned, Place, ReadError, ScanRange, WriteError, verify};
use shuttle::rand::Rng;
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::thread;

use crate::{NAMES, Owner, explore, filled, key, number, open, record, referred, stamp, store, update, value, waker};

/// Runs `one` and `other` beside the writer and upkeep, which go on until `one` is done.
fn beside(engine: &Arc<Engine>, one: impl FnOnce(&Engine) + Send, other: impl FnOnce(&Engine) + Send) {
    let owner = Owner::new(engine.clone(), false);
    owner.engine.set_waker(waker(&owner.bell));
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (owner, is_done) = (&owner, &is_done);
        scope.spawn(|| owner.write());
        let one = scope.spawn(move || {
            one(&owner.engine);
            is_done.store(true, Ordering::Release);
        });
        let other = scope.spawn(move || other(&owner.engine));
        let kept = scope.spawn(move || {
            let mut steps = 0;
            while !is_done.load(Ordering::Acquire) {
                steps += 1;
                if !owner.engine.maintain(if steps % 2 == 0 { 300 } else { u64::MAX }).unwrap() {
                    thread::yield_now();
                }
            }
        });
        [one, other, kept].into_iter().for_each(|thread| thread.join().unwrap());
        owner.end();
    });
    while engine.write_pending().unwrap() {}
}

/// Everything is there, counted as it should be, also after a crash.
fn check_all(disk: &MemoryDisk, engine: Arc<Engine>, model: &BTreeMap<&[u8], u64>) {
    let check = |engine: &Engine| {
        model.iter().for_each(|(name, n)| assert_eq!(number(engine, name), *n));
        let stats = engine.stats();
        assert_eq!((stats.keys, stats.live_segment_bytes), (model.len() as u64, referred(engine)));
    };
    check(&engine);
    while engine.maintain(u64::MAX).unwrap() {}
    check(&engine);
    drop(engine);
    disk.crash(shuttle::rand::thread_rng().r#gen());
    assert_eq!(verify(disk).unwrap().damaged, []);
    check(&open(disk));
}

/// Stages a record of a number, at once or when there is room.
fn stage(engine: &Engine, name: &[u8], n: u64) -> dunlin_storage::Staged {
    loop {
        match engine.stage(&[(key(name), &record(n))]) {
            Ok(mut staged) => return staged.pop().unwrap(),
            Err(WriteError::Overloaded) => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Stages for two keys in turn, and refers to most of it.
fn stage_in_turn(engine: &Engine, names: [&[u8]; 2]) {
    let mut waiting = None;
    for n in 100..112u64 {
        let name = names[n as usize % 2];
        let mut staged = stage(engine, name, n);
        // One waits while others come and go.
        match n {
            103 => waiting = Some(staged),
            105 => drop(staged),
            _ => loop {
                let rule = |_: &_| ((), Some(Change::Store { ballot: stamp(0) }));
                match engine.update_staged(key(name), staged, Millis(1), rule) {
                    Ok(_) => break,
                    Err(WriteError::Overloaded) => {
                        thread::yield_now();
                        staged = stage(engine, name, n);
                    }
                    Err(error) => panic!("{error}"),
                }
                assert!(number(engine, name) < n);
            },
        }
    }
    if let Some(staged) = waiting {
        let accept = Change::Accept { ballot: stamp(200), promised: stamp(200) };
        match engine.update_staged(key(names[1]), staged, Millis(1), |_| ((), Some(accept))) {
            Ok(_) => {
                update(engine, names[1], None, |_| Some(Change::Commit { ballot: stamp(200) })).unwrap();
                assert_eq!(number(engine, names[1]), 103);
            }
            Err(WriteError::Overloaded) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Two stage and refer, to keys of their own and in part for nothing, while what they replace is flushed, collected and removed.
#[test]
fn what_is_staged_stays_while_it_is_needed() {
    static MOVED: AtomicU64 = AtomicU64::new(0);
    static FLUSHED: AtomicU64 = AtomicU64::new(0);
    explore(600, || {
        let disk = MemoryDisk::new();
        let (engine, mut model) = filled(&disk);
        let engine = Arc::new(engine);
        let before = engine.stats();
        beside(&engine, |engine| stage_in_turn(engine, [b"a", b"b"]), |engine| stage_in_turn(engine, [b"c", b"d"]));
        for (even, odd) in [(b"a", b"b"), (b"c", b"d")] {
            model.insert(even, 110);
            let last = number(&engine, odd);
            assert!([103, 111].contains(&last));
            model.insert(odd, last);
        }
        let after = engine.stats();
        MOVED.fetch_add(after.moved_bytes - before.moved_bytes, Relaxed);
        FLUSHED.fetch_add(after.flushes - before.flushes, Relaxed);
        check_all(&disk, engine, &model);
    });
    let done = [&MOVED, &FLUSHED].map(|done| done.load(Relaxed));
    println!("bytes moved, flushes: {done:?}");
    assert!(done.iter().all(|done| *done > 500), "{done:?}: too few to prove anything");
}

/// A key that comes and goes is read again and again: what is kept at hand is what was written last, or is being written.
#[test]
fn what_is_kept_at_hand_is_the_newest() {
    static HITS: AtomicU64 = AtomicU64::new(0);
    explore(800, || {
        let disk = MemoryDisk::new();
        let (engine, mut model) = filled(&disk);
        let engine = Arc::new(engine);
        let hits = engine.stats().hot_hits;
        // What "a" holds after so many changes of it, and how many were begun, and done.
        let versions: Vec<u64> =
            [model[&b"a"[..]]].into_iter().chain((100..108).map(|n| if n % 3 == 1 { 0 } else { n })).collect();
        let (begun, done) = (AtomicU64::new(0), AtomicU64::new(0));
        let (versions, begun, done) = (&versions, &begun, &done);
        let read = move |engine: &Engine| {
            let least = done.load(Relaxed) as usize;
            let found = number(engine, b"a");
            let most = begun.load(Relaxed) as usize;
            assert!(versions[least..=most].contains(&found), "{found} of {:?}", &versions[least..=most]);
        };
        let change = move |engine: &Engine| {
            for (at, n) in versions.iter().enumerate().skip(1) {
                begun.store(at as u64, Relaxed);
                match n {
                    0 => update(engine, b"a", None, |_| Some(Change::Forget)).unwrap(),
                    n => store(engine, b"a", *n).unwrap(),
                };
                done.store(at as u64, Relaxed);
                read(engine);
                // So that it is flushed, and read from tables again.
                for more in 1..=5 {
                    store(engine, b"b", 10 * n + more).unwrap();
                }
                read(engine);
            }
        };
        beside(&engine, change, |engine| (0..25).for_each(|_| read(engine)));
        HITS.fetch_add(engine.stats().hot_hits - hits, Relaxed);
        let last = [b"a", b"b"].map(|name| number(&engine, name));
        assert_eq!(last[0], *versions.last().unwrap());
        model.extend([(&b"a"[..], last[0]), (b"b", last[1])]);
        check_all(&disk, engine, &model);
    });
    println!("looks that found an entry at hand: {}", HITS.load(Relaxed));
    assert!(HITS.load(Relaxed) > 1000, "too few to prove anything");
}

/// All that there was, each with the number of its record.
fn all(pinned: &Pinned) -> BTreeMap<Vec<u8>, u64> {
    let mut found = BTreeMap::new();
    let range = ScanRange::all(KeyspaceId::DEFAULT, PartitionId(0), PartitionId(2));
    let ended = pinned.scan(range, usize::MAX, &mut |_, name, entry| {
        let held: Held<Place> = entry.register.record.unwrap();
        let n = held.head.stamp.wall().0;
        let stored = pinned.load(key(name), &held).unwrap();
        assert_eq!(stored.content.bytes().map(|bytes| &bytes[..]), Some(&value(n)[..]));
        found.insert(name.to_vec(), n);
        true
    });
    assert!(ended.unwrap());
    found
}

/// One that writes to all keys in turn, and one that pins moments and looks at them more than once.
#[test]
fn a_pinned_moment_stays_as_it_was() {
    static FLUSHED: AtomicU64 = AtomicU64::new(0);
    explore(800, || {
        let disk = MemoryDisk::new();
        let (engine, mut model) = filled(&disk);
        let engine = Arc::new(engine);
        let flushes = engine.stats().flushes;
        let (begun, done) = (AtomicU64::new(99), AtomicU64::new(99));
        let (begun, done, before) = (&begun, &done, &model.clone());
        let change = move |engine: &Engine| {
            for n in 100..118 {
                begun.store(n, Relaxed);
                store(engine, NAMES[(n % 4) as usize], n).unwrap();
                done.store(n, Relaxed);
            }
        };
        let shared = &engine;
        let look = move |_: &Engine| {
            let mut kept = Vec::new();
            for _ in 0..3 {
                let least = done.load(Relaxed);
                let pinned = match shared.pin() {
                    Ok(pinned) => pinned,
                    Err(error) => panic!("{error}"),
                };
                let most = begun.load(Relaxed);
                let found = all(&pinned);
                let upto = found.values().copied().max().unwrap().max(99);
                assert!((least..=most).contains(&upto), "{upto}, between {least} and {most}");
                for (at, name) in NAMES.iter().enumerate() {
                    let last = (100..=upto).rfind(|n| n % 4 == at as u64).unwrap_or(before[name]);
                    assert_eq!(found[*name], last, "of a moment at {upto}");
                }
                kept.push((pinned, found));
                kept.iter().for_each(|(pinned, found)| assert_eq!(all(pinned), *found));
            }
        };
        beside(&engine, change, look);
        for n in 100..118u64 {
            model.insert(NAMES[(n % 4) as usize], n);
        }
        let stats = engine.stats();
        assert_eq!((stats.pins, stats.pinned_bytes), (0, 0));
        FLUSHED.fetch_add(stats.flushes - flushes, Relaxed);
        check_all(&disk, engine, &model);
    });
    println!("flushes: {}", FLUSHED.load(Relaxed));
    assert!(FLUSHED.load(Relaxed) > 500, "too few to prove anything");
}

/// Damage that one meets while the owner marks something else: both are suspect, durably after a step of upkeep.
#[test]
fn no_mark_is_lost() {
    explore(1000, || {
        let disk = MemoryDisk::new();
        let engine = open(&disk);
        store(&engine, b"a", 2).unwrap();
        while engine.write_pending().unwrap() {}
        let held = engine.entry(key(b"a")).unwrap().register.record.unwrap();
        let end = held.place.offset() + u64::from(held.place.frame_len());
        disk.flip_bit(&held.place.segment().unwrap().file_name(), end * 8 - 1);
        let engine = Arc::new(engine);
        let (reader, owner) = (engine.clone(), engine.clone());
        let threads = [
            thread::spawn(move || {
                let read = reader.load(key(b"a"), &held);
                assert!(matches!(read, Err(ReadError::Damaged(_))));
            }),
            thread::spawn(move || owner.mark_suspect(PartitionId(7)).unwrap()),
        ];
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        engine.maintain(1).unwrap();
        let suspects = engine.suspect_partitions();
        assert!(suspects.contains(key(b"a").partition) && suspects.contains(PartitionId(7)), "{suspects:?}");
        drop(engine);
        let (_, recovery) = Engine::open(Arc::new(disk), crate::OPTIONS).unwrap();
        assert!(recovery.suspects.contains(key(b"a").partition) && recovery.suspects.contains(PartitionId(7)));
    });
}
