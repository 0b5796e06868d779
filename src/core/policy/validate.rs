//! What makes a policy contradict itself.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use super::class::{Deletion, KeyClass, Revocation, Rotation};
use super::{ActiveKeyCap, LegacyRule, PolicySpec, Trigger};
use crate::core::scope::ScopeSet;
use crate::core::text::{ClassName, Environment, Role};
use crate::core::time;
use crate::core::token::TokenPrefix;

/// The longest lifetime, grace, retention or bound that a policy may name: 100 years, so that no
/// instant ever overflows.
const LONGEST: Duration = time::days(36_525);

/// The most rules for keys that come by themselves: fewer than the audit entries that are loaded of
/// one command, so that a repeated create is always recognised.
const PROVISION_MAX: usize = 12;

/// Why a policy was refused: it contradicts itself.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// A rule names a class that the policy does not have.
    #[error("{rule} names class {class}, which the policy does not have")]
    UnknownClass {
        /// The rule, in words.
        rule: &'static str,
        /// The class it names.
        class: ClassName,
    },
    /// A class has no environment, so that no key of it can be made.
    #[error("class {class} has no prefix for any environment")]
    NoEnvironment {
        /// The class.
        class: ClassName,
    },
    /// Two classes, or two environments of one, share a prefix, so that a token does not tell them
    /// apart.
    #[error("prefix {prefix} stands for class {first} and for class {second}")]
    SharedPrefix {
        /// The prefix.
        prefix: TokenPrefix,
        /// A class that has it.
        first: ClassName,
        /// Another, or the same with another environment.
        second: ClassName,
    },
    /// A class has no ceiling, so that its keys reach nothing.
    #[error("class {class} has an empty ceiling, so that its keys could reach nothing")]
    EmptyCeiling {
        /// The class.
        class: ClassName,
    },
    /// A default lifetime beyond the longest one, or a lifetime of nothing.
    #[error("class {class} has a default lifetime of {default:?} and a maximum of {max:?}")]
    Lifetime {
        /// The class.
        class: ClassName,
        /// The default; `None` for no end.
        default: Option<Duration>,
        /// The maximum.
        max: Option<Duration>,
    },
    /// A duration beyond what a policy may name.
    #[error("{rule} of class {class} is {actual:?}, at most {max:?} is allowed")]
    TooLong {
        /// Which duration, in words.
        rule: &'static str,
        /// The class.
        class: ClassName,
        /// The bound.
        max: Duration,
        /// The duration named.
        actual: Duration,
    },
    /// A class whose keys can be neither revoked nor deleted.
    #[error("keys of class {class} could be neither revoked nor deleted")]
    Endless {
        /// The class.
        class: ClassName,
    },
    /// A deletion that asks for an empty text to be typed.
    #[error("deletion of class {class} asks for an empty text to be typed")]
    EmptyConfirmation {
        /// The class.
        class: ClassName,
    },
    /// The legacy key could not be replaced, though it can be ended in no other way.
    #[error("legacy key has class {class}, whose keys are not rotated")]
    LegacyNotRotated {
        /// The class.
        class: ClassName,
    },
    /// A key that comes with a tenant or resource has a class with more than one environment, so
    /// that it is not said where it is used.
    #[error("{rule} names class {class}, which has {environments} environments and needs one")]
    AmbiguousEnvironment {
        /// The rule, in words.
        rule: &'static str,
        /// The class.
        class: ClassName,
        /// How many environments it has.
        environments: usize,
    },
    /// A key that comes with a tenant or resource asks for more than its class allows, or for
    /// nothing.
    #[error("{rule} gives scopes that class {class} does not allow, or none")]
    Scopes {
        /// The rule, in words.
        rule: &'static str,
        /// The class.
        class: ClassName,
    },
    /// More keys come with every tenant than the cap allows.
    #[error("{count} keys come with every tenant, the cap is {limit}")]
    CapTooLow {
        /// How many come with a tenant and count.
        count: usize,
        /// The cap.
        limit: NonZeroU32,
    },
    /// More rules for keys that come by themselves than a policy may have.
    #[error("{count} rules for keys that come by themselves, at most {max} are allowed")]
    TooManyProvisioned {
        /// How many rules there are.
        count: usize,
        /// The bound.
        max: usize,
    },
    /// The role of the host itself cannot be defined or handed out.
    #[error("role {role} is the host itself and cannot stand in a policy")]
    ReservedRole {
        /// The role.
        role: Role,
    },
    /// No class at all.
    #[error("policy has no class")]
    NoClass,
}

pub(super) fn validate(spec: &PolicySpec) -> Result<(), PolicyError> {
    if spec.classes.is_empty() {
        return Err(PolicyError::NoClass);
    }
    class_named(spec, "default class", &spec.default_class)?;
    reserved(spec.roles.keys().chain(&spec.administrators))?;
    prefixes(spec)?;
    spec.classes
        .iter()
        .try_for_each(|(name, class)| validate_class(name, class))?;
    let longest = spec.propagation.bound;
    bounded("staleness bound", &spec.default_class, longest, LONGEST)?;
    if let ActiveKeyCap::Limited { classes, .. } = &spec.active_keys {
        classes
            .iter()
            .try_for_each(|class| class_named(spec, "cap", class).map(drop))?;
    }
    if let LegacyRule::One { class, scopes, .. } = &spec.legacy {
        if class_named(spec, "legacy key", class)?.rotation == Rotation::None {
            return Err(PolicyError::LegacyNotRotated {
                class: class.clone(),
            });
        }
        given(spec, "legacy key", class, scopes)?;
    }
    if spec.provision.len() > PROVISION_MAX {
        let count = spec.provision.len();
        return Err(PolicyError::TooManyProvisioned {
            count,
            max: PROVISION_MAX,
        });
    }
    for rule in &spec.provision {
        given(spec, "provisioned key", &rule.class, &rule.scopes)?;
    }
    provisioned_within_cap(spec)
}

fn validate_class(name: &ClassName, class: &KeyClass) -> Result<(), PolicyError> {
    let named = || name.clone();
    if class.prefixes.is_empty() {
        return Err(PolicyError::NoEnvironment { class: named() });
    }
    if class.ceiling.is_empty() {
        return Err(PolicyError::EmptyCeiling { class: named() });
    }
    let (default, max) = (class.lifetime.default, class.lifetime.max);
    let beyond = max.is_some_and(|max| default.is_some_and(|default| default > max));
    let nothing = default == Some(Duration::ZERO) || max == Some(Duration::ZERO);
    if beyond || nothing {
        return Err(PolicyError::Lifetime {
            class: named(),
            default,
            max,
        });
    }
    for (rule, lifetime) in [("default lifetime", default), ("maximum lifetime", max)] {
        bounded(rule, name, lifetime.unwrap_or_default(), LONGEST)?;
    }
    if let Rotation::SelfService(grace) | Rotation::SupportOnly(grace) = class.rotation {
        bounded("grace", name, grace, Rotation::MAX_GRACE)?;
    }
    if let Revocation::Allowed {
        keep: Some(keep), ..
    } = class.revocation
    {
        bounded("time to keep revoked keys", name, keep, LONGEST)?;
    }
    if let Some(propagation) = class.propagation {
        bounded("staleness bound", name, propagation.bound, LONGEST)?;
    }
    if class.revocation == Revocation::None && class.deletion == Deletion::None {
        return Err(PolicyError::Endless { class: named() });
    }
    if class.deletion == Deletion::Typed(String::new()) {
        return Err(PolicyError::EmptyConfirmation { class: named() });
    }
    let access = [&class.create, &class.update, &class.rotate, &class.revoke];
    reserved(access.into_iter().flat_map(|access| &access.roles))
}

fn bounded(
    rule: &'static str,
    class: &ClassName,
    actual: Duration,
    max: Duration,
) -> Result<(), PolicyError> {
    if actual <= max {
        return Ok(());
    }
    Err(PolicyError::TooLong {
        rule,
        class: class.clone(),
        max,
        actual,
    })
}

fn reserved<'a>(mut roles: impl Iterator<Item = &'a Role>) -> Result<(), PolicyError> {
    match roles.find(|role| **role == Role::SYSTEM) {
        Some(role) => Err(PolicyError::ReservedRole { role: role.clone() }),
        None => Ok(()),
    }
}

fn class_named<'a>(
    spec: &'a PolicySpec,
    rule: &'static str,
    class: &ClassName,
) -> Result<&'a KeyClass, PolicyError> {
    let unknown = || PolicyError::UnknownClass {
        rule,
        class: class.clone(),
    };
    spec.classes.get(class).ok_or_else(unknown)
}

fn prefixes(spec: &PolicySpec) -> Result<(), PolicyError> {
    let mut seen: BTreeMap<&TokenPrefix, (&ClassName, &Environment)> = BTreeMap::new();
    for (name, class) in &spec.classes {
        for (environment, prefix) in &class.prefixes {
            if let Some((first, _)) = seen.insert(prefix, (name, environment)) {
                return Err(PolicyError::SharedPrefix {
                    prefix: prefix.clone(),
                    first: first.clone(),
                    second: name.clone(),
                });
            }
        }
    }
    Ok(())
}

/// What is checked of every key that comes by itself.
fn given(
    spec: &PolicySpec,
    rule: &'static str,
    class: &ClassName,
    scopes: &ScopeSet,
) -> Result<(), PolicyError> {
    let found = class_named(spec, rule, class)?;
    let environments = found.prefixes.len();
    if environments > 1 {
        let class = class.clone();
        return Err(PolicyError::AmbiguousEnvironment {
            rule,
            class,
            environments,
        });
    }
    if scopes.is_empty() || !found.ceiling.contains(scopes) {
        return Err(PolicyError::Scopes {
            rule,
            class: class.clone(),
        });
    }
    Ok(())
}

fn provisioned_within_cap(spec: &PolicySpec) -> Result<(), PolicyError> {
    let ActiveKeyCap::Limited { limit, classes } = &spec.active_keys else {
        return Ok(());
    };
    let with_tenant = spec
        .provision
        .iter()
        .filter(|rule| rule.on == Trigger::Tenant)
        .map(|rule| &rule.class);
    let legacy = match &spec.legacy {
        LegacyRule::One { class, .. } => Some(class),
        LegacyRule::None => None,
    };
    let counts = |class: &&ClassName| classes.is_empty() || classes.contains(*class);
    let count = with_tenant.chain(legacy).filter(counts).count();
    if u32::try_from(count).is_ok_and(|count| count <= limit.get()) {
        return Ok(());
    }
    Err(PolicyError::CapTooLow {
        count,
        limit: *limit,
    })
}
