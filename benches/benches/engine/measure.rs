//! What the system says of this process and of a directory.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Time, processor time and bytes written of a piece of work.
pub(crate) struct Meter {
    start: Instant,
    cpu: Duration,
    written: u64,
}

impl Meter {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now(), cpu: cpu(), written: written() }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Processor time of all threads since the start.
    pub(crate) fn cpu(&self) -> Duration {
        cpu() - self.cpu
    }

    /// Bytes that went to the disk since the start, those that wait in the page cache included.
    pub(crate) fn written(&self) -> u64 {
        written() - self.written
    }
}

fn cpu() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").expect("Linux");
    // Behind the name, which may hold anything, the 12th and 13th fields: ticks of a hundredth of a second.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(ticks * 10)
}

fn written() -> u64 {
    let io = fs::read_to_string("/proc/self/io").expect("Linux");
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).expect("counted");
    line.parse().expect("a number")
}

/// Memory that this process has in use, without what it only maps of files.
pub(crate) fn memory() -> u64 {
    status("RssAnon:")
}

/// The most memory that this process ever had in use, what it maps of files included.
pub(crate) fn peak_memory() -> u64 {
    status("VmHWM:")
}

fn status(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("counted");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// Bytes that a directory's files have allocated.
pub(crate) fn allocated(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in fs::read_dir(dir).expect("a directory") {
        let entry = entry.expect("an entry");
        let meta = entry.metadata().expect("there");
        bytes += if meta.is_dir() { allocated(&entry.path()) } else { meta.blocks() * 512 };
    }
    bytes
}
