//! The words that Dunlin's nodes and clients exchange: keys, stamps, records, levels, operations, messages, frames and status codes; and
//! [`register`], the replica's per-key rule and the combination of its views, which the plain and the serial path share.
//!
//! It does no I/O, reads no clock and draws no randomness: time comes in as [`Now`]. The rules are those of PROTOCOL.md, Part 1 (CASPaxos,
//! Rystsov 2018; ABD registers with write-back; hybrid logical clocks, Kulkarni et al. 2014).
//!
//! Start at [`Operation`] for what is asked, at [`Record`] for what is kept, at [`Register`](register::Register) for how.

mod answer;
mod clock;
pub mod codec;
pub mod frame;
mod id;
mod key;
mod level;
pub mod message;
mod operation;
mod quorums;
mod record;
pub mod register;
mod stamp;
mod status;
mod time;
mod topology;

pub use answer::Answer;
pub use clock::{ClockSkew, DrawError, HybridClock, RESERVE_STEP};
pub use id::{BootNumber, ClusterId, DataId, Epoch, KeyspaceId, NodeId, PartitionId};
pub use key::{Key, KeyError, Partitioning, PartitioningError};
pub use level::{Level, ParseLevelError};
pub use operation::{Action, Condition, Counts, Mutation, Operation, Outcome, Window};
pub use quorums::{MAX_REPLICAS, Quorums, ReplicaSet};
pub use record::{Ancestor, Attributes, Content, Record, RecordHead};
pub use stamp::{Ballot, OpId, ParseStampError, Stamp};
pub use status::{Status, UnknownStatus};
pub use time::{Millis, Now, Tick, Times};
pub use topology::{Assignment, InvalidTopology, Keyspace, Member, PreferenceList, Topology};
