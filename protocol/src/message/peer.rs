//! Between nodes.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::id::{DataId, Epoch, KeyspaceId, PartitionId};
use crate::key::Key;
use crate::register::{RegisterReply, RegisterRequest, View, Want};
use crate::stamp::Stamp;
use crate::status::Status;
use crate::time::Millis;

/// A request to a replica about one key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RegisterCall {
    /// The keyspace.
    pub keyspace: KeyspaceId,
    /// The key's partition, so that the replica need not hash.
    pub partition: PartitionId,
    /// The key.
    pub key: Key,
    /// The coordinator's epoch.
    pub epoch: Epoch,
    /// Refused after this time by the replica's clock (PROTOCOL.md 1.2).
    pub deadline: Millis,
    /// What is asked.
    pub request: RegisterRequest,
}

/// A request to a replica for a page of a range of partitions.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReplicaScan {
    /// The keyspace.
    pub keyspace: KeyspaceId,
    /// The coordinator's epoch.
    pub epoch: Epoch,
    /// Refused after this time by the replica's clock.
    pub deadline: Millis,
    /// First partition.
    pub first: PartitionId,
    /// Last partition, included.
    pub last: PartitionId,
    /// Only keys behind this one, in the first partition.
    pub after: Option<Key>,
    /// Only keys that begin so.
    pub prefix: Bytes,
    /// Only keys at or above this; empty: all.
    pub start: Bytes,
    /// Only keys below this; empty: all.
    pub end: Bytes,
    /// At most so many entries.
    pub limit: u32,
    /// At most about so many bytes.
    pub limit_bytes: u32,
    /// How much of each record.
    pub want: Want,
}

/// One key in a replica's page.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PageEntry {
    /// Its partition.
    pub partition: PartitionId,
    /// The key.
    pub key: Key,
    /// What the replica holds.
    pub view: View,
}

/// A replica's page, in order of (partition, key).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReplicaPage {
    /// The entries, tombstones included.
    pub entries: Vec<PageEntry>,
    /// Whether the range ends with this page.
    pub done: bool,
}

/// What a node asks of another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerRequest {
    /// About one key.
    Register(RegisterCall),
    /// A page of keys.
    Scan(ReplicaScan),
    /// Push-pull: "I have this epoch's topology; here it is if you asked"; the answer carries the newer one.
    Topology {
        /// The sender's epoch.
        epoch: Epoch,
        /// The sender's topology, encoded by membership; empty: only asks.
        topology: Bytes,
    },
    /// Nothing but the common part of the reply: the time.
    Ping,
    /// From a founder of a cluster that is not founded yet. The answer is as to [`Topology`](Self::Topology) with epoch 0.
    Found {
        /// The sender's data directory.
        data: DataId,
        /// The hash of the list of all founders' data directories to which the sender has pledged itself, durably; zero: none yet.
        pledge: [u8; 32],
    },
}

/// A node's answer: the common part and what was asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PeerReply {
    /// The replying node's physical clock.
    pub now: Millis,
    /// Its epoch.
    pub epoch: Epoch,
    /// The answer.
    pub body: PeerReplyBody,
}

/// What was asked for, or why not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[expect(
    clippy::large_enum_variant,
    reason = "the large variant is the usual one: a box would cost an allocation a reply"
)]
pub enum PeerReplyBody {
    /// To [`PeerRequest::Register`].
    Register(RegisterReply),
    /// To [`PeerRequest::Scan`].
    Page(ReplicaPage),
    /// To [`PeerRequest::Topology`] and [`PeerRequest::Found`]: the topology, empty where the asker's is as new.
    Topology(Bytes),
    /// To [`PeerRequest::Ping`].
    Pong,
    /// Nothing was done (for an older epoch's plain write: it was stored and is not counted).
    Refused {
        /// Why.
        status: Status,
        /// A sentence for logs.
        message: String,
        /// The highest stamp seen, where that helps the asker.
        seen: Stamp,
    },
}
