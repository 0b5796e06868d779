//! Simulated propagation: a sound node keeps its guarantee under every seed, and every broken node is found.
//!
//! `KEYWARD_SIMULATE=<seeds>` runs that many seeds and prints the progress. `KEYWARD_SIMULATE_SEED=<seed>`
//! runs a single seed.

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use keyward::store::MemoryStore;
use keyward_conformance::broken::{BrokenStore, StoreDefect};
use keyward_conformance::simulate::{
    Invariant, InvariantViolation, NodeDefect, NodeUnderTest, Options, Simulation,
    SimulationBackend, SimulationReport,
};

/// The number of seeds in a normal run: 10,000, over three times as many as needed to find every broken node.
const SEEDS: u64 = 10_000;

/// The number of seeds within which every broken node must be found: 3,000. Most are found within fifty.
const WITHIN: u64 = 3_000;

/// The number of seeds between two lines of progress: 10,000.
const EVERY: u64 = 10_000;

/// Runs seeds from zero on all processors. Returns the violation with the lowest seed, if any.
fn run(seeds: u64, options: &Options) -> Result<SimulationReport, InvariantViolation> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let next = AtomicU64::new(0);
    let (sum, found) = (
        Mutex::new(SimulationReport::default()),
        Mutex::new(None::<InvariantViolation>),
    );
    let work = || {
        let mut own = SimulationReport::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                break;
            }
            match Simulation::new(seed, options.clone()).run() {
                Ok(report) => own += report,
                Err(violation) => {
                    next.store(seeds, Ordering::Relaxed);
                    let mut found = found.lock().unwrap();
                    if found
                        .as_ref()
                        .is_none_or(|other| violation.seed < other.seed)
                    {
                        *found = Some(violation);
                    }
                    break;
                }
            }
            if seed > 0 && seed.is_multiple_of(EVERY) {
                eprintln!("{seed} of {seeds} seeds");
            }
        }
        *sum.lock().unwrap() += own;
    };
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    found
        .into_inner()
        .unwrap()
        .map_or(Ok(sum.into_inner().unwrap()), Err)
}

fn seeds() -> u64 {
    let asked = std::env::var("KEYWARD_SIMULATE").ok();
    asked.map_or(SEEDS, |seeds| seeds.parse().unwrap())
}

/// Returns the violation from the lowest seed under which a broken node violates an invariant.
#[track_caller]
fn find(subject: NodeUnderTest, within: u64) -> InvariantViolation {
    match run(within, &Options::default().of(subject)) {
        Err(violation) => {
            let InvariantViolation {
                invariant,
                seed,
                what,
                trace,
                ..
            } = &violation;
            println!("{subject:?}: {invariant:?} at seed {seed}: {what}");
            assert!(trace.iter().any(|line| line.contains(what.as_str())));
            violation
        }
        Ok(_) => panic!("{subject:?} passes {within} seeds"),
    }
}

#[test]
fn the_promise_holds_under_every_seed() {
    let options = Options::default().reads_within_bound();
    if let Ok(seed) = std::env::var("KEYWARD_SIMULATE_SEED") {
        let run = Simulation::new(seed.parse().unwrap(), options);
        run.run().unwrap_or_else(|violation| panic!("{violation}"));
        return;
    }
    let report = run(seeds(), &options).unwrap_or_else(|violation| panic!("{violation}"));
    println!("{report:#?}");
    assert!(
        report.acceptances * 10 > report.verifications,
        "at least a tenth of the verifications succeed"
    );
    let happened = [
        report.stale,
        report.unavailable,
        report.partitions,
        report.pauses,
        report.restarts,
        report.jumps,
        report.compactions,
    ];
    assert!(
        happened.iter().all(|count| *count > report.runs / 10),
        "every kind of fault happens"
    );
}

/// The store of this test never drops tombstones, and its feed is never split into pages. So other orders of
/// events occur than with a store that compacts.
#[test]
fn the_promise_holds_over_a_store_that_forgets_nothing() {
    let never_forgets = || SimulationBackend::new(Arc::new(MemoryStore::new()));
    let options = Options::default().whole_pages().over(never_forgets);
    let report = run(seeds() / 4, &options.reads_within_bound());
    report.unwrap_or_else(|violation| panic!("{violation}"));
}

#[test]
fn a_sound_node_passes() {
    let report = run(2_000, &Options::default().of(NodeUnderTest::Naive));
    report.unwrap_or_else(|violation| panic!("{violation}"));
}

#[test]
fn every_broken_node_is_found() {
    for defect in NodeDefect::ALL {
        find(NodeUnderTest::Broken(defect), WITHIN);
    }
}

#[test]
fn a_broken_clock_is_found() {
    for subject in [
        NodeUnderTest::KeywardWithWallClock,
        NodeUnderTest::KeywardWithSleepyClock,
    ] {
        let found = find(subject, 500);
        assert_eq!(found.invariant, Invariant::NeverPastBound);
    }
}

/// Only a broken store can violate some invariants: the cap, the audit trail, and the end of a key.
#[test]
fn every_violation_of_a_broken_store_is_found() {
    for (defect, expected) in [
        (StoreDefect::LoadsNoDisabledKeys, Invariant::CapKept),
        (StoreDefect::ConflictLeavesAudit, Invariant::TrailIntact),
        (StoreDefect::IgnoresExpected, Invariant::TombstonesStick),
        (StoreDefect::FindsFromCache, Invariant::FreshWhenAsked),
        (StoreDefect::RevisionsPerTenant, Invariant::Progress),
    ] {
        let broken =
            move || SimulationBackend::new(Arc::new(BrokenStore::new(MemoryStore::new(), defect)));
        let options = Options::default().whole_pages().over(broken);
        let violated = |seed| {
            let run = Simulation::new(seed, options.clone()).run();
            run.err().map(|violation| violation.invariant)
        };
        assert!(
            (0..WITHIN)
                .filter_map(violated)
                .any(|invariant| invariant == expected),
            "{defect:?} breaks no {expected:?}"
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for subject in [NodeUnderTest::Keyward, NodeUnderTest::Naive] {
        let options = Options::default().whole_pages().of(subject);
        let mut marks = Vec::new();
        for seed in 0..50 {
            let once = Simulation::new(seed, options.clone()).run().unwrap();
            assert_eq!(once, Simulation::new(seed, options.clone()).run().unwrap());
            marks.push(once.mark);
        }
        marks.sort_unstable();
        marks.dedup();
        assert_eq!(marks.len(), 50, "each seed gives a different run");
    }
    let broken = Options::default().of(NodeUnderTest::Broken(NodeDefect::ConnectedIsFresh));
    let once = run(100, &broken).unwrap_err();
    let again = Simulation::new(once.seed, broken).run().unwrap_err();
    assert_eq!((once.step, once.trace), (again.step, again.trace));
}
