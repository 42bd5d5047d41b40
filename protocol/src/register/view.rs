//! What a replica shows of a register.

use serde::{Deserialize, Serialize};

use crate::record::{Ancestor, Content, Record, RecordHead};
use crate::stamp::{Ballot, Stamp};

/// How much of each record a view carries besides its head.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Want {
    /// The lineage.
    pub lineage: bool,
    /// The content, where the value has at most this many bytes.
    pub value_upto: u32,
}

impl Want {
    /// Heads only: a digest.
    pub const HEAD: Self = Self { lineage: false, value_upto: 0 };
    /// Everything.
    pub const ALL: Self = Self { lineage: true, value_upto: u32::MAX };
    /// The value without the lineage: what a reader needs.
    pub const VALUE: Self = Self { lineage: false, value_upto: u32::MAX };
}

/// A record as far as it was asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RecordView {
    /// Always there.
    pub head: RecordHead,
    /// None: not asked for.
    pub lineage: Option<Vec<Ancestor>>,
    /// None: not asked for, or larger than asked for.
    pub content: Option<Content>,
}

impl RecordView {
    /// The view of a register that holds nothing.
    pub fn absent() -> Self {
        Record::absent().into()
    }

    /// The whole record, when the view carries all of it.
    pub fn to_record(&self) -> Option<Record> {
        let RecordHead { stamp, op_id, reach, expires_at, .. } = self.head;
        let (lineage, content) = (self.lineage.clone()?, self.content.clone()?);
        Some(Record { stamp, op_id, reach, expires_at, lineage, content })
    }
}

impl From<Record> for RecordView {
    fn from(record: Record) -> Self {
        Self { head: record.head(), lineage: Some(record.lineage), content: Some(record.content) }
    }
}

/// A record that was accepted and is not known to be chosen.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PendingView {
    /// The ballot at which it was accepted.
    pub ballot: Ballot,
    /// What was accepted.
    pub record: RecordView,
}

/// What a replica holds for a key, as far as it was asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct View {
    /// The record; [`RecordView::absent`] where there is none.
    pub record: RecordView,
    /// The ballot of the record; zero: plain or absent.
    pub ballot: Ballot,
    /// The highest promise; zero: none.
    pub promised: Ballot,
    /// What is accepted and not yet chosen.
    pub pending: Option<PendingView>,
}

impl View {
    /// The view of a register that holds nothing.
    pub fn absent() -> Self {
        Self { record: RecordView::absent(), ballot: Ballot::ZERO, promised: Ballot::ZERO, pending: None }
    }

    /// Whether the key is serial at this replica (PROTOCOL.md 1.1).
    pub fn is_serial(&self) -> bool {
        !self.promised.is_zero() || !self.ballot.is_zero() || self.pending.is_some()
    }

    /// The highest stamp or reach of the records in the view.
    pub fn highest_stamp(&self) -> Stamp {
        let of = |head: &RecordHead| head.stamp.max(head.reach);
        of(&self.record.head).max(self.pending.as_ref().map_or(Stamp::ZERO, |p| of(&p.record.head)))
    }
}

/// A replica's answer to a [`RegisterRequest`](super::RegisterRequest), as it travels.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RegisterReply {
    /// To Read.
    View(View),
    /// To Prepare: it promised; the view is of after the promise.
    Promise(View),
    /// To Prepare and Accept: a ballot at least this high was seen.
    Reject {
        /// The highest ballot promised or committed here.
        max: Ballot,
    },
    /// To Accept.
    Accepted,
    /// To Commit: it is in, or something newer is.
    Committed,
    /// To a Commit that names its record only by ballot and stamp: the replica lacks it, send the whole.
    NeedRecord,
    /// To Write: the stamp held now.
    Written {
        /// Equal to the write's stamp, or higher when something newer was there.
        stamp: Stamp,
    },
    /// To Write: the key is serial here.
    Refused {
        /// The highest stamp or ballot seen.
        seen: Stamp,
    },
    /// To Install: stored, or something as new was there.
    Installed,
    /// To Install: not taken, because the key needs settling (PROTOCOL.md 2.6).
    Unsettled,
    /// To Drop: the key is forgotten.
    Dropped,
    /// To Drop: it is not what was to be dropped.
    NotDropped,
}
