//! A peer's connection: made by either side, with a stream for small frames and one for bulk.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use dunlin_protocol::frame::FrameError;
use dunlin_protocol::message::{Hello, Opcode, PeerReply, PeerReplyBody, PeerRequest, Welcome};
use dunlin_protocol::{BootNumber, ClusterId, NodeId, Stamp, Status};
use quinn::{Connection, ConnectionError, RecvStream, SendStream, WriteError};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, sleep_until, timeout};

use super::carrier::{HANDSHAKE_TIME, Shared, refusal};
use super::frames::{FrameReader, ReadError, SendQueue, close};
use super::tls;
use crate::{Input, ReplyTo};

/// Frames longer than this go on the second stream.
const SMALL_FRAME: usize = 64 << 10;
/// While so many bytes wait, further requests are turned away.
const MAX_REQUEST_BYTES: usize = 16 << 20;
/// A peer that lets more bytes than this wait has stopped reading: its connection is closed. Replies are never turned away below this, and frames always
/// read: two nodes that each waited for the other to read would wait for ever.
const MAX_WAITING_BYTES: usize = 64 << 20;

/// One side's end of a stream.
type Lane = (SendStream, FrameReader);

/// A connection on which both sides know who the other one is.
pub(super) struct Connected {
    connection: Connection,
    node: NodeId,
    boot: BootNumber,
    dialled: bool,
    small: Lane,
    bulk: Lane,
}

/// A connection to a peer, as requests and replies see it.
pub(super) struct PeerLink {
    pub(super) number: u64,
    pub(super) node: NodeId,
    pub(super) boot: BootNumber,
    /// By us.
    pub(super) dialled: bool,
    pub(super) connection: Connection,
    small: Rc<SendQueue>,
    bulk: Rc<SendQueue>,
    /// Nothing that still arrives on it is handed on.
    closed: Cell<bool>,
}

impl Connected {
    pub(super) fn into_link(self, number: u64) -> (PeerLink, [Lane; 2]) {
        let link = PeerLink {
            number,
            node: self.node,
            boot: self.boot,
            dialled: self.dialled,
            connection: self.connection,
            small: Rc::default(),
            bulk: Rc::default(),
            closed: Cell::new(false),
        };
        (link, [self.small, self.bulk])
    }
}

impl PeerLink {
    pub(super) fn close(&self, status: Status, reason: &str) {
        self.closed.set(true);
        close(&self.connection, status, reason);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Queues a request; false: it was not.
    pub(super) fn request(&self, request_id: u64, request: &PeerRequest) -> bool {
        self.waiting() < MAX_REQUEST_BYTES && self.send(|out| request.write(out, request_id)).is_ok()
    }

    /// Queues a reply.
    pub(super) fn reply(&self, request_id: u64, reply: &PeerReply) {
        let sent = self.send(|out| match reply.write(out, request_id) {
            Err(FrameError::TooLarge { len }) => {
                let body = PeerReplyBody::Refused {
                    status: Status::ValueTooLarge,
                    message: format!("the reply would take {len} bytes"),
                    seen: Stamp::ZERO,
                };
                PeerReply { body, ..*reply }.write(out, request_id)
            }
            written => written,
        });
        sent.expect("a refusal fits a frame");
        if self.waiting() > MAX_WAITING_BYTES {
            close(&self.connection, Status::Overloaded, "the peer does not read");
        }
    }

    fn waiting(&self) -> usize {
        self.small.len() + self.bulk.len()
    }

    fn send(&self, write: impl FnOnce(&mut BytesMut) -> Result<(), FrameError>) -> Result<(), FrameError> {
        let len = self.small.push(write)?;
        if len > SMALL_FRAME {
            self.bulk.append(self.small.split_last(len));
        }
        Ok(())
    }
}

/// Why a connection to or from a peer did not come about.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error("cannot resolve its address: {0}")]
    Resolve(#[source] io::Error),
    #[error("its address resolves to nothing")]
    NoAddress,
    #[error(transparent)]
    Dial(#[from] quinn::ConnectError),
    #[error("refused by the peer: {} ({})", .0.code(), .1)]
    Refused(Status, String),
    #[error(transparent)]
    Lost(ConnectionError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("no answer in time")]
    Timeout,
    #[error("{1}")]
    Refuse(Status, String),
    #[error("it is of cluster {theirs}, not {ours}")]
    Cluster { theirs: ClusterId, ours: ClusterId },
}

impl From<ConnectionError> for HandshakeError {
    fn from(error: ConnectionError) -> Self {
        match refusal(&error) {
            Some((status, reason)) => Self::Refused(status, reason),
            None => Self::Lost(error),
        }
    }
}

impl HandshakeError {
    /// The peer gave its attempt up because there is another connection, or because it stops: nobody has to act.
    pub(super) fn is_withdrawn(&self) -> bool {
        let told = match self {
            Self::Refused(status, _) => Some(*status),
            Self::Read(ReadError::Lost(quinn::ReadError::ConnectionLost(error)))
            | Self::Write(WriteError::ConnectionLost(error)) => refusal(error).map(|(status, _)| status),
            _ => None,
        };
        matches!(told, Some(Status::Ok | Status::ShuttingDown))
    }

    /// Closes the connection with the reason, unless it is gone already.
    pub(super) fn close(&self, connection: &Connection) {
        match self {
            Self::Refuse(status, sentence) => close(connection, *status, sentence),
            Self::Cluster { .. } => close(connection, Status::ClusterMismatch, &self.to_string()),
            Self::Read(error) => error.close(connection),
            other => close(connection, Status::Connect, &other.to_string()),
        }
    }
}

/// Hears who dialled and answers.
pub(super) async fn accept(shared: &Shared, connection: &Connection) -> Result<Connected, HandshakeError> {
    if connection.peer_identity().is_none() {
        return Err(HandshakeError::Refuse(Status::Unauthenticated, "a node shows a certificate".to_owned()));
    }
    let (small, (node, boot)) = accept_lane(shared, connection).await?;
    let (bulk, again) = accept_lane(shared, connection).await?;
    if again != (node, boot) {
        return Err(HandshakeError::Refuse(Status::BadFrame, "the two streams' hellos differ".to_owned()));
    }
    Ok(Connected { connection: connection.clone(), node, boot, dialled: false, small, bulk })
}

async fn accept_lane(shared: &Shared, connection: &Connection) -> Result<(Lane, (NodeId, BootNumber)), HandshakeError> {
    let (mut send, mut recv) = accept_stream(connection).await?;
    let Some(frame) = recv.next().await? else { return Err(ReadError::Truncated.into()) };
    let hello = Hello::read(&frame).map_err(ReadError::from)?;
    let Some(node) = hello.node.filter(|node| tls::proves(connection, *node)) else {
        let sentence = "the certificate does not name the node that the hello names";
        return Err(HandshakeError::Refuse(Status::Unauthenticated, sentence.to_owned()));
    };
    if node == shared.local.node {
        let sentence = format!("node {node} is this node itself: two nodes have one id");
        return Err(HandshakeError::Refuse(Status::IdentityMismatch, sentence));
    }
    let welcome = shared.welcome(&hello).map_err(|(status, what)| HandshakeError::Refuse(status, what))?;
    let mut out = BytesMut::new();
    welcome.write(&mut out, frame.request_id)?;
    send.write_all(&out).await?;
    Ok(((send, recv), (node, hello.boot)))
}

async fn accept_stream(connection: &Connection) -> Result<Lane, HandshakeError> {
    let (send, recv) = connection.accept_bi().await?;
    Ok((send, FrameReader::new(recv)))
}

/// Connects to a peer.
async fn connect(shared: &Shared, node: NodeId, address: &str, time: Duration) -> Result<Connection, HandshakeError> {
    let address = resolve(address).await?;
    let connecting = shared.endpoint.connect_with(shared.dial_config.clone(), address, &tls::node_name(node))?;
    Ok(timeout(time, connecting).await.map_err(|_| HandshakeError::Timeout)??)
}

/// Tells a peer who we are and hears who it is.
async fn introduce(shared: &Shared, node: NodeId, connection: &Connection) -> Result<Connected, HandshakeError> {
    let greeted = timeout(HANDSHAKE_TIME, greet(shared, node, connection)).await;
    greeted.unwrap_or(Err(HandshakeError::Timeout)).map_err(|error| {
        // Where the peer has closed it with a reason, that reason is the one to tell.
        if let Some((status, reason)) = connection.close_reason().as_ref().and_then(refusal) {
            return HandshakeError::Refused(status, reason);
        }
        error.close(connection);
        error
    })
}

async fn greet(shared: &Shared, node: NodeId, connection: &Connection) -> Result<Connected, HandshakeError> {
    let small = open_lane(shared, connection).await?;
    let bulk = open_lane(shared, connection).await?;
    small.0.set_priority(1).map_err(|_| ReadError::Truncated)?;
    let (small, boot) = hear_welcome(shared, node, small).await?;
    let (bulk, _) = hear_welcome(shared, node, bulk).await?;
    Ok(Connected { connection: connection.clone(), node, boot, dialled: true, small, bulk })
}

async fn open_lane(shared: &Shared, connection: &Connection) -> Result<(SendStream, RecvStream), HandshakeError> {
    let (mut send, recv) = connection.open_bi().await?;
    let mut out = BytesMut::new();
    shared.hello().write(&mut out, 0)?;
    send.write_all(&out).await?;
    Ok((send, recv))
}

async fn hear_welcome(
    shared: &Shared,
    node: NodeId,
    (send, recv): (SendStream, RecvStream),
) -> Result<(Lane, BootNumber), HandshakeError> {
    let mut frames = FrameReader::new(recv);
    let Some(frame) = frames.next().await? else { return Err(ReadError::Truncated.into()) };
    let welcome = Welcome::read(&frame).map_err(ReadError::from)?;
    if welcome.cluster != shared.local.cluster {
        return Err(HandshakeError::Cluster { theirs: welcome.cluster, ours: shared.local.cluster });
    }
    if welcome.node != node {
        let sentence = format!("node {} answers where {node} is expected", welcome.node);
        return Err(HandshakeError::Refuse(Status::IdentityMismatch, sentence));
    }
    Ok(((send, frames), welcome.boot))
}

async fn resolve(address: &str) -> Result<SocketAddr, HandshakeError> {
    if let Ok(address) = address.parse() {
        return Ok(address);
    }
    let mut found = tokio::net::lookup_host(address).await.map_err(HandshakeError::Resolve)?;
    found.next().ok_or(HandshakeError::NoAddress)
}

/// Writes and reads the connection's streams until it is gone.
pub(super) async fn serve(shared: Rc<Shared>, link: Rc<PeerLink>, lanes: [Lane; 2]) {
    for ((send, frames), queue) in lanes.into_iter().zip([&link.small, &link.bulk]) {
        // A write that fails has lost the connection, which is noticed below.
        spawn_local(queue.clone().write_to(send));
        let (shared, link) = (shared.clone(), link.clone());
        spawn_local(async move {
            match read_frames(&shared, &link, frames).await {
                Err(error @ (ReadError::Frame(_) | ReadError::Decode(_) | ReadError::Truncated)) => {
                    tracing::warn!(peer = %link.node, %error, "closing the connection");
                    error.close(&link.connection);
                }
                Ok(()) | Err(ReadError::Lost(_)) => close(&link.connection, Status::Ok, "a stream ended"),
            }
        });
    }
    let reason = loop {
        match link.connection.read_datagram().await {
            Ok(bytes) if !link.is_closed() => shared.deliver(Input::Datagram { from: link.node, bytes }),
            Ok(_) => {}
            Err(reason) => break reason,
        }
    };
    tracing::debug!(peer = %link.node, boot = %link.boot, dialled = link.dialled, %reason, "connection ended");
    link.closed.set(true);
    // Ends the writers that wait for something to write.
    link.small.finish();
    link.bulk.finish();
    shared.forget(&link);
}

async fn read_frames(shared: &Shared, link: &PeerLink, mut frames: FrameReader) -> Result<(), ReadError> {
    while let Some(frame) = frames.next().await? {
        let (from, request_id) = (link.node, frame.request_id);
        let input = if frame.opcode == Opcode::PeerReply {
            Input::PeerReply { from, request_id, reply: PeerReply::read(&frame)? }
        } else {
            let reply_to = ReplyTo { stream: link.number, request_id };
            Input::PeerRequest { from, reply_to, request: PeerRequest::read(&frame)? }
        };
        if link.is_closed() {
            return Ok(());
        }
        shared.deliver(input);
        tokio::task::coop::consume_budget().await;
    }
    Ok(())
}

/// Keeps dialling a peer while there is no connection to it; stops when dropped.
pub(super) struct Dialer {
    pub(super) address: String,
    task: AbortHandle,
}

impl Drop for Dialer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Dialer {
    /// `changed` tells of every change of the peer's connections.
    pub(super) fn spawn(shared: Rc<Shared>, node: NodeId, address: String, changed: Rc<Notify>) -> Self {
        let task = spawn_local(keep_dialling(shared, node, address.clone(), changed)).abort_handle();
        Self { address, task }
    }
}

async fn keep_dialling(shared: Rc<Shared>, node: NodeId, address: String, changed: Rc<Notify>) {
    let mut failures = 0;
    let mut told = String::new();
    loop {
        let connected = shared.table.borrow().peers.get(&node).is_some_and(|slot| !slot.links.is_empty());
        if connected {
            failures = 0;
            told.clear();
            changed.notified().await;
            continue;
        }
        // Fresh attempts rather than patient ones: the packets of an attempt that began before the network healed come ever more rarely.
        let attempt = shared.settings.connect_attempt * if failures < 4 { 1 } else { 2 };
        let next = Instant::now() + attempt;
        let connected = tokio::select! {
            biased;
            // The peer may have dialled us: then this attempt is not needed. Once connected it goes on in any case: the peer may have
            // given up its own attempt for it.
            () = changed.notified() => continue,
            connected = connect(&shared, node, &address, attempt) => connected,
        };
        let introduced = match connected {
            Ok(connection) => introduce(&shared, node, &connection).await,
            Err(error) => Err(error),
        };
        let error = match introduced {
            Ok(connected) => {
                shared.adopt(connected);
                continue;
            }
            Err(error) => error.to_string(),
        };
        failures += 1;
        if error == told {
            tracing::debug!(peer = %node, address, error, "cannot connect");
        } else {
            tracing::warn!(peer = %node, address, error, "cannot connect; trying on");
            told = error;
        }
        tokio::select! {
            biased;
            () = changed.notified() => {}
            () = sleep_until(next) => {}
        }
    }
}
