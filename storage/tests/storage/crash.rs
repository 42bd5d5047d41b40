//! The crash matrix: a run of random operations is stopped at every operation of the disk, what was not synced is lost, kept or torn, and the
//! engine is opened again. What it then holds is what a prefix of the operations made, and all that were durable are in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dunlin_protocol::register::{Change, Held, Register};
use dunlin_protocol::{Ballot, Content, KeyspaceId, Millis, PartitionId, Record};
use dunlin_storage::{Engine, KeyRef, MemoryDisk, Options, Position, Recovery, ScanRange, Sync, WriteError};
use proptest::prelude::*;

use crate::digests::check_digests;
use crate::support::{Random, TINY, key, look, stamp};

type Key = (u16, Vec<u8>);

#[derive(Clone, Debug)]
struct Operation {
    key: Key,
    change: Change,
    record: Option<Record>,
    position: Position,
    must_sync: bool,
    clock: u64,
}

/// An engine, and what it should hold.
pub(crate) struct World {
    pub(crate) disk: MemoryDisk,
    options: Options,
    engine: Option<Engine>,
    random: Random,
    /// So many keys there are in each of three partitions.
    names: u64,
    operations: Vec<Operation>,
    /// How many of them were acknowledged for good.
    acknowledged: usize,
    suspects: BTreeSet<u16>,
    clock: u64,
    label: String,
    pub(crate) refused: u64,
    /// Steps of upkeep that did something, and that failed.
    pub(crate) maintained: u64,
    pub(crate) collected: u64,
    /// Pieces of tables that went down for lack of room, since the engine was last opened.
    merged_pieces: u64,
    pub(crate) refused_upkeep: u64,
    /// Records that were staged.
    pub(crate) staged: u64,
    /// How often there was something to give back at rest.
    rested: u64,
    /// How many operations there were when the snapshot was asked for that is not made yet.
    asked: Option<usize>,
    /// The snapshot that was made holds a prefix of at least and at most so many operations.
    made: Option<(usize, usize)>,
    snapshots_checked: u64,
    has_failed: bool,
}

/// Each key's register, with operations in place of places.
type State = BTreeMap<Key, Register<usize>>;

impl World {
    pub(crate) fn new(seed: u64, options: Options, label: String) -> Self {
        let (disk, random) = (MemoryDisk::new(), Random(seed));
        let (operations, suspects) = (Vec::new(), BTreeSet::new());
        let (acknowledged, clock, refused) = (0, 1, 0);
        Self {
            disk,
            options,
            engine: None,
            random,
            names: 4,
            operations,
            acknowledged,
            suspects,
            clock,
            label,
            refused,
            maintained: 0,
            collected: 0,
            merged_pieces: 0,
            refused_upkeep: 0,
            staged: 0,
            rested: 0,
            asked: None,
            made: None,
            snapshots_checked: 0,
            has_failed: false,
        }
    }

    /// Runs until the disk fails, or for so many steps.
    pub(crate) fn run(&mut self, steps: usize) {
        if self.engine.is_none() {
            self.recover(false);
        }
        for _ in 0..steps {
            if self.engine.is_none() {
                break;
            }
            self.step();
        }
    }

    fn open(&mut self) -> Option<Recovery> {
        self.engine = None;
        let (engine, recovery) = Engine::open(Arc::new(self.disk.clone()), self.options).ok()?;
        self.engine = Some(engine);
        Some(recovery)
    }

    fn step(&mut self) {
        let Some(engine) = &self.engine else { return };
        let key = (self.random.below(3) as u16, vec![b'a' + self.random.below(self.names) as u8]);
        self.clock += 1;
        let ballot = stamp(self.clock);
        let content = match self.random.below(4) {
            0 => Content::Tombstone,
            _ => Content::value(vec![self.clock as u8; (self.random.below(2) * 250 + self.random.below(130)) as usize]),
        };
        let record = Record::plain(ballot, content, Millis::NONE);
        let pending = look(engine, key_ref(&key)).register.pending.map(|(ballot, _)| ballot);
        let (change, record) = match self.random.below(29) {
            0..=5 => (Change::Store { ballot: Ballot::ZERO }, Some(record)),
            6 => (Change::Store { ballot }, Some(record)),
            7..=8 => (Change::Promise { ballot }, None),
            9..=10 => (Change::Accept { ballot, promised: ballot }, Some(record)),
            11..=12 => match pending {
                Some(ballot) => (Change::Commit { ballot }, None),
                None => (Change::Accept { ballot, promised: stamp(self.clock + 5) }, Some(record)),
            },
            13 => (Change::Forget, None),
            14 => (Change::Purge, None),
            15 => return self.reopen(),
            16 => return self.mark(),
            17..=19 => return self.maintain(),
            20..=21 => return self.rest(),
            22..=23 => return self.snapshot(),
            24 => return self.close(),
            _ => return self.write(),
        };
        let is_staged = record.is_some() && self.random.below(4) == 0;
        let updated = match &record {
            Some(record) if is_staged => match engine.stage(&[(key_ref(&key), record)]) {
                Ok(mut staged) => {
                    self.staged += 1;
                    let staged = staged.pop().expect("as many as were given");
                    // Some come to nothing.
                    if self.random.below(6) == 0 {
                        return;
                    }
                    // Others come late.
                    if self.random.below(3) == 0 {
                        self.maintain();
                    }
                    let Some(engine) = &self.engine else { return };
                    engine.update_staged(key_ref(&key), staged, Millis(self.clock), |_| ((), Some(change)))
                }
                Err(WriteError::Io { .. } | WriteError::Poisoned) => return self.write(),
                Err(error) => Err(error),
            },
            record => engine.update(key_ref(&key), record.as_ref(), Millis(self.clock), |_| ((), Some(change))),
        };
        match updated {
            Ok(updated) => {
                let position = updated.entry.position;
                let must_sync = matches!(change, Change::Promise { .. } | Change::Accept { .. });
                self.operations.push(Operation { key, change, record, position, must_sync, clock: self.clock });
            }
            Err(WriteError::Overloaded) => {
                self.write();
                self.maintain();
            }
            Err(WriteError::DiskFull) => {
                self.refused += 1;
                self.write();
            }
            Err(error) => panic!("{}: {error:?}", self.label),
        }
    }

    fn write(&mut self) {
        let Some(engine) = &self.engine else { return };
        let mut written = engine.write_pending();
        let mut is_synced = false;
        if let Sync::Interval(interval) = self.options.sync
            && written.is_ok()
        {
            assert!(engine.sync_within().is_none_or(|within| within == interval), "{}", self.label);
            is_synced = self.random.below(3) == 0;
            if is_synced {
                written = engine.sync_written().map(|()| true);
                is_synced = written.is_ok();
                assert!(engine.sync_within().is_none() || !is_synced, "{}", self.label);
            }
        }
        let durable = engine.durable_upto();
        assert_eq!(written.is_err(), engine.is_poisoned(), "{}", self.label);
        let is_durable = |operation: &&Operation| operation.position <= durable;
        let written_count = self.operations.iter().take_while(is_durable).count();
        self.acknowledged = match self.options.sync {
            Sync::Always => written_count,
            _ if is_synced => written_count,
            // Only what went out with a promise or an accept survives a crash for certain.
            _ => match self.operations[self.acknowledged..written_count].iter().any(|operation| operation.must_sync) {
                true => written_count,
                false => self.acknowledged,
            },
        };
        if written.is_err() {
            self.has_failed = true;
            self.check_poisoned();
            self.engine = None;
        }
    }

    /// A poisoned engine takes nothing and still answers what needs no write.
    fn check_poisoned(&self) {
        let engine = self.engine.as_ref().expect("just used");
        let at = key(1, b"a");
        let refused = engine.update(at, None, Millis(1), |_| ((), Some(Change::Promise { ballot: stamp(1) })));
        // A cold key cannot be read from a disk that has stopped.
        let is_unreadable = matches!(refused, Err(WriteError::Read(_))) && self.disk.is_stopped();
        assert!(is_unreadable || matches!(refused, Err(WriteError::Poisoned)), "{}", self.label);
        assert!(matches!(engine.maintain(1), Err(WriteError::Poisoned)), "{}", self.label);
        assert!(matches!(engine.write_pending(), Err(WriteError::Poisoned)), "{}", self.label);
        if is_unreadable {
            return;
        }
        let answered = engine.update(at, None, Millis(1), |register| (*register, None)).expect("needs no write");
        assert_eq!(answered.reply, look(engine, at).register);
    }

    /// A few steps of upkeep, so that the next operations meet it half done.
    fn maintain(&mut self) {
        for _ in 0..1 + self.random.below(12) {
            let slice = 1 + self.random.below(600);
            let Some(engine) = &self.engine else { return };
            match engine.maintain(slice) {
                Ok(true) => {
                    self.maintained += 1;
                    let stats = engine.stats();
                    self.collected = self.collected.max(stats.collected);
                    self.merged_pieces = self.merged_pieces.max(stats.merged_pieces);
                }
                Ok(false) => break,
                // Of a failure short of the manifest it recovers by itself.
                Err(_) if !engine.is_poisoned() && !self.disk.is_stopped() => self.refused_upkeep += 1,
                Err(_) => {
                    self.has_failed = true;
                    self.engine = None;
                }
            }
        }
    }

    fn rest(&mut self) {
        let Some(engine) = &self.engine else { return };
        match engine.rest() {
            Ok(is_due) => self.rested += u64::from(is_due),
            Err(_) if !engine.is_poisoned() && !self.disk.is_stopped() => self.refused_upkeep += 1,
            Err(_) => {
                self.has_failed = true;
                self.engine = None;
            }
        }
    }

    /// Asks for a snapshot until it is there; the next one takes its place.
    fn snapshot(&mut self) {
        let Some(engine) = &self.engine else { return };
        if self.asked.is_none() {
            self.made = None;
            if engine.remove_snapshot("s").is_err() {
                if self.disk.is_stopped() {
                    self.engine = None;
                }
                return;
            }
        }
        let asked = *self.asked.get_or_insert(self.operations.len());
        match engine.snapshot("s") {
            Ok(true) => (self.asked, self.made) = (None, Some((asked, self.operations.len()))),
            Ok(false) => {}
            Err(_) => {
                self.asked = None;
                match engine.is_poisoned() || self.disk.is_stopped() {
                    true => (self.has_failed, self.engine) = (true, None),
                    false => self.refused_upkeep += 1,
                }
            }
        }
    }

    /// What is called a snapshot holds what it held, whatever became of the engine.
    fn check_snapshot(&mut self) {
        let Some((at_least, at_most)) = self.made else { return };
        let apart = MemoryDisk::new();
        for name in self.disk.names() {
            if let Some(own) = name.strip_prefix("snapshots/s/") {
                apart.insert(own, &self.disk.contents(&name).expect("there"));
            }
        }
        let (engine, recovery) = Engine::open(Arc::new(apart), self.options).expect("opens");
        assert_eq!((recovery.damaged, recovery.is_new), (vec![], false), "{}", self.label);
        assert!(at_most <= self.operations.len(), "{}: the log lacks what a snapshot has", self.label);
        let mut state = State::new();
        let is_one = |count: usize| {
            if count > 0 {
                apply(&mut state, count - 1, &self.operations[count - 1]);
            }
            count >= at_least && self.difference(&engine, &state).is_none()
        };
        assert!((0..=at_most).any(is_one), "{}: no {at_least} to {at_most} operations made the snapshot", self.label);
        self.snapshots_checked += 1;
    }

    /// An orderly end, and another beginning.
    fn close(&mut self) {
        let Some(engine) = &self.engine else { return };
        match engine.close() {
            Ok(()) => self.acknowledged = self.operations.len(),
            Err(WriteError::DiskFull) => assert!(!engine.is_poisoned(), "{}", self.label),
            Err(_) => {
                assert!(engine.is_poisoned(), "{}", self.label);
                self.has_failed = true;
            }
        }
        self.reopen();
    }

    fn mark(&mut self) {
        let partition = self.random.below(3) as u16;
        let Some(engine) = &self.engine else { return };
        match engine.mark_suspect(PartitionId(partition)) {
            Ok(()) => {
                self.suspects.insert(partition);
            }
            Err(WriteError::DiskFull) => assert!(engine.suspect_partitions().contains(PartitionId(partition))),
            Err(_) => self.engine = None,
        }
    }

    /// The process is killed: what was in memory is gone, what was written is there and may be lost still if it was not synced.
    fn reopen(&mut self) {
        let stop = self.disk.is_stopped();
        self.engine = None;
        if !stop {
            self.disk.kill();
            self.recover(false);
        }
    }

    /// The machine loses power and comes back.
    pub(crate) fn crash(&mut self, seed: u64) {
        self.engine = None;
        self.disk.crash(seed);
        self.recover(true);
    }

    /// Like a crash, but the first recovery is itself cut off.
    pub(crate) fn crash_twice(&mut self, seed: u64, stop: u64) {
        self.engine = None;
        self.disk.crash(seed);
        self.disk.stop_at(self.disk.operations() + stop);
        drop(self.open());
        self.crash(seed ^ 0x5555);
    }

    fn recover(&mut self, must_open: bool) {
        let recovery = match self.open() {
            Some(recovery) => recovery,
            None if must_open => panic!("{}: does not open", self.label),
            None => return,
        };
        assert_eq!(recovery.damaged, [], "{}", self.label);
        let engine = self.engine.as_ref().expect("just opened");
        for &partition in &self.suspects {
            assert!(engine.suspect_partitions().contains(PartitionId(partition)), "{}", self.label);
        }
        check_digests(engine, KeyspaceId::DEFAULT, PartitionId(3));
        let kept = self.prefix(engine);
        self.asked = None;
        // What is shown now is durable.
        self.operations.truncate(kept);
        self.acknowledged = kept;
        // The last ones may have been lost where they change nothing; their positions say nothing any more.
        for operation in &mut self.operations {
            operation.position = Position::ZERO;
        }
        if let Some((at_least, at_most)) = &mut self.made {
            // Operations that change nothing may be gone from the log, and be counted in neither.
            (*at_least, *at_most) = ((*at_least).min(kept), (*at_most).min(kept));
        }
        self.check_snapshot();
    }

    /// How many operations made what the engine holds.
    fn prefix(&self, engine: &Engine) -> usize {
        let mut state = State::new();
        let mut found = None;
        for count in 0..=self.operations.len() {
            if count > 0 {
                apply(&mut state, count - 1, &self.operations[count - 1]);
            }
            if count >= self.acknowledged && self.difference(engine, &state).is_none() {
                found = Some(count);
            }
        }
        found.unwrap_or_else(|| {
            let difference = self.difference(engine, &state).map(|key| {
                let history = self.operations.iter().enumerate().filter(|(_, operation)| operation.key == key);
                let history: Vec<_> = history.map(|(i, operation)| (i, operation.change, operation.position)).collect();
                (look(engine, key_ref(&key)).register, state.get(&key).copied(), history, key)
            });
            let (label, acknowledged, all) = (&self.label, self.acknowledged, self.operations.len());
            panic!(
                "{label}: no prefix of {acknowledged} to {all} operations made this; differs from all: {difference:?}"
            )
        })
    }

    fn difference(&self, engine: &Engine, state: &State) -> Option<Key> {
        let mut held = BTreeMap::new();
        let all = ScanRange::all(KeyspaceId::DEFAULT, PartitionId(0), PartitionId(3));
        engine
            .scan(all, usize::MAX, &mut |partition, key, entry| {
                if !entry.register.is_absent() {
                    held.insert((partition.0, key.to_vec()), entry.register);
                }
                true
            })
            .expect("reads");
        for key in held.keys().chain(state.keys()) {
            let (Some(register), Some(expected)) = (held.get(key), state.get(key)) else { return Some(key.clone()) };
            let of = |ballot: Ballot, promised: Ballot, stored_at: Millis| (ballot, promised, stored_at);
            if of(register.ballot, register.promised, register.stored_at)
                != of(expected.ballot, expected.promised, expected.stored_at)
            {
                return Some(key.clone());
            }
            let records = [
                (register.record.map(|held| (Ballot::ZERO, held)), expected.record.map(|held| (Ballot::ZERO, held))),
                (register.pending, expected.pending),
            ];
            for pair in records {
                match pair {
                    (None, None) => {}
                    (Some((ballot, held)), Some((expected_ballot, expected))) => {
                        let record = self.operations[expected.place].record.as_ref().expect("it took a record");
                        if (ballot, held.head) != (expected_ballot, expected.head) {
                            return Some(key.clone());
                        }
                        let stored = engine.load(key_ref(key), &held).expect("what is held can be read");
                        assert_eq!((&stored.content, &stored.lineage), (&record.content, &record.lineage));
                    }
                    _ => return Some(key.clone()),
                }
            }
        }
        None
    }

    pub(crate) fn flush(&mut self) {
        self.write();
        if let Some(engine) = &self.engine {
            assert_eq!(engine.durable_upto(), engine.end(), "{}", self.label);
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.engine.is_some()
    }

    /// Whether a write or sync failed since the world was made.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed
    }
}

fn key_ref((partition, name): &Key) -> KeyRef<'_> {
    key(*partition, name)
}

fn apply(state: &mut State, number: usize, operation: &Operation) {
    let register = state.entry(operation.key.clone()).or_default();
    let held = operation.record.as_ref().map(|record| Held { head: record.head(), place: number });
    register.apply(operation.change, held, Millis(operation.clock));
    if register.is_absent() {
        state.remove(&operation.key);
    }
}

/// What the runs went through.
#[derive(Debug, Default)]
struct Seen {
    maintained: u64,
    collected: u64,
    staged: u64,
    rested: u64,
    snapshots: u64,
    /// Runs in which the disk was full before it stopped.
    full: u64,
    merged_pieces: u64,
}

/// Runs, stops at the `stop`th operation of the disk, crashes, recovers, goes on, and crashes again.
fn run(seed: u64, options: Options, stop: u64, seen: &mut Seen) -> bool {
    run_within(None, seed, options, stop, seen)
}

/// The same on a disk of a size.
fn run_within(capacity: Option<u64>, seed: u64, options: Options, stop: u64, seen: &mut Seen) -> bool {
    let mut world = World::new(seed, options, format!("seed {seed}, {:?}, {capacity:?}, stop {stop}", options.sync));
    if capacity.is_some() {
        // Enough for several tables.
        world.names = 20;
    }
    world.disk.set_capacity(capacity);
    world.disk.stop_at(stop);
    world.run(STEPS);
    let stopped = world.disk.is_stopped();
    seen.full += u64::from(world.refused > 0);
    seen.merged_pieces += world.merged_pieces;
    world.disk.set_capacity(None);
    match stop % 3 {
        0 => world.crash_twice(stop, 1 + seed.wrapping_mul(stop) % 25),
        _ => world.crash(stop),
    }
    world.run(12);
    world.flush();
    world.crash(stop + 1);
    seen.maintained += world.maintained;
    seen.collected += world.collected;
    seen.staged += world.staged;
    seen.rested += world.rested;
    seen.snapshots += world.snapshots_checked;
    stopped
}

const STEPS: usize = 130;

#[test]
fn every_stop_of_every_run() {
    let (mut runs, mut seen) = (0, Seen::default());
    for seed in 0..4 {
        let sync = match seed {
            2 => Sync::Never,
            3 => Sync::Interval(Duration::from_millis(100)),
            _ => Sync::Always,
        };
        let options = Options { sync, ..TINY };
        let mut stop = 1;
        while run(seed, options, stop, &mut seen) {
            stop += 1;
        }
        runs += stop;
    }
    println!("{runs} runs, {seen:?}");
    let Seen { maintained, collected, staged, rested, snapshots, .. } = seen;
    let is_enough = maintained > runs && collected > runs / 4 && staged > runs && rested > runs / 2 && snapshots > runs;
    assert!(runs > 800 && is_enough, "too few to prove anything");
}

/// On disks that are full again and again, so that upkeep works with what was reserved for it; a third of the stops.
#[test]
fn stops_on_a_full_disk() {
    let (mut runs, mut seen) = (0, Seen::default());
    let options = Options { table_bytes: 1 << 10, ..TINY };
    for (seed, capacity) in [(50, 14_000), (51, 18_000), (52, 22_000)] {
        let mut stop = seed % 3;
        while run_within(Some(capacity), seed, options, stop, &mut seen) {
            (runs, stop) = (runs + 1, stop + 3);
        }
    }
    println!("{runs} runs, {seen:?}");
    let is_enough = seen.maintained > runs && seen.full > runs / 3 && seen.merged_pieces > runs / 3;
    assert!(runs > 600 && is_enough, "too few to prove anything");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// Runs that nobody chose, stopped anywhere.
    #[test]
    fn some_stops_of_any_run(seed: u64, stop in 1..400u64, is_synced: bool, inline_bytes in 0..200usize) {
        let sync = if is_synced { Sync::Always } else { Sync::Never };
        run(seed, Options { sync, inline_bytes, ..TINY }, stop, &mut Seen::default());
    }
}
