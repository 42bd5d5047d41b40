//! What fuzzing calls of the table format, where its parts are known.

use std::sync::OnceLock;

use super::block::{Block, BlockCursor};
use super::filter::Filter;
use super::footer::Meta;
use super::index::SparseIndex;
use super::{RunCursor, Table, TableId, TableWriter, block_cache, checksum};
use crate::disk::{MemoryDisk, Wait};

const ID: TableId = TableId(3);

fn walk(block: Block, wanted: &[u8]) {
    let _ = block.find(wanted);
    let _ = BlockCursor::seek(block.clone(), wanted);
    if let Ok(mut cursor) = BlockCursor::first(block) {
        while cursor.key().is_some() && cursor.advance().is_ok() {
            let _ = cursor.body();
        }
    }
}

/// A file, and where its parts begin and end: blocks, filter, index.
struct Whole {
    bytes: Vec<u8>,
    parts: Vec<(usize, usize)>,
}

fn whole() -> &'static Whole {
    static FILE: OnceLock<Whole> = OnceLock::new();
    FILE.get_or_init(|| {
        let disk = MemoryDisk::new();
        let mut writer = TableWriter::create(&disk, ID).expect("creates");
        for n in 0..300u16 {
            let key = [&[0, (n / 100) as u8, 0, 0, 0, 1][..], &n.to_be_bytes()].concat();
            writer.add(&key, &[n as u8; 40]).expect("adds");
        }
        let meta = writer.finish(77).expect("finishes").meta().clone();
        let bytes = disk.contents(&ID.file_name()).expect("there");
        let part = |part: super::footer::Part| (part.offset as usize, part.offset as usize + part.len as usize);
        let index = SparseIndex::decode(&bytes[part(meta.index).0..part(meta.index).1]).expect("whole");
        let block = |n| (index.offset(n) as usize, index.offset(n + 1) as usize - 4);
        let mut parts: Vec<_> = (0..index.blocks()).map(block).collect();
        parts.extend([part(meta.filter), part(meta.index)]);
        Whole { bytes, parts }
    })
}

pub(crate) fn fuzz(bytes: &[u8]) {
    // The parts alone.
    let (head, rest) = bytes.split_at(bytes.len().min(8));
    let mut block = rest.to_vec();
    block.extend_from_slice(&checksum(rest, ID, 0).to_le_bytes());
    if let Ok(block) = Block::check(block.into(), ID, 0) {
        walk(block, head);
    }
    if let Some(filter) = Filter::decode(bytes) {
        assert_eq!(Filter::decode(&filter.encode()), Some(filter));
    }
    if let Some(index) = SparseIndex::decode(bytes) {
        assert!(index.blocks() == 0 || index.find(head) < index.blocks());
        assert_eq!(SparseIndex::decode(&index.encode()), Some(index));
    }
    let _ = Meta::decode(bytes);
    if let Some(meta) = Meta::parse(bytes) {
        let mut encoded = Vec::new();
        meta.encode(&mut encoded);
        assert_eq!(Meta::decode(&encoded), Ok(meta));
    }
    // A whole file, with edits under checksums that fit.
    let Whole { bytes: whole, parts } = whole();
    let mut file = whole.clone();
    for edit in bytes.chunks_exact(4).take(8) {
        let (start, end) = parts[usize::from(edit[0]) % parts.len()];
        let at = start + usize::from(u16::from_le_bytes([edit[1], edit[2]])) % (end - start);
        file[at] = edit[3];
        let crc = checksum(&file[start..end], ID, start as u64);
        file[end..end + 4].copy_from_slice(&crc.to_le_bytes());
    }
    let disk = MemoryDisk::new();
    disk.insert(&ID.file_name(), &file);
    if let Ok(Ok((table, _))) = Table::open(&disk, ID) {
        for number in 0..table.blocks() {
            if let Ok(block) = table.read_block(number, Wait::Allowed) {
                walk(block, head);
            }
        }
        let _ = table.get(head, &block_cache(1 << 16), Wait::Allowed);
        if let Ok(mut cursor) = RunCursor::seek([std::sync::Arc::new(table)].into(), head, false, Wait::Allowed) {
            while cursor.key().is_some() && cursor.advance().is_ok() {
                let _ = cursor.body();
            }
        }
    }
}
