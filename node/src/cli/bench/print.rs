//! A report for people and for machines.

use std::time::Duration;

use dunlin_client::load::{Latency, Plan, Report};
use serde_json::{Map, Value, json};

use super::cpu::CpuUsed;
use crate::cli::output::done;

/// The report for people, line by line.
pub(super) fn human(plan: &Plan, report: &Report, cpu: &CpuUsed) -> Vec<String> {
    let mut lines = vec![
        plan_line(plan),
        String::new(),
        row("operations", format!("{} in {}", count(report.operations), span(report.window))),
        row("rate", format!("{}/s", count(report.per_second.round() as u64))),
        row("latency", latency_line(&report.latency)),
    ];
    if report.series.len() > 1 {
        for series in &report.series {
            let latency = latency_line(&series.latency);
            lines.push(row(
                &format!("  {}", series.name),
                format!("{latency}  ({} operations)", count(series.operations)),
            ));
        }
    }
    lines.push(row("errors", errors_line(report)));
    lines.push(row("no success", format!("{} at most for any one client", span(report.longest_without_success))));
    if report.not_started > 0 {
        lines
            .push(row("not sent", format!("{} requests were due and found no free client", count(report.not_started))));
    }
    if report.under_way > 0 {
        lines.push(row("under way", format!("{} requests when it was stopped", count(report.under_way))));
    }
    lines.push(row("CPU", cpu_line(report, cpu)));
    lines
}

/// The report for machines.
pub(super) fn object(plan: &Plan, report: &Report, cpu: &CpuUsed) -> Map<String, Value> {
    let mut object = done("");
    let series = report.series.iter().map(|series| {
        json!({"name": series.name, "operations": series.operations, "latency_micros": latency_object(&series.latency)})
    });
    let errors = report.errors.iter().map(|(status, count)| (status.code().to_owned(), Value::from(*count)));
    let nodes = cpu.nodes.iter().map(|(node, used)| json!({"node": node, "seconds": used.as_secs_f64()}));
    let cpu = json!({
        "nodes_micros_per_operation": cpu.of_nodes().and_then(|used| per_operation(report, used)),
        "client_micros_per_operation": cpu.own.and_then(|used| per_operation(report, used)),
        "client_seconds": cpu.own.map(|used| used.as_secs_f64()),
        "nodes": Value::from_iter(nodes),
    });
    let facts = [
        ("workload", Value::from(plan.workload.name())),
        ("clients", plan.clients.into()),
        ("rate_wanted", plan.rate.map(|rate| rate.get()).into()),
        ("keys", plan.keys.into()),
        ("value_bytes", plan.value_bytes.into()),
        ("level", plan.level.map(|level| level.to_string()).into()),
        ("hot_share", plan.hot_share.into()),
        ("seconds", report.window.as_secs_f64().into()),
        ("operations", report.operations.into()),
        ("per_second", report.per_second.into()),
        ("latency_micros", latency_object(&report.latency)),
        ("series", Value::from_iter(series)),
        ("errors", Value::Object(errors.collect())),
        ("longest_without_success_micros", micros(report.longest_without_success)),
        ("under_way", report.under_way.into()),
        ("not_started", report.not_started.into()),
        ("cpu", cpu),
    ];
    object.extend(facts.map(|(name, value)| (name.to_owned(), value)));
    object
}

fn row(name: &str, text: String) -> String {
    format!("{name:<14}{text}")
}

fn plan_line(plan: &Plan) -> String {
    let pace = match plan.rate {
        None => format!("{} clients", count(plan.clients as u64)),
        Some(rate) => format!("{}/s over at most {} clients", count(rate.get().into()), count(plan.clients as u64)),
    };
    let keys = match plan.hot_share {
        1.0 => "one hot key".to_owned(),
        0.0 => format!("{} keys", count(plan.keys)),
        share => format!("{} keys and a hot one with {:.0}%", count(plan.keys), share * 100.0),
    };
    let level = plan.level.map(|level| format!(", level {level}")).unwrap_or_default();
    format!("{}: {pace}, {keys}, values of {} bytes{level}", plan.workload, count(plan.value_bytes as u64))
}

fn latency_line(latency: &Latency) -> String {
    let Latency { p50, p90, p99, p999, max, .. } = *latency;
    let parts = [("p50", p50), ("p90", p90), ("p99", p99), ("p99.9", p999), ("max", max)];
    parts.map(|(name, time)| format!("{name} {}", span(time))).join("  ")
}

fn latency_object(latency: &Latency) -> Value {
    let Latency { p50, p90, p99, p999, max, mean, .. } = *latency;
    json!({
        "p50": micros(p50), "p90": micros(p90), "p99": micros(p99), "p99.9": micros(p999), "max": micros(max), "mean": micros(mean),
    })
}

fn errors_line(report: &Report) -> String {
    if report.errors.is_empty() {
        return "none".to_owned();
    }
    let each = report.errors.iter().map(|(status, errors)| format!("{} {}", status.code(), count(*errors)));
    each.collect::<Vec<_>>().join("  ")
}

fn cpu_line(report: &Report, cpu: &CpuUsed) -> String {
    let each = |used| per_operation(report, used).map(|micros| format!("{micros:.1} us an operation"));
    let client = cpu.own.and_then(each).unwrap_or_else(|| "not known".to_owned());
    match cpu.of_nodes().and_then(each) {
        Some(nodes) => format!("nodes {nodes} ({} nodes), client {client}", cpu.nodes.len()),
        None => format!("nodes not known, client {client}"),
    }
}

/// Microseconds of CPU time for each success.
fn per_operation(report: &Report, used: Duration) -> Option<f64> {
    (report.operations > 0).then(|| used.as_secs_f64() * 1e6 / report.operations as f64)
}

fn micros(time: Duration) -> Value {
    Value::from(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

/// A time as people read it, to three digits.
pub(super) fn span(time: Duration) -> String {
    let (number, unit) = match time.as_secs_f64() {
        seconds if seconds < 0.999_5e-3 => (seconds * 1e6, "us"),
        seconds if seconds < 0.999_5 => (seconds * 1e3, "ms"),
        seconds => (seconds, "s"),
    };
    let digits = match number {
        number if number < 9.995 => 2,
        number if number < 99.95 => 1,
        _ => 0,
    };
    if unit == "us" { format!("{number:.0} us") } else { format!("{number:.digits$} {unit}") }
}

/// A number with its thousands apart.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_numbers_are_written_for_people() {
        for (nanos, text) in [
            (0, "0 us"),
            (1_499, "1 us"),
            (999_400, "999 us"),
            (999_600, "1.00 ms"),
            (12_340_000, "12.3 ms"),
            (99_960_000, "100 ms"),
            (999_600_000, "1.00 s"),
            (10_000_000_000, "10.0 s"),
            (3_600_000_000_000, "3600 s"),
        ] {
            assert_eq!(span(Duration::from_nanos(nanos)), text);
        }
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), text);
        }
    }
}
