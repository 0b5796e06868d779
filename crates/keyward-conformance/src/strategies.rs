//! Proptest strategies for keys and their parts, for the tests of applications and store authors.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::select;

use super::model::{ModelCommand, ModelStep, Persona, RequestedLifetime, RotationTiming};
use keyward::command::Command;
use keyward::key::{ClassName, KeyType};
use keyward::policy::{
    ActiveKeyCap, Deletion, LegacyRule, Lifetime, Policy, PolicySpec, Propagation, Revocation,
    Rotation, SelfRotation,
};
use keyward::profiles::standard;
use keyward::{
    Actor, CreateKey, KeyId, PrincipalId, Reason, Role, RotateKey, Scope, ScopeSet, TenantId,
    Timestamp, days, hours,
};

/// Generates scopes from a few resources, actions and wildcards, so that two scopes often overlap.
pub fn scopes() -> impl Strategy<Value = Scope> + Clone {
    let sides = (
        select(vec!["reports", "users", "*"]),
        select(vec!["read", "write", "*"]),
    );
    sides.prop_map(|(resource, action)| {
        Scope::new(format!("{resource}:{action}")).expect("a scope of two valid sides")
    })
}

/// Generates sets of up to four [`scopes`], sometimes the empty set.
pub fn scope_sets() -> impl Strategy<Value = ScopeSet> + Clone {
    prop::collection::vec(scopes(), 0..5)
        .prop_map(|scopes| ScopeSet::new(scopes).expect("a set below the scope limit"))
}

/// Generates tenants with one to three levels. Some have names that begin alike without being related.
pub fn tenants() -> impl Strategy<Value = TenantId> + Clone {
    let segment = select(vec!["acme", "acme-two", "web", "website", "other"]);
    prop::collection::vec(segment, 1..4)
        .prop_map(|path| TenantId::new(path.join("/")).expect("a path of valid segments"))
}

/// Generates actors in any of [`tenants`] with any built-in role. Some are limited to a few scopes, and some
/// expire.
pub fn actors() -> impl Strategy<Value = Actor> {
    let roles = select(vec![
        Role::ADMIN,
        Role::DEVELOPER,
        Role::MEMBER,
        Role::SUPPORT,
    ]);
    let people = select(vec!["alice", "bob", "carol"]);
    let narrowed = prop::option::weighted(0.3, scope_sets());
    let ends = prop::option::weighted(0.2, instants());
    (tenants(), people, roles, narrowed, ends).prop_map(
        |(tenant, persona, role, narrowed, ends)| {
            let principal = PrincipalId::new(persona).expect("a valid principal literal");
            let mut actor = Actor::new(tenant, principal, role);
            if let Some(scopes) = narrowed {
                actor = actor.with_scopes(scopes);
            }
            match ends {
                Some(end) => actor.with_expiry(end),
                None => actor,
            }
        },
    )
}

/// Generates instants of this century.
pub fn instants() -> impl Strategy<Value = Timestamp> + Clone {
    (946_684_800_i64..4_102_444_800).prop_map(|seconds| {
        Timestamp::from_unix_seconds(seconds).expect("a second of this century")
    })
}

/// Generates keys that the [`standard`] policy accepts if the actor may grant their permissions.
pub fn new_keys() -> impl Strategy<Value = CreateKey> {
    let names = "[a-z][a-z ]{0,15}[a-z]";
    let classes = select(vec!["secret", "publishable"]);
    let lifetimes = prop::option::of(1_u32..400);
    (names, classes, scope_sets(), lifetimes).prop_map(|(name, class, scopes, lifetime)| {
        let key = CreateKey::new(name.as_str())
            .class(class)
            .environment("live")
            .scopes(scopes.iter().cloned().collect::<Vec<_>>());
        lifetime.map_or(key.clone(), |lifetime| key.expires_in(days(lifetime)))
    })
}

/// Generates commands that create a key, or change one of `keys`. If `keys` is empty, every command creates a
/// key.
pub fn commands(keys: Vec<KeyId>) -> BoxedStrategy<Command> {
    let create =
        new_keys().prop_filter_map("drafts of this module parse", |key| key.into_command().ok());
    if keys.is_empty() {
        return create.boxed();
    }
    let key = select(keys);
    let about = (key, 0_u8..6, modes()).prop_map(|(key, which, mode)| match which {
        0 => Command::Disable { key },
        1 => Command::Enable { key },
        2 => Command::Revoke {
            key,
            revocation: Reason::Lost.into(),
        },
        3 => Command::FinishRotation { key },
        4 => Command::CancelRotation { key },
        _ => Command::Rotate {
            key,
            how: match mode {
                RotationTiming::Now => RotateKey::immediate(),
                RotationTiming::Grace(grace) => RotateKey::grace(grace),
                RotationTiming::FirstUse(grace) => RotateKey::on_first_use(grace),
            },
        },
    });
    prop_oneof![create, about].boxed()
}

/// Generates valid policies: the [`standard`] policy with other caps, lifetimes, grace periods, deletions,
/// revocations and bounds. Some policies require a legacy key.
pub fn policies() -> impl Strategy<Value = Policy> {
    let cap = prop::option::of(1_u32..6);
    let lifetime = prop::option::of(1_u32..400);
    let grace = select(vec![Duration::ZERO, hours(1), days(7), days(90)]);
    let parts = (cap, lifetime, grace, any::<[bool; 5]>(), 0_u64..60);
    parts.prop_map(|(cap, lifetime, grace, flags, bound)| {
        let [legacy, typed, confirm, renews, support] = flags;
        let mut spec = standard();
        // Support gets all scopes here, because a support actor can rotate only keys within the scopes of its
        // role.
        spec.roles.insert(Role::SUPPORT, ScopeSet::all());
        for class in spec.classes.values_mut() {
            class
                .prefixes
                .retain(|environment, _| environment.as_str() == "live");
            let max = lifetime.map(days);
            class.lifetime = Lifetime { default: max, max };
            class.rotation = match support {
                true => Rotation::SupportOnly(grace),
                false => Rotation::SelfService(grace),
            };
            class.revocation = Revocation::Allowed {
                confirm,
                keep: lifetime.map(days),
            };
            if typed {
                class.deletion = Deletion::Typed("DELETE".to_owned());
            }
            if renews && !support && class.key_type == KeyType::Secret {
                let until_age = days(90);
                class.self_rotation = SelfRotation::Renews { until_age };
            }
        }
        if let Some(limit) = cap.and_then(NonZeroU32::new) {
            let classes = BTreeSet::new();
            spec.active_keys = ActiveKeyCap::Limited { limit, classes };
        }
        // A policy whose keys expire gets no legacy key, because an expired legacy key could not be rotated.
        if legacy && lifetime.is_none() {
            spec.legacy = LegacyRule::One {
                class: spec.default_class.clone(),
                name: "legacy".try_into().expect("a valid name literal"),
                scopes: Scope::new("reports:read")
                    .expect("a valid scope literal")
                    .into(),
            };
        }
        spec.propagation = Propagation {
            bound: Duration::from_secs(bound),
        };
        Policy::new(spec).expect("a policy without a contradiction")
    })
}

/// Generates policy specs that contain one contradiction each, so that [`Policy::new`] refuses them.
pub fn contradictory_specs() -> impl Strategy<Value = PolicySpec> {
    (policies(), 0_u8..7).prop_map(|(policy, which)| {
        let mut spec = PolicySpec::from(policy);
        let default = spec.default_class.clone();
        match which {
            0 => spec.default_class = "nowhere".try_into().expect("a valid class literal"),
            1 => spec.classes.clear(),
            2 => {
                let nowhere = "nowhere".try_into().expect("a valid class literal");
                spec.classes
                    .values_mut()
                    .for_each(|class| class.issues = BTreeSet::from([ClassName::clone(&nowhere)]));
            }
            _ => {
                let Some(class) = spec.classes.get_mut(&default) else {
                    return spec;
                };
                match which {
                    3 => class.prefixes.clear(),
                    4 => class.ceiling = ScopeSet::none(),
                    5 => {
                        class.lifetime.default = Some(days(2));
                        class.lifetime.max = Some(days(1));
                    }
                    _ => {
                        class.revocation = Revocation::None;
                        class.deletion = Deletion::None;
                    }
                }
            }
        }
        spec
    })
}

/// Generates tokens that differ from `token`: one byte is changed, removed or inserted, or the end is cut
/// off.
pub fn mutated_tokens(token: String) -> impl Strategy<Value = Vec<u8>> {
    let len = token.len().max(1);
    (0..len, any::<u8>(), 0_u8..4)
        .prop_map(move |(at, byte, how)| {
            let mut bytes = token.clone().into_bytes();
            match how {
                0 => bytes[at] = byte,
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, byte),
                _ => bytes.truncate(at),
            }
            (bytes, token.clone())
        })
        .prop_filter_map(
            "surrounding whitespace does not change a token",
            |(bytes, token)| (bytes.trim_ascii() != token.as_bytes()).then_some(bytes),
        )
}

/// Generates arbitrary bytes, some of them longer than the longest token that verification reads.
pub fn arbitrary_tokens() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..600),
        "[ -~]{0,80}".prop_map(String::into_bytes),
        "(sk|pk)_live_[0-9A-Za-z]{50,70}".prop_map(String::into_bytes),
    ]
}

/// Generates durations for moving a test clock, from microseconds to months.
pub fn clock_moves() -> impl Strategy<Value = Duration> + Clone {
    prop_oneof![
        (0_u64..3).prop_map(Duration::from_micros),
        (0_u64..7200).prop_map(Duration::from_secs),
        (0_u32..100).prop_map(days),
    ]
}

fn modes() -> impl Strategy<Value = RotationTiming> + Clone {
    let grace = select(vec![Duration::ZERO, hours(1), days(7)]);
    prop_oneof![
        Just(RotationTiming::Now),
        grace.clone().prop_map(RotationTiming::Grace),
        grace.prop_map(RotationTiming::FirstUse),
    ]
}

/// Generates lists of steps for the reference model. Each list has at least one step and fewer than `most`.
pub fn steps(most: usize) -> impl Strategy<Value = Vec<ModelStep>> {
    let persona = prop_oneof![
        6 => Just(Persona::Alice),
        4 => Just(Persona::Dev),
        1 => Just(Persona::Mem),
        1 => Just(Persona::Support),
        2 => Just(Persona::WebAdmin),
        1 => Just(Persona::Eve),
        1 => Just(Persona::Narrow),
        3 => (0_usize..64).prop_map(Persona::Holder),
    ];
    let tenant = || prop_oneof![5 => Just(0_usize), 3 => Just(1), 1 => Just(2), 1 => Just(3)];
    let key = || 0_usize..64;
    let texts = vec![
        "*:*",
        "reports:*",
        "reports:read",
        "users:read",
        "users:write",
        "*:read",
    ];
    let few = prop::collection::vec(select(texts), 0..3);
    let lifetime = prop_oneof![
        2 => Just(RequestedLifetime::Class),
        1 => Just(RequestedLifetime::Ever),
        2 => (1_u32..60).prop_map(|n| RequestedLifetime::For(days(n))),
        1 => (1_u64..100).prop_map(|n| RequestedLifetime::For(Duration::from_secs(n))),
    ];
    let owner = || select(vec!["alice", "dev", "mem", "webadmin"]);
    let role = select(vec!["admin", "developer", "member"]);
    let create = (tenant(), few.clone(), lifetime.clone());
    let import = (tenant(), 0_u8..4, few.clone(), lifetime.clone());
    let update = (key(), prop::option::of(few), prop::option::of(lifetime));
    let command = prop_oneof![
        8 => create.prop_map(|(tenant, scopes, lifetime)| ModelCommand::Create { tenant, scopes, lifetime }),
        2 => import.prop_map(|(tenant, token, scopes, lifetime)| {
            ModelCommand::Import { tenant, token, scopes, lifetime }
        }),
        3 => update.prop_map(|(key, scopes, lifetime)| ModelCommand::Update { key, scopes, lifetime }),
        3 => key().prop_map(|key| ModelCommand::Revoke { key }),
        1 => key().prop_map(|key| ModelCommand::Disable { key }),
        1 => key().prop_map(|key| ModelCommand::Enable { key }),
        1 => key().prop_map(|key| ModelCommand::Delete { key }),
        8 => (key(), modes()).prop_map(|(key, mode)| ModelCommand::Rotate { key, mode }),
        2 => key().prop_map(|key| ModelCommand::Finish { key }),
        2 => key().prop_map(|key| ModelCommand::Cancel { key }),
        2 => (tenant(), owner(), role)
            .prop_map(|(tenant, owner, role)| ModelCommand::ChangeRole { tenant, owner, role }),
        1 => (tenant(), owner()).prop_map(|(tenant, owner)| ModelCommand::RemoveOwner { tenant, owner }),
        1 => prop_oneof![12 => Just(None), 1 => tenant().prop_map(Some)].prop_map(|tenant| {
            tenant.map_or(ModelCommand::Provision { tenant: 0 }, |tenant| ModelCommand::Close { tenant })
        }),
        1 => tenant().prop_map(|tenant| ModelCommand::Provision { tenant }),
    ];
    let step = prop_oneof![
        14 => (persona, command).prop_map(|(persona, command)| ModelStep::Command(persona, command)),
        1 => (0_usize..64).prop_map(ModelStep::Repeat),
        3 => key().prop_map(ModelStep::Use),
        2 => clock_moves().prop_map(ModelStep::Wait),
        1 => (key(), 0_u8..3).prop_map(|(key, before)| ModelStep::WaitForEnd(key, before)),
        1 => clock_moves().prop_map(ModelStep::JumpBack),
    ];
    prop::collection::vec(step, 1..most)
}
