//! What the index holds for a key: the body of an entry, in tables and in the memtable alike.
//!
//! One byte of flags; no flags, nothing else: the **mark** of a forgotten key, which hides what older tables hold. Otherwise, in this order, what the
//! flags name (little-endian; "varint" as in [`table`](crate::table)):
//!
//! | field | there |
//! |---|---|
//! | promised (16) | PROMISED; otherwise zero |
//! | ballot (16) | BALLOT; otherwise zero |
//! | the record | RECORD |
//! | stored_at: varint of its distance from the record's stamp's wall time, or from zero without a record, times two, less one where it is negative | STORED_AT; otherwise zero |
//! | ballot (16) and record that are pending | PENDING |
//!
//! A record: one byte of flags; stamp (16); op id (16) with OP_ID, otherwise the stamp; reach (16) with REACH, otherwise the stamp; expires_at (8) with
//! EXPIRY, otherwise never; varint length of the value. With INLINE then varint length and bytes of the body as in a [`frame`](crate::frame), which has
//! a lineage with LINEAGE and attributes with ATTRIBUTES; otherwise varints of the frame's segment, offset and length. TOMBSTONE: there is no value.

use bytes::Bytes;
use dunlin_protocol::register::{Change, Held, Register};
use dunlin_protocol::{Millis, RecordHead, Stamp};

use crate::engine::Stored;
use crate::frame::{Body, Malformed};
use crate::place::{Place, SegmentId};
use crate::table::{put_varint, take_varint};

const RECORD: u8 = 1;
const BALLOT: u8 = 1 << 1;
const PROMISED: u8 = 1 << 2;
const PENDING: u8 = 1 << 3;
const STORED_AT: u8 = 1 << 4;

const OP_ID: u8 = 1;
const REACH: u8 = 1 << 1;
const EXPIRY: u8 = 1 << 2;
const TOMBSTONE: u8 = 1 << 3;
const INLINE: u8 = 1 << 4;
const LINEAGE: u8 = 1 << 5;
const ATTRIBUTES: u8 = 1 << 6;

/// Whether the body is the mark of a forgotten key.
pub(crate) fn is_mark(body: &[u8]) -> bool {
    body == [0]
}

/// A register and the bodies of those of its records that lie in the index.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Indexed<'a> {
    pub(crate) register: Register<Place>,
    pub(crate) record: Option<Body<'a>>,
    pub(crate) pending: Option<Body<'a>>,
}

impl<'a> Indexed<'a> {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let Register { record, ballot, promised, pending, stored_at } = &self.register;
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        let flags = flag(record.is_some(), RECORD)
            | flag(!ballot.is_zero(), BALLOT)
            | flag(!promised.is_zero(), PROMISED)
            | flag(pending.is_some(), PENDING)
            | flag(stored_at.0 != 0, STORED_AT);
        out.push(flags);
        if flags & PROMISED != 0 {
            put_stamp(out, *promised);
        }
        if flags & BALLOT != 0 {
            put_stamp(out, *ballot);
        }
        if let Some(held) = record {
            put_held(out, held, self.record);
        }
        if flags & STORED_AT != 0 {
            let distance = stored_at.0.wrapping_sub(base(record.as_ref())) as i64;
            put_varint(out, (distance << 1 ^ distance >> 63) as u64);
        }
        if let Some((ballot, held)) = pending {
            put_stamp(out, *ballot);
            put_held(out, held, self.pending);
        }
    }

    #[inline]
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut rest = bytes;
        let bytes = &mut rest;
        let flags = take(bytes, 1)?[0];
        let has = |flag: u8| flags & flag != 0;
        if flags >= STORED_AT << 1 {
            return Err(Malformed);
        }
        let promised = if has(PROMISED) { stamp(bytes)? } else { Stamp::ZERO };
        let ballot = if has(BALLOT) { stamp(bytes)? } else { Stamp::ZERO };
        let (record, record_body) = if has(RECORD) { held(bytes)?.split() } else { (None, None) };
        let stored_at = match has(STORED_AT) {
            true => {
                let zigzag = varint(bytes)?;
                let distance = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
                Millis(base(record.as_ref()).wrapping_add(distance as u64))
            }
            false => Millis(0),
        };
        let mut pending = None;
        let mut pending_body = None;
        if has(PENDING) {
            let ballot = stamp(bytes)?;
            let (held, body) = held(bytes)?.split();
            (pending, pending_body) = (held.map(|held| (ballot, held)), body);
        }
        if !bytes.is_empty() {
            return Err(Malformed);
        }
        let register = Register { record, ballot, promised, pending, stored_at };
        Ok(Self { register, record: record_body, pending: pending_body })
    }

    /// Carries out a change. `body`: of the record that is held now, where it is to lie in the index.
    pub(crate) fn apply(
        &mut self,
        change: Change,
        held: Option<Held<Place>>,
        stored_at: Millis,
        body: Option<Body<'a>>,
    ) {
        self.register.apply(change, held, stored_at);
        match change {
            Change::Store { .. } => self.record = body,
            Change::Accept { .. } => self.pending = body,
            Change::Commit { .. } => self.record = self.pending.take(),
            Change::Forget => (self.record, self.pending) = (None, None),
            Change::Promise { .. } | Change::Purge => {}
        }
        if self.register.pending.is_none() {
            self.pending = None;
        }
    }

    /// The records' places and bodies.
    pub(crate) fn held(&self) -> impl Iterator<Item = (Held<Place>, Option<Body<'a>>)> {
        let record = self.register.record.map(|held| (held, self.record));
        let pending = self.register.pending.map(|(_, held)| (held, self.pending));
        record.into_iter().chain(pending)
    }

    /// A copy of the record with this head, where it lies in the index.
    pub(crate) fn stored(&self, head: &RecordHead) -> Option<Result<Stored, Malformed>> {
        let (_, body) = self.held().find(|(held, body)| held.head == *head && body.is_some())?;
        let decoded = body?.decode(head.tombstone, Bytes::copy_from_slice);
        Some(decoded.map(|(lineage, content)| Stored { lineage, content }))
    }
}

fn base(record: Option<&Held<Place>>) -> u64 {
    record.map_or(0, |held| held.head.stamp.wall().0)
}

fn put_stamp(out: &mut Vec<u8>, stamp: Stamp) {
    out.extend_from_slice(&stamp.to_bits().to_le_bytes());
}

fn put_held(out: &mut Vec<u8>, held: &Held<Place>, body: Option<Body<'_>>) {
    let (head, place) = (&held.head, &held.place);
    let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
    let flags = flag(head.op_id != head.stamp, OP_ID)
        | flag(head.reach != head.stamp, REACH)
        | flag(head.expires_at.is_some(), EXPIRY)
        | flag(head.tombstone, TOMBSTONE)
        | body.map_or(0, |b| INLINE | flag(b.has_lineage, LINEAGE) | flag(b.has_attributes, ATTRIBUTES));
    out.push(flags);
    put_stamp(out, head.stamp);
    if flags & OP_ID != 0 {
        put_stamp(out, head.op_id);
    }
    if flags & REACH != 0 {
        put_stamp(out, head.reach);
    }
    if flags & EXPIRY != 0 {
        out.extend_from_slice(&head.expires_at.0.to_le_bytes());
    }
    put_varint(out, head.value_len.into());
    match body {
        Some(body) => {
            put_varint(out, body.bytes.len() as u64);
            out.extend_from_slice(body.bytes);
        }
        None => {
            put_varint(out, place.segment.0);
            put_varint(out, place.offset);
            put_varint(out, place.len.into());
        }
    }
}

struct HeldAndBody<'a>(Held<Place>, Option<Body<'a>>);

impl<'a> HeldAndBody<'a> {
    fn split(self) -> (Option<Held<Place>>, Option<Body<'a>>) {
        (Some(self.0), self.1)
    }
}

#[inline]
fn held<'a>(bytes: &mut &'a [u8]) -> Result<HeldAndBody<'a>, Malformed> {
    let flags = take(bytes, 1)?[0];
    let has = |flag: u8| flags & flag != 0;
    let own = stamp(bytes)?;
    let op_id = if has(OP_ID) { stamp(bytes)? } else { own };
    let reach = if has(REACH) { stamp(bytes)? } else { own };
    let expires_at = match has(EXPIRY) {
        true => Millis(u64::from_le_bytes(*take(bytes, 8)?.first_chunk().ok_or(Malformed)?)),
        false => Millis::NONE,
    };
    let value_len = u32::try_from(varint(bytes)?).map_err(|_| Malformed)?;
    let head = RecordHead { stamp: own, op_id, reach, expires_at, tombstone: has(TOMBSTONE), value_len };
    if has(INLINE) {
        let len = usize::try_from(varint(bytes)?).map_err(|_| Malformed)?;
        let body = Body { has_lineage: has(LINEAGE), has_attributes: has(ATTRIBUTES), bytes: take(bytes, len)? };
        return Ok(HeldAndBody(Held { head, place: Place::inline(len) }, Some(body)));
    }
    let (segment, offset) = (SegmentId(varint(bytes)?), varint(bytes)?);
    let len = u32::try_from(varint(bytes)?).map_err(|_| Malformed)?;
    if segment == SegmentId::NONE {
        return Err(Malformed);
    }
    Ok(HeldAndBody(Held { head, place: Place { segment, offset, len } }, None))
}

#[inline]
fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Result<&'a [u8], Malformed> {
    let (taken, rest) = bytes.split_at_checked(len).ok_or(Malformed)?;
    *bytes = rest;
    Ok(taken)
}

#[inline]
fn stamp(bytes: &mut &[u8]) -> Result<Stamp, Malformed> {
    let bits = take(bytes, 16)?.first_chunk().ok_or(Malformed)?;
    Ok(Stamp::from_bits(u128::from_le_bytes(*bits)))
}

#[inline]
fn varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    take_varint(bytes).ok_or(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stamps() -> impl Strategy<Value = Stamp> {
        prop_oneof![Just(Stamp::ZERO), any::<u128>().prop_map(Stamp::from_bits)]
    }

    /// Whether there are a lineage and attributes, and the bytes.
    type BodyParts = (bool, bool, Vec<u8>);

    fn helds() -> impl Strategy<Value = (Held<Place>, Option<BodyParts>)> {
        let place = (0..u64::MAX, any::<u64>(), any::<u32>());
        let body = prop::option::of((any::<bool>(), any::<bool>(), prop::collection::vec(any::<u8>(), 0..40)));
        (stamps(), stamps(), stamps(), any::<u64>(), any::<(bool, u32)>(), place, body).prop_map(
            |(stamp, op_id, reach, expires_at, (tombstone, value_len), (segment, offset, len), body)| {
                let expires_at = Millis(expires_at);
                let head = RecordHead { stamp, op_id, reach, expires_at, tombstone, value_len };
                let place = match &body {
                    Some((_, _, bytes)) => Place::inline(bytes.len()),
                    None => Place { segment: SegmentId(segment), offset, len },
                };
                (Held { head, place }, body)
            },
        )
    }

    fn body(parts: &Option<BodyParts>) -> Option<Body<'_>> {
        parts.as_ref().map(|(has_lineage, has_attributes, bytes)| Body {
            has_lineage: *has_lineage,
            has_attributes: *has_attributes,
            bytes,
        })
    }

    proptest! {
        #[test]
        fn registers_survive(
            record in prop::option::of(helds()), pending in prop::option::of((stamps(), helds())),
            ballot in stamps(), promised in stamps(), stored_at: u64, flip: (u16, u8), cut: u16,
        ) {
            let register = Register {
                record: record.as_ref().map(|(held, _)| *held),
                ballot,
                promised,
                pending: pending.as_ref().map(|(ballot, (held, _))| (*ballot, *held)),
                stored_at: Millis(stored_at),
            };
            let record = record.as_ref().and_then(|(_, parts)| body(parts));
            let pending = pending.as_ref().and_then(|(_, (_, parts))| body(parts));
            let indexed = Indexed { register, record, pending };
            let mut bytes = Vec::new();
            indexed.encode(&mut bytes);
            prop_assert_eq!(Indexed::decode(&bytes), Ok(indexed));
            prop_assert_eq!(is_mark(&bytes), register == Register::default());
            // Mutated bytes give something or an error, never a panic.
            let _ = Indexed::decode(&bytes[..usize::from(cut) % bytes.len()]);
            let at = usize::from(flip.0) % bytes.len();
            bytes[at] ^= flip.1;
            if let Ok(decoded) = Indexed::decode(&bytes) {
                for (held, _) in decoded.held() {
                    let _ = decoded.stored(&held.head);
                }
            }
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Indexed::decode(&bytes);
        }
    }

    #[test]
    fn a_plain_entry_is_small() {
        let own = Stamp::new(Millis(1_760_000_000_000), 3, 9);
        let head = RecordHead {
            stamp: own,
            op_id: own,
            reach: own,
            expires_at: Millis::NONE,
            tombstone: false,
            value_len: 100,
        };
        let register = Register {
            record: Some(Held { head, place: Place::inline(100) }),
            stored_at: Millis(1_760_000_000_002),
            ..Register::default()
        };
        let value = [7; 100];
        let body = Body { has_lineage: false, has_attributes: false, bytes: &value };
        let mut bytes = Vec::new();
        Indexed { register, record: Some(body), pending: None }.encode(&mut bytes);
        assert_eq!(bytes.len() - value.len(), 21);
    }
}
