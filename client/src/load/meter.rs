//! `Meter`: what is counted while a load runs.

use std::collections::BTreeMap;
use std::time::Duration;

use dunlin_protocol::Status;
use tokio::time::Instant;

use super::latencies::Latencies;
use super::report::{Progress, Report, Series};
use super::traffic::Class;

const DIGITS: u8 = 3;
const INTERVAL_DIGITS: u8 = 2;

/// Counts for all clients. Latencies are those of successes; what failed is counted by its code.
#[derive(Debug)]
pub(crate) struct Meter {
    start: Instant,
    /// Successes after it count as operations, but not for the rate.
    end: Instant,
    classes: BTreeMap<Class, Latencies>,
    errors: BTreeMap<Status, u64>,
    in_window: u64,
    clients: Vec<Waiting>,
    longest_without_success: Duration,
    interval: Interval,
}

/// What one client waits for.
#[derive(Clone, Copy, Debug, Default)]
struct Waiting {
    /// The request under way was sent then.
    since: Option<Instant>,
    /// How long requests were under way since the last success, without the present one.
    before: Duration,
}

#[derive(Debug)]
struct Interval {
    start: Instant,
    latencies: Latencies,
    errors: u64,
}

impl Meter {
    pub(crate) fn new(clients: usize, start: Instant, end: Instant) -> Self {
        Self {
            start,
            end,
            classes: BTreeMap::new(),
            errors: BTreeMap::new(),
            in_window: 0,
            clients: vec![Waiting::default(); clients],
            longest_without_success: Duration::ZERO,
            interval: Interval { start, latencies: Latencies::new(INTERVAL_DIGITS), errors: 0 },
        }
    }

    /// A client sends a request.
    pub(crate) fn begin(&mut self, client: usize, now: Instant) {
        self.clients[client].since = Some(now);
    }

    /// Its request succeeded. `intended`: when it should have been sent.
    pub(crate) fn succeed(&mut self, client: usize, class: Class, intended: Instant, now: Instant) {
        let waited = self.ended(client, now);
        self.longest_without_success = self.longest_without_success.max(waited);
        self.clients[client].before = Duration::ZERO;
        let latency = now.saturating_duration_since(intended);
        self.classes.entry(class).or_insert_with(|| Latencies::new(DIGITS)).record(latency);
        self.interval.latencies.record(latency);
        self.in_window += u64::from(now <= self.end);
    }

    /// Its request failed. `pause`: for how long it waits before the next one, which it would have sent at once.
    pub(crate) fn fail(&mut self, client: usize, status: Status, pause: Duration, now: Instant) {
        let waited = self.ended(client, now);
        self.clients[client].before = waited + pause;
        *self.errors.entry(status).or_default() += 1;
        self.interval.errors += 1;
    }

    fn ended(&mut self, client: usize, now: Instant) -> Duration {
        let waiting = &mut self.clients[client];
        waiting.before + waiting.since.take().map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// What happened since the last call.
    pub(crate) fn progress(&mut self, now: Instant) -> Progress {
        let Interval { start, latencies, errors } = &mut self.interval;
        let interval = now.saturating_duration_since(*start);
        let progress = Progress {
            elapsed: now.saturating_duration_since(self.start),
            per_second: rate(latencies.count(), interval),
            latency: latencies.summary(),
            errors: *errors,
        };
        *start = now;
        *errors = 0;
        latencies.clear();
        progress
    }

    /// All that was measured until `now`. What is still under way counts for nothing but the longest time without a success.
    pub(crate) fn report(&self, now: Instant) -> Report {
        let waiting = self.clients.iter().map(|waiting| {
            waiting.before + waiting.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
        });
        let mut all = Latencies::new(DIGITS);
        for latencies in self.classes.values() {
            all.add(latencies);
        }
        let window = now.min(self.end).saturating_duration_since(self.start);
        let series = self.classes.iter().map(|(class, latencies)| Series {
            name: class.name(),
            operations: latencies.count(),
            latency: latencies.summary(),
        });
        Report {
            window,
            operations: all.count(),
            per_second: rate(self.in_window, window),
            latency: all.summary(),
            series: series.collect(),
            errors: self.errors.clone(),
            longest_without_success: waiting.fold(self.longest_without_success, Duration::max),
            under_way: self.clients.iter().filter(|waiting| waiting.since.is_some()).count() as u64,
            not_started: 0,
        }
    }
}

fn rate(count: u64, duration: Duration) -> f64 {
    if duration.is_zero() { 0.0 } else { count as f64 / duration.as_secs_f64() }
}
