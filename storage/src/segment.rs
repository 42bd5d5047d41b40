//! Segments: files of the log.
//!
//! A segment begins with a header of [`SEGMENT_HEADER_LEN`] bytes; behind it lie the items that [`frame`](crate::frame) describes. Little-endian:
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | `DUNLSEG` and a line feed |
//! | 8..12 | format version, 1 |
//! | 12..16 | CRC-32 of bytes 0..12 and 16..64 |
//! | 16..24 | id |
//! | 24..32 | base: the position of the file's first byte |
//! | 32..40 | capacity in bytes, header included |
//! | 40..48 | cut: items of earlier segments at or beyond this position are void, this segment holds what counts of them; the maximum: none are |
//! | 48..56 | synced_upto: the log was durable up to here when the segment was made |
//! | 56..64 | 1 where the segment is cold: frames without batches that were moved here, no part of the log; otherwise 0 |
//!
//! A segment is preallocated in steps, and where batches are small written ahead with zeros. It is sealed (synced and cut to its length) when the
//! writer goes on to the next one, which was made, synced and listed in the manifest before anything was appended to it.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::disk::DiskFile;
use crate::frame::{HEAD_LEN, check};
use crate::manifest::Listing;
use crate::place::{Position, SegmentId};
use crate::sync::atomic::{AtomicU64, Ordering};

pub(crate) const SEGMENT_HEADER_LEN: usize = 64;
pub(crate) const SEGMENT_VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"DUNLSEG\n";

/// What a segment's header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SegmentHeader {
    pub(crate) id: SegmentId,
    pub(crate) base: u64,
    pub(crate) capacity: u64,
    pub(crate) cut: u64,
    pub(crate) synced_upto: u64,
    pub(crate) is_cold: bool,
}

/// Bytes that are no header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BadHeader {
    Checksum { expected: u32, found: u32 },
    Version(u32),
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER_LEN] {
        let mut bytes = [0; SEGMENT_HEADER_LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
        let fields = [self.id.0, self.base, self.capacity, self.cut, self.synced_upto, self.is_cold.into()];
        for (to, field) in bytes[16..].chunks_exact_mut(8).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        let crc = checksum(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(file: &[u8]) -> Result<Self, BadHeader> {
        let Some(bytes) = file.first_chunk::<SEGMENT_HEADER_LEN>() else {
            return Err(BadHeader::Checksum { expected: 0, found: 0 });
        };
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let (expected, found) = (checksum(bytes), word(12));
        if expected != found || &bytes[..8] != MAGIC {
            return Err(BadHeader::Checksum { expected, found });
        }
        if word(8) != SEGMENT_VERSION {
            return Err(BadHeader::Version(word(8)));
        }
        Ok(Self {
            id: SegmentId(long(16)),
            base: long(24),
            capacity: long(32),
            cut: long(40),
            synced_upto: long(48),
            is_cold: long(56) > 0,
        })
    }
}

pub(crate) fn checksum(header: &[u8; SEGMENT_HEADER_LEN]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[..12]);
    hasher.update(&header[16..]);
    hasher.finalize()
}

/// Whether a recovery that was itself cut off had given back the unused room of a file of this length.
pub(crate) fn ends_with_seal(file: &dyn DiskFile, id: SegmentId, len: u64) -> io::Result<bool> {
    let Some(offset) = len.checked_sub(HEAD_LEN as u64) else { return Ok(false) };
    let mut item = [0; HEAD_LEN];
    let read = file.read_at(offset, &mut item)?;
    Ok(check(&item[..read], id, offset).is_ok_and(|head| head.is_seal()))
}

/// An open segment.
pub(crate) struct Segment {
    pub(crate) id: SegmentId,
    pub(crate) base: u64,
    pub(crate) capacity: u64,
    /// It is no part of the log.
    pub(crate) is_cold: bool,
    pub(crate) file: Arc<dyn DiskFile>,
    /// Below this offset the file has everything; what lies above is still in memory.
    written: AtomicU64,
    /// Bytes of its frames that the index refers to.
    live: AtomicU64,
    /// How many [`Hold`]s there are.
    holds: AtomicU64,
    /// The end of the last frame of the log that names a place in it.
    named_upto: AtomicU64,
}

/// While there is one, the segment is not removed, whatever the index refers to: it is appended to, or something of it waits to be referred to.
pub(crate) struct Hold(Arc<Segment>);

impl Hold {
    pub(crate) fn of(segment: &Arc<Segment>) -> Self {
        segment.holds.fetch_add(1, Ordering::AcqRel);
        Self(segment.clone())
    }

    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.0
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hold").field(&self.0.id).finish()
    }
}

impl Clone for Hold {
    fn clone(&self) -> Self {
        Self::of(&self.0)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.holds.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Segment {
    pub(crate) fn new(id: SegmentId, listing: &Listing, file: Arc<dyn DiskFile>, written: u64) -> Self {
        let Listing { base, capacity, live, is_cold, .. } = *listing;
        let (written, live) = (AtomicU64::new(written), AtomicU64::new(live));
        Self {
            id,
            base,
            capacity,
            is_cold,
            file,
            written,
            live,
            holds: AtomicU64::new(0),
            named_upto: AtomicU64::new(0),
        }
    }

    pub(crate) fn is_held(&self) -> bool {
        self.holds.load(Ordering::Acquire) > 0
    }

    /// A frame of the log that ends at a position names a place in it.
    pub(crate) fn name_at(&self, position: Position) {
        self.named_upto.fetch_max(position.0, Ordering::AcqRel);
    }

    /// Whether no frame of the log from a position on needs it.
    pub(crate) fn is_named_before(&self, position: u64) -> bool {
        self.named_upto.load(Ordering::Acquire) <= position
    }

    pub(crate) fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    pub(crate) fn set_live(&self, bytes: u64) {
        self.live.store(bytes, Ordering::Relaxed);
    }

    /// The index refers to so many bytes more.
    pub(crate) fn add_live(&self, bytes: u32) {
        self.live.fetch_add(bytes.into(), Ordering::Relaxed);
    }

    /// The index refers to so many bytes less. After damage the count may be off, and then it ends at nothing.
    pub(crate) fn remove_live(&self, bytes: u32) {
        subtract(&self.live, bytes.into());
    }

    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    pub(crate) fn set_written(&self, offset: u64) {
        self.written.store(offset, Ordering::Release);
    }

    pub(crate) fn position(&self, offset: u64) -> Position {
        Position(self.base + offset)
    }
}

/// What is counted of damaged files may not add up; below zero there is nothing.
pub(crate) fn subtract(count: &AtomicU64, by: u64) {
    let subtracted = |count: u64| Some(count.saturating_sub(by));
    // It never refuses.
    let _ = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, subtracted);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_and_any_flipped_bit_is_seen() {
        let header = SegmentHeader {
            id: SegmentId(3),
            base: 1 << 40,
            capacity: 4096,
            cut: u64::MAX,
            synced_upto: 77,
            is_cold: true,
        };
        let mut bytes = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(SegmentHeader::decode(&bytes), Err(BadHeader::Checksum { .. })), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(SegmentHeader::decode(&bytes[..63]).is_err());
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let header =
            SegmentHeader { id: SegmentId(3), base: 0, capacity: 4096, cut: u64::MAX, synced_upto: 0, is_cold: false };
        let mut bytes = header.encode();
        bytes[8] = 2;
        let crc = checksum(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&bytes), Err(BadHeader::Version(2)));
    }
}
