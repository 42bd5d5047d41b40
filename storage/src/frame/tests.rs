use dunlin_protocol::{Ballot, Record};
use proptest::prelude::*;

use super::*;

const SEGMENT: SegmentId = SegmentId(9);

fn encoded(key: KeyRef<'_>, change: &Change, record: Option<&Record>, offset: u64) -> Vec<u8> {
    let mut item = encode(key, change, record, Millis(77)).expect("not too large").bytes;
    set_place(&mut item, SEGMENT, offset);
    item
}

fn key(bytes: &[u8]) -> KeyRef<'_> {
    KeyRef { partition: PartitionId(513), keyspace: KeyspaceId(70_000), key: bytes }
}

fn stamp() -> impl Strategy<Value = Stamp> {
    prop_oneof![Just(Stamp::ZERO), Just(Stamp::MAX), any::<u128>().prop_map(Stamp::from_bits)]
}

fn content() -> impl Strategy<Value = Content> {
    let attributes = prop::collection::vec((".{0,9}", ".{0,9}"), 0..4).prop_map(Attributes);
    let value = (prop::collection::vec(any::<u8>(), 0..300), attributes)
        .prop_map(|(bytes, attributes)| Content::Value(bytes.into(), attributes));
    prop_oneof![1 => Just(Content::Tombstone), 4 => value]
}

prop_compose! {
    fn record()(
        parts in (stamp(), stamp(), stamp(), any::<u64>()),
        is_plain in any::<bool>(),
        lineage in prop::collection::vec((stamp(), stamp()), 0..5),
        content in content(),
    ) -> Record {
        let (stamp, op_id, reach, expires_at) = parts;
        if is_plain {
            return Record::plain(stamp, content, Millis::NONE);
        }
        let lineage = lineage.into_iter().map(|(op_id, stamp)| Ancestor { op_id, stamp }).collect();
        Record { stamp, op_id, reach, expires_at: Millis(expires_at), lineage, content }
    }
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        stamp().prop_map(|ballot| Change::Promise { ballot }),
        (stamp(), stamp()).prop_map(|(ballot, promised)| Change::Accept { ballot, promised }),
        stamp().prop_map(|ballot| Change::Store { ballot }),
        stamp().prop_map(|ballot| Change::Commit { ballot }),
        Just(Change::Forget),
        Just(Change::Purge),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        bytes in prop::collection::vec(any::<u8>(), 1..50),
        change in change(),
        record in record(),
        offset in any::<u64>(),
        behind in prop::collection::vec(any::<u8>(), 0..50),
    ) {
        let item = encoded(key(&bytes), &change, Some(&record), offset);
        let mut stream = item.clone();
        stream.extend(behind);
        let head = check(&stream, SEGMENT, offset).expect("checks");
        prop_assert_eq!(head.len as usize, item.len());
        let item = Bytes::from(item);
        let frame = Frame::read(&item).expect("well formed");
        prop_assert_eq!((frame.key, frame.change, frame.stored_at), (key(&bytes), change, Millis(77)));
        match change.takes_record() {
            false => prop_assert!(frame.record.is_none() && frame.body().bytes.is_empty()),
            true => {
                prop_assert_eq!(frame.record, Some(record.head()));
                prop_assert_eq!(frame.body().decode(frame.record.is_none_or(|record| record.tombstone), |value| item.slice_ref(value)).expect("well formed"), (record.lineage, record.content));
            }
        }
    }

    #[test]
    fn any_flipped_bit_is_seen(record in record(), bit in any::<prop::sample::Index>()) {
        let mut item = encoded(key(b"key"), &Change::Store { ballot: Ballot::ZERO }, Some(&record), 4096);
        let bit = bit.index(item.len() * 8);
        item[bit / 8] ^= 1 << (bit % 8);
        let bad = check(&item, SEGMENT, 4096).expect_err("damaged");
        // Behind the head, and in the checksum of the whole, damage leaves it known whose the frame was.
        prop_assert_eq!(bad.head.map(|h| h.partition), (!(32..192).contains(&bit)).then_some(PartitionId(513)));
    }

    #[test]
    fn garbage_never_panics(mut item in prop::collection::vec(any::<u8>(), 0..300), offset in any::<u64>()) {
        let _ = check(&item, SEGMENT, offset);
        let _ = find_batch(&item, 0, SEGMENT);
        let _ = Batch::read(&item);
        if item.len() < HEAD_LEN {
            prop_assert!(Frame::read(&item).is_err());
            return Ok(());
        }
        // Also what a valid checksum covers may be garbage. The kinds are made likely.
        item[12] %= 12;
        item[15] = 0;
        let item = Bytes::from(item);
        if let Ok(frame) = Frame::read(&item) {
            let _ = frame.body().decode(frame.record.is_none_or(|record| record.tombstone), |value| item.slice_ref(value));
        }
    }

    #[test]
    fn cut_frames_never_panic(record in record(), cut in any::<prop::sample::Index>()) {
        let item = encoded(key(b"key"), &Change::Store { ballot: Ballot::ZERO }, Some(&record), 0);
        let cut = &item[..cut.index(item.len())];
        prop_assert!(check(cut, SEGMENT, 0).is_err());
        let cut = Bytes::copy_from_slice(cut);
        if let Ok(frame) = Frame::read(&cut) {
            let _ = frame.body().decode(frame.record.is_none_or(|record| record.tombstone), |value| cut.slice_ref(value));
        }
    }
}

#[test]
fn a_frame_counts_only_where_it_was_written() {
    let mut item = encoded(key(b"key"), &Change::Purge, None, 640);
    assert!(check(&item, SEGMENT, 640).is_ok());
    assert!(check(&item, SEGMENT, 641).is_err());
    assert!(check(&item, SegmentId(10), 640).is_err());
    change_place(&mut item, (SEGMENT, 640), (SegmentId(10), 64));
    assert!(check(&item, SEGMENT, 640).is_err());
    assert!(check(&item, SegmentId(10), 64).is_ok());
    assert!(check(&[0; 4096], SEGMENT, 0).is_err());
}

/// The format is for ever: kind, flags and length of one frame of each kind.
#[test]
fn the_format_stays() {
    let value = Record::plain(Stamp::from_bits(5), Content::value("hello"), Millis::NONE);
    let tombstone = Record { content: Content::Tombstone, ..value.clone() };
    let full = Record {
        op_id: Stamp::from_bits(4),
        reach: Stamp::from_bits(3),
        expires_at: Millis(9),
        lineage: vec![Ancestor { op_id: Stamp::from_bits(2), stamp: Stamp::from_bits(1) }],
        content: Content::Value("hello".into(), Attributes(vec![("a".into(), "bc".into())])),
        ..value.clone()
    };
    let (ballot, promised) = (Stamp::from_bits(7), Stamp::from_bits(8));
    let check = |change: Change, record: Option<&Record>, expected: (u8, u16, usize)| {
        let item = encoded(key(b"key"), &change, record, 64);
        assert_eq!((item[12], read_u16(&item, 14), item.len()), expected, "{change:?}");
    };
    let plain = Change::Store { ballot: Ballot::ZERO };
    check(plain, Some(&value), (2, 0, 24 + 8 + 16 + 3 + 5));
    check(plain, Some(&tombstone), (3, 0b1, 24 + 8 + 16 + 3));
    check(Change::Store { ballot }, Some(&value), (2, 0b10, 24 + 8 + 32 + 3 + 5));
    check(plain, Some(&full), (2, 0b1111_1000, 24 + 8 + 48 + 8 + 3 + 34 + 9 + 5));
    check(Change::Promise { ballot }, None, (4, 0b10, 24 + 8 + 16 + 3));
    check(Change::Accept { ballot, promised: ballot }, Some(&value), (5, 0b10, 24 + 8 + 32 + 3 + 5));
    check(Change::Accept { ballot, promised }, Some(&tombstone), (5, 0b111, 24 + 8 + 48 + 3));
    check(Change::Commit { ballot }, None, (6, 0b10, 24 + 8 + 16 + 3));
    check(Change::Forget, None, (7, 0, 24 + 8 + 3));
    check(Change::Purge, None, (10, 0, 24 + 8 + 3));
    let item = encoded(key(b"key"), &plain, Some(&value), 64);
    let golden = crc32fast::hash(&item);
    assert_eq!(golden, GOLDEN, "{golden:#x}: the bytes of a frame have changed");
}

const GOLDEN: u32 = 0xaa55_6401;

#[test]
fn batches_are_found_behind_damage() {
    let mut segment = vec![0; 5000];
    let batch = Batch { synced_upto: 12, previous_end: 34 };
    for at in [64, 1000, 3000] {
        batch.write(&mut segment[at..], SEGMENT, at as u64);
    }
    for (from, found) in [(0, Some(64)), (64, Some(64)), (65, Some(1000)), (1001, Some(3000)), (3001, None)] {
        assert_eq!(find_batch(&segment, from, SEGMENT), found);
    }
    assert_eq!(Batch::read(&segment[64..64 + BATCH_LEN]), Ok(batch));
    segment[1030] ^= 1;
    assert_eq!(find_batch(&segment, 65, SEGMENT), Some(3000));
    assert_eq!(find_batch(&segment, 0, SegmentId(1)), None);
    let bad = check(&segment[1000..], SEGMENT, 1000).expect_err("damaged");
    assert!(bad.head.is_some_and(|head| head.is_batch()));
}
