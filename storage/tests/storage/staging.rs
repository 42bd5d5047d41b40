//! Large records in segments of their own.

use std::sync::Arc;

use dunlin_protocol::register::Change;
use dunlin_protocol::{Ballot, Millis, Record};
use dunlin_storage::{Engine, KeyRef, MemoryDisk, Options, Place, Position, Staged, WriteError, verify};

use crate::support::{TINY, flush, key, look, maintain, record, stamp, store, value};

/// Segments in which a few large records have room.
const ROOMY: Options = Options { segment_bytes: 16 << 10, pending_limit_bytes: 8 << 10, ..TINY };

fn open(disk: &MemoryDisk) -> Engine {
    let (engine, recovery) = Engine::open(Arc::new(disk.clone()), ROOMY).expect("opens");
    assert_eq!(recovery.damaged, []);
    engine
}

fn stage(engine: &Engine, key: KeyRef<'_>, record: &Record) -> Result<Staged, WriteError> {
    Ok(engine.stage(&[(key, record)])?.pop().expect("as many as were given"))
}

fn refer(engine: &Engine, key: KeyRef<'_>, staged: Staged, change: Change) -> Position {
    engine.update_staged(key, staged, Millis(1), |_| ((), Some(change))).expect("updates").entry.position
}

const STORE: Change = Change::Store { ballot: Ballot::ZERO };

fn segments(disk: &MemoryDisk) -> usize {
    use dunlin_storage::Disk;
    disk.list("segments").expect("lists").len()
}

#[test]
fn a_large_record_is_written_once_and_the_log_names_its_place() {
    let disk = MemoryDisk::new();
    let engine = open(&disk);
    let at = key(1, b"large");
    let staged = stage(&engine, at, &record(5, [7; 6000])).expect("stages");
    assert!(look(&engine, at).register.is_absent() && engine.end() == engine.durable_upto(), "nobody knows of it yet");
    let before = engine.end().get();
    let position = refer(&engine, at, staged, STORE);
    assert!(position.get() - before < 300, "the log does not carry it");
    assert_eq!(value(&engine, at), Some(vec![7; 6000]), "also before the log is written");
    flush(&engine);
    for _ in 0..2 {
        let engine = open(&disk);
        assert_eq!(value(&engine, at), Some(vec![7; 6000]), "from the log");
    }
    let engine = open(&disk);
    maintain(&engine);
    engine.close().expect("closes");
    assert_eq!(value(&open(&disk), at), Some(vec![7; 6000]), "from a table");
    assert_eq!(verify(&disk).expect("verifies").damaged, []);
}

#[test]
fn accepts_and_commits_refer_to_what_was_staged() {
    let disk = MemoryDisk::new();
    let engine = open(&disk);
    let (at, ballot) = (key(2, b"serial"), stamp(9));
    let staged = stage(&engine, at, &record(8, [3; 5000])).expect("stages");
    refer(&engine, at, staged, Change::Accept { ballot, promised: ballot });
    flush(&engine);
    let engine = open(&disk);
    let (pending, held) = look(&engine, at).register.pending.expect("a pending");
    assert_eq!((pending, held.head.value_len), (ballot, 5000));
    engine.update(at, None, Millis(2), |_| ((), Some(Change::Commit { ballot }))).expect("commits");
    assert_eq!(value(&engine, at), Some(vec![3; 5000]));
}

#[test]
fn what_nothing_refers_to_goes_and_what_is_held_stays() {
    let disk = MemoryDisk::new();
    let engine = open(&disk);
    let at = key(1, b"kept");
    // Of each segment most dies at once; one record waits for its reference all the while.
    let waiting = stage(&engine, at, &record(1, [1; 3000])).expect("stages");
    for n in 2..60u64 {
        let other = key(0, b"other");
        let staged = stage(&engine, other, &record(n, vec![n as u8; 3000])).expect("stages");
        match n % 4 {
            0 => drop(staged),
            _ => drop(refer(&engine, other, staged, STORE)),
        }
        flush(&engine);
        maintain(&engine);
    }
    assert!(segments(&disk) < 8, "{} segments", segments(&disk));
    refer(&engine, at, waiting, STORE);
    flush(&engine);
    maintain(&engine);
    let check = |engine: &Engine| {
        assert_eq!(value(engine, at), Some(vec![1; 3000]));
        assert_eq!(value(engine, key(0, b"other")), Some(vec![59; 3000]));
    };
    check(&engine);
    drop(engine);
    disk.crash(3);
    check(&open(&disk));
}

/// A flush must not remove a segment because of what died since: that is not durable, and the log behind the flush names it.
#[test]
fn a_segment_stays_while_the_log_names_it() {
    let disk = MemoryDisk::new();
    let engine = open(&disk);
    let at = key(1, b"a");
    let staged = stage(&engine, at, &record(2, [2; 9000])).expect("stages");
    drop(stage(&engine, at, &record(4, [4; 12_000])).expect("stages in the next segment"));
    for n in 0..12u8 {
        store(&engine, key(0, &[n]), &record(1, [n; 40])).expect("stores");
    }
    flush(&engine);
    assert!(engine.maintain(1).expect("freezes, and begins to flush"));
    refer(&engine, at, staged, STORE);
    flush(&engine);
    store(&engine, at, &record(3, [3; 10])).expect("stores, in memory only");
    while engine.stats().flushes == 0 {
        assert!(engine.maintain(1).expect("maintains"));
    }
    drop(engine);
    disk.crash(1);
    assert_eq!(value(&open(&disk), at), Some(vec![2; 9000]));
}

/// The manifest knows only what was there at the last flush: replay tells how far the segment goes, and so what of it can be collected.
#[test]
fn after_a_crash_all_that_was_staged_counts() {
    let disk = MemoryDisk::new();
    let engine = open(&disk);
    for n in 0..4u8 {
        let staged = stage(&engine, key(1, &[n]), &record(2, [n; 3000])).expect("stages");
        refer(&engine, key(1, &[n]), staged, STORE);
    }
    flush(&engine);
    drop(engine);
    disk.crash(1);
    let engine = open(&disk);
    let place = look(&engine, key(1, &[3])).register.record.expect("held").place;
    for n in 0..3u8 {
        store(&engine, key(1, &[n]), &record(3, [n; 10])).expect("stores");
    }
    flush(&engine);
    for n in 0..12u8 {
        store(&engine, key(0, &[n]), &record(1, [n; 90])).expect("stores");
        flush(&engine);
        maintain(&engine);
    }
    assert_ne!(look(&engine, key(1, &[3])).register.record.expect("held").place.segment(), place.segment());
    assert_eq!(value(&engine, key(1, &[3])), Some(vec![3; 3000]));
}

#[test]
fn a_place_beyond_the_files_end_is_damage() {
    use dunlin_storage::Disk;
    let disk = MemoryDisk::new();
    let engine = open(&disk);
    let at = key(1, b"a");
    let staged = stage(&engine, at, &record(2, [2; 9000])).expect("stages");
    refer(&engine, at, staged, STORE);
    flush(&engine);
    let place: Place = look(&engine, at).register.record.expect("held").place;
    drop(engine);
    let name = place.segment().expect("in a segment").file_name();
    disk.open(&name).expect("opens").truncate(4000).expect("cuts");
    let (engine, recovery) = Engine::open(Arc::new(disk.clone()), ROOMY).expect("opens");
    assert!(recovery.damaged.iter().any(|damage| damage.file == name), "{:?}", recovery.damaged);
    assert!(engine.suspect_partitions().contains(at.partition));
}

#[test]
fn a_full_disk_refuses_to_stage_and_nothing_else_is_harmed() {
    let disk = MemoryDisk::new();
    let engine = open(&disk);
    let at = key(1, b"a");
    store(&engine, at, &record(1, [1; 300])).expect("stores");
    flush(&engine);
    for room in (0..12_000).step_by(500) {
        disk.set_capacity(Some(disk.used() + room));
        let staged = stage(&engine, at, &record(2, [2; 9000]));
        assert_eq!(staged.is_ok(), room >= 9500, "{room}");
        if let Err(error) = staged {
            assert!(matches!(error, WriteError::DiskFull), "{error}");
        }
        disk.set_capacity(None);
        assert!(!engine.is_poisoned());
    }
    assert_eq!(value(&engine, at), Some(vec![1; 300]));
    let staged = stage(&engine, at, &record(3, [3; 9000])).expect("there is room again");
    refer(&engine, at, staged, STORE);
    flush(&engine);
    maintain(&engine);
    assert_eq!(value(&open(&disk), at), Some(vec![3; 9000]));
}

/// Whoever is refused tries again: each try must leave the room to others, to what is flushed above all.
#[test]
fn on_a_full_disk_what_cannot_be_staged_takes_no_room() {
    let disk = MemoryDisk::new();
    let engine = open(&disk);
    let at = key(1, b"a");
    let staged = stage(&engine, at, &record(1, [1; 500])).expect("stages");
    refer(&engine, at, staged, STORE);
    flush(&engine);
    let (before, files) = (disk.used(), segments(&disk));
    disk.set_capacity(Some(before + 6000));
    for _ in 0..30 {
        // The first of them has room.
        let (small, large) = (record(2, [2; 4000]), record(2, [2; 9000]));
        assert!(matches!(engine.stage(&[(at, &small), (at, &large)]), Err(WriteError::DiskFull)));
        assert_eq!((disk.used(), segments(&disk)), (before, files));
    }
    let staged = stage(&engine, at, &record(3, [3; 2000])).expect("a smaller one has room");
    refer(&engine, at, staged, STORE);
    flush(&engine);
    assert_eq!(value(&open(&disk), at), Some(vec![3; 2000]));
    assert_eq!(verify(&disk).expect("verifies").damaged, []);
}

/// Frames that name places are short and the memtable stays small: what died must go even so.
#[test]
fn upkeep_is_due_when_much_was_staged() {
    let disk = MemoryDisk::new();
    let options = Options { memtable_bytes: 1 << 20, ..ROOMY };
    let engine = Engine::open(Arc::new(disk.clone()), options).expect("opens").0;
    let at = key(1, b"a");
    let mut most = 0;
    for n in 1..200 {
        let staged = stage(&engine, at, &record(n, [n as u8; 3000])).expect("stages");
        // Every other one loses against something, or all of them: then there is nothing to be flushed.
        match n > 100 || n % 2 == 0 {
            true => drop(staged),
            false => drop(refer(&engine, at, staged, STORE)),
        }
        flush(&engine);
        if engine.wants_upkeep() {
            maintain(&engine);
            assert!(!engine.wants_upkeep());
        }
        most = most.max(segments(&disk));
    }
    assert!(most < 8, "{most} segments");
    assert_eq!(value(&engine, at), Some(vec![99; 3000]));
}

#[test]
#[should_panic(expected = "staged for one key")]
fn a_record_is_staged_for_one_key() {
    let engine = open(&MemoryDisk::new());
    let staged = stage(&engine, key(1, b"a"), &record(1, [1; 300])).expect("stages");
    refer(&engine, key(1, b"b"), staged, STORE);
}
