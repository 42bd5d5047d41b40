//! [`Transport`]: the endpoint, whoever is connected to it, and the [`Outbox`] over them.

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::Duration;

use bytes::Bytes;
use dunlin_protocol::message::{ClientReply, Hello, PeerReply, PeerRequest, Version, Welcome};
use dunlin_protocol::{BootNumber, ClusterId, Epoch, Millis, NodeId, Status};
use quinn::crypto::rustls::HandshakeData;
use quinn::{ConnectionError, Endpoint, Incoming};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::endpoint::{self, Socket, TransportSettings};
use super::frames::close;
use super::peer::{Dialer, PeerLink};
use super::table::{Change, Stream, Table};
use super::tls::{ALPN_CLIENT, ALPN_PEER, NodeTls};
use super::{client, peer};
use crate::{Input, Outbox, ReplyTo};

/// Whoever connects must have said who it is within this time.
pub(super) const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// Connections beyond the clients': peers, and handshakes under way.
const SPARE_CONNECTIONS: usize = 256;

/// Who this node is, as it tells its peers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Local {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its id.
    pub node: NodeId,
    /// Which of its lives.
    pub boot: BootNumber,
}

/// Takes what arrives. Called on the transport's thread and never from within an [`Outbox`] call; may call the outbox.
pub trait Receiver {
    /// Something arrived.
    fn receive(&self, input: Input);
    /// The node's present epoch, for `Welcome`.
    fn epoch(&self) -> Epoch;
    /// The node's physical clock, for `Welcome`.
    fn wall(&self) -> Millis;
}

/// A node's connections to its peers and from its clients. Cheap to clone; all clones are the same.
///
/// [`open`](Self::open) binds, [`start`](Self::start) begins to accept, [`want_peers`](Self::want_peers) says whom to keep a connection to. As an [`Outbox`] it
/// queues. To end in order: [`drain`](Self::drain), wait for [`idle`](Self::idle) and [`finish_clients`](Self::finish_clients), then [`close`](Self::close).
#[derive(Clone)]
pub struct Transport {
    pub(super) shared: Rc<Shared>,
}

pub(super) struct Shared {
    pub(super) endpoint: Endpoint,
    pub(super) local: Local,
    pub(super) settings: TransportSettings,
    pub(super) dial_config: quinn::ClientConfig,
    pub(super) table: RefCell<Table>,
    pub(super) clients: Cell<usize>,
    requests: Cell<usize>,
    /// The last request of a client is answered, or its stream gone.
    quiet: Notify,
    receiver: OnceCell<Weak<dyn Receiver>>,
}

impl Transport {
    /// Takes the socket into use. Needs a tokio runtime; accepts nothing yet.
    pub fn open(socket: Socket, tls: &NodeTls, local: Local, settings: TransportSettings) -> io::Result<Self> {
        let endpoint = endpoint::open(socket, tls, local.boot, &settings)?;
        let dial_config = endpoint::dial_config(tls, &settings)?;
        let shared = Shared {
            endpoint,
            local,
            settings,
            dial_config,
            table: RefCell::default(),
            clients: Cell::new(0),
            requests: Cell::new(0),
            quiet: Notify::new(),
            receiver: OnceCell::new(),
        };
        Ok(Self { shared: Rc::new(shared) })
    }

    /// Accepts connections from now on, and hands what arrives to `receiver` for as long as it lives. Needs a `LocalSet`.
    ///
    /// # Panics
    /// When called twice.
    pub fn start(&self, receiver: &Rc<dyn Receiver>) {
        assert!(self.shared.receiver.set(Rc::downgrade(receiver)).is_ok(), "a transport starts once");
        let shared = self.shared.clone();
        spawn_local(async move {
            while let Some(incoming) = shared.endpoint.accept().await {
                if shared.endpoint.open_connections() >= shared.settings.max_clients + SPARE_CONNECTIONS {
                    incoming.refuse();
                } else {
                    spawn_local(shared.clone().accept(incoming));
                }
            }
        });
    }

    /// Where the node listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.shared.endpoint.local_addr()
    }

    /// Keeps a connection to each of these from now on, dialling `host:port` where there is none; closes those to all others that were wanted before.
    /// The node itself is passed over.
    pub fn want_peers(&self, wanted: &[(NodeId, String)]) {
        let mut dropped = Vec::new();
        let mut table = self.shared.table.borrow_mut();
        for (node, slot) in &mut table.peers {
            let unchanged = |d: &Dialer| wanted.iter().any(|(id, address)| id == node && *address == d.address);
            if slot.dialer.as_ref().is_some_and(|d| !unchanged(d)) {
                slot.dialer = None;
            }
            if !wanted.iter().any(|(id, _)| id == node) {
                dropped.extend(slot.links.iter().cloned());
            }
        }
        for (node, address) in wanted.iter().filter(|(node, _)| *node != self.shared.local.node) {
            let slot = table.peers.entry(*node).or_default();
            if slot.dialer.is_none() {
                slot.dialer = Some(Dialer::spawn(self.shared.clone(), *node, address.clone(), slot.changed.clone()));
            }
        }
        drop(table);
        for link in dropped {
            close(&link.connection, Status::Ok, "no longer a peer");
        }
    }

    /// The peers to whom there is a connection.
    pub fn connected_peers(&self) -> Vec<(NodeId, BootNumber)> {
        let table = self.shared.table.borrow();
        table.peers.iter().filter_map(|(node, slot)| Some((*node, slot.links.last()?.boot))).collect()
    }

    /// Takes no new connections any more; those that are there go on.
    pub fn drain(&self) {
        self.shared.endpoint.set_server_config(None);
    }

    /// Waits until every client's request that was handed on is answered.
    pub async fn idle(&self) {
        while self.shared.requests.get() > 0 {
            self.shared.quiet.notified().await;
        }
    }

    /// Ends every client's streams behind the replies that are queued, and waits until they have arrived or the client is gone.
    pub async fn finish_clients(&self) {
        let streams: Vec<_> = {
            let table = self.shared.table.borrow();
            table
                .streams
                .values()
                .filter_map(|s| if let Stream::Client(c) = s { Some(c.clone()) } else { None })
                .collect()
        };
        for stream in &streams {
            stream.queue.finish();
        }
        for stream in streams {
            stream.ended.notified().await;
        }
    }

    /// Closes all connections with this status and waits until the peers know, or should.
    pub async fn close(&self, status: Status, reason: &str) {
        for slot in self.shared.table.borrow_mut().peers.values_mut() {
            slot.dialer = None;
        }
        self.shared.endpoint.close(code(status), reason.as_bytes());
        self.shared.endpoint.wait_idle().await;
    }
}

impl Outbox for Transport {
    fn request(&mut self, to: NodeId, request_id: u64, request: &PeerRequest) -> bool {
        let table = self.shared.table.borrow();
        let Some(link) = table.peers.get(&to).and_then(|slot| slot.links.last()) else { return false };
        link.request(request_id, request)
    }

    fn reply_peer(&mut self, to: ReplyTo, reply: &PeerReply) {
        if let Some(Stream::Peer(link)) = self.shared.table.borrow().streams.get(&to.stream) {
            link.reply(to.request_id, reply);
        }
    }

    fn reply_client(&mut self, to: ReplyTo, reply: &ClientReply) {
        if let Some(Stream::Client(stream)) = self.shared.table.borrow().streams.get(&to.stream)
            && stream.reply(to.request_id, reply)
        {
            self.shared.answered(1);
        }
    }

    fn datagram(&mut self, to: NodeId, bytes: &[u8]) {
        let table = self.shared.table.borrow();
        let Some(link) = table.peers.get(&to).and_then(|slot| slot.links.last()) else { return };
        if let Err(error) = link.connection.send_datagram(Bytes::copy_from_slice(bytes)) {
            // The failure detector lives with lost datagrams; one that never fits is a fault of ours that should be found.
            tracing::debug!(peer = %to, len = bytes.len(), %error, "datagram dropped");
        }
    }
}

impl Shared {
    pub(super) fn receiver(&self) -> Option<Rc<dyn Receiver>> {
        self.receiver.get()?.upgrade()
    }

    pub(super) fn deliver(&self, input: Input) {
        if let Some(receiver) = self.receiver() {
            receiver.receive(input);
        }
    }

    /// A client's request is handed on.
    pub(super) fn asked(&self) {
        self.requests.set(self.requests.get() + 1);
    }

    /// So many of them are answered, or nobody waits for the answer any more.
    pub(super) fn answered(&self, count: usize) {
        self.requests.set(self.requests.get() - count);
        if self.requests.get() == 0 {
            self.quiet.notify_one();
        }
    }

    pub(super) fn hello(&self) -> Hello {
        Hello::new(Some(self.local.cluster), Some((self.local.node, self.local.boot)))
    }

    /// Answers a hello; a refusal comes as the status and sentence to close the connection with.
    pub(super) fn welcome(&self, hello: &Hello) -> Result<Welcome, (Status, String)> {
        let version = Version::negotiate(hello.versions).ok_or_else(|| {
            let (ours, theirs) = ((Version::OLDEST.0, Version::NEWEST.0), hello.versions);
            let what = format!("versions {} to {} asked, {} to {} spoken", theirs.0.0, theirs.1.0, ours.0, ours.1);
            (Status::VersionMismatch, what)
        })?;
        if let Some(theirs) = hello.cluster.filter(|theirs| *theirs != self.local.cluster) {
            let what = format!("this is cluster {}, not {theirs}", self.local.cluster);
            return Err((Status::ClusterMismatch, what));
        }
        let receiver = self.receiver().ok_or((Status::ShuttingDown, "the node is gone".to_owned()))?;
        let Local { cluster, node, boot } = self.local;
        Ok(Welcome { version, cluster, node, boot, epoch: receiver.epoch(), now: receiver.wall() })
    }

    /// Takes a peer's connection into use and serves it until it is gone.
    pub(super) fn adopt(self: &Rc<Self>, connected: peer::Connected) {
        let (link, lanes) = connected.into_link(self.table.borrow().draw_number());
        let link = Rc::new(link);
        let changes = {
            let mut table = self.table.borrow_mut();
            let changes = table.peers.entry(link.node).or_default().add(link.clone());
            if !link.is_closed() {
                table.streams.insert(link.number, Stream::Peer(link.clone()));
            }
            changes
        };
        self.announce(link.node, &changes);
        if !link.is_closed() {
            spawn_local(peer::serve(self.clone(), link, lanes));
        }
    }

    /// Forgets a peer's connection that is gone.
    pub(super) fn forget(&self, link: &Rc<PeerLink>) {
        let changes = {
            let mut table = self.table.borrow_mut();
            table.streams.remove(&link.number);
            let Some(slot) = table.peers.get_mut(&link.node) else { return };
            let changes = slot.remove(link);
            if slot.links.is_empty() && slot.dialer.is_none() {
                table.peers.remove(&link.node);
            }
            changes
        };
        self.announce(link.node, &changes);
    }

    fn announce(&self, node: NodeId, changes: &[Change]) {
        for change in changes {
            tracing::info!(peer = %node, ?change, "connection to peer");
            self.deliver(match *change {
                Change::Connected(boot) => Input::PeerConnected { node, boot },
                Change::Lost => Input::PeerLost { node },
            });
        }
    }

    async fn accept(self: Rc<Self>, incoming: Incoming) {
        let remote = incoming.remote_address();
        let handshake = async { incoming.accept()?.await };
        let connection = match timeout(HANDSHAKE_TIME, handshake).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return tracing::debug!(%remote, %error, "handshake failed"),
            Err(_) => return tracing::debug!(%remote, "handshake not finished in time"),
        };
        let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
        match data.and_then(|data| data.protocol).as_deref() {
            Some(ALPN_PEER) => {
                connection.set_receive_window(endpoint::PEER_WINDOW.into());
                match timeout(HANDSHAKE_TIME, peer::accept(&self, &connection)).await {
                    Ok(Ok(connected)) => self.adopt(connected),
                    Ok(Err(error)) => {
                        if error.is_withdrawn() {
                            tracing::debug!(%remote, %error, "the peer hung up");
                        } else {
                            tracing::warn!(%remote, %error, "peer refused");
                        }
                        error.close(&connection);
                    }
                    Err(_) => close(&connection, Status::Timeout, "no hello in time"),
                }
            }
            Some(ALPN_CLIENT) => client::serve(self, connection).await,
            _ => close(&connection, Status::VersionMismatch, "no protocol was agreed on"),
        }
    }
}

/// The application error code of a status.
fn code(status: Status) -> quinn::VarInt {
    quinn::VarInt::from_u32(u32::from(u16::from(status)))
}

/// Why the other end closed the connection, where it said so.
pub fn refusal(error: &ConnectionError) -> Option<(Status, String)> {
    let ConnectionError::ApplicationClosed(closed) = error else { return None };
    let number = u16::try_from(closed.error_code.into_inner()).ok()?;
    Some((Status::try_from(number).ok()?, String::from_utf8_lossy(&closed.reason).into_owned()))
}
