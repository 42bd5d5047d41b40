//! `Latency`: how long a replica takes, as a moving estimate.

use std::time::Duration;

/// The moving estimate of one replica's round trip: mean and mean deviation as TCP keeps them (RFC 6298), with weights of 1/8 and 1/4.
///
/// A driver should also feed it requests that were given up, with the time waited, or a replica that hangs keeps its good name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Latency {
    mean: Duration,
    deviation: Duration,
    observed: bool,
}

impl Latency {
    /// No hedge comes sooner than this (PROTOCOL.md 2.8).
    pub const LEAST_HEDGE: Duration = Duration::from_millis(20);

    /// Takes in a measured round trip.
    pub fn observe(&mut self, round_trip: Duration) {
        if !std::mem::replace(&mut self.observed, true) {
            self.mean = round_trip;
            self.deviation = round_trip / 2;
            return;
        }
        // An eighth of the old is taken off before an eighth of the new comes on, so that nothing overflows or goes below zero.
        self.deviation = (self.deviation - self.deviation / 4).saturating_add(self.mean.abs_diff(round_trip) / 4);
        self.mean = (self.mean - self.mean / 8).saturating_add(round_trip / 8);
    }

    /// The usual round trip; zero while none was observed, so that an unknown replica is tried.
    pub fn estimate(&self) -> Duration {
        self.mean
    }

    /// What about 19 of 20 round trips stay below: the mean and 2.5 mean deviations, which lies between the 95th percentiles of a normal
    /// and of an exponential distribution. Zero while none was observed.
    pub fn p95(&self) -> Duration {
        self.mean.saturating_add(self.deviation.saturating_mul(5) / 2)
    }

    /// When a read that waits for this replica asks another one too: max(3 x p95, 20 ms).
    pub fn hedge_after(&self) -> Duration {
        self.p95().saturating_mul(3).max(Self::LEAST_HEDGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(round_trips: impl IntoIterator<Item = u64>) -> Latency {
        let mut latency = Latency::default();
        round_trips.into_iter().for_each(|micros| latency.observe(Duration::from_micros(micros)));
        latency
    }

    #[test]
    fn it_follows_what_is_observed() {
        let none = Latency::default();
        assert_eq!(
            (none.estimate(), none.p95(), none.hedge_after()),
            (Duration::ZERO, Duration::ZERO, Latency::LEAST_HEDGE)
        );
        let first = after([800]);
        assert_eq!((first.estimate(), first.p95()), (Duration::from_micros(800), Duration::from_micros(1800)));
        let steady = after([800; 100]);
        assert!(steady.p95() < Duration::from_micros(810), "{steady:?}");
        let slower = after([800; 100].into_iter().chain([50_000; 100]));
        assert!(slower.estimate() > Duration::from_millis(49), "{slower:?}");
        assert!(slower.hedge_after() > Duration::from_millis(149), "{slower:?}");
    }

    #[test]
    fn about_one_in_twenty_lies_above_the_bound() {
        // A round trip that is usually 1 ms to 2 ms, spread evenly.
        let samples = (0..2000u64).map(|i| 1000 + i * 7919 % 1000);
        let latency = after(samples.clone());
        let above = samples.filter(|micros| Duration::from_micros(*micros) > latency.p95()).count();
        assert!(above < 200, "{above} of 2000 above {:?}", latency.p95());
    }

    #[test]
    fn extremes_do_not_overflow() {
        let mut latency = Latency::default();
        for round_trip in [Duration::MAX, Duration::ZERO, Duration::MAX, Duration::MAX] {
            latency.observe(round_trip);
        }
        assert!(latency.hedge_after() >= latency.estimate());
    }
}
