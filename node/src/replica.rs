//! The lowest floor: this node's own copy of its partitions.
//!
//! Checks epoch, deadline and clocks, runs the register's rule through the engine, and lets each answer go only when the log is durable past
//! the newest frame that it was computed from.

use std::collections::BTreeMap;
use std::sync::Arc;

use dunlin_membership::Placement;
use dunlin_protocol::message::{PageEntry, PeerReplyBody, RegisterCall, ReplicaPage, ReplicaScan};
use dunlin_protocol::register::{Held, PendingView, RecordView, Register, RegisterReply, RegisterRequest, View, Want};
use dunlin_protocol::{Content, HybridClock, Key, Millis, NodeId, Stamp, Status, Times};
use dunlin_storage::{Engine, Entry, KeyRef, Place, Position, ReadError, ScanRange, WriteError};

use crate::outbox::ReplyTo;

/// Who waits for an answer of the replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asker {
    /// This node's own coordinator, by its request id.
    Coordinator(u64),
    /// A peer.
    Peer(ReplyTo),
}

/// An answer and who gets it.
pub(crate) type Answered = (Asker, PeerReplyBody);

pub(crate) struct Replica {
    me: NodeId,
    engine: Arc<Engine>,
    times: Times,
    waiting: BTreeMap<(Position, u64), Answered>,
    waited: u64,
}

/// A page never carries more than this many bytes of values and keys, whatever was asked: it must fit a frame.
const PAGE_BYTES: usize = 1 << 20;
/// The most answers that wait for the disk.
const MAX_WAITING: usize = 32_768;
/// The most entries in a page.
const PAGE_ENTRIES: u32 = 4096;

impl Replica {
    pub(crate) fn new(me: NodeId, engine: Arc<Engine>, times: Times) -> Self {
        Self { me, engine, times, waiting: BTreeMap::new(), waited: 0 }
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// How many answers wait for the disk.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Carries out a call about one key. The answer comes back at once where everything it rests on is durable; otherwise from
    /// [`release`](Self::release).
    pub(crate) fn call(
        &mut self,
        wall: Millis,
        placement: &Placement,
        clock: &mut HybridClock,
        asker: Asker,
        call: &RegisterCall,
    ) -> Option<Answered> {
        match self.carry_out(wall, placement, clock, call) {
            Ok((reply, position)) => self.when_durable(position, asker, reply),
            Err(refusal) => Some((asker, refusal)),
        }
    }

    /// Carries out a scan, like [`call`](Self::call).
    pub(crate) fn scan(
        &mut self,
        wall: Millis,
        placement: &Placement,
        asker: Asker,
        scan: &ReplicaScan,
    ) -> Option<Answered> {
        let page =
            check_time_and_epoch(wall, placement, scan.epoch, scan.deadline).and_then(|()| self.page(placement, scan));
        match page {
            Ok((page, position)) => self.when_durable(position, asker, PeerReplyBody::Page(page)),
            Err(refusal) => Some((asker, refusal)),
        }
    }

    /// The answers that the disk has caught up with, in order.
    pub(crate) fn release(&mut self) -> Vec<Answered> {
        if self.waiting.is_empty() {
            return Vec::new();
        }
        if self.engine.is_poisoned() {
            // Nothing that waits can become durable any more; what it showed must not be told.
            return std::mem::take(&mut self.waiting)
                .into_values()
                .map(|(asker, _)| (asker, refuse(Status::StorageFailed, "the log could not be written")))
                .collect();
        }
        let durable = self.engine.durable_upto();
        let later = self.waiting.split_off(&(durable, u64::MAX));
        std::mem::replace(&mut self.waiting, later).into_values().collect()
    }

    fn when_durable(&mut self, position: Position, asker: Asker, body: PeerReplyBody) -> Option<Answered> {
        if position <= self.engine.durable_upto() {
            return Some((asker, body));
        }
        if self.engine.is_poisoned() {
            return Some((asker, refuse(Status::StorageFailed, "the log could not be written")));
        }
        if self.waiting.len() >= MAX_WAITING {
            return Some((asker, refuse(Status::Overloaded, "too many answers wait for the disk")));
        }
        self.waited += 1;
        self.waiting.insert((position, self.waited), (asker, body));
        None
    }

    fn carry_out(
        &self,
        wall: Millis,
        placement: &Placement,
        clock: &mut HybridClock,
        call: &RegisterCall,
    ) -> Result<(PeerReplyBody, Position), PeerReplyBody> {
        observe_all(clock, wall, &call.request)?;
        let key = KeyRef { partition: call.partition, keyspace: call.keyspace, key: call.key.as_bytes() };
        if !placement.is_replica(self.me, call.keyspace, call.partition) {
            return Err(refuse(
                Status::NotReplica,
                format!("no replica of partition {} in epoch {}", call.partition, placement.epoch()),
            ));
        }
        let stale = match check_time_and_epoch(wall, placement, call.epoch, call.deadline) {
            Err(refusal) => match &call.request {
                // A commit says what was chosen, which no epoch changes; an old epoch's plain write is kept, though it does not count.
                RegisterRequest::Commit { .. } if call.epoch < placement.epoch() && call.deadline >= wall => None,
                RegisterRequest::Write { .. } if call.epoch < placement.epoch() && call.deadline >= wall => {
                    Some(refusal)
                }
                _ => return Err(refusal),
            },
            Ok(()) => None,
        };
        let suspect = self.engine.suspect_partitions().contains(call.partition);
        if suspect && !stores_only(&call.request) {
            return Err(refuse(Status::Suspect, format!("partition {} is being rebuilt", call.partition)));
        }
        let (reply, position) = self.run_rule(wall, key, &call.request)?;
        match (stale, suspect) {
            (Some(refusal), _) => Err(refusal),
            (None, true) => Err(refuse(Status::Suspect, format!("partition {} is being rebuilt", call.partition))),
            (None, false) => Ok((PeerReplyBody::Register(reply), position)),
        }
    }

    fn run_rule(
        &self,
        wall: Millis,
        key: KeyRef<'_>,
        request: &RegisterRequest,
    ) -> Result<(RegisterReply, Position), PeerReplyBody> {
        let record = match request {
            RegisterRequest::Write { record }
            | RegisterRequest::Accept { record, .. }
            | RegisterRequest::Install { record, .. }
            | RegisterRequest::Commit { record: Some(record), .. } => Some(record),
            _ => None,
        };
        let updated = self.engine.update(key, record, wall, |register: &Register<Place>| {
            let decision = register.decide(request, wall, &self.times);
            (decision.verdict, decision.change)
        });
        let updated = updated.map_err(|error| refuse_write(&error))?;
        let entry = updated.entry;
        let reply = updated.reply.into_reply(|want| self.view(key, &entry, want))?;
        Ok((reply, entry.position))
    }

    fn view(&self, key: KeyRef<'_>, entry: &Entry, want: Want) -> Result<View, PeerReplyBody> {
        let register = &entry.register;
        let record = match &register.record {
            Some(held) => self.record_view(key, held, want)?,
            None => RecordView::absent(),
        };
        let pending = match &register.pending {
            Some((ballot, held)) => Some(PendingView { ballot: *ballot, record: self.record_view(key, held, want)? }),
            None => None,
        };
        Ok(View { record, ballot: register.ballot, promised: register.promised, pending })
    }

    fn record_view(&self, key: KeyRef<'_>, held: &Held<Place>, want: Want) -> Result<RecordView, PeerReplyBody> {
        let head = held.head;
        let with_content = head.tombstone || head.value_len <= want.value_upto;
        let tombstone = head.tombstone.then_some(Content::Tombstone);
        if !want.lineage && (head.tombstone || !with_content || want == Want::HEAD) {
            return Ok(RecordView { head, lineage: None, content: tombstone });
        }
        let stored = self.engine.load(key, held).map_err(|error| self.refuse_read(&error))?;
        Ok(RecordView {
            head,
            lineage: want.lineage.then_some(stored.lineage),
            content: with_content.then_some(stored.content),
        })
    }

    /// A record that cannot be read: rot, and the replica must not vote on what it may have lost (PROTOCOL.md 2.5).
    fn refuse_read(&self, error: &ReadError) -> PeerReplyBody {
        tracing::error!(%error, "a stored record cannot be read");
        if let ReadError::Damaged(damage) = error
            && let Err(error) = self.engine.mark_damage(damage)
        {
            tracing::error!(%error, "the partition could not be marked suspect");
        }
        refuse(error.status(), error.to_string())
    }

    fn page(&self, placement: &Placement, scan: &ReplicaScan) -> Result<(ReplicaPage, Position), PeerReplyBody> {
        let suspects = self.engine.suspect_partitions();
        for partition in (scan.first.0..=scan.last.0).map(dunlin_protocol::PartitionId) {
            if !placement.is_replica(self.me, scan.keyspace, partition) {
                return Err(refuse(Status::NotReplica, format!("no replica of partition {partition}")));
            }
            if suspects.contains(partition) {
                return Err(refuse(Status::Suspect, format!("partition {partition} is being rebuilt")));
            }
        }
        let range = ScanRange {
            keyspace: scan.keyspace,
            first: scan.first,
            last: scan.last,
            after: scan.after.as_ref().map(Key::as_bytes),
            prefix: &scan.prefix,
            start: &scan.start,
            end: &scan.end,
        };
        let limit = scan.limit.clamp(1, PAGE_ENTRIES) as usize;
        let limit_bytes = (scan.limit_bytes as usize).clamp(1, PAGE_BYTES);
        let mut found = Vec::new();
        let (mut bytes, mut position) = (0, Position::default());
        let done = self.engine.scan(range, limit, &mut |partition, key, entry| {
            bytes += key.len() + 64 + frame_bytes(entry, scan.want);
            if bytes > limit_bytes && !found.is_empty() {
                return false;
            }
            position = position.max(entry.position);
            found.push((partition, Key::new(key.to_vec()), *entry));
            true
        });
        let done = done.map_err(|error| self.refuse_read(&error))?;
        let mut entries = Vec::with_capacity(found.len());
        for (partition, key, entry) in found {
            let key = key.map_err(|error| refuse(Status::Corruption, format!("a stored key is no key: {error}")))?;
            let at = KeyRef { partition, keyspace: scan.keyspace, key: key.as_bytes() };
            let view = self.view(at, &entry, scan.want)?;
            entries.push(PageEntry { partition, key, view });
        }
        Ok((ReplicaPage { entries, done }, position))
    }
}

/// How many bytes of records a view of this entry loads and carries, at the most.
fn frame_bytes(entry: &Entry, want: Want) -> usize {
    let register = &entry.register;
    let held = register.record.iter().chain(register.pending.iter().map(|(_, held)| held));
    let carried = held.filter(|held| want.lineage || want != Want::HEAD && held.head.value_len <= want.value_upto);
    carried.map(|held| held.place.frame_len() as usize).sum()
}

fn check_time_and_epoch(
    wall: Millis,
    placement: &Placement,
    epoch: dunlin_protocol::Epoch,
    deadline: Millis,
) -> Result<(), PeerReplyBody> {
    if deadline < wall {
        return Err(refuse(Status::OpExpired, "the request arrived after its deadline"));
    }
    if epoch < placement.epoch() {
        return Err(refuse(Status::StaleEpoch, format!("epoch {epoch} is over, this is epoch {}", placement.epoch())));
    }
    if epoch > placement.epoch() {
        return Err(refuse(
            Status::NotReady,
            format!("epoch {epoch} is not known here yet, this is epoch {}", placement.epoch()),
        ));
    }
    Ok(())
}

/// Stamps and ballots from elsewhere raise the clock, unless they lie too far ahead (PROTOCOL.md 2.7).
fn observe_all(clock: &mut HybridClock, wall: Millis, request: &RegisterRequest) -> Result<(), PeerReplyBody> {
    let stamps = match request {
        RegisterRequest::Read { .. } => return Ok(()),
        RegisterRequest::Write { record } => [record.stamp, Stamp::ZERO, Stamp::ZERO],
        RegisterRequest::Prepare { ballot, .. } => [*ballot, Stamp::ZERO, Stamp::ZERO],
        RegisterRequest::Accept { ballot, record, next } => [*ballot, record.stamp, *next],
        RegisterRequest::Commit { ballot, stamp, .. } => [*ballot, *stamp, Stamp::ZERO],
        RegisterRequest::Install { ballot, record } => [*ballot, record.stamp, Stamp::ZERO],
        RegisterRequest::Drop { ballot, stamp, .. } => [*ballot, *stamp, Stamp::ZERO],
    };
    let highest = stamps.into_iter().max().unwrap_or(Stamp::ZERO);
    clock.observe(highest, wall).map_err(|skew| refuse(Status::ClockSkew, skew.to_string()))
}

fn stores_only(request: &RegisterRequest) -> bool {
    matches!(request, RegisterRequest::Write { .. } | RegisterRequest::Commit { .. } | RegisterRequest::Install { .. })
}

pub(crate) fn refuse(status: Status, message: impl Into<String>) -> PeerReplyBody {
    PeerReplyBody::Refused { status, message: message.into(), seen: Stamp::ZERO }
}

fn refuse_write(error: &WriteError) -> PeerReplyBody {
    refuse(error.status(), error.to_string())
}
