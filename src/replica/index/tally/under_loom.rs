//! Loom test of a tally, under every interleaving of the counting threads.

use std::sync::Arc;

use loom::thread;

use super::super::under_loom::explore;
use super::*;

#[test]
fn uses_of_a_key_add_up() {
    explore(|| {
        let tally = Arc::new(Tally::default());
        let count = |uses, tick| {
            let tally = tally.clone();
            thread::spawn(move || tally.count(uses, Tick(tick)))
        };
        let (one, other) = (count(1, 2), count(2, 1));
        tally.count(4, Tick(1));
        one.join().unwrap();
        other.join().unwrap();
        assert_eq!(tally.uses(), Some((7, FIRST_TICK + 2 * TICK)));
    });
}

/// Counts uses of two hours, while another thread takes the count.
#[test]
fn each_use_is_taken_once_with_its_hour() {
    explore(|| {
        let tally = Arc::new(Tally::default());
        let count = |uses, tick| {
            let tally = tally.clone();
            thread::spawn(move || {
                tally.count_hour(uses, Tick(tick), |last, tick| last.hour() == tick.hour())
            })
        };
        let threads = [count(1, HOUR), count(2, 2 * HOUR)];
        let taken = tally.take();
        let others = threads.map(|thread| thread.join().unwrap());
        let mut by_hour = [0; 3];
        let counted = others.into_iter().flatten().chain([taken, tally.take()]);
        counted.for_each(|(uses, tick)| by_hour[tick.hour() as usize] += uses);
        assert_eq!(by_hour, [0, 1, 2]);
    });
}
