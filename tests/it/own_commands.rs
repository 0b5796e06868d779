//! Effects of a node's own commands on its local state. The node applies the rows that a command read from
//! the store, and notices if the store was replaced.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keyward::command::Created;
use keyward::policy::Policy;
use keyward::store::{
    AuditPage, AuditQuery, Changes, ChangesError, Commit, CommitError, Cursor, FoundKey, KeyPage,
    KeyQuery, KeyStore, LoadRequest, Locator, MemoryStore, Revision, RowKey, ScanPage, StoreError,
    TenantView, async_trait,
};
use keyward::{
    Actor, Clock, CreateKey, Keyward, ManualClock, Reason, Role, TenantId, Timestamp, VerifyError,
    hours, profiles,
};
use keyward_conformance::{Call, Fault, FaultyStore};
use support::*;

/// Two nodes over one store, which is remote for both of them.
struct Two {
    a: Keyward,
    b: Keyward,
}

impl Two {
    fn new() -> Self {
        let store = FaultyStore::new(MemoryStore::new());
        let clock = Arc::new(ManualClock::at(at(START)));
        let policy = || Policy::new(profiles::standard()).unwrap();
        let [a, b] = [0, 1].map(|_| node(store.clone(), &clock, policy()));
        Self { a, b }
    }
}

fn alice(path: &str) -> Actor {
    actor(path, "alice", Role::ADMIN)
}

fn create(keys: &Keyward, by: &Actor, key: CreateKey) -> Created {
    wait(keys.create(by, key)).unwrap()
}

fn works(keys: &Keyward, key: &Created) {
    let verdict = keys.verify(key.secret.expose(), &reading());
    assert!(verdict.is_ok(), "{verdict:?}");
}

#[test]
fn trap_29_a_key_works_on_the_node_that_created_it_although_another_wrote_its_owners_row() {
    let two = Two::new();
    create(&two.b, &alice("acme"), reader("first"));
    works(&two.a, &create(&two.a, &alice("acme"), reader("second")));
}

#[test]
fn a_key_works_where_it_was_created_although_another_node_raised_its_owner() {
    let two = Two::new();
    let bob = |role| actor("acme", "bob", role);
    let set = |keys: &Keyward, role| {
        let place = tenant("acme");
        wait(keys.change_owner_role(&admin(), &place, who("bob"), role)).unwrap();
    };
    create(&two.b, &admin(), reader("of an admin"));
    set(&two.b, Role::MEMBER);
    wait(two.a.sync()).unwrap();
    set(&two.b, Role::DEVELOPER);
    let key = reader("writes").scope("reports:write");
    let key = create(&two.a, &bob(Role::DEVELOPER), key);
    let writing = keyward::Need::scope("reports:write").unwrap();
    let verdict = two.a.verify(key.secret.expose(), &writing);
    assert!(verdict.is_ok(), "{verdict:?}");
}

/// A command also reads the rows of ancestor tenants. The node applies them too, so it accepts the new key
/// without a sync.
#[test]
fn a_key_works_where_it_was_created_although_another_node_wrote_the_rows_above() {
    let two = Two::new();
    create(&two.b, &alice("acme"), reader("above"));
    let below = reader("below").in_tenant(tenant("acme/web"));
    works(&two.a, &create(&two.a, &alice("acme"), below));
}

/// A command on a key. Returns the key's new secret, or `None` if the secret stays the same.
type Give = fn(&Keyward, &Created) -> Option<String>;

/// A node that does not know a key accepts it after its own command on the key. The test covers every command
/// after which the key works.
#[test]
fn a_node_applies_the_rows_its_commands_were_decided_on() {
    let commands: [(&str, Give); 4] = [
        ("rotate", |keys, key| {
            let how = keyward::RotateKey::immediate();
            let rotated = wait(keys.rotate(&alice("acme"), key.id, how)).unwrap();
            Some(rotated.secret.expose().to_owned())
        }),
        ("replace", |keys, key| {
            let replaced = wait(keys.replace_lost(&alice("acme"), key.id)).unwrap();
            Some(replaced.secret.expose().to_owned())
        }),
        ("rename", |keys, key| {
            let change = keyward::UpdateKey::new().name("renamed");
            wait(keys.update(&alice("acme"), key.id, change)).unwrap();
            None
        }),
        ("disable and enable", |keys, key| {
            wait(keys.disable(&alice("acme"), key.id)).unwrap();
            wait(keys.enable(&alice("acme"), key.id)).unwrap();
            None
        }),
    ];
    for (what, give) in commands {
        let two = Two::new();
        let key = create(&two.b, &alice("acme"), reader("made elsewhere"));
        let secret = give(&two.a, &key);
        let secret = secret.unwrap_or_else(|| key.secret.expose().to_owned());
        let verdict = two.a.verify(&secret, &reading());
        assert!(verdict.is_ok(), "{what}: {verdict:?}");
    }
}

/// If a command reads rows that are older than the node's state, they change nothing.
#[test]
fn the_rows_of_a_command_overwrite_no_newer_rows() {
    let two = Two::new();
    let key = create(&two.a, &alice("acme"), reader("key"));
    wait(two.b.remove_owner(&host(), &tenant("acme"), who("alice"))).unwrap();
    wait(two.a.sync()).unwrap();
    create(&two.a, &admin_of("carol"), reader("another"));
    let refused = two.a.verify(key.secret.expose(), &reading());
    assert!(refused.is_err());
}

fn admin_of(name: &str) -> Actor {
    actor("acme", name, Role::ADMIN)
}

/// An action that runs while the answer to a read is in flight.
type Meanwhile = Box<dyn FnOnce() + Send>;

/// A store that a test can replace by another store.
#[derive(Clone)]
struct Swapped {
    store: Arc<Mutex<MemoryStore>>,
    /// The pending action, and the number of reads of changes that pass before it.
    meanwhile: Arc<Mutex<Option<(usize, Meanwhile)>>>,
}

impl std::fmt::Debug for Swapped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Swapped")
    }
}

impl Swapped {
    fn new() -> Self {
        Self {
            store: Arc::new(Mutex::new(MemoryStore::new())),
            meanwhile: Arc::default(),
        }
    }

    fn now(&self) -> MemoryStore {
        self.store.lock().unwrap().clone()
    }

    fn swap(&self, with: MemoryStore) {
        *self.store.lock().unwrap() = with;
    }

    /// Lets the next `others` reads of changes pass. The read after them is delayed: `meanwhile` runs before
    /// its answer arrives.
    fn interrupt(&self, others: usize, meanwhile: impl FnOnce() + Send + 'static) {
        *self.meanwhile.lock().unwrap() = Some((others, Box::new(meanwhile)));
    }

    fn due(&self) -> Option<Meanwhile> {
        let mut waiting = self.meanwhile.lock().unwrap();
        if let Some((others, _)) = waiting.as_mut().filter(|(others, _)| *others > 0) {
            *others -= 1;
            return None;
        }
        waiting.take().map(|(_, happens)| happens)
    }
}

#[async_trait]
impl KeyStore for Swapped {
    async fn load(
        &self,
        tenant: &TenantId,
        select: &LoadRequest,
    ) -> Result<TenantView, StoreError> {
        self.now().load(tenant, select).await
    }

    async fn find(&self, locator: &Locator) -> Result<Option<FoundKey>, StoreError> {
        self.now().find(locator).await
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        self.now().commit(commit).await
    }

    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError> {
        let answer = self.now().changes(after, limit).await;
        if let Some(happens) = self.due() {
            happens();
        }
        answer
    }

    async fn scan(
        &self,
        after: Option<RowKey>,
        limit: NonZeroUsize,
    ) -> Result<ScanPage, StoreError> {
        self.now().scan(after, limit).await
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        self.now().list(query).await
    }

    async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        self.now().audit(query).await
    }
}

/// A store at an earlier revision replaces the store that the node follows. After a commit to the new store,
/// the node's state belongs to another history.
#[test]
fn trap_34_after_a_commit_to_another_history_nothing_is_fresh() {
    let store = Swapped::new();
    let clock = Arc::new(ManualClock::at(at(START)));
    let policy = Policy::new(profiles::standard()).unwrap();
    let keys = node(store.clone(), &clock, policy.clone());
    let key = create(&keys, &alice("acme"), reader("key"));
    for number in 0..10 {
        create(&keys, &alice("acme"), reader(&format!("filler {number}")));
    }
    works(&keys, &key);
    // This store has fewer commits, so it is at an earlier revision.
    let other = MemoryStore::new();
    let there = node(other.clone(), &clock, policy);
    let twin = create(&there, &alice("acme"), reader("twin"));
    store.swap(other);
    wait(keys.revoke(&alice("acme"), twin.id, Reason::Lost)).unwrap();
    let refused = keys.verify(key.secret.expose(), &reading()).unwrap_err();
    assert!(matches!(refused, VerifyError::Stale { .. }), "{refused}");
    wait(keys.sync()).unwrap();
    let refused = keys.verify(key.secret.expose(), &reading()).unwrap_err();
    assert_eq!(refused, VerifyError::Unknown);
    let refused = keys.verify(twin.secret.expose(), &reading()).unwrap_err();
    assert!(matches!(refused, VerifyError::Revoked { .. }), "{refused}");
}

/// The monotonic clock of a virtual machine can stand still while the machine is paused. The corrected wall
/// clock reveals the pause.
#[test]
fn a_forward_step_of_the_wall_clock_past_the_bound_ends_freshness_until_the_next_sync() {
    let store = FaultyStore::new(MemoryStore::new());
    let clock = Arc::new(ManualClock::at(at(START)));
    let keys = node(store, &clock, Policy::new(profiles::standard()).unwrap());
    let key = create(&keys, &alice("acme"), reader("key"));
    let second = Duration::from_secs(1);
    let step = |by: i64| {
        let now = clock.now().as_micros() + by * 1_000_000;
        clock.set_wall(Timestamp::from_micros(now).unwrap());
    };
    let verdict = || keys.verify(key.secret.expose(), &reading());
    // The node stays fresh if its wall clock steps by less than the bound of ten seconds. It also stays fresh
    // if a long step back is followed by the same step forward.
    for by in [9, -9, -3600, 3600] {
        step(by);
        assert!(verdict().is_ok(), "{by}");
    }
    step(11);
    let refused = verdict().unwrap_err();
    assert!(
        matches!(refused, VerifyError::Stale { age, .. } if age == 11 * second),
        "{refused}"
    );
    assert_eq!(keys.freshness().age, Some(11 * second));
    wait(keys.sync()).unwrap();
    assert!(verdict().is_ok());
    // If both clocks advance together, the wall clock has not stepped.
    clock.advance(9 * second);
    assert!(verdict().is_ok());
}

/// A node pauses in a way that its monotonic clock does not count. Meanwhile other nodes stop waiting for it,
/// so it must register again before it is fresh.
#[test]
fn after_an_uncounted_pause_a_node_registers_again() {
    let store = FaultyStore::new(MemoryStore::new());
    let clock = Arc::new(ManualClock::at(at(START)));
    let builder = Keyward::builder(store.clone(), peppers())
        .policy(Policy::new(profiles::standard()).unwrap())
        .registry(store.clone())
        .clock(clock.clone());
    let keys = wait(builder.build()).unwrap();
    let key = create(&keys, &alice("acme"), reader("key"));
    works(&keys, &key);
    clock.set_wall(clock.now().saturating_add(hours(1)));
    store.next(Call::Report, [Fault::Unavailable]);
    assert!(wait(keys.sync()).is_err());
    assert!(keys.verify(key.secret.expose(), &reading()).is_err());
    wait(keys.sync()).unwrap();
    works(&keys, &key);
}

/// A read in flight while the store is replaced does not make the node fresh. This holds for reads of changes
/// and for full scans.
#[test]
fn a_sync_in_flight_does_not_confirm_a_replaced_store() {
    for rebuilds in [false, true] {
        let store = Swapped::new();
        let clock = Arc::new(ManualClock::at(at(START)));
        let policy = || Policy::new(profiles::standard()).unwrap();
        let keys = node(store.clone(), &clock, policy());
        let key = create(&keys, &alice("acme"), reader("key"));
        let other = MemoryStore::new();
        let there = node(other.clone(), &clock, policy());
        let twin = create(&there, &alice("acme"), reader("twin"));
        if rebuilds {
            // If the store is replaced before the sync, the sync must scan the whole store.
            store.swap(MemoryStore::new());
        }
        let (own, swapped) = (keys.clone(), store.clone());
        store.interrupt(usize::from(rebuilds), move || {
            swapped.swap(other);
            wait(own.revoke(&alice("acme"), twin.id, Reason::Lost)).unwrap();
        });
        let _ = wait(keys.sync());
        let refused = keys.verify(key.secret.expose(), &reading()).unwrap_err();
        assert!(matches!(refused, VerifyError::Stale { .. }), "{refused}");
        wait(keys.sync()).unwrap();
        let refused = keys.verify(twin.secret.expose(), &reading()).unwrap_err();
        assert!(matches!(refused, VerifyError::Revoked { .. }), "{refused}");
    }
}
