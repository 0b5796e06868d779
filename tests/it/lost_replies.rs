//! Once a call has returned, its effect is visible in the calling process, even if the store's reply to the
//! process was lost.

use keyward::command::{Created, DeleteKey};
use keyward::pepper::Pepper;
use keyward::store::MemoryStore;
use keyward::{
    Actor, CreateKey, Keyward, Need, PepperRing, Reason, Role, RotateKey, Secret, hours,
};
use keyward_conformance::{Call, Fault, FaultyStore};

fn admin() -> Actor {
    Actor::new(
        "acme".try_into().unwrap(),
        "alice".try_into().unwrap(),
        Role::ADMIN,
    )
}

async fn node(store: FaultyStore<MemoryStore>) -> Keyward {
    let pepper = Pepper::new("one".try_into().unwrap(), &[7; Pepper::MIN_LEN]).unwrap();
    Keyward::builder(store, PepperRing::new(pepper))
        .build()
        .await
        .unwrap()
}

async fn create(keys: &Keyward) -> Created {
    let key = CreateKey::new("export")
        .environment("live")
        .scope("reports:read");
    keys.create(&admin(), key).await.unwrap()
}

fn works(keys: &Keyward, secret: &Secret) -> bool {
    keys.verify(secret.expose(), &Need::scope("reports:read").unwrap())
        .is_ok()
}

#[pollster::test]
async fn a_created_key_works_here_immediately_although_the_reply_was_lost() {
    let store = FaultyStore::new(MemoryStore::new());
    let keys = node(store.clone()).await;
    store.next(Call::Commit, [Fault::ReplyLost]);
    let created = create(&keys).await;
    assert!(works(&keys, &created.secret));
}

#[pollster::test]
async fn a_revoked_key_is_refused_here_immediately_although_the_reply_was_lost() {
    let store = FaultyStore::new(MemoryStore::new());
    let keys = node(store.clone()).await;
    let created = create(&keys).await;
    store.next(Call::Commit, [Fault::RequestLost, Fault::ReplyLost]);
    keys.revoke(&admin(), created.id, Reason::Lost)
        .await
        .unwrap();
    assert!(!works(&keys, &created.secret));
}

#[pollster::test]
async fn a_key_ended_by_another_node_is_refused_here_once_the_repeated_command_returns() {
    for delete in [false, true] {
        let store = FaultyStore::new(MemoryStore::new());
        let (here, there) = (node(store.clone()).await, node(store.clone()).await);
        let created = create(&here).await;
        // Sends the same command to both nodes, like a client that retries after a lost answer.
        let by = admin();
        let by = by.with_command_id("end".try_into().unwrap());
        for keys in [&there, &here] {
            let ended = match delete {
                true => keys.delete(&by, created.id, DeleteKey::plain()).await,
                false => keys.revoke(&by, created.id, Reason::Lost).await,
            };
            ended.unwrap();
        }
        assert!(!works(&here, &created.secret));
    }
}

#[pollster::test]
async fn a_removed_owner_is_refused_here_once_the_repeated_removal_returns() {
    let store = FaultyStore::new(MemoryStore::new());
    let (here, there) = (node(store.clone()).await, node(store.clone()).await);
    let created = create(&here).await;
    let host = Actor::application("acme".try_into().unwrap());
    for keys in [&there, &here] {
        let alice = "alice".try_into().unwrap();
        keys.remove_owner(&host, host.tenant(), alice)
            .await
            .unwrap();
    }
    assert!(!works(&here, &created.secret));
}

#[pollster::test]
async fn a_successor_is_refused_here_immediately_although_the_reply_to_the_cancellation_was_lost() {
    for elsewhere in [false, true] {
        let store = FaultyStore::new(MemoryStore::new());
        let (here, there) = (node(store.clone()).await, node(store.clone()).await);
        let old = create(&here).await;
        let how = RotateKey::grace(hours(1));
        let successor = here.rotate(&admin(), old.id, how).await.unwrap();
        let by = admin();
        let by = by.with_command_id("cancel".try_into().unwrap());
        match elsewhere {
            true => drop(there.cancel_rotation(&by, old.id).await.unwrap()),
            false => store.next(Call::Commit, [Fault::ReplyLost]),
        }
        here.cancel_rotation(&by, old.id).await.unwrap();
        assert!(works(&here, &old.secret));
        assert!(!works(&here, &successor.secret));
    }
}

#[pollster::test]
async fn a_key_that_was_read_through_keeps_its_owners_reach() {
    let store = FaultyStore::new(MemoryStore::new());
    let (here, there) = (node(store.clone()).await, node(store.clone()).await);
    let created = create(&there).await;
    let need = Need::scope("reports:read").unwrap();
    let read_through = here.verify_or_fetch(created.secret.expose(), &need).await;
    assert!(read_through.is_ok());
    assert_eq!(here.verify(created.secret.expose(), &need).err(), None);
}
