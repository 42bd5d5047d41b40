//! Judges a history by PROTOCOL.md 1.11: a linearizability checker for each key (Wing and Gong's search with Lowe's pruning; keys are
//! independent, so each is searched alone), and the plain path's promises by stamps.
//!
//! Start at [`check`]. The search itself ([`search`], [`Model`]) knows nothing of Dunlin.

mod explain;
mod plain;
mod register;
mod search;
mod violation;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod witness;

use crate::history::History;

pub use search::{Interval, Model, Verdict, search};
pub use violation::{Claim, Violation};

/// Steps that the search of one key may take: a second or two and some 200 MiB, where a sound history takes a few steps for each event.
pub const BUDGET: u64 = 2_000_000;

/// What was checked, where nothing is wrong.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Checked {
    /// Events that were judged.
    pub events: usize,
    /// Steps of the searches.
    pub steps: u64,
    /// Keys whose search was given up: too many unknown outcomes at once. Their plain promises hold.
    pub undecided: Vec<u32>,
}

/// Checks every claim for every key.
///
/// # Errors
/// The first claim that does not hold, with the shortest window of the history that shows it.
pub fn check(history: &History) -> Result<Checked, Box<Violation>> {
    check_within(history, BUDGET)
}

/// As [`check`], with a budget of steps for each key.
pub fn check_within(history: &History, budget: u64) -> Result<Checked, Box<Violation>> {
    let mut checked = Checked::default();
    for key in history.keys() {
        let events = history.of_key(key);
        plain::check(key, &events)?;
        let mut left = budget;
        match explain::is_legal(&events, u64::MAX, &mut left) {
            Verdict::Legal => {}
            Verdict::Undecided => checked.undecided.push(key),
            Verdict::Illegal => {
                let window = explain::shortest_window(&events);
                return Err(Box::new(Violation { key, claim: Claim::Linearizable, window }));
            }
        }
        checked.events += events.len();
        checked.steps += budget - left;
    }
    Ok(checked)
}
