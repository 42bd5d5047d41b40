//! Nodes that greet, tell the topology, and leave everything else to a closure.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use dunlin_client::Options;
use dunlin_protocol::frame::read_frame;
use dunlin_protocol::message::{ClientReply, ClientRequest, Hello, ReplyBody, Version, Welcome};
use dunlin_protocol::{
    Assignment, BootNumber, ClusterId, DataId, Epoch, Keyspace, KeyspaceId, Level, Member, Millis, NodeId,
    Partitioning, Status, Topology,
};
use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// What a node does about a request.
pub(crate) enum Reaction {
    Answer(ReplyBody),
    Bytes(Bytes),
    /// The connection is closed.
    Drop,
    Silence,
}

type React = Arc<dyn Fn(usize, NodeId, &ClientRequest) -> Reaction + Send + Sync>;

pub(crate) struct Cluster {
    pub(crate) topology: Topology,
    ca_pem: String,
    state: Arc<State>,
    _endpoints: Vec<Endpoint>,
}

struct State {
    topology: Mutex<Topology>,
    log: Mutex<Vec<(NodeId, ClientRequest)>>,
    react: React,
    start: tokio::time::Instant,
}

impl Cluster {
    /// `react` gets the number of the request, the node and the request.
    pub(crate) fn start(
        nodes: u64,
        react: impl Fn(usize, NodeId, &ClientRequest) -> Reaction + Send + Sync + 'static,
    ) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = params.self_signed(&key).expect("signed").pem();
        let issuer = Issuer::new(params, key);

        let endpoints: Vec<_> = (0..nodes).map(|_| endpoint(&issuer)).collect();
        let addresses: Vec<_> = endpoints.iter().map(|e| e.local_addr().expect("bound")).collect();
        let topology = topology(&addresses);
        let state = State {
            topology: Mutex::new(topology.clone()),
            log: Mutex::default(),
            react: Arc::new(react),
            start: tokio::time::Instant::now(),
        };
        let state = Arc::new(state);
        for (endpoint, member) in endpoints.iter().zip(&topology.members) {
            tokio::spawn(serve(endpoint.clone(), member.id, state.clone()));
        }
        Self { topology, ca_pem, state, _endpoints: endpoints }
    }

    pub(crate) fn options(&self) -> Options {
        let addresses = self.topology.members.iter().map(|m| m.address.clone());
        Options { seed: Some(3), ..Options::new(addresses, self.ca_pem.clone()) }
    }

    /// Requests in the order in which they arrived.
    pub(crate) fn log(&self) -> Vec<(NodeId, ClientRequest)> {
        self.state.log.lock().expect("no panic").clone()
    }

    pub(crate) fn next_epoch(&self) {
        self.state.topology.lock().expect("no panic").epoch.0 += 1;
    }
}

fn endpoint(issuer: &Issuer<'_, KeyPair>) -> Endpoint {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["node.dunlin".to_owned()]).expect("a name");
    let cert = params.signed_by(&key, issuer).expect("signed");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .expect("fits");
    tls.alpn_protocols = vec![b"dunlin/1".to_vec()];
    let tls = quinn::crypto::rustls::QuicServerConfig::try_from(tls).expect("usable");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(tls)), address).expect("bound")
}

fn topology(addresses: &[SocketAddr]) -> Topology {
    let partitioning = Partitioning::new(6).expect("in range");
    let members: Vec<_> = addresses
        .iter()
        .zip(1..)
        .map(|(address, id)| Member {
            id: NodeId(id),
            address: address.to_string(),
            region: "r".to_owned(),
            zone: "z".to_owned(),
            weight: 64,
            data: DataId(7),
        })
        .collect();
    let count = members.len() as u16;
    let places = partitioning.all().flat_map(|p| (0..count).map(move |i| (p.0 + i) % count)).collect();
    let keyspace = Keyspace {
        id: KeyspaceId::DEFAULT,
        name: "default".to_owned(),
        assignment: 0,
        read_level: Level::Quorum,
        write_level: Level::Quorum,
    };
    Topology {
        cluster: ClusterId(1),
        epoch: Epoch(1),
        partitioning,
        members,
        keyspaces: vec![keyspace],
        assignments: vec![Assignment { replicas: count as u8, members: places, algorithm: 1 }],
    }
}

async fn serve(endpoint: Endpoint, node: NodeId, state: Arc<State>) {
    while let Some(incoming) = endpoint.accept().await {
        let state = state.clone();
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            while let Ok((send, recv)) = connection.accept_bi().await {
                tokio::spawn(serve_stream(connection.clone(), send, recv, node, state.clone()));
            }
        });
    }
}

async fn serve_stream(
    connection: Connection,
    mut send: SendStream,
    mut recv: RecvStream,
    node: NodeId,
    state: Arc<State>,
) {
    let mut input = BytesMut::new();
    let mut greeted = false;
    while let Ok(Some(chunk)) = recv.read_chunk(64 << 10, true).await {
        input.extend_from_slice(&chunk.bytes);
        while let Some(frame) = read_frame(&mut input).expect("the client sends frames") {
            let mut out = BytesMut::new();
            let epoch = state.topology.lock().expect("no panic").epoch;
            if !greeted {
                let hello = Hello::read(&frame).expect("the client greets first");
                if hello.cluster.is_some_and(|cluster| cluster != ClusterId(1)) {
                    connection.close(VarInt::from_u32(u16::from(Status::ClusterMismatch).into()), b"another cluster");
                    return;
                }
                let (cluster, boot) = (ClusterId(1), BootNumber(1));
                let welcome = Welcome { version: Version::NEWEST, cluster, node, boot, epoch, now: state.wall() };
                welcome.write(&mut out, frame.request_id).expect("small");
                greeted = true;
            } else {
                let request = ClientRequest::read(&frame).expect("the client sends requests");
                let body = match react(&state, node, request) {
                    Reaction::Answer(body) => body,
                    Reaction::Bytes(bytes) => {
                        send.write_all(&bytes).await.expect("open");
                        continue;
                    }
                    Reaction::Drop => return connection.close(VarInt::from_u32(0), b""),
                    Reaction::Silence => continue,
                };
                let reply = ClientReply { now: state.wall(), quorum_micros: 300, epoch, body };
                reply.write(&mut out, frame.request_id).expect("fits");
            }
            if send.write_all(&out).await.is_err() {
                return;
            }
        }
    }
}

fn react(state: &State, node: NodeId, request: ClientRequest) -> Reaction {
    if let ClientRequest::Topology { epoch } = request {
        let topology = state.topology.lock().expect("no panic");
        let newer = if topology.epoch > epoch { encode(&topology) } else { Bytes::new() };
        return Reaction::Answer(ReplyBody::Topology(newer));
    }
    let mut log = state.log.lock().expect("no panic");
    log.push((node, request.clone()));
    (state.react)(log.len() - 1, node, &request)
}

fn encode(topology: &Topology) -> Bytes {
    rmp_serde::to_vec_named(topology).expect("serializable").into()
}

impl State {
    /// The nodes' clocks, which need not have the real time.
    fn wall(&self) -> Millis {
        Millis(1_000_000_000) + self.start.elapsed()
    }
}
