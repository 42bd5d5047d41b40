//! Everything on the disk checked: what is whole passes, and no damaged bit of any file does.

use std::collections::BTreeMap;
use std::sync::Arc;

use dunlin_protocol::{KeyspaceId, PartitionId};
use dunlin_storage::{Engine, FileDisk, MemoryDisk, ScanRange, verify};

use crate::support::{Random, SMALL, TINY, flush, key, look, maintain, record, store};
use crate::tables::{Model, check, churn, open_with};

/// A directory with tables in two levels, cold segments and a log, closed in order.
fn build() -> (BTreeMap<String, Vec<u8>>, Model) {
    let disk = MemoryDisk::new();
    let (mut random, mut model, mut n) = (Random(11), Model::new(), 0);
    let engine = open_with(&disk, TINY);
    churn(&engine, &mut random, &mut model, 700, &mut n);
    maintain(&engine);
    churn(&engine, &mut random, &mut model, 60, &mut n);
    flush(&engine);
    let stats = engine.stats();
    assert!(stats.tables > 3 && stats.collected > 0 && stats.live_segment_bytes > 0, "{stats:?}");
    assert_eq!(engine.verify().expect("reads").damaged, []);
    engine.close().expect("closes");
    drop(engine);
    let files = disk.names().into_iter().map(|name| (name.clone(), disk.contents(&name).expect("there")));
    (files.collect(), model)
}

fn copy(files: &BTreeMap<String, Vec<u8>>) -> MemoryDisk {
    let disk = MemoryDisk::new();
    files.iter().for_each(|(name, bytes)| disk.insert(name, bytes));
    disk
}

#[test]
fn what_is_whole_passes() {
    let (files, model) = build();
    let disk = copy(&files);
    let found = verify(&disk).expect("reads");
    assert_eq!(found.damaged, []);
    assert!(found.files > 5 && found.items > model.len() as u64 && found.bytes > 10_000, "{found:?}");
    check(&open_with(&disk, TINY), &model);
    assert_eq!(verify(&MemoryDisk::new()).expect("reads"), dunlin_storage::Verification::default());
}

#[test]
fn every_flipped_bit_is_reported_and_what_reads_differently_is_suspect() {
    let (files, model) = build();
    let (mut flips, mut precise) = (0, 0);
    for (name, bytes) in &files {
        let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        for byte in (0..end).step_by(199) {
            let disk = copy(&files);
            disk.flip_bit(name, (byte * 8 + byte % 8) as u64);
            let label = format!("{name} at {byte}");
            let found = verify(&disk).expect("reads");
            assert!(found.damage_count > 0, "{label}");
            // Where a table's own checksums fit, what it refers to may be what is damaged.
            assert!(found.damaged.iter().all(|damage| damage.file == *name), "{label}: {:?}", found.damaged);
            let (engine, recovery) = Engine::open(Arc::new(disk.clone()), TINY).expect("opens");
            let differs = |partition: u16, name: &[u8]| {
                let at = key(partition, name);
                let loaded = engine.get(at).ok().and_then(|(_, stored)| stored);
                let value = loaded.and_then(|stored| stored.content.bytes().map(|bytes| bytes.to_vec()));
                value.as_ref() != model.get(&(partition, name.to_vec()))
            };
            let keys =
                model.keys().filter(|(partition, name)| differs(*partition, name)).map(|(partition, _)| *partition);
            let differing: std::collections::BTreeSet<u16> = keys.collect();
            let suspects = engine.suspect_partitions();
            for partition in differing {
                assert!(suspects.contains(PartitionId(partition)), "{label}: {partition} differs silently");
            }
            // What reads met is marked durably by the next step of upkeep, which goes on around it.
            for _ in 0..300 {
                if engine.maintain(1 << 20).is_ok_and(|more| !more) {
                    break;
                }
            }
            let before = engine.suspect_partitions();
            drop(engine);
            let (engine, _) = Engine::open(Arc::new(disk), TINY).expect("opens");
            for partition in before.named() {
                assert!(engine.suspect_partitions().contains(partition), "{label}");
            }
            flips += 1;
            precise += u64::from(!recovery.suspects.is_all() && !before.is_all());
        }
    }
    assert!(flips > 100 && precise * 2 > flips, "{precise} of {flips}");
}

/// Each part of a table, of a log's and of a cold segment, and of the manifest.
#[test]
fn no_byte_of_any_file_is_unchecked() {
    let disk = MemoryDisk::new();
    let engine = open_with(&disk, TINY);
    let mut n = 0u64;
    while engine.stats().collected == 0 {
        n += 1;
        // Every fifth stays, the others are overwritten: the first segments are collected.
        let name = if n.is_multiple_of(5) { n } else { n % 5 };
        if store(&engine, key(n as u16 % 3, &name.to_be_bytes()), &record(n, vec![n as u8; 250])).is_err() {
            maintain(&engine);
        }
        flush(&engine);
    }
    maintain(&engine);
    engine.close().expect("closes");
    drop(engine);
    let mut flips = 0;
    for name in disk.names() {
        let bytes = disk.contents(&name).expect("there");
        let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        for byte in 0..end {
            let bit = (byte * 8 + flips % 8) as u64;
            disk.flip_bit(&name, bit);
            assert!(verify(&disk).expect("reads").damage_count > 0, "{name} at {byte}");
            disk.flip_bit(&name, bit);
            flips += 1;
        }
    }
    assert!(flips > 5000, "{flips}");
    assert_eq!(verify(&disk).expect("reads").damaged, []);
}

#[test]
fn missing_and_swapped_segments_are_noticed_cold_ones_too() {
    let (files, _) = build();
    let segments: Vec<_> = files.keys().filter(|name| name.ends_with(".seg")).cloned().collect();
    assert!(segments.len() > 2);
    for (name, other) in segments.iter().zip(segments.iter().cycle().skip(1)) {
        let missing = copy(&files);
        missing.take(name);
        let swapped = copy(&files);
        swapped.insert(name, &files[other]);
        swapped.insert(other, &files[name]);
        for disk in [missing, swapped] {
            assert!(verify(&disk).expect("reads").damage_count > 0, "{name}");
            let (_, recovery) = Engine::open(Arc::new(disk), TINY).expect("opens");
            assert!(recovery.suspects.is_all() && recovery.damage_count > 0, "{name}");
        }
    }
}

#[test]
fn missing_and_swapped_tables_are_noticed() {
    let (files, _) = build();
    let tables: Vec<_> = files.keys().filter(|name| name.ends_with(".tbl")).cloned().collect();
    assert!(tables.len() > 2);
    for name in &tables {
        let disk = copy(&files);
        disk.take(name);
        assert!(verify(&disk).expect("reads").damage_count > 0);
        let (engine, recovery) = Engine::open(Arc::new(disk), TINY).expect("opens");
        assert!(recovery.suspects.is_all() && recovery.damage_count > 0);
        drop(engine);
        let other = tables.iter().find(|other| *other != name).expect("another one");
        let disk = copy(&files);
        disk.insert(name, &files[other]);
        let (_, recovery) = Engine::open(Arc::new(disk), TINY).expect("opens");
        assert!(recovery.suspects.is_all() && recovery.damage_count > 0);
    }
    let disk = copy(&files);
    disk.take("MANIFEST");
    let (engine, recovery) = Engine::open(Arc::new(disk), TINY).expect("opens");
    assert!(recovery.suspects.is_all());
    let all = ScanRange::all(KeyspaceId::DEFAULT, PartitionId(0), PartitionId(2000));
    let mut seen = 0;
    engine
        .scan(all, usize::MAX, &mut |_, _, _| {
            seen += 1;
            true
        })
        .expect("reads");
    assert!(seen > 0);
}

#[test]
fn damage_in_the_cold_is_found_by_a_running_check() {
    let disk = MemoryDisk::new();
    let engine = open_with(&disk, TINY);
    for n in 0..60u64 {
        if store(&engine, key(3, &n.to_be_bytes()), &record(n + 1, vec![1; if n % 5 == 0 { 300 } else { 90 }])).is_err()
        {
            flush(&engine);
            maintain(&engine);
        }
    }
    flush(&engine);
    maintain(&engine);
    assert_eq!(engine.verify().expect("reads").damaged, []);
    let table = disk.names().into_iter().find(|name| name.ends_with(".tbl")).expect("a table");
    let scrub = || {
        let (mut bytes, mut damaged) = (0, Vec::new());
        loop {
            let step = engine.scrub(700).expect("reads");
            bytes += step.bytes;
            damaged.extend(step.damaged);
            if step.ended {
                return (bytes, damaged);
            }
        }
    };
    let (bytes, damaged) = scrub();
    assert!(bytes >= engine.stats().live_segment_bytes && damaged.is_empty());
    disk.flip_bit(&table, 800);
    assert_eq!(scrub().1.len(), 1);
    assert!(engine.suspect_partitions().contains(PartitionId(3)));
    assert_eq!(engine.verify().expect("reads").damage_count, 1);
    assert!(engine.suspect_partitions().contains(PartitionId(3)) && !engine.suspect_partitions().is_all());
    assert!(look(&engine, key(3, &59u64.to_be_bytes())).register.record.is_some());
    assert!(engine.wants_upkeep(), "the mark is to be made durable, though nothing else is due");
    maintain(&engine);
    assert!(!engine.wants_upkeep());
    drop(engine);
    assert!(Engine::open(Arc::new(disk), TINY).expect("opens").1.suspects.contains(PartitionId(3)));
}

#[test]
fn a_snapshot_is_a_directory_of_its_own() {
    let disk = MemoryDisk::new();
    let (mut random, mut model, mut n) = (Random(5), Model::new(), 0);
    let engine = open_with(&disk, TINY);
    churn(&engine, &mut random, &mut model, 400, &mut n);
    let early = engine.snapshot("early").expect("asks");
    flush(&engine);
    assert!(!early && engine.snapshot("early").expect("makes a snapshot"), "the log has to be written first");
    let before = model.clone();
    churn(&engine, &mut random, &mut model, 600, &mut n);
    flush(&engine);
    maintain(&engine);
    let files =
        || disk.names().into_iter().filter_map(|name| Some((name.strip_prefix("snapshots/early/")?.to_owned(), name)));
    let apart = MemoryDisk::new();
    files().for_each(|(name, whole)| apart.insert(&name, &disk.contents(&whole).expect("there")));
    assert_eq!(verify(&apart).expect("reads").damaged, []);
    check(&open_with(&apart, TINY), &before);
    check(&engine, &model);
    engine.remove_snapshot("early").expect("removes");
    assert_eq!(files().count(), 0);
    drop(engine);
    disk.crash(1);
    check(&open_with(&disk, TINY), &model);

    let dir = tempfile::tempdir().expect("a temporary directory");
    let engine = Engine::open(Arc::new(FileDisk::open(dir.path()).expect("opens")), TINY).expect("opens").0;
    let (mut model, mut n) = (Model::new(), 0);
    churn(&engine, &mut random, &mut model, 300, &mut n);
    flush(&engine);
    assert!(engine.snapshot("one").expect("makes a snapshot"));
    let before = model.clone();
    churn(&engine, &mut random, &mut model, 300, &mut n);
    let snapshot = FileDisk::open(dir.path().join("snapshots/one")).expect("opens");
    let copied = Engine::open(Arc::new(snapshot), TINY).expect("opens").0;
    check(&copied, &before);
    churn(&copied, &mut random, &mut before.clone(), 300, &mut n);
    check(&engine, &model);
}

#[test]
fn a_snapshot_has_what_was_written_while_a_flush_was_under_way() {
    let disk = MemoryDisk::new();
    let engine = open_with(&disk, TINY);
    let mut n = 0u64;
    while !engine.wants_upkeep() {
        n += 1;
        store(&engine, key(1, &n.to_be_bytes()), &record(n, [1; 90])).expect("stores");
        flush(&engine);
    }
    assert!(engine.maintain(1).expect("maintains") && engine.stats().flushes == 0, "half done");
    store(&engine, key(1, b"late"), &record(n + 1, "late")).expect("stores");
    flush(&engine);
    assert!(engine.snapshot("s").expect("makes a snapshot"));
    let apart = MemoryDisk::new();
    for name in disk.names() {
        if let Some(own) = name.strip_prefix("snapshots/s/") {
            apart.insert(own, &disk.contents(&name).expect("there"));
        }
    }
    assert!(look(&open_with(&apart, TINY), key(1, b"late")).register.record.is_some());
}

/// However long the log takes, and however much is written meanwhile: asked again, a snapshot is of the moment when it was first asked for, or later.
#[test]
fn a_snapshot_is_made_while_writes_go_on() {
    let engine = open_with(&MemoryDisk::new(), TINY);
    let mut n = 0;
    let mut store_one = || {
        n += 1;
        store(&engine, key(1, b"a"), &record(n, [1; 90])).expect("stores");
    };
    store_one();
    assert!(!engine.snapshot("s").expect("asks"), "nothing is written yet");
    engine.write_pending().expect("writes");
    store_one();
    assert!(engine.snapshot("s").expect("makes a snapshot"), "what was stored since need not be in it");
}

/// Of much damage the first thousand are listed, and all of it is acted upon.
#[test]
fn all_that_is_damaged_is_suspect() {
    let damaged = || {
        let disk = MemoryDisk::new();
        let engine = open_with(&disk, SMALL);
        for partition in 0..1100 {
            store(&engine, key(partition, b"a"), &record(1, [1; 200])).expect("stores");
            flush(&engine);
        }
        assert!(engine.snapshot("s").expect("flushes"));
        for partition in 0..1100 {
            let place = look(&engine, key(partition, b"a")).register.record.expect("held").place;
            let name = place.segment().expect("in a segment").file_name();
            disk.flip_bit(&name, (place.offset() + u64::from(place.frame_len()) - 1) * 8);
        }
        engine
    };
    let is_suspect =
        |engine: &Engine, upto| (0..upto).all(|number| engine.suspect_partitions().contains(PartitionId(number)));
    let engine = damaged();
    let found = engine.verify().expect("reads");
    assert!(found.damaged.len() == 1000 && found.damage_count >= 1100);
    assert!(is_suspect(&engine, 1100) && !engine.suspect_partitions().is_all());
    let engine = damaged();
    let found = engine.scrub(u64::MAX).expect("reads");
    assert!(found.ended && found.damaged.len() == 1000);
    // But for the segment that is written to.
    assert!(is_suspect(&engine, 1050) && !engine.suspect_partitions().is_all());
}
