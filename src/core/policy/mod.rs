//! Policies: the rules of a tenant's keys, as data.
//!
//! Pure. A [`Policy`] is a [`PolicySpec`] that was found free of contradictions; a host keeps the
//! spec in a config file (serde both ways) and may give each tenant its own.

mod book;
mod class;
mod validate;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::book::Policies;
pub use self::class::{
    Access, Deletion, KeyClass, Lifetime, OwnerCeiling, Revocation, Rotation, TenantReach,
};
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
    /// Whether every key must say what it is for (rule G-38).
    #[serde(default)]
    pub purpose_required: bool,
}

/// How many active keys a tenant may have.
///
/// Active and disabled keys count, and so does a key whose record cannot be read. A key that is
/// retiring after a rotation does not: its successor does.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
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
#[serde(rename_all = "snake_case")]
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
        self.bound * 1000 / (1000 - Self::CLOCK_RATE_ERROR_PER_MILLE)
    }
}

/// The rules of a tenant's keys: a [`PolicySpec`] that holds no contradiction.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "PolicySpec", into = "PolicySpec")]
pub struct Policy(PolicySpec);

impl Policy {
    /// Checks a spec.
    ///
    /// # Errors
    ///
    /// [`PolicyError`] names the first contradiction, and what to change.
    pub fn new(spec: PolicySpec) -> Result<Self, PolicyError> {
        validate::validate(&spec)?;
        Ok(Self(spec))
    }

    /// What it says.
    #[must_use]
    pub const fn spec(&self) -> &PolicySpec {
        &self.0
    }

    /// The class of this name.
    #[must_use]
    pub fn class(&self, name: &ClassName) -> Option<&KeyClass> {
        self.0.classes.get(name)
    }

    /// What `role` may reach. The host itself reaches everything, an unknown role nothing.
    #[must_use]
    pub fn role_ceiling(&self, role: &Role) -> ScopeSet {
        if *role == Role::SYSTEM {
            return ScopeSet::all();
        }
        self.0.roles.get(role).cloned().unwrap_or_default()
    }

    pub(crate) fn role_allows(&self, role: &Role, scope: &super::scope::Scope) -> bool {
        *role == Role::SYSTEM || self.0.roles.get(role).is_some_and(|own| own.allows(scope))
    }

    /// How soon a revocation of a key of this class holds everywhere.
    #[must_use]
    pub fn propagation(&self, class: &ClassName) -> Propagation {
        self.class(class)
            .and_then(|class| class.propagation)
            .unwrap_or(self.0.propagation)
    }

    /// Whether keys of this class count towards the cap, and the cap.
    #[must_use]
    pub fn cap(&self, class: &ClassName) -> Option<NonZeroU32> {
        match &self.0.active_keys {
            ActiveKeyCap::Limited { limit, classes }
                if classes.is_empty() || classes.contains(class) =>
            {
                Some(*limit)
            }
            _ => None,
        }
    }

    pub(crate) fn provisioned(&self, on: &Trigger) -> impl Iterator<Item = &ProvisionRule> {
        self.0.provision.iter().filter(move |rule| rule.on == *on)
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
        policy.0
    }
}
