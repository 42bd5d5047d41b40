//! `Stats`: what the engine counts.

/// What the engine counts, at one moment; for metrics and `status`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Keys in memory, deleted and promised ones included.
    pub keys: u64,
    /// Segments of the log, those made ahead included.
    pub segments: u64,
    /// Bytes of the log.
    pub segment_bytes: u64,
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
    /// Whether the disk was full when room was last made.
    pub disk_full: bool,
}
