//! The agreement of a store's processes on policies and peppers, and nodes that follow their store by
//! themselves.

use std::sync::{Arc, Weak};
use std::time::Duration;

use keyward::clocks::SystemClock;
use keyward::node::FollowOptions;
use keyward::policy::{Policies, Policy};
use keyward::store::{DocumentName, Documents, MemoryStore, NodeRegistry};
use keyward::{
    BuildError, Clock, Follow, Keyward, KeywardBuilder, ManualClock, PepperRing, Reason,
};
use keyward_conformance::{Call, Fault, FaultyStore};
use support::*;

fn build(builder: KeywardBuilder) -> Result<Keyward, BuildError> {
    wait(builder.clock(Arc::new(ManualClock::at(at(START)))).build())
}

fn over(store: &MemoryStore, ring: PepperRing) -> KeywardBuilder {
    Keyward::builder(store.clone(), ring)
}

/// Returns a policy with this cap and version.
fn policy(cap: u32, version: u32) -> Policy {
    Policy::new(capped(cap).with(|spec| spec.version = version)).unwrap()
}

fn version(keys: &Keyward) -> u32 {
    keys.policies().of(&tenant("acme")).spec().version
}

fn document(store: &MemoryStore, name: &str) -> Option<(u64, Vec<u8>)> {
    let name = DocumentName::new(name).unwrap();
    let read = wait(store.document(&name)).unwrap();
    read.document.map(|found| (found.version, found.body))
}

#[test]
fn a_process_without_a_policy_uses_the_policy_of_the_store() {
    let store = MemoryStore::new();
    let first = build(over(&store, peppers())).unwrap();
    assert_eq!(
        document(&store, "policies"),
        None,
        "a default is not remembered"
    );
    assert!(first.policies().of(&tenant("acme")).spec().name.as_str() == "standard");
    build(over(&store, peppers()).policy(policy(1, 1))).unwrap();
    let second = build(over(&store, peppers())).unwrap();
    wait(second.create(&admin(), reader("one"))).unwrap();
    let refused = denied(wait(second.create(&admin(), reader("two"))));
    assert_eq!(refused.code(), "cap-reached");
}

#[test]
fn another_policy_of_the_same_version_is_refused_and_changes_nothing() {
    let store = MemoryStore::new();
    build(over(&store, peppers()).policy(policy(5, 3))).unwrap();
    let before = document(&store, "policies");
    let refused = build(over(&store, peppers()).policy(policy(8, 3))).unwrap_err();
    let BuildError::Policy(conflict) = &refused else {
        panic!("{refused:?}");
    };
    assert_eq!((conflict.version, conflict.tenant.clone()), (3, None));
    assert!(refused.to_string().contains("higher version"), "{refused}");
    assert_eq!(document(&store, "policies"), before);
    build(over(&store, peppers()).policy(policy(5, 3))).unwrap();
    assert_eq!(
        document(&store, "policies"),
        before,
        "the same policy is not written again"
    );
}

#[test]
fn a_newer_policy_replaces_the_older_one_which_its_processes_may_still_use() {
    let store = MemoryStore::new();
    build(over(&store, peppers()).policy(policy(5, 1))).unwrap();
    build(over(&store, peppers()).policy(policy(8, 2))).unwrap();
    let older = build(over(&store, peppers()).policy(policy(5, 1))).unwrap();
    assert_eq!(version(&older), 1);
    assert_eq!(version(&build(over(&store, peppers())).unwrap()), 2);
}

#[test]
fn each_tenants_policy_is_compared_by_itself() {
    let store = MemoryStore::new();
    let both = |of_acme: Policy| Policies::new(policy(5, 1)).with_tenant(tenant("acme"), of_acme);
    build(over(&store, peppers()).policy(both(policy(9, 4)))).unwrap();
    let refused = build(over(&store, peppers()).policy(both(policy(7, 4)))).unwrap_err();
    assert!(refused.to_string().contains("of tenant acme"), "{refused}");
    build(over(&store, peppers()).policy(both(policy(7, 5)))).unwrap();
    let keys = build(over(&store, peppers())).unwrap();
    assert_eq!(version(&keys), 5);
    assert_eq!(keys.policies().of(&tenant("globex")).spec().version, 1);
}

#[test]
fn a_policy_that_is_replaced_at_run_time_is_remembered_or_refused() {
    let store = MemoryStore::new();
    let keys = build(over(&store, peppers()).policy(policy(5, 1))).unwrap();
    let refused = wait(keys.set_policies(policy(6, 1)));
    assert!(matches!(refused, Err(BuildError::Policy(_))), "{refused:?}");
    assert_eq!(
        *keys.policies().of(&tenant("acme")).spec(),
        *policy(5, 1).spec()
    );
    wait(keys.set_policies(policy(6, 2))).unwrap();
    assert_eq!(version(&build(over(&store, peppers())).unwrap()), 2);
}

#[test]
fn a_pepper_with_the_same_id_and_other_bytes_is_refused_before_anything_is_written() {
    let store = MemoryStore::new();
    let keys = build(over(&store, peppers()).policy(policy(5, 1))).unwrap();
    wait(keys.create(&admin(), reader("one"))).unwrap();
    let before = (
        dump(&store),
        document(&store, "peppers"),
        document(&store, "policies"),
    );
    let other = PepperRing::new(pepper("p1", 9));
    let refused = build(over(&store, other).policy(policy(8, 2))).unwrap_err();
    assert!(matches!(&refused, BuildError::PepperDiffers { pepper } if pepper.as_str() == "p1"));
    let after = (
        dump(&store),
        document(&store, "peppers"),
        document(&store, "policies"),
    );
    assert_eq!(before, after);
}

#[test]
fn a_ring_of_peppers_that_were_never_used_is_refused_unless_the_old_ones_are_lost() {
    let store = MemoryStore::new();
    build(over(&store, peppers())).unwrap();
    let fresh = || PepperRing::new(pepper("p2", 2));
    let refused = build(over(&store, fresh())).unwrap_err();
    assert!(
        matches!(&refused, BuildError::UnrelatedPeppers { .. }),
        "{refused:?}"
    );
    let text = refused.to_string();
    assert!(text.contains("(p2)") && text.contains("knows p1"), "{text}");
    build(over(&store, fresh()).replace_lost_peppers()).unwrap();
    build(over(&store, fresh())).unwrap();
}

#[test]
fn a_ring_that_was_rotated_is_accepted_and_so_is_one_without_the_first_pepper() {
    let store = MemoryStore::new();
    build(over(&store, peppers())).unwrap();
    let rotated = peppers().rotate(pepper("p2", 2)).unwrap();
    build(over(&store, rotated)).unwrap();
    build(over(&store, PepperRing::new(pepper("p2", 2)))).unwrap();
    let audit_only = PepperRing::new(pepper("p3", 3));
    let audit_only = audit_only.with_audit_only(pepper("p2", 2)).unwrap();
    build(over(&store, audit_only)).unwrap();
}

#[test]
fn no_document_reveals_a_pepper() {
    let store = MemoryStore::new();
    build(over(&store, PepperRing::new(pepper("p1", 0x41))).policy(policy(5, 1))).unwrap();
    for name in ["peppers", "policies"] {
        let (_, body) = document(&store, name).unwrap();
        let text = String::from_utf8(body).unwrap();
        assert!(
            !text.contains("41414141") && !text.contains("AAAA"),
            "{text}"
        );
    }
}

#[test]
fn a_document_that_a_newer_version_wrote_is_refused_by_name() {
    for (name, body) in [
        ("policies", &b"{\"keyward_policies\": 2}"[..]),
        (
            "peppers",
            b"{\"keyward_peppers\": 2, \"current\": [\"p1\"], \"peppers\": {}}",
        ),
    ] {
        let store = MemoryStore::new();
        let name = DocumentName::new(name).unwrap();
        let write = keyward::store::DocumentWrite::new(name, 0, body.to_vec());
        wait(store.write_document(write)).unwrap();
        let refused = build(over(&store, peppers())).unwrap_err();
        assert!(
            matches!(refused, BuildError::Unreadable { .. }),
            "{refused:?}"
        );
        let own = build(over(&store, peppers()).policy(policy(5, 1)));
        assert_eq!(
            own.is_ok(),
            body.starts_with(b"{\"keyward_pol"),
            "a policy of its own is enough"
        );
    }
}

#[test]
fn a_write_whose_reply_was_lost_is_found_by_the_next_attempt() {
    let store = MemoryStore::new();
    let link = FaultyStore::new(store.clone());
    let start = || build(Keyward::builder(link.clone(), peppers()).policy(policy(5, 1)));
    link.next(Call::WriteDocument, [Fault::ReplyLost, Fault::RequestLost]);
    start().unwrap();
    assert!(document(&store, "policies").is_some() && document(&store, "peppers").is_some());
    let link = FaultyStore::new(MemoryStore::new());
    link.next(Call::ReadDocument, [Fault::Unavailable]);
    let refused = build(Keyward::builder(link, peppers()).policy(policy(5, 1)));
    assert!(matches!(refused, Err(BuildError::Store(_))), "{refused:?}");
}

/// Without the check value of the first pepper, a second process would have nothing to compare with.
#[test]
fn the_first_process_of_a_store_must_write_its_settings() {
    let link = FaultyStore::new(MemoryStore::new());
    link.next(Call::WriteDocument, [Fault::Unavailable]);
    let refused = build(Keyward::builder(link, peppers()));
    assert!(matches!(refused, Err(BuildError::Store(_))), "{refused:?}");
}

#[test]
fn a_store_that_can_only_be_read_still_starts_a_process_that_agrees_with_it() {
    let store = MemoryStore::new();
    build(over(&store, peppers()).policy(policy(5, 1))).unwrap();
    let start = |version| {
        let link = FaultyStore::new(store.clone());
        link.next(Call::WriteDocument, [Fault::Unavailable; 2]);
        build(Keyward::builder(link, peppers()).policy(policy(5 * version, version)))
    };
    assert_eq!(version(&start(2).unwrap()), 2);
    assert_eq!(
        version(&build(over(&store, peppers())).unwrap()),
        1,
        "it was not remembered"
    );
}

#[test]
fn a_process_that_lacks_the_current_pepper_does_not_make_its_own_the_current_one() {
    let store = MemoryStore::new();
    let current = || {
        let (_, body) = document(&store, "peppers").unwrap();
        let text = String::from_utf8(body).unwrap();
        text.split("\"peppers\":{").next().unwrap().to_owned()
    };
    // A rotation in two steps: the new pepper first only verifies.
    let prepared = || peppers().with_next(pepper("p2", 2)).unwrap();
    build(over(&store, prepared())).unwrap();
    assert!(current().contains("[\"p1\"]"), "{}", current());
    build(over(&store, peppers().rotate(pepper("p2", 2)).unwrap())).unwrap();
    for older in [peppers(), prepared()] {
        build(over(&store, older)).unwrap();
        assert!(current().contains("[\"p1\",\"p2\"]"), "{}", current());
    }
}

#[test]
fn a_process_that_names_no_tenant_uses_the_policies_of_tenants_in_the_store() {
    let store = MemoryStore::new();
    let both = Policies::new(policy(5, 1)).with_tenant(tenant("acme"), policy(1, 1));
    build(over(&store, peppers()).policy(both)).unwrap();
    let other = build(over(&store, peppers()).policy(policy(7, 2))).unwrap();
    wait(other.create(&admin(), reader("one"))).unwrap();
    denied(wait(other.create(&admin(), reader("two"))));
    let again = build(over(&store, peppers())).unwrap();
    assert_eq!(
        version(&again),
        1,
        "the tenant keeps its policy in the store"
    );
}

#[test]
fn a_closed_node_stays_closed() {
    let link = FaultyStore::new(MemoryStore::new());
    let registry = link.clone();
    let keys = build(Keyward::builder(link.clone(), peppers()).registry(registry)).unwrap();
    let key = wait(keys.create(&admin(), reader("a key"))).unwrap();
    keys.verify(key.secret.expose(), &reading()).unwrap();
    wait(keys.close()).unwrap();
    wait(keys.sync()).unwrap_err();
    assert_eq!(wait(link.nodes()).unwrap(), [], "it left the registry");
    keys.verify(key.secret.expose(), &reading()).unwrap_err();
}

#[cfg(feature = "tokio")]
#[test]
fn closing_waits_for_no_task_that_its_runtime_dropped() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let link = FaultyStore::new(MemoryStore::new());
    let builder = Keyward::builder(link, peppers()).follow(Follow::Tokio(runtime.handle().clone()));
    let keys = wait(builder.build()).unwrap();
    drop(runtime);
    assert!(keys.follow_status().is_none(), "it ended with its runtime");
    wait(keys.close()).unwrap();
}

/// Polls `done` until it is true. Fails after a minute.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = SystemClock.monotonic();
    while !done() {
        assert!(
            SystemClock.monotonic() - begun < Duration::from_secs(60),
            "{what}"
        );
        std::thread::yield_now();
    }
}

#[cfg(feature = "sqlite")]
#[test]
fn a_node_over_a_file_follows_other_processes_without_any_call() {
    use keyward::store::SqliteStore;

    let folder = tempfile::tempdir().unwrap();
    let open = || wait(SqliteStore::open(folder.path().join("keys.db"))).unwrap();
    let start = || wait(Keyward::builder(open(), peppers()).build()).unwrap();
    let (here, there) = (start(), start());
    assert!(
        here.follow_status()
            .is_some_and(|status| status.failures == 0)
    );
    let key = wait(there.create(&admin(), reader("a key"))).unwrap();
    until("the key arrives", || {
        here.verify(key.secret.expose(), &reading()).is_ok()
    });
    wait(there.revoke(&admin(), key.id, Reason::Lost)).unwrap();
    until("the revocation arrives", || {
        here.verify(key.secret.expose(), &reading()).is_err()
    });

    wait(here.close()).unwrap();
    assert!(here.follow_status().is_none());
    wait(there.close()).unwrap();
    // The main file alone is whole.
    let copied = folder.path().join("copied.db");
    std::fs::copy(folder.path().join("keys.db"), &copied).unwrap();
    let copy = wait(SqliteStore::open(copied)).unwrap();
    let copy = Keyward::builder(copy, peppers()).follow(Follow::Manual);
    let copy = wait(copy.build()).unwrap();
    assert!(
        wait(copy.key(&admin(), key.id))
            .unwrap()
            .revocation
            .is_some()
    );
}

#[test]
fn a_store_in_the_process_and_a_clock_of_a_test_start_no_follower() {
    let keys = wait(Keyward::builder(MemoryStore::new(), peppers()).build()).unwrap();
    assert!(keys.follow_status().is_none());
    let link = FaultyStore::new(MemoryStore::new());
    let keys = build(Keyward::builder(link.clone(), peppers())).unwrap();
    assert!(keys.follow_status().is_none());
    let manual = Keyward::builder(link, peppers()).follow(Follow::Manual);
    assert!(wait(manual.build()).unwrap().follow_status().is_none());
}

#[test]
fn a_follower_ends_with_the_last_clone_and_releases_its_store() {
    let store = Arc::new(FaultyStore::new(MemoryStore::new()));
    let left: Weak<_> = Arc::downgrade(&store);
    let hourly = FollowOptions::default().with_upkeep(Some(Duration::from_secs(3600)));
    let builder = Keyward::builder(store, peppers()).follow_options(hourly);
    let keys = wait(builder.build()).unwrap();
    assert!(keys.follow_status().is_some());
    let clone = keys.clone();
    drop(keys);
    assert!(clone.follow_status().is_some());
    drop(clone);
    until("the follower ends", || left.upgrade().is_none());
}

#[cfg(feature = "tokio")]
#[test]
fn a_follower_on_a_runtime_without_timers_works_and_a_task_of_tokios_timers_is_refused() {
    use keyward::node::FollowStartError;

    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(1).build().unwrap();
    let store = MemoryStore::new();
    let there = wait(over(&store, peppers()).build()).unwrap();
    let link = FaultyStore::new(store);
    let here = Keyward::builder(link, peppers()).follow(Follow::Tokio(runtime.handle().clone()));
    let here = wait(here.build()).unwrap();
    let key = wait(there.create(&admin(), reader("a key"))).unwrap();
    until("the key arrives", || {
        here.verify(key.secret.expose(), &reading()).is_ok()
    });
    let refused = runtime.block_on(async { here.follow(FollowOptions::default()).map(drop) });
    assert_eq!(refused.unwrap_err(), FollowStartError::NoTimers);
    assert!(
        here.follow_status().is_some(),
        "the follower of the build goes on"
    );
}
