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
use proptest::prelude::*;
use support::{
    TestService, actor, admin, at, class, host, reader, reading, tenant, wait, who,
    with_other_secret,
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

/// Fails if a key with an allowlist is accepted because the need met it before, from another address.
#[test]
fn a_cached_need_still_checks_the_address_of_each_request() {
    let world = TestService::new();
    let key = reader("from one address").allow_addresses(["192.0.2.1"]);
    let key = world.create(&admin(), key).unwrap();
    let need = reading().from_address([192, 0, 2, 1].into());
    assert_eq!(refused(&world, key.secret.expose(), &need), None);
    let elsewhere = need.clone().from_address([192, 0, 2, 2].into());
    let wrong = refused(&world, key.secret.expose(), &elsewhere);
    assert!(
        matches!(wrong, Some(VerifyError::AddressNotAllowed { .. })),
        "{wrong:?}"
    );
}

/// Fails if a key of a class with a bound of zero is accepted because of a confirmation that suffices for other classes.
#[test]
fn a_cached_need_is_confirmed_at_each_use_of_a_class_with_a_bound_of_zero() {
    let mut spec = profiles::standard();
    let secret = spec.classes.get_mut(&class("secret")).unwrap();
    secret.propagation = Some(Propagation {
        bound: Duration::ZERO,
    });
    let world = TestService::with_policy(spec.clone());
    let other = world.another_node(Policy::new(spec).unwrap());
    let (key, need) = (world.some_key(), reading());
    for _ in 0..3 {
        assert_eq!(refused(&world, key.secret.expose(), &need), None);
    }
    wait(other.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    let revoked = refused(&world, key.secret.expose(), &need);
    assert!(
        matches!(revoked, Some(VerifyError::Revoked { .. })),
        "{revoked:?}"
    );
}

/// Fails if a key is accepted by this node's clock alone, after a node whose clock is ahead has committed.
#[test]
fn a_cached_need_is_not_met_by_a_key_that_the_store_has_outlived() {
    let world = TestService::new();
    let ahead = Arc::new(ManualClock::at(at(support::START)));
    let other = support::node(
        world.store.clone(),
        &ahead,
        Policy::new(profiles::standard()).unwrap(),
    );
    let key = reader("for three hours").expires_in(hours(3));
    let (key, need) = (world.create(&admin(), key).unwrap(), reading());
    assert_eq!(refused(&world, key.secret.expose(), &need), None);
    ahead.advance(hours(24));
    wait(other.create(&admin(), reader("a day later"))).unwrap();
    wait(world.keys.sync()).unwrap();
    let again = refused(&world, key.secret.expose(), &need);
    assert_eq!(again, refused(&world, key.secret.expose(), &reading()));
    assert!(again.is_some(), "the key has expired by the store's clock");
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
        last_use <= last && last_use.saturating_add(Duration::from_secs(4)) > last,
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

/// A change between two verifications.
#[derive(Clone, Copy, Debug)]
enum Event {
    Minutes(u32),
    Role(usize, usize),
    RemoveOwner(usize),
    Disable(usize),
    Enable(usize),
    Revoke(usize),
    CloseChild,
    Policy(bool),
}

const OWNERS: [&str; 2] = ["bob", "carol"];

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1_u32..40).prop_map(Event::Minutes),
        4 => (0..2_usize, 0..3_usize).prop_map(|(owner, role)| Event::Role(owner, role)),
        1 => (0..2_usize).prop_map(Event::RemoveOwner),
        2 => (0..KEYS).prop_map(Event::Disable),
        3 => (0..KEYS).prop_map(Event::Enable),
        1 => (0..KEYS).prop_map(Event::Revoke),
        1 => Just(Event::CloseChild),
        1 => any::<bool>().prop_map(Event::Policy),
    ]
}

const KEYS: usize = 10;

/// Creates keys that differ in all that a verification may skip for keys of one kind.
fn keys_of_all_kinds(world: &TestService) -> Vec<Created> {
    let child = tenant("acme/web");
    let of = |name: &str, owner: &str| reader(name).owned_by(who(owner), Role::ADMIN);
    let drafts = [
        of("plain", "bob"),
        of("like it", "bob"),
        of("of another owner", "carol"),
        of("for an hour", "bob").expires_in(hours(1)),
        of("for two hours", "carol").expires_in(hours(2)),
        of("from one address", "bob").allow_addresses(["192.0.2.1"]),
        of("with another scope", "bob").scope("billing:read"),
        of("in the child", "carol").in_tenant(child.clone()),
        reader("of the tenant").owned_by_tenant(),
        reader("of the child").owned_by_tenant().in_tenant(child),
    ];
    let create = |draft| world.create(&host(), draft).unwrap();
    let keys: Vec<_> = drafts.into_iter().map(create).collect();
    assert_eq!(keys.len(), KEYS);
    keys
}

/// The needs that a verification is asked for: with each of the conditions that are checked for each key.
fn needs() -> Vec<Need> {
    vec![
        reading(),
        reading().from_address([192, 0, 2, 1].into()),
        reading().from_address([192, 0, 2, 2].into()),
        reading().for_tenant(tenant("acme")),
        reading().for_tenant(tenant("acme/web")),
        Need::any().and_scope("billing:read").unwrap(),
    ]
}

fn happen(world: &TestService, keys: &[Created], event: Event) {
    let owner = |number: usize| who(OWNERS[number]);
    // A command may be denied, such as one about a revoked key. The verdicts are compared in any case.
    match event {
        Event::Minutes(minutes) => {
            world
                .clock
                .advance(Duration::from_secs(60 * u64::from(minutes)));
        }
        Event::Role(number, role) => {
            let role = [Role::ADMIN, Role::MEMBER, Role::new("nobody").unwrap()][role].clone();
            let acme = tenant("acme");
            let _ = wait(
                world
                    .keys
                    .change_owner_role(&host(), &acme, owner(number), role),
            );
        }
        Event::RemoveOwner(number) => {
            let _ = wait(
                world
                    .keys
                    .remove_owner(&host(), &tenant("acme"), owner(number)),
            );
        }
        Event::Disable(key) => drop(wait(world.keys.disable(&host(), keys[key].id))),
        Event::Enable(key) => drop(wait(world.keys.enable(&host(), keys[key].id))),
        Event::Revoke(key) => {
            drop(wait(world.keys.revoke(&host(), keys[key].id, Reason::Lost)));
        }
        Event::CloseChild => {
            drop(wait(world.keys.close_tenant(&host(), &tenant("acme/web"))));
        }
        Event::Policy(narrow) => {
            let mut spec = profiles::standard();
            if narrow {
                for class in spec.classes.values_mut() {
                    class.ceiling = ScopeSet::parse(["billing:read"]).unwrap();
                }
            }
            support::revise(&world.keys, Policy::new(spec).unwrap());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(u32::try_from(support::process::rounds(40, 2_000)).unwrap()))]

    /// A need that is used again accepts most keys by their kind, and a new one checks each key in full.
    #[test]
    fn a_need_that_is_used_again_gives_the_verdicts_of_a_new_one(
        events in prop::collection::vec(any_event(), 0..25),
    ) {
        let world = TestService::new();
        let keys = keys_of_all_kinds(&world);
        let mut presented: Vec<_> =
            keys.iter().map(|key| key.secret.expose().to_owned()).collect();
        let plain = keys[0].secret.expose();
        presented.push(with_other_secret(plain));
        presented.push(with_prefix("sk_lixe_", plain));
        presented.push(with_prefix("sk_live_x_", plain));
        let used = needs();
        for event in [Event::Minutes(0)].into_iter().chain(events) {
            happen(&world, &keys, event);
            for (used, new) in used.iter().zip(needs()) {
                let id = |verdict: Result<Grant, VerifyError>| verdict.map(|grant| grant.key_id());
                // In both orders, so that the key that meets a need first is not always the same.
                let all = presented.iter().chain(presented.iter().rev());
                for key in all {
                    let again = id(world.keys.verify(key, used));
                    let first = id(world.keys.verify(key, &new.clone()));
                    prop_assert_eq!(again, first, "{} after {:?}", key, event);
                }
                let batch = world.keys.verify_many(&presented, used).into_iter().map(id);
                let each = presented.iter().map(|key| id(world.keys.verify(key, &new.clone())));
                prop_assert_eq!(batch.collect::<Vec<_>>(), each.collect::<Vec<_>>());
            }
        }
    }
}

/// Returns the token with another prefix, and with the checksum that belongs to it.
fn with_prefix(prefix: &str, token: &str) -> String {
    let body = &token[token.len() - 60..token.len() - 6];
    let before = format!("{prefix}{body}");
    let checksum = keyward::token::checksum(&before);
    before + &checksum
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
