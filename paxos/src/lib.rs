//! The serial path of one key: CASPaxos (Rystsov 2018) with the rules of PROTOCOL.md 1.5 (proposer), 1.8 (outcome query), the windows of 1.2 and
//! the expiry decision of 2.3.
//!
//! [`Proposer`] is one attempt at one operation. It sends nothing itself: it is driven with answers and timeouts and leaves [`Effect`]s behind.
//! It does no I/O, owns no clock and spawns nothing; its acceptor is [`dunlin_protocol::register`]. It does not place keys, fetch topologies or
//! judge client deadlines beyond its own, and it uses the two-round form only (no `next` of 1.7).
//!
//! Start at [`Proposer`].

mod backoff;
mod config;
mod effect;
#[cfg(test)]
mod explore;
mod goal;
mod judge;
mod lineage;
mod proposer;
mod tally;

pub use config::{Config, Context};
pub use effect::{Effect, Ending};
pub use goal::Goal;
pub use proposer::Proposer;
