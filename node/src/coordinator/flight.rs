//! One operation under way: its machine, and what was sent for it.

use std::time::Duration;

use dunlin_paxos::{Config, Context, Ending as SerialEnding, Goal, Proposer};
use dunlin_protocol::message::{PeerRequest, RegisterCall};
use dunlin_protocol::register::RegisterRequest;
use dunlin_protocol::{
    Action, Answer, Epoch, NodeId, Operation, Outcome, PartitionId, PreferenceList, Stamp, Status, Tick,
};
use dunlin_quorum::{Read, ReadEnding, Write, WriteEnding};
use dunlin_storage::Found;

use crate::cold_read::Work;
use crate::outbox::ReplyTo;

use super::admission::{Cold, is_serial, plain_record};
use super::{Below, Coordinator, Reply, RequestId, reply};

/// The soonest that a timer comes.
pub(super) const SOONEST: Duration = Duration::from_micros(1);

/// Who gets an operation's result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Requester {
    /// A client.
    Client(ReplyTo),
    /// A scan of this coordinator, for the entry with this index.
    Scan { number: u64, entry: usize },
}

pub(super) struct Flight {
    requester: Requester,
    operation: Operation,
    partition: PartitionId,
    list: PreferenceList,
    epoch: Epoch,
    machine: Machine,
    /// For each replica the latest request: only its answer counts, since every round asks anew all that it counts.
    sent: Vec<Option<Sent>>,
    sequence: u16,
    deadline: Tick,
    timer: Option<Tick>,
    answered: bool,
}

/// A request under way.
#[derive(Clone, Copy)]
struct Sent {
    id: u64,
    /// The machine's own round, given back with the answer.
    round: u32,
    at: Tick,
}

enum Machine {
    /// Waits for what the disk has of its key: whether it would lose to it (`superseded_before`).
    Checking,
    /// Waits for the serial operations on its key that came before.
    Queued {
        tried: bool,
    },
    Write(Write),
    Read(Read),
    Propose(Box<Proposer>),
}

enum Ending {
    Write(WriteEnding),
    Read(ReadEnding),
    Serial(SerialEnding),
}

enum Step {
    Send { replica: usize, round: u32, request: RegisterRequest },
    Finish(Ending),
}

impl Machine {
    fn poll(&mut self) -> Option<Step> {
        use dunlin_paxos::Effect as Serial;
        use dunlin_quorum::{ReadEffect, WriteEffect};
        Some(match self {
            Self::Checking | Self::Queued { .. } => return None,
            Self::Write(write) => match write.poll_effect()? {
                WriteEffect::Send { replica, request } => Step::Send { replica, round: 0, request },
                WriteEffect::Finish(ending) => Step::Finish(Ending::Write(ending)),
            },
            Self::Read(read) => match read.poll_effect()? {
                ReadEffect::Send { replica, request } => Step::Send { replica, round: 0, request },
                ReadEffect::Finish(ending) => Step::Finish(Ending::Read(ending)),
            },
            Self::Propose(proposer) => match proposer.poll_effect()? {
                Serial::Send { replica, round, request } => Step::Send { replica, round, request },
                Serial::Finish(ending) => Step::Finish(Ending::Serial(ending)),
            },
        })
    }

    fn poll_timeout(&self) -> Option<Tick> {
        match self {
            Self::Checking | Self::Queued { .. } => None,
            Self::Write(write) => write.poll_timeout(),
            Self::Read(read) => read.poll_timeout(),
            Self::Propose(proposer) => proposer.poll_timeout(),
        }
    }

    fn is_done(&self) -> bool {
        match self {
            Self::Checking | Self::Queued { .. } => false,
            Self::Write(write) => write.is_done(),
            Self::Read(read) => read.is_done(),
            Self::Propose(proposer) => proposer.is_done(),
        }
    }
}

impl Flight {
    /// The ids of requests to a node that wait for an answer.
    pub(super) fn asked(&self, replica: usize) -> Option<NodeId> {
        self.list.nodes.get(replica).copied()
    }

    pub(super) fn outstanding_at(&self, node: NodeId) -> impl Iterator<Item = u64> {
        let replica = self.list.number_of(node);
        replica.and_then(|r| self.sent[r]).map(|sent| sent.id).into_iter()
    }
}

impl Coordinator {
    /// Takes an operation from an interface.
    pub(crate) fn operate(&mut self, requester: Requester, operation: Operation, below: &mut Below<'_>) {
        match self.admit(operation, below) {
            Ok((operation, timeout)) => {
                let deadline = below.now.tick + timeout;
                self.take_off(requester, operation, deadline, below);
                self.work_off(below);
            }
            Err(refused) => self.give(requester, refused, below),
        }
    }

    /// Starts an admitted operation.
    pub(super) fn take_off(
        &mut self,
        requester: Requester,
        operation: Operation,
        deadline: Tick,
        below: &mut Below<'_>,
    ) {
        let partition = below.placement.partition_of(operation.keyspace, &operation.key);
        let Some(list) = below.placement.preference_list(operation.keyspace, partition).cloned() else {
            return self.give(requester, Outcome::of(Status::UnknownKeyspace), below);
        };
        let number = self.draw_number();
        let machine = match self.superseded_before(&operation, partition, &list, None, below) {
            Ok(Some(newer)) => return self.give(requester, superseded(newer), below),
            Ok(None) => match plain_machine(&operation, &list, deadline, below) {
                Some(machine) => machine,
                None => Machine::Queued { tried: operation.tried },
            },
            Err(Cold) => match below.replica.put_off(check_of(number, partition, &operation)) {
                Ok(()) => Machine::Checking,
                Err(_) => return self.give(requester, Outcome::because(Status::Overloaded, MUCH_TO_READ), below),
            },
        };
        let queued = matches!(machine, Machine::Queued { .. });
        let sent = vec![None; list.nodes.len()];
        let epoch = below.placement.epoch();
        let flight = Flight {
            requester,
            operation,
            partition,
            list,
            epoch,
            machine,
            sent,
            sequence: 0,
            deadline,
            timer: None,
            answered: false,
        };
        self.flights.insert(number, flight);
        if queued { self.enter_queue(number, below) } else { self.drive(number, below) }
    }

    /// What the disk has of the key of an operation that has not begun yet; none: that cannot be read.
    pub(crate) fn checked(&mut self, number: u64, found: Option<Found>, below: &mut Below<'_>) {
        let Some(flight) = self.flights.get(&number) else { return };
        if !matches!(flight.machine, Machine::Checking) {
            return;
        }
        let Flight { operation, partition, list, .. } = flight;
        let superseded_by = match &found {
            Some(_) => self.superseded_before(operation, *partition, list, found.as_ref(), below),
            None => Ok(None),
        };
        match superseded_by {
            Ok(Some(newer)) => self.answer(number, superseded(newer), below),
            Ok(None) => {
                let machine = plain_machine(operation, list, flight.deadline, below);
                let machine = machine.unwrap_or(Machine::Queued { tried: operation.tried });
                if let Some(flight) = self.flights.get_mut(&number) {
                    flight.machine = machine;
                }
            }
            // A memtable was frozen meanwhile.
            Err(Cold) => {
                if below.replica.put_off(check_of(number, *partition, operation)).is_err() {
                    self.answer(number, Outcome::because(Status::Overloaded, MUCH_TO_READ), below);
                }
            }
        }
        self.drive(number, below);
        self.work_off(below);
    }

    /// Sends what a machine wants sent, ends what it ended, and sets its timer.
    fn drive(&mut self, number: u64, below: &mut Below<'_>) {
        while let Some(flight) = self.flights.get_mut(&number) {
            match flight.machine.poll() {
                Some(Step::Send { replica, round, request }) => self.send_for(number, replica, round, request, below),
                Some(Step::Finish(ending)) => self.end(number, ending, below),
                None => break,
            }
        }
        self.rest(number, below);
    }

    fn send_for(&mut self, number: u64, replica: usize, round: u32, request: RegisterRequest, below: &mut Below<'_>) {
        let Some(flight) = self.flights.get_mut(&number) else { return };
        let Some(&to) = flight.list.nodes.get(replica) else { return };
        flight.sequence = flight.sequence.wrapping_add(1);
        let id = RequestId::new(number, replica, flight.sequence).0;
        flight.sent[replica] = Some(Sent { id, round, at: below.now.tick });
        let deadline = match &request {
            // What was read just now may be installed for as long as an operation lives.
            RegisterRequest::Install { .. } | RegisterRequest::Read { .. } => below.now.wall + self.times.op_lifetime,
            _ => flight.operation.op_id.wall() + self.times.op_lifetime,
        };
        let call = RegisterCall {
            keyspace: flight.operation.keyspace,
            partition: flight.partition,
            key: flight.operation.key.clone(),
            epoch: flight.epoch,
            deadline,
            request,
        };
        Self::send(&mut self.inbox, self.me, to, id, &PeerRequest::Register(call), below);
    }

    pub(super) fn flight_reply(&mut self, id: RequestId, reply: Reply, below: &mut Below<'_>) {
        let (number, replica) = (id.number(), id.replica());
        let Some(flight) = self.flights.get_mut(&number) else { return };
        let answer = match reply {
            Reply::Answer(answer) => answer,
            Reply::Page(_) => return,
        };
        let Some(sent) = flight.sent.get_mut(replica).and_then(|sent| sent.take_if(|latest| latest.id == id.0)) else {
            return;
        };
        let node = flight.list.nodes[replica];
        if node != self.me && matches!(answer, Answer::Reply(_)) {
            below.peers.observe(node, below.now.tick.since(sent.at));
        }
        match &mut flight.machine {
            Machine::Checking | Machine::Queued { .. } => {}
            Machine::Write(write) => write.handle(below.now.tick, replica, answer),
            Machine::Read(read) => read.handle(below.now.tick, replica, answer),
            Machine::Propose(proposer) => {
                proposer.handle(&mut Context { now: below.now, clock: below.clock }, replica, sent.round, answer);
            }
        }
        self.drive(number, below);
    }

    pub(super) fn flight_timeout(&mut self, number: u64, below: &mut Below<'_>) {
        let Some(flight) = self.flights.get_mut(&number) else { return };
        flight.timer = None;
        if flight.answered && flight.deadline <= below.now.tick {
            return self.land(number);
        }
        match &mut flight.machine {
            Machine::Checking => {
                let why = "the disk did not say in time what it has of this key";
                self.answer(number, Outcome::because(Status::Overloaded, why), below);
            }
            Machine::Queued { tried } => {
                let tried = *tried;
                let outcome = match tried {
                    true => {
                        Outcome::because(Status::Timeout, "it waited too long for the operations on this key before it")
                    }
                    false => Outcome::because(Status::Overloaded, "too many serial operations on this key"),
                };
                self.answer(number, outcome, below);
            }
            Machine::Write(write) => write.handle_timeout(below.now.tick),
            Machine::Read(read) => read.handle_timeout(below.now.tick),
            Machine::Propose(proposer) => proposer.handle_timeout(&mut Context { now: below.now, clock: below.clock }),
        }
        self.drive(number, below);
        let late = |flight: &&Flight| !flight.answered && flight.deadline <= below.now.tick;
        if let Some(flight) = self.flights.get(&number).filter(late) {
            let mut outcome = Outcome::because(Status::Timeout, "the operation was not decided in time");
            if let Machine::Propose(proposer) = &flight.machine {
                outcome.seen = proposer.highest_seen();
            }
            self.answer(number, outcome, below);
            self.land(number);
        }
    }

    fn end(&mut self, number: u64, ending: Ending, below: &mut Below<'_>) {
        let Some(flight) = self.flights.get_mut(&number) else { return };
        match ending {
            Ending::Write(WriteEnding::GoSerial { tried }) => {
                flight.machine = Machine::Queued { tried };
                self.enter_queue(number, below);
            }
            Ending::Read(ReadEnding::GoSerial) => {
                flight.machine = Machine::Queued { tried: false };
                self.enter_queue(number, below);
            }
            Ending::Read(ReadEnding::Found { record, ballot })
                if !ballot.is_zero() && record.head.is_expired(below.now.wall) =>
            {
                // On a serial key expiry is a decision (2.3).
                flight.machine = Machine::Queued { tried: false };
                self.enter_queue(number, below);
            }
            Ending::Write(ending) => {
                let outcome = reply::of_write(ending);
                self.answer(number, outcome, below);
            }
            Ending::Read(ending) => {
                let outcome = reply::of_read(ending, &flight.operation, below.now.wall);
                self.answer(number, outcome, below);
            }
            Ending::Serial(ending) => {
                let (seen, in_doubt) = match &flight.machine {
                    Machine::Propose(proposer) => (proposer.highest_seen(), proposer.may_take_effect()),
                    _ => (dunlin_protocol::Stamp::ZERO, false),
                };
                let mut outcome = reply::of_serial(ending, &flight.operation, in_doubt);
                outcome.seen = outcome.seen.max(seen);
                self.answer(number, outcome, below);
            }
        }
    }

    fn enter_queue(&mut self, number: u64, below: &mut Below<'_>) {
        let Some(flight) = self.flights.get(&number) else { return };
        if self.queues.enter(flight.operation.keyspace, &flight.operation.key, number) {
            self.propose(number, below);
        } else {
            self.rest(number, below);
        }
    }

    /// The operation is the first of its key's queue.
    pub(super) fn propose(&mut self, number: u64, below: &mut Below<'_>) {
        let seed = self.draw_seed();
        let config = Config {
            k: self.config.lineage,
            times: self.times,
            round_timeout: self.config.round_timeout,
            inline_value_bytes: self.config.inline_value_bytes,
        };
        let Some(flight) = self.flights.get_mut(&number) else { return };
        let Machine::Queued { tried } = flight.machine else { return };
        let goal = match &flight.operation.action {
            Action::Read { .. } => Goal::Read,
            Action::Write { condition, mutation } => {
                Goal::Write { condition: condition.clone(), mutation: mutation.clone() }
            }
            Action::Outcome => Goal::Outcome,
        };
        let alive = below.peers.alive(&flight.list);
        let nearest = below.peers.order(&flight.list).into_iter().find(|r| alive.contains(*r)).unwrap_or(0);
        let operation = &flight.operation;
        let mut proposer = Proposer::new(
            config,
            flight.list.quorums,
            goal,
            operation.op_id,
            tried,
            operation.window,
            flight.deadline,
            seed,
        )
        .with_nearest(nearest);
        proposer.start(&mut Context { now: below.now, clock: below.clock });
        flight.machine = Machine::Propose(Box::new(proposer));
        self.drive(number, below);
    }

    /// Answers the requester, once. The flight goes on for stragglers.
    fn answer(&mut self, number: u64, mut outcome: Outcome, below: &mut Below<'_>) {
        let Some(flight) = self.flights.get_mut(&number) else { return };
        if std::mem::replace(&mut flight.answered, true) {
            return;
        }
        self.finished += 1;
        flight.deadline = flight.deadline.min(below.now.tick + self.config.straggle);
        outcome.seen = outcome.seen.max(outcome.version).max(flight.operation.op_id);
        outcome.counts.alive = u8::try_from(below.peers.alive(&flight.list).len()).unwrap_or(u8::MAX);
        let requester = flight.requester;
        let (keyspace, key) = (flight.operation.keyspace, flight.operation.key.clone());
        if matches!(flight.machine, Machine::Checking | Machine::Queued { .. }) {
            // It never ran: nothing straggles.
            flight.deadline = below.now.tick;
        }
        self.give(requester, outcome, below);
        self.runnable.extend(self.queues.leave(keyspace, &key, number));
    }

    /// Hands a result to whoever asked.
    pub(super) fn give(&mut self, requester: Requester, outcome: Outcome, below: &mut Below<'_>) {
        match requester {
            Requester::Client(to) => reply::send(to, outcome, below),
            Requester::Scan { number, entry } => self.scan_entry(number, entry, outcome, below),
        }
    }

    /// Sets the flight's timer, or lets it go when it is over.
    fn rest(&mut self, number: u64, below: &mut Below<'_>) {
        let Some(flight) = self.flights.get_mut(&number) else { return };
        let over = flight.answered && (flight.machine.is_done() || flight.deadline <= below.now.tick);
        if over {
            return self.land(number);
        }
        let wanted = flight.machine.poll_timeout().map_or(flight.deadline, |tick| tick.min(flight.deadline));
        // Never at once: a machine that asks for a time that is past is called again, but others come first.
        let wanted = wanted.max(below.now.tick + SOONEST);
        if flight.timer != Some(wanted) {
            if let Some(old) = flight.timer.replace(wanted) {
                self.timers.remove(&(old, number));
            }
            self.timers.insert((wanted, number));
        }
    }

    fn land(&mut self, number: u64) {
        if let Some(flight) = self.flights.remove(&number) {
            if let Some(timer) = flight.timer {
                self.timers.remove(&(timer, number));
            }
            self.finished -= usize::from(flight.answered);
        }
    }
}

const MUCH_TO_READ: &str = "too much waits to be read from the disk";

fn superseded(newer: Stamp) -> Outcome {
    let outcome = Outcome::because(Status::Redraw, "a later version was stored before this write began");
    Outcome { seen: newer, ..outcome }
}

fn check_of(flight: u64, partition: PartitionId, operation: &Operation) -> Work {
    Work::Check { flight, partition, keyspace: operation.keyspace, key: operation.key.clone() }
}

/// The plain machine for an operation; none: it goes the serial way.
fn plain_machine(operation: &Operation, list: &PreferenceList, deadline: Tick, below: &Below<'_>) -> Option<Machine> {
    if is_serial(operation) {
        return None;
    }
    let level = operation.level?;
    let (quorums, replicas, alive) = (list.quorums, list.nodes.len(), below.peers.alive(list));
    match &operation.action {
        Action::Write { mutation, .. } => {
            let record = plain_record(operation.op_id, mutation)?;
            let patience = below.peers.patience(list);
            let mut write =
                Write::new(quorums, replicas, alive, level, record, operation.tried, deadline).with_patience(patience);
            write.start(below.now.tick);
            Some(Machine::Write(write))
        }
        Action::Read { value } => {
            let order = below.peers.order(list);
            let speculate_after = below.peers.speculate_after(list, &order, level.need(replicas));
            let mut read = Read::new(quorums, replicas, alive, order, level, *value, speculate_after, deadline);
            read.start(below.now.tick);
            Some(Machine::Read(read))
        }
        Action::Outcome => None,
    }
}
