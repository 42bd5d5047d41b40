//! `Manifest`: which segments make up the log, and which partitions are suspect.
//!
//! Kept as the [blob](crate::store_blob) MANIFEST and replaced as a whole with every change, which is rare (a new segment, a new suspect). An
//! append-only list would be smaller to write, but a damaged last entry of it looks like a torn one: a lost segment would pass for one that was
//! never used. The contents, little-endian: how many segments (4), for each its id, base, capacity, cut and synced_upto (8 each); whether all partitions are
//! suspect (1), how many are by name (4), and these (2 each).

use std::collections::BTreeMap;

use dunlin_protocol::PartitionId;

use crate::blob::{load_blob, replace_blob, write_blob};
use crate::disk::Disk;
use crate::error::{Affected, FileError};
use crate::frame::Malformed;
use crate::place::SegmentId;
use crate::segment::SegmentHeader;
use crate::suspects::Suspects;

pub(crate) const MANIFEST: &str = "MANIFEST";

/// What is known of a segment without its header, which says the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Listing {
    pub(crate) base: u64,
    pub(crate) capacity: u64,
    pub(crate) cut: u64,
    /// The header's, or higher where the engine was closed.
    pub(crate) synced_upto: u64,
}

impl From<&SegmentHeader> for Listing {
    fn from(header: &SegmentHeader) -> Self {
        let SegmentHeader { base, capacity, cut, synced_upto, .. } = *header;
        Self { base, capacity, cut, synced_upto }
    }
}

impl Listing {
    /// Whether positions can be reckoned with it.
    pub(crate) fn is_sound(&self) -> bool {
        self.base < 1 << 62 && self.capacity < 1 << 40
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Manifest {
    pub(crate) segments: BTreeMap<SegmentId, Listing>,
    pub(crate) suspects: Suspects,
}

impl Manifest {
    /// Malformed contents under a valid checksum are the inner error.
    pub(crate) fn load(disk: &dyn Disk) -> Result<Option<Result<Self, Malformed>>, FileError> {
        Ok(load_blob(disk, MANIFEST)?.map(|bytes| Self::decode(&bytes).ok_or(Malformed)))
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

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + 40 * self.segments.len());
        out.extend_from_slice(&(self.segments.len() as u32).to_le_bytes());
        for (id, listing) in &self.segments {
            for field in [id.0, listing.base, listing.capacity, listing.cut, listing.synced_upto] {
                out.extend_from_slice(&field.to_le_bytes());
            }
        }
        out.push(self.suspects.is_all().into());
        out.extend_from_slice(&(self.suspects.named().count() as u32).to_le_bytes());
        for partition in self.suspects.named() {
            out.extend_from_slice(&partition.0.to_le_bytes());
        }
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut manifest = Self::default();
        let (count, mut rest) = bytes.split_first_chunk::<4>()?;
        for _ in 0..u32::from_le_bytes(*count) {
            let fields;
            (fields, rest) = rest.split_first_chunk::<40>()?;
            let field = |i: usize| fields[8 * i..].first_chunk().map(|field| u64::from_le_bytes(*field));
            let listing = Listing { base: field(1)?, capacity: field(2)?, cut: field(3)?, synced_upto: field(4)? };
            if !listing.is_sound() {
                return None;
            }
            manifest.segments.insert(SegmentId(field(0)?), listing);
        }
        let (all, rest) = rest.split_first()?;
        if *all > 0 {
            manifest.suspects.add(Affected::Everything);
        }
        let (count, rest) = rest.split_first_chunk::<4>()?;
        let (partitions, odd) = rest.as_chunks::<2>();
        if !odd.is_empty() || partitions.len() != u32::from_le_bytes(*count) as usize {
            return None;
        }
        manifest.suspects.restore(partitions.iter().map(|p| PartitionId(u16::from_le_bytes(*p))));
        Some(manifest)
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
        let mut manifest = Manifest::default();
        for id in 0..5 {
            let listing = Listing { base: id << 30, capacity: 1 << 26, cut: u64::MAX - id, synced_upto: id };
            manifest.segments.insert(SegmentId(id), listing);
        }
        manifest.suspects.add(Affected::Partition(PartitionId(65535)));
        manifest.suspects.add(Affected::Partition(PartitionId(0)));
        manifest.store(&disk).expect("stores");
        assert_eq!(Manifest::load(&disk).expect("loads"), Some(Ok(manifest.clone())));
        manifest.suspects.add(Affected::Everything);
        manifest.store(&disk).expect("stores");
        assert_eq!(Manifest::load(&disk).expect("loads"), Some(Ok(manifest)));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Manifest::decode(&bytes);
        }
    }
}
