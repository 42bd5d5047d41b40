//! The Rust client of Dunlin.
mod attempts;
mod clock;
mod session;
pub use attempts::{Attempts, Event, Step};
pub use clock::ClusterClock;
pub use session::Session;
