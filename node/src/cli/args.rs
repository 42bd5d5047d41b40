//! What may be typed. Nothing is interpreted here beyond the shape; see [`command`](super::command).

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// A leaderless key-value store in which each request picks its own consistency.
#[derive(Parser, Debug)]
#[command(name = "dunlin", version, arg_required_else_help = true, after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) task: RawTask,
    #[command(flatten)]
    pub(crate) common: RawCommon,
}

const EXAMPLES: &str = "\
Examples:
  dunlin dev                      three nodes on this machine, until Ctrl-C
  dunlin put greeting hello       in another terminal; prints the version
  dunlin get greeting
  dunlin cas greeting bye --if-value hello
  dunlin incr visits

Exit codes:
  0 done   1 other failure   2 usage   3 not found   4 precondition failed   5 unavailable, nothing was sent
  6 outcome unknown   7 refused (quota, size, overload, full disk, clock skew, expired id)   8 corruption found";

#[derive(clap::Args, Debug)]
pub(crate) struct RawCommon {
    /// The keyspace
    #[arg(long, global = true, default_value = "default", value_name = "NAME", help_heading = "Common options")]
    pub(crate) keyspace: String,
    /// Which cluster: a context file, such as DIR/context.toml of a `dunlin dev` [default: the running dev cluster]
    #[arg(long, global = true, env = "DUNLIN_CONTEXT", value_name = "FILE", help_heading = "Common options")]
    pub(crate) context: Option<PathBuf>,
    /// Reach the cluster through this node
    #[arg(long, global = true, value_name = "HOST:PORT", help_heading = "Common options")]
    pub(crate) at: Option<String>,
    /// How long a request may take in all, such as 500ms, 5s, 2m [default: 5s]
    #[arg(long, global = true, value_name = "TIME", help_heading = "Common options")]
    pub(crate) timeout: Option<String>,
    /// Results and errors as one JSON object on stdout
    #[arg(long, global = true, help_heading = "Common options")]
    pub(crate) json: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum RawTask {
    Dev(RawDev),
    Serve(RawServe),
    Put(RawPut),
    Get(RawGet),
    Delete(RawDelete),
    Cas(RawCas),
    Incr(RawIncr),
    Scan(RawScan),
    Cp(RawCopy),
    Outcome(RawOutcome),
    Bench(super::bench::RawBench),
    /// How the cluster and its nodes are
    #[command(after_help = "Examples:\n  dunlin status\n  dunlin status --json")]
    Status,
    /// Which node holds how much of the hash space
    #[command(after_help = "Examples:\n  dunlin ring\n  dunlin ring --json      with the replicas of every partition")]
    Ring,
    Verify(RawVerify),
}

/// Start a cluster on this machine, until Ctrl-C
///
/// Prints a table of the nodes, then `ready` on a line of its own once a quorum write works. Run again with the same --data it goes on with
/// the same data. DIR/context.toml is the client context; DIR/n1, DIR/n2 .. are the nodes' folders, each with its log, and with a `pid` file
/// while the node runs.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  dunlin dev\n  dunlin dev --nodes 5 --data ./cluster --port auto --zones a,b,c")]
pub(crate) struct RawDev {
    /// How many nodes, 1 to 32 [default: 3, or as many as DIR has]
    #[arg(long, value_name = "N")]
    pub(crate) nodes: Option<u8>,
    /// Where the data lies [default: a temporary folder, removed at exit]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// The first node's port, or `auto`; the others follow [default: 7400, or what DIR had]
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<String>,
    /// Regions, taken by the nodes in turn
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) regions: Vec<String>,
    /// Zones, taken by the nodes in turn [default: one for each node]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) zones: Vec<String>,
    /// Delay between regions
    #[arg(long, value_name = "TIME", hide = true)]
    pub(crate) wan: Option<String>,
}

/// Run one node, until SIGTERM or Ctrl-C
///
/// What it logs goes to stderr; DUNLIN_LOG says how much (error, warn, info, debug, or a filter).
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Besides id, data, listen, [cluster] and [tls] the configuration may set how the engine works in [storage] (segment_bytes, memtable_bytes, cache_bytes, \
inline_bytes, stage_bytes, garbage_percent, sync = \"always\", \"interval\" or \"never\", sync_interval_millis, pending_limit_bytes, disk_reserve_bytes, scrub_period = \"7d\" or \
\"off\", scrub_least_rate, scrub_most_rate) and connections in [network].\n\nExamples:\n  dunlin serve --config /etc/dunlin/node.toml"
)]
pub(crate) struct RawServe {
    /// The configuration, as TOML
    #[arg(long, env = "DUNLIN_CONFIG", value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// The data directory, instead of the configuration's
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Where to listen, instead of the configuration's
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) listen: Option<String>,
    /// A file that holds the process id while the node runs
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Stop when stdin ends: whoever started the node is gone then
    #[arg(long, hide = true)]
    pub(crate) stop_with_stdin: bool,
}

/// Store a value; prints its version
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  dunlin put greeting hello
  dunlin put logo --file logo.png --attr type=image/png
  date | dunlin put now - --ttl 10s --level all

An operation id near the cluster's time is used for this write. Any other one names a write that timed out: it is not sent again, but
settled: done if it was applied, NOT_APPLIED if it was not, and then it never will be.")]
pub(crate) struct RawPut {
    /// The key: 1 to 4,096 bytes
    pub(crate) key: OsString,
    /// The value; `-` reads it from stdin
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    pub(crate) value: Option<OsString>,
    /// The value is this file's content
    #[arg(long, value_name = "F")]
    pub(crate) file: Option<PathBuf>,
    /// one, two, three, a number, quorum, all, serial [default: the keyspace's]
    #[arg(long, value_name = "L")]
    pub(crate) level: Option<String>,
    /// The value ends after this time, such as 10s, 5m, 1h, 7d
    #[arg(long, value_name = "TIME")]
    pub(crate) ttl: Option<String>,
    /// An attribute of the value; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) attr: Vec<String>,
    /// The write's id
    #[arg(long, value_name = "ID")]
    pub(crate) op_id: Option<String>,
}

/// Print a value: its bytes as they are
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  dunlin get greeting
  dunlin get logo --out logo.png
  dunlin get log --range 0-99 --level one
  dunlin get greeting --version")]
pub(crate) struct RawGet {
    /// The key: 1 to 4,096 bytes
    pub(crate) key: OsString,
    /// Write the value to this file
    #[arg(long, value_name = "F", conflicts_with = "want_version")]
    pub(crate) out: Option<PathBuf>,
    /// one, two, three, a number, quorum, all, serial [default: the keyspace's]
    #[arg(long, value_name = "L")]
    pub(crate) level: Option<String>,
    /// Only these bytes, counted from 0, both ends included; `A-` goes to the end
    #[arg(long, value_name = "A-B", conflicts_with = "want_version")]
    pub(crate) range: Option<String>,
    /// Print the version instead of the value
    #[arg(long = "version")]
    pub(crate) want_version: bool,
}

/// Delete a key; prints the version of its absence
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  dunlin delete greeting\n  dunlin delete greeting --if-version $(dunlin get greeting --version)"
)]
pub(crate) struct RawDelete {
    /// The key: 1 to 4,096 bytes
    pub(crate) key: OsString,
    /// one, two, three, a number, quorum, all, serial [default: the keyspace's]
    #[arg(long, value_name = "L")]
    pub(crate) level: Option<String>,
    /// Only if this is the key's version
    #[arg(long, value_name = "V")]
    pub(crate) if_version: Option<String>,
}

/// Compare and set: store a value if a condition holds; prints the new version
#[derive(clap::Args, Debug)]
#[command(group = clap::ArgGroup::new("condition").required(true), after_help = "Examples:
  dunlin cas lock me --if-absent --ttl 30s
  dunlin cas greeting bye --if-value hello
  dunlin cas greeting bye --if-version $(dunlin get greeting --version)

When the condition does not hold, the exit code is 4 and the current version is on stderr.")]
pub(crate) struct RawCas {
    /// The key: 1 to 4,096 bytes
    pub(crate) key: OsString,
    /// The new value; `-` reads it from stdin
    pub(crate) new: OsString,
    /// Only if this is the key's version
    #[arg(long, value_name = "V", group = "condition")]
    pub(crate) if_version: Option<String>,
    /// Only if the key has no value
    #[arg(long, group = "condition")]
    pub(crate) if_absent: bool,
    /// Only if this is the key's value
    #[arg(long, value_name = "OLD", group = "condition")]
    pub(crate) if_value: Option<OsString>,
    /// The value ends after this time, such as 10s, 5m, 1h, 7d
    #[arg(long, value_name = "TIME")]
    pub(crate) ttl: Option<String>,
}

/// Add to a number; prints the new one
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  dunlin incr visits\n  dunlin incr stock -- -5")]
pub(crate) struct RawIncr {
    /// The key: 1 to 4,096 bytes
    pub(crate) key: OsString,
    /// By how much
    #[arg(default_value = "1", allow_negative_numbers = true)]
    pub(crate) by: String,
}

/// List keys and values, in the order of partitions
///
/// On a terminal, keys and values are escaped, and long values cut. Otherwise each key and its value go out as they are, with a tab between
/// them and a line feed behind (with --keys-only: each key and a line feed). A scan is consistent per key at its level, never a snapshot.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  dunlin scan --prefix user:
  dunlin scan --keys-only --limit 10
  dunlin scan --start a --end b --json

--start and --end filter the keys; they do not change their order, which is that of the partitions.")]
pub(crate) struct RawScan {
    /// Only keys that begin so
    #[arg(long, value_name = "P")]
    pub(crate) prefix: Option<OsString>,
    /// Only keys at or above this
    #[arg(long, value_name = "A")]
    pub(crate) start: Option<OsString>,
    /// Only keys below this
    #[arg(long, value_name = "B")]
    pub(crate) end: Option<OsString>,
    /// At most so many keys
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,
    /// Without values
    #[arg(long)]
    pub(crate) keys_only: bool,
    /// one, two, three, a number, quorum, all [default: the keyspace's]
    #[arg(long, value_name = "L")]
    pub(crate) level: Option<String>,
}

/// Copy files into the cluster, or out of it
///
/// One side is `dunlin://KEYSPACE/PREFIX`, the other a local path. A folder's content goes under the prefix: the key is the prefix, a slash, and
/// the path within the folder. Every value carries its BLAKE3, which is checked on the way back. Symbolic links and special files are
/// skipped; a file over 1 MiB is reported, the others go on, and the exit code is 7.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  dunlin cp notes.txt dunlin://default/notes.txt
  dunlin cp -r src/ dunlin://default/src/
  dunlin cp -r dunlin://default/src/ out/")]
pub(crate) struct RawCopy {
    /// Copy folders with all that is in them
    #[arg(short, long)]
    pub(crate) recursive: bool,
    /// From here
    pub(crate) src: OsString,
    /// To here
    pub(crate) dst: OsString,
}

/// Ask whether a write that timed out was applied
///
/// Prints `applied VERSION`, `not-applied` (and it never will be) or `unknown`. Waits until no attempt at the write can be under way: at most ten
/// seconds from when it was sent.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  dunlin outcome greeting 01JD7Z0M8T00000Q3WPNC2X5RV")]
pub(crate) struct RawOutcome {
    /// The key: 1 to 4,096 bytes
    pub(crate) key: OsString,
    /// As the write's error message names it
    pub(crate) op_id: String,
}

/// Check a node's data: every checksum and every reference
///
/// The node may run or not: nothing is locked or changed, and what a running node writes meanwhile is not taken for damage. Prints each damaged place
/// with file, offset, and what was expected and found, and exits with 8 if there is any.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  dunlin verify --data ./cluster/n1/data\n  dunlin verify --data ./cluster/n1/data --json"
)]
pub(crate) struct RawVerify {
    /// The node's data directory
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
}
