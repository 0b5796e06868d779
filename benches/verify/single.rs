//! Measurements on one thread: the cost of each verdict, the size of the index, and the time to fill it.

use std::cell::Cell;
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use keyward::Clock;
use keyward::clocks::SystemClock;
use stats_alloc::Region;

use super::{HEAP, Workload, memory};
use shared::batch::Batch;
use shared::clock::{Elapsed, nanos, timed};
use shared::floor::HmacFloor;
use shared::keys::{KeyKind, Keys};
use shared::served::{BenchVerifier, TokenKind, need};
use shared::store::Feed;
use shared::table::{BenchOptions, Goal, Table};
use shared::turns::{Subject, cpu, ratio, take_turns, wall};
use shared::zipf::Zipf;
use shared::{Random, mixed};

fn against_floor(
    size: &Workload,
    mut subjects: Vec<Subject<'_>>,
    table: &mut Table,
) -> Vec<Vec<Elapsed>> {
    let taken = take_turns(size.rounds, &mut subjects);
    let floor = taken.last().unwrap();
    for (subject, own) in subjects.iter().zip(&taken) {
        let note = format!(
            "{:.0} ns : {:.0} ns, by the wall {:.0} ns",
            cpu(own),
            cpu(floor),
            wall(own)
        );
        let line = format!("{} : floor", subject.name);
        table.add(line, ratio(own, floor), subject.goal, note);
    }
    taken
}

fn presented<'a>(
    served: &'a BenchVerifier,
    among: u64,
    size: &Workload,
    what: TokenKind,
    goal: Option<Goal>,
) -> Subject<'a> {
    let count = size.batch;
    let need = need();
    let few = what.batch(&served.keys, among, 50, &mut Random(2));
    served.expect(&few, &need, what.right());
    Subject {
        name: what.name().to_owned(),
        goal,
        batch: Box::new(move |random| what.batch(&served.keys, among, count, random)),
        run: Box::new(move |batch| {
            let granted = served.run(batch, &need);
            let right = if what == TokenKind::Valid {
                batch.len()
            } else {
                0
            };
            assert_eq!(granted, right);
        }),
    }
}

/// The number of keys in a call of `verify_many`: 64.
const TOGETHER: usize = 64;

fn together<'a>(served: &'a BenchVerifier, keys: u64, size: &Workload) -> Subject<'a> {
    let (count, need) = (size.batch / TOGETHER * TOGETHER, need());
    Subject {
        name: format!("valid, {TOGETHER} at a time, {keys} keys"),
        goal: None,
        batch: Box::new(move |random| TokenKind::Valid.batch(&served.keys, keys, count, random)),
        run: Box::new(move |batch| {
            for first in (0..batch.len()).step_by(TOGETHER) {
                let texts: [&[u8]; TOGETHER] = std::array::from_fn(|at| batch.at(first + at));
                let verdicts = black_box(served.verifier.verify_many(&texts, &need));
                assert!(verdicts.iter().all(Result::is_ok));
            }
        }),
    }
}

/// The number of keys among which Zipf's law draws: a million.
const ZIPF_KEYS: u64 = 1_000_000;

fn zipf<'a>(served: &'a BenchVerifier, size: &Workload) -> Subject<'a> {
    let (count, need, law) = (size.batch, need(), Zipf::over(ZIPF_KEYS));
    Subject {
        name: format!("valid, Zipf(1.0) draws, {ZIPF_KEYS} keys"),
        goal: Some(Goal::AtMost(1.7)),
        batch: Box::new(move |random| {
            Batch::new((0..count).map(|_| served.keys.token(law.draw(random))))
        }),
        run: Box::new(move |batch| assert_eq!(served.run(batch, &need), batch.len())),
    }
}

/// Measures a valid key in indexes of growing size, the size of the index, and the time to fill it.
pub(crate) fn sizes(size: &Workload, asked: &BenchOptions, table: &mut Table) {
    for &(keys, goal) in size.keys {
        let (valid, zipfian, heap, start) = (
            asked.wants("valid"),
            asked.wants("zipf") && keys == ZIPF_KEYS,
            asked.wants("heap") && keys >= 100_000,
            asked.wants("start") && keys >= 100_000,
        );
        if !(valid || zipfian || heap || start) {
            continue;
        }
        eprintln!("{keys} keys");
        let made = start.then(|| {
            let served = BenchVerifier::empty(Keys::new(KeyKind::Secret, keys), keys, Feed::Mixed);
            timed(|| drain(&served)).0
        });
        let resident = resident_bytes();
        let served = BenchVerifier::empty(Keys::new(KeyKind::Secret, keys), keys, Feed::Mixed);
        let region = Region::new(HEAP);
        let (loaded, ()) = timed(|| served.sync());
        let change = region.change();
        let each = |total: f64| total / keys as f64;
        if heap {
            let live = change.bytes_allocated as f64 - change.bytes_deallocated as f64;
            let resident = resident_bytes() - resident;
            let note = format!(
                "{:.0} resident, {:.2} allocations",
                each(resident),
                each(change.allocations as f64 - change.deallocations as f64)
            );
            let line = format!("heap bytes a key, {keys} keys");
            let goal = (keys >= 10_000_000).then_some(Goal::AtMost(128.0));
            table.add(line, each(live), goal, note);
        }
        if let Some(made) = made {
            let note = format!(
                "{:.0} ns : {:.0} ns a key, {:.2} s",
                each(loaded.cpu),
                each(made.cpu),
                loaded.wall / 1e9
            );
            let line = format!("first sync of {keys} keys : making their rows");
            table.add(line, loaded.cpu / made.cpu, None, note);
        }
        if valid {
            let goal = Goal::AtMost(goal);
            let mut single = presented(&served, keys, size, TokenKind::Valid, Some(goal));
            single.name = format!("valid, {keys} keys");
            let together = together(&served, keys, size);
            let taken = against_floor(size, vec![single, together], table);
            let line = format!("{TOGETHER} at a time : one by one, {keys} keys");
            let note = format!("{:.0} ns : {:.0} ns", cpu(&taken[1]), cpu(&taken[0]));
            let goal = (keys >= 1_000_000).then_some(Goal::AtMost(0.6));
            table.add(line, ratio(&taken[1], &taken[0]), goal, note);
        }
        if zipfian {
            against_floor(size, vec![zipf(&served, size)], table);
        }
    }
}

/// A cache line, as much of a list as the processor loads at a time.
#[derive(Default)]
#[repr(align(64))]
struct Line([u64; 8]);

/// The bytes of slots for one key: a slot of 32 bytes, in a table that is two thirds full.
const SLOT_BYTES: u64 = 48;

/// Measures what no verification can avoid: the digest, a read of the clock after it, the two locked instructions
/// that keep the index in memory while a grant refers to it, and one random line of a table as large as the slots of
/// so many keys. The line is prefetched before the digest, in memory with huge pages, as in the index.
pub(crate) fn bound(size: &Workload, table: &mut Table) {
    const KEYS: u64 = 1_000;
    let keys = Keys::new(KeyKind::Secret, KEYS);
    let floor = HmacFloor::new();
    let (pinned, drawn) = (AtomicUsize::new(0), Cell::new(0));
    let (floor, pinned, drawn) = (&floor, &pinned, &drawn);
    let nothing = black_box(0);
    let batch =
        || Box::new(|random: &mut _| TokenKind::Valid.batch(&keys, KEYS, size.batch, random));
    let mut subjects = vec![Subject {
        name: "the digest and a read of the clock".to_owned(),
        goal: None,
        batch: batch(),
        run: Box::new(|batch| {
            // As in `HmacFloor::run`: the next position depends on the last result.
            let mut at = 0;
            while at < batch.len() {
                let mac = black_box(floor.mac(batch.id_and_secret(at)));
                black_box(SystemClock.read());
                at += 1 + (mac[0] as usize & nothing);
            }
        }),
    }];
    for &(keys, _) in size.keys {
        let lines = usize::try_from(keys * SLOT_BYTES / 64).unwrap();
        let lines = memory::list::<Line>(lines);
        subjects.push(Subject {
            name: format!("the same, two locked instructions, and a line of {keys} keys' slots"),
            goal: None,
            batch: batch(),
            run: Box::new(move |batch| {
                let (mut at, mut last) = (0, 0);
                while at < batch.len() {
                    // Other lines in each round, or they would be in a cache.
                    drawn.set(drawn.get() + 1);
                    let place = u128::from(mixed(drawn.get() ^ last)) * lines.len() as u128;
                    let line = &lines[(place >> 64) as usize];
                    memory::prefetch(line);
                    pinned.fetch_add(1, Ordering::AcqRel);
                    let mac = black_box(floor.mac(batch.id_and_secret(at)));
                    last = black_box(line).0[mac[0] as usize & 7];
                    black_box(SystemClock.read());
                    pinned.fetch_sub(1, Ordering::AcqRel);
                    at += 1 + (mac[0] as usize & nothing);
                }
            }),
        });
    }
    against_floor(size, subjects, table);
}

/// Reads and discards all rows.
fn drain(served: &BenchVerifier) {
    let mut after = None;
    loop {
        let page = served.store.page(after.as_ref(), 4096);
        black_box(&page.rows);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
}

/// Returns the resident memory of the process, in bytes.
fn resident_bytes() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0.0) * rustix::param::page_size() as f64
}

/// Measures refused verifications as ratios to granted ones, and the allocations of each.
pub(crate) fn refused(size: &Workload, asked: &BenchOptions, table: &mut Table) {
    let keys = size.typical;
    eprintln!("refused: {keys} keys");
    let served = BenchVerifier::secret(keys);
    if asked.wants("refused") {
        let goal = |what| match what {
            TokenKind::Malformed | TokenKind::BadChecksum | TokenKind::Foreign => {
                Some(Goal::AtMost(0.3))
            }
            TokenKind::Valid | TokenKind::WrongSecret | TokenKind::Unknown => None,
        };
        let subject = |what| presented(&served, keys, size, what, goal(what));
        let taken = against_floor(size, TokenKind::ALL.map(subject).into(), table);
        for (place, what) in TokenKind::ALL.iter().enumerate().skip(1).take(2) {
            let line = format!("{} : valid", what.name());
            let note = format!("{:.0} ns : {:.0} ns", cpu(&taken[place]), cpu(&taken[0]));
            let goal = Goal::AtMost(1.1);
            table.add(line, ratio(&taken[place], &taken[0]), goal, note);
        }
    }
    if asked.wants("allocations") {
        for what in TokenKind::ALL {
            let batch = what.batch(&served.keys, keys, 1_000, &mut Random(3));
            let need = need();
            // The first run is not counted, because it allocates the data that a need caches.
            served.run(&batch, &need);
            let region = Region::new(HEAP);
            black_box(served.run(&batch, &need));
            let change = region.change();
            let count = change.allocations + change.reallocations;
            let line = format!("allocations of a verification, {}", what.name());
            let each = count as f64 / batch.len() as f64;
            table.add(line, each, Goal::AtMost(0.0), format!("{count} of 1000"));
        }
    }
}

/// Measures imported keys, which are found by digest, and publishable keys.
pub(crate) fn kinds(size: &Workload, table: &mut Table) {
    let keys = size.typical;
    for (kind, name) in [
        (KeyKind::Imported, "imported"),
        (KeyKind::Publishable, "publishable"),
    ] {
        eprintln!("{name}: {keys} keys");
        let began = Instant::now();
        let served = BenchVerifier::load(Keys::new(kind, keys), keys);
        eprintln!("  loaded in {:.1} s", nanos(began.elapsed()) / 1e9);
        let width = served.keys.token(0).len();
        let need = need().or_publishable();
        let count = size.batch;
        let subject = Subject {
            name: format!("{name} ({width} bytes), {keys} keys"),
            goal: None,
            batch: Box::new(|random| Batch::valid(&served.keys, keys, count, random)),
            run: Box::new(|batch| assert_eq!(served.run(batch, &need), batch.len())),
        };
        against_floor(size, vec![subject], table);
    }
}
