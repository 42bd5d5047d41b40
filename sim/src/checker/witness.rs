//! Random histories: those made from an order must pass, and most of those that were changed afterwards must not.

use dunlin_protocol::{Millis, Stamp};

use crate::history::{Call, Ending, Event, Expect, History, Promise, Reply, Value};

use super::check;
use super::tests::{done, event, history, version};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % bound
    }
}

/// What the witness of a key holds.
#[derive(Clone, Copy, Default)]
struct Cell {
    value: Option<Value>,
    version: Stamp,
    is_serial: bool,
}

/// Whether plain writes and quorum reads occur.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mix {
    Serial,
    Both,
}

/// A history made from an order: at its own point in time each operation takes effect, somewhere within its interval. Six clients on four
/// keys; some outcomes stay unknown, whether the operation took effect or not. Plain stamps are off by up to three operations.
fn witnessed(seed: u64, operations: u64, mix: Mix) -> History {
    let mut random = Random(seed);
    let mut cells = [Cell::default(); 4];
    let mut free_at = [0u64; 6];
    let mut events = Vec::new();
    for i in 0..operations {
        let point = (i + 1) * 100;
        let client = random.below(6) as usize;
        if free_at[client] >= point {
            continue;
        }
        let invoked_at = free_at[client].max(point.saturating_sub(1 + random.below(600)));
        let returned_at = point + 1 + random.below(600);
        free_at[client] = returned_at + 1;
        let key = random.below(4) as usize;
        let cell = &mut cells[key];
        let op_id = Stamp::new(Millis(700 + point - random.below(300)), i as u16, 1);
        let fresh = Stamp::new(Millis(cell.version.wall().0.max(700 + point) + 1), 0, 1);
        let new = i as Value * 1000 + 1;
        let is_unknown = random.below(100) < 6;
        let is_lost = is_unknown && random.below(2) == 0;
        let expect = match random.below(3) {
            0 => Expect::Absent,
            1 => Expect::Value(cell.value.filter(|_| random.below(4) > 0).unwrap_or(7)),
            _ if random.below(4) == 0 => Expect::Version(version(3)),
            _ => Expect::Version(cell.version),
        };
        let holds = match expect {
            Expect::Absent => cell.value.is_none(),
            Expect::Value(expected) => cell.value == Some(expected),
            Expect::Version(expected) => expected == cell.version,
        };
        // Conditional operations begin late on some keys, so that there is a plain time before.
        let conditional = mix == Mix::Serial || i > key as u64 * operations / 4;
        let (call, after) = match random.below(12) {
            0..4 => (Call::Read, None),
            7 | 8 if conditional => (Call::Increment(1), Some(Some(cell.value.unwrap_or(0) + 1))),
            9.. if conditional => (Call::Cas { expect, new: Some(new) }, holds.then_some(Some(new))),
            6 | 7 => (Call::Delete, Some(None)),
            _ => (Call::Put(new), Some(Some(new))),
        };
        let promise = match mix {
            Mix::Both if !call.is_conditional() => Promise::Quorum,
            _ => Promise::Serial,
        };
        let mut event = event(client as u32, invoked_at, returned_at, promise, call, Ending::Unknown);
        (event.key, event.op_id) = (key as u32, op_id);
        let is_plain = event.is_plain_write() && !cell.is_serial;
        let at = if is_plain { op_id } else { fresh };
        let reply = match (call, after) {
            (Call::Read, _) => Reply::Read { value: cell.value, version: cell.version },
            (_, None) => Reply::ConditionFailed { version: cell.version },
            (_, Some(number)) => {
                Reply::Written { version: at, number: number.filter(|_| matches!(call, Call::Increment(_))) }
            }
        };
        cell.is_serial |= event.turns_serial();
        if let Some(value) = after.filter(|_| !is_lost && (!is_plain || op_id > cell.version)) {
            (cell.value, cell.version) = (value, at);
        }
        if !is_unknown {
            event.returned = Some((returned_at, Ending::Done(reply)));
        }
        events.push(event);
    }
    history(events)
}

#[test]
fn witnessed_histories_pass() {
    for mix in [Mix::Serial, Mix::Both] {
        let (mut events, mut steps) = (0, 0);
        for seed in 0..60 {
            let history = witnessed(seed, 400, mix);
            let checked = check(&history).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
            assert!(checked.undecided.is_empty(), "seed {seed}");
            events += checked.events;
            steps += checked.steps;
        }
        assert!(events > 60 * 200, "{events} events");
        assert!(steps < 60 * events as u64, "{steps} steps for {events} events: the pruning does not work");
    }
}

/// A change to one event of a history; false where it does not fit.
type Mutation = fn(&mut Event, &[Event]) -> bool;

/// What a read was told before the event began, and something newer was told before that, too.
fn earlier_read(event: &Event, events: &[Event]) -> Option<Reply> {
    let reads = events.iter().filter(|e| e.key == event.key && e.call == Call::Read);
    let old = reads.filter_map(|e| e.reply()).filter(|(at, _)| *at < event.invoked_at);
    let superseded = |reply: &Reply| {
        events.iter().any(|e| {
            let after =
                |at: u64| e.reply().is_some_and(|(_, r)| r.version() > reply.version() && at < event.invoked_at);
            e.key == event.key && e.reply().is_some_and(|(at, _)| after(at))
        })
    };
    old.map(|(_, reply)| reply).find(|reply| !reply.version().is_zero() && superseded(reply))
}

fn replace(event: &mut Event, reply: Reply) -> bool {
    let Some((at, _)) = event.reply() else { return false };
    event.returned = Some((at, Ending::Done(reply)));
    true
}

/// Not every mutation breaks a history: an unknown write may explain the changed answer. The percentages leave room for that and no more.
#[test]
fn mutated_histories_fail() {
    let mutations: [(&str, Mutation, usize); 5] = [
        (
            "a read of something superseded",
            |e, all| match (e.call, earlier_read(e, all)) {
                (Call::Read, Some(reply)) => replace(e, reply),
                _ => false,
            },
            100,
        ),
        (
            "a read of a value that nobody wrote",
            |e, _| match (e.call, e.reply()) {
                (Call::Read, Some((_, reply))) => replace(e, Reply::Read { value: Some(-5), version: reply.version() }),
                _ => false,
            },
            100,
        ),
        (
            "a failed condition passes for a success",
            |e, _| match e.reply() {
                Some((at, Reply::ConditionFailed { .. })) => replace(e, done(at)),
                _ => false,
            },
            95,
        ),
        (
            "a success passes for a failed condition",
            |e, _| match (e.call, e.reply()) {
                (Call::Cas { .. }, Some((_, Reply::Written { version, .. }))) => {
                    replace(e, Reply::ConditionFailed { version })
                }
                _ => false,
            },
            70,
        ),
        (
            "an increment counts twice",
            |e, _| match e.reply() {
                Some((_, Reply::Written { version, number: Some(number) })) => {
                    replace(e, Reply::Written { version, number: Some(number + 1) })
                }
                _ => false,
            },
            85,
        ),
    ];
    for (name, mutate, percent) in mutations {
        let (mut made, mut found) = (0, 0);
        for seed in 0..30 {
            let mut events = witnessed(seed, 300, Mix::Serial).events().to_vec();
            let original = events.clone();
            let from = Random(seed).below(events.len() as u64) as usize;
            if !events.iter_mut().skip(from).any(|event| mutate(event, &original)) {
                continue;
            }
            made += 1;
            match check(&history(events)) {
                Err(violation) => {
                    found += 1;
                    assert!(violation.window.len() < 60, "seed {seed}: {violation}");
                }
                Ok(checked) => assert!(checked.undecided.is_empty()),
            }
        }
        assert!(made >= 20 && found * 100 >= made * percent, "{name}: {found} of {made} found");
    }
}
