//! `propose`: which members should hold which partition.

use dunlin_protocol::{Assignment, MAX_REPLICAS, Member, Partitioning};

use crate::balance::{balance_loads, balance_primaries};
use crate::ring::Ring;
use crate::shares::{Claim, shares};

/// The version of the algorithm below, written into every assignment. Raised with each change that gives any input another outcome.
pub const ALGORITHM: u16 = 1;

/// Members among which no assignment is possible.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProposalError {
    /// Nobody could hold anything.
    #[error("no member has a weight above 0")]
    NoMembers,
    /// More than an assignment can number.
    #[error("a cluster has at most 65,535 members, not {0}")]
    TooManyMembers(usize),
    /// No replica, or too many.
    #[error("a replication factor is 1 to {MAX_REPLICAS}, not {0}")]
    Factor(u8),
}

/// Proposes for each partition `min(factor, members of weight above 0)` distinct members, the most preferred first.
///
/// - A zone (within its region) holds a second replica of a partition only when every zone that has room holds one, a third only when every one
///   holds two, and so on.
/// - Within that, each member's number of replicas is near its share by weight (one sixteenth off, or one replica), and members are primaries
///   (first in the list) in proportion to what they hold.
/// - The ring decides first, so that a change of the members moves little.
///
/// The outcome depends on ids, weights, zones and their regions only. `members` are in the topology's order: the assignment refers to them by
/// place. It is only a proposal: what counts is what a topology says.
pub fn propose(partitioning: Partitioning, members: &[Member], factor: u8) -> Result<Assignment, ProposalError> {
    if factor == 0 || usize::from(factor) > MAX_REPLICAS {
        return Err(ProposalError::Factor(factor));
    }
    if members.len() > usize::from(u16::MAX) {
        return Err(ProposalError::TooManyMembers(members.len()));
    }
    let eligible: Vec<usize> = (0..members.len()).filter(|m| members[*m].weight > 0).collect();
    if eligible.is_empty() {
        return Err(ProposalError::NoMembers);
    }
    let nodes: Vec<&Member> = eligible.iter().map(|m| &members[*m]).collect();
    let count = partitioning.count() as usize;
    let mut draft = Draft::new(&nodes, usize::from(factor).min(nodes.len()), count);
    draft.fill_from_ring(&nodes, partitioning);
    balance_loads(&mut draft);
    balance_primaries(&mut draft);
    draft.alternate_zones();
    Ok(Assignment {
        replicas: draft.replicas as u8,
        members: draft.lists.iter().flatten().map(|node| eligible[*node] as u16).collect(),
        algorithm: ALGORITHM,
    })
}

/// Loads are counted in these parts of a partition, so that shares of it can be told.
pub(crate) const PART: u64 = 1 << 16;

/// An assignment in the making. Nodes and zones are numbers.
pub(crate) struct Draft {
    pub(crate) replicas: usize,
    pub(crate) zone_of: Vec<usize>,
    zone_sizes: Vec<usize>,
    /// For each zone how many of a partition's replicas it holds at least and at most.
    zone_bounds: Vec<(usize, usize)>,
    /// What each node should hold, in [`PART`]s.
    pub(crate) targets: Vec<u64>,
    /// How many replicas each node holds.
    pub(crate) loads: Vec<u64>,
    /// For each partition its nodes, the primary first.
    pub(crate) lists: Vec<Vec<usize>>,
}

impl Draft {
    fn new(nodes: &[&Member], replicas: usize, partitions: usize) -> Self {
        let mut zones: Vec<(&str, &str)> = nodes.iter().map(|m| (m.region.as_str(), m.zone.as_str())).collect();
        zones.sort_unstable();
        zones.dedup();
        let zone_of: Vec<usize> = nodes
            .iter()
            .map(|m| zones.binary_search(&(m.region.as_str(), m.zone.as_str())).expect("every node's zone is listed"))
            .collect();
        let size = |zone: usize| zone_of.iter().filter(|z| **z == zone).count();
        let sizes: Vec<usize> = (0..zones.len()).map(size).collect();

        // Every zone holds `level` replicas of each partition, or all its nodes do; what is left goes to zones with room, one each.
        let held = |level: usize| sizes.iter().map(|s| level.min(*s)).sum::<usize>();
        let level = (0..=replicas).rev().find(|level| held(*level) <= replicas).expect("level 0 holds nothing");
        let highest = if held(level) < replicas { level + 1 } else { level };
        let zone_bounds: Vec<_> = sizes.iter().map(|s| (level.min(*s), highest.min(*s))).collect();

        let whole = partitions as u64 * PART;
        let weight_of = |zone: usize| nodes.iter().zip(&zone_of).filter(move |(_, z)| **z == zone);
        let zone_claims: Vec<_> = zone_bounds
            .iter()
            .enumerate()
            .map(|(zone, (low, high))| Claim {
                weight: weight_of(zone).map(|(m, _)| u64::from(m.weight)).sum(),
                low: *low as u64 * whole,
                high: *high as u64 * whole,
            })
            .collect();
        let mut targets = vec![0; nodes.len()];
        for (zone, share) in shares(replicas as u64 * whole, &zone_claims).into_iter().enumerate() {
            let in_zone: Vec<usize> = (0..nodes.len()).filter(|n| zone_of[*n] == zone).collect();
            let claim = |n: &usize| Claim { weight: u64::from(nodes[*n].weight), low: 0, high: whole };
            let claims: Vec<_> = in_zone.iter().map(claim).collect();
            for (node, target) in in_zone.iter().zip(shares(share, &claims)) {
                targets[*node] = target;
            }
        }
        let loads = vec![0; nodes.len()];
        Self {
            replicas,
            zone_of,
            zone_sizes: sizes,
            zone_bounds,
            targets,
            loads,
            lists: Vec::with_capacity(partitions),
        }
    }

    /// How far a node's load may be from its target.
    pub(crate) fn tolerance(&self, node: usize) -> u64 {
        (self.targets[node] / 16).max(PART)
    }

    /// Follows the ring, past nodes that are full (consistent hashing with bounded loads) and past zones that must wait for others.
    fn fill_from_ring(&mut self, nodes: &[&Member], partitioning: Partitioning) {
        let ring = Ring::new(nodes.iter().map(|m| (m.id, m.weight)));
        let mut by_id: Vec<_> = nodes.iter().enumerate().map(|(node, m)| (m.id, node)).collect();
        by_id.sort_unstable();
        let number = |id| by_id[by_id.binary_search_by_key(&id, |(id, _)| *id).expect("the ring has these nodes")].1;
        for partition in partitioning.all() {
            let list = self.list_from_ring(ring.order(partition).map(number));
            list.iter().for_each(|node| self.loads[*node] += 1);
            self.lists.push(list);
        }
    }

    fn list_from_ring(&self, mut order: impl Iterator<Item = usize>) -> Vec<usize> {
        let mut list = Vec::with_capacity(self.replicas);
        // The ring is asked only as far as it is needed: its last nodes are the costly ones.
        let mut seen = Vec::with_capacity(2 * self.replicas);
        while list.len() < self.replicas {
            let open = self.open_zones(&list);
            let fits = |node: usize| open[self.zone_of[node]] && !list.contains(&node);
            let has_room = |node: usize| (self.loads[node] + 1) * PART <= self.targets[node] + self.tolerance(node);
            let mut next = seen.iter().copied().find(|node| fits(*node) && has_room(*node));
            while next.is_none() {
                let Some(node) = order.next() else { break };
                seen.push(node);
                next = (fits(node) && has_room(node)).then_some(node);
            }
            // With every fitting node full (rounding, or few nodes in a zone), the one that is least so takes it.
            let least_full = |a: &usize, b: &usize| {
                let fullness =
                    |node: usize, other: usize| u128::from(self.loads[node]) * u128::from(self.targets[other]);
                fullness(*a, *b).cmp(&fullness(*b, *a))
            };
            let next = next.or_else(|| seen.iter().copied().filter(|node| fits(*node)).min_by(least_full));
            list.push(next.expect("there are at least as many nodes as replicas"));
        }
        list
    }

    /// For each zone whether the next of a partition's replicas may be there: it has room and holds no more of them than another with room.
    fn open_zones(&self, list: &[usize]) -> Vec<bool> {
        let mut held = vec![0; self.zone_sizes.len()];
        list.iter().for_each(|node| held[self.zone_of[*node]] += 1);
        let rooms = held.iter().zip(&self.zone_sizes);
        let least = rooms.clone().filter(|(held, size)| held < size).map(|(held, _)| *held).min();
        rooms.map(|(held, size)| held < size && Some(*held) == least).collect()
    }

    /// Whether a partition would still keep the zones' rule with `to` in the place of `from`.
    pub(crate) fn can_replace(&self, partition: usize, from: usize, to: usize) -> bool {
        let list = &self.lists[partition];
        if list.contains(&to) {
            return false;
        }
        let (old, new) = (self.zone_of[from], self.zone_of[to]);
        let held = |zone: usize| list.iter().filter(|node| self.zone_of[**node] == zone).count();
        old == new || (held(old) > self.zone_bounds[old].0 && held(new) < self.zone_bounds[new].1)
    }

    /// Whether [`can_replace`](Self::can_replace) can hold for any partition, as far as the zones are concerned: without this the search for a
    /// path would look through all partitions in vain where every zone's part is fixed.
    pub(crate) fn can_ever_replace(&self, from: usize, to: usize) -> bool {
        let has_slack = |node: usize| {
            let (low, high) = self.zone_bounds[self.zone_of[node]];
            low < high
        };
        self.zone_of[from] == self.zone_of[to] || (has_slack(from) && has_slack(to))
    }

    /// Orders each list behind its primary so that every zone comes once before one comes again.
    fn alternate_zones(&mut self) {
        for partition in 0..self.lists.len() {
            let mut rest = std::mem::take(&mut self.lists[partition]);
            let mut list = vec![rest.remove(0)];
            while !rest.is_empty() {
                let open = self.open_zones(&list);
                // A zone that is open may have no node left in this list; then any order will do.
                let next = rest.iter().position(|node| open[self.zone_of[*node]]).unwrap_or(0);
                list.push(rest.remove(next));
            }
            self.lists[partition] = list;
        }
    }
}

#[cfg(test)]
mod tests;
