//! Whether this node's physical clock may be trusted (PROTOCOL.md 2.7): a majority of the members must confirm it after a start and after
//! every jump, and keep confirming it.

use std::collections::BTreeMap;
use std::time::Duration;

use dunlin_protocol::{Millis, NodeId, Now, Times};

/// How far wall and monotonic clock may drift apart between two looks before it counts as a jump.
const JUMP: Duration = Duration::from_millis(500);

/// What the peers' clocks say about ours.
#[derive(Debug)]
pub(crate) struct Timekeeper {
    members: usize,
    tolerance: Duration,
    /// Peer's clock less ours, in milliseconds.
    offsets: BTreeMap<NodeId, i64>,
    last: Option<Now>,
    /// The last time that a majority confirmed, by our clock then.
    trusted: Option<Now>,
}

impl Timekeeper {
    pub(crate) fn new(members: usize, times: &Times) -> Self {
        Self { members, tolerance: times.max_clock_skew / 2, offsets: BTreeMap::new(), last: None, trusted: None }
    }

    /// A new topology has another number of members.
    pub(crate) fn set_members(&mut self, members: &[NodeId]) {
        self.members = members.len();
        self.offsets.retain(|node, _| members.contains(node));
    }

    /// Looks at both clocks; true when the physical one jumped, and everything known about it is void.
    pub(crate) fn look(&mut self, now: Now) -> bool {
        let jumped = self.last.is_some_and(|last| {
            let passed = now.tick.since(last.tick);
            let expected = last.wall + passed;
            now.wall.since(expected).max(expected.since(now.wall)) > JUMP
        });
        self.last = Some(now);
        if jumped {
            self.offsets.clear();
        }
        if self.confirmed() {
            self.trusted = Some(now);
        }
        jumped
    }

    /// A peer's clock, read half a `round_trip` ago.
    pub(crate) fn sample(&mut self, peer: NodeId, theirs: Millis, round_trip: Duration, now: Now) {
        let theirs = theirs + round_trip / 2;
        let offset =
            i64::try_from(theirs.0).unwrap_or(i64::MAX).saturating_sub(i64::try_from(now.wall.0).unwrap_or(i64::MAX));
        self.offsets.insert(peer, offset);
        if self.confirmed() {
            self.trusted = Some(now);
        }
    }

    /// Whether a majority of the members, this one included, agrees with our clock.
    pub(crate) fn confirmed(&self) -> bool {
        let tolerance = i64::try_from(self.tolerance.as_millis()).unwrap_or(i64::MAX);
        let agree = 1 + self.offsets.values().filter(|offset| offset.abs() <= tolerance).count();
        agree > self.members / 2
    }

    /// What each peer's clock showed, less ours, in milliseconds.
    pub(crate) fn offsets(&self) -> &BTreeMap<NodeId, i64> {
        &self.offsets
    }

    /// The time by which incoming stamps are judged: our clock while it is confirmed, else the last confirmed time carried on by the
    /// monotonic clock.
    pub(crate) fn judging_wall(&self, now: Now) -> Millis {
        match self.trusted {
            Some(trusted) if !self.confirmed() => trusted.wall + now.tick.since(trusted.tick),
            _ => now.wall,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin_protocol::Tick;

    fn at(millis: u64, wall: u64) -> Now {
        Now { tick: Tick(millis * 1_000_000), wall: Millis(wall) }
    }

    #[test]
    fn a_majority_confirms_and_a_jump_voids() {
        let mut keeper = Timekeeper::new(3, &Times::default());
        assert!(!keeper.look(at(0, 100_000)) && !keeper.confirmed());
        keeper.sample(NodeId(2), Millis(120_000), Duration::ZERO, at(1, 100_001));
        assert!(!keeper.confirmed(), "twenty seconds off");
        keeper.sample(NodeId(3), Millis(100_003), Duration::from_millis(2), at(2, 100_002));
        assert!(keeper.confirmed());
        assert!(!keeper.look(at(1_000, 101_100)), "a tenth of a second is drift");
        assert!(keeper.look(at(1_100, 161_200)), "a minute is a jump");
        assert!(!keeper.confirmed());
        assert_eq!(keeper.judging_wall(at(1_200, 161_300)), Millis(101_300));
    }

    #[test]
    fn a_single_node_trusts_itself() {
        let mut keeper = Timekeeper::new(1, &Times::default());
        keeper.look(at(0, 5));
        assert!(keeper.confirmed());
    }
}
