//! What a proposer asks of its driver, and how it ends.

use dunlin_protocol::register::{RecordView, RegisterRequest};
use dunlin_protocol::{Ballot, DrawError, Millis, Stamp, Status};

/// What the driver is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub enum Effect {
    /// Send the request to the replica, and hand its answer back with the same round: an `Accepted` does not say which ballot it is for, so an
    /// answer to an earlier round must be told apart from one to this round.
    Send {
        /// The replica's place in the preference list.
        replica: usize,
        /// To be given back with the answer.
        round: u32,
        /// What is asked.
        request: RegisterRequest,
    },
    /// The operation ended. Comes exactly once; commits may follow it.
    Finish(Ending),
}

/// How an attempt at an operation ended.
///
/// After an ending that is no answer (from [`TimedOut`](Self::TimedOut) on) a write may still take effect when `sent` says so, or
/// [`Proposer::may_take_effect`](crate::Proposer::may_take_effect) where there is no such field.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ending {
    /// The record read, with its content; a tombstone or [`RecordView::absent`] where the key has no value.
    Read {
        /// What was read.
        record: RecordView,
        /// The ballot it stands at.
        ballot: Ballot,
    },
    /// The write was applied, by this attempt or an earlier one.
    Applied {
        /// Where it was applied. The key may have been overwritten since.
        version: Stamp,
        /// After an increment: the new number, where it can still be known.
        number: Option<i64>,
        /// When the value ends, as far as it is known.
        expires_at: Millis,
    },
    /// It was decided that the operation is not applied and never will be: the answer to a write or to an outcome query.
    NotApplied,
    /// The condition did not hold. No attempt at the operation will be applied.
    ConditionFailed {
        /// The version that was there; zero: no value.
        current: Stamp,
    },
    /// The value to increment is no 64-bit decimal number, or the sum would not be. No attempt at the operation will be applied.
    NotANumber,
    /// The outcome query found the operation applied.
    OutcomeApplied {
        /// Where.
        version: Stamp,
    },
    /// It can no longer be told whether the operation was applied (P4, 1.8).
    Unknown,
    /// The operation id was used for another value.
    Reused,
    /// The deadline or the window's limit passed.
    TimedOut {
        /// The size of a quorum.
        need: usize,
        /// How many replicas had agreed in the last round.
        got: usize,
        /// Whether the write may still take effect.
        sent: bool,
    },
    /// Too many replicas could not be sent to; nothing was sent that could take effect.
    Unavailable {
        /// The size of a quorum.
        need: usize,
        /// To how many something could be sent.
        alive: usize,
    },
    /// No ballot or stamp can be drawn now.
    Clock(DrawError),
    /// The operation id, or the answers of so many replicas that no quorum was left, lie too far ahead of this node's clock.
    ClockSkew,
    /// Replicas refused, so that no quorum is possible. After [`Status::StaleEpoch`] a newer topology must be fetched first.
    Refused {
        /// Why; a stale epoch before all others.
        status: Status,
        /// The size of a quorum.
        need: usize,
        /// How many replicas had agreed in the last round.
        got: usize,
        /// Whether the write may still take effect.
        sent: bool,
    },
}
