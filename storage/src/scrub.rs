//! The scrubber: everything that is not written to any more is read again and again, a little at a time.

use crate::check::Check;
use crate::disk::Wait;
use crate::engine::Engine;
use crate::error::{Damage, OpenError, ReadError};
use crate::place::SegmentId;
use crate::segment::SEGMENT_HEADER_LEN;
use crate::table::BLOCK_LEN;

/// Where the scrubber is in its round. The [`Default`] is the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScrubPlace {
    /// In the tables, from this one's block on; or else in the segments, from this one's offset on.
    is_in_segments: bool,
    id: u64,
    at: u64,
}

impl ScrubPlace {
    /// How long its bytes are.
    pub const LEN: usize = 17;

    /// For the owner to keep: whether in segments (1), file (8), place in it (8), little-endian.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = self.is_in_segments.into();
        bytes[1..9].copy_from_slice(&self.id.to_le_bytes());
        bytes[9..].copy_from_slice(&self.at.to_le_bytes());
        bytes
    }

    /// What [`to_bytes`](Self::to_bytes) gave. Any bytes are a place: one that is not there any more is followed by one that is.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        Self { is_in_segments: bytes[0] > 0, id: long(1), at: long(9) }
    }
}

/// What a step of the scrubber did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Scrubbed {
    /// Bytes that were read.
    pub bytes: u64,
    /// Whether everything was read once since the last time.
    pub ended: bool,
    /// What is damaged: suspect now, durably with the next step of upkeep.
    pub damaged: Vec<Damage>,
}

impl Engine {
    /// The scrubber's step: reads and checks the next part, of about so many bytes, of what is not written to any more. Its owner calls it at the
    /// rate at which everything is to be read once, say, a week.
    ///
    /// # Errors
    /// A file cannot be read; the next step tries the next one.
    pub fn scrub(&self, slice_bytes: u64) -> Result<Scrubbed, OpenError> {
        let mut place = self.scrub.lock().expect("the scrubber does not panic");
        let manifest = self.lock_manifest().clone();
        let mut check = Check::new(&*self.disk, &manifest, manifest.position);
        let mut ended = false;
        let mut scrub = || {
            while check.bytes < slice_bytes && !ended {
                ended = match place.is_in_segments {
                    false => self.scrub_table(&mut check, &mut place)?,
                    true => self.scrub_segment(&mut check, &mut place, slice_bytes)?,
                };
            }
            Ok(())
        };
        let scrubbed = scrub();
        // Also what was found before a file could not be read.
        self.note_suspects(&check.findings.suspects);
        scrubbed.map(|()| Scrubbed { bytes: check.bytes, ended, damaged: check.findings.damaged })
    }

    /// Where the scrubber goes on, for its owner to keep.
    pub fn scrub_place(&self) -> ScrubPlace {
        *self.scrub.lock().expect("the scrubber does not panic")
    }

    /// Lets the scrubber go on where it was when the engine was last open.
    pub fn set_scrub_place(&self, place: ScrubPlace) {
        *self.scrub.lock().expect("the scrubber does not panic") = place;
    }

    fn scrub_table(&self, check: &mut Check<'_>, place: &mut ScrubPlace) -> Result<bool, OpenError> {
        let view = self.view();
        let Some(table) = view.levels.tables().filter(|t| t.id().0 >= place.id).min_by_key(|t| t.id()) else {
            *place = ScrubPlace { is_in_segments: true, ..ScrubPlace::default() };
            return Ok(false);
        };
        let number = if table.id().0 == place.id { usize::try_from(place.at).unwrap_or(usize::MAX) } else { 0 };
        *place = match number.saturating_add(1) < table.blocks() {
            true => ScrubPlace { id: table.id().0, at: number as u64 + 1, ..*place },
            false => ScrubPlace { id: table.id().0 + 1, at: 0, ..*place },
        };
        if number >= table.blocks() {
            return Ok(false);
        }
        match table.read_block(number, Wait::Allowed) {
            Ok(block) => {
                check.bytes += block.bytes().len() as u64;
                Ok(false)
            }
            Err(ReadError::Damaged(damage)) => {
                check.bytes += BLOCK_LEN as u64;
                check.findings.add(damage);
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether that was the last one.
    fn scrub_segment(&self, check: &mut Check<'_>, place: &mut ScrubPlace, slice: u64) -> Result<bool, OpenError> {
        let position = check.manifest.position;
        let mut rest = check.manifest.segments.range(SegmentId(place.id)..);
        let Some((&id, _)) = rest.find(|(_, listing)| listing.is_behind(position)) else {
            *place = ScrubPlace::default();
            return Ok(true);
        };
        let start = if id.0 == place.id { place.at.max(SEGMENT_HEADER_LEN as u64) } else { SEGMENT_HEADER_LEN as u64 };
        // Next time the one behind it, whatever happens here.
        *place = ScrubPlace { id: id.0 + 1, at: 0, ..*place };
        // One that was collected meanwhile is gone.
        let Some(segment) = self.segments.get(id) else { return Ok(false) };
        let end = segment.written();
        let stopped = check.frames(&*segment.file, id, start..end, start.saturating_add(slice))?;
        if stopped < end {
            *place = ScrubPlace { id: id.0, at: stopped, ..*place };
        }
        Ok(false)
    }
}
