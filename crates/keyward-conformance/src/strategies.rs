//! Proptest strategies for keys and their parts, for the tests of applications and store authors.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::Union;

use super::model::{ModelCommand, ModelStep, Persona, RequestedLifetime, RotationTiming};
use keyward::command::{Command, Expiry};
use keyward::key::{ClassName, Environment, KeyType};
use keyward::policy::{
    ActiveKeyCap, Deletion, KeyClass, LegacyRule, Lifetime, Policy, PolicySpec, Propagation,
    Revocation, Rotation, SelfRotation,
};
use keyward::profiles::{self, standard};
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

/// Generates actors in any of [`tenants`] with any role of `policy`, or with a role that the policy does not
/// name. Some are limited to a few scopes, and some expire.
pub fn actors(policy: &Policy) -> impl Strategy<Value = Actor> + use<> {
    let spec = policy.spec();
    let mut roles: BTreeSet<Role> = spec.roles.keys().cloned().collect();
    roles.extend(spec.administrators.iter().chain(&spec.auditors).cloned());
    roles.insert(Role::new("stranger").expect("a valid role literal"));
    let roles = select(Vec::from_iter(roles));
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

/// Generates keys that `policy` accepts, if the actor may create keys of their class and grant their scopes.
/// The application may always do so.
///
/// A key has any class of the policy, any environment of that class, up to three scopes within the class's
/// ceiling, a lifetime within the class's maximum, and a purpose if the policy requires one. Note the results
/// in a [`Reached`](crate::Reached): the cap of the policy, for example, may refuse every key.
pub fn new_keys(policy: &Policy) -> impl Strategy<Value = CreateKey> + use<> {
    let spec = policy.spec();
    let of_class = |(name, class): (&ClassName, &KeyClass)| {
        let is_default = *name == spec.default_class;
        keys_of_class(name.clone(), is_default, class, spec.purpose_required)
    };
    Union::new(spec.classes.iter().map(of_class))
}

fn keys_of_class(
    name: ClassName,
    is_default: bool,
    class: &KeyClass,
    purpose_required: bool,
) -> BoxedStrategy<CreateKey> {
    // A draft may leave out the class or the environment if the policy has a default.
    let names = set_or_left_out(!is_default, Just(name));
    let environments = select(Vec::from_iter(class.prefixes.keys().cloned()));
    let environments = set_or_left_out(class.default_environment().is_none(), environments);
    let purpose = set_or_left_out(purpose_required, "[a-z]{1,15}");
    let parts = (
        "[a-z][a-z ]{0,15}[a-z]",
        names,
        environments,
        scopes_within(&class.ceiling),
        expiries(class.lifetime),
        purpose,
    );
    let draft =
        |(text, class, environment, scopes, expiry, purpose): (String, _, _, Vec<_>, _, _)| {
            let mut key = CreateKey::new(text.as_str()).scopes(scopes);
            if let Some(class) = class {
                key = key.class(ClassName::clone(&class));
            }
            if let Some(environment) = environment {
                key = key.environment(Environment::clone(&environment));
            }
            if let Some(purpose) = purpose {
                key = key.purpose(String::as_str(&purpose));
            }
            match expiry {
                Expiry::Never => key.never_expires(),
                Expiry::In(lifetime) => key.expires_in(lifetime),
                _ => key,
            }
        };
    parts.prop_map(draft).boxed()
}

/// Generates an optional setting, which is always set if it is `required`.
fn set_or_left_out<S: Strategy<Value: Clone> + 'static>(
    required: bool,
    value: S,
) -> BoxedStrategy<Option<S::Value>> {
    match required {
        true => value.prop_map(Some).boxed(),
        false => prop::option::weighted(0.7, value).boxed(),
    }
}

/// Generates up to three scopes that `ceiling` allows. A wildcard of the ceiling is often replaced by the name
/// of a resource or of an action.
fn scopes_within(ceiling: &ScopeSet) -> impl Strategy<Value = Vec<Scope>> + use<> {
    let within = select(Vec::from_iter(ceiling.iter().cloned()));
    let names = (
        select(vec!["reports", "users", "*"]),
        select(vec!["read", "write", "*"]),
    );
    let narrowed = (within, names).prop_map(|(within, (resource, action))| {
        let or_own = |own, other| if own == "*" { other } else { own };
        let resource = or_own(within.resource(), resource);
        let action = or_own(within.action(), action);
        Scope::new(format!("{resource}:{action}")).expect("a scope of two valid sides")
    });
    prop::collection::vec(narrowed, 0..4)
}

/// Generates expiries that `lifetime` allows.
fn expiries(lifetime: Lifetime) -> BoxedStrategy<Expiry> {
    let seconds = |longest: u64| (1..=longest).prop_map(|n| Expiry::In(Duration::from_secs(n)));
    match lifetime.max.map(|max| max.as_secs()) {
        None => prop_oneof![
            Just(Expiry::Class),
            Just(Expiry::Never),
            seconds(days(400).as_secs())
        ]
        .boxed(),
        Some(0) => Just(Expiry::Class).boxed(),
        Some(max) => prop_oneof![Just(Expiry::Class), seconds(max)].boxed(),
    }
}

/// Generates commands that create a key which `policy` accepts, or change one of `keys`. If `keys` is empty,
/// every command creates a key.
pub fn commands(policy: &Policy, keys: Vec<KeyId>) -> BoxedStrategy<Command> {
    let create = new_keys(policy)
        .prop_filter_map("drafts of this module parse", |key| key.into_command().ok());
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
/// revocations and bounds, and sometimes another [profile](profiles). Some policies require a legacy key.
pub fn policies() -> impl Strategy<Value = Policy> {
    let others = select(vec![
        profiles::amplitude(),
        profiles::amplitude_products(),
        profiles::guide(),
        profiles::idenfy(),
        profiles::yugabytedb(),
    ]);
    let others = others.prop_map(|spec| Policy::new(spec).expect("every profile is valid"));
    prop_oneof![4 => changed_standard(), 1 => others]
}

fn changed_standard() -> impl Strategy<Value = Policy> {
    // A cap on all keys, and a lower one on the keys of one class.
    let cap = prop::option::of((2_u32..6, prop::option::of(1_u32..3)));
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
        if let Some((all, of_class)) = cap {
            let limit = |limit| NonZeroU32::new(limit).expect("a cap is at least one");
            let of_class = of_class
                .map(|most| ActiveKeyCap::of_class(spec.default_class.clone(), limit(most)));
            spec.caps = [ActiveKeyCap::new(limit(all))]
                .into_iter()
                .chain(of_class)
                .collect();
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

/// Generates arbitrary bytes, some of them longer than the longest token that verification reads, and some
/// with a token prefix of `policy`.
pub fn arbitrary_tokens(policy: &Policy) -> impl Strategy<Value = Vec<u8>> + use<> {
    let classes = policy.spec().classes.values();
    let prefixes = classes.flat_map(|class| class.prefixes.values().cloned());
    let prefixed = (select(Vec::from_iter(prefixes)), "[0-9A-Za-z]{50,70}");
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..600),
        "[ -~]{0,80}".prop_map(String::into_bytes),
        prefixed.prop_map(|(prefix, rest)| format!("{prefix}{rest}").into_bytes()),
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
    let class = || prop_oneof![2 => Just(0_usize), 1 => Just(1)];
    let create = (tenant(), class(), few.clone(), lifetime.clone());
    let import = (tenant(), class(), 0_u8..4, few.clone(), lifetime.clone());
    let update = (key(), prop::option::of(few), prop::option::of(lifetime));
    let command = prop_oneof![
        8 => create.prop_map(|(tenant, class, scopes, lifetime)| {
            ModelCommand::Create { tenant, class, scopes, lifetime }
        }),
        2 => import.prop_map(|(tenant, class, token, scopes, lifetime)| {
            ModelCommand::Import { tenant, class, token, scopes, lifetime }
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
