//! Push-pull of topologies: what a node does about the epoch and the topology that a peer shows it.

use dunlin_protocol::{ClusterId, Epoch, Topology};

use crate::topology_codec::{TopologyError, decode_topology};

/// What to do about a peer's epoch and topology.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub enum Exchange {
    /// Make this the own topology: it is newer.
    Adopt(Box<Topology>),
    /// Ask the peer for its topology: it names a newer epoch and did not send it.
    Ask,
    /// Send the peer the own topology: the peer's is older.
    Answer,
    /// Both have the same.
    Nothing,
}

/// A peer's topology that is refused.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The bytes cannot be read.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// Two clusters never merge.
    #[error("the topology belongs to cluster {theirs}, this node to cluster {own}")]
    OtherCluster {
        /// The peer's.
        theirs: ClusterId,
        /// This node's.
        own: ClusterId,
    },
    /// The bytes hold another epoch than the message names.
    #[error("the message names epoch {named} and holds epoch {held}")]
    Mislabelled {
        /// The message's.
        named: Epoch,
        /// The topology's.
        held: Epoch,
    },
    /// One epoch with two contents: somewhere a topology was made by hand, or two founders were given different lists.
    #[error("the topology of epoch {epoch} differs from this node's topology of the same epoch")]
    Conflict {
        /// The epoch.
        epoch: Epoch,
    },
    /// The number of partitions is fixed when a cluster is founded.
    #[error("the topology of epoch {epoch} has {theirs} partitions, this node's has {own}")]
    OtherPartitioning {
        /// The epoch of the peer's.
        epoch: Epoch,
        /// The peer's partitions.
        theirs: u32,
        /// This node's partitions.
        own: u32,
    },
}

/// Judges what a peer showed: its epoch and, unless `bytes` is empty, its topology. The own topology only ever gives way to a newer one of
/// the same cluster. An error changes nothing and is for the logs: the peer keeps what it has.
pub fn exchange(own: &Topology, epoch: Epoch, bytes: &[u8]) -> Result<Exchange, ExchangeError> {
    if bytes.is_empty() {
        return Ok(match epoch.cmp(&own.epoch) {
            std::cmp::Ordering::Greater => Exchange::Ask,
            std::cmp::Ordering::Less => Exchange::Answer,
            std::cmp::Ordering::Equal => Exchange::Nothing,
        });
    }
    let theirs = decode_topology(bytes)?;
    if theirs.cluster != own.cluster {
        return Err(ExchangeError::OtherCluster { theirs: theirs.cluster, own: own.cluster });
    }
    if theirs.epoch != epoch {
        return Err(ExchangeError::Mislabelled { named: epoch, held: theirs.epoch });
    }
    if theirs.partitioning != own.partitioning {
        let (theirs, own) = (theirs.partitioning.count(), own.partitioning.count());
        return Err(ExchangeError::OtherPartitioning { epoch, theirs, own });
    }
    match epoch.cmp(&own.epoch) {
        std::cmp::Ordering::Greater => Ok(Exchange::Adopt(Box::new(theirs))),
        std::cmp::Ordering::Less => Ok(Exchange::Answer),
        std::cmp::Ordering::Equal if theirs == *own => Ok(Exchange::Nothing),
        std::cmp::Ordering::Equal => Err(ExchangeError::Conflict { epoch }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::founding::tests::{founded, founders};
    use crate::topology_codec::encode_topology;
    use dunlin_protocol::Partitioning;
    use proptest::prelude::*;

    fn at_epoch(epoch: u64) -> Topology {
        Topology { epoch: Epoch(epoch), ..founded("exchange", 3) }
    }

    fn show(own: &Topology, theirs: &Topology) -> Result<Exchange, ExchangeError> {
        exchange(own, theirs.epoch, &encode_topology(theirs))
    }

    #[test]
    fn newer_epochs_win() {
        let (old, new) = (at_epoch(2), at_epoch(5));
        assert_eq!(show(&old, &new).expect("judged"), Exchange::Adopt(Box::new(new.clone())));
        assert_eq!(show(&new, &old).expect("judged"), Exchange::Answer);
        assert_eq!(show(&new, &new).expect("judged"), Exchange::Nothing);
    }

    #[test]
    fn epochs_alone_are_compared() {
        let own = at_epoch(4);
        assert_eq!(exchange(&own, Epoch(5), &[]).expect("judged"), Exchange::Ask);
        assert_eq!(exchange(&own, Epoch(4), &[]).expect("judged"), Exchange::Nothing);
        assert_eq!(exchange(&own, Epoch(0), &[]).expect("judged"), Exchange::Answer);
    }

    #[test]
    fn clusters_never_merge() {
        let own = at_epoch(4);
        for epoch in [1, 4, 9] {
            let other = Topology { epoch: Epoch(epoch), ..founded("another", 3) };
            assert!(matches!(show(&own, &other), Err(ExchangeError::OtherCluster { .. })));
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let own = at_epoch(4);
        let mut other = own.clone();
        other.members[0].address = "127.0.0.1:1".into();
        assert!(matches!(show(&own, &other), Err(ExchangeError::Conflict { epoch: Epoch(4) })));
        let newer = encode_topology(&at_epoch(5));
        assert!(matches!(exchange(&own, Epoch(6), &newer), Err(ExchangeError::Mislabelled { .. })));
        let mut finer = founders("exchange", 3);
        finer.partitioning = Partitioning::new(9).expect("in range");
        let finer = Topology { cluster: own.cluster, epoch: Epoch(5), ..finer.draft(3).expect("drafted") };
        assert!(matches!(show(&own, &finer), Err(ExchangeError::OtherPartitioning { theirs: 512, own: 64, .. })));
    }

    proptest! {
        #[test]
        fn garbage_is_never_adopted(epoch in any::<u64>(), bytes in prop::collection::vec(any::<u8>(), 1..100)) {
            prop_assert!(matches!(exchange(&at_epoch(1), Epoch(epoch), &bytes), Err(ExchangeError::Topology(_))));
        }
    }
}
