//! The command line. Arguments are parsed in two steps: [`args`] says what may be typed, [`command`] what it means. Every command ends in a
//! [`Failure`] with a stable code, or in nothing; the exit code is the code's own.

mod args;
mod bench;
mod client;
mod cluster;
mod command;
mod context;
mod copy;
mod data;
mod dev;
mod failure;
mod output;
mod scan;
mod serve;
#[cfg(test)]
mod tests;
mod verify;

use std::ffi::OsString;
use std::future::Future;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use dunlin_protocol::Status;

use args::Args;
use command::{Command, Task};
use failure::Failure;
use output::Output;

pub(crate) fn main() -> ExitCode {
    let typed: Vec<_> = std::env::args_os().collect();
    let json = asks_for_json(&typed);
    let parsed = Args::try_parse_from(&typed);
    let command = match parsed.map_err(|e| of_clap(&e)).and_then(|args| Command::try_from(args).map_err(Some)) {
        Ok(command) => command,
        // Help and version are no errors, and printed.
        Err(None) => return ExitCode::SUCCESS,
        Err(Some(failure)) => return report(&failure, json),
    };
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure, json),
    }
}

fn run(command: Command) -> Result<(), Failure> {
    let Command { common, task } = command;
    let mut output = Output::new(common.json);
    match task {
        Task::Serve(serve) => serve::run(&serve),
        Task::Dev(dev) => on_runtime(dev::run(&dev, &mut output))?,
        Task::Put(put) => on_runtime(data::put(&common, put, &mut output))?,
        Task::Get(get) => on_runtime(data::get(&common, get, &mut output))?,
        Task::Delete(delete) => on_runtime(data::delete(&common, delete, &mut output))?,
        Task::Cas(cas) => on_runtime(data::cas(&common, cas, &mut output))?,
        Task::Incr(incr) => on_runtime(data::incr(&common, incr, &mut output))?,
        Task::Outcome(outcome) => on_runtime(data::outcome(&common, outcome, &mut output))?,
        Task::Scan(scan) => on_runtime(scan::run(&common, scan, &mut output))?,
        Task::Copy(copy) => on_runtime(copy::run(&common, copy, &mut output))?,
        Task::Bench(bench) => on_runtime(bench::run(&common, bench, &mut output))?,
        Task::Status => on_runtime(cluster::status(&common, &mut output))?,
        Task::Ring => on_runtime(cluster::ring(&common, &mut output))?,
        Task::Verify(verify) => verify::run(&verify, &mut output),
    }
}

fn on_runtime<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.map_err(|e| Failure::local(format!("cannot start: {e}")))?.block_on(Box::pin(work)))
}

/// Says what went wrong: on stderr for people, and as an object on stdout where JSON is asked for.
fn report(failure: &Failure, json: bool) -> ExitCode {
    if failure.is_broken_pipe() {
        return ExitCode::SUCCESS;
    }
    if failure.is_help() {
        output::say(failure.message.trim_end());
    } else {
        output::say(&format!("error: {failure} ({})", failure.status.code()));
    }
    if json
        && !failure.is_told()
        && let Err(error) = Output::new(true).object(failure.to_json())
    {
        tracing::debug!(%error, "nobody reads the error");
    }
    ExitCode::from(failure.status.exit_code())
}

/// None: help or version was asked for and is printed.
fn of_clap(error: &clap::Error) -> Option<Failure> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Nobody may be reading: that is no error.
            let _ = error.print();
            None
        }
        // Nothing was typed: the help, on stderr, and no more words about it.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Some(Failure::help(error.render().to_string())),
        _ => {
            let text = error.render().to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
            Some(Failure::new(Status::InvalidArgument, text))
        }
    }
}

/// Errors in the arguments themselves are told in JSON too.
fn asks_for_json(typed: &[OsString]) -> bool {
    typed.iter().take_while(|arg| *arg != "--").any(|arg| arg == "--json")
}
