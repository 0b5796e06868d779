//! Verification errors: the reasons for refusing a presented key, and the message that a client may see.

use std::net::IpAddr;
use std::time::Duration;

use super::id::KeyId;
use super::kind::ErrorKind;
use super::record::Reason;
use super::scope::Scope;
use super::tenant::TenantId;
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
    #[error("key does not reach tenant {tenant}")]
    WrongTenant {
        /// The id of the refused key.
        key: KeyId,
        /// The required tenant.
        tenant: TenantId,
    },
    /// The key may not be used from the request's address.
    #[error("key may not be used from address {address}")]
    AddressNotAllowed {
        /// The id of the refused key.
        key: KeyId,
        /// The client's address.
        address: IpAddr,
    },
    /// The key may be used from certain addresses only, and the verifier does not know the client's address.
    /// The application forgot [`Need::from_address`](crate::Need::from_address), or could not determine the
    /// address.
    #[error(
        "key has an address allowlist and the client's address is unknown: state it in the need"
    )]
    AddressUnknown {
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
    #[error("not confirmed{}, at most {bound:?} is allowed", for_time(*age))]
    Stale {
        /// The time since the replica was last confirmed to be up to date. [`Duration::MAX`] if it is not confirmed
        /// at all.
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

fn for_time(age: Duration) -> String {
    match age {
        Duration::MAX => String::new(),
        age => format!(" for {age:?}"),
    }
}

impl VerifyError {
    /// Returns the stable code of the reason, for logs and metrics. Show a client only the
    /// [`public_code`](Self::public_code): the code reveals whether a key exists, and how it ended.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "key-malformed",
            Self::Unknown => "key-unknown",
            Self::WrongSecret => "key-wrong-secret",
            Self::Revoked { .. } => "key-revoked",
            Self::Expired { .. } => "key-expired",
            Self::ClockUnsure { .. } => "clock-unsure",
            Self::Disabled { .. } => "key-disabled",
            Self::OwnerRemoved { .. } => "key-owner-removed",
            Self::TenantClosed { .. } => "key-tenant-closed",
            Self::Publishable { .. } => "key-publishable",
            Self::WrongClass { .. } => "key-wrong-class",
            Self::WrongEnvironment { .. } => "key-wrong-environment",
            Self::WrongTenant { .. } => "key-wrong-tenant",
            Self::AddressNotAllowed { .. } => "key-address-not-allowed",
            Self::AddressUnknown { .. } => "key-address-unknown",
            Self::MissingScope { .. } => "key-missing-scope",
            Self::PairMismatch => "key-pair-mismatch",
            Self::Stale { .. } => "node-stale",
            Self::NeedsFresh => "key-needs-fresh",
            Self::StoreUnavailable => "key-not-read",
            Self::Busy => "lookups-limited",
            Self::UnknownPepper { .. } => "key-pepper-unknown",
            Self::UnknownClass { .. } => "key-class-unknown",
            Self::Corrupt { .. } => "key-corrupt",
        }
    }

    /// Returns the code that a client may see: `invalid-key`, `insufficient-scope`, `key-not-allowed`,
    /// `rate-limited` or `unavailable`. All keys that do not authenticate get the same code.
    #[must_use]
    pub const fn public_code(&self) -> &'static str {
        match self.kind() {
            ErrorKind::Unauthenticated => "invalid-key",
            ErrorKind::Forbidden => match self {
                Self::MissingScope { .. } => "insufficient-scope",
                _ => "key-not-allowed",
            },
            ErrorKind::LimitReached => "rate-limited",
            ErrorKind::Unavailable => "unavailable",
            ErrorKind::Invalid
            | ErrorKind::NotFound
            | ErrorKind::Conflict
            | ErrorKind::Internal => "internal",
        }
    }

    /// Returns the kind of this error: [`Unauthenticated`](ErrorKind::Unauthenticated),
    /// [`Forbidden`](ErrorKind::Forbidden), [`Unavailable`](ErrorKind::Unavailable) or
    /// [`LimitReached`](ErrorKind::LimitReached). If the service cannot decide, the kind is `Unavailable`, whatever the
    /// cause: the key may be valid.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Malformed(_)
            | Self::Unknown
            | Self::WrongSecret
            | Self::Revoked { .. }
            | Self::Expired { .. }
            | Self::Disabled { .. }
            | Self::OwnerRemoved { .. }
            | Self::TenantClosed { .. }
            | Self::PairMismatch => ErrorKind::Unauthenticated,
            Self::Publishable { .. }
            | Self::WrongClass { .. }
            | Self::WrongEnvironment { .. }
            | Self::WrongTenant { .. }
            | Self::AddressNotAllowed { .. }
            | Self::AddressUnknown { .. }
            | Self::MissingScope { .. } => ErrorKind::Forbidden,
            Self::Stale { .. }
            | Self::ClockUnsure { .. }
            | Self::NeedsFresh
            | Self::StoreUnavailable
            | Self::UnknownPepper { .. }
            | Self::UnknownClass { .. }
            | Self::Corrupt { .. } => ErrorKind::Unavailable,
            Self::Busy => ErrorKind::LimitReached,
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
            | Self::WrongTenant { key, .. }
            | Self::AddressNotAllowed { key, .. }
            | Self::AddressUnknown { key }
            | Self::MissingScope { key, .. } => Some(*key),
            _ => None,
        }
    }

    /// Returns a message that is safe to show to a client. All keys that do not authenticate get the same
    /// text. The message repeats no address and no tenant of the request.
    #[must_use]
    pub fn public_message(&self) -> String {
        match self {
            Self::WrongTenant { .. } => return "key does not reach the tenant".to_owned(),
            Self::AddressNotAllowed { .. } | Self::AddressUnknown { .. } => {
                return "key may not be used from this address".to_owned();
            }
            _ => {}
        }
        match self.kind() {
            ErrorKind::Unauthenticated => "invalid API key".to_owned(),
            ErrorKind::Forbidden => self.to_string(),
            ErrorKind::LimitReached => "too many requests".to_owned(),
            ErrorKind::Unavailable
            | ErrorKind::Invalid
            | ErrorKind::NotFound
            | ErrorKind::Conflict
            | ErrorKind::Internal => "API keys cannot be verified at the moment".to_owned(),
        }
    }
}
