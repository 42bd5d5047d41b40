//! A compact coordinator for the explorer: plain write (1.4), proposer in two rounds (1.5), quorum read (1.6), outcome query (1.8) and
//! collector (1.10), over the real combination of views.

use dunlin_protocol::register::{ReadJudgement, RecordView};
use dunlin_protocol::register::{RegisterReply, RegisterRequest, View, Want, combine, judge_read};
use dunlin_protocol::{Ancestor, Ballot, Content, Millis, OpId, Quorums, Record, ReplicaSet, Stamp, Window};

use super::Break;
use super::clock::Clock;

/// What a client asks. Values are numbers above 0; 0 stands for "no value", so that writing it deletes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Task {
    /// Serial: replace the value, whatever it is, and tell the one before.
    Swap(u32),
    /// Serial: replace the value if it is `expect`.
    Cas { expect: u32, new: u32 },
    /// Quorum read.
    Read,
    /// Plain write.
    Write(u32),
    /// Whether the operation of this number was applied.
    Outcome(usize),
    /// Drop the key's tombstone.
    Collect,
}

impl Task {
    pub(crate) fn is_write(self) -> bool {
        matches!(self, Self::Swap(_) | Self::Cas { .. } | Self::Write(_))
    }
}

/// How an operation ended, as far as its coordinator can tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    Value(u32),
    /// `before` is not known when the operation is found applied.
    Swapped {
        before: Option<u32>,
    },
    Written,
    ConditionFailed {
        current: u32,
    },
    NotApplied,
    Applied,
    Collected,
}

/// One attempt at an operation.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) task: Task,
    pub(crate) op_id: OpId,
    /// The operation that an outcome query asks for, else the same.
    pub(crate) subject: OpId,
    pub(crate) window: Window,
    pub(crate) deadline: Millis,
    pub(crate) is_retry: bool,
}

/// What the cluster and the test fix for all attempts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) quorums: Quorums,
    pub(crate) lineage_limit: usize,
    pub(crate) rounds: u32,
    /// Plain writes wait for a quorum; else for one replica.
    pub(crate) plain_at_quorum: bool,
    pub(crate) broken: Break,
}

/// How an attempt ended; no answer: unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ending {
    pub(crate) answer: Option<Answer>,
    pub(crate) plainly: bool,
}

/// What is sent, and to which replicas.
pub(crate) type Broadcast = (ReplicaSet, RegisterRequest);

#[derive(Clone, Debug)]
enum Phase {
    Plain,
    Reading,
    WritingBack(Record),
    Preparing,
    Accepting(Record, Answer),
    Surveying,
    Dropping,
}

/// Drives one attempt. Handle what happens with [`start`](Self::start), [`handle`](Self::handle) and [`time_out`](Self::time_out); after each,
/// take what [`outbox`](Self::outbox) and [`ending`](Self::ending) hold. Replies to an earlier phase are the caller's to drop.
#[derive(Clone, Debug)]
pub(crate) struct Coordinator {
    attempt: Attempt,
    terms: Terms,
    phase: Phase,
    /// Rises with each phase.
    pub(crate) phase_number: u32,
    yes: ReplicaSet,
    no: ReplicaSet,
    views: Vec<(usize, View)>,
    ballot: Ballot,
    rounds: u32,
    seen: Stamp,
    /// An earlier attempt, a plain write or an Accept of this one may have been carried out.
    tried: bool,
    /// Stamps that this coordinator proposed for the operation, with the value that each replaced.
    proposals: Vec<(Stamp, u32)>,
    pub(crate) outbox: Vec<Broadcast>,
    pub(crate) ending: Option<Ending>,
}

impl Coordinator {
    pub(crate) fn start(attempt: Attempt, terms: Terms, clock: &mut Clock, now: Millis) -> Self {
        clock.raise(attempt.op_id.hlc().max(attempt.subject.hlc()).max(attempt.window.floor));
        let tried = attempt.is_retry;
        let mut this = Self {
            attempt,
            terms,
            phase: Phase::Reading,
            phase_number: 0,
            yes: ReplicaSet::EMPTY,
            no: ReplicaSet::EMPTY,
            views: Vec::new(),
            ballot: Ballot::ZERO,
            rounds: 0,
            seen: Stamp::ZERO,
            tried,
            proposals: Vec::new(),
            outbox: Vec::new(),
            ending: None,
        };
        match this.attempt.task {
            Task::Write(value) => {
                let record = Record::plain(this.attempt.op_id, content(value), Millis::NONE);
                this.enter(Phase::Plain, RegisterRequest::Write { record });
            }
            Task::Read => this.enter(Phase::Reading, RegisterRequest::Read { want: Want::ALL }),
            Task::Collect => this.enter(Phase::Surveying, RegisterRequest::Read { want: Want::ALL }),
            Task::Swap(_) | Task::Cas { .. } | Task::Outcome(_) => this.prepare(clock, now),
        }
        this
    }

    pub(crate) fn handle(&mut self, replica: usize, reply: RegisterReply, clock: &mut Clock, now: Millis) {
        if self.ending.is_some() || self.yes.contains(replica) {
            return;
        }
        let agrees = match reply {
            RegisterReply::View(view) | RegisterReply::Promise(view) => {
                self.views.push((replica, view));
                true
            }
            RegisterReply::Accepted | RegisterReply::Dropped => true,
            RegisterReply::Written { stamp } => match &self.phase {
                Phase::WritingBack(record) => stamp == record.stamp || self.terms.broken == Break::CountHigherStamps,
                _ => true,
            },
            RegisterReply::Reject { max } => {
                clock.raise(max.hlc());
                false
            }
            RegisterReply::Refused { seen } => {
                self.seen = self.seen.max(seen);
                false
            }
            RegisterReply::NotDropped => false,
            RegisterReply::Committed
            | RegisterReply::NeedRecord
            | RegisterReply::Installed
            | RegisterReply::Unsettled => return,
        };
        if agrees {
            self.yes.insert(replica);
        } else {
            self.no.insert(replica);
        }
        let quorum = self.terms.quorums.is_quorum(self.yes);
        let possible = self.terms.quorums.is_possible(self.no);
        let everyone = self.yes == self.terms.quorums.all();
        match self.phase.clone() {
            Phase::Plain => {
                let (enough, hopeless) = match self.terms.plain_at_quorum {
                    true => (quorum, !possible),
                    false => (agrees, !agrees),
                };
                if enough {
                    self.ending = Some(Ending { answer: Some(Answer::Written), plainly: true });
                } else if hopeless {
                    self.fall_back(clock, now);
                }
            }
            Phase::Reading if quorum => self.judge(clock, now),
            Phase::WritingBack(record) if quorum => self.end(Some(Answer::Value(value_of(&record.into())))),
            Phase::Preparing if quorum => self.evaluate(clock, now),
            Phase::Accepting(record, answer) if quorum => self.choose(record, answer),
            Phase::WritingBack(_) | Phase::Preparing | Phase::Accepting(..) if !possible => self.prepare(clock, now),
            Phase::Surveying if everyone || quorum && self.terms.broken == Break::SurveyQuorum => {
                self.drop_tombstone(clock, now);
            }
            Phase::Dropping if everyone => self.end(Some(Answer::Collected)),
            Phase::Surveying | Phase::Dropping if !agrees => self.end(None),
            _ => {}
        }
    }

    /// Too few replicas answered in time.
    pub(crate) fn time_out(&mut self, clock: &mut Clock, now: Millis) {
        match self.phase {
            Phase::Plain => self.fall_back(clock, now),
            Phase::Surveying | Phase::Dropping => self.end(None),
            _ => self.prepare(clock, now),
        }
    }

    fn enter(&mut self, phase: Phase, request: RegisterRequest) {
        self.phase = phase;
        self.phase_number += 1;
        (self.yes, self.no) = (ReplicaSet::EMPTY, ReplicaSet::EMPTY);
        self.views.clear();
        self.outbox.push((self.terms.quorums.all(), request));
    }

    fn end(&mut self, answer: Option<Answer>) {
        self.ending = Some(Ending { answer, plainly: false });
    }

    fn fall_back(&mut self, clock: &mut Clock, now: Millis) {
        self.tried = true;
        self.prepare(clock, now);
    }

    /// P1.
    fn prepare(&mut self, clock: &mut Clock, now: Millis) {
        self.rounds += 1;
        clock.raise(self.seen.hlc());
        let ballot = clock.draw(now);
        let late = clock.wall(now) > self.attempt.deadline;
        let outside = !self.attempt.window.admits(ballot) && self.terms.broken != Break::DrawBeyondLimit;
        if self.rounds > self.terms.rounds || late || outside {
            return self.end(None);
        }
        self.ballot = ballot;
        self.enter(Phase::Preparing, RegisterRequest::Prepare { ballot, want: Want::ALL });
    }

    /// 1.6.
    fn judge(&mut self, clock: &mut Clock, now: Millis) {
        let views = self.take_views(clock);
        match judge_read(&views, &self.terms.quorums) {
            ReadJudgement::Answer(current) => self.end(Some(Answer::Value(value_of(current.find(&views))))),
            ReadJudgement::WriteBack(current) => {
                let record = current.find(&views).to_record().expect("asked for all of it");
                if self.terms.broken == Break::NoWriteBack {
                    return self.end(Some(Answer::Value(value_of(&record.into()))));
                }
                self.enter(Phase::WritingBack(record.clone()), RegisterRequest::Write { record });
            }
            ReadJudgement::Propose => self.prepare(clock, now),
        }
    }

    /// P2 to P6, and 1.8.
    fn evaluate(&mut self, clock: &mut Clock, now: Millis) {
        let views = self.take_views(clock);
        let combination = combine(&views, &self.terms.quorums);
        let current = combination.current.find(&views).to_record().expect("asked for all of it");
        let stable = combination.stable || self.terms.broken == Break::CallAllStable;
        let value = content_value(&current.content);
        let Attempt { task, op_id, subject, is_retry, .. } = self.attempt;
        let new = match task {
            // Everyone in P has promised by now, so P5 asks for an entry.
            Task::Read => return self.settle(current, Answer::Value(value), stable && combination.has_entry),
            Task::Outcome(_) => return self.seal(current, subject, stable, clock, now),
            Task::Collect => return self.end(None),
            Task::Swap(_) | Task::Cas { .. } | Task::Write(_) => task,
        };
        if self.terms.broken != Break::SkipLineage {
            if was_applied(&current, op_id) {
                let before = self.before(&current);
                let answer = if matches!(new, Task::Write(_)) { Answer::Written } else { Answer::Swapped { before } };
                return self.settle(current, answer, stable);
            }
            if was_ruled_out(&current, op_id) {
                return self.settle(current, Answer::NotApplied, stable);
            }
        }
        if self.tried && current.reach >= op_id && self.terms.broken != Break::SkipReach {
            return self.end(None);
        }
        let (written, answer) = match new {
            Task::Cas { expect, .. } if expect != value => {
                let never_tried = self.proposals.is_empty() && !is_retry;
                return self.settle(current, Answer::ConditionFailed { current: value }, stable && never_tried);
            }
            Task::Cas { new, .. } | Task::Swap(new) => (new, Answer::Swapped { before: Some(value) }),
            Task::Write(new) => (new, Answer::Written),
            Task::Read | Task::Outcome(_) | Task::Collect => unreachable!("handled above"),
        };
        let mut record = Record {
            stamp: self.fresh(current.stamp.max(current.reach).max(op_id), clock, now),
            op_id,
            reach: current.reach,
            expires_at: Millis::NONE,
            lineage: Vec::new(),
            content: content(written),
        };
        inherit(&mut record, &current, self.terms.lineage_limit);
        self.tried = true;
        self.proposals.push((record.stamp, value));
        self.accept(record, answer);
    }

    /// 1.8: the answer about X, or the decision that it will never be applied.
    fn seal(&mut self, current: Record, x: OpId, stable: bool, clock: &mut Clock, now: Millis) {
        if was_ruled_out(&current, x) {
            return self.settle(current, Answer::NotApplied, stable);
        }
        if was_applied(&current, x) {
            return self.settle(current, Answer::Applied, stable);
        }
        if current.reach >= x {
            return self.end(None);
        }
        let mut record = Record {
            stamp: self.fresh(current.stamp.max(current.reach).max(x), clock, now),
            op_id: OpId::ZERO,
            lineage: Vec::new(),
            ..current.clone()
        };
        push(&mut record, Ancestor { op_id: x, stamp: Stamp::ZERO }, self.terms.lineage_limit);
        inherit(&mut record, &current, self.terms.lineage_limit);
        self.accept(record, Answer::NotApplied);
    }

    fn settle(&mut self, current: Record, answer: Answer, shortcut: bool) {
        match shortcut {
            true => self.end(Some(answer)),
            false => self.accept(current, answer),
        }
    }

    fn accept(&mut self, record: Record, answer: Answer) {
        let request = RegisterRequest::Accept { ballot: self.ballot, record: record.clone(), next: Ballot::ZERO };
        self.enter(Phase::Accepting(record, answer), request);
    }

    /// A quorum accepted. Who accepted is told by name, the others get the whole record.
    fn choose(&mut self, record: Record, answer: Answer) {
        let (ballot, stamp) = (self.ballot, record.stamp);
        let others = self.terms.quorums.all().without(self.yes);
        self.outbox.push((self.yes, RegisterRequest::Commit { ballot, stamp, record: None }));
        self.outbox.push((others, RegisterRequest::Commit { ballot, stamp, record: Some(record) }));
        self.end(Some(answer));
    }

    /// 1.10, between its steps. What views do not show of a register's age, Drop tests.
    fn drop_tombstone(&mut self, clock: &mut Clock, now: Millis) {
        let views = self.take_views(clock);
        let (ballot, head) = (views[0].1.ballot, views[0].1.record.head);
        let same = |v: &View| v.ballot == ballot && v.record.head.stamp == head.stamp && v.pending.is_none();
        let something = !head.stamp.is_zero() || views.iter().any(|(_, v)| v.is_serial());
        if !head.tombstone
            || !something
            || !views.iter().all(|(_, v)| same(v))
            || clock.wall(now) > self.attempt.deadline
        {
            return self.end(None);
        }
        let started_at = self.attempt.op_id.wall();
        self.enter(Phase::Dropping, RegisterRequest::Drop { ballot, stamp: head.stamp, started_at });
    }

    fn take_views(&mut self, clock: &mut Clock) -> Vec<(usize, View)> {
        let mut views = std::mem::take(&mut self.views);
        for (_, view) in &mut views {
            if self.terms.broken == Break::IgnorePendings {
                view.pending = None;
            }
            self.seen = self.seen.max(view.highest_stamp());
        }
        clock.see(self.seen);
        views
    }

    fn fresh(&self, above: Stamp, clock: &mut Clock, now: Millis) -> Stamp {
        clock.raise(self.seen.max(above).hlc());
        clock.draw(now)
    }

    /// What the operation replaced, where this coordinator made the proposal that was chosen.
    fn before(&self, current: &Record) -> Option<u32> {
        let chosen = |stamp: &Stamp| current.stamp == *stamp || current.lineage.iter().any(|a| a.stamp == *stamp);
        self.proposals.iter().find(|(stamp, _)| chosen(stamp)).map(|(_, before)| *before)
    }
}

fn was_applied(current: &Record, op_id: OpId) -> bool {
    current.op_id == op_id || current.lineage.iter().any(|a| a.op_id == op_id && !a.stamp.is_zero())
}

fn was_ruled_out(current: &Record, op_id: OpId) -> bool {
    current.lineage.iter().any(|a| a.op_id == op_id && a.stamp.is_zero())
}

/// P6: the lineage of what replaces `current`.
fn inherit(record: &mut Record, current: &Record, limit: usize) {
    if !current.stamp.is_zero() {
        push(record, Ancestor { op_id: current.op_id, stamp: current.stamp }, limit);
    }
    for ancestor in &current.lineage {
        push(record, *ancestor, limit);
    }
}

fn push(record: &mut Record, ancestor: Ancestor, limit: usize) {
    if record.lineage.len() < limit {
        record.lineage.push(ancestor);
    } else {
        let hidden = if ancestor.stamp.is_zero() { ancestor.op_id } else { ancestor.stamp };
        record.reach = record.reach.max(hidden);
    }
}

pub(crate) fn content(value: u32) -> Content {
    match value {
        0 => Content::Tombstone,
        value => Content::value(value.to_be_bytes().to_vec()),
    }
}

fn content_value(content: &Content) -> u32 {
    content.bytes().map_or(0, |b| u32::from_be_bytes(b[..].try_into().expect("a value written here has four bytes")))
}

fn value_of(record: &RecordView) -> u32 {
    content_value(record.content.as_ref().expect("asked for all of it"))
}
