//! Data directories of released format versions are opened for ever.

use std::path::PathBuf;

use dunlin_protocol::register::Change;
use dunlin_protocol::{
    Ancestor, Attributes, BootNumber, ClusterId, Content, DataId, KeyspaceId, Millis, NodeId, PartitionId, Record,
    Stamp,
};
use dunlin_storage::{ClockFile, Disk, Engine, Identity, KeyRef, MemoryDisk, load_blob, store_blob};

use crate::support::{change, flush, key, look, open, record, stamp, store, tombstone, value};

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1")
}

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

/// Writes the fixture of the version that is written now: `cargo test -p dunlin-storage write_fixture -- --ignored`, once for each version.
#[test]
#[ignore = "writes the fixture of a new format version"]
fn write_fixture() {
    let disk = MemoryDisk::new();
    fill(&open(&disk).0);
    // Opening again adds a segment of frames that were written anew.
    drop(open(&disk));
    identity().store(&disk).expect("stores");
    store_blob(&disk, "TOPOLOGY", b"a topology").expect("stores");
    ClockFile::open(&disk).expect("opens").reserve(Millis(5000)).expect("reserves");
    std::fs::create_dir_all(directory().join("segments")).expect("creates");
    for name in disk.names() {
        std::fs::write(directory().join(&name), disk.contents(&name).expect("there")).expect("writes");
    }
}

#[test]
fn version_1_opens() {
    let disk = MemoryDisk::new();
    for dir in ["", "segments/"] {
        for entry in std::fs::read_dir(directory().join(dir)).expect("the fixture is there") {
            let entry = entry.expect("an entry");
            if entry.file_type().expect("a type").is_file() {
                let name = format!("{dir}{}", entry.file_name().into_string().expect("a name"));
                disk.insert(&name, &std::fs::read(entry.path()).expect("reads"));
            }
        }
    }
    assert_eq!(Identity::load(&disk).expect("loads"), Some(identity()));
    assert_eq!(load_blob(&disk, "TOPOLOGY").expect("loads").as_deref(), Some(&b"a topology"[..]));
    let clock = ClockFile::open(&disk).expect("opens");
    assert_eq!((clock.reserved(), clock.boot(), clock.damage()), (Millis(5000), BootNumber(2), None));
    let segments = disk.list("segments").expect("lists").len();
    assert!(segments > 2);

    let (engine, recovery) = open(&disk);
    assert_eq!((recovery.damaged, recovery.torn_bytes, recovery.is_new), (vec![], 0, false));
    assert!(recovery.suspects.named().eq([PartitionId(77)]) && !recovery.suspects.is_all());
    assert_eq!(engine.stats().keys, 26);
    let system = KeyRef { keyspace: KeyspaceId::SYSTEM, ..key(0, b"topology") };
    assert_eq!(value(&engine, system), Some(b"system".to_vec()));
    assert_eq!(value(&engine, key(1, b"value")), Some(b"value".to_vec()));
    assert_eq!(look(&engine, key(1, b"deleted")).register.head(), tombstone(3).head());
    assert!(look(&engine, key(2, b"collected")).register.is_absent());
    assert_eq!(look(&engine, key(2, b"promised")).register.promised, stamp(5));
    for n in 0..20 {
        assert_eq!(value(&engine, key(3, &[n])), Some(vec![n; 300]));
    }
    let full = full_record();
    let check = |name: &[u8], held: dunlin_protocol::register::Held<_>| {
        assert_eq!(held.head, full.head());
        let stored = engine.load(key(4, name), &held).expect("loads");
        assert_eq!((stored.lineage, stored.content), (full.lineage.clone(), full.content.clone()));
    };
    let accepted = look(&engine, key(4, b"accepted")).register;
    let (ballot, held) = accepted.pending.expect("pending");
    assert_eq!((ballot, accepted.promised, accepted.record), (stamp(30), stamp(31), None));
    check(b"accepted", held);
    let committed = look(&engine, key(4, b"committed")).register;
    assert_eq!((committed.ballot, committed.promised, committed.pending), (stamp(30), Stamp::ZERO, None));
    check(b"committed", committed.record.expect("committed"));
}
