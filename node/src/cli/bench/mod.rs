//! `dunlin bench`: a load on a cluster, measured.

mod cpu;
mod print;
#[cfg(test)]
mod tests;

use std::io::IsTerminal;
use std::num::NonZeroU32;
use std::time::Duration;

use dunlin_client::load::{InvalidPlan, Load, Plan, PrepareError, Progress, Workload};
use tokio::signal::unix::{SignalKind, signal};

use super::client::connect;
use super::command::{Common, level};
use super::context::find;
use super::failure::Failure;
use super::output::{Output, say};
use cpu::CpuMeter;
use print::{count, human, object, span};

/// Put a load on the cluster and measure it: rate, latencies, errors, CPU per operation
///
/// Without --rate each client sends its next request when the last one ended. With --rate requests are due at even intervals, whatever became
/// of those before, and latencies count from when they were due. The longest time without a success is that of any one client with requests
/// under way. Compare-and-set is by version, each client on keys of its own; with --hot one client wins at a time, and the others count as
/// PRECONDITION_FAILED. CPU per operation is that of the processes of a `dunlin dev` cluster, and of this program, over all successes.
///
/// The keys begin with `bench:` and stay. Ctrl-C ends the run and prints what was measured.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  dunlin bench put
  dunlin bench get --level one --clients 256
  dunlin bench serial --rate 20000 --seconds 30
  dunlin bench cas --hot --clients 16
  dunlin bench put --hot-share 0.5 --json")]
pub(crate) struct RawBench {
    /// put, get, serial (reads at level serial), cas, incr, or mixed (half get, half put)
    #[arg(default_value = "put")]
    workload: String,
    /// Requests under way at a time, at most [default: 64; with --rate 1024]
    #[arg(long, value_name = "N")]
    clients: Option<usize>,
    /// Requests a second, sent when they are due
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    /// For how long
    #[arg(long, value_name = "N", default_value_t = 10)]
    seconds: u32,
    /// Over how many keys requests are spread [default: 100000; with cas and incr 10000]
    #[arg(long, value_name = "N")]
    keys: Option<u64>,
    /// The size of a value in bytes
    #[arg(long, value_name = "B", default_value_t = 100)]
    value_size: usize,
    /// one, two, three, a number, quorum, all, serial [default: the keyspace's]
    #[arg(long, value_name = "L")]
    level: Option<String>,
    /// All clients on one key
    #[arg(long)]
    hot: bool,
    /// This part of the requests, from 0 to 1, on one key
    #[arg(long, value_name = "PART", conflicts_with = "hot")]
    hot_share: Option<f64>,
}

/// What was asked for.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Bench {
    plan: Plan,
}

/// An open loop has to carry what comes due while the cluster is slow.
const OPEN_CLIENTS: usize = 1_024;

impl TryFrom<RawBench> for Bench {
    type Error = Failure;

    fn try_from(raw: RawBench) -> Result<Self, Failure> {
        let wrong = |e: InvalidPlan| Failure::usage(e.to_string());
        let workload: Workload = raw.workload.parse().map_err(wrong)?;
        let rate = match raw.rate.map(NonZeroU32::new) {
            None => None,
            Some(Some(rate)) => Some(rate),
            Some(None) => return Err(Failure::usage("--rate: at least 1 request a second")),
        };
        let defaults = Plan::new(workload);
        let plan = Plan {
            clients: raw.clients.unwrap_or(if rate.is_some() { OPEN_CLIENTS } else { defaults.clients }),
            rate,
            duration: Duration::from_secs(raw.seconds.into()),
            keys: raw.keys.unwrap_or(defaults.keys),
            value_bytes: raw.value_size,
            level: level(raw.level)?,
            hot_share: if raw.hot { 1.0 } else { raw.hot_share.unwrap_or(0.0) },
            ..defaults
        };
        plan.check().map_err(wrong)?;
        Ok(Self { plan })
    }
}

pub(crate) async fn run(common: &Common, bench: Bench, output: &mut Output) -> Result<(), Failure> {
    let Bench { plan } = bench;
    let client = connect(common).await?;
    let mut interrupted =
        signal(SignalKind::interrupt()).map_err(|e| Failure::local(format!("cannot listen for Ctrl-C: {e}")))?;
    let talks = !output.is_json() || std::io::stderr().is_terminal();
    let mut load = Load::new(client.clone(), plan.clone()).map_err(|e| Failure::usage(e.to_string()))?;

    let stored = |done, total| {
        if talks {
            say(&format!("storing keys: {} of {}", count(done), count(total)));
        }
    };
    tokio::select! {
        prepared = load.prepare(stored) => prepared?,
        _ = interrupted.recv() => return Err(Failure::local("stopped while the keys were stored: nothing was measured")),
    }

    // A context that was named lies beside the nodes' folders, as that of the running dev cluster does.
    let folder = find(common.context.as_deref())?.parent().map(ToOwned::to_owned).unwrap_or_default();
    let mut cpu = CpuMeter::start(folder);
    let ended = load.run(
        async {
            interrupted.recv().await;
        },
        |progress| {
            cpu.sample();
            if talks {
                say(&line(progress));
            }
        },
    );
    let report = ended.await;
    cpu.sample();
    client.close().await;

    let used = cpu.used();
    if output.is_json() {
        output.object(object(&plan, &report, &used))?;
    } else {
        for line in human(&plan, &report, &used) {
            output.line(line)?;
        }
    }
    match report.errors.iter().max_by_key(|(_, count)| **count) {
        Some((status, _)) if report.operations == 0 => {
            let failure = Failure::new(*status, format!("no request succeeded. {}", status.sentence()));
            Err(if output.is_json() { failure.told() } else { failure })
        }
        _ => Ok(()),
    }
}

impl From<PrepareError> for Failure {
    fn from(error: PrepareError) -> Self {
        Self::new(error.status, error.to_string())
    }
}

/// The line of a second.
fn line(progress: &Progress) -> String {
    let Progress { elapsed, per_second, latency, errors, .. } = progress;
    let (p50, p99, max) = (span(latency.p50), span(latency.p99), span(latency.max));
    let rate = count(per_second.round() as u64);
    let line = format!("{:3.0} s  {rate:>9}/s  p50 {p50:>8}  p99 {p99:>8}  max {max:>8}", elapsed.as_secs_f64());
    if *errors == 0 { line } else { format!("{line}  errors {}", count(*errors)) }
}
