//! Histories whose verdict is known: a checker that passes everything finds nothing.

use dunlin_protocol::{Millis, Stamp};

use crate::history::{Call, Ending, Event, Expect, History, Promise, Reply, Value};

use super::{Claim, check};

pub(super) fn version(n: u64) -> Stamp {
    match n {
        0 => Stamp::ZERO,
        n => Stamp::new(Millis(n), 0, 1),
    }
}

pub(super) fn event(
    client: u32,
    invoked_at: u64,
    returned_at: u64,
    promise: Promise,
    call: Call,
    ending: Ending,
) -> Event {
    let returned = Some((returned_at, ending));
    // An id that no version is equal to, unless a test says otherwise.
    Event { client, key: 1, promise, call, op_id: Stamp::new(Millis(invoked_at), 1, 9), invoked_at, returned }
}

fn serial(client: u32, (invoked_at, returned_at): (u64, u64), call: Call, reply: Reply) -> Event {
    event(client, invoked_at, returned_at, Promise::Serial, call, Ending::Done(reply))
}

fn unknown(event: Event) -> Event {
    Event { returned: event.returned.map(|(at, _)| (at, Ending::Unknown)), ..event }
}

fn weak(event: Event) -> Event {
    Event { promise: Promise::Weak, ..event }
}

fn quorum(event: Event) -> Event {
    Event { promise: Promise::Quorum, ..event }
}

/// A plain put that was acknowledged plainly, with this stamp.
fn plain_put(client: u32, (invoked_at, returned_at): (u64, u64), value: Value, stamp: u64) -> Event {
    let written = Ending::Done(Reply::Written { version: version(stamp), number: None });
    let event = event(client, invoked_at, returned_at, Promise::Quorum, Call::Put(value), written);
    Event { op_id: version(stamp), ..event }
}

fn is(value: Value, at: u64) -> Reply {
    Reply::Read { value: Some(value), version: version(at) }
}

fn none() -> Reply {
    Reply::Read { value: None, version: Stamp::ZERO }
}

pub(super) fn done(at: u64) -> Reply {
    Reply::Written { version: version(at), number: None }
}

fn sum(number: Value, at: u64) -> Reply {
    Reply::Written { version: version(at), number: Some(number) }
}

fn failed(at: u64) -> Reply {
    Reply::ConditionFailed { version: version(at) }
}

fn cas(expect: Value, new: Value) -> Call {
    Call::Cas { expect: Expect::Value(expect), new: Some(new) }
}

pub(super) fn history(events: Vec<Event>) -> History {
    let mut events = events;
    events.sort_by_key(|e| e.invoked_at);
    events.into_iter().collect()
}

/// The claim that the checker finds broken, if any.
fn verdict(events: Vec<Event>) -> Option<Claim> {
    match check(&history(events)) {
        Ok(checked) => {
            assert!(checked.undecided.is_empty());
            None
        }
        Err(violation) => {
            assert!(
                !violation.window.is_empty() && violation.to_string().lines().count() == 1 + violation.window.len()
            );
            Some(violation.claim)
        }
    }
}

const ONE: (u64, u64) = (0, 10);
const TWO: (u64, u64) = (20, 30);
const THREE: (u64, u64) = (40, 50);
const FOUR: (u64, u64) = (60, 70);

#[test]
fn serial_histories() {
    let (put, read) = (Call::Put, Call::Read);
    let illegal = Some(Claim::Linearizable);
    for (case, events, expected) in [
        ("nothing", vec![], None),
        ("absent at first", vec![serial(1, ONE, read, none())], None),
        ("a put is read", vec![serial(1, ONE, put(1), done(1)), serial(2, TWO, read, is(1, 1))], None),
        (
            "a put may be read while it runs",
            vec![serial(1, (0, 50), put(1), done(1)), serial(2, TWO, read, is(1, 1))],
            None,
        ),
        ("or not yet", vec![serial(1, (0, 50), put(1), done(1)), serial(2, TWO, read, none())], None),
        ("touching operations overlap", vec![serial(1, (0, 20), put(1), done(1)), serial(2, TWO, read, none())], None),
        (
            "but not once it was seen",
            vec![serial(1, (0, 90), put(1), done(1)), serial(2, TWO, read, is(1, 1)), serial(3, THREE, read, none())],
            illegal,
        ),
        (
            "a stale read",
            vec![serial(1, ONE, put(1), done(1)), serial(1, TWO, put(2), done(2)), serial(2, THREE, read, is(1, 1))],
            illegal,
        ),
        ("a lost put", vec![serial(1, ONE, put(1), done(1)), serial(2, TWO, read, none())], illegal),
        (
            "a lost update: two conditional writes over the same value",
            vec![
                serial(1, ONE, put(1), done(1)),
                serial(1, (20, 50), cas(1, 2), done(2)),
                serial(2, (20, 50), cas(1, 3), done(3)),
            ],
            illegal,
        ),
        (
            "one wins, the other is told",
            vec![
                serial(1, ONE, put(1), done(1)),
                serial(1, (20, 50), cas(1, 2), done(2)),
                serial(2, (20, 50), cas(1, 3), failed(2)),
            ],
            None,
        ),
        ("told although it held", vec![serial(1, ONE, put(1), done(1)), serial(2, TWO, cas(1, 3), failed(1))], illegal),
        (
            "applied twice",
            vec![serial(1, ONE, Call::Increment(5), sum(5, 1)), serial(2, TWO, Call::Increment(1), sum(11, 3))],
            illegal,
        ),
        (
            "a sum that leaves one out",
            vec![serial(1, ONE, Call::Increment(5), sum(5, 1)), serial(2, TWO, Call::Increment(1), sum(1, 2))],
            illegal,
        ),
        (
            "an unknown one explains the sum",
            vec![
                unknown(serial(1, ONE, Call::Increment(5), sum(5, 1))),
                serial(2, TWO, Call::Increment(1), sum(6, 2)),
                serial(2, THREE, read, is(6, 2)),
            ],
            None,
        ),
        (
            "an unknown one is not applied twice",
            vec![
                unknown(serial(1, ONE, Call::Increment(5), sum(5, 1))),
                serial(2, TWO, Call::Increment(1), sum(6, 2)),
                serial(2, THREE, Call::Increment(1), sum(12, 3)),
            ],
            illegal,
        ),
        (
            "an unknown one may take effect long after",
            vec![
                unknown(serial(1, ONE, put(1), done(9))),
                serial(2, TWO, put(2), done(2)),
                serial(2, THREE, read, is(2, 2)),
                serial(2, FOUR, read, is(1, 9)),
            ],
            None,
        ),
        (
            "but not before it began",
            vec![serial(2, ONE, read, is(1, 9)), unknown(serial(1, TWO, put(1), done(9)))],
            Some(Claim::ReadsWhatWasWritten),
        ),
        (
            "a failed one never",
            vec![event(1, 0, 10, Promise::Serial, put(1), Ending::Failed), serial(2, TWO, read, is(1, 9))],
            Some(Claim::ReadsWhatWasWritten),
        ),
        ("a value that nobody wrote", vec![serial(1, ONE, read, is(7, 7))], Some(Claim::ReadsWhatWasWritten)),
        (
            "a value under another version",
            vec![serial(1, ONE, put(1), done(1)), serial(2, TWO, read, is(1, 2))],
            illegal,
        ),
        (
            "two values under one version",
            vec![serial(1, ONE, put(1), done(1)), serial(1, TWO, put(2), done(1))],
            Some(Claim::OneVersionOneValue),
        ),
        ("a version that falls", vec![serial(1, ONE, put(1), done(5)), serial(1, TWO, put(2), done(4))], illegal),
        (
            "by version, after an outcome query changed it",
            vec![
                serial(1, ONE, put(1), done(1)),
                serial(2, TWO, Call::Outcome, done(0)),
                serial(1, THREE, Call::Cas { expect: Expect::Version(version(1)), new: None }, failed(3)),
                serial(1, FOUR, read, is(1, 3)),
            ],
            None,
        ),
        (
            "by version, without one",
            vec![
                serial(1, ONE, put(1), done(1)),
                serial(1, THREE, Call::Cas { expect: Expect::Version(version(1)), new: None }, failed(3)),
            ],
            illegal,
        ),
        (
            "if absent, twice",
            vec![
                serial(1, ONE, Call::Cas { expect: Expect::Absent, new: Some(1) }, done(1)),
                serial(2, TWO, Call::Cas { expect: Expect::Absent, new: Some(2) }, done(2)),
            ],
            illegal,
        ),
        (
            "if absent, after a delete",
            vec![
                serial(1, ONE, Call::Cas { expect: Expect::Absent, new: Some(1) }, done(1)),
                serial(1, TWO, Call::Delete, done(2)),
                serial(2, THREE, Call::Cas { expect: Expect::Absent, new: Some(2) }, done(3)),
            ],
            None,
        ),
        (
            "a weak read may be stale",
            vec![
                serial(1, ONE, put(1), done(1)),
                serial(1, TWO, put(2), done(2)),
                weak(serial(2, THREE, read, is(1, 1))),
            ],
            None,
        ),
    ] {
        assert_eq!(verdict(events), expected, "{case}");
    }
}

#[test]
fn plain_and_mixed_histories() {
    let read = |client, when, reply| quorum(serial(client, when, Call::Read, reply));
    for (case, events, expected) in [
        (
            "the later stamp wins",
            vec![plain_put(1, ONE, 1, 5), plain_put(2, TWO, 2, 7), read(1, THREE, is(2, 7))],
            None,
        ),
        (
            "a lower stamp that comes later takes no effect",
            vec![plain_put(1, ONE, 1, 7), plain_put(2, TWO, 2, 5), read(1, THREE, is(1, 7))],
            None,
        ),
        (
            "but its stamp does not win",
            vec![plain_put(1, ONE, 1, 7), plain_put(2, TWO, 2, 5), read(1, THREE, is(2, 5))],
            Some(Claim::WriteIsRead),
        ),
        (
            "an acknowledged write is not read",
            vec![plain_put(1, ONE, 1, 5), read(2, TWO, none())],
            Some(Claim::WriteIsRead),
        ),
        (
            "but it may have been deleted",
            vec![
                plain_put(1, ONE, 1, 5),
                unknown(Event { call: Call::Delete, ..plain_put(3, (5, 15), 0, 6) }),
                read(2, TWO, none()),
            ],
            None,
        ),
        (
            "reads go back",
            vec![
                plain_put(1, ONE, 1, 5),
                unknown(plain_put(2, (0, 90), 2, 7)),
                read(3, TWO, is(2, 7)),
                read(3, THREE, is(1, 5)),
            ],
            Some(Claim::ReadsRise),
        ),
        ("a weak acknowledgement promises nothing", vec![weak(plain_put(1, ONE, 1, 5)), read(2, TWO, none())], None),
        (
            "a conditional write goes over an acknowledged one",
            vec![plain_put(1, ONE, 1, 5), serial(2, TWO, Call::Cas { expect: Expect::Absent, new: Some(2) }, done(6))],
            Some(Claim::Linearizable),
        ),
        (
            "a condition fails on what lies below an acknowledged write",
            vec![plain_put(1, ONE, 1, 5), plain_put(1, TWO, 2, 7), serial(2, THREE, cas(9, 3), failed(5))],
            Some(Claim::WriteSurvivesCas),
        ),
        (
            "a conditional write takes its version below an acknowledged write",
            vec![plain_put(1, ONE, 1, 5), serial(2, TWO, Call::Increment(1), sum(2, 4))],
            Some(Claim::WriteSurvivesCas),
        ),
        (
            "on a serial key plain writes are linearizable, whatever their ids",
            vec![
                serial(1, ONE, cas(0, 1), failed(0)),
                plain_put(2, TWO, 1, 9),
                Event { op_id: version(3), ..quorum(serial(1, THREE, Call::Put(2), done(11))) },
                read(3, FOUR, is(2, 11)),
            ],
            None,
        ),
        (
            "and none is without effect",
            vec![
                serial(1, ONE, cas(0, 1), failed(0)),
                Event { op_id: version(8), ..quorum(serial(1, TWO, Call::Put(1), done(10))) },
                Event { op_id: version(3), ..quorum(serial(1, THREE, Call::Put(2), done(11))) },
                read(3, FOUR, is(1, 10)),
            ],
            Some(Claim::WriteIsRead),
        ),
        (
            "an unknown plain write may have gone either way",
            vec![
                plain_put(1, ONE, 1, 7),
                unknown(plain_put(2, (5, 15), 2, 5)),
                serial(3, TWO, cas(2, 3), done(12)),
                read(3, THREE, is(3, 12)),
            ],
            None,
        ),
    ] {
        assert_eq!(verdict(events), expected, "{case}");
    }
}

#[test]
fn the_explanation_is_the_shortest_window() {
    let mut events = Vec::new();
    for i in 0..40u64 {
        let when = (i * 20, i * 20 + 10);
        let (value, at) = (i as Value / 2 + 1, i / 2 + 1);
        match i % 2 {
            0 => events.push(serial(1, when, Call::Put(value), done(at))),
            _ => events.push(serial(2, when, Call::Read, is(value, at))),
        }
    }
    // Event 25 reads what was there before event 24.
    events[25].returned = Some((510, Ending::Done(is(12, 12))));
    let violation = check(&history(events.clone())).expect_err("a stale read");
    assert_eq!(violation.claim, Claim::Linearizable);
    assert_eq!(violation.window, events[24..=25]);
    let text = violation.to_string();
    assert!(
        text.starts_with("key 1: no order of these operations explains what was answered (Linearizable)\n"),
        "{text}"
    );
    assert!(text.contains("c1   |--------------|") && text.contains("serial put 13 => done at 13.0@1"), "{text}");
    assert!(text.contains("serial read => 12 at 12.0@1"), "{text}");
}
