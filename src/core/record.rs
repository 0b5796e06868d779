//! A key as it is stored, and what it is at an instant.
//!
//! Pure. Invariant: a status is derived from the record and the instant, so it is never stale; and
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

/// Whether a key authenticates or only identifies.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Visibility {
    /// Authenticates; shown once.
    Secret,
    /// Identifies; may be shown again, and shipped to browsers and apps (rule A2-12).
    Publishable,
}

/// Why a key was revoked.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// Its holder no longer has it (rule Y-05).
    Lost,
    /// Somebody else may have it (rule Y-05).
    Compromised,
    /// It was found in the open.
    Leaked,
    /// Nobody used it.
    Unused,
    /// What it was for is over.
    NoLongerNeeded,
    /// A successor took its place.
    Rotated,
    /// It was an unused successor, and the rotation was called off.
    RotationCancelled,
    /// Its owner was removed (rule Y-24).
    OwnerRemoved,
    /// Its tenant was closed.
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

/// Why a key is replaced (rule G-13).
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RotationReason {
    /// Regular practice.
    #[default]
    Routine,
    /// Somebody else may have the old key.
    Compromise,
    /// The old key ends soon.
    ExpiryNear,
    /// Something happened, and keys are renewed to be safe.
    Incident,
}

/// What a command did to a key, for `enabled`, `disabled` and `revoked` keys.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub enum KeyState {
    /// Works, as long as it has not expired.
    Enabled,
    /// Refused until it is enabled again.
    Disabled(Stamp),
    /// Refused for ever.
    Revoked {
        /// When and by whom.
        stamp: Stamp,
        /// Why.
        reason: Reason,
    },
}

/// How a digest was made of what its holder presents.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ImportScheme {
    /// SHA-256 of the whole token.
    Sha256,
}

/// What a presented secret is compared with.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Credential {
    /// HMAC-SHA-256 of `id ‖ secret` under a pepper.
    Peppered {
        /// Which pepper.
        pepper: PepperId,
        /// The digest.
        digest: Digest,
    },
    /// A digest that came from elsewhere.
    Imported {
        /// How it was made.
        scheme: ImportScheme,
        /// The digest. Unique across tenants, deleted keys included.
        digest: Digest,
    },
}

impl Credential {
    /// The digest that a presented secret is compared with.
    #[must_use]
    pub const fn digest(&self) -> &Digest {
        match self {
            Self::Peppered { digest, .. } | Self::Imported { digest, .. } => digest,
        }
    }

    /// The digest of an imported key, by which it is found.
    #[must_use]
    pub const fn imported(&self) -> Option<&Digest> {
        match self {
            Self::Imported { digest, .. } => Some(digest),
            Self::Peppered { .. } => None,
        }
    }
}

/// What a key belongs to in the host's world (rule A2-21).
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Resource {
    /// Its kind, from which the policy derives the class of its key.
    pub kind: ResourceKind,
    /// The host's id of it.
    pub id: ResourceId,
}

/// On a key that is being replaced: by which key, and since when.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Succession {
    /// The key that takes its place.
    pub successor: KeyId,
    /// When the rotation began.
    pub since: Timestamp,
    /// Why.
    pub reason: RotationReason,
    /// The old key's own expiry before the rotation, to which a cancelled rotation returns.
    pub own_expiry: Option<Timestamp>,
    /// The time that the old key works after the successor's first use. `None` unless the old key waits for
    /// that use.
    #[serde(serialize_with = "in_seconds", rename = "grace_from_first_use_seconds")]
    pub grace_from_first_use: Option<Duration>,
}

/// Writes whole seconds in formats for people. Stored bytes keep the fraction.
fn in_seconds<S: Serializer>(grace: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    match to.is_human_readable() {
        true => grace.map(|grace| grace.as_secs()).serialize(to),
        false => grace.serialize(to),
    }
}

/// On a key that took another's place: which one, and whether it was used yet.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Predecessor {
    /// The key it replaces.
    pub key: KeyId,
    /// When this key was first used, once that was noticed.
    pub first_used_at: Option<Timestamp>,
}

/// A key that made another one, or received its secret by rotating it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Maker {
    /// The key that acted.
    pub key: KeyId,
    /// The first key of its chain of rotations.
    pub lineage: KeyId,
}

/// A chain of rotations.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Lineage {
    /// The id of its first key.
    pub first: KeyId,
    /// The instant at which that key was created; if a key made it, the beginning of that one's chain.
    pub since: Timestamp,
    /// The key that created that key, if a key did.
    pub created_by: Option<KeyId>,
}

/// What was last done to a key.
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
    /// Its rotation was called off.
    RotationCancelled,
    /// Its first use was noticed, or its successor's.
    FirstUsed,
    /// Its secret was replaced because the answer that held it was lost.
    Replaced,
    /// It was reported as leaked, and only recorded.
    LeakReported,
    /// Its digest was renewed under the current pepper.
    Redigested,
}

/// What the record of a key and its public view have in common: nothing in it is secret.
///
/// Exhaustive on purpose, for stores to construct and destructure.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct KeyFacts {
    /// The public id.
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
    /// The purpose.
    pub purpose: Option<Purpose>,
    /// The host's own name-value pairs.
    pub metadata: Metadata,
    /// The owner.
    pub owner: Owner,
    /// The roles that limited the recipient of the secret: all of them must allow what the key does,
    /// beside its owner's live role. Empty if the owner received the secret in person, or if the key
    /// belongs to its tenant and the application made it.
    pub bound: BTreeSet<Role>,
    /// Whether the key reached all that its roles allowed when its secret was received, so that it may
    /// manage keys by them. A key that was narrow then never does, however little its roles allow later.
    pub manages: bool,
    /// The scopes, before class, bound and owner narrow them.
    pub scopes: ScopeSet,
    /// The networks that the key works from. Empty for anywhere.
    pub allowlist: AddressAllowlist,
    /// The resource that the key belongs to, in the host's world.
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
    /// The part of the token that people see.
    pub hint: Hint,
    /// The one-way mark that finds the key.
    pub fingerprint: Fingerprint,
    /// The whole token of a publishable key, to be shown again. `None` for secret keys.
    pub published: Option<String>,
}

/// A key as it is stored: everything but its secret. Reads as its [`KeyFacts`].
///
/// Exhaustive on purpose, for stores to construct and destructure.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyRecord {
    /// The facts that people may see.
    pub facts: KeyFacts,
    /// The prefix of the token. `None` for an imported key.
    pub prefix: Option<TokenPrefix>,
    /// The keys that made this key, rotated it, widened it or enabled it, with the keys that made those.
    /// At most [`MAKERS_MAX`](Self::MAKERS_MAX), one for each lineage.
    pub makers: Vec<Maker>,
    /// The chain of rotations that the key belongs to.
    pub lineage: Lineage,
    /// Enabled, disabled or revoked.
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

/// What a key is at an instant.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Status {
    /// Works.
    Active,
    /// Works, beside the successor that replaces it.
    Retiring,
    /// Refused until it is enabled again.
    Disabled,
    /// Refused because its time has passed.
    Expired,
    /// Refused for ever.
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
    /// The most makers that a record names: 8. A judgement: a key that a key made, eight times over, is
    /// no longer something that a person can follow.
    pub const MAKERS_MAX: usize = 8;

    /// Returns the record after `change`.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// The key that created it, if a key did; for a successor, the one that created the first key of its
    /// chain.
    #[must_use]
    pub const fn created_by_key(&self) -> Option<KeyId> {
        self.lineage.created_by
    }

    /// Returns whether `key` made it, or a key of the lineage `lineage` did, directly or through other keys.
    #[must_use]
    pub fn was_made_by(&self, key: KeyId, lineage: Option<KeyId>) -> bool {
        // The id of a lineage is its first key's, which may be deleted and so not known any more.
        let is = |maker: &Maker| {
            maker.key == key || maker.lineage == key || lineage == Some(maker.lineage)
        };
        self.makers.iter().any(is)
    }

    /// What the key is at `now`. Owners and tenants may refuse it all the same; see
    /// [`Standing`](crate::rules::Standing).
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

    /// Whether its time has passed: `now >= expires_at`.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|end| now >= end)
    }

    /// Whether it could still verify, now or after being enabled: neither revoked nor expired.
    #[must_use]
    pub fn is_live(&self, now: Timestamp) -> bool {
        !matches!(self.status(now), Status::Revoked | Status::Expired)
    }

    /// Whether its secret is in the hands of a holder who never used it: an unused successor.
    #[must_use]
    pub fn awaits_first_use(&self) -> bool {
        self.predecessor
            .as_ref()
            .is_some_and(|old| old.first_used_at.is_none())
    }
}
