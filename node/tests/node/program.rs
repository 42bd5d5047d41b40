//! The program as its users meet it: clusters of real processes on this machine, asked on the command line, killed, damaged, started again.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Two clusters that look for free ports at the same time could find the same ones.
static STARTING: Mutex<()> = Mutex::new(());
/// How often a state is asked for until it must have come; each time takes a process and a request.
const LOOKS: usize = 2_000;

/// A folder with all that a user has: the program, and places of its own, so that no other cluster of this machine is touched.
struct Home {
    folder: tempfile::TempDir,
}

/// A running `dunlin dev`.
struct Dev {
    child: Child,
    /// The nodes' process ids.
    nodes: Vec<u32>,
    stopped: bool,
}

/// What a command left.
struct Ran {
    code: Option<i32>,
    out: Vec<u8>,
    err: String,
}

impl Ran {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.out).expect("text")
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.out).unwrap_or_else(|e| panic!("{e}: {:?}, {}", self.out, self.err))
    }

    #[track_caller]
    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{} {}", String::from_utf8_lossy(&self.out), self.err);
        self
    }
}

impl Home {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn program(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dunlin"));
        command
            .current_dir(self.folder.path())
            .env("HOME", self.folder.path())
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .env_remove("DUNLIN_CONTEXT")
            .env_remove("DUNLIN_CONFIG")
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    fn run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Ran {
        let Output { status, stdout, stderr } = self.program().args(words).output().expect("it runs");
        Ran { code: status.code(), out: stdout, err: String::from_utf8_lossy(&stderr).into_owned() }
    }

    /// As [`run`](Self::run); the words stand between spaces.
    fn dunlin(&self, line: &str) -> Ran {
        self.run(line.split(' '))
    }

    /// Starts a cluster on the folder `d`, and waits until it is ready.
    fn dev(&self, nodes: usize) -> Dev {
        let _one_at_a_time = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        // Another program may take a port between looking and taking.
        for _ in 0..5 {
            let mut child = self
                .program()
                .args(["dev", "--json", "--port", "auto", "--data", "d", "--nodes", &nodes.to_string()])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("it starts");
            let mut line = String::new();
            // Ends in any case: a cluster that is not ready after a minute gives up.
            BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("readable");
            let told: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
            match told["code"].as_str() {
                Some("OK") => {
                    let ids = told["nodes"].as_array().expect("nodes").iter().map(|n| n["pid"].as_u64());
                    let nodes = ids.map(|id| u32::try_from(id.expect("an id")).expect("an id")).collect();
                    return Dev { child, nodes, stopped: false };
                }
                Some("ADDRESS_IN_USE") => assert!(!child.wait().expect("it ends").success()),
                _ => panic!("{line}"),
            }
        }
        panic!("every port that was free was taken before it could be used");
    }

    /// Asks for the status until it is as wanted.
    fn await_status(&self, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let mut last = None;
        for _ in 0..LOOKS {
            let ran = self.dunlin("status --json");
            if ran.code == Some(0) {
                let members = ran.json()["members"].as_array().expect("members").clone();
                if wanted(&members) {
                    return members;
                }
                last = Some(members);
            }
        }
        panic!("the status never came to be what it should: {last:?}");
    }
}

impl Dev {
    /// `kill -9` of a node, by its place.
    fn kill(&self, node: usize) {
        kill_process(pid(self.nodes[node]), Signal::KILL).expect("it ran");
    }

    /// Stops the cluster in order.
    fn stop(mut self) {
        self.stopped = true;
        kill_process(pid(self.child.id()), Signal::TERM).expect("it ran");
        let status = self.child.wait().expect("it ends");
        let mut told = String::new();
        self.child.stderr.take().expect("piped").read_to_string(&mut told).expect("readable");
        assert!(status.success() && !told.contains("are killed"), "{status}: {told}");
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if !self.stopped && kill_process(pid(self.child.id()), Signal::TERM).is_ok() {
            // A test has failed already: what counts is that nothing goes on running.
            let _ = self.child.wait();
        }
    }
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).expect("an id")).expect("not zero")
}

/// Any file's content, the same for the same seed.
fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn is_version(text: &str) -> bool {
    text.len() == 27 && text.ends_with('\n') && text.starts_with('0')
}

#[test]
fn the_readmes_session() {
    let home = Home::new();
    home.dunlin("get a").expect(5);
    let dev = home.dev(3);
    assert!(is_version(home.dunlin("put a 1").expect(0).text()));
    assert_eq!(home.dunlin("get a").expect(0).text(), "1");
    assert!(is_version(home.dunlin("cas a 2 --if-value 1").expect(0).text()));
    assert_eq!(home.dunlin("get a --level serial").expect(0).text(), "2");
    assert_eq!(home.dunlin("incr n 5").expect(0).text(), "5\n");
    let status = home.dunlin("status").expect(0);
    let lines: Vec<_> = status.text().lines().collect();
    assert!(lines.len() == 6 && lines[0].ends_with(", epoch 1, as node 1 sees it"), "{lines:?}");
    assert!(lines[1].contains("default (3 replicas, reads at quorum, writes at quorum)"), "{lines:?}");
    assert!(lines[2].starts_with("NODE  ADDRESS") && lines[2].ends_with("SUSPECT"), "{lines:?}");
    assert!(lines[3..].iter().all(|line| line.contains("  ready  ") && line.ends_with("  0")), "{lines:?}");

    // What does not work says why, in words and in JSON, and by its exit code.
    let version = home.dunlin("get a --version").expect(0).text().trim().to_owned();
    assert!(home.dunlin("cas a 3 --if-value 1").expect(4).err.contains(&version));
    let refused = home.dunlin("cas a 3 --if-absent --json").expect(4).json();
    assert_eq!((&refused["code"], &refused["version"]), (&"PRECONDITION_FAILED".into(), &version.into()));
    assert_eq!(home.dunlin("get b --json").expect(3).json()["code"], "NOT_FOUND");
    for (line, code, status) in [
        ("put a 1 --level four", 2, "INVALID_LEVEL"),
        ("put a 1 --level 4", 2, "INVALID_LEVEL"),
        ("frobnicate", 2, "INVALID_ARGUMENT"),
        ("get a --keyspace nowhere", 7, "UNKNOWN_KEYSPACE"),
        ("scan --keyspace nowhere", 7, "UNKNOWN_KEYSPACE"),
        ("incr a --at 127.0.0.1", 2, "INVALID_ARGUMENT"),
        ("dev --data d", 1, "DATA_DIR_IN_USE"),
        ("serve --config d/dev.toml", 2, "INVALID_CONFIG"),
        ("serve --config d/n1/config.toml", 1, "ADDRESS_IN_USE"),
        ("serve --config d/n1/config.toml --listen 127.0.0.1:0", 1, "DATA_DIR_IN_USE"),
        ("serve --config d/n1/config.toml --listen 127.0.0.1:0 --data d/n2", 1, "IDENTITY_MISMATCH"),
    ] {
        if line.ends_with("d/n2") {
            // Another node's folder, where nobody uses it.
            fs::create_dir(home.path("other")).expect("made");
            let identity = home.path("d/n2/data/IDENTITY");
            fs::copy(identity, home.path("other/IDENTITY")).expect("copied");
        }
        let ran = home.dunlin(&line.replace("d/n2", "other")).expect(code);
        assert!(ran.err.starts_with("error: ") && ran.err.ends_with(&format!("({status})\n")), "{line}: {}", ran.err);
    }

    // Any bytes are a key, up to 4,096 of them.
    let odd = OsString::from_vec([&b"\xff\n\t"[..], &[b'k'; 4093]].concat());
    home.run([OsStr::new("put"), &odd, OsStr::new("\u{fffd}")]).expect(0);
    assert_eq!(home.run([OsStr::new("get"), &odd]).expect(0).out, "\u{fffd}".as_bytes());
    let longer = OsString::from_vec([odd.as_bytes(), b"k"].concat());
    assert!(home.run([OsStr::new("get"), &longer]).expect(2).err.contains("INVALID_KEY"));
    home.run([OsStr::new("delete"), &odd]).expect(0);
    assert_eq!(home.dunlin("scan --prefix a --keys-only").expect(0).text(), "a\n");

    dev.stop();
    assert!(!home.path("d/n1/pid").exists() && home.path("d/n1/data").exists());
    let log = fs::read_to_string(home.path("d/n1/log")).expect("there");
    assert!(!log.contains("peer refused") && !log.contains(" ERROR "), "nothing went wrong: {log}");
    home.dunlin("get a").expect(5);
}

#[test]
fn nothing_that_was_acknowledged_is_lost_when_all_nodes_are_killed() {
    let home = Home::new();
    let dev = home.dev(3);
    let written = AtomicU64::new(0);
    let acknowledged = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut acknowledged = Vec::new();
            for i in 0.. {
                let put = home.dunlin(&format!("put k{i} {i}"));
                let ended = if put.code == Some(0) {
                    acknowledged.push(i);
                    home.dunlin("incr n")
                } else {
                    put
                };
                if ended.code != Some(0) {
                    // Another cluster may have taken the ports meanwhile.
                    let is_expected = matches!(ended.code, Some(5 | 6)) || ended.err.ends_with("(UNAUTHENTICATED)\n");
                    assert!(is_expected, "{:?} {}", ended.code, ended.err);
                    return (acknowledged, i);
                }
                written.fetch_add(1, Ordering::Relaxed);
            }
            unreachable!("the nodes are killed");
        });
        while written.load(Ordering::Relaxed) < 10 {
            assert!(!writer.is_finished(), "it goes on until the nodes are killed");
            std::thread::yield_now();
        }
        for node in 0..3 {
            dev.kill(node);
        }
        writer.join().expect("it ends")
    });
    dev.stop();

    let dev = home.dev(3);
    let (keys, counted) = acknowledged;
    for i in keys {
        assert_eq!(home.dunlin(&format!("get k{i}")).expect(0).text(), i.to_string());
    }
    let number: u64 = home.dunlin("get n --level serial").expect(0).text().parse().expect("a number");
    // The last one may have been applied without being acknowledged.
    assert!((counted..=counted + 1).contains(&number), "{number} after {counted}");
    dev.stop();
}

/// Stamps drawn after a restart lie above all that were drawn before it; those of clients that know nothing of that must not fall below them.
#[test]
fn a_write_is_not_older_than_what_was_there_before_it() {
    let home = Home::new();
    for round in 0..3 {
        let dev = home.dev(3);
        for i in 0..25 {
            let value = format!("{round}.{i}");
            home.dunlin(&format!("put k {value}")).expect(0);
            assert_eq!(home.dunlin("get k").expect(0).text(), value);
        }
        (0..3).for_each(|node| dev.kill(node));
        dev.stop();
    }
}

#[test]
fn two_nodes_of_three_go_on_and_the_third_one_comes_back() {
    let home = Home::new();
    let dev = home.dev(3);
    home.dunlin("put early 1").expect(0);
    let killed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (home, killed) = (&home, &killed);
        for client in 0..2 {
            scope.spawn(move || {
                let mut left = 6;
                for i in 0.. {
                    left -= u32::from(killed.load(Ordering::Acquire));
                    home.dunlin(&format!("put c{client}-{i} {i}")).expect(0);
                    home.dunlin(&format!("incr count{client}")).expect(0);
                    if left == 0 {
                        assert_eq!(home.dunlin(&format!("get count{client}")).expect(0).text(), format!("{}", i + 1));
                        return;
                    }
                }
            });
        }
        dev.kill(1);
        killed.store(true, Ordering::Release);
    });
    home.await_status(|members| members[1]["alive"] == false);
    let refused = home.dunlin("put x 1 --level all --json").expect(5).json();
    assert_eq!((&refused["code"], &refused["alive"]), (&"UNAVAILABLE".into(), &2.into()));
    assert_eq!(home.dunlin("get early --level serial").expect(0).text(), "1");

    let mut node = home
        .program()
        .args(["serve", "--stop-with-stdin", "--config", "d/n2/config.toml", "--pid-file", "d/n2/pid"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let members = home.await_status(|members| members.iter().all(|m| m["ready"] == true && m["alive"] == true));
    assert_eq!(members[1]["boot"], 2);
    home.dunlin("put x 1 --level all").expect(0);
    assert_eq!(home.dunlin("get c0-0 --level all").expect(0).text(), "0");
    kill_process(pid(node.id()), Signal::TERM).expect("it ran");
    assert!(node.wait().expect("it ends").success());
    dev.stop();
}

#[test]
fn a_damaged_segment_costs_one_partition_of_one_node() {
    let home = Home::new();
    let dev = home.dev(3);
    let value = "a-value-that-is-found-in-the-segment";
    home.dunlin(&format!("put damaged {value}")).expect(0);
    home.dunlin("put whole 1 --level all").expect(0);
    dev.stop();
    let segment = home.path("d/n1/data/segments/0000000000000000.seg");
    let mut content = fs::read(&segment).expect("there");
    let at = content.windows(value.len()).position(|w| w == value.as_bytes()).expect("written there");
    content[at] ^= 1;
    fs::write(&segment, content).expect("written");

    let dev = home.dev(3);
    let members = home.await_status(|_| true);
    assert_eq!(members.iter().map(|m| m["suspect_partitions"].as_u64()).collect::<Vec<_>>(), [1, 0, 0].map(Some));
    assert_eq!(home.dunlin("get damaged").expect(0).text(), value);
    assert!(home.dunlin("get damaged --level all").expect(5).err.contains("(SUSPECT)"));
    home.dunlin("cas damaged 2 --if-absent").expect(4);
    assert_eq!(home.dunlin("get whole --level all").expect(0).text(), "1");
    let log = fs::read_to_string(home.path("d/n1/log")).expect("there");
    assert!(log.contains("0000000000000000.seg at "), "{log}");
    dev.stop();
    // Cut off after a stop in order, the log is not taken for one that a crash had torn.
    fs::File::options().write(true).open(&segment).and_then(|f| f.set_len(200)).expect("cut");
    let dev = home.dev(3);
    let members = home.await_status(|_| true);
    assert_eq!(members[0]["suspect_partitions"], 256, "{members:?}");
    assert_eq!(home.dunlin("get whole").expect(0).text(), "1");
    dev.stop();
}

#[test]
fn a_running_nodes_data_is_checked() {
    let home = Home::new();
    let dev = home.dev(3);
    let value = "a-value-that-is-found-in-the-segment";
    home.dunlin(&format!("put damaged {value} --level all")).expect(0);
    fs::write(home.path("large"), bytes(100 << 10, 9)).expect("written");
    // Checked again and again while the node is written to.
    let is_done = AtomicBool::new(false);
    let checks = std::thread::scope(|scope| {
        let (home, is_done) = (&home, &is_done);
        let checker = scope.spawn(move || {
            let mut checks = 0;
            while !is_done.load(Ordering::Acquire) || checks == 0 {
                let told = home.dunlin("verify --data d/n1/data --json").expect(0).json();
                assert_eq!((&told["code"], &told["damage_count"]), (&"OK".into(), &0.into()), "{told}");
                assert!(told["items"].as_u64() > Some(0) && told["files"].as_u64() > Some(0), "{told}");
                checks += 1;
            }
            checks
        });
        for i in 0..30 {
            home.dunlin(&format!("put k{} --file large", i % 7)).expect(0);
        }
        is_done.store(true, Ordering::Release);
        checker.join().expect("no panic")
    });
    assert!(checks > 0);
    let position = |content: &[u8]| content.windows(value.len()).position(|w| w == value.as_bytes());
    let segments =
        fs::read_dir(home.path("d/n1/data/segments")).expect("a folder").map(|entry| entry.expect("readable").path());
    let holds = |path: &PathBuf| position(&fs::read(path).expect("there")).is_some();
    // The first one, but for a cluster that was started twice, since its ports were taken.
    let file = segments.into_iter().find(holds).expect("written to one");
    let segment = format!("segments/{}", file.file_name().and_then(OsStr::to_str).expect("a name"));
    let mut content = fs::read(&file).expect("there");
    let at = position(&content).expect("written there");
    content[at] ^= 1;
    let open = fs::File::options().write(true).open(&file).expect("opens");
    std::os::unix::fs::FileExt::write_all_at(&open, &content[at..=at], at as u64).expect("written");
    let told = home.dunlin("verify --data d/n1/data --json").expect(8).json();
    let damage = &told["damaged"][0];
    assert_eq!((&told["code"], &told["damage_count"]), (&"CORRUPTION".into(), &1.into()), "{told}");
    assert_eq!((&damage["file"], &damage["kind"]), (&segment.clone().into(), &"checksum".into()));
    assert!(damage["offset"].as_u64() < Some(at as u64) && damage["expected"] != damage["found"], "{told}");
    let shown = home.dunlin("verify --data d/n1/data").expect(8);
    let lines: Vec<_> = shown.text().lines().collect();
    assert!(lines.len() == 3 && lines[0].starts_with("FILE") && lines[1].starts_with(&segment), "{lines:?}");
    assert!(shown.err.contains("1 places are damaged"), "{}", shown.err);
    // The others are whole, the node goes on, and a folder that is none of a node's is not passed.
    home.dunlin("verify --data d/n2/data").expect(0);
    home.dunlin("put k 1 --level all").expect(0);
    for folder in ["d", "d/n1", "nowhere"] {
        home.dunlin(&format!("verify --data {folder}")).expect(2);
    }
    // Put back, all is as it was.
    std::os::unix::fs::FileExt::write_all_at(&open, &[content[at] ^ 1], at as u64).expect("written");
    dev.stop();
    home.dunlin("verify --data d/n1/data").expect(0);
    let topology = home.path("d/n1/data/TOPOLOGY");
    let mut content = fs::read(&topology).expect("there");
    content[20] ^= 1;
    fs::write(&topology, content).expect("written");
    assert!(home.dunlin("verify --data d/n1/data").expect(8).text().contains("TOPOLOGY"));
}

#[test]
fn a_folder_is_copied_in_and_out() {
    let home = Home::new();
    let dev = home.dev(1);
    let files: [(&[u8], Vec<u8>); 7] = [
        (b"plain.txt", b"text\n".to_vec()),
        (b"empty", Vec::new()),
        (b" spaces  and\nlines\t", b"x".to_vec()),
        (b"-flag", b"y".to_vec()),
        (b"deep/er/\xff\xfe", bytes(70_000, 1)),
        ("deep/größe".as_bytes(), bytes(3, 2)),
        (b"deep/1 MiB", bytes(1 << 20, 3)),
    ];
    for (name, content) in &files {
        let path = home.path("in").join(OsStr::from_bytes(name));
        fs::create_dir_all(path.parent().expect("below")).expect("made");
        fs::write(path, content).expect("written");
    }
    let large = home.path("in/deep/larger");
    fs::write(&large, bytes((1 << 20) + 1, 4)).expect("written");
    let up = home.dunlin("cp -r in dunlin://default/all/ --json").expect(7);
    assert!(up.err.contains("deep/larger: 1048577 bytes"), "{}", up.err);
    let told = up.json();
    assert_eq!((&told["code"], &told["copied"], &told["refused"]), (&"VALUE_TOO_LARGE".into(), &7.into(), &1.into()));

    let down = home.dunlin("cp -r dunlin://default/all/ out --json").expect(0).json();
    assert_eq!((&down["copied"], &down["failed"]), (&7.into(), &0.into()));
    for (name, content) in &files {
        let found = fs::read(home.path("out").join(OsStr::from_bytes(name))).expect("copied");
        assert!(found == *content, "{}", name.escape_ascii());
    }
    assert_eq!(names(&home.path("out")), names(&home.path("in")) - 1, "nothing else is there");

    // One file, and the largest value through every path of the protocol.
    home.dunlin("cp in/plain.txt dunlin://default/one").expect(0);
    home.dunlin("cp dunlin://default/one one.txt").expect(0);
    assert_eq!(fs::read(home.path("one.txt")).expect("copied"), b"text\n");
    // A busy machine may take long for a MiB.
    home.dunlin("put large --file in/deep/larger --timeout 60s").expect(7);
    home.run(["put", "large", "--file", "in/deep/1 MiB", "--timeout", "60s"]).expect(0);
    let version = home.dunlin("get large --version").expect(0).text().trim().to_owned();
    fs::write(home.path("second"), bytes(1 << 20, 5)).expect("written");
    for swapped in [0, 4] {
        let new = fs::File::open(home.path("second")).expect("there");
        let cas = home
            .program()
            .args(["cas", "large", "-", "--if-version", &version, "--timeout", "60s"])
            .stdin(new)
            .output();
        assert_eq!(cas.expect("it runs").status.code(), Some(swapped));
    }
    home.dunlin("get large --level serial --out large --timeout 60s").expect(0);
    assert!(fs::read(home.path("large")).expect("there") == bytes(1 << 20, 5));
    dev.stop();
}

/// How many files are below a folder.
fn names(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("readable").path());
    entries.map(|path| if path.is_dir() { names(&path) } else { 1 }).sum()
}
