//! `Pin`: what has to be kept so that all keys can be read as they were at one moment.
//!
//! A view (frozen memtables and tables) never changes, so a pin only holds it. The memtable above it does: the first put on a key after the pin's moment
//! first saves what the memtable held for it, copy on write, under the lock of the key's shard. What was not saved is still in the memtable as it was then,
//! or, once that is frozen, in the frozen one, which the pin then holds too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use crate::engine::Engine;
use crate::error::PinError;
use crate::frozen::Frozen;
use crate::memtable::Copied;
use crate::place::{Position, SegmentId};
use crate::segment::Segment;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};
use crate::view::View;

/// So many pins there may be at once: each makes puts a little dearer.
pub(crate) const MAX_PINS: usize = 64;
/// Of so many memtables' size may be what nothing but pins keeps in memory, before there are no more of them.
const MAX_KEPT_MEMTABLES: u64 = 4;
/// What a saved entry takes besides key and body, roughly.
const SAVED_OVERHEAD: usize = 96;

/// What the memtable held for a key; none: nothing, what lies below it counts.
#[derive(Clone)]
pub(crate) struct Saved {
    key: Arc<[u8]>,
    pub(crate) body: Option<(Arc<[u8]>, Position)>,
}

impl Saved {
    pub(crate) fn new(key: &[u8], found: Option<(&[u8], Position)>) -> Self {
        Self { key: key.into(), body: found.map(|(body, position)| (body.into(), position)) }
    }

    fn len_in_memory(&self) -> usize {
        self.key.len() + self.body.as_ref().map_or(0, |(body, _)| body.len()) + SAVED_OVERHEAD
    }
}

/// A moment that is kept.
pub(crate) struct Pin {
    pub(crate) view: Arc<View>,
    /// The log's end.
    pub(crate) position: Position,
    /// Those that there were: files that are removed meanwhile stay readable.
    pub(crate) segments: BTreeMap<SegmentId, Arc<Segment>>,
    /// What was the memtable, once it is frozen.
    frozen: OnceLock<Arc<Frozen>>,
    /// By key. Locked while the key's shard is, or when nothing is saved any more.
    saved: Mutex<BTreeMap<Arc<[u8]>, Saved>>,
    saved_bytes: AtomicU64,
}

impl Pin {
    pub(crate) fn new(view: Arc<View>, position: Position, segments: BTreeMap<SegmentId, Arc<Segment>>) -> Self {
        let (frozen, saved, saved_bytes) = Default::default();
        Self { view, position, segments, frozen, saved, saved_bytes }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<[u8]>, Saved>> {
        self.saved.lock().expect("no thread panics while it holds what is saved")
    }

    /// A key is about to be put, its shard is locked: what it held until now is saved, unless that was done before.
    pub(crate) fn save(&self, key: &[u8], held: impl FnOnce() -> Saved) {
        let mut saved = self.lock();
        if !saved.contains_key(key) {
            let held = held();
            self.saved_bytes.fetch_add(held.len_in_memory() as u64, Ordering::Relaxed);
            saved.insert(held.key.clone(), held);
        }
    }

    /// What was saved of a key; its shard is locked.
    pub(crate) fn saved(&self, key: &[u8]) -> Option<Saved> {
        self.lock().get(key).cloned()
    }

    /// Makes of entries as they are in the memtable, whose shard is locked, entries as they were.
    pub(crate) fn restore(&self, entries: &mut Vec<Copied>) {
        let saved = self.lock();
        if saved.is_empty() {
            return;
        }
        entries.retain_mut(|entry| match saved.get(&*entry.key) {
            None => true,
            Some(Saved { body: None, .. }) => false,
            Some(Saved { body: Some((body, position)), .. }) => {
                entry.body.clear();
                entry.body.extend_from_slice(body);
                entry.position = *position;
                true
            }
        });
    }

    /// The memtable is frozen, all shards are locked: nothing is saved from now on.
    pub(crate) fn freeze(&self, frozen: &Arc<Frozen>) {
        let _ = self.frozen.set(frozen.clone());
    }

    /// What was the memtable; none: it still is. Asked while a shard is locked.
    pub(crate) fn frozen(&self) -> Option<&Arc<Frozen>> {
        self.frozen.get()
    }
}

impl Engine {
    /// Makes a pin of this moment.
    pub(crate) fn make_pin(&self) -> Result<Arc<Pin>, PinError> {
        let mut pins = self.pins.lock().expect("no thread panics while it holds the pins");
        let (kept_bytes, max) = (kept_bytes(&pins, &self.view()), MAX_KEPT_MEMTABLES * self.options.memtable_bytes);
        if pins.len() >= MAX_PINS {
            return Err(PinError::TooMany { max: MAX_PINS });
        }
        if kept_bytes > max {
            return Err(PinError::TooMuchMemory { kept_bytes, max });
        }
        let pin = self.memtable.pin(|| Arc::new(Pin::new(self.view(), self.log.end(), self.segments.to_map())));
        pins.push(pin.clone());
        Ok(pin)
    }

    /// Lets go of a pin, and of all that is kept for it.
    pub(crate) fn remove_pin(&self, pin: &Arc<Pin>) {
        let mut pins = self.pins.lock().expect("no thread panics while it holds the pins");
        pins.retain(|other| !Arc::ptr_eq(other, pin));
        self.memtable.unpin(pin);
    }

    /// How many pins there are, and how much memory nothing but them keeps.
    pub(crate) fn pinned(&self) -> (u64, u64) {
        let pins = self.pins.lock().expect("no thread panics while it holds the pins");
        (pins.len() as u64, kept_bytes(&pins, &self.view()))
    }
}

/// What is saved, and memtables that were flushed, each once.
fn kept_bytes(pins: &[Arc<Pin>], now: &View) -> u64 {
    let saved: u64 = pins.iter().map(|pin| pin.saved_bytes.load(Ordering::Relaxed)).sum();
    let mut counted: BTreeSet<_> = now.frozen.iter().map(Arc::as_ptr).collect();
    let held = pins.iter().flat_map(|pin| pin.frozen().into_iter().chain(&pin.view.frozen));
    let flushed = held.filter(|frozen| counted.insert(Arc::as_ptr(frozen))).map(|frozen| frozen.bytes());
    saved + flushed.sum::<u64>()
}
