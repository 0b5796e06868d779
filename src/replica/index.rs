//! The index: keys by id and by imported digest, each with what its owner and tenants say.
//!
//! Readers take no lock. There is one writer at a time; the replica sees to that. A key reaches its
//! owner's standing through a shared cell, so that lowering a role changes one cell and narrows
//! every key at once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use crate::core::id::KeyId;
use crate::core::owner::{Owner, OwnerRecord, Standing, TenantRecord};
use crate::core::record::KeyRecord;
use crate::core::secret::Digest;
use crate::core::tenant::TenantId;
use crate::core::text::PrincipalId;
use crate::core::time::Timestamp;
use crate::core::view::Revision;
use crate::store::{Change, Row, RowKey};

#[derive(Debug, Default)]
pub(crate) struct Index {
    keys: papaya::HashMap<KeyId, Entry>,
    imported: papaya::HashMap<Digest, KeyId>,
    imported_len: AtomicUsize,
    newest: AtomicI64,
    /// Where the store stood when the scan began that filled this index.
    base: AtomicU64,
    rows: Mutex<Rows>,
}

/// What is known of one id.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    revision: Revision,
    pub(crate) key: Key,
}

#[derive(Clone, Debug)]
pub(crate) enum Key {
    Known {
        record: Arc<KeyRecord>,
        standing: Arc<ArcSwap<Standing>>,
    },
    Removed,
    Corrupt,
}

/// Rows of owners and tenants, `None` for those that cannot be read, and the standings made of them.
#[derive(Debug, Default)]
struct Rows {
    owners: HashMap<(TenantId, PrincipalId), (Revision, Option<OwnerRecord>)>,
    tenants: HashMap<TenantId, (Revision, Option<TenantRecord>)>,
    standings: HashMap<(TenantId, Owner), Arc<ArcSwap<Standing>>>,
}

impl Index {
    pub(crate) fn key(&self, id: KeyId) -> Option<Key> {
        self.keys.pin().get(&id).map(|entry| entry.key.clone())
    }

    pub(crate) fn imported(&self, digest: &Digest) -> Option<KeyId> {
        self.imported.pin().get(digest).copied()
    }

    /// Whether any key was imported, so that a string which is no token of ours may still be a key.
    pub(crate) fn has_imported(&self) -> bool {
        self.imported_len.load(Ordering::Acquire) > 0
    }

    /// The latest instant for which any commit was decided, as far as this index knows.
    pub(crate) fn newest(&self) -> Timestamp {
        let micros = self.newest.load(Ordering::Acquire);
        Timestamp::from_micros(micros).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    pub(super) fn saw(&self, decided_at: Timestamp) {
        self.newest
            .fetch_max(decided_at.as_micros(), Ordering::AcqRel);
    }

    /// Notes that every row at or below `base` that there is has been taken over.
    pub(super) fn filled(&self, base: Revision) {
        self.base.store(base.0, Ordering::Release);
    }

    /// Takes over a row, if it is newer than what is known. One writer at a time.
    pub(super) fn apply(&self, change: Change) {
        let revision = change.revision;
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        match change.row {
            Row::Tenant(row) => rows.take_tenant(revision, &row.tenant, Some(&row)),
            Row::Owner(row) => rows.take_owner(revision, &row.tenant, &row.owner, Some(&row)),
            Row::Key(record) => {
                let standing = rows.standing(&record.tenant, &record.owner);
                let record = Arc::<KeyRecord>::from(record);
                self.put(record.id, revision, Key::Known { record, standing });
            }
            Row::Removed { key, .. } => self.put(key, revision, Key::Removed),
            Row::Corrupt(RowKey::Key(key)) => self.put(key, revision, Key::Corrupt),
            Row::Corrupt(RowKey::Owner(tenant, owner)) => {
                rows.take_owner(revision, &tenant, &owner, None);
            }
            Row::Corrupt(RowKey::Tenant(tenant)) => rows.take_tenant(revision, &tenant, None),
        }
    }

    fn put(&self, id: KeyId, revision: Revision, key: Key) {
        let keys = self.keys.pin();
        let stale = match keys.get(&id) {
            Some(own) => own.revision >= revision,
            // What the scan did not find had been removed by then, tombstone and all: something
            // read before does not bring it back.
            None => revision.0 <= self.base.load(Ordering::Acquire),
        };
        if stale {
            return;
        }
        let digest = match &key {
            Key::Known { record, .. } => record.credential.imported().copied(),
            Key::Removed | Key::Corrupt => None,
        };
        keys.insert(id, Entry { revision, key });
        if let Some(digest) = digest
            && self.imported.pin().insert(digest, id).is_none()
        {
            self.imported_len.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Rows {
    fn standing(&mut self, tenant: &TenantId, owner: &Owner) -> Arc<ArcSwap<Standing>> {
        let place = (tenant.clone(), owner.clone());
        if let Some(known) = self.standings.get(&place) {
            return known.clone();
        }
        let made = Arc::new(ArcSwap::from_pointee(self.resolve(tenant, owner)));
        self.standings.insert(place, made.clone());
        made
    }

    fn resolve(&self, tenant: &TenantId, owner: &Owner) -> Standing {
        let lineage: Vec<_> = crate::core::view::lineage(tenant).collect();
        let owners = || {
            lineage.iter().filter_map(|tenant| {
                let principal = owner.principal()?;
                Some(&self.owners.get(&(tenant.clone(), principal.clone()))?.1)
            })
        };
        let tenants = || {
            let row = |tenant| Some(&self.tenants.get(tenant)?.1);
            lineage.iter().filter_map(row)
        };
        let unreadable = owners().any(Option::is_none) || tenants().any(Option::is_none);
        Standing {
            unreadable,
            ..Standing::resolve(tenant, owner, owners().flatten(), tenants().flatten())
        }
    }

    fn take_owner(
        &mut self,
        revision: Revision,
        tenant: &TenantId,
        owner: &PrincipalId,
        row: Option<&OwnerRecord>,
    ) {
        let place = (tenant.clone(), owner.clone());
        if self.owners.get(&place).is_some_and(|own| own.0 >= revision) {
            return;
        }
        self.owners.insert(place, (revision, row.cloned()));
        self.renew(tenant, Some(owner));
    }

    fn take_tenant(&mut self, revision: Revision, tenant: &TenantId, row: Option<&TenantRecord>) {
        let own = self.tenants.get(tenant);
        if own.is_some_and(|own| own.0 >= revision) {
            return;
        }
        let was_unreadable = own.is_some_and(|own| own.1.is_none());
        self.tenants
            .insert(tenant.clone(), (revision, row.cloned()));
        if was_unreadable || row.is_none_or(|row| row.closed.is_some()) {
            self.renew(tenant, None);
        }
    }

    /// Makes the standings at and below `above` anew: those of one owner, or all of them.
    fn renew(&self, above: &TenantId, of: Option<&PrincipalId>) {
        for ((tenant, owner), standing) in &self.standings {
            if above.contains(tenant) && (of.is_none() || owner.principal() == of) {
                standing.store(Arc::new(self.resolve(tenant, owner)));
            }
        }
    }
}
