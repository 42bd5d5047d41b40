//! PROTOCOL.md 1.11 as a Wing-Gong search: is there one legal order of a history in which plain (last-writer-wins) writes and serial
//! operations are mixed?

use std::collections::BTreeSet;

use dunlin_protocol::Stamp;

use super::coordinator::{Answer, Task};

/// An operation of the history as the client saw it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) task: Task,
    pub(crate) status: Status,
    /// Zero until it is invoked.
    pub(crate) op_id: Stamp,
    /// The operations that were answered before this one was invoked, as bits.
    pub(crate) after: u64,
    /// It was acknowledged by plain writes alone.
    pub(crate) plainly: bool,
    /// The key was serial at a quorum when it was invoked, and no replica of it was dropped since (C3).
    pub(crate) on_serial_key: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Status {
    New,
    Running,
    Done(Answer),
    Unknown,
}

/// Whether the history has a legal order.
///
/// `every_write_counts`: plain stamps are in real-time order (there is one plain writer), so the whole mixed history is linearizable. Otherwise
/// a write acknowledged plainly, and invoked before the key was serial at a quorum, takes effect only above every plain stamp before it.
pub(crate) fn is_legal(history: &[Entry], every_write_counts: bool) -> bool {
    let bit = |i: usize| 1u64 << i;
    let (mut must, mut may, mut never, mut applied) = (0u64, 0u64, 0u64, 0u64);
    for (i, entry) in history.iter().enumerate() {
        match (entry.task, entry.status) {
            (Task::Collect, _) => {}
            (Task::Outcome(of), Status::Done(Answer::NotApplied)) => never |= bit(of),
            (Task::Outcome(of), Status::Done(_)) => {
                applied |= bit(of);
                must |= bit(i);
            }
            (Task::Outcome(_), _) => {}
            (_, Status::Done(Answer::NotApplied)) => never |= bit(i),
            (_, Status::Done(_)) => must |= bit(i),
            (Task::Read, _) | (_, Status::New) => {}
            (_, Status::Running | Status::Unknown) => may |= bit(i),
        }
    }
    if never & applied != 0 {
        return false;
    }
    for (i, entry) in history.iter().enumerate() {
        let condition_failed = matches!(entry.status, Status::Done(Answer::ConditionFailed { .. }));
        if never & bit(i) != 0 && !condition_failed {
            if matches!(entry.status, Status::Done(answer) if answer != Answer::NotApplied) {
                return false;
            }
            may &= !bit(i);
        }
        if applied & bit(i) != 0 {
            if condition_failed {
                return false;
            }
            may &= !bit(i);
            must |= bit(i);
        }
    }
    let left_out = !(must | may);
    Search { history, every_write_counts, must, tried: BTreeSet::new() }.extend(State {
        done: left_out,
        value: 0,
        newest_plain: Stamp::ZERO,
    })
}

/// What an order so far leads to. Operations that are left out of the order count as done from the start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    done: u64,
    value: u32,
    newest_plain: Stamp,
}

struct Search<'a> {
    history: &'a [Entry],
    every_write_counts: bool,
    must: u64,
    tried: BTreeSet<State>,
}

impl Search<'_> {
    /// Whether the order that led to `state` can be completed. No deeper than the history is long.
    fn extend(&mut self, state: State) -> bool {
        if state.done & self.must == self.must {
            return true;
        }
        if !self.tried.insert(state) {
            return false;
        }
        for (i, entry) in self.history.iter().enumerate() {
            // What is left out counts as done, and so never holds anything back.
            if state.done >> i & 1 == 1 || entry.after & !state.done != 0 {
                continue;
            }
            let done = state.done | 1 << i;
            for value_after in self.steps(entry, &state).into_iter().flatten() {
                if self.extend(State { done, ..value_after }) {
                    return true;
                }
            }
        }
        false
    }

    /// The states in which `entry` may leave `state`: up to two.
    fn steps(&self, entry: &Entry, state: &State) -> [Option<State>; 2] {
        let becomes = |value: u32| [Some(State { value, ..*state }), None];
        let only_if = |holds: bool, value: u32| if holds { becomes(value) } else { [None, None] };
        match (entry.task, entry.status) {
            (Task::Read, Status::Done(Answer::Value(read))) => only_if(read == state.value, state.value),
            (Task::Swap(new), Status::Done(Answer::Swapped { before: Some(before) })) => {
                only_if(before == state.value, new)
            }
            (Task::Swap(new), _) => becomes(new),
            (Task::Cas { expect, .. }, Status::Done(Answer::ConditionFailed { current })) => {
                only_if(current == state.value && expect != state.value, state.value)
            }
            (Task::Cas { expect, new }, _) => only_if(expect == state.value, new),
            (Task::Outcome(of), _) => only_if(state.done >> of & 1 == 1, state.value),
            (Task::Write(value), _) if self.every_write_counts => becomes(value),
            (Task::Write(value), status) => {
                let newer = entry.op_id > state.newest_plain;
                let as_plain = newer.then_some(State { value, newest_plain: entry.op_id, ..*state });
                match status {
                    Status::Done(_) if entry.plainly && !entry.on_serial_key => [as_plain.or(Some(*state)), None],
                    // It may have ended on the serial path, whatever its stamp.
                    _ => [as_plain, Some(State { value, ..*state })],
                }
            }
            _ => [None, None],
        }
    }
}
