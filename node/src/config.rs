//! What `dunlin serve` is told: [`ConfigFile`] as it is written in TOML, and [`Config`] as it is used, checked.

mod storage;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dunlin_membership::{Founders, FoundingError};
use dunlin_protocol::{DataId, Member, NodeId, Partitioning, PartitioningError, Status};
use dunlin_storage::Options;
use serde::{Deserialize, Serialize};

use crate::scrubber::ScrubSettings;
use crate::transport::{ETHERNET_MTU, LARGEST_MTU, TransportSettings};

pub use storage::{ScrubPeriod, StorageSection, SyncSection};

/// The file. Relative paths in it are relative to the file's own folder. What is left out has the default that its field names.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// This node's id: one of the founders'.
    pub id: u64,
    /// The data directory: made where there is none, used by one process at a time.
    pub data: PathBuf,
    /// Where to listen, as IP address and port (UDP). Default: port 7400 of all addresses. Peers and clients reach the node by its founder's
    /// `address`, which may be another one.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// The cluster.
    pub cluster: ClusterSection,
    /// Certificates.
    pub tls: TlsSection,
    /// The engine.
    #[serde(default)]
    pub storage: StorageSection,
    /// Connections.
    #[serde(default)]
    pub network: NetworkSection,
}

/// The cluster as it was founded: the same on every founder, for ever.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSection {
    /// Its name, 1 to 255 bytes. Other names make other clusters, which never talk to each other.
    pub name: String,
    /// The hash space is cut into 2 to this many partitions: 6 to 16. Default: 12.
    #[serde(default = "default_partition_bits")]
    pub partition_bits: u8,
    /// Replicas of each key, 1 to 16; fewer where there are fewer nodes. Default: 3.
    #[serde(default = "default_replication")]
    pub replication: u8,
    /// The nodes that found it.
    pub founders: Vec<FounderSection>,
}

/// A founder.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FounderSection {
    /// Its id, from 1.
    pub id: u64,
    /// Where peers and clients reach it, `host:port`.
    pub address: String,
    /// Its region. Default: empty.
    #[serde(default)]
    pub region: String,
    /// Its zone within the region: replicas of a key are spread over zones. Default: empty.
    #[serde(default)]
    pub zone: String,
    /// Its share of the data relative to the others', from 1. Default: 256.
    #[serde(default = "default_weight")]
    pub weight: u16,
}

/// Where the certificates are, as PEM files.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSection {
    /// The cluster's CA.
    pub ca: PathBuf,
    /// This node's certificate. It carries the names `<id as 16 hex digits>.node.dunlin` and `node.dunlin`.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// How connections behave.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkSection {
    /// A connection on which nothing is heard for so long is lost: 500 to 60,000. Default: 3,000.
    pub idle_timeout_millis: u64,
    /// How often at least something is sent to a peer: from 50 to below half of `idle_timeout_millis`. Default: 1,000.
    pub keep_alive_millis: u64,
    /// How long the first attempts to connect to a peer wait: 50 to 10,000, and well above the round trip. Default: 500.
    pub connect_attempt_millis: u64,
    /// The largest UDP payload tried: 1,200 to 6,500. Above 1,452 only where the whole way takes it, as loopback does. Default: 1,452.
    pub max_mtu: u16,
    /// Client connections at a time, from 1. Default: 4,096.
    pub max_clients: usize,
    /// When told to stop, how long the node waits for requests under way, at most 60,000. Default: 2,000.
    pub shutdown_millis: u64,
}

impl Default for NetworkSection {
    fn default() -> Self {
        let settings = TransportSettings::default();
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        Self {
            idle_timeout_millis: millis(settings.idle_timeout),
            keep_alive_millis: millis(settings.keep_alive),
            connect_attempt_millis: millis(settings.connect_attempt),
            max_mtu: ETHERNET_MTU,
            max_clients: settings.max_clients,
            shutdown_millis: 2_000,
        }
    }
}

fn default_listen() -> SocketAddr {
    ([0, 0, 0, 0], 7400).into()
}

fn default_partition_bits() -> u8 {
    12
}

fn default_replication() -> u8 {
    3
}

fn default_weight() -> u16 {
    256
}

/// What a node is started with, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub id: NodeId,
    /// The data directory.
    pub data: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// The founders, of whom it is one.
    pub founders: Founders,
    /// Replicas of each key.
    pub replication: u8,
    /// Certificates.
    pub tls: TlsSection,
    /// The engine.
    pub storage: Options,
    /// How fast its data are checked again.
    pub scrub: ScrubSettings,
    /// Connections.
    pub network: TransportSettings,
    /// How long a stopping node waits for requests under way.
    pub shutdown: Duration,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", file.display())]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// What is wrong.
    #[source]
    pub problem: ConfigProblem,
}

impl ConfigError {
    /// The code for users.
    pub fn status(&self) -> Status {
        Status::InvalidConfig
    }
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigProblem {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[source] std::io::Error),
    /// It is no such TOML. The message names line and field.
    #[error("{}", .0.to_string().trim_end())]
    Syntax(#[source] Box<toml::de::Error>),
    /// A number out of its range.
    #[error("{field} is {found}: it lies between {least} and {most}")]
    Range {
        /// Which field.
        field: &'static str,
        /// What it is.
        found: u64,
        /// The least possible.
        least: u64,
        /// The most possible.
        most: u64,
    },
    /// The number of partitions.
    #[error("cluster.partition_bits: {0}")]
    Partitioning(#[from] PartitioningError),
    /// The founders' list.
    #[error("cluster: {0}")]
    Founders(#[from] FoundingError),
    /// The node is none of the founders.
    #[error("id {0} is none of cluster.founders: a node can only join while the cluster is founded")]
    NoFounder(NodeId),
}

impl Config {
    /// Reads and checks a file.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let fail = |problem| ConfigError { file: file.to_owned(), problem };
        let text = std::fs::read_to_string(file).map_err(|e| fail(ConfigProblem::Read(e)))?;
        Self::parse(&text, file)
    }

    /// Checks the text of a file.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        toml::from_str(text)
            .map_err(|e| ConfigProblem::Syntax(Box::new(e)))
            .and_then(|parsed: ConfigFile| parsed.check(file.parent().unwrap_or(Path::new(""))))
            .map_err(|problem| ConfigError { file: file.to_owned(), problem })
    }
}

impl ConfigFile {
    /// Checks everything that can be checked without looking at other files. Relative paths are taken from `folder`.
    pub fn check(self, folder: &Path) -> Result<Config, ConfigProblem> {
        let Self { id, data, listen, cluster, tls, storage, network } = self;
        let n = network;
        in_range("cluster.replication", cluster.replication.into(), 1, 16)?;
        let (storage, scrub) = storage.check()?;
        in_range("network.idle_timeout_millis", n.idle_timeout_millis, 500, 60_000)?;
        in_range("network.keep_alive_millis", n.keep_alive_millis, 50, n.idle_timeout_millis / 2 - 1)?;
        in_range("network.connect_attempt_millis", n.connect_attempt_millis, 50, 10_000)?;
        in_range("network.max_mtu", n.max_mtu.into(), 1_200, LARGEST_MTU.into())?;
        in_range("network.max_clients", n.max_clients as u64, 1, 1 << 20)?;
        in_range("network.shutdown_millis", n.shutdown_millis, 0, 60_000)?;

        let members = cluster.founders.into_iter().map(|f| Member {
            id: NodeId(f.id),
            address: f.address,
            region: f.region,
            zone: f.zone,
            weight: f.weight,
            data: DataId::UNKNOWN,
        });
        let partitioning = Partitioning::new(cluster.partition_bits)?;
        let founders = Founders { name: cluster.name, members: members.collect(), partitioning };
        founders.validate()?;
        let id = NodeId(id);
        if !founders.members.iter().any(|m| m.id == id) {
            return Err(ConfigProblem::NoFounder(id));
        }

        Ok(Config {
            id,
            data: folder.join(data),
            listen,
            founders,
            replication: cluster.replication,
            tls: TlsSection { ca: folder.join(tls.ca), cert: folder.join(tls.cert), key: folder.join(tls.key) },
            storage,
            scrub,
            network: TransportSettings {
                idle_timeout: Duration::from_millis(n.idle_timeout_millis),
                keep_alive: Duration::from_millis(n.keep_alive_millis),
                connect_attempt: Duration::from_millis(n.connect_attempt_millis),
                max_mtu: n.max_mtu,
                max_clients: n.max_clients,
                rng_seed: None,
            },
            shutdown: Duration::from_millis(n.shutdown_millis),
        })
    }
}

fn in_range(field: &'static str, found: u64, least: u64, most: u64) -> Result<(), ConfigProblem> {
    if (least..=most).contains(&found) { Ok(()) } else { Err(ConfigProblem::Range { field, found, least, most }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
id = 2
data = "n2"

[cluster]
name = "dev"
founders = [
    { id = 1, address = "127.0.0.1:7400" },
    { id = 2, address = "db2.example:7401", zone = "b", weight = 128 },
]

[tls]
ca = "ca.pem"
cert = "n2/cert.pem"
key = "/etc/dunlin/key.pem"
"#;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("/srv/dunlin/node.toml"))
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let config = parse(MINIMAL).expect("valid");
        assert_eq!((config.id, config.listen), (NodeId(2), default_listen()));
        assert_eq!(config.data, Path::new("/srv/dunlin/n2"));
        assert_eq!(config.tls.key, Path::new("/etc/dunlin/key.pem"));
        assert_eq!((config.replication, config.founders.partitioning.count()), (3, 4096));
        assert_eq!(config.founders.members[1].weight, 128);
        assert_eq!(config.storage, Options::default());
        assert_eq!(config.scrub, ScrubSettings::default());
        assert_eq!(config.network.keep_alive, TransportSettings::default().keep_alive);
    }

    #[test]
    fn a_written_file_is_read_again() {
        let file: ConfigFile = toml::from_str(MINIMAL).expect("valid");
        let text = toml::to_string(&file).expect("writable");
        assert_eq!(toml::from_str::<ConfigFile>(&text).expect("valid"), file);
    }

    #[test]
    fn every_error_names_the_file_and_what_is_wrong() {
        let with = |from: &str, to: &str| {
            assert!(MINIMAL.contains(from), "{from}");
            MINIMAL.replace(from, to)
        };
        let cases = [
            (with("id = 2\ndata", "id = 3\ndata"), "id 3 is none of cluster.founders"),
            (with("data = \"n2\"", "data = \"n2\"\nlisten = \"nowhere\""), "listen"),
            (with("data = \"n2\"", "data = \"n2\"\ncolour = 1"), "colour"),
            (with("name = \"dev\"", "name = \"dev\"\npartition_bits = 3"), "cluster.partition_bits"),
            (with("name = \"dev\"", "name = \"dev\"\nreplication = 0"), "cluster.replication is 0"),
            (with("name = \"dev\"", "name = \"\""), "cluster: a cluster's name"),
            (with("id = 1,", "id = 2,"), "named twice"),
            (with("127.0.0.1:7400", "127.0.0.1"), "not host:port"),
            (format!("{MINIMAL}[network]\nmax_mtu = 9000"), "network.max_mtu is 9000"),
            (format!("{MINIMAL}[network]\nkeep_alive_millis = 2000"), "network.keep_alive_millis is 2000"),
            (format!("{MINIMAL}[storage]\nsync = \"sometimes\""), "sometimes"),
            (format!("{MINIMAL}[storage]\nsegment_bytes = 1"), "storage.segment_bytes is 1"),
            (format!("{MINIMAL}[storage]\nmemtable_bytes = 1023"), "storage.memtable_bytes is 1023"),
            (format!("{MINIMAL}[storage]\ncache_bytes = 0"), "storage.cache_bytes is 0"),
            (format!("{MINIMAL}[storage]\ninline_bytes = 1025"), "storage.inline_bytes is 1025"),
            (format!("{MINIMAL}[storage]\ngarbage_percent = 0"), "storage.garbage_percent is 0"),
            (format!("{MINIMAL}[storage]\npending_limit_bytes = 1"), "storage.pending_limit_bytes is 1"),
            (format!("{MINIMAL}[storage]\ndisk_reserve_bytes = 1"), "storage.disk_reserve_bytes is 1"),
            (format!("{MINIMAL}[storage]\ndisk_reserve_bytes = -1"), "disk_reserve_bytes"),
            (format!("{MINIMAL}[storage]\nscrub_period = \"7w\""), "`7w` is neither a time"),
            (format!("{MINIMAL}[storage]\nscrub_period = \"0d\""), "`0d` is neither a time"),
            (format!("{MINIMAL}[storage]\nscrub_period = \"59s\""), "storage.scrub_period, in seconds, is 59"),
            (format!("{MINIMAL}[storage]\nscrub_least_rate = 0"), "storage.scrub_least_rate is 0"),
            (format!("{MINIMAL}[storage]\nscrub_most_rate = 9"), "storage.scrub_most_rate is 9"),
            (format!("{MINIMAL}[storage]\nsegments = 1"), "segments"),
            (String::new(), "id"),
            ("= = =".to_owned(), "line 1"),
        ];
        for (text, expected) in cases {
            let error = parse(&text).expect_err(expected);
            assert_eq!(error.status(), Status::InvalidConfig);
            let message = error.to_string();
            assert!(message.starts_with("/srv/dunlin/node.toml: "), "{message}");
            assert!(message.contains(expected), "{message}");
            assert_eq!(message.trim_end(), message, "something may follow on the same line");
        }
        let error = Config::load(Path::new("/no/such/file")).expect_err("not there");
        assert!(matches!(error.problem, ConfigProblem::Read(_)));
    }
}
