//! The stored record of a key, and its status at an instant.
//!
//! Pure: no I/O and no clock. A status is derived from the record and the current time. It is never stored,
//! so it is never stale. A key has expired if `now >= expires_at`, whichever path checks it.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use super::address::AddressAllowlist;
use super::id::KeyId;
use super::metadata::Metadata;
use super::principal::Owner;
use super::scope::ScopeSet;
use super::secret::{Digest, Fingerprint};
use super::stamp::Stamp;
use super::tenant::TenantId;
use super::text::{
    ClassName, Description, Environment, Hint, KeyName, PepperId, Purpose, ResourceId,
    ResourceKind, Role,
};
use super::time::Timestamp;
use super::token::TokenPrefix;

/// The type of a key: a secret key authenticates, a publishable key only identifies.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyType {
    /// Authenticates. The token is shown once.
    Secret,
    /// Only identifies. The token may be shown again, and may be shipped in browsers and apps.
    Publishable,
}

/// The reason for a revocation.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// The holder no longer has the key.
    Lost,
    /// Another party may have the key.
    Compromised,
    /// The key was found in public.
    Leaked,
    /// Nobody used the key.
    Unused,
    /// The key is not needed any more.
    NoLongerNeeded,
    /// A successor replaced the key.
    Rotated,
    /// The rotation that created the key was cancelled before the key was used.
    RotationCancelled,
    /// The owner of the key was removed.
    OwnerRemoved,
    /// The tenant of the key was closed.
    TenantClosed,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Lost => "lost",
            Self::Compromised => "compromised",
            Self::Leaked => "leaked",
            Self::Unused => "unused",
            Self::NoLongerNeeded => "no longer needed",
            Self::Rotated => "rotated",
            Self::RotationCancelled => "rotation cancelled",
            Self::OwnerRemoved => "owner removed",
            Self::TenantClosed => "tenant closed",
        })
    }
}

/// The reason for a rotation.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RotationReason {
    /// A regular, scheduled rotation.
    #[default]
    Routine,
    /// Another party may have the old key.
    Compromise,
    /// The old key expires soon.
    ExpiryNear,
    /// An incident. Keys are replaced as a precaution.
    Incident,
}

/// The state of a key. Only commands change it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub enum KeyState {
    /// The key works until it expires.
    Enabled,
    /// The key is refused until it is enabled again.
    Disabled(Stamp),
    /// The key is refused permanently.
    Revoked {
        /// The instant and the author of the revocation.
        stamp: Stamp,
        /// The reason for the revocation.
        reason: Reason,
    },
}

/// The algorithm that turns the token of an imported key into a digest.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ImportScheme {
    /// SHA-256 of the whole token.
    Sha256,
}

/// The digest that a presented secret is compared with.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Credential {
    /// HMAC-SHA-256 of `id ‖ secret` under a pepper.
    Peppered {
        /// The id of the pepper.
        pepper: PepperId,
        /// The digest of `id ‖ secret`.
        digest: Digest,
    },
    /// A digest that the host imported.
    Imported {
        /// The algorithm of the digest.
        scheme: ImportScheme,
        /// The digest. Unique across tenants, including deleted keys.
        digest: Digest,
    },
}

impl Credential {
    /// Returns the digest that a presented secret is compared with.
    #[must_use]
    pub const fn digest(&self) -> &Digest {
        match self {
            Self::Peppered { digest, .. } | Self::Imported { digest, .. } => digest,
        }
    }

    /// Returns the digest by which an imported key is found; `None` for other keys.
    #[must_use]
    pub const fn imported(&self) -> Option<&Digest> {
        match self {
            Self::Imported { digest, .. } => Some(digest),
            Self::Peppered { .. } => None,
        }
    }
}

/// A resource of the host that a key belongs to.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Resource {
    /// The kind of the resource, from which the policy derives the class of the key.
    pub kind: ResourceKind,
    /// The host's id of the resource.
    pub id: ResourceId,
}

/// The link from a key to the successor that replaces it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Succession {
    /// The key that replaces this key.
    pub successor: KeyId,
    /// The instant at which the rotation began.
    pub since: Timestamp,
    /// The reason for the rotation.
    pub reason: RotationReason,
    /// The old key's expiry before the rotation. Cancelling the rotation restores this expiry.
    pub own_expiry: Option<Timestamp>,
    /// The time for which the old key keeps working after the successor's first use. `None` if the grace does
    /// not start at that use.
    #[serde(serialize_with = "in_seconds", rename = "grace_from_first_use_seconds")]
    pub grace_from_first_use: Option<Duration>,
}

/// Serializes a duration as whole seconds in human-readable formats. Binary formats keep the fraction.
fn in_seconds<S: Serializer>(grace: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    match to.is_human_readable() {
        true => grace.map(|grace| grace.as_secs()).serialize(to),
        false => grace.serialize(to),
    }
}

/// The link from a successor to the key that it replaces.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Predecessor {
    /// The old key.
    pub key: KeyId,
    /// The instant of the successor's first use. `None` until that use is recorded.
    pub first_used_at: Option<Timestamp>,
}

/// A key that created another key, or that rotated another key and received the new secret.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Maker {
    /// The id of the key that made the other key.
    pub key: KeyId,
    /// The first key of the maker's own chain of rotations.
    pub lineage: KeyId,
}

/// A chain of rotations: a key, its successor, and so on.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Lineage {
    /// The id of the first key of the chain.
    pub first: KeyId,
    /// The instant at which the first key was created. If another key created the first key, this is the
    /// `since` of that other key's lineage instead.
    pub since: Timestamp,
    /// The key that created the first key, if a key did.
    pub created_by: Option<KeyId>,
}

/// The last action on a key.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LastAction {
    /// Created.
    Created,
    /// Imported as a digest.
    Imported,
    /// The name, description, purpose, metadata, scopes, addresses or expiry changed.
    Updated,
    /// Disabled.
    Disabled,
    /// Enabled again.
    Enabled,
    /// Revoked.
    Revoked,
    /// A rotation created a successor.
    Rotated,
    /// The rotation was cancelled.
    RotationCancelled,
    /// The first use of the key or of its successor was recorded.
    FirstUsed,
    /// The secret was replaced because the response with the first secret was lost.
    Replaced,
    /// The key was reported as leaked, but was not revoked.
    LeakReported,
    /// The digest was recomputed under the current pepper.
    Redigested,
}

/// The fields that a [`KeyRecord`] and its public view, [`KeyInfo`](crate::KeyInfo), share. None of them is
/// secret.
///
/// Exhaustive on purpose: stores construct and destructure this type.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct KeyFacts {
    /// The public id of the key.
    pub id: KeyId,
    /// The tenant that the key belongs to.
    pub tenant: TenantId,
    /// The class of the key, as the tenant's policy names it.
    pub class: ClassName,
    /// The type of the key: a secret key authenticates, a publishable key identifies.
    pub key_type: KeyType,
    /// The environment that the key works in.
    pub environment: Environment,
    /// The human-readable name.
    pub name: KeyName,
    /// A longer human-readable description.
    pub description: Option<Description>,
    /// The purpose of the key.
    pub purpose: Option<Purpose>,
    /// The host's own name-value pairs.
    pub metadata: Metadata,
    /// The owner of the key.
    pub owner: Owner,
    /// The roles that restricted the actor who received the secret. An action needs the permission of all of
    /// these roles and of the owner's current role. Empty if the owner received the secret in person, or if
    /// the application created the key for its tenant.
    pub bound: BTreeSet<Role>,
    /// True if the key may manage other keys by its roles. True only if the key's scopes covered everything
    /// that its roles allowed, when the secret was issued or the scopes were widened. Narrowing the roles
    /// later does not make it true.
    pub manages: bool,
    /// The scopes stored with the key. Its class, its bound and its owner's role narrow them further.
    pub scopes: ScopeSet,
    /// The networks from which the key may be used. Empty for any address.
    pub allowlist: AddressAllowlist,
    /// The resource of the host that the key belongs to.
    pub resource: Option<Resource>,
    /// The instant of the first report that the key was found in public. Never cleared.
    pub exposed_at: Option<Timestamp>,
    /// The instant and the author of the creation.
    pub created: Stamp,
    /// The instant and the author of the last change.
    pub updated: Stamp,
    /// The kind of the last change.
    pub last_action: LastAction,
    /// The first instant at which the key no longer works. `None` if the key never expires.
    pub expires_at: Option<Timestamp>,
    /// True if the key is the tenant's legacy key (see [`LegacyRule`](crate::policy::LegacyRule)).
    pub legacy: bool,
    /// The key that this key replaces.
    pub predecessor: Option<Predecessor>,
    /// The key that replaces this key.
    pub succession: Option<Succession>,
    /// The part of the token that people see after creation.
    pub hint: Hint,
    /// A short one-way hash of the token, by which the key can be found.
    pub fingerprint: Fingerprint,
    /// The whole token of a publishable key, so that it can be shown again. `None` for secret keys.
    pub published: Option<String>,
}

/// A key as it is stored: everything except its secret. Dereferences to its [`KeyFacts`].
///
/// Exhaustive on purpose: stores construct and destructure this type.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyRecord {
    /// The fields that may be shown.
    pub facts: KeyFacts,
    /// The prefix of the token. `None` for an imported key.
    pub prefix: Option<TokenPrefix>,
    /// The makers of this key: keys that created, rotated, widened or enabled it, directly or through other
    /// keys. Keys of the same rotation chain count as one maker. At most [`MAKERS_MAX`](Self::MAKERS_MAX).
    pub makers: Vec<Maker>,
    /// The chain of rotations that the key belongs to.
    pub lineage: Lineage,
    /// The state of the key: enabled, disabled or revoked.
    pub state: KeyState,
    /// The digest that a presented secret is compared with.
    pub credential: Credential,
}

impl Deref for KeyRecord {
    type Target = KeyFacts;

    fn deref(&self) -> &KeyFacts {
        &self.facts
    }
}

impl DerefMut for KeyRecord {
    fn deref_mut(&mut self) -> &mut KeyFacts {
        &mut self.facts
    }
}

/// The status of a key at an instant.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Status {
    /// The key works.
    Active,
    /// The key works, and a successor is replacing it.
    Retiring,
    /// The key is refused until it is enabled again.
    Disabled,
    /// The key is refused because it has expired.
    Expired,
    /// The key is refused permanently.
    Revoked,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Active => "active",
            Self::Retiring => "retiring",
            Self::Disabled => "disabled",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        })
    }
}

impl KeyRecord {
    /// The maximum number of makers in a record: 8. A person cannot follow a longer chain of keys that
    /// created keys.
    pub const MAKERS_MAX: usize = 8;

    /// Returns the record with `change` applied.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Returns the key that created this key, if a key did. For a successor, the key that created the first
    /// key of its chain.
    #[must_use]
    pub const fn created_by_key(&self) -> Option<KeyId> {
        self.lineage.created_by
    }

    /// Returns whether `key` made this key, directly or through other keys. If `lineage` is set, any key of
    /// that chain of rotations counts too.
    #[must_use]
    pub fn was_made_by(&self, key: KeyId, lineage: Option<KeyId>) -> bool {
        // The id of a lineage is the id of its first key. A `key` that began a lineage is therefore found by
        // `maker.lineage`, even if it was deleted and its lineage cannot be looked up.
        let is = |maker: &Maker| {
            maker.key == key || maker.lineage == key || lineage == Some(maker.lineage)
        };
        self.makers.iter().any(is)
    }

    /// Returns the status at `now`, from this record alone. An active key can still be refused because of its
    /// owner or tenant, see [`OwnerStatus`](crate::rules::OwnerStatus).
    #[must_use]
    pub fn status(&self, now: Timestamp) -> Status {
        match self.state {
            KeyState::Revoked { .. } => Status::Revoked,
            _ if self.is_expired(now) => Status::Expired,
            KeyState::Disabled(_) => Status::Disabled,
            KeyState::Enabled if self.succession.is_some() => Status::Retiring,
            KeyState::Enabled => Status::Active,
        }
    }

    /// Returns whether the key has expired: `now >= expires_at`.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|end| now >= end)
    }

    /// Returns whether the key could still verify, now or after being enabled: neither revoked nor expired.
    #[must_use]
    pub fn is_live(&self, now: Timestamp) -> bool {
        !matches!(self.status(now), Status::Revoked | Status::Expired)
    }

    /// Returns whether the key is an unused successor: its holder has the secret and never used it.
    #[must_use]
    pub fn awaits_first_use(&self) -> bool {
        self.predecessor
            .as_ref()
            .is_some_and(|old| old.first_used_at.is_none())
    }
}
