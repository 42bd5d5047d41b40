//! The hybrid logical clock of a node (PROTOCOL.md 2.7). Pure: physical time is handed in.

use std::time::Duration;

use crate::id::NodeId;
use crate::stamp::Stamp;
use crate::time::{Millis, Times};

/// Draws stamps that are unique across restarts and above all that the node has seen.
///
/// - getters: [`hlc`](Self::hlc), [`wants_reserve`](Self::wants_reserve)
/// - the owner calls [`set_reserve`](Self::set_reserve) once a higher mark is durable, and [`confirm`](Self::confirm) when a majority confirmed
///   the node's time; until both have happened nothing is drawn
/// - [`observe`](Self::observe) with every stamp received, [`draw`](Self::draw) for every stamp needed
#[derive(Clone, Debug)]
pub struct HybridClock {
    node: NodeId,
    last: u64,
    reserve: Millis,
    /// The mark behind which it continues.
    resumes_at: Millis,
    confirmed: bool,
    max_skew: Duration,
}

/// A stamp, ballot or `next` further ahead of the physical clock than `max_clock_skew`: refused, in a request and in a reply alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a stamp lies {} ms ahead of this node's clock", ahead.as_millis())]
pub struct ClockSkew {
    /// How far ahead it is.
    pub ahead: Duration,
}

/// Why nothing can be drawn now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DrawError {
    /// The hybrid clock has run too far ahead of the physical one, by stamps of others or by a physical clock set back.
    #[error("the hybrid clock is {} ms ahead of the physical clock", ahead.as_millis())]
    Ahead {
        /// How far ahead it is.
        ahead: Duration,
    },
    /// No majority has confirmed this node's time yet, after a start or a jump.
    #[error("this node's time is not confirmed by a majority yet")]
    Unconfirmed,
    /// The durable reserve is used up: the mark must be written ahead first.
    #[error("the clock's durable reserve is used up")]
    NoReserve,
}

/// The reserve is written ahead in steps of this.
pub const RESERVE_STEP: Duration = Duration::from_secs(1);

impl HybridClock {
    /// A clock that continues behind `reserve`, the mark that was durable when the node last ran (0 for a new node).
    /// It draws nothing before [`set_reserve`](Self::set_reserve) and [`confirm`](Self::confirm).
    pub fn new(node: NodeId, reserve: Millis, times: &Times) -> Self {
        Self {
            node,
            last: reserve.0 << 16,
            reserve,
            resumes_at: reserve,
            confirmed: false,
            max_skew: times.max_clock_skew,
        }
    }

    /// The highest hybrid time drawn or seen.
    pub fn hlc(&self) -> u64 {
        self.last
    }

    /// Whether the physical clock has yet to pass the mark of the node's last life. Who draws before, draws stamps that lie ahead of the time: a
    /// plain write by somebody else's clock could then lose to one that was acknowledged before it. A mark that lies further ahead than other nodes' clocks
    /// may have taken it is not waited for: the clock was set back.
    pub fn is_resuming(&self, wall: Millis) -> bool {
        (1..=3 * RESERVE_STEP.as_millis()).contains(&self.resumes_at.since(wall).as_millis())
    }

    /// The mark to make durable now, if the present one is nearly used up.
    pub fn wants_reserve(&self, wall: Millis) -> Option<Millis> {
        let reach = wall.max(Millis(self.last >> 16));
        (reach + RESERVE_STEP / 2 >= self.reserve).then(|| reach + RESERVE_STEP)
    }

    /// The mark `until` is durable: stamps up to it may be drawn.
    pub fn set_reserve(&mut self, until: Millis) {
        self.reserve = self.reserve.max(until);
    }

    /// Whether a majority confirmed this node's time.
    pub fn confirm(&mut self, confirmed: bool) {
        self.confirmed = confirmed;
    }

    /// Whether [`confirm`](Self::confirm) was last called with true.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// Learns a stamp that came from elsewhere: nothing drawn later lies at or below it.
    pub fn observe(&mut self, stamp: Stamp, wall: Millis) -> Result<(), ClockSkew> {
        let ahead = stamp.wall().since(wall);
        if ahead > self.max_skew {
            return Err(ClockSkew { ahead });
        }
        self.last = self.last.max(stamp.hlc());
        Ok(())
    }

    /// A stamp above all drawn or observed.
    pub fn draw(&mut self, wall: Millis) -> Result<Stamp, DrawError> {
        self.draw_above(Stamp::ZERO, wall)
    }

    /// A stamp above all drawn or observed, and above `floor`.
    pub fn draw_above(&mut self, floor: Stamp, wall: Millis) -> Result<Stamp, DrawError> {
        if !self.confirmed {
            return Err(DrawError::Unconfirmed);
        }
        let next = self.last.max(floor.hlc()).saturating_add(1).max(wall.0 << 16);
        let at = Millis(next >> 16);
        let ahead = at.since(wall);
        if ahead > self.max_skew / 2 {
            return Err(DrawError::Ahead { ahead });
        }
        if at >= self.reserve {
            return Err(DrawError::NoReserve);
        }
        self.last = next;
        Ok(Stamp::from_hlc(next, self.node.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn clock() -> HybridClock {
        let mut clock = HybridClock::new(NodeId(7), Millis(0), &Times::default());
        clock.confirm(true);
        clock.set_reserve(Millis(1_000_000));
        clock
    }

    proptest! {
        #[test]
        fn draws_rise_above_all_seen(steps in prop::collection::vec((any::<bool>(), 100_000u64..104_000, 0u16..3), 1..60)) {
            let mut clock = clock();
            let (mut seen, mut drawn) = (Stamp::ZERO, Stamp::ZERO);
            for (draws, wall, counter) in steps {
                let wall = Millis(wall);
                if draws {
                    let stamp = clock.draw(wall).expect("within the skew");
                    prop_assert!(stamp > seen && stamp > drawn);
                    drawn = stamp;
                } else {
                    let stamp = Stamp::new(wall, counter, 9);
                    clock.observe(stamp, wall).expect("not ahead");
                    seen = seen.max(stamp);
                }
            }
        }
    }

    #[test]
    fn skew_reserve_and_confirmation_are_kept() {
        let mut clock = clock();
        let wall = Millis(100_000);
        let far = Stamp::new(wall + Duration::from_secs(11), 0, 1);
        assert!(clock.observe(far, wall).is_err());
        assert_eq!(clock.hlc(), 0);
        let near = Stamp::new(wall + Duration::from_secs(6), 0, 1);
        assert!(clock.observe(near, wall).is_ok());
        assert!(matches!(clock.draw(wall), Err(DrawError::Ahead { .. })));
        assert!(clock.draw(wall + Duration::from_secs(2)).is_ok());
        assert_eq!(clock.draw(Millis(1_000_000)), Err(DrawError::NoReserve));
        assert!(clock.wants_reserve(Millis(999_999)).is_some());
        clock.confirm(false);
        assert_eq!(clock.draw(wall), Err(DrawError::Unconfirmed));
    }

    #[test]
    fn a_restart_waits_until_the_mark_is_past() {
        let clock = HybridClock::new(NodeId(7), Millis(100_500), &Times::default());
        assert!(!clock.is_resuming(Millis(97_000)), "the clock was set back");
        assert!(clock.is_resuming(Millis(99_501)) && clock.is_resuming(Millis(100_499)));
        assert!(!clock.is_resuming(Millis(100_500)));
        assert!(!HybridClock::new(NodeId(7), Millis(0), &Times::default()).is_resuming(Millis(0)));
    }

    #[test]
    fn a_restart_continues_behind_the_reserve() {
        let mut clock = HybridClock::new(NodeId(7), Millis(500), &Times::default());
        clock.confirm(true);
        assert_eq!(clock.draw(Millis(100)), Err(DrawError::NoReserve));
        clock.set_reserve(clock.wants_reserve(Millis(100)).expect("used up"));
        assert!(clock.draw(Millis(100)).expect("drawn").wall() >= Millis(500));
    }
}
