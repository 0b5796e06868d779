//! Removal of old audit entries, up to a sealed checkpoint.

use std::num::NonZeroUsize;
use std::pin::pin;

use futures_util::future::poll_immediate;
use keyward::audit::{Action, AuditError, AuditHead, ChainError};
use keyward::command::DeleteKey;
use keyward::events::{EventCursor, EventKind, EventsError, ExpiryWindows};
use keyward::policy::Policy;
use keyward::store::{AuditQuery, KeyStore};
use keyward::{CommandError, Denial, Reason, Timestamp, days, profiles};
use keyward_conformance::Call;
use support::gated::GatedStore;
use support::*;

/// Returns the numbers of the tenant's entries.
fn numbers(world: &TestService) -> Vec<u64> {
    let page = wait(world.store.audit(&AuditQuery::tenant(tenant("acme")))).unwrap();
    page.rows.iter().map(|row| row.entry.sequence).collect()
}

fn verify(world: &TestService, seen: Option<AuditHead>) -> Result<AuditHead, AuditError> {
    wait(world.keys.verify_audit(&host(), &tenant("acme"), seen))
}

/// A world in which one key is created each day, for five days. Returns the heads after each day.
fn five_days() -> (TestService, Vec<AuditHead>) {
    let world = TestService::new();
    let heads = (0..5).map(|_| {
        world.some_key();
        world.clock.advance(days(1));
        verify(&world, None).unwrap()
    });
    let heads = heads.collect();
    (world, heads)
}

/// Renames a key `times` times, which writes as many entries. A day passes.
fn rename(world: &TestService, times: usize) {
    let key = world.some_key();
    for number in 0..times {
        let name = keyward::UpdateKey::new().name(format!("name {number}"));
        wait(world.keys.update(&admin(), key.id, name)).unwrap();
    }
    world.clock.advance(days(1));
}

fn day(number: u32) -> Timestamp {
    at(START).saturating_add(days(number))
}

#[test]
fn old_entries_go_and_the_rest_still_proves_itself() {
    let (world, heads) = five_days();
    let prune = |before, seen| {
        wait((world.keys).prune_audit(&host(), &tenant("acme"), before, seen)).unwrap()
    };
    let all = numbers(&world);
    let pruned = prune(day(2), Some(heads[0]));
    let through = heads[1].sequence;
    assert_eq!(pruned.removed, through);
    let newest = pruned.head.sequence;
    assert_eq!(
        newest,
        all.len() as u64 + 1,
        "the checkpoint is the newest entry"
    );
    assert_eq!(numbers(&world), (through + 1..=newest).collect::<Vec<_>>());
    let page = wait(world.store.audit(&AuditQuery::tenant(tenant("acme")))).unwrap();
    let checkpoint = &page.rows.last().unwrap().entry;
    let through = heads[1];
    assert_eq!(checkpoint.action, Action::TrailPruned { through });

    for seen in [None, Some(heads[1]), Some(heads[2]), Some(pruned.head)] {
        assert_eq!(verify(&world, seen).unwrap(), pruned.head);
    }
    let removed = verify(&world, Some(heads[0])).unwrap_err();
    let (expected, through) = (heads[0].sequence, heads[1].sequence);
    let wanted = ChainError::Pruned { expected, through };
    assert!(
        matches!(&removed, AuditError::Chain(fault) if *fault == wanted),
        "{removed:?}"
    );

    // There is nothing more to remove, so no entry is written.
    assert_eq!(prune(day(2), None).removed, 0);
    assert_eq!(prune(day(0), None).head, pruned.head);
    // The next removal takes the whole trail, the checkpoint included, and leaves a new one.
    world.clock.advance(days(30));
    let last = prune(day(30), Some(pruned.head));
    assert_eq!(numbers(&world), [last.head.sequence]);
    assert_eq!(verify(&world, Some(pruned.head)).unwrap(), last.head);
    // Commands continue the chain, and another node reads what is left.
    let key = world.some_key();
    wait(world.keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    wait(world.keys.delete(&admin(), key.id, DeleteKey::plain())).unwrap();
    let head = verify(&world, Some(last.head)).unwrap();
    assert!(head.sequence > last.head.sequence);
}

#[test]
fn only_the_application_removes_entries() {
    let (world, _) = five_days();
    let before = numbers(&world);
    let callers = [admin(), actor("acme", "carol", keyward::Role::MEMBER)];
    // Also if there is nothing to remove.
    for (by, before) in callers.iter().flat_map(|by| [(by, day(0)), (by, day(9))]) {
        let refused = wait(world.keys.prune_audit(by, &tenant("acme"), before, None)).unwrap_err();
        let denied = matches!(
            &refused,
            AuditError::Denied(_)
                | AuditError::Command(CommandError::Denied(Denial::HostOnly { .. }))
        );
        assert!(denied, "{refused:?}");
    }
    assert_eq!(numbers(&world), before);
}

#[test]
fn a_trail_that_lacks_a_head_stays_as_it_is() {
    let (world, heads) = five_days();
    let before = numbers(&world);
    let forged = AuditHead {
        sequence: heads[4].sequence,
        ..heads[3]
    };
    let refused = wait(
        world
            .keys
            .prune_audit(&host(), &tenant("acme"), day(9), Some(forged)),
    );
    assert!(matches!(
        refused,
        Err(AuditError::Chain(ChainError::Truncated { .. }))
    ));
    assert_eq!(numbers(&world), before);
}

#[test]
fn a_trail_of_several_commits_is_removed_whole() {
    // More entries than one commit removes.
    let (world, _) = five_days();
    rename(&world, 10_000);
    let pruned = wait(
        world
            .keys
            .prune_audit(&host(), &tenant("acme"), day(9), None),
    )
    .unwrap();
    assert!(pruned.removed > 10_000);
    assert_eq!(
        numbers(&world),
        [pruned.head.sequence - 1, pruned.head.sequence],
        "a checkpoint of each commit"
    );
    assert_eq!(verify(&world, None).unwrap(), pruned.head);
}

#[test]
fn a_reader_of_events_goes_on_after_the_entry_that_it_read_last_is_gone() {
    let (world, _) = five_days();
    let events = world.keys.events(ExpiryWindows::default());
    let some = NonZeroUsize::new(1000).unwrap();
    let next = |cursor: &EventCursor| wait(events.next_batch(cursor, some)).unwrap();
    let read = next(&EventCursor::BEGINNING);
    let early = wait(events.next_batch(&EventCursor::BEGINNING, NonZeroUsize::MIN)).unwrap();
    world.clock.advance(days(1));
    let pruned = wait(
        world
            .keys
            .prune_audit(&host(), &tenant("acme"), day(9), None),
    )
    .unwrap();
    assert_eq!(numbers(&world), [pruned.head.sequence]);
    for batch in [read, early] {
        let more = next(&batch.cursor);
        let kinds: Vec<_> = more.events.iter().map(|event| &event.kind).collect();
        let checkpoint = |kind: &&EventKind| format!("{kind:?}").contains("TrailPruned");
        assert_eq!(kinds.len(), 1, "{kinds:?}");
        assert!(kinds.iter().all(checkpoint), "{kinds:?}");
        assert_eq!(next(&more.cursor).events, []);
    }
}

#[test]
fn a_reader_of_another_history_starts_over_although_its_entry_is_gone() {
    let some = NonZeroUsize::new(1000).unwrap();
    let next = |world: &TestService, cursor: &EventCursor| {
        let events = world.keys.events(ExpiryWindows::default());
        wait(events.next_batch(cursor, some))
    };
    let (world, _) = five_days();
    // Other tenants move the store on, so that the number of the last entry is small and its revision is not.
    for _ in 0..30 {
        world
            .create(
                &actor("globex", "bob", keyward::Role::ADMIN),
                reader("other"),
            )
            .unwrap();
    }
    world.some_key();
    let read = next(&world, &EventCursor::BEGINNING).unwrap().cursor;
    let (other, _) = five_days();
    rename(&other, 10);
    wait((other.keys).prune_audit(&host(), &tenant("acme"), day(9), None)).unwrap();
    rename(&other, 30);
    // A reader that kept its position would skip what the other history has up to there.
    let resume = match next(&other, &read).unwrap_err() {
        EventsError::HistoryReplaced { resume } => resume,
        error => panic!("{error:?}"),
    };
    assert_eq!(
        next(&other, &resume).unwrap().events.len(),
        numbers(&other).len()
    );
    assert_eq!(resume.to_string().parse::<EventCursor>().unwrap(), *resume);
    let beginning = next(&other, &EventCursor::BEGINNING).unwrap().cursor;
    assert_eq!(next(&other, &resume).unwrap().cursor, beginning);
}

/// Another node removes entries between two pages of a verification.
#[test]
fn a_verification_begins_again_if_entries_are_removed_meanwhile() {
    let (world, _) = five_days();
    rename(&world, 2_000);
    let store = GatedStore::new(world.store.clone());
    let policy = Policy::new(profiles::standard()).unwrap();
    let keys = node(store.clone(), &world.clock, policy);
    let (host, acme) = (host(), tenant("acme"));
    let mut verify = pin!(keys.verify_audit(&host, &acme, None));
    let oldest = store.hold(Call::Audit);
    assert!(wait(poll_immediate(&mut verify)).is_none());
    let first_page = store.hold(Call::Audit);
    oldest.open();
    assert!(wait(poll_immediate(&mut verify)).is_none());
    assert_eq!(store.asked(Call::Audit), 2);
    wait(world.keys.prune_audit(&host, &acme, day(9), None)).unwrap();
    store.let_pass(Call::Audit);
    first_page.open();
    let head = wait(verify).unwrap();
    assert_eq!(numbers(&world), [head.sequence]);
}
