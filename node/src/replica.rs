//! The lowest floor: this node's own copy of its partitions.
//!
//! Checks epoch, deadline and clocks, runs the register's rule through the engine, and lets each answer go only when the log is durable past
//! the newest frame that it was computed from. What would wait for the disk on the way is put off: the shell carries it out elsewhere and comes
//! back with it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use dunlin_membership::Placement;
use dunlin_protocol::message::{PeerReplyBody, RegisterCall, ReplicaScan};
use dunlin_protocol::register::{Register, RegisterRequest};
use dunlin_protocol::{HybridClock, Millis, NodeId, Stamp, Status, Times};
use dunlin_storage::{Engine, Place, Position, Prepared, ReadError, Wait, WriteError};

use crate::cold_read::{ColdRead, Done, ReadDone, Work, key_of, record_of};
use crate::outbox::ReplyTo;
use crate::reading::{Reading, Unread};

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
    /// Put off, and not taken by the shell yet.
    put_off: VecDeque<ColdRead>,
    /// Reads that were put off and have not come back, and the bytes of values that wait with them.
    reading: usize,
    reading_bytes: usize,
}

/// The most answers that wait for the log.
const MAX_WAITING: usize = 32_768;
/// The most reads that are put off at a time.
const MAX_READING: usize = 1024;
/// The most bytes of values that wait with them.
const MAX_READING_BYTES: usize = 32 << 20;

/// Why a call has no answer yet.
#[expect(clippy::large_enum_variant, reason = "it is passed on at once")]
enum Stop {
    Refused(PeerReplyBody),
    Cold(Work),
}

impl From<PeerReplyBody> for Stop {
    fn from(refusal: PeerReplyBody) -> Self {
        Self::Refused(refusal)
    }
}

/// What holds of a call that may be carried out.
struct Admitted {
    /// It counts for nothing any more: carried out, and refused with this.
    stale: Option<PeerReplyBody>,
    /// The partition may have lost something: it takes what it is given, and says nothing.
    suspect: bool,
}

impl Replica {
    pub(crate) fn new(me: NodeId, engine: Arc<Engine>, times: Times) -> Self {
        let (waiting, put_off) = (BTreeMap::new(), VecDeque::new());
        Self { me, engine, times, waiting, waited: 0, put_off, reading: 0, reading_bytes: 0 }
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// How many answers wait for the disk.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len() + self.reading
    }

    /// A read that somebody else is to carry out.
    pub(crate) fn poll_read(&mut self) -> Option<ColdRead> {
        self.put_off.pop_front()
    }

    /// Carries out a call about one key. The answer comes back at once where everything it rests on is in memory and durable; otherwise from
    /// [`release`](Self::release), or from [`finish`](Self::finish) once somebody has read what it needs.
    pub(crate) fn call(
        &mut self,
        wall: Millis,
        placement: &Placement,
        clock: &mut HybridClock,
        asker: Asker,
        call: &RegisterCall,
    ) -> Option<Answered> {
        let carried_out = self.carry_out(wall, placement, clock, asker, call, None);
        self.answer(asker, carried_out)
    }

    /// Carries out a scan, like [`call`](Self::call).
    pub(crate) fn scan(
        &mut self,
        wall: Millis,
        placement: &Placement,
        asker: Asker,
        scan: &ReplicaScan,
    ) -> Option<Answered> {
        let page = self.check_scan(wall, placement, scan).map_err(Stop::Refused).and_then(|()| {
            match self.reading().page(scan) {
                Ok((page, position)) => Ok((PeerReplyBody::Page(page), position)),
                Err(Unread::Cold) => Err(Stop::Cold(Work::Page { asker, scan: scan.clone() })),
                Err(unread) => Err(Stop::Refused(unread.into_refusal())),
            }
        });
        self.answer(asker, page)
    }

    /// Goes on with what was put off, all checks made anew. None: it was none of the replica's.
    pub(crate) fn finish(
        &mut self,
        wall: Millis,
        placement: &Placement,
        clock: &mut HybridClock,
        done: Done,
    ) -> Option<Answered> {
        let (asker, answer) = match done {
            Done::Prepared { asker, call, prepared: Ok(prepared) } => {
                (asker, self.carry_out(wall, placement, clock, asker, &call, Some(prepared)))
            }
            Done::Prepared { asker, prepared: Err(refusal), .. } => (asker, Err(Stop::Refused(refusal))),
            Done::Shown { asker, call, shown } => {
                let shown = shown.and_then(|shown| self.check(wall, placement, &call).map(|_| shown));
                (asker, shown.map_err(Stop::Refused))
            }
            Done::Page { asker, scan, page } => {
                let page = page.and_then(|page| self.check_scan(wall, placement, &scan).map(|()| page));
                (asker, page.map_err(Stop::Refused))
            }
            Done::Checked { .. } => return None,
        };
        self.answer(asker, answer)
    }

    /// Has somebody else read what would wait for the disk. An error: too much is being read.
    pub(crate) fn put_off(&mut self, work: Work) -> Result<(), PeerReplyBody> {
        let read = ColdRead::from(work);
        if self.reading >= MAX_READING || self.reading_bytes + read.bytes() > MAX_READING_BYTES {
            return Err(refuse(Status::Overloaded, "too much waits to be read from the disk"));
        }
        self.reading += 1;
        self.reading_bytes += read.bytes();
        self.put_off.push_back(read);
        Ok(())
    }

    /// A read that was put off came back.
    pub(crate) fn take_in(&mut self, done: ReadDone) -> Done {
        self.reading -= 1;
        self.reading_bytes -= done.bytes();
        done.into_done()
    }

    fn answer(&mut self, asker: Asker, answer: Result<(PeerReplyBody, Position), Stop>) -> Option<Answered> {
        match answer {
            Ok((body, position)) => self.when_durable(position, asker, body),
            Err(Stop::Refused(refusal)) => Some((asker, refusal)),
            Err(Stop::Cold(work)) => self.put_off(work).err().map(|refusal| (asker, refusal)),
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

    /// The engine, read on the node's thread.
    fn reading(&self) -> Reading<'_> {
        Reading { engine: &self.engine, wait: Wait::Never }
    }

    /// Whether a call may be carried out now.
    fn check(&self, wall: Millis, placement: &Placement, call: &RegisterCall) -> Result<Admitted, PeerReplyBody> {
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
        Ok(Admitted { stale, suspect })
    }

    fn check_scan(&self, wall: Millis, placement: &Placement, scan: &ReplicaScan) -> Result<(), PeerReplyBody> {
        check_time_and_epoch(wall, placement, scan.epoch, scan.deadline)?;
        let suspects = self.engine.suspect_partitions();
        for partition in (scan.first.0..=scan.last.0).map(dunlin_protocol::PartitionId) {
            if !placement.is_replica(self.me, scan.keyspace, partition) {
                return Err(refuse(Status::NotReplica, format!("no replica of partition {partition}")));
            }
            if suspects.contains(partition) {
                return Err(refuse(Status::Suspect, format!("partition {partition} is being rebuilt")));
            }
        }
        Ok(())
    }

    fn carry_out(
        &self,
        wall: Millis,
        placement: &Placement,
        clock: &mut HybridClock,
        asker: Asker,
        call: &RegisterCall,
        prepared: Option<Prepared>,
    ) -> Result<(PeerReplyBody, Position), Stop> {
        observe_all(clock, wall, &call.request)?;
        let Admitted { stale, suspect } = self.check(wall, placement, call)?;
        let answer = self.run_rule(wall, asker, call, prepared)?;
        match (stale, suspect) {
            (Some(refusal), _) => Err(refusal.into()),
            (None, true) => {
                Err(refuse(Status::Suspect, format!("partition {} is being rebuilt", call.partition)).into())
            }
            (None, false) => Ok(answer),
        }
    }

    fn run_rule(
        &self,
        wall: Millis,
        asker: Asker,
        call: &RegisterCall,
        prepared: Option<Prepared>,
    ) -> Result<(PeerReplyBody, Position), Stop> {
        let (key, request, record) = (key_of(call), &call.request, record_of(&call.request));
        let was_found = prepared.is_some();
        if !was_found && record.is_some_and(|record| self.engine.is_large(record)) {
            return Err(Stop::Cold(Work::Prepare { asker, call: call.clone() }));
        }
        let prepared = prepared.unwrap_or_default();
        let updated = self.engine.try_update(key, prepared, record, wall, |register: &Register<Place>| {
            let decision = register.decide(request, wall, &self.times);
            (decision.verdict, decision.change)
        });
        let updated = match (updated, request) {
            (Ok(updated), _) => updated,
            // Damage is noted durably by who may wait for that.
            (Err(WriteError::Read(error)), request) if is_cold(&error, was_found) => {
                let call = call.clone();
                return Err(Stop::Cold(match *request {
                    RegisterRequest::Read { want } => Work::Look { asker, call, want },
                    _ => Work::Prepare { asker, call },
                }));
            }
            (Err(error), _) => return Err(refuse(error.status(), error.to_string()).into()),
        };
        let (entry, verdict) = (updated.entry, updated.reply);
        match verdict.into_reply(|want| self.reading().view(key, &entry, want)) {
            Ok(reply) => Ok((PeerReplyBody::Register(reply), entry.position)),
            Err(Unread::Cold) => {
                let call = call.clone();
                Err(Stop::Cold(match *request {
                    RegisterRequest::Read { want } => Work::Look { asker, call, want },
                    _ => Work::Show { asker, call, entry, verdict },
                }))
            }
            Err(unread) => Err(unread.into_refusal().into()),
        }
    }
}

/// Whether somebody who may wait is to read it. What somebody did read already is damaged in memory, too: nobody reads it once more.
fn is_cold(error: &ReadError, was_found: bool) -> bool {
    match error {
        ReadError::WouldBlock => true,
        ReadError::Damaged(_) => !was_found,
        _ => false,
    }
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
