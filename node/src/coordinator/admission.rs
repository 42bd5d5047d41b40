//! What an operation must satisfy before anything is sent for it.

use std::time::Duration;

use dunlin_protocol::{
    Action, Attributes, Condition, DrawError, KeyspaceId, Level, Mutation, Operation, Outcome, PartitionId,
    PreferenceList, Stamp, Status,
};
use dunlin_storage::{Found, KeyRef, ReadError};

use super::{Below, Coordinator};

/// What was stored within so short a time may have been under way together with a write that arrives now.
const CONCURRENT: Duration = Duration::from_millis(10);
/// A timeout that a client asks for is cut to this.
pub(super) const LONGEST_TIMEOUT: Duration = Duration::from_secs(120);

impl Coordinator {
    /// Checks an operation, fills in what it leaves to the coordinator (level, operation id), and merges its stamps into the clock.
    /// An error has taken no effect.
    pub(super) fn admit(
        &self,
        mut operation: Operation,
        below: &mut Below<'_>,
    ) -> Result<(Operation, Duration), Outcome> {
        let wall = below.now.wall;
        if self.in_flight() >= self.config.max_in_flight {
            return Err(Outcome::because(
                Status::Overloaded,
                format!("{} operations are under way here", self.in_flight()),
            ));
        }
        let topology = below.placement.topology();
        let Some(keyspace) = topology.keyspace(operation.keyspace) else {
            return Err(Outcome::because(
                Status::UnknownKeyspace,
                format!("there is no keyspace with id {}", operation.keyspace),
            ));
        };
        if operation.keyspace == KeyspaceId::SYSTEM && operation.action.is_write() {
            return Err(Outcome::because(Status::InvalidArgument, "the keyspace `system` is the cluster's own"));
        }
        self.check_action(&operation.action)?;
        let default = if operation.action.is_write() { keyspace.write_level } else { keyspace.read_level };
        let level =
            *operation.level.get_or_insert(if operation.action.is_conditional() { Level::Serial } else { default });
        let replicas = usize::from(topology.assignments[usize::from(keyspace.assignment)].replicas);
        if level.need(replicas) > replicas {
            let message = format!("level {level} needs more replicas than the {replicas} that each key has");
            return Err(Outcome::because(Status::InvalidLevel, message));
        }
        if operation.action.is_conditional() && level != Level::Serial {
            let message = format!("a conditional operation is always serial, it cannot run at level {level}");
            return Err(Outcome::because(Status::InvalidLevel, message));
        }
        let skewed = |skew: dunlin_protocol::ClockSkew| Outcome::because(Status::ClockSkew, skew.to_string());
        // Whatever a client carries along may not keep this node from drawing stamps (2.7).
        let furthest = wall + (self.times.max_clock_skew / 2).saturating_sub(self.times.redraw_window);
        if operation.seen.wall().max(operation.op_id.wall()) > furthest {
            return Err(Outcome::because(
                Status::ClockSkew,
                "the request carries a stamp too far ahead of this node's clock",
            ));
        }
        below.clock.observe(operation.seen, wall).map_err(skewed)?;
        self.check_op_id(&mut operation, below)?;
        below.clock.observe(operation.op_id, wall).map_err(skewed)?;
        let timeout = Duration::from_millis(u64::from(operation.timeout_millis)).min(LONGEST_TIMEOUT);
        Ok((operation, timeout))
    }

    fn check_action(&self, action: &Action) -> Result<(), Outcome> {
        let Action::Write { condition, mutation } = action else { return Ok(()) };
        let fits = |len: usize| match len <= self.config.max_value_bytes {
            true => Ok(()),
            false => {
                let message = format!("a value of {len} bytes is larger than {}", self.config.max_value_bytes);
                Err(Outcome::because(Status::ValueTooLarge, message))
            }
        };
        if let Some(Condition::Value(expected)) = condition {
            fits(expected.len())?;
        }
        if let Mutation::Put { value, attributes, .. } = mutation {
            fits(value.len())?;
            if attributes.byte_len() > Attributes::MAX_LEN {
                let message =
                    format!("attributes have at most {} bytes, not {}", Attributes::MAX_LEN, attributes.byte_len());
                return Err(Outcome::because(Status::InvalidArgument, message));
            }
        }
        Ok(())
    }

    /// Operation ids and windows (PROTOCOL.md 1.2 and 2.1).
    fn check_op_id(&self, operation: &mut Operation, below: &mut Below<'_>) -> Result<(), Outcome> {
        let wall = below.now.wall;
        let needs_draw = operation.op_id.is_zero();
        if needs_draw && operation.action == Action::Outcome {
            return Err(Outcome::because(Status::InvalidArgument, "an outcome is asked for by the operation's id"));
        }
        if needs_draw {
            operation.op_id = match below.clock.draw(wall) {
                Ok(op_id) => op_id,
                // A read's id decides nothing; only a write has to wait until the reserve is durable again.
                Err(DrawError::NoReserve) if !operation.action.is_write() => {
                    Stamp::from_hlc(below.clock.hlc().max(wall.0 << 16), 0)
                }
                Err(error) => return Err(Outcome::because(Status::NotReady, error.to_string())),
            };
        } else if !below.clock.is_confirmed() {
            return Err(Outcome::because(Status::NotReady, "this node's time is not confirmed by a majority yet"));
        }
        let at = operation.op_id.wall();
        if at + self.times.op_lifetime < wall {
            return Err(Outcome::because(
                Status::OpExpired,
                format!("the operation id is {} s old", wall.since(at).as_secs()),
            ));
        }
        let newest = dunlin_protocol::Millis(below.clock.hlc() >> 16).max(wall) + self.times.redraw_window;
        let near = at >= wall.minus(self.times.redraw_window) && at <= newest;
        if !needs_draw && !operation.tried && operation.action != Action::Outcome && !near {
            return Err(Outcome::because(Status::Redraw, "the operation id is not near the cluster's time"));
        }
        // Ballots are drawn above the hybrid clock, which runs ahead of the physical one where other nodes' clocks do.
        let latest = below.clock.hlc().max(wall.0 << 16);
        if operation.window.limit <= latest {
            let refused = Outcome::because(Status::Redraw, "the attempt arrived after its limit");
            // A clock far ahead concerns this node alone: told to clients, it would drag all others along.
            let tells = dunlin_protocol::Millis(latest >> 16).since(wall) <= self.times.max_clock_skew / 4;
            let seen = if tells { Stamp::from_hlc(latest, self.me.0) } else { Stamp::ZERO };
            return Err(Outcome { seen, ..refused });
        }
        if operation.window.floor > below.clock.hlc().max(wall.0 << 16) {
            // Ballots above the clock would drag every other clock along; a client waits until its floor is past (2.1).
            let ahead = dunlin_protocol::Millis(operation.window.floor >> 16).since(wall);
            if ahead > self.times.max_clock_skew / 4 {
                return Err(Outcome::because(Status::ClockSkew, "the attempt's window lies too far ahead"));
            }
        }
        Ok(())
    }
}

impl Coordinator {
    /// The version that a plain write would lose to although it lay here before the write began: its id comes from a clock that is behind, or the
    /// version from one that was ahead. Nothing was sent yet, so the client draws a later id, instead of being told that a write was stored which
    /// nobody will ever see. What was stored a moment ago may be concurrent and is left to the stamps. An error: that has to be read from the disk;
    /// `found` is what was read.
    pub(super) fn superseded_before(
        &self,
        operation: &Operation,
        partition: PartitionId,
        list: &PreferenceList,
        found: Option<&Found>,
        below: &Below<'_>,
    ) -> Result<Option<Stamp>, Cold> {
        let is_plain = operation.action.is_write() && !is_serial(operation) && !operation.tried;
        if !is_plain || list.number_of(self.me).is_none() {
            return Ok(None);
        }
        let key = KeyRef { partition, keyspace: operation.keyspace, key: operation.key.as_bytes() };
        let register = match below.replica.engine().try_entry(key, found) {
            Ok(entry) => entry.register,
            Err(ReadError::WouldBlock) => return Err(Cold),
            // What cannot be read is told by the write itself.
            Err(_) => return Ok(None),
        };
        let newest = register.head().stamp;
        let lay_here = register.stored_at + CONCURRENT < below.now.wall;
        Ok((newest > operation.op_id && register.ballot.is_zero() && lay_here).then_some(newest))
    }
}

/// It would take waiting for the disk.
pub(super) struct Cold;

/// Whether an operation goes the serial way from the start.
pub(super) fn is_serial(operation: &Operation) -> bool {
    operation.action.is_conditional() || operation.level == Some(Level::Serial) && operation.action.is_write()
}

/// The record of a plain write.
pub(super) fn plain_record(op_id: Stamp, mutation: &Mutation) -> Option<dunlin_protocol::Record> {
    use dunlin_protocol::{Content, Millis, Record};
    match mutation {
        Mutation::Put { value, attributes, ttl_millis } => {
            let expires_at = match ttl_millis {
                0 => Millis::NONE,
                ttl => op_id.wall() + Duration::from_millis(*ttl),
            };
            Some(Record::plain(op_id, Content::Value(value.clone(), attributes.clone()), expires_at))
        }
        Mutation::Delete => Some(Record::plain(op_id, Content::Tombstone, Millis::NONE)),
        Mutation::Increment { .. } => None,
    }
}
