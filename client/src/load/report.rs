//! `Report`: what a load measured.

use std::collections::BTreeMap;
use std::time::Duration;

use dunlin_protocol::Status;

/// What a run measured.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub struct Report {
    /// How long requests were sent.
    pub window: Duration,
    /// Successes, also of those requests that ended after the window.
    pub operations: u64,
    /// Successes a second within the window.
    pub per_second: f64,
    /// Of all successes: in a closed loop from the sending, in an open loop from the intended start.
    pub latency: Latency,
    /// The same by kind of operation, where there are several.
    pub series: Vec<Series>,
    /// Requests that failed, by code. A compare-and-set that lost is a `PRECONDITION_FAILED`.
    pub errors: BTreeMap<Status, u64>,
    /// The longest time that any one client had requests under way without a success.
    pub longest_without_success: Duration,
    /// Requests that were still under way when the run was stopped.
    pub under_way: u64,
    /// In an open loop: requests that were due and found no free client within the window.
    pub not_started: u64,
}

/// One kind of operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Series {
    /// `get` or `put` or another operation, with `hot` or `other` where a part goes to the hot key.
    pub name: &'static str,
    /// Successes.
    pub operations: u64,
    /// Their latencies.
    pub latency: Latency,
}

/// Latencies, to three digits; all zero where there are none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Latency {
    /// Half are below.
    pub p50: Duration,
    /// 90% are below.
    pub p90: Duration,
    /// 99% are below.
    pub p99: Duration,
    /// 99.9% are below.
    pub p999: Duration,
    /// The largest.
    pub max: Duration,
    /// The average.
    pub mean: Duration,
}

/// What the last second brought.
#[derive(Clone, Copy, PartialEq, Debug)]
#[non_exhaustive]
pub struct Progress {
    /// Since the start of the run.
    pub elapsed: Duration,
    /// Successes a second.
    pub per_second: f64,
    /// Of the successes, to two digits.
    pub latency: Latency,
    /// Failures.
    pub errors: u64,
}
