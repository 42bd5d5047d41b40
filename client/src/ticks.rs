//! `Ticks`: the client's monotonic clock.

use std::time::Duration;

use dunlin_protocol::Tick;
use tokio::time::Instant;

/// Nanoseconds since the client was made, by tokio's clock, which a simulator can pause.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticks {
    start: Instant,
}

impl Ticks {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }

    pub(crate) fn now(self) -> Tick {
        Tick(0) + self.start.elapsed()
    }

    pub(crate) fn instant(self, tick: Tick) -> Instant {
        self.start + tick.since(Tick(0)).min(Duration::from_secs(1 << 31))
    }
}
