//! Staging: large records go to segments of their own, ahead of the log.
//!
//! 1. [`Engine::stage`] appends a record's frame to the segment for large records and syncs it. Nothing refers to it yet.
//! 2. [`Engine::update_staged`] is an [`update`](Engine::update) whose frame in the log names that place instead of carrying the record.
//!
//! So what waits for the log never waits behind megabytes, and a large record is written once. A segment for large records is cold (see
//! [`segment`](crate::segment)): its frames count only where the index refers to them, and collection treats it like any other. Its end in the manifest rises with
//! each flush; replay, which meets the references that came since, raises it further. What was staged and never referred to is garbage.

use std::io;
use std::sync::atomic::Ordering;

use dunlin_protocol::register::Change;
use dunlin_protocol::{Ballot, Millis, Record, RecordHead};

use crate::collection::{create_cold, failed};
use crate::disk::write_all;
use crate::engine::{Engine, KeyRef, count};
use crate::error::WriteError;
use crate::frame::{self, set_place};
use crate::manifest::Listing;
use crate::place::{Place, SEGMENTS_DIR, SegmentId};
use crate::segment::{Hold, SEGMENT_HEADER_LEN};

/// A record that is on the disk, synced, and not yet part of anything: for [`Engine::update_staged`]. Dropped unused, it is garbage.
#[derive(Debug)]
pub struct Staged {
    pub(crate) head: RecordHead,
    pub(crate) place: Place,
    /// Partition, keyspace and key, as the index has them.
    pub(crate) key: Vec<u8>,
    /// Until it is referred to, or dropped, its segment stays.
    pub(crate) hold: Hold,
}

impl Staged {
    /// The record but for lineage and content.
    pub fn head(&self) -> RecordHead {
        self.head
    }
}

/// The segment that large records are appended to.
pub(crate) struct Stage {
    hold: Hold,
    /// Frames that are there, synced or not, end here.
    end: u64,
}

impl Engine {
    /// Whether a record is large enough to be [staged](Self::stage), as [`Options::stage_bytes`](crate::Options::stage_bytes) says. It need not be.
    pub fn is_large(&self, record: &Record) -> bool {
        record.content.bytes().is_some_and(|value| value.len() >= self.options.stage_bytes)
    }

    /// Writes records to the segment for large ones and syncs once. Blocks for as long as the disk takes, and holds no lock that reads, updates or the
    /// log's writer take: for a thread of its own.
    ///
    /// # Errors
    /// Nothing was staged. After [`WriteError::Io`] the engine is poisoned, as after any failed write or sync of a segment.
    pub fn stage(&self, records: &[(KeyRef<'_>, &Record)]) -> Result<Vec<Staged>, WriteError> {
        self.check_memory(false)?;
        if self.log.is_disk_full() {
            self.log.ask_for_room();
            return Err(WriteError::DiskFull);
        }
        let mut guard = self.stage.lock().expect("staging does not panic");
        let staged = self.append_staged(&mut guard, records);
        match &staged {
            Err(WriteError::DiskFull) => {
                // What was written in vain takes no room from what is flushed.
                if let Some(stage) = &mut *guard {
                    self.cut_written(stage.hold.segment());
                    stage.end = stage.hold.segment().written();
                }
            }
            Err(WriteError::Io { .. }) => self.log.poison(),
            _ => {}
        }
        staged
    }

    fn append_staged(
        &self,
        stage: &mut Option<Stage>,
        records: &[(KeyRef<'_>, &Record)],
    ) -> Result<Vec<Staged>, WriteError> {
        let mut staged = Vec::with_capacity(records.len());
        for (key, record) in records {
            let change = Change::Store { ballot: Ballot::ZERO };
            let mut item = frame::encode(*key, &change, Some(record), Millis::NONE)?.bytes;
            let len = item.len() as u64;
            let is_full = |stage: &mut Stage| {
                stage.end > SEGMENT_HEADER_LEN as u64 && stage.end + len > self.options.segment_bytes
            };
            if let Some(full) = stage.take_if(is_full) {
                sync(&full)?;
            }
            let current = match stage {
                Some(current) => current,
                None => stage.insert(self.new_stage()?),
            };
            let segment = current.hold.segment();
            let place = Place { segment: segment.id, offset: current.end, len: item.len() as u32 };
            set_place(&mut item, place.segment, place.offset);
            write_all(&*segment.file, current.end, &item).map_err(failed(segment.id))?;
            let hold = current.hold.clone();
            current.end += len;
            staged.push(Staged { head: record.head(), place, key: crate::table::key(*key), hold });
        }
        // After a failed sync nobody can say what lies there: another segment is begun when there is room again.
        if let Some(current) = stage.take() {
            sync(&current)?;
            *stage = Some(current);
        }
        count(&self.counters.staged, staged.len() as u64);
        count(&self.counters.staged_bytes, staged.iter().map(|staged| u64::from(staged.place.len)).sum());
        Ok(staged)
    }

    /// Makes a segment. It is durable, and listed in the manifest, before anything refers to it.
    fn new_stage(&self) -> Result<Stage, WriteError> {
        let id = self.new_segment_id();
        let made = create_cold(&*self.disk, id, self.options.segment_bytes).and_then(|segment| {
            segment.file.sync()?;
            self.disk.sync_dir(SEGMENTS_DIR)?;
            Ok(segment)
        });
        let segment = made.map_err(failed(id)).inspect_err(|_| self.remove_unused(id))?;
        // Before the manifest has it, so that a flush does not take it for unused.
        let hold = Hold::of(&segment);
        let mut manifest = self.lock_manifest();
        let mut changed = manifest.clone();
        changed.segments.insert(id, Listing { end: segment.written(), ..Listing::cold(segment.capacity) });
        changed.next_segment = self.next_segment.load(Ordering::Relaxed);
        self.segments.insert(segment.clone());
        self.replace_manifest(&mut manifest, changed).inspect_err(|_| {
            self.segments.remove(id);
            // Otherwise nobody knows which manifest will be found.
            if !self.log.is_poisoned() {
                self.remove_unused(id);
            }
        })?;
        drop(manifest);
        self.much_is_staged.store(true, Ordering::Relaxed);
        Ok(Stage { hold, end: segment.written() })
    }

    /// Takes away the file of a segment that came to nothing. One that stays is removed when the engine is opened again.
    pub(crate) fn remove_unused(&self, id: SegmentId) {
        if self.disk.remove(&id.file_name()).is_err_and(|error| error.kind() != io::ErrorKind::NotFound) {
            count(&self.counters.unremoved, 1);
        }
    }
}

/// What was appended is on the disk, and may be referred to.
fn sync(stage: &Stage) -> Result<(), WriteError> {
    let segment = stage.hold.segment();
    if segment.written() < stage.end {
        segment.file.sync().map_err(failed(segment.id))?;
        segment.set_written(stage.end);
    }
    Ok(())
}
