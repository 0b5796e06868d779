//! Classes of keys: their prefixes, their lifetimes, and the actors with access to them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Propagation;
use crate::core::record::KeyType;
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
    /// The type of keys of this class: secret keys authenticate, publishable keys identify.
    pub key_type: KeyType,
    /// The token prefix for each environment. If the creator of a key names no environment, the key gets the
    /// only one, or `live` if there are several.
    #[serde(deserialize_with = "super::unique::deserialize")]
    pub prefixes: BTreeMap<Environment, TokenPrefix>,
    /// A label for a class that is not final yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// The lifetime of keys of this class.
    #[serde(default)]
    pub lifetime: Lifetime,
    /// The rule for rotating keys of this class.
    #[serde(default)]
    pub rotation: Rotation,
    /// The rule for keys of this class that rotate themselves.
    #[serde(default)]
    pub self_rotation: SelfRotation,
    /// The rule for revoking keys of this class.
    #[serde(default)]
    pub revocation: Revocation,
    /// The rule for deleting keys of this class.
    #[serde(default)]
    pub deletion: Deletion,
    /// The actors that may create keys of this class.
    pub create: Access,
    /// The actors that may list keys of this class and see their details.
    pub look: Access,
    /// The actors that may update, disable and enable keys of this class.
    pub update: Access,
    /// The actors that may rotate keys of this class.
    pub rotate: Access,
    /// The actors that may revoke and delete keys of this class.
    pub revoke: Access,
    /// The upper limit on the scopes of keys of this class.
    pub ceiling: ScopeSet,
    /// The classes of keys that a key of this class may issue, in addition to its own class. Empty by
    /// default.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub issues: BTreeSet<ClassName>,
    /// The tenants that keys of this class reach.
    #[serde(default)]
    pub tenant_reach: TenantReach,
    /// The entitlement that an actor needs to create keys of this class. `None` if none is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entitlement: Option<Entitlement>,
    /// The longest time until a revocation of a key of this class takes effect everywhere. `None` uses the
    /// policy's bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub propagation: Option<Propagation>,
}

impl KeyClass {
    /// Returns the class with `change` applied.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Creates a class of secret keys for the environment `live`. Keys can be rotated with a grace of 24
    /// hours, and can be revoked and deleted. Revoked keys are never purged. Actors with one of `roles` may
    /// create keys, and may view and manage all keys of the class in their tenant. Each key's owner may view and
    /// manage the key.
    #[must_use]
    pub fn secret(
        prefix: TokenPrefix,
        ceiling: ScopeSet,
        roles: impl IntoIterator<Item = Role>,
    ) -> Self {
        let create = Access::roles(roles);
        let manage = create.clone().or_owner();
        Self {
            key_type: KeyType::Secret,
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

    /// Returns the environment of a key if its creator names none: the only environment, or `live` if there
    /// are several.
    #[must_use]
    pub fn default_environment(&self) -> Option<(&Environment, &TokenPrefix)> {
        match self.prefixes.len() {
            1 => self.prefixes.first_key_value(),
            _ => self.prefixes.get_key_value(&Environment::LIVE),
        }
    }

    /// Creates a class of publishable keys, which identify and may be shown again. All other settings are as
    /// in [`secret`](Self::secret).
    #[must_use]
    pub fn publishable(
        prefix: TokenPrefix,
        ceiling: ScopeSet,
        roles: impl IntoIterator<Item = Role>,
    ) -> Self {
        Self {
            key_type: KeyType::Publishable,
            ..Self::secret(prefix, ceiling, roles)
        }
    }
}

/// The lifetime of keys, counted from their creation.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Lifetime {
    /// The lifetime of a key if its creator names none. `None` uses the maximum. Without a maximum the key
    /// never expires.
    #[serde(
        default,
        with = "time::seconds::option",
        rename = "default_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub default: Option<Duration>,
    /// The longest lifetime. `None` allows any lifetime, including keys that never expire.
    #[serde(
        default,
        with = "time::seconds::option",
        rename = "max_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub max: Option<Duration>,
}

/// The rule for rotating keys.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rotation {
    /// Keys are not rotated.
    None,
    /// Only the host's support staff may rotate keys. The grace is as in [`SelfService`](Self::SelfService).
    SupportOnly(#[serde(with = "time::seconds")] Duration),
    /// Actors with access may rotate keys. The old key keeps working for this grace, unless the command sets
    /// another grace. A grace of zero ends the old key immediately.
    SelfService(#[serde(with = "time::seconds")] Duration),
}

impl Rotation {
    /// The default grace: 24 hours, one daily deploy cycle.
    pub const DEFAULT_GRACE: Duration = time::hours(24);
    /// The longest grace that a command may set: 90 days. An old key that works for longer is in effect not
    /// rotated.
    pub const MAX_GRACE: Duration = time::days(90);

    /// The default wait for the first use of a successor: 30 days. A client that has not used a new secret by
    /// then is unlikely to use it.
    pub const DEFAULT_WAIT: Duration = time::days(30);

    /// The longest time that a compromised key may wait for the first use of its successor: 24 hours, the
    /// interval of a daily job.
    pub const MAX_COMPROMISED_WAIT: Duration = time::hours(24);
}

impl Default for Rotation {
    fn default() -> Self {
        Self::SelfService(Self::DEFAULT_GRACE)
    }
}

/// The rule for revoking keys. Leaks, removed owners and closed tenants revoke keys regardless of this rule.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
#[non_exhaustive]
pub enum Revocation {
    /// Keys are never revoked on command, only deleted.
    None,
    /// Keys may be revoked.
    Allowed {
        /// True if the command must be confirmed.
        confirm: bool,
        /// The time after which [`Keyward::purge`](crate::Keyward::purge) and
        /// [`apply_retention`](crate::Keyward::apply_retention) remove a revoked or expired key. `None` keeps such
        /// keys forever.
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
    /// Keys may be deleted.
    #[default]
    Plain,
    /// Keys are deleted after a person typed this exact text.
    Typed(String),
    /// Keys are deleted after the host reports that nothing refers to them.
    Unreferenced,
}

/// The actors with access to an operation. The host itself always has access.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// The roles with access.
    pub roles: BTreeSet<Role>,
    /// True if the key's owner has access too, regardless of the owner's role.
    #[serde(default)]
    pub owner: bool,
}

impl Access {
    /// Gives access to the host only.
    #[must_use]
    pub fn host_only() -> Self {
        Self::default()
    }

    /// Gives access to the host's support staff only.
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

/// The rule for keys that rotate themselves. Self-rotation is the only way for a key to create a key that
/// outlives it.
///
/// A key never rotates itself while it is retiring, after it was exposed, or if it is publishable. Every
/// self-rotation has a grace or waits for the first use of the successor.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum SelfRotation {
    /// Keys do not rotate themselves.
    #[default]
    Never,
    /// A key may rotate itself. The successor keeps the key's expiry.
    WithinLife,
    /// A key may rotate itself. The successor gets the lifetime of the class.
    Renews {
        /// The maximum age of a chain of rotations. A successor expires at most this long after the first key
        /// of its chain was created.
        #[serde(with = "time::seconds", rename = "until_age_seconds")]
        until_age: Duration,
    },
}

/// The tenants that keys reach.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TenantReach {
    /// Only the key's own tenant.
    #[default]
    Own,
    /// The key's own tenant and its descendants.
    Descendants,
}
