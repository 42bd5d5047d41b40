//! The numbers by which nodes, epochs, keyspaces and partitions are known.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A member of a cluster, for as long as its data directory lives. Never reused. 0 is no node.
    NodeId(u64)
);
number!(
    /// The number of a topology. 0 is none: a client that has not learnt a topology yet sends 0.
    Epoch(u64)
);
number!(
    /// A keyspace, for ever: ids are never reused.
    KeyspaceId(u32)
);
number!(
    /// One of the equal slices of the hash space: the top bits of a token.
    PartitionId(u16)
);
number!(
    /// How often a node has started: a higher one means a restart. Persisted ahead of use.
    BootNumber(u64)
);

impl KeyspaceId {
    /// Topology and other state of the cluster itself.
    pub const SYSTEM: Self = Self(0);
    /// The keyspace named `default`, which exists from the first epoch.
    pub const DEFAULT: Self = Self(1);
}

macro_rules! wide_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

wide_id!(
    /// What makes a cluster itself: two clusters with different ids never exchange anything.
    ClusterId
);
wide_id!(
    /// A data directory, drawn at random when it is made. A node that lost its directory, and with it what it promised, comes with another one
    /// and is not the member it was (PROTOCOL.md 2.4). 0: not known.
    DataId
);

impl DataId {
    /// None.
    pub const UNKNOWN: Self = Self(0);
}
