//! The load generator behind `dunlin bench`: [`Load`] sends what a [`Plan`] says to a [`Store`] and measures it as a [`Report`].
//!
//! In a closed loop each client has one request under way at a time. In an open loop requests have intended starts, a fixed rate apart,
//! and latencies count from those: a store that stalls pays for every request that it kept from being sent, not only for the one that it kept
//! waiting (no coordinated omission).
//!
//! It runs on the runtime that it is called on, one task a client, and measures itself as little as it can: an operation costs it two clock
//! reads, two uncontended locks and one key.

mod family;
mod latencies;
mod meter;
mod pace;
mod plan;
mod report;
mod run;
mod schedule;
mod store;
mod traffic;

#[cfg(test)]
mod tests;

pub use plan::{InvalidPlan, Plan, Workload};
pub use report::{Latency, Progress, Report, Series};
pub use run::{Load, PrepareError};
pub use store::{Failed, Request, Store};
