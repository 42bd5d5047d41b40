//! `Engine`: the engine itself.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dunlin_protocol::register::{Change, Held, Register};
use dunlin_protocol::{Ancestor, Content, KeyspaceId, Millis, PartitionId, Record};

use crate::disk::{Disk, write_all};
use crate::error::{Affected, Damage, DamageKind, FileError, OpenError, ReadError, WriteError};
use crate::frame::{self, Frame};
use crate::log::{Demand, Log, Run};
use crate::manifest::Manifest;
use crate::memtable::{Memtable, ScanRange};
use crate::options::{Options, Sync as SyncOption};
use crate::place::{Place, Position, SegmentId};
use crate::recovery::{Opened, Recovery};
use crate::room::Next;
use crate::segment::Segment;
use crate::stats::Stats;
use crate::suspects::Suspects;

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
/// - keys: [`entry`](Self::entry), [`update`](Self::update), [`load`](Self::load), [`scan`](Self::scan)
/// - durability: `update` appends in memory only. Its owner is woken ([`set_waker`](Self::set_waker), or blocks in
///   [`wait_pending`](Self::wait_pending)) and calls [`write_pending`](Self::write_pending), which writes all that is pending in one go and syncs
///   once; then [`durable_upto`](Self::durable_upto) has risen, and replies up to it may leave
/// - trouble: [`is_poisoned`](Self::is_poisoned), [`suspect_partitions`](Self::suspect_partitions), [`mark_suspect`](Self::mark_suspect)
///
/// Only `write_pending`, `close`, `mark_suspect` and, for what is not in memory any more, `load` do I/O, and no lock that the other methods take
/// is held across it.
pub struct Engine {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) options: Options,
    pub(crate) log: Log,
    pub(crate) segments: RwLock<BTreeMap<SegmentId, Arc<Segment>>>,
    /// Held across I/O by the writer and by `mark_suspect`.
    pub(crate) manifest: Mutex<Manifest>,
    memtable: Memtable,
    /// Held across I/O by the writer.
    writer: Mutex<Writer>,
    durable_upto: AtomicU64,
    suspects: RwLock<Arc<Suspects>>,
    counters: Counters,
}

/// What only the writer uses.
pub(crate) struct Writer {
    /// The segment that is written to.
    current: Arc<Segment>,
    /// Up to this offset.
    end: u64,
    /// Whether it was written to since it was last synced.
    is_dirty: bool,
    /// The log is synced up to here.
    pub(crate) synced: u64,
    /// The current segment was written ahead with zeros up to here.
    pub(crate) zeroed: u64,
    pub(crate) next: Next,
}

#[derive(Default)]
struct Counters {
    writes: AtomicU64,
    refused: AtomicU64,
    batches: AtomicU64,
    batch_bytes: AtomicU64,
    syncs: AtomicU64,
    sync_nanos: AtomicU64,
    reads: AtomicU64,
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Engine {
    /// Opens a data directory, makes it where it is new, and brings back what was durable.
    ///
    /// # Errors
    /// Damage is none: it is reported in the [`Recovery`], and the partitions that it may concern are suspect, durably.
    pub fn open(disk: Arc<dyn Disk>, options: Options) -> Result<(Self, Recovery), OpenError> {
        let options = options.check()?;
        let Opened { segments, manifest, memtable, tail, end, next, recovery } = Opened::open(&*disk, &options)?;
        let writer =
            Writer { current: tail.segment.clone(), end: tail.offset, is_dirty: false, synced: end, zeroed: 0, next };
        let engine = Self {
            log: Log::new(tail, end, &options),
            disk,
            options,
            segments: RwLock::new(segments),
            suspects: RwLock::new(Arc::new(manifest.suspects.clone())),
            manifest: Mutex::new(manifest),
            memtable,
            writer: Mutex::new(writer),
            durable_upto: AtomicU64::new(end),
            counters: Counters::default(),
        };
        {
            let mut writer = engine.writer.lock().expect("nobody else has it yet");
            engine.make_room(&mut writer).map_err(|error| match error {
                WriteError::Io { file, source } => OpenError::Io { file, source },
                other => OpenError::Io { file: String::new(), source: io::Error::other(other) },
            })?;
        }
        Ok((engine, recovery))
    }

    /// What is held for a key.
    pub fn entry(&self, key: KeyRef<'_>) -> Entry {
        self.memtable.lock(key.partition).entry(key)
    }

    /// Applies a rule to a key: `rule` sees the register under the key's lock, and the change that it returns, if any, is appended to the log and
    /// carried out before anybody else sees the key. `record` is stored by a change that
    /// [takes one](Change::takes_record); `stored_at` is this replica's physical time.
    ///
    /// # Errors
    /// All mean that nothing changed. A rule that returns no change never fails.
    ///
    /// # Panics
    /// If the change takes a record and there is none, or commits by name what is not pending: a broken rule.
    pub fn update<R>(
        &self,
        key: KeyRef<'_>,
        record: Option<&Record>,
        stored_at: Millis,
        rule: impl FnOnce(&Register<Place>) -> (R, Option<Change>),
    ) -> Result<Updated<R>, WriteError> {
        let mut wake = false;
        let updated = self.update_under_lock(key, record, stored_at, rule, &mut wake);
        if wake {
            self.log.wake();
        }
        if updated.is_err() {
            count(&self.counters.refused, 1);
        }
        updated
    }

    fn update_under_lock<R>(
        &self,
        key: KeyRef<'_>,
        record: Option<&Record>,
        stored_at: Millis,
        rule: impl FnOnce(&Register<Place>) -> (R, Option<Change>),
        wake: &mut bool,
    ) -> Result<Updated<R>, WriteError> {
        let mut shard = self.memtable.lock(key.partition);
        let mut entry = shard.entry(key);
        let (reply, change) = rule(&entry.register);
        let Some(change) = change else { return Ok(Updated { reply, entry }) };
        let record = record.filter(|_| change.takes_record());
        // What could not be replayed must not reach the log.
        assert!(record.is_some() || !change.takes_record(), "a change that takes a record comes with one");
        if let Change::Commit { ballot } = change {
            let pending = entry.register.pending.map(|(pending, _)| pending);
            assert_eq!(pending, Some(ballot), "a commit by name finds its pending");
        }
        let frame = frame::encode(key, &change, record, stored_at)?;
        let demand = demand(key, &change, record);
        let (place, position) = self.log.append(frame, demand, wake)?;
        let held = record.map(|record| Held { head: record.head(), place });
        entry.register.apply(change, held, stored_at);
        entry.position = position;
        self.memtable.put(&mut shard, key, entry);
        count(&self.counters.writes, 1);
        Ok(Updated { reply, entry })
    }

    /// Reads a record, checksum verified; also one that is not written yet.
    pub fn load(&self, place: &Place) -> Result<Stored, ReadError> {
        count(&self.counters.reads, 1);
        let item = Bytes::from(self.read(place)?);
        let damaged = |kind, expected: u32, found: u32, affected| {
            let file = place.segment.file_name();
            let (expected, found) = (expected.into(), found.into());
            ReadError::Damaged(Damage { file, offset: place.offset, kind, expected, found, affected })
        };
        let head = frame::check(&item, place.segment, place.offset).map_err(|bad| {
            let affected = bad.head.map_or(Affected::Everything, |head| Affected::Partition(head.partition));
            damaged(DamageKind::Checksum, bad.expected, bad.found, affected)
        })?;
        let malformed = |_| damaged(DamageKind::Malformed, 0, 0, Affected::Partition(head.partition));
        let frame = Frame::read(&item).map_err(malformed)?;
        if frame.record.is_none() {
            return Err(ReadError::NoRecord { place: *place });
        }
        let (lineage, content) = frame.body(&item).map_err(malformed)?;
        Ok(Stored { lineage, content })
    }

    fn read(&self, place: &Place) -> Result<Vec<u8>, ReadError> {
        let segments = self.segments.read().expect("no thread panics while it holds the segments");
        let segment = segments.get(&place.segment).cloned().ok_or(ReadError::Gone { segment: place.segment })?;
        drop(segments);
        let is_written = || place.offset.checked_add(place.len.into()).is_some_and(|end| end <= segment.written());
        // What is found in neither place was written between the two looks.
        if !is_written()
            && let Some(frame) = self.log.find(place)
        {
            return Ok(frame);
        }
        let mut frame = vec![0; place.len as usize];
        let read = segment.file.read_at(place.offset, &mut frame).map_err(|source| ReadError::Io {
            file: place.segment.file_name(),
            offset: place.offset,
            source,
        })?;
        // A file that ends early does not check.
        frame.truncate(read);
        Ok(frame)
    }

    /// Visits keys in the order of partition and key, until `visit` returns false or `limit` keys were visited. Returns whether the range
    /// ended; if not, the last key visited is where another scan goes on ([`ScanRange::after`]). Sees every key that is there all the time
    /// and any others as they come and go; deleted, promised, and just forgotten keys, too. No lock is held during a visit.
    pub fn scan(
        &self,
        range: ScanRange<'_>,
        limit: usize,
        visit: &mut dyn FnMut(PartitionId, &[u8], &Entry) -> bool,
    ) -> bool {
        self.memtable.scan(&range, limit, visit)
    }

    /// The log is durable up to here, in the sense that [`Options::sync`] asks for.
    pub fn durable_upto(&self) -> Position {
        Position(self.durable_upto.load(Ordering::Acquire))
    }

    /// The end of the log, as far as it was appended.
    pub fn end(&self) -> Position {
        self.log.end()
    }

    /// The writer's step: writes everything that was appended, in one go, syncs once, and publishes [`durable_upto`](Self::durable_upto). What is
    /// appended meanwhile waits for the next call. Also makes room ahead. False: nothing was pending.
    ///
    /// # Errors
    /// The engine is poisoned now. `durable_upto` may have risen all the same, and holds.
    pub fn write_pending(&self) -> Result<bool, WriteError> {
        let mut writer = self.writer.lock().expect("no writer panics");
        if self.log.is_poisoned() {
            return Err(WriteError::Poisoned);
        }
        let mut step = || {
            let batch = self.begin(&writer);
            let is_pending = batch.is_some();
            if let Some(batch) = batch {
                self.finish(&mut writer, &batch)?;
            }
            self.make_room(&mut writer)?;
            Ok(is_pending)
        };
        step().inspect_err(|_| self.log.poison())
    }

    /// Writes what is pending, and notes durably that the log is whole up to its end: damage of the last batches can then be told from a torn
    /// write, too. For a shutdown in order; the engine may be used further. Not closing loses nothing.
    pub fn close(&self) -> Result<(), WriteError> {
        self.write_pending()?;
        let mut writer = self.writer.lock().expect("no writer panics");
        if writer.is_dirty {
            self.sync(&mut writer).inspect_err(|_| self.log.poison())?;
        }
        let mut manifest = self.manifest.lock().expect("no thread panics while it holds the manifest");
        let mut changed = manifest.clone();
        if let Some(listing) = changed.segments.get_mut(&writer.current.id) {
            listing.synced_upto = writer.synced;
        }
        self.replace_manifest(&mut manifest, changed)
    }

    fn begin(&self, writer: &Writer) -> Option<Arc<Vec<Run>>> {
        self.log.begin(writer.synced)
    }

    fn finish(&self, writer: &mut Writer, batch: &[Run]) -> Result<(), WriteError> {
        for run in batch {
            if run.segment.id != writer.current.id {
                self.seal(writer)?;
                (writer.current, writer.zeroed) = (run.segment.clone(), 0);
            }
            let failed = WriteError::io(run.segment.id.file_name());
            writer.is_dirty = true;
            write_all(&*run.segment.file, run.start, &run.bytes).map_err(failed)?;
            writer.end = run.end();
            count(&self.counters.batch_bytes, run.bytes.len() as u64);
        }
        let Some(last) = batch.last() else { return Ok(()) };
        let end = last.segment.position(last.end());
        if self.options.sync == SyncOption::Always || batch.iter().any(|run| run.must_sync) {
            self.sync(writer)?;
        }
        for run in batch {
            run.segment.set_written(run.end());
        }
        self.log.finish();
        self.durable_upto.store(end.0, Ordering::Release);
        count(&self.counters.batches, 1);
        self.memtable.drop_forgotten(end);
        self.write_zeros(writer, &last.segment, last.end(), last.bytes.len() as u64)
    }

    /// The segment has no more to come: syncs it, and cuts off what was allocated and not used.
    fn seal(&self, writer: &mut Writer) -> Result<(), WriteError> {
        if writer.is_dirty {
            self.sync(writer)?;
        }
        let segment = &writer.current;
        segment.file.truncate(writer.end).map_err(WriteError::io(segment.id.file_name()))
    }

    #[expect(clippy::disallowed_methods, reason = "how long syncs take is a statistic; nothing depends on it")]
    fn sync(&self, writer: &mut Writer) -> Result<(), WriteError> {
        let segment = &writer.current;
        let start = Instant::now();
        segment.file.sync().map_err(WriteError::io(segment.id.file_name()))?;
        writer.is_dirty = false;
        writer.synced = writer.current.position(writer.end).0;
        count(&self.counters.syncs, 1);
        count(&self.counters.sync_nanos, u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
        Ok(())
    }

    /// `waker` is called, with no lock held, when something is pending and nothing was before.
    pub fn set_waker(&self, waker: Box<dyn Fn() + Send + Sync>) {
        self.log.set_waker(waker);
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
        let mut manifest = self.manifest.lock().expect("no thread panics while it holds the manifest");
        let mut changed = manifest.clone();
        if !changed.suspects.add(affected) {
            return Ok(());
        }
        *self.suspects.write().expect("no thread panics while it holds the suspects") =
            Arc::new(changed.suspects.clone());
        self.replace_manifest(&mut manifest, changed)
    }

    fn replace_manifest(&self, manifest: &mut Manifest, changed: Manifest) -> Result<(), WriteError> {
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

    fn poisoned_by(&self, error: FileError) -> WriteError {
        self.log.poison();
        error.into()
    }

    /// What the engine counts.
    pub fn stats(&self) -> Stats {
        let counted = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let segments = self.segments.read().expect("no thread panics while it holds the segments");
        let (segments, segment_bytes) = (segments.len() as u64, segments.values().map(|s| s.written()).sum());
        Stats {
            keys: self.memtable.len(),
            segments,
            segment_bytes,
            pending_bytes: self.log.pending_bytes(),
            room_bytes: self.log.room().bytes,
            writes: counted(&self.counters.writes),
            refused: counted(&self.counters.refused),
            batches: counted(&self.counters.batches),
            batch_bytes: counted(&self.counters.batch_bytes),
            syncs: counted(&self.counters.syncs),
            sync_nanos: counted(&self.counters.sync_nanos),
            reads: counted(&self.counters.reads),
            disk_full: self.log.is_disk_full(),
        }
    }
}

/// Promises and accepts are synced always. They, whatever ends something, and the cluster's own keys go on while the reserve lasts.
fn demand(key: KeyRef<'_>, change: &Change, record: Option<&Record>) -> Demand {
    let ends = match change {
        Change::Promise { .. } | Change::Commit { .. } | Change::Forget | Change::Purge => true,
        Change::Accept { .. } | Change::Store { .. } => record.is_none_or(|r| r.content == Content::Tombstone),
    };
    Demand {
        is_exempt: ends || key.keyspace == KeyspaceId::SYSTEM,
        must_sync: matches!(change, Change::Promise { .. } | Change::Accept { .. }),
    }
}
