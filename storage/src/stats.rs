//! `Stats`: what the engine counts.

use crate::histogram::Histogram;

/// What the engine counts, at one moment; for metrics and `status`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Keys that are held, deleted and promised ones included.
    pub keys: u64,
    /// Segments of the log, those made ahead included.
    pub segments: u64,
    /// Bytes of the log.
    pub segment_bytes: u64,
    /// Bytes of segments that the index refers to.
    pub live_segment_bytes: u64,
    /// Bytes of the segments behind the log that nothing refers to any more.
    pub dead_segment_bytes: u64,
    /// Of them, those in segments that are dead enough to be collected.
    pub collection_debt_bytes: u64,
    /// What changed since the last flush takes so much memory.
    pub memtable_bytes: u64,
    /// What the digests of partitions take in memory.
    pub digest_bytes: u64,
    /// Moments that are pinned.
    pub pins: u64,
    /// What nothing but they keeps in memory.
    pub pinned_bytes: u64,
    /// Tables of the index.
    pub tables: u64,
    /// Their bytes.
    pub table_bytes: u64,
    /// The same by level, the newest first; deeper ones than are named have none.
    pub level_bytes: [u64; 7],
    /// Of them, those that have to go to the next level for each to be as short as it should be.
    pub merge_debt_bytes: u64,
    /// Their entries, of which newer ones may hide older ones.
    pub table_entries: u64,
    /// What their filters and sparse indexes take in memory.
    pub table_memory_bytes: u64,
    /// Bytes appended and not yet durable.
    pub pending_bytes: u64,
    /// Bytes allocated on the disk ahead of the log.
    pub room_bytes: u64,
    /// Frames appended since the engine was opened.
    pub writes: u64,
    /// Frames refused.
    pub refused: u64,
    /// Batches written since the engine was opened.
    pub batches: u64,
    /// Bytes written in batches since the engine was opened.
    pub batch_bytes: u64,
    /// Syncs of batches.
    pub syncs: u64,
    /// Time spent in them, in nanoseconds.
    pub sync_nanos: u64,
    /// How long each sync took, in nanoseconds.
    pub sync_time: Histogram,
    /// Frames in each batch.
    pub batch_frames: Histogram,
    /// Bytes of each batch.
    pub batch_len: Histogram,
    /// For how long plain writes were refused as overload or for a full disk, in nanoseconds: each time from the first that was refused to the next that was
    /// taken. So a time that has not ended is missing, and one in which nobody wrote counts.
    pub stall_time: Histogram,
    /// Records read.
    pub reads: u64,
    /// Reads that must not wait for the disk, and would have had to.
    pub cold_reads: u64,
    /// Looks for keys that no change of late has left in memory: found among the entries that were read lately.
    pub hot_hits: u64,
    /// Such looks that went on to what is being flushed, and to the filters of the tables.
    pub hot_misses: u64,
    /// Blocks of tables that were in the cache when an entry was looked for.
    pub block_hits: u64,
    /// Blocks that were not, and were read.
    pub block_misses: u64,
    /// Looks for keys that a filter let pass, so that a block was looked into; all others cost no block.
    pub table_looks: u64,
    /// Blocks that were looked into in vain, because a filter let an absent key pass.
    pub filter_misses: u64,
    /// Memtables flushed since the engine was opened.
    pub flushes: u64,
    /// Bytes of the tables that were made of them.
    pub flushed_bytes: u64,
    /// How long each flush took from begin to end, in nanoseconds, pauses between its steps included.
    pub flush_time: Histogram,
    /// Merges of tables since the engine was opened.
    pub merges: u64,
    /// Of them, pieces of tables that went down one by one, for lack of room on the disk.
    pub merged_pieces: u64,
    /// Bytes that they wrote.
    pub merged_bytes: u64,
    /// How long each merge took from begin to end, in nanoseconds, pauses between its steps included.
    pub merge_time: Histogram,
    /// Segments collected since the engine was opened.
    pub collected: u64,
    /// Bytes of live frames that were moved for it.
    pub moved_bytes: u64,
    /// Large records staged since the engine was opened.
    pub staged: u64,
    /// Bytes of their frames.
    pub staged_bytes: u64,
    /// Files that could not be removed; they go when the engine is opened again.
    pub unremoved: u64,
    /// Whether the disk was full when room was last made.
    pub disk_full: bool,
}
