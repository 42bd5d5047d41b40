//! The same scenario as on the in-memory network, but with the whole node: real quinn with real TLS, the server around the node and the
//! asynchronous client, inside turmoil, on virtual time.
//!
//! What is simulated is below the socket and below the disk: [`air`] carries the packets, [`machine`] has the disk and the clocks.
//! turmoil gives each machine its runtime, its time and its sockets. [`stage`] plays the faults, [`user`] is what a client does.
//!
//! What lies in packets is not repeatable, because TLS draws from the system; their sizes and times are, and those the trace is made of. So
//! everything whose size could vary must not: see [`certificates`].

mod air;
mod certificates;
mod machine;
mod socket;
mod stage;
mod user;

pub(crate) use stage::run;
