//! Authority over keys: no actor gains rights. `docs/authority.md` states the rules. These tests check each
//! rule on every command and dimension to which it applies.

mod bound;
mod commit;
mod looking;
mod reach;
mod rotation;
mod sweeps;
mod tenants;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keyward::command::Created;
use keyward::key::Environment;
use keyward::policy::{KeyClass, PolicySpec, Propagation, SelfRotation, TenantReach};
use keyward::token::TokenPrefix;
use keyward::{
    Actor, CommandError, CreateKey, Grant, Need, Receipt, Role, ScopeSet, days, profiles,
};

use support::*;

/// Returns a policy with classes of every kind. Admins and developers have all scopes, and only admins are
/// administrators.
fn policy() -> PolicySpec {
    let mut spec = profiles::standard();
    let prefix = |text: &str| TokenPrefix::new(text).unwrap();
    let kind = |text: &str| {
        let managers = [Role::ADMIN, Role::DEVELOPER];
        KeyClass::secret(prefix(text), ScopeSet::all(), managers)
    };
    let wide = kind("wide_").with(|kind| kind.tenant_reach = TenantReach::Descendants);
    let slow = kind("slow_").with(|kind| {
        kind.propagation = Some(Propagation {
            bound: Duration::from_secs(60),
        })
    });
    let issuing = kind("issuing_").with(|kind| kind.issues = BTreeSet::from([class("plain")]));
    let renewing = kind("renewing_").with(|kind| {
        kind.self_rotation = SelfRotation::Renews {
            until_age: days(100),
        }
    });
    let within = kind("within_").with(|kind| kind.self_rotation = SelfRotation::WithinLife);
    spec.classes.extend([
        (class("plain"), kind("plain_")),
        (class("wide"), wide),
        (class("slow"), slow),
        (class("issuing"), issuing),
        (class("renewing"), renewing),
        (class("within"), within),
    ]);
    let secret = spec.classes.get_mut("secret").unwrap();
    let test = BTreeMap::from([
        (Environment::LIVE, prefix("sk_live_")),
        (Environment::TEST, prefix("sk_test_")),
    ]);
    assert_eq!(secret.prefixes, test);
    spec
}

fn world() -> TestService {
    let world = TestService::with_policy(policy());
    for path in ["acme", "acme/web", "other"] {
        let host = Actor::application(tenant(path));
        wait(world.keys.provision_tenant(&host, &tenant(path))).unwrap();
    }
    world
}

/// Returns a draft with all scopes. A key that an admin creates from the draft keeps all scopes.
fn whole(class: &str) -> CreateKey {
    CreateKey::new("whole").class(class).scope("*:*")
}

fn grant(world: &TestService, key: &Created) -> Grant {
    let need = Need::any().or_publishable();
    world.keys.verify(key.secret.expose(), &need).unwrap()
}

/// Creates a key as `by`. Returns the key, and an actor that acts with the key.
fn acting(world: &TestService, by: &Actor, key: CreateKey) -> (Created, Actor) {
    let created = world.create(by, key).unwrap();
    let actor = grant(world, &created).actor();
    (created, actor)
}

fn set_role(
    world: &TestService,
    by: &Actor,
    (path, owner): (&str, &str),
    role: Role,
) -> Result<Receipt, CommandError> {
    let place = tenant(path);
    wait(world.keys.change_owner_role(by, &place, who(owner), role))
}

fn developer() -> Actor {
    actor("acme", "dora", Role::DEVELOPER)
}
