//! `Write`: a plain write at a level (PROTOCOL.md 1.4).

use std::collections::VecDeque;
use std::time::Duration;

use dunlin_protocol::register::{RegisterReply, RegisterRequest};
use dunlin_protocol::{Answer, Level, Quorums, Record, ReplicaSet, Stamp, Status, Tick};

use crate::effect::{Effect, WriteEffect};
use crate::need::{Need, more_telling, small};

/// How a [`Write`] ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WriteEnding {
    /// The level is met.
    Written {
        /// The record's stamp.
        version: Stamp,
        /// How many replicas confirmed.
        got: u8,
    },
    /// The key is serial: carry on as an unconditional serial write under the same op id.
    GoSerial {
        /// Whether some replica stored the record or may have: then the serial write is marked as tried (1.4).
        tried: bool,
    },
    /// Too few replicas are alive, or the level asks for more than there are: nothing was sent.
    Unavailable {
        /// Needed by the level.
        need: u8,
        /// Thought alive.
        alive: u8,
    },
    /// Too few confirmed before the deadline: the write may still take effect.
    Timeout {
        /// Needed by the level.
        need: u8,
        /// Confirmed.
        got: u8,
    },
    /// Too few replicas can confirm any more.
    Failed {
        /// Why: a replica's reason, or [`Status::Unavailable`] where connections were all that failed.
        status: Status,
        /// Needed by the level.
        need: u8,
        /// Confirmed.
        got: u8,
        /// Whether some replica stored it or may have: then it may still take effect.
        indefinite: bool,
    },
}

/// A plain write: the record goes to all replicas, the level decides how many must confirm.
///
/// Call [`start`](Self::start) once, then [`handle`](Self::handle) for each answer and [`handle_timeout`](Self::handle_timeout) when
/// [`poll_timeout`](Self::poll_timeout) says so; after each, drain [`poll_effect`](Self::poll_effect). Drop it when [`is_done`](Self::is_done).
#[derive(Debug)]
pub struct Write {
    need: Need,
    alive: ReplicaSet,
    record: Record,
    resend: bool,
    deadline: Tick,
    confirmed: ReplicaSet,
    /// Answered that the key is serial.
    serial: ReplicaSet,
    /// Will not confirm for another reason.
    failed: ReplicaSet,
    /// Whether a replica stored it, or failed and may have.
    may_be_stored: bool,
    /// How long replicas are waited for whose answer only says whether the write was tried.
    patience: Duration,
    /// When that wait is over.
    hurry_at: Option<Tick>,
    status: Option<Status>,
    ended: bool,
    effects: VecDeque<WriteEffect>,
}

impl Write {
    /// A write of `record`, whose stamp is the op id. `replicas` is the number that levels are compared with; `resend` says that an earlier
    /// attempt may have sent the same record.
    pub fn new(
        quorums: Quorums,
        replicas: usize,
        alive: ReplicaSet,
        level: Level,
        record: Record,
        resend: bool,
        deadline: Tick,
    ) -> Self {
        Self {
            need: Need::new(quorums, replicas, level),
            alive: alive.and(quorums.all()),
            record,
            resend,
            deadline,
            confirmed: ReplicaSet::EMPTY,
            serial: ReplicaSet::EMPTY,
            failed: ReplicaSet::EMPTY,
            may_be_stored: false,
            patience: Duration::from_millis(20),
            hurry_at: None,
            status: None,
            ended: false,
            effects: VecDeque::new(),
        }
    }

    /// When the key turns out to be serial, those that have not answered by then are waited for so long: a write that nobody stored is not in doubt.
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Sends it to all replicas, also to those thought dead, or ends it as unavailable.
    pub fn start(&mut self, _now: Tick) {
        if !self.need.is_met(self.alive) {
            let (need, alive) = (self.need.count(), small(self.alive.len()));
            // Nobody was asked, so nobody is waited for.
            self.failed = self.all();
            return self.finish(WriteEnding::Unavailable { need, alive });
        }
        for replica in self.alive.iter().chain(self.all().without(self.alive).iter()) {
            let request = RegisterRequest::Write { record: self.record.clone() };
            self.effects.push_back(Effect::Send { replica, request });
        }
    }

    /// Takes a replica's answer. Later ones of the same replica are ignored.
    pub fn handle(&mut self, now: Tick, replica: usize, answer: Answer) {
        if !self.unanswered().contains(replica) {
            return;
        }
        match answer {
            Answer::Reply(RegisterReply::Written { stamp }) if stamp >= self.record.stamp => {
                // What was superseded already when it came was not stored.
                self.may_be_stored |= stamp == self.record.stamp;
                self.confirmed.insert(replica);
            }
            Answer::Reply(RegisterReply::Refused { .. }) => {
                self.serial.insert(replica);
            }
            Answer::Reply(_) => self.fail(replica, Some(Status::BadFrame), true),
            Answer::Refused { status, .. } => self.fail(replica, Some(status), !is_definite(status)),
            Answer::NotSent => self.fail(replica, None, false),
            Answer::Lost => self.fail(replica, None, true),
        }
        if !self.ended {
            self.judge(now);
        }
    }

    /// To be called when [`poll_timeout`](Self::poll_timeout) has come.
    pub fn handle_timeout(&mut self, now: Tick) {
        if self.hurry_at.is_some_and(|at| at <= now) && !self.ended {
            self.finish(WriteEnding::GoSerial { tried: true });
        }
        if now < self.deadline {
            return;
        }
        if !self.ended {
            let (need, got) = (self.need.count(), self.got());
            match self.is_impossible() {
                true => self.give_up(),
                false => self.finish(WriteEnding::Timeout { need, got }),
            }
        }
        // Nobody is waited for any longer.
        self.failed = self.all();
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<WriteEffect> {
        self.effects.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due; none: it is done.
    pub fn poll_timeout(&self) -> Option<Tick> {
        let hurry_at = self.hurry_at.filter(|_| !self.ended);
        (!self.is_over()).then_some(hurry_at.map_or(self.deadline, |at| at.min(self.deadline)))
    }

    /// Whether nothing more will come of it.
    pub fn is_done(&self) -> bool {
        self.is_over() && self.effects.is_empty()
    }

    fn all(&self) -> ReplicaSet {
        self.need.quorums().all()
    }

    fn unanswered(&self) -> ReplicaSet {
        self.all().without(self.confirmed).without(self.serial).without(self.failed)
    }

    fn is_over(&self) -> bool {
        self.ended && self.unanswered().is_empty()
    }

    fn got(&self) -> u8 {
        small(self.confirmed.len())
    }

    fn is_impossible(&self) -> bool {
        !self.need.is_possible(self.all().without(self.confirmed).without(self.unanswered()))
    }

    fn fail(&mut self, replica: usize, status: Option<Status>, may_be_stored: bool) {
        self.failed.insert(replica);
        self.may_be_stored |= may_be_stored;
        if let Some(status) = status {
            self.status = more_telling(self.status, status);
        }
    }

    fn judge(&mut self, now: Tick) {
        let refused = !self.serial.is_empty();
        if refused && !self.need.is_quorum() {
            // Below the majority nobody else may confirm what a serial key has to decide.
            return self.go_serial(now);
        }
        if self.need.is_met(self.confirmed) {
            return self.finish(WriteEnding::Written { version: self.record.stamp, got: self.got() });
        }
        if !self.is_impossible() {
            return;
        }
        if refused {
            return self.go_serial(now);
        }
        // As long as nobody can have stored it, those that have not answered decide whether the failure is definite.
        if self.is_indefinite() || self.unanswered().is_empty() {
            self.give_up();
        }
    }

    /// As long as nobody stored it, those that have not answered decide whether it was tried.
    fn go_serial(&mut self, now: Tick) {
        let tried = self.resend || self.may_be_stored;
        if tried || self.unanswered().is_empty() {
            return self.finish(WriteEnding::GoSerial { tried });
        }
        self.hurry_at.get_or_insert(now + self.patience);
    }

    fn is_indefinite(&self) -> bool {
        self.resend || self.may_be_stored || !self.confirmed.is_empty()
    }

    fn give_up(&mut self) {
        let ending = WriteEnding::Failed {
            status: self.status.unwrap_or(Status::Unavailable),
            need: self.need.count(),
            got: self.got(),
            indefinite: self.is_indefinite() || !self.unanswered().is_empty(),
        };
        self.finish(ending);
    }

    fn finish(&mut self, ending: WriteEnding) {
        self.ended = true;
        self.effects.push_back(Effect::Finish(ending));
    }
}

/// Whether a replica that refuses a write so has certainly not stored it. An older epoch's write is stored without being counted, so is one
/// to a suspect partition, and a failed log may come back with it.
fn is_definite(status: Status) -> bool {
    !matches!(
        status,
        Status::StaleEpoch
            | Status::Suspect
            | Status::StorageFailed
            | Status::Corruption
            | Status::Timeout
            | Status::OutcomeUnknown
    )
}
