//! The plain path of PROTOCOL.md (1.4, 1.6 and 2.2): last-writer-wins writes, reads at any level with digests, write-back and repair, and
//! scans. One machine for one operation under way; each is handed the time, told each answer, and speaks only in effects.
//!
//! It deliberately does not know nodes, epochs, connections or expiry on serial keys: a replica is a number in the preference list, the driver
//! maps it to a node, and what only a proposer can tell ends in `GoSerial` for the driver to carry on. It does no I/O and owns no clock.
//! The paths follow Dynamo (SOSP 2007) and ABD registers with write-back.
//!
//! Start at [`Write`] and [`Read`]; [`Scan`] does for a page of keys what the read does for one.

mod asking;
mod effect;
mod latency;
mod need;
mod read;
mod repair;
mod scan;
mod settled;
mod write;

pub use effect::{Effect, ReadEffect, WriteEffect};
pub use latency::Latency;
pub use read::{Read, ReadEnding};
pub use scan::{PageRequest, Scan, ScanEffect, ScanEnding, ScanItem, ScanPlan};
pub use write::{Write, WriteEnding};
