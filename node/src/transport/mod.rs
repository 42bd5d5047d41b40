//! How messages travel: one QUIC endpoint a node, one connection per peer, any number of clients.
//!
//! - A peer's connection has two streams, both opened by whoever dialled: frames of up to 64 KiB go on the first, larger ones on the second,
//!   requests and replies both ways. Datagrams carry the failure detector's messages. Frames gather in a queue while a write is under way.
//! - A client opens streams as it likes and has its requests answered on the stream that they came on, in any order, by request id.
//! - Each stream begins with a `Hello` and a `Welcome`. Whoever is refused, or sends bytes that are no frames, finds its connection closed with a
//!   [`Status`](dunlin_protocol::Status) as application error code ([`refusal`]).
//!
//! Everything runs on one thread, in a `LocalSet` of a current-thread runtime. Start at [`Transport`].

mod carrier;
mod client;
mod endpoint;
mod frames;
mod peer;
mod table;
pub mod tls;

pub use carrier::{Local, Receiver, Transport, refusal};
pub use endpoint::{ETHERNET_MTU, LARGEST_MTU, Socket, TransportSettings};
