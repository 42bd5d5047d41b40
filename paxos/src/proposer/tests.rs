//! Scripted answers: how rounds, refusals, clocks, fetches and commits go. What follows from a record is in the tables of `judge`.

use bytes::Bytes;
use dunlin_protocol::register::PendingView;
use dunlin_protocol::{Attributes, Content, DrawError, HybridClock, Mutation, NodeId, Now, Times};

use super::*;

const WALL: Millis = Millis(1_000_000);
const DEADLINE: Tick = Tick(5_000_000_000);

fn at(wall: u64) -> Stamp {
    Stamp::new(Millis(wall), 0, 9)
}

fn put() -> Goal {
    let mutation = Mutation::Put { value: Bytes::from("new"), attributes: Attributes::default(), ttl_millis: 0 };
    Goal::Write { condition: None, mutation }
}

/// A proposer, its clock and what it last left behind.
struct Script {
    proposer: Proposer,
    clock: HybridClock,
    now: Now,
    sent: Vec<(usize, u32, RegisterRequest)>,
    ending: Option<Ending>,
}

impl Script {
    fn new(goal: Goal) -> Self {
        Self::within(goal, Window::OPEN)
    }

    fn within(goal: Goal, window: Window) -> Self {
        let op_id = Stamp::new(WALL, 0, 77);
        let config = Config { inline_value_bytes: 4, ..Config::default() };
        let mut clock = HybridClock::new(NodeId(1), Millis(0), &Times::default());
        clock.confirm(true);
        clock.set_reserve(Millis::MAX);
        let proposer = Proposer::new(config, Quorums::majority(3), goal, op_id, false, window, DEADLINE, 7);
        Self { proposer, clock, now: Now { tick: Tick(0), wall: WALL }, sent: Vec::new(), ending: None }
    }

    fn call(&mut self, with: impl FnOnce(&mut Proposer, &mut Context<'_>)) {
        with(&mut self.proposer, &mut Context { now: self.now, clock: &mut self.clock });
        self.sent.clear();
        while let Some(effect) = self.proposer.poll_effect() {
            match effect {
                Effect::Send { replica, round, request } => self.sent.push((replica, round, request)),
                Effect::Finish(ending) => {
                    assert!(self.sent.is_empty(), "the answer goes first");
                    assert!(self.ending.replace(ending).is_none(), "one ending");
                }
            }
        }
    }

    fn start(mut self) -> Self {
        self.call(|proposer, cx| proposer.start(cx));
        self
    }

    fn answer(&mut self, replica: usize, answer: Answer) {
        let round = self.proposer.round;
        self.answer_in(round, replica, answer);
    }

    fn answer_in(&mut self, round: u32, replica: usize, answer: Answer) {
        self.call(|proposer, cx| proposer.handle(cx, replica, round, answer));
    }

    fn reply(&mut self, replica: usize, reply: RegisterReply) {
        self.answer(replica, Answer::Reply(reply));
    }

    fn refuse(&mut self, replica: usize, status: Status) {
        self.answer(replica, Answer::Refused { status, seen: Stamp::ZERO });
    }

    fn promise(&mut self, replica: usize, view: View) {
        let promised = self.proposer.ballot;
        self.reply(replica, RegisterReply::Promise(View { promised, ..view }));
    }

    /// Two replicas promise, with nothing there.
    fn promised(mut self) -> Self {
        self.promise(0, View::absent());
        self.promise(1, View::absent());
        self
    }

    fn wait(&mut self) {
        self.now.tick = self.proposer.poll_timeout().expect("something is awaited");
        self.call(|proposer, cx| proposer.handle_timeout(cx));
    }

    #[track_caller]
    fn check_sent(&self, what: fn(&RegisterRequest) -> bool, replicas: &[usize]) {
        let to: Vec<usize> = self.sent.iter().map(|(replica, _, _)| *replica).collect();
        assert_eq!(to, replicas, "{:?}", self.sent);
        assert!(self.sent.iter().all(|(_, _, request)| what(request)), "{:?}", self.sent);
    }
}

fn is_prepare(request: &RegisterRequest) -> bool {
    matches!(request, RegisterRequest::Prepare { .. })
}

fn is_accept(request: &RegisterRequest) -> bool {
    matches!(request, RegisterRequest::Accept { .. })
}

fn is_commit(request: &RegisterRequest) -> bool {
    matches!(request, RegisterRequest::Commit { record: None, .. })
}

fn is_whole_commit(request: &RegisterRequest) -> bool {
    matches!(request, RegisterRequest::Commit { record: Some(_), .. })
}

fn view_of(record: Record, ballot: Ballot) -> View {
    View { record: record.into(), ballot, ..View::absent() }
}

fn large() -> Record {
    Record {
        stamp: at(500),
        op_id: at(400),
        ..Record::plain(at(400), Content::value("too large to inline"), Millis::NONE)
    }
}

fn without_content(record: Record) -> RecordView {
    RecordView { content: None, ..record.into() }
}

#[test]
fn a_write_goes_through_two_rounds_and_is_committed() {
    let script = Script::new(put()).start();
    script.check_sent(is_prepare, &[0, 1, 2]);
    let wants = |r: &RegisterRequest| match r {
        RegisterRequest::Prepare { want, .. } => want.value_upto,
        _ => panic!("a prepare"),
    };
    assert_eq!(script.sent.iter().map(|(_, _, r)| wants(r)).collect::<Vec<_>>(), [u32::MAX, 4, 4]);
    let mut script = script.promised();
    script.check_sent(is_accept, &[0, 1, 2]);
    assert!(script.proposer.may_take_effect());
    script.reply(0, RegisterReply::Accepted);
    script.reply(0, RegisterReply::Accepted);
    assert_eq!(script.ending, None, "one replica counts once");
    let accept_round = script.proposer.round;
    script.reply(1, RegisterReply::Accepted);
    script.check_sent(is_commit, &[0, 1]);
    let Some(Ending::Applied { version, number: None, expires_at: Millis::NONE }) = script.ending else {
        panic!("{:?}", script.ending)
    };
    assert!(version > script.proposer.highest_ballot());
    // A straggler accepts, and turns out to have been given another record meanwhile.
    script.answer_in(accept_round, 2, Answer::Reply(RegisterReply::Accepted));
    script.check_sent(is_commit, &[2]);
    script.reply(2, RegisterReply::NeedRecord);
    script.check_sent(is_whole_commit, &[2]);
    for replica in 0..3 {
        assert!(!script.proposer.is_done());
        script.reply(replica, RegisterReply::Committed);
    }
    assert!(script.proposer.is_done());
    assert_eq!(script.proposer.poll_timeout(), None);
}

#[test]
fn who_did_not_accept_is_sent_the_record() {
    let mut script = Script::new(put()).start().promised();
    script.reply(2, RegisterReply::Reject { max: script.proposer.ballot });
    script.reply(0, RegisterReply::Accepted);
    script.reply(1, RegisterReply::Accepted);
    let commits: Vec<bool> = script.sent.iter().map(|(_, _, request)| is_whole_commit(request)).collect();
    assert_eq!(commits, [false, false, true]);

    let mut script = Script::new(put()).start().promised();
    script.reply(0, RegisterReply::Accepted);
    script.reply(1, RegisterReply::Accepted);
    script.wait();
    script.check_sent(is_whole_commit, &[2]);
    script.wait();
    assert!(script.proposer.is_done());
}

#[test]
fn an_answer_to_an_earlier_round_counts_for_nothing() {
    let mut script = Script::new(put()).start().promised();
    let earlier = script.proposer.round;
    script.wait();
    script.check_sent(is_prepare, &[0, 1, 2]);
    script.answer_in(earlier, 0, Answer::Reply(RegisterReply::Accepted));
    let mut script = script.promised();
    script.check_sent(is_accept, &[0, 1, 2]);
    script.answer_in(earlier, 0, Answer::Reply(RegisterReply::Accepted));
    script.answer_in(earlier, 1, Answer::Reply(RegisterReply::Accepted));
    assert_eq!(script.ending, None);
    // Nor does a promise that is not for this ballot.
    let mut script = Script::new(put()).start();
    for replica in 0..3 {
        script.reply(replica, RegisterReply::Promise(View { promised: at(1), ..View::absent() }));
    }
    assert!(script.sent.is_empty());
}

#[test]
fn a_rejected_proposer_backs_off_and_goes_above() {
    let mut script = Script::new(put()).start();
    let max = Stamp::new(Millis(WALL.0 + 3000), 0, 5);
    script.reply(0, RegisterReply::Reject { max });
    script.reply(1, RegisterReply::Reject { max });
    assert!(script.sent.is_empty());
    assert!(script.proposer.poll_timeout().expect("a delay") < Tick(200_000_000));
    script.wait();
    script.check_sent(is_prepare, &[0, 1, 2]);
    assert!(script.proposer.highest_ballot() > max);
    // Without answers it begins again until its deadline.
    while script.ending.is_none() {
        script.wait();
    }
    assert_eq!(script.now.tick, DEADLINE);
    assert_eq!(script.ending, Some(Ending::TimedOut { need: 2, got: 0, sent: false }));
    assert!(script.proposer.is_done());

    let mut script = Script::new(put()).start().promised();
    script.reply(2, RegisterReply::Accepted);
    script.now.tick = DEADLINE;
    script.call(|proposer, cx| proposer.handle_timeout(cx));
    assert_eq!(script.ending, Some(Ending::TimedOut { need: 2, got: 1, sent: true }));
}

#[test]
fn too_few_replicas() {
    let mut script = Script::new(put()).start();
    script.answer(0, Answer::NotSent);
    script.answer(2, Answer::NotSent);
    assert_eq!(script.ending, Some(Ending::Unavailable { need: 2, alive: 1 }));

    // A write that may be accepted somewhere is not left in doubt while there is time.
    let mut script = Script::new(put()).start().promised();
    script.answer(0, Answer::NotSent);
    script.answer(1, Answer::NotSent);
    assert_eq!(script.ending, None);
    script.wait();
    script.check_sent(is_prepare, &[0, 1, 2]);
}

#[test]
fn refusals() {
    let refused = |status, got, sent| Some(Ending::Refused { status, need: 2, got, sent });
    let mut script = Script::new(put()).start();
    script.refuse(0, Status::Suspect);
    script.refuse(1, Status::Suspect);
    assert_eq!(script.ending, refused(Status::Suspect, 0, false));

    // One stale epoch is enough to fetch the topology, but not to give up what the others can decide.
    let mut script = Script::new(put()).start();
    script.refuse(0, Status::StaleEpoch);
    assert_eq!(script.ending, None);
    script.answer(1, Answer::Lost);
    assert_eq!(script.ending, refused(Status::StaleEpoch, 0, false));

    // Full disks: no higher ballot; when all have answered it is certain that nothing was accepted.
    let mut script = Script::new(put()).start().promised();
    script.refuse(0, Status::DiskFull);
    script.refuse(1, Status::DiskFull);
    assert_eq!(script.ending, None);
    script.refuse(2, Status::DiskFull);
    assert!(script.sent.is_empty());
    assert_eq!(script.ending, refused(Status::DiskFull, 0, false));

    let mut script = Script::new(put()).start().promised();
    script.refuse(0, Status::DiskFull);
    script.reply(2, RegisterReply::Accepted);
    script.refuse(1, Status::DiskFull);
    assert_eq!(script.ending, refused(Status::DiskFull, 1, true));

    let mut script = Script::new(put()).start().promised();
    script.refuse(0, Status::DiskFull);
    script.refuse(1, Status::DiskFull);
    script.wait();
    assert_eq!(script.ending, refused(Status::DiskFull, 0, true), "the third may have accepted");

    // A log that fails while it writes what was accepted may have it when it is opened again.
    let mut script = Script::new(put()).start().promised();
    script.refuse(0, Status::StorageFailed);
    script.answer(1, Answer::NotSent);
    script.answer(2, Answer::NotSent);
    assert_eq!(script.ending, refused(Status::StorageFailed, 0, true));
}

#[test]
fn ballots_stay_within_the_window() {
    let floor = Stamp::new(Millis(WALL.0 + 700), 3, 0).hlc();
    let script = Script::within(put(), Window::until(floor, Millis(WALL.0 + 800))).start();
    assert!(script.proposer.highest_ballot().hlc() > floor);
    let mut script = Script::within(put(), Window::until(0, Millis(WALL.0 + 10))).start();
    script.reply(0, RegisterReply::Reject { max: Stamp::new(Millis(WALL.0 + 11), 0, 5) });
    script.reply(1, RegisterReply::Reject { max: Stamp::new(Millis(WALL.0 + 11), 0, 5) });
    let before = script.proposer.highest_ballot();
    script.wait();
    assert_eq!(script.ending, Some(Ending::TimedOut { need: 2, got: 0, sent: false }));
    assert_eq!(script.proposer.highest_ballot(), before);
    assert!(script.proposer.highest_seen() > before);
}

#[test]
fn clocks() {
    let mut script = Script::new(put());
    script.clock.confirm(false);
    let script = script.start();
    assert_eq!(script.ending, Some(Ending::Clock(DrawError::Unconfirmed)));

    let mut script = Script::new(put());
    script.now.wall = Millis(WALL.0 - 11_000);
    let script = script.start();
    assert_eq!(script.ending, Some(Ending::ClockSkew));

    // A stamp seen just now lies beyond the durable reserve: the next mark is on its way to the disk, and the attempt waits for it.
    let mut script = Script::new(put());
    script.clock = HybridClock::new(NodeId(1), Millis(0), &Times::default());
    script.clock.confirm(true);
    script.clock.set_reserve(WALL);
    let mut script = script.start();
    assert!(script.sent.is_empty() && script.ending.is_none());
    script.clock.set_reserve(Millis::MAX);
    script.wait();
    assert_eq!(script.sent.len(), 3);

    // A reply from the future counts for nothing and raises no clock, wherever the stamp stands in it.
    let far = Stamp::new(Millis(WALL.0 + 11_000), 0, 5);
    let record = || Record { stamp: at(500), ..Record::absent() };
    let pending = PendingView { ballot: far, record: record().into() };
    let views = [
        view_of(Record { stamp: far, ..record() }, at(500)),
        view_of(Record { reach: far, ..record() }, at(500)),
        view_of(record(), far),
        View { pending: Some(pending), ..View::absent() },
    ];
    for view in views {
        let mut script = Script::new(put()).start();
        let hlc = script.clock.hlc();
        script.promise(0, view.clone());
        script.promise(1, View::absent());
        assert!(script.sent.is_empty(), "{view:?}");
        script.promise(2, view);
        assert_eq!(script.clock.hlc(), hlc);
        assert_eq!(script.ending, Some(Ending::ClockSkew));
    }
}

#[test]
fn a_large_value_is_fetched_from_who_showed_it() {
    let large_view = || View { record: without_content(large()), ballot: at(450), ..View::absent() };
    let read = |request: &RegisterRequest| matches!(request, RegisterRequest::Read { want: Want::ALL });
    let mut script = Script::new(Goal::Read).start();
    script.promise(1, large_view());
    script.promise(2, large_view());
    script.check_sent(read, &[1]);
    // The first has another record by now, the second shows it.
    script.reply(1, RegisterReply::View(view_of(Record { stamp: at(700), ..large() }, at(650))));
    script.check_sent(read, &[2]);
    script.reply(2, RegisterReply::View(view_of(large(), at(450))));
    let expected = Ending::Read { record: large().into(), ballot: at(450) };
    assert_eq!(script.ending, Some(expected.clone()));

    // The nearest replica sends it at once, with whichever view counts.
    let mut script = Script::new(Goal::Read).start();
    script.promise(1, large_view());
    script.promise(0, view_of(large(), at(450)));
    assert_eq!(script.ending, Some(expected));

    // Nobody has it any more: it was overwritten, and the proposer begins again.
    let mut script = Script::new(Goal::Read).start();
    script.promise(1, large_view());
    script.promise(2, large_view());
    script.answer(1, Answer::Lost);
    script.wait();
    assert!(script.sent.is_empty() && script.ending.is_none());
    script.wait();
    script.check_sent(is_prepare, &[0, 1, 2]);
}

#[test]
fn what_is_settled_is_proposed_unchanged() {
    let pending = PendingView { ballot: at(450), record: large().into() };
    let mut script = Script::new(Goal::Read).start();
    script.promise(0, View { pending: Some(pending), ..View::absent() });
    script.promise(1, View::absent());
    script.check_sent(is_accept, &[0, 1, 2]);
    let ballot = script.proposer.ballot;
    let expected = RegisterRequest::Accept { ballot, record: large(), next: Ballot::ZERO };
    assert!(script.sent.iter().all(|(_, _, request)| *request == expected));
    assert!(!script.proposer.may_take_effect());
    script.reply(1, RegisterReply::Accepted);
    script.reply(2, RegisterReply::Accepted);
    assert_eq!(script.ending, Some(Ending::Read { record: large().into(), ballot }));
}

#[test]
fn an_increment_found_applied_knows_its_number() {
    let mut script = Script::new(Goal::Write { condition: None, mutation: Mutation::Increment { by: 5 } }).start();
    script = script.promised();
    let RegisterRequest::Accept { record, .. } = script.sent[0].2.clone() else { panic!("an accept") };
    script.wait();
    // Another proposer took the proposal up, and another operation overwrote it.
    let ancestor = dunlin_protocol::Ancestor { op_id: record.op_id, stamp: record.stamp };
    let later = Record {
        stamp: Stamp::new(WALL, 900, 5),
        op_id: Stamp::new(WALL, 800, 5),
        lineage: vec![ancestor],
        content: Content::Tombstone,
        ..record.clone()
    };
    let ballot = Stamp::new(WALL, 850, 5);
    script.promise(0, view_of(later.clone(), ballot));
    script.promise(1, view_of(later, ballot));
    let expected = Ending::Applied { version: record.stamp, number: Some(5), expires_at: Millis::NONE };
    assert_eq!(script.ending, Some(expected));
    assert!(script.proposer.is_done());
}
