//! `Topology`: who the members are and which of them hold which partition, as data, under a number that only rises (PROTOCOL.md 2.4).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::id::{ClusterId, DataId, Epoch, KeyspaceId, NodeId, PartitionId};
use crate::key::Partitioning;
use crate::level::Level;
use crate::quorums::{MAX_REPLICAS, Quorums};

/// A member of the cluster.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Member {
    /// Its id, for as long as its data directory lives.
    pub id: NodeId,
    /// Where it listens, `host:port`.
    pub address: String,
    /// Its region.
    pub region: String,
    /// Its zone within the region.
    pub zone: String,
    /// How many virtual nodes it has on the ring: its share of the partitions.
    pub weight: u16,
    /// Its data directory: a node that comes with another one is not this member.
    pub data: DataId,
}

/// A keyspace as the topology carries it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Keyspace {
    /// Never reused.
    pub id: KeyspaceId,
    /// Its name, unique.
    pub name: String,
    /// Which of the topology's assignments places its partitions.
    pub assignment: u16,
    /// The level of reads that name none.
    pub read_level: Level,
    /// The level of writes that name none.
    pub write_level: Level,
}

/// Which members hold which partition, for one replication rule.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Assignment {
    /// Replicas of each partition: the factor, or the number of members where there are fewer.
    pub replicas: u8,
    /// For each partition in order, `replicas` indices into [`Topology::members`], the most preferred first.
    pub members: Vec<u16>,
    /// The version of the algorithm that proposed it.
    pub algorithm: u16,
}

/// One epoch of the cluster. Immutable; the next one has another number.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Topology {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its number, from 1. 0: the founders have not all agreed to it yet, and nothing is served by it.
    pub epoch: Epoch,
    /// Fixed when the cluster was founded.
    #[serde(with = "partitioning_bits")]
    pub partitioning: Partitioning,
    /// In order of id.
    pub members: Vec<Member>,
    /// In order of id.
    pub keyspaces: Vec<Keyspace>,
    /// One for each replication rule in use.
    pub assignments: Vec<Assignment>,
}

mod partitioning_bits {
    use super::Partitioning;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::hash::{Hash, Hasher};

    pub(super) fn serialize<S: Serializer>(p: &Partitioning, s: S) -> Result<S::Ok, S::Error> {
        u8::from(*p).serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Partitioning, D::Error> {
        Partitioning::new(u8::deserialize(d)?).map_err(serde::de::Error::custom)
    }

    impl Hash for Partitioning {
        fn hash<H: Hasher>(&self, state: &mut H) {
            self.count().hash(state);
        }
    }
}

/// The replicas of one partition, the most preferred first. Replica numbers in sets and machines are places in this list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PreferenceList {
    /// The members.
    pub nodes: Vec<NodeId>,
    /// Which sets of them are quorums.
    pub quorums: Quorums,
}

impl PreferenceList {
    /// A list with majority quorums.
    pub fn new(nodes: Vec<NodeId>) -> Self {
        let quorums = Quorums::majority(nodes.len());
        Self { nodes, quorums }
    }

    /// The replica number of a node.
    pub fn number_of(&self, node: NodeId) -> Option<usize> {
        self.nodes.iter().position(|n| *n == node)
    }
}

/// A topology that contradicts itself: never adopted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the topology of epoch {epoch} is not valid: {reason}")]
pub struct InvalidTopology {
    /// Its epoch.
    pub epoch: Epoch,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl Topology {
    /// Whether its founders have agreed to it.
    pub fn is_founded(&self) -> bool {
        self.epoch > Epoch(0)
    }

    /// Checks what every receiver relies on; a topology that came from outside is checked before anything else is asked of it.
    pub fn validate(&self) -> Result<(), InvalidTopology> {
        let fail = |reason| Err(InvalidTopology { epoch: self.epoch, reason });
        if self.is_founded() && self.members.iter().any(|m| m.data == DataId::UNKNOWN) {
            return fail("a member's data directory is not named");
        }
        if self.members.is_empty() || !self.members.is_sorted_by(|a, b| a.id < b.id) || self.members[0].id.0 == 0 {
            return fail("members are not in order of their ids, which begin at 1");
        }
        if !self.keyspaces.is_sorted_by(|a, b| a.id < b.id) {
            return fail("keyspaces are not in order of their ids");
        }
        if self.keyspaces.iter().map(|k| &k.name).collect::<BTreeSet<_>>().len() != self.keyspaces.len() {
            return fail("two keyspaces have one name");
        }
        if self.keyspaces.iter().any(|k| usize::from(k.assignment) >= self.assignments.len()) {
            return fail("a keyspace names no assignment");
        }
        for assignment in &self.assignments {
            let n = usize::from(assignment.replicas);
            if n == 0 || n > MAX_REPLICAS || assignment.members.len() != n * self.partitioning.count() as usize {
                return fail("an assignment does not place every partition");
            }
            for list in assignment.members.chunks(n) {
                let distinct: BTreeSet<_> = list.iter().collect();
                if distinct.len() != n || list.iter().any(|m| usize::from(*m) >= self.members.len()) {
                    return fail("a partition has a replica twice, or one that is no member");
                }
            }
        }
        Ok(())
    }

    /// A keyspace by its id.
    pub fn keyspace(&self, id: KeyspaceId) -> Option<&Keyspace> {
        self.keyspaces.iter().find(|k| k.id == id)
    }

    /// A keyspace by its name.
    pub fn keyspace_named(&self, name: &str) -> Option<&Keyspace> {
        self.keyspaces.iter().find(|k| k.name == name)
    }

    /// A member by its id.
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        self.members.binary_search_by_key(&id, |m| m.id).ok().map(|at| &self.members[at])
    }

    /// The members that hold a partition, the most preferred first. None: no such keyspace or partition.
    pub fn replicas(
        &self,
        keyspace: KeyspaceId,
        partition: PartitionId,
    ) -> Option<impl ExactSizeIterator<Item = &Member>> {
        let assignment = &self.assignments[usize::from(self.keyspace(keyspace)?.assignment)];
        let n = usize::from(assignment.replicas);
        let at = usize::from(partition.0) * n;
        Some(assignment.members.get(at..at + n)?.iter().map(|m| &self.members[usize::from(*m)]))
    }
}
