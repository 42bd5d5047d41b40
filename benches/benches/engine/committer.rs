//! Group commit for stores that have none: whoever writes hands its pair to one thread, which commits all that wait at once.

use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use crate::keys::Key;

#[derive(Default)]
struct State {
    waiting: Vec<(Key, Vec<u8>)>,
    /// The number of the batch that gathers, and of the last one that is durable.
    gathering: u64,
    durable: u64,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    came: Condvar,
    done: Condvar,
}

pub(crate) struct Committer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Committer {
    /// `commit` makes a batch durable.
    pub(crate) fn start(commit: impl Fn(Vec<(Key, Vec<u8>)>) + Send + 'static) -> Self {
        let shared =
            Arc::new(Shared { state: Mutex::new(State { gathering: 1, ..State::default() }), ..Shared::default() });
        let theirs = shared.clone();
        let thread = std::thread::spawn(move || {
            loop {
                let idle = |state: &mut State| state.waiting.is_empty() && !state.closed;
                let mut state = theirs.came.wait_while(theirs.state.lock().expect("sound"), idle).expect("sound");
                if state.waiting.is_empty() {
                    return;
                }
                let batch = std::mem::take(&mut state.waiting);
                let number = state.gathering;
                state.gathering += 1;
                drop(state);
                commit(batch);
                theirs.state.lock().expect("sound").durable = number;
                theirs.done.notify_all();
            }
        });
        Self { shared, thread: Some(thread) }
    }

    pub(crate) fn put(&self, key: &Key, value: &[u8]) {
        let mut state = self.shared.state.lock().expect("sound");
        state.waiting.push((*key, value.to_vec()));
        let number = state.gathering;
        self.shared.came.notify_one();
        let waits = |state: &mut State| state.durable < number;
        drop(self.shared.done.wait_while(state, waits).expect("sound"));
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        if let Ok(mut state) = self.shared.state.lock() {
            state.closed = true;
        }
        self.shared.came.notify_one();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("it commits in order");
        }
    }
}
