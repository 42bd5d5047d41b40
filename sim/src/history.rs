//! `History`: what clients asked and what they were told, as the checker judges it.

use std::fmt;

use dunlin_protocol::Stamp;

/// What a workload writes: a number, stored as its decimal text. Every write draws a number of its own, and far enough from all others that
/// increments never meet them.
pub type Value = i64;

/// What the level of an operation promises.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Promise {
    /// Below the majority: nothing, except that a read returns something that was written.
    Weak,
    /// Quorum or above, on the plain path as long as the key is plain.
    Quorum,
    /// Serial.
    Serial,
}

/// What must hold for a conditional write.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Expect {
    /// The version is this one.
    Version(Stamp),
    /// There is no value.
    Absent,
    /// The value is this one.
    Value(Value),
}

/// What a client asks of a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Call {
    /// The value.
    Read,
    /// Store a value.
    Put(Value),
    /// Leave none.
    Delete,
    /// Store a value (none: delete) if something holds.
    Cas {
        /// The condition.
        expect: Expect,
        /// The value to store.
        new: Option<Value>,
    },
    /// Add to the value; none counts as 0.
    Increment(Value),
    /// An outcome query (PROTOCOL.md 1.8): the key keeps its value, but may get another version. What the query found out goes to the event
    /// that it was about: applied ends that one now, as [`Reply::Written`] without a version, not applied as [`Ending::Failed`].
    Outcome,
}

impl Call {
    /// Whether the call may change the key.
    pub fn is_write(self) -> bool {
        self != Self::Read
    }

    /// Whether the call can only be decided on the serial path, whatever its level.
    pub fn is_conditional(self) -> bool {
        matches!(self, Self::Cas { .. } | Self::Increment(_) | Self::Outcome)
    }
}

/// What a client was told. Version zero: none was told.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reply {
    /// To a read.
    Read {
        /// None: there is no value.
        value: Option<Value>,
        /// Its version.
        version: Stamp,
    },
    /// To a write: it was applied. To an outcome query: it was answered.
    Written {
        /// At this version.
        version: Stamp,
        /// After an increment, where it was told: the new number.
        number: Option<Value>,
    },
    /// To a conditional write: the condition did not hold.
    ConditionFailed {
        /// The current version.
        version: Stamp,
    },
}

impl Reply {
    /// The version told; zero: none.
    pub fn version(&self) -> Stamp {
        match self {
            Self::Read { version, .. } | Self::Written { version, .. } | Self::ConditionFailed { version } => *version,
        }
    }
}

/// How a call ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ending {
    /// With this reply.
    Done(Reply),
    /// It took no effect and never will.
    Failed,
    /// It may take effect at any time after its invocation, or never.
    Unknown,
}

/// One operation of one client. All attempts at it, under one operation id, are one event.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Event {
    /// Who asked. A client asks one thing at a time.
    pub client: u32,
    /// The number of the key.
    pub key: u32,
    /// By its level.
    pub promise: Promise,
    /// What was asked.
    pub call: Call,
    /// The operation's id. Needed for plain writes, which go by it; a plain write acknowledged at this very version never left the plain path.
    pub op_id: Stamp,
    /// When, on the one clock of the observer.
    pub invoked_at: u64,
    /// When and how it ended; none: it had not when the history was closed.
    pub returned: Option<(u64, Ending)>,
}

impl Event {
    /// The reply and when it came.
    pub fn reply(&self) -> Option<(u64, Reply)> {
        match self.returned {
            Some((at, Ending::Done(reply))) => Some((at, reply)),
            _ => None,
        }
    }

    /// The version and the value that the event puts together: told by a read, or written.
    pub fn naming(&self) -> Option<(Stamp, Option<Value>)> {
        let (_, reply) = self.reply()?;
        let value = match (self.call, reply) {
            (_, Reply::Read { value, .. }) => value,
            (Call::Put(value), Reply::Written { .. }) => Some(value),
            (Call::Delete, Reply::Written { .. }) => None,
            (Call::Cas { new, .. }, Reply::Written { .. }) => new,
            (Call::Increment(_), Reply::Written { number: Some(number), .. }) => Some(number),
            _ => return None,
        };
        Some((reply.version(), value)).filter(|(version, _)| !version.is_zero())
    }

    /// Whether it certainly took no effect.
    pub fn is_failed(&self) -> bool {
        matches!(self.returned, Some((_, Ending::Failed)))
    }

    /// A write that may stay on the plain path.
    pub fn is_plain_write(&self) -> bool {
        self.promise != Promise::Serial && matches!(self.call, Call::Put(_) | Call::Delete)
    }

    /// Whether the operation prepares, and so turns the key serial at a quorum before it is answered.
    pub fn turns_serial(&self) -> bool {
        self.call.is_conditional() || self.call.is_write() && self.promise == Promise::Serial
    }

    /// Acknowledged by plain writes to a quorum alone.
    pub fn is_acknowledged_plainly(&self) -> bool {
        let plainly =
            |(_, reply): (u64, Reply)| matches!(reply, Reply::Written { version, .. } if version == self.op_id);
        self.is_plain_write() && self.promise == Promise::Quorum && self.reply().is_some_and(plainly)
    }
}

/// What happened, in the order of invocation.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct History {
    events: Vec<Event>,
}

impl History {
    /// A history without events.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an event and tells its number, by which [`end`](Self::end) knows it.
    ///
    /// # Panics
    /// If a plain write carries no operation id, or the event is older than the last one: the simulator is wrong.
    pub fn push(&mut self, event: Event) -> usize {
        assert!(!event.is_plain_write() || !event.op_id.is_zero(), "a plain write carries its operation id");
        assert!(
            self.events.last().is_none_or(|e| e.invoked_at <= event.invoked_at),
            "events come in order of invocation"
        );
        self.events.push(event);
        self.events.len() - 1
    }

    /// Says how an event ended.
    ///
    /// # Panics
    /// If it had ended already, or ends before it began.
    pub fn end(&mut self, number: usize, at: u64, ending: Ending) {
        let event = &mut self.events[number];
        assert!(event.returned.is_none() && at >= event.invoked_at, "an event ends once, and after it began");
        event.returned = Some((at, ending));
    }

    /// Every event, in order of invocation.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The keys that occur, rising.
    pub fn keys(&self) -> Vec<u32> {
        let mut keys: Vec<u32> = self.events.iter().map(|e| e.key).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// The events of one key, in order of invocation.
    pub fn of_key(&self, key: u32) -> Vec<Event> {
        self.events.iter().filter(|e| e.key == key).copied().collect()
    }
}

impl FromIterator<Event> for History {
    fn from_iter<I: IntoIterator<Item = Event>>(events: I) -> Self {
        let mut history = Self::new();
        for event in events {
            history.push(event);
        }
        history
    }
}

fn or_none(value: Option<Value>) -> String {
    value.map_or_else(|| "none".to_owned(), |v| v.to_string())
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let promise = match self.promise {
            Promise::Weak => "weak",
            Promise::Quorum => "quorum",
            Promise::Serial => "serial",
        };
        write!(f, "{promise} ")?;
        match self.call {
            Call::Read => f.write_str("read")?,
            Call::Put(value) => write!(f, "put {value}")?,
            Call::Delete => f.write_str("delete")?,
            Call::Increment(by) => write!(f, "increment by {by}")?,
            Call::Outcome => f.write_str("outcome query")?,
            Call::Cas { expect, new } => {
                write!(f, "cas {} ", or_none(new))?;
                match expect {
                    Expect::Version(version) => write!(f, "if version {version:?}")?,
                    Expect::Absent => f.write_str("if absent")?,
                    Expect::Value(value) => write!(f, "if value {value}")?,
                }
            }
        }
        if self.is_plain_write() {
            write!(f, " id {:?}", self.op_id)?;
        }
        match self.returned {
            None => f.write_str(" => still under way"),
            Some((_, Ending::Unknown)) => f.write_str(" => unknown"),
            Some((_, Ending::Failed)) => f.write_str(" => failed"),
            Some((_, Ending::Done(Reply::Read { value, version }))) => {
                write!(f, " => {} at {version:?}", or_none(value))
            }
            Some((_, Ending::Done(Reply::Written { version, number: None }))) => write!(f, " => done at {version:?}"),
            Some((_, Ending::Done(Reply::Written { version, number: Some(number) }))) => {
                write!(f, " => {number} at {version:?}")
            }
            Some((_, Ending::Done(Reply::ConditionFailed { version }))) => {
                write!(f, " => condition failed at {version:?}")
            }
        }
    }
}
