//! The transport over real sockets: messages arrive, and nothing that a stranger sends hurts.

use std::cell::RefCell;
use std::future::Future;
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dunlin_node::transport::tls::{ANY_NODE, ClusterCa, NodeCert, NodeTls, client_crypto};
use dunlin_node::transport::{Local, Receiver, Socket, Transport, TransportSettings, refusal};
use dunlin_node::{Input, Outbox};
use dunlin_protocol::frame::read_frame;
use dunlin_protocol::message::{
    ClientReply, ClientRequest, Hello, PeerReply, PeerReplyBody, PeerRequest, ReplyBody, Version, Welcome,
};
use dunlin_protocol::{BootNumber, ClusterId, Epoch, Millis, NodeId, Outcome, Status};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::sync::mpsc;

pub(crate) const CLUSTER: ClusterId = ClusterId(0xd00d);

/// Runs a test on the runtime that nodes use. The time limit only keeps a broken test from hanging.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    let limited = async { tokio::time::timeout(Duration::from_secs(60), test).await };
    runtime.block_on(local.run_until(limited)).expect("the test came to its end");
}

/// Answers what can be answered at once and shows everything to the test.
struct Echo {
    transport: RefCell<Transport>,
    inputs: mpsc::UnboundedSender<Input>,
}

impl Receiver for Echo {
    fn receive(&self, input: Input) {
        match &input {
            Input::PeerRequest { reply_to, request, .. } => {
                let body = match request {
                    PeerRequest::Topology { topology, .. } => PeerReplyBody::Topology(topology.clone()),
                    _ => PeerReplyBody::Pong,
                };
                let reply = PeerReply { now: Millis(5), epoch: Epoch(1), body };
                self.transport.borrow_mut().reply_peer(*reply_to, &reply);
            }
            // An epoch of 0 is what the tests leave unanswered.
            Input::ClientRequest { request: ClientRequest::Topology { epoch: Epoch(0) }, .. } => {}
            Input::ClientRequest { reply_to, request } => {
                let body = match request {
                    ClientRequest::Topology { epoch } => ReplyBody::Topology(vec![7; epoch.0 as usize].into()),
                    _ => ReplyBody::Outcome(Outcome::of(Status::NotFound)),
                };
                self.transport.borrow_mut().reply_client(*reply_to, &client_reply(body));
            }
            _ => {}
        }
        // A test that has seen enough no longer listens.
        let _ = self.inputs.send(input);
    }

    fn epoch(&self) -> Epoch {
        Epoch(3)
    }

    fn wall(&self) -> Millis {
        Millis(42)
    }
}

pub(crate) fn client_reply(body: ReplyBody) -> ClientReply {
    ClientReply { now: Millis(5), quorum_micros: 0, epoch: Epoch(3), body }
}

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) transport: Transport,
    pub(crate) inputs: mpsc::UnboundedReceiver<Input>,
    _receiver: Rc<dyn Receiver>,
}

impl Node {
    pub(crate) fn start(ca: &ClusterCa, cluster: ClusterId, id: u64, boot: u64) -> Self {
        Self::start_at(ca, cluster, id, boot, ([127, 0, 0, 1], 0).into())
    }

    pub(crate) fn start_at(ca: &ClusterCa, cluster: ClusterId, id: u64, boot: u64, address: SocketAddr) -> Self {
        let cert = ca.issue_node(NodeId(id), &[]).expect("issued");
        // On a busy machine a test may stand still for longer than a node would wait.
        let settings = TransportSettings { idle_timeout: Duration::from_secs(30), ..Default::default() };
        Self::start_with(ca, &cert, cluster, id, boot, address, settings)
    }

    pub(crate) fn start_with(
        ca: &ClusterCa,
        cert: &NodeCert,
        cluster: ClusterId,
        id: u64,
        boot: u64,
        address: SocketAddr,
        settings: TransportSettings,
    ) -> Self {
        let node = NodeId(id);
        let tls = NodeTls::new(node, ca.cert_pem(), cert).expect("usable");
        let local = Local { cluster, node, boot: BootNumber(boot) };
        let socket = Socket::bind(address).expect("bound");
        let transport = Transport::open(socket, &tls, local, settings).expect("open");
        let (sender, inputs) = mpsc::unbounded_channel();
        let receiver: Rc<dyn Receiver> = Rc::new(Echo { transport: RefCell::new(transport.clone()), inputs: sender });
        transport.start(&receiver);
        Self { id: node, transport, inputs, _receiver: receiver }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.transport.local_addr().expect("bound")
    }

    pub(crate) fn wants(&self, others: &[&Node]) {
        let wanted: Vec<_> = others.iter().map(|o| (o.id, o.address().to_string())).collect();
        self.transport.want_peers(&wanted);
    }

    pub(crate) async fn next(&mut self) -> Input {
        self.inputs.recv().await.expect("the transport lives")
    }

    pub(crate) async fn connected(&mut self, to: NodeId, life: u64) {
        loop {
            if matches!(self.next().await, Input::PeerConnected { node, boot } if node == to && boot.0 == life) {
                return;
            }
        }
    }

    /// Asks and waits for the answer, whatever else arrives.
    pub(crate) async fn ask(&mut self, to: NodeId, id: u64, request: &PeerRequest) -> PeerReplyBody {
        assert!(self.transport.request(to, id, request));
        loop {
            match self.next().await {
                Input::PeerReply { from, request_id, reply } if from == to && request_id == id => return reply.body,
                Input::PeerLost { node } if node == to => panic!("the connection was lost"),
                _ => {}
            }
        }
    }
}

pub(crate) fn topology(len: usize) -> PeerRequest {
    PeerRequest::Topology { epoch: Epoch(1), topology: vec![9; len].into() }
}

pub(crate) async fn pair() -> (Node, Node, ClusterCa) {
    let ca = ClusterCa::create().expect("made");
    let (mut a, mut b) = (Node::start(&ca, CLUSTER, 1, 1), Node::start(&ca, CLUSTER, 2, 1));
    a.wants(&[&b]);
    a.connected(b.id, 1).await;
    b.connected(a.id, 1).await;
    (a, b, ca)
}

#[test]
fn frames_and_datagrams_pass_both_ways() {
    run(async {
        let (mut a, mut b, _) = pair().await;
        let (to_a, to_b) = (a.id, b.id);
        assert_eq!(a.ask(to_b, 1, &PeerRequest::Ping).await, PeerReplyBody::Pong);
        assert_eq!(b.ask(to_a, 1, &PeerRequest::Ping).await, PeerReplyBody::Pong);
        for len in [0, 1_000, 64 << 10, 1 << 20, 4 << 20] {
            let len = len.min((4 << 20) - 64);
            let (there, back) = (a.ask(to_b, 2, &topology(len)).await, b.ask(to_a, 2, &topology(len)).await);
            assert_eq!(there, PeerReplyBody::Topology(vec![9; len].into()));
            assert_eq!(back, there);
        }
        assert!(!a.transport.request(to_b, 3, &topology(4 << 20)), "more than a frame takes");

        a.transport.datagram(to_b, b"ping");
        loop {
            if let Input::Datagram { from, bytes } = b.next().await {
                assert_eq!((from, &bytes[..]), (to_a, &b"ping"[..]));
                break;
            }
        }
        assert!(!a.transport.request(NodeId(9), 4, &PeerRequest::Ping), "nobody is there");
    });
}

#[test]
fn many_requests_at_once_are_all_answered() {
    run(async {
        let (mut a, b, _) = pair().await;
        for id in 0..2_000 {
            let request = if id % 100 == 0 { topology(100_000) } else { PeerRequest::Ping };
            assert!(a.transport.request(b.id, id, &request));
        }
        let mut answered = std::collections::BTreeSet::new();
        while answered.len() < 2_000 {
            if let Input::PeerReply { request_id, .. } = a.next().await {
                assert!(answered.insert(request_id), "one answer each");
            }
        }
    });
}

#[test]
fn a_queue_that_nobody_drains_turns_requests_away() {
    run(async {
        let (mut a, b, _) = pair().await;
        // Without an await in between nothing is written.
        let taken = (0..1_000).take_while(|id| a.transport.request(b.id, *id, &topology(1 << 20))).count();
        assert_eq!(taken, 16, "16 MiB");
        let mut answered = 0;
        while answered < taken {
            answered += usize::from(matches!(a.next().await, Input::PeerReply { .. }));
        }
        assert_eq!(a.ask(b.id, 5_000, &PeerRequest::Ping).await, PeerReplyBody::Pong);
    });
}

#[test]
fn both_sides_dialling_at_once_find_each_other() {
    run(async {
        let ca = ClusterCa::create().expect("made");
        let (mut a, mut b) = (Node::start(&ca, CLUSTER, 1, 1), Node::start(&ca, CLUSTER, 2, 1));
        a.wants(&[&b, &a]);
        b.wants(&[&a]);
        a.connected(b.id, 1).await;
        b.connected(a.id, 1).await;
        for id in 0..10 {
            assert_eq!(a.ask(NodeId(2), id, &PeerRequest::Ping).await, PeerReplyBody::Pong);
            assert_eq!(b.ask(NodeId(1), id, &PeerRequest::Ping).await, PeerReplyBody::Pong);
        }
        assert_eq!(a.transport.connected_peers(), [(NodeId(2), BootNumber(1))]);
    });
}

#[test]
fn a_restarted_peer_replaces_its_earlier_life() {
    run(async {
        let (mut a, b, ca) = pair().await;
        // The earlier life still answers when the later one connects: as a connection that nobody noticed to be dead.
        let mut later = Node::start(&ca, CLUSTER, 2, 2);
        later.wants(&[&a]);
        loop {
            match a.next().await {
                Input::PeerLost { node } => break assert_eq!(node, b.id),
                Input::PeerConnected { boot, .. } => panic!("connected to {boot} before the loss was told"),
                _ => {}
            }
        }
        a.connected(b.id, 2).await;
        later.connected(a.id, 1).await;
        assert_eq!(a.ask(later.id, 7, &PeerRequest::Ping).await, PeerReplyBody::Pong);
        assert_eq!(a.transport.connected_peers(), [(NodeId(2), BootNumber(2))]);
        // And the earlier one does not come back.
        let refused = dial_raw(&ca, &ca.issue_node(b.id, &[]).expect("issued"), a.address()).await;
        let (status, _) = say_hello(&refused, Hello::new(Some(CLUSTER), Some((b.id, BootNumber(1)))), 2).await;
        assert_eq!(status, Status::IdentityMismatch);
        assert_eq!(a.ask(later.id, 8, &PeerRequest::Ping).await, PeerReplyBody::Pong);
    });
}

#[test]
fn a_peer_that_comes_back_at_its_address_is_found_again() {
    run(async {
        let (mut a, b, ca) = pair().await;
        let address = b.address();
        b.transport.close(Status::ShuttingDown, "restart").await;
        drop(b);
        let mut b = loop {
            // The old endpoint's task lets go of the socket when it next runs.
            tokio::task::yield_now().await;
            if UdpSocket::bind(address).is_ok() {
                break Node::start_at(&ca, CLUSTER, 2, 2, address);
            }
        };
        a.connected(b.id, 2).await;
        b.connected(a.id, 1).await;
        assert_eq!(a.ask(b.id, 1, &PeerRequest::Ping).await, PeerReplyBody::Pong);
    });
}

#[test]
fn a_crash_is_noticed_when_the_next_life_answers_the_next_packet() {
    // With this idle timeout nothing but the next life's stateless reset can tell of the crash.
    let settings = TransportSettings {
        idle_timeout: Duration::from_secs(3_600),
        keep_alive: Duration::from_millis(20),
        ..Default::default()
    };
    let ca = ClusterCa::create().expect("made");
    let cert = ca.issue_node(NodeId(2), &[]).expect("issued");
    run(async {
        let mut a = Node::start_with(
            &ca,
            &ca.issue_node(NodeId(1), &[]).expect("issued"),
            CLUSTER,
            1,
            1,
            ([127, 0, 0, 1], 0).into(),
            settings.clone(),
        );
        let (crash, crashed) = tokio::sync::oneshot::channel::<()>();
        let (told, address) = tokio::sync::oneshot::channel();
        let life = {
            let (ca, cert, settings) = (ClusterCa::load(ca.cert_pem(), &ca.key_pem()), cert.clone(), settings.clone());
            // On a runtime of its own, which ends without a word to anybody.
            std::thread::spawn(move || {
                run(async {
                    let ca = ca.expect("loaded");
                    let any = ([127, 0, 0, 1], 0).into();
                    let b = Node::start_with(&ca, &cert, CLUSTER, 2, 1, any, settings);
                    told.send(b.address()).expect("listened to");
                    crashed.await.expect("the other side lives");
                    drop(b);
                });
            })
        };
        let address = address.await.expect("told");
        a.transport.want_peers(&[(NodeId(2), address.to_string())]);
        a.connected(NodeId(2), 1).await;
        crash.send(()).expect("listened to");
        tokio::task::spawn_blocking(move || life.join()).await.expect("joined").expect("ended");
        let _b = Node::start_with(&ca, &cert, CLUSTER, 2, 2, address, settings);
        while !matches!(a.next().await, Input::PeerLost { node: NodeId(2) }) {}
        a.connected(NodeId(2), 2).await;
    });
}

/// A peer's connection without a transport behind it.
pub(crate) async fn dial_raw(ca: &ClusterCa, cert: &NodeCert, to: SocketAddr) -> Connection {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let chain = vec![CertificateDer::from_pem_slice(cert.cert_pem.as_bytes()).expect("a certificate")];
    let key = PrivateKeyDer::from_pem_slice(cert.key_pem.as_bytes()).expect("a key");
    raw_connection(ca, Some((chain, key)), b"dunlin-peer/1", to).await
}

pub(crate) type Identity = (Vec<rustls::pki_types::CertificateDer<'static>>, rustls::pki_types::PrivateKeyDer<'static>);

pub(crate) async fn raw_connection(
    ca: &ClusterCa,
    identity: Option<Identity>,
    alpn: &[u8],
    to: SocketAddr,
) -> Connection {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.cert_pem().as_bytes()).expect("a CA")).expect("usable");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots);
    let mut tls = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).expect("usable"),
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).expect("usable");
    connect(quinn::ClientConfig::new(Arc::new(crypto)), to).await
}

pub(crate) async fn connect(mut config: quinn::ClientConfig, to: SocketAddr) -> Connection {
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_millis(500)));
    config.transport_config(Arc::new(transport));
    let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).expect("bound");
    endpoint.connect_with(config, to, ANY_NODE).expect("valid").await.expect("connected")
}

pub(crate) async fn client(ca: &ClusterCa, to: SocketAddr) -> Connection {
    connect(quinn::ClientConfig::new(Arc::new(client_crypto(ca.cert_pem()).expect("usable"))), to).await
}

/// Says hello on so many streams and waits for the refusal.
pub(crate) async fn say_hello(connection: &Connection, hello: Hello, streams: usize) -> (Status, String) {
    let mut out = BytesMut::new();
    hello.write(&mut out, 0).expect("small");
    let mut open = Vec::new();
    for _ in 0..streams {
        let Ok((mut send, recv)) = connection.open_bi().await else { break };
        if send.write_all(&out).await.is_err() {
            break;
        }
        open.push((send, recv));
    }
    refusal(&connection.closed().await).expect("closed by the node with a status")
}

/// One stream of a client.
pub(crate) struct Asker {
    pub(crate) send: SendStream,
    recv: RecvStream,
    buffer: BytesMut,
}

impl Asker {
    pub(crate) async fn open(connection: &Connection) -> Self {
        let (send, recv) = connection.open_bi().await.expect("open");
        let mut asker = Self { send, recv, buffer: BytesMut::new() };
        let mut out = BytesMut::new();
        Hello::new(None, None).write(&mut out, 0).expect("small");
        asker.send.write_all(&out).await.expect("written");
        let welcome = Welcome::read(&asker.frame().await.expect("a frame")).expect("a welcome");
        assert!(welcome.version >= Version::OLDEST && welcome.now.is_some());
        asker
    }

    async fn frame(&mut self) -> Option<dunlin_protocol::frame::Frame> {
        loop {
            if let Some(frame) = read_frame(&mut self.buffer).expect("well-formed") {
                return Some(frame);
            }
            let chunk = self.recv.read_chunk(1 << 20, true).await.expect("open")?;
            self.buffer.extend_from_slice(&chunk.bytes);
        }
    }

    async fn write(&mut self, id: u64, request: &ClientRequest) {
        let mut out = BytesMut::new();
        request.write(&mut out, id).expect("small");
        self.send.write_all(&out).await.expect("written");
    }

    pub(crate) async fn ask(&mut self, id: u64, request: &ClientRequest) -> ReplyBody {
        self.write(id, request).await;
        let frame = self.frame().await.expect("a reply");
        assert_eq!(frame.request_id, id);
        ClientReply::read(&frame).expect("a reply").body
    }
}

pub(crate) fn not_found() -> ReplyBody {
    ReplyBody::Outcome(Outcome::of(Status::NotFound))
}

#[test]
fn clients_ask_on_many_streams() {
    run(async {
        let ca = ClusterCa::create().expect("made");
        let node = Node::start(&ca, CLUSTER, 1, 1);
        let connection = client(&ca, node.address()).await;
        let (mut one, mut two) = (Asker::open(&connection).await, Asker::open(&connection).await);
        assert_eq!(one.ask(1, &ClientRequest::Status).await, not_found());
        assert_eq!(two.ask(1, &ClientRequest::Status).await, not_found());
        let large = ClientRequest::Topology { epoch: Epoch(1 << 20) };
        assert_eq!(one.ask(2, &large).await, ReplyBody::Topology(vec![7; 1 << 20].into()));
        // What fits no frame is refused, not left unanswered.
        let huge = ClientRequest::Topology { epoch: Epoch(5 << 20) };
        let ReplyBody::Outcome(refused) = two.ask(2, &huge).await else { panic!("an outcome") };
        assert_eq!(refused.status, Status::InvalidArgument);
        one.send.finish().expect("open");
        assert!(one.frame().await.is_none(), "the node ends the stream too");
    });
}

#[test]
fn a_client_that_does_not_read_is_not_read_further() {
    run(async {
        let ca = ClusterCa::create().expect("made");
        let mut node = Node::start(&ca, CLUSTER, 1, 1);
        let connection = client(&ca, node.address()).await;
        let mut slow = Asker::open(&connection).await;
        let large = ClientRequest::Topology { epoch: Epoch(256 << 10) };
        for id in 0..200 {
            slow.write(id, &large).await;
        }
        // The other stream's answer shows that the node has taken from the slow one what it would take.
        let other = client(&ca, node.address()).await;
        let mut other = Asker::open(&other).await;
        for id in 0..200 {
            assert_eq!(other.ask(id, &ClientRequest::Status).await, not_found());
        }
        let mut taken = 0;
        while let Ok(input) = node.inputs.try_recv() {
            taken += usize::from(matches!(input, Input::ClientRequest { request: ClientRequest::Topology { .. }, .. }));
        }
        assert!((1..120).contains(&taken), "{taken} requests of 256 KiB each were answered to nobody");
        // It gets everything once it reads.
        for id in 0..200 {
            assert_eq!(slow.frame().await.expect("a reply").request_id, id);
        }
    });
}

#[test]
fn an_orderly_end_answers_first() {
    run(async {
        let ca = ClusterCa::create().expect("made");
        let mut node = Node::start(&ca, CLUSTER, 1, 1);
        let connection = client(&ca, node.address()).await;
        let mut asker = Asker::open(&connection).await;
        asker.write(7, &ClientRequest::Topology { epoch: Epoch(0) }).await;
        let reply_to = loop {
            if let Input::ClientRequest { reply_to, .. } = node.next().await {
                break reply_to;
            }
        };
        node.transport.drain();
        let mut transport = node.transport.clone();
        let ending = tokio::task::spawn_local(async move {
            node.transport.idle().await;
            node.transport.finish_clients().await;
            node.transport.close(Status::ShuttingDown, "bye").await;
        });
        tokio::task::yield_now().await;
        assert!(!ending.is_finished(), "a request is unanswered");
        transport.reply_client(reply_to, &client_reply(ReplyBody::Topology(Bytes::from_static(b"late"))));
        let frame = asker.frame().await.expect("the answer");
        assert_eq!(ClientReply::read(&frame).expect("a reply").body, ReplyBody::Topology(Bytes::from_static(b"late")));
        assert!(asker.frame().await.is_none(), "the stream ends in order");
        assert_eq!(refusal(&connection.closed().await).expect("a status").0, Status::ShuttingDown);
        ending.await.expect("ended");
    });
}
