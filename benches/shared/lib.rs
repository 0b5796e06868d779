//! What the benchmarks of verification have in common: a store whose rows are made when they are
//! read, the floor that times are told by, and the table.
#![allow(
    missing_docs,
    clippy::missing_errors_doc,
    clippy::missing_panics_doc,
    reason = "for the benchmarks of this workspace alone"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "time is what is measured here, not what is decided by"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "what is counted here is far below 2^52"
)]
#![allow(
    clippy::unwrap_used,
    reason = "a measurement ends where it cannot go on"
)]

pub mod batch;
pub mod clock;
pub mod floor;
pub mod keys;
pub mod maker;
pub mod served;
pub mod store;
pub mod table;
pub mod turns;

/// SplitMix64 of `number`: what looks random and can be made again from its number.
pub const fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Numbers that look random, the same in every run.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mixed(self.0)
    }

    /// A number below `bound`. The bias of a remainder is far below what is measured here.
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
