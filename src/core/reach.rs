//! What a key reaches: `scopes ∩ class ceiling ∩ role ceiling of its owner`.
//!
//! Pure. Management and verification both ask here; there is no second copy of the rule.

use super::owner::{Owner, Standing};
use super::policy::{KeyClass, OwnerCeiling, Policy};
use super::record::KeyRecord;
use super::scope::{Scope, ScopeSet};
use super::text::Role;

/// The roles that narrow a key, or `None` if it reaches nothing for want of one.
fn roles<'a>(
    record: &'a KeyRecord,
    class: &KeyClass,
    standing: &'a Standing,
) -> Option<&'a [Role]> {
    let roles = match class.owner_ceiling {
        OwnerCeiling::Live => standing.roles.as_slice(),
        OwnerCeiling::Snapshot => record.owner_role.as_slice(),
    };
    match record.owner {
        Owner::Tenant => Some(&[]),
        // A person's key without any row of that person has lost it: nothing, not everything.
        Owner::Principal(_) => (!roles.is_empty()).then_some(roles),
    }
}

/// Whether a key reaches `scope`. Allocates nothing.
pub(crate) fn reaches(
    record: &KeyRecord,
    policy: &Policy,
    class: &KeyClass,
    standing: &Standing,
    scope: &Scope,
) -> bool {
    record.scopes.allows(scope)
        && class.ceiling.allows(scope)
        && roles(record, class, standing)
            .is_some_and(|roles| roles.iter().all(|role| policy.role_allows(role, scope)))
}

/// Everything that a key reaches.
pub(crate) fn reach(
    record: &KeyRecord,
    policy: &Policy,
    class: &KeyClass,
    standing: &Standing,
) -> ScopeSet {
    let Some(roles) = roles(record, class, standing) else {
        return ScopeSet::none();
    };
    let within_class = record.scopes.intersection(&class.ceiling);
    roles.iter().fold(within_class, |reach, role| {
        reach.intersection(&policy.role_ceiling(role))
    })
}
