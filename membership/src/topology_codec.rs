//! Topologies as bytes: for push-pull and for the disk.

use bytes::{BufMut, Bytes, BytesMut};
use dunlin_protocol::{InvalidTopology, Topology};
use serde::Deserialize;

/// The most bytes that an encoded topology has; half of the largest frame.
pub const MAX_TOPOLOGY_BYTES: usize = 2 << 20;

/// Bytes that are no topology to adopt.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// More than [`MAX_TOPOLOGY_BYTES`].
    #[error("a topology has at most {MAX_TOPOLOGY_BYTES} bytes, not {len}")]
    TooLarge {
        /// How many there are.
        len: usize,
    },
    /// No topology at all.
    #[error("the bytes are no topology: {0}")]
    Malformed(#[from] rmp_serde::decode::Error),
    /// Bytes behind the topology.
    #[error("a topology has {trailing} bytes too many")]
    Trailing {
        /// How many.
        trailing: usize,
    },
    /// It contradicts itself.
    #[error(transparent)]
    Invalid(#[from] InvalidTopology),
}

/// A topology as MessagePack with named fields, so that a later version can add some: an older one skips them.
pub fn encode_topology(topology: &Topology) -> Bytes {
    let mut out = BytesMut::new();
    // Writing to memory cannot fail, and no part of a topology refuses to be serialized.
    rmp_serde::encode::write_named(&mut (&mut out).writer(), topology).expect("memory takes every topology");
    out.freeze()
}

/// The topology in these bytes, to their last one, validated. Any bytes may come.
pub fn decode_topology(bytes: &[u8]) -> Result<Topology, TopologyError> {
    if bytes.len() > MAX_TOPOLOGY_BYTES {
        return Err(TopologyError::TooLarge { len: bytes.len() });
    }
    let mut input = bytes;
    let topology = {
        let mut deserializer = rmp_serde::Deserializer::new(&mut input);
        // A topology is five levels deep; garbage must not exhaust the stack.
        deserializer.set_max_depth(16);
        Topology::deserialize(&mut deserializer)?
    };
    if !input.is_empty() {
        return Err(TopologyError::Trailing { trailing: input.len() });
    }
    topology.validate()?;
    Ok(topology)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::founding::tests::founded;
    use proptest::prelude::*;

    fn topology() -> Topology {
        founded("codec", 5)
    }

    #[test]
    fn topologies_come_back() {
        let topology = topology();
        let bytes = encode_topology(&topology);
        assert_eq!(decode_topology(&bytes).expect("decoded"), topology);
        // The names are there, for versions that know more or fewer of them.
        assert!(bytes.windows(12).any(|w| w == b"partitioning"));
    }

    #[test]
    fn what_is_unknown_is_skipped() {
        #[derive(serde::Serialize)]
        struct Later {
            #[serde(flatten)]
            topology: Topology,
            comes_later: Vec<u8>,
        }
        let later = Later { topology: topology(), comes_later: vec![1, 2, 3] };
        let bytes = rmp_serde::to_vec_named(&later).expect("encoded");
        assert_eq!(decode_topology(&bytes).expect("decoded"), later.topology);
    }

    #[test]
    fn bad_bytes_are_refused() {
        let good = encode_topology(&topology());
        let mut longer = good.to_vec();
        longer.push(0xc0);
        assert!(matches!(decode_topology(&longer), Err(TopologyError::Trailing { trailing: 1 })));
        assert!(matches!(decode_topology(&good[..good.len() - 1]), Err(TopologyError::Malformed(_))));
        assert!(matches!(decode_topology(&[]), Err(TopologyError::Malformed(_))));
        let huge = vec![0x91; MAX_TOPOLOGY_BYTES + 1];
        assert!(matches!(decode_topology(&huge), Err(TopologyError::TooLarge { .. })));
        assert!(matches!(decode_topology(&huge[1..]), Err(TopologyError::Malformed(_))));
        let mut contradictory = topology();
        contradictory.assignments[0].members[0] = 5;
        assert!(matches!(decode_topology(&encode_topology(&contradictory)), Err(TopologyError::Invalid(_))));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode_topology(&bytes).is_err());
        }

        #[test]
        fn damage_gives_an_error_or_a_valid_topology(at in any::<prop::sample::Index>(), with in any::<u8>()) {
            let mut bytes = encode_topology(&topology()).to_vec();
            let at = at.index(bytes.len());
            bytes[at] = with;
            if let Ok(topology) = decode_topology(&bytes) {
                prop_assert_eq!(topology.validate(), Ok(()));
                let placement = crate::Placement::new(std::sync::Arc::new(topology));
                prop_assert!(placement.epoch().0 > 0);
            }
        }
    }
}
