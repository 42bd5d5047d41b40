//! Cuts an illegal history down to the shortest window that is illegal by itself.

use dunlin_protocol::Stamp;

use crate::history::{Call, Ending, Event, Expect, Reply, Value};

use super::register::{Register, State, intervals, plain_order};
use super::search::{Verdict, search};

/// Steps that cutting may take, each way. It only costs a wider window when they do not suffice.
const CUT_BUDGET: u64 = 1_000_000;

/// Whether the events have a legal order, as known at `until`.
pub(super) fn is_legal(events: &[Event], until: u64, budget: &mut u64) -> Verdict {
    let register = Register { plain_order: plain_order(events) };
    search(&register, State::of(None), &intervals(events, until), budget)
}

/// The events that were under way in the shortest stretch of time that no order explains.
pub(super) fn shortest_window(events: &[Event]) -> Vec<Event> {
    let until = earliest_end(events);
    let begun: Vec<Event> = events.iter().filter(|e| e.invoked_at <= until).copied().collect();
    let from = latest_start(&begun, until);
    let in_window =
        |e: &&Event| !e.is_failed() && e.returned.is_none_or(|(at, ending)| ending == Ending::Unknown || at >= from);
    begun.iter().filter(in_window).copied().map(|e| as_known_at(e, until)).collect()
}

/// The first answer that has no explanation: every longer history is illegal too, so halving finds it.
fn earliest_end(events: &[Event]) -> u64 {
    let mut times: Vec<u64> = events.iter().filter_map(|e| e.reply().map(|(at, _)| at)).collect();
    times.sort_unstable();
    times.dedup();
    let mut budget = CUT_BUDGET;
    let at = times.partition_point(|until| is_legal(events, *until, &mut budget) == Verdict::Legal);
    times.get(at).copied().unwrap_or(u64::MAX)
}

/// The latest time such that what ended since is illegal whatever the key held before.
fn latest_start(events: &[Event], until: u64) -> u64 {
    let mut times: Vec<u64> =
        events.iter().filter_map(|e| e.reply().map(|(at, _)| at)).filter(|at| *at <= until).collect();
    times.sort_unstable();
    times.dedup();
    let mut budget = CUT_BUDGET;
    let at = times.partition_point(|from| is_illegal_from_anything(events, *from, until, &mut budget));
    // The start of the whole history is illegal from the state that it really began in.
    at.checked_sub(1).and_then(|last| times.get(last)).copied().unwrap_or(0)
}

fn is_illegal_from_anything(events: &[Event], from: u64, until: u64, budget: &mut u64) -> bool {
    let (kept, dropped): (Vec<Event>, Vec<Event>) =
        events.iter().partition(|e| e.reply().is_none_or(|(at, _)| at >= from));
    let register = Register { plain_order: plain_order(events) };
    let operations = intervals(&kept, until);
    let newest = dropped.iter().filter(|e| e.is_plain_write()).map(|e| e.op_id).max().unwrap_or(Stamp::ZERO);
    let mut values = vec![None];
    values.extend(events.iter().flat_map(values_of).map(Some));
    values.sort_unstable();
    values.dedup();
    for value in values {
        for newest_plain in [Stamp::ZERO, newest] {
            let state = State { newest_plain, ..State::of(value) };
            if search(&register, state, &operations, budget) != Verdict::Illegal {
                return false;
            }
        }
    }
    true
}

/// Every value that the event speaks of.
fn values_of(event: &Event) -> impl Iterator<Item = Value> {
    let called = match event.call {
        Call::Put(value) | Call::Cas { expect: Expect::Value(value), .. } => Some(value),
        _ => None,
    };
    let new = match event.call {
        Call::Cas { new, .. } => new,
        _ => None,
    };
    let told = match event.reply() {
        Some((_, Reply::Read { value, .. })) => value,
        Some((_, Reply::Written { number, .. })) => number,
        _ => None,
    };
    // An increment started from this.
    let before = match (event.call, told) {
        (Call::Increment(by), Some(number)) => number.checked_sub(by),
        _ => None,
    };
    [called, new, told, before].into_iter().flatten()
}

fn as_known_at(event: Event, until: u64) -> Event {
    Event { returned: event.returned.filter(|(at, _)| *at <= until), ..event }
}
