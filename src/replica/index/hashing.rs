//! The keyed hash function that places keys in the table.

use std::hash::{BuildHasher, RandomState};

use super::table::Hash;

/// A hash function that is drawn at random from a universal family, once for each index.
///
/// Multiply-shift over two words, which is strongly universal (Thorup, "High speed hashing for integers and
/// strings", 2015, section 3.3). An attacker who chooses ids without knowing the draw causes no more
/// collisions than chance. No hash leaves the index.
#[derive(Clone, Copy)]
pub(super) struct Hashing {
    factors: [u128; 2],
    more: u128,
}

impl Default for Hashing {
    fn default() -> Self {
        let drawn = RandomState::new();
        Self::of_words(|number| drawn.hash_one(number))
    }
}

impl Hashing {
    pub(super) fn of_words(word: impl Fn(u8) -> u64) -> Self {
        let wide =
            |number: u8| u128::from(word(2 * number)) << 64 | u128::from(word(2 * number + 1));
        Self {
            factors: [wide(0), wide(1)],
            more: wide(2),
        }
    }

    /// Returns the hash of a 128-bit value.
    #[inline]
    pub(super) fn of(&self, value: u128) -> Hash {
        let words = [value as u64, (value >> 64) as u64].map(u128::from);
        let low = self.factors[0].wrapping_mul(words[0]);
        let high = self.factors[1].wrapping_mul(words[1]);
        let sum = low.wrapping_add(high).wrapping_add(self.more);
        Hash((sum >> 96) as u32)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Distributes 2^16 values over 2^8 buckets by the 8 uppermost bits of their hashes. Returns the number
    /// of values in the fullest bucket.
    fn fullest(values: impl Iterator<Item = u128>) -> usize {
        // Always use the same factors. A few functions of the family do not spread consecutive numbers well,
        // and a random draw could return one of them.
        let drawn = |number| {
            0x9e37_79b9_7f4a_7c15_u64
                .wrapping_mul(u64::from(number) * 2 + 7)
                .rotate_left(23)
        };
        let hashing = Hashing::of_words(drawn);
        let mut parts = [0; 256];
        values.for_each(|value| parts[hashing.of(value).0 as usize >> 24] += 1);
        parts.into_iter().max().unwrap_or_default()
    }

    #[test]
    fn values_in_a_row_are_spread_whichever_of_their_bits_count() {
        for shift in [0, 16, 48, 64, 80, 112] {
            let fullest = fullest((0..1 << 16).map(|value| value << shift));
            assert!(fullest < 1024, "{fullest} of 65536 in one of 256 parts");
        }
    }

    #[test]
    fn each_draw_hashes_in_its_own_way() {
        let drawn: HashSet<u32> = (0..100).map(|_| Hashing::default().of(7).0).collect();
        assert!(drawn.len() > 95, "{}", drawn.len());
    }
}
