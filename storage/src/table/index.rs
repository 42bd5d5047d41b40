//! `SparseIndex`: which block a key is in, kept in memory.

use super::PREFIX_LEN;
use super::varint::{put_varint, take_varint};

/// For each block a separator, at or below its first key and above the key before, and where it lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SparseIndex {
    keys: Vec<u8>,
    /// Where each separator ends in `keys`.
    ends: Vec<u32>,
    /// Where each block begins in the file, and where the last one ends.
    offsets: Vec<u32>,
}

impl Default for SparseIndex {
    fn default() -> Self {
        Self { keys: Vec::new(), ends: Vec::new(), offsets: vec![0] }
    }
}

impl SparseIndex {
    /// Adds the next block. `last` is the key before it, empty for the first one.
    pub(crate) fn add(&mut self, last: &[u8], first: &[u8], len: usize) {
        let shared = first.iter().zip(last).take_while(|(a, b)| a == b).count();
        let len_of_separator = (shared + 1).max(PREFIX_LEN).min(first.len());
        self.push(&first[..len_of_separator], len);
    }

    fn push(&mut self, separator: &[u8], len: usize) {
        self.keys.extend_from_slice(separator);
        self.ends.push(self.keys.len() as u32);
        let end = self.offsets.last().expect("there is always one") + len as u32;
        self.offsets.push(end);
    }

    pub(crate) fn blocks(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn separator(&self, block: usize) -> &[u8] {
        let start = if block == 0 { 0 } else { self.ends[block - 1] as usize };
        &self.keys[start..self.ends[block] as usize]
    }

    /// The block that a key is in, if it is in any.
    #[inline]
    pub(crate) fn find(&self, key: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.blocks());
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match self.separator(middle) <= key {
                true => low = middle,
                false => high = middle,
            }
        }
        low
    }

    pub(crate) fn offset(&self, block: usize) -> u64 {
        self.offsets[block].into()
    }

    /// Where the last block ends.
    pub(crate) fn end(&self) -> u64 {
        self.offset(self.blocks())
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.keys.len() + 4 * self.ends.len());
        for block in 0..self.blocks() {
            let separator = self.separator(block);
            put_varint(&mut out, separator.len() as u64);
            out.extend_from_slice(separator);
            put_varint(&mut out, self.offset(block + 1) - self.offset(block));
        }
        out
    }

    /// None where the bytes make no sense.
    pub(crate) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut index = Self::default();
        let bytes = &mut bytes;
        while !bytes.is_empty() {
            let len = usize::try_from(take_varint(bytes)?).ok()?;
            let (separator, rest) = bytes.split_at_checked(len)?;
            *bytes = rest;
            let block_len = u32::try_from(take_varint(bytes)?).ok()?;
            let is_in_order = index.blocks() == 0 || index.separator(index.blocks() - 1) < separator;
            let fits = index.offsets.last()?.checked_add(block_len).is_some();
            if separator.len() < PREFIX_LEN || !is_in_order || !fits {
                return None;
            }
            index.push(separator, block_len as usize);
        }
        Some(index)
    }

    pub(crate) fn len_bytes(&self) -> usize {
        self.keys.len() + 4 * (self.ends.len() + self.offsets.len())
    }
}
