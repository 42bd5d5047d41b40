//! The first message each way on a connection.

use serde::{Deserialize, Serialize};

use crate::id::{BootNumber, ClusterId, Epoch, NodeId};
use crate::time::Millis;

/// A version of the protocol. Within a major version (the ALPN), minor versions only add.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u16);

impl Version {
    /// The oldest that this program speaks.
    pub const OLDEST: Self = Self(1);
    /// The newest that this program speaks.
    pub const NEWEST: Self = Self(1);

    /// The newest version in both ranges.
    pub fn negotiate(theirs: (Self, Self)) -> Option<Self> {
        let newest = Self::NEWEST.min(theirs.1);
        (newest >= Self::OLDEST.max(theirs.0)).then_some(newest)
    }
}

/// From whoever connects, on each stream's start.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// The oldest and newest version that it speaks.
    pub versions: (Version, Version),
    /// The cluster it belongs to or wants; none: a client that does not know yet.
    pub cluster: Option<ClusterId>,
    /// A node's id; none: a client.
    pub node: Option<NodeId>,
    /// A node's boot number; 0 for a client.
    pub boot: BootNumber,
    /// Program and version, for logs.
    pub agent: String,
}

impl Hello {
    /// A hello that offers all versions of this program.
    pub fn new(cluster: Option<ClusterId>, node: Option<(NodeId, BootNumber)>) -> Self {
        Self {
            versions: (Version::OLDEST, Version::NEWEST),
            cluster,
            node: node.map(|(id, _)| id),
            boot: node.map_or(BootNumber(0), |(_, boot)| boot),
            agent: concat!("dunlin/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// The node's answer to a [`Hello`]. A refusal closes the connection instead, with the status as its error code.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// The version spoken from here on.
    pub version: Version,
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// Its boot number.
    pub boot: BootNumber,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its physical clock.
    pub now: Millis,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_meet_or_do_not() {
        let v = Version;
        assert_eq!(Version::negotiate((v(1), v(1))), Some(v(1)));
        assert_eq!(Version::negotiate((v(1), v(9))), Some(Version::NEWEST));
        assert_eq!(Version::negotiate((v(0), v(0))), None);
        assert_eq!(Version::negotiate((v(7), v(9))), None);
    }
}
