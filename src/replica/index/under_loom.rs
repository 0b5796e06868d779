//! Loom tests of two properties that verification relies on. A reader that sees a confirmation sees the
//! confirmed changes. A reader finds a valid key at any instant. Both hold under every interleaving of a
//! writer and a reader.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use loom::model::Builder;
use loom::thread;

use super::rows::{Content, IndexRow, RowState};
use super::sync::{AtomicU64, OnceLock, Ordering};
use super::table::{FoundSlot, Hash, Search, SlotValue, Table};
use super::{AttributeIds, DigestPrefix, Directory};
use crate::core::subject::{Lifecycle, LifecyclePhase};
use crate::core::time::Timestamp;
use crate::core::view::Revision;

/// Runs `model` in every interleaving.
///
/// Loom has a limit: if two threads load a word and one of them stores to it later, loom tries only one order
/// of that store. So the writer, which loads before it stores, runs as the first thread, from start to end.
/// Each load of the reader then returns every store that the memory model allows. This covers all outcomes,
/// because no writer depends on a reader.
pub(super) fn explore(model: impl Fn() + Send + Sync + 'static) {
    explore_within(None, model);
}

/// Runs `model` with at most `switches` preemptions of a thread.
pub(super) fn explore_within(
    switches: impl Into<Option<usize>>,
    model: impl Fn() + Send + Sync + 'static,
) {
    let orders = Arc::new(AtomicUsize::new(0));
    let mut builder = Builder::new();
    builder.max_branches = 20_000;
    builder.preemption_bound = switches.into();
    let count = orders.clone();
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });
    println!("{} orders", orders.load(Ordering::Relaxed));
}

/// A hash whose search begins at the last slot of the first segment. The search then wraps around to the
/// segment's first slot.
pub(super) const KEY: Hash = Hash(0xC000_0001);

pub(super) fn digest_prefix(number: u8) -> DigestPrefix {
    DigestPrefix::of(&[number; 32])
}

pub(super) fn value(number: u32) -> SlotValue {
    SlotValue {
        until: SlotValue::NEVER,
        attribute_ids: attribute_ids(number),
    }
}

pub(super) fn attribute_ids(number: u32) -> AttributeIds {
    AttributeIds {
        key_owner: number,
        traits: number,
        status: None,
    }
}

/// Returns the contents of a row in which every field holds `number`. So a reader that sees two different
/// numbers has read a half-written row.
pub(super) fn content(number: u32) -> Content {
    let instant = |micros: u32| Timestamp::from_micros(micros.into()).unwrap();
    Content {
        revision: Revision(number.into()),
        key: RowState::Key(Lifecycle {
            phase: LifecyclePhase::Enabled,
            created_at: instant(number),
            expires_at: Some(instant(number)),
            awaits_first_use: false,
        }),
        attribute_ids: attribute_ids(number),
    }
}

pub(super) fn find(
    directory: &Directory,
    hash: Hash,
    digest_prefix: DigestPrefix,
) -> Option<FoundSlot> {
    match directory.probe(hash).search(digest_prefix) {
        Search::Match(found) => Some(found),
        Search::NoMatch(_) | Search::Nothing => None,
    }
}

/// Returns a table with room for three keys, which contains `keys` keys. The first of them is [`KEY`].
pub(super) fn table(keys: u32) -> Table {
    let mut table = Table::default();
    table.insert(KEY, 1, digest_prefix(1), value(1));
    for row in 2..=keys {
        table.insert(Hash(row << 29), row, digest_prefix(row as u8), value(row));
    }
    table
}

/// Runs `change`, and then sets a flag with the memory ordering `order`, as a confirmation does. A concurrent
/// reader loads the flag first, and passes the loaded value to `check`.
fn confirmed(
    keys: u32,
    order: Ordering,
    change: fn(&mut Table, &IndexRow),
    check: fn(seen: bool, &Directory, &IndexRow),
) {
    explore(move || {
        let mut table = table(keys);
        let directory = table.directory();
        let row = Arc::new(IndexRow::default());
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
        // Stands for the store of `confirmed` in `Replica::confirm`, which must be Release.
        flag.fetch_max(1, order);
        reader.join().unwrap();
    });
}

fn changes_the_value(order: Ordering) {
    confirmed(
        1,
        order,
        |table, _| table.set_value(KEY, 1, value(2)),
        |seen, directory, _| {
            let read = find(directory, KEY, digest_prefix(1)).unwrap().value;
            assert!(
                read == value(2) || (!seen && read == value(1)),
                "an old value"
            );
        },
    );
}

#[test]
fn a_reader_of_a_confirmation_sees_the_confirmed_value() {
    changes_the_value(Ordering::Release);
}

#[test]
#[should_panic(expected = "an old value")]
fn a_confirmation_without_release_shows_an_old_value() {
    changes_the_value(Ordering::Relaxed);
}

#[test]
fn a_reader_in_a_replaced_segment_sees_the_confirmed_value() {
    confirmed(
        3,
        Ordering::Release,
        |table, _| {
            table.insert(Hash(7), 9, digest_prefix(9), value(9));
            table.set_value(KEY, 1, value(2));
        },
        |seen, directory, _| {
            let read = find(directory, KEY, digest_prefix(1)).unwrap().value;
            assert!(read == value(2) || (!seen && read == value(1)));
            assert!(!seen || find(directory, Hash(7), digest_prefix(9)).is_some());
        },
    );
}

#[test]
fn a_digest_that_was_replaced_and_confirmed_is_not_found() {
    confirmed(
        1,
        Ordering::Release,
        |table, _| table.replace(KEY, 1, digest_prefix(2), value(2), || {}),
        |seen, directory, _| {
            assert!(!seen || find(directory, KEY, digest_prefix(1)).is_none());
            assert!(!seen || find(directory, KEY, digest_prefix(2)).is_some());
        },
    );
}

fn withdrawn(change: fn(&mut Table, &IndexRow)) {
    confirmed(1, Ordering::Release, change, |seen, directory, row| {
        let read = find(directory, KEY, digest_prefix(1)).unwrap().value;
        assert!(!seen || read == SlotValue::ROW);
        if read == SlotValue::ROW {
            assert_eq!(row.read(), content(2), "an old row");
        }
    });
}

#[test]
fn a_reader_that_a_slot_refers_to_the_row_finds_the_current_key() {
    withdrawn(|table, row| {
        row.write(content(2));
        table.set_value(KEY, 1, SlotValue::ROW);
    });
}

#[test]
#[should_panic(expected = "an old row")]
fn a_slot_that_refers_to_the_row_before_the_row_is_written_shows_an_old_row() {
    withdrawn(|table, row| {
        table.set_value(KEY, 1, SlotValue::ROW);
        row.write(content(2));
    });
}

/// Runs `change`, which publishes a shared entry and makes a slot refer to that entry. The order of the two
/// steps is the subject of the test. A reader that loads the new slot value must find the entry.
fn shared(change: fn(&mut Table, &OnceLock<u32>)) {
    explore(move || {
        let mut table = table(1);
        let directory = table.directory();
        let entry = Arc::new(OnceLock::new());
        let reader = thread::spawn({
            let entry = entry.clone();
            move || {
                let read = find(&directory, KEY, digest_prefix(1)).unwrap().value;
                assert!(read == value(1) || entry.get().is_some(), "no such entry");
            }
        });
        change(&mut table, &entry);
        reader.join().unwrap();
    });
}

#[test]
fn a_reader_that_a_slot_refers_to_a_shared_entry_finds_the_entry() {
    shared(|table, entry| {
        let _ = entry.set(2);
        table.set_value(KEY, 1, value(2));
    });
}

#[test]
#[should_panic(expected = "no such entry")]
fn a_slot_that_refers_to_an_unpublished_entry_refers_to_nothing() {
    shared(|table, entry| {
        table.set_value(KEY, 1, value(2));
        let _ = entry.set(2);
    });
}

/// Runs `change`, which replaces a key's digest by a digest under a new pepper. The traits number in the row
/// names the pepper: 1 is the old pepper, and 2 the new one.
///
/// The reader searches as the verifier does: first for the new digest, and then for the digest under the
/// row's pepper. With `looks_again`, it then searches for the new digest once more.
fn with_new_digest(looks_again: bool, change: fn(&mut Table, &IndexRow)) {
    explore(move || {
        let mut table = table(1);
        let directory = table.directory();
        let row = Arc::new(IndexRow::default());
        row.write(content(1));
        let reader = thread::spawn({
            let row = row.clone();
            move || {
                let mut found = find(&directory, KEY, digest_prefix(2)).is_some();
                if !found {
                    let own = row.read().attribute_ids.traits;
                    found = own == 1 && find(&directory, KEY, digest_prefix(1)).is_some();
                }
                if !found && looks_again {
                    found = find(&directory, KEY, digest_prefix(2)).is_some();
                }
                assert!(found, "a valid key was not found");
            }
        });
        change(&mut table, &row);
        reader.join().unwrap();
    });
}

#[test]
fn a_key_that_gets_a_new_digest_is_found_at_any_instant() {
    with_new_digest(true, |table, row| {
        table.replace(KEY, 1, digest_prefix(2), value(2), || row.write(content(2)));
    });
}

#[test]
#[should_panic(expected = "a valid key was not found")]
fn a_reader_that_does_not_search_again_misses_a_key_that_gets_a_new_digest() {
    with_new_digest(false, |table, row| {
        table.replace(KEY, 1, digest_prefix(2), value(2), || row.write(content(2)));
    });
}

#[test]
#[should_panic(expected = "a valid key was not found")]
fn a_row_that_names_the_new_pepper_before_the_new_slot_exists_hides_the_key() {
    with_new_digest(true, |table, row| {
        row.write(content(2));
        table.replace(KEY, 1, digest_prefix(2), value(2), || {});
    });
}
