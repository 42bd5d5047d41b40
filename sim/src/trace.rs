//! `Trace`: what happened, as one number.

use std::fmt;

use dunlin_protocol::Tick;

/// A running hash over every event of a run. Two runs of one seed must end with the same number; a difference means that something which the seed
/// does not govern (a hash map's order, a clock, a thread) has got in.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    hash: u64,
    events: u64,
    aloud: bool,
}

const START: u64 = 0xcbf2_9ce4_8422_2325;
const FACTOR: u64 = 0x9fb2_1c65_1e98_df25;

fn mix(hash: u64, word: u64) -> u64 {
    let hash = (hash ^ word).wrapping_mul(FACTOR);
    hash ^ (hash >> 29)
}

/// The hash of some bytes, the same in every release.
pub(crate) fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut hash = mix(START, bytes.len() as u64);
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        hash = mix(hash, u64::from_le_bytes(chunk.try_into().expect("chunks of eight")));
    }
    let mut last = [0; 8];
    last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    mix(hash, u64::from_le_bytes(last))
}

impl Trace {
    /// An empty trace. `aloud`: print every event to standard error.
    pub(crate) fn new(aloud: bool) -> Self {
        Self { hash: START, events: 0, aloud }
    }

    /// Adds an event: when, what kind, and its numbers. `text` is only made where the trace is printed.
    pub(crate) fn add(&mut self, at: Tick, kind: &'static str, numbers: &[u64], text: impl FnOnce() -> String) {
        self.events += 1;
        self.hash = mix(mix(self.hash, at.0), hash_bytes(kind.as_bytes()));
        for number in numbers {
            self.hash = mix(self.hash, *number);
        }
        if self.aloud {
            eprintln!("{:>13.6} {kind:<9} {}", at.0 as f64 / 1e9, text());
        }
    }

    /// Says something that is no event, where the trace is printed.
    pub(crate) fn remark(&self, at: Tick, text: impl FnOnce() -> String) {
        if self.aloud {
            eprintln!("{:>13.6}           {}", at.0 as f64 / 1e9, text());
        }
    }

    /// The hash of all events so far.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// How many there were.
    pub(crate) fn events(&self) -> u64 {
        self.events
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash_of(events: &[(u64, &'static str, &[u64])]) -> u64 {
        let mut trace = Trace::new(false);
        events.iter().for_each(|(at, kind, numbers)| trace.add(Tick(*at), kind, numbers, String::new));
        trace.hash()
    }

    #[test]
    fn every_part_of_an_event_counts() {
        let base = hash_of(&[(1, "frame", &[2, 3])]);
        assert_eq!(base, hash_of(&[(1, "frame", &[2, 3])]));
        for other in [&[(2, "frame", &[2, 3][..])][..], &[(1, "timer", &[2, 3])], &[(1, "frame", &[3, 2])], &[]] {
            assert_ne!(base, hash_of(other));
        }
        assert_ne!(hash_bytes(b"abcdefgh"), hash_bytes(b"abcdefgh\0"));
        assert_ne!(hash_bytes(b"abc"), hash_bytes(b"abd"));
    }
}
