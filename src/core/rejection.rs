//! Verification errors: the reasons for refusing a presented key, and the message that a client may see.

use std::time::Duration;

use super::id::KeyId;
use super::record::Reason;
use super::scope::Scope;
use super::text::{ClassName, Environment, PepperId};
use super::time::Timestamp;
use super::token::TokenError;

/// The reason why a presented key was refused.
///
/// [`Display`](std::fmt::Display) is for the host's own logs. Show a client only
/// [`public_message`](Self::public_message).
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The text is not a well-formed token. Detected before anything is hashed or looked up.
    #[error(transparent)]
    Malformed(#[from] TokenError),
    /// This node knows no key with this id. [`verify_or_fetch`](crate::Keyward::verify_or_fetch) also looks
    /// in the store.
    #[error("unknown key")]
    Unknown,
    /// The secret does not match the key.
    #[error("wrong secret")]
    WrongSecret,
    /// The key was revoked.
    #[error("key was revoked at {at}: {reason}")]
    Revoked {
        /// The id of the refused key.
        key: KeyId,
        /// The time of the revocation.
        at: Timestamp,
        /// The reason for the revocation.
        reason: Reason,
    },
    /// The key has expired.
    #[error("key expired at {at}")]
    Expired {
        /// The id of the refused key.
        key: KeyId,
        /// The time at which the key expired.
        at: Timestamp,
    },
    /// This process's clock says that the key has not expired, but its tenant has a commit later than the
    /// key's expiry. No other clock confirms either time.
    #[error("clock says {now}, and the key's tenant has a commit of {floor}")]
    ClockUnsure {
        /// The id of the refused key.
        key: KeyId,
        /// The current time according to this process.
        now: Timestamp,
        /// The instant of the tenant's newest commit.
        floor: Timestamp,
    },
    /// The key is disabled.
    #[error("key is disabled")]
    Disabled {
        /// The id of the refused key.
        key: KeyId,
    },
    /// The key's owner was removed.
    #[error("owner of the key was removed")]
    OwnerRemoved {
        /// The id of the refused key.
        key: KeyId,
    },
    /// The key's tenant, or an ancestor of it, was closed.
    #[error("tenant of the key was closed")]
    TenantClosed {
        /// The id of the refused key.
        key: KeyId,
    },
    /// A publishable key was presented where a secret key is needed.
    #[error("publishable key where a secret one is needed")]
    Publishable {
        /// The id of the refused key.
        key: KeyId,
    },
    /// The request needs a key of another class.
    #[error("key of class {class} where another is needed")]
    WrongClass {
        /// The id of the refused key.
        key: KeyId,
        /// The key's class.
        class: ClassName,
    },
    /// The request needs a key for another environment.
    #[error("key for environment {environment} where another is needed")]
    WrongEnvironment {
        /// The id of the refused key.
        key: KeyId,
        /// The key's environment.
        environment: Environment,
    },
    /// The key does not reach the required tenant.
    #[error("key does not reach the tenant")]
    WrongTenant {
        /// The id of the refused key.
        key: KeyId,
    },
    /// The key may not be used from the request's address, or the address is unknown.
    #[error("key may not be used from this address")]
    AddressNotAllowed {
        /// The id of the refused key.
        key: KeyId,
    },
    /// The key lacks a scope.
    #[error("key lacks scope {scope}")]
    MissingScope {
        /// The id of the refused key.
        key: KeyId,
        /// The missing scope. If any of several scopes would suffice, the first of them.
        scope: Scope,
    },
    /// The two keys that were presented as a pair do not belong together.
    #[error("the two keys do not belong together")]
    PairMismatch,
    /// The verifier has not synced within its staleness bound. The cause is an outage, not the key.
    #[error("not confirmed for {age:?}, at most {bound:?} is allowed")]
    Stale {
        /// The time since the replica was last confirmed to be up to date.
        age: Duration,
        /// The staleness bound.
        bound: Duration,
    },
    /// Keys of this class must be verified against the store, with
    /// [`verify_fresh`](crate::Keyward::verify_fresh).
    #[error("keys of this class are verified against the store")]
    NeedsFresh,
    /// The store did not answer in time. The cause is an outage, not the key.
    #[error("store is unavailable")]
    StoreUnavailable,
    /// Too many keys that this node does not know were presented in a short time, so this key was not looked up
    /// in the store. It may be valid. During such a flood, a wrong secret of a known key is refused in the same
    /// way, so that the refusal does not reveal which keys exist.
    #[error("too many unknown keys were presented")]
    Busy,
    /// The ring lacks the pepper of the key's digest, which is a configuration error.
    #[error("pepper {pepper} is not in the ring")]
    UnknownPepper {
        /// The pepper's id.
        pepper: PepperId,
    },
    /// The policy lacks the key's class, which is a configuration error.
    #[error("policy has no class {class}")]
    UnknownClass {
        /// The class of the key.
        class: ClassName,
    },
    /// The stored bytes of the key, or of its owner's or tenant's row, failed their checksum.
    #[error("stored bytes about key {key} are corrupt")]
    Corrupt {
        /// The id of the refused key.
        key: KeyId,
    },
}

/// The category of a [`VerifyError`], which determines the HTTP status.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum VerifyErrorKind {
    /// The key does not authenticate: 401.
    Invalid,
    /// The key authenticates, but may not be used for this request: 403.
    Forbidden,
    /// The service cannot decide at the moment: 503. The key may be valid.
    Unavailable,
    /// The service limits how many unknown keys it looks up: 429. The key may be valid.
    Busy,
}

impl VerifyError {
    /// Returns the category of this error.
    #[must_use]
    pub const fn kind(&self) -> VerifyErrorKind {
        match self {
            Self::Malformed(_)
            | Self::Unknown
            | Self::WrongSecret
            | Self::Revoked { .. }
            | Self::Expired { .. }
            | Self::Disabled { .. }
            | Self::OwnerRemoved { .. }
            | Self::TenantClosed { .. }
            | Self::PairMismatch => VerifyErrorKind::Invalid,
            Self::Publishable { .. }
            | Self::WrongClass { .. }
            | Self::WrongEnvironment { .. }
            | Self::WrongTenant { .. }
            | Self::AddressNotAllowed { .. }
            | Self::MissingScope { .. } => VerifyErrorKind::Forbidden,
            Self::Stale { .. }
            | Self::ClockUnsure { .. }
            | Self::NeedsFresh
            | Self::StoreUnavailable
            | Self::UnknownPepper { .. }
            | Self::UnknownClass { .. }
            | Self::Corrupt { .. } => VerifyErrorKind::Unavailable,
            Self::Busy => VerifyErrorKind::Busy,
        }
    }

    /// Returns the id of the refused key if its secret was presented, or else `None`.
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

    /// Returns a message that is safe to show to a client. All keys that do not authenticate get the same
    /// text.
    #[must_use]
    pub fn public_message(&self) -> String {
        match self.kind() {
            VerifyErrorKind::Invalid => "invalid API key".to_owned(),
            VerifyErrorKind::Forbidden => self.to_string(),
            VerifyErrorKind::Unavailable => "API keys cannot be verified at the moment".to_owned(),
            VerifyErrorKind::Busy => "too many requests".to_owned(),
        }
    }
}
