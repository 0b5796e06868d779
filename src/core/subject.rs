//! The fields of a key that verification needs, without descriptive fields such as the key's name.
//!
//! Pure: no I/O and no clock. Store records and index entries are both converted to this form, so every way
//! of verifying applies the same checks.

use std::collections::BTreeSet;

use super::address::AddressAllowlist;
use super::id::KeyId;
use super::principal::Owner;
use super::record::{Credential, KeyRecord, KeyState, KeyType, Reason, Resource};
use super::scope::ScopeSet;
use super::tenant::TenantId;
use super::text::{ClassName, Environment, PepperId, Role};
use super::time::Timestamp;
use super::token::TokenPrefix;

/// Fields that many keys have in common. An index stores each distinct set of traits once, and all keys with
/// those traits share it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct KeyTraits {
    pub(crate) class: ClassName,
    pub(crate) key_type: KeyType,
    pub(crate) environment: Environment,
    pub(crate) prefix: Option<TokenPrefix>,
    pub(crate) bound: BTreeSet<Role>,
    pub(crate) scopes: ScopeSet,
    pub(crate) allowlist: AddressAllowlist,
    pub(crate) resource: Option<Resource>,
    /// The pepper of the key's digest; `None` if the key was imported.
    pub(crate) pepper: Option<PepperId>,
}

/// The tenant and the owner of a key.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct KeyOwner {
    pub(crate) tenant: TenantId,
    pub(crate) owner: Owner,
}

/// Looks up a key's tenant and owner on demand. Most verifications need neither, and the lookup may be slow.
pub(crate) trait OwnerSource {
    fn key_owner(&self) -> &KeyOwner;
}

impl OwnerSource for KeyOwner {
    fn key_owner(&self) -> &KeyOwner {
        self
    }
}

/// The state of a key, without its expiry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum LifecyclePhase {
    Enabled,
    Disabled,
    Revoked { at: Timestamp, reason: Reason },
}

/// The fields from which the status of a key at an instant is derived.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Lifecycle {
    pub(crate) phase: LifecyclePhase,
    pub(crate) created_at: Timestamp,
    /// The first instant at which the key no longer works; `None` if the key never ends.
    pub(crate) expires_at: Option<Timestamp>,
    /// True if the key is a successor that was never used.
    pub(crate) awaits_first_use: bool,
}

/// A key that is being verified.
#[derive(Clone, Copy)]
pub(crate) struct KeyToVerify<'a> {
    pub(crate) id: KeyId,
    pub(crate) owner_source: &'a dyn OwnerSource,
    /// True if a principal owns the key, rather than the tenant.
    pub(crate) persons: bool,
    pub(crate) traits: &'a KeyTraits,
    pub(crate) lifecycle: &'a Lifecycle,
}

impl KeyOwner {
    pub(crate) fn of(record: &KeyRecord) -> Self {
        Self {
            tenant: record.tenant.clone(),
            owner: record.owner.clone(),
        }
    }

    pub(crate) const fn is_person(&self) -> bool {
        self.owner.principal().is_some()
    }
}

impl Lifecycle {
    pub(crate) fn of(record: &KeyRecord) -> Self {
        Self {
            phase: match &record.state {
                KeyState::Enabled => LifecyclePhase::Enabled,
                KeyState::Disabled(_) => LifecyclePhase::Disabled,
                KeyState::Revoked { stamp, reason } => LifecyclePhase::Revoked {
                    at: stamp.at,
                    reason: *reason,
                },
            },
            created_at: record.created.at,
            expires_at: record.expires_at,
            awaits_first_use: record.awaits_first_use(),
        }
    }

    /// Returns whether the key could still verify, as [`KeyRecord::is_live`] does.
    pub(crate) fn is_live(&self, now: Timestamp) -> bool {
        let ended = matches!(self.phase, LifecyclePhase::Revoked { .. });
        !ended && self.expires_at.is_none_or(|end| now < end)
    }
}

impl KeyTraits {
    pub(crate) fn of(record: &KeyRecord) -> Self {
        Self {
            class: record.class.clone(),
            key_type: record.key_type,
            environment: record.environment.clone(),
            prefix: record.prefix.clone(),
            bound: record.bound.clone(),
            scopes: record.scopes.clone(),
            allowlist: record.allowlist.clone(),
            resource: record.resource.clone(),
            pepper: pepper_of(record).cloned(),
        }
    }

    /// Returns whether `record` has exactly these traits. Consecutive keys often have equal traits, and this
    /// comparison is cheaper than building new traits with [`of`](Self::of).
    pub(crate) fn is_of(&self, record: &KeyRecord) -> bool {
        let Self {
            class,
            key_type,
            environment,
            prefix,
            bound,
            scopes,
            allowlist,
            resource,
            pepper,
        } = self;
        *class == record.class
            && *key_type == record.key_type
            && *environment == record.environment
            && *prefix == record.prefix
            && *bound == record.bound
            && *scopes == record.scopes
            && *allowlist == record.allowlist
            && *resource == record.resource
            && pepper.as_ref() == pepper_of(record)
    }
}

const fn pepper_of(record: &KeyRecord) -> Option<&PepperId> {
    match &record.credential {
        Credential::Peppered { pepper, .. } => Some(pepper),
        Credential::Imported { .. } => None,
    }
}
