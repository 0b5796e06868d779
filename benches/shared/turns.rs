//! Subjects that take turns, so that what the machine does in a moment meets all of them.

use crate::Random;
use crate::batch::Batch;
use crate::clock::{Taken, median, timed};
use crate::floor::Floor;
use crate::table::Goal;

/// What takes turns with the floor.
pub struct Subject<'a> {
    pub name: String,
    pub goal: Option<Goal>,
    /// Made anew for each round, outside of what is timed.
    pub batch: Box<dyn FnMut(&mut Random) -> Batch + 'a>,
    pub run: Box<dyn Fn(&Batch) + 'a>,
}

/// Nanoseconds of one operation of each subject, by rounds; last the floor's, over what the first
/// subject was given.
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

/// The median over all rounds of the ratio of two subjects.
pub fn ratio(own: &[Taken], other: &[Taken]) -> f64 {
    median(
        own.iter()
            .zip(other)
            .map(|(own, other)| own.cpu / other.cpu),
    )
}

/// The median of a thread's own time.
pub fn cpu(taken: &[Taken]) -> f64 {
    median(taken.iter().map(|taken| taken.cpu))
}

/// The median of time by the wall.
pub fn wall(taken: &[Taken]) -> f64 {
    median(taken.iter().map(|taken| taken.wall))
}
