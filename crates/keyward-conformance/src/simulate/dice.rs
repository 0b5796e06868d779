//! A deterministic random number generator, seeded once per run.

/// The SplitMix64 generator (Steele, Lea and Flood, OOPSLA 2014), which is small, fast, and random enough to
/// choose faults.
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Returns a number in `low..high`, or `low` if the range is empty.
    pub(super) const fn between(&mut self, low: u64, high: u64) -> u64 {
        let wide = high.saturating_sub(low);
        let draw = self.next();
        // The modulo makes some numbers slightly more likely. For the ranges in the simulation, the error is
        // below one in 2^40.
        if wide == 0 { low } else { low + draw % wide }
    }

    /// Returns true with a probability of `per_mille` / 1000.
    pub(super) const fn chance(&mut self, per_mille: u64) -> bool {
        self.between(0, 1000) < per_mille
    }

    /// Returns an index into a slice of this length.
    pub(super) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.between(0, len as u64)).unwrap_or_default()
    }

    pub(super) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let index = self.index(from.len());
        &from[index]
    }

    /// Returns a random number up to `most`. Half of the numbers are near `base`, a quarter near twice
    /// `base`, and so on.
    pub(super) fn tail(&mut self, base: u64, most: u64) -> u64 {
        let doublings = (self.next() | 1 << 20).trailing_zeros();
        let about = base << doublings.min(20);
        self.between(about / 2, about + 1).min(most)
    }
}

/// Mixes the bits of a number, so that similar numbers give unrelated results.
pub(super) const fn mix(number: u64) -> u64 {
    let mut z = number;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
