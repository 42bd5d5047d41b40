//! P3 to P6 and the outcome query (PROTOCOL.md 1.5, 1.8, 2.3): what follows from the current record. Pure.

use dunlin_protocol::register::RecordView;
use dunlin_protocol::{Attributes, Ballot, Condition, Content, Millis, Mutation, OpId, RecordHead, Stamp};

use crate::effect::Ending;
use crate::goal::Goal;

/// The current record (`cur` of P2) and what is known about it and the operation.
#[derive(Debug)]
pub(crate) struct Case<'a> {
    pub(crate) goal: &'a Goal,
    pub(crate) op_id: OpId,
    /// The operation may have been tried before: by an earlier attempt, on the plain path, or by this proposer.
    pub(crate) tried: bool,
    pub(crate) current: &'a RecordView,
    /// Whether it has a ballot (there is an A).
    pub(crate) has_entry: bool,
    pub(crate) stable: bool,
    /// The hybrid clock.
    pub(crate) now: Millis,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Judgement {
    /// The current record's lineage or content must be fetched first.
    Incomplete,
    /// P4: it cannot be told any more.
    Unknown,
    /// SETTLE.
    Settle {
        answer: Reply,
        /// Whether the answer may be given without a proposal.
        shortcut: bool,
    },
    /// P6: propose a record that follows the current one.
    Propose { draft: Draft, answer: Reply },
}

/// What a record remembers of an operation.
enum Memory {
    /// It was applied here.
    Applied(Stamp),
    /// It never will be (1.8).
    Never,
    /// Nothing: it was not applied, or the reach hides it.
    Nothing,
    /// The lineage was not read.
    Missing,
}

/// A proposal but for stamp, reach and lineage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Draft {
    /// Zero: no operation's.
    pub(crate) op_id: OpId,
    pub(crate) content: Content,
    pub(crate) expires_at: Millis,
    /// An operation to be marked as never applied.
    pub(crate) mark: Option<OpId>,
}

/// The ending that follows once the record it is drawn from is decided.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Reply {
    /// The decided record itself.
    Record,
    /// The decided record is the operation's own.
    Own { number: Option<i64> },
    /// This, whatever the decided record is called.
    Fixed(Ending),
}

impl Reply {
    /// The ending, given what was decided at which ballot.
    pub(crate) fn ending(self, record: RecordView, ballot: Ballot) -> Ending {
        match self {
            Self::Record => Ending::Read { record, ballot },
            Self::Own { number } => {
                Ending::Applied { version: record.head.stamp, number, expires_at: record.head.expires_at }
            }
            Self::Fixed(ending) => ending,
        }
    }
}

impl Case<'_> {
    pub(crate) fn judge(&self) -> Judgement {
        match self.goal {
            Goal::Read => self.judge_read(),
            Goal::Outcome => self.judge_outcome(),
            Goal::Write { condition, mutation } => self.judge_write(condition.as_ref(), mutation),
        }
    }

    fn head(&self) -> &RecordHead {
        &self.current.head
    }

    fn is_expired(&self) -> bool {
        !self.head().tombstone && self.head().is_expired(self.now)
    }

    fn is_live(&self) -> bool {
        self.head().is_live(self.now)
    }

    /// What the record remembers of the operation.
    fn memory(&self) -> Memory {
        if !self.op_id.is_zero() && self.head().op_id == self.op_id {
            return Memory::Applied(self.head().stamp);
        }
        let Some(lineage) = &self.current.lineage else { return Memory::Missing };
        match lineage.iter().filter(|ancestor| ancestor.op_id == self.op_id).map(|ancestor| ancestor.stamp).max() {
            None => Memory::Nothing,
            Some(Stamp::ZERO) => Memory::Never,
            Some(stamp) => Memory::Applied(stamp),
        }
    }

    fn judge_read(&self) -> Judgement {
        if self.is_expired() {
            return self.expire(Reply::Record);
        }
        match self.current.content {
            None => Judgement::Incomplete,
            // Without an entry the next read must find one: the key is serial now and the quorum read needs it.
            Some(_) => Judgement::Settle { answer: Reply::Record, shortcut: self.stable && self.has_entry },
        }
    }

    fn judge_outcome(&self) -> Judgement {
        let settle = |ending| Judgement::Settle { answer: Reply::Fixed(ending), shortcut: self.stable };
        match self.memory() {
            Memory::Missing => return Judgement::Incomplete,
            Memory::Never => return settle(Ending::NotApplied),
            Memory::Applied(version) => return settle(Ending::OutcomeApplied { version }),
            Memory::Nothing if self.head().reach >= self.op_id => return Judgement::Unknown,
            Memory::Nothing => {}
        }
        let Some(content) = self.current.content.clone() else { return Judgement::Incomplete };
        let expires_at = self.head().expires_at;
        let draft = Draft { op_id: OpId::ZERO, content, expires_at, mark: Some(self.op_id) };
        Judgement::Propose { draft, answer: Reply::Fixed(Ending::NotApplied) }
    }

    fn judge_write(&self, condition: Option<&Condition>, mutation: &Mutation) -> Judgement {
        let settle = |ending| Judgement::Settle { answer: Reply::Fixed(ending), shortcut: self.stable };
        match self.memory() {
            Memory::Missing => return Judgement::Incomplete,
            Memory::Never => return settle(Ending::NotApplied),
            Memory::Applied(version) => return settle(self.already_applied(version, condition, mutation)),
            Memory::Nothing if self.tried && self.head().reach >= self.op_id => return Judgement::Unknown,
            Memory::Nothing => {}
        }
        match self.holds(condition) {
            None => return Judgement::Incomplete,
            Some(true) => {}
            Some(false) => {
                let current = if self.is_live() { self.head().stamp } else { Stamp::ZERO };
                return self.fail(Ending::ConditionFailed { current });
            }
        }
        let (content, expires_at, number) = match mutation {
            Mutation::Put { value, attributes, ttl_millis } => {
                let content = Content::Value(value.clone(), attributes.clone());
                (content, expiry(self.op_id, *ttl_millis), None)
            }
            Mutation::Delete => (Content::Tombstone, Millis::NONE, None),
            Mutation::Increment { by } => {
                let (number, attributes, expires_at) = match (&self.current.content, self.is_live()) {
                    (_, false) => (Some(0), Attributes::default(), Millis::NONE),
                    (None, true) => return Judgement::Incomplete,
                    (Some(content), true) => (number_of(content), attributes_of(content), self.head().expires_at),
                };
                let Some(sum) = number.and_then(|number| number.checked_add(*by)) else {
                    return self.fail(Ending::NotANumber);
                };
                (Content::Value(sum.to_string().into(), attributes), expires_at, Some(sum))
            }
        };
        let draft = Draft { op_id: self.op_id, content, expires_at, mark: None };
        Judgement::Propose { draft, answer: Reply::Own { number } }
    }

    /// None: it takes the content to tell.
    fn holds(&self, condition: Option<&Condition>) -> Option<bool> {
        let head = self.head();
        Some(match condition {
            None => true,
            Some(Condition::Absent) => !self.is_live(),
            Some(Condition::Version(version)) => self.is_live() && head.stamp == *version,
            Some(Condition::Value(value)) if !self.is_live() || head.value_len as usize != value.len() => false,
            Some(Condition::Value(value)) => self.current.content.as_ref()?.bytes() == Some(value),
        })
    }

    /// P5: nothing changes. When the operation may have been tried, only a decision at this ballot ends every earlier attempt.
    fn fail(&self, ending: Ending) -> Judgement {
        if self.is_expired() {
            return self.expire(Reply::Fixed(ending));
        }
        Judgement::Settle { answer: Reply::Fixed(ending), shortcut: self.stable && !self.tried }
    }

    /// 2.3: that the record ended is decided before an answer tells of it, so no later read can see it again.
    fn expire(&self, answer: Reply) -> Judgement {
        if self.current.lineage.is_none() {
            return Judgement::Incomplete;
        }
        let draft = Draft { op_id: OpId::ZERO, content: Content::Tombstone, expires_at: Millis::NONE, mark: None };
        Judgement::Propose { draft, answer }
    }

    fn already_applied(&self, version: Stamp, condition: Option<&Condition>, mutation: &Mutation) -> Ending {
        let current = self.head().op_id == self.op_id;
        if current && condition.is_none() && self.differs(mutation) {
            return Ending::Reused;
        }
        let content = self.current.content.as_ref().filter(|_| current);
        let (number, expires_at) = match mutation {
            Mutation::Put { ttl_millis, .. } => (None, expiry(self.op_id, *ttl_millis)),
            Mutation::Delete => (None, Millis::NONE),
            Mutation::Increment { .. } if current => (content.and_then(number_of), self.head().expires_at),
            Mutation::Increment { .. } => (None, Millis::NONE),
        };
        Ending::Applied { version, number, expires_at }
    }

    /// Whether the record, which bears the operation's id, can be seen to hold another value than the operation puts.
    fn differs(&self, mutation: &Mutation) -> bool {
        let Mutation::Put { value, .. } = mutation else { return false };
        let head = self.head();
        let same_value = || self.current.content.as_ref().is_none_or(|content| content.bytes() == Some(value));
        head.tombstone || head.value_len as usize != value.len() || !same_value()
    }
}

fn expiry(op_id: OpId, ttl_millis: u64) -> Millis {
    match ttl_millis {
        0 => Millis::NONE,
        ttl => Millis(op_id.wall().0.saturating_add(ttl)),
    }
}

fn number_of(content: &Content) -> Option<i64> {
    std::str::from_utf8(content.bytes()?).ok()?.parse().ok()
}

fn attributes_of(content: &Content) -> Attributes {
    match content {
        Content::Tombstone => Attributes::default(),
        Content::Value(_, attributes) => attributes.clone(),
    }
}

#[cfg(test)]
mod tests;
