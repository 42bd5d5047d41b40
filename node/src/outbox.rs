//! The seam between a node's pure core and whatever carries its messages: QUIC in production, a seeded event queue in the simulator.

use dunlin_protocol::message::{ClientReply, ClientRequest, PeerReply, PeerRequest};
use dunlin_protocol::{BootNumber, Millis, NodeId};

use crate::cold_read::ReadDone;

/// Where an answer goes: a stream of a connection, and the request that it answers. Meaningful only to the carrier.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReplyTo {
    /// The carrier's number of the stream that the request came on. Never reused while the process lives.
    pub stream: u64,
    /// The asker's number of the request.
    pub request_id: u64,
}

/// What happens to a node.
#[derive(Debug)]
pub enum Input {
    /// A peer asks.
    PeerRequest {
        /// Who, proven by its certificate.
        from: NodeId,
        /// Where the answer goes.
        reply_to: ReplyTo,
        /// What.
        request: PeerRequest,
    },
    /// A peer answers.
    PeerReply {
        /// Who.
        from: NodeId,
        /// What was given to [`Outbox::request`].
        request_id: u64,
        /// The answer.
        reply: PeerReply,
    },
    /// A connection to this peer is there.
    PeerConnected {
        /// Who.
        node: NodeId,
        /// Which of its lives.
        boot: BootNumber,
    },
    /// The connection to this peer is gone, and with it every answer that was to come.
    PeerLost {
        /// Who.
        node: NodeId,
    },
    /// A client asks.
    ClientRequest {
        /// Where the answer goes.
        reply_to: ReplyTo,
        /// What.
        request: ClientRequest,
    },
    /// The topology that [`Node::take_topology_to_store`](crate::Node::take_topology_to_store) gave last is durable.
    TopologyStored,
    /// A datagram for the failure detector.
    Datagram {
        /// From whom, proven by its certificate.
        from: NodeId,
        /// Its bytes.
        bytes: bytes::Bytes,
    },
    /// The log is durable further than before.
    Durable,
    /// What [`Node::poll_read`](crate::Node::poll_read) gave was read.
    Read(ReadDone),
    /// The hybrid clock's reserve is durable up to here.
    Reserved {
        /// What [`Node::wants_reserve`](crate::Node::wants_reserve) asked for.
        until: Millis,
    },
    /// The time that [`Node::next_timeout`](crate::Node::next_timeout) named has come.
    Timeout,
}

/// Carries messages away. Never blocks: queues, or says no.
pub trait Outbox {
    /// Queues a request to a peer. False: there is no connection or its queue is full, and nothing was sent; otherwise a
    /// [`Input::PeerReply`] with this id or a [`Input::PeerLost`] follows, unless the network swallows it.
    fn request(&mut self, to: NodeId, request_id: u64, request: &PeerRequest) -> bool;
    /// Queues an answer to a peer; dropped when the stream is gone.
    fn reply_peer(&mut self, to: ReplyTo, reply: &PeerReply);
    /// Queues an answer to a client; dropped when the stream is gone.
    fn reply_client(&mut self, to: ReplyTo, reply: &ClientReply);
    /// Sends a datagram, or drops it.
    fn datagram(&mut self, to: NodeId, bytes: &[u8]);
}
