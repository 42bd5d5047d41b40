//! Requests on one key, built by methods and sent by awaiting them.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use dunlin_protocol::{
    Action, Attributes, Condition, Content, Key, KeyspaceId, Level, Millis, Mutation, OpId, Stamp, Status,
};

use crate::attempts::Attempts;
use crate::client::Client;
use crate::core::Ended;
use crate::error::{Error, MAX_VALUE};

/// What awaiting a request waits for.
pub type ResponseFuture<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

/// A key's value, as read.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Found {
    /// The value; empty where only its head was asked for.
    pub value: Bytes,
    /// Its attributes; none where only its head was asked for.
    pub attributes: Attributes,
    /// Its version, for conditions.
    pub version: Stamp,
    /// When it ends, by the cluster's time; [`Millis::NONE`]: never.
    pub expires_at: Millis,
}

/// A write that was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Written {
    /// The key's new version.
    pub version: Stamp,
    /// The write's id; zero where a node drew it.
    pub op_id: OpId,
    /// After an increment the new number; none where a retry cannot tell it any more.
    pub number: Option<i64>,
}

/// A read. Await it for the value; none: there is none.
#[derive(Clone, Debug)]
#[must_use = "a request is sent when it is awaited"]
pub struct Get {
    client: Client,
    key: Bytes,
    level: Option<Level>,
    timeout: Duration,
    value: bool,
}

/// A write. Await it for its version.
#[derive(Clone, Debug)]
#[must_use = "a request is sent when it is awaited"]
pub struct Write {
    client: Client,
    key: Bytes,
    level: Option<Level>,
    timeout: Duration,
    op_id: OpId,
    condition: Option<Condition>,
    mutation: Mutation,
    misused: Option<&'static str>,
}

/// A question whether a write was applied. Await it: the version that it made; none: it was not applied and never will be.
#[derive(Clone, Debug)]
#[must_use = "a request is sent when it is awaited"]
pub struct OutcomeQuery {
    client: Client,
    key: Bytes,
    op_id: OpId,
    floor: Option<u64>,
    timeout: Duration,
}

impl Get {
    pub(crate) fn new(client: Client, key: Bytes) -> Self {
        let timeout = client.core.timeout();
        Self { client, key, level: None, timeout, value: true }
    }

    /// The consistency; the keyspace's default otherwise.
    pub fn level(mut self, level: impl Into<Option<Level>>) -> Self {
        self.level = level.into();
        self
    }

    /// How long the read may take in all.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Only version and expiry, without value and attributes.
    pub fn head_only(mut self) -> Self {
        self.value = false;
        self
    }
}

impl IntoFuture for Get {
    type Output = Result<Option<Found>, Error>;
    type IntoFuture = ResponseFuture<Option<Found>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let action = Action::Read { value: self.value };
            let ended = run(&self.client, self.key, action, self.level, OpId::ZERO, self.timeout, None).await?;
            let outcome = ended.outcome;
            match outcome.status {
                Status::Ok => {
                    let (value, attributes) = match outcome.content {
                        Some(Content::Value(value, attributes)) => (value, attributes),
                        Some(Content::Tombstone) => return Ok(None),
                        None => Default::default(),
                    };
                    Ok(Some(Found { value, attributes, version: outcome.version, expires_at: outcome.expires_at }))
                }
                Status::NotFound => Ok(None),
                _ => Err(failed(Ended { outcome, ..ended })),
            }
        })
    }
}

impl Write {
    pub(crate) fn new(client: Client, key: Bytes, mutation: Mutation) -> Self {
        let timeout = client.core.timeout();
        Self { client, key, level: None, timeout, op_id: OpId::ZERO, condition: None, mutation, misused: None }
    }

    /// The consistency; the keyspace's default otherwise. What has a condition, and an increment, is always serial.
    pub fn level(mut self, level: impl Into<Option<Level>>) -> Self {
        self.level = level.into();
        self
    }

    /// How long the write may take in all, over all attempts.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The value ends this long after the write; in steps of milliseconds, at least one. Zero: never.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        match &mut self.mutation {
            Mutation::Put { ttl_millis, .. } => *ttl_millis = if ttl.is_zero() { 0 } else { millis.max(1) },
            Mutation::Delete | Mutation::Increment { .. } => {
                self.misused = Some("only a stored value has a time to live")
            }
        }
        self
    }

    /// An attribute of the value, beside those already named.
    pub fn attribute(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        match &mut self.mutation {
            Mutation::Put { attributes, .. } => attributes.0.push((name.into(), value.into())),
            Mutation::Delete | Mutation::Increment { .. } => self.misused = Some("only a stored value has attributes"),
        }
        self
    }

    /// The write's id, drawn by [`Client::draw_op_id`] just before and never used before.
    pub fn op_id(mut self, op_id: OpId) -> Self {
        self.op_id = op_id;
        self
    }

    /// Only if this holds.
    pub fn condition(mut self, condition: Condition) -> Self {
        self.condition = Some(condition);
        self
    }

    /// Only if the key's version is this one.
    pub fn if_version(self, version: Stamp) -> Self {
        self.condition(Condition::Version(version))
    }

    /// Only if the key has no value.
    pub fn if_absent(self) -> Self {
        self.condition(Condition::Absent)
    }

    /// Only if the key's value is these bytes.
    pub fn if_value(self, value: impl Into<Bytes>) -> Self {
        self.condition(Condition::Value(value.into()))
    }

    fn check(&self) -> Result<(), Error> {
        if let Some(what) = self.misused {
            return Err(Error::refused(Status::InvalidArgument, what));
        }
        let fits = |len: usize| match len <= MAX_VALUE {
            true => Ok(()),
            false => Err(Error::refused(Status::ValueTooLarge, format!("{len} bytes"))),
        };
        let mut len = 0;
        if let Some(Condition::Value(expected)) = &self.condition {
            len += expected.len();
        }
        if let Mutation::Put { value, attributes, .. } = &self.mutation {
            len += value.len();
            if attributes.byte_len() > Attributes::MAX_LEN {
                let message =
                    format!("attributes have at most {} bytes, not {}", Attributes::MAX_LEN, attributes.byte_len());
                return Err(Error::refused(Status::InvalidArgument, message));
            }
        }
        fits(len)
    }
}

impl IntoFuture for Write {
    type Output = Result<Written, Error>;
    type IntoFuture = ResponseFuture<Written>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            self.check()?;
            let action = Client::action(self.condition, self.mutation);
            let ended = run(&self.client, self.key, action, self.level, self.op_id, self.timeout, None).await?;
            match ended.outcome.status {
                Status::Ok => {
                    Ok(Written { version: ended.outcome.version, op_id: ended.op_id, number: ended.outcome.number })
                }
                _ => Err(failed(ended)),
            }
        })
    }
}

impl OutcomeQuery {
    pub(crate) fn new(client: Client, key: Bytes, op_id: OpId) -> Self {
        let timeout = client.core.timeout();
        Self { client, key, op_id, floor: None, timeout }
    }

    /// The write's floor, as its [`Error::Indefinite`] tells. Otherwise the question waits until ten seconds after the write's id.
    pub fn after(mut self, floor: u64) -> Self {
        self.floor = Some(floor);
        self
    }

    /// How long the question may take in all, waiting included.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

impl IntoFuture for OutcomeQuery {
    type Output = Result<Option<Stamp>, Error>;
    type IntoFuture = ResponseFuture<Option<Stamp>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            if self.op_id.is_zero() {
                return Err(Error::refused(Status::InvalidArgument, "there is no operation with this id"));
            }
            let ended =
                run(&self.client, self.key, Action::Outcome, None, self.op_id, self.timeout, self.floor).await?;
            match ended.outcome.status {
                Status::Ok => Ok(Some(ended.outcome.version)),
                Status::NotApplied => Ok(None),
                _ => Err(failed(ended)),
            }
        })
    }
}

async fn run(
    client: &Client,
    key: Bytes,
    action: Action,
    level: Option<Level>,
    op_id: OpId,
    timeout: Duration,
    floor: Option<u64>,
) -> Result<Ended, Error> {
    let key = Key::new(key)?;
    let keyspace = client.core.keyspace(client.keyspace(), timeout).await?;
    debug_assert!(keyspace != KeyspaceId::SYSTEM, "the system keyspace has no name");
    let mut operation = Attempts::operation_on(keyspace, key, action);
    operation.level = level;
    operation.op_id = op_id;
    Ok(client.core.operate(operation, timeout, floor).await)
}

fn failed(ended: Ended) -> Error {
    let Ended { outcome, op_id, floor } = ended;
    let (status, message, counts) = (outcome.status, outcome.message, outcome.counts);
    match status {
        Status::PreconditionFailed => Error::Precondition { current: outcome.version },
        status if status.is_indefinite() => Error::Indefinite { status, message, counts, op_id, floor },
        status => Error::Refused { status, message, counts },
    }
}
