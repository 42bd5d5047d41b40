//! The engine at rest: what the log takes on the disk is given back.

use crate::engine::Engine;
use crate::error::WriteError;
use crate::room::{ALLOCATION_STEP, Refused};
use crate::segment::SEGMENT_HEADER_LEN;
use crate::sync::atomic::Ordering;

/// A log that takes less than this is left alone.
const LEAST_WEIGHT: u64 = 2 << 20;
/// So is one that takes less than this part of the tables: each flush is merged with them, sooner or later.
const TABLES_PER_WEIGHT: u64 = 64;

impl Engine {
    /// The owner says that nothing was written for a while, some seconds. Where the log takes much room for what it still has to tell, it goes on in a
    /// new segment, the memtable is frozen, and the old segments go with the flush that [`maintain`](Self::maintain) then does. Less room is kept
    /// ahead until something is written again, and fewer superseded entries. True: there is upkeep to do; call it again afterwards.
    ///
    /// # Errors
    /// As those of [`write_pending`](Self::write_pending), and [`WriteError::DiskFull`]: then nothing changed.
    pub fn rest(&self) -> Result<bool, WriteError> {
        let _maintenance = self.maintenance.lock().expect("upkeep does not panic");
        if self.log.is_poisoned() {
            return Err(WriteError::Poisoned);
        }
        if !self.view().frozen.is_empty() {
            return Ok(true);
        }
        self.log.rest();
        let tables = self.view().levels.tables().map(|table| table.meta().file_len).sum::<u64>();
        let limit =
            (tables / TABLES_PER_WEIGHT).clamp(LEAST_WEIGHT, (self.options.memtable_bytes / 2).max(LEAST_WEIGHT));
        if self.log_weight() < limit.min(self.options.segment_bytes / 2) {
            self.give_room_back()?;
            let is_due = self.next_merge(&self.view().levels).is_some();
            self.upkeep_due.store(is_due, Ordering::Relaxed);
            return Ok(is_due);
        }
        Ok(self.leave_segment()? && self.freeze_even(true))
    }

    /// Bytes of the log that only a flush keeps from being given back, and the room of a spare that is not needed at rest.
    fn log_weight(&self) -> u64 {
        let manifest = self.lock_manifest();
        let before = manifest.segments.iter().filter(|(_, listing)| !listing.is_behind(manifest.position));
        let dead = before.filter_map(|(id, _)| self.segments.get(*id)).map(|segment| {
            let frames = segment.written().saturating_sub(SEGMENT_HEADER_LEN as u64);
            frames.saturating_sub(segment.live())
        });
        let spare =
            if self.log.has_spare() { self.log.room().bytes.saturating_sub(self.options.room_at_rest()) } else { 0 };
        dead.sum::<u64>() + spare
    }

    /// Ends the segment that is written to, and goes on in the next one. False: something is pending.
    pub(crate) fn leave_segment(&self) -> Result<bool, WriteError> {
        let writer = &mut *self.writer.lock().expect("no writer panics");
        if !self.log.has_spare() {
            self.add_spare(writer).map_err(|refused| match refused {
                Refused::DiskFull => WriteError::DiskFull,
                Refused::Failed(error) => self.poisoned_with(error),
            })?;
        }
        let Some(next) = self.log.leave() else { return Ok(false) };
        self.seal(writer).map_err(|error| self.poisoned_with(error))?;
        (writer.current, writer.end, writer.zeroed) = (next, SEGMENT_HEADER_LEN as u64, 0);
        let mut manifest = self.lock_manifest();
        let mut changed = manifest.clone();
        writer.note(&mut changed);
        self.replace_manifest(&mut manifest, changed)?;
        writer.cut_left().map_err(|error| self.poisoned_with(error))?;
        Ok(true)
    }

    /// Gives back what is allocated ahead beyond what a log at rest needs.
    fn give_room_back(&self) -> Result<(), WriteError> {
        let mut writer = self.writer.lock().expect("no writer panics");
        let room = self.options.room_at_rest();
        if !writer.reserve.is_lent {
            self.keep_reserve(&mut writer.reserve).map_err(|error| self.poisoned_with(error))?;
        }
        // What the manifest knows to be there stays.
        let least = self.lock_manifest().segments.get(&writer.current.id).map_or(u64::MAX, |listing| listing.least_len);
        if self.log.room().bytes < room + ALLOCATION_STEP || self.log.has_spare() {
            return Ok(());
        }
        let Some((segment, reserved)) = self.log.shrink(room, least) else { return Ok(()) };
        let cut = segment.file.truncate(reserved).map_err(WriteError::io(segment.id.file_name()));
        writer.zeroed = writer.zeroed.min(reserved);
        cut.map_err(|error| self.poisoned_with(error))
    }

    fn poisoned_with(&self, error: WriteError) -> WriteError {
        self.log.poison();
        error
    }
}
