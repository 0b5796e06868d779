//! Classes of keys: their prefixes, their lifetimes, and the access to them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Propagation;
use crate::core::record::Visibility;
use crate::core::scope::ScopeSet;
use crate::core::text::{ClassName, Entitlement, Environment, Role, Stage};
use crate::core::time;
use crate::core::token::TokenPrefix;

/// A class of keys.
///
/// Start from [`KeyClass::secret`] or [`KeyClass::publishable`] and change fields.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct KeyClass {
    /// The visibility of keys of this class: secret keys authenticate, publishable keys identify.
    pub visibility: Visibility,
    /// The prefixes of tokens, by environment. A key whose creator names no environment gets the only
    /// environment, or else `live`.
    #[serde(deserialize_with = "super::unique::deserialize")]
    pub prefixes: BTreeMap<Environment, TokenPrefix>,
    /// A label for a class that is not final yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// The lifetime of keys of this class.
    #[serde(default)]
    pub lifetime: Lifetime,
    /// The rotation of keys of this class.
    #[serde(default)]
    pub rotation: Rotation,
    /// The rule for keys of this class that rotate themselves.
    #[serde(default)]
    pub self_rotation: SelfRotation,
    /// The revocation of keys of this class.
    #[serde(default)]
    pub revocation: Revocation,
    /// The deletion of keys of this class.
    #[serde(default)]
    pub deletion: Deletion,
    /// The access to create keys of this class.
    pub create: Access,
    /// The access to look at keys of this class: list them and see their details.
    pub look: Access,
    /// The access to update, disable and enable keys of this class.
    pub update: Access,
    /// The access to rotate keys of this class.
    pub rotate: Access,
    /// The access to revoke and delete keys of this class.
    pub revoke: Access,
    /// The most that a key of this class can reach, whatever its own scopes.
    pub ceiling: ScopeSet,
    /// The classes whose keys a key of this class may issue, in addition to its own class. Empty by default.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub issues: BTreeSet<ClassName>,
    /// The tenants that keys of this class reach.
    #[serde(default)]
    pub tenant_reach: TenantReach,
    /// A plan or feature without which keys of this class cannot be created (rule A2-39).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entitlement: Option<Entitlement>,
    /// The time until a revocation of a key of this class holds everywhere. `None` for the bound of the
    /// policy.
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

    /// Creates a class of secret keys for the environment `live`: self-service rotation with a grace of 24
    /// hours, revocation without a purge, and plain deletion. `roles` create keys. `roles` and each key's
    /// owner look at and manage keys.
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

    /// Returns the environment of a key whose creator names no environment: the only environment, or else
    /// `live`.
    #[must_use]
    pub fn default_environment(&self) -> Option<(&Environment, &TokenPrefix)> {
        match self.prefixes.len() {
            1 => self.prefixes.first_key_value(),
            _ => self.prefixes.get_key_value(&Environment::LIVE),
        }
    }

    /// Creates a class of publishable keys, which identify and may be shown again. In all else, the class is
    /// like [`secret`](Self::secret).
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

/// The lifetime of keys, counted from their creation.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Lifetime {
    /// The lifetime of a key whose creator names no lifetime. `None` for the maximum, or for no end if there
    /// is no maximum.
    #[serde(
        default,
        with = "time::seconds::option",
        rename = "default_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub default: Option<Duration>,
    /// The longest lifetime. `None` allows any lifetime, and keys that never expire.
    #[serde(
        default,
        with = "time::seconds::option",
        rename = "max_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub max: Option<Duration>,
}

/// The rotation of keys.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rotation {
    /// Keys are not rotated (rule A2-01).
    None,
    /// Only the host's support staff rotates keys (rule A2-02). The grace is as in
    /// [`SelfService`](Self::SelfService).
    SupportOnly(#[serde(with = "time::seconds")] Duration),
    /// Actors with access rotate keys. The old key keeps working for this grace unless the command names
    /// another grace. A grace of zero retires the old key immediately.
    SelfService(#[serde(with = "time::seconds")] Duration),
}

impl Rotation {
    /// The default grace: 24 hours, one daily deploy cycle. A judgement, not a standard.
    pub const DEFAULT_GRACE: Duration = time::hours(24);
    /// The longest grace that a command may ask for: 90 days. A judgement: an old key that works for longer
    /// was not rotated.
    pub const MAX_GRACE: Duration = time::days(90);

    /// The default wait for the first use of a successor: 30 days. A judgement: a holder who has not used a
    /// new secret by then will not use it.
    pub const DEFAULT_WAIT: Duration = time::days(30);

    /// The longest wait of a compromised key for the first use of its successor: 24 hours, one daily job.
    pub const MAX_COMPROMISED_WAIT: Duration = time::hours(24);
}

impl Default for Rotation {
    fn default() -> Self {
        Self::SelfService(Self::DEFAULT_GRACE)
    }
}

/// The rule for revoking keys. Leaks, removed owners and closed tenants revoke keys whatever this rule says.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
#[non_exhaustive]
pub enum Revocation {
    /// Keys are never revoked on command, only deleted (rule I-08).
    None,
    /// Keys are revoked.
    Allowed {
        /// Whether the command must be confirmed (rules A1-15, G-20).
        confirm: bool,
        /// The time until a purge removes revoked and expired keys; `None` keeps them forever (rule A1-17).
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

/// The rule for deleting keys. The id and the digest of a deleted key are never used again.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Deletion {
    /// Keys are never deleted. They are revoked and kept.
    None,
    /// Keys are deleted.
    #[default]
    Plain,
    /// Keys are deleted after this exact text was typed (rule A1-22).
    Typed(String),
    /// Keys are deleted after the host reports that nothing refers to them (rule A2-28).
    Unreferenced,
}

/// The actors with access to an operation. The host itself always has access.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// The roles with access.
    pub roles: BTreeSet<Role>,
    /// Whether the key's owner has access too, whatever the owner's role.
    #[serde(default)]
    pub owner: bool,
}

impl Access {
    /// Gives access to the host only.
    #[must_use]
    pub fn host_only() -> Self {
        Self::default()
    }

    /// Gives access to the host's support staff only (rule A2-35).
    #[must_use]
    pub fn support_only() -> Self {
        Self::roles([Role::SUPPORT])
    }

    /// Gives access to these roles.
    #[must_use]
    pub fn roles(roles: impl IntoIterator<Item = Role>) -> Self {
        Self {
            roles: roles.into_iter().collect(),
            owner: false,
        }
    }

    /// Gives access to the key's owner too.
    #[must_use]
    pub fn or_owner(mut self) -> Self {
        self.owner = true;
        self
    }

    pub(crate) fn is_support_only(&self) -> bool {
        !self.owner && self.roles.len() == 1 && self.roles.contains(&Role::SUPPORT)
    }
}

/// The rule for self-rotation: the only case in which a key creates something that outlives the key itself.
///
/// A key never rotates itself while it is retiring, after it was exposed, or if it is publishable. Every
/// self-rotation is a rotation with grace or on first use.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum SelfRotation {
    /// A key does not rotate itself.
    #[default]
    Never,
    /// A key rotates itself, and its successor ends when the key does.
    WithinLife,
    /// A key rotates itself, and its successor has the lifetime of the class.
    Renews {
        /// The longest time from the creation of the first key of the chain to the end of a successor.
        #[serde(with = "time::seconds", rename = "until_age_seconds")]
        until_age: Duration,
    },
}

/// The tenants that keys reach.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TenantReach {
    /// Only the key's own tenant (rule A2-10).
    #[default]
    Own,
    /// The key's own tenant and its descendants (rule A2-36).
    Descendants,
}
