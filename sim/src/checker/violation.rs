//! What went wrong, for a person to read.

use std::fmt;

use crate::history::{Ending, Event};

/// What was promised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// C1, C3: one order explains every answer.
    Linearizable,
    /// A stamp names one record, for ever.
    OneVersionOneValue,
    /// Nothing is read that nobody began to write.
    ReadsWhatWasWritten,
    /// C2, for quorum reads.
    WriteIsRead,
    /// C2, for serial operations.
    WriteSurvivesCas,
    /// Quorum reads of a plain key never go back.
    ReadsRise,
}

impl Claim {
    /// What the history shows, in a sentence.
    pub fn broken(self) -> &'static str {
        match self {
            Self::Linearizable => "no order of these operations explains what was answered",
            Self::OneVersionOneValue => "one version was told of two values",
            Self::ReadsWhatWasWritten => "a value was read that no write before the answer can have left",
            Self::WriteIsRead => "an acknowledged quorum write was not seen by a later quorum read",
            Self::WriteSurvivesCas => "an acknowledged quorum write was not seen by a later serial operation",
            Self::ReadsRise => "a later quorum read told an older version",
        }
    }
}

/// A claim that does not hold, with the fewest events that show it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The key.
    pub key: u32,
    /// The claim.
    pub claim: Claim,
    /// The events that break it, in order of invocation.
    pub window: Vec<Event>,
}

/// The width of the timeline's bars in characters.
const WIDTH: u64 = 48;

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "key {}: {} ({:?})", self.key, self.claim.broken(), self.claim)?;
        let first = self.window.iter().map(|e| e.invoked_at).min().unwrap_or(0);
        let last = self.window.iter().map(|e| e.returned.map_or(e.invoked_at, |(at, _)| at)).max().unwrap_or(0);
        let column = |at: u64| {
            let span = u128::from((last - first).max(1));
            (u128::from(at.clamp(first, last) - first) * u128::from(WIDTH - 1) / span) as usize
        };
        for event in &self.window {
            let mut bar = vec![b' '; WIDTH as usize];
            let from = column(event.invoked_at);
            let (to, end) = match event.returned {
                Some((at, Ending::Done(_) | Ending::Failed)) => (column(at), b'|'),
                Some((_, Ending::Unknown)) | None => (WIDTH as usize - 1, b'>'),
            };
            bar[from..=to].fill(b'-');
            bar[from] = b'|';
            bar[to] = end;
            let returned = event.returned.map_or_else(|| "..".to_owned(), |(at, _)| at.to_string());
            let bar = String::from_utf8_lossy(&bar);
            writeln!(f, "  {:>12} {returned:>12}  c{:<3} {bar} {event}", event.invoked_at, event.client)?;
        }
        Ok(())
    }
}

impl std::error::Error for Violation {}
