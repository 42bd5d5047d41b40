//! `Plan`: what a load consists of.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use dunlin_protocol::Level;

/// The operations of a load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workload {
    /// Stores values.
    Put,
    /// Reads values that were stored before.
    Get,
    /// The same at level `serial`.
    Serial,
    /// Compares and sets by version: each client its own keys, or all of them the hot one.
    Cas,
    /// Adds one to numbers.
    Increment,
    /// Half reads, half stores.
    Mixed,
}

impl Workload {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Put, Self::Get, Self::Serial, Self::Cas, Self::Increment, Self::Mixed];

    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Serial => "serial",
            Self::Cas => "cas",
            Self::Increment => "incr",
            Self::Mixed => "mixed",
        }
    }

    /// Whether its keys are stored before it is measured.
    pub(crate) fn needs_keys(self) -> bool {
        matches!(self, Self::Get | Self::Serial | Self::Cas | Self::Mixed)
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Workload {
    type Err = InvalidPlan;

    fn from_str(text: &str) -> Result<Self, InvalidPlan> {
        Self::ALL.into_iter().find(|w| w.name() == text).ok_or_else(|| InvalidPlan::Workload(text.to_owned()))
    }
}

/// What a load consists of.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// The operations.
    pub workload: Workload,
    /// How many requests are under way at a time, at most. From 1 to [`Plan::MAX_CLIENTS`].
    pub clients: usize,
    /// Requests a second, in an open loop; none: each client sends the next one when the last one ended.
    pub rate: Option<NonZeroU32>,
    /// How long requests are sent.
    pub duration: Duration,
    /// Over how many keys they are spread evenly, beside the hot one.
    pub keys: u64,
    /// The size of each value.
    pub value_bytes: usize,
    /// The consistency of reads and writes; none: the keyspace's default. Compare-and-set and increments are serial by themselves.
    pub level: Option<Level>,
    /// The part of the operations that goes to one hot key: 0 to 1.
    pub hot_share: f64,
    /// Which keys and values come in which order.
    pub seed: u64,
}

/// A plan that makes no sense.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum InvalidPlan {
    /// No such workload.
    #[error("`{0}` is no workload: use put, get, serial, cas, incr or mixed")]
    Workload(String),
    /// Too few or too many.
    #[error("1 to {max} clients are possible, not {0}", max = Plan::MAX_CLIENTS)]
    Clients(usize),
    /// No keys.
    #[error("the number of keys lies between 1 and 10^16, not at {0}")]
    Keys(u64),
    /// No share.
    #[error("the hot key's share lies between 0 and 1, not at {0}")]
    HotShare(f64),
    /// A client keeps the versions of its own keys only.
    #[error("with cas, either all operations go to the hot key or none")]
    HotCas,
    /// Versions of own keys are kept in memory.
    #[error("with cas, at most {max} keys are possible, not {0}", max = Plan::MAX_CAS_KEYS)]
    CasKeys(u64),
    /// Values that fit no request.
    #[error("values have at most {max} bytes, not {0}", max = crate::error::MAX_VALUE)]
    ValueBytes(usize),
    /// A level on what is always serial.
    #[error("{0} is serial: it takes no other level")]
    Level(Workload),
    /// No time.
    #[error("the duration must be above 0 and at most a day")]
    Duration,
}

impl Plan {
    /// The most clients.
    pub const MAX_CLIENTS: usize = 65_536;
    /// The most keys of compare-and-set, whose versions are kept.
    pub const MAX_CAS_KEYS: u64 = 100_000_000;

    /// The defaults: 64 clients in a closed loop for 10 seconds, values of 100 bytes, 100,000 keys (10,000 where they are serial).
    pub fn new(workload: Workload) -> Self {
        let serial_writes = matches!(workload, Workload::Cas | Workload::Increment);
        Self {
            workload,
            clients: 64,
            rate: None,
            duration: Duration::from_secs(10),
            keys: if serial_writes { 10_000 } else { 100_000 },
            value_bytes: 100,
            level: None,
            hot_share: 0.0,
            seed: 1,
        }
    }

    /// Whether it makes sense.
    ///
    /// # Errors
    /// Where it does not.
    pub fn check(&self) -> Result<(), InvalidPlan> {
        if !(1..=Self::MAX_CLIENTS).contains(&self.clients) {
            return Err(InvalidPlan::Clients(self.clients));
        }
        if !(1..=10_000_000_000_000_000).contains(&self.keys) {
            return Err(InvalidPlan::Keys(self.keys));
        }
        if self.value_bytes > crate::error::MAX_VALUE {
            return Err(InvalidPlan::ValueBytes(self.value_bytes));
        }
        if !(0.0..=1.0).contains(&self.hot_share) {
            return Err(InvalidPlan::HotShare(self.hot_share));
        }
        if self.duration.is_zero() || self.duration > Duration::from_secs(86_400) {
            return Err(InvalidPlan::Duration);
        }
        if self.workload == Workload::Cas {
            if self.hot_share != 0.0 && self.hot_share != 1.0 {
                return Err(InvalidPlan::HotCas);
            }
            if self.keys > Self::MAX_CAS_KEYS {
                return Err(InvalidPlan::CasKeys(self.keys));
            }
        }
        let serial = matches!(self.workload, Workload::Cas | Workload::Increment | Workload::Serial);
        match self.level {
            Some(level) if serial && level != Level::Serial => Err(InvalidPlan::Level(self.workload)),
            _ => Ok(()),
        }
    }

    /// Whether all operations go to the hot key.
    pub(crate) fn is_hot(&self) -> bool {
        self.hot_share == 1.0
    }

    /// How many keys are stored before the measurement.
    pub(crate) fn keys_to_prepare(&self) -> u64 {
        match self.workload {
            workload if !workload.needs_keys() => 0,
            _ if self.is_hot() => 1,
            Workload::Cas => self.keys_of_a_client() * self.clients as u64,
            _ => self.keys + u64::from(self.hot_share > 0.0),
        }
    }

    /// With compare-and-set, how many keys belong to each client.
    pub(crate) fn keys_of_a_client(&self) -> u64 {
        if self.is_hot() { 1 } else { (self.keys / self.clients as u64).max(1) }
    }
}
