//! Events from a trail that was restored, damaged or compacted.

use std::collections::HashSet;
use std::sync::Arc;

use keyward::audit::Action;
use keyward::events::{Event, EventCursor, EventKind, Events, EventsError};
use keyward::policy::Policy;
use keyward::store::{MemoryStore, PositionError};
use keyward::{Keyward, ManualClock, days, profiles};

use crate::events::bent::{Bend, Bent};
use crate::events::{drain, limit, noticed, read, windows};
use support::*;

struct Desk {
    store: Arc<Bent>,
    /// The store as the event stream reads it.
    reader: Arc<Bent>,
    keys: Keyward,
    events: Events,
    clock: Arc<ManualClock>,
}

fn desk(store: Bent, bend: Bend) -> Desk {
    let clock = Arc::new(ManualClock::at(at(START)));
    let store = Arc::new(store);
    let keys = node(
        store.clone(),
        &clock,
        Policy::new(profiles::standard()).unwrap(),
    );
    let reader = Arc::new(Bent::new(store.inner.clone(), bend));
    let events = Events::new(reader.clone(), clock.clone(), windows());
    Desk {
        store,
        reader,
        keys,
        events,
        clock,
    }
}

impl Desk {
    fn create(&self, name: &str) {
        wait(self.keys.create(&admin(), reader(name))).unwrap();
    }
}

fn fresh(bend: Bend) -> Desk {
    desk(Bent::new(MemoryStore::new(), Bend::Straight), bend)
}

/// Returns the resume cursor from a refusal.
fn refused(events: &Events, cursor: &EventCursor) -> EventCursor {
    match wait(events.next_batch(cursor, limit(10))) {
        Err(EventsError::HistoryReplaced { resume }) => *resume,
        other => panic!("{other:?}"),
    }
}

fn ids(events: &[Event]) -> Vec<String> {
    events.iter().map(|event| event.id.to_string()).collect()
}

#[test]
fn a_backup_older_than_the_cursor_is_detected_even_after_it_overtook_the_cursor() {
    for bend in [Bend::Straight, Bend::HasNoEpoch] {
        let before = fresh(bend);
        before.create("one");
        let saved = before.store.commits();
        before.create("two");
        let mut cursor = EventCursor::BEGINNING;
        let received = drain(&before.events, &mut cursor);

        let after = desk(before.store.backup(saved), bend);
        after.create("another two");
        after.create("three");
        let mut resume = refused(&after.events, &cursor);
        let again = drain(&after.events, &mut resume);
        let known: HashSet<_> = ids(&received).into_iter().collect();
        let shared = ids(&again).iter().filter(|id| known.contains(*id)).count();
        assert_eq!(
            shared,
            received.len() - 1,
            "entries in both histories keep their ids"
        );
        assert_eq!(again.len(), received.len() + 1, "new entries have new ids");
    }
}

#[test]
fn a_head_behind_the_cursor_is_detected() {
    let before = fresh(Bend::HasNoEpoch);
    before.create("one");
    let saved = before.store.commits();
    before.create("two");
    let end = wait(before.events.end()).unwrap();
    let after = desk(before.store.backup(saved), Bend::HasNoEpoch);
    refused(&after.events, &end);
}

#[test]
fn a_backup_newer_than_the_cursor_resumes_at_the_cursor() {
    let before = fresh(Bend::Straight);
    before.create("one");
    let mut cursor = EventCursor::BEGINNING;
    drain(&before.events, &mut cursor);
    before.create("two");
    let expected = ids(&read(&before.events, &cursor, 10).events);

    let after = desk(before.store.backup(before.store.commits()), Bend::Straight);
    let resume = refused(&after.events, &cursor);
    assert_eq!(ids(&read(&after.events, &resume, 10).events), expected);
}

#[test]
fn a_cursor_of_another_store_is_refused() {
    let (one, other) = (fresh(Bend::Straight), fresh(Bend::Straight));
    one.create("one");
    other.create("other");
    let cursor = wait(one.events.end()).unwrap();
    let mut resume = refused(&other.events, &cursor);
    assert!(!drain(&other.events, &mut resume).is_empty());
}

#[test]
fn an_unreadable_entry_is_an_event_and_does_not_stop_the_stream() {
    let desk = fresh(Bend::Straight);
    for name in ["one", "two", "three"] {
        desk.create(name);
    }
    let mut cursor = EventCursor::BEGINNING;
    let sound = drain(&desk.events, &mut cursor);
    let rows = wait(keyward::store::KeyStore::audit(
        &*desk.store,
        &keyward::store::AuditQuery::all(),
    ));
    for (n, row) in rows.unwrap().rows.iter().enumerate() {
        desk.reader.damage(row.position());
        // The reader had already passed this entry when the entry was damaged, so it gets no further event.
        assert_eq!(read(&desk.events, &cursor, 5).events, []);
        let mut from = EventCursor::BEGINNING;
        let received = drain(&desk.events, &mut from);
        assert_eq!(received.len(), sound.len());
        for (m, (received, sound)) in received.iter().zip(&sound).enumerate() {
            if n != m {
                assert_eq!(received, sound);
                continue;
            }
            let (revision, sequence) = (row.revision.0, row.entry.sequence);
            assert_eq!(received.kind, EventKind::Unreadable { revision, sequence });
        }
        assert_eq!(drain(&desk.events, &mut from), [], "and is sent once");
    }
}

#[test]
fn the_end_cursor_lies_between_past_and_future_events() {
    let desk = fresh(Bend::Straight);
    let short = reader("short").expires_in(days(5));
    wait(desk.keys.create(&admin(), short)).unwrap();
    let mut cursor = wait(desk.events.end()).unwrap();
    assert_eq!(drain(&desk.events, &mut cursor), []);
    desk.create("next");
    assert_eq!(drain(&desk.events, &mut cursor).len(), 1);
    desk.clock.advance(days(5));
    let received = drain(&desk.events, &mut cursor);
    assert_eq!(noticed(&received), [("2026-01-06T00:00:00Z".to_owned(), 0)]);
}

#[test]
fn dropping_tombstones_does_not_change_the_history() {
    let desk = fresh(Bend::Straight);
    let key = wait(desk.keys.create(&admin(), reader("gone"))).unwrap();
    let mut cursor = EventCursor::BEGINNING;
    drain(&desk.events, &mut cursor);
    wait(
        desk.keys
            .delete(&admin(), key.id, keyward::command::DeleteKey::plain()),
    )
    .unwrap();
    desk.store.inner.compact();
    let received = drain(&desk.events, &mut cursor);
    assert_eq!(received[0].kind, EventKind::Change(Action::KeyDeleted));
}

#[test]
fn an_altered_cursor_text_is_refused() {
    let desk = fresh(Bend::Straight);
    desk.create("one");
    let mut cursor = EventCursor::BEGINNING;
    drain(&desk.events, &mut cursor);
    for cursor in [cursor, EventCursor::BEGINNING] {
        let text = cursor.to_string();
        assert_eq!(text.parse(), Ok(cursor.clone()));
        assert_eq!(
            serde_json::to_string(&cursor).unwrap(),
            format!("\"{text}\"")
        );
        assert_eq!(
            serde_json::from_str::<EventCursor>(&format!("\"{text}\"")).unwrap(),
            cursor
        );
        for n in "events-1-".len()..text.len() {
            let mut altered = text.clone().into_bytes();
            altered[n] = if altered[n] == b'0' { b'1' } else { b'0' };
            let altered = String::from_utf8(altered).unwrap();
            assert_eq!(altered.parse::<EventCursor>(), Err(PositionError::Damaged));
            assert!(text[..n].parse::<EventCursor>().is_err());
        }
    }
    let kind = "events";
    assert_eq!(
        "zz".parse::<EventCursor>(),
        Err(PositionError::Kind { kind })
    );
    let (max, actual) = (4096, 4097);
    let long = "e".repeat(actual).parse::<EventCursor>();
    assert_eq!(long, Err(PositionError::TooLong { max, actual }));
    assert!("é".parse::<EventCursor>().is_err());
}
