//! The replica's rule line by line (PROTOCOL.md 1.3, the Drop of 1.10, `aged` of 1.2).

use std::time::Duration;

use dunlin_protocol::register::{Change, Decision, Held, Register, RegisterRequest, Verdict, Want};
use dunlin_protocol::{Ballot, Content, Millis, Record, Stamp, Times};
use proptest::prelude::*;

use super::generate;

const TIMES: Times = Times {
    op_lifetime: Duration::from_millis(10),
    hint_window: Duration::from_millis(20),
    grace: Duration::from_millis(100),
    max_clock_skew: Duration::from_millis(5),
    redraw_window: Duration::from_millis(5),
    attempts_end: Duration::from_millis(10),
};
const NOW: Millis = Millis(1000);

fn at(millis: u64) -> Stamp {
    match millis {
        0 => Stamp::ZERO,
        millis => Stamp::new(Millis(millis), 0, 1),
    }
}

fn value(stamp: u64) -> Record {
    Record::plain(at(stamp), Content::value(&b"v"[..]), Millis::NONE)
}

fn tombstone(stamp: u64) -> Record {
    Record::plain(at(stamp), Content::Tombstone, Millis::NONE)
}

fn held(record: &Record) -> Held<u64> {
    Held { head: record.head(), place: record.stamp.wall().0 }
}

/// A register with a record (stamp 0: none), its ballot, a promise and a pending of ballot and stamp.
fn register(stamp: u64, ballot: u64, promised: u64, pending: Option<(u64, u64)>) -> Register<u64> {
    Register {
        record: (stamp > 0).then(|| held(&value(stamp))),
        ballot: at(ballot),
        promised: at(promised),
        pending: pending.map(|(ballot, stamp)| (at(ballot), held(&value(stamp)))),
        stored_at: Millis(1),
    }
}

fn with_tombstone(register: Register<u64>) -> Register<u64> {
    Register { record: register.record.map(|held| Held { head: tombstone(held.place).head(), ..held }), ..register }
}

fn check(rule: &str, register: Register<u64>, request: RegisterRequest, verdict: Verdict, change: Option<Change>) {
    let decision = register.decide(&request, NOW, &TIMES);
    assert_eq!(decision, Decision { verdict, change }, "{rule}: {request:?} at {register:?}");
}

fn prepare(ballot: u64) -> RegisterRequest {
    RegisterRequest::Prepare { ballot: at(ballot), want: Want::ALL }
}

fn accept(ballot: u64, stamp: u64, next: u64) -> RegisterRequest {
    RegisterRequest::Accept { ballot: at(ballot), record: value(stamp), next: at(next) }
}

fn commit(ballot: u64, stamp: u64) -> RegisterRequest {
    RegisterRequest::Commit { ballot: at(ballot), stamp: at(stamp), record: Some(value(stamp)) }
}

fn commit_by_name(ballot: u64, stamp: u64) -> RegisterRequest {
    RegisterRequest::Commit { ballot: at(ballot), stamp: at(stamp), record: None }
}

fn write(stamp: u64) -> RegisterRequest {
    RegisterRequest::Write { record: value(stamp) }
}

fn install(ballot: u64, record: Record) -> RegisterRequest {
    RegisterRequest::Install { ballot: at(ballot), record }
}

fn drop_request(ballot: u64, stamp: u64, started_at: u64) -> RegisterRequest {
    RegisterRequest::Drop { ballot: at(ballot), stamp: at(stamp), started_at: Millis(started_at) }
}

#[test]
fn read_shows_and_changes_nothing() {
    for register in [Register::default(), register(5, 0, 0, None), register(5, 4, 7, Some((7, 8)))] {
        check("read", register, RegisterRequest::Read { want: Want::HEAD }, Verdict::View(Want::HEAD), None);
    }
}

#[test]
fn prepare_needs_a_ballot_above_promise_and_record() {
    let promise = |b| Some(Change::Promise { ballot: at(b) });
    for (rule, register, ballot, verdict, change) in [
        ("of an absent key", Register::default(), 3, Verdict::Promise(Want::ALL), promise(3)),
        ("of a plain key, whatever its stamp", register(9, 0, 0, None), 3, Verdict::Promise(Want::ALL), promise(3)),
        ("above both", register(9, 4, 5, None), 6, Verdict::Promise(Want::ALL), promise(6)),
        ("at the promise", register(9, 4, 5, None), 5, Verdict::Reject { max: at(5) }, None),
        ("below the promise", register(9, 0, 5, None), 4, Verdict::Reject { max: at(5) }, None),
        ("below the record's ballot", register(9, 7, 5, None), 6, Verdict::Reject { max: at(7) }, None),
        ("at the record's ballot, after a purge", register(9, 7, 0, None), 7, Verdict::Reject { max: at(7) }, None),
    ] {
        check(rule, register, prepare(ballot), verdict, change);
    }
}

#[test]
fn accept_keeps_the_promise() {
    let accepted = |ballot, promised| Some(Change::Accept { ballot: at(ballot), promised: at(promised) });
    for (rule, register, request, verdict, change) in [
        ("as promised", register(1, 0, 5, None), accept(5, 6, 0), Verdict::Accepted, accepted(5, 5)),
        ("above the promise raises it", register(1, 0, 5, None), accept(7, 8, 0), Verdict::Accepted, accepted(7, 7)),
        ("without any promise", Register::default(), accept(3, 4, 0), Verdict::Accepted, accepted(3, 3)),
        ("`next` is promised too", register(1, 0, 5, None), accept(5, 6, 9), Verdict::Accepted, accepted(5, 9)),
        (
            "a `next` below counts for nothing",
            register(1, 0, 5, None),
            accept(5, 6, 2),
            Verdict::Accepted,
            accepted(5, 5),
        ),
        ("below the promise", register(1, 0, 5, None), accept(4, 6, 0), Verdict::Reject { max: at(5) }, None),
        ("below the record's ballot", register(1, 8, 5, None), accept(6, 7, 0), Verdict::Reject { max: at(8) }, None),
        (
            "at the record's ballot: committed already",
            register(9, 8, 8, None),
            accept(8, 9, 0),
            Verdict::Accepted,
            None,
        ),
        ("committed already, `next` or not", register(9, 8, 8, None), accept(8, 9, 11), Verdict::Accepted, None),
        (
            "committed, but promised higher since",
            register(9, 8, 10, None),
            accept(8, 9, 0),
            Verdict::Reject { max: at(10) },
            None,
        ),
        (
            "a higher one replaces a pending",
            register(1, 0, 5, Some((5, 6))),
            accept(7, 8, 0),
            Verdict::Accepted,
            accepted(7, 7),
        ),
        ("a duplicate", register(1, 0, 5, Some((5, 6))), accept(5, 6, 0), Verdict::Accepted, None),
        (
            "a duplicate after its `next`",
            register(1, 0, 9, Some((5, 6))),
            accept(5, 6, 9),
            Verdict::Reject { max: at(9) },
            None,
        ),
    ] {
        check(rule, register, request, verdict, change);
    }
}

#[test]
fn commit_only_goes_forwards() {
    let store = |b| Some(Change::Store { ballot: at(b) });
    let by_name = |b| Some(Change::Commit { ballot: at(b) });
    let pending = Some((5, 6));
    for (rule, register, request, verdict, change) in [
        ("over an absent key", Register::default(), commit(5, 6), Verdict::Committed, store(5)),
        ("over a plain record of a higher stamp", register(9, 0, 0, None), commit(5, 6), Verdict::Committed, store(5)),
        ("over a lower ballot", register(3, 2, 0, None), commit(5, 6), Verdict::Committed, store(5)),
        ("in spite of a promise", register(3, 2, 9, None), commit(5, 6), Verdict::Committed, store(5)),
        (
            "the pending, though the record came along",
            register(1, 0, 5, pending),
            commit(5, 6),
            Verdict::Committed,
            by_name(5),
        ),
        ("the pending, by name", register(1, 0, 5, pending), commit_by_name(5, 6), Verdict::Committed, by_name(5)),
        (
            "by name, of a pending of another ballot",
            register(1, 0, 5, pending),
            commit_by_name(7, 6),
            Verdict::NeedRecord,
            None,
        ),
        ("by name, of another stamp", register(1, 0, 5, pending), commit_by_name(5, 7), Verdict::NeedRecord, None),
        ("by name, of nothing", register(1, 0, 5, None), commit_by_name(5, 6), Verdict::NeedRecord, None),
        ("under a higher pending", register(1, 0, 9, Some((9, 10))), commit(5, 6), Verdict::Committed, store(5)),
        ("again", register(6, 5, 5, None), commit(5, 6), Verdict::Committed, None),
        ("again, by name", register(6, 5, 5, None), commit_by_name(5, 6), Verdict::Committed, None),
        ("backwards", register(9, 8, 8, None), commit(5, 6), Verdict::Committed, None),
        ("backwards, of a higher stamp", register(9, 8, 8, None), commit(5, 20), Verdict::Committed, None),
        ("of stamp 0: what was settled as absent", Register::default(), commit(5, 0), Verdict::Committed, store(5)),
    ] {
        check(rule, register, request, verdict, change);
    }
}

#[test]
fn write_goes_by_stamp_until_the_key_is_serial() {
    let stored = Some(Change::Store { ballot: Ballot::ZERO });
    for (rule, register, verdict, change) in [
        ("nothing there", Register::default(), Verdict::Written { stamp: at(5) }, stored),
        ("older there", register(4, 0, 0, None), Verdict::Written { stamp: at(5) }, stored),
        ("the same there", register(5, 0, 0, None), Verdict::Written { stamp: at(5) }, None),
        ("newer there", register(6, 0, 0, None), Verdict::Written { stamp: at(6) }, None),
        ("promised", register(4, 0, 9, None), Verdict::Refused { seen: at(9) }, None),
        ("promised, nothing there", register(0, 0, 2, None), Verdict::Refused { seen: at(2) }, None),
        ("a record with a ballot, its promise purged", register(4, 3, 0, None), Verdict::Refused { seen: at(4) }, None),
        ("a ballot above its stamp", register(4, 7, 0, None), Verdict::Refused { seen: at(7) }, None),
        ("pending", register(4, 0, 8, Some((8, 11))), Verdict::Refused { seen: at(11) }, None),
    ] {
        check(rule, register, write(5), verdict, change);
    }
}

#[test]
fn install_repairs_without_hiding_what_is_newer() {
    let store = |b| Some(Change::Store { ballot: at(b) });
    let serial = register(4, 3, 3, None);
    for (rule, register, request, verdict, change) in [
        ("plain, newer", register(4, 0, 0, None), install(0, value(5)), Verdict::Installed, store(0)),
        ("plain, older", register(6, 0, 0, None), install(0, value(5)), Verdict::Installed, None),
        ("plain, where the key is serial", serial, install(0, value(5)), Verdict::Unsettled, None),
        ("serial, newer", serial, install(5, value(6)), Verdict::Installed, store(5)),
        ("serial, the same", serial, install(3, value(4)), Verdict::Installed, None),
        ("serial, older", serial, install(2, value(9)), Verdict::Installed, None),
        (
            "serial, over a later plain record",
            register(9, 0, 0, None),
            install(5, value(6)),
            Verdict::Installed,
            store(5),
        ),
        (
            "a tombstone, over an earlier plain record",
            register(4, 0, 0, None),
            install(5, tombstone(6)),
            Verdict::Installed,
            store(5),
        ),
        (
            "a tombstone, over an absent key",
            Register::default(),
            install(5, tombstone(6)),
            Verdict::Installed,
            store(5),
        ),
        (
            "a tombstone, under a later plain record",
            register(9, 0, 0, None),
            install(5, tombstone(6)),
            Verdict::Unsettled,
            None,
        ),
        (
            "the same, promised and pending",
            register(9, 0, 7, Some((7, 10))),
            install(5, tombstone(6)),
            Verdict::Unsettled,
            None,
        ),
        (
            "a tombstone, over a serial record of a later stamp",
            register(9, 3, 3, None),
            install(5, tombstone(6)),
            Verdict::Installed,
            store(5),
        ),
    ] {
        check(rule, register, request, verdict, change);
    }
}

#[test]
fn drop_forgets_only_an_aged_tombstone_as_named() {
    let grave = with_tombstone(register(6, 5, 5, None));
    let plain_grave = with_tombstone(register(6, 0, 0, None));
    let (dropped, forget) = (Verdict::Dropped, Some(Change::Forget));
    let kept = Verdict::NotDropped;
    for (rule, register, request, verdict, change) in [
        ("a serial tombstone", grave, drop_request(5, 6, 500), dropped, forget),
        ("a plain tombstone", plain_grave, drop_request(0, 6, 500), dropped, forget),
        (
            "absent with a promise",
            Register { stored_at: Millis::NONE, ..register(0, 0, 9, None) },
            drop_request(0, 0, 500),
            dropped,
            forget,
        ),
        ("a value", register(6, 5, 5, None), drop_request(5, 6, 500), kept, None),
        ("another ballot", grave, drop_request(4, 6, 500), kept, None),
        ("another stamp", grave, drop_request(5, 7, 500), kept, None),
        (
            "a pending",
            Register { pending: register(0, 0, 0, Some((5, 6))).pending, ..grave },
            drop_request(5, 6, 500),
            kept,
            None,
        ),
        (
            "a promise too young for the collector",
            Register { promised: at(400), ..grave },
            drop_request(5, 6, 500),
            kept,
            None,
        ),
        ("a promise old enough", Register { promised: at(399), ..grave }, drop_request(5, 6, 500), dropped, forget),
        (
            "stored too late for the collector",
            Register { stored_at: Millis(400), ..grave },
            drop_request(5, 6, 500),
            kept,
            None,
        ),
        ("an expiry too late for the collector", expiring(grave, 400), drop_request(5, 6, 500), kept, None),
        (
            "old by the collector's clock only",
            Register { stored_at: Millis(950), ..grave },
            drop_request(5, 6, 5000),
            kept,
            None,
        ),
        (
            "old by this replica's clock too",
            Register { stored_at: Millis(899), ..grave },
            drop_request(5, 6, 5000),
            dropped,
            forget,
        ),
    ] {
        check(rule, register, request, verdict, change);
    }
}

fn expiring(register: Register<u64>, expires_at: u64) -> Register<u64> {
    let head = register.head();
    let expiring =
        |held: Held<u64>| Held { head: dunlin_protocol::RecordHead { expires_at: Millis(expires_at), ..head }, ..held };
    Register { record: register.record.map(expiring), ..register }
}

#[test]
fn purge_takes_only_old_promises_over_live_serial_records() {
    let purge = Some(Change::Purge);
    for (rule, register, expected) in [
        ("an old promise", register(6, 5, 899, None), purge),
        ("a young promise", register(6, 5, 900, None), None),
        ("no promise", register(6, 5, 0, None), None),
        ("a plain record", register(6, 0, 7, None), None),
        ("an absent key", register(0, 0, 7, None), None),
        ("a tombstone", with_tombstone(register(6, 5, 7, None)), None),
    ] {
        assert_eq!(register.decide_purge(NOW, &TIMES), expected, "{rule}");
    }
}

#[test]
fn changes_are_carried_out() {
    let mut it: Register<u64> = Register::default();
    it.apply(Change::Store { ballot: Ballot::ZERO }, Some(held(&value(3))), Millis(10));
    assert_eq!(it, Register { stored_at: Millis(10), ..register(3, 0, 0, None) });
    it.apply(Change::Promise { ballot: at(5) }, None, Millis(11));
    it.apply(Change::Accept { ballot: at(5), promised: at(8) }, Some(held(&value(6))), Millis(12));
    assert_eq!(it, Register { stored_at: Millis(10), ..register(3, 0, 8, Some((5, 6))) }, "only a stored record is");
    let mut stored = it;
    stored.apply(Change::Store { ballot: at(4) }, Some(held(&value(5))), Millis(13));
    assert_eq!(stored, Register { stored_at: Millis(13), ..register(5, 4, 8, Some((5, 6))) }, "below the pending");
    stored.apply(Change::Store { ballot: at(9) }, Some(held(&value(7))), Millis(14));
    assert_eq!(stored, Register { stored_at: Millis(14), ..register(7, 9, 8, None) }, "above the pending");
    it.apply(Change::Commit { ballot: at(5) }, None, Millis(15));
    assert_eq!(it, Register { stored_at: Millis(15), ..register(6, 5, 8, None) });
    it.apply(Change::Purge, None, Millis(16));
    assert_eq!(it, Register { stored_at: Millis(15), ..register(6, 5, 0, None) });
    it.apply(Change::Forget, None, Millis(17));
    assert_eq!(it, Register::default());
    assert!(it.is_absent() && !it.is_serial());
}

proptest! {
    /// Whatever peers ask, in whatever order: the rule never panics, and promise, ballot and serial state only ever go forwards.
    #[test]
    fn any_requests_leave_a_sound_register(requests in prop::collection::vec(small(generate::register_request()), 1..40)) {
        let mut it: Register<u64> = Register::default();
        for (i, request) in requests.iter().enumerate() {
            let before = it;
            let Decision { change, .. } = it.decide(request, Millis::MAX, &TIMES);
            let Some(change) = change else { continue };
            let record = match request {
                RegisterRequest::Write { record } | RegisterRequest::Accept { record, .. } => Some(record),
                RegisterRequest::Install { record, .. } => Some(record),
                RegisterRequest::Commit { record, .. } => record.as_ref(),
                _ => None,
            };
            let held = record.map(|r| Held { head: r.head(), place: i as u64 });
            it.apply(change, held.filter(|_| change.takes_record()), Millis(i as u64));
            if change == Change::Forget {
                prop_assert!(before.head().tombstone && before.pending.is_none());
                continue;
            }
            prop_assert!(it.promised >= before.promised && it.ballot >= before.ballot);
            prop_assert!(it.is_serial() || !before.is_serial());
            prop_assert!((it.ballot, it.head().stamp) >= (before.ballot, before.head().stamp));
            if let Some((ballot, _)) = it.pending {
                prop_assert!(ballot > it.ballot && ballot <= it.promised);
            }
        }
    }
}

/// The same requests with all ballots and stamps among a few, so that they meet.
fn small(requests: impl Strategy<Value = RegisterRequest>) -> impl Strategy<Value = RegisterRequest> {
    let shrink = |stamp: Stamp| at(stamp.wall().0 % 6);
    let ballot = |stamp: Stamp| at(1 + stamp.wall().0 % 6);
    let shrunk = move |record: Record| Record { stamp: shrink(record.stamp), expires_at: Millis::NONE, ..record };
    requests.prop_map(move |request| match request {
        RegisterRequest::Read { want } => RegisterRequest::Read { want },
        RegisterRequest::Write { record } => RegisterRequest::Write { record: shrunk(record) },
        RegisterRequest::Prepare { ballot: b, want } => RegisterRequest::Prepare { ballot: ballot(b), want },
        RegisterRequest::Accept { ballot: b, record, next } => {
            RegisterRequest::Accept { ballot: ballot(b), record: shrunk(record), next: shrink(next) }
        }
        RegisterRequest::Commit { ballot: b, stamp, record } => {
            let record = record.map(shrunk);
            let stamp = record.as_ref().map_or(shrink(stamp), |r| r.stamp);
            RegisterRequest::Commit { ballot: ballot(b), stamp, record }
        }
        RegisterRequest::Install { ballot, record } => {
            RegisterRequest::Install { ballot: shrink(ballot), record: shrunk(record) }
        }
        RegisterRequest::Drop { ballot, stamp, started_at } => {
            RegisterRequest::Drop { ballot: shrink(ballot), stamp: shrink(stamp), started_at }
        }
    })
}
