//! `Asking`: whom a read asks first, next and instead.

use dunlin_protocol::{ReplicaSet, Status};

use crate::need::{Need, more_telling};

/// The replicas of one read or scan: as many are asked as the level needs, and one more for each that fails.
#[derive(Debug)]
pub(crate) struct Asking {
    need: Need,
    alive: ReplicaSet,
    /// The living, nearest first; then those thought dead, which are asked only when nobody else is left.
    candidates: Vec<usize>,
    asked: ReplicaSet,
    answered: ReplicaSet,
    failed: ReplicaSet,
    status: Option<Status>,
}

impl Asking {
    pub(crate) fn new(need: Need, alive: ReplicaSet, order: &[usize]) -> Self {
        let all = need.quorums().all();
        let alive = alive.and(all);
        let mut candidates = Vec::with_capacity(all.len());
        for pass in [alive, all.without(alive)] {
            for replica in order.iter().copied().chain(pass.iter()) {
                if pass.contains(replica) && !candidates.contains(&replica) {
                    candidates.push(replica);
                }
            }
        }
        Self {
            need,
            alive,
            candidates,
            asked: ReplicaSet::EMPTY,
            answered: ReplicaSet::EMPTY,
            failed: ReplicaSet::EMPTY,
            status: None,
        }
    }

    pub(crate) fn need(&self) -> &Need {
        &self.need
    }

    /// Every replica, in the order in which they are asked.
    pub(crate) fn candidates(&self) -> &[usize] {
        &self.candidates
    }

    pub(crate) fn alive(&self) -> ReplicaSet {
        self.alive
    }

    pub(crate) fn answered(&self) -> ReplicaSet {
        self.answered
    }

    /// Whether those asked that have not failed are too few.
    pub(crate) fn wants_more(&self) -> bool {
        !self.need.is_met(self.asked.without(self.failed))
    }

    /// The next one to ask, which then counts as asked.
    pub(crate) fn next(&mut self) -> Option<usize> {
        let next = self.candidates.iter().copied().find(|r| !self.asked.contains(*r))?;
        self.asked.insert(next);
        Some(next)
    }

    /// Like [`next`](Self::next), but only somebody who is thought alive.
    pub(crate) fn next_alive(&mut self) -> Option<usize> {
        self.alive.without(self.asked).iter().next()?;
        self.next()
    }

    /// Whether the replica was asked and has neither answered nor failed.
    pub(crate) fn is_under_way(&self, replica: usize) -> bool {
        self.asked.without(self.answered).without(self.failed).contains(replica)
    }

    pub(crate) fn answer(&mut self, replica: usize) {
        self.answered.insert(replica);
    }

    /// This replica's answer, had or yet to come, does not count.
    pub(crate) fn fail(&mut self, replica: usize, status: Option<Status>) {
        self.failed.insert(replica);
        self.answered = self.answered.without(self.failed);
        if let Some(status) = status {
            self.status = more_telling(self.status, status);
        }
    }

    pub(crate) fn is_met(&self) -> bool {
        self.need.is_met(self.answered)
    }

    pub(crate) fn is_possible(&self) -> bool {
        self.need.is_possible(self.failed)
    }

    /// Why it became impossible.
    pub(crate) fn status(&self) -> Status {
        self.status.unwrap_or(Status::Unavailable)
    }

    /// Everything from the beginning, as if nobody had been asked.
    pub(crate) fn restart(&mut self) {
        (self.asked, self.answered, self.failed) = (ReplicaSet::EMPTY, ReplicaSet::EMPTY, ReplicaSet::EMPTY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin_protocol::{Level, Quorums};

    #[test]
    fn the_nearest_living_first_and_the_dead_last() {
        let alive = [0, 2, 4].into_iter().collect();
        let need = Need::new(Quorums::majority(5), 5, Level::Quorum);
        let mut asking = Asking::new(need, alive, &[1, 4, 99, 0]);
        assert_eq!(asking.candidates(), [4, 0, 2, 1, 3]);
        let mut asked = Vec::new();
        while asking.wants_more() {
            asked.push(asking.next().expect("five replicas"));
        }
        assert_eq!(asked, [4, 0, 2]);
        assert_eq!(asking.next_alive(), None);
        asking.answer(4);
        asking.fail(4, Some(Status::Suspect));
        assert!(asking.wants_more() && asking.answered().is_empty());
        assert_eq!(asking.next(), Some(1));
        assert!(!asking.wants_more() && asking.is_possible());
        for replica in [0, 2] {
            asking.fail(replica, Some(Status::StaleEpoch));
        }
        assert!(!asking.is_possible());
        assert_eq!(asking.status(), Status::StaleEpoch);
    }
}
