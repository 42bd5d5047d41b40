//! Moments that are pinned, against models of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use dunlin_protocol::register::{Change, Held};
use dunlin_protocol::{KeyspaceId, PartitionId, Record, Status};
use dunlin_storage::{Engine, MemoryDisk, Options, PinError, Pinned, Place, ReadError, ScanRange, WriteError};

use crate::support::{Random, SMALL, change, flush, key, look, maintain, record, store, tombstone, value};

/// The stamp and the value of each key; none: a tombstone.
type Model = BTreeMap<(u16, Vec<u8>), Version>;
type Version = (u64, Option<Vec<u8>>);

const OPTIONS: Options = Options { memtable_bytes: 8 << 10, ..SMALL };
const LAST: PartitionId = PartitionId(1000);

fn whole() -> ScanRange<'static> {
    ScanRange::all(KeyspaceId::DEFAULT, PartitionId(0), LAST)
}

fn open(disk: &MemoryDisk) -> Arc<Engine> {
    Arc::new(Engine::open(Arc::new(disk.clone()), OPTIONS).expect("opens").0)
}

/// Reads a record as it was.
fn load(pinned: &Pinned, at: &(u16, Vec<u8>), held: &Held<Place>) -> Version {
    let stored = pinned.load(key(at.0, &at.1), held).expect("what was held is there");
    (held.head.stamp.wall().0, stored.content.bytes().map(|bytes| bytes.to_vec()))
}

/// All that there was.
fn all(pinned: &Pinned) -> Model {
    let mut found = Model::new();
    let ended = pinned.scan_with(whole(), usize::MAX, &mut |visited| {
        assert!(visited.entry.position <= pinned.position());
        let at = (visited.partition.0, visited.key.to_vec());
        let held = visited.entry.register.record.expect("a record");
        found.insert(at.clone(), load(pinned, &at, &held));
        true
    });
    assert!(ended.expect("reads"));
    found
}

/// A pinned moment that is read page by page, and what there is to find.
struct Reader {
    pinned: Pinned,
    model: Model,
    last: Option<(u16, Vec<u8>)>,
}

impl Reader {
    /// Reads a page. Whether that was the last one; how many records of it lay in files that are gone.
    fn page(&mut self, limit: usize, disk: &MemoryDisk) -> (bool, u64) {
        let mut found = Vec::new();
        let range = match &self.last {
            Some((partition, name)) => ScanRange { first: PartitionId(*partition), after: Some(name), ..whole() },
            None => whole(),
        };
        let ended = self.pinned.scan(range, limit, &mut |partition, name, entry| {
            assert!(entry.position <= self.pinned.position());
            found.push(((partition.0, name.to_vec()), entry.register.record.expect("a record")));
            true
        });
        let ended = ended.expect("reads");
        let expected = self.model.iter().filter(|(at, _)| Some(*at) > self.last.as_ref());
        let expected: Vec<_> = expected.take(limit).map(|(at, held)| (at.clone(), held.clone())).collect();
        let mut gone = 0;
        let read = |(at, held): &((u16, Vec<u8>), Held<Place>)| {
            gone += u64::from(held.place.segment().is_some_and(|id| disk.contents(&id.file_name()).is_none()));
            (at.clone(), load(&self.pinned, at, held))
        };
        assert_eq!(found.iter().map(read).collect::<Vec<_>>(), expected);
        self.last = expected.last().map(|(at, _)| at.clone()).or(self.last.take());
        (ended, gone)
    }
}

/// Writes, overwrites, deletes or forgets something.
fn write(engine: &Engine, random: &mut Random, model: &mut Model, n: u64) {
    let at = ((random.below(4) * 250) as u16, format!("key-{:02}", random.below(90)).into_bytes());
    let done = match random.below(10) {
        0..=1 => change(engine, key(at.0, &at.1), Change::Forget, None).map(|_| model.remove(&at)),
        2 => store(engine, key(at.0, &at.1), &tombstone(n)).map(|_| model.insert(at, (n, None))),
        _ => {
            let value = vec![n as u8; random.below(250) as usize];
            let stored = store(engine, key(at.0, &at.1), &record(n, &value));
            stored.map(|_| model.insert(at, (n, Some(value))))
        }
    };
    match done {
        Ok(_) => {}
        Err(WriteError::Overloaded) => {
            flush(engine);
            maintain(engine);
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn pinned_scans_see_one_moment_whatever_happens() {
    let (mut pages, mut gone, mut refused) = (0, 0, 0);
    let (mut flushes, mut merges, mut collected) = (0, 0, 0);
    for seed in 0..6 {
        let disk = MemoryDisk::new();
        let engine = open(&disk);
        let (mut random, mut model, mut readers) = (Random(seed), Model::new(), Vec::<Reader>::new());
        for n in 1..4000 {
            match random.below(20) {
                0 => match engine.pin() {
                    Ok(pinned) => readers.push(Reader { pinned, model: model.clone(), last: None }),
                    Err(error) => {
                        assert!(matches!(error, PinError::TooMuchMemory { .. }));
                        readers.remove(0);
                        refused += 1;
                    }
                },
                1 => flush(&engine),
                2 => {
                    engine.maintain(1 + random.below(3000)).expect("maintains");
                }
                3..=4 if !readers.is_empty() => {
                    let at = random.below(readers.len() as u64) as usize;
                    let (ended, from_gone) = readers[at].page(random.below(60) as usize, &disk);
                    (pages, gone) = (pages + 1, gone + from_gone);
                    if ended {
                        readers.remove(at);
                    }
                }
                _ => write(&engine, &mut random, &mut model, n),
            }
        }
        for reader in &readers {
            assert_eq!(all(&reader.pinned), reader.model);
        }
        assert_eq!(engine.stats().pins, readers.len() as u64);
        drop(readers);
        let stats = engine.stats();
        assert_eq!((stats.pins, stats.pinned_bytes), (0, 0));
        (flushes, merges, collected) = (flushes + stats.flushes, merges + stats.merges, collected + stats.collected);
    }
    assert!(pages > 500 && gone > 100 && refused > 0, "{pages} pages, {gone} records of removed files, {refused}");
    assert!(
        flushes > 100 && merges > 20 && collected > 20,
        "{flushes} flushes, {merges} merges, {collected} collected"
    );
}

/// A pin of each state that a key can be in, before and after each thing that can happen to it.
#[test]
fn each_way_of_a_key_is_seen_as_it_was() {
    let disk = MemoryDisk::new();
    let engine = open(&disk);
    let at = (1, b"a".to_vec());
    let put = |record: &Record| {
        while let Err(error) = store(&engine, key(1, b"a"), record) {
            assert!(matches!(error, WriteError::Overloaded), "{error}");
            flush(&engine);
        }
    };
    let forget = || {
        flush(&engine);
        change(&engine, key(1, b"a"), Change::Forget, None).expect("forgets");
    };
    // Another key fills the memtable, so that it is flushed.
    let fill = || {
        let mut filled = 0u64;
        while !engine.wants_upkeep() {
            filled += 1;
            store(&engine, key(2000, &filled.to_be_bytes()), &record(filled, [1; 90])).expect("stores");
            flush(&engine);
        }
        maintain(&engine);
    };
    let steps: [&dyn Fn(u64); 7] = [
        &|n| put(&record(n, [n as u8; 20])),
        &|n| put(&record(n, [n as u8; 200])),
        &|n| put(&tombstone(n)),
        &|_| forget(),
        &|_| flush(&engine),
        &|_| fill(),
        &|_| maintain(&engine),
    ];
    let now = || {
        let held = look(&engine, key(1, b"a")).register.record;
        held.map(|held| (held.head.stamp.wall().0, value(&engine, key(1, b"a"))))
    };
    let mut pins: Vec<(Pinned, Option<Version>)> = Vec::new();
    let mut random = Random(3);
    for n in 1..1500 {
        steps[random.below(steps.len() as u64) as usize](n);
        while engine.stats().pinned_bytes > 16 << 10 || pins.len() > 40 {
            pins.remove(random.below(pins.len() as u64) as usize);
        }
        if n % 3 == 0 {
            pins.push((engine.pin().expect("pins"), now()));
        }
        if n % 10 == 0 {
            for (pinned, expected) in &pins {
                assert_eq!(all(pinned).get(&at), expected.as_ref());
            }
        }
    }
    assert!(engine.stats().flushes > 100);
}

#[test]
fn a_pin_shows_where_it_was_and_only_what_was_there() {
    let engine = open(&MemoryDisk::new());
    store(&engine, key(1, b"a"), &record(5, "one")).expect("stores");
    let pinned = engine.pin().expect("pins");
    assert_eq!(pinned.position(), engine.end());
    assert!(pinned.position() > engine.durable_upto());
    flush(&engine);
    assert!(pinned.position() <= engine.durable_upto());
    store(&engine, key(1, b"a"), &record(6, "two")).expect("stores");
    let held = look(&engine, key(1, b"a")).register.record.expect("held");
    assert!(matches!(pinned.load(key(1, b"a"), &held), Err(ReadError::Superseded)));
    assert!(matches!(pinned.load(key(1, b"b"), &held), Err(ReadError::Superseded)));
    assert_eq!(all(&pinned), Model::from([((1, b"a".to_vec()), (5, Some(b"one".to_vec())))]));
    // A pin outlives its creator's handle of the engine, and what it reads goes on.
    drop(engine);
    assert_eq!(all(&pinned).len(), 1);
}

#[test]
fn there_are_only_so_many() {
    let engine = open(&MemoryDisk::new());
    let mut pins: Vec<_> = (0..64).map(|_| engine.pin().expect("pins")).collect();
    let refused = engine.pin().err().expect("too many");
    assert_eq!((refused, refused.status()), (PinError::TooMany { max: 64 }, Status::Overloaded));
    pins.pop();
    pins.push(engine.pin().expect("pins again"));
    // What pins keep is counted, and given back.
    let mut n = 0u64;
    while engine.stats().pinned_bytes < 4 * OPTIONS.memtable_bytes {
        n += 1;
        drop(pins.swap_remove(n as usize % pins.len()));
        pins.push(engine.pin().expect("pins"));
        match store(&engine, key((n % 7) as u16, &(n % 50).to_be_bytes()), &record(n, [1; 90])) {
            Ok(_) => {}
            Err(error) => assert!(matches!(error, WriteError::Overloaded)),
        }
        flush(&engine);
        maintain(&engine);
    }
    pins.truncate(20);
    while engine.stats().pinned_bytes <= 4 * OPTIONS.memtable_bytes {
        n += 1;
        store(&engine, key((n % 7) as u16, &(n % 50).to_be_bytes()), &record(n, [1; 90])).expect("stores");
        flush(&engine);
        maintain(&engine);
    }
    assert!(matches!(engine.pin(), Err(PinError::TooMuchMemory { .. })));
    drop(pins);
    assert_eq!((engine.stats().pins, engine.stats().pinned_bytes), (0, 0));
    engine.pin().expect("pins again");
}

/// Whoever ends, also in a panic, ends the others.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// One writer goes over all keys again and again, so that each moment has a round before a key and the one before it behind that key; upkeep and the
/// log's writer work beside it.
#[test]
fn each_pin_of_many_threads_is_one_moment() {
    const KEYS: u64 = 60;
    let options = Options { segment_bytes: 16 << 10, pending_limit_bytes: 8 << 10, ..OPTIONS };
    let engine = Arc::new(Engine::open(Arc::new(MemoryDisk::new()), options).expect("opens").0);
    let is_done = AtomicBool::new(false);
    let name = |number: u64| ((number * 1000 / KEYS) as u16, number.to_be_bytes());
    let value_of = |round: u64, number: u64| vec![round as u8; 20 + (number * 7 % 200) as usize];
    thread::scope(|scope| {
        let (engine, is_done) = (&engine, &is_done);
        scope.spawn(|| {
            let _end = End(is_done);
            while !is_done.load(Ordering::Acquire) {
                while engine.write_pending().expect("writes") {}
                thread::yield_now();
            }
        });
        scope.spawn(|| {
            let _end = End(is_done);
            while !is_done.load(Ordering::Acquire) {
                while engine.maintain(2000).expect("maintains") {}
                thread::yield_now();
            }
        });
        scope.spawn(|| {
            let _end = End(is_done);
            let mut round = 0;
            while !is_done.load(Ordering::Acquire) {
                round += 1;
                for number in 0..KEYS {
                    let (partition, name) = name(number);
                    let record = record(round, value_of(round, number));
                    while let Err(error) = store(engine, key(partition, &name), &record) {
                        assert!(matches!(error, WriteError::Overloaded), "{error}");
                        // Nobody makes room any more once all is done.
                        if is_done.load(Ordering::Acquire) {
                            return;
                        }
                        thread::yield_now();
                    }
                }
            }
        });
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(move || {
                    let (mut seen, mut last) = (0, (0, 0));
                    let is_covered = || {
                        let stats = engine.stats();
                        stats.flushes > 20 && stats.merges > 3 && stats.collected > 3
                    };
                    while (seen < 50 || !is_covered()) && !is_done.load(Ordering::Acquire) {
                        let Ok(pinned) = engine.pin() else {
                            thread::yield_now();
                            continue;
                        };
                        let found: Vec<_> = all(&pinned).into_iter().collect();
                        let rounds: Vec<_> = found.iter().map(|(_, (round, _))| *round).collect();
                        let newest = rounds.first().copied().unwrap_or(0);
                        let upto = rounds.iter().take_while(|round| **round == newest).count();
                        assert!(rounds[upto..].iter().all(|round| *round == newest - 1), "{rounds:?}");
                        assert!(newest <= 1 || rounds.len() as u64 == KEYS);
                        assert!((newest, upto) >= last, "from {last:?} back to {:?}", (newest, upto));
                        for (number, (at, (round, value))) in found.iter().enumerate() {
                            assert_eq!(*at, (name(number as u64).0, name(number as u64).1.to_vec()));
                            assert_eq!(value.as_ref(), Some(&value_of(*round, number as u64)));
                        }
                        assert_eq!(all(&pinned).into_iter().collect::<Vec<_>>(), found);
                        (seen, last) = (seen + 1, (newest, upto));
                    }
                    assert!(seen >= 50, "another thread ended before it should");
                })
            })
            .collect();
        let read: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
        drop(End(is_done));
        assert!(read.iter().all(Result::is_ok));
    });
    assert_eq!(engine.stats().pins, 0);
}
