//! Data directories of released format versions are opened for ever. A fixture has the version of its manifest for a name; what it has of segments,
//! tables, clock and identity was current then.

use std::path::PathBuf;
use std::sync::Arc;

use dunlin_protocol::register::Change;
use dunlin_protocol::{
    Ancestor, Attributes, BootNumber, ClusterId, Content, DataId, KeyspaceId, Millis, NodeId, PartitionId, Record,
    Stamp,
};
use dunlin_storage::{ClockFile, Disk, Engine, Identity, KeyRef, MemoryDisk, Options, load_blob, store_blob, verify};

use crate::digests::check_digests;
use crate::support::{SMALL, change, flush, key, look, maintain, open, record, stamp, store, tombstone, value};

fn directory(version: u32) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/v{version}"))
}

/// What was written then, and how: no other options suit what lies there.
const OPTIONS: Options = Options { memtable_bytes: 4 << 10, ..SMALL };

fn identity() -> Identity {
    Identity { node: NodeId(7), founders: [3; 32], data: DataId(5), cluster: Some(ClusterId(99)), format: 1 }
}

fn full_record() -> Record {
    Record {
        stamp: stamp(21),
        op_id: stamp(20),
        reach: stamp(19),
        expires_at: Millis(1234),
        lineage: vec![
            Ancestor { op_id: stamp(18), stamp: stamp(17) },
            Ancestor { op_id: stamp(16), stamp: Stamp::ZERO },
        ],
        content: Content::Value(b"full".to_vec().into(), Attributes(vec![("type".into(), "text".into())])),
    }
}

/// Something of everything.
fn fill(engine: &Engine) {
    let system = KeyRef { keyspace: KeyspaceId::SYSTEM, ..key(0, b"topology") };
    store(engine, system, &record(1, "system")).expect("stores");
    store(engine, key(1, b"value"), &record(2, "value")).expect("stores");
    store(engine, key(1, b"deleted"), &tombstone(3)).expect("stores");
    flush(engine);
    store(engine, key(2, b"collected"), &tombstone(4)).expect("stores");
    change(engine, key(2, b"collected"), Change::Forget, None).expect("forgets");
    change(engine, key(2, b"promised"), Change::Promise { ballot: stamp(5) }, None).expect("promises");
    flush(engine);
    for n in 0..20 {
        store(engine, key(3, &[n]), &record(10 + u64::from(n), vec![n; 300])).expect("stores");
        flush(engine);
    }
    let accept = Change::Accept { ballot: stamp(30), promised: stamp(31) };
    change(engine, key(4, b"accepted"), accept, Some(&full_record())).expect("accepts");
    change(engine, key(4, b"committed"), accept, Some(&full_record())).expect("accepts");
    change(engine, key(4, b"committed"), Change::Commit { ballot: stamp(30) }, None).expect("commits");
    change(engine, key(4, b"committed"), Change::Purge, None).expect("purges");
    flush(engine);
    engine.mark_suspect(PartitionId(77)).expect("marks");
}

/// Tables in two levels, cold segments, and a log behind them, with something of everything in each.
fn fill_cold(engine: &Engine) {
    let churn = |n: u64| {
        // Every fourth stays where it is; the others are overwritten, so that segments are collected.
        let name = if n.is_multiple_of(4) { n } else { n % 4 };
        while store(engine, key(5, &name.to_be_bytes()), &record(n, vec![n as u8; 150])).is_err() {
            flush(engine);
            maintain(engine);
        }
        flush(engine);
    };
    (1..=CHURNED).for_each(churn);
    maintain(engine);
    let stats = engine.stats();
    assert!(stats.tables > 1 && stats.merges > 0 && stats.collected > 0 && stats.moved_bytes > 0, "{stats:?}");
}

const CHURNED: u64 = 400;

fn check_cold(engine: &Engine) {
    let newest = |name: u64| if name < 4 { (1..=CHURNED).rfind(|n| n % 4 == name).unwrap_or(0) } else { name };
    for name in (1..4).chain((4..=CHURNED).step_by(4)) {
        let n = newest(name);
        assert_eq!(value(engine, key(5, &name.to_be_bytes())), Some(vec![n as u8; 150]), "{name}");
    }
}

/// Writes the fixture of the version that is written now: `cargo test -p dunlin-storage write_fixture -- --ignored`, once for each version.
#[test]
#[ignore = "writes the fixture of a new format version"]
fn write_fixture() {
    let disk = MemoryDisk::new();
    let open = || Engine::open(Arc::new(disk.clone()), OPTIONS).expect("opens").0;
    {
        let engine = open();
        fill(&engine);
        fill_cold(&engine);
        // Some of everything in the log, too, behind the tables.
        fill(&engine);
    }
    // Opening again adds a segment of frames that were written anew.
    drop(open());
    identity().store(&disk).expect("stores");
    store_blob(&disk, "TOPOLOGY", b"a topology").expect("stores");
    ClockFile::open(&disk).expect("opens").reserve(Millis(5000)).expect("reserves");
    let manifest = disk.contents("MANIFEST").expect("there");
    let directory = directory(version_of(&manifest));
    assert!(!directory.exists(), "{} was written already", directory.display());
    for sub in ["segments", "tables"] {
        std::fs::create_dir_all(directory.join(sub)).expect("creates");
    }
    for name in disk.names() {
        std::fs::write(directory.join(&name), disk.contents(&name).expect("there")).expect("writes");
    }
}

/// The version of a manifest, which lies behind the header of a blob.
fn version_of(manifest: &[u8]) -> u32 {
    let word = |at: usize| u32::from_le_bytes(manifest[at..at + 4].try_into().expect("four bytes"));
    if word(16) == u32::MAX { word(20) } else { 1 }
}

/// A fixture's files.
fn fixture(version: u32) -> MemoryDisk {
    let disk = MemoryDisk::new();
    for dir in ["", "segments/", "tables/"] {
        let Ok(entries) = std::fs::read_dir(directory(version).join(dir)) else { continue };
        for entry in entries {
            let entry = entry.expect("an entry");
            if entry.file_type().expect("a type").is_file() {
                let name = format!("{dir}{}", entry.file_name().into_string().expect("a name"));
                disk.insert(&name, &std::fs::read(entry.path()).expect("reads"));
            }
        }
    }
    disk
}

#[test]
fn version_3_opens() {
    let disk = fixture(3);
    assert!(disk.list("tables").expect("lists").iter().any(|name| name.ends_with(".dig")));
    opens_and_goes_on(&disk);
}

/// Digests are made of what the tables have.
#[test]
fn version_2_opens() {
    let disk = fixture(2);
    assert!(!disk.list("tables").expect("lists").iter().any(|name| name.ends_with(".dig")));
    opens_and_goes_on(&disk);
}

fn check_digests_of_all(engine: &Engine) {
    for keyspace in [KeyspaceId::DEFAULT, KeyspaceId::SYSTEM] {
        check_digests(engine, keyspace, PartitionId(100));
    }
}

fn opens_and_goes_on(disk: &MemoryDisk) {
    check_small_files(disk);
    assert!(disk.list("tables").expect("lists").len() > 1);
    assert_eq!(verify(disk).expect("reads").damaged, []);
    let (engine, recovery) = Engine::open(Arc::new(disk.clone()), OPTIONS).expect("opens");
    assert_eq!((recovery.damaged, recovery.torn_bytes, recovery.is_new), (vec![], 0, false));
    assert!(recovery.suspects.named().eq([PartitionId(77)]) && !recovery.suspects.is_all());
    check_filled(&engine);
    check_cold(&engine);
    check_digests_of_all(&engine);
    assert_eq!(engine.stats().keys, 26 + 3 + CHURNED / 4);
    // It goes on: flushed, merged and collected, it is the same.
    store(&engine, key(9, b"new"), &record(500, "new")).expect("stores");
    flush(&engine);
    maintain(&engine);
    check_filled(&engine);
    check_cold(&engine);
    check_digests_of_all(&engine);
    // With the same digests in a file now.
    drop(engine);
    let (engine, recovery) = Engine::open(Arc::new(disk.clone()), OPTIONS).expect("opens");
    assert_eq!(recovery.damaged, []);
    check_digests_of_all(&engine);
}

fn check_small_files(disk: &MemoryDisk) {
    assert_eq!(Identity::load(disk).expect("loads"), Some(identity()));
    assert_eq!(load_blob(disk, "TOPOLOGY").expect("loads").as_deref(), Some(&b"a topology"[..]));
    let clock = ClockFile::open(disk).expect("opens");
    assert_eq!((clock.reserved(), clock.boot(), clock.damage()), (Millis(5000), BootNumber(2), None));
}

#[test]
fn version_1_opens() {
    let disk = fixture(1);
    check_small_files(&disk);
    let segments = disk.list("segments").expect("lists").len();
    assert!(segments > 2);

    let (engine, recovery) = open(&disk);
    assert_eq!((recovery.damaged, recovery.torn_bytes, recovery.is_new), (vec![], 0, false));
    assert!(recovery.suspects.named().eq([PartitionId(77)]) && !recovery.suspects.is_all());
    assert_eq!(engine.stats().keys, 26);
    check_filled(&engine);
}

/// What [`fill`] leaves.
fn check_filled(engine: &Engine) {
    let system = KeyRef { keyspace: KeyspaceId::SYSTEM, ..key(0, b"topology") };
    assert_eq!(value(engine, system), Some(b"system".to_vec()));
    assert_eq!(value(engine, key(1, b"value")), Some(b"value".to_vec()));
    assert_eq!(look(engine, key(1, b"deleted")).register.head(), tombstone(3).head());
    assert!(look(engine, key(2, b"collected")).register.is_absent());
    assert_eq!(look(engine, key(2, b"promised")).register.promised, stamp(5));
    for n in 0..20 {
        assert_eq!(value(engine, key(3, &[n])), Some(vec![n; 300]));
    }
    let full = full_record();
    let check = |name: &[u8], held: dunlin_protocol::register::Held<_>| {
        assert_eq!(held.head, full.head());
        let stored = engine.load(key(4, name), &held).expect("loads");
        assert_eq!((stored.lineage, stored.content), (full.lineage.clone(), full.content.clone()));
    };
    let accepted = look(engine, key(4, b"accepted")).register;
    let (ballot, held) = accepted.pending.expect("pending");
    assert_eq!((ballot, accepted.promised, accepted.record), (stamp(30), stamp(31), None));
    check(b"accepted", held);
    let committed = look(engine, key(4, b"committed")).register;
    assert_eq!((committed.ballot, committed.promised, committed.pending), (stamp(30), Stamp::ZERO, None));
    check(b"committed", committed.record.expect("committed"));
}
