//! Commands that take several commits. Authority is checked at the first commit, and the later commits only
//! narrow keys.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use keyward::audit::Action;
use keyward::command::{BulkFilter, DeleteKey};
use keyward::store::{
    AuditPage, AuditQuery, Changes, ChangesError, Commit, CommitError, Cursor, FoundKey, KeyPage,
    KeyQuery, KeyStore, LoadRequest, Locator, MemoryStore, Revision, RowKey, ScanPage, StoreError,
    StoreErrorKind, TenantView, async_trait,
};
use keyward::{Clock, Keyward, Need, Reason, Role, RotateKey, TenantId, UpdateKey, hours};

use super::{acting, set_role, whole};
use support::*;

/// A store that accepts a number of commits and fails all later ones.
#[derive(Debug)]
struct Stops {
    inner: MemoryStore,
    left: AtomicUsize,
    refused: Mutex<usize>,
}

#[async_trait]
impl KeyStore for Stops {
    async fn load(
        &self,
        tenant: &TenantId,
        select: &LoadRequest,
    ) -> Result<TenantView, StoreError> {
        self.inner.load(tenant, select).await
    }

    async fn find(&self, locator: &Locator) -> Result<Option<FoundKey>, StoreError> {
        self.inner.find(locator).await
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        let order = Ordering::SeqCst;
        let left = self
            .left
            .fetch_update(order, order, |left| left.checked_sub(1));
        if left.is_err() {
            *self.refused.lock().unwrap() += 1;
            let kind = StoreErrorKind::Unavailable;
            return Err(StoreError::new(kind, "a store that stops").into());
        }
        self.inner.commit(commit).await
    }

    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError> {
        self.inner.changes(after, limit).await
    }

    async fn scan(
        &self,
        after: Option<RowKey>,
        limit: NonZeroUsize,
    ) -> Result<ScanPage, StoreError> {
        self.inner.scan(after, limit).await
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        self.inner.list(query).await
    }

    async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        self.inner.audit(query).await
    }
}

/// Returns another node over the same store. Its commits fail after the first `left`.
fn stopping(world: &TestService, left: usize) -> Keyward {
    let store = Stops {
        inner: world.store.clone(),
        left: AtomicUsize::new(left),
        refused: Mutex::default(),
    };
    let policy = keyward::policy::Policy::new(super::policy()).unwrap();
    let keys = node(store, &world.clock, policy);
    wait(keys.sync()).unwrap();
    keys
}

fn trail(
    world: &TestService,
    path: &str,
) -> Vec<(Action, keyward::key::Author, keyward::command::CommandId)> {
    let query = AuditQuery::tenant(tenant(path));
    let host = keyward::Actor::application(tenant(path));
    let rows = wait(world.keys.audit(&host, &query)).unwrap().rows;
    let entry =
        |row: keyward::store::AuditRow| (row.entry.actor, row.entry.action, row.entry.command);
    let entries = rows.into_iter().map(entry);
    entries
        .map(|(actor, action, command)| (action, actor, command))
        .collect()
}

/// Maintenance finishes an interrupted bulk revocation, and revokes only keys that match the filter of the
/// command.
#[test]
fn maintenance_revokes_no_key_that_the_filter_of_the_command_excludes() {
    for by_maker in [false, true] {
        let world = super::world();
        let (maker, key) = acting(&world, &admin(), whole("wide"));
        let below = || whole("wide").in_tenant(tenant("acme/web"));
        let old = [
            world.create(&key, whole("wide")),
            world.create(&key, below()),
        ];
        world.clock.advance(Duration::from_secs(60));
        let limit = world.clock.now();
        let young = [
            world.create(&key, whole("wide")),
            world.create(&key, below()),
        ];
        world.clock.advance(Duration::from_secs(60));
        wait(world.keys.sync()).unwrap();
        let half = stopping(&world, 1);
        let filter = match by_maker {
            false => BulkFilter::all(),
            true => BulkFilter::all().made_by(maker.id),
        };
        let filter = filter.created_before(limit);
        let by = admin();
        let by = by.with_command_id(command("sweep"));
        assert!(wait(half.revoke_many(by, &tenant("acme"), filter, Reason::Unused)).is_err());
        world.clock.advance(Duration::from_secs(61));
        wait(world.keys.sync()).unwrap();
        assert_eq!(wait(world.keys.run_maintenance()).unwrap(), 1);
        let works = |created: &keyward::command::Created| {
            let verdict = world.keys.verify(created.secret.expose(), &Need::any());
            verdict.is_ok()
        };
        let [old, young] = [old, young].map(|keys| keys.map(|key| works(&key.unwrap())));
        assert_eq!((old, young), ([false, !by_maker], [true; 2]));
    }
}

#[test]
fn a_bulk_revocation_continues_after_its_callers_key_is_revoked() {
    let world = super::world();
    let (created, key) = acting(&world, &admin(), whole("wide"));
    let victims = [world.some_key(), world.some_key()];
    let filter = || BulkFilter::all().class(class("secret"));
    let node = stopping(&world, 1);
    let by = key.with_command_id(command("sweep"));
    let place = tenant("acme");
    assert!(wait(node.revoke_many(&by, &place, filter(), Reason::Unused)).is_err());
    wait(world.keys.revoke(&admin(), created.id, Reason::Lost)).unwrap();
    // The repeated call continues the bulk revocation, although the key that started it is revoked. The
    // revoked key may do nothing else.
    let swept = wait(
        world
            .keys
            .revoke_many(&by, &place, filter(), Reason::Unused),
    )
    .unwrap();
    assert_eq!(swept.ended, 2);
    for victim in victims {
        assert!(
            world
                .keys
                .verify(victim.secret.expose(), &Need::any())
                .is_err()
        );
    }
}

#[test]
fn maintenance_finishes_a_command_whose_caller_is_gone() {
    let world = super::world();
    let (created, key) = acting(&world, &admin(), whole("wide"));
    let victim = world.some_key();
    let node = stopping(&world, 1);
    let by = key.with_command_id(command("sweep"));
    let filter = BulkFilter::all().class(class("secret"));
    assert!(wait(node.revoke_many(&by, &tenant("acme"), filter, Reason::Unused)).is_err());
    wait(world.keys.sync()).unwrap();
    assert_eq!(
        wait(world.keys.run_maintenance()).unwrap(),
        0,
        "the caller may still be running"
    );
    world.clock.advance(Duration::from_secs(61));
    wait(world.keys.sync()).unwrap();
    assert_eq!(wait(world.keys.run_maintenance()).unwrap(), 1);
    assert!(
        world
            .keys
            .verify(victim.secret.expose(), &Need::any())
            .is_err()
    );
    let entries = trail(&world, "acme");
    let revoked = entries
        .iter()
        .filter(|(action, ..)| matches!(action, Action::KeyRevoked { .. }));
    for (_, author, id) in revoked {
        assert_eq!((author.key(), id), (Some(created.id), &command("sweep")));
    }
    assert!(
        entries
            .iter()
            .any(|(action, ..)| *action == Action::BulkCommandEnded)
    );
    wait(world.keys.sync()).unwrap();
    world.clock.advance(Duration::from_secs(61));
    assert_eq!(
        wait(world.keys.run_maintenance()).unwrap(),
        0,
        "no key is left to revoke"
    );
}

#[test]
fn maintenance_finishes_removals_and_closings_below() {
    let world = super::world();
    let bob = actor("acme", "bob", Role::DEVELOPER);
    let below = reader("below").in_tenant(tenant("acme/web"));
    let below = world.create(&bob, below).unwrap();
    let node = stopping(&world, 1);
    assert!(wait(node.remove_owner(&admin(), &tenant("acme"), who("bob"))).is_err());
    world.clock.advance(Duration::from_secs(61));
    wait(world.keys.sync()).unwrap();
    assert_eq!(wait(world.keys.run_maintenance()).unwrap(), 1);
    let info = wait(world.keys.key(&host(), below.id)).unwrap();
    assert_eq!(info.status, keyward::key::Status::Revoked);
}

/// A key limited to its own tenant revokes no keys in descendant tenants. Maintenance that finishes the key's
/// command revokes none either.
#[test]
fn maintenance_reaches_no_further_than_the_caller() {
    let world = super::world();
    let (maker, by_maker) = acting(&world, &admin(), whole("wide"));
    let below = whole("wide").in_tenant(tenant("acme/web"));
    let below = world.create(&by_maker, below).unwrap();
    let (_, own) = acting(&world, &admin(), whole("secret"));
    let node = stopping(&world, 1);
    let filter = BulkFilter::all().made_by(maker.id);
    assert!(wait(node.revoke_many(&own, &tenant("acme"), filter, Reason::Leaked)).is_err());
    world.clock.advance(Duration::from_secs(61));
    wait(world.keys.sync()).unwrap();
    wait(world.keys.run_maintenance()).unwrap();
    assert!(
        world
            .keys
            .verify(below.secret.expose(), &Need::any())
            .is_ok()
    );
}

/// Repeating the id of a finished command does not run the command again. So keys that were created since are
/// not affected.
#[test]
fn a_repeated_removal_ends_no_key_created_since() {
    let world = super::world();
    let bob = actor("acme", "bob", Role::DEVELOPER);
    world.create(&bob, reader("first")).unwrap();
    let place = tenant("acme");
    wait(world.keys.remove_owner(&host(), &place, who("bob"))).unwrap();
    let mallory = actor("acme", "mallory", Role::ADMIN);
    let by = mallory.with_command_id(command("again"));
    wait(world.keys.remove_owner(&by, &place, who("bob"))).unwrap();
    let back = set_role(&world, &host(), (place.as_str(), "bob"), Role::DEVELOPER);
    back.unwrap();
    world.clock.advance(Duration::from_secs(1));
    let new = world.create(&bob, reader("second")).unwrap();
    let demoted = actor("acme", "mallory", Role::MEMBER);
    let by = demoted.with_command_id(command("again"));
    let _ = wait(world.keys.remove_owner(&by, &place, who("bob")));
    assert!(world.keys.verify(new.secret.expose(), &Need::any()).is_ok());
}

/// A revoked key repeats the id of its finished bulk revocation. Keys that began to match the filter after
/// the command are not revoked.
#[test]
fn a_key_without_authority_revokes_nothing_by_repeating_a_finished_command() {
    let world = super::world();
    let (created, key) = acting(&world, &admin(), whole("wide"));
    let victim = world
        .create(&admin(), reader("victim").class("wide"))
        .unwrap();
    let place = tenant("acme");
    let filter = || BulkFilter::all().made_by(created.id);
    let sweep = |by: keyward::command::Invocation<'_>| {
        let swept = world.keys.revoke_many(by, &place, filter(), Reason::Leaked);
        wait(swept)
    };
    let repeated = || key.with_command_id(command("sweep"));
    assert_eq!(sweep(repeated()).unwrap().ended, 0);
    // The key widens the key `victim`. From here on it counts as a maker of `victim`, so the filter of the
    // old command matches.
    let widened = UpdateKey::new().scopes(["reports:*"]);
    wait(world.keys.update(&key, victim.id, widened)).unwrap();
    let made = wait(world.keys.made_by(&admin(), &place, created.id)).unwrap();
    assert_eq!(made.len(), 1);
    wait(world.keys.revoke(&admin(), created.id, Reason::Lost)).unwrap();
    let _ = sweep(repeated());
    let verified = |secret| world.keys.verify(secret, &Need::any());
    assert!(verified(victim.secret.expose()).is_ok());
    // A new command by an authorized actor revokes `victim`.
    let by = admin();
    assert_eq!(sweep((&by).into()).unwrap().ended, 1);
    assert!(verified(victim.secret.expose()).is_err());
}

// The tests below cover the descendants of a key: all keys that it helped to make, directly or through other
// keys.

fn made_by(world: &TestService, key: keyward::KeyId) -> Vec<keyward::KeyId> {
    let made = wait(world.keys.made_by(&admin(), &tenant("acme"), key)).unwrap();
    let mut made: Vec<_> = made.iter().map(|key| key.id).collect();
    made.sort();
    made
}

fn revoke_made_by(world: &TestService, key: keyward::KeyId) -> usize {
    let filter = BulkFilter::all().made_by(key);
    let (by, place) = (admin(), tenant("acme"));
    let swept = world
        .keys
        .revoke_many(&by, &place, filter, Reason::Compromised);
    wait(swept).unwrap().ended
}

#[test]
fn a_successor_from_self_rotation_counts_as_made_by_the_key() {
    let world = super::world();
    let (old, key) = acting(&world, &admin(), whole("within"));
    let rotated = |by: &keyward::Actor, key| {
        let how = RotateKey::grace(hours(1));
        wait(world.keys.rotate(by, key, how)).unwrap()
    };
    let new = rotated(&key, old.id);
    let by_new = world.keys.verify(new.secret.expose(), &Need::any());
    let newest = rotated(&by_new.unwrap().actor(), new.id);
    let mut both = [new.id, newest.id];
    both.sort();
    assert_eq!(made_by(&world, old.id), both);
    wait(world.keys.revoke(&admin(), old.id, Reason::Compromised)).unwrap();
    assert_eq!(revoke_made_by(&world, old.id), 2);
    for key in [new, newest] {
        let verdict = world.keys.verify(key.secret.expose(), &Need::any());
        assert!(verdict.is_err());
    }
}

#[test]
fn keys_made_by_a_deleted_key_of_a_chain_are_found() {
    let world = super::world();
    let (first, key) = acting(&world, &admin(), whole("within"));
    let made = world.create(&key, whole("within")).unwrap();
    let how = RotateKey::grace(hours(1));
    let second = wait(world.keys.rotate(&key, first.id, how)).unwrap();
    let by_second = world.keys.verify(second.secret.expose(), &Need::any());
    let by_second = by_second.unwrap().actor();
    let how = RotateKey::immediate();
    let renewed = wait(world.keys.rotate(&by_second, made.id, how)).unwrap();
    let before = made_by(&world, second.id);
    assert!(before.contains(&renewed.id));
    for deleted in [second.id, first.id] {
        wait(world.keys.delete(&admin(), deleted, DeleteKey::plain())).unwrap();
        for asked in [second.id, first.id] {
            assert!(made_by(&world, asked).contains(&renewed.id), "{asked}");
        }
    }
    assert!(revoke_made_by(&world, second.id) > 0);
    let verdict = world.keys.verify(renewed.secret.expose(), &Need::any());
    assert!(verdict.is_err());
}

// In the tests below, a bulk command continues in a descendant tenant in which its command id was already
// used.

/// Returns the id of a wide key that was stolen and revoked, and the keys that it made in acme and acme/web.
fn stolen(world: &TestService) -> (keyward::KeyId, [keyward::command::Created; 2]) {
    let (stolen, key) = acting(world, &admin(), whole("wide"));
    let above = world.create(&key, whole("wide")).unwrap();
    let below = whole("wide").in_tenant(tenant("acme/web"));
    let below = world.create(&key, below).unwrap();
    wait(world.keys.revoke(&admin(), stolen.id, Reason::Lost)).unwrap();
    (stolen.id, [above, below])
}

#[test]
fn a_command_continues_below_although_its_id_was_taken_there() {
    let world = super::world();
    let (by, keys) = stolen(&world);
    let half = stopping(&world, 1);
    let admin = admin();
    let sweep = admin.with_command_id(command("incident"));
    let filter = BulkFilter::all().made_by(by);
    let place = tenant("acme");
    assert!(wait(half.revoke_many(sweep, &place, filter, Reason::Compromised)).is_err());
    wait(world.keys.sync()).unwrap();
    let thief = super::grant(&world, &keys[0]).actor();
    let taken = thief.with_command_id(command("incident"));
    let taken = wait(
        world
            .keys
            .create(taken, whole("wide").in_tenant(tenant("acme/web"))),
    );
    assert!(taken.is_ok());
    world.clock.advance(Duration::from_secs(61));
    wait(world.keys.sync()).unwrap();
    assert_eq!(wait(world.keys.run_maintenance()).unwrap(), 1);
    for key in keys {
        let verdict = world.keys.verify(key.secret.expose(), &Need::any());
        assert!(verdict.is_err());
    }
}

#[test]
fn a_command_reaches_below_although_its_id_was_used_there_before() {
    let world = super::world();
    let (stolen, key) = acting(&world, &admin(), whole("wide"));
    let below = whole("wide").in_tenant(tenant("acme/web"));
    let by = key.with_command_id(command("incident"));
    let below = wait(world.keys.create(by, below)).unwrap();
    wait(world.keys.revoke(&admin(), stolen.id, Reason::Lost)).unwrap();
    let by = admin();
    let sweep = by.with_command_id(command("incident"));
    let filter = BulkFilter::all().made_by(stolen.id);
    let swept = wait(
        world
            .keys
            .revoke_many(sweep, &tenant("acme"), filter, Reason::Compromised),
    );
    assert_eq!(swept.unwrap().ended, 1);
    let verdict = world.keys.verify(below.secret.expose(), &Need::any());
    assert!(verdict.is_err());
}

/// Another key of the principal may continue a command. The trail still names the key that started the
/// command.
#[test]
fn continuing_a_command_does_not_change_its_author() {
    let world = super::world();
    let (_, narrow) = acting(&world, &admin(), reader("narrow").class("plain"));
    let bob = actor("acme", "bob", Role::DEVELOPER);
    let victim = world.create(&bob, reader("victim")).unwrap();
    let half = stopping(&world, 1);
    let filter = || BulkFilter::all().owner(who("bob"));
    let (place, id) = (tenant("acme"), || command("sweep"));
    let by = admin();
    let begun = half.revoke_many(by.with_command_id(id()), &place, filter(), Reason::Unused);
    assert!(wait(begun).is_err());
    let by = narrow.with_command_id(id());
    let gone_on = world.keys.revoke_many(by, &place, filter(), Reason::Unused);
    assert_eq!(wait(gone_on).unwrap().ended, 1);
    let info = wait(world.keys.key(&host(), victim.id)).unwrap();
    assert_eq!(info.updated.by, author("alice"));
}

/// Two commands in a descendant tenant may have the same id. Finishing one of them does not finish the other.
#[test]
fn a_command_below_is_not_ended_by_another_command_with_its_id() {
    let world = super::world();
    let (by, [_, below]) = stolen(&world);
    let web = tenant("acme/web");
    let mallory = actor("acme/web", "mallory", Role::ADMIN);
    let squat = || {
        let by = mallory.with_command_id(command("incident"));
        let filter = BulkFilter::all().owner(who("nobody"));
        wait(world.keys.revoke_many(by, &web, filter, Reason::Unused))
    };
    squat().unwrap();
    // Allows three commits: the first in acme, the last page in acme, and the first in acme/web.
    let half = stopping(&world, 3);
    let admin = admin();
    let sweep = admin.with_command_id(command("incident"));
    let filter = BulkFilter::all().made_by(by);
    assert!(wait(half.revoke_many(sweep, &tenant("acme"), filter, Reason::Compromised)).is_err());
    wait(world.keys.sync()).unwrap();
    squat().unwrap();
    world.clock.advance(Duration::from_secs(61));
    wait(world.keys.sync()).unwrap();
    wait(world.keys.run_maintenance()).unwrap();
    let verdict = world.keys.verify(below.secret.expose(), &Need::any());
    assert!(verdict.is_err());
}
