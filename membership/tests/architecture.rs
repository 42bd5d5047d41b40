//! Proves the architecture's rules: which crate may use which, what the pure crates must not contain, and how files are kept. They are here
//! and not in a document, because what no test proves is not so for long.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId, Target, TargetKind};

/// Every crate of the workspace and which others it may use.
const MAY_USE: &[(&str, &[&str])] = &[
    ("protocol", &[]),
    ("membership", &["protocol"]),
    ("quorum", &["protocol", "membership"]),
    ("paxos", &["protocol", "membership"]),
    ("storage", &["protocol"]),
    ("client", &["protocol"]),
    ("node", &["protocol", "membership", "quorum", "paxos", "storage", "client"]),
    ("sim", &["protocol", "membership", "quorum", "paxos", "storage", "client", "node"]),
    ("benches", &["protocol", "membership", "quorum", "paxos", "storage", "client", "node", "sim"]),
];

/// Tests may use more, but never these.
const NEVER_EVEN_IN_TESTS: &[(&str, &str)] = &[("quorum", "paxos"), ("paxos", "quorum")];

/// No I/O, no clock, no threads: time and randomness come in as arguments.
const PURE: &[&str] = &["protocol", "membership", "quorum", "paxos"];

/// What is in no pure crate's tree of dependencies.
const IMPURE_DEPENDENCIES: &[&str] = &["tokio", "quinn", "quinn-proto", "rustls", "turmoil", "mio", "socket2"];

/// What is in no pure crate's code, as it looks without its spaces.
const IMPURE_CODE: &[&str] = &["std::thread", "std::net", "std::fs", "rand::rng(", "thread_rng("];

/// What is in no pure crate's code as a word.
const IMPURE_WORDS: &[&str] = &["Instant", "SystemTime", "UNIX_EPOCH"];

/// Modules that do not come in by a `use std::{..}` either.
const IMPURE_MODULES: &[&str] = &["thread", "net", "fs"];

/// Written in two parts, or this file would not pass.
const UNFINISHED: &[&str] = &[concat!("to", "do!("), concat!("unimple", "mented!("), concat!("db", "g!(")];

const MOST_LINES: usize = 600;

fn metadata() -> Metadata {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("Cargo.toml");
    MetadataCommand::new().manifest_path(manifest).exec().expect("cargo knows the workspace")
}

fn short_name(package: &Package) -> &str {
    package.name.strip_prefix("dunlin-").expect("our crates are named so")
}

fn directory(package: &Package) -> PathBuf {
    package.manifest_path.parent().expect("a manifest lies in a folder").as_std_path().to_owned()
}

/// All Rust files below a folder, in order.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder can be read") {
            let path = entry.expect("the folder can be read").path();
            let name = path.file_name().expect("entries have names");
            if path.is_dir() && name != "target" {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files.sort_unstable();
    files
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The text without what follows `//`.
fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split_once("//").map_or(line, |(code, _)| code)).fold(
        String::new(),
        |mut all, line| {
            all.push_str(line);
            all.push('\n');
            all
        },
    )
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_')
}

/// What is impure in a piece of code.
fn impurities(text: &str) -> BTreeSet<String> {
    let code = without_comments(text);
    let dense: String = code.split_whitespace().collect();
    let mut found: BTreeSet<String> =
        IMPURE_CODE.iter().filter(|c| dense.contains(**c)).map(|c| c.to_string()).collect();
    found.extend(words(&code).filter(|w| IMPURE_WORDS.contains(w)).map(str::to_owned));
    for group in dense.split("std::{").skip(1) {
        let mut depth = 0;
        let top: String = group
            .chars()
            .take_while(|c| {
                depth += i32::from(*c == '{') - i32::from(*c == '}');
                depth >= 0
            })
            .collect();
        let modules = words(&top).filter(|w| IMPURE_MODULES.contains(w));
        found.extend(modules.map(|module| format!("std::{module}")));
    }
    found
}

#[track_caller]
fn assert_none(rule: &str, violations: &[String]) {
    assert!(violations.is_empty(), "{rule}:\n  {}", violations.join("\n  "));
}

#[test]
fn crates_use_only_what_is_below_them() {
    let allowed: BTreeMap<_, _> = MAY_USE.iter().copied().collect();
    let metadata = metadata();
    let mut violations = Vec::new();
    for package in metadata.workspace_packages() {
        let user = short_name(package);
        let Some(may_use) = allowed.get(user) else {
            violations.push(format!("{user} is in no rule"));
            continue;
        };
        for dependency in &package.dependencies {
            let Some(used) = dependency.name.strip_prefix("dunlin-") else { continue };
            let is_test_only = dependency.kind == DependencyKind::Development;
            let is_banned = NEVER_EVEN_IN_TESTS.contains(&(user, used)) || ["sim", "benches"].contains(&used);
            if !may_use.contains(&used) && (is_banned || !is_test_only) {
                violations.push(format!("{user} uses {used}"));
            }
        }
    }
    let ours: BTreeSet<_> = metadata.workspace_packages().into_iter().map(short_name).collect();
    violations.extend(allowed.keys().filter(|name| !ours.contains(*name)).map(|name| format!("{name} does not exist")));
    assert_none("who may use whom", &violations);
}

#[test]
fn pure_crates_depend_on_no_runtime_and_no_network() {
    let metadata = metadata();
    let nodes = &metadata.resolve.as_ref().expect("cargo resolved").nodes;
    let normal: BTreeMap<&PackageId, Vec<&PackageId>> = nodes
        .iter()
        .map(|node| {
            let is_normal = |d: &&cargo_metadata::NodeDep| d.dep_kinds.iter().any(|k| k.kind == DependencyKind::Normal);
            (&node.id, node.deps.iter().filter(is_normal).map(|d| &d.pkg).collect())
        })
        .collect();
    let mut violations = Vec::new();
    let mut trees = 0;
    for package in metadata.workspace_packages().into_iter().filter(|p| PURE.contains(&short_name(p))) {
        let mut tree = BTreeSet::from([&package.id]);
        let mut open = vec![&package.id];
        while let Some(id) = open.pop() {
            open.extend(normal[id].iter().filter(|d| tree.insert(**d)));
        }
        assert!(tree.len() > 5, "the tree of {} is not looked at", package.name);
        trees += 1;
        let names = tree.iter().map(|id| metadata[*id].name.as_str()).filter(|n| IMPURE_DEPENDENCIES.contains(n));
        violations.extend(names.map(|name| format!("{} depends on {name}", package.name)));
    }
    assert_eq!(trees, PURE.len());
    assert_none("pure crates do no I/O", &violations);
}

#[test]
fn pure_crates_take_time_and_randomness_as_arguments() {
    let metadata = metadata();
    let mut violations = Vec::new();
    for package in metadata.workspace_packages().into_iter().filter(|p| PURE.contains(&short_name(p))) {
        let files = rust_files(&directory(package).join("src"));
        assert!(!files.is_empty());
        for file in files {
            let found = impurities(&read(&file));
            violations.extend(found.into_iter().map(|what| format!("{}: {what}", file.display())));
        }
    }
    assert_none("pure crates have no clock, no thread, no I/O and no randomness of their own", &violations);
}

#[test]
fn impurities_are_found_in_every_form() {
    let check = |code: &str, expected: &[&str]| {
        assert_eq!(impurities(code).iter().map(String::as_str).collect::<Vec<_>>(), expected, "{code}");
    };
    check("use std::time::Duration; // not Instant", &[]);
    check("use std::{collections::BTreeMap, sync::Arc}; let net = 1;", &[]);
    check("use std::time::{Duration, Instant};", &["Instant"]);
    check("let now = std::time::SystemTime::now();", &["SystemTime"]);
    check("use std::{\n    collections::{BTreeMap, BTreeSet},\n    fs,\n};", &["std::fs"]);
    check("std :: thread::spawn(f); rand::rng().next()", &["rand::rng(", "std::thread"]);
}

#[test]
fn files_are_finished_and_of_a_size_to_be_read() {
    let mut violations = Vec::new();
    for package in metadata().workspace_packages() {
        for file in rust_files(&directory(package)) {
            let text = read(&file);
            let code = without_comments(&text);
            let found = UNFINISHED.iter().filter(|what| code.contains(**what));
            violations.extend(found.map(|what| format!("{}: {what}..)", file.display())));
            let lines = text.lines().count();
            if lines > MOST_LINES {
                violations.push(format!("{}: {lines} lines", file.display()));
            }
        }
    }
    assert_none(&format!("files are finished and have at most {MOST_LINES} lines"), &violations);
}

#[test]
fn crates_have_one_integration_binary_at_most() {
    let metadata = metadata();
    // What needs a feature is linked by nobody who did not ask for it.
    let is_one = |t: &&Target| t.kind.contains(&TargetKind::Test) && t.required_features.is_empty();
    let count = |p: &Package| p.targets.iter().filter(is_one).count();
    let packages = metadata.workspace_packages();
    let many = packages.into_iter().filter(|p| count(p) > 1).map(|p| format!("{} has {}", p.name, count(p)));
    assert_none("one integration binary a crate", &many.collect::<Vec<_>>());
}
