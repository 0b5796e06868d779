//! Caches, counters and results of a verification. A cache changes only the speed of a verification, never
//! its verdict.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use keyward::clocks::Reading;
use keyward::command::{Created, DeleteKey};
use keyward::key::Owner;
use keyward::node::{Replica, Verifier};
use keyward::policy::{LivePolicies, Policy, Propagation};
use keyward::store::MemoryStore;
use keyward::{
    Clock, CreateKey, Credentials, Grant, Keyward, ManualClock, Need, Reason, Role, ScopeSet,
    Timestamp, VerifyError, hours, profiles,
};
use support::{
    TestService, actor, admin, at, host, reader, reading, tenant, wait, who, with_other_secret,
};

fn refused(world: &TestService, token: &str, need: &Need) -> Option<VerifyError> {
    world.keys.verify(token, need).err()
}

/// Fails if a need's cached result is still used after the role of the key's owner has changed.
///
/// Also fails if the cached result of a tenant-owned key, which needs no role, is used for the key of a
/// person without a role.
#[test]
fn a_cached_need_is_not_met_by_keys_with_less_reach() {
    let world = TestService::new();
    let need = reading();
    let by_tenant = reader("of the tenant").owned_by_tenant();
    let by_tenant = world.create(&host(), by_tenant).unwrap();
    let of_bob = reader("of bob").owned_by(who("bob"), Role::ADMIN);
    let of_bob = world.create(&host(), of_bob).unwrap();
    for key in [&by_tenant, &of_bob] {
        assert_eq!(refused(&world, key.secret.expose(), &need), None);
        assert_eq!(refused(&world, key.secret.expose(), &need), None);
    }
    let nobody = Role::new("nobody").unwrap();
    wait(
        world
            .keys
            .change_owner_role(&host(), &tenant("acme"), who("bob"), nobody),
    )
    .unwrap();
    let missing = refused(&world, of_bob.secret.expose(), &need);
    assert!(
        matches!(missing, Some(VerifyError::MissingScope { .. })),
        "{missing:?}"
    );
    assert_eq!(refused(&world, by_tenant.secret.expose(), &need), None);
}

#[test]
fn a_cached_need_is_not_met_under_other_policies() {
    let world = TestService::new();
    let (key, need) = (world.some_key(), reading());
    assert_eq!(refused(&world, key.secret.expose(), &need), None);
    let mut spec = profiles::standard();
    for class in spec.classes.values_mut() {
        class.ceiling = ScopeSet::parse(["billing:read"]).unwrap();
    }
    support::revise(&world.keys, Policy::new(spec).unwrap());
    let missing = refused(&world, key.secret.expose(), &need);
    assert!(
        matches!(missing, Some(VerifyError::MissingScope { .. })),
        "{missing:?}"
    );
}

#[test]
fn a_cached_need_still_checks_tenant_and_address() {
    let world = TestService::new();
    let key = world.some_key();
    let need = reading().for_tenant(tenant("acme"));
    assert_eq!(refused(&world, key.secret.expose(), &need), None);
    let elsewhere = need.clone().for_tenant(tenant("other"));
    let wrong = refused(&world, key.secret.expose(), &elsewhere);
    assert!(
        matches!(wrong, Some(VerifyError::WrongTenant { .. })),
        "{wrong:?}"
    );
    let narrowed = need.and_scope("billing:write").unwrap();
    let missing = refused(&world, key.secret.expose(), &narrowed);
    assert!(
        matches!(missing, Some(VerifyError::MissingScope { .. })),
        "{missing:?}"
    );
}

#[test]
fn only_accepted_uses_are_counted() {
    let world = TestService::new();
    let (used, unused) = (world.some_key(), world.some_key());
    for _ in 0..3 {
        world.clock.advance(Duration::from_secs(600));
        world.keys.verify(used.secret.expose(), &reading()).unwrap();
    }
    let last = world.keys.now();
    world.clock.advance(hours(1));
    let wrong = with_other_secret(used.secret.expose());
    assert!(world.keys.verify(&wrong, &reading()).is_err());
    assert!(
        world
            .keys
            .verify(used.secret.expose(), &Need::scope("no:such").unwrap())
            .is_err()
    );

    let uses = world.keys.usage(used.id).unwrap();
    assert_eq!(uses.count, 3);
    let last_use = uses.last.unwrap();
    assert!(
        last_use <= last && last_use.saturating_add(Duration::from_secs(120)) > last,
        "{last_use}"
    );
    let uses = world.keys.usage(unused.id).unwrap();
    assert_eq!((uses.count, uses.last), (0, None));
    assert_eq!(world.keys.usage(keyward::KeyId::from_u128(7)), None);
}

#[test]
fn every_way_of_verifying_takes_a_pair() {
    let world = TestService::new();
    let publishable = || reader("page").class("publishable");
    let (key, public) = (world.some_key(), world.create(&admin(), publishable()));
    let public = public.unwrap();
    let gina = actor("globex", "gina", Role::ADMIN);
    let foreign = world.create(&gina, publishable()).unwrap();
    let verdicts = |public: &Created, secret: &Created| {
        let pair = Credentials::Pair {
            public: public.secret.expose().as_bytes(),
            secret: secret.secret.expose().as_bytes(),
        };
        let all = [
            world.keys.verify(pair, &reading()),
            wait(world.keys.verify_or_fetch(pair, &reading())),
            wait(world.keys.verify_fresh(pair, &reading())),
        ];
        all.map(|verdict| verdict.map(|grant| grant.key_id()))
    };
    for verdict in verdicts(&public, &key) {
        assert_eq!(verdict, Ok(key.id));
    }
    for verdict in verdicts(&foreign, &key) {
        assert_eq!(verdict, Err(VerifyError::PairMismatch));
    }
    for verdict in verdicts(&key, &public) {
        let refusal = VerifyError::Publishable { key: public.id };
        assert_eq!(verdict, Err(refusal), "the halves are swapped");
    }
}

#[test]
fn a_grant_and_its_copies_describe_the_verified_key() {
    let world = TestService::new();
    let key = world
        .create(&admin(), reader("export").expires_in(hours(2)))
        .unwrap();
    let grant = world.keys.verify(key.secret.expose(), &reading()).unwrap();
    let fresh = wait(world.keys.verify_fresh(key.secret.expose(), &reading())).unwrap();
    for grant in [grant.clone(), grant, fresh.clone(), fresh] {
        assert_eq!(grant.key_id(), key.id);
        assert_eq!(grant.tenant(), &tenant("acme"));
        assert_eq!(grant.owner(), &Owner::Principal(who("alice")));
        let end = at(support::START).saturating_add(hours(2));
        assert_eq!(grant.expires_at(), Some(end));
        assert_eq!(grant.scopes(), ScopeSet::parse(["reports:read"]).unwrap());
        assert_eq!(
            wait(world.keys.key_for_grant(&grant))
                .unwrap()
                .name
                .as_str(),
            "export"
        );
    }
    wait(world.keys.delete(&admin(), key.id, DeleteKey::default())).unwrap();
    let grant = world.keys.verify(key.secret.expose(), &reading());
    assert_eq!(grant.err(), Some(VerifyError::Unknown));
}

/// A clock that runs an action when a verification reads it.
#[derive(Debug)]
struct Interrupted {
    clock: ManualClock,
    then: Mutex<Option<Interruption>>,
}

struct Interruption(Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Interruption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Interruption")
    }
}

impl Clock for Interrupted {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    fn read(&self) -> Reading {
        let then = self.then.lock().unwrap().take();
        then.into_iter().for_each(|Interruption(then)| then());
        self.clock.read()
    }
}

/// Fails if a verification looks a key up in one index and uses the found position in another index.
#[test]
fn a_key_verifies_during_a_full_resync() {
    let clock = Arc::new(Interrupted {
        clock: ManualClock::at(at(support::START)),
        then: Mutex::default(),
    });
    let store = Arc::new(MemoryStore::new());
    let mut spec = profiles::standard();
    spec.propagation = Propagation {
        bound: Duration::ZERO,
    };
    let builder = Keyward::builder(MemoryStore::clone(&store), support::peppers());
    let builder = builder.policy(Policy::new(spec.clone()).unwrap());
    let keys = wait(builder.clock(clock.clone()).build()).unwrap();
    let key = wait(keys.create(&admin(), reader("export"))).unwrap();

    let replica = Arc::new(Replica::new(store.clone(), clock.clone()));
    let verifier = Verifier::new(
        replica.clone(),
        store.clone(),
        Arc::new(LivePolicies::new(Policy::new(spec).unwrap())),
        Arc::new(support::peppers()),
    );
    wait(replica.sync()).unwrap();
    verifier.verify(key.secret.expose(), &reading()).unwrap();
    *clock.then.lock().unwrap() = Some(Interruption(Box::new(move || {
        // The store commits and compacts past the replica's position, so the replica must start over.
        wait(keys.create(&admin(), reader("another"))).unwrap();
        store.compact();
        wait(replica.sync()).unwrap();
    })));
    verifier.verify(key.secret.expose(), &reading()).unwrap();
    assert!(
        clock.then.lock().unwrap().is_none(),
        "the action ran during the verification"
    );
}

/// Fails if a batch loses a key, changes the order, or uses another key's data.
#[test]
fn a_batch_gets_the_same_verdicts_as_its_keys_one_by_one() {
    let world = TestService::new();
    let mut keys = Vec::new();
    for number in 0..40 {
        let scope = if number % 3 == 0 {
            "billing:read"
        } else {
            "reports:read"
        };
        let key = CreateKey::new(format!("number {number}")).scope(scope);
        keys.push(world.create(&admin(), key).unwrap());
    }
    let revoked = keys[7].id;
    wait(world.keys.revoke(&admin(), revoked, Reason::Lost)).unwrap();
    let mut presented: Vec<String> = keys
        .iter()
        .map(|key| key.secret.expose().to_owned())
        .collect();
    presented.insert(3, String::new());
    presented.insert(20, "hunter2".to_owned());
    presented.insert(21, with_other_secret(&presented[22]));
    let need = reading();
    let key_id = |verdict: Result<Grant, VerifyError>| verdict.map(|grant| grant.key_id());
    let batch = world.keys.verify_many(&presented, &need);
    let batch: Vec<_> = batch.into_iter().map(key_id).collect();
    let single = presented.iter().map(|key| world.keys.verify(key, &need));
    assert_eq!(batch, single.map(key_id).collect::<Vec<_>>());
    assert_eq!(batch.iter().filter(|verdict| verdict.is_ok()).count(), 25);
    for key in &keys[8..] {
        let count = world.keys.usage(key.id).unwrap().count;
        assert_eq!(
            count % 2,
            0,
            "each use was counted twice: in the batch and alone"
        );
    }
}

/// Fails if a batch is verified without first reading the latest changes from the store in this process.
#[test]
fn a_batch_is_confirmed_at_the_moment_of_use() {
    let world = TestService::new();
    let key = world.some_key();
    let presented = [key.secret.expose(); 3];
    world.clock.advance(hours(1));
    let verdicts = world.keys.verify_many(&presented, &reading());
    assert!(verdicts.iter().all(Result::is_ok));
}
