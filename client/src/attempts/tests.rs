use super::*;
use dunlin_protocol::{Attributes, Condition, Key, KeyspaceId, Mutation, Stamp};
use proptest::prelude::*;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const C: NodeId = NodeId(3);
/// The cluster's time at tick 0.
const START: u64 = 1_000_000;

fn ms(n: u64) -> Tick {
    Tick(n * 1_000_000)
}

fn put() -> Action {
    let mutation = Mutation::Put { value: "v".into(), attributes: Attributes::default(), ttl_millis: 0 };
    Action::Write { condition: None, mutation }
}

fn cas() -> Action {
    Action::Write { condition: Some(Condition::Absent), mutation: Mutation::Delete }
}

fn read() -> Action {
    Action::Read { value: true }
}

fn reply_at(now: u64, outcome: Outcome) -> Event {
    let reply = ClientReply { now: Millis(now), quorum_micros: 0, epoch: Epoch(1), body: ReplyBody::Outcome(outcome) };
    Event::Reply(reply)
}

/// A driver of one operation on three nodes, with a clock that stands still unless it is told otherwise.
struct Run {
    attempts: Attempts,
    session: Session,
    now: Tick,
}

impl Run {
    fn new(action: Action) -> Self {
        Self::with(action, Stamp::ZERO, 5_000)
    }

    fn with(action: Action, op_id: OpId, timeout_millis: u64) -> Self {
        let mut session = Session::new(9);
        for node in [A, B, C] {
            session.welcomed(node, Tick(0), Tick(0), Millis(START));
        }
        let key = Key::new("k").expect("a key");
        let operation = Operation { op_id, ..Attempts::operation_on(KeyspaceId::DEFAULT, key, action) };
        let attempts = Attempts::new(operation, Duration::from_millis(timeout_millis), vec![A, B, C], Tick(0), 5);
        Self { attempts, session, now: Tick(0) }
    }

    fn poll(&mut self) -> Step {
        self.attempts.poll(self.now, &mut self.session)
    }

    /// Waits as told until something is to be sent, and says what.
    fn sent(&mut self) -> (NodeId, u32, Operation) {
        loop {
            match self.poll() {
                Step::Send { node, attempt } => return (node, attempt, self.attempts.operation().clone()),
                Step::Wait(until) => self.now = until,
                other => panic!("{other:?} instead of an attempt"),
            }
        }
    }

    fn report(&mut self, attempt: u32, event: Event) {
        self.attempts.handle(self.now, &mut self.session, attempt, event);
    }

    fn answer(&mut self, attempt: u32, status: Status) {
        let now = START + self.now.0 / 1_000_000;
        self.report(attempt, reply_at(now, Outcome::of(status)));
    }

    /// Waits as told until the end.
    fn ending(&mut self) -> Outcome {
        loop {
            match self.poll() {
                Step::Done(outcome) => return outcome,
                Step::Wait(until) => self.now = until,
                other => panic!("{other:?} instead of the end"),
            }
        }
    }
}

#[test]
fn a_first_attempt_has_an_id_of_now_and_a_whole_window() {
    let mut run = Run::new(cas());
    let (node, attempt, operation) = run.sent();
    assert_eq!((node, attempt, operation.tried), (A, 1, false));
    assert_eq!((operation.op_id.wall(), operation.op_id.origin()), (Millis(START), 9));
    assert_eq!(operation.window, Window::until(0, Millis(START + 250)));
    assert_eq!(operation.timeout_millis, 250);
    run.answer(1, Status::Ok);
    assert_eq!(run.poll(), Step::Done(Outcome::of(Status::Ok)));
}

#[test]
fn every_status_ends_the_first_attempt_as_it_should() {
    // (status, ends a first attempt, ends a second one after the first was lost)
    for (status, first, second) in [
        (Status::Ok, true, true),
        (Status::NotFound, true, true),
        (Status::PreconditionFailed, true, true),
        (Status::NotApplied, true, true),
        (Status::NotANumber, true, true),
        (Status::OpIdReused, true, true),
        (Status::OutcomeUnknown, true, true),
        (Status::UnknownKeyspace, true, false),
        (Status::InvalidLevel, true, false),
        (Status::ValueTooLarge, true, false),
        (Status::DiskFull, true, false),
        (Status::ClockSkew, false, false),
        (Status::OpExpired, false, false),
        (Status::Unavailable, false, false),
        (Status::Timeout, false, false),
        (Status::Overloaded, false, false),
        (Status::NotReady, false, false),
        (Status::ShuttingDown, false, false),
        (Status::Suspect, false, false),
        (Status::StorageFailed, false, false),
        (Status::Redraw, false, false),
    ] {
        let mut run = Run::new(cas());
        let (_, attempt, _) = run.sent();
        run.answer(attempt, status);
        assert_eq!(run.attempts.is_done(), first, "{status} at first");

        let mut run = Run::new(cas());
        let (_, attempt, _) = run.sent();
        run.report(attempt, Event::Lost);
        let (_, attempt, operation) = run.sent();
        assert!(operation.tried);
        run.answer(attempt, status);
        assert_eq!(run.attempts.is_done(), second, "{status} after a lost attempt");
        while !second && !run.attempts.is_done() {
            if let Step::Wait(until) = run.poll() {
                run.now = until;
            }
        }
        let ending = run.attempts.done.expect("done");
        assert_eq!(ending.status, if second { status } else { Status::Timeout }, "a refusal hides no earlier attempt");
    }
}

#[test]
fn windows_follow_one_another_and_double() {
    let mut run = Run::with(put(), Stamp::ZERO, 60_000);
    let mut limit = 0;
    let mut lengths = Vec::new();
    let mut nodes = Vec::new();
    let mut ids = Vec::new();
    loop {
        match run.poll() {
            Step::Send { node, .. } => {
                let operation = run.attempts.operation();
                assert!(operation.window.floor >= limit && operation.window.limit > operation.window.floor);
                assert_eq!(operation.tried, limit > 0);
                lengths.push(
                    (operation.window.limit >> 16) - (START + run.now.0 / 1_000_000).max(operation.window.floor >> 16),
                );
                limit = operation.window.limit;
                nodes.push(node);
                ids.push(operation.op_id);
            }
            Step::Wait(until) => run.now = until,
            Step::Done(outcome) => {
                assert_eq!(outcome.status, Status::Timeout);
                break;
            }
            Step::Refresh => panic!("nobody told of a newer topology"),
        }
    }
    assert_eq!(lengths[..5], [250, 500, 1_000, 2_000, 4_000]);
    assert_eq!(nodes[..4], [A, B, C, A]);
    assert!(ids.iter().all(|id| *id == ids[0]), "one id for all attempts");
    assert!(Millis(limit >> 16) <= ids[0].wall() + Duration::from_secs(10));
    assert!(run.now < ms(11_000), "no attempt beyond ten seconds");
    assert_eq!(run.attempts.floor(), limit);
}

#[test]
fn an_attempt_that_ended_names_the_floor_of_the_next() {
    let mut run = Run::new(cas());
    let (_, attempt, first) = run.sent();
    let used = Stamp::new(Millis(START + 3), 2, 9);
    assert!(used.hlc() < first.window.limit);
    let timed_out = Outcome { seen: used, ..Outcome::of(Status::Timeout) };
    run.report(attempt, reply_at(START, timed_out));
    let (_, attempt, second) = run.sent();
    assert_eq!(second.window.floor, used.hlc());
    // No ballot lies above the limit, whatever else was seen.
    let seen = Stamp::from_hlc(second.window.limit + 7, 9);
    run.report(attempt, reply_at(START, Outcome { seen, ..Outcome::of(Status::Timeout) }));
    assert_eq!(run.sent().2.window.floor, second.window.limit);
}

#[test]
fn a_floor_far_above_the_clock_is_waited_for() {
    let mut run = Run::with(cas(), Stamp::ZERO, 9_000);
    for _ in 0..4 {
        let (_, attempt, _) = run.sent();
        run.report(attempt, Event::Lost);
    }
    let floor = run.attempts.floor() >> 16;
    assert!(floor >= START + 3_750, "four windows, one above the other");
    let (_, _, operation) = run.sent();
    let time = START + run.now.0 / 1_000_000;
    assert!(floor <= time + 2_400, "{floor} at {time}");
    assert_eq!(operation.window.floor >> 16, floor);
}

#[test]
fn refused_ids_are_drawn_anew_and_then_by_the_coordinator() {
    let mut run = Run::new(put());
    let (_, attempt, first) = run.sent();
    run.report(attempt, reply_at(START + 5_000, Outcome::of(Status::Redraw)));
    let (node, attempt, second) = run.sent();
    assert_eq!(node, A, "the node has told its time");
    assert_eq!((second.op_id.wall(), second.tried), (Millis(START + 5_000), false));
    assert_ne!(first.op_id, second.op_id);
    run.report(attempt, reply_at(START + 9_000, Outcome::of(Status::Redraw)));
    let (_, attempt, third) = run.sent();
    assert_eq!((third.op_id, third.window, third.tried), (Stamp::ZERO, Window::OPEN, false));
    assert!(third.timeout_millis > 4_000);
    run.report(attempt, Event::Lost);
    assert_eq!(run.ending().status, Status::Timeout, "a lost answer is not retried");
}

#[test]
fn one_nodes_wrong_clock_stops_no_write_through_the_others() {
    let hour = 3_600_000;
    let right = START * 10;
    for (wrong, refusal) in
        [(right + hour, Status::Redraw), (right + hour, Status::ClockSkew), (right - hour, Status::OpExpired)]
    {
        let mut run = Run::new(put());
        // A was heard first, and B's time is not known when it is asked.
        run.session = Session::new(9);
        run.session.welcomed(A, Tick(0), Tick(0), Millis(wrong));
        let (node, attempt, operation) = run.sent();
        assert_eq!((node, operation.op_id.wall()), (A, Millis(wrong)));
        run.report(attempt, reply_at(wrong, Outcome::of(Status::NotReady)));
        let (node, attempt, operation) = run.sent();
        assert_eq!((node, operation.op_id.wall()), (B, Millis(wrong)));
        run.report(attempt, reply_at(right, Outcome::of(refusal)));
        let (node, attempt, operation) = run.sent();
        assert_eq!((node, operation.op_id.wall(), operation.tried), (B, Millis(right), false), "{refusal}");
        run.report(attempt, reply_at(right, Outcome::of(Status::Ok)));
        assert_eq!(run.ending().status, Status::Ok);
    }
}

#[test]
fn one_nodes_wrong_clock_uses_up_no_retry() {
    for wrong in [START + 60_000, START - 60_000] {
        let mut run = Run::new(put());
        let (node, attempt, first) = run.sent();
        assert_eq!(node, A);
        // B was heard when its clock was a minute off; by that clock there is no window left, or none yet.
        run.session = Session::new(9);
        for (node, time) in [(A, START), (B, wrong), (C, START)] {
            run.session.welcomed(node, Tick(0), Tick(0), Millis(time));
        }
        run.report(attempt, Event::Lost);
        let (node, _, second) = run.sent();
        assert_eq!((node, run.now), (C, Tick(0)));
        assert_eq!((second.op_id, second.window.floor), (first.op_id, first.window.limit));
    }
}

#[test]
fn a_late_attempt_does_not_count() {
    let mut run = Run::new(cas());
    let (_, attempt, first) = run.sent();
    run.report(attempt, Event::Lost);
    let (_, attempt, second) = run.sent();
    run.answer(attempt, Status::Redraw);
    let (_, _, third) = run.sent();
    assert_eq!((third.op_id, third.window.floor), (first.op_id, first.window.limit));
    assert!(third.tried && third.timeout_millis == second.timeout_millis, "not doubled");
}

#[test]
fn an_id_of_the_caller_is_never_replaced() {
    let id = Stamp::new(Millis(START - 600), 0, 3);
    let mut run = Run::with(put(), id, 5_000);
    let (_, attempt, operation) = run.sent();
    assert_eq!((operation.op_id, operation.tried), (id, false));
    run.answer(attempt, Status::Redraw);
    assert_eq!(run.ending().status, Status::Redraw);
}

#[test]
fn what_was_not_sent_does_not_count() {
    let mut run = Run::new(put());
    for (expected, number) in [(A, 1), (B, 2), (C, 3)] {
        let (node, attempt, operation) = run.sent();
        assert_eq!((node, attempt, operation.tried), (expected, number, false));
        run.report(attempt, Event::NotSent);
    }
    let before = run.now;
    let (_, attempt, operation) = run.sent();
    assert!(run.now > before, "a pause after every node was asked in vain");
    assert!(!operation.tried && operation.timeout_millis == 250);
    assert!(operation.op_id.wall() > Millis(START), "an id of now");
    run.report(attempt, Event::NotSent);
    loop {
        match run.poll() {
            Step::Send { attempt, .. } => run.report(attempt, Event::NotSent),
            Step::Wait(until) => run.now = until,
            Step::Done(outcome) => break assert_eq!(outcome.status, Status::Connect),
            Step::Refresh => panic!("nobody told of a newer topology"),
        }
    }
    assert_eq!(run.now, ms(5_000));
}

#[test]
fn a_connection_made_first_means_a_fresh_attempt_at_the_same_node() {
    let mut run = Run::new(put());
    let (_, attempt, first) = run.sent();
    run.now = ms(400);
    run.report(attempt, Event::Connected);
    // Polling this late would otherwise have counted the attempt.
    let (node, attempt, second) = run.sent();
    assert_eq!((node, attempt, second.tried), (A, 2, false));
    assert!(second.op_id > first.op_id && second.op_id.wall() == Millis(START + 400));
}

#[test]
fn unavailable_everywhere_is_told_at_once() {
    for status in [Status::Unavailable, Status::Suspect] {
        let mut run = Run::new(put());
        for event in [None, Some(Event::NotSent), Some(Event::NotSent)] {
            let (_, attempt, _) = run.sent();
            match event {
                None => run.answer(attempt, status),
                Some(event) => run.report(attempt, event),
            }
        }
        assert_eq!(run.ending().status, status);
        assert_eq!(run.now, Tick(0));
    }
}

#[test]
fn windows_that_were_too_short_to_begin_with_double() {
    let mut run = Run::new(cas());
    let mut lengths = Vec::new();
    for status in [Status::Unavailable, Status::Unavailable, Status::Unavailable, Status::Overloaded, Status::Ok] {
        let (_, attempt, operation) = run.sent();
        assert!(!operation.tried, "nothing happened so far");
        let now = START + run.now.0 / 1_000_000;
        lengths.push((operation.window.limit >> 16) - now);
        let counts = Counts { need: 2, got: 1, alive: 3 };
        run.report(attempt, reply_at(now, Outcome { counts, ..Outcome::of(status) }));
    }
    assert_eq!(lengths, [250, 500, 1_000, 2_000, 4_000]);
    assert_eq!(run.ending().status, Status::Ok);
}

#[test]
fn a_success_of_any_attempt_counts_and_nothing_else_of_earlier_ones() {
    for (action, status, taken) in [
        (cas(), Status::Ok, true),
        (cas(), Status::PreconditionFailed, false),
        (cas(), Status::NotFound, false),
        (cas(), Status::Timeout, false),
        (read(), Status::NotFound, true),
        (read(), Status::Timeout, false),
    ] {
        let mut run = Run::new(action);
        let (_, first, _) = run.sent();
        let (_, second, _) = run.sent();
        assert_eq!((first, second), (1, 2), "the first one's time is over");
        run.answer(first, status);
        run.answer(first, Status::Ok);
        assert_eq!(run.attempts.is_done(), taken, "{status} comes late, and only once");
        run.answer(second, Status::NotFound);
        assert!(run.attempts.is_done());
    }
}

#[test]
fn reads_are_repeated_as_they_are() {
    let mut run = Run::new(read());
    for event in [Event::Lost, Event::NotSent, Event::Lost] {
        let (_, attempt, operation) = run.sent();
        assert_eq!((operation.op_id, operation.window, operation.tried), (Stamp::ZERO, Window::OPEN, false));
        run.report(attempt, event);
    }
    let (_, attempt, _) = run.sent();
    run.answer(attempt, Status::NotFound);
    assert_eq!(run.ending().status, Status::NotFound);
}

#[test]
fn a_newer_topology_is_fetched_once_and_followed() {
    let mut run = Run::new(put());
    let (_, attempt, _) = run.sent();
    run.answer(attempt, Status::StaleEpoch);
    assert_eq!(run.poll(), Step::Refresh);
    assert_eq!(run.poll(), Step::Wait(ms(5_000)));
    run.attempts.refreshed(run.now, Epoch(4), vec![C]);
    let (node, _, operation) = run.sent();
    assert_eq!((node, operation.epoch, operation.tried), (C, Epoch(4), false));
}

#[test]
fn an_outcome_query_waits_until_no_attempt_can_be_under_way() {
    let id = Stamp::new(Millis(START - 4_000), 0, 3);
    let mut run = Run::with(Action::Outcome, id, 20_000);
    let (_, attempt, operation) = run.sent();
    assert_eq!(run.now, ms(6_001));
    assert_eq!((operation.op_id, operation.tried), (id, true));
    assert_eq!(operation.window, Window { floor: Window::until(0, Millis(START + 6_000)).limit, limit: u64::MAX });
    run.report(attempt, Event::Lost);
    let (_, attempt, again) = run.sent();
    assert_eq!(again.window, operation.window, "a query has no limit");
    run.answer(attempt, Status::NotApplied);
    assert_eq!(run.ending().status, Status::NotApplied);

    // Who knows the last limit waits only until it is near.
    let floor = Window::until(0, Millis(START + 3_000)).limit;
    let mut run = Run::with(Action::Outcome, id, 20_000);
    run.attempts = run.attempts.after(floor);
    let (_, _, operation) = run.sent();
    assert_eq!((run.now, operation.window.floor), (ms(600), floor));
}

#[test]
fn without_any_nodes_time_the_topology_is_fetched_first() {
    let mut run = Run::new(put());
    run.session = Session::new(1);
    assert_eq!(run.poll(), Step::Refresh);
    run.session.welcomed(B, Tick(0), Tick(0), Millis(START));
    run.attempts.refreshed(run.now, Epoch(1), vec![A, B, C]);
    assert_eq!(run.sent().2.op_id.wall(), Millis(START));
}

#[test]
fn a_node_that_did_not_answer_is_passed_over() {
    let mut run = Run::new(put());
    run.session.unanswered(A, Tick(0));
    assert_eq!(run.sent().0, B);
}

#[test]
fn no_nodes_is_an_end() {
    let mut run = Run::new(put());
    run.attempts.nodes.clear();
    assert_eq!(run.ending().status, Status::Connect);
}

#[derive(Clone, Debug)]
enum Happening {
    Reply(Status, bool, i64),
    Lost,
    NotSent,
    Connected,
    Silence,
    Pass(u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    let refusals = vec![
        Status::Redraw,
        Status::Timeout,
        Status::Unavailable,
        Status::Overloaded,
        Status::StaleEpoch,
        Status::NotReady,
        Status::DiskFull,
        Status::PreconditionFailed,
        Status::Ok,
    ];
    prop_oneof![
        6 => (prop::sample::select(refusals), any::<bool>(), -3_000i64..3_000).prop_map(|(s, late, skew)| Happening::Reply(s, late, skew)),
        3 => Just(Happening::Lost),
        2 => Just(Happening::NotSent),
        1 => Just(Happening::Connected),
        3 => Just(Happening::Silence),
        2 => (1u64..800).prop_map(Happening::Pass),
    ]
}

proptest! {
    /// Whatever happens: no two attempts that may have been carried out share a ballot, nothing indefinite is taken for definite, and the
    /// end comes in time.
    #[test]
    fn the_rules_hold_whatever_happens(
        plain in any::<bool>(),
        happenings in prop::collection::vec(happening(), 0..60),
        timeout in 50u64..30_000,
    ) {
        let mut run = Run::with(if plain { put() } else { cas() }, Stamp::ZERO, timeout);
        let mut happenings = happenings.into_iter();
        // Of the present id: the highest limit that anybody may still use, and whether any attempt may have been carried out.
        let (mut id, mut limit, mut open) = (Stamp::ZERO, 0u64, false);
        let mut sent: Vec<u32> = Vec::new();
        let mut decisive = None;
        for step in 0.. {
            prop_assert!(step < 2_000, "never ends");
            match run.poll() {
                Step::Done(outcome) => {
                    let expected = decisive.unwrap_or(outcome.status);
                    prop_assert_eq!(outcome.status, expected);
                    prop_assert!(decisive.is_some() || outcome.status.is_indefinite() == open, "{:?}, open {}", outcome, open);
                    break;
                }
                Step::Refresh => run.attempts.refreshed(run.now, Epoch(1), vec![A, B, C]),
                Step::Wait(until) => {
                    prop_assert!(until > run.now && until <= ms(timeout));
                    run.now = until;
                    // An attempt whose time is over may have been carried out.
                    open |= run.attempts.current.is_some();
                    if let Some(current) = run.attempts.current {
                        limit = limit.max(current.limit);
                    }
                }
                Step::Send { attempt, .. } => {
                    let operation = run.attempts.operation().clone();
                    if operation.op_id != id {
                        prop_assert!(!open, "another id while {:?} may have been applied", id);
                        (id, limit) = (operation.op_id, 0);
                    }
                    prop_assert_eq!(operation.tried, open);
                    prop_assert!(operation.window.floor >= limit);
                    prop_assert!(id.is_zero() || operation.window.limit >> 16 <= id.wall().0 + 10_000);
                    prop_assert!(u64::from(operation.timeout_millis) <= timeout);
                    sent.push(attempt);
                    let may_run = |open: &mut bool, limit: &mut u64| {
                        *open = true;
                        *limit = (*limit).max(operation.window.limit);
                    };
                    match happenings.next().unwrap_or(Happening::Silence) {
                        Happening::Reply(status, late, skew) => {
                            let now = (START + run.now.0 / 1_000_000).saturating_add_signed(skew);
                            let number = if late { sent[0] } else { attempt };
                            let was_open = open;
                            let known = run.attempts.unanswered.iter().any(|(n, ..)| *n == number);
                            run.report(number, reply_at(now, Outcome::of(status)));
                            match status {
                                Status::Ok if known => decisive = Some(status),
                                _ if number != attempt => {}
                                Status::PreconditionFailed => decisive = Some(status),
                                Status::DiskFull if !was_open => decisive = Some(status),
                                Status::Timeout => may_run(&mut open, &mut limit),
                                _ => {}
                            }
                        }
                        Happening::Lost => {
                            run.report(attempt, Event::Lost);
                            may_run(&mut open, &mut limit);
                        }
                        Happening::NotSent => run.report(attempt, Event::NotSent),
                        Happening::Connected => run.report(attempt, Event::Connected),
                        Happening::Silence => {}
                        Happening::Pass(millis) => {
                            run.report(attempt, Event::NotSent);
                            run.now = (run.now + Duration::from_millis(millis)).min(ms(timeout));
                        }
                    }
                }
            }
        }
        prop_assert!(run.now <= ms(timeout));
    }
}
