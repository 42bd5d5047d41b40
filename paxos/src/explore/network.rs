//! Replicas with their registers, and the messages under way.

use std::collections::BTreeMap;
use std::convert::Infallible;

use dunlin_protocol::register::{
    Held, PendingView, RecordView, Register, RegisterReply, RegisterRequest, Verdict, View, Want,
};
use dunlin_protocol::{Answer, Content, Millis, Record, Stamp, Status, Times};

use super::Random;

/// A request under way, from a machine (by its number) to a replica.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) machine: usize,
    pub(super) replica: usize,
    pub(super) round: u32,
    pub(super) request: RegisterRequest,
    /// It was delivered before: it cannot be refused any more.
    copied: bool,
    slow: bool,
}

/// An answer under way.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) machine: usize,
    pub(super) replica: usize,
    pub(super) round: u32,
    pub(super) answer: Answer,
    slow: bool,
}

/// How bad the network is, in percent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Faults {
    pub(super) lost: usize,
    pub(super) doubled: usize,
    pub(super) slow: usize,
    /// Of the accepts to all replicas but the first: proposals are left behind there.
    pub(super) accepts_lost: usize,
    pub(super) refused: usize,
}

/// Replicas and messages.
#[derive(Debug)]
pub(super) struct Network {
    registers: Vec<Register<usize>>,
    /// Every record that a replica ever took, for its stamp. Only the settled "absent" has none.
    records: Vec<Record>,
    by_stamp: BTreeMap<Stamp, usize>,
    pub(super) requests: Vec<Request>,
    pub(super) replies: Vec<Reply>,
    pub(super) faults: Faults,
    /// Two records bore one stamp, or one remembered an operation both as applied and as never applied.
    pub(super) contradicts: bool,
}

impl Network {
    pub(super) fn new(replicas: usize, faults: Faults) -> Self {
        Self {
            registers: vec![Register::default(); replicas],
            records: Vec::new(),
            by_stamp: BTreeMap::new(),
            requests: Vec::new(),
            replies: Vec::new(),
            faults,
            contradicts: false,
        }
    }

    pub(super) fn replicas(&self) -> usize {
        self.registers.len()
    }

    pub(super) fn send(
        &mut self,
        machine: usize,
        replica: usize,
        round: u32,
        request: RegisterRequest,
        random: &mut Random,
    ) {
        let slow = random.percent(self.faults.slow);
        self.requests.push(Request { machine, replica, round, request, copied: false, slow });
    }

    /// Whether the message stays under way although it was its turn: some are overtaken by dozens of others.
    pub(super) fn is_held(&self, request: Option<usize>, reply: Option<usize>, random: &mut Random) -> bool {
        let slow = request.is_some_and(|at| self.requests[at].slow) || reply.is_some_and(|at| self.replies[at].slow);
        slow && random.percent(95)
    }

    /// The record of a stamp.
    pub(super) fn record(&self, stamp: Stamp) -> Option<&Record> {
        self.by_stamp.get(&stamp).map(|&place| &self.records[place])
    }

    /// A request arrives, and perhaps is lost or doubled.
    pub(super) fn deliver_request(&mut self, at: usize, wall: Millis, random: &mut Random) {
        let mut request = self.requests.swap_remove(at);
        let faults = self.faults;
        let is_accept = request.replica > 0 && matches!(request.request, RegisterRequest::Accept { .. });
        if random.percent(faults.lost) || is_accept && random.percent(faults.accepts_lost) {
            return;
        }
        let slow = random.percent(faults.slow);
        let (machine, replica, round) = (request.machine, request.replica, request.round);
        if !request.copied && random.percent(faults.refused) {
            let refused = |status| Answer::Refused { status, seen: Stamp::ZERO };
            let answer = match random.below(3) {
                0 => Answer::NotSent,
                1 => refused(Status::Overloaded),
                _ => refused(Status::DiskFull),
            };
            self.replies.push(Reply { machine, replica, round, answer, slow });
            return;
        }
        let reply = self.carry_out(replica, &request.request, wall);
        let answer = match random.percent(faults.lost) {
            true if random.percent(50) => Some(Answer::Lost),
            true => None,
            false => Some(Answer::Reply(reply)),
        };
        if let Some(answer) = answer {
            self.replies.push(Reply { machine, replica, round, answer, slow });
        }
        if random.percent(faults.doubled) {
            request.copied = true;
            self.requests.push(request);
        }
    }

    /// Repair: a replica installs what another one holds, now.
    pub(super) fn install(&mut self, from: usize, to: usize, wall: Millis) {
        let register = &self.registers[from];
        if let (Some(held), ballot) = (register.record, register.ballot) {
            let record = self.records[held.place].clone();
            self.carry_out(to, &RegisterRequest::Install { ballot, record }, wall);
        }
    }

    fn carry_out(&mut self, replica: usize, request: &RegisterRequest, wall: Millis) -> RegisterReply {
        let decision = self.registers[replica].decide(request, wall, &Times::default());
        if let Some(change) = decision.change {
            let record = match request {
                RegisterRequest::Write { record }
                | RegisterRequest::Accept { record, .. }
                | RegisterRequest::Install { record, .. }
                | RegisterRequest::Commit { record: Some(record), .. } => Some(record),
                _ => None,
            };
            let held = record.map(|record| Held { head: record.head(), place: self.place(record) });
            self.registers[replica].apply(change, held, wall);
        }
        self.reply(replica, decision.verdict)
    }

    fn place(&mut self, record: &Record) -> usize {
        for ancestor in record.lineage.iter().filter(|ancestor| ancestor.stamp.is_zero()) {
            let applied = |a: &dunlin_protocol::Ancestor| a.op_id == ancestor.op_id && !a.stamp.is_zero();
            self.contradicts |= record.lineage.iter().any(applied);
        }
        let place = *self.by_stamp.entry(record.stamp).or_insert(self.records.len());
        match self.records.get(place) {
            Some(known) => self.contradicts |= known != record,
            None => self.records.push(record.clone()),
        }
        place
    }

    fn reply(&self, replica: usize, verdict: Verdict) -> RegisterReply {
        let Ok(reply) = verdict.into_reply(|want| Ok::<_, Infallible>(self.view(replica, want)));
        reply
    }

    fn view(&self, replica: usize, want: Want) -> View {
        let register = &self.registers[replica];
        let show = |held: &Held<usize>| {
            let record = self.records[held.place].clone();
            let fits = held.head.value_len <= want.value_upto || record.content == Content::Tombstone;
            let lineage = want.lineage.then_some(record.lineage);
            RecordView { head: held.head, lineage, content: fits.then_some(record.content) }
        };
        View {
            record: register.record.as_ref().map_or_else(RecordView::absent, show),
            ballot: register.ballot,
            promised: register.promised,
            pending: register.pending.map(|(ballot, held)| PendingView { ballot, record: show(&held) }),
        }
    }
}
