//! Whole nodes over real sockets: founded, asked, stopped, started again.

use std::cell::Cell;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dunlin_node::config::{
    ClusterSection, Config, ConfigFile, FounderSection, NetworkSection, StorageSection, TlsSection,
};
use dunlin_node::transport::Socket;
use dunlin_node::transport::tls::{ClusterCa, NodeTls};
use dunlin_node::{Environment, ServeError, Server, WriterPlace};
use dunlin_protocol::message::{ClientRequest, ReplyBody};
use dunlin_protocol::{
    Action, Attributes, Content, DataId, Epoch, Key, KeyspaceId, Level, Millis, Mutation, NodeId, Operation, Outcome,
    Stamp, Status, Window,
};
use dunlin_storage::{Disk, MemoryDisk};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_local};

use crate::transport::{Asker, client, run};

/// A cluster's settings and disks; its nodes live in the test's `LocalSet`.
pub(crate) struct Cluster {
    pub(crate) ca: ClusterCa,
    pub(crate) addresses: Vec<SocketAddr>,
    sockets: Vec<Option<Socket>>,
    pub(crate) disks: Vec<Arc<MemoryDisk>>,
    /// What their data directories' ids would be, were they new.
    data: Vec<DataId>,
}

pub(crate) struct Running {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Running {
    pub(crate) async fn stop(mut self) {
        self.stop.take().expect("stopped once").send(()).expect("it runs");
        self.task.await.expect("it ends in order").expect("it was told to");
    }
}

impl Cluster {
    pub(crate) fn new(size: usize) -> Self {
        let sockets: Vec<_> = (0..size).map(|_| std::net::UdpSocket::bind(("127.0.0.1", 0)).expect("bound")).collect();
        Self {
            ca: ClusterCa::create().expect("made"),
            addresses: sockets.iter().map(|s| s.local_addr().expect("bound")).collect(),
            sockets: sockets.into_iter().map(|s| Some(Socket::Std(s))).collect(),
            disks: (0..size).map(|_| Arc::new(MemoryDisk::new())).collect(),
            data: (1..=size).map(|i| DataId(i as u128)).collect(),
        }
    }

    pub(crate) fn config(&self, index: usize) -> Config {
        let founder = |(i, address): (usize, &SocketAddr)| FounderSection {
            id: i as u64 + 1,
            address: address.to_string(),
            region: String::new(),
            zone: format!("z{i}"),
            weight: 64,
        };
        let file = ConfigFile {
            id: index as u64 + 1,
            data: "unused".into(),
            listen: self.addresses[index],
            cluster: ClusterSection {
                name: "test".to_owned(),
                partition_bits: 6,
                replication: 3,
                founders: self.addresses.iter().enumerate().map(founder).collect(),
            },
            tls: TlsSection { ca: "ca.pem".into(), cert: "cert.pem".into(), key: "key.pem".into() },
            storage: StorageSection { segment_bytes: 1 << 20, ..Default::default() },
            network: NetworkSection { idle_timeout_millis: 30_000, ..Default::default() },
        };
        file.check(Path::new("/nowhere")).expect("valid")
    }

    fn open(&mut self, index: usize, config: &Config) -> Result<Server, ServeError> {
        Server::open(config, self.environment(index, config))
    }

    pub(crate) fn environment(&mut self, index: usize, config: &Config) -> Environment {
        let socket = self.sockets[index].take().expect("a socket is ready");
        let cert = self.ca.issue_node(config.id, &[]).expect("issued");
        Environment {
            disk: self.disks[index].clone(),
            socket,
            tls: NodeTls::new(config.id, self.ca.cert_pem(), &cert).expect("usable"),
            wall: wall_clock(),
            seed: index as u64,
            data: self.data[index],
            writer: if index == 0 {
                WriterPlace::Thread
            } else {
                WriterPlace::Task { latency: Rc::new(|| Duration::ZERO) }
            },
        }
    }

    pub(crate) async fn start(&mut self, index: usize) -> Running {
        self.bind(index).await;
        let server = self.open(index, &self.config(index)).expect("opened");
        assert_eq!(server.local_addr().expect("bound"), self.addresses[index]);
        let (stop, stopped) = oneshot::channel();
        let task = spawn_local(server.run(async move {
            // A sender that was dropped means the same.
            let _ = stopped.await;
        }));
        Running { stop: Some(stop), task }
    }

    /// An earlier life's endpoint holds the port until its connections have drained.
    pub(crate) async fn bind(&mut self, index: usize) {
        while self.sockets[index].is_none() {
            self.sockets[index] = Socket::bind(self.addresses[index]).ok();
            tokio::task::yield_now().await;
        }
    }

    pub(crate) async fn asker(&self, index: usize) -> Asker {
        Asker::open(&client(&self.ca, self.addresses[index]).await).await
    }
}

/// A wall clock that goes with tokio's.
fn wall_clock() -> Box<dyn Fn() -> Millis> {
    thread_local! { static START: tokio::time::Instant = tokio::time::Instant::now(); }
    let start = START.with(|s| *s);
    Box::new(move || Millis(1_800_000_000_000) + start.elapsed())
}

pub(crate) fn operation(key: &str, level: Level, action: Action) -> ClientRequest {
    ClientRequest::Operate(Operation {
        keyspace: KeyspaceId::DEFAULT,
        key: Key::new(Bytes::copy_from_slice(key.as_bytes())).expect("a key"),
        level: Some(level),
        op_id: Stamp::ZERO,
        tried: false,
        window: Window::OPEN,
        timeout_millis: 2_000,
        seen: Stamp::ZERO,
        epoch: Epoch(0),
        action,
    })
}

pub(crate) fn put(key: &str, value: &str, level: Level) -> ClientRequest {
    let value = Bytes::copy_from_slice(value.as_bytes());
    let mutation = Mutation::Put { value, attributes: Attributes::default(), ttl_millis: 0 };
    operation(key, level, Action::Write { condition: None, mutation })
}

/// Asks until the cluster is ready to answer.
pub(crate) async fn ask(asker: &mut Asker, request: &ClientRequest) -> Outcome {
    let mut id = 0;
    loop {
        id += 1;
        let ReplyBody::Outcome(outcome) = asker.ask(id, request).await else { panic!("an outcome") };
        match outcome.status {
            Status::NotReady | Status::Unavailable | Status::ClockSkew => tokio::task::yield_now().await,
            _ => return outcome,
        }
    }
}

pub(crate) async fn value(asker: &mut Asker, key: &str, level: Level) -> Option<String> {
    let outcome = ask(asker, &operation(key, level, Action::Read { value: true })).await;
    match outcome.status {
        Status::NotFound => None,
        Status::Ok => {
            let Some(Content::Value(value, _)) = outcome.content else { panic!("{outcome:?}") };
            Some(String::from_utf8(value.to_vec()).expect("text"))
        }
        _ => panic!("{outcome:?}"),
    }
}

#[test]
fn three_nodes_keep_what_they_acknowledge_over_restarts() {
    run(async {
        let mut cluster = Cluster::new(3);
        let nodes = [cluster.start(0).await, cluster.start(1).await, cluster.start(2).await];
        let mut askers = [cluster.asker(0).await, cluster.asker(1).await, cluster.asker(2).await];
        for (i, level) in [Level::Quorum, Level::Serial, Level::Quorum].into_iter().enumerate() {
            let outcome = ask(&mut askers[i], &put(&format!("k{i}"), &format!("v{i}"), level)).await;
            assert_eq!(outcome.status, Status::Ok, "{outcome:?}");
            for asker in &mut askers {
                assert_eq!(value(asker, &format!("k{i}"), Level::Quorum).await, Some(format!("v{i}")));
                assert_eq!(value(asker, &format!("k{i}"), Level::Serial).await, Some(format!("v{i}")));
            }
        }
        for node in nodes {
            node.stop().await;
        }

        let nodes = [cluster.start(0).await, cluster.start(1).await];
        let mut asker = cluster.asker(1).await;
        for i in 0..3 {
            assert_eq!(value(&mut asker, &format!("k{i}"), Level::Quorum).await, Some(format!("v{i}")));
        }
        let ReplyBody::Status { members, ready, node, .. } = asker.ask(99, &ClientRequest::Status).await else {
            panic!("a status")
        };
        assert!(ready && node == NodeId(2));
        assert_eq!(members.iter().find(|m| m.node == NodeId(1)).expect("a member").boot.0, 2);
        for node in nodes {
            node.stop().await;
        }
    });
}

#[test]
fn a_node_that_lost_its_directory_serves_nothing_and_ends() {
    run(async {
        let mut cluster = Cluster::new(3);
        let first = cluster.start(0).await;
        let mut asker = cluster.asker(0).await;
        let ReplyBody::Outcome(early) = asker.ask(1, &put("a", "1", Level::Quorum)).await else { panic!("an outcome") };
        assert_eq!(early.status, Status::NotReady, "not all founders are there: {early:?}");
        let nodes = [first, cluster.start(1).await];
        let third = cluster.start(2).await;
        // A node that has founded may be ahead of the others, and then has written only at itself.
        while ask(&mut asker, &put("a", "1", Level::Quorum)).await.status != Status::Ok {}
        assert_eq!(value(&mut cluster.asker(2).await, "a", Level::Serial).await.as_deref(), Some("1"));
        third.stop().await;

        cluster.disks[2] = Arc::new(MemoryDisk::new());
        cluster.data[2] = DataId(99);
        let wiped = cluster.start(2).await;
        let ended = wiped.task.await.expect("in order");
        assert!(matches!(ended, Err(ServeError::Disowned { node: NodeId(3) })), "{ended:?}");
        assert!(wiped.stop.is_some());
        assert_eq!(value(&mut asker, "a", Level::Serial).await.as_deref(), Some("1"), "the others go on");
        // Nor does it get in with the cluster's topology in its directory.
        let topology = cluster.disks[1].contents("TOPOLOGY").expect("stored");
        cluster.disks[2].insert("TOPOLOGY", &topology);
        cluster.sockets[2] = Some(Socket::bind(([127, 0, 0, 1], 0).into()).expect("bound"));
        let config = cluster.config(2);
        assert!(matches!(cluster.open(2, &config).err(), Some(ServeError::Disowned { .. })));
        for node in nodes {
            node.stop().await;
        }
        // A directory of a founded cluster without its topology could found anew.
        cluster.disks[0].remove("TOPOLOGY").expect("removed");
        cluster.sockets[0] = Some(Socket::bind(([127, 0, 0, 1], 0).into()).expect("bound"));
        let config = cluster.config(0);
        assert!(matches!(cluster.open(0, &config).err(), Some(ServeError::Lost { what: "topology", .. })));
    });
}

#[test]
fn a_stopped_node_says_so_to_its_clients() {
    run(async {
        let mut cluster = Cluster::new(1);
        let node = cluster.start(0).await;
        let connection = client(&cluster.ca, cluster.addresses[0]).await;
        let mut asker = Asker::open(&connection).await;
        assert_eq!(ask(&mut asker, &put("a", "1", Level::Quorum)).await.status, Status::Ok);
        node.stop().await;
        let (status, _) =
            dunlin_node::transport::refusal(&connection.closed().await).expect("told why the connection ended");
        assert_eq!(status, Status::ShuttingDown);
    });
}

#[test]
fn a_directory_that_is_not_ours_or_has_lost_something_is_refused() {
    run(async {
        let mut cluster = Cluster::new(2);
        let config = cluster.config(0);
        drop(cluster.open(0, &config).expect("opened"));
        tokio::task::yield_now().await;

        let status = |cluster: &mut Cluster, config: &Config| {
            cluster.sockets[0] = Some(Socket::bind(([127, 0, 0, 1], 0).into()).expect("bound"));
            cluster.open(0, config).err().map(|error| error.status())
        };
        assert_eq!(status(&mut cluster, &config), None);
        let other_node = cluster.config(1);
        assert_eq!(status(&mut cluster, &other_node), Some(Status::IdentityMismatch));
        let mut other_cluster = config.clone();
        other_cluster.founders.name = "other".to_owned();
        assert_eq!(status(&mut cluster, &other_cluster), Some(Status::IdentityMismatch));

        let disk = cluster.disks[0].clone();
        for (lost, keeps) in [("CLOCK", false), ("TOPOLOGY", true)] {
            let saved = disk.contents(lost);
            if saved.is_some() {
                disk.remove(lost).expect("removed");
            }
            let expected = if keeps { None } else { Some(Status::Corruption) };
            assert_eq!(status(&mut cluster, &config), expected, "{lost}");
            if let Some(saved) = saved {
                disk.insert(lost, &saved);
            }
        }
        assert_eq!(status(&mut cluster, &config), None);
    });
}

#[test]
fn a_taken_port_and_a_directory_in_use_have_their_codes() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let cluster = Cluster::new(1);
        let mut config = cluster.config(0);
        config.data = folder.path().join("data");
        config.tls = TlsSection {
            ca: folder.path().join("ca.pem"),
            cert: folder.path().join("cert.pem"),
            key: folder.path().join("key.pem"),
        };
        let code = |config: &Config| Environment::of_machine(config).err().map(|error| error.status());
        assert_eq!(code(&config), Some(Status::InvalidConfig), "no certificates yet");
        let cert = cluster.ca.issue_node(NodeId(1), &[]).expect("issued");
        for (file, text) in [
            (&config.tls.ca, cluster.ca.cert_pem()),
            (&config.tls.cert, &cert.cert_pem),
            (&config.tls.key, &cert.key_pem),
        ] {
            std::fs::write(file, text).expect("written");
        }
        assert_eq!(code(&config), Some(Status::AddressInUse), "the cluster's own socket has it");
        config.listen = ([127, 0, 0, 1], 0).into();
        let environment = Environment::of_machine(&config).expect("usable");
        assert_eq!(code(&config), Some(Status::DataDirInUse));

        let server = Server::open(&config, environment).expect("opened");
        let ended = Rc::new(Cell::new(false));
        let seen = ended.clone();
        server.run(async move { seen.set(true) }).await.expect("told to stop");
        assert!(ended.get());
        assert_eq!(code(&config), None, "the directory is free again");
    });
}
