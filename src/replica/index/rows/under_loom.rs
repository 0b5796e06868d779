//! Loom tests of a row, under every interleaving of its writer and its readers.

use std::sync::Arc;

use loom::thread;

use super::super::under_loom::{content, explore_within};
use super::*;

fn is_whole(write: fn(&IndexRow, Content), changes: u32, reads: usize) {
    // With more than two changes and reads, loom takes minutes. So the number of preemptions is then limited
    // to one.
    let switches = (changes + reads as u32 > 2).then_some(1);
    explore_within(switches, move || {
        let row = Arc::new(IndexRow::default());
        row.write(content(1));
        let reader = thread::spawn({
            let row = row.clone();
            move || {
                let mut before = 1;
                for _ in 0..reads {
                    let read = row.read();
                    let number = read.attribute_ids.key_owner;
                    assert_eq!(read, content(number), "half written");
                    assert!(number >= before, "older than what was read before");
                    before = number;
                }
            }
        });
        (2..2 + changes).for_each(|number| write(&row, content(number)));
        reader.join().unwrap();
        assert_eq!(row.read(), content(1 + changes));
    });
}

#[test]
fn a_row_is_never_read_half_written() {
    is_whole(IndexRow::write, 1, 1);
}

#[test]
fn a_row_is_never_read_older_than_before() {
    is_whole(IndexRow::write, 1, 2);
}

#[test]
fn a_row_that_is_written_twice_is_never_read_half_written() {
    is_whole(IndexRow::write, 2, 1);
}

/// Does the same as [`IndexRow::write`], but with one of its steps omitted, or with a weaker memory ordering.
fn write(row: &IndexRow, content: Content, marks: bool, fences: bool, last: Ordering) {
    let (state, ends) = words_of(content.key);
    if marks {
        row.revision.store(CHANGING, Ordering::Relaxed);
    }
    if fences {
        fence(Ordering::Release);
    }
    row.state.store(state, Ordering::Relaxed);
    row.ends.store(ends, Ordering::Relaxed);
    row.key_owner
        .store(content.attribute_ids.key_owner, Ordering::Relaxed);
    row.traits
        .store(content.attribute_ids.traits, Ordering::Relaxed);
    row.revision.store(content.revision.0, last);
}

#[test]
#[should_panic(expected = "half written")]
fn a_row_that_is_not_marked_is_read_half_written() {
    let broken = |row: &IndexRow, content| write(row, content, false, true, Ordering::Release);
    is_whole(broken, 1, 1);
}

#[test]
#[should_panic(expected = "half written")]
fn a_row_that_is_marked_without_a_fence_is_read_half_written() {
    let broken = |row: &IndexRow, content| write(row, content, true, false, Ordering::Release);
    is_whole(broken, 1, 1);
}

#[test]
#[should_panic(expected = "half written")]
fn a_row_that_is_finished_without_release_is_read_half_written() {
    let broken = |row: &IndexRow, content| write(row, content, true, true, Ordering::Relaxed);
    is_whole(broken, 1, 1);
}
