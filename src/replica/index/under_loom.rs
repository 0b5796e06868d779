//! Two properties that verification relies on, under every interleaving of a writer and a reader. A
//! confirmed change is visible, and a key that keeps its secret is found at any instant.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use loom::model::Builder;
use loom::thread;

use super::rows::{Content, Kept, Row};
use super::sync::{AtomicU64, OnceLock, Ordering};
use super::table::{Found, Hash, Search, SlotValue, Table};
use super::{Directory, Half, Parts};
use crate::core::subject::{Course, Life};
use crate::core::time::Timestamp;
use crate::core::view::Revision;

/// Runs `model` in every order.
///
/// Loom forgets that a thread loaded a word once another thread loads it too. A store that follows
/// both loads is then tried in one order only. Therefore a writer that loads before it stores runs
/// as the first thread, from start to end. A reader then takes every load from each store that the
/// memory model allows. Those are all possible outcomes, since no writer depends on a reader.
pub(super) fn explore(model: impl Fn() + Send + Sync + 'static) {
    explore_within(None, model);
}

/// Runs `model` with at most `turns` switches between threads.
pub(super) fn explore_within(
    turns: impl Into<Option<usize>>,
    model: impl Fn() + Send + Sync + 'static,
) {
    let orders = Arc::new(AtomicUsize::new(0));
    let mut builder = Builder::new();
    builder.max_branches = 20_000;
    builder.preemption_bound = turns.into();
    let count = orders.clone();
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });
    println!("{} orders", orders.load(Ordering::Relaxed));
}

/// A hash whose search begins at the last slot of the first segment, and continues at its first
/// slot.
pub(super) const KEY: Hash = Hash(0xC000_0001);

pub(super) fn half(number: u8) -> Half {
    Half::of(&[number; 32])
}

pub(super) fn value(number: u32) -> SlotValue {
    SlotValue {
        until: SlotValue::NEVER,
        parts: parts(number),
    }
}

pub(super) fn parts(number: u32) -> Parts {
    Parts {
        holder: number,
        shape: number,
    }
}

/// The contents of a row, in which every field holds `number`.
pub(super) fn content(number: u32) -> Content {
    let instant = |micros: u32| Timestamp::from_micros(micros.into()).unwrap();
    Content {
        revision: Revision(number.into()),
        key: Kept::Known(Course {
            life: Life::Enabled,
            created_at: instant(number),
            expires_at: Some(instant(number)),
            awaits_first_use: false,
        }),
        parts: parts(number),
    }
}

pub(super) fn find(directory: &Directory, hash: Hash, half: Half) -> Option<Found> {
    match directory.probe(hash).search(half) {
        Search::Match(found) => Some(found),
        Search::NoMatch(_) | Search::Nothing => None,
    }
}

/// Returns a table of `keys` keys, of which [`KEY`] is the first, with room for three.
pub(super) fn table(keys: u32) -> Table {
    let mut table = Table::default();
    table.insert(KEY, 1, half(1), value(1));
    for row in 2..=keys {
        table.insert(Hash(row << 29), row, half(row as u8), value(row));
    }
    table
}

/// Runs `change`, then sets a flag with `order`, as a confirmation does. A concurrent reader loads
/// the flag first, and calls `check` with what it saw.
fn confirmed(
    keys: u32,
    order: Ordering,
    change: fn(&mut Table, &Row),
    check: fn(seen: bool, &Directory, &Row),
) {
    explore(move || {
        let mut table = table(keys);
        let directory = table.directory();
        let row = Arc::new(Row::default());
        row.write(content(1));
        let flag = Arc::new(AtomicU64::new(0));
        let reader = thread::spawn({
            let (row, flag) = (row.clone(), flag.clone());
            move || {
                let seen = flag.load(Ordering::Acquire) == 1;
                check(seen, &directory, &row);
            }
        });
        change(&mut table, &row);
        // As in `Replica::confirm`.
        flag.fetch_max(1, order);
        reader.join().unwrap();
    });
}

fn leads_elsewhere(order: Ordering) {
    confirmed(
        1,
        order,
        |table, _| table.set_value(KEY, 1, value(2)),
        |seen, directory, _| {
            let led = find(directory, KEY, half(1)).unwrap().value;
            assert!(
                led == value(2) || (!seen && led == value(1)),
                "an old value"
            );
        },
    );
}

#[test]
fn a_lead_that_was_confirmed_is_the_one_that_is_seen() {
    leads_elsewhere(Ordering::Release);
}

#[test]
#[should_panic(expected = "an old value")]
fn a_flag_that_does_not_release_shows_an_old_lead() {
    leads_elsewhere(Ordering::Relaxed);
}

#[test]
fn a_lead_that_was_confirmed_is_seen_from_a_segment_that_was_replaced() {
    confirmed(
        3,
        Ordering::Release,
        |table, _| {
            table.insert(Hash(7), 9, half(9), value(9));
            table.set_value(KEY, 1, value(2));
        },
        |seen, directory, _| {
            let led = find(directory, KEY, half(1)).unwrap().value;
            assert!(led == value(2) || (!seen && led == value(1)));
            assert!(!seen || find(directory, Hash(7), half(9)).is_some());
        },
    );
}

#[test]
fn a_digest_that_was_replaced_and_confirmed_is_not_found() {
    confirmed(
        1,
        Ordering::Release,
        |table, _| table.replace(KEY, 1, half(2), value(2), || {}),
        |seen, directory, _| {
            assert!(!seen || find(directory, KEY, half(1)).is_none());
            assert!(!seen || find(directory, KEY, half(2)).is_some());
        },
    );
}

fn withdrawn(change: fn(&mut Table, &Row)) {
    confirmed(1, Ordering::Release, change, |seen, directory, row| {
        let led = find(directory, KEY, half(1)).unwrap().value;
        assert!(!seen || led == SlotValue::ROW);
        if led == SlotValue::ROW {
            assert_eq!(row.read(), content(2), "an old row");
        }
    });
}

#[test]
fn a_reader_led_to_the_row_finds_the_current_key() {
    withdrawn(|table, row| {
        row.write(content(2));
        table.set_value(KEY, 1, SlotValue::ROW);
    });
}

#[test]
#[should_panic(expected = "an old row")]
fn a_lead_to_the_row_before_the_row_shows_an_old_row() {
    withdrawn(|table, row| {
        table.set_value(KEY, 1, SlotValue::ROW);
        row.write(content(2));
    });
}

/// Publishes a shared entry as the ledger does, and makes a key lead to it, in the order of
/// `change`. A reader that is led to the entry must find it.
fn shared(change: fn(&mut Table, &OnceLock<u32>)) {
    explore(move || {
        let mut table = table(1);
        let directory = table.directory();
        let entry = Arc::new(OnceLock::new());
        let reader = thread::spawn({
            let entry = entry.clone();
            move || {
                let led = find(&directory, KEY, half(1)).unwrap().value;
                assert!(led == value(1) || entry.get().is_some(), "led to nothing");
            }
        });
        change(&mut table, &entry);
        reader.join().unwrap();
    });
}

#[test]
fn a_reader_led_to_a_shared_entry_finds_it() {
    shared(|table, entry| {
        let _ = entry.set(2);
        table.set_value(KEY, 1, value(2));
    });
}

#[test]
#[should_panic(expected = "led to nothing")]
fn a_lead_to_an_unpublished_entry_leads_to_nothing() {
    shared(|table, entry| {
        table.set_value(KEY, 1, value(2));
        let _ = entry.set(2);
    });
}

/// Gives a key a digest under a new pepper. The row's shape names the pepper: 1 for the old one and
/// 2 for the new one. Like the verifier, the reader searches for the new digest first, and then for
/// the one the row names.
fn with_new_digest(looks_again: bool, change: fn(&mut Table, &Row)) {
    explore(move || {
        let mut table = table(1);
        let directory = table.directory();
        let row = Arc::new(Row::default());
        row.write(content(1));
        let reader = thread::spawn({
            let row = row.clone();
            move || {
                let mut found = find(&directory, KEY, half(2)).is_some();
                if !found {
                    let own = row.read().parts.shape;
                    found = own == 1 && find(&directory, KEY, half(1)).is_some();
                }
                if !found && looks_again {
                    found = find(&directory, KEY, half(2)).is_some();
                }
                assert!(found, "a good key was not found");
            }
        });
        change(&mut table, &row);
        reader.join().unwrap();
    });
}

#[test]
fn a_key_that_gets_a_new_digest_is_found_at_any_instant() {
    with_new_digest(true, |table, row| {
        table.replace(KEY, 1, half(2), value(2), || row.write(content(2)));
    });
}

#[test]
#[should_panic(expected = "a good key was not found")]
fn a_reader_that_does_not_search_again_misses_a_key_that_gets_a_new_digest() {
    with_new_digest(false, |table, row| {
        table.replace(KEY, 1, half(2), value(2), || row.write(content(2)));
    });
}

#[test]
#[should_panic(expected = "a good key was not found")]
fn a_row_that_names_a_digest_before_its_slot_exists_hides_the_key() {
    with_new_digest(true, |table, row| {
        row.write(content(2));
        table.replace(KEY, 1, half(2), value(2), || {});
    });
}
