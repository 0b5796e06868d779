//! Owners and tenants as rows of their own, and what they do to every key at once.
//!
//! Pure. Invariant: lowering a role, removing an owner or closing a tenant is one row, and narrows
//! every key below that row from the moment it is seen.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::hole;
use super::principal::Owner;
use super::revision::Revision;
use super::stamp::Stamp;
use super::sweep::PendingSweep;
use super::tenant::TenantId;
use super::text::{PrincipalId, Role};
use super::time::Timestamp;

/// What a tenant knows about a principal who owns keys in it or below it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct OwnerRecord {
    /// Where the row applies: this tenant and all below it.
    pub tenant: TenantId,
    /// Whom it is about.
    pub owner: PrincipalId,
    /// Its role now; `None` once it was removed.
    pub role: Option<Role>,
    /// When it was last removed. Keys created until then stay refused, even if it comes back.
    pub removed_at: Option<Timestamp>,
    /// The roles that the row was raised from since the owner was last removed. They go on to limit
    /// keys of the tenants above that reach down here and that their owner did not receive in person.
    pub raised_from: BTreeSet<Role>,
    /// The last change of the row.
    pub updated: Stamp,
}

/// What is known about a tenant as a whole.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TenantRecord {
    /// Which tenant.
    pub tenant: TenantId,
    /// The stamp of its provisioning; `None` if it was not provisioned, and the row is there for another reason.
    pub provisioned: Option<Stamp>,
    /// When it was closed, and by whom. Closing ends every key in it and below it, for ever.
    pub closed: Option<Stamp>,
    /// Commands over many keys that were authorised and have not come to their end.
    pub sweeps: Vec<PendingSweep>,
    /// The last change of the row. Each commit of a tenant leaves its instant in a row that stays: in this
    /// one, if it writes no key and no owner.
    pub updated: Stamp,
    /// The last time that the tenant's newest instant was set back.
    pub time_repair: Option<TimeRepair>,
}

/// The newest instant of a tenant was set back, because a clock had been wrong.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TimeRepair {
    /// The newest instant from then on.
    pub to: Timestamp,
    /// Instants of rows that were written until this commit say nothing about the time.
    pub through: Revision,
}

impl TenantRecord {
    /// Returns the row of a tenant that is not provisioned.
    pub(crate) const fn new(tenant: TenantId, updated: Stamp) -> Self {
        Self {
            tenant,
            provisioned: None,
            closed: None,
            sweeps: Vec::new(),
            updated,
            time_repair: None,
        }
    }

    /// Returns whether the tenant was provisioned.
    pub(crate) const fn is_provisioned(&self) -> bool {
        self.provisioned.is_some()
    }
}

/// What the rows along a tenant's path say about one owner's keys: the input to
/// [`check`](crate::rules::check).
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Standing {
    /// The owner's role in each row along the path; the key's reach is within all of them.
    pub roles: Vec<Role>,
    /// The owner is removed now, somewhere along the path.
    pub removed: bool,
    /// Keys created until here are refused, because the owner was removed then.
    pub removed_at: Option<Timestamp>,
    /// A tenant along the path is closed.
    pub closed: bool,
    /// A row along the path cannot be read, so that it is not known what it says: refuse.
    pub unreadable: bool,
}

/// The roles that a secret does not rise from, of a key of `home` that reaches down to `tenant`: what rows
/// below `home` gave its owner before. A secret that its owner received in person has no such roles.
pub(crate) fn raised_from<'a>(
    rows: impl IntoIterator<Item = &'a OwnerRecord>,
    owner: &Owner,
    (home, tenant): (&TenantId, &TenantId),
) -> Vec<Role> {
    let below = |row: &&OwnerRecord| {
        let path = &row.tenant;
        path != home && home.contains(path) && path.contains(tenant)
    };
    let rows = rows.into_iter().filter(below);
    let rows = rows.filter(|row| owner.principal() == Some(&row.owner));
    rows.flat_map(|row| row.raised_from.iter().cloned())
        .collect()
}

impl Standing {
    /// Puts together what the rows along the path of `tenant` say about the keys of `owner`.
    /// Rows of other tenants and owners may be among them and are passed over.
    #[must_use]
    pub fn resolve<'a>(
        tenant: &TenantId,
        owner: &Owner,
        owners: impl IntoIterator<Item = &'a OwnerRecord>,
        tenants: impl IntoIterator<Item = &'a TenantRecord>,
    ) -> Self {
        let principal = owner.principal();
        let above = owners
            .into_iter()
            .filter(|row| row.tenant.contains(tenant) && principal == Some(&row.owner));
        let closed = tenants
            .into_iter()
            .any(|row| row.closed.is_some() && row.tenant.contains(tenant));
        Self::of(above.map(|row| (row.role.as_ref(), row.removed_at)), closed)
    }

    /// Puts together what the rows of one owner along a path say, role and removal of each.
    pub(crate) fn of<'a>(
        rows: impl IntoIterator<Item = (Option<&'a Role>, Option<Timestamp>)>,
        closed: bool,
    ) -> Self {
        let mut standing = Self {
            closed,
            ..Self::default()
        };
        for (role, removed_at) in rows {
            standing.removed |= role.is_none();
            standing.removed_at = standing.removed_at.max(removed_at);
            standing.roles.extend(role.cloned());
        }
        standing
    }

    /// This together with what rows further down a path say; `None` if they say nothing.
    pub(crate) fn and_further(&self, further: &Self) -> Option<Self> {
        let Self {
            roles,
            removed,
            removed_at,
            closed,
            unreadable,
        } = further;
        let both = Self {
            roles: self.roles.iter().chain(roles).cloned().collect(),
            removed: self.removed || *removed,
            removed_at: self.removed_at.max(*removed_at),
            closed: self.closed || *closed,
            unreadable: self.unreadable || *unreadable,
        };
        (both != *self && !hole::is_open("a tenant below has no say")).then_some(both)
    }

    /// Whether a key created at `created` is refused because its owner was removed.
    #[must_use]
    pub fn refuses_owner(&self, created: Timestamp) -> bool {
        self.removed || self.removed_at.is_some_and(|removed| created <= removed)
    }
}
