//! `Network`: what lies between nodes and clients, and what can happen to messages there.
//!
//! A message belongs to a connection, as on QUIC: there is one for each pair of nodes and one for each client and node it talks to. There are two
//! manners, one for a whole run. **Streams**: frames of a connection arrive in order, a lost packet only delays them, and what a partition holds up
//! arrives when it heals, unless the connection idles out first; then both ends learn that it is gone. **Rough**: each frame by itself is lost,
//! doubled or overtaken, as the protocol allows and QUIC never does. (Requests of clients are never doubled: an attempt's window of ballots belongs
//! to one coordinator.)

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use dunlin_protocol::Tick;

use crate::agenda::{Agenda, Event};
use crate::random::Random;

/// A connection's number; never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ConnectionId(pub(crate) u64);

/// One of the two ends of a connection: 0 is who made it.
pub(crate) type End = usize;

/// The other one.
pub(crate) fn other(end: End) -> End {
    1 - end
}

/// A connection on which nothing was heard for so long is lost: what the nodes' transport is set to.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3);
/// An attempt to connect is given up after this.
const CONNECT_ATTEMPT: Duration = Duration::from_millis(500);

/// Which kind of trouble messages meet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Manner {
    Streams,
    Rough,
}

/// One way between two sites.
#[derive(Clone, Debug)]
struct Path {
    /// The usual time from one to the other.
    latency: Duration,
    /// The faults that block it.
    blocked: Vec<usize>,
    blocked_since: Option<Tick>,
    /// The faults that lose packets on it, each with its probability.
    lossy: Vec<(usize, f64)>,
    /// The faults that slow it down.
    slow: Vec<(usize, Duration)>,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) sites: [usize; 2],
    /// Whether an end thinks that the connection is there.
    pub(crate) open: [bool; 2],
    /// Whether it ever was.
    was_open: [bool; 2],
    /// The latest arrival planned at each end.
    arrival: [Tick; 2],
    /// What waits for a blocked path to open, by the end it goes to.
    held: [Vec<Bytes>; 2],
}

/// What happened to messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Traffic {
    /// Frames and datagrams given to the network.
    pub sent: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Never arrived: blocked, lost, or on a connection that was gone.
    pub dropped: u64,
    /// Arrived late, by a fault.
    pub delayed: u64,
    /// Arrived twice.
    pub doubled: u64,
}

#[derive(Debug)]
pub(crate) struct Network {
    nodes: usize,
    manner: Manner,
    random: Random,
    /// How often packets are lost without any fault, in the time of faults.
    base_loss: f64,
    is_calm: bool,
    paths: Vec<Vec<Path>>,
    connections: BTreeMap<ConnectionId, Connection>,
    newest: u64,
    /// Between two nodes, the lower first.
    pairs: BTreeMap<(usize, usize), ConnectionId>,
    traffic: Traffic,
    /// How many messages each fault hit.
    hits: Vec<u64>,
}

impl Network {
    /// Sites are the nodes, then the clients.
    pub(crate) fn new(nodes: usize, clients: usize, faults: usize, mut random: Random) -> Self {
        let manner = if random.chance(0.5) { Manner::Streams } else { Manner::Rough };
        let base_loss = if random.chance(0.5) { 0.0 } else { random.fraction() * 0.01 };
        // From one rack to a continent.
        let spread = random.weighted(&[(4, 300), (3, 2_000), (1, 25_000)]);
        let sites = nodes + clients;
        let mut paths: Vec<Vec<Path>> = Vec::new();
        for from in 0..sites {
            let path = |to: usize| {
                let latency = match paths.get(to) {
                    // As far as the way back.
                    Some(row) => row[from].latency,
                    None => random.duration(Duration::from_micros(60), Duration::from_micros(60 + spread)),
                };
                Path { latency, blocked: Vec::new(), blocked_since: None, lossy: Vec::new(), slow: Vec::new() }
            };
            let row = (0..sites).map(path).collect();
            paths.push(row);
        }
        Self {
            nodes,
            manner,
            random,
            base_loss,
            is_calm: true,
            paths,
            connections: BTreeMap::new(),
            newest: 0,
            pairs: BTreeMap::new(),
            traffic: Traffic::default(),
            hits: vec![0; faults],
        }
    }

    pub(crate) fn manner(&self) -> Manner {
        self.manner
    }

    pub(crate) fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// How many messages a fault dropped or delayed.
    pub(crate) fn hits(&self, fault: usize) -> u64 {
        self.hits[fault]
    }

    pub(crate) fn connection(&self, id: ConnectionId) -> Option<&Connection> {
        self.connections.get(&id)
    }

    /// Whether this end takes what arrives.
    pub(crate) fn is_open(&self, id: ConnectionId, end: End) -> bool {
        self.connections.get(&id).is_some_and(|c| c.open[end])
    }

    // ---- faults

    /// Nothing is lost any more without a fault, or again.
    pub(crate) fn set_calm(&mut self, is_calm: bool) {
        self.is_calm = is_calm;
    }

    pub(crate) fn block(&mut self, fault: usize, from: usize, to: usize, agenda: &mut Agenda) {
        let path = &mut self.paths[from][to];
        path.blocked.push(fault);
        if path.blocked_since.is_none() {
            let since = agenda.now();
            path.blocked_since = Some(since);
            agenda.after(IDLE_TIMEOUT, Event::Idle { from, to, since });
        }
    }

    pub(crate) fn lose(&mut self, fault: usize, from: usize, to: usize, probability: f64) {
        self.paths[from][to].lossy.push((fault, probability));
    }

    pub(crate) fn slow(&mut self, fault: usize, from: usize, to: usize, by: Duration) {
        self.paths[from][to].slow.push((fault, by));
    }

    /// Takes back all that a fault did to paths. What was held up comes through when the senders try again.
    pub(crate) fn mend(&mut self, fault: usize, agenda: &mut Agenda) {
        for from in 0..self.paths.len() {
            for to in 0..self.paths.len() {
                let path = &mut self.paths[from][to];
                path.lossy.retain(|(f, _)| *f != fault);
                path.slow.retain(|(f, _)| *f != fault);
                path.blocked.retain(|f| *f != fault);
                if let Some(since) = path.blocked_since
                    && path.blocked.is_empty()
                {
                    path.blocked_since = None;
                    let longest = agenda.now().since(since).min(Duration::from_secs(1));
                    let backoff = self.random.duration(Duration::ZERO, longest);
                    self.let_through(from, to, backoff, agenda);
                }
            }
        }
    }

    fn let_through(&mut self, from: usize, to: usize, backoff: Duration, agenda: &mut Agenda) {
        let latency = self.paths[from][to].latency;
        for (id, connection) in &mut self.connections {
            for end in 0..2 {
                if connection.sites[end] == to && connection.sites[other(end)] == from {
                    let at = (agenda.now() + backoff + latency).max(connection.arrival[end]);
                    connection.arrival[end] = at;
                    for bytes in connection.held[end].drain(..) {
                        agenda.at(at, Event::Frame { connection: *id, end, bytes });
                    }
                }
            }
        }
    }

    // ---- connections

    /// Whether two nodes have a connection that neither end has given up, or are making one.
    pub(crate) fn is_connected(&self, a: usize, b: usize) -> bool {
        let pair = self.pairs.get(&(a.min(b), a.max(b)));
        pair.and_then(|id| self.connections.get(id)).is_some_and(|c| (0..2).all(|end| c.open[end] || !c.was_open[end]))
    }

    /// Tries to connect two sites that are both there. None: nobody answered; a client is told so later, a node tries again by itself.
    pub(crate) fn connect(&mut self, from: usize, to: usize, is_up: bool, agenda: &mut Agenda) -> Option<ConnectionId> {
        let reachable = is_up && self.paths[from][to].blocked.is_empty() && self.paths[to][from].blocked.is_empty();
        let lost = self.is_lost(from, to, 3) || self.is_lost(to, from, 3);
        if !reachable || lost {
            match from < self.nodes {
                true => agenda.after(self.random.millis(200, 700), Event::Dial { from, to }),
                false => agenda.after(CONNECT_ATTEMPT, Event::DialFailed { client: from - self.nodes, node: to }),
            }
            return None;
        }
        self.newest += 1;
        let id = ConnectionId(self.newest);
        let there = self.latency(from, to);
        let back = self.latency(to, from);
        // TLS 1.3 over QUIC: the answering side is ready when the third flight arrives.
        let dialler = agenda.now() + there + back;
        let listener = dialler + there;
        if from < self.nodes && to < self.nodes {
            let old = self.pairs.insert((from.min(to), from.max(to)), id);
            if let Some(old) = old {
                self.end_both(old, dialler.min(listener), agenda);
            }
        }
        let connection = Connection {
            sites: [from, to],
            open: [false, false],
            was_open: [false, false],
            arrival: [dialler, listener],
            held: [Vec::new(), Vec::new()],
        };
        self.connections.insert(id, connection);
        agenda.at(dialler, Event::Opened { connection: id, end: 0 });
        agenda.at(listener, Event::Opened { connection: id, end: 1 });
        Some(id)
    }

    /// An end is there. False: it is not to be any more.
    pub(crate) fn open(&mut self, id: ConnectionId, end: End) -> bool {
        match self.connections.get_mut(&id) {
            Some(connection) if !connection.was_open[end] => {
                connection.was_open[end] = true;
                connection.open[end] = true;
                true
            }
            _ => false,
        }
    }

    /// An end is gone. False: it was already.
    pub(crate) fn close(&mut self, id: ConnectionId, end: End) -> bool {
        let Some(connection) = self.connections.get_mut(&id) else { return false };
        let was_open = std::mem::replace(&mut connection.open[end], false);
        connection.was_open[end] = true;
        connection.held[end].clear();
        if connection.was_open == [true, true] && connection.open == [false, false] {
            // Nothing that is still on its way is taken by anybody.
            self.connections.remove(&id);
        }
        was_open
    }

    /// Both ends learn at once that the connection is gone.
    pub(crate) fn end_both(&mut self, id: ConnectionId, at: Tick, agenda: &mut Agenda) {
        for end in 0..2 {
            agenda.at(at, Event::Closed { connection: id, end });
        }
    }

    /// A path was blocked long enough that whoever listens there has given up.
    pub(crate) fn idle(&mut self, from: usize, to: usize, since: Tick, agenda: &mut Agenda) {
        if self.paths[from][to].blocked_since != Some(since) {
            return;
        }
        for (id, connection) in &self.connections {
            for end in 0..2 {
                if connection.sites[end] == to && connection.sites[other(end)] == from {
                    let keep_alive = self.random.millis(0, 900);
                    agenda.after(keep_alive, Event::Closed { connection: *id, end });
                    // The other end hears nothing more from then on.
                    agenda.after(keep_alive + IDLE_TIMEOUT, Event::Closed { connection: *id, end: other(end) });
                }
            }
        }
    }

    /// A node is gone: its ends are, and the others will notice.
    pub(crate) fn crash(&mut self, node: usize, agenda: &mut Agenda) {
        let mut gone = Vec::new();
        for (id, connection) in &self.connections {
            for end in 0..2 {
                if connection.sites[end] == node {
                    gone.push((*id, end));
                }
            }
        }
        for (id, end) in gone {
            agenda.after(IDLE_TIMEOUT, Event::Closed { connection: id, end: other(end) });
            self.close(id, end);
        }
    }

    /// A node is back: packets for its earlier life are answered with a reset.
    pub(crate) fn reset(&mut self, node: usize, agenda: &mut Agenda) {
        for (id, connection) in &self.connections {
            for end in 0..2 {
                if connection.sites[end] == node && !connection.open[end] && connection.was_open[end] {
                    let notices = self.random.millis(1, 200);
                    agenda.after(notices, Event::Closed { connection: *id, end: other(end) });
                }
            }
        }
    }

    /// The connections between two sites break, for no reason that either can see.
    pub(crate) fn cut(&mut self, fault: usize, a: usize, b: usize, agenda: &mut Agenda) {
        for (id, connection) in &mut self.connections {
            if connection.sites == [a, b] || connection.sites == [b, a] {
                self.hits[fault] += 1;
                for end in 0..2 {
                    connection.held[end].clear();
                    let notices = self.random.millis(0, 50);
                    agenda.after(notices, Event::Closed { connection: *id, end });
                }
            }
        }
    }

    // ---- messages

    /// Sends a frame from one end of a connection to the other. False: it is held up, or never arrives.
    pub(crate) fn send(&mut self, id: ConnectionId, from_end: End, bytes: Bytes, agenda: &mut Agenda) -> bool {
        self.traffic.sent += 1;
        self.traffic.bytes += bytes.len() as u64;
        let end = other(from_end);
        let Some(connection) = self.connections.get_mut(&id) else {
            self.traffic.dropped += 1;
            return false;
        };
        let (from, to) = (connection.sites[from_end], connection.sites[end]);
        let is_clients = from >= self.nodes || to >= self.nodes;
        if let Some(fault) = self.paths[from][to].blocked.first() {
            self.hits[*fault] += 1;
            match self.manner {
                Manner::Streams => {
                    self.traffic.delayed += 1;
                    connection.held[end].push(bytes);
                }
                Manner::Rough => self.traffic.dropped += 1,
            }
            return false;
        }
        match self.manner {
            Manner::Streams => {
                let mut delay = self.latency(from, to);
                let mut timeout = 2 * self.paths[from][to].latency + Duration::from_millis(10);
                while self.is_lost(from, to, 1) && timeout < IDLE_TIMEOUT {
                    self.traffic.delayed += 1;
                    delay += timeout;
                    timeout *= 2;
                }
                let connection = self.connections.get_mut(&id).expect("looked up above");
                let at = (agenda.now() + delay).max(connection.arrival[end]);
                connection.arrival[end] = at;
                agenda.at(at, Event::Frame { connection: id, end, bytes });
            }
            Manner::Rough => {
                // Nothing arrives before the handshake is over.
                let earliest = connection.arrival[end];
                if self.is_lost(from, to, 1) {
                    self.traffic.dropped += 1;
                    return false;
                }
                if !is_clients && self.random.chance(0.02) {
                    self.traffic.doubled += 1;
                    let late = self.latency(from, to) + self.random.exponential(Duration::from_millis(30));
                    let at = (agenda.now() + late).max(earliest);
                    agenda.at(at, Event::Frame { connection: id, end, bytes: bytes.clone() });
                }
                let mut delay = self.latency(from, to);
                if self.random.chance(0.02) {
                    delay += self.random.exponential(Duration::from_millis(100));
                }
                agenda.at((agenda.now() + delay).max(earliest), Event::Frame { connection: id, end, bytes });
            }
        }
        true
    }

    /// Sends a datagram: it arrives or not.
    pub(crate) fn send_datagram(&mut self, id: ConnectionId, from_end: End, bytes: Bytes, agenda: &mut Agenda) {
        self.traffic.sent += 1;
        self.traffic.bytes += bytes.len() as u64;
        let end = other(from_end);
        let Some(connection) = self.connections.get(&id) else {
            self.traffic.dropped += 1;
            return;
        };
        let (from, to) = (connection.sites[from_end], connection.sites[end]);
        if let Some(fault) = self.paths[from][to].blocked.first() {
            self.hits[*fault] += 1;
            self.traffic.dropped += 1;
            return;
        }
        if self.is_lost(from, to, 1) {
            self.traffic.dropped += 1;
            return;
        }
        if self.random.chance(0.01) {
            self.traffic.doubled += 1;
            agenda.after(self.random.millis(1, 50), Event::Datagram { connection: id, end, bytes: bytes.clone() });
        }
        let delay = self.latency(from, to);
        agenda.after(delay, Event::Datagram { connection: id, end, bytes });
    }

    /// A message came to an end that is not there any more.
    pub(crate) fn dropped(&mut self) {
        self.traffic.dropped += 1;
    }

    /// A fault that is none of the network's own hit a message or an operation.
    pub(crate) fn hit(&mut self, fault: usize) {
        self.hits[fault] += 1;
    }

    fn is_lost(&mut self, from: usize, to: usize, packets: u32) -> bool {
        let path = &self.paths[from][to];
        for (fault, probability) in &path.lossy {
            if (0..packets).any(|_| self.random.chance(*probability)) {
                self.hits[*fault] += 1;
                return true;
            }
        }
        !self.is_calm && self.base_loss > 0.0 && self.random.chance(self.base_loss)
    }

    /// A way's time, with the jitter of queues.
    fn latency(&mut self, from: usize, to: usize) -> Duration {
        let path = &self.paths[from][to];
        let mut latency = path.latency.mul_f64(0.9 + 0.3 * self.random.fraction());
        for (fault, by) in &path.slow {
            self.hits[*fault] += 1;
            self.traffic.delayed += 1;
            latency += by.mul_f64(0.5 + self.random.fraction());
        }
        latency
    }
}
