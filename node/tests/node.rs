//! Tests of a node's parts from outside.

#[path = "node/server.rs"]
mod server;
#[path = "node/transport.rs"]
mod transport;
