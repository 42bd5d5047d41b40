//! `World`: a cluster, its clients, what lies between them and what befalls them, one event after another.

mod trouble;

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dunlin_membership::Placement;
use dunlin_node::{Input, ReplyTo};
use dunlin_protocol::frame::{Frame, read_frame};
use dunlin_protocol::message::{ClientReply, ClientRequest, Opcode, PeerReply, PeerRequest};
use dunlin_protocol::register::RegisterRequest;
use dunlin_protocol::{Key, KeyspaceId, NodeId, OpId, Status, Tick};
use dunlin_storage::{Engine, KeyRef};

use crate::agenda::{Agenda, Event};
use crate::client::{Around, Client, Finished};
use crate::cluster::{After, Holding, Host, REPLICAS, Said, Upkeep, founding, held, holds_plain};
use crate::faults::{FINAL, Fault, HEALED, Kind, MOST, schedule};
use crate::network::{ConnectionId, End, Network, Traffic, other};
use crate::random::Random;
use crate::trace::{Trace, hash_bytes};
use crate::workload::{Phase, Usage, Workload, bursts};

/// Nodes of a simulated cluster.
pub(crate) const NODES: usize = 5;
/// Clients of one.
pub(crate) const CLIENTS: usize = 6;
/// The keys, and how each is used.
pub(crate) const USAGES: [Usage; 4] = [Usage::Serial, Usage::Mixed, Usage::Plain, Usage::Turning];
/// The first operations.
pub(crate) const FIRST_DEMAND: Tick = Tick(1_500_000_000);
/// Everybody looks whether all is the same everywhere.
pub(crate) const AUDIT: Tick = Tick(58_000_000_000);
/// The end.
pub(crate) const END: Tick = Tick(62_000_000_000);

/// All that is known of a run when it is over.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) keys: Vec<Key>,
    pub(crate) finished: Vec<Finished>,
    /// Operations that never came to an end.
    pub(crate) unfinished: usize,
    /// For each fault, how many messages and operations it hit.
    pub(crate) faults: Vec<(Fault, u64)>,
    pub(crate) traffic: Traffic,
    pub(crate) installs: u64,
    /// Reads that the nodes did not wait for.
    pub(crate) cold_reads: u64,
    /// For each key, the newest that each of its replicas held when all was over.
    pub(crate) replicas: Vec<Vec<(NodeId, Holding)>>,
    /// What all engines together did in the background.
    pub(crate) upkeep: Upkeep,
    /// What should never happen to a node.
    pub(crate) mishaps: Vec<String>,
    pub(crate) trace: Trace,
    pub(crate) manner: String,
}

/// The keys of a seed: other ones in each, so that they lie elsewhere.
pub(crate) fn keys_of(seed: u64) -> Vec<Key> {
    let name = |(i, usage): (usize, &Usage)| format!("{usage:?}-{i}-{seed}").to_lowercase();
    USAGES.iter().enumerate().map(|key| Key::new(name(key)).expect("a short name")).collect()
}

pub(crate) struct World {
    agenda: Agenda,
    network: Network,
    hosts: Vec<Host>,
    up: Vec<bool>,
    /// The fault that keeps a node down, if one does.
    down_by: Vec<Option<usize>>,
    clients: Vec<Client>,
    placement: Placement,
    faults: Vec<Fault>,
    keys: Vec<Key>,
    finished: Vec<Finished>,
    random: Random,
    trace: Trace,
    installs: u64,
    cold_reads: u64,
    mishaps: Vec<String>,
}

impl World {
    pub(crate) fn new(seed: u64, aloud: bool) -> Self {
        let random = Random::new(seed);
        let topology = founding(NODES);
        let placement = Placement::new(topology.clone().into());
        let keys = keys_of(seed);
        let faults = schedule(NODES, CLIENTS, &mut random.fork("faults", 0));
        let bursts = bursts(&faults, keys.len(), &mut random.fork("bursts", 0));
        let host = |i: usize| Host::new(NodeId(i as u64 + 1), topology.clone(), random.fork("host", i as u64));
        let client = |i: usize| {
            let workload = Workload::new(i, USAGES.to_vec(), random.fork("workload", i as u64));
            Client::new(i, NODES, keys.clone(), workload, bursts.clone(), random.fork("client", i as u64))
        };
        let hosts = (0..NODES).map(host).collect();
        let clients = (0..CLIENTS).map(client).collect();
        // One more than there are faults: what is nobody's doing.
        let network = Network::new(NODES, CLIENTS, MOST + 1, random.fork("network", 0));
        Self {
            agenda: Agenda::default(),
            network,
            hosts,
            up: vec![false; NODES],
            down_by: vec![None; NODES],
            clients,
            placement,
            faults,
            keys,
            finished: Vec::new(),
            random: random.fork("world", 0),
            trace: Trace::new(aloud),
            installs: 0,
            cold_reads: 0,
            mishaps: Vec::new(),
        }
    }

    /// Lets everything happen.
    pub(crate) fn run(mut self) -> Run {
        for node in 0..NODES {
            let delay = self.random.millis(0, 300);
            self.agenda.after(delay, Event::Restart { node });
        }
        for (number, fault) in self.faults.iter().enumerate() {
            self.trace.remark(Tick(0), || format!("fault {number}: {fault}"));
            self.agenda.at(fault.begins, Event::FaultBegins { fault: number });
            self.agenda.at(fault.ends, Event::FaultEnds { fault: number });
        }
        for (at, phase) in [(FIRST_DEMAND, Phase::First), (FINAL, Phase::Final), (AUDIT, Phase::Audit)] {
            self.agenda.at(at, Event::Demand { phase });
        }
        self.agenda.at(HEALED, Event::Heal);
        self.agenda.at(END, Event::End);
        while let Some(event) = self.agenda.pop() {
            if matches!(event, Event::End) {
                break;
            }
            self.happen(event);
        }
        self.trace.add(self.agenda.now(), "end", &[self.random.next()], String::new);
        self.report()
    }

    fn report(mut self) -> Run {
        for host in &self.hosts {
            match host.disk().waits() {
                0 => {}
                waits => self.mishaps.push(format!("node {} waited for its disk {waits} times", host.id.0)),
            }
        }
        let replicas = self.keys.iter().map(|key| self.replicas_of(key, held)).collect();
        let hits = |fault: usize| self.network.hits(fault);
        let faults = self.faults.iter().cloned().enumerate().map(|(i, fault)| (fault, hits(i))).collect();
        Run {
            unfinished: self.clients.iter().filter(|c| !c.is_idle()).count(),
            faults,
            traffic: self.network.traffic(),
            manner: format!("{:?}", self.network.manner()).to_lowercase(),
            installs: self.installs,
            cold_reads: self.cold_reads,
            replicas,
            upkeep: self.hosts.iter().map(Host::upkeep).sum(),
            keys: self.keys,
            finished: self.finished,
            mishaps: self.mishaps,
            trace: self.trace,
        }
    }

    /// What each replica of a key has of it; of one that is down, what there is by default.
    fn replicas_of<T: Default>(&self, key: &Key, look: impl Fn(&Engine, KeyRef<'_>) -> T) -> Vec<(NodeId, T)> {
        let partition = self.placement.partition_of(KeyspaceId::DEFAULT, key);
        let list =
            self.placement.preference_list(KeyspaceId::DEFAULT, partition).expect("the default keyspace is there");
        assert_eq!(list.nodes.len(), usize::from(REPLICAS), "every key has its replicas");
        let at = KeyRef { partition, keyspace: KeyspaceId::DEFAULT, key: key.as_bytes() };
        let seen = |node: &NodeId| {
            let engine = self.hosts[node.0 as usize - 1].engine();
            engine.map_or_else(T::default, |engine| look(engine, at))
        };
        list.nodes.iter().map(|node| (*node, seen(node))).collect()
    }

    /// What lies at a majority cannot be decided against (1.8): whoever decides meets it. So what a read below the majority may still show of it
    /// lies at fewer.
    fn check_not_applied(&mut self, key: usize, op_id: OpId) {
        let holders = self.replicas_of(&self.keys[key], |engine, at| holds_plain(engine, at, op_id));
        if holders.iter().filter(|(_, holds)| *holds).count() > holders.len() / 2 {
            let at = seconds(self.agenda.now());
            self.mishaps.push(format!(
                "{at:.3} s: operation {op_id} on key {key} lies at a majority and is told not to be applied"
            ));
        }
    }

    fn happen(&mut self, event: Event) {
        let now = self.agenda.now();
        match event {
            Event::Client { client } => {
                self.note("client", &[client as u64], || format!("c{client} looks"));
                self.with_client(client, |client, around| client.look(around));
            }
            Event::Timer { node, life } if self.hosts[node].life == life => {
                self.note("timer", &[node as u64], || format!("n{node}"));
                self.step(node, |host, after| host.timeout(now, after));
            }
            Event::Write { node, life } if self.hosts[node].life == life => {
                self.note("write", &[node as u64], || format!("n{node}"));
                self.step(node, |host, after| host.write(now, after));
            }
            Event::Reserved { node, life, until } if self.hosts[node].life == life => {
                self.note("reserve", &[node as u64, until.0], || format!("n{node} until {until}"));
                self.step(node, |host, after| host.reserved(now, until, after));
            }
            Event::Read { node, life, read } if self.hosts[node].life == life => {
                self.note("read", &[node as u64], || format!("n{node}: {read:?}"));
                self.cold_reads += 1;
                if let Some((delay, done)) = self.hosts[node].read(read) {
                    self.agenda.after(delay, Event::WasRead { node, life, done });
                }
            }
            Event::WasRead { node, life, done } if self.hosts[node].life == life => {
                self.note("wasread", &[node as u64], || format!("n{node}: {done:?}"));
                self.step(node, |host, after| host.handle(now, Input::Read(done), after));
            }
            Event::Timer { .. } | Event::Write { .. } | Event::Reserved { .. } => {}
            Event::Read { .. } | Event::WasRead { .. } => {}
            Event::Restart { node } => self.start(node),
            Event::Crash { fault, node } => self.crash(fault, node),
            Event::Opened { connection, end } => self.opened(connection, end),
            Event::Closed { connection, end } => self.closed(connection, end),
            Event::Dial { from, to } => self.dial(from, to),
            Event::DialFailed { client, node } => {
                self.note("nodial", &[client as u64, node as u64], || format!("c{client} to n{node}"));
                self.with_client(client, |client, around| client.dial_failed(node, around));
            }
            Event::Frame { connection, end, bytes } => self.frame(connection, end, bytes),
            Event::Datagram { connection, end, bytes } => self.datagram(connection, end, bytes),
            Event::Idle { from, to, since } => self.network.idle(from, to, since, &mut self.agenda),
            Event::FaultBegins { fault } => self.begin(fault),
            Event::FaultEnds { fault } => self.end(fault),
            Event::Heal => self.heal(),
            Event::Demand { phase } => self.demand(phase),
            Event::End => {}
        }
    }

    fn note(&mut self, kind: &'static str, numbers: &[u64], text: impl FnOnce() -> String) {
        self.trace.add(self.agenda.now(), kind, numbers, text);
    }

    // ---- clients

    fn with_client(&mut self, client: usize, act: impl FnOnce(&mut Client, &mut Around<'_>)) {
        let before = self.finished.len();
        let mut around = Around {
            agenda: &mut self.agenda,
            network: &mut self.network,
            placement: &self.placement,
            up: &self.up,
            finished: &mut self.finished,
        };
        act(&mut self.clients[client], &mut around);
        let mut not_applied = Vec::new();
        for finished in &self.finished[before..] {
            let status = finished.asked.as_ref().map_or(finished.outcome.status, |(_, asked)| asked.status);
            let numbers = [finished.client as u64, finished.intent.key as u64, u64::from(u16::from(status))];
            self.trace.add(self.agenda.now(), "finished", &numbers, || format!("{finished:?}"));
            if status == Status::NotApplied {
                not_applied.push((finished.intent.key, finished.op_id));
            }
        }
        for (key, op_id) in not_applied {
            self.check_not_applied(key, op_id);
        }
    }

    fn demand(&mut self, phase: Phase) {
        for client in 0..CLIENTS {
            let keys = (0..self.keys.len()).filter(|key| phase != Phase::First || key % CLIENTS == client).collect();
            self.with_client(client, |client, around| client.demand(phase, keys, around));
        }
    }

    // ---- nodes

    fn step(&mut self, node: usize, act: impl FnOnce(&mut Host, &mut After)) {
        let mut after = After::default();
        let host = &mut self.hosts[node];
        act(host, &mut after);
        let life = host.life;
        for said in after.said {
            self.say(node, said);
        }
        if let Some(delay) = after.write {
            self.agenda.after(delay, Event::Write { node, life });
        }
        if let Some((until, delay)) = after.reserve {
            self.agenda.after(delay, Event::Reserved { node, life, until });
        }
        if let Some(at) = after.timer {
            self.agenda.at(at, Event::Timer { node, life });
        }
        for (delay, read) in after.reads {
            self.agenda.after(delay, Event::Read { node, life, read });
        }
        if let Some(why) = self.hosts[node].failed.take() {
            self.fail(node, &why);
        }
    }

    fn say(&mut self, node: usize, said: Said) {
        let (Said::Frame(id, _) | Said::Datagram(id, _)) = &said;
        let Some(end) = self.end_of(*id, node) else {
            self.network.dropped();
            self.trace.remark(self.agenda.now(), || format!("{} has no connection left for {said:?}", name(node)));
            return;
        };
        match said {
            Said::Frame(id, bytes) => {
                if !self.network.send(id, end, bytes, &mut self.agenda) {
                    self.trace
                        .remark(self.agenda.now(), || format!("{}'s frame on {id:?} does not arrive now", name(node)));
                }
            }
            Said::Datagram(id, bytes) => self.network.send_datagram(id, end, bytes, &mut self.agenda),
        }
    }

    /// The end of a connection that a site has, while it is open there.
    fn end_of(&self, id: ConnectionId, site: usize) -> Option<End> {
        let connection = self.network.connection(id)?;
        (0..2).find(|end| connection.sites[*end] == site && connection.open[*end])
    }

    fn start(&mut self, node: usize) {
        if self.hosts[node].is_up() {
            return;
        }
        self.note("start", &[node as u64], || format!("n{node}"));
        if let Err(error) = self.hosts[node].start() {
            let now = self.agenda.now();
            let is_to_blame = |f: &Fault| f.kind.failing_disk_of() == Some(node) && f.begins <= now;
            if now < HEALED && self.faults.iter().any(is_to_blame) {
                self.trace.remark(now, || format!("n{node} does not start: {error}"));
                // Somebody will look after the disk, and try again.
                self.agenda.after(Duration::from_millis(500), Event::Restart { node });
                return;
            }
            self.mishaps.push(format!(
                "{:.3} s: node {} does not start: {error}",
                seconds(self.agenda.now()),
                node + 1
            ));
            return;
        }
        let has_rotted = |f: &Fault| f.kind == Kind::Rot { node } && f.begins <= self.agenda.now();
        if let Some(damage) = self.hosts[node].damage.take()
            && !self.faults.iter().any(has_rotted)
        {
            let at = seconds(self.agenda.now());
            self.mishaps.push(format!("{at:.3} s: node {} finds damage after a crash: {damage}", node + 1));
        }
        self.up[node] = true;
        self.down_by[node] = None;
        self.network.reset(node, &mut self.agenda);
        for to in (0..NODES).filter(|to| *to != node) {
            let delay = self.random.millis(0, 20);
            self.agenda.after(delay, Event::Dial { from: node, to });
        }
        let now = self.agenda.now();
        self.step(node, |host, after| host.handle(now, Input::Timeout, after));
    }

    // ---- connections

    fn dial(&mut self, from: usize, to: usize) {
        if !self.up[from] || self.network.is_connected(from, to) {
            return;
        }
        self.note("dial", &[from as u64, to as u64], || format!("n{from} to n{to}"));
        self.network.connect(from, to, self.up[to], &mut self.agenda);
    }

    fn opened(&mut self, id: ConnectionId, end: End) {
        if !self.network.open(id, end) {
            return;
        }
        let Some(sites) = self.network.connection(id).map(|c| c.sites) else { return };
        let (site, peer) = (sites[end], sites[other(end)]);
        self.note("opened", &[id.0, site as u64, peer as u64], || format!("{} to {}", name(site), name(peer)));
        let now = self.agenda.now();
        if site >= NODES {
            let theirs = self.hosts[peer].clock.read(now);
            self.with_client(site - NODES, |client, around| client.opened(id, peer, theirs, around));
        } else if peer < NODES {
            let (node, boot) = (self.hosts[peer].id, self.hosts[peer].boot());
            self.step(site, |host, after| {
                host.peers.insert(node, id);
                host.handle(now, Input::PeerConnected { node, boot }, after);
            });
        }
    }

    fn closed(&mut self, id: ConnectionId, end: End) {
        let Some(sites) = self.network.connection(id).map(|c| c.sites) else { return };
        if !self.network.close(id, end) {
            return;
        }
        let (site, peer) = (sites[end], sites[other(end)]);
        self.note("closed", &[id.0, site as u64, peer as u64], || format!("{} to {}", name(site), name(peer)));
        let now = self.agenda.now();
        if site >= NODES {
            self.with_client(site - NODES, |client, around| client.closed(id, peer, around));
        } else if peer < NODES {
            let node = self.hosts[peer].id;
            if self.hosts[site].peers.get(&node) == Some(&id) {
                self.step(site, |host, after| {
                    host.peers.remove(&node);
                    host.handle(now, Input::PeerLost { node }, after);
                });
            }
            let delay = self.random.millis(0, 200);
            self.agenda.after(delay, Event::Dial { from: site, to: peer });
        }
    }

    // ---- messages

    /// The site at an end, where it takes what arrives there.
    fn receiver(&mut self, id: ConnectionId, end: End) -> Option<(usize, usize)> {
        if self.network.is_open(id, end) {
            let sites = self.network.connection(id)?.sites;
            return Some((sites[end], sites[other(end)]));
        }
        self.network.dropped();
        let site = self.network.connection(id)?.sites[end];
        if let Some(Some(fault)) = self.down_by.get(site) {
            self.network.hit(*fault);
        }
        None
    }

    fn frame(&mut self, id: ConnectionId, end: End, bytes: Bytes) {
        let Some((site, from)) = self.receiver(id, end) else { return };
        let hash = hash_bytes(&bytes);
        let mut input = BytesMut::from(bytes);
        let frame = read_frame(&mut input).expect("the network damages nothing").expect("frames travel whole");
        self.note("frame", &[site as u64, from as u64, frame.request_id, hash], || {
            format!("{} to {}: {}", name(from), name(site), describe(&frame))
        });
        if site >= NODES {
            let reply = ClientReply::read(&frame).expect("nodes say what they mean");
            self.with_client(site - NODES, |client, around| client.replied(frame.request_id, reply, around));
            return;
        }
        self.count_hits(site);
        let input = self.input(id, from, &frame);
        let now = self.agenda.now();
        self.step(site, |host, after| host.handle(now, input, after));
    }

    fn input(&mut self, id: ConnectionId, from: usize, frame: &Frame) -> Input {
        let reply_to = ReplyTo { stream: id.0, request_id: frame.request_id };
        if from >= NODES {
            let request = ClientRequest::read(frame).expect("clients say what they mean");
            return Input::ClientRequest { reply_to, request };
        }
        let from = self.hosts[from].id;
        if frame.opcode == Opcode::PeerReply {
            let reply = PeerReply::read(frame).expect("nodes say what they mean");
            return Input::PeerReply { from, request_id: frame.request_id, reply };
        }
        let request = PeerRequest::read(frame).expect("nodes say what they mean");
        if let PeerRequest::Register(call) = &request
            && matches!(call.request, RegisterRequest::Install { .. })
        {
            self.installs += 1;
        }
        Input::PeerRequest { from, reply_to, request }
    }

    fn datagram(&mut self, id: ConnectionId, end: End, bytes: Bytes) {
        let Some((site, from)) = self.receiver(id, end) else { return };
        self.note("datagram", &[site as u64, from as u64, hash_bytes(&bytes)], || {
            format!("{} to {}: {} bytes", name(from), name(site), bytes.len())
        });
        let (now, from) = (self.agenda.now(), self.hosts[from].id);
        self.step(site, |host, after| host.handle(now, Input::Datagram { from, bytes }, after));
    }
}

fn seconds(at: Tick) -> f64 {
    at.0 as f64 / 1e9
}

fn name(site: usize) -> String {
    match site.checked_sub(NODES) {
        None => format!("n{}", site + 1),
        Some(client) => format!("c{client}"),
    }
}

/// A frame's contents, for a person.
fn describe(frame: &Frame) -> String {
    let id = frame.request_id;
    let text = match frame.opcode {
        Opcode::PeerReply => PeerReply::read(frame).map(|reply| format!("{reply:?}")),
        Opcode::ClientReply => ClientReply::read(frame).map(|reply| format!("{reply:?}")),
        Opcode::ClientOperate => ClientRequest::read(frame).map(|request| format!("{request:?}")),
        _ => PeerRequest::read(frame).map(|request| format!("{request:?}")),
    };
    format!("{id:x} {}", text.unwrap_or_else(|error| error.to_string()))
}
