//! `Engine`: the engine itself.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use dunlin_protocol::register::Register;
use dunlin_protocol::{Ancestor, Content, KeyspaceId, PartitionId};

use crate::disk::Disk;
use crate::error::{Affected, Damage, FileError, OpenError, ReadError, WriteError};
use crate::histogram::Recorder;
use crate::log::Log;
use crate::maintenance::Maintenance;
use crate::manifest::Manifest;
use crate::memtable::Memtable;
use crate::options::Options;
use crate::pin::Pin;
use crate::place::{Place, Position};
use crate::recovery::{Opened, Recovery};
use crate::references::Segments;
use crate::reserve::Reserve;
use crate::scrub::ScrubPlace;
use crate::segment::subtract;
use crate::staging::Stage;
use crate::stats::Stats;
use crate::stopwatch::Stopwatch;
use crate::suspects::Suspects;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard, RwLock};
use crate::table::{BlockCache, block_cache};
use crate::view::View;
use crate::writer::Writer;

/// A key and where it belongs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct KeyRef<'a> {
    /// The partition, which the caller derives from the key.
    pub partition: PartitionId,
    /// The keyspace.
    pub keyspace: KeyspaceId,
    /// 1 to 4,096 bytes.
    pub key: &'a [u8],
}

/// What the engine holds for a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Entry {
    /// The register; the default one where the key is absent.
    pub register: Register<Place>,
    /// Just behind the newest frame of this key: whatever is computed from the register may be shown once
    /// [`Engine::durable_upto`] has reached it. [`Position::ZERO`]: durable since before the engine was opened, or absent.
    pub position: Position,
}

/// What [`Engine::update`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Updated<R> {
    /// What the rule answered.
    pub reply: R,
    /// The entry afterwards. The reply must wait until [`Engine::durable_upto`] has reached its position, also where nothing changed.
    pub entry: Entry,
}

/// What a record has besides its head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    /// Newest first.
    pub lineage: Vec<Ancestor>,
    /// Value or tombstone.
    pub content: Content,
}

/// The storage engine of a node. Shared between threads; every method takes `&self`.
///
/// - keys: [`entry`](Self::entry), [`get`](Self::get), [`update`](Self::update), [`load`](Self::load), [`scan`](Self::scan), and all of them as they are at one
///   moment: [`pin`](Self::pin)
/// - what a partition holds, in short: [`digest`](Self::digest), [`digest_roots`](Self::digest_roots), [`scan_leaf`](Self::scan_leaf)
/// - large records: [`stage`](Self::stage), and then [`update_staged`](Self::update_staged)
/// - durability: `update` appends in memory only. Its owner is woken ([`set_waker`](Self::set_waker), or blocks in
///   [`wait_pending`](Self::wait_pending)) and calls [`write_pending`](Self::write_pending), which writes all that is pending in one go and syncs
///   once; then [`durable_upto`](Self::durable_upto) has risen, and replies up to it may leave
///   (with [`Sync::Interval`](crate::Sync::Interval) the owner also calls [`sync_written`](Self::sync_written), in time)
/// - upkeep: the owner calls [`maintain`](Self::maintain), on another thread than the writer's, while there is something to do
/// - trouble: [`is_poisoned`](Self::is_poisoned), [`suspect_partitions`](Self::suspect_partitions), [`mark_suspect`](Self::mark_suspect)
///
/// Reads and `update` read the disk for what is not in memory any more. No lock that they take is held across I/O, their own or anybody's. Who must not
/// wait for the disk uses [`try_update`](Self::try_update), [`try_entry`](Self::try_entry), [`try_load`](Self::try_load) and
/// [`try_scan`](Self::try_scan), and has another thread do what would.
pub struct Engine {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) options: Options,
    pub(crate) log: Log,
    pub(crate) segments: Segments,
    /// Held across I/O by the writer, by maintenance, and by `mark_suspect`.
    pub(crate) manifest: Mutex<Manifest>,
    pub(crate) memtable: Memtable,
    /// What lies below the memtable. Taken while a key's shard is locked; replaced while all are, where the memtable is frozen.
    pub(crate) view: RwLock<Arc<View>>,
    pub(crate) blocks: BlockCache,
    /// Moments that are kept. Locked before shards.
    pub(crate) pins: Mutex<Vec<Arc<Pin>>>,
    /// Held across I/O by the writer.
    pub(crate) writer: Mutex<Writer>,
    /// Held across I/O by `maintain`.
    pub(crate) maintenance: Mutex<Maintenance>,
    /// Held across I/O by `stage`.
    pub(crate) stage: Mutex<Option<Stage>>,
    /// Held across I/O by `scrub`.
    pub(crate) scrub: Mutex<ScrubPlace>,
    pub(crate) durable_upto: AtomicU64,
    /// Something was written that is not synced.
    pub(crate) is_unsynced: AtomicBool,
    pub(crate) keys: AtomicU64,
    pub(crate) next_segment: AtomicU64,
    /// Something waits to be flushed, merged or collected.
    pub(crate) upkeep_due: AtomicBool,
    /// A segment for large records was filled or begun: what died of the others is to be collected, though neither memtable nor log are long.
    pub(crate) much_is_staged: AtomicBool,
    /// From here on the log is not covered by tables.
    pub(crate) covered: AtomicU64,
    /// Garbage grows faster than it is collected.
    pub(crate) too_much_garbage: AtomicBool,
    /// What a piece of a merge may take on the disk.
    pub(crate) piece_bytes: AtomicU64,
    /// What the frozen memtables take in memory.
    pub(crate) frozen_bytes: AtomicU64,
    /// How many tables lie in level 0.
    pub(crate) level0: AtomicUsize,
    suspects: RwLock<Arc<Suspects>>,
    /// Suspects were noted that the manifest does not have yet.
    pub(crate) unmarked: AtomicBool,
    pub(crate) counters: Counters,
    pub(crate) opened: Stopwatch,
    /// As many as the memtable has shards.
    read_counters: Vec<ReadCounters>,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) writes: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) batch_bytes: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) sync_nanos: AtomicU64,
    pub(crate) sync_time: Recorder,
    pub(crate) batch_frames: Recorder,
    pub(crate) batch_len: Recorder,
    /// Writes are refused since then; 0: they are not. Nanoseconds since the engine was opened.
    pub(crate) stalled_since: AtomicU64,
    pub(crate) stall_time: Recorder,
    pub(crate) flush_time: Recorder,
    pub(crate) merge_time: Recorder,
    pub(crate) cold_reads: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) flushed_bytes: AtomicU64,
    pub(crate) merges: AtomicU64,
    pub(crate) merged_pieces: AtomicU64,
    pub(crate) merged_bytes: AtomicU64,
    pub(crate) unremoved: AtomicU64,
    pub(crate) collected: AtomicU64,
    pub(crate) moved_bytes: AtomicU64,
    pub(crate) staged: AtomicU64,
    pub(crate) staged_bytes: AtomicU64,
    pub(crate) table_looks: AtomicU64,
    pub(crate) filter_misses: AtomicU64,
}

/// What every read counts: each shard has its own, so that readers do not wait for each other's cache line.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct ReadCounters {
    pub(crate) reads: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Engine {
    /// Opens a data directory, makes it where it is new, and brings back what was durable.
    ///
    /// # Errors
    /// Damage is none: it is reported in the [`Recovery`], and the partitions that it may concern are suspect, durably.
    pub fn open(disk: Arc<dyn Disk>, options: Options) -> Result<(Self, Recovery), OpenError> {
        let options = options.check()?;
        let opened = Opened::open(&*disk, &options)?;
        let Opened { segments, manifest, memtable, view, keys, tail, end, next, recovery } = opened;
        let left = Vec::new();
        let (next_segment, covered) = (manifest.next_segment, manifest.position);
        let writer = Writer {
            current: tail.segment.clone(),
            end: tail.offset,
            is_dirty: false,
            synced: end,
            zeroed: 0,
            next,
            reserve: Reserve::default(),
            left,
        };
        let engine = Self {
            log: Log::new(tail, end, &options),
            disk,
            options,
            segments,
            suspects: RwLock::new(Arc::new(manifest.suspects.clone())),
            unmarked: AtomicBool::new(false),
            manifest: Mutex::new(manifest),
            memtable,
            view: RwLock::new(Arc::new(view)),
            blocks: block_cache(options.cache_bytes - options.hot_bytes()),
            pins: Mutex::default(),
            writer: Mutex::new(writer),
            maintenance: Mutex::default(),
            stage: Mutex::default(),
            scrub: Mutex::default(),
            durable_upto: AtomicU64::new(end),
            is_unsynced: AtomicBool::new(false),
            keys: AtomicU64::new(keys),
            next_segment: AtomicU64::new(next_segment),
            upkeep_due: AtomicBool::new(false),
            much_is_staged: AtomicBool::new(false),
            too_much_garbage: AtomicBool::new(false),
            covered: AtomicU64::new(covered),
            piece_bytes: AtomicU64::new(0),
            frozen_bytes: AtomicU64::new(0),
            level0: AtomicUsize::new(0),
            counters: Counters::default(),
            opened: Stopwatch::start(),
            read_counters: (0..options.shards).map(|_| ReadCounters::default()).collect(),
        };
        engine.change_view(|_| {});
        {
            let mut writer = engine.writer.lock().expect("nobody else has it yet");
            engine.make_room(&mut writer).map_err(|error| match error {
                WriteError::Io { file, source } => OpenError::Io { file, source },
                other => OpenError::Io { file: String::new(), source: io::Error::other(other) },
            })?;
        }
        Ok((engine, recovery))
    }

    /// The log is durable up to here, in the sense that [`Options::sync`] asks for.
    pub fn durable_upto(&self) -> Position {
        Position(self.durable_upto.load(Ordering::Acquire))
    }

    /// The end of the log, as far as it was appended.
    pub fn end(&self) -> Position {
        self.log.end()
    }

    /// `waker` is called, with no lock held, when something is pending and nothing was before: by [`update`](Self::update), and only while the writer
    /// rests. It rests once [`write_pending`](Self::write_pending) has returned false; after true it has to be called again unasked.
    pub fn set_waker(&self, waker: Box<dyn Fn() + Send + Sync>) {
        self.log.set_waker(waker, false);
    }

    /// Like [`set_waker`](Self::set_waker), but for one thread that updates in turns: `waker` is called by [`end_turn`](Self::end_turn) only, so that
    /// the writer begins when all of the turn's writes are there.
    pub fn set_turn_waker(&self, waker: Box<dyn Fn() + Send + Sync>) {
        self.log.set_waker(waker, true);
    }

    /// The turn is over: calls the waker of [`set_turn_waker`](Self::set_turn_waker) where an update would have. Costs a look at memory otherwise.
    pub fn end_turn(&self) {
        self.log.end_turn();
    }

    /// Blocks until something is pending or the time is over; whether something is.
    pub fn wait_pending(&self, timeout: Duration) -> bool {
        self.log.wait_pending(timeout)
    }

    /// Whether a write or a sync failed: no write is taken any more, and what is not durable yet never will be.
    pub fn is_poisoned(&self) -> bool {
        self.log.is_poisoned()
    }

    /// Whether the disk was full when room was last made. Cheap.
    pub fn is_disk_full(&self) -> bool {
        self.log.is_disk_full()
    }

    /// The partitions of which something may have been lost (PROTOCOL.md 2.5). Cheap.
    pub fn suspect_partitions(&self) -> Arc<Suspects> {
        self.suspects.read().expect("no thread panics while it holds the suspects").clone()
    }

    /// Marks a partition suspect, durably.
    ///
    /// # Errors
    /// The mark holds while the engine is open, and is not durable: [`WriteError::DiskFull`], or the engine is poisoned now.
    pub fn mark_suspect(&self, partition: PartitionId) -> Result<(), WriteError> {
        self.mark(Affected::Partition(partition))
    }

    /// Marks what damage concerns suspect, durably: for [`ReadError::Damaged`]. Errors as for [`mark_suspect`](Self::mark_suspect).
    pub fn mark_damage(&self, damage: &Damage) -> Result<(), WriteError> {
        self.mark(damage.affected)
    }

    fn mark(&self, affected: Affected) -> Result<(), WriteError> {
        let mut manifest = self.lock_manifest();
        self.add_suspects(|suspects| suspects.add(affected));
        let suspects = (*self.suspect_partitions()).clone();
        if suspects == manifest.suspects {
            return Ok(());
        }
        let changed = Manifest { suspects, ..manifest.clone() };
        self.replace_manifest(&mut manifest, changed)
    }

    /// Damage that a read met: its partitions are suspect from now on, durably after the next step of maintenance. A read that would have had to
    /// wait is counted. Does no I/O.
    pub(crate) fn note_damage(&self, error: &ReadError) {
        let damage = match error {
            ReadError::Damaged(damage) => damage,
            ReadError::WouldBlock => return count(&self.counters.cold_reads, 1),
            _ => return,
        };
        if self.add_suspects(|suspects| suspects.add(damage.affected)) {
            self.unmarked.store(true, Ordering::Release);
        }
    }

    /// The same, of what a check found.
    pub(crate) fn note_suspects(&self, found: &Suspects) {
        if self.add_suspects(|suspects| suspects.add_all(found)) {
            self.unmarked.store(true, Ordering::Release);
        }
    }

    /// Under one lock, so that nothing is lost of what others add at the same time.
    fn add_suspects(&self, add: impl FnOnce(&mut Suspects) -> bool) -> bool {
        let mut suspects = self.suspects.write().expect("no thread panics while it holds the suspects");
        let mut changed = (**suspects).clone();
        let is_new = add(&mut changed);
        if is_new {
            *suspects = Arc::new(changed);
        }
        is_new
    }

    /// Makes durable what reads noted. Whether there was something.
    pub(crate) fn mark_noted(&self) -> Result<bool, WriteError> {
        if !self.unmarked.swap(false, Ordering::AcqRel) {
            return Ok(false);
        }
        let mut manifest = self.lock_manifest();
        let mut changed = manifest.clone();
        changed.suspects = (*self.suspect_partitions()).clone();
        let replaced = self.replace_manifest(&mut manifest, changed);
        if replaced.is_err() {
            self.unmarked.store(true, Ordering::Release);
        }
        replaced.map(|()| true)
    }

    pub(crate) fn replace_manifest(&self, manifest: &mut Manifest, changed: Manifest) -> Result<(), WriteError> {
        if self.log.is_poisoned() {
            return Err(WriteError::Poisoned);
        }
        changed.write(&*self.disk).map_err(|error| match error.is_disk_full() {
            true => WriteError::DiskFull,
            false => self.poisoned_by(error),
        })?;
        Manifest::replace(&*self.disk).map_err(|error| self.poisoned_by(error))?;
        *manifest = changed;
        Ok(())
    }

    pub(crate) fn poisoned_by(&self, error: FileError) -> WriteError {
        self.log.poison();
        error.into()
    }

    pub(crate) fn lock_manifest(&self) -> MutexGuard<'_, Manifest> {
        self.manifest.lock().expect("no thread panics while it holds the manifest")
    }

    pub(crate) fn read_counters(&self, partition: PartitionId) -> &ReadCounters {
        &self.read_counters[usize::from(partition.0) % self.read_counters.len()]
    }

    pub(crate) fn key_count(&self) -> u64 {
        self.keys.load(Ordering::Relaxed)
    }

    /// A plain write was refused for lack of room or of speed: the time in which that is so begins, if it had not.
    #[cold]
    pub(crate) fn begin_stall(&self) {
        let now = self.opened.nanos().max(1);
        // Whoever was first has the earlier time: nothing depends on it.
        let _ = self.counters.stalled_since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// A plain write was taken.
    #[inline]
    pub(crate) fn end_stall(&self) {
        if self.counters.stalled_since.load(Ordering::Relaxed) > 0 {
            let since = self.counters.stalled_since.swap(0, Ordering::Relaxed);
            if since > 0 {
                self.counters.stall_time.record(self.opened.nanos().saturating_sub(since));
            }
        }
    }

    /// A register changed, under its key's lock: whether there is a key more or less.
    pub(crate) fn count_key(&self, old: &Register<Place>, new: &Register<Place>) {
        match (old.is_absent(), new.is_absent()) {
            (true, false) => count(&self.keys, 1),
            (false, true) => subtract(&self.keys, 1),
            _ => {}
        }
    }

    /// What the engine counts.
    pub fn stats(&self) -> Stats {
        let counted = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let segments = self.segments.all();
        let live = segments.iter().map(|segment| segment.live()).sum();
        let (dead, collection_debt_bytes) = self.garbage(&segments);
        let (segments, segment_bytes) = (segments.len() as u64, segments.iter().map(|s| s.written()).sum());
        let view = self.view();
        let tables = || view.levels.tables();
        let (pins, pinned_bytes) = self.pinned();
        let reads = self.read_counters.iter().map(|counters| counted(&counters.reads)).sum();
        let (hot_hits, hot_misses) = self.memtable.hot_looks();
        Stats {
            keys: self.key_count(),
            segments,
            segment_bytes,
            live_segment_bytes: live,
            dead_segment_bytes: dead,
            collection_debt_bytes,
            memtable_bytes: self.memtable.bytes() + view.frozen.iter().map(|frozen| frozen.bytes()).sum::<u64>(),
            digest_bytes: self.memtable.digest_bytes(),
            pins,
            pinned_bytes,
            tables: tables().count() as u64,
            table_bytes: tables().map(|table| table.meta().file_len).sum(),
            level_bytes: std::array::from_fn(|level| view.levels.bytes(level)),
            merge_debt_bytes: self.merge_debt(&view.levels),
            table_entries: tables().map(|table| table.meta().entries).sum(),
            table_memory_bytes: tables().map(|table| table.len_in_memory() as u64).sum(),
            pending_bytes: self.log.pending_bytes(),
            room_bytes: self.log.room().bytes,
            writes: counted(&self.counters.writes),
            refused: counted(&self.counters.refused),
            batches: counted(&self.counters.batches),
            batch_bytes: counted(&self.counters.batch_bytes),
            syncs: counted(&self.counters.syncs),
            sync_nanos: counted(&self.counters.sync_nanos),
            sync_time: self.counters.sync_time.snapshot(),
            batch_frames: self.counters.batch_frames.snapshot(),
            batch_len: self.counters.batch_len.snapshot(),
            stall_time: self.counters.stall_time.snapshot(),
            flush_time: self.counters.flush_time.snapshot(),
            merge_time: self.counters.merge_time.snapshot(),
            reads,
            cold_reads: counted(&self.counters.cold_reads),
            hot_hits,
            hot_misses,
            block_hits: self.blocks.hits(),
            block_misses: self.blocks.misses(),
            table_looks: counted(&self.counters.table_looks),
            filter_misses: counted(&self.counters.filter_misses),
            flushes: counted(&self.counters.flushes),
            flushed_bytes: counted(&self.counters.flushed_bytes),
            merges: counted(&self.counters.merges),
            merged_pieces: counted(&self.counters.merged_pieces),
            merged_bytes: counted(&self.counters.merged_bytes),
            unremoved: counted(&self.counters.unremoved),
            collected: counted(&self.counters.collected),
            moved_bytes: counted(&self.counters.moved_bytes),
            staged: counted(&self.counters.staged),
            staged_bytes: counted(&self.counters.staged_bytes),
            disk_full: self.log.is_disk_full(),
        }
    }
}
