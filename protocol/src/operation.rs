//! `Operation`: what a user asks of one key, by whichever interface it came.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::id::{Epoch, KeyspaceId};
use crate::key::Key;
use crate::level::Level;
use crate::record::{Attributes, Content};
use crate::stamp::{Ballot, OpId, Stamp};
use crate::status::Status;
use crate::time::Millis;

/// What must hold for a write to be made.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Condition {
    /// The record's version is this one.
    Version(Stamp),
    /// The key has no value.
    Absent,
    /// The value is these bytes.
    Value(Bytes),
}

/// What a write does.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Mutation {
    /// Store a value, for ever or for a time from when the operation is first received.
    Put {
        /// The value.
        value: Bytes,
        /// Its attributes.
        attributes: Attributes,
        /// Zero: for ever.
        ttl_millis: u64,
    },
    /// Leave a tombstone.
    Delete,
    /// Add to the value, read as decimal text of a 64-bit signed number; no value counts as 0. Keeps attributes and expiry.
    Increment {
        /// By this.
        by: i64,
    },
}

/// What is asked.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Action {
    /// The record.
    Read {
        /// False: version, attributes and expiry only.
        value: bool,
    },
    /// A write; with a condition, or as an increment, always serial.
    Write {
        /// None: unconditional.
        condition: Option<Condition>,
        /// What to do.
        mutation: Mutation,
    },
    /// Whether the operation named in the header was applied; if not, it never will be (PROTOCOL.md 1.8).
    Outcome,
}

impl Action {
    /// Whether the action can only be decided on the serial path.
    pub fn is_conditional(&self) -> bool {
        matches!(
            self,
            Self::Outcome
                | Self::Write { condition: Some(_), .. }
                | Self::Write { mutation: Mutation::Increment { .. }, .. }
        )
    }

    /// Whether the action may change the key.
    pub fn is_write(&self) -> bool {
        matches!(self, Self::Write { .. })
    }
}

/// The ballots that an attempt at an operation may use (PROTOCOL.md 1.2): `floor < ballot.hlc <= limit`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Window {
    /// F: the latest limit of all earlier attempts, as hybrid time; 0: none.
    pub floor: u64,
    /// D, as hybrid time.
    pub limit: u64,
}

impl Window {
    /// The window of an operation that makes no attempts of its own: no bounds.
    pub const OPEN: Self = Self { floor: 0, limit: u64::MAX };

    /// The window from `floor` up to the end of the millisecond `limit`.
    pub fn until(floor: u64, limit: Millis) -> Self {
        Self { floor, limit: limit.0.saturating_mul(1 << 16).saturating_add(u64::from(u16::MAX)) }
    }

    /// Whether the ballot lies in it.
    pub fn admits(&self, ballot: Ballot) -> bool {
        ballot.hlc() > self.floor && ballot.hlc() <= self.limit
    }
}

/// An operation on one key with all that its coordinator needs to know.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Operation {
    /// The keyspace.
    pub keyspace: KeyspaceId,
    /// The key.
    pub key: Key,
    /// The level; none: the keyspace's default.
    pub level: Option<Level>,
    /// Zero: the coordinator draws one.
    pub op_id: OpId,
    /// An earlier attempt may have been tried: the answer must take that into account (P4, P5).
    pub tried: bool,
    /// The attempt's ballots.
    pub window: Window,
    /// How long the client waits for this attempt.
    pub timeout_millis: u32,
    /// The highest stamp that the client has seen: what follows through the same client is never ordered before it.
    pub seen: Stamp,
    /// The epoch of the topology that the client routed by; 0: none.
    pub epoch: Epoch,
    /// What is asked.
    pub action: Action,
}

/// How an operation ended, with the facts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// How it ended.
    pub status: Status,
    /// One sentence of detail for a person; empty where the status says it all.
    pub message: String,
    /// The version read or written; at a failed condition, the current one. Zero: none.
    pub version: Stamp,
    /// When the record read ends.
    pub expires_at: Millis,
    /// The value read, with attributes; at a failed if-value condition nothing.
    pub content: Option<Content>,
    /// After an increment: the new number, where it is known (a retry of an applied one may not know it).
    pub number: Option<i64>,
    /// Replicas needed, confirmed and alive, where the status is about that.
    pub counts: Counts,
    /// The highest ballot that this attempt used, or stamp that it saw: the client's next `seen`, and floor after a failed attempt.
    pub seen: Stamp,
}

/// How many replicas were needed, answered as needed, and were thought alive.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Needed by the level.
    pub need: u8,
    /// Confirmed in time.
    pub got: u8,
    /// Thought alive when the request arrived.
    pub alive: u8,
}

impl Outcome {
    /// An ending with nothing but a status.
    pub fn of(status: Status) -> Self {
        Self {
            status,
            message: String::new(),
            version: Stamp::ZERO,
            expires_at: Millis::NONE,
            content: None,
            number: None,
            counts: Counts::default(),
            seen: Stamp::ZERO,
        }
    }

    /// An ending with a status and a sentence.
    pub fn because(status: Status, message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::of(status) }
    }
}
