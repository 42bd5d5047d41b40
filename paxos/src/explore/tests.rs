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
    let Counts { not_applied, queried_applied, lineage_forgot, plain, fell_back, expired, .. } = counts;
    let rare = [void, not_applied, queried_applied, lineage_forgot, expired];
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
    let caught = |seed: &u64| !matches!(std::panic::catch_unwind(|| run(*seed, Some(rule))), Ok(Some(_)));
    let first = (from..until).find(caught);
    println!("{rule:?}: {first:?}");
    assert!(first.is_some(), "without {rule:?} nothing was caught by seeds {from} to {until}");
}

#[test]
fn each_rule_is_needed() {
    check_needed(Rule::Round, 8000);
    check_needed(Rule::Pendings, 0);
    check_needed(Rule::Stable, 0);
    check_needed(Rule::Applied, 0);
    check_needed(Rule::Never, 0);
    check_needed(Rule::Reach, 1000);
    check_needed(Rule::Lineage, 500);
    check_needed(Rule::Dropped, 0);
    check_needed(Rule::Mark, 0);
    check_needed(Rule::Window, 1000);
    check_needed(Rule::Expiry, 59_500);
    check_needed(Rule::Fence, 57_500);
}
