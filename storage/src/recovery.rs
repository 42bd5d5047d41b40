//! `Recovery`: opening a data directory.
//!
//! The log's live segments are those of the manifest. The highest `synced_upto` in a segment's header or a batch tells what was durable: damage
//! before it is bit rot, and reported; damage at or beyond it is a torn tail, and ends the log. Frames beyond it may have been read from the page
//! cache only: they are written anew to a fresh segment, which is synced and takes their place by the manifest before anything is served. Every
//! opening begins such a segment, also where there is nothing to write anew; segments that then hold nothing are removed.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use crate::blob;
use crate::disk::{Disk, DiskFile, read_all, write_all};
use crate::error::{Affected, Damage, DamageKind, FileError, OpenError};
use crate::frame::{BATCH_LEN, Batch};
use crate::log::Tail;
use crate::manifest::{Listing, MANIFEST, Manifest};
use crate::memtable::Memtable;
use crate::options::Options;
use crate::place::{SEGMENTS_DIR, SegmentId};
use crate::replay::{Contents, Findings, Replay, Replayed, highest_synced};
use crate::room::Next;
use crate::segment::{BadHeader, SEGMENT_HEADER_LEN, SEGMENT_VERSION, Segment, SegmentHeader};
use crate::suspects::Suspects;

/// What opening a data directory found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recovery {
    /// Whether the directory had no log. A node that has an identity and finds no log has lost it.
    pub is_new: bool,
    /// Segments that were read.
    pub segments: u64,
    /// Frames that were replayed.
    pub frames: u64,
    /// Of them, frames of which it was not known that they were durable, and which were written anew.
    pub rewritten_frames: u64,
    /// Bytes behind the log's end that were cut off: a write that was under way when the node stopped, never acknowledged.
    pub torn_bytes: u64,
    /// Bit rot and missing files; at most 1,000 are listed. Those still there are found again at every opening.
    pub damaged: Vec<Damage>,
    /// How many there were.
    pub damage_count: u64,
    /// All suspect partitions, of this opening and of earlier ones.
    pub suspects: Suspects,
}

/// A data directory, opened.
pub(crate) struct Opened {
    pub(crate) segments: BTreeMap<SegmentId, Arc<Segment>>,
    pub(crate) manifest: Manifest,
    pub(crate) memtable: Memtable,
    pub(crate) tail: Tail,
    /// Where the log's last item ends.
    pub(crate) end: u64,
    pub(crate) next: Next,
    pub(crate) recovery: Recovery,
}

/// A listed segment whose file is there.
struct Found {
    listing: Listing,
    file: Arc<dyn DiskFile>,
}

impl Opened {
    pub(crate) fn open(disk: &dyn Disk, options: &Options) -> Result<Self, OpenError> {
        let mut findings = Findings::default();
        let files = list(disk)?;
        let (mut manifest, is_new) = load_manifest(disk, &files, &mut findings)?;
        let found = find_segments(disk, &manifest, &mut findings)?;
        let synced_upto = synced_upto(&found)?;
        let highest = files.iter().chain(manifest.segments.keys()).max();
        let next = Next {
            id: SegmentId(highest.map_or(0, |id| id.0 + 1)),
            base: manifest.segments.values().map(|listing| listing.base + listing.capacity).max().unwrap_or(0),
        };

        let memtable = Memtable::new(options.shards);
        let mut replay = Replay::new(&memtable, &mut findings, synced_upto, next.id);
        let mut replayed = BTreeMap::new();
        for (&id, segment) in &manifest.segments {
            let Some(Found { listing, file }) = found.get(&id) else {
                // It was reported when it was not found.
                replay.lose_chain();
                continue;
            };
            let limit = found.range(id..).skip(1).map(|(_, later)| later.listing.cut).min().unwrap_or(u64::MAX);
            let bytes = read_all(&**file, segment.capacity).map_err(OpenError::io(id.file_name()))?;
            replayed.insert(id, replay.segment(Contents { id, listing: *listing, bytes: &bytes }, limit));
        }
        replay.finish();
        #[cfg(feature = "canary")]
        memtable.forget_votes();
        let Replay { end, torn_bytes, frames, rewritten, rewritten_frames, .. } = replay;
        memtable.drop_forgotten(crate::place::Position::ZERO);

        let cut = end.min(synced_upto);
        // Near damage nothing is taken away.
        let is_whole = findings.count == 0;
        if is_whole {
            make_space(&found, &replayed, rewritten.is_empty())?;
        }
        let fresh = Fresh { next: &next, cut, items: rewritten };
        let (tail, end) = fresh.write(disk, options)?;

        let mut segments = BTreeMap::new();
        for (id, Replayed { kept_end, kept, .. }) in &replayed {
            if *kept == 0 && is_whole {
                manifest.segments.remove(id);
                continue;
            }
            let Found { listing, file } = &found[id];
            segments.insert(*id, Arc::new(Segment::new(*id, listing, file.clone(), *kept_end)));
        }
        let Tail { segment, .. } = &tail;
        let listing = Listing { base: segment.base, capacity: segment.capacity, cut, synced_upto: end };
        manifest.segments.insert(segment.id, listing);
        for affected in findings.suspects.named().map(Affected::Partition) {
            manifest.suspects.add(affected);
        }
        if findings.suspects.is_all() {
            manifest.suspects.add(Affected::Everything);
        }
        manifest.store(disk)?;

        // From here on the fresh segment counts, and what it replaces is void.
        for (id, segment) in &segments {
            let end = segment.written();
            if is_whole {
                segment.file.truncate(end).map_err(OpenError::io(id.file_name()))?;
            }
        }
        let dead = files.iter().filter(|id| !manifest.segments.contains_key(id));
        for id in dead {
            let name = id.file_name();
            let put_away = match is_whole {
                true => disk.remove(&name),
                false => disk.rename(&name, &format!("{name}.damaged")),
            };
            put_away.map_err(OpenError::io(name))?;
        }
        disk.sync_dir(SEGMENTS_DIR).map_err(OpenError::io(SEGMENTS_DIR))?;

        let recovery = Recovery {
            is_new,
            segments: found.len() as u64,
            frames,
            rewritten_frames,
            torn_bytes,
            damaged: findings.damaged,
            damage_count: findings.count,
            suspects: manifest.suspects.clone(),
        };
        segments.insert(tail.segment.id, tail.segment.clone());
        let next = Next { id: SegmentId(next.id.0 + 1), base: tail.segment.base + tail.segment.capacity };
        Ok(Self { segments, manifest, memtable, tail, end, next, recovery })
    }
}

/// The segment files that are there.
fn list(disk: &dyn Disk) -> Result<Vec<SegmentId>, OpenError> {
    let names = disk.list(SEGMENTS_DIR).map_err(OpenError::io(SEGMENTS_DIR))?;
    Ok(names.iter().filter_map(|name| SegmentId::of_file(name)).collect())
}

/// The manifest, and whether the directory is new. A damaged or missing one is replaced by what the segments' headers say, with every partition
/// suspect.
fn load_manifest(disk: &dyn Disk, files: &[SegmentId], findings: &mut Findings) -> Result<(Manifest, bool), OpenError> {
    let mut damage = match Manifest::load(disk) {
        Ok(Some(Ok(manifest))) => return Ok((manifest, false)),
        Ok(Some(Err(_))) => blob::damage(MANIFEST, DamageKind::Malformed, 0, 0),
        // The manifest is stored before the first segment is made.
        Ok(None) if files.is_empty() => {
            let manifest = Manifest::default();
            manifest.store(disk)?;
            return Ok((manifest, true));
        }
        Ok(None) => blob::damage(MANIFEST, DamageKind::MissingFile, 1, 0),
        Err(FileError::Damaged(damage)) => damage,
        Err(error) => return Err(error.into()),
    };
    damage.affected = Affected::Everything;
    findings.add(damage);
    let mut manifest = Manifest::default();
    for &id in files {
        let file = disk.open(&id.file_name()).map_err(OpenError::io(id.file_name()))?;
        match read_header(&*file, id)? {
            Ok(header) if header.id == id && Listing::from(&header).is_sound() => {
                manifest.segments.insert(id, Listing::from(&header));
            }
            Ok(header) => findings.add(swapped(id, header.id)),
            Err(damage) => findings.add(Damage { affected: Affected::Everything, ..damage }),
        }
    }
    Ok((manifest, false))
}

/// Opens the files of the listed segments and checks their headers. The manifest has what counts of them, so a damaged header loses nothing.
fn find_segments(
    disk: &dyn Disk,
    manifest: &Manifest,
    findings: &mut Findings,
) -> Result<BTreeMap<SegmentId, Found>, OpenError> {
    let mut found = BTreeMap::new();
    for (&id, &listing) in &manifest.segments {
        let file = match disk.open(&id.file_name()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (file, kind, affected) = (id.file_name(), DamageKind::MissingFile, Affected::Everything);
                findings.add(Damage { file, offset: 0, kind, expected: 1, found: 0, affected });
                continue;
            }
            Err(error) => return Err(OpenError::io(id.file_name())(error)),
        };
        match read_header(&*file, id)? {
            Ok(header) if header.id == id => {}
            Ok(header) => {
                findings.add(swapped(id, header.id));
                continue;
            }
            Err(damage) => findings.add(damage),
        }
        found.insert(id, Found { listing, file });
    }
    Ok(found)
}

fn read_header(file: &dyn DiskFile, id: SegmentId) -> Result<Result<SegmentHeader, Damage>, OpenError> {
    let bytes = read_all(file, SEGMENT_HEADER_LEN as u64).map_err(OpenError::io(id.file_name()))?;
    match SegmentHeader::decode(&bytes) {
        Ok(header) => Ok(Ok(header)),
        Err(BadHeader::Version(found)) => {
            Err(OpenError::Version { file: id.file_name(), found, known: SEGMENT_VERSION })
        }
        Err(BadHeader::Checksum { expected, found }) => {
            let (kind, affected) = (DamageKind::Checksum, Affected::Nothing);
            let (expected, found) = (expected.into(), found.into());
            Ok(Err(Damage { file: id.file_name(), offset: 0, kind, expected, found, affected }))
        }
    }
}

fn swapped(id: SegmentId, found: SegmentId) -> Damage {
    let (kind, affected) = (DamageKind::SwappedFile, Affected::Everything);
    Damage { file: id.file_name(), offset: 0, kind, expected: id.0, found: found.0, affected }
}

/// The highest valid `synced_upto`. They rise along the log, so the last segment that has a batch has the highest one of all batches.
fn synced_upto(found: &BTreeMap<SegmentId, Found>) -> Result<u64, OpenError> {
    let mut highest = found.values().map(|segment| segment.listing.synced_upto).max().unwrap_or(0);
    for (&id, Found { listing, file }) in found.iter().rev() {
        let bytes = read_all(&**file, listing.capacity).map_err(OpenError::io(id.file_name()))?;
        if let Some(synced_upto) = highest_synced(Contents { id, listing: *listing, bytes: &bytes }) {
            highest = highest.max(synced_upto);
            break;
        }
    }
    Ok(highest)
}

/// Cuts off, durably, what lies behind the log's end: it is void, and must not come back once the log has grown past that position. It also
/// gives back what was allocated ahead, so that a full disk can be opened. What is to be written anew stays until it was.
fn make_space(
    found: &BTreeMap<SegmentId, Found>,
    replayed: &BTreeMap<SegmentId, Replayed>,
    is_kept_all: bool,
) -> Result<(), OpenError> {
    for (id, Replayed { end, kept_end, .. }) in replayed {
        let (file, end) = (&found[id].file, if is_kept_all { *kept_end } else { *end });
        let cut = || {
            if file.len()? > end {
                file.truncate(end)?;
                file.sync()?;
            }
            Ok(())
        };
        cut().map_err(OpenError::io(id.file_name()))?;
    }
    Ok(())
}

/// The segment in which the log goes on.
struct Fresh<'a> {
    next: &'a Next,
    cut: u64,
    items: Vec<u8>,
}

impl Fresh<'_> {
    /// Writes the segment durably. Returns it, and where the log ends.
    fn write(self, disk: &dyn Disk, options: &Options) -> Result<(Tail, u64), OpenError> {
        let Self { next: &Next { id, base }, cut, items } = self;
        let len = SEGMENT_HEADER_LEN + if items.is_empty() { 0 } else { BATCH_LEN + items.len() };
        let end = if items.is_empty() { cut } else { base + len as u64 };
        let capacity = options.segment_bytes.max(len as u64);
        let header = SegmentHeader { id, base, capacity, cut, synced_upto: end };
        let mut bytes = Vec::with_capacity(len);
        bytes.extend_from_slice(&header.encode());
        if !items.is_empty() {
            bytes.resize(SEGMENT_HEADER_LEN + BATCH_LEN, 0);
            let batch = Batch { synced_upto: cut, previous_end: cut };
            batch.write(&mut bytes[SEGMENT_HEADER_LEN..], id, SEGMENT_HEADER_LEN as u64);
            bytes.extend_from_slice(&items);
        }
        let name = id.file_name();
        let write = || {
            let file = disk.create(&name)?;
            write_all(&*file, 0, &bytes)?;
            file.sync()?;
            disk.sync_dir(SEGMENTS_DIR)?;
            Ok(file)
        };
        let file = write().map_err(OpenError::io(&name))?;
        let offset = len as u64;
        let segment = Arc::new(Segment::new(id, &Listing::from(&header), file, offset));
        Ok((Tail { segment, offset, reserved: offset }, end))
    }
}
