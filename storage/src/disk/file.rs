//! `FileDisk`: a directory of the file system.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
#[cfg(target_os = "linux")]
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Advice, FallocateFlags};

use crate::error::OpenError;
use crate::place::SEGMENTS_DIR;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::table::TABLES_DIR;

use super::{Disk, DiskFile};

const LOCK: &str = "LOCK";

/// A directory of the file system, held by its LOCK (`flock`) as long as this value lives; or looked at only.
#[derive(Debug)]
pub struct FileDisk {
    dir: PathBuf,
    /// None: nothing is written.
    lock: Option<File>,
}

impl FileDisk {
    /// Opens a data directory, and makes it where there is none.
    ///
    /// # Errors
    /// [`OpenError::DataDirInUse`] while another `FileDisk`, of this process or another one, holds it.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, OpenError> {
        let dir = dir.as_ref().to_path_buf();
        let failed = |source| OpenError::DataDir { path: dir.clone(), source };
        for sub in [SEGMENTS_DIR, TABLES_DIR] {
            std::fs::create_dir_all(dir.join(sub)).map_err(failed)?;
        }
        let mut options = OpenOptions::new();
        let lock = options.read(true).write(true).create(true).truncate(false).open(dir.join(LOCK)).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::DataDirInUse { path: dir }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let disk = Self { dir: dir.clone(), lock: Some(lock) };
        disk.sync_dir("").map_err(failed)?;
        // The directory itself may be new: its name lies in its parent. A parent that may not be read is not ours to sync.
        if let Some(parent) = dir.canonicalize().map_err(failed)?.parent()
            && let Ok(parent) = File::open(parent)
        {
            parent.sync_all().map_err(failed)?;
        }
        Ok(disk)
    }

    /// A data directory to look at, whoever has it open: nothing is locked, made or written, and whatever would change something fails
    /// ([`io::ErrorKind::ReadOnlyFilesystem`]). What is read takes no room in the system's cache from what others use, where the system can do that.
    pub fn open_to_read(dir: impl AsRef<Path>) -> Self {
        Self { dir: dir.as_ref().to_path_buf(), lock: None }
    }

    /// Where something is to be changed.
    fn writable(&self) -> io::Result<&Path> {
        if self.lock.is_none() {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        Ok(&self.dir)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Disk for FileDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(self.writable()?.join(name))?;
        Ok(Arc::new(OpenFile::new(file)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let is_writable = self.lock.is_some();
        let file = OpenOptions::new().read(true).write(is_writable).open(self.dir.join(name))?;
        if !is_writable {
            // A hint that not every file system and every version of the system takes.
            let _ = rustix::fs::fadvise(&file, 0, None, Advice::NoReuse);
        }
        Ok(Arc::new(OpenFile::new(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.writable()?.join(from), self.dir.join(to))
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::hard_link(self.writable()?.join(from), self.dir.join(to))
    }

    fn make_dir(&self, dir: &str) -> io::Result<()> {
        std::fs::create_dir_all(self.writable()?.join(dir))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.writable()?.join(name))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.dir.join(dir))? {
            let entry = entry?;
            // A name that is no UTF-8 is none of ours.
            if entry.file_type()?.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        File::open(self.writable()?.join(dir))?.sync_all()
    }
}

struct OpenFile {
    file: File,
    /// The system cannot say of this file whether a read would wait.
    cannot_try: AtomicBool,
}

impl OpenFile {
    fn new(file: File) -> Self {
        Self { file, cannot_try: AtomicBool::new(false) }
    }
}

impl DiskFile for OpenFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut read = 0;
        while read < buffer.len() {
            match self.file.read_at(&mut buffer[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(n) => read += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    #[cfg(target_os = "linux")]
    fn try_read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        use rustix::io::{Errno, ReadWriteFlags, preadv2};
        let mut read = 0;
        while read < buffer.len() && !self.cannot_try.load(Ordering::Relaxed) {
            let rest = &mut [IoSliceMut::new(&mut buffer[read..])];
            match preadv2(&self.file, rest, offset + read as u64, ReadWriteFlags::NOWAIT) {
                // The end of the file.
                Ok(0) => return Ok(Some(read)),
                Ok(n) => read += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                // Most file systems without it keep everything in memory.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.cannot_try.store(true, Ordering::Relaxed),
                Err(error) => return Err(error.into()),
            }
        }
        let rest = self.read_at(offset + read as u64, &mut buffer[read..])?;
        Ok(Some(read + rest))
    }

    #[cfg(not(target_os = "linux"))]
    fn try_read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        self.read_at(offset, buffer).map(Some)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), offset, len) {
            Ok(()) => Ok(()),
            // A file system without preallocation: writing is the only way to be given the room.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => write_zeros(self, offset, len),
            Err(error) => Err(error.into()),
        }
    }
}

fn write_zeros(file: &dyn DiskFile, offset: u64, len: u64) -> io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut written = 0;
    while written < len {
        let piece = (len - written).min(ZEROS.len() as u64) as usize;
        super::write_all(file, offset + written, &ZEROS[..piece])?;
        written += piece as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_names() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = FileDisk::open(dir.path().join("data")).expect("opens");
        let file = disk.create("a.tmp").expect("creates");
        assert_eq!(file.write_at(0, b"hello").expect("writes"), 5);
        file.preallocate(5, 1000).expect("allocates");
        file.sync().expect("syncs");
        disk.rename("a.tmp", "a").expect("renames");
        disk.create("segments/x").expect("creates");
        disk.sync_dir("").expect("syncs");
        assert_eq!(disk.list("").expect("lists"), ["LOCK", "a"]);
        assert_eq!(disk.list("segments").expect("lists"), ["x"]);
        let file = disk.open("a").expect("opens");
        let mut buffer = [1; 8];
        assert_eq!(file.read_at(0, &mut buffer).expect("reads"), 8);
        assert_eq!(&buffer, b"hello\0\0\0");
        // What was just written is in memory.
        assert_eq!(file.try_read_at(0, &mut buffer[..5]).expect("reads"), Some(5));
        file.truncate(3).expect("truncates");
        assert_eq!(file.try_read_at(0, &mut buffer).expect("reads"), Some(3));
        assert_eq!(file.try_read_at(9, &mut buffer).expect("reads"), Some(0));
        assert_eq!(file.read_at(0, &mut buffer).expect("reads"), 3);
        disk.remove("a").expect("removes");
        assert_eq!(file.read_at(0, &mut buffer).expect("reads what is open"), 3);
        assert_eq!(disk.open("a").err().map(|e| e.kind()), Some(io::ErrorKind::NotFound));
    }

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = FileDisk::open(dir.path()).expect("opens");
        assert!(matches!(FileDisk::open(dir.path()), Err(OpenError::DataDirInUse { .. })));
        drop(first);
        assert!(FileDisk::open(dir.path()).is_ok());
    }

    #[test]
    fn who_only_looks_changes_nothing() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let looking = FileDisk::open_to_read(dir.path());
        assert_eq!(looking.open("a").err().map(|e| e.kind()), Some(io::ErrorKind::NotFound));
        let disk = FileDisk::open(dir.path()).expect("opens");
        disk.create("a").expect("creates").write_at(0, b"hello").expect("writes");
        let refused = [
            looking.create("b").map(|_| ()),
            looking.rename("a", "b"),
            looking.link("a", "b"),
            looking.make_dir("c"),
            looking.remove("a"),
            looking.sync_dir(""),
        ];
        for refused in refused {
            assert_eq!(refused.err().map(|e| e.kind()), Some(io::ErrorKind::ReadOnlyFilesystem));
        }
        let file = looking.open("a").expect("opens");
        assert!(file.write_at(0, b"x").is_err() && file.truncate(0).is_err() && file.preallocate(0, 9).is_err());
        disk.remove("a").expect("removes");
        let mut buffer = [0; 8];
        assert_eq!(file.read_at(0, &mut buffer).expect("what is open stays"), 5);
        assert_eq!(looking.list("").expect("lists"), ["LOCK"]);
    }

    #[test]
    fn a_directory_that_cannot_be() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(dir.path().join("file"), b"").expect("writes");
        assert!(matches!(FileDisk::open(dir.path().join("file/below")), Err(OpenError::DataDir { .. })));
    }
}
