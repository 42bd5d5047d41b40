//! What can go wrong, and what it means for the caller.

use std::io;

use dunlin_protocol::codec::DecodeError;
use dunlin_protocol::frame::FrameError;
use dunlin_protocol::{Counts, InvalidTopology, Key, KeyError, OpId, Stamp, Status};

use crate::tls::CaError;

/// An operation that did not end well. [`status`](Self::status) has the stable code, [`is_indefinite`](Self::is_indefinite) tells whether a
/// write may still take effect.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// The condition of a write does not hold: nothing was changed.
    #[error("the condition does not hold: {}", current_text(*current))]
    Precondition {
        /// The key's version; zero: there is none.
        current: Stamp,
    },
    /// The request was refused, or could not be sent: nothing was changed.
    #[error("{}", text(*status, message))]
    Refused {
        /// Why.
        status: Status,
        /// The details; may be empty.
        message: String,
        /// Replicas needed, confirmed and alive, where it is about that.
        counts: Counts,
    },
    /// Whether a write takes effect is not known: ask with [`Client::outcome`](crate::Client::outcome), or read the key.
    #[error("{}", text(*status, message))]
    Indefinite {
        /// `TIMEOUT`, or `OUTCOME_UNKNOWN` where asking will not help any more.
        status: Status,
        /// The details; may be empty.
        message: String,
        /// Replicas needed and confirmed.
        counts: Counts,
        /// The operation; zero for reads, and for a write whose id a node drew.
        op_id: OpId,
        /// The end of its last attempt, as hybrid time: an outcome query that names it need not wait for the latest possible.
        floor: u64,
    },
}

impl Error {
    /// Why the operation ended so.
    pub fn status(&self) -> Status {
        match self {
            Self::Precondition { .. } => Status::PreconditionFailed,
            Self::Refused { status, .. } | Self::Indefinite { status, .. } => *status,
        }
    }

    /// Whether a write may still take effect.
    pub fn is_indefinite(&self) -> bool {
        matches!(self, Self::Indefinite { .. })
    }

    pub(crate) fn refused(status: Status, message: impl Into<String>) -> Self {
        Self::Refused { status, message: message.into(), counts: Counts::default() }
    }
}

impl From<KeyError> for Error {
    fn from(error: KeyError) -> Self {
        Self::refused(Status::InvalidKey, error.to_string())
    }
}

fn text(status: Status, message: &str) -> String {
    // A refusal for the client's own argument says all in its message.
    match (status, message) {
        (_, "") => status.sentence().to_owned(),
        (Status::InvalidArgument | Status::InvalidKey | Status::InvalidLevel | Status::Local, message) => {
            message.to_owned()
        }
        (_, message) => format!("{} ({message})", status.sentence()),
    }
}

fn current_text(current: Stamp) -> String {
    if current.is_zero() { "the key has no version".to_owned() } else { format!("the current version is {current}") }
}

/// Why no connection to a cluster came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No addresses were given.
    #[error("no address of a node was given")]
    NoContactPoints,
    /// An address that cannot be resolved.
    #[error("`{address}` is no address of a node: {source}")]
    Address {
        /// As given.
        address: String,
        /// What is wrong.
        source: io::Error,
    },
    /// The CA cannot be used.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// No local socket could be opened.
    #[error("cannot open a UDP socket: {0}")]
    Socket(#[source] io::Error),
    /// The node shows no certificate of the cluster's CA, or does not speak this protocol.
    #[error("{address} is no node of this cluster: {reason}")]
    Untrusted {
        /// Whose.
        address: String,
        /// What TLS says.
        reason: String,
    },
    /// The node refused this client.
    #[error("{address} refuses: {} ({message})", status.sentence())]
    Refused {
        /// Who.
        address: String,
        /// Why.
        status: Status,
        /// The details.
        message: String,
    },
    /// At an address, another node answered than the one that the topology names.
    #[error("another node answers at {address}: the topology is out of date")]
    OtherNode {
        /// Where.
        address: String,
    },
    /// Nobody answered in time.
    #[error("no answer from {address}: {reason}")]
    Unreachable {
        /// Whom; several where all were tried.
        address: String,
        /// What happened.
        reason: String,
    },
    /// What the node says is not this protocol.
    #[error("{address} does not speak this protocol: {source}")]
    Protocol {
        /// Who.
        address: String,
        /// What is wrong.
        source: ProtocolError,
    },
}

/// Bytes of a node that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// No frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// No such message.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// No topology.
    #[error("the topology cannot be decoded: {0}")]
    Topology(#[from] rmp_serde::decode::Error),
    /// A topology that contradicts itself.
    #[error(transparent)]
    InvalidTopology(#[from] InvalidTopology),
    /// An answer to another question.
    #[error("an answer that does not belong to the request")]
    Unexpected,
}

impl ConnectError {
    /// The stable code.
    pub fn status(&self) -> Status {
        match self {
            Self::NoContactPoints | Self::Address { .. } => Status::InvalidArgument,
            Self::Ca(_) => Status::InvalidConfig,
            Self::Socket(_) => Status::Local,
            Self::Untrusted { .. } => Status::Unauthenticated,
            Self::Refused { status, .. } => *status,
            Self::OtherNode { .. } | Self::Unreachable { .. } => Status::Connect,
            Self::Protocol { .. } => Status::BadFrame,
        }
    }

    /// Whether another try, or another address, would end the same way.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::OtherNode { .. } | Self::Address { .. } => false,
            Self::Refused { status, .. } => {
                !matches!(status, Status::ShuttingDown | Status::NotReady | Status::Overloaded)
            }
            _ => true,
        }
    }
}

impl From<ConnectError> for Error {
    fn from(error: ConnectError) -> Self {
        Self::refused(error.status(), error.to_string())
    }
}

/// The longest value that fits a request with its key and attributes; nodes may take less.
pub(crate) const MAX_VALUE: usize = dunlin_protocol::frame::MAX_BODY_LEN - 4 * Key::MAX_LEN;
