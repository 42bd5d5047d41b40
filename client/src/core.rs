//! `Core`: what all clones of a client share, and the driving of requests.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use dunlin_protocol::message::{ClientReply, ClientRequest, ReplyBody};
use dunlin_protocol::{Epoch, KeyspaceId, Millis, NodeId, OpId, Operation, Outcome, Status, Tick, Topology};
use tokio::sync::Semaphore;

use crate::attempts::{Attempts, Event, Step};
use crate::connection::{Closed, Connection, PendingReply};
use crate::dial::Dialer;
use crate::error::{Error, ProtocolError};
use crate::options::Options;
use crate::pool::{Pool, dialed};
use crate::route::Route;
use crate::session::Session;
use crate::ticks::Ticks;

/// How long a node may take to say what costs it nothing, before another one is asked.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(50);
/// What an operation counts beside its value.
const OPERATION_BYTES: usize = 512;

#[derive(Debug)]
pub(crate) struct Core {
    options: Options,
    pool: Arc<Pool>,
    dialer: Arc<Dialer>,
    session: Mutex<Session>,
    ticks: Ticks,
    topology: Mutex<Arc<Topology>>,
    /// Held by whoever fetches the topology.
    fetching: tokio::sync::Mutex<()>,
    /// A newer epoch was seen, and somebody is on it.
    following: AtomicBool,
    bytes: Semaphore,
    seed: AtomicU64,
    turn: AtomicUsize,
    sent: AtomicU64,
}

/// How an operation ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    pub(crate) op_id: OpId,
    pub(crate) floor: u64,
}

impl Core {
    pub(crate) fn new(
        options: Options,
        dialer: Arc<Dialer>,
        session: Session,
        ticks: Ticks,
        seed: u64,
        connection: Arc<Connection>,
        topology: Topology,
    ) -> Self {
        let pool = Arc::new(Pool::new(dialer.clone(), options.connect_timeout));
        pool.add(connection);
        let bytes = Semaphore::new(options.max_bytes_in_flight as usize);
        Self {
            options,
            pool,
            dialer,
            session: Mutex::new(session),
            ticks,
            topology: Mutex::new(Arc::new(topology)),
            fetching: tokio::sync::Mutex::default(),
            following: AtomicBool::new(false),
            bytes,
            seed: AtomicU64::new(seed),
            turn: AtomicUsize::new(usize::try_from(seed % 1_024).unwrap_or(0)),
            sent: AtomicU64::new(0),
        }
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.options.timeout
    }

    pub(crate) fn topology(&self) -> Arc<Topology> {
        self.topology.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn attempts_sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(crate) fn draw_op_id(&self) -> OpId {
        let now = self.ticks.now();
        self.session().draw(NodeId(0), now).unwrap_or(OpId::ZERO)
    }

    pub(crate) fn cluster_time(&self) -> Option<Millis> {
        let now = self.ticks.now();
        self.session().clock().now(NodeId(0), now)
    }

    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }

    /// A keyspace by its name, if need be after a look at a newer topology.
    pub(crate) async fn keyspace(&self, name: &str, timeout: Duration) -> Result<KeyspaceId, Error> {
        let topology = self.topology();
        if let Some(keyspace) = topology.keyspace_named(name) {
            return Ok(keyspace.id);
        }
        let newer = self.refresh(topology.epoch, timeout).await?;
        match newer.keyspace_named(name) {
            Some(keyspace) => Ok(keyspace.id),
            None => Err(Error::refused(Status::UnknownKeyspace, format!("no keyspace is named `{name}`"))),
        }
    }

    /// The nodes to ask for a part of a scan.
    pub(crate) fn route_to(&self, keyspace: KeyspaceId, partition: dunlin_protocol::PartitionId) -> Vec<NodeId> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        Route::to_partition(&self.topology(), keyspace, partition, turn).nodes
    }

    /// Carries an operation to its outcome.
    pub(crate) async fn operate(
        self: &Arc<Self>,
        mut operation: Operation,
        timeout: Duration,
        floor: Option<u64>,
    ) -> Ended {
        let start = self.ticks.now();
        let deadline = start + timeout;
        let size = u32::try_from(OPERATION_BYTES + payload(&operation)).unwrap_or(u32::MAX);
        let permits = size.min(self.options.max_bytes_in_flight);
        let room = tokio::time::timeout_at(self.ticks.instant(deadline), self.bytes.acquire_many(permits)).await;
        let Ok(Ok(_room)) = room else {
            let outcome = Outcome::because(Status::Overloaded, "this client has too many bytes of requests under way");
            return Ended { outcome, op_id: OpId::ZERO, floor: 0 };
        };

        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let route = Route::of(&operation, &self.topology(), turn);
        operation.epoch = route.epoch;
        let mut attempts =
            Attempts::new(operation, timeout, route.nodes, start, self.seed.fetch_add(1, Ordering::Relaxed));
        if let Some(floor) = floor {
            attempts = attempts.after(floor);
        }
        let mut flights = Flights::default();
        loop {
            let now = self.ticks.now();
            let step = attempts.poll(now, &mut self.session());
            match step {
                Step::Done(outcome) => {
                    return Ended { outcome, op_id: attempts.op_id(), floor: attempts.floor() };
                }
                Step::Send { node, attempt } => self.send(&mut attempts, &mut flights, node, attempt),
                Step::Wait(until) => match flights.next(self.ticks.instant(until)).await {
                    Some((attempt, event)) => self.report(&mut attempts, attempt, event),
                    None => {
                        if let Some((attempt, _)) = flights.connecting.take() {
                            self.report(&mut attempts, attempt, Event::NotSent);
                        }
                    }
                },
                Step::Refresh => {
                    let left = deadline.since(now);
                    let fetched = self.refresh(attempts.operation().epoch, left.min(PATIENCE * 2)).await;
                    let topology = fetched.unwrap_or_else(|_| self.topology());
                    let route = Route::of(attempts.operation(), &topology, turn);
                    attempts.refreshed(self.ticks.now(), route.epoch, route.nodes);
                }
            }
        }
    }

    fn send(self: &Arc<Self>, attempts: &mut Attempts, flights: &mut Flights, node: NodeId, attempt: u32) {
        if let Some(connection) = self.pool.live(node) {
            match connection.operate(attempts.operation()) {
                Ok(pending) => {
                    self.sent.fetch_add(1, Ordering::Relaxed);
                    flights.sent.push((attempt, pending));
                }
                Err(Closed) => self.report(attempts, attempt, Event::NotSent),
            }
            return;
        }
        match self.dial(node) {
            Some(dialing) => flights.connecting = Some((attempt, Box::pin(dialing))),
            None => self.report(attempts, attempt, Event::NotSent),
        }
    }

    fn report(self: &Arc<Self>, attempts: &mut Attempts, attempt: u32, event: Event) {
        if let Event::Reply(reply) = &event {
            self.saw_epoch(reply.epoch);
        }
        let now = self.ticks.now();
        attempts.handle(now, &mut self.session(), attempt, event);
    }

    /// Asks one node after the other for something that changes nothing.
    pub(crate) async fn ask(
        &self,
        request: &ClientRequest,
        nodes: Vec<NodeId>,
        timeout: Duration,
    ) -> Result<ClientReply, Error> {
        let deadline = self.ticks.now() + timeout;
        let mut refusal = None;
        loop {
            let mut order = nodes.clone();
            {
                let (now, session) = (self.ticks.now(), self.session());
                order.sort_by_key(|node| session.is_silent(*node, now));
            }
            for node in order {
                let left = deadline.since(self.ticks.now());
                if left.is_zero() {
                    break;
                }
                let patience = if nodes.len() > 1 { left.min(PATIENCE.max(timeout / 4)) } else { left };
                match tokio::time::timeout(patience, self.ask_node(request, node)).await {
                    Ok(Some(reply)) => match retryable(&reply) {
                        Some(outcome) => refusal = Some(outcome),
                        None => return Ok(reply),
                    },
                    Ok(None) | Err(_) => {
                        let now = self.ticks.now();
                        self.session().unanswered(node, now);
                    }
                }
            }
            // Where every node was asked and too few replicas are alive, waiting is the caller's choice.
            let unavailable = refusal.as_ref().is_some_and(|outcome| outcome.status == Status::Unavailable);
            if unavailable || deadline.since(self.ticks.now()) <= PAUSE {
                let outcome = refusal.unwrap_or_else(|| Outcome::of(Status::Connect));
                return Err(Error::Refused {
                    status: outcome.status,
                    message: outcome.message,
                    counts: outcome.counts,
                });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn ask_node(&self, request: &ClientRequest, node: NodeId) -> Option<ClientReply> {
        let connection = match self.pool.live(node) {
            Some(connection) => connection,
            None => self.dial(node)?.await?,
        };
        let sent = self.ticks.now();
        let reply = connection.ask(request).ok()?.await.ok()?;
        let now = self.ticks.now();
        self.session().replied(node, sent, now, &reply);
        Some(reply)
    }

    fn dial(&self, node: NodeId) -> Option<impl Future<Output = Option<Arc<Connection>>> + Send + 'static + use<>> {
        let topology = self.topology();
        let dialing = self.pool.dial(node, &topology.member(node)?.address, topology.cluster);
        Some(dialed(dialing))
    }

    /// Fetches a topology newer than `epoch`, from the members or, where none answers, from the contact points. Where there is none, the
    /// present one is given back.
    pub(crate) async fn refresh(&self, epoch: Epoch, timeout: Duration) -> Result<Arc<Topology>, Error> {
        let deadline = self.ticks.now() + timeout;
        let Ok(_fetching) = tokio::time::timeout(timeout, self.fetching.lock()).await else {
            return Ok(self.topology());
        };
        let present = self.topology();
        if present.epoch > epoch {
            return Ok(present);
        }
        let request = ClientRequest::Topology { epoch: present.epoch };
        let members = present.members.iter().map(|m| m.id).collect();
        let asked = self.ask(&request, members, deadline.since(self.ticks.now()) / 2).await;
        let body = match asked {
            Ok(reply) => reply.body,
            Err(error) => self.ask_contact_points(&request, present.cluster, deadline).await.ok_or(error)?,
        };
        match body {
            ReplyBody::Topology(bytes) if bytes.is_empty() => Ok(present),
            ReplyBody::Topology(bytes) => {
                let bad = |error: ProtocolError| Error::refused(Status::BadFrame, error.to_string());
                Ok(self.adopt(decode_topology(&bytes).map_err(bad)?))
            }
            ReplyBody::Outcome(o) => Err(Error::Refused { status: o.status, message: o.message, counts: o.counts }),
            _ => Err(Error::refused(Status::BadFrame, ProtocolError::Unexpected.to_string())),
        }
    }

    /// All members may have moved since this client heard of them.
    async fn ask_contact_points(
        &self,
        request: &ClientRequest,
        cluster: dunlin_protocol::ClusterId,
        deadline: Tick,
    ) -> Option<ReplyBody> {
        for address in &self.options.contact_points {
            let left = deadline.since(self.ticks.now());
            let within = left.min(self.options.connect_timeout);
            let asked = async {
                let connection = self.dialer.dial(address, None, Some(cluster), within).await.ok()?;
                let reply = connection.ask(request).ok()?.await.ok()?;
                self.pool.add(Arc::new(connection));
                Some(reply.body)
            };
            if let Ok(Some(body)) = tokio::time::timeout(left, asked).await {
                return Some(body);
            }
        }
        None
    }

    fn adopt(&self, newer: Topology) -> Arc<Topology> {
        let mut topology = self.topology.lock().unwrap_or_else(PoisonError::into_inner);
        if newer.cluster == topology.cluster && newer.epoch > topology.epoch {
            *topology = Arc::new(newer);
            self.pool.retain(|node| topology.member(node).is_some());
            self.session().retain(|node| topology.member(node).is_some());
        }
        topology.clone()
    }

    /// A newer epoch is fetched beside what goes on.
    fn saw_epoch(self: &Arc<Self>, epoch: Epoch) {
        let present = self.topology().epoch;
        if epoch > present && !self.following.swap(true, Ordering::AcqRel) {
            let core = self.clone();
            tokio::spawn(async move {
                if let Err(error) = core.refresh(present, core.timeout()).await {
                    tracing::debug!(%error, "cannot fetch the newer topology");
                }
                core.following.store(false, Ordering::Release);
            });
        }
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A topology as nodes send it: MessagePack with names. Its size is bounded by the frame that it came in.
pub(crate) fn decode_topology(bytes: &[u8]) -> Result<Topology, ProtocolError> {
    let topology: Topology = rmp_serde::from_slice(bytes)?;
    topology.validate()?;
    Ok(topology)
}

fn payload(operation: &Operation) -> usize {
    use dunlin_protocol::{Action, Condition, Mutation};
    let Action::Write { condition, mutation } = &operation.action else { return operation.key.as_bytes().len() };
    let expected = if let Some(Condition::Value(expected)) = condition { expected.len() } else { 0 };
    let stored =
        if let Mutation::Put { value, attributes, .. } = mutation { value.len() + attributes.byte_len() } else { 0 };
    operation.key.as_bytes().len() + expected + stored
}

/// A refusal that another node, or a later try, may not repeat.
fn retryable(reply: &ClientReply) -> Option<Outcome> {
    let ReplyBody::Outcome(outcome) = &reply.body else { return None };
    let again = matches!(
        outcome.status,
        Status::Unavailable
            | Status::Timeout
            | Status::StaleEpoch
            | Status::NotReplica
            | Status::Suspect
            | Status::Overloaded
            | Status::NotReady
            | Status::ShuttingDown
    );
    again.then(|| outcome.clone())
}

/// Attempts of one operation that are under way.
#[derive(Default)]
struct Flights {
    sent: Vec<(u32, PendingReply)>,
    connecting: Option<(u32, Dialing)>,
}

type Dialing = Pin<Box<dyn Future<Output = Option<Arc<Connection>>> + Send>>;

impl Flights {
    /// What happens next to any of them; none: the time is over.
    async fn next(&mut self, until: tokio::time::Instant) -> Option<(u32, Event)> {
        let happens = poll_fn(|context| {
            for at in 0..self.sent.len() {
                let (attempt, pending) = &mut self.sent[at];
                if let Poll::Ready(reply) = Pin::new(pending).poll(context) {
                    let attempt = *attempt;
                    self.sent.swap_remove(at);
                    return Poll::Ready((attempt, reply.map_or(Event::Lost, Event::Reply)));
                }
            }
            if let Some((attempt, dialing)) = &mut self.connecting
                && let Poll::Ready(connection) = dialing.as_mut().poll(context)
            {
                let attempt = *attempt;
                self.connecting = None;
                return Poll::Ready((attempt, connection.map_or(Event::NotSent, |_| Event::Connected)));
            }
            Poll::Pending
        });
        tokio::time::timeout_at(until, happens).await.ok()
    }
}
