//! The answers to one round of requests.

use dunlin_protocol::register::RegisterReply;
use dunlin_protocol::{Answer, Quorums, ReplicaSet, Status};

/// How a replica's answer counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Vote {
    /// What was asked for.
    Yes,
    /// A higher ballot was seen there.
    Rejected,
    /// It refused, for this reason.
    Refused(Status),
    /// Nothing was sent to it.
    NotSent,
    /// Its stamps lie too far ahead of this node's clock.
    Skewed,
    /// The connection was lost, or the answer makes no sense: it may have done what was asked.
    Lost,
}

impl Vote {
    /// How an answer counts that is not what was asked for.
    pub(crate) fn against(answer: &Answer, skewed: bool) -> Self {
        match answer {
            Answer::Reply(RegisterReply::Reject { .. }) => Self::Rejected,
            Answer::Refused { status, .. } => Self::Refused(*status),
            Answer::NotSent => Self::NotSent,
            Answer::Reply(_) if skewed => Self::Skewed,
            Answer::Reply(_) | Answer::Lost => Self::Lost,
        }
    }
}

/// Who answered what. A replica's first answer to a round counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    yes: ReplicaSet,
    rejected: ReplicaSet,
    refused: ReplicaSet,
    not_sent: ReplicaSet,
    skewed: ReplicaSet,
    lost: ReplicaSet,
    /// Of those that refused: those that may have done it all the same.
    doubtful: ReplicaSet,
    status: Option<Status>,
}

/// Whether a replica that refuses so has certainly done nothing: a failed log may come back with what was being written to it.
fn is_definite(status: Status) -> bool {
    !matches!(status, Status::StorageFailed | Status::Corruption | Status::Timeout | Status::OutcomeUnknown)
}

impl Tally {
    pub(crate) fn count(&mut self, replica: usize, vote: Vote) {
        let set = match vote {
            Vote::Yes => &mut self.yes,
            Vote::Rejected => &mut self.rejected,
            Vote::Refused(status) => {
                if self.status.is_none() || status == Status::StaleEpoch {
                    self.status = Some(status);
                }
                if !is_definite(status) {
                    self.doubtful.insert(replica);
                }
                &mut self.refused
            }
            Vote::NotSent => &mut self.not_sent,
            Vote::Skewed => &mut self.skewed,
            Vote::Lost => &mut self.lost,
        };
        set.insert(replica);
    }

    pub(crate) fn yes(&self) -> ReplicaSet {
        self.yes
    }

    pub(crate) fn not_sent(&self) -> ReplicaSet {
        self.not_sent
    }

    /// The most telling reason of those that refused.
    pub(crate) fn status(&self) -> Option<Status> {
        self.status
    }

    pub(crate) fn has_answered(&self, replica: usize) -> bool {
        self.yes.contains(replica) || self.no().contains(replica)
    }

    pub(crate) fn all_answered(&self, quorums: &Quorums) -> bool {
        quorums.all().iter().all(|replica| self.has_answered(replica))
    }

    fn no(&self) -> ReplicaSet {
        let sets = [self.rejected, self.refused, self.not_sent, self.skewed, self.lost];
        sets.iter().flat_map(|set| set.iter()).collect()
    }

    /// Whether a quorum can still say yes.
    pub(crate) fn is_possible(&self, quorums: &Quorums) -> bool {
        quorums.is_possible(self.no())
    }

    /// Whether what was asked took effect nowhere, and never will.
    pub(crate) fn is_void(&self, quorums: &Quorums) -> bool {
        let did_nothing: ReplicaSet =
            [self.rejected, self.refused, self.not_sent].iter().flat_map(|set| set.iter()).collect();
        quorums.all().without(did_nothing.without(self.doubtful)).is_empty()
    }

    /// Whether a quorum is impossible because of those alone that refused or could not be sent to: asking again at once changes nothing.
    pub(crate) fn is_blocked(&self, quorums: &Quorums) -> bool {
        !quorums.is_possible(self.refused.iter().chain(self.not_sent.iter()).collect())
    }

    /// As [`is_blocked`](Self::is_blocked), with those whose clocks are off counted too.
    pub(crate) fn is_skewed(&self, quorums: &Quorums) -> bool {
        let sets = [self.refused, self.not_sent, self.skewed];
        !self.skewed.is_empty() && !quorums.is_possible(sets.iter().flat_map(|set| set.iter()).collect())
    }
}
