//! `FullKey`: a key as the index orders it, and its hash, made once an operation.

use crate::engine::KeyRef;
use crate::table::{PREFIX_LEN, hash, put_key};

const SHORT: usize = 128;

/// A key as the index orders it; short ones need no allocation.
pub(crate) struct FullKey {
    short: [u8; SHORT],
    len: usize,
    long: Vec<u8>,
    pub(crate) hash: u64,
}

impl FullKey {
    pub(crate) fn new(key: KeyRef<'_>) -> Self {
        let mut full = Self { short: [0; SHORT], len: PREFIX_LEN + key.key.len(), long: Vec::new(), hash: 0 };
        if full.len <= SHORT {
            full.short[..2].copy_from_slice(&key.partition.0.to_be_bytes());
            full.short[2..PREFIX_LEN].copy_from_slice(&key.keyspace.0.to_be_bytes());
            full.short[PREFIX_LEN..full.len].copy_from_slice(key.key);
        } else {
            put_key(&mut full.long, key);
        }
        full.hash = hash(full.bytes());
        full
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        if self.len <= SHORT { &self.short[..self.len] } else { &self.long }
    }
}
