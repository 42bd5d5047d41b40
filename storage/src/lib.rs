//! The storage engine of one node: an append-only log of frames in segments, which is the write-ahead log and the place of large values at once
//! (Bitcask, Sheehy and Smith 2010; WiscKey, Lu et al. 2016; group commit, DeWitt et al. 1984), and a small log-structured index that says for each key what
//! its register holds and where (O'Neil et al. 1996): a memtable, and sorted tables in few levels. Small records lie in the index itself.
//!
//! [`Engine`] is the type to start at. It knows no cluster: the rule by which a key changes reaches it as a closure over the key's
//! [`Register`](dunlin_protocol::register::Register), and what it returns is a position in the log. It starts no thread: its owner calls
//! [`Engine::write_pending`] from a writer thread and [`Engine::maintain`] (flush, merge, collection) from another, or both as events of a simulation. All file access goes through a [`Disk`]: a [`FileDisk`] or, with
//! crashes and faults, a [`MemoryDisk`].
//!
//! A data directory holds `MANIFEST`, `RESERVE`, `segments/<id>.seg`, `tables/<id>.tbl`, `tables/<id>.dig` and `snapshots/<name>/`, each of which is a data directory of its own. Beside
//! them there are a few small files: [`Identity`], [`ClockFile`], and whatever the owner keeps with [`store_blob`].
//!
//! It deliberately does not: decide anything about stamps or ballots, read a clock for anything but statistics, retry a failed write or sync of the
//! log or the manifest (it is poisoned and recovers by reopening), or drop tombstones, promises or anything else unless the caller says so.

mod blob;
mod check;
mod clock_file;
mod collection;
mod descent;
mod digest;
mod digests;
mod disk;
mod engine;
mod error;
mod frame;
mod frozen;
mod full_key;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod histogram;
mod hot;
mod identity;
mod indexed;
mod job;
mod log;
mod maintenance;
mod manifest;
mod memtable;
mod merge;
mod options;
mod pin;
mod pinned;
mod place;
mod reading;
mod recovery;
mod references;
mod replay;
mod reserve;
mod rest;
mod room;
mod scan;
mod scrub;
mod segment;
mod snapshot;
mod staging;
mod stats;
mod stopwatch;
mod suspects;
mod sync;
mod table;
mod update;
mod verify;
mod view;
mod writer;

pub use blob::{load_blob, store_blob};
pub use clock_file::ClockFile;
pub use digest::{Digest, Leaf, PartitionDigest};
pub use disk::{Disk, DiskFile, FileDisk, MemoryDisk, Wait};
pub use engine::{Engine, Entry, KeyRef, Stored, Updated};
pub use error::{Affected, Damage, DamageKind, FileError, OpenError, PinError, ReadError, WriteError};
pub use frame::MAX_VALUE_LEN;
pub use histogram::Histogram;
pub use identity::Identity;
pub use options::{Options, Sync};
pub use pinned::Pinned;
pub use place::{Place, Position, SegmentId};
pub use recovery::Recovery;
pub use scan::{ScanRange, Visited};
pub use scrub::{ScrubPlace, Scrubbed};
pub use staging::Staged;
pub use stats::Stats;
pub use suspects::Suspects;
pub use update::{Found, Prepared};
pub use verify::{Verification, VerifyProgress, verify, verify_with_progress};
