//! `Placement`: one epoch's topology, made ready for the path of a request.

use std::sync::Arc;

use dunlin_protocol::{Epoch, Key, KeyspaceId, NodeId, PartitionId, PreferenceList, Topology};

/// The preference lists of one epoch. Immutable: a new epoch gets a new one, and whoever works with this one goes on with it.
#[derive(Clone, Debug)]
pub struct Placement {
    topology: Arc<Topology>,
    /// One row for each assignment, one list for each partition.
    lists: Vec<Vec<PreferenceList>>,
}

impl Placement {
    /// The placement of a topology that has been validated.
    ///
    /// # Panics
    /// On a topology that [contradicts itself](Topology::validate): what comes from outside is validated when it is decoded.
    pub fn new(topology: Arc<Topology>) -> Self {
        topology.validate().expect("a topology is validated before it is adopted");
        let list = |members: &[u16]| {
            PreferenceList::new(members.iter().map(|m| topology.members[usize::from(*m)].id).collect())
        };
        let lists = topology
            .assignments
            .iter()
            .map(|a| a.members.chunks_exact(usize::from(a.replicas)).map(list).collect())
            .collect();
        Self { topology, lists }
    }

    /// The epoch.
    pub fn epoch(&self) -> Epoch {
        self.topology.epoch
    }

    /// The topology.
    pub fn topology(&self) -> &Arc<Topology> {
        &self.topology
    }

    /// The partition of a key. (Every keyspace is partitioned by the whole key so far.)
    pub fn partition_of(&self, keyspace: KeyspaceId, key: &Key) -> PartitionId {
        self.topology.partitioning.partition(keyspace, key.as_bytes())
    }

    /// Who holds a partition, the most preferred first. None: no such keyspace or partition.
    pub fn preference_list(&self, keyspace: KeyspaceId, partition: PartitionId) -> Option<&PreferenceList> {
        let assignment = self.topology.keyspace(keyspace)?.assignment;
        self.lists[usize::from(assignment)].get(usize::from(partition.0))
    }

    /// Whether a node holds a partition; false where there is no such keyspace or partition.
    pub fn is_replica(&self, node: NodeId, keyspace: KeyspaceId, partition: PartitionId) -> bool {
        self.preference_list(keyspace, partition).is_some_and(|list| list.number_of(node).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::founding::tests::founded;

    #[test]
    fn placement_says_what_the_topology_says() {
        let topology = Arc::new(founded("placement", 5));
        let placement = Placement::new(topology.clone());
        assert_eq!(placement.epoch(), Epoch(1));
        for keyspace in [KeyspaceId::SYSTEM, KeyspaceId::DEFAULT] {
            for partition in topology.partitioning.all() {
                let list = placement.preference_list(keyspace, partition).expect("placed");
                let expected: Vec<_> = topology.replicas(keyspace, partition).expect("placed").map(|m| m.id).collect();
                assert_eq!(list.nodes, expected);
                assert_eq!(list.quorums.all().len(), 3);
                for node in 1..=5 {
                    let node = NodeId(node);
                    assert_eq!(placement.is_replica(node, keyspace, partition), expected.contains(&node));
                }
            }
        }
    }

    #[test]
    fn what_does_not_exist_is_nowhere() {
        let placement = Placement::new(Arc::new(founded("placement", 3)));
        assert_eq!(placement.preference_list(KeyspaceId(9), PartitionId(0)), None);
        assert_eq!(placement.preference_list(KeyspaceId::DEFAULT, PartitionId(64)), None);
        assert!(!placement.is_replica(NodeId(1), KeyspaceId::DEFAULT, PartitionId(u16::MAX)));
    }

    #[test]
    fn keys_go_to_the_partition_of_their_hash() {
        let placement = Placement::new(Arc::new(founded("placement", 3)));
        let key = Key::new("user:1").expect("a key");
        let partition = placement.topology().partitioning.partition(KeyspaceId::DEFAULT, b"user:1");
        assert_eq!(placement.partition_of(KeyspaceId::DEFAULT, &key), partition);
    }
}
