//! The reserve of upkeep: room on the disk that is kept for a flush or a merge, so that a full disk can be won back.
//!
//! The file RESERVE is allocated and never written. It is as long as what a flush of all that is in memory may write, with the digests, and a piece of a
//! merge ([`Descent`](crate::descent)). Where upkeep finds the disk full, the file is cut to nothing and upkeep tries again; when that piece of work has ended, whichever way, the
//! file is allocated anew, and until that has succeeded the disk counts as full for everything that does not use the log's own reserve.

use std::io;
use std::sync::Arc;

use crate::disk::{Disk, DiskFile};
use crate::engine::Engine;
use crate::error::{OpenError, WriteError, is_disk_full};
use crate::sync::atomic::Ordering;

const RESERVE: &str = "RESERVE";

/// The file, as far as this process has made it.
#[derive(Default)]
pub(crate) struct Reserve {
    file: Option<Arc<dyn DiskFile>>,
    len: u64,
    /// Upkeep uses the room.
    pub(crate) is_lent: bool,
}

/// Gives back what an earlier process kept: recovery may need it.
pub(crate) fn remove_reserve(disk: &dyn Disk) -> Result<(), OpenError> {
    match disk.remove(RESERVE) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(OpenError::io(RESERVE)(error)),
        _ => Ok(()),
    }
}

impl Engine {
    /// Makes the file as long as it has to be. False: the disk is full.
    pub(crate) fn keep_reserve(&self, reserve: &mut Reserve) -> Result<bool, WriteError> {
        let step = self.options.allocation_step();
        let is_at_rest = self.log.is_at_rest();
        // At rest the room is kept tightly, for that is what the directory is said to take.
        let grain = if is_at_rest { step / 16 } else { step };
        // A new segment and the manifest are needed in any case: without them no old segment goes.
        let piece = self.piece_bytes.load(Ordering::Relaxed).max(step + grain);
        // What may be appended before the writer looks again has to be flushed, too.
        let limit = self.options.pending_limit_bytes;
        let ahead = if is_at_rest { step.min(limit) } else { limit };
        let flush = self.unflushed_bytes() + ahead + self.memtable.digest_bytes();
        let target = (flush + piece).next_multiple_of(grain);
        // While it is written to, the memtable takes again what a flush gave back.
        let slack = if is_at_rest || self.log.is_disk_full() { 0 } else { self.options.memtable_bytes };
        let mut change = || {
            let file = match &reserve.file {
                Some(file) => file,
                None => reserve.file.insert(self.disk.create(RESERVE)?),
            };
            if reserve.len > target + slack {
                file.truncate(target)?;
                reserve.len = target;
            }
            while reserve.len < target {
                let more = step.min(target - reserve.len);
                file.preallocate(reserve.len, more)?;
                reserve.len += more;
            }
            Ok(())
        };
        match change() {
            Ok(()) => Ok(true),
            Err(error) if is_disk_full(&error) => Ok(false),
            Err(error) => Err(WriteError::io(RESERVE)(error)),
        }
    }

    /// Upkeep found the disk full. Whether it has room now that it had not.
    pub(crate) fn lend_reserve(&self) -> Result<bool, WriteError> {
        let reserve = &mut self.writer.lock().expect("no writer panics").reserve;
        let Some(file) = reserve.file.as_ref().filter(|_| reserve.len > 0 && !reserve.is_lent) else {
            return Ok(false);
        };
        file.truncate(0).map_err(WriteError::io(RESERVE)).inspect_err(|_| self.log.poison())?;
        (reserve.len, reserve.is_lent) = (0, true);
        self.log.set_disk_full(true);
        Ok(true)
    }

    /// The piece of work that the reserve was lent to has ended.
    pub(crate) fn end_lending(&self) -> Result<(), WriteError> {
        let mut writer = self.writer.lock().expect("no writer panics");
        if !std::mem::take(&mut writer.reserve.is_lent) || self.log.is_poisoned() {
            return Ok(());
        }
        self.make_room(&mut writer).inspect_err(|_| self.log.poison())
    }
}
