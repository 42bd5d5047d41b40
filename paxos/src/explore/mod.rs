//! Proposers against real registers under random schedules: messages are lost, doubled, delayed and reordered, clocks differ, attempts overlap
//! within their windows, coordinators crash, records expire. Every history is checked for linearizability, and with a rule taken away the check
//! must fail.

mod counts;
mod history;
mod network;
mod schedule;
mod tests;

use dunlin_protocol::register::{RecordView, View};
use dunlin_protocol::{Ancestor, RecordHead, Stamp};

use crate::effect::Ending;
use crate::goal::Goal;
use crate::judge::{Case, Judgement, Reply};

/// A rule that can be taken away from the proposers of a schedule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rule {
    /// 1.2: ballots only within the window, and a retry's and a query's above the floor.
    Window,
    /// P2 looks at pendings.
    Pendings,
    /// P2 judges `stable`.
    Stable,
    /// P3 finds the operation in the lineage.
    Applied,
    /// P3 sees (X, 0).
    Never,
    /// P4.
    Reach,
    /// P5: no shortcut for an operation that may have been tried.
    Fence,
    /// P6 inherits the lineage.
    Lineage,
    /// What drops out of the lineage raises the reach.
    Dropped,
    /// 1.8: that an operation is not applied is proposed.
    Mark,
    /// 2.3: that a record expired is decided.
    Expiry,
}

/// What is seen of the views without the rule.
pub(crate) fn bend_views(broken: Option<Rule>, mut views: Vec<(usize, View)>) -> Vec<(usize, View)> {
    if broken == Some(Rule::Pendings) {
        views.iter_mut().for_each(|(_, view)| view.pending = None);
    }
    views
}

/// What is done instead of `judgement` without the rule.
pub(crate) fn bend(broken: Option<Rule>, case: &Case<'_>, judgement: Judgement) -> Judgement {
    let again = |current: &RecordView, tried| {
        Case { current, tried, goal: case.goal, op_id: case.op_id, has_entry: case.has_entry, ..*case }.judge()
    };
    let without = |never: bool| {
        let mut current = case.current.clone();
        if !never && current.head.op_id == case.op_id {
            current.head.op_id = Stamp::ZERO;
        }
        if let Some(lineage) = &mut current.lineage {
            lineage.retain(|ancestor| ancestor.op_id != case.op_id || ancestor.stamp.is_zero() != never);
        }
        current
    };
    let is_write = matches!(case.goal, Goal::Write { .. });
    match (broken, judgement) {
        (Some(Rule::Stable), Judgement::Settle { answer, .. }) if case.current.content.is_some() => {
            Judgement::Settle { answer, shortcut: true }
        }
        (Some(Rule::Applied), _) if is_write => again(&without(false), case.tried),
        (Some(Rule::Never), _) if is_write => again(&without(true), case.tried),
        (Some(Rule::Reach), _) if is_write => again(case.current, false),
        (Some(Rule::Fence), Judgement::Settle { answer, .. })
            if matches!(&answer, Reply::Fixed(Ending::ConditionFailed { .. } | Ending::NotANumber)) =>
        {
            Judgement::Settle { answer, shortcut: case.stable }
        }
        (Some(Rule::Mark), Judgement::Propose { answer, .. }) if *case.goal == Goal::Outcome => {
            Judgement::Settle { answer, shortcut: case.stable }
        }
        (Some(Rule::Expiry), Judgement::Propose { draft, answer }) if draft.op_id.is_zero() && draft.mark.is_none() => {
            match answer {
                Reply::Record => {
                    let record = RecordView::absent();
                    let ballot = Stamp::ZERO;
                    Judgement::Settle { answer: Reply::Fixed(Ending::Read { record, ballot }), shortcut: case.stable }
                }
                answer => Judgement::Settle { answer, shortcut: case.stable && !case.tried },
            }
        }
        (_, judgement) => judgement,
    }
}

/// What lineage and reach a proposal gets without the rule.
pub(crate) fn bend_lineage(
    broken: Option<Rule>,
    lineage: Vec<Ancestor>,
    reach: Stamp,
    current: &RecordHead,
) -> (Vec<Ancestor>, Stamp) {
    match broken {
        Some(Rule::Lineage) => (lineage.into_iter().filter(|ancestor| ancestor.stamp.is_zero()).collect(), reach),
        Some(Rule::Dropped) => (lineage, current.reach),
        _ => (lineage, reach),
    }
}

/// Splitmix64: a seed names a schedule for ever.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}
