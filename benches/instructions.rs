//! Work whose instructions are counted: `.ci/instructions` runs it under callgrind, which counts only
//! instructions inside [`counted`].
//!
//! `cargo bench --package keyward-benches --bench instructions -- --what valid --count 1000`
#![allow(clippy::unwrap_used, reason = "a benchmark panics on failure")]

use std::sync::Arc;
use std::time::Duration;

use keyward::{Clock, Timestamp};

use shared::Random;
use shared::floor::Floor;
use shared::keys::{Keys, Kind};
use shared::served::{Presented, Served, need};
use shared::store::Feed;

const KEYS: u64 = 20_000;

/// A clock with a fixed time, so that the machine's own clock is not counted. Valgrind hides the vDSO, the
/// page that lets a program read the time without a system call, and `SystemClock` does not start without it.
#[derive(Debug)]
struct Still(Timestamp);

impl Clock for Still {
    fn now(&self) -> Timestamp {
        self.0
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(1)
    }
}

/// Runs the work under a name that callgrind finds. Never inlined, so that the symbol exists.
#[inline(never)]
fn counted(work: &dyn Fn()) {
    work();
}

fn main() {
    let (mut what, mut count) = ("valid".to_owned(), 1000);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--what" => what = arguments.next().unwrap(),
            "--count" => count = arguments.next().unwrap().parse().unwrap(),
            // Passed by cargo.
            "--bench" => {}
            other => panic!("unknown argument {other}"),
        }
    }
    let keys = Keys::new(Kind::Secret, KEYS);
    let clock = Arc::new(Still("2026-01-01T00:00:00Z".parse().unwrap()));
    let served = Served::empty_at(keys, KEYS, Feed::Mixed, clock);
    served.sync();
    let mut random = Random(9);
    if what == "floor" {
        let batch = Presented::Valid.batch(&served.keys, KEYS, count, &mut random);
        let floor = Floor::new();
        return counted(&|| floor.run(&batch));
    }
    let presented = Presented::ALL
        .into_iter()
        .find(|presented| presented.name().replace(' ', "-") == what);
    let presented = presented.unwrap_or_else(|| panic!("nothing is called {what}"));
    let batch = presented.batch(&served.keys, KEYS, count, &mut random);
    let need = need();
    served.expect(&batch, &need, presented.right());
    // The first run does the one-time work of threads and caches.
    let granted = served.run(&batch, &need);
    assert_eq!(granted > 0, presented == Presented::Valid);
    counted(&|| {
        std::hint::black_box(served.run(&batch, &need));
    });
}
