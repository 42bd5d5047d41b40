//! A round: an engine is opened, used by many threads, ended one way or another, opened again and compared.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dunlin_protocol::{KeyspaceId, PartitionId};
use dunlin_storage::{Digest, Engine, FileDisk, KeyRef, Leaf, Options, Recovery, ScanRange, Stats, Sync, verify};

use crate::model::{Model, PARTITIONS, Random, check_records, recover};

const OPTIONS: Options = Options {
    stage_bytes: 4 << 10,
    segment_bytes: 256 << 10,
    sync: Sync::Always,
    pending_limit_bytes: 128 << 10,
    disk_reserve_bytes: 16 << 10,
    shards: 8,
    inline_bytes: 200,
    memtable_bytes: 128 << 10,
    table_bytes: 64 << 10,
    cache_bytes: 256 << 10,
    garbage_percent: 20,
};

/// What all rounds did.
#[derive(Default)]
pub(crate) struct Totals {
    pub(crate) rounds: u64,
    steps: u64,
    refused: u64,
    flushes: u64,
    merges: u64,
    collected: u64,
    moved_bytes: u64,
    batches: u64,
    staged: u64,
    rests: u64,
    scanned: u64,
    pinned: u64,
    snapshots: u64,
    verified: u64,
    lost: u64,
    replayed: u64,
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rounds, steps, refused, flushes, merges, collected, moved_bytes, batches, .. } = self;
        let Self { staged, rests, scanned, pinned, snapshots, verified, lost, replayed, .. } = self;
        writeln!(
            f,
            "nothing wrong in {rounds} rounds: {steps} operations, {refused} refused for a while, {batches} batches"
        )?;
        writeln!(
            f,
            "{flushes} flushes, {merges} merges, {collected} segments collected, {} MiB moved",
            moved_bytes >> 20
        )?;
        writeln!(f, "{staged} records staged, {rests} times at rest, {pinned} entries compared at pinned moments")?;
        writeln!(f, "{scanned} entries scanned, {snapshots} snapshots opened, {verified} checks of all files")?;
        write!(f, "{replayed} frames replayed, {lost} operations lost that were not acknowledged")
    }
}

impl Totals {
    fn add(&mut self, stats: &Stats) {
        self.flushes += stats.flushes;
        self.merges += stats.merges;
        self.collected += stats.collected;
        self.moved_bytes += stats.moved_bytes;
        self.batches += stats.batches;
        self.staged += stats.staged;
    }
}

/// How a round ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// In order.
    Closed,
    /// Everything was written; the engine is dropped.
    Written,
    /// The writer stops first, in the middle of everything: what was in memory only is gone.
    Abrupt,
}

/// Counters of the threads of a round.
#[derive(Default)]
struct Counted {
    steps: AtomicU64,
    refused: AtomicU64,
    rests: AtomicU64,
    scanned: AtomicU64,
    pinned: AtomicU64,
    snapshots: AtomicU64,
    verified: AtomicU64,
}

fn open(dir: &Path, options: Options) -> Result<(Arc<Engine>, Recovery), String> {
    let disk = FileDisk::open(dir).map_err(|error| error.to_string())?;
    let (engine, recovery) = Engine::open(Arc::new(disk), options).map_err(|error| error.to_string())?;
    match recovery.damaged.first() {
        None if recovery.suspects.is_empty() => Ok((Arc::new(engine), recovery)),
        damage => Err(format!("damaged: {damage:?}, suspects {:?}", recovery.suspects)),
    }
}

/// Runs a round and compares; what it says is a line of progress.
#[expect(clippy::disallowed_methods, reason = "a round ends by the clock")]
pub(crate) fn run(
    dir: &Path,
    seed: u64,
    models: &mut [Model],
    totals: &mut Totals,
    long: Duration,
) -> Result<String, String> {
    let mut random = Random(seed ^ totals.rounds << 20);
    let sync = match totals.rounds % 3 {
        0 => Sync::Never,
        1 => Sync::Always,
        _ => Sync::Interval(Duration::from_millis(10)),
    };
    let options = Options { sync, ..OPTIONS };
    let (engine, _) = open(dir, options)?;
    let end = match random.below(4) {
        0 => End::Closed,
        1 => End::Written,
        _ => End::Abrupt,
    };
    let (counted, is_over) = (Counted::default(), AtomicBool::new(false));
    let until = Instant::now() + long;
    let is_writer_over = AtomicBool::new(false);
    let guarded = |what: &'static str, work: Result<(), String>| {
        if work.is_err() {
            is_over.store(true, Ordering::Release);
        }
        work.map_err(|error| format!("{what}: {error}"))
    };
    let outcome = thread::scope(|scope| {
        let (engine, counted, is_over, is_writer_over) = (&engine, &counted, &is_over, &is_writer_over);
        let guarded = &guarded;
        let writer = scope.spawn(move || guarded("writer", write(engine, is_writer_over)));
        let mut others = vec![
            scope.spawn(move || guarded("upkeep", maintain(engine, counted, is_over))),
            scope.spawn(move || guarded("scans", scan(engine, counted, is_over))),
            scope.spawn(move || guarded("checks", check(engine, dir, counted, is_over))),
        ];
        others.extend(
            models
                .iter_mut()
                .map(|model| scope.spawn(move || guarded("worker", work(engine, model, counted, is_over)))),
        );
        while Instant::now() < until && !is_over.load(Ordering::Acquire) {
            thread::park_timeout(until - Instant::now().min(until));
        }
        if matches!(end, End::Abrupt) {
            // The others go on until what may wait for the writer is full.
            is_writer_over.store(true, Ordering::Release);
            thread::park_timeout(Duration::from_millis(20));
        }
        is_over.store(true, Ordering::Release);
        let mut joined: Vec<_> = others.into_iter().map(thread::ScopedJoinHandle::join).collect();
        is_writer_over.store(true, Ordering::Release);
        joined.push(writer.join());
        joined.into_iter().try_for_each(|outcome| outcome.map_err(|_| "a thread panicked".to_owned())?)
    });
    outcome?;
    match end {
        End::Closed => engine.close().map_err(|error| error.to_string())?,
        End::Written => while engine.write_pending().map_err(|error| error.to_string())? {},
        End::Abrupt => {}
    }
    models.iter_mut().for_each(|model| model.acknowledge(engine.durable_upto()));
    check_accounts(&engine)?;
    models.iter_mut().for_each(Model::let_go);
    let stats = engine.stats();
    totals.add(&stats);
    drop(engine);
    let (engine, recovery) = open(dir, options)?;
    let lost = recover(models, &engine)?;
    let keys = models.iter().try_fold(0, |keys, model| Ok::<_, String>(keys + model.check(&engine)?))?;
    if keys != engine.stats().keys {
        return Err(format!("{} keys are counted, and there are {keys}", engine.stats().keys));
    }
    check_accounts(&engine)?;
    if !matches!(end, End::Abrupt) && lost > 0 {
        return Err(format!("{lost} operations were lost after an end in order"));
    }
    let steps = counted.steps.into_inner();
    totals.steps += steps;
    totals.refused += counted.refused.into_inner();
    totals.rests += counted.rests.into_inner();
    totals.pinned += counted.pinned.into_inner();
    totals.scanned += counted.scanned.into_inner();
    totals.snapshots += counted.snapshots.into_inner();
    totals.verified += counted.verified.into_inner();
    totals.lost += lost as u64;
    totals.replayed += recovery.frames;
    let Stats { flushes, merges, collected, segment_bytes, live_segment_bytes, table_bytes, .. } = stats;
    let (kib, live, tables) = (segment_bytes >> 10, live_segment_bytes >> 10, table_bytes >> 10);
    Ok(format!(
        "{sync:?}: {steps} operations, {flushes} flushes, {merges} merges, {collected} collected; {keys} keys, segments {kib} KiB, {live} live, \
         tables {tables}; {end:?}, {lost} lost"
    ))
}

fn work(engine: &Arc<Engine>, model: &mut Model, counted: &Counted, is_over: &AtomicBool) -> Result<(), String> {
    let mut random = Random(0);
    while !is_over.load(Ordering::Acquire) {
        if random.below(1000) == 0 {
            counted.pinned.fetch_add(model.pin_or_compare(engine)?, Ordering::Relaxed);
        }
        match model.step(engine)? {
            true => counted.steps.fetch_add(1, Ordering::Relaxed),
            false => {
                thread::yield_now();
                counted.refused.fetch_add(1, Ordering::Relaxed)
            }
        };
        model.acknowledge(engine.durable_upto());
    }
    Ok(())
}

fn write(engine: &Engine, is_over: &AtomicBool) -> Result<(), String> {
    while !is_over.load(Ordering::Acquire) {
        if engine.wait_pending(Duration::from_millis(10)) {
            engine.write_pending().map_err(|error| error.to_string())?;
        } else if engine.sync_within().is_some() {
            engine.sync_written().map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

fn maintain(engine: &Engine, counted: &Counted, is_over: &AtomicBool) -> Result<(), String> {
    let mut random = Random(0);
    while !is_over.load(Ordering::Acquire) {
        if random.below(500) == 0 {
            engine.rest().map_err(|error| error.to_string())?;
            counted.rests.fetch_add(1, Ordering::Relaxed);
        }
        if !engine.maintain(64 << 10).map_err(|error| error.to_string())? {
            thread::park_timeout(Duration::from_millis(1));
        }
    }
    Ok(())
}

fn scan(engine: &Engine, counted: &Counted, is_over: &AtomicBool) -> Result<(), String> {
    while !is_over.load(Ordering::Acquire) {
        scan_all(engine, counted, is_over)?;
    }
    Ok(())
}

/// Visits everything: keys rise, and every record is that of its number.
fn scan_all(engine: &Engine, counted: &Counted, is_over: &AtomicBool) -> Result<(), String> {
    let range = ScanRange::all(KeyspaceId::DEFAULT, PartitionId(0), PartitionId(PARTITIONS));
    let (mut wrong, mut last) = (None, None);
    let ended = engine.scan(range, usize::MAX, &mut |partition, name, entry| {
        let this = (partition, name.to_vec());
        if last.as_ref().is_some_and(|last| *last >= this) {
            wrong = Some(format!("{this:?} after {last:?}"));
        }
        let at = dunlin_storage::KeyRef { partition, keyspace: KeyspaceId::DEFAULT, key: name };
        if let Err(error) = check_records(engine, at, &entry.register) {
            wrong = Some(error);
        }
        last = Some(this);
        counted.scanned.fetch_add(1, Ordering::Relaxed);
        wrong.is_none() && !is_over.load(Ordering::Acquire)
    });
    ended.map_err(|error| error.to_string())?;
    wrong.map_or(Ok(()), Err)
}

/// Checks all files, and makes snapshots, opens them, and takes them away.
fn check(engine: &Engine, dir: &Path, counted: &Counted, is_over: &AtomicBool) -> Result<(), String> {
    while !is_over.load(Ordering::Acquire) {
        thread::park_timeout(Duration::from_millis(200));
        let found = engine.verify().map_err(|error| error.to_string())?;
        if let Some(damage) = found.damaged.first() {
            return Err(format!("damaged: {damage}"));
        }
        counted.verified.fetch_add(1, Ordering::Relaxed);
        engine.remove_snapshot("soak").map_err(|error| error.to_string())?;
        while !engine.snapshot("soak").map_err(|error| error.to_string())? {
            if is_over.load(Ordering::Acquire) {
                return Ok(());
            }
            thread::yield_now();
        }
        let of_snapshot = dir.join("snapshots/soak");
        let disk = FileDisk::open(&of_snapshot).map_err(|error| error.to_string())?;
        let found = verify(&disk).map_err(|error| error.to_string())?;
        if let Some(damage) = found.damaged.first() {
            return Err(format!("the snapshot is damaged: {damage}"));
        }
        drop(disk);
        let (copied, _) = open(&of_snapshot, OPTIONS)?;
        scan_all(&copied, counted, &AtomicBool::new(false))?;
        check_accounts(&copied)?;
        drop(copied);
        engine.remove_snapshot("soak").map_err(|error| error.to_string())?;
        counted.snapshots.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// The live bytes that the engine counts are those that its index refers to, and the digests those of all its records.
fn check_accounts(engine: &Engine) -> Result<(), String> {
    let mut digests = BTreeMap::new();
    let range = ScanRange::all(KeyspaceId::DEFAULT, PartitionId(0), PartitionId(PARTITIONS));
    let (mut bytes, mut keys) = (0, 0);
    let ended = engine.scan(range, usize::MAX, &mut |partition, key, entry| {
        if let Some(held) = entry.register.record {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&held.head.stamp.to_bits().to_le_bytes());
            hasher.update(&entry.register.ballot.to_bits().to_le_bytes());
            let hash = hasher.update(key).finalize();
            let leaf = Leaf::of(KeyRef { partition, keyspace: KeyspaceId::DEFAULT, key });
            let (leaves, records) = digests.entry(partition).or_insert(([Digest::NONE; Leaf::LEAVES], 0));
            let (first, _) = hash.as_bytes().split_first_chunk().expect("32 bytes");
            leaves[usize::from(leaf.number())] ^= Digest::from_bytes(*first);
            *records += 1;
        }
        let held = entry.register.record.into_iter().chain(entry.register.pending.map(|(_, held)| held));
        let in_segments = held.filter(|held| held.place.segment().is_some());
        bytes += in_segments.map(|held| u64::from(held.place.frame_len())).sum::<u64>();
        keys += u64::from(!entry.register.is_absent());
        true
    });
    ended.map_err(|error| error.to_string())?;
    for partition in (0..=PARTITIONS).map(PartitionId) {
        let found = engine.digest(KeyspaceId::DEFAULT, partition);
        let (leaves, records) = digests.remove(&partition).unwrap_or(([Digest::NONE; Leaf::LEAVES], 0));
        if (found.leaves(), found.records()) != (&leaves, records) {
            return Err(format!(
                "another digest of {partition:?}: of {} records instead of {records}",
                found.records()
            ));
        }
    }
    let stats = engine.stats();
    match (stats.live_segment_bytes, stats.keys) == (bytes, keys) {
        true => Ok(()),
        false => Err(format!("{bytes} bytes of {keys} keys are referred to: {stats:?}")),
    }
}
