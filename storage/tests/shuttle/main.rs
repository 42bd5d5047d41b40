//! The engine under a scheduler that chooses how threads interleave (shuttle): at random, and by few well-placed preemptions (PCT, Burckhardt et al.
//! 2010). Every lock, wait and atomic of the engine and every operation of its disk is a point at which another thread may go on. A wake-up that
//! is lost is a deadlock, which fails the test.
//!
//! `cargo test --release -p dunlin-storage --features shuttle --test shuttle`. Seeds are fixed: a failure is the same the next time.
#![expect(clippy::unwrap_used, reason = "locks of tests")]

mod beside;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use dunlin_protocol::register::{Change, Register};
use dunlin_protocol::{Ballot, Content, KeyspaceId, Millis, PartitionId, Record, Stamp};
use dunlin_storage::{Engine, KeyRef, MemoryDisk, Options, Place, Position, ScanRange, Sync, WriteError, verify};
use shuttle::rand::Rng;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::sync::{Condvar, Mutex};
use shuttle::{Config, Runner, thread};

/// Everything as small as it gets, so that few operations flush, merge and collect.
const OPTIONS: Options = Options {
    segment_bytes: 4096,
    sync: Sync::Always,
    pending_limit_bytes: 4096,
    disk_reserve_bytes: 0,
    shards: 2,
    inline_bytes: 30,
    memtable_bytes: 1 << 10,
    table_bytes: 1 << 10,
    stage_bytes: 1 << 10,
    cache_bytes: 4096,
    garbage_percent: 10,
};

/// Runs `test` under so many schedules of either kind.
fn explore(schedules: usize, test: fn()) {
    let mut config = Config::new();
    config.stack_size = 4 << 20;
    config.silence_warnings = true;
    Runner::new(RandomScheduler::new_from_seed(1, schedules), config.clone()).run(test);
    for depth in [2, 5] {
        Runner::new(PctScheduler::new_from_seed(2, depth, schedules / 2), config.clone()).run(test);
    }
}

fn open(disk: &MemoryDisk) -> Engine {
    let (engine, recovery) = Engine::open(Arc::new(disk.clone()), OPTIONS).unwrap();
    assert_eq!(recovery.damaged, []);
    engine
}

fn key(name: &[u8]) -> KeyRef<'_> {
    KeyRef { partition: PartitionId(u16::from(name[0]) % 2), keyspace: KeyspaceId::DEFAULT, key: name }
}

fn stamp(n: u64) -> Stamp {
    Stamp::new(Millis(n), 0, 7)
}

/// The number says what the value is: some lie in the index, most in segments.
fn value(n: u64) -> Vec<u8> {
    vec![n as u8; if n % 5 == 1 { 20 } else { 200 + (n % 3) as usize * 50 }]
}

fn record(n: u64) -> Record {
    Record::plain(stamp(n), Content::value(value(n)), Millis::NONE)
}

/// Stores where what is held is older. Whoever is refused lets others go on and tries again; none: the engine is poisoned.
fn store(engine: &Engine, name: &[u8], n: u64) -> Option<Position> {
    update(engine, name, Some(&record(n)), |register| {
        (register.head().stamp < stamp(n)).then_some(Change::Store { ballot: Ballot::ZERO })
    })
}

fn update(
    engine: &Engine,
    name: &[u8],
    record: Option<&Record>,
    rule: impl Fn(&Register<Place>) -> Option<Change>,
) -> Option<Position> {
    loop {
        match engine.update(key(name), record, Millis(1), |register| ((), rule(register))) {
            Ok(updated) => return Some(updated.entry.position),
            Err(WriteError::Overloaded) => {
                engine.end_turn();
                thread::yield_now();
            }
            Err(WriteError::Poisoned) => return None,
            Err(error) => panic!("{error}"),
        }
    }
}

/// The number of what is held; the value is checked.
fn number(engine: &Engine, name: &[u8]) -> u64 {
    let (entry, stored) = engine.get(key(name)).unwrap();
    let n = entry.register.head().stamp.wall().0;
    match stored {
        Some(stored) => assert_eq!(stored.content.bytes().map(|bytes| &bytes[..]), Some(&value(n)[..])),
        None => assert_eq!(n, 0),
    }
    n
}

/// A signal that is not lost.
#[derive(Default)]
struct Bell {
    is_rung: Mutex<bool>,
    risen: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.is_rung.lock().unwrap() = true;
        self.risen.notify_all();
    }

    fn wait(&self) {
        *self.risen.wait_while(self.is_rung.lock().unwrap(), |is_rung| !*is_rung).unwrap() = false;
    }
}

/// The thread that writes the log, and those that wait for it.
struct Owner {
    engine: Arc<Engine>,
    bell: Arc<Bell>,
    written: (Mutex<()>, Condvar),
    is_done: AtomicBool,
    /// It waits in the engine instead of for the bell.
    waits_inside: bool,
}

impl Owner {
    fn new(engine: impl Into<Arc<Engine>>, waits_inside: bool) -> Self {
        let engine = engine.into();
        let bell = Arc::<Bell>::default();
        let written = (Mutex::default(), Condvar::default());
        Self { engine, bell, written, is_done: AtomicBool::new(false), waits_inside }
    }

    /// Writes until it is told to end, or the disk fails.
    fn write(&self) {
        loop {
            match self.waits_inside {
                // Shuttle lets no time pass: it waits until something is pending.
                true => assert!(self.engine.wait_pending(Duration::from_secs(1))),
                false => self.bell.wait(),
            }
            loop {
                let more = self.engine.write_pending();
                drop(self.written.0.lock().unwrap());
                self.written.1.notify_all();
                match more {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(_) => return,
                }
            }
            if self.is_done.load(Ordering::Acquire) {
                return;
            }
        }
    }

    /// Waits until a position is durable; false: it never will be.
    fn wait(&self, position: Position) -> bool {
        let is_open = |_: &mut ()| self.engine.durable_upto() < position && !self.engine.is_poisoned();
        drop(self.written.1.wait_while(self.written.0.lock().unwrap(), is_open).unwrap());
        self.engine.durable_upto() >= position
    }

    /// Ends the writer's thread.
    fn end(&self) {
        self.is_done.store(true, Ordering::Release);
        if self.waits_inside {
            store(&self.engine, b"the end", 1);
        }
        self.bell.ring();
    }
}

fn waker(bell: &Arc<Bell>) -> Box<dyn Fn() + Send + std::marker::Sync> {
    let bell = bell.clone();
    Box::new(move || bell.ring())
}

/// Two that update, each waiting for its write, and the writer. All that was acknowledged survives a crash.
fn writes_are_handed_over(waits_inside: bool) {
    let disk = MemoryDisk::new();
    let owner = Owner::new(open(&disk), waits_inside);
    if !waits_inside {
        owner.engine.set_waker(waker(&owner.bell));
    }
    thread::scope(|scope| {
        scope.spawn(|| owner.write());
        let updaters = [b"a", b"b"].map(|name| {
            let owner = &owner;
            scope.spawn(move || {
                for n in 1..=4 {
                    let position = store(&owner.engine, name, n).unwrap();
                    // Pending, being written, or written: it can be read.
                    assert_eq!(number(&owner.engine, name), n);
                    assert!(owner.wait(position));
                    assert_eq!(number(&owner.engine, name), n);
                    // A race of both: the newest wins.
                    store(&owner.engine, b"c", 2 * n + u64::from(name == b"a")).unwrap();
                }
            })
        });
        updaters.into_iter().for_each(|updater| updater.join().unwrap());
        owner.end();
    });
    while owner.engine.write_pending().unwrap() {}
    assert_eq!(owner.engine.durable_upto(), owner.engine.end());
    assert_eq!(owner.engine.stats().pending_bytes, 0);
    drop(owner);
    disk.crash(shuttle::rand::thread_rng().r#gen());
    let engine = open(&disk);
    assert_eq!([b"a", b"b", b"c"].map(|name| number(&engine, name)), [4, 4, 9]);
}

#[test]
fn a_writer_that_is_woken_writes_everything() {
    explore(2000, || writes_are_handed_over(false));
}

#[test]
fn a_writer_that_waits_in_the_engine_writes_everything() {
    explore(2000, || writes_are_handed_over(true));
}

/// One that updates in turns, and waits for all of a turn.
#[test]
fn a_turn_wakes_the_writer_once_it_ends() {
    explore(2000, || {
        let disk = MemoryDisk::new();
        let owner = Owner::new(open(&disk), false);
        let wakes = Arc::new(AtomicU64::new(0));
        let (counted, ring) = (wakes.clone(), waker(&owner.bell));
        owner.engine.set_turn_waker(Box::new(move || {
            counted.fetch_add(1, Relaxed);
            ring();
        }));
        thread::scope(|scope| {
            scope.spawn(|| owner.write());
            for turn in 1..=4 {
                let positions = [b"a", b"b"].map(|name| store(&owner.engine, name, turn).unwrap());
                owner.engine.end_turn();
                // A turn in which nothing was written wakes nobody, and does not need to.
                owner.engine.end_turn();
                assert!(positions.into_iter().all(|position| owner.wait(position)));
            }
            assert!(wakes.load(Relaxed) <= 4);
            owner.end();
        });
        assert_eq!(number(&open(&disk), b"a"), 4);
    });
}

/// The power goes while two update: what was durable just before is there.
#[test]
fn what_is_called_durable_survives_a_crash_at_any_moment() {
    explore(2000, || {
        let disk = MemoryDisk::new();
        let owner = Owner::new(open(&disk), false);
        owner.engine.set_waker(waker(&owner.bell));
        let stored = Mutex::new(Vec::new());
        let mut durable = Position::ZERO;
        thread::scope(|scope| {
            scope.spawn(|| owner.write());
            let updaters = [b"a", b"b"].map(|name| {
                let (owner, stored) = (&owner, &stored);
                scope.spawn(move || {
                    for n in 1..=5 {
                        let Some(position) = store(&owner.engine, name, n) else { return };
                        stored.lock().unwrap().push((name, n, position));
                        if n % 2 == 0 && !owner.wait(position) {
                            return;
                        }
                    }
                })
            });
            let crashed = scope.spawn(|| {
                for _ in 0..shuttle::rand::thread_rng().gen_range(0..60) {
                    thread::yield_now();
                }
                let durable = owner.engine.durable_upto();
                disk.crash(shuttle::rand::thread_rng().r#gen());
                durable
            });
            durable = crashed.join().unwrap();
            updaters.into_iter().for_each(|updater| updater.join().unwrap());
            owner.end();
        });
        let engine = open(&disk);
        for &(name, n, position) in &*stored.lock().unwrap() {
            assert!(position > durable || number(&engine, name) >= n, "{n} was durable");
        }
    });
}

/// What schedules of [`what_is_moved_is_found`] have done, so that none of it is left out.
#[derive(Default)]
struct Done {
    flushes: AtomicU64,
    merges: AtomicU64,
    moved: AtomicU64,
    snapshots: AtomicU64,
}

const NAMES: [&[u8]; 6] = [b"a", b"b", b"c", b"d", b"e", b"f"];

/// An engine that has three tables, so that one more has them merged, and a segment that is worth collecting.
fn filled(disk: &MemoryDisk) -> (Engine, BTreeMap<&'static [u8], u64>) {
    let (engine, mut model, mut n) = (open(disk), BTreeMap::new(), 0);
    while engine.stats().flushes < 3 {
        n += 1;
        // Half of the keys are soon written no more, so that half of the first segment lives.
        let name = NAMES[(if n > 12 { n % 3 } else { n % 6 }) as usize];
        store(&engine, name, n).unwrap();
        model.insert(name, n);
        while engine.write_pending().unwrap() {}
        if engine.wants_upkeep() {
            while engine.stats().flushes < 3 && engine.maintain(u64::MAX).unwrap() {}
        }
    }
    assert!(n < 100 && engine.stats().tables == 3, "{n} writes, {:?}", engine.stats());
    (engine, model)
}

/// The bytes of segments that the index refers to, which the engine counts as they change.
fn referred(engine: &Engine) -> u64 {
    let mut bytes = 0;
    let all = ScanRange::all(KeyspaceId::DEFAULT, PartitionId(0), PartitionId(2));
    let ended = engine.scan(all, usize::MAX, &mut |_, _, entry| {
        let held = entry.register.record.into_iter().chain(entry.register.pending.map(|(_, held)| held));
        let in_segments = held.filter(|held| held.place.segment().is_some());
        bytes += in_segments.map(|held| u64::from(held.place.frame_len())).sum::<u64>();
        true
    });
    assert!(ended.unwrap());
    bytes
}

/// A snapshot's files, as a disk of their own.
fn snapshot(disk: &MemoryDisk) -> MemoryDisk {
    let apart = MemoryDisk::new();
    for name in disk.names() {
        if let Some(own) = name.strip_prefix("snapshots/s/") {
            apart.insert(own, &disk.contents(&name).unwrap());
        }
    }
    apart
}

/// Upkeep that flushes, merges, collects and makes a snapshot, beside one that updates, one that reads, and the writer.
fn upkeep(done: &Done) {
    let disk = MemoryDisk::new();
    let (engine, mut model) = filled(&disk);
    let owner = Owner::new(engine, false);
    owner.engine.set_waker(waker(&owner.bell));
    let before = owner.engine.stats();
    // What the updater is certain of, in the order in which it wrote it.
    let acknowledged = AtomicU64::new(0);
    let is_updated = AtomicBool::new(false);
    let mut made = None;
    thread::scope(|scope| {
        let (owner, acknowledged, is_updated) = (&owner, &acknowledged, &is_updated);
        scope.spawn(|| owner.write());
        let updater = scope.spawn(move || {
            for n in 100..112 {
                // In turns, so that a moment shows how far it came.
                let name = NAMES[(n % 4) as usize];
                match n {
                    // A vote, whose pending record is moved, then becomes the record.
                    104 => {
                        let accept = Change::Accept { ballot: stamp(n), promised: stamp(n) };
                        update(&owner.engine, name, Some(&record(n)), |_| Some(accept)).unwrap();
                        update(&owner.engine, name, None, |_| Some(Change::Commit { ballot: stamp(n) })).unwrap();
                    }
                    _ => drop(store(&owner.engine, name, n).unwrap()),
                }
                acknowledged.store(n, Relaxed);
                assert_eq!(number(&owner.engine, name), n);
            }
            is_updated.store(true, Ordering::Release);
        });
        scope.spawn(move || {
            let mut seen = BTreeMap::new();
            for turn in 0..8 {
                let name = NAMES[turn % NAMES.len()];
                let last = seen.entry(name).or_insert(1);
                // In one look, or in two between which it may be moved or overwritten.
                let n = match turn % 2 {
                    0 => number(&owner.engine, name),
                    _ => {
                        let held = owner.engine.entry(key(name)).unwrap().register.record.unwrap();
                        match owner.engine.load(key(name), &held) {
                            Ok(stored) => {
                                let n = held.head.stamp.wall().0;
                                assert_eq!(stored.content.bytes().map(|bytes| &bytes[..]), Some(&value(n)[..]));
                                n
                            }
                            Err(dunlin_storage::ReadError::Superseded) => continue,
                            Err(error) => panic!("{error}"),
                        }
                    }
                };
                assert!(n >= *last, "went back from {last} to {n}");
                *last = n;
                if turn == 6 {
                    assert_eq!(owner.engine.verify().unwrap().damaged, []);
                }
                if turn == 4 {
                    let all = ScanRange::all(KeyspaceId::DEFAULT, PartitionId(0), PartitionId(2));
                    let mut keys = 0;
                    let ended = owner.engine.scan(all, usize::MAX, &mut |_, _, _| {
                        keys += 1;
                        true
                    });
                    assert!(ended.unwrap() && keys == NAMES.len(), "{keys} keys");
                }
            }
        });
        let kept = scope.spawn(move || {
            let (mut steps, mut asked, mut is_made) = (0, None, None);
            while steps < 12 || !is_updated.load(Ordering::Acquire) {
                let more = owner.engine.maintain(if steps % 2 == 0 { 300 } else { u64::MAX }).unwrap();
                if steps >= 3 && is_made.is_none() {
                    let at_least = *asked.get_or_insert_with(|| acknowledged.load(Relaxed));
                    if owner.engine.snapshot("s").unwrap() {
                        is_made = Some((at_least, acknowledged.load(Relaxed)));
                    }
                }
                if !more {
                    thread::yield_now();
                }
                steps += 1;
            }
            is_made
        });
        updater.join().unwrap();
        made = kept.join().unwrap();
        done.snapshots.fetch_add(made.map_or(0, |_| 1), Relaxed);
        owner.end();
    });
    for n in 100..112u64 {
        model.insert(NAMES[(n % 4) as usize], n);
    }
    let engine = owner.engine;
    let after = engine.stats();
    done.flushes.fetch_add(after.flushes - before.flushes, Relaxed);
    done.merges.fetch_add(after.merges - before.merges, Relaxed);
    done.moved.fetch_add(after.moved_bytes - before.moved_bytes, Relaxed);
    let check = |engine: &Engine, model: &BTreeMap<&[u8], u64>| {
        model.iter().for_each(|(name, n)| assert_eq!(number(engine, name), *n));
        let stats = engine.stats();
        assert_eq!((stats.keys, stats.live_segment_bytes), (model.len() as u64, referred(engine)));
    };
    while engine.write_pending().unwrap() {}
    check(&engine, &model);
    while engine.maintain(u64::MAX).unwrap() {}
    check(&engine, &model);
    drop(engine);
    disk.crash(shuttle::rand::thread_rng().r#gen());
    assert_eq!(verify(&disk).unwrap().damaged, []);
    check(&open(&disk), &model);
    if let Some((at_least, at_most)) = made {
        // It shows one moment: what the updater had written up to some number, and nothing behind that.
        let apart = snapshot(&disk);
        assert_eq!(verify(&apart).unwrap().damaged, []);
        let engine = open(&apart);
        let upto = NAMES.iter().map(|name| number(&engine, name)).max().unwrap();
        assert!(upto >= at_least, "{upto}, of a snapshot that was asked for after {at_least}");
        assert!(upto <= at_most.max(99) + 1, "{upto}, of a snapshot that was there before {at_most}");
        for (number_of_name, name) in NAMES.iter().enumerate() {
            let last = (100..=upto).filter(|n| n % 4 == number_of_name as u64).max();
            last.into_iter().for_each(|last| assert_eq!(number(&engine, name), last, "of a moment at {upto}"));
        }
    }
}

#[test]
fn what_is_moved_is_found() {
    static DONE: Done = Done {
        flushes: AtomicU64::new(0),
        merges: AtomicU64::new(0),
        moved: AtomicU64::new(0),
        snapshots: AtomicU64::new(0),
    };
    explore(1600, || upkeep(&DONE));
    let done = [&DONE.flushes, &DONE.merges, &DONE.moved, &DONE.snapshots].map(|done| done.load(Relaxed));
    println!("flushes, merges, bytes moved, snapshots: {done:?}");
    assert!(done.iter().all(|done| *done > 1000), "{done:?}: too few to prove anything");
}
