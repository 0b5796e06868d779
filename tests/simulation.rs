//! Propagation, simulated.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use keyward::conformance::simulate::{Defect, Options, Report, Simulation, Subject};

#[test]
fn try_it() {
    let from: u64 = std::env::var("FROM").map_or(0, |s| s.parse().unwrap());
    let n: u64 = std::env::var("SEEDS").map_or(200, |s| s.parse().unwrap());
    let subject = match std::env::var("SUBJECT").as_deref() {
        Ok("sketch") => Subject::Sketch,
        _ => Subject::Keyward,
    };
    let mut sum = Report::default();
    for seed in from..from + n {
        match Simulation::new(seed, Options::default().of(subject)).run() {
            Ok(report) => sum += report,
            Err(violation) => panic!("{violation}"),
        }
    }
    println!("{sum:#?}");
}

#[test]
fn defects() {
    let only = std::env::var("DEFECT").unwrap_or_default();
    for defect in Defect::ALL {
        if !format!("{defect:?}").contains(&only) {
            continue;
        }
        let found = (0..3000).find_map(|seed| {
            let options = Options::default().of(Subject::Broken(defect));
            Simulation::new(seed, options).run().err()
        });
        match found {
            Some(v) => println!("{defect:?}: {:?} seed {} {}", v.invariant, v.seed, v.what),
            None => println!("{defect:?}: NOT FOUND"),
        }
    }
}
