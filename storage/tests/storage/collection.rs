//! Collecting segments that are longer than a step.

use std::sync::Arc;

use dunlin_storage::{Engine, MemoryDisk, Options, SegmentId, WriteError, verify};

use crate::support::{SMALL, flush, key, look, maintain, record, store, value};

/// A step of collection reads two of the largest frames at once: a segment has more.
const LONG: Options = Options { segment_bytes: 4 << 20, memtable_bytes: 64 << 10, table_bytes: 1 << 20, ..SMALL };

fn open(disk: &MemoryDisk) -> Engine {
    let (engine, recovery) = Engine::open(Arc::new(disk.clone()), LONG).expect("opens");
    assert_eq!(recovery.damaged, []);
    engine
}

fn put(engine: &Engine, name: &[u8], n: u64, len: usize) {
    store(engine, key(1, name), &record(n, vec![n as u8; len])).expect("stores");
    flush(engine);
}

/// Puts so much garbage into the log that it goes on in another segment.
fn fill_segment(engine: &Engine) {
    (0..45).for_each(|n| put(engine, b"garbage", n, 100_000));
}

/// Fills the memtable, and takes the steps of upkeep until it was flushed.
fn flush_memtable(engine: &Engine) {
    let before = engine.stats().flushes;
    // Other keys each time: nothing is to be merged.
    let mut n = before * 10_000;
    while engine.stats().memtable_bytes < LONG.memtable_bytes {
        n += 1;
        put(engine, &n.to_be_bytes(), n, 90);
    }
    while engine.stats().flushes == before {
        engine.maintain(u64::MAX).expect("maintains");
    }
}

fn segment(engine: &Engine, name: &[u8]) -> SegmentId {
    let held = look(engine, key(1, name)).register.record.expect("a record");
    held.place.segment().expect("in a segment")
}

/// An engine that has moved the records of these keys, of 4,000 bytes each, to a segment of its own.
fn with_moved(disk: &MemoryDisk, names: &[&[u8]]) -> Engine {
    let engine = open(disk);
    names.iter().for_each(|name| put(&engine, name, 7, 4000));
    fill_segment(&engine);
    flush_memtable(&engine);
    maintain(&engine);
    assert_eq!(engine.stats().collected, 1);
    engine
}

/// All that was moved before dies and is flushed while more is being moved to the same segment.
#[test]
fn a_segment_stays_while_it_is_moved_to() {
    let disk = MemoryDisk::new();
    let engine = with_moved(&disk, &[b"a"]);
    put(&engine, b"b", 8, 4000);
    fill_segment(&engine);
    flush_memtable(&engine);
    let from = segment(&engine, b"b");
    put(&engine, b"a", 9, 10);
    assert!(engine.maintain(1).expect("collects"));
    assert_eq!((engine.stats().collected, segment(&engine, b"b")), (1, from), "not all of it yet");
    flush_memtable(&engine);
    maintain(&engine);
    assert!(engine.stats().collected > 1);
    assert_ne!(segment(&engine, b"b"), from);
    assert_eq!(value(&engine, key(1, b"b")), Some(vec![8; 4000]));
    assert_eq!(verify(&disk).expect("verifies").damaged, []);
    drop(engine);
    assert_eq!(value(&open(&disk), key(1, b"b")), Some(vec![8; 4000]));
}

/// What is moved to is collected like any other segment, to another one.
#[test]
fn a_segment_is_not_collected_to_itself() {
    let disk = MemoryDisk::new();
    let names: [&[u8]; 4] = [b"a", b"b", b"c", b"d"];
    let engine = with_moved(&disk, &names);
    let from = segment(&engine, b"d");
    names[..3].iter().for_each(|name| put(&engine, name, 8, 10));
    flush_memtable(&engine);
    maintain(&engine);
    assert_ne!(segment(&engine, b"d"), from);
    flush_memtable(&engine);
    maintain(&engine);
    assert_eq!(disk.contents(&from.file_name()), None);
    assert_eq!(value(&open(&disk), key(1, b"d")), Some(vec![7; 4000]));
}

/// On a full disk each try must leave the room to others.
#[test]
fn what_cannot_be_moved_takes_no_room() {
    let disk = MemoryDisk::new();
    let engine = open(&disk);
    // Some in the first part that is read in one go, some in the second.
    for n in 0..39 {
        put(&engine, &[if n % 35 < 4 { n } else { 99 }], 7, 100_000);
    }
    fill_segment(&engine);
    flush_memtable(&engine);
    let before = disk.names();
    // So much room is left when upkeep has used up its reserve.
    let reserve = disk.contents("RESERVE").expect("it is kept").len() as u64;
    disk.set_capacity(Some(disk.used() + 500_000 - reserve));
    for tried in 0..5 {
        let refused = loop {
            match engine.maintain(1) {
                Ok(more) => assert!(more, "there is something to move"),
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, WriteError::DiskFull), "{refused}");
        let is_new = |name: &&String| name.starts_with("segments/") && !before.contains(name);
        for name in disk.names().iter().filter(is_new) {
            let contents = disk.contents(name).expect("there");
            assert!(!contents.is_empty(), "try {tried}: {name} is left without its header");
            assert!(
                contents.iter().skip(64).all(|byte| *byte == 0),
                "try {tried}: {name} has something behind its header"
            );
        }
    }
    disk.set_capacity(None);
    maintain(&engine);
    assert_eq!(engine.stats().collected, 1);
    assert_eq!(value(&open(&disk), key(1, &[3])), Some(vec![7; 100_000]));
}

/// The header of a segment that has little else is no garbage that could be collected.
#[test]
fn collection_comes_to_an_end() {
    let disk = MemoryDisk::new();
    let options = Options { garbage_percent: 1, ..LONG };
    let engine = Engine::open(Arc::new(disk.clone()), options).expect("opens").0;
    put(&engine, b"a", 7, 200);
    fill_segment(&engine);
    flush_memtable(&engine);
    let steps = (0..1000).take_while(|_| engine.maintain(u64::MAX).expect("maintains")).count();
    assert!(steps < 100 && engine.stats().collected == 1, "{steps} steps");
}
