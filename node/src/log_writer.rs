//! The one writer of a node's disk: the log's group commits, the hybrid clock's reserve, and the topology.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use dunlin_membership::decode_topology;
use dunlin_protocol::{Millis, Topology};
use dunlin_storage::{ClockFile, Disk, Engine, FileError, Identity, WriteError, store_blob};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::scrubber::{SCRUB, ScrubSettings, Scrubber};

/// The file that keeps the newest topology that was adopted.
pub(crate) const TOPOLOGY: &str = "TOPOLOGY";

/// The small files of a node's data directory that are its own, each a [blob](dunlin_storage::store_blob).
pub const BLOBS: [&str; 2] = [TOPOLOGY, SCRUB];

/// Where the disk is waited for: the writer, and what the node reads and must not wait for.
pub enum WriterPlace {
    /// On threads of their own.
    Thread,
    /// On the runtime's thread, each step after this time: for simulations, whose disks are in memory and whose time is not real.
    Task {
        /// How long the next write or read takes.
        latency: Rc<dyn Fn() -> Duration>,
    },
}

/// What became durable since it was last asked.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// The log got further.
    pub(crate) log: bool,
    /// The reserve reaches up to here.
    pub(crate) reserved: Option<Millis>,
    /// The topology that was handed over last is stored.
    pub(crate) topology: bool,
    /// What failed; the log's writer then stops for ever.
    pub(crate) failed: Option<Failed>,
}

/// Why something did not become durable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    #[error("the log: {0}")]
    Log(#[from] WriteError),
    #[error("the clock's reserve or the topology: {0}")]
    File(#[from] FileError),
}

/// Hands work to the writer and tells what it got done.
pub(crate) struct LogWriter {
    shared: Arc<Shared>,
    threads: RefCell<Vec<JoinHandle<()>>>,
    /// In a simulation: the work, done by [`run_task`](Self::run_task).
    task: RefCell<Option<Work>>,
    latency: Option<Rc<dyn Fn() -> Duration>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Orders came, for the thread.
    ordered: Condvar,
    /// Upkeep may have something to do, for its thread.
    upkeep: Condvar,
    /// The scrubber's thread is to stop.
    scrub: Condvar,
    /// Orders came, for the task.
    ordered_task: Notify,
    /// Progress was made.
    progressed: Notify,
}

#[derive(Default)]
struct State {
    orders: Orders,
    upkeep: bool,
    stop: bool,
    progress: Progress,
}

#[derive(Default)]
struct Orders {
    log: bool,
    reserve: Option<Millis>,
    topology: Option<Bytes>,
    /// Nothing comes any more.
    close: bool,
}

impl Orders {
    fn is_empty(&self) -> bool {
        !self.log && self.reserve.is_none() && self.topology.is_none() && !self.close
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the writer's orders")
    }

    fn order(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.lock().orders);
        self.ordered.notify_one();
        self.ordered_task.notify_one();
    }

    fn order_upkeep(&self) {
        self.lock().upkeep = true;
        self.upkeep.notify_one();
    }

    fn report(&self, report: impl FnOnce(&mut Progress)) {
        report(&mut self.lock().progress);
        self.progressed.notify_one();
    }
}

/// What does the writing.
struct Work {
    engine: Arc<Engine>,
    clock: ClockFile,
    disk: Arc<dyn Disk>,
    /// The log failed: it takes nothing any more, and was reported once.
    log_failed: bool,
    /// The disk was full when it was last looked at.
    disk_full: bool,
    /// Whether upkeep has no thread of its own.
    does_upkeep: bool,
    upkeep: Upkeep,
    /// What was written is to be synced by then, where the engine does not do it at once.
    sync_at: Option<Instant>,
}

impl Work {
    fn carry_out(&mut self, orders: Orders, shared: &Shared) {
        // First what others wait for; but one batch at a time, or under load the reserve would never have its turn.
        if orders.log && !self.log_failed {
            match self.engine.write_pending() {
                Ok(true) => {
                    shared.report(|p| p.log = true);
                    // More may have gathered meanwhile, and the engine wakes only when nothing was pending.
                    shared.order(|orders| orders.log = true);
                }
                Ok(false) => {}
                Err(error) => {
                    self.log_failed = true;
                    // The log may have got further all the same.
                    shared.report(|p| (p.log, p.failed) = (true, Some(error.into())));
                }
            }
        }
        self.sync_in_time(shared);
        self.tell_disk_full();
        // Garbage asks for nothing: whoever looks after it looks for it, too.
        if self.does_upkeep {
            self.upkeep.step(&self.engine);
        } else if self.engine.wants_upkeep() {
            shared.order_upkeep();
        }
        if let Some(until) = orders.reserve {
            match self.clock.reserve(until) {
                Ok(()) => shared.report(|p| p.reserved = Some(until)),
                Err(error) => shared.report(|p| p.failed = Some(error.into())),
            }
        }
        if let Some(topology) = orders.topology {
            match store_blob(&*self.disk, TOPOLOGY, &topology).and_then(|()| mark_founded(&*self.disk, &topology)) {
                Ok(()) => shared.report(|p| p.topology = true),
                Err(error) => shared.report(|p| p.failed = Some(error.into())),
            }
        }
        if orders.close && !self.log_failed {
            match self.engine.close() {
                Ok(()) => shared.report(|p| p.log = true),
                // Then damage of the log's last part would be taken for a write that a crash had torn.
                Err(WriteError::DiskFull) => tracing::warn!("the disk is full: the log's end cannot be noted"),
                Err(error) => shared.report(|p| (p.log, p.failed) = (true, Some(error.into()))),
            }
        }
    }

    fn sync_in_time(&mut self, shared: &Shared) {
        let Some(interval) = self.engine.sync_within().filter(|_| !self.log_failed) else {
            self.sync_at = None;
            return;
        };
        let now = Instant::now();
        if *self.sync_at.get_or_insert(now + interval) > now {
            return;
        }
        self.sync_at = None;
        if let Err(error) = self.engine.sync_written() {
            self.log_failed = true;
            shared.report(|p| p.failed = Some(error.into()));
        }
    }

    fn tell_disk_full(&mut self) {
        let disk_full = self.engine.is_disk_full();
        if disk_full != std::mem::replace(&mut self.disk_full, disk_full) {
            if disk_full {
                tracing::warn!("the disk is full: writes are refused until there is room; reads and deletes go on");
            } else {
                tracing::info!("the disk has room again");
            }
        }
    }
}

/// From now on the directory is one of a cluster that was founded, and may not be without a topology any more.
fn mark_founded(disk: &dyn Disk, topology: &[u8]) -> Result<(), FileError> {
    let founded = decode_topology(topology).ok().filter(Topology::is_founded);
    match (founded, Identity::load(disk)?) {
        (Some(topology), Some(identity)) if identity.cluster.is_none() => {
            Identity { cluster: Some(topology.cluster), ..identity }.store(disk)
        }
        _ => Ok(()),
    }
}

impl LogWriter {
    /// Starts to write what the engine has pending and will have.
    pub(crate) fn start(
        place: WriterPlace,
        engine: Arc<Engine>,
        clock: ClockFile,
        disk: Arc<dyn Disk>,
        scrub: ScrubSettings,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let waker = Arc::downgrade(&shared);
        engine.set_turn_waker(Box::new(move || {
            if let Some(shared) = waker.upgrade() {
                shared.order(|orders| orders.log = true);
            }
        }));
        // What recovery left pending.
        shared.order(|orders| orders.log = true);
        let does_upkeep = matches!(place, WriterPlace::Task { .. });
        let work = Work {
            engine: engine.clone(),
            clock,
            disk: disk.clone(),
            log_failed: false,
            disk_full: false,
            does_upkeep,
            upkeep: Upkeep::default(),
            sync_at: None,
        };
        let (mut threads, mut task, mut delay) = (Vec::new(), None, None);
        match place {
            WriterPlace::Task { latency } => (task, delay) = (Some(work), Some(latency)),
            WriterPlace::Thread => {
                let theirs = shared.clone();
                let builder = std::thread::Builder::new().name("dunlin-log".to_owned());
                threads.push(builder.spawn(move || run_thread(work, &theirs))?);
                let (theirs, upkept) = (shared.clone(), engine.clone());
                let builder = std::thread::Builder::new().name("dunlin-upkeep".to_owned());
                threads.push(builder.spawn(move || run_upkeep(&upkept, &theirs))?);
                if scrub.period.is_some() {
                    let theirs = shared.clone();
                    let builder = std::thread::Builder::new().name("dunlin-scrub".to_owned());
                    threads.push(builder.spawn(move || run_scrubber(scrub, &engine, &*disk, &theirs))?);
                }
            }
        }
        Ok(Self { shared, threads: threads.into(), task: task.into(), latency: delay })
    }

    /// Wants the clock's reserve durable up to `until`.
    pub(crate) fn reserve(&self, until: Millis) {
        self.shared.order(|orders| orders.reserve = orders.reserve.max(Some(until)));
    }

    /// Wants this topology durable.
    pub(crate) fn store_topology(&self, topology: Bytes) {
        self.shared.order(|orders| orders.topology = Some(topology));
    }

    /// Waits for progress, and takes it.
    pub(crate) async fn progress(&self) -> Progress {
        self.shared.progressed.notified().await;
        std::mem::take(&mut self.shared.lock().progress)
    }

    /// Does the work where there is no thread for it; never ends.
    pub(crate) async fn run_task(&self) {
        loop {
            let sync_at = self.task.borrow().as_ref().and_then(|work| work.sync_at);
            let ordered = self.shared.ordered_task.notified();
            match sync_at {
                // That the time is over is an order, too.
                Some(sync_at) => drop(tokio::time::timeout_at(sync_at, ordered).await),
                None => ordered.await,
            }
            if self.task.borrow().is_none() {
                continue;
            }
            tokio::time::sleep(self.latency.as_ref().map_or(Duration::ZERO, |latency| latency())).await;
            let orders = std::mem::take(&mut self.shared.lock().orders);
            if let Some(work) = &mut *self.task.borrow_mut() {
                work.carry_out(orders, &self.shared);
            }
        }
    }

    /// Writes what is still pending, notes where the log ends, and stops; then tells the last progress. Blocks for as long as the disk takes.
    pub(crate) fn stop(&self) -> Progress {
        self.shared.order(|orders| orders.close = true);
        self.stop_threads();
        if let Some(mut work) = self.task.take() {
            let orders = std::mem::take(&mut self.shared.lock().orders);
            work.carry_out(orders, &self.shared);
        }
        std::mem::take(&mut self.shared.lock().progress)
    }

    fn stop_threads(&self) {
        self.shared.lock().stop = true;
        self.shared.ordered.notify_one();
        self.shared.upkeep.notify_one();
        self.shared.scrub.notify_one();
        for thread in self.threads.take() {
            if thread.join().is_err() {
                tracing::error!("the log writer or the upkeep panicked");
            }
        }
    }
}

impl Drop for LogWriter {
    /// Stops the thread after the step that it is at. What is pending then is not written: nobody was told that it is durable.
    fn drop(&mut self) {
        self.shared.lock().orders = Orders::default();
        self.stop_threads();
    }
}

/// One step of the engine's upkeep moves about so many bytes.
const UPKEEP_SLICE: u64 = 256 << 10;

/// How far the scrubber is is kept this often, besides at the end.
const KEEP_SCRUB: Duration = Duration::from_secs(600);

/// The engine's upkeep.
#[derive(Default)]
struct Upkeep {
    /// The last step failed, which was told.
    has_failed: bool,
}

impl Upkeep {
    /// Whether there is more to do.
    fn step(&mut self, engine: &Engine) -> bool {
        self.tell(engine.maintain(UPKEEP_SLICE))
    }

    /// Nothing was written for a while.
    fn rest(&mut self, engine: &Engine) {
        self.tell(engine.rest());
    }

    fn tell(&mut self, done: Result<bool, WriteError>) -> bool {
        let had_failed = std::mem::replace(&mut self.has_failed, done.is_err());
        done.unwrap_or_else(|error| {
            if !had_failed {
                tracing::warn!(%error, "the engine's upkeep failed and will be tried again");
            }
            false
        })
    }
}

/// After so long upkeep looks for itself whether there is something to do: damage that a read meets is noted, and orders nothing. When nothing was
/// written meanwhile, the log gives back what it does not need at rest.
const REST_AFTER: Duration = Duration::from_secs(2);

/// Flushes, merges and collects whenever there is something to do, beside the writer.
fn run_upkeep(engine: &Engine, shared: &Shared) {
    let mut upkeep = Upkeep::default();
    let mut end = None;
    loop {
        let idle = |state: &mut State| !state.upkeep && !state.stop;
        let waited = shared.upkeep.wait_timeout_while(shared.lock(), REST_AFTER, idle);
        let (mut state, waited) = waited.expect("no thread panics while it holds the writer's orders");
        if state.stop {
            return;
        }
        state.upkeep = false;
        drop(state);
        let is_at_rest = waited.timed_out() && end == Some(engine.end());
        end = Some(engine.end());
        if is_at_rest {
            upkeep.rest(engine);
        }
        while upkeep.step(engine) && !shared.lock().stop {}
    }
}

/// Reads everything again and again, slowly.
fn run_scrubber(settings: ScrubSettings, engine: &Engine, disk: &dyn Disk, shared: &Shared) {
    let wall = crate::server::system_time;
    let Some(mut scrubber) = Scrubber::open(settings, engine, disk, wall()) else { return };
    let keep = |scrubber: &Scrubber| {
        if let Err(error) = scrubber.store(engine, disk) {
            // Then the next life reads some of it again.
            tracing::debug!(%error, "how far the scrubber is cannot be kept");
        }
    };
    let mut kept = wall();
    loop {
        let step = scrubber.step(engine, wall());
        if step.found_damage {
            shared.order_upkeep();
        }
        let waited = shared.scrub.wait_timeout_while(shared.lock(), step.pause, |state| !state.stop);
        if waited.expect("no thread panics while it holds the writer's orders").0.stop {
            return keep(&scrubber);
        }
        if Duration::from_millis(wall().0.abs_diff(kept.0)) >= KEEP_SCRUB {
            keep(&scrubber);
            kept = wall();
        }
    }
}

fn run_thread(mut work: Work, shared: &Shared) {
    loop {
        let (orders, stop) = {
            let idle = |state: &mut State| state.orders.is_empty() && !state.stop;
            let state = shared.lock();
            let waited = match work.sync_at {
                Some(sync_at) => {
                    let time = sync_at.saturating_duration_since(Instant::now());
                    shared.ordered.wait_timeout_while(state, time, idle).map(|(state, _)| state).map_err(drop)
                }
                None => shared.ordered.wait_while(state, idle).map_err(drop),
            };
            let mut state = waited.expect("no thread panics while it holds the writer's orders");
            (std::mem::take(&mut state.orders), state.stop)
        };
        if orders.is_empty() && stop {
            return;
        }
        work.carry_out(orders, shared);
    }
}
