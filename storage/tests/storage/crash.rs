//! The crash matrix: a run of random operations is stopped at every operation of the disk, what was not synced is lost, kept or torn, and the
//! engine is opened again. What it then holds is what a prefix of the operations made, and all that were durable are in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dunlin_protocol::register::{Change, Held, Register};
use dunlin_protocol::{Ballot, Content, KeyspaceId, Millis, PartitionId, Record};
use dunlin_storage::{Engine, KeyRef, MemoryDisk, Options, Position, Recovery, ScanRange, Sync, WriteError};

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
    pub(crate) refused_upkeep: u64,
    /// Records that were staged.
    pub(crate) staged: u64,
    /// How often there was something to give back at rest.
    rested: u64,
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
            operations,
            acknowledged,
            suspects,
            clock,
            label,
            refused,
            maintained: 0,
            collected: 0,
            refused_upkeep: 0,
            staged: 0,
            rested: 0,
            has_failed: false,
        }
    }

    /// Runs until the disk fails, or for so many steps.
    pub(crate) fn run(&mut self, steps: usize) {
        if self.engine.is_none() {
            self.open();
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
        let key = (self.random.below(3) as u16, vec![b'a' + self.random.below(4) as u8]);
        self.clock += 1;
        let ballot = stamp(self.clock);
        let content = match self.random.below(4) {
            0 => Content::Tombstone,
            _ => Content::value(vec![self.clock as u8; (self.random.below(2) * 250 + self.random.below(130)) as usize]),
        };
        let record = Record::plain(ballot, content, Millis::NONE);
        let pending = look(engine, key_ref(&key)).register.pending.map(|(ballot, _)| ballot);
        let (change, record) = match self.random.below(24) {
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
        let written = engine.write_pending();
        let durable = engine.durable_upto();
        assert_eq!(written.is_err(), engine.is_poisoned(), "{}", self.label);
        let is_durable = |operation: &&Operation| operation.position <= durable;
        let written_count = self.operations.iter().take_while(is_durable).count();
        self.acknowledged = match self.options.sync {
            Sync::Always => written_count,
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
                    self.collected = self.collected.max(engine.stats().collected);
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
        let kept = self.prefix(engine);
        // What is shown now is durable.
        self.operations.truncate(kept);
        self.acknowledged = kept;
        // The last ones may have been lost where they change nothing; their positions say nothing any more.
        for operation in &mut self.operations {
            operation.position = Position::ZERO;
        }
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

/// Runs, stops at the `stop`th operation of the disk, crashes, recovers, goes on, and crashes again.
fn run(seed: u64, options: Options, stop: u64, upkeep: &mut (u64, u64, u64), rested: &mut u64) -> bool {
    let mut world = World::new(seed, options, format!("seed {seed}, {:?}, stop {stop}", options.sync));
    world.disk.stop_at(stop);
    world.run(STEPS);
    let stopped = world.disk.is_stopped();
    *upkeep = (upkeep.0 + world.maintained, upkeep.1 + world.collected, upkeep.2 + world.staged);
    *rested += world.rested;
    match stop % 3 {
        0 => world.crash_twice(stop, 1 + seed.wrapping_mul(stop) % 25),
        _ => world.crash(stop),
    }
    world.run(12);
    world.flush();
    world.crash(stop + 1);
    stopped
}

const STEPS: usize = 130;

#[test]
fn every_stop_of_every_run() {
    let (mut runs, mut upkeep, mut rested) = (0, (0, 0, 0), 0);
    for seed in 0..4 {
        let sync = if seed % 3 == 2 { Sync::Never } else { Sync::Always };
        let options = Options { sync, ..TINY };
        let mut stop = 1;
        while run(seed, options, stop, &mut upkeep, &mut rested) {
            stop += 1;
        }
        runs += stop;
    }
    println!("{runs} runs");
    let (maintained, collected, staged) = upkeep;
    println!("{maintained} steps of upkeep, {collected} segments collected, {staged} records staged, {rested} rests");
    let is_enough = runs > 800 && maintained > runs && collected > runs / 4 && staged > runs && rested > runs / 2;
    assert!(is_enough, "too few to prove anything");
}
