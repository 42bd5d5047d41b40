//! `Attempts`: one operation's way to its outcome, through as many nodes as its timeout allows (PROTOCOL.md 1.2, 2.1).

use std::time::Duration;

use dunlin_protocol::message::{ClientReply, ReplyBody};
use dunlin_protocol::{Action, Counts, Epoch, Millis, NodeId, OpId, Operation, Outcome, Status, Tick, Window};

use crate::session::Session;

/// The shortest window of a first attempt.
const SHORTEST_WINDOW: Duration = Duration::from_millis(250);
/// After so many refused ids the coordinator draws one.
const MAX_REDRAWS: u32 = 2;
/// F stays so far below what nodes accept (max_clock_skew / 4 ahead): the cluster's time is an estimate here.
const MARGIN: Duration = Duration::from_millis(100);
/// The pause after every node was asked in vain; doubled with each round.
const PAUSE: Duration = Duration::from_millis(25);
const MAX_PAUSE: Duration = Duration::from_millis(500);

/// What the driver does next.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub enum Step {
    /// Send [`Attempts::operation`] to this node, and report what becomes of it under this number.
    Send {
        /// To whom.
        node: NodeId,
        /// The number of the attempt.
        attempt: u32,
    },
    /// Nothing before this time, unless something is reported.
    Wait(Tick),
    /// Fetch the topology and report it with [`Attempts::refreshed`]; asked for once each time it is needed.
    Refresh,
    /// The end: every later call says so again.
    Done(Outcome),
}

/// What became of an attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The node answered. Answers to attempts that were given up are reported too: a success counts whenever it comes.
    Reply(ClientReply),
    /// The connection was lost after the request was handed to it: it may have arrived.
    Lost,
    /// Nothing was handed to a connection.
    NotSent,
    /// Nothing was handed to a connection, because one had to be made first, and now there is one: the attempt is to be drawn anew, with a
    /// fresh id and window.
    Connected,
}

/// Drives one operation: draws its id from the cluster's time, gives each attempt a window of ballots above those of all earlier ones,
/// goes to another node when an attempt's time is over or its connection is lost, and never takes an uncertain answer for a certain one.
///
/// - getters: [`operation`](Self::operation), [`op_id`](Self::op_id), [`floor`](Self::floor), [`is_done`](Self::is_done)
/// - the driver calls [`poll`](Self::poll) and does what it says, reports with [`handle`](Self::handle) and
///   [`refreshed`](Self::refreshed), and polls again after each report and when a wait is over
///
/// ```
/// use std::time::Duration;
/// use dunlin_client::{Attempts, Event, Session, Step};
/// use dunlin_protocol::{Key, KeyspaceId, Millis, NodeId, Operation, Outcome, Status, Tick};
/// use dunlin_protocol::message::{ClientReply, ReplyBody};
/// use dunlin_protocol::{Action, Epoch, Mutation};
///
/// let mut session = Session::new(7);
/// session.welcomed(NodeId(1), Tick(0), Tick(0), Millis(1_000_000));
/// let put = Mutation::Put { value: "1".into(), attributes: Default::default(), ttl_millis: 0 };
/// let operation = Attempts::operation_on(KeyspaceId::DEFAULT, Key::new("a")?, Action::Write { condition: None, mutation: put });
/// let nodes = vec![NodeId(1), NodeId(2), NodeId(3)];
/// let mut attempts = Attempts::new(operation, Duration::from_secs(5), nodes, Tick(0), 42);
///
/// // The first attempt goes to the first node; its connection is lost, so the second one says that the operation may have been tried.
/// assert_eq!(attempts.poll(Tick(0), &mut session), Step::Send { node: NodeId(1), attempt: 1 });
/// let first = attempts.operation().window;
/// attempts.handle(Tick(5), &mut session, 1, Event::Lost);
/// assert_eq!(attempts.poll(Tick(5), &mut session), Step::Send { node: NodeId(2), attempt: 2 });
/// assert!(attempts.operation().tried && attempts.operation().window.floor == first.limit);
///
/// let body = ReplyBody::Outcome(Outcome::of(Status::Ok));
/// let reply = ClientReply { now: Millis(1_000_000), quorum_micros: 500, epoch: Epoch(1), body };
/// attempts.handle(Tick(9), &mut session, 2, Event::Reply(reply));
/// assert_eq!(attempts.poll(Tick(9), &mut session), Step::Done(Outcome::of(Status::Ok)));
/// # Ok::<(), dunlin_protocol::KeyError>(())
/// ```
#[derive(Debug)]
pub struct Attempts {
    operation: Operation,
    kind: Kind,
    timeout: Duration,
    deadline: Tick,
    nodes: Vec<NodeId>,
    /// The place in `nodes` to go on from.
    next: usize,
    /// The attempt whose answer decides.
    current: Option<Current>,
    /// Attempts that were sent and not answered: whom, and when.
    unanswered: Vec<(u32, NodeId, Tick)>,
    last_attempt: u32,
    /// Attempts that may have been carried out.
    counted: u32,
    /// Attempts that were certainly not carried out, for want of time.
    too_short: u32,
    /// F: the latest limit of the counted attempts.
    floor: u64,
    redraws: u32,
    /// Failures since the last pause, and pauses.
    failures: usize,
    rounds: u32,
    unavailable: bool,
    pause_until: Tick,
    refresh: Refresh,
    refusal: Option<Outcome>,
    timed_out: Option<Outcome>,
    random: u64,
    done: Option<Outcome>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Changes nothing and may be repeated as it is.
    Read,
    /// A write; who draws its id.
    Write(Drawn),
    /// Asks for the outcome of another one, not before this time.
    Query { from: Millis },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Drawn {
    Here,
    ByCaller,
    ByCoordinator,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Refresh {
    No,
    Wanted,
    Asked,
}

#[derive(Clone, Copy, Debug)]
struct Current {
    attempt: u32,
    node: NodeId,
    until: Tick,
    limit: u64,
}

/// Why nothing can be sent now.
enum Hindrance {
    /// Too early.
    Until(Tick),
    /// No node's clock is known yet: fetching the topology tells it.
    NoTime,
    /// No window is left for another attempt.
    Exhausted,
}

impl Attempts {
    /// An operation as [`new`](Self::new) takes it: everything but what is asked is filled in by the attempts.
    pub fn operation_on(keyspace: dunlin_protocol::KeyspaceId, key: dunlin_protocol::Key, action: Action) -> Operation {
        Operation {
            keyspace,
            key,
            level: None,
            op_id: OpId::ZERO,
            tried: false,
            window: Window::OPEN,
            timeout_millis: 0,
            seen: dunlin_protocol::Stamp::ZERO,
            epoch: Epoch(0),
            action,
        }
    }

    /// Begins an operation. `nodes` are those to ask, in order of preference ([`Route`](crate::Route)); `seed` makes the pauses differ from
    /// client to client.
    ///
    /// A write with an op id of zero gets one from the cluster's time. One with an op id of the caller's must never have been sent before;
    /// it ends with `REDRAW` when the id is not near the cluster's time. An outcome query names the operation by its op id.
    pub fn new(operation: Operation, timeout: Duration, nodes: Vec<NodeId>, now: Tick, seed: u64) -> Self {
        let times = dunlin_protocol::Times::default();
        let (kind, floor) = match &operation.action {
            Action::Read { .. } => (Kind::Read, 0),
            Action::Write { .. } if operation.op_id.is_zero() => (Kind::Write(Drawn::Here), 0),
            Action::Write { .. } => (Kind::Write(Drawn::ByCaller), 0),
            Action::Outcome => {
                // Who does not know the last limit takes the latest that any attempt can have had.
                let end = operation.op_id.wall() + times.attempts_end;
                (Kind::Query { from: end + Duration::from_millis(1) }, Window::until(0, end).limit)
            }
        };
        Self {
            operation,
            kind,
            timeout,
            deadline: now + timeout,
            nodes,
            next: 0,
            current: None,
            unanswered: Vec::new(),
            last_attempt: 0,
            counted: 0,
            too_short: 0,
            floor,
            redraws: 0,
            failures: 0,
            rounds: 0,
            unavailable: false,
            pause_until: Tick(0),
            refresh: Refresh::No,
            refusal: None,
            timed_out: None,
            random: seed,
            done: None,
        }
    }

    /// For an outcome query: the operation's own [`floor`](Self::floor) after its last attempt, which saves waiting for the latest possible.
    #[must_use]
    pub fn after(mut self, floor: u64) -> Self {
        if let Kind::Query { from } = &mut self.kind {
            let times = dunlin_protocol::Times::default();
            self.floor = floor.min(self.floor);
            *from = Millis(self.floor >> 16).minus(times.max_clock_skew / 4) + MARGIN;
        }
        self
    }

    /// What the latest [`Step::Send`] sends.
    pub fn operation(&self) -> &Operation {
        &self.operation
    }

    /// The operation's id, for an outcome query; zero while it has none, or when the coordinator drew it.
    pub fn op_id(&self) -> OpId {
        self.operation.op_id
    }

    /// F: the latest limit, as hybrid time, of the attempts made. An outcome query goes on from here.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// Whether the end is reached.
    pub fn is_done(&self) -> bool {
        self.done.is_some()
    }

    /// What to do now.
    pub fn poll(&mut self, now: Tick, session: &mut Session) -> Step {
        if let Some(current) = self.current
            && self.done.is_none()
        {
            if now < current.until {
                return Step::Wait(current.until);
            }
            self.current = None;
            session.unanswered(current.node, now);
            self.count(now, current);
        }
        if self.done.is_none() && (now >= self.deadline || self.nodes.is_empty()) {
            self.end();
        }
        if let Some(outcome) = &self.done {
            return Step::Done(outcome.clone());
        }
        match self.refresh {
            Refresh::Wanted => {
                self.refresh = Refresh::Asked;
                return Step::Refresh;
            }
            Refresh::Asked => return Step::Wait(self.deadline),
            Refresh::No => {}
        }
        if now < self.pause_until {
            return Step::Wait(self.pause_until.min(self.deadline));
        }
        let mut wait = None;
        for place in self.places(now, session) {
            let node = self.nodes[place];
            match self.prepare(now, session, node) {
                Ok((limit, until)) => {
                    self.next = place;
                    self.last_attempt += 1;
                    let attempt = self.last_attempt;
                    self.current = Some(Current { attempt, node, until, limit });
                    self.unanswered.push((attempt, node, now));
                    return Step::Send { node, attempt };
                }
                Err(Hindrance::NoTime) => {
                    self.refresh = Refresh::Asked;
                    return Step::Refresh;
                }
                // By this node's clock. Another node's may be nearer to the truth.
                Err(Hindrance::Until(tick)) => wait = Some(wait.map_or(tick, |earliest: Tick| earliest.min(tick))),
                Err(Hindrance::Exhausted) => {}
            }
        }
        match wait {
            Some(tick) => Step::Wait(tick.min(self.deadline)),
            None => {
                self.end();
                self.poll(now, session)
            }
        }
    }

    /// Reports what became of an attempt. What comes late, twice or for an unknown attempt does no harm.
    pub fn handle(&mut self, now: Tick, session: &mut Session, attempt: u32, event: Event) {
        let Some(at) = self.unanswered.iter().position(|(number, ..)| *number == attempt) else { return };
        let (_, node, sent) = self.unanswered.swap_remove(at);
        let current = self.current.take_if(|current| current.attempt == attempt);
        let event = match event {
            // An answer to another question is no answer.
            Event::Reply(ClientReply { body: ReplyBody::Outcome(_), .. }) => event,
            Event::Reply(_) => Event::Lost,
            event => event,
        };
        match &event {
            Event::Reply(reply) => session.replied(node, sent, now, reply),
            Event::Lost | Event::NotSent => session.unanswered(node, now),
            Event::Connected => {}
        }
        if self.done.is_some() {
            return;
        }
        match (event, current) {
            (Event::Reply(ClientReply { body: ReplyBody::Outcome(outcome), .. }), Some(current)) => {
                self.judge(now, current, outcome);
            }
            // The last attempt's answer counts, but a success of any attempt may be taken (C1).
            (Event::Reply(ClientReply { body: ReplyBody::Outcome(outcome), .. }), None) => {
                if outcome.status == Status::Ok || (self.kind == Kind::Read && outcome.status == Status::NotFound) {
                    self.done = Some(outcome);
                }
            }
            (Event::Lost, Some(current)) => self.count(now, current),
            (Event::NotSent, Some(_)) => self.advance(now),
            (Event::Reply(_) | Event::Lost | Event::NotSent | Event::Connected, _) => {}
        }
    }

    /// Reports the topology that [`Step::Refresh`] asked for: its epoch, and the nodes to ask, in order of preference; the same ones where
    /// there was nothing newer.
    pub fn refreshed(&mut self, now: Tick, epoch: Epoch, nodes: Vec<NodeId>) {
        self.refresh = Refresh::No;
        if epoch > self.operation.epoch {
            self.operation.epoch = epoch;
            self.nodes = nodes;
            self.next = 0;
        } else {
            self.advance(now);
        }
    }

    /// Whether the operation may have been carried out already.
    fn is_tried(&self) -> bool {
        matches!(self.kind, Kind::Write(_)) && self.counted > 0
    }

    /// The places of the nodes in the order to ask them: from `next` on, those that did not answer of late behind the others.
    fn places(&self, now: Tick, session: &Session) -> Vec<usize> {
        let len = self.nodes.len();
        let mut places: Vec<usize> = (0..len).map(|i| (self.next + i) % len).collect();
        places.sort_by_key(|place| session.is_silent(self.nodes[*place], now));
        places
    }

    /// Fills in the operation for an attempt through `node`: its limit D, and how long to wait for the answer.
    fn prepare(&mut self, now: Tick, session: &mut Session, node: NodeId) -> Result<(u64, Tick), Hindrance> {
        let time = session.clock().now(node, now);
        let round_trip = session.clock().round_trip(node);
        let doubled = 1 << (self.counted + self.too_short).min(10);
        let mut patience = SHORTEST_WINDOW.max(session.clock().usual_duration(node)) * doubled;
        let mut window = Window::OPEN;
        match self.kind {
            Kind::Read => {}
            Kind::Query { from } => {
                let time = time.ok_or(Hindrance::NoTime)?;
                if time < from {
                    return Err(Hindrance::Until(now + from.since(time)));
                }
                window.floor = self.floor;
            }
            Kind::Write(drawn) => {
                if drawn == Drawn::ByCoordinator {
                    self.operation.op_id = OpId::ZERO;
                    // A lost answer cannot be asked for again, so this one attempt gets all the time there is.
                    patience = self.deadline.since(now);
                } else {
                    if drawn == Drawn::Here && !self.is_tried() {
                        // Nothing happened under an earlier id, if there was one.
                        self.operation.op_id = session.draw(node, now).ok_or(Hindrance::NoTime)?;
                    }
                    let time = time.ok_or(Hindrance::NoTime)?;
                    window = self.window(session, now, time, patience)?;
                    patience = Millis(window.limit >> 16).since(time);
                }
            }
        }
        let left = self.deadline.since(now);
        // The node gives up early enough for its answer, which has the facts, to arrive in time.
        let timeout = patience.min(left.saturating_sub(round_trip));
        let operation = &mut self.operation;
        operation.tried =
            self.counted > 0 && matches!(self.kind, Kind::Write(_)) || matches!(self.kind, Kind::Query { .. });
        operation.window = window;
        operation.timeout_millis = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).max(1);
        operation.seen = session.seen();
        Ok((window.limit, (now + patience + round_trip).min(self.deadline)))
    }

    /// `(F, D]` with D = max(now, F) + w, as far as the operation's attempts may reach at all.
    fn window(&self, session: &Session, now: Tick, time: Millis, length: Duration) -> Result<Window, Hindrance> {
        let times = session.times();
        let floor = Millis(self.floor >> 16);
        let highest = (time + times.max_clock_skew / 4).minus(MARGIN);
        if floor > highest {
            // Ballots far above the clocks would drag every other clock along.
            return Err(Hindrance::Until(now + floor.since(highest)));
        }
        let op_time = self.operation.op_id.wall();
        // A node draws ballots above all that it has seen, which may lie ahead of its clock by what another node's clock is ahead.
        let seen = session.seen().wall().min(highest);
        let start = time.max(floor).max(op_time).max(seen);
        let limit = (start + length).min(op_time + times.attempts_end);
        if limit <= start {
            return Err(Hindrance::Exhausted);
        }
        Ok(Window::until(self.floor, limit))
    }

    /// An attempt ended without a definite answer.
    fn count(&mut self, now: Tick, current: Current) {
        self.counted += 1;
        match self.kind {
            Kind::Write(Drawn::ByCoordinator) => return self.end(),
            // Whoever carries the attempt out may go on until its limit, so the next one begins above it.
            Kind::Write(_) => self.floor = self.floor.max(current.limit),
            Kind::Read | Kind::Query { .. } => {}
        }
        self.advance(now);
    }

    /// To the next node; with a pause after all of them.
    fn advance(&mut self, now: Tick) {
        self.next = self.next.wrapping_add(1);
        self.failures += 1;
        if self.failures >= self.nodes.len() {
            if self.unavailable && !self.is_tried() && self.refusal.is_some() {
                self.done = self.refusal.clone();
                return;
            }
            self.pause(now);
        }
    }

    fn pause(&mut self, now: Tick) {
        let length = (PAUSE * (1 << self.rounds.min(8))).min(MAX_PAUSE);
        self.rounds += 1;
        self.failures = 0;
        self.unavailable = false;
        self.pause_until = now + length / 2 + length.mul_f64(self.next_random() / 2.0);
    }

    fn judge(&mut self, now: Tick, current: Current, outcome: Outcome) {
        match outcome.status {
            Status::Ok
            | Status::NotFound
            | Status::PreconditionFailed
            | Status::NotApplied
            | Status::NotANumber
            | Status::OpIdReused
            | Status::OutcomeUnknown => self.done = Some(outcome),
            Status::Timeout => {
                // The attempt is over, and the answer names the highest ballot that it used.
                let limit = match outcome.seen.hlc() {
                    0 => current.limit,
                    seen => current.limit.min(seen),
                };
                self.timed_out = Some(outcome);
                self.count(now, Current { limit, ..current });
            }
            Status::Redraw => self.redraw(now, outcome),
            // Drawn from the clock of another node, which is far off: this one told its time.
            Status::OpExpired | Status::ClockSkew if self.kind == Kind::Write(Drawn::Here) && !self.is_tried() => {
                self.redraw(now, outcome);
            }
            Status::StaleEpoch | Status::NotReplica => {
                self.refusal = Some(outcome);
                self.refresh = Refresh::Wanted;
            }
            // Enough replicas are alive and none of them answered in time: that a longer window may mend.
            Status::Unavailable if outcome.counts.need > 0 && outcome.counts.alive >= outcome.counts.need => {
                self.too_short += 1;
                self.refusal = Some(outcome);
                self.advance(now);
            }
            // A suspect replica stays so until it is rebuilt.
            Status::Unavailable | Status::Suspect => {
                self.unavailable = true;
                self.refusal = Some(outcome);
                self.advance(now);
            }
            Status::Overloaded => {
                // It may have waited in a key's queue until its window was over.
                self.too_short += 1;
                self.refusal = Some(outcome);
                self.next = self.next.wrapping_add(1);
                self.pause(now);
            }
            Status::NotReady | Status::ShuttingDown | Status::StorageFailed => {
                self.refusal = Some(outcome);
                self.advance(now);
            }
            // That this attempt was refused says nothing about the earlier ones.
            _ if self.is_tried() => {
                self.refusal = Some(outcome);
                self.advance(now);
            }
            _ => self.done = Some(outcome),
        }
    }

    /// The id was not near the node's time, or the attempt came too late for its window: nothing happened, and the reply told the time.
    fn redraw(&mut self, now: Tick, outcome: Outcome) {
        match self.kind {
            Kind::Write(Drawn::Here) if !self.is_tried() => {
                self.redraws += 1;
                if self.redraws >= MAX_REDRAWS {
                    self.kind = Kind::Write(Drawn::ByCoordinator);
                }
            }
            Kind::Write(Drawn::ByCaller) if !self.is_tried() => self.done = Some(outcome),
            _ => {
                self.refusal = Some(outcome);
                self.advance(now);
            }
        }
    }

    /// Time, windows or nodes are used up.
    fn end(&mut self) {
        let outcome = if self.counted > 0 {
            let counts = self.timed_out.as_ref().map_or(Counts::default(), |o| o.counts);
            let message = match self.timed_out.take().map(|o| o.message).filter(|m| !m.is_empty()) {
                Some(message) => message,
                None => {
                    format!("no definite answer within {} ms, in {} attempts", self.timeout.as_millis(), self.counted)
                }
            };
            Outcome { counts, ..Outcome::because(Status::Timeout, message) }
        } else {
            self.refusal.take().unwrap_or_else(|| {
                let message =
                    format!("none of {} nodes could be reached in {} ms", self.nodes.len(), self.timeout.as_millis());
                Outcome::because(Status::Connect, message)
            })
        };
        self.done = Some(outcome);
    }

    /// From 0 to below 1 (SplitMix64).
    fn next_random(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests;
