//! `Store`: what a load is sent to.

use std::future::Future;

use bytes::Bytes;
use dunlin_protocol::{Condition, Level, Stamp, Status};

use crate::client::Client;
use crate::error::Error;

/// A request of a load.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Reads a key that has a value.
    Get {
        /// The key.
        key: Bytes,
        /// The consistency; none: the keyspace's default.
        level: Option<Level>,
    },
    /// Stores a value.
    Put {
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
        /// The consistency; none: the keyspace's default.
        level: Option<Level>,
    },
    /// Stores a value if the key has the version named.
    Cas {
        /// The key.
        key: Bytes,
        /// Its version; zero: it has no value.
        version: Stamp,
        /// The value.
        value: Bytes,
    },
    /// Adds one to a number.
    Increment {
        /// The key.
        key: Bytes,
    },
}

/// How a request failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failed {
    /// Why.
    pub status: Status,
    /// The key's version, where a condition did not hold.
    pub current: Option<Stamp>,
}

/// What a load is sent to: a [`Client`], or in tests something that behaves as the test wants it.
pub trait Store: Clone + Send + Sync + 'static {
    /// Carries a request out; gives the version read or written. A key without a value is a failed read.
    fn send(&self, request: Request) -> impl Future<Output = Result<Stamp, Failed>> + Send;
}

impl Store for Client {
    async fn send(&self, request: Request) -> Result<Stamp, Failed> {
        let written = match request {
            Request::Get { key, level } => {
                return match self.get(key).level(level).await {
                    Ok(Some(found)) => Ok(found.version),
                    Ok(None) => Err(Failed { status: Status::NotFound, current: None }),
                    Err(error) => Err(error.into()),
                };
            }
            Request::Put { key, value, level } => self.put(key, value).level(level).await,
            Request::Cas { key, version, value } if version.is_zero() => self.cas(key, Condition::Absent, value).await,
            Request::Cas { key, version, value } => self.cas(key, Condition::Version(version), value).await,
            Request::Increment { key } => self.increment(key, 1).await,
        };
        Ok(written?.version)
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        let current = if let Error::Precondition { current } = error { Some(current) } else { None };
        Self { status: error.status(), current }
    }
}
