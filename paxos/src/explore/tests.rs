//! Many seeds.

use super::Rule;
use super::counts::Counts;
use super::schedule::run;

fn seeds(default: u64) -> u64 {
    std::env::var("DUNLIN_PAXOS_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(default)
}

#[test]
fn every_schedule_is_linearizable() {
    let mut counts = Counts::default();
    for seed in 0..seeds(3000) {
        match run(seed, None) {
            Some(of_seed) => counts.add(of_seed),
            None => panic!("seed {seed}: no legal order"),
        }
    }
    println!("{counts:?}");
    let Counts { answered, conditions_failed, unknown, void, retried, .. } = counts;
    let Counts { not_applied, queried_applied, lineage_forgot, plain, fell_back, fell_back_untried, expired, .. } =
        counts;
    let rare = [void, not_applied, queried_applied, lineage_forgot, expired, fell_back_untried];
    let common = [answered, conditions_failed, unknown, retried, plain, fell_back];
    assert!(rare.iter().all(|&count| count > 10) && common.iter().all(|&count| count > 200), "{counts:?}");
}

#[test]
fn the_same_seed_gives_the_same_schedule() {
    let of = |seed| format!("{:?}", run(seed, None));
    for seed in 0..20 {
        assert_eq!(of(seed), of(seed));
    }
}

/// Without the rule some seed's history has no legal order, or two records of one stamp or one lineage contradict each other. The first such seed is
/// not far behind `from`, which only saves time: it is searched for from 0 on when `DUNLIN_PAXOS_SEEDS` says how many to try.
fn check_needed(rule: Rule, from: u64) {
    let from = if std::env::var_os("DUNLIN_PAXOS_SEEDS").is_some() { 0 } else { from };
    let until = from + seeds(1000);
    let first = (from..until).find(|seed| run(*seed, Some(rule)).is_none());
    println!("{rule:?}: {first:?}");
    assert!(first.is_some(), "without {rule:?} nothing was caught by seeds {from} to {until}");
}

#[test]
fn each_rule_is_needed() {
    for rule in [Rule::Pendings, Rule::Stable, Rule::Applied, Rule::Never, Rule::Reach] {
        check_needed(rule, 0);
    }
    for rule in [Rule::Lineage, Rule::Dropped, Rule::Mark, Rule::Window] {
        check_needed(rule, 0);
    }
    check_needed(Rule::Expiry, 14_000);
    check_needed(Rule::Fence, 34_000);
}
