//! `Session`: what a client carries from one operation to the next.

use std::collections::BTreeMap;
use std::time::Duration;

use dunlin_protocol::message::ClientReply;
use dunlin_protocol::message::ReplyBody;
use dunlin_protocol::{Millis, NodeId, OpId, Stamp, Status, Tick, Times};

use crate::clock::ClusterClock;

/// A node that did not answer is passed over for this long, doubled each time up to [`MAX_SHUNNED`].
const SHUNNED: Duration = Duration::from_millis(500);
const MAX_SHUNNED: Duration = Duration::from_secs(4);
/// From one origin to the next; odd, so that all 2^64 are passed through.
const OTHER_ORIGIN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A client's memory: the cluster's time, the highest stamp seen, the ids drawn, and which nodes did not answer of late. Pure: one
/// session serves all operations of a client, whoever drives them.
#[derive(Clone, Debug)]
pub struct Session {
    clock: ClusterClock,
    origin: u64,
    last_drawn: u64,
    seen: Stamp,
    silent: BTreeMap<NodeId, Silence>,
    times: Times,
}

#[derive(Clone, Copy, Debug)]
struct Silence {
    until: Tick,
    length: Duration,
}

impl Session {
    /// A session with the client library's random id, which makes its operation ids unique.
    pub fn new(origin: u64) -> Self {
        Self {
            clock: ClusterClock::default(),
            origin,
            last_drawn: 0,
            seen: Stamp::ZERO,
            silent: BTreeMap::new(),
            times: Times::default(),
        }
    }

    /// The cluster's time.
    pub fn clock(&self) -> &ClusterClock {
        &self.clock
    }

    /// The highest stamp seen.
    pub fn seen(&self) -> Stamp {
        self.seen
    }

    pub(crate) fn times(&self) -> &Times {
        &self.times
    }

    /// Learns from a node's first words on a connection.
    pub fn welcomed(&mut self, node: NodeId, sent: Tick, received: Tick, theirs: Millis) {
        let quorum = Duration::ZERO;
        self.clock.observe(node, sent, received, theirs, quorum);
        self.silent.remove(&node);
    }

    /// Learns from a reply of `node` to what was sent at `sent`.
    pub fn replied(&mut self, node: NodeId, sent: Tick, received: Tick, reply: &ClientReply) {
        self.clock.observe(node, sent, received, reply.now, Duration::from_micros(reply.quorum_micros.into()));
        self.silent.remove(&node);
        // A node whose clock is not confirmed may have seen nothing but its own.
        if let ReplyBody::Outcome(outcome) = &reply.body
            && outcome.status != Status::NotReady
        {
            self.saw(node, received, outcome.seen.max(outcome.version));
        }
    }

    /// `node` could not be reached or did not answer: others are asked first for a while.
    pub fn unanswered(&mut self, node: NodeId, now: Tick) {
        let length = match self.silent.get(&node) {
            // Several operations that waited for one node are one silence.
            Some(silence) if silence.until > now => return,
            Some(silence) => (silence.length * 2).min(MAX_SHUNNED),
            None => SHUNNED,
        };
        self.silent.insert(node, Silence { until: now + length, length });
    }

    /// Whether `node` did not answer of late.
    pub fn is_silent(&self, node: NodeId, now: Tick) -> bool {
        self.silent.get(&node).is_some_and(|silence| silence.until > now)
    }

    /// Forgets nodes that are no members any more.
    pub fn retain(&mut self, is_member: impl Fn(NodeId) -> bool) {
        self.clock.retain(&is_member);
        self.silent.retain(|node, _| is_member(*node));
    }

    /// An operation id at the cluster's time, above everything that this client has seen. None: no node was heard yet.
    pub fn draw(&mut self, node: NodeId, now: Tick) -> Option<OpId> {
        let time = self.clock.now(node, now)?;
        if Millis(self.last_drawn >> 16).since(time) > self.times.redraw_window {
            // The last id came from a node whose clock is far ahead, and no other node would take one above it. Under another origin, ids may
            // go back to this node's time: none is drawn twice.
            self.origin = self.origin.wrapping_add(OTHER_ORIGIN);
            self.last_drawn = 0;
        }
        // What this client saw happened before what it does next, whatever the clocks say.
        let hlc = (time.0.min(Millis::MAX.0) << 16).max(self.seen.hlc() + 1).max(self.last_drawn + 1);
        self.last_drawn = hlc;
        Some(OpId::from_hlc(hlc, self.origin))
    }

    /// A stamp from too far in the future is no node's doing; to carry it along would get every request refused.
    fn saw(&mut self, node: NodeId, now: Tick, stamp: Stamp) {
        let plausible = self.clock.now(node, now).is_some_and(|time| stamp.wall() <= time + self.times.max_clock_skew);
        if plausible {
            self.seen = self.seen.max(stamp);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin_protocol::{Epoch, Outcome};

    fn reply(now: u64, seen: Stamp) -> ClientReply {
        let outcome = Outcome { seen, ..Outcome::of(Status::Ok) };
        ClientReply { now: Millis(now), quorum_micros: 0, epoch: Epoch(1), body: ReplyBody::Outcome(outcome) }
    }

    #[test]
    fn ids_are_unique_and_above_what_was_seen() {
        let mut session = Session::new(77);
        assert_eq!(session.draw(NodeId(1), Tick(0)), None);
        let seen = Stamp::new(Millis(50_400), 3, 2);
        session.replied(NodeId(1), Tick(0), Tick(0), &reply(50_000, seen));
        let ids: Vec<_> = (0..3).map(|_| session.draw(NodeId(1), Tick(0)).expect("time known")).collect();
        assert!(ids[0] > seen && ids.is_sorted_by(|a, b| a < b), "{ids:?}");
        assert!(ids.iter().all(|id| id.origin() == 77));
        let later = session.draw(NodeId(1), Tick(900_000_000)).expect("time known");
        assert_eq!(later.wall(), Millis(50_900));
    }

    #[test]
    fn one_clock_far_ahead_does_not_lead_the_ids_away() {
        let mut session = Session::new(77);
        let hour = 3_600_000;
        session.welcomed(NodeId(1), Tick(0), Tick(0), Millis(50_000 + hour));
        session.welcomed(NodeId(2), Tick(0), Tick(0), Millis(50_000));
        let far = session.draw(NodeId(1), Tick(0)).expect("time known");
        assert_eq!((far.wall(), far.origin()), (Millis(50_000 + hour), 77));
        let near = session.draw(NodeId(2), Tick(0)).expect("time known");
        assert_eq!(near.wall(), Millis(50_000));
        assert_ne!(near.origin(), 77, "when its time comes, the far id is not drawn again");
        assert!(session.draw(NodeId(2), Tick(0)).expect("time known") > near);
    }

    #[test]
    fn a_stamp_of_the_far_future_is_not_carried_along() {
        let mut session = Session::new(1);
        session.replied(NodeId(1), Tick(0), Tick(0), &reply(50_000, Stamp::MAX));
        assert_eq!(session.seen(), Stamp::ZERO);
    }

    #[test]
    fn silence_doubles_and_ends_with_an_answer() {
        let (mut session, node) = (Session::new(1), NodeId(4));
        let mut now = Tick(0);
        for length in [500, 1_000, 2_000, 4_000, 4_000] {
            session.unanswered(node, now);
            session.unanswered(node, now);
            now = now + Duration::from_millis(length - 1);
            assert!(session.is_silent(node, now));
            now = now + Duration::from_millis(1);
            assert!(!session.is_silent(node, now));
        }
        session.unanswered(node, now);
        session.replied(node, now, now, &reply(1, Stamp::ZERO));
        assert!(!session.is_silent(node, now));
    }
}
