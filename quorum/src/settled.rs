//! What views say about records that are not merely proposed.

use dunlin_protocol::register::{Current, RecordView, View, combine};
use dunlin_protocol::{Ballot, Content, Quorums, Record, RecordHead, Stamp};

/// The current record of views that need not be a quorum, passing over what was accepted and is not known to be chosen: below the majority
/// this is what a read answers, and above it what repair copies (never a pending, PROTOCOL.md 2.6).
///
/// # Panics
/// If there is no view.
pub(crate) fn newest_settled(views: &[(usize, View)], quorums: &Quorums) -> Current {
    let combination = combine(views, quorums);
    if !combination.current.pending || combination.stable {
        return combination.current;
    }
    let records: Vec<_> = views.iter().map(|(r, v)| (*r, View { pending: None, ..v.clone() })).collect();
    combine(&records, quorums).current
}

/// The record of this stamp in a view, as record or as pending.
pub(crate) fn record_at(view: &View, stamp: Stamp) -> Option<&RecordView> {
    let pending = view.pending.as_ref().map(|p| &p.record);
    [Some(&view.record), pending].into_iter().flatten().find(|record| record.head.stamp == stamp)
}

/// The content of the record with this head, if any of the views carries it: one stamp names one record, wherever it is.
pub(crate) fn content_in(views: &[(usize, View)], head: &RecordHead) -> Option<Content> {
    if head.tombstone {
        return Some(Content::Tombstone);
    }
    views.iter().filter_map(|(_, view)| record_at(view, head.stamp)).find_map(|record| record.content.clone())
}

/// The whole of a record, if the views carry it. Plain records have no lineage (PROTOCOL.md 1.1).
pub(crate) fn whole_in(views: &[(usize, View)], current: &Current) -> Option<Record> {
    let found = current.find(views);
    let RecordHead { stamp, op_id, reach, expires_at, .. } = found.head;
    let lineage = if current.ballot.is_zero() { Vec::new() } else { found.lineage.clone()? };
    Some(Record { stamp, op_id, reach, expires_at, lineage, content: content_in(views, &found.head)? })
}

/// Whether an Install of this record would change what the replica with this view holds (PROTOCOL.md 1.3).
pub(crate) fn is_behind(view: &View, ballot: Ballot, head: &RecordHead) -> bool {
    let held = view.record.head.stamp;
    if ballot.is_zero() {
        return !view.is_serial() && held < head.stamp;
    }
    let hides = head.tombstone && view.ballot.is_zero() && held > head.stamp;
    !hides && (view.ballot, held) < (ballot, head.stamp)
}
