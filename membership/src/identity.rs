//! `Identity`: a node as SWIM sees it, one life after the other.

use dunlin_protocol::{BootNumber, NodeId};

/// A node and its generation. A node that was declared down comes back only with a higher generation: a restart brings one, and so does
/// learning, while alive, that others took it for dead. So a higher generation does not mean a restart; boot numbers travel elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    pub(crate) generation: u64,
}

impl Identity {
    /// How many generations a boot number has: a node is taken for dead less often than that between two starts.
    const GENERATIONS_PER_BOOT: u64 = 1 << 24;

    /// The first identity of a node after a start.
    pub(crate) fn at_boot(node: NodeId, boot: BootNumber) -> Self {
        Self { node, generation: boot.0.saturating_mul(Self::GENERATIONS_PER_BOOT) }
    }

    /// A node of which nothing is known: enough to call it.
    pub(crate) fn unknown(node: NodeId) -> Self {
        Self { node, generation: 0 }
    }
}

impl foca::Identity for Identity {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        Some(Self { generation: self.generation.checked_add(1)?, ..*self })
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.generation > adversary.generation
    }
}
