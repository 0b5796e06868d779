//! Peppers: rotations that several nodes adopt one by one, and the number of keys that need each pepper.

use std::sync::Arc;

use keyward::command::{Command, Created, DeleteKey, ImportKey, Request};
use keyward::key::{Credential, Digest};
use keyward::pepper::{PepperCount, PepperId, PepperState};
use keyward::recovery::Recovery;
use keyward::store::{DocumentName, DocumentWrite, KeyStore, Locator, MemoryStore, Row};
use keyward::{
    CreateKey, Denial, KeyId, Keyward, ManualClock, PepperRing, Reason, VerifyError, hours,
};
use support::*;

fn id(pepper: &str) -> PepperId {
    PepperId::new(pepper).unwrap()
}

/// Returns the ring of a process that loaded the first step of the rotation from `p1` to `p2`.
fn prepared() -> PepperRing {
    peppers().with_next(pepper("p2", 2)).unwrap()
}

/// Returns the ring of a process that loaded the second step.
fn rotated() -> PepperRing {
    peppers().rotate(pepper("p2", 2)).unwrap()
}

fn start(store: &MemoryStore, ring: PepperRing) -> Keyward {
    let clock = Arc::new(ManualClock::at(at(START)));
    wait(Keyward::builder(store.clone(), ring).clock(clock).build()).unwrap()
}

fn created(node: &Keyward, count: usize) -> Vec<Created> {
    let create = |n| wait(node.create(&admin(), reader(&format!("key {n}")))).unwrap();
    (0..count).map(create).collect()
}

fn credential(store: &MemoryStore, key: KeyId) -> (PepperId, Digest) {
    let found = wait(store.find(&Locator::Id(key))).unwrap().unwrap();
    let Row::Key(record) = found.change.row else {
        panic!("{found:?}");
    };
    match record.credential.clone() {
        Credential::Peppered { pepper, digest } => (pepper, digest),
        other => panic!("{other:?}"),
    }
}

/// Lets every node use every key, and run its maintenance, several times. Returns the number of commits.
fn use_keys(store: &MemoryStore, nodes: &[&Keyward], keys: &[Created]) -> u64 {
    let head = |node: &Keyward| {
        wait(node.sync()).unwrap();
        node.freshness().cursor.unwrap().revision.0
    };
    let before = head(nodes[0]);
    for _round in 0..10 {
        for node in nodes {
            wait(node.sync()).unwrap();
            for key in keys {
                let verified = node.verify(key.secret.expose(), &reading());
                let (pepper, _) = credential(store, key.id);
                match verified {
                    Ok(_) => {}
                    // Only a process that never loaded the new pepper may refuse a key.
                    Err(VerifyError::UnknownPepper { pepper: lacked }) => {
                        assert_eq!((&lacked, node.keys_by_pepper().len()), (&pepper, 2));
                    }
                    Err(error) => panic!("{error:?}"),
                }
            }
            wait(node.run_maintenance()).unwrap();
        }
    }
    head(nodes[0]) - before
}

/// An earlier rule moved a key from any other pepper of the ring to the current one. Under that rule, the two
/// nodes made a commit for each key in each round. The last node to use a key decided its pepper.
#[test]
fn nodes_on_both_sides_of_a_rotation_move_each_key_once_and_to_the_new_pepper() {
    const KEYS: usize = 20;
    let store = MemoryStore::new();
    let keys = created(&start(&store, peppers()), KEYS);
    let (unaware, before) = (start(&store, peppers()), start(&store, prepared()));
    let after = start(&store, rotated());
    let restarted = start(&store, prepared());
    let nodes = [&before, &after, &restarted, &unaware];
    assert_eq!(use_keys(&store, &nodes, &keys), KEYS as u64);
    for key in &keys {
        assert_eq!(credential(&store, key.id).0, id("p2"));
    }
    // A key that a late node creates moves as well, and a key of the new pepper stays.
    let late = created(&before, 1);
    let new = created(&after, 1);
    assert_eq!(use_keys(&store, &nodes[..3], &late), 1);
    assert_eq!(use_keys(&store, &nodes[..3], &new), 0);
}

/// A host that builds its rings itself may add the new pepper as a retired one. The order in the store then still
/// decides which of the two is older.
#[test]
fn a_ring_that_calls_the_new_pepper_retired_moves_no_key_back() {
    let store = MemoryStore::new();
    let keys = created(&start(&store, peppers()), 3);
    let mistaken = || peppers().with_retired(pepper("p2", 2)).unwrap();
    let before = start(&store, mistaken());
    let after = start(&store, rotated());
    let restarted = start(&store, mistaken());
    assert_eq!(use_keys(&store, &[&before, &after, &restarted], &keys), 3);
    for key in &keys {
        assert_eq!(credential(&store, key.id).0, id("p2"));
    }
}

#[test]
fn keys_move_past_several_rotations_and_never_to_an_older_pepper() {
    let store = MemoryStore::new();
    let keys = created(&start(&store, peppers()), 3);
    let second = start(&store, rotated());
    let third = start(&store, rotated().rotate(pepper("p3", 3)).unwrap());
    // An operator who goes back to the first pepper cannot make keys move back.
    let back = PepperRing::new(pepper("p1", 1))
        .with_retired(pepper("p2", 2))
        .and_then(|ring| ring.with_retired(pepper("p3", 3)))
        .unwrap();
    let back = start(&store, back);
    assert_eq!(use_keys(&store, &[&back, &second], &keys), 3);
    assert_eq!(use_keys(&store, &[&back, &third], &keys), 3);
    for key in &keys {
        assert_eq!(credential(&store, key.id).0, id("p3"));
    }
}

/// Earlier versions listed the current pepper of the first process, and not its older peppers.
#[test]
fn keys_of_a_pepper_that_the_store_does_not_list_move() {
    let store = MemoryStore::new();
    let keys = created(&start(&store, peppers()), 3);
    start(&store, rotated());
    let documents = store.documents().unwrap();
    let name = DocumentName::new("peppers").unwrap();
    let stored = wait(documents.document(&name)).unwrap();
    let stored = stored.document.unwrap();
    let mut body: serde_json::Value = serde_json::from_slice(&stored.body).unwrap();
    assert_eq!(body["current"], serde_json::json!(["p1", "p2"]));
    body["current"] = serde_json::json!(["p2"]);
    let body = serde_json::to_vec(&body).unwrap();
    let write = DocumentWrite::new(name, stored.version, body);
    wait(documents.write_document(write)).unwrap();

    let prepared = || rotated().with_next(pepper("p3", 3)).unwrap();
    let (before, restarted) = (start(&store, prepared()), start(&store, prepared()));
    assert_eq!(use_keys(&store, &[&before, &restarted], &keys), 3);
    assert!(
        keys.iter()
            .all(|key| credential(&store, key.id).0 == id("p2"))
    );
    let after = start(&store, rotated().rotate(pepper("p3", 3)).unwrap());
    assert_eq!(use_keys(&store, &[&before, &after], &keys), 3);
    assert!(
        keys.iter()
            .all(|key| credential(&store, key.id).0 == id("p3"))
    );
}

/// The rule holds where a command is decided, not only in the verifier that queues it.
#[test]
fn a_command_that_moves_a_digest_to_an_older_pepper_is_denied() {
    let store = MemoryStore::new();
    let before = start(&store, prepared());
    let key = &created(&start(&store, rotated()), 1)[0];
    wait(before.sync()).unwrap();
    let (from, replaces) = credential(&store, key.id);
    let redigest = Command::Redigest {
        key: key.id,
        from,
        to: id("p1"),
        replaces,
        digest: Digest::sha256("another digest"),
    };
    let request = Request::new(command("redigest"), host(), tenant("acme"), redigest);
    let refused = denied(wait(before.manager().execute(request)));
    assert_eq!(refused, Denial::StaleRedigest { pepper: id("p1") });
    assert_eq!(credential(&store, key.id), (id("p2"), replaces));
}

fn shown(counts: &[PepperCount]) -> Vec<(&str, Option<PepperState>, u64)> {
    let each = counts.iter();
    each.map(|count| (count.pepper.as_str(), count.state, count.keys))
        .collect()
}

#[test]
fn live_keys_are_counted_under_the_pepper_that_they_need() {
    let world = TestService::new();
    let [kept, disabled, revoked, removed] = [(); 4].map(|()| world.some_key());
    let short = CreateKey::new("short").expires_in(hours(1));
    world.create(&admin(), short).unwrap();
    let imported = ImportKey::sha256(Digest::sha256("old-style-token"), reader("imported"));
    wait(world.keys.import(&admin(), imported)).unwrap();
    wait(world.keys.disable(&admin(), disabled.id)).unwrap();
    wait(world.keys.revoke(&admin(), revoked.id, Reason::Lost)).unwrap();
    wait(world.keys.delete(&admin(), removed.id, DeleteKey::plain())).unwrap();
    let current = Some(PepperState::Current);
    assert_eq!(shown(&world.keys.keys_by_pepper()), [("p1", current, 3)]);
    // An expired key never works again, but a disabled key can be enabled.
    world.clock.advance(hours(1));
    assert_eq!(shown(&world.keys.keys_by_pepper()), [("p1", current, 2)]);

    let builder = Keyward::builder(world.store.clone(), rotated()).clock(world.clock.clone());
    let newer = wait(builder.build()).unwrap();
    let live = Some(PepperState::Live);
    assert_eq!(
        shown(&newer.keys_by_pepper()),
        [("p2", current, 0), ("p1", live, 2)]
    );
    newer.verify(kept.secret.expose(), &reading()).unwrap();
    wait(newer.run_maintenance()).unwrap();
    assert_eq!(
        shown(&newer.keys_by_pepper()),
        [("p2", current, 1), ("p1", live, 1)]
    );
    wait(world.keys.sync()).unwrap();
    assert_eq!(
        shown(&world.keys.keys_by_pepper()),
        [("p1", current, 1), ("p2", None, 1)]
    );
}

#[test]
fn a_recovery_reports_the_keys_whose_pepper_was_retired_after_the_backup() {
    for (audit_only, state) in [(true, Some(PepperState::Audit)), (false, None)] {
        let world = TestService::new();
        let key = world.some_key();
        let backup = crate::recovery::backup(&world.store);
        let mut ring = PepperRing::new(pepper("p2", 2));
        if audit_only {
            ring = ring.with_audit_only(pepper("p1", 1)).unwrap();
        }
        let restored = start(&backup, ring);
        let refused = restored.verify(key.secret.expose(), &reading());
        assert!(matches!(refused, Err(VerifyError::UnknownPepper { .. })));
        let report = wait(restored.recover(Recovery::TrustBackup)).unwrap();
        assert_eq!(shown(&report.unverifiable), [("p1", state, 1)]);
        // A disabled key can be enabled, and then needs its pepper again.
        let report = wait(restored.recover(Recovery::DisableAll)).unwrap();
        assert_eq!((report.disabled, report.unverifiable.len()), (1, 1));
        wait(restored.revoke(&admin(), key.id, Reason::Lost)).unwrap();
        let report = wait(restored.recover(Recovery::TrustBackup)).unwrap();
        assert_eq!(report.unverifiable, []);
    }
}
