//! What is asked of a proposer.

use dunlin_protocol::{Condition, Mutation};

/// What a proposer is to reach.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Goal {
    /// The current record.
    Read,
    /// A change of it.
    Write {
        /// None: whatever is there.
        condition: Option<Condition>,
        /// The change.
        mutation: Mutation,
    },
    /// Whether the operation was applied; if not, that it never will be (PROTOCOL.md 1.8).
    Outcome,
}
