//! `Scan`: one page of a range of partitions that share one replica set.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use dunlin_protocol::message::{PageEntry, ReplicaPage};
use dunlin_protocol::register::{ReadJudgement, RecordView, View, Want, judge_read};
use dunlin_protocol::{Ballot, Key, Level, Millis, PartitionId, Quorums, ReplicaSet, Status, Tick};

use crate::asking::Asking;
use crate::need::{Need, small};
use crate::settled::{content_in, newest_settled};

/// A place in a scan's order.
type Place = (PartitionId, Key);

/// What a [`Scan`] scans, and how. The range itself (partitions, prefix, bounds) is the driver's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanPlan {
    /// The quorums of the partitions' replica set.
    pub quorums: Quorums,
    /// The number that levels are compared with.
    pub replicas: usize,
    /// Who is thought alive.
    pub alive: ReplicaSet,
    /// The nearest first.
    pub order: Vec<usize>,
    /// The level at which each key is read.
    pub level: Level,
    /// Whether the items carry their values.
    pub want_value: bool,
    /// The time by which plain records are judged expired: the driver's hybrid clock.
    pub wall: Millis,
    /// Only keys behind this one; none: from the beginning of the range.
    pub after: Option<Place>,
    /// At most so many items in the page; at least 1.
    pub limit: u32,
    /// Each time that this passes without enough answers one more replica is asked.
    pub speculate_after: Duration,
    /// When to give up.
    pub deadline: Tick,
}

/// What a replica is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageRequest {
    /// Only keys behind this one.
    pub after: Option<Place>,
    /// At most so many entries.
    pub limit: u32,
    /// How much of each record.
    pub want: Want,
}

/// One key of a page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ScanItem {
    /// It has a live value.
    Settled {
        /// Its partition.
        partition: PartitionId,
        /// The key.
        key: Key,
        /// The record; with its content where values were wanted.
        record: RecordView,
        /// Its ballot; zero: plain.
        ballot: Ballot,
    },
    /// The replicas disagree, or expiry has to be decided: read this key by a [`Read`](crate::Read) of its own.
    Unsettled {
        /// Its partition.
        partition: PartitionId,
        /// The key.
        key: Key,
    },
}

/// How a [`Scan`] ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ScanEnding {
    /// A page.
    Page {
        /// In order of (partition, key).
        items: Vec<ScanItem>,
        /// Everything up to here (included) is in the page: the next one begins behind it. None: the range is done.
        complete_upto: Option<Place>,
    },
    /// Too few replicas are alive: nothing was sent.
    Unavailable {
        /// Needed by the level.
        need: u8,
        /// Thought alive.
        alive: u8,
    },
    /// Too few answered before the deadline.
    Timeout {
        /// Needed by the level.
        need: u8,
        /// Answered.
        got: u8,
    },
    /// Too few replicas can answer any more.
    Failed {
        /// Why.
        status: Status,
        /// Needed by the level.
        need: u8,
        /// Answered.
        got: u8,
    },
}

/// What a [`Scan`] wants done.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub enum ScanEffect {
    /// Ask a replica for a page.
    Send {
        /// The replica's number.
        replica: usize,
        /// What is asked.
        page: PageRequest,
    },
    /// The result; exactly once, and the last effect.
    Finish(ScanEnding),
}

/// A page of keys at a level: as many replicas as the level needs each show a page, and every key in the span that all of them cover is judged
/// as a [`Read`](crate::Read) would judge it. A replica that does not show a key within its span holds nothing for it.
///
/// Each key is consistent at the level; the page as a whole is no snapshot. Called like [`Read`](crate::Read).
#[derive(Debug)]
pub struct Scan {
    plan: ScanPlan,
    asking: Asking,
    value_from: Option<usize>,
    pages: Vec<(usize, ReplicaPage)>,
    hedge_at: Option<Tick>,
    ended: bool,
    effects: VecDeque<ScanEffect>,
}

impl Scan {
    /// A scan that has not begun.
    pub fn new(plan: ScanPlan) -> Self {
        let need = Need::new(plan.quorums, plan.replicas, plan.level);
        let asking = Asking::new(need, plan.alive, &plan.order);
        let plan = ScanPlan { limit: plan.limit.max(1), ..plan };
        Self {
            plan,
            asking,
            value_from: None,
            pages: Vec::new(),
            hedge_at: None,
            ended: false,
            effects: VecDeque::new(),
        }
    }

    /// Asks as many replicas as the level needs, or ends it as unavailable.
    pub fn start(&mut self, now: Tick) {
        let alive = self.asking.alive();
        if !self.asking.need().is_met(alive) {
            let need = self.asking.need().count();
            return self.finish(ScanEnding::Unavailable { need, alive: small(alive.len()) });
        }
        self.hedge_at = Some(now + self.plan.speculate_after);
        self.ask();
    }

    /// Takes a replica's page, or why there is none ([`Status::Connect`] where it was not sent or the connection was lost).
    pub fn handle_page(&mut self, _now: Tick, replica: usize, page: Result<ReplicaPage, Status>) {
        if self.ended || !self.asking.is_under_way(replica) {
            return;
        }
        match page {
            Ok(page) if self.is_sound(&page) => {
                self.asking.answer(replica);
                self.pages.push((replica, page));
                if self.asking.is_met() {
                    self.merge();
                }
            }
            Ok(_) => self.fail(replica, Status::BadFrame),
            Err(status) => self.fail(replica, status),
        }
    }

    /// To be called when [`poll_timeout`](Self::poll_timeout) has come.
    pub fn handle_timeout(&mut self, now: Tick) {
        if self.ended {
            return;
        }
        if now >= self.plan.deadline {
            let (need, got) = self.counts();
            return self.finish(ScanEnding::Timeout { need, got });
        }
        if self.hedge_at.is_some_and(|at| at <= now) {
            self.hedge_at = None;
            if let Some(replica) = self.asking.next_alive() {
                self.ask_one(replica);
                // The one that stands in may hang, too.
                self.hedge_at = Some(now + self.plan.speculate_after);
            }
        }
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<ScanEffect> {
        self.effects.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due; none: it is done.
    pub fn poll_timeout(&self) -> Option<Tick> {
        let deadline = self.plan.deadline;
        (!self.ended).then(|| self.hedge_at.map_or(deadline, |at| at.min(deadline)))
    }

    /// Whether nothing more will come of it.
    pub fn is_done(&self) -> bool {
        self.ended && self.effects.is_empty()
    }

    fn ask(&mut self) {
        while self.asking.wants_more() {
            match self.asking.next() {
                Some(replica) => self.ask_one(replica),
                None => break,
            }
        }
    }

    fn ask_one(&mut self, replica: usize) {
        // The first is asked for values, and whoever stands in while that one has not answered.
        let standing_in =
            self.hedge_at.is_none() && !self.value_from.is_some_and(|r| self.asking.answered().contains(r));
        let want = match self.plan.want_value && (self.value_from.is_none() || standing_in) {
            true => Want::VALUE,
            false => Want::HEAD,
        };
        if want == Want::VALUE {
            self.value_from.get_or_insert(replica);
        }
        let page = PageRequest { after: self.plan.after.clone(), limit: self.plan.limit, want };
        self.effects.push_back(ScanEffect::Send { replica, page });
    }

    fn fail(&mut self, replica: usize, status: Status) {
        if self.value_from == Some(replica) {
            self.value_from = None;
        }
        self.asking.fail(replica, Some(status));
        if !self.asking.is_possible() {
            let (need, got) = self.counts();
            return self.finish(ScanEnding::Failed { status: self.asking.status(), need, got });
        }
        self.ask();
    }

    /// Whether a page can be relied on: it gets somewhere, in order.
    fn is_sound(&self, page: &ReplicaPage) -> bool {
        let place = |e: &PageEntry| (e.partition, e.key.clone());
        let begins = match (page.entries.first(), &self.plan.after) {
            (Some(first), Some(after)) => place(first) > *after,
            (Some(_), None) => true,
            (None, _) => page.done,
        };
        begins && page.entries.is_sorted_by(|a, b| (a.partition, &a.key) < (b.partition, &b.key))
    }

    fn merge(&mut self) {
        let last = |page: &ReplicaPage| page.entries.last().map(|e| (e.partition, e.key.clone()));
        let unfinished = self.pages.iter().filter(|(_, page)| !page.done);
        let mut complete_upto = unfinished.filter_map(|(_, page)| last(page)).min();
        let mut views: BTreeMap<Place, Vec<(usize, View)>> = BTreeMap::new();
        for (replica, page) in std::mem::take(&mut self.pages) {
            for PageEntry { partition, key, view } in page.entries {
                let place = (partition, key);
                if complete_upto.as_ref().is_none_or(|upto| place <= *upto) {
                    views.entry(place).or_default().push((replica, view));
                }
            }
        }
        let mut items = Vec::new();
        for (place, mut shown) in views {
            for replica in self.asking.answered().iter() {
                if shown.iter().all(|(r, _)| *r != replica) {
                    shown.push((replica, View::absent()));
                }
            }
            if items.len() == self.plan.limit as usize {
                // The last place judged ends the page.
                complete_upto = items.last().map(|item: &ScanItem| item.place());
                break;
            }
            items.extend(self.judge(place, &shown));
        }
        self.finish(ScanEnding::Page { items, complete_upto });
    }

    /// The item for a key; none: it has no value.
    fn judge(&self, (partition, key): Place, views: &[(usize, View)]) -> Option<ScanItem> {
        let quorums = self.asking.need().quorums();
        let by_quorum = self.asking.need().is_quorum();
        let current = match by_quorum {
            false => newest_settled(views, quorums),
            true => match judge_read(views, quorums) {
                ReadJudgement::Answer(current) => current,
                ReadJudgement::WriteBack(_) | ReadJudgement::Propose => {
                    return Some(ScanItem::Unsettled { partition, key });
                }
            },
        };
        let found = current.find(views);
        if !found.head.is_live(self.plan.wall) {
            // On a serial key expiry is a decision (PROTOCOL.md 2.3).
            let undecided = by_quorum && !found.head.tombstone && !current.ballot.is_zero();
            return undecided.then_some(ScanItem::Unsettled { partition, key });
        }
        let content = content_in(views, &found.head);
        if self.plan.want_value && content.is_none() {
            return Some(ScanItem::Unsettled { partition, key });
        }
        let record = RecordView { head: found.head, lineage: None, content };
        Some(ScanItem::Settled { partition, key, record, ballot: current.ballot })
    }

    fn counts(&self) -> (u8, u8) {
        (self.asking.need().count(), small(self.asking.answered().len()))
    }

    fn finish(&mut self, ending: ScanEnding) {
        self.ended = true;
        self.effects.push_back(ScanEffect::Finish(ending));
    }
}

impl ScanItem {
    /// Its partition and key.
    pub fn place(&self) -> (PartitionId, Key) {
        match self {
            Self::Settled { partition, key, .. } | Self::Unsettled { partition, key } => (*partition, key.clone()),
        }
    }
}
