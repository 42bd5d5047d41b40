//! `RollCall`: how the founders of a cluster agree that they are all there, each with its own data directory.

use std::collections::BTreeMap;

use dunlin_protocol::{DataId, Epoch, NodeId, Topology};

use crate::topology_codec::encode_topology;

/// The hash of a list of data directories to which a founder pledges itself.
pub type Pledge = [u8; 32];

/// What a founder tells before it has pledged itself.
const NO_PLEDGE: Pledge = [0; 32];

/// What is to be made durable next. Each is asked for once; [`RollCall::stored`] says that it is done.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub enum RollStep {
    /// The pledge: the topology of epoch 0, with everybody's data directory.
    Pledge(Topology),
    /// The first epoch: the cluster is founded.
    Found(Topology),
}

/// Founders that cannot agree: nothing is founded until an operator has mended it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RollConflict {
    /// One of them has another directory than the one for which this node has pledged itself.
    #[error(
        "founder {founder} comes with another data directory than before: one was lost, or two processes run under this id. If one was lost, \
         empty the data directories of all founders, in which nothing is stored yet, and start them again"
    )]
    Directory {
        /// Whose it is.
        founder: NodeId,
    },
    /// One of them has pledged itself to another first epoch.
    #[error(
        "founder {founder} is about to found with other settings or other data directories than this node: give all founders the same \
         [cluster] section (replication, regions, zones, weights), empty their data directories, in which nothing is stored yet, and start them again"
    )]
    Pledge {
        /// Whose it is.
        founder: NodeId,
    },
}

/// The founding of a cluster, as one founder carries it out; pure.
///
/// Every founder tells every other which data directory it has. Who knows all of them pledges itself to that list, durably, and from then on tells
/// its hash; who knows that all have pledged themselves to the same list has founded, and may vote. So at most one list is ever founded, and a
/// founder that voted and then lost its directory cannot found again with a new one: at least one other is bound to the old one. (Unanimous
/// agreement as in two-phase commit, with every founder as coordinator; Gray 1978.) The price: all founders must be up at once, once.
///
/// - the owner tells every other founder what [`call`](Self::call) gives, again and again, and reports what they tell with [`hear`](Self::hear)
/// - after each it asks [`step`](Self::step), makes durable what that gives, and says so with [`stored`](Self::stored)
#[derive(Debug)]
pub struct RollCall {
    me: NodeId,
    /// Epoch 0, with the data directories that are known.
    draft: Topology,
    state: State,
    /// What the others pledged themselves to.
    pledges: BTreeMap<NodeId, Pledge>,
    /// The hash of the draft, once it is complete.
    own_pledge: Pledge,
    /// What was last wrong with another founder, unless that was mended.
    conflict: Option<RollConflict>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Gathering,
    Pledging,
    Pledged,
    Founding,
}

impl RollCall {
    /// A founder `me` with the data directory `data`, and the draft of the first epoch: as every founder computes it, or, if it pledged itself in an
    /// earlier life, as it was stored then.
    pub fn new(me: NodeId, data: DataId, mut draft: Topology) -> Self {
        let is_pledged = draft.members.iter().all(|m| m.data != DataId::UNKNOWN);
        let own = draft.members.iter_mut().find(|m| m.id == me);
        if let (Some(own), false) = (own, is_pledged) {
            own.data = data;
        }
        let (state, own_pledge) = match is_pledged {
            true => (State::Pledged, pledge_of(&draft)),
            false => (State::Gathering, NO_PLEDGE),
        };
        Self { me, draft, state, pledges: BTreeMap::new(), own_pledge, conflict: None }
    }

    /// What every other founder is to be told: this one's data directory and pledge.
    pub fn call(&self) -> (DataId, Pledge) {
        let data = self.draft.member(self.me).map_or(DataId::UNKNOWN, |own| own.data);
        let pledge = match self.state {
            State::Gathering | State::Pledging => NO_PLEDGE,
            State::Pledged | State::Founding => self.own_pledge,
        };
        (data, pledge)
    }

    /// Takes what another founder tells. Whoever is no founder is ignored.
    pub fn hear(&mut self, from: NodeId, data: DataId, pledge: Pledge) -> Result<(), RollConflict> {
        if from == self.me || data == DataId::UNKNOWN {
            return Ok(());
        }
        let gathering = self.state == State::Gathering;
        let Some(founder) = self.draft.members.iter_mut().find(|m| m.id == from) else { return Ok(()) };
        if gathering {
            // Until it has pledged itself, a founder that begins anew is welcome.
            founder.data = data;
        } else if founder.data != data {
            self.conflict = Some(RollConflict::Directory { founder: from });
            return Err(RollConflict::Directory { founder: from });
        } else if pledge != NO_PLEDGE && pledge != self.own_pledge {
            self.conflict = Some(RollConflict::Pledge { founder: from });
            return Err(RollConflict::Pledge { founder: from });
        }
        if self.conflict.is_some_and(|conflict| conflict.founder() == from) {
            self.conflict = None;
        }
        self.pledges.insert(from, pledge);
        Ok(())
    }

    /// What is to be made durable now.
    pub fn step(&mut self) -> Option<RollStep> {
        match self.state {
            State::Gathering if self.draft.members.iter().all(|m| m.data != DataId::UNKNOWN) => {
                self.state = State::Pledging;
                self.own_pledge = pledge_of(&self.draft);
                Some(RollStep::Pledge(self.draft.clone()))
            }
            State::Pledged if self.waits_for().is_empty() => {
                self.state = State::Founding;
                Some(RollStep::Found(Topology { epoch: Epoch(1), ..self.draft.clone() }))
            }
            _ => None,
        }
    }

    /// The pledge is durable.
    pub fn stored(&mut self) {
        if self.state == State::Pledging {
            self.state = State::Pledged;
        }
    }

    /// What an operator has to mend.
    pub fn conflict(&self) -> Option<RollConflict> {
        self.conflict
    }

    /// Whether all founders were heard of.
    pub fn is_complete(&self) -> bool {
        self.state != State::Gathering
    }

    /// The founders that were not heard of yet, or, once all were, those that did not pledge themselves to the same list.
    pub fn waits_for(&self) -> Vec<NodeId> {
        let others = self.draft.members.iter().filter(|m| m.id != self.me);
        let misses = |id: &NodeId, data: DataId| match self.state {
            State::Gathering => data == DataId::UNKNOWN,
            _ => self.pledges.get(id) != Some(&self.own_pledge),
        };
        others.filter(|m| misses(&m.id, m.data)).map(|m| m.id).collect()
    }
}

impl RollConflict {
    /// With whom.
    pub fn founder(self) -> NodeId {
        match self {
            Self::Directory { founder } | Self::Pledge { founder } => founder,
        }
    }
}

fn pledge_of(draft: &Topology) -> Pledge {
    let mut draft = draft.clone();
    // All but the addresses, which may change.
    draft.members.iter_mut().for_each(|member| member.address.clear());
    blake3::derive_key("dunlin pledge 1", &encode_topology(&draft))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::founding::tests::founders;
    use proptest::prelude::*;

    /// What a founder has on its disk, and runs.
    struct Host {
        data: DataId,
        stored: Option<Topology>,
        roll: RollCall,
        /// What it wants durable, and is not yet.
        wants: Option<RollStep>,
    }

    struct World {
        hosts: Vec<Host>,
        directories: u128,
        /// All that was ever founded, by whom and with which directory.
        founded: Vec<(usize, DataId, Topology)>,
    }

    fn draft(count: usize) -> Topology {
        let mut draft = founders("roll", count as u64).draft(3).expect("drafted");
        draft.members.iter_mut().for_each(|m| m.data = DataId::UNKNOWN);
        draft
    }

    impl World {
        fn new(count: usize) -> Self {
            let host = |i: usize| {
                let data = DataId(i as u128 + 1);
                let roll = RollCall::new(NodeId(i as u64 + 1), data, draft(count));
                Host { data, stored: None, roll, wants: None }
            };
            Self { hosts: (0..count).map(host).collect(), directories: count as u128, founded: Vec::new() }
        }

        fn ask_step(&mut self, at: usize) {
            let host = &mut self.hosts[at];
            if host.wants.is_none() {
                host.wants = host.roll.step();
            }
        }

        /// One founder calls another, which may have founded already.
        fn call(&mut self, from: usize, to: usize) {
            let (data, pledge) = self.hosts[from].roll.call();
            // A conflict is for the operator: nothing changes.
            let _ = self.hosts[to].roll.hear(NodeId(from as u64 + 1), data, pledge);
            self.ask_step(to);
        }

        fn store(&mut self, at: usize) {
            let host = &mut self.hosts[at];
            match host.wants.take() {
                Some(RollStep::Pledge(topology)) => {
                    host.stored = Some(topology);
                    host.roll.stored();
                }
                Some(RollStep::Found(topology)) => {
                    self.founded.push((at, host.data, topology.clone()));
                    host.stored = Some(topology);
                }
                None => {}
            }
            self.ask_step(at);
        }

        /// Everybody calls everybody, more often than it takes.
        fn meet(&mut self) {
            let count = self.hosts.len();
            for _ in 0..6 {
                (0..count).flat_map(|a| (0..count).map(move |b| (a, b))).for_each(|(a, b)| self.call(a, b));
                (0..count).for_each(|at| self.store(at));
            }
        }

        fn restart(&mut self, at: usize, wiped: bool) {
            let count = self.hosts.len();
            let host = &mut self.hosts[at];
            host.wants = None;
            if wiped {
                self.directories += 1;
                host.data = DataId(self.directories);
                host.stored = None;
            }
            let draft = match &host.stored {
                Some(topology) => Topology { epoch: Epoch(0), ..topology.clone() },
                None => draft(count),
            };
            host.roll = RollCall::new(NodeId(at as u64 + 1), host.data, draft);
        }
    }

    #[test]
    fn founders_that_are_all_there_found() {
        let mut world = World::new(3);
        assert_eq!(world.hosts[0].roll.waits_for(), [NodeId(2), NodeId(3)]);
        world.meet();
        assert_eq!(world.founded.len(), 3);
        assert!(world.founded.iter().all(|(_, _, t)| *t == world.founded[0].2 && t.is_founded()));
        world.founded[0].2.validate().expect("valid");
    }

    #[test]
    fn founders_with_other_settings_found_nothing() {
        let mut world = World::new(2);
        let mut other = draft(2);
        other.members[0].zone = "elsewhere".into();
        world.hosts[1].roll = RollCall::new(NodeId(2), world.hosts[1].data, other);
        world.meet();
        assert!(world.founded.is_empty());
        assert_eq!(world.hosts[0].roll.conflict(), Some(RollConflict::Pledge { founder: NodeId(2) }));
        // An address may differ.
        let mut world = World::new(2);
        let mut moved = draft(2);
        moved.members[0].address = "elsewhere:1".into();
        world.hosts[1].roll = RollCall::new(NodeId(2), world.hosts[1].data, moved);
        world.meet();
        assert_eq!(world.founded.len(), 2);
    }

    #[test]
    fn one_founder_alone() {
        let mut world = World::new(1);
        world.ask_step(0);
        world.store(0);
        world.store(0);
        assert_eq!(world.founded.len(), 1);
    }

    #[test]
    fn a_directory_lost_behind_the_pledge_is_told() {
        let mut world = World::new(2);
        world.call(1, 0);
        world.store(0);
        world.restart(1, true);
        let (data, pledge) = world.hosts[1].roll.call();
        assert_eq!(
            world.hosts[0].roll.hear(NodeId(2), data, pledge),
            Err(RollConflict::Directory { founder: NodeId(2) })
        );
        // But one lost before it is nothing.
        let mut world = World::new(3);
        world.call(1, 0);
        world.restart(1, true);
        let (data, pledge) = world.hosts[1].roll.call();
        assert_eq!(world.hosts[0].roll.hear(NodeId(2), data, pledge), Ok(()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        /// Whatever is lost, and however often: while one directory of those that founded is left, nobody founds with another list.
        #[test]
        fn at_most_one_list_is_founded(
            count in 1usize..5,
            happenings in prop::collection::vec((0u8..12, 0usize..5, 0usize..5), 0..120),
        ) {
            let mut world = World::new(count);
            (0..count).for_each(|at| world.ask_step(at));
            for (kind, a, b) in happenings {
                let (a, b) = (a % count, b % count);
                match kind {
                    0..7 => world.call(a, b),
                    7..10 => world.store(a),
                    10 => world.restart(a, false),
                    _ => world.restart(a, true),
                }
                let voters = |t: &Topology| t.members.iter().map(|m| m.data).collect::<Vec<_>>();
                for (_, _, one) in &world.founded {
                    for (_, _, other) in &world.founded {
                        let same = voters(one) == voters(other);
                        // Two lists share no directory: all of the earlier cluster was lost before.
                        let apart = voters(one).iter().all(|data| !voters(other).contains(data));
                        prop_assert!(same || apart);
                    }
                }
                for (_, data, topology) in &world.founded {
                    prop_assert!(voters(topology).contains(data));
                }
            }
        }
    }
}
