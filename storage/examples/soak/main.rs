//! Soak: random operations from several threads on a real disk, for as long as asked, with segments and memtables so small that flush, merge and
//! collection never rest. Everything is checked against a model in memory, while it runs and after each of many ends, orderly or abrupt.
//!
//! `cargo run --release -p dunlin-storage --example soak -- --minutes 10 [--seed N] [--dir DIR]`. The exit code is 0 if nothing was wrong. Without
//! `--dir` the data lie in a temporary directory, which stays where something was.

mod model;
mod round;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::model::Model;
use crate::round::Totals;

/// How long the engine is up at a time.
const ROUND: Duration = Duration::from_secs(6);

const HELP: &str = "cargo run --release -p dunlin-storage --example soak -- [OPTIONS]

  --minutes M    how long (1)
  --seed N       what the operations are drawn from (1)
  --dir DIR      where the data directory is made; a temporary one otherwise, which stays where something was wrong

Exit codes: 0 nothing was wrong, 1 something was, 2 usage";

struct Arguments {
    minutes: f64,
    seed: u64,
    dir: Option<PathBuf>,
}

fn arguments() -> Result<Arguments, String> {
    let mut arguments = Arguments { minutes: 1.0, seed: 1, dir: None };
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let value = given.next().ok_or_else(|| format!("{name} needs a value"))?;
        let invalid = || format!("{name} {value}: not a number");
        match name.as_str() {
            "--minutes" => arguments.minutes = value.parse().map_err(|_| invalid())?,
            "--seed" => arguments.seed = value.parse().map_err(|_| invalid())?,
            "--dir" => arguments.dir = Some(value.into()),
            _ => return Err(format!("{name}: known are --minutes, --seed and --dir")),
        }
    }
    Ok(arguments)
}

#[expect(clippy::disallowed_methods, reason = "a soak ends by the clock")]
fn run(arguments: &Arguments, dir: &std::path::Path) -> Result<Totals, String> {
    let start = Instant::now();
    let long_enough = Duration::from_secs_f64(arguments.minutes * 60.0);
    let (mut models, mut totals) = (Model::all(arguments.seed), Totals::default());
    while start.elapsed() < long_enough {
        totals.rounds += 1;
        let ended = round::run(dir, arguments.seed, &mut models, &mut totals, ROUND)?;
        println!("{:5.0} s  {ended}", start.elapsed().as_secs_f64());
    }
    Ok(totals)
}

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--help" || argument == "-h") {
        println!("{HELP}");
        return ExitCode::SUCCESS;
    }
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let temporary = match tempfile::tempdir() {
        Ok(dir) => dir,
        Err(error) => {
            eprintln!("no temporary directory: {error}");
            return ExitCode::from(2);
        }
    };
    let dir = arguments.dir.clone().unwrap_or_else(|| temporary.path().to_owned());
    println!("seed {}, {} minutes, in {}", arguments.seed, arguments.minutes, dir.display());
    match run(&arguments, &dir) {
        Ok(totals) => {
            println!("{totals}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _kept = temporary.keep();
            eprintln!("WRONG: {error}\nthe data stay in {}", dir.display());
            ExitCode::FAILURE
        }
    }
}
