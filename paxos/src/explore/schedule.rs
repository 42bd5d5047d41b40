//! One seed: clients with their scripts, the coordinators' clocks, and a random order of everything that can happen.

mod clients;
mod told;

use std::time::Duration;

use dunlin_protocol::register::{RegisterReply, RegisterRequest};
use dunlin_protocol::{
    Answer, Condition, Content, HybridClock, Millis, Mutation, NodeId, Now, OpId, Quorums, Record, ReplicaSet, Stamp,
    Tick, Times, Window,
};

use crate::config::{Config, Context};
use crate::effect::{Effect, Ending};
use crate::goal::Goal;
use crate::proposer::Proposer;

use super::counts::Counts;
use super::history::is_linearizable;
use super::network::{Faults, Network};
use super::{Random, Rule};

const START: Millis = Millis(1_000_000_000);
const MAX_OPERATIONS: usize = 12;

/// What a seed is rich in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Focus {
    /// A little of everything.
    Broad,
    /// Conditional writes of the latest values on a bad network: proposals are left behind half accepted.
    Duels,
    /// Values that end while they are read by nodes whose clocks differ.
    Endings,
}

/// A coordinating node's clocks.
#[derive(Debug)]
struct Coordinator {
    clock: HybridClock,
    /// How far the physical clock is ahead of the slowest one.
    ahead: Duration,
}

#[derive(Clone, Debug)]
enum Asked {
    Read,
    Write { condition: Option<Condition>, mutation: Mutation, plain: bool },
    Outcome { of: usize },
}

#[derive(Clone, PartialEq, Debug)]
enum Status {
    Running,
    Answered(Ending),
    /// Nobody knows.
    Unknown,
    /// It ended without an answer and certainly without an effect.
    Void,
}

#[derive(Debug)]
struct Operation {
    asked: Asked,
    op_id: OpId,
    invoked: u64,
    answered: u64,
    status: Status,
    attempts: usize,
    /// The latest D of its attempts.
    limit: u64,
}

/// A coordinator at work on an attempt; none of it is left when it crashed.
#[derive(Debug)]
struct Machine {
    operation: usize,
    node: usize,
    client: usize,
    work: Option<Work>,
}

#[derive(Debug)]
enum Work {
    Plain { record: Record, yes: ReplicaSet, no: ReplicaSet, may_be_stored: bool, give_up_at: Tick },
    Serial(Box<Proposer>),
}

#[derive(Debug)]
struct Client {
    /// What is still to be done.
    left: usize,
    writes_plainly: bool,
    /// The machine that it waits for.
    waits_for: Option<usize>,
    /// The last version that it saw.
    version: Stamp,
}

/// A schedule under way.
#[derive(Debug)]
struct World {
    random: Random,
    broken: Option<Rule>,
    config: Config,
    tick: Tick,
    /// Counts what the clients see, for the order of the history.
    moment: u64,
    network: Network,
    nodes: Vec<Coordinator>,
    machines: Vec<Machine>,
    clients: Vec<Client>,
    operations: Vec<Operation>,
    /// The id of the last plain write: its client's next one lies above, whatever node it asks.
    last_plain: OpId,
    next_value: i64,
    focus: Focus,
    expiring: bool,
    with_queries: bool,
    counts: Counts,
    /// An answer does not fit the records.
    contradicts: bool,
}

/// Runs a seed. None: its history is illegal.
pub(super) fn run(seed: u64, broken: Option<Rule>) -> Option<Counts> {
    let mut world = World::new(seed, broken);
    world.run();
    world.finish();
    let legal = !world.contradicts && !world.network.contradicts && is_linearizable(&world.events()?);
    legal.then_some(world.counts)
}

impl World {
    fn new(seed: u64, broken: Option<Rule>) -> Self {
        let mut random = Random(seed);
        let focus = match seed % 8 {
            6 => Focus::Duels,
            7 => Focus::Endings,
            _ => Focus::Broad,
        };
        let faults = match focus {
            Focus::Broad => Faults {
                lost: random.pick(&[0, 3, 10, 25]),
                doubled: random.pick(&[0, 5, 20]),
                slow: random.pick(&[0, 10, 30]),
                accepts_lost: 0,
                refused: random.pick(&[0, 0, 0, 4]),
            },
            Focus::Duels => Faults { lost: 5, doubled: 5, slow: 10, accepts_lost: 60, refused: 0 },
            Focus::Endings => Faults { lost: 0, doubled: 0, slow: 5, accepts_lost: 0, refused: 0 },
        };
        let replicas = random.pick(&[3, 3, 3, 3, 5, 2]);
        let forgetful = random.percent(20);
        let times = Times {
            // Short enough for entries to be stripped while the schedule runs.
            op_lifetime: if forgetful { Duration::ZERO } else { Times::default().op_lifetime },
            max_clock_skew: Duration::from_secs(if forgetful { 2 } else { 10 }),
            ..Times::default()
        };
        let config = Config {
            k: random.pick(&[1, 1, 1, 2, 4, 64]),
            times,
            round_timeout: Duration::from_millis(20),
            inline_value_bytes: random.pick(&[0, 4096]),
        };
        let skew = if focus == Focus::Endings { 40 } else { random.pick(&[0, 0, 5, 300]) };
        let nodes = (0..4)
            .map(|node| {
                let mut clock = HybridClock::new(NodeId(node), Millis(0), &times);
                clock.set_reserve(Millis::MAX);
                clock.confirm(true);
                Coordinator { clock, ahead: Duration::from_millis(random.below(skew + 1) as u64) }
            })
            .collect();
        let writers = if focus == Focus::Broad { 1 + random.below(3) } else { 3 };
        let plain_writer = focus == Focus::Broad && random.percent(40);
        let client = |random: &mut Random, writes_plainly| Client {
            left: if focus == Focus::Duels { 1 + random.below(2) } else { 1 + random.below(4) },
            writes_plainly,
            waits_for: None,
            version: Stamp::ZERO,
        };
        let mut clients: Vec<Client> = (0..writers).map(|_| client(&mut random, false)).collect();
        if plain_writer {
            // One at most: stamps of several could be out of real-time order, which plain writes allow.
            clients.push(client(&mut random, true));
        }
        let expiring = focus == Focus::Endings || random.percent(25);
        let with_queries = random.percent(50);
        Self {
            network: Network::new(replicas, faults),
            random,
            broken,
            config,
            tick: Tick(0),
            moment: 0,
            nodes,
            machines: Vec::new(),
            clients,
            operations: Vec::new(),
            last_plain: OpId::ZERO,
            next_value: 100,
            focus,
            expiring,
            with_queries,
            counts: Counts::default(),
            contradicts: false,
        }
    }

    // ---- the order of things

    fn run(&mut self) {
        let timers = self.random.pick(&[1, 4, 12]);
        let quitting = if self.focus == Focus::Broad { self.random.pick(&[0, 2, 5]) } else { 0 };
        let repairs = self.random.pick(&[0, 0, 3]);
        for _ in 0..600 {
            self.tick = self.tick + Duration::from_micros(self.random.below(800) as u64);
            let die = self.random.below(100);
            if die < timers {
                self.fire_timer();
            } else if die < timers + quitting {
                self.quit();
            } else if die < timers + quitting + repairs {
                let (from, to) =
                    (self.random.below(self.network.replicas()), self.random.below(self.network.replicas()));
                self.network.install(from, to, self.wall());
            } else if die < 30 {
                self.begin();
            } else if !self.deliver(None) && !self.begin() && !self.fire_timer() {
                break;
            }
        }
    }

    /// The network heals; two more reads, which must succeed, see what became of it all.
    fn finish(&mut self) {
        // Clocks come near again too: a node that is dragged ahead draws nothing.
        self.tick = self.tick + Duration::from_secs(30);
        self.network.faults = Faults { lost: 0, doubled: 0, slow: 0, accepts_lost: 0, refused: 0 };
        let client = self.clients.len();
        self.clients.push(Client { left: 0, writes_plainly: false, waits_for: None, version: Stamp::ZERO });
        for _ in 0..2 {
            let operation = self.invoke(Asked::Read, 0);
            self.attempt(client, operation, 0);
            for _ in 0..2000 {
                if self.operations[operation].status != Status::Running {
                    break;
                }
                self.tick = self.tick + Duration::from_micros(100);
                let machine = self.clients[client].waits_for;
                if self.random.percent(4) {
                    self.deliver(None);
                } else if !self.deliver(machine) {
                    self.tick = self.tick + Duration::from_millis(1);
                    self.fire(machine.expect("still waiting"));
                }
            }
            let status = &self.operations[operation].status;
            assert!(
                self.broken.is_some() || matches!(status, Status::Answered(Ending::Read { .. })),
                "a read on a healed network ended as {status:?}"
            );
        }
    }

    /// Delivers a random request or answer (of this machine). False: there is none.
    fn deliver(&mut self, machine: Option<usize>) -> bool {
        let is_of = |m: usize| machine.is_none_or(|machine| machine == m);
        let requests: Vec<usize> =
            (0..self.network.requests.len()).filter(|&i| is_of(self.network.requests[i].machine)).collect();
        let replies: Vec<usize> =
            (0..self.network.replies.len()).filter(|&i| is_of(self.network.replies[i].machine)).collect();
        if requests.is_empty() && replies.is_empty() {
            return false;
        }
        let chosen = self.random.below(requests.len() + replies.len());
        let request = requests.get(chosen).copied();
        let reply = chosen.checked_sub(requests.len()).map(|at| replies[at]);
        if machine.is_none() && self.network.is_held(request, reply, &mut self.random) {
            return true;
        }
        match request {
            Some(at) => {
                let wall = self.wall();
                self.network.deliver_request(at, wall, &mut self.random);
            }
            None => {
                let reply = self.network.replies.swap_remove(reply.expect("one of the two"));
                self.answer(reply.machine, reply.replica, reply.round, reply.answer);
            }
        }
        true
    }

    fn wall(&self) -> Millis {
        Millis(START.0 + self.tick.0 / 1_000_000)
    }

    fn now(&self, node: usize) -> Now {
        Now { tick: self.tick, wall: self.wall() + self.nodes[node].ahead }
    }

    fn fire_timer(&mut self) -> bool {
        let waiting: Vec<usize> = (0..self.machines.len()).filter(|&m| self.timeout(m).is_some()).collect();
        if waiting.is_empty() {
            return false;
        }
        let machine = self.random.pick(&waiting);
        self.fire(machine);
        true
    }

    fn timeout(&self, machine: usize) -> Option<Tick> {
        match self.machines[machine].work.as_ref()? {
            Work::Plain { give_up_at, .. } => Some(*give_up_at),
            Work::Serial(proposer) => proposer.poll_timeout(),
        }
    }

    /// Time passes until the machine's timer.
    fn fire(&mut self, machine: usize) {
        let Some(at) = self.timeout(machine) else { return };
        self.tick = self.tick.max(at);
        match &self.machines[machine].work {
            Some(Work::Plain { .. }) => self.fall_back(machine, true),
            _ => self.drive(machine, |proposer, cx| proposer.handle_timeout(cx)),
        }
    }

    // ---- coordinators

    fn write_plainly(&mut self, machine: usize, mutation: Mutation) {
        let op_id = self.operations[self.machines[machine].operation].op_id;
        let record = match mutation {
            Mutation::Put { value, attributes, ttl_millis } => {
                let expires_at = if ttl_millis == 0 { Millis::NONE } else { Millis(op_id.wall().0 + ttl_millis) };
                Record::plain(op_id, Content::Value(value, attributes), expires_at)
            }
            _ => Record::plain(op_id, Content::Tombstone, Millis::NONE),
        };
        for replica in 0..self.network.replicas() {
            self.network.send(machine, replica, 0, RegisterRequest::Write { record: record.clone() }, &mut self.random);
        }
        let give_up_at = self.tick + self.config.round_timeout;
        let (yes, no) = (ReplicaSet::EMPTY, ReplicaSet::EMPTY);
        self.machines[machine].work = Some(Work::Plain { record, yes, no, may_be_stored: false, give_up_at });
    }

    /// 1.4: the plain write goes on as a serial one.
    fn fall_back(&mut self, machine: usize, tried: bool) {
        self.counts.fell_back += 1;
        let limit = self.operations[self.machines[machine].operation].limit;
        let deadline = self.tick + Duration::from_secs(1);
        self.counts.fell_back_untried += u64::from(!tried);
        self.propose(machine, tried, Window { floor: 0, limit }, deadline);
    }

    fn propose(&mut self, machine: usize, tried: bool, window: Window, deadline: Tick) {
        let operation = &self.operations[self.machines[machine].operation];
        let goal = match &operation.asked {
            Asked::Read => Goal::Read,
            Asked::Outcome { .. } => Goal::Outcome,
            Asked::Write { condition, mutation, .. } => {
                Goal::Write { condition: condition.clone(), mutation: mutation.clone() }
            }
        };
        let (quorums, seed) = (Quorums::majority(self.network.replicas()), self.random.next());
        let proposer = Proposer::new(self.config, quorums, goal, operation.op_id, tried, window, deadline, seed);
        let mut proposer = proposer.with_nearest(self.random.below(self.network.replicas()));
        proposer.broken = self.broken;
        self.machines[machine].work = Some(Work::Serial(Box::new(proposer)));
        self.drive(machine, |proposer, cx| proposer.start(cx));
    }

    fn drive(&mut self, machine: usize, with: impl FnOnce(&mut Proposer, &mut Context<'_>)) {
        let node = self.machines[machine].node;
        let now = self.now(node);
        let Some(Work::Serial(proposer)) = &mut self.machines[machine].work else { return };
        with(proposer, &mut Context { now, clock: &mut self.nodes[node].clock });
        let mut ending = None;
        while let Some(effect) = proposer.poll_effect() {
            match effect {
                Effect::Send { replica, round, request } => {
                    self.network.send(machine, replica, round, request, &mut self.random)
                }
                Effect::Finish(end) => assert!(ending.replace(end).is_none(), "an operation ends once"),
            }
        }
        let sent = proposer.may_take_effect();
        if proposer.is_done() {
            self.machines[machine].work = None;
        }
        if let Some(ending) = ending {
            self.end(machine, ending, sent);
        }
    }

    fn answer(&mut self, machine: usize, replica: usize, round: u32, answer: Answer) {
        let Some(Work::Plain { record, yes, no, may_be_stored, .. }) = &mut self.machines[machine].work else {
            return self.drive(machine, |proposer, cx| proposer.handle(cx, replica, round, answer));
        };
        match answer {
            Answer::Reply(RegisterReply::Written { stamp }) => {
                *may_be_stored |= stamp == record.stamp;
                yes.insert(replica)
            }
            Answer::Reply(RegisterReply::Refused { .. }) => no.insert(replica),
            _ => {
                *may_be_stored = true;
                no.insert(replica)
            }
        };
        let quorums = Quorums::majority(self.network.replicas());
        if quorums.is_quorum(*yes) {
            let (version, expires_at) = (record.stamp, record.expires_at);
            self.machines[machine].work = None;
            self.counts.plain += 1;
            self.end(machine, Ending::Applied { version, number: None, expires_at }, true);
        } else if !quorums.is_possible(*no) {
            let all_answered = yes.len() + no.len() == self.network.replicas();
            // Who waits for the last answer may learn that nobody stored it.
            let tried = *may_be_stored || !all_answered;
            if !tried || all_answered || self.random.percent(50) {
                self.fall_back(machine, tried);
            }
        }
    }

    fn end(&mut self, machine: usize, ending: Ending, sent: bool) {
        let Machine { operation, client, .. } = self.machines[machine];
        let awaited = self.clients[client].waits_for == Some(machine);
        let running = self.operations[operation].status == Status::Running;
        // An earlier attempt's success may be taken too.
        let taken = running && matches!(ending, Ending::Applied { .. }) && self.random.percent(50);
        if !awaited && !taken {
            return;
        }
        let may_retry = matches!(self.operations[operation].asked, Asked::Write { .. });
        match ending {
            Ending::Unknown => {
                self.counts.lineage_forgot += 1;
                self.clients[client].waits_for = None;
                self.operations[operation].status = Status::Unknown;
            }
            Ending::TimedOut { sent: told, .. } | Ending::Refused { sent: told, .. } => {
                assert_eq!(told, sent && may_retry);
                self.go_on(machine, sent);
            }
            Ending::Unavailable { .. } => self.go_on(machine, false),
            Ending::Clock(_) | Ending::ClockSkew => self.go_on(machine, sent),
            Ending::Reused => panic!("no operation id was reused"),
            // The answer is lost on its way, and the client does not know.
            _ if awaited && may_retry && self.random.percent(15) => self.go_on(machine, true),
            ending => {
                self.clients[client].waits_for = None;
                self.see(client, operation, &ending);
                self.moment += 1;
                let state = &mut self.operations[operation];
                (state.answered, state.status) = (self.moment, Status::Answered(ending));
            }
        }
    }

    /// What the answer says must fit the records that the replicas took.
    fn see(&mut self, client: usize, operation: usize, ending: &Ending) {
        self.counts.answered += 1;
        let op_id = self.operations[operation].op_id;
        match ending {
            Ending::Read { record, .. } => {
                self.clients[client].version = record.head.stamp;
                self.counts.expired += u64::from(!record.head.stamp.is_zero() && record.head.op_id.is_zero());
                assert!(record.content.is_some(), "a read has its content");
            }
            Ending::Applied { version, .. } | Ending::OutcomeApplied { version } => {
                self.clients[client].version = *version;
                self.counts.queried_applied += u64::from(matches!(ending, Ending::OutcomeApplied { .. }));
                // The version is that of a record which some replica took, and the operation's.
                self.contradicts |= self.network.record(*version).is_none_or(|record| record.op_id != op_id);
            }
            Ending::ConditionFailed { current } => {
                self.clients[client].version = *current;
                self.counts.conditions_failed += 1;
            }
            Ending::NotApplied => self.counts.not_applied += 1,
            _ => {}
        }
    }
}
