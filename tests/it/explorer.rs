//! Explores every interleaving of a few concurrent commands. The invariants hold in each interleaving, and
//! broken stores are detected.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use keyward::command::{Command, CommandId, CommandOutcome, DeleteKey, ImportKey, Request};
use keyward::key::Digest;
use keyward::policy::{ActiveKeyCap, LegacyRule, Policy, TenantReach};
use keyward::profiles::standard;
use keyward::store::{
    AuditPage, AuditQuery, Change, Changes, ChangesError, Commit, CommitError, CommitTag, Cursor,
    Effects, Epoch, FoundKey, KeyPage, KeyQuery, KeyStore, LoadRequest, Locator, MemoryStore,
    Revision, Row, RowKey, ScanPage, StoreError, TenantView, async_trait,
};
use keyward::{
    Actor, CommandError, CreateKey, KeyId, PrincipalId, Reason, Role, RotateKey, ScopeSet,
    TenantId, hours,
};
use keyward_conformance::broken::{BrokenStore, StoreDefect};
use keyward_conformance::explore::{
    ExplorationReport, Explorer, Race, RaceSetup, Scenario, block_on, step,
};

fn tenant(path: &str) -> TenantId {
    path.try_into().unwrap()
}

fn admin(path: &str) -> Actor {
    Actor::new(tenant(path), "alice".try_into().unwrap(), Role::ADMIN)
}

fn by(actor: Actor, id: &str, command: Command) -> Request {
    let tenant = actor.tenant().clone();
    let id = CommandId::new(id).unwrap();
    Request::new(id, actor, tenant, command)
}

fn ask(id: &str, command: Command) -> Request {
    by(admin("acme"), id, command)
}

fn key(name: &str) -> CreateKey {
    CreateKey::new(name)
        .environment("live")
        .scope("reports:read")
}

fn create(id: &str) -> Request {
    ask(id, key(id).into_command().unwrap())
}

fn rotate(id: &str, key: KeyId, how: RotateKey) -> Request {
    ask(id, Command::Rotate { key, how })
}

fn revoke(id: &str, key: KeyId) -> Request {
    let revocation = Reason::Lost.into();
    ask(id, Command::Revoke { key, revocation })
}

fn made(outcome: CommandOutcome) -> KeyId {
    match outcome {
        CommandOutcome::Issued { key: Some(key), .. } => key.id,
        CommandOutcome::Rotated { successor, .. } => successor.id,
        other => panic!("made no key: {other:?}"),
    }
}

/// Returns a policy with at most `cap` active keys, including the legacy key.
fn policy(cap: u32) -> Policy {
    let mut spec = standard();
    let secret = spec.classes.get_mut("secret").unwrap();
    secret
        .prefixes
        .retain(|environment, _| environment.as_str() == "live");
    Policy::new(spec.with(|spec| {
        spec.caps = vec![ActiveKeyCap::new(NonZeroU32::new(cap).unwrap())];
        spec.legacy = LegacyRule::One {
            class: "secret".try_into().unwrap(),
            name: "legacy".try_into().unwrap(),
            scopes: ScopeSet::parse(["reports:read"]).unwrap(),
        };
    }))
    .unwrap()
}

fn race(
    cap: u32,
    prepare: impl Fn(&RaceSetup) -> Result<Vec<Request>, CommandError> + 'static,
) -> Race {
    Race::new(policy(cap), prepare)
}

/// Returns whether the long test tier runs. It explores more lost replies and more concurrent commands.
fn long() -> bool {
    std::env::var("KEYWARD_EXPLORE").is_ok_and(|tier| tier == "long")
}

fn explorer() -> Explorer {
    Explorer::new().lost_replies(if long() { 2 } else { 1 })
}

fn holds(race: &Race) -> ExplorationReport {
    let report = race
        .explore(&explorer(), MemoryStore::new)
        .unwrap_or_else(|f| panic!("{f}"));
    println!("{report:?}");
    assert!(report.complete);
    report
}

fn creates_at_the_cap(writers: usize) -> Race {
    race(3, move |setup| {
        setup.execute(create("before"))?;
        Ok((0..writers)
            .map(|n| create(&format!("create-{n}")))
            .collect())
    })
}

#[test]
fn two_creates_for_the_last_place_never_exceed_the_cap() {
    assert!(holds(&creates_at_the_cap(2)).executions > 50);
}

#[test]
fn three_creates_for_the_last_place_never_exceed_the_cap() {
    assert!(holds(&creates_at_the_cap(3)).executions > 500);
}

#[test]
fn a_revocation_that_races_with_a_rotation_is_permanent() {
    for how in [
        RotateKey::immediate(),
        RotateKey::grace(hours(1)),
        RotateKey::on_first_use(hours(1)),
    ] {
        holds(&race(2, move |setup| {
            let key = made(setup.execute(create("before"))?);
            Ok(vec![
                revoke("revoke", key),
                rotate("rotate", key, how.clone()),
            ])
        }));
    }
}

#[test]
fn two_rotations_of_one_key_never_exceed_the_cap() {
    for how in [
        RotateKey::grace(hours(1)),
        RotateKey::on_first_use(hours(1)),
    ] {
        holds(&race(2, move |setup| {
            let key = made(setup.execute(create("before"))?);
            Ok(vec![
                rotate("one", key, how.clone()),
                rotate("two", key, how.clone()),
            ])
        }));
    }
}

#[test]
fn rotating_a_successor_and_cancelling_its_rotation_never_exceed_the_cap() {
    holds(&race(2, move |setup| {
        let key = made(setup.execute(create("before"))?);
        let how = RotateKey::on_first_use(hours(1));
        let successor = made(setup.execute(rotate("first", key, how))?);
        Ok(vec![
            rotate("second", successor, RotateKey::grace(hours(1))),
            ask("cancel", Command::CancelRotation { key }),
        ])
    }));
}

#[test]
fn a_create_that_races_with_the_removal_of_its_owner_does_not_escape_it() {
    holds(&race(5, |setup| {
        let bob: PrincipalId = "bob".try_into()?;
        let own = |name| key(name).owned_by("bob".try_into().unwrap(), Role::DEVELOPER);
        setup.execute(ask("before", own("before").into_command()?))?;
        let creator = Actor::new(tenant("acme"), bob.clone(), Role::DEVELOPER);
        Ok(vec![
            by(creator, "create", key("late").into_command()?),
            ask("remove", Command::RemoveOwner { owner: bob }),
        ])
    }));
}

#[test]
fn a_create_that_races_with_the_closing_of_its_tenant_does_not_escape_it() {
    holds(&race(5, |setup| {
        setup.execute(create("before"))?;
        Ok(vec![create("create"), ask("close", Command::CloseTenant)])
    }));
}

fn imports_of_one_digest() -> Race {
    race(5, |_| {
        let import = |path: &str| {
            let digest = Digest::sha256("their-own-token");
            let command = ImportKey::sha256(digest, key("taken over")).into_command()?;
            Ok::<_, CommandError>(by(admin(path), path, command))
        };
        Ok(vec![import("acme")?, import("other")?])
    })
}

#[test]
fn one_digest_is_imported_into_one_tenant_only() {
    holds(&imports_of_one_digest());
}

#[test]
fn first_commands_on_an_unknown_tenant_make_one_legacy_key() {
    holds(&race(3, |_| Ok(vec![create("one"), create("two")])));
}

#[test]
fn a_node_that_provisions_a_tenant_and_loses_the_reply_still_returns_its_secrets() {
    let provision = |id| ask(id, Command::ProvisionTenant);
    holds(&race(3, move |_| {
        Ok(vec![provision("one"), provision("two")])
    }));
}

#[test]
fn two_commands_with_one_id_commit_once() {
    holds(&race(3, |setup| {
        setup.execute(create("before"))?;
        Ok(vec![create("same"), create("same")])
    }));
}

/// Returns a policy whose secret keys reach descendant tenants. New tenants get no keys.
fn reaching_below() -> Policy {
    let mut spec = standard();
    let secret = spec.classes.get_mut("secret").unwrap();
    secret.tenant_reach = TenantReach::Descendants;
    Policy::new(spec).unwrap()
}

fn within(path: &str, mut request: Request) -> Request {
    request.tenant = tenant(path);
    request
}

fn ann() -> PrincipalId {
    "ann".try_into().unwrap()
}

/// Creates a key in acme that manages keys as a developer. Returns its id, and an actor that acts with it.
fn manager_of_acme(setup: &RaceSetup) -> Result<(KeyId, Actor), CommandError> {
    let command = CreateKey::new("manager").environment("live").scope("*:*");
    let command = command.owned_by(ann(), Role::DEVELOPER).into_command()?;
    match setup.execute(ask("manager", command))? {
        CommandOutcome::Issued { key: Some(key), .. } => {
            let token = key.token.unwrap();
            Ok((key.id, setup.actor(token.expose()).unwrap()))
        }
        other => panic!("made no key: {other:?}"),
    }
}

/// Returns a race: a key of acme creates a key in a descendant of `above`, while a command in `above` removes
/// the acting key's authority.
fn create_below(above: &'static str, narrowing: Narrowing) -> Race {
    Race::new(reaching_below(), move |setup| {
        let path = ["acme", "acme/web", "acme/web/api"];
        let below = path.iter().position(|tenant| *tenant == above).unwrap() + 1;
        for tenant in &path[..=below] {
            setup.execute(within(tenant, ask(tenant, Command::ProvisionTenant)))?;
        }
        let (id, actor) = manager_of_acme(setup)?;
        let create = by(actor, "create", key("below").into_command()?);
        let narrow = ask("narrow", narrowing(id));
        Ok(vec![within(path[below], create), within(above, narrow)])
    })
}

/// A command that removes the authority of the key with this id.
type Narrowing = fn(KeyId) -> Command;

fn deleted(key: KeyId) -> Command {
    let deletion = DeleteKey::plain();
    Command::Delete { key, deletion }
}

fn lowered(_: KeyId) -> Command {
    let (owner, role) = (ann(), Role::MEMBER);
    Command::ChangeOwnerRole { owner, role }
}

fn owner_removed(_: KeyId) -> Command {
    remove(ann())
}

fn closed(_: KeyId) -> Command {
    Command::CloseTenant
}

fn remove(owner: PrincipalId) -> Command {
    Command::RemoveOwner { owner }
}

/// Commands in the tenant of the acting key, each of which removes the key's authority.
const ABOVE: &[Narrowing] = &[
    |key| {
        let revocation = Reason::Lost.into();
        Command::Revoke { key, revocation }
    },
    |key| Command::Disable { key },
    deleted,
    lowered,
    owner_removed,
    closed,
];

/// Commands in a tenant between the acting key's and the new key's. Each removes the acting key's authority
/// there.
const MIDWAY: &[Narrowing] = &[lowered, owner_removed, closed];

#[test]
fn nothing_is_created_below_once_authority_above_is_gone() {
    for &narrowing in ABOVE {
        // Only one reply may be lost, even in the long tier: a command over many keys takes many steps, so
        // more losses would take too long.
        let report = create_below("acme", narrowing)
            .explore(&Explorer::new().lost_replies(1), MemoryStore::new)
            .unwrap_or_else(|f| panic!("{f}"));
        println!("{report:?}");
        assert!(report.complete && report.executions > 50, "{report:?}");
    }
}

#[test]
fn nothing_is_created_below_once_authority_midway_is_gone() {
    for &narrowing in MIDWAY {
        let report = create_below("acme/web", narrowing)
            .explore(
                &Explorer::new().lost_replies(usize::from(long())),
                MemoryStore::new,
            )
            .unwrap_or_else(|f| panic!("{f}"));
        println!("{report:?}");
        assert!(report.complete && report.executions > 50, "{report:?}");
    }
}

#[test]
fn a_store_that_ignores_guards_is_caught_when_authority_above_is_gone() {
    let ignores = || BrokenStore::new(MemoryStore::new(), StoreDefect::IgnoresGuards);
    let above = ABOVE.iter().map(|narrowing| ("acme", *narrowing));
    let midway = MIDWAY.iter().map(|narrowing| ("acme/web", *narrowing));
    for (tenant, narrowing) in above.chain(midway) {
        let race = create_below(tenant, narrowing);
        let found = race.explore(&Explorer::new(), ignores).unwrap_err();
        println!("{found}");
        assert!(found.message.contains("landed at"), "{found}");
        let again = race.replay(&Explorer::new(), ignores(), &found.schedule);
        assert_eq!(again.unwrap_err().message, found.message);
    }
}

/// The store does not notice that a key on which a commit depends was deleted. Still no key is created,
/// because a deletion also writes the row of the key's tenant, and the commit depends on that row too.
#[test]
fn a_store_that_ignores_removed_keys_lets_no_deleted_key_create_below() {
    let overlooks = || BrokenStore::new(MemoryStore::new(), StoreDefect::RemovedKeysStand);
    let race = create_below("acme", deleted);
    let report = race.explore(&Explorer::new(), overlooks).unwrap();
    assert!(report.complete, "{report:?}");
}

/// Returns a race: a person of acme creates a key in acme/web while acme removes that person. At the start,
/// acme has no row for itself or for the person.
fn create_below_by_a_stranger() -> Race {
    Race::new(reaching_below(), |setup| {
        let provision = ask("provision", Command::ProvisionTenant);
        setup.execute(within("acme/web", provision))?;
        let bob: PrincipalId = "bob".try_into()?;
        let developer = Actor::new(tenant("acme"), bob.clone(), Role::DEVELOPER);
        let create = by(developer, "create", key("below").into_command()?);
        Ok(vec![within("acme/web", create), ask("remove", remove(bob))])
    })
}

#[test]
fn a_person_removed_by_the_first_row_above_creates_nothing_below() {
    let race = create_below_by_a_stranger();
    holds(&race);
    let overlooks = || BrokenStore::new(MemoryStore::new(), StoreDefect::AbsentRowsAlwaysStand);
    let found = race.explore(&Explorer::new(), overlooks).unwrap_err();
    println!("{found}");
    assert!(found.message.contains("landed at"), "{found}");
}

#[test]
fn an_organisation_busy_with_other_keys_starves_no_project() {
    let race = Race::new(reaching_below(), |setup| {
        setup.execute(create("before"))?;
        let provision = ask("provision", Command::ProvisionTenant);
        setup.execute(within("acme/web", provision))?;
        let (_, actor) = manager_of_acme(setup)?;
        let below = by(actor, "below", key("below").into_command()?);
        Ok(vec![within("acme/web", below), create("above")])
    });
    let report = race.explore(&Explorer::new(), MemoryStore::new).unwrap();
    // One command makes three store calls and the other one two, so there are ten orders. Ten executions thus
    // mean that no command was decided twice.
    assert_eq!((report.max_depth, report.executions), (5, 10));
    let starves = || BrokenStore::new(MemoryStore::new(), StoreDefect::GuardsWholeTenants);
    let found = race.explore(&Explorer::new(), starves).unwrap_err();
    println!("{found}");
    assert!(found.message.contains("failed"), "{found}");
}

/// A defect of a store that otherwise forwards every call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fault {
    /// Accepts a commit at any revision of the tenant, not only at the expected one.
    IgnoresExpected,
    /// Assigns a revision before the commit, so that a later revision may become visible first.
    EarlyRevision,
    /// Stores audit entries that differ from those in the commit.
    AltersAudit,
}

#[derive(Debug)]
struct Broken {
    fault: Fault,
    inner: MemoryStore,
    next: AtomicU64,
    announced: Mutex<BTreeMap<Revision, Revision>>,
}

impl Broken {
    fn new(fault: Fault) -> Self {
        Self {
            fault,
            inner: MemoryStore::new(),
            next: AtomicU64::new(1),
            announced: Mutex::default(),
        }
    }

    /// Returns the revision that was announced in place of a revision of the inner store.
    fn announced(&self, inner: Revision) -> Revision {
        self.announced
            .lock()
            .unwrap()
            .get(&inner)
            .copied()
            .unwrap_or(inner)
    }

    fn inner_of(&self, announced: Revision) -> Revision {
        let known = self.announced.lock().unwrap();
        known
            .iter()
            .find(|(_, own)| **own == announced)
            .map_or(announced, |(inner, _)| *inner)
    }

    fn head(&self) -> Cursor {
        let newest = self.announced.lock().unwrap().values().max().copied();
        Cursor {
            epoch: Epoch(1),
            revision: newest.unwrap_or_default(),
            tag: CommitTag(0),
        }
    }

    fn renumbered(&self, change: Change) -> Change {
        Change {
            revision: self.announced(change.revision),
            ..change
        }
    }
}

#[async_trait]
impl KeyStore for Broken {
    async fn load(
        &self,
        tenant: &TenantId,
        select: &LoadRequest,
    ) -> Result<TenantView, StoreError> {
        let mut view = self.inner.load(tenant, select).await?;
        view.revision = self.announced(view.revision);
        Ok(view)
    }

    async fn find(&self, locator: &Locator) -> Result<Option<FoundKey>, StoreError> {
        self.inner.find(locator).await
    }

    async fn commit(&self, mut commit: Commit) -> Result<Revision, CommitError> {
        match self.fault {
            Fault::IgnoresExpected => {
                let view = self
                    .inner
                    .load(&commit.tenant, &LoadRequest::none())
                    .await?;
                commit.expected = view.revision;
                // Adapts the commit to the current revision, so that only the cap can reveal the defect.
                self.inner.commit(commit).await
            }
            Fault::AltersAudit => {
                commit
                    .effects
                    .audit
                    .iter_mut()
                    .for_each(|entry| entry.role = None);
                self.inner.commit(commit).await
            }
            Fault::EarlyRevision => {
                let announced = Revision(self.next.fetch_add(1, Ordering::Relaxed));
                step().await;
                commit.expected = self.inner_of(commit.expected);
                let inner = self.inner.commit(commit).await?;
                self.announced.lock().unwrap().insert(inner, announced);
                Ok(announced)
            }
        }
    }

    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError> {
        if self.fault != Fault::EarlyRevision {
            return self.inner.changes(after, limit).await;
        }
        let scan = self.inner.scan(None, NonZeroUsize::MAX).await?;
        let mut changes: Vec<_> = scan
            .rows
            .into_iter()
            .map(|row| self.renumbered(row))
            .collect();
        changes.retain(|change| change.revision > after.revision);
        changes.sort_by_key(|change| change.revision);
        let (upto, head) = (self.head(), self.head());
        Ok(Changes {
            changes,
            upto,
            head,
            server_time: None,
        })
    }

    async fn scan(
        &self,
        after: Option<RowKey>,
        limit: NonZeroUsize,
    ) -> Result<ScanPage, StoreError> {
        let mut page = self.inner.scan(after, limit).await?;
        if self.fault == Fault::EarlyRevision {
            page.head = self.head();
            page.rows = page
                .rows
                .into_iter()
                .map(|row| self.renumbered(row))
                .collect();
        }
        Ok(page)
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        self.inner.list(query).await
    }

    async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        let mut page = self.inner.audit(query).await?;
        for row in &mut page.rows {
            row.revision = self.announced(row.revision);
        }
        Ok(page)
    }
}

#[test]
fn a_store_that_ignores_the_expected_revision_is_caught_and_replayed() {
    let race = creates_at_the_cap(2);
    let store = || Broken::new(Fault::IgnoresExpected);
    let found = race.explore(&Explorer::new(), store).unwrap_err();
    println!("{found}");
    assert!(found.message.contains("active keys"), "{found}");
    let again = race
        .replay(&Explorer::new(), store(), &found.schedule)
        .unwrap_err();
    assert_eq!(
        (again.message, again.schedule),
        (found.message, found.schedule)
    );
}

#[test]
fn a_store_whose_revisions_appear_out_of_order_is_caught() {
    let race = race(3, |_| {
        let other = by(admin("other"), "other", key("other").into_command()?);
        Ok(vec![create("one"), other])
    });
    let found = race.explore(&Explorer::new(), || Broken::new(Fault::EarlyRevision));
    let found = found.unwrap_err();
    println!("{found}");
    assert!(found.message.contains("feed"), "{found}");
}

#[test]
fn a_store_that_alters_audit_entries_is_caught() {
    let found = creates_at_the_cap(2)
        .explore(&Explorer::new(), || Broken::new(Fault::AltersAudit))
        .unwrap_err();
    println!("{found}");
    assert!(found.message.contains("altered"), "{found}");
}

#[test]
fn a_writer_that_counts_before_it_inserts_is_caught() {
    const CAP: usize = 2;
    let live = LoadRequest {
        live: [(
            "secret".parse().unwrap(),
            "2026-01-01T00:00:00Z".parse().unwrap(),
        )]
        .into(),
        ..LoadRequest::none()
    };
    let world = || {
        let store = Arc::new(MemoryStore::new());
        let keys = block_on(
            keyward::Keyward::builder(store.clone(), keyward::PepperRing::generate().unwrap())
                .build(),
        )
        .unwrap();
        let template = block_on(keys.create(&admin("acme"), key("first")))
            .unwrap()
            .id;
        let template = match block_on(store.find(&Locator::Id(template))).unwrap() {
            Some(FoundKey {
                change:
                    Change {
                        row: Row::Key(record),
                        ..
                    },
                ..
            }) => *record,
            other => panic!("{other:?}"),
        };
        let (watched, counted) = (store.clone(), live.clone());
        let world = Scenario::over(store).check_each_step(move || {
            let view = block_on(watched.load(&tenant("acme"), &counted)).unwrap();
            match view.records.len() {
                count if count > CAP => Err(format!("{count} keys")),
                _ => Ok(()),
            }
        });
        (1..=2).fold(world, |world, n| {
            let (live, mut record) = (live.clone(), template.clone());
            world.writer(move |store| async move {
                let count = store
                    .load(&tenant("acme"), &live)
                    .await
                    .unwrap()
                    .records
                    .len();
                if count < CAP {
                    let view = store
                        .load(&tenant("acme"), &LoadRequest::none())
                        .await
                        .unwrap();
                    record.id = KeyId::from_u128(n);
                    let effects = Effects {
                        puts: vec![record],
                        ..Effects::default()
                    };
                    let commit = Commit {
                        tenant: tenant("acme"),
                        epoch: None,
                        expected: view.revision,
                        guards: Vec::new(),
                        tag: CommitTag(n),
                        decided_at: view.decided_at.unwrap(),
                        effects,
                    };
                    let _ = store.commit(commit).await;
                }
            })
        })
    };
    let found = Explorer::new().explore(world).unwrap_err();
    println!("{found}");
    assert_eq!(found.message, "3 keys");
    assert!(Explorer::new().replay(world(), &found.schedule).is_err());
}
