//! Checking: whether a key that was presented may do what it is needed for.
//!
//! Pure. There is one such function, and every way of verifying goes through it (trap 20). The
//! secret is compared first; whatever else there is to say about a key is told only to someone who
//! holds its secret (trap 5).

use std::net::IpAddr;
use std::time::Duration;

use subtle::ConstantTimeEq;

use super::id::KeyId;
use super::invalid::Invalid;
use super::owner::Standing;
use super::policy::{Policy, TenantReach};
use super::reach;
use super::record::{KeyRecord, KeyState, Reason, Visibility};
use super::scope::{Scope, ScopeSet};
use super::secret::Digest;
use super::tenant::TenantId;
use super::text::{ClassName, Environment, PepperId};
use super::time::Timestamp;
use super::token::TokenError;

/// What a key is needed for: every condition that is named must hold.
///
/// # Examples
///
/// ```
/// use keyward::{Environment, Need};
///
/// let need = Need::scope("reports:read").in_environment(Environment::LIVE);
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a need checks nothing by itself"]
pub struct Need {
    scopes: ScopeSet,
    any_of: ScopeSet,
    classes: Vec<ClassName>,
    beside: Vec<ClassName>,
    environment: Option<Environment>,
    tenant: Option<TenantId>,
    address: Option<IpAddr>,
    publishable: bool,
    invalid: Option<Invalid>,
}

impl Need {
    /// Nothing but a secret key that verifies. Says nothing of what the key may do: ask
    /// [`Grant::allows`](crate::Grant::allows) before acting.
    pub fn any() -> Self {
        Self::default()
    }

    /// This scope. A malformed scope is kept as it is and makes every verification fail.
    pub fn scope<S>(scope: S) -> Self
    where
        S: TryInto<Scope>,
        S::Error: Into<Invalid>,
    {
        Self::any().and_scope(scope)
    }

    /// This scope too.
    pub fn and_scope<S>(mut self, scope: S) -> Self
    where
        S: TryInto<Scope>,
        S::Error: Into<Invalid>,
    {
        match scope.try_into() {
            Ok(scope) => {
                let all = self.scopes.iter().cloned().chain([scope]);
                match ScopeSet::new(all) {
                    Ok(all) => self.scopes = all,
                    Err(invalid) => self.invalid = Some(invalid),
                }
            }
            Err(invalid) => self.invalid = Some(invalid.into()),
        }
        self
    }

    /// At least one of these scopes. An empty set can never be met.
    pub fn any_scope_of(mut self, scopes: ScopeSet) -> Self {
        if scopes.is_empty() {
            let expected = "at least one scope";
            let problem = super::invalid::Problem::Form { expected };
            self.invalid = Some(Invalid::new("needed scopes", problem));
        }
        self.any_of = scopes;
        self
    }

    /// A key of this class, or of any other that is named (rule A2-31).
    pub fn of_class(mut self, class: ClassName) -> Self {
        self.classes.push(class);
        self
    }

    /// In a pair, a publishable key of this class beside the secret one, or of any other that is
    /// named. Without any, every publishable key of the same tenant and environment will do.
    pub fn beside_class(mut self, class: ClassName) -> Self {
        self.beside.push(class);
        self
    }

    /// A key for this environment (rule G-36).
    pub fn in_environment(mut self, environment: Environment) -> Self {
        self.environment = Some(environment);
        self
    }

    /// A key that reaches this tenant: its own, or one below it if its class reaches that far.
    pub fn for_tenant(mut self, tenant: TenantId) -> Self {
        self.tenant = Some(tenant);
        self
    }

    /// A request from this address, as the host knows it from the socket or a trusted proxy.
    pub fn from_address(mut self, address: IpAddr) -> Self {
        self.address = Some(address);
        self
    }

    /// Lets publishable keys pass as well, which anybody may hold.
    pub fn or_publishable(mut self) -> Self {
        self.publishable = true;
        self
    }

    /// What the publishable half of a pair must meet, where the secret half must meet this.
    pub(crate) fn of_publishable_half(&self) -> Self {
        let classes = self.beside.clone();
        let address = self.address;
        Self {
            classes,
            address,
            publishable: true,
            ..Self::default()
        }
    }

    /// What is wrong with the need itself, if anything.
    #[must_use]
    pub const fn invalid(&self) -> Option<&Invalid> {
        self.invalid.as_ref()
    }
}

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

/// What was presented, after hashing: its digest, and the prefix of its token.
#[derive(Clone, Copy, Debug)]
pub struct Presented<'a> {
    /// The digest of what was presented, made as the record's credential says.
    pub digest: &'a Digest,
    /// The prefix of the token; `None` for what is no token of ours.
    pub prefix: Option<&'a str>,
}

/// Whether the key of `record` was presented, works at `now`, and meets `need`.
///
/// # Errors
///
/// [`Rejection`]: [`WrongSecret`](Rejection::WrongSecret) before anything else is looked at.
pub fn check(
    record: &KeyRecord,
    presented: Presented<'_>,
    policy: &Policy,
    standing: &Standing,
    need: &Need,
    now: Timestamp,
) -> Result<(), Rejection> {
    let (super::record::Credential::Peppered { digest, .. }
    | super::record::Credential::Imported { digest, .. }) = &record.credential;
    let same = digest.ct_eq(presented.digest);
    if !bool::from(same) || presented.prefix != record.prefix.as_ref().map(|p| p.as_str()) {
        return Err(Rejection::WrongSecret);
    }
    check_alive(record, standing, now)?;
    check_need(record, policy, standing, need)
}

/// Whether a key works at `now`, whatever it is needed for.
fn check_alive(record: &KeyRecord, standing: &Standing, now: Timestamp) -> Result<(), Rejection> {
    let key = record.id;
    match &record.state {
        KeyState::Revoked { stamp, reason } => {
            return Err(Rejection::Revoked {
                key,
                at: stamp.at,
                reason: *reason,
            });
        }
        KeyState::Disabled(_) if !record.is_expired(now) => {
            return Err(Rejection::Disabled { key });
        }
        KeyState::Disabled(_) | KeyState::Enabled => {}
    }
    match record.expires_at {
        Some(at) if record.is_expired(now) => return Err(Rejection::Expired { key, at }),
        _ => {}
    }
    if standing.unreadable {
        return Err(Rejection::Corrupt { key });
    }
    if standing.closed {
        return Err(Rejection::TenantClosed { key });
    }
    if standing.refuses_owner(record.created.at) {
        return Err(Rejection::OwnerRemoved { key });
    }
    Ok(())
}

fn check_need(
    record: &KeyRecord,
    policy: &Policy,
    standing: &Standing,
    need: &Need,
) -> Result<(), Rejection> {
    let key = record.id;
    let Need {
        scopes,
        any_of,
        classes,
        beside: _,
        environment,
        tenant,
        address,
        publishable,
        invalid,
    } = need;
    if let Some(invalid) = invalid {
        return Err(Rejection::Need(invalid.clone()));
    }
    let unknown = || Rejection::UnknownClass {
        class: record.class.clone(),
    };
    let class = policy.class(&record.class).ok_or_else(unknown)?;
    if record.visibility == Visibility::Publishable && !publishable {
        return Err(Rejection::Publishable { key });
    }
    if !classes.is_empty() && !classes.contains(&record.class) {
        return Err(Rejection::WrongClass {
            key,
            class: record.class.clone(),
        });
    }
    if environment
        .as_ref()
        .is_some_and(|needed| *needed != record.environment)
    {
        let environment = record.environment.clone();
        return Err(Rejection::WrongEnvironment { key, environment });
    }
    let reaches_tenant = |needed: &TenantId| match class.tenant_reach {
        TenantReach::Own => record.tenant == *needed,
        TenantReach::Below => record.tenant.contains(needed),
    };
    if !tenant.as_ref().is_none_or(reaches_tenant) {
        return Err(Rejection::WrongTenant { key });
    }
    if !record.allowlist.allows(*address) {
        return Err(Rejection::AddressNotAllowed { key });
    }
    let reaches = |scope: &&Scope| reach::reaches(record, policy, class, standing, scope);
    if let Some(scope) = scopes.iter().find(|scope| !reaches(scope)) {
        return Err(Rejection::MissingScope {
            key,
            scope: scope.clone(),
        });
    }
    match any_of.iter().next() {
        Some(scope) if !any_of.iter().any(|scope| reaches(&scope)) => {
            Err(Rejection::MissingScope {
                key,
                scope: scope.clone(),
            })
        }
        _ => Ok(()),
    }
}
