//! Why a presented key was refused, and who may be told.

use std::time::Duration;

use super::id::KeyId;
use super::invalid::Invalid;
use super::record::Reason;
use super::scope::Scope;
use super::text::{ClassName, Environment, PepperId};
use super::time::Timestamp;
use super::token::TokenError;

/// Why a presented key was refused.
///
/// [`Display`](std::fmt::Display) is for the host's own logs; what a client may be told is
/// [`public_message`](Self::public_message).
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejection {
    /// It is no key of ours. Found before anything was hashed or looked up.
    #[error("malformed key: {0}")]
    Malformed(#[from] TokenError),
    /// No key has this id here; [`verify_or_fetch`](crate::Keyward::verify_or_fetch) asks the store.
    #[error("unknown key")]
    Unknown,
    /// The secret is not this key's.
    #[error("wrong secret")]
    WrongSecret,
    /// The key was revoked.
    #[error("key was revoked at {at}: {reason}")]
    Revoked {
        /// Which key.
        key: KeyId,
        /// When.
        at: Timestamp,
        /// Why.
        reason: Reason,
    },
    /// The key has expired.
    #[error("key expired at {at}")]
    Expired {
        /// Which key.
        key: KeyId,
        /// When.
        at: Timestamp,
    },
    /// The key's tenant has a commit from the future by which the key has ended, and no other clock decides
    /// whether that commit or this process's clock is wrong.
    #[error("clock says {now}, and the key's tenant has a commit of {floor}")]
    ClockUnsure {
        /// The key.
        key: KeyId,
        /// The time of this process.
        now: Timestamp,
        /// The instant of the tenant's newest commit.
        floor: Timestamp,
    },
    /// The key is disabled.
    #[error("key is disabled")]
    Disabled {
        /// Which key.
        key: KeyId,
    },
    /// The key's owner was removed.
    #[error("owner of the key was removed")]
    OwnerRemoved {
        /// Which key.
        key: KeyId,
    },
    /// The key's tenant, or one above it, was closed.
    #[error("tenant of the key was closed")]
    TenantClosed {
        /// Which key.
        key: KeyId,
    },
    /// A publishable key was presented where a secret one is needed.
    #[error("publishable key where a secret one is needed")]
    Publishable {
        /// Which key.
        key: KeyId,
    },
    /// The key is of another kind.
    #[error("key of class {class} where another is needed")]
    WrongClass {
        /// Which key.
        key: KeyId,
        /// Its class.
        class: ClassName,
    },
    /// The key is for another environment.
    #[error("key for environment {environment} where another is needed")]
    WrongEnvironment {
        /// Which key.
        key: KeyId,
        /// Its environment.
        environment: Environment,
    },
    /// The key does not reach the tenant.
    #[error("key does not reach the tenant")]
    WrongTenant {
        /// Which key.
        key: KeyId,
    },
    /// The key may not be used from the request's address, or the address is not known.
    #[error("key may not be used from this address")]
    AddressNotAllowed {
        /// Which key.
        key: KeyId,
    },
    /// The key lacks a scope.
    #[error("key lacks scope {scope}")]
    MissingScope {
        /// Which key.
        key: KeyId,
        /// The scope; of several that would do, the first.
        scope: Scope,
    },
    /// The two halves of a pair do not belong together (rule A2-15).
    #[error("the two keys do not belong together")]
    PairMismatch,
    /// The verifier could not confirm for too long that it is up to date. An outage, not a bad key.
    #[error("not confirmed for {age:?}, at most {bound:?} is allowed")]
    Stale {
        /// How long ago the verifier last confirmed.
        age: Duration,
        /// The staleness bound.
        bound: Duration,
    },
    /// Keys of this class must be verified against the store:
    /// [`verify_fresh`](crate::Keyward::verify_fresh).
    #[error("keys of this class are verified against the store")]
    NeedsFresh,
    /// The store did not answer, or too many ask it at once. An outage, not a bad key.
    #[error("store is unavailable")]
    StoreUnavailable,
    /// The key's digest stands under a pepper that the ring does not have: an operator's fault.
    #[error("pepper {pepper} is not in the ring")]
    UnknownPepper {
        /// The pepper's id.
        pepper: PepperId,
    },
    /// The policy has no such class: an operator's fault.
    #[error("policy has no class {class}")]
    UnknownClass {
        /// The class.
        class: ClassName,
    },
    /// The stored bytes of the key, or of its owner's or tenant's row, failed their checksum.
    #[error("stored bytes about key {key} are corrupt")]
    Corrupt {
        /// Which key.
        key: KeyId,
    },
    /// What is needed is malformed: a fault in the calling code.
    #[error("malformed need: {0}")]
    Need(Invalid),
}

/// What a rejection means to the client, as far as it may know.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RejectionKind {
    /// The key does not authenticate: 401.
    Invalid,
    /// The key authenticates and may not do this: 403.
    Forbidden,
    /// The service cannot tell now: 503. Never the key's fault.
    Unavailable,
}

impl Rejection {
    /// What it means to the client.
    #[must_use]
    pub const fn kind(&self) -> RejectionKind {
        match self {
            Self::Malformed(_)
            | Self::Unknown
            | Self::WrongSecret
            | Self::Revoked { .. }
            | Self::Expired { .. }
            | Self::Disabled { .. }
            | Self::OwnerRemoved { .. }
            | Self::TenantClosed { .. }
            | Self::PairMismatch => RejectionKind::Invalid,
            Self::Publishable { .. }
            | Self::WrongClass { .. }
            | Self::WrongEnvironment { .. }
            | Self::WrongTenant { .. }
            | Self::AddressNotAllowed { .. }
            | Self::MissingScope { .. } => RejectionKind::Forbidden,
            Self::Stale { .. }
            | Self::ClockUnsure { .. }
            | Self::NeedsFresh
            | Self::StoreUnavailable
            | Self::UnknownPepper { .. }
            | Self::UnknownClass { .. }
            | Self::Corrupt { .. }
            | Self::Need(_) => RejectionKind::Unavailable,
        }
    }

    /// The key, if its secret was presented: only then is one named.
    #[must_use]
    pub const fn key(&self) -> Option<KeyId> {
        match self {
            Self::Revoked { key, .. }
            | Self::Expired { key, .. }
            | Self::ClockUnsure { key, .. }
            | Self::Disabled { key }
            | Self::OwnerRemoved { key }
            | Self::TenantClosed { key }
            | Self::Publishable { key }
            | Self::WrongClass { key, .. }
            | Self::WrongEnvironment { key, .. }
            | Self::WrongTenant { key }
            | Self::AddressNotAllowed { key }
            | Self::MissingScope { key, .. } => Some(*key),
            _ => None,
        }
    }

    /// What a client may be told: one text for all keys that do not authenticate.
    #[must_use]
    pub fn public_message(&self) -> String {
        match self.kind() {
            RejectionKind::Invalid => "invalid API key".to_owned(),
            RejectionKind::Forbidden => self.to_string(),
            RejectionKind::Unavailable => "API keys cannot be verified at the moment".to_owned(),
        }
    }
}
