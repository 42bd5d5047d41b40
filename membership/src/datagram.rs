//! SWIM's datagrams as bytes. All numbers are big-endian.
//!
//! | part | bytes |
//! |---|---|
//! | version | 1 |
//! | kind of message | 1 |
//! | sender | node 8, generation 8 |
//! | sender's incarnation | 2 |
//! | receiver | node 8, generation 8 |
//! | for kinds 1 to 6: number of the probe | 1 |
//! | for kinds 3 to 6: the third node | node 8, generation 8 |
//! | but for announce, broadcast, turn-undead: number of updates | 2 |
//! | each update | node 8, generation 8, incarnation 2, state 1 |
//! | each broadcast | length 2 (always 8), epoch 8 |

use bytes::{Buf, BufMut, TryGetError};
use dunlin_protocol::{Epoch, NodeId};
use foca::{Header, Member, Message, State};

use crate::identity::Identity;

/// Raised with every change of the format.
const VERSION: u8 = 1;
const UPDATE_LEN: usize = 19;
const EPOCH_LEN: usize = 8;

/// Bytes that are no datagram of ours.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum DatagramError {
    #[error("version {0} of the datagram format is not known")]
    Version(u8),
    #[error("the datagram ends too early")]
    Short,
    #[error("the datagram goes on where it should end")]
    Trailing,
    #[error("message kind {0} is not known")]
    Kind(u8),
    #[error("member state {0} is not known")]
    State(u8),
    #[error("a broadcast of {0} bytes is not known")]
    Broadcast(u16),
    #[error("there is no room left in the datagram")]
    Full,
}

impl From<TryGetError> for DatagramError {
    fn from(_: TryGetError) -> Self {
        Self::Short
    }
}

/// A datagram, taken apart to its last byte before any of it is believed.
#[derive(Debug)]
pub(crate) struct Datagram {
    pub(crate) header: Header<Identity>,
    pub(crate) updates: Vec<Member<Identity>>,
    pub(crate) epochs: Vec<Epoch>,
}

impl Datagram {
    pub(crate) fn decode(mut bytes: &[u8]) -> Result<Self, DatagramError> {
        let header = get_header(&mut bytes)?;
        let mut datagram = Self { header, updates: Vec::new(), epochs: Vec::new() };
        if has_updates(&datagram.header.message) {
            for _ in 0..bytes.try_get_u16()? {
                datagram.updates.push(get_member(&mut bytes)?);
            }
        }
        while has_broadcasts(&datagram.header.message) && bytes.has_remaining() {
            match bytes.try_get_u16()? {
                len if usize::from(len) == EPOCH_LEN => datagram.epochs.push(Epoch(bytes.try_get_u64()?)),
                len => return Err(DatagramError::Broadcast(len)),
            }
        }
        if bytes.has_remaining() { Err(DatagramError::Trailing) } else { Ok(datagram) }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) -> Result<(), DatagramError> {
        put_header(&self.header, &mut *out)?;
        if has_updates(&self.header.message) {
            out.put_u16(u16::try_from(self.updates.len()).map_err(|_| DatagramError::Full)?);
            for member in &self.updates {
                put_member(member, &mut *out)?;
            }
        }
        for epoch in &self.epochs {
            out.put_u16(EPOCH_LEN as u16);
            out.put_slice(&encode_epoch(*epoch));
        }
        Ok(())
    }
}

/// An epoch as the body of a broadcast.
pub(crate) fn encode_epoch(epoch: Epoch) -> [u8; EPOCH_LEN] {
    epoch.0.to_be_bytes()
}

pub(crate) fn decode_epoch(mut bytes: &[u8]) -> Result<Epoch, DatagramError> {
    let epoch = Epoch(bytes.try_get_u64()?);
    if bytes.is_empty() { Ok(epoch) } else { Err(DatagramError::Trailing) }
}

/// The format as the SWIM library asks for it.
pub(crate) struct Codec;

impl foca::Codec<Identity> for Codec {
    type Error = DatagramError;

    fn encode_header(&mut self, header: &Header<Identity>, buf: impl BufMut) -> Result<(), DatagramError> {
        put_header(header, buf)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Identity>, DatagramError> {
        get_header(buf)
    }

    fn encode_member(&mut self, member: &Member<Identity>, buf: impl BufMut) -> Result<(), DatagramError> {
        put_member(member, buf)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<Member<Identity>, DatagramError> {
        get_member(buf)
    }
}

fn has_updates(message: &Message<Identity>) -> bool {
    !matches!(message, Message::Announce | Message::Broadcast | Message::TurnUndead)
}

fn has_broadcasts(message: &Message<Identity>) -> bool {
    !matches!(message, Message::Announce | Message::TurnUndead)
}

fn put_header(header: &Header<Identity>, mut buf: impl BufMut) -> Result<(), DatagramError> {
    let (kind, probe, third) = match &header.message {
        Message::Ping(probe) => (1, Some(*probe), None),
        Message::Ack(probe) => (2, Some(*probe), None),
        Message::PingReq { target, probe_number } => (3, Some(*probe_number), Some(*target)),
        Message::IndirectPing { origin, probe_number } => (4, Some(*probe_number), Some(*origin)),
        Message::IndirectAck { target, probe_number } => (5, Some(*probe_number), Some(*target)),
        Message::ForwardedAck { origin, probe_number } => (6, Some(*probe_number), Some(*origin)),
        Message::Announce => (7, None, None),
        Message::Feed => (8, None, None),
        Message::Gossip => (9, None, None),
        Message::Broadcast => (10, None, None),
        Message::TurnUndead => (11, None, None),
    };
    let len = 36 + probe.map_or(0, |_| 1) + third.map_or(0, |_| 16);
    if buf.remaining_mut() < len {
        return Err(DatagramError::Full);
    }
    buf.put_u8(VERSION);
    buf.put_u8(kind);
    put_identity(header.src, &mut buf);
    buf.put_u16(header.src_incarnation);
    put_identity(header.dst, &mut buf);
    if let Some(probe) = probe {
        buf.put_u8(probe);
    }
    if let Some(third) = third {
        put_identity(third, &mut buf);
    }
    Ok(())
}

fn get_header(mut buf: impl Buf) -> Result<Header<Identity>, DatagramError> {
    let version = buf.try_get_u8()?;
    if version != VERSION {
        return Err(DatagramError::Version(version));
    }
    let kind = buf.try_get_u8()?;
    let src = get_identity(&mut buf)?;
    let src_incarnation = buf.try_get_u16()?;
    let dst = get_identity(&mut buf)?;
    let probe_number = if (1..=6).contains(&kind) { buf.try_get_u8()? } else { 0 };
    let message = match kind {
        1 => Message::Ping(probe_number),
        2 => Message::Ack(probe_number),
        3 => Message::PingReq { target: get_identity(&mut buf)?, probe_number },
        4 => Message::IndirectPing { origin: get_identity(&mut buf)?, probe_number },
        5 => Message::IndirectAck { target: get_identity(&mut buf)?, probe_number },
        6 => Message::ForwardedAck { origin: get_identity(&mut buf)?, probe_number },
        7 => Message::Announce,
        8 => Message::Feed,
        9 => Message::Gossip,
        10 => Message::Broadcast,
        11 => Message::TurnUndead,
        kind => return Err(DatagramError::Kind(kind)),
    };
    Ok(Header { src, src_incarnation, dst, message })
}

fn put_member(member: &Member<Identity>, mut buf: impl BufMut) -> Result<(), DatagramError> {
    if buf.remaining_mut() < UPDATE_LEN {
        return Err(DatagramError::Full);
    }
    put_identity(*member.id(), &mut buf);
    buf.put_u16(member.incarnation());
    buf.put_u8(match member.state() {
        State::Alive => 1,
        State::Suspect => 2,
        State::Down => 3,
    });
    Ok(())
}

fn get_member(mut buf: impl Buf) -> Result<Member<Identity>, DatagramError> {
    let id = get_identity(&mut buf)?;
    let incarnation = buf.try_get_u16()?;
    let state = match buf.try_get_u8()? {
        1 => State::Alive,
        2 => State::Suspect,
        3 => State::Down,
        state => return Err(DatagramError::State(state)),
    };
    Ok(Member::new(id, incarnation, state))
}

fn put_identity(identity: Identity, mut buf: impl BufMut) {
    buf.put_u64(identity.node.0);
    buf.put_u64(identity.generation);
}

fn get_identity(mut buf: impl Buf) -> Result<Identity, DatagramError> {
    Ok(Identity { node: NodeId(buf.try_get_u64()?), generation: buf.try_get_u64()? })
}
