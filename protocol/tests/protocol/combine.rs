//! P2 of PROTOCOL.md 1.5 and the judgement of 1.6, clause by clause.

use dunlin_protocol::register::{
    Combination, Current, PendingView, ReadJudgement, RecordView, View, combine, judge_read,
};
use dunlin_protocol::{Ballot, Content, Millis, Quorums, Record, ReplicaSet, Stamp};
use proptest::prelude::*;

fn at(millis: u64) -> Stamp {
    match millis {
        0 => Stamp::ZERO,
        millis => Stamp::new(Millis(millis), 0, 1),
    }
}

fn of(replicas: &[usize]) -> ReplicaSet {
    replicas.iter().copied().collect()
}

fn record(stamp: u64, content: Content) -> RecordView {
    let record = match stamp {
        0 => Record::absent(),
        stamp => Record::plain(at(stamp), content, Millis::NONE),
    };
    record.into()
}

/// A view of a value of this stamp (0: absent) and ballot, promised as high as the ballot.
fn view(stamp: u64, ballot: u64) -> View {
    View { record: record(stamp, Content::value(&b"v"[..])), ballot: at(ballot), promised: at(ballot), pending: None }
}

fn grave(stamp: u64, ballot: u64) -> View {
    View { record: record(stamp, Content::Tombstone), ..view(stamp, ballot) }
}

fn promised(ballot: u64, view: View) -> View {
    View { promised: at(ballot), ..view }
}

fn pending(ballot: u64, stamp: u64, view: View) -> View {
    let record = record(stamp, Content::value(&b"p"[..]));
    View { promised: at(ballot), pending: Some(PendingView { ballot: at(ballot), record }), ..view }
}

fn numbered(views: &[View]) -> Vec<(usize, View)> {
    views.iter().cloned().enumerate().collect()
}

/// What is expected of a combination: (replica, pending, ballot, stamp) of the current record, then entry, stable, holders, uniform.
type Expected<'a> = ((usize, bool, u64, u64), bool, bool, &'a [usize], bool);

fn check(clause: &str, views: &[View], expected: Expected<'_>) -> Combination {
    let ((replica, pending, ballot, stamp), has_entry, stable, holders, uniform) = expected;
    let views = numbered(views);
    let found = combine(&views, &Quorums::majority(3));
    let current = Current { replica, pending, ballot: at(ballot), stamp: at(stamp) };
    assert_eq!(found.current, current, "{clause}");
    assert_eq!(
        (found.has_entry, found.committed, found.stable, found.holders, found.uniform),
        (has_entry, has_entry && !pending, stable, of(holders), uniform),
        "{clause}"
    );
    assert_eq!(found.current.find(&views).head.stamp, at(stamp), "{clause}");
    found
}

#[test]
fn p2_with_an_entry() {
    let old = || view(3, 0);
    for (clause, views, expected) in [
        ("a record everywhere", vec![view(6, 5), view(6, 5)], ((0, false, 5, 6), true, true, &[0, 1][..], true)),
        ("a record somewhere is committed", vec![old(), view(6, 5)], ((1, false, 5, 6), true, true, &[1], false)),
        (
            "a pending at a quorum",
            vec![pending(5, 6, old()), pending(5, 6, old())],
            ((0, true, 5, 6), true, true, &[0, 1], false),
        ),
        ("a pending below a quorum", vec![old(), pending(5, 6, old())], ((1, true, 5, 6), true, false, &[1], false)),
        (
            "pending here, a record there",
            vec![pending(5, 6, old()), view(6, 5)],
            ((1, false, 5, 6), true, true, &[0, 1], false),
        ),
        (
            "the highest ballot, whatever the stamps",
            vec![view(9, 4), view(6, 5)],
            ((1, false, 5, 6), true, true, &[1], false),
        ),
        (
            "a higher pending over a record",
            vec![view(6, 5), pending(7, 8, view(6, 5))],
            ((1, true, 7, 8), true, false, &[1], false),
        ),
        (
            "an entry over a plain record of a higher stamp",
            vec![view(9, 0), view(6, 5)],
            ((1, false, 5, 6), true, true, &[1], false),
        ),
        (
            "a lower pending beside it: no repair is done yet",
            vec![view(6, 5), pending(4, 5, old())],
            ((0, false, 5, 6), true, true, &[0], false),
        ),
        ("a tombstone is a record", vec![grave(6, 5), old()], ((0, false, 5, 6), true, true, &[0], false)),
        ("a settled absence has stamp 0", vec![view(0, 5), view(0, 5)], ((0, false, 5, 0), true, true, &[0, 1], true)),
    ] {
        check(clause, &views, expected);
    }
}

#[test]
fn p2_without_an_entry() {
    for (clause, views, expected) in [
        ("absent everywhere", vec![view(0, 0), view(0, 0)], ((0, false, 0, 0), false, true, &[0, 1][..], true)),
        ("the same everywhere", vec![view(3, 0), view(3, 0)], ((0, false, 0, 3), false, true, &[0, 1], true)),
        ("the newest, if they differ", vec![view(3, 0), view(4, 0)], ((1, false, 0, 4), false, false, &[1], false)),
        ("somewhere absent", vec![view(3, 0), view(0, 0)], ((0, false, 0, 3), false, false, &[0], false)),
        (
            "promises are no entries",
            vec![promised(8, view(3, 0)), promised(8, view(3, 0))],
            ((0, false, 0, 3), false, true, &[0, 1], true),
        ),
    ] {
        check(clause, &views, expected);
    }
}

#[test]
fn p2_sets_aside_a_tombstone_that_was_dropped_in_part() {
    for (clause, views, expected) in [
        ("written again above it", vec![grave(6, 5), view(9, 0)], ((1, false, 0, 9), false, false, &[1][..], false)),
        ("promised there", vec![grave(6, 5), promised(12, view(9, 0))], ((1, false, 0, 9), false, false, &[1], false)),
        (
            "with a lower pending there, which is set aside too",
            vec![grave(6, 5), pending(4, 7, view(9, 0))],
            ((1, false, 0, 9), false, false, &[1], false),
        ),
        ("nothing written there", vec![grave(6, 5), view(0, 0)], ((0, false, 5, 6), true, true, &[0], false)),
        ("older written there", vec![grave(6, 5), view(4, 0)], ((0, false, 5, 6), true, true, &[0], false)),
        ("a value is never set aside", vec![view(6, 5), view(9, 0)], ((0, false, 5, 6), true, true, &[0], false)),
        (
            "a serial record above it is just lower",
            vec![grave(6, 5), view(9, 4)],
            ((0, false, 5, 6), true, true, &[0], false),
        ),
        (
            "a pending above the tombstone is A",
            vec![pending(7, 8, grave(6, 5)), view(9, 0)],
            ((0, true, 7, 8), true, false, &[0], false),
        ),
    ] {
        check(clause, &views, expected);
    }
}

#[test]
fn quorums_of_five_and_joint_ones_decide_what_is_stable() {
    let p = || pending(5, 6, view(3, 0));
    let views = [(0, p()), (1, p()), (2, view(3, 0))];
    assert!(!combine(&views, &Quorums::majority(5)).stable);
    assert!(combine(&views, &Quorums::majority(3)).stable);
    let joint = Quorums::joint(of(&[0, 1, 2]), of(&[2, 3, 4]));
    let old_only = [(0, p()), (1, p()), (2, view(3, 0)), (3, view(3, 0))];
    assert!(!combine(&old_only, &joint).stable);
    let both = [(0, p()), (1, p()), (2, p()), (3, p())];
    assert!(combine(&both, &joint).stable);
}

#[test]
fn what_was_seen_covers_every_stamp_and_ballot() {
    for (views, highest) in [
        (vec![view(3, 0), view(9, 0)], 9),
        (vec![view(3, 0), promised(9, view(3, 0))], 9),
        (vec![view(3, 2), pending(5, 9, view(3, 2))], 9),
        (vec![view(3, 2), pending(9, 5, view(3, 2))], 9),
        (vec![View { promised: Ballot::ZERO, ..view(3, 9) }, view(3, 0)], 9),
        (vec![View { promised: Ballot::ZERO, ..pending(9, 5, view(3, 2)) }], 9),
    ] {
        assert_eq!(combine(&numbered(&views), &Quorums::majority(3)).seen, at(highest), "{views:?}");
    }
    let mut hidden = view(3, 2);
    hidden.record.head.reach = at(20);
    assert_eq!(combine(&[(0, hidden)], &Quorums::majority(3)).seen, at(20), "reach");
}

#[test]
fn quorum_reads_answer_write_back_or_propose() {
    let plain = |replica, stamp| Current { replica, pending: false, ballot: Ballot::ZERO, stamp: at(stamp) };
    let serial = |replica, pending, ballot, stamp| Current { replica, pending, ballot: at(ballot), stamp: at(stamp) };
    let old = || view(3, 0);
    for (clause, views, expected) in [
        ("plain, all the same", vec![view(3, 0), view(3, 0)], ReadJudgement::Answer(plain(0, 3))),
        ("plain, absent", vec![view(0, 0), view(0, 0)], ReadJudgement::Answer(plain(0, 0))),
        ("plain, they differ", vec![view(3, 0), view(4, 0)], ReadJudgement::WriteBack(plain(1, 4))),
        ("a promise somewhere, no entry", vec![promised(8, old()), old()], ReadJudgement::Propose),
        ("a promise everywhere, no entry", vec![promised(8, old()), promised(8, old())], ReadJudgement::Propose),
        ("a record, committed", vec![view(6, 5), old()], ReadJudgement::Answer(serial(0, false, 5, 6))),
        (
            "a pending at a quorum",
            vec![pending(5, 6, old()), pending(5, 6, old())],
            ReadJudgement::Answer(serial(0, true, 5, 6)),
        ),
        ("a pending somewhere", vec![view(6, 5), pending(7, 8, view(6, 5))], ReadJudgement::Propose),
        ("a tombstone dropped in part", vec![grave(6, 5), view(9, 0)], ReadJudgement::Propose),
        (
            "promised above, but committed",
            vec![promised(9, view(6, 5)), view(6, 5)],
            ReadJudgement::Answer(serial(0, false, 5, 6)),
        ),
    ] {
        assert_eq!(judge_read(&numbered(&views), &Quorums::majority(3)), expected, "{clause}");
    }
}

fn any_view() -> impl Strategy<Value = View> {
    let pending = prop::option::of((0u64..5, 0u64..5, any::<bool>()));
    (0u64..5, 0u64..5, 0u64..5, any::<bool>(), pending).prop_map(|(stamp, ballot, promised, tombstone, pending)| {
        let content = |tombstone| if tombstone { Content::Tombstone } else { Content::value(&b"v"[..]) };
        let pending = pending.map(|(ballot, stamp, tombstone)| PendingView {
            ballot: at(ballot),
            record: record(stamp, content(tombstone)),
        });
        View { record: record(stamp, content(tombstone)), ballot: at(ballot), promised: at(promised), pending }
    })
}

proptest! {
    /// Peers may show anything, also what no sound replica holds: there is always a current record to be found, and no panic.
    #[test]
    fn any_views_combine(views in prop::collection::vec(any_view(), 1..6), replicas in 1usize..7) {
        let views = numbered(&views);
        let quorums = Quorums::majority(replicas);
        let combination = combine(&views, &quorums);
        let current = combination.current;
        prop_assert_eq!(current.find(&views).head.stamp, current.stamp);
        prop_assert!(combination.seen >= current.stamp && combination.seen >= current.ballot);
        prop_assert!(!combination.uniform || combination.stable);
        match judge_read(&views, &quorums) {
            ReadJudgement::Answer(of) => prop_assert!(combination.stable && of == current),
            ReadJudgement::WriteBack(of) => prop_assert!(!combination.has_entry && of == current),
            ReadJudgement::Propose => prop_assert!(views.iter().any(|(_, v)| v.is_serial())),
        }
    }
}
