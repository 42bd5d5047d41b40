//! `Need`: which sets of replicas meet a level.

use dunlin_protocol::{Level, Quorums, ReplicaSet, Status};

/// A level, against the replicas of one partition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    quorums: Quorums,
    replicas: usize,
    level: Level,
}

impl Need {
    pub(crate) fn new(quorums: Quorums, replicas: usize, level: Level) -> Self {
        Self { quorums, replicas, level }
    }

    pub(crate) fn quorums(&self) -> &Quorums {
        &self.quorums
    }

    /// Whether the quorum rules hold for the level.
    pub(crate) fn is_quorum(&self) -> bool {
        self.level.is_quorum(self.replicas)
    }

    pub(crate) fn is_met(&self, set: ReplicaSet) -> bool {
        let missing = self.quorums.all().without(set).len();
        match self.level {
            Level::Count(n) => {
                let count = usize::from(n.get());
                let majority = self.replicas / 2 + 1;
                if count < majority {
                    return self.quorums.has(set, count);
                }
                // Above the majority the rest may be missing. While the replica set changes this is stricter than counting in both sets
                // apart, never weaker.
                self.quorums.is_quorum(set)
                    && count <= self.replicas
                    && (count == majority || missing <= self.replicas - count)
            }
            Level::Quorum | Level::Serial => self.quorums.is_quorum(set),
            Level::All => self.quorums.is_quorum(set) && missing == 0,
        }
    }

    /// Whether the level can still be met without the replicas in `lost`.
    pub(crate) fn is_possible(&self, lost: ReplicaSet) -> bool {
        self.is_met(self.quorums.all().without(lost))
    }

    /// How many replicas are needed, as it is told to the client.
    pub(crate) fn count(&self) -> u8 {
        match self.level {
            Level::Count(n) => n.get(),
            Level::Quorum | Level::Serial => small(self.quorums.size()),
            Level::All => small(self.quorums.all().len()),
        }
    }
}

/// A number of replicas: at most [`MAX_REPLICAS`](dunlin_protocol::MAX_REPLICAS).
pub(crate) fn small(count: usize) -> u8 {
    u8::try_from(count).unwrap_or(u8::MAX)
}

/// Of two reasons the one that helps the client more: a stale epoch is mended by asking again.
pub(crate) fn more_telling(old: Option<Status>, new: Status) -> Option<Status> {
    match old {
        Some(old) if new != Status::StaleEpoch => Some(old),
        _ => Some(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(replicas: &[usize]) -> ReplicaSet {
        replicas.iter().copied().collect()
    }

    #[track_caller]
    fn check(need: &Need, met: &[&[usize]], unmet: &[&[usize]]) {
        for set in met {
            assert!(need.is_met(of(set)), "{need:?} {set:?}");
        }
        for set in unmet {
            assert!(!need.is_met(of(set)), "{need:?} {set:?}");
        }
    }

    #[test]
    fn levels_against_three_and_five() {
        let need =
            |replicas, level: &str| Need::new(Quorums::majority(replicas), replicas, level.parse().expect(level));
        check(&need(3, "one"), &[&[2], &[0, 1]], &[&[]]);
        check(&need(3, "two"), &[&[0, 2]], &[&[1]]);
        check(&need(3, "quorum"), &[&[0, 2]], &[&[1]]);
        check(&need(3, "three"), &[&[0, 1, 2]], &[&[0, 1]]);
        check(&need(3, "all"), &[&[0, 1, 2]], &[&[0, 1]]);
        check(&need(3, "4"), &[], &[&[0, 1, 2]]);
        check(&need(5, "two"), &[&[0, 4]], &[&[4]]);
        check(&need(5, "4"), &[&[0, 1, 2, 4]], &[&[0, 1, 2]]);
        check(&need(0, "all"), &[], &[&[]]);
        assert!(need(3, "quorum").is_possible(of(&[1])) && !need(3, "all").is_possible(of(&[1])));
    }

    #[test]
    fn levels_while_the_replica_set_changes() {
        let joint = Quorums::joint(of(&[0, 1, 2]), of(&[2, 3, 4]));
        let need = |level: &str| Need::new(joint, 3, level.parse().expect(level));
        check(&need("one"), &[&[2], &[0, 3]], &[&[0, 1], &[4]]);
        check(&need("quorum"), &[&[1, 2, 3]], &[&[0, 1, 2]]);
        check(&need("three"), &[&[0, 1, 2, 3, 4]], &[&[0, 1, 2, 3]]);
        check(&need("all"), &[&[0, 1, 2, 3, 4]], &[&[1, 2, 3, 4]]);
    }
}
