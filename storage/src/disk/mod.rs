//! The seam for faults: everything the engine does to files.

mod file;
mod memory;

use std::io;
use std::sync::Arc;

pub use file::FileDisk;
pub use memory::MemoryDisk;

/// A data directory. Names are relative to it; the directories `segments` and
/// `tables` exist.
///
/// A new name, a rename and a removal are durable only after [`sync_dir`](Self::sync_dir). A full disk shows as
/// [`io::ErrorKind::StorageFull`], a missing file as [`io::ErrorKind::NotFound`].
pub trait Disk: Send + Sync {
    /// Makes an empty file, in place of one that may be there.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens a file that exists, to read and to write.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Gives a file another name, in place of a file that may have had it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Gives a file a second name. What is written to it shows under both.
    fn link(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes a directory, and those above it, where they are not there yet.
    fn make_dir(&self, dir: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// The names in a directory, without the directory's own, in order. The data directory itself is the empty name.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
}

/// An open file. What is written is durable after [`sync`](Self::sync).
pub trait DiskFile: Send + Sync {
    /// Reads up to the end of the file, fewer bytes than asked for only there.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// The same, but only from memory. None: some of it would have to come from the disk; what the buffer holds then means nothing.
    fn try_read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<Option<usize>>;
    /// Writes, growing the file where needed. Fewer bytes than given: the write was short.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize>;
    /// Makes contents and length durable (`fdatasync`). After an error nobody can say what is.
    fn sync(&self) -> io::Result<()>;
    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts the file to a length, and gives the room behind it back.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Allocates room, so that writing there cannot find the disk full. What is allocated and not written reads as zeros.
    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()>;
}

/// Whether a read may wait for the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// It may.
    Allowed,
    /// It fails instead ([`ReadError::WouldBlock`](crate::ReadError::WouldBlock)): for a thread that others wait for.
    Never,
}

/// Reads as far as it may wait; see [`DiskFile::try_read_at`].
pub(crate) fn read_at(file: &dyn DiskFile, wait: Wait, offset: u64, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match wait {
        Wait::Allowed => file.read_at(offset, buffer).map(Some),
        Wait::Never => file.try_read_at(offset, buffer),
    }
}

/// Writes all of it: a short write is an error.
pub(crate) fn write_all(file: &dyn DiskFile, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let written = file.write_at(offset, bytes)?;
    if written < bytes.len() {
        return Err(io::Error::new(io::ErrorKind::WriteZero, format!("{written} of {} bytes written", bytes.len())));
    }
    Ok(())
}

/// The whole file, as far as `max` bytes.
pub(crate) fn read_all(file: &dyn DiskFile, max: u64) -> io::Result<Vec<u8>> {
    read_into(file, max, Vec::new())
}

/// The same, into memory that was in use before.
pub(crate) fn read_into(file: &dyn DiskFile, max: u64, mut bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    let len = file.len()?.min(max);
    let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    match bytes.capacity() < len {
        true => bytes = vec![0; len],
        false => bytes.resize(len, 0),
    }
    let read = file.read_at(0, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}
