//! Values out of the cluster, into files.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use dunlin_client::{Client, Found};
use dunlin_protocol::{Key, Status};
use tokio::task::JoinSet;

use super::local::{Target, safe_path, write};
use super::{Done, HASH, IN_FLIGHT, Progress, Tally, persevere};
use crate::cli::client::connect;
use crate::cli::command::Common;
use crate::cli::failure::Failure;

/// Keys listed at a time.
const PAGE: u32 = 1_024;

pub(super) async fn run(
    common: &Common,
    keyspace: &str,
    mut prefix: Vec<u8>,
    target: &Path,
    recursive: bool,
    progress: &mut Progress,
) -> Result<Tally, Failure> {
    let client = connect(common).await?.in_keyspace(keyspace);
    let mut tally = Tally::default();
    if !recursive {
        let key = Key::new(prefix).map_err(|e| Failure::new(Status::InvalidKey, e.to_string()))?;
        let file = file_for(&key, target)?;
        progress.found(1);
        copy(client.clone(), key, file).await.count(&mut tally, progress);
        client.close().await;
        return Ok(tally);
    }
    if !prefix.is_empty() && !prefix.ends_with(b"/") {
        prefix.push(b'/');
    }
    let cannot = |e: io::Error| Failure::local(format!("cannot write below {}: {e}", target.display()));
    let mut room = Target::new(target).map_err(cannot)?;
    let mut pages = client.scan().prefix(prefix.clone()).keys_only().page_size(PAGE).pages();
    let mut tasks = JoinSet::new();
    let mut any = false;
    while let Some(entries) = next_page(&mut pages).await? {
        any = true;
        progress.found(entries.len() as u64);
        for entry in entries {
            let key = entry.key;
            let Some(path) = safe_path(&key.as_bytes()[prefix.len()..]) else {
                let code = Status::InvalidKey.code();
                Done::Refused(format!("{key}: no file below the target can have this name ({code})"))
                    .count(&mut tally, progress);
                continue;
            };
            let file = match room.make_room(&path) {
                Ok(file) => file,
                Err(error) => {
                    Done::Failed(Status::Local, format!("{key}: {error}")).count(&mut tally, progress);
                    continue;
                }
            };
            if tasks.len() >= IN_FLIGHT {
                join(&mut tasks, &mut tally, progress).await?;
            }
            tasks.spawn(copy(client.clone(), key, file));
            while let Some(joined) = tasks.try_join_next() {
                joined.map_err(|e| Failure::local(e.to_string()))?.count(&mut tally, progress);
            }
        }
    }
    while !tasks.is_empty() {
        join(&mut tasks, &mut tally, progress).await?;
    }
    client.close().await;
    if !any {
        let message = format!("no key in `{keyspace}` begins with `{}`", prefix.escape_ascii());
        return Err(Failure::new(Status::NotFound, message));
    }
    Ok(tally)
}

async fn join(tasks: &mut JoinSet<Done>, tally: &mut Tally, progress: &Progress) -> Result<(), Failure> {
    if let Some(joined) = tasks.join_next().await {
        joined.map_err(|e| Failure::local(e.to_string()))?.count(tally, progress);
    }
    Ok(())
}

/// A page that cannot be had now may be had a little later, at the same place.
async fn next_page(pages: &mut dunlin_client::Pages) -> Result<Option<Vec<dunlin_client::Entry>>, Failure> {
    let mut tries = 1;
    loop {
        match pages.next().await {
            Err(error) if super::is_passing(&error) && tries < super::TRIES => {
                tokio::time::sleep(super::PAUSE * (1 << tries)).await;
                tries += 1;
            }
            page => return Ok(page?),
        }
    }
}

/// Into a folder under the key's last name, or to the file named.
fn file_for(key: &Key, target: &Path) -> Result<PathBuf, Failure> {
    if !target.is_dir() && !target.as_os_str().as_bytes().ends_with(b"/") {
        return Ok(target.to_owned());
    }
    let name = key.as_bytes().rsplit(|b| *b == b'/').next().unwrap_or_default();
    match safe_path(name) {
        Some(name) => Ok(target.join(name)),
        None => Err(Failure::new(Status::InvalidKey, format!("no file can have the name of `{key}`"))),
    }
}

async fn copy(client: Client, key: Key, file: PathBuf) -> Done {
    let failed = |status, why: String| Done::Failed(status, format!("{key}: {why}"));
    let found = match persevere(|| client.get(key.to_bytes()).into_future()).await {
        Ok(Some(found)) => found,
        // Deleted since it was listed, or never there.
        Ok(None) => return failed(Status::NotFound, "the key has no value".to_owned()),
        Err(error) => return failed(error.status(), error.to_string()),
    };
    let len = found.value.len() as u64;
    let path = file.clone();
    let written = tokio::task::spawn_blocking(move || match is_whole(&found) {
        true => write(&path, &found.value).map(|()| true),
        false => Ok(false),
    });
    match written.await {
        Ok(Ok(true)) => Done::Copied(len),
        Ok(Ok(false)) => {
            failed(Status::Corruption, "the value does not have the BLAKE3 that it was stored with".to_owned())
        }
        Ok(Err(error)) => failed(Status::Local, format!("cannot write {}: {error}", file.display())),
        Err(error) => failed(Status::Local, error.to_string()),
    }
}

/// Whether a value is what its hash says; one without a hash was not stored by a copy.
fn is_whole(found: &Found) -> bool {
    let hash = found.attributes.0.iter().find(|(name, _)| name == HASH);
    hash.is_none_or(|(_, hash)| blake3::hash(&found.value).to_hex().as_str() == hash)
}
