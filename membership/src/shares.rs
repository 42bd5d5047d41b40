//! How much of a whole each of several takes, by weight and within bounds.

/// Splits `total` in proportion to the weights, but gives each at least its low and at most its high bound. The sum of the lows must not exceed
/// `total`, and that of the highs not fall below it. Rounding may leave a little over.
pub(crate) fn shares(total: u64, claims: &[Claim]) -> Vec<u64> {
    let at = |level: u64| claims.iter().map(move |c| c.share(level));
    // The sum rises with the level: the highest level that does not exceed the total is the answer.
    let (mut low, mut high) = (0, u64::MAX);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if at(middle).map(u128::from).sum::<u128>() <= u128::from(total) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    at(low).collect()
}

/// What one may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) weight: u64,
    pub(crate) low: u64,
    pub(crate) high: u64,
}

impl Claim {
    fn share(&self, level: u64) -> u64 {
        let share = (u128::from(self.weight) * u128::from(level)) >> 16;
        u64::try_from(share).unwrap_or(u64::MAX).clamp(self.low, self.high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(total: u64, claims: &[(u64, u64, u64)], expected: &[u64]) {
        let claims: Vec<_> = claims.iter().map(|&(weight, low, high)| Claim { weight, low, high }).collect();
        assert_eq!(shares(total, &claims), expected);
    }

    #[test]
    fn shares_follow_weights_within_bounds() {
        check(900, &[(1, 0, 900), (2, 0, 900)], &[300, 600]);
        check(900, &[(1, 0, 900), (9, 0, 400)], &[500, 400]);
        check(900, &[(1, 200, 900), (9, 0, 900)], &[200, 700]);
        check(900, &[(5, 0, 300), (5, 0, 300), (5, 0, 300)], &[300, 300, 300]);
        check(10, &[(1, 0, 9), (1, 0, 9), (1, 0, 9)], &[3, 3, 3]);
    }
}
