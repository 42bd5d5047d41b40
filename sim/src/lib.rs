//! Whole Dunlin clusters under seeded faults, and the checkers of what they promise.
//!
//! [`simulate`] runs five of the very nodes that production runs, on virtual time: simulated disks that lose what was not synced, clocks that are
//! off and jump, a network that partitions, loses and delays, and clients that drive the client library's own machine. A seed decides all of it,
//! and [`Verdict::trace_hash`] proves that. What the clients saw is a [`history`], which the [`checker`] judges: serial keys must be linearizable
//! (Wing and Gong, with Lowe's pruning), plain ones must keep what their levels promise.
//!
//! A node there is the state machine alone: no QUIC, no files, no threads. Messages still go through the codec. [`simulate_over_quic`] plays the
//! same scenario with the whole server and the whole client, over real QUIC.

mod agenda;
pub mod checker;
mod client;
mod cluster;
mod faults;
pub mod history;
mod network;
mod quic;
mod random;
mod trace;
mod verdict;
mod workload;
mod world;

pub use verdict::{Counts, Verdict, Violation};
pub use workload::Usage;

/// Runs a seed and judges what happened. `aloud`: print every event to standard error.
pub fn simulate(seed: u64, aloud: bool) -> Verdict {
    let run = world::World::new(seed, aloud).run();
    Verdict::of(seed, &run)
}

/// As [`simulate`], with real servers, real clients and real QUIC on a simulated network, disks and clocks: slower, and closer to what runs.
pub fn simulate_over_quic(seed: u64, aloud: bool) -> Verdict {
    Verdict::of(seed, &quic::run(seed, aloud))
}
