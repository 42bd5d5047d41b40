//! `Route`: which nodes an operation asks, in which order.

use dunlin_protocol::{Epoch, KeyspaceId, Level, NodeId, Operation, PartitionId, Topology};

/// Nodes that hold no replica and are asked when no replica can be reached; any node serves any request.
const MAX_OTHERS: usize = 4;

/// The nodes to ask for one partition, in order of preference, as of one epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// Of this topology.
    pub epoch: Epoch,
    /// Replicas first.
    pub nodes: Vec<NodeId>,
}

impl Route {
    /// The way of an operation. Serial operations go to the first replica, where those of one key queue up together; plain ones take the
    /// replicas in turn, begun at the `turn`-th.
    pub fn of(operation: &Operation, topology: &Topology, turn: usize) -> Self {
        let partition = topology.partitioning.partition(operation.keyspace, operation.key.as_bytes());
        let turn = if is_serial(operation, topology) { 0 } else { turn };
        Self::to_partition(topology, operation.keyspace, partition, turn)
    }

    /// The way to a partition's replicas, begun at the `turn`-th, and then to others.
    pub fn to_partition(topology: &Topology, keyspace: KeyspaceId, partition: PartitionId, turn: usize) -> Self {
        let mut nodes: Vec<_> = topology.replicas(keyspace, partition).into_iter().flatten().map(|m| m.id).collect();
        let replicas = nodes.len();
        if replicas > 0 {
            nodes.rotate_left(turn % replicas);
        }
        let others = topology.members.iter().map(|m| m.id);
        let start = usize::from(partition.0).wrapping_add(turn) % topology.members.len();
        let others: Vec<_> =
            others.clone().skip(start).chain(others.take(start)).filter(|n| !nodes.contains(n)).collect();
        nodes.extend(others.into_iter().take(MAX_OTHERS.max(replicas)));
        Self { epoch: topology.epoch, nodes }
    }
}

fn is_serial(operation: &Operation, topology: &Topology) -> bool {
    let default = || {
        let keyspace = topology.keyspace(operation.keyspace)?;
        Some(if operation.action.is_write() { keyspace.write_level } else { keyspace.read_level })
    };
    operation.action.is_conditional() || operation.level.or_else(default) == Some(Level::Serial)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Attempts;
    use dunlin_protocol::{Action, Assignment, ClusterId, DataId, Key, Keyspace, Member, Partitioning};

    /// Five members; partition p lies on the members p, p + 1 and p + 2, modulo five.
    fn topology() -> Topology {
        let partitioning = Partitioning::new(6).expect("in range");
        let members = (1..=5).map(|id| Member {
            id: NodeId(id),
            address: format!("127.0.0.1:{id}"),
            region: "r".to_owned(),
            zone: "z".to_owned(),
            weight: 64,
            data: DataId(7),
        });
        let keyspace = Keyspace {
            id: KeyspaceId::DEFAULT,
            name: "default".to_owned(),
            assignment: 0,
            read_level: Level::Quorum,
            write_level: Level::Quorum,
        };
        let places = partitioning.all().flat_map(|p| [p.0 % 5, (p.0 + 1) % 5, (p.0 + 2) % 5]).collect();
        let topology = Topology {
            cluster: ClusterId(1),
            epoch: Epoch(3),
            partitioning,
            members: members.collect(),
            keyspaces: vec![keyspace],
            assignments: vec![Assignment { replicas: 3, members: places, algorithm: 1 }],
        };
        topology.validate().expect("a valid topology");
        topology
    }

    #[test]
    fn replicas_come_first_and_plain_operations_take_turns() {
        let topology = topology();
        let mut operation =
            Attempts::operation_on(KeyspaceId::DEFAULT, Key::new("a").expect("a key"), Action::Read { value: true });
        let partition = topology.partitioning.partition(KeyspaceId::DEFAULT, b"a");
        let replicas: Vec<_> =
            topology.replicas(KeyspaceId::DEFAULT, partition).expect("placed").map(|m| m.id).collect();
        for turn in 0..7 {
            let route = Route::of(&operation, &topology, turn);
            assert_eq!(route.nodes[0], replicas[turn % 3]);
            assert_eq!((route.nodes.len(), route.epoch), (5, Epoch(3)));
            assert!(replicas.iter().all(|r| route.nodes[..3].contains(r)));
        }
        operation.level = Some(Level::Serial);
        for turn in 0..7 {
            assert_eq!(Route::of(&operation, &topology, turn).nodes[..3], replicas[..]);
        }
        operation.level = None;
        operation.action = Action::Outcome;
        assert_eq!(Route::of(&operation, &topology, 1).nodes[..3], replicas[..]);
    }

    #[test]
    fn an_unknown_keyspace_is_asked_of_anybody() {
        let topology = topology();
        let route = Route::to_partition(&topology, KeyspaceId(99), PartitionId(7), 3);
        assert_eq!(route.nodes.len(), MAX_OTHERS);
    }
}
