//! What may be typed, and what is printed of a load on a store in memory.

use clap::Parser;
use dunlin_client::Stamp;
use dunlin_client::load::{Failed, Report, Request, Store};
use dunlin_protocol::{Level, Millis, Status};

use super::cpu::CpuUsed;
use super::*;
use crate::cli::args::Args;
use crate::cli::command::{Command, Task};

fn parse(line: &str) -> Result<Plan, Failure> {
    let args = Args::try_parse_from(line.split(' ')).map_err(|e| Failure::usage(e.to_string()))?;
    match Command::try_from(args)?.task {
        Task::Bench(bench) => Ok(bench.plan),
        other => panic!("{other:?}"),
    }
}

#[test]
fn arguments_make_a_plan() {
    assert_eq!(parse("dunlin bench"), Ok(Plan::new(Workload::Put)));
    assert_eq!(parse("dunlin bench cas --hot"), Ok(Plan { hot_share: 1.0, ..Plan::new(Workload::Cas) }));
    let typed =
        "dunlin bench mixed --clients 7 --rate 500 --seconds 3 --keys 9 --value-size 5 --level one --hot-share 0.25";
    let plan = Plan {
        clients: 7,
        rate: NonZeroU32::new(500),
        duration: Duration::from_secs(3),
        keys: 9,
        value_bytes: 5,
        level: Some(Level::ONE),
        hot_share: 0.25,
        ..Plan::new(Workload::Mixed)
    };
    assert_eq!(parse(typed), Ok(plan));
    assert_eq!(parse("dunlin bench get --rate 5").map(|plan| plan.clients), Ok(OPEN_CLIENTS));
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    for (line, part) in [
        ("dunlin bench puts", "`puts` is no workload"),
        ("dunlin bench --rate 0", "--rate"),
        ("dunlin bench --seconds 0", "duration"),
        ("dunlin bench --clients 0", "clients"),
        ("dunlin bench --hot --hot-share 0.5", "--hot"),
        ("dunlin bench --hot-share 2", "share"),
        ("dunlin bench cas --hot-share 0.5", "cas"),
        ("dunlin bench incr --level one", "incr is serial"),
        ("dunlin bench --level most", "most"),
        ("dunlin bench --value-size 1000000000", "bytes"),
    ] {
        let failure = parse(line).expect_err(line);
        assert_eq!(failure.status.exit_code(), 2, "{line}");
        assert!(failure.message.contains(part), "{line}: {}", failure.message);
    }
}

/// Answers after 10 ms; each tenth request fails.
#[derive(Clone, Default)]
struct Slow {
    count: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl Store for Slow {
    async fn send(&self, _: Request) -> Result<Stamp, Failed> {
        let count = self.count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(10)).await;
        match count % 10 {
            9 => Err(Failed { status: Status::Timeout, current: None }),
            _ => Ok(Stamp::new(Millis(count), 0, 1)),
        }
    }
}

fn measured(plan: &Plan) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let load = Load::new(Slow::default(), plan.clone()).unwrap();
    runtime.block_on(load.run(std::future::pending(), |_| ()))
}

#[test]
fn a_report_is_printed_with_all_that_matters() {
    let plan = Plan { clients: 10, duration: Duration::from_secs(2), hot_share: 0.5, ..Plan::new(Workload::Put) };
    let report = measured(&plan);
    let second = Duration::from_secs(1);
    let cpu = CpuUsed { own: Some(second), nodes: [(1, second), (2, 2 * second)].into() };
    let lines = human(&plan, &report, &cpu);
    assert_eq!(lines[0], "put: 10 clients, 100,000 keys and a hot one with 50%, values of 100 bytes");
    let text = lines.join("\n");
    let errors = report.errors[&Status::Timeout];
    assert!(errors > 150, "{errors}");
    let micros = 3e6 / report.operations as f64;
    for part in [
        format!("operations    {} in 2.00 s", count(report.operations)),
        "latency       p50 10".to_owned(),
        "  put hot".to_owned(),
        "  put other".to_owned(),
        format!("errors        TIMEOUT {errors}"),
        format!("nodes {micros:.1} us an operation (2 nodes), client {:.1} us", micros / 3.0),
    ] {
        assert!(text.contains(&part), "{part:?} in\n{text}");
    }

    let object = object(&plan, &report, &cpu);
    assert_eq!((&object["code"], &object["workload"]), (&"OK".into(), &"put".into()));
    assert_eq!(object["errors"]["TIMEOUT"], errors);
    assert_eq!(object["operations"], report.operations);
    assert_eq!(object["series"][1]["name"], "put hot");
    assert!(object["latency_micros"]["p99.9"].as_u64().unwrap() >= 10_000);
    assert_eq!(object["cpu"]["nodes"][1]["seconds"], 2.0);
    assert!((object["cpu"]["nodes_micros_per_operation"].as_f64().unwrap() - micros).abs() < 1e-6);
    assert!(object["rate_wanted"].is_null());
}

#[test]
fn what_is_not_known_is_not_printed_as_a_number() {
    let plan = Plan { duration: Duration::from_secs(1), ..Plan::new(Workload::Increment) };
    let cpu = CpuUsed { own: None, nodes: Default::default() };
    let report = measured(&plan);
    assert!(human(&plan, &report, &cpu).join("\n").ends_with("CPU           nodes not known, client not known"));
    assert!(object(&plan, &report, &cpu)["cpu"]["nodes_micros_per_operation"].is_null());
}
