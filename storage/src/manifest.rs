//! `Manifest`: which segments and tables make up the data, from where on the log is replayed, and which partitions are suspect.
//!
//! Kept as the [blob](crate::store_blob) MANIFEST and replaced as a whole with every change, which is rare (a new segment or table, a new suspect). An
//! append-only list would be smaller to write, but a damaged last entry of it looks like a torn one: a lost segment would pass for one that was
//! never used. The contents, little-endian:
//!
//! - 0xffffffff (4), version, 3 (4); the position up to which the tables cover the log (8), how many keys there were at that position (8), the ids of
//!   the next segment and the next table (8 each), and of the file of digests at that position (8; all bits set: there is none);
//! - how many segments (4), for each its id, base, capacity, cut, synced_upto, end, least length and live bytes (8 each), and 1 where it is cold
//!   (1);
//! - how many tables (4), for each its id (8) and level (1), older ones of level 0 before newer ones;
//! - whether all partitions are suspect (1), how many are by name (4), and these (2 each).
//!
//! Version 2 had no file of digests. Version 1 had no tables either: how many segments (4), for each its id, base, capacity, cut and synced_upto (8 each), and the suspects.

use std::collections::BTreeMap;

use dunlin_protocol::PartitionId;

use crate::blob::{load_blob, replace_blob, write_blob};
use crate::digests::DigestsId;
use crate::disk::Disk;
use crate::error::{Affected, FileError};
use crate::frame::Malformed;
use crate::merge::MAX_LEVELS;
use crate::place::{LIMIT, SegmentId};
use crate::segment::SegmentHeader;
use crate::suspects::Suspects;
use crate::table::TableId;

pub(crate) const MANIFEST: &str = "MANIFEST";
/// Where version 1 had its number of segments.
const NO_COUNT: u32 = u32::MAX;
const VERSION: u32 = 3;
/// The first version with a file of digests.
const DIGESTS_VERSION: u32 = 3;
/// In place of that file's id.
const NO_DIGESTS: u64 = u64::MAX;

/// What is known of a segment without its header, which says the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Listing {
    pub(crate) base: u64,
    pub(crate) capacity: u64,
    pub(crate) cut: u64,
    /// The header's, or higher where the engine was closed.
    pub(crate) synced_upto: u64,
    /// The file was cut off here when nothing was to be appended any more; zero: it was not. Of a cold one: it is synced up to here.
    pub(crate) end: u64,
    /// Before that the file is never shorter than this.
    pub(crate) least_len: u64,
    /// Bytes of its frames that tables refer to.
    pub(crate) live: u64,
    /// It is no part of the log: what is left of other segments was moved here.
    pub(crate) is_cold: bool,
}

impl From<&SegmentHeader> for Listing {
    fn from(header: &SegmentHeader) -> Self {
        let SegmentHeader { base, capacity, cut, synced_upto, is_cold, .. } = *header;
        Self { base, capacity, cut, synced_upto, end: 0, least_len: 0, live: 0, is_cold }
    }
}

impl Listing {
    /// Of a segment that is no part of the log.
    pub(crate) fn cold(capacity: u64) -> Self {
        Self { capacity, cut: u64::MAX, is_cold: true, ..Self::default() }
    }

    /// Whether positions can be reckoned with it.
    pub(crate) fn is_sound(&self) -> bool {
        self.base < LIMIT && self.capacity < 1 << 40 && self.live < 1 << 40
    }

    /// Whether a file of this length was cut short. What was cut off behind the first allocation, of frames that no later batch says were synced,
    /// still passes for a torn tail.
    pub(crate) fn is_cut_short(&self, len: u64) -> bool {
        len < if self.end > 0 { self.end } else { self.least_len }
    }

    /// Whether all its frames lie before a position of the log; those of a cold one always do.
    pub(crate) fn is_behind(&self, position: u64) -> bool {
        let end = if self.end > 0 { self.end } else { self.capacity };
        self.is_cold || self.base + end <= position
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Manifest {
    /// Tables cover the log up to here.
    pub(crate) position: u64,
    /// How many keys were held at that position.
    pub(crate) keys: u64,
    /// Ids are never used twice.
    pub(crate) next_segment: u64,
    pub(crate) next_table: u64,
    /// Has the digests at that position.
    pub(crate) digests: Option<DigestsId>,
    /// With their levels; in level 0 older ones come first.
    pub(crate) tables: Vec<(TableId, u8)>,
    pub(crate) segments: BTreeMap<SegmentId, Listing>,
    pub(crate) suspects: Suspects,
}

impl Manifest {
    /// Malformed contents under a valid checksum are the inner error.
    pub(crate) fn load(disk: &dyn Disk) -> Result<Option<Result<Self, Malformed>>, FileError> {
        let Some(bytes) = load_blob(disk, MANIFEST)? else { return Ok(None) };
        let mut fields = Fields(&bytes);
        if let (Some(NO_COUNT), Some(found)) = (fields.word(), fields.word())
            && found > VERSION
        {
            return Err(FileError::Version { file: MANIFEST.to_owned(), found, known: VERSION });
        }
        Ok(Some(Self::decode(&bytes).ok_or(Malformed)))
    }

    pub(crate) fn store(&self, disk: &dyn Disk) -> Result<(), FileError> {
        self.write(disk)?;
        Self::replace(disk)
    }

    /// The first half of a store: an error leaves the old manifest.
    pub(crate) fn write(&self, disk: &dyn Disk) -> Result<(), FileError> {
        write_blob(disk, MANIFEST, &self.encode())
    }

    /// The second half: after an error the old or the new one is there.
    pub(crate) fn replace(disk: &dyn Disk) -> Result<(), FileError> {
        replace_blob(disk, MANIFEST)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + 65 * self.segments.len() + 9 * self.tables.len());
        out.extend_from_slice(&NO_COUNT.to_le_bytes());
        out.extend_from_slice(&VERSION.to_le_bytes());
        let digests = self.digests.map_or(NO_DIGESTS, |id| id.0);
        for number in [self.position, self.keys, self.next_segment, self.next_table, digests] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&(self.segments.len() as u32).to_le_bytes());
        for (id, l) in &self.segments {
            for field in [id.0, l.base, l.capacity, l.cut, l.synced_upto, l.end, l.least_len, l.live] {
                out.extend_from_slice(&field.to_le_bytes());
            }
            out.push(l.is_cold.into());
        }
        out.extend_from_slice(&(self.tables.len() as u32).to_le_bytes());
        for (id, level) in &self.tables {
            out.extend_from_slice(&id.0.to_le_bytes());
            out.push(*level);
        }
        out.push(self.suspects.is_all().into());
        out.extend_from_slice(&(self.suspects.named().count() as u32).to_le_bytes());
        for partition in self.suspects.named() {
            out.extend_from_slice(&partition.0.to_le_bytes());
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut manifest = Self::default();
        let mut fields = Fields(bytes);
        let mut count = fields.word()?;
        let is_first_version = count != NO_COUNT;
        if !is_first_version {
            let version = fields.word()?;
            if !(2..=VERSION).contains(&version) {
                return None;
            }
            (manifest.position, manifest.keys) = (fields.long()?, fields.long()?);
            (manifest.next_segment, manifest.next_table) = (fields.long()?, fields.long()?);
            if version >= DIGESTS_VERSION {
                manifest.digests = Some(fields.long()?).filter(|id| *id != NO_DIGESTS).map(DigestsId);
            }
            count = fields.word()?;
            let numbers = [manifest.position, manifest.keys, manifest.next_segment, manifest.next_table];
            if numbers.iter().any(|number| *number >= LIMIT) {
                return None;
            }
        }
        for _ in 0..count {
            let id = SegmentId(fields.long()?);
            let (base, capacity, cut, synced_upto) = (fields.long()?, fields.long()?, fields.long()?, fields.long()?);
            let mut listing = Listing { base, capacity, cut, synced_upto, ..Listing::default() };
            if !is_first_version {
                (listing.end, listing.least_len, listing.live) = (fields.long()?, fields.long()?, fields.long()?);
                listing.is_cold = fields.byte()? > 0;
            }
            if !listing.is_sound() || id.0 >= LIMIT {
                return None;
            }
            manifest.segments.insert(id, listing);
        }
        if !is_first_version {
            for _ in 0..fields.word()? {
                let (id, level) = (TableId(fields.long()?), fields.byte()?);
                if id.0 >= LIMIT || usize::from(level) >= MAX_LEVELS {
                    return None;
                }
                manifest.tables.push((id, level));
            }
        }
        if fields.byte()? > 0 {
            manifest.suspects.add(Affected::Everything);
        }
        let count = fields.word()?;
        let (partitions, odd) = fields.0.as_chunks::<2>();
        if !odd.is_empty() || partitions.len() != count as usize {
            return None;
        }
        manifest.suspects.restore(partitions.iter().map(|p| PartitionId(u16::from_le_bytes(*p))));
        Some(manifest)
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn word(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn long(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;
    use proptest::prelude::*;

    #[test]
    fn it_survives() {
        let disk = MemoryDisk::new();
        assert_eq!(Manifest::load(&disk).expect("loads"), None);
        let mut manifest =
            Manifest { position: 1 << 40, keys: 7, next_segment: 8, next_table: 99, ..Manifest::default() };
        manifest.digests = Some(DigestsId(98));
        for id in 0..5 {
            let listing = Listing {
                base: id << 30,
                capacity: 1 << 26,
                cut: u64::MAX - id,
                synced_upto: id,
                end: 5 * id,
                least_len: 3,
                live: 100 + id,
                is_cold: id == 3,
            };
            manifest.segments.insert(SegmentId(id), listing);
            manifest.tables.push((TableId(10 - id), id as u8));
        }
        manifest.suspects.add(Affected::Partition(PartitionId(65535)));
        manifest.suspects.add(Affected::Partition(PartitionId(0)));
        manifest.store(&disk).expect("stores");
        assert_eq!(Manifest::load(&disk).expect("loads"), Some(Ok(manifest.clone())));
        manifest.suspects.add(Affected::Everything);
        manifest.store(&disk).expect("stores");
        assert_eq!(Manifest::load(&disk).expect("loads"), Some(Ok(manifest)));
    }

    #[test]
    fn version_2_has_no_digests_and_a_newer_version_is_told_from_damage() {
        let mut manifest = Manifest { position: 5, keys: 7, next_segment: 8, next_table: 9, ..Manifest::default() };
        manifest.tables.push((TableId(3), 1));
        let bytes = manifest.encode();
        let version_2 = [&bytes[..4], &2u32.to_le_bytes(), &bytes[8..40], &bytes[48..]].concat();
        assert_eq!(Manifest::decode(&version_2), Some(manifest));
        let disk = MemoryDisk::new();
        let newer = [&bytes[..4], &4u32.to_le_bytes(), &bytes[8..]].concat();
        crate::store_blob(&disk, MANIFEST, &newer).expect("stores");
        let refused = Manifest::load(&disk);
        assert!(matches!(refused, Err(FileError::Version { found: 4, known: 3, .. })), "{refused:?}");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Manifest::decode(&bytes);
        }
    }
}
