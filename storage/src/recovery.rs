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
use crate::digests::{Digests, DigestsId};
use crate::disk::{Disk, DiskFile, read_all, read_into, write_all};
use crate::error::{Affected, Damage, DamageKind, FileError, OpenError, is_disk_full};
use crate::frame::{BATCH_LEN, Batch, HEAD_LEN, seal_end};
use crate::log::Tail;
use crate::manifest::{Listing, MANIFEST, Manifest};
use crate::memtable::Memtable;
use crate::options::Options;
use crate::place::{Position, SEGMENTS_DIR, SegmentId};
use crate::references::Segments;
use crate::replay::{Base, Contents, Findings, Replay, Replayed, highest_synced};
use crate::reserve::remove_reserve;
use crate::room::Next;
use crate::segment::{BadHeader, SEGMENT_HEADER_LEN, SEGMENT_VERSION, Segment, SegmentHeader, ends_with_seal};
use crate::suspects::Suspects;
use crate::table::{TABLES_DIR, Table, TableId, block_cache};
use crate::view::{Levels, View};

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
    pub(crate) segments: Segments,
    pub(crate) manifest: Manifest,
    pub(crate) memtable: Memtable,
    pub(crate) view: View,
    pub(crate) keys: u64,
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
        remove_reserve(disk)?;
        let files = list(disk)?;
        let (table_files, digest_files) = list_tables(disk)?;
        let (mut manifest, is_new) = load_manifest(disk, &files, &table_files, &mut findings)?;
        let view = View { levels: Arc::new(open_tables(disk, &manifest, &mut findings)?), ..View::default() };
        let found = find_segments(disk, &manifest, &mut findings)?;
        let (synced_upto, mut last) = synced_upto(&found, manifest.position)?;
        let highest = files.iter().chain(manifest.segments.keys()).map(|id| id.0 + 1).max().unwrap_or(0);
        let fresh_id = SegmentId(highest.max(manifest.next_segment));
        let base = manifest.segments.values().map(|listing| listing.base + listing.capacity).max().unwrap_or(0);
        let next = Next { base: base.max(manifest.position) };
        let table_ids = table_files.iter().map(|id| id.0).chain(digest_files.iter().map(|id| id.0));
        let highest_table = table_ids.map(|id| id + 1).max().unwrap_or(0);
        manifest.next_table = manifest.next_table.max(highest_table);

        let memtable = Memtable::new(options.shards, options.hot_bytes());
        let is_every_table_there = view.levels.tables().count() == manifest.tables.len();
        memtable.begin_with(Digests::open(disk, manifest.digests, &view.levels, is_every_table_there, &mut findings)?);
        let base = Base {
            options,
            memtable: &memtable,
            view: &view,
            blocks: &block_cache(1 << 20),
            live: manifest.segments.iter().map(|(id, listing)| (*id, listing.live)).collect(),
            staged_upto: BTreeMap::new(),
            keys: manifest.keys,
            position: manifest.position,
        };
        let mut replay = Replay::new(base, &mut findings, synced_upto, fresh_id);
        let mut replayed = BTreeMap::new();
        let mut bytes = Vec::new();
        for (&id, listing) in &manifest.segments {
            if listing.is_behind(manifest.position) {
                continue;
            }
            let Some(Found { listing, file }) = found.get(&id) else {
                // It was reported when it was not found.
                replay.lose_chain();
                continue;
            };
            let limit = found.range(id..).skip(1).map(|(_, later)| later.listing.cut).min().unwrap_or(u64::MAX);
            bytes = match last.take_if(|(last, _)| *last == id) {
                Some((_, bytes)) => bytes,
                None => read_into(&**file, listing.capacity, bytes).map_err(OpenError::io(id.file_name()))?,
            };
            replayed.insert(id, replay.segment(Contents { id, listing: *listing, bytes: &bytes }, limit));
        }
        replay.finish();
        if let Some(error) = replay.unreadable {
            return Err(error.into());
        }
        let (keys, live) = (replay.base.keys, std::mem::take(&mut replay.base.live));
        let staged_upto = std::mem::take(&mut replay.base.staged_upto);
        let live = |id: SegmentId| live.get(&id).copied().unwrap_or(0);
        #[cfg(feature = "canary")]
        memtable.forget_votes();
        let Replay { end, torn_bytes, frames, rewritten, rewritten_frames, .. } = replay;

        for (&id, &expected) in &staged_upto {
            // One that is missing was reported.
            let Some(Found { file, .. }) = found.get(&id) else { continue };
            let len = file.len().map_err(OpenError::io(id.file_name()))?;
            if len < expected {
                let (file, kind, affected) = (id.file_name(), DamageKind::CutShort, Affected::Everything);
                findings.add(Damage { file, offset: len, kind, expected, found: len, affected });
            }
        }
        let cut = end.min(synced_upto);
        // Near damage nothing is taken away.
        let is_whole = findings.count == 0;
        if is_whole {
            make_space(&found, &replayed, rewritten.is_empty())?;
        }
        let fresh = Fresh { id: fresh_id, base: next.base, cut, items: rewritten };
        let (tail, end) = fresh.write(disk, options)?;

        let mut segments = BTreeMap::new();
        for (&id, Found { listing, file }) in &found {
            let written = match replayed.get(&id) {
                Some(Replayed { kept_end, kept, .. }) if *kept > 0 || listing.live > 0 || !is_whole => *kept_end,
                Some(_) => {
                    manifest.segments.remove(&id);
                    continue;
                }
                None => {
                    let len = file.len().map_err(OpenError::io(id.file_name()))?;
                    let end = if listing.end > 0 { listing.end } else { len };
                    end.max(staged_upto.get(&id).copied().unwrap_or(0)).min(len)
                }
            };
            if let Some(listed) = manifest.segments.get_mut(&id).filter(|listed| listed.is_cold && is_whole) {
                listed.end = written;
            }
            if let Some(listed) = manifest.segments.get_mut(&id)
                && replayed.contains_key(&id)
                && is_whole
            {
                listed.end = written;
            }
            let listing = Listing { live: live(id), ..*listing };
            let segment = Segment::new(id, &listing, file.clone(), written);
            // Whichever frames of the log name places in it: all that are there.
            segment.name_at(Position(if listing.is_cold { end } else { 0 }));
            segments.insert(id, Arc::new(segment));
        }
        let Tail { segment, .. } = &tail;
        segment.set_live(live(segment.id));
        let Segment { base, capacity, .. } = **segment;
        let least_len = tail.reserved;
        let listing = Listing { base, capacity, cut, synced_upto: end, least_len, ..Listing::default() };
        manifest.segments.insert(segment.id, listing);
        manifest.next_segment = segment.id.0 + 1;
        for affected in findings.suspects.named().map(Affected::Partition) {
            manifest.suspects.add(affected);
        }
        if findings.suspects.is_all() {
            manifest.suspects.add(Affected::Everything);
        }
        manifest.store(disk)?;

        // From here on the fresh segment counts, and what it replaces is void.
        for id in replayed.keys() {
            let Some(segment) = segments.get(id) else { continue };
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
        let is_listed = |id: &TableId| manifest.tables.iter().any(|(listed, _)| listed == id);
        let unlisted_tables = table_files.iter().filter(|id| !is_listed(id)).map(|id| id.file_name());
        let unlisted_digests = digest_files.iter().filter(|id| manifest.digests != Some(**id)).map(|id| id.file_name());
        for name in unlisted_tables.chain(unlisted_digests) {
            let put_away = match is_whole {
                true => disk.remove(&name),
                false => disk.rename(&name, &format!("{name}.damaged")),
            };
            put_away.map_err(OpenError::io(name))?;
        }

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
        let next = Next { base: tail.segment.base + tail.segment.capacity };
        let segments = Segments::new(segments);
        Ok(Self { segments, manifest, memtable, view, keys, tail, end, next, recovery })
    }
}

/// The segment files that are there.
fn list(disk: &dyn Disk) -> Result<Vec<SegmentId>, OpenError> {
    let names = disk.list(SEGMENTS_DIR).map_err(OpenError::io(SEGMENTS_DIR))?;
    Ok(names.iter().filter_map(|name| SegmentId::of_file(name)).collect())
}

/// The files of tables, and of digests, that are there.
fn list_tables(disk: &dyn Disk) -> Result<(Vec<TableId>, Vec<DigestsId>), OpenError> {
    let names = disk.list(TABLES_DIR).map_err(OpenError::io(TABLES_DIR))?;
    let tables = names.iter().filter_map(|name| TableId::of_file(name));
    Ok((tables.collect(), names.iter().filter_map(|name| DigestsId::of_file(name)).collect()))
}

/// Opens the listed tables. One that is damaged is left out.
fn open_tables(disk: &dyn Disk, manifest: &Manifest, findings: &mut Findings) -> Result<Levels, OpenError> {
    let mut levels = Levels::default();
    for &(id, level) in &manifest.tables {
        match Table::open(disk, id)? {
            Ok((table, damage)) => {
                damage.into_iter().for_each(|damage| findings.add(damage));
                levels.add(level.into(), Arc::new(table));
            }
            Err(damage) => findings.add(damage),
        }
    }
    Ok(levels)
}

/// The manifest, and whether the directory is new. A damaged or missing one is replaced by what the headers of segments and the ends of tables say,
/// with every partition suspect.
fn load_manifest(
    disk: &dyn Disk,
    files: &[SegmentId],
    table_files: &[TableId],
    findings: &mut Findings,
) -> Result<(Manifest, bool), OpenError> {
    let mut damage = match Manifest::load(disk) {
        Ok(Some(Ok(manifest))) => return Ok((manifest, false)),
        Ok(Some(Err(_))) => blob::damage(MANIFEST, DamageKind::Malformed, 0, 0),
        // The manifest is stored before the first segment is made.
        Ok(None) if files.is_empty() && table_files.is_empty() => {
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
                // How much of it is dead was only known to the manifest: it is never collected.
                manifest.segments.insert(id, Listing { live: header.capacity, ..Listing::from(&header) });
            }
            Ok(header) => findings.add(swapped(id, header.id)),
            Err(damage) => findings.add(Damage { affected: Affected::Everything, ..damage }),
        }
    }
    let mut tables = Vec::new();
    for &id in table_files {
        // What is damaged is suspect already, as everything is.
        if let Ok((table, _)) = Table::open(disk, id)? {
            tables.push(table);
        }
    }
    // Inputs of a merge may be there beside its outputs; of two with the same keys the one of the higher position is at least as new.
    tables.sort_by_key(|table| (table.meta().position, table.id()));
    manifest.position = tables.last().map_or(0, |table| table.meta().position);
    manifest.keys = tables.iter().map(|table| table.meta().entries).sum();
    manifest.tables = tables.iter().map(|table| (table.id(), 0)).collect();
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
        let len = file.len().map_err(OpenError::io(id.file_name()))?;
        if listing.is_cut_short(len) && !ends_with_seal(&*file, id, len).map_err(OpenError::io(id.file_name()))? {
            let expected = if listing.end > 0 { listing.end } else { listing.least_len };
            let (file, kind, affected) = (id.file_name(), DamageKind::CutShort, Affected::Everything);
            findings.add(Damage { file, offset: len, kind, expected, found: len, affected });
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

/// A segment's contents, as they were read.
type SegmentBytes = (SegmentId, Vec<u8>);

/// The highest valid `synced_upto`, and what was read to find it. They rise along the log, so the last segment that has a batch has the highest one of
/// all batches.
fn synced_upto(found: &BTreeMap<SegmentId, Found>, position: u64) -> Result<(u64, Option<SegmentBytes>), OpenError> {
    let highest = found.values().map(|segment| segment.listing.synced_upto).max().unwrap_or(0).max(position);
    let after = found.iter().rev().filter(|(_, segment)| !segment.listing.is_behind(position));
    for (&id, Found { listing, file }) in after {
        let bytes = read_all(&**file, listing.capacity).map_err(OpenError::io(id.file_name()))?;
        if let Some(synced_upto) = highest_synced(Contents { id, listing: *listing, bytes: &bytes }) {
            return Ok((highest.max(synced_upto), Some((id, bytes))));
        }
    }
    Ok((highest, None))
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
            // Until the manifest says where the file ends, it has to say so itself. The room is allocated already.
            let sealed_end = end + HEAD_LEN as u64;
            if file.len()? > sealed_end {
                write_all(&**file, end, &seal_end(*id, end))?;
                file.sync()?;
                file.truncate(sealed_end)?;
                file.sync()?;
            }
            Ok(())
        };
        cut().map_err(OpenError::io(id.file_name()))?;
    }
    Ok(())
}

/// The segment in which the log goes on.
struct Fresh {
    id: SegmentId,
    base: u64,
    cut: u64,
    items: Vec<u8>,
}

impl Fresh {
    /// Writes the segment durably. Returns it, and where the log ends.
    fn write(self, disk: &dyn Disk, options: &Options) -> Result<(Tail, u64), OpenError> {
        let Self { id, base, cut, items } = self;
        let len = SEGMENT_HEADER_LEN + if items.is_empty() { 0 } else { BATCH_LEN + items.len() };
        let end = if items.is_empty() { cut } else { base + len as u64 };
        let capacity = options.segment_bytes.max(len as u64);
        let header = SegmentHeader { id, base, capacity, cut, synced_upto: end, is_cold: false };
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
            let first = options.first_allocation().max(len as u64);
            let allocated = match file.preallocate(0, first) {
                Ok(()) => first,
                // The log may have room enough all the same, and opens without.
                Err(error) if is_disk_full(&error) => len as u64,
                Err(error) => return Err(error),
            };
            file.sync()?;
            disk.sync_dir(SEGMENTS_DIR)?;
            Ok((file, allocated))
        };
        let (file, reserved) = write().map_err(OpenError::io(&name))?;
        let offset = len as u64;
        let segment = Arc::new(Segment::new(id, &Listing::from(&header), file, offset));
        Ok((Tail { segment, offset, reserved }, end))
    }
}
