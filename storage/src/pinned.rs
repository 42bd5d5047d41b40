//! `Pinned`: all keys as they were at one moment.

use std::sync::Arc;

use dunlin_protocol::PartitionId;
use dunlin_protocol::register::Held;

use crate::disk::Wait;
use crate::engine::{Engine, Entry, KeyRef, Stored};
use crate::error::{PinError, ReadError};
use crate::pin::Pin;
use crate::place::{Place, Position};
use crate::scan::{ScanRange, Visited};

/// All keys as they were when [`Engine::pin`] made it, whatever is written, flushed, merged or collected since. It holds the engine, and lets go of all that
/// is kept for it when it is dropped.
///
/// In memory it keeps the memtable of its moment and what was being flushed then, which it shares with other pins, and of each key that was written to since,
/// until the next flush, what the memtable held: never more than that memtable once more. On the disk, files that were merged or collected since keep their room.
pub struct Pinned {
    engine: Arc<Engine>,
    pin: Arc<Pin>,
}

impl Engine {
    /// Pins this moment, without I/O. Cheap; until the next flush each first write to a key copies what it replaces.
    ///
    /// # Errors
    /// There are too many, or they keep too much memory: some have to be dropped first.
    pub fn pin(self: &Arc<Self>) -> Result<Pinned, PinError> {
        Ok(Pinned { pin: self.make_pin()?, engine: self.clone() })
    }
}

impl Pinned {
    /// The end of the log at the moment that was pinned. What is read here may be shown once [`Engine::durable_upto`] has reached it.
    pub fn position(&self) -> Position {
        self.pin.position
    }

    /// As [`Engine::scan`], of the keys that there were. What was forgotten then is not visited, durably forgotten or not.
    pub fn scan(
        &self,
        range: ScanRange<'_>,
        limit: usize,
        visit: &mut dyn FnMut(PartitionId, &[u8], &Entry) -> bool,
    ) -> Result<bool, ReadError> {
        self.scan_with(range, limit, &mut |visited| visit(visited.partition, visited.key, visited.entry))
    }

    /// As [`Engine::scan_with`], of the keys that there were. What was forgotten then is not visited, durably forgotten or not.
    pub fn scan_with(
        &self,
        range: ScanRange<'_>,
        limit: usize,
        visit: &mut dyn FnMut(&Visited<'_>) -> bool,
    ) -> Result<bool, ReadError> {
        self.engine.scan_of(Some(&self.pin), range, limit, Wait::Allowed, visit)
    }

    /// Reads a record that a register of this key held then, checksum verified.
    ///
    /// # Errors
    /// [`ReadError::Superseded`]: it held another one.
    pub fn load(&self, key: KeyRef<'_>, held: &Held<Place>) -> Result<Stored, ReadError> {
        self.engine.load_of(Some(&self.pin), key, held, Wait::Allowed)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.engine.remove_pin(&self.pin);
    }
}
