//! `Record`: what a key holds at one stamp (PROTOCOL.md 1.1).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::stamp::{OpId, Stamp};
use crate::time::Millis;

/// One ancestor of a record: the operation `op_id` was applied at `stamp`, or, with stamp zero, will never be (PROTOCOL.md 1.8).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Ancestor {
    /// The operation.
    pub op_id: OpId,
    /// Where it was applied; zero: decided never to be.
    pub stamp: Stamp,
}

/// Small user metadata of a value, such as its content type. At most [`Attributes::MAX_LEN`] bytes of names and values.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attributes(pub Vec<(String, String)>);

impl Attributes {
    /// The most bytes that names and values may have together.
    pub const MAX_LEN: usize = 4096;

    /// How many bytes names and values have together.
    pub fn byte_len(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What a record says: a value, or that there is none.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Content {
    /// The key was deleted, or never had a value.
    Tombstone,
    /// A value of any bytes, with its attributes.
    Value(Bytes, Attributes),
}

impl Content {
    /// A value without attributes.
    pub fn value(bytes: impl Into<Bytes>) -> Self {
        Self::Value(bytes.into(), Attributes::default())
    }

    /// The value's bytes, none for a tombstone.
    pub fn bytes(&self) -> Option<&Bytes> {
        match self {
            Self::Tombstone => None,
            Self::Value(bytes, _) => Some(bytes),
        }
    }
}

/// An immutable record. One stamp names one record of a key, for ever.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Its version. Zero: nothing was ever written ([`Record::absent`]).
    pub stamp: Stamp,
    /// The operation that made it; zero when none did (an expiry, an outcome query).
    pub op_id: OpId,
    /// Every operation with an id at or below this may be hidden below the record: it can no longer be told whether it was applied.
    pub reach: Stamp,
    /// When it ends; [`Millis::NONE`]: never.
    pub expires_at: Millis,
    /// Newest first; empty for plain records.
    pub lineage: Vec<Ancestor>,
    /// Value or tombstone.
    pub content: Content,
}

impl Record {
    /// What a replica that holds nothing for a key holds.
    pub const fn absent() -> Self {
        Self {
            stamp: Stamp::ZERO,
            op_id: Stamp::ZERO,
            reach: Stamp::ZERO,
            expires_at: Millis::NONE,
            lineage: Vec::new(),
            content: Content::Tombstone,
        }
    }

    /// The record of a plain write: its stamp is the operation's id.
    pub fn plain(op_id: OpId, content: Content, expires_at: Millis) -> Self {
        Self { stamp: op_id, op_id, reach: op_id, expires_at, lineage: Vec::new(), content }
    }

    /// All of it but lineage and content.
    pub fn head(&self) -> RecordHead {
        RecordHead {
            stamp: self.stamp,
            op_id: self.op_id,
            reach: self.reach,
            expires_at: self.expires_at,
            tombstone: self.content == Content::Tombstone,
            value_len: self.content.bytes().map_or(0, |b| u32::try_from(b.len()).unwrap_or(u32::MAX)),
        }
    }
}

/// A record without lineage and content: what a replica keeps in memory and what a digest carries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct RecordHead {
    /// As in [`Record`].
    pub stamp: Stamp,
    /// As in [`Record`].
    pub op_id: OpId,
    /// As in [`Record`].
    pub reach: Stamp,
    /// As in [`Record`].
    pub expires_at: Millis,
    /// Whether there is no value.
    pub tombstone: bool,
    /// The value's length in bytes.
    pub value_len: u32,
}

impl RecordHead {
    /// The head of [`Record::absent`].
    pub const ABSENT: Self = Self {
        stamp: Stamp::ZERO,
        op_id: Stamp::ZERO,
        reach: Stamp::ZERO,
        expires_at: Millis::NONE,
        tombstone: true,
        value_len: 0,
    };

    /// Whether the record ended at or before `now`.
    pub fn is_expired(&self, now: Millis) -> bool {
        self.expires_at.is_some() && self.expires_at <= now
    }

    /// Whether a reader at `now` sees a value.
    pub fn is_live(&self, now: Millis) -> bool {
        !self.tombstone && !self.is_expired(now)
    }
}

impl Default for RecordHead {
    fn default() -> Self {
        Self::ABSENT
    }
}
