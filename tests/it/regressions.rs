//! Regression tests for defects that reviews found.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, Mutex};

use keyward::command::{BulkFilter, DeleteKey, ImportKey};
use keyward::key::Digest;
use keyward::policy::{ActiveKeyCap, Policy};
use keyward::store::{
    AuditPage, AuditQuery, Changes, ChangesError, Commit, CommitError, Cursor, FoundKey, KeyPage,
    KeyQuery, KeyStore, LoadRequest, Locator, MemoryStore, Revision, RowKey, ScanPage, StoreError,
    StoreErrorKind, TenantView, async_trait,
};
use keyward::{
    CommandError, CreateKey, Denial, Keyward, ManualClock, Need, Reason, Role, RotateKey, TenantId,
    VerifyError, hours, profiles,
};
use keyward_conformance::{Call, Fault, FaultyStore};
use support::*;

/// An action of another node, and the kind of call that triggers it.
type Meanwhile = Arc<Mutex<Option<(Call, Box<dyn FnOnce() + Send>)>>>;

/// A remote store that runs an action before a call, and counts the keys of each load.
struct Interrupted {
    inner: MemoryStore,
    meanwhile: Meanwhile,
    loaded: Arc<Mutex<Vec<usize>>>,
}

impl std::fmt::Debug for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Interrupted")
    }
}

impl Interrupted {
    fn before(&self, call: Call) -> &MemoryStore {
        let due = self
            .meanwhile
            .lock()
            .unwrap()
            .take_if(|(at, _)| *at == call);
        if let Some((_, happens)) = due {
            happens();
        }
        &self.inner
    }
}

#[async_trait]
impl KeyStore for Interrupted {
    async fn load(
        &self,
        tenant: &TenantId,
        select: &LoadRequest,
    ) -> Result<TenantView, StoreError> {
        let view = self.before(Call::Load).load(tenant, select).await?;
        self.loaded.lock().unwrap().push(view.records.len());
        Ok(view)
    }

    async fn find(&self, locator: &Locator) -> Result<Option<FoundKey>, StoreError> {
        self.inner.find(locator).await
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        self.before(Call::Commit).commit(commit).await
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

fn standard() -> Policy {
    Policy::new(profiles::standard()).unwrap()
}

fn interrupted(world: &TestService) -> (Keyward, Meanwhile) {
    let meanwhile = Meanwhile::default();
    let inner = world.store.clone();
    let store = Interrupted {
        inner,
        meanwhile: meanwhile.clone(),
        loaded: Arc::default(),
    };
    (node(store, &world.clock, standard()), meanwhile)
}

#[test]
fn importing_the_digest_of_a_deleted_key_does_not_restore_it() {
    let world = TestService::new();
    let key = world.some_key();
    wait(world.keys.delete(&admin(), key.id, DeleteKey::plain())).unwrap();
    world.store.compact();
    let again = ImportKey::sha256(Digest::sha256(key.secret.expose()), reader("again"));
    wait(world.keys.import(&admin(), again)).unwrap();
    for keys in [&world.keys, &world.another_node(standard())] {
        assert!(keys.verify(key.secret.expose(), &Need::any()).is_err());
        assert!(wait(keys.verify_fresh(key.secret.expose(), &Need::any())).is_err());
    }
}

#[test]
fn a_closed_tenant_below_blocks_no_command_about_owners() {
    let world = TestService::new();
    let bobs = |path: &str| {
        reader("k")
            .in_tenant(tenant(path))
            .owned_by(who("bob"), Role::DEVELOPER)
    };
    for path in ["acme/a", "acme/b"] {
        world.create(&admin(), bobs(path)).unwrap();
    }
    let acme = tenant("acme");
    wait(world.keys.close_tenant(&admin(), &tenant("acme/a"))).unwrap();
    wait(
        world
            .keys
            .change_owner_role(&admin(), &acme, who("bob"), Role::MEMBER),
    )
    .unwrap();
    world.clock.advance(hours(1));
    let removed = wait(world.keys.remove_owner(&admin(), &acme, who("bob"))).unwrap();
    assert_eq!(removed.ended, 1);
    world.clock.advance(hours(1));
    wait(
        world
            .keys
            .change_owner_role(&admin(), &acme, who("bob"), Role::DEVELOPER),
    )
    .unwrap();
    world.create(&admin(), bobs("acme/b")).unwrap();
}

#[test]
fn a_restored_owner_owns_keys_below_although_none_was_left_there() {
    let world = TestService::new();
    let bobs = || {
        reader("k")
            .in_tenant(tenant("acme/a"))
            .owned_by(who("bob"), Role::DEVELOPER)
    };
    let key = world.create(&admin(), bobs()).unwrap();
    let acme = tenant("acme");
    wait(world.keys.remove_owner(&admin(), &acme, who("bob"))).unwrap();
    wait(world.keys.delete(&admin(), key.id, DeleteKey::plain())).unwrap();
    world.clock.advance(hours(1));
    wait(
        world
            .keys
            .change_owner_role(&admin(), &acme, who("bob"), Role::DEVELOPER),
    )
    .unwrap();
    let new = world.create(&admin(), bobs()).unwrap();
    world.keys.verify(new.secret.expose(), &reading()).unwrap();
}

#[test]
fn after_an_unknown_outcome_no_error_claims_that_nothing_was_written() {
    let inner = MemoryStore::new();
    let store = FaultyStore::new(inner.clone());
    let clock = Arc::new(ManualClock::at(at(START)));
    let keys = node(store.clone(), &clock, standard());
    store.next(Call::Commit, [Fault::ReplyLost]);
    // The load before the commit succeeds. The load after it, which would show whether the commit succeeded,
    // fails.
    store.next(Call::Load, [Fault::None, Fault::Unavailable]);
    let failed = wait(keys.create(&admin(), reader("k"))).unwrap_err();
    let CommandError::Store(error) = failed else {
        panic!("{failed}")
    };
    assert_eq!(error.kind(), StoreErrorKind::Indeterminate);
    let query = KeyQuery::tenant(tenant("acme"), at(START));
    assert_eq!(
        wait(inner.list(&query)).unwrap().keys.len(),
        1,
        "the commit had succeeded"
    );
}

#[test]
fn of_two_concurrent_replacements_by_one_command_the_returned_secret_works() {
    let world = TestService::new();
    let key = world.some_key();
    let (here, meanwhile) = interrupted(&world);
    let won = Arc::new(Mutex::new(None));
    let (there, winner, id) = (world.keys.clone(), won.clone(), key.id);
    let elsewhere = move || {
        let actor = admin();
        let once = actor.with_command_id(command("c1"));
        *winner.lock().unwrap() = Some(wait(there.replace_lost(&once, id)).unwrap());
    };
    *meanwhile.lock().unwrap() = Some((Call::Commit, Box::new(elsewhere)));
    let actor = admin();
    let lost = wait(here.replace_lost(&actor.with_command_id(command("c1")), key.id));
    assert_eq!(denied(lost), Denial::AlreadyCreated { id: key.id });
    let winner = won.lock().unwrap().take().unwrap();
    world
        .keys
        .verify(winner.secret.expose(), &reading())
        .unwrap();
}

#[test]
fn a_read_from_before_a_resync_restores_no_deleted_key() {
    let world = TestService::new();
    let (there, meanwhile) = interrupted(&world);
    let key = world.some_key();
    let (writer, follower, store, id) = (
        world.keys.clone(),
        there.clone(),
        world.store.clone(),
        key.id,
    );
    let elsewhere = move || {
        wait(writer.delete(&admin(), id, DeleteKey::plain())).unwrap();
        store.compact();
        wait(follower.sync()).unwrap();
    };
    // The deletion runs after the key's record is read, and before the owner's row is read.
    *meanwhile.lock().unwrap() = Some((Call::Load, Box::new(elsewhere)));
    let _ = wait(there.verify_or_fetch(key.secret.expose(), &reading()));
    for _ in 0..3 {
        world.clock.advance(hours(10));
        wait(there.sync()).unwrap();
        let refusal = there.verify(key.secret.expose(), &reading()).unwrap_err();
        assert_eq!(refusal, VerifyError::Unknown);
    }
}

#[test]
fn a_newly_imported_key_is_accepted_on_a_node_with_imported_keys() {
    let world = TestService::new();
    let import = |token: &str| {
        let import = ImportKey::sha256(Digest::sha256(token), reader("imported"));
        wait(world.keys.import(&admin(), import)).unwrap();
    };
    import("first-token-from-elsewhere");
    let there = node(
        FaultyStore::new(world.store.clone()),
        &world.clock,
        standard(),
    );
    import("second-token-from-elsewhere");
    wait(there.verify_or_fetch("second-token-from-elsewhere", &reading())).unwrap();
}

#[test]
fn an_actor_with_an_ended_credential_sees_nothing() {
    let world = TestService::new();
    let key = world.some_key();
    let ended = admin().with_expiry(at(START));
    let query = world.keys.query(&tenant("acme"));
    assert_eq!(
        denied(wait(world.keys.list(&ended, &query))),
        Denial::ActorExpired
    );
    assert_eq!(
        denied(wait(world.keys.key(&ended, key.id))),
        Denial::ActorExpired
    );
    let trail = AuditQuery::tenant(tenant("acme"));
    assert_eq!(
        denied(wait(world.keys.audit(&ended, &trail))),
        Denial::ActorExpired
    );
}

#[test]
fn a_renewed_digest_does_not_restore_a_replaced_secret() {
    let world = TestService::new();
    let ring = peppers().with_retired(pepper("p2", 2)).unwrap();
    let builder = |ring| Keyward::builder(world.store.clone(), ring).clock(world.clock.clone());
    let older = wait(builder(ring).build()).unwrap();
    let key = wait(older.create(&admin(), reader("k"))).unwrap();
    let newer = wait(builder(peppers().rotate(pepper("p2", 2)).unwrap()).build()).unwrap();
    newer.verify(key.secret.expose(), &reading()).unwrap();
    let replaced = wait(older.replace_lost(&admin(), key.id)).unwrap();
    wait(newer.run_maintenance()).unwrap();
    for keys in [&older, &newer] {
        wait(keys.sync()).unwrap();
        let old = keys.verify(key.secret.expose(), &reading()).unwrap_err();
        assert_eq!(old, VerifyError::WrongSecret);
        keys.verify(replaced.secret.expose(), &reading()).unwrap();
    }
}

#[test]
fn a_repeated_bulk_revocation_does_not_affect_keys_created_since() {
    let world = TestService::new();
    let acme = tenant("acme");
    let once = || {
        wait(world.keys.revoke_many(
            &admin().with_command_id(command("c1")),
            &acme,
            BulkFilter::all(),
            Reason::Unused,
        ))
    };
    assert_eq!(once().unwrap().ended, 0);
    world.clock.advance(hours(1));
    let key = world
        .create(&admin(), CreateKey::new("new").scope("reports:read"))
        .unwrap();
    assert_eq!(once().unwrap().ended, 0);
    world.keys.verify(key.secret.expose(), &reading()).unwrap();
}

#[test]
fn a_create_loads_no_keys_of_classes_without_a_cap() {
    const CAP: u32 = 3;
    let cap = ActiveKeyCap::of_class(class("secret"), NonZeroU32::new(CAP).unwrap());
    let spec = profiles::standard().with(|spec| spec.caps = vec![cap]);
    let policy = Policy::new(spec).unwrap();
    let loaded = Arc::<Mutex<Vec<usize>>>::default();
    let store = Interrupted {
        inner: MemoryStore::new(),
        meanwhile: Meanwhile::default(),
        loaded: loaded.clone(),
    };
    let clock = Arc::new(ManualClock::at(at(START)));
    let keys = node(store, &clock, policy);
    let publishable = |n: usize| CreateKey::new(format!("page {n}")).class("publishable");
    for n in 0..200 {
        wait(keys.create(&admin(), publishable(n))).unwrap();
    }
    let first = wait(keys.create(&admin(), reader("one"))).unwrap();
    wait(keys.create(&admin(), reader("two"))).unwrap();
    wait(keys.rotate(&admin(), first.id, RotateKey::grace(hours(1)))).unwrap();
    wait(keys.create(&admin(), reader("three"))).unwrap();
    let refused = denied(wait(keys.create(&admin(), reader("four"))));
    assert!(matches!(refused, Denial::CapReached { .. }), "{refused}");
    wait(keys.create(&admin(), publishable(200))).unwrap();
    let most = loaded.lock().unwrap().iter().copied().max();
    assert!(most <= Some(2 * CAP as usize), "{most:?}");
}

/// Fails if a create loads keys that count only towards caps of other classes.
#[test]
fn a_create_loads_only_keys_that_count_together_with_its_class() {
    let limit = |limit| NonZeroU32::new(limit).unwrap();
    let caps = vec![
        ActiveKeyCap::of_class(class("secret"), limit(50)),
        ActiveKeyCap::of_class(class("publishable"), limit(3)),
    ];
    let spec = profiles::standard().with(|spec| spec.caps = caps);
    let loaded = Arc::<Mutex<Vec<usize>>>::default();
    let store = Interrupted {
        inner: MemoryStore::new(),
        meanwhile: Meanwhile::default(),
        loaded: loaded.clone(),
    };
    let clock = Arc::new(ManualClock::at(at(START)));
    let keys = node(store, &clock, Policy::new(spec).unwrap());
    for n in 0..50 {
        wait(keys.create(&admin(), reader(&format!("key {n}")))).unwrap();
    }
    loaded.lock().unwrap().clear();
    let page = || CreateKey::new("page").class("publishable");
    for _ in 0..3 {
        wait(keys.create(&admin(), page())).unwrap();
    }
    let refused = denied(wait(keys.create(&admin(), page())));
    assert!(matches!(refused, Denial::CapReached { .. }), "{refused}");
    let most = loaded.lock().unwrap().iter().copied().max();
    assert_eq!(most, Some(3));
}
