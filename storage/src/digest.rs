//! `PartitionDigest`: what two replicas of a partition compare to find out where they differ (Merkle, 1987; Demers et al., 1987).
//!
//! A register that holds a record, a tombstone too, **contributes** the first 16 bytes of the BLAKE3 hash of these bytes, its numbers little-endian:
//!
//! | bytes | field |
//! |---|---|
//! | 0..16 | the record's stamp |
//! | 16..32 | the register's ballot |
//! | 32.. | the key, without partition and keyspace |
//!
//! Promises and what is pending contribute nothing. A key's **leaf** is what the highest six bits say of the XXH3 hash, of 64 bits, of partition, keyspace and key as
//! [`table`](crate::table) orders them. A leaf's digest is the exclusive or of what its keys contribute, the partition's **root** that of its leaves, so that
//! a write changes both in place, and a caller adds the roots of any partitions up. Nodes compare these: none of this may change but with the protocol's version.

use std::fmt;
use std::ops::{BitXor, BitXorAssign};
use std::sync::Arc;

use dunlin_protocol::register::Register;
use dunlin_protocol::{Ballot, KeyspaceId, PartitionId, Stamp};

use crate::digests::Leaves;
use crate::engine::{Engine, KeyRef};
use crate::error::ReadError;
use crate::full_key::FullKey;
use crate::memtable::Prefix;
use crate::place::{Place, Position};
use crate::scan::{ScanRange, Visited};
use crate::table::PREFIX_LEN;

const LEAF_BITS: u32 = 6;
const STAMPS_LEN: usize = 32;
/// Contributions of keys up to about this length are hashed in one go.
const SHORT: usize = 192;

/// 128 bits that tell sets of records apart. Who may choose stamps and keys can make two sets alike: it finds mistakes, not forgeries.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Digest(u128);

impl Digest {
    /// Of no records.
    pub const NONE: Self = Self(0);

    /// The bytes, as they are sent and stored.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }

    /// What [`to_bytes`](Self::to_bytes) made the bytes of.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_le_bytes(bytes))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({:032x})", self.0)
    }
}

impl BitXor for Digest {
    type Output = Self;

    fn bitxor(self, other: Self) -> Self {
        Self(self.0 ^ other.0)
    }
}

impl BitXorAssign for Digest {
    fn bitxor_assign(&mut self, other: Self) {
        self.0 ^= other.0;
    }
}

/// One of a partition's [`LEAVES`](Self::LEAVES) shares of keys.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Leaf(u8);

impl Leaf {
    /// How many a partition has.
    pub const LEAVES: usize = 1 << LEAF_BITS;

    /// The one with this number, counted from zero.
    pub fn new(number: u8) -> Option<Self> {
        (usize::from(number) < Self::LEAVES).then_some(Self(number))
    }

    /// The one that a key belongs to.
    pub fn of(key: KeyRef<'_>) -> Self {
        Self::of_hash(FullKey::new(key).hash)
    }

    /// From the hash of a whole key.
    #[inline]
    pub(crate) fn of_hash(hash: u64) -> Self {
        Self((hash >> (u64::BITS - LEAF_BITS)) as u8)
    }

    /// Its number, counted from zero.
    pub fn number(self) -> u8 {
        self.0
    }
}

/// What a partition holds of a keyspace, in short.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionDigest {
    leaves: Arc<Leaves>,
    position: Position,
}

impl PartitionDigest {
    /// Of all records.
    pub fn root(&self) -> Digest {
        self.leaves.root
    }

    /// Of each leaf's records.
    pub fn leaves(&self) -> &[Digest; Leaf::LEAVES] {
        &self.leaves.leaves
    }

    /// How many records there are, tombstones included.
    pub fn records(&self) -> u64 {
        self.leaves.records
    }

    /// What was appended to the log up to here is in it; it may be shown once [`Engine::durable_upto`] has reached this.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The leaves in which the other's records differ.
    pub fn differing<'a>(&'a self, other: &'a [Digest; Leaf::LEAVES]) -> impl Iterator<Item = Leaf> + 'a {
        let differ = |number: &u8| self.leaves()[usize::from(*number)] != other[usize::from(*number)];
        (0..Leaf::LEAVES as u8).filter(differ).map(Leaf)
    }
}

impl Engine {
    /// The digest of what a partition holds of a keyspace now. Does no I/O.
    pub fn digest(&self, keyspace: KeyspaceId, partition: PartitionId) -> PartitionDigest {
        let leaves = self.memtable.lock(partition).digests.get(&prefix(keyspace, partition));
        PartitionDigest { leaves, position: self.end() }
    }

    /// The roots of partitions that hold something of a keyspace, from one partition to another, inclusive; and the position that goes with them, as
    /// [`PartitionDigest::position`]. Does no I/O.
    pub fn digest_roots(
        &self,
        keyspace: KeyspaceId,
        first: PartitionId,
        last: PartitionId,
    ) -> (Vec<(PartitionId, Digest)>, Position) {
        let root = |partition| {
            let root = self.memtable.lock(partition).digests.root(&prefix(keyspace, partition))?;
            Some((partition, root))
        };
        let roots = (first.0..=last.0).map(PartitionId).filter_map(root).collect();
        (roots, self.end())
    }

    /// Like [`scan_with`](Self::scan_with), of those keys only that contribute to a leaf. Looks at all of the range: who wants to stop in between scans with a
    /// limit and asks [`Visited::leaf`].
    ///
    /// # Errors
    /// As for a scan.
    pub fn scan_leaf(
        &self,
        leaf: Leaf,
        range: ScanRange<'_>,
        limit: usize,
        visit: &mut dyn FnMut(&Visited<'_>) -> bool,
    ) -> Result<bool, ReadError> {
        let mut left = limit;
        self.scan_with(range, usize::MAX, &mut |visited| {
            if visited.entry.register.record.is_none() || visited.leaf() != leaf {
                return true;
            }
            if left == 0 {
                return false;
            }
            left -= 1;
            visit(visited)
        })
    }
}

fn prefix(keyspace: KeyspaceId, partition: PartitionId) -> Prefix {
    let key = KeyRef { partition, keyspace, key: b"" };
    *crate::table::key(key).first_chunk().expect("partition and keyspace")
}

/// The version of a register that its partition's digest tells of.
pub(crate) fn version(register: &Register<Place>) -> Option<(Stamp, Ballot)> {
    register.record.map(|held| (held.head.stamp, register.ballot))
}

/// What a register of this version contributes.
pub(crate) fn contribution(full_key: &[u8], (stamp, ballot): (Stamp, Ballot)) -> Digest {
    let key = full_key.get(PREFIX_LEN..).unwrap_or_default();
    let mut short = [0; SHORT];
    short[..16].copy_from_slice(&stamp.to_bits().to_le_bytes());
    short[16..STAMPS_LEN].copy_from_slice(&ballot.to_bits().to_le_bytes());
    let hash = match short.get_mut(STAMPS_LEN..STAMPS_LEN + key.len()) {
        Some(to) => {
            to.copy_from_slice(key);
            blake3::hash(&short[..STAMPS_LEN + key.len()])
        }
        None => {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&short[..STAMPS_LEN]);
            hasher.update(key);
            hasher.finalize()
        }
    };
    let [first, ..] = hash.as_bytes().as_chunks::<16>().0 else { return Digest::NONE };
    Digest::from_bytes(*first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin_protocol::Millis;

    /// These numbers are compared between nodes: they are the same in every release.
    #[test]
    fn contributions_and_leaves_never_change() {
        let key = |partition: u16, key: &'static [u8]| KeyRef {
            partition: PartitionId(partition),
            keyspace: KeyspaceId(1),
            key,
        };
        let contributed = |at: KeyRef<'_>, stamp, ballot| contribution(FullKey::new(at).bytes(), (stamp, ballot));
        let stamp = Stamp::new(Millis(1_760_000_000_000), 3, 9);
        let ballot = Stamp::new(Millis(1_760_000_000_001), 0, 4);
        let long: &[u8] = &[7; 4096];
        let expected = [
            (key(1, b"a"), Stamp::ZERO, GOLDEN[0]),
            (key(1, b"user:1234"), Stamp::ZERO, GOLDEN[1]),
            (key(4095, b"user:1234"), ballot, GOLDEN[2]),
            (key(7, long), ballot, GOLDEN[3]),
        ];
        for (at, ballot, (leaf, hex)) in expected {
            let found = contributed(at, stamp, ballot).to_bytes().map(|byte| format!("{byte:02x}")).concat();
            assert_eq!((Leaf::of(at).number(), &*found), (leaf, hex));
        }
        // What is hashed in one go and what is not is hashed alike.
        for len in SHORT - STAMPS_LEN - 2..SHORT - STAMPS_LEN + 3 {
            let full =
                crate::table::key(KeyRef { partition: PartitionId(1), keyspace: KeyspaceId(1), key: &long[..len] });
            let mut bytes = stamp.to_bits().to_le_bytes().to_vec();
            bytes.extend_from_slice(&ballot.to_bits().to_le_bytes());
            bytes.extend_from_slice(&long[..len]);
            let hash = blake3::hash(&bytes);
            assert_eq!(contribution(&full, (stamp, ballot)).to_bytes(), hash.as_bytes()[..16]);
        }
    }

    /// Leaf and contribution, reckoned with the hash functions' own reference implementations.
    const GOLDEN: [(u8, &str); 4] = [
        (50, "685023832d8e69ca331b8dbaa3ad89f0"),
        (37, "6f232851e226e883e0d092df9ce6f68d"),
        (31, "87747baa0ce1cbc1d08f58c7579e7842"),
        (7, "5d2beca46c09551a23ff1c1ba37d9ac8"),
    ];

    #[test]
    fn leaves_have_numbers_below_their_count() {
        assert_eq!(Leaf::new(63).map(Leaf::number), Some(63));
        assert_eq!(Leaf::new(64), None);
    }
}
