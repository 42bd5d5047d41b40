//! The coordinator's floor: takes operations from the interfaces, drives one pure machine for each to its end, and hands requests down to the
//! replicas, this node's own being one of them.

mod admission;
mod flight;
mod reply;
mod scan;
mod serial_queue;

pub(crate) use flight::Requester;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use dunlin_membership::Placement;
use dunlin_protocol::message::{PeerReply, PeerReplyBody, PeerRequest, ReplicaPage};
use dunlin_protocol::{Answer, HybridClock, NodeId, Now, Status, Tick, Times};

use crate::outbox::Outbox;
use crate::peers::Peers;
use crate::replica::{Answered, Asker, Replica};
use flight::Flight;
use scan::ScanFlight;
use serial_queue::SerialQueues;

/// How a coordinator works. The defaults are for production.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CoordinatorConfig {
    /// The most operations under way at once; what comes on top is refused with `OVERLOADED`.
    pub max_in_flight: usize,
    /// How long answers that the result did not need are still taken.
    pub straggle: Duration,
    /// A Paxos round without a quorum of answers is begun anew after this.
    pub round_timeout: Duration,
    /// The most entries that a serial record remembers of its ancestors.
    pub lineage: usize,
    /// Prepare asks every replica for values up to this many bytes; a larger one is fetched when it is needed.
    pub inline_value_bytes: u32,
    /// The longest value in bytes.
    pub max_value_bytes: usize,
}

impl Default for CoordinatorConfig {
    fn default() -> Self {
        Self {
            max_in_flight: 16_384,
            straggle: Duration::from_secs(1),
            round_timeout: Duration::from_millis(300),
            lineage: 64,
            inline_value_bytes: 4096,
            max_value_bytes: 1 << 20,
        }
    }
}

/// What the coordinator works with at one moment: the floors beneath it and what membership tells.
pub(crate) struct Below<'a> {
    pub(crate) now: Now,
    pub(crate) placement: &'a Placement,
    pub(crate) clock: &'a mut HybridClock,
    pub(crate) replica: &'a mut Replica,
    pub(crate) peers: &'a mut Peers,
    pub(crate) out: &'a mut dyn Outbox,
}

pub(crate) struct Coordinator {
    me: NodeId,
    config: CoordinatorConfig,
    times: Times,
    seed: u64,
    /// The number of the newest operation or scan; numbers are never reused.
    newest: u64,
    flights: BTreeMap<u64, Flight>,
    scans: BTreeMap<u64, ScanFlight>,
    /// How many flights have finished and only take stragglers.
    finished: usize,
    queues: SerialQueues,
    timers: BTreeSet<(Tick, u64)>,
    /// Answers that came while a machine was being driven.
    inbox: VecDeque<(u64, Reply)>,
    /// Operations that have become the first of their key's queue.
    runnable: VecDeque<u64>,
}

/// What comes back for a request id.
#[expect(clippy::large_enum_variant, reason = "answers are the usual case: a box would cost an allocation each")]
pub(crate) enum Reply {
    Answer(Answer),
    Page(ReplicaPage),
}

/// A request id: the operation's number, the replica's, and a sequence that tells a later request from an earlier one.
#[derive(Clone, Copy)]
struct RequestId(u64);

impl RequestId {
    fn new(number: u64, replica: usize, sequence: u16) -> Self {
        Self(number << 16 | (replica as u64) << 11 | u64::from(sequence & 0x7ff))
    }

    fn number(self) -> u64 {
        self.0 >> 16
    }

    fn replica(self) -> usize {
        (self.0 >> 11 & 31) as usize
    }
}

impl Coordinator {
    pub(crate) fn new(me: NodeId, config: CoordinatorConfig, times: Times, seed: u64) -> Self {
        Self {
            me,
            config,
            times,
            seed,
            newest: 0,
            flights: BTreeMap::new(),
            scans: BTreeMap::new(),
            finished: 0,
            queues: SerialQueues::default(),
            timers: BTreeSet::new(),
            inbox: VecDeque::new(),
            runnable: VecDeque::new(),
        }
    }

    /// How many operations have not been answered yet.
    pub(crate) fn in_flight(&self) -> usize {
        self.flights.len() - self.finished + self.scans.len()
    }

    pub(crate) fn next_timeout(&self) -> Option<Tick> {
        self.timers.first().map(|(tick, _)| *tick)
    }

    /// A peer answered.
    pub(crate) fn handle_reply(&mut self, from: NodeId, request_id: u64, reply: PeerReply, below: &mut Below<'_>) {
        let id = RequestId(request_id);
        let asked = match self.flights.get(&id.number()) {
            Some(flight) => flight.asked(id.replica()),
            None => self.scans.get(&id.number()).and_then(|scan| scan.asked(id.replica())),
        };
        if asked != Some(from) {
            // Late, or not asked at all.
            return;
        }
        self.inbox.push_back((request_id, reply_of(reply.body)));
        self.work_off(below);
    }

    /// This node's replica answered, now that its log is durable.
    pub(crate) fn handle_local(&mut self, request_id: u64, body: PeerReplyBody, below: &mut Below<'_>) {
        self.inbox.push_back((request_id, reply_of(body)));
        self.work_off(below);
    }

    /// The connection to a peer is gone: nothing that was sent there is answered any more.
    pub(crate) fn handle_lost(&mut self, node: NodeId, below: &mut Below<'_>) {
        for flight in self.flights.values() {
            self.inbox.extend(flight.outstanding_at(node).map(|id| (id, Reply::Answer(Answer::Lost))));
        }
        for scan in self.scans.values() {
            self.inbox.extend(scan.outstanding_at(node).map(|id| (id, Reply::Answer(Answer::Lost))));
        }
        self.work_off(below);
    }

    /// Timers that are due.
    pub(crate) fn handle_timeout(&mut self, below: &mut Below<'_>) {
        while let Some((tick, number)) = self.timers.first().copied().filter(|(tick, _)| *tick <= below.now.tick) {
            self.timers.remove(&(tick, number));
            if self.flights.contains_key(&number) {
                self.flight_timeout(number, below);
            } else {
                self.scan_timeout(number, below);
            }
            self.work_off(below);
        }
    }

    /// Carries on with what was set aside, so that machines never drive each other recursively.
    fn work_off(&mut self, below: &mut Below<'_>) {
        loop {
            if let Some(number) = self.runnable.pop_front() {
                self.propose(number, below);
                continue;
            }
            let Some((id, reply)) = self.inbox.pop_front() else { return };
            let id = RequestId(id);
            if self.flights.contains_key(&id.number()) {
                self.flight_reply(id, reply, below);
            } else {
                self.scan_reply(id, reply, below);
            }
        }
    }

    fn draw_number(&mut self) -> u64 {
        self.newest += 1;
        self.newest
    }

    /// A seed for whatever in an operation is random.
    fn draw_seed(&mut self) -> u64 {
        // SplitMix64 (Steele et al., 2014).
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.seed ^ self.seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Sends a request to a replica: to a peer through the outbox, to this node's own directly.
    fn send(
        inbox: &mut VecDeque<(u64, Reply)>,
        me: NodeId,
        to: NodeId,
        id: u64,
        request: &PeerRequest,
        below: &mut Below<'_>,
    ) {
        if to != me {
            if !below.out.request(to, id, request) {
                inbox.push_back((id, Reply::Answer(Answer::NotSent)));
            }
            return;
        }
        let asker = Asker::Coordinator(id);
        let answered: Option<Answered> = match request {
            PeerRequest::Register(call) => {
                below.replica.call(below.now.wall, below.placement, below.clock, asker, call)
            }
            PeerRequest::Scan(scan) => below.replica.scan(below.now.wall, below.placement, asker, scan),
            PeerRequest::Topology { .. } | PeerRequest::Found { .. } | PeerRequest::Ping => None,
        };
        if let Some((_, body)) = answered {
            inbox.push_back((id, reply_of(body)));
        }
    }
}

fn reply_of(body: PeerReplyBody) -> Reply {
    match body {
        PeerReplyBody::Register(reply) => Reply::Answer(Answer::Reply(reply)),
        PeerReplyBody::Page(page) => Reply::Page(page),
        PeerReplyBody::Refused { status, seen, .. } => Reply::Answer(Answer::Refused { status, seen }),
        PeerReplyBody::Topology(_) | PeerReplyBody::Pong => {
            Reply::Answer(Answer::Refused { status: Status::BadFrame, seen: dunlin_protocol::Stamp::ZERO })
        }
    }
}
