//! Reads one key through the store, with the rows that decide about it.

use crate::core::id::KeyId;
use crate::core::owner::{self, OwnerStatus};
use crate::core::record::KeyRecord;
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;
use crate::core::view::LoadRequest;
use crate::replica::Replica;
use crate::store::{Change, KeyStore, Locator, Row, RowKey, StoreError};

/// The store's answer about a key.
#[derive(Debug)]
pub(super) enum StoreLookup {
    /// No key has this id or digest, or the key was removed.
    Nothing,
    /// A record that cannot be decoded.
    Corrupt(KeyId),
    /// A key, the status of its owner, and the newest commit time of its tenant. The status is derived from
    /// the rows of the key's tenant and its ancestors.
    Key(Box<KeyRecord>, OwnerStatus, Option<Timestamp>),
}

/// Reads a key, and applies the rows to the replica. Fails if the store went back in time, because the key's
/// revocation may be lost.
pub(super) async fn read(
    store: &dyn KeyStore,
    replica: &Replica,
    locator: Locator,
) -> Result<StoreLookup, StoreError> {
    let known = replica.newest_known()?;
    let Some(found) = store.find(&locator).await? else {
        return Ok(StoreLookup::Nothing);
    };
    let Row::Key(record) = &found.change.row else {
        replica.apply_fetched(known, &found, &[])?;
        return Ok(match found.change.row {
            Row::Corrupt(RowKey::Key(key)) => StoreLookup::Corrupt(key),
            _ => StoreLookup::Nothing,
        });
    };
    let (status, floor, rows) = status_of(store, record).await?;
    replica.apply_fetched(known, &found, &rows)?;
    Ok(StoreLookup::Key(record.clone(), status, floor))
}

/// Returns the status of the owner of `record` in `tenant`. `None` if `tenant` is not a descendant of the
/// record's tenant, or if the status there equals `own`.
pub(super) async fn status_in(
    store: &dyn KeyStore,
    record: &KeyRecord,
    own: &OwnerStatus,
    tenant: &TenantId,
) -> Result<Option<OwnerStatus>, StoreError> {
    if *tenant == record.tenant || !record.tenant.contains(tenant) {
        return Ok(None);
    }
    let select = LoadRequest {
        owners: record.owner.principal().cloned().into_iter().collect(),
        ..LoadRequest::none()
    };
    let (mut owners, mut tenants) = (Vec::new(), Vec::new());
    for path in tenant.lineage().take_while(|path| *path != record.tenant) {
        let view = store.load(&path, &select).await?;
        owners.extend(view.owners);
        tenants.extend(view.tenant);
    }
    let mut lower = OwnerStatus::resolve(tenant, &record.owner, &owners, &tenants);
    if !record.bound.is_empty() {
        let path = (&record.tenant, tenant);
        let raised_from = owner::raised_from(&owners, &record.owner, path);
        lower.roles.extend(raised_from);
    }
    Ok(own.and_further(&lower))
}

/// Reads the owner's and the tenants' rows of the key's tenant and its ancestors. Returns the owner's status,
/// the newest commit time of the key's tenant, and the rows.
async fn status_of(
    store: &dyn KeyStore,
    record: &KeyRecord,
) -> Result<(OwnerStatus, Option<Timestamp>, Vec<Change>), StoreError> {
    let select = LoadRequest {
        owners: record.owner.principal().cloned().into_iter().collect(),
        ..LoadRequest::none()
    };
    let (mut owners, mut tenants, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    let mut floor = None;
    for tenant in record.tenant.lineage() {
        let view = store.load(&tenant, &select).await?;
        if tenant == record.tenant {
            floor = view.decided_at;
        }
        let own = view.tenant.iter().cloned().map(Row::Tenant);
        let all = own.chain(view.owners.iter().cloned().map(Row::Owner));
        rows.extend(all.map(|row| Change {
            revision: view.revision_of(&row.key()),
            row,
        }));
        owners.extend(view.owners);
        tenants.extend(view.tenant);
    }
    let status = OwnerStatus::resolve(&record.tenant, &record.owner, &owners, &tenants);
    Ok((status, floor, rows))
}
