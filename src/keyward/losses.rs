//! Losses of a store: the ends of its trails that are missing, and the mark of a salvage.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;

use crate::core::audit::{Action, AuditEntry};
use crate::core::decide::SWEEP_MAX;
use crate::core::query::{AuditQuery, AuditRow};
use crate::core::recovery::TenantChanges;
use crate::core::tenant::TenantId;
use crate::core::view::LoadRequest;
use crate::store::{
    Change, DocumentError, DocumentName, DocumentRead, DocumentWrite, KeyStore, Revision, Row,
    SalvageMark, StoreError, StoreErrorKind,
};

/// One of the two trails of a recovery, as its errors name it.
pub(super) struct TrailSource {
    reading: &'static str,
    store: &'static str,
    next_step: &'static str,
}

pub(super) const REPLAYED: TrailSource = TrailSource {
    reading: "reading the trail to replay",
    store: "the store to replay from",
    next_step: "replay from what `keyctl salvage` saves of that store, or disable every key",
};

pub(super) const RESTORED: TrailSource = TrailSource {
    reading: "reading the restored trail",
    store: "the restored store",
    next_step: "restore another backup, or disable every key",
};

/// The number and the revision of the newest entry of each tenant.
pub(super) type TrailEnds = BTreeMap<TenantId, (u64, Revision)>;

/// Passes all entries of a store to `take`, in commit order. Fails if an entry is unreadable: a trail whose last
/// entry is missing would seem to end earlier.
pub(super) async fn read_trail(
    store: &dyn KeyStore,
    source: &TrailSource,
    mut take: impl FnMut(AuditEntry),
) -> Result<TrailEnds, StoreError> {
    let mut query = AuditQuery {
        limit: PAGE,
        ..AuditQuery::all()
    };
    let mut corrupt = Vec::new();
    let mut ends = TrailEnds::new();
    let mut damaged = BTreeSet::new();
    loop {
        let page = store.audit(&query).await?;
        corrupt.extend(page.corrupt);
        for AuditRow { entry, revision } in page.rows {
            let end = ends.get(&entry.tenant);
            if end.is_some_and(|(end, _)| end.saturating_add(1) < entry.sequence) {
                damaged.insert(entry.tenant.clone());
            }
            ends.insert(entry.tenant.clone(), (entry.sequence, revision));
            take(entry);
        }
        match page.next {
            Some(next) => query.after = Some(next),
            None => break,
        }
    }
    let Some(place) = corrupt.first() else {
        return Ok(ends);
    };
    // An unreadable entry does not show its tenant. The gap that it leaves in the tenant's trail does.
    damaged.append(&mut cut_trails(store, &ends).await?);
    let damaged: Vec<_> = damaged.iter().map(TenantId::as_str).collect();
    let tenants = match &damaged[..] {
        [] => "a tenant without readable entries".to_owned(),
        damaged => format!("tenant {}", damaged.join(", ")),
    };
    let damage = format!(
        "audit entry {} of revision {} in {} is corrupt, in the trail of {tenants}; {}",
        place.sequence, place.revision, source.store, source.next_step
    );
    Err(StoreError::new(StoreErrorKind::Corrupt, source.reading).with_source(damage))
}

/// Returns a sign that `source` lost anything that its trails do not record.
pub(super) async fn loss_of(source: &dyn KeyStore) -> Result<Option<String>, StoreError> {
    if let Some(loss) = source.known_loss().await? {
        return Ok(Some(loss));
    }
    let is_marked = has_unrecorded_losses(source).await?;
    Ok(is_marked.then(|| "it was salvaged from a damaged store, with losses".to_owned()))
}

/// Returns whether the store has the mark of a salvage that lost anything, and no recovery has recorded it yet.
pub(super) async fn has_unrecorded_losses(store: &dyn KeyStore) -> Result<bool, StoreError> {
    let Some(documents) = store.documents() else {
        return Ok(false);
    };
    match documents.document(&DocumentName::SALVAGE).await {
        Ok(DocumentRead { document, .. }) => {
            Ok(document
                .is_some_and(|mark| SalvageMark::read(&mark.body) == SalvageMark::Unrecorded))
        }
        // A damaged mark is still one.
        Err(error) if error.kind() == StoreErrorKind::Corrupt => Ok(true),
        Err(error) => Err(error),
    }
}

/// Marks the losses of a salvage as recorded.
pub(super) async fn replace_mark(store: &dyn KeyStore) -> Result<(), StoreError> {
    let Some(documents) = store.documents() else {
        return Ok(());
    };
    let name = DocumentName::SALVAGE;
    let known = match documents.document(&name).await {
        // The damaged mark stays, and the next recovery records the losses again.
        Err(error) if error.kind() == StoreErrorKind::Corrupt => return Ok(()),
        known => known?.document,
    };
    let version = known.map_or(0, |known| known.version);
    let body = SalvageMark::Recorded.body().to_vec();
    match documents
        .write_document(DocumentWrite::new(name, version, body))
        .await
    {
        Err(DocumentError::Store(error)) => Err(error),
        // A concurrent recovery has written it.
        Ok(_) | Err(DocumentError::Conflict { .. } | DocumentError::TooLarge { .. }) => Ok(()),
    }
}

/// Returns whether an entry records that the end of its trail may be lost.
pub(super) fn is_lost_end(entry: &AuditEntry) -> bool {
    matches!(entry.action, Action::EntriesLost { after, through } if after == through)
}

/// Returns the tenants whose trails lack their newest entries, as after a salvage.
///
/// Each commit adds an entry, so a row of a later commit proves it too, even if the head of the tenant was lost or
/// derived from the entries that are left.
pub(super) async fn cut_trails(
    store: &dyn KeyStore,
    ends: &TrailEnds,
) -> Result<BTreeSet<TenantId>, StoreError> {
    let mut cut = BTreeSet::new();
    let known = store.tenants().await?;
    for tenant in known.iter().chain(ends.keys()) {
        let end = ends.get(tenant).map_or(0, |(end, _)| *end);
        let head = match store.load(tenant, &LoadRequest::none()).await {
            Ok(view) => Some(view.audit_head.sequence),
            Err(error) if error.kind() == StoreErrorKind::Corrupt => None,
            Err(error) => return Err(error),
        };
        if head != Some(end) {
            cut.insert(tenant.clone());
        }
    }
    let mut after = None;
    loop {
        let page = store.scan(after, PAGE).await?;
        for Change { revision, row } in page.rows {
            let tenant = match &row {
                Row::Tenant(row) => &row.tenant,
                Row::Owner(row) => &row.tenant,
                Row::Key(row) => &row.tenant,
                Row::Removed { tenant, .. } => tenant,
                Row::Corrupt(_) => continue,
            };
            if ends
                .get(tenant)
                .is_none_or(|(_, newest)| revision > *newest)
            {
                cut.insert(tenant.clone());
            }
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(cut),
        }
    }
}

/// The rows per page: [`SWEEP_MAX`], the largest number of keys in one commit.
pub(super) const PAGE: NonZeroUsize =
    NonZeroUsize::new(SWEEP_MAX).expect("`SWEEP_MAX` is greater than zero");

/// Returns whether the store has audit entries that cannot be read.
pub(super) async fn has_damaged_entries(store: &dyn KeyStore) -> Result<bool, StoreError> {
    let mut query = AuditQuery {
        limit: PAGE,
        ..AuditQuery::all()
    };
    loop {
        let page = store.audit(&query).await?;
        match page.next {
            _ if !page.corrupt.is_empty() => return Ok(true),
            Some(next) => query.after = Some(next),
            None => return Ok(false),
        }
    }
}

/// Returns only the changes to a tenant and to owners whose rows the store lacks.
pub(super) async fn without_rows(
    store: &dyn KeyStore,
    tenant: &TenantId,
    mut changes: TenantChanges,
) -> Result<TenantChanges, StoreError> {
    if changes.closed.is_none() && changes.owners.is_empty() {
        return Ok(changes);
    }
    let select = LoadRequest {
        owners: changes.owners.keys().cloned().collect(),
        ..LoadRequest::none()
    };
    let view = match store.load(tenant, &select).await {
        // A damaged row refuses its keys, and a command cannot replace it.
        Err(error) if error.kind() == StoreErrorKind::Corrupt => {
            return Ok(TenantChanges::default());
        }
        loaded => loaded?,
    };
    changes.closed = changes.closed.filter(|_| view.tenant.is_none());
    changes
        .owners
        .retain(|owner, _| view.owner(owner).is_none());
    Ok(changes)
}
