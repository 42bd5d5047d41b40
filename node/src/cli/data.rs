//! The commands on one key.

use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use dunlin_client::{Client, Written};
use dunlin_protocol::{Millis, OpId, Status, Times};
use serde_json::Value;

use super::client::with_client;
use super::command::{Cas, Common, Delete, Get, Incr, Outcome, Put, Source};
use super::failure::Failure;
use super::output::{Output, done, json_bytes, say};

/// A question for an outcome may have to wait for the end of all attempts.
const OUTCOME_TIMEOUT: Duration = Duration::from_secs(15);
/// More than any node takes is not read from a pipe.
const MOST_BYTES: u64 = 8 << 20;

pub(crate) async fn put(common: &Common, put: Put, output: &mut Output) -> Result<(), Failure> {
    let value = read(put.value)?;
    with_client(common, async |client| {
        if let Some(op_id) = put.op_id
            && !is_near(client, op_id)
        {
            return settle(common, client, put.key.to_bytes(), op_id, output).await;
        }
        let mut write = client.put(put.key.to_bytes(), value).level(put.level).ttl(put.ttl);
        for (name, value) in put.attributes {
            write = write.attribute(name, value);
        }
        if let Some(op_id) = put.op_id {
            write = write.op_id(op_id);
        }
        say_version(write.await?, output)
    })
    .await
}

pub(crate) async fn get(common: &Common, get: Get, output: &mut Output) -> Result<(), Failure> {
    let asked = with_client(common, async |client| {
        let mut read = client.get(get.key.to_bytes()).level(get.level);
        if get.want_version {
            read = read.head_only();
        }
        Ok(read.await?)
    });
    let Some(found) = asked.await? else {
        return Err(Failure::new(Status::NotFound, format!("the key `{}` has no value", get.key)));
    };
    let version = found.version.to_string();
    if get.want_version {
        return output.result(&version, [("version", version.clone().into())]);
    }
    let value = match get.range {
        None => &found.value[..],
        Some((from, to)) => {
            let len = found.value.len();
            if from >= len {
                return Err(Failure::usage(format!("--range: the value has {len} bytes")));
            }
            &found.value[from..to.map_or(len, |to| len.min(to.saturating_add(1)))]
        }
    };
    if let Some(file) = &get.out {
        // To a pipe or /dev/null the bytes go as they are: replacing those would do harm.
        let special = std::fs::metadata(file).is_ok_and(|found| !found.is_file() && !found.is_dir());
        let open = || std::fs::OpenOptions::new().write(true).open(file);
        let written = if special { open().and_then(|mut f| f.write_all(value)) } else { replace(file, value) };
        written.map_err(|e| Failure::local(format!("cannot write {}: {e}", file.display())))?;
    }
    if output.is_json() {
        let mut object = done("found");
        object.insert("version".to_owned(), version.into());
        if found.expires_at.is_some() {
            object.insert("expires_at_millis".to_owned(), found.expires_at.0.into());
        }
        let attributes = found.attributes.0.into_iter().map(|(name, value)| (name, Value::from(value)));
        object.insert("attributes".to_owned(), Value::Object(attributes.collect()));
        if get.out.is_none() {
            object.extend([json_bytes("value", value)]);
        }
        output.object(object)
    } else if get.out.is_none() {
        output.bytes(value)?;
        if output.is_terminal() && !value.ends_with(b"\n") {
            // Only for the eye: the prompt comes on a line of its own.
            output.bytes(b"\n")?;
        }
        output.flush()
    } else {
        Ok(())
    }
}

pub(crate) async fn delete(common: &Common, delete: Delete, output: &mut Output) -> Result<(), Failure> {
    with_client(common, async |client| {
        let mut write = client.delete(delete.key.to_bytes()).level(delete.level);
        if let Some(version) = delete.if_version {
            write = write.if_version(version);
        }
        say_version(write.await?, output)
    })
    .await
}

pub(crate) async fn cas(common: &Common, cas: Cas, output: &mut Output) -> Result<(), Failure> {
    let value = read(cas.value)?;
    with_client(common, async |client| {
        let write = client.put(cas.key.to_bytes(), value).condition(cas.condition).ttl(cas.ttl);
        say_version(write.await?, output)
    })
    .await
}

pub(crate) async fn incr(common: &Common, incr: Incr, output: &mut Output) -> Result<(), Failure> {
    let asked = with_client(common, async |client| Ok(client.increment(incr.key.to_bytes(), incr.by).await?));
    let written = asked.await?;
    let version = ("version", Value::from(written.version.to_string()));
    match written.number {
        Some(number) => output.result(&number.to_string(), [("number", number.into()), version]),
        None => {
            // A retry found it applied, and others may have added since.
            say("note: the increment was applied; which number it made is not known any more");
            if output.is_json() { output.result("applied", [("number", Value::Null), version]) } else { Ok(()) }
        }
    }
}

pub(crate) async fn outcome(common: &Common, outcome: Outcome, output: &mut Output) -> Result<(), Failure> {
    with_client(common, async |client| {
        let asked = client.outcome(outcome.key.to_bytes(), outcome.op_id).timeout(settling_time(common)).await;
        match asked {
            Ok(Some(version)) => {
                let version = version.to_string();
                output
                    .result(&format!("applied {version}"), [("outcome", "applied".into()), ("version", version.into())])
            }
            Ok(None) => output.result("not-applied", [("outcome", "not-applied".into())]),
            Err(error) if error.status() == Status::OutcomeUnknown => {
                if !output.is_json() {
                    output.line("unknown")?;
                }
                Err(Failure::from(error).fact("outcome", "unknown"))
            }
            Err(error) => Err(error.into()),
        }
    })
    .await
}

/// A write of earlier is not sent again: another attempt could not be told from the first. It is settled whether it was applied.
async fn settle(
    common: &Common,
    client: &Client,
    key: bytes::Bytes,
    op_id: OpId,
    output: &mut Output,
) -> Result<(), Failure> {
    match client.outcome(key, op_id).timeout(settling_time(common)).await? {
        Some(version) => {
            let version = version.to_string();
            output.result(&version, [("version", version.clone().into()), ("op_id", op_id.to_string().into())])
        }
        None => {
            let failure = Failure::new(Status::NotApplied, Status::NotApplied.sentence());
            Err(failure.fact("op_id", op_id.to_string()))
        }
    }
}

fn settling_time(common: &Common) -> Duration {
    if common.own_timeout { common.timeout } else { OUTCOME_TIMEOUT }
}

/// Whether nodes take the id for a new one's.
fn is_near(client: &Client, op_id: OpId) -> bool {
    let Some(now) = client.cluster_time() else { return false };
    let (at, window): (Millis, Duration) = (op_id.wall(), Times::default().redraw_window);
    at.since(now) <= window && now.since(at) <= window
}

fn say_version(written: Written, output: &mut Output) -> Result<(), Failure> {
    let version = written.version.to_string();
    let op_id = if written.op_id.is_zero() { Value::Null } else { written.op_id.to_string().into() };
    output.result(&version, [("version", version.clone().into()), ("op_id", op_id)])
}

fn read(source: Source) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = match &source {
        Source::Bytes(bytes) => return Ok(bytes.clone()),
        Source::Stdin => std::io::stdin().lock().take(MOST_BYTES).read_to_end(&mut bytes),
        Source::File(file) => std::fs::File::open(file).and_then(|f| f.take(MOST_BYTES).read_to_end(&mut bytes)),
    };
    let what = if let Source::File(file) = &source { file.display().to_string() } else { "stdin".to_owned() };
    read.map_err(|e| Failure::local(format!("cannot read {what}: {e}")))?;
    Ok(bytes)
}

/// Writes a file so that it is there as a whole or as it was.
pub(crate) fn replace(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut next = tempfile::Builder::new().prefix(".dunlin-").make_in(folder, |path| {
        // An ordinary file's permissions, not a private one's.
        std::fs::OpenOptions::new().write(true).create_new(true).open(path)
    })?;
    next.write_all(bytes)?;
    next.persist(file).map_err(|e| e.error)?;
    Ok(())
}
