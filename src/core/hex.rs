//! Hexadecimal text.
//!
//! Pure: no I/O and no clock. As a serde module, stores an array of bytes as it is, and shows it as text in JSON.

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Writes two lower-case digits for each byte.
pub(crate) fn write(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// Parses two digits for each byte. Returns `None` if a character is not a digit, or the last byte has only one.
pub(crate) fn parse(digits: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |pair: &[u8]| match pair {
        [high, low] => u8::try_from(digit(*high)? << 4 | digit(*low)?).ok(),
        _ => None,
    };
    digits.as_bytes().chunks(2).map(byte).collect()
}

/// Parses the digits of exactly `N` bytes.
pub(crate) fn parse_array<const N: usize>(digits: &str) -> Option<[u8; N]> {
    if digits.len() != 2 * N {
        return None;
    }
    parse(digits)?.try_into().ok()
}

struct Digits<'a>(&'a [u8]);

impl fmt::Display for Digits<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(self.0, f)
    }
}

pub(crate) fn serialize<S, const N: usize>(bytes: &[u8; N], to: S) -> Result<S::Ok, S::Error>
where
    S: Serializer,
    [u8; N]: Serialize,
{
    if to.is_human_readable() {
        to.collect_str(&Digits(bytes))
    } else {
        bytes.serialize(to)
    }
}

pub(crate) fn deserialize<'de, D, const N: usize>(from: D) -> Result<[u8; N], D::Error>
where
    D: Deserializer<'de>,
    [u8; N]: Deserialize<'de>,
{
    if from.is_human_readable() {
        let parsed = parse_array(&String::deserialize(from)?);
        parsed.ok_or_else(|| D::Error::custom(format_args!("must be {} hexadecimal digits", 2 * N)))
    } else {
        <[u8; N]>::deserialize(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_parse_to_the_bytes_that_they_show() {
        let bytes = [0x00, 0x7f, 0xff];
        let shown = Digits(&bytes).to_string();
        assert_eq!(shown, "007fff");
        assert_eq!(parse_array(&shown), Some(bytes));
        assert_eq!(parse_array(&shown.to_uppercase()), Some(bytes));
        for other in ["007ff", "007fff0", "007fff00", "00 7ff", "007f+f", "é0ff"] {
            assert_eq!(parse_array::<3>(other), None, "{other}");
        }
        assert_eq!(parse("0"), None);
        assert_eq!(parse(""), Some(Vec::new()));
    }
}
