//! Making room ahead of the log, so that what is admitted always fits on the disk.

use std::io;
use std::sync::Arc;

use crate::disk::write_all;
use crate::engine::Engine;
use crate::error::{FileError, WriteError, is_disk_full};
use crate::log::Tail;
use crate::manifest::{Listing, Manifest};
use crate::place::{SEGMENTS_DIR, SegmentId};
use crate::segment::{SEGMENT_HEADER_LEN, Segment, SegmentHeader};
use crate::sync::atomic::Ordering;
use crate::writer::Writer;

/// A file is allocated in steps of this, or of a quarter of a segment.
pub(crate) const ALLOCATION_STEP: u64 = 1 << 20;
/// Zeros are written ahead in steps of this, when less than a quarter of it is left.
const ZERO_STEP: usize = 1 << 20;
/// Batches above this are not worth it: writing the zeros would cost as much as they save.
const ZEROS_PAY_BELOW: u64 = 64 << 10;

/// Where the next segment of the log begins.
pub(crate) struct Next {
    pub(crate) base: u64,
}

impl Engine {
    /// Allocates until the room ahead is what the options ask for, and the reserve what upkeep may need, or the disk is full: then the log says so to those
    /// who append.
    pub(crate) fn make_room(&self, writer: &mut Writer) -> Result<(), WriteError> {
        if writer.reserve.is_lent {
            // What is free now is meant for upkeep.
            return Ok(());
        }
        // On a disk that is nearly full each has its share in this order.
        let is_full = !self.make_log_room(writer, self.options.disk_reserve_bytes)?
            || !self.keep_reserve(&mut writer.reserve)?
            || !self.make_log_room(writer, self.room_target())?;
        self.log.set_disk_full(is_full);
        Ok(())
    }

    /// False: the disk is full.
    fn make_log_room(&self, writer: &mut Writer, target: u64) -> Result<bool, WriteError> {
        loop {
            let room = self.log.room();
            if room.bytes >= target {
                return Ok(true);
            }
            let made = match room.extensible {
                Some((segment, reserved)) => self.extend(&segment, reserved),
                None => self.add_spare(writer),
            };
            match made {
                Ok(()) => {}
                Err(Refused::DiskFull) => return Ok(false),
                Err(Refused::Failed(error)) => return Err(error),
            }
        }
    }

    pub(crate) fn room_target(&self) -> u64 {
        if self.log.is_at_rest() { self.options.room_at_rest() } else { self.options.room_target() }
    }

    /// An id is never used twice, also when making the segment fails: what is left of the file is removed when the engine is opened again.
    pub(crate) fn new_segment_id(&self) -> SegmentId {
        SegmentId(self.next_segment.fetch_add(1, Ordering::Relaxed))
    }

    fn extend(&self, segment: &Arc<Segment>, reserved: u64) -> Result<(), Refused> {
        let step = self.options.allocation_step().min(segment.capacity - reserved);
        segment.file.preallocate(reserved, step).map_err(Refused::of(segment.id))?;
        self.log.extend(segment.id, reserved + step);
        Ok(())
    }

    /// Makes the next segment. It is durable, and listed in the manifest, before the log knows of it.
    pub(crate) fn add_spare(&self, writer: &mut Writer) -> Result<(), Refused> {
        let header = SegmentHeader {
            id: self.new_segment_id(),
            base: writer.next.base,
            capacity: self.options.segment_bytes,
            cut: u64::MAX,
            synced_upto: writer.synced,
            is_cold: false,
        };
        let name = header.id.file_name();
        let step = self.options.allocation_step();
        let mut reserved = if self.log.is_disk_full() { step } else { self.options.first_allocation() };
        let mut create = || {
            let file = self.disk.create(&name)?;
            match file.preallocate(0, reserved) {
                Err(error) if is_disk_full(&error) && reserved > step => {
                    reserved = step;
                    file.preallocate(0, reserved)?;
                }
                allocated => allocated?,
            }
            write_all(&*file, 0, &header.encode())?;
            file.sync()?;
            self.disk.sync_dir(SEGMENTS_DIR)?;
            Ok(file)
        };
        let file = create().map_err(Refused::of(header.id)).map_err(|refused| self.clean_up(header.id, refused))?;
        let mut manifest = self.manifest.lock().expect("no thread panics while it holds the manifest");
        let mut changed = manifest.clone();
        changed.segments.insert(header.id, Listing { least_len: reserved, ..Listing::from(&header) });
        writer.note(&mut changed);
        changed.next_segment = self.next_segment.load(Ordering::Relaxed);
        let disk = &*self.disk;
        changed.write(disk).map_err(Refused::of_file).map_err(|refused| self.clean_up(header.id, refused))?;
        Manifest::replace(disk).map_err(|error| Refused::Failed(error.into()))?;
        *manifest = changed;
        drop(manifest);
        writer.cut_left().map_err(Refused::Failed)?;
        writer.next.base += header.capacity;
        let offset = SEGMENT_HEADER_LEN as u64;
        let segment = Arc::new(Segment::new(header.id, &Listing::from(&header), file, offset));
        self.segments.insert(segment.clone());
        self.log.add_spare(Tail { segment, offset, reserved });
        Ok(())
    }

    /// On a full disk, gives back what a segment took that could not be made whole.
    fn clean_up(&self, segment: SegmentId, refused: Refused) -> Refused {
        let Refused::DiskFull = refused else { return refused };
        match self.disk.remove(&segment.file_name()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Refused::of(segment)(error),
            _ => Refused::DiskFull,
        }
    }

    /// Writes zeros ahead of the log where that pays: an append into blocks that were written before needs no change of the file's own
    /// blocks at the sync (60 us instead of 103 us on the reference machine).
    pub(crate) fn write_zeros(
        &self,
        writer: &mut Writer,
        segment: &Segment,
        end: u64,
        batch: u64,
    ) -> Result<(), WriteError> {
        if batch > ZEROS_PAY_BELOW || writer.zeroed > end + ZERO_STEP as u64 / 4 {
            return Ok(());
        }
        let Some(reserved) = self.log.reserved_of_active(segment.id) else { return Ok(()) };
        let from = writer.zeroed.max(end);
        let len = (ZERO_STEP as u64).min(reserved.saturating_sub(from)) as usize;
        if len > 0 {
            write_all(&*segment.file, from, &vec![0; len]).map_err(WriteError::io(segment.id.file_name()))?;
            writer.zeroed = from + len as u64;
        }
        Ok(())
    }
}

pub(crate) enum Refused {
    DiskFull,
    Failed(WriteError),
}

impl Refused {
    fn of(segment: SegmentId) -> impl Fn(io::Error) -> Self {
        move |source| match is_disk_full(&source) {
            true => Self::DiskFull,
            false => Self::Failed(WriteError::Io { file: segment.file_name(), source }),
        }
    }

    fn of_file(error: FileError) -> Self {
        match error.is_disk_full() {
            true => Self::DiskFull,
            false => Self::Failed(error.into()),
        }
    }
}
