//! Authority to read keys and the audit trail.

use keyward::store::AuditQuery;
use keyward::{CreateKey, Denial, Role};

use super::{acting, developer, whole, world};
use support::*;

/// An actor whose role is missing from the policy must not list other owners' keys or read the audit trail.
#[test]
fn an_unknown_role_reads_nothing() {
    let world = world();
    let key = world.some_key();
    let by = actor("acme", "eve", Role::new("intern").unwrap());
    let query = world.keys.query(&tenant("acme"));
    let forbidden = |action| Denial::Forbidden {
        action,
        role: by.role().cloned(),
    };
    let looked = wait(world.keys.list(&by, &query));
    // An actor with an unknown role may list the keys that it owns. Eve owns none, so the list is empty.
    assert!(looked.unwrap().keys.is_empty());
    assert_eq!(denied(wait(world.keys.key(&by, key.id))), Denial::NotFound);
    assert_eq!(
        denied(wait(world.keys.rotation_progress(&by, key.id, None))),
        Denial::NotFound
    );
    let trail = wait(world.keys.audit(&by, &AuditQuery::tenant(tenant("acme"))));
    assert_eq!(denied(trail), forbidden("read the audit trail"));
    assert!(wait(world.keys.verify_audit(&by, &tenant("acme"), None)).is_err());
}

#[test]
fn a_role_without_rights_is_refused_where_owners_may_not_look() {
    let mut spec = super::policy();
    spec.classes
        .values_mut()
        .for_each(|class| class.look.owner = false);
    let world = TestService::with_policy(spec);
    world.some_key();
    let by = actor("acme", "eve", Role::MEMBER);
    let looked = wait(world.keys.list(&by, &world.keys.query(&tenant("acme"))));
    let (action, role) = ("look at keys", Some(Role::MEMBER));
    assert_eq!(denied(looked), Denial::Forbidden { action, role });
}

#[test]
fn a_list_omits_keys_its_reader_may_not_see_and_no_others() {
    let mut spec = super::policy();
    let hidden = spec.classes.get_mut("plain").unwrap();
    hidden.look.roles.remove(&Role::DEVELOPER);
    let world = TestService::with_policy(spec);
    let (mut seen, mut own) = (Vec::new(), Vec::new());
    for number in 0..9 {
        // Keys sort by the millisecond of their creation, so each key gets another millisecond.
        world.clock.advance(std::time::Duration::from_millis(1));
        let name = format!("key {number}");
        if number % 3 == 0 {
            world
                .create(&admin(), CreateKey::new(name.as_str()).class("plain"))
                .unwrap();
        } else {
            let key = CreateKey::new(name.as_str());
            seen.push(world.create(&admin(), key).unwrap().id);
        }
    }
    world.clock.advance(std::time::Duration::from_millis(1));
    own.push(
        world
            .create(&developer(), CreateKey::new("own").class("plain"))
            .unwrap()
            .id,
    );
    seen.extend(own);
    let mut query = world.keys.query(&tenant("acme"));
    query.limit = std::num::NonZeroUsize::new(2).unwrap();
    let mut found = Vec::new();
    loop {
        let page = wait(world.keys.list(&developer(), &query)).unwrap();
        assert!(page.keys.len() <= 2);
        found.extend(page.keys.iter().map(|key| key.id));
        match page.next {
            Some(next) => query.after = Some(next),
            None => break,
        }
    }
    assert_eq!(found, seen);
}

#[test]
fn auditors_and_administrators_read_the_trail() {
    let mut spec = super::policy();
    let auditor = Role::new("auditor").unwrap();
    spec.auditors.insert(auditor.clone());
    let world = TestService::with_policy(spec);
    world.some_key();
    let query = AuditQuery::tenant(tenant("acme"));
    for by in [admin(), actor("acme", "audrey", auditor)] {
        assert!(wait(world.keys.audit(&by, &query)).is_ok());
        assert!(wait(world.keys.verify_audit(&by, &tenant("acme"), None)).is_ok());
    }
    assert!(wait(world.keys.audit(&developer(), &query)).is_err());
}

#[test]
fn a_removed_person_reads_nothing() {
    let world = world();
    let key = world.some_key();
    wait(
        world
            .keys
            .remove_owner(&host(), &tenant("acme"), who("alice")),
    )
    .unwrap();
    assert_eq!(
        denied(wait(world.keys.key(&admin(), key.id))),
        Denial::NotFound
    );
    let trail = wait(
        world
            .keys
            .audit(&admin(), &AuditQuery::tenant(tenant("acme"))),
    );
    assert!(matches!(denied(trail), Denial::Forbidden { .. }));
}

#[test]
fn a_key_reads_with_the_roles_it_manages_with() {
    let world = world();
    let (_, key) = acting(&world, &admin(), whole("secret"));
    let query = world.keys.query(&tenant("acme"));
    assert_eq!(wait(world.keys.list(&key, &query)).unwrap().keys.len(), 1);
    let (_, narrow) = acting(&world, &admin(), reader("narrow"));
    assert!(matches!(
        denied(wait(world.keys.list(&narrow, &query))),
        Denial::Forbidden { .. }
    ));
}

/// Only administrators may learn that a key's class no longer exists. Other actors get the same refusal as
/// for any key.
#[test]
fn a_refusal_does_not_reveal_that_a_class_is_gone() {
    let world = super::world();
    let key = world.create(&admin(), super::whole("plain")).unwrap();
    let mut spec = super::policy();
    spec.classes.remove(&class("plain"));
    spec.classes.get_mut("issuing").unwrap().issues.clear();
    revise(&world.keys, keyward::policy::Policy::new(spec).unwrap());
    let how = keyward::RotateKey::immediate;
    let all = |by: &keyward::Actor| {
        [
            denied(wait(world.keys.rotate(by, key.id, how()))),
            denied(wait(world.keys.finish_rotation(by, key.id))),
            denied(wait(world.keys.cancel_rotation(by, key.id))),
            denied(wait(world.keys.update(
                by,
                key.id,
                keyward::UpdateKey::new(),
            ))),
            denied(wait(world.keys.enable(by, key.id))),
            denied(wait(world.keys.delete(
                by,
                key.id,
                keyward::command::DeleteKey::plain(),
            ))),
            denied(wait(world.keys.replace_lost(by, key.id))),
        ]
    };
    let intern = Role::new("intern").unwrap();
    for refused in all(&actor("acme", "eve", intern)) {
        assert!(matches!(refused, Denial::Forbidden { .. }), "{refused:?}");
    }
    for refused in all(&admin()) {
        assert!(
            matches!(refused, Denial::UnknownClass { .. }),
            "{refused:?}"
        );
    }
}
