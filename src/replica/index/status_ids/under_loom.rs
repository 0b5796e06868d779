//! Loom tests of the status numbers, under every interleaving of the writer and a reader.

use std::sync::Arc;

use loom::thread;

use super::super::under_loom::explore;
use super::*;

/// Reads while `set` replaces the number 1 by each of these numbers in turn.
fn read_while(set: fn(&StatusIds, u32), numbers: &'static [u32]) {
    explore(move || {
        let ids = Arc::new(StatusIds::default());
        ids.set(3, 1);
        let writer = {
            let ids = ids.clone();
            thread::spawn(move || numbers.iter().for_each(|number| set(&ids, *number)))
        };
        for read in [ids.get(3), ids.get(3)] {
            let is_right = |read| read == 1 || numbers.contains(&read);
            assert!(read.is_some_and(is_right), "a number that was never set");
        }
        writer.join().unwrap();
        assert_eq!(ids.get(3), numbers.last().copied());
    });
}

#[test]
fn a_reader_gets_only_numbers_that_were_set() {
    read_while(|ids, number| ids.set(3, number), &[300, 2, 400]);
}

#[test]
#[should_panic(expected = "a number that was never set")]
fn a_byte_that_leads_to_a_number_before_the_number_is_there_is_wrong() {
    let byte_first = |ids: &StatusIds, number| {
        ids.short.at(3).store(LONG, Ordering::Release);
        ids.long.at(3).store(number, Ordering::Release);
    };
    read_while(byte_first, &[300]);
}
