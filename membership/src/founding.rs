//! `Founders`: how a cluster begins.

use std::collections::BTreeSet;

use dunlin_protocol::{
    Assignment, ClusterId, Epoch, Keyspace, KeyspaceId, Level, Member, NodeId, Partitioning, Topology,
};

use crate::proposal::{ProposalError, propose};
use crate::topology_codec::{MAX_TOPOLOGY_BYTES, encode_topology};

/// The founders of a cluster, as each of them is told: by `dunlin dev`, or by the configuration of `dunlin serve`.
///
/// Every founder computes the draft of the first epoch from this list alone, and equal lists give equal bytes; a [`RollCall`](crate::RollCall) adds
/// everybody's data directory and makes it the first epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Founders {
    /// The cluster's name: clusters of the same ids with different names are different clusters.
    pub name: String,
    /// The founders, in any order.
    pub members: Vec<Member>,
    /// How the hash space is cut, for ever.
    pub partitioning: Partitioning,
}

/// A list of founders that founds nothing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FoundingError {
    /// No founder.
    #[error("a cluster needs at least one founder")]
    NoFounders,
    /// No name, or one of more than [`Founders::MAX_TEXT`] bytes.
    #[error("a cluster's name has 1 to {} bytes", Founders::MAX_TEXT)]
    Name,
    /// 0 is no node.
    #[error("node ids begin at 1")]
    ZeroId,
    /// Two founders, one id.
    #[error("node id {0} is named twice")]
    DuplicateId(NodeId),
    /// Not `host:port`.
    #[error("the address {address:?} of node {id} is not host:port")]
    Address {
        /// Whose it is.
        id: NodeId,
        /// What it is.
        address: String,
    },
    /// Two founders, one address.
    #[error("address {0:?} is named twice")]
    DuplicateAddress(String),
    /// A region or zone of more than [`Founders::MAX_TEXT`] bytes.
    #[error("the region and the zone of node {id} have at most {} bytes", Founders::MAX_TEXT)]
    Place {
        /// Whose they are.
        id: NodeId,
    },
    /// A node that could hold nothing.
    #[error("the weight of node {0} is at least 1")]
    ZeroWeight(NodeId),
    /// No assignment can be proposed.
    #[error(transparent)]
    Proposal(#[from] ProposalError),
    /// So many partitions and replicas that the topology could not be sent.
    #[error(
        "the topology would have at least {len} bytes, at most {MAX_TOPOLOGY_BYTES} are possible: fewer partitions or replicas"
    )]
    TooLarge {
        /// How many it would have at least.
        len: usize,
    },
}

impl Founders {
    /// The longest name of a cluster, of a region, of a zone, and the longest address, in bytes.
    pub const MAX_TEXT: usize = 255;

    /// Checks the list.
    pub fn validate(&self) -> Result<(), FoundingError> {
        if self.members.is_empty() {
            return Err(FoundingError::NoFounders);
        }
        if self.name.is_empty() || self.name.len() > Self::MAX_TEXT {
            return Err(FoundingError::Name);
        }
        let (mut ids, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        for member in &self.members {
            let id = member.id;
            if id.0 == 0 {
                return Err(FoundingError::ZeroId);
            }
            if !ids.insert(id) {
                return Err(FoundingError::DuplicateId(id));
            }
            if !is_address(&member.address) {
                return Err(FoundingError::Address { id, address: member.address.clone() });
            }
            if !addresses.insert(&member.address) {
                return Err(FoundingError::DuplicateAddress(member.address.clone()));
            }
            if member.region.len().max(member.zone.len()) > Self::MAX_TEXT {
                return Err(FoundingError::Place { id });
            }
            if member.weight == 0 {
                return Err(FoundingError::ZeroWeight(id));
            }
        }
        Ok(())
    }

    /// What the founding is known by: a hash of the cluster's name, the number of partitions and the founders' ids in order. Addresses, zones
    /// and weights are not in it, because they may change between two runs of the same cluster.
    pub fn founders_hash(&self) -> [u8; 32] {
        let ids: BTreeSet<_> = self.members.iter().map(|m| m.id).collect();
        let mut hasher = blake3::Hasher::new_derive_key("dunlin founders 1");
        // The name's length in front keeps a name from passing for ids.
        hasher.update(&(self.name.len() as u64).to_le_bytes()).update(self.name.as_bytes());
        hasher.update(&[u8::from(self.partitioning)]);
        for id in ids {
            hasher.update(&id.0.to_le_bytes());
        }
        *hasher.finalize().as_bytes()
    }

    /// The cluster that they found: derived from [`founders_hash`](Self::founders_hash), so other founders never found the same one.
    pub fn cluster(&self) -> ClusterId {
        let hash = blake3::derive_key("dunlin cluster id 1", &self.founders_hash());
        let mut first = [0; 16];
        first.copy_from_slice(&hash[..16]);
        ClusterId(u128::from_le_bytes(first))
    }

    /// The draft of the first epoch, numbered 0: the keyspaces `system` and `default`, each partition on `factor` founders, or on all where there are fewer.
    pub fn draft(&self, factor: u8) -> Result<Topology, FoundingError> {
        self.validate()?;
        let mut members = self.members.clone();
        members.sort_unstable_by_key(|m| m.id);
        // Every replica takes at least a byte: what is too large at that rate is not worth proposing.
        let least = self.partitioning.count() as usize * usize::from(factor).min(members.len());
        if least >= MAX_TOPOLOGY_BYTES {
            return Err(FoundingError::TooLarge { len: least });
        }
        let assignment: Assignment = propose(self.partitioning, &members, factor)?;
        let keyspace = |id, name: &str| Keyspace {
            id,
            name: name.to_owned(),
            assignment: 0,
            read_level: Level::Quorum,
            write_level: Level::Quorum,
        };
        let topology = Topology {
            cluster: self.cluster(),
            epoch: Epoch(0),
            partitioning: self.partitioning,
            members,
            keyspaces: vec![keyspace(KeyspaceId::SYSTEM, "system"), keyspace(KeyspaceId::DEFAULT, "default")],
            assignments: vec![assignment],
        };
        match encode_topology(&topology).len() {
            len if len > MAX_TOPOLOGY_BYTES => Err(FoundingError::TooLarge { len }),
            _ => Ok(topology),
        }
    }
}

fn is_address(address: &str) -> bool {
    address.len() <= Founders::MAX_TEXT
        && address
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use dunlin_protocol::DataId;
    use proptest::prelude::*;

    /// Founders 1 to `count`, one zone each.
    pub(crate) fn founders(name: &str, count: u64) -> Founders {
        let member = |id| Member {
            id: NodeId(id),
            address: format!("127.0.0.1:{}", 7399 + id),
            region: "local".into(),
            zone: format!("z{id}"),
            weight: 128,
            data: DataId(1000 + u128::from(id)),
        };
        let partitioning = Partitioning::new(6).expect("in range");
        Founders { name: name.into(), members: (1..=count).map(member).collect(), partitioning }
    }

    /// A founded cluster of such founders.
    pub(crate) fn founded(name: &str, count: u64) -> Topology {
        Topology { epoch: Epoch(1), ..founders(name, count).draft(3).expect("drafted") }
    }

    #[test]
    fn every_founder_makes_the_same_first_epoch() {
        let one = founders("dev", 5);
        let mut other = one.clone();
        other.members.reverse();
        let (one, other) = (one.draft(3).expect("founded"), other.draft(3).expect("founded"));
        assert_eq!(encode_topology(&one), encode_topology(&other));
        one.validate().expect("valid");
        assert_eq!(one.epoch, Epoch(0));
        assert_eq!(one.keyspace_named("default").map(|k| k.id), Some(KeyspaceId::DEFAULT));
        assert_eq!(one.keyspace_named("system").map(|k| k.id), Some(KeyspaceId::SYSTEM));
        assert_eq!(one.assignments[0].replicas, 3);
        assert_eq!(founders("dev", 2).draft(3).expect("founded").assignments[0].replicas, 2);
    }

    #[test]
    fn cluster_is_the_same_for_ever() {
        assert_eq!(founders("dev", 3).cluster().to_string(), GOLDEN);
    }

    #[test]
    fn addresses_may_change_and_founders_not() {
        let list = founders("dev", 3);
        let mut moved = list.clone();
        moved.members[1].address = "[::1]:9000".into();
        moved.members[1].zone = "elsewhere".into();
        moved.members[1].weight = 7;
        assert_eq!(moved.founders_hash(), list.founders_hash());

        let mut renumbered = list.clone();
        renumbered.members[2].id = NodeId(4);
        let mut finer = list.clone();
        finer.partitioning = Partitioning::DEFAULT;
        let others = [renumbered, finer, founders("dew", 3), founders("dev", 4), founders("de", 3), founders("dev", 2)];
        let mut clusters: BTreeSet<_> = others.iter().map(Founders::cluster).collect();
        clusters.insert(list.cluster());
        assert_eq!(clusters.len(), 7);
    }

    #[test]
    fn contradictory_lists_found_nothing() {
        let check = |change: fn(&mut Founders), expected: FoundingError| {
            let mut list = founders("dev", 3);
            change(&mut list);
            assert_eq!(list.draft(3).err(), Some(expected));
        };
        check(|f| f.members.clear(), FoundingError::NoFounders);
        check(|f| f.name.clear(), FoundingError::Name);
        check(|f| f.name = "x".repeat(256), FoundingError::Name);
        check(|f| f.members[0].id = NodeId(0), FoundingError::ZeroId);
        check(|f| f.members[0].id = NodeId(3), FoundingError::DuplicateId(NodeId(3)));
        check(|f| f.members[0].address = f.members[1].address.clone(), {
            FoundingError::DuplicateAddress("127.0.0.1:7401".into())
        });
        check(|f| f.members[0].weight = 0, FoundingError::ZeroWeight(NodeId(1)));
        check(|f| f.members[2].zone = "x".repeat(256), FoundingError::Place { id: NodeId(3) });
        assert_eq!(founders("dev", 3).draft(0).err(), Some(FoundingError::Proposal(ProposalError::Factor(0))));
        for address in ["", "host", ":7400", "host:", "host:0", "host:70000", "host:port"] {
            let mut list = founders("dev", 3);
            list.members[0].address = address.into();
            let expected = FoundingError::Address { id: NodeId(1), address: address.into() };
            assert_eq!(list.validate(), Err(expected));
        }
    }

    #[test]
    fn topology_that_could_not_be_sent_is_not_founded() {
        let mut list = founders("dev", 32);
        list.partitioning = Partitioning::new(16).expect("in range");
        assert!(matches!(list.draft(32), Err(FoundingError::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn other_lists_found_other_clusters(
            a in ("[a-c]{1,3}", prop::collection::btree_set(1u64..6, 1..4)),
            b in ("[a-c]{1,3}", prop::collection::btree_set(1u64..6, 1..4)),
        ) {
            let cluster = |(name, ids): &(String, BTreeSet<u64>)| {
                let mut list = founders(name, 5);
                list.members.retain(|m| ids.contains(&m.id.0));
                list.cluster()
            };
            prop_assert_eq!(a == b, cluster(&a) == cluster(&b));
        }
    }

    const GOLDEN: &str = "f3d3d3ae04f1615bdd2834cac0554742";
}
