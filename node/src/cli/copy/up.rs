//! Files into the cluster.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use dunlin_client::Client;
use dunlin_protocol::{Key, Status};
use tokio::task::JoinSet;

use super::local::{Found, Walk};
use super::{Done, HASH, IN_FLIGHT, MAX_VALUE, Progress, Tally, persevere};
use crate::cli::client::connect;
use crate::cli::command::Common;
use crate::cli::failure::Failure;

pub(super) async fn run(
    common: &Common,
    source: &Path,
    keyspace: &str,
    mut prefix: Vec<u8>,
    recursive: bool,
    progress: &mut Progress,
) -> Result<Tally, Failure> {
    let unreadable = |e: io::Error| Failure::local(format!("cannot read {}: {e}", source.display()));
    let metadata = std::fs::metadata(source).map_err(unreadable)?;
    if metadata.is_dir() && !recursive {
        return Err(Failure::usage(format!("{} is a folder: copy folders with -r", source.display())));
    }
    let folder = metadata.is_dir() || prefix.is_empty() || prefix.ends_with(b"/");
    if metadata.is_dir() && !prefix.is_empty() && !prefix.ends_with(b"/") {
        prefix.push(b'/');
    }
    let client = connect(common).await?.in_keyspace(keyspace);
    let mut tally = Tally::default();
    let mut tasks = JoinSet::new();
    for found in Walk::new(source) {
        let (path, len) = match found {
            Found::File(path, len) => (path, len),
            Found::Skipped(path, what) => {
                tally.skipped += 1;
                progress.note(&format!("note: {} is {what}: skipped", path.display()));
                continue;
            }
            Found::Unreadable(path, why) => {
                tally.failed(Status::Local);
                progress.note(&format!("{}: {why} ({})", path.display(), Status::Local.code()));
                continue;
            }
        };
        progress.found(1);
        let (file, name) = if path.as_os_str().is_empty() {
            (source.to_owned(), source.file_name().unwrap_or_default().as_bytes().to_vec())
        } else {
            (source.join(&path), path.as_os_str().as_bytes().to_vec())
        };
        let key = if folder { [&prefix[..], &name].concat() } else { prefix.clone() };
        let key = match Key::new(key) {
            Ok(key) if len <= MAX_VALUE => key,
            Ok(_) => {
                too_large(&file, len).count(&mut tally, progress);
                continue;
            }
            Err(error) => {
                let why = format!("{}: {error} ({})", file.display(), Status::InvalidKey.code());
                Done::Refused(why).count(&mut tally, progress);
                continue;
            }
        };
        if tasks.len() >= IN_FLIGHT {
            join(&mut tasks, &mut tally, progress).await?;
        }
        tasks.spawn(copy(client.clone(), file, key));
        // What is done already is counted, so that the bar does not lag behind.
        while let Some(joined) = tasks.try_join_next() {
            joined.map_err(|e| Failure::local(e.to_string()))?.count(&mut tally, progress);
        }
    }
    while !tasks.is_empty() {
        join(&mut tasks, &mut tally, progress).await?;
    }
    client.close().await;
    Ok(tally)
}

async fn join(tasks: &mut JoinSet<Done>, tally: &mut Tally, progress: &Progress) -> Result<(), Failure> {
    if let Some(joined) = tasks.join_next().await {
        joined.map_err(|e| Failure::local(e.to_string()))?.count(tally, progress);
    }
    Ok(())
}

fn too_large(file: &Path, len: u64) -> Done {
    let code = Status::ValueTooLarge.code();
    Done::Refused(format!("{}: {len} bytes are more than a value may have, 1 MiB ({code})", file.display()))
}

async fn copy(client: Client, file: PathBuf, key: Key) -> Done {
    let path = file.clone();
    let read = tokio::task::spawn_blocking(move || {
        let bytes = std::fs::read(&path)?;
        let hash = blake3::hash(&bytes).to_hex().to_string();
        Ok::<_, io::Error>((Bytes::from(bytes), hash))
    });
    let failed = |status, why: String| Done::Failed(status, format!("{}: {why}", file.display()));
    let (bytes, hash) = match read.await {
        Ok(Ok(read)) => read,
        Ok(Err(error)) => return failed(Status::Local, error.to_string()),
        Err(error) => return failed(Status::Local, error.to_string()),
    };
    let len = bytes.len() as u64;
    if len > MAX_VALUE {
        return too_large(&file, len);
    }
    let put = || client.put(key.to_bytes(), bytes.clone()).attribute(HASH, hash.clone()).into_future();
    match persevere(put).await {
        Ok(_) => Done::Copied(len),
        Err(error) if error.status() == Status::ValueTooLarge => too_large(&file, len),
        Err(error) => failed(error.status(), error.to_string()),
    }
}
