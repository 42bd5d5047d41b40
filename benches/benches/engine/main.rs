//! The engine side by side with others, in one run and on the same workload: `cargo bench -p dunlin-benches --bench engine`, and with
//! `--features peers` fjall, redb and LMDB, with `--features rocksdb` RocksDB (Debian: librocksdb-dev) beside it.
//!
//! Every measurement runs in a process of its own on a fresh directory, so that neither memory nor caches of one store weigh on the next; the
//! stores take turns, and the table shows medians.

#![expect(clippy::disallowed_methods, reason = "this measures real time, and waits for real disks")]

mod keys;
mod measure;
mod row;
mod store;
mod table;

#[cfg(feature = "peers")]
mod committer;
#[cfg(feature = "peers")]
mod fjall;
#[cfg(feature = "peers")]
mod lmdb;
mod ours;
#[cfg(feature = "peers")]
mod redb;
#[cfg(feature = "rocksdb")]
mod rocksdb;

use std::path::{Path, PathBuf};
use std::process::Command;

use row::{Measured, Row};
use store::Kind;
use table::Table;

/// What the command line says.
struct Arguments {
    rows: Vec<Row>,
    stores: Vec<Kind>,
    runs: usize,
    scale: f64,
    dir: PathBuf,
}

const HELP: &str = "cargo bench -p dunlin-benches --bench engine [--features peers,rocksdb] -- [OPTIONS]

  --rows a,b     only these rows (see the first column of the table); also load-20m and scan-5m, which take long
  --stores a,b   only these stores: ours, fjall, redb, lmdb, rocksdb
  --runs N       runs of each measurement; the table shows medians (3)
  --scale F      multiplies the numbers of keys (1.0)
  --dir DIR      where the data directories are made; on the disk to be measured (target/bench-engine)";

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if words.iter().any(|word| word == "--help" || word == "-h") {
        return println!("{HELP}");
    }
    if words.first().is_some_and(|word| word == "--child") {
        return child(&words[1..]);
    }
    match parse(&words) {
        Ok(arguments) => compare(&arguments),
        Err(message) => {
            eprintln!("{message}\n\n{HELP}");
            std::process::exit(2);
        }
    }
}

fn parse(words: &[String]) -> Result<Arguments, String> {
    let mut arguments = Arguments {
        rows: Row::ALL.to_vec(),
        stores: Kind::all(),
        runs: 3,
        scale: 1.0,
        dir: PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench-engine")),
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} wants a value"))?;
        let wrong = || format!("{word} {value}: not understood");
        match word.as_str() {
            "--rows" => {
                let rows: Option<Vec<Row>> = value.split(',').map(Row::named).collect();
                arguments.rows = rows.ok_or_else(wrong)?;
            }
            "--stores" => {
                let stores: Option<Vec<Kind>> = value.split(',').map(Kind::named).collect();
                arguments.stores = stores.ok_or_else(wrong)?;
            }
            "--runs" => arguments.runs = value.parse().ok().filter(|runs| *runs > 0).ok_or_else(wrong)?,
            "--scale" => arguments.scale = value.parse().ok().filter(|scale| *scale > 0.0).ok_or_else(wrong)?,
            "--dir" => arguments.dir = PathBuf::from(value),
            _ => return Err(format!("{word}: unknown")),
        }
    }
    Ok(arguments)
}

/// Measures every row with every store and prints the table as it grows.
fn compare(arguments: &Arguments) {
    let mut table = Table::new(&arguments.stores);
    table.head();
    for row in &arguments.rows {
        let mut runs: Vec<Vec<Measured>> = vec![Vec::new(); arguments.stores.len()];
        for run in 0..arguments.runs {
            for (place, kind) in arguments.stores.iter().enumerate() {
                match measure_in_child(*row, *kind, arguments, run) {
                    Ok(measured) => runs[place].push(measured),
                    Err(message) => eprintln!("{} with {}: {message}", row.name(), kind.name()),
                }
            }
        }
        table.row(*row, &runs);
    }
}

fn measure_in_child(row: Row, kind: Kind, arguments: &Arguments, run: usize) -> Result<Measured, String> {
    let dir = arguments.dir.join(format!("{}-{}-{run}", row.name(), kind.name()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut measured = Err("it measured nothing".to_owned());
    for step in 0..row.steps() {
        let mut command = Command::new(std::env::current_exe().map_err(|e| e.to_string())?);
        command
            .arg("--child")
            .args([row.name(), kind.name(), &arguments.scale.to_string(), &step.to_string()])
            .arg(&dir);
        let output = command.output().map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout);
        // A step that ends by a kill has no result; the last one has.
        measured = Measured::parse(text.trim())
            .ok_or_else(|| format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()));
    }
    std::fs::remove_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    measured
}

/// One step of one measurement, in a process of its own.
fn child(words: &[String]) {
    let [row, kind, scale, step, dir] = words else { panic!("--child ROW STORE SCALE STEP DIR") };
    let row = Row::named(row).expect("a row");
    let kind = Kind::named(kind).expect("a store");
    let scale: f64 = scale.parse().expect("a number");
    let step: usize = step.parse().expect("a number");
    if let Some(measured) = row.measure(kind, Path::new(dir), scale, step) {
        println!("{measured}");
    }
}
