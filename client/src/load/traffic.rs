//! `Traffic`: the requests of one client.

use std::sync::Arc;

use bytes::Bytes;
use dunlin_protocol::{Level, Stamp};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

use super::family::Family;
use super::plan::{Plan, Workload};
use super::store::{Failed, Request};

/// The hot key is key 0, which has no other part in the load.
const HOT: u64 = 0;
/// Values begin at any of so many places of the payload, so that few of them are the same.
const SLACK: usize = 4_096;

/// Kinds of operations whose latencies are kept apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Class {
    kind: Kind,
    /// Whether it went to the hot key, where only a part does.
    hot: Option<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    Get,
    Put,
    Cas,
    Increment,
}

impl Class {
    pub(crate) fn name(self) -> &'static str {
        match (self.kind, self.hot) {
            (Kind::Get, None) => "get",
            (Kind::Get, Some(true)) => "get hot",
            (Kind::Get, Some(false)) => "get other",
            (Kind::Put, None) => "put",
            (Kind::Put, Some(true)) => "put hot",
            (Kind::Put, Some(false)) => "put other",
            (Kind::Cas, _) => "cas",
            (Kind::Increment, None) => "incr",
            (Kind::Increment, Some(true)) => "incr hot",
            (Kind::Increment, Some(false)) => "incr other",
        }
    }
}

/// Random bytes that values are cut from.
pub(crate) fn payload(plan: &Plan) -> Bytes {
    let mut bytes = vec![0; plan.value_bytes + SLACK];
    StdRng::seed_from_u64(plan.seed).fill_bytes(&mut bytes);
    bytes.into()
}

/// The requests of one client, one after the other, the same for the same seed and answers.
#[derive(Debug)]
pub(crate) struct Traffic {
    plan: Arc<Plan>,
    family: Family,
    random: StdRng,
    payload: Bytes,
    /// The versions of the client's own keys, from `first` on: only for compare-and-set.
    versions: Vec<Stamp>,
    first: u64,
    /// Which of them comes next.
    next: usize,
}

/// What a request was, for its answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Issued {
    pub(crate) class: Class,
    own: usize,
}

impl Traffic {
    /// Of client `client`. `versions`: of its own keys, where it has some.
    pub(crate) fn new(plan: Arc<Plan>, payload: Bytes, client: usize, versions: Vec<Stamp>) -> Self {
        let first = if plan.is_hot() { HOT } else { 1 + plan.keys_of_a_client() * client as u64 };
        let random = StdRng::seed_from_u64(plan.seed.wrapping_add(1 + client as u64));
        Self { family: Family::of(&plan), plan, random, payload, versions, first, next: 0 }
    }

    /// The key to store before the measurement, of those of [`Plan::keys_to_prepare`].
    pub(crate) fn prepared_key(plan: &Plan, number: u64) -> Bytes {
        Family::of(plan).key(if plan.hot_share > 0.0 { HOT + number } else { 1 + number })
    }

    pub(crate) fn next(&mut self) -> (Request, Issued) {
        let kind = match self.plan.workload {
            Workload::Put => Kind::Put,
            Workload::Get | Workload::Serial => Kind::Get,
            Workload::Cas => Kind::Cas,
            Workload::Increment => Kind::Increment,
            Workload::Mixed if self.random.random() => Kind::Get,
            Workload::Mixed => Kind::Put,
        };
        if kind == Kind::Cas {
            let own = self.next;
            self.next = (own + 1) % self.versions.len().max(1);
            let version = self.versions.get(own).copied().unwrap_or(Stamp::ZERO);
            let key = self.family.key(self.first + own as u64);
            return (
                Request::Cas { key, version, value: self.value() },
                Issued { class: Class { kind, hot: None }, own },
            );
        }
        let share = self.plan.hot_share;
        let hot = share > 0.0 && self.random.random::<f64>() < share;
        let number = if hot { HOT } else { self.random.random_range(1..=self.plan.keys) };
        let key = self.family.key(number);
        let level = if self.plan.workload == Workload::Serial { Some(Level::Serial) } else { self.plan.level };
        let request = match kind {
            Kind::Get => Request::Get { key, level },
            Kind::Increment => Request::Increment { key },
            Kind::Put | Kind::Cas => Request::Put { key, value: self.value(), level },
        };
        let split = share > 0.0 && share < 1.0;
        (request, Issued { class: Class { kind, hot: split.then_some(hot) }, own: 0 })
    }

    /// What came of a request: the next one on its key knows its version.
    pub(crate) fn learn(&mut self, issued: Issued, answer: &Result<Stamp, Failed>) {
        let Some(version) = self.versions.get_mut(issued.own) else { return };
        match answer {
            Ok(written) => *version = *written,
            Err(Failed { current: Some(current), .. }) => *version = *current,
            // The version is as it was, or the next answer tells it.
            Err(_) => {}
        }
    }

    pub(crate) fn value(&mut self) -> Bytes {
        let start = self.random.random_range(0..=self.payload.len() - self.plan.value_bytes);
        self.payload.slice(start..start + self.plan.value_bytes)
    }
}
