//! `CpuMeter`: the CPU time of the nodes' processes, and of this one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Reads `/proc/<pid>/stat` of the processes that `n1/pid`, `n2/pid` .. of a dev cluster's folder name. A node that is started while it
/// measures counts from its start; one that ends counts until it was last looked at. Where there is no such folder, or no `/proc`, nothing is
/// known.
#[derive(Debug)]
pub(crate) struct CpuMeter {
    folder: PathBuf,
    ticks_per_second: u64,
    own: Option<Ticks>,
    /// By node number and process id.
    nodes: BTreeMap<(u32, u32), Ticks>,
}

/// Clock ticks that a process has used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ticks {
    before: u64,
    now: u64,
}

/// What was used while it measured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct CpuUsed {
    /// By this process.
    pub(crate) own: Option<Duration>,
    /// By each node, by its number.
    pub(crate) nodes: BTreeMap<u32, Duration>,
}

impl CpuUsed {
    /// By all nodes; none: nothing is known of them.
    pub(crate) fn of_nodes(&self) -> Option<Duration> {
        if self.nodes.is_empty() { None } else { Some(self.nodes.values().sum()) }
    }
}

impl CpuMeter {
    /// Begins to measure the nodes of the dev cluster in `folder`.
    pub(crate) fn start(folder: PathBuf) -> Self {
        let own = stat("self").map(|stat| Ticks { before: stat.ticks, now: stat.ticks });
        let mut meter = Self {
            folder,
            ticks_per_second: rustix::param::clock_ticks_per_second().max(1),
            own,
            nodes: BTreeMap::new(),
        };
        meter.sample();
        for ticks in meter.nodes.values_mut() {
            ticks.before = ticks.now;
        }
        meter
    }

    /// Looks at all processes.
    pub(crate) fn sample(&mut self) {
        let own = stat("self");
        if let (Some(ticks), Some(stat)) = (&mut self.own, &own) {
            ticks.now = stat.ticks;
        }
        for (node, pid) in pids(&self.folder) {
            // A process of another name took the number of one that ended.
            let Some(stat) = stat(&pid.to_string()).filter(|s| own.as_ref().is_some_and(|own| own.name == s.name))
            else {
                continue;
            };
            self.nodes.entry((node, pid)).or_insert(Ticks { before: 0, now: 0 }).now = stat.ticks;
        }
    }

    /// What was used between the start and the last sample.
    pub(crate) fn used(&self) -> CpuUsed {
        let time = |ticks: &Ticks| {
            Duration::from_secs_f64(ticks.now.saturating_sub(ticks.before) as f64 / self.ticks_per_second as f64)
        };
        let mut nodes = BTreeMap::<_, Duration>::new();
        for ((node, _), ticks) in &self.nodes {
            *nodes.entry(*node).or_default() += time(ticks);
        }
        CpuUsed { own: self.own.as_ref().map(time), nodes }
    }
}

/// The nodes of a dev cluster that run, with their process ids.
fn pids(folder: &Path) -> Vec<(u32, u32)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let node = |name: &str| name.strip_prefix('n')?.parse().ok();
    let pid = |path: PathBuf| fs::read_to_string(path.join("pid")).ok()?.trim().parse().ok();
    let each = entries.flatten().filter_map(|entry| Some((node(entry.file_name().to_str()?)?, pid(entry.path())?)));
    each.collect()
}

/// A process: its name, and the clock ticks that it used.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Stat {
    name: String,
    ticks: u64,
}

fn stat(pid: &str) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// See proc_pid_stat(5): the name in brackets may hold anything; behind it, utime and stime are the 12th and 13th fields.
fn parse(text: &str) -> Option<Stat> {
    let (head, tail) = text.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let mut times = tail.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (times.next()?.parse().ok()?, times.next()?.parse().ok()?);
    Some(Stat { name: name.to_owned(), ticks: user + system })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_whatever_the_name_holds() {
        let line = "4711 (a (b) c) S 1 4711 4711 0 -1 4194560 150 0 0 0 37 5 0 0 20 0 4 0 1234 1000 200 184467";
        assert_eq!(parse(line), Some(Stat { name: "a (b) c".to_owned(), ticks: 42 }));
        for line in ["", "1 (a", "1 (a) S 1 2", "1 (a) S 1 1 1 0 -1 0 0 0 0 0 x 5 0"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn folders_without_nodes_are_nothing_to_measure() {
        let folder = tempfile::tempdir().unwrap();
        for (name, pid) in [("n1", "12\n"), ("n2", "no number"), ("nodes", "13"), ("x3", "14")] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("pid"), pid).unwrap();
        }
        fs::create_dir(folder.path().join("n4")).unwrap();
        assert_eq!(pids(folder.path()), [(1, 12)]);
        assert_eq!(pids(&folder.path().join("gone")), []);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn processes_are_measured_from_the_start_on() {
        let folder = tempfile::tempdir().unwrap();
        let write = |node: &str, pid: u32| {
            fs::create_dir(folder.path().join(node)).unwrap();
            fs::write(folder.path().join(node).join("pid"), pid.to_string()).unwrap();
        };
        write("n1", std::process::id());
        // Not of this program.
        write("n2", 1);
        let mut meter = CpuMeter::start(folder.path().to_owned());
        assert_eq!(meter.used().nodes, BTreeMap::from([(1, Duration::ZERO)]));
        // What appears later counts from its own start.
        write("n3", std::process::id());
        meter.sample();
        assert_eq!(meter.used().nodes.keys().copied().collect::<Vec<_>>(), [1, 3]);
        let own = stat("self").expect("Linux has /proc");
        assert!(meter.nodes[&(3, std::process::id())].now <= own.ticks);
        assert_eq!(meter.nodes[&(3, std::process::id())].before, 0);
        assert!(meter.used().own.is_some());
    }
}
