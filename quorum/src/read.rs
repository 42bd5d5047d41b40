//! `Read`: a read at a level (PROTOCOL.md 1.6 and 2.2).

use std::collections::VecDeque;
use std::time::Duration;

use dunlin_protocol::register::{
    Current, ReadJudgement, RecordView, RegisterReply, RegisterRequest, View, Want, judge_read,
};
use dunlin_protocol::{Answer, Ballot, Level, Quorums, Record, ReplicaSet, Stamp, Status, Tick};

use crate::asking::Asking;
use crate::effect::{Effect, ReadEffect};
use crate::need::{Need, more_telling, small};
use crate::repair::{RepairStep, next_step, note_installed};
use crate::settled::{content_in, newest_settled, record_at, whole_in};

/// How a [`Read`] ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReadEnding {
    /// What the key holds. It may be absent, a tombstone or expired: that is the caller's to judge.
    Found {
        /// The record. Its content is there when the value was wanted.
        record: RecordView,
        /// Its ballot; zero: plain or absent.
        ballot: Ballot,
    },
    /// Only a proposer can tell: carry on as a serial read.
    GoSerial,
    /// Too few replicas are alive, or the level asks for more than there are: nothing was sent.
    Unavailable {
        /// Needed by the level.
        need: u8,
        /// Thought alive.
        alive: u8,
    },
    /// Too few answered before the deadline.
    Timeout {
        /// Needed by the level.
        need: u8,
        /// Answered.
        got: u8,
    },
    /// Too few replicas can answer any more.
    Failed {
        /// Why: a replica's reason, or [`Status::Unavailable`] where connections were all that failed.
        status: Status,
        /// Needed by the level.
        need: u8,
        /// Answered.
        got: u8,
    },
}

/// How often 1.6 is tried before a proposer has to tell (PROTOCOL.md 2.8).
const MAX_TRIES: u8 = 2;
/// The same where nobody has shown the key to be serial: a proposer would make it so, for nothing but many writes at a time.
const MAX_PLAIN_TRIES: u8 = 8;
/// How often a value is fetched in one try, when the replica that showed it had moved on.
const MAX_FETCHES: u8 = 2;
/// How often a record is fetched for a repair.
const MAX_REPAIR_FETCHES: u8 = 2;

/// A read: the nearest replica shows the value, as many others as the level needs show digests, and what they say together is judged.
///
/// At the majority and above, replicas that differ are brought to one record before the answer (write-back); below it the newest settled record
/// is the answer. Afterwards the replicas that were seen to be behind are repaired.
///
/// Call [`start`](Self::start) once, then [`handle`](Self::handle) for each answer and [`handle_timeout`](Self::handle_timeout) when
/// [`poll_timeout`](Self::poll_timeout) says so; after each, drain [`poll_effect`](Self::poll_effect). Drop it when [`is_done`](Self::is_done).
#[derive(Debug)]
pub struct Read {
    asking: Asking,
    want_value: bool,
    speculate_after: Duration,
    deadline: Tick,
    /// The latest view of each replica that answered in this try. Any view from after the start is as good as any other.
    views: Vec<(usize, View)>,
    /// A Read to these is under way.
    outstanding: ReplicaSet,
    /// Whom the value was asked from.
    value_from: Option<usize>,
    /// Ask everybody for the value: digests have led to nothing.
    greedy: bool,
    try_number: u8,
    fetches: u8,
    hedge_at: Option<Tick>,
    phase: Phase,
    effects: VecDeque<ReadEffect>,
}

#[derive(Debug)]
enum Phase {
    Asking,
    /// Waits for the content of the record with this stamp, from one of those tried.
    Fetching {
        stamp: Stamp,
        tried: ReplicaSet,
        failed: ReplicaSet,
    },
    WritingBack(WriteBack),
    /// Answered; stragglers and fetched records may still show who needs repair.
    Repairing {
        fetches: u8,
    },
    Over,
}

#[derive(Debug)]
struct WriteBack {
    record: Record,
    /// Hold exactly this record, as a plain one.
    equal: ReplicaSet,
    lost: ReplicaSet,
    /// Whether something newer, or a serial key, is why some are lost.
    contended: bool,
    status: Option<Status>,
}

impl Read {
    /// A read. `replicas` is the number that levels are compared with, `order` names the nearest first; after each `speculate_after` without
    /// enough answers one more replica is asked.
    #[expect(clippy::too_many_arguments, reason = "each is needed, none groups with another")]
    pub fn new(
        quorums: Quorums,
        replicas: usize,
        alive: ReplicaSet,
        order: Vec<usize>,
        level: Level,
        want_value: bool,
        speculate_after: Duration,
        deadline: Tick,
    ) -> Self {
        Self {
            asking: Asking::new(Need::new(quorums, replicas, level), alive, &order),
            want_value,
            speculate_after,
            deadline,
            views: Vec::new(),
            outstanding: ReplicaSet::EMPTY,
            value_from: None,
            greedy: false,
            try_number: 1,
            fetches: 0,
            hedge_at: None,
            phase: Phase::Asking,
            effects: VecDeque::new(),
        }
    }

    /// Asks as many replicas as the level needs, or ends it as unavailable.
    pub fn start(&mut self, now: Tick) {
        let alive = self.asking.alive();
        if !self.asking.need().is_met(alive) {
            let need = self.asking.need().count();
            return self.end(ReadEnding::Unavailable { need, alive: small(alive.len()) });
        }
        self.hedge_at = Some(now + self.speculate_after);
        self.ask();
    }

    /// Takes a replica's answer. Late and repeated ones are ignored.
    pub fn handle(&mut self, now: Tick, replica: usize, answer: Answer) {
        if let Phase::WritingBack(write_back) = &mut self.phase {
            if write_back.take(replica, &answer, self.asking.need().quorums()) {
                self.judge_write_back(now);
            }
            return;
        }
        if !self.outstanding.contains(replica) {
            return;
        }
        match answer {
            Answer::Reply(RegisterReply::View(view)) => self.take_view(now, replica, view),
            // The answer to a write-back that was given up.
            Answer::Reply(RegisterReply::Written { .. } | RegisterReply::Refused { .. }) if self.try_number > 1 => {}
            Answer::Reply(_) => self.take_failure(now, replica, Some(Status::BadFrame)),
            Answer::Refused { status, .. } => self.take_failure(now, replica, Some(status)),
            Answer::NotSent | Answer::Lost => self.take_failure(now, replica, None),
        }
    }

    /// To be called when [`poll_timeout`](Self::poll_timeout) has come.
    pub fn handle_timeout(&mut self, now: Tick) {
        if now >= self.deadline {
            let need = self.asking.need().count();
            match &self.phase {
                Phase::Asking | Phase::Fetching { .. } => {
                    let got = small(self.asking.answered().len());
                    self.end(ReadEnding::Timeout { need, got });
                }
                Phase::WritingBack(write_back) => {
                    let got = small(write_back.equal.len());
                    self.end(ReadEnding::Timeout { need, got });
                }
                Phase::Repairing { .. } | Phase::Over => self.phase = Phase::Over,
            }
        } else if self.hedge_at.is_some_and(|at| at <= now) {
            self.hedge_at = None;
            // The one that stands in may hang, too.
            self.hedge_at = self.hedge().then(|| now + self.speculate_after);
        }
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<ReadEffect> {
        self.effects.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due; none: it is done.
    pub fn poll_timeout(&self) -> Option<Tick> {
        (!self.is_over()).then(|| self.hedge_at.map_or(self.deadline, |at| at.min(self.deadline)))
    }

    /// Whether nothing more will be sent.
    pub fn is_done(&self) -> bool {
        self.is_over() && self.effects.is_empty()
    }

    fn is_over(&self) -> bool {
        match self.phase {
            Phase::Over => true,
            Phase::Repairing { .. } => self.outstanding.is_empty(),
            Phase::Asking | Phase::Fetching { .. } | Phase::WritingBack(_) => false,
        }
    }

    /// Asks until those under way would do.
    fn ask(&mut self) {
        while self.asking.wants_more() {
            match self.asking.next() {
                Some(replica) => self.ask_one(replica),
                None => break,
            }
        }
    }

    fn ask_one(&mut self, replica: usize) {
        // The first is asked for the value, and whoever stands in while that one has not answered.
        let has_value = self.value_from.is_some_and(|r| self.asking.answered().contains(r));
        let first = self.value_from.is_none();
        let standing_in = self.hedge_at.is_none() && !has_value;
        let want = match self.greedy || self.want_value && (first || standing_in) {
            true => Want::VALUE,
            false => Want::HEAD,
        };
        if want == Want::VALUE && first {
            self.value_from = Some(replica);
        }
        self.send_read(replica, want);
    }

    fn send_read(&mut self, replica: usize, want: Want) {
        self.outstanding.insert(replica);
        self.effects.push_back(Effect::Send { replica, request: RegisterRequest::Read { want } });
    }

    /// Asks one more; false: there is none.
    fn hedge(&mut self) -> bool {
        match self.phase {
            Phase::Asking => {
                let replica = self.asking.next_alive();
                replica.inspect(|replica| self.ask_one(*replica)).is_some()
            }
            Phase::Fetching { .. } => self.fetch_next(),
            Phase::WritingBack(_) | Phase::Repairing { .. } | Phase::Over => false,
        }
    }

    fn take_view(&mut self, now: Tick, replica: usize, view: View) {
        remove(&mut self.outstanding, replica);
        self.asking.answer(replica);
        let has_content_of = |stamp| record_at(&view, stamp).is_some_and(has_content);
        let judge = match &self.phase {
            Phase::Asking => true,
            Phase::Fetching { stamp, tried, .. } => tried.contains(replica) || has_content_of(*stamp),
            Phase::WritingBack(_) | Phase::Repairing { .. } | Phase::Over => false,
        };
        match self.views.iter_mut().find(|(r, _)| *r == replica) {
            Some((_, old)) => *old = view,
            None => self.views.push((replica, view)),
        }
        match self.phase {
            _ if judge => self.judge(now),
            Phase::Repairing { .. } => self.repair(),
            Phase::Asking | Phase::Fetching { .. } | Phase::WritingBack(_) | Phase::Over => {}
        }
    }

    fn take_failure(&mut self, now: Tick, replica: usize, status: Option<Status>) {
        remove(&mut self.outstanding, replica);
        match &mut self.phase {
            Phase::Asking => {
                if self.value_from == Some(replica) {
                    self.value_from = None;
                }
                self.fail(now, ReplicaSet::from_iter([replica]), status);
            }
            Phase::Fetching { tried, failed, .. } => {
                if !tried.contains(replica) {
                    // A view that it gave before stays good.
                    if !self.asking.answered().contains(replica) {
                        self.asking.fail(replica, status);
                    }
                    return;
                }
                failed.insert(replica);
                if !self.fetch_next() {
                    self.withdraw(now, status);
                }
            }
            Phase::Repairing { .. } => self.repair(),
            Phase::WritingBack(_) | Phase::Over => {}
        }
    }

    /// No replica that showed the record can hand it out any more: their views are as if they had never come, and others are asked.
    fn withdraw(&mut self, now: Tick, status: Option<Status>) {
        let Phase::Fetching { tried, failed, .. } = self.phase else { return };
        if tried != failed {
            // One of them may still answer.
            return;
        }
        self.views.retain(|(r, _)| !failed.contains(*r));
        self.value_from = None;
        self.phase = Phase::Asking;
        self.fail(now, failed, status);
    }

    fn fail(&mut self, now: Tick, replicas: ReplicaSet, status: Option<Status>) {
        replicas.iter().for_each(|replica| self.asking.fail(replica, status));
        if !self.asking.is_possible() {
            return self.end_failed(self.asking.status(), self.asking.answered());
        }
        self.ask();
        self.judge(now);
    }

    /// Judges the views, once they are enough.
    fn judge(&mut self, now: Tick) {
        if !self.asking.is_met() {
            return;
        }
        let quorums = *self.asking.need().quorums();
        if !self.asking.need().is_quorum() {
            return self.answer_or_fetch(now, newest_settled(&self.views, &quorums));
        }
        match judge_read(&self.views, &quorums) {
            ReadJudgement::Answer(current) => self.answer_or_fetch(now, current),
            ReadJudgement::WriteBack(current) => match whole_in(&self.views, &current) {
                Some(record) => self.write_back(record),
                None => self.fetch(now, current.stamp),
            },
            ReadJudgement::Propose => self.try_again(now),
        }
    }

    fn answer_or_fetch(&mut self, now: Tick, current: Current) {
        let found = current.find(&self.views);
        let content = content_in(&self.views, &found.head);
        if self.want_value && content.is_none() {
            return self.fetch(now, current.stamp);
        }
        let record = RecordView { head: found.head, lineage: found.lineage.clone(), content };
        self.end(ReadEnding::Found { record, ballot: current.ballot });
        self.phase = Phase::Repairing { fetches: 0 };
        self.repair();
    }

    fn fetch(&mut self, now: Tick, stamp: Stamp) {
        if self.fetches == MAX_FETCHES {
            return self.stop_fetching(now);
        }
        self.fetches += 1;
        self.phase = Phase::Fetching { stamp, tried: ReplicaSet::EMPTY, failed: ReplicaSet::EMPTY };
        self.hedge_at = Some(now + self.speculate_after);
        self.fetch_next();
    }

    /// Asks the nearest replica that showed the record and was not asked for it yet. False: there is none.
    fn fetch_next(&mut self) -> bool {
        let Phase::Fetching { stamp, tried, .. } = &mut self.phase else { return false };
        let shows = |r: usize| self.views.iter().any(|(v, view)| *v == r && record_at(view, *stamp).is_some());
        let holder = self.asking.candidates().iter().copied().find(|r| !tried.contains(*r) && shows(*r));
        let Some(holder) = holder else { return false };
        tried.insert(holder);
        self.send_read(holder, Want::VALUE);
        true
    }

    /// The key changes faster than its values can be fetched.
    fn stop_fetching(&mut self, now: Tick) {
        if self.asking.need().is_quorum() {
            self.greedy = true;
            return self.try_again(now);
        }
        // Below the majority any settled record will do.
        let whole: Vec<(usize, View)> = self.views.iter().filter(|(_, v)| has_content(&v.record)).cloned().collect();
        if whole.is_empty() {
            return self.end_failed(self.asking.status(), self.asking.answered());
        }
        let current = newest_settled(&whole, self.asking.need().quorums());
        self.end(ReadEnding::Found { record: current.find(&whole).clone(), ballot: current.ballot });
    }

    /// Begins 1.6 anew; a proposer takes over after the last try.
    fn try_again(&mut self, now: Tick) {
        let is_serial = self.views.iter().any(|(_, view)| view.is_serial());
        if self.try_number >= if is_serial { MAX_TRIES } else { MAX_PLAIN_TRIES } {
            return self.end(ReadEnding::GoSerial);
        }
        self.try_number += 1;
        self.fetches = 0;
        self.views.clear();
        self.outstanding = ReplicaSet::EMPTY;
        self.value_from = None;
        self.asking.restart();
        self.phase = Phase::Asking;
        self.hedge_at = Some(now + self.speculate_after);
        self.ask();
    }

    fn write_back(&mut self, record: Record) {
        self.outstanding = ReplicaSet::EMPTY;
        self.hedge_at = None;
        for replica in self.asking.candidates() {
            let request = RegisterRequest::Write { record: record.clone() };
            self.effects.push_back(Effect::Send { replica: *replica, request });
        }
        let (equal, lost) = (ReplicaSet::EMPTY, ReplicaSet::EMPTY);
        self.phase = Phase::WritingBack(WriteBack { record, equal, lost, contended: false, status: None });
    }

    fn judge_write_back(&mut self, now: Tick) {
        let Phase::WritingBack(write_back) = &self.phase else { return };
        let quorums = self.asking.need().quorums();
        if quorums.is_quorum(write_back.equal) {
            let record = write_back.record.clone().into();
            return self.end(ReadEnding::Found { record, ballot: Ballot::ZERO });
        }
        if quorums.is_possible(write_back.lost) {
            return;
        }
        if write_back.contended {
            self.greedy = true;
            return self.try_again(now);
        }
        self.end_failed(write_back.status.unwrap_or(Status::Unavailable), write_back.equal);
    }

    fn end_failed(&mut self, status: Status, got: ReplicaSet) {
        let need = self.asking.need().count();
        self.end(ReadEnding::Failed { status, need, got: small(got.len()) });
    }

    fn end(&mut self, ending: ReadEnding) {
        self.phase = Phase::Over;
        self.hedge_at = None;
        self.effects.push_back(Effect::Finish(ending));
    }

    fn repair(&mut self) {
        match next_step(&self.views, self.asking.need().quorums()) {
            RepairStep::Nothing => {}
            RepairStep::Install { stale, request } => {
                note_installed(&mut self.views, &stale, &request);
                for replica in stale {
                    self.effects.push_back(Effect::Send { replica, request: request.clone() });
                }
            }
            RepairStep::Fetch { holders, want } => {
                let Phase::Repairing { fetches } = &mut self.phase else { return };
                let nearest = self.asking.candidates().iter().copied().find(|r| holders.contains(r));
                let Some(nearest) = nearest.filter(|r| *fetches < MAX_REPAIR_FETCHES && !self.outstanding.contains(*r))
                else {
                    return;
                };
                *fetches += 1;
                self.send_read(nearest, want);
            }
        }
    }
}

impl WriteBack {
    /// Takes an answer; false: nothing new.
    fn take(&mut self, replica: usize, answer: &Answer, quorums: &Quorums) -> bool {
        if !quorums.all().without(self.equal).without(self.lost).contains(replica) {
            return false;
        }
        match answer {
            Answer::Reply(RegisterReply::Written { stamp }) if *stamp == self.record.stamp => {
                self.equal.insert(replica);
                return true;
            }
            // A higher stamp does not count: whoever wrote it may not have finished.
            Answer::Reply(RegisterReply::Written { .. } | RegisterReply::Refused { .. }) => self.contended = true,
            // The late answer to a Read says nothing about the write.
            Answer::Reply(RegisterReply::View(_)) => return false,
            Answer::Reply(_) => self.status = Some(Status::BadFrame),
            Answer::Refused { status, .. } => self.status = more_telling(self.status, *status),
            Answer::NotSent | Answer::Lost => {}
        }
        self.lost.insert(replica);
        true
    }
}

fn has_content(record: &RecordView) -> bool {
    record.head.tombstone || record.content.is_some()
}

fn remove(set: &mut ReplicaSet, replica: usize) {
    *set = set.without(ReplicaSet::from_iter([replica]));
}
