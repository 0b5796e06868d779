//! The checks that find contradictions in a policy.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use super::class::{Deletion, KeyClass, Lifetime, Revocation, Rotation, SelfRotation};
use super::{ActiveKeyCap, LegacyRule, PolicySpec, ProvisionOn};
use crate::core::record::KeyType;
use crate::core::scope::ScopeSet;
use crate::core::text::{ClassName, Environment, Role, of_classes};
use crate::core::time;
use crate::core::token::TokenPrefix;

/// The longest lifetime, retention or bound in a policy: 100 years, so that no computed instant overflows.
pub(super) const LONGEST: Duration = time::days(36_525);

/// The maximum number of rules for provisioned keys: 12. Fewer than `LoadRequest::APPLIED_MAX`, so that all
/// audit entries of a provisioning command are loaded when it is retried.
const PROVISION_MAX: usize = 12;

/// The reason why a policy was refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// A rule names a class that the policy does not have.
    #[error("{rule} names class {class}, which the policy does not have")]
    UnknownClass {
        /// The rule, in words.
        rule: &'static str,
        /// The class that the rule names.
        class: ClassName,
    },
    /// A class has no environment, so no key of it can be created.
    #[error("class {class} has no prefix for any environment")]
    NoEnvironment {
        /// The class without an environment.
        class: ClassName,
    },
    /// Two classes, or two environments of one class, share a prefix, so a token's class would be ambiguous.
    #[error("prefix {prefix} stands for class {first} and for class {second}")]
    SharedPrefix {
        /// The shared prefix.
        prefix: TokenPrefix,
        /// A class with this prefix.
        first: ClassName,
        /// Another class with this prefix, or the same class in another environment.
        second: ClassName,
    },
    /// A class has an empty ceiling, so its keys reach nothing.
    #[error("class {class} has an empty ceiling, so that its keys could reach nothing")]
    EmptyCeiling {
        /// The class with the empty ceiling.
        class: ClassName,
    },
    /// A default lifetime is longer than the maximum, or a lifetime is zero.
    #[error("class {class} has a default lifetime of {default:?} and a maximum of {max:?}")]
    Lifetime {
        /// The class with these lifetimes.
        class: ClassName,
        /// The default lifetime; `None` for no end.
        default: Option<Duration>,
        /// The maximum lifetime; `None` for no maximum.
        max: Option<Duration>,
    },
    /// A duration is longer than a policy allows.
    #[error("{rule} of class {class} is {actual:?}, at most {max:?} is allowed")]
    TooLong {
        /// The setting with this duration, in words.
        rule: &'static str,
        /// The class with this duration.
        class: ClassName,
        /// The longest duration allowed.
        max: Duration,
        /// The duration in the policy.
        actual: Duration,
    },
    /// The keys of a class can be neither revoked nor deleted.
    #[error("keys of class {class} could be neither revoked nor deleted")]
    Endless {
        /// The class whose keys cannot be ended.
        class: ClassName,
    },
    /// The text that must be typed to delete a key of a class is blank.
    #[error("deletion of class {class} asks for an empty text to be typed")]
    EmptyConfirmation {
        /// The class with the blank text.
        class: ClassName,
    },
    /// Keys of the legacy key's class are not rotated, but only a rotation can replace a legacy key.
    #[error("legacy key has class {class}, whose keys are not rotated")]
    LegacyNotRotated {
        /// The class of the legacy key.
        class: ClassName,
    },
    /// Keys of the legacy key's class expire, but only a rotation may end a legacy key.
    #[error("legacy key has class {class}, whose keys expire by themselves")]
    LegacyExpires {
        /// The class of the legacy key.
        class: ClassName,
    },
    /// A legacy or provisioned key has a class that needs an entitlement, which provisioning does not check.
    #[error("{rule} names class {class}, which needs an entitlement")]
    Entitled {
        /// The rule, in words.
        rule: &'static str,
        /// The class that needs an entitlement.
        class: ClassName,
    },
    /// A role may create or rotate keys of a class, but has no scope that the class allows, so it could never
    /// do so.
    #[error(
        "role {role} may {action} keys of class {class}, but has no scope that the class allows"
    )]
    Powerless {
        /// The class whose keys the role may create or rotate.
        class: ClassName,
        /// The role that reaches nothing that the class allows.
        role: Role,
        /// The action that the role could never take, in words.
        action: &'static str,
    },
    /// A legacy or provisioned key has a class with more than one environment, so the key's environment is
    /// ambiguous.
    #[error("{rule} names class {class}, which has {environments} environments and needs one")]
    AmbiguousEnvironment {
        /// The rule, in words.
        rule: &'static str,
        /// The class with more than one environment.
        class: ClassName,
        /// The number of environments of the class.
        environments: usize,
    },
    /// A legacy or provisioned key has scopes that its class does not allow, or no scopes.
    #[error("{rule} gives scopes that class {class} does not allow, or none")]
    Scopes {
        /// The rule, in words.
        rule: &'static str,
        /// The class of the key.
        class: ClassName,
    },
    /// The keys that are provisioned with every tenant exceed the cap.
    #[error(
        "{count} keys{} are provisioned with every tenant, but the cap is {limit}",
        of_classes(classes)
    )]
    CapTooLow {
        /// The number of provisioned keys that count towards the cap.
        count: usize,
        /// The cap on active keys.
        limit: NonZeroU32,
        /// The classes whose keys count; all classes if the set is empty.
        classes: BTreeSet<ClassName>,
    },
    /// A cap has no effect: another cap that also counts its classes is lower.
    #[error(
        "cap of {} active keys{} has no effect: a cap of {}{} counts them too; change one of the two",
        unreachable.limit, of_classes(&unreachable.classes), lower.limit, of_classes(&lower.classes)
    )]
    UnreachableCap {
        /// The cap without effect.
        unreachable: ActiveKeyCap,
        /// The lower cap.
        lower: ActiveKeyCap,
    },
    /// The wait for the first use of a successor is less than a second, or longer than a policy allows.
    #[error("policy waits {actual:?} for a first use, from 1 s to {max:?} is allowed")]
    FirstUseWait {
        /// The longest wait allowed.
        max: Duration,
        /// The wait in the policy.
        actual: Duration,
    },
    /// The policy has too many rules for provisioned keys.
    #[error("{count} rules for provisioned keys, at most {max} are allowed")]
    TooManyProvisioned {
        /// The number of rules for provisioned keys.
        count: usize,
        /// The most rules allowed.
        max: usize,
    },
    /// A class lets its keys issue keys or rotate themselves, although its keys can never do so.
    #[error("keys of class {class} cannot {action}: {reason}")]
    KeyCannot {
        /// The class whose keys cannot take the action.
        class: ClassName,
        /// The action that the class allows.
        action: &'static str,
        /// The reason why keys of the class cannot take the action.
        reason: &'static str,
    },
    /// The policy has no class.
    #[error("policy has no class")]
    NoClass,
}

pub(super) fn validate(spec: &PolicySpec) -> Result<(), PolicyError> {
    if spec.classes.is_empty() {
        return Err(PolicyError::NoClass);
    }
    class_named(spec, "default class", &spec.default_class)?;
    prefixes(spec)?;
    spec.classes
        .iter()
        .try_for_each(|(name, class)| validate_class(name, class))?;
    spec.classes
        .iter()
        .try_for_each(|(name, class)| powerful(spec, name, class))?;
    let mut issued = spec.classes.values().flat_map(|class| &class.issues);
    issued.try_for_each(|class| class_named(spec, "list of classes to issue", class).map(drop))?;
    let longest = spec.propagation.bound;
    bounded("staleness bound", &spec.default_class, longest, LONGEST)?;
    let keep = spec.keep_audit.unwrap_or_default();
    bounded(
        "time to keep audit entries",
        &spec.default_class,
        keep,
        LONGEST,
    )?;
    let (wait, max) = (spec.first_use_wait, Rotation::MAX_GRACE);
    if wait < Duration::from_secs(1) || wait > max {
        return Err(PolicyError::FirstUseWait { max, actual: wait });
    }
    spec.caps.iter().try_for_each(|cap| reachable(spec, cap))?;
    if let LegacyRule::One { class, scopes, .. } = &spec.legacy {
        let rules = class_named(spec, "legacy key", class)?;
        if rules.rotation == Rotation::None {
            return Err(PolicyError::LegacyNotRotated {
                class: class.clone(),
            });
        }
        if rules.lifetime != Lifetime::default() {
            return Err(PolicyError::LegacyExpires {
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
    provisioned_within_caps(spec)
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
    if matches!(&class.deletion, Deletion::Typed(text) if text.trim().is_empty()) {
        return Err(PolicyError::EmptyConfirmation { class: named() });
    }
    by_itself(name, class)
}

/// Checks that keys of a class can issue keys and rotate themselves, if the class lets them.
fn by_itself(name: &ClassName, class: &KeyClass) -> Result<(), PolicyError> {
    let cannot = |action, reason| {
        let class = name.clone();
        Err(PolicyError::KeyCannot {
            class,
            action,
            reason,
        })
    };
    let rotates = class.self_rotation != SelfRotation::Never;
    if class.key_type == KeyType::Publishable {
        let reason = "publishable keys manage nothing";
        if !class.issues.is_empty() {
            return cannot("issue keys", reason);
        }
        if rotates {
            return cannot("rotate themselves", reason);
        }
    }
    if rotates && !matches!(class.rotation, Rotation::SelfService(_)) {
        return cannot(
            "rotate themselves",
            "the class has no self-service rotation",
        );
    }
    if let SelfRotation::Renews { until_age } = class.self_rotation {
        bounded(
            "age until which keys renew themselves",
            name,
            until_age,
            LONGEST,
        )?;
        if until_age.is_zero() {
            return cannot("rotate themselves", "the age until which they may is zero");
        }
    }
    Ok(())
}

/// Checks that every role that may create or rotate keys of a class has some scope within the class's
/// ceiling. Otherwise the role could never do so, because no actor creates a key with more reach than its
/// own. A role that only updates, revokes or deletes keys needs no scope.
fn powerful(spec: &PolicySpec, name: &ClassName, class: &KeyClass) -> Result<(), PolicyError> {
    let support = BTreeSet::from([Role::SUPPORT]);
    let nobody = BTreeSet::new();
    let rotate = match class.rotation {
        Rotation::None => &nobody,
        Rotation::SupportOnly(_) => &support,
        Rotation::SelfService(_) => &class.rotate.roles,
    };
    for (action, roles) in [("create", &class.create.roles), ("rotate", rotate)] {
        let reaches = |role: &&Role| {
            let own = spec.roles.get(*role);
            own.is_some_and(|own| !own.intersection(&class.ceiling).is_empty())
        };
        if let Some(role) = roles.iter().find(|role| !reaches(role)) {
            return Err(PolicyError::Powerless {
                class: name.clone(),
                role: role.clone(),
                action,
            });
        }
    }
    Ok(())
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

/// Checks the class and the scopes of a legacy or provisioned key.
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
    if found.entitlement.is_some() {
        let class = class.clone();
        return Err(PolicyError::Entitled { rule, class });
    }
    if scopes.is_empty() || !found.ceiling.contains(scopes) {
        return Err(PolicyError::Scopes {
            rule,
            class: class.clone(),
        });
    }
    Ok(())
}

/// Checks that the policy has the classes of a cap, and that no other cap makes it pointless.
fn reachable(spec: &PolicySpec, cap: &ActiveKeyCap) -> Result<(), PolicyError> {
    let mut classes = cap.classes.iter();
    classes.try_for_each(|class| class_named(spec, "cap", class).map(drop))?;
    let covers = |other: &&ActiveKeyCap| {
        let mut counted = spec.classes.keys().filter(|class| cap.counts(class));
        other.limit < cap.limit && counted.all(|class| other.counts(class))
    };
    match spec.caps.iter().find(covers) {
        Some(lower) => Err(PolicyError::UnreachableCap {
            unreachable: cap.clone(),
            lower: lower.clone(),
        }),
        None => Ok(()),
    }
}

fn provisioned_within_caps(spec: &PolicySpec) -> Result<(), PolicyError> {
    let with_tenant = spec
        .provision
        .iter()
        .filter(|rule| rule.on == ProvisionOn::Tenant)
        .map(|rule| &rule.class);
    let legacy = match &spec.legacy {
        LegacyRule::One { class, .. } => Some(class),
        LegacyRule::None => None,
    };
    let provisioned: Vec<_> = with_tenant.chain(legacy).collect();
    for cap in &spec.caps {
        let count = provisioned.iter().filter(|class| cap.counts(class)).count();
        if u32::try_from(count).is_ok_and(|count| count <= cap.limit.get()) {
            continue;
        }
        return Err(PolicyError::CapTooLow {
            count,
            limit: cap.limit,
            classes: cap.classes.clone(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::policy::{Access, Policy, Propagation, ProvisionRule};
    use crate::core::profiles::standard;
    use crate::core::text::{Entitlement, KeyName, ResourceKind};

    fn name(name: &str) -> ClassName {
        ClassName::new(name).unwrap()
    }

    fn set(scopes: &[&'static str]) -> ScopeSet {
        ScopeSet::parse(scopes.iter().copied()).unwrap()
    }

    /// Returns the error of the standard policy after `change`.
    fn refusal(change: impl FnOnce(&mut PolicySpec)) -> PolicyError {
        let mut spec = standard();
        change(&mut spec);
        Policy::new(spec).unwrap_err()
    }

    /// Returns the error after a change of class `secret`, the default class.
    fn refusal_of_class(change: impl FnOnce(&mut KeyClass)) -> PolicyError {
        refusal(|spec| change(spec.classes.get_mut("secret").unwrap()))
    }

    /// Reduces class `secret` to one environment, as legacy and provisioned keys require.
    fn one_environment(spec: &mut PolicySpec) -> &mut KeyClass {
        let class = spec.classes.get_mut("secret").unwrap();
        class.prefixes.remove(&Environment::TEST);
        class
    }

    fn legacy(scopes: ScopeSet) -> LegacyRule {
        LegacyRule::One {
            class: name("secret"),
            name: KeyName::new("Legacy key").unwrap(),
            scopes,
        }
    }

    fn provision(on: ProvisionOn, class: &str) -> ProvisionRule {
        ProvisionRule {
            on,
            class: name(class),
            name: KeyName::new("Given key").unwrap(),
            scopes: set(&["a:b"]),
        }
    }

    fn deployment() -> ProvisionOn {
        ProvisionOn::Resource(ResourceKind::new("deployment").unwrap())
    }

    fn cap(limit: u32, classes: &[&str]) -> ActiveKeyCap {
        ActiveKeyCap {
            limit: NonZeroU32::new(limit).unwrap(),
            classes: classes.iter().map(|class| name(class)).collect(),
        }
    }

    #[test]
    fn a_policy_without_classes_is_refused() {
        let error = refusal(|spec| spec.classes.clear());
        assert_eq!(error, PolicyError::NoClass);
    }

    #[test]
    fn a_default_class_that_is_unknown_is_refused() {
        let error = refusal(|spec| spec.default_class = name("other"));
        assert_eq!(
            error.to_string(),
            "default class names class other, which the policy does not have"
        );
    }

    #[test]
    fn a_cap_over_an_unknown_class_is_refused() {
        let error = refusal(|spec| spec.caps = vec![cap(9, &["secret", "other"])]);
        let (rule, class) = ("cap", name("other"));
        assert_eq!(error, PolicyError::UnknownClass { rule, class });
    }

    #[test]
    fn a_legacy_key_of_an_unknown_class_is_refused() {
        let error = refusal(|spec| {
            spec.legacy = LegacyRule::One {
                class: name("other"),
                name: KeyName::new("Legacy key").unwrap(),
                scopes: ScopeSet::all(),
            };
        });
        let (rule, class) = ("legacy key", name("other"));
        assert_eq!(error, PolicyError::UnknownClass { rule, class });
    }

    #[test]
    fn a_provisioned_key_of_an_unknown_class_is_refused() {
        let error = refusal(|spec| spec.provision = vec![provision(ProvisionOn::Tenant, "other")]);
        let (rule, class) = ("provisioned key", name("other"));
        assert_eq!(error, PolicyError::UnknownClass { rule, class });
    }

    #[test]
    fn a_class_without_an_environment_is_refused() {
        let error = refusal_of_class(|class| class.prefixes.clear());
        let class = name("secret");
        assert_eq!(error, PolicyError::NoEnvironment { class });
    }

    #[test]
    fn two_classes_with_one_prefix_are_refused() {
        let prefix = TokenPrefix::new("sk_live_").unwrap();
        let error = refusal(|spec| {
            let publishable = spec.classes.get_mut("publishable").unwrap();
            publishable
                .prefixes
                .insert(Environment::LIVE, prefix.clone());
        });
        let (first, second) = (name("publishable"), name("secret"));
        let expected = PolicyError::SharedPrefix {
            prefix,
            first,
            second,
        };
        assert_eq!(error, expected);
    }

    #[test]
    fn two_environments_of_a_class_with_one_prefix_are_refused() {
        let prefix = TokenPrefix::new("sk_live_").unwrap();
        let error = refusal_of_class(|class| {
            class.prefixes.insert(Environment::TEST, prefix.clone());
        });
        let (first, second) = (name("secret"), name("secret"));
        let expected = PolicyError::SharedPrefix {
            prefix,
            first,
            second,
        };
        assert_eq!(error, expected);
    }

    #[test]
    fn a_class_with_an_empty_ceiling_is_refused() {
        let error = refusal_of_class(|class| class.ceiling = ScopeSet::none());
        let class = name("secret");
        assert_eq!(error, PolicyError::EmptyCeiling { class });
    }

    #[test]
    fn a_default_lifetime_beyond_the_maximum_is_refused() {
        let (default, max) = (Some(time::days(2)), Some(time::days(1)));
        let error = refusal_of_class(|class| class.lifetime = Lifetime { default, max });
        let class = name("secret");
        let expected = PolicyError::Lifetime {
            class,
            default,
            max,
        };
        assert_eq!(error, expected);
    }

    #[test]
    fn a_lifetime_of_nothing_is_refused() {
        let nothing = Some(Duration::ZERO);
        for (default, max) in [(nothing, None), (None, nothing)] {
            let error = refusal_of_class(|class| class.lifetime = Lifetime { default, max });
            let class = name("secret");
            let expected = PolicyError::Lifetime {
                class,
                default,
                max,
            };
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn no_duration_may_be_too_long() {
        let second = Duration::from_secs(1);
        let (actual, long_grace) = (LONGEST + second, Rotation::MAX_GRACE + second);
        let lifetime = |default, max| Lifetime { default, max };
        let keep = Some(actual);
        let confirm = false;
        let long = Propagation { bound: actual };
        type SpecChange = Box<dyn Fn(&mut PolicySpec)>;
        let of_class = |change: fn(&mut KeyClass, Duration), value| -> SpecChange {
            Box::new(move |spec| change(spec.classes.get_mut("secret").unwrap(), value))
        };
        let changes: [(&str, Duration, SpecChange); 8] = [
            (
                "default lifetime",
                LONGEST,
                Box::new(move |spec| {
                    let class = spec.classes.get_mut("secret").unwrap();
                    class.lifetime = lifetime(Some(actual), None);
                }),
            ),
            (
                "maximum lifetime",
                LONGEST,
                Box::new(move |spec| {
                    let class = spec.classes.get_mut("secret").unwrap();
                    class.lifetime = lifetime(None, Some(actual));
                }),
            ),
            (
                "grace",
                Rotation::MAX_GRACE,
                of_class(
                    |class, grace| class.rotation = Rotation::SelfService(grace),
                    long_grace,
                ),
            ),
            (
                "grace",
                Rotation::MAX_GRACE,
                of_class(
                    |class, grace| class.rotation = Rotation::SupportOnly(grace),
                    long_grace,
                ),
            ),
            (
                "time to keep revoked keys",
                LONGEST,
                Box::new(move |spec| {
                    let class = spec.classes.get_mut("secret").unwrap();
                    class.revocation = Revocation::Allowed { confirm, keep };
                }),
            ),
            (
                "staleness bound",
                LONGEST,
                Box::new(move |spec| {
                    let class = spec.classes.get_mut("secret").unwrap();
                    class.propagation = Some(long);
                }),
            ),
            (
                "staleness bound",
                LONGEST,
                Box::new(move |spec| spec.propagation = long),
            ),
            (
                "time to keep audit entries",
                LONGEST,
                Box::new(move |spec| spec.keep_audit = keep),
            ),
        ];
        for (rule, max, change) in changes {
            let expected = PolicyError::TooLong {
                rule,
                class: name("secret"),
                max,
                actual: max + second,
            };
            assert_eq!(refusal(change), expected);
        }
    }

    #[test]
    fn a_class_whose_keys_never_end_is_refused() {
        let error = refusal_of_class(|class| {
            class.revocation = Revocation::None;
            class.deletion = Deletion::None;
        });
        let class = name("secret");
        assert_eq!(error, PolicyError::Endless { class });
    }

    #[test]
    fn a_blank_text_to_type_is_refused() {
        for text in ["", " "] {
            let error = refusal_of_class(|class| class.deletion = Deletion::Typed(text.to_owned()));
            let class = name("secret");
            assert_eq!(error, PolicyError::EmptyConfirmation { class });
        }
    }

    #[test]
    fn a_legacy_key_that_cannot_be_rotated_is_refused() {
        let error = refusal(|spec| {
            one_environment(spec).rotation = Rotation::None;
            spec.legacy = legacy(ScopeSet::all());
        });
        let class = name("secret");
        assert_eq!(error, PolicyError::LegacyNotRotated { class });
    }

    #[test]
    fn a_legacy_key_that_expires_is_refused() {
        let day = Some(time::days(1));
        for (default, max) in [(day, None), (None, day)] {
            let error = refusal(|spec| {
                one_environment(spec).lifetime = Lifetime { default, max };
                spec.legacy = legacy(ScopeSet::all());
            });
            let class = name("secret");
            assert_eq!(error, PolicyError::LegacyExpires { class });
        }
    }

    #[test]
    fn a_key_that_comes_by_itself_needs_a_class_with_one_environment() {
        let expected = |rule| PolicyError::AmbiguousEnvironment {
            rule,
            class: name("secret"),
            environments: 2,
        };
        let error = refusal(|spec| spec.legacy = legacy(ScopeSet::all()));
        assert_eq!(error, expected("legacy key"));
        let error = refusal(|spec| spec.provision = vec![provision(deployment(), "secret")]);
        assert_eq!(error, expected("provisioned key"));
    }

    #[test]
    fn a_key_that_comes_by_itself_must_have_scopes_that_its_class_allows() {
        for scopes in [ScopeSet::none(), set(&["b:c"]), set(&["a:*"])] {
            let error = refusal(|spec| {
                one_environment(spec).ceiling = set(&["a:b"]);
                spec.legacy = legacy(scopes.clone());
            });
            let (rule, class) = ("legacy key", name("secret"));
            assert_eq!(error, PolicyError::Scopes { rule, class });
            let error = refusal(|spec| {
                one_environment(spec).ceiling = set(&["a:b"]);
                spec.provision = vec![ProvisionRule {
                    scopes,
                    ..provision(ProvisionOn::Tenant, "secret")
                }];
            });
            let (rule, class) = ("provisioned key", name("secret"));
            assert_eq!(error, PolicyError::Scopes { rule, class });
        }
    }

    #[test]
    fn a_key_that_comes_by_itself_cannot_need_an_entitlement() {
        let error = refusal(|spec| {
            one_environment(spec).entitlement = Some(Entitlement::new("enterprise").unwrap());
            spec.provision = vec![provision(deployment(), "secret")];
        });
        let (rule, class) = ("provisioned key", name("secret"));
        assert_eq!(error, PolicyError::Entitled { rule, class });
    }

    #[test]
    fn more_keys_with_every_tenant_than_the_cap_are_refused() {
        let give_two = |spec: &mut PolicySpec| {
            one_environment(spec);
            spec.legacy = legacy(ScopeSet::all());
            spec.provision = vec![
                provision(ProvisionOn::Tenant, "secret"),
                provision(deployment(), "secret"),
            ];
        };
        let limit = NonZeroU32::MIN;
        for classes in [&[][..], &["secret"]] {
            let error = refusal(|spec| {
                give_two(spec);
                // Every cap is checked, not only the first.
                spec.caps = vec![cap(1, &["publishable"]), cap(1, classes)];
            });
            let classes = cap(1, classes).classes;
            let expected = PolicyError::CapTooLow {
                count: 2,
                limit,
                classes,
            };
            assert_eq!(error, expected);
        }
        let mut spec = standard();
        give_two(&mut spec);
        spec.caps = vec![cap(2, &[]), cap(1, &["publishable"])];
        assert_eq!(Policy::new(spec).map(drop), Ok(()));
    }

    #[test]
    fn a_cap_that_a_lower_one_makes_pointless_is_refused() {
        let both = &["secret", "publishable"][..];
        for (unreachable, lower) in [
            (cap(5, &["secret"]), cap(4, &[])),
            (cap(5, &["secret"]), cap(4, both)),
            (cap(5, both), cap(4, &[])),
            (cap(5, &[]), cap(4, both)),
            (cap(5, &[]), cap(4, &[])),
        ] {
            let error = refusal(|spec| spec.caps = vec![lower.clone(), unreachable.clone()]);
            assert_eq!(error, PolicyError::UnreachableCap { unreachable, lower });
        }
        for caps in [
            [cap(4, &["secret"]), cap(4, &[])],
            [cap(5, &[]), cap(4, &["secret"])],
            [cap(5, &["publishable"]), cap(4, &["secret"])],
        ] {
            let spec = standard().with(|spec| spec.caps = caps.to_vec());
            assert_eq!(Policy::new(spec).map(drop), Ok(()));
        }
        let caps = vec![cap(500, &["secret"]), cap(100, &[])];
        assert_eq!(
            refusal(|spec| spec.caps = caps).to_string(),
            "cap of 500 active keys of class secret has no effect: a cap of 100 counts them too; change \
             one of the two"
        );
    }

    #[test]
    fn more_rules_for_keys_that_come_by_themselves_than_can_be_recognised_are_refused() {
        let rules = |count| vec![provision(deployment(), "secret"); count];
        let error = refusal(|spec| {
            one_environment(spec);
            spec.provision = rules(PROVISION_MAX + 1);
        });
        let (count, max) = (PROVISION_MAX + 1, PROVISION_MAX);
        assert_eq!(error, PolicyError::TooManyProvisioned { count, max });
        let mut spec = standard();
        one_environment(&mut spec);
        spec.provision = rules(PROVISION_MAX);
        assert_eq!(Policy::new(spec).map(drop), Ok(()));
    }

    #[test]
    fn a_class_issues_classes_that_exist() {
        let error = refusal_of_class(|class| class.issues = BTreeSet::from([name("other")]));
        let rule = "list of classes to issue";
        let class = name("other");
        assert_eq!(error, PolicyError::UnknownClass { rule, class });
    }

    #[test]
    fn keys_that_manage_nothing_neither_issue_keys_nor_rotate_themselves() {
        let cannot = |change: fn(&mut KeyClass)| {
            let error = refusal(|spec| change(spec.classes.get_mut("publishable").unwrap()));
            assert!(matches!(error, PolicyError::KeyCannot { .. }), "{error}");
        };
        cannot(|class| class.issues = BTreeSet::from([name("publishable")]));
        cannot(|class| class.self_rotation = SelfRotation::WithinLife);
    }

    #[test]
    fn a_key_rotates_itself_only_where_others_may_rotate_it_and_for_some_time() {
        let cannot = |change: fn(&mut KeyClass)| {
            let error = refusal_of_class(change);
            assert!(matches!(error, PolicyError::KeyCannot { .. }), "{error}");
        };
        cannot(|class| {
            class.self_rotation = SelfRotation::WithinLife;
            class.rotation = Rotation::None;
        });
        cannot(|class| {
            let until_age = Duration::ZERO;
            class.self_rotation = SelfRotation::Renews { until_age };
        });
    }

    #[test]
    fn a_role_that_creates_or_rotates_must_reach_something_that_the_class_allows() {
        let class = || name("secret");
        let expected = |role, action| PolicyError::Powerless {
            class: class(),
            role,
            action,
        };
        let error = refusal_of_class(|class| class.create = Access::support_only());
        assert_eq!(error, expected(Role::SUPPORT, "create"));
        let error = refusal_of_class(|class| class.rotate = Access::support_only());
        assert_eq!(error, expected(Role::SUPPORT, "rotate"));
        let error =
            refusal_of_class(|class| class.rotation = Rotation::SupportOnly(Duration::ZERO));
        assert_eq!(error, expected(Role::SUPPORT, "rotate"));
        let error = refusal_of_class(|class| {
            class.ceiling = set(&["a:write"]);
            class.create = Access::roles([Role::MEMBER]);
        });
        assert_eq!(error, expected(Role::MEMBER, "create"));
    }

    #[test]
    fn a_role_that_only_ends_keys_may_reach_nothing() {
        let mut spec = standard();
        let class = spec.classes.get_mut("secret").unwrap();
        class.revoke = Access::support_only();
        class.update = Access::support_only();
        assert_eq!(Policy::new(spec).map(drop), Ok(()));
    }
}
