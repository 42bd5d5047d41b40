//! Tests of a node's parts from outside.

#[path = "node/cold.rs"]
mod cold;
#[path = "node/program.rs"]
mod program;
#[path = "node/server.rs"]
mod server;
#[path = "node/strangers.rs"]
mod strangers;
#[path = "node/transport.rs"]
mod transport;
