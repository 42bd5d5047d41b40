use proptest::prelude::*;

use super::*;

const MILLISECOND: Duration = Duration::from_millis(1);

fn node(id: u64) -> NodeId {
    NodeId(id)
}

/// Nodes 1 to n on virtual time; datagrams take a millisecond.
struct Net {
    now: Tick,
    nodes: BTreeMap<NodeId, Swim>,
    boots: BTreeMap<NodeId, u64>,
    members: Vec<NodeId>,
    /// Datagrams under way, by arrival and order of sending.
    flying: BTreeMap<(Tick, u64), (NodeId, NodeId, Bytes)>,
    sent: u64,
    /// Nodes on different sides hear nothing of each other.
    sides: BTreeMap<NodeId, u8>,
    /// Of every so many datagrams one is lost.
    loses_every: Option<u64>,
    seed: u64,
    log: Vec<String>,
}

impl Net {
    fn new(count: u64, seed: u64) -> Self {
        let mut net = Self {
            now: Tick(1_000),
            nodes: BTreeMap::new(),
            boots: BTreeMap::new(),
            members: (1..=count).map(node).collect(),
            flying: BTreeMap::new(),
            sent: 0,
            sides: BTreeMap::new(),
            loses_every: None,
            seed,
            log: Vec::new(),
        };
        (1..=count).for_each(|id| net.start(node(id)));
        net
    }

    fn start(&mut self, id: NodeId) {
        let boot = self.boots.entry(id).or_insert(0);
        *boot += 1;
        let mut swim = Swim::new(id, BootNumber(*boot), self.seed ^ id.0 << 32 ^ *boot, SwimConfig::default());
        swim.set_members(&self.members);
        self.nodes.insert(id, swim);
    }

    fn crash(&mut self, id: NodeId) {
        self.nodes.remove(&id);
    }

    /// Runs what falls into the next `time`.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let arrival = self.flying.first_key_value().map(|((at, _), _)| *at);
            let timeout = self.nodes.values().filter_map(Swim::next_timeout).min();
            let next = arrival.unwrap_or(Tick::NEVER).min(timeout.unwrap_or(Tick::NEVER));
            if next > end {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            if arrival == Some(next) {
                let (_, (from, to, bytes)) = self.flying.pop_first().expect("just seen");
                if let Some(swim) = self.nodes.get_mut(&to) {
                    swim.handle_datagram(self.now, from, &bytes).expect("members send what members take");
                    self.drain(to);
                }
            } else {
                let due = self.nodes.iter().find(|(_, s)| s.next_timeout() == timeout).map(|(id, _)| *id);
                let id = due.expect("just seen");
                self.nodes.get_mut(&id).expect("just seen").handle_timeout(self.now);
                self.drain(id);
            }
        }
    }

    fn drain(&mut self, from: NodeId) {
        let swim = self.nodes.get_mut(&from).expect("it just did something");
        while let Some(effect) = swim.poll_effect() {
            self.log.push(format!("{} {from} {effect:?}", self.now.0));
            match effect {
                SwimEffect::Send { to, bytes } => {
                    assert!(bytes.len() <= SwimConfig::default().max_datagram_bytes);
                    self.sent += 1;
                    let is_lost = self.loses_every.is_some_and(|n| self.sent.is_multiple_of(n));
                    if !is_lost && self.sides.get(&from) == self.sides.get(&to) {
                        self.flying.insert((self.now + MILLISECOND, self.sent), (from, to, bytes));
                    }
                }
                SwimEffect::Fault(fault) => panic!("node {from}: {fault}"),
                SwimEffect::Up(_) | SwimEffect::Down(_) | SwimEffect::Epoch(_) => (),
            }
        }
    }

    /// Whom a node takes to be alive.
    fn view(&self, id: u64) -> Vec<u64> {
        self.nodes[&node(id)].alive().map(|n| n.0).collect()
    }

    fn all_see(&self, expected: &[u64]) -> bool {
        expected.iter().all(|id| self.view(*id) == expected)
    }

    /// Runs until all of these see exactly each other; how long it took.
    fn run_until_all_see(&mut self, expected: &[u64], limit: Duration) -> Duration {
        let start = self.now;
        while !self.all_see(expected) {
            let views: Vec<_> = expected.iter().map(|id| self.view(*id)).collect();
            assert!(self.now.since(start) <= limit, "after {limit:?} they see {views:?}");
            self.run(10 * MILLISECOND);
        }
        self.now.since(start)
    }
}

const ALL: [u64; 5] = [1, 2, 3, 4, 5];

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Five nodes that see each other.
fn settled(seed: u64) -> Net {
    let mut net = Net::new(5, seed);
    net.run_until_all_see(&ALL, seconds(1));
    net
}

#[test]
fn nodes_find_each_other_and_stay() {
    for seed in 0..20 {
        let mut net = settled(seed);
        net.run(seconds(30));
        assert!(net.all_see(&ALL));
        assert!(!net.log.iter().any(|line| line.contains("Down(")), "nobody was ever down");
    }
}

#[test]
fn crash_is_known_everywhere_and_so_is_the_return() {
    let mut times = Vec::new();
    for seed in 0..30 {
        let mut net = settled(seed);
        net.run(seconds(3));
        net.crash(node(3));
        times.push(net.run_until_all_see(&[1, 2, 4, 5], seconds(8)));
        net.run(seconds(20));
        net.start(node(3));
        net.run_until_all_see(&ALL, seconds(1));
    }
    times.sort_unstable();
    assert!(times[times.len() / 2] <= seconds(6), "{times:?}");
}

#[test]
fn quick_restart_is_no_absence() {
    let mut net = settled(7);
    net.run(seconds(3));
    let before = net.log.len();
    net.crash(node(2));
    net.start(node(2));
    net.run_until_all_see(&ALL, seconds(1));
    net.run(seconds(10));
    assert!(net.all_see(&ALL));
    assert!(!net.log[before..].iter().any(|line| line.contains("Down(")));
}

#[test]
fn partition_heals() {
    for seed in 0..20 {
        let mut net = settled(seed);
        net.sides = [(node(1), 1), (node(2), 1)].into();
        net.run(seconds(15));
        assert_eq!((net.view(1), net.view(4)), (vec![1, 2], vec![3, 4, 5]));
        net.sides.clear();
        net.run_until_all_see(&ALL, seconds(7));
        net.run(seconds(10));
        assert!(net.all_see(&ALL));
    }
}

#[test]
fn cut_off_node_comes_back() {
    for seed in 0..20 {
        let mut net = settled(seed);
        net.sides = [(node(5), 1)].into();
        net.run(seconds(30));
        assert_eq!((net.view(5), net.view(1)), (vec![5], vec![1, 2, 3, 4]));
        net.sides.clear();
        net.run_until_all_see(&ALL, seconds(7));
    }
}

#[test]
fn loss_of_a_tenth_kills_nobody_for_long() {
    for seed in 0..10 {
        let mut net = settled(seed);
        net.loses_every = Some(10);
        net.run(seconds(60));
        net.loses_every = None;
        net.run_until_all_see(&ALL, seconds(6));
    }
}

#[test]
fn nodes_that_start_apart_in_time_find_each_other() {
    let mut net = Net::new(5, 1);
    let late: Vec<_> = ALL[1..].iter().map(|id| node(*id)).collect();
    late.iter().for_each(|id| net.crash(*id));
    net.run(seconds(8));
    assert_eq!(net.view(1), [1]);
    late.iter().for_each(|id| net.start(*id));
    net.run_until_all_see(&ALL, seconds(1));
}

#[test]
fn node_without_a_higher_boot_number_comes_back_too() {
    let mut net = settled(3);
    net.crash(node(4));
    net.run(seconds(10));
    *net.boots.get_mut(&node(4)).expect("started once") -= 1;
    net.start(node(4));
    net.run_until_all_see(&ALL, seconds(7));
}

#[test]
fn leaving_is_known_at_once_and_final() {
    let mut net = settled(5);
    net.run(seconds(2));
    let now = net.now;
    let leaver = net.nodes.get_mut(&node(1)).expect("runs");
    leaver.leave(now);
    assert!(!leaver.is_alive(node(1)) && leaver.alive().next().is_none() && leaver.next_timeout().is_none());
    net.drain(node(1));
    net.run_until_all_see(&[2, 3, 4, 5], seconds(2));
    net.run(seconds(20));
    assert!(net.all_see(&[2, 3, 4, 5]));
}

#[test]
fn epochs_spread() {
    let mut net = settled(2);
    net.run(seconds(2));
    net.nodes.get_mut(&node(4)).expect("runs").announce_epoch(Epoch(2));
    net.drain(node(4));
    net.run(seconds(2));
    for id in [1, 2, 3, 5] {
        let lines = net.log.iter().filter(|l| l.ends_with(&format!(" {id} Epoch(Epoch(2))"))).count();
        assert_eq!(lines, 1, "node {id} is told once");
    }
    net.nodes.get_mut(&node(1)).expect("runs").announce_epoch(Epoch(1));
    net.drain(node(1));
    net.run(seconds(2));
    assert!(!net.log.iter().any(|l| l.ends_with("Epoch(Epoch(1))")), "an old epoch is no news");
}

#[test]
fn strangers_do_not_exist() {
    let mut net = settled(1);
    // Node 9 is a member for nodes 1 and 9 only, and node 1 tells the others of it.
    let with_stranger: Vec<_> = [1, 2, 3, 4, 5, 9].map(node).into();
    net.nodes.get_mut(&node(1)).expect("runs").set_members(&with_stranger);
    let mut stranger = Swim::new(node(9), BootNumber(1), 9, SwimConfig::default());
    stranger.set_members(&[node(1)]);
    net.nodes.insert(node(9), stranger);
    net.run(seconds(10));
    assert_eq!(net.view(1), [1, 2, 3, 4, 5, 9]);
    for id in [2, 3, 4, 5] {
        assert_eq!(net.view(id), ALL);
    }
    let now = net.now;
    let refused = net.nodes.get_mut(&node(2)).expect("runs").handle_datagram(now, node(9), &[1]);
    assert_eq!(refused, Err(SwimError::Stranger(node(9))));

    // Who is removed from the topology is down at once, and up again when the topology has it again.
    let shrunk = net.nodes.get_mut(&node(1)).expect("runs");
    shrunk.set_members(&net.members);
    assert_eq!(shrunk.poll_effect(), Some(SwimEffect::Down(node(9))));
    assert!(!shrunk.is_alive(node(9)));
    shrunk.set_members(&with_stranger);
    assert_eq!(shrunk.poll_effect(), Some(SwimEffect::Up(node(9))));
}

#[test]
fn same_seed_same_effects() {
    let run = |seed| {
        let mut net = settled(seed);
        net.crash(node(2));
        net.run(seconds(8));
        net.start(node(2));
        net.sides = [(node(3), 1)].into();
        net.run(seconds(12));
        net.sides.clear();
        net.run(seconds(12));
        net.log
    };
    assert_eq!(run(42), run(42));
    assert_ne!(run(42), run(43));
}

/// A machine that knows node 2, and a datagram of node 2 for it.
fn pair() -> (Swim, Bytes) {
    let mut swim = Swim::new(node(1), BootNumber(1), 1, SwimConfig::default());
    swim.set_members(&[node(1), node(2)]);
    let mut peer = Swim::new(node(2), BootNumber(1), 2, SwimConfig::default());
    peer.set_members(&[node(1), node(2)]);
    peer.join(&[node(1)]);
    let Some(SwimEffect::Send { bytes, .. }) = peer.poll_effect() else { panic!("a call goes out at once") };
    (swim, bytes)
}

#[test]
fn lies_and_garbage_are_refused() {
    let (mut swim, call) = pair();
    swim.set_members(&[node(1), node(2), node(3)]);
    let mut check = |from, bytes: &[u8], expected: fn(&SwimError) -> bool| {
        let error = swim.handle_datagram(Tick(1), node(from), bytes).expect_err("refused");
        assert!(expected(&error), "{error}");
    };
    check(3, &call, |e| *e == SwimError::Forged { from: node(3), claimed: node(2) });
    check(4, &call, |e| *e == SwimError::Stranger(node(4)));
    check(1, &call, |e| *e == SwimError::Stranger(node(1)));
    check(2, &[], |e| matches!(e, SwimError::Malformed { .. }));
    check(2, &call[..call.len() - 1], |e| matches!(e, SwimError::Malformed { .. }));
    check(2, &[&call[..], &[0]].concat(), |e| matches!(e, SwimError::Malformed { .. }));
    check(2, &vec![1; 1101], |e| matches!(e, SwimError::TooLarge { len: 1101, .. }));
    let mut misdirected = call.to_vec();
    // The lowest byte of the receiver's id.
    misdirected[27] = 3;
    check(2, &misdirected, |e| *e == SwimError::Misdirected { from: node(2), meant: node(3) });
    let mut newer = call.to_vec();
    newer[0] = 2;
    check(2, &newer, |e| matches!(e, SwimError::Malformed { .. }));
    assert!(!swim.is_alive(node(2)) && swim.poll_effect().is_none(), "nothing of it was believed");
    swim.handle_datagram(Tick(1), node(2), &call).expect("taken");
    assert!(swim.is_alive(node(2)));
}

proptest! {
    #[test]
    fn bytes_never_panic(
        tail in prop::collection::vec(any::<u8>(), 0..120),
        kind in 0u8..13,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let (mut swim, call) = pair();
        let mut bytes = [&call[..], &tail].concat();
        bytes[1] = kind;
        for (at, with) in damage {
            let at = at.index(bytes.len());
            bytes[at] = with;
        }
        let _refused_or_not = swim.handle_datagram(Tick(1), node(2), &bytes);
        let _refused_or_not = swim.handle_datagram(Tick(1), node(2), &tail);
        let _refused_or_not = swim.handle_datagram(Tick(2), node(2), &call);
        for second in 0..10 {
            swim.handle_timeout(Tick(second * 1_000_000_000));
            while let Some(effect) = swim.poll_effect() {
                let is_for_a_member = match &effect {
                    SwimEffect::Send { to, .. } | SwimEffect::Up(to) | SwimEffect::Down(to) => *to == node(2),
                    SwimEffect::Epoch(_) => true,
                    SwimEffect::Fault(_) => false,
                };
                prop_assert!(is_for_a_member, "{:?}", effect);
            }
        }
    }
}
