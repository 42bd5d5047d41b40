//! `Workload`: what the clients want, as a seed says.

use bytes::Bytes;
use dunlin_protocol::{Action, Attributes, Condition, Level, Mutation, Stamp, Tick};

use crate::faults::{FIRST, Fault, HEALED};
use crate::random::Random;

/// How a key is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Usage {
    /// Serial operations, and quorum reads, which on such a key are linearizable too.
    Serial,
    /// Plain operations of all levels: last writer wins.
    Plain,
    /// Made serial first; then plain and serial operations at quorum and above: linearizable, all of them.
    Mixed,
    /// Plain at first, with serial operations from some time on.
    Turning,
}

/// When a turning key sees its first serial operation.
const TURN: Tick = Tick(18_000_000_000);

/// The times at which every operation must succeed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// Before the first fault: each key gets its first value, and a serial one becomes serial.
    First,
    /// After all is healed.
    Final,
    /// Nobody writes any more: everybody must read the same.
    Audit,
}

/// What a client wants of a key.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Intent {
    pub(crate) key: usize,
    pub(crate) level: Level,
    pub(crate) action: Action,
}

/// What a client last saw of a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Known {
    pub(crate) version: Stamp,
    /// None: no value.
    pub(crate) value: Option<Bytes>,
}

#[derive(Clone, Copy)]
enum Choice {
    Read(Level),
    Put(Level),
    Delete(Level),
    CompareAndSet,
    CasAbsent,
    Increment,
}

/// The wishes of one client.
#[derive(Debug)]
pub(crate) struct Workload {
    client: usize,
    usages: Vec<Usage>,
    random: Random,
    known: Vec<Option<Known>>,
    /// The key of a compare-and-set that follows the read just made.
    follow: Option<usize>,
    favourite: usize,
    written: u64,
}

impl Workload {
    pub(crate) fn new(client: usize, usages: Vec<Usage>, random: Random) -> Self {
        let known = vec![None; usages.len()];
        Self { client, usages, random, known, follow: None, favourite: 0, written: 0 }
    }

    /// A burst begins: most of it goes to one key, the same for all clients.
    pub(crate) fn favour(&mut self, key: usize) {
        self.favourite = key;
    }

    /// What the client learnt of a key.
    pub(crate) fn learn(&mut self, key: usize, known: Option<Known>) {
        self.known[key] = known;
    }

    /// A value that nobody ever wrote before. All values are numbers, so that increments work on any of them, and far enough apart that no
    /// increment makes one into another.
    fn value(&mut self) -> Bytes {
        self.written += 1;
        Bytes::from(((self.client as u64 + 1) * 1_000_000_000 + self.written * 1_000_000).to_string())
    }

    pub(crate) fn next(&mut self, now: Tick) -> Intent {
        if let Some(key) = self.follow.take()
            && let Some(known) = self.known[key].clone()
        {
            return self.compare_and_set(key, known);
        }
        let key = match self.random.chance(0.7) {
            true => self.favourite,
            false => self.random.index(self.usages.len()),
        };
        let usage = match self.usages[key] {
            Usage::Turning if now < TURN => Usage::Plain,
            Usage::Turning => Usage::Mixed,
            usage => usage,
        };
        let choice = match usage {
            Usage::Serial => self.random.weighted(&[
                (3, Choice::Read(Level::Serial)),
                (2, Choice::Read(Level::Quorum)),
                (4, Choice::Put(Level::Serial)),
                (1, Choice::Delete(Level::Serial)),
                (10, Choice::CompareAndSet),
                (1, Choice::CasAbsent),
                (3, Choice::Increment),
            ]),
            Usage::Plain | Usage::Turning => {
                // A turning key's writes below the majority could not be told from later ones.
                let is_plain = self.usages[key] == Usage::Plain;
                let low = u64::from(is_plain);
                let level = self.random.weighted(&[
                    (3 * low, Level::ONE),
                    (10, Level::Quorum),
                    (2, "two".parse().expect("a level")),
                    (2, Level::All),
                ]);
                self.random.weighted(&[(10, Choice::Read(level)), (8, Choice::Put(level)), (2, Choice::Delete(level))])
            }
            Usage::Mixed => {
                let level = self.random.weighted(&[(6, Level::Quorum), (1, Level::All), (3, Level::Serial)]);
                self.random.weighted(&[
                    (5, Choice::Read(level)),
                    (5, Choice::Put(level)),
                    (1, Choice::Delete(level)),
                    (6, Choice::CompareAndSet),
                    (1, Choice::CasAbsent),
                    (2, Choice::Increment),
                ])
            }
        };
        self.intent(key, choice)
    }

    /// An operation that must succeed.
    pub(crate) fn demand(&mut self, phase: Phase, key: usize) -> Intent {
        let usage = self.usages[key];
        let is_plain = usage == Usage::Plain;
        let choice = match phase {
            Phase::First if matches!(usage, Usage::Serial | Usage::Mixed) => Choice::Put(Level::Serial),
            Phase::First => Choice::Put(Level::Quorum),
            Phase::Final if is_plain => {
                self.random.weighted(&[(1, Choice::Read(Level::Quorum)), (1, Choice::Put(Level::Quorum))])
            }
            Phase::Final => self.random.weighted(&[
                (1, Choice::Read(Level::Serial)),
                (1, Choice::Put(Level::Serial)),
                (1, Choice::Increment),
                (1, Choice::CompareAndSet),
            ]),
            // The first client's look makes all replicas equal, if they are not.
            Phase::Audit if self.client == 0 => Choice::Read(Level::All),
            Phase::Audit if is_plain => Choice::Read(Level::Quorum),
            Phase::Audit => Choice::Read(self.random.weighted(&[(1, Level::Quorum), (1, Level::Serial)])),
        };
        let intent = self.intent(key, choice);
        // A condition that needs a look first stays a look.
        self.follow = None;
        intent
    }

    fn intent(&mut self, key: usize, choice: Choice) -> Intent {
        let put = |value| Mutation::Put { value, attributes: Attributes::default(), ttl_millis: 0 };
        let read = |level| (level, Action::Read { value: true });
        let (level, action) = match choice {
            Choice::Read(level) => read(level),
            Choice::Put(level) => (level, Action::Write { condition: None, mutation: put(self.value()) }),
            Choice::Delete(level) => (level, Action::Write { condition: None, mutation: Mutation::Delete }),
            Choice::Increment => {
                let by = self.random.between(1, 9) as i64;
                (Level::Serial, Action::Write { condition: None, mutation: Mutation::Increment { by } })
            }
            Choice::CasAbsent => {
                let condition = Some(Condition::Absent);
                (Level::Serial, Action::Write { condition, mutation: put(self.value()) })
            }
            Choice::CompareAndSet => match self.known[key].clone() {
                // What is known may be long out of date: more often than not it is better to look again.
                Some(known) if self.random.chance(0.3) => return self.compare_and_set(key, known),
                _ => {
                    self.follow = Some(key);
                    read(if self.random.chance(0.5) { Level::Serial } else { Level::Quorum })
                }
            },
        };
        Intent { key, level, action }
    }

    /// A write on the condition that the key is as it was last seen.
    fn compare_and_set(&mut self, key: usize, known: Known) -> Intent {
        let condition = match known.value {
            None => Condition::Absent,
            Some(value) if self.random.chance(0.25) => Condition::Value(value),
            Some(_) => Condition::Version(known.version),
        };
        let mutation = Mutation::Put { value: self.value(), attributes: Attributes::default(), ttl_millis: 0 };
        Intent { key, level: Level::Serial, action: Action::Write { condition: Some(condition), mutation } }
    }
}

/// A time at which all clients become busy at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Burst {
    pub(crate) at: Tick,
    pub(crate) favourite: usize,
    /// Operations of each client.
    pub(crate) operations: u32,
}

/// When the clients are busy: around the beginnings and ends of faults, where it hurts.
pub(crate) fn bursts(faults: &[Fault], keys: usize, random: &mut Random) -> Vec<Burst> {
    let mut times = Vec::new();
    for fault in faults {
        // Early enough that something is on its way when it begins, late enough that it is not over.
        times.push(Tick(fault.begins.0.saturating_sub(random.below(30_000_000))));
        times.push(Tick(fault.begins.0 + random.below((fault.ends.0 - fault.begins.0).max(2))));
        if random.chance(0.5) {
            times.push(Tick(fault.ends.0.saturating_sub(random.below(30_000_000))));
        }
    }
    times.retain(|at| *at >= FIRST && *at < HEALED);
    times.sort();
    let burst = |at| Burst { at, favourite: random.index(keys), operations: random.between(2, 4) as u32 };
    times.into_iter().map(burst).collect()
}
