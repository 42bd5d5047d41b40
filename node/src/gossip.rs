//! Drives membership: the founding, the failure detector, the spreading of topologies, and the comparison of clocks. It hands the coordinator who is alive
//! and, for each epoch, a new placement; nothing else reads it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dunlin_membership::{
    Exchange, Placement, Pledge, RollCall, RollConflict, RollStep, Swim, SwimConfig, SwimEffect, encode_topology,
    exchange,
};
use dunlin_protocol::message::{PeerReply, PeerReplyBody, PeerRequest};
use dunlin_protocol::{BootNumber, DataId, Epoch, NodeId, Now, Status, Tick, Times, Topology};

use crate::outbox::Outbox;
use crate::peers::Peers;
use crate::timekeeper::Timekeeper;

/// Request ids of this floor have the top bit, so that a reply finds its way.
const OURS: u64 = 1 << 63;
/// How often a peer is asked for its time and topology.
const ROUND: Duration = Duration::from_secs(1);
/// The same while the clock is not confirmed.
const EAGER_ROUND: Duration = Duration::from_millis(100);

/// What keeps the node from being ready is warned of after this, and then so often.
const WARN_AFTER: Duration = Duration::from_secs(5);
const WARN_EVERY: Duration = Duration::from_secs(60);

pub(crate) struct Gossip {
    me: NodeId,
    data: DataId,
    /// Until the cluster is founded.
    roll: Option<RollCall>,
    swim: Swim,
    timekeeper: Timekeeper,
    placement: Arc<Placement>,
    encoded: Bytes,
    /// A topology that is being made durable: only then it counts. Whether it was handed out to be stored.
    storing: Option<(Topology, bool)>,
    /// The cluster knows this node by another data directory.
    disowned: bool,
    next_round: Tick,
    /// When not being ready is next worth a warning.
    warn_at: Tick,
    turn: usize,
    asked: BTreeMap<u64, (NodeId, Tick)>,
    newest: u64,
}

impl Gossip {
    pub(crate) fn new(
        me: NodeId,
        data: DataId,
        boot: BootNumber,
        topology: Topology,
        times: &Times,
        seed: u64,
    ) -> Self {
        let roll = (!topology.is_founded()).then(|| RollCall::new(me, data, topology.clone()));
        let encoded = encode_topology(&topology);
        let placement = Arc::new(Placement::new(Arc::new(topology)));
        let members = members(&placement);
        let mut swim = Swim::new(me, boot, seed, SwimConfig::default());
        swim.set_members(&members);
        let timekeeper = Timekeeper::new(members.len(), times);
        let mut gossip = Self {
            me,
            data,
            roll,
            swim,
            timekeeper,
            placement,
            encoded,
            storing: None,
            disowned: false,
            next_round: Tick(0),
            warn_at: Tick(0) + WARN_AFTER,
            turn: 0,
            asked: BTreeMap::new(),
            newest: OURS,
        };
        gossip.advance_roll();
        gossip
    }

    /// Whether the cluster is founded; until then nothing is served.
    pub(crate) fn is_founded(&self) -> bool {
        self.roll.is_none()
    }

    /// Why the cluster is not founded yet.
    pub(crate) fn founding(&self) -> Option<(Status, String)> {
        let roll = self.roll.as_ref()?;
        let waits: Vec<String> = roll.waits_for().iter().map(ToString::to_string).collect();
        Some(match roll.conflict() {
            Some(conflict @ RollConflict::Directory { .. }) => (Status::IdentityMismatch, conflict.to_string()),
            Some(conflict @ RollConflict::Pledge { .. }) => (Status::InvalidConfig, conflict.to_string()),
            None if roll.is_complete() => (Status::NotReady, "the cluster is being founded".to_owned()),
            None => {
                let message =
                    "the cluster is not founded yet: all founders must be up at once, once. Not heard of: node";
                (Status::NotReady, format!("{message} {}", waits.join(", node ")))
            }
        })
    }

    pub(crate) fn is_disowned(&self) -> bool {
        self.disowned
    }

    pub(crate) fn placement(&self) -> &Arc<Placement> {
        &self.placement
    }

    /// The topology as it travels.
    pub(crate) fn encoded_topology(&self) -> &Bytes {
        &self.encoded
    }

    /// A topology to be made durable; [`stored`](Self::stored) says that it is.
    pub(crate) fn take_topology_to_store(&mut self) -> Option<Bytes> {
        let (topology, taken) = self.storing.as_mut().filter(|(_, taken)| !taken)?;
        *taken = true;
        Some(encode_topology(topology))
    }

    /// What was to be made durable is.
    pub(crate) fn stored(&mut self) {
        let Some((topology, _)) = self.storing.take_if(|(_, taken)| *taken) else { return };
        if topology.is_founded() {
            self.adopt(topology);
        } else if let Some(roll) = &mut self.roll {
            roll.stored();
            self.advance_roll();
        }
    }

    fn adopt(&mut self, topology: Topology) {
        tracing::info!(epoch = %topology.epoch, "a newer topology is adopted");
        self.roll = None;
        self.encoded = encode_topology(&topology);
        self.placement = Arc::new(Placement::new(Arc::new(topology)));
        let members = members(&self.placement);
        self.swim.set_members(&members);
        self.swim.announce_epoch(self.placement.epoch());
        self.timekeeper.set_members(&members);
    }

    fn advance_roll(&mut self) {
        if self.storing.is_some() {
            return;
        }
        if let Some(RollStep::Pledge(topology) | RollStep::Found(topology)) =
            self.roll.as_mut().and_then(RollCall::step)
        {
            self.storing = Some((topology, false));
        }
    }

    pub(crate) fn timekeeper(&mut self) -> &mut Timekeeper {
        &mut self.timekeeper
    }

    /// Whether a reply with this request id is for this floor.
    pub(crate) fn is_ours(request_id: u64) -> bool {
        request_id & OURS != 0
    }

    pub(crate) fn next_timeout(&self) -> Tick {
        self.swim.next_timeout().map_or(self.next_round, |tick| tick.min(self.next_round))
    }

    pub(crate) fn handle_connected(&mut self, node: NodeId, now: Now, peers: &mut Peers, out: &mut dyn Outbox) {
        self.swim.join(&[node]);
        self.ask(node, now, out);
        self.flush(now, peers, out);
    }

    pub(crate) fn handle_lost(&mut self, node: NodeId) {
        self.asked.retain(|_, (asked, _)| *asked != node);
    }

    pub(crate) fn handle_datagram(
        &mut self,
        from: NodeId,
        bytes: &[u8],
        now: Now,
        peers: &mut Peers,
        out: &mut dyn Outbox,
    ) {
        if let Err(error) = self.swim.handle_datagram(now.tick, from, bytes) {
            tracing::debug!(%from, %error, "a gossip datagram was refused");
        }
        self.flush(now, peers, out);
    }

    pub(crate) fn handle_timeout(&mut self, now: Now, peers: &mut Peers, out: &mut dyn Outbox) {
        self.swim.handle_timeout(now.tick);
        if now.tick >= self.next_round {
            self.warn_of_delay(now);
            let settled = self.timekeeper.confirmed() && self.is_founded();
            self.next_round = now.tick + if settled { ROUND } else { EAGER_ROUND };
            self.asked.retain(|_, (_, at)| now.tick.since(*at) < ROUND * 5);
            peers.estimate_quorum(members(&self.placement).into_iter());
            let others: Vec<NodeId> = members(&self.placement).into_iter().filter(|n| *n != self.me).collect();
            if settled && !others.is_empty() {
                self.turn = (self.turn + 1) % others.len();
                self.ask(others[self.turn], now, out);
            } else {
                others.into_iter().for_each(|node| self.ask(node, now, out));
            }
        }
        self.flush(now, peers, out);
    }

    /// Who looks for the reason why a node coordinates nothing finds it in the log.
    fn warn_of_delay(&mut self, now: Now) {
        let founding = self.founding();
        if self.timekeeper.confirmed() && founding.is_none() {
            self.warn_at = now.tick + WARN_AFTER;
        } else if now.tick >= self.warn_at {
            self.warn_at = now.tick + WARN_EVERY;
            if let Some((_, why)) = founding {
                return tracing::warn!("{why}");
            }
            let offsets = self.timekeeper.offsets();
            tracing::warn!(
                ?offsets,
                "no majority confirms this node's clock, so it coordinates nothing: the offsets are the others' clocks less this one, in ms"
            );
        }
    }

    /// Answers a peer's push-pull request.
    pub(crate) fn answer(&mut self, epoch: Epoch, topology: &Bytes) -> PeerReplyBody {
        self.learn(epoch, topology);
        let newer = self.placement.epoch() > epoch;
        PeerReplyBody::Topology(if newer { self.encoded.clone() } else { Bytes::new() })
    }

    /// Answers a founder that does not know yet that the cluster is founded, or waits for this one.
    pub(crate) fn answer_founder(&mut self, from: NodeId, data: DataId, pledge: Pledge) -> PeerReplyBody {
        let Some(roll) = &mut self.roll else {
            let known = self.placement.topology().member(from).map(|member| member.data);
            if known != Some(data) {
                tracing::warn!(%from, %data, "a node comes with another data directory than the cluster knows it by");
            }
            return PeerReplyBody::Topology(self.encoded.clone());
        };
        let known = roll.conflict();
        if let Err(conflict) = roll.hear(from, data, pledge)
            && known != Some(conflict)
        {
            tracing::error!("{conflict}");
        }
        self.advance_roll();
        PeerReplyBody::Topology(Bytes::new())
    }

    pub(crate) fn handle_reply(
        &mut self,
        from: NodeId,
        request_id: u64,
        reply: &PeerReply,
        now: Now,
        peers: &mut Peers,
    ) {
        let Some((node, sent_at)) = self.asked.remove(&request_id) else { return };
        if node != from || self.placement.topology().member(from).is_none() {
            return;
        }
        let round_trip = now.tick.since(sent_at);
        peers.observe(from, round_trip);
        self.timekeeper.sample(from, reply.now, round_trip, now);
        if let PeerReplyBody::Topology(topology) = &reply.body {
            self.learn(reply.epoch, topology);
        }
    }

    fn ask(&mut self, node: NodeId, now: Now, out: &mut dyn Outbox) {
        self.newest += 1;
        let request = match &self.roll {
            Some(roll) => {
                let (data, pledge) = roll.call();
                PeerRequest::Found { data, pledge }
            }
            None => PeerRequest::Topology { epoch: self.placement.epoch(), topology: Bytes::new() },
        };
        if out.request(node, self.newest, &request) {
            self.asked.insert(self.newest, (node, now.tick));
        }
    }

    /// Takes in what a peer showed of its topology, where it is a newer one of this cluster.
    fn learn(&mut self, epoch: Epoch, encoded: &Bytes) {
        match exchange(self.placement.topology(), epoch, encoded) {
            Ok(Exchange::Adopt(topology)) => {
                // Whoever is no member of it any more goes on as one until it is told otherwise.
                let known = topology.member(self.me).map(|member| member.data);
                self.disowned |= known.is_some_and(|data| data != self.data);
                // What is learnt while another one is being stored is learnt again in the next round.
                if self.storing.is_none() && !self.disowned {
                    self.storing = Some((*topology, false));
                }
            }
            // The next round of push-pull, which sends this node's epoch, brings the topology.
            Ok(Exchange::Ask | Exchange::Answer | Exchange::Nothing) => {}
            Err(error) => tracing::warn!(%error, "a peer's topology was refused"),
        }
    }

    fn flush(&mut self, now: Now, peers: &mut Peers, out: &mut dyn Outbox) {
        while let Some(effect) = self.swim.poll_effect() {
            match effect {
                SwimEffect::Send { to, bytes } => out.datagram(to, &bytes),
                SwimEffect::Up(node) => {
                    tracing::info!(%node, "is up");
                    peers.set_down(node, false);
                }
                SwimEffect::Down(node) => {
                    tracing::info!(%node, "is down");
                    peers.set_down(node, true);
                }
                SwimEffect::Epoch(epoch) if epoch > self.placement.epoch() => {
                    let others: Vec<NodeId> = members(&self.placement).into_iter().filter(|n| *n != self.me).collect();
                    others.into_iter().for_each(|node| self.ask(node, now, out));
                }
                SwimEffect::Epoch(_) => {}
                SwimEffect::Fault(fault) => tracing::warn!(%fault, "the failure detector went on past a fault"),
            }
        }
    }
}

fn members(placement: &Placement) -> Vec<NodeId> {
    placement.topology().members.iter().map(|m| m.id).collect()
}
