//! Notices of keys that expire soon or have expired. No audit entry records a notice. Notices are derived
//! from a key's record and the time.
//!
//! Pure. Invariant: at any instant, a key has at most one valid notice, that of the narrowest window that the
//! key is in. Notices are ordered by the instant at which they fall due, so a single position separates the
//! emitted notices from the rest.

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

/// The windows before a key's expiry. A key causes one notice when it enters a window.
///
/// A key that enters several windows at the same instant causes only the notice of the narrowest window. For
/// example, a key created for two hours causes no notice of the 30-day window. The default windows are 30
/// days, 7 days and 1 day.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ExpiryWindows(BTreeSet<Duration>);

impl ExpiryWindows {
    /// The largest number of windows: 8, because each window costs one query of the store.
    pub const MAX: usize = 8;
    /// 3,650 days, ten years of 365 days: the widest window.
    pub const WIDEST: Duration = days(3650);

    /// Creates a set of windows, given in any order.
    ///
    /// # Errors
    ///
    /// [`Invalid`] for more than [`MAX`](Self::MAX) windows. Also for a window that is shorter than a second,
    /// longer than [`WIDEST`](Self::WIDEST), or not a whole number of seconds.
    pub fn new(windows: impl IntoIterator<Item = Duration>) -> Result<Self, Invalid> {
        let mut checked = BTreeSet::new();
        for window in windows {
            if window.subsec_nanos() != 0 {
                let expected = "of whole seconds";
                return Err(Invalid::new("expiry window", Problem::Format { expected }));
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

    /// Returns an empty set of windows, so that a key causes a notice only when it expires.
    #[must_use]
    pub const fn none() -> Self {
        Self(BTreeSet::new())
    }

    /// Returns the windows, narrowest first.
    pub fn iter(&self) -> impl Iterator<Item = Duration> + '_ {
        self.0.iter().copied()
    }

    /// Returns the valid notice of `record` at `now`. If the key has expired, this is the notice of the
    /// expiry, and otherwise that of the narrowest window that the key has entered.
    pub(super) fn reached(&self, record: &KeyRecord, now: Timestamp) -> Option<Due> {
        let ends = match record.state {
            KeyState::Revoked { .. } => return None,
            KeyState::Enabled | KeyState::Disabled(_) => record.expires_at?,
        };
        // A key that a successor has replaced needs no warning. While the successor still waits for its first
        // use, the key is not replaced yet.
        let replaced = (record.succession.as_ref())
            .is_some_and(|succession| succession.grace_from_first_use.is_none());
        let windows = self.iter().filter(|_| !replaced);
        let mut notices = std::iter::once(Duration::ZERO)
            .chain(windows)
            .map(|within| Due::new(ends, within, record.id));
        notices.find(|due| due.at <= now.as_micros())
    }

    /// Returns the queries that find due notices, each with its window. The query for expired keys has the
    /// window zero. The queries find every key whose notice fell due after `swept` and not later than `now`,
    /// each key once.
    pub(super) fn listings(
        &self,
        swept: Option<Due>,
        now: Timestamp,
        limit: NonZeroUsize,
    ) -> Vec<(Duration, KeyQuery)> {
        let mut listings = Vec::new();
        // The end of the next narrower window. The query of that window finds all keys that expire by then,
        // so the query of this window starts after that instant.
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

/// Returns the query for keys that expire after `between.0` and not later than `between.1`, and whose notices
/// fall due after `swept`. `None` if no key can match.
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
        // `None` if `last` is the last possible instant. The query then needs no upper bound, because only
        // keys that never expire come later.
        expires_before: Timestamp::from_micros(last.saturating_add(1)).ok(),
        sort: KeySort::Expiry,
        after: place,
        limit,
        ..KeyQuery::all(now)
    })
}

/// A notice of one key, which is also a position in the order of notices. Notices are ordered by the instant
/// at which they fall due, then by window, then by key.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(super) struct Due {
    /// The instant at which the notice falls due, in microseconds since the Unix epoch. May be negative, for
    /// a wide window before an expiry in the 1970s.
    at: i64,
    /// The window in seconds. Zero for the expiry itself.
    within: u64,
    key: KeyId,
}

impl Due {
    /// Returns the notice that falls due `within` before `ends`, the expiry of `key`.
    pub(super) fn new(ends: Timestamp, within: Duration, key: KeyId) -> Self {
        Self {
            at: ends.as_micros().saturating_sub(micros(within)),
            within: within.as_secs(),
            key,
        }
    }

    /// Returns the position just after all notices that are due at `instant`.
    pub(super) const fn until(instant: Timestamp) -> Self {
        Self {
            at: instant.as_micros(),
            within: u64::MAX,
            key: KeyId::from_u128(u128::MAX),
        }
    }

    /// Returns the window. Zero for the expiry itself.
    pub(super) const fn within(self) -> Duration {
        Duration::from_secs(self.within)
    }
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}
