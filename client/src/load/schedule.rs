//! `Schedule`: when an open loop's requests are due.

use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;

const NANOS: u128 = 1_000_000_000;

/// Requests a fixed rate apart, from `start` on and before `start + duration`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    start: Instant,
    rate: u128,
    /// How many there are in all.
    total: u64,
}

impl Schedule {
    pub(crate) fn new(start: Instant, rate: NonZeroU32, duration: Duration) -> Self {
        let rate = u128::from(rate.get());
        let total = (duration.as_nanos() * rate).div_ceil(NANOS);
        Self { start, rate, total: u64::try_from(total).unwrap_or(u64::MAX) }
    }

    /// When the request of this number is due, from 0.
    pub(crate) fn at(&self, number: u64) -> Instant {
        let nanos = (u128::from(number) * NANOS).div_ceil(self.rate);
        self.start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// How many are due by now.
    pub(crate) fn due(&self, now: Instant) -> u64 {
        let Some(elapsed) = now.checked_duration_since(self.start) else { return 0 };
        let due = elapsed.as_nanos() * self.rate / NANOS + 1;
        u64::try_from(due).unwrap_or(u64::MAX).min(self.total)
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }
}
