//! A page of keys across the ring: one scan machine after another over runs of partitions that share their replicas, and a read of its own
//! for every key about which the replicas disagree.

use std::time::Duration;

use dunlin_protocol::message::{EntryView, PeerRequest, ReplicaScan, ReplyBody, ScanCursor, ScanPage, ScanRequest};
use dunlin_protocol::{
    Action, Answer, Content, Epoch, Key, Level, NodeId, Operation, Outcome, PartitionId, PreferenceList, Stamp, Status,
    Tick, Window,
};
use dunlin_quorum::{PageRequest, Scan, ScanEffect, ScanEnding, ScanItem, ScanPlan};

use crate::outbox::ReplyTo;

use super::admission::LONGEST_TIMEOUT;
use super::{Below, Coordinator, Reply, RequestId, Requester, reply};

/// A page is closed when its values have this many bytes: it must fit a frame.
const PAGE_BYTES: usize = 1 << 20;
/// The most keys that are read by themselves at a time.
const READS: usize = 32;
/// The most entries of a page, whatever is asked.
const PAGE_ENTRIES: u32 = 4096;

pub(super) struct ScanFlight {
    to: ReplyTo,
    request: ScanRequest,
    level: Level,
    epoch: Epoch,
    deadline: Tick,
    /// A page that is not full by then is sent all the same: the client goes on from its cursor.
    good_enough: Tick,
    /// Where the page begins.
    start: ScanCursor,
    /// Where the next machine starts; none: the ring is done.
    at: Option<ScanCursor>,
    run: Option<Run>,
    rows: Vec<Row>,
    found: usize,
    found_bytes: usize,
    /// The first row that may have to be read.
    unread: usize,
    reading: usize,
    failed: Option<Outcome>,
    sequence: u16,
    timer: Option<Tick>,
    advancing: bool,
}

/// Partitions `first` to `last` with the same replicas, being scanned.
struct Run {
    last: PartitionId,
    list: PreferenceList,
    machine: Scan,
    sent: Vec<Option<(u64, Tick)>>,
}

/// A key of the page, in order.
struct Row {
    partition: PartitionId,
    key: Key,
    state: RowState,
}

enum RowState {
    Found(EntryView),
    /// The replicas disagree: it is read by itself.
    Unread,
    Reading,
    Gone,
}

impl Row {
    fn bytes(&self) -> usize {
        if let RowState::Found(entry) = &self.state { entry_bytes(entry) } else { 0 }
    }
}

impl ScanFlight {
    pub(super) fn outstanding_at(&self, node: NodeId) -> impl Iterator<Item = u64> {
        let run = self.run.as_ref();
        let sent = run.and_then(|run| run.list.number_of(node).and_then(|replica| run.sent[replica]));
        sent.map(|(id, _)| id).into_iter()
    }

    pub(super) fn asked(&self, replica: usize) -> Option<NodeId> {
        self.run.as_ref().and_then(|run| run.list.nodes.get(replica).copied())
    }

    fn is_full(&self) -> bool {
        self.found >= self.request.limit as usize || self.found_bytes >= PAGE_BYTES
    }

    fn fill(&mut self, row: usize, entry: EntryView) {
        self.found += 1;
        self.found_bytes += entry_bytes(&entry);
        self.rows[row].state = RowState::Found(entry);
    }

    /// The next key to be read by itself, if there is room for its value and not too much is being read.
    fn next_to_read(&mut self) -> Option<(usize, Key)> {
        if self.reading >= READS {
            return None;
        }
        let is_unread = |row: &Row| matches!(row.state, RowState::Unread);
        let at = self.rows[self.unread..].iter().position(is_unread)? + self.unread;
        let before = || self.rows[..at].iter().map(Row::bytes).sum::<usize>();
        if self.found_bytes >= PAGE_BYTES && before() >= PAGE_BYTES {
            // The page is cut before it.
            return None;
        }
        self.unread = at + 1;
        self.reading += 1;
        self.rows[at].state = RowState::Reading;
        Some((at, self.rows[at].key.clone()))
    }

    /// What is settled from the start on, as much as a page carries, and where the next one goes on.
    fn into_page(self) -> ScanPage {
        let (mut entries, mut bytes) = (Vec::with_capacity(self.found), 0);
        let mut last = Some(self.start);
        for row in self.rows {
            match row.state {
                RowState::Found(entry) => {
                    bytes += entry_bytes(&entry);
                    if bytes > PAGE_BYTES && !entries.is_empty() {
                        return ScanPage { entries, next: last };
                    }
                    entries.push(entry);
                }
                RowState::Gone => {}
                RowState::Unread | RowState::Reading => return ScanPage { entries, next: last },
            }
            last = Some(ScanCursor { partition: row.partition, after: Some(row.key) });
        }
        ScanPage { entries, next: self.at }
    }
}

fn entry_bytes(entry: &EntryView) -> usize {
    let content = match &entry.content {
        Some(Content::Value(value, attributes)) => value.len() + attributes.byte_len(),
        Some(Content::Tombstone) | None => 0,
    };
    entry.key.as_bytes().len() + content + 64
}

impl Coordinator {
    /// Takes a scan from an interface.
    pub(crate) fn scan(&mut self, to: ReplyTo, mut request: ScanRequest, below: &mut Below<'_>) {
        let refuse = |outcome: Outcome, below: &mut Below<'_>| reply::send(to, outcome, below);
        if self.in_flight() >= self.config.max_in_flight {
            return refuse(Outcome::of(Status::Overloaded), below);
        }
        let topology = below.placement.topology();
        let Some(keyspace) = topology.keyspace(request.keyspace) else {
            let message = format!("there is no keyspace with id {}", request.keyspace);
            return refuse(Outcome::because(Status::UnknownKeyspace, message), below);
        };
        let partitions = topology.partitioning.count();
        let start = request.cursor.take().unwrap_or(ScanCursor { partition: PartitionId(0), after: None });
        if u32::from(start.partition.0) >= partitions {
            return refuse(
                Outcome::because(Status::InvalidArgument, "the cursor names no partition of this cluster"),
                below,
            );
        }
        let level = reply::scan_level(request.level.unwrap_or(keyspace.read_level));
        let replicas = usize::from(topology.assignments[usize::from(keyspace.assignment)].replicas);
        if level.need(replicas) > replicas {
            let message = format!("level {level} needs more replicas than the {replicas} that each key has");
            return refuse(Outcome::because(Status::InvalidLevel, message), below);
        }
        request.limit = request.limit.clamp(1, PAGE_ENTRIES);
        let timeout = Duration::from_millis(u64::from(request.timeout_millis)).min(LONGEST_TIMEOUT);
        let number = self.draw_number();
        let flight = ScanFlight {
            to,
            level,
            epoch: below.placement.epoch(),
            deadline: below.now.tick + timeout,
            good_enough: below.now.tick + timeout / 2,
            at: Some(start.clone()),
            start,
            run: None,
            rows: Vec::new(),
            found: 0,
            found_bytes: 0,
            unread: 0,
            reading: 0,
            failed: None,
            sequence: 0,
            timer: None,
            advancing: false,
            request,
        };
        self.scans.insert(number, flight);
        self.advance(number, below);
        self.work_off(below);
    }

    pub(super) fn scan_reply(&mut self, id: RequestId, reply: Reply, below: &mut Below<'_>) {
        let Some(run) = self.scans.get_mut(&id.number()).and_then(|scan| scan.run.as_mut()) else { return };
        let replica = id.replica();
        if run.sent.get_mut(replica).and_then(|sent| sent.take_if(|(latest, _)| *latest == id.0)).is_none() {
            return;
        }
        match reply {
            Reply::Page(page) => run.machine.handle_page(below.now.tick, replica, Ok(page)),
            Reply::Answer(Answer::Refused { status, .. }) => {
                run.machine.handle_page(below.now.tick, replica, Err(status))
            }
            Reply::Answer(_) => run.machine.handle_page(below.now.tick, replica, Err(Status::Unavailable)),
        }
        self.advance(id.number(), below);
    }

    pub(super) fn scan_timeout(&mut self, number: u64, below: &mut Below<'_>) {
        let Some(scan) = self.scans.get_mut(&number) else { return };
        scan.timer = None;
        if let Some(run) = &mut scan.run {
            run.machine.handle_timeout(below.now.tick);
        }
        self.advance(number, below);
    }

    /// A key that was read by itself.
    pub(super) fn scan_entry(&mut self, number: u64, row: usize, outcome: Outcome, below: &mut Below<'_>) {
        let Some(scan) = self.scans.get_mut(&number) else { return };
        scan.reading -= 1;
        match outcome.status {
            Status::Ok => {
                let key = scan.rows[row].key.clone();
                let value_len = outcome.content.as_ref().and_then(Content::bytes).map_or(0, |b| b.len() as u32);
                let content = outcome.content.filter(|_| !scan.request.keys_only);
                let (version, expires_at) = (outcome.version, outcome.expires_at);
                scan.fill(row, EntryView { key, version, expires_at, value_len, content });
            }
            Status::NotFound => scan.rows[row].state = RowState::Gone,
            _ => scan.failed = Some(outcome),
        }
        self.advance(number, below);
    }

    /// Goes as far as it gets without waiting.
    fn advance(&mut self, number: u64, below: &mut Below<'_>) {
        let Some(scan) = self.scans.get_mut(&number) else { return };
        // Reads that end at once come back here from within: the loop below sees what they did.
        if std::mem::replace(&mut scan.advancing, true) {
            return;
        }
        while self.step(number, below) {}
        let Some(scan) = self.scans.get_mut(&number) else { return };
        scan.advancing = false;
        let wanted = scan
            .run
            .as_ref()
            .and_then(|run| run.machine.poll_timeout())
            .map_or(scan.deadline, |t| t.min(scan.deadline));
        let wanted = wanted.max(below.now.tick + super::flight::SOONEST);
        if scan.timer != Some(wanted) {
            if let Some(old) = scan.timer.replace(wanted) {
                self.timers.remove(&(old, number));
            }
            self.timers.insert((wanted, number));
        }
    }

    /// One step; false: something has to arrive first, or the scan is over.
    fn step(&mut self, number: u64, below: &mut Below<'_>) -> bool {
        let Some(scan) = self.scans.get_mut(&number) else { return false };
        if below.now.tick >= scan.deadline && (scan.run.is_some() || scan.reading > 0) && scan.failed.is_none() {
            scan.failed = Some(Outcome::because(Status::Timeout, "the page was not complete in time"));
        }
        if let Some(failed) = scan.failed.take() {
            self.close_scan(number, failed, below);
            return false;
        }
        if let Some(run) = &mut scan.run {
            return match run.machine.poll_effect() {
                Some(ScanEffect::Send { replica, page }) => {
                    self.ask_page(number, replica, page, below);
                    true
                }
                Some(ScanEffect::Finish(ending)) => {
                    self.end_run(number, ending, below);
                    true
                }
                None => false,
            };
        }
        if let Some((entry, key)) = scan.next_to_read() {
            self.read_for_scan(number, entry, key, below);
            return true;
        }
        if scan.reading > 0 {
            return false;
        }
        let all_read = !scan.rows[scan.unread..].iter().any(|row| matches!(row.state, RowState::Unread));
        match scan.at.clone() {
            Some(at) if all_read && !scan.is_full() && below.now.tick < scan.good_enough => {
                self.start_run(number, at, below);
                true
            }
            _ => {
                self.close_with_page(number, below);
                false
            }
        }
    }

    fn start_run(&mut self, number: u64, at: ScanCursor, below: &mut Below<'_>) {
        let Some(scan) = self.scans.get_mut(&number) else { return };
        let keyspace = scan.request.keyspace;
        let Some(list) = below.placement.preference_list(keyspace, at.partition).cloned() else {
            scan.failed = Some(Outcome::of(Status::UnknownKeyspace));
            return;
        };
        let sorted = |list: &PreferenceList| {
            let mut nodes = list.nodes.clone();
            nodes.sort();
            nodes
        };
        let nodes = sorted(&list);
        let partitions = below.placement.topology().partitioning.all();
        let same =
            |p: &PartitionId| below.placement.preference_list(keyspace, *p).is_some_and(|other| sorted(other) == nodes);
        let last = partitions.skip(usize::from(at.partition.0)).take_while(same).last().unwrap_or(at.partition);
        let (order, alive) = (below.peers.order(&list), below.peers.alive(&list));
        let limit = (scan.request.limit as usize - scan.found) as u32;
        let after = at.after.map(|key| (at.partition, key));
        let plan = ScanPlan {
            quorums: list.quorums,
            replicas: list.nodes.len(),
            alive,
            speculate_after: below.peers.speculate_after(&list, &order, scan.level.need(list.nodes.len())),
            order,
            level: scan.level,
            want_value: !scan.request.keys_only,
            wall: below.now.wall,
            after,
            limit,
            deadline: scan.deadline,
        };
        let mut machine = Scan::new(plan);
        machine.start(below.now.tick);
        let sent = vec![None; list.nodes.len()];
        scan.at = Some(ScanCursor { partition: at.partition, after: None });
        scan.run = Some(Run { last, list, machine, sent });
    }

    fn ask_page(&mut self, number: u64, replica: usize, page: PageRequest, below: &mut Below<'_>) {
        let Some(scan) = self.scans.get_mut(&number) else { return };
        let (Some(run), Some(at)) = (&mut scan.run, &scan.at) else { return };
        let Some(&to) = run.list.nodes.get(replica) else { return };
        scan.sequence = scan.sequence.wrapping_add(1);
        let id = RequestId::new(number, replica, scan.sequence).0;
        run.sent[replica] = Some((id, below.now.tick));
        let (first, after) = match page.after {
            Some((partition, key)) => (partition, Some(key)),
            None => (at.partition, None),
        };
        let request = &scan.request;
        let call = ReplicaScan {
            keyspace: request.keyspace,
            epoch: scan.epoch,
            deadline: below.now.wall + self.times.op_lifetime,
            first,
            last: run.last,
            after,
            prefix: request.prefix.clone(),
            start: request.start.clone(),
            end: request.end.clone(),
            limit: page.limit,
            limit_bytes: PAGE_BYTES as u32,
            want: page.want,
        };
        Self::send(&mut self.inbox, self.me, to, id, &PeerRequest::Scan(call), below);
    }

    fn end_run(&mut self, number: u64, ending: ScanEnding, below: &mut Below<'_>) {
        let Some(scan) = self.scans.get_mut(&number) else { return };
        let Some(run) = scan.run.take() else { return };
        let (items, complete_upto) = match ending {
            ScanEnding::Page { items, complete_upto } => (items, complete_upto),
            ScanEnding::Unavailable { need, alive } => {
                scan.failed = Some(Outcome::because(
                    Status::Unavailable,
                    format!("{need} replicas are needed and {alive} are alive"),
                ));
                return;
            }
            ScanEnding::Timeout { need, got } => {
                scan.failed =
                    Some(Outcome::because(Status::Timeout, format!("{got} of {need} replicas answered in time")));
                return;
            }
            ScanEnding::Failed { status, need, got } => {
                scan.failed =
                    Some(Outcome::because(status, format!("{got} of {need} replicas answered, others refused")));
                return;
            }
        };
        let last_partition = below.placement.topology().partitioning.all().next_back().unwrap_or_default();
        scan.at = match complete_upto {
            Some((partition, key)) => Some(ScanCursor { partition, after: Some(key) }),
            None if run.last < last_partition => {
                Some(ScanCursor { partition: PartitionId(run.last.0 + 1), after: None })
            }
            None => None,
        };
        for item in items {
            match item {
                ScanItem::Settled { partition, key, record, .. } => {
                    let content = record.content.filter(|_| !scan.request.keys_only);
                    let (version, expires_at) = (record.head.stamp, record.head.expires_at);
                    let value_len = record.head.value_len;
                    scan.rows.push(Row { partition, key: key.clone(), state: RowState::Gone });
                    scan.fill(scan.rows.len() - 1, EntryView { key, version, expires_at, value_len, content });
                }
                ScanItem::Unsettled { partition, key } => {
                    scan.rows.push(Row { partition, key, state: RowState::Unread });
                }
            }
        }
    }

    fn read_for_scan(&mut self, number: u64, entry: usize, key: Key, below: &mut Below<'_>) {
        let Some(scan) = self.scans.get(&number) else { return };
        let requester = Requester::Scan { number, entry };
        let op_id = match below.clock.draw(below.now.wall) {
            Ok(op_id) => op_id,
            Err(error) => return self.give(requester, Outcome::because(Status::NotReady, error.to_string()), below),
        };
        let operation = Operation {
            keyspace: scan.request.keyspace,
            key,
            level: Some(scan.level),
            op_id,
            tried: false,
            window: Window::OPEN,
            timeout_millis: scan.request.timeout_millis,
            seen: Stamp::ZERO,
            epoch: scan.epoch,
            action: Action::Read { value: true },
        };
        let deadline = scan.deadline;
        self.take_off(requester, operation, deadline, below);
    }

    fn close_with_page(&mut self, number: u64, below: &mut Below<'_>) {
        let Some(scan) = self.remove_scan(number) else { return };
        let to = scan.to;
        reply::send_body(to, ReplyBody::Page(scan.into_page()), below);
    }

    fn close_scan(&mut self, number: u64, outcome: Outcome, below: &mut Below<'_>) {
        let Some(scan) = self.remove_scan(number) else { return };
        reply::send(scan.to, outcome, below);
    }

    fn remove_scan(&mut self, number: u64) -> Option<ScanFlight> {
        let scan = self.scans.remove(&number)?;
        if let Some(timer) = scan.timer {
            self.timers.remove(&(timer, number));
        }
        Some(scan)
    }
}
