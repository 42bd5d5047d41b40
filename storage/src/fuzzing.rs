//! What the fuzz targets in `fuzz/` call, and the ordinary tests with inputs of their own: each takes any bytes, and panics where a decoder does, or
//! where what was decoded does not survive being encoded. Checksums are made to fit where that leads on: garbage that they would refuse proves
//! little.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use dunlin_protocol::register::Change;
use dunlin_protocol::{Ballot, Content, KeyspaceId, Millis, PartitionId, Record, Stamp};

use crate::blob::{load_blob, store_blob};
use crate::clock_file::{ClockFile, NAME as CLOCK, SLOT_LEN, SLOT_STEP, Slot};
use crate::disk::MemoryDisk;
use crate::engine::{Engine, KeyRef};
use crate::error::FileError;
use crate::frame::{self, Batch, Frame, HEAD_LEN};
use crate::identity::Identity;
use crate::indexed::Indexed;
use crate::manifest::{MANIFEST, Manifest};
use crate::options::{Options, Sync};
use crate::place::SegmentId;
use crate::scan::ScanRange;
use crate::segment::{SEGMENT_HEADER_LEN, SegmentHeader, checksum as header_checksum};
use crate::table;
use crate::verify::verify;

/// A frame or batch of a segment, and a search for batches.
pub fn frame(bytes: &[u8]) {
    let (segment, offset) = (SegmentId(3), 4096);
    let _ = frame::check(bytes, segment, offset);
    let _ = frame::find_batch(bytes, 0, segment);
    if bytes.len() < HEAD_LEN {
        assert!(Frame::read(bytes).is_err() && Batch::read(bytes).is_err());
        return;
    }
    let mut item = bytes.to_vec();
    // The kinds are made likely.
    item[12] %= 12;
    frame::reseal(&mut item, segment, offset);
    assert!(frame::check(&item, segment, offset).is_ok_and(|head| head.len as usize == item.len()));
    let _ = Batch::read(&item);
    let item = Bytes::from(item);
    let Ok(read) = Frame::read(&item) else { return };
    let tombstone = read.record.is_none_or(|record| record.tombstone);
    let Ok((lineage, content)) = read.body().decode(tombstone, |value| item.slice_ref(value)) else { return };
    if read.elsewhere.is_some() {
        return;
    }
    let record = read.record.map(|head| Record {
        stamp: head.stamp,
        op_id: head.op_id,
        reach: head.reach,
        expires_at: head.expires_at,
        lineage,
        content,
    });
    // What is too long for a frame of ours is refused.
    let Ok(again) = frame::encode(read.key, &read.change, record.as_ref(), read.stored_at) else { return };
    let again = Frame::read(&again.bytes).expect("what was encoded is well formed");
    assert_eq!((again.key, again.change, again.stored_at), (read.key, read.change, read.stored_at));
    assert_eq!(again.record, record.map(|record| record.head()));
}

/// An entry of the index, as memtables and tables have it.
pub fn indexed(bytes: &[u8]) {
    let Ok(indexed) = Indexed::decode(bytes) else { return };
    let mut encoded = Vec::new();
    indexed.encode(&mut encoded);
    let again = Indexed::decode(&encoded).expect("what was encoded is well formed");
    assert_eq!(again.register, indexed.register);
}

/// A table: its parts alone, and whole files, each part mutated under a checksum that fits.
pub fn table(bytes: &[u8]) {
    table::fuzz(bytes);
}

/// The manifest's contents.
pub fn manifest(bytes: &[u8]) {
    if let Some(manifest) = Manifest::decode(bytes) {
        assert_eq!(Manifest::decode(&manifest.encode()), Some(manifest));
    }
}

/// The clock file, of two slots.
pub fn clock(bytes: &[u8]) {
    let disk = MemoryDisk::new();
    disk.insert(CLOCK, bytes);
    let _ = ClockFile::open(&disk);
    let mut file = vec![0; SLOT_STEP as usize + SLOT_LEN];
    for (number, slot) in bytes.chunks_exact(SLOT_LEN).take(2).enumerate() {
        let at = number * SLOT_STEP as usize;
        let to = &mut file[at..at + SLOT_LEN];
        to.copy_from_slice(slot);
        let slot = slot.first_chunk().expect("as long as a slot");
        to[..4].copy_from_slice(&Slot::checksum(slot, number as u64).to_le_bytes());
    }
    disk.insert(CLOCK, &file);
    if let Ok(mut clock) = ClockFile::open(&disk) {
        let (boot, reserved) = (clock.boot(), clock.reserved());
        // Near the end of all numbers that may fail.
        let _ = clock.reserve(Millis(reserved.0.saturating_add(1)));
        match ClockFile::open(&disk) {
            Ok(clock) => assert!(clock.boot() >= boot && clock.reserved() >= reserved),
            Err(error) => assert!(matches!(error, FileError::Io { .. }), "{error}"),
        }
    }
}

/// A small file, and the one that says who the node is.
pub fn blob(bytes: &[u8]) {
    let disk = MemoryDisk::new();
    disk.insert("BLOB", bytes);
    let _ = load_blob(&disk, "BLOB");
    store_blob(&disk, "BLOB", bytes).expect("stores");
    assert_eq!(load_blob(&disk, "BLOB").expect("loads").as_deref(), Some(bytes));
    store_blob(&disk, "IDENTITY", bytes).expect("stores");
    if let Ok(Some(identity)) = Identity::load(&disk) {
        identity.store(&disk).expect("stores");
        assert_eq!(Identity::load(&disk).expect("loads"), Some(identity));
    }
}

/// A segment's header.
pub fn header(bytes: &[u8]) {
    let _ = SegmentHeader::decode(bytes);
    let Some(mut header) = bytes.first_chunk::<SEGMENT_HEADER_LEN>().copied() else { return };
    let magic = SegmentHeader { id: SegmentId(0), base: 0, capacity: 0, cut: 0, synced_upto: 0, is_cold: false };
    header[..12].copy_from_slice(&magic.encode()[..12]);
    let crc = header_checksum(&header);
    header[12..16].copy_from_slice(&crc.to_le_bytes());
    let decoded = SegmentHeader::decode(&header).expect("has a checksum that fits");
    assert_eq!(SegmentHeader::decode(&decoded.encode()), Ok(decoded));
}

const OPTIONS: Options = Options {
    segment_bytes: 4096,
    sync: Sync::Always,
    pending_limit_bytes: 2048,
    disk_reserve_bytes: 512,
    shards: 4,
    stage_bytes: 1 << 10,
    inline_bytes: 100,
    memtable_bytes: 1 << 10,
    table_bytes: 2048,
    cache_bytes: 8192,
    garbage_percent: 25,
};

fn stamp(n: u64) -> Stamp {
    Stamp::new(Millis(n), 0, 7)
}

fn store(engine: &Engine, n: u64) {
    let name = (n % 23).to_be_bytes();
    let key = KeyRef { partition: PartitionId(n as u16 % 3), keyspace: KeyspaceId::DEFAULT, key: &name };
    let record = Record::plain(stamp(n), Content::value(vec![n as u8; (n % 5 * 60) as usize]), Millis::NONE);
    let change = match n % 7 {
        0 => Change::Accept { ballot: stamp(n), promised: stamp(n) },
        _ => Change::Store { ballot: Ballot::ZERO },
    };
    // It may be refused.
    let _ = engine.update(key, Some(&record), Millis(1), |_| ((), Some(change)));
    let _ = engine.write_pending();
}

/// The files of an engine with tables in two levels, cold segments and a log.
fn files() -> &'static [(String, Vec<u8>)] {
    static FILES: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    FILES.get_or_init(|| {
        let disk = MemoryDisk::new();
        let engine = Engine::open(Arc::new(disk.clone()), OPTIONS).expect("opens").0;
        for n in 1..200 {
            store(&engine, n);
            while n % 5 == 0 && n < 190 && engine.maintain(1 << 20).expect("maintains") {}
        }
        let stats = engine.stats();
        assert!(stats.merges > 0 && stats.collected > 0 && stats.tables > 0, "{stats:?}");
        drop(engine);
        disk.names().into_iter().map(|name| (name.clone(), disk.contents(&name).expect("there"))).collect()
    })
}

/// A whole engine over files that were mutated: it opens or says why not, whatever it meets then is an error, and it goes on.
pub fn engine(bytes: &[u8]) {
    let disk = MemoryDisk::new();
    let mut files = files().to_vec();
    let count = files.len();
    for edit in bytes.chunks_exact(6).take(12) {
        let (which, kind) = (usize::from(edit[0]) % count, edit[1]);
        let at = usize::from(u16::from_le_bytes([edit[2], edit[3]]));
        let other = usize::from(edit[4]) % count;
        match kind % 8 {
            0 => files[which].1.truncate(at),
            1 => files[which].1 = files[other].1.clone(),
            2 => files[which].1.clear(),
            3 => {
                // The manifest, under a checksum that fits.
                let manifest = files.iter_mut().find(|(name, _)| name == MANIFEST).expect("there is one");
                let apart = MemoryDisk::new();
                let mut contents = manifest.1.get(16..).unwrap_or_default().to_vec();
                let len = contents.len().max(1);
                if let Some(byte) = contents.get_mut(at % len) {
                    *byte = edit[5];
                }
                store_blob(&apart, MANIFEST, &contents).expect("stores");
                manifest.1 = apart.contents(MANIFEST).expect("just stored");
            }
            _ => {
                let len = files[which].1.len().max(1);
                if let Some(byte) = files[which].1.get_mut(at % len) {
                    *byte = edit[5];
                }
            }
        }
    }
    // A file without a byte is not there.
    files.iter().filter(|(_, bytes)| !bytes.is_empty()).for_each(|(name, bytes)| disk.insert(name, bytes));
    let _ = verify(&disk);
    let Ok((engine, recovery)) = Engine::open(Arc::new(disk.clone()), OPTIONS) else { return };
    let all = ScanRange::all(KeyspaceId::DEFAULT, PartitionId(0), PartitionId(3));
    let look = |engine: &Engine| {
        let _ = engine.scan(all, usize::MAX, &mut |partition, key, _| {
            let _ = engine.get(KeyRef { partition, keyspace: KeyspaceId::DEFAULT, key });
            true
        });
    };
    look(&engine);
    for n in 200..220 {
        store(&engine, n);
        let _ = engine.maintain(500);
    }
    let _ = engine.verify();
    look(&engine);
    drop(engine);
    if let Ok((_, again)) = Engine::open(Arc::new(disk), OPTIONS) {
        // What was suspect once is so until its owner says otherwise.
        assert!(!recovery.suspects.is_all() || again.suspects.is_all());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::place::LIMIT;

    /// Inputs that failed once.
    #[test]
    fn found_before() {
        // Files of other segments in the place of segments: fewer live bytes were counted than died.
        engine(&[
            1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0, 0, 217, 0, 0, 0, 0, 0, 117, 81, 0, 0, 0, 0, 106, 0, 0,
            0, 0, 0, 14, 0, 0, 0, 0, 0, 137, 24, 0, 1, 0, 0,
        ]);
        // The last sequence number that can be read: what was written next could not.
        let mut slot = [0; SLOT_LEN];
        slot[4] = 1;
        slot[8..16].copy_from_slice(&(LIMIT - 1).to_le_bytes());
        clock(&slot);
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for target in [frame, indexed, table, manifest, clock, blob, header] {
                target(&bytes);
            }
        }

        #[test]
        fn mutated_manifests(edits in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..6)) {
            let (_, file) = files().iter().find(|(name, _)| name == MANIFEST).expect("there is one");
            let mut contents = file[16..].to_vec();
            for (at, byte) in edits {
                let at = at.index(contents.len());
                contents[at] = byte;
            }
            manifest(&contents);
        }

        #[test]
        fn mutated_frames_of_a_segment(at: prop::sample::Index, edits in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..6)) {
            let segments: Vec<_> = files().iter().filter(|(name, _)| name.ends_with(".seg")).collect();
            let (_, file) = at.get(&segments);
            let mut start = SEGMENT_HEADER_LEN;
            // A few whole frames, each with the same edits.
            for _ in 0..5 {
                let Some(len) = file.get(start + 8..start + 12) else { break };
                let len = u32::from_le_bytes(len.try_into().expect("four bytes")) as usize;
                let Some(item) = file.get(start..start + len).filter(|_| len >= HEAD_LEN) else { break };
                let mut item = item.to_vec();
                for (at, byte) in &edits {
                    let at = at.index(item.len());
                    item[at] = *byte;
                }
                frame(&item);
                start += len;
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        #[test]
        fn mutated_engines(bytes in prop::collection::vec(any::<u8>(), 0..72)) {
            engine(&bytes);
        }
    }
}
