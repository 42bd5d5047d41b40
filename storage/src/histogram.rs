//! `Histogram`: how often which values came, within a quarter.
//!
//! Four buckets for each power of two (values below 8 have their own), so 252 for all numbers there are: 2 KiB, no lock, no setting of a range beforehand.
//! hdrhistogram has finer buckets, and wants a lock or a channel for each thread that records.

use std::fmt;

use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering::Relaxed;

const BUCKETS: usize = 252;

/// How often which values came, at one moment.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Histogram {
    /// The largest value of each bucket that has any, and how many it has.
    buckets: Vec<(u64, u64)>,
    sum: u64,
}

impl Histogram {
    /// How many values came.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }

    /// Their sum, exactly.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The value below or at which this share of all lies, 0 to 1: never less than it was, and at most a quarter more. 0 where none came.
    pub fn quantile(&self, share: f64) -> u64 {
        let count = self.count();
        let rank = ((count as f64 * share.clamp(0.0, 1.0)).ceil() as u64).clamp(1, count.max(1));
        let mut below = 0;
        let found = self.buckets.iter().find(|(_, count)| {
            below += count;
            below >= rank
        });
        found.map_or(0, |(value, _)| *value)
    }

    /// For each bucket that has any: its largest value, and how many it has; the smallest first.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.buckets.iter().copied()
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |share| self.quantile(share);
        write!(f, "{} (p50 {}, p99 {}, max {})", self.count(), of(0.5), of(0.99), of(1.0))
    }
}

/// Where values are recorded, by any number of threads at a time.
pub(crate) struct Recorder {
    buckets: [AtomicU64; BUCKETS],
    sum: AtomicU64,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU64::new(0)), sum: AtomicU64::new(0) }
    }
}

impl Recorder {
    pub(crate) fn record(&self, value: u64) {
        self.buckets[bucket(value)].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    /// What came so far; values that come meanwhile may be in the sum and not in the buckets, or the other way round.
    pub(crate) fn snapshot(&self) -> Histogram {
        let counts = self.buckets.iter().enumerate().map(|(bucket, count)| (largest(bucket), count.load(Relaxed)));
        Histogram { buckets: counts.filter(|(_, count)| *count > 0).collect(), sum: self.sum.load(Relaxed) }
    }
}

/// The bucket of a value: its power of two, and the two bits below that.
fn bucket(value: u64) -> usize {
    match value.checked_ilog2() {
        Some(power @ 2..) => 4 * (power as usize - 1) + (value >> (power - 2)) as usize % 4,
        _ => value as usize,
    }
}

/// The largest value of a bucket.
fn largest(bucket: usize) -> u64 {
    match bucket {
        0..4 => bucket as u64,
        _ => {
            let (power, quarter) = (bucket / 4 + 1, (bucket % 4) as u64);
            ((4 + quarter) << (power - 2)) + ((1 << (power - 2)) - 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_join() {
        assert_eq!((bucket(0), bucket(u64::MAX), largest(BUCKETS - 1)), (0, BUCKETS - 1, u64::MAX));
        for number in 0..BUCKETS - 1 {
            let last = largest(number);
            assert_eq!((bucket(last), bucket(last + 1)), (number, number + 1), "{last}");
        }
    }

    #[test]
    fn nothing_has_no_quantile() {
        let none = Recorder::default().snapshot();
        assert_eq!((none.count(), none.sum(), none.quantile(0.5), none.buckets().count()), (0, 0, 0, 0));
        assert_eq!(format!("{none:?}"), "0 (p50 0, p99 0, max 0)");
    }

    proptest! {
        #[test]
        fn quantiles_are_within_a_quarter(
            mut values in prop::collection::vec((0u32..64, any::<u64>()).prop_map(|(shift, value)| value >> shift), 1..300),
            share in 0.0..=1.0f64,
        ) {
            // Their sum is to fit.
            values.iter_mut().for_each(|value| *value >>= 9);
            let recorder = Recorder::default();
            values.iter().for_each(|value| recorder.record(*value));
            let histogram = recorder.snapshot();
            prop_assert_eq!(histogram.count(), values.len() as u64);
            prop_assert_eq!(histogram.sum(), values.iter().sum::<u64>());
            values.sort_unstable();
            let rank = ((values.len() as f64 * share).ceil() as usize).max(1);
            let (exact, told) = (values[rank - 1], histogram.quantile(share));
            prop_assert!(told >= exact && told - exact <= exact / 4, "{} for {}", told, exact);
        }
    }

    #[cfg(not(feature = "shuttle"))]
    #[test]
    fn threads_record_at_once() {
        let recorder = Recorder::default();
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let recorder = &recorder;
                scope.spawn(move || (0..5_000).for_each(|n| recorder.record(n * 4 + thread)));
            }
        });
        let histogram = recorder.snapshot();
        assert_eq!((histogram.count(), histogram.sum()), (20_000, (0..20_000).sum()));
    }
}
