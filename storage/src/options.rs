//! `Options`: how the engine behaves.

use std::time::Duration;

use crate::error::OpenError;
use crate::frame::MAX_FRAME_LEN;
use crate::place::Place;
use crate::room::ALLOCATION_STEP;
use crate::segment::SEGMENT_HEADER_LEN;

/// Merged tables are such a part of all of them, between [`LEAST_TABLE_BYTES`] and the option.
const TABLES_PER_LEVEL: u64 = 32;
const LEAST_TABLE_BYTES: u64 = 1 << 20;

/// When a written batch is synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Sync {
    /// Always, before it counts as durable.
    #[default]
    Always,
    /// At once where it holds a promise or an accept, otherwise within this time of the write, in which more gathers for the same sync: "durable" means
    /// that the operating system has it, and a machine that loses power loses plain writes of at most so long. The engine reads no clock: its owner calls
    /// [`Engine::sync_written`](crate::Engine::sync_written) in time, as [`Engine::sync_within`](crate::Engine::sync_within) tells it.
    Interval(Duration),
    /// Only when it holds a promise or an accept, or when its segment is full: otherwise "durable" means that the operating system has it. A
    /// machine that loses power loses plain writes that were acknowledged.
    Never,
}

/// How the engine behaves. [`Options::default`] suits a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// A segment is sealed before it would grow beyond this. 4 KiB to 1 GiB; a frame is never larger than a segment. Default: 64 MiB.
    pub segment_bytes: u64,
    /// When batches are synced.
    pub sync: Sync,
    /// Bytes that may wait for the disk before writes are refused as overload; at most a segment's. So much room, and the reserve, is kept
    /// allocated on the disk ahead of the log, so that what is admitted always fits. Default: 16 MiB.
    pub pending_limit_bytes: u64,
    /// Of the room ahead, how much is kept on a full disk for what must go on: promises, commits, deletes, and the cluster's own keys. At most a
    /// segment's. Default: 4 MiB.
    pub disk_reserve_bytes: u64,
    /// Into how many locks the table in memory is split, by partition. 1 to 4,096. Default: 32.
    pub shards: usize,
    /// Records of up to so many bytes of lineage, attributes and value lie in the index, larger ones in segments only. At most 1,024. Default: 512.
    pub inline_bytes: usize,
    /// Values of at least so many bytes are large: their records are worth [staging](crate::Engine::stage), so that others do not wait for them.
    /// Default: 64 KiB.
    pub stage_bytes: usize,
    /// What changed since the last flush may take so much memory before it is flushed; as much again while it is, then writes are refused as
    /// overload. 1 KiB to 1 GiB. Default: 32 MiB.
    pub memtable_bytes: u64,
    /// A table is not made longer than this; merged ones are a 32nd of all tables up to it, at least 1 MiB. 1 KiB to 1 GiB. Default: 64 MiB.
    pub table_bytes: u64,
    /// Entries and blocks of tables that were read are kept, together up to this. Default: 96 MiB.
    pub cache_bytes: u64,
    /// A segment is collected when of its bytes more than this share, in hundredths, are dead. 1 to 100. Default: 20.
    pub garbage_percent: u8,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            sync: Sync::Always,
            pending_limit_bytes: 16 << 20,
            disk_reserve_bytes: 4 << 20,
            shards: 32,
            inline_bytes: 512,
            stage_bytes: 64 << 10,
            memtable_bytes: 32 << 20,
            table_bytes: 64 << 20,
            cache_bytes: 96 << 20,
            garbage_percent: 20,
        }
    }
}

impl Options {
    /// The smallest segment.
    pub const MIN_SEGMENT_BYTES: u64 = 4 << 10;
    /// The largest segment: recovery reads one at a time into memory.
    pub const MAX_SEGMENT_BYTES: u64 = 1 << 30;
    /// The largest record that may lie in the index.
    pub const MAX_INLINE_BYTES: usize = 1024;
    /// The smallest memtable.
    pub const MIN_MEMTABLE_BYTES: u64 = 1 << 10;
    /// The largest memtable.
    pub const MAX_MEMTABLE_BYTES: u64 = 1 << 30;

    pub(crate) fn check(mut self) -> Result<Self, OpenError> {
        let invalid = |option, why| Err(OpenError::InvalidOption { option, why });
        if !(Self::MIN_SEGMENT_BYTES..=Self::MAX_SEGMENT_BYTES).contains(&self.segment_bytes) {
            return invalid("segment_bytes", "it lies between 4 KiB and 1 GiB");
        }
        if !(1..=4096).contains(&self.shards) {
            return invalid("shards", "it lies between 1 and 4,096");
        }
        if self.inline_bytes > Self::MAX_INLINE_BYTES {
            return invalid("inline_bytes", "it is at most 1,024");
        }
        if !(Self::MIN_MEMTABLE_BYTES..=Self::MAX_MEMTABLE_BYTES).contains(&self.memtable_bytes) {
            return invalid("memtable_bytes", "it lies between 1 KiB and 1 GiB");
        }
        if !(1 << 10..=1 << 30).contains(&self.table_bytes) {
            return invalid("table_bytes", "it lies between 1 KiB and 1 GiB");
        }
        if !(1..=100).contains(&self.garbage_percent) {
            return invalid("garbage_percent", "it lies between 1 and 100");
        }
        self.pending_limit_bytes = self.pending_limit_bytes.min(self.segment_bytes);
        self.disk_reserve_bytes = self.disk_reserve_bytes.min(self.segment_bytes);
        Ok(self)
    }

    /// What of the cache goes to entries alone. Point reads find them with less work, and thirty of them take the room of a block.
    pub(crate) fn hot_bytes(&self) -> u64 {
        self.cache_bytes / 8 * 7
    }

    /// Where a record lies whose frame has this place and whose body this length.
    pub(crate) fn place_of(&self, frame: Place, body_len: usize) -> Place {
        if body_len <= self.inline_bytes { Place::inline(body_len) } else { frame }
    }

    /// How long the tables are that merges write, where all have so many bytes: a part of that, so that the room to merge them on a full disk is small, too.
    pub(crate) fn merged_table_bytes(&self, all_bytes: u64) -> u64 {
        (all_bytes / TABLES_PER_LEVEL).max(LEAST_TABLE_BYTES).min(self.table_bytes)
    }

    /// The log that a recovery would have to replay is kept below this, roughly.
    pub(crate) fn log_limit(&self) -> u64 {
        2 * self.memtable_bytes + 2 * self.segment_bytes
    }

    /// A new segment gets so much room, durably and noted in the manifest: if its file is ever found shorter, something was lost.
    pub(crate) fn first_allocation(&self) -> u64 {
        self.room_at_rest().next_multiple_of(64 << 10).min(self.segment_bytes)
    }

    pub(crate) fn allocation_step(&self) -> u64 {
        ALLOCATION_STEP.min(self.segment_bytes / 4)
    }

    /// The room to keep allocated while nothing is written.
    pub(crate) fn room_at_rest(&self) -> u64 {
        self.room_target() - self.pending_limit_bytes + self.pending_limit_bytes.min(ALLOCATION_STEP)
    }

    /// The room to keep allocated ahead of the log. Between two steps of the writer at most the pending limit is appended, and what a frame that
    /// no longer fits leaves unused at the end of a segment is less than a frame.
    pub(crate) fn room_target(&self) -> u64 {
        let waste = (MAX_FRAME_LEN as u64).min(self.segment_bytes) + SEGMENT_HEADER_LEN as u64;
        self.pending_limit_bytes + self.disk_reserve_bytes + waste
    }
}
