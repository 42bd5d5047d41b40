//! What was typed, understood: every argument has its type and has been checked.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use dunlin_protocol::{Condition, Key, Level, OpId, Stamp, Status};

use super::args::{
    Args, RawCas, RawCommon, RawCopy, RawDelete, RawDev, RawGet, RawIncr, RawOutcome, RawPut, RawScan, RawServe,
    RawTask,
};
use super::failure::Failure;

/// The most nodes that `dunlin dev` starts.
pub(crate) const MAX_NODES: u8 = 32;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) common: Common,
    pub(crate) task: Task,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Common {
    pub(crate) keyspace: String,
    pub(crate) context: Option<PathBuf>,
    pub(crate) at: Option<String>,
    pub(crate) timeout: Duration,
    /// Whether the timeout was typed.
    pub(crate) own_timeout: bool,
    pub(crate) json: bool,
}

#[derive(Debug)]
pub(crate) enum Task {
    Dev(Dev),
    Serve(Serve),
    Put(Put),
    Get(Get),
    Delete(Delete),
    Cas(Cas),
    Incr(Incr),
    Scan(Scan),
    Copy(Copy),
    Outcome(Outcome),
    Bench(super::bench::Bench),
    Status,
    Ring,
    Verify(super::verify::Verify),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Dev {
    pub(crate) nodes: Option<u8>,
    pub(crate) data: Option<PathBuf>,
    pub(crate) port: Option<Port>,
    pub(crate) regions: Vec<String>,
    pub(crate) zones: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Port {
    Auto,
    From(u16),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Serve {
    pub(crate) config: PathBuf,
    pub(crate) data: Option<PathBuf>,
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) stop_with_stdin: bool,
}

/// Where a value comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    Bytes(Vec<u8>),
    File(PathBuf),
    Stdin,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Put {
    pub(crate) key: Key,
    pub(crate) value: Source,
    pub(crate) level: Option<Level>,
    pub(crate) ttl: Duration,
    pub(crate) attributes: Vec<(String, String)>,
    pub(crate) op_id: Option<OpId>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Get {
    pub(crate) key: Key,
    pub(crate) out: Option<PathBuf>,
    pub(crate) level: Option<Level>,
    pub(crate) range: Option<(usize, Option<usize>)>,
    pub(crate) want_version: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Delete {
    pub(crate) key: Key,
    pub(crate) level: Option<Level>,
    pub(crate) if_version: Option<Stamp>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Cas {
    pub(crate) key: Key,
    pub(crate) value: Source,
    pub(crate) condition: Condition,
    pub(crate) ttl: Duration,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Incr {
    pub(crate) key: Key,
    pub(crate) by: i64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Scan {
    pub(crate) prefix: Vec<u8>,
    pub(crate) start: Vec<u8>,
    pub(crate) end: Vec<u8>,
    pub(crate) limit: Option<u64>,
    pub(crate) keys_only: bool,
    pub(crate) level: Option<Level>,
}

/// One side of a copy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    Local(PathBuf),
    Remote { keyspace: String, prefix: Vec<u8> },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Copy {
    Up { source: PathBuf, keyspace: String, prefix: Vec<u8>, recursive: bool },
    Down { keyspace: String, prefix: Vec<u8>, target: PathBuf, recursive: bool },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Outcome {
    pub(crate) key: Key,
    pub(crate) op_id: OpId,
}

impl TryFrom<Args> for Command {
    type Error = Failure;

    fn try_from(args: Args) -> Result<Self, Failure> {
        let task = match args.task {
            RawTask::Dev(raw) => Task::Dev(raw.try_into()?),
            RawTask::Serve(raw) => Task::Serve(raw.try_into()?),
            RawTask::Put(raw) => Task::Put(raw.try_into()?),
            RawTask::Get(raw) => Task::Get(raw.try_into()?),
            RawTask::Delete(raw) => Task::Delete(raw.try_into()?),
            RawTask::Cas(raw) => Task::Cas(raw.try_into()?),
            RawTask::Incr(raw) => Task::Incr(raw.try_into()?),
            RawTask::Scan(raw) => Task::Scan(raw.try_into()?),
            RawTask::Cp(raw) => Task::Copy(raw.try_into()?),
            RawTask::Outcome(raw) => Task::Outcome(raw.try_into()?),
            RawTask::Bench(raw) => Task::Bench(raw.try_into()?),
            RawTask::Status => Task::Status,
            RawTask::Ring => Task::Ring,
            RawTask::Verify(raw) => Task::Verify(raw.into()),
        };
        Ok(Self { common: args.common.try_into()?, task })
    }
}

impl TryFrom<RawCommon> for Common {
    type Error = Failure;

    fn try_from(raw: RawCommon) -> Result<Self, Failure> {
        let timeout = raw.timeout.as_deref().map(|text| duration("--timeout", text)).transpose()?;
        Ok(Self {
            keyspace: raw.keyspace,
            // An empty variable is none.
            context: raw.context.filter(|file| !file.as_os_str().is_empty()),
            at: raw.at,
            timeout: timeout.unwrap_or(DEFAULT_TIMEOUT),
            own_timeout: timeout.is_some(),
            json: raw.json,
        })
    }
}

impl TryFrom<RawDev> for Dev {
    type Error = Failure;

    fn try_from(raw: RawDev) -> Result<Self, Failure> {
        if raw.wan.is_some() {
            return Err(Failure::usage("--wan is not available yet: leave it out"));
        }
        if raw.nodes.is_some_and(|n| n == 0 || n > MAX_NODES) {
            return Err(Failure::usage(format!("--nodes: 1 to {MAX_NODES} nodes are possible")));
        }
        let port = match raw.port.as_deref() {
            None => None,
            Some("auto") => Some(Port::Auto),
            Some(text) => match text.parse::<u16>() {
                // The last node's Redis port must exist too.
                Ok(port) if (1..=u16::MAX - 300).contains(&port) => Some(Port::From(port)),
                _ => {
                    return Err(Failure::usage(format!(
                        "--port: `{text}` is neither `auto` nor a port from 1 to 65235"
                    )));
                }
            },
        };
        for (flag, names) in [("--regions", &raw.regions), ("--zones", &raw.zones)] {
            if names.iter().any(|name| name.is_empty()) {
                return Err(Failure::usage(format!("{flag}: a name is empty")));
            }
        }
        Ok(Self { nodes: raw.nodes, data: raw.data, port, regions: raw.regions, zones: raw.zones })
    }
}

impl TryFrom<RawServe> for Serve {
    type Error = Failure;

    fn try_from(raw: RawServe) -> Result<Self, Failure> {
        let listen = match raw.listen {
            None => None,
            Some(text) => {
                let parsed = text.parse();
                Some(parsed.map_err(|_| Failure::usage(format!("--listen: `{text}` is no IP address with a port")))?)
            }
        };
        let RawServe { config, data, pid_file, stop_with_stdin, .. } = raw;
        Ok(Self { config, data, listen, pid_file, stop_with_stdin })
    }
}

impl TryFrom<RawPut> for Put {
    type Error = Failure;

    fn try_from(raw: RawPut) -> Result<Self, Failure> {
        let value = match (raw.value, raw.file) {
            (_, Some(file)) => Source::File(file),
            (Some(value), None) => source(value),
            (None, None) => return Err(Failure::usage("a value is missing: give VALUE, --file F, or - for stdin")),
        };
        let attribute = |text: String| match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(Failure::usage(format!("--attr: `{text}` is not NAME=VALUE"))),
        };
        Ok(Self {
            key: key(raw.key)?,
            value,
            level: level(raw.level)?,
            ttl: ttl(raw.ttl)?,
            attributes: raw.attr.into_iter().map(attribute).collect::<Result<_, _>>()?,
            op_id: raw.op_id.map(|text| stamp("--op-id", &text)).transpose()?,
        })
    }
}

impl TryFrom<RawGet> for Get {
    type Error = Failure;

    fn try_from(raw: RawGet) -> Result<Self, Failure> {
        let range = raw.range.map(|text| range(&text)).transpose()?;
        Ok(Self { key: key(raw.key)?, out: raw.out, level: level(raw.level)?, range, want_version: raw.want_version })
    }
}

impl TryFrom<RawDelete> for Delete {
    type Error = Failure;

    fn try_from(raw: RawDelete) -> Result<Self, Failure> {
        let if_version = raw.if_version.map(|text| stamp("--if-version", &text)).transpose()?;
        Ok(Self { key: key(raw.key)?, level: level(raw.level)?, if_version })
    }
}

impl TryFrom<RawCas> for Cas {
    type Error = Failure;

    fn try_from(raw: RawCas) -> Result<Self, Failure> {
        let condition = match (raw.if_version, raw.if_value, raw.if_absent) {
            (Some(version), _, _) => Condition::Version(stamp("--if-version", &version)?),
            (None, Some(value), _) => Condition::Value(value.into_vec().into()),
            (None, None, _) => Condition::Absent,
        };
        Ok(Self { key: key(raw.key)?, value: source(raw.new), condition, ttl: ttl(raw.ttl)? })
    }
}

impl TryFrom<RawIncr> for Incr {
    type Error = Failure;

    fn try_from(raw: RawIncr) -> Result<Self, Failure> {
        let by = raw.by.parse().map_err(|_| Failure::usage(format!("BY: `{}` is no 64-bit number", raw.by)))?;
        Ok(Self { key: key(raw.key)?, by })
    }
}

impl TryFrom<RawScan> for Scan {
    type Error = Failure;

    fn try_from(raw: RawScan) -> Result<Self, Failure> {
        let bytes = |text: Option<OsString>| text.map(OsStringExt::into_vec).unwrap_or_default();
        Ok(Self {
            prefix: bytes(raw.prefix),
            start: bytes(raw.start),
            end: bytes(raw.end),
            limit: raw.limit,
            keys_only: raw.keys_only,
            level: level(raw.level)?,
        })
    }
}

impl TryFrom<RawCopy> for Copy {
    type Error = Failure;

    fn try_from(raw: RawCopy) -> Result<Self, Failure> {
        let recursive = raw.recursive;
        match (place(raw.src)?, place(raw.dst)?) {
            (Place::Local(source), Place::Remote { keyspace, prefix }) => {
                Ok(Self::Up { source, keyspace, prefix, recursive })
            }
            (Place::Remote { keyspace, prefix }, Place::Local(target)) => {
                if !recursive && (prefix.is_empty() || prefix.ends_with(b"/")) {
                    return Err(Failure::usage("SRC names a folder: copy folders with -r"));
                }
                Ok(Self::Down { keyspace, prefix, target, recursive })
            }
            (Place::Local(_), Place::Local(_)) => {
                Err(Failure::usage("both sides are local: one of them must be dunlin://KEYSPACE/PREFIX"))
            }
            (Place::Remote { .. }, Place::Remote { .. }) => {
                Err(Failure::usage("both sides are in the cluster: one of them must be a local path"))
            }
        }
    }
}

impl TryFrom<RawOutcome> for Outcome {
    type Error = Failure;

    fn try_from(raw: RawOutcome) -> Result<Self, Failure> {
        Ok(Self { key: key(raw.key)?, op_id: stamp("OP_ID", &raw.op_id)? })
    }
}

fn key(text: OsString) -> Result<Key, Failure> {
    Key::new(text.into_vec()).map_err(|e| Failure::new(Status::InvalidKey, e.to_string()))
}

fn source(text: OsString) -> Source {
    if text == "-" { Source::Stdin } else { Source::Bytes(text.into_vec()) }
}

pub(crate) fn level(text: Option<String>) -> Result<Option<Level>, Failure> {
    let parse = |text: String| {
        text.parse().map_err(|e: dunlin_protocol::ParseLevelError| Failure::new(Status::InvalidLevel, e.to_string()))
    };
    text.map(parse).transpose()
}

fn stamp(what: &str, text: &str) -> Result<Stamp, Failure> {
    text.parse().map_err(|e: dunlin_protocol::ParseStampError| Failure::usage(format!("{what}: {e}")))
}

fn ttl(text: Option<String>) -> Result<Duration, Failure> {
    text.map_or(Ok(Duration::ZERO), |text| duration("--ttl", &text))
}

/// A time above zero: a whole number and its unit.
pub(crate) fn duration(flag: &str, text: &str) -> Result<Duration, Failure> {
    let wrong =
        || Failure::usage(format!("{flag}: `{text}` is no time: write a whole number above 0 and ms, s, m, h or d"));
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let unit_millis = match &text[digits..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    // Ends that lie beyond a stamp's time would wrap around.
    let millis = number.checked_mul(unit_millis).filter(|millis| (1..1 << 47).contains(millis)).ok_or_else(wrong)?;
    Ok(Duration::from_millis(millis))
}

fn range(text: &str) -> Result<(usize, Option<usize>), Failure> {
    let wrong = || Failure::usage(format!("--range: `{text}` is not A-B with A at most B, counted from 0"));
    let (from, to) = text.split_once('-').ok_or_else(wrong)?;
    let from = from.parse().map_err(|_| wrong())?;
    let to = if to.is_empty() { None } else { Some(to.parse().map_err(|_| wrong())?) };
    if to.is_some_and(|to: usize| to < from) { Err(wrong()) } else { Ok((from, to)) }
}

fn place(text: OsString) -> Result<Place, Failure> {
    let bytes = text.into_vec();
    let Some(rest) = bytes.strip_prefix(b"dunlin://") else {
        if bytes.is_empty() {
            return Err(Failure::usage("a path is empty"));
        }
        return Ok(Place::Local(OsString::from_vec(bytes).into()));
    };
    let (keyspace, prefix) = match rest.iter().position(|b| *b == b'/') {
        Some(at) => (&rest[..at], &rest[at + 1..]),
        None => (rest, &[][..]),
    };
    match std::str::from_utf8(keyspace) {
        Ok(name) if !name.is_empty() => Ok(Place::Remote { keyspace: name.to_owned(), prefix: prefix.to_vec() }),
        _ => Err(Failure::usage("a place in the cluster is written dunlin://KEYSPACE/PREFIX")),
    }
}
