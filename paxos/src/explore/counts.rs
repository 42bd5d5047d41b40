//! What seeds did.

/// What a seed did: for the test to see that the interesting cases were made.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) answered: u64,
    pub(super) conditions_failed: u64,
    pub(super) unknown: u64,
    pub(super) void: u64,
    pub(super) retried: u64,
    pub(super) not_applied: u64,
    pub(super) queried_applied: u64,
    pub(super) lineage_forgot: u64,
    pub(super) plain: u64,
    pub(super) fell_back: u64,
    pub(super) fell_back_untried: u64,
    pub(super) expired: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.conditions_failed += other.conditions_failed;
        self.unknown += other.unknown;
        self.void += other.void;
        self.retried += other.retried;
        self.not_applied += other.not_applied;
        self.queried_applied += other.queried_applied;
        self.lineage_forgot += other.lineage_forgot;
        self.plain += other.plain;
        self.fell_back += other.fell_back;
        self.fell_back_untried += other.fell_back_untried;
        self.expired += other.expired;
    }
}
