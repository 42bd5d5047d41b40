//! `dunlin cp`: files into the cluster and out of it, many at a time.

mod down;
mod local;
mod progress;
mod up;

use std::time::Duration;

use dunlin_client::Error;
use dunlin_protocol::Status;

use super::cluster::human_bytes;
use super::command::{Common, Copy};
use super::failure::Failure;
use super::output::{Output, done};
use progress::Progress;

/// Files under way at a time.
const IN_FLIGHT: usize = 64;
/// The largest value that nodes take.
pub(crate) const MAX_VALUE: u64 = 1 << 20;
/// The attribute that holds a value's BLAKE3, in hexadecimal.
const HASH: &str = "blake3";
/// A file that the cluster could not take or give just now is tried again so often.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);

/// What became of the files.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) copied: u64,
    pub(crate) bytes: u64,
    /// Links, special files.
    pub(crate) skipped: u64,
    /// Too large, or no possible key or name.
    pub(crate) refused: u64,
    pub(crate) failed: u64,
    /// The first failure's code; a corruption outweighs all others.
    pub(crate) worst: Option<Status>,
}

impl Tally {
    pub(crate) fn copied(&mut self, bytes: u64) {
        self.copied += 1;
        self.bytes += bytes;
    }

    pub(crate) fn refused(&mut self) {
        self.refused += 1;
    }

    pub(crate) fn failed(&mut self, status: Status) {
        self.failed += 1;
        if self.worst.is_none() || status == Status::Corruption {
            self.worst = Some(status);
        }
    }

    fn status(&self) -> Status {
        match self.worst {
            Some(status) => status,
            None if self.refused > 0 => Status::ValueTooLarge,
            None => Status::Ok,
        }
    }
}

pub(crate) async fn run(common: &Common, copy: Copy, output: &mut Output) -> Result<(), Failure> {
    let mut progress = Progress::new(common.json);
    let tally = match copy {
        Copy::Up { source, keyspace, prefix, recursive } => {
            up::run(common, &source, &keyspace, prefix, recursive, &mut progress).await?
        }
        Copy::Down { keyspace, prefix, target, recursive } => {
            down::run(common, &keyspace, prefix, &target, recursive, &mut progress).await?
        }
    };
    progress.finish();
    let Tally { copied, bytes, skipped, refused, failed, .. } = tally;
    let mut line = format!("{copied} files, {} copied", human_bytes(bytes));
    for (count, what) in [(skipped, "skipped"), (refused, "refused"), (failed, "failed")] {
        if count > 0 {
            line = format!("{line}, {count} {what}");
        }
    }
    let facts = [("copied", copied), ("bytes", bytes), ("skipped", skipped), ("refused", refused), ("failed", failed)];
    let status = tally.status();
    if status == Status::Ok {
        if output.is_json() {
            let mut object = done(&line);
            object.extend(facts.map(|(name, count)| (name.to_owned(), count.into())));
            return output.object(object);
        }
        return output.line(line);
    }
    let failure = match failed {
        0 => Failure::new(status, format!("{line}: what is too large, or has no possible name, was left out")),
        _ => Failure::new(status, format!("{line}: run the same command again for what failed")),
    };
    Err(facts.into_iter().fold(failure, |failure, (name, count)| failure.fact(name, count)))
}

/// Whether the same may work a little later. Copying is the same however often it is done.
fn is_passing(error: &Error) -> bool {
    error.is_indefinite()
        || matches!(
            error.status(),
            Status::Unavailable
                | Status::Connect
                | Status::NotReady
                | Status::ShuttingDown
                | Status::Overloaded
                | Status::StaleEpoch
                | Status::NotReplica
                | Status::Suspect
        )
}

/// Does something until it works or fails for good.
async fn persevere<T, F: Future<Output = Result<T, Error>>>(mut attempt: impl FnMut() -> F) -> Result<T, Error> {
    let mut tries = 1;
    loop {
        match attempt().await {
            Err(error) if is_passing(&error) && tries < TRIES => {
                tokio::time::sleep(PAUSE * (1 << tries)).await;
                tries += 1;
            }
            ended => return ended,
        }
    }
}

/// What became of one file, told by the task that had it.
enum Done {
    Copied(u64),
    Refused(String),
    Failed(Status, String),
}

impl Done {
    fn count(self, tally: &mut Tally, progress: &Progress) {
        match self {
            Self::Copied(bytes) => {
                tally.copied(bytes);
                progress.advance(bytes);
            }
            Self::Refused(why) => {
                tally.refused();
                progress.note(&why);
                progress.advance(0);
            }
            Self::Failed(status, why) => {
                tally.failed(status);
                progress.note(&format!("{why} ({})", status.code()));
                progress.advance(0);
            }
        }
    }
}
