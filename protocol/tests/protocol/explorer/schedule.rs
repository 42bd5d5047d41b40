//! Random schedules: a scenario, then a random sequence of what can happen, then two reads by a last client.

use std::time::Duration;

use dunlin_protocol::register::RegisterRequest;

use super::Break;
use super::coordinator::Task;
use super::linearizability::{Entry, is_legal};
use super::rng::Rng;
use super::scenario::{Mode, Scenario};
use super::world::{TIMES, World};

/// What a schedule came to.
pub(crate) struct Outcome {
    pub(crate) is_legal: bool,
    pub(crate) history: Vec<Entry>,
    pub(crate) collected: u32,
    /// Empty unless asked for.
    pub(crate) trace: Vec<String>,
}

/// How the things that can happen are weighed, in percent of the steps or of the messages.
struct Weather {
    slow: u64,
    slow_commits: bool,
    slow_writes: bool,
    lost_replies: u64,
    duplicates: u64,
    timeouts: usize,
    crashes: usize,
    at_once: usize,
    /// Links that are slow for a while: by client and replica.
    links: Vec<Vec<bool>>,
}

/// Runs the schedule of this seed.
pub(crate) fn run(seed: u64, mode: Mode, broken: Break, traced: bool) -> Outcome {
    let mut rng = Rng::new(seed);
    let scenario = Scenario::draw(&mut rng, mode);
    let mut world = World::new(&scenario, broken, traced);
    let mut weather = Weather {
        slow: rng.pick(&[10, 25, 40, 60]),
        slow_commits: rng.chance(50) && !scenario.collects,
        slow_writes: rng.chance(if mode == Mode::Plain { 80 } else { 30 }),
        lost_replies: rng.pick(&[0, 3, 10, 20]),
        duplicates: rng.pick(&[0, 0, 3, 10]),
        timeouts: rng.pick(&[1, 3, 8]),
        crashes: rng.pick(&[0, 0, 2, 6]),
        at_once: if mode == Mode::Plain || rng.chance(50) { usize::MAX } else { 1 + rng.below(4) },
        links: vec![vec![false; scenario.replica_offsets.len()]; scenario.clients.len()],
    };
    let steps = 40 + rng.below(160);
    let last = scenario.clients.len() - 1;
    for _ in 0..steps {
        world.pass_time(Duration::from_millis(u64::from(rng.chance(40))));
        weather.slow_down(&mut world, &mut rng);
        if !step(&mut world, &weather, last, &mut rng) {
            break;
        }
        if rng.chance(2) {
            weather.change_links(&mut rng);
        }
    }
    read_at_last(&mut world, last, &mut rng);
    Outcome {
        is_legal: is_legal(&world.history, scenario.one_writer),
        history: world.history,
        collected: world.collected,
        trace: world.trace.unwrap_or_default(),
    }
}

impl Weather {
    /// Says of each new message whether it is slow.
    fn slow_down(&self, world: &mut World<'_>, rng: &mut Rng) {
        for message in world.messages.iter_mut().rev().take_while(|m| m.is_slow.is_none()) {
            let often = match *message.request {
                RegisterRequest::Commit { .. } => self.slow_commits,
                RegisterRequest::Write { .. } => self.slow_writes,
                _ => false,
            };
            let link = message.from.is_some_and(|client| self.links[client][message.to]);
            message.is_slow = Some(rng.chance(if often { 70 } else { self.slow }) || link);
        }
    }

    fn change_links(&mut self, rng: &mut Rng) {
        for link in self.links.iter_mut().flatten() {
            *link = rng.chance(25);
        }
    }
}

/// Lets one thing happen. False: nothing is left to happen.
fn step(world: &mut World<'_>, weather: &Weather, last: usize, rng: &mut Rng) -> bool {
    let ready: Vec<usize> = (0..last).filter(|c| world.can_start(*c)).collect();
    let running = (0..last).filter(|c| !world.is_idle(*c)).count();
    if ready.is_empty() && running == 0 && world.messages.is_empty() {
        return false;
    }
    let (scenario, replicas) = (world.scenario, world.replicas.len());
    let dice = rng.below(100);
    let mut edge = 18;
    let mut within = |weight: usize| {
        edge += weight;
        dice < edge
    };
    if !ready.is_empty() && running < weather.at_once && (dice < 18 || world.messages.is_empty()) {
        let client = rng.pick(&ready);
        if world.next_task(client) == Some(Task::Collect) && rng.chance(85) {
            world.pass_time(TIMES.grace + TIMES.max_clock_skew);
        }
        world.start(client);
    } else if within(weather.timeouts) {
        world.time_out(rng.below(last));
    } else if within(weather.crashes) {
        world.give_up(rng.below(last));
    } else if within(1) {
        world.restart(rng.below(replicas));
    } else if within(1) {
        world.jump_clock(rng.below(last), rng.below(41) as i64 - 20);
    } else if within(if scenario.purges { 2 } else { 0 }) {
        if rng.chance(50) {
            world.pass_time(TIMES.grace + TIMES.max_clock_skew);
        }
        world.purge(rng.below(replicas));
    } else if within(if scenario.repairs { 5 } else { 0 }) {
        let (from, to) = (rng.below(replicas), rng.below(replicas));
        if from != to {
            world.repair(from, to);
        }
    } else if !world.messages.is_empty() {
        let mut message = rng.below(world.messages.len());
        for _ in 0..3 {
            if world.messages[message].is_slow != Some(true) || rng.chance(8) {
                break;
            }
            message = rng.below(world.messages.len());
        }
        let reply_arrives = !rng.chance(weather.lost_replies);
        world.deliver(message, reply_arrives, rng.chance(weather.duplicates));
    } else if running > 0 {
        world.time_out(rng.below(last));
    }
    true
}

/// The last client reads twice, mostly undisturbed, often cut off from one replica.
fn read_at_last(world: &mut World<'_>, last: usize, rng: &mut Rng) {
    let cut_off = rng.chance(60).then(|| rng.below(world.replicas.len()));
    for _ in 0..400 {
        if world.is_idle(last) {
            if !world.can_start(last) {
                return;
            }
            world.start(last);
            continue;
        }
        if !world.messages.is_empty() && rng.chance(4) {
            world.deliver(rng.below(world.messages.len()), true, false);
            continue;
        }
        let phase = world.phase(last);
        let own: Vec<usize> = (0..world.messages.len())
            .filter(|i| {
                let m = &world.messages[*i];
                m.from == Some(last) && m.phase == phase && Some(m.to) != cut_off
            })
            .collect();
        if own.is_empty() {
            world.time_out(last);
        } else {
            world.deliver(rng.pick(&own), true, false);
        }
    }
}
