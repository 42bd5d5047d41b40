//! `Layout`: the files of a dev cluster.
//!
//! | file | what |
//! |---|---|
//! | `dev.toml` | what the cluster was begun with |
//! | `context.toml` | the client context |
//! | `ca.pem`, `ca-key.pem` | its certificate authority |
//! | `n1/config.toml`, `cert.pem`, `key.pem` | a node's configuration and certificate |
//! | `n1/data/` | its data directory |
//! | `n1/log`, `n1/pid` | what it says; its process id while it runs |

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use dunlin_node::config::{ClusterSection, ConfigFile, FounderSection, NetworkSection, StorageSection, TlsSection};
use dunlin_node::transport::LARGEST_MTU;
use dunlin_node::transport::tls::ClusterCa;
use dunlin_protocol::{NodeId, Status};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::ports::{self, Probe};
use crate::cli::command::{Dev, MAX_NODES, Port};
use crate::cli::context::Context;
use crate::cli::data::replace;
use crate::cli::failure::Failure;

const NODES: u8 = 3;
/// 256 partitions: small enough to look at.
const PARTITION_BITS: u8 = 8;
const REPLICATION: u8 = 3;
const WEIGHT: u16 = 256;

/// A dev cluster, ready to be started.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) nodes: Vec<Node>,
    pub(super) context: PathBuf,
}

/// One of its nodes.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: u64,
    pub(super) address: String,
    pub(super) region: String,
    pub(super) zone: String,
    pub(super) folder: PathBuf,
    pub(super) config: PathBuf,
    pub(super) log: PathBuf,
    pub(super) pid: PathBuf,
}

/// The file `dev.toml`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Begun {
    name: String,
    nodes: u8,
    port: u16,
    #[serde(default)]
    regions: Vec<String>,
    #[serde(default)]
    zones: Vec<String>,
}

impl Layout {
    /// Makes the files of a new cluster, or brings those of an earlier run up to date.
    pub(super) fn prepare(dev: &Dev, root: &Path, probe: Probe) -> Result<Self, Failure> {
        let begun = Begun::of(dev, root, probe)?;
        let nodes: Vec<_> = (1..=begun.nodes).map(|i| begun.node(i, root)).collect();
        let ca = authority(root)?;
        let founders = nodes.iter().map(|node| FounderSection {
            id: node.id,
            address: node.address.clone(),
            region: node.region.clone(),
            zone: node.zone.clone(),
            weight: WEIGHT,
        });
        let cluster = ClusterSection {
            name: begun.name.clone(),
            partition_bits: PARTITION_BITS,
            replication: REPLICATION,
            founders: founders.collect(),
        };
        let mut id = None;
        for node in &nodes {
            let config = node.prepare(&ca, &cluster)?;
            let checked = config.check(&node.folder).map_err(|e| Failure::new(Status::InvalidConfig, e.to_string()))?;
            id = Some(checked.founders.cluster());
        }
        let context = Context {
            cluster: id.map(|id| id.to_string()),
            ca: "ca.pem".to_owned(),
            nodes: nodes.iter().map(|node| node.address.clone()).collect(),
            max_mtu: Some(LARGEST_MTU),
        };
        let file = root.join("context.toml");
        store_toml(&file, &context)?;
        // Last: what it remembers is there.
        store_toml(&root.join("dev.toml"), &begun)?;
        Ok(Self { nodes, context: file })
    }
}

impl Begun {
    /// As it was begun, but for what may change; or anew.
    fn of(dev: &Dev, root: &Path, probe: Probe) -> Result<Self, Failure> {
        let file = root.join("dev.toml");
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::anew(dev, probe),
            Err(error) => return Err(cannot("read", &file, &error)),
        };
        let wrong = |what: String| Failure::new(Status::InvalidConfig, format!("{}: {what}", file.display()));
        let mut begun: Self = toml::from_str(&text).map_err(|e| wrong(e.to_string().trim_end().to_owned()))?;
        if begun.nodes == 0 || begun.nodes > MAX_NODES {
            return Err(wrong(format!("`nodes` lies between 1 and {MAX_NODES}")));
        }
        let other = |what: &str| {
            let message = format!(
                "{} holds a cluster of {} nodes that was begun with other {what}: leave the flag out, or use another --data",
                root.display(),
                begun.nodes
            );
            Err(Failure::usage(message))
        };
        if dev.nodes.is_some_and(|nodes| nodes != begun.nodes) {
            return other("--nodes");
        }
        if !dev.zones.is_empty() && dev.zones != begun.zones {
            return other("--zones");
        }
        if !dev.regions.is_empty() && dev.regions != begun.regions {
            return other("--regions");
        }
        begun.port = match dev.port {
            None => begun.port,
            Some(Port::From(port)) => port,
            // The same ports as before, where they are free.
            Some(Port::Auto) if ports::check(probe, begun.port, begun.nodes).is_ok() => begun.port,
            Some(Port::Auto) => ports::find(probe, begun.nodes)?,
        };
        ports::check(probe, begun.port, begun.nodes)?;
        Ok(begun)
    }

    fn anew(dev: &Dev, probe: Probe) -> Result<Self, Failure> {
        let nodes = dev.nodes.unwrap_or(NODES);
        let port = match dev.port {
            Some(Port::Auto) => ports::find(probe, nodes)?,
            Some(Port::From(port)) => port,
            None => ports::DEFAULT,
        };
        ports::check(probe, port, nodes)?;
        // Of its own, so that the nodes of two dev clusters never take each other for members.
        let name = format!("dev-{:016x}", StdRng::from_os_rng().next_u64());
        Ok(Self { name, nodes, port, regions: dev.regions.clone(), zones: dev.zones.clone() })
    }

    fn node(&self, number: u8, root: &Path) -> Node {
        let at = usize::from(number - 1);
        let turn = |names: &[String]| names.get(at % names.len().max(1)).cloned();
        let folder = root.join(format!("n{number}"));
        Node {
            id: number.into(),
            address: format!("127.0.0.1:{}", self.port + u16::from(number - 1)),
            region: turn(&self.regions).unwrap_or_default(),
            zone: turn(&self.zones).unwrap_or_else(|| format!("z{number}")),
            config: folder.join("config.toml"),
            log: folder.join("log"),
            pid: folder.join("pid"),
            folder,
        }
    }
}

impl Node {
    fn prepare(&self, ca: &ClusterCa, cluster: &ClusterSection) -> Result<ConfigFile, Failure> {
        fs::create_dir_all(&self.folder).map_err(|e| cannot("make", &self.folder, &e))?;
        let (cert, key) = (self.folder.join("cert.pem"), self.folder.join("key.pem"));
        if !cert.exists() || !key.exists() {
            let made = ca.issue_node(NodeId(self.id), &[]).map_err(|e| Failure::local(e.to_string()))?;
            store_secret(&key, &made.key_pem)?;
            store(&cert, made.cert_pem.as_bytes())?;
        }
        // Left behind by a node that was killed.
        match fs::remove_file(&self.pid) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(cannot("remove", &self.pid, &error)),
            _ => {}
        }
        let listen = self.address.parse().map_err(|_| Failure::local(format!("{} is no address", self.address)))?;
        let config = ConfigFile {
            id: self.id,
            data: "data".into(),
            listen,
            cluster: cluster.clone(),
            tls: TlsSection { ca: "../ca.pem".into(), cert: "cert.pem".into(), key: "key.pem".into() },
            storage: StorageSection::default(),
            // All of it is loopback.
            network: NetworkSection { max_mtu: LARGEST_MTU, ..NetworkSection::default() },
        };
        store_toml(&self.config, &config)?;
        Ok(config)
    }
}

/// The cluster's authority, made at the first start.
fn authority(root: &Path) -> Result<ClusterCa, Failure> {
    let (cert, key) = (root.join("ca.pem"), root.join("ca-key.pem"));
    if cert.exists() && key.exists() {
        let read = |file: &Path| fs::read_to_string(file).map_err(|e| cannot("read", file, &e));
        return ClusterCa::load(&read(&cert)?, &read(&key)?)
            .map_err(|e| Failure::new(Status::InvalidConfig, format!("{}: {e}", cert.display())));
    }
    let ca = ClusterCa::create().map_err(|e| Failure::local(e.to_string()))?;
    store_secret(&key, &ca.key_pem())?;
    store(&cert, ca.cert_pem().as_bytes())?;
    Ok(ca)
}

fn store(file: &Path, bytes: &[u8]) -> Result<(), Failure> {
    // What is there already needs no room on a full disk.
    if fs::read(file).is_ok_and(|found| found == bytes) {
        return Ok(());
    }
    replace(file, bytes).map_err(|e| cannot("write", file, &e))
}

fn store_toml<T: Serialize>(file: &Path, value: &T) -> Result<(), Failure> {
    let text = toml::to_string(value).map_err(|e| Failure::local(e.to_string()))?;
    store(file, text.as_bytes())
}

/// For its owner's eyes only.
fn store_secret(file: &Path, text: &str) -> Result<(), Failure> {
    let write = || {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?.write_all(text.as_bytes())
    };
    write().map_err(|e| cannot("write", file, &e))
}

pub(super) fn cannot(what: &str, file: &Path, error: &io::Error) -> Failure {
    Failure::local(format!("cannot {what} {}: {error}", file.display()))
}

/// Held while a cluster runs: two cannot share a folder.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    pub(super) fn take(root: &Path) -> Result<Self, Failure> {
        let path = root.join("lock");
        let file = File::create(&path).map_err(|e| cannot("open", &path, &e))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let message =
                    format!("another `dunlin dev` runs on {}. {}", root.display(), Status::DataDirInUse.sentence());
                Err(Failure::new(Status::DataDirInUse, message))
            }
            Err(error) => Err(cannot("lock", &path, &error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: Probe = |_, _| Ok(());

    fn dev() -> Dev {
        let zones = vec!["a".to_owned(), "b".to_owned()];
        Dev { nodes: None, data: None, port: Some(Port::Auto), regions: Vec::new(), zones }
    }

    #[test]
    fn a_second_run_goes_on_with_the_first_ones_files() {
        let root = tempfile::tempdir().expect("a folder");
        let first = Layout::prepare(&dev(), root.path(), FREE).expect("made");
        assert_eq!(first.nodes.iter().map(|n| n.zone.as_str()).collect::<Vec<_>>(), ["a", "b", "a"]);
        let read = |name: &str| fs::read_to_string(root.path().join(name)).expect(name);
        let (ca, cert, context) = (read("ca.pem"), read("n2/cert.pem"), read("context.toml"));
        let loaded = dunlin_node::config::Config::load(&first.nodes[2].config).expect("usable");
        assert_eq!((loaded.id, loaded.founders.partitioning.count()), (NodeId(3), 256));
        assert_eq!(Context::load(&first.context).expect("usable").cluster(), Ok(Some(loaded.founders.cluster())));

        let again = Dev { zones: Vec::new(), port: None, ..dev() };
        let second = Layout::prepare(&again, root.path(), FREE).expect("made");
        assert_eq!((read("ca.pem"), read("n2/cert.pem"), read("context.toml")), (ca, cert, context));
        assert_eq!(second.nodes[1].address, first.nodes[1].address);

        // Another port moves the addresses and nothing else.
        let moved = Layout::prepare(&Dev { port: Some(Port::From(9_000)), ..again }, root.path(), FREE);
        assert_ne!(moved.expect("made").nodes[1].address, first.nodes[1].address);
        assert_eq!(Context::load(&first.context).expect("usable").cluster(), Ok(Some(loaded.founders.cluster())));
    }

    #[test]
    fn what_a_cluster_was_begun_with_stays() {
        let root = tempfile::tempdir().expect("a folder");
        Layout::prepare(&dev(), root.path(), FREE).expect("made");
        for other in [
            Dev { nodes: Some(5), ..dev() },
            Dev { zones: vec!["c".to_owned()], ..dev() },
            Dev { regions: vec!["eu".to_owned()], ..dev() },
        ] {
            assert_eq!(
                Layout::prepare(&other, root.path(), FREE).expect_err("refused").status,
                Status::InvalidArgument
            );
        }
        fs::write(root.path().join("dev.toml"), "nodes = 0").expect("written");
        assert_eq!(Layout::prepare(&dev(), root.path(), FREE).expect_err("refused").status, Status::InvalidConfig);
    }

    #[test]
    fn a_folder_has_one_cluster_at_a_time_and_its_keys_are_secret() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().expect("a folder");
        let lock = Lock::take(root.path()).expect("free");
        assert_eq!(Lock::take(root.path()).expect_err("taken").status, Status::DataDirInUse);
        drop(lock);
        Lock::take(root.path()).expect("free again");
        Layout::prepare(&dev(), root.path(), FREE).expect("made");
        for key in ["ca-key.pem", "n1/key.pem"] {
            let mode = fs::metadata(root.path().join(key)).expect("there").permissions().mode();
            assert_eq!(mode & 0o077, 0, "{key}");
        }
    }
}
