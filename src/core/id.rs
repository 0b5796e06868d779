//! Key ids: 128 bits that sort by creation time.
//!
//! Pure: no I/O and no clock.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::base62;
use super::invalid::{Invalid, Problem};
use super::time::Timestamp;

/// The public id of a key, shown in lists, logs and URLs. The id is not a secret.
///
/// 48 bits of milliseconds since the Unix epoch, then 80 random bits. Ids sort by creation time. So does
/// their printed form, which has 22 base62 characters.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct KeyId(u128);

impl KeyId {
    /// The length of a printed id: 22 characters.
    pub const LEN: usize = 22;

    /// Creates an id from the creation time and ten random bytes.
    #[must_use]
    pub fn from_parts(created: Timestamp, random: [u8; 10]) -> Self {
        let mut low = [0; 16];
        low[6..].copy_from_slice(&random);
        let millis = u128::from(created.as_micros().unsigned_abs() / 1000) & 0xffff_ffff_ffff;
        Self(millis << 80 | u128::from_be_bytes(low))
    }

    /// Returns the id as a number.
    #[must_use]
    pub const fn to_u128(self) -> u128 {
        self.0
    }

    /// Creates an id from the number that a store holds.
    #[must_use]
    pub const fn from_u128(value: u128) -> Self {
        Self(value)
    }

    pub(crate) fn to_digits(self) -> [u8; Self::LEN] {
        let mut digits = [0; Self::LEN];
        base62::encode(self.0, &mut digits);
        digits
    }

    /// Parses 22 base62 digits. `None` if the number does not fit in 128 bits.
    #[inline]
    pub(crate) fn from_digits(digits: &[u8; Self::LEN]) -> Option<Self> {
        base62::decode(digits).map(Self)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.to_digits();
        f.pad(std::str::from_utf8(&digits).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for KeyId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let expected = "22 characters of 0-9 A-Z a-z";
        let digits: Option<&[u8; Self::LEN]> = text.as_bytes().try_into().ok();
        digits
            .filter(|digits| base62::is_digits(digits))
            .and_then(Self::from_digits)
            .ok_or(Invalid::new("key id", Problem::Format { expected }))
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() {
            to.collect_str(self)
        } else {
            self.0.serialize(to)
        }
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        if from.is_human_readable() {
            String::deserialize(from)?
                .parse()
                .map_err(serde::de::Error::custom)
        } else {
            u128::deserialize(from).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_order_by_creation() {
        let at = |s| KeyId::from_parts(Timestamp::from_unix_seconds(s).unwrap(), [0xff; 10]);
        assert!(at(1_000) < at(1_001));
        assert!(at(1_000).to_string() < at(1_001).to_string());
    }

    #[test]
    fn an_id_is_exactly_22_digits() {
        let id = KeyId::from_u128(u128::MAX);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(
            "7n42DGM5Tflk9n8mt7Fhc8".parse::<KeyId>().is_err(),
            "one beyond the largest"
        );
        assert!("0".parse::<KeyId>().is_err());
    }
}
