//! `Family`: the keys of a workload, apart from those of the others.

use bytes::Bytes;
use dunlin_protocol::Level;

use super::plan::{Plan, Workload};

/// Which keys a workload uses. A plain write that meets a key of the serial path goes on through that path, and a number is no value: what
/// one workload leaves behind must not change what another one measures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Family {
    Plain,
    Serial,
    Cas,
    Number,
}

impl Family {
    pub(crate) fn of(plan: &Plan) -> Self {
        match plan.workload {
            Workload::Cas => Self::Cas,
            Workload::Increment => Self::Number,
            Workload::Put | Workload::Mixed if plan.level == Some(Level::Serial) => Self::Serial,
            Workload::Put | Workload::Mixed | Workload::Get | Workload::Serial => Self::Plain,
        }
    }

    /// The key of this number: 24 bytes, `bench:v:` and 16 decimal digits.
    pub(crate) fn key(self, mut number: u64) -> Bytes {
        let mut text = *match self {
            Self::Plain => b"bench:v:0000000000000000",
            Self::Serial => b"bench:s:0000000000000000",
            Self::Cas => b"bench:c:0000000000000000",
            Self::Number => b"bench:n:0000000000000000",
        };
        for digit in text[8..].iter_mut().rev() {
            *digit = b'0' + u8::try_from(number % 10).unwrap_or(0);
            number /= 10;
        }
        Bytes::copy_from_slice(&text)
    }
}
