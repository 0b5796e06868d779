//! Code shared by the benchmarks: a store that computes its rows, the floor that times are divided by, and
//! the result table.
#![allow(
    missing_docs,
    clippy::missing_errors_doc,
    clippy::len_without_is_empty,
    clippy::missing_panics_doc,
    clippy::new_without_default,
    reason = "only the benchmarks of this workspace use this crate"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "benchmarks read the machine's clock to measure, not to decide"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "counts stay far below 2^52, which f64 represents exactly"
)]
#![allow(clippy::unwrap_used, reason = "a benchmark panics on failure")]

pub mod batch;
pub mod clock;
pub mod floor;
pub mod keys;
pub mod maker;
pub mod served;
pub mod store;
pub mod table;
pub mod turns;
pub mod zipf;

/// Returns the SplitMix64 hash of `number`, which is pseudo-random and reproducible.
pub const fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A generator of pseudo-random numbers, which are the same in every run.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mixed(self.0)
    }

    /// Returns a number below `bound`. The modulo bias is far below anything measured here.
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
