//! Loom tests of a ring: its thread writes uses, while another thread drains the ring.

use std::sync::Arc;

use loom::thread;

use super::super::under_loom::explore_within;
use super::*;

type PushFn = fn(&UseRing, Use, &Tallies);
type DrainFn = fn(&UseRing, &Tallies) -> bool;

fn used(row: u32) -> Use {
    Use::new(row, 0, 1_600_000_000)
}

/// Writes three uses to a ring for two, while `drains` threads drain it once each.
fn adds_up(push: PushFn, drain: DrainFn, drains: usize) {
    explore_within(Some(3), move || {
        let (ring, tallies) = (Arc::new(UseRing::default()), Arc::new(Tallies::default()));
        tallies.reserve(1);
        let draining: Vec<_> = (0..drains)
            .map(|_| {
                let (ring, tallies) = (ring.clone(), tallies.clone());
                thread::spawn(move || drain(&ring, &tallies))
            })
            .collect();
        [1, 2, 2]
            .into_iter()
            .for_each(|row| push(&ring, used(row), &tallies));
        draining.into_iter().for_each(|thread| {
            let _drained = thread.join().unwrap();
        });
        assert!(ring.drain(&tallies));
        let found = [1, 2].map(|row| tallies.get(row)?.uses().map(|(count, _)| count));
        assert_eq!(found, [Some(1), Some(2)], "lost or counted twice");
    });
}

#[test]
fn no_use_is_lost_or_counted_twice_while_another_thread_drains() {
    adds_up(UseRing::push, UseRing::drain, 1);
}

#[test]
fn no_use_is_lost_or_counted_twice_while_two_threads_drain() {
    adds_up(UseRing::push, UseRing::drain, 2);
}

/// Broken on purpose: publishes the count before the use.
fn push_count_first(ring: &UseRing, used: Use, tallies: &Tallies) {
    let written = ring.written.load(Ordering::Relaxed);
    if written.wrapping_sub(ring.taken.load(Ordering::Acquire)) == LENGTH && !ring.drain(tallies) {
        return used.add(tallies);
    }
    ring.written
        .store(written.wrapping_add(1), Ordering::Release);
    ring.place(written).store(used.to_word(), Ordering::Relaxed);
}

/// Broken on purpose: does not order the use before the count.
fn push_without_release(ring: &UseRing, used: Use, tallies: &Tallies) {
    let written = ring.written.load(Ordering::Relaxed);
    if written.wrapping_sub(ring.taken.load(Ordering::Acquire)) == LENGTH && !ring.drain(tallies) {
        return used.add(tallies);
    }
    ring.place(written).store(used.to_word(), Ordering::Relaxed);
    ring.written
        .store(written.wrapping_add(1), Ordering::Relaxed);
}

/// Broken on purpose: writes over uses that no thread has taken.
fn push_over(ring: &UseRing, used: Use, _: &Tallies) {
    let written = ring.written.load(Ordering::Relaxed);
    ring.place(written).store(used.to_word(), Ordering::Relaxed);
    ring.written
        .store(written.wrapping_add(1), Ordering::Release);
}

/// Broken on purpose: does not exclude another draining thread.
fn drain_without_lock(ring: &UseRing, tallies: &Tallies) -> bool {
    let taken = ring.taken.load(Ordering::Relaxed);
    let written = ring.written.load(Ordering::Acquire);
    for number in taken..written {
        let word = ring.place(number).load(Ordering::Relaxed);
        Use::of_word(word).add(tallies);
    }
    ring.taken.store(written, Ordering::Release);
    true
}

/// Broken on purpose: gives the places back before it has read them.
fn drain_after_release(ring: &UseRing, tallies: &Tallies) -> bool {
    if ring
        .is_draining
        .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
        .is_err()
    {
        return false;
    }
    let taken = ring.taken.load(Ordering::Relaxed);
    let written = ring.written.load(Ordering::Acquire);
    ring.taken.store(written, Ordering::Release);
    for number in taken..written {
        let word = ring.place(number).load(Ordering::Relaxed);
        Use::of_word(word).add(tallies);
    }
    ring.is_draining.store(false, Ordering::Release);
    true
}

#[test]
#[should_panic(expected = "lost or counted twice")]
fn a_count_that_is_published_before_its_use_is_wrong() {
    adds_up(push_count_first, UseRing::drain, 1);
}

#[test]
#[should_panic(expected = "lost or counted twice")]
fn a_count_that_does_not_publish_its_use_is_wrong() {
    adds_up(push_without_release, UseRing::drain, 1);
}

#[test]
#[should_panic(expected = "lost or counted twice")]
fn a_full_ring_that_is_written_over_is_wrong() {
    adds_up(push_over, UseRing::drain, 0);
}

#[test]
#[should_panic(expected = "lost or counted twice")]
fn draining_without_excluding_other_threads_is_wrong() {
    adds_up(UseRing::push, drain_without_lock, 2);
}

#[test]
#[should_panic(expected = "lost or counted twice")]
fn places_that_are_given_back_before_they_are_read_are_wrong() {
    adds_up(UseRing::push, drain_after_release, 1);
}
