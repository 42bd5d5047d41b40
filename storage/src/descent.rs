//! `Descent`: a merge in bounded room, for a disk that is full.
//!
//! A merge keeps its inputs until its outputs are listed, so it needs as much room again as all of them have. On a full disk one table goes down to the
//! next level instead, in pieces: each is merged with one table of that level, within its range, and replaces that one alone. The table that goes down
//! stays until the last piece. What it repeats meanwhile hides what lies below it, which is the same; nothing newer lies below it, since it is
//! the oldest of level 0, or of a deeper level.

use std::sync::Arc;

use crate::table::{Table, TableId};
use crate::view::Levels;

/// A table on its way down.
pub(crate) struct Descent {
    pub(crate) table: TableId,
    pub(crate) level: usize,
    /// What lies up to here is in the next level, too.
    done_upto: Option<Vec<u8>>,
}

/// What is merged next.
pub(crate) struct Piece {
    pub(crate) upper: Arc<Table>,
    pub(crate) lower: Option<Arc<Table>>,
    pub(crate) extent: Extent,
    pub(crate) is_last: bool,
}

/// A part of the keys.
#[derive(Clone, Default)]
pub(crate) struct Extent {
    /// The least key that may be in it.
    pub(crate) from: Vec<u8>,
    /// The last one; none: there is no end.
    pub(crate) upto: Option<Vec<u8>>,
}

impl Descent {
    pub(crate) fn new(table: TableId, level: usize) -> Self {
        Self { table, level, done_upto: None }
    }

    /// None: the table is gone.
    pub(crate) fn next(&self, levels: &Levels) -> Option<Piece> {
        let upper = levels.level(self.level).iter().find(|table| table.id() == self.table)?.clone();
        // The least key above another one is that with a zero more.
        let from = self.done_upto.as_ref().map_or_else(Vec::new, |done| [done, &[0][..]].concat());
        let smallest = from.as_slice().max(&upper.meta().smallest);
        let mut lower = levels.overlapping(self.level + 1, smallest, &upper.meta().largest).into_iter();
        let (lower, is_last) = (lower.next(), lower.next().is_none());
        let upto = lower.as_ref().filter(|_| !is_last).map(|lower| lower.meta().largest.to_vec());
        Some(Piece { upper, lower, extent: Extent { from, upto }, is_last })
    }

    /// A piece is in the next level.
    pub(crate) fn note(&mut self, upto: Option<Vec<u8>>) {
        self.done_upto = upto;
    }
}
