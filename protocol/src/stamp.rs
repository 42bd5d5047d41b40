//! `Stamp`: hybrid logical time and origin, the order of everything that happens to a key.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::time::Millis;

/// A unique point in hybrid logical time (Kulkarni et al., 2014): 48 bits of milliseconds, 16 of counter, 64 of origin.
///
/// Totally ordered: first by time and counter, then by origin. The origin is the [`NodeId`](crate::NodeId) that drew the stamp, or a client
/// library's random id for operation ids. [`Stamp::ZERO`] is "none" and lies below every drawn stamp.
/// The text form is 26 characters of Crockford's base 32 and sorts like the stamp; it is the version (ETag) that users see.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Stamp(u128);

/// A Paxos ballot: a stamp, comparable with record stamps, drawn for one proposal.
pub type Ballot = Stamp;
/// An operation's id: the stamp drawn when the operation was first received.
pub type OpId = Stamp;

/// Text that is no stamp: not 26 characters of Crockford's base 32, or more than 128 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a version has 26 characters of 0-9 and A-Z without I, L, O, U, and begins with 0 to 7")]
pub struct ParseStampError;

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const TEXT_LEN: usize = 26;

impl Stamp {
    /// None: below every stamp that is ever drawn.
    pub const ZERO: Self = Self(0);
    /// Above every stamp that is ever drawn.
    pub const MAX: Self = Self(u128::MAX);

    /// A stamp of its parts. `wall` is cut to 48 bits.
    pub const fn new(wall: Millis, counter: u16, origin: u64) -> Self {
        Self(((wall.0 & Millis::MAX.0) as u128) << 80 | (counter as u128) << 64 | origin as u128)
    }

    /// The stamp of this hybrid time (milliseconds and counter in one number) and origin.
    pub const fn from_hlc(hlc: u64, origin: u64) -> Self {
        Self((hlc as u128) << 64 | origin as u128)
    }

    /// Milliseconds and counter in one number, which orders like hybrid time.
    pub const fn hlc(self) -> u64 {
        (self.0 >> 64) as u64
    }

    /// The milliseconds.
    pub const fn wall(self) -> Millis {
        Millis((self.0 >> 80) as u64)
    }

    /// The counter that tells apart what one origin drew in one millisecond.
    pub const fn counter(self) -> u16 {
        (self.0 >> 64) as u16
    }

    /// Who drew it.
    pub const fn origin(self) -> u64 {
        self.0 as u64
    }

    /// Whether this is [`Stamp::ZERO`].
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The 128 bits, which order like the stamp.
    pub const fn to_bits(self) -> u128 {
        self.0
    }

    /// The stamp of these bits.
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0u8; TEXT_LEN];
        for (i, c) in text.iter_mut().enumerate() {
            *c = ALPHABET[(self.0 >> (5 * (TEXT_LEN - 1 - i))) as usize & 31];
        }
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_zero() {
            return f.write_str("0");
        }
        write!(f, "{}.{}@{:x}", self.wall(), self.counter(), self.origin())
    }
}

impl FromStr for Stamp {
    type Err = ParseStampError;

    /// Accepts lower case too, and the letters that Crockford's base 32 reads as digits (O, I, L).
    fn from_str(text: &str) -> Result<Self, ParseStampError> {
        if text.len() != TEXT_LEN {
            return Err(ParseStampError);
        }
        let mut bits = 0u128;
        for (i, c) in text.bytes().enumerate() {
            let c = match c.to_ascii_uppercase() {
                b'O' => b'0',
                b'I' | b'L' => b'1',
                c => c,
            };
            let digit = ALPHABET.iter().position(|&a| a == c).ok_or(ParseStampError)? as u128;
            if i == 0 && digit > 7 {
                return Err(ParseStampError);
            }
            bits = bits << 5 | digit;
        }
        Ok(Self(bits))
    }
}

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.hlc(), self.origin()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Stamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (hlc, origin) = <(u64, u64)>::deserialize(deserializer)?;
        Ok(Self::from_hlc(hlc, origin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_and_parts_round_trip(bits in any::<u128>()) {
            let stamp = Stamp::from_bits(bits);
            prop_assert_eq!(stamp.to_string().parse::<Stamp>(), Ok(stamp));
            prop_assert_eq!(Stamp::new(stamp.wall(), stamp.counter(), stamp.origin()), stamp);
            prop_assert_eq!(Stamp::from_hlc(stamp.hlc(), stamp.origin()), stamp);
        }

        #[test]
        fn text_sorts_like_the_stamp(a in any::<u128>(), b in any::<u128>()) {
            let (a, b) = (Stamp::from_bits(a), Stamp::from_bits(b));
            prop_assert_eq!(a.to_string().cmp(&b.to_string()), a.cmp(&b));
        }

        #[test]
        fn any_text_is_refused_or_parsed(text in ".*") {
            let _ = text.parse::<Stamp>();
        }
    }

    #[test]
    fn what_is_no_stamp() {
        for text in ["", "0", "8ZZZZZZZZZZZZZZZZZZZZZZZZZ", "7ZZZZZZZZZZZZZZZZZZZZZZZZU", "7ZZZZZZZZZZZZZZZZZZZZZZZZZZ"]
        {
            assert_eq!(text.parse::<Stamp>(), Err(ParseStampError), "{text}");
        }
        assert_eq!("7zzzzzzzzzzzzzzzzzzzzzzzzz".parse(), Ok(Stamp::MAX));
        assert_eq!("oooooooooooooooooooooooool".parse(), Ok(Stamp::from_bits(1)));
    }
}
