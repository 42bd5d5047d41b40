//! `Load`: a plan on its way to a store.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dunlin_protocol::{Level, Stamp, Status};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use super::meter::Meter;
use super::pace::Pace;
use super::plan::{InvalidPlan, Plan, Workload};
use super::report::{Progress, Report};
use super::schedule::Schedule;
use super::store::{Failed, Request, Store};
use super::traffic::{Traffic, payload};

const SECOND: Duration = Duration::from_secs(1);
/// A client whose request failed waits so long: a store that refuses at once would otherwise be asked in a tight loop.
const PAUSE: Duration = Duration::from_millis(5);
/// How many keys are stored at a time before the measurement.
const LOADERS: u64 = 64;
/// How often a key that cannot be stored is tried again.
const TRIES: u32 = 5;

/// A load: [`prepare`](Self::prepare) it, then [`run`](Self::run) it.
#[derive(Debug)]
pub struct Load<S> {
    store: S,
    plan: Arc<Plan>,
    payload: Bytes,
    /// Whether an open loop waits with the finest timer there is, or with tokio's, whose time can be paused.
    fine: bool,
    /// With compare-and-set: the versions of each client's keys.
    versions: Vec<Vec<Stamp>>,
}

/// A key could not be stored before the measurement.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the keys cannot be stored: {}", status.sentence())]
pub struct PrepareError {
    /// Why.
    pub status: Status,
}

/// What the tasks of a run share.
struct Shared<S> {
    store: S,
    meter: Mutex<Meter>,
    end: Instant,
}

impl<S: Store> Load<S> {
    /// A load of `plan` on `store`.
    ///
    /// # Errors
    /// Where the plan makes no sense.
    pub fn new(store: S, plan: Plan) -> Result<Self, InvalidPlan> {
        plan.check()?;
        let versions = match plan.workload {
            Workload::Cas => vec![vec![Stamp::ZERO; plan.keys_of_a_client() as usize]; plan.clients],
            _ => vec![Vec::new(); plan.clients],
        };
        Ok(Self { store, payload: payload(&plan), plan: Arc::new(plan), fine: true, versions })
    }

    #[cfg(test)]
    pub(crate) fn in_paused_time(self) -> Self {
        Self { fine: false, ..self }
    }

    /// Stores the keys that the load reads. `progress` is told each second how many there are, of how many.
    ///
    /// # Errors
    /// Where a key cannot be stored.
    pub async fn prepare(&mut self, mut progress: impl FnMut(u64, u64)) -> Result<(), PrepareError> {
        let total = self.plan.keys_to_prepare();
        if total == 0 {
            return Ok(());
        }
        let stored = Arc::new(AtomicU64::new(0));
        let mut loaders = JoinSet::new();
        let parts = LOADERS.min(total);
        for part in 0..parts {
            let share = move |part: u64| {
                u64::try_from(u128::from(total) * u128::from(part) / u128::from(parts)).unwrap_or(total)
            };
            let mut traffic = Traffic::new(self.plan.clone(), self.payload.clone(), part as usize, Vec::new());
            let (store, plan, stored) = (self.store.clone(), self.plan.clone(), stored.clone());
            loaders.spawn(async move {
                let mut versions = Vec::new();
                for number in share(part)..share(part + 1) {
                    let version = store_key(&store, &plan, number, traffic.value()).await?;
                    if plan.workload == Workload::Cas {
                        versions.push(version);
                    }
                    stored.fetch_add(1, Ordering::Relaxed);
                }
                Ok((share(part), versions))
            });
        }
        let mut seconds = seconds();
        loop {
            tokio::select! {
                biased;
                loader = loaders.join_next() => match loader {
                    None => break,
                    Some(loaded) => {
                        let (first, versions) = finished(loaded)?;
                        self.keep(first, versions);
                    }
                },
                _ = seconds.tick() => progress(stored.load(Ordering::Relaxed), total),
            }
        }
        progress(total, total);
        Ok(())
    }

    /// With compare-and-set: the versions of the keys from number `first` on.
    fn keep(&mut self, first: u64, versions: Vec<Stamp>) {
        let own = self.plan.keys_of_a_client();
        for (number, version) in (first..).zip(versions) {
            if self.plan.is_hot() {
                self.versions.iter_mut().for_each(|all| all.fill(version));
            } else {
                self.versions[(number / own) as usize][(number % own) as usize] = version;
            }
        }
    }

    /// Sends requests for as long as the plan says or until `stop` ends, and waits for the answers of those that are under way then, unless
    /// it is stopped. `progress` is called each second.
    pub async fn run(self, stop: impl Future<Output = ()>, mut progress: impl FnMut(&Progress)) -> Report {
        let start = Instant::now();
        let end = start + self.plan.duration;
        let meter = Mutex::new(Meter::new(self.plan.clients, start, end));
        let shared = Arc::new(Shared { store: self.store, meter, end });
        let open = self.plan.rate.map(|rate| Arc::new(Open::new(Schedule::new(start, rate, self.plan.duration))));
        let mut tasks = JoinSet::new();
        for (client, versions) in self.versions.into_iter().enumerate() {
            let traffic = Traffic::new(self.plan.clone(), self.payload.clone(), client, versions);
            match &open {
                None => drop(tasks.spawn(closed_loop(shared.clone(), traffic, client, start))),
                Some(open) => drop(tasks.spawn(open_loop(shared.clone(), open.clone(), traffic, client))),
            }
        }
        if let Some(open) = open.clone() {
            let mut pace = if self.fine { Pace::finest() } else { Pace::Coarse };
            tasks.spawn(async move { open.release(&mut pace, end).await });
        }
        let mut seconds = seconds();
        tokio::pin!(stop);
        loop {
            tokio::select! {
                biased;
                () = &mut stop => break,
                task = tasks.join_next() => match task {
                    None => break,
                    Some(ended) => finished(ended),
                },
                _ = seconds.tick() => {
                    let seen = shared.meter().progress(Instant::now());
                    progress(&seen);
                }
            }
        }
        let now = Instant::now();
        let report = shared.meter().report(now);
        tasks.shutdown().await;
        match open {
            None => report,
            Some(open) => Report { not_started: open.not_started(now), ..report },
        }
    }
}

async fn store_key<S: Store>(store: &S, plan: &Plan, number: u64, value: Bytes) -> Result<Stamp, PrepareError> {
    let key = Traffic::prepared_key(plan, number);
    let mut tries = 0;
    loop {
        let (key, value) = (key.clone(), value.clone());
        // Keys of compare-and-set are serial from the first write on; what an earlier run left is as good.
        let request = match plan.workload {
            Workload::Cas => Request::Cas { key, version: Stamp::ZERO, value },
            _ if plan.level == Some(Level::Serial) => Request::Put { key, value, level: Some(Level::Serial) },
            _ => Request::Put { key, value, level: Some(Level::Quorum) },
        };
        match store.send(request).await {
            Ok(version) | Err(Failed { current: Some(version), .. }) => return Ok(version),
            Err(_) if tries < TRIES => {
                tries += 1;
                sleep(PAUSE * 10).await;
            }
            Err(Failed { status, .. }) => return Err(PrepareError { status }),
        }
    }
}

impl<S> Shared<S> {
    fn meter(&self) -> MutexGuard<'_, Meter> {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an answer; tells how long its client pauses.
    fn count(
        &self,
        client: usize,
        class: super::traffic::Class,
        intended: Instant,
        now: Instant,
        answer: &Result<Stamp, Failed>,
    ) -> Duration {
        match answer {
            Ok(_) => {
                self.meter().succeed(client, class, intended, now);
                Duration::ZERO
            }
            Err(failed) => {
                // Who lost a race tries again at once.
                let pause = if failed.current.is_some() { Duration::ZERO } else { PAUSE };
                self.meter().fail(client, failed.status, pause, now);
                pause
            }
        }
    }
}

async fn closed_loop<S: Store>(shared: Arc<Shared<S>>, mut traffic: Traffic, client: usize, start: Instant) {
    let mut now = start;
    while now < shared.end {
        let (request, issued) = traffic.next();
        let sent = now;
        shared.meter().begin(client, sent);
        let answer = shared.store.send(request).await;
        now = Instant::now();
        let pause = shared.count(client, issued.class, sent, now, &answer);
        traffic.learn(issued, &answer);
        if !pause.is_zero() {
            sleep(pause).await;
            now = Instant::now();
        }
    }
}

/// What the tasks of an open loop share.
struct Open {
    schedule: Schedule,
    /// Requests that are due and not yet sent.
    due: Semaphore,
    /// The number of the next one to be sent.
    next: AtomicU64,
}

impl Open {
    fn new(schedule: Schedule) -> Self {
        Self { schedule, due: Semaphore::new(0), next: AtomicU64::new(0) }
    }

    /// Lets requests go when they are due, and ends all waiting at the end.
    async fn release(&self, pace: &mut Pace, end: Instant) {
        let mut released = 0;
        while released < self.schedule.total() {
            pace.wait_until(self.schedule.at(released)).await;
            let due = self.schedule.due(Instant::now());
            self.due.add_permits(usize::try_from(due.saturating_sub(released)).unwrap_or(0));
            released = released.max(due);
        }
        pace.wait_until(end).await;
        self.due.close();
    }

    /// The next request is due: its number. None: there are no more.
    async fn take(&self) -> Option<u64> {
        self.due.acquire().await.ok()?.forget();
        Some(self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn not_started(&self, now: Instant) -> u64 {
        self.schedule.due(now).saturating_sub(self.next.load(Ordering::Relaxed))
    }
}

async fn open_loop<S: Store>(shared: Arc<Shared<S>>, open: Arc<Open>, mut traffic: Traffic, client: usize) {
    while Instant::now() < shared.end {
        let Some(number) = open.take().await else { return };
        let (request, issued) = traffic.next();
        let intended = open.schedule.at(number);
        shared.meter().begin(client, Instant::now());
        let answer = shared.store.send(request).await;
        let now = Instant::now();
        let pause = shared.count(client, issued.class, intended, now, &answer);
        traffic.learn(issued, &answer);
        if !pause.is_zero() {
            sleep(pause).await;
        }
    }
}

fn seconds() -> tokio::time::Interval {
    let mut seconds = interval_at(Instant::now() + SECOND, SECOND);
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    seconds
}

/// What a task ended with. Tasks are aborted only after the last one was looked at.
fn finished<T>(ended: Result<T, JoinError>) -> T {
    match ended.map_err(JoinError::try_into_panic) {
        Ok(value) => value,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(error)) => unreachable!("no task is aborted yet: {error}"),
    }
}
