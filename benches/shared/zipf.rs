//! Draws of keys by Zipf's law: few keys get most of the requests.

use crate::Random;

/// Zipf's law with exponent 1: the key of rank `k` is drawn with a probability proportional to `1 / k`.
#[derive(Clone, Debug)]
pub struct Zipf {
    /// The sum of the weights up to each rank.
    upto: Vec<f64>,
}

/// A prime. Ranks are multiplied by it, so that popular keys are not neighbours in the index.
const APART: u64 = 611_953;

impl Zipf {
    pub fn over(keys: u64) -> Self {
        assert!(!keys.is_multiple_of(APART), "every rank has its own key");
        let mut sum = 0.0;
        let weight = |rank: u64| {
            sum += 1.0 / rank as f64;
            sum
        };
        Self {
            upto: (1..=keys).map(weight).collect(),
        }
    }

    /// Returns the number of a key.
    pub fn draw(&self, random: &mut Random) -> u64 {
        let count = self.upto.len();
        // A fraction of 53 bits, as many as an f64 has.
        let fraction = (random.next() >> 11) as f64 / (1_u64 << 53) as f64;
        let place = fraction * self.upto[count - 1];
        let rank = self.upto.partition_point(|upto| *upto <= place);
        rank as u64 * APART % count as u64
    }
}
