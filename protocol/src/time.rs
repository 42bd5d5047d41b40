//! Time as the pure machines see it: handed in, never read.

use std::fmt;
use std::ops::Add;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Nanoseconds on the node's own monotonic clock, from an arbitrary start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Tick(pub u64);

impl Tick {
    /// A time that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// The time from `earlier` to here, zero where `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Tick {
    type Output = Self;
    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Milliseconds since the Unix epoch, by some node's physical clock or by a hybrid clock. 0 is "none" where a time is optional.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// No time at all.
    pub const NONE: Self = Self(0);
    /// The latest time that a stamp can carry (48 bits).
    pub const MAX: Self = Self((1 << 48) - 1);

    /// Whether a time is set.
    pub fn is_some(self) -> bool {
        self.0 > 0
    }

    /// This time less `by`, not below 0.
    pub fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(millis(by)))
    }

    /// The time from `earlier` to here, zero where `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Millis {
    type Output = Self;
    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(millis(by)))
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// Both clocks of a node at one moment: `tick` orders and times, `wall` feeds the hybrid clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    /// The monotonic clock.
    pub tick: Tick,
    /// The physical clock, which may be off and may jump.
    pub wall: Millis,
}

/// The durations of PROTOCOL.md, Part 1.2 and 2.1. One set for a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Times {
    /// How long an operation may act at all, from its id on.
    pub op_lifetime: Duration,
    /// How long a hint may be delivered, from its operation's id on.
    pub hint_window: Duration,
    /// Nothing older than this can act on a replica any more; collection and purging wait for it.
    pub grace: Duration,
    /// A stamp further ahead of the physical clock than this is refused.
    pub max_clock_skew: Duration,
    /// How far an operation id may lie from the cluster's time when its first attempt arrives.
    pub redraw_window: Duration,
    /// No attempt's limit D lies beyond operation id plus this.
    pub attempts_end: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            op_lifetime: Duration::from_secs(120),
            hint_window: Duration::from_secs(3600),
            grace: Duration::from_secs(3 * 3600),
            max_clock_skew: Duration::from_secs(10),
            redraw_window: Duration::from_millis(500),
            attempts_end: Duration::from_secs(10),
        }
    }
}
