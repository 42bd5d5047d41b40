//! `Meta`: what a table's end says about it.

use super::varint::{put_varint, take_varint};
use super::{MAGIC, TABLE_VERSION, TableId};
use crate::frame::mask;
use crate::place::{LIMIT, SegmentId};

/// Checksum, length of meta, version, magic.
pub(crate) const END_LEN: usize = 20;
/// Numbers, and two keys of the greatest length.
pub(crate) const MAX_META_LEN: usize = 128 + 2 * (4096 + 16);

/// What a table's end says about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Meta {
    pub(crate) id: TableId,
    pub(crate) file_len: u64,
    /// All changes of the log up to here are in this table or in older ones.
    pub(crate) position: u64,
    pub(crate) entries: u64,
    /// Of the entries, marks of forgotten keys.
    pub(crate) marks: u64,
    pub(crate) blocks: u32,
    pub(crate) filter: Part,
    pub(crate) index: Part,
    pub(crate) smallest: Vec<u8>,
    pub(crate) largest: Vec<u8>,
}

/// A part of the file; its checksum follows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Part {
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

/// Bytes that are no end of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BadEnd {
    Checksum { expected: u32, found: u32 },
    Version(u32),
    Malformed,
}

impl Meta {
    /// Appends meta and end.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        for number in [self.id.0, self.file_len, self.position, self.entries, self.marks] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.blocks.to_le_bytes());
        for part in [self.filter, self.index] {
            out.extend_from_slice(&part.offset.to_le_bytes());
            out.extend_from_slice(&part.len.to_le_bytes());
        }
        for key in [&self.smallest, &self.largest] {
            put_varint(out, key.len() as u64);
            out.extend_from_slice(key);
        }
        let len = (out.len() - start) as u32;
        let mut last = [0; 16];
        last[..4].copy_from_slice(&len.to_le_bytes());
        last[4..8].copy_from_slice(&TABLE_VERSION.to_le_bytes());
        last[8..].copy_from_slice(MAGIC);
        let crc = end_checksum(&out[start..], &last);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&last);
    }

    /// The bytes that meta and end take.
    pub(crate) fn encoded_len(&self) -> usize {
        let mut bytes = Vec::new();
        self.encode(&mut bytes);
        bytes.len()
    }

    /// Reads the last bytes of a file.
    pub(crate) fn decode(tail: &[u8]) -> Result<Self, BadEnd> {
        let none = BadEnd::Checksum { expected: 0, found: 0 };
        let (rest, end) = tail.split_last_chunk::<END_LEN>().ok_or(none)?;
        let word = |at: usize| u32::from_le_bytes([end[at], end[at + 1], end[at + 2], end[at + 3]]);
        let (found, len, version) = (word(0), word(4), word(8));
        let start = rest.len().checked_sub(len as usize).ok_or(BadEnd::Checksum { expected: 0, found })?;
        let mut last = [0; 16];
        last.copy_from_slice(&end[4..]);
        let expected = end_checksum(&rest[start..], &last);
        if expected != found || &end[12..] != MAGIC {
            return Err(BadEnd::Checksum { expected, found });
        }
        if version != TABLE_VERSION {
            return Err(BadEnd::Version(version));
        }
        Self::parse(&rest[start..]).ok_or(BadEnd::Malformed)
    }

    pub(crate) fn parse(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        let (id, file_len, position) = (TableId(long(bytes)?), long(bytes)?, long(bytes)?);
        let (entries, marks, blocks) = (long(bytes)?, long(bytes)?, word(bytes)?);
        let filter = Part { offset: long(bytes)?, len: word(bytes)? };
        let index = Part { offset: long(bytes)?, len: word(bytes)? };
        let mut key = || {
            let len = usize::try_from(take_varint(bytes)?).ok()?;
            Some(take(bytes, len)?.to_vec())
        };
        let (smallest, largest) = (key()?, key()?);
        let fits = |part: Part| part.offset.checked_add(u64::from(part.len) + 4).is_some_and(|end| end <= file_len);
        let is_sound = bytes.is_empty()
            && file_len < u64::from(u32::MAX)
            && (fits(filter) && fits(index))
            && (id.0 < LIMIT && position < LIMIT && entries <= file_len && marks <= entries);
        let meta = Self { id, file_len, position, entries, marks, blocks, filter, index, smallest, largest };
        is_sound.then_some(meta)
    }
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(taken)
}

fn long(bytes: &mut &[u8]) -> Option<u64> {
    take(bytes, 8)?.first_chunk().map(|long| u64::from_le_bytes(*long))
}

fn word(bytes: &mut &[u8]) -> Option<u32> {
    take(bytes, 4)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

/// Of a part whose offset is not known before it is read: masked as if it were the file's first.
fn end_checksum(meta: &[u8], last: &[u8; 16]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(meta);
    hasher.update(last);
    hasher.finalize() ^ mask(SegmentId(u64::MAX), 0)
}
