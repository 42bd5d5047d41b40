//! `Options`: what a client is told when it connects.

use std::time::Duration;

use dunlin_protocol::ClusterId;

/// How to reach a cluster, and the defaults of its requests.
///
/// ```
/// use std::time::Duration;
/// use dunlin_client::Options;
///
/// let options = Options { timeout: Duration::from_secs(2), ..Options::new(["127.0.0.1:7400"], "-----BEGIN CERTIFICATE-----") };
/// assert_eq!(options.keyspace, "default");
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Addresses of some nodes, `host:port`; the others are learnt from them.
    pub contact_points: Vec<String>,
    /// The certificate of the cluster's CA, as PEM text. Nodes must show a certificate of it.
    pub ca_pem: String,
    /// The cluster; none: whichever the nodes belong to. A node of another one is refused.
    pub cluster: Option<ClusterId>,
    /// The keyspace of requests that name none.
    pub keyspace: String,
    /// How long a request may take in all, over all its attempts; also how long connecting may take.
    pub timeout: Duration,
    /// How long the first try to connect to a node may take. Operations go to other nodes meanwhile.
    pub connect_timeout: Duration,
    /// The largest UDP payload tried, from 1,200; more than 1,452 pays on loopback only, more than 6,500 stalls.
    pub max_mtu: u16,
    /// The bytes of requests that may be under way at a time; more of them wait.
    pub max_bytes_in_flight: u32,
    /// Makes the client's id and its pauses repeatable: for simulations only. None: random.
    pub seed: Option<u64>,
}

impl Options {
    /// The defaults, with some nodes' addresses and the CA's certificate.
    pub fn new(contact_points: impl IntoIterator<Item = impl Into<String>>, ca_pem: impl Into<String>) -> Self {
        Self {
            contact_points: contact_points.into_iter().map(Into::into).collect(),
            ca_pem: ca_pem.into(),
            cluster: None,
            keyspace: "default".to_owned(),
            timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(1),
            max_mtu: 1_452,
            max_bytes_in_flight: 64 << 20,
            seed: None,
        }
    }
}
