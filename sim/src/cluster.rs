//! `Host`: a machine of the cluster, with a disk that outlives its node, a clock that is never quite right, and the shell that production has
//! around a node: a log writer, a timer, and the small files.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dunlin_membership::{Founders, decode_topology};
use dunlin_node::{ColdRead, CoordinatorConfig, Input, Node, NodeConfig, Outbox, ReadDone, ReplyTo};
use dunlin_protocol::message::{ClientReply, PeerReply, PeerRequest};
use dunlin_protocol::{
    BootNumber, DataId, Member, Millis, NodeId, Now, OpId, Partitioning, Stamp, Tick, Times, Topology,
};
use dunlin_storage::{ClockFile, Engine, KeyRef, MemoryDisk, Options, load_blob, store_blob};

use crate::network::ConnectionId;
use crate::random::Random;

/// The name of the small file that holds the newest topology.
const TOPOLOGY: &str = "TOPOLOGY";
/// The first moment of every run, by a right clock.
pub(crate) const EPOCH: Millis = Millis(1_800_000_000_000);

/// A physical clock: off by something, fast or slow by a little, and sometimes set.
#[derive(Clone, Debug)]
pub(crate) struct WallClock {
    offset_millis: i64,
    drift_millionths: i64,
    step_millis: i64,
}

impl WallClock {
    pub(crate) fn new(random: &mut Random) -> Self {
        let most = random.weighted(&[(2, 5), (2, 200), (1, 1_500)]);
        Self {
            offset_millis: random.below(2 * most) as i64 - most as i64,
            drift_millionths: random.below(400) as i64 - 200,
            step_millis: 0,
        }
    }

    pub(crate) fn read(&self, tick: Tick) -> Millis {
        let passed = (tick.0 / 1_000_000) as i64;
        let drifted = passed + passed * self.drift_millionths / 1_000_000;
        Millis((EPOCH.0 as i64 + drifted + self.offset_millis + self.step_millis) as u64)
    }

    /// Sets it off by so much, in addition to how wrong it is anyway.
    pub(crate) fn step(&mut self, millis: i64) {
        self.step_millis = millis;
    }
}

/// What a node said in one step.
#[derive(Debug)]
pub(crate) enum Said {
    /// On a connection, to whoever is at its other end.
    Frame(ConnectionId, Bytes),
    /// The same, as a datagram.
    Datagram(ConnectionId, Bytes),
}

/// A node that runs.
pub(crate) struct Running {
    node: Node,
    engine: Arc<Engine>,
    clock_file: ClockFile,
    boot: BootNumber,
    /// When its timer is set to; `Tick::NEVER`: it is not.
    timer: Tick,
    is_writing: bool,
}

pub(crate) struct Host {
    pub(crate) id: NodeId,
    disk: Arc<MemoryDisk>,
    pub(crate) clock: WallClock,
    /// The first epoch, which every founder computes for itself.
    founding: Topology,
    /// Its data directory's id, which lives as long as the disk.
    data: DataId,
    random: Random,
    options: Options,
    /// What the engines of earlier lives did.
    upkeep: Upkeep,
    /// For the reads that the node does not wait for.
    reads: Random,
    /// How often it has started or stopped: what was planned for an earlier life does not happen.
    pub(crate) life: u32,
    pub(crate) peers: BTreeMap<NodeId, ConnectionId>,
    running: Option<Running>,
    /// The usual time of a sync.
    sync_time: Duration,
    /// How much longer a sync takes at the moment.
    pub(crate) slow_disk: Duration,
    /// What the shell noticed, as faults of its own making: an engine that cannot be opened, a poisoned log.
    pub(crate) failed: Option<String>,
    /// What was found damaged when the node last started.
    pub(crate) damage: Option<String>,
}

/// What the world is to do after a step of a node.
#[derive(Debug, Default)]
pub(crate) struct After {
    pub(crate) said: Vec<Said>,
    /// The log writer begins, and is done after this.
    pub(crate) write: Option<Duration>,
    /// A mark of the clock is being written, and is durable after this.
    pub(crate) reserve: Option<(Millis, Duration)>,
    /// The timer is to be set to this.
    pub(crate) timer: Option<Tick>,
    /// The disk reads, after this.
    pub(crate) reads: Vec<(Duration, ColdRead)>,
}

impl Host {
    pub(crate) fn new(id: NodeId, founding: Topology, mut random: Random) -> Self {
        let clock = WallClock::new(&mut random);
        let sync_time = random.duration(Duration::from_micros(50), Duration::from_millis(4));
        let mut reads = random.fork("reads", 0);
        let disk = cold_disk(&mut reads);
        let options = engine_options(&mut random.fork("engine", 0));
        Self {
            id,
            options,
            upkeep: Upkeep::default(),
            disk: Arc::new(disk),
            reads,
            data: DataId(u128::from(random.next()) << 1 | 1),
            clock,
            founding,
            random,
            life: 0,
            peers: BTreeMap::new(),
            running: None,
            sync_time,
            slow_disk: Duration::ZERO,
            failed: None,
            damage: None,
        }
    }

    pub(crate) fn disk(&self) -> &MemoryDisk {
        &self.disk
    }

    pub(crate) fn is_up(&self) -> bool {
        self.running.is_some()
    }

    pub(crate) fn boot(&self) -> BootNumber {
        self.running.as_ref().map_or(BootNumber(0), |r| r.boot)
    }

    pub(crate) fn node(&self) -> Option<&Node> {
        self.running.as_ref().map(|r| &r.node)
    }

    pub(crate) fn engine(&self) -> Option<&Arc<Engine>> {
        self.running.as_ref().map(|r| &r.engine)
    }

    /// Starts the node over what is on the disk, as production does.
    pub(crate) fn start(&mut self) -> Result<(), StartError> {
        assert!(self.running.is_none(), "a node starts once a life");
        self.life += 1;
        self.peers.clear();
        let disk: Arc<MemoryDisk> = self.disk.clone();
        let clock_file = ClockFile::open(&*disk)?;
        let topology: Topology = match load_blob(&*disk, TOPOLOGY)? {
            Some(bytes) => decode_topology(&bytes)?,
            None => self.founding.clone(),
        };
        let (engine, recovery) = Engine::open(disk, self.options)?;
        let engine = Arc::new(engine);
        let suspects = engine.suspect_partitions();
        self.damage = (!suspects.is_empty()).then(|| format!("{:?}", recovery.damaged));
        let config = NodeConfig {
            node: self.id,
            data: self.data,
            boot: clock_file.boot(),
            reserve: clock_file.reserved(),
            topology,
            times: Times::default(),
            coordinator: CoordinatorConfig::default(),
            seed: self.random.next(),
        };
        let node = Node::new(config, engine.clone());
        let boot = clock_file.boot();
        self.running = Some(Running { node, engine, clock_file, boot, timer: Tick::NEVER, is_writing: false });
        Ok(())
    }

    /// The node ends without a word: mostly power goes, and with it what had not been synced; sometimes only the process is killed.
    pub(crate) fn crash(&mut self) {
        self.life += 1;
        self.peers.clear();
        let Some(running) = self.running.take() else { return };
        self.upkeep.add(&running.engine);
        if self.random.chance(0.5) {
            // The log's last batch was on its way: written in part, and not synced.
            self.disk.stop_at(self.disk.operations() + self.random.between(1, 3));
            let _ = running.engine.write_pending();
            self.disk.stop_at(u64::MAX);
        }
        drop(running);
        match self.random.chance(0.8) {
            true => self.disk.crash(self.random.next()),
            false => self.disk.kill(),
        }
    }

    /// What the engines of all its lives did.
    pub(crate) fn upkeep(&self) -> Upkeep {
        let mut upkeep = self.upkeep;
        if let Some(running) = &self.running {
            upkeep.add(&running.engine);
        }
        upkeep
    }

    /// A bit flips; whether there was one.
    pub(crate) fn rot(&mut self) -> bool {
        flip_a_bit(&self.disk, &mut self.random)
    }

    /// Leaves the disk no more than a few writes.
    pub(crate) fn fill_disk(&mut self) {
        let left = self.random.below(16 << 10);
        self.disk.set_capacity(Some(self.disk.used() + left));
    }

    /// There is room again.
    pub(crate) fn mend_disk(&mut self) {
        self.disk.set_capacity(None);
        self.disk.fail_sync(u64::MAX);
        self.slow_disk = Duration::ZERO;
    }

    /// Something happens to the node.
    pub(crate) fn handle(&mut self, tick: Tick, input: Input, after: &mut After) {
        let now = Now { tick, wall: self.clock.read(tick) };
        let Some(running) = &mut self.running else { return };
        let mut outbox = Mouth { peers: &self.peers, said: &mut after.said, buffer: BytesMut::new() };
        // The node waits for nothing.
        self.disk.watch(true);
        running.node.handle(now, input, &mut outbox);
        self.disk.watch(false);
        if let Some(until) = running.node.wants_reserve(now.wall) {
            let delay = self.sync_time + self.slow_disk;
            after.reserve = Some((until, delay));
        }
        while let Some(topology) = running.node.take_topology_to_store() {
            match store_blob(&*self.disk, TOPOLOGY, &topology) {
                Ok(()) => running.node.handle(now, Input::TopologyStored, &mut outbox),
                Err(error) => self.failed = Some(format!("the topology cannot be stored: {error}")),
            }
        }
        while let Some(read) = running.node.poll_read() {
            after.reads.push((read_time(&mut self.reads) + self.slow_disk, read));
        }
        if !running.is_writing && running.engine.stats().pending_bytes > 0 {
            running.is_writing = true;
            let time = self.sync_time.mul_f64(0.5 + self.random.fraction()) + self.slow_disk;
            after.write = Some(time);
        }
        if running.engine.is_poisoned() && self.failed.is_none() {
            self.failed = Some("its log could not be written".to_owned());
        }
        if let Some(next) = running.node.next_timeout()
            && next < running.timer
        {
            running.timer = next;
            after.timer = Some(next);
        }
    }

    /// The timer that was set is due.
    pub(crate) fn timeout(&mut self, tick: Tick, after: &mut After) {
        let Some(running) = &mut self.running else { return };
        if running.timer > tick {
            // It was set to an earlier time meanwhile, and has been dealt with.
            return;
        }
        running.timer = Tick::NEVER;
        match running.node.next_timeout() {
            Some(next) if next > tick => {
                running.timer = next;
                after.timer = Some(next);
            }
            Some(_) => self.handle(tick, Input::Timeout, after),
            None => {}
        }
    }

    /// The log writer's step is done: what was appended until now is on the disk.
    pub(crate) fn write(&mut self, tick: Tick, after: &mut After) {
        let Some(running) = &mut self.running else { return };
        running.is_writing = false;
        // An error poisons the engine; the node is told all the same, and answers what waits with it.
        let _ = running.engine.write_pending();
        // A step of upkeep beside it. What fails is tried again, or has poisoned the engine.
        let _ = running.engine.maintain(8 << 10);
        self.handle(tick, Input::Durable, after);
    }

    /// The disk reads for the node: what there is now, which gets to the node after a time.
    pub(crate) fn read(&mut self, read: ColdRead) -> Option<(Duration, ReadDone)> {
        let running = self.running.as_ref()?;
        Some((read_time(&mut self.reads), read.carry_out(&running.engine)))
    }

    /// The clock's mark is on the disk.
    pub(crate) fn reserved(&mut self, tick: Tick, until: Millis, after: &mut After) {
        let Some(running) = &mut self.running else { return };
        match running.clock_file.reserve(until) {
            Ok(()) => self.handle(tick, Input::Reserved { until }, after),
            Err(error) => self.failed = Some(format!("the clock's mark cannot be stored: {error}")),
        }
    }
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("a small file: {0}")]
    File(#[from] dunlin_storage::FileError),
    #[error("the engine: {0} ({0:?})")]
    Open(#[from] dunlin_storage::OpenError),
    #[error("the stored topology: {0}")]
    Topology(#[from] dunlin_membership::TopologyError),
}

/// A new disk. Of what a node wants to read none, some or all would have to be waited for.
pub(crate) fn cold_disk(random: &mut Random) -> MemoryDisk {
    let disk = MemoryDisk::new();
    let percent = random.weighted(&[(1, 0), (1, 10), (2, 50), (2, 100)]);
    disk.set_cold(percent, random.next());
    disk
}

/// Half of the time that a read takes: before or after the disk has looked.
pub(crate) fn read_time(random: &mut Random) -> Duration {
    let most = random.weighted(&[(6, 200), (3, 5_000), (1, 50_000)]);
    random.duration(Duration::from_micros(10), Duration::from_micros(most))
}

/// Small segments, memtables and tables, so that a run goes through many; with some nodes every value lies in a segment, so that there is something to
/// collect.
pub(crate) fn engine_options(random: &mut Random) -> Options {
    let segment_bytes = random.weighted(&[(1, 8 << 10), (1, 32 << 10)]);
    Options {
        segment_bytes,
        pending_limit_bytes: 32 << 10,
        disk_reserve_bytes: 8 << 10,
        shards: 4,
        inline_bytes: random.weighted(&[(1, 0), (1, 64)]),
        stage_bytes: random.weighted(&[(1, 1), (1, 64 << 10)]),
        memtable_bytes: random.weighted(&[(1, 2 << 10), (1, 16 << 10)]),
        table_bytes: random.weighted(&[(1, 1 << 10), (1, 16 << 10)]),
        cache_bytes: 64 << 10,
        ..Options::default()
    }
}

/// Flips a bit of what nobody writes to any more: tables, and all segments but the last few, which are written to, or made ahead. Whether there was
/// something.
pub(crate) fn flip_a_bit(disk: &MemoryDisk, random: &mut Random) -> bool {
    const WRITTEN_TO: usize = 4;
    let names = disk.names();
    let of = |dir: &str| names.iter().filter(|name| name.starts_with(dir)).collect::<Vec<_>>();
    let (mut sealed, tables) = (of("segments/"), of("tables/"));
    sealed.truncate(sealed.len().saturating_sub(WRITTEN_TO));
    let at_rest = if sealed.is_empty() || random.chance(0.5) { tables } else { sealed };
    if at_rest.is_empty() {
        return false;
    }
    let name = at_rest[random.index(at_rest.len())];
    let bits = disk.contents(name).map_or(0, |bytes| 8 * bytes.len() as u64);
    if bits > 0 {
        disk.flip_bit(name, random.below(bits));
    }
    bits > 0
}

/// What the engines of a run did in the background.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Upkeep {
    pub(crate) flushes: u64,
    pub(crate) merges: u64,
    pub(crate) collected: u64,
}

impl std::iter::Sum for Upkeep {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            flushes: sum.flushes + one.flushes,
            merges: sum.merges + one.merges,
            collected: sum.collected + one.collected,
        })
    }
}

impl Upkeep {
    /// Adds what an engine did in its life.
    pub(crate) fn add(&mut self, engine: &Engine) {
        let stats = engine.stats();
        self.flushes += stats.flushes;
        self.merges += stats.merges;
        self.collected += stats.collected;
    }
}

/// What a replica holds of a key at its highest ballot: a record, or one that it accepted and was not told to commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Holding {
    pub(crate) stamp: Stamp,
    /// It is no value, but that there is none.
    pub(crate) deleted: bool,
}

pub(crate) fn held(engine: &Engine, key: KeyRef<'_>) -> Holding {
    // A disk on which it has rotted has nothing of it that counts.
    let Ok(entry) = engine.entry(key) else { return Holding::default() };
    let register = entry.register;
    let head = register.pending.map_or(register.head(), |(_, held)| held.head);
    Holding { stamp: head.stamp, deleted: head.tombstone }
}

/// Whether a replica holds the plain record of this operation.
pub(crate) fn holds_plain(engine: &Engine, key: KeyRef<'_>, op_id: OpId) -> bool {
    engine.entry(key).is_ok_and(|entry| entry.register.ballot.is_zero() && entry.register.head().op_id == op_id)
}

/// How many replicas a key has.
pub(crate) const REPLICAS: u8 = 3;

/// The draft of the first epoch of a simulated cluster.
pub(crate) fn founding(nodes: usize) -> Topology {
    let member = |i: usize| Member {
        id: NodeId(i as u64 + 1),
        address: format!("node-{}:7400", i + 1),
        region: "sim".to_owned(),
        zone: format!("z{}", i + 1),
        weight: 64,
        data: DataId::UNKNOWN,
    };
    let founders = Founders {
        name: "sim".to_owned(),
        members: (0..nodes).map(member).collect(),
        partitioning: Partitioning::new(6).expect("64 partitions are allowed"),
    };
    founders.draft(REPLICAS).expect("the founders of a simulation are well-formed")
}

/// What a node speaks into: everything goes through the codec.
struct Mouth<'a> {
    peers: &'a BTreeMap<NodeId, ConnectionId>,
    said: &'a mut Vec<Said>,
    buffer: BytesMut,
}

impl Mouth<'_> {
    fn say(&mut self, connection: ConnectionId) {
        self.said.push(Said::Frame(connection, self.buffer.split().freeze()));
    }
}

impl Outbox for Mouth<'_> {
    fn request(&mut self, to: NodeId, request_id: u64, request: &PeerRequest) -> bool {
        let Some(connection) = self.peers.get(&to).copied() else { return false };
        request.write(&mut self.buffer, request_id).expect("requests fit a frame");
        self.say(connection);
        true
    }

    fn reply_peer(&mut self, to: ReplyTo, reply: &PeerReply) {
        reply.write(&mut self.buffer, to.request_id).expect("replies fit a frame");
        self.say(ConnectionId(to.stream));
    }

    fn reply_client(&mut self, to: ReplyTo, reply: &ClientReply) {
        reply.write(&mut self.buffer, to.request_id).expect("replies fit a frame");
        self.say(ConnectionId(to.stream));
    }

    fn datagram(&mut self, to: NodeId, bytes: &[u8]) {
        if let Some(connection) = self.peers.get(&to) {
            self.said.push(Said::Datagram(*connection, Bytes::copy_from_slice(bytes)));
        }
    }
}
