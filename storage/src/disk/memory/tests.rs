use super::*;
use std::collections::BTreeSet;

/// What a file can hold after a crash, over many seeds.
fn outcomes(prepare: impl Fn(&MemoryDisk)) -> BTreeSet<Option<Vec<u8>>> {
    let after = |seed| {
        let disk = MemoryDisk::new();
        disk.insert("a", b"old");
        prepare(&disk);
        disk.crash(seed);
        let first = disk.contents("a");
        disk.crash(seed + 1);
        assert_eq!(disk.contents("a"), first, "what survived a crash is durable");
        first
    };
    (0..200).map(after).collect()
}

fn set(outcomes: &[&[u8]]) -> BTreeSet<Option<Vec<u8>>> {
    outcomes.iter().map(|bytes| Some(bytes.to_vec())).collect()
}

#[test]
fn what_is_synced_survives_and_what_is_not_may() {
    let write = |disk: &MemoryDisk| {
        let file = disk.open("a").expect("opens");
        assert_eq!(file.write_at(0, b"new").expect("writes"), 3);
        file
    };
    let torn: [&[u8]; 4] = [b"old", b"nld", b"ned", b"new"];
    assert_eq!(outcomes(|disk| write(disk).sync().expect("syncs")), set(&[b"new"]));
    assert_eq!(outcomes(|disk| drop(write(disk))), set(&torn));
    // A sync that failed is not made good by a later one.
    let failed = |disk: &MemoryDisk| {
        let file = write(disk);
        disk.fail_sync(1);
        assert!(file.sync().is_err() && file.sync().is_ok());
        assert_eq!(disk.contents("a").expect("there"), b"new");
    };
    assert_eq!(outcomes(failed), set(&torn));
    // A killed process leaves what it wrote, still unsynced.
    let killed = |disk: &MemoryDisk| {
        let file = write(disk);
        disk.kill();
        assert!(file.sync().is_err() && file.write_at(0, b"x").is_err() && file.read_at(0, &mut [0]).is_err());
        assert_eq!(disk.contents("a").expect("there"), b"new");
    };
    assert_eq!(outcomes(killed), set(&torn));
    let cut = |disk: &MemoryDisk| disk.open("a").and_then(|file| file.truncate(1)).expect("cuts");
    assert_eq!(outcomes(cut), set(&[b"old", b"o"]));
}

#[test]
fn large_writes_tear_at_sectors() {
    let torn = outcomes(|disk| {
        let file = disk.open("a").expect("opens");
        assert_eq!(file.write_at(0, &[1; 2000]).expect("writes"), 2000);
    });
    let has_hole = |bytes: &[u8]| bytes.len() == 2000 && bytes[512..1024] == [0; 512] && bytes[..512] == [1; 512];
    assert!(torn.iter().flatten().any(|bytes| has_hole(bytes)) && torn.len() > 20);
}

#[test]
fn names_are_durable_only_when_their_directory_is_synced() {
    let rename = |disk: &MemoryDisk| {
        let file = disk.create("b").expect("creates");
        assert_eq!(file.write_at(0, b"new").expect("writes"), 3);
        file.sync().expect("syncs");
        disk.rename("b", "a").expect("renames");
        assert_eq!(disk.names(), ["a"]);
    };
    let synced = |disk: &MemoryDisk, dir: &str| disk.sync_dir(dir).expect("syncs");
    assert_eq!(outcomes(rename), set(&[b"old", b"new"]));
    assert_eq!(outcomes(|disk| (rename(disk), synced(disk, "other")).1), set(&[b"old", b"new"]));
    assert_eq!(outcomes(|disk| (rename(disk), synced(disk, "")).1), set(&[b"new"]));
    let remove = |disk: &MemoryDisk| disk.remove("a").expect("removes");
    assert_eq!(outcomes(remove), [None, Some(b"old".to_vec())].into());
    assert_eq!(outcomes(|disk| (remove(disk), synced(disk, "")).1), [None].into());
}

#[test]
fn what_is_open_stays_readable_when_its_name_is_removed() {
    let disk = MemoryDisk::new();
    disk.insert("a", b"old");
    let file = disk.open("a").expect("opens");
    disk.remove("a").expect("removes");
    disk.sync_dir("").expect("syncs");
    disk.create("a").expect("creates another one");
    let mut buffer = [0; 4];
    assert_eq!((file.read_at(0, &mut buffer).expect("reads"), &buffer), (3, b"old\0"));
}

#[test]
fn faults_come_where_they_are_planned() {
    let disk = MemoryDisk::new();
    let file = disk.create("a").expect("creates");
    disk.fail_write(2);
    assert!(disk.has_plan());
    assert!(file.write_at(0, b"1").is_ok() && file.write_at(0, b"2").is_err() && file.write_at(0, b"3").is_ok());
    disk.short_write(1);
    assert_eq!(file.write_at(0, b"1234").expect("writes"), 2);
    disk.fail_rename(1);
    assert!(disk.rename("a", "b").is_err() && disk.rename("a", "b").is_ok() && !disk.has_plan());
    disk.fail_create(1);
    assert!(disk.create("c").is_err() && disk.contents("c").is_none() && disk.create("c").is_ok());
    disk.fail_link(1);
    assert!(disk.link("c", "d").is_err() && disk.contents("d").is_none() && disk.link("c", "d").is_ok());
    disk.fail_remove(1);
    assert!(disk.remove("d").is_err() && disk.contents("d").is_some() && disk.remove("d").is_ok());
    disk.fail_resize(1);
    assert!(file.truncate(9).is_err() && file.len().expect("has one") < 9);
    disk.fail_resize(1);
    assert!(file.preallocate(0, 9).is_err() && file.len().expect("has one") < 9);
    disk.fail_read(1);
    assert!(file.read_at(0, &mut [0]).is_err() && file.read_at(0, &mut [0]).is_ok());
    disk.fill_at(2);
    assert!(file.write_at(0, b"1").is_ok() && file.truncate(5).is_ok() && disk.has_plan());
    assert!(file.truncate(6).is_err() && file.write_at(4, b"1").is_ok() && file.truncate(6).is_err());
    assert!(!disk.has_plan());
    disk.set_capacity(Some(10));
    assert!(file.write_at(6, b"1234").is_ok());
    for error in [file.write_at(7, b"1234").err(), file.preallocate(0, 11).err(), file.truncate(11).err()] {
        assert_eq!(error.map(|error| error.kind()), Some(io::ErrorKind::StorageFull));
    }
    assert_eq!((disk.used(), file.preallocate(0, 10).is_ok(), file.len().expect("has one")), (10, true, 10));
    disk.flip_bit("b", 9);
    assert_eq!(disk.contents("b").expect("there")[..2], [b'1', b'2' ^ 2]);
    let before = disk.operations();
    disk.stop_at(before + 2);
    assert!(file.sync().is_ok() && !disk.is_stopped());
    assert!(file.write_at(0, b"x").is_err() && disk.is_stopped());
    assert!(file.read_at(0, &mut [0]).is_err() && disk.open("b").is_err() && disk.list("").is_err());
    disk.kill();
    assert_eq!(disk.contents("b").expect("there")[0], b'x', "what was under way may have happened");
    assert!(disk.open("b").is_ok());
}

#[test]
fn reads_that_must_not_wait_find_what_the_seed_leaves_in_memory() {
    let disk = MemoryDisk::new();
    let file = disk.create("a").expect("creates");
    file.write_at(0, b"hello").expect("writes");
    let tried = || {
        let mut buffer = [0; 8];
        let read = file.try_read_at(0, &mut buffer).expect("reads");
        assert!(read.is_none_or(|read| &buffer[..read] == b"hello"));
        read.is_some()
    };
    assert!((0..100).all(|_| tried()), "all of it is in memory at first");
    let runs = [5, 5, 6].map(|seed| {
        disk.set_cold(30, seed);
        (0..1000).map(|_| tried()).collect::<Vec<_>>()
    });
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[1], runs[2]);
    let warm = runs[0].iter().filter(|warm| **warm).count();
    assert!((650..750).contains(&warm), "{warm}");
    disk.set_cold(100, 1);
    disk.watch(true);
    assert!(!tried());
    assert_eq!(disk.waits(), 0);
    assert_eq!(file.read_at(0, &mut [0; 8]).expect("reads"), 5);
    assert_eq!(disk.waits(), 1);
}

/// Whatever a failed sync left behind: what is synced later is durable, and what is not touched again may be anything.
#[test]
fn what_is_synced_later_outlives_what_a_failed_sync_left() {
    let mut kinds = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let disk = MemoryDisk::new();
        let file = disk.create("a").expect("created");
        disk.sync_dir("").expect("synced");
        file.write_at(0, &[1; 3000]).expect("written");
        file.sync().expect("synced");
        disk.fail_sync(1);
        file.write_at(500, &[2; 2000]).expect("written");
        file.truncate(2600).expect("cut");
        file.sync().expect_err("as planned");
        file.write_at(1000, &[3; 700]).expect("written");
        file.write_at(2900, &[3; 100]).expect("written");
        file.sync().expect("synced");
        disk.crash(seed);
        let bytes = disk.contents("a").expect("there");
        assert_eq!(bytes.len(), 3000, "{seed}");
        assert!(
            bytes[..500].iter().all(|byte| *byte == 1) && bytes[1000..1700].iter().all(|byte| *byte == 3),
            "{seed}"
        );
        assert!(bytes[2900..].iter().all(|byte| *byte == 3), "{seed}");
        kinds.insert((bytes[600], bytes[2400]));
    }
    assert!(kinds.len() == 4, "old and new on either side: {kinds:?}");
}
