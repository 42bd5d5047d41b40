//! `Node`: the whole of a node but for its disk, its network and its clocks.

use std::sync::Arc;

use bytes::Bytes;
use dunlin_protocol::message::{
    ClientReply, ClientRequest, NodeSummary, PeerReply, PeerReplyBody, PeerRequest, ReplyBody,
};
use dunlin_protocol::register::RegisterRequest;
use dunlin_protocol::{BootNumber, DataId, HybridClock, Millis, NodeId, Now, Outcome, Status, Tick, Times, Topology};
use dunlin_storage::Engine;

use crate::cold_read::{ColdRead, Done, ReadDone};
use crate::coordinator::{Below, Coordinator, CoordinatorConfig, Requester};
use crate::gossip::Gossip;
use crate::outbox::{Input, Outbox, ReplyTo};
use crate::peers::Peers;
use crate::replica::{Answered, Asker, Replica, refuse};

/// What a node starts with.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Its id.
    pub node: NodeId,
    /// Its data directory.
    pub data: DataId,
    /// How often it has started, this time included.
    pub boot: BootNumber,
    /// The hybrid clock's mark that was durable when it last ran.
    pub reserve: Millis,
    /// The newest topology it knows.
    pub topology: Topology,
    /// The cluster's durations.
    pub times: Times,
    /// How its coordinator works.
    pub coordinator: CoordinatorConfig,
    /// For whatever is random.
    pub seed: u64,
}

/// A node as a state machine: the coordinator, the replica beneath it, and gossip beside them.
///
/// It does no I/O but through the engine: it reads what is in memory or in the page cache, has somebody else read the rest, and another thread writes.
/// Everything that happens is an [`Input`] to [`handle`](Self::handle), with the time; everything that it says goes to the [`Outbox`].
///
/// - getters: [`next_timeout`](Self::next_timeout), [`is_ready`](Self::is_ready), [`placement`](Self::placement)
/// - after each `handle` the owner asks [`wants_reserve`](Self::wants_reserve) and [`take_topology_to_store`](Self::take_topology_to_store),
///   makes durable what they name, and comes back with [`Input::Reserved`] and [`Input::TopologyStored`]; and drains [`poll_read`](Self::poll_read),
///   has that read, and comes back with [`Input::Read`]
/// - whenever the log writer got further: [`Input::Durable`]; when the time that `next_timeout` named has come: [`Input::Timeout`]
pub struct Node {
    id: NodeId,
    boot: BootNumber,
    clock: HybridClock,
    reserve_asked: Millis,
    peers: Peers,
    gossip: Gossip,
    coordinator: Coordinator,
    replica: Replica,
    was_ready: bool,
    repairs: u64,
}

impl Node {
    /// A node that has just started over what the engine recovered.
    pub fn new(config: NodeConfig, engine: Arc<Engine>) -> Self {
        let NodeConfig { node, data, boot, reserve, topology, times, coordinator, seed } = config;
        Self {
            id: node,
            boot,
            clock: HybridClock::new(node, reserve, &times),
            reserve_asked: Millis::NONE,
            peers: Peers::new(node),
            gossip: Gossip::new(node, data, boot, topology, &times, seed),
            coordinator: Coordinator::new(node, coordinator, times, seed),
            replica: Replica::new(node, engine, times),
            was_ready: false,
            repairs: 0,
        }
    }

    /// Its id.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The placement of its epoch.
    pub fn placement(&self) -> &Arc<dunlin_membership::Placement> {
        self.gossip.placement()
    }

    /// Whether it coordinates operations: its cluster is founded, its clock confirmed by a majority and its reserve durable.
    pub fn is_ready(&self) -> bool {
        self.gossip.is_founded() && self.clock.is_confirmed() && self.reserve_asked.is_some()
    }

    /// Whether its cluster knows it by another data directory than the one that it has: it lost that one, and with it what it promised, and must
    /// be stopped. It has served nothing.
    pub fn is_disowned(&self) -> bool {
        self.gossip.is_disowned()
    }

    /// Operations that were not answered yet, and answers that wait for the disk.
    pub fn in_flight(&self) -> usize {
        self.coordinator.in_flight() + self.replica.waiting()
    }

    /// Records that peers installed here because this replica had an older one or none.
    pub fn repairs(&self) -> u64 {
        self.repairs
    }

    /// When it next wants [`Input::Timeout`].
    pub fn next_timeout(&self) -> Option<Tick> {
        let gossip = self.gossip.next_timeout();
        Some(self.coordinator.next_timeout().map_or(gossip, |tick| tick.min(gossip)))
    }

    /// The mark up to which the hybrid clock's reserve must be made durable now; asked once for each mark.
    pub fn wants_reserve(&mut self, wall: Millis) -> Option<Millis> {
        if !self.clock.is_confirmed() {
            // A mark taken from a clock that is hours ahead would keep the node from drawing for hours after its next start.
            return None;
        }
        let until = self.clock.wants_reserve(wall)?;
        // Until the answer comes, asking again for a slightly higher mark would only write more often.
        if until < self.reserve_asked + dunlin_protocol::RESERVE_STEP / 2 {
            return None;
        }
        self.reserve_asked = until;
        Some(until)
    }

    /// A topology that has to be made durable, and counts only from then on ([`Input::TopologyStored`]).
    pub fn take_topology_to_store(&mut self) -> Option<Bytes> {
        self.gossip.take_topology_to_store()
    }

    /// A read for which the node does not wait.
    pub fn poll_read(&mut self) -> Option<ColdRead> {
        self.replica.poll_read()
    }

    /// Something happened.
    pub fn handle(&mut self, now: Now, input: Input, out: &mut dyn Outbox) {
        if self.gossip.timekeeper().look(now) {
            tracing::warn!(wall = %now.wall, "the physical clock jumped; waiting for a majority to confirm it");
        }
        self.confirm_clock(now);
        if self.is_ready() != self.was_ready {
            self.was_ready = self.is_ready();
            tracing::info!(ready = self.was_ready, "readiness changed");
        }
        let judging = Now { wall: self.gossip.timekeeper().judging_wall(now), ..now };
        match input {
            Input::PeerRequest { from, reply_to, request } => {
                self.serve_peer(now, judging, from, reply_to, request, out)
            }
            Input::PeerReply { from, request_id, reply } => {
                if Gossip::is_ours(request_id) {
                    self.gossip.handle_reply(from, request_id, &reply, now, &mut self.peers);
                    self.confirm_clock(now);
                } else {
                    self.with_coordinator(judging, out, |coordinator, below| {
                        coordinator.handle_reply(from, request_id, reply, below);
                    });
                }
            }
            Input::PeerConnected { node, boot } => {
                self.peers.connect(node, boot);
                self.gossip.handle_connected(node, now, &mut self.peers, out);
            }
            Input::PeerLost { node } => {
                self.peers.disconnect(node);
                self.gossip.handle_lost(node);
                self.with_coordinator(judging, out, |coordinator, below| coordinator.handle_lost(node, below));
            }
            Input::ClientRequest { reply_to, request } => self.serve_client(judging, reply_to, request, out),
            Input::Datagram { from, bytes } => self.gossip.handle_datagram(from, &bytes, now, &mut self.peers, out),
            Input::Durable => self.release(judging, out),
            Input::Read(done) => self.read_done(judging, done, out),
            Input::Reserved { until } => self.clock.set_reserve(until),
            Input::TopologyStored => self.gossip.stored(),
            Input::Timeout => {
                if self.gossip.next_timeout() <= now.tick {
                    self.gossip.handle_timeout(now, &mut self.peers, out);
                }
                self.with_coordinator(judging, out, Coordinator::handle_timeout);
            }
        }
    }

    fn confirm_clock(&mut self, now: Now) {
        let confirmed = self.gossip.timekeeper().confirmed() && !self.clock.is_resuming(now.wall);
        self.clock.confirm(confirmed);
    }

    fn with_coordinator(&mut self, now: Now, out: &mut dyn Outbox, act: impl FnOnce(&mut Coordinator, &mut Below<'_>)) {
        let placement = self.gossip.placement().clone();
        let mut below = Below {
            now,
            placement: &placement,
            clock: &mut self.clock,
            replica: &mut self.replica,
            peers: &mut self.peers,
            out,
        };
        act(&mut self.coordinator, &mut below);
    }

    fn serve_peer(
        &mut self,
        now: Now,
        judging: Now,
        from: NodeId,
        to: ReplyTo,
        request: PeerRequest,
        out: &mut dyn Outbox,
    ) {
        let placement = self.gossip.placement().clone();
        let asker = Asker::Peer(to);
        let answered = match request {
            PeerRequest::Register(_) | PeerRequest::Scan(_) if !self.gossip.is_founded() => {
                Some((asker, refuse(Status::NotReady, "the cluster is not founded yet, as this node knows")))
            }
            PeerRequest::Register(call) => {
                self.repairs += u64::from(matches!(call.request, RegisterRequest::Install { .. }));
                self.replica.call(judging.wall, &placement, &mut self.clock, asker, &call)
            }
            PeerRequest::Scan(scan) => self.replica.scan(judging.wall, &placement, asker, &scan),
            PeerRequest::Topology { epoch, topology } => {
                tracing::trace!(%from, %epoch, "push-pull");
                Some((asker, self.gossip.answer(epoch, &topology)))
            }
            PeerRequest::Ping => Some((asker, PeerReplyBody::Pong)),
            PeerRequest::Found { data, pledge } => Some((asker, self.gossip.answer_founder(from, data, pledge))),
        };
        if let Some((_, body)) = answered {
            self.reply_peer(now, to, body, out);
        }
    }

    fn reply_peer(&self, now: Now, to: ReplyTo, body: PeerReplyBody, out: &mut dyn Outbox) {
        out.reply_peer(to, &PeerReply { now: now.wall, epoch: self.gossip.placement().epoch(), body });
    }

    /// The disk caught up: answers that waited for it go.
    fn release(&mut self, now: Now, out: &mut dyn Outbox) {
        for answered in self.replica.release() {
            self.deliver(now, answered, out);
        }
    }

    /// What was put off was read.
    fn read_done(&mut self, now: Now, done: ReadDone, out: &mut dyn Outbox) {
        match self.replica.take_in(done) {
            Done::Checked { flight, found } => {
                self.with_coordinator(now, out, |coordinator, below| coordinator.checked(flight, found, below));
            }
            done => {
                let placement = self.gossip.placement().clone();
                if let Some(answered) = self.replica.finish(now.wall, &placement, &mut self.clock, done) {
                    self.deliver(now, answered, out);
                }
            }
        }
    }

    fn deliver(&mut self, now: Now, (asker, body): Answered, out: &mut dyn Outbox) {
        match asker {
            Asker::Peer(to) => self.reply_peer(now, to, body, out),
            Asker::Coordinator(id) => {
                self.with_coordinator(now, out, |coordinator, below| coordinator.handle_local(id, body, below));
            }
        }
    }

    fn serve_client(&mut self, now: Now, to: ReplyTo, request: ClientRequest, out: &mut dyn Outbox) {
        if let Some((status, why)) = self.gossip.founding().filter(|_| request != ClientRequest::Status) {
            return self.reply_client(now, to, ReplyBody::Outcome(Outcome::because(status, why)), out);
        }
        match request {
            ClientRequest::Operate(operation) => {
                self.with_coordinator(now, out, |c, below| c.operate(Requester::Client(to), operation, below));
            }
            ClientRequest::Scan(scan) => self.with_coordinator(now, out, |c, below| c.scan(to, scan, below)),
            ClientRequest::Topology { epoch } => {
                let newer = self.gossip.placement().epoch() > epoch;
                let topology = if newer { self.gossip.encoded_topology().clone() } else { Bytes::new() };
                self.reply_client(now, to, ReplyBody::Topology(topology), out);
            }
            ClientRequest::Status => {
                let status = self.status();
                self.reply_client(now, to, status, out);
            }
        }
    }

    fn reply_client(&self, now: Now, to: ReplyTo, body: ReplyBody, out: &mut dyn Outbox) {
        let quorum_micros = self.peers.quorum_micros();
        out.reply_client(
            to,
            &ClientReply { now: now.wall, quorum_micros, epoch: self.gossip.placement().epoch(), body },
        );
    }

    fn status(&self) -> ReplyBody {
        let topology = self.gossip.placement().topology();
        let summary = |member: &dunlin_protocol::Member| NodeSummary {
            node: member.id,
            address: member.address.clone(),
            region: member.region.clone(),
            zone: member.zone.clone(),
            alive: self.peers.is_alive(member.id),
            boot: if member.id == self.id { self.boot } else { self.peers.boot(member.id) },
            round_trip_micros: u32::try_from(self.peers.round_trip(member.id).as_micros()).unwrap_or(u32::MAX),
        };
        let stats = self.replica.engine().stats();
        let suspects = self.replica.engine().suspect_partitions();
        ReplyBody::Status {
            cluster: topology.cluster,
            node: self.id,
            members: topology.members.iter().map(summary).collect(),
            keys: stats.keys,
            segment_bytes: stats.segment_bytes,
            suspect_partitions: topology.partitioning.all().filter(|p| suspects.contains(*p)).count() as u32,
            ready: self.is_ready(),
        }
    }
}
