//! `Level`: how much agreement one request asks for.

use std::fmt;
use std::num::NonZeroU8;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The consistency of one request. Numbers at or above the majority follow the quorum rules.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Level {
    /// That many replicas: last writer wins, no promise to later readers below the majority.
    Count(NonZeroU8),
    /// A majority of all replicas; reads are repaired before the reply.
    Quorum,
    /// Every replica.
    All,
    /// Linearizable: a Paxos round for writes, a settled majority for reads.
    Serial,
}

/// Text that names no level.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParseLevelError {
    /// A level of the design that this version does not have yet.
    #[error("level `{0}` is not available yet: use one, two, three, a number, quorum, all or serial")]
    NotYet(String),
    /// No level at all.
    #[error("`{0}` is no level: use one, two, three, a number from 1 to 32, quorum, all or serial")]
    Unknown(String),
}

impl Level {
    /// One replica.
    pub const ONE: Self = Self::Count(NonZeroU8::MIN);

    /// Whether the level promises that later quorum reads see the write, with `replicas` in all.
    pub fn is_quorum(self, replicas: usize) -> bool {
        match self {
            Self::Count(n) => usize::from(n.get()) > replicas / 2,
            Self::Quorum | Self::All | Self::Serial => true,
        }
    }

    /// How many of `replicas` must answer.
    pub fn need(self, replicas: usize) -> usize {
        match self {
            Self::Count(n) => usize::from(n.get()),
            Self::Quorum | Self::Serial => replicas / 2 + 1,
            Self::All => replicas,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(n) => match n.get() {
                1 => f.write_str("one"),
                2 => f.write_str("two"),
                3 => f.write_str("three"),
                n => n.fmt(f),
            },
            Self::Quorum => f.write_str("quorum"),
            Self::All => f.write_str("all"),
            Self::Serial => f.write_str("serial"),
        }
    }
}

impl FromStr for Level {
    type Err = ParseLevelError;

    fn from_str(text: &str) -> Result<Self, ParseLevelError> {
        let count = |n: u8| NonZeroU8::new(n).map(Self::Count);
        let level = match text {
            "one" => count(1),
            "two" => count(2),
            "three" => count(3),
            "quorum" => Some(Self::Quorum),
            "all" => Some(Self::All),
            "serial" => Some(Self::Serial),
            "any" | "session" | "local-one" | "local-quorum" | "each-quorum" => {
                return Err(ParseLevelError::NotYet(text.to_owned()));
            }
            number => number.parse().ok().filter(|n| *n <= 32).and_then(count),
        };
        level.ok_or_else(|| ParseLevelError::Unknown(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_needs_are_counted() {
        for (text, need_of_3, need_of_5, quorum_of_3) in [
            ("one", 1, 1, false),
            ("two", 2, 2, true),
            ("three", 3, 3, true),
            ("4", 4, 4, true),
            ("quorum", 2, 3, true),
            ("all", 3, 5, true),
            ("serial", 2, 3, true),
        ] {
            let level: Level = text.parse().expect(text);
            assert_eq!(level.to_string(), text);
            assert_eq!(
                (level.need(3), level.need(5), level.is_quorum(3)),
                (need_of_3, need_of_5, quorum_of_3),
                "{text}"
            );
        }
        for text in ["", "0", "33", "Quorum", "-1"] {
            assert_eq!(text.parse::<Level>(), Err(ParseLevelError::Unknown(text.to_owned())));
        }
        assert!(matches!("any".parse::<Level>(), Err(ParseLevelError::NotYet(_))));
    }
}
