//! What this node knows of the others at the moment: who is connected, who is said to be down, how far away each is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dunlin_protocol::{BootNumber, NodeId, PreferenceList, ReplicaSet};
use dunlin_quorum::Latency;

/// The others, as seen from here.
#[derive(Debug)]
pub(crate) struct Peers {
    me: NodeId,
    connected: BTreeMap<NodeId, BootNumber>,
    down: BTreeSet<NodeId>,
    latencies: BTreeMap<NodeId, Latency>,
    quorum_micros: u32,
}

impl Peers {
    pub(crate) fn new(me: NodeId) -> Self {
        Self { me, connected: BTreeMap::new(), down: BTreeSet::new(), latencies: BTreeMap::new(), quorum_micros: 0 }
    }

    pub(crate) fn connect(&mut self, node: NodeId, boot: BootNumber) {
        // A fresh connection is newer evidence than what the failure detector said before it.
        self.down.remove(&node);
        self.connected.insert(node, boot);
    }

    pub(crate) fn disconnect(&mut self, node: NodeId) {
        self.connected.remove(&node);
        self.latencies.remove(&node);
    }

    /// What the failure detector says.
    pub(crate) fn set_down(&mut self, node: NodeId, down: bool) {
        if down {
            self.down.insert(node);
        } else {
            self.down.remove(&node);
        }
    }

    pub(crate) fn boot(&self, node: NodeId) -> BootNumber {
        self.connected.get(&node).copied().unwrap_or_default()
    }

    /// Whether a request to the node has a chance.
    pub(crate) fn is_alive(&self, node: NodeId) -> bool {
        node == self.me || self.connected.contains_key(&node) && !self.down.contains(&node)
    }

    pub(crate) fn observe(&mut self, node: NodeId, round_trip: Duration) {
        self.latencies.entry(node).or_default().observe(round_trip);
    }

    /// The estimated round trip to a node; zero to this one and where none was measured yet.
    pub(crate) fn round_trip(&self, node: NodeId) -> Duration {
        self.latencies.get(&node).map(Latency::estimate).unwrap_or_default()
    }

    /// Which replicas of a list are alive.
    pub(crate) fn alive(&self, list: &PreferenceList) -> ReplicaSet {
        (0..list.nodes.len()).filter(|r| self.is_alive(list.nodes[*r])).collect()
    }

    /// The replica numbers of a list, the nearest first: this node, then by round trip.
    pub(crate) fn order(&self, list: &PreferenceList) -> Vec<usize> {
        let mut order: Vec<usize> = (0..list.nodes.len()).collect();
        order.sort_by_key(|r| (list.nodes[*r] != self.me, self.round_trip(list.nodes[*r]), *r));
        order
    }

    /// When a read that is still without answers is worth one more request: past what the slowest of the first `need` usually takes.
    pub(crate) fn speculate_after(&self, list: &PreferenceList, order: &[usize], need: usize) -> Duration {
        self.late(order.iter().take(need).map(|r| list.nodes[*r]))
    }

    /// How long the slowest replica of a list is waited for where its answer is worth a little time.
    pub(crate) fn patience(&self, list: &PreferenceList) -> Duration {
        self.late(list.nodes.iter().copied())
    }

    /// What is past the time that the slowest of these nodes usually takes.
    fn late(&self, nodes: impl Iterator<Item = NodeId>) -> Duration {
        let slowest = nodes.filter_map(|node| self.latencies.get(&node)).map(Latency::p95).max();
        (slowest.unwrap_or_default() * 3).max(Duration::from_millis(20))
    }

    /// The round trip to a majority of the members, as it was estimated last.
    pub(crate) fn quorum_micros(&self) -> u32 {
        self.quorum_micros
    }

    /// Estimates the round trip to a majority of these members anew.
    pub(crate) fn estimate_quorum(&mut self, members: impl Iterator<Item = NodeId>) {
        let mut all: Vec<Duration> = members.map(|node| self.round_trip(node)).collect();
        all.sort();
        let quorum = all.get(all.len() / 2).copied().unwrap_or_default();
        self.quorum_micros = u32::try_from(quorum.as_micros()).unwrap_or(u32::MAX);
    }
}
