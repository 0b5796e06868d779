//! Instants of wall-clock time, in microseconds.
//!
//! Pure: no I/O. An instant is a number, and only the `clock` module reads clocks.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::invalid::{Invalid, Problem};

/// An instant of wall-clock time: whole microseconds since the Unix epoch, 1970 to 9999.
///
/// Prints and parses as RFC 3339 in UTC.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Timestamp(i64);

impl Timestamp {
    /// 1970-01-01T00:00:00Z, earlier than any real instant.
    pub const UNIX_EPOCH: Self = Self(0);
    /// The last instant of the year 9999.
    pub const MAX: Self = Self(253_402_300_799_999_999);

    /// Returns the instant `seconds` whole seconds after the Unix epoch.
    ///
    /// # Errors
    ///
    /// [`Invalid`] outside the years 1970 to 9999.
    pub fn from_unix_seconds(seconds: i64) -> Result<Self, Invalid> {
        let max = Self::MAX.0 / 1_000_000;
        if (0..=max).contains(&seconds) {
            return Ok(Self(seconds * 1_000_000));
        }
        Err(Invalid::new(
            "time",
            Problem::OutOfRange {
                min: 0,
                max,
                actual: seconds,
            },
        ))
    }

    /// Returns the instant `micros` microseconds after the Unix epoch.
    ///
    /// # Errors
    ///
    /// [`Invalid`] outside the years 1970 to 9999.
    #[inline]
    pub fn from_micros(micros: i64) -> Result<Self, Invalid> {
        if (0..=Self::MAX.0).contains(&micros) {
            return Ok(Self(micros));
        }
        let problem = Problem::OutOfRange {
            min: 0,
            max: Self::MAX.0,
            actual: micros,
        };
        Err(Invalid::new("time", problem))
    }

    /// Returns the instant `micros` microseconds after the Unix epoch, clamped to the years 1970 to 9999.
    #[inline]
    #[must_use]
    pub fn clamped(micros: i64) -> Self {
        Self(micros.clamp(0, Self::MAX.0))
    }

    /// Returns the microseconds since the Unix epoch.
    #[must_use]
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Returns the instant `by` later, at most [`MAX`](Self::MAX).
    #[must_use]
    pub fn saturating_add(self, by: Duration) -> Self {
        let by = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(by).min(Self::MAX.0))
    }

    /// Returns the instant `by` earlier, at least [`UNIX_EPOCH`](Self::UNIX_EPOCH).
    #[must_use]
    pub fn saturating_sub(self, by: Duration) -> Self {
        let by = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_sub(by).max(0))
    }

    /// Returns the time from `earlier` to this instant; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0 - earlier.0).unwrap_or(0))
    }
}

impl TryFrom<OffsetDateTime> for Timestamp {
    type Error = Invalid;

    fn try_from(at: OffsetDateTime) -> Result<Self, Invalid> {
        let micros = at.unix_timestamp_nanos() / 1000;
        Self::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }
}

impl From<Timestamp> for OffsetDateTime {
    fn from(at: Timestamp) -> Self {
        Self::UNIX_EPOCH + time::Duration::microseconds(at.0)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = OffsetDateTime::from(*self)
            .format(&Rfc3339)
            .map_err(|_| fmt::Error)?;
        f.pad(&text)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Timestamp {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let expected = "an RFC 3339 date and time, such as 2026-01-31T12:00:00Z";
        OffsetDateTime::parse(text, &Rfc3339)
            .map_err(|_| Invalid::new("time", Problem::Format { expected }))?
            .try_into()
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() {
            to.collect_str(self)
        } else {
            self.0.serialize(to)
        }
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let parsed = if from.is_human_readable() {
            String::deserialize(from)?.parse()
        } else {
            Self::from_micros(i64::deserialize(from)?)
        };
        parsed.map_err(serde::de::Error::custom)
    }
}

/// Returns a duration of whole days of exactly 24 hours each.
#[must_use]
pub const fn days(days: u32) -> Duration {
    Duration::from_secs(days as u64 * 24 * 60 * 60)
}

/// Returns a duration of whole hours.
#[must_use]
pub const fn hours(hours: u32) -> Duration {
    Duration::from_secs(hours as u64 * 60 * 60)
}

/// Serializes durations as whole seconds, for policy files. Refuses a duration with a fraction of a second,
/// because the fraction would be lost.
pub(crate) mod seconds {
    use serde::ser::Error as _;

    use super::{Deserialize, Deserializer, Duration, Serializer};

    pub(crate) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(whole::<S>(value)?)
    }

    fn whole<S: Serializer>(value: &Duration) -> Result<u64, S::Error> {
        match value.subsec_nanos() {
            0 => Ok(value.as_secs()),
            _ => Err(S::Error::custom(format_args!(
                "{value:?} is not a whole number of seconds"
            ))),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_secs)
    }

    pub(crate) mod option {
        use super::{Deserialize, Deserializer, Duration, Serializer, whole};

        pub(crate) fn serialize<S: Serializer>(
            value: &Option<Duration>,
            to: S,
        ) -> Result<S::Ok, S::Error> {
            match value {
                Some(value) => to.serialize_some(&whole::<S>(value)?),
                None => to.serialize_none(),
            }
        }

        pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
            from: D,
        ) -> Result<Option<Duration>, D::Error> {
            Ok(Option::<u64>::deserialize(from)?.map(Duration::from_secs))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_1970_to_9999() {
        assert_eq!(Timestamp::MAX.to_string(), "9999-12-31T23:59:59.999999Z");
        assert_eq!(Timestamp::MAX.saturating_add(days(1)), Timestamp::MAX);
        assert_eq!(
            Timestamp::UNIX_EPOCH.saturating_sub(days(1)),
            Timestamp::UNIX_EPOCH
        );
        assert!(Timestamp::from_unix_seconds(-1).is_err());
        assert!(Timestamp::from_micros(i64::MAX).is_err());
    }

    #[test]
    fn text_survives_the_round_trip_and_is_utc() {
        let at: Timestamp = "2026-01-31T12:00:00.25+02:00".parse().unwrap();
        assert_eq!(at.to_string(), "2026-01-31T10:00:00.25Z");
        assert_eq!(at.to_string().parse(), Ok(at));
    }

    #[test]
    fn a_duration_between_instants_is_never_negative() {
        let at = Timestamp::from_unix_seconds(100).unwrap();
        assert_eq!(at.saturating_add(days(1)).since(at), days(1));
        assert_eq!(at.since(at.saturating_add(days(1))), Duration::ZERO);
    }
}
