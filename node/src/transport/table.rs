//! Which connections and streams there are: pure bookkeeping, so that the rule of which connection to a peer is used stands in one place.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use dunlin_protocol::{BootNumber, NodeId, Status};
use tokio::sync::Notify;

use super::client::ClientStream;
use super::peer::{Dialer, PeerLink};

/// A peer that we want, or that has connected to us.
#[derive(Default)]
pub(super) struct PeerSlot {
    /// The last one is used for requests. Two at most: one dialled by each side.
    pub(super) links: Vec<Rc<PeerLink>>,
    pub(super) dialer: Option<Dialer>,
    /// Wakes the dialer when `links` change.
    pub(super) changed: Rc<Notify>,
}

/// What changed for whoever sends to a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    Connected(BootNumber),
    Lost,
}

impl PeerSlot {
    /// Takes in a new connection and closes those that it replaces:
    ///
    /// - those of an earlier life of the peer, which are dead even if nobody noticed yet;
    /// - one dialled by the same side: nobody dials who has a connection, so that side has lost the other one.
    ///
    /// When both sides dial at once, both connections stay: closing one would need agreement, and lose what is under way on it.
    pub(super) fn add(&mut self, link: Rc<PeerLink>) -> Vec<Change> {
        if self.links.iter().any(|old| old.boot > link.boot) {
            link.close(Status::IdentityMismatch, "a later life of this node is connected");
            return Vec::new();
        }
        let used = self.links.last().cloned();
        self.links.retain(|old| {
            let stays = old.boot == link.boot && old.dialled != link.dialled;
            if !stays {
                old.close(Status::Ok, "replaced by a newer connection");
            }
            stays
        });
        let mut changes = Vec::new();
        let used_gone = used.as_ref().is_some_and(|used| used.is_closed());
        if used_gone {
            changes.push(Change::Lost);
        }
        if used_gone || used.is_none() {
            changes.push(Change::Connected(link.boot));
        }
        self.links.push(link);
        self.changed.notify_one();
        changes
    }

    /// Forgets a connection that is gone.
    pub(super) fn remove(&mut self, link: &Rc<PeerLink>) -> Vec<Change> {
        let Some(at) = self.links.iter().position(|l| Rc::ptr_eq(l, link)) else { return Vec::new() };
        let was_used = at + 1 == self.links.len();
        self.links.remove(at);
        self.changed.notify_one();
        match (was_used, self.links.last()) {
            (false, _) => Vec::new(),
            (true, None) => vec![Change::Lost],
            (true, Some(other)) => vec![Change::Lost, Change::Connected(other.boot)],
        }
    }
}

/// What a [`ReplyTo`](crate::ReplyTo)'s stream number means.
#[derive(Clone)]
pub(super) enum Stream {
    Peer(Rc<PeerLink>),
    Client(Rc<ClientStream>),
}

/// All peers, and all streams by number.
#[derive(Default)]
pub(super) struct Table {
    pub(super) peers: BTreeMap<NodeId, PeerSlot>,
    pub(super) streams: BTreeMap<u64, Stream>,
    next_stream: Cell<u64>,
}

impl Table {
    /// A number that was never given before.
    pub(super) fn draw_number(&self) -> u64 {
        let number = self.next_stream.get();
        self.next_stream.set(number + 1);
        number
    }
}
