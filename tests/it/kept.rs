//! Futures that are polled once and then kept, or dropped: nobody else waits for them.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use keyward::command::{BulkFilter, Created, DeleteKey, ImportKey, LeakSource};
use keyward::events::{EventCursor, Events, ExpiryWindows};
use keyward::key::{Digest, Fingerprint, Resource, ResourceId, ResourceKind};
use keyward::node::ReadThroughLimits;
use keyward::policy::{Policy, Revocation};
use keyward::recovery::Recovery;
use keyward::store::{AuditQuery, KeyQuery, KeyStore, MemoryStore};
use keyward::{
    Actor, Grant, KeyId, Keyward, ManualClock, Reason, Receipt, Role, RotateKey, TenantId,
    UpdateKey, VerifyError, profiles,
};
use keyward_conformance::{Call, Fault};
use support::gated::GatedStore;
use support::*;

/// A call of the store at which a test keeps or drops a future.
const STAGES: [Call; 6] = [
    Call::Find,
    Call::Load,
    Call::Commit,
    Call::Changes,
    Call::List,
    Call::Audit,
];

/// Polls a future once, without a task that it could wake.
fn poll_once<T>(future: &mut (impl Future<Output = T> + Unpin)) -> Option<T> {
    match Pin::new(future).poll(&mut Context::from_waker(Waker::noop())) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}

/// Polls a future over a store that never waits, until it ends. A future that waits for somebody else's
/// future does not end.
fn end<T>(name: &str, future: impl Future<Output = T>) -> T {
    let mut future = Box::pin(future);
    (0..1000)
        .find_map(|_| poll_once(&mut future))
        .unwrap_or_else(|| panic!("{name} waits for a future that nobody polls"))
}

/// A node, its store, and keys that exist there.
struct Held {
    store: GatedStore,
    clock: Arc<ManualClock>,
    keys: Keyward,
    key: Created,
    other: Created,
}

/// Everything that the methods of a node are called with.
struct Arguments {
    keys: Keyward,
    by: Actor,
    place: TenantId,
    id: KeyId,
    text: String,
    fingerprint: Fingerprint,
    receipt: Receipt,
    grant: Grant,
    found: LeakSource,
    resource: Resource,
}

/// The standard policy, but with an end to what it keeps.
fn policy() -> Policy {
    let mut spec = profiles::standard();
    spec.keep_audit = Some(keyward::days(1));
    spec.classes.get_mut("secret").unwrap().revocation = Revocation::Allowed {
        confirm: false,
        keep: Some(keyward::days(1)),
    };
    Policy::new(spec).unwrap()
}

impl Held {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::at(at(START)));
        let store = GatedStore::new(MemoryStore::new());
        let builder = Keyward::builder(store.clone(), peppers())
            .policy(policy())
            .registry(store.link.clone())
            .clock(clock.clone());
        let keys = wait(builder.build()).unwrap();
        let new = |name| wait(keys.create(&admin(), reader(name))).unwrap();
        let (key, other) = (new("kept"), new("other"));
        Self {
            store,
            clock,
            keys,
            key,
            other,
        }
    }

    /// Returns one call of every public async method, by the method's name.
    fn calls(&self) -> Vec<(&'static str, BoxFuture<'static, ()>)> {
        let keys = self.keys.clone();
        let (by, place, id) = (admin(), tenant("acme"), self.key.id);
        let text = self.key.secret.expose().to_owned();
        let fingerprint = wait(keys.key(&by, id)).unwrap().fingerprint;
        let receipt = wait(keys.disable(&by, id)).unwrap();
        wait(keys.enable(&by, id)).unwrap();
        let grant = keys.verify(text.as_str(), &reading()).unwrap();
        let arguments = Arc::new(Arguments {
            keys,
            by,
            place,
            id,
            text,
            fingerprint,
            receipt,
            grant,
            found: LeakSource::new("scanner").unwrap(),
            resource: Resource {
                kind: ResourceKind::new("deployment").unwrap(),
                id: ResourceId::new("d1").unwrap(),
            },
        });
        let mut calls: Vec<(&'static str, BoxFuture<'static, ()>)> = Vec::new();
        macro_rules! call {
            ($a:ident => $name:ident($($with:expr),*)) => {{
                let $a = arguments.clone();
                let call = async move { drop($a.keys.$name($($with),*).await) };
                calls.push((stringify!($name), call.boxed()));
            }};
        }
        call!(a => create(&a.by, reader("new")));
        call!(a => import(
            &a.by,
            ImportKey::sha256(Digest::sha256(b"old"), reader("old"))
        ));
        call!(a => update(&a.by, a.id, UpdateKey::new().name("renamed")));
        call!(a => disable(&a.by, a.id));
        call!(a => enable(&a.by, a.id));
        call!(a => revoke(&a.by, a.id, Reason::Lost));
        call!(a => delete(&a.by, a.id, DeleteKey::plain()));
        call!(a => rotate(&a.by, a.id, RotateKey::grace(keyward::hours(1))));
        call!(a => finish_rotation(&a.by, a.id));
        call!(a => cancel_rotation(&a.by, a.id));
        call!(a => replace_lost(&a.by, a.id));
        call!(a => repair_time(&host(), &a.place));
        call!(a => provision_tenant(&host(), &a.place));
        call!(a => provision_resource(&host(), &a.place, a.resource.clone()));
        call!(a => close_tenant(&host(), &a.place));
        call!(a => remove_owner(&host(), &a.place, who("alice")));
        call!(a => sync_role(&host(), &a.place, who("alice"), Role::ADMIN));
        call!(a => change_owner_role(
            &host(),
            &a.place,
            who("alice"),
            Role::ADMIN
        ));
        call!(a => revoke_many(&a.by, &a.place, BulkFilter::all(), Reason::Lost));
        call!(a => purge(&host(), &a.place));
        call!(a => report_leaked_token(a.text.as_str(), a.found.clone()));
        call!(a => report_leaked_fingerprint(&a.by, a.fingerprint, a.found.clone()));
        call!(a => run_maintenance());
        call!(a => verify_fresh(a.text.as_str(), &reading()));
        call!(a => verify_or_fetch(a.text.as_str(), &reading()));
        call!(a => sync());
        call!(a => confirmations(&a.receipt));
        call!(a => wait_confirmed(&a.receipt, |_| std::future::ready(())));
        call!(a => deregister());
        call!(a => list(&a.by, &KeyQuery::tenant(a.place.clone(), at(START))));
        call!(a => made_by(&a.by, &a.place, a.id));
        call!(a => key(&a.by, a.id));
        call!(a => key_for_grant(&a.grant));
        call!(a => rotation_progress(&a.by, a.id, None));
        call!(a => audit(&a.by, &AuditQuery::tenant(a.place.clone())));
        call!(a => verify_audit(&a.by, &a.place, None));
        call!(a => prune_audit(&host(), &a.place, at(START), None));
        call!(a => expired_retention(&a.place));
        call!(a => apply_retention(&a.place));
        call!(a => recover(Recovery::DisableAll));
        call!(a => recover_with(Recovery::DisableAll, |_| {}));
        call!(a => set_policies(Policy::default()));
        call!(a => close());
        calls
    }

    fn works(&self, key: &Created) -> bool {
        self.keys.verify(key.secret.expose(), &reading()).is_ok()
    }
}

/// Uses every part of a node, as its other callers do.
async fn everybody_else(keys: &Keyward, key: &Created) {
    keys.sync().await.unwrap();
    let named = UpdateKey::new().name("named");
    // A kept command that another caller carried on may have ended this key, or its tenant.
    drop(keys.update(&admin(), key.id, named).await);
    drop(keys.create(&admin(), reader("another")).await);
    drop(keys.revoke(&admin(), key.id, Reason::Lost).await);
    let text = key.secret.expose();
    assert!(keys.verify(text, &reading()).is_err());
    assert!(keys.verify_fresh(text, &reading()).await.is_err());
    let query = KeyQuery::tenant(tenant("acme"), at(START));
    keys.list(&host(), &query).await.unwrap();
    keys.run_maintenance().await.unwrap();
    keys.sync().await.unwrap();
}

#[test]
fn a_future_that_is_kept_at_any_call_of_the_store_delays_nobody() {
    let (mut names, mut kept_at) = (BTreeSet::new(), 0);
    for stage in STAGES {
        for number in 0..Held::new().calls().len() {
            let held = Held::new();
            let (name, mut kept) = held.calls().swap_remove(number);
            names.insert(name);
            let gate = held.store.hold(stage);
            if poll_once(&mut kept).is_some() {
                // This method does not make this call.
                continue;
            }
            kept_at += 1;
            held.store.let_pass(stage);
            gate.open();
            end(
                &format!("with {name} kept at {stage:?}, somebody"),
                everybody_else(&held.keys, &held.other),
            );
            end(name, kept);
        }
    }
    assert!(kept_at > names.len(), "{kept_at} futures were kept");
    let public = public_async_methods();
    assert_eq!(
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<BTreeSet<_>>(),
        public
    );
}

/// Returns the names of the async methods of `Keyward`, from its source.
fn public_async_methods() -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/keyward");
    let mut names = BTreeSet::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        // A lease has one caller, and stored peppers have no node. So nobody waits for a call that they keep.
        if path.is_dir() || path.ends_with("lease.rs") || path.ends_with("shared.rs") {
            continue;
        }
        let text = std::fs::read_to_string(path).unwrap();
        // A function without an indent is no method: it has no node whose callers could wait.
        let found = text.split("\n    pub async fn ").skip(1);
        let end = |c: char| !c.is_alphanumeric() && c != '_';
        names.extend(found.map(|rest| rest.split(end).next().unwrap().to_owned()));
    }
    assert!(names.remove("build"), "there is no node before it");
    names
}

#[test]
fn a_reader_of_events_that_is_kept_delays_nobody() {
    let held = Held::new();
    let store: Arc<dyn KeyStore> = Arc::new(held.store.clone());
    let events = Events::new(store, held.clock.clone(), ExpiryWindows::default());
    let cursor = EventCursor::BEGINNING;
    let gate = held.store.hold(Call::Audit);
    let mut kept = Box::pin(events.next_batch(&cursor, NonZeroUsize::new(10).unwrap()));
    assert!(poll_once(&mut kept).is_none());
    held.store.let_pass(Call::Audit);
    gate.open();
    end("somebody", everybody_else(&held.keys, &held.other));
}

#[test]
fn syncs_that_are_kept_do_not_hold_back_a_sync_that_never_gets_its_answer() {
    let held = Held::new();
    let gate = held.store.hold(Call::Changes);
    let mut kept = Box::pin(held.keys.sync());
    assert!(poll_once(&mut kept).is_none());
    held.store.let_pass(Call::Changes);
    let mut impatient = Box::pin(held.keys.sync());
    assert!(poll_once(&mut impatient).is_none());
    drop(impatient);
    let mut patient = Box::pin(held.keys.sync());
    assert!(
        poll_once(&mut patient).is_none(),
        "the store may still answer"
    );
    held.clock.advance(Duration::from_millis(500));
    drop(patient);
    end("a sync", held.keys.sync()).unwrap();
    drop(gate);
    end("the kept sync", kept).unwrap();
}

#[test]
fn a_command_that_is_dropped_before_its_commit_is_not_carried_out() {
    let held = Held::new();
    let by = admin();
    let new = |name: &str| Box::pin(held.keys.create(&by, reader(name)));
    let gate = held.store.hold(Call::Load);
    // The first begins a batch, and the others wait in the queue.
    let mut dropped: Vec<_> = ["a", "b", "c"].map(new).into();
    dropped
        .iter_mut()
        .for_each(|one| assert!(poll_once(one).is_none()));
    let mut kept = new("stays");
    assert!(poll_once(&mut kept).is_none());
    held.store.let_pass(Call::Load);
    drop(dropped);
    gate.open();
    end("a create", kept).unwrap();
    let names = |keys: &Keyward| {
        let query = KeyQuery::tenant(tenant("acme"), at(START));
        let list = wait(keys.list(&host(), &query)).unwrap();
        let names = list.keys.iter().map(|key| key.name.to_string());
        names.collect::<BTreeSet<_>>()
    };
    let expected = ["kept", "other", "stays"].map(str::to_owned);
    assert_eq!(names(&held.keys), expected.into());
}

#[test]
fn a_command_of_a_batch_is_left_out_if_its_caller_is_gone_before_the_commit() {
    for reply_lost in [false, true] {
        let held = Held::new();
        let by = admin();
        let first = held.store.hold(Call::Commit);
        let mut leader = Box::pin(held.keys.create(&by, reader("first")));
        assert!(poll_once(&mut leader).is_none());
        let (mut dropped, mut stays) = (
            Box::pin(held.keys.create(&by, reader("dropped"))),
            Box::pin(held.keys.create(&by, reader("stays"))),
        );
        assert!(poll_once(&mut dropped).is_none());
        assert!(poll_once(&mut stays).is_none());
        held.store.let_pass(Call::Commit);
        let second = held.store.hold(Call::Load);
        first.open();
        end("the leader", leader).unwrap();
        // Both are in one batch now, which waits for its load.
        assert!(poll_once(&mut stays).is_none());
        drop(dropped);
        if reply_lost {
            // The batch is decided again, and the dropped command was in no commit that may have landed.
            held.store.link.next(Call::Commit, [Fault::ReplyLost]);
        }
        held.store.let_pass(Call::Load);
        second.open();
        end("the other command", stays).unwrap();
        let query = KeyQuery::tenant(tenant("acme"), at(START));
        let list = wait(held.keys.list(&host(), &query)).unwrap();
        assert!(list.keys.iter().all(|key| key.name.as_str() != "dropped"));
    }
}

/// Another command of the batch is kept, and nobody polls it again.
#[test]
fn a_dropped_revocation_is_refused_here_although_its_batch_has_a_caller_that_is_kept() {
    let held = Held::new();
    let by = admin();
    let first = held.store.hold(Call::Commit);
    let mut leader = Box::pin(held.keys.create(&by, reader("first")));
    assert!(poll_once(&mut leader).is_none());
    let mut revoke = Box::pin(held.keys.revoke(&by, held.key.id, Reason::Lost));
    let mut kept = Box::pin(held.keys.create(&by, reader("kept")));
    assert!(poll_once(&mut revoke).is_none());
    assert!(poll_once(&mut kept).is_none());
    let second = held.store.hold(Call::Commit);
    first.open();
    end("the leader", leader).unwrap();
    assert!(poll_once(&mut kept).is_none());
    drop(revoke);
    assert!(held.works(&held.key), "the store has not answered");
    second.open();
    assert!(!held.works(&held.key));
    assert!(held.works(&held.other));
}

/// A time repair is committed by itself, before the other commands of its batch.
#[test]
fn a_command_that_was_executed_does_not_wait_for_the_others_of_its_batch() {
    let held = Held::new();
    let (by, place) = (host(), tenant("acme"));
    let first = held.store.hold(Call::Commit);
    let mut leader = Box::pin(held.keys.create(&by, reader("first").owned_by_tenant()));
    assert!(poll_once(&mut leader).is_none());
    let mut repair = Box::pin(held.keys.repair_time(&by, &place));
    let mut create = Box::pin(held.keys.create(&by, reader("second").owned_by_tenant()));
    assert!(poll_once(&mut repair).is_none());
    assert!(poll_once(&mut create).is_none());
    let for_repair = held.store.hold(Call::Commit);
    first.open();
    end("the leader", leader).unwrap();
    assert!(poll_once(&mut create).is_none());
    let for_create = held.store.hold(Call::Commit);
    for_repair.open();
    for _ in 0..5 {
        assert!(
            poll_once(&mut create).is_none(),
            "the store holds its answer back"
        );
    }
    assert!(poll_once(&mut repair).is_some());
    for_create.open();
    end("the last command", create).unwrap();
}

#[test]
fn a_dropped_revocation_that_landed_is_refused_here_as_soon_as_the_store_has_answered() {
    let held = Held::new();
    let by = admin();
    let gate = held.store.hold(Call::Commit);
    let mut revoke = Box::pin(held.keys.revoke(&by, held.key.id, Reason::Lost));
    assert!(poll_once(&mut revoke).is_none());
    drop(revoke);
    assert!(held.works(&held.key), "the store has not answered");
    gate.open();
    let refused = held.keys.verify(held.key.secret.expose(), &reading());
    let refused = refused.unwrap_err();
    assert!(
        matches!(refused, VerifyError::Revoked { .. }),
        "{refused:?}"
    );
    assert!(held.works(&held.other));
}

#[test]
fn an_abandoned_commit_without_an_answer_holds_back_no_command_of_its_tenant() {
    let held = Held::new();
    let by = admin();
    let _never_opened = held.store.hold(Call::Commit);
    let mut revoke = Box::pin(held.keys.revoke(&by, held.key.id, Reason::Lost));
    assert!(poll_once(&mut revoke).is_none());
    let mut queued = Box::pin(held.keys.disable(&by, held.other.id));
    assert!(poll_once(&mut queued).is_none());
    held.store.let_pass(Call::Commit);
    drop(revoke);
    end("a command", queued).unwrap();
    end("somebody", everybody_else(&held.keys, &held.other));
}

#[test]
fn reads_that_are_kept_do_not_use_up_the_reads_of_unknown_keys() {
    let held = Held::new();
    let policy = policy();
    let there = node(held.store.link.clone(), &held.clock, policy);
    let most = ReadThroughLimits::default().max_in_flight.get();
    let new = |number| wait(there.create(&admin(), reader(&format!("key {number}")))).unwrap();
    let unknown: Vec<_> = (0..=most).map(new).collect();
    let need = reading();
    let fetch = |key: &Created| {
        let (keys, need) = (held.keys.clone(), need.clone());
        let text = key.secret.expose().to_owned();
        Box::pin(async move { keys.verify_or_fetch(&text, &need).await })
    };
    let gate = held.store.hold(Call::Find);
    let (last, others) = unknown.split_last().unwrap();
    let mut kept: Vec<_> = others.iter().map(fetch).collect();
    for one in &mut kept {
        assert!(poll_once(one).is_none());
    }
    held.store.let_pass(Call::Find);
    let refused = end("a read", fetch(last)).unwrap_err();
    assert!(matches!(refused, VerifyError::Busy), "{refused:?}");
    gate.open();
    end("a read", fetch(last)).unwrap();
}

#[cfg(feature = "sqlite")]
mod over_sqlite {
    use futures_util::{StreamExt, stream};
    use keyward::store::SqliteStore;

    use super::*;

    /// Fails after 30 seconds instead of hanging.
    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let limited = async { tokio::time::timeout(Duration::from_secs(30), future).await };
        runtime
            .block_on(limited)
            .expect("a future waits for one that nobody polls")
    }

    fn new_keys(folder: &Path) -> Keyward {
        let store = wait(SqliteStore::open(folder.join("keys.db"))).unwrap();
        let clock = Arc::new(ManualClock::at(at(START)));
        node(store, &clock, policy())
    }

    #[test]
    fn commands_in_the_body_of_a_loop_over_buffered_commands_get_on() {
        let folder = tempfile::tempdir().unwrap();
        let keys = new_keys(folder.path());
        let (by, keys) = (&admin(), &keys);
        let created = stream::iter(0..24)
            .map(|number| keys.create(by, reader(&format!("key {number}"))))
            .buffer_unordered(8);
        let updated = created.fold(0, async |updated, created| {
            let change = UpdateKey::new().name("named");
            keys.update(by, created.unwrap().id, change).await.unwrap();
            updated + 1
        });
        assert_eq!(run(updated), 24);
    }

    #[test]
    fn more_calls_than_there_are_readers_may_be_kept() {
        let folder = tempfile::tempdir().unwrap();
        let keys = new_keys(folder.path());
        let key = wait(keys.create(&admin(), reader("other"))).unwrap();
        let (by, query) = (admin(), KeyQuery::tenant(tenant("acme"), at(START)));
        let mut lists: Vec<_> = (0..40).map(|_| Box::pin(keys.list(&by, &query))).collect();
        lists.iter_mut().for_each(|one| drop(poll_once(one)));
        let mut syncs: Vec<_> = (0..40).map(|_| Box::pin(keys.sync())).collect();
        syncs.iter_mut().for_each(|one| drop(poll_once(one)));
        let mut creates: Vec<_> = (0..40)
            .map(|_| Box::pin(keys.create(&by, reader("kept"))))
            .collect();
        creates.iter_mut().for_each(|one| drop(poll_once(one)));
        run(everybody_else(&keys, &key));
    }
}
