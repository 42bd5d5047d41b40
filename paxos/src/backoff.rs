//! Randomised back-off between rounds, so that duelling proposers part.

use std::time::Duration;

const BASE: Duration = Duration::from_millis(2);
const LONGEST: Duration = Duration::from_millis(100);
const SHORTEST: Duration = Duration::from_micros(500);

/// Delays that double in range with each failed round. One seed gives one sequence.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    state: u64,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed, failures: 0 }
    }

    /// How long to wait after one more failure.
    pub(crate) fn next(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let range = BASE.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        let nanos = u64::try_from(range.as_nanos()).expect("at most LONGEST");
        SHORTEST + Duration::from_nanos(self.random() % nanos)
    }

    // splitmix64
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_stay_bounded_and_differ_by_seed() {
        let delays = |seed| {
            let mut backoff = Backoff::new(seed);
            (0..40).map(|_| backoff.next()).collect::<Vec<_>>()
        };
        assert!(delays(1).iter().all(|d| *d >= SHORTEST && *d < LONGEST + SHORTEST));
        assert!(delays(1)[0] < 2 * BASE + SHORTEST);
        assert!(delays(1).iter().any(|d| *d > LONGEST / 2));
        assert_eq!(delays(1), delays(1));
        assert_ne!(delays(1), delays(2));
    }
}
