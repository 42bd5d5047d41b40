//! Many threads at one engine.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use dunlin_protocol::register::Change;
use dunlin_protocol::{KeyspaceId, Millis, PartitionId};
use dunlin_storage::{Disk, DiskFile, Engine, FileDisk, MemoryDisk, Options, Position, ScanRange};

use crate::support::{SMALL, TINY, change, flush, key, look, maintain, record, stamp, store, value};

const WRITERS: u64 = 8;
const EACH: u64 = 60;

/// Group commit: each writer waits until its write is durable before it writes the next.
#[test]
fn writers_share_their_syncs() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = Options { segment_bytes: 64 << 10, pending_limit_bytes: 64 << 10, ..Options::default() };
    let disk = Arc::new(FileDisk::open(dir.path()).expect("opens"));
    let engine = Engine::open(disk, options).expect("opens").0;
    let (durable, risen) = (Mutex::new(Position::ZERO), Condvar::new());
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let log_writer = scope.spawn(|| {
            while !is_done.load(Ordering::Acquire) {
                if engine.wait_pending(Duration::from_millis(10)) {
                    engine.write_pending().expect("writes");
                    *durable.lock().expect("no panic") = engine.durable_upto();
                    risen.notify_all();
                }
            }
        });
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (engine, durable, risen) = (&engine, &durable, &risen);
                scope.spawn(move || {
                    for n in 0..EACH {
                        let name = (writer * EACH + n).to_be_bytes();
                        let at = key(n as u16 % 5, &name);
                        let position = store(engine, at, &record(n + 1, [writer as u8; 200])).expect("stores");
                        // What is not written yet, or being written now, can be read all the time.
                        assert_eq!(value(engine, at), Some(vec![writer as u8; 200]));
                        let lock = durable.lock().expect("no panic");
                        let upto = risen.wait_while(lock, |upto| *upto < position).expect("no panic");
                        assert!(*upto >= position && engine.durable_upto() >= position);
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().expect("no panic");
        }
        is_done.store(true, Ordering::Release);
        log_writer.join().expect("no panic");
    });
    let stats = engine.stats();
    assert_eq!((stats.writes, stats.keys, stats.pending_bytes), (WRITERS * EACH, WRITERS * EACH, 0));
    assert!(stats.batches <= stats.writes && stats.segments > 2, "{stats:?}");
    drop(engine);
    let disk = Arc::new(FileDisk::open(dir.path()).expect("opens"));
    let (engine, recovery) = Engine::open(disk, options).expect("opens");
    assert_eq!((recovery.frames, recovery.damaged), (WRITERS * EACH, vec![]));
    let mut seen = 0;
    let all = ScanRange::all(KeyspaceId::DEFAULT, PartitionId(0), PartitionId(9));
    let ended = engine.scan(all, usize::MAX, &mut |partition, name, _| {
        let number = u64::from_be_bytes(name.try_into().expect("eight bytes"));
        assert_eq!(value(&engine, key(partition.0, name)), Some(vec![(number / EACH) as u8; 200]));
        seen += 1;
        true
    });
    assert!(ended.expect("reads"));
    assert_eq!(seen, WRITERS * EACH);
}

/// Readers, writers, the log writer and upkeep that flushes, merges and collects all the time: whoever reads finds what was last written.
#[test]
fn what_is_moved_is_found() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = Options {
        segment_bytes: 32 << 10,
        pending_limit_bytes: 32 << 10,
        inline_bytes: 64,
        memtable_bytes: 4 << 10,
        table_bytes: 8 << 10,
        cache_bytes: 16 << 10,
        shards: 4,
        sync: dunlin_storage::Sync::Never,
        ..Options::default()
    };
    let engine = Engine::open(Arc::new(FileDisk::open(dir.path()).expect("opens")), options).expect("opens").0;
    let is_done = AtomicBool::new(false);
    let len = |n: u64| if n.is_multiple_of(2) && !n.is_multiple_of(14) { 40 } else { 400 };
    let keys = 40u64;
    let mut written = 0u64;
    thread::scope(|scope| {
        let (engine, is_done) = (&engine, &is_done);
        scope.spawn(move || {
            while !is_done.load(Ordering::Acquire) {
                if engine.wait_pending(Duration::from_millis(5)) {
                    engine.write_pending().expect("writes");
                }
            }
        });
        scope.spawn(move || {
            while !is_done.load(Ordering::Acquire) {
                if !engine.maintain(1000).expect("maintains") {
                    thread::yield_now();
                }
            }
        });
        let readers: Vec<_> = (0..2u64)
            .map(|reader| {
                scope.spawn(move || {
                    let (mut reads, mut last) = (0u64, vec![0; keys as usize]);
                    while !is_done.load(Ordering::Acquire) {
                        let number = (reads * 7 + reader) % keys;
                        let name = number.to_be_bytes();
                        let at = key((number % 3) as u16, &name);
                        let (entry, stored) = engine.get(at).expect("reads");
                        if let Some(stored) = stored {
                            let n = entry.register.head().stamp.wall().0;
                            let value = stored.content.bytes().expect("a value").clone();
                            assert!(value.iter().all(|byte| *byte == n as u8) && value.len() == len(n));
                            assert!(n >= last[number as usize], "{number} went back to {n}");
                            last[number as usize] = n;
                        }
                        reads += 1;
                    }
                    assert!(reads > 100);
                })
            })
            .collect();
        // How often upkeep has its turn between two writes is the scheduler's choice: so writing goes on until upkeep has done all of its work.
        let is_covered = |n: u64| {
            let stats = engine.stats();
            n > 6000 && stats.flushes > 5 && stats.merges > 2 && stats.moved_bytes > 0
        };
        while !(written.is_multiple_of(100) && is_covered(written)) {
            written += 1;
            let n = written;
            assert!(n < 1_000_000, "upkeep left something out: {:?}", engine.stats());
            // Some are written once, so that every segment has something to move.
            let number = if n.is_multiple_of(45) { 1000 + n } else { n % keys };
            let name = number.to_be_bytes();
            let at = key((number % 3) as u16, &name);
            while let Err(error) = store(engine, at, &record(n, vec![n as u8; len(n)])) {
                assert!(matches!(error, dunlin_storage::WriteError::Overloaded), "{error}");
                thread::yield_now();
            }
        }
        is_done.store(true, Ordering::Release);
        for reader in readers {
            reader.join().expect("no panic");
        }
    });
    while engine.write_pending().expect("writes") {}
    while engine.maintain(1 << 20).expect("maintains") {}
    assert_eq!(engine.stats().keys, keys + written / 45);
    for n in (45..=written).step_by(45) {
        assert_eq!(
            value(&engine, key(((1000 + n) % 3) as u16, &(1000 + n).to_be_bytes())),
            Some(vec![n as u8; len(n)])
        );
    }
}

type Hook = Arc<OnceLock<Box<dyn Fn() + Send + Sync>>>;

/// A disk that calls a hook in the middle of each write and sync of the log, and when a check opens one of its files; or of each read of a table.
struct Hooked {
    disk: MemoryDisk,
    hook: Hook,
    of_tables: bool,
}

struct HookedFile {
    file: Arc<dyn DiskFile>,
    hook: Hook,
    of_tables: bool,
}

impl Hooked {
    fn wrap(&self, name: &str, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        match name.ends_with(if self.of_tables { ".tbl" } else { ".seg" }) {
            true => Arc::new(HookedFile { file, hook: self.hook.clone(), of_tables: self.of_tables }),
            false => file,
        }
    }
}

impl Disk for Hooked {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(name, self.disk.create(name)?))
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(hook) = self.hook.get().filter(|_| !self.of_tables && name.ends_with(".seg")) {
            hook();
        }
        Ok(self.wrap(name, self.disk.open(name)?))
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

impl HookedFile {
    fn call(&self, is_read: bool) {
        if is_read == self.of_tables
            && let Some(hook) = self.hook.get()
        {
            hook();
        }
    }
}

impl DiskFile for HookedFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.call(true);
        self.file.read_at(offset, buffer)
    }
    fn try_read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        self.file.try_read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.call(false);
        self.file.write_at(offset, bytes)
    }
    fn sync(&self) -> io::Result<()> {
        self.call(false);
        self.file.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.call(false);
        self.file.truncate(len)
    }
    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.call(false);
        self.file.preallocate(offset, len)
    }
}

/// Everything but the writer's step works in the middle of the writer's I/O, on the writer's own thread even: no lock is held across it.
#[test]
fn nothing_waits_for_the_disk() {
    let hook = Hook::default();
    let disk = MemoryDisk::new();
    let hooked = Hooked { disk: disk.clone(), hook: hook.clone(), of_tables: false };
    let engine = Arc::new(Engine::open(Arc::new(hooked), SMALL).expect("opens").0);
    let in_hook = engine.clone();
    let taken = Arc::new(Mutex::new(1));
    let numbers = taken.clone();
    let use_engine = move || {
        let mut number = numbers.lock().expect("no panic");
        let (engine, at) = (&in_hook, key(1, b"a"));
        let before = engine.durable_upto();
        match store(engine, at, &record(*number + 1, [3; 150])) {
            Ok(position) => {
                *number += 1;
                assert!(position > before);
            }
            Err(error) => assert!(matches!(error, dunlin_storage::WriteError::Overloaded)),
        }
        assert_eq!(value(engine, at), Some(vec![3; 150]));
        assert!(engine.end() >= before && !engine.is_poisoned());
        assert!(engine.suspect_partitions().is_empty());
        let mut seen = 0;
        let all = ScanRange::all(KeyspaceId::DEFAULT, PartitionId(0), PartitionId(3));
        let ended = engine.scan(all, 10, &mut |partition, name, _| {
            seen += 1;
            value(engine, key(partition.0, name)).is_some()
        });
        assert!(ended.expect("reads"));
        assert_eq!(seen, 1);
    };
    assert!(hook.set(Box::new(use_engine)).is_ok());
    store(&engine, key(1, b"a"), &record(1, [3; 150])).expect("stores");
    for _ in 0..40 {
        engine.write_pending().expect("writes");
    }
    let taken = *taken.lock().expect("no panic");
    assert!(taken > 60, "{taken}");
    let stats = engine.stats();
    assert!(stats.batches >= 40 && stats.batches < stats.writes && stats.segments > 3, "{stats:?}");
    drop(engine);
    let (engine, _) = Engine::open(Arc::new(disk), SMALL).expect("opens");
    assert!(!look(&engine, key(1, b"a")).register.is_absent());
}

/// The writer cuts off a segment that it leaves while a check of everything is under way: that is no damage.
#[test]
fn a_check_is_not_surprised_by_the_writer() {
    let hook = Hook::default();
    let hooked = Hooked { disk: MemoryDisk::new(), hook: hook.clone(), of_tables: false };
    let engine = Arc::new(Engine::open(Arc::new(hooked), SMALL).expect("opens").0);
    store(&engine, key(1, b"a"), &record(1, [3; 150])).expect("stores");
    let (in_hook, is_checking) = (engine.clone(), Arc::new(AtomicBool::new(false)));
    let flag = is_checking.clone();
    let leave_a_segment = move || {
        if !flag.swap(false, Ordering::AcqRel) {
            return;
        }
        let segments = in_hook.stats().segments;
        while in_hook.stats().segments < segments + 2 {
            store(&in_hook, key(1, b"a"), &record(2, [4; 150])).expect("stores");
            while in_hook.write_pending().expect("writes") {}
        }
    };
    assert!(hook.set(Box::new(leave_a_segment)).is_ok());
    for _ in 0..5 {
        is_checking.store(true, Ordering::Release);
        assert_eq!(engine.verify().expect("reads").damaged, []);
        assert!(!is_checking.load(Ordering::Acquire) && engine.suspect_partitions().is_empty());
    }
}

/// Stores other keys until all that came before lies in tables.
fn to_tables(engine: &Engine, n: u64) {
    for other in 0..12u8 {
        store(engine, key(2, &[other]), &record(n, [other; 90])).expect("stores");
    }
    flush(engine);
    maintain(engine);
    assert_eq!(engine.stats().memtable_bytes, 0);
}

/// While a reader has its block read, its key changes, or goes even through the memtable and into a newer table: what was read is not kept for those who
/// come later.
#[test]
fn what_changes_during_a_read_is_not_kept() {
    let at = key(1, b"a");
    for (is_forgotten, is_flushed) in [(false, false), (false, true), (true, false), (true, true)] {
        let hook = Hook::default();
        let hooked = Hooked { disk: MemoryDisk::new(), hook: hook.clone(), of_tables: true };
        let engine = Arc::new(Engine::open(Arc::new(hooked), TINY).expect("opens").0);
        store(&engine, at, &record(1, b"old")).expect("stores");
        to_tables(&engine, 1);
        let in_hook = engine.clone();
        let called = Arc::new(AtomicBool::new(false));
        let was_called = called.clone();
        let meanwhile = move || {
            if called.swap(true, Ordering::Relaxed) {
                return;
            }
            match is_forgotten {
                true => change(&in_hook, at, Change::Forget, None).map(|_| ()).expect("forgets"),
                false => store(&in_hook, at, &record(2, b"new")).map(|_| ()).expect("stores"),
            }
            if is_flushed {
                to_tables(&in_hook, 2);
            }
        };
        assert!(hook.set(Box::new(meanwhile)).is_ok());
        let (_, old) = engine.get(at).expect("reads");
        assert_eq!(old.and_then(|stored| stored.content.bytes().cloned()).as_deref(), Some(&b"old"[..]));
        assert!(was_called.load(Ordering::Relaxed));
        let now = (!is_forgotten).then(|| b"new".to_vec());
        assert_eq!(value(&engine, at), now);
        to_tables(&engine, 3);
        assert_eq!(value(&engine, at), now);
        assert_eq!(value(&engine, at), now);
    }
}

/// While an update has its block read, its key changes and goes through the memtable into a newer table: the rule sees what is held now.
#[test]
fn a_rule_sees_what_changed_while_it_waited_for_the_disk() {
    let at = key(1, b"a");
    let hook = Hook::default();
    let hooked = Hooked { disk: MemoryDisk::new(), hook: hook.clone(), of_tables: true };
    let engine = Arc::new(Engine::open(Arc::new(hooked), TINY).expect("opens").0);
    store(&engine, at, &record(1, b"old")).expect("stores");
    to_tables(&engine, 1);
    let (in_hook, called) = (engine.clone(), AtomicBool::new(false));
    let meanwhile = move || {
        if !called.swap(true, Ordering::Relaxed) {
            store(&in_hook, at, &record(2, b"new")).expect("stores");
            to_tables(&in_hook, 2);
        }
    };
    assert!(hook.set(Box::new(meanwhile)).is_ok());
    let seen = engine.update(at, None, Millis(1), |register| (register.head().stamp, None)).expect("reads");
    assert_eq!(seen.reply, stamp(2));
}
