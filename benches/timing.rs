//! Checks whether verification times depend on secrets.
//!
//! Inputs of two classes run in random order. Welch's t-test compares their times without the slowest tenth
//! (Reparaz, Balasch and Verbauwhede: Dude, is my code constant time?). A |t| above 4.5 shows that the
//! classes differ. To show that the method detects leaks, the run also measures a comparison that returns
//! early.
//!
//! `cargo bench --package keyward-benches --bench timing -- [--quick] [--json] [--only
//! compare,secret,unknown]`
//!
//! The run fails if a goal is missed.
#![allow(
    clippy::disallowed_methods,
    reason = "benchmarks read the machine's clock to measure, not to decide"
)]
#![allow(clippy::unwrap_used, reason = "a benchmark panics on failure")]
#![allow(
    clippy::cast_precision_loss,
    reason = "counts stay far below 2^52, which f64 represents exactly"
)]

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use keyward::KeyId;
use keyward::key::Digest;

use shared::keys::{BODY, KeyKind, Keys, WIDTH};
use shared::served::{BenchVerifier, TokenKind, need};
use shared::table::{BenchOptions, Goal, Table};
use shared::{Random, mixed};

/// The largest |t| at which two classes count as equal: 4.5, the convention of the method's authors.
const LIMIT: f64 = 4.5;
/// The number of inputs of each class: 1000.
const POOL: usize = 1000;
const KEPT: f64 = 0.9;

/// Pairs of inputs, one of each class. The inputs of class 0 are at even indices.
struct InputPool<T>(Vec<T>);

/// The result of a t-test between two classes.
struct TTest {
    t: f64,
    means: [f64; 2],
    kept: usize,
}

impl TTest {
    fn note(&self) -> String {
        let [first, second] = self.means;
        format!("{first:.2} : {second:.2} ns, {} samples kept", self.kept)
    }
}

impl<T: Copy> InputPool<T> {
    fn new(pairs: impl Iterator<Item = [T; 2]>) -> Self {
        Self(pairs.flatten().collect())
    }

    /// Times `work` on inputs of both classes in random order.
    fn compare(&self, samples: usize, mut work: impl FnMut(&T)) -> TTest {
        let mut random = Random(7);
        let mut times = Vec::with_capacity(samples);
        let mut input = self.0[0];
        // Runs a tenth more samples and discards the first ones, which warm caches and branch predictors.
        for sample in 0..samples + samples / 10 {
            // Both classes take the same branches and are read from the same address.
            let class = random.next() as usize & 1;
            let at = random.next() as usize % (self.0.len() / 2);
            input.clone_from(black_box(&self.0[2 * at + class]));
            let began = Instant::now();
            work(black_box(&input));
            let time = began.elapsed().as_nanos() as u64;
            if sample >= samples / 10 {
                times.push((time, class));
            }
        }
        welch(&mut times)
    }
}

fn welch(times: &mut [(u64, usize)]) -> TTest {
    times.sort_unstable_by_key(|&(time, _)| time);
    let slowest = times[(times.len() as f64 * KEPT) as usize].0;
    let kept = || times.iter().filter(|&&(time, _)| time <= slowest);
    let (mut counts, mut means) = ([0.0; 2], [0.0; 2]);
    for &(time, class) in kept() {
        counts[class] += 1.0;
        means[class] += time as f64;
    }
    (0..2).for_each(|class| means[class] /= counts[class]);
    let mut spread = [0.0; 2];
    for &(time, class) in kept() {
        spread[class] += (time as f64 - means[class]).powi(2);
    }
    let error = |class: usize| spread[class] / (counts[class] - 1.0) / counts[class];
    // If all times are equal, the error is 0. The minimum then makes t 0 instead of NaN.
    let error = (error(0) + error(1)).sqrt().max(f64::MIN_POSITIVE);
    TTest {
        t: (means[0] - means[1]) / error,
        means,
        kept: kept().count(),
    }
}

type Bytes = [u8; 32];

/// Returns pairs of digests. One differs from `stands` in its first byte, the other one in its last byte.
fn digests(stands: &Bytes) -> InputPool<Bytes> {
    let differing = |at: usize, by: usize| {
        let mut bytes = *stands;
        bytes[at] ^= 1 + (by % 255) as u8;
        bytes
    };
    InputPool::new((0..POOL).map(|by| [differing(0, by), differing(31, by)]))
}

/// A comparison with a timing leak: it returns at the first difference. Never inlined, so that the compiler
/// knows nothing about its input.
#[inline(never)]
fn leaky(first: &Bytes, second: &Bytes) -> bool {
    first
        .iter()
        .zip(second)
        .all(|(first, second)| first == second)
}

fn compare(samples: usize, table: &mut Table) {
    let mut stands = [0; 32];
    stands
        .chunks_mut(8)
        .zip(1..)
        .for_each(|(chunk, seed)| chunk.copy_from_slice(&mixed(seed).to_le_bytes()));
    let pool = digests(&stands);
    let of = Digest::from_bytes(stands);
    let verdict = pool.compare(samples, |bytes| {
        black_box(of == Digest::from_bytes(*bytes));
    });
    let line = "|t|, digests that differ first : last";
    table.add(line, verdict.t.abs(), Goal::AtMost(LIMIT), verdict.note());
    let verdict = pool.compare(samples, |bytes| {
        black_box(leaky(&stands, bytes));
    });
    let line = "|t|, the same compared with an early exit: must be seen";
    table.add(line, verdict.t.abs(), Goal::AtLeast(LIMIT), verdict.note());
}

type Text = [u8; WIDTH];

fn text(token: &str) -> Text {
    token.as_bytes().try_into().unwrap()
}

/// Returns the token with the secret's character at `place` replaced, and a valid checksum.
fn altered(token: &str, place: usize) -> Text {
    let mut bytes = token.as_bytes()[..WIDTH - 6].to_vec();
    let at = WIDTH - BODY + KeyId::LEN + place;
    bytes[at] = if bytes[at] == b'a' { b'b' } else { b'a' };
    let before = String::from_utf8(bytes).unwrap();
    let checksum = keyward::token::checksum(&before);
    text(&(before + &checksum))
}

fn verify(
    served: &BenchVerifier,
    pool: &InputPool<Text>,
    samples: usize,
    right: TokenKind,
) -> TTest {
    let need = need();
    for input in &pool.0 {
        let verdict = served.verifier.verify(input, &need).map(drop);
        assert!(right.right()(&verdict), "{verdict:?}");
    }
    pool.compare(samples, |input| {
        let _ = black_box(served.verifier.verify(input, &need));
    })
}

fn main() -> ExitCode {
    let asked = BenchOptions::read();
    let samples = if asked.quick { 100_000 } else { 1_000_000 };
    let mut table = Table::default();
    if asked.wants("compare") {
        compare(samples, &mut table);
    }
    let keys = POOL as u64;
    let served = BenchVerifier::load(Keys::new(KeyKind::Secret, keys), keys);
    let of = &served.keys;
    let mut random = Random(8);
    if asked.wants("secret") {
        let pair = |number| [0, 31].map(|place| altered(&of.token(number), place));
        let verdict = verify(
            &served,
            &InputPool::new((0..keys).map(pair)),
            samples,
            TokenKind::WrongSecret,
        );
        let line = "|t|, secrets that differ first : last";
        table.add(line, verdict.t.abs(), Goal::AtMost(LIMIT), verdict.note());
    }
    if asked.wants("unknown") {
        // The first id of a pair has the timestamp of an existing key, so both have the same first
        // characters. The second id is far from all keys.
        let mut near = |number: u64| text(&of.compose(of.stranger(number, random.next()), number));
        let pairs = (0..keys).map(|number| [near(number), near(number + (1 << 40))]);
        let verdict = verify(&served, &InputPool::new(pairs), samples, TokenKind::Unknown);
        let line = "|t|, unknown ids near a known one : far from all";
        table.add(line, verdict.t.abs(), Goal::AtMost(LIMIT), verdict.note());

        // This comparison cannot fail the run. Its result shows whether timing reveals to an attacker that an
        // id exists.
        let mut stranger = |number| text(&of.compose(of.stranger(number, random.next()), number));
        let pairs = (0..keys).map(|number| [altered(&of.token(number), 0), stranger(number)]);
        let pool = InputPool::new(pairs);
        let need = need();
        let verdict = pool.compare(samples, |input| {
            let _ = black_box(served.verifier.verify(input, &need));
        });
        let line = "|t|, a wrong secret : an unknown id (no goal)";
        table.add(line, verdict.t.abs(), None, verdict.note());
    }
    table.print(asked.json);
    if table.is_met() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
