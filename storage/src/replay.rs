//! `Replay`: reading the log back, item by item.

use std::collections::BTreeMap;

use dunlin_protocol::PartitionId;
use dunlin_protocol::register::{Change, Held};

use crate::engine::KeyRef;
use crate::error::{Affected, Damage, DamageKind, ReadError};
use crate::frame::{self, BATCH_LEN, Batch, Frame, change_place, check, check_head, find_batch};
use crate::full_key::FullKey;
use crate::indexed::Indexed;
use crate::manifest::Listing;
use crate::memtable::Memtable;
use crate::options::Options;
use crate::place::{Place, Position, SEGMENTS_DIR, SegmentId};
use crate::references;
use crate::segment::SEGMENT_HEADER_LEN;
use crate::suspects::Suspects;
use crate::table::BlockCache;
use crate::view::View;

/// So many frames are looked at together before they are carried out, so that the processor waits for their memory once.
const TOGETHER: usize = 64;
/// More damage than this is counted, and acted upon, but not listed.
const MAX_LISTED: usize = 1000;

/// Damage found, and what it makes suspect.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) damaged: Vec<Damage>,
    pub(crate) count: u64,
    pub(crate) suspects: Suspects,
}

impl Findings {
    pub(crate) fn add(&mut self, damage: Damage) {
        self.suspects.add(damage.affected);
        self.count += 1;
        if self.damaged.len() < MAX_LISTED {
            self.damaged.push(damage);
        }
    }
}

/// A segment's contents as they are replayed.
#[derive(Clone, Copy)]
pub(crate) struct Contents<'a> {
    pub(crate) id: SegmentId,
    pub(crate) listing: Listing,
    /// From the start of the file.
    pub(crate) bytes: &'a [u8],
}

/// What was found in a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Replayed {
    /// Where the last item ends.
    pub(crate) end: u64,
    /// Where the last item ends that stays in this segment.
    pub(crate) kept_end: u64,
    /// Frames that stay in this segment.
    pub(crate) kept: u64,
}

/// Reads the log back, segment after segment, into a memtable. Damage at or beyond `synced_upto` is a torn tail, and ends it; frames there are
/// collected, to be written anew.
pub(crate) struct Replay<'a> {
    pub(crate) base: Base<'a>,
    pub(crate) findings: &'a mut Findings,
    synced_upto: u64,
    /// Where the last item ended, 0 before the first; none: behind damage, until the next batch says it.
    chain: Option<u64>,
    /// Where the last item ended, damage or not.
    pub(crate) end: u64,
    /// The same, in its segment: where to look for what is missing.
    last: Option<(SegmentId, u64)>,
    /// The first segment that was read.
    first: Option<SegmentId>,
    /// Whether the log was found torn: what follows is void.
    is_over: bool,
    pub(crate) torn_bytes: u64,
    pub(crate) frames: u64,
    /// Frames beyond `synced_upto`, with places in the segment `fresh`, behind its header and a batch.
    pub(crate) rewritten: Vec<u8>,
    pub(crate) rewritten_frames: u64,
    fresh: SegmentId,
    /// The frames of the present segment: shard, partition and offset, in one number each.
    queue: Vec<u64>,
    encoded: Vec<u8>,
    /// A table could not be read, for another reason than damage.
    pub(crate) unreadable: Option<ReadError>,
}

/// What the log is replayed onto.
pub(crate) struct Base<'a> {
    pub(crate) options: &'a Options,
    pub(crate) memtable: &'a Memtable,
    pub(crate) view: &'a View,
    pub(crate) blocks: &'a BlockCache,
    /// Bytes of each segment that the index refers to.
    pub(crate) live: BTreeMap<SegmentId, u64>,
    /// Where the last record ends that a frame names in a segment for large ones: it is synced up to there.
    pub(crate) staged_upto: BTreeMap<SegmentId, u64>,
    /// How many keys are held.
    pub(crate) keys: u64,
    /// The tables have everything up to here.
    pub(crate) position: u64,
}

/// Why a frame could not be replayed.
enum Unfit {
    /// A commit's ballot, and the one pending.
    MissingPending(u64, u64),
    /// The tables cannot tell what the key held before.
    Unreadable(ReadError),
}

impl<'a> Replay<'a> {
    pub(crate) fn new(base: Base<'a>, findings: &'a mut Findings, synced_upto: u64, fresh: SegmentId) -> Self {
        let position = base.position;
        Self {
            base,
            findings,
            synced_upto,
            chain: Some(position),
            end: position,
            last: None,
            first: None,
            is_over: false,
            torn_bytes: 0,
            frames: 0,
            rewritten: Vec::new(),
            rewritten_frames: 0,
            fresh,
            queue: Vec::new(),
            encoded: Vec::new(),
            unreadable: None,
        }
    }

    /// A segment is not there, or is another one.
    pub(crate) fn lose_chain(&mut self) {
        self.chain = None;
    }

    /// Replays the next segment, as far as `limit`, the first void position.
    pub(crate) fn segment(&mut self, contents: Contents<'_>, limit: u64) -> Replayed {
        let Contents { id, listing, bytes } = contents;
        self.first.get_or_insert(id);
        if (self.base.position..u64::MAX).contains(&listing.cut) {
            self.begin_at_cut(listing.cut);
        }
        let first = SEGMENT_HEADER_LEN as u64;
        let mut replayed = Replayed { end: first, kept_end: first, kept: 0 };
        let len = bytes.len().min(usize::try_from(limit.saturating_sub(listing.base)).unwrap_or(usize::MAX));
        let bytes = &bytes[..len];
        // What lies before the tables' position needs no replay; there an item ends.
        let behind = self.base.position.saturating_sub(listing.base);
        let mut at =
            SEGMENT_HEADER_LEN.max(usize::try_from(behind).unwrap_or(usize::MAX)).min(len.max(SEGMENT_HEADER_LEN));
        if at > SEGMENT_HEADER_LEN {
            (replayed.end, replayed.kept_end) = (at as u64, at as u64);
            self.last = Some((id, at as u64));
        }
        if self.is_over {
            self.count_torn(bytes, at);
        }
        while !self.is_over && at < len {
            let position = listing.base + at as u64;
            let next = match check(&bytes[at..], id, at as u64) {
                Ok(head) if head.is_seal() => break,
                Ok(head) => {
                    let item = &bytes[at..at + head.len as usize];
                    let is_taken = match head.is_batch() {
                        true => self.batch(&contents, at, item),
                        false => self.frame(&contents, at, item),
                    };
                    if !is_taken {
                        self.is_over = true;
                        self.count_torn(bytes, at);
                        break;
                    }
                    at + item.len()
                }
                // Either the log is torn here, or it goes on in the next segment: that one's first batch says where the item before it ends.
                Err(_) if position >= self.synced_upto => {
                    self.chain.get_or_insert(self.end);
                    self.count_torn(bytes, at);
                    break;
                }
                Err(bad) => {
                    let (next, affected) = match bad.head {
                        Some(head) if head.is_batch() => (Some(at + head.len as usize), Affected::Nothing),
                        Some(head) => (Some(at + head.len as usize), Affected::Partition(head.partition)),
                        None => (find_batch(bytes, at, id), Affected::Everything),
                    };
                    // Without another batch this is the segment's end; what follows tells whether it should be.
                    let Some(next) = next else { break };
                    let (expected, found) = (bad.expected.into(), bad.found.into());
                    self.damage(&contents, at, DamageKind::Checksum, (expected, found), affected);
                    if bad.head.is_none_or(|head| head.is_batch()) {
                        self.chain = None;
                    }
                    next
                }
            };
            at = next;
            self.end = listing.base + at as u64;
            self.last = Some((id, at as u64));
            if self.chain.is_some() {
                self.chain = Some(self.end);
            }
            replayed.end = at as u64;
            if self.end <= self.synced_upto {
                replayed.kept_end = at as u64;
            }
        }
        replayed.kept = self.carry_out(&contents);
        replayed
    }

    /// Carries out the queued frames, shard by shard and within it partition by partition, those of a partition in their order: what they touch of the
    /// memtable then stays in the processor's caches. Returns how many stay in this segment.
    fn carry_out(&mut self, contents: &Contents<'_>) -> u64 {
        let mut queue = std::mem::take(&mut self.queue);
        queue.sort_unstable();
        let mut kept = 0;
        let mut items = Vec::with_capacity(TOGETHER);
        for together in queue.chunks(TOGETHER) {
            let place = |queued: &u64| (queued & u64::from(u32::MAX)) as usize;
            items.extend(together.iter().map(place).map(|at| (at, frame::len(&contents.bytes[at..]))));
            let mut next = Vec::with_capacity(items.len());
            for (at, len) in items.drain(..) {
                let item = &contents.bytes[at..at + len];
                let Ok(frame) = Frame::read(item) else { continue };
                next.push((at, item, frame, FullKey::new(frame.key)));
            }
            let touched = next.iter().fold(0, |read, (.., key)| read ^ self.base.view.touch(key.bytes(), key.hash));
            std::hint::black_box(touched);
            for (at, item, frame, key) in &next {
                kept += u64::from(self.replay(contents, *at, item, frame, key));
            }
        }
        queue.clear();
        self.queue = queue;
        kept
    }

    /// Called when all segments were replayed: whether the log ends where it is known to have been synced to.
    pub(crate) fn finish(&mut self) {
        if self.chain.is_some() && self.end < self.synced_upto {
            self.miss(self.synced_upto, self.end, None);
        }
    }

    /// A segment that was made when the engine was opened: the log up to its cut lies before it.
    fn begin_at_cut(&mut self, cut: u64) {
        if let Some(chain) = self.chain
            && chain != cut
        {
            self.miss(cut, chain, None);
        }
        self.chain = Some(cut);
        self.end = cut;
    }

    /// False: the tail is torn here.
    fn batch(&mut self, contents: &Contents<'_>, at: usize, item: &[u8]) -> bool {
        let is_synced = contents.listing.base + (at as u64) < self.synced_upto;
        match (Batch::read(item), self.chain) {
            (Ok(batch), Some(chain)) if batch.previous_end != chain => {
                if !is_synced {
                    return false;
                }
                self.miss(batch.previous_end, chain, Some(contents.id));
            }
            (Ok(_), _) => {}
            (Err(_), _) => self.damage(contents, at, DamageKind::Malformed, (0, 0), Affected::Nothing),
        }
        self.chain = Some(0);
        true
    }

    /// Queues a frame. False: the tail is torn here.
    fn frame(&mut self, contents: &Contents<'_>, at: usize, item: &[u8]) -> bool {
        let is_synced = contents.listing.base + (at as u64) < self.synced_upto;
        let Ok(frame) = Frame::read(item) else {
            if is_synced {
                let partition = PartitionId(u16::from_le_bytes([item[16], item[17]]));
                let affected = Affected::Partition(partition);
                self.damage(contents, at, DamageKind::Malformed, (0, 0), affected);
            }
            return is_synced;
        };
        let partition = u64::from(frame.key.partition.0);
        let shard = partition % self.base.options.shards as u64;
        self.queue.push(shard << 48 | partition << 32 | at as u64);
        true
    }

    /// Whether the frame counts, and stays in this segment.
    fn replay(&mut self, contents: &Contents<'_>, at: usize, item: &[u8], frame: &Frame<'_>, full: &FullKey) -> bool {
        let is_synced = contents.listing.base + (at as u64) < self.synced_upto;
        let mut place = Place { segment: contents.id, offset: at as u64, len: item.len() as u32 };
        if !is_synced {
            let offset = (SEGMENT_HEADER_LEN + BATCH_LEN + self.rewritten.len()) as u64;
            place = Place { segment: self.fresh, offset, ..place };
        }
        match self.apply(frame, full, place) {
            Ok(()) => {}
            Err(Unfit::MissingPending(expected, found)) => {
                let affected = Affected::Partition(frame.key.partition);
                self.damage(contents, at, DamageKind::MissingPending, (expected, found), affected);
                return false;
            }
            Err(Unfit::Unreadable(ReadError::Damaged(damage))) => {
                self.findings.add(Damage { affected: Affected::Partition(frame.key.partition), ..damage });
                return false;
            }
            Err(Unfit::Unreadable(error)) => {
                self.unreadable.get_or_insert(error);
                return false;
            }
        }
        self.frames += 1;
        if !is_synced {
            let start = self.rewritten.len();
            self.rewritten.extend_from_slice(item);
            change_place(&mut self.rewritten[start..], (contents.id, at as u64), (place.segment, place.offset));
            self.rewritten_frames += 1;
        }
        is_synced
    }

    /// Carries a frame's change out.
    fn apply(&mut self, frame: &Frame<'_>, full: &FullKey, place: Place) -> Result<(), Unfit> {
        let Base { options, memtable, view, blocks, live, keys, staged_upto, .. } = &mut self.base;
        let key: KeyRef<'_> = frame.key;
        let mut shard = memtable.lock(key.partition);
        let slot = shard.find(full.hash, full.bytes());
        let below = match slot {
            Some(_) => None,
            // Nobody else uses the memtable yet.
            None => view.find(full.bytes(), full.hash, blocks).map_err(Unfit::Unreadable)?,
        };
        let body = slot.map(|slot| shard.body(slot)).or(below.as_ref().map(|(body, _)| &**body));
        let mut indexed = match body.map(Indexed::decode) {
            Some(Ok(indexed)) => indexed,
            None => Indexed::default(),
            Some(Err(_)) => return Err(Unfit::MissingPending(0, 0)),
        };
        if let Change::Commit { ballot } = frame.change {
            let pending = indexed.register.pending.map(|(pending, _)| pending).unwrap_or_default();
            if pending != ballot {
                return Err(Unfit::MissingPending(ballot.origin() ^ ballot.hlc(), pending.origin() ^ pending.hlc()));
            }
        }
        let old = indexed.register;
        let place = match frame.elsewhere {
            Some(elsewhere) => {
                let end = staged_upto.entry(elsewhere.segment).or_default();
                *end = (*end).max(elsewhere.offset.saturating_add(elsewhere.len.into()));
                elsewhere
            }
            None => options.place_of(place, frame.body().bytes.len()),
        };
        let held = frame.record.map(|head| Held { head, place });
        indexed.apply(frame.change, held, frame.stored_at, place.is_inline().then(|| frame.body()));
        references::changes(&old, &indexed.register, |place, is_added| {
            let live = live.entry(place.segment).or_default();
            *live =
                if is_added { live.saturating_add(place.len.into()) } else { live.saturating_sub(place.len.into()) };
        });
        match (old.is_absent(), indexed.register.is_absent()) {
            (true, false) => *keys += 1,
            (false, true) => *keys = keys.saturating_sub(1),
            _ => {}
        }
        let new = indexed.register;
        self.encoded.clear();
        indexed.encode(&mut self.encoded);
        memtable.change_digest(&mut shard, (full.hash, full.bytes()), &old, &new);
        memtable.put(&mut shard, slot, full.hash, full.bytes(), &self.encoded, Position::ZERO);
        Ok(())
    }

    fn damage(
        &mut self,
        contents: &Contents<'_>,
        at: usize,
        kind: DamageKind,
        (expected, found): (u64, u64),
        affected: Affected,
    ) {
        let file = contents.id.file_name();
        self.findings.add(Damage { file, offset: at as u64, kind, expected, found, affected });
    }

    /// The log should go on up to `expected`, and ends at `found`.
    fn miss(&mut self, expected: u64, found: u64, here: Option<SegmentId>) {
        // Where nothing was read before, the file that tells of it, or the one where the log was to begin.
        let first = here.or(self.first).map_or(SEGMENTS_DIR.to_owned(), SegmentId::file_name);
        let (file, offset) = self.last.map_or((first, 0), |(id, offset)| (id.file_name(), offset));
        let (kind, affected) = (DamageKind::Missing, Affected::Everything);
        self.findings.add(Damage { file, offset, kind, expected, found, affected });
    }

    /// What lies at `at` and behind is void.
    fn count_torn(&mut self, bytes: &[u8], at: usize) {
        let last = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        self.torn_bytes += last.saturating_sub(at) as u64;
    }
}

/// The highest `synced_upto` of the batches of a segment that check; none where no batch does. Of other items only the heads are looked at.
pub(crate) fn highest_synced(contents: Contents<'_>) -> Option<u64> {
    let Contents { id, bytes, .. } = contents;
    let mut highest = None;
    let mut at = SEGMENT_HEADER_LEN;
    while at < bytes.len() {
        match check_head(&bytes[at..], id, at as u64) {
            Some(head) => {
                if head.is_batch()
                    && check(&bytes[at..], id, at as u64).is_ok()
                    && let Ok(batch) = Batch::read(&bytes[at..at + head.len as usize])
                {
                    highest = highest.max(Some(batch.synced_upto));
                }
                at += head.len as usize;
            }
            None => match find_batch(bytes, at, id) {
                Some(next) => at = next,
                None => break,
            },
        }
    }
    highest
}
