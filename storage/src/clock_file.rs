//! `ClockFile`: the marks that a node must not fall behind.

use std::io;
use std::sync::Arc;

use dunlin_protocol::{BootNumber, Millis};

use crate::disk::{Disk, DiskFile, read_all, write_all};
use crate::error::{Affected, Damage, DamageKind, FileError};
use crate::place::LIMIT;

pub(crate) const NAME: &str = "CLOCK";
const TEMPORARY: &str = "CLOCK.tmp";
/// A slot lies at the start of each of the first two blocks, so that no write can tear both:
/// CRC-32 over the slot's number and all that follows 4, format version 4, sequence 8, reserve 8, boot number 8; little-endian.
pub(crate) const SLOT_LEN: usize = 32;
pub(crate) const SLOT_STEP: u64 = 4096;
const VERSION: u32 = 1;

/// The reserve of the hybrid clock and the boot number, durable ahead of their use (PROTOCOL.md 2.7).
///
/// Kept in the file CLOCK in two slots that are written in turn; the one of the higher sequence number counts. A write that a crash tore leaves
/// the other slot, which holds the marks as they were last acknowledged.
pub struct ClockFile {
    file: Arc<dyn DiskFile>,
    sequence: u64,
    reserve: Millis,
    boot: BootNumber,
    failed: bool,
    damaged: Option<Damage>,
}

#[derive(Clone, Copy)]
pub(crate) struct Slot {
    sequence: u64,
    reserve: Millis,
    boot: BootNumber,
}

impl ClockFile {
    /// Opens the file, makes it where there is none, and raises the boot number durably.
    ///
    /// # Errors
    /// [`FileError::Damaged`] when both slots are: the marks are lost, and never taken to be 0.
    pub fn open(disk: &dyn Disk) -> Result<Self, FileError> {
        match disk.open(NAME) {
            Ok(file) => Self::reopen(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::create(disk).map_err(FileError::io(NAME)),
            Err(error) => Err(FileError::io(NAME)(error)),
        }
    }

    /// The mark below which stamps may be drawn.
    pub fn reserved(&self) -> Millis {
        self.reserve
    }

    /// How often the directory has been opened, this time included.
    pub fn boot(&self) -> BootNumber {
        self.boot
    }

    /// The damaged slot that was found when the file was opened: a write torn by a crash, or bit rot. In the latter case the mark may be
    /// one step older than the last one acknowledged.
    pub fn damage(&self) -> Option<&Damage> {
        self.damaged.as_ref()
    }

    /// Makes a mark durable. One at or below the present one is durable already.
    ///
    /// # Errors
    /// After one, every later call fails too: nobody knows what the disk has.
    pub fn reserve(&mut self, until: Millis) -> Result<(), FileError> {
        if until <= self.reserve {
            return Ok(());
        }
        self.write(until, self.boot).map_err(FileError::io(NAME))
    }

    /// The damaged slots of the file, looked at from outside, while its owner may write to it: a slot counts that was damaged in the same way twice.
    pub(crate) fn damaged(disk: &dyn Disk) -> Result<Vec<Damage>, FileError> {
        let file = match disk.open(NAME) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(FileError::io(NAME)(error)),
        };
        let look = || {
            let bytes = read_all(&*file, 2 * SLOT_STEP).map_err(FileError::io(NAME))?;
            let slots = [Slot::read(&bytes, 0), Slot::read(&bytes, 1)];
            slots.into_iter().filter_map(|slot| slot.err().map(SlotError::damage)).collect::<Result<Vec<_>, _>>()
        };
        let mut before = look()?;
        loop {
            let damaged = look()?;
            if damaged == before {
                return Ok(damaged);
            }
            before = damaged;
        }
    }

    fn create(disk: &dyn Disk) -> io::Result<Self> {
        let file = disk.create(TEMPORARY)?;
        let mut clock = Self::of(file, Slot { sequence: 0, reserve: Millis::NONE, boot: BootNumber(0) });
        clock.write(Millis::NONE, BootNumber(1))?;
        clock.write(Millis::NONE, BootNumber(1))?;
        disk.rename(TEMPORARY, NAME)?;
        disk.sync_dir("")?;
        Ok(clock)
    }

    fn reopen(file: Arc<dyn DiskFile>) -> Result<Self, FileError> {
        let bytes = read_all(&*file, 2 * SLOT_STEP).map_err(FileError::io(NAME))?;
        let (first, second) = (Slot::read(&bytes, 0), Slot::read(&bytes, 1));
        let (slot, damaged) = match (first, second) {
            (Ok(a), Ok(b)) => (if a.sequence > b.sequence { a } else { b }, None),
            (Ok(slot), Err(error)) | (Err(error), Ok(slot)) => (slot, Some(error.damage()?)),
            (Err(a), Err(b)) => {
                b.damage()?;
                return Err(FileError::Damaged(a.damage()?));
            }
        };
        let mut clock = Self { damaged, ..Self::of(file, slot) };
        clock.write(slot.reserve, BootNumber(slot.boot.0 + 1)).map_err(FileError::io(NAME))?;
        Ok(clock)
    }

    fn of(file: Arc<dyn DiskFile>, slot: Slot) -> Self {
        let Slot { sequence, reserve, boot } = slot;
        Self { file, sequence, reserve, boot, failed: false, damaged: None }
    }

    fn write(&mut self, reserve: Millis, boot: BootNumber) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("an earlier write failed"));
        }
        let slot = Slot { sequence: self.sequence + 1, reserve, boot };
        // What is written can be read again.
        if slot.sequence >= LIMIT || slot.boot.0 >= LIMIT {
            return Err(io::Error::other("its numbers are used up"));
        }
        let number = slot.sequence % 2;
        self.failed = true;
        write_all(&*self.file, number * SLOT_STEP, &slot.encode(number))?;
        self.file.sync()?;
        self.failed = false;
        (self.sequence, self.reserve, self.boot) = (slot.sequence, reserve, boot);
        Ok(())
    }
}

enum SlotError {
    Damaged(Damage),
    Version(u32),
}

impl SlotError {
    fn damage(self) -> Result<Damage, FileError> {
        match self {
            Self::Damaged(damage) => Ok(damage),
            Self::Version(found) => Err(FileError::Version { file: NAME.to_owned(), found, known: VERSION }),
        }
    }
}

impl Slot {
    fn encode(&self, number: u64) -> [u8; SLOT_LEN] {
        let mut bytes = [0; SLOT_LEN];
        bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.reserve.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.boot.0.to_le_bytes());
        let crc = Self::checksum(&bytes, number);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn read(file: &[u8], number: u64) -> Result<Self, SlotError> {
        let offset = number * SLOT_STEP;
        let mut bytes = [0; SLOT_LEN];
        // What a file that was cut does not have counts as zeros, which never check.
        for (to, from) in bytes.iter_mut().zip(file.iter().skip(offset as usize)) {
            *to = *from;
        }
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let (expected, found) = (Self::checksum(&bytes, number), word(0));
        if expected != found {
            return Err(SlotError::Damaged(Damage {
                file: NAME.to_owned(),
                offset,
                kind: DamageKind::Checksum,
                expected: expected.into(),
                found: found.into(),
                affected: Affected::Nothing,
            }));
        }
        match word(4) {
            VERSION if long(8).max(long(24)) >= LIMIT => Err(SlotError::Damaged(Damage {
                file: NAME.to_owned(),
                offset,
                kind: DamageKind::Malformed,
                expected: LIMIT,
                found: long(8).max(long(24)),
                affected: Affected::Nothing,
            })),
            VERSION => Ok(Self { sequence: long(8), reserve: Millis(long(16)), boot: BootNumber(long(24)) }),
            found => Err(SlotError::Version(found)),
        }
    }

    pub(crate) fn checksum(bytes: &[u8; SLOT_LEN], number: u64) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&number.to_le_bytes());
        hasher.update(&bytes[4..]);
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;

    #[test]
    fn marks_rise_across_boots() {
        let disk = MemoryDisk::new();
        for boot in 1..6 {
            let mut clock = ClockFile::open(&disk).expect("opens");
            assert_eq!(clock.boot(), BootNumber(boot));
            assert_eq!(clock.reserved(), Millis(1000 * (boot - 1)));
            assert!(clock.damage().is_none());
            clock.reserve(Millis(1000 * boot)).expect("reserves");
            clock.reserve(Millis(5)).expect("is below");
            assert_eq!(clock.reserved(), Millis(1000 * boot));
        }
    }

    #[test]
    fn a_damaged_slot_leaves_the_other_one_and_two_are_an_error() {
        for slot in 0..2 {
            for byte in 0..SLOT_LEN as u64 {
                let disk = MemoryDisk::new();
                ClockFile::open(&disk).expect("opens").reserve(Millis(77)).expect("reserves");
                disk.flip_bit(NAME, (slot * SLOT_STEP + byte) * 8 + 3);
                let clock = ClockFile::open(&disk).expect("opens");
                assert!(clock.damage().is_some() && clock.boot() == BootNumber(2));
                // Opening wrote over the damaged slot, or over the good one where that was the older one.
                drop(clock);
                let disk = MemoryDisk::new();
                ClockFile::open(&disk).expect("opens");
                for slot in 0..2 {
                    disk.flip_bit(NAME, (slot * SLOT_STEP + byte) * 8 + 3);
                }
                assert!(matches!(ClockFile::open(&disk), Err(FileError::Damaged(_))));
            }
        }
        let disk = MemoryDisk::new();
        disk.insert(NAME, b"");
        assert!(matches!(ClockFile::open(&disk), Err(FileError::Damaged(_))));
    }

    #[test]
    fn no_crash_lowers_a_mark() {
        for stop in 1..20 {
            for seed in 0..20 {
                let disk = MemoryDisk::new();
                disk.stop_at(stop);
                let (mut reserved, mut boot) = (Millis(0), BootNumber(0));
                if let Ok(mut clock) = ClockFile::open(&disk) {
                    boot = clock.boot();
                    for until in 1..5 {
                        if clock.reserve(Millis(until)).is_ok() {
                            reserved = Millis(until);
                        }
                    }
                }
                disk.crash(seed);
                let clock = ClockFile::open(&disk).expect("opens");
                assert!(clock.reserved() >= reserved && clock.boot() > boot, "stop {stop}, seed {seed}");
            }
        }
    }

    #[test]
    fn a_failed_sync_is_final() {
        let disk = MemoryDisk::new();
        let mut clock = ClockFile::open(&disk).expect("opens");
        disk.fail_sync(1);
        assert!(clock.reserve(Millis(5)).is_err());
        assert!(clock.reserve(Millis(6)).is_err());
        assert_eq!(clock.reserved(), Millis::NONE);
    }
}
