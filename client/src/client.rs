//! `Client`: a connected client.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dunlin_protocol::message::{NodeSummary, ReplyBody};
use dunlin_protocol::{Action, ClusterId, Condition, Mutation, NodeId, OpId, Topology};

use crate::connecting::connect;
use crate::core::Core;
use crate::error::{ConnectError, Error};
use crate::options::Options;
use crate::request::{Get, OutcomeQuery, Write};
use crate::scan::Scan;

/// A client of one cluster. Cheap to clone; clones share connections, the cluster's time and the highest stamp seen, so that what follows
/// through any of them is never ordered before what went ahead.
///
/// Requests are built by methods and sent by awaiting them:
///
/// ```no_run
/// use std::time::Duration;
/// use dunlin_client::{Client, Level, Options};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let ca = std::fs::read_to_string("ca.pem")?;
/// let client = Client::connect(Options::new(["127.0.0.1:7400"], ca)).await?;
///
/// let written = client.put("greeting", "hello").ttl(Duration::from_secs(60)).await?;
/// let found = client.get("greeting").level(Level::Serial).await?.ok_or("there is no greeting")?;
/// assert_eq!(found.version, written.version);
///
/// // Compare and set: only if nobody has written meanwhile.
/// client.put("greeting", "good day").if_version(found.version).await?;
/// assert_eq!(client.increment("visits", 1).await?.number, Some(1));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) core: Arc<Core>,
    keyspace: Arc<str>,
}

/// How a node and its cluster are.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ClusterStatus {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node that answers.
    pub node: NodeId,
    /// Its epoch.
    pub epoch: dunlin_protocol::Epoch,
    /// Every member, as that node sees it.
    pub members: Vec<NodeSummary>,
    /// Keys that it holds, tombstones included.
    pub keys: u64,
    /// Bytes of its segments.
    pub segment_bytes: u64,
    /// Partitions that it does not answer for.
    pub suspect_partitions: u32,
    /// Whether it takes requests.
    pub ready: bool,
}

impl Client {
    /// Connects to the first contact point that answers, and learns the topology from it.
    ///
    /// # Errors
    /// Where no contact point answers as it should; the first one's error is told.
    pub async fn connect(options: Options) -> Result<Self, ConnectError> {
        Self::over(options, None).await
    }

    /// Connects through an endpoint made elsewhere: for sockets of another kind, such as a simulator's. Its client configuration is not
    /// used. Time is tokio's, which a simulator can pause.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_over(options: Options, endpoint: quinn::Endpoint) -> Result<Self, ConnectError> {
        Self::over(options, Some(endpoint)).await
    }

    async fn over(options: Options, endpoint: Option<quinn::Endpoint>) -> Result<Self, ConnectError> {
        let keyspace = options.keyspace.as_str().into();
        Ok(Self { core: Arc::new(connect(options, endpoint).await?), keyspace })
    }

    /// The same client with another default keyspace. Whether there is one of this name shows at the first request.
    #[must_use]
    pub fn in_keyspace(&self, name: &str) -> Self {
        Self { core: self.core.clone(), keyspace: name.into() }
    }

    /// The default keyspace's name.
    pub fn keyspace(&self) -> &str {
        &self.keyspace
    }

    /// Reads a key.
    pub fn get(&self, key: impl Into<Bytes>) -> Get {
        Get::new(self.clone(), key.into())
    }

    /// Stores a value.
    pub fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Write {
        let mutation = Mutation::Put { value: value.into(), attributes: Default::default(), ttl_millis: 0 };
        Write::new(self.clone(), key.into(), mutation)
    }

    /// Deletes a key. That there was no value is no error.
    pub fn delete(&self, key: impl Into<Bytes>) -> Write {
        Write::new(self.clone(), key.into(), Mutation::Delete)
    }

    /// Stores a value if the condition holds: compare and set.
    pub fn cas(&self, key: impl Into<Bytes>, condition: Condition, value: impl Into<Bytes>) -> Write {
        self.put(key, value).condition(condition)
    }

    /// Adds to a number, which no value counts as 0 of.
    pub fn increment(&self, key: impl Into<Bytes>, by: i64) -> Write {
        Write::new(self.clone(), key.into(), Mutation::Increment { by })
    }

    /// Asks whether a write was applied; if it was not, it never will be. Makes sure of that, so it may change the key's version.
    pub fn outcome(&self, key: impl Into<Bytes>, op_id: OpId) -> OutcomeQuery {
        OutcomeQuery::new(self.clone(), key.into(), op_id)
    }

    /// Goes through the keyspace's live keys.
    pub fn scan(&self) -> Scan {
        Scan::new(self.clone())
    }

    /// An operation id of now, for [`Write::op_id`]: for who wants to know it before the write is sent. Zero: the cluster's time is not known.
    pub fn draw_op_id(&self) -> OpId {
        self.core.draw_op_id()
    }

    /// The cluster's time as this client knows it. An operation id is accepted within half a second of it.
    pub fn cluster_time(&self) -> Option<dunlin_protocol::Millis> {
        self.core.cluster_time()
    }

    /// How many attempts at operations were sent to nodes so far, by all clones: more than there were operations means retries.
    pub fn attempts_sent(&self) -> u64 {
        self.core.attempts_sent()
    }

    /// The newest topology known.
    pub fn topology(&self) -> Arc<Topology> {
        self.core.topology()
    }

    /// Asks for a newer topology.
    ///
    /// # Errors
    /// Where no node answers.
    pub async fn refresh_topology(&self) -> Result<Arc<Topology>, Error> {
        let epoch = self.core.topology().epoch;
        self.core.refresh(epoch, self.core.timeout()).await
    }

    /// How the cluster is, as the node says that answers first.
    ///
    /// # Errors
    /// Where no node answers.
    pub async fn status(&self) -> Result<ClusterStatus, Error> {
        let nodes = self.core.topology().members.iter().map(|m| m.id).collect();
        self.status_by(nodes, self.core.timeout()).await
    }

    /// How the cluster is, as this node says.
    ///
    /// # Errors
    /// Where it does not answer in time.
    pub async fn status_of(&self, node: NodeId, timeout: Duration) -> Result<ClusterStatus, Error> {
        self.status_by(vec![node], timeout).await
    }

    /// Ends all connections in order. What is under way ends indefinitely.
    pub async fn close(self) {
        self.core.close().await;
    }

    async fn status_by(&self, nodes: Vec<NodeId>, timeout: Duration) -> Result<ClusterStatus, Error> {
        let reply = self.core.ask(&dunlin_protocol::message::ClientRequest::Status, nodes, timeout).await?;
        match reply.body {
            ReplyBody::Status { cluster, node, members, keys, segment_bytes, suspect_partitions, ready } => {
                let epoch = reply.epoch;
                Ok(ClusterStatus { cluster, node, epoch, members, keys, segment_bytes, suspect_partitions, ready })
            }
            _ => Err(Error::refused(dunlin_protocol::Status::BadFrame, "an answer that is no status")),
        }
    }

    pub(crate) fn action(condition: Option<Condition>, mutation: Mutation) -> Action {
        Action::Write { condition, mutation }
    }
}
