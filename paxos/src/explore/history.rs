//! Is there one legal order? A search after Wing and Gong with a memory of what was tried.

use std::collections::BTreeSet;

use bytes::Bytes;

/// What an operation did or saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Read this.
    Read(Option<Bytes>),
    /// Wrote, or may have.
    Write { condition: Expected, change: Change, number: Option<i64> },
    /// Found this, which does not meet the condition.
    Failed { condition: Expected, current: Option<Bytes> },
    /// Found no number, or one that cannot be added to.
    NotANumber { by: i64 },
    /// Learned that the operation of this number was applied.
    Applied(usize),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Expected {
    Anything,
    Absent,
    Value(Bytes),
    /// The version with this value: where it fails the value may be the same.
    Version(Option<Bytes>),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Change {
    Put { value: Bytes, expires: bool },
    Delete,
    Add(i64),
}

/// An operation between its invocation and its answer.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) id: usize,
    pub(super) invoked: u64,
    /// `u64::MAX`: never answered.
    pub(super) answered: u64,
    /// Must have taken effect.
    pub(super) must: bool,
    pub(super) step: Step,
}

/// The register: its value, and whether it may expire at any time.
type State = (Option<Bytes>, bool);

/// Whether the events have an order that a single register could have shown.
pub(super) fn is_linearizable(events: &[Event]) -> bool {
    assert!(events.len() <= 32, "the search keeps a 32-bit mask");
    let must = events.iter().enumerate().filter(|(_, e)| e.must).fold(0u32, |mask, (i, _)| mask | 1 << i);
    Search { events, must, tried: BTreeSet::new() }.search(0, (None, false))
}

struct Search<'a> {
    events: &'a [Event],
    must: u32,
    tried: BTreeSet<(u32, State)>,
}

impl Search<'_> {
    fn search(&mut self, done: u32, state: State) -> bool {
        if done & self.must == self.must {
            return true;
        }
        if !self.tried.insert((done, state.clone())) {
            return false;
        }
        if state.1 && self.search(done, (None, false)) {
            return true;
        }
        for (i, event) in self.events.iter().enumerate() {
            let left = |(j, other): (usize, &Event)| done >> j & 1 == 0 && other.answered < event.invoked;
            if done >> i & 1 == 1 || self.events.iter().enumerate().any(left) {
                continue;
            }
            if let Some(next) = self.step(done, &state, &event.step)
                && self.search(done | 1 << i, next)
            {
                return true;
            }
        }
        false
    }

    fn step(&self, done: u32, state: &State, step: &Step) -> Option<State> {
        let (value, expires) = state;
        let same = state.clone();
        match step {
            Step::Read(seen) => (seen == value).then_some(same),
            Step::Applied(id) => {
                let applied = |(j, event): (usize, &Event)| event.id == *id && done >> j & 1 == 1;
                self.events.iter().enumerate().any(applied).then_some(same)
            }
            Step::Failed { condition, current } => {
                let holds = match condition {
                    Expected::Version(_) => false,
                    condition => condition.holds(value),
                };
                (current == value && !holds).then_some(same)
            }
            Step::NotANumber { by } => (value.is_some() && add(value, *by).is_none()).then_some(same),
            Step::Write { condition, change, number } => {
                if !condition.holds(value) {
                    return None;
                }
                match change {
                    Change::Put { value, expires } => Some((Some(value.clone()), *expires)),
                    Change::Delete => Some((None, false)),
                    Change::Add(by) => {
                        let sum = add(value, *by).filter(|sum| number.is_none_or(|number| number == *sum))?;
                        Some((Some(sum.to_string().into()), *expires))
                    }
                }
            }
        }
    }
}

impl Expected {
    fn holds(&self, value: &Option<Bytes>) -> bool {
        match self {
            Self::Anything => true,
            Self::Absent => value.is_none(),
            Self::Value(expected) => value.as_ref() == Some(expected),
            Self::Version(expected) => expected.is_some() && value == expected,
        }
    }
}

fn add(value: &Option<Bytes>, by: i64) -> Option<i64> {
    let number = match value {
        None => 0,
        Some(bytes) => std::str::from_utf8(bytes).ok()?.parse::<i64>().ok()?,
    };
    number.checked_add(by)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(value: &'static str) -> Step {
        let change = Change::Put { value: Bytes::from(value), expires: false };
        Step::Write { condition: Expected::Anything, change, number: None }
    }

    fn read(value: Option<&'static str>) -> Step {
        Step::Read(value.map(Bytes::from))
    }

    fn check(steps: &[(u64, u64, bool, Step)], want: bool) {
        let event = |(id, (invoked, answered, must, step)): (usize, &(u64, u64, bool, Step))| Event {
            id,
            invoked: *invoked,
            answered: *answered,
            must: *must,
            step: step.clone(),
        };
        let events: Vec<Event> = steps.iter().enumerate().map(event).collect();
        assert_eq!(is_linearizable(&events), want, "{events:#?}");
    }

    #[test]
    fn the_checker_tells_legal_from_illegal() {
        let never = u64::MAX;
        let add = |number| Step::Write { condition: Expected::Anything, change: Change::Add(1), number };
        check(&[(1, 2, true, put("a")), (3, 4, true, read(Some("a")))], true);
        check(&[(1, 2, true, put("a")), (3, 4, true, read(None))], false);
        check(&[(1, 4, true, put("a")), (2, 3, true, read(None))], true);
        check(&[(1, never, false, put("a")), (2, 3, true, read(Some("a"))), (4, 5, true, read(None))], false);
        check(&[(1, never, false, put("a")), (2, 3, true, read(None)), (4, 5, true, read(Some("a")))], true);
        check(&[(1, 5, true, add(Some(1))), (2, 4, true, add(Some(1)))], false);
        check(&[(1, 5, true, add(Some(1))), (2, 4, true, add(Some(2)))], true);
        check(&[(1, never, false, put("a")), (2, 3, true, Step::Applied(0)), (4, 5, true, read(None))], false);
        let failed = Step::Failed { condition: Expected::Absent, current: None };
        check(&[(1, 2, true, failed)], false);
    }
}
