//! Reading keys and records.

use std::sync::Arc;

use bytes::Bytes;
use dunlin_protocol::RecordHead;
use dunlin_protocol::register::Held;

use crate::disk::{Wait, read_at};
use crate::engine::{Engine, Entry, KeyRef, Stored, count};
use crate::error::{Affected, Damage, DamageKind, ReadError};
use crate::frame::{self, Frame, Malformed};
use crate::full_key::FullKey;
use crate::indexed::Indexed;
use crate::pin::Pin;
use crate::place::{Place, Position};
use crate::scan::Visited;
use crate::segment::Segment;
use crate::update::Found;
use crate::view::{Glance, View};

impl Engine {
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.read().expect("no thread panics while it holds the view").clone()
    }

    /// What is held for a key.
    ///
    /// # Errors
    /// The key has not been used for long, and cannot be read.
    pub fn entry(&self, key: KeyRef<'_>) -> Result<Entry, ReadError> {
        self.entry_in(key, None, Wait::Allowed)
    }

    /// Like [`entry`](Self::entry), but without waiting for the disk. `found` is what another thread found of this key meanwhile, if it did.
    ///
    /// # Errors
    /// [`ReadError::WouldBlock`]: have another thread [find](Self::find) it.
    pub fn try_entry(&self, key: KeyRef<'_>, found: Option<&Found>) -> Result<Entry, ReadError> {
        self.entry_in(key, found, Wait::Never)
    }

    fn entry_in(&self, key: KeyRef<'_>, found: Option<&Found>, wait: Wait) -> Result<Entry, ReadError> {
        let full = FullKey::new(key);
        let mut entry = self.with_body_or(key, &full, found, wait, |body, position| {
            let register = body.map(Indexed::decode).transpose().map_err(|bad| self.malformed(key, bad))?;
            Ok(Entry { register: register.unwrap_or_default().register, position })
        })?;
        entry.position = self.shown_position(&entry);
        Ok(entry)
    }

    /// Calls with the body that the index has for a key.
    pub(crate) fn with_body<T>(
        &self,
        key: KeyRef<'_>,
        full: &FullKey,
        wait: Wait,
        call: impl FnOnce(Option<&[u8]>, Position) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        self.with_body_or(key, full, None, wait, call)
    }

    /// The same; `found` counts where a table would have to be read.
    fn with_body_or<T>(
        &self,
        key: KeyRef<'_>,
        full: &FullKey,
        found: Option<&Found>,
        wait: Wait,
        call: impl FnOnce(Option<&[u8]>, Position) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let mut guard = self.memtable.lock(key.partition);
        let shard = &mut *guard;
        if let Some(slot) = shard.find(full.hash, full.bytes()) {
            return call(Some(shard.body(slot)), shard.position(slot));
        }
        if let Some(hot) = shard.hot.find(full.hash, full.bytes()) {
            return call(Some(shard.hot.body(hot)), Position::ZERO);
        }
        // Taken under the lock: what was in the memtable then is in it still, or in the view.
        let (view, freezes) = (self.view(), shard.freezes);
        drop(guard);
        let keep = |body: &[u8]| self.memtable.lock(key.partition).keep(freezes, full.hash, full.bytes(), body);
        self.with_body_below(&view, full, (found, wait), keep, call)
    }

    /// Calls with the body that lies below the memtable; before that with one that was found in tables, to be kept at hand.
    fn with_body_below<T>(
        &self,
        view: &View,
        full: &FullKey,
        (found, wait): (Option<&Found>, Wait),
        keep: impl FnOnce(&[u8]),
        call: impl FnOnce(Option<&[u8]>, Position) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        match view.glance(full.bytes(), full.hash) {
            Glance::Found(body, position) => call(Some(body), position),
            Glance::Absent => call(None, Position::ZERO),
            Glance::Unknown => {
                let body = match found.filter(|found| found.counts_in(view, full)) {
                    Some(found) => found.body.clone(),
                    None => self.find_in_tables(view, full, wait)?,
                };
                if let Some(body) = &body {
                    keep(body);
                }
                call(body.as_deref(), Position::ZERO)
            }
        }
    }

    /// As [`with_body`](Self::with_body), at a moment that is kept.
    fn with_pinned_body<T>(
        &self,
        pin: &Pin,
        key: KeyRef<'_>,
        full: &FullKey,
        call: impl FnOnce(Option<&[u8]>, Position) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        // Under the lock: what is not saved is as it was.
        let shard = self.memtable.lock(key.partition);
        let saved = pin.saved(full.bytes());
        let found = match (&saved, pin.frozen()) {
            (Some(saved), _) => saved.body.as_ref().map(|(body, position)| (&**body, *position)),
            (None, Some(frozen)) => frozen.get(full.hash, full.bytes()),
            (None, None) => {
                let slot = shard.find(full.hash, full.bytes());
                slot.map(|slot| (shard.body(slot), shard.position(slot)))
            }
        };
        if let Some((body, position)) = found {
            return call(Some(body), position);
        }
        drop(shard);
        self.with_body_below(&pin.view, full, (None, Wait::Allowed), |_| {}, call)
    }

    pub(crate) fn find_in_tables(&self, view: &View, full: &FullKey, wait: Wait) -> Result<Option<Bytes>, ReadError> {
        count(&self.counters.table_looks, 1);
        let found = view.find_in_tables(full.bytes(), full.hash, &self.blocks, wait);
        let (body, in_vain) = found.inspect_err(|error| self.note_damage(error))?;
        if in_vain > 0 {
            count(&self.counters.filter_misses, in_vain);
        }
        Ok(body)
    }

    /// What is held now; absent for long: it waits for nothing.
    pub(crate) fn shown_position(&self, entry: &Entry) -> Position {
        match entry.register.is_absent() && entry.position <= self.durable_upto() {
            true => Position::ZERO,
            false => entry.position,
        }
    }

    pub(crate) fn malformed(&self, key: KeyRef<'_>, Malformed: Malformed) -> ReadError {
        let error = ReadError::Damaged(Damage {
            file: String::new(),
            offset: 0,
            kind: DamageKind::Malformed,
            expected: 0,
            found: 0,
            affected: Affected::Partition(key.partition),
        });
        self.note_damage(&error);
        error
    }

    /// Reads a record that a register of this key held a moment ago, checksum verified; also one that is not written yet.
    ///
    /// # Errors
    /// [`ReadError::Superseded`]: meanwhile it holds another one.
    pub fn load(&self, key: KeyRef<'_>, held: &Held<Place>) -> Result<Stored, ReadError> {
        self.try_load(key, held, Wait::Allowed)
    }

    /// Like [`load`](Self::load), but waiting for the disk only where that is allowed; otherwise [`ReadError::WouldBlock`].
    pub fn try_load(&self, key: KeyRef<'_>, held: &Held<Place>, wait: Wait) -> Result<Stored, ReadError> {
        self.load_of(None, key, held, wait)
    }

    /// Reads a record that a register holds now, or held at a moment that is kept.
    pub(crate) fn load_of(
        &self,
        pin: Option<&Pin>,
        key: KeyRef<'_>,
        held: &Held<Place>,
        wait: Wait,
    ) -> Result<Stored, ReadError> {
        count(&self.read_counters(key.partition).reads, 1);
        if !held.place.is_inline() {
            match self.load_frame(pin, &held.place, wait) {
                // It was moved meanwhile.
                Err(ReadError::Gone { .. }) => {}
                loaded => return loaded.inspect_err(|error| self.note_damage(error)),
            }
        }
        let full = FullKey::new(key);
        let look = |body: Option<&[u8]>, _| {
            let Some(body) = body else { return Ok(None) };
            let indexed = Indexed::decode(body).map_err(|bad| self.malformed(key, bad))?;
            if let Some(stored) = indexed.stored(&held.head) {
                return stored.map(|stored| Some(Ok(stored))).map_err(|bad| self.malformed(key, bad));
            }
            let moved = indexed.held().find(|(other, _)| other.head == held.head);
            Ok(moved.map(|(held, _)| Err(held.place)))
        };
        let found = match pin {
            None => self.with_body(key, &full, wait, look)?,
            Some(pin) => self.with_pinned_body(pin, key, &full, look)?,
        };
        match found {
            Some(Ok(stored)) => Ok(stored),
            // It was not moved: the segment is missing, which was reported when the engine was opened.
            Some(Err(place)) if place == held.place && !place.is_inline() => {
                Err(ReadError::Gone { segment: place.segment })
            }
            Some(Err(place)) if !place.is_inline() => {
                self.load_frame(pin, &place, wait).inspect_err(|error| self.note_damage(error))
            }
            _ => Err(ReadError::Superseded),
        }
    }

    /// What is held for a key, and its record, in one look.
    pub fn get(&self, key: KeyRef<'_>) -> Result<(Entry, Option<Stored>), ReadError> {
        count(&self.read_counters(key.partition).reads, 1);
        let full = FullKey::new(key);
        loop {
            let (mut entry, stored) = self.with_body(key, &full, Wait::Allowed, |body, position| {
                let Some(body) = body else { return Ok((Entry { position, ..Entry::default() }, None)) };
                let indexed = Indexed::decode(body).map_err(|bad| self.malformed(key, bad))?;
                let entry = Entry { register: indexed.register, position };
                let KeyRef { partition, keyspace, key } = key;
                let stored = Visited { keyspace, partition, key, entry: &entry, body: indexed.record }.record();
                Ok((entry, stored))
            })?;
            entry.position = self.shown_position(&entry);
            let Some(held) = entry.register.record.filter(|_| stored.is_none()) else { return Ok((entry, stored)) };
            match self.load(key, &held) {
                // Overwritten and collected between the two looks: what it is now counts.
                Err(ReadError::Superseded) => {}
                loaded => return Ok((entry, Some(loaded?))),
            }
        }
    }

    fn load_frame(&self, pin: Option<&Pin>, place: &Place, wait: Wait) -> Result<Stored, ReadError> {
        let kept = pin.and_then(|pin| pin.segments.get(&place.segment).cloned());
        let segment = kept.or_else(|| self.segments.get(place.segment));
        let segment = segment.ok_or(ReadError::Gone { segment: place.segment })?;
        let item = Bytes::from(self.read(&segment, place, wait)?);
        let damaged = |kind, expected: u32, found: u32, affected| {
            let file = place.segment.file_name();
            let (expected, found) = (expected.into(), found.into());
            ReadError::Damaged(Damage { file, offset: place.offset, kind, expected, found, affected })
        };
        let head = frame::check(&item, place.segment, place.offset).map_err(|bad| {
            let affected = bad.head.map_or(Affected::Everything, |head| Affected::Partition(head.partition));
            damaged(DamageKind::Checksum, bad.expected, bad.found, affected)
        })?;
        let malformed = |_| damaged(DamageKind::Malformed, 0, 0, Affected::Partition(head.partition));
        let frame = Frame::read(&item).map_err(malformed)?;
        let Some(RecordHead { tombstone, .. }) = frame.record else {
            return Err(ReadError::NoRecord { place: *place });
        };
        let (lineage, content) = frame.body().decode(tombstone, |value| item.slice_ref(value)).map_err(malformed)?;
        Ok(Stored { lineage, content })
    }

    fn read(&self, segment: &Segment, place: &Place, wait: Wait) -> Result<Vec<u8>, ReadError> {
        let is_written = || place.offset.checked_add(place.len.into()).is_some_and(|end| end <= segment.written());
        // What is found in neither place was written between the two looks.
        if !is_written()
            && let Some(frame) = self.log.find(place)
        {
            return Ok(frame);
        }
        let mut frame = vec![0; place.len as usize];
        let read = read_at(&*segment.file, wait, place.offset, &mut frame).map_err(|source| ReadError::Io {
            file: place.segment.file_name(),
            offset: place.offset,
            source,
        })?;
        let read = read.ok_or(ReadError::WouldBlock)?;
        // A file that ends early does not check.
        frame.truncate(read);
        Ok(frame)
    }
}
