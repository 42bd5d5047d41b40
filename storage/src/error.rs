//! What can go wrong, an enum for each operation.

use std::fmt;
use std::io;
use std::path::PathBuf;

use dunlin_protocol::{PartitionId, Status};

use crate::place::{Place, SegmentId};

/// Whose data is concerned by damage.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Affected {
    /// No data was lost.
    Nothing,
    /// This partition's.
    Partition(PartitionId),
    /// These partitions'.
    Partitions {
        /// From this one.
        first: PartitionId,
        /// To this one, inclusive.
        last: PartitionId,
    },
    /// It cannot be told: any partition's.
    Everything,
}

/// What the `expected` and `found` of a [`Damage`] are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum DamageKind {
    /// Checksums.
    Checksum,
    /// The log's end that a later part of the log names, and where it ended: what lies between is missing.
    Missing,
    /// The file is not there at all; 1 file expected, 0 found.
    MissingFile,
    /// The length that the file has at least, and the one it has.
    CutShort,
    /// The id of the segment that the file should be and that it says it is.
    SwappedFile,
    /// The checksum fits (it is in both fields), but the contents make no sense.
    Malformed,
    /// A commit whose accepted record is not there: ballots, cut to their low 64 bits.
    MissingPending,
}

impl DamageKind {
    /// A name for machines, which stays.
    pub fn name(self) -> &'static str {
        match self {
            Self::Checksum => "checksum",
            Self::Missing => "missing",
            Self::MissingFile => "missing_file",
            Self::CutShort => "cut_short",
            Self::SwappedFile => "swapped_file",
            Self::Malformed => "malformed",
            Self::MissingPending => "missing_pending",
        }
    }

    /// Whether `expected` and `found` are checksums, ids or ballots, which are written in hexadecimal; otherwise they are counted.
    pub fn is_code(self) -> bool {
        matches!(self, Self::Checksum | Self::SwappedFile | Self::Malformed | Self::MissingPending)
    }
}

/// Damage found in a file. Never repaired silently, never a panic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// The file, relative to the data directory.
    pub file: String,
    /// Where, in bytes.
    pub offset: u64,
    /// What the next two are.
    pub kind: DamageKind,
    /// What should be there.
    pub expected: u64,
    /// What is there.
    pub found: u64,
    /// Whose data is concerned.
    pub affected: Affected,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, offset, kind, expected, found, affected } = self;
        match kind {
            DamageKind::Checksum => {
                write!(f, "{file} at {offset}: checksum {found:08x} where {expected:08x} was expected")?;
            }
            DamageKind::Missing => {
                write!(f, "{file} at {offset}: the log ends at {found} where {expected} was expected")?;
            }
            DamageKind::CutShort => write!(f, "{file} has {found} bytes where at least {expected} were expected")?,
            DamageKind::MissingFile => write!(f, "{file} is missing")?,
            DamageKind::SwappedFile => write!(f, "{file} holds segment {found:x} where {expected:x} was expected")?,
            DamageKind::Malformed => write!(f, "{file} at {offset}: malformed contents under a valid checksum")?,
            DamageKind::MissingPending => {
                write!(f, "{file} at {offset}: a commit of {expected:x} finds {found:x} accepted")?;
            }
        }
        match affected {
            Affected::Nothing => f.write_str(" (no data lost)"),
            Affected::Partition(partition) => write!(f, " (partition {partition})"),
            Affected::Partitions { first, last } => write!(f, " (partitions {first} to {last})"),
            Affected::Everything => f.write_str(" (any partition)"),
        }
    }
}

/// Why an engine or a data directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another engine in this one, uses the data directory.
    #[error("the data directory {} is in use by another process", path.display())]
    DataDirInUse {
        /// The directory.
        path: PathBuf,
    },
    /// The data directory cannot be made or opened.
    #[error("the data directory {} cannot be used", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A file could not be read or written. A full disk shows as [`io::ErrorKind::StorageFull`].
    #[error("{file} failed")]
    Io {
        /// The file, relative to the data directory.
        file: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A file of a newer format: this program is too old for the directory.
    #[error("{file} has format version {found}, and this program knows versions up to {known}")]
    Version {
        /// The file.
        file: String,
        /// Its version.
        found: u32,
        /// The newest one known.
        known: u32,
    },
    /// An option is out of range.
    #[error("{option} is out of range: {why}")]
    InvalidOption {
        /// Which one.
        option: &'static str,
        /// Its range.
        why: &'static str,
    },
}

impl OpenError {
    /// The code for users.
    pub fn status(&self) -> Status {
        match self {
            Self::DataDirInUse { .. } => Status::DataDirInUse,
            Self::Io { source, .. } | Self::DataDir { source, .. } if is_disk_full(source) => Status::DiskFull,
            Self::DataDir { .. } => Status::Local,
            Self::Io { .. } => Status::StorageFailed,
            Self::Version { .. } => Status::VersionMismatch,
            Self::InvalidOption { .. } => Status::InvalidConfig,
        }
    }

    pub(crate) fn io(file: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let file = file.into();
        move |source| Self::Io { file, source }
    }
}

impl From<FileError> for OpenError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Io { file, source } => Self::Io { file, source },
            FileError::Version { file, found, known } => Self::Version { file, found, known },
            FileError::Damaged(damage) => {
                Self::Io { source: io::Error::new(io::ErrorKind::InvalidData, damage.to_string()), file: damage.file }
            }
        }
    }
}

impl From<ReadError> for OpenError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io { file, source, .. } => Self::Io { file, source },
            other => Self::Io { file: String::new(), source: io::Error::other(other) },
        }
    }
}

/// Why a small file could not be loaded or stored.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It could not be read or written.
    #[error("{file} failed")]
    Io {
        /// The file, relative to the data directory.
        file: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A checksum does not fit: the file is damaged, and there is no other copy in this directory.
    #[error("damaged: {0}")]
    Damaged(Damage),
    /// A file of a newer format.
    #[error("{file} has format version {found}, and this program knows versions up to {known}")]
    Version {
        /// The file.
        file: String,
        /// Its version.
        found: u32,
        /// The newest one known.
        known: u32,
    },
}

impl FileError {
    /// The code for users.
    pub fn status(&self) -> Status {
        match self {
            Self::Io { source, .. } if is_disk_full(source) => Status::DiskFull,
            Self::Io { .. } => Status::StorageFailed,
            Self::Damaged(_) => Status::Corruption,
            Self::Version { .. } => Status::VersionMismatch,
        }
    }

    pub(crate) fn io(file: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let file = file.into();
        move |source| Self::Io { file, source }
    }

    pub(crate) fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_disk_full(source))
    }
}

/// Whether there is no room, on the disk or in a quota.
pub(crate) fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Why a change was refused, or the writer failed. A refused change left no trace.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// An earlier write or sync failed: no more writes until the engine is opened again.
    #[error("storage failed earlier and takes no writes until the node is restarted")]
    Poisoned,
    /// The disk is full. Reads go on, and so do deletes while the reserve lasts.
    #[error("the disk is full")]
    DiskFull,
    /// Too much waits for the disk.
    #[error("too many bytes wait to be written")]
    Overloaded,
    /// The record is too large.
    #[error("{what} of {len} bytes is larger than {max}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The most that is allowed.
        max: usize,
    },
    /// What the key holds cannot be read, so that nothing can be decided.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The writer's own failure: what was pending may or may not be on the disk, the engine is poisoned.
    #[error("{file} failed; storage takes no more writes until the node is restarted")]
    Io {
        /// The file, relative to the data directory.
        file: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

impl WriteError {
    /// The code for users.
    pub fn status(&self) -> Status {
        match self {
            Self::Poisoned | Self::Io { .. } => Status::StorageFailed,
            Self::DiskFull => Status::DiskFull,
            Self::Overloaded => Status::Overloaded,
            Self::TooLarge { .. } => Status::ValueTooLarge,
            Self::Read(error) => error.status(),
        }
    }

    pub(crate) fn io(file: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let file = file.into();
        move |source| Self::Io { file, source }
    }
}

impl From<FileError> for WriteError {
    fn from(error: FileError) -> Self {
        match OpenError::from(error) {
            OpenError::Io { file, source } => Self::Io { file, source },
            other => Self::Io { file: String::new(), source: io::Error::other(other) },
        }
    }
}

/// Why a moment could not be pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PinError {
    /// So many are pinned already.
    #[error("{max} scans are under way already")]
    TooMany {
        /// The most that may be.
        max: usize,
    },
    /// Those that are pinned keep much in memory.
    #[error("scans that are under way keep {kept_bytes} bytes in memory, more than {max}")]
    TooMuchMemory {
        /// What they keep.
        kept_bytes: u64,
        /// Beyond this there are no more of them.
        max: u64,
    },
}

impl PinError {
    /// The code for users.
    pub fn status(&self) -> Status {
        Status::Overloaded
    }
}

/// Why a record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The segment could not be read.
    #[error("{file} cannot be read at {offset}")]
    Io {
        /// The file, relative to the data directory.
        file: String,
        /// Where.
        offset: u64,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// What is there is not what was written.
    #[error("damaged: {0}")]
    Damaged(Damage),
    /// There is no such segment (any more): the place comes from elsewhere, or from an entry that has changed since.
    #[error("segment {} is gone", segment.0)]
    Gone {
        /// The segment.
        segment: SegmentId,
    },
    /// The frame there holds no record.
    #[error("the frame at {place:?} holds no record")]
    NoRecord {
        /// Where.
        place: Place,
    },
    /// The key does not hold this record any more.
    #[error("the key does not hold this record any more")]
    Superseded,
    /// It is not in memory, and the read must not wait ([`Wait::Never`](crate::Wait::Never)).
    #[error("the disk would have to be waited for")]
    WouldBlock,
}

impl ReadError {
    /// The code for users.
    pub fn status(&self) -> Status {
        match self {
            Self::Damaged(_) => Status::Corruption,
            Self::WouldBlock => Status::Overloaded,
            Self::Io { .. } | Self::Gone { .. } | Self::NoRecord { .. } | Self::Superseded => Status::StorageFailed,
        }
    }
}
