//! Events for the application: every audit entry once and in order, every true notice, and no false notice.

mod bent;
mod form;
mod history;
mod model;
mod notices;

use std::num::NonZeroUsize;

use keyward::events::{Event, EventBatch, EventCursor, EventKind, Events, ExpiryWindows};
use keyward::{Timestamp, days};

use support::*;

/// The notice windows of these tests in seconds, narrowest first: one day and seven days.
pub(crate) const WINDOWS: [u64; 2] = [86_400, 7 * 86_400];

pub(crate) fn windows() -> ExpiryWindows {
    ExpiryWindows::new([days(7), days(1)]).unwrap()
}

pub(crate) fn limit(limit: usize) -> NonZeroUsize {
    NonZeroUsize::new(limit).unwrap()
}

pub(crate) fn read(events: &Events, cursor: &EventCursor, most: usize) -> EventBatch {
    wait(events.next_batch(cursor, limit(most))).unwrap()
}

/// Returns every event after a cursor, and moves the cursor to the end.
pub(crate) fn drain(events: &Events, cursor: &mut EventCursor) -> Vec<Event> {
    let mut all = Vec::new();
    loop {
        let batch = read(events, cursor, 3);
        all.extend(batch.events);
        *cursor = batch.cursor;
        if !batch.more {
            return all;
        }
    }
}

/// Returns the key, the expiry, and the window in seconds of a notice. The window is 0 for an expiry notice.
pub(crate) fn notice(event: &Event) -> Option<(keyward::KeyId, Timestamp, u64)> {
    let key = event.key?;
    match event.kind {
        EventKind::Expired { expires_at, .. } => Some((key, expires_at, 0)),
        EventKind::ExpiringSoon {
            expires_at, within, ..
        } => Some((key, expires_at, within.as_secs())),
        _ => None,
    }
}

/// Returns the expiry and the window in seconds of each notice among `events`.
pub(crate) fn noticed(events: &[Event]) -> Vec<(String, u64)> {
    let notices = events.iter().filter_map(notice);
    notices
        .map(|(_, ends, within)| (ends.to_string(), within))
        .collect()
}
