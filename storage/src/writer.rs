//! The writer's step: batches of the log, and their syncs.

use std::sync::Arc;
use std::time::Duration;

use crate::disk::write_all;
use crate::engine::{Engine, count};
use crate::error::WriteError;
use crate::log::Run;
use crate::manifest::Manifest;
use crate::options::Sync as SyncOption;
use crate::reserve::Reserve;
use crate::room::Next;
use crate::segment::Segment;
use crate::stopwatch::Stopwatch;
use crate::sync::atomic::Ordering;

/// What only the writer uses.
pub(crate) struct Writer {
    /// The segment that is written to.
    pub(crate) current: Arc<Segment>,
    /// Up to this offset.
    pub(crate) end: u64,
    /// Whether it was written to since it was last synced.
    pub(crate) is_dirty: bool,
    /// The log is synced up to here.
    pub(crate) synced: u64,
    /// The current segment was written ahead with zeros up to here.
    pub(crate) zeroed: u64,
    pub(crate) next: Next,
    pub(crate) reserve: Reserve,
    /// Segments that the log has left, and where they end: cut off once the manifest says so, so that a file that is too short is damage.
    pub(crate) left: Vec<(Arc<Segment>, u64)>,
}

impl Writer {
    /// Adds to a manifest what was learnt of the log's segments since: where those end that the log has left, and how far the current one is synced,
    /// which its file is never shorter than from then on.
    pub(crate) fn note(&self, manifest: &mut Manifest) {
        for (left, end) in &self.left {
            if let Some(listing) = manifest.segments.get_mut(&left.id) {
                listing.end = *end;
            }
        }
        if let Some(listing) = manifest.segments.get_mut(&self.current.id) {
            listing.synced_upto = listing.synced_upto.max(self.synced);
            if !self.is_dirty {
                listing.least_len = listing.least_len.max(self.end);
            }
        }
    }

    /// Gives back the unused room of the segments that the log has left, once the manifest that has the [note](Self::note) is in place.
    pub(crate) fn cut_left(&mut self) -> Result<(), WriteError> {
        for (left, end) in self.left.drain(..) {
            left.file.truncate(end).map_err(WriteError::io(left.id.file_name()))?;
        }
        Ok(())
    }
}

impl Engine {
    /// The writer's step: writes everything that was appended, in one go, syncs once, and publishes [`durable_upto`](Self::durable_upto). What is
    /// appended meanwhile waits for the next call. Also makes room ahead. True: call it again, nobody is woken before. False: nothing was pending.
    ///
    /// # Errors
    /// The engine is poisoned now. `durable_upto` may have risen all the same, and holds.
    pub fn write_pending(&self) -> Result<bool, WriteError> {
        let mut writer = self.writer.lock().expect("no writer panics");
        if self.log.is_poisoned() {
            return Err(WriteError::Poisoned);
        }
        let mut step = || {
            let batch = self.begin(&writer);
            let is_pending = batch.is_some();
            if let Some(batch) = batch {
                self.finish(&mut writer, &batch)?;
            }
            self.make_room(&mut writer)?;
            Ok(is_pending)
        };
        step().inspect_err(|_| self.log.poison())
    }

    /// With [`Sync::Interval`](crate::Sync::Interval): something was written that is not synced yet, and [`sync_written`](Self::sync_written) is to be called
    /// within this time. Cheap.
    pub fn sync_within(&self) -> Option<Duration> {
        match self.options.sync {
            SyncOption::Interval(interval) => self.is_unsynced.load(Ordering::Acquire).then_some(interval),
            SyncOption::Always | SyncOption::Never => None,
        }
    }

    /// Syncs what was written and is not synced yet, whatever the option says; no more than what has been written so far. Waits for the writer's step.
    ///
    /// # Errors
    /// The engine is poisoned now.
    pub fn sync_written(&self) -> Result<(), WriteError> {
        let mut writer = self.writer.lock().expect("no writer panics");
        if self.log.is_poisoned() {
            return Err(WriteError::Poisoned);
        }
        match writer.is_dirty {
            true => self.sync(&mut writer).inspect_err(|_| self.log.poison()),
            false => Ok(()),
        }
    }

    /// Writes what is pending, and notes durably that the log is whole up to its end: damage of the last batches can then be told from a torn
    /// write, too. For a shutdown in order; the engine may be used further. Not closing loses nothing.
    pub fn close(&self) -> Result<(), WriteError> {
        while self.write_pending()? {}
        let mut writer = self.writer.lock().expect("no writer panics");
        if writer.is_dirty {
            self.sync(&mut writer).inspect_err(|_| self.log.poison())?;
        }
        let mut manifest = self.manifest.lock().expect("no thread panics while it holds the manifest");
        let mut changed = manifest.clone();
        writer.note(&mut changed);
        self.replace_manifest(&mut manifest, changed)?;
        writer.cut_left()
    }

    /// Sees to it that the log is synced up to a position. False: it has not been written so far yet.
    pub(crate) fn sync_upto(&self, position: u64) -> Result<bool, WriteError> {
        let mut writer = self.writer.lock().expect("no writer panics");
        if self.log.is_poisoned() {
            return Err(WriteError::Poisoned);
        }
        if writer.synced < position && writer.is_dirty {
            self.sync(&mut writer).inspect_err(|_| self.log.poison())?;
        }
        Ok(writer.synced >= position)
    }

    fn begin(&self, writer: &Writer) -> Option<Arc<Vec<Run>>> {
        self.log.begin(writer.synced)
    }

    fn finish(&self, writer: &mut Writer, batch: &[Run]) -> Result<(), WriteError> {
        for run in batch {
            if run.segment.id != writer.current.id {
                self.seal(writer)?;
                (writer.current, writer.zeroed) = (run.segment.clone(), 0);
            }
            let failed = WriteError::io(run.segment.id.file_name());
            writer.is_dirty = true;
            self.is_unsynced.store(true, Ordering::Release);
            write_all(&*run.segment.file, run.start, &run.bytes).map_err(failed)?;
            writer.end = run.end();
            count(&self.counters.batch_bytes, run.bytes.len() as u64);
        }
        let Some(last) = batch.last() else { return Ok(()) };
        let end = last.segment.position(last.end());
        if self.options.sync == SyncOption::Always || batch.iter().any(|run| run.must_sync) {
            self.sync(writer)?;
        }
        for run in batch {
            run.segment.set_written(run.end());
        }
        self.log.finish();
        self.durable_upto.store(end.0, Ordering::Release);
        count(&self.counters.batches, 1);
        self.counters.batch_frames.record(batch.iter().map(|run| run.frames).sum());
        self.counters.batch_len.record(batch.iter().map(|run| run.bytes.len() as u64).sum());
        self.write_zeros(writer, &last.segment, last.end(), last.bytes.len() as u64)
    }

    /// The segment has no more to come.
    pub(crate) fn seal(&self, writer: &mut Writer) -> Result<(), WriteError> {
        if writer.is_dirty {
            self.sync(writer)?;
        }
        writer.left.push((writer.current.clone(), writer.end));
        Ok(())
    }

    fn sync(&self, writer: &mut Writer) -> Result<(), WriteError> {
        let segment = &writer.current;
        let watch = Stopwatch::start();
        segment.file.sync().map_err(WriteError::io(segment.id.file_name()))?;
        writer.is_dirty = false;
        self.is_unsynced.store(false, Ordering::Release);
        writer.synced = writer.current.position(writer.end).0;
        count(&self.counters.syncs, 1);
        let nanos = watch.nanos();
        count(&self.counters.sync_nanos, nanos);
        self.counters.sync_time.record(nanos);
        Ok(())
    }
}
