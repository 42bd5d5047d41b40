//! What a machine wants done.

use dunlin_protocol::register::RegisterRequest;

use crate::read::ReadEnding;
use crate::write::WriteEnding;

/// What a machine wants done. Drained by the driver after every call.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub enum Effect<Ending> {
    /// Send this to a replica and hand its answer back. A later request to the same replica replaces an earlier one that is still under way:
    /// the machine needs only the answer to the latest.
    Send {
        /// The replica's number.
        replica: usize,
        /// What is asked.
        request: RegisterRequest,
    },
    /// The operation's result; exactly once. More sends may follow (repair).
    Finish(Ending),
}

/// A [`Write`](crate::Write)'s effects.
pub type WriteEffect = Effect<WriteEnding>;
/// A [`Read`](crate::Read)'s effects.
pub type ReadEffect = Effect<ReadEnding>;
