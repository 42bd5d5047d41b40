//! `dunlin verify`.

use std::io::IsTerminal;
use std::path::PathBuf;

use dunlin_node::BLOBS;
use dunlin_protocol::Status;
use dunlin_storage::{
    Damage, Disk, FileDisk, FileError, OpenError, Verification, VerifyProgress, load_blob, verify_with_progress,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::args::RawVerify;
use super::cluster::human_bytes;
use super::failure::{Failure, with_causes};
use super::output::{Output, done};

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Verify {
    data: PathBuf,
}

impl From<RawVerify> for Verify {
    fn from(raw: RawVerify) -> Self {
        Self { data: raw.data }
    }
}

pub(crate) fn run(command: &Verify, output: &mut Output) -> Result<(), Failure> {
    let dir = command.data.display();
    if !command.data.is_dir() {
        return Err(Failure::usage(format!("{dir}: no folder")));
    }
    // The node may run: nothing is locked, and nothing written.
    let disk = FileDisk::open_to_read(&command.data);
    let found =
        check(&disk).map_err(|error| Failure::new(error.status(), format!("{dir}: {}", with_causes(&error))))?;
    let Verification { files, bytes, items, damaged, damage_count } = &found;
    if *files == 0 && *damage_count == 0 {
        return Err(Failure::usage(format!(
            "{dir}: no data directory of a node; of a `dunlin dev` these are DIR/n1/data, DIR/n2/data .."
        )));
    }
    if output.is_json() {
        let mut object = done("");
        object.insert("files".to_owned(), (*files).into());
        object.insert("bytes".to_owned(), (*bytes).into());
        object.insert("items".to_owned(), (*items).into());
        object.insert("damage_count".to_owned(), (*damage_count).into());
        object.insert("damaged".to_owned(), damaged.iter().map(object_of).collect());
        if *damage_count > 0 {
            object.insert("code".to_owned(), Status::Corruption.code().into());
        }
        output.object(object)?;
    } else {
        if !damaged.is_empty() {
            let rows: Vec<_> = damaged.iter().map(row).collect();
            output.table(["FILE", "OFFSET", "EXPECTED", "FOUND", "WHAT"], &rows)?;
        }
        output.line(format!("{items} entries in {files} files, {}: {damage_count} damaged", human_bytes(*bytes)))?;
    }
    match damage_count {
        0 => Ok(()),
        count => {
            let message = format!(
                "{dir}: {count} places are damaged; where it meets them, the node sets the partitions concerned aside"
            );
            Err(Failure::new(Status::Corruption, message).told())
        }
    }
}

/// Checks the engine's files and the node's own.
fn check(disk: &dyn Disk) -> Result<Verification, OpenError> {
    let bar = std::io::stderr().is_terminal().then(|| {
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} files  {msg}  {elapsed}");
        ProgressBar::new(0).with_style(style.expect("a valid template"))
    });
    let found = verify_with_progress(disk, &mut |VerifyProgress { files, of_files, bytes }| {
        if let Some(bar) = &bar {
            bar.set_length(of_files);
            bar.set_position(files);
            bar.set_message(human_bytes(bytes));
        }
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let mut found = found?;
    for name in BLOBS {
        match load_blob(disk, name) {
            Ok(_) => {}
            Err(FileError::Damaged(damage)) => {
                found.damage_count += 1;
                found.damaged.push(damage);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

fn row(damage: &Damage) -> [String; 5] {
    let Damage { file, offset, .. } = damage;
    let (expected, found) = numbers(damage);
    [file.clone(), offset.to_string(), expected, found, damage.to_string()]
}

/// What was expected and found: checksums and ids as they are written, lengths and counts in tens.
fn numbers(damage: &Damage) -> (String, String) {
    let write = |number: u64| match damage.kind.is_code() {
        true => format!("{number:08x}"),
        false => number.to_string(),
    };
    (write(damage.expected), write(damage.found))
}

fn object_of(damage: &Damage) -> Value {
    json!({
        "file": damage.file,
        "offset": damage.offset,
        "kind": damage.kind.name(),
        "expected": damage.expected,
        "found": damage.found,
        "damage": damage.to_string(),
    })
}
