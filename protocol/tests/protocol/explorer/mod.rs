//! An explorer of the per-key rules: replicas run the real [`Register`](dunlin_protocol::register::Register), views are judged by the real
//! [`combine`](dunlin_protocol::register::combine), and a compact coordinator drives them through random schedules with lost, duplicated,
//! delayed and reordered messages, crashed coordinators, retries, repairs, collections and clocks that jump. Every history must have a legal
//! order (PROTOCOL.md 1.11). Rules broken on purpose must be caught, or the explorer would prove nothing.
//!
//! A failure prints its trace and the variables that repeat it:
//! `DUNLIN_EXPLORE_SEED=n DUNLIN_EXPLORE_SEEDS=1 cargo test -p dunlin-protocol --test protocol explorer`. More seeds explore further.

mod clock;
mod coordinator;
mod linearizability;
mod replica;
mod rng;
mod scenario;
mod schedule;
mod world;

use linearizability::Status;
use scenario::Mode;
use schedule::run;

/// A rule that is broken on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Break {
    /// None is.
    Nothing,
    /// A replica comes back without its promise.
    ForgetPromise,
    /// 1.3: Accept does not look at the promise.
    AcceptBelowPromise,
    /// 1.3: Write does not look whether the key is serial.
    WriteOnSerialKey,
    /// 1.3: Commit replaces a newer record.
    CommitBackwards,
    /// 1.5 P2 and 1.6: pendings are overlooked.
    IgnorePendings,
    /// 1.5 P2: every record passes for stable.
    CallAllStable,
    /// 1.5 P3: no look into the lineage.
    SkipLineage,
    /// 1.5 P4: no look at reach.
    SkipReach,
    /// 1.6: no write-back.
    NoWriteBack,
    /// 1.6: a write-back counts higher stamps.
    CountHigherStamps,
    /// 1.2: ballots above D.
    DrawBeyondLimit,
    /// 1.2: a retry or a query draws ballots from anywhere.
    IgnoreFloor,
    /// 1.3: Install takes a tombstone where something later is.
    InstallTombstone,
    /// 1.10: a quorum's word is enough to begin a drop.
    SurveyQuorum,
    /// 1.10: Drop does not look at the age.
    DropYoung,
}

const MODES: [Mode; 7] =
    [Mode::Serial, Mode::OneWriter, Mode::TwoWriters, Mode::Plain, Mode::Retry, Mode::Collect, Mode::Mix];

/// How many seeds of each mode a plain `cargo test` runs: a few seconds.
const SEEDS: u64 = 1500;

/// Within so many seeds each broken rule must be caught; the rarest needs about 4,000.
const SEEDS_UNTIL_CAUGHT: u64 = 20_000;

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

#[test]
fn every_history_has_a_legal_order() {
    let first = variable("DUNLIN_EXPLORE_SEED").unwrap_or(1);
    let count = variable("DUNLIN_EXPLORE_SEEDS").unwrap_or(SEEDS);
    for mode in MODES {
        let (mut answered, mut asked, mut collected) = (0usize, 0usize, 0u64);
        for seed in first..first + count {
            let outcome = run(seed, mode, Break::Nothing, false);
            if !outcome.is_legal {
                report(seed, mode);
            }
            answered += outcome.history.iter().filter(|e| matches!(e.status, Status::Done(_))).count();
            asked += outcome.history.len();
            collected += u64::from(outcome.collected);
        }
        // Schedules in which hardly anything succeeds would prove nothing. Most collections are refused: the key is too young, or no tombstone.
        if count >= 100 {
            assert!(answered * 5 > asked * 2, "{mode:?}: {answered} of {asked} operations were answered");
            assert!(mode != Mode::Collect || collected * 50 > count, "{collected} collections");
        }
    }
}

fn report(seed: u64, mode: Mode) -> ! {
    let outcome = run(seed, mode, Break::Nothing, true);
    for line in &outcome.trace {
        println!("{line}");
    }
    for (i, entry) in outcome.history.iter().enumerate() {
        println!("op{i} {entry:?}");
    }
    panic!(
        "{mode:?}, seed {seed}: the history has no legal order. Repeat it with\n    \
         DUNLIN_EXPLORE_SEED={seed} DUNLIN_EXPLORE_SEEDS=1 cargo test -p dunlin-protocol --test protocol explorer"
    );
}

#[test]
fn the_same_seed_gives_the_same_schedule() {
    for mode in MODES {
        assert_eq!(run(7, mode, Break::Nothing, true).trace, run(7, mode, Break::Nothing, true).trace);
    }
}

/// Without this the test above could pass because it looks at nothing.
#[test]
fn broken_rules_are_caught() {
    for (broken, mode) in [
        (Break::ForgetPromise, Mode::Serial),
        (Break::AcceptBelowPromise, Mode::Serial),
        (Break::WriteOnSerialKey, Mode::OneWriter),
        (Break::CommitBackwards, Mode::Serial),
        (Break::IgnorePendings, Mode::Serial),
        (Break::CallAllStable, Mode::Serial),
        (Break::SkipLineage, Mode::Retry),
        (Break::SkipReach, Mode::Retry),
        (Break::NoWriteBack, Mode::Plain),
        (Break::CountHigherStamps, Mode::Plain),
        (Break::DrawBeyondLimit, Mode::Retry),
        (Break::IgnoreFloor, Mode::Retry),
        (Break::SurveyQuorum, Mode::Collect),
        (Break::DropYoung, Mode::Collect),
        (Break::InstallTombstone, Mode::Collect),
    ] {
        let caught = (1..=SEEDS_UNTIL_CAUGHT).find(|seed| !run(*seed, mode, broken, false).is_legal);
        println!("{broken:?}: caught by seed {caught:?} of {mode:?}");
        assert!(caught.is_some(), "{broken:?} was not caught by {SEEDS_UNTIL_CAUGHT} seeds of {mode:?}");
    }
}
