//! Encoding frames.

use bytes::Bytes;
use dunlin_protocol::register::Change;
use dunlin_protocol::{Attributes, Content, Key, Millis, Record, RecordHead, Stamp};

use super::{
    ATTRIBUTES, BALLOT, Body, ELSEWHERE, EXPIRY, HEAD_LEN, Head, Kind, LINEAGE, MAX_VALUE_LEN, OP_ID, PROMISED, REACH,
    TOMBSTONE, seal,
};
use crate::engine::KeyRef;
use crate::error::WriteError;
use crate::place::Place;

/// A frame as it was encoded.
pub(crate) struct Encoded {
    pub(crate) bytes: Vec<u8>,
    body_at: usize,
    flags: u16,
}

impl Encoded {
    pub(crate) fn body(&self) -> Body<'_> {
        Body {
            has_lineage: self.flags & LINEAGE != 0,
            has_attributes: self.flags & ATTRIBUTES != 0,
            bytes: &self.bytes[self.body_at..],
        }
    }
}

/// Encodes a frame, all but its place: [`set_place`] completes it.
pub(crate) fn encode(
    key: KeyRef<'_>,
    change: &Change,
    record: Option<&Record>,
    stored_at: Millis,
) -> Result<Encoded, WriteError> {
    let record = record.filter(|_| change.takes_record());
    let mut flags = 0;
    let mut set = |flag: u16, is_set: bool| flags |= if is_set { flag } else { 0 };
    if let Some(record) = record {
        set(LINEAGE, !record.lineage.is_empty());
        if let Content::Value(bytes, attributes) = &record.content {
            check_len("the value", bytes.len(), MAX_VALUE_LEN)?;
            check_len("the attributes", attributes.byte_len(), Attributes::MAX_LEN)?;
            // An attribute may have no bytes: their number is bounded, too.
            check_len("the attributes", attributes.0.len(), Attributes::MAX_LEN)?;
            set(ATTRIBUTES, !attributes.is_empty());
        }
    }
    let lineage = record.map_or(&[][..], |r| &r.lineage);
    let value_len = record.and_then(|r| r.content.bytes()).map_or(0, Bytes::len);
    let body_len = 32 * lineage.len() + value_len;
    let mut encoding = Encoding::begin(key, change, record.map(Record::head), stored_at, flags, body_len)?;
    let out = &mut encoding.out;
    if flags & LINEAGE != 0 {
        check_len("the lineage", 32 * lineage.len(), 32 << 10)?;
        out.extend_from_slice(&(lineage.len() as u16).to_le_bytes());
        for ancestor in lineage {
            put_stamp(out, ancestor.op_id);
            put_stamp(out, ancestor.stamp);
        }
    }
    if let Some(Record { content: Content::Value(bytes, attributes), .. }) = record {
        if !attributes.is_empty() {
            out.extend_from_slice(&(attributes.0.len() as u16).to_le_bytes());
            for text in attributes.0.iter().flat_map(|(name, value)| [name, value]) {
                out.extend_from_slice(&(text.len() as u16).to_le_bytes());
                out.extend_from_slice(text.as_bytes());
            }
        }
        out.extend_from_slice(bytes);
    }
    Ok(encoding.end())
}

/// Encodes the frame of a change whose record lies in another frame.
pub(crate) fn encode_elsewhere(
    key: KeyRef<'_>,
    change: &Change,
    record: RecordHead,
    place: Place,
    stored_at: Millis,
) -> Result<Encoded, WriteError> {
    let mut encoding = Encoding::begin(key, change, Some(record), stored_at, ELSEWHERE, 24)?;
    let out = &mut encoding.out;
    out.extend_from_slice(&record.value_len.to_le_bytes());
    out.extend_from_slice(&place.segment.0.to_le_bytes());
    out.extend_from_slice(&place.offset.to_le_bytes());
    out.extend_from_slice(&place.len.to_le_bytes());
    Ok(encoding.end())
}

/// A frame under construction.
struct Encoding {
    out: Vec<u8>,
    head: Head,
    body_at: usize,
}

impl Encoding {
    /// Everything before the body, of which there will be about so many bytes; `flags` are those of the body.
    fn begin(
        key: KeyRef<'_>,
        change: &Change,
        record: Option<RecordHead>,
        stored_at: Millis,
        mut flags: u16,
        body_len: usize,
    ) -> Result<Self, WriteError> {
        check_len("the key", key.key.len(), Key::MAX_LEN)?;
        let (mut kind, ballot, promised) = match *change {
            Change::Promise { ballot } => (Kind::Promise, ballot, Stamp::ZERO),
            Change::Accept { ballot, promised } => (Kind::Accept, ballot, promised),
            Change::Store { ballot } => (Kind::Record, ballot, Stamp::ZERO),
            Change::Commit { ballot } => (Kind::Commit, ballot, Stamp::ZERO),
            Change::Forget => (Kind::Drop, Stamp::ZERO, Stamp::ZERO),
            Change::Purge => (Kind::Purge, Stamp::ZERO, Stamp::ZERO),
        };
        let mut set = |flag: u16, is_set: bool| flags |= if is_set { flag } else { 0 };
        set(BALLOT, !ballot.is_zero());
        set(PROMISED, kind == Kind::Accept && promised != ballot);
        if let Some(record) = &record {
            if record.tombstone && kind == Kind::Record {
                kind = Kind::Tombstone;
            }
            set(TOMBSTONE, record.tombstone);
            set(OP_ID, record.op_id != record.stamp);
            set(REACH, record.reach != record.stamp);
            set(EXPIRY, record.expires_at.is_some());
        }
        let mut out = Vec::with_capacity(HEAD_LEN + 104 + key.key.len() + body_len);
        out.resize(HEAD_LEN, 0);
        out.extend_from_slice(&stored_at.0.to_le_bytes());
        if flags & BALLOT != 0 {
            put_stamp(&mut out, ballot);
        }
        if flags & PROMISED != 0 {
            put_stamp(&mut out, promised);
        }
        if let Some(record) = record {
            put_stamp(&mut out, record.stamp);
            if flags & OP_ID != 0 {
                put_stamp(&mut out, record.op_id);
            }
            if flags & REACH != 0 {
                put_stamp(&mut out, record.reach);
            }
            if flags & EXPIRY != 0 {
                out.extend_from_slice(&record.expires_at.0.to_le_bytes());
            }
        }
        out.extend_from_slice(key.key);
        let (partition, keyspace, key_len) = (key.partition, key.keyspace, key.key.len() as u16);
        let head = Head { len: 0, kind: kind as u8, flags, partition, key_len, keyspace };
        Ok(Self { body_at: out.len(), out, head })
    }

    fn end(mut self) -> Encoded {
        self.head.len = self.out.len() as u32;
        seal(&mut self.out, &self.head);
        Encoded { bytes: self.out, body_at: self.body_at, flags: self.head.flags }
    }
}

fn put_stamp(out: &mut Vec<u8>, stamp: Stamp) {
    out.extend_from_slice(&stamp.to_bits().to_le_bytes());
}

fn check_len(what: &'static str, len: usize, max: usize) -> Result<(), WriteError> {
    if len > max { Err(WriteError::TooLarge { what, len, max }) } else { Ok(()) }
}
