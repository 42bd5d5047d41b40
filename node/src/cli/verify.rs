//! `dunlin verify`.

use std::path::PathBuf;

use dunlin_protocol::Status;
use dunlin_storage::{FileDisk, Verification, verify};
use serde_json::json;

use super::args::RawVerify;
use super::cluster::human_bytes;
use super::failure::Failure;
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
    let failed = |error: &dyn std::fmt::Display, status: Status| {
        let stop = if status == Status::DataDirInUse { ": stop its node first" } else { "" };
        Failure::new(status, format!("{dir}: {error}{stop}"))
    };
    let disk = FileDisk::open(&command.data).map_err(|error| failed(&error, error.status()))?;
    let found = verify(&disk).map_err(|error| failed(&error, error.status()))?;
    let Verification { files, bytes, items, damaged, damage_count } = &found;
    if output.is_json() {
        let mut object = done("");
        let damaged = damaged.iter().map(|damage| {
            json!({
                "file": damage.file,
                "offset": damage.offset,
                "expected": damage.expected,
                "found": damage.found,
                "damage": damage.to_string(),
            })
        });
        object.insert("files".to_owned(), (*files).into());
        object.insert("bytes".to_owned(), (*bytes).into());
        object.insert("items".to_owned(), (*items).into());
        object.insert("damage_count".to_owned(), (*damage_count).into());
        object.insert("damaged".to_owned(), damaged.collect());
        if *damage_count > 0 {
            object.insert("code".to_owned(), Status::Corruption.code().into());
        }
        output.object(object)?;
    } else {
        for damage in damaged {
            output.line(damage.to_string())?;
        }
        output.line(format!("{items} entries in {files} files, {}: {damage_count} damaged", human_bytes(*bytes)))?;
    }
    match damage_count {
        0 => Ok(()),
        count => {
            let message = format!(
                "{dir}: {count} places are damaged; started on it, the node sets the partitions concerned aside"
            );
            Err(Failure::new(Status::Corruption, message).told())
        }
    }
}
