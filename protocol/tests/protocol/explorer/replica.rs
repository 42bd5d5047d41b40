//! A replica around the real register, with the rules that a test may break in it.

use dunlin_protocol::register::{
    Change, Decision, Held, PendingView, RecordView, Register, RegisterReply, RegisterRequest, Verdict, View,
};
use dunlin_protocol::{Ballot, Millis, Record, Times};
use std::convert::Infallible;

use super::Break;

/// One replica of the one key. What it holds survives its restarts.
pub(crate) struct Replica {
    pub(crate) register: Register<usize>,
    /// Where the register's places point to. Records are immutable and stay.
    records: Vec<Record>,
    /// How far its clock is ahead of true time, in milliseconds.
    clock_offset: i64,
    broken: Break,
}

impl Replica {
    pub(crate) fn new(clock_offset: i64, broken: Break) -> Self {
        Self { register: Register::default(), records: Vec::new(), clock_offset, broken }
    }

    pub(crate) fn wall(&self, now: Millis) -> Millis {
        Millis(now.0.saturating_add_signed(self.clock_offset))
    }

    /// Carries out a request. None: its deadline is past, so nothing is done and nobody is told.
    pub(crate) fn handle(
        &mut self,
        request: &RegisterRequest,
        deadline: Millis,
        now: Millis,
        times: &Times,
    ) -> Option<RegisterReply> {
        let wall = self.wall(now);
        if wall > deadline {
            return None;
        }
        let decision = self.decide(request, wall, times);
        if let Some(change) = decision.change {
            let promised = self.register.promised;
            let held = record_of(request).filter(|_| change.takes_record()).map(|record| self.store(record));
            self.register.apply(change, held, wall);
            if self.broken == Break::AcceptBelowPromise && matches!(change, Change::Accept { .. }) {
                self.register.promised = self.register.promised.max(promised);
            }
        }
        Some(self.reply(decision.verdict))
    }

    /// The real rule, asked about a register in which the part that a broken rule overlooks is missing.
    fn decide(&self, request: &RegisterRequest, wall: Millis, times: &Times) -> Decision {
        let mut seen = self.register;
        match (self.broken, request) {
            (Break::AcceptBelowPromise, RegisterRequest::Accept { .. }) => seen.promised = Ballot::ZERO,
            (Break::WriteOnSerialKey, RegisterRequest::Write { .. }) => {
                (seen.promised, seen.ballot, seen.pending) = (Ballot::ZERO, Ballot::ZERO, None);
            }
            (Break::CommitBackwards, RegisterRequest::Commit { .. }) => {
                (seen.ballot, seen.record) = (Ballot::ZERO, None);
            }
            (Break::InstallTombstone, RegisterRequest::Install { record, .. }) if record.head().tombstone => {
                seen.record = None;
            }
            (Break::DropYoung, RegisterRequest::Drop { ballot, stamp, .. }) => {
                let request = RegisterRequest::Drop { ballot: *ballot, stamp: *stamp, started_at: Millis::MAX };
                return seen.decide(&request, Millis::MAX, times);
            }
            _ => {}
        }
        seen.decide(request, wall, times)
    }

    pub(crate) fn purge(&mut self, now: Millis, times: &Times) -> bool {
        let wall = self.wall(now);
        let change = self.register.decide_purge(wall, times);
        if let Some(change) = change {
            self.register.apply(change, None, wall);
        }
        change.is_some()
    }

    /// Everything was durable before it was answered, so a sound replica comes back as it was.
    pub(crate) fn restart(&mut self) {
        if self.broken == Break::ForgetPromise {
            self.register.promised = Ballot::ZERO;
        }
    }

    /// What a repair would carry from here; none where nothing is held.
    pub(crate) fn repair(&self) -> Option<RegisterRequest> {
        let held = self.register.record?;
        Some(RegisterRequest::Install { ballot: self.register.ballot, record: self.records[held.place].clone() })
    }

    pub(crate) fn view(&self) -> View {
        let show = |held: Held<usize>| RecordView::from(self.records[held.place].clone());
        View {
            record: self.register.record.map_or_else(RecordView::absent, show),
            ballot: self.register.ballot,
            promised: self.register.promised,
            pending: self.register.pending.map(|(ballot, held)| PendingView { ballot, record: show(held) }),
        }
    }

    fn store(&mut self, record: &Record) -> Held<usize> {
        self.records.push(record.clone());
        Held { head: record.head(), place: self.records.len() - 1 }
    }

    fn reply(&self, verdict: Verdict) -> RegisterReply {
        let Ok(reply) = verdict.into_reply(|_| Ok::<_, Infallible>(self.view()));
        reply
    }
}

fn record_of(request: &RegisterRequest) -> Option<&Record> {
    match request {
        RegisterRequest::Write { record }
        | RegisterRequest::Accept { record, .. }
        | RegisterRequest::Install { record, .. } => Some(record),
        RegisterRequest::Commit { record, .. } => record.as_ref(),
        RegisterRequest::Read { .. } | RegisterRequest::Prepare { .. } | RegisterRequest::Drop { .. } => None,
    }
}
