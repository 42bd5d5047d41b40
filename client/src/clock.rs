//! `ClusterClock`: the cluster's time as a client knows it, from the clocks in the nodes' replies.

use std::collections::BTreeMap;
use std::time::Duration;

use dunlin_protocol::{Millis, NodeId, Tick};

/// An estimate that was not confirmed for this long gives way to a lower one: until then a lower one only means a delayed reply.
const HOLD: Duration = Duration::from_secs(1);
/// Round trips above this say more about queues than about the way; windows need no more.
const MAX_ROUND_TRIP: Duration = Duration::from_secs(2);

/// What a client knows of one node's time.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Their physical time in milliseconds at tick 0.
    origin: i128,
    taken: Tick,
    round_trip: Duration,
    quorum: Duration,
}

/// The nodes' physical time, learnt from their replies with half a round trip added, and carried on by the client's monotonic clock. It
/// never reads the client's wall clock (PROTOCOL.md 2.1).
///
/// Nodes may differ by seconds, and each judges an operation id by its own clock, so the time is kept for each node.
///
/// ```
/// use std::time::Duration;
/// use dunlin_client::ClusterClock;
/// use dunlin_protocol::{Millis, NodeId, Tick};
///
/// let mut clock = ClusterClock::default();
/// let sent = Tick(0);
/// let received = sent + Duration::from_millis(20);
/// clock.observe(NodeId(1), sent, received, Millis(1_000_000), Duration::ZERO);
/// assert_eq!(clock.now(NodeId(1), received), Some(Millis(1_000_010)));
/// assert_eq!(clock.now(NodeId(2), received + Duration::from_secs(1)), Some(Millis(1_001_010)));
/// ```
#[derive(Clone, Debug, Default)]
pub struct ClusterClock {
    samples: BTreeMap<NodeId, Sample>,
    latest: Option<NodeId>,
}

impl ClusterClock {
    /// A reply of `node` to what was sent at `sent`: its clock showed `theirs`, and its round trip to a quorum is `quorum`.
    pub fn observe(&mut self, node: NodeId, sent: Tick, received: Tick, theirs: Millis, quorum: Duration) {
        let measured = received.since(sent).min(MAX_ROUND_TRIP);
        let before = self.samples.get(&node);
        let round_trip = match before {
            Some(old) if measured > old.round_trip => old.round_trip + (measured - old.round_trip) / 8,
            _ => measured,
        };
        let half = i128::try_from((round_trip / 2).as_millis()).unwrap_or(0);
        let origin = i128::from(theirs.0) + half - tick_millis(received);
        // What delays a reply on its way makes the estimate too low, never too high: the highest of late is the best.
        let (origin, taken) = match before {
            Some(old) if old.origin > origin && received.since(old.taken) < HOLD => (old.origin, old.taken),
            _ => (origin, received),
        };
        self.samples.insert(node, Sample { origin, taken, round_trip, quorum: quorum.min(MAX_ROUND_TRIP) });
        self.latest = Some(node);
    }

    /// The time by `node`'s clock, or by the clock heard of last where that node was not heard. None: no node was heard yet.
    pub fn now(&self, node: NodeId, tick: Tick) -> Option<Millis> {
        let sample = self.sample(node)?;
        Some(Millis(u64::try_from(sample.origin + tick_millis(tick)).unwrap_or(0)))
    }

    /// How long an attempt through `node` should be given: twice the way there and back, four times its way to a quorum.
    pub fn usual_duration(&self, node: NodeId) -> Duration {
        self.sample(node).map_or(Duration::ZERO, |s| 2 * s.round_trip + 4 * s.quorum)
    }

    /// The round trip to `node`, where it is known; zero otherwise.
    pub fn round_trip(&self, node: NodeId) -> Duration {
        self.samples.get(&node).map_or(Duration::ZERO, |s| s.round_trip)
    }

    /// Forgets nodes that are no members any more.
    pub(crate) fn retain(&mut self, is_member: impl Fn(NodeId) -> bool) {
        self.samples.retain(|node, _| is_member(*node));
        if self.latest.is_some_and(|node| !self.samples.contains_key(&node)) {
            self.latest = self.samples.keys().next().copied();
        }
    }

    fn sample(&self, node: NodeId) -> Option<&Sample> {
        self.samples.get(&node).or_else(|| self.samples.get(&self.latest?))
    }
}

fn tick_millis(tick: Tick) -> i128 {
    i128::from(tick.0 / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Tick {
        Tick(n * 1_000_000)
    }

    #[test]
    fn a_delayed_reply_does_not_set_the_time_back() {
        let mut clock = ClusterClock::default();
        let node = NodeId(1);
        assert_eq!(clock.now(node, ms(0)), None);
        clock.observe(node, ms(0), ms(2), Millis(10_000), Duration::ZERO);
        assert_eq!(clock.now(node, ms(2)), Some(Millis(10_001)));
        // The node's clock showed 10,100 when it answered, and the answer took 500 ms to arrive.
        clock.observe(node, ms(100), ms(600), Millis(10_100), Duration::ZERO);
        assert_eq!(clock.now(node, ms(600)), Some(Millis(10_599)));
        // A clock that was really set back is believed after a while.
        clock.observe(node, ms(2_000), ms(2_002), Millis(5_000), Duration::ZERO);
        assert!(clock.now(node, ms(2_002)).expect("known") < Millis(5_050));
    }

    #[test]
    fn nodes_have_their_own_time() {
        let mut clock = ClusterClock::default();
        clock.observe(NodeId(1), ms(0), ms(0), Millis(10_000), Duration::from_millis(3));
        clock.observe(NodeId(2), ms(0), ms(0), Millis(13_000), Duration::ZERO);
        assert_eq!(clock.now(NodeId(1), ms(5)), Some(Millis(10_005)));
        assert_eq!(clock.now(NodeId(3), ms(5)), Some(Millis(13_005)));
        assert_eq!(clock.usual_duration(NodeId(1)), Duration::from_millis(12));
        clock.retain(|node| node == NodeId(1));
        assert_eq!(clock.now(NodeId(3), ms(5)), Some(Millis(10_005)));
    }

    #[test]
    fn absurd_times_do_not_panic() {
        let mut clock = ClusterClock::default();
        clock.observe(NodeId(1), Tick(0), Tick::NEVER, Millis(u64::MAX), Duration::MAX);
        assert!(clock.now(NodeId(1), Tick::NEVER).is_some());
        clock.observe(NodeId(2), Tick::NEVER, Tick::NEVER, Millis(0), Duration::ZERO);
        assert_eq!(clock.now(NodeId(2), Tick(0)), Some(Millis(0)));
    }
}
