//! Reads that must not wait for the disk, and what is done about those that would have to.

use dunlin_protocol::register::{Change, Register};
use dunlin_protocol::{Ballot, KeyspaceId, Millis, PartitionId, Record};
use dunlin_storage::{
    Engine, Entry, Found, KeyRef, MemoryDisk, Options, Place, Prepared, ReadError, ScanRange, Wait, WriteError,
};

use crate::support::{Random, SMALL, TINY, flush, key, look, maintain, record, store, tombstone, value};
use crate::tables::{Model, churn, open_with};

const STORE: Change = Change::Store { ballot: Ballot::ZERO };

/// A cache that keeps next to nothing, so that every look at a table is one at the disk.
const CACHELESS: Options = Options { cache_bytes: 0, ..SMALL };

/// An engine whose index is in tables only.
fn in_tables(disk: &MemoryDisk, options: Options, fill: impl Fn(&Engine)) -> Engine {
    {
        let engine = open_with(disk, options);
        fill(&engine);
        freeze(disk, &engine);
    }
    open_with(disk, options)
}

/// Flushes everything to tables: a snapshot does.
fn freeze(disk: &MemoryDisk, engine: &Engine) {
    flush(engine);
    let name = disk.names().len().to_string();
    assert!(engine.snapshot(&name).expect("flushes"));
    engine.remove_snapshot(&name).expect("removes");
}

/// Stores, without waiting; with what `found` says.
fn try_store(engine: &Engine, at: KeyRef<'_>, found: Option<Found>, record: &Record) -> Result<Entry, WriteError> {
    let stored =
        engine.try_update(at, Prepared { found, staged: None }, Some(record), Millis(1), |held: &Register<Place>| {
            assert!(held.head().stamp < record.stamp, "the rule sees what is there: {held:?}");
            (held.head().stamp, Some(STORE))
        });
    stored.map(|updated| updated.entry)
}

fn would_block<T>(result: Result<T, WriteError>) -> bool {
    matches!(result, Err(WriteError::Read(ReadError::WouldBlock)))
}

#[test]
fn an_update_that_would_wait_changes_nothing_and_goes_on_with_what_was_found() {
    let disk = MemoryDisk::new();
    let engine = in_tables(&disk, CACHELESS, |engine| {
        store(engine, key(1, b"a"), &record(5, "old")).expect("stores");
    });
    disk.set_cold(100, 0);
    let before = engine.end();
    assert!(would_block(try_store(&engine, key(1, b"a"), None, &record(6, "new"))));
    assert!(would_block(engine.try_update(key(1, b"a"), Prepared::default(), None, Millis(1), |_| -> ((), _) {
        unreachable!("the rule is asked once it can be answered")
    })));
    assert_eq!((engine.end(), engine.stats().writes, engine.stats().refused), (before, 0, 0));
    // Filters are in memory: what no table has needs no disk.
    try_store(&engine, key(1, b"b"), None, &record(1, "first")).expect("stores");

    disk.watch(true);
    let found = engine.find(key(1, b"a")).expect("finds");
    assert_eq!(disk.waits(), 1);
    assert_eq!(
        engine.try_entry(key(1, b"a"), Some(&found)).expect("is found").register.head(),
        record(5, "old").head()
    );
    // Another key's does not count.
    assert!(matches!(engine.try_entry(key(2, b"a"), Some(&found)), Ok(entry) if entry.register.is_absent()));
    let other = engine.find(key(1, b"b")).expect("finds");
    assert!(would_block(try_store(&engine, key(1, b"a"), Some(other), &record(6, "new"))));
    try_store(&engine, key(1, b"a"), Some(found.clone()), &record(6, "new")).expect("stores");
    // From here on the memtable has it, whatever was found.
    let entry = engine.try_entry(key(1, b"a"), Some(&found)).expect("in memory");
    assert_eq!(entry.register.head(), record(6, "new").head());
    try_store(&engine, key(1, b"a"), Some(found), &record(7, "newer")).expect("stores");
    assert_eq!(disk.waits(), 1, "only the find has waited");
    assert_eq!(engine.stats().cold_reads, 3);
    assert_eq!(value(&engine, key(1, b"a")).as_deref(), Some(&b"newer"[..]));
}

#[test]
fn what_was_found_does_not_count_once_a_memtable_was_frozen() {
    let disk = MemoryDisk::new();
    let engine = in_tables(&disk, CACHELESS, |engine| {
        store(engine, key(1, b"a"), &record(5, "old")).expect("stores");
    });
    disk.set_cold(100, 0);
    let stale = engine.find(key(1, b"a")).expect("finds");
    try_store(&engine, key(1, b"a"), Some(stale.clone()), &record(6, "new")).expect("stores");
    freeze(&disk, &engine);
    // In a table now, behind what was found.
    assert!(would_block(try_store(&engine, key(1, b"a"), Some(stale.clone()), &record(7, "newest"))));
    assert!(matches!(engine.try_entry(key(1, b"a"), Some(&stale)), Err(ReadError::WouldBlock)));
    let found = engine.find(key(1, b"a")).expect("finds");
    assert_eq!(engine.try_entry(key(1, b"a"), Some(&found)).expect("finds").register.head(), record(6, "new").head());
    try_store(&engine, key(1, b"a"), Some(found), &record(7, "newest")).expect("stores");

    // In a frozen memtable, which is memory: there is nothing to find, and what was found before does not hide it.
    let stale = engine.find(key(1, b"a")).expect("finds");
    let small = in_tables(&MemoryDisk::new(), TINY, |_| {});
    store(&small, key(1, b"a"), &record(8, [1; 90])).expect("stores");
    let nothing = small.find(key(1, b"a")).expect("finds");
    for n in 0..30 {
        // The memtable is full and frozen, and nothing flushes it.
        if store(&small, key(1, format!("filler-{n}").as_bytes()), &record(8, [1; 90])).is_err() {
            break;
        }
    }
    for found in [nothing, stale] {
        let entry = small.try_entry(key(1, b"a"), Some(&found)).expect("in memory");
        assert_eq!(entry.register.head(), record(8, [1; 90]).head());
    }
}

#[test]
fn records_and_scans_that_would_wait_say_so() {
    let disk = MemoryDisk::new();
    let large = vec![7; 1000];
    let engine = in_tables(&disk, CACHELESS, |engine| {
        store(engine, key(1, b"large"), &record(1, &large)).expect("stores");
        store(engine, key(1, b"small"), &record(2, "small")).expect("stores");
    });
    let scan = |wait| {
        let mut seen = Vec::new();
        let all = ScanRange::all(KeyspaceId::DEFAULT, PartitionId(0), PartitionId(9));
        let ended = engine.try_scan(all, 10, wait, &mut |_, name, entry| {
            seen.push((name.to_vec(), entry.register.head()));
            true
        });
        ended.map(|ended| (ended, seen))
    };
    for at in [key(1, b"large"), key(1, b"small")] {
        let held = look(&engine, at).register.record.expect("a record");
        disk.set_cold(100, 0);
        assert!(matches!(engine.try_load(at, &held, Wait::Never), Err(ReadError::WouldBlock)));
        let waited = engine.try_load(at, &held, Wait::Allowed).expect("loads");
        disk.set_cold(0, 0);
        assert_eq!(engine.try_load(at, &held, Wait::Never).expect("loads"), waited);
    }
    let warm = scan(Wait::Never).expect("scans");
    disk.set_cold(100, 0);
    assert!(matches!(scan(Wait::Never), Err(ReadError::WouldBlock)));
    assert_eq!(scan(Wait::Allowed).expect("scans"), warm);
    assert_eq!(warm.1.len(), 2);
    // What the log has not written yet is in memory.
    let unwritten = store(&engine, key(1, b"new"), &record(3, &large)).expect("stores");
    assert!(unwritten > engine.durable_upto());
    let held = engine.try_entry(key(1, b"new"), None).expect("in memory").register.record.expect("a record");
    assert_eq!(
        engine.try_load(key(1, b"new"), &held, Wait::Never).expect("in memory").content,
        record(3, &large).content
    );
}

/// Who never waits, and has found for it what it must wait for, late and out of order, does the same as who waits.
#[test]
fn updates_with_what_others_found_agree_with_the_model() {
    let mut cold = 0;
    for seed in 0..20 {
        let disk = MemoryDisk::new();
        let (mut random, mut model, mut n) = (Random(seed), Model::new(), 0);
        let engine = open_with(&disk, TINY);
        churn(&engine, &mut random, &mut model, 500, &mut n);
        disk.set_cold(60, seed);
        // What was found of some keys, at some time before.
        let mut found: Vec<((u16, Vec<u8>), Found)> = Vec::new();
        for _ in 0..600 {
            disk.watch(true);
            n += 1;
            let at = ((random.below(5) * 300) as u16, format!("key-{:03}", random.below(12)).into_bytes());
            // Mostly the newest, which lets it get on.
            let before: Vec<_> = found.iter().filter(|(other, _)| *other == at).collect();
            let skipped = random.below(3).saturating_sub(1) as usize;
            let of_key = before.iter().rev().nth(skipped).map(|(_, found)| found.clone());
            let new =
                if random.below(8) == 0 { tombstone(n) } else { record(n, vec![n as u8; random.below(250) as usize]) };
            let expected = model.contains_key(&at);
            // Others may have staged the record, too.
            let staged = match random.below(3) {
                0 => engine.stage(&[(key(at.0, &at.1), &new)]).ok().and_then(|mut staged| staged.pop()),
                _ => None,
            };
            let prepared = Prepared { found: of_key, staged };
            let done =
                engine.try_update(key(at.0, &at.1), prepared, Some(&new), Millis(1), |held: &Register<Place>| {
                    assert_eq!(held.record.is_some_and(|held| !held.head.tombstone), expected, "{at:?}");
                    ((), Some(STORE))
                });
            assert_eq!(disk.waits(), 0, "only finding waits");
            disk.watch(false);
            match done {
                Ok(_) => match new.content.bytes() {
                    Some(value) => drop(model.insert(at, value.to_vec())),
                    None => drop(model.remove(&at)),
                },
                Err(WriteError::Read(ReadError::WouldBlock)) => {
                    cold += 1;
                    found.push((at.clone(), engine.find(key(at.0, &at.1)).expect("finds")));
                }
                Err(WriteError::Overloaded) => {
                    flush(&engine);
                    maintain(&engine);
                }
                Err(error) => panic!("{error}"),
            }
            if random.below(20) == 0 {
                flush(&engine);
                engine.maintain(random.below(2000)).expect("maintains");
            }
        }
        let all = ScanRange::all(KeyspaceId::DEFAULT, PartitionId(0), PartitionId(2000));
        let mut left = Model::new();
        engine
            .scan(all, usize::MAX, &mut |partition, name, entry| {
                if entry.register.record.is_some_and(|held| !held.head.tombstone) {
                    let value = value(&engine, key(partition.0, name)).expect("a value");
                    left.insert((partition.0, name.to_vec()), value);
                }
                true
            })
            .expect("scans");
        assert_eq!(left, model, "seed {seed}");
    }
    assert!(cold > 500, "{cold} updates would have waited");
}
