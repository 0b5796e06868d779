//! The table under every interleaving of its writer and a reader.

use loom::thread;

use super::super::under_loom::{KEY, explore, find, half, table, value};
use super::*;

/// A hash whose first bits differ: it falls into the other half of a split segment.
const OTHER: Hash = Hash(0x4000_0001);

/// Runs a writer that changes a table of `keys` keys, concurrently with a reader that took the
/// table's directory before.
fn beside(keys: u32, write: fn(&mut Table), read: fn(&Directory)) {
    explore(move || {
        let mut table = table(keys);
        let directory = table.directory();
        let reader = thread::spawn(move || read(&directory));
        write(&mut table);
        reader.join().unwrap();
    });
}

fn finds_one_of_two(directory: &Directory) {
    let found = find(directory, KEY, half(1)).or_else(|| find(directory, KEY, half(2)));
    assert!(found.is_some(), "neither");
    assert_eq!(found.map(|found| found.row), Some(1));
}

fn is_named(directory: &Directory) {
    assert!(directory.probe(KEY).named().next().is_some(), "no name");
}

fn replace(table: &mut Table) {
    table.replace(KEY, 1, half(2), value(2), || {});
}

#[test]
fn a_key_whose_digest_is_replaced_is_found_by_one_of_the_two() {
    beside(1, replace, finds_one_of_two);
}

#[test]
fn a_key_whose_digest_is_replaced_is_always_named() {
    beside(1, replace, is_named);
}

#[test]
fn a_key_whose_digest_is_replaced_where_there_is_no_room_is_found() {
    beside(3, replace, finds_one_of_two);
    beside(3, replace, is_named);
}

#[test]
fn a_key_whose_digest_is_replaced_twice_is_found_by_one_of_three() {
    beside(
        1,
        |table| {
            table.replace(KEY, 1, half(2), value(2), || {});
            table.replace(KEY, 1, half(3), value(3), || {});
        },
        |directory| {
            let mut found = (1..=3).map(|own| find(directory, KEY, half(own)));
            assert!(found.any(|found| found.is_some()));
        },
    );
}

/// Broken: removes the old slot before it inserts the new one.
fn clear_and_replace(table: &mut Table) {
    let slot = table.slot(KEY, 1).unwrap();
    slot.name.store(GONE, Ordering::Release);
    table.insert(KEY, 1, half(2), value(2));
}

#[test]
#[should_panic(expected = "neither")]
fn a_digest_that_is_taken_away_first_leaves_neither() {
    beside(1, clear_and_replace, finds_one_of_two);
}

#[test]
#[should_panic(expected = "no name")]
fn a_digest_that_is_taken_away_first_leaves_no_name() {
    beside(1, clear_and_replace, is_named);
}

/// Broken: the new slot does not happen-before the removal of the old one.
#[test]
#[should_panic(expected = "neither")]
fn a_slot_that_goes_without_release_leaves_neither() {
    beside(
        1,
        |table| {
            table.insert(KEY, 1, half(2), value(2));
            let slot = table.slot(KEY, 1).unwrap();
            slot.name.store(GONE, Ordering::Relaxed);
        },
        finds_one_of_two,
    );
}

fn finds_all_three(directory: &Directory) {
    finds_rows(
        directory,
        &[(KEY, 1), (Hash(2 << 29), 2), (Hash(3 << 29), 3)],
    );
}

fn finds_rows(directory: &Directory, keys: &[(Hash, u32)]) {
    for &(hash, row) in keys {
        let expected = Some(Found {
            row,
            value: value(row),
        });
        assert_eq!(find(directory, hash, half(row as u8)), expected, "lost");
    }
}

#[test]
fn all_keys_are_found_while_a_segment_grows() {
    beside(
        3,
        |table| table.insert(OTHER, 9, half(9), value(9)),
        finds_all_three,
    );
}

#[test]
fn all_keys_are_found_while_a_segment_is_split() {
    beside(
        6,
        |table| {
            table.insert(OTHER, 9, half(9), value(9));
            assert_eq!(table.segments(), 2);
        },
        |directory| {
            finds_rows(
                directory,
                &[(KEY, 1), (Hash(2 << 29), 2), (Hash(6 << 29), 6)],
            )
        },
    );
}

#[test]
fn all_keys_are_found_while_a_segment_grows_and_its_successor_is_split() {
    beside(
        3,
        |table| {
            for row in 9..13 {
                table.insert(Hash(row << 28), row, half(row as u8), value(row));
            }
            assert_eq!(table.segments(), 2);
        },
        |directory| finds_rows(directory, &[(KEY, 1), (Hash(2 << 29), 2)]),
    );
}

#[test]
#[should_panic(expected = "lost")]
fn a_segment_that_is_led_to_before_it_is_filled_loses_keys() {
    beside(
        3,
        |table| {
            let full = &table.segments[0];
            let larger = Arc::new(Segment::new(0, 8));
            let _ = full.next.set(Next::Larger(larger.clone()));
            for (slot, name) in full.run(KEY) {
                larger.insert(name, slot.half(), slot.value.load(Ordering::Relaxed));
            }
        },
        finds_all_three,
    );
}

/// Checks that a reader that finds [`OTHER`] by its name also sees the rest of the slot.
fn sees_all_of_it(directory: &Directory) {
    for found in directory.probe(OTHER).named() {
        assert!([value(9), value(10)].contains(&found.value), "half-made");
    }
    match directory.probe(OTHER).search(half(9)) {
        Search::Match(found) => {
            assert_eq!(found.row, 9);
            assert!([value(9), value(10)].contains(&found.value), "half-made");
        }
        Search::NoMatch(_) => panic!("half-made"),
        Search::Nothing => {}
    }
}

#[test]
fn a_reader_that_finds_a_name_sees_its_half_and_its_lead() {
    beside(
        1,
        |table| {
            table.insert(OTHER, 9, half(9), value(9));
            table.set_value(OTHER, 9, value(10));
        },
        sees_all_of_it,
    );
}

#[test]
fn a_reader_that_finds_a_name_in_a_grown_segment_sees_its_half_and_its_lead() {
    beside(
        3,
        |table| {
            table.insert(OTHER, 9, half(9), value(9));
            table.set_value(OTHER, 9, value(10));
        },
        sees_all_of_it,
    );
}

fn free(table: &Table) -> &Slot {
    let mut slots = table.segments[0].slots.iter().skip(1);
    let slot = slots.find(|slot| slot.name.load(Ordering::Relaxed) == EMPTY);
    slot.unwrap()
}

fn fill(slot: &Slot) {
    let Half(half) = half(9);
    slot.half[0].store(half[0], Ordering::Relaxed);
    slot.half[1].store(half[1], Ordering::Relaxed);
    slot.value.store(value(9).to_word(), Ordering::Relaxed);
}

#[test]
#[should_panic(expected = "half-made")]
fn a_name_before_the_rest_shows_a_slot_that_is_half_made() {
    beside(
        1,
        |table| {
            let slot = free(table);
            slot.name.store(OTHER.name(9), Ordering::Release);
            fill(slot);
        },
        sees_all_of_it,
    );
}

#[test]
#[should_panic(expected = "half-made")]
fn a_name_without_release_shows_a_slot_that_is_half_made() {
    beside(
        1,
        |table| {
            let slot = free(table);
            fill(slot);
            slot.name.store(OTHER.name(9), Ordering::Relaxed);
        },
        sees_all_of_it,
    );
}
