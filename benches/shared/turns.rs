//! Subjects that take turns, so that a disturbance of the machine affects all of them.

use crate::Random;
use crate::batch::Batch;
use crate::clock::{Taken, median, timed};
use crate::floor::Floor;
use crate::table::Goal;

/// A subject that takes turns with the floor.
pub struct Subject<'a> {
    pub name: String,
    pub goal: Option<Goal>,
    /// Makes a new batch for each round. Not timed.
    pub batch: Box<dyn FnMut(&mut Random) -> Batch + 'a>,
    pub run: Box<dyn Fn(&Batch) + 'a>,
}

/// Returns the time of one operation of each subject in nanoseconds, by rounds. The last list is the floor's,
/// measured on the first subject's batches.
pub fn take_turns(rounds: usize, subjects: &mut [Subject<'_>]) -> Vec<Vec<Taken>> {
    let floor = Floor::new();
    let mut random = Random(1);
    let mut taken = vec![Vec::new(); subjects.len() + 1];
    let one = |(taken, ()): (Taken, ()), of: usize| Taken {
        cpu: taken.cpu / of as f64,
        wall: taken.wall / of as f64,
    };
    // The first round warms caches and branch predictors.
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

/// Returns the median over all rounds of the ratio of two subjects.
pub fn ratio(own: &[Taken], other: &[Taken]) -> f64 {
    median(
        own.iter()
            .zip(other)
            .map(|(own, other)| own.cpu / other.cpu),
    )
}

/// Returns the median CPU time of the thread.
pub fn cpu(taken: &[Taken]) -> f64 {
    median(taken.iter().map(|taken| taken.cpu))
}

/// Returns the median wall time.
pub fn wall(taken: &[Taken]) -> f64 {
    median(taken.iter().map(|taken| taken.wall))
}
