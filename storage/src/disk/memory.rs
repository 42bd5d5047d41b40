//! `MemoryDisk`: a data directory in memory that can lose what was not synced.

mod change;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use self::change::{Change, NameChange, Random};
use super::{Disk, DiskFile};
use crate::sync::{Mutex, MutexGuard};

/// A data directory in memory, for tests and the simulator. A clone is another handle to the same disk. Everything is deterministic.
///
/// It tracks which bytes and which names were synced, so that a [`crash`](Self::crash) can lose, keep or tear the others, and counts
/// [`operations`](Self::operations) (all but reads), so that a run can be [stopped](Self::stop_at) at each of them.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<u64, Inode>,
    next_file: u64,
    names: BTreeMap<String, u64>,
    synced_names: BTreeMap<String, u64>,
    /// Since the directory was last synced.
    unsynced_names: Vec<(String, NameChange)>,
    /// Handles of before a crash do nothing any more.
    generation: u64,
    faults: Faults,
    operations: u64,
    capacity: Option<u64>,
    /// Of the reads that must not wait, how many in a hundred would have to.
    cold: Option<(Random, u8)>,
    is_watched: bool,
    waits: u64,
}

#[derive(Clone, Copy, Default)]
struct Faults {
    stop_at: Option<u64>,
    is_stopped: bool,
    sync: Option<u64>,
    rename: Option<u64>,
    write: Option<u64>,
    short_write: Option<u64>,
    create: Option<u64>,
    remove: Option<u64>,
    link: Option<u64>,
    resize: Option<u64>,
    read: Option<u64>,
    fill: Option<u64>,
}

#[derive(Default)]
struct Inode {
    bytes: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<Change>,
    /// Changes that a failed sync left behind: no later sync makes them durable, a crash may keep them.
    stranded: Vec<Change>,
}

fn failed(what: &str) -> io::Error {
    io::Error::other(format!("{what} failed, as planned"))
}

fn full() -> io::Error {
    io::Error::from(io::ErrorKind::StorageFull)
}

impl MemoryDisk {
    /// An empty data directory.
    pub fn new() -> Self {
        Self::default()
    }

    /// The machine loses power: what was not synced is lost, kept, or torn, as the seed says, each change by itself. Names that were not synced
    /// are lost from some change on, or each by itself. Handles of before do nothing any more; planned faults are forgotten, a stop is over.
    pub fn crash(&self, seed: u64) {
        let state = &mut *self.lock();
        let random = &mut Random(seed);
        for inode in state.files.values_mut() {
            let mut survived = std::mem::take(&mut inode.synced);
            for change in inode.stranded.drain(..).chain(inode.unsynced.drain(..)) {
                change.tear(&mut survived, random);
            }
            inode.bytes.clone_from(&survived);
            inode.synced = survived;
        }
        let kept = match random.below(2) {
            0 => random.below(state.unsynced_names.len() as u64 + 1),
            _ => u64::MAX,
        };
        for (i, (_, change)) in state.unsynced_names.drain(..).enumerate() {
            let is_kept = if kept == u64::MAX { random.below(2) == 0 } else { (i as u64) < kept };
            if is_kept {
                change.apply(&mut state.synced_names);
            }
        }
        state.names.clone_from(&state.synced_names);
        state.remove_unnamed();
        state.generation += 1;
        state.faults = Faults::default();
    }

    /// The process is killed and the machine goes on: everything is still there, and what was not synced still is not. Handles of before do
    /// nothing any more; planned faults stay, a stop that has come is over.
    pub fn kill(&self) {
        let mut state = self.lock();
        state.generation += 1;
        if std::mem::take(&mut state.faults.is_stopped) {
            state.faults.stop_at = None;
        }
    }

    /// How many operations there were: everything but reads, and opening what exists.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// The operation of this number fails, though it may have taken effect, and so does everything from then on until the next
    /// [`crash`](Self::crash) or [`kill`](Self::kill).
    pub fn stop_at(&self, operation: u64) {
        self.lock().faults.stop_at = Some(operation);
    }

    /// Whether a stop has come.
    pub fn is_stopped(&self) -> bool {
        self.lock().faults.is_stopped
    }

    /// The `n`th sync from now on fails (1: the next). What it should have made durable, no later sync does.
    pub fn fail_sync(&self, n: u64) {
        self.lock().faults.sync = Some(n);
    }

    /// The `n`th rename from now on fails, without effect.
    pub fn fail_rename(&self, n: u64) {
        self.lock().faults.rename = Some(n);
    }

    /// The `n`th write from now on fails, without effect.
    pub fn fail_write(&self, n: u64) {
        self.lock().faults.write = Some(n);
    }

    /// The `n`th write from now on writes half of its bytes.
    pub fn short_write(&self, n: u64) {
        self.lock().faults.short_write = Some(n);
    }

    /// The `n`th file to be made from now on is not.
    pub fn fail_create(&self, n: u64) {
        self.lock().faults.create = Some(n);
    }

    /// The `n`th removal from now on fails, without effect.
    pub fn fail_remove(&self, n: u64) {
        self.lock().faults.remove = Some(n);
    }

    /// The `n`th link from now on fails, without effect.
    pub fn fail_link(&self, n: u64) {
        self.lock().faults.link = Some(n);
    }

    /// The `n`th truncation or preallocation from now on fails, without effect.
    pub fn fail_resize(&self, n: u64) {
        self.lock().faults.resize = Some(n);
    }

    /// The `n`th read from now on fails.
    pub fn fail_read(&self, n: u64) {
        self.lock().faults.read = Some(n);
    }

    /// From the `n`th operation on that would let a file grow the disk is full, as by [`set_capacity`](Self::set_capacity).
    pub fn fill_at(&self, n: u64) {
        self.lock().faults.fill = Some(n);
    }

    /// Whether a planned fault is still to come.
    pub fn has_plan(&self) -> bool {
        let Faults { stop_at, is_stopped, sync, rename, write, short_write, create, remove, link, resize, read, fill } =
            self.lock().faults;
        let plans = [sync, rename, write, short_write, create, remove, link, resize, read, fill];
        stop_at.is_some() && !is_stopped || plans.iter().any(Option::is_some)
    }

    /// The disk is full when its files have so many bytes together; none: never. May be less than they have.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity = bytes;
    }

    /// From now on, of the reads that must not wait ([`DiskFile::try_read_at`]), so many in a hundred would have to, as the seed says. At first
    /// none do: everything is in memory.
    pub fn set_cold(&self, percent: u8, seed: u64) {
        self.lock().cold = Some((Random(seed), percent));
    }

    /// While it is watched, reads that may wait are counted: for who says that there are none.
    pub fn watch(&self, is_watched: bool) {
        self.lock().is_watched = is_watched;
    }

    /// Reads that might have waited while the disk was watched.
    pub fn waits(&self) -> u64 {
        self.lock().waits
    }

    /// The bytes that the files have together.
    pub fn used(&self) -> u64 {
        self.lock().used()
    }

    /// Flips a bit of a file, as it is now and as it will be after a crash. Nothing where there is no such file or bit.
    pub fn flip_bit(&self, name: &str, bit: u64) {
        let state = &mut *self.lock();
        let Some(file) = state.names.get(name) else { return };
        let inode = state.files.get_mut(file).expect("a name's file exists");
        for bytes in [&mut inode.bytes, &mut inode.synced] {
            if let Some(byte) = bytes.get_mut((bit / 8) as usize) {
                *byte ^= 1 << (bit % 8);
            }
        }
    }

    /// What a file holds now.
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.lock();
        Some(state.files[state.names.get(name)?].bytes.clone())
    }

    /// The names of all files, as they are now.
    pub fn names(&self) -> Vec<String> {
        self.lock().names.keys().cloned().collect()
    }

    /// Puts a file there, durably.
    pub fn insert(&self, name: &str, bytes: &[u8]) {
        let state = &mut *self.lock();
        let file = state.add_file();
        let inode = state.files.get_mut(&file).expect("just added");
        (inode.bytes, inode.synced) = (bytes.to_vec(), bytes.to_vec());
        state.names.insert(name.to_owned(), file);
        state.synced_names.insert(name.to_owned(), file);
    }

    /// Takes a file away, durably.
    pub fn take(&self, name: &str) {
        let state = &mut *self.lock();
        state.names.remove(name);
        state.synced_names.remove(name);
        state.unsynced_names.retain(|(_, change)| !matches!(change, NameChange::Link(n, _) if n == name));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the disk")
    }

    fn handle(&self, state: &State, file: u64) -> Arc<dyn DiskFile> {
        Arc::new(MemoryFile { disk: self.clone(), file, generation: state.generation })
    }

    /// Counts a change of names; a stop leaves it done, and unsynced.
    fn change_names(&self, state: &mut State, dir: String, change: NameChange) -> io::Result<()> {
        let stopped = state.operate();
        if let Err(error) = &stopped
            && !state.is_last_operation()
        {
            return Err(io::Error::other(error.to_string()));
        }
        change.apply(&mut state.names);
        state.unsynced_names.push((dir, change));
        stopped
    }
}

impl State {
    fn add_file(&mut self) -> u64 {
        self.next_file += 1;
        self.files.insert(self.next_file, Inode::default());
        self.next_file
    }

    fn remove_unnamed(&mut self) {
        let named: Vec<u64> = self.names.values().chain(self.synced_names.values()).copied().collect();
        let unsynced: Vec<u64> = self
            .unsynced_names
            .iter()
            .filter_map(|(_, change)| match change {
                NameChange::Link(_, file) | NameChange::Rename(_, _, file) => Some(*file),
                NameChange::Unlink(_) => None,
            })
            .collect();
        self.files.retain(|file, _| named.contains(file) || unsynced.contains(file));
    }

    fn used(&self) -> u64 {
        // A file with several names counts once.
        let files: std::collections::BTreeSet<_> = self.names.values().collect();
        files.into_iter().map(|file| self.files[file].bytes.len() as u64).sum()
    }

    /// Counts an operation. An error: the disk is stopped.
    fn operate(&mut self) -> io::Result<()> {
        self.check()?;
        self.operations += 1;
        if self.faults.stop_at.is_some_and(|at| self.operations >= at) {
            self.faults.is_stopped = true;
            return Err(failed("the disk stopped: everything"));
        }
        Ok(())
    }

    /// Whether the operation that was just counted is the one that the disk stopped at.
    fn is_last_operation(&self) -> bool {
        self.faults.stop_at == Some(self.operations)
    }

    fn check(&self) -> io::Result<()> {
        if self.faults.is_stopped { Err(failed("the disk has stopped: everything")) } else { Ok(()) }
    }

    fn check_growth(&mut self, file: u64, end: u64) -> io::Result<()> {
        let growth = end.saturating_sub(self.files.get(&file).map_or(0, |inode| inode.bytes.len() as u64));
        if growth > 0 && is_due(&mut self.faults.fill) {
            self.capacity = Some(self.used());
        }
        match self.capacity {
            Some(capacity) if growth > 0 && self.used() + growth > capacity => Err(full()),
            _ => Ok(()),
        }
    }
}

/// Counts down to a planned fault; true: it is due.
fn is_due(plan: &mut Option<u64>) -> bool {
    match plan {
        Some(1) => {
            *plan = None;
            true
        }
        Some(n) => {
            *n -= 1;
            false
        }
        None => false,
    }
}

fn dir_of(name: &str) -> String {
    name.rsplit_once('/').map_or(String::new(), |(dir, _)| dir.to_owned())
}

impl Disk for MemoryDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let state = &mut *self.lock();
        state.check()?;
        if is_due(&mut state.faults.create) {
            return Err(failed("a create"));
        }
        let file = state.add_file();
        self.change_names(state, dir_of(name), NameChange::Link(name.to_owned(), file))?;
        Ok(self.handle(state, file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let state = &*self.lock();
        state.check()?;
        let file = state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.handle(state, *file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let state = &mut *self.lock();
        let file = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        if is_due(&mut state.faults.rename) {
            return Err(failed("a rename"));
        }
        self.change_names(state, dir_of(to), NameChange::Rename(from.to_owned(), to.to_owned(), file))
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        let state = &mut *self.lock();
        let file = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        if is_due(&mut state.faults.link) {
            return Err(failed("a link"));
        }
        self.change_names(state, dir_of(to), NameChange::Link(to.to_owned(), file))
    }

    /// Directories are only parts of names.
    fn make_dir(&self, _: &str) -> io::Result<()> {
        self.lock().check()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let state = &mut *self.lock();
        if !state.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if is_due(&mut state.faults.remove) {
            return Err(failed("a removal"));
        }
        self.change_names(state, dir_of(name), NameChange::Unlink(name.to_owned()))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let state = self.lock();
        state.check()?;
        let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
        let names = state.names.keys().filter_map(|name| name.strip_prefix(&prefix));
        Ok(names.filter(|name| !name.contains('/')).map(str::to_owned).collect())
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let state = &mut *self.lock();
        state.operate()?;
        if is_due(&mut state.faults.sync) {
            return Err(failed("a sync"));
        }
        let changes = std::mem::take(&mut state.unsynced_names);
        for (of, change) in changes {
            match of == dir {
                true => change.apply(&mut state.synced_names),
                false => state.unsynced_names.push((of, change)),
            }
        }
        Ok(())
    }
}

struct MemoryFile {
    disk: MemoryDisk,
    file: u64,
    generation: u64,
}

impl MemoryFile {
    fn lock(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.lock();
        if state.generation != self.generation {
            return Err(failed("the process is gone: everything"));
        }
        Ok(state)
    }

    fn read(&self, state: &mut State, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        state.check()?;
        if is_due(&mut state.faults.read) {
            return Err(failed("a read"));
        }
        let inode = state.files.get(&self.file).ok_or(io::ErrorKind::NotFound)?;
        let rest = inode.bytes.get(offset as usize..).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    /// Counts a change; a stop leaves it done, and unsynced.
    fn change(&self, state: &mut State, change: Change) -> io::Result<()> {
        let stopped = state.operate();
        if stopped.is_err() && !state.is_last_operation() {
            return stopped;
        }
        let inode = state.files.get_mut(&self.file).ok_or(io::ErrorKind::NotFound)?;
        change.apply(&mut inode.bytes);
        inode.unsynced.push(change);
        stopped
    }
}

impl DiskFile for MemoryFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let state = &mut *self.lock()?;
        state.waits += u64::from(state.is_watched);
        self.read(state, offset, buffer)
    }

    fn try_read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let state = &mut *self.lock()?;
        if let Some((random, percent)) = &mut state.cold
            && random.below(100) < u64::from(*percent)
        {
            return Ok(None);
        }
        self.read(state, offset, buffer).map(Some)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let state = &mut *self.lock()?;
        if is_due(&mut state.faults.write) {
            return Err(failed("a write"));
        }
        state.check_growth(self.file, offset + bytes.len() as u64)?;
        let len = if is_due(&mut state.faults.short_write) { bytes.len() / 2 } else { bytes.len() };
        self.change(state, Change::Write { offset, bytes: bytes[..len].to_vec() })?;
        Ok(len)
    }

    fn sync(&self) -> io::Result<()> {
        let state = &mut *self.lock()?;
        state.operate()?;
        let fails = is_due(&mut state.faults.sync);
        let inode = state.files.get_mut(&self.file).ok_or(io::ErrorKind::NotFound)?;
        let changes = std::mem::take(&mut inode.unsynced);
        if fails {
            inode.stranded.extend(changes);
            return Err(failed("a sync"));
        }
        for change in changes {
            // What an earlier failed sync left in the same place is not there any more.
            inode.stranded = inode.stranded.drain(..).flat_map(|stranded| stranded.without(&change)).collect();
            change.apply(&mut inode.synced);
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.lock()?;
        state.check()?;
        Ok(state.files.get(&self.file).ok_or(io::ErrorKind::NotFound)?.bytes.len() as u64)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let state = &mut *self.lock()?;
        if is_due(&mut state.faults.resize) {
            return Err(failed("a resize"));
        }
        state.check_growth(self.file, len)?;
        self.change(state, Change::Resize(len))
    }

    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let state = &mut *self.lock()?;
        if is_due(&mut state.faults.resize) {
            return Err(failed("a resize"));
        }
        let end = offset + len;
        state.check_growth(self.file, end)?;
        let present = state.files.get(&self.file).ok_or(io::ErrorKind::NotFound)?.bytes.len() as u64;
        self.change(state, Change::Resize(end.max(present)))
    }
}

#[cfg(test)]
mod tests;
