//! A node of a Dunlin cluster.
//!
//! [`transport`] carries messages between nodes and from clients over QUIC.

mod outbox;
pub mod transport;

pub use outbox::{Input, Outbox, ReplyTo};
