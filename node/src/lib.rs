//! A node of a Dunlin cluster.
//!
//! [`Node`] is all of it as one state machine; [`Server`] is the shell that runs it on a disk, a clock and a [`transport`], as its [`config`] says.

mod cold_read;
pub mod config;
mod coordinator;
mod gossip;
mod log_writer;
mod node;
mod outbox;
mod peers;
mod readers;
mod reading;
mod replica;
mod scrubber;
mod server;
mod timekeeper;
pub mod transport;

pub use cold_read::{ColdRead, ReadDone};
pub use coordinator::CoordinatorConfig;
pub use log_writer::{BLOBS, WriterPlace};
pub use node::{Node, NodeConfig};
pub use outbox::{Input, Outbox, ReplyTo};
pub use scrubber::ScrubSettings;
pub use server::{Environment, Probe, ServeError, Server};
