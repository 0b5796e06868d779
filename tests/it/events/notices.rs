//! Notices about keys that expire, one scenario per test.

use keyward::command::Expiry;
use keyward::events::{EventCursor, EventKind, Events, ExpiryWindows};
use keyward::{CreateKey, Reason, RotateKey, UpdateKey, days, hours};

use crate::events::{drain, noticed, windows};
#[cfg(feature = "sqlite")]
use crate::events::{limit, read};
use support::*;

/// Returns a service, its events, and a cursor at their end.
fn desk() -> (TestService, Events, EventCursor) {
    let world = TestService::new();
    let events = world.keys.events(windows());
    let mut cursor = EventCursor::BEGINNING;
    drain(&events, &mut cursor);
    (world, events, cursor)
}

fn ends_in(name: &str, days: u32) -> CreateKey {
    reader(name).expires_in(keyward::days(days))
}

#[test]
fn a_key_gets_a_notice_in_each_window_and_at_its_end() {
    let (world, events, mut cursor) = desk();
    let key = world.create(&admin(), ends_in("key", 10)).unwrap();
    let mut sent = Vec::new();
    for _ in 0..11 {
        world.clock.advance(days(1));
        sent.extend(drain(&events, &mut cursor));
    }
    let end = "2026-01-11T00:00:00Z".to_owned();
    let windows = [7 * 86_400, 86_400, 0].map(|window| (end.clone(), window));
    assert_eq!(noticed(&sent), windows);
    let when: Vec<_> = sent[sent.len() - 3..].iter().map(|sent| sent.at).collect();
    let due = ["2026-01-04", "2026-01-10", "2026-01-11"].map(|day| at(&format!("{day}T00:00:00Z")));
    assert_eq!(when, due);
    let last = sent.last().unwrap();
    assert_eq!((last.key, last.actor.as_ref()), (Some(key.id), None));
    let EventKind::Expired { owner, .. } = &last.kind else {
        panic!("{last:?}");
    };
    assert_eq!(owner.as_ref(), admin().principal());
}

#[test]
fn a_key_that_skipped_a_window_gets_the_notice_of_the_narrowest() {
    let (world, events, mut cursor) = desk();
    world.create(&admin(), ends_in("long", 10)).unwrap();
    drain(&events, &mut cursor);
    // The application reads no events for nine days, in which two windows of the first key begin.
    world.clock.advance(days(9));
    world
        .create(&admin(), reader("short").expires_in(hours(2)))
        .unwrap();
    let sent = noticed(&drain(&events, &mut cursor));
    let end = |day: &str| format!("2026-01-{day}Z");
    assert_eq!(
        sent,
        [(end("10T02:00:00"), 86_400), (end("11T00:00:00"), 86_400)]
    );
}

#[test]
fn keys_extended_revoked_or_removed_since_get_no_notice() {
    let (world, events, mut cursor) = desk();
    let [extended, revoked, removed, kept] = ["extended", "revoked", "removed", "kept"]
        .map(|name| world.create(&admin(), ends_in(name, 10)).unwrap().id);
    let longer = UpdateKey::new().expiry(Expiry::In(days(30)));
    wait(world.keys.update(&admin(), extended, longer)).unwrap();
    wait(world.keys.revoke(&admin(), revoked, Reason::Lost)).unwrap();
    let plain = keyward::command::DeleteKey::plain();
    wait(world.keys.delete(&admin(), removed, plain)).unwrap();
    world.clock.advance(days(12));
    let sent = drain(&events, &mut cursor);
    let about: Vec<_> = sent
        .iter()
        .filter(|event| crate::events::notice(event).is_some())
        .collect();
    assert_eq!(about.len(), 1, "{about:?}");
    assert_eq!(about[0].key, Some(kept));
    world.clock.advance(days(12));
    let sent = drain(&events, &mut cursor);
    assert_eq!(sent.len(), 1);
    assert_eq!(
        sent[0].key,
        Some(extended),
        "the notice is for the new expiry"
    );
}

#[test]
fn a_replaced_key_gets_a_notice_when_it_ends_and_not_before() {
    let (world, events, mut cursor) = desk();
    let old = world.some_key();
    let grace = RotateKey::grace(hours(20));
    let successor = wait(world.keys.rotate(&admin(), old.id, grace)).unwrap();
    let sent = drain(&events, &mut cursor);
    assert_eq!(noticed(&sent), [], "a replaced key gets no early notice");
    world.clock.advance(hours(20));
    let sent = drain(&events, &mut cursor);
    let EventKind::Expired { successor: by, .. } = sent[0].kind else {
        panic!("{sent:?}");
    };
    assert_eq!((sent[0].key, by), (Some(old.id), Some(successor.id)));
}

#[test]
fn a_key_with_an_unused_successor_gets_notices_like_any_other() {
    let (world, events, mut cursor) = desk();
    let old = world.create(&admin(), ends_in("old", 10)).unwrap();
    let waits = RotateKey::on_first_use(hours(1));
    wait(world.keys.rotate(&admin(), old.id, waits)).unwrap();
    world.clock.advance(days(4));
    let sent = drain(&events, &mut cursor);
    let sent = sent
        .iter()
        .filter(|event| crate::events::notice(event).is_some());
    assert!(sent.map(|event| event.key).any(|key| key == Some(old.id)));
}

#[test]
fn keys_without_an_end_get_no_notices_and_disabled_keys_do() {
    let (world, events, mut cursor) = desk();
    world
        .create(&admin(), reader("for ever").never_expires())
        .unwrap();
    let disabled = world.create(&admin(), ends_in("disabled", 10)).unwrap();
    wait(world.keys.disable(&admin(), disabled.id)).unwrap();
    world.clock.set_wall(keyward::Timestamp::MAX);
    let sent = drain(&events, &mut cursor);
    assert_eq!(noticed(&sent), [("2026-01-11T00:00:00Z".to_owned(), 0)]);
}

#[test]
fn without_windows_only_notices_of_ends_are_sent() {
    let (world, _, mut cursor) = desk();
    let events = world.keys.events(ExpiryWindows::none());
    world.create(&admin(), ends_in("key", 1)).unwrap();
    assert_eq!(noticed(&drain(&events, &mut cursor)), []);
    world.clock.advance(days(1));
    assert_eq!(noticed(&drain(&events, &mut cursor)).len(), 1);
}

#[test]
fn after_a_clock_was_ahead_notices_are_sent_again_when_due() {
    let (world, events, mut cursor) = desk();
    world.create(&admin(), ends_in("key", 10)).unwrap();
    drain(&events, &mut cursor);
    world.clock.set_wall(at("2027-01-01T00:00:00Z"));
    let early = drain(&events, &mut cursor);
    assert_eq!(early.len(), 1, "the key had ended by the wrong clock");
    world.clock.set_wall(at(START));
    assert_eq!(drain(&events, &mut cursor), []);
    world.clock.advance(days(3));
    let soon = drain(&events, &mut cursor);
    assert_eq!(
        noticed(&soon),
        [("2026-01-11T00:00:00Z".to_owned(), 7 * 86_400)]
    );
    world.clock.advance(days(7));
    assert_eq!(drain(&events, &mut cursor), early, "under the same id");
}

#[test]
fn invalid_windows_are_refused() {
    let of = |seconds: &[u64]| {
        let spans = seconds.iter().map(|n| std::time::Duration::from_secs(*n));
        ExpiryWindows::new(spans).map(|windows| windows.iter().map(|w| w.as_secs()).collect())
    };
    assert_eq!(of(&[86_400, 60, 86_400]), Ok(vec![60, 86_400]));
    assert!(of(&[0]).is_err());
    assert!(of(&[ExpiryWindows::WIDEST.as_secs() + 1]).is_err());
    assert!(of(&(1..=9).collect::<Vec<_>>()).is_err());
    assert!(ExpiryWindows::new([std::time::Duration::from_millis(1500)]).is_err());
}

/// Many keys in an SQLite file expire at the same instant, and a page of notices ends between two of them.
#[cfg(feature = "sqlite")]
#[test]
fn pages_that_end_among_keys_with_one_expiry_lose_no_key_in_a_file() {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use keyward::store::SqliteStore;
    use keyward::{ManualClock, policy::Policy, profiles};

    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::at(at(START)));
    let store = wait(SqliteStore::open(folder.path().join("keys.db"))).unwrap();
    let keys = node(store, &clock, Policy::new(profiles::standard()).unwrap());
    let mut made = BTreeSet::new();
    for (n, path) in ["acme", "acme", "beta", "beta", "acme/web"]
        .iter()
        .cycle()
        .take(15)
        .enumerate()
    {
        let by = actor(path, "alice", keyward::Role::ADMIN);
        let end = at(if n < 12 {
            "2026-01-11T00:00:00Z"
        } else {
            "2026-01-12T00:00:00Z"
        });
        made.insert(
            wait(keys.create(&by, reader("one").expires_at(end)))
                .unwrap()
                .id,
        );
    }
    let events = keys.events(windows());
    let mut cursor = wait(events.end()).unwrap();
    clock.advance(days(20));
    let mut sent = Vec::new();
    loop {
        let batch = read(&events, &cursor, 4);
        assert!(batch.events.len() <= 4);
        sent.extend(batch.events);
        cursor = batch.cursor;
        if !batch.more {
            break;
        }
    }
    let ends: Vec<_> = noticed(&sent);
    assert_eq!(ends.len(), 15, "each once: {ends:?}");
    assert!(ends.is_sorted(), "{ends:?}");
    let ids: BTreeSet<_> = sent.iter().filter_map(|event| event.key).collect();
    assert_eq!(ids, made);
    assert!(
        wait(events.next_batch(&cursor, limit(1)))
            .unwrap()
            .events
            .is_empty()
    );
}
