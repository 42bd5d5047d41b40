//! `Scan`: goes through a keyspace's live keys, page by page.

use std::time::Duration;

use bytes::Bytes;
use dunlin_protocol::message::{ClientRequest, ReplyBody, ScanCursor, ScanPage, ScanRequest};
use dunlin_protocol::{Attributes, Content, Key, KeyspaceId, Level, Millis, PartitionId, Stamp, Status};

use crate::client::Client;
use crate::error::Error;

/// One key of a scan.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// The value; empty where only keys were asked for.
    pub value: Bytes,
    /// Its attributes; none where only keys were asked for.
    pub attributes: Attributes,
    /// The value's length in bytes.
    pub value_len: u32,
    /// Its version.
    pub version: Stamp,
    /// When it ends, by the cluster's time; [`Millis::NONE`]: never.
    pub expires_at: Millis,
}

/// A scan to be made. Keys come in order of (partition, key), each read at the scan's level; a scan is no snapshot.
///
/// ```no_run
/// # async fn example(client: dunlin_client::Client) -> Result<(), dunlin_client::Error> {
/// let mut pages = client.scan().prefix("user:").pages();
/// while let Some(entries) = pages.next().await? {
///     for entry in entries {
///         println!("{}: {} bytes", entry.key, entry.value.len());
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a scan is made by its pages"]
pub struct Scan {
    client: Client,
    request: ScanRequest,
    limit: Option<u64>,
    timeout: Duration,
}

/// The pages of a scan, fetched one by one.
#[derive(Clone, Debug)]
pub struct Pages {
    client: Client,
    request: ScanRequest,
    left: u64,
    timeout: Duration,
    known: bool,
    ended: bool,
}

const PAGE: u32 = 256;

impl Scan {
    pub(crate) fn new(client: Client) -> Self {
        let timeout = client.core.timeout();
        let request = ScanRequest {
            keyspace: KeyspaceId::DEFAULT,
            level: None,
            cursor: None,
            prefix: Bytes::new(),
            start: Bytes::new(),
            end: Bytes::new(),
            limit: PAGE,
            keys_only: false,
            timeout_millis: 0,
        };
        Self { client, request, limit: None, timeout }
    }

    /// The consistency of each key's read; the keyspace's default otherwise. Serial counts as quorum.
    pub fn level(mut self, level: impl Into<Option<Level>>) -> Self {
        self.request.level = level.into();
        self
    }

    /// Only keys that begin so.
    pub fn prefix(mut self, prefix: impl Into<Bytes>) -> Self {
        self.request.prefix = prefix.into();
        self
    }

    /// Only keys at or above this.
    pub fn start(mut self, start: impl Into<Bytes>) -> Self {
        self.request.start = start.into();
        self
    }

    /// Only keys below this.
    pub fn end(mut self, end: impl Into<Bytes>) -> Self {
        self.request.end = end.into();
        self
    }

    /// Without values and attributes.
    pub fn keys_only(mut self) -> Self {
        self.request.keys_only = true;
        self
    }

    /// At most so many keys in all.
    pub fn limit(mut self, limit: u64) -> Self {
        self.limit = Some(limit);
        self
    }

    /// At most so many keys a page; at least 1.
    pub fn page_size(mut self, keys: u32) -> Self {
        self.request.limit = keys.max(1);
        self
    }

    /// How long each page may take.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Goes on where another scan with the same bounds stood ([`Pages::cursor`]).
    pub fn resume(mut self, cursor: ScanCursor) -> Self {
        self.request.cursor = Some(cursor);
        self
    }

    /// The pages.
    pub fn pages(self) -> Pages {
        let left = self.limit.unwrap_or(u64::MAX);
        let Self { client, request, timeout, .. } = self;
        Pages { client, request, left, timeout, known: false, ended: left == 0 }
    }
}

impl Pages {
    /// The next keys, never an empty page; none: the end.
    ///
    /// # Errors
    /// Where the page cannot be had in time; asking again goes on at the same place.
    pub async fn next(&mut self) -> Result<Option<Vec<Entry>>, Error> {
        while !self.ended {
            let page = self.fetch().await?;
            let done = page.next.is_none();
            if page.next == self.request.cursor && !done {
                return Err(Error::refused(Status::BadFrame, "the node's page leads back to itself"));
            }
            let mut entries: Vec<_> = page.entries.into_iter().map(entry).collect();
            entries.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left -= entries.len() as u64;
            self.ended = done || self.left == 0;
            self.request.cursor = page.next;
            if !entries.is_empty() {
                return Ok(Some(entries));
            }
        }
        Ok(None)
    }

    /// Where the next page begins; none: at the beginning, or the end was reached.
    pub fn cursor(&self) -> Option<&ScanCursor> {
        self.request.cursor.as_ref()
    }

    async fn fetch(&mut self) -> Result<ScanPage, Error> {
        if !self.known {
            self.request.keyspace = self.client.core.keyspace(self.client.keyspace(), self.timeout).await?;
            self.known = true;
        }
        let partition = self.request.cursor.as_ref().map_or(PartitionId(0), |cursor| cursor.partition);
        let nodes = self.client.core.route_to(self.request.keyspace, partition);
        self.request.timeout_millis = u32::try_from(self.timeout.as_millis()).unwrap_or(u32::MAX);
        let limit = self.request.limit;
        self.request.limit = limit.min(u32::try_from(self.left).unwrap_or(u32::MAX));
        let request = ClientRequest::Scan(self.request.clone());
        self.request.limit = limit;
        match self.client.core.ask(&request, nodes, self.timeout).await?.body {
            ReplyBody::Page(page) => Ok(page),
            ReplyBody::Outcome(o) => Err(Error::Refused { status: o.status, message: o.message, counts: o.counts }),
            _ => Err(Error::refused(Status::BadFrame, "an answer that is no page")),
        }
    }
}

fn entry(view: dunlin_protocol::message::EntryView) -> Entry {
    let (value, attributes) = match view.content {
        Some(Content::Value(value, attributes)) => (value, attributes),
        Some(Content::Tombstone) | None => Default::default(),
    };
    let dunlin_protocol::message::EntryView { key, version, expires_at, value_len, .. } = view;
    Entry { key, value, attributes, value_len, version, expires_at }
}
