//! A kind of key: what its keys look like, how long they live, and who may do what to them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Propagation;
use crate::core::record::Visibility;
use crate::core::scope::ScopeSet;
use crate::core::text::{ClassName, Entitlement, Environment, Role, Stage};
use crate::core::time;
use crate::core::token::TokenPrefix;

/// A kind of key.
///
/// Start from [`KeyClass::secret`] or [`KeyClass::publishable`] and change fields.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct KeyClass {
    /// Whether its keys authenticate or identify.
    pub visibility: Visibility,
    /// What tokens begin with, by environment. A key whose creator names no environment is made for
    /// the only one, or else for `live`.
    pub prefixes: BTreeMap<Environment, TokenPrefix>,
    /// A label for a class that is not final yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// How long its keys live.
    #[serde(default)]
    pub lifetime: Lifetime,
    /// Whether and how its keys are rotated.
    #[serde(default)]
    pub rotation: Rotation,
    /// Whether a key of this class may rotate itself.
    #[serde(default)]
    pub self_rotation: SelfRotation,
    /// Whether and how its keys are revoked.
    #[serde(default)]
    pub revocation: Revocation,
    /// Whether and how its keys are deleted.
    #[serde(default)]
    pub deletion: Deletion,
    /// Who may create its keys.
    pub create: Access,
    /// The access to look at its keys: list them and see their details.
    pub look: Access,
    /// Who may update, disable and enable its keys.
    pub update: Access,
    /// Who may rotate its keys.
    pub rotate: Access,
    /// Who may revoke and delete its keys.
    pub revoke: Access,
    /// The most that a key of this class can reach, whatever its scopes say.
    pub ceiling: ScopeSet,
    /// The other classes whose keys a key of this class may issue, beside its own. None by default.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub issues: BTreeSet<ClassName>,
    /// Whether its keys reach the tenants below their own.
    #[serde(default)]
    pub tenant_reach: TenantReach,
    /// A plan or feature without which its keys cannot be created (rule A2-39).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entitlement: Option<Entitlement>,
    /// How soon a revocation of its keys holds everywhere; the policy's own bound if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub propagation: Option<Propagation>,
}

impl KeyClass {
    /// Returns the class after `change`.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// A class of secret keys for the environment `live`: self-service rotation with a grace of
    /// 24 hours, revocation with records kept for ever, plain deletion, managed and looked at by
    /// `roles` and by each key's owner.
    #[must_use]
    pub fn secret(
        prefix: TokenPrefix,
        ceiling: ScopeSet,
        roles: impl IntoIterator<Item = Role>,
    ) -> Self {
        let create = Access::roles(roles);
        let manage = create.clone().or_owner();
        Self {
            visibility: Visibility::Secret,
            prefixes: BTreeMap::from([(Environment::LIVE, prefix)]),
            stage: None,
            lifetime: Lifetime::default(),
            rotation: Rotation::default(),
            self_rotation: SelfRotation::Never,
            revocation: Revocation::default(),
            deletion: Deletion::default(),
            create,
            look: manage.clone(),
            update: manage.clone(),
            rotate: manage.clone(),
            revoke: manage,
            ceiling,
            issues: BTreeSet::new(),
            tenant_reach: TenantReach::Own,
            entitlement: None,
            propagation: None,
        }
    }

    /// The environment of a key whose creator names none: the only one, or else `live`.
    #[must_use]
    pub fn default_environment(&self) -> Option<(&Environment, &TokenPrefix)> {
        match self.prefixes.len() {
            1 => self.prefixes.first_key_value(),
            _ => self.prefixes.get_key_value(&Environment::LIVE),
        }
    }

    /// The same with keys that identify, and may be shown again.
    #[must_use]
    pub fn publishable(
        prefix: TokenPrefix,
        ceiling: ScopeSet,
        roles: impl IntoIterator<Item = Role>,
    ) -> Self {
        Self {
            visibility: Visibility::Publishable,
            ..Self::secret(prefix, ceiling, roles)
        }
    }
}

/// How long keys live, counted from their creation.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Lifetime {
    /// The lifetime of a key whose creator names none; `None` for the longest one, or for no end.
    #[serde(
        default,
        with = "time::seconds::option",
        rename = "default_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub default: Option<Duration>,
    /// The longest lifetime; `None` for any, and for keys that never expire.
    #[serde(
        default,
        with = "time::seconds::option",
        rename = "max_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub max: Option<Duration>,
}

/// Whether and how keys are rotated.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rotation {
    /// They are not (rule A2-01).
    None,
    /// Only the host's support staff rotates them (rule A2-02).
    SupportOnly(#[serde(with = "time::seconds")] Duration),
    /// Those who have access rotate them. The grace is how long the old key keeps working if the
    /// command names no other; zero retires it at once.
    SelfService(#[serde(with = "time::seconds")] Duration),
}

impl Rotation {
    /// 24 hours: one daily deploy cycle. A judgement, not a standard.
    pub const DEFAULT_GRACE: Duration = time::hours(24);
    /// 90 days: the longest grace that a command may ask for. A judgement: an old key that works
    /// for longer was not rotated.
    pub const MAX_GRACE: Duration = time::days(90);

    /// For how long a key waits for its successor's first use, unless a policy or a command says
    /// otherwise: 30 days. A judgement: a holder who has not used a new secret by then is not about to.
    pub const DEFAULT_WAIT: Duration = time::days(30);

    /// The longest for which a compromised key waits for its successor's first use: 24 hours, one daily
    /// job.
    pub const MAX_COMPROMISED_WAIT: Duration = time::hours(24);
}

impl Default for Rotation {
    fn default() -> Self {
        Self::SelfService(Self::DEFAULT_GRACE)
    }
}

/// Whether and how keys are revoked. Leaks, removed owners and closed tenants revoke in any case.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
#[non_exhaustive]
pub enum Revocation {
    /// They are not; they are deleted instead (rule I-08).
    None,
    /// They are.
    Allowed {
        /// Whether the command must say that it was confirmed (rules A1-15, G-20).
        confirm: bool,
        /// How long revoked and expired keys are kept before a purge removes them; `None` for ever
        /// (rule A1-17).
        #[serde(
            default,
            with = "time::seconds::option",
            rename = "keep_seconds",
            skip_serializing_if = "Option::is_none"
        )]
        keep: Option<Duration>,
    },
}

impl Default for Revocation {
    fn default() -> Self {
        Self::Allowed {
            confirm: false,
            keep: None,
        }
    }
}

/// Whether and how keys are deleted. A deleted key is gone, its id and digest stay taken.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Deletion {
    /// They are not; they are revoked and kept.
    None,
    /// They are.
    #[default]
    Plain,
    /// They are, once this text was typed exactly (rule A1-22).
    Typed(String),
    /// They are, once the host says that nothing refers to them any more (rule A2-28).
    Unreferenced,
}

/// Who may do something. The host itself always may.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// These roles.
    pub roles: BTreeSet<Role>,
    /// The key's owner too, whatever its role.
    #[serde(default)]
    pub owner: bool,
}

impl Access {
    /// Nobody but the host.
    #[must_use]
    pub fn host_only() -> Self {
        Self::default()
    }

    /// Only the host's support staff (rule A2-35).
    #[must_use]
    pub fn support_only() -> Self {
        Self::roles([Role::SUPPORT])
    }

    /// These roles.
    #[must_use]
    pub fn roles(roles: impl IntoIterator<Item = Role>) -> Self {
        Self {
            roles: roles.into_iter().collect(),
            owner: false,
        }
    }

    /// The key's owner too.
    #[must_use]
    pub fn or_owner(mut self) -> Self {
        self.owner = true;
        self
    }

    pub(crate) fn is_support_only(&self) -> bool {
        !self.owner && self.roles.len() == 1 && self.roles.contains(&Role::SUPPORT)
    }
}

/// Whether a key may rotate itself: the one case in which a key hands out something that outlives it.
///
/// A key never rotates itself while it is retiring, once it was exposed, or if it is publishable, and
/// always with grace or on first use.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum SelfRotation {
    /// It may not.
    #[default]
    Never,
    /// It may; the successor ends when the key does.
    WithinLife,
    /// It may; the successor lives as long as its class says.
    Renews {
        /// No successor ends later than this after the first key of the chain was created.
        #[serde(with = "time::seconds", rename = "until_age_seconds")]
        until_age: Duration,
    },
}

/// Whether keys reach the tenants below their own.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TenantReach {
    /// Only their own (rule A2-10).
    #[default]
    Own,
    /// Their own and all below it (rule A2-36).
    Below,
}
