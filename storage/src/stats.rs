//! `Stats`: what the engine counts.

/// What the engine counts, at one moment; for metrics and `status`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Keys that are held, deleted and promised ones included.
    pub keys: u64,
    /// Segments of the log, those made ahead included.
    pub segments: u64,
    /// Bytes of the log.
    pub segment_bytes: u64,
    /// Bytes of segments that the index refers to.
    pub live_segment_bytes: u64,
    /// What changed since the last flush takes so much memory.
    pub memtable_bytes: u64,
    /// Tables of the index.
    pub tables: u64,
    /// Their bytes.
    pub table_bytes: u64,
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
    /// Records read.
    pub reads: u64,
    /// Memtables flushed since the engine was opened.
    pub flushes: u64,
    /// Bytes of the tables that were made of them.
    pub flushed_bytes: u64,
    /// Merges of tables since the engine was opened.
    pub merges: u64,
    /// Bytes that they wrote.
    pub merged_bytes: u64,
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
