//! The stored record of a key, and its status at an instant.
//!
//! Pure. Invariant: a status is derived from the record and the instant, so it is never stale. The rule for
//! expiry is `now >= expires_at`, here and nowhere else (trap 19).

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

/// The type of a key: it authenticates, or it only identifies.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Visibility {
    /// Authenticates. Shown once.
    Secret,
    /// Identifies. May be shown again, and shipped to browsers and apps (rule A2-12).
    Publishable,
}

/// The reason of a revocation.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// The holder no longer has the key (rule Y-05).
    Lost,
    /// Another party may have the key (rule Y-05).
    Compromised,
    /// The key was found in the open.
    Leaked,
    /// Nobody used the key.
    Unused,
    /// The key is not needed any more.
    NoLongerNeeded,
    /// A successor replaced the key.
    Rotated,
    /// The key was an unused successor, and the rotation was cancelled.
    RotationCancelled,
    /// The owner of the key was removed (rule Y-24).
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

/// The reason of a rotation (rule G-13).
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RotationReason {
    /// Regular practice.
    #[default]
    Routine,
    /// Another party may have the old key.
    Compromise,
    /// The old key ends soon.
    ExpiryNear,
    /// An incident: keys are replaced as a precaution.
    Incident,
}

/// The state of a key, which commands change.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub enum KeyState {
    /// Works until it expires.
    Enabled,
    /// Refused until it is enabled again.
    Disabled(Stamp),
    /// Refused permanently.
    Revoked {
        /// The instant and the author of the revocation.
        stamp: Stamp,
        /// The reason of the revocation.
        reason: Reason,
    },
}

/// The algorithm that made a digest from the presented token.
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
    /// A digest that was imported.
    Imported {
        /// The algorithm that made the digest.
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

/// A resource of the host that a key belongs to (rule A2-21).
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Resource {
    /// The kind of the resource, from which the policy derives the class of the key.
    pub kind: ResourceKind,
    /// The host's id of the resource.
    pub id: ResourceId,
}

/// The rotation of a key that is being replaced.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Succession {
    /// The key that replaces this key.
    pub successor: KeyId,
    /// The instant at which the rotation began.
    pub since: Timestamp,
    /// The reason of the rotation.
    pub reason: RotationReason,
    /// The old key's expiry before the rotation, which a cancelled rotation restores.
    pub own_expiry: Option<Timestamp>,
    /// The time that the old key works after the successor's first use. `None` unless the old key waits for
    /// that use.
    #[serde(serialize_with = "in_seconds", rename = "grace_from_first_use_seconds")]
    pub grace_from_first_use: Option<Duration>,
}

/// Serializes a duration as whole seconds in formats for people. Stored bytes keep the fraction.
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
    /// The acting key.
    pub key: KeyId,
    /// The first key of the acting key's chain of rotations.
    pub lineage: KeyId,
}

/// A chain of rotations.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Lineage {
    /// The id of the first key of the chain.
    pub first: KeyId,
    /// The instant at which the first key was created. If another key created it, the beginning of the
    /// creator's chain.
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
    /// Name, description, purpose, metadata, scopes, addresses or expiry changed.
    Updated,
    /// Disabled.
    Disabled,
    /// Enabled again.
    Enabled,
    /// Revoked.
    Revoked,
    /// A successor was created.
    Rotated,
    /// The rotation was cancelled.
    RotationCancelled,
    /// The first use of the key or of its successor was recorded.
    FirstUsed,
    /// The secret was replaced because the response with the first secret was lost.
    Replaced,
    /// The key was reported as leaked. The report was only recorded.
    LeakReported,
    /// The digest was replaced by one under the current pepper.
    Redigested,
}

/// The facts that the record of a key and its public view share. None of them is secret.
///
/// Exhaustive on purpose, for stores to construct and destructure.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct KeyFacts {
    /// The public id of the key.
    pub id: KeyId,
    /// The tenant that the key belongs to.
    pub tenant: TenantId,
    /// The class, in the words of the tenant's policy.
    pub class: ClassName,
    /// Whether the key authenticates or identifies.
    pub visibility: Visibility,
    /// The environment that the key works in.
    pub environment: Environment,
    /// The name for people.
    pub name: KeyName,
    /// A longer text for people.
    pub description: Option<Description>,
    /// The purpose of the key.
    pub purpose: Option<Purpose>,
    /// The host's own name-value pairs.
    pub metadata: Metadata,
    /// The owner of the key.
    pub owner: Owner,
    /// The roles that limited the recipient of the secret. All of these roles, and the owner's live role,
    /// must allow what the key does. Empty if the owner received the secret in person, or if the key belongs
    /// to its tenant and the application made it.
    pub bound: BTreeSet<Role>,
    /// Whether the key may manage keys by its roles. True only if the key reached all that its roles allowed
    /// when its secret was received. Stays false for a narrower key, even if its roles allow less later.
    pub manages: bool,
    /// The scopes of the key, before its class, its bound and its owner narrow them.
    pub scopes: ScopeSet,
    /// The networks from which the key may be used. Empty for any address.
    pub allowlist: AddressAllowlist,
    /// The resource of the host that the key belongs to.
    pub resource: Option<Resource>,
    /// The instant at which the key was first reported as found in the open. Never cleared.
    pub exposed_at: Option<Timestamp>,
    /// The instant and the author of the creation.
    pub created: Stamp,
    /// The instant and the author of the last change.
    pub updated: Stamp,
    /// The kind of the last change (rule A1-05).
    pub last_action: LastAction,
    /// The first instant at which the key no longer works. `None` for never.
    pub expires_at: Option<Timestamp>,
    /// Whether the key is the tenant's legacy key.
    pub legacy: bool,
    /// The key that this key replaces.
    pub predecessor: Option<Predecessor>,
    /// The key that replaces this key.
    pub succession: Option<Succession>,
    /// The part of the token that people see after creation.
    pub hint: Hint,
    /// The one-way mark by which the key is found.
    pub fingerprint: Fingerprint,
    /// The whole token of a publishable key, to be shown again. `None` for secret keys.
    pub published: Option<String>,
}

/// A key as it is stored: everything but its secret. Dereferences to its [`KeyFacts`].
///
/// Exhaustive on purpose, for stores to construct and destructure.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyRecord {
    /// The facts that people may see.
    pub facts: KeyFacts,
    /// The prefix of the token. `None` for an imported key.
    pub prefix: Option<TokenPrefix>,
    /// The keys that made, rotated, widened or enabled this key, and the makers of those keys. At most
    /// [`MAKERS_MAX`](Self::MAKERS_MAX), one for each lineage.
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
    /// Works.
    Active,
    /// Works, next to the successor that replaces it.
    Retiring,
    /// Refused until it is enabled again.
    Disabled,
    /// Refused because it has expired.
    Expired,
    /// Refused permanently.
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
    /// 8, the largest number of makers that a record names. A judgement: a person cannot follow a longer
    /// chain of keys that made keys.
    pub const MAKERS_MAX: usize = 8;

    /// Returns the record after `change`.
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

    /// Returns whether `key`, or any key of the chain `lineage`, made this key, directly or through other
    /// keys.
    #[must_use]
    pub fn was_made_by(&self, key: KeyId, lineage: Option<KeyId>) -> bool {
        // The id of a chain is the id of its first key. Comparing `key` with chains finds the keys that a
        // first key made, even if that key was deleted and its lineage is unknown.
        let is = |maker: &Maker| {
            maker.key == key || maker.lineage == key || lineage == Some(maker.lineage)
        };
        self.makers.iter().any(is)
    }

    /// Returns the status at `now`. The rows of owners and tenants may refuse an active key, see
    /// [`OwnerStatus`](crate::rules::OwnerStatus).
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
