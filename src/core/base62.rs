//! Base62 with the digits in ASCII order, so that the encoded text sorts like the numbers.
//!
//! Pure: no I/O and no clock.

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const NOT_A_DIGIT: u8 = 0xff;
/// 10 digits, the most that always fit in 64 bits.
const WORD: usize = 10;
const WORD_BASE: u128 = 62u128.pow(10);

const VALUE: [u8; 256] = {
    let mut table = [NOT_A_DIGIT; 256];
    let mut digit = 0;
    while digit < ALPHABET.len() {
        table[ALPHABET[digit] as usize] = digit as u8;
        digit += 1;
    }
    table
};

/// Returns whether every byte is a digit. Always reads all bytes.
#[inline]
pub(crate) fn is_digits<const N: usize>(bytes: &[u8; N]) -> bool {
    all(bytes, is_digit)
}

/// Returns the position of the first byte that is not a digit.
pub(crate) fn first_other(bytes: &[u8]) -> Option<usize> {
    first_other_than(bytes, is_digit)
}

#[inline]
fn is_digit(b: u8) -> bool {
    let letter = (b | 0x20).wrapping_sub(b'a') < 26;
    let digit = b.wrapping_sub(b'0') < 10;
    letter | digit
}

/// 16 bytes, the vector width of most processors.
const LANES: usize = 16;

/// Returns whether the predicate `is` accepts every byte. The loop has no early exit, so that the compiler
/// can vectorize it if the predicate has no branch.
#[inline]
fn all(bytes: &[u8], is: impl Fn(u8) -> bool) -> bool {
    let (whole, _) = bytes.as_chunks::<LANES>();
    let Some(last) = bytes.last_chunk::<LANES>() else {
        return bytes.iter().fold(true, |all, &b| all & is(b));
    };
    let mut marks = [0; LANES];
    // The last 16 bytes form a chunk that may overlap the previous chunk. This avoids a loop over single
    // bytes.
    for part in whole.iter().chain([last]) {
        for (mark, &b) in marks.iter_mut().zip(part) {
            *mark |= u8::from(!is(b));
        }
    }
    u128::from_ne_bytes(marks) == 0
}

/// Returns the position of the first byte that the predicate `is` rejects.
#[inline]
pub(crate) fn first_other_than(bytes: &[u8], is: impl Fn(u8) -> bool) -> Option<usize> {
    if all(bytes, &is) {
        return None;
    }
    let (whole, _) = bytes.as_chunks::<LANES>();
    for (at, part) in whole.iter().enumerate() {
        let marks = u128::from_le_bytes(part.map(|b| u8::from(!is(b))));
        if marks != 0 {
            return Some(at * LANES + marks.trailing_zeros() as usize / 8);
        }
    }
    bytes.iter().position(|&b| !is(b))
}

/// Fills `out` with the digits of `value`, most significant digit first, padded with zeros on the left.
pub(crate) fn encode(mut value: u128, out: &mut [u8]) {
    for digits in out.rchunks_mut(WORD) {
        let base = 62u128.pow(u32::try_from(digits.len()).unwrap_or_default());
        // Divides only once per ten digits, because a 128-bit division is slow.
        encode_word((value % base) as u64, digits);
        value /= base;
    }
    debug_assert_eq!(value, 0, "`out` has enough digits for every `value`");
}

/// Fills `out` with the digits of a 64-bit `value`, padded with zeros on the left.
pub(crate) fn encode_word(mut value: u64, out: &mut [u8]) {
    for slot in out.iter_mut().rev() {
        *slot = ALPHABET[(value % 62) as usize];
        value /= 62;
    }
}

/// Parses a number of at most ten digits. The caller has checked that every byte is a digit.
#[inline]
pub(crate) fn decode_word<const N: usize>(digits: &[u8; N]) -> u64 {
    const { assert!(N <= WORD, "more than ten digits might not fit in 64 bits") };
    let value = |b: u8| u64::from(VALUE[b as usize]);
    digits.iter().fold(0, |all, &b| {
        u64::wrapping_mul(all, 62).wrapping_add(value(b))
    })
}

/// Parses a number of 22 digits. The caller has checked that every byte is a digit. Returns `None` if the
/// number needs more than 128 bits.
#[inline]
pub(crate) fn decode(digits: &[u8; 22]) -> Option<u128> {
    let (high, low) = digits.split_first_chunk::<2>()?;
    let (middle, low) = low.split_first_chunk::<WORD>()?;
    let low = u128::from(decode_word::<WORD>(low.first_chunk()?));
    let rest = u128::from(decode_word(middle)) * WORD_BASE + low;
    let high = u128::from(decode_word(high));
    high.checked_mul(WORD_BASE * WORD_BASE)?.checked_add(rest)
}

/// Converts a random byte to a digit without bias. Returns `None` if another byte must be drawn.
///
/// Accepts only bytes below 248, the largest multiple of 62 in a byte. Larger bytes would make the first
/// eight digits more likely.
pub(crate) fn unbiased(random: u8) -> Option<u8> {
    (random < 248).then(|| ALPHABET[(random % 62) as usize])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_number_survives_the_round_trip(value: u128) {
            let mut text = [0; 22];
            encode(value, &mut text);
            prop_assert!(is_digits(&text));
            prop_assert_eq!(decode(&text), Some(value));
        }

        #[test]
        fn text_orders_as_numbers_do(a: u128, b: u128) {
            let (mut x, mut y) = ([0; 22], [0; 22]);
            encode(a, &mut x);
            encode(b, &mut y);
            prop_assert_eq!(a.cmp(&b), x.cmp(&y));
        }
    }

    #[test]
    fn a_number_beyond_128_bits_is_refused() {
        assert_eq!(decode(b"zzzzzzzzzzzzzzzzzzzzzz"), None);
        let mut text = [0; 22];
        encode(u128::MAX, &mut text);
        assert_eq!(decode(&text), Some(u128::MAX));
        text[21] += 1;
        assert_eq!(decode(&text), None);
    }

    #[test]
    fn one_byte_that_is_no_digit_is_seen_wherever_it_stands() {
        fn seen<const N: usize>() {
            for (at, b) in (0..N).flat_map(|at| (0..=255).map(move |b| (at, b))) {
                let mut text = [b'7'; N];
                text[at] = b;
                assert_eq!(
                    is_digits(&text),
                    ALPHABET.contains(&b),
                    "{b} at {at} of {N}"
                );
            }
        }
        seen::<5>();
        seen::<16>();
        seen::<22>();
        seen::<60>();
    }

    #[test]
    fn each_digit_is_drawn_equally_often() {
        let mut drawn = [0; 256];
        (0..=255)
            .filter_map(unbiased)
            .for_each(|digit| drawn[digit as usize] += 1);
        assert!(ALPHABET.iter().all(|&digit| drawn[digit as usize] == 4));
    }
}
