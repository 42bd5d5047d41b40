//! Frames: how changes lie in the log.
//!
//! Every item of a segment begins with a head of [`HEAD_LEN`] bytes. All numbers are little-endian.
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | CRC-32 of bytes 8 to the end, masked |
//! | 4..8 | CRC-32 of bytes 8..24, masked: so that of a damaged frame it is still known whose it was and where the next one begins |
//! | 8..12 | length of the item, head included, at most [`MAX_FRAME_LEN`] |
//! | 12 | kind, see [`Kind`] |
//! | 13 | 0 |
//! | 14..16 | flags: which of the fields below are there |
//! | 16..18 | partition |
//! | 18..20 | length of the key |
//! | 20..24 | keyspace |
//!
//! Both checksums are masked (exclusive or) with a number made of segment and offset: what a recycled file or a misdirected write brings to
//! another place does not check there.
//!
//! A **batch** has length [`BATCH_LEN`], kind 1, nothing else in the head, and then
//! 8 bytes `synced_upto`, the position up to which the log was synced when the batch was written, and 8 bytes `previous_end`, the position at
//! which the item before it ends, in this segment or an earlier one. It precedes the frames that were written with it in one go.
//!
//! A **frame** has then, in this order, those that its kind has or its flags name:
//!
//! | bytes | field | there |
//! |---|---|---|
//! | 8 | stored_at | always |
//! | 16 | ballot | BALLOT; otherwise zero |
//! | 16 | promised | PROMISED; otherwise the ballot (accept) |
//! | 16 | stamp | record, tombstone, accept |
//! | 16 | op id | OP_ID; otherwise the stamp |
//! | 16 | reach | REACH; otherwise the stamp |
//! | 8 | expires_at | EXPIRY; otherwise never |
//! | key length | key | always |
//! | 2 + 32 n | lineage: n, then n times op id and stamp | LINEAGE; otherwise empty |
//! | 2 + n | attributes: how many, then for each length (2) and bytes of name and value | ATTRIBUTES; otherwise none |
//! | the rest | value | not with TOMBSTONE, which the kind tombstone has, too |
//!
//! With ELSEWHERE the record was [staged](crate::Engine::stage): in place of lineage, attributes and value there is the length of the value (4), and the
//! place of the frame that has all of it: segment (8), offset (8), length (4).

mod encoding;

use bytes::Bytes;
use dunlin_protocol::register::Change;
use dunlin_protocol::{Ancestor, Attributes, Content, KeyspaceId, Millis, PartitionId, RecordHead, Stamp};

pub(crate) use encoding::{Encoded, encode, encode_elsewhere};

use crate::engine::KeyRef;
use crate::place::{Place, SegmentId};

pub(crate) const HEAD_LEN: usize = 24;
pub(crate) const BATCH_LEN: usize = HEAD_LEN + 16;
/// The largest value in bytes.
pub const MAX_VALUE_LEN: usize = 1 << 20;
/// Room for the largest value, key, attributes, and a lineage of 1,024.
pub(crate) const MAX_FRAME_LEN: usize = MAX_VALUE_LEN + (64 << 10);

const TOMBSTONE: u16 = 1;
const BALLOT: u16 = 1 << 1;
const PROMISED: u16 = 1 << 2;
const OP_ID: u16 = 1 << 3;
const REACH: u16 = 1 << 4;
const EXPIRY: u16 = 1 << 5;
const LINEAGE: u16 = 1 << 6;
const ATTRIBUTES: u16 = 1 << 7;
const ELSEWHERE: u16 = 1 << 8;

/// What an item is. Numbers are for ever; 8 is kept for chunks of large values and 9 for hints.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    Batch = 1,
    /// [`Change::Store`] of a value.
    Record = 2,
    /// [`Change::Store`] of a tombstone.
    Tombstone = 3,
    Promise = 4,
    Accept = 5,
    /// By name: what was accepted at the ballot becomes the record.
    Commit = 6,
    /// [`Change::Forget`].
    Drop = 7,
    Purge = 10,
    /// Nothing more: see [`seal_end`].
    Seal = 11,
}

impl Kind {
    fn of_number(number: u8) -> Option<Self> {
        let kinds = [
            Self::Batch,
            Self::Record,
            Self::Tombstone,
            Self::Promise,
            Self::Accept,
            Self::Commit,
            Self::Drop,
            Self::Purge,
        ];
        kinds.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// An item's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Head {
    pub(crate) len: u32,
    pub(crate) kind: u8,
    flags: u16,
    pub(crate) partition: PartitionId,
    key_len: u16,
    pub(crate) keyspace: KeyspaceId,
}

/// Bytes that are no item of this place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BadItem {
    /// The head, where only what follows it is damaged.
    pub(crate) head: Option<Head>,
    pub(crate) expected: u32,
    pub(crate) found: u32,
}

/// A batch's fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Batch {
    pub(crate) synced_upto: u64,
    pub(crate) previous_end: u64,
}

/// A frame, read but for the record's body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Frame<'a> {
    pub(crate) key: KeyRef<'a>,
    pub(crate) change: Change,
    pub(crate) stored_at: Millis,
    /// There where the change takes a record.
    pub(crate) record: Option<RecordHead>,
    /// The frame that has the record's body, where this one has not.
    pub(crate) elsewhere: Option<Place>,
    /// Lineage, attributes and value.
    body: &'a [u8],
    flags: u16,
}

/// A checked item whose contents make no sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Malformed;

/// Fills in a head, with checksums that are not masked yet.
fn seal(item: &mut [u8], head: &Head) {
    item[8..12].copy_from_slice(&head.len.to_le_bytes());
    item[12] = head.kind;
    item[14..16].copy_from_slice(&head.flags.to_le_bytes());
    item[16..18].copy_from_slice(&head.partition.0.to_le_bytes());
    item[18..20].copy_from_slice(&head.key_len.to_le_bytes());
    item[20..24].copy_from_slice(&head.keyspace.0.to_le_bytes());
    let (whole, start) = (crc32fast::hash(&item[8..]), crc32fast::hash(&item[8..HEAD_LEN]));
    item[..4].copy_from_slice(&whole.to_le_bytes());
    item[4..8].copy_from_slice(&start.to_le_bytes());
}

/// The item, a head only, that ends a segment which is about to be cut off behind it: a file that is too short and does not end with one
/// has lost something.
pub(crate) fn seal_end(segment: SegmentId, offset: u64) -> [u8; HEAD_LEN] {
    let mut item = [0; HEAD_LEN];
    seal(&mut item, &Head { len: HEAD_LEN as u32, kind: Kind::Seal as u8, ..Head::BATCH });
    set_place(&mut item, segment, offset);
    item
}

/// Masks the checksums of an item that was just encoded for the place where it will lie. Cheap: it does not read the item.
pub(crate) fn set_place(item: &mut [u8], segment: SegmentId, offset: u64) {
    let mask = mask(segment, offset);
    for at in [0, 4] {
        let masked = read_u32(item, at) ^ mask;
        item[at..at + 4].copy_from_slice(&masked.to_le_bytes());
    }
}

/// Makes checksums and length of an item fit what it is.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn reseal(item: &mut [u8], segment: SegmentId, offset: u64) {
    let head = Head { len: item.len() as u32, ..Head::read(item) };
    seal(item, &head);
    set_place(item, segment, offset);
}

/// Moves a checked item from one place to another.
pub(crate) fn change_place(item: &mut [u8], from: (SegmentId, u64), to: (SegmentId, u64)) {
    set_place(item, from.0, from.1);
    set_place(item, to.0, to.1);
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014) over segment and offset.
pub(crate) fn mask(segment: SegmentId, offset: u64) -> u32 {
    let mut x = segment.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ offset;
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ x >> 31) as u32
}

/// The length of a checked item.
pub(crate) fn len(item: &[u8]) -> usize {
    read_u32(item, 8) as usize
}

/// Checks the head at the start of `bytes`, which lie at `offset` of the segment, and no more than that.
pub(crate) fn check_head(bytes: &[u8], segment: SegmentId, offset: u64) -> Option<Head> {
    let checksum = crc32fast::hash(bytes.get(8..HEAD_LEN)?);
    let head = Head::read(bytes);
    let is_sound = checksum == read_u32(bytes, 4) ^ mask(segment, offset);
    (is_sound && (HEAD_LEN..=MAX_FRAME_LEN).contains(&(head.len as usize))).then_some(head)
}

/// Checks the item at the start of `bytes`, which lie at `offset` of the segment. Returns its head; its bytes are the first `head.len`.
pub(crate) fn check(bytes: &[u8], segment: SegmentId, offset: u64) -> Result<Head, BadItem> {
    if bytes.len() < HEAD_LEN {
        return Err(BadItem { head: None, expected: 0, found: 0 });
    }
    let mask = mask(segment, offset);
    let (expected, found) = (crc32fast::hash(&bytes[8..HEAD_LEN]), read_u32(bytes, 4) ^ mask);
    let head = Head::read(bytes);
    let len = head.len as usize;
    if expected != found || !(HEAD_LEN..=MAX_FRAME_LEN).contains(&len) {
        return Err(BadItem { head: None, expected, found });
    }
    let found = read_u32(bytes, 0) ^ mask;
    if len > bytes.len() {
        return Err(BadItem { head: None, expected: crc32fast::hash(&bytes[8..]), found });
    }
    let expected = crc32fast::hash(&bytes[8..len]);
    if expected != found {
        return Err(BadItem { head: Some(head), expected, found });
    }
    Ok(head)
}

/// The offset of the next batch that checks, in a segment's bytes from `from` on.
pub(crate) fn find_batch(segment_bytes: &[u8], from: usize, segment: SegmentId) -> Option<usize> {
    find_batch_at(segment_bytes, from, segment, 0)
}

/// The same in a part of the segment that begins at `start`; also what is returned counts from there.
pub(crate) fn find_batch_at(segment_bytes: &[u8], from: usize, segment: SegmentId, start: u64) -> Option<usize> {
    let mut batch = [0; BATCH_LEN];
    seal(&mut batch, &Head::BATCH);
    let pattern = &batch[8..HEAD_LEN];
    let mut at = from;
    while at + BATCH_LEN <= segment_bytes.len() {
        // The pattern's first byte is the only one of its kind in it, and rare in the zeros behind the log's end.
        let rest = &segment_bytes[at + 8..];
        let skip = rest.iter().position(|&byte| byte == pattern[0])?;
        at += skip;
        let is_batch = segment_bytes.len() >= at + BATCH_LEN && &segment_bytes[at + 8..at + HEAD_LEN] == pattern;
        if is_batch && check(&segment_bytes[at..], segment, start + at as u64).is_ok() {
            return Some(at);
        }
        at += 1;
    }
    None
}

impl Head {
    const BATCH: Self = Self {
        len: BATCH_LEN as u32,
        kind: Kind::Batch as u8,
        flags: 0,
        partition: PartitionId(0),
        key_len: 0,
        keyspace: KeyspaceId(0),
    };

    fn read(bytes: &[u8]) -> Self {
        Self {
            len: read_u32(bytes, 8),
            kind: bytes[12],
            flags: read_u16(bytes, 14),
            partition: PartitionId(read_u16(bytes, 16)),
            key_len: read_u16(bytes, 18),
            keyspace: KeyspaceId(read_u32(bytes, 20)),
        }
    }

    pub(crate) fn is_seal(&self) -> bool {
        self.kind == Kind::Seal as u8
    }

    pub(crate) fn is_batch(&self) -> bool {
        self.kind == Kind::Batch as u8
    }
}

impl Batch {
    /// Writes the batch over the room left for it at the start of `run`.
    pub(crate) fn write(&self, run: &mut [u8], segment: SegmentId, offset: u64) {
        let item = &mut run[..BATCH_LEN];
        item[HEAD_LEN..HEAD_LEN + 8].copy_from_slice(&self.synced_upto.to_le_bytes());
        item[HEAD_LEN + 8..].copy_from_slice(&self.previous_end.to_le_bytes());
        seal(item, &Head::BATCH);
        set_place(item, segment, offset);
    }

    /// Reads a checked item.
    pub(crate) fn read(item: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(item.get(HEAD_LEN..).ok_or(Malformed)?);
        let batch = Self { synced_upto: reader.u64()?, previous_end: reader.u64()? };
        if reader.0.is_empty() { Ok(batch) } else { Err(Malformed) }
    }
}

impl<'a> Frame<'a> {
    /// Reads a checked item that is no batch.
    pub(crate) fn read(item: &'a [u8]) -> Result<Self, Malformed> {
        if item.len() < HEAD_LEN {
            return Err(Malformed);
        }
        let head = Head::read(item);
        let kind = Kind::of_number(head.kind).ok_or(Malformed)?;
        let mut reader = Reader(&item[HEAD_LEN..]);
        let flags = head.flags;
        let has = |flag: u16| flags & flag != 0;
        let stored_at = Millis(reader.u64()?);
        let ballot = if has(BALLOT) { reader.stamp()? } else { Stamp::ZERO };
        let promised = if has(PROMISED) { reader.stamp()? } else { ballot };
        let change = match kind {
            Kind::Batch | Kind::Seal => return Err(Malformed),
            Kind::Record | Kind::Tombstone => Change::Store { ballot },
            Kind::Promise => Change::Promise { ballot },
            Kind::Accept => Change::Accept { ballot, promised },
            Kind::Commit => Change::Commit { ballot },
            Kind::Drop => Change::Forget,
            Kind::Purge => Change::Purge,
        };
        let mut record = None;
        if change.takes_record() {
            let stamp = reader.stamp()?;
            record = Some(RecordHead {
                stamp,
                op_id: if has(OP_ID) { reader.stamp()? } else { stamp },
                reach: if has(REACH) { reader.stamp()? } else { stamp },
                expires_at: if has(EXPIRY) { Millis(reader.u64()?) } else { Millis::NONE },
                tombstone: has(TOMBSTONE),
                value_len: 0,
            });
        }
        let key = KeyRef { partition: head.partition, keyspace: head.keyspace, key: reader.take(head.key_len.into())? };
        let mut frame = Self { key, change, stored_at, record, elsewhere: None, body: reader.0, flags };
        let value_len = match has(ELSEWHERE) {
            true => {
                let value_len = reader.u32()?;
                let (segment, offset, len) = (SegmentId(reader.u64()?), reader.u64()?, reader.u32()?);
                if !reader.0.is_empty() || segment == SegmentId::NONE || frame.record.is_none() {
                    return Err(Malformed);
                }
                (frame.elsewhere, frame.body) = (Some(Place { segment, offset, len }), &[]);
                value_len
            }
            false => frame.body().value()?.len() as u32,
        };
        match &mut frame.record {
            Some(record) if record.tombstone && value_len > 0 => return Err(Malformed),
            Some(record) => record.value_len = value_len,
            None if value_len > 0 => return Err(Malformed),
            None => {}
        }
        Ok(frame)
    }

    /// Lineage, attributes and value, as they lie behind the key.
    pub(crate) fn body(&self) -> Body<'a> {
        Body { has_lineage: self.flags & LINEAGE != 0, has_attributes: self.flags & ATTRIBUTES != 0, bytes: self.body }
    }
}

/// A record's lineage, attributes and value, encoded as in a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Body<'a> {
    pub(crate) has_lineage: bool,
    pub(crate) has_attributes: bool,
    pub(crate) bytes: &'a [u8],
}

impl<'a> Body<'a> {
    /// `own` makes the value out of its bytes, which are a part of the body: a copy, or a slice of what the body lies in.
    pub(crate) fn decode(
        &self,
        tombstone: bool,
        own: impl FnOnce(&'a [u8]) -> Bytes,
    ) -> Result<(Vec<Ancestor>, Content), Malformed> {
        let mut reader = Reader(self.bytes);
        let lineage = self.lineage(&mut reader)?;
        let lineage = lineage.chunks_exact(32).map(|pair| {
            let mut pair = Reader(pair);
            Ok(Ancestor { op_id: pair.stamp()?, stamp: pair.stamp()? })
        });
        let lineage = lineage.collect::<Result<_, _>>()?;
        let mut attributes = Vec::new();
        if self.has_attributes {
            for _ in 0..reader.u16()? {
                attributes.push((reader.text()?.to_owned(), reader.text()?.to_owned()));
            }
        }
        let content = match tombstone {
            true => Content::Tombstone,
            false => Content::Value(own(reader.0), Attributes(attributes)),
        };
        Ok((lineage, content))
    }

    fn lineage(&self, reader: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
        match self.has_lineage {
            true => {
                let count = reader.u16()?;
                reader.take(usize::from(count) * 32)
            }
            false => Ok(&[]),
        }
    }

    pub(crate) fn value(&self) -> Result<&'a [u8], Malformed> {
        let mut reader = Reader(self.bytes);
        self.lineage(&mut reader)?;
        if self.has_attributes {
            for _ in 0..reader.u16()? {
                reader.text()?;
                reader.text()?;
            }
        }
        Ok(reader.0)
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    fn stamp(&mut self) -> Result<Stamp, Malformed> {
        self.array().map(u128::from_le_bytes).map(Stamp::from_bits)
    }

    fn text(&mut self) -> Result<&'a str, Malformed> {
        let len = self.u16()?;
        std::str::from_utf8(self.take(len.into())?).map_err(|_| Malformed)
    }
}

fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests;
