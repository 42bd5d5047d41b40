//! Many writers and readers of one key at mixed levels, over a network that loses, repeats, delays and reorders, with proposers in between.

use std::collections::BTreeMap;
use std::time::Duration;

use dunlin_protocol::register::{RecordView, RegisterRequest};
use dunlin_protocol::{Answer, Ballot, Level, Millis, Quorums, Record, ReplicaSet, Stamp, Tick};
use dunlin_quorum::{Read, ReadEffect, ReadEnding, Write, WriteEffect, WriteEnding};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::cluster::{Cluster, PATIENCE, SPECULATE_AFTER, of, record};
use crate::proposer::Proposer;

enum Machine {
    Write { machine: Write, record: Record },
    Read(Read),
    Proposer(Proposer),
}

struct Flight {
    machine: Machine,
    level: Level,
    started: u64,
}

enum Packet {
    Request(RegisterRequest),
    Answer(Answer),
}

/// What later quorum reads must not go back behind.
#[derive(Clone, Copy, Debug)]
struct Fact {
    at: u64,
    /// The newest plain record that it rests on.
    base: Stamp,
    ballot: Ballot,
}

/// How often things happened: a model in which nothing interesting happens proves nothing.
#[derive(Debug, Default)]
struct Counts {
    written: u32,
    written_low: u32,
    found: u32,
    found_low: u32,
    found_serial: u32,
    low_beside_pending: u32,
    write_backs: u32,
    installs: u32,
    serial_writes: u32,
    untried: u32,
    serial_reads: u32,
    chosen: u32,
    timeouts: u32,
    failed: u32,
}

struct Model<'a> {
    seed: u64,
    random: StdRng,
    quorums: Quorums,
    cluster: Cluster,
    now: u64,
    flights: Vec<Flight>,
    /// By the time at which they arrive, and a number of their own.
    packets: BTreeMap<(u64, u64), (usize, usize, Packet)>,
    sent: u64,
    reliable: bool,
    /// How many requests in a hundred are lost.
    loss: u32,
    /// For each record that was proposed: the plain record below it.
    bases: BTreeMap<Stamp, Stamp>,
    facts: Vec<Fact>,
    /// Plain records that nobody stores, by what their writes said.
    untried: Vec<Stamp>,
    counts: &'a mut Counts,
}

impl<'a> Model<'a> {
    fn new(seed: u64, counts: &'a mut Counts) -> Self {
        let random = StdRng::seed_from_u64(seed);
        let quorums = match seed % 3 {
            0 => Quorums::majority(3),
            1 => Quorums::majority(5),
            _ => Quorums::joint(of(&[0, 1, 2]), of(&[1, 2, 3])),
        };
        Self {
            seed,
            random,
            quorums,
            cluster: Cluster::new(quorums.all().len()),
            now: 100,
            flights: Vec::new(),
            packets: BTreeMap::new(),
            sent: 0,
            reliable: false,
            loss: [2, 8, 25, 45][(seed / 108 % 4) as usize],
            bases: BTreeMap::new(),
            facts: Vec::new(),
            untried: Vec::new(),
            counts,
        }
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_ratio(percent, 100)
    }

    /// Whether the key stays plain in this run.
    fn is_plain(&self) -> bool {
        self.seed % 4 == 3
    }

    fn replicas(&self) -> usize {
        if self.seed % 3 == 1 { 5 } else { 3 }
    }

    /// A stamp of its own; `skew` milliseconds behind the newest.
    fn draw(&mut self, skew: u64) -> Stamp {
        self.now += 1;
        Stamp::new(Millis(self.now - skew), 0, self.now)
    }

    fn begin(&mut self) {
        let level = match self.random.random_range(0..8) {
            0 | 1 => Level::ONE,
            2 => "two".parse().expect("a level"),
            3 => Level::All,
            _ => Level::Quorum,
        };
        let deadline = Tick(self.now + self.random.random_range(20..400));
        let all = self.quorums.all();
        let mut order: Vec<usize> = all.iter().collect();
        let first = self.random.random_range(0..order.len());
        order.rotate_left(first);
        // From few writes to as many as reads.
        let writes = [2, 5, 10][(self.seed / 12 % 3) as usize];
        let machine = match self.random.random_range(0..20) {
            0 if !self.is_plain() => {
                let write = self.chance(70).then(|| record(self.draw(0)));
                return self.begin_serial(self.now, write);
            }
            choice if choice < writes => {
                let skew = self.random.random_range(0..60);
                let record = record(self.draw(skew));
                let resend = self.chance(10);
                let mut write = Write::new(self.quorums, self.replicas(), all, level, record.clone(), resend, deadline)
                    .with_patience(PATIENCE);
                write.start(Tick(self.now));
                Machine::Write { machine: write, record }
            }
            choice => {
                let want_value = choice % 4 > 0;
                let mut read =
                    Read::new(self.quorums, self.replicas(), all, order, level, want_value, SPECULATE_AFTER, deadline);
                read.start(Tick(self.now));
                Machine::Read(read)
            }
        };
        self.flights.push(Flight { machine, level, started: self.now });
        self.drive(self.flights.len() - 1);
    }

    fn begin_serial(&mut self, started: u64, write: Option<Record>) {
        let ballot = self.draw(0);
        let proposer = Proposer::new(self.quorums, ballot, write);
        let request = proposer.start();
        self.flights.push(Flight { machine: Machine::Proposer(proposer), level: Level::Serial, started });
        self.send_all(self.flights.len() - 1, &request);
    }

    fn send_all(&mut self, flight: usize, request: &RegisterRequest) {
        for replica in self.quorums.all().iter() {
            self.post(flight, replica, Packet::Request(request.clone()));
        }
    }

    fn drive(&mut self, flight: usize) {
        loop {
            match &mut self.flights[flight].machine {
                Machine::Write { machine, .. } => match machine.poll_effect() {
                    Some(WriteEffect::Send { replica, request }) => self.send(flight, replica, request),
                    Some(WriteEffect::Finish(ending)) => self.end_write(flight, ending),
                    None => return,
                },
                Machine::Read(machine) => match machine.poll_effect() {
                    Some(ReadEffect::Send { replica, request }) => self.send(flight, replica, request),
                    Some(ReadEffect::Finish(ending)) => self.end_read(flight, ending),
                    None => return,
                },
                Machine::Proposer(_) => return,
            }
        }
    }

    fn send(&mut self, flight: usize, replica: usize, request: RegisterRequest) {
        let is_read = matches!(self.flights[flight].machine, Machine::Read(_));
        self.counts.write_backs += u32::from(is_read && matches!(request, RegisterRequest::Write { .. }));
        self.counts.installs += u32::from(matches!(request, RegisterRequest::Install { .. }));
        if !self.reliable && self.chance(3) {
            return self.answer(flight, replica, Answer::NotSent);
        }
        self.post(flight, replica, Packet::Request(request));
    }

    fn end_write(&mut self, flight: usize, ending: WriteEnding) {
        let Flight { machine: Machine::Write { record, .. }, level, started } = &self.flights[flight] else {
            return;
        };
        match ending {
            WriteEnding::Written { version, got } => {
                assert_eq!(version, record.stamp);
                if level.is_quorum(self.replicas()) {
                    assert!(usize::from(got) >= self.quorums.size(), "{ending:?}");
                    self.counts.written += 1;
                    self.facts.push(Fact { at: self.now, base: version, ballot: Ballot::ZERO });
                } else {
                    self.counts.written_low += 1;
                }
            }
            WriteEnding::GoSerial { tried } => {
                self.counts.serial_writes += 1;
                if !tried {
                    self.counts.untried += 1;
                    self.untried.push(record.stamp);
                }
                self.begin_serial(*started, Some(record.clone()));
            }
            WriteEnding::Timeout { .. } => self.counts.timeouts += 1,
            WriteEnding::Failed { .. } => self.counts.failed += 1,
            WriteEnding::Unavailable { .. } => panic!("all are thought alive"),
        }
    }

    fn end_read(&mut self, flight: usize, ending: ReadEnding) {
        let Flight { machine: Machine::Read(_), level, started } = self.flights[flight] else {
            return;
        };
        match ending {
            ReadEnding::Found { record, ballot } => {
                self.check_record(&record, ballot);
                if level.is_quorum(self.replicas()) {
                    self.counts.found += 1;
                    self.learn(started, record.head.stamp, ballot);
                } else {
                    self.counts.found_low += 1;
                    let pending = self.cluster.registers.iter().any(|r| r.pending.is_some());
                    self.counts.low_beside_pending += u32::from(pending);
                }
            }
            ReadEnding::GoSerial if self.is_plain() => {}
            ReadEnding::GoSerial => {
                self.counts.serial_reads += 1;
                self.begin_serial(started, None);
            }
            ReadEnding::Timeout { .. } => self.counts.timeouts += 1,
            ReadEnding::Failed { .. } => self.counts.failed += 1,
            ReadEnding::Unavailable { .. } => panic!("all are thought alive"),
        }
    }

    /// What is answered was written or chosen, and is what was stored.
    fn check_record(&mut self, record: &RecordView, ballot: Ballot) {
        let stored = self.cluster.record(record.head.stamp);
        assert_eq!(record.head, stored.head());
        assert!(record.content.as_ref().is_none_or(|content| *content == stored.content));
        if !ballot.is_zero() {
            self.counts.found_serial += 1;
            let accepted = self.cluster.accepted.get(&ballot).copied().unwrap_or(ReplicaSet::EMPTY);
            assert!(self.quorums.is_quorum(accepted), "seed {}: {ballot:?} was answered, not chosen", self.seed);
        }
    }

    /// An operation that began at `started` rests on this; so does every later one.
    fn learn(&mut self, started: u64, stamp: Stamp, ballot: Ballot) {
        let base = match ballot.is_zero() {
            true => stamp,
            false => self.bases.get(&stamp).copied().unwrap_or(stamp),
        };
        for fact in self.facts.iter().filter(|fact| fact.at < started) {
            assert!(
                base >= fact.base && ballot >= fact.ballot,
                "seed {}: from {started} to {} {stamp:?} at {ballot:?} over {base:?}, after {fact:?}",
                self.seed,
                self.now
            );
        }
        self.facts.push(Fact { at: self.now, base, ballot });
    }

    fn answer(&mut self, flight: usize, replica: usize, answer: Answer) {
        let (now, fresh) = (Tick(self.now), self.draw(0));
        match &mut self.flights[flight].machine {
            Machine::Write { machine, .. } => machine.handle(now, replica, answer),
            Machine::Read(machine) => machine.handle(now, replica, answer),
            Machine::Proposer(proposer) => {
                let step = proposer.handle(replica, answer, fresh);
                if let Some((stamp, rests_on)) = step.proposed {
                    let base = self.bases.get(&rests_on).copied().unwrap_or(rests_on);
                    self.bases.insert(stamp, base);
                }
                if let Some((stamp, ballot)) = step.chosen {
                    self.counts.chosen += 1;
                    let started = self.flights[flight].started;
                    self.learn(started, stamp, ballot);
                }
                if let Some(request) = step.send {
                    self.send_all(flight, &request);
                }
            }
        }
        self.drive(flight);
    }

    fn post(&mut self, flight: usize, replica: usize, packet: Packet) {
        // Most are quick and some very late.
        let delay = if self.chance(15) { self.random.random_range(20..400) } else { self.random.random_range(1..6) };
        self.sent += 1;
        self.packets.insert((self.now + delay, self.sent), (flight, replica, packet));
    }

    fn deliver(&mut self) {
        while let Some(first) = self.packets.first_entry().filter(|first| first.key().0 <= self.now) {
            let (flight, replica, packet) = first.remove();
            self.arrive(flight, replica, packet);
        }
    }

    fn arrive(&mut self, flight: usize, replica: usize, packet: Packet) {
        let faulty = !self.reliable;
        match packet {
            Packet::Request(request) => {
                if faulty && self.chance(self.loss) {
                    if self.chance(50) {
                        self.post(flight, replica, Packet::Answer(Answer::Lost));
                    }
                    return;
                }
                let reply = self.cluster.handle(replica, &request);
                let answer = if faulty && self.chance(3) { Answer::Lost } else { Answer::Reply(reply) };
                self.post(flight, replica, Packet::Answer(answer));
                if faulty && self.chance(5) {
                    self.post(flight, replica, Packet::Request(request));
                }
            }
            Packet::Answer(answer) => {
                if faulty && self.chance(5) {
                    return;
                }
                if faulty && self.chance(5) {
                    self.post(flight, replica, Packet::Answer(answer.clone()));
                }
                self.answer(flight, replica, answer);
            }
        }
    }

    fn time_out(&mut self) {
        for flight in 0..self.flights.len() {
            let now = Tick(self.now);
            match &mut self.flights[flight].machine {
                Machine::Write { machine, .. } if machine.poll_timeout().is_some_and(|at| at <= now) => {
                    machine.handle_timeout(now);
                }
                Machine::Read(machine) if machine.poll_timeout().is_some_and(|at| at <= now) => {
                    machine.handle_timeout(now);
                }
                _ => continue,
            }
            self.drive(flight);
        }
    }

    fn run(&mut self) {
        // From few operations at a time to many.
        let busy = [3, 6, 12][(self.seed / 36 % 3) as usize];
        for _ in 0..800 {
            self.now += 1;
            if self.chance(busy) {
                self.begin();
            }
            self.deliver();
            self.time_out();
        }
        // The network heals: everything ends, and what is read at last rests on all that was promised.
        self.reliable = true;
        while !self.packets.is_empty() {
            self.now += 1;
            self.deliver();
            self.time_out();
        }
        self.now += 1000;
        self.time_out();
        assert!(!self.untried.iter().any(|stamp| self.cluster.was_stored(*stamp)), "seed {}", self.seed);
        let unfinished = self.flights.iter().filter(|flight| match &flight.machine {
            Machine::Write { machine, .. } => !machine.is_done(),
            Machine::Read(machine) => !machine.is_done(),
            Machine::Proposer(_) => false,
        });
        assert_eq!(unfinished.count(), 0, "seed {}", self.seed);
        let found = self.counts.found + self.counts.chosen;
        let order = self.quorums.all().iter().collect();
        let deadline = Tick(self.now) + Duration::from_secs(1);
        let (quorums, all) = (self.quorums, self.quorums.all());
        let mut read = Read::new(quorums, self.replicas(), all, order, Level::All, true, SPECULATE_AFTER, deadline);
        read.start(Tick(self.now));
        self.flights.push(Flight { machine: Machine::Read(read), level: Level::All, started: self.now });
        self.drive(self.flights.len() - 1);
        while !self.packets.is_empty() {
            self.now += 1;
            self.deliver();
            self.time_out();
        }
        assert!(self.counts.found + self.counts.chosen > found, "seed {}: the last read found nothing", self.seed);
    }
}

#[test]
fn quorum_reads_never_go_back_and_show_what_was_acknowledged() {
    let mut counts = Counts::default();
    for seed in 0..432 {
        Model::new(seed, &mut counts).run();
    }
    let Counts { written, written_low, found, found_low, found_serial, low_beside_pending, .. } = counts;
    let Counts { write_backs, installs, serial_writes, untried, serial_reads, chosen, timeouts, failed, .. } = counts;
    for count in [written, written_low, found, found_low, found_serial, low_beside_pending, write_backs]
        .into_iter()
        .chain([installs, serial_writes, untried, serial_reads, chosen, timeouts, failed])
    {
        assert!(count >= 100, "too little happened: {counts:?}");
    }
}
