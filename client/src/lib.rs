//! The Rust client of Dunlin.
//!
//! Start at [`Client`]. It keeps one QUIC connection per node, sends each operation to a replica of its key by the cluster's topology, and goes
//! to another node when one does not answer, without ever applying a write twice: [`Attempts`] has the rules (PROTOCOL.md 1.2 and 2.1) as
//! a pure machine over a [`Session`], which a simulator can drive as well.
//!
//! It does not cache values, does not speak for several clusters at once, and never takes an uncertain outcome for a certain one:
//! [`Error::is_indefinite`] tells.

mod attempts;
mod client;
mod clock;
mod connecting;
mod connection;
mod core;
mod dial;
mod error;
#[cfg(feature = "load")]
pub mod load;
mod options;
mod pool;
mod request;
mod route;
mod scan;
mod session;
mod ticks;
mod tls;

pub use dunlin_protocol::message::{NodeSummary, ScanCursor};
pub use dunlin_protocol::{Attributes, Condition, Key, Level, Millis, NodeId, OpId, Stamp, Status, Topology};

pub use attempts::{Attempts, Event, Step};
pub use client::{Client, ClusterStatus};
pub use clock::ClusterClock;
pub use error::{ConnectError, Error, ProtocolError};
pub use options::Options;
pub use request::{Found, Get, OutcomeQuery, ResponseFuture, Write, Written};
pub use route::Route;
pub use scan::{Entry, Pages, Scan};
pub use session::Session;
pub use tls::CaError;
