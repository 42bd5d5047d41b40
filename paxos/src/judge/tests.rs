//! One table a rule.

use bytes::Bytes;
use dunlin_protocol::{Ancestor, Record};

use super::*;

fn at(wall: u64) -> Stamp {
    Stamp::new(Millis(wall), 0, 1)
}

const OP: u64 = 500;
const NOW: Millis = Millis(1000);

/// A record made by the operation 300 at 310, over the operation 200 at 210; 100 is hidden below it.
fn record(value: &str) -> RecordView {
    Record {
        stamp: at(310),
        op_id: at(300),
        reach: at(100),
        expires_at: Millis::NONE,
        lineage: vec![Ancestor { op_id: at(200), stamp: at(210) }],
        content: Content::value(value.to_owned()),
    }
    .into()
}

fn with(value: &str, change: impl FnOnce(&mut RecordView)) -> RecordView {
    let mut record = record(value);
    change(&mut record);
    record
}

fn remembers(op: u64, stamp: Stamp) -> RecordView {
    with("v", |r| r.lineage.as_mut().expect("whole").push(Ancestor { op_id: at(op), stamp }))
}

fn made_by_op(value: &str) -> RecordView {
    with(value, |r| r.head.op_id = at(OP))
}

fn expired(value: &str) -> RecordView {
    with(value, |r| r.head.expires_at = NOW)
}

fn hiding_op(value: &str) -> RecordView {
    with(value, |r| r.head.reach = at(OP))
}

fn no_content(value: &str) -> RecordView {
    with(value, |r| r.content = None)
}

fn put(value: &str) -> Goal {
    write(
        None,
        Mutation::Put { value: Bytes::from(value.to_owned()), attributes: Attributes::default(), ttl_millis: 50 },
    )
}

fn cas(condition: Condition) -> Goal {
    let value = Bytes::from("new");
    write(Some(condition), Mutation::Put { value, attributes: Attributes::default(), ttl_millis: 0 })
}

fn add(by: i64) -> Goal {
    write(None, Mutation::Increment { by })
}

fn write(condition: Option<Condition>, mutation: Mutation) -> Goal {
    Goal::Write { condition, mutation }
}

struct Given {
    tried: bool,
    has_entry: bool,
    stable: bool,
}

const STABLE: Given = Given { tried: false, has_entry: true, stable: true };
const UNSTABLE: Given = Given { stable: false, ..STABLE };
const TRIED: Given = Given { tried: true, ..STABLE };
const PLAIN: Given = Given { has_entry: false, ..STABLE };

#[track_caller]
fn check(goal: &Goal, current: &RecordView, given: Given, want: Judgement) {
    let Given { tried, has_entry, stable } = given;
    let case = Case { goal, op_id: at(OP), tried, current, has_entry, stable, now: NOW };
    assert_eq!(case.judge(), want);
}

fn settle(ending: Ending, shortcut: bool) -> Judgement {
    Judgement::Settle { answer: Reply::Fixed(ending), shortcut }
}

fn read(shortcut: bool) -> Judgement {
    Judgement::Settle { answer: Reply::Record, shortcut }
}

fn own(content: Content, expires_at: Millis, number: Option<i64>) -> Judgement {
    let draft = Draft { op_id: at(OP), content, expires_at, mark: None };
    Judgement::Propose { draft, answer: Reply::Own { number } }
}

fn ends(answer: Reply) -> Judgement {
    let draft = Draft { op_id: Stamp::ZERO, content: Content::Tombstone, expires_at: Millis::NONE, mark: None };
    Judgement::Propose { draft, answer }
}

fn applied(version: Stamp, number: Option<i64>, expires_at: Millis) -> Ending {
    Ending::Applied { version, number, expires_at }
}

fn failed(current: Stamp) -> Ending {
    Ending::ConditionFailed { current }
}

#[test]
fn p3_an_operation_is_applied_once() {
    let expires = Millis(OP + 50);
    check(&put("v"), &made_by_op("v"), STABLE, settle(applied(at(310), None, expires), true));
    check(&put("v"), &made_by_op("v"), UNSTABLE, settle(applied(at(310), None, expires), false));
    check(&put("v"), &remembers(OP, at(510)), STABLE, settle(applied(at(510), None, expires), true));
    check(&put("v"), &remembers(OP, at(510)), UNSTABLE, settle(applied(at(510), None, expires), false));
    // Also when the condition does not hold any more, and when it may have been tried.
    let version = Condition::Version(at(7));
    check(&cas(version), &made_by_op("w"), TRIED, settle(applied(at(310), None, Millis::NONE), true));
    check(&add(2), &made_by_op("42"), STABLE, settle(applied(at(310), Some(42), Millis::NONE), true));
    check(&add(2), &remembers(OP, at(510)), STABLE, settle(applied(at(510), None, Millis::NONE), true));
    // It was decided that it never is.
    check(&put("v"), &remembers(OP, Stamp::ZERO), STABLE, settle(Ending::NotApplied, true));
    check(&put("v"), &remembers(OP, Stamp::ZERO), UNSTABLE, settle(Ending::NotApplied, false));
    // P3 needs the lineage, and a read does not ask.
    check(&put("v"), &with("v", |r| r.lineage = None), STABLE, Judgement::Incomplete);
    check(&Goal::Read, &remembers(OP, Stamp::ZERO), STABLE, read(true));
}

#[test]
fn p3_another_value_under_the_same_id_is_seen() {
    check(&put("v"), &made_by_op("w"), STABLE, settle(Ending::Reused, true));
    check(&put("longer"), &no_content("v"), STABLE, own(Content::value("longer"), Millis(OP + 50), None));
    let unknown = with("v", |r| (r.head.op_id, r.content) = (at(OP), None));
    check(&put("longer"), &unknown, STABLE, settle(Ending::Reused, true));
    check(&put("w"), &unknown, STABLE, settle(applied(at(310), None, Millis(OP + 50)), true));
}

#[test]
fn p4_what_the_reach_hides_is_unknown_if_it_was_tried() {
    check(&put("n"), &hiding_op("v"), TRIED, Judgement::Unknown);
    check(&cas(Condition::Absent), &hiding_op("v"), TRIED, Judgement::Unknown);
    check(&put("n"), &hiding_op("v"), STABLE, own(Content::value("n"), Millis(OP + 50), None));
    check(&put("n"), &with("v", |r| r.head.reach = at(OP - 1)), TRIED, own(Content::value("n"), Millis(OP + 50), None));
    check(&Goal::Read, &hiding_op("v"), TRIED, read(true));
    // What is remembered comes first.
    let both = with("v", |r| (r.head.op_id, r.head.reach) = (at(OP), at(OP)));
    check(&put("v"), &both, TRIED, settle(applied(at(310), None, Millis(OP + 50)), true));
}

#[test]
fn p5_reads() {
    check(&Goal::Read, &record("v"), STABLE, read(true));
    check(&Goal::Read, &record("v"), UNSTABLE, read(false));
    check(&Goal::Read, &record("v"), TRIED, read(true));
    check(&Goal::Read, &record("v"), PLAIN, read(false));
    check(&Goal::Read, &RecordView::absent(), PLAIN, read(false));
    check(&Goal::Read, &no_content("v"), STABLE, Judgement::Incomplete);
}

#[test]
fn p5_conditions_that_fail() {
    let value = |v: &str| Condition::Value(Bytes::from(v.to_owned()));
    for condition in [Condition::Version(at(309)), Condition::Absent, value("w"), value("longer")] {
        check(&cas(condition.clone()), &record("v"), STABLE, settle(failed(at(310)), true));
        check(&cas(condition.clone()), &record("v"), PLAIN, settle(failed(at(310)), true));
        check(&cas(condition.clone()), &record("v"), UNSTABLE, settle(failed(at(310)), false));
        // The fence: only a decision ends the earlier attempts.
        check(&cas(condition), &record("v"), TRIED, settle(failed(at(310)), false));
    }
    let tombstone = with("", |r| (r.head.tombstone, r.content) = (true, Some(Content::Tombstone)));
    for condition in [Condition::Version(at(310)), value(""), Condition::Version(Stamp::ZERO)] {
        check(&cas(condition.clone()), &tombstone, STABLE, settle(failed(Stamp::ZERO), true));
        check(&cas(condition), &RecordView::absent(), STABLE, settle(failed(Stamp::ZERO), true));
    }
    check(&add(1), &record("x"), STABLE, settle(Ending::NotANumber, true));
    check(&add(1), &record("x"), TRIED, settle(Ending::NotANumber, false));
    check(&add(1), &record(&i64::MAX.to_string()), STABLE, settle(Ending::NotANumber, true));
    // The length alone tells that the value is another one.
    check(&cas(value("longer")), &no_content("v"), STABLE, settle(failed(at(310)), true));
    check(&cas(value("w")), &no_content("v"), STABLE, Judgement::Incomplete);
}

#[test]
fn p6_proposals() {
    let new = || own(Content::value("new"), Millis::NONE, None);
    check(&put("n"), &record("v"), UNSTABLE, own(Content::value("n"), Millis(OP + 50), None));
    check(&cas(Condition::Version(at(310))), &no_content("v"), UNSTABLE, new());
    check(&cas(Condition::Value("v".into())), &record("v"), TRIED, new());
    check(&cas(Condition::Absent), &RecordView::absent(), PLAIN, new());
    check(&write(None, Mutation::Delete), &no_content("v"), STABLE, own(Content::Tombstone, Millis::NONE, None));
    check(&add(-5), &record("3"), STABLE, own(Content::value("-2"), Millis::NONE, Some(-2)));
    check(&add(-5), &RecordView::absent(), PLAIN, own(Content::value("-5"), Millis::NONE, Some(-5)));
    check(&add(1), &no_content("3"), STABLE, Judgement::Incomplete);
    // An increment keeps attributes and expiry.
    let attributes = Attributes(vec![("type".into(), "counter".into())]);
    let kept = Content::Value("4".into(), attributes.clone());
    let counter = with("3", |r| {
        r.head.expires_at = Millis(2000);
        r.content = Some(Content::Value("3".into(), attributes));
    });
    check(&add(1), &counter, STABLE, own(kept, Millis(2000), Some(4)));
}

#[test]
fn the_end_of_a_record_is_decided() {
    check(&Goal::Read, &expired("v"), STABLE, ends(Reply::Record));
    check(&Goal::Read, &expired("v"), PLAIN, ends(Reply::Record));
    check(&Goal::Read, &with("v", |r| r.head.expires_at = Millis(NOW.0 + 1)), STABLE, read(true));
    let gone = || ends(Reply::Fixed(failed(Stamp::ZERO)));
    check(&cas(Condition::Version(at(310))), &expired("v"), STABLE, gone());
    check(&cas(Condition::Value("v".into())), &expired("v"), TRIED, gone());
    // A write that goes on replaces the record itself.
    check(&cas(Condition::Absent), &expired("v"), STABLE, own(Content::value("new"), Millis::NONE, None));
    check(&add(1), &expired("x"), STABLE, own(Content::value("1"), Millis::NONE, Some(1)));
    // An operation that was applied is told so, though its value has ended since.
    let ended = with("v", |r| (r.head.op_id, r.head.expires_at) = (at(OP), NOW));
    check(&put("v"), &ended, STABLE, settle(applied(at(310), None, Millis(OP + 50)), true));
}

#[test]
fn outcomes() {
    let version = at(510);
    check(&Goal::Outcome, &remembers(OP, Stamp::ZERO), STABLE, settle(Ending::NotApplied, true));
    check(&Goal::Outcome, &remembers(OP, Stamp::ZERO), UNSTABLE, settle(Ending::NotApplied, false));
    check(&Goal::Outcome, &remembers(OP, version), STABLE, settle(Ending::OutcomeApplied { version }, true));
    let version = at(310);
    check(&Goal::Outcome, &made_by_op("v"), UNSTABLE, settle(Ending::OutcomeApplied { version }, false));
    check(&Goal::Outcome, &hiding_op("v"), STABLE, Judgement::Unknown);
    check(&Goal::Outcome, &no_content("v"), STABLE, Judgement::Incomplete);
    // Nothing is known: it is decided. The value stays, expiry included.
    let mark = |content, expires_at| Judgement::Propose {
        draft: Draft { op_id: Stamp::ZERO, content, expires_at, mark: Some(at(OP)) },
        answer: Reply::Fixed(Ending::NotApplied),
    };
    check(&Goal::Outcome, &expired("v"), STABLE, mark(Content::value("v"), NOW));
    check(&Goal::Outcome, &RecordView::absent(), PLAIN, mark(Content::Tombstone, Millis::NONE));
}
