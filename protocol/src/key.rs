//! `Key`, and the way from a key to its partition.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::{KeyspaceId, PartitionId};

/// 1 to [`Key::MAX_LEN`] bytes, any bytes. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Bytes);

/// Bytes that are no key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyError {
    /// No bytes at all.
    #[error("a key has at least one byte")]
    Empty,
    /// More than [`Key::MAX_LEN`] bytes.
    #[error("a key has at most {} bytes, not {len}", Key::MAX_LEN)]
    TooLong {
        /// How many there were.
        len: usize,
    },
}

impl Key {
    /// The longest key, in bytes.
    pub const MAX_LEN: usize = 4096;

    /// These bytes as a key.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, KeyError> {
        let bytes = bytes.into();
        match bytes.len() {
            0 => Err(KeyError::Empty),
            len if len > Self::MAX_LEN => Err(KeyError::TooLong { len }),
            _ => Ok(Self(bytes)),
        }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, shared.
    pub fn to_bytes(&self) -> Bytes {
        self.0.clone()
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes: Vec<u8> = serde_bytes::deserialize(deserializer)?;
        Self::new(bytes).map_err(serde::de::Error::custom)
    }
}

/// How a cluster cuts its hash space: `2^bits` equal partitions, 6 to 16 bits, fixed when the cluster is founded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Partitioning(u8);

/// A number of partition bits outside 6 to 16.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a cluster has 2^6 to 2^16 partitions, not 2^{0}")]
pub struct PartitioningError(u8);

impl Partitioning {
    /// 4,096 partitions.
    pub const DEFAULT: Self = Self(12);

    /// `2^bits` partitions.
    pub const fn new(bits: u8) -> Result<Self, PartitioningError> {
        if bits < 6 || bits > 16 { Err(PartitioningError(bits)) } else { Ok(Self(bits)) }
    }

    /// How many partitions there are.
    pub const fn count(self) -> u32 {
        1 << self.0
    }

    /// Every partition, in order.
    pub fn all(self) -> impl DoubleEndedIterator<Item = PartitionId> + Clone {
        (0..=u16::MAX >> (16 - self.0)).map(PartitionId)
    }

    /// The partition that holds `partition_key` (the whole key, or its prefix in a keyspace partitioned by prefix): the top bits of
    /// `first 8 bytes of BLAKE3(keyspace id as 4 bytes little-endian, partition key)`, read big-endian.
    pub fn partition(self, keyspace: KeyspaceId, partition_key: &[u8]) -> PartitionId {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&keyspace.0.to_le_bytes()).update(partition_key);
        let hash = hasher.finalize();
        let top = u16::from_be_bytes([hash.as_bytes()[0], hash.as_bytes()[1]]);
        PartitionId(top >> (16 - self.0))
    }
}

impl TryFrom<u8> for Partitioning {
    type Error = PartitioningError;
    fn try_from(bits: u8) -> Result<Self, PartitioningError> {
        Self::new(bits)
    }
}

impl From<Partitioning> for u8 {
    fn from(p: Partitioning) -> u8 {
        p.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_bounds() {
        assert_eq!(Key::new(""), Err(KeyError::Empty));
        assert!(Key::new(vec![0xff; Key::MAX_LEN]).is_ok());
        assert_eq!(Key::new(vec![0; Key::MAX_LEN + 1]), Err(KeyError::TooLong { len: 4097 }));
    }

    #[test]
    fn partitions_are_the_same_for_ever() {
        let six = Partitioning::new(6).expect("in range");
        let sixteen = Partitioning::new(16).expect("in range");
        let golden: Vec<_> = [&b"a"[..], b"user:1", b"\x00\xff"]
            .into_iter()
            .map(|k| (six.partition(KeyspaceId::DEFAULT, k).0, sixteen.partition(KeyspaceId::DEFAULT, k).0))
            .collect();
        assert_eq!(golden, GOLDEN);
        assert_eq!(sixteen.all().count(), 65536);
        assert_eq!(six.all().last(), Some(PartitionId(63)));
        assert!(Partitioning::new(5).is_err() && Partitioning::new(17).is_err());
    }

    const GOLDEN: [(u16, u16); 3] = [(6, 6350), (41, 42401), (26, 27304)];
}
