//! Runs measurements in alternating rounds, so that a disturbance of the machine affects all of them.

use crate::Random;
use crate::batch::Batch;
use crate::clock::{Elapsed, median, timed};
use crate::floor::HmacFloor;
use crate::table::Goal;

/// A measurement whose rounds alternate with rounds of the floor.
pub struct Subject<'a> {
    pub name: String,
    pub goal: Option<Goal>,
    /// Makes a new batch for each round, outside the measured time.
    pub batch: Box<dyn FnMut(&mut Random) -> Batch + 'a>,
    pub run: Box<dyn Fn(&Batch) + 'a>,
}

/// Returns the times of one operation in nanoseconds: one list for each subject, with one entry per round.
/// The last list has the times of the floor, which hashes the batches of the first subject.
pub fn take_turns(rounds: usize, subjects: &mut [Subject<'_>]) -> Vec<Vec<Elapsed>> {
    let floor = HmacFloor::new();
    let mut random = Random(1);
    let mut taken = vec![Vec::new(); subjects.len() + 1];
    let one = |(taken, ()): (Elapsed, ()), of: usize| Elapsed {
        cpu: taken.cpu / of as f64,
        wall: taken.wall / of as f64,
    };
    // The first round warms caches and branch predictors, and is not counted.
    for round in 0..=rounds {
        let mut first = None;
        for place in 0..subjects.len() {
            let place = (place + round) % subjects.len();
            let fresh = (subjects[place].batch)(&mut random);
            let own = timed(|| (subjects[place].run)(&fresh));
            if round > 0 {
                taken[place].push(one(own, fresh.len()));
            }
            if place == 0 {
                first = Some(fresh);
            }
        }
        let Some(batch) = first else {
            break;
        };
        let own = timed(|| floor.run(&batch));
        if round > 0 {
            taken[subjects.len()].push(one(own, batch.len()));
        }
    }
    taken
}

/// Divides the CPU time of `own` by that of `other` in each round, and returns the median of these ratios.
pub fn ratio(own: &[Elapsed], other: &[Elapsed]) -> f64 {
    median(
        own.iter()
            .zip(other)
            .map(|(own, other)| own.cpu / other.cpu),
    )
}

/// Returns the median CPU time of the thread.
pub fn cpu(taken: &[Elapsed]) -> f64 {
    median(taken.iter().map(|taken| taken.cpu))
}

/// Returns the median wall time.
pub fn wall(taken: &[Elapsed]) -> f64 {
    median(taken.iter().map(|taken| taken.wall))
}
