//! Which bytes of the segments the index refers to, exactly: every change of a register says what it no longer does.

use std::collections::BTreeMap;
use std::sync::Arc;

use dunlin_protocol::register::Register;

use crate::place::{Place, SegmentId};
use crate::segment::Segment;
use crate::sync::RwLock;

/// The open segments.
#[derive(Default)]
pub(crate) struct Segments(RwLock<BTreeMap<SegmentId, Arc<Segment>>>);

impl Segments {
    pub(crate) fn new(segments: BTreeMap<SegmentId, Arc<Segment>>) -> Self {
        Self(RwLock::new(segments))
    }

    pub(crate) fn get(&self, id: SegmentId) -> Option<Arc<Segment>> {
        self.0.read().expect("no thread panics while it holds the segments").get(&id).cloned()
    }

    pub(crate) fn insert(&self, segment: Arc<Segment>) {
        self.0.write().expect("no thread panics while it holds the segments").insert(segment.id, segment);
    }

    pub(crate) fn remove(&self, id: SegmentId) {
        self.0.write().expect("no thread panics while it holds the segments").remove(&id);
    }

    pub(crate) fn all(&self) -> Vec<Arc<Segment>> {
        self.0.read().expect("no thread panics while it holds the segments").values().cloned().collect()
    }

    pub(crate) fn to_map(&self) -> BTreeMap<SegmentId, Arc<Segment>> {
        self.0.read().expect("no thread panics while it holds the segments").clone()
    }

    /// How many bytes of each the index refers to.
    pub(crate) fn live(&self) -> BTreeMap<SegmentId, u64> {
        let segments = self.0.read().expect("no thread panics while it holds the segments");
        segments.iter().map(|(id, segment)| (*id, segment.live())).collect()
    }

    /// A register changed, under its key's lock.
    #[inline]
    pub(crate) fn account(&self, old: &Register<Place>, new: &Register<Place>) {
        changes(old, new, |place, is_added| {
            let segments = self.0.read().expect("no thread panics while it holds the segments");
            // A segment that is missing was reported when the engine was opened.
            let Some(segment) = segments.get(&place.segment) else { return };
            if is_added { segment.add_live(place.len) } else { segment.remove_live(place.len) }
        });
    }
}

/// Calls for each place in a segment that a register has no more, and with true for each that it has anew.
#[inline]
pub(crate) fn changes(old: &Register<Place>, new: &Register<Place>, mut call: impl FnMut(&Place, bool)) {
    let (before, after) = (places(old), places(new));
    if before == after {
        return;
    }
    for place in before.iter().flatten().filter(|place| !after.contains(&Some(**place))) {
        call(place, false);
    }
    for place in after.iter().flatten().filter(|place| !before.contains(&Some(**place))) {
        call(place, true);
    }
}

fn places(register: &Register<Place>) -> [Option<Place>; 2] {
    let record = register.record.map(|held| held.place).filter(|place| !place.is_inline());
    let pending = register.pending.map(|(_, held)| held.place).filter(|place| !place.is_inline());
    [record, pending]
}
