//! Sorted tables: the index on disk.
//!
//! A table holds entries in the order of their keys, each key once. A key is what [`key`](key) makes of partition, keyspace and key, so that the
//! order of bytes is the order of (partition, keyspace, key). An entry's body is described in [`indexed`](crate::indexed). A table is written
//! once and never changed. Numbers are little-endian; "varint" is LEB128, seven bits a byte, low ones first. From the start of the file:
//!
//! | part | contents |
//! |---|---|
//! | blocks | one behind another, each closed before it would exceed [`BLOCK_LEN`] bytes, unless it has one entry only |
//! | filter | blocks of 32 bytes, see [`filter`]; its checksum (4) |
//! | index | for each block: varint length of its separator, the separator, varint length of the block; the checksum of all (4) |
//! | meta | see below |
//! | end | checksum of meta and of the 8 bytes behind it (4), length of meta (4), format version 1 (4), `DUNLTBL` and a line feed (8) |
//!
//! A **separator** lies above the key before the block and at or below the block's first one, and has at least the bytes of partition and keyspace.
//!
//! A **block**: entries; the offsets (2 each) of those whose key is written out in full, every [`RESTART`]th from the first; how many these are (2); a
//! checksum (4). An entry: varint number of bytes that its key shares with the one before, varint number of the rest, varint length
//! of the body, the rest of the key, the body.
//!
//! **Meta**: table id (8), length of the file (8), the log position up to which the table covers all changes (8), entries (8), of them marks of forgotten
//! keys (8), blocks (4), offset of the filter (8), its length without checksum (4), offset of the index (8), its length without checksum (4), varint length of the smallest key and the key, the same of the largest key.
//!
//! Checksums are CRC-32 of all of the part before them, masked (exclusive or) with a number made of the table's id and the part's offset: what a
//! misdirected write or a swapped file brings to another place does not check there.

mod block;
mod filter;
mod footer;
#[cfg(any(test, feature = "fuzzing"))]
mod fuzz;
mod index;
mod merging;
mod reader;
mod varint;
mod writer;

pub(crate) use block::BlockCursor;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use fuzz::fuzz;
pub(crate) use merging::{Merging, Source};
pub(crate) use reader::{BlockCache, RunCursor, Table, block_cache};
pub(crate) use varint::{put_varint, take_varint};
pub(crate) use writer::TableWriter;

use dunlin_protocol::{KeyspaceId, PartitionId};

use crate::engine::KeyRef;
use crate::frame::mask;
use crate::place::{LIMIT, SegmentId};

/// A table file. Ids rise and are never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct TableId(pub(crate) u64);

/// The directory that holds the tables, relative to the data directory.
pub(crate) const TABLES_DIR: &str = "tables";
pub(crate) const BLOCK_LEN: usize = 4096;
/// Every so many entries of a block a key is written out in full.
pub(crate) const RESTART: usize = 8;
/// The bytes of partition and keyspace before a key.
pub(crate) const PREFIX_LEN: usize = 6;
pub(crate) const TABLE_VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"DUNLTBL\n";

impl TableId {
    pub(crate) fn file_name(self) -> String {
        format!("{TABLES_DIR}/{:016x}.tbl", self.0)
    }

    /// The id of a file in the tables' directory, if it is a table.
    pub(crate) fn of_file(name: &str) -> Option<Self> {
        let digits = name.strip_suffix(".tbl")?;
        let id = u64::from_str_radix(digits, 16).ok()?;
        (digits.len() == 16 && !digits.starts_with('+') && id < LIMIT).then_some(Self(id))
    }
}

/// Appends the bytes by which a key is ordered: partition (2) and keyspace (4), high bytes first, and the key.
pub(crate) fn put_key(to: &mut Vec<u8>, key: KeyRef<'_>) {
    to.extend_from_slice(&key.partition.0.to_be_bytes());
    to.extend_from_slice(&key.keyspace.0.to_be_bytes());
    to.extend_from_slice(key.key);
}

pub(crate) fn key(of: KeyRef<'_>) -> Vec<u8> {
    let mut key = Vec::with_capacity(PREFIX_LEN + of.key.len());
    put_key(&mut key, of);
    key
}

/// The parts of a key; none where it is too short.
pub(crate) fn split_key(key: &[u8]) -> Option<KeyRef<'_>> {
    let (prefix, key) = key.split_first_chunk::<PREFIX_LEN>()?;
    let [p0, p1, k @ ..] = *prefix;
    let (partition, keyspace) = (PartitionId(u16::from_be_bytes([p0, p1])), KeyspaceId(u32::from_be_bytes(k)));
    Some(KeyRef { partition, keyspace, key })
}

/// What places a key in filters and in the memtable: XXH3 with 64 bits. Stored, in filters.
pub(crate) fn hash(key: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot(key)
}

/// The checksum of a part of a table.
pub(crate) fn checksum(part: &[u8], table: TableId, offset: u64) -> u32 {
    // Apart from the segments of the same ids.
    crc32fast::hash(part) ^ mask(SegmentId(!table.0), offset)
}

/// A table's bytes that make no sense under a valid checksum, or have none: in `expected` and `found` the checksums, equal where these fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BadPart {
    pub(crate) offset: u64,
    pub(crate) expected: u32,
    pub(crate) found: u32,
}

#[cfg(test)]
mod tests;
