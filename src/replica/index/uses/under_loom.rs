//! Loom tests of counting: two threads share a counter, and a third thread takes the counts.

use std::sync::Arc;

use loom::thread;

use super::super::under_loom::explore_within;
use super::*;

type CountFn = fn(&CounterShard, u32) -> Option<Counted>;

/// Adds a count that another row displaced from its counter to the sum of the count's row.
fn add(sum: &mut [u32; 2], counted: Option<Counted>) {
    if let Some(Counted { row, uses, .. }) = counted {
        sum[row as usize - 1] += uses;
    }
}

fn adds_up(count: CountFn, one: &'static [u32], other: &'static [u32]) {
    explore_within((one.len() + other.len() > 3).then_some(2), move || {
        let uses = Arc::new(UseCounters::default());
        let use_all = |rows: &'static [u32]| {
            let uses = uses.clone();
            thread::spawn(move || {
                let mut sum = [0; 2];
                rows.iter()
                    .for_each(|row| add(&mut sum, count(&uses.0[0], *row)));
                sum
            })
        };
        let threads = [use_all(one), use_all(other)];
        let mut total = [0; 2];
        let mut expected = [0; 2];
        uses.take()
            .for_each(|counted| add(&mut total, Some(counted)));
        for thread in threads {
            let own = thread.join().unwrap();
            total = [total[0] + own[0], total[1] + own[1]];
        }
        uses.take()
            .for_each(|counted| add(&mut total, Some(counted)));
        for row in one.iter().chain(other) {
            expected[*row as usize - 1] += 1;
        }
        assert_eq!(total, expected, "lost or counted twice");
        assert_eq!(uses.take().count(), 0);
    });
}

fn count(shard: &CounterShard, row: u32) -> Option<Counted> {
    shard.count(row, 1)
}

#[test]
fn no_use_of_one_key_is_lost_or_counted_twice() {
    adds_up(count, &[1, 1], &[1]);
}

#[test]
fn no_use_of_two_keys_in_one_counter_is_lost_or_counted_twice() {
    adds_up(count, &[1, 1], &[2, 1]);
}

/// Broken on purpose: stores the increased count without comparing the counter's old value. The store
/// overwrites a concurrent count.
fn count_blindly(shard: &CounterShard, row: u32) -> Option<Counted> {
    let known = shard.counts[0].load(Ordering::Relaxed);
    if row_of(known) == row {
        shard.counts[0].store(known + 1, Ordering::Relaxed);
        return None;
    }
    counted(
        shard.counts[0].swap(u64::from(row) << 32 | 1, Ordering::Relaxed),
        1,
    )
}

/// Broken on purpose: loads the old count, and then stores the new row's count over it. A use that another
/// thread counts between the two steps is lost.
fn displace_blindly(shard: &CounterShard, row: u32) -> Option<Counted> {
    let known = shard.counts[0].load(Ordering::Relaxed);
    shard.counts[0].store(u64::from(row) << 32 | 1, Ordering::Relaxed);
    counted(known, 1)
}

#[test]
#[should_panic(expected = "lost or counted twice")]
fn a_count_that_is_not_compared_is_wrong() {
    adds_up(count_blindly, &[1, 1], &[1]);
}

#[test]
#[should_panic(expected = "lost or counted twice")]
fn a_count_that_is_not_swapped_is_wrong() {
    adds_up(displace_blindly, &[1], &[2]);
}
