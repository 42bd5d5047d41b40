//! `Machine`: what a node runs on, with a disk and a clock that outlive it, and the server as production starts it.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dunlin_membership::Founders;
use dunlin_node::config::{Config, TlsSection};
use dunlin_node::transport::tls::NodeTls;
use dunlin_node::transport::{Socket, TransportSettings};
use dunlin_node::{Environment, Probe, ScrubSettings, Server, WriterPlace};
use dunlin_protocol::{DataId, NodeId};
use dunlin_storage::{Engine, MemoryDisk, Options};

use super::air::address_of;
use super::socket::{SharedAir, SimulatedSocket, lock, now};
use crate::cluster::{REPLICAS, Upkeep, WallClock, cold_disk, engine_options, flip_a_bit};
use crate::random::Random;

pub(super) struct Machine {
    node: usize,
    founders: Founders,
    tls: NodeTls,
    air: SharedAir,
    disk: MemoryDisk,
    clock: RefCell<WallClock>,
    random: RefCell<Random>,
    /// The usual time of a write.
    write_time: Duration,
    /// How much longer one takes at the moment.
    slow_disk: Cell<Duration>,
    /// Before the first start.
    delay: Cell<Duration>,
    probe: RefCell<Option<Probe>>,
    /// Why the node did not start.
    refused: RefCell<Option<String>>,
    /// What was found damaged at the last start.
    damage: RefCell<Option<String>>,
    /// Repairs of earlier lives.
    repairs: Cell<u64>,
    options: Options,
    /// What the engines of earlier lives did.
    upkeep: Cell<Upkeep>,
    /// Reads that the node did not wait for, in earlier lives.
    cold_reads: Cell<u64>,
}

impl Machine {
    pub(super) fn new(node: usize, founders: Founders, tls: NodeTls, air: SharedAir, mut random: Random) -> Self {
        Self {
            node,
            founders,
            tls,
            air,
            disk: cold_disk(&mut random.fork("reads", 0)),
            clock: RefCell::new(WallClock::new(&mut random)),
            write_time: random.duration(Duration::from_micros(50), Duration::from_millis(4)),
            slow_disk: Cell::new(Duration::ZERO),
            delay: Cell::new(random.millis(0, 300)),
            options: engine_options(&mut random.fork("engine", 0)),
            upkeep: Cell::new(Upkeep::default()),
            random: RefCell::new(random),
            probe: RefCell::new(None),
            refused: RefCell::new(None),
            damage: RefCell::new(None),
            repairs: Cell::new(0),
            cold_reads: Cell::new(0),
        }
    }

    pub(super) fn disk(&self) -> &MemoryDisk {
        &self.disk
    }

    /// The running node's engine.
    pub(super) fn engine(&self) -> Option<Arc<Engine>> {
        self.probe.borrow().as_ref()?.engine()
    }

    /// What the running node has under way.
    pub(super) fn in_flight(&self) -> usize {
        self.probe.borrow().as_ref().map_or(0, Probe::in_flight)
    }

    /// Records that were installed by repair, in all lives.
    pub(super) fn repairs(&self) -> u64 {
        self.repairs.get() + self.probe.borrow().as_ref().map_or(0, Probe::repairs)
    }

    /// What the engines of all lives did.
    pub(super) fn upkeep(&self) -> Upkeep {
        let mut upkeep = self.upkeep.get();
        if let Some(engine) = self.engine() {
            upkeep.add(&engine);
        }
        upkeep
    }

    /// A bit flips; whether there was one.
    pub(super) fn rot(&self) -> bool {
        flip_a_bit(&self.disk, &mut self.random.borrow_mut())
    }

    /// Reads that the node did not wait for, in all lives.
    pub(super) fn cold_reads(&self) -> u64 {
        self.cold_reads.get() + self.engine().map_or(0, |engine| engine.stats().cold_reads)
    }

    /// Why the node did not start; told once.
    pub(super) fn take_refusal(&self) -> Option<String> {
        self.refused.take()
    }

    /// What was found damaged at the last start; told once.
    pub(super) fn take_damage(&self) -> Option<String> {
        self.damage.take()
    }

    /// Sets the clock off by so much, in addition to how wrong it is anyway.
    pub(super) fn step_clock(&self, millis: i64) {
        self.clock.borrow_mut().step(millis);
    }

    pub(super) fn slow_disk(&self, by: Duration) {
        self.slow_disk.set(by);
    }

    /// Leaves the disk no more than a few writes.
    pub(super) fn fill_disk(&self) {
        let left = self.random.borrow_mut().below(16 << 10);
        self.disk.set_capacity(Some(self.disk.used() + left));
    }

    /// There is room again, and what should have failed will not.
    pub(super) fn mend_disk(&self) {
        self.disk.set_capacity(None);
        self.disk.fail_sync(u64::MAX);
        self.slow_disk.set(Duration::ZERO);
    }

    /// What of the node is needed after its end; before it ends.
    pub(super) fn before_crash(&self) -> Option<Arc<Engine>> {
        let engine = self.engine();
        self.repairs.set(self.repairs());
        self.upkeep.set(self.upkeep());
        self.cold_reads.set(self.cold_reads());
        *self.probe.borrow_mut() = None;
        engine
    }

    /// The node has ended without a word: mostly power goes, and with it what had not been synced; sometimes only the process is killed.
    pub(super) fn after_crash(&self, engine: Option<Arc<Engine>>) {
        let random = &mut *self.random.borrow_mut();
        if let Some(engine) = engine
            && random.chance(0.5)
        {
            // The log's last batch was on its way: written in part, and not synced. That it cannot be written is the point.
            self.disk.stop_at(self.disk.operations() + random.between(1, 3));
            let _ = engine.write_pending();
            self.disk.stop_at(u64::MAX);
        }
        match random.chance(0.8) {
            true => self.disk.crash(random.next()),
            false => self.disk.kill(),
        }
    }

    fn config(&self) -> Config {
        let random = &mut *self.random.borrow_mut();
        let mut rng_seed = [0; 32];
        rng_seed.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&random.next().to_le_bytes()));
        Config {
            id: NodeId(self.node as u64 + 1),
            data: PathBuf::new(),
            listen: address_of(self.node),
            founders: self.founders.clone(),
            replication: REPLICAS,
            tls: TlsSection { ca: PathBuf::new(), cert: PathBuf::new(), key: PathBuf::new() },
            storage: self.options,
            scrub: ScrubSettings::default(),
            network: TransportSettings { rng_seed: Some(rng_seed), ..TransportSettings::default() },
            shutdown: Duration::ZERO,
        }
    }

    /// One life of the node: ends only when it is dropped.
    pub(super) async fn live(self: Rc<Self>) -> turmoil::Result {
        tokio::time::sleep(self.delay.take()).await;
        let socket = SimulatedSocket::bind(self.node, self.air.clone()).await?;
        let (clock, disk) = (Rc::downgrade(&self), Rc::downgrade(&self));
        let machine = "a machine outlives what runs on it";
        let seed = self.random.borrow_mut().next();
        let data = self.random.borrow_mut().next();
        let environment = Environment {
            disk: Arc::new(self.disk.clone()),
            socket: Socket::Abstract(socket, Arc::new(quinn::TokioRuntime)),
            tls: self.tls.clone(),
            wall: Box::new(move || clock.upgrade().expect(machine).clock.borrow().read(now())),
            seed,
            data: DataId(u128::from(data) << 1 | 1),
            writer: WriterPlace::Task { latency: Rc::new(move || disk.upgrade().expect(machine).write_latency()) },
        };
        match Server::open(&self.config(), environment) {
            Ok(server) => {
                *self.probe.borrow_mut() = Some(server.probe());
                let suspects = self.engine().map(|engine| engine.suspect_partitions());
                let damage = suspects.filter(|suspects| !suspects.is_empty()).map(|suspects| format!("{suspects:?}"));
                *self.damage.borrow_mut() = damage;
                lock(&self.air).set_up(self.node);
                server.run(pending()).await?;
            }
            Err(error) => {
                *self.refused.borrow_mut() = Some(error.to_string());
                pending::<()>().await;
            }
        }
        Ok(())
    }

    fn write_latency(&self) -> Duration {
        self.write_time.mul_f64(0.5 + self.random.borrow_mut().fraction()) + self.slow_disk.get()
    }
}
