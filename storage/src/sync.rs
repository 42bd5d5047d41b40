//! What threads race on and wait for: the standard library's, or, for `tests/shuttle/`, types whose every use is a choice of the scheduler.
//!
//! The engine takes locks, condition variables and atomics from here only. `Arc` and `OnceLock` are the standard library's wherever nothing that is
//! scheduled runs inside them.

#[cfg(not(feature = "shuttle"))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, RwLock, atomic};

#[cfg(feature = "shuttle")]
pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard, RwLock, atomic};
