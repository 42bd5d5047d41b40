//! `View`: what lies below the memtable, at one moment.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::Wait;
use crate::error::ReadError;
use crate::frozen::{Frozen, FrozenCursor};
use crate::place::Position;
use crate::table::{BlockCache, Merging, RunCursor, Source, Table, TableId};

/// Tables in levels. Level 0 has what was flushed, newest first, and ranges that overlap. Each deeper level is one run: tables one behind another
/// in the order of keys; what a deeper level holds is older.
#[derive(Clone, Default)]
pub(crate) struct Levels(pub(crate) Vec<Arc<[Arc<Table>]>>);

impl Levels {
    pub(crate) fn tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.0.iter().flat_map(|tables| tables.iter())
    }

    pub(crate) fn level(&self, level: usize) -> &[Arc<Table>] {
        self.0.get(level).map_or(&[], |tables| tables)
    }

    /// Adds a table to a level.
    pub(crate) fn add(&mut self, level: usize, table: Arc<Table>) {
        while self.0.len() <= level {
            self.0.push(Arc::new([]));
        }
        let mut tables = self.0[level].to_vec();
        let at = match level {
            0 => 0,
            _ => tables.partition_point(|other| other.meta().smallest < table.meta().smallest),
        };
        tables.insert(at, table);
        self.0[level] = tables.into();
    }

    pub(crate) fn remove(&mut self, id: TableId) {
        for tables in &mut self.0 {
            if tables.iter().any(|table| table.id() == id) {
                *tables = tables.iter().filter(|table| table.id() != id).cloned().collect();
            }
        }
    }

    /// Tables of a level that have keys in a range, both ends included.
    pub(crate) fn overlapping(&self, level: usize, smallest: &[u8], largest: &[u8]) -> Vec<Arc<Table>> {
        let overlaps = |t: &&Arc<Table>| *t.meta().smallest <= *largest && *smallest <= *t.meta().largest;
        self.level(level).iter().filter(overlaps).cloned().collect()
    }

    pub(crate) fn total_bytes(&self) -> u64 {
        self.tables().map(|table| table.meta().file_len).sum()
    }

    /// Each level's length in bytes.
    pub(crate) fn bytes(&self, level: usize) -> u64 {
        self.level(level).iter().map(|table| table.meta().file_len).sum()
    }
}

/// Frozen memtables and tables at one moment. Never changes: a newer one takes its place.
#[derive(Clone, Default)]
pub(crate) struct View {
    /// Newest first.
    pub(crate) frozen: Vec<Arc<Frozen>>,
    pub(crate) levels: Arc<Levels>,
    /// How many memtables were ever frozen: a view with the same number has no newer entries than another one.
    pub(crate) freezes: u64,
}

/// What a look at memory alone can tell of a key.
pub(crate) enum Glance<'a> {
    /// It is here.
    Found(&'a [u8], Position),
    /// It is nowhere.
    Absent,
    /// A table may have it.
    Unknown,
}

impl View {
    /// Looks for a key without I/O.
    #[inline]
    pub(crate) fn glance(&self, key: &[u8], hash: u64) -> Glance<'_> {
        for frozen in &self.frozen {
            if let Some((body, position)) = frozen.get(hash, key) {
                return Glance::Found(body, position);
            }
        }
        let is_possible = self.try_tables(key, hash, |_| ControlFlow::Break(()));
        if is_possible.is_break() { Glance::Unknown } else { Glance::Absent }
    }

    /// Calls with the tables that may have a key, the newest first.
    #[inline]
    fn try_tables<T>(&self, key: &[u8], hash: u64, mut call: impl FnMut(&Table) -> ControlFlow<T>) -> ControlFlow<T> {
        for (level, tables) in self.levels.0.iter().enumerate() {
            let tables = match level {
                0 => &tables[..],
                _ => {
                    let at = tables.partition_point(|table| *table.meta().largest < *key);
                    &tables[at..tables.len().min(at + 1)]
                }
            };
            for table in tables.iter().filter(|table| table.may_contain(key, hash)) {
                call(table)?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Reads of each table's filter what a look for the key will, and returns something of it: a caller with many keys to look up lets the processor wait
    /// for the memory of all of them at once.
    pub(crate) fn touch(&self, key: &[u8], hash: u64) -> u32 {
        let mut read = 0;
        for (level, tables) in self.levels.0.iter().enumerate() {
            let first = if level == 0 { 0 } else { tables.partition_point(|table| *table.meta().largest < *key) };
            let end = if level == 0 { tables.len() } else { tables.len().min(first + 1) };
            read ^= tables[first..end].iter().fold(0, |read, table| read ^ table.touch(hash));
        }
        read
    }

    /// Finds a key in the tables, after [`glance`](Self::glance). With it the number of blocks that were looked into in vain.
    pub(crate) fn find_in_tables(
        &self,
        key: &[u8],
        hash: u64,
        blocks: &BlockCache,
        wait: Wait,
    ) -> Result<(Option<Bytes>, u64), ReadError> {
        let mut in_vain = 0;
        let found = self.try_tables(key, hash, |table| match table.get(key, blocks, wait) {
            Ok(None) => {
                in_vain += 1;
                ControlFlow::Continue(())
            }
            Ok(Some(body)) => ControlFlow::Break(Ok(body)),
            Err(error) => ControlFlow::Break(Err(error)),
        });
        Ok((found.break_value().transpose()?, in_vain))
    }

    /// Finds a key anywhere.
    pub(crate) fn find(
        &self,
        key: &[u8],
        hash: u64,
        blocks: &BlockCache,
    ) -> Result<Option<(Bytes, Position)>, ReadError> {
        match self.glance(key, hash) {
            Glance::Found(body, position) => Ok(Some((Bytes::copy_from_slice(body), position))),
            Glance::Absent => Ok(None),
            Glance::Unknown => {
                let (found, _) = self.find_in_tables(key, hash, blocks, Wait::Allowed)?;
                Ok(found.map(|body| (body, Position::ZERO)))
            }
        }
    }

    /// Everything from a key on.
    pub(crate) fn sources(&self, key: &[u8], wait: Wait) -> Result<Merging, ReadError> {
        let frozen = self.frozen.iter().map(|frozen| Source::Frozen(FrozenCursor::seek(frozen.clone(), key)));
        let mut sources: Vec<_> = frozen.collect();
        for (level, tables) in self.levels.0.iter().enumerate() {
            match level {
                0 => {
                    for table in tables.iter() {
                        sources.push(Source::Run(RunCursor::seek([table.clone()].into(), key, false, wait)?));
                    }
                }
                _ if !tables.is_empty() => {
                    sources.push(Source::Run(RunCursor::seek(tables.clone(), key, false, wait)?));
                }
                _ => {}
            }
        }
        Ok(Merging::new(sources))
    }
}
