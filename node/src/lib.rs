//! A node of a Dunlin cluster.
//!
//! [`transport`] carries messages between nodes and from clients over QUIC.

mod coordinator;
mod gossip;
mod node;
mod outbox;
mod peers;
mod replica;
mod timekeeper;
pub mod transport;

pub use coordinator::CoordinatorConfig;
pub use node::{Node, NodeConfig};
pub use outbox::{Input, Outbox, ReplyTo};
