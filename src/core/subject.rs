//! A key as verification sees it: the fields that decide, without those that only people read.
//!
//! Pure. Store records and index entries are both converted to this form, so every way of verifying applies
//! the same checks (trap 20).

use std::collections::BTreeSet;

use super::address::AddressAllowlist;
use super::id::KeyId;
use super::principal::Owner;
use super::record::{Credential, KeyRecord, KeyState, Reason, Resource, Visibility};
use super::scope::ScopeSet;
use super::tenant::TenantId;
use super::text::{ClassName, Environment, PepperId, Role};
use super::time::Timestamp;
use super::token::TokenPrefix;

/// The fields that many keys have in common. An index stores each distinct shape once, and the keys of that
/// shape share it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Shape {
    pub(crate) class: ClassName,
    pub(crate) visibility: Visibility,
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
pub(crate) struct Holder {
    pub(crate) tenant: TenantId,
    pub(crate) owner: Owner,
}

/// A lazy source of a key's tenant and owner. Most verifications need neither, and the lookup may be slow.
pub(crate) trait Whose {
    fn holder(&self) -> &Holder;
}

impl Whose for Holder {
    fn holder(&self) -> &Holder {
        self
    }
}

/// The state of a key, without its expiry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Life {
    Enabled,
    Disabled,
    Revoked { at: Timestamp, reason: Reason },
}

/// The lifecycle of a key, from which its status at an instant is derived. Does not affect how the key is
/// found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Course {
    pub(crate) life: Life,
    pub(crate) created_at: Timestamp,
    /// The first instant at which the key no longer works; `None` if the key never ends.
    pub(crate) expires_at: Option<Timestamp>,
    /// Whether the key is a successor that was never used.
    pub(crate) awaits_first_use: bool,
}

/// A key at the moment of its verification.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) id: KeyId,
    pub(crate) whose: &'a dyn Whose,
    /// Whether a principal owns the key, rather than the tenant.
    pub(crate) persons: bool,
    pub(crate) shape: &'a Shape,
    pub(crate) course: Course,
}

impl Holder {
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

impl Course {
    pub(crate) fn of(record: &KeyRecord) -> Self {
        Self {
            life: match &record.state {
                KeyState::Enabled => Life::Enabled,
                KeyState::Disabled(_) => Life::Disabled,
                KeyState::Revoked { stamp, reason } => Life::Revoked {
                    at: stamp.at,
                    reason: *reason,
                },
            },
            created_at: record.created.at,
            expires_at: record.expires_at,
            awaits_first_use: record.awaits_first_use(),
        }
    }
}

impl Shape {
    pub(crate) fn of(record: &KeyRecord) -> Self {
        Self {
            class: record.class.clone(),
            visibility: record.visibility,
            environment: record.environment.clone(),
            prefix: record.prefix.clone(),
            bound: record.bound.clone(),
            scopes: record.scopes.clone(),
            allowlist: record.allowlist.clone(),
            resource: record.resource.clone(),
            pepper: pepper_of(record).cloned(),
        }
    }

    /// Returns whether this is the shape of `record`. Consecutive keys are often alike, so this saves
    /// building a shape.
    pub(crate) fn is_of(&self, record: &KeyRecord) -> bool {
        let Self {
            class,
            visibility,
            environment,
            prefix,
            bound,
            scopes,
            allowlist,
            resource,
            pepper,
        } = self;
        *class == record.class
            && *visibility == record.visibility
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
