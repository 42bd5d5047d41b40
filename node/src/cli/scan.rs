//! `dunlin scan`.

use dunlin_client::{Client, Entry};
use serde_json::{Map, Value};

use super::client::with_client;
use super::command::{Common, Scan};
use super::failure::Failure;
use super::output::{Output, json_bytes, say};

/// Of a value, on a terminal.
const SHOWN_BYTES: usize = 60;

pub(crate) async fn run(common: &Common, scan: Scan, output: &mut Output) -> Result<(), Failure> {
    if !scan.start.is_empty() || !scan.end.is_empty() {
        say("note: --start and --end filter; the keys come in the order of partitions");
    }
    with_client(common, async |client| list(client, scan, output).await).await
}

async fn list(client: &Client, scan: Scan, output: &mut Output) -> Result<(), Failure> {
    let mut asked = client.scan().prefix(scan.prefix).start(scan.start).end(scan.end).level(scan.level);
    if scan.keys_only {
        asked = asked.keys_only();
    }
    if let Some(limit) = scan.limit {
        asked = asked.limit(limit);
    }
    let mut pages = asked.pages();
    if output.is_json() {
        // One object, written as it comes: a scan may be larger than memory.
        output.bytes(b"{\"entries\":[")?;
    }
    let mut count = 0u64;
    let ended = loop {
        let entries = match pages.next().await {
            Ok(Some(entries)) => entries,
            Ok(None) => break Ok(()),
            Err(error) => break Err(Failure::from(error)),
        };
        for entry in entries {
            write(&entry, scan.keys_only, count == 0, output)?;
            count += 1;
        }
        output.flush()?;
    };
    if output.is_json() {
        let (code, message) = match &ended {
            Ok(()) => ("OK", format!("{count} keys")),
            Err(failure) => (failure.status.code(), failure.message.clone()),
        };
        let tail = format!("],\"count\":{count},\"code\":{},\"message\":{}}}", Value::from(code), Value::from(message));
        output.line(tail)?;
    }
    ended.map_err(|failure| if output.is_json() { failure.told() } else { failure })
}

fn write(entry: &Entry, keys_only: bool, first: bool, output: &mut Output) -> Result<(), Failure> {
    let key = entry.key.as_bytes();
    if output.is_json() {
        let mut object = Map::from_iter([json_bytes("key", key)]);
        object.insert("version".to_owned(), entry.version.to_string().into());
        object.insert("value_len".to_owned(), entry.value_len.into());
        if entry.expires_at.is_some() {
            object.insert("expires_at_millis".to_owned(), entry.expires_at.0.into());
        }
        if !keys_only {
            object.extend([json_bytes("value", &entry.value)]);
        }
        output.bytes(if first { b"" } else { b"," })?;
        return output.bytes(Value::Object(object).to_string().as_bytes());
    }
    if !output.is_terminal() {
        output.bytes(key)?;
        if !keys_only {
            output.bytes(b"\t")?;
            output.bytes(&entry.value)?;
        }
        return output.bytes(b"\n");
    }
    let mut line = key.escape_ascii().to_string();
    if !keys_only {
        let shown = &entry.value[..entry.value.len().min(SHOWN_BYTES)];
        line = format!("{line}  {}", shown.escape_ascii());
        if entry.value.len() > shown.len() {
            line = format!("{line}.. ({} bytes)", entry.value.len());
        }
    }
    line.push('\n');
    output.bytes(line.as_bytes())
}
