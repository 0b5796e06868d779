//! Random policies, and the rights of their roles, computed independently of the library.

use std::collections::{BTreeMap, BTreeSet};

use keyward::key::{ClassName, Environment, Owner};
use keyward::policy::{
    Access, KeyClass, LegacyRule, Policy, Propagation, Revocation, SelfRotation, TenantReach,
};
use keyward::{PrincipalId, Role, Scope, ScopeSet, days, profiles};
use rand::RngExt;
use rand::rngs::ChaCha12Rng;

pub(crate) const CLASSES: [&str; 4] = ["plain", "wide", "public", "renewing"];
pub(crate) const ROLES: [&str; 4] = ["admin", "developer", "ops", "member"];
pub(crate) const SCOPES: [&str; 5] = ["a:read", "a:write", "b:read", "b:write", "c:admin"];

/// An action on keys of a class.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verb {
    Create,
    Look,
    Update,
    Rotate,
    Revoke,
}

pub(crate) fn role(name: &str) -> Role {
    Role::new(name).unwrap()
}

pub(crate) fn class(name: &str) -> ClassName {
    ClassName::new(name).unwrap()
}

fn set(scopes: &[&'static str]) -> ScopeSet {
    ScopeSet::parse(scopes.iter().copied()).unwrap()
}

/// Draws a random policy with classes of every kind. Its roles have equal or different scopes.
pub(crate) fn draw(dice: &mut ChaCha12Rng) -> Policy {
    let chance = |dice: &mut ChaCha12Rng, percent: u32| dice.random_range(0..100) < percent;
    let wide = [chance(dice, 30), chance(dice, 30)];
    let mut roles = BTreeMap::from([
        (role("admin"), ScopeSet::all()),
        (role("developer"), set(&["a:*", "b:read"])),
        (role("ops"), set(&["b:*", "a:read"])),
        (role("member"), set(&["a:read"])),
    ]);
    for (name, all) in ["developer", "ops"].into_iter().zip(wide) {
        if all {
            roles.insert(role(name), ScopeSet::all());
        }
    }
    let mut classes = BTreeMap::new();
    for name in CLASSES {
        let mut access = || {
            let mut roles = BTreeSet::from([role("admin")]);
            for (name, percent) in [("developer", 60), ("ops", 40), ("member", 15)] {
                roles.extend(chance(dice, percent).then(|| role(name)));
            }
            let owner = chance(dice, 50);
            Access { roles, owner }
        };
        let (create, look, update) = (access(), access(), access());
        let (rotate, revoke) = (access(), access());
        let own = keyward::token::TokenPrefix::new(format!("{}_", &name[..2])).unwrap();
        let test = keyward::token::TokenPrefix::new(format!("{}t_", &name[..2])).unwrap();
        let ceiling = match chance(dice, 70) {
            true => ScopeSet::all(),
            false => set(&["a:*", "b:*"]),
        };
        let kind = match name {
            "public" => KeyClass::publishable(own.clone(), ceiling, []),
            _ => KeyClass::secret(own.clone(), ceiling, []),
        };
        let self_rotation = match (name, chance(dice, 50)) {
            ("renewing", true) => SelfRotation::WithinLife,
            ("renewing", false) => SelfRotation::Renews {
                until_age: days(20),
            },
            _ => SelfRotation::Never,
        };
        let issues = match name {
            "public" => BTreeSet::new(),
            _ => CLASSES
                .into_iter()
                .filter(|_| chance(dice, if name == "plain" { 60 } else { 12 }))
                .map(class)
                .collect(),
        };
        let tenant_reach = match name {
            "wide" => TenantReach::Descendants,
            _ => TenantReach::Own,
        };
        let propagation = (name == "renewing").then_some(Propagation {
            bound: std::time::Duration::from_secs(60),
        });
        let kind = kind.with(|rules| {
            rules.prefixes = BTreeMap::from([(Environment::LIVE, own), (Environment::TEST, test)]);
            rules.create = create;
            rules.look = look;
            rules.update = update;
            rules.rotate = rotate;
            rules.revoke = revoke;
            rules.revocation = Revocation::default();
            rules.self_rotation = self_rotation;
            rules.issues = issues;
            rules.tenant_reach = tenant_reach;
            rules.propagation = propagation;
        });
        classes.insert(class(name), kind);
    }
    let mut administrators = BTreeSet::from([role("admin")]);
    administrators.extend(chance(dice, 20).then(|| role("ops")));
    Policy::new(profiles::standard().with(|spec| {
        spec.classes = classes;
        spec.default_class = class("plain");
        spec.roles = roles;
        spec.administrators = administrators;
        spec.auditors = BTreeSet::new();
        spec.caps.clear();
        spec.legacy = LegacyRule::None;
        spec.provision = Vec::new();
        spec.purpose_required = false;
    }))
    .unwrap()
}

fn access<'a>(policy: &'a Policy, verb: Verb, class: &ClassName) -> &'a Access {
    let class = policy.class(class).unwrap();
    match verb {
        Verb::Create => &class.create,
        Verb::Look => &class.look,
        Verb::Update => &class.update,
        Verb::Rotate => &class.rotate,
        Verb::Revoke => &class.revoke,
    }
}

/// Returns whether the access list for `verb` contains all of `roles`. False if `roles` is empty.
pub(crate) fn on_list(
    policy: &Policy,
    roles: &BTreeSet<Role>,
    verb: Verb,
    class: &ClassName,
) -> bool {
    !roles.is_empty() && roles.is_subset(&access(policy, verb, class).roles)
}

/// Returns whether the access list for `verb` admits `who` as the key's owner.
pub(crate) fn lets_owner(
    policy: &Policy,
    verb: Verb,
    class: &ClassName,
    owner: &Owner,
    who: &PrincipalId,
) -> bool {
    access(policy, verb, class).owner && owner.principal() == Some(who)
}

pub(crate) fn administers(policy: &Policy, roles: &BTreeSet<Role>) -> bool {
    !roles.is_empty() && roles.is_subset(&policy.spec().administrators)
}

pub(crate) fn allows(policy: &Policy, role: &Role, scope: &Scope) -> bool {
    policy.role_ceiling(role).allows(scope)
}

/// Returns whether `upper` may do everything that `lower` may do.
pub(crate) fn no_more(policy: &Policy, lower: &Role, upper: &Role) -> bool {
    let (one, other) = (
        BTreeSet::from([lower.clone()]),
        BTreeSet::from([upper.clone()]),
    );
    let verbs = [
        Verb::Create,
        Verb::Look,
        Verb::Update,
        Verb::Rotate,
        Verb::Revoke,
    ];
    let lists = CLASSES.iter().all(|name| {
        let on = |roles, verb| on_list(policy, roles, verb, &class(name));
        verbs
            .iter()
            .all(|verb| !on(&one, *verb) || on(&other, *verb))
    });
    lists
        && (!administers(policy, &one) || administers(policy, &other))
        && policy
            .role_ceiling(upper)
            .contains(&policy.role_ceiling(lower))
}
