//! `Merging`: several sorted sources as one, new before old.

use std::cmp::Ordering;

use super::reader::RunCursor;
use crate::error::ReadError;
use crate::frozen::FrozenCursor;
use crate::place::Position;

/// Something sorted with a place in it.
pub(crate) enum Source {
    /// Tables.
    Run(RunCursor),
    /// A memtable that does not change any more.
    Frozen(FrozenCursor),
}

impl Source {
    #[inline]
    fn key(&self) -> Option<&[u8]> {
        match self {
            Self::Run(run) => run.key(),
            Self::Frozen(frozen) => frozen.key(),
        }
    }

    fn body(&self) -> &[u8] {
        match self {
            Self::Run(run) => run.body(),
            Self::Frozen(frozen) => frozen.body(),
        }
    }

    fn position(&self) -> Position {
        match self {
            Self::Run(_) => Position::ZERO,
            Self::Frozen(frozen) => frozen.position(),
        }
    }

    #[inline]
    fn advance(&mut self) -> Result<(), ReadError> {
        match self {
            Self::Run(run) => run.advance(),
            Self::Frozen(frozen) => {
                frozen.advance();
                Ok(())
            }
        }
    }
}

/// Several sources as one: each key once, with the body of the newest source that has it.
pub(crate) struct Merging {
    /// With their age, 0 the newest; those that are not at their end, by key, and of one key the newest first. Few, and boxed, since they change
    /// places from key to key.
    sources: Vec<(usize, Box<Source>)>,
}

impl Merging {
    /// The newest source first.
    pub(crate) fn new(sources: Vec<Source>) -> Self {
        let is_there = |(age, source): (usize, Source)| source.key().is_some().then(|| (age, Box::new(source)));
        let mut sources: Vec<_> = sources.into_iter().enumerate().filter_map(is_there).collect();
        sources.sort_by(compare);
        Self { sources }
    }

    /// The key where it stands, none at the end.
    pub(crate) fn key(&self) -> Option<&[u8]> {
        self.sources.first().and_then(|(_, source)| source.key())
    }

    pub(crate) fn body(&self) -> &[u8] {
        self.sources.first().map_or(&[], |(_, source)| source.body())
    }

    /// Just behind the newest frame of the key where it stands; zero: durable for long.
    pub(crate) fn position(&self) -> Position {
        self.sources.first().map_or(Position::ZERO, |(_, source)| source.position())
    }

    /// Goes on to the next key; older entries of this one are passed over.
    pub(crate) fn advance(&mut self) -> Result<(), ReadError> {
        while self.sources.len() > 1 && self.sources[1].1.key() == self.sources[0].1.key() {
            self.sources[1].1.advance()?;
            self.settle(1);
        }
        if let Some((_, first)) = self.sources.first_mut() {
            first.advance()?;
            self.settle(0);
        }
        Ok(())
    }

    /// Moves a source that was advanced to where it belongs: most often it stays.
    #[inline]
    fn settle(&mut self, mut at: usize) {
        if self.sources[at].1.key().is_none() {
            self.sources.remove(at);
            return;
        }
        while at + 1 < self.sources.len() && compare(&self.sources[at], &self.sources[at + 1]) == Ordering::Greater {
            self.sources.swap(at, at + 1);
            at += 1;
        }
    }
}

fn compare((age_a, a): &(usize, Box<Source>), (age_b, b): &(usize, Box<Source>)) -> Ordering {
    a.key().cmp(&b.key()).then(age_a.cmp(age_b))
}
