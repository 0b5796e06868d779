//! What a decision is taken on, and what it changes.
//!
//! Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::audit::{Action, AuditEntry, AuditHead};
use super::hole;
use super::id::KeyId;
use super::owner::{OwnerRecord, TenantRecord};
use super::record::KeyRecord;
pub use super::revision::Revision;
use super::secret::Digest;
use super::tenant::TenantId;
use super::text::{CommandId, PrincipalId};
use super::time::Timestamp;

/// Names a row, and orders rows for a scan: tenants, then owners, then keys.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum RowKey {
    /// A tenant.
    Tenant(TenantId),
    /// An owner in a tenant.
    Owner(TenantId, PrincipalId),
    /// A key, removed ones included.
    Key(KeyId),
}

/// A row of another tenant that a decision rested on, at the revision at which it was read.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Guard {
    /// The row.
    pub row: RowKey,
    /// The commit that wrote the row; [`Revision::ZERO`] if there was none.
    pub revision: Revision,
}

/// The part of a tenant that a decision needs. Parts combine: what any of them names is loaded.
///
/// A store may return more than asked, never less. The tenant's own row, its revision and its audit
/// head are always loaded.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Select {
    /// Keys by id.
    pub keys: Vec<KeyId>,
    /// Keys that are neither revoked nor expired at this instant.
    pub live_at: Option<Timestamp>,
    /// The legacy key.
    pub legacy: bool,
    /// The rows of these owners. The rows of the owners of loaded keys are loaded in any case.
    pub owners: Vec<PrincipalId>,
    /// What these commands did: the first [`APPLIED_MAX`](Self::APPLIED_MAX) entries of each.
    pub commands: Vec<CommandId>,
}

impl Select {
    /// How many entries of one command are loaded at most. Enough to recognise it by.
    pub const APPLIED_MAX: usize = 16;

    /// Nothing but what is always loaded.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// One key.
    #[must_use]
    pub fn key(id: KeyId) -> Self {
        Self {
            keys: vec![id],
            ..Self::default()
        }
    }

    /// The row of one owner.
    #[must_use]
    pub fn owner(owner: PrincipalId) -> Self {
        Self {
            owners: vec![owner],
            ..Self::default()
        }
    }

    /// Adds what `other` names.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        let Self {
            keys,
            live_at,
            legacy,
            owners,
            commands,
        } = other;
        self.keys.extend(keys);
        // Live at the earlier instant includes live at the later one.
        self.live_at = match (self.live_at, live_at) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.legacy |= legacy;
        self.owners.extend(owners);
        self.commands.extend(commands);
        self
    }

    /// Whether `record` is among the keys that are asked for.
    #[must_use]
    pub fn matches(&self, record: &KeyRecord) -> bool {
        self.keys.contains(&record.id)
            || (self.legacy && record.legacy)
            || self.live_at.is_some_and(|now| record.is_live(now))
    }
}

/// One history of a store. A store gets a new epoch when it is restored from a backup.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Epoch(pub u128);

/// What a decision is taken on: the tenant's revision, its rows, the records asked for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TenantView {
    /// The store's history; of an unknown tenant too.
    pub epoch: Epoch,
    /// The revision of the tenant's last commit; zero if it never had one.
    pub revision: Revision,
    /// The latest instant for which a commit of the tenant was decided. It goes back in a commit alone
    /// that repairs the tenant's time.
    pub decided_at: Option<Timestamp>,
    /// The time by the store's server when this was read; `None` where there is none.
    pub server_time: Option<Timestamp>,
    /// Where its audit chain ends.
    pub audit_head: AuditHead,
    /// The tenant's own row.
    pub tenant: Option<TenantRecord>,
    /// Rows of owners.
    pub owners: Vec<OwnerRecord>,
    /// The keys asked for.
    pub records: Vec<KeyRecord>,
    /// The commit that wrote each of the rows above.
    pub revisions: BTreeMap<RowKey, Revision>,
    /// Keys asked for whose stored bytes failed their checksum: refused, counted towards the cap.
    pub corrupt: Vec<KeyId>,
    /// What the commands asked for did.
    pub applied: Vec<AuditEntry>,
}

impl TenantView {
    /// Returns the commit that wrote a row: the tenant's last one where that is not known.
    pub(crate) fn revision_of(&self, row: &RowKey) -> Revision {
        self.revisions.get(row).copied().unwrap_or(self.revision)
    }

    /// The loaded key of this id.
    #[must_use]
    pub fn record(&self, id: KeyId) -> Option<&KeyRecord> {
        self.records.iter().find(|record| record.id == id)
    }

    /// Whether the key of this id was loaded, readable or not.
    #[must_use]
    pub fn knows(&self, id: KeyId) -> bool {
        self.record(id).is_some() || self.corrupt.contains(&id)
    }

    /// The loaded row of this owner.
    #[must_use]
    pub fn owner(&self, owner: &PrincipalId) -> Option<&OwnerRecord> {
        self.owners.iter().find(|row| row.owner == *owner)
    }

    /// The part of this view that `select` asks for, for stores that keep whole tenants in memory.
    #[must_use]
    pub fn narrowed(&self, select: &Select) -> Self {
        let heads = Self {
            tenant: self.tenant.clone(),
            corrupt: self.corrupt.clone(),
            owners: Vec::new(),
            records: Vec::new(),
            revisions: self.revisions.clone(),
            applied: Vec::new(),
            ..*self
        };
        let at = |row: RowKey| self.revisions.get(&row).copied().unwrap_or_default();
        let records = self.records.iter();
        heads.with_selected(
            select,
            records.map(|record| (at(RowKey::Key(record.id)), record)),
            |owner| {
                let row = self.owner(owner)?;
                Some((
                    at(RowKey::Owner(row.tenant.clone(), row.owner.clone())),
                    row,
                ))
            },
            &self.applied,
        )
    }

    /// Adds what `select` asks for, for stores that have it at hand: `records` and `trail` are the
    /// tenant's own, or as many of them as may be asked for; `owner` returns an owner's row. Rows come
    /// with the commit that wrote them, `trail` comes oldest first.
    #[must_use]
    pub fn with_selected<'a>(
        mut self,
        select: &Select,
        records: impl IntoIterator<Item = (Revision, &'a KeyRecord)>,
        owner: impl Fn(&PrincipalId) -> Option<(Revision, &'a OwnerRecord)>,
        trail: impl IntoIterator<Item = &'a AuditEntry> + Clone,
    ) -> Self {
        let asked = records
            .into_iter()
            .filter(|(_, record)| select.matches(record));
        let records: BTreeMap<_, _> = asked.map(|found| (found.1.id, found)).collect();
        let of_keys = records
            .values()
            .filter_map(|(_, record)| record.owner.principal());
        let owners: BTreeSet<_> = select.owners.iter().chain(of_keys).collect();
        for (revision, row) in owners.into_iter().filter_map(owner) {
            let key = RowKey::Owner(row.tenant.clone(), row.owner.clone());
            self.revisions.insert(key, revision);
            self.owners.push(row.clone());
        }
        for (revision, record) in records.into_values() {
            self.revisions.insert(RowKey::Key(record.id), revision);
            self.records.push(record.clone());
        }
        for command in &select.commands {
            let mine = trail
                .clone()
                .into_iter()
                .filter(|entry| entry.command == *command);
            self.applied.extend(mine.take(Select::APPLIED_MAX).cloned());
        }
        self
    }

    /// Takes over what a decision changes, so that the next one can be taken on the result.
    pub fn apply(&mut self, effects: &Effects) {
        let Effects {
            puts,
            removes,
            owners,
            tenant,
            digests: _,
            audit,
        } = effects;
        for record in puts {
            replace(&mut self.records, record, |own| own.id == record.id);
        }
        self.records.retain(|record| !removes.contains(&record.id));
        for row in owners {
            replace(&mut self.owners, row, |own| own.owner == row.owner);
        }
        if tenant.is_some() {
            self.tenant.clone_from(tenant);
        }
        if let Some(newest) = audit.last() {
            self.audit_head = newest.head();
            self.decided_at = match repairs_time(audit) {
                true => Some(newest.at),
                false => self.decided_at.max(Some(newest.at)),
            };
        }
        self.applied.extend_from_slice(audit);
    }
}

/// Returns whether these entries set the newest instant of a tenant back.
pub(crate) fn repairs_time(audit: &[AuditEntry]) -> bool {
    let repairs = |entry: &AuditEntry| matches!(entry.action, Action::TimeRepaired { .. });
    audit.iter().any(repairs)
}

/// Rows of the tenants above a tenant that a decision in it rests on.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Ancestry {
    /// Rows of owners in the tenants above.
    pub owners: Vec<OwnerRecord>,
    /// The rows of the tenants above.
    pub tenants: Vec<TenantRecord>,
    /// Keys of the tenants above that act.
    pub keys: Vec<KeyRecord>,
    /// Keys of the tenants above that act and whose stored bytes failed their checksum.
    pub corrupt: Vec<KeyId>,
    /// The rows of tenants and owners that were asked for, absent ones included, and the keys that act,
    /// each at the revision at which it was read.
    pub guards: BTreeSet<Guard>,
    /// The latest instants for which commits of the tenants above were decided.
    pub decided_at: BTreeMap<TenantId, Timestamp>,
    /// The histories of the store in which they were read: more than one if it was replaced meanwhile.
    pub epochs: BTreeSet<Epoch>,
}

impl Ancestry {
    /// Adds what `view` holds of the tenant `above`, of which `select` was asked for.
    pub(crate) fn add(&mut self, above: &TenantId, select: &Select, view: TenantView) {
        let TenantView {
            epoch,
            owners,
            records,
            corrupt,
            tenant,
            revisions,
            decided_at,
            ..
        } = view;
        self.epochs.insert(epoch);
        self.decided_at
            .extend(decided_at.map(|at| (above.clone(), at)));
        let named = (select.owners.iter()).map(|owner| RowKey::Owner(above.clone(), owner.clone()));
        // Nothing is decided for a key that was not found.
        let keys = records.iter().map(|record| RowKey::Key(record.id));
        let own = std::iter::once(RowKey::Tenant(above.clone()));
        let guarded = own.chain(named).chain(keys);
        let guarded = guarded.filter(|_| !hole::is_open("nothing is guarded"));
        self.guards.extend(guarded.map(|row| {
            let revision = revisions.get(&row).copied().unwrap_or_default();
            Guard { row, revision }
        }));
        let acts = |record: &KeyRecord| select.keys.contains(&record.id);
        self.owners.extend(owners);
        self.tenants.extend(tenant);
        self.keys.extend(records.into_iter().filter(acts));
        self.corrupt.extend(corrupt);
    }
}

/// What a decision changes: the body of a commit.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Effects {
    /// Keys to write, whole.
    pub puts: Vec<KeyRecord>,
    /// Keys to remove. Their ids and imported digests stay taken for ever.
    pub removes: Vec<KeyId>,
    /// Rows of owners to write.
    pub owners: Vec<OwnerRecord>,
    /// The tenant's row to write.
    pub tenant: Option<TenantRecord>,
    /// Imported digests, or marks of them, that are a key's from now on, beside the digests of `puts`.
    /// They stay taken for ever, whatever becomes of the key.
    pub digests: Vec<(Digest, KeyId)>,
    /// What to add to the audit trail.
    pub audit: Vec<AuditEntry>,
}

impl Effects {
    /// Whether there is nothing to commit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self {
            puts,
            removes,
            owners,
            tenant,
            digests,
            audit,
        } = self;
        puts.is_empty()
            && removes.is_empty()
            && owners.is_empty()
            && tenant.is_none()
            && digests.is_empty()
            && audit.is_empty()
    }

    /// Adds what a later decision changes.
    pub fn extend(&mut self, later: Self) {
        let Self {
            puts,
            removes,
            owners,
            tenant,
            digests,
            audit,
        } = later;
        for record in puts {
            replace(&mut self.puts, &record, |own| own.id == record.id);
        }
        self.puts.retain(|record| !removes.contains(&record.id));
        self.removes.extend(removes);
        for row in owners {
            replace(&mut self.owners, &row, |own| own.owner == row.owner);
        }
        self.tenant = tenant.or(self.tenant.take());
        self.digests.extend(digests);
        self.audit.extend(audit);
    }

    /// How many rows a store writes for this, audit entries included.
    #[must_use]
    pub fn rows(&self) -> usize {
        let Self {
            puts,
            removes,
            owners,
            tenant,
            digests,
            audit,
        } = self;
        let rows = puts.len() + removes.len() + owners.len() + usize::from(tenant.is_some());
        rows + digests.len() + audit.len()
    }
}

fn replace<T: Clone>(rows: &mut Vec<T>, with: &T, same: impl Fn(&T) -> bool) {
    match rows.iter_mut().find(|row| same(row)) {
        Some(row) => row.clone_from(with),
        None => rows.push(with.clone()),
    }
}
