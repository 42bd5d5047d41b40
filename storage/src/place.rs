//! Where things lie in the log: on disk, and in the order of appending.

/// A segment file. Ids rise and are never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SegmentId(pub u64);

/// Ids, positions and counts of keys stay below this, so that they can be reckoned with; what says otherwise is damaged.
pub(crate) const LIMIT: u64 = 1 << 62;

/// The directory that holds the segments, relative to the data directory.
pub(crate) const SEGMENTS_DIR: &str = "segments";

impl SegmentId {
    pub(crate) const NONE: Self = Self(u64::MAX);

    /// The file's name, relative to the data directory.
    pub fn file_name(self) -> String {
        format!("{SEGMENTS_DIR}/{:016x}.seg", self.0)
    }

    /// The id of a file in the segments' directory, if it is a segment.
    pub(crate) fn of_file(name: &str) -> Option<Self> {
        let digits = name.strip_suffix(".seg")?;
        let id = u64::from_str_radix(digits, 16).ok()?;
        (digits.len() == 16 && !digits.starts_with('+') && id < LIMIT).then_some(Self(id))
    }
}

/// Where a record lies: handed out by the engine, and opaque to everybody else. A small record lies in the index, beside its register; a larger
/// one in a frame of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Place {
    pub(crate) segment: SegmentId,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

impl Place {
    /// In the index, so many bytes of lineage, attributes and value.
    pub(crate) fn inline(len: usize) -> Self {
        Self { segment: SegmentId::NONE, offset: 0, len: len as u32 }
    }

    pub(crate) fn is_inline(&self) -> bool {
        self.segment == SegmentId::NONE
    }

    /// The segment that has the record's frame; none: it lies in the index.
    pub fn segment(&self) -> Option<SegmentId> {
        (!self.is_inline()).then_some(self.segment)
    }

    /// The offset of the frame in the segment, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The length of the frame, or of what lies in the index, in bytes.
    pub fn frame_len(&self) -> u32 {
        self.len
    }
}

/// A logical position in the log. It rises across segments and restarts.
///
/// Each segment owns as many positions as it has room for bytes: it begins at its base, which its header names, and offset `o` of it is position
/// `base + o`. The next segment's base is the last one's base and capacity together, so that it is known when that segment is made, long before
/// the end of the last one is; the positions between that end and the next base are never used. What a reply was computed from is durable when
/// [`Engine::durable_upto`](crate::Engine::durable_upto) has reached the position just behind its frame.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Position(pub(crate) u64);

impl Position {
    /// Below everything: what was durable already when the engine was opened.
    pub const ZERO: Self = Self(0);

    /// The number, for traces and metrics.
    pub fn get(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids() {
        let id = SegmentId(0xab12);
        let name = id.file_name();
        assert_eq!(name, "segments/000000000000ab12.seg");
        assert_eq!(SegmentId::of_file(name.strip_prefix("segments/").expect("in its directory")), Some(id));
        for other in [
            "",
            "x.seg",
            "12.seg",
            "000000000000ab12",
            "000000000000ab12.seg.tmp",
            "+00000000000ab12.se",
            "+00000000000ab12.seg",
            "ffffffffffffffff.seg",
        ] {
            assert_eq!(SegmentId::of_file(other), None, "{other}");
        }
    }
}
