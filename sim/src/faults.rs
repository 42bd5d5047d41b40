//! `Fault`: what goes wrong, when, as a seed says.

use std::fmt;
use std::time::Duration;

use dunlin_protocol::Tick;

use crate::random::Random;

/// What goes wrong. Nodes and clients are sites: the nodes first.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Kind {
    /// Two halves cannot reach each other.
    Partition { one: Vec<usize> },
    /// What one side sends does not reach the other.
    OneWay { one: Vec<usize> },
    /// Packets are lost everywhere.
    Loss { probability: f64 },
    /// Packets of one site are slow, or of all.
    Slow { site: Option<usize>, by: Duration },
    /// One site's connections break.
    Cut { site: usize },
    /// Nodes lose power, one after another (with no time between them: at once), and with it what they had not synced.
    Crash { nodes: Vec<usize>, apart: Duration, down: Duration },
    /// A node's clock is set to another time, and back at the end.
    ClockStep { node: usize, millis: i64 },
    /// A node's disk takes long.
    SlowDisk { node: usize, by: Duration },
    /// A node's next sync fails.
    FailingDisk { node: usize },
    /// A node's disk is full.
    FullDisk { node: usize },
    /// A bit of what lies at rest on a node's disk flips.
    Rot { node: usize },
}

impl Kind {
    /// The node whose disk it may keep from working.
    pub(crate) fn failing_disk_of(&self) -> Option<usize> {
        match self {
            Self::FailingDisk { node } | Self::FullDisk { node } => Some(*node),
            _ => None,
        }
    }
}

/// A fault, from when to when.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Fault {
    pub(crate) begins: Tick,
    pub(crate) ends: Tick,
    pub(crate) kind: Kind,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |tick: Tick| tick.0 as f64 / 1e9;
        write!(f, "{:.3} to {:.3} s: {:?}", seconds(self.begins), seconds(self.ends), self.kind)
    }
}

/// Faults begin after this, when the cluster has found together.
pub(crate) const FIRST: Tick = Tick(3_000_000_000);
/// All is healed then.
pub(crate) const HEALED: Tick = Tick(46_000_000_000);
/// The clients make their last writes, all of which must succeed.
pub(crate) const FINAL: Tick = Tick(53_000_000_000);
/// The most faults of a seed, without the rot that some have besides.
const MOST_DRAWN: usize = 14;
/// The most faults of a seed.
pub(crate) const MOST: usize = MOST_DRAWN + 1;
/// The fewest faults that must have hit traffic.
pub(crate) const FEWEST_HITS: usize = 5;

/// The faults of a seed, in order of their beginning. They may overlap.
pub(crate) fn schedule(nodes: usize, clients: usize, random: &mut Random) -> Vec<Fault> {
    let count = random.between(9, MOST_DRAWN as u64);
    // Some seeds are about one thing, so that it happens often and in combination with itself.
    let favourite = random.chance(0.4).then(|| random.below(10));
    let slot = (HEALED.0 - FIRST.0) / count;
    let mut faults: Vec<Fault> = (0..count)
        .map(|i| {
            let begins = Tick(FIRST.0 + i * slot + random.below(slot / 2));
            let which = favourite.filter(|_| random.chance(0.6));
            let kind = draw(which, nodes, clients, random);
            let length = match &kind {
                // Short ones stall connections, long ones end them.
                Kind::Partition { .. } | Kind::OneWay { .. } => random.weighted(&[(3, 800), (3, 3_000), (2, 6_500)]),
                Kind::Crash { nodes, apart, down } => (*apart * nodes.len() as u32 + *down).as_millis() as u64 + 1,
                Kind::Cut { .. } | Kind::FailingDisk { .. } => 1,
                Kind::ClockStep { .. } => 5_000,
                _ => 2_500,
            };
            let length = match length {
                1 => Duration::from_millis(1),
                length => random.millis(length / 2, length * 3 / 2),
            };
            Fault { begins, ends: (begins + length).min(HEALED), kind }
        })
        .collect();
    // At most one: what is suspect stays so, and two of three replicas must be left.
    let mut rot = random.fork("rot", 0);
    if rot.chance(0.3) {
        let begins = Tick(FIRST.0 + rot.below(HEALED.0 - FIRST.0 - 1_000_000));
        let kind = Kind::Rot { node: rot.index(nodes) };
        faults.push(Fault { begins, ends: begins + Duration::from_millis(1), kind });
    }
    faults.sort_by_key(|fault| fault.begins);
    faults
}

fn draw(which: Option<u64>, nodes: usize, clients: usize, random: &mut Random) -> Kind {
    let which = which.unwrap_or_else(|| {
        random.weighted(&[(4, 0), (2, 1), (2, 2), (2, 3), (2, 4), (5, 5), (2, 6), (2, 7), (1, 8), (1, 9)])
    });
    let node = random.index(nodes);
    match which {
        0 => Kind::Partition { one: side(nodes, clients, random) },
        1 => Kind::OneWay { one: side(nodes, clients, random) },
        2 => Kind::Loss { probability: 0.02 + 0.25 * random.fraction() },
        3 => {
            let site = random.chance(0.6).then_some(node);
            Kind::Slow { site, by: random.millis(5, 250) }
        }
        4 => Kind::Cut { site: random.index(nodes + clients) },
        5 => {
            // One node; some, one after another; or the power of the whole house.
            let many = random.weighted(&[(5, 1), (3, 2), (2, 3), (3, nodes)]);
            let mut all: Vec<usize> = (0..nodes).collect();
            random.shuffle(&mut all);
            all.truncate(many);
            let apart = random.weighted(&[(2, 0), (1, 2), (1, 20), (1, 300)]);
            Kind::Crash { nodes: all, apart: Duration::from_millis(apart), down: random.millis(50, 2_500) }
        }
        6 => {
            // Within what the cluster tolerates, and beyond.
            let millis = random.weighted(&[(3, 400), (3, 3_000), (1, 8_000), (1, 20_000)]);
            let millis = random.between(millis / 2, millis) as i64;
            Kind::ClockStep { node, millis: if random.chance(0.5) { millis } else { -millis } }
        }
        7 => Kind::SlowDisk { node, by: random.millis(20, 600) },
        8 => Kind::FailingDisk { node },
        _ => Kind::FullDisk { node },
    }
}

/// One side of a partition: a node or two, never a majority, and some of the clients.
fn side(nodes: usize, clients: usize, random: &mut Random) -> Vec<usize> {
    let mut all: Vec<usize> = (0..nodes).collect();
    random.shuffle(&mut all);
    all.truncate(random.between(1, (nodes as u64 - 1) / 2) as usize);
    let share = random.weighted(&[(2, 0.0), (3, 0.4)]);
    all.extend((nodes..nodes + clients).filter(|_| random.chance(share)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_fit_their_time() {
        for seed in 0..200 {
            let faults = schedule(5, 6, &mut Random::new(seed));
            assert!((9..=MOST).contains(&faults.len()));
            assert!(faults.iter().all(|f| f.begins >= FIRST && f.begins < f.ends && f.ends <= HEALED), "{faults:?}");
            assert!(faults.is_sorted_by_key(|f| f.begins));
        }
    }
}
