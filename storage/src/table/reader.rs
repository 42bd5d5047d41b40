//! `Table`: reading a table.

use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use quick_cache::sync::DefaultLifecycle;

use super::block::{Block, BlockCursor};
use super::filter::Filter;
use super::footer::{BadEnd, MAX_META_LEN, Meta, Part};
use super::index::SparseIndex;
use super::{BadPart, TABLE_VERSION, TableId, checksum, split_key};
use crate::disk::{Disk, DiskFile, Wait, read_at};
use crate::error::{Affected, Damage, DamageKind, OpenError, ReadError};
use crate::frame::Malformed;

/// Blocks that were read lately, by table and number.
pub(crate) type BlockCache = quick_cache::sync::Cache<(u64, u32), Bytes, Weight, BuildHasherDefault<BlockHasher>>;

/// Spreads table and number of a block. Nobody outside chooses these, so nothing stronger is needed.
#[derive(Default)]
pub(crate) struct BlockHasher(u64);

impl Hasher for BlockHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64((*byte).into()));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    /// The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
    fn write_u64(&mut self, number: u64) {
        let x = self.0.rotate_left(32) ^ number;
        let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.0 = x ^ x >> 31;
    }
}

/// What a block counts in the cache.
#[derive(Clone, Copy)]
pub(crate) struct Weight;

impl quick_cache::Weighter<(u64, u32), Bytes> for Weight {
    fn weight(&self, _: &(u64, u32), block: &Bytes) -> u64 {
        block.len() as u64 + 64
    }
}

pub(crate) fn block_cache(bytes: u64) -> BlockCache {
    let blocks = usize::try_from(bytes / super::BLOCK_LEN as u64).unwrap_or(usize::MAX);
    BlockCache::with(blocks.max(16), bytes, Weight, BuildHasherDefault::default(), DefaultLifecycle::default())
}

/// So much is read ahead in one go where blocks are read one after another.
const READ_AHEAD: u64 = 128 << 10;

/// An open table: its meta, filter and sparse index in memory, its blocks on the disk.
pub(crate) struct Table {
    file: Arc<dyn DiskFile>,
    meta: Meta,
    filter: Filter,
    index: SparseIndex,
}

impl Table {
    pub(crate) fn new(file: Arc<dyn DiskFile>, meta: Meta, filter: Filter, index: SparseIndex) -> Self {
        Self { file, meta, filter, index }
    }

    /// Opens a table, reading all but its blocks. The inner error: it is damaged, or another one. Without its filter a table is slow and whole:
    /// that damage comes with it.
    pub(crate) fn open(disk: &dyn Disk, id: TableId) -> Result<Result<(Self, Option<Damage>), Damage>, OpenError> {
        let name = id.file_name();
        match disk.open(&name) {
            Ok(file) => Self::of_file(file, id),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (kind, affected) = (DamageKind::MissingFile, Affected::Everything);
                Ok(Err(Damage { file: name, offset: 0, kind, expected: 1, found: 0, affected }))
            }
            Err(error) => Err(OpenError::io(&name)(error)),
        }
    }

    /// As [`open`](Self::open), where the file is open already.
    pub(crate) fn of_file(
        file: Arc<dyn DiskFile>,
        id: TableId,
    ) -> Result<Result<(Self, Option<Damage>), Damage>, OpenError> {
        let name = id.file_name();
        let damage = |offset: u64, kind: DamageKind, expected: u64, found: u64| {
            Ok(Err(Damage { file: name.clone(), offset, kind, expected, found, affected: Affected::Everything }))
        };
        let read = |offset: u64, len: usize| {
            let mut bytes = vec![0; len];
            let read = file.read_at(offset, &mut bytes).map_err(OpenError::io(&name))?;
            bytes.truncate(read);
            Ok::<_, OpenError>(bytes)
        };
        let len = file.len().map_err(OpenError::io(&name))?;
        let tail_at = len.saturating_sub(MAX_META_LEN as u64);
        let meta = match Meta::decode(&read(tail_at, (len - tail_at) as usize)?) {
            Ok(meta) => meta,
            Err(BadEnd::Version(found)) => return Err(OpenError::Version { file: name, found, known: TABLE_VERSION }),
            Err(BadEnd::Checksum { expected, found }) => {
                return damage(tail_at, DamageKind::Checksum, expected.into(), found.into());
            }
            Err(BadEnd::Malformed) => return damage(tail_at, DamageKind::Malformed, 0, 0),
        };
        if meta.id != id {
            return damage(0, DamageKind::SwappedFile, id.0, meta.id.0);
        }
        if meta.file_len != len {
            return damage(len, DamageKind::Missing, meta.file_len, len);
        }
        let part = |part: Part| -> Result<Result<Vec<u8>, (u32, u32)>, OpenError> {
            let mut bytes = read(part.offset, part.len as usize + 4)?;
            let Some((contents, crc)) = bytes.split_last_chunk::<4>() else { return Ok(Err((0, 0))) };
            let (expected, found) = (checksum(contents, id, part.offset), u32::from_le_bytes(*crc));
            if expected != found {
                return Ok(Err((expected, found)));
            }
            bytes.truncate(bytes.len() - 4);
            Ok(Ok(bytes))
        };
        let mut filter_damage = None;
        let filter = match part(meta.filter)? {
            Ok(bytes) => Filter::decode(&bytes).unwrap_or_default(),
            Err((expected, found)) => {
                filter_damage = Some(Damage {
                    file: name.clone(),
                    offset: meta.filter.offset,
                    kind: DamageKind::Checksum,
                    expected: expected.into(),
                    found: found.into(),
                    affected: Affected::Nothing,
                });
                Filter::default()
            }
        };
        let index = match part(meta.index)? {
            Err((expected, found)) => {
                return damage(meta.index.offset, DamageKind::Checksum, expected.into(), found.into());
            }
            Ok(bytes) => SparseIndex::decode(&bytes),
        };
        match index {
            Some(index) if index.blocks() == meta.blocks as usize && index.end() == meta.filter.offset => {
                Ok(Ok((Self { file, meta, filter, index }, filter_damage)))
            }
            _ => damage(meta.index.offset, DamageKind::Malformed, 0, 0),
        }
    }

    pub(crate) fn meta(&self) -> &Meta {
        &self.meta
    }

    pub(crate) fn id(&self) -> TableId {
        self.meta.id
    }

    /// What the table costs in memory.
    pub(crate) fn len_in_memory(&self) -> usize {
        self.filter.len_bytes() + self.index.len_bytes()
    }

    pub(crate) fn blocks(&self) -> usize {
        self.index.blocks()
    }

    /// Whether it may hold a key: false is certain. Looks at memory only.
    #[inline]
    pub(crate) fn may_contain(&self, key: &[u8], hash: u64) -> bool {
        self.filter.may_contain(hash) && *self.meta.smallest <= *key && *key <= *self.meta.largest
    }

    /// See [`Filter::touch`].
    #[inline]
    pub(crate) fn touch(&self, hash: u64) -> u32 {
        self.filter.touch(hash)
    }

    /// The body of a key's entry. `blocks` keeps the block that was read.
    pub(crate) fn get(&self, key: &[u8], blocks: &BlockCache, wait: Wait) -> Result<Option<Bytes>, ReadError> {
        let number = self.index.find(key);
        let block = match blocks.get(&(self.id().0, number as u32)).and_then(Block::of_checked) {
            Some(block) => block,
            None => {
                let block = self.read_block(number, wait)?;
                blocks.insert((self.id().0, number as u32), block.bytes().clone());
                block
            }
        };
        block.find(key).map_err(|Malformed| self.malformed(number))
    }

    /// Reads and checks a block.
    pub(crate) fn read_block(&self, number: usize, wait: Wait) -> Result<Block, ReadError> {
        let (offset, end) = (self.index.offset(number), self.index.offset(number + 1));
        let bytes = self.read(offset, end, wait)?;
        self.check_block(number, bytes)
    }

    fn check_block(&self, number: usize, bytes: Bytes) -> Result<Block, ReadError> {
        Block::check(bytes, self.id(), self.index.offset(number)).map_err(|bad| self.damaged(number, bad))
    }

    fn read(&self, offset: u64, end: u64, wait: Wait) -> Result<Bytes, ReadError> {
        let mut bytes = vec![0; (end - offset) as usize];
        let read = read_at(&*self.file, wait, offset, &mut bytes).map_err(|source| ReadError::Io {
            file: self.id().file_name(),
            offset,
            source,
        })?;
        let read = read.ok_or(ReadError::WouldBlock)?;
        // A file that ends early does not check.
        bytes.truncate(read);
        Ok(bytes.into())
    }

    fn damaged(&self, number: usize, bad: BadPart) -> ReadError {
        let kind = if bad.expected == bad.found { DamageKind::Malformed } else { DamageKind::Checksum };
        ReadError::Damaged(Damage {
            file: self.id().file_name(),
            offset: bad.offset,
            kind,
            expected: bad.expected.into(),
            found: bad.found.into(),
            affected: self.affected(number),
        })
    }

    /// What a block that checks and makes no sense is told as.
    pub(crate) fn malformed(&self, number: usize) -> ReadError {
        self.damaged(number, BadPart { offset: self.index.offset(number), expected: 0, found: 0 })
    }

    /// The partitions of a block's keys.
    fn affected(&self, number: usize) -> Affected {
        let first = split_key(self.index.separator(number));
        let last = match number + 1 < self.blocks() {
            true => self.index.separator(number + 1),
            false => &self.meta.largest,
        };
        match (first, split_key(last)) {
            (Some(first), Some(last)) if first.partition == last.partition => Affected::Partition(first.partition),
            (Some(first), Some(last)) => Affected::Partitions { first: first.partition, last: last.partition },
            _ => Affected::Everything,
        }
    }
}

/// A place in tables that lie behind one another in the order of keys. Reads ahead, past the cache.
pub(crate) struct RunCursor {
    tables: Arc<[Arc<Table>]>,
    table: usize,
    /// The block that the cursor is in.
    number: usize,
    block: Option<BlockCursor>,
    /// Blocks that were read ahead, and the file's offset of the first byte.
    ahead: Bytes,
    ahead_at: u64,
    read_ahead: u64,
    skips_damage: bool,
    wait: Wait,
}

impl RunCursor {
    /// At the first key at or above `key`. `skips_damage`: damaged blocks are passed over, for who has reported them.
    pub(crate) fn seek(
        tables: Arc<[Arc<Table>]>,
        key: &[u8],
        skips_damage: bool,
        wait: Wait,
    ) -> Result<Self, ReadError> {
        let table = tables.partition_point(|table| *table.meta.largest < *key);
        let number = tables.get(table).map_or(0, |table| table.index.find(key));
        let read_ahead = super::BLOCK_LEN as u64;
        let (ahead, ahead_at) = (Bytes::new(), 0);
        let mut cursor = Self { tables, table, number, block: None, ahead, ahead_at, read_ahead, skips_damage, wait };
        cursor.open_block(Some(key))?;
        cursor.settle()?;
        Ok(cursor)
    }

    /// The key where the cursor stands, none at the end.
    pub(crate) fn key(&self) -> Option<&[u8]> {
        self.block.as_ref().and_then(BlockCursor::key)
    }

    /// The body of the entry where the cursor stands.
    pub(crate) fn body(&self) -> &[u8] {
        self.block.as_ref().map_or(&[], BlockCursor::body)
    }

    #[inline]
    pub(crate) fn advance(&mut self) -> Result<(), ReadError> {
        let Some(block) = &mut self.block else { return Ok(()) };
        match block.advance() {
            Ok(()) if block.key().is_some() => return Ok(()),
            Ok(()) => {}
            Err(Malformed) if self.skips_damage => *block = BlockCursor::end(),
            Err(Malformed) => return Err(self.tables[self.table].malformed(self.number)),
        }
        self.settle()
    }

    /// Goes on to the next block while the cursor stands at the end of one.
    fn settle(&mut self) -> Result<(), ReadError> {
        while self.block.as_ref().is_some_and(|block| block.key().is_none()) {
            self.number += 1;
            if self.number >= self.tables[self.table].blocks() {
                (self.table, self.number) = (self.table + 1, 0);
                self.ahead = Bytes::new();
            }
            self.open_block(None)?;
        }
        Ok(())
    }

    /// Opens the block at `number`, at its first key or at the first one at or above another.
    fn open_block(&mut self, from: Option<&[u8]>) -> Result<(), ReadError> {
        self.block = None;
        let Some(table) = self.tables.get(self.table).cloned() else { return Ok(()) };
        let opened = self.load(&table).and_then(|block| {
            let cursor = match from {
                Some(key) => BlockCursor::seek(block, key),
                None => BlockCursor::first(block),
            };
            cursor.map_err(|Malformed| table.malformed(self.number))
        });
        self.block = Some(match opened {
            Err(ReadError::Damaged(_)) if self.skips_damage => BlockCursor::end(),
            opened => opened?,
        });
        Ok(())
    }

    /// The block at `number`, read ahead: the further the longer a cursor goes.
    fn load(&mut self, table: &Table) -> Result<Block, ReadError> {
        let (offset, end) = (table.index.offset(self.number), table.index.offset(self.number + 1));
        let is_ahead = self.ahead_at <= offset && end <= self.ahead_at + self.ahead.len() as u64;
        if !is_ahead || self.ahead.is_empty() {
            let upto = (offset + self.read_ahead).max(end).min(table.index.end());
            self.ahead = table.read(offset, upto, self.wait)?;
            self.ahead_at = offset;
            self.read_ahead = (self.read_ahead * 4).min(READ_AHEAD);
        }
        let start = (offset - self.ahead_at) as usize;
        let end = ((end - self.ahead_at) as usize).min(self.ahead.len());
        table.check_block(self.number, self.ahead.slice(start.min(end)..end))
    }
}
