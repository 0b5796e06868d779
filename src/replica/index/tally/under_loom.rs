//! Loom test of a tally, under every interleaving of the counting threads.

use std::sync::Arc;

use loom::thread;

use super::super::under_loom::explore;
use super::*;

#[test]
fn uses_of_a_key_add_up() {
    explore(|| {
        let tally = Arc::new(Tally::default());
        let count = |uses, minute| {
            let tally = tally.clone();
            thread::spawn(move || tally.count(uses, FIRST_MINUTE + minute * MINUTE))
        };
        let (one, other) = (count(1, 2), count(2, 1));
        tally.count(4, FIRST_MINUTE);
        one.join().unwrap();
        other.join().unwrap();
        assert_eq!(tally.uses(), (7, FIRST_MINUTE + 2 * MINUTE));
    });
}
