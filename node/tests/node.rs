//! Tests of a node's parts from outside.

#[path = "node/transport.rs"]
mod transport;
