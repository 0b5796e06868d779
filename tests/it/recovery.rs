//! Recovery of a store from a backup. Afterwards, the store accepts no key that was ended or narrowed after
//! the backup was made.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use keyward::audit::{Action, AuditEntry, ChainError};
use keyward::command::{Created, DeleteKey, Expiry, ImportKey, LeakSource};
use keyward::key::{Digest, Status};
use keyward::pepper::Pepper;
use keyward::policy::{Deletion, Policies, Revocation};
use keyward::recovery::{
    Recovery, RecoveryError, RecoveryProgress, RecoveryReport, ReplayedTrail, TrailReach,
};
use keyward::store::{
    AuditQuery, Commit, CommitTag, Effects, KeyStore, MemoryStore, Revision, Row,
};
use keyward::{
    Actor, CreateKey, Denial, KeyId, Keyward, ManualClock, Need, PepperRing, Reason, Role,
    RotateKey, TenantId, Timestamp, UpdateKey, VerifyError, days, hours, profiles,
};
use keyward_conformance::model::{
    Facade, IssuedSecrets, ListedKey, ModelActor, ModelCommand, ModelStep, ReferenceModel,
    RefusalReason, System, TENANTS, policy, run,
};
use keyward_conformance::{Call, Fault, FaultyStore, Reached, strategies};
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence};
use support::*;

const ALL: NonZeroUsize = NonZeroUsize::new(100_000).unwrap();

/// Returns a copy of `of` with every row and audit entry, like a backup.
pub fn backup(of: &MemoryStore) -> MemoryStore {
    let mut tenants: BTreeMap<TenantId, Effects> = BTreeMap::new();
    for change in wait(of.scan(None, ALL)).unwrap().rows {
        match change.row {
            Row::Tenant(row) => {
                let effects = tenants.entry(row.tenant.clone()).or_default();
                effects.tenant = Some(row);
            }
            Row::Owner(row) => {
                let effects = tenants.entry(row.tenant.clone()).or_default();
                effects.owners.push(row);
            }
            Row::Key(key) => tenants
                .entry(key.tenant.clone())
                .or_default()
                .puts
                .push(*key),
            Row::Removed { key, tenant } => tenants.entry(tenant).or_default().removes.push(key),
            Row::Corrupt(_) => {}
        }
    }
    for entry in trail(of) {
        let effects = tenants.entry(entry.tenant.clone()).or_default();
        effects.audit.push(entry);
    }
    let copy = MemoryStore::new();
    for (tenant, effects) in tenants {
        let commit = Commit {
            tenant,
            epoch: None,
            expected: Revision::ZERO,
            guards: Vec::new(),
            tag: CommitTag(1),
            decided_at: effects.audit.iter().map(|entry| entry.at).max().unwrap(),
            effects,
        };
        wait(copy.commit(commit)).unwrap();
    }
    copy
}

/// Returns every audit entry, oldest first.
fn trail(store: &MemoryStore) -> Vec<AuditEntry> {
    let query = AuditQuery::all().with(|query| query.limit = ALL);
    let page = wait(store.audit(&query)).unwrap();
    page.rows.into_iter().map(|row| row.entry).collect()
}

/// Returns the trail as another program reads it that was sent each entry as a line of JSON.
fn exported(store: &MemoryStore) -> Vec<AuditEntry> {
    let lines = trail(store).into_iter();
    let lines = lines.map(|entry| serde_json::to_string(&entry).unwrap());
    lines
        .map(|line| serde_json::from_str(&line).unwrap())
        .collect()
}

fn standard() -> Policies {
    keyward::policy::Policy::new(profiles::standard())
        .unwrap()
        .into()
}

/// Returns a replay from the whole trail of `store`.
fn replay(store: &MemoryStore) -> Recovery {
    Recovery::ReplayFrom(Arc::new(store.clone()))
}

/// Returns a replay of entries that are the whole trail of a lost store.
const fn whole(entries: Vec<AuditEntry>) -> Recovery {
    let is_whole = true;
    Recovery::Replay { entries, is_whole }
}

fn recover(keys: &Keyward, recovery: Recovery) -> RecoveryReport {
    wait(keys.recover(recovery)).unwrap()
}

fn accepts(keys: &Keyward, key: &Created) -> bool {
    keys.verify(key.secret.expose(), &reading()).is_ok()
}

fn status(keys: &Keyward, id: KeyId) -> Status {
    wait(keys.key(&host(), id)).unwrap().status
}

#[test]
fn after_a_restore_nothing_verifies_until_it_is_enabled() {
    let world = TestService::with_policies(policy(CAP));
    let legacy = wait(world.keys.provision_tenant(&host(), &tenant("acme"))).unwrap();
    let legacy = legacy.into_iter().next().unwrap();
    let key = |by: &Actor| world.create(by, reader("key")).unwrap();
    let (plain, elsewhere) = (key(&host()), key(&Actor::application(tenant("other"))));
    let waits = RotateKey::on_first_use(hours(1));
    let successor = wait(world.keys.rotate(&host(), plain.id, waits)).unwrap();
    let store = backup(&world.store);
    let restored = world.restored(&store, policy(CAP));
    let secrets = [
        legacy.token.as_ref().unwrap().expose(),
        plain.secret.expose(),
        elsewhere.secret.expose(),
        successor.secret.expose(),
    ];
    for secret in secrets {
        restored
            .verify(secret, &Need::any().or_publishable())
            .unwrap();
    }
    let report = recover(&restored, Recovery::default());
    for secret in secrets {
        let refused = restored.verify(secret, &Need::any().or_publishable());
        assert!(
            matches!(refused, Err(VerifyError::Disabled { .. })),
            "{refused:?}"
        );
    }
    // The second tenant has a legacy key too, so the report lists two.
    assert_eq!((report.tenants, report.disabled), (2, 5));
    assert_eq!(report.legacy.len(), 2);
    assert!(report.legacy.contains(&legacy.id));
    let entries = trail(&store);
    let disabled = entries
        .iter()
        .filter(|entry| entry.action == Action::KeyDisabled);
    assert_eq!(disabled.count(), 5, "one entry for each key");
    wait(restored.verify_audit(&host(), &tenant("acme"), None)).unwrap();

    let again = recover(&restored, Recovery::DisableAll);
    assert_eq!((again.tenants, again.disabled), (0, 0));
    assert_eq!(trail(&store).len(), entries.len());

    wait(restored.enable(&host(), elsewhere.id)).unwrap_err();
    wait(restored.enable(&Actor::application(tenant("other")), elsewhere.id)).unwrap();
    restored
        .verify(elsewhere.secret.expose(), &Need::any())
        .unwrap();
    // A disabled legacy key can be rotated or enabled.
    let next = wait(restored.rotate(&host(), legacy.id, RotateKey::grace(hours(1)))).unwrap();
    restored.verify(next.secret.expose(), &Need::any()).unwrap();
    assert!(restored.verify(secrets[0], &Need::any()).is_err());
    let other = report.legacy.iter().find(|id| **id != legacy.id).unwrap();
    wait(restored.enable(&Actor::application(tenant("other")), *other)).unwrap();
}

#[test]
fn publishable_keys_are_disabled_too() {
    let world = TestService::new();
    let public = reader("web").class("publishable").environment("live");
    let public = world.create(&admin(), public).unwrap();
    let restored = world.restored(&backup(&world.store), standard());
    assert_eq!(recover(&restored, Recovery::DisableAll).disabled, 1);
    let shown = restored.verify(public.secret.expose(), &reading().or_publishable());
    assert!(shown.is_err());
}

#[test]
fn a_trusted_backup_is_left_unchanged() {
    let world = TestService::new();
    let key = world.some_key();
    let store = backup(&world.store);
    wait(world.keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    let restored = world.restored(&store, standard());
    let before = trail(&store).len();
    assert_eq!(
        recover(&restored, Recovery::TrustBackup),
        RecoveryReport::default()
    );
    assert!(accepts(&restored, &key));
    assert_eq!(trail(&store).len(), before);
}

/// Changes keys and owners in many ways, and checks how a replay affects each key.
#[test]
fn a_replay_repeats_every_change_that_ended_or_narrowed_a_key() {
    let mut spec = profiles::standard();
    let secret = spec.classes.get_mut("secret").unwrap();
    secret.deletion = Deletion::Typed("DELETE".to_owned());
    secret.revocation = Revocation::Allowed {
        confirm: true,
        keep: Some(days(1)),
    };
    let policies = || Policies::from(keyward::policy::Policy::new(spec.clone()).unwrap());
    let world = TestService::with_policies(policies());
    let [kept, revoked, deleted, purged, leaked, disabled, enabled] =
        std::array::from_fn(|_| world.some_key());
    let [
        narrowed,
        bound,
        shortened,
        at_once,
        drained,
        draining,
        waiting,
        called_off,
    ] = std::array::from_fn(|_| world.some_key());
    let bob = actor("acme", "bob", Role::DEVELOPER);
    let (of_bob, lost_secret) = (world.create(&bob, reader("b")).unwrap(), world.some_key());
    let carol = actor("acme", "carol", Role::DEVELOPER);
    let of_carol = world
        .create(&carol, reader("c").scope("reports:write"))
        .unwrap();
    let store = backup(&world.store);

    let keys = &world.keys;
    let (by, acme) = (admin(), tenant("acme"));
    let gone = Reason::Compromised.confirmed();
    wait(keys.revoke(&by, revoked.id, gone)).unwrap();
    wait(keys.delete(&by, deleted.id, DeleteKey::typed("DELETE"))).unwrap();
    wait(keys.revoke(&by, purged.id, gone)).unwrap();
    wait(keys.replace_lost(&by, lost_secret.id)).unwrap();
    let source = "scanner".try_into().unwrap();
    wait(keys.report_leaked_token(leaked.secret.expose(), source)).unwrap();
    wait(keys.disable(&by, disabled.id)).unwrap();
    wait(keys.disable(&by, enabled.id)).unwrap();
    wait(keys.enable(&by, enabled.id)).unwrap();
    let update = |key: &Created, change| wait(keys.update(&by, key.id, change)).unwrap();
    update(&narrowed, UpdateKey::new().scopes(["users:read"]));
    update(
        &bound,
        UpdateKey::new().allow_addresses(["192.0.2.0/24", "2001:db8::1"]),
    );
    update(&shortened, UpdateKey::new().expiry(Expiry::In(days(30))));
    let rotate = |key: &Created, how| wait(keys.rotate(&by, key.id, how)).unwrap();
    rotate(&at_once, RotateKey::immediate());
    rotate(&drained, RotateKey::grace(hours(1)));
    let newest = rotate(&draining, RotateKey::grace(days(30)));
    let successor = rotate(&waiting, RotateKey::on_first_use(hours(1)));
    rotate(&called_off, RotateKey::on_first_use(hours(1)));
    wait(keys.cancel_rotation(&by, called_off.id)).unwrap();
    wait(keys.remove_owner(&by, &acme, who("bob"))).unwrap();
    wait(keys.change_owner_role(&by, &acme, who("bob"), Role::DEVELOPER)).unwrap();
    wait(keys.change_owner_role(&by, &acme, who("carol"), Role::MEMBER)).unwrap();
    world.clock.advance(days(2));
    wait(keys.purge(&host(), &acme)).unwrap();

    let restored = world.restored(&store, policies());
    let entries = trail(&world.store);
    let report = recover(&restored, whole(entries.clone()));
    for key in [
        &kept,
        &enabled,
        &shortened,
        &draining,
        &waiting,
        &called_off,
        &of_carol,
    ] {
        assert!(accepts(&restored, key) && accepts(keys, key), "{key:?}");
    }
    let reason = |key: &Created| {
        wait(restored.key(&host(), key.id))
            .unwrap()
            .revocation
            .unwrap()
            .reason
    };
    assert_eq!(reason(&revoked), Reason::Compromised);
    assert_eq!(reason(&purged), Reason::Compromised);
    assert_eq!(reason(&leaked), Reason::Leaked);
    assert_eq!(reason(&lost_secret), Reason::Lost);
    assert_eq!(reason(&at_once), Reason::Rotated);
    assert_eq!(reason(&drained), Reason::Rotated);
    assert_eq!(reason(&of_bob), Reason::OwnerRemoved);
    assert!(wait(restored.key(&host(), deleted.id)).is_err());
    assert_eq!(status(&restored, disabled.id), Status::Disabled);
    assert!(!accepts(&restored, &narrowed) && !accepts(&restored, &bound));
    let end = |keys: &Keyward, id| wait(keys.key(&host(), id)).unwrap().expires_at;
    assert_eq!(end(&restored, shortened.id), end(keys, shortened.id));
    assert_eq!(end(&restored, draining.id), end(keys, draining.id));
    assert_eq!(end(&restored, waiting.id), end(keys, waiting.id));
    let writing = Need::scope("reports:write").unwrap();
    assert!(restored.verify(of_carol.secret.expose(), &writing).is_err());

    // The narrowing left the key none of the scopes that it had in the backup. So the replay disables the
    // key, and the report lists it for review.
    assert_eq!(report.to_review, [narrowed.id]);
    assert!(report.lost.contains(&newest.id) && report.lost.contains(&successor.id));
    assert_eq!(report.lost.len(), 4, "{report:?}");
    let RecoveryReport {
        tenants,
        closed,
        owners,
        disabled: off,
        ..
    } = report;
    assert_eq!((tenants, closed, owners, off), (1, 0, 2, 2));
    assert_eq!((report.revoked, report.removed, report.changed), (7, 1, 4));
    assert!(report.unknown.is_empty() && report.corrupt.is_empty());
    wait(restored.verify_audit(&host(), &acme, None)).unwrap();

    // A second replay repeats no change.
    let before = trail(&store).len();
    let again = recover(&restored, whole(entries.clone()));
    assert_eq!(trail(&store).len(), before);
    assert_eq!(
        (again.lost, again.to_review),
        (report.lost, report.to_review)
    );
    let numbers = [
        again.owners,
        again.disabled,
        again.revoked,
        again.removed,
        again.changed,
    ];
    assert_eq!(numbers, [0; 5]);

    // An operator has enabled a key, so the trail lacks the newest entry of the store.
    wait(restored.enable(&host(), disabled.id)).unwrap();
    let refused = wait(restored.recover(whole(entries)));
    assert!(matches!(refused, Err(RecoveryError::ForeignTrail)));
}

#[test]
fn a_legacy_key_rotated_since_the_backup_is_disabled() {
    let world = TestService::with_policies(policy(CAP));
    let legacy = wait(world.keys.provision_tenant(&host(), &tenant("acme"))).unwrap();
    let legacy = legacy.into_iter().next().unwrap();
    let store = backup(&world.store);
    wait(
        world
            .keys
            .rotate(&host(), legacy.id, RotateKey::immediate()),
    )
    .unwrap();
    let restored = world.restored(&store, policy(CAP));
    let report = recover(&restored, replay(&world.store));
    assert_eq!((report.legacy, report.disabled), (vec![legacy.id], 1));
    let presented = legacy.token.as_ref().unwrap().expose();
    assert!(
        restored
            .verify(presented, &Need::any().or_publishable())
            .is_err()
    );
    let next = wait(restored.rotate(&host(), legacy.id, RotateKey::grace(hours(1)))).unwrap();
    restored.verify(next.secret.expose(), &Need::any()).unwrap();
    assert!(restored.verify(presented, &Need::any()).is_err());
}

#[test]
fn a_tenant_closed_since_the_backup_is_closed_again_with_all_below() {
    let world = TestService::new();
    let key = world.some_key();
    let below = world
        .create(&admin(), reader("web").in_tenant(tenant("acme/web")))
        .unwrap();
    let store = backup(&world.store);
    wait(world.keys.close_tenant(&admin(), &tenant("acme"))).unwrap();
    let restored = world.restored(&store, standard());
    let report = recover(&restored, replay(&world.store));
    assert!(!accepts(&restored, &key) && !accepts(&restored, &below));
    assert_eq!((report.closed, report.revoked), (2, 2));
}

#[test]
fn entries_that_are_altered_foreign_or_missing_change_nothing() {
    let world = TestService::new();
    let (one, two) = (world.some_key(), world.some_key());
    world
        .create(&Actor::application(tenant("other")), reader("o"))
        .unwrap();
    let store = backup(&world.store);
    wait(world.keys.revoke(&admin(), one.id, Reason::Lost)).unwrap();
    wait(world.keys.revoke(&admin(), two.id, Reason::Lost)).unwrap();
    let entries = trail(&world.store);
    let own = |entry: &AuditEntry| entry.tenant == tenant("acme");
    let last = entries.iter().rposition(own).unwrap();
    let restored = world.restored(&store, standard());
    let before = dump(&store);
    let refused = |change: &dyn Fn(&mut Vec<AuditEntry>)| {
        let mut entries = entries.clone();
        change(&mut entries);
        let refused = wait(restored.recover(whole(entries)));
        assert_eq!(dump(&store), before);
        match refused.unwrap_err() {
            RecoveryError::Chain { error, .. } => error,
            other => panic!("{other:?}"),
        }
    };
    let altered = refused(&|entries| entries[last].action = Action::KeyDisabled);
    assert!(matches!(altered, ChainError::Altered { .. }));
    let known = refused(&|entries| entries[0].actor = author("mallory"));
    assert!(
        matches!(known, ChainError::Altered { .. }),
        "the altered entry differs from the one in the backup"
    );
    let gapped = refused(&|entries| drop(entries.remove(last - 1)));
    assert!(matches!(gapped, ChainError::Gap { .. }));
    let moved = refused(&|entries| entries[last].tenant = tenant("other"));
    assert!(matches!(
        moved,
        ChainError::Altered { .. } | ChainError::Gap { .. }
    ));
    // Without the entries before it, no entry shows that it belongs to the history of the backup.
    let begins_late = wait(restored.recover(whole(entries[last..].to_vec())));
    assert!(matches!(begins_late, Err(RecoveryError::ForeignTrail)));
    assert_eq!(dump(&store), before);

    // Unaltered entries from overlapping exports may be in any order, and may repeat.
    let mut given = entries.clone();
    given.reverse();
    given.extend(entries);
    assert_eq!(recover(&restored, whole(given)).revoked, 2);
    assert!(!accepts(&restored, &one) && !accepts(&restored, &two));
}

#[test]
fn an_unsealed_history_of_another_pepper_is_refused() {
    let world = TestService::new();
    let key = world.some_key();
    let store = backup(&world.store);
    wait(world.keys.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    let builder = Keyward::builder(store.clone(), PepperRing::new(pepper("p2", 2)));
    let restored = wait(builder.clock(world.clock.clone()).build()).unwrap();
    let refused = wait(restored.recover(replay(&world.store)));
    let Err(RecoveryError::Chain { error, .. }) = refused else {
        panic!("{refused:?}")
    };
    assert!(matches!(error, ChainError::UnknownPepper { .. }));
}

/// Returns a store whose calls fail after `commits` commits.
fn dying(inner: MemoryStore, commits: usize) -> FaultyStore<MemoryStore> {
    let made = AtomicUsize::new(0);
    FaultyStore::new(inner).with_plan(move |call| {
        let commit = usize::from(call == Call::Commit);
        match made.fetch_add(commit, Ordering::Relaxed) {
            before if before + commit > commits => Fault::Unavailable,
            _ => Fault::None,
        }
    })
}

#[test]
fn an_interrupted_recovery_continues() {
    let world = TestService::new();
    let made: Vec<_> = (0..4).map(|_| world.some_key()).collect();
    let others = ["a", "b", "c"].map(|path| {
        let host = Actor::application(tenant(path));
        world.create(&host, reader(path)).unwrap()
    });
    let source = backup(&world.store);
    wait(world.keys.revoke(&admin(), made[0].id, Reason::Lost)).unwrap();
    wait(world.keys.disable(&admin(), made[1].id)).unwrap();
    wait(world.keys.revoke(&admin(), made[2].id, Reason::Lost)).unwrap();
    let entries = trail(&world.store);
    for recovery in [whole(entries), Recovery::DisableAll] {
        for commits in 0..3 {
            let store = backup(&source);
            let broken = node(dying(store.clone(), commits), &world.clock, standard());
            let died = wait(broken.recover(recovery.clone()));
            assert!(
                matches!(died, Err(RecoveryError::Interrupted(_))),
                "{died:?}"
            );
            let restored = world.restored(&store, standard());
            let report = recover(&restored, recovery.clone());
            let all = matches!(recovery, Recovery::DisableAll);
            assert!(made[..3].iter().all(|key| !accepts(&restored, key)));
            assert_eq!(accepts(&restored, &made[3]), !all);
            assert!(others.iter().all(|key| accepts(&restored, key) != all));
            let done = report.disabled + report.revoked;
            let whole = if all { 7 } else { 3 };
            assert!(done < whole || commits == 0, "{report:?}");
            let reports = trail(&store).len() - trail(&source).len();
            assert_eq!(reports, whole, "each once");
            for path in ["acme", "a", "b", "c"] {
                let path = tenant(path);
                wait(restored.verify_audit(&Actor::application(path.clone()), &path, None))
                    .unwrap();
            }
        }
    }
}

#[test]
fn keys_of_a_large_store_are_disabled_in_commits_that_are_reported() {
    let mut spec = profiles::standard();
    spec.caps.clear();
    let world = TestService::with_policy(spec);
    let keys: Vec<_> = (0..1003).map(|_| world.some_key()).collect();
    let other = Actor::application(tenant("other"));
    world.create(&other, reader("other")).unwrap();
    let restored = world.restored(&backup(&world.store), standard());
    let mut reported = Vec::new();
    let progress = |at: RecoveryProgress| reported.push((at.done, at.total));
    let report = wait(restored.recover_with(Recovery::DisableAll, progress)).unwrap();
    assert_eq!(report.disabled, keys.len() + 1);
    assert_eq!(reported, [(1000, 1004), (1003, 1004), (1004, 1004)]);
    assert!(keys.iter().all(|key| !accepts(&restored, key)));
}

/// Returns the status of a tenant's trail in a report: its reach, the last entry, and whether the tenant's keys
/// were disabled.
fn trail_in(report: &RecoveryReport, path: &str) -> (TrailReach, Option<u64>, bool) {
    let named = |trail: &&ReplayedTrail| trail.tenant == tenant(path);
    let trail = report.trails.iter().find(named).unwrap();
    let last = trail.last.map(|end| end.sequence);
    (trail.reach, last, trail.disabled)
}

#[test]
fn a_trail_that_does_not_go_on_after_the_backup_changes_nothing() {
    let world = TestService::new();
    let (revoked, _) = (world.some_key(), world.some_key());
    let store = backup(&world.store);
    let copy = backup(&world.store);
    wait(world.keys.revoke(&admin(), revoked.id, Reason::Lost)).unwrap();
    let restored = world.restored(&store, standard());
    let before = dump(&store);
    let refused = |recovery| {
        let refused = wait(restored.recover(recovery)).unwrap_err();
        assert_eq!(dump(&store), before, "{refused}");
        refused
    };
    assert!(matches!(refused(replay(&store)), RecoveryError::SameStore));
    assert!(matches!(
        refused(replay(&copy)),
        RecoveryError::NothingLater
    ));
    let restored_entries = whole(trail(&store));
    assert!(matches!(
        refused(restored_entries),
        RecoveryError::NothingLater
    ));
    let empty = MemoryStore::new();
    assert!(matches!(
        refused(replay(&empty)),
        RecoveryError::ForeignTrail
    ));
    let short = trail(&store).into_iter().take(1).collect();
    assert!(matches!(refused(whole(short)), RecoveryError::ForeignTrail));
    // Another store under the same pepper, with the same tenant or with another one.
    for path in ["acme", "other"] {
        let elsewhere = TestService::new();
        elsewhere.clock.advance(hours(1));
        let host = Actor::application(tenant(path));
        let keys = [(); 3].map(|()| elsewhere.create(&host, reader("key")).unwrap());
        wait(elsewhere.keys.revoke(&host, keys[0].id, Reason::Lost)).unwrap();
        assert!(matches!(
            refused(replay(&elsewhere.store)),
            RecoveryError::ForeignTrail
        ));
    }
    assert_eq!(recover(&restored, replay(&world.store)).revoked, 1);
    assert!(!accepts(&restored, &revoked));
}

#[test]
fn keys_of_a_tenant_that_no_trail_covers_are_disabled() {
    let world = TestService::new();
    let key = |path: &str| {
        let host = Actor::application(tenant(path));
        world.create(&host, reader("key")).unwrap()
    };
    let [acme, bare, short, unchanged] = ["acme", "bare", "short", "unchanged"].map(key);
    let short_end = trail(&world.store).len();
    let also = key("short");
    let store = backup(&world.store);
    let end = |path: &str| {
        let path = tenant(path);
        let entries = trail(&store).into_iter();
        entries.filter(|entry| entry.tenant == path).count() as u64
    };
    let ends = ["acme", "bare", "short", "unchanged"].map(end);
    wait(
        world
            .keys
            .update(&host(), acme.id, UpdateKey::new().name("x")),
    )
    .unwrap();
    for (path, key) in [("bare", &bare), ("short", &also)] {
        let host = Actor::application(tenant(path));
        wait(world.keys.revoke(&host, key.id, Reason::Lost)).unwrap();
    }
    let given = trail(&world.store).into_iter().enumerate();
    let given = given.filter(|(number, entry)| match entry.tenant.as_str() {
        "bare" => false,
        "short" => *number < short_end,
        _ => true,
    });
    let entries: Vec<_> = given.map(|(_, entry)| entry).collect();
    // A short trail contradicts the claim that the entries are whole, and a missing one does not. Entries of which this
    // claim is false prove nothing.
    for (is_whole, gives_short) in [(true, true), (true, false), (false, true)] {
        let mut entries = entries.clone();
        entries.retain(|entry| gives_short || entry.tenant != tenant("short"));
        let proves_unchanged = is_whole && !gives_short;
        let is_other_store = is_whole && gives_short;
        let restored = world.restored(&backup(&store), standard());
        let report = recover(&restored, Recovery::Replay { entries, is_whole });
        assert_eq!(accepts(&restored, &acme), !is_other_store);
        let uncovered = [&bare, &short, &also];
        assert!(uncovered.iter().all(|key| !accepts(&restored, key)));
        assert_eq!(accepts(&restored, &unchanged), proves_unchanged);
        let changed = usize::from(!proves_unchanged) + usize::from(is_other_store);
        assert_eq!(report.disabled, 3 + changed);
        let [acme, _, short, unchanged] = ends;
        let reach = |path| trail_in(&report, path);
        let beyond = (TrailReach::Beyond, Some(acme + 1), is_other_store);
        assert_eq!(reach("acme"), beyond);
        assert_eq!(reach("bare"), (TrailReach::Missing, None, true));
        match gives_short {
            true => assert_eq!(reach("short"), (TrailReach::Short, Some(short - 1), true)),
            false => assert_eq!(reach("short"), (TrailReach::Missing, None, true)),
        }
        let same = (TrailReach::RestoredEnd, Some(unchanged), !proves_unchanged);
        assert_eq!(reach("unchanged"), same);
    }
}

/// The entries that a recovery adds are not part of the backup, so the restored end stays where it was.
#[test]
fn a_replay_continues_after_a_recovery_disabled_keys() {
    let world = TestService::new();
    let (revoked, kept) = (world.some_key(), world.some_key());
    let other = Actor::application(tenant("other"));
    world.create(&other, reader("key")).unwrap();
    let store = backup(&world.store);
    wait(world.keys.revoke(&admin(), revoked.id, Reason::Lost)).unwrap();
    let restored = world.restored(&store, standard());
    let entries = trail(&world.store).into_iter();
    let entries: Vec<_> = entries
        .filter(|entry| entry.tenant == tenant("acme"))
        .collect();
    let first = recover(&restored, whole(entries.clone()));
    assert_eq!((first.disabled, first.revoked), (1, 1));
    assert!(accepts(&restored, &kept));
    let disabled = recover(&restored, Recovery::DisableAll).disabled;
    assert_eq!(disabled, 1, "only the kept key could verify");
    let before = trail(&store).len();
    let again = recover(&restored, whole(entries));
    assert_eq!(again.trails, first.trails);
    assert_eq!(trail(&store).len(), before);
}

/// The store is lost, restored and recovered; later the recovered store is lost too. The entries of the first
/// recovery are in its backup, and the first lost store lacks them.
#[test]
fn the_first_of_two_lost_stores_is_no_source_for_the_second_recovery() {
    for has_new_tenant in [false, true] {
        let first = TestService::new();
        let revoked = first.some_key();
        let host = |path: &str| Actor::application(tenant(path));
        let quiet = first.create(&host("quiet"), reader("key")).unwrap();
        let first_backup = backup(&first.store);
        wait(first.keys.revoke(&admin(), revoked.id, Reason::Lost)).unwrap();
        if has_new_tenant {
            first.create(&host("new"), reader("key")).unwrap();
        }
        let second = first.restored(&first_backup, standard());
        assert_eq!(recover(&second, replay(&first.store)).revoked, 1);
        let second_backup = backup(&first_backup);
        wait(second.revoke(&host("quiet"), quiet.id, Reason::Lost)).unwrap();

        let third = first.restored(&second_backup, standard());
        let refused = wait(third.recover(replay(&first.store)));
        if has_new_tenant {
            let report = refused.unwrap();
            assert_eq!(trail_in(&report, "acme").0, TrailReach::Diverges);
            assert!(trail_in(&report, "quiet").2);
        } else {
            assert!(matches!(refused, Err(RecoveryError::NothingLater)));
            assert_eq!(recover(&third, replay(&first_backup)).revoked, 1);
        }
        assert!(!accepts(&third, &quiet));
    }
}

/// A host chooses its command ids freely.
#[test]
fn a_command_of_the_host_is_never_taken_for_one_of_a_recovery() {
    let world = TestService::new();
    let host = host();
    let by = host.with_command_id(command("recovery:1"));
    wait(world.keys.create(by, reader("key"))).unwrap();
    let (store, copy) = (backup(&world.store), backup(&world.store));
    let restored = world.restored(&store, standard());
    let refused = wait(restored.recover(replay(&copy)));
    assert!(matches!(refused, Err(RecoveryError::NothingLater)));
}

/// A backup may be older than the entries that the lost store kept.
#[test]
fn a_trail_that_was_pruned_after_the_backup_disables_its_tenant_alone() {
    let world = TestService::new();
    let other = Actor::application(tenant("other"));
    let (kept, revoked) = (world.some_key(), world.some_key());
    let [quiet, lost] = ["quiet", "lost"].map(|name| world.create(&other, reader(name)).unwrap());
    let store = backup(&world.store);
    world.some_key();
    world.clock.advance(days(2));
    wait(world.keys.revoke(&admin(), revoked.id, Reason::Lost)).unwrap();
    wait(world.keys.revoke(&other, lost.id, Reason::Lost)).unwrap();
    let day = at(START).saturating_add(days(1));
    wait(world.keys.prune_audit(&host(), &tenant("acme"), day, None)).unwrap();
    let restored = world.restored(&store, standard());
    let first = recover(&restored, replay(&world.store));
    assert_eq!(trail_in(&first, "acme").0, TrailReach::Gap);
    assert!(trail_in(&first, "acme").2 && !trail_in(&first, "other").2);
    assert!(accepts(&restored, &quiet) && !accepts(&restored, &lost));
    assert_eq!(status(&restored, kept.id), Status::Disabled);
    assert_eq!(status(&restored, revoked.id), Status::Revoked);
    // The recovery added entries with the numbers of the missing ones.
    let before = trail(&store).len();
    assert_eq!(
        recover(&restored, replay(&world.store)).trails,
        first.trails
    );
    assert_eq!(trail(&store).len(), before);
}

/// An owner may have been removed, or a tenant closed, above or below the tenant whose trail is given. Their rows
/// limit its keys too.
#[test]
fn a_trail_covers_a_tenant_only_with_the_tenants_above_and_below_it() {
    let world = TestService::new();
    let key = |path: &str| {
        let host = Actor::application(tenant(path));
        world.create(&host, reader("key")).unwrap()
    };
    let [root, middle, leaf, beside] = ["acme", "acme/b", "acme/b/c", "acme/d"].map(key);
    let store = backup(&world.store);
    for (path, key) in [("acme", &root), ("acme/b/c", &leaf), ("acme/d", &beside)] {
        let host = Actor::application(tenant(path));
        wait(world.keys.update(&host, key.id, UpdateKey::new().name("x"))).unwrap();
    }
    let restored = world.restored(&store, standard());
    let lacks_middle = |entry: &AuditEntry| entry.tenant != tenant("acme/b");
    let entries = trail(&world.store).into_iter().filter(lacks_middle);
    let report = recover(&restored, whole(entries.collect()));
    assert_eq!(report.disabled, 3);
    assert!(
        [&root, &middle, &leaf]
            .iter()
            .all(|key| !accepts(&restored, key))
    );
    assert!(accepts(&restored, &beside));
}

/// A tenant that was created after the backup proves only that the whole source is newer than the backup.
#[test]
fn a_new_tenant_proves_that_a_whole_source_goes_on() {
    let world = TestService::new();
    let kept = world.some_key();
    let store = backup(&world.store);
    let host = Actor::application(tenant("new"));
    world.create(&host, reader("new")).unwrap();
    let restored = world.restored(&store, standard());
    let (entries, is_whole) = (trail(&world.store), false);
    let refused = wait(restored.recover(Recovery::Replay { entries, is_whole }));
    assert!(matches!(refused, Err(RecoveryError::NothingLater)));
    let report = recover(&restored, replay(&world.store));
    assert!(accepts(&restored, &kept));
    assert_eq!(report.lost.len(), 1);
}

/// A service whose store is backed up after a number of commands.
struct BackedUp {
    facade: Facade,
    store: MemoryStore,
    asks_left: usize,
    backup: Option<MemoryStore>,
    secrets: Vec<String>,
}

impl System for BackedUp {
    fn execute(
        &mut self,
        model: &ReferenceModel,
        by: &ModelActor,
        id: &str,
        command: &ModelCommand,
    ) -> Result<IssuedSecrets, RefusalReason> {
        if self.asks_left == 0 && self.backup.is_none() {
            self.backup = Some(backup(&self.store));
        }
        self.asks_left = self.asks_left.saturating_sub(1);
        let given = self.facade.execute(model, by, id, command);
        if let Ok(given) = &given {
            let made = given.made.iter().chain(&given.provisioned);
            self.secrets.extend(made.map(|(_, secret)| secret.clone()));
        }
        given
    }
    fn use_key(&mut self, secret: &str) {
        self.facade.use_key(secret);
    }
    fn sees(&mut self, secret: &str) -> Option<u16> {
        self.facade.sees(secret)
    }
    fn accepts_here(&mut self, secret: &str) -> bool {
        self.facade.accepts_here(secret)
    }
    fn list(&mut self, tenant: &str) -> Vec<ListedKey> {
        self.facade.list(tenant)
    }
    fn clock(&self) -> Timestamp {
        self.facade.clock()
    }
    fn wait(&mut self, by: Duration) {
        self.facade.wait(by);
    }
    fn jump_back(&mut self, by: Duration) {
        self.facade.jump_back(by);
    }
}

const CAP: usize = 4;

/// Starts a node configured like the model's facade.
fn model_node(store: impl KeyStore, clock: &Arc<ManualClock>) -> Keyward {
    let pepper = Pepper::new("model".try_into().unwrap(), &[7; Pepper::MIN_LEN]).unwrap();
    let builder = Keyward::builder(store, PepperRing::new(pepper));
    wait(builder.policy(policy(CAP)).clock(clock.clone()).build()).unwrap()
}

/// Returns the scopes that a key has, out of all scopes of the model.
fn reach(keys: &Keyward, secret: &str) -> Vec<&'static str> {
    let scopes = [
        "reports:read",
        "reports:write",
        "users:read",
        "users:write",
        "other:other",
    ];
    let allowed = |scope: &&str| keys.verify(secret, &Need::scope(*scope).unwrap()).is_ok();
    let bare = keys.verify(secret, &Need::any()).is_ok();
    let mut reach: Vec<_> = scopes.into_iter().filter(allowed).collect();
    reach.extend(bare.then_some("any"));
    reach
}

/// Checks one case. Returns whether the recovery repeated a change on the restored store.
fn replayed_accepts_no_more(
    steps: &[ModelStep],
    before: usize,
    commits: usize,
    later: &[Duration],
) -> Result<bool, TestCaseError> {
    let store = MemoryStore::new();
    let mut system = BackedUp {
        facade: Facade::new(Arc::new(store.clone()), policy(CAP)),
        store: store.clone(),
        asks_left: before,
        backup: None,
        secrets: Vec::new(),
    };
    run(&mut system, CAP, steps).unwrap();
    let Some(backup) = system.backup.take() else {
        return Ok(false);
    };
    let clock = Arc::new(ManualClock::at(system.clock()));
    let lost = model_node(store.clone(), &clock);
    // Sets the wall clock of the new nodes to the time of the system's facade, which its last step may have
    // changed.
    clock.set_wall(system.facade.time());
    let entries = exported(&store);
    prop_assert_eq!(&entries, &trail(&store));
    let behind = trail(&backup).len();
    let broken = model_node(dying(backup.clone(), commits), &clock);
    let begun = wait(broken.recover(whole(entries.clone())));
    if behind > 0 && entries.len() == behind {
        prop_assert!(matches!(begun, Err(RecoveryError::NothingLater)));
        return Ok(false);
    }
    let restored = model_node(backup.clone(), &clock);
    let behind = trail(&backup).len();
    recover(&restored, whole(entries.clone()));
    let known = trail(&backup).len();
    let repeated = known > behind;
    for by in [&Duration::ZERO].into_iter().chain(later) {
        clock.advance(*by);
        wait(lost.sync()).unwrap();
        for secret in &system.secrets {
            let (now, then) = (reach(&restored, secret), reach(&lost, secret));
            prop_assert!(
                now.iter().all(|need| then.contains(need)),
                "{now:?} of {then:?}"
            );
        }
        recover(&restored, whole(entries.clone()));
    }
    for path in TENANTS {
        let path = tenant(path);
        wait(restored.verify_audit(&Actor::application(path.clone()), &path, None)).unwrap();
    }
    prop_assert!(
        later.iter().any(|by| !by.is_zero()) || trail(&backup).len() == known,
        "{:?}",
        trail(&backup).split_off(known)
    );
    recover(&restored, Recovery::DisableAll);
    for secret in &system.secrets {
        prop_assert!(restored.verify(secret, &Need::any()).is_err());
    }
    Ok(repeated)
}

#[test]
fn every_use_refused_before_the_loss_is_refused_after_a_replay() {
    let repeated = Reached::new("a repeated change");
    let config = Config {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "it/recovery.proptest-regressions",
        ))),
        max_shrink_iters: 2000,
        ..Config::default()
    };
    let cases = (
        strategies::steps(60),
        0_usize..30,
        0_usize..12,
        prop::collection::vec(strategies::clock_moves(), 0..3),
    );
    proptest!(config, |((steps, before, commits, later) in cases)| {
        repeated.note(replayed_accepts_no_more(&steps, before, commits, &later)?);
    });
}

// The tests below check how a recovery affects the reach of keys.

#[test]
fn a_widening_is_not_repeated() {
    let world = TestService::with_policies(standard());
    world.some_key();
    let bob = actor("acme", "bob", Role::DEVELOPER);
    let key = world
        .create(&bob, reader("bob's").allow_addresses(["10.0.0.0/8"]))
        .unwrap();
    let mixed = reader("mixed").scopes(["reports:read", "users:read"]);
    let mixed = world.create(&bob, mixed).unwrap();
    let store = backup(&world.store);
    let developer = actor("acme", "dora", Role::DEVELOPER);
    let wider = UpdateKey::new()
        .scopes(["*:*"])
        .allow_addresses([])
        .expiry(Expiry::Never);
    wait(world.keys.update(&developer, key.id, wider)).unwrap();
    // This update widens one scope of the key and removes the other scope.
    let other = UpdateKey::new().scopes(["reports:*"]);
    wait(world.keys.update(&developer, mixed.id, other)).unwrap();
    let restored = world.restored(&store, standard());
    let report = recover(&restored, replay(&world.store));
    assert!(report.to_review.is_empty(), "{report:?}");
    let info = wait(restored.key(&host(), key.id)).unwrap();
    assert_eq!(info.scopes, scope("reports:read").into());
    assert_eq!(info.allowlist.iter().count(), 1);
    let info = wait(restored.key(&host(), mixed.id)).unwrap();
    assert_eq!(info.scopes, scope("reports:read").into());
}

/// The restored record does not show that the key was replaced. Such a key could still rotate itself, so the
/// replay disables it.
#[test]
fn a_replaced_key_that_rotates_itself_is_disabled() {
    let mut spec = profiles::standard();
    let secret = spec.classes.get_mut("secret").unwrap();
    secret.self_rotation = keyward::policy::SelfRotation::WithinLife;
    let policies = || keyward::policy::Policy::new(spec.clone()).unwrap();
    let world = TestService::with_policies(policies());
    let key = world.create(&admin(), reader("key")).unwrap();
    let store = backup(&world.store);
    let how = RotateKey::grace(hours(24));
    wait(world.keys.rotate(&admin(), key.id, how)).unwrap();
    let restored = world.restored(&store, policies());
    let report = recover(&restored, replay(&world.store));
    assert_eq!(report.to_review, [key.id]);
    assert_eq!(status(&restored, key.id), Status::Disabled);
}

#[test]
fn a_leaked_key_is_marked_as_leaked_after_a_replay() {
    let world = TestService::with_policies(standard());
    let publishable = CreateKey::new("shown")
        .class("publishable")
        .environment("live")
        .scope("reports:read");
    let key = world.create(&admin(), publishable).unwrap();
    let store = backup(&world.store);
    let source = LeakSource::new("a paste").unwrap();
    wait(world.keys.report_leaked_token(key.secret.expose(), source)).unwrap();
    let restored = world.restored(&store, standard());
    let entries = trail(&world.store);
    recover(&restored, whole(entries.clone()));
    let exposed = || wait(restored.key(&host(), key.id)).unwrap().exposed_at;
    assert!(exposed().is_some());
    let before = trail(&store).len();
    recover(&restored, whole(entries));
    assert_eq!(trail(&store).len(), before, "noted once");
}

fn import(keys: &Keyward, token: &str, key: CreateKey) -> Result<KeyId, keyward::CommandError> {
    let import = ImportKey::sha256(Digest::sha256(token), key);
    wait(keys.import(&admin(), import)).map(|made| made.id)
}

#[test]
fn a_blocked_digest_stays_blocked_after_a_second_loss() {
    let world = TestService::with_policies(standard());
    world.some_key();
    let store = backup(&world.store);
    let key = import(&world.keys, "token", reader("old")).unwrap();
    wait(world.keys.revoke(&admin(), key, Reason::Leaked)).unwrap();
    let mut lost = trail(&world.store);
    for _ in 0..3 {
        let copy = backup(&store);
        let restored = world.restored(&copy, standard());
        recover(&restored, whole(lost));
        let again = denied(import(&restored, "token", reader("old")));
        assert_eq!(again, Denial::DigestTaken);
        lost = trail(&copy);
    }
}

/// An imported key can end without an audit entry that names it: its owner is removed, its tenant is closed,
/// or it expires.
#[test]
fn an_import_ended_by_a_row_or_by_time_is_not_repeated() {
    let world = TestService::with_policies(standard());
    let owned = |path: &str| {
        let key = reader("old").in_tenant(tenant(path));
        key.owned_by(who("bob"), Role::DEVELOPER)
    };
    world.some_key();
    wait(world.keys.provision_tenant(&admin(), &tenant("acme/web"))).unwrap();
    let bob = actor("acme", "bob", Role::DEVELOPER);
    world.create(&bob, reader("bob's")).unwrap();
    world
        .create(&bob, reader("below").in_tenant(tenant("acme/web")))
        .unwrap();
    let store = backup(&world.store);
    import(&world.keys, "removed", owned("acme")).unwrap();
    import(&world.keys, "closed", owned("acme/web")).unwrap();
    import(&world.keys, "expired", reader("old").expires_in(hours(1))).unwrap();
    import(&world.keys, "alive", reader("old")).unwrap();
    // Each command commits the row of the tenant or owner, and fails before it revokes any key. So no entry
    // records a revoked key.
    let interrupted = || {
        let store = FaultyStore::new(world.store.clone());
        store.next(Call::Commit, [Fault::None, Fault::Unavailable]);
        node(store, &world.clock, standard())
    };
    let (acme, web) = (tenant("acme"), tenant("acme/web"));
    assert!(wait(interrupted().close_tenant(&admin(), &web)).is_err());
    assert!(wait(interrupted().remove_owner(&admin(), &acme, who("bob"))).is_err());
    world.clock.advance(hours(2));
    let host = host();
    let back = world
        .keys
        .sync_role(&host, &acme, who("bob"), Role::DEVELOPER);
    wait(back).unwrap();
    let entries = trail(&world.store);
    let revoked = |entry: &AuditEntry| matches!(entry.action, Action::KeyRevoked { .. });
    assert!(!entries.iter().any(revoked));
    let restored = world.restored(&store, standard());
    recover(&restored, whole(entries));
    world.clock.advance(hours(1));
    for token in ["removed", "expired"] {
        let again = denied(import(&restored, token, reader("old")));
        assert_eq!(again, Denial::DigestTaken, "{token}");
    }
    let closed = import(&restored, "closed", reader("old"));
    assert_eq!(denied(closed), Denial::DigestTaken);
    import(&restored, "alive", reader("old")).unwrap();
}

/// A replay repeats a narrowing even if a later change undid it. It cannot repeat the widening, because
/// entries do not record the limits of their author.
#[test]
fn a_key_narrowed_and_widened_again_is_narrow_after_a_replay() {
    let world = TestService::with_policies(standard());
    let both = reader("key").scopes(["reports:read", "users:read"]);
    let key = world.create(&admin(), both).unwrap();
    let store = backup(&world.store);
    let by = admin();
    let update = |change| wait(world.keys.update(&by, key.id, change)).unwrap();
    update(UpdateKey::new().scopes(["reports:read"]));
    update(UpdateKey::new().expiry(Expiry::In(days(3))));
    update(UpdateKey::new().allow_addresses(["10.0.0.0/8"]));
    let narrow = wait(world.keys.key(&host(), key.id)).unwrap();
    update(UpdateKey::new().scopes(["reports:read", "users:read"]));
    update(UpdateKey::new().expiry(Expiry::Never));
    update(UpdateKey::new().allow_addresses([]));
    let restored = world.restored(&store, standard());
    recover(&restored, replay(&world.store));
    let info = wait(restored.key(&host(), key.id)).unwrap();
    assert_eq!(info.scopes, narrow.scopes);
    assert_eq!(info.expires_at, narrow.expires_at);
    assert_eq!(info.allowlist, narrow.allowlist);
}

/// A rotation may set an end that equals the key's own expiry. Even then the key counts as replaced, so the
/// replay disables it.
#[test]
fn a_key_replaced_near_its_end_is_disabled_if_it_rotates_itself() {
    let mut spec = profiles::standard();
    let secret = spec.classes.get_mut("secret").unwrap();
    secret.self_rotation = keyward::policy::SelfRotation::WithinLife;
    let policies = || keyward::policy::Policy::new(spec.clone()).unwrap();
    let world = TestService::with_policies(policies());
    let key = world
        .create(&admin(), reader("key").expires_in(days(2)))
        .unwrap();
    let store = backup(&world.store);
    let rotated = wait(
        world
            .keys
            .rotate(&admin(), key.id, RotateKey::grace(days(7))),
    )
    .unwrap();
    assert_eq!(Some(rotated.until), key.expires_at);
    let restored = world.restored(&store, policies());
    recover(&restored, replay(&world.store));
    assert_eq!(status(&restored, key.id), Status::Disabled);
}

/// Two keys were imported after the backup, so the restored store lacks them. The key that was only widened
/// may be imported again, and the narrowed key may not.
#[test]
fn an_import_that_was_only_widened_is_repeated() {
    let world = TestService::with_policies(standard());
    world.some_key();
    let store = backup(&world.store);
    let widened = import(&world.keys, "widened", reader("old")).unwrap();
    let narrowed = import(&world.keys, "narrowed", reader("old").scope("users:read")).unwrap();
    let by = admin();
    let update = |key, scopes: &[&str]| {
        let change = UpdateKey::new().scopes(scopes.iter().copied());
        wait(world.keys.update(&by, key, change)).unwrap();
    };
    update(widened, &["reports:*"]);
    update(narrowed, &["users:read"]);
    let restored = world.restored(&store, standard());
    recover(&restored, replay(&world.store));
    import(&restored, "widened", reader("old")).unwrap();
    let again = denied(import(&restored, "narrowed", reader("old")));
    assert_eq!(again, Denial::DigestTaken);
}

/// A rotation ends an imported key. If the restored store lacks the key, its digest may not be imported again,
/// unless the rotation was cancelled.
#[test]
fn an_import_that_was_rotated_is_not_repeated() {
    let world = TestService::with_policies(standard());
    world.some_key();
    let store = backup(&world.store);
    let modes = [
        ("immediate", RotateKey::immediate()),
        ("with grace", RotateKey::grace(hours(24))),
        ("on first use", RotateKey::on_first_use(hours(24))),
        ("cancelled", RotateKey::grace(hours(24))),
    ];
    for (token, how) in modes.clone() {
        let key = import(&world.keys, token, reader("old")).unwrap();
        wait(world.keys.rotate(&admin(), key, how)).unwrap();
        if token == "cancelled" {
            wait(world.keys.cancel_rotation(&admin(), key)).unwrap();
        }
    }
    let restored = world.restored(&store, standard());
    recover(&restored, replay(&world.store));
    for (token, _) in modes {
        let again = import(&restored, token, reader("old"));
        match token {
            "cancelled" => drop(again.unwrap()),
            _ => assert_eq!(denied(again), Denial::DigestTaken, "{token}"),
        }
    }
}

#[test]
fn a_recovery_replays_on_a_store_whose_trail_was_pruned() {
    let world = TestService::new();
    let (lost, kept) = (world.some_key(), world.some_key());
    let archive = trail(&world.store);
    world.clock.advance(days(2));
    world.some_key();
    let day = at(START).saturating_add(days(1));
    let pruned = wait(world.keys.prune_audit(&host(), &tenant("acme"), day, None)).unwrap();
    assert!(pruned.removed > 1);
    let saved = backup(&world.store);
    wait(world.keys.revoke(&host(), lost.id, Reason::Lost)).unwrap();
    let rest = trail(&world.store);
    let joined = [&archive[..], &rest[..]].concat();
    // An archive may also begin within the removed entries.
    for entries in [rest.clone(), joined.clone(), joined[1..].to_vec()] {
        let restored = world.restored(&backup(&saved), standard());
        let report = recover(&restored, whole(entries));
        assert_eq!(report.tenants, 1);
        assert!(!accepts(&restored, &lost) && accepts(&restored, &kept));
    }
    // An archive that ends before the backup is no proof.
    let restored = world.restored(&backup(&saved), standard());
    let refused = wait(restored.recover(whole(archive)));
    assert!(matches!(refused, Err(RecoveryError::ForeignTrail)));
    // Another history of the removed entries is refused.
    let other = TestService::new();
    other.some_key();
    other.some_key();
    let foreign = [&trail(&other.store)[..], &rest[..]].concat();
    let restored = world.restored(&backup(&saved), standard());
    let recovery = whole(foreign);
    assert!(wait(restored.recover(recovery)).is_err());
}
