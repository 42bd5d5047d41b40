//! The search for a legal order: Wing and Gong (1993), with Lowe's memory of what was tried (2017). Iterative, so its depth costs no stack.

use std::hash::Hash;

/// A sequential object: which answers are right, and what they lead to.
pub trait Model {
    /// What the object may be in.
    type State: Clone + Eq + Hash;
    /// An operation with what was answered, if anything.
    type Operation;

    /// The state in which `operation` may leave `state`, by number from 0; none: there are no more. An operation whose answer does not fit
    /// has none at all.
    fn successor(&self, state: &Self::State, operation: &Self::Operation, choice: usize) -> Option<Self::State>;
}

/// An operation and when it ran.
#[derive(Clone, Copy, Debug)]
pub struct Interval<O> {
    /// What ran.
    pub operation: O,
    /// It takes effect after this.
    pub invoked_at: u64,
    /// And before this; none: at any time after, or never.
    pub returned_at: Option<u64>,
}

/// What the search found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// A legal order.
    Legal,
    /// That there is none.
    Illegal,
    /// Nothing: the budget was used up.
    Undecided,
}

/// What was done and what it led to, as far as it was tried.
#[expect(clippy::disallowed_types, reason = "it is never iterated")]
type Tried<S> = std::collections::HashSet<(Box<[u64]>, S)>;

/// A point of the list that the search walks.
#[derive(Clone, Copy)]
enum Point {
    Call(usize),
    Return,
}

/// Calls and returns in order of time, doubly linked, so that an operation is taken out and put back in constant time (Lowe). Index 0 is the
/// head and the end.
struct Points {
    kind: Vec<Point>,
    next: Vec<usize>,
    previous: Vec<usize>,
    /// For each operation: its call and, where it has one, its return.
    of: Vec<(usize, Option<usize>)>,
}

impl Points {
    fn new<O>(intervals: &[Interval<O>]) -> Self {
        // At the same time calls come before returns: such operations overlap.
        let mut times: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * intervals.len());
        for (i, interval) in intervals.iter().enumerate() {
            times.push((interval.invoked_at, false, i));
            times.extend(interval.returned_at.map(|at| (at, true, i)));
        }
        times.sort_unstable();
        let len = times.len() + 1;
        let mut this = Self {
            kind: vec![Point::Return; len],
            next: (1..=len).map(|i| i % len).collect(),
            previous: (0..len).map(|i| (i + len - 1) % len).collect(),
            of: vec![(0, None); intervals.len()],
        };
        for (i, (_, is_return, operation)) in times.into_iter().enumerate() {
            if is_return {
                this.of[operation].1 = Some(i + 1);
            } else {
                this.kind[i + 1] = Point::Call(operation);
                this.of[operation].0 = i + 1;
            }
        }
        this
    }

    fn unlink(&mut self, point: usize) {
        let (before, after) = (self.previous[point], self.next[point]);
        self.next[before] = after;
        self.previous[after] = before;
    }

    fn relink(&mut self, point: usize) {
        let (before, after) = (self.previous[point], self.next[point]);
        self.next[before] = point;
        self.previous[after] = point;
    }

    fn take_out(&mut self, operation: usize) {
        let (call, back) = self.of[operation];
        self.unlink(call);
        if let Some(back) = back {
            self.unlink(back);
        }
    }

    fn put_back(&mut self, operation: usize) {
        let (call, back) = self.of[operation];
        if let Some(back) = back {
            self.relink(back);
        }
        self.relink(call);
    }
}

/// Looks for an order of `intervals` that keeps real time and that `model` allows from `initial` on. Operations that never returned may be
/// left out. Gives up after `budget` steps.
pub fn search<M: Model>(
    model: &M,
    initial: M::State,
    intervals: &[Interval<M::Operation>],
    budget: &mut u64,
) -> Verdict {
    let mut points = Points::new(intervals);
    let mut left = intervals.iter().filter(|i| i.returned_at.is_some()).count();
    let mut done = vec![0u64; intervals.len().div_ceil(64)];
    let mut tried = Tried::<M::State>::new();
    let mut taken: Vec<(usize, usize, M::State)> = Vec::new();
    let mut state = initial;
    let (mut point, mut choice) = (points.next[0], 0);
    while left > 0 {
        if *budget == 0 {
            return Verdict::Undecided;
        }
        *budget -= 1;
        // The return of an operation that is not in the order yet: nothing that was called later may come before it. The end of the list
        // is as good a reason to go back.
        let Point::Call(operation) = points.kind[point] else {
            let Some((operation, last_choice, before)) = taken.pop() else { return Verdict::Illegal };
            points.put_back(operation);
            done[operation / 64] &= !(1 << (operation % 64));
            left += usize::from(intervals[operation].returned_at.is_some());
            state = before;
            (point, choice) = (points.of[operation].0, last_choice + 1);
            continue;
        };
        let Some(after) = model.successor(&state, &intervals[operation].operation, choice) else {
            (point, choice) = (points.next[point], 0);
            continue;
        };
        done[operation / 64] |= 1 << (operation % 64);
        if !tried.insert((done.clone().into_boxed_slice(), after.clone())) {
            done[operation / 64] &= !(1 << (operation % 64));
            choice += 1;
            continue;
        }
        points.take_out(operation);
        left -= usize::from(intervals[operation].returned_at.is_some());
        taken.push((operation, choice, std::mem::replace(&mut state, after)));
        (point, choice) = (points.next[0], 0);
    }
    Verdict::Legal
}
