//! The hybrid clock of a coordinator, with its faults. Bounds on skew are the schedule's: it sets none too far.

use dunlin_protocol::{Millis, Stamp};

/// Draws stamps that are unique and rise.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    origin: u64,
    last: u64,
    /// How far its physical clock is ahead of true time, in milliseconds.
    offset: i64,
    /// Whether it learns from every stamp that it sees. Where it must learn for safety, it always does.
    merges: bool,
}

impl Clock {
    pub(crate) fn new(origin: u64, offset: i64, merges: bool) -> Self {
        Self { origin, last: 0, offset, merges }
    }

    pub(crate) fn wall(&self, now: Millis) -> Millis {
        Millis(now.0.saturating_add_signed(self.offset))
    }

    /// The physical clock jumps.
    pub(crate) fn jump(&mut self, by_millis: i64) {
        self.offset += by_millis;
    }

    pub(crate) fn hlc(&self, now: Millis) -> u64 {
        self.last.max(self.wall(now).0 << 16)
    }

    pub(crate) fn raise(&mut self, hlc: u64) {
        self.last = self.last.max(hlc);
    }

    pub(crate) fn see(&mut self, stamp: Stamp) {
        if self.merges {
            self.raise(stamp.hlc());
        }
    }

    pub(crate) fn draw(&mut self, now: Millis) -> Stamp {
        self.last = self.hlc(now).max(self.last + 1);
        Stamp::from_hlc(self.last, self.origin)
    }
}
