//! `Suspects`: the partitions of which something may have been lost.

use std::collections::BTreeSet;

use dunlin_protocol::PartitionId;

use crate::error::Affected;

/// The partitions for which this node must not vote, because it may have forgotten what it promised (PROTOCOL.md 2.5).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Suspects {
    all: bool,
    partitions: BTreeSet<PartitionId>,
}

impl Suspects {
    /// Whether this partition is suspect.
    pub fn contains(&self, partition: PartitionId) -> bool {
        self.all || self.partitions.contains(&partition)
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        !self.all && self.partitions.is_empty()
    }

    /// Whether every partition is: it could not be told which ones.
    pub fn is_all(&self) -> bool {
        self.all
    }

    /// Those that are suspect by name, in order; says nothing where [`is_all`](Self::is_all).
    pub fn named(&self) -> impl Iterator<Item = PartitionId> + '_ {
        self.partitions.iter().copied()
    }

    /// Adds what damage concerns; true: something was added.
    pub(crate) fn add(&mut self, affected: Affected) -> bool {
        match affected {
            Affected::Nothing => false,
            Affected::Partition(partition) => !self.all && self.partitions.insert(partition),
            Affected::Partitions { first, last } => {
                let before = self.partitions.len();
                if !self.all {
                    self.partitions.extend((first.0..=last.0).map(PartitionId));
                }
                self.partitions.len() > before
            }
            Affected::Everything => !std::mem::replace(&mut self.all, true),
        }
    }

    /// Adds all of the others; true: something was added.
    pub(crate) fn add_all(&mut self, others: &Self) -> bool {
        let new = others.named().filter(|partition| self.add(Affected::Partition(*partition))).count();
        (others.is_all() && self.add(Affected::Everything)) || new > 0
    }

    pub(crate) fn restore(&mut self, partitions: impl Iterator<Item = PartitionId>) {
        self.partitions.extend(partitions);
    }
}
