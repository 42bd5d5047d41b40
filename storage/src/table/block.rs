//! Blocks: the sorted entries that are read in one go.

use std::cmp::Ordering;

use bytes::Bytes;

use super::varint::{put_varint, take_varint};
use super::{BadPart, RESTART, TableId, checksum};
use crate::frame::Malformed;

/// Gathers the entries of a block.
#[derive(Default)]
pub(crate) struct BlockWriter {
    bytes: Vec<u8>,
    restarts: Vec<u16>,
    entries: usize,
    last: Vec<u8>,
}

impl BlockWriter {
    /// The length if the block ended here.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() + 2 * self.restarts.len() + 6
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries == 0
    }

    pub(crate) fn last_key(&self) -> &[u8] {
        &self.last
    }

    /// Keys come in ascending order.
    pub(crate) fn add(&mut self, key: &[u8], body: &[u8]) {
        let is_restart = self.entries.is_multiple_of(RESTART);
        let shared = if is_restart { 0 } else { key.iter().zip(&self.last).take_while(|(a, b)| a == b).count() };
        if is_restart {
            self.restarts.push(u16::try_from(self.bytes.len()).expect("a block ends long before"));
        }
        put_varint(&mut self.bytes, shared as u64);
        put_varint(&mut self.bytes, (key.len() - shared) as u64);
        put_varint(&mut self.bytes, body.len() as u64);
        self.bytes.extend_from_slice(&key[shared..]);
        self.bytes.extend_from_slice(body);
        self.last.truncate(shared);
        self.last.extend_from_slice(&key[shared..]);
        self.entries += 1;
    }

    /// Ends the block, appends it to `out`, where it begins at `offset` of the table, and begins a new one. Returns its length.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>, table: TableId, offset: u64) -> usize {
        for restart in &self.restarts {
            self.bytes.extend_from_slice(&restart.to_le_bytes());
        }
        self.bytes.extend_from_slice(&(self.restarts.len() as u16).to_le_bytes());
        let crc = checksum(&self.bytes, table, offset);
        self.bytes.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&self.bytes);
        let len = self.bytes.len();
        self.bytes.clear();
        self.restarts.clear();
        self.entries = 0;
        len
    }
}

/// A checked block.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    bytes: Bytes,
    /// Where the entries end and the offsets begin.
    entries_end: usize,
    restarts: usize,
}

impl Block {
    /// Checks the block's checksum; its entries are checked as they are read.
    pub(crate) fn check(bytes: Bytes, table: TableId, offset: u64) -> Result<Self, BadPart> {
        let bad = |expected, found| Err(BadPart { offset, expected, found });
        let Some((contents, crc)) = bytes.split_last_chunk::<4>() else { return bad(0, 0) };
        let (expected, found) = (checksum(contents, table, offset), u32::from_le_bytes(*crc));
        if expected != found {
            return bad(expected, found);
        }
        Self::of_checked(bytes).ok_or(BadPart { offset, expected, found })
    }

    /// A block that was checked before.
    pub(crate) fn of_checked(bytes: Bytes) -> Option<Self> {
        let contents = &bytes[..bytes.len().checked_sub(4)?];
        let (rest, count) = contents.split_last_chunk::<2>()?;
        let restarts = usize::from(u16::from_le_bytes(*count));
        let entries_end = rest.len().checked_sub(2 * restarts)?;
        (restarts > 0).then_some(Self { bytes, entries_end, restarts })
    }

    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The last restart at or below a key, or the first one.
    fn restart_before(&self, key: &[u8]) -> Result<usize, Malformed> {
        let (mut low, mut high) = (0, self.restarts);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            let entry = self.entry(self.restart(middle))?;
            if entry.shared > 0 {
                return Err(Malformed);
            }
            match &self.bytes[entry.key_at..entry.body_at] <= key {
                true => low = middle,
                false => high = middle,
            }
        }
        Ok(self.restart(low))
    }

    /// The body of a key's entry. Puts no key together: how much of the wanted key the last one matched, and how much the next one shares with
    /// that, tell most of it.
    pub(crate) fn find(&self, key: &[u8]) -> Result<Option<Bytes>, Malformed> {
        let mut at = self.restart_before(key)?;
        let mut matched = 0;
        while at < self.entries_end {
            let entry = self.entry(at)?;
            at = entry.end;
            match entry.shared.cmp(&matched) {
                // It differs where the last one did, and lies below the key still.
                Ordering::Greater => continue,
                // It is greater than the last one where that matched.
                Ordering::Less => return Ok(None),
                Ordering::Equal => {}
            }
            let rest = &self.bytes[entry.key_at..entry.body_at];
            let wanted = key.get(matched..).ok_or(Malformed)?;
            let more = rest.iter().zip(wanted).take_while(|(a, b)| a == b).count();
            match (rest.get(more), wanted.get(more)) {
                (None, None) => return Ok(Some(self.bytes.slice(entry.body_at..entry.end))),
                (Some(a), Some(b)) if a > b => return Ok(None),
                (Some(_), None) => return Ok(None),
                (None, Some(_)) | (Some(_), Some(_)) => matched += more,
            }
        }
        Ok(None)
    }

    fn restart(&self, i: usize) -> usize {
        let at = self.entries_end + 2 * i;
        usize::from(u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]))
    }

    /// The entry at an offset: how much of the key it shares, the rest of the key, the body, and where the next entry begins.
    #[inline]
    fn entry(&self, at: usize) -> Result<RawEntry, Malformed> {
        let entries = &self.bytes[..self.entries_end];
        let mut rest = entries.get(at..).ok_or(Malformed)?;
        // Most often each length takes one byte, but for the body's, which takes one or two.
        if let [shared @ ..0x80, key_len @ ..0x80, low, high, ..] = *rest
            && (low < 0x80 || high < 0x80)
        {
            let (body_len, head_len) = match low {
                ..0x80 => (usize::from(low), 3),
                _ => (usize::from(low & 0x7f) | usize::from(high) << 7, 4),
            };
            let key_at = at + head_len;
            let body_at = key_at + usize::from(key_len);
            let end = body_at + body_len;
            let entry = RawEntry { shared: shared.into(), key_at, body_at, end };
            return if end <= self.entries_end { Ok(entry) } else { Err(Malformed) };
        }
        let mut number = || take_varint(&mut rest).and_then(|n| usize::try_from(n).ok()).ok_or(Malformed);
        let (shared, key_len, body_len) = (number()?, number()?, number()?);
        let key_at = self.entries_end - rest.len();
        let body_at = key_at.checked_add(key_len).ok_or(Malformed)?;
        let end = body_at.checked_add(body_len).filter(|end| *end <= self.entries_end).ok_or(Malformed)?;
        Ok(RawEntry { shared, key_at, body_at, end })
    }
}

#[derive(Clone, Copy)]
struct RawEntry {
    shared: usize,
    key_at: usize,
    body_at: usize,
    end: usize,
}

/// A place in a block.
pub(crate) struct BlockCursor {
    block: Block,
    key: Vec<u8>,
    body: std::ops::Range<usize>,
    next: usize,
    is_valid: bool,
}

impl BlockCursor {
    /// At the end of nothing.
    pub(crate) fn end() -> Self {
        let block = Block { bytes: Bytes::new(), entries_end: 0, restarts: 0 };
        Self { block, key: Vec::new(), body: 0..0, next: 0, is_valid: false }
    }

    /// At the first entry.
    pub(crate) fn first(block: Block) -> Result<Self, Malformed> {
        let mut cursor = Self { block, key: Vec::new(), body: 0..0, next: 0, is_valid: false };
        cursor.advance()?;
        Ok(cursor)
    }

    /// At the first entry whose key is at or above `key`, or at none.
    pub(crate) fn seek(block: Block, key: &[u8]) -> Result<Self, Malformed> {
        let next = block.restart_before(key)?;
        let mut cursor = Self { block, key: Vec::with_capacity(key.len() + 8), body: 0..0, next, is_valid: false };
        cursor.advance()?;
        while cursor.is_valid && *cursor.key < *key {
            cursor.advance()?;
        }
        Ok(cursor)
    }

    /// The key where the cursor stands, none at the end.
    pub(crate) fn key(&self) -> Option<&[u8]> {
        self.is_valid.then_some(&self.key)
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.block.bytes[self.body.clone()]
    }

    #[inline]
    pub(crate) fn advance(&mut self) -> Result<(), Malformed> {
        if self.next >= self.block.entries_end {
            self.is_valid = false;
            return Ok(());
        }
        let RawEntry { shared, key_at, body_at, end } = self.block.entry(self.next)?;
        if shared > self.key.len() {
            return Err(Malformed);
        }
        self.key.truncate(shared);
        self.key.extend_from_slice(&self.block.bytes[key_at..body_at]);
        self.body = body_at..end;
        self.next = end;
        self.is_valid = true;
        Ok(())
    }
}
