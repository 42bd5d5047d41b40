//! The replica's transition (PROTOCOL.md 1.3).

use serde::{Deserialize, Serialize};

use crate::record::{Record, RecordHead};
use crate::stamp::{Ballot, Stamp};
use crate::time::{Millis, Times};

use super::view::{RegisterReply, View, Want};

/// What may be asked of a replica about one key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RegisterRequest {
    /// Show the register.
    Read {
        /// How much of it.
        want: Want,
    },
    /// Store a plain record where it is newer, unless the key is serial.
    Write {
        /// Stamp = op id.
        record: Record,
    },
    /// Promise to refuse lower ballots, and show the register.
    Prepare {
        /// The proposer's ballot.
        ballot: Ballot,
        /// How much of the register.
        want: Want,
    },
    /// Accept a record at a ballot.
    Accept {
        /// The proposer's ballot.
        ballot: Ballot,
        /// The proposal.
        record: Record,
        /// A promise for this ballot rides along; zero: none (1.7).
        next: Ballot,
    },
    /// A record was chosen.
    Commit {
        /// The ballot at which it was chosen.
        ballot: Ballot,
        /// Its stamp.
        stamp: Stamp,
        /// Left out to a replica that accepted it at this ballot.
        record: Option<Record>,
    },
    /// Repair: a record read from a replica of the partition in this epoch. Never counted.
    Install {
        /// Zero: a plain record.
        ballot: Ballot,
        /// What was read.
        record: Record,
    },
    /// Forget a tombstone that all replicas hold and that has aged (1.10).
    Drop {
        /// The tombstone's ballot.
        ballot: Ballot,
        /// The tombstone's stamp.
        stamp: Stamp,
        /// The collector's clock when it started.
        started_at: Millis,
    },
}

/// A record's head and the place where the whole of it lies.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Held<P> {
    /// The record but for lineage and content.
    pub head: RecordHead,
    /// Where the storage engine finds the rest; whatever that means to the owner.
    pub place: P,
}

/// What a replica holds for one key. `P` is where records lie: opaque here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Register<P> {
    /// None: absent.
    pub record: Option<Held<P>>,
    /// The record's ballot; zero: plain or absent.
    pub ballot: Ballot,
    /// The highest promise.
    pub promised: Ballot,
    /// Accepted at a ballot above `ballot`.
    pub pending: Option<(Ballot, Held<P>)>,
    /// When record or ballot last changed here, by this replica's physical clock.
    pub stored_at: Millis,
}

impl<P> Default for Register<P> {
    fn default() -> Self {
        Self { record: None, ballot: Ballot::ZERO, promised: Ballot::ZERO, pending: None, stored_at: Millis::NONE }
    }
}

/// What a request does to a register. This, not the request, is what the log keeps.
/// A change that [takes a record](Change::takes_record) is given the place of the record that came with the request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Change {
    /// The promise rises.
    Promise {
        /// To this.
        ballot: Ballot,
    },
    /// A record is accepted; the promise becomes `promised`.
    Accept {
        /// At this ballot.
        ballot: Ballot,
        /// The promise afterwards.
        promised: Ballot,
    },
    /// The record is replaced. Ballot zero: a plain record.
    Store {
        /// The new record's ballot.
        ballot: Ballot,
    },
    /// The pending becomes the record.
    Commit {
        /// The pending's ballot.
        ballot: Ballot,
    },
    /// The key is absent and plain again.
    Forget,
    /// The promise goes (only where the record has a ballot).
    Purge,
}

impl Change {
    /// Whether the change stores the record that came with the request.
    pub fn takes_record(&self) -> bool {
        matches!(self, Self::Accept { .. } | Self::Store { .. })
    }
}

/// The reply to a request, but for the records that views carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Show the register as it is after the change.
    View(Want),
    /// Promised: show the register as it is after the change.
    Promise(Want),
    /// See [`RegisterReply`](super::RegisterReply) for this and the following.
    Reject {
        /// The highest ballot promised or committed here.
        max: Ballot,
    },
    /// Accepted, or committed already at this very ballot.
    Accepted,
    /// The commit is in, or something newer is.
    Committed,
    /// The commit named a record that is not pending here.
    NeedRecord,
    /// The stamp held now.
    Written {
        /// At least the write's.
        stamp: Stamp,
    },
    /// The key is serial.
    Refused {
        /// The highest stamp or ballot seen.
        seen: Stamp,
    },
    /// Stored, or not newer.
    Installed,
    /// Not taken: the key needs settling.
    Unsettled,
    /// Forgotten.
    Dropped,
    /// Not what was to be dropped.
    NotDropped,
}

impl Verdict {
    /// The reply as it travels. `view` shows the register, as it is after the change, where the verdict asks for it.
    pub fn into_reply<E>(self, view: impl FnOnce(Want) -> Result<View, E>) -> Result<RegisterReply, E> {
        Ok(match self {
            Self::View(want) => RegisterReply::View(view(want)?),
            Self::Promise(want) => RegisterReply::Promise(view(want)?),
            Self::Reject { max } => RegisterReply::Reject { max },
            Self::Accepted => RegisterReply::Accepted,
            Self::Committed => RegisterReply::Committed,
            Self::NeedRecord => RegisterReply::NeedRecord,
            Self::Written { stamp } => RegisterReply::Written { stamp },
            Self::Refused { seen } => RegisterReply::Refused { seen },
            Self::Installed => RegisterReply::Installed,
            Self::Unsettled => RegisterReply::Unsettled,
            Self::Dropped => RegisterReply::Dropped,
            Self::NotDropped => RegisterReply::NotDropped,
        })
    }
}

/// What is answered and what changes. The change must be durable before the answer leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// The answer.
    pub verdict: Verdict,
    /// None: the register stays as it is.
    pub change: Option<Change>,
}

impl<P: Copy> Register<P> {
    /// The record's head, [`RecordHead::ABSENT`] where there is none.
    pub fn head(&self) -> RecordHead {
        self.record.map_or(RecordHead::ABSENT, |held| held.head)
    }

    /// Whether the key is serial here (1.1).
    pub fn is_serial(&self) -> bool {
        !self.promised.is_zero() || !self.ballot.is_zero() || self.pending.is_some()
    }

    /// Whether nothing at all is held.
    pub fn is_absent(&self) -> bool {
        self.record.is_none() && !self.is_serial()
    }

    /// Rule 1.3. `wall` is this replica's physical clock.
    pub fn decide(&self, request: &RegisterRequest, wall: Millis, times: &Times) -> Decision {
        match request {
            RegisterRequest::Read { want } => answer(Verdict::View(*want)),
            RegisterRequest::Write { record } => self.decide_write(record),
            RegisterRequest::Prepare { ballot, want } => {
                let max = self.promised.max(self.ballot);
                if *ballot <= max {
                    return answer(Verdict::Reject { max });
                }
                change(Verdict::Promise(*want), Change::Promise { ballot: *ballot })
            }
            RegisterRequest::Accept { ballot, next, .. } => self.decide_accept(*ballot, *next),
            RegisterRequest::Commit { ballot, stamp, record } => self.decide_commit(*ballot, *stamp, record.is_some()),
            RegisterRequest::Install { ballot, record } => self.decide_install(*ballot, record),
            RegisterRequest::Drop { ballot, stamp, started_at } => {
                let head = self.head();
                let same = self.ballot == *ballot && head.stamp == *stamp && head.tombstone && self.pending.is_none();
                if same && self.is_aged(*started_at, wall, times) {
                    change(Verdict::Dropped, Change::Forget)
                } else {
                    answer(Verdict::NotDropped)
                }
            }
        }
    }

    /// Purge (1.3), asked for by the replica itself: a promise that nothing can count on any more goes.
    pub fn decide_purge(&self, wall: Millis, times: &Times) -> Option<Change> {
        let old = !self.promised.is_zero() && self.promised.wall() < wall.minus(times.grace);
        (old && !self.ballot.is_zero() && !self.head().tombstone).then_some(Change::Purge)
    }

    fn decide_write(&self, record: &Record) -> Decision {
        let head = self.head();
        if self.is_serial() {
            let pending = self.pending.map_or(Stamp::ZERO, |(ballot, held)| held.head.stamp.max(ballot));
            return answer(Verdict::Refused { seen: head.stamp.max(self.promised).max(self.ballot).max(pending) });
        }
        if record.stamp > head.stamp {
            return change(Verdict::Written { stamp: record.stamp }, Change::Store { ballot: Ballot::ZERO });
        }
        answer(Verdict::Written { stamp: head.stamp })
    }

    fn decide_accept(&self, ballot: Ballot, next: Ballot) -> Decision {
        if ballot < self.promised || ballot < self.ballot {
            return answer(Verdict::Reject { max: self.promised.max(self.ballot) });
        }
        if ballot == self.ballot {
            return answer(Verdict::Accepted);
        }
        let promised = self.promised.max(ballot).max(next);
        if self.pending.is_some_and(|(pending, _)| pending == ballot) && promised == self.promised {
            // A duplicate: one ballot carries one proposal, ever.
            return answer(Verdict::Accepted);
        }
        change(Verdict::Accepted, Change::Accept { ballot, promised })
    }

    fn decide_commit(&self, ballot: Ballot, stamp: Stamp, has_record: bool) -> Decision {
        if (ballot, stamp) <= (self.ballot, self.head().stamp) {
            return answer(Verdict::Committed);
        }
        match self.pending {
            Some((pending, held)) if pending == ballot && held.head.stamp == stamp => {
                change(Verdict::Committed, Change::Commit { ballot })
            }
            _ if has_record => change(Verdict::Committed, Change::Store { ballot }),
            _ => answer(Verdict::NeedRecord),
        }
    }

    fn decide_install(&self, ballot: Ballot, record: &Record) -> Decision {
        if ballot.is_zero() {
            let decision = self.decide_write(record);
            let verdict = match decision.verdict {
                Verdict::Refused { .. } => Verdict::Unsettled,
                _ => Verdict::Installed,
            };
            return Decision { verdict, ..decision };
        }
        let head = self.head();
        if (ballot, record.stamp) <= (self.ballot, head.stamp) {
            return answer(Verdict::Installed);
        }
        // A tombstone that other replicas dropped meanwhile must not hide what was written after the drop.
        if record.head().tombstone && self.ballot.is_zero() && head.stamp > record.stamp {
            return answer(Verdict::Unsettled);
        }
        change(Verdict::Installed, Change::Store { ballot })
    }

    /// `aged` of 1.2: nothing that could act on an older state of this key is still under way at `at`.
    pub fn is_aged(&self, at: Millis, wall: Millis, times: &Times) -> bool {
        let limit = at.minus(times.grace).min(wall.minus(times.grace));
        let head = self.head();
        [head.stamp.wall(), head.expires_at, self.ballot.wall(), self.promised.wall(), self.stored_at]
            .iter()
            .all(|&time| !time.is_some() || time < limit)
    }

    /// Carries out a change that [`decide`](Self::decide) returned, now or on replay. `held` is the record that came along, for a change that
    /// takes one. `stored_at` is the replica's physical time of the change.
    ///
    /// # Panics
    /// If a change that takes a record comes without one, or a commit names a pending that is not there: the log lost a frame, and going on
    /// would lose an acknowledged write.
    pub fn apply(&mut self, change: Change, held: Option<Held<P>>, stored_at: Millis) {
        match change {
            Change::Promise { ballot } => self.promised = ballot,
            Change::Accept { ballot, promised } => {
                self.promised = promised;
                self.pending = Some((ballot, held.expect("an accept carries its record")));
            }
            Change::Store { ballot } => {
                self.record = Some(held.expect("a store carries its record"));
                self.settle(ballot, stored_at);
            }
            Change::Commit { ballot } => {
                let (pending, held) = self.pending.expect("a commit by name finds its pending");
                assert_eq!(pending, ballot, "a commit by name finds its pending");
                self.record = Some(held);
                self.settle(ballot, stored_at);
            }
            Change::Forget => *self = Self::default(),
            Change::Purge => self.promised = Ballot::ZERO,
        }
    }

    fn settle(&mut self, ballot: Ballot, stored_at: Millis) {
        self.ballot = ballot;
        self.stored_at = stored_at;
        if self.pending.is_some_and(|(pending, _)| pending <= ballot) {
            self.pending = None;
        }
    }
}

fn answer(verdict: Verdict) -> Decision {
    Decision { verdict, change: None }
}

fn change(verdict: Verdict, change: Change) -> Decision {
    Decision { verdict, change: Some(change) }
}
