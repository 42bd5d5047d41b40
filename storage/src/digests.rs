//! `Digests`: the leaves of all partitions, and the file that keeps them.
//!
//! Each flush writes them, as they were when its memtable was frozen, to a [blob](crate::store_blob) `tables/<id>.dig` of its own, which its manifest names. Replay
//! goes on from there. Without a whole file they are made of the tables. The contents, little-endian: format version, 1 (4); how many partitions (4); for each its
//! number (2), keyspace (4), number of records (8), a bit for each leaf that is not zero, the lowest for the first one (8), and these leaves (16 each).

use std::sync::Arc;

use dunlin_protocol::register::Register;
use hashbrown::HashTable;

use crate::blob::{self, encode_blob, load_blob};
use crate::digest::{Digest, Leaf, contribution, version};
use crate::disk::{Disk, Wait, write_all};
use crate::error::{Affected, Damage, DamageKind, FileError, OpenError, ReadError};
use crate::frame::Malformed;
use crate::indexed::Indexed;
use crate::memtable::Prefix;
use crate::place::Place;
use crate::replay::Findings;
use crate::table::{Merging, RunCursor, Source, TABLES_DIR, split_key};
use crate::view::Levels;

const VERSION: u32 = 1;

/// A file of digests. Ids are those of tables, which rise and are never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct DigestsId(pub(crate) u64);

impl DigestsId {
    pub(crate) fn file_name(self) -> String {
        format!("{TABLES_DIR}/{:016x}.dig", self.0)
    }

    /// The id of a file in the tables' directory, if it is one of digests.
    pub(crate) fn of_file(name: &str) -> Option<Self> {
        let digits = name.strip_suffix(".dig")?;
        let id = u64::from_str_radix(digits, 16).ok()?;
        (digits.len() == 16 && !digits.starts_with('+')).then_some(Self(id))
    }
}

/// What a partition holds of a keyspace.
#[derive(Clone, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub(crate) struct Leaves {
    /// The exclusive or of all leaves. Beside the count, so that a change reads one line of the cache besides the leaf's.
    pub(crate) root: Digest,
    /// How many registers contribute.
    pub(crate) records: u64,
    pub(crate) leaves: [Digest; Leaf::LEAVES],
}

impl Default for Leaves {
    fn default() -> Self {
        Self { root: Digest::NONE, records: 0, leaves: [Digest::NONE; Leaf::LEAVES] }
    }
}

/// What one takes in memory, roughly.
pub(crate) const LEAVES_LEN: u64 = size_of::<Leaves>() as u64 + 96;

/// Those of the partitions of a shard, or of all. None is empty.
#[derive(Clone, Default)]
pub(crate) struct Digests(HashTable<(Prefix, Arc<Leaves>)>);

/// All of them at one moment, in no order.
pub(crate) type Captured = Vec<(Prefix, Arc<Leaves>)>;

/// Places a partition and keyspace in the table: few bits differ, and all count.
#[inline]
fn place_of(prefix: &Prefix) -> u64 {
    let [a, b, c, d, e, f] = *prefix;
    let mixed = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 32
}

impl Digests {
    fn find(&self, prefix: &Prefix) -> Option<&Arc<Leaves>> {
        self.0.find(place_of(prefix), |(other, _)| other == prefix).map(|(_, leaves)| leaves)
    }

    pub(crate) fn get(&self, prefix: &Prefix) -> Arc<Leaves> {
        self.find(prefix).cloned().unwrap_or_default()
    }

    pub(crate) fn root(&self, prefix: &Prefix) -> Option<Digest> {
        self.find(prefix).map(|leaves| leaves.root)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn capture(&self, to: &mut Captured) {
        to.extend(self.0.iter().cloned());
    }

    pub(crate) fn insert(&mut self, prefix: Prefix, leaves: Arc<Leaves>) {
        self.0.insert_unique(place_of(&prefix), (prefix, leaves), |(prefix, _)| place_of(prefix));
    }

    pub(crate) fn into_iter(self) -> impl Iterator<Item = (Prefix, Arc<Leaves>)> {
        self.0.into_iter()
    }

    /// A register changed, under its key's lock. `hash` and `key` are those of the whole key.
    pub(crate) fn change(&mut self, hash: u64, key: &[u8], old: &Register<Place>, new: &Register<Place>) {
        let (before, after) = (version(old), version(new));
        if before == after {
            return;
        }
        let contributed = |version| contribution(key, version);
        let by = before.map(contributed).unwrap_or_default() ^ after.map(contributed).unwrap_or_default();
        let Some(prefix) = key.first_chunk() else { return };
        let entry = self.0.entry(place_of(prefix), |(other, _)| other == prefix, |(prefix, _)| place_of(prefix));
        let mut entry = entry.or_insert_with(|| (*prefix, Arc::default()));
        let leaves = Arc::make_mut(&mut entry.get_mut().1);
        leaves.leaves[usize::from(Leaf::of_hash(hash).number())] ^= by;
        leaves.root ^= by;
        // Near damage the count may be of records that are not found any more.
        leaves.records = (leaves.records + u64::from(after.is_some())).saturating_sub(before.is_some().into());
        if leaves.records == 0 && leaves.leaves.iter().all(|leaf| *leaf == Digest::NONE) {
            entry.remove();
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, BadContents> {
        let mut rest = bytes;
        let version = word(&mut rest)?;
        if version != VERSION {
            return Err(BadContents::Version(version));
        }
        let mut digests = Self::default();
        for _ in 0..word(&mut rest)? {
            let (partition, keyspace) = (u16::from_le_bytes(take(&mut rest)?), word(&mut rest)?);
            let mut leaves = Leaves { records: u64::from_le_bytes(take(&mut rest)?), ..Leaves::default() };
            let present = u64::from_le_bytes(take(&mut rest)?);
            for (number, leaf) in leaves.leaves.iter_mut().enumerate() {
                if present >> number & 1 > 0 {
                    *leaf = Digest::from_bytes(take(&mut rest)?);
                    leaves.root ^= *leaf;
                }
            }
            let mut prefix = Prefix::default();
            prefix[..2].copy_from_slice(&partition.to_be_bytes());
            prefix[2..].copy_from_slice(&keyspace.to_be_bytes());
            if digests.find(&prefix).is_some() {
                return Err(BadContents::Malformed);
            }
            digests.insert(prefix, Arc::new(leaves));
        }
        if rest.is_empty() { Ok(digests) } else { Err(BadContents::Malformed) }
    }

    /// Those that the file has.
    fn load(disk: &dyn Disk, id: DigestsId) -> Result<Result<Self, Damage>, OpenError> {
        let name = id.file_name();
        let damaged = |kind, expected| Ok(Err(blob::damage(&name, kind, expected, 0)));
        match load_blob(disk, &name) {
            Ok(None) => damaged(DamageKind::MissingFile, 1),
            Err(FileError::Damaged(damage)) => Ok(Err(damage)),
            Err(error) => Err(error.into()),
            Ok(Some(contents)) => match Self::decode(&contents) {
                Ok(digests) => Ok(Ok(digests)),
                Err(BadContents::Version(found)) => Err(OpenError::Version { file: name, found, known: VERSION }),
                Err(BadContents::Malformed) => damaged(DamageKind::Malformed, 0),
            },
        }
    }

    /// Those of what the tables hold: from the file, or from the tables where there is none, it is damaged, or a table is missing.
    pub(crate) fn open(
        disk: &dyn Disk,
        id: Option<DigestsId>,
        levels: &Levels,
        is_every_table_there: bool,
        findings: &mut Findings,
    ) -> Result<Self, OpenError> {
        let loaded = id.map(|id| Self::load(disk, id)).transpose()?;
        match loaded {
            Some(Ok(digests)) if is_every_table_there => return Ok(digests),
            Some(Err(damage)) => findings.add(damage),
            _ => {}
        }
        match Self::of_tables(levels, false, findings) {
            Err(ReadError::Damaged(damage)) => {
                findings.add(damage);
                Ok(Self::of_tables(levels, true, findings)?)
            }
            made => Ok(made?),
        }
    }

    /// `skips_damage`: as far as they can be read.
    fn of_tables(levels: &Levels, skips_damage: bool, findings: &mut Findings) -> Result<Self, ReadError> {
        let mut sources = Vec::new();
        for table in levels.level(0) {
            sources.push(Source::Run(RunCursor::seek([table.clone()].into(), &[], skips_damage, Wait::Allowed)?));
        }
        for tables in levels.0.iter().skip(1) {
            sources.push(Source::Run(RunCursor::seek(tables.clone(), &[], skips_damage, Wait::Allowed)?));
        }
        let mut merging = Merging::new(sources);
        let mut digests = Self::default();
        while let Some(key) = merging.key() {
            match Indexed::decode(merging.body()) {
                Ok(indexed) => {
                    let absent = Register::default();
                    digests.change(crate::table::hash(key), key, &absent, &indexed.register);
                }
                Err(Malformed) => findings.add(Damage {
                    affected: split_key(key).map_or(Affected::Everything, |key| Affected::Partition(key.partition)),
                    ..blob::damage(TABLES_DIR, DamageKind::Malformed, 0, 0)
                }),
            }
            merging.advance()?;
        }
        Ok(digests)
    }
}

/// Writes them to a file of their own, durable but for its name.
pub(crate) fn write(disk: &dyn Disk, id: DigestsId, captured: &Captured) -> std::io::Result<()> {
    let name = id.file_name();
    let file = disk.create(&name)?;
    write_all(&*file, 0, &encode_blob(&name, &encode(captured)))?;
    file.sync()
}

/// Checks a file: the damage that it has, and its length.
pub(crate) fn check(disk: &dyn Disk, id: DigestsId) -> Result<(Option<Damage>, u64), OpenError> {
    let name = id.file_name();
    let len = match disk.open(&name) {
        Ok(file) => file.len().map_err(OpenError::io(&name))?,
        // That is what the next line finds.
        Err(_) => 0,
    };
    Ok((Digests::load(disk, id)?.err(), len))
}

fn encode(captured: &Captured) -> Vec<u8> {
    let mut ordered: Vec<_> = captured.iter().collect();
    ordered.sort_unstable_by_key(|(prefix, _)| *prefix);
    let mut out = Vec::with_capacity(8 + ordered.len() * (22 + 16 * Leaf::LEAVES));
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(ordered.len() as u32).to_le_bytes());
    for ([p0, p1, keyspace @ ..], leaves) in ordered {
        out.extend_from_slice(&u16::from_be_bytes([*p0, *p1]).to_le_bytes());
        out.extend_from_slice(&u32::from_be_bytes(*keyspace).to_le_bytes());
        out.extend_from_slice(&leaves.records.to_le_bytes());
        let present = |at: usize| u64::from(leaves.leaves[at] != Digest::NONE) << at;
        out.extend_from_slice(&(0..Leaf::LEAVES).map(present).sum::<u64>().to_le_bytes());
        for leaf in leaves.leaves.iter().filter(|leaf| **leaf != Digest::NONE) {
            out.extend_from_slice(&leaf.to_bytes());
        }
    }
    out
}

/// Contents that are not understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum BadContents {
    Malformed,
    Version(u32),
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], BadContents> {
    let (taken, rest) = bytes.split_first_chunk().ok_or(BadContents::Malformed)?;
    *bytes = rest;
    Ok(*taken)
}

fn word(bytes: &mut &[u8]) -> Result<u32, BadContents> {
    take(bytes).map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn captured(digests: &Digests) -> Captured {
        let mut captured = Captured::new();
        digests.capture(&mut captured);
        captured.sort_unstable_by_key(|(prefix, _)| *prefix);
        captured
    }

    fn decoded(bytes: &[u8]) -> Result<Captured, BadContents> {
        Digests::decode(bytes).map(|digests| captured(&digests))
    }

    proptest! {
        #[test]
        fn they_survive(entries in prop::collection::btree_map(any::<Prefix>(), (any::<u64>(), prop::collection::vec(any::<u128>(), 64)), 0..5)) {
            let mut digests = Digests::default();
            for (prefix, (mask, numbers)) in entries {
                let mut leaves = Leaves { records: mask, ..Leaves::default() };
                for (at, number) in numbers.iter().enumerate().filter(|(at, _)| mask >> at & 1 > 0) {
                    leaves.leaves[at] = Digest::from_bytes(number.to_le_bytes());
                    leaves.root ^= leaves.leaves[at];
                }
                digests.insert(prefix, Arc::new(leaves));
            }
            let bytes = encode(&captured(&digests));
            prop_assert_eq!(decoded(&bytes), Ok(captured(&digests)));
            for cut in 1..bytes.len().min(50) {
                prop_assert!(Digests::decode(&bytes[..bytes.len() - cut]).is_err());
            }
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), partitions in 0..3u8) {
            let _ = Digests::decode(&bytes);
            let _ = Digests::decode(&[&[1, 0, 0, 0, partitions, 0, 0, 0], &bytes[..]].concat());
        }
    }

    #[test]
    fn the_format_is_what_it_says() {
        let mut leaves = Leaves { records: 3, ..Leaves::default() };
        leaves.leaves[0] = Digest::from_bytes([1; 16]);
        leaves.leaves[63] = Digest::from_bytes([2; 16]);
        leaves.root = Digest::from_bytes([3; 16]);
        let captured = vec![([1, 2, 0, 0, 0, 5], Arc::new(leaves))];
        let bytes = encode(&captured);
        assert_eq!(decoded(&bytes), Ok(captured));
        let parts: [&[u8]; 8] = [
            &[1, 0, 0, 0],
            &[1, 0, 0, 0],
            &[2, 1],
            &[5, 0, 0, 0],
            &[3, 0, 0, 0, 0, 0, 0, 0],
            &[1, 0, 0, 0, 0, 0, 0, 0x80],
            &[1; 16],
            &[2; 16],
        ];
        assert_eq!(bytes, parts.concat());
        assert_eq!(decoded(&[&[2], &bytes[1..]].concat()), Err(BadContents::Version(2)));
        let id = DigestsId(0xab);
        assert_eq!(DigestsId::of_file(id.file_name().strip_prefix("tables/").expect("in its directory")), Some(id));
        assert_eq!(DigestsId::of_file("00000000000000ab.tbl"), None);
    }
}
