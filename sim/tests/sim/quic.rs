//! Whole servers and whole clients over real QUIC: a seed passes, and always gives the same run.

use std::thread;

use dunlin_sim::simulate_over_quic;

#[test]
fn a_seed_over_quic_passes_and_always_gives_the_same_run() {
    // At the same time, on threads of their own: nothing that they share may have a say.
    let runs = [(); 2].map(|()| thread::spawn(|| simulate_over_quic(3, false)));
    let [first, second] = runs.map(|run| run.join().expect("a run does not panic"));
    assert!(first.passed(), "{:#?}", first.violations);
    assert_eq!(first.counts.undecided, 0);
    assert_eq!((first.trace_hash, first.events, first.counts), (second.trace_hash, second.events, second.counts));
}
