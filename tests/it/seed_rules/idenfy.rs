//! The rules of `profiles::idenfy`.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use keyward::command::{Created, DeleteKey, ImportKey};
use keyward::key::Digest;
use keyward::policy::Policy;
use keyward::{
    CommandError, CreateKey, Credentials, Denial, Keyward, Need, Reason, RotateKey, UpdateKey,
    VerifyError, days, hours, profiles,
};

use support::*;

fn world() -> TestService {
    TestService::with_policy(profiles::idenfy())
}

fn draft(name: &str) -> CreateKey {
    CreateKey::new(name).scope("verifications:write")
}

fn verifying() -> Need {
    Need::scope("verifications:write").unwrap()
}

fn deleted(world: &TestService) -> Created {
    let key = world.create(&admin(), draft("short-lived")).unwrap();
    wait(world.keys.delete(&admin(), key.id, DeleteKey::plain())).unwrap();
    key
}

const FULL: Denial = Denial::CapReached {
    limit: NonZeroU32::new(2).unwrap(),
    classes: BTreeSet::new(),
};

#[test]
fn i_02_a_key_id_and_its_secret_are_a_pair() {
    let world = world();
    let first = world.create(&admin(), draft("first")).unwrap();
    world.clock.advance(hours(1));
    let second = world.create(&admin(), draft("second")).unwrap();
    let ids: Vec<_> = listed(&world, &admin()).iter().map(|key| key.id).collect();
    assert_eq!(ids, [first.id, second.id], "the list shows the ids");
    for (own, other) in [(&first, &second), (&second, &first)] {
        let pair = |id: &Created| {
            let id = id.id.to_string();
            let pair = Credentials::Pair {
                public: id.as_bytes(),
                secret: own.secret.expose().as_bytes(),
            };
            world.keys.verify(pair, &verifying())
        };
        assert_eq!(pair(own).unwrap().key_id(), own.id);
        assert_eq!(pair(other).unwrap_err(), VerifyError::PairMismatch);
        let id_alone = world.keys.verify(&own.id.to_string(), &verifying());
        assert!(matches!(id_alone, Err(VerifyError::Malformed(_))));
    }
}

#[test]
fn i_03_create_generates_a_key_that_works() {
    let world = world();
    let first = world.create(&admin(), draft("first")).unwrap();
    let second = world.create(&admin(), draft("second")).unwrap();
    assert_ne!(first.id, second.id);
    for key in [&first, &second] {
        let grant = world.keys.verify(key.secret.expose(), &verifying());
        assert_eq!(grant.unwrap().key_id(), key.id);
    }
    assert_ne!(
        secret_part(first.secret.expose()),
        secret_part(second.secret.expose())
    );
}

#[test]
fn i_04_the_secret_is_shown_once() {
    let world = world();
    let admin = admin();
    let once = admin.with_command_id(command("create-1"));
    let key = wait(world.keys.create(&once, draft("once"))).unwrap();
    let again = wait(world.keys.create(&once, draft("once")));
    assert_eq!(denied(again), Denial::AlreadyCreated { id: key.id });

    let details = wait(world.keys.key(&admin, key.id)).unwrap();
    assert_eq!(details.published, None);
    let grant = world
        .keys
        .verify(key.secret.expose(), &verifying())
        .unwrap();
    let read = format!("{details:?} {:?} {grant:?}", listed(&world, &admin));
    let kept = dump(&world.store);
    assert!(kept.contains(key.hint.as_str()), "the key is in the dump");
    let secret = secret_part(key.secret.expose());
    assert!(!read.contains(secret) && !kept.contains(secret));
}

#[test]
fn i_05_at_most_two_keys_exist_at_the_same_time() {
    let world = world();
    let policy = Policy::new(profiles::idenfy()).unwrap();
    let nodes: Vec<_> = (0..3).map(|_| world.another_node(policy.clone())).collect();
    let create = |keys: &Keyward, thread: usize| loop {
        match wait(keys.create(&admin(), draft(&format!("key {thread}")))) {
            Err(CommandError::Contended { .. }) => {}
            settled => return settled,
        }
    };
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let attempts: Vec<_> = (0..12)
            .map(|thread| {
                let (nodes, create) = (&nodes, &create);
                scope.spawn(move || create(&nodes[thread % nodes.len()], thread))
            })
            .collect();
        let joined = attempts.into_iter().map(|attempt| attempt.join().unwrap());
        joined.collect()
    });
    let (created, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!(created.len(), 2);
    assert!(refused.into_iter().all(|refusal| denied(refusal) == FULL));

    wait(world.keys.sync()).unwrap();
    assert_eq!(listed(&world, &admin()).len(), 2);
    assert_eq!(denied(world.create(&admin(), draft("third"))), FULL);
    // A disabled key still counts towards the account's cap of two keys. Each account has its own cap.
    let disabled = created[0].as_ref().unwrap().id;
    wait(world.keys.disable(&admin(), disabled)).unwrap();
    assert_eq!(denied(world.create(&admin(), draft("third"))), FULL);
    let elsewhere = actor("globex", "gil", keyward::Role::ADMIN);
    world.create(&elsewhere, draft("first of globex")).unwrap();
}

#[test]
fn i_07_any_number_of_keys_can_be_created_over_time() {
    let world = world();
    let kept = world.create(&admin(), draft("kept")).unwrap();
    for round in 0..100 {
        let key = world.create(&admin(), draft("one of many")).unwrap();
        let grant = world.keys.verify(key.secret.expose(), &verifying());
        assert_eq!(grant.unwrap().key_id(), key.id, "round {round}");
        assert_eq!(denied(world.create(&admin(), draft("third"))), FULL);
        wait(world.keys.delete(&admin(), key.id, DeleteKey::plain())).unwrap();
    }
    assert_eq!(listed(&world, &admin()).len(), 1);
    world
        .keys
        .verify(kept.secret.expose(), &verifying())
        .unwrap();
}

#[test]
fn i_09_a_deleted_key_never_works_again() {
    let world = world();
    let key = deleted(&world);
    let text = key.secret.expose();
    let refused = || {
        let node = world.another_node(Policy::new(profiles::idenfy()).unwrap());
        for keys in [&world.keys, &node] {
            let id = key.id.to_string();
            let pair = Credentials::Pair {
                public: id.as_bytes(),
                secret: text.as_bytes(),
            };
            let verdicts = [
                keys.verify(text, &verifying()),
                keys.verify(pair, &verifying()),
                wait(keys.verify_fresh(text, &verifying())),
                wait(keys.verify_or_fetch(text, &verifying())),
            ];
            for verdict in verdicts {
                assert_eq!(verdict.unwrap_err(), VerifyError::Unknown);
            }
        }
    };
    refused();
    world.clock.advance(days(3653));
    world.create(&admin(), draft("after ten years")).unwrap();
    refused();
}

#[test]
fn i_10_no_call_brings_a_deleted_key_back() {
    let world = world();
    let (key, by, keys) = (deleted(&world), admin(), &world.keys);
    let text = key.secret.expose();
    let rename = UpdateKey::new().name("back");
    let refusals = [
        denied(wait(keys.key(&by, key.id))),
        denied(wait(keys.enable(&by, key.id))),
        denied(wait(keys.disable(&by, key.id))),
        denied(wait(keys.update(&by, key.id, rename))),
        denied(wait(keys.rotate(&by, key.id, RotateKey::immediate()))),
        denied(wait(keys.cancel_rotation(&by, key.id))),
        denied(wait(keys.replace_lost(&by, key.id))),
        denied(wait(keys.revoke(&by, key.id, Reason::Lost))),
        denied(wait(keys.delete(&by, key.id, DeleteKey::plain()))),
    ];
    assert!(refusals.iter().all(|denied| *denied == Denial::NotFound));

    // Importing the token of a deleted key does not restore the key either.
    let import = ImportKey::sha256(Digest::sha256(text), draft("taken over"));
    let _ = wait(keys.import(&by, import));
    let verdicts = [
        keys.verify(text, &verifying()),
        wait(keys.verify_fresh(text, &verifying())),
        wait(keys.verify_or_fetch(text, &verifying())),
    ];
    for verdict in verdicts {
        assert_eq!(verdict.unwrap_err(), VerifyError::Unknown);
    }
    assert!(listed(&world, &by).iter().all(|info| info.id != key.id));
}
