//! A node whose data are on the disk only, and which must not wait for it.

use std::io;
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

use bytes::Bytes;
use dunlin_node::Server;
use dunlin_protocol::message::{ClientRequest, ReplyBody, ScanRequest};
use dunlin_protocol::{Action, KeyspaceId, Level, Status};
use dunlin_storage::{Disk, DiskFile, Engine, MemoryDisk};
use tokio::sync::oneshot;
use tokio::task::spawn_local;

use crate::server::{Cluster, ask, operation, put, value};
use crate::transport::run;

/// A disk that knows which threads waited for it.
struct Observed {
    disk: Arc<MemoryDisk>,
    waited: Arc<Mutex<Vec<ThreadId>>>,
}

struct ObservedFile {
    file: Arc<dyn DiskFile>,
    waited: Arc<Mutex<Vec<ThreadId>>>,
}

impl Observed {
    fn observe(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(ObservedFile { file, waited: self.waited.clone() })
    }
}

impl Disk for Observed {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.observe(self.disk.create(name)?))
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.observe(self.disk.open(name)?))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.link(from, to)
    }
    fn make_dir(&self, dir: &str) -> io::Result<()> {
        self.disk.make_dir(dir)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }
}

impl ObservedFile {
    fn wait(&self) {
        self.waited.lock().expect("nobody panics with it").push(std::thread::current().id());
    }
}

impl DiskFile for ObservedFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.wait();
        self.file.read_at(offset, buffer)
    }
    fn try_read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        self.file.try_read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.wait();
        self.file.write_at(offset, bytes)
    }
    fn sync(&self) -> io::Result<()> {
        self.wait();
        self.file.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.truncate(len)
    }
    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.preallocate(offset, len)
    }
}

/// Every kind of request on keys of which nothing is in memory: each is answered, and other threads than the node's wait for the disk.
#[test]
fn a_node_never_waits_for_its_disk() {
    run(async {
        let mut cluster = Cluster::new(1);
        let config = cluster.config(0);
        let large = "x".repeat(5000);
        let node = cluster.start(0).await;
        let mut asker = cluster.asker(0).await;
        for i in 0..6 {
            for (kind, value) in [("small", "1"), ("large", &large)] {
                let level = if i % 2 == 0 { Level::Quorum } else { Level::Serial };
                let outcome = ask(&mut asker, &put(&format!("{kind}-{i}"), value, level)).await;
                assert_eq!(outcome.status, Status::Ok, "{outcome:?}");
            }
        }
        node.stop().await;
        {
            // A snapshot flushes the memtable.
            let (engine, _) = Engine::open(cluster.disks[0].clone(), config.storage).expect("opens");
            assert!(engine.snapshot("flushed").expect("flushes"));
            engine.remove_snapshot("flushed").expect("removes");
            engine.close().expect("closes");
        }

        cluster.bind(0).await;
        let mut config = config;
        config.storage.cache_bytes = 0;
        let waited = Arc::default();
        let mut environment = cluster.environment(0, &config);
        environment.disk = Arc::new(Observed { disk: cluster.disks[0].clone(), waited: Arc::clone(&waited) });
        let server = Server::open(&config, environment).expect("opened");
        let probe = server.probe();
        cluster.disks[0].set_cold(100, 0);
        waited.lock().expect("nobody panics with it").clear();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = spawn_local(server.run(async move {
            // A sender that was dropped means the same.
            let _ = stopped.await;
        }));

        let mut asker = cluster.asker(0).await;
        for i in 0..2 {
            // Read, plain and serial; what was serial is read by a proposer.
            assert_eq!(value(&mut asker, &format!("small-{i}"), Level::Quorum).await.as_deref(), Some("1"));
            assert_eq!(value(&mut asker, &format!("large-{i}"), Level::Serial).await.as_ref(), Some(&large));
        }
        for (i, level) in [(2, Level::Quorum), (3, Level::Serial), (4, Level::Serial), (5, Level::Quorum)] {
            for kind in ["small", "large"] {
                let outcome = ask(&mut asker, &put(&format!("{kind}-{i}"), "2", level)).await;
                assert_eq!(outcome.status, Status::Ok, "{kind}-{i}: {outcome:?}");
                assert_eq!(value(&mut asker, &format!("{kind}-{i}"), level).await.as_deref(), Some("2"));
            }
        }
        // Large enough to be staged, where a plain write stores it and where a proposer has it accepted.
        let huge = "y".repeat(config.storage.stage_bytes);
        for (key, level) in [("plain", Level::Quorum), ("serial", Level::Serial)] {
            let outcome = ask(&mut asker, &put(key, &huge, level)).await;
            assert_eq!(outcome.status, Status::Ok, "{key}: {outcome:?}");
            assert_eq!(value(&mut asker, key, level).await.as_ref(), Some(&huge));
        }
        let outcome = ask(&mut asker, &operation("nowhere", Level::Quorum, Action::Read { value: true })).await;
        assert_eq!(outcome.status, Status::NotFound);
        let scan = ScanRequest {
            keyspace: KeyspaceId::DEFAULT,
            prefix: Bytes::new(),
            start: Bytes::new(),
            end: Bytes::new(),
            cursor: None,
            limit: 100,
            keys_only: false,
            level: Some(Level::Quorum),
            timeout_millis: 5_000,
        };
        let ReplyBody::Page(page) = asker.ask(1_000_000, &ClientRequest::Scan(scan)).await else { panic!("a page") };
        assert_eq!(page.entries.len(), 14);

        let stats = probe.engine().expect("it runs").stats();
        assert!(stats.cold_reads >= 12 && stats.staged == 2, "{stats:?}");
        let threads = waited.lock().expect("nobody panics with it").clone();
        assert!(threads.len() >= 12, "{} reads", threads.len());
        assert!(!threads.contains(&std::thread::current().id()), "the node's thread waited for its disk");
        stop.send(()).expect("it runs");
        task.await.expect("it ends in order").expect("it was told to");
    });
}
