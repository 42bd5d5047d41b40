//! Read repair: what an answered read does for the replicas that turned out to be behind (PROTOCOL.md 2.6). Never counted for anything.

use dunlin_protocol::register::{RecordView, RegisterRequest, View, Want};
use dunlin_protocol::{Quorums, Record};

use crate::settled::{is_behind, newest_settled, whole_in};

/// The next step of a repair.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum RepairStep {
    /// Nobody is behind, as far as the views show.
    Nothing,
    /// The record is needed as a whole from one of these.
    Fetch { holders: Vec<usize>, want: Want },
    /// Give these the record.
    Install { stale: Vec<usize>, request: RegisterRequest },
}

/// What to do next, given these views.
pub(crate) fn next_step(views: &[(usize, View)], quorums: &Quorums) -> RepairStep {
    if views.len() < 2 {
        return RepairStep::Nothing;
    }
    let current = newest_settled(views, quorums);
    if current.pending {
        // It is chosen, and its proposer's Commit is on its way.
        return RepairStep::Nothing;
    }
    let head = current.find(views).head;
    let stale: Vec<usize> =
        views.iter().filter(|(_, v)| is_behind(v, current.ballot, &head)).map(|(r, _)| *r).collect();
    if stale.is_empty() {
        return RepairStep::Nothing;
    }
    match whole_in(views, &current) {
        Some(record) => {
            RepairStep::Install { stale, request: RegisterRequest::Install { ballot: current.ballot, record } }
        }
        None => {
            let holds = |v: &View| v.ballot == current.ballot && v.record.head.stamp == current.stamp;
            let holders = views.iter().filter(|(_, v)| holds(v)).map(|(r, _)| *r).collect();
            RepairStep::Fetch { holders, want: Want::ALL }
        }
    }
}

/// Notes in the views that these replicas were given the record, so that it is not sent to them twice.
pub(crate) fn note_installed(views: &mut [(usize, View)], stale: &[usize], request: &RegisterRequest) {
    let RegisterRequest::Install { ballot, record } = request else { return };
    for (_, view) in views.iter_mut().filter(|(r, _)| stale.contains(r)) {
        let pending = view.pending.take().filter(|p| p.ballot > *ballot);
        *view = View { record: head_of(record), ballot: *ballot, promised: view.promised, pending };
    }
}

fn head_of(record: &Record) -> RecordView {
    RecordView { head: record.head(), lineage: None, content: None }
}
