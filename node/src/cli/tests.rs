//! Tables of what may be typed and what it means.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use dunlin_client::Error;
use dunlin_protocol::{Condition, Counts, Level, Stamp, Status};

use super::args::Args;
use super::command::{Command, Copy, Port, Source, Task, duration};
use super::failure::{Failure, with_causes};
use super::{asks_for_json, of_clap};

const VERSION: &str = "01JD7Z0M8T00000Q3WPNC2X5RV";

fn parse<S: Into<OsString> + Clone>(words: &[S]) -> Result<Command, Failure> {
    let typed = std::iter::once("dunlin".into()).chain(words.iter().cloned().map(Into::into));
    let args = Args::try_parse_from(typed).map_err(|e| of_clap(&e).expect("no help is asked for"))?;
    Command::try_from(args)
}

fn task(line: &str) -> Task {
    parse(&line.split(' ').collect::<Vec<_>>()).unwrap_or_else(|e| panic!("{line}: {e}")).task
}

#[test]
fn the_definition_is_consistent_and_every_command_has_examples() {
    let command = Args::command();
    command.clone().debug_assert();
    for sub in command.get_subcommands() {
        let help = sub.get_after_help().unwrap_or_else(|| panic!("{}", sub.get_name())).to_string();
        assert!(help.contains(&format!("dunlin {}", sub.get_name())), "{}", sub.get_name());
    }
}

#[test]
fn wrong_arguments_have_exit_code_2_and_say_what_is_wrong() {
    for (line, part) in [
        ("frobnicate", "frobnicate"),
        ("put k", "required"),
        ("put k v --file f", "cannot be used with"),
        ("put k v --level any", "not available yet"),
        ("put k v --level 99", "99"),
        ("put k v --ttl 10", "--ttl"),
        ("put k v --ttl 0s", "--ttl"),
        ("put k v --attr novalue", "NAME=VALUE"),
        ("put k v --attr =x", "NAME=VALUE"),
        ("put k v --op-id short", "--op-id"),
        ("put k v --timeout soon", "--timeout"),
        ("get k --range 5-2", "--range"),
        ("get k --range x", "--range"),
        ("get k --range=-5", "--range"),
        ("get k --version --out f", "cannot be used with"),
        ("get", "required"),
        ("delete k --if-version 1", "--if-version"),
        ("cas k v", "required"),
        ("cas k v --if-absent --if-value o", "cannot be used with"),
        ("cas k v --if-version nonsense", "--if-version"),
        ("incr k many", "BY"),
        ("incr k 9223372036854775808", "BY"),
        ("scan --limit x", "--limit"),
        ("cp a b", "both sides are local"),
        ("cp dunlin://a/b dunlin://c/d", "both sides are in the cluster"),
        ("cp a dunlin://", "dunlin://KEYSPACE/PREFIX"),
        ("cp a dunlin:///x", "dunlin://KEYSPACE/PREFIX"),
        ("cp dunlin://a/b/ out", "-r"),
        ("cp dunlin://a out", "-r"),
        ("outcome k", "required"),
        ("outcome k id", "OP_ID"),
        ("dev --nodes 0", "--nodes"),
        ("dev --nodes 33", "--nodes"),
        ("dev --port 0", "--port"),
        ("dev --port 65400", "--port"),
        ("dev --port x", "--port"),
        ("dev --zones a,,b", "--zones"),
        ("dev --wan 40ms", "--wan is not available yet"),
        ("serve --config f --listen 7400", "--listen"),
        ("top", "top"),
    ] {
        let failure = parse(&line.split(' ').collect::<Vec<_>>()).expect_err(line);
        assert_eq!(failure.status.exit_code(), 2, "{line}");
        assert!(failure.message.contains(part), "{line}: {failure}");
        assert!(!failure.message.starts_with("error"), "{failure}");
    }
    let nothing = of_clap(&Args::try_parse_from(["dunlin"]).expect_err("too little")).expect("no success");
    assert!(nothing.is_help() && nothing.status.exit_code() == 2 && nothing.message.contains("Usage:"));
    let long = [OsString::from("get"), OsString::from_vec(vec![b'k'; 4097])];
    assert_eq!(parse(&long).expect_err("too long").status, Status::InvalidKey);
    assert_eq!(parse(&["get", ""]).expect_err("empty").status, Status::InvalidKey);
}

#[test]
fn writes_are_understood() {
    let Task::Put(put) =
        task("put k v --level three --ttl 10s --attr a=b=c --attr d= --op-id 01JD7Z0M8T00000Q3WPNC2X5RV")
    else {
        panic!("no put")
    };
    assert_eq!((put.key.as_bytes(), put.value), (&b"k"[..], Source::Bytes(b"v".to_vec())));
    assert_eq!((put.level, put.ttl), ("three".parse().ok(), Duration::from_secs(10)));
    assert_eq!(put.attributes, [("a".to_owned(), "b=c".to_owned()), ("d".to_owned(), String::new())]);
    assert_eq!(put.op_id, VERSION.parse().ok());

    for (line, source) in [
        ("put k -", Source::Stdin),
        ("put k --file f", Source::File("f".into())),
        ("put k -- -x", Source::Bytes(b"-x".to_vec())),
    ] {
        assert!(matches!(task(line), Task::Put(put) if put.value == source), "{line}");
    }
    let raw = [OsString::from("put"), OsString::from_vec(vec![0xff, 0]), OsString::from_vec(vec![0xfe])];
    let Task::Put(put) = parse(&raw).expect("any bytes").task else { panic!("no put") };
    assert_eq!((put.key.as_bytes(), put.value), (&[0xff, 0][..], Source::Bytes(vec![0xfe])));

    for (line, condition) in [
        ("cas k v --if-absent", Condition::Absent),
        ("cas k v --if-value old", Condition::Value("old".into())),
        ("cas k v --if-version 01JD7Z0M8T00000Q3WPNC2X5RV", Condition::Version(VERSION.parse().expect("a version"))),
    ] {
        assert!(matches!(task(line), Task::Cas(cas) if cas.condition == condition), "{line}");
    }
    for (line, by) in [("incr k", 1), ("incr k 7", 7), ("incr k -5", -5), ("incr k -- -5", -5)] {
        assert!(matches!(task(line), Task::Incr(incr) if incr.by == by), "{line}");
    }
    assert!(matches!(task("delete k"), Task::Delete(delete) if delete.if_version.is_none()));
}

#[test]
fn reads_are_understood() {
    for (line, range) in [
        ("get k", None),
        ("get k --range 0-0", Some((0, Some(0)))),
        ("get k --range 5-", Some((5, None))),
        ("get k --range 2-9", Some((2, Some(9)))),
    ] {
        assert!(matches!(task(line), Task::Get(get) if get.range == range), "{line}");
    }
    assert!(
        matches!(task("get k --version --level serial"), Task::Get(get) if get.want_version && get.level == Some(Level::Serial))
    );
    let Task::Scan(scan) = task("scan --prefix p --start a --end b --limit 5 --keys-only") else { panic!("no scan") };
    assert_eq!((&scan.prefix[..], &scan.start[..], &scan.end[..]), (&b"p"[..], &b"a"[..], &b"b"[..]));
    assert!(scan.keys_only && scan.limit == Some(5));
}

#[test]
fn places_are_understood() {
    let up = |keyspace: &str, prefix: &str, recursive| Copy::Up {
        source: "a".into(),
        keyspace: keyspace.to_owned(),
        prefix: prefix.into(),
        recursive,
    };
    for (line, copy) in [
        ("cp a dunlin://default/src/", up("default", "src/", false)),
        ("cp -r a dunlin://logs", up("logs", "", true)),
        ("cp a dunlin://k/p//q", up("k", "p//q", false)),
        (
            "cp dunlin://k/p out/",
            Copy::Down { keyspace: "k".to_owned(), prefix: b"p".to_vec(), target: "out/".into(), recursive: false },
        ),
    ] {
        assert!(matches!(task(line), Task::Copy(found) if found == copy), "{line}");
    }
}

#[test]
fn common_options_stand_anywhere() {
    for line in [
        "--json --keyspace x --timeout 2m get k",
        "get k --json --keyspace x --timeout 2m",
        "get --json k --keyspace=x --timeout=2m",
    ] {
        let common = parse(&line.split(' ').collect::<Vec<_>>()).expect(line).common;
        assert_eq!(
            (common.keyspace.as_str(), common.json, common.timeout),
            ("x", true, Duration::from_secs(120)),
            "{line}"
        );
    }
    let Task::Dev(dev) = task("dev --nodes 5 --port auto --zones a,b --regions eu,us") else { panic!("no dev") };
    assert_eq!((dev.nodes, dev.port), (Some(5), Some(Port::Auto)));
    assert_eq!((dev.zones.len(), dev.regions.len()), (2, 2));
    let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
    assert!(asks_for_json(&words("dunlin nonsense --json")));
    assert!(!asks_for_json(&words("dunlin put k -- --json")));
}

#[test]
fn times_have_units() {
    for (text, millis) in
        [("1ms", 1), ("500ms", 500), ("10s", 10_000), ("2m", 120_000), ("3h", 10_800_000), ("1d", 86_400_000)]
    {
        assert_eq!(duration("--ttl", text), Ok(Duration::from_millis(millis)), "{text}");
    }
    for text in ["", "s", "1", "1.5s", "-1s", "1 s", "1w", "0ms", "99999999999999999999s", "9999999999999d"] {
        assert!(duration("--ttl", text).is_err(), "{text}");
    }
}

#[test]
fn errors_keep_their_codes_and_tell_the_facts() {
    let current: Stamp = VERSION.parse().expect("a version");
    let counts = Counts { need: 2, got: 1, alive: 1 };
    for (error, exit, part) in [
        (Error::Precondition { current }, 4, VERSION),
        (Error::Precondition { current: Stamp::ZERO }, 4, "no version"),
        (
            Error::Refused { status: Status::Unavailable, message: "2 needed, 1 alive".to_owned(), counts },
            5,
            "2 needed",
        ),
        (
            Error::Refused { status: Status::DiskFull, message: String::new(), counts: Counts::default() },
            7,
            "free space",
        ),
        (
            Error::Indefinite { status: Status::Timeout, message: String::new(), counts, op_id: current, floor: 1 },
            6,
            VERSION,
        ),
    ] {
        let failure = Failure::from(error);
        assert_eq!(failure.status.exit_code(), exit);
        assert!(failure.message.contains(part), "{failure}");
        let object = failure.to_json();
        assert_eq!(object["code"], failure.status.code());
        assert_eq!(object["message"], failure.message);
    }
    let cause = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
    let error = dunlin_storage::OpenError::DataDir { path: "d".into(), source: cause };
    assert_eq!(with_causes(&error), "the data directory d cannot be used: permission denied", "the cause is named");
    let pipe = Failure::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
    assert!(pipe.is_broken_pipe());
    let disk = Failure::from(std::io::Error::from(std::io::ErrorKind::StorageFull));
    assert!(!disk.is_broken_pipe() && disk.status.exit_code() == 1);
}
