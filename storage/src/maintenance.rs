//! Upkeep: flushing the memtable, merging tables, and whatever else is done beside reads and writes, in steps.

use std::io;
use std::sync::Arc;

use crate::collection::Collection;
use crate::digests::{self, Captured, DigestsId};
use crate::disk::Wait;
use crate::engine::{Engine, count};
use crate::error::{WriteError, is_disk_full};
use crate::frozen::{Frozen, Moment};
use crate::job::{Job, JobError};
use crate::manifest::Manifest;
use crate::merge::Merges;
use crate::place::SegmentId;
use crate::stopwatch::Stopwatch;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::table::{TABLES_DIR, TableId};
use crate::view::View;

/// From so many on writes are refused as overload: they are merged more slowly than they are made.
const OVERLOADED_AT: usize = 24;

/// What upkeep is in the middle of.
#[derive(Default)]
pub(crate) struct Maintenance {
    flush: Option<Flush>,
    merges: Merges,
    collection: Collection,
    /// A snapshot that waits for the log, and the log's end when it was first asked for.
    pub(crate) asked_snapshot: Option<(String, u64)>,
}

struct Flush {
    job: Job,
    /// What is flushed, the newest first.
    frozen: Vec<Arc<Frozen>>,
    watch: Stopwatch,
}

impl Engine {
    /// The upkeep's step: does the most urgent piece of work there is, of about so many bytes. Whether there is more that can be done now. Its owner
    /// calls it again while there is, at a rate that leaves the disk to others, and whenever the writer's step may have made work
    /// ([`wants_upkeep`](Self::wants_upkeep)).
    ///
    /// # Errors
    /// Without exception the data are whole, and the step may be tried again, where the engine is not poisoned now. [`WriteError::DiskFull`]: there is no
    /// room for new tables.
    pub fn maintain(&self, slice_bytes: u64) -> Result<bool, WriteError> {
        let maintenance = &mut *self.maintenance.lock().expect("upkeep does not panic");
        if self.log.is_poisoned() {
            return Err(WriteError::Poisoned);
        }
        match self.upkeep_step(maintenance, slice_bytes) {
            Err(WriteError::DiskFull) if self.lend_reserve()? => {
                // A flush comes first; what was merged so far takes room.
                self.remove_tables(&maintenance.merges.give_up());
                Ok(true)
            }
            Ok(true) if self.is_at_work(maintenance) => Ok(true),
            done => {
                self.end_lending()?;
                done
            }
        }
    }

    fn is_at_work(&self, maintenance: &Maintenance) -> bool {
        let Maintenance { flush, merges, collection, .. } = maintenance;
        flush.is_some() || merges.is_at_work() || collection.is_at_work() || !self.view().frozen.is_empty()
    }

    fn upkeep_step(&self, maintenance: &mut Maintenance, slice_bytes: u64) -> Result<bool, WriteError> {
        self.mark_noted()?;
        self.much_is_staged.store(false, Ordering::Relaxed);
        if self.is_log_in_the_way() && self.view().frozen.is_empty() && self.leave_segment()? {
            self.freeze_even(true);
        }
        if let Some(done) = self.flush_step(maintenance, slice_bytes)? {
            return Ok(done);
        }
        let has_merged = self.merge_step(&mut maintenance.merges, slice_bytes)?;
        let is_behind = self.note_garbage(&maintenance.collection);
        if (!has_merged || is_behind) && self.collect_step(&mut maintenance.collection, slice_bytes)? {
            return Ok(true);
        }
        if has_merged {
            return Ok(true);
        }
        // What was collected, or died otherwise, is given back by the next flush: at once where there is nothing else to do. What was staged for nothing dies
        // without a change.
        Ok(self.view().frozen.is_empty() && self.waits_for_flush() && self.freeze_even(true))
    }

    /// Whether [`maintain`](Self::maintain) has something to do. Cheap.
    pub fn wants_upkeep(&self) -> bool {
        let is_due = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        self.is_flush_due()
            || [&self.upkeep_due, &self.much_is_staged, &self.too_much_garbage, &self.unmarked].into_iter().any(is_due)
    }

    /// The memtable is full, or the log that would have to be replayed too long.
    fn is_flush_due(&self) -> bool {
        self.memtable.bytes() >= self.options.memtable_bytes
            || self.uncovered_log() >= self.options.log_limit()
            || self.is_log_in_the_way()
    }

    /// Bytes of the log that no table covers.
    fn uncovered_log(&self) -> u64 {
        self.log.end().0.saturating_sub(self.covered.load(Ordering::Relaxed))
    }

    /// On a full disk a flush gives back the log's old segments, and has to come before the log's reserve is used up.
    fn is_log_in_the_way(&self) -> bool {
        self.log.is_disk_full() && self.uncovered_log() >= self.options.disk_reserve_bytes / 2
    }

    /// What changed since the last flush takes so much memory; a flush of it would write about as much.
    pub(crate) fn unflushed_bytes(&self) -> u64 {
        self.memtable.bytes() + self.frozen_bytes.load(Ordering::Relaxed)
    }

    /// Refuses what would not fit into memory, or what upkeep cannot keep up with.
    #[inline]
    pub(crate) fn check_memory(&self, is_exempt: bool) -> Result<(), WriteError> {
        if self.log.is_poisoned() {
            return Err(WriteError::Poisoned);
        }
        let limit = self.options.memtable_bytes * if is_exempt { 4 } else { 2 };
        let is_behind = !is_exempt
            && (self.level0.load(Ordering::Relaxed) >= OVERLOADED_AT || self.too_much_garbage.load(Ordering::Relaxed));
        if is_behind || self.unflushed_bytes() >= limit {
            return Err(WriteError::Overloaded);
        }
        Ok(())
    }

    /// Freezes the memtable, so that it can be flushed; false: it is empty.
    pub(crate) fn freeze(&self) -> bool {
        self.freeze_even(false)
    }

    /// The same, where it is empty only if that is asked for: a flush of nothing moves the position from which the log is replayed.
    pub(crate) fn freeze_even(&self, if_empty: bool) -> bool {
        let moment = |digests| {
            let (position, keys, live) = (self.log.end().0, self.key_count(), self.segments.live());
            Moment { position, keys, live, digests }
        };
        self.memtable.freeze(if_empty, moment, |frozen| {
            self.change_view(|view| {
                view.frozen.insert(0, frozen);
                view.freezes += 1;
            });
        })
    }

    pub(crate) fn change_view(&self, change: impl FnOnce(&mut View)) {
        let mut view = self.view.write().expect("no thread panics while it holds the view");
        let mut changed = (**view).clone();
        change(&mut changed);
        self.piece_bytes.store(self.longest_piece(&changed.levels), Ordering::Relaxed);
        let frozen_bytes = changed.frozen.iter().map(|frozen| frozen.bytes()).sum();
        self.frozen_bytes.store(frozen_bytes, Ordering::Relaxed);
        self.level0.store(changed.levels.level(0).len(), Ordering::Relaxed);
        let is_due = !changed.frozen.is_empty() || self.next_merge(&changed.levels).is_some();
        self.upkeep_due.store(is_due, Ordering::Relaxed);
        *view = Arc::new(changed);
    }

    /// None: nothing is to be flushed, or nothing can be now.
    pub(crate) fn flush_step(
        &self,
        maintenance: &mut Maintenance,
        slice_bytes: u64,
    ) -> Result<Option<bool>, WriteError> {
        if self.is_flush_due() && maintenance.flush.is_none() && self.view().frozen.is_empty() {
            self.freeze();
        }
        let view = self.view();
        if maintenance.flush.is_none() {
            let Some(newest) = view.frozen.first() else { return Ok(None) };
            // What lies in a table must lie in the log as well, or a crash could leave the end of the log without what came before it.
            if !self.sync_upto(newest.moment.position)? {
                return Ok(None);
            }
            let only_frozen = View { levels: Arc::default(), ..(*view).clone() };
            let merging = only_frozen.sources(&[], Wait::Allowed).map_err(WriteError::Read)?;
            let is_first = view.levels.tables().next().is_none();
            let job = Job::new(merging, is_first, newest.moment.position, self.options.table_bytes);
            maintenance.flush = Some(Flush { job, frozen: view.frozen.clone(), watch: Stopwatch::start() });
        }
        let Some(flush) = &mut maintenance.flush else { return Ok(None) };
        match flush.job.run(&*self.disk, slice_bytes, || self.new_table_id()) {
            Ok(false) => Ok(Some(true)),
            Ok(true) => {
                let Some(flush) = maintenance.flush.take() else { return Ok(None) };
                let files = flush.job.files();
                self.install_flush(flush).inspect_err(|_| self.remove_unlisted(&files))?;
                Ok(Some(true))
            }
            Err(error) => {
                let files = flush.job.files();
                maintenance.flush = None;
                self.remove_tables(&files);
                Err(self.job_failed(error))
            }
        }
    }

    fn install_flush(&self, flush: Flush) -> Result<(), WriteError> {
        let Flush { job, frozen, watch } = flush;
        let moment = &frozen.first().expect("a flush has something to flush").moment;
        let digests = DigestsId(self.new_table_id().0);
        self.write_digests(digests, &moment.digests).inspect_err(|_| self.remove_digests(digests))?;
        let mut manifest = self.lock_manifest();
        let mut changed = manifest.clone();
        changed.tables.extend(job.outputs.iter().map(|table| (table.id(), 0)));
        (changed.position, changed.keys) = (moment.position, moment.keys);
        for (id, listing) in &mut changed.segments {
            listing.live = moment.live.get(id).copied().unwrap_or(0);
            if listing.is_cold
                && let Some(segment) = self.segments.get(*id)
            {
                listing.end = segment.written();
            }
            if listing.is_behind(moment.position) && listing.end == 0 {
                // It was cut off here when the log left it, which need not be durable.
                listing.end = self.segments.get(*id).map_or(0, |segment| segment.written());
            }
        }
        let dead = self.take_dead(&mut changed);
        let former = changed.digests.replace(digests);
        let replaced = self.replace_manifest(&mut manifest, changed);
        drop(manifest);
        // After another failure than that it is open which manifest will be found.
        if replaced.is_err() && !self.log.is_poisoned() {
            self.remove_digests(digests);
        }
        replaced?;
        self.change_view(|view| {
            let levels = Arc::make_mut(&mut view.levels);
            job.outputs.iter().for_each(|table| levels.add(0, table.clone()));
            view.frozen.retain(|other| !frozen.iter().any(|flushed| Arc::ptr_eq(flushed, other)));
        });
        self.covered.store(moment.position, Ordering::Relaxed);
        count(&self.counters.flushes, 1);
        self.counters.flush_time.record(watch.nanos());
        count(&self.counters.flushed_bytes, job.outputs.iter().map(|table| table.meta().file_len).sum());
        self.remove_segments(&dead)?;
        let Some(former) = former.map(DigestsId::file_name) else { return Ok(()) };
        match self.disk.remove(&former) {
            // That it was missing was reported when the engine was opened.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(WriteError::io(former)),
        }
    }

    /// Writes the digests that go with new tables, and makes the names of all of these files durable.
    fn write_digests(&self, id: DigestsId, digests: &Captured) -> Result<(), WriteError> {
        let written = digests::write(&*self.disk, id, digests);
        written.map_err(|source| match is_disk_full(&source) {
            true => WriteError::DiskFull,
            false => WriteError::Io { file: id.file_name(), source },
        })?;
        self.sync_tables()
    }

    /// Takes a file of digests away that came to nothing. One that stays is removed when the engine is opened again.
    fn remove_digests(&self, id: DigestsId) {
        if self.disk.remove(&id.file_name()).is_err() {
            count(&self.counters.unremoved, 1);
        }
    }

    /// Removes segments that the manifest does not have any more.
    pub(crate) fn remove_segments(&self, dead: &[SegmentId]) -> Result<(), WriteError> {
        for id in dead {
            // Who reads it now has it open; others look the key up again.
            self.segments.remove(*id);
            self.disk.remove(&id.file_name()).map_err(WriteError::io(id.file_name()))?;
        }
        Ok(())
    }

    pub(crate) fn job_failed(&self, error: JobError) -> WriteError {
        match error {
            JobError::Read(error) => {
                self.note_damage(&error);
                WriteError::Read(error)
            }
            JobError::Write(error) => error,
        }
    }

    /// Takes away tables that came to nothing. One that stays is removed when the engine is opened again.
    pub(crate) fn remove_tables(&self, files: &[TableId]) {
        for id in files {
            if self.disk.remove(&id.file_name()).is_err() {
                count(&self.counters.unremoved, 1);
            }
        }
    }

    /// After a failed change of the manifest: unless that left open which one will be found.
    pub(crate) fn remove_unlisted(&self, files: &[TableId]) {
        let manifest = self.lock_manifest();
        let is_listed = files.iter().any(|id| manifest.tables.iter().any(|(listed, _)| listed == id));
        drop(manifest);
        if !self.log.is_poisoned() && !is_listed {
            self.remove_tables(files);
        }
    }

    pub(crate) fn sync_tables(&self) -> Result<(), WriteError> {
        self.disk.sync_dir(TABLES_DIR).map_err(WriteError::io(TABLES_DIR))
    }

    pub(crate) fn new_table_id(&self) -> TableId {
        let mut manifest = self.lock_manifest();
        manifest.next_table += 1;
        TableId(manifest.next_table - 1)
    }

    /// Takes out what is behind the position from which the log is replayed, and what neither tables nor the memtable refer to.
    fn take_dead(&self, manifest: &mut Manifest) -> Vec<SegmentId> {
        let position = manifest.position;
        // Who holds one gives it up only after the index refers to it.
        let is_unused = |id: &SegmentId| {
            let segment = self.segments.get(*id);
            segment.is_some_and(|s| !s.is_held() && s.live() == 0 && s.is_named_before(position))
        };
        let dead = manifest
            .segments
            .extract_if(.., |id, listing| listing.is_behind(position) && listing.live == 0 && is_unused(id));
        dead.map(|(id, _)| id).collect()
    }
}
