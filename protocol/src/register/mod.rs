//! One key: the replica's rule and the combination of views (PROTOCOL.md Part 1; attacked there by a model before this code was written).
//!
//! - [`Register`] is what a replica holds for a key; [`Register::decide`] is 1.3, pure; [`Register::apply`] carries out what was decided, on the
//!   live register and on replay alike.
//! - [`View`] is what a replica shows of it; [`combine`] is P2 and 1.6, used by both paths.
//!
//! Nothing here reads a clock or knows of epochs: the caller refuses stale epochs and late messages before it asks.

mod combine;
mod rule;
mod view;

pub use combine::{Combination, Current, ReadJudgement, combine, judge_read};
pub use rule::{Change, Decision, Held, Register, RegisterRequest, Verdict};
pub use view::{PendingView, RecordView, RegisterReply, View, Want};
