//! Notices: that a key expires soon, and that it has expired. Nobody commits these, so that no audit
//! entry tells of them; they follow from records and the time.
//!
//! Pure. Invariant: at any instant at most one notice is true of a key, that of the narrowest window
//! which it is in. Notices have an order of their own, by the instant at which they fall due, so that
//! one place in it says which were told.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::id::KeyId;
use crate::core::invalid::{Invalid, Problem};
use crate::core::query::{KeyPosition, KeyQuery, KeySort};
use crate::core::record::{KeyRecord, KeyState, Status};
use crate::core::text::KeyName;
use crate::core::time::{Timestamp, days};

/// How long before the end of a key its host is told, once for each of these.
///
/// A key that comes to stand in several at once is told of in the narrowest alone: a key made for two
/// hours does not expire "within 30 days". The default is 30 days, 7 days and 1 day.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ExpiryWindows(BTreeSet<Duration>);

impl ExpiryWindows {
    /// How many windows there may be: each is a question to the store. A judgement.
    pub const MAX: usize = 8;
    /// The widest window: ten years of 365 days. A judgement.
    pub const WIDEST: Duration = days(3650);

    /// Windows of whole seconds, in any order.
    ///
    /// # Errors
    ///
    /// [`Invalid`] for more than [`MAX`](Self::MAX) windows, and for one that is shorter than a
    /// second, longer than [`WIDEST`](Self::WIDEST) or not of whole seconds.
    pub fn new(windows: impl IntoIterator<Item = Duration>) -> Result<Self, Invalid> {
        let mut checked = BTreeSet::new();
        for window in windows {
            if window.subsec_nanos() != 0 {
                let expected = "of whole seconds";
                return Err(Invalid::new("expiry window", Problem::Form { expected }));
            }
            if window.is_zero() || window > Self::WIDEST {
                let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
                let problem = Problem::OutOfRange {
                    min: 1,
                    max: seconds(Self::WIDEST),
                    actual: seconds(window),
                };
                return Err(Invalid::new("expiry window in seconds", problem));
            }
            checked.insert(window);
            if checked.len() > Self::MAX {
                let (max, actual) = (Self::MAX, checked.len());
                let problem = Problem::TooMany { max, actual };
                return Err(Invalid::new("set of expiry windows", problem));
            }
        }
        Ok(Self(checked))
    }

    /// No windows: that a key expired is told, that it soon will is not.
    #[must_use]
    pub const fn none() -> Self {
        Self(BTreeSet::new())
    }

    /// The windows, narrowest first.
    pub fn iter(&self) -> impl Iterator<Item = Duration> + '_ {
        self.0.iter().copied()
    }

    /// The notice that is true of `record` at `now`: the last one to fall due of those that have,
    /// which is its end, or else the narrowest window.
    pub(crate) fn reached(&self, record: &KeyRecord, now: Timestamp) -> Option<Due> {
        let ends = match record.state {
            KeyState::Revoked { .. } => return None,
            KeyState::Enabled | KeyState::Disabled(_) => record.expires_at?,
        };
        // Whoever holds the successor need not be told that the old key ends; whoever may not hold
        // it yet must be.
        let replaced = (record.succession.as_ref())
            .is_some_and(|succession| succession.grace_from_first_use.is_none());
        let windows = self.iter().filter(|_| !replaced);
        let mut notices = std::iter::once(Duration::ZERO)
            .chain(windows)
            .map(|within| Due::new(ends, within, record.id));
        notices.find(|due| due.at <= now.as_micros())
    }

    /// The questions to a store that find every key of which a notice came true after `swept` and
    /// until `now`, each with its window; zero for keys that have expired. No key is found twice.
    pub(crate) fn listings(
        &self,
        swept: Option<Due>,
        now: Timestamp,
        limit: NonZeroUsize,
    ) -> Vec<(Duration, KeyQuery)> {
        let mut listings = Vec::new();
        // Keys that end until here are told of in a narrower window.
        let mut narrower = None;
        for within in std::iter::once(Duration::ZERO).chain(self.iter()) {
            let last = now.as_micros().saturating_add(micros(within));
            let query = listing(swept, within, (narrower, last), now, limit);
            listings.extend(query.map(|query| (within, query)));
            narrower = Some(last);
        }
        listings
    }
}

impl Default for ExpiryWindows {
    fn default() -> Self {
        Self(BTreeSet::from([days(1), days(7), days(30)]))
    }
}

/// Keys that end after the first instant of `between` and until the second, as far as their notices
/// fall due after `swept`; `None` if no key can.
fn listing(
    swept: Option<Due>,
    within: Duration,
    between: (Option<i64>, i64),
    now: Timestamp,
    limit: NonZeroUsize,
) -> Option<KeyQuery> {
    let (after, last) = between;
    let mut from = after.map_or(0, |after| after.saturating_add(1));
    let mut place = None;
    if let Some(swept) = swept {
        let ends = swept.at.saturating_add(micros(within));
        match within.as_secs().cmp(&swept.within) {
            std::cmp::Ordering::Less => from = from.max(ends.saturating_add(1)),
            std::cmp::Ordering::Greater => from = from.max(ends),
            std::cmp::Ordering::Equal => {
                from = from.max(ends);
                place = Timestamp::from_micros(ends).ok().map(|ends| KeyPosition {
                    name: KeyName::UNNAMED,
                    expires_at: Some(ends),
                    id: swept.key,
                });
            }
        }
    }
    if from > last {
        return None;
    }
    Some(KeyQuery {
        statuses: BTreeSet::from([
            Status::Active,
            Status::Retiring,
            Status::Disabled,
            Status::Expired,
        ]),
        expires_from: Some(Timestamp::from_micros(from).ok()?),
        // No key ends after the last instant there is, but those that never end.
        expires_before: Timestamp::from_micros(last.saturating_add(1)).ok(),
        sort: KeySort::Expiry,
        after: place,
        limit,
        ..KeyQuery::everything(now)
    })
}

/// A notice about one key, as a place in the order in which notices fall due. Those of one instant
/// order by window, then by key.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(crate) struct Due {
    /// When it falls due, in microseconds since the Unix epoch; negative for a wide window around
    /// an end in the seventies, so that no two windows fall together there.
    at: i64,
    /// The window, in seconds; zero for the end itself.
    within: u64,
    key: KeyId,
}

impl Due {
    /// The notice that `key` ends at `ends`, `within` before that.
    pub(crate) fn new(ends: Timestamp, within: Duration, key: KeyId) -> Self {
        Self {
            at: ends.as_micros().saturating_sub(micros(within)),
            within: within.as_secs(),
            key,
        }
    }

    /// After every notice that falls due until `instant`.
    pub(crate) const fn until(instant: Timestamp) -> Self {
        Self {
            at: instant.as_micros(),
            within: u64::MAX,
            key: KeyId::from_u128(u128::MAX),
        }
    }

    /// The window; zero for the end itself.
    pub(crate) const fn within(self) -> Duration {
        Duration::from_secs(self.within)
    }
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}
