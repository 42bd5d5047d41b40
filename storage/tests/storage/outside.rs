//! A check from outside, by who knows nothing of the engine that has the directory open: it takes no work of the engine for damage, whatever the two are in
//! the middle of, and finds what is damaged all the same.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use dunlin_protocol::register::Change;
use dunlin_protocol::{Ballot, Millis};
use dunlin_storage::{
    ClockFile, DamageKind, Disk, DiskFile, Engine, FileDisk, MemoryDisk, Options, Verification, WriteError, verify,
    verify_with_progress,
};

use crate::support::{Random, TINY, flush, key, maintain, record, store};
use crate::tables::churn;

type Watch = Arc<dyn Fn() + Send + Sync>;

/// A disk that calls before each operation.
struct Watched {
    disk: MemoryDisk,
    watch: Watch,
    /// Whether looking is an operation, too.
    counts_reads: bool,
}

struct WatchedFile {
    file: Arc<dyn DiskFile>,
    watch: Watch,
    counts_reads: bool,
}

impl Watched {
    fn wrap(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(WatchedFile { file, watch: self.watch.clone(), counts_reads: self.counts_reads })
    }
}

impl Disk for Watched {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        (self.watch)();
        Ok(self.wrap(self.disk.create(name)?))
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        if self.counts_reads {
            (self.watch)();
        }
        Ok(self.wrap(self.disk.open(name)?))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        (self.watch)();
        self.disk.rename(from, to)
    }
    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        (self.watch)();
        self.disk.link(from, to)
    }
    fn make_dir(&self, dir: &str) -> io::Result<()> {
        self.disk.make_dir(dir)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        (self.watch)();
        self.disk.remove(name)
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        (self.watch)();
        self.disk.sync_dir(dir)
    }
}

impl DiskFile for WatchedFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        if self.counts_reads {
            (self.watch)();
        }
        self.file.read_at(offset, buffer)
    }
    fn try_read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        self.file.try_read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        (self.watch)();
        self.file.write_at(offset, bytes)
    }
    fn sync(&self) -> io::Result<()> {
        (self.watch)();
        self.file.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        (self.watch)();
        self.file.truncate(len)
    }
    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()> {
        (self.watch)();
        self.file.preallocate(offset, len)
    }
}

fn whole(disk: &dyn Disk) -> Verification {
    let found = verify(disk).expect("reads");
    assert_eq!((&found.damaged, found.damage_count), (&vec![], 0));
    found
}

/// Writes, flushes, merges, collects, is closed, killed, loses power, is opened again: and before each change of the disk everything is checked.
#[test]
fn every_moment_of_an_engines_life_passes() {
    let disk = MemoryDisk::new();
    let (checks, most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let watch: Watch = {
        let (disk, checks, most) = (disk.clone(), checks.clone(), most.clone());
        Arc::new(move || {
            // A disk that was just stopped cannot be read.
            if !disk.is_stopped() {
                most.fetch_max(whole(&disk).items, Ordering::Relaxed);
                checks.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let (mut random, mut model, mut n) = (Random(17), BTreeMap::new(), 0);
    let (mut merges, mut collected) = (0, 0);
    for life in 0..10u64 {
        let watched = Watched { disk: disk.clone(), watch: watch.clone(), counts_reads: false };
        let engine = Engine::open(Arc::new(watched), TINY).expect("opens").0;
        churn(&engine, &mut random, &mut model, 90, &mut n);
        if life % 2 == 0 {
            flush(&engine);
            maintain(&engine);
            // At rest the log leaves its segment, and gives back what it has ahead.
            while engine.rest().expect("rests") {
                maintain(&engine);
            }
        }
        let stats = engine.stats();
        (merges, collected) = (merges + stats.merges, collected + stats.collected);
        match life % 5 {
            0 => engine.close().expect("closes"),
            1 => disk.kill(),
            2 => disk.crash(life),
            // In the middle of something; what was not durable is not missed here.
            3 => {
                disk.stop_at(disk.operations() + 7);
                for round in 0..100u64 {
                    let stored = store(&engine, key(1, &round.to_be_bytes()), &record(n + round + 1, [1; 200]));
                    if stored.is_err() || engine.write_pending().is_err() {
                        break;
                    }
                }
                assert!(disk.is_stopped());
                disk.kill();
            }
            _ => {}
        }
        drop(engine);
        // An opening that is itself cut off leaves a directory that passes.
        for stop in 1..6 {
            disk.stop_at(disk.operations() + stop);
            let watched = Watched { disk: disk.clone(), watch: watch.clone(), counts_reads: false };
            drop(Engine::open(Arc::new(watched), TINY));
            disk.kill();
            whole(&disk);
        }
    }
    let (checks, most) = (checks.load(Ordering::Relaxed), most.load(Ordering::Relaxed));
    assert!(merges > 5 && collected > 5, "{merges} {collected}");
    assert!(checks > 2000 && most > 400, "{checks} {most}");
}

/// The engine goes on between any two looks of who checks: files go, come, are cut off.
#[test]
fn a_check_passes_whatever_happens_in_the_middle_of_it() {
    let disk = MemoryDisk::new();
    let engine = Engine::open(Arc::new(disk.clone()), TINY).expect("opens").0;
    let state = Mutex::new((Random(23), 0u64));
    let step = move |pace: u64| {
        let (random, n) = &mut *state.lock().expect("no panic");
        for _ in 0..pace {
            *n += 1;
            let name = [random.below(200) as u8];
            // A large record goes ahead of the log, to a segment of its own.
            if n.is_multiple_of(9) {
                let (at, value) = (key(1, &name), record(*n, vec![2; 700]));
                if let Some(staged) = engine.stage(&[(at, &value)]).ok().and_then(|mut staged| staged.pop()) {
                    let change = Change::Store { ballot: Ballot::ZERO };
                    let updated = engine.update_staged(at, staged, Millis(1), |_| ((), Some(change)));
                    // Refused, it is garbage.
                    assert!(matches!(updated, Ok(_) | Err(WriteError::Overloaded)));
                }
            }
            match store(
                &engine,
                key(random.below(5) as u16 * 300, &name),
                &record(*n, vec![1; random.below(250) as usize]),
            ) {
                Ok(_) => {}
                Err(WriteError::Overloaded) => {
                    engine.write_pending().expect("writes");
                    engine.maintain(2000).expect("maintains");
                }
                Err(error) => panic!("{error}"),
            }
        }
        engine.write_pending().expect("writes");
        engine.maintain(random.below(3000)).expect("maintains");
        if random.below(20) == 0 {
            engine.rest().expect("rests");
        }
        engine.stats()
    };
    let step = Arc::new(step);
    while step(5).merges < 10 {}
    let (mut merges, mut collected, mut items) = (0, 0, 0);
    let mut staged = 0;
    for round in 0..40u64 {
        let (before, looks) = (step(1), Arc::new(AtomicU64::new(0)));
        let inner = step.clone();
        let watch: Watch = Arc::new(move || {
            // Less and less, so that it ends.
            let look = looks.fetch_add(1, Ordering::Relaxed);
            if look < 300 && look % (1 + round % 7) == 0 {
                inner(1 + round % 4);
            }
        });
        let watched = Watched { disk: disk.clone(), watch, counts_reads: true };
        items += whole(&watched).items;
        let after = step(1);
        staged += after.staged - before.staged;
        (merges, collected) = (merges + after.merges - before.merges, collected + after.collected - before.collected);
    }
    assert!(merges > 40 && collected > 40 && items > 4000 && staged > 40, "{merges} {collected} {items} {staged}");
}

/// Ends the other threads, also where this one fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Real files, real threads: one that writes, one that keeps up, and one that checks.
#[test]
fn a_busy_directory_passes() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = Options { segment_bytes: 32 << 10, pending_limit_bytes: 16 << 10, memtable_bytes: 4 << 10, ..TINY };
    let engine = Engine::open(Arc::new(FileDisk::open(dir.path()).expect("opens")), options).expect("opens").0;
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (engine, is_done) = (&engine, &is_done);
        let _end = End(is_done);
        scope.spawn(move || {
            let mut random = Random(5);
            for n in 1.. {
                if is_done.load(Ordering::Acquire) {
                    return;
                }
                let name = random.below(500).to_be_bytes();
                let value = vec![n as u8; random.below(600) as usize];
                if store(engine, key(random.below(4) as u16, &name), &record(n, value)).is_err() || n % 20 == 0 {
                    engine.write_pending().expect("writes");
                }
            }
        });
        scope.spawn(move || {
            while !is_done.load(Ordering::Acquire) {
                if !engine.maintain(4000).expect("maintains") {
                    thread::yield_now();
                }
            }
        });
        let outside = FileDisk::open_to_read(dir.path());
        let (mut checks, mut items, mut told) = (0u64, 0, 0u64);
        // How the threads take turns is the scheduler's choice: so it goes on until enough has happened meanwhile.
        loop {
            let stats = engine.stats();
            if checks > 20 && stats.merges > 10 && stats.collected > 10 {
                break;
            }
            assert!(checks < 100_000, "{stats:?}");
            let mut last = (0, 0);
            let found = verify_with_progress(&outside, &mut |progress| {
                assert!(progress.files >= last.0 && progress.bytes >= last.1 && progress.of_files >= progress.files);
                last = (progress.files, progress.bytes);
                told += 1;
            });
            let found = found.expect("reads");
            assert_eq!(found.damaged, []);
            (checks, items) = (checks + 1, items + found.items);
            assert_eq!(engine.verify().expect("reads").damaged, []);
        }
        assert!(items > 1000 && told > checks);
    });
    assert!(engine.suspect_partitions().is_empty() && !engine.is_poisoned());
}

#[test]
fn damage_is_found_while_the_engine_is_open() {
    let disk = MemoryDisk::new();
    let engine = Engine::open(Arc::new(disk.clone()), TINY).expect("opens").0;
    let clock = ClockFile::open(&disk).expect("opens");
    let (mut random, mut model, mut n) = (Random(29), BTreeMap::new(), 0);
    churn(&engine, &mut random, &mut model, 700, &mut n);
    flush(&engine);
    maintain(&engine);
    // In the last segment two batches, of which the second one says that the first one was synced.
    for _ in 0..2 {
        n += 1;
        store(&engine, key(1, b"last"), &record(n, [1; 90])).expect("stores");
        flush(&engine);
    }
    let stats = engine.stats();
    assert!(stats.tables > 3 && stats.collected > 0 && stats.live_segment_bytes > 0, "{stats:?}");
    whole(&disk);
    let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
    let names: Vec<_> = disk.names();
    for name in &names {
        let bytes = disk.contents(name).expect("there");
        let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        let (mut found_in_file, mut looked) = (0, 0);
        for byte in (0..end).step_by(149) {
            let bit = (byte * 8 + byte % 8) as u64;
            disk.flip_bit(name, bit);
            let found = verify(&disk).expect("reads");
            assert!(found.damaged.iter().all(|damage| damage.file == *name), "{name} at {byte}: {:?}", found.damaged);
            assert!(found.damaged.iter().all(|damage| damage.offset <= byte as u64 || name.ends_with(".tbl")));
            (looked, found_in_file) = (looked + 1, found_in_file + u64::from(found.damage_count > 0));
            disk.flip_bit(name, bit);
        }
        let kind = name.rsplit(['.', '/']).next().expect("a part").to_owned();
        // Of the log only its very end is not judged, and of the clock what lies between its slots.
        let may_pass = match kind.as_str() {
            "seg" => 3,
            "CLOCK" => 40,
            _ => 0,
        };
        assert!(
            looked - found_in_file <= may_pass && found_in_file > 0 || looked == 0,
            "{name}: {found_in_file} of {looked}"
        );
        *kinds.entry(kind).or_default() += found_in_file;
    }
    // There is nothing in the reserve.
    assert_eq!(kinds.remove("RESERVE"), Some(0));
    assert_eq!(kinds.keys().collect::<Vec<_>>(), ["CLOCK", "MANIFEST", "dig", "seg", "tbl"]);
    whole(&disk);

    // A listed file that is missing, and a file that is another one.
    for name in names.iter().filter(|name| name.contains('/')) {
        let bytes = disk.contents(name).expect("there");
        disk.take(name);
        let found = verify(&disk).expect("reads");
        assert_eq!(found.damage_count, 1, "{name}: {:?}", found.damaged);
        assert_eq!((&found.damaged[0].file, found.damaged[0].kind), (name, DamageKind::MissingFile));
        disk.insert(name, &bytes);
    }
    let manifest = disk.contents("MANIFEST").expect("there");
    disk.take("MANIFEST");
    let found = verify(&disk).expect("reads");
    assert_eq!((found.damage_count, found.damaged[0].kind), (1, DamageKind::MissingFile));
    disk.insert("MANIFEST", &manifest);
    whole(&disk);
    drop(clock);
}

/// What a crash tore off the log's end is left there where the directory has damage elsewhere; it is void, and none itself.
#[test]
fn a_torn_end_is_no_damage_beside_damage() {
    let mut torn = 0;
    for seed in 0..20 {
        let disk = MemoryDisk::new();
        let engine = Engine::open(Arc::new(disk.clone()), TINY).expect("opens").0;
        let (mut random, mut model, mut n) = (Random(seed), BTreeMap::new(), 0);
        churn(&engine, &mut random, &mut model, 150, &mut n);
        flush(&engine);
        maintain(&engine);
        for name in 0..8u64 {
            store(&engine, key(1, &name.to_be_bytes()), &record(n + name, [1; 150])).expect("stores");
        }
        let operations = disk.operations();
        disk.stop_at(operations + 2);
        engine.write_pending().expect_err("stopped");
        drop(engine);
        disk.crash(seed);
        // The newest: an older one may have been merged away, and only its removal been lost.
        let table = disk.names().into_iter().rfind(|name| name.ends_with(".tbl")).expect("a table");
        disk.flip_bit(&table, 100);
        let (engine, recovery) = Engine::open(Arc::new(disk.clone()), TINY).expect("opens");
        torn += u64::from(recovery.torn_bytes > 0);
        // The log goes on, and says of itself that it was synced.
        for name in 0..3u64 {
            store(&engine, key(2000, &name.to_be_bytes()), &record(n + 10 + name, [1; 150])).expect("stores");
            flush(&engine);
        }
        let found = verify(&disk).expect("reads");
        assert!(!found.damaged.is_empty() && found.damaged.iter().all(|d| d.file == table), "{:?}", found.damaged);
    }
    assert!(torn > 3, "{torn}");
}

/// What is damaged twice is two places, also where a part of the file between them is lost.
#[test]
fn behind_damage_the_rest_is_looked_at() {
    let disk = MemoryDisk::new();
    let options = Options { segment_bytes: 64 << 20, ..Options::default() };
    let engine = Engine::open(Arc::new(disk.clone()), options).expect("opens").0;
    for n in 1..=12u64 {
        store(&engine, key(1, &n.to_be_bytes()), &record(n, vec![7; 1 << 20])).expect("stores");
        flush(&engine);
    }
    let segment = disk.names().into_iter().find(|name| name.ends_with(".seg")).expect("a segment");
    let bytes = disk.contents(&segment).expect("there");
    let end = bytes.iter().rposition(|&byte| byte != 0).expect("written");
    assert!(end > 12 << 20);
    let items = whole(&disk).items;
    // The head of the third frame, so that nobody knows how long it is; and a byte of the tenth one's value.
    let heads: Vec<_> = (0..12).map(|n: u64| n * end as u64 / 12).collect();
    let near = |at: u64| (at..).find(|at| bytes[*at as usize..][..64].iter().filter(|byte| **byte == 7).count() < 20);
    disk.flip_bit(&segment, (near(heads[3]).expect("a head") + 50) * 8);
    disk.flip_bit(&segment, (heads[10] + (500 << 10)) * 8);
    let found = verify(&disk).expect("reads");
    assert_eq!(found.damage_count, 2, "{:?}", found.damaged);
    assert!(found.items >= items - 4, "{} of {items}", found.items);
}
