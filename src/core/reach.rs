//! What a key reaches: `scopes ∩ class ceiling ∩ role ceiling of its owner`.
//!
//! Pure. Management and verification both ask here; there is no second copy of the rule.

use super::owner::Standing;
use super::policy::{KeyClass, OwnerCeiling, Policy};
use super::record::KeyRecord;
use super::scope::{Scope, ScopeSet};
use super::subject::Shape;
use super::text::Role;

/// What bounds a key by itself.
#[derive(Clone, Copy)]
pub(crate) struct Bounds<'a> {
    pub(crate) scopes: &'a ScopeSet,
    /// Whether a person owns it, and not the tenant itself.
    pub(crate) persons: bool,
    pub(crate) owner_role: &'a Option<Role>,
}

impl<'a> Bounds<'a> {
    pub(crate) const fn of(shape: &'a Shape, persons: bool) -> Self {
        Self {
            scopes: &shape.scopes,
            persons,
            owner_role: &shape.owner_role,
        }
    }

    pub(crate) const fn of_record(record: &'a KeyRecord) -> Self {
        Self {
            scopes: &record.scopes,
            persons: record.owner.principal().is_some(),
            owner_role: &record.owner_role,
        }
    }
}

/// The roles that narrow a key, or `None` if it reaches nothing for want of one.
fn roles<'a>(bounds: Bounds<'a>, class: &KeyClass, standing: &'a Standing) -> Option<&'a [Role]> {
    let roles = match class.owner_ceiling {
        OwnerCeiling::Live => standing.roles.as_slice(),
        OwnerCeiling::Snapshot => bounds.owner_role.as_slice(),
    };
    match bounds.persons {
        false => Some(&[]),
        // A person's key without any row of that person has lost it: nothing, not everything.
        true => (!roles.is_empty()).then_some(roles),
    }
}

/// Whether a key reaches `scope`. Allocates nothing.
pub(crate) fn reaches(
    bounds: Bounds<'_>,
    policy: &Policy,
    class: &KeyClass,
    standing: &Standing,
    scope: &Scope,
) -> bool {
    bounds.scopes.allows(scope)
        && class.ceiling.allows(scope)
        && roles(bounds, class, standing)
            .is_some_and(|roles| roles.iter().all(|role| policy.role_allows(role, scope)))
}

/// Everything that a key reaches.
pub(crate) fn reach(
    bounds: Bounds<'_>,
    policy: &Policy,
    class: &KeyClass,
    standing: &Standing,
) -> ScopeSet {
    let Some(roles) = roles(bounds, class, standing) else {
        return ScopeSet::none();
    };
    let within_class = bounds.scopes.intersection(&class.ceiling);
    roles.iter().fold(within_class, |reach, role| {
        reach.intersection(&policy.role_ceiling(role))
    })
}
