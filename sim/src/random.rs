//! `Random`: the one source of chance in a simulation.

use std::time::Duration;

/// xoshiro256++ (Blackman and Vigna 2019), seeded by SplitMix64: small, and its numbers are the same in every release, so that a seed names the
/// same run for ever.
///
/// Each concern (the network, the faults, the workload ..) draws from a [fork](Self::fork) of its own, so that a change to one of them does not
/// reshuffle the others.
#[derive(Clone, Debug)]
pub(crate) struct Random {
    state: [u64; 4],
}

impl Random {
    /// The generator of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        let mut mix = seed;
        let mut next = || {
            mix = mix.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (mix ^ (mix >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        Self { state: [next(), next(), next(), next()] }
    }

    /// A generator for a concern of this name and number, independent of what was drawn here.
    pub(crate) fn fork(&self, name: &str, number: u64) -> Self {
        let mut seed = self.state[0] ^ number.wrapping_mul(0xd134_2543_de82_ef95);
        for byte in name.bytes() {
            seed = (seed ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Self::new(seed)
    }

    /// Any number.
    pub(crate) fn next(&mut self) -> u64 {
        let [s0, s1, s2, s3] = self.state;
        let drawn = s0.wrapping_add(s3).rotate_left(23).wrapping_add(s0);
        let (s2, s3) = (s2 ^ s0, s3 ^ s1);
        self.state = [s0 ^ s3, s1 ^ s2, s2 ^ (s1 << 17), s3.rotate_left(45)];
        drawn
    }

    /// A number from 0 to below `bound`.
    ///
    /// # Panics
    /// Where `bound` is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "there is no number below 0");
        // The high half of the product: the bias is below 2^-40 for the small bounds used here.
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// An index into something of this length.
    pub(crate) fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// A number from `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// A duration from `low` to `high`.
    pub(crate) fn duration(&mut self, low: Duration, high: Duration) -> Duration {
        let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX - 1);
        Duration::from_nanos(self.between(nanos(low), nanos(high)))
    }

    /// A duration between two numbers of milliseconds.
    pub(crate) fn millis(&mut self, low: u64, high: u64) -> Duration {
        self.duration(Duration::from_millis(low), Duration::from_millis(high))
    }

    /// From 0 to below 1.
    pub(crate) fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True with this probability.
    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        self.fraction() < probability
    }

    /// A duration with about this mean, halved in likelihood with each further two thirds of it: exponential, but in steps, so that no
    /// platform's logarithm has a say in what a seed does. At most eight times the mean.
    pub(crate) fn exponential(&mut self, mean: Duration) -> Duration {
        let steps = f64::from(self.next().leading_zeros().min(11));
        mean.mul_f64((steps + self.fraction()) * 2.0 / 3.0)
    }

    /// One of these, by weight.
    pub(crate) fn weighted<T: Copy>(&mut self, choices: &[(u64, T)]) -> T {
        let total = choices.iter().map(|(weight, _)| weight).sum();
        let mut drawn = self.below(total);
        for (weight, choice) in choices {
            if drawn < *weight {
                return *choice;
            }
            drawn -= weight;
        }
        unreachable!("a number below the sum of the weights falls into one of them")
    }

    /// Puts a slice into a random order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.index(i + 1);
            items.swap(i, j);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_for_ever() {
        let mut random = Random::new(1);
        let first: Vec<_> = (0..3).map(|_| random.next()).collect();
        assert_eq!(first, GOLDEN);
        let mut a = Random::new(1).fork("network", 0);
        assert_ne!(a.next(), Random::new(1).fork("network", 1).next());
        assert_ne!(a.next(), Random::new(1).fork("faults", 0).next());
    }

    const GOLDEN: [u64; 3] = [14_971_601_782_005_023_387, 13_781_649_495_232_077_965, 1_847_458_086_238_483_744];

    #[test]
    fn draws_keep_their_bounds() {
        let mut random = Random::new(9);
        for _ in 0..1_000 {
            assert!((3..=5).contains(&random.between(3, 5)));
            assert!((0.0..1.0).contains(&random.fraction()));
            assert!(random.exponential(Duration::from_millis(1)) <= Duration::from_millis(8));
            assert_ne!(random.weighted(&[(0, 'a'), (1, 'b')]), 'a');
        }
        let mut items: Vec<_> = (0..50).collect();
        random.shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
    }
}
