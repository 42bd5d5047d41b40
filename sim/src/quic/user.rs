//! `User`: what a client does, with the client library between it and the cluster.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dunlin_client::{Client, Error, Options};
use dunlin_protocol::{Action, Content, Key, Mutation, OpId, Outcome, Status, Tick};
use quinn::{Endpoint, EndpointConfig};

use super::air::address_of;
use super::socket::{SharedAir, SimulatedSocket, lock, now};
use crate::client::{Finished, THINK};
use crate::faults::FINAL;
use crate::random::Random;
use crate::workload::{Burst, Intent, Known, Phase, Workload};
use crate::world::{CLIENTS, NODES};

/// What clients did, in the order in which it ended.
#[derive(Default)]
pub(super) struct Record {
    pub(super) finished: RefCell<Vec<Finished>>,
    /// Operations under way.
    pub(super) unfinished: Cell<usize>,
    last: Cell<Tick>,
}

impl Record {
    /// The time, rising with each call: many things happen in one millisecond, and the checker is to know their order.
    fn stamp(&self) -> Tick {
        let stamp = now().max(Tick(self.last.get().0 + 1));
        self.last.set(stamp);
        stamp
    }
}

pub(super) struct User {
    pub(super) number: usize,
    pub(super) keys: Vec<Key>,
    pub(super) workload: Workload,
    pub(super) bursts: Vec<Burst>,
    /// When operations that must succeed begin, in order.
    pub(super) phases: Vec<(Tick, Phase)>,
    pub(super) random: Random,
    pub(super) ca_pem: String,
    pub(super) air: SharedAir,
    pub(super) record: Rc<Record>,
}

/// What a call of the client library came to.
struct Ended {
    outcome: Outcome,
    op_id: OpId,
    /// Where it is not known whether a write was applied.
    floor: u64,
}

impl User {
    /// Does everything that the seed wants done.
    pub(super) async fn live(mut self) -> turmoil::Result {
        let client = self.connect().await?;
        let mut phases = std::mem::take(&mut self.phases).into_iter().peekable();
        let mut bursts = std::mem::take(&mut self.bursts).into_iter().peekable();
        let mut demands: Vec<Intent> = Vec::new();
        let mut left = 0;
        loop {
            let now = now();
            if let Some((_, phase)) = phases.next_if(|(at, _)| *at <= now) {
                demands = self.demands(phase);
            }
            if let Some(intent) = demands.pop() {
                self.operate(&client, intent, true).await;
            } else if left > 0 {
                left -= 1;
                let intent = self.workload.next(now);
                self.operate(&client, intent, false).await;
            } else if let Some(burst) = bursts.next_if(|burst| burst.at <= now) {
                left = burst.operations;
                self.workload.favour(burst.favourite);
                continue;
            } else {
                let next = [phases.peek().map(|(at, _)| *at), bursts.peek().map(|burst| burst.at)];
                match next.into_iter().flatten().min() {
                    Some(at) => tokio::time::sleep(at.since(now)).await,
                    None => return Ok(()),
                }
                continue;
            }
            tokio::time::sleep(self.random.exponential(THINK)).await;
        }
    }

    async fn connect(&mut self) -> turmoil::Result<Client> {
        let mut config = EndpointConfig::default();
        let mut seed = [0; 32];
        seed.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&self.random.next().to_le_bytes()));
        config.rng_seed(Some(seed));
        let socket = SimulatedSocket::bind(NODES + self.number, self.air.clone()).await?;
        let endpoint = Endpoint::new_with_abstract_socket(config, None, socket, Arc::new(quinn::TokioRuntime))?;
        let nodes = (0..NODES).map(|node| address_of(node).to_string());
        let options = Options { seed: Some(self.random.next()), ..Options::new(nodes, self.ca_pem.clone()) };
        Ok(Client::connect_over(options, endpoint).await?)
    }

    fn demands(&mut self, phase: Phase) -> Vec<Intent> {
        let mut keys: Vec<usize> =
            (0..self.keys.len()).filter(|key| phase != Phase::First || key % CLIENTS == self.number).collect();
        self.random.shuffle(&mut keys);
        keys.into_iter().map(|key| self.workload.demand(phase, key)).collect()
    }

    async fn operate(&mut self, client: &Client, intent: Intent, must_succeed: bool) {
        let timeout = match must_succeed {
            true => Duration::from_secs(5),
            false => Duration::from_millis(self.random.weighted(&[(1, 500), (3, 2_000), (2, 5_000)])),
        };
        self.record.unfinished.set(self.record.unfinished.get() + 1);
        let before = client.attempts_sent();
        let invoked = self.record.stamp();
        let Ended { outcome, op_id, floor } = call(client, &self.keys[intent.key], &intent, timeout).await;
        let returned = self.record.stamp();
        self.learn(&intent, &outcome);
        let attempts = u32::try_from(client.attempts_sent() - before).unwrap_or(u32::MAX);
        let mut finished = Finished {
            client: self.number,
            intent,
            op_id,
            invoked,
            returned,
            outcome,
            attempts,
            asked: None,
            must_succeed,
        };
        let unknown = finished.outcome.status.is_indefinite() && finished.intent.action.is_write() && !op_id.is_zero();
        if unknown && !must_succeed && self.random.chance(0.5) {
            let since = self.record.stamp();
            let outcome = self.ask(client, &finished, floor).await;
            finished.asked = Some((since, outcome));
            finished.returned = self.record.stamp();
        }
        self.note(&finished);
        self.record.finished.borrow_mut().push(finished);
        self.record.unfinished.set(self.record.unfinished.get() - 1);
    }

    fn note(&self, finished: &Finished) {
        let status = finished.asked.as_ref().map_or(finished.outcome.status, |(_, asked)| asked.status);
        let numbers = [finished.client as u64, finished.intent.key as u64, u64::from(u16::from(status))];
        lock(&self.air).trace.add(finished.returned, "finished", &numbers, || format!("{finished:?}"));
    }

    /// Asks whether a write was applied.
    async fn ask(&mut self, client: &Client, finished: &Finished, floor: u64) -> Outcome {
        // Nobody is to be busy with the past when the end begins.
        let timeout = Duration::from_secs(self.random.between(2, 15)).min(FINAL.since(now()));
        let key = self.keys[finished.intent.key].as_bytes();
        let query = client.outcome(Bytes::copy_from_slice(key), finished.op_id).timeout(timeout);
        let query = if self.random.chance(0.7) { query.after(floor) } else { query };
        match query.await {
            Ok(Some(version)) => Outcome { version, ..Outcome::of(Status::Ok) },
            Ok(None) => Outcome::of(Status::NotApplied),
            Err(error) => failed(error).outcome,
        }
    }

    fn learn(&mut self, intent: &Intent, outcome: &Outcome) {
        let known = match (&intent.action, outcome.status) {
            (Action::Read { .. }, Status::Ok | Status::NotFound) => {
                let value = outcome.content.as_ref().and_then(|c| c.bytes().cloned());
                Some(Known { version: outcome.version, value })
            }
            (Action::Write { .. }, Status::PreconditionFailed) => None,
            _ => return,
        };
        self.workload.learn(intent.key, known);
    }
}

async fn call(client: &Client, key: &Key, intent: &Intent, timeout: Duration) -> Ended {
    let key = Bytes::copy_from_slice(key.as_bytes());
    let ok = |outcome, op_id| Ended { outcome, op_id, floor: 0 };
    match &intent.action {
        Action::Write { condition, mutation } => {
            let write = match mutation {
                Mutation::Put { value, .. } => client.put(key, value.clone()),
                Mutation::Delete => client.delete(key),
                Mutation::Increment { by } => client.increment(key, *by),
            };
            let write = match condition {
                Some(condition) => write.condition(condition.clone()),
                None => write,
            };
            match write.level(intent.level).timeout(timeout).await {
                Ok(written) => {
                    let (version, number) = (written.version, written.number);
                    ok(Outcome { version, number, ..Outcome::of(Status::Ok) }, written.op_id)
                }
                Err(error) => failed(error),
            }
        }
        Action::Read { .. } | Action::Outcome => match client.get(key).level(intent.level).timeout(timeout).await {
            Ok(Some(found)) => {
                let content = Some(Content::Value(found.value, found.attributes));
                ok(Outcome { version: found.version, content, ..Outcome::of(Status::Ok) }, OpId::ZERO)
            }
            Ok(None) => ok(Outcome::of(Status::NotFound), OpId::ZERO),
            Err(error) => failed(error),
        },
    }
}

/// As the node told it to the library.
fn failed(error: Error) -> Ended {
    let status = error.status();
    match error {
        Error::Precondition { current } => {
            Ended { outcome: Outcome { version: current, ..Outcome::of(status) }, op_id: OpId::ZERO, floor: 0 }
        }
        Error::Refused { message, counts, .. } => {
            Ended { outcome: Outcome { counts, ..Outcome::because(status, message) }, op_id: OpId::ZERO, floor: 0 }
        }
        Error::Indefinite { message, counts, op_id, floor, .. } => {
            Ended { outcome: Outcome { counts, ..Outcome::because(status, message) }, op_id, floor }
        }
    }
}
