//! Loom tests of the table, under every interleaving of its writer and a reader.

use loom::thread;

use super::super::under_loom::{KEY, digest_prefix, explore, find, table, value};
use super::*;

/// A hash whose first bit differs from that of [`KEY`]. So if the segment is split, the two hashes go to
/// different segments.
const OTHER: Hash = Hash(0x4000_0001);

/// Runs `write` on a table of `keys` keys. At the same time, runs `read` on a directory that was taken before
/// the change.
fn concurrently(keys: u32, write: fn(&mut Table), read: fn(&Directory)) {
    explore(move || {
        let mut table = table(keys);
        let directory = table.directory();
        let reader = thread::spawn(move || read(&directory));
        write(&mut table);
        reader.join().unwrap();
    });
}

fn finds_one_of_two(directory: &Directory) {
    let found =
        find(directory, KEY, digest_prefix(1)).or_else(|| find(directory, KEY, digest_prefix(2)));
    assert!(found.is_some(), "neither");
    assert_eq!(found.map(|found| found.row), Some(1));
}

fn has_candidate(directory: &Directory) {
    assert!(
        directory.probe(KEY).candidates().next().is_some(),
        "no slot"
    );
}

fn replace(table: &mut Table) {
    table.replace(KEY, 1, digest_prefix(2), value(2), || {});
}

#[test]
fn a_key_whose_digest_is_replaced_is_found_by_one_of_the_two() {
    concurrently(1, replace, finds_one_of_two);
}

#[test]
fn a_key_whose_digest_is_replaced_always_has_a_slot() {
    concurrently(1, replace, has_candidate);
}

#[test]
fn a_key_whose_digest_is_replaced_in_a_full_segment_is_found() {
    concurrently(3, replace, finds_one_of_two);
    concurrently(3, replace, has_candidate);
}

#[test]
fn a_key_whose_digest_is_replaced_twice_is_found_by_one_of_three() {
    concurrently(
        1,
        |table| {
            table.replace(KEY, 1, digest_prefix(2), value(2), || {});
            table.replace(KEY, 1, digest_prefix(3), value(3), || {});
        },
        |directory| {
            let mut found = (1..=3).map(|own| find(directory, KEY, digest_prefix(own)));
            assert!(found.any(|found| found.is_some()));
        },
    );
}

/// Broken on purpose: removes the old slot before it inserts the new slot. In between, a reader finds
/// neither.
fn clear_and_replace(table: &mut Table) {
    let slot = table.slot(KEY, 1).unwrap();
    slot.tag.store(GONE, Ordering::Release);
    table.insert(KEY, 1, digest_prefix(2), value(2));
}

#[test]
#[should_panic(expected = "neither")]
fn removing_the_old_slot_first_leaves_neither_slot() {
    concurrently(1, clear_and_replace, finds_one_of_two);
}

#[test]
#[should_panic(expected = "no slot")]
fn removing_the_old_slot_first_leaves_no_slot() {
    concurrently(1, clear_and_replace, has_candidate);
}

/// Broken on purpose: the old slot is removed without Release. So a reader may see the removal, but not the
/// new slot that was inserted before it.
#[test]
#[should_panic(expected = "neither")]
fn removing_the_old_slot_without_release_leaves_neither_slot() {
    concurrently(
        1,
        |table| {
            table.insert(KEY, 1, digest_prefix(2), value(2));
            let slot = table.slot(KEY, 1).unwrap();
            slot.tag.store(GONE, Ordering::Relaxed);
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
        let expected = Some(FoundSlot {
            row,
            value: value(row),
        });
        assert_eq!(
            find(directory, hash, digest_prefix(row as u8)),
            expected,
            "lost"
        );
    }
}

#[test]
fn all_keys_are_found_while_a_segment_grows() {
    concurrently(
        3,
        |table| table.insert(OTHER, 9, digest_prefix(9), value(9)),
        finds_all_three,
    );
}

#[test]
fn all_keys_are_found_while_a_segment_is_split() {
    concurrently(
        6,
        |table| {
            table.insert(OTHER, 9, digest_prefix(9), value(9));
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
    concurrently(
        3,
        |table| {
            for row in 9..13 {
                table.insert(Hash(row << 28), row, digest_prefix(row as u8), value(row));
            }
            assert_eq!(table.segments(), 2);
        },
        |directory| finds_rows(directory, &[(KEY, 1), (Hash(2 << 29), 2)]),
    );
}

#[test]
#[should_panic(expected = "lost")]
fn a_successor_that_is_linked_before_it_is_filled_loses_keys() {
    concurrently(
        3,
        |table| {
            let full = &table.segments[0];
            let larger = Arc::new(TableSegment::new(0, 8));
            let _ = full.next.set(Successor::Larger(larger.clone()));
            for (slot, tag) in full.run(KEY) {
                larger.insert(
                    tag,
                    slot.digest_prefix(),
                    slot.value.load(Ordering::Relaxed),
                );
            }
        },
        finds_all_three,
    );
}

/// Checks that a reader that finds [`OTHER`] by its tag also sees the rest of the slot.
fn sees_the_whole_slot(directory: &Directory) {
    for found in directory.probe(OTHER).candidates() {
        assert!([value(9), value(10)].contains(&found.value), "half-written");
    }
    match directory.probe(OTHER).search(digest_prefix(9)) {
        Search::Match(found) => {
            assert_eq!(found.row, 9);
            assert!([value(9), value(10)].contains(&found.value), "half-written");
        }
        Search::NoMatch(_) => panic!("half-written"),
        Search::Nothing => {}
    }
}

#[test]
fn a_reader_that_finds_a_tag_sees_the_whole_slot() {
    concurrently(
        1,
        |table| {
            table.insert(OTHER, 9, digest_prefix(9), value(9));
            table.set_value(OTHER, 9, value(10));
        },
        sees_the_whole_slot,
    );
}

#[test]
fn a_reader_that_finds_a_tag_in_a_grown_segment_sees_the_whole_slot() {
    concurrently(
        3,
        |table| {
            table.insert(OTHER, 9, digest_prefix(9), value(9));
            table.set_value(OTHER, 9, value(10));
        },
        sees_the_whole_slot,
    );
}

fn free(table: &Table) -> &TableSlot {
    let mut slots = table.segments[0].slots.iter().skip(1);
    let slot = slots.find(|slot| slot.tag.load(Ordering::Relaxed) == EMPTY);
    slot.unwrap()
}

fn fill(slot: &TableSlot) {
    let DigestPrefix(digest_prefix) = digest_prefix(9);
    slot.digest_prefix[0].store(digest_prefix[0], Ordering::Relaxed);
    slot.digest_prefix[1].store(digest_prefix[1], Ordering::Relaxed);
    slot.value.store(value(9).to_word(), Ordering::Relaxed);
}

#[test]
#[should_panic(expected = "half-written")]
fn a_tag_stored_before_the_rest_shows_a_half_written_slot() {
    concurrently(
        1,
        |table| {
            let slot = free(table);
            slot.tag.store(OTHER.tag(9), Ordering::Release);
            fill(slot);
        },
        sees_the_whole_slot,
    );
}

#[test]
#[should_panic(expected = "half-written")]
fn a_tag_stored_without_release_shows_a_half_written_slot() {
    concurrently(
        1,
        |table| {
            let slot = free(table);
            fill(slot);
            slot.tag.store(OTHER.tag(9), Ordering::Relaxed);
        },
        sees_the_whole_slot,
    );
}
