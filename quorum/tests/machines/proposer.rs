//! A proposer for the model: P1, P2, P6 and SETTLE of PROTOCOL.md 1.5 in their plainest form, one ballot and then it gives up.

use dunlin_protocol::register::{RegisterReply, RegisterRequest, View, Want, combine};
use dunlin_protocol::{Ancestor, Answer, Ballot, Quorums, Record, ReplicaSet, Stamp};

#[derive(Debug)]
pub(crate) struct Proposer {
    quorums: Quorums,
    ballot: Ballot,
    /// What to write; none: settle what is there.
    write: Option<Record>,
    promises: Vec<(usize, View)>,
    proposal: Option<Record>,
    accepted: ReplicaSet,
    done: bool,
}

/// What comes of an answer.
#[derive(Debug, Default)]
pub(crate) struct Step {
    /// To all replicas.
    pub(crate) send: Option<RegisterRequest>,
    /// What was proposed, and the stamp of the record that it rests on.
    pub(crate) proposed: Option<(Stamp, Stamp)>,
    /// The stamp that was chosen.
    pub(crate) chosen: Option<(Stamp, Ballot)>,
}

impl Proposer {
    /// `ballot` is drawn fresh.
    pub(crate) fn new(quorums: Quorums, ballot: Ballot, write: Option<Record>) -> Self {
        let (promises, accepted) = (Vec::new(), ReplicaSet::EMPTY);
        Self { quorums, ballot, write, promises, proposal: None, accepted, done: false }
    }

    pub(crate) fn start(&self) -> RegisterRequest {
        RegisterRequest::Prepare { ballot: self.ballot, want: Want::ALL }
    }

    /// `fresh` is drawn fresh.
    pub(crate) fn handle(&mut self, replica: usize, answer: Answer, fresh: Stamp) -> Step {
        match answer {
            Answer::Reply(RegisterReply::Promise(view)) if self.proposal.is_none() => {
                if self.promises.iter().all(|(r, _)| *r != replica) {
                    self.promises.push((replica, view));
                }
                if self.quorums.is_quorum(self.promises.iter().map(|(r, _)| *r).collect()) {
                    return self.propose(fresh);
                }
            }
            Answer::Reply(RegisterReply::Accepted) if !self.done => {
                self.accepted.insert(replica);
                let Some(record) = self.proposal.as_ref().filter(|_| self.quorums.is_quorum(self.accepted)) else {
                    return Step::default();
                };
                self.done = true;
                let stamp = record.stamp;
                let commit = RegisterRequest::Commit { ballot: self.ballot, stamp, record: Some(record.clone()) };
                return Step { send: Some(commit), proposed: None, chosen: Some((stamp, self.ballot)) };
            }
            _ => {}
        }
        Step::default()
    }

    fn propose(&mut self, fresh: Stamp) -> Step {
        let combination = combine(&self.promises, &self.quorums);
        let current = combination.current.find(&self.promises).to_record().expect("all was asked for");
        let rests_on = current.stamp;
        let record = match &self.write {
            None => current,
            Some(write) => {
                assert!(fresh > combination.seen.max(write.op_id), "drawn fresh");
                let lineage = match current.stamp.is_zero() {
                    true => Vec::new(),
                    false => vec![Ancestor { op_id: current.op_id, stamp: current.stamp }],
                };
                Record { stamp: fresh, reach: current.reach, lineage, ..write.clone() }
            }
        };
        let proposed = Some((record.stamp, rests_on));
        let accept = RegisterRequest::Accept { ballot: self.ballot, record: record.clone(), next: Ballot::ZERO };
        self.proposal = Some(record);
        Step { send: Some(accept), proposed, chosen: None }
    }
}
