//! `Verdict`: what a run says about the cluster, and whether it said anything.

use std::fmt;

use dunlin_protocol::{Action, Condition, Level, Mutation, OpId, Outcome, Stamp, Status};

use crate::checker;
use crate::client::Finished;
use crate::cluster::{Holding, Upkeep};
use crate::faults::{FEWEST_HITS, Kind};
use crate::history::{Call, Ending, Event, Expect, History, Promise, Reply, Value};
use crate::world::{AUDIT, Run};

/// The fewest operations that a run must make.
const FEWEST_OPERATIONS: usize = 300;

/// What happened to the operations of one or many runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Operations, those after healing included.
    pub operations: u64,
    /// Answered with a result, a failed condition included.
    pub acknowledged: u64,
    /// Conditional writes and increments that were applied.
    pub cas_won: u64,
    /// Conditional writes whose condition did not hold.
    pub cas_lost: u64,
    /// Nobody knows whether they were applied.
    pub unknown: u64,
    /// Refused: certainly without effect.
    pub refused: u64,
    /// Acknowledged after more than one attempt.
    pub taken_over: u64,
    /// Unknown at first, and then resolved by an outcome query.
    pub resolved: u64,
    /// Records sent to replicas that had an older one.
    pub repaired: u64,
    /// Reads that a node did not wait for.
    pub cold_reads: u64,
    /// Faults that hit traffic.
    pub faults: u64,
    /// Messages that never arrived.
    pub dropped: u64,
    /// Memtables flushed by all engines.
    pub flushes: u64,
    /// Merges of tables.
    pub merges: u64,
    /// Segments collected.
    pub collected: u64,
    /// Keys of which the checker could not tell whether an order explains their history; their plain promises hold.
    pub undecided: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.operations += other.operations;
        self.acknowledged += other.acknowledged;
        self.cas_won += other.cas_won;
        self.cas_lost += other.cas_lost;
        self.unknown += other.unknown;
        self.refused += other.refused;
        self.taken_over += other.taken_over;
        self.resolved += other.resolved;
        self.repaired += other.repaired;
        self.cold_reads += other.cold_reads;
        self.faults += other.faults;
        self.dropped += other.dropped;
        self.flushes += other.flushes;
        self.merges += other.merges;
        self.collected += other.collected;
        self.undecided += other.undecided;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operations, acknowledged, cas_won, cas_lost, unknown, refused, .. } = self;
        let Self {
            taken_over,
            resolved,
            repaired,
            cold_reads,
            faults,
            dropped,
            flushes,
            merges,
            collected,
            undecided,
            ..
        } = self;
        write!(
            f,
            "{operations} operations: {acknowledged} acknowledged, {unknown} unknown, {refused} refused; cas {cas_won} won, \
             {cas_lost} lost; {taken_over} taken over, {resolved} resolved by asking, {repaired} repairs, {cold_reads} cold reads; \
             {faults} faults, {dropped} messages lost; {flushes} flushes, {merges} merges, {collected} segments collected"
        )?;
        match undecided {
            0 => Ok(()),
            undecided => write!(f, "; {undecided} keys undecided"),
        }
    }
}

/// Something that must not be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// What was promised, and what happened.
    pub what: String,
    /// The history of the key concerned, where it is one key's.
    pub history: Option<String>,
}

/// The judgement on one run.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The run's seed.
    pub seed: u64,
    /// Empty: it passed.
    pub violations: Vec<Violation>,
    /// What happened.
    pub counts: Counts,
    /// The hash over all events: the same for the same seed.
    pub trace_hash: u64,
    /// How many events there were.
    pub events: u64,
    /// In which manner the network lost messages.
    pub manner: String,
    /// The faults, each with how much it hit.
    pub faults: Vec<String>,
}

impl Verdict {
    /// Whether nothing is wrong.
    pub fn passed(&self) -> bool {
        self.violations.is_empty()
    }

    pub(crate) fn of(seed: u64, run: &Run) -> Self {
        let mut counts = count(run);
        let mut violations = Vec::new();
        let mut fail = |what: String| violations.push(Violation { what, history: None });
        run.mishaps.iter().cloned().for_each(&mut fail);
        promised_success(run, &mut fail);
        convergence(run, &mut fail);
        liveliness(run, &counts, &mut fail);
        let history = history_of(&run.finished);
        let names: Vec<String> = run.keys.iter().map(|key| key.to_string()).collect();
        let checked = checker::check(&history);
        if let Err(broken) = &checked {
            let key = &names[broken.key as usize];
            let what = format!("key {key}: {} ({:?})", broken.claim.broken(), broken.claim);
            violations.push(Violation { what, history: Some(broken.to_string()) });
        }
        counts.undecided = checked.map_or(0, |checked| checked.undecided.len() as u64);
        let faults = run.faults.iter().map(|(fault, hits)| format!("{fault}, {hits} hits")).collect();
        let (trace_hash, events) = (run.trace.hash(), run.trace.events());
        Self { seed, violations, counts, trace_hash, events, manner: run.manner.clone(), faults }
    }
}

fn is_cas(finished: &Finished) -> bool {
    finished.intent.action.is_conditional()
}

/// The status that counts: an outcome query's answer settles what was unknown.
fn settled(finished: &Finished) -> Status {
    match &finished.asked {
        Some((_, asked)) if matches!(asked.status, Status::Ok | Status::NotApplied) => asked.status,
        _ => finished.outcome.status,
    }
}

fn is_acknowledged(status: Status) -> bool {
    use Status::{NotANumber, NotApplied, NotFound, Ok, PreconditionFailed};
    matches!(status, Ok | NotFound | PreconditionFailed | NotApplied | NotANumber)
}

fn count(run: &Run) -> Counts {
    let (repaired, cold_reads, dropped) = (run.installs, run.cold_reads, run.traffic.dropped);
    let mut counts = Counts { repaired, cold_reads, dropped, ..Counts::default() };
    let Upkeep { flushes, merges, collected } = run.upkeep;
    (counts.flushes, counts.merges, counts.collected) = (flushes, merges, collected);
    counts.faults = run.faults.iter().filter(|(_, hits)| *hits > 0).count() as u64;
    counts.operations = (run.finished.len() + run.unfinished) as u64;
    for finished in &run.finished {
        let status = settled(finished);
        let acknowledged = is_acknowledged(status);
        counts.acknowledged += u64::from(acknowledged);
        counts.unknown += u64::from(status.is_indefinite());
        counts.refused += u64::from(!acknowledged && !status.is_indefinite());
        counts.cas_won += u64::from(is_cas(finished) && status == Status::Ok);
        counts.cas_lost += u64::from(is_cas(finished) && status == Status::PreconditionFailed);
        counts.taken_over += u64::from(finished.attempts > 1 && acknowledged);
        counts.resolved += u64::from(finished.outcome.status.is_indefinite() && !status.is_indefinite());
    }
    counts
}

fn has_rotted(run: &Run) -> bool {
    run.faults.iter().any(|(fault, hits)| matches!(fault.kind, Kind::Rot { .. }) && *hits > 0)
}

/// In a healthy cluster every operation succeeds.
fn promised_success(run: &Run, fail: &mut impl FnMut(String)) {
    if run.unfinished > 0 {
        fail(format!("{} operations never came to an end", run.unfinished));
    }
    for finished in run.finished.iter().filter(|f| f.must_succeed) {
        let status = finished.outcome.status;
        // A replica that may have lost something does not answer, and all were asked for.
        if has_rotted(run) && status == Status::Suspect && finished.intent.level == Level::All {
            continue;
        }
        if !is_acknowledged(status) || status == Status::NotApplied {
            let seconds = finished.invoked.0 as f64 / 1e9;
            let action = &finished.intent.action;
            let message = &finished.outcome.message;
            fail(format!("{status} in a healthy cluster, at {seconds:.3} s, to {action:?}: {message}"));
        }
    }
}

/// When nobody writes any more, what was read last lies at a majority of the replicas. (Not at all of them: what a majority accepted need not have
/// been committed anywhere, and only records are repaired.)
fn convergence(run: &Run, fail: &mut impl FnMut(String)) {
    for (number, (key, replicas)) in run.keys.iter().zip(&run.replicas).enumerate() {
        // Where a replica never answers, who asks for all may wait so long that it writes on while the others look.
        let is_late = |f: &Finished| f.intent.key == number && f.returned >= AUDIT;
        if has_rotted(run) && run.finished.iter().any(|f| is_late(f) && matches!(f.intent.action, Action::Write { .. }))
        {
            continue;
        }
        let is_look = |f: &&Finished| {
            f.must_succeed && f.intent.key == number && f.invoked >= AUDIT && is_acknowledged(f.outcome.status)
        };
        let last = run.finished.iter().filter(is_look).max_by_key(|f| f.returned);
        let version = last.map_or(Stamp::ZERO, |f| f.outcome.version);
        // The client library tells no version where there is no value.
        let is_absent = last.is_some_and(|f| f.outcome.status == Status::NotFound) && version.is_zero();
        let agreed = |held: &Holding| replicas.iter().filter(|(_, other)| other == held).count();
        let holders = match is_absent {
            true => replicas
                .iter()
                .filter(|(_, held)| held.deleted || held.stamp.is_zero())
                .map(|(_, held)| agreed(held))
                .max(),
            false => Some(replicas.iter().filter(|(_, held)| held.stamp == version).count()),
        };
        let holders = holders.unwrap_or(0);
        if holders <= replicas.len() / 2 {
            fail(format!("key {key}: in the end {version:?} is read, and its replicas hold {replicas:?}"));
        }
    }
}

/// A simulation that tests nothing is a defect.
fn liveliness(run: &Run, counts: &Counts, fail: &mut impl FnMut(String)) {
    let Counts { operations, acknowledged, cas_won, .. } = *counts;
    if (operations as usize) < FEWEST_OPERATIONS {
        fail(format!("only {operations} operations were made"));
    }
    if acknowledged * 2 < operations {
        fail(format!("only {acknowledged} of {operations} operations were acknowledged"));
    }
    let cas = run.finished.iter().filter(|f| is_cas(f)).count() as u64;
    if cas_won * 10 < cas {
        fail(format!("only {cas_won} of {cas} conditional operations were applied"));
    }
    if (counts.faults as usize) < FEWEST_HITS {
        fail(format!("only {} faults hit traffic", counts.faults));
    }
}

/// What the checker judges, in order of invocation.
pub(crate) fn history_of(finished: &[Finished]) -> History {
    let mut events: Vec<Event> = finished.iter().flat_map(|f| [Some(event_of(f)), query_of(f)]).flatten().collect();
    events.sort_by_key(|event| (event.invoked_at, event.client));
    for unnamed in 0..events.len() {
        if let Some(version) = name_of(unnamed, &events) {
            events[unnamed].op_id = version;
        }
    }
    events.into_iter().collect()
}

/// What stands for an operation id that the coordinator drew and nobody was told.
const UNNAMED: OpId = Stamp::from_bits(1);

/// A plain write whose id nobody was told goes by it all the same: by the version at which somebody read what it wrote, if that is no other's.
fn name_of(unnamed: usize, events: &[Event]) -> Option<OpId> {
    let event = &events[unnamed];
    let written = match event.call {
        Call::Put(value) => Some(value),
        Call::Delete => None,
        _ => return None,
    };
    if event.op_id != UNNAMED {
        return None;
    }
    let of_key = || events.iter().filter(|e| e.key == event.key);
    let is_named = |version: Stamp| {
        let writes =
            |e: &Event| matches!(e.reply(), Some((_, reply @ Reply::Written { .. })) if reply.version() == version);
        of_key().any(|e| e.call.is_write() && (e.op_id == version || writes(e)))
    };
    let read = |e: &Event| match e.reply() {
        Some((at, Reply::Read { value, version })) if value == written && at >= event.invoked_at => Some(version),
        _ => None,
    };
    of_key().filter_map(read).filter(|version| !version.is_zero() && !is_named(*version)).min()
}

/// An outcome query is an operation of its own: it may give the key another version.
fn query_of(finished: &Finished) -> Option<Event> {
    let (since, asked) = finished.asked.as_ref()?;
    let ending = match asked.status {
        Status::Ok | Status::NotApplied => Ending::Done(Reply::Written { version: Stamp::ZERO, number: None }),
        _ => Ending::Unknown,
    };
    Some(Event {
        client: finished.client as u32,
        key: finished.intent.key as u32,
        promise: Promise::Serial,
        call: Call::Outcome,
        op_id: finished.op_id,
        invoked_at: since.0,
        returned: Some((finished.returned.0, ending)),
    })
}

fn event_of(finished: &Finished) -> Event {
    let intent = &finished.intent;
    let promise = match intent.level {
        Level::Serial => Promise::Serial,
        level if level.is_quorum(usize::from(crate::cluster::REPLICAS)) => Promise::Quorum,
        _ => Promise::Weak,
    };
    let call = call_of(&intent.action);
    Event {
        client: finished.client as u32,
        key: intent.key as u32,
        promise,
        call,
        op_id: op_id_of(finished),
        invoked_at: finished.invoked.0,
        returned: Some((finished.returned.0, ending_of(call, finished))),
    }
}

/// An id that the coordinator drew is known to the client only as the version that a plain write got.
fn op_id_of(finished: &Finished) -> OpId {
    match finished.op_id.is_zero() {
        true => finished.outcome.version.max(UNNAMED),
        false => finished.op_id,
    }
}

fn call_of(action: &Action) -> Call {
    match action {
        Action::Read { .. } | Action::Outcome => Call::Read,
        Action::Write { condition, mutation } => match (condition, mutation) {
            (_, Mutation::Increment { by }) => Call::Increment(*by),
            (None, Mutation::Put { value, .. }) => Call::Put(number(value)),
            (None, Mutation::Delete) => Call::Delete,
            (Some(condition), mutation) => {
                let expect = match condition {
                    Condition::Version(version) => Expect::Version(*version),
                    Condition::Absent => Expect::Absent,
                    Condition::Value(value) => Expect::Value(number(value)),
                };
                let new = match mutation {
                    Mutation::Put { value, .. } => Some(number(value)),
                    _ => None,
                };
                Call::Cas { expect, new }
            }
        },
    }
}

fn number(value: &[u8]) -> Value {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).expect("clients write numbers only")
}

fn ending_of(call: Call, finished: &Finished) -> Ending {
    let Outcome { status, version, number: told, content, .. } = &finished.outcome;
    let version = *version;
    if let Some((_, asked)) = &finished.asked {
        return match asked.status {
            // The version is left open: it may be that of the query itself.
            Status::Ok => Ending::Done(Reply::Written { version: Stamp::ZERO, number: None }),
            Status::NotApplied => Ending::Failed,
            _ => Ending::Unknown,
        };
    }
    match (call, status) {
        (Call::Read, Status::Ok) => {
            let value = content.as_ref().and_then(|c| c.bytes()).map(|bytes| number(bytes));
            Ending::Done(Reply::Read { value, version })
        }
        (Call::Read, Status::NotFound) => Ending::Done(Reply::Read { value: None, version }),
        (_, Status::Ok) => Ending::Done(Reply::Written { version, number: *told }),
        (_, Status::PreconditionFailed) => Ending::Done(Reply::ConditionFailed { version }),
        (_, status) if status.is_indefinite() => Ending::Unknown,
        _ => Ending::Failed,
    }
}
