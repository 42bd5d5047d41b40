//! The digests of partitions: always those of a full scan, whatever happened.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dunlin_protocol::register::Change;
use dunlin_protocol::{Ballot, KeyspaceId, PartitionId};
use dunlin_storage::{
    DamageKind, Digest, Engine, KeyRef, Leaf, MemoryDisk, OpenError, Recovery, ScanRange, WriteError, load_blob,
    store_blob, verify,
};

use crate::support::{Random, TINY, change, flush, key, look, maintain, record, stamp, store, tombstone};

fn open(disk: &MemoryDisk) -> (Engine, Recovery) {
    Engine::open(Arc::new(disk.clone()), TINY).expect("opens")
}

const OTHER: KeyspaceId = KeyspaceId(9);
const LAST: u16 = 40;

/// What a key contributes, by the definition.
fn contribution(key: KeyRef<'_>, stamp: dunlin_protocol::Stamp, ballot: Ballot) -> Digest {
    let mut bytes = stamp.to_bits().to_le_bytes().to_vec();
    bytes.extend_from_slice(&ballot.to_bits().to_le_bytes());
    bytes.extend_from_slice(key.key);
    let hash = blake3::hash(&bytes);
    Digest::from_bytes(hash.as_bytes()[..16].try_into().expect("16 bytes"))
}

/// Compares all digests with what a full scan makes of all keys.
pub(crate) fn check_digests(engine: &Engine, keyspace: KeyspaceId, last: PartitionId) {
    let mut expected = BTreeMap::<u16, ([Digest; Leaf::LEAVES], u64)>::new();
    let all = ScanRange::all(keyspace, PartitionId(0), last);
    let ended = engine.scan(all, usize::MAX, &mut |partition, name, entry| {
        if let Some(held) = entry.register.record {
            let key = KeyRef { partition, keyspace, key: name };
            let (leaves, records) = expected.entry(partition.0).or_insert(([Digest::NONE; Leaf::LEAVES], 0));
            let leaf = usize::from(Leaf::of(key).number());
            leaves[leaf] ^= contribution(key, held.head.stamp, entry.register.ballot);
            *records += 1;
        }
        true
    });
    assert!(ended.expect("reads"));
    let mut roots = Vec::new();
    for partition in (0..=last.0).map(PartitionId) {
        let digest = engine.digest(keyspace, partition);
        let (leaves, records) = expected.remove(&partition.0).unwrap_or(([Digest::NONE; Leaf::LEAVES], 0));
        assert_eq!((digest.leaves(), digest.records()), (&leaves, records), "partition {}", partition.0);
        assert_eq!(digest.root(), leaves.iter().fold(Digest::NONE, |root, leaf| root ^ *leaf));
        if records > 0 {
            roots.push((partition, digest.root()));
        }
    }
    assert_eq!(engine.digest_roots(keyspace, PartitionId(0), last).0, roots);
}

fn check(engine: &Engine) {
    for keyspace in [KeyspaceId::DEFAULT, OTHER] {
        check_digests(engine, keyspace, PartitionId(LAST));
    }
}

/// Does something to a key of some partition and keyspace.
fn step(engine: &Engine, random: &mut Random, n: u64) -> Result<(), WriteError> {
    let name = format!("key-{:02}", random.below(60)).into_bytes();
    let at = KeyRef {
        keyspace: if random.below(3) == 0 { OTHER } else { KeyspaceId::DEFAULT },
        ..key((random.below(4) * 13) as u16, &name)
    };
    let record = match random.below(4) {
        0 => tombstone(n),
        _ => record(n, vec![n as u8; random.below(200) as usize]),
    };
    let pending = look(engine, at).register.pending.map(|(ballot, _)| ballot);
    let (done, record) = match (random.below(9), pending) {
        (0..=3, _) => (Change::Store { ballot: Ballot::ZERO }, Some(&record)),
        (4, _) => (Change::Store { ballot: stamp(n) }, Some(&record)),
        (5, _) => (Change::Promise { ballot: stamp(n) }, None),
        (6, Some(ballot)) => (Change::Commit { ballot }, None),
        (6..=7, _) => (Change::Accept { ballot: stamp(n), promised: stamp(n) }, Some(&record)),
        _ => (if random.below(2) == 0 { Change::Forget } else { Change::Purge }, None),
    };
    change(engine, at, done, record).map(|_| ())
}

fn churn(engine: &Engine, random: &mut Random, steps: u64, n: &mut u64) {
    for _ in 0..steps {
        *n += 1;
        match step(engine, random, *n) {
            Ok(()) => {}
            Err(WriteError::Overloaded) => {
                flush(engine);
                maintain(engine);
            }
            Err(error) => panic!("{error}"),
        }
        if random.below(15) == 0 {
            flush(engine);
            engine.maintain(random.below(2000)).expect("maintains");
        }
        if random.below(100) == 0 {
            check(engine);
        }
    }
}

#[test]
fn they_are_those_of_a_full_scan() {
    let (mut flushes, mut merges, mut collected) = (0, 0, 0);
    for seed in 0..3 {
        let disk = MemoryDisk::new();
        let (mut random, mut n) = (Random(seed), 0);
        for round in 0..8 {
            let (engine, recovery) = open(&disk);
            assert_eq!(recovery.damaged, []);
            check(&engine);
            churn(&engine, &mut random, 500, &mut n);
            check(&engine);
            let stats = engine.stats();
            assert!(stats.digest_bytes > 0);
            (flushes, merges, collected) =
                (flushes + stats.flushes, merges + stats.merges, collected + stats.collected);
            drop(engine);
            if round % 2 == 0 { disk.crash(seed + round) } else { disk.kill() }
        }
        // One file of them, and no more.
        drop(open(&disk));
        assert_eq!(disk.names().iter().filter(|name| name.ends_with(".dig")).count(), 1);
        assert_eq!(verify(&disk).expect("reads").damaged, []);
    }
    assert!(flushes > 50 && merges > 10 && collected > 10, "{flushes} flushes, {merges} merges, {collected} collected");
}

#[test]
fn when_all_is_forgotten_nothing_is_left_of_them() {
    let disk = MemoryDisk::new();
    let (engine, _) = open(&disk);
    let position = store(&engine, key(1, b"a"), &record(5, "x")).expect("stores");
    let digest = engine.digest(KeyspaceId::DEFAULT, PartitionId(1));
    assert_eq!((digest.position(), digest.records()), (position, 1));
    assert!(position > engine.durable_upto());
    // What holds no record, or the same version, does not show.
    change(&engine, key(1, b"b"), Change::Promise { ballot: stamp(7) }, None).expect("promises");
    store(&engine, key(1, b"a"), &record(5, "x")).expect("stores");
    assert_eq!(engine.digest(KeyspaceId::DEFAULT, PartitionId(1)).leaves(), digest.leaves());
    // A tombstone does, and so does the ballot.
    store(&engine, key(1, b"a"), &tombstone(6)).expect("stores");
    let deleted = engine.digest(KeyspaceId::DEFAULT, PartitionId(1));
    assert_eq!((deleted.records(), deleted.root() == digest.root()), (1, false));
    let leaf = Leaf::of(key(1, b"a"));
    assert_eq!(deleted.differing(digest.leaves()).collect::<Vec<_>>(), [leaf]);
    change(&engine, key(1, b"a"), Change::Store { ballot: stamp(8) }, Some(&tombstone(6))).expect("stores");
    assert_ne!(engine.digest(KeyspaceId::DEFAULT, PartitionId(1)).root(), deleted.root());
    for name in [b"a", b"b"] {
        change(&engine, key(1, name), Change::Forget, None).expect("forgets");
    }
    let digest = engine.digest(KeyspaceId::DEFAULT, PartitionId(1));
    assert_eq!((digest.root(), digest.records(), engine.stats().digest_bytes), (Digest::NONE, 0, 0));
    assert_eq!(engine.digest_roots(KeyspaceId::DEFAULT, PartitionId(0), PartitionId(u16::MAX)).0, []);
}

#[test]
fn two_replicas_find_what_differs_by_leaves() {
    let (one, _) = open(&MemoryDisk::new());
    let (other, _) = open(&MemoryDisk::new());
    // In another order, with flushes at other times.
    for n in 0..300u64 {
        store(&one, key(3, &n.to_be_bytes()), &record(n + 1, [1; 40])).expect("stores");
        let n = 299 - n;
        store(&other, key(3, &n.to_be_bytes()), &record(n + 1, [1; 40])).expect("stores");
        flush(&one);
        if n % 5 == 0 {
            maintain(&one);
        }
        flush(&other);
        maintain(&other);
    }
    let of = |engine: &Engine| engine.digest(KeyspaceId::DEFAULT, PartitionId(3));
    assert_eq!((of(&one).leaves(), of(&one).root()), (of(&other).leaves(), of(&other).root()));
    let changed: BTreeSet<u64> = [7, 70, 177].into();
    for n in &changed {
        store(&one, key(3, &n.to_be_bytes()), &record(n + 1000, "newer")).expect("stores");
    }
    let differing: Vec<_> = of(&one).differing(of(&other).leaves()).collect();
    assert!((1..=3).contains(&differing.len()));
    let all = ScanRange::all(KeyspaceId::DEFAULT, PartitionId(3), PartitionId(3));
    let mut found = BTreeSet::new();
    let mut visits = 0;
    for leaf in differing {
        let ended = one.scan_leaf(leaf, all, usize::MAX, &mut |visited| {
            assert_eq!(visited.leaf(), leaf);
            let stamp = visited.entry.register.head().stamp;
            if look(&other, key(3, visited.key)).register.head().stamp != stamp {
                found.insert(u64::from_be_bytes(visited.key.try_into().expect("a number")));
            }
            visits += 1;
            true
        });
        assert!(ended.expect("reads"));
        assert!(!one.scan_leaf(leaf, all, 0, &mut |_| panic!("no visit")).expect("reads"));
    }
    assert_eq!(found, changed);
    assert!(visits < 60, "{visits} visits");
    // All leaves together have all keys, each once.
    let mut keys = 0;
    for leaf in (0..64).filter_map(Leaf::new) {
        one.scan_leaf(leaf, all, usize::MAX, &mut |_| {
            keys += 1;
            true
        })
        .expect("reads");
    }
    assert_eq!(keys, 300);
}

/// A directory with tables, some log behind them, and a file of digests: its name.
fn filled() -> (MemoryDisk, String) {
    let disk = MemoryDisk::new();
    let (engine, _) = open(&disk);
    let (mut random, mut n) = (Random(11), 0);
    churn(&engine, &mut random, 600, &mut n);
    flush(&engine);
    maintain(&engine);
    for n in 0..5u64 {
        store(&engine, key(1, &n.to_be_bytes()), &record(n + 1, [1; 40])).expect("stores");
    }
    flush(&engine);
    drop(engine);
    let name = disk.names().into_iter().find(|name| name.ends_with(".dig")).expect("there is one");
    (disk, name)
}

#[test]
fn a_damaged_or_missing_file_is_told_and_made_anew() {
    let (disk, name) = filled();
    let whole = disk.contents(&name).expect("there");
    let open_damaged = |kinds: &[DamageKind], what: &str| {
        let verified = verify(&disk).expect("reads");
        assert!(verified.damaged.iter().any(|damage| damage.file == name), "{what}: {verified:?}");
        let (engine, recovery) = open(&disk);
        assert_eq!(recovery.damage_count, 1, "{what}: {recovery:?}");
        let damage = &recovery.damaged[0];
        assert!(damage.file == name && kinds.contains(&damage.kind), "{what}: {damage}");
        assert!(recovery.suspects.is_empty(), "no data was lost");
        check(&engine);
        drop(engine);
        disk.insert(&name, &whole);
        assert_eq!(open(&disk).1.damaged, []);
    };
    for bit in (0..whole.len() as u64 * 8).step_by(571) {
        disk.flip_bit(&name, bit);
        open_damaged(&[DamageKind::Checksum], &format!("bit {bit}"));
    }
    for len in [0, 10, whole.len() - 1] {
        disk.insert(&name, &whole[..len]);
        open_damaged(&[DamageKind::Checksum, DamageKind::Missing], &format!("cut at {len}"));
    }
    store_blob(&disk, &name, &[1, 0, 0, 0, 1, 0, 0, 0]).expect("stores");
    open_damaged(&[DamageKind::Malformed], "malformed");
    dunlin_storage::Disk::remove(&disk, &name).expect("removes");
    open_damaged(&[DamageKind::MissingFile], "missing");
    // The next flush writes another one, and takes the damaged one away.
    let (mut random, mut n) = (Random(12), 1000);
    for is_missing in [false, true] {
        let name = disk.names().into_iter().find(|name| name.ends_with(".dig")).expect("there is one");
        match is_missing {
            true => dunlin_storage::Disk::remove(&disk, &name).expect("removes"),
            false => disk.flip_bit(&name, 300),
        }
        let (engine, recovery) = open(&disk);
        assert_eq!(recovery.damage_count, 1);
        churn(&engine, &mut random, 300, &mut n);
        flush(&engine);
        maintain(&engine);
        check(&engine);
        drop(engine);
        assert!(disk.contents(&name).is_none());
        assert_eq!(open(&disk).1.damaged, []);
    }
}

#[test]
fn a_file_of_a_newer_version_is_no_damage() {
    let (disk, name) = filled();
    let mut contents = load_blob(&disk, &name).expect("loads").expect("there");
    contents[0] = 2;
    store_blob(&disk, &name, &contents).expect("stores");
    let refused = Engine::open(Arc::new(disk), TINY).err().expect("is refused");
    assert!(matches!(refused, OpenError::Version { found: 2, known: 1, .. }), "{refused:?}");
}

/// A directory as it was written before there were digests: version 2 of the manifest.
#[test]
fn a_directory_without_them_opens() {
    let (disk, name) = filled();
    let manifest = load_blob(&disk, "MANIFEST").expect("loads").expect("there");
    let version_2 = [&manifest[..4], &2u32.to_le_bytes(), &manifest[8..40], &manifest[48..]].concat();
    store_blob(&disk, "MANIFEST", &version_2).expect("stores");
    dunlin_storage::Disk::remove(&disk, &name).expect("removes");
    let (engine, recovery) = open(&disk);
    assert_eq!((recovery.damaged, recovery.is_new), (vec![], false));
    assert!(engine.stats().keys > 50 && engine.stats().tables > 0);
    check(&engine);
}

/// What of the index is left is what digests are of.
#[test]
fn with_a_table_missing_they_are_those_of_the_rest() {
    let (disk, _) = filled();
    let table = disk.names().into_iter().find(|name| name.ends_with(".tbl")).expect("there is one");
    dunlin_storage::Disk::remove(&disk, &table).expect("removes");
    let (engine, recovery) = open(&disk);
    assert!(recovery.damage_count > 0 && recovery.suspects.is_all());
    check(&engine);
}

#[test]
fn a_snapshot_has_them_too() {
    let (disk, _) = filled();
    let (engine, _) = open(&disk);
    let whole = engine.digest_roots(KeyspaceId::DEFAULT, PartitionId(0), PartitionId(LAST)).0;
    assert!(engine.snapshot("s").expect("makes one"));
    let copy = MemoryDisk::new();
    for name in disk.names() {
        if let Some(rest) = name.strip_prefix("snapshots/s/") {
            copy.insert(rest, &disk.contents(&name).expect("there"));
        }
    }
    assert!(copy.names().iter().any(|name| name.ends_with(".dig")));
    assert_eq!(verify(&copy).expect("reads").damaged, []);
    let (engine, recovery) = open(&copy);
    assert_eq!(recovery.damaged, []);
    check(&engine);
    assert_eq!(engine.digest_roots(KeyspaceId::DEFAULT, PartitionId(0), PartitionId(LAST)).0, whole);
}
