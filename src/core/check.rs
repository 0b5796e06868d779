//! The check of a presented key against a need.
//!
//! Pure: no I/O and no clock. Every way of verifying uses `check_subject`, so none omits a check. The
//! function compares the secret first, so that only a holder of the secret learns any other reason.
//!
//! The verifier skips it for a key only if an equal key has passed it, and [`depends_on_kind_alone`] holds for both.

use std::net::IpAddr;

use subtle::{Choice, ConstantTimeEq};

use super::address::AddressAllowlist;
use super::conditions::Conditions;
use super::id::KeyId;
use super::owner::OwnerStatus;
use super::policy::{KeyClass, Policy};
use super::reach::{self, Bounds};
use super::record::{KeyRecord, KeyType};
use super::rejection::VerifyError;
use super::scope::Scope;
use super::secret::Digest;
use super::subject::{KeyOwner, KeyToVerify, KeyTraits, Lifecycle, LifecyclePhase};
use super::time::Timestamp;

/// A presented key after hashing: its digest, and the prefix of its token.
#[derive(Clone, Copy, Debug)]
pub struct Presented<'a> {
    /// The digest of the presented text, made with the algorithm of the record's credential.
    pub digest: &'a Digest,
    /// The prefix of the token; `None` for text that is not a token.
    pub prefix: Option<&'a str>,
}

/// Checks that the key of `record` was presented, works at `now`, and meets the conditions of a need.
pub(crate) fn check_record(
    record: &KeyRecord,
    presented: Presented<'_>,
    policy: &Policy,
    owner_status: &OwnerStatus,
    needed: &Conditions,
    now: Timestamp,
) -> Result<(), VerifyError> {
    let (super::record::Credential::Peppered { digest, .. }
    | super::record::Credential::Imported { digest, .. }) = &record.credential;
    let same = digest.ct_eq(presented.digest);
    let lifecycle = Lifecycle::of(record);
    let (traits, holder) = (KeyTraits::of(record), KeyOwner::of(record));
    let subject = KeyToVerify {
        id: record.id,
        owner_source: &holder,
        persons: holder.is_person(),
        traits: &traits,
        lifecycle: &lifecycle,
    };
    let prefix = presented.prefix.map(str::as_bytes);
    check_subject(
        subject,
        (same, prefix),
        policy,
        (owner_status, false),
        needed,
        now,
    )
}

/// Checks the presented secret and prefix, then the key's state at `now`, then the conditions of a need. Allocates
/// only if the key is refused.
///
/// The checks of class and scopes depend on the policy, the key's traits, the owner's status, and whether a
/// person or a tenant owns the key. `passed` is true if another key with all of these equal passed them. They
/// are then skipped.
#[inline]
pub(crate) fn check_subject(
    subject: KeyToVerify<'_>,
    (same, prefix): (Choice, Option<&[u8]>),
    policy: &Policy,
    (owner_status, passed): (&OwnerStatus, bool),
    needed: &Conditions,
    now: Timestamp,
) -> Result<(), VerifyError> {
    let own_prefix = subject
        .traits
        .prefix
        .as_ref()
        .map(|own| own.as_str().as_bytes());
    if !bool::from(same) || prefix != own_prefix {
        return Err(VerifyError::WrongSecret);
    }
    check_alive(subject.id, subject.lifecycle, owner_status, now)?;
    if passed {
        return check_request(subject, policy, needed);
    }
    check_kind(subject, policy, needed)?;
    check_request(subject, policy, needed)?;
    check_reach(subject, policy, owner_status, needed)
}

/// Returns whether these traits and this owner status decide about every key that has them, apart from its prefix and
/// its lifecycle. If one of the keys met a need, then so do the others, from any address. Only a need for another
/// tenant must be checked for each key.
pub(crate) fn depends_on_kind_alone(traits: &KeyTraits, owner_status: &OwnerStatus) -> bool {
    // Each field is named, so that nobody adds one without a decision whether equal keys may then differ.
    let KeyTraits {
        class: _,
        key_type: _,
        environment: _,
        prefix: _,
        bound: _,
        scopes: _,
        allowlist,
        resource: _,
        pepper: _,
    } = traits;
    let OwnerStatus {
        roles: _,
        removed: _,
        removed_at,
        closed: _,
        unreadable: _,
    } = owner_status;
    // Whether a removal of the owner ends a key depends on the key's age.
    allowlist.is_empty() && removed_at.is_none()
}

/// Checks that a key works at `now`. Does not check a need.
#[inline]
pub(crate) fn check_alive(
    key: KeyId,
    lifecycle: &Lifecycle,
    owner_status: &OwnerStatus,
    now: Timestamp,
) -> Result<(), VerifyError> {
    let expired = lifecycle.expires_at.filter(|end| now >= *end);
    match (lifecycle.phase, expired) {
        (LifecyclePhase::Revoked { at, reason }, _) => {
            return Err(VerifyError::Revoked { key, at, reason });
        }
        (LifecyclePhase::Disabled, None) => return Err(VerifyError::Disabled { key }),
        (_, Some(at)) => return Err(VerifyError::Expired { key, at }),
        (LifecyclePhase::Enabled, None) => {}
    }
    if owner_status.unreadable {
        return Err(VerifyError::Corrupt { key });
    }
    if owner_status.closed {
        return Err(VerifyError::TenantClosed { key });
    }
    if owner_status.refuses_owner(lifecycle.created_at) {
        return Err(VerifyError::OwnerRemoved { key });
    }
    Ok(())
}

/// Checks the conditions on the class, type and environment of the key.
fn check_kind(
    subject: KeyToVerify<'_>,
    policy: &Policy,
    needed: &Conditions,
) -> Result<(), VerifyError> {
    let (key, traits) = (subject.id, subject.traits);
    class_of(traits, policy)?;
    if traits.key_type == KeyType::Publishable && !needed.publishable {
        return Err(VerifyError::Publishable { key });
    }
    if !needed.classes.is_empty() && !needed.classes.contains(&traits.class) {
        return Err(VerifyError::WrongClass {
            key,
            class: traits.class.clone(),
        });
    }
    let environment = &traits.environment;
    if needed
        .environment
        .as_ref()
        .is_some_and(|needed| needed != environment)
    {
        let environment = environment.clone();
        return Err(VerifyError::WrongEnvironment { key, environment });
    }
    Ok(())
}

/// Checks that the key reaches the tenant of the request, and may be used from the request's address.
#[inline]
fn check_request(
    subject: KeyToVerify<'_>,
    policy: &Policy,
    needed: &Conditions,
) -> Result<(), VerifyError> {
    let KeyToVerify {
        id: key,
        owner_source,
        traits,
        ..
    } = subject;
    if let Some(tenant) = &needed.tenant
        && !reach::reaches_tenant(
            &owner_source.key_owner().tenant,
            class_of(traits, policy)?,
            tenant,
        )
    {
        let tenant = tenant.clone();
        return Err(VerifyError::WrongTenant { key, tenant });
    }
    check_address(key, &traits.allowlist, needed.address)
}

/// Checks that a key may be used from the client's address. `None` is an unknown address.
pub(crate) fn check_address(
    key: KeyId,
    allowlist: &AddressAllowlist,
    address: Option<IpAddr>,
) -> Result<(), VerifyError> {
    match address {
        _ if allowlist.allows(address) => Ok(()),
        Some(address) => Err(VerifyError::AddressNotAllowed { key, address }),
        None => Err(VerifyError::AddressUnknown { key }),
    }
}

/// Checks that a key reaches the scopes that the need requires.
fn check_reach(
    subject: KeyToVerify<'_>,
    policy: &Policy,
    owner_status: &OwnerStatus,
    needed: &Conditions,
) -> Result<(), VerifyError> {
    let class = class_of(subject.traits, policy)?;
    let bounds = Bounds::of(subject.traits, subject.persons);
    let reaches = |scope: &&Scope| reach::reaches(bounds, policy, class, owner_status, scope);
    let missing = |scope: &Scope| VerifyError::MissingScope {
        key: subject.id,
        scope: scope.clone(),
    };
    let Conditions { scopes, any_of, .. } = needed;
    if let Some(scope) = scopes.iter().find(|scope| !reaches(scope)) {
        return Err(missing(scope));
    }
    match any_of.iter().next() {
        Some(scope) if !any_of.iter().any(|scope| reaches(&scope)) => Err(missing(scope)),
        _ => Ok(()),
    }
}

fn class_of<'a>(traits: &KeyTraits, policy: &'a Policy) -> Result<&'a KeyClass, VerifyError> {
    let unknown = || VerifyError::UnknownClass {
        class: traits.class.clone(),
    };
    policy.class(&traits.class).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::scope::ScopeSet;

    fn traits(allowlist: &[&str]) -> KeyTraits {
        KeyTraits {
            class: "secret".parse().unwrap(),
            key_type: KeyType::Secret,
            environment: super::super::text::Environment::LIVE,
            prefix: None,
            bound: Default::default(),
            scopes: ScopeSet::none(),
            allowlist: AddressAllowlist::parse(allowlist.iter().copied()).unwrap(),
            resource: None,
            pepper: None,
        }
    }

    #[test]
    fn a_kind_alone_decides_where_neither_age_nor_address_matters() {
        let status = |removed_at| OwnerStatus {
            removed_at,
            ..OwnerStatus::of([], false)
        };
        let (open, returned) = (status(None), status(Some(Timestamp::UNIX_EPOCH)));
        // A removed owner who has come back may use new keys, and none of the old ones.
        assert!(returned.refuses_owner(Timestamp::UNIX_EPOCH));
        assert!(!returned.refuses_owner(Timestamp::MAX));
        assert!(depends_on_kind_alone(&traits(&[]), &open));
        assert!(!depends_on_kind_alone(&traits(&[]), &returned));
        assert!(!depends_on_kind_alone(&traits(&["192.0.2.0/24"]), &open));
    }
}
