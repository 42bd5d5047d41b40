//! What a proposer is given: settings, and at each call the time and the clock to draw from.

use std::time::Duration;

use dunlin_protocol::{HybridClock, Now, Times};

/// The moment of a call and the node's clock. Every proposer of a node draws from the same clock.
#[derive(Debug)]
pub struct Context<'a> {
    /// Both clocks now.
    pub now: Now,
    /// Stamps and ballots are drawn from it; it learns every stamp that is received.
    pub clock: &'a mut HybridClock,
}

/// Settings of a proposer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// K: the most ancestors that a record remembers; at least 1. The same on all nodes, though nothing breaks if it is not.
    pub k: usize,
    /// Lineage entries older than `op_lifetime` are stripped.
    pub times: Times,
    /// Without a quorum of answers for this long the proposer begins again with a higher ballot.
    pub round_timeout: Duration,
    /// Promises carry values up to this size from every replica; larger ones come from the nearest replica alone, or are fetched when needed.
    pub inline_value_bytes: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { k: 64, times: Times::default(), round_timeout: Duration::from_millis(300), inline_value_bytes: 4096 }
    }
}
