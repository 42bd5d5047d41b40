use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::block::{Block, BlockCursor, BlockWriter};
use super::filter::Filter;
use super::footer::Meta;
use super::index::SparseIndex;
use super::*;
use crate::disk::{Disk, MemoryDisk, Wait};
use crate::error::{Affected, DamageKind, ReadError};

const ID: TableId = TableId(3);

type Entry = (Vec<u8>, Vec<u8>);
type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

fn write(disk: &MemoryDisk, id: TableId, entries: &Entries) -> Table {
    let mut writer = TableWriter::create(disk, id).expect("creates");
    for (key, body) in entries {
        writer.add(key, body).expect("adds");
    }
    writer.finish(77).expect("finishes")
}

fn open(disk: &MemoryDisk, id: TableId) -> Table {
    let (table, damage) = Table::open(disk, id).expect("opens").expect("whole");
    assert_eq!(damage, None);
    table
}

fn key_of(partition: u16, name: &[u8]) -> Vec<u8> {
    key(KeyRef { partition: PartitionId(partition), keyspace: KeyspaceId(1), key: name })
}

fn some_entries(count: u32) -> Entries {
    let entry = |n: u32| {
        let name = format!("{:05}", n.wrapping_mul(7919) % 100_000);
        (key_of((n % 7) as u16, name.as_bytes()), vec![n as u8; (n % 90) as usize + 2])
    };
    (0..count).map(entry).collect()
}

fn drain(mut cursor: RunCursor) -> Result<Vec<Entry>, ReadError> {
    let mut found = Vec::new();
    while let Some(key) = cursor.key() {
        found.push((key.to_vec(), cursor.body().to_vec()));
        cursor.advance()?;
    }
    Ok(found)
}

#[test]
fn what_is_written_is_found_and_nothing_else() {
    let disk = MemoryDisk::new();
    let entries = some_entries(3000);
    let written = write(&disk, ID, &entries);
    let table = Arc::new(open(&disk, ID));
    assert_eq!(table.meta(), written.meta());
    assert!(table.blocks() > 20 && table.meta().entries == 3000 && table.meta().position == 77);
    let cache = block_cache(1 << 20);
    for (key, body) in &entries {
        for _ in 0..2 {
            assert!(table.may_contain(key, hash(key)));
            assert_eq!(table.get(key, &cache, Wait::Allowed).expect("reads").as_deref(), Some(&body[..]));
        }
        let near = [&key[..], b"x"].concat();
        assert_eq!(table.get(&near, &cache, Wait::Allowed).expect("reads"), None);
        assert_eq!(table.get(&key[..key.len() - 1], &cache, Wait::Allowed).expect("reads"), None);
    }
    assert_eq!(table.get(&key_of(0, b""), &cache, Wait::Allowed).expect("reads"), None);
    assert_eq!(table.get(&key_of(u16::MAX, b"z"), &cache, Wait::Allowed).expect("reads"), None);
    let seek = |key: &[u8]| {
        drain(RunCursor::seek([table.clone()].into(), key, false, Wait::Allowed).expect("reads")).expect("reads")
    };
    assert!(seek(&[]).into_iter().eq(entries.clone()));
    for key in entries.keys().step_by(97) {
        assert!(seek(key).into_iter().eq(entries.range(key.clone()..).map(|(k, b)| (k.clone(), b.clone()))));
        let behind = [&key[..], &[0]].concat();
        assert!(seek(&behind).into_iter().eq(entries.range(behind..).map(|(k, b)| (k.clone(), b.clone()))));
    }
}

#[test]
fn no_flipped_bit_is_silent() {
    let disk = MemoryDisk::new();
    let entries = some_entries(300);
    write(&disk, ID, &entries);
    let name = ID.file_name();
    let bytes = disk.contents(&name).expect("there");
    let mut kinds = BTreeMap::new();
    for byte in 0..bytes.len() {
        let bit = (byte * 8 + byte % 8) as u64;
        disk.flip_bit(&name, bit);
        let place = match Table::open(&disk, ID).expect("readable") {
            Err(damage) => {
                assert_eq!((&damage.file, damage.affected), (&name, Affected::Everything));
                "end"
            }
            Ok((_, Some(damage))) => {
                assert_eq!(damage.affected, Affected::Nothing);
                "filter"
            }
            Ok((table, None)) => {
                let table = Arc::new(table);
                let found = RunCursor::seek([table.clone()].into(), &[], false, Wait::Allowed).and_then(drain);
                let Err(ReadError::Damaged(damage)) = found else { panic!("silent at {byte}") };
                assert!(damage.kind == DamageKind::Checksum && damage.expected != damage.found);
                assert!(damage.offset <= byte as u64 && byte as u64 - damage.offset < BLOCK_LEN as u64);
                // What is passed over is one block.
                let rest =
                    RunCursor::seek([table].into(), &[], true, Wait::Allowed).and_then(drain).expect("passes over it");
                assert!(rest.len() < 300 && rest.iter().all(|(key, body)| entries.get(key) == Some(body)));
                "block"
            }
        };
        *kinds.entry(place).or_insert(0) += 1;
        disk.flip_bit(&name, bit);
    }
    assert!(kinds.len() == 3, "{kinds:?}");
    for len in (0..bytes.len()).step_by(13) {
        disk.insert(&name, &bytes[..len]);
        assert!(Table::open(&disk, ID).expect("readable").is_err(), "cut at {len}");
    }
    disk.insert(&TableId(4).file_name(), &bytes);
    let swapped = Table::open(&disk, TableId(4)).expect("readable").err().map(|damage| damage.kind);
    assert_eq!(swapped, Some(DamageKind::SwappedFile));
    let missing = Table::open(&disk, TableId(9)).expect("readable").err().map(|damage| damage.kind);
    assert_eq!(missing, Some(DamageKind::MissingFile));
}

#[test]
fn failing_disks_make_no_table() {
    let disk = MemoryDisk::new();
    disk.set_capacity(Some(1000));
    let mut writer = TableWriter::create(&disk, ID).expect("creates");
    for (key, body) in some_entries(100) {
        writer.add(&key, &body).expect("gathers");
    }
    assert!(writer.finish(1).is_err());
    assert!(disk.open(&ID.file_name()).is_ok());
}

fn small_entries() -> impl Strategy<Value = Entries> {
    prop::collection::btree_map(
        (0u16..3, prop::collection::vec(0u8..4, 1..4)).prop_map(|(partition, name)| key_of(partition, &name)),
        prop::collection::vec(any::<u8>(), 0..40),
        0..60,
    )
}

proptest! {
    #[test]
    fn merging_shows_each_key_once_and_the_newest(sources in prop::collection::vec(small_entries(), 0..6)) {
        let disk = MemoryDisk::new();
        let mut expected = Entries::new();
        for entries in sources.iter().rev() {
            expected.extend(entries.clone());
        }
        let make = |(i, entries): (usize, &Entries)| {
            if entries.is_empty() {
                return Source::Run(RunCursor::seek([].into(), &[], false, Wait::Allowed).expect("nothing to read"));
            }
            let id = TableId(i as u64);
            write(&disk, id, entries);
            Source::Run(RunCursor::seek([Arc::new(open(&disk, id))].into(), &[], false, Wait::Allowed).expect("reads"))
        };
        let mut merging = Merging::new(sources.iter().enumerate().map(make).collect());
        let mut found = Vec::new();
        while let Some(key) = merging.key() {
            found.push((key.to_vec(), merging.body().to_vec()));
            merging.advance().expect("reads");
        }
        prop_assert!(found.into_iter().eq(expected));
    }

    #[test]
    fn blocks_of_any_bytes_give_entries_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300), key: Vec<u8>) {
        let mut sealed = bytes.clone();
        sealed.extend_from_slice(&checksum(&bytes, ID, 0).to_le_bytes());
        if let Ok(block) = Block::check(sealed.into(), ID, 0) {
            let _ = block.find(&key);
            let _ = BlockCursor::seek(block.clone(), &key);
            if let Ok(mut cursor) = BlockCursor::first(block) {
                while cursor.key().is_some() && cursor.advance().is_ok() {}
            }
        }
        prop_assert!(Block::check(bytes.into(), ID, 0).is_err());
    }

    #[test]
    fn mutated_blocks_give_entries_or_an_error(entries in small_entries(), at: prop::sample::Index, byte: u8, key: Vec<u8>) {
        prop_assume!(!entries.is_empty());
        let mut writer = BlockWriter::default();
        entries.iter().for_each(|(key, body)| writer.add(key, body));
        let mut bytes = Vec::new();
        writer.finish(&mut bytes, ID, 0);
        bytes.truncate(bytes.len() - 4);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let crc = checksum(&bytes, ID, 0);
        bytes.extend_from_slice(&crc.to_le_bytes());
        if let Ok(block) = Block::check(bytes.into(), ID, 0) {
            let _ = block.find(&key);
            let _ = BlockCursor::seek(block.clone(), &key);
            if let Ok(mut cursor) = BlockCursor::first(block) {
                while cursor.key().is_some() && cursor.advance().is_ok() {}
            }
        }
    }

    #[test]
    fn ends_indexes_and_filters_of_any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at: prop::sample::Index, flip: u8) {
        prop_assert!(Meta::decode(&bytes).is_err());
        let _ = SparseIndex::decode(&bytes);
        let _ = Filter::decode(&bytes);
        let mut index = SparseIndex::default();
        let mut last = Vec::new();
        for n in 0..20u16 {
            let first = key_of(n / 5, &[n as u8; 9]);
            index.add(&last, &first, 100 + usize::from(n));
            last = first;
        }
        let mut encoded = index.encode();
        prop_assert_eq!(SparseIndex::decode(&encoded), Some(index));
        let at = at.index(encoded.len());
        encoded[at] ^= flip;
        let _ = SparseIndex::decode(&encoded);
    }
}
