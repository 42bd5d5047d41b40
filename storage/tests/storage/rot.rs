//! Bit rot: what is damaged is reported and makes its partition suspect, and what differs from what was written is never shown without that.

use std::collections::BTreeMap;

use dunlin_protocol::register::{Change, Register};
use dunlin_protocol::{Content, KeyspaceId, PartitionId, Status};
use dunlin_storage::{Affected, DamageKind, Engine, MemoryDisk, Place, ReadError, Recovery, ScanRange, Stored};

use crate::support::{Random, change, flush, key, look, open, record, stamp, store, tombstone};

type Key = (u16, Vec<u8>);
type Contents = BTreeMap<Key, (Register<()>, Vec<Stored>)>;

const PARTITIONS: u16 = 4;

/// An engine with frames of every kind in several segments.
fn build(disk: &MemoryDisk, is_closed: bool) -> Contents {
    let (engine, _) = open(disk);
    let mut random = Random(1);
    for n in 1..=70u64 {
        let name = [b'a' + random.below(4) as u8];
        let key = key(random.below(PARTITIONS.into()) as u16, &name);
        let ballot = stamp(n);
        let pending = look(&engine, key).register.pending.map(|(ballot, _)| ballot);
        let value = record(n, vec![n as u8; random.below(300) as usize]);
        let done = match (random.below(8), pending) {
            (0, _) => change(&engine, key, Change::Promise { ballot }, None),
            (1, _) => change(&engine, key, Change::Accept { ballot, promised: stamp(n + 1) }, Some(&value)),
            (2, _) => change(&engine, key, Change::Store { ballot }, Some(&tombstone(n))),
            (3, _) => change(&engine, key, Change::Forget, None),
            (4, Some(ballot)) => change(&engine, key, Change::Commit { ballot }, None),
            _ => change(&engine, key, Change::Store { ballot }, Some(&value)),
        };
        done.expect("changes");
        if random.below(3) == 0 {
            flush(&engine);
        }
        if engine.stats().pending_bytes > 1000 {
            flush(&engine);
        }
    }
    flush(&engine);
    if is_closed {
        engine.close().expect("closes");
    }
    contents(&engine).expect("whole")
}

/// What the engine holds, without places; none where something cannot be read.
fn contents(engine: &Engine) -> Result<Contents, ReadError> {
    let mut entries = Vec::new();
    let all = ScanRange::all(KeyspaceId::DEFAULT, PartitionId(0), PartitionId(PARTITIONS));
    engine.scan(all, usize::MAX, &mut |partition, key, entry| {
        entries.push(((partition.0, key.to_vec()), entry.register));
        true
    })?;
    entries
        .into_iter()
        .filter(|(_, register)| !register.is_absent())
        .map(|(key, r)| Ok((key.clone(), read(engine, (key.0, &key.1), r)?)))
        .collect()
}

fn read(
    engine: &Engine,
    (partition, name): (u16, &[u8]),
    register: Register<Place>,
) -> Result<(Register<()>, Vec<Stored>), ReadError> {
    let unplaced =
        |held: dunlin_protocol::register::Held<Place>| dunlin_protocol::register::Held { head: held.head, place: () };
    let held = register.record.into_iter().chain(register.pending.map(|(_, held)| held));
    let stored = held.map(|held| engine.load(key(partition, name), &held)).collect::<Result<_, _>>()?;
    let register = Register {
        record: register.record.map(unplaced),
        pending: register.pending.map(|(ballot, held)| (ballot, unplaced(held))),
        ballot: register.ballot,
        promised: register.promised,
        stored_at: register.stored_at,
    };
    Ok((register, stored))
}

fn copy(files: &BTreeMap<String, Vec<u8>>) -> MemoryDisk {
    let disk = MemoryDisk::new();
    for (name, bytes) in files {
        disk.insert(name, bytes);
    }
    disk
}

fn files(disk: &MemoryDisk) -> BTreeMap<String, Vec<u8>> {
    disk.names().into_iter().map(|name| (name.clone(), disk.contents(&name).expect("there"))).collect()
}

/// Opens a damaged disk: whatever differs from what was written is in a suspect partition. Opened again, that is so still.
fn check_damaged(disk: &MemoryDisk, expected: &Contents, label: &str) -> Recovery {
    let (engine, recovery) = open(disk);
    let compare = |engine: &Engine| {
        let found = contents(engine).unwrap_or_else(|error| panic!("{label}: {error}"));
        for key in found.keys().chain(expected.keys()) {
            let is_suspect = engine.suspect_partitions().contains(PartitionId(key.0));
            assert!(is_suspect || found.get(key) == expected.get(key), "{label}: {key:?} differs silently");
        }
        found
    };
    let found = compare(&engine);
    assert!(recovery.damage_count > 0 || found == *expected, "{label}");
    drop(engine);
    let (engine, again) = open(disk);
    assert_eq!(recovery.suspects, again.suspects, "{label}");
    assert_eq!(compare(&engine), found, "{label}");
    recovery
}

#[test]
fn no_flipped_bit_is_silent() {
    let disk = MemoryDisk::new();
    let expected = build(&disk, true);
    let files = files(&disk);
    assert!(files.len() > 5, "{:?}", files.keys());
    let (mut flips, mut found, mut precise) = (0, 0, 0);
    for (name, bytes) in &files {
        let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        for byte in (0..end).step_by(11) {
            let disk = copy(&files);
            disk.flip_bit(name, (byte * 8 + byte % 8) as u64);
            let recovery = check_damaged(&disk, &expected, &format!("{name} at {byte}"));
            flips += 1;
            found += u64::from(recovery.damage_count > 0);
            precise += u64::from(recovery.damage_count > 0 && !recovery.suspects.is_all());
            assert!(recovery.damaged.iter().all(|d| d.file == *name || d.kind == DamageKind::MissingPending));
        }
    }
    // All of it counts: behind the last byte that is not zero there is nothing.
    assert_eq!(found, flips);
    // Most of the bytes are keys and values, and tell whose they are.
    assert!(precise * 2 > flips, "{precise} of {flips}");
}

#[test]
fn without_an_orderly_end_a_flipped_bit_is_reported_or_in_the_torn_tail() {
    let disk = MemoryDisk::new();
    let expected = build(&disk, false);
    let files = files(&disk);
    for (name, bytes) in &files {
        for byte in (0..bytes.len()).step_by(17) {
            let disk = copy(&files);
            disk.flip_bit(name, (byte * 8 + byte % 8) as u64);
            let (engine, recovery) = open(&disk);
            let is_told = recovery.damage_count > 0 || recovery.torn_bytes > 0;
            let found = contents(&engine).expect("what is held can be read");
            assert!(is_told || found == expected, "{name} at {byte}");
        }
    }
}

#[test]
fn a_missing_swapped_or_shortened_segment_is_noticed() {
    let disk = MemoryDisk::new();
    let expected = build(&disk, true);
    let files = files(&disk);
    let segments: Vec<_> = files.keys().filter(|name| name.ends_with(".seg")).cloned().collect();
    let (mut missing, mut swapped) = (0, 0);
    for name in &segments {
        let disk = copy(&files);
        disk.take(name);
        let recovery = check_damaged(&disk, &expected, &format!("{name} missing"));
        missing += recovery.damaged.iter().filter(|d| d.kind == DamageKind::MissingFile && d.file == *name).count();
        assert!(recovery.suspects.is_all());
        for other in segments.iter().filter(|other| *other != name) {
            let disk = copy(&files);
            disk.insert(name, &files[other]);
            disk.insert(other, &files[name]);
            let recovery = check_damaged(&disk, &expected, &format!("{name} and {other} swapped"));
            swapped += recovery.damaged.iter().filter(|d| d.kind == DamageKind::SwappedFile).count();
            assert!(recovery.suspects.is_all());
        }
        for len in (0..files[name].len()).step_by(111) {
            let disk = copy(&files);
            disk.insert(name, &files[name][..len]);
            let recovery = check_damaged(&disk, &expected, &format!("{name} cut to {len}"));
            let is_whole = files[name][len..].iter().all(|&byte| byte == 0);
            assert!(is_whole || recovery.suspects.is_all() || len < 64, "{name} cut to {len}");
        }
    }
    assert_eq!(missing, segments.len());
    assert_eq!(swapped, segments.len() * (segments.len() - 1) * 2);
}

#[test]
fn without_its_manifest_the_log_is_read_and_suspect() {
    let disk = MemoryDisk::new();
    let expected = build(&disk, true);
    disk.take("MANIFEST");
    let recovery = check_damaged(&disk, &expected, "no manifest");
    assert!(recovery.suspects.is_all() && !recovery.is_new);
    assert_eq!(contents(&open(&disk).0).expect("whole"), expected);
}

#[test]
fn rot_that_a_read_meets_is_told_and_marked() {
    let disk = MemoryDisk::new();
    let (engine, _) = open(&disk);
    store(&engine, key(2, b"a"), &record(5, [7; 300])).expect("stores");
    flush(&engine);
    let held = look(&engine, key(2, b"a")).register.record.expect("held");
    let (place, file) = (held.place, held.place.segment().expect("in a segment").file_name());
    assert!(matches!(engine.load(key(2, b"a"), &held).expect("whole").content, Content::Value(..)));
    disk.flip_bit(&file, (place.offset() + u64::from(place.frame_len()) - 1) * 8);
    let error = engine.load(key(2, b"a"), &held).expect_err("damaged");
    assert_eq!(error.status(), Status::Corruption);
    let ReadError::Damaged(damage) = error else { panic!("{error}") };
    assert_eq!(damage.affected, Affected::Partition(PartitionId(2)));
    assert_eq!((damage.file.clone(), damage.offset), (file, place.offset()));
    assert_ne!(damage.expected, damage.found);
    engine.mark_damage(&damage).expect("marks");
    assert!(engine.suspect_partitions().contains(PartitionId(2)));
    assert!(!engine.suspect_partitions().contains(PartitionId(1)));
    disk.crash(3);
    assert!(open(&disk).1.suspects.contains(PartitionId(2)));
}

/// A killed process leaves its files as they were: one that is shorter has lost frames that were acknowledged.
#[test]
fn after_a_kill_a_shortened_segment_is_damage_wherever_it_was_cut() {
    let disk = MemoryDisk::new();
    let (engine, _) = open(&disk);
    for n in 1..40 {
        store(&engine, key(1, b"a"), &record(n, [7; 200])).expect("stores");
        flush(&engine);
    }
    drop(engine);
    disk.kill();
    let files = files(&disk);
    let segments: Vec<_> = files.keys().filter(|name| name.ends_with(".seg")).collect();
    assert!(segments.len() > 3);
    for name in segments {
        for len in (0..files[name].len()).step_by(53) {
            let disk = copy(&files);
            disk.insert(name, &files[name][..len]);
            let (engine, recovery) = open(&disk);
            assert!(recovery.suspects.is_all(), "{name} cut to {len}");
            assert!(recovery.damaged.iter().all(|damage| damage.file.ends_with(".seg")), "{:?}", recovery.damaged);
            assert!(recovery.damaged.iter().any(|damage| damage.file == *name), "{:?}", recovery.damaged);
            drop(engine);
        }
    }
}
