//! Small files that are replaced as a whole.
//!
//! The format, little-endian:
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | `DUNLBLOB` |
//! | 8..12 | format version, 1 |
//! | 12..16 | CRC-32 of the file's name, bytes 0..12, and the contents |
//! | 16.. | contents |
//!
//! A file is replaced by writing another one beside it, syncing it, giving it the name, and syncing the directory: at any time the old or the
//! new contents are there, whole. So a checksum that does not fit is never a crash's doing.

use std::io;

use crate::disk::{Disk, read_all, write_all};
use crate::error::{Affected, Damage, DamageKind, FileError};

const MAGIC: &[u8; 8] = b"DUNLBLOB";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 16;
const MAX_LEN: u64 = 1 << 30;

/// Stores a small file durably, in place of what had the name before. Two stores of one name must not run at once.
///
/// # Errors
/// Then the old contents, or the new ones, are there.
pub fn store_blob(disk: &dyn Disk, name: &str, contents: &[u8]) -> Result<(), FileError> {
    write_blob(disk, name, contents)?;
    replace_blob(disk, name)
}

/// The first half of a store: an error leaves the old contents.
pub(crate) fn write_blob(disk: &dyn Disk, name: &str, contents: &[u8]) -> Result<(), FileError> {
    let temporary = temporary(name);
    let bytes = encode_blob(name, contents);
    let write = || {
        let file = disk.create(&temporary)?;
        write_all(&*file, 0, &bytes)?;
        file.sync()
    };
    write().map_err(FileError::io(&temporary))
}

/// The bytes of a file of this name.
pub(crate) fn encode_blob(name: &str, contents: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + contents.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&checksum(name, &bytes, contents).to_le_bytes());
    bytes.extend_from_slice(contents);
    bytes
}

/// The second half: what was written takes the name.
pub(crate) fn replace_blob(disk: &dyn Disk, name: &str) -> Result<(), FileError> {
    let replace = || {
        disk.rename(&temporary(name), name)?;
        disk.sync_dir(name.rsplit_once('/').map_or("", |(dir, _)| dir))
    };
    replace().map_err(FileError::io(name))
}

fn temporary(name: &str) -> String {
    format!("{name}.tmp")
}

/// Loads what [`store_blob`] stored; none where there is no such file.
///
/// # Errors
/// [`FileError::Damaged`] where the checksum does not fit.
pub fn load_blob(disk: &dyn Disk, name: &str) -> Result<Option<Vec<u8>>, FileError> {
    let file = match disk.open(name) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::io(name)(error)),
    };
    let mut bytes = read_all(&*file, MAX_LEN).map_err(FileError::io(name))?;
    if bytes.len() < HEADER_LEN {
        return Err(FileError::Damaged(damage(name, DamageKind::Missing, HEADER_LEN as u64, bytes.len() as u64)));
    }
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (version, found) = (word(8), word(12));
    let expected = checksum(name, &bytes[..12], &bytes[HEADER_LEN..]);
    if expected != found {
        return Err(FileError::Damaged(damage(name, DamageKind::Checksum, expected.into(), found.into())));
    }
    if &bytes[..8] != MAGIC {
        return Err(FileError::Damaged(damage(name, DamageKind::Malformed, expected.into(), found.into())));
    }
    if version != VERSION {
        return Err(FileError::Version { file: name.to_owned(), found: version, known: VERSION });
    }
    bytes.drain(..HEADER_LEN);
    Ok(Some(bytes))
}

/// Damage of a whole small file.
pub(crate) fn damage(name: &str, kind: DamageKind, expected: u64, found: u64) -> Damage {
    Damage { file: name.to_owned(), offset: 0, kind, expected, found, affected: Affected::Nothing }
}

fn checksum(name: &str, header: &[u8], contents: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(name.as_bytes());
    hasher.update(header);
    hasher.update(contents);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;

    #[test]
    fn what_is_stored_is_loaded() {
        let disk = MemoryDisk::new();
        assert_eq!(load_blob(&disk, "TOPOLOGY").expect("loads"), None);
        for contents in [&b"one"[..], b"", &[7; 10_000]] {
            store_blob(&disk, "TOPOLOGY", contents).expect("stores");
            assert_eq!(load_blob(&disk, "TOPOLOGY").expect("loads").as_deref(), Some(contents));
        }
        assert_eq!(disk.list("").expect("lists"), ["TOPOLOGY"]);
    }

    #[test]
    fn any_flipped_bit_any_cut_and_any_other_name_is_seen() {
        let disk = MemoryDisk::new();
        store_blob(&disk, "A", b"some contents").expect("stores");
        let whole = disk.contents("A").expect("there");
        for bit in 0..whole.len() as u64 * 8 {
            disk.flip_bit("A", bit);
            assert!(matches!(load_blob(&disk, "A"), Err(FileError::Damaged(_))), "bit {bit}");
            disk.flip_bit("A", bit);
        }
        for len in 0..whole.len() {
            disk.insert("A", &whole[..len]);
            assert!(matches!(load_blob(&disk, "A"), Err(FileError::Damaged(_))), "cut at {len}");
        }
        disk.insert("B", &whole);
        assert!(matches!(load_blob(&disk, "B"), Err(FileError::Damaged(_))));
    }

    #[test]
    fn a_crash_leaves_old_or_new() {
        for stop in 1..8 {
            for seed in 0..20 {
                let disk = MemoryDisk::new();
                store_blob(&disk, "A", b"old").expect("stores");
                disk.stop_at(disk.operations() + stop);
                let stored = store_blob(&disk, "A", b"new").is_ok();
                disk.crash(seed);
                let found = load_blob(&disk, "A").expect("loads").expect("there");
                assert!(found == b"new" || (found == b"old" && !stored), "stop {stop}, seed {seed}: {found:?}");
            }
        }
    }
}
