//! Between clients and nodes.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::id::{BootNumber, ClusterId, Epoch, KeyspaceId, NodeId, PartitionId};
use crate::key::Key;
use crate::level::Level;
use crate::operation::{Operation, Outcome};
use crate::record::Content;
use crate::stamp::Stamp;
use crate::time::Millis;

/// Where a scan goes on. Opaque to users; survives topology changes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ScanCursor {
    /// The partition.
    pub partition: PartitionId,
    /// The last key seen in it; none: from its start.
    pub after: Option<Key>,
}

/// A page of a keyspace's live keys, in order of (partition, key).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ScanRequest {
    /// The keyspace.
    pub keyspace: KeyspaceId,
    /// The level of each key's read; none: the keyspace's default. Serial counts as quorum per key.
    pub level: Option<Level>,
    /// None: from the beginning.
    pub cursor: Option<ScanCursor>,
    /// Only keys that begin so.
    pub prefix: Bytes,
    /// Only keys at or above this; empty: all.
    pub start: Bytes,
    /// Only keys below this; empty: all.
    pub end: Bytes,
    /// At most so many entries; at least 1.
    pub limit: u32,
    /// Without values.
    pub keys_only: bool,
    /// How long the client waits for the page.
    pub timeout_millis: u32,
}

/// One key of a page.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EntryView {
    /// The key.
    pub key: Key,
    /// Its version.
    pub version: Stamp,
    /// When it ends.
    pub expires_at: Millis,
    /// The value's length in bytes.
    pub value_len: u32,
    /// Unless keys only.
    pub content: Option<Content>,
}

/// A page, possibly empty although more follow.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ScanPage {
    /// Live keys.
    pub entries: Vec<EntryView>,
    /// Where to go on; none: the end.
    pub next: Option<ScanCursor>,
}

/// What a client asks of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientRequest {
    /// An operation on one key.
    Operate(Operation),
    /// A page of keys.
    Scan(ScanRequest),
    /// The topology, where it is newer than the client's.
    Topology {
        /// The client's; 0: none.
        epoch: Epoch,
    },
    /// How the node and its cluster are.
    Status,
}

/// How a node sees one member.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeSummary {
    /// The member.
    pub node: NodeId,
    /// Its address.
    pub address: String,
    /// Its region.
    pub region: String,
    /// Its zone.
    pub zone: String,
    /// Whether the answering node thinks it alive.
    pub alive: bool,
    /// Its boot number, where known.
    pub boot: BootNumber,
    /// The answering node's round trip to it in microseconds; 0: unknown.
    pub round_trip_micros: u32,
}

/// What was asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ReplyBody {
    /// To an operation; and to anything that was refused.
    Outcome(Outcome),
    /// To a scan.
    Page(ScanPage),
    /// To a topology request: encoded by membership; empty where the client's is as new.
    Topology(Bytes),
    /// To a status request.
    Status {
        /// The cluster.
        cluster: ClusterId,
        /// The answering node.
        node: NodeId,
        /// Every member.
        members: Vec<NodeSummary>,
        /// Keys that the answering node holds, tombstones included.
        keys: u64,
        /// Bytes of its segments.
        segment_bytes: u64,
        /// Partitions that it does not answer for.
        suspect_partitions: u32,
        /// Whether it takes requests.
        ready: bool,
    },
}

/// A node's answer to a client: the common part and the body.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClientReply {
    /// The node's physical clock.
    pub now: Millis,
    /// The node's round trip to a quorum, in microseconds, as an estimate.
    pub quorum_micros: u32,
    /// The node's epoch.
    pub epoch: Epoch,
    /// The answer.
    pub body: ReplyBody,
}
