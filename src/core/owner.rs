//! Rows of owners and tenants, and their effect on keys.
//!
//! Pure. Invariant: lowering a role, removing an owner or closing a tenant writes one row. Readers apply that
//! row to every key of the row's tenant and of its descendants.

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

/// The stored row of a principal who owns keys in a tenant or in its descendants.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct OwnerRecord {
    /// The tenant. The row applies to the tenant and to its descendants.
    pub tenant: TenantId,
    /// The principal who owns keys.
    pub owner: PrincipalId,
    /// The current role of the principal. `None` for a removed principal.
    pub role: Option<Role>,
    /// The instant of the last removal. Keys created up to that instant stay refused, even if the principal
    /// is restored.
    pub removed_at: Option<Timestamp>,
    /// Lower roles that this row had earlier, since the last removal. They still limit keys of ancestor
    /// tenants that reach this tenant. Keys whose owner received the secret in person are exempt.
    pub raised_from: BTreeSet<Role>,
    /// The last change of the row.
    pub updated: Stamp,
}

/// The stored row of a tenant.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TenantRecord {
    /// The tenant that the row describes.
    pub tenant: TenantId,
    /// The instant and the author of the provisioning. `None` if the tenant was not provisioned.
    pub provisioned: Option<Stamp>,
    /// The instant and the author of the closing. Closing a tenant permanently ends every key of the tenant
    /// and of its descendants.
    pub closed: Option<Stamp>,
    /// Bulk commands that are authorised but unfinished.
    pub sweeps: Vec<PendingSweep>,
    /// The last change of the row. Every commit must store its instant in a row. A commit that writes no key
    /// and no owner stores its instant here.
    pub updated: Stamp,
    /// The last repair of the tenant's newest commit time.
    pub time_repair: Option<TimeRepair>,
}

/// A repair of a tenant's newest commit time, after a wrong clock had dated a commit in the future.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TimeRepair {
    /// The newest commit time after the repair.
    pub to: Timestamp,
    /// The revision of the last commit before the repair. Rows up to this revision no longer determine the
    /// tenant's newest commit time.
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

/// The combined effect of all rows along a tenant's path on one owner's keys. An input of
/// [`check`](crate::rules::check).
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct OwnerStatus {
    /// The owner's role in each row along the path. All these roles limit the key.
    pub roles: Vec<Role>,
    /// Whether the owner is currently removed in any tenant along the path.
    pub removed: bool,
    /// The instant of the owner's last removal. Keys created up to that instant are refused.
    pub removed_at: Option<Timestamp>,
    /// Whether a tenant along the path is closed.
    pub closed: bool,
    /// Whether a row along the path is unreadable. The owner's keys are then refused.
    pub unreadable: bool,
}

/// Returns the lower roles that `owner` had earlier in the tenants between `home` and `tenant`. These roles
/// limit a key of `home` that reaches `tenant`, unless the owner received the secret in person.
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

impl OwnerStatus {
    /// Combines the rows that affect the keys of `owner` in `tenant`. Ignores rows of other owners, and of
    /// tenants that are not on the path of `tenant`.
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

    /// Combines the rows of one owner along a path. Each row is a pair of the role and the instant of the
    /// last removal.
    pub(crate) fn of<'a>(
        rows: impl IntoIterator<Item = (Option<&'a Role>, Option<Timestamp>)>,
        closed: bool,
    ) -> Self {
        let mut status = Self {
            closed,
            ..Self::default()
        };
        for (role, removed_at) in rows {
            status.removed |= role.is_none();
            status.removed_at = status.removed_at.max(removed_at);
            status.roles.extend(role.cloned());
        }
        status
    }

    /// Combines this status with the status from rows further down the path. `None` if the result is the same
    /// as this status.
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

    /// Returns whether a key created at `created` is refused because its owner was removed.
    #[must_use]
    pub fn refuses_owner(&self, created: Timestamp) -> bool {
        self.removed || self.removed_at.is_some_and(|removed| created <= removed)
    }
}
