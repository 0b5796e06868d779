//! Counts the instructions of a verification. `.ci/instructions` runs this program under callgrind, which
//! counts only instructions inside [`counted`].
//!
//! `cargo bench --package keyward-benches --bench instructions -- --what valid --count 1000`
#![allow(clippy::unwrap_used, reason = "a benchmark panics on failure")]

use std::sync::Arc;
use std::time::Duration;

use keyward::{Clock, Timestamp};

use shared::Random;
use shared::floor::HmacFloor;
use shared::keys::{KeyKind, Keys};
use shared::served::{BenchVerifier, TokenKind, need};
use shared::store::Feed;

const KEYS: u64 = 20_000;

/// A clock with a fixed time.
///
/// Reading the system time would add to the count. Also, `SystemClock` does not start under Valgrind, which
/// hides the vDSO, the page for reading the time without a system call.
#[derive(Debug)]
struct FixedClock(Timestamp);

impl Clock for FixedClock {
    fn now(&self) -> Timestamp {
        self.0
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(1)
    }
}

/// Runs `work` inside a function that callgrind can find by its name. Never inlined, so that the function
/// keeps its name.
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
            // `cargo bench` passes this argument to every benchmark.
            "--bench" => {}
            other => panic!("unknown argument {other}"),
        }
    }
    let keys = Keys::new(KeyKind::Secret, KEYS);
    let clock = Arc::new(FixedClock("2026-01-01T00:00:00Z".parse().unwrap()));
    let served = BenchVerifier::empty_at(keys, KEYS, Feed::Mixed, clock);
    served.sync();
    let mut random = Random(9);
    if what == "floor" {
        let batch = TokenKind::Valid.batch(&served.keys, KEYS, count, &mut random);
        let floor = HmacFloor::new();
        return counted(&|| floor.run(&batch));
    }
    let presented = TokenKind::ALL
        .into_iter()
        .find(|presented| presented.name().replace(' ', "-") == what);
    let presented = presented.unwrap_or_else(|| panic!("unknown work {what}"));
    let batch = presented.batch(&served.keys, KEYS, count, &mut random);
    let need = need();
    served.expect(&batch, &need, presented.right());
    // The first run includes one-time work, such as filling caches.
    let granted = served.run(&batch, &need);
    assert_eq!(granted > 0, presented == TokenKind::Valid);
    counted(&|| {
        std::hint::black_box(served.run(&batch, &need));
    });
}
