//! Frames: how messages lie on a stream. The one description of the format is [`FrameHeader`]'s.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::message::Opcode;

/// The header before every body, 20 bytes, little-endian:
///
/// | bytes | field |
/// |---|---|
/// | 0..4 | CRC-32 of bytes 4..20 and the body |
/// | 4..8 | length of the body in bytes, at most [`MAX_BODY_LEN`] |
/// | 8..16 | request id: chosen by the asker, repeated in the reply |
/// | 16 | opcode |
/// | 17 | flags: 0; a receiver ignores what it does not know |
/// | 18..20 | reserved: 0 when written, ignored when read |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    crc: u32,
    body_len: u32,
    request_id: u64,
    opcode: u8,
}

/// The length of a header in bytes.
pub const HEADER_LEN: usize = 20;
/// The longest body in bytes: a view can carry a record and a pending of 1 MiB each.
pub const MAX_BODY_LEN: usize = 4 << 20;

/// A message as it came: its body still encoded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// What the body is.
    pub opcode: Opcode,
    /// Which request it is, or answers.
    pub request_id: u64,
    /// The encoded message.
    pub body: Bytes,
}

/// Bytes that are no frame. The stream cannot be read further.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// The header announces more than [`MAX_BODY_LEN`].
    #[error("a frame of {len} bytes is larger than {MAX_BODY_LEN}")]
    TooLarge {
        /// What it announces.
        len: usize,
    },
    /// The checksum does not fit.
    #[error("a frame's checksum is {found:08x} where {expected:08x} was expected")]
    Checksum {
        /// As computed over what came.
        expected: u32,
        /// As the header says.
        found: u32,
    },
    /// An opcode of a newer version, or garbage.
    #[error("unknown opcode {0:#04x}")]
    Opcode(u8),
}

/// Appends a frame to `out`; `body` writes the encoded message behind what is there.
///
/// # Errors
/// [`FrameError::TooLarge`], with `out` as it was before.
pub fn write_frame(
    out: &mut BytesMut,
    opcode: Opcode,
    request_id: u64,
    body: impl FnOnce(&mut BytesMut),
) -> Result<(), FrameError> {
    let start = out.len();
    out.put_bytes(0, HEADER_LEN);
    body(out);
    let len = out.len() - start - HEADER_LEN;
    if len > MAX_BODY_LEN {
        out.truncate(start);
        return Err(FrameError::TooLarge { len });
    }
    let frame = &mut out[start..];
    frame[4..8].copy_from_slice(&(len as u32).to_le_bytes());
    frame[8..16].copy_from_slice(&request_id.to_le_bytes());
    frame[16] = opcode as u8;
    let crc = crc32fast::hash(&frame[4..]);
    frame[..4].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

/// Takes one frame from the front of `input`, if a whole one is there. Reserves room for the rest of a frame that has begun, so that memory
/// stays bounded by [`MAX_BODY_LEN`] a stream.
pub fn read_frame(input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    if input.len() < HEADER_LEN {
        return Ok(None);
    }
    let header = FrameHeader::parse(&input[..HEADER_LEN]);
    let len = header.body_len as usize;
    if len > MAX_BODY_LEN {
        return Err(FrameError::TooLarge { len });
    }
    if input.len() < HEADER_LEN + len {
        input.reserve(HEADER_LEN + len - input.len());
        return Ok(None);
    }
    let expected = crc32fast::hash(&input[4..HEADER_LEN + len]);
    if expected != header.crc {
        return Err(FrameError::Checksum { expected, found: header.crc });
    }
    let opcode = Opcode::from_number(header.opcode).ok_or(FrameError::Opcode(header.opcode))?;
    input.advance(HEADER_LEN);
    let body = input.split_to(len).freeze();
    Ok(Some(Frame { opcode, request_id: header.request_id, body }))
}

impl FrameHeader {
    fn parse(mut bytes: &[u8]) -> Self {
        Self {
            crc: bytes.get_u32_le(),
            body_len: bytes.get_u32_le(),
            request_id: bytes.get_u64_le(),
            opcode: bytes.get_u8(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(request_id: u64, body: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        write_frame(&mut out, Opcode::PeerPing, request_id, |out| out.extend_from_slice(body)).expect("small");
        out
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..6), cut in 1usize..64) {
            let stream: Vec<u8> = bodies.iter().enumerate().flat_map(|(i, b)| frame(i as u64, b).to_vec()).collect();
            let mut input = BytesMut::new();
            let mut read = Vec::new();
            for piece in stream.chunks(cut) {
                input.extend_from_slice(piece);
                while let Some(frame) = read_frame(&mut input).expect("whole") {
                    prop_assert_eq!(frame.request_id, read.len() as u64);
                    read.push(frame.body.to_vec());
                }
            }
            prop_assert_eq!(read, bodies);
        }

        #[test]
        fn any_flipped_bit_is_seen(body in prop::collection::vec(any::<u8>(), 0..64), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = frame(5, &body);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let read = read_frame(&mut bytes);
            // A changed length may only ask for more bytes; nothing damaged is ever handed on.
            prop_assert!(matches!(read, Err(_) | Ok(None)), "{:?}", read);
        }

        #[test]
        fn garbage_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..300).prop_map(|v| BytesMut::from(&v[..]))) {
            let _ = read_frame(&mut bytes);
        }
    }

    #[test]
    fn too_large_is_refused_on_both_sides() {
        let mut out = BytesMut::from(&b"before"[..]);
        let written = write_frame(&mut out, Opcode::PeerPing, 0, |out| out.put_bytes(0, MAX_BODY_LEN + 1));
        assert_eq!(written, Err(FrameError::TooLarge { len: MAX_BODY_LEN + 1 }));
        assert_eq!(&out[..], b"before");
        let mut input = BytesMut::from(&[0xff; HEADER_LEN][..]);
        assert!(matches!(read_frame(&mut input), Err(FrameError::TooLarge { .. })));
    }
}
