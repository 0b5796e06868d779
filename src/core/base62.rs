//! Base62 with the digits in ASCII order, so that the encoded text sorts like the numbers.
//!
//! Pure: no I/O and no clock.

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// 10 digits, the most that always fit in 64 bits.
const WORD: usize = 10;
/// 8 digits, as many as one 64-bit word has bytes.
const EIGHT: usize = 8;
const EIGHT_BASE: u128 = 62u128.pow(8);

/// Returns a word with this byte in each of its eight places.
const fn each(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; EIGHT])
}

/// The uppermost bit of each byte, with which [`digits`] and [`visible`] mark the bytes that they accept.
const MARKS: u64 = each(0x80);

/// Marks the bytes from `first` to `last` in a word of eight ASCII characters.
#[inline]
const fn between(first: u8, last: u8, word: u64) -> u64 {
    // The first sum carries into the uppermost bit for bytes from `first` on, and the second one for bytes
    // after `last`.
    word.wrapping_add(each(0x80 - first)) ^ word.wrapping_add(each(0x7f - last))
}

/// Marks the digits in a word of eight ASCII characters.
#[inline]
pub(crate) const fn digits(word: u64) -> u64 {
    between(b'0', b'9', word) | between(b'a', b'z', word | each(0x20))
}

/// Marks the visible characters in a word of eight ASCII characters.
#[inline]
pub(crate) const fn visible(word: u64) -> u64 {
    between(b'!', b'~', word)
}

/// Returns whether every byte is a digit. Always reads all bytes.
#[inline]
pub(crate) fn is_digits<const N: usize>(bytes: &[u8; N]) -> bool {
    all(bytes, digits)
}

/// Returns whether `accepted` marks every byte. Always reads all bytes.
#[inline]
pub(crate) fn all(bytes: &[u8], accepted: impl Fn(u64) -> u64) -> bool {
    let (whole, _) = bytes.as_chunks::<EIGHT>();
    let Some(last) = bytes.last_chunk::<EIGHT>() else {
        return first_other_than(bytes, accepted).is_none();
    };
    let take = |(in_all, in_any), part: &[u8; EIGHT]| {
        let word = u64::from_le_bytes(*part);
        (in_all & accepted(word), in_any | word)
    };
    let whole = whole.iter().fold((MARKS, 0), take);
    // The last eight bytes may overlap the ones before. This avoids a loop over single bytes.
    let (in_all, in_any) = take(whole, last);
    // A byte that is not ASCII has its uppermost bit set. The marks beside it may be wrong.
    in_all & !in_any & MARKS == MARKS
}

/// Returns the position of the first byte that is not a digit.
pub(crate) fn first_other(bytes: &[u8]) -> Option<usize> {
    first_other_than(bytes, digits)
}

/// Returns the position of the first byte that `accepted` does not mark. `accepted` must mark `0`.
#[inline]
pub(crate) fn first_other_than(bytes: &[u8], accepted: impl Fn(u64) -> u64) -> Option<usize> {
    let first = |part: [u8; EIGHT]| {
        let word = u64::from_le_bytes(part);
        let others = (!accepted(word & !MARKS) | word) & MARKS;
        (others != 0).then(|| others.trailing_zeros() as usize / EIGHT)
    };
    let (whole, rest) = bytes.as_chunks::<EIGHT>();
    for (at, part) in whole.iter().enumerate() {
        if let Some(inside) = first(*part) {
            return Some(at * EIGHT + inside);
        }
    }
    let mut padded = [b'0'; EIGHT];
    padded[..rest.len()].copy_from_slice(rest);
    first(padded).map(|inside| whole.len() * EIGHT + inside)
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

/// Parses a number of at most eight digits. The caller has checked that every byte is a digit.
#[inline]
pub(crate) fn decode_word<const N: usize>(digits: &[u8; N]) -> u64 {
    const { assert!(N <= EIGHT, "a word has eight bytes") };
    let mut padded = [b'0'; EIGHT];
    padded[EIGHT - N..].copy_from_slice(digits);
    // All eight bytes are computed in one word. The first digit, which counts most, is the lowest byte.
    let text = u64::from_le_bytes(padded);
    // ASCII has seven characters between `9` and `A`, and six between `Z` and `a`. Letters have bit 6 set, and
    // small letters have bit 5 set too.
    let letters = text >> 6 & each(1);
    let small = text >> 5 & letters;
    let values = text
        .wrapping_sub(each(b'0'))
        .wrapping_sub(letters * 7)
        .wrapping_sub(small * 6);
    // Combines neighbours: digits to pairs, pairs to fours, and fours to the number.
    let combine = |parts: u64, base: u64, mask: u64, bits: u32| {
        let first = (parts & mask).wrapping_mul(base);
        first.wrapping_add(parts >> bits & mask)
    };
    let pairs = combine(values, 62, 0x00ff_00ff_00ff_00ff, 8);
    let fours = combine(pairs, 62 * 62, 0x0000_ffff_0000_ffff, 16);
    combine(fours, 62 * 62 * 62 * 62, 0xffff_ffff, 32)
}

/// Parses a number of 22 digits. The caller has checked that every byte is a digit. Returns `None` if the
/// number needs more than 128 bits.
#[inline]
pub(crate) fn decode(digits: &[u8; 22]) -> Option<u128> {
    let (high, rest) = digits.split_first_chunk::<6>()?;
    let (middle, low) = rest.split_first_chunk::<EIGHT>()?;
    let low = u128::from(decode_word::<EIGHT>(low.first_chunk()?));
    let rest = u128::from(decode_word(middle)) * EIGHT_BASE + low;
    let high = u128::from(decode_word(high));
    high.checked_mul(EIGHT_BASE * EIGHT_BASE)?.checked_add(rest)
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
        fn digits_count_by_their_place(text in "[0-9A-Za-z]{8}") {
            let place = |b: u8| ALPHABET.iter().position(|&digit| digit == b).unwrap() as u64;
            let one_by_one = text.bytes().fold(0, |all, b| all * 62 + place(b));
            let text: &[u8; 8] = text.as_bytes().try_into().unwrap();
            prop_assert_eq!(decode_word(text), one_by_one);
            let last = text.last_chunk::<6>().unwrap();
            prop_assert_eq!(decode_word(last), one_by_one % 62u64.pow(6));
        }

        #[test]
        fn the_first_byte_that_is_no_digit_is_found(bytes in prop::collection::vec(any::<u8>(), 0..80), from in 0usize..80) {
            // Without digits at the start, the first bytes would nearly always decide.
            let mut bytes = bytes;
            let len = bytes.len();
            bytes[..from.min(len)].fill(b'7');
            let first = bytes.iter().position(|b| !b.is_ascii_alphanumeric());
            prop_assert_eq!(first_other(&bytes), first);
            prop_assert_eq!(all(&bytes, digits), first.is_none());
            let first = bytes.iter().position(|b| !b.is_ascii_graphic());
            prop_assert_eq!(first_other_than(&bytes, visible), first);
            prop_assert_eq!(all(&bytes, visible), first.is_none());
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
