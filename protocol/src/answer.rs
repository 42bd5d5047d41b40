//! What comes back to a machine that asked a replica.

use crate::register::RegisterReply;
use crate::stamp::Stamp;
use crate::status::Status;

/// A replica's answer to a request, or why there is none.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "the large variant is the usual one: a box would cost an allocation a reply"
)]
pub enum Answer {
    /// It answered.
    Reply(RegisterReply),
    /// It did nothing, for this reason (for an older epoch's plain write: it stored it, which does not count).
    Refused {
        /// Why.
        status: Status,
        /// The highest stamp that it has seen, where it says so.
        seen: Stamp,
    },
    /// The request was never written to a connection: it took no effect and never will.
    NotSent,
    /// The connection was lost after sending: it may have taken effect.
    Lost,
}
