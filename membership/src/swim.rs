//! `Swim`: who is alive.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use bytes::Bytes;
use dunlin_protocol::{BootNumber, Epoch, NodeId, Tick};
use foca::{BroadcastHandler, Foca, Invalidates, Notification, PeriodicParams, Runtime, Timer};

use crate::datagram::{Codec, Datagram, DatagramError, decode_epoch, encode_epoch};
use crate::identity::Identity;
use crate::random::SplitMix;

/// The times and sizes of SWIM. One set for a cluster; the defaults are for a local network and find a crash everywhere within 4 to 6 seconds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SwimConfig {
    /// How often a member is probed. More than `probe_reply`.
    pub probe_period: Duration,
    /// How long a probe waits for its answer before others are asked to try.
    pub probe_reply: Duration,
    /// How many others are asked to try.
    pub indirect_probes: NonZeroUsize,
    /// How long a suspect has to object before it counts as down.
    pub suspicion: Duration,
    /// How often news goes to `gossip_fanout` members beside what rides on probes. Nothing is sent where there is no news.
    pub gossip_period: Duration,
    /// How many members get news at once.
    pub gossip_fanout: NonZeroUsize,
    /// How often a piece of news is told on.
    pub transmissions: NonZeroU8,
    /// How often members that are down or were never heard of are called.
    pub announce_period: Duration,
    /// The same while nobody else is known to be alive.
    pub lonely_announce_period: Duration,
    /// How many of them are called at a time, in turn.
    pub announce_fanout: NonZeroUsize,
    /// The largest datagram sent or taken. It must fit a QUIC datagram: 1,100 at an MTU of 1,200. At least [`SwimConfig::LEAST_DATAGRAM`].
    pub max_datagram_bytes: usize,
}

impl SwimConfig {
    /// Below this a datagram has no room for a message, a few updates and an epoch.
    pub const LEAST_DATAGRAM: usize = 256;

    fn to_foca(&self) -> foca::Config {
        assert!(self.probe_reply < self.probe_period, "a probe is answered within its period");
        let max_packet_size = NonZeroUsize::new(self.max_datagram_bytes.max(Self::LEAST_DATAGRAM));
        foca::Config {
            probe_period: self.probe_period,
            probe_rtt: self.probe_reply,
            num_indirect_probes: self.indirect_probes,
            max_transmissions: self.transmissions,
            suspect_to_down_after: self.suspicion,
            // Nothing is ever forgotten: what is known is bounded by the topology's members, and timers of a day would only pile up.
            remove_down_after: None,
            max_packet_size: max_packet_size.expect("at least LEAST_DATAGRAM"),
            notify_down_members: true,
            // Swim calls absent members itself: the library knows only those of which it has heard.
            periodic_announce: None,
            periodic_announce_to_down_members: None,
            periodic_gossip: Some(PeriodicParams { frequency: self.gossip_period, num_members: self.gossip_fanout }),
        }
    }
}

impl Default for SwimConfig {
    fn default() -> Self {
        const THREE: NonZeroUsize = NonZeroUsize::new(3).expect("not zero");
        const TEN: NonZeroU8 = NonZeroU8::new(10).expect("not zero");
        Self {
            probe_period: Duration::from_secs(1),
            probe_reply: Duration::from_millis(500),
            indirect_probes: THREE,
            suspicion: Duration::from_secs(3),
            gossip_period: Duration::from_millis(200),
            gossip_fanout: THREE,
            transmissions: TEN,
            announce_period: Duration::from_secs(5),
            lonely_announce_period: Duration::from_secs(1),
            announce_fanout: THREE,
            max_datagram_bytes: 1100,
        }
    }
}

/// What follows from what happened.
#[derive(PartialEq, Debug)]
#[must_use]
pub enum SwimEffect {
    /// Send this datagram; it may be lost.
    Send {
        /// To whom, always a member.
        to: NodeId,
        /// The datagram.
        bytes: Bytes,
    },
    /// The member is alive now and was not.
    Up(NodeId),
    /// The member is not alive any more, or is no member any more.
    Down(NodeId),
    /// A higher epoch than any before is out: fetch its topology.
    Epoch(Epoch),
    /// Something that should not happen did; the machine goes on. For the logs.
    Fault(SwimError),
}

/// A datagram that is refused, or a fault within.
#[derive(PartialEq, Debug, thiserror::Error)]
pub enum SwimError {
    /// Not a datagram of ours.
    #[error("the datagram of node {from} cannot be read: {reason}")]
    Malformed {
        /// Who sent it.
        from: NodeId,
        /// Why not.
        reason: String,
    },
    /// Larger than any of ours.
    #[error("the datagram of node {from} has {len} bytes, more than ours")]
    TooLarge {
        /// Who sent it.
        from: NodeId,
        /// Its length.
        len: usize,
    },
    /// Whoever sent it is no member (yet).
    #[error("node {0} is no member")]
    Stranger(NodeId),
    /// It claims to be from someone else.
    #[error("a datagram of node {from} claims to be from node {claimed}")]
    Forged {
        /// Who sent it.
        from: NodeId,
        /// Whom it names.
        claimed: NodeId,
    },
    /// It is meant for someone else.
    #[error("a datagram of node {from} is meant for node {meant}")]
    Misdirected {
        /// Who sent it.
        from: NodeId,
        /// For whom it is.
        meant: NodeId,
    },
    /// The SWIM library refused.
    #[error("SWIM: {0}")]
    Protocol(foca::Error),
}

/// A node's view of who is alive: SWIM with suspicion, after Das, Gupta and Motivala.
///
/// *Questions*: [`is_alive`](Self::is_alive), [`alive`](Self::alive), [`next_timeout`](Self::next_timeout). *What happened*:
/// [`set_members`](Self::set_members) first, then [`handle_datagram`](Self::handle_datagram) and [`handle_timeout`](Self::handle_timeout) in
/// whatever order; [`announce_epoch`](Self::announce_epoch) whenever a newer topology was adopted. *What follows*: after each of them drain
/// [`poll_effect`](Self::poll_effect).
///
/// Only the members it was told of exist for it: others are neither believed, nor believed in, nor written to. Down never means removed.
pub struct Swim {
    foca: Foca<Identity, Codec, SplitMix, EpochRelay>,
    shell: Shell,
    config: SwimConfig,
    /// When absent members are called next. The first time is at once.
    announce_at: Tick,
    /// The member that was called last.
    announced: NodeId,
    left: bool,
}

impl Swim {
    /// A node's machine after a start. `boot` must be higher than at any earlier start of this node, or others go on taking it for its dead
    /// predecessor for a while. With the same seed and the same input it does the same.
    pub fn new(me: NodeId, boot: BootNumber, seed: u64, config: SwimConfig) -> Self {
        let identity = Identity::at_boot(me, boot);
        let foca = Foca::with_custom_broadcast(
            identity,
            config.to_foca(),
            SplitMix::new(seed),
            Codec,
            EpochRelay { highest: Epoch(0) },
        );
        Self { foca, shell: Shell::new(me), config, announce_at: Tick(0), announced: NodeId(0), left: false }
    }

    /// Who the members are, by the topology; this node may be among them. Members that are no longer there are down at once.
    pub fn set_members(&mut self, members: &[NodeId]) {
        let me = self.shell.me;
        self.shell.members = members.iter().copied().filter(|m| *m != me).collect();
        let gone: Vec<_> = self.shell.alive.difference(&self.shell.members).copied().collect();
        gone.into_iter().for_each(|node| self.shell.down(node));
        if !self.left {
            let mut known: Vec<_> = self.foca.iter_members().map(|m| m.id().node).collect();
            known.sort_unstable();
            known.into_iter().for_each(|node| self.shell.up(node));
        }
    }

    /// Calls these members now. Without it absent members are called in turn, so this is only quicker.
    pub fn join(&mut self, peers: &[NodeId]) {
        for peer in peers {
            if *peer != self.shell.me && !self.left {
                let result = self.foca.announce(Identity::unknown(*peer), &mut self.shell);
                self.shell.note(result);
            }
        }
    }

    /// A datagram came from a node whose id the transport has proven. An error means that nothing of it was believed.
    pub fn handle_datagram(&mut self, now: Tick, from: NodeId, bytes: &[u8]) -> Result<(), SwimError> {
        if self.left {
            return Ok(());
        }
        if bytes.len() > self.config.max_datagram_bytes {
            return Err(SwimError::TooLarge { from, len: bytes.len() });
        }
        if !self.shell.members.contains(&from) {
            return Err(SwimError::Stranger(from));
        }
        let malformed = |e: DatagramError| SwimError::Malformed { from, reason: e.to_string() };
        let mut datagram = Datagram::decode(bytes).map_err(malformed)?;
        let (claimed, meant) = (datagram.header.src.node, datagram.header.dst.node);
        if claimed != from {
            return Err(SwimError::Forged { from, claimed });
        }
        if meant != self.shell.me {
            return Err(SwimError::Misdirected { from, meant });
        }
        // News of strangers is dropped and the rest is taken: the sender may know of a newer topology, and refusing all that it says would
        // make it look dead.
        datagram.updates.retain(|m| self.shell.is_known(m.id().node));
        let mut trusted = Vec::with_capacity(bytes.len());
        datagram.encode(&mut trusted).map_err(malformed)?;
        self.shell.now = now;
        let result = self.foca.handle_data(&trusted, &mut self.shell).map_err(SwimError::Protocol);
        for epoch in datagram.epochs {
            self.shell.learn(epoch);
        }
        self.after_change(now);
        result
    }

    /// The time that [`next_timeout`](Self::next_timeout) named has come, or a later one.
    pub fn handle_timeout(&mut self, now: Tick) {
        if self.left {
            return;
        }
        self.shell.now = now;
        while let Some(timer) = self.shell.due(now) {
            let result = self.foca.handle_timer(timer, &mut self.shell);
            self.shell.note(result);
        }
        if self.announce_at <= now {
            self.announce_to_absent();
            self.announce_at = now + self.announce_period();
        }
        self.after_change(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is wanted next. None: never, because the node has left.
    pub fn next_timeout(&self) -> Option<Tick> {
        let next = self.shell.timers.first_key_value().map_or(Tick::NEVER, |((at, _), _)| *at);
        (!self.left).then(|| next.min(self.announce_at))
    }

    /// What follows from what happened; None when that was all.
    pub fn poll_effect(&mut self) -> Option<SwimEffect> {
        self.shell.effects.pop_front()
    }

    /// Tells the members of an epoch that this node has. One at or below an epoch that was told before is not told again.
    pub fn announce_epoch(&mut self, epoch: Epoch) {
        self.shell.epoch = self.shell.epoch.max(epoch);
        let result = self.foca.add_broadcast(&encode_epoch(epoch)).and_then(|is_news| match is_news {
            true if !self.left => self.foca.broadcast(&mut self.shell),
            _ => Ok(()),
        });
        self.shell.note(result);
    }

    /// Whether a member is alive as far as is known. This node is, until it leaves.
    pub fn is_alive(&self, node: NodeId) -> bool {
        if node == self.shell.me { !self.left } else { self.shell.alive.contains(&node) }
    }

    /// Who is alive, in order of ids, this node included.
    pub fn alive(&self) -> impl Iterator<Item = NodeId> + '_ {
        let me = self.shell.me;
        let below = self.shell.alive.range(..me);
        let above = self.shell.alive.range(me..);
        below.copied().chain((!self.left).then_some(me)).chain(above.copied())
    }

    /// Tells some members that this node stops, so that they need not find out. Nothing is taken or sent after that.
    pub fn leave(&mut self, now: Tick) {
        if self.left {
            return;
        }
        self.shell.now = now;
        let result = self.foca.leave_cluster(&mut self.shell);
        self.shell.note(result);
        self.left = true;
        self.shell.timers.clear();
        self.shell.alive.clear();
    }

    /// Calls the next few members that are not alive, in turn.
    fn announce_to_absent(&mut self) {
        let absent = |node: &&NodeId| !self.shell.alive.contains(node);
        let behind = self.shell.members.range((std::ops::Bound::Excluded(self.announced), std::ops::Bound::Unbounded));
        let before = self.shell.members.range(..=self.announced);
        let count = self.config.announce_fanout.get();
        let called: Vec<_> = behind.chain(before).filter(absent).take(count).copied().collect();
        self.announced = called.last().copied().unwrap_or(self.announced);
        self.join(&called);
    }

    fn announce_period(&self) -> Duration {
        if self.shell.alive.is_empty() { self.config.lonely_announce_period } else { self.config.announce_period }
    }

    /// A new generation, or loneliness, makes the absent worth a call sooner. Not at once: two nodes that disagree must not spin.
    fn after_change(&mut self, now: Tick) {
        if std::mem::take(&mut self.shell.renewed) {
            self.announce_at = self.announce_at.min(now + RENEWED_ANNOUNCE_DELAY);
        }
        self.announce_at = self.announce_at.min(now + self.announce_period());
    }
}

/// How soon a node that came back with a new generation calls those that it takes for absent.
const RENEWED_ANNOUNCE_DELAY: Duration = Duration::from_millis(50);

/// What the SWIM library calls back: effects and timers are collected here.
struct Shell {
    me: NodeId,
    now: Tick,
    /// The other members.
    members: BTreeSet<NodeId>,
    /// Those of them that are alive.
    alive: BTreeSet<NodeId>,
    epoch: Epoch,
    renewed: bool,
    effects: VecDeque<SwimEffect>,
    /// By time and, at one time, in the order in which they were set: the library relies on it.
    timers: BTreeMap<(Tick, u64), Timer<Identity>>,
    timers_set: u64,
}

impl Shell {
    fn new(me: NodeId) -> Self {
        Self {
            me,
            now: Tick(0),
            members: BTreeSet::new(),
            alive: BTreeSet::new(),
            epoch: Epoch(0),
            renewed: false,
            effects: VecDeque::new(),
            timers: BTreeMap::new(),
            timers_set: 0,
        }
    }

    fn is_known(&self, node: NodeId) -> bool {
        node == self.me || self.members.contains(&node)
    }

    fn due(&mut self, now: Tick) -> Option<Timer<Identity>> {
        let first = self.timers.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    fn up(&mut self, node: NodeId) {
        if self.members.contains(&node) && self.alive.insert(node) {
            self.effects.push_back(SwimEffect::Up(node));
        }
    }

    fn down(&mut self, node: NodeId) {
        if self.alive.remove(&node) {
            self.effects.push_back(SwimEffect::Down(node));
        }
    }

    fn learn(&mut self, epoch: Epoch) {
        if epoch > self.epoch {
            self.epoch = epoch;
            self.effects.push_back(SwimEffect::Epoch(epoch));
        }
    }

    fn note(&mut self, result: Result<(), foca::Error>) {
        if let Err(error) = result {
            self.effects.push_back(SwimEffect::Fault(SwimError::Protocol(error)));
        }
    }
}

impl Runtime<Identity> for Shell {
    fn notify(&mut self, notification: Notification<'_, Identity>) {
        match notification {
            Notification::MemberUp(id) => self.up(id.node),
            Notification::MemberDown(id) => self.down(id.node),
            Notification::Rejoin(_) => self.renewed = true,
            // A renamed member is one that came back before it was missed; the others concern this node's own state in the library.
            Notification::Rename(..) | Notification::Active | Notification::Idle | Notification::Defunct => (),
        }
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        if self.members.contains(&to.node) {
            self.effects.push_back(SwimEffect::Send { to: to.node, bytes: Bytes::copy_from_slice(data) });
        }
    }

    fn submit_after(&mut self, event: Timer<Identity>, after: Duration) {
        self.timers_set += 1;
        self.timers.insert((self.now + after, self.timers_set), event);
    }
}

/// Tells epochs on, as long as they are news.
struct EpochRelay {
    highest: Epoch,
}

/// An epoch under way. A higher one takes its place.
struct EpochNews(Epoch);

impl Invalidates for EpochNews {
    fn invalidates(&self, other: &Self) -> bool {
        self.0 >= other.0
    }
}

impl BroadcastHandler<Identity> for EpochRelay {
    type Key = EpochNews;
    type Error = DatagramError;

    fn receive_item(&mut self, data: &[u8], _: Option<&Identity>) -> Result<Option<EpochNews>, DatagramError> {
        let epoch = decode_epoch(data)?;
        if epoch <= self.highest {
            return Ok(None);
        }
        self.highest = epoch;
        Ok(Some(EpochNews(epoch)))
    }
}

#[cfg(test)]
mod tests;
