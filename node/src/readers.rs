//! The threads that wait for the disk where the node must not: some read, and one stages large records, as many together as have gathered.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use dunlin_storage::Engine;
use tokio::sync::Notify;

use crate::cold_read::{ColdRead, ReadDone};
use crate::log_writer::WriterPlace;

/// So many reads are under way at a time.
const THREADS: usize = 4;

/// Carries out a node's cold reads. How many there are at a time is the node's to bound.
pub(crate) struct Readers {
    engine: Arc<Engine>,
    shared: Arc<Shared>,
    threads: RefCell<Vec<JoinHandle<()>>>,
    /// In a simulation: how long the next read takes.
    latency: Option<Rc<dyn Fn() -> Duration>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something to read, for the threads.
    asked: Condvar,
    /// There is something to stage, for its thread.
    staging: Condvar,
    /// The same, for the task.
    asked_task: Notify,
    /// Something was read.
    done: Notify,
}

#[derive(Default)]
struct State {
    asked: VecDeque<ColdRead>,
    /// With a large record to be staged.
    staging: Vec<ColdRead>,
    done: Vec<ReadDone>,
    stop: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the reads")
    }

    fn carry_out(&self, read: ColdRead, engine: &Engine) {
        let done = read.carry_out(engine);
        self.lock().done.push(done);
        self.done.notify_one();
    }
}

impl Readers {
    pub(crate) fn start(place: &WriterPlace, engine: Arc<Engine>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut readers = Self { engine, shared, threads: RefCell::default(), latency: None };
        match place {
            WriterPlace::Task { latency } => readers.latency = Some(latency.clone()),
            WriterPlace::Thread => {
                let mut spawn = |name: String, run: fn(&Engine, &Shared)| {
                    let (theirs, engine) = (readers.shared.clone(), readers.engine.clone());
                    let thread = std::thread::Builder::new().name(name).spawn(move || run(&engine, &theirs))?;
                    readers.threads.get_mut().push(thread);
                    Ok::<_, std::io::Error>(())
                };
                (0..THREADS).try_for_each(|i| spawn(format!("dunlin-read-{i}"), run_reader))?;
                spawn("dunlin-stage".to_owned(), run_stager)?;
            }
        }
        Ok(readers)
    }

    /// Has it read, some time.
    pub(crate) fn read(&self, read: ColdRead) {
        if self.latency.is_none() && read.stages(&self.engine) {
            self.shared.lock().staging.push(read);
            return self.shared.staging.notify_one();
        }
        self.shared.lock().asked.push_back(read);
        self.shared.asked.notify_one();
        self.shared.asked_task.notify_one();
    }

    /// Waits until something was read, and takes it.
    pub(crate) async fn done(&self) -> Vec<ReadDone> {
        self.shared.done.notified().await;
        std::mem::take(&mut self.shared.lock().done)
    }

    /// Reads where there are no threads for it; never ends.
    pub(crate) async fn run_task(&self) {
        loop {
            self.shared.asked_task.notified().await;
            let Some(latency) = &self.latency else { continue };
            while let Some(read) = self.next() {
                tokio::time::sleep(latency()).await;
                self.shared.carry_out(read, &self.engine);
            }
        }
    }

    fn next(&self) -> Option<ColdRead> {
        self.shared.lock().asked.pop_front()
    }
}

impl Drop for Readers {
    /// Stops the threads, each after the read that it is at. Nobody waits for an answer any more.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stop = true;
        state.asked.clear();
        state.staging.clear();
        drop(state);
        self.shared.asked.notify_all();
        self.shared.staging.notify_all();
        for thread in self.threads.take() {
            if thread.join().is_err() {
                tracing::error!("a reader of the disk panicked");
            }
        }
    }
}

fn run_stager(engine: &Engine, shared: &Shared) {
    loop {
        let idle = |state: &mut State| state.staging.is_empty() && !state.stop;
        let waited = shared.staging.wait_while(shared.lock(), idle);
        let reads = std::mem::take(&mut waited.expect("no thread panics while it holds the reads").staging);
        if reads.is_empty() {
            return;
        }
        let done = ColdRead::carry_out_together(reads, engine);
        shared.lock().done.extend(done);
        shared.done.notify_one();
    }
}

fn run_reader(engine: &Engine, shared: &Shared) {
    loop {
        let idle = |state: &mut State| state.asked.is_empty() && !state.stop;
        let waited = shared.asked.wait_while(shared.lock(), idle);
        let read = waited.expect("no thread panics while it holds the reads").asked.pop_front();
        match read {
            Some(read) => shared.carry_out(read, engine),
            None => return,
        }
    }
}
