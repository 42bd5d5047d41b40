//! `Latencies`: a histogram of durations.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::report::Latency;

/// Below this, durations are not told apart.
const FINEST_NANOS: u64 = 1_000;
/// What takes longer counts as this.
const LONGEST_NANOS: u64 = 3_600_000_000_000;

/// Durations from a microsecond to an hour, to a given number of digits.
#[derive(Clone, Debug)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(crate) fn new(digits: u8) -> Self {
        Self(Histogram::new_with_bounds(FINEST_NANOS, LONGEST_NANOS, digits).expect("bounds and digits in range"))
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    pub(crate) fn clear(&mut self) {
        self.0.reset();
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("histograms of one shape");
    }

    pub(crate) fn summary(&self) -> Latency {
        let at = |percent: f64| Duration::from_nanos(self.0.value_at_percentile(percent));
        Latency {
            p50: at(50.0),
            p90: at(90.0),
            p99: at(99.0),
            p999: at(99.9),
            max: Duration::from_nanos(self.0.max()),
            mean: Duration::from_nanos(self.0.mean() as u64),
        }
    }
}
