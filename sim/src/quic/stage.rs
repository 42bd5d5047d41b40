//! The stage: a cluster inside turmoil, and the faults that a seed has for it.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use dunlin_membership::{Founders, Placement};
use dunlin_protocol::{DataId, Key, KeyspaceId, Member, NodeId, Partitioning, Tick};
use dunlin_storage::KeyRef;
use turmoil::Sim;

use super::air::{Air, address_of, clients_ip, node_ip};
use super::certificates::Certificates;
use super::machine::Machine;
use super::socket::{SharedAir, lock};
use super::user::{Record, User};
use crate::cluster::{EPOCH, Holding, REPLICAS, held};
use crate::faults::{FINAL, Fault, HEALED, Kind, MOST, schedule};
use crate::random::Random;
use crate::trace::Trace;
use crate::workload::{Phase, Workload, bursts};
use crate::world::{AUDIT, CLIENTS, END, FIRST_DEMAND, NODES, Run, USAGES, keys_of};

/// The step of the simulation: timers and packets are no finer than this anyway.
const STEP: Duration = Duration::from_millis(1);
/// A site whose connections are to break is silent for so long, longer than any idle timeout.
const CUT: Duration = Duration::from_secs(5);
/// A node that the disk keeps from starting tries again after this.
const NEXT_TRY: Duration = Duration::from_millis(500);

/// Something that is planned.
#[derive(Clone, Copy, Debug)]
enum Act {
    Begin { fault: usize },
    End { fault: usize },
    Crash { fault: usize, node: usize },
    Start { node: usize },
    Heal,
}

struct Stage<'a> {
    sim: Sim<'a>,
    air: SharedAir,
    machines: Vec<Rc<Machine>>,
    /// Which nodes run, or are about to.
    up: [bool; NODES],
    faults: Vec<Fault>,
    /// By time, and then in the order of planning.
    acts: BTreeMap<(Tick, u64), Act>,
    planned: u64,
    random: Random,
    mishaps: Vec<String>,
}

/// Plays a seed. `aloud`: print every event to standard error.
pub(crate) fn run(seed: u64, aloud: bool) -> Run {
    let random = Random::new(seed);
    let keys = keys_of(seed);
    let faults = faults_of(&random);
    let bursts = bursts(&faults, keys.len(), &mut random.fork("bursts", 0));
    let air = Air::new(MOST + 1, random.fork("network", 0), Trace::new(aloud));
    let air: SharedAir = Arc::new(Mutex::new(air));
    let certificates = Certificates::new().expect("certificates from fixed keys are sound");
    let founders = founders();
    let machine = |node: usize| {
        let tls = certificates.of_node(NodeId(node as u64 + 1), node_ip(node)).expect("the names are sound");
        Rc::new(Machine::new(node, founders.clone(), tls, air.clone(), random.fork("host", node as u64)))
    };
    let machines: Vec<_> = (0..NODES).map(machine).collect();
    let mut sim = turmoil::Builder::new()
        .tick_duration(STEP)
        .epoch(UNIX_EPOCH + Duration::from_millis(EPOCH.0))
        .rng_seed(seed)
        .min_message_latency(Duration::ZERO)
        .max_message_latency(Duration::ZERO)
        .udp_capacity(1 << 14)
        .simulation_duration(Duration::MAX)
        .build();
    for (node, machine) in machines.iter().enumerate() {
        let machine = machine.clone();
        sim.host(node_ip(node), move || machine.clone().live());
    }
    let record = Rc::new(Record::default());
    let user = |number: usize| User {
        number,
        keys: keys.clone(),
        workload: Workload::new(number, USAGES.to_vec(), random.fork("workload", number as u64)),
        bursts: bursts.clone(),
        phases: vec![(FIRST_DEMAND, Phase::First), (FINAL, Phase::Final), (AUDIT, Phase::Audit)],
        random: random.fork("client", number as u64),
        ca_pem: certificates.ca_pem().to_owned(),
        air: air.clone(),
        record: record.clone(),
    };
    let users: Vec<_> = (0..CLIENTS).map(user).collect();
    sim.client(clients_ip(), async move {
        let users: Vec<_> = users.into_iter().map(|user| tokio::task::spawn_local(user.live())).collect();
        for user in users {
            user.await??;
        }
        Ok(())
    });
    let mut stage = Stage {
        sim,
        air,
        machines,
        up: [true; NODES],
        faults,
        acts: BTreeMap::new(),
        planned: 0,
        random: random.fork("world", 0),
        mishaps: Vec::new(),
    };
    stage.play();
    stage.report(keys, &record, &founders)
}

/// The faults of a seed. QUIC's connections do not break but by silence.
fn faults_of(random: &Random) -> Vec<Fault> {
    let mut faults = schedule(NODES, CLIENTS, &mut random.fork("faults", 0));
    for fault in &mut faults {
        if matches!(fault.kind, Kind::Cut { .. }) {
            fault.ends = (fault.begins + CUT).min(HEALED);
        }
    }
    faults
}

fn founders() -> Founders {
    let member = |node: usize| Member {
        id: NodeId(node as u64 + 1),
        address: address_of(node).to_string(),
        region: "sim".to_owned(),
        zone: format!("z{}", node + 1),
        weight: 64,
        data: DataId::UNKNOWN,
    };
    Founders {
        name: "sim".to_owned(),
        members: (0..NODES).map(member).collect(),
        partitioning: Partitioning::new(6).expect("64 partitions are allowed"),
    }
}

impl Stage<'_> {
    fn now(&self) -> Tick {
        Tick(0) + self.sim.elapsed()
    }

    fn plan(&mut self, at: Tick, act: Act) {
        self.planned += 1;
        self.acts.insert((at, self.planned), act);
    }

    fn play(&mut self) {
        for fault in 0..self.faults.len() {
            let Fault { begins, ends, .. } = self.faults[fault];
            self.plan(begins, Act::Begin { fault });
            self.plan(ends, Act::End { fault });
        }
        self.plan(HEALED, Act::Heal);
        while self.now() < END {
            while let Some(entry) = self.acts.first_entry()
                && entry.key().0 <= Tick(0) + self.sim.elapsed()
            {
                let act = entry.remove();
                self.act(act);
            }
            if let Err(error) = self.sim.step() {
                let at = seconds(self.now());
                return self.mishaps.push(format!("{at:.3} s: {error}"));
            }
            self.look_after();
        }
        let last = self.random.next();
        lock(&self.air).trace.add(END, "end", &[last], String::new);
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Begin { fault } => self.begin(fault),
            Act::End { fault } => self.end(fault),
            Act::Crash { fault, node } => self.crash(Some(fault), node),
            Act::Start { node } => self.start(node),
            Act::Heal => {
                for node in 0..NODES {
                    self.machines[node].mend_disk();
                    self.start(node);
                }
            }
        }
    }

    // ---- nodes

    /// Does what an operator would: restarts a node that cannot go on.
    fn look_after(&mut self) {
        for node in (0..NODES).filter(|node| self.up[*node]).collect::<Vec<_>>() {
            let machine = &self.machines[node];
            if let Some(why) = machine.take_refusal() {
                match self.disk_fault_of(node) {
                    Some(fault) if self.now() < HEALED => self.fail(Some(fault), node, NEXT_TRY, &why),
                    _ => self.mishaps.push(format!(
                        "{:.3} s: node {} does not start: {why}",
                        seconds(self.now()),
                        node + 1
                    )),
                }
            } else if machine.engine().is_some_and(|engine| engine.is_poisoned()) {
                let fault = self.disk_fault_of(node);
                if fault.is_none() {
                    let at = seconds(self.now());
                    self.mishaps.push(format!("{at:.3} s: the log of node {} fails without a fault", node + 1));
                }
                let delay = self.random.millis(100, 1_500);
                self.fail(fault, node, delay, "its log could not be written");
            } else if let Some(damage) = machine.take_damage()
                && !self.faults.iter().any(|fault| fault.kind == Kind::Rot { node } && fault.begins <= self.now())
            {
                let at = seconds(self.now());
                self.mishaps.push(format!("{at:.3} s: node {} finds damage after a crash: {damage}", node + 1));
            }
        }
    }

    /// The last fault that may be why a node's disk fails.
    fn disk_fault_of(&self, node: usize) -> Option<usize> {
        let now = self.now();
        self.faults.iter().rposition(|fault| fault.kind.failing_disk_of() == Some(node) && fault.begins <= now)
    }

    fn fail(&mut self, fault: Option<usize>, node: usize, delay: Duration, why: &str) {
        {
            let mut air = lock(&self.air);
            air.trace.remark(self.now(), || format!("n{} fails: {why}", node + 1));
            if let Some(fault) = fault {
                air.hit(fault, 1);
            }
        }
        self.crash(fault, node);
        self.plan(self.now() + delay, Act::Start { node });
    }

    fn crash(&mut self, fault: Option<usize>, node: usize) {
        if !std::mem::replace(&mut self.up[node], false) {
            return;
        }
        let machine = self.machines[node].clone();
        {
            let in_flight = machine.in_flight() as u64;
            let mut air = lock(&self.air);
            air.trace.add(self.now(), "crash", &[node as u64, in_flight], || format!("n{}", node + 1));
            air.set_down(node, fault);
            if let Some(fault) = fault {
                air.hit(fault, in_flight);
            }
        }
        let engine = machine.before_crash();
        self.sim.crash(node_ip(node));
        machine.after_crash(engine);
    }

    fn start(&mut self, node: usize) {
        if std::mem::replace(&mut self.up[node], true) {
            return;
        }
        lock(&self.air).trace.add(self.now(), "start", &[node as u64], || format!("n{}", node + 1));
        self.sim.bounce(node_ip(node));
    }

    // ---- faults

    fn begin(&mut self, number: usize) {
        let (now, fault) = (self.now(), self.faults[number].clone());
        let air = self.air.clone();
        let mut air = lock(&air);
        air.trace.add(now, "fault", &[number as u64], || format!("{number}: {fault}"));
        let sites = NODES + CLIENTS;
        match &fault.kind {
            Kind::Partition { one } | Kind::OneWay { one } => {
                let both = matches!(fault.kind, Kind::Partition { .. });
                for from in one.iter().copied() {
                    for to in (0..sites).filter(|to| !one.contains(to)) {
                        air.block(number, from, to);
                        if both {
                            air.block(number, to, from);
                        }
                    }
                }
            }
            Kind::Cut { site } => {
                for other in (0..sites).filter(|other| other != site) {
                    air.block(number, *site, other);
                    air.block(number, other, *site);
                }
            }
            Kind::Loss { probability } => {
                for from in 0..sites {
                    (0..sites).for_each(|to| air.lose(number, from, to, *probability));
                }
            }
            Kind::Slow { site, by } => {
                for from in 0..sites {
                    let reaches = |to: &usize| site.is_none_or(|site| site == from || site == *to);
                    (0..sites).filter(reaches).for_each(|to| air.slow(number, from, to, *by));
                }
            }
            Kind::Crash { nodes, apart, down } => {
                for (i, node) in nodes.iter().copied().enumerate() {
                    let at = now + *apart * i as u32;
                    self.plan(at, Act::Crash { fault: number, node });
                    let down = down.mul_f64(0.5 + self.random.fraction()).max(STEP);
                    self.plan((at + down).min(HEALED), Act::Start { node });
                }
            }
            Kind::ClockStep { node, millis } => self.machines[*node].step_clock(*millis),
            Kind::SlowDisk { node, by } => self.machines[*node].slow_disk(*by),
            Kind::FailingDisk { node } => self.machines[*node].disk().fail_sync(1),
            Kind::FullDisk { node } => self.machines[*node].fill_disk(),
            Kind::Rot { node } => {
                if self.machines[*node].rot() {
                    air.hit(number, 1);
                }
            }
        }
    }

    fn end(&mut self, number: usize) {
        let mut air = lock(&self.air);
        air.trace.add(self.now(), "mended", &[number as u64], || number.to_string());
        air.mend(number);
        match self.faults[number].kind {
            Kind::ClockStep { node, .. } => self.machines[node].step_clock(0),
            Kind::SlowDisk { node, .. } => self.machines[node].slow_disk(Duration::ZERO),
            Kind::FullDisk { node } => self.machines[node].mend_disk(),
            _ => {}
        }
    }

    // ---- the end

    fn report(self, keys: Vec<Key>, record: &Record, founders: &Founders) -> Run {
        let topology = founders.draft(REPLICAS).expect("the founders of a simulation are well-formed");
        let placement = Placement::new(topology.into());
        let replicas: Vec<_> = keys.iter().map(|key| self.replicas_of(&placement, key)).collect();
        let Self { sim, air, machines, faults, mishaps, .. } = self;
        let upkeep = machines.iter().map(|machine| machine.upkeep()).sum();
        let installs = machines.iter().map(|machine| machine.repairs()).sum();
        let cold_reads = machines.iter().map(|machine| machine.cold_reads()).sum();
        let finished = record.finished.take();
        let unfinished = record.unfinished.get();
        // All that lives in it goes now: sockets are closed only while there is a world.
        drop(sim);
        let air = lock(&air);
        let mut run_faults = Vec::new();
        for (number, fault) in faults.into_iter().enumerate() {
            let mut hits = air.hits(number);
            if let Kind::ClockStep { node, .. } | Kind::SlowDisk { node, .. } | Kind::FullDisk { node } = fault.kind {
                // What went on at the node meanwhile, whether or not it took notice.
                let holds = |key: usize| replicas[key].iter().any(|(id, _)| id.0 == node as u64 + 1);
                let meanwhile = finished.iter().filter(|f| f.invoked < fault.ends && f.returned >= fault.begins);
                hits += meanwhile.filter(|f| holds(f.intent.key)).count() as u64;
            }
            run_faults.push((fault, hits));
        }
        Run {
            keys,
            finished,
            unfinished,
            faults: run_faults,
            traffic: air.traffic(),
            installs,
            cold_reads,
            replicas,
            upkeep,
            mishaps,
            trace: air.trace.clone(),
            manner: air.manner(),
        }
    }

    fn replicas_of(&self, placement: &Placement, key: &Key) -> Vec<(NodeId, Holding)> {
        let partition = placement.partition_of(KeyspaceId::DEFAULT, key);
        let list = placement.preference_list(KeyspaceId::DEFAULT, partition).expect("the default keyspace is there");
        assert_eq!(list.nodes.len(), usize::from(REPLICAS), "every key has its replicas");
        let at = KeyRef { partition, keyspace: KeyspaceId::DEFAULT, key: key.as_bytes() };
        let stamp = |node: &NodeId| {
            let engine = self.machines[node.0 as usize - 1].engine();
            engine.map_or_else(Holding::default, |engine| held(&engine, at))
        };
        list.nodes.iter().map(|node| (*node, stamp(node))).collect()
    }
}

fn seconds(at: Tick) -> f64 {
    at.0 as f64 / 1e9
}
