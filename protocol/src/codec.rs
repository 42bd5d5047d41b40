//! Messages to frames and back. Bodies are MessagePack arrays: compact, and decoded without names.

use bytes::{BufMut, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::frame::{Frame, FrameError, write_frame};
use crate::message::{ClientReply, ClientRequest, Hello, Opcode, PeerReply, PeerRequest, Welcome};

/// A body that is not what its opcode says.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are no such message.
    #[error("a {opcode:?} message cannot be decoded: {source}")]
    Body {
        /// What it should have been.
        opcode: Opcode,
        /// Where it went wrong.
        source: rmp_serde::decode::Error,
    },
    /// Bytes behind the message.
    #[error("a {opcode:?} message has {trailing} bytes too many")]
    Trailing {
        /// What it is.
        opcode: Opcode,
        /// How many.
        trailing: usize,
    },
    /// A message that does not belong here.
    #[error("a {0:?} message where it does not belong")]
    Unexpected(Opcode),
}

/// Encodes any of the protocol's types as MessagePack array behind what `out` holds.
pub fn encode_body<T: Serialize>(out: &mut BytesMut, message: &T) {
    // Writing to memory cannot fail, and none of our types refuses to be serialized.
    rmp_serde::encode::write(&mut out.writer(), message).expect("memory takes every message");
}

/// Decodes a whole body, to its last byte.
pub fn decode_body<T: DeserializeOwned>(opcode: Opcode, body: &[u8]) -> Result<T, DecodeError> {
    let mut input = body;
    let message = {
        let mut deserializer = rmp_serde::Deserializer::new(&mut input);
        // Views are the deepest of our types; garbage must not exhaust the stack.
        deserializer.set_max_depth(32);
        T::deserialize(&mut deserializer).map_err(|source| DecodeError::Body { opcode, source })?
    };
    match input.len() {
        0 => Ok(message),
        trailing => Err(DecodeError::Trailing { opcode, trailing }),
    }
}

macro_rules! plain_message {
    ($($name:ident)*) => {$(
        impl $name {
            /// Appends the message as a frame.
            pub fn write(&self, out: &mut BytesMut, request_id: u64) -> Result<(), FrameError> {
                write_frame(out, Opcode::$name, request_id, |out| encode_body(out, self))
            }

            /// Reads the message from a frame.
            pub fn read(frame: &Frame) -> Result<Self, DecodeError> {
                match frame.opcode {
                    Opcode::$name => decode_body(frame.opcode, &frame.body),
                    other => Err(DecodeError::Unexpected(other)),
                }
            }
        }
    )*};
}

plain_message! { Hello Welcome PeerReply ClientReply }

impl PeerRequest {
    /// Appends the message as a frame.
    pub fn write(&self, out: &mut BytesMut, request_id: u64) -> Result<(), FrameError> {
        match self {
            Self::Register(call) => write_frame(out, Opcode::PeerRegister, request_id, |out| encode_body(out, call)),
            Self::Scan(scan) => write_frame(out, Opcode::PeerScan, request_id, |out| encode_body(out, scan)),
            Self::Topology { epoch, topology } => {
                write_frame(out, Opcode::PeerTopology, request_id, |out| encode_body(out, &(epoch, topology)))
            }
            Self::Ping => write_frame(out, Opcode::PeerPing, request_id, |_| ()),
            Self::Found { data, pledge } => {
                write_frame(out, Opcode::PeerFound, request_id, |out| encode_body(out, &(data, pledge)))
            }
        }
    }

    /// Reads the message from a frame.
    pub fn read(frame: &Frame) -> Result<Self, DecodeError> {
        let opcode = frame.opcode;
        match opcode {
            Opcode::PeerRegister => decode_body(opcode, &frame.body).map(Self::Register),
            Opcode::PeerScan => decode_body(opcode, &frame.body).map(Self::Scan),
            Opcode::PeerTopology => {
                decode_body(opcode, &frame.body).map(|(epoch, topology)| Self::Topology { epoch, topology })
            }
            Opcode::PeerPing => empty(frame).map(|()| Self::Ping),
            Opcode::PeerFound => decode_body(opcode, &frame.body).map(|(data, pledge)| Self::Found { data, pledge }),
            other => Err(DecodeError::Unexpected(other)),
        }
    }
}

impl ClientRequest {
    /// Appends the message as a frame.
    pub fn write(&self, out: &mut BytesMut, request_id: u64) -> Result<(), FrameError> {
        match self {
            Self::Operate(op) => write_frame(out, Opcode::ClientOperate, request_id, |out| encode_body(out, op)),
            Self::Scan(scan) => write_frame(out, Opcode::ClientScan, request_id, |out| encode_body(out, scan)),
            Self::Topology { epoch } => {
                write_frame(out, Opcode::ClientTopology, request_id, |out| encode_body(out, epoch))
            }
            Self::Status => write_frame(out, Opcode::ClientStatus, request_id, |_| ()),
        }
    }

    /// Reads the message from a frame.
    pub fn read(frame: &Frame) -> Result<Self, DecodeError> {
        let opcode = frame.opcode;
        match opcode {
            Opcode::ClientOperate => decode_body(opcode, &frame.body).map(Self::Operate),
            Opcode::ClientScan => decode_body(opcode, &frame.body).map(Self::Scan),
            Opcode::ClientTopology => decode_body(opcode, &frame.body).map(|epoch| Self::Topology { epoch }),
            Opcode::ClientStatus => empty(frame).map(|()| Self::Status),
            other => Err(DecodeError::Unexpected(other)),
        }
    }
}

fn empty(frame: &Frame) -> Result<(), DecodeError> {
    match frame.body.len() {
        0 => Ok(()),
        trailing => Err(DecodeError::Trailing { opcode: frame.opcode, trailing }),
    }
}
