//! The proposer: one attempt at one operation on the serial path.

mod commit;
mod found;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use dunlin_protocol::register::{RecordView, RegisterReply, RegisterRequest, View, Want, combine};
use dunlin_protocol::{
    Answer, Ballot, DrawError, Millis, OpId, Quorums, Record, ReplicaSet, Stamp, Status, Tick, Window,
};

use crate::backoff::Backoff;
use crate::config::{Config, Context};
use crate::effect::{Effect, Ending};
#[cfg(test)]
use crate::explore::Rule;
use crate::goal::Goal;
use crate::judge::{Case, Draft, Judgement, Reply};
use crate::lineage::inherit;
use crate::tally::{Tally, Vote};

use self::commit::Commit;
use self::found::{Found, complete, highest_stamp};

/// How often a round's timeout doubles at most.
const MAX_DOUBLINGS: u32 = 3;

/// One attempt at a read, a write or an outcome query, from the first ballot to the last commit (PROTOCOL.md 1.5, 1.8).
///
/// - getters: [`is_done`](Self::is_done), [`highest_ballot`](Self::highest_ballot), [`highest_seen`](Self::highest_seen),
///   [`may_take_effect`](Self::may_take_effect)
/// - [`start`](Self::start) once, then [`handle`](Self::handle) with each answer and [`handle_timeout`](Self::handle_timeout) when the time that
///   [`poll_timeout`](Self::poll_timeout) names has come
/// - after each of them [`poll_effect`](Self::poll_effect) until it is empty
///
/// Answers that are late, double or make no sense are ignored or count as a no; nothing that a replica sends makes it panic.
/// When [`is_done`](Self::is_done) it may be dropped; dropped earlier it is as if the coordinator had crashed, which is safe.
#[derive(Debug)]
pub struct Proposer {
    config: Config,
    quorums: Quorums,
    goal: Goal,
    op_id: OpId,
    tried: bool,
    window: Window,
    deadline: Tick,
    nearest: usize,
    backoff: Backoff,
    /// Rounds that ran into their timeout: each doubles the next ones', or proposers would never end where the way is longer than the timeout.
    timeouts: u32,

    state: State,
    round: u32,
    tally: Tally,
    timer: Tick,
    ballot: Ballot,
    seen: Stamp,
    /// Whether an own proposal was sent to be accepted: from then on the operation counts as tried.
    sent: bool,
    /// Whether one of them may be accepted somewhere and is not known to be decided.
    in_doubt: bool,
    /// The numbers that own proposals of an increment would make, by their stamps: a later round may find one of them chosen.
    numbers: BTreeMap<Stamp, i64>,
    effects: VecDeque<Effect>,
    #[cfg(test)]
    pub(crate) broken: Option<Rule>,
}

#[derive(Debug)]
enum State {
    New,
    Prepare { views: Vec<(usize, View)> },
    Fetch { found: Found, holders: Vec<usize> },
    Accept { record: Record, answer: Reply, own: bool },
    BackOff,
    Commit(Commit),
    Done,
}

impl Proposer {
    /// An attempt at the operation `op_id` within `window`, until `deadline`. `tried`: an earlier attempt, or a plain write, may have been sent.
    /// `backoff_seed` makes proposers part after a duel.
    #[expect(clippy::too_many_arguments, reason = "all of them belong to the one attempt, and none has a default")]
    pub fn new(
        config: Config,
        quorums: Quorums,
        goal: Goal,
        op_id: OpId,
        tried: bool,
        window: Window,
        deadline: Tick,
        backoff_seed: u64,
    ) -> Self {
        Self {
            config,
            quorums,
            goal,
            op_id,
            tried,
            window,
            deadline,
            nearest: 0,
            backoff: Backoff::new(backoff_seed),
            timeouts: 0,
            state: State::New,
            round: 0,
            tally: Tally::default(),
            timer: deadline,
            ballot: Ballot::ZERO,
            seen: op_id,
            sent: false,
            in_doubt: false,
            numbers: BTreeMap::new(),
            effects: VecDeque::new(),
            #[cfg(test)]
            broken: None,
        }
    }

    /// Asks this replica, rather than replica 0, for values too large to be asked of all.
    pub fn with_nearest(mut self, replica: usize) -> Self {
        self.nearest = replica;
        self
    }

    /// Begins.
    pub fn start(&mut self, cx: &mut Context<'_>) {
        if !matches!(self.state, State::New) {
            return;
        }
        // Whoever works on an operation first raises its clock to the operation's id (1.1).
        if cx.clock.observe(self.op_id, cx.now.wall).is_err() {
            return self.finish(Ending::ClockSkew);
        }
        self.prepare(cx);
    }

    /// Takes the answer of a replica to the request that was sent to it in this round.
    pub fn handle(&mut self, cx: &mut Context<'_>, replica: usize, round: u32, answer: Answer) {
        if !self.quorums.all().contains(replica) {
            return;
        }
        // Clocks learn from every reply, late ones too.
        let highest = highest_stamp(&answer);
        let skewed = cx.clock.observe(highest, cx.now.wall).is_err();
        if !skewed {
            self.seen = self.seen.max(highest);
        }
        if let State::Commit(_) = self.state {
            return self.handle_committing(replica, round, &answer);
        }
        if round != self.round || self.tally.has_answered(replica) {
            return;
        }
        match (&mut self.state, answer) {
            (State::Prepare { views }, Answer::Reply(RegisterReply::Promise(view)))
                if !skewed && view.promised == self.ballot =>
            {
                views.push((replica, view));
                self.count(cx, replica, Vote::Yes);
            }
            (State::Accept { .. }, Answer::Reply(RegisterReply::Accepted)) => self.count(cx, replica, Vote::Yes),
            (State::Prepare { .. } | State::Accept { .. }, answer) => {
                self.count(cx, replica, Vote::against(&answer, skewed));
            }
            (State::Fetch { found, .. }, Answer::Reply(RegisterReply::View(view))) => {
                complete(&mut found.current, &view);
                self.fetched(cx);
            }
            (State::Fetch { .. }, _) => self.fetch_next(cx),
            (State::New | State::BackOff | State::Commit(_) | State::Done, _) => {}
        }
    }

    /// To be called when the time of [`poll_timeout`](Self::poll_timeout) has come. Harmless before.
    pub fn handle_timeout(&mut self, cx: &mut Context<'_>) {
        if self.poll_timeout().is_none_or(|at| cx.now.tick < at) {
            return;
        }
        if let State::Commit(_) = self.state {
            return self.stop_waiting(cx);
        }
        if cx.now.tick >= self.deadline {
            return self.time_out();
        }
        match self.state {
            // Refusals that left no quorum are told with certainty only when all have answered; the time for that is over.
            State::Accept { .. } if !self.tally.is_possible(&self.quorums) => self.conclude(cx),
            State::Prepare { .. } | State::Accept { .. } => {
                self.timeouts = (self.timeouts + 1).min(MAX_DOUBLINGS);
                self.prepare(cx);
            }
            State::BackOff => self.prepare(cx),
            State::Fetch { .. } => self.fetch_next(cx),
            State::New | State::Commit(_) | State::Done => {}
        }
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, if nothing changes before.
    pub fn poll_timeout(&self) -> Option<Tick> {
        match self.state {
            State::New | State::Done => None,
            _ => Some(self.timer.min(self.deadline)),
        }
    }

    /// Whether nothing more will be sent.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done) && self.effects.is_empty()
    }

    /// The highest ballot that this attempt used, zero if none: the floor of the next attempt may not lie below it.
    pub fn highest_ballot(&self) -> Ballot {
        self.ballot
    }

    /// The highest stamp or ballot that any replica showed, the operation's id included.
    pub fn highest_seen(&self) -> Stamp {
        self.seen.max(self.ballot)
    }

    /// Whether the write may take effect although it was not answered: it was tried before, or a proposal of this attempt may be accepted
    /// somewhere. Never so for reads and outcome queries.
    pub fn may_take_effect(&self) -> bool {
        let pending = matches!(&self.state, State::Accept { own: true, .. }) && !self.tally.is_void(&self.quorums);
        matches!(self.goal, Goal::Write { .. }) && (self.tried || self.in_doubt || pending)
    }

    fn count(&mut self, cx: &mut Context<'_>, replica: usize, vote: Vote) {
        self.tally.count(replica, vote);
        if self.quorums.is_quorum(self.tally.yes()) {
            match self.state {
                State::Accept { .. } => self.commit(cx),
                _ => self.combine(cx),
            }
        } else if !self.tally.is_possible(&self.quorums) {
            self.give_round_up(cx);
        }
    }

    // ---- P1

    fn prepare(&mut self, cx: &mut Context<'_>) {
        self.leave_accept();
        if cx.now.tick >= self.deadline {
            return self.time_out();
        }
        let floor = Stamp::from_hlc(self.window.floor, 0).max(self.seen);
        let ballot = match cx.clock.draw_above(floor, cx.now.wall) {
            Ok(ballot) => ballot,
            Err(error) => return self.do_without_stamp(cx, error),
        };
        if !self.admits(ballot) {
            return self.time_out();
        }
        self.ballot = ballot;
        self.begin_round(cx, State::Prepare { views: Vec::new() });
        let inline = Want { lineage: true, value_upto: self.config.inline_value_bytes };
        for replica in self.quorums.all().iter() {
            let want = if replica == self.nearest { Want::ALL } else { inline };
            self.send(replica, RegisterRequest::Prepare { ballot, want });
        }
    }

    /// The reserve is written ahead at this very moment, because a stamp seen just now lay beyond it. And what was sent may yet be decided:
    /// better to try again than to leave it in doubt.
    fn do_without_stamp(&mut self, cx: &Context<'_>, error: DrawError) {
        if error == DrawError::NoReserve || self.in_doubt {
            return self.back_off(cx);
        }
        self.finish(Ending::Clock(error));
    }

    fn admits(&self, ballot: Ballot) -> bool {
        #[cfg(test)]
        if self.broken == Some(Rule::Window) {
            return true;
        }
        self.window.admits(ballot)
    }

    // ---- P2

    fn combine(&mut self, cx: &mut Context<'_>) {
        let State::Prepare { views } = &mut self.state else { return };
        let views = std::mem::take(views);
        #[cfg(test)]
        let views = crate::explore::bend_views(self.broken, views);
        let combination = combine(&views, &self.quorums);
        let mut current = combination.current.find(&views).clone();
        let mut holders = ReplicaSet::EMPTY;
        for (replica, view) in &views {
            if complete(&mut current, view) {
                holders.insert(*replica);
            }
        }
        let (has_entry, ballot) = (combination.has_entry, combination.current.ballot);
        self.evaluate(cx, Found { current, ballot, has_entry, stable: combination.stable, holders });
    }

    // ---- P3 to P6, SETTLE

    fn evaluate(&mut self, cx: &mut Context<'_>, found: Found) {
        let case = Case {
            goal: &self.goal,
            op_id: self.op_id,
            tried: self.tried || self.sent,
            current: &found.current,
            has_entry: found.has_entry,
            stable: found.stable,
            now: cx.now.wall.max(Millis(cx.clock.hlc() >> 16)),
        };
        let judgement = case.judge();
        #[cfg(test)]
        let judgement = crate::explore::bend(self.broken, &case, judgement);
        match judgement {
            Judgement::Incomplete => self.fetch(cx, found),
            Judgement::Unknown => self.finish(Ending::Unknown),
            Judgement::Settle { answer, shortcut: true } => {
                let ending = answer.ending(found.current, found.ballot);
                self.finish(self.with_number(ending));
            }
            Judgement::Settle { answer, shortcut: false } => match found.current.to_record() {
                Some(record) => self.accept(cx, record, answer, false),
                None => self.fetch(cx, found),
            },
            Judgement::Propose { draft, answer } => self.propose(cx, &found.current, draft, answer),
        }
    }

    fn propose(&mut self, cx: &mut Context<'_>, current: &RecordView, draft: Draft, answer: Reply) {
        let head = &current.head;
        let above = self.seen.max(self.ballot).max(head.stamp).max(head.reach);
        let stamp = match cx.clock.draw_above(above, cx.now.wall) {
            Ok(stamp) => stamp,
            Err(error) => return self.do_without_stamp(cx, error),
        };
        // Other nodes' clocks may be behind, and what they still carry on must be remembered.
        let times = &self.config.times;
        let oldest = cx.now.wall.minus(times.op_lifetime + 2 * times.max_clock_skew);
        let ancestors = current.lineage.as_deref().expect("judged with its lineage");
        let (lineage, reach) = inherit(head, ancestors, draft.mark, self.config.k, oldest);
        #[cfg(test)]
        let (lineage, reach) = crate::explore::bend_lineage(self.broken, lineage, reach, head);
        let own = matches!(answer, Reply::Own { .. });
        if let Reply::Own { number: Some(number) } = answer {
            self.numbers.insert(stamp, number);
        }
        let Draft { op_id, content, expires_at, .. } = draft;
        self.accept(cx, Record { stamp, op_id, reach, expires_at, lineage, content }, answer, own);
    }

    fn accept(&mut self, cx: &mut Context<'_>, record: Record, answer: Reply, own: bool) {
        if cx.now.tick >= self.deadline {
            return self.time_out();
        }
        self.sent |= own;
        self.begin_round(cx, State::Accept { record: record.clone(), answer, own });
        for replica in self.quorums.all().iter() {
            let request = RegisterRequest::Accept { ballot: self.ballot, record: record.clone(), next: Ballot::ZERO };
            self.send(replica, request);
        }
    }

    // ---- the current record's content, where the promises did not carry it

    fn fetch(&mut self, cx: &mut Context<'_>, found: Found) {
        let holders = found.holders.iter().collect();
        self.state = State::Fetch { found, holders };
        self.fetch_next(cx);
    }

    /// Asks the next replica that showed the record; when none is left, somebody has overwritten it.
    fn fetch_next(&mut self, cx: &mut Context<'_>) {
        let State::Fetch { holders, .. } = &mut self.state else { return };
        if holders.is_empty() {
            return self.back_off(cx);
        }
        let replica = holders.remove(0);
        self.next_round(cx);
        self.send(replica, RegisterRequest::Read { want: Want::ALL });
    }

    fn fetched(&mut self, cx: &mut Context<'_>) {
        match std::mem::replace(&mut self.state, State::BackOff) {
            State::Fetch { found, .. } if found.current.to_record().is_some() => self.evaluate(cx, found),
            state => {
                self.state = state;
                self.fetch_next(cx);
            }
        }
    }

    // ---- rounds

    fn begin_round(&mut self, cx: &Context<'_>, state: State) {
        self.state = state;
        self.next_round(cx);
    }

    fn next_round(&mut self, cx: &Context<'_>) {
        self.round += 1;
        self.tally = Tally::default();
        self.timer = cx.now.tick + self.config.round_timeout * (1 << self.timeouts);
    }

    fn send(&mut self, replica: usize, request: RegisterRequest) {
        self.effects.push_back(Effect::Send { replica, round: self.round, request });
    }

    /// No quorum will say yes in this round.
    fn give_round_up(&mut self, cx: &mut Context<'_>) {
        let own = matches!(self.state, State::Accept { own: true, .. });
        // Whether a refused proposal is nowhere is worth knowing, but not worth a new ballot: wait for the rest.
        let refused = self.tally.status().is_some() && self.tally.is_blocked(&self.quorums);
        if own && refused && !self.tally.all_answered(&self.quorums) {
            return;
        }
        self.conclude(cx);
    }

    fn conclude(&mut self, cx: &mut Context<'_>) {
        self.leave_accept();
        let (need, got, sent) = (self.quorums.size(), self.tally.yes().len(), self.may_take_effect());
        let blocked = self.tally.is_blocked(&self.quorums);
        match self.tally.status() {
            Some(status) if blocked || status == Status::StaleEpoch => {
                self.finish(Ending::Refused { status, need, got, sent });
            }
            None if blocked && !sent => {
                let alive = self.quorums.all().without(self.tally.not_sent()).len();
                self.finish(Ending::Unavailable { need, alive });
            }
            _ if self.tally.is_skewed(&self.quorums) => self.finish(Ending::ClockSkew),
            _ => self.back_off(cx),
        }
    }

    fn back_off(&mut self, cx: &Context<'_>) {
        self.leave_accept();
        let delay: Duration = self.backoff.next();
        self.begin_round(cx, State::BackOff);
        self.timer = cx.now.tick + delay;
    }

    /// An own proposal is left behind: unless nobody can have accepted it, it may be decided by others.
    fn leave_accept(&mut self) {
        if let State::Accept { own: true, .. } = self.state {
            self.in_doubt |= !self.tally.is_void(&self.quorums);
            self.state = State::BackOff;
        }
    }

    fn time_out(&mut self) {
        let (need, got) = (self.quorums.size(), self.tally.yes().len());
        self.leave_accept();
        self.finish(Ending::TimedOut { need, got, sent: self.may_take_effect() });
    }

    fn finish(&mut self, ending: Ending) {
        self.leave_accept();
        self.effects.push_back(Effect::Finish(ending));
        self.state = State::Done;
    }

    /// An increment that a later round found applied: its number is known if it was proposed here.
    fn with_number(&self, ending: Ending) -> Ending {
        match ending {
            Ending::Applied { version, number: None, expires_at } => {
                Ending::Applied { version, number: self.numbers.get(&version).copied(), expires_at }
            }
            ending => ending,
        }
    }
}
