//! Collecting garbage: what is live of a segment that is mostly dead moves to a cold segment, and the old file goes.
//!
//! 1. The victim is read frame by frame; those that the index refers to are copied behind one another into a cold segment.
//! 2. That is synced and listed in the manifest; then each index entry that still points at the old place is pointed at the new one, in the
//!    memtable. No frame of the log says so: after a crash tables still refer to the old place, which is there.
//! 3. The next flush makes that durable. The victim, of which the index then needs nothing, is removed with it.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::{Disk, Wait, write_all};
use crate::engine::{Engine, count};
use crate::error::{Affected, Damage, DamageKind, ReadError, WriteError, is_disk_full};
use crate::frame::{self, Frame, HEAD_LEN, MAX_FRAME_LEN, change_place};
use crate::full_key::FullKey;
use crate::indexed::Indexed;
use crate::manifest::Listing;
use crate::place::{Place, Position, SEGMENTS_DIR, SegmentId};
use crate::segment::{Hold, SEGMENT_HEADER_LEN, Segment, SegmentHeader};
use crate::sync::atomic::Ordering;
use crate::table::split_key;
use crate::view::Glance;

/// So many segments' worth of garbage may lie there besides as much as is live.
const GARBAGE_SEGMENTS: u64 = 16;

/// What collection is in the middle of.
#[derive(Default)]
pub(crate) struct Collection {
    victim: Option<Victim>,
    /// Where live frames are moved to, as far as it is listed.
    cold: Option<Cold>,
    /// Segments that were emptied, or cannot be read.
    done: BTreeSet<SegmentId>,
}

struct Victim {
    segment: Arc<Segment>,
    /// Where its live frames go: a flush does not remove it meanwhile, even if all that it had before is dead.
    cold: Hold,
    /// As far as it was looked at.
    at: u64,
    /// Where the cold segment will end.
    cold_end: u64,
    moved: Vec<Moved>,
}

struct Moved {
    key: Vec<u8>,
    from: Place,
    to: Place,
}

struct Cold {
    segment: Arc<Segment>,
    is_listed: bool,
}

impl Collection {
    pub(crate) fn is_at_work(&self) -> bool {
        self.victim.is_some()
    }
}

impl Engine {
    /// Whether there is more to do.
    pub(crate) fn collect_step(&self, collection: &mut Collection, slice_bytes: u64) -> Result<bool, WriteError> {
        if collection.victim.is_none() {
            let Some(segment) = self.next_victim(&collection.done) else { return Ok(false) };
            let cold = Hold::of(&self.cold_segment(collection, segment.id)?);
            let (at, cold_end) = (SEGMENT_HEADER_LEN as u64, cold.segment().written());
            collection.victim = Some(Victim { segment, cold, at, cold_end, moved: Vec::new() });
        }
        let Some(victim) = &mut collection.victim else { return Ok(false) };
        let done = self.copy_live(victim, slice_bytes);
        match done {
            Ok(false) => Ok(true),
            Ok(true) => {
                let victim = collection.victim.take().expect("just used");
                let moved = self.move_live(collection, &victim);
                if moved.is_ok() || matches!(moved, Err(WriteError::Read(_))) {
                    collection.done.insert(victim.segment.id);
                }
                moved?;
                count(&self.counters.collected, 1);
                count(&self.counters.moved_bytes, victim.moved.iter().map(|moved| u64::from(moved.to.len)).sum());
                Ok(true)
            }
            Err(error) => {
                let victim = collection.victim.take().expect("just used");
                match error {
                    WriteError::Read(_) => drop(collection.done.insert(victim.segment.id)),
                    // What was copied in vain takes no room.
                    WriteError::DiskFull => self.cut_written(victim.cold.segment()),
                    _ => {}
                }
                Err(error)
            }
        }
    }

    /// Segments behind the log's replayed part that are worth collecting, the most dead one first.
    pub(crate) fn next_victim(&self, done: &BTreeSet<SegmentId>) -> Option<Arc<Segment>> {
        let manifest = self.lock_manifest();
        let is_free = |id: &SegmentId, listing: &Listing| listing.is_behind(manifest.position) && !done.contains(id);
        let behind = manifest.segments.iter().filter(|(id, listing)| is_free(id, listing));
        let victims = behind.filter_map(|(id, _)| {
            let segment = self.segments.get(*id)?;
            let (live, written) = (segment.live(), segment.written());
            let dead = written.saturating_sub(live);
            self.is_worth_collecting(&segment).then_some((dead * 1000 / written.max(1), segment))
        });
        victims.max_by_key(|(dead, _)| *dead).map(|(_, segment)| segment)
    }

    /// The bytes of segments behind the log that nothing refers to, and those of them in segments that wait to be collected. Locks nothing, so what is in
    /// the middle of being flushed or collected may count in either way.
    pub(crate) fn garbage(&self, segments: &[Arc<Segment>]) -> (u64, u64) {
        let covered = self.covered.load(Ordering::Relaxed);
        let behind = segments.iter().filter(|segment| segment.is_cold || segment.base + segment.capacity <= covered);
        let (mut dead, mut debt) = (0, 0);
        for segment in behind {
            let of_segment = segment.written().saturating_sub(segment.live());
            dead += of_segment;
            debt += if self.is_worth_collecting(segment) { of_segment } else { 0 };
        }
        (dead, debt)
    }

    fn is_worth_collecting(&self, segment: &Segment) -> bool {
        let (live, written) = (segment.live(), segment.written());
        // A new segment would have a header, too: little that was moved there is not to be moved for that.
        let dead = written.saturating_sub(live + SEGMENT_HEADER_LEN as u64);
        live > 0 && !segment.is_held() && dead * 100 > written * u64::from(self.options.garbage_percent)
    }

    /// Finds out whether garbage grows faster than it is collected: writes are refused then. Whether it is on the way to that.
    pub(crate) fn note_garbage(&self, collection: &Collection) -> bool {
        let manifest = self.lock_manifest();
        let (mut dead, mut live) = (0, 0);
        for (id, listing) in &manifest.segments {
            // What was emptied goes with the next flush.
            if !listing.is_behind(manifest.position) || collection.done.contains(id) {
                continue;
            }
            let Some(segment) = self.segments.get(*id).filter(|segment| segment.live() > 0) else { continue };
            dead += segment.written().saturating_sub(segment.live());
            live += segment.live().min(segment.written());
        }
        let limit = live + GARBAGE_SEGMENTS * self.options.segment_bytes;
        self.too_much_garbage.store(dead > limit, Ordering::Relaxed);
        dead > limit / 2
    }

    /// Whether a segment could be removed if only the index's present state were durable.
    pub(crate) fn waits_for_flush(&self) -> bool {
        let manifest = self.lock_manifest();
        let mut behind = manifest.segments.iter().filter(|(_, listing)| listing.is_behind(manifest.position));
        behind.any(|(id, listing)| {
            let is_empty = |segment: Arc<Segment>| segment.live() == 0 && !segment.is_held();
            // A cold one may have died before any flush knew that something in it lived.
            (listing.live > 0 || listing.is_cold) && self.segments.get(*id).is_some_and(is_empty)
        })
    }

    /// Where to move what is live of a victim: to another segment.
    fn cold_segment(&self, collection: &mut Collection, victim: SegmentId) -> Result<Arc<Segment>, WriteError> {
        if let Some(cold) = &collection.cold
            && cold.segment.id != victim
            && cold.segment.written() < self.options.segment_bytes
            // All of it may have died and gone.
            && (!cold.is_listed || self.segments.get(cold.segment.id).is_some())
        {
            return Ok(cold.segment.clone());
        }
        let id = self.new_segment_id();
        let segment = create_cold(&*self.disk, id, self.options.segment_bytes).map_err(failed(id));
        let segment = segment.inspect_err(|_| self.remove_unused(id))?;
        collection.cold = Some(Cold { segment: segment.clone(), is_listed: false });
        Ok(segment)
    }

    /// Copies what is live of the next part of the victim; whether that was the last.
    fn copy_live(&self, victim: &mut Victim, slice_bytes: u64) -> Result<bool, WriteError> {
        let cold = victim.cold.segment();
        let (id, end) = (victim.segment.id, victim.segment.written());
        let len = slice_bytes.max(2 * MAX_FRAME_LEN as u64).min(end.saturating_sub(victim.at));
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        let read = victim.segment.file.read_at(victim.at, &mut bytes);
        let read = read.map_err(|source| ReadError::Io { file: id.file_name(), offset: victim.at, source })?;
        bytes.truncate(read);
        let mut out = Vec::new();
        let mut at = 0;
        while bytes.len() - at >= HEAD_LEN {
            let offset = victim.at + at as u64;
            let head = match frame::check(&bytes[at..], id, offset) {
                Ok(head) => head,
                // It goes on in the next part.
                Err(_) if at > 0 && bytes.len() - at < MAX_FRAME_LEN && victim.at + (bytes.len() as u64) < end => break,
                Err(bad) => {
                    let affected = bad.head.map_or(Affected::Everything, |head| Affected::Partition(head.partition));
                    let (expected, found) = (bad.expected.into(), bad.found.into());
                    let (file, kind) = (id.file_name(), DamageKind::Checksum);
                    let error = ReadError::Damaged(Damage { file, offset, kind, expected, found, affected });
                    self.note_damage(&error);
                    return Err(error.into());
                }
            };
            let item = &bytes[at..at + head.len as usize];
            let place = Place { segment: id, offset, len: head.len };
            if !head.is_batch()
                && let Ok(frame) = Frame::read(item)
                && frame.record.is_some()
                && self.refers(&FullKey::new(frame.key), &place)?
            {
                let to = Place { segment: cold.id, offset: victim.cold_end + out.len() as u64, len: head.len };
                let start = out.len();
                out.extend_from_slice(item);
                change_place(&mut out[start..], (id, offset), (to.segment, to.offset));
                victim.moved.push(Moved { key: crate::table::key(frame.key), from: place, to });
            }
            at += head.len as usize;
        }
        write_all(&*cold.file, victim.cold_end, &out).map_err(failed(cold.id))?;
        victim.cold_end += out.len() as u64;
        victim.at += at as u64;
        let rest = end.saturating_sub(victim.at);
        Ok(rest < HEAD_LEN as u64 || at == 0)
    }

    /// Gives back what lies in a cold segment behind what counts. Where that fails it is written over.
    pub(crate) fn cut_written(&self, segment: &Segment) {
        if segment.file.truncate(segment.written()).is_err() {
            count(&self.counters.unremoved, 1);
        }
    }

    /// Whether the index refers to a place for a key.
    fn refers(&self, full: &FullKey, place: &Place) -> Result<bool, ReadError> {
        let Some(key) = split_key(full.bytes()) else { return Ok(false) };
        self.with_body(key, full, Wait::Allowed, |body, _| {
            let indexed = body.map(Indexed::decode).transpose().map_err(|bad| self.malformed(key, bad))?;
            Ok(indexed.is_some_and(|indexed| indexed.held().any(|(held, _)| held.place == *place)))
        })
    }

    /// All that is live was copied: makes that durable, and points the index at it.
    fn move_live(&self, collection: &mut Collection, victim: &Victim) -> Result<(), WriteError> {
        let Some(cold) = collection.cold.as_mut().filter(|_| !victim.moved.is_empty()) else { return Ok(()) };
        if let Err(error) = self.sync_cold(cold) {
            // What a failed sync left behind no later one makes durable: nothing more is written to this file.
            let is_listed = cold.is_listed;
            let name = cold.segment.id.file_name();
            collection.cold = None;
            if !is_listed && self.disk.remove(&name).is_err() {
                count(&self.counters.unremoved, 1);
            }
            return Err(error);
        }
        self.list_cold(cold, victim.cold_end)?;
        victim.moved.iter().try_for_each(|moved| self.move_entry(moved))
    }

    fn sync_cold(&self, cold: &Cold) -> Result<(), WriteError> {
        let segment = &cold.segment;
        segment.file.sync().map_err(failed(segment.id))?;
        if !cold.is_listed {
            self.disk.sync_dir(SEGMENTS_DIR).map_err(failed(segment.id))?;
        }
        Ok(())
    }

    fn list_cold(&self, cold: &mut Cold, end: u64) -> Result<(), WriteError> {
        let segment = &cold.segment;
        let mut manifest = self.lock_manifest();
        let mut changed = manifest.clone();
        changed.segments.entry(segment.id).or_insert(Listing::cold(segment.capacity)).end = end;
        changed.next_segment = self.next_segment.load(Ordering::Relaxed);
        self.replace_manifest(&mut manifest, changed)?;
        drop(manifest);
        segment.set_written(end);
        cold.is_listed = true;
        self.segments.insert(segment.clone());
        Ok(())
    }

    /// Points an entry at the new place, if it still points at the old one.
    fn move_entry(&self, moved: &Moved) -> Result<(), WriteError> {
        let Some(key) = split_key(&moved.key) else { return Ok(()) };
        let full = FullKey::new(key);
        let mut fetched: Option<(u64, Option<Bytes>)> = None;
        loop {
            let mut guard = self.memtable.lock(key.partition);
            let shard = &mut *guard;
            let slot = shard.find(full.hash, full.bytes());
            let view;
            let (body, position) = match slot {
                Some(slot) => (Some(shard.body(slot)), shard.position(slot)),
                None => {
                    view = self.view();
                    match (&fetched, view.glance(full.bytes(), full.hash)) {
                        (_, Glance::Found(body, position)) => (Some(body), position),
                        (_, Glance::Absent) => (None, Position::ZERO),
                        (Some((freezes, body)), Glance::Unknown) if *freezes == view.freezes => {
                            (body.as_deref(), Position::ZERO)
                        }
                        (_, Glance::Unknown) => {
                            drop(guard);
                            fetched = Some((view.freezes, self.find_in_tables(&view, &full, Wait::Allowed)?));
                            continue;
                        }
                    }
                }
            };
            let Some(body) = body else { return Ok(()) };
            let mut indexed = Indexed::decode(body).map_err(|bad| self.malformed(key, bad))?;
            let old = indexed.register;
            if let Some(held) = &mut indexed.register.record
                && held.place == moved.from
            {
                held.place = moved.to;
            }
            if let Some((_, held)) = &mut indexed.register.pending
                && held.place == moved.from
            {
                held.place = moved.to;
            }
            if indexed.register != old {
                let mut body = Vec::with_capacity(body.len() + 8);
                indexed.encode(&mut body);
                self.segments.account(&old, &indexed.register);
                self.memtable.put(shard, slot, full.hash, full.bytes(), &body, position);
            }
            return Ok(());
        }
    }
}

/// Makes the file of a segment that is no part of the log.
pub(crate) fn create_cold(disk: &dyn Disk, id: SegmentId, segment_bytes: u64) -> io::Result<Arc<Segment>> {
    let capacity = segment_bytes + 2 * MAX_FRAME_LEN as u64;
    let header = SegmentHeader { id, base: 0, capacity, cut: u64::MAX, synced_upto: 0, is_cold: true };
    let file = disk.create(&id.file_name())?;
    write_all(&*file, 0, &header.encode())?;
    Ok(Arc::new(Segment::new(id, &Listing::cold(capacity), file, SEGMENT_HEADER_LEN as u64)))
}

pub(crate) fn failed(id: SegmentId) -> impl FnOnce(io::Error) -> WriteError {
    move |source| match is_disk_full(&source) {
        true => WriteError::DiskFull,
        false => WriteError::Io { file: id.file_name(), source },
    }
}
