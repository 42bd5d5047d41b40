//! Serial operations on one key wait for each other at this coordinator, so that they do not duel.

use std::collections::{BTreeMap, VecDeque};

use dunlin_protocol::{Key, KeyspaceId};

/// The queues of all keys that have a serial operation under way here. The front of each is the one that runs.
#[derive(Debug, Default)]
pub(crate) struct SerialQueues {
    queues: BTreeMap<(KeyspaceId, Key), VecDeque<u64>>,
}

impl SerialQueues {
    /// Adds an operation; true: it is the only one and runs now.
    pub(crate) fn enter(&mut self, keyspace: KeyspaceId, key: &Key, number: u64) -> bool {
        let queue = self.queues.entry((keyspace, key.clone())).or_default();
        queue.push_back(number);
        queue.len() == 1
    }

    /// An operation leaves, wherever it stands; the one that runs next, if that changed.
    pub(crate) fn leave(&mut self, keyspace: KeyspaceId, key: &Key, number: u64) -> Option<u64> {
        let at = (keyspace, key.clone());
        let queue = self.queues.get_mut(&at)?;
        let was_front = queue.front() == Some(&number);
        queue.retain(|n| *n != number);
        let next = queue.front().copied();
        if next.is_none() {
            self.queues.remove(&at);
        }
        next.filter(|_| was_front)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_runs_at_a_time() {
        let (mut queues, keyspace) = (SerialQueues::default(), KeyspaceId::DEFAULT);
        let (a, b) = (Key::new("a").expect("a key"), Key::new("b").expect("a key"));
        assert!(queues.enter(keyspace, &a, 1));
        assert!(queues.enter(keyspace, &b, 2), "another key does not wait");
        assert!(!queues.enter(keyspace, &a, 3) && !queues.enter(keyspace, &a, 4));
        assert_eq!(queues.leave(keyspace, &a, 3), None, "it was only waiting");
        assert_eq!(queues.leave(keyspace, &a, 1), Some(4));
        assert_eq!(queues.leave(keyspace, &a, 1), None, "it left already");
        assert_eq!(queues.leave(keyspace, &a, 4), None);
        assert!(queues.enter(keyspace, &a, 5), "an empty queue is forgotten");
    }
}
