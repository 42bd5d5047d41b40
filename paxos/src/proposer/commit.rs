//! After the decision: the record on its way to the replicas. The operation has been answered by then.

use dunlin_protocol::register::{RegisterReply, RegisterRequest};
use dunlin_protocol::{Answer, Record, ReplicaSet};

use crate::config::Context;
use crate::effect::Effect;

use super::{Proposer, State};

/// The record that was chosen, on its way to the replicas.
#[derive(Debug)]
pub(super) struct Commit {
    record: Record,
    accept_round: u32,
    /// Who has not yet answered the accept.
    accepting: ReplicaSet,
    /// Who has not yet answered the commit.
    committing: ReplicaSet,
}

impl Proposer {
    /// A quorum accepted.
    pub(super) fn commit(&mut self, cx: &mut Context<'_>) {
        let State::Accept { record, answer, .. } = std::mem::replace(&mut self.state, State::Done) else { return };
        let ending = answer.ending(record.clone().into(), self.ballot);
        let ending = self.with_number(ending);
        self.effects.push_back(Effect::Finish(ending));
        let all = self.quorums.all();
        let accepted = self.tally.yes();
        let accepting = all.iter().filter(|&replica| !self.tally.has_answered(replica)).collect();
        let commit = Commit { record, accept_round: self.round, accepting, committing: all };
        self.begin_round(cx, State::Commit(commit));
        for replica in all.without(accepting).iter() {
            self.send_commit(replica, !accepted.contains(replica));
        }
    }

    pub(super) fn handle_committing(&mut self, replica: usize, round: u32, answer: &Answer) {
        let State::Commit(commit) = &mut self.state else { return };
        if round == commit.accept_round && commit.accepting.contains(replica) {
            commit.accepting = commit.accepting.without([replica].into_iter().collect());
            let accepted = matches!(answer, Answer::Reply(RegisterReply::Accepted));
            return self.send_commit(replica, !accepted);
        }
        if round != self.round || commit.accepting.contains(replica) || !commit.committing.contains(replica) {
            return;
        }
        if matches!(answer, Answer::Reply(RegisterReply::NeedRecord)) {
            return self.send_commit(replica, true);
        }
        commit.committing = commit.committing.without([replica].into_iter().collect());
        if commit.committing.is_empty() {
            self.state = State::Done;
        }
    }

    fn send_commit(&mut self, replica: usize, whole: bool) {
        let State::Commit(commit) = &self.state else { return };
        let record = whole.then(|| commit.record.clone());
        let request = RegisterRequest::Commit { ballot: self.ballot, stamp: commit.record.stamp, record };
        self.send(replica, request);
    }

    /// First those that have not answered the accept are sent the record with its commit, then nobody is waited for any more.
    pub(super) fn stop_waiting(&mut self, cx: &Context<'_>) {
        let State::Commit(commit) = &mut self.state else { return };
        let late = std::mem::take(&mut commit.accepting);
        for replica in late.iter() {
            self.send_commit(replica, true);
        }
        if late.is_empty() || cx.now.tick >= self.deadline {
            self.state = State::Done;
        } else {
            self.timer = cx.now.tick + self.config.round_timeout;
        }
    }
}
