//! `Air`: what lies between the sockets, and what can happen to packets there.
//!
//! turmoil hands packets from socket to socket at once; when one arrives, if ever, how often and in which state, is decided here, because turmoil's
//! own faults break whole links. A sender asks [`Air::carry`] and marks each packet with the time at which its receiver may see it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use dunlin_protocol::Tick;

use crate::network::Traffic;
use crate::random::Random;
use crate::trace::Trace;
use crate::world::{CLIENTS, NODES};

/// Whoever has a socket: the nodes, then the clients.
pub(super) type Site = usize;

const SITES: usize = NODES + CLIENTS;
/// Where nodes listen.
const NODE_PORT: u16 = 7400;
/// The port of the first client; all clients share a machine.
const CLIENT_PORT: u16 = 9000;

/// Where a node's machine is.
pub(super) fn node_ip(node: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 168, 7, node as u8 + 1))
}

/// Where the clients' machine is.
pub(super) fn clients_ip() -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 168, 7, 100))
}

/// A site's address.
pub(super) fn address_of(site: Site) -> SocketAddr {
    match site.checked_sub(NODES) {
        None => SocketAddr::new(node_ip(site), NODE_PORT),
        Some(client) => SocketAddr::new(clients_ip(), CLIENT_PORT + client as u16),
    }
}

fn site_at(address: SocketAddr) -> Option<Site> {
    (0..SITES).find(|site| address_of(*site) == address)
}

fn name(site: Site) -> String {
    match site.checked_sub(NODES) {
        None => format!("n{}", site + 1),
        Some(client) => format!("c{client}"),
    }
}

/// One way between two sites.
#[derive(Debug, Clone)]
struct Path {
    /// The usual time from one to the other.
    latency: Duration,
    /// The faults that block it.
    blocked: Vec<usize>,
    /// The faults that lose packets on it, each with its probability.
    lossy: Vec<(usize, f64)>,
    /// The faults that slow it down.
    slow: Vec<(usize, Duration)>,
}

/// How often packets suffer without any fault.
#[derive(Debug, Clone, Copy)]
struct Everyday {
    loss: f64,
    twice: f64,
    damage: f64,
    late: f64,
}

/// A packet that will arrive.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) due: Tick,
    pub(super) bytes: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Air {
    random: Random,
    everyday: Everyday,
    paths: Vec<Path>,
    /// The nodes that are there; for one that is not, the fault that keeps it down, if one does.
    up: [bool; NODES],
    down_by: [Option<usize>; NODES],
    hits: Vec<u64>,
    traffic: Traffic,
    pub(super) trace: Trace,
}

impl Air {
    pub(super) fn new(faults: usize, mut random: Random, trace: Trace) -> Self {
        // Half of the runs have a clean network.
        let share = if random.chance(0.5) { 0.0 } else { random.fraction() };
        let everyday = Everyday { loss: 0.01 * share, twice: 0.01 * share, damage: 0.002 * share, late: 0.01 * share };
        // From one rack to a continent.
        let spread = random.weighted(&[(4, 300), (3, 2_000), (1, 25_000)]);
        let mut paths: Vec<Path> = Vec::with_capacity(SITES * SITES);
        for from in 0..SITES {
            for to in 0..SITES {
                let latency = match to < from {
                    true => paths[to * SITES + from].latency,
                    false => random.duration(Duration::from_micros(60), Duration::from_micros(60 + spread)),
                };
                paths.push(Path { latency, blocked: Vec::new(), lossy: Vec::new(), slow: Vec::new() });
            }
        }
        Self {
            random,
            everyday,
            paths,
            up: [false; NODES],
            down_by: [None; NODES],
            hits: vec![0; faults],
            traffic: Traffic::default(),
            trace,
        }
    }

    /// How the network is, for a person.
    pub(super) fn manner(&self) -> String {
        if self.everyday.loss > 0.0 { "quic, rough".to_owned() } else { "quic, clean".to_owned() }
    }

    pub(super) fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// How many packets a fault dropped or delayed, and what else it was counted for.
    pub(super) fn hits(&self, fault: usize) -> u64 {
        self.hits[fault]
    }

    /// A fault that is none of the network's own hit something.
    pub(super) fn hit(&mut self, fault: usize, times: u64) {
        self.hits[fault] += times;
    }

    // ---- faults

    pub(super) fn block(&mut self, fault: usize, from: Site, to: Site) {
        self.path(from, to).blocked.push(fault);
    }

    pub(super) fn lose(&mut self, fault: usize, from: Site, to: Site, probability: f64) {
        self.path(from, to).lossy.push((fault, probability));
    }

    pub(super) fn slow(&mut self, fault: usize, from: Site, to: Site, by: Duration) {
        self.path(from, to).slow.push((fault, by));
    }

    /// Takes back all that a fault did.
    pub(super) fn mend(&mut self, fault: usize) {
        for path in &mut self.paths {
            path.blocked.retain(|f| *f != fault);
            path.lossy.retain(|(f, _)| *f != fault);
            path.slow.retain(|(f, _)| *f != fault);
        }
    }

    pub(super) fn set_up(&mut self, node: usize) {
        self.up[node] = true;
        self.down_by[node] = None;
    }

    pub(super) fn set_down(&mut self, node: usize, fault: Option<usize>) {
        self.up[node] = false;
        self.down_by[node] = fault;
    }

    fn path(&mut self, from: Site, to: Site) -> &mut Path {
        &mut self.paths[from * SITES + to]
    }

    // ---- packets

    /// A packet is sent: it arrives not at all, once, or twice.
    pub(super) fn carry(&mut self, now: Tick, from: Site, to: SocketAddr, bytes: &[u8]) -> [Option<Arrival>; 2] {
        let len = bytes.len();
        self.traffic.sent += 1;
        self.traffic.bytes += len as u64;
        let Some(to) = site_at(to) else {
            self.traffic.dropped += 1;
            return [None, None];
        };
        if let Some(why) = self.swallows(from, to) {
            self.traffic.dropped += 1;
            let numbers = [from as u64, to as u64, len as u64];
            self.trace.add(now, why, &numbers, || format!("{} to {}: {len} bytes", name(from), name(to)));
            return [None, None];
        }
        let due = now + self.latency(from, to);
        let numbers = [from as u64, to as u64, len as u64, due.0];
        self.trace.add(now, "sent", &numbers, || format!("{} to {}: {len} bytes", name(from), name(to)));
        let mut first = Arrival { due, bytes: bytes.to_vec() };
        if self.everyday.damage > 0.0 && self.random.chance(self.everyday.damage) {
            let bit = self.random.index(len * 8);
            first.bytes[bit / 8] ^= 1 << (bit % 8);
            self.trace.add(now, "damaged", &[bit as u64], || format!("at bit {bit}"));
        }
        let mut second = None;
        if self.everyday.twice > 0.0 && self.random.chance(self.everyday.twice) {
            self.traffic.doubled += 1;
            let due = due + self.random.exponential(Duration::from_millis(20));
            second = Some(Arrival { due, bytes: bytes.to_vec() });
            self.trace.add(now, "doubled", &[due.0], String::new);
        }
        [Some(first), second]
    }

    /// A socket takes a packet.
    pub(super) fn took(&mut self, now: Tick, site: Site, len: usize) {
        self.trace.add(now, "took", &[site as u64, len as u64], || format!("{}: {len} bytes", name(site)));
    }

    fn swallows(&mut self, from: Site, to: Site) -> Option<&'static str> {
        if to < NODES && !self.up[to] {
            if let Some(fault) = self.down_by[to] {
                self.hits[fault] += 1;
            }
            return Some("nobody");
        }
        let path = &self.paths[from * SITES + to];
        if let Some(fault) = path.blocked.first() {
            self.hits[*fault] += 1;
            return Some("blocked");
        }
        for (fault, probability) in &path.lossy {
            if self.random.chance(*probability) {
                self.hits[*fault] += 1;
                return Some("lost");
            }
        }
        (self.everyday.loss > 0.0 && self.random.chance(self.everyday.loss)).then_some("lost")
    }

    /// A way's time, with the jitter of queues.
    fn latency(&mut self, from: Site, to: Site) -> Duration {
        let path = &self.paths[from * SITES + to];
        let mut latency = path.latency.mul_f64(0.9 + 0.3 * self.random.fraction());
        for (fault, by) in &path.slow {
            self.hits[*fault] += 1;
            self.traffic.delayed += 1;
            latency += by.mul_f64(0.5 + self.random.fraction());
        }
        if self.everyday.late > 0.0 && self.random.chance(self.everyday.late) {
            latency += self.random.exponential(Duration::from_millis(30));
        }
        latency
    }
}
