//! Base62 with the digits in ASCII order, so that text orders as the numbers do.
//!
//! Pure.

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const NOT_A_DIGIT: u8 = 0xff;
/// How many digits surely fit 64 bits.
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

/// Whether every byte is a digit. Looks at all of them whatever it finds.
pub(crate) fn is_digits(bytes: &[u8]) -> bool {
    // In a form that a compiler does for many bytes at once.
    let other = |b: u8| {
        let letter = (b | 0x20).wrapping_sub(b'a') < 26;
        let digit = b.wrapping_sub(b'0') < 10;
        u8::from(!(letter | digit))
    };
    bytes.iter().fold(0, |seen, &b| seen | other(b)) == 0
}

/// Writes `value` into all of `out`, most significant digit first, filled up with zeros.
pub(crate) fn encode(mut value: u128, out: &mut [u8]) {
    for digits in out.rchunks_mut(WORD) {
        let base = 62u128.pow(u32::try_from(digits.len()).unwrap_or_default());
        // Divided once for all ten digits: dividing 128 bits is slow.
        encode_word((value % base) as u64, digits);
        value /= base;
    }
    debug_assert_eq!(value, 0, "the field is wide enough for its type");
}

/// The same for a number of 64 bits.
pub(crate) fn encode_word(mut value: u64, out: &mut [u8]) {
    for slot in out.iter_mut().rev() {
        *slot = ALPHABET[(value % 62) as usize];
        value /= 62;
    }
}

/// Reads at most ten digits, which must be some.
pub(crate) fn decode_word(digits: &[u8]) -> u64 {
    digits.iter().fold(0, |value, &b| {
        let digit = u64::from(VALUE[b as usize]);
        u64::wrapping_mul(value, 62).wrapping_add(digit)
    })
}

/// Reads all of `digits`; `None` for a byte that is no digit or a number beyond 128 bits.
pub(crate) fn decode(digits: &[u8]) -> Option<u128> {
    let mut value = 0u128;
    let mut seen = 0;
    let first = digits.len() % WORD;
    let (head, rest) = digits.split_at(first);
    for word in [head].into_iter().chain(rest.chunks_exact(WORD)) {
        let mut part = 0u64;
        for &b in word {
            let digit = VALUE[b as usize];
            seen |= digit;
            part = part.wrapping_mul(62).wrapping_add(u64::from(digit));
        }
        let base = if word.len() == WORD { WORD_BASE } else { 1 };
        value = value.checked_mul(base)?.checked_add(u128::from(part))?;
    }
    (seen & 0x80 == 0).then_some(value)
}

/// Turns random bytes into digits without bias; `None` for a byte that has to be drawn again.
///
/// 248 is the largest multiple of 62 in a byte: taking more would favour the first digits.
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
        assert_eq!(decode(b"0-0"), None);
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
