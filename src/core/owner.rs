//! Stored rows of owners and tenants, and their effect on keys.
//!
//! Pure: no I/O and no clock. Invariant: lowering a role, removing an owner or closing a tenant writes one
//! row. Readers apply that row to every key of the row's tenant and of its descendants.

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
    /// Lower roles that the owner had in this row, since the last removal. Keys of ancestor tenants that
    /// reach this tenant are still limited to these roles here. Exempt are keys whose secret the owner
    /// received in person.
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
    /// The last change of the row. Every commit must store its instant in some row. A commit that writes no
    /// key and no owner stores it here.
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

/// The combined effect of stored rows on one owner's keys in a tenant. Combines the rows of the owner and the
/// tenant rows, each from the tenant itself and from all its ancestors. An input of
/// [`check`](crate::rules::check).
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct OwnerStatus {
    /// The owner's roles, one from each row of the tenant and its ancestors. A key of the owner may do only
    /// what all these roles allow.
    pub roles: Vec<Role>,
    /// True if the owner is currently removed in the tenant or in any of its ancestors.
    pub removed: bool,
    /// The instant of the owner's last removal in the tenant or in any of its ancestors. Keys created up to
    /// that instant are refused.
    pub removed_at: Option<Timestamp>,
    /// True if the tenant or any of its ancestors is closed.
    pub closed: bool,
    /// True if one of the rows is unreadable. The owner's keys are then refused, because that row may say
    /// that they ended.
    pub unreadable: bool,
}

/// Returns the lower roles that `owner` had earlier in `tenant` and in the tenants between `home` and
/// `tenant`. These roles limit a key of `home` that reaches `tenant`, unless the owner received the secret in
/// person.
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
    /// Combines the rows that affect the keys of `owner` in `tenant`. Ignores rows of other owners, and rows
    /// of tenants that are neither `tenant` nor an ancestor of it.
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

    /// Combines one owner's rows in a tenant and its ancestors. Each row is a pair: its role, `None` for a
    /// removed owner, and the instant of its last removal. `closed` is true if the tenant or an ancestor is
    /// closed.
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

    /// Combines this status of a key's own tenant with `further`, the status from rows of descendant tenants.
    /// Returns `None` if those rows change nothing.
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

    /// Returns whether a key created at `created` is refused because of its owner. This is so if the owner is
    /// removed now, or was removed after the key was created.
    #[must_use]
    pub fn refuses_owner(&self, created: Timestamp) -> bool {
        self.removed || self.removed_at.is_some_and(|removed| created <= removed)
    }
}
