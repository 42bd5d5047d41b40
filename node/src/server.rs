//! The shell around a [`Node`]: opens its data directory, drives it from its disk, its clocks and its connections, and ends it in order.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use dunlin_membership::{FoundingError, TopologyError, decode_topology};
use dunlin_protocol::message::{ClientReply, ReplyBody};
use dunlin_protocol::{ClusterId, DataId, Epoch, Millis, NodeId, Now, Outcome, Status, Tick, Times, Topology};
use dunlin_storage::{ClockFile, Disk, Engine, FileDisk, FileError, Identity, OpenError, Recovery, load_blob};
use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use crate::config::Config;
use crate::log_writer::{LogWriter, Progress, TOPOLOGY, WriterPlace};
use crate::readers::Readers;
use crate::transport::tls::{NodeCert, NodeTls, TlsError};
use crate::transport::{Local, Receiver, Socket, Transport};
use crate::{CoordinatorConfig, Input, Node, NodeConfig, Outbox};

/// The clock's file in a data directory.
const CLOCK: &str = "CLOCK";
/// How long a stopping node waits for its clients to have their last replies.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long it stays to tell again whoever did not hear that its connections are closed.
const GOODBYE: Duration = Duration::from_millis(200);

/// What a node gets from outside.
pub struct Environment {
    /// Its data directory.
    pub disk: Arc<dyn Disk>,
    /// Its socket.
    pub socket: Socket,
    /// Its certificate, and whom it trusts.
    pub tls: NodeTls,
    /// The physical clock.
    pub wall: Box<dyn Fn() -> Millis>,
    /// For whatever is random.
    pub seed: u64,
    /// The id of the data directory, should it be a new one: unlike that of any other.
    pub data: DataId,
    /// Where the disk is waited for.
    pub writer: WriterPlace,
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The data directory or the engine.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A small file of the data directory.
    #[error("the data directory: {0}")]
    File(#[from] FileError),
    /// The data directory is another's.
    #[error("the data directory belongs to {found}, and the configuration says {expected}")]
    Identity {
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
    /// The data directory lacks what it once had: with it, the node could break what it promised.
    #[error(
        "the data directory of node {node} has lost its {what}, and without it could break what it promised. Put back the very files that it had \
         when the node last ran; no copy of an earlier time"
    )]
    Lost {
        /// Whose it is.
        node: NodeId,
        /// What is missing.
        what: &'static str,
    },
    /// The node lost its data directory.
    #[error(
        "the cluster knows node {node} by another data directory: with that one went what it promised, so it must not vote again. Put back the very \
         directory that it had when it last ran; no copy of an earlier time"
    )]
    Disowned {
        /// The node.
        node: NodeId,
    },
    /// The stored topology.
    #[error("the stored topology: {0}")]
    Topology(#[from] TopologyError),
    /// The founders' list.
    #[error("the cluster cannot be founded: {0}")]
    Founding(#[from] FoundingError),
    /// A certificate's file cannot be read.
    #[error("{}: {source}", file.display())]
    ReadTls {
        /// The file.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The certificates do not fit.
    #[error("{}: {source}", file.display())]
    Tls {
        /// The certificate's file.
        file: PathBuf,
        /// What is wrong.
        source: TlsError,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The system refuses a thread or a socket's use.
    #[error("cannot start: {0}")]
    System(#[source] io::Error),
}

impl ServeError {
    /// The code for users.
    pub fn status(&self) -> Status {
        match self {
            Self::Open(error) => error.status(),
            Self::File(error) => error.status(),
            Self::Identity { .. } | Self::Disowned { .. } => Status::IdentityMismatch,
            Self::Lost { .. } | Self::Topology(_) => Status::Corruption,
            Self::Founding(_) | Self::ReadTls { .. } | Self::Tls { .. } => Status::InvalidConfig,
            Self::Bind { source, .. } if source.kind() == io::ErrorKind::AddrInUse => Status::AddressInUse,
            Self::Bind { .. } | Self::System(_) => Status::Local,
        }
    }
}

impl Environment {
    /// This machine's disk, network and clock.
    pub fn of_machine(config: &Config) -> Result<Self, ServeError> {
        let read = |file: &Path| {
            std::fs::read_to_string(file).map_err(|source| ServeError::ReadTls { file: file.to_owned(), source })
        };
        let cert = NodeCert { cert_pem: read(&config.tls.cert)?, key_pem: read(&config.tls.key)? };
        let tls = NodeTls::new(config.id, &read(&config.tls.ca)?, &cert)
            .map_err(|source| ServeError::Tls { file: config.tls.cert.clone(), source })?;
        let socket =
            Socket::bind(config.listen).map_err(|source| ServeError::Bind { address: config.listen, source })?;
        Ok(Self {
            disk: Arc::new(FileDisk::open(&config.data)?),
            socket,
            tls,
            wall: Box::new(system_time),
            // Spreads retries of several nodes and lives; nothing depends on nobody guessing it.
            seed: system_time().0.rotate_left(32) ^ config.id.0,
            data: random_id()?,
            writer: WriterPlace::Thread,
        })
    }
}

/// The one place where production reads the wall clock.
#[allow(clippy::disallowed_methods)]
pub(crate) fn system_time() -> Millis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn random_id() -> Result<DataId, ServeError> {
    let mut bytes = [0; 16];
    OsRng.try_fill_bytes(&mut bytes).map_err(|error| ServeError::System(io::Error::other(error)))?;
    Ok(DataId(u128::from_le_bytes(bytes)))
}

/// A node that is about to run. [`open`](Self::open) recovers, [`run`](Self::run) serves until told to stop.
pub struct Server {
    shell: Rc<Shell>,
    shutdown: Duration,
}

impl Server {
    /// Opens the data directory, recovers what it holds, and takes the socket into use. Needs a tokio runtime. Blocks while it reads the log.
    pub fn open(config: &Config, environment: Environment) -> Result<Self, ServeError> {
        let Environment { disk, socket, tls, wall, seed, data, writer } = environment;
        let Opened { data, topology, engine, clock } = Opened::open(config, &disk, data)?;
        let engine = Arc::new(engine);
        let local = Local { cluster: topology.cluster, node: config.id, boot: clock.boot() };
        let node = NodeConfig {
            node: config.id,
            data,
            boot: clock.boot(),
            reserve: clock.reserved(),
            topology,
            times: Times::default(),
            coordinator: CoordinatorConfig::default(),
            seed,
        };
        let node = Node::new(node, engine.clone());
        let transport = Transport::open(socket, &tls, local, config.network.clone()).map_err(ServeError::System)?;
        let readers = Readers::start(&writer, engine.clone()).map_err(ServeError::System)?;
        let writer = LogWriter::start(writer, engine.clone(), clock, disk, config.scrub).map_err(ServeError::System)?;
        let shell = Shell {
            node: RefCell::new(node),
            engine,
            transport,
            writer,
            readers,
            wall,
            start: Instant::now(),
            alarm: Cell::new(Tick(0)),
            earlier: Notify::new(),
            epoch: Cell::new(None),
            stopping: Cell::new(false),
            turn: Notify::new(),
            disowned: Notify::new(),
        };
        Ok(Self { shell: Rc::new(shell), shutdown: config.shutdown })
    }

    /// Where the node listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.shell.transport.local_addr()
    }

    /// Its cluster.
    pub fn cluster(&self) -> ClusterId {
        self.shell.node.borrow().placement().topology().cluster
    }

    /// A look at the node while it runs.
    pub fn probe(&self) -> Probe {
        Probe { shell: Rc::downgrade(&self.shell) }
    }

    /// Serves until `shutdown` is done; then answers what is under way, for a limited time, and says goodbye. Needs a `LocalSet`.
    ///
    /// # Errors
    /// [`ServeError::Disowned`]: it had to stop by itself.
    ///
    /// Dropped before it is done, it leaves the data directory as a crash would: nothing that was acknowledged is lost.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Self { shell, shutdown: patience } = self;
        let receiver: Rc<dyn Receiver> = shell.clone();
        shell.transport.start(&receiver);
        // Sets peers, alarm and reserve going.
        shell.receive(Input::Timeout);
        tokio::select! {
            biased;
            () = shutdown => {}
            () = shell.disowned.notified() => {}
            () = shell.run_parts() => {}
        }
        shell.stop(patience).await;
        let node = shell.node.borrow();
        match node.is_disowned() {
            true => Err(ServeError::Disowned { node: node.id() }),
            false => Ok(()),
        }
    }
}

/// A look at a running [`Server`], for who runs it. It keeps nothing alive: when the server is gone there is nothing to see.
#[derive(Clone)]
pub struct Probe {
    shell: Weak<Shell>,
}

impl Probe {
    /// The engine.
    pub fn engine(&self) -> Option<Arc<Engine>> {
        Some(self.shell.upgrade()?.engine.clone())
    }

    /// As [`Node::in_flight`].
    pub fn in_flight(&self) -> usize {
        self.shell.upgrade().map_or(0, |shell| shell.node.borrow().in_flight())
    }

    /// As [`Node::repairs`].
    pub fn repairs(&self) -> u64 {
        self.shell.upgrade().map_or(0, |shell| shell.node.borrow().repairs())
    }
}

/// What a data directory yields.
struct Opened {
    data: DataId,
    topology: Topology,
    engine: Engine,
    clock: ClockFile,
}

impl Opened {
    /// The order matters: what the identity vouches for, log and clock, is there before it is. So a directory with an identity and without one
    /// of them has lost it, and a start that was interrupted is simply begun again.
    fn open(config: &Config, disk: &Arc<dyn Disk>, new: DataId) -> Result<Self, ServeError> {
        let (node, founders, cluster) = (config.id, config.founders.founders_hash(), config.founders.cluster());
        let identity = Identity::load(&**disk)?;
        if let Some(identity) = identity
            && (identity.node != node
                || identity.founders != founders
                || identity.cluster.is_some_and(|c| c != cluster))
        {
            let whose = |node, cluster| format!("node {node} of cluster {cluster}");
            return Err(ServeError::Identity {
                found: whose(identity.node, identity.cluster.unwrap_or(cluster)),
                expected: whose(node, cluster),
            });
        }
        let files = disk.list("").map_err(|source| OpenError::Io { file: String::new(), source })?;
        if identity.is_some() && !files.iter().any(|name| name == CLOCK) {
            return Err(ServeError::Lost { node, what: "clock file" });
        }
        let (engine, recovery) = Engine::open(disk.clone(), config.storage)?;
        report(node, &recovery);
        if identity.is_some() && recovery.is_new {
            return Err(ServeError::Lost { node, what: "log" });
        }
        if identity.is_none() && recovery.frames > 0 {
            return Err(ServeError::Lost { node, what: "identity" });
        }
        let clock = ClockFile::open(&**disk)?;
        if let Some(damage) = clock.damage() {
            tracing::warn!(%node, %damage, "one slot of the clock file is damaged; the other one counts");
        }
        let data = identity.map_or(new, |identity| identity.data);
        if identity.is_none() {
            Identity { node, founders, data, cluster: None, format: Identity::FORMAT }.store(&**disk)?;
        }
        let topology = match load_blob(&**disk, TOPOLOGY)? {
            Some(bytes) => {
                let mut topology = decode_topology(&bytes)?;
                // Until a topology can be changed while the cluster runs, nodes move by their configurations.
                for member in &mut topology.members {
                    let moved = config.founders.members.iter().find(|founder| founder.id == member.id);
                    member.address = moved.map_or_else(|| member.address.clone(), |founder| founder.address.clone());
                }
                topology
            }
            None => config.founders.draft(config.replication)?,
        };
        if topology.cluster != cluster {
            let (found, expected) = (topology.cluster, cluster);
            return Err(ServeError::Identity {
                found: format!("cluster {found}, as its topology says"),
                expected: format!("cluster {expected}"),
            });
        }
        // Who has not founded has stored nothing, and may begin again.
        let has_founded = recovery.frames > 0 || identity.is_some_and(|identity| identity.cluster.is_some());
        if has_founded && !topology.is_founded() {
            return Err(ServeError::Lost { node, what: "topology" });
        }
        let known = topology.member(node).map_or(data, |member| member.data);
        if known != data && known != DataId::UNKNOWN {
            return Err(ServeError::Disowned { node });
        }
        Ok(Self { data, topology, engine, clock })
    }
}

fn report(node: NodeId, recovery: &Recovery) {
    let Recovery { segments, frames, torn_bytes, damage_count, .. } = recovery;
    tracing::info!(%node, segments, frames, torn_bytes, "log recovered");
    for damage in &recovery.damaged {
        tracing::error!(%node, %damage, "damaged data");
    }
    if *damage_count > 0 {
        tracing::error!(%node, damage_count, "partitions that may have lost data are suspect and do not answer");
    }
}

/// A node with everything that it is driven from. All of it runs on one thread.
struct Shell {
    node: RefCell<Node>,
    engine: Arc<Engine>,
    transport: Transport,
    writer: LogWriter,
    readers: Readers,
    wall: Box<dyn Fn() -> Millis>,
    start: Instant,
    /// When the node will next be woken.
    alarm: Cell<Tick>,
    /// It wants to be woken earlier than that.
    earlier: Notify,
    /// The epoch whose members the transport knows.
    epoch: Cell<Option<Epoch>>,
    stopping: Cell<bool>,
    /// Something was received since the log's turn last ended.
    turn: Notify,
    /// The node must not go on.
    disowned: Notify,
}

impl Receiver for Shell {
    fn receive(&self, input: Input) {
        let now = self.now();
        let input = match input {
            Input::ClientRequest { reply_to, .. } if self.stopping.get() => {
                let body = ReplyBody::Outcome(Outcome::of(Status::ShuttingDown));
                let reply = ClientReply { now: now.wall, quorum_micros: 0, epoch: self.epoch(), body };
                return self.transport.clone().reply_client(reply_to, &reply);
            }
            other => other,
        };
        let mut node = self.node.borrow_mut();
        node.handle(now, input, &mut self.transport.clone());
        if let Some(until) = node.wants_reserve(now.wall) {
            self.writer.reserve(until);
        }
        if let Some(topology) = node.take_topology_to_store() {
            self.writer.store_topology(topology);
        }
        while let Some(read) = node.poll_read() {
            self.readers.read(read);
        }
        self.turn.notify_one();
        if node.is_disowned() {
            self.disowned.notify_one();
        }
        let epoch = node.placement().epoch();
        if self.epoch.replace(Some(epoch)) != Some(epoch) {
            let topology = node.placement().topology();
            let members: Vec<_> = topology.members.iter().map(|m| (m.id, m.address.clone())).collect();
            self.transport.want_peers(&members);
        }
        let wanted = node.next_timeout().unwrap_or(Tick::NEVER);
        if wanted < self.alarm.get() {
            self.alarm.set(wanted);
            self.earlier.notify_one();
        }
    }

    fn epoch(&self) -> Epoch {
        self.epoch.get().unwrap_or_default()
    }

    fn wall(&self) -> Millis {
        (self.wall)()
    }
}

impl Shell {
    fn now(&self) -> Now {
        let tick = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Now { tick: Tick(tick), wall: (self.wall)() }
    }

    async fn ring_alarms(&self) {
        loop {
            let wanted = self.node.borrow().next_timeout().unwrap_or(Tick::NEVER);
            self.alarm.set(wanted);
            // Nobody waits for longer than a day without being asked for something earlier.
            let wait = wanted.since(Tick(0)).min(self.start.elapsed() + Duration::from_secs(86_400));
            tokio::select! {
                biased;
                () = self.earlier.notified() => {}
                () = sleep_until(self.start + wait) => self.receive(Input::Timeout),
            }
        }
    }

    /// Lets the log's writer begin once everything that had come was handled, and not in the middle of it.
    async fn end_turns(&self) {
        loop {
            self.turn.notified().await;
            self.engine.end_turn();
        }
    }

    async fn report_progress(&self) {
        loop {
            let progress = self.writer.progress().await;
            self.take_in(progress);
        }
    }

    /// Goes on with what was read for the node.
    async fn report_reads(&self) {
        loop {
            for done in self.readers.done().await {
                self.receive(Input::Read(done));
            }
        }
    }

    /// What goes on besides what is received; never ends.
    async fn run_parts(&self) {
        tokio::select! {
            biased;
            () = self.ring_alarms() => {}
            () = self.report_progress() => {}
            () = self.report_reads() => {}
            () = self.end_turns() => {}
            () = self.readers.run_task() => {}
            () = self.writer.run_task() => {}
        }
    }

    fn take_in(&self, progress: Progress) {
        if let Some(until) = progress.reserved {
            self.receive(Input::Reserved { until });
        }
        if progress.topology {
            self.receive(Input::TopologyStored);
        }
        if progress.log {
            self.receive(Input::Durable);
        }
        if let Some(error) = progress.failed {
            let error: &(dyn std::error::Error + 'static) = &error;
            tracing::error!(error, "the disk failed; restart the node once it is repaired");
        }
    }

    async fn stop(&self, patience: Duration) {
        tracing::info!("stopping");
        self.stopping.set(true);
        self.transport.drain();
        tokio::select! {
            biased;
            answered = timeout(patience, self.transport.idle()) => {
                if answered.is_err() {
                    tracing::warn!("stopping although some requests are not answered yet");
                }
            }
            () = self.run_parts() => {}
        }
        self.take_in(self.writer.stop());
        let clients_know = timeout(LAST_WORDS, self.transport.finish_clients()).await.is_ok();
        let all_heard = timeout(GOODBYE, self.transport.close(Status::ShuttingDown, "the node stops")).await.is_ok();
        tracing::info!(clients_know, all_heard, "stopped");
    }
}
