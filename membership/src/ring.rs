//! `Ring`: the order of members for each partition, by consistent hashing.

use std::hash::{BuildHasher, Hash, Hasher};

use consistent_hash_ring::{Ring as HashRing, RingBuilder};
use dunlin_protocol::{NodeId, PartitionId};

/// Members on a hash ring, each with as many virtual nodes as its weight. The order that it gives a partition depends on nothing but the ids
/// and weights and is the same in every process and release.
#[derive(Clone)]
pub struct Ring(HashRing<RingNode, FixedHash>);

impl Ring {
    /// A ring of these nodes and weights. A node of weight 0 is not on it; of a node that is named twice the last weight counts.
    pub fn new(nodes: impl IntoIterator<Item = (NodeId, u16)>) -> Self {
        // The ring crate spins for ever over a node without virtual nodes, so such a node never gets there.
        let nodes = nodes.into_iter().filter(|(_, weight)| *weight > 0);
        let nodes = nodes.map(|(id, weight)| (RingNode(id), usize::from(weight)));
        Self(RingBuilder::new(FixedHash).weighted_nodes_iter(nodes).build())
    }

    /// How many nodes are on it.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every node once, the most preferred first. The first few are cheap, the last of many are not.
    ///
    /// It is no walk along the ring: each further node is found by hashing once more. So an order belongs to its partition number, and a
    /// neighbouring partition's order has nothing to do with it.
    pub fn order(&self, partition: PartitionId) -> impl Iterator<Item = NodeId> + '_ {
        self.0.replicas(RingKey(partition)).map(|node| node.0)
    }
}

/// A node as the ring hashes it: a fixed sequence of bytes, because the standard library does not promise what its own types write.
#[derive(Clone, Copy, PartialEq, Eq)]
struct RingNode(NodeId);

/// A partition as the ring hashes it. Its tag keeps it from ever being hashed like a node of the same number.
struct RingKey(PartitionId);

const NODE: u8 = 1;
const PARTITION: u8 = 2;

impl Hash for RingNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&[NODE]);
        state.write(&self.0.0.to_le_bytes());
    }
}

impl Hash for RingKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&[PARTITION]);
        state.write(&self.0.0.to_le_bytes());
    }
}

#[derive(Clone, Copy)]
struct FixedHash;

impl BuildHasher for FixedHash {
    type Hasher = FixedHasher;
    fn build_hasher(&self) -> FixedHasher {
        FixedHasher { bytes: [0; 16], len: 0 }
    }
}

/// The first 8 bytes of BLAKE3 of what was written, little-endian. Only the few bytes of a node, of a partition or of an earlier hash come.
struct FixedHasher {
    bytes: [u8; 16],
    len: usize,
}

impl Hasher for FixedHasher {
    fn write(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        assert!(end <= self.bytes.len(), "the ring hashes nodes, partitions and hashes only");
        self.bytes[self.len..end].copy_from_slice(bytes);
        self.len = end;
    }

    // The ring hashes its own 64-bit hashes again; without this their bytes would be the machine's.
    fn write_u64(&mut self, hash: u64) {
        self.write(&hash.to_le_bytes());
    }

    fn finish(&self) -> u64 {
        let hash = blake3::hash(&self.bytes[..self.len]);
        let mut first = [0; 8];
        first.copy_from_slice(&hash.as_bytes()[..8]);
        u64::from_le_bytes(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders(ring: &Ring, partitions: &[u16]) -> Vec<Vec<u64>> {
        partitions.iter().map(|p| ring.order(PartitionId(*p)).map(|n| n.0).collect()).collect()
    }

    #[test]
    fn orders_are_the_same_for_ever() {
        let ring = Ring::new([1, 2, 3, 77, u64::MAX - 1].map(|id| (NodeId(id), 64)));
        assert_eq!(orders(&ring, &[0, 1, 255, 65535]), GOLDEN);
    }

    #[test]
    fn order_does_not_depend_on_how_nodes_were_named() {
        let some = Ring::new([(NodeId(3), 8), (NodeId(1), 16), (NodeId(2), 4)]);
        let others = Ring::new([(NodeId(2), 4), (NodeId(3), 8), (NodeId(1), 16)]);
        let all: Vec<u16> = (0..500).collect();
        assert_eq!(orders(&some, &all), orders(&others, &all));
    }

    #[test]
    fn every_node_of_weight_comes_once() {
        let ring = Ring::new((1..=9).map(|id| (NodeId(id), id as u16 - 1)));
        assert_eq!(ring.len(), 8);
        for partition in 0..300 {
            let mut order: Vec<_> = ring.order(PartitionId(partition)).map(|n| n.0).collect();
            order.sort_unstable();
            assert_eq!(order, (2..=9).collect::<Vec<_>>());
        }
    }

    #[test]
    fn ring_without_weight_is_empty() {
        let ring = Ring::new([(NodeId(1), 0)]);
        assert!(ring.is_empty());
        assert_eq!(ring.order(PartitionId(0)).next(), None);
    }

    const LAST: u64 = u64::MAX - 1;
    const GOLDEN: [[u64; 5]; 4] = [[1, 2, 3, 77, LAST], [77, 2, LAST, 3, 1], [1, 3, 2, 77, LAST], [LAST, 77, 1, 2, 3]];
}
