//! Who the members of a cluster are, who of them is alive, and which of them hold which partition.
//!
//! It does no I/O, owns no clock and spawns nothing: datagrams and time come in, effects go out. It deliberately does not let liveness move
//! data: [`Swim`] only says who answers, ownership is what the [`Topology`](dunlin_protocol::Topology) says, and the ring only proposes it.
//!
//! After SWIM (Das, Gupta, Motivala 2002) as the `foca` crate has it; consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam
//! 2018); Dynamo's third partitioning strategy (DeCandia et al. 2007, section 6.2).
//!
//! Start at [`Founders`] for how a cluster begins, at [`Placement`] for who holds a key, at [`Swim`] for who is alive.

mod balance;
mod datagram;
mod founding;
mod identity;
mod placement;
mod proposal;
mod push_pull;
mod random;
mod ring;
mod roll_call;
mod shares;
mod swim;
mod topology_codec;

pub use founding::{Founders, FoundingError};
pub use placement::Placement;
pub use proposal::{ALGORITHM, ProposalError, propose};
pub use push_pull::{Exchange, ExchangeError, exchange};
pub use ring::Ring;
pub use roll_call::{Pledge, RollCall, RollConflict, RollStep};
pub use swim::{Swim, SwimConfig, SwimEffect, SwimError};
pub use topology_codec::{MAX_TOPOLOGY_BYTES, TopologyError, decode_topology, encode_topology};
