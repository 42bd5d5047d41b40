//! Loads on a store of the test's making, in virtual time.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dunlin_protocol::{Level, Millis, Stamp, Status};
use tokio::time::{Instant, sleep, sleep_until};

use super::pace::Pace;
use super::run::Load;
use super::schedule::Schedule;
use super::*;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A store in memory that takes `latency` for a request, stalls from `stall.0` to `stall.1` and refuses from `refuse.0` to `refuse.1`.
#[derive(Clone)]
struct Fake {
    start: Instant,
    latency: Duration,
    stall: (Duration, Duration),
    refuse: (Duration, Duration),
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    versions: BTreeMap<Vec<u8>, Stamp>,
    counts: BTreeMap<Vec<u8>, u64>,
    levels: BTreeMap<Option<String>, u64>,
    value_lens: BTreeMap<usize, u64>,
    under_way: usize,
    most_under_way: usize,
    stamps: u64,
}

impl Fake {
    fn new(latency: Duration) -> Self {
        let never = (Duration::MAX, Duration::MAX);
        Self { start: Instant::now(), latency, stall: never, refuse: never, state: Arc::default() }
    }
}

impl Store for Fake {
    async fn send(&self, request: Request) -> Result<Stamp, Failed> {
        let failed = |status| Err(Failed { status, current: None });
        {
            let mut state = self.state.lock().unwrap();
            state.under_way += 1;
            state.most_under_way = state.most_under_way.max(state.under_way);
        }
        let at = self.start.elapsed();
        let refuses = (self.refuse.0..self.refuse.1).contains(&at);
        if !refuses {
            sleep(self.latency).await;
            if (self.stall.0..self.stall.1).contains(&at) {
                sleep_until(self.start + self.stall.1).await;
            }
        }
        let mut state = self.state.lock().unwrap();
        state.under_way -= 1;
        if refuses {
            return failed(Status::Unavailable);
        }
        state.stamps += 1;
        let next = Stamp::new(Millis(state.stamps), 0, 1);
        match request {
            Request::Get { key, level } => {
                *state.levels.entry(level.map(|l| l.to_string())).or_default() += 1;
                *state.counts.entry(key.to_vec()).or_default() += 1;
                state.versions.get(&key[..]).copied().map_or(failed(Status::NotFound), Ok)
            }
            Request::Put { key, value, level } => {
                *state.levels.entry(level.map(|l| l.to_string())).or_default() += 1;
                *state.value_lens.entry(value.len()).or_default() += 1;
                *state.counts.entry(key.to_vec()).or_default() += 1;
                state.versions.insert(key.to_vec(), next);
                Ok(next)
            }
            Request::Cas { key, version, value } => {
                *state.value_lens.entry(value.len()).or_default() += 1;
                *state.counts.entry(key.to_vec()).or_default() += 1;
                let current = state.versions.get(&key[..]).copied().unwrap_or(Stamp::ZERO);
                if current != version {
                    return Err(Failed { status: Status::PreconditionFailed, current: Some(current) });
                }
                state.versions.insert(key.to_vec(), next);
                Ok(next)
            }
            Request::Increment { key } => {
                *state.counts.entry(key.to_vec()).or_default() += 1;
                Ok(next)
            }
        }
    }
}

async fn measure(store: &Fake, plan: Plan) -> Report {
    let mut load = Load::new(store.clone(), plan).unwrap().in_paused_time();
    load.prepare(|_, _| ()).await.unwrap();
    load.run(std::future::pending(), |_| ()).await
}

fn close_to(measured: Duration, expected: Duration) -> bool {
    // Three digits, and timers of a millisecond.
    measured.abs_diff(expected) <= expected / 500 + ms(1)
}

#[tokio::test(start_paused = true)]
async fn a_closed_loop_keeps_each_client_busy() {
    let store = Fake::new(ms(10));
    let plan = Plan { clients: 8, duration: Duration::from_secs(4), ..Plan::new(Workload::Put) };
    let report = measure(&store, plan).await;
    assert_eq!(report.operations, 8 * 400);
    assert!((report.per_second - 800.0).abs() < 1.0, "{}", report.per_second);
    assert!(close_to(report.latency.p50, ms(10)) && close_to(report.latency.max, ms(10)), "{:?}", report.latency);
    assert_eq!(report.longest_without_success, ms(10));
    assert_eq!((report.errors.len(), report.under_way, report.not_started), (0, 0, 0));
    let state = store.state.lock().unwrap();
    assert_eq!((state.most_under_way, state.value_lens.clone()), (8, BTreeMap::from([(100, 3200)])));
    // Spread over many keys.
    assert!(state.counts.len() > 3000, "{}", state.counts.len());
}

#[tokio::test(start_paused = true)]
async fn a_closed_loop_sees_a_stall_once_for_each_client() {
    let store = Fake { stall: (ms(1_000), ms(2_000)), ..Fake::new(ms(10)) };
    let report =
        measure(&store, Plan { clients: 4, duration: Duration::from_secs(4), ..Plan::new(Workload::Put) }).await;
    assert!(close_to(report.latency.max, ms(1_000)));
    assert!(close_to(report.latency.p99, ms(10)), "four of 1,200");
    assert!(close_to(report.longest_without_success, ms(1_000)));
}

#[tokio::test(start_paused = true)]
async fn an_open_loop_counts_the_requests_that_a_stall_kept_from_being_sent() {
    let store = Fake { stall: (ms(1_000), ms(2_000)), ..Fake::new(ms(1)) };
    let rate = NonZeroU32::new(200);
    let plan = Plan { clients: 1, rate, duration: Duration::from_secs(4), ..Plan::new(Workload::Put) };
    let report = measure(&store, plan).await;
    // Due every 5 ms, one at a time: what was due during the stall is sent after it, 1 ms apart, with the time since it was due.
    assert_eq!((report.operations, report.not_started), (800, 0));
    assert!(close_to(report.latency.max, ms(1_000)), "{:?}", report.latency);
    assert!(close_to(report.latency.p50, ms(1)), "{:?}", report.latency);
    // 200 due in the stall and 50 while it is worked off, so a quarter of all waited for longer than 10 ms.
    assert!(report.latency.p90 > ms(500) && report.latency.p90 < ms(800), "{:?}", report.latency);
    assert!(close_to(report.longest_without_success, ms(1_000)), "{:?}", report.longest_without_success);
}

#[tokio::test(start_paused = true)]
async fn an_open_loop_has_no_more_under_way_than_its_clients() {
    let store = Fake::new(ms(100));
    let rate = NonZeroU32::new(100);
    let plan = Plan { clients: 5, rate, duration: Duration::from_secs(2), ..Plan::new(Workload::Put) };
    let report = measure(&store, plan).await;
    // Five clients carry 50 a second of the 100.
    assert_eq!(store.state.lock().unwrap().most_under_way, 5);
    assert_eq!(report.operations + report.not_started, 200);
    assert!((report.per_second - 50.0).abs() <= 3.0, "{}", report.per_second);
    assert!(report.latency.max > ms(900), "requests waited for a free client: {:?}", report.latency);
    assert!(report.longest_without_success <= ms(101), "the store itself always answered");
}

#[tokio::test(start_paused = true)]
async fn failures_are_counted_and_lengthen_the_time_without_a_success() {
    let store = Fake { refuse: (ms(500), ms(900)), ..Fake::new(ms(10)) };
    let report =
        measure(&store, Plan { clients: 2, duration: Duration::from_secs(2), ..Plan::new(Workload::Put) }).await;
    // One try each 5 ms and client.
    let refused = report.errors[&Status::Unavailable];
    assert!((100..=162).contains(&refused), "{refused}");
    // Refused from 500 ms to 900 ms, and 10 ms for the answer after that.
    assert!((ms(400)..=ms(425)).contains(&report.longest_without_success), "{:?}", report.longest_without_success);
    assert!(close_to(report.latency.max, ms(10)), "latencies are those of successes");
    assert_eq!(report.operations, 2 * 160);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_never_answers_shows_when_the_run_is_stopped() {
    let store = Fake { stall: (ms(1_000), ms(100_000)), ..Fake::new(ms(10)) };
    let plan = Plan { clients: 3, duration: Duration::from_secs(60), ..Plan::new(Workload::Put) };
    let mut seen = Vec::new();
    let load = Load::new(store, plan).unwrap().in_paused_time();
    let report = load.run(sleep(ms(5_500)), |progress| seen.push(*progress)).await;
    assert_eq!((report.window, report.under_way), (ms(5_500), 3));
    assert!(close_to(report.longest_without_success, ms(4_500)), "{:?}", report.longest_without_success);
    assert_eq!(report.operations, 300);
    assert_eq!(seen.len(), 5);
    assert!((seen[0].per_second - 300.0).abs() <= 3.0 && seen[4].per_second == 0.0, "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_under_way_at_the_end_is_waited_for_but_not_in_the_rate() {
    let store = Fake::new(ms(700));
    let report =
        measure(&store, Plan { clients: 10, duration: Duration::from_secs(1), ..Plan::new(Workload::Put) }).await;
    assert_eq!((report.operations, report.window, report.under_way), (20, ms(1_000), 0));
    assert!((report.per_second - 10.0).abs() < 0.01);
}

#[tokio::test(start_paused = true)]
async fn reads_find_the_keys_that_were_stored_before() {
    for (workload, level, hot_share) in [
        (Workload::Get, Some(Level::ONE), 0.0),
        (Workload::Get, None, 1.0),
        (Workload::Get, None, 0.5),
        (Workload::Serial, None, 0.0),
        (Workload::Mixed, Some(Level::Serial), 0.0),
    ] {
        let store = Fake::new(ms(5));
        let plan =
            Plan { clients: 7, keys: 300, level, hot_share, duration: Duration::from_secs(1), ..Plan::new(workload) };
        let mut last = (0, 0);
        let mut load = Load::new(store.clone(), plan).unwrap().in_paused_time();
        load.prepare(|stored, of| last = (stored, of)).await.unwrap();
        let keys = store.state.lock().unwrap().versions.len() as u64;
        assert_eq!(last, (keys, keys));
        let report = load.run(std::future::pending(), |_| ()).await;
        assert_eq!((report.errors.clone(), report.operations), (BTreeMap::new(), 1_400), "{workload} {hot_share}");
        let expected: &[_] = match (workload, hot_share) {
            (Workload::Mixed, _) => &["get", "put"],
            (_, 0.5) => &["get other", "get hot"],
            _ => &["get"],
        };
        let named: Vec<_> = report.series.iter().map(|s| s.name).collect();
        assert_eq!(named, expected);
        if expected.len() == 2 {
            let part = report.series[0].operations as f64 / report.operations as f64;
            assert!((0.45..0.55).contains(&part), "{workload} {part}");
        }
        if workload == Workload::Serial {
            assert_eq!(store.state.lock().unwrap().levels[&Some("serial".to_owned())], 1_400);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn clients_compare_and_set_keys_of_their_own() {
    let store = Fake::new(ms(5));
    let plan = Plan { clients: 7, keys: 100, duration: Duration::from_secs(1), ..Plan::new(Workload::Cas) };
    let report = measure(&store, plan.clone()).await;
    assert_eq!((report.operations, report.errors), (1_400, BTreeMap::new()));
    assert_eq!(store.state.lock().unwrap().versions.len(), 98, "14 for each client");
    // On what an earlier run left, it knows the versions as well.
    let again = Fake { start: Instant::now(), ..store };
    assert_eq!(measure(&again, plan).await.errors, BTreeMap::new());
}

#[tokio::test(start_paused = true)]
async fn on_one_hot_key_one_client_wins_at_a_time() {
    let store = Fake::new(ms(5));
    let plan = Plan { clients: 4, hot_share: 1.0, duration: Duration::from_secs(1), ..Plan::new(Workload::Cas) };
    let report = measure(&store, plan).await;
    assert_eq!((report.operations, report.errors), (200, BTreeMap::from([(Status::PreconditionFailed, 600)])));
    assert_eq!(store.state.lock().unwrap().versions.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn keys_that_cannot_be_stored_are_an_error() {
    let store = Fake { refuse: (ms(0), Duration::MAX), ..Fake::new(ms(5)) };
    let mut load = Load::new(store, Plan::new(Workload::Get)).unwrap().in_paused_time();
    assert_eq!(load.prepare(|_, _| ()).await, Err(PrepareError { status: Status::Unavailable }));
}

#[tokio::test]
async fn the_fine_timer_waits_until_the_moment() {
    let mut pace = Pace::finest();
    for wait in [Duration::ZERO, Duration::from_micros(300), ms(2)] {
        let moment = Instant::now() + wait;
        pace.wait_until(moment).await;
        assert!(Instant::now() >= moment);
    }
}

#[tokio::test(start_paused = true)]
async fn a_schedule_has_as_many_as_rate_and_duration_say() {
    let start = Instant::now();
    for (rate, millis, total) in [(1, 1, 1), (1, 1_000, 1), (1, 1_001, 2), (3, 1_000, 3), (40_000, 250, 10_000)] {
        let schedule = Schedule::new(start, NonZeroU32::new(rate).unwrap(), ms(millis));
        assert_eq!(schedule.total(), total);
        assert_eq!(schedule.due(start + Duration::from_secs(99)), total);
        for number in 0..total.min(500) {
            let at = schedule.at(number);
            assert_eq!(schedule.due(at), number + 1, "due when it is due");
            assert!(number == 0 || schedule.due(at - Duration::from_nanos(1)) == number, "and not before");
            assert!(at < start + ms(millis));
        }
    }
}

#[test]
fn plans_are_checked() {
    let check = |change: &dyn Fn(&mut Plan), workload| {
        let mut plan = Plan::new(workload);
        change(&mut plan);
        plan.check()
    };
    for workload in Workload::ALL {
        assert_eq!(check(&|_| (), workload), Ok(()));
        assert_eq!(workload.name().parse(), Ok(workload));
        assert_eq!(check(&|p| p.clients = 0, workload), Err(InvalidPlan::Clients(0)));
        assert_eq!(check(&|p| p.keys = 0, workload), Err(InvalidPlan::Keys(0)));
        assert_eq!(check(&|p| p.value_bytes = 1 << 30, workload), Err(InvalidPlan::ValueBytes(1 << 30)));
        assert_eq!(check(&|p| p.duration = Duration::ZERO, workload), Err(InvalidPlan::Duration));
        assert_eq!(check(&|p| p.hot_share = 1.5, workload), Err(InvalidPlan::HotShare(1.5)));
        assert!(matches!(check(&|p| p.hot_share = f64::NAN, workload), Err(InvalidPlan::HotShare(_))));
        assert_eq!(check(&|p| p.hot_share = 1.0, workload), Ok(()));
        assert_eq!(check(&|p| p.level = Some(Level::Serial), workload), Ok(()));
    }
    assert_eq!(check(&|p| p.hot_share = 0.5, Workload::Cas), Err(InvalidPlan::HotCas));
    assert_eq!(check(&|p| p.keys = 1 << 40, Workload::Cas), Err(InvalidPlan::CasKeys(1 << 40)));
    assert_eq!(
        check(&|p| p.level = Some(Level::ONE), Workload::Increment),
        Err(InvalidPlan::Level(Workload::Increment))
    );
    assert_eq!("puts".parse::<Workload>(), Err(InvalidPlan::Workload("puts".to_owned())));
}
