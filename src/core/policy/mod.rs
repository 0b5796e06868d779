//! Policies: the rules of a tenant's keys, as data.
//!
//! Pure. A [`Policy`] is a [`PolicySpec`] that was found free of contradictions; a host keeps the
//! spec in a config file (serde both ways) and may give each tenant its own.

mod book;
mod class;
mod live;
mod validate;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::book::Policies;
pub use self::class::{
    Access, Deletion, KeyClass, Lifetime, Revocation, Rotation, SelfRotation, TenantReach,
};
pub use self::live::LivePolicies;
pub use self::validate::PolicyError;
use super::scope::ScopeSet;
use super::text::{ClassName, KeyName, PolicyName, ResourceKind, Role};
use super::time;

/// The longest time that a verifier may go on without having confirmed that it is up to date,
/// unless a policy says otherwise.
///
/// 10 seconds: in a simulation of a harsh network, 0.07 % of verifications found their replica
/// past this bound, against 5 % at 2 seconds.
pub const DEFAULT_STALENESS_BOUND: Duration = Duration::from_secs(10);

/// What a policy says, before it was checked.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct PolicySpec {
    /// What people call it.
    pub name: PolicyName,
    /// The kinds of key.
    pub classes: BTreeMap<ClassName, KeyClass>,
    /// The class of a key whose creator names none.
    pub default_class: ClassName,
    /// What each role may reach, through its owner's keys and as an actor. A role that is not here
    /// reaches nothing.
    pub roles: BTreeMap<Role, ScopeSet>,
    /// The roles that provision and close tenants, change and remove owners, and revoke in bulk.
    pub administrators: BTreeSet<Role>,
    /// The roles that read the audit trail, beside the administrators.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub auditors: BTreeSet<Role>,
    /// How many active keys a tenant may have.
    #[serde(default)]
    pub active_keys: ActiveKeyCap,
    /// The key that every tenant has and cannot end.
    #[serde(default)]
    pub legacy: LegacyRule,
    /// Keys that come with a tenant or with a resource.
    #[serde(default)]
    pub provision: Vec<ProvisionRule>,
    /// How soon a revocation holds everywhere.
    #[serde(default)]
    pub propagation: Propagation,
    /// For how long a key that is rotated on first use of its successor waits for that use at most, if
    /// the command does not say: 30 days by default, at most [`Rotation::MAX_GRACE`].
    #[serde(default = "first_use_wait", with = "time::seconds")]
    pub first_use_wait: Duration,
    /// Whether every key must say what it is for (rule G-38). Keys that come by themselves have a
    /// name that says so; whoever updates one gives it a purpose.
    #[serde(default)]
    pub purpose_required: bool,
}

const fn first_use_wait() -> Duration {
    Rotation::DEFAULT_WAIT
}

/// How many active keys a tenant may have.
///
/// Active and disabled keys count, and so does a key whose record cannot be read. A key that is
/// retiring after a rotation does not: its successor does.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum ActiveKeyCap {
    /// Any number.
    #[default]
    Unlimited,
    /// So many.
    Limited {
        /// How many.
        limit: NonZeroU32,
        /// The classes that count; all of them if none are named.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        classes: BTreeSet<ClassName>,
    },
}

/// Whether every tenant has a legacy key: one that came with it, belongs to no person, can be
/// rotated and cannot be disabled, revoked or deleted (rules A1-09 to A1-12).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum LegacyRule {
    /// There is none.
    #[default]
    None,
    /// There is exactly one.
    One {
        /// Its class.
        class: ClassName,
        /// Its name.
        name: KeyName,
        /// Its scopes.
        scopes: ScopeSet,
    },
}

/// With what a key comes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// With every tenant, when it is provisioned (rule A2-09).
    Tenant,
    /// With every resource of this kind (rule A2-21).
    Resource(ResourceKind),
}

/// A key that comes with a tenant or with a resource.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ProvisionRule {
    /// With what it comes.
    pub on: Trigger,
    /// Its class.
    pub class: ClassName,
    /// Its name.
    pub name: KeyName,
    /// Its scopes.
    pub scopes: ScopeSet,
}

/// How soon a revocation holds everywhere: a verifier that could not confirm for this long that it
/// is up to date refuses.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Propagation {
    /// The staleness bound, in whole seconds when serialized. Zero means immediate: every
    /// verification sees the latest state.
    #[serde(with = "time::seconds", rename = "bound_seconds")]
    pub bound: Duration,
}

impl Default for Propagation {
    fn default() -> Self {
        Self {
            bound: DEFAULT_STALENESS_BOUND,
        }
    }
}

impl Propagation {
    /// Every verification sees the latest state.
    pub const IMMEDIATE: Self = Self {
        bound: Duration::ZERO,
    };

    /// How far a node's monotonic clock may be off, in parts per thousand: generous for any
    /// quartz, so that no bound rests on clocks that agree.
    pub const CLOCK_RATE_ERROR_PER_MILLE: u32 = 1;

    /// The longest time from the return of a revocation to the last verification that can still
    /// accept the key: `bound / (1 - ρ)`, where ρ is the clock's rate error.
    #[must_use]
    pub fn worst_case(self) -> Duration {
        Self::by_any_clock(self.bound)
    }

    /// How much a clock may count, or another one, while one counts `time`: `time / (1 - ρ)`.
    pub(crate) fn by_any_clock(time: Duration) -> Duration {
        time.saturating_mul(1000) / (1000 - Self::CLOCK_RATE_ERROR_PER_MILLE)
    }
}

/// The rules of a tenant's keys: a [`PolicySpec`] that holds no contradiction.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "PolicySpec", into = "PolicySpec")]
pub struct Policy {
    spec: PolicySpec,
    /// Whether a class has a propagation of its own.
    own_propagations: bool,
}

impl PolicySpec {
    /// Returns the specification after `change`.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

impl Policy {
    /// Checks a spec.
    ///
    /// # Errors
    ///
    /// [`PolicyError`] names the first contradiction, and what to change.
    pub fn new(spec: PolicySpec) -> Result<Self, PolicyError> {
        validate::validate(&spec)?;
        let mut classes = spec.classes.values();
        Ok(Self {
            own_propagations: classes.any(|class| class.propagation.is_some()),
            spec,
        })
    }

    /// What it says.
    #[must_use]
    pub const fn spec(&self) -> &PolicySpec {
        &self.spec
    }

    /// The class of this name.
    #[must_use]
    pub fn class(&self, name: &ClassName) -> Option<&KeyClass> {
        self.spec.classes.get(name)
    }

    /// What `role` may reach. A role that the policy does not name reaches nothing.
    #[must_use]
    pub fn role_ceiling(&self, role: &Role) -> ScopeSet {
        self.spec.roles.get(role).cloned().unwrap_or_default()
    }

    pub(crate) fn role_allows(&self, role: &Role, scope: &super::scope::Scope) -> bool {
        let own = self.spec.roles.get(role);
        own.is_some_and(|own| own.allows(scope))
    }

    /// How soon a revocation of a key of this class holds everywhere.
    #[must_use]
    pub fn propagation(&self, class: &ClassName) -> Propagation {
        let own = self.own_propagations.then(|| self.class(class)).flatten();
        own.and_then(|class| class.propagation)
            .unwrap_or(self.spec.propagation)
    }

    /// The longest staleness bound of any of its classes.
    pub(crate) fn longest_bound(&self) -> Duration {
        let classes = self.spec.classes.keys();
        let bounds = classes.map(|class| self.propagation(class).bound);
        bounds.max().unwrap_or_default()
    }

    /// The staleness bounds of its classes that are not zero.
    pub(crate) fn bounds(&self) -> impl Iterator<Item = Duration> {
        let bounds = self
            .spec
            .classes
            .keys()
            .map(|name| self.propagation(name).bound);
        bounds.filter(|bound| !bound.is_zero())
    }

    /// Whether keys of this class count towards the cap, and the cap.
    #[must_use]
    pub fn cap(&self, class: &ClassName) -> Option<NonZeroU32> {
        match &self.spec.active_keys {
            ActiveKeyCap::Limited { limit, classes }
                if classes.is_empty() || classes.contains(class) =>
            {
                Some(*limit)
            }
            _ => None,
        }
    }

    pub(crate) fn provisioned(&self, on: &Trigger) -> impl Iterator<Item = &ProvisionRule> {
        self.spec
            .provision
            .iter()
            .filter(move |rule| rule.on == *on)
    }
}

impl TryFrom<PolicySpec> for Policy {
    type Error = PolicyError;

    fn try_from(spec: PolicySpec) -> Result<Self, PolicyError> {
        Self::new(spec)
    }
}

impl From<Policy> for PolicySpec {
    fn from(policy: Policy) -> Self {
        policy.spec
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::core::profiles::standard;

    /// The standard policy as a config file.
    fn file() -> Value {
        serde_json::to_value(standard()).unwrap()
    }

    fn read(file: Value) -> Result<Policy, String> {
        serde_json::from_value(file).map_err(|error| error.to_string())
    }

    #[test]
    fn durations_round_trip_as_whole_seconds() {
        let mut spec = standard();
        spec.propagation.bound = time::hours(6);
        let class = spec.classes.get_mut("secret").unwrap();
        class.lifetime = Lifetime {
            default: Some(time::days(30)),
            max: Some(time::days(90)),
        };
        class.rotation = Rotation::SupportOnly(time::hours(1));
        class.revocation = Revocation::Allowed {
            confirm: true,
            keep: Some(time::days(7)),
        };
        class.propagation = Some(Propagation::IMMEDIATE);
        let file = serde_json::to_value(&spec).unwrap();
        assert_eq!(file["propagation"], json!({"bound_seconds": 21_600}));
        let class = &file["classes"]["secret"];
        let lifetime = json!({"default_seconds": 2_592_000, "max_seconds": 7_776_000});
        assert_eq!(class["lifetime"], lifetime);
        assert_eq!(class["rotation"], json!({"support_only": 3600}));
        let revocation = json!({"allowed": {"confirm": true, "keep_seconds": 604_800}});
        assert_eq!(class["revocation"], revocation);
        assert_eq!(class["propagation"], json!({"bound_seconds": 0}));
        assert_eq!(serde_json::from_value::<PolicySpec>(file).unwrap(), spec);
    }

    #[test]
    fn a_fraction_of_a_second_is_not_written_as_something_else() {
        let mut spec = standard();
        spec.propagation.bound = Duration::from_millis(500);
        let error = serde_json::to_value(&spec).unwrap_err().to_string();
        assert_eq!(error, "500ms is not a whole number of seconds");
        let mut spec = standard();
        let class = spec.classes.get_mut("secret").unwrap();
        class.lifetime.max = Some(Duration::from_millis(1500));
        assert!(serde_json::to_value(&spec).is_err());
    }

    #[test]
    fn what_is_absent_is_not_written() {
        let text = serde_json::to_string(&standard()).unwrap();
        assert!(
            !text.contains("null"),
            "not every format can say it: {text}"
        );
    }

    #[test]
    fn a_config_file_may_leave_out_what_has_a_default() {
        let access = json!({"roles": ["admin"]});
        let policy = read(json!({
            "name": "small",
            "default_class": "secret",
            "classes": {"secret": {
                "visibility": "secret",
                "prefixes": {"live": "sk_"},
                "create": access, "look": access, "update": access, "rotate": access, "revoke": access,
                "ceiling": ["*:*"],
            }},
            "roles": {"admin": ["*:*"]},
            "administrators": ["admin"],
        }))
        .unwrap();
        let class = policy.class(&policy.spec().default_class).unwrap();
        let prefix = crate::core::token::TokenPrefix::new("sk_").unwrap();
        let expected = KeyClass::secret(prefix, ScopeSet::all(), [Role::ADMIN]);
        let managed = Access::roles([Role::ADMIN]);
        let expected = KeyClass {
            look: managed.clone(),
            update: managed.clone(),
            rotate: managed.clone(),
            revoke: managed,
            ..expected
        };
        assert_eq!(*class, expected);
    }

    #[test]
    fn an_unknown_field_anywhere_in_a_config_file_is_refused_by_name() {
        let places = [
            "",
            "/propagation",
            "/active_keys/limited",
            "/legacy/one",
            "/provision/0",
            "/classes/secret",
            "/classes/secret/lifetime",
            "/classes/secret/revocation/allowed",
            "/classes/secret/create",
        ];
        for place in places {
            let mut file = file();
            let given = json!({"class": "secret", "name": "Key", "scopes": ["a:b"]});
            file["legacy"] = json!({"one": given});
            file["provision"] = json!([given]);
            file["provision"][0]["on"] = json!("tenant");
            let part = file.pointer_mut(place).unwrap();
            part.as_object_mut()
                .unwrap()
                .insert("keeep".to_owned(), json!(1));
            let error = read(file).unwrap_err();
            assert!(error.contains("unknown field `keeep`"), "{place}: {error}");
        }
    }

    #[test]
    fn a_config_file_that_contradicts_itself_is_refused() {
        let mut file = file();
        file["default_class"] = json!("other");
        let error = read(file).unwrap_err();
        assert_eq!(
            error,
            "default class names class other, which the policy does not have"
        );
    }

    #[test]
    fn the_worst_case_of_a_bound_allows_for_the_error_of_the_clock() {
        let worst = |bound| Propagation { bound }.worst_case();
        let ten = Duration::from_secs(10);
        let rate = 1.0 - f64::from(Propagation::CLOCK_RATE_ERROR_PER_MILLE) / 1000.0;
        let off = worst(ten).as_secs_f64() - ten.as_secs_f64() / rate;
        assert!(off.abs() < 1e-6, "{off}");
        assert!(worst(ten) > ten);
        assert_eq!(worst(Duration::from_secs(999)), Duration::from_secs(1000));
        assert_eq!(worst(Duration::ZERO), Duration::ZERO);
        assert!(worst(Duration::MAX) > Duration::ZERO, "and never panics");
    }

    #[test]
    fn a_class_may_have_a_bound_of_its_own() {
        let mut spec = standard();
        let own = Propagation::IMMEDIATE;
        spec.classes.get_mut("secret").unwrap().propagation = Some(own);
        let policy = Policy::new(spec).unwrap();
        let bound = |class| policy.propagation(&ClassName::new(class).unwrap());
        assert_eq!(bound("secret"), own);
        assert_eq!(bound("publishable"), Propagation::default());
    }

    #[test]
    fn an_unknown_role_reaches_nothing_whatever_its_name() {
        let policy = Policy::default();
        for name in ["other", "system", "application"] {
            let other = Role::new(name).unwrap();
            assert_eq!(policy.role_ceiling(&other), ScopeSet::none(), "{name}");
        }
    }

    #[test]
    fn a_cap_counts_the_classes_it_names_or_all() {
        let mut spec = standard();
        let (secret, publishable) = (
            ClassName::new("secret").unwrap(),
            ClassName::new("publishable").unwrap(),
        );
        let limit = NonZeroU32::new(3).unwrap();
        let classes = BTreeSet::from([secret.clone()]);
        spec.active_keys = ActiveKeyCap::Limited { limit, classes };
        let policy = Policy::new(spec).unwrap();
        assert_eq!(policy.cap(&secret), Some(limit));
        assert_eq!(policy.cap(&publishable), None);
        assert!(Policy::default().cap(&publishable).is_some());
    }
}
