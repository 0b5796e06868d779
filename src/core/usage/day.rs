//! The counts of a key on one day, and the packed form in which stores keep them.

use std::fmt;

use time::{Date, Duration};

use super::outcome::UseOutcome;
use crate::core::time::Timestamp;

/// 24 hours, in UTC.
pub const HOURS_PER_DAY: usize = 24;

/// A day in UTC, from 1970 to 9999. Prints as an ISO 8601 date, such as `2026-01-31`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Day(u32);

const MICROS_PER_DAY: i64 = 24 * 60 * 60 * 1_000_000;

impl Day {
    /// 1970-01-01, the first day.
    pub const FIRST: Self = Self(0);
    /// 9999-12-31, the last day.
    pub const LAST: Self = Self((Timestamp::MAX.as_micros() / MICROS_PER_DAY) as u32);

    /// Returns the day of an instant.
    #[must_use]
    pub const fn of(at: Timestamp) -> Self {
        Self((at.as_micros() / MICROS_PER_DAY) as u32)
    }

    /// Returns the day with this number: the number of days since 1970-01-01. `None` after the year 9999.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Some(Self(number)).filter(|day| *day <= Self::LAST)
    }

    /// Returns the number of days since 1970-01-01.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// Returns the first instant of the day.
    #[must_use]
    pub fn start(self) -> Timestamp {
        Timestamp::clamped(i64::from(self.0) * MICROS_PER_DAY)
    }

    /// Returns the day `days` earlier, or the first day.
    #[must_use]
    pub const fn saturating_sub(self, days: u32) -> Self {
        Self(self.0.saturating_sub(days))
    }

    /// Returns the hour of an instant in its day, 0 to 23 in UTC.
    #[must_use]
    pub const fn hour_of(at: Timestamp) -> u8 {
        (at.as_micros() % MICROS_PER_DAY / (60 * 60 * 1_000_000)) as u8
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let day = Date::from_ordinal_date(1970, 1).ok();
        let day = day.and_then(|first| first.checked_add(Duration::days(i64::from(self.0))));
        match day {
            Some(day) => {
                let (year, month, day) = day.to_calendar_date();
                write!(f, "{year:04}-{:02}-{day:02}", u8::from(month))
            }
            None => write!(f, "day {}", self.0),
        }
    }
}

/// The only version of the packed form.
const VERSION: u8 = 1;

/// The counts of a key on one day in UTC, by outcome and hour.
///
/// Also counts the outcomes that a later version of this crate added, under their codes. So an older node that adds to
/// a row loses nothing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DayCounts(
    /// By code, in order.
    Vec<(u8, [u64; HOURS_PER_DAY])>,
);

/// The reason why bytes are not the packed form of a day's counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DayError {
    /// A later version of this crate wrote the row.
    #[error(
        "counts of a day have version {found}, this build reads version {VERSION}: upgrade this node"
    )]
    Version {
        /// The version of the row.
        found: u8,
    },
    /// The bytes are damaged.
    #[error("counts of a day are damaged at byte {position}")]
    Damaged {
        /// The position of the first byte that cannot be read.
        position: usize,
    },
}

impl DayCounts {
    /// Adds `count` uses in `hour`, which is 0 to 23 in UTC. A later hour counts as 23. Sums stop at [`u64::MAX`].
    pub fn add(&mut self, hour: u8, outcome: UseOutcome, count: u64) {
        self.add_code(outcome.code(), hour, count);
    }

    fn add_code(&mut self, code: u8, hour: u8, count: u64) {
        if count > 0 {
            let place = match self.place(code) {
                Ok(place) => place,
                Err(place) => {
                    self.0.insert(place, (code, [0; HOURS_PER_DAY]));
                    place
                }
            };
            let own = &mut self.0[place].1[usize::from(hour).min(HOURS_PER_DAY - 1)];
            *own = own.saturating_add(count);
        }
    }

    /// Adds all counts of `other`, which are of the same day.
    pub fn merge(&mut self, other: &Self) {
        for (code, hours) in &other.0 {
            for (hour, count) in (0..).zip(hours) {
                self.add_code(*code, hour, *count);
            }
        }
    }

    /// Returns the counts of one outcome, by hour.
    #[must_use]
    pub fn hours(&self, outcome: UseOutcome) -> [u64; HOURS_PER_DAY] {
        let place = self.place(outcome.code()).ok();
        place.map_or([0; HOURS_PER_DAY], |place| self.0[place].1)
    }

    /// Returns the place of an outcome in the list, or the place where it belongs.
    fn place(&self, code: u8) -> Result<usize, usize> {
        self.0.binary_search_by_key(&code, |(own, _)| *own)
    }

    /// Returns the count of one outcome on the whole day.
    #[must_use]
    pub fn count(&self, outcome: UseOutcome) -> u64 {
        sum(&self.hours(outcome))
    }

    /// Returns the count of the outcomes that this build does not know, on the whole day.
    #[must_use]
    pub fn unknown(&self) -> u64 {
        let unknown = self.0.iter();
        let unknown = unknown.filter(|(code, _)| UseOutcome::of_code(*code).is_none());
        unknown.fold(0, |all, (_, hours)| all.saturating_add(sum(hours)))
    }

    /// Returns the count of all outcomes on the whole day, including [`unknown`](Self::unknown) ones.
    #[must_use]
    pub fn total(&self) -> u64 {
        let sums = self.0.iter().map(|(_, hours)| sum(hours));
        sums.fold(0, u64::saturating_add)
    }

    /// Returns the packed form: a version, and then the code of each outcome with a count, a bit for each hour with a
    /// count, and these counts. A day with uses of one outcome in one hour takes 6 bytes, up to 127 uses.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        for (code, hours) in &self.0 {
            let used = || (0..).zip(hours).filter(|(_, count)| **count > 0);
            let mask = used().fold(0_u32, |mask, (hour, _)| mask | 1 << hour);
            bytes.push(*code);
            bytes.extend_from_slice(&mask.to_le_bytes()[..3]);
            used().for_each(|(_, count)| push_varint(&mut bytes, *count));
        }
        bytes
    }

    /// Parses the packed form. Accepts only what [`to_bytes`](Self::to_bytes) returns for some counts. A form that was
    /// cut off behind an outcome is the form of fewer counts, so a store needs a checksum.
    ///
    /// # Errors
    ///
    /// [`DayError`] for a later version, or damaged bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DayError> {
        let mut rest = Rest { bytes, position: 0 };
        match rest.byte()? {
            0 => return Err(DayError::Damaged { position: 0 }),
            VERSION => {}
            found => return Err(DayError::Version { found }),
        }
        let mut counts = Self::default();
        while rest.position < bytes.len() {
            let start = rest.damaged();
            let code = rest.byte()?;
            let mask = u32::from_le_bytes([rest.byte()?, rest.byte()?, rest.byte()?, 0]);
            let is_next = counts.0.last().is_none_or(|(last, _)| *last < code);
            if mask == 0 || !is_next {
                return Err(start);
            }
            let mut hours = [0; HOURS_PER_DAY];
            for (hour, count) in hours.iter_mut().enumerate() {
                if mask >> hour & 1 == 1 {
                    *count = rest.varint()?;
                }
            }
            counts.0.push((code, hours));
        }
        Ok(counts)
    }
}

fn sum(hours: &[u64; HOURS_PER_DAY]) -> u64 {
    hours.iter().fold(0, |all, own| all.saturating_add(*own))
}

/// Appends a number in groups of seven bits, the lowest group first (LEB128).
fn push_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// The bytes that were not read yet.
struct Rest<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl Rest<'_> {
    const fn damaged(&self) -> DayError {
        DayError::Damaged {
            position: self.position,
        }
    }

    fn byte(&mut self) -> Result<u8, DayError> {
        let byte = self.bytes.get(self.position).ok_or(self.damaged())?;
        self.position += 1;
        Ok(*byte)
    }

    /// Reads a count, which is never zero and has no group too many.
    fn varint(&mut self) -> Result<u64, DayError> {
        let start = self.damaged();
        let mut number = 0_u64;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            let group = u64::from(byte & 0x7f);
            if group << shift >> shift != group {
                return Err(start);
            }
            number |= group << shift;
            if byte < 0x80 {
                return match byte {
                    0 => Err(start),
                    _ => Ok(number),
                };
            }
        }
        Err(start)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Uses as they were counted: hour, outcome and count.
    fn uses() -> impl Strategy<Value = Vec<(u8, UseOutcome, u64)>> {
        let outcome = (0_usize..11).prop_map(|code| UseOutcome::ALL[code]);
        let count = prop_oneof![0_u64..300, any::<u64>()];
        prop::collection::vec((0_u8..24, outcome, count), 0..40)
    }

    fn counted(uses: &[(u8, UseOutcome, u64)]) -> DayCounts {
        let mut counts = DayCounts::default();
        for (hour, outcome, count) in uses {
            counts.add(*hour, *outcome, *count);
        }
        counts
    }

    proptest! {
        #[test]
        fn counts_are_the_sums_of_the_uses(uses in uses(), split in 0_usize..40) {
            let (first, second) = uses.split_at(split.min(uses.len()));
            let mut counts = counted(first);
            counts.merge(&counted(second));
            for &outcome in UseOutcome::ALL {
                for hour in 0..24 {
                    let own = uses.iter().filter(|(at, of, _)| (*at, *of) == (hour, outcome));
                    let right = own.fold(0_u64, |sum, (.., count)| sum.saturating_add(*count));
                    prop_assert_eq!(counts.hours(outcome)[usize::from(hour)], right);
                }
            }
            let total = uses.iter().fold(0_u64, |sum, (.., count)| sum.saturating_add(*count));
            prop_assert_eq!(counts.total(), total);
            prop_assert_eq!(DayCounts::from_bytes(&counts.to_bytes()), Ok(counts));
        }

        /// A row with one changed byte is refused, or is the packed form of other counts. So equal counts have equal rows.
        #[test]
        fn a_changed_row_has_one_reading(uses in uses(), at in any::<prop::sample::Index>(), byte: u8) {
            let counts = counted(&uses);
            let mut bytes = counts.to_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            match DayCounts::from_bytes(&bytes) {
                Ok(read) => prop_assert_eq!(read.to_bytes(), bytes),
                Err(DayError::Version { found }) => prop_assert!(at == 0 && found > VERSION),
                Err(DayError::Damaged { position }) => prop_assert!(position <= bytes.len()),
            }
        }
    }

    #[test]
    fn rows_that_no_counts_have_are_refused() {
        let damaged = |position| Err(DayError::Damaged { position });
        let read = |bytes: &[u8]| DayCounts::from_bytes(bytes);
        assert_eq!(read(&[]), damaged(0));
        assert_eq!(read(&[0]), damaged(0));
        assert_eq!(read(&[2]), Err(DayError::Version { found: 2 }));
        assert_eq!(read(&[1, 0, 0, 0, 0]), damaged(1), "no hour");
        assert_eq!(
            read(&[1, 0, 1, 0, 0, 9, 0, 2, 0, 0, 9]),
            damaged(6),
            "the same outcome twice"
        );
        assert_eq!(
            read(&[1, 3, 1, 0, 0, 9, 2, 1, 0, 0, 9]),
            damaged(6),
            "outcomes out of order"
        );
        assert_eq!(read(&[1, 0, 1, 0]), damaged(4), "cut short");
    }

    #[test]
    fn a_row_is_stored_as_it_always_was() {
        let mut counts = DayCounts::default();
        counts.add(9, UseOutcome::Accepted, 127);
        assert_eq!(counts.to_bytes(), [1, 0, 0, 2, 0, 127]);
        counts.add(23, UseOutcome::Accepted, 300);
        counts.add(0, UseOutcome::RateLimited, 1);
        let bytes = [1, 0, 0, 2, 128, 127, 0xac, 2, 9, 1, 0, 0, 1];
        assert_eq!(counts.to_bytes(), bytes);
        assert_eq!(DayCounts::default().to_bytes(), [1]);
    }

    #[test]
    fn outcomes_of_later_versions_are_kept() {
        let later = [1, 0, 1, 0, 0, 5, 200, 2, 0, 0, 7];
        let mut counts = DayCounts::from_bytes(&later).unwrap();
        counts.add(0, UseOutcome::Accepted, 1);
        assert_eq!(
            (counts.total(), counts.count(UseOutcome::Accepted)),
            (13, 6)
        );
        assert_eq!(counts.unknown(), 7);
        assert_eq!(counts.to_bytes(), [1, 0, 1, 0, 0, 6, 200, 2, 0, 0, 7]);
    }

    #[test]
    fn a_count_has_one_form() {
        let damaged = Err(DayError::Damaged { position: 5 });
        let with = |count: &[u8]| DayCounts::from_bytes(&[&[1, 0, 1, 0, 0], count].concat());
        assert_eq!(with(&[0]), damaged);
        assert_eq!(with(&[0x81, 0]), damaged);
        let most = [255, 255, 255, 255, 255, 255, 255, 255, 255, 1];
        assert_eq!(with(&most).map(|counts| counts.total()), Ok(u64::MAX));
        let more = [255, 255, 255, 255, 255, 255, 255, 255, 255, 2];
        assert_eq!(with(&more), damaged);
    }
}
