//! Merging tables of a level into the next one.
//!
//! Tables lie in few levels. What is flushed comes to level 0; from four tables there all of them are merged into level 1, which is one run of tables, as
//! every deeper level is. A level that is longer than its target hands one table after another, round and round, to the next one, whose target is ten
//! times as long. A level is also handed on where more than a fifth of all entries are superseded, a seventeenth at rest. On a full disk tables go down one by one, in pieces
//! ([`Descent`]).

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::descent::{Descent, Extent, Piece};
use crate::disk::Wait;
use crate::engine::{Engine, count};
use crate::error::{ReadError, WriteError};
use crate::job::{Job, JobError};
use crate::stopwatch::Stopwatch;
use crate::table::{Merging, RunCursor, Source, Table, TableId};
use crate::view::Levels;

/// So many tables in level 0 are merged.
const MERGE_AT: usize = 4;
/// A level may be so many times as long as the one above it.
const GROWTH: u64 = 10;
/// More levels than this are never needed.
pub(crate) const MAX_LEVELS: usize = 7;

/// What merging is in the middle of.
#[derive(Default)]
pub(crate) struct Merges {
    current: Option<Merge>,
    /// On a full disk, the table that goes down in pieces.
    descent: Option<Descent>,
    /// Where in each level the last table was taken from.
    handed_on: [Vec<u8>; MAX_LEVELS],
    /// Tables with damage that was reported: merges pass over it.
    damaged: BTreeSet<TableId>,
}

struct Merge {
    job: Job,
    inputs: Vec<TableId>,
    /// Those of them that the outputs replace.
    replaced: Vec<TableId>,
    /// Of a descent, where a piece ends.
    piece: Option<Extent>,
    /// Of the outputs.
    level: u8,
    watch: Stopwatch,
}

impl Merges {
    pub(crate) fn is_at_work(&self) -> bool {
        self.current.is_some()
    }

    /// Gives up the merge that is under way. The files that it has made.
    pub(crate) fn give_up(&mut self) -> Vec<TableId> {
        self.current.take().map_or_else(Vec::new, |merge| merge.job.files())
    }
}

impl Engine {
    /// Whether there is more to do.
    pub(crate) fn merge_step(&self, merges: &mut Merges, slice_bytes: u64) -> Result<bool, WriteError> {
        if merges.current.is_none() {
            let levels = self.view().levels.clone();
            merges.current = match self.next_piece(merges, &levels) {
                Some(piece) => Some(self.begin_piece(merges, &levels, piece)?),
                None => {
                    let Some(level) = self.next_merge(&levels) else { return Ok(false) };
                    Some(self.begin_merge(merges, &levels, level)?)
                }
            };
        }
        let Some(merge) = &mut merges.current else { return Ok(false) };
        match merge.job.run(&*self.disk, slice_bytes, || self.new_table_id()) {
            Ok(false) => Ok(true),
            Ok(true) => {
                let Some(merge) = merges.current.take() else { return Ok(false) };
                let (files, piece) = (merge.job.files(), merge.piece.clone());
                self.install_merge(merge).inspect_err(|_| self.remove_unlisted(&files))?;
                if let (Some(descent), Some(piece)) = (&mut merges.descent, piece) {
                    descent.note(piece.upto);
                }
                Ok(true)
            }
            Err(error) => {
                match &error {
                    JobError::Read(ReadError::Damaged(_)) => merges.damaged.extend(&merge.inputs),
                    JobError::Read(_) => {}
                    JobError::Write(_) => merges.handed_on = Default::default(),
                }
                self.remove_tables(&merges.give_up());
                Err(self.job_failed(error))
            }
        }
    }

    /// How long a level below level 0 may be.
    fn target_bytes(&self, level: usize) -> u64 {
        self.options.memtable_bytes * MERGE_AT as u64 * GROWTH.pow(level.saturating_sub(1) as u32)
    }

    /// The bytes that have to go to the next level for each level to be as short as it should be.
    pub(crate) fn merge_debt(&self, levels: &Levels) -> u64 {
        let level0 = if levels.level(0).len() >= MERGE_AT { levels.bytes(0) } else { 0 };
        let deeper = (1..MAX_LEVELS - 1).map(|level| levels.bytes(level).saturating_sub(self.target_bytes(level)));
        level0 + deeper.sum::<u64>()
    }

    /// What a piece of a merge may write, roughly: a table of the lower level, and what one of the upper level has in its range.
    pub(crate) fn longest_piece(&self, levels: &Levels) -> u64 {
        let new = self.options.merged_table_bytes(levels.total_bytes());
        let lower = levels.0.iter().skip(1).flat_map(|tables| tables.iter());
        lower.map(|table| table.meta().file_len).max().map_or(0, |longest| longest.max(new)) + new
    }

    /// The level whose tables are to be merged into the next one.
    pub(crate) fn next_merge(&self, levels: &Levels) -> Option<usize> {
        let target = |level: usize| self.target_bytes(level);
        if levels.level(0).len() >= MERGE_AT {
            return Some(0);
        }
        let mut deeper = 1..MAX_LEVELS - 1;
        if let Some(level) = deeper.find(|level| levels.bytes(*level) > target(*level)) {
            return Some(level);
        }
        let entries: u64 = levels.tables().map(|table| table.meta().entries).sum();
        let keys = self.key_count();
        // Each time all tables may be written anew for it: more often only where nobody else uses the disk.
        let part = if self.log.is_at_rest() { 16 } else { 4 };
        if entries <= keys + keys / part + 64 {
            return None;
        }
        let has = |level: usize| !levels.level(level).is_empty();
        let deepest = (0..MAX_LEVELS).rfind(|level| has(*level))?;
        let first = (0..deepest).find(|level| has(*level));
        first.or((deepest == 0 && levels.level(0).len() > 1).then_some(0))
    }

    fn begin_merge(&self, merges: &mut Merges, levels: &Levels, level: usize) -> Result<Merge, WriteError> {
        let watch = Stopwatch::start();
        let upper: Vec<Arc<Table>> = match level {
            0 => levels.level(0).to_vec(),
            _ => {
                let next = next_to_hand_on(levels.level(level), &merges.handed_on[level]);
                next.into_iter().cloned().collect()
            }
        };
        let smallest = upper.iter().map(|table| &*table.meta().smallest).min().unwrap_or_default();
        let largest = upper.iter().map(|table| &*table.meta().largest).max().unwrap_or_default();
        merges.handed_on[level] = smallest.to_vec();
        let lower = levels.overlapping(level + 1, smallest, largest);
        let inputs: Vec<_> = upper.iter().chain(&lower).map(|table| table.id()).collect();
        let job = self.merge_job(merges, levels, level, (&upper, lower), &Extent::default())?;
        Ok(Merge { job, replaced: inputs.clone(), inputs, piece: None, level: level as u8 + 1, watch })
    }

    /// On a full disk, or where a descent was begun on one.
    fn next_piece(&self, merges: &mut Merges, levels: &Levels) -> Option<Piece> {
        if let Some(piece) = merges.descent.as_ref().and_then(|descent| descent.next(levels)) {
            return Some(piece);
        }
        merges.descent = None;
        let level = self.next_merge(levels).filter(|_| self.log.is_disk_full())?;
        let tables = levels.level(level);
        let table = match level {
            0 => tables.last(),
            _ => next_to_hand_on(tables, &merges.handed_on[level]),
        }?;
        merges.handed_on[level] = table.meta().smallest.to_vec();
        merges.descent.insert(Descent::new(table.id(), level)).next(levels)
    }

    fn begin_piece(&self, merges: &mut Merges, levels: &Levels, piece: Piece) -> Result<Merge, WriteError> {
        let watch = Stopwatch::start();
        let Piece { upper, lower, extent, is_last } = piece;
        let lower: Vec<_> = lower.into_iter().collect();
        let level = merges.descent.as_ref().map_or(0, |descent| descent.level);
        let inputs = lower.iter().chain([&upper]).map(|table| table.id()).collect();
        let replaced = lower.iter().chain(is_last.then_some(&upper)).map(|table| table.id()).collect();
        let job = self.merge_job(merges, levels, level, (&[upper], lower), &extent)?;
        Ok(Merge { job, inputs, replaced, piece: Some(extent), level: level as u8 + 1, watch })
    }

    /// Merges tables of a level, the newest first, with some of the next one, which lie behind one another.
    fn merge_job(
        &self,
        merges: &mut Merges,
        levels: &Levels,
        level: usize,
        (upper, lower): (&[Arc<Table>], Vec<Arc<Table>>),
        extent: &Extent,
    ) -> Result<Job, WriteError> {
        let all = || upper.iter().chain(&lower);
        let smallest = all().map(|table| &*table.meta().smallest).min().unwrap_or_default().max(&extent.from);
        let largest = all().map(|table| &*table.meta().largest).max().unwrap_or_default();
        let largest = extent.upto.as_ref().map_or(largest, |upto| largest.min(upto));
        let nothing_below =
            (level + 2..levels.0.len()).all(|below| levels.overlapping(below, smallest, largest).is_empty());
        let run = |tables: Arc<[Arc<Table>]>| {
            let skips_damage = tables.iter().any(|table| merges.damaged.contains(&table.id()));
            Ok(Source::Run(RunCursor::seek(tables, &extent.from, skips_damage, Wait::Allowed).map_err(|error| {
                self.note_damage(&error);
                WriteError::Read(error)
            })?))
        };
        let runs = upper.iter().map(|table| run([table.clone()].into()));
        let sources: Result<Vec<_>, WriteError> = runs.chain([run(lower.clone().into())]).collect();
        let sources = sources.inspect_err(|error| {
            if let WriteError::Read(ReadError::Damaged(_)) = error {
                merges.damaged.extend(all().map(|table| table.id()));
            }
        })?;
        let position = all().map(|table| table.meta().position).max().unwrap_or(0);
        let job = Job::new(
            Merging::new(sources),
            nothing_below,
            position,
            self.options.merged_table_bytes(levels.total_bytes()),
        );
        Ok(job.upto(extent.upto.clone()))
    }

    fn install_merge(&self, merge: Merge) -> Result<(), WriteError> {
        let Merge { job, replaced, piece, level, watch, .. } = merge;
        self.sync_tables()?;
        let mut manifest = self.lock_manifest();
        let mut changed = manifest.clone();
        changed.tables.retain(|(id, _)| !replaced.contains(id));
        changed.tables.extend(job.outputs.iter().map(|table| (table.id(), level)));
        self.replace_manifest(&mut manifest, changed)?;
        drop(manifest);
        self.change_view(|view| {
            let levels = Arc::make_mut(&mut view.levels);
            replaced.iter().for_each(|id| levels.remove(*id));
            job.outputs.iter().for_each(|table| levels.add(level.into(), table.clone()));
        });
        count(&self.counters.merges, 1);
        self.counters.merge_time.record(watch.nanos());
        count(&self.counters.merged_pieces, piece.is_some().into());
        count(&self.counters.merged_bytes, job.outputs.iter().map(|table| table.meta().file_len).sum());
        for id in replaced {
            // Who reads it now has it open.
            self.disk.remove(&id.file_name()).map_err(WriteError::io(id.file_name()))?;
        }
        Ok(())
    }
}

/// The table that lies behind the one that was handed on last, round and round.
fn next_to_hand_on<'a>(tables: &'a [Arc<Table>], last: &[u8]) -> Option<&'a Arc<Table>> {
    tables.iter().find(|table| *table.meta().smallest > *last).or(tables.first())
}
