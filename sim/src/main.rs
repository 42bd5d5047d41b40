//! `dunlin-sim`: runs seeds and says what came of them.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Instant;

use clap::{Parser, ValueEnum};
use dunlin_sim::{Counts, Verdict, simulate, simulate_over_quic};
use serde_json::json;

/// Simulates whole clusters under faults and checks what they promise. A seed decides everything; the same seed gives the same run.
#[derive(Parser)]
#[command(name = "dunlin-sim", version)]
struct Arguments {
    /// Run this seed.
    #[arg(long, value_name = "N", conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Run the seeds from A to below B.
    #[arg(long, value_name = "A..B", value_parser = parse_range)]
    seeds: Option<Range<u64>>,
    /// What lies between the nodes.
    #[arg(long, value_enum, default_value = "memory")]
    transport: Transport,
    /// One JSON object for each seed, and one for the summary.
    #[arg(long)]
    json: bool,
    /// Print every event to standard error (with --seed).
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Run as many seeds at once; default: one on each core.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Succeed only if a violation is found within 300 seeds: for builds with the feature `canary`, which breaks a rule.
    #[arg(long, conflicts_with = "seed")]
    canary: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Transport {
    /// A simulated network between the nodes' state machines: fast.
    Memory,
    /// Whole servers and clients over real QUIC on a simulated network: slower.
    Quic,
}

/// The seeds within which the canary must be caught.
const CANARY_SEEDS: u64 = 300;

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let wrong = || format!("`{text}` is no range of seeds: write A..B, with A below B");
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    let (from, to): (u64, u64) = (from.parse().map_err(|_| wrong())?, to.parse().map_err(|_| wrong())?);
    if from < to { Ok(from..to) } else { Err(wrong()) }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.canary && !cfg!(feature = "canary") {
        eprintln!(
            "dunlin-sim: --canary needs a build with the canary: cargo run -p dunlin-sim --features canary -- --canary"
        );
        return ExitCode::from(2);
    }
    let seeds = match (arguments.seed, &arguments.seeds) {
        (Some(seed), _) => seed..seed.saturating_add(1),
        (None, Some(seeds)) => seeds.clone(),
        (None, None) if arguments.canary => 0..CANARY_SEEDS,
        (None, None) => 0..1,
    };
    name_seed_on_panic(arguments.transport);
    let summary = run(&arguments, seeds);
    let succeeded = match (arguments.canary, summary.unexplained.first()) {
        (true, Some(seed)) => {
            say(&format!("the canary was caught, by seed {seed}"));
            true
        }
        (true, None) => {
            say(&format!("the canary was not caught within {} seeds", summary.seeds));
            false
        }
        (false, _) => summary.failed.is_empty(),
    };
    if succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[derive(Default)]
struct Summary {
    seeds: u64,
    counts: Counts,
    failed: Vec<u64>,
    /// Those of them in which a key's history cannot be explained: what the canary must lead to.
    unexplained: Vec<u64>,
}

thread_local! {
    /// What this thread runs.
    static SEED: Cell<u64> = const { Cell::new(0) };
}

/// A broken assertion of the code under test ends the whole run: at least it says which seed it was.
fn name_seed_on_panic(transport: Transport) {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        default(panic);
        eprintln!("  repeat: {}", command(SEED.get(), transport));
    }));
}

/// What runs a seed again.
fn command(seed: u64, transport: Transport) -> String {
    let features = if cfg!(feature = "canary") { " --features canary" } else { "" };
    let transport = if transport == Transport::Quic { "--transport quic " } else { "" };
    format!("cargo run --release -p dunlin-sim{features} -- {transport}--seed {seed}")
}

/// Runs the seeds, one a thread, and reports them in order.
fn run(arguments: &Arguments, seeds: Range<u64>) -> Summary {
    let many = seeds.end - seeds.start > 1;
    // How long a run takes on the real clock concerns nothing that is simulated.
    #[allow(clippy::disallowed_methods)]
    let start = Instant::now();
    let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let threads = arguments.threads.unwrap_or(cores).get() as u64;
    let simulate = match arguments.transport {
        Transport::Memory => simulate,
        Transport::Quic => simulate_over_quic,
    };
    let next = AtomicU64::new(seeds.start);
    let stop = Mutex::new(false);
    let (sender, receiver) = mpsc::channel();
    let mut summary = Summary::default();
    std::thread::scope(|scope| {
        for _ in 0..threads.min(seeds.end - seeds.start) {
            let (sender, next, stop, seeds) = (sender.clone(), &next, &stop, &seeds);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || *stop.lock().expect("nobody panics with it") {
                        return;
                    }
                    SEED.set(seed);
                    if sender.send(simulate(seed, arguments.trace)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut early = std::collections::BTreeMap::new();
        let mut expected = seeds.start;
        for verdict in receiver {
            early.insert(verdict.seed, verdict);
            while let Some(verdict) = early.remove(&expected) {
                expected += 1;
                take(arguments, &verdict, many, &mut summary);
                if arguments.canary && !summary.unexplained.is_empty() {
                    *stop.lock().expect("nobody panics with it") = true;
                }
            }
            progress(&summary, seeds.end - seeds.start, many);
        }
    });
    if many {
        let minutes = start.elapsed().as_secs_f64() / 60.0;
        let rate = summary.seeds as f64 / minutes.max(1e-9);
        if arguments.json {
            let mut object = counts_json(&summary.counts);
            object["seeds"] = json!(summary.seeds);
            object["failed"] = json!(summary.failed);
            object["seeds_per_minute"] = json!(rate.round());
            say(&object.to_string());
        } else {
            let failed = summary.failed.len();
            say(&format!("{} seeds, {failed} failed, {rate:.0} seeds a minute; {}", summary.seeds, summary.counts));
        }
    }
    summary
}

fn take(arguments: &Arguments, verdict: &Verdict, many: bool, summary: &mut Summary) {
    summary.seeds += 1;
    summary.counts += verdict.counts;
    if !verdict.passed() {
        summary.failed.push(verdict.seed);
    }
    if verdict.violations.iter().any(|violation| violation.history.is_some()) {
        summary.unexplained.push(verdict.seed);
    }
    if arguments.json {
        say(&verdict_json(verdict).to_string());
    } else if !many || !verdict.passed() && !arguments.canary {
        print(verdict, arguments.transport, !many);
    }
}

fn print(verdict: &Verdict, transport: Transport, with_faults: bool) {
    let word = if verdict.passed() { "passed" } else { "FAILED" };
    let Verdict { seed, trace_hash, events, manner, counts, .. } = verdict;
    say(&format!("seed {seed} {word}: trace {trace_hash:016x}, {events} events, {manner}; {counts}"));
    if with_faults {
        verdict.faults.iter().for_each(|fault| say(&format!("  fault {fault}")));
    }
    for violation in &verdict.violations {
        say(&format!("  violation: {}", violation.what));
        if let Some(history) = &violation.history {
            history.lines().for_each(|line| say(&format!("    {line}")));
        }
    }
    if !verdict.passed() {
        say(&format!("  repeat: {}", command(*seed, transport)));
    }
}

fn counts_json(counts: &Counts) -> serde_json::Value {
    json!({
        "operations": counts.operations,
        "acknowledged": counts.acknowledged,
        "unknown": counts.unknown,
        "refused": counts.refused,
        "cas_won": counts.cas_won,
        "cas_lost": counts.cas_lost,
        "taken_over": counts.taken_over,
        "resolved": counts.resolved,
        "repaired": counts.repaired,
        "cold_reads": counts.cold_reads,
        "faults": counts.faults,
        "messages_lost": counts.dropped,
        "flushes": counts.flushes,
        "merges": counts.merges,
        "collected": counts.collected,
        "undecided": counts.undecided,
    })
}

fn verdict_json(verdict: &Verdict) -> serde_json::Value {
    let violations: Vec<_> =
        verdict.violations.iter().map(|v| json!({ "what": v.what, "history": v.history })).collect();
    let mut object = json!({
        "seed": verdict.seed,
        "passed": verdict.passed(),
        "trace": format!("{:016x}", verdict.trace_hash),
        "events": verdict.events,
        "manner": verdict.manner,
    });
    if let (Some(object), Some(counts)) = (object.as_object_mut(), counts_json(&verdict.counts).as_object()) {
        object.extend(counts.clone());
        object.insert("violations".to_owned(), violations.into());
    }
    object
}

/// A line on standard output. Nobody listening any more is no error.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn progress(summary: &Summary, of: u64, many: bool) {
    let mut error = std::io::stderr();
    if many && error.is_terminal() {
        let _ = write!(error, "\r{} of {of} seeds, {} failed ", summary.seeds, summary.failed.len());
        if summary.seeds == of {
            let _ = writeln!(error);
        }
        let _ = error.flush();
    }
}
