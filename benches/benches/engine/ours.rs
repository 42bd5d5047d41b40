//! Dunlin's engine, driven as a node drives it: one thread writes the log, one tends the tables.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use dunlin_protocol::register::Change;
use dunlin_protocol::{Ballot, Content, KeyspaceId, Millis, PartitionId, Partitioning, Record, Stamp};
use dunlin_storage::{Engine, FileDisk, KeyRef, Options, Position, ScanRange, WriteError};

use crate::keys::{Key, fill_value, key};
use crate::store::Store;

/// How much one step of the upkeep reads and writes at most.
const SLICE: u64 = 4 << 20;

pub(crate) struct Ours {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    stamps: AtomicU64,
}

struct Shared {
    engine: Engine,
    durable: Mutex<Position>,
    progressed: Condvar,
    stop: AtomicBool,
}

fn partition(key: &Key) -> PartitionId {
    Partitioning::DEFAULT.partition(KeyspaceId::DEFAULT, key)
}

impl Ours {
    pub(crate) fn open(dir: &Path) -> Self {
        let disk = FileDisk::open(dir).expect("a folder");
        let (engine, _) = Engine::open(Arc::new(disk), Options::default()).expect("opened");
        let shared = Arc::new(Shared {
            engine,
            durable: Mutex::new(Position::ZERO),
            progressed: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let spawn = |work: fn(&Shared)| {
            let shared = shared.clone();
            std::thread::spawn(move || work(&shared))
        };
        let threads = vec![spawn(write_log), spawn(tend)];
        // Above all stamps of an earlier process on the same directory.
        let stamps = AtomicU64::new(1_760_000_000_000 << 16);
        Self { shared, threads, stamps }
    }

    fn put(&self, key: &Key, value: Vec<u8>) -> Position {
        let stamp = Stamp::from_hlc(self.stamps.fetch_add(1, Ordering::Relaxed), 1);
        let record = Record::plain(stamp, Content::value(value), Millis::NONE);
        let at = KeyRef { partition: partition(key), keyspace: KeyspaceId::DEFAULT, key };
        let store = Change::Store { ballot: Ballot::ZERO };
        loop {
            match self.shared.engine.update(at, Some(&record), stamp.wall(), |_| ((), Some(store))) {
                Ok(updated) => return updated.entry.position,
                // More waits for the disk, or for the tables, than may.
                Err(WriteError::Overloaded) => std::thread::sleep(Duration::from_micros(200)),
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn wait(&self, position: Position) {
        let behind = |durable: &mut Position| *durable < position;
        drop(self.shared.progressed.wait_while(self.shared.durable.lock().expect("sound"), behind).expect("sound"));
    }
}

fn write_log(shared: &Shared) {
    while !shared.stop.load(Ordering::Relaxed) {
        shared.engine.wait_pending(Duration::from_millis(20));
        // It is woken again only after it has found nothing.
        while shared.engine.write_pending().expect("a healthy disk") {
            *shared.durable.lock().expect("sound") = shared.engine.durable_upto();
            shared.progressed.notify_all();
        }
    }
}

fn tend(shared: &Shared) {
    while !shared.stop.load(Ordering::Relaxed) {
        if !shared.engine.maintain(SLICE).expect("a healthy disk") {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Store for Ours {
    fn load(&self, numbers: &mut dyn Iterator<Item = u64>, value_len: usize) {
        for n in numbers {
            let mut value = vec![0; value_len];
            fill_value(n, &mut value);
            self.put(&key(n), value);
        }
    }

    fn put_durable(&self, key: &Key, value: &[u8]) {
        let position = self.put(key, value.to_vec());
        self.wait(position);
    }

    fn sync(&self) {
        self.wait(self.shared.engine.end());
    }

    fn get(&self, key: &Key) -> Option<usize> {
        let engine = &self.shared.engine;
        let at = KeyRef { partition: partition(key), keyspace: KeyspaceId::DEFAULT, key };
        let (_, stored) = engine.get(at).expect("a healthy disk");
        stored?.content.bytes().map(|value| value.len())
    }

    fn scan(&self) -> (u64, u64) {
        let engine = &self.shared.engine;
        let (mut entries, mut bytes) = (0, 0);
        let last = PartitionId((Partitioning::DEFAULT.count() - 1) as u16);
        let all = ScanRange::all(KeyspaceId::DEFAULT, PartitionId(0), last);
        let visited = engine.scan_with(all, usize::MAX, &mut |visited| {
            let len = match (visited.value(), &visited.entry.register.record) {
                (Some(value), _) => value.len(),
                (None, Some(held)) => {
                    let at = KeyRef { partition: visited.partition, keyspace: KeyspaceId::DEFAULT, key: visited.key };
                    let stored = engine.load(at, held).expect("a healthy disk");
                    stored.content.bytes().map_or(0, |value| value.len())
                }
                (None, None) => return true,
            };
            entries += 1;
            bytes += (visited.key.len() + len) as u64;
            true
        });
        assert!(visited.expect("a healthy disk"), "to the end");
        (entries, bytes)
    }

    fn settle(&self) {
        while self.shared.engine.wants_upkeep() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn rest(&self) {
        self.settle();
        while self.shared.engine.rest().expect("a healthy disk") {
            self.settle();
        }
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("it ends in order");
        }
    }
}
