//! What P2 found, completed from whatever view shows the same record.

use dunlin_protocol::register::{RecordView, RegisterReply, View};
use dunlin_protocol::{Answer, Ballot, Content, ReplicaSet, Stamp};

/// What P2 found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) current: RecordView,
    pub(super) ballot: Ballot,
    pub(super) has_entry: bool,
    pub(super) stable: bool,
    /// Who showed the current record.
    pub(super) holders: ReplicaSet,
}

/// The highest stamp, reach or ballot that an answer shows.
pub(super) fn highest_stamp(answer: &Answer) -> Stamp {
    match answer {
        Answer::Reply(RegisterReply::View(view) | RegisterReply::Promise(view)) => {
            let pending = view.pending.as_ref().map_or(Ballot::ZERO, |pending| pending.ballot);
            view.highest_stamp().max(view.ballot).max(view.promised).max(pending)
        }
        Answer::Reply(RegisterReply::Reject { max }) => *max,
        Answer::Refused { seen, .. } => *seen,
        _ => Stamp::ZERO,
    }
}

/// Takes from a view what the record lacks, if the view shows that record: one stamp names one record. Tells whether it does.
pub(super) fn complete(record: &mut RecordView, view: &View) -> bool {
    if record.head.tombstone {
        record.content = Some(Content::Tombstone);
    }
    let pending = view.pending.as_ref().map(|pending| &pending.record);
    let mut found = false;
    for same in [Some(&view.record), pending].into_iter().flatten().filter(|r| r.head == record.head) {
        found = true;
        if record.lineage.is_none() {
            record.lineage.clone_from(&same.lineage);
        }
        if record.content.is_none() {
            record.content.clone_from(&same.content);
        }
    }
    found
}
