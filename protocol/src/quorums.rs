//! Which sets of replicas are quorums. Replicas are numbered by their place in the partition's preference list.

/// The most replicas a partition can have, joint replica sets included.
pub const MAX_REPLICAS: usize = 32;

/// A set of replicas, by number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ReplicaSet(u32);

impl ReplicaSet {
    /// No replica.
    pub const EMPTY: Self = Self(0);

    /// The replicas 0 to `count - 1`.
    pub fn first(count: usize) -> Self {
        assert!(count <= MAX_REPLICAS, "at most {MAX_REPLICAS} replicas");
        Self(((1u64 << count) - 1) as u32)
    }

    /// Adds one; false when it was there.
    pub fn insert(&mut self, replica: usize) -> bool {
        assert!(replica < MAX_REPLICAS, "at most {MAX_REPLICAS} replicas");
        let before = self.0;
        self.0 |= 1 << replica;
        self.0 != before
    }

    /// Whether it is there.
    pub fn contains(self, replica: usize) -> bool {
        replica < MAX_REPLICAS && self.0 >> replica & 1 == 1
    }

    /// How many there are.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those that are in both.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those that are here and not there.
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The numbers, rising.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..MAX_REPLICAS).filter(move |&r| self.contains(r))
    }
}

impl FromIterator<usize> for ReplicaSet {
    fn from_iter<I: IntoIterator<Item = usize>>(replicas: I) -> Self {
        let mut set = Self::EMPTY;
        for replica in replicas {
            set.insert(replica);
        }
        set
    }
}

/// The quorums of a partition: a majority of its replicas; while its replica set changes, a majority of the old one and of the new one
/// (PROTOCOL.md 1.9).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quorums {
    old: ReplicaSet,
    new: ReplicaSet,
}

impl Quorums {
    /// Majorities of the replicas 0 to `count - 1`.
    pub fn majority(count: usize) -> Self {
        let all = ReplicaSet::first(count);
        Self { old: all, new: all }
    }

    /// Majorities of both sets.
    pub fn joint(old: ReplicaSet, new: ReplicaSet) -> Self {
        Self { old, new }
    }

    /// Whether `set` contains a quorum.
    pub fn is_quorum(&self, set: ReplicaSet) -> bool {
        self.has(set, usize::MAX)
    }

    /// Whether `set` contains `count` replicas, or a quorum where `count` is higher than a majority needs, in both sets.
    /// Counts above the majority are the caller's to compare: this is the floor for levels below it.
    pub fn has(&self, set: ReplicaSet, count: usize) -> bool {
        [self.old, self.new].iter().all(|s| set.and(*s).len() >= count.min(s.len() / 2 + 1))
    }

    /// Whether a quorum is still possible when `lost` will not agree.
    pub fn is_possible(&self, lost: ReplicaSet) -> bool {
        self.is_quorum(self.all().without(lost))
    }

    /// Every replica of either set.
    pub fn all(&self) -> ReplicaSet {
        ReplicaSet(self.old.0 | self.new.0)
    }

    /// How many replicas the smallest quorum has (of the larger set).
    pub fn size(&self) -> usize {
        self.old.len().max(self.new.len()) / 2 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn majorities_and_joint_majorities() {
        let of = |r: &[usize]| r.iter().copied().collect::<ReplicaSet>();
        let three = Quorums::majority(3);
        assert!(three.is_quorum(of(&[0, 2])) && !three.is_quorum(of(&[1])));
        assert!(three.is_possible(of(&[1])) && !three.is_possible(of(&[1, 2])));
        assert!(three.has(of(&[1]), 1) && !three.has(of(&[1]), 2));
        let joint = Quorums::joint(of(&[0, 1, 2]), of(&[2, 3, 4]));
        assert!(
            joint.is_quorum(of(&[1, 2, 3])) && !joint.is_quorum(of(&[0, 1, 2])) && !joint.is_quorum(of(&[2, 3, 4]))
        );
        assert_eq!(joint.all().len(), 5);
        assert_eq!(ReplicaSet::first(MAX_REPLICAS).len(), MAX_REPLICAS);
    }
}
