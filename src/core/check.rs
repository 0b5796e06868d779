//! The check of a presented key against a need.
//!
//! Pure. Every way of verifying goes through one function (trap 20). That function compares the
//! secret first, and reveals any other reason only to a holder of the secret (trap 5).

use std::num::NonZeroU64;

use subtle::{Choice, ConstantTimeEq};

use super::id::KeyId;
use super::need::{Conditions, Need};
use super::owner::OwnerStatus;
use super::policy::{KeyClass, Policy};
use super::reach::{self, Bounds};
use super::record::{KeyRecord, Visibility};
use super::rejection::VerifyError;
use super::scope::Scope;
use super::secret::Digest;
use super::subject::{Course, Holder, Life, Shape, Subject};
use super::time::Timestamp;

/// A presented key after hashing: its digest, and the prefix of its token.
#[derive(Clone, Copy, Debug)]
pub struct Presented<'a> {
    /// The digest of the presented text, made with the algorithm of the record's credential.
    pub digest: &'a Digest,
    /// The prefix of the token; `None` for text that is not a token.
    pub prefix: Option<&'a str>,
}

/// Checks that the key of `record` was presented, works at `now`, and meets `need`.
///
/// # Errors
///
/// [`VerifyError`]; [`WrongSecret`](VerifyError::WrongSecret) precedes every other reason.
pub fn check(
    record: &KeyRecord,
    presented: Presented<'_>,
    policy: &Policy,
    standing: &OwnerStatus,
    need: &Need,
    now: Timestamp,
) -> Result<(), VerifyError> {
    let (super::record::Credential::Peppered { digest, .. }
    | super::record::Credential::Imported { digest, .. }) = &record.credential;
    let same = digest.ct_eq(presented.digest);
    let course = Course::of(record);
    let (shape, holder) = (Shape::of(record), Holder::of(record));
    let subject = Subject {
        id: record.id,
        whose: &holder,
        persons: holder.is_person(),
        shape: &shape,
        course,
    };
    let prefix = presented.prefix.map(str::as_bytes);
    check_subject(subject, (same, prefix), policy, (standing, None), need, now)
}

/// Checks that a key's secret and prefix were presented, then the key's state at `now`, then
/// `need`. Every verification goes through this function. Allocates only if the key is refused.
///
/// `kind` identifies the policy, the shape, the owner's status and whether a person owns the key. A
/// kind that met a need meets it again.
pub(crate) fn check_subject(
    subject: Subject<'_>,
    (same, prefix): (Choice, Option<&[u8]>),
    policy: &Policy,
    (standing, kind): (&OwnerStatus, Option<NonZeroU64>),
    need: &Need,
    now: Timestamp,
) -> Result<(), VerifyError> {
    let own_prefix = subject
        .shape
        .prefix
        .as_ref()
        .map(|own| own.as_str().as_bytes());
    if !bool::from(same) || prefix != own_prefix {
        return Err(VerifyError::WrongSecret);
    }
    check_alive(subject.id, &subject.course, standing, now)?;
    if kind.is_some_and(|kind| need.met().has(kind)) {
        return check_request(subject, policy, need);
    }
    check_kind(subject, policy, need)?;
    check_request(subject, policy, need)?;
    check_reach(subject, policy, standing, need)?;
    kind.into_iter().for_each(|kind| need.met().note(kind));
    Ok(())
}

/// Checks that a key works at `now`, whatever the need is.
pub(crate) fn check_alive(
    key: KeyId,
    course: &Course,
    standing: &OwnerStatus,
    now: Timestamp,
) -> Result<(), VerifyError> {
    let expired = course.expires_at.filter(|end| now >= *end);
    match (course.life, expired) {
        (Life::Revoked { at, reason }, _) => return Err(VerifyError::Revoked { key, at, reason }),
        (Life::Disabled, None) => return Err(VerifyError::Disabled { key }),
        (_, Some(at)) => return Err(VerifyError::Expired { key, at }),
        (Life::Enabled, None) => {}
    }
    if standing.unreadable {
        return Err(VerifyError::Corrupt { key });
    }
    if standing.closed {
        return Err(VerifyError::TenantClosed { key });
    }
    if standing.refuses_owner(course.created_at) {
        return Err(VerifyError::OwnerRemoved { key });
    }
    Ok(())
}

/// Checks the conditions that depend only on the kind of the key.
fn check_kind(subject: Subject<'_>, policy: &Policy, need: &Need) -> Result<(), VerifyError> {
    let (key, shape) = (subject.id, subject.shape);
    let needed = need.conditions();
    class_of(shape, policy)?;
    if shape.visibility == Visibility::Publishable && !needed.publishable {
        return Err(VerifyError::Publishable { key });
    }
    if !needed.classes.is_empty() && !needed.classes.contains(&shape.class) {
        return Err(VerifyError::WrongClass {
            key,
            class: shape.class.clone(),
        });
    }
    let environment = &shape.environment;
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

/// Checks the conditions that depend on the request: its tenant and its address.
fn check_request(subject: Subject<'_>, policy: &Policy, need: &Need) -> Result<(), VerifyError> {
    let Subject {
        id: key,
        whose,
        shape,
        ..
    } = subject;
    let needed = need.conditions();
    if let Some(tenant) = &needed.tenant
        && !reach::reaches_tenant(&whose.holder().tenant, class_of(shape, policy)?, tenant)
    {
        return Err(VerifyError::WrongTenant { key });
    }
    if !shape.allowlist.allows(needed.address) {
        return Err(VerifyError::AddressNotAllowed { key });
    }
    Ok(())
}

/// Checks that a key reaches the scopes of a need.
fn check_reach(
    subject: Subject<'_>,
    policy: &Policy,
    standing: &OwnerStatus,
    need: &Need,
) -> Result<(), VerifyError> {
    let class = class_of(subject.shape, policy)?;
    let bounds = Bounds::of(subject.shape, subject.persons);
    let reaches = |scope: &&Scope| reach::reaches(bounds, policy, class, standing, scope);
    let missing = |scope: &Scope| VerifyError::MissingScope {
        key: subject.id,
        scope: scope.clone(),
    };
    let Conditions { scopes, any_of, .. } = need.conditions();
    if let Some(scope) = scopes.iter().find(|scope| !reaches(scope)) {
        return Err(missing(scope));
    }
    match any_of.iter().next() {
        Some(scope) if !any_of.iter().any(|scope| reaches(&scope)) => Err(missing(scope)),
        _ => Ok(()),
    }
}

fn class_of<'a>(shape: &Shape, policy: &'a Policy) -> Result<&'a KeyClass, VerifyError> {
    let unknown = || VerifyError::UnknownClass {
        class: shape.class.clone(),
    };
    policy.class(&shape.class).ok_or_else(unknown)
}
