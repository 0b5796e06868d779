//! Compares the facade with a separate, naive model, one invariant at a time. The same property must also
//! catch a system that breaks the invariant.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use keyward::command::Expiry;
use keyward::policy::{Policy, PolicySpec};
use keyward::store::{
    AuditPage, AuditQuery, Changes, ChangesError, Commit, CommitError, Cursor, FoundKey, KeyPage,
    KeyQuery, KeyStore, LoadRequest, Locator, MemoryStore, Revision, RowKey, ScanPage, StoreError,
    TenantView, async_trait,
};
use keyward::{
    Actor, CreateKey, Denial, Keyward, ManualClock, Need, PepperRing, Reason, Role, RotateKey,
    TenantId, Timestamp, UpdateKey, days, hours, token,
};
use keyward_conformance::model::{
    Facade, IssuedSecrets, ListedKey, ModelActor, ModelCommand, ModelMismatch, ModelStep, Persona,
    ReferenceModel, RefusalReason, RequestedLifetime, RotationTiming, System, policy, run,
};
use keyward_conformance::{Reached, strategies};
use proptest::prelude::*;
use proptest::test_runner::{
    Config, FileFailurePersistence, RngAlgorithm, TestCaseError, TestRng, TestRunner,
};

const CAP: usize = 3;

/// The file where proptest saves failing cases.
const REGRESSIONS: &str = "it/model.proptest-regressions";

/// Returns the number of cases per property. `PROPTEST_CASES` overrides the default.
fn cases() -> u32 {
    let set = std::env::var("PROPTEST_CASES").ok();
    set.and_then(|cases| cases.parse().ok()).unwrap_or(96)
}

type Make = fn() -> Box<dyn System>;

fn real() -> Box<dyn System> {
    Box::new(Facade::new(Arc::new(MemoryStore::new()), policy(CAP)))
}

/// Runs random steps on the system from `make`. Fails only if the invariant `invariant` is violated, because
/// each invariant has its own property. Passes the accepted commands of each case to `note`.
fn check(
    make: Make,
    invariant: Option<u8>,
    mut runner: TestRunner,
    note: impl Fn(&[ModelCommand]),
) -> Result<(), String> {
    let steps = strategies::steps(60);
    let result = runner.run(&steps, |steps: Vec<ModelStep>| {
        let fails = |wrong: &ModelMismatch| invariant.is_none_or(|only| only == wrong.invariant);
        match run(&mut *make(), CAP, &steps) {
            Ok(accepted) => note(&accepted),
            Err(wrong) if fails(&wrong) => return Err(TestCaseError::fail(wrong.to_string())),
            Err(_) => {}
        }
        Ok(())
    });
    result.map_err(|error| error.to_string())
}

fn holds(invariant: Option<u8>) {
    let runner = TestRunner::new(Config {
        cases: cases(),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(REGRESSIONS))),
        max_shrink_iters: 2000,
        ..Config::default()
    });
    // Rarer commands are not required: a run of few cases may not reach them.
    type Kind = fn(&ModelCommand) -> bool;
    let kinds: [(Reached, Kind); 5] = [
        (Reached::new("an accepted create"), |command| {
            matches!(command, ModelCommand::Create { .. })
        }),
        (Reached::new("an accepted import"), |command| {
            matches!(command, ModelCommand::Import { .. })
        }),
        (Reached::new("an accepted update"), |command| {
            matches!(command, ModelCommand::Update { .. })
        }),
        (Reached::new("an accepted revocation"), |command| {
            matches!(command, ModelCommand::Revoke { .. })
        }),
        (Reached::new("an accepted rotation"), |command| {
            matches!(command, ModelCommand::Rotate { .. })
        }),
    ];
    let note = |accepted: &[ModelCommand]| {
        for (reached, is_kind) in &kinds {
            reached.note(accepted.iter().any(is_kind));
        }
    };
    check(real, invariant, runner, note).unwrap_or_else(|error| panic!("{error}"));
}

/// Checks that the property of `invariant` fails on the broken system from `mutant`. The random seed is
/// fixed.
fn catches(mutant: Make, invariant: u8) {
    let config = Config {
        cases: 1024,
        max_shrink_iters: 0,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let found = check(
        mutant,
        Some(invariant),
        TestRunner::new_with_rng(config, rng),
        |_| {},
    );
    let error = found.expect_err("the mutant was not caught");
    assert!(error.contains(&format!("invariant {invariant}")), "{error}");
}

#[test]
fn the_facade_agrees_with_the_model() {
    holds(None);
}

#[test]
fn invariant_1_no_command_raises_active_keys_above_the_cap() {
    holds(Some(1));
    catches(ignores_the_cap, 1);
    catches(ignores_the_cap_of_a_class, 1);
}

#[test]
fn invariant_2_a_revoked_or_deleted_key_never_verifies_again() {
    holds(Some(2));
    catches(revives_by_role_change, 2);
    catches(lengthens_what_it_rotates, 2);
}

#[test]
fn invariant_3_there_is_one_legacy_key_and_it_cannot_be_ended() {
    holds(Some(3));
    catches(revokes_the_legacy_key, 3);
}

#[test]
fn invariant_4_a_keys_reach_is_its_scopes_within_its_owners_role() {
    holds(Some(4));
    catches(forgets_roles, 4);
}

#[test]
fn invariant_5_nobody_grants_more_than_they_have() {
    holds(Some(5));
    catches(leaves_reach_unchecked, 5);
}

#[test]
fn invariant_8_a_key_expires_at_its_exact_instant() {
    holds(Some(8));
    catches(expires_late, 8);
}

#[test]
fn invariant_9_an_actor_reaches_its_tenant_by_segments() {
    holds(Some(9));
    catches(compares_paths_as_text, 9);
}

/// Every mode of rotation is accepted for an imported key, with the outcome that the model expects.
#[test]
fn the_facade_agrees_with_the_model_on_rotations_of_imported_keys() {
    let by_alice = |command| ModelStep::Command(Persona::Alice, command);
    let (tenant, scopes) = (0, vec!["reports:read"]);
    let import = |token| ModelCommand::Import {
        tenant,
        class: 0,
        token,
        scopes: scopes.clone(),
        lifetime: RequestedLifetime::For(days(30)),
    };
    let day = RotationTiming::Grace(days(1));
    for mode in [RotationTiming::Now, day, RotationTiming::FirstUse(days(1))] {
        // Key 0 is the legacy key. Key 1 is imported, and key 2 is its successor.
        let mut steps = vec![
            by_alice(ModelCommand::Provision { tenant }),
            by_alice(import(1)),
            by_alice(ModelCommand::Rotate { key: 1, mode }),
            ModelStep::Use(2),
            ModelStep::Wait(days(1)),
            by_alice(ModelCommand::Rotate { key: 2, mode: day }),
        ];
        let accepted = run(&mut *real(), CAP, &steps).unwrap();
        assert_eq!(accepted.len(), 4, "{mode:?}");
        // The rotation of an imported key that still works is cancelled.
        steps.truncate(3);
        if mode != RotationTiming::Now {
            steps.push(by_alice(ModelCommand::Cancel { key: 1 }));
            steps.push(ModelStep::Wait(days(29)));
            let accepted = run(&mut *real(), CAP, &steps).unwrap();
            assert_eq!(accepted.len(), 4, "{mode:?}");
        }
    }
}

/// Starts a service over an empty store, with the model's policy.
async fn host() -> (Keyward, Arc<ManualClock>, Actor) {
    let clock = Arc::new(ManualClock::at("2026-01-01T00:00:00Z".parse().unwrap()));
    let keys = Keyward::builder(MemoryStore::new(), PepperRing::generate().unwrap())
        .policy(policy(CAP))
        .clock(clock.clone())
        .build()
        .await
        .unwrap();
    (keys, clock, admin("acme"))
}

fn admin(path: &str) -> Actor {
    Actor::new(
        path.try_into().unwrap(),
        "alice".try_into().unwrap(),
        Role::ADMIN,
    )
}

async fn live(keys: &Keyward, by: &Actor) -> usize {
    let query = keys.query(by.tenant()).live();
    keys.list(by, &query).await.unwrap().keys.len()
}

#[pollster::test]
async fn creating_ends_the_oldest_grace_before_live_keys_exceed_twice_the_cap() {
    let (keys, _, alice) = host().await;
    let grace = || RotateKey::grace(hours(24));
    for _ in 0..2 * CAP {
        // Revokes the successor after each rotation, so that only replaced keys in their grace period
        // accumulate.
        let made = keys.create(&alice, CreateKey::new("one")).await.unwrap();
        let extra = keys.create(&alice, CreateKey::new("two")).await.unwrap();
        assert!(live(&keys, &alice).await <= 2 * CAP);
        keys.revoke(&alice, extra.id, Reason::Lost).await.unwrap();
        let next = keys.rotate(&alice, made.id, grace()).await.unwrap();
        keys.revoke(&alice, next.id, Reason::Lost).await.unwrap();
    }
}

#[pollster::test]
async fn a_chain_of_unused_successors_accumulates_no_live_keys() {
    let (keys, clock, alice) = host().await;
    let mut newest = keys.create(&alice, CreateKey::new("one")).await.unwrap().id;
    for _ in 0..3 * CAP {
        let waits = RotateKey::on_first_use(hours(1));
        newest = keys.rotate(&alice, newest, waits).await.unwrap().id;
        let drains = RotateKey::grace(hours(1));
        newest = keys.rotate(&alice, newest, drains).await.unwrap().id;
        clock.advance(hours(2));
        assert!(live(&keys, &alice).await <= 2 * CAP);
    }
}

#[pollster::test]
async fn a_key_that_another_tenants_clock_saw_expire_is_not_revived() {
    let (keys, clock, alice) = host().await;
    let start = keys.now();
    let key = CreateKey::new("short").expires_in(days(5));
    let short = keys.create(&alice, key).await.unwrap();
    clock.advance(days(10));
    let other = admin("other");
    keys.create(&other, CreateKey::new("later")).await.unwrap();
    clock.set_wall(start);
    assert!(keys.verify(short.secret.expose(), &Need::any()).is_err());
    let longer = UpdateKey::new().expiry(Expiry::In(days(90)));
    let updated = keys.update(&alice, short.id, longer).await;
    assert_eq!(updated.unwrap_err().denied(), Some(&Denial::Expired));
    assert!(keys.verify(short.secret.expose(), &Need::any()).is_err());
}

#[pollster::test]
async fn the_legacy_key_cannot_get_an_earlier_end() {
    let (keys, _, alice) = host().await;
    let legacy = keys.provision_tenant(&alice, alice.tenant()).await.unwrap()[0].id;
    let ends = UpdateKey::new().expiry(Expiry::In(Duration::from_secs(1)));
    let updated = keys.update(&alice, legacy, ends).await.unwrap_err();
    assert!(matches!(updated.denied(), Some(Denial::LegacyKey { .. })));
}

#[pollster::test]
async fn an_actor_without_reach_below_can_remove_an_owner() {
    let (keys, _, alice) = host().await;
    let own = keys
        .create(&alice, CreateKey::new("own").scope("*:*"))
        .await
        .unwrap();
    let below = CreateKey::new("below").in_tenant("acme/web".try_into().unwrap());
    let below = keys.create(&alice, below).await.unwrap();
    let narrow = keys
        .verify(own.secret.expose(), &Need::any())
        .unwrap()
        .actor();
    let alice = "alice".try_into().unwrap();
    keys.remove_owner(&narrow, narrow.tenant(), alice)
        .await
        .unwrap();
    for key in [own, below] {
        assert!(keys.verify(key.secret.expose(), &Need::any()).is_err());
    }
}

proptest! {
    #![proptest_config(Config { cases: cases(), failure_persistence: None, ..Config::default() })]

    #[test]
    fn only_the_exact_token_verifies(
        (mutated, arbitrary) in (
            strategies::mutated_tokens(TOKEN.with(Clone::clone)),
            strategies::arbitrary_tokens(&policy(CAP)),
        ),
    ) {
        KEYS.with(|keys| {
            let own = TOKEN.with(|token| keys.verify(token, &Need::any()).is_ok());
            assert!(own);
            for presented in [mutated, arbitrary] {
                let _ = token::parse(&presented);
                assert!(keys.verify(&presented, &Need::any()).is_err());
            }
        });
    }

    #[test]
    fn a_contradictory_policy_is_refused(spec in strategies::contradictory_specs()) {
        prop_assert!(Policy::new(spec).is_err());
    }

    #[test]
    fn a_policy_survives_a_round_trip_through_json(policy in strategies::policies()) {
        let text = serde_json::to_string(&policy).unwrap();
        prop_assert_eq!(serde_json::from_str::<Policy>(&text).unwrap(), policy);
    }
}

#[test]
fn an_actor_reaches_exactly_its_own_tenant_and_those_below() {
    let below = Reached::new("a tenant below the actor's");
    let config = Config {
        cases: cases(),
        failure_persistence: None,
        ..Config::default()
    };
    let actors = strategies::actors(&Policy::default());
    proptest!(config, |(actor in actors, tenant in strategies::tenants())| {
        let own: Vec<_> = actor.tenant().as_str().split('/').collect();
        let other: Vec<_> = tenant.as_str().split('/').collect();
        prop_assert_eq!(actor.reaches(&tenant), other.starts_with(&own));
        below.note(other.len() > own.len() && actor.reaches(&tenant));
    });
}

thread_local! {
    static MADE: (keyward::Keyward, String) = pollster::block_on(async {
        let peppers = keyward::PepperRing::generate().unwrap();
        let keys = keyward::Keyward::builder(MemoryStore::new(), peppers).build().await.unwrap();
        let host = keyward::Actor::application("acme".try_into().unwrap());
        let key = keyward::CreateKey::new("one").environment("live");
        let created = keys.create(&host, key).await.unwrap();
        (keys, created.secret.expose().to_owned())
    });
    static KEYS: keyward::Keyward = MADE.with(|made| made.0.clone());
    static TOKEN: String = MADE.with(|made| made.1.clone());
}

fn ignores_the_cap() -> Box<dyn System> {
    Box::new(Facade::new(Arc::new(MemoryStore::new()), policy(2 * CAP)))
}

fn ignores_the_cap_of_a_class() -> Box<dyn System> {
    let spec = PolicySpec::from(policy(CAP));
    let spec = spec.with(|spec| spec.caps.retain(|cap| cap.classes.is_empty()));
    let policy = Policy::new(spec).unwrap();
    Box::new(Facade::new(Arc::new(MemoryStore::new()), policy))
}

fn tampered(load: fn(&mut TenantView), commit: fn(&Tampering, &mut Commit)) -> Box<dyn System> {
    let inner = MemoryStore::new();
    let store = Tampering {
        inner,
        load,
        commit,
    };
    Box::new(Facade::new(Arc::new(store), policy(CAP)))
}

fn revives_by_role_change() -> Box<dyn System> {
    tampered(
        |_| {},
        |store, commit| {
            let changed: Vec<_> = commit
                .effects
                .owners
                .iter()
                .map(|row| row.owner.clone())
                .collect();
            let query = KeyQuery::tenant(commit.tenant.clone(), commit.decided_at);
            let all = pollster::block_on(store.inner.list(&query)).unwrap().keys;
            let revived = all.into_iter().filter(|key| {
                key.owner
                    .principal()
                    .is_some_and(|owner| changed.contains(owner))
                    && commit.effects.puts.iter().all(|put| put.id != key.id)
            });
            let revived: Vec<_> = revived
                .map(|key| key.with(|key| key.state = keyward::key::KeyState::Enabled))
                .collect();
            commit.effects.puts.extend(revived);
        },
    )
}

fn lengthens_what_it_rotates() -> Box<dyn System> {
    tampered(
        |_| {},
        |_, commit| {
            for key in &mut commit.effects.puts {
                if key.succession.is_some() {
                    key.expires_at = None;
                    key.state = keyward::key::KeyState::Enabled;
                }
            }
        },
    )
}

fn revokes_the_legacy_key() -> Box<dyn System> {
    let blind = |view: &mut TenantView| view.records.iter_mut().for_each(|key| key.legacy = false);
    tampered(blind, |_, _| {})
}

fn forgets_roles() -> Box<dyn System> {
    tampered(
        |_| {},
        |_, commit| {
            for row in &mut commit.effects.owners {
                row.role = row.role.take().map(|_| keyward::Role::ADMIN);
            }
        },
    )
}

fn leaves_reach_unchecked() -> Box<dyn System> {
    Box::new(Wrapped {
        inner: real(),
        fault: Fault::WidensActors,
    })
}

fn expires_late() -> Box<dyn System> {
    Box::new(Wrapped {
        inner: real(),
        fault: Fault::ExpiresLate,
    })
}

fn compares_paths_as_text() -> Box<dyn System> {
    Box::new(Wrapped {
        inner: real(),
        fault: Fault::ComparesText,
    })
}

/// A defect in a system that otherwise forwards every call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fault {
    /// Ignores the expiry of an actor, and the limits of the key that it acts with.
    WidensActors,
    /// Accepts a key at the instant of its expiry, because it compares with `now > expires_at`.
    ExpiresLate,
    /// Compares tenants as text, so that `acme` reaches `acme-two`.
    ComparesText,
}

struct Wrapped {
    inner: Box<dyn System>,
    fault: Fault,
}

impl System for Wrapped {
    fn execute(
        &mut self,
        model: &ReferenceModel,
        by: &ModelActor,
        id: &str,
        command: &ModelCommand,
    ) -> Result<IssuedSecrets, RefusalReason> {
        let mut by = by.clone();
        match (self.fault, command) {
            (Fault::WidensActors, _) if by.role.is_some() => {
                by.expires = None;
                by.key = None;
            }
            (
                Fault::ComparesText,
                ModelCommand::Create { tenant: 3, .. } | ModelCommand::Provision { tenant: 3 },
            ) if by.tenant == 0 => {
                by.tenant = 3;
            }
            _ => {}
        }
        self.inner.execute(model, &by, id, command)
    }

    fn use_key(&mut self, secret: &str) {
        self.inner.use_key(secret);
    }

    fn sees(&mut self, secret: &str) -> Option<u16> {
        let late = self.fault == Fault::ExpiresLate;
        if late {
            self.inner.jump_back(Duration::from_micros(1));
        }
        let seen = self.inner.sees(secret);
        if late {
            // The model compares only the wall clock, so the monotonic clock may advance a little each time.
            self.inner.wait(Duration::from_micros(1));
        }
        seen
    }

    fn accepts_here(&mut self, secret: &str) -> bool {
        self.inner.accepts_here(secret)
    }

    fn list(&mut self, tenant: &str) -> Vec<ListedKey> {
        self.inner.list(tenant)
    }

    fn clock(&self) -> Timestamp {
        self.inner.clock()
    }

    fn wait(&mut self, by: Duration) {
        self.inner.wait(by);
    }

    fn jump_back(&mut self, by: Duration) {
        self.inner.jump_back(by);
    }
}

/// A store that alters loaded views or commits.
#[derive(Debug)]
struct Tampering {
    inner: MemoryStore,
    load: fn(&mut TenantView),
    commit: fn(&Self, &mut Commit),
}

#[async_trait]
impl KeyStore for Tampering {
    async fn load(
        &self,
        tenant: &TenantId,
        select: &LoadRequest,
    ) -> Result<TenantView, StoreError> {
        let mut view = self.inner.load(tenant, select).await?;
        (self.load)(&mut view);
        Ok(view)
    }

    async fn find(&self, locator: &Locator) -> Result<Option<FoundKey>, StoreError> {
        self.inner.find(locator).await
    }

    async fn commit(&self, mut commit: Commit) -> Result<Revision, CommitError> {
        (self.commit)(self, &mut commit);
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
