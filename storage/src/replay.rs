//! `Replay`: reading the log back, item by item.

use dunlin_protocol::PartitionId;
use dunlin_protocol::register::{Change, Held};

use crate::engine::{Entry, KeyRef};
use crate::error::{Affected, Damage, DamageKind};
use crate::frame::{BATCH_LEN, Batch, Frame, change_place, check, find_batch};
use crate::manifest::Listing;
use crate::memtable::Memtable;
use crate::place::{Place, Position, SegmentId};
use crate::segment::SEGMENT_HEADER_LEN;
use crate::suspects::Suspects;

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
    memtable: &'a Memtable,
    findings: &'a mut Findings,
    synced_upto: u64,
    /// Where the last item ended, 0 before the first; none: behind damage, until the next batch says it.
    chain: Option<u64>,
    /// Where the last item ended, damage or not.
    pub(crate) end: u64,
    /// The same, in its segment: where to look for what is missing.
    last: Option<(SegmentId, u64)>,
    /// Whether the log was found torn: what follows is void.
    is_over: bool,
    pub(crate) torn_bytes: u64,
    pub(crate) frames: u64,
    /// Frames beyond `synced_upto`, with places in the segment `fresh`, behind its header and a batch.
    pub(crate) rewritten: Vec<u8>,
    pub(crate) rewritten_frames: u64,
    fresh: SegmentId,
}

impl<'a> Replay<'a> {
    pub(crate) fn new(memtable: &'a Memtable, findings: &'a mut Findings, synced_upto: u64, fresh: SegmentId) -> Self {
        Self {
            memtable,
            findings,
            synced_upto,
            chain: Some(0),
            end: 0,
            last: None,
            is_over: false,
            torn_bytes: 0,
            frames: 0,
            rewritten: Vec::new(),
            rewritten_frames: 0,
            fresh,
        }
    }

    /// A segment is not there, or is another one.
    pub(crate) fn lose_chain(&mut self) {
        self.chain = None;
    }

    /// Replays the next segment, as far as `limit`, the first void position.
    pub(crate) fn segment(&mut self, contents: Contents<'_>, limit: u64) -> Replayed {
        let Contents { id, listing, bytes } = contents;
        if listing.cut < u64::MAX {
            self.begin_at_cut(listing.cut);
        }
        let first = SEGMENT_HEADER_LEN as u64;
        let mut replayed = Replayed { end: first, kept_end: first, kept: 0 };
        let len = bytes.len().min(usize::try_from(limit.saturating_sub(listing.base)).unwrap_or(usize::MAX));
        let bytes = &bytes[..len];
        let mut at = SEGMENT_HEADER_LEN;
        if self.is_over {
            self.count_torn(bytes, at);
        }
        while !self.is_over && at < len {
            let position = listing.base + at as u64;
            let next = match check(&bytes[at..], id, at as u64) {
                Ok(head) => {
                    let item = &bytes[at..at + head.len as usize];
                    let is_taken = match head.is_batch() {
                        true => self.batch(&contents, at, item),
                        false => self.frame(&contents, at, item, &mut replayed),
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
        replayed
    }

    /// Called when all segments were replayed: whether the log ends where it is known to have been synced to.
    pub(crate) fn finish(&mut self) {
        if self.chain.is_some() && self.end < self.synced_upto {
            self.miss(self.synced_upto, self.end);
        }
    }

    /// A segment that was made when the engine was opened: the log up to its cut lies before it.
    fn begin_at_cut(&mut self, cut: u64) {
        if let Some(chain) = self.chain
            && chain != cut
        {
            self.miss(cut, chain);
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
                self.miss(batch.previous_end, chain);
            }
            (Ok(_), _) => {}
            (Err(_), _) => self.damage(contents, at, DamageKind::Malformed, (0, 0), Affected::Nothing),
        }
        self.chain = Some(0);
        true
    }

    /// False: the tail is torn here.
    fn frame(&mut self, contents: &Contents<'_>, at: usize, item: &[u8], replayed: &mut Replayed) -> bool {
        let position = contents.listing.base + at as u64;
        let is_synced = position < self.synced_upto;
        let Ok(frame) = Frame::read(item) else {
            if is_synced {
                let partition = PartitionId(u16::from_le_bytes([item[16], item[17]]));
                let affected = Affected::Partition(partition);
                self.damage(contents, at, DamageKind::Malformed, (0, 0), affected);
            }
            return is_synced;
        };
        let mut place = Place { segment: contents.id, offset: at as u64, len: item.len() as u32 };
        if !is_synced {
            let offset = (SEGMENT_HEADER_LEN + BATCH_LEN + self.rewritten.len()) as u64;
            place = Place { segment: self.fresh, offset, ..place };
        }
        if let Err((expected, found)) = self.apply(&frame, place) {
            let affected = Affected::Partition(frame.key.partition);
            self.damage(contents, at, DamageKind::MissingPending, (expected, found), affected);
            return true;
        }
        self.frames += 1;
        if is_synced {
            replayed.kept += 1;
        } else {
            let start = self.rewritten.len();
            self.rewritten.extend_from_slice(item);
            change_place(&mut self.rewritten[start..], (contents.id, at as u64), (place.segment, place.offset));
            self.rewritten_frames += 1;
        }
        true
    }

    /// Carries a frame's change out. The error: a commit's ballot, and the one pending.
    fn apply(&self, frame: &Frame<'_>, place: Place) -> Result<(), (u64, u64)> {
        let key: KeyRef<'_> = frame.key;
        let mut shard = self.memtable.lock(key.partition);
        let mut register = shard.entry(key).register;
        if let Change::Commit { ballot } = frame.change {
            let pending = register.pending.map(|(pending, _)| pending).unwrap_or_default();
            if pending != ballot {
                return Err((ballot.origin() ^ ballot.hlc(), pending.origin() ^ pending.hlc()));
            }
        }
        let held = frame.record.map(|head| Held { head, place });
        register.apply(frame.change, held, frame.stored_at);
        self.memtable.put(&mut shard, key, Entry { register, position: Position::ZERO });
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
    fn miss(&mut self, expected: u64, found: u64) {
        let (file, offset) = self.last.map_or((String::new(), 0), |(id, offset)| (id.file_name(), offset));
        let (kind, affected) = (DamageKind::Missing, Affected::Everything);
        self.findings.add(Damage { file, offset, kind, expected, found, affected });
    }

    /// What lies at `at` and behind is void.
    fn count_torn(&mut self, bytes: &[u8], at: usize) {
        let last = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        self.torn_bytes += last.saturating_sub(at) as u64;
    }
}

/// The highest `synced_upto` of the batches of a segment that check; none where no batch does.
pub(crate) fn highest_synced(contents: Contents<'_>) -> Option<u64> {
    let Contents { id, bytes, .. } = contents;
    let mut highest = None;
    let mut at = SEGMENT_HEADER_LEN;
    while at < bytes.len() {
        match check(&bytes[at..], id, at as u64) {
            Ok(head) => {
                let item = &bytes[at..at + head.len as usize];
                if head.is_batch()
                    && let Ok(batch) = Batch::read(item)
                {
                    highest = highest.max(Some(batch.synced_upto));
                }
                at += item.len();
            }
            Err(_) => match find_batch(bytes, at, id) {
                Some(next) => at = next,
                None => break,
            },
        }
    }
    highest
}
