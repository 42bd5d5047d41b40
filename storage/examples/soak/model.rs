//! `Model`: what a worker's keys should hold, and which of its operations may still be lost.

use std::collections::BTreeMap;
use std::sync::Arc;

use dunlin_protocol::register::{Change, Held, Register};
use dunlin_protocol::{Ballot, Content, KeyspaceId, Millis, PartitionId, Record, Stamp};
use dunlin_storage::{Engine, KeyRef, Pinned, Place, Position, ReadError, ScanRange, Staged, WriteError};

pub(crate) const WORKERS: u64 = 3;
const KEYS: u64 = 3000;
pub(crate) const PARTITIONS: u16 = 16;

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

fn mixed(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// The record of a number: everything about it follows from that, so that any record that is read can be checked.
pub(crate) fn record(number: u64) -> Record {
    let random = mixed(number);
    let len = match random % 100 {
        0..=1 => 20_000 + random / 100 % 40_000,
        2..=14 => 1_000 + random / 100 % 4_000,
        15..=60 => 200 + random / 100 % 300,
        _ => random / 100 % 200,
    };
    let content = match random / 100_000_000 % 12 {
        0 => Content::Tombstone,
        _ => Content::value((0..len).map(|i| (number.wrapping_add(i / 7 * 31)) as u8).collect::<Vec<u8>>()),
    };
    Record::plain(stamp(number), content, Millis::NONE)
}

fn stamp(number: u64) -> Stamp {
    Stamp::new(Millis(number), 0, 7)
}

/// Reads what a register refers to, and checks it against its own stamps.
pub(crate) fn check_records(engine: &Engine, at: KeyRef<'_>, register: &Register<Place>) -> Result<u64, String> {
    let mut superseded = 0;
    for held in register.record.into_iter().chain(register.pending.map(|(_, held)| held)) {
        let expected = record(held.head.stamp.wall().0);
        match engine.load(at, &held) {
            Ok(stored) if (&stored.content, &stored.lineage) == (&expected.content, &expected.lineage) => {}
            Ok(_) => return Err(format!("{at:?}: {held:?} has another content")),
            Err(ReadError::Superseded) => superseded += 1,
            Err(error) => return Err(format!("{at:?}: {held:?}: {error}")),
        }
    }
    Ok(superseded)
}

fn same(found: &Register<Place>, expected: &Register<u64>) -> bool {
    let plain = |r: &Register<Place>| {
        (r.ballot, r.promised, r.stored_at, r.record.map(|h| h.head), r.pending.map(|(b, h)| (b, h.head)))
    };
    let model = |r: &Register<u64>| {
        (r.ballot, r.promised, r.stored_at, r.record.map(|h| h.head), r.pending.map(|(b, h)| (b, h.head)))
    };
    plain(found) == model(expected)
}

struct Operation {
    key: u64,
    /// Of the key, afterwards.
    register: Register<u64>,
    position: Position,
}

/// A worker's keys, which nobody else writes.
pub(crate) struct Model {
    worker: u64,
    random: Random,
    number: u64,
    /// As of all operations.
    registers: BTreeMap<u64, Register<u64>>,
    /// As of those that cannot be lost any more.
    durable: BTreeMap<u64, Register<u64>>,
    /// Since then, in order.
    since: Vec<Operation>,
    /// The keys as they were at a moment that is pinned.
    pub(crate) pinned: Option<(Pinned, BTreeMap<u64, Register<u64>>)>,
    /// Records that were staged for keys, and wait to be referred to, or never are.
    waiting: Vec<(u64, u64, Staged)>,
}

impl Model {
    pub(crate) fn all(seed: u64) -> Vec<Self> {
        let new = |worker| Self {
            worker,
            random: Random(mixed(seed ^ worker << 32)),
            number: 0,
            registers: BTreeMap::new(),
            durable: BTreeMap::new(),
            since: Vec::new(),
            pinned: None,
            waiting: Vec::new(),
        };
        (0..WORKERS).map(new).collect()
    }

    fn name(&self, key: u64) -> Vec<u8> {
        format!("{}/{key}", self.worker).into_bytes()
    }

    pub(crate) fn at(key: u64, name: &[u8]) -> KeyRef<'_> {
        KeyRef { partition: PartitionId(key as u16 % PARTITIONS), keyspace: KeyspaceId::DEFAULT, key: name }
    }

    /// Does something to a key, or looks at one. False: it was refused for now.
    pub(crate) fn step(&mut self, engine: &Engine) -> Result<bool, String> {
        // Most of the time a few keys, so that there is garbage; the others stay until they are cold.
        let range = if self.random.below(4) > 0 { KEYS / 20 } else { KEYS };
        let key = self.random.below(range);
        let name = self.name(key);
        let register = self.registers.get(&key).copied().unwrap_or_default();
        self.number += 1;
        let number = self.number * WORKERS + self.worker;
        let ballot = stamp(number);
        let change = match (self.random.below(24), register.pending) {
            (0..=9, _) => Change::Store { ballot: Ballot::ZERO },
            (10, _) => Change::Store { ballot },
            (11, _) => Change::Promise { ballot },
            (12 | 13, None) => Change::Accept { ballot, promised: ballot },
            (12..=15, Some((pending, _))) => Change::Commit { ballot: pending },
            (16, _) => Change::Forget,
            (17, _) => Change::Purge,
            _ => return self.look(engine, key).map(|()| true),
        };
        // What the record is of: an older number, where it was staged a while ago.
        let (number_of_record, staged) = match change.takes_record() {
            true => match self.staged(engine, key, number) {
                Ok(staged) => staged.map_or((number, None), |(number, staged)| (number, Some(staged))),
                Err(WriteError::Overloaded) => return Ok(false),
                Err(error) => return Err(format!("{}: cannot stage: {error}", self.label(key))),
            },
            false => (number, None),
        };
        let record = change.takes_record().then(|| record(number_of_record));
        let rule = |found: &Register<Place>| {
            (same(found, &register).then_some(()).ok_or(*found), same(found, &register).then_some(change))
        };
        let at = Self::at(key, &name);
        let found = match staged {
            Some(staged) => engine.update_staged(at, staged, Millis(number), rule),
            None => engine.update(at, record.as_ref(), Millis(number), rule),
        };
        match found {
            Ok(updated) => {
                updated.reply.map_err(|found| format!("{}: {found:?} where {register:?} was", self.label(key)))?;
                let mut register = register;
                let held = record.map(|record| Held { head: record.head(), place: number_of_record });
                register.apply(change, held, Millis(number));
                self.registers.insert(key, register);
                self.since.push(Operation { key, register, position: updated.entry.position });
                Ok(true)
            }
            Err(WriteError::Overloaded) => Ok(false),
            Err(error) => Err(format!("{}: {change:?}: {error}", self.label(key))),
        }
    }

    /// A staged record for a key, and its number: most of the large ones are. Some are kept for later, some for nothing.
    fn staged(&mut self, engine: &Engine, key: u64, number: u64) -> Result<Option<(u64, Staged)>, WriteError> {
        if let Some(at) = self.waiting.iter().position(|(other, ..)| *other == key) {
            let (_, number, staged) = self.waiting.swap_remove(at);
            return Ok(Some((number, staged)));
        }
        let record = record(number);
        if record.head().value_len < 1000 || self.random.below(4) == 0 {
            return Ok(None);
        }
        let name = self.name(key);
        let at = Self::at(key, &name);
        let mut staged = engine.stage(&[(at, &record), (at, &record)])?.into_iter();
        if let Some(another) = staged.next().filter(|_| self.random.below(3) == 0) {
            self.waiting.push((key, number, another));
        }
        if self.waiting.len() > 8 {
            self.waiting.remove(0);
        }
        Ok(staged.next().map(|staged| (number, staged)))
    }

    /// Nothing of an engine is kept that is to end.
    pub(crate) fn let_go(&mut self) {
        (self.pinned, self.waiting) = (None, Vec::new());
    }

    /// Keeps this moment, or compares the one that is kept. How many keys were compared.
    pub(crate) fn pin_or_compare(&mut self, engine: &Arc<Engine>) -> Result<u64, String> {
        let Some((pinned, expected)) = self.pinned.take() else {
            // There may be too many of them, or they keep too much.
            self.pinned = engine.pin().ok().map(|pinned| (pinned, self.registers.clone()));
            return Ok(0);
        };
        let own = format!("{}/", self.worker).into_bytes();
        let all = ScanRange::all(KeyspaceId::DEFAULT, PartitionId(0), PartitionId(PARTITIONS));
        let (mut wrong, mut compared) = (None, 0);
        let ended = pinned.scan(ScanRange { prefix: &own, ..all }, usize::MAX, &mut |partition, name, entry| {
            let at = KeyRef { partition, keyspace: KeyspaceId::DEFAULT, key: name };
            let key = std::str::from_utf8(&name[own.len()..]).ok().and_then(|key| key.parse::<u64>().ok());
            let expected = key.and_then(|key| expected.get(&key)).copied().unwrap_or_default();
            if !same(&entry.register, &expected) {
                wrong = Some(format!("pinned {at:?}: {:?} where {expected:?} was", entry.register));
            }
            let held = entry.register.record.into_iter().chain(entry.register.pending.map(|(_, held)| held));
            for held in held {
                match pinned.load(at, &held) {
                    Ok(stored) if stored.content == record(held.head.stamp.wall().0).content => {}
                    other => wrong = Some(format!("pinned {at:?}: {held:?}: {:?}", other.err())),
                }
            }
            compared += 1;
            wrong.is_none()
        });
        ended.map_err(|error| format!("pinned scan: {error}"))?;
        wrong.map_or(Ok(()), Err)?;
        let keys = expected.values().filter(|register| !register.is_absent()).count() as u64;
        match compared == keys {
            true => Ok(compared),
            false => Err(format!("{compared} of {keys} keys at a pinned moment")),
        }
    }

    fn label(&self, key: u64) -> String {
        format!("worker {}, key {key}", self.worker)
    }

    fn look(&self, engine: &Engine, key: u64) -> Result<(), String> {
        let name = self.name(key);
        let expected = self.registers.get(&key).copied().unwrap_or_default();
        let (entry, stored) = engine.get(Self::at(key, &name)).map_err(|e| format!("{}: {e}", self.label(key)))?;
        if !same(&entry.register, &expected) {
            return Err(format!("{}: {:?} where {expected:?} was", self.label(key), entry.register));
        }
        let content = expected.record.map(|held| record(held.place).content);
        if stored.map(|stored| stored.content) != content {
            return Err(format!("{}: another content", self.label(key)));
        }
        match check_records(engine, Self::at(key, &name), &entry.register)? {
            0 => Ok(()),
            _ => Err(format!("{}: superseded by nobody", self.label(key))),
        }
    }

    /// What was written up to here is durable.
    pub(crate) fn acknowledge(&mut self, durable: Position) {
        let count = self.since.partition_point(|operation| operation.position <= durable);
        for operation in self.since.drain(..count) {
            self.durable.insert(operation.key, operation.register);
        }
    }

    /// Everything is as it should be.
    pub(crate) fn check(&self, engine: &Engine) -> Result<u64, String> {
        (0..KEYS).try_for_each(|key| self.look(engine, key))?;
        Ok(self.registers.values().filter(|register| !register.is_absent()).count() as u64)
    }
}

/// After an abrupt end: finds how many of the operations that could be lost were, in the order of the log, and forgets those. Returns how many were.
pub(crate) fn recover(models: &mut [Model], engine: &Engine) -> Result<usize, String> {
    let mut order: Vec<Position> =
        models.iter().flat_map(|model| model.since.iter().map(|operation| operation.position)).collect();
    order.sort();
    // For each count of operations kept, how many keys say that it was not that one.
    let mut against = vec![0i64; order.len() + 2];
    for model in models.iter() {
        let mut versions: BTreeMap<u64, Vec<(usize, Register<u64>)>> = BTreeMap::new();
        for operation in &model.since {
            let kept = order.partition_point(|position| *position < operation.position) + 1;
            let before = (0, model.durable.get(&operation.key).copied().unwrap_or_default());
            versions.entry(operation.key).or_insert_with(|| vec![before]).push((kept, operation.register));
        }
        for (key, versions) in versions {
            let name = model.name(key);
            let found = engine.entry(Model::at(key, &name)).map_err(|e| format!("{}: {e}", model.label(key)))?;
            for (i, (from, register)) in versions.iter().enumerate() {
                if !same(&found.register, register) {
                    against[*from] += 1;
                    against[versions.get(i + 1).map_or(order.len() + 1, |(next, _)| *next)] -= 1;
                }
            }
        }
    }
    let (mut sum, mut kept) = (0, None);
    for (count, change) in against[..=order.len()].iter().enumerate() {
        sum += change;
        if sum == 0 {
            kept = Some(count);
        }
    }
    let kept = kept.ok_or_else(|| format!("no prefix of {} operations made what was recovered", order.len()))?;
    let last = kept.checked_sub(1).map_or(Position::ZERO, |last| order[last]);
    for model in models {
        model.acknowledge(last);
        model.since.clear();
        model.registers.clone_from(&model.durable);
    }
    Ok(order.len() - kept)
}
