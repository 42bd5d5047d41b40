//! `Log`: the end of the log, as far as it is in memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::error::WriteError;
use crate::frame::{BATCH_LEN, Batch, set_place};
use crate::options::Options;
use crate::place::{Place, Position, SegmentId};
use crate::segment::Segment;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard, RwLock};

/// A segment that is or will be appended to.
pub(crate) struct Tail {
    pub(crate) segment: Arc<Segment>,
    /// Where the next item goes.
    pub(crate) offset: u64,
    /// The file is allocated up to here.
    pub(crate) reserved: u64,
}

/// Items that lie behind one another in a segment: a batch and its frames.
pub(crate) struct Run {
    pub(crate) segment: Arc<Segment>,
    pub(crate) start: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) frames: u64,
    /// Whether a frame in it has to be synced whatever the option says.
    pub(crate) must_sync: bool,
}

impl Run {
    pub(crate) fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

/// What a frame asks of the log.
#[derive(Clone, Copy)]
pub(crate) struct Demand {
    /// It may use the reserve of a full disk.
    pub(crate) is_exempt: bool,
    /// It is synced whatever the option says.
    pub(crate) must_sync: bool,
}

/// The room ahead of the log.
pub(crate) struct Room {
    /// Allocated and unused bytes.
    pub(crate) bytes: u64,
    /// A segment that can be allocated further, and up to where it is.
    pub(crate) extensible: Option<(Arc<Segment>, u64)>,
}

struct State {
    active: Tail,
    /// Made ahead; the log goes on in the first one when the active one is full.
    spares: VecDeque<Tail>,
    gathering: Vec<Run>,
    writing: Option<Arc<Vec<Run>>>,
    /// Of `gathering` and `writing`.
    pending_bytes: u64,
    /// Where the last run that was handed to the writer ends.
    previous_end: u64,
    end: u64,
    disk_full: bool,
    /// A write was refused for lack of room: the writer is to try to make some.
    wants_room: bool,
    /// Nothing was appended since the owner said that the engine is at rest.
    is_at_rest: bool,
    /// The writer will come again by itself: it need not be woken.
    is_writer_busy: bool,
}

impl State {
    fn is_pending(&self) -> bool {
        !self.gathering.is_empty() || self.wants_room
    }

    fn room(&self) -> u64 {
        self.tails().map(|tail| tail.reserved - tail.offset).sum()
    }

    fn tails(&self) -> impl Iterator<Item = &Tail> {
        std::iter::once(&self.active).chain(&self.spares)
    }
}

type Waker = Box<dyn Fn() + Send + Sync>;

/// The end of the log. Its lock is held for copying a frame at most, never across I/O.
pub(crate) struct Log {
    state: Mutex<State>,
    pending: Condvar,
    waker: RwLock<Option<Waker>>,
    /// The owner is told at the end of a turn only.
    wakes_by_turn: AtomicBool,
    /// The owner is to be told when the turn ends.
    unannounced: AtomicBool,
    poisoned: AtomicBool,
    limit: u64,
    max_frame: usize,
}

impl Log {
    /// The log goes on at `active`; its last item ends at `end`.
    pub(crate) fn new(active: Tail, end: u64, options: &Options) -> Self {
        let state = State {
            active,
            spares: VecDeque::new(),
            gathering: Vec::new(),
            writing: None,
            pending_bytes: 0,
            previous_end: end,
            end,
            disk_full: false,
            wants_room: false,
            is_at_rest: false,
            is_writer_busy: false,
        };
        let overhead = crate::segment::SEGMENT_HEADER_LEN + BATCH_LEN;
        Self {
            state: Mutex::new(state),
            pending: Condvar::new(),
            waker: RwLock::new(None),
            wakes_by_turn: AtomicBool::new(false),
            unannounced: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
            limit: options.pending_limit_bytes,
            max_frame: usize::try_from(options.segment_bytes).unwrap_or(usize::MAX).saturating_sub(overhead),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the log")
    }

    /// Appends a frame. `wake` is set when [`wake`](Self::wake) is to be called, once no lock is held, whatever the result.
    pub(crate) fn append(
        &self,
        frame: &mut [u8],
        demand: Demand,
        wake: &mut bool,
    ) -> Result<(Place, Position), WriteError> {
        if self.is_poisoned() {
            return Err(WriteError::Poisoned);
        }
        if frame.len() > self.max_frame {
            return Err(WriteError::TooLarge { what: "the frame", len: frame.len(), max: self.max_frame });
        }
        let mut state = self.lock();
        let was_pending = state.is_pending();
        let len = frame.len() as u64;
        if state.pending_bytes > 0 && state.pending_bytes + len > self.limit {
            return Err(WriteError::Overloaded);
        }
        let goes_on = state.gathering.last().is_some_and(|run| run.segment.id == state.active.segment.id);
        let need = len + if goes_on { 0 } else { BATCH_LEN as u64 };
        // What room there is on a full disk is for what has to go on, and for upkeep.
        let keeps_reserve = !state.disk_full || demand.is_exempt;
        let active = &state.active;
        let fits = active.offset + need <= active.reserved;
        // While the active segment can still be allocated further there is no spare.
        let fits_spare = || {
            let spare = state.spares.front();
            spare.is_some_and(|spare| spare.offset + len + BATCH_LEN as u64 <= spare.reserved)
        };
        if !keeps_reserve || !(fits || fits_spare()) {
            *wake = !was_pending && !state.is_writer_busy;
            (state.wants_room, state.is_at_rest) = (true, false);
            return Err(if state.disk_full { WriteError::DiskFull } else { WriteError::Overloaded });
        }
        if !fits {
            state.active = state.spares.pop_front().expect("checked above");
        }
        let state = &mut *state;
        state.is_at_rest = false;
        if !goes_on || !fits {
            let (segment, start) = (state.active.segment.clone(), state.active.offset);
            state.gathering.push(Run { segment, start, bytes: vec![0; BATCH_LEN], frames: 0, must_sync: false });
            state.active.offset += BATCH_LEN as u64;
            state.pending_bytes += BATCH_LEN as u64;
        }
        let run = state.gathering.last_mut().expect("there is one now");
        let place = Place { segment: run.segment.id, offset: state.active.offset, len: frame.len() as u32 };
        set_place(frame, place.segment, place.offset);
        run.bytes.extend_from_slice(frame);
        run.frames += 1;
        run.must_sync |= demand.must_sync;
        state.active.offset += len;
        state.pending_bytes += len;
        let position = run.segment.position(state.active.offset);
        state.end = position.0;
        *wake = !was_pending && !state.is_writer_busy;
        Ok((place, position))
    }

    /// Something is pending of which the owner has to know: tells it, now or at the end of the turn.
    pub(crate) fn announce(&self) {
        match self.wakes_by_turn.load(Ordering::Relaxed) {
            true => self.unannounced.store(true, Ordering::Release),
            false => self.wake(),
        }
    }

    pub(crate) fn end_turn(&self) {
        if self.unannounced.load(Ordering::Relaxed) && self.unannounced.swap(false, Ordering::AcqRel) {
            self.wake();
        }
    }

    /// Tells the owner that something is pending.
    fn wake(&self) {
        self.pending.notify_all();
        if let Some(waker) = &*self.waker.read().expect("the waker does not panic") {
            waker();
        }
    }

    pub(crate) fn set_waker(&self, waker: Waker, by_turn: bool) {
        self.wakes_by_turn.store(by_turn, Ordering::Relaxed);
        *self.waker.write().expect("the waker does not panic") = Some(waker);
    }

    pub(crate) fn wait_pending(&self, timeout: Duration) -> bool {
        let state = self.lock();
        let waited = self.pending.wait_timeout_while(state, timeout, |state| !state.is_pending());
        waited.expect("no thread panics while it holds the log").0.is_pending()
    }

    /// Something else than a frame was refused for lack of room: the writer is to look for some.
    pub(crate) fn ask_for_room(&self) {
        let mut state = self.lock();
        let wakes = !state.is_pending() && !state.is_writer_busy;
        (state.wants_room, state.is_at_rest) = (true, false);
        drop(state);
        if wakes {
            self.announce();
        }
    }

    /// Takes all that was appended, for the writer. What is appended from now on is a batch of its own. `synced_upto`: the log is synced
    /// up to here.
    pub(crate) fn begin(&self, synced_upto: u64) -> Option<Arc<Vec<Run>>> {
        let mut state = self.lock();
        state.wants_room = false;
        state.is_writer_busy = !state.gathering.is_empty();
        if state.gathering.is_empty() {
            return None;
        }
        let mut runs = std::mem::take(&mut state.gathering);
        let mut synced_upto = synced_upto;
        for run in &mut runs {
            let batch = Batch { synced_upto, previous_end: state.previous_end };
            batch.write(&mut run.bytes, run.segment.id, run.start);
            state.previous_end = run.segment.position(run.end()).0;
            // A segment is synced before anything is written to the next one.
            synced_upto = state.previous_end;
        }
        let runs = Arc::new(runs);
        state.writing = Some(runs.clone());
        Some(runs)
    }

    /// What [`begin`](Self::begin) returned last is in the files.
    pub(crate) fn finish(&self) {
        let mut state = self.lock();
        let runs = state.writing.take().expect("a batch was begun");
        state.pending_bytes -= runs.iter().map(|run| run.bytes.len() as u64).sum::<u64>();
    }

    /// A frame that is not in its file yet.
    pub(crate) fn find(&self, place: &Place) -> Option<Vec<u8>> {
        let state = self.lock();
        let writing = state.writing.iter().flat_map(|runs| runs.iter());
        let run = writing.chain(&state.gathering).find(|run| {
            run.segment.id == place.segment
                && run.start <= place.offset
                && place.offset.checked_add(place.len.into()).is_some_and(|end| end <= run.end())
        })?;
        let start = (place.offset - run.start) as usize;
        Some(run.bytes[start..start + place.len as usize].to_vec())
    }

    pub(crate) fn room(&self) -> Room {
        let state = self.lock();
        let extensible = state.tails().find(|tail| tail.reserved < tail.segment.capacity);
        Room { bytes: state.room(), extensible: extensible.map(|tail| (tail.segment.clone(), tail.reserved)) }
    }

    /// The segment is allocated up to `reserved`.
    pub(crate) fn extend(&self, segment: SegmentId, reserved: u64) {
        let mut state = self.lock();
        let state = &mut *state;
        let mut tails = std::iter::once(&mut state.active).chain(&mut state.spares);
        // A segment that was left meanwhile has no use for it any more.
        if let Some(tail) = tails.find(|tail| tail.segment.id == segment) {
            tail.reserved = reserved;
        }
    }

    pub(crate) fn add_spare(&self, tail: Tail) {
        self.lock().spares.push_back(tail);
    }

    /// The file of the active segment is allocated up to here, if this is it.
    pub(crate) fn reserved_of_active(&self, segment: SegmentId) -> Option<u64> {
        let state = self.lock();
        (state.active.segment.id == segment).then_some(state.active.reserved)
    }

    pub(crate) fn rest(&self) {
        self.lock().is_at_rest = true;
    }

    pub(crate) fn is_at_rest(&self) -> bool {
        self.lock().is_at_rest
    }

    pub(crate) fn has_spare(&self) -> bool {
        !self.lock().spares.is_empty()
    }

    /// Leaves the active segment for the spare, where nothing is pending. Returns that one.
    pub(crate) fn leave(&self) -> Option<Arc<Segment>> {
        let mut state = self.lock();
        if !state.gathering.is_empty() || state.writing.is_some() {
            return None;
        }
        state.active = state.spares.pop_front()?;
        Some(state.active.segment.clone())
    }

    /// The active segment is to be allocated no further than `reserved`, where the log is at rest and has not used more. Returns the segment, to be cut there.
    pub(crate) fn shrink(&self, room: u64, least: u64) -> Option<(Arc<Segment>, u64)> {
        let mut state = self.lock();
        let active = &mut state.active;
        let reserved = (active.offset + room).max(least);
        if reserved >= active.reserved {
            return None;
        }
        active.reserved = reserved;
        Some((active.segment.clone(), reserved))
    }

    pub(crate) fn set_disk_full(&self, disk_full: bool) {
        self.lock().disk_full = disk_full;
    }

    pub(crate) fn is_disk_full(&self) -> bool {
        self.lock().disk_full
    }

    pub(crate) fn pending_bytes(&self) -> u64 {
        self.lock().pending_bytes
    }

    pub(crate) fn end(&self) -> Position {
        Position(self.lock().end)
    }

    pub(crate) fn poison(&self) {
        self.poisoned.store(true, Ordering::Release);
    }

    pub(crate) fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }
}
