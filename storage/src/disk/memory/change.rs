//! What was done to a disk since it was last synced, and what a crash makes of it.

use std::collections::BTreeMap;

/// A crash keeps or loses pieces of a write at this size.
const SECTOR: u64 = 512;

/// A change of a file.
#[derive(Clone)]
pub(super) enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    Resize(u64),
}

/// A change of a directory.
#[derive(Clone)]
pub(super) enum NameChange {
    Link(String, u64),
    Unlink(String),
    Rename(String, String, u64),
}

impl NameChange {
    pub(super) fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            Self::Link(name, file) => {
                names.insert(name.clone(), *file);
            }
            Self::Unlink(name) => {
                names.remove(name);
            }
            Self::Rename(from, to, file) => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
        }
    }
}

impl Change {
    pub(super) fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => write(to, *offset, bytes),
            Self::Resize(len) => to.resize(*len as usize, 0),
        }
    }

    /// Applies it as a crash may have left it: not at all, whole, as far as some byte, or some of its sectors.
    pub(super) fn tear(&self, to: &mut Vec<u8>, random: &mut Random) {
        match (self, random.below(4)) {
            (_, 0) => {}
            (Self::Resize(_), _) | (_, 1) => self.apply(to),
            (Self::Write { offset, bytes }, 2) => {
                let len = random.below(bytes.len() as u64 + 1) as usize;
                write(to, *offset, &bytes[..len]);
            }
            (Self::Write { offset, bytes }, _) => {
                let mut at = 0;
                while at < bytes.len() {
                    let piece = (SECTOR - (offset + at as u64) % SECTOR) as usize;
                    let end = bytes.len().min(at + piece);
                    if random.below(2) == 0 {
                        write(to, offset + at as u64, &bytes[at..end]);
                    }
                    at = end;
                }
            }
        }
    }
}

impl Change {
    /// What is left of it once a later change of the same file is durable.
    pub(super) fn without(self, later: &Self) -> Vec<Self> {
        let end_of = |offset: u64, bytes: &[u8]| offset + bytes.len() as u64;
        match (self, later) {
            (Self::Write { offset, bytes }, Self::Write { offset: from, bytes: over }) => {
                let (start, end) = (offset, end_of(offset, &bytes));
                let (from, upto) = ((*from).clamp(start, end), end_of(*from, over).clamp(start, end));
                let part = |from: u64, upto: u64| Self::Write {
                    offset: from,
                    bytes: bytes[(from - start) as usize..(upto - start) as usize].to_vec(),
                };
                [(start, from), (upto, end)].into_iter().filter(|(a, b)| a < b).map(|(a, b)| part(a, b)).collect()
            }
            (Self::Write { offset, mut bytes }, Self::Resize(len)) => {
                bytes.truncate(usize::try_from(len.saturating_sub(offset)).unwrap_or(usize::MAX));
                vec![Self::Write { offset, bytes }]
            }
            (Self::Resize(len), Self::Write { offset, bytes }) if len >= end_of(*offset, bytes) => {
                vec![Self::Resize(len)]
            }
            (Self::Resize(_), _) => Vec::new(),
        }
    }
}

fn write(to: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + bytes.len());
    if to.len() < end {
        to.resize(end, 0);
    }
    to[start..end].copy_from_slice(bytes);
}

/// SplitMix64 (Steele, Lea, Flood 2014).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}
