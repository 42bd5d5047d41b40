//! What a set of views says together: P2 of the proposer (PROTOCOL.md 1.5) and the quorum read's judgement (1.6).

use crate::quorums::{Quorums, ReplicaSet};
use crate::stamp::{Ballot, Stamp};

use super::view::{RecordView, View};

/// Where the current record stands in the views.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Current {
    /// The number of a replica that showed it.
    pub replica: usize,
    /// Whether it is that replica's pending rather than its record.
    pub pending: bool,
    /// Its ballot; zero: a plain record, or absent.
    pub ballot: Ballot,
    /// Its stamp.
    pub stamp: Stamp,
}

impl Current {
    /// The record's view in the views that it was found in.
    pub fn find<'a>(&self, views: &'a [(usize, View)]) -> &'a RecordView {
        let (_, view) = views.iter().find(|(replica, _)| *replica == self.replica).expect("found in these views");
        match (&view.pending, self.pending) {
            (Some(pending), true) => &pending.record,
            _ => &view.record,
        }
    }
}

/// P2: the current record, and whether it is stable, i.e. need not be proposed again before an answer is drawn from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Combination {
    /// `cur`.
    pub current: Current,
    /// Whether there is an A: an entry with a ballot.
    pub has_entry: bool,
    /// Whether A is a record, that is, committed somewhere.
    pub committed: bool,
    /// Who holds an entry of A's ballot; without A: who holds the current stamp as a plain record.
    pub holders: ReplicaSet,
    /// `stable`.
    pub stable: bool,
    /// Whether every view shows the current record as its record, and nothing pending: no replica needs repair.
    pub uniform: bool,
    /// The highest stamp, reach or ballot in any view: what is drawn next must lie above.
    pub seen: Stamp,
}

/// Combines the views of a quorum (replica number and view, each replica once).
///
/// # Panics
/// If there is no view.
pub fn combine(views: &[(usize, View)], quorums: &Quorums) -> Combination {
    let entry = highest_entry(views).filter(|entry| !was_dropped_in_part(entry, views));
    // A purge takes a promise and leaves the pending below it, so the pending's ballot counts by itself.
    let highest = |v: &View| {
        let pending = v.pending.as_ref().map_or(Ballot::ZERO, |p| p.ballot);
        v.highest_stamp().max(v.ballot).max(v.promised).max(pending)
    };
    let seen = views.iter().map(|(_, v)| highest(v)).max().expect("at least one view");
    let (current, committed, holders, stable) = match entry {
        Some(current) => {
            let holds =
                |v: &View| v.ballot == current.ballot || v.pending.as_ref().is_some_and(|p| p.ballot == current.ballot);
            let holders: ReplicaSet = views.iter().filter(|(_, v)| holds(v)).map(|(r, _)| *r).collect();
            let committed = !current.pending;
            (current, committed, holders, committed || quorums.is_quorum(holders))
        }
        None => {
            let current = newest_plain(views);
            let same = |v: &View| v.ballot.is_zero() && v.record.head.stamp == current.stamp;
            let holders: ReplicaSet = views.iter().filter(|(_, v)| same(v)).map(|(r, _)| *r).collect();
            // Every view's record counts here, also one with a ballot: a tombstone dropped in part is a difference.
            let stable = views.iter().all(|(_, v)| v.record.head.stamp == current.stamp);
            (current, false, holders, stable)
        }
    };
    let uniform = views
        .iter()
        .all(|(_, v)| v.pending.is_none() && v.ballot == current.ballot && v.record.head.stamp == current.stamp);
    Combination { current, has_entry: entry.is_some(), committed, holders, stable, uniform, seen }
}

/// A: the record with a ballot, or the pending, of the highest ballot; a record before a pending of the same ballot.
fn highest_entry(views: &[(usize, View)]) -> Option<Current> {
    let mut best: Option<Current> = None;
    let mut offer = |found: Current| {
        let better = match &best {
            None => true,
            Some(b) => found.ballot > b.ballot || found.ballot == b.ballot && b.pending && !found.pending,
        };
        if better {
            best = Some(found);
        }
    };
    for (replica, view) in views {
        if let Some(pending) = &view.pending {
            let stamp = pending.record.head.stamp;
            offer(Current { replica: *replica, pending: true, ballot: pending.ballot, stamp });
        }
        if !view.ballot.is_zero() {
            offer(Current { replica: *replica, pending: false, ballot: view.ballot, stamp: view.record.head.stamp });
        }
    }
    best
}

/// A is a tombstone that was dropped at some replicas, and the key was written again there: the plain record counts.
fn was_dropped_in_part(entry: &Current, views: &[(usize, View)]) -> bool {
    let written_again = |v: &View| v.ballot.is_zero() && v.record.head.stamp > entry.stamp;
    !entry.pending && entry.find(views).head.tombstone && views.iter().any(|(_, v)| written_again(v))
}

fn newest_plain(views: &[(usize, View)]) -> Current {
    let plain = views.iter().filter(|(_, v)| v.ballot.is_zero());
    let newest = plain.max_by_key(|(r, v)| (v.record.head.stamp, v.record.head.reach, std::cmp::Reverse(*r)));
    match newest {
        Some((replica, v)) => {
            Current { replica: *replica, pending: false, ballot: Ballot::ZERO, stamp: v.record.head.stamp }
        }
        // Without an entry some view has ballot zero: an entry that is set aside needs a plain record above it.
        None => unreachable!("views without an entry have a plain one"),
    }
}

/// What a quorum read does with its views (1.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadJudgement {
    /// Answer with this record.
    Answer(Current),
    /// Nobody is serial and the replicas differ: write this one back to a quorum, then answer with it.
    WriteBack(Current),
    /// Only a proposer can tell.
    Propose,
}

/// Judges the views of a quorum for a quorum read.
pub fn judge_read(views: &[(usize, View)], quorums: &Quorums) -> ReadJudgement {
    let combination = combine(views, quorums);
    if views.iter().any(|(_, v)| v.is_serial()) {
        return match combination.has_entry && combination.stable {
            true => ReadJudgement::Answer(combination.current),
            false => ReadJudgement::Propose,
        };
    }
    match combination.stable {
        true => ReadJudgement::Answer(combination.current),
        false => ReadJudgement::WriteBack(combination.current),
    }
}
