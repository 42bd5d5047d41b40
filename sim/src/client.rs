//! `Client`: a user of the cluster, with the client library's own machine between it and the nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::BytesMut;
use dunlin_client::{Attempts, Event as Report, Session, Step};
use dunlin_membership::Placement;
use dunlin_protocol::message::{ClientReply, ClientRequest};
use dunlin_protocol::{Action, Key, KeyspaceId, Millis, NodeId, OpId, Operation, Outcome, Status, Tick};

use crate::agenda::{Agenda, Event};
use crate::faults::FINAL;
use crate::network::{ConnectionId, Network};
use crate::random::Random;
use crate::workload::{Burst, Intent, Known, Phase, Workload};

/// An operation that came to its end, as the client saw it.
#[derive(Clone, Debug)]
pub(crate) struct Finished {
    pub(crate) client: usize,
    pub(crate) intent: Intent,
    pub(crate) op_id: OpId,
    pub(crate) invoked: Tick,
    pub(crate) returned: Tick,
    pub(crate) outcome: Outcome,
    /// How often it was sent.
    pub(crate) attempts: u32,
    /// An outcome query made afterwards: when it began, and what it said.
    pub(crate) asked: Option<(Tick, Outcome)>,
    /// Whether it was begun when the cluster was well.
    pub(crate) must_succeed: bool,
}

/// Between two operations.
pub(crate) const THINK: Duration = Duration::from_millis(3);

/// What a client is at.
enum Task {
    Idle,
    Operation { attempts: Box<Attempts>, intent: Intent, invoked: Tick, sent: u32, must_succeed: bool },
    Query { attempts: Box<Attempts>, finished: Box<Finished>, since: Tick },
}

/// The topology is being fetched from this node; after a time, from another one.
#[derive(Clone, Copy)]
struct Refresh {
    node: usize,
    until: Tick,
}

#[derive(Clone, Copy)]
struct Sent {
    task: u64,
    attempt: u32,
    node: usize,
    at: Tick,
}

/// In place of an attempt's number: the topology was asked for.
const TOPOLOGY: u32 = u32::MAX;
/// A request for the topology is made elsewhere after this.
const PATIENCE: Duration = Duration::from_millis(700);

enum Link {
    Dialling { since: Tick },
    Open(ConnectionId),
}

pub(crate) struct Client {
    number: usize,
    nodes: usize,
    session: Session,
    workload: Workload,
    random: Random,
    bursts: Vec<Burst>,
    next_burst: usize,
    /// Operations left of the burst.
    left: u32,
    /// What is to be done before all else, and must succeed.
    demands: Vec<Intent>,
    task: Task,
    /// Not before this the next operation begins.
    ready_at: Tick,
    links: BTreeMap<usize, Link>,
    /// Attempts that wait for a connection to a node.
    waiting: Vec<(usize, u32)>,
    /// What was sent and not answered.
    requests: BTreeMap<u64, Sent>,
    refresh: Option<Refresh>,
    tasks: u64,
    newest: u64,
    /// The time of the next look that is planned.
    wake: Tick,
    keys: Vec<Key>,
}

/// What a client needs of the world.
pub(crate) struct Around<'a> {
    pub(crate) agenda: &'a mut Agenda,
    pub(crate) network: &'a mut Network,
    pub(crate) placement: &'a Placement,
    /// Which nodes run.
    pub(crate) up: &'a [bool],
    pub(crate) finished: &'a mut Vec<Finished>,
}

impl Client {
    pub(crate) fn new(
        number: usize,
        nodes: usize,
        keys: Vec<Key>,
        workload: Workload,
        bursts: Vec<Burst>,
        mut random: Random,
    ) -> Self {
        Self {
            number,
            nodes,
            session: Session::new(random.next()),
            workload,
            random,
            bursts,
            next_burst: 0,
            left: 0,
            demands: Vec::new(),
            task: Task::Idle,
            ready_at: Tick(0),
            links: BTreeMap::new(),
            waiting: Vec::new(),
            requests: BTreeMap::new(),
            refresh: None,
            tasks: 0,
            newest: 0,
            wake: Tick::NEVER,
            keys,
        }
    }

    fn site(&self) -> usize {
        self.nodes + self.number
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.task, Task::Idle)
    }

    /// The cluster is well: each of these keys gets an operation, and each must succeed.
    pub(crate) fn demand(&mut self, phase: Phase, mut keys: Vec<usize>, around: &mut Around<'_>) {
        self.random.shuffle(&mut keys);
        self.demands = keys.into_iter().map(|key| self.workload.demand(phase, key)).collect();
        self.look(around);
    }

    /// Does what is to be done now, and plans the next look.
    pub(crate) fn look(&mut self, around: &mut Around<'_>) {
        let now = around.agenda.now();
        if self.wake <= now {
            self.wake = Tick::NEVER;
        }
        loop {
            let attempts = match &mut self.task {
                Task::Idle => match self.begin(around) {
                    Some(at) => return self.plan(at, around),
                    None => continue,
                },
                Task::Operation { attempts, .. } | Task::Query { attempts, .. } => attempts,
            };
            match attempts.poll(now, &mut self.session) {
                Step::Send { node, attempt } => self.send(node.0 as usize - 1, attempt, around),
                Step::Wait(until) => {
                    let until = match self.refresh {
                        Some(refresh) if refresh.until <= now => {
                            self.fetch_topology(around);
                            continue;
                        }
                        Some(refresh) => until.min(refresh.until),
                        None => until,
                    };
                    return self.plan(until, around);
                }
                Step::Refresh => self.fetch_topology(around),
                Step::Done(outcome) => self.done(outcome, around),
            }
        }
    }

    fn plan(&mut self, at: Tick, around: &mut Around<'_>) {
        if at < self.wake {
            self.wake = at;
            around.agenda.at(at, Event::Client { client: self.number });
        }
    }

    /// Begins the next operation, or says when.
    fn begin(&mut self, around: &mut Around<'_>) -> Option<Tick> {
        let now = around.agenda.now();
        if now < self.ready_at {
            return Some(self.ready_at);
        }
        if let Some(intent) = self.demands.pop() {
            self.operate(intent, true, around);
            return None;
        }
        if self.left == 0 {
            let Some(burst) = self.bursts.get(self.next_burst) else { return Some(Tick::NEVER) };
            if burst.at > now {
                return Some(burst.at);
            }
            self.next_burst += 1;
            self.left = burst.operations;
            self.workload.favour(burst.favourite);
        }
        self.left -= 1;
        let intent = self.workload.next(now);
        self.operate(intent, false, around);
        None
    }

    fn operate(&mut self, intent: Intent, must_succeed: bool, around: &mut Around<'_>) {
        let now = around.agenda.now();
        let key = self.keys[intent.key].clone();
        let operation = Attempts::operation_on(KeyspaceId::DEFAULT, key.clone(), intent.action.clone());
        let operation = Operation { level: Some(intent.level), epoch: around.placement.epoch(), ..operation };
        let timeout = match must_succeed {
            true => Duration::from_secs(5),
            false => Duration::from_millis(self.random.weighted(&[(1, 500), (3, 2_000), (2, 5_000)])),
        };
        let nodes = self.route(around.placement, Some(&key));
        let attempts = Attempts::new(operation, timeout, nodes, now, self.random.next());
        self.tasks += 1;
        self.waiting.clear();
        self.refresh = None;
        self.task = Task::Operation { attempts: Box::new(attempts), intent, invoked: now, sent: 0, must_succeed };
    }

    /// The nodes to ask: mostly the key's replicas first, as the client library does it, sometimes any, so that coordinators meet.
    fn route(&mut self, placement: &Placement, key: Option<&Key>) -> Vec<NodeId> {
        let mut all: Vec<NodeId> = placement.topology().members.iter().map(|m| m.id).collect();
        self.random.shuffle(&mut all);
        if let Some(key) = key
            && self.random.chance(0.5)
        {
            let partition = placement.partition_of(KeyspaceId::DEFAULT, key);
            let list =
                placement.preference_list(KeyspaceId::DEFAULT, partition).expect("the default keyspace is there");
            let rank = |node: &NodeId| list.number_of(*node).unwrap_or(usize::MAX);
            all.sort_by_key(rank);
        }
        all
    }

    /// The connection to a node, if there is one; otherwise one is made.
    fn link(&mut self, node: usize, around: &mut Around<'_>) -> Option<ConnectionId> {
        match self.links.get(&node) {
            Some(Link::Open(connection)) => Some(*connection),
            Some(Link::Dialling { .. }) => None,
            None => {
                let since = around.agenda.now();
                self.links.insert(node, Link::Dialling { since });
                around.network.connect(self.site(), node, around.up[node], around.agenda);
                None
            }
        }
    }

    fn send(&mut self, node: usize, attempt: u32, around: &mut Around<'_>) {
        let Some(connection) = self.link(node, around) else { return self.waiting.push((node, attempt)) };
        let (Task::Operation { attempts, .. } | Task::Query { attempts, .. }) = &self.task else { return };
        let request = ClientRequest::Operate(attempts.operation().clone());
        if let Task::Operation { sent, .. } = &mut self.task {
            *sent += 1;
        }
        self.request(connection, node, attempt, &request, around);
    }

    /// Asks some node for the topology, whose answer tells the time as well.
    fn fetch_topology(&mut self, around: &mut Around<'_>) {
        let node = self.random.index(self.nodes);
        let until = around.agenda.now() + PATIENCE;
        self.refresh = Some(Refresh { node, until });
        if let Some(connection) = self.link(node, around) {
            let request = ClientRequest::Topology { epoch: around.placement.epoch() };
            self.request(connection, node, TOPOLOGY, &request, around);
        }
    }

    fn request(
        &mut self,
        connection: ConnectionId,
        node: usize,
        attempt: u32,
        request: &ClientRequest,
        around: &mut Around<'_>,
    ) {
        self.newest += 1;
        let mut bytes = BytesMut::new();
        request.write(&mut bytes, self.newest).expect("operations fit a frame");
        let sent = Sent { task: self.tasks, attempt, node, at: around.agenda.now() };
        self.requests.insert(self.newest, sent);
        around.network.send(connection, 0, bytes.freeze(), around.agenda);
    }

    fn refreshed(&mut self, around: &mut Around<'_>) {
        if self.refresh.take().is_some() {
            let nodes = self.route(around.placement, None);
            if let Task::Operation { attempts, .. } | Task::Query { attempts, .. } = &mut self.task {
                attempts.refreshed(around.agenda.now(), around.placement.epoch(), nodes);
            }
        }
    }

    fn report(&mut self, now: Tick, task: u64, attempt: u32, report: Report) {
        if task != self.tasks {
            return;
        }
        if let Task::Operation { attempts, .. } | Task::Query { attempts, .. } = &mut self.task {
            attempts.handle(now, &mut self.session, attempt, report);
        }
    }

    fn report_waiting(&mut self, now: Tick, node: usize, report: &Report) {
        let (here, others) = std::mem::take(&mut self.waiting).into_iter().partition(|(at, _)| *at == node);
        self.waiting = others;
        let here: Vec<(usize, u32)> = here;
        for (_, attempt) in here {
            self.report(now, self.tasks, attempt, report.clone());
        }
    }

    /// A connection is there; the node's first words on it told its time.
    pub(crate) fn opened(&mut self, connection: ConnectionId, node: usize, theirs: Millis, around: &mut Around<'_>) {
        let now = around.agenda.now();
        let since = match self.links.insert(node, Link::Open(connection)) {
            Some(Link::Dialling { since }) => since,
            _ => now,
        };
        self.session.welcomed(NodeId(node as u64 + 1), since, now, theirs);
        self.report_waiting(now, node, &Report::Connected);
        if self.refresh.is_some_and(|refresh| refresh.node == node) {
            // The node's first words told all that is needed: its time, and that its epoch is the same.
            self.refreshed(around);
        }
        self.look(around);
    }

    pub(crate) fn dial_failed(&mut self, node: usize, around: &mut Around<'_>) {
        if matches!(self.links.get(&node), Some(Link::Dialling { .. })) {
            self.links.remove(&node);
        }
        self.report_waiting(around.agenda.now(), node, &Report::NotSent);
        self.look(around);
    }

    pub(crate) fn closed(&mut self, connection: ConnectionId, node: usize, around: &mut Around<'_>) {
        if matches!(self.links.get(&node), Some(Link::Open(open)) if *open == connection) {
            self.links.remove(&node);
        }
        let lost: Vec<u64> = self.requests.iter().filter(|(_, sent)| sent.node == node).map(|(id, _)| *id).collect();
        for id in lost {
            if let Some(Sent { task, attempt, .. }) = self.requests.remove(&id) {
                self.report(around.agenda.now(), task, attempt, Report::Lost);
            }
        }
        self.look(around);
    }

    pub(crate) fn replied(&mut self, request_id: u64, reply: ClientReply, around: &mut Around<'_>) {
        let Some(Sent { task, attempt, node, at }) = self.requests.remove(&request_id) else { return };
        let now = around.agenda.now();
        if attempt == TOPOLOGY {
            self.session.replied(NodeId(node as u64 + 1), at, now, &reply);
            self.refreshed(around);
        } else {
            self.report(now, task, attempt, Report::Reply(reply));
        }
        self.look(around);
    }

    /// The task has come to its end.
    fn done(&mut self, outcome: Outcome, around: &mut Around<'_>) {
        let now = around.agenda.now();
        match std::mem::replace(&mut self.task, Task::Idle) {
            Task::Idle => {}
            Task::Operation { attempts, intent, invoked, sent, must_succeed } => {
                self.learn(&intent, &outcome);
                let is_write = intent.action.is_write();
                let finished = Finished {
                    client: self.number,
                    op_id: attempts.op_id(),
                    invoked,
                    returned: now,
                    attempts: sent,
                    asked: None,
                    must_succeed,
                    outcome,
                    intent,
                };
                let unknown = finished.outcome.status.is_indefinite() && is_write && !finished.op_id.is_zero();
                if unknown && !must_succeed && self.random.chance(0.5) {
                    return self.ask(finished, attempts.floor(), around);
                }
                around.finished.push(finished);
            }
            Task::Query { finished, since, .. } => {
                around.finished.push(Finished { asked: Some((since, outcome)), returned: now, ..*finished });
            }
        }
        self.ready_at = now + self.random.exponential(THINK);
    }

    /// Asks whether an operation was applied.
    fn ask(&mut self, finished: Finished, floor: u64, around: &mut Around<'_>) {
        let now = around.agenda.now();
        let key = self.keys[finished.intent.key].clone();
        let operation = Attempts::operation_on(KeyspaceId::DEFAULT, key.clone(), Action::Outcome);
        let operation = Operation { op_id: finished.op_id, epoch: around.placement.epoch(), ..operation };
        let nodes = self.route(around.placement, Some(&key));
        // Nobody is to be busy with the past when the end begins.
        let timeout = Duration::from_secs(self.random.between(2, 15)).min(FINAL.since(now));
        let attempts = Attempts::new(operation, timeout, nodes, now, self.random.next());
        let attempts = if self.random.chance(0.7) { attempts.after(floor) } else { attempts };
        self.tasks += 1;
        self.waiting.clear();
        self.refresh = None;
        self.task = Task::Query { attempts: Box::new(attempts), finished: Box::new(finished), since: now };
    }

    fn learn(&mut self, intent: &Intent, outcome: &Outcome) {
        let value = || outcome.content.as_ref().and_then(|c| c.bytes().cloned());
        match (&intent.action, outcome.status) {
            (Action::Read { .. }, Status::Ok) => {
                self.workload.learn(intent.key, Some(Known { version: outcome.version, value: value() }));
            }
            (Action::Read { .. }, Status::NotFound) => {
                self.workload.learn(intent.key, Some(Known { version: outcome.version, value: None }));
            }
            (Action::Write { .. }, Status::PreconditionFailed) => self.workload.learn(intent.key, None),
            _ => {}
        }
    }
}
