//! Loom tests of the status numbers, under every interleaving of the writer and a reader.

use std::sync::Arc;

use loom::thread;

use super::super::under_loom::explore;
use super::*;

/// The number that an owner has before the change, and of which the slot has a copy.
const BEFORE: u32 = 1;

/// Changes the number of an owner by `set`, and then sets a flag with the memory ordering `order`, as a confirmation
/// does. A reader loads the flag first, and then the number twice.
fn change(set: fn(&StatusIds, u32), order: Ordering) {
    explore(move || {
        let ids = Arc::new(StatusIds::default());
        ids.set(3, BEFORE);
        let flag = Arc::new(AtomicU64::new(0));
        let reader = {
            let (ids, flag) = (ids.clone(), flag.clone());
            thread::spawn(move || {
                let confirmed = flag.load(Ordering::Acquire) == 1;
                let reads = [ids.get(3, Some(BEFORE)), ids.get(3, Some(BEFORE))];
                for read in reads {
                    assert!(
                        matches!(read, Some(BEFORE | 2)),
                        "a number that was never set"
                    );
                    assert!(!confirmed || read == Some(2), "an old number");
                }
                assert_ne!(
                    reads,
                    [Some(2), Some(BEFORE)],
                    "an old number after a new one"
                );
            })
        };
        set(&ids, 2);
        flag.store(1, order);
        reader.join().unwrap();
    });
}

#[test]
fn a_reader_of_a_confirmation_gets_the_new_number() {
    change(|ids, number| ids.set(3, number), Ordering::Release);
}

#[test]
#[should_panic(expected = "an old number")]
fn a_confirmation_without_release_leaves_the_old_number() {
    change(|ids, number| ids.set(3, number), Ordering::Relaxed);
}

#[test]
#[should_panic(expected = "an old number")]
fn a_number_without_its_bit_does_not_reach_the_keys() {
    let no_bit = |ids: &StatusIds, number: u32| {
        ids.current.at(3).store(number + 1, Ordering::Release);
    };
    change(no_bit, Ordering::Release);
}
