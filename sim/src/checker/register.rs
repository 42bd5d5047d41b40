//! One key as a sequential object: PROTOCOL.md 1.11, for serial operations, quorum reads and plain writes together.

use std::collections::BTreeMap;

use dunlin_protocol::Stamp;

use crate::history::{Call, Event, Expect, Promise, Reply, Value};

use super::search::{Interval, Model};

/// What the key may hold.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct State {
    pub(crate) value: Option<Value>,
    pub(crate) version: Version,
    /// The highest stamp of a plain write in the order so far.
    pub(crate) newest_plain: Stamp,
}

/// The version of what the key holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Version {
    /// Somebody was told.
    Is(Stamp),
    /// Nobody was told yet, but it lies at or above what it replaced (P6).
    From(Stamp),
}

impl Version {
    fn stamp(self) -> Stamp {
        match self {
            Self::Is(stamp) | Self::From(stamp) => stamp,
        }
    }

    fn may_be(self, told: Stamp) -> bool {
        match self {
            Self::Is(stamp) => told == stamp,
            Self::From(stamp) => told >= stamp,
        }
    }
}

impl State {
    /// A key of which only the value is known.
    pub(crate) fn of(value: Option<Value>) -> Self {
        Self { value, version: Version::From(Stamp::ZERO), newest_plain: Stamp::ZERO }
    }
}

/// How plain writes are ordered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PlainOrder {
    /// By their stamps: one that comes late with a lower stamp takes no effect.
    Stamps,
    /// Like everything else: their stamps rise with their invocations, so the whole history is linearizable (C3).
    RealTime,
}

/// An event as the model judges it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operation {
    call: Call,
    op_id: Stamp,
    reply: Option<Reply>,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// On the serial path, or a read.
    Serial,
    /// Acknowledged plainly, and invoked before the key was known to be serial at a quorum.
    Plain,
    /// A plain write that may have ended on either path.
    Either,
}

/// A key, with what its history as a whole says of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Register {
    pub(crate) plain_order: PlainOrder,
}

impl Model for Register {
    type State = State;
    type Operation = Operation;

    fn successor(&self, state: &State, operation: &Operation, choice: usize) -> Option<State> {
        let Operation { call, op_id, reply, kind } = *operation;
        let newer = op_id > state.newest_plain;
        let told = reply.map_or(Stamp::ZERO, |r| r.version());
        let as_plain = |value| State { value, version: Version::Is(op_id), newest_plain: op_id };
        let as_serial = || apply(state, call, reply);
        let written = match call {
            Call::Put(value) => Some(value),
            _ => None,
        };
        match (kind, self.plain_order) {
            (Kind::Serial, _) => (choice == 0).then(as_serial).flatten(),
            (Kind::Plain, PlainOrder::Stamps) => match choice {
                0 if newer => Some(as_plain(written)),
                0 => Some(*state),
                _ => None,
            },
            (Kind::Plain, PlainOrder::RealTime) => {
                (choice == 0).then(|| State { newest_plain: state.newest_plain.max(op_id), ..as_plain(written) })
            }
            (Kind::Either, _) => match choice {
                // Acknowledged above its id, it has left the plain path.
                0 if newer && (told.is_zero() || told == op_id) => Some(as_plain(written)),
                0 | 1 if choice == usize::from(newer && (told.is_zero() || told == op_id)) => as_serial(),
                _ => None,
            },
        }
    }
}

/// The call on the serial path, with its answer, if any.
fn apply(state: &State, call: Call, reply: Option<Reply>) -> Option<State> {
    let told = reply.map_or(Stamp::ZERO, |r| r.version());
    if let (Call::Read, Some(Reply::Read { value, .. })) = (call, reply) {
        return (value == state.value).then(|| see(state, told)).flatten();
    }
    if call == Call::Outcome {
        return Some(State { version: Version::From(state.version.stamp()), ..*state });
    }
    let holds = match call {
        Call::Cas { expect: Expect::Absent, .. } => state.value.is_none(),
        Call::Cas { expect: Expect::Value(value), .. } => state.value == Some(value),
        Call::Cas { expect: Expect::Version(expected), .. } => match (state.version, reply) {
            (Version::From(_), Some(Reply::ConditionFailed { version })) => version == expected,
            (version, _) => version.may_be(expected),
        },
        _ => true,
    };
    if let Some(Reply::ConditionFailed { .. }) = reply {
        return (!holds).then(|| see(state, told)).flatten();
    }
    let value = match call {
        Call::Read | Call::Outcome => return None,
        Call::Put(value) => Some(value),
        Call::Delete => None,
        Call::Cas { new, .. } => new,
        Call::Increment(by) => Some(state.value.unwrap_or(0).checked_add(by)?),
    };
    if let Some(Reply::Written { number: Some(number), .. }) = reply
        && value != Some(number)
    {
        return None;
    }
    // P6: every record lies above all that came before it.
    let version = match told.is_zero() {
        true => Version::From(state.version.stamp()),
        false => Version::Is(told),
    };
    let rises = told.is_zero() || told > state.version.stamp();
    (holds && rises).then_some(State { value, version, ..*state })
}

/// The state after somebody was told its version.
fn see(state: &State, told: Stamp) -> Option<State> {
    match told.is_zero() {
        true => Some(*state),
        false => state.version.may_be(told).then_some(State { version: Version::Is(told), ..*state }),
    }
}

/// The events of one key as the search takes them, up to time `until`: what had not returned by then is unknown. An unknown write that
/// nothing can have depended on is left out: an order with it is as good without it, and each one left in doubles the search.
pub(crate) fn intervals(events: &[Event], until: u64) -> Vec<Interval<Operation>> {
    let serial_from = serial_from(events);
    let named: BTreeMap<Stamp, Option<Value>> = events.iter().filter_map(Event::naming).collect();
    let begun: Vec<&Event> = events.iter().filter(|e| e.invoked_at <= until && !e.is_failed()).collect();
    let mut intervals = Vec::new();
    for event in &begun {
        let reply = event.reply().filter(|(at, _)| *at <= until && event.promise != Promise::Weak);
        if reply.is_none() {
            let written = match event.call {
                Call::Read => continue,
                Call::Put(value) | Call::Cas { new: Some(value), .. } => Some(value),
                _ => None,
            };
            if written.is_some_and(|value| !begun.iter().any(|e| observes(e, value, &named))) {
                continue;
            }
        }
        let kind = match event.is_plain_write() {
            false => Kind::Serial,
            true if reply.is_some() && event.is_acknowledged_plainly() && event.invoked_at <= serial_from => {
                Kind::Plain
            }
            true => Kind::Either,
        };
        intervals.push(Interval {
            operation: Operation { call: event.call, op_id: event.op_id, reply: reply.map(|(_, r)| r), kind },
            invoked_at: event.invoked_at,
            returned_at: reply.map(|(at, _)| at),
        });
    }
    intervals
}

/// From when on the key is known to be serial at a quorum: something that prepares was answered.
fn serial_from(events: &[Event]) -> u64 {
    let answered = events.iter().filter(|e| e.turns_serial()).filter_map(|e| e.reply());
    answered.map(|(at, _)| at).min().unwrap_or(u64::MAX)
}

/// Whether the event's answer, or what it did, may have depended on this value having been there. `named`: the values of known versions.
fn observes(event: &Event, value: Value, named: &BTreeMap<Stamp, Option<Value>>) -> bool {
    let is_of = |version: Stamp| named.get(&version).is_none_or(|named| *named == Some(value));
    match (event.call, event.reply().map(|(_, reply)| reply)) {
        (_, Some(Reply::Read { value: read, .. })) => read == Some(value),
        (_, Some(Reply::ConditionFailed { version })) => is_of(version),
        (Call::Cas { expect: Expect::Value(expected), .. }, _) => expected == value,
        (Call::Cas { expect: Expect::Version(expected), .. }, _) => is_of(expected),
        (Call::Increment(by), Some(Reply::Written { number: Some(number), .. })) => {
            value.checked_add(by) == Some(number)
        }
        (Call::Increment(_), _) => true,
        _ => false,
    }
}

/// Whether plain stamps rise with their invocations.
pub(crate) fn plain_order(events: &[Event]) -> PlainOrder {
    let stamps = events.iter().filter(|e| e.is_plain_write() && !e.is_failed()).map(|e| e.op_id);
    let weak = events.iter().any(|e| e.is_plain_write() && e.promise == Promise::Weak);
    match !weak && stamps.is_sorted() {
        true => PlainOrder::RealTime,
        false => PlainOrder::Stamps,
    }
}
