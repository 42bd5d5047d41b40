//! Threads that wait until something numbered is done, each woken only for its own.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::Thread;

#[derive(Default)]
pub(crate) struct Waiters {
    done_upto: AtomicU64,
    /// By number, and by a count of those who came.
    waiting: Mutex<(u64, BTreeMap<(u64, u64), Thread>)>,
}

impl Waiters {
    /// Waits until everything up to a number is done.
    pub(crate) fn wait(&self, number: u64) {
        let is_done = || self.done_upto.load(Ordering::Acquire) >= number;
        {
            let (came, waiting) = &mut *self.waiting.lock().expect("sound");
            if is_done() {
                return;
            }
            *came += 1;
            waiting.insert((number, *came), std::thread::current());
        }
        while !is_done() {
            std::thread::park();
        }
    }

    /// Everything up to a number is done.
    pub(crate) fn publish(&self, upto: u64) {
        let done = {
            let (_, waiting) = &mut *self.waiting.lock().expect("sound");
            self.done_upto.store(upto, Ordering::Release);
            let later = waiting.split_off(&(upto + 1, 0));
            std::mem::replace(waiting, later)
        };
        done.into_values().for_each(|thread| thread.unpark());
    }
}
