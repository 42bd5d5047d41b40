//! `TableWriter`: writes a table, entry by entry, with little memory.

use std::io;
use std::sync::Arc;

use super::block::BlockWriter;
use super::filter::Filter;
use super::footer::{Meta, Part};
use super::index::SparseIndex;
use super::reader::Table;
use super::{BLOCK_LEN, TableId, checksum, hash};
use crate::disk::{Disk, DiskFile, write_all};
use crate::indexed;

/// So many bytes are written in one go.
const WRITE_LEN: usize = 256 << 10;

/// Writes a table. Until it is finished the file is no table, and nobody's. Keeps eight bytes a key, the sparse index, and what it writes next.
pub(crate) struct TableWriter {
    id: TableId,
    file: Arc<dyn DiskFile>,
    buffer: Vec<u8>,
    /// The file's length without the buffer.
    flushed: u64,
    block: BlockWriter,
    /// The first key of the block that is gathered, and the last one of the block before.
    first: Vec<u8>,
    last: Vec<u8>,
    index: SparseIndex,
    hashes: Vec<u64>,
    smallest: Vec<u8>,
    marks: u64,
}

impl TableWriter {
    pub(crate) fn create(disk: &dyn Disk, id: TableId) -> io::Result<Self> {
        Ok(Self {
            id,
            file: disk.create(&id.file_name())?,
            buffer: Vec::with_capacity(WRITE_LEN + 2 * BLOCK_LEN),
            flushed: 0,
            block: BlockWriter::default(),
            first: Vec::new(),
            last: Vec::new(),
            index: SparseIndex::default(),
            hashes: Vec::new(),
            smallest: Vec::new(),
            marks: 0,
        })
    }

    pub(crate) fn id(&self) -> TableId {
        self.id
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> u64 {
        self.flushed + self.buffer.len() as u64 + self.block.len() as u64
    }

    /// Adds an entry; keys come in ascending order.
    pub(crate) fn add(&mut self, key: &[u8], body: &[u8]) -> io::Result<()> {
        if !self.block.is_empty() && self.block.len() + key.len() + body.len() + 16 > BLOCK_LEN {
            self.end_block()?;
        }
        if self.is_empty() {
            self.smallest = key.to_vec();
        }
        if self.block.is_empty() {
            self.first.clear();
            self.first.extend_from_slice(key);
        }
        self.block.add(key, body);
        self.hashes.push(hash(key));
        self.marks += u64::from(indexed::is_mark(body));
        Ok(())
    }

    fn end_block(&mut self) -> io::Result<()> {
        let offset = self.flushed + self.buffer.len() as u64;
        let len = self.block.finish(&mut self.buffer, self.id, offset);
        self.index.add(&self.last, &self.first, len);
        self.last.clear();
        self.last.extend_from_slice(self.block.last_key());
        if self.buffer.len() >= WRITE_LEN { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        write_all(&*self.file, self.flushed, &self.buffer)?;
        self.flushed += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn part(&mut self, bytes: &[u8]) -> Part {
        let offset = self.flushed + self.buffer.len() as u64;
        self.buffer.extend_from_slice(bytes);
        self.buffer.extend_from_slice(&checksum(bytes, self.id, offset).to_le_bytes());
        Part { offset, len: bytes.len() as u32 }
    }

    /// Writes the rest and syncs. `position`: the table covers the log up to here. Its name is not durable yet.
    pub(crate) fn finish(mut self, position: u64) -> io::Result<Table> {
        if !self.block.is_empty() {
            self.end_block()?;
        }
        let filter = Filter::of(&self.hashes);
        let filter_part = self.part(&filter.encode());
        let index_part = self.part(&self.index.encode());
        let mut meta = Meta {
            id: self.id,
            file_len: 0,
            position,
            entries: self.hashes.len() as u64,
            marks: self.marks,
            blocks: self.index.blocks() as u32,
            filter: filter_part,
            index: index_part,
            smallest: std::mem::take(&mut self.smallest),
            largest: std::mem::take(&mut self.last),
        };
        meta.file_len = self.flushed + self.buffer.len() as u64 + meta.encoded_len() as u64;
        meta.encode(&mut self.buffer);
        self.flush()?;
        self.file.sync()?;
        Ok(Table::new(self.file, meta, filter, self.index))
    }
}
