//! What travels: requests and replies of peers and of clients, and their numeric opcodes.
//!
//! A connection begins with a [`Hello`] and a [`Welcome`], which agree on a protocol version; then frames ([`crate::frame`]) with one message
//! each flow both ways, matched by request id. Bodies are MessagePack arrays ([`crate::codec`]).

mod client;
mod hello;
mod peer;

pub use client::{ClientReply, ClientRequest, EntryView, NodeSummary, ReplyBody, ScanCursor, ScanPage, ScanRequest};
pub use hello::{Hello, Version, Welcome};
pub use peer::{PageEntry, PeerReply, PeerReplyBody, PeerRequest, RegisterCall, ReplicaPage, ReplicaScan};

/// What a frame holds. The numbers are part of the protocol: never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Opcode {
    Hello = 0x01,
    Welcome = 0x02,
    PeerRegister = 0x10,
    PeerScan = 0x11,
    PeerTopology = 0x12,
    PeerPing = 0x13,
    PeerFound = 0x14,
    PeerReply = 0x1f,
    ClientOperate = 0x40,
    ClientScan = 0x41,
    ClientTopology = 0x42,
    ClientStatus = 0x43,
    ClientReply = 0x4f,
}

impl Opcode {
    const ALL: [Self; 13] = [
        Self::Hello,
        Self::Welcome,
        Self::PeerRegister,
        Self::PeerScan,
        Self::PeerTopology,
        Self::PeerPing,
        Self::PeerFound,
        Self::PeerReply,
        Self::ClientOperate,
        Self::ClientScan,
        Self::ClientTopology,
        Self::ClientStatus,
        Self::ClientReply,
    ];

    /// The opcode of this number, if this version knows it.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|op| *op as u8 == number)
    }
}
