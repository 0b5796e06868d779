//! Builds the view of a tenant on which a command is decided, from the loaded rows.

use std::collections::{BTreeMap, HashMap};

use super::{RowFault, TenantHead};
use crate::core::audit::AuditEntry;
use crate::core::id::KeyId;
use crate::core::owner::{OwnerRecord, TenantRecord};
use crate::core::query::{AuditPosition, AuditRow};
use crate::core::record::KeyRecord;
use crate::core::tenant::TenantId;
use crate::core::text::PrincipalId;
use crate::core::time::Timestamp;
use crate::core::view::{LoadRequest, Revision, TenantView};
use crate::store::{Change, Epoch, Row, RowKey};

/// The rows of a tenant that are loaded so far. A damaged row of the tenant or of an owner is an error,
/// because a command cannot be decided without it.
#[derive(Default)]
pub(in crate::store) struct LoadedRows {
    pub(in crate::store) head: Option<TenantHead>,
    own: Option<(Revision, TenantRecord)>,
    keys: BTreeMap<KeyId, (Revision, KeyRecord)>,
    corrupt: Vec<KeyId>,
    owners: HashMap<PrincipalId, (Revision, OwnerRecord)>,
    trail: Vec<AuditEntry>,
}

impl LoadedRows {
    /// Starts with the head of the tenant, if there is one.
    pub(in crate::store) fn new(head: Option<TenantHead>) -> Self {
        Self {
            head,
            ..Self::default()
        }
    }

    /// Adds the row of the tenant.
    pub(in crate::store) fn take_tenant(&mut self, change: Change) -> Result<(), RowFault> {
        match change.row {
            Row::Tenant(row) => self.own = Some((change.revision, row)),
            row => return Err(damaged(&row.key())),
        }
        Ok(())
    }

    /// Adds the row of an owner.
    pub(in crate::store) fn take_owner(&mut self, change: Change) -> Result<(), RowFault> {
        match change.row {
            Row::Owner(row) => {
                self.owners
                    .insert(row.owner.clone(), (change.revision, row));
            }
            row => return Err(damaged(&row.key())),
        }
        Ok(())
    }

    /// Adds a key that was loaded by its id. Ignores a key of another tenant.
    pub(in crate::store) fn take_named(&mut self, tenant: &TenantId, change: Change) {
        if !matches!(&change.row, Row::Key(record) if record.tenant != *tenant) {
            self.take_key(change);
        }
    }

    /// Adds a key of the tenant.
    pub(in crate::store) fn take_key(&mut self, change: Change) {
        match change.row {
            Row::Key(record) => {
                self.keys.insert(record.id, (change.revision, *record));
            }
            Row::Corrupt(RowKey::Key(id)) if !self.corrupt.contains(&id) => self.corrupt.push(id),
            _ => {}
        }
    }

    /// Adds an audit entry of a requested command.
    pub(in crate::store) fn take_entry(
        &mut self,
        found: Result<AuditRow, AuditPosition>,
        tenant: &TenantId,
    ) -> Result<(), RowFault> {
        let row = found.map_err(|place| {
            let sequence = place.sequence;
            RowFault::corrupt(format!(
                "audit entry {sequence} of tenant {tenant} is damaged"
            ))
        })?;
        self.trail.push(row.entry);
        Ok(())
    }

    /// Returns the owners whose rows must be loaded: the requested owners, and the owners of the loaded keys.
    pub(in crate::store) fn owners<'a>(
        &'a self,
        select: &'a LoadRequest,
    ) -> impl Iterator<Item = &'a PrincipalId> {
        let of_keys = self.keys.values();
        let of_keys = of_keys.filter_map(|(_, record)| record.owner.principal());
        select.owners.iter().chain(of_keys)
    }

    /// Builds the view of the tenant. The view is empty if the tenant has no head, because such a tenant
    /// never had a commit.
    pub(in crate::store) fn view(
        self,
        tenant: &TenantId,
        select: &LoadRequest,
        (epoch, server_time): (Epoch, Option<Timestamp>),
    ) -> TenantView {
        let view = TenantView {
            epoch,
            server_time,
            ..TenantView::default()
        };
        let Some(head) = self.head else { return view };
        let (revisions, own) = match self.own {
            Some((revision, row)) => {
                let key = RowKey::Tenant(tenant.clone());
                (BTreeMap::from([(key, revision)]), Some(row))
            }
            None => (BTreeMap::new(), None),
        };
        let view = TenantView {
            revision: head.revision,
            decided_at: Some(head.decided_at),
            audit_head: head.audit,
            tenant: own,
            revisions,
            corrupt: self.corrupt,
            ..view
        };
        let owner = |owner: &PrincipalId| {
            let found = self.owners.get(owner);
            found.map(|(revision, row)| (*revision, row))
        };
        let records = self.keys.values();
        let records = records.map(|(revision, record)| (*revision, record));
        view.with_selected(select, records, owner, &self.trail)
    }
}

pub(super) fn damaged(row: &RowKey) -> RowFault {
    RowFault::corrupt(match row {
        RowKey::Tenant(tenant) => format!("the row of tenant {tenant} is damaged"),
        RowKey::Owner(tenant, owner) => {
            format!("the row of owner {owner} in tenant {tenant} is damaged")
        }
        RowKey::Key(key) => format!("the row of key {key} is damaged"),
    })
}
