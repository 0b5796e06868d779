//! The rows that a decision reads, and the changes that it makes.
//!
//! Pure: no I/O and no clock.

use std::collections::{BTreeMap, BTreeSet};

use super::audit::{Action, AuditEntry, AuditHead};
use super::hole;
use super::id::KeyId;
use super::owner::{OwnerRecord, TenantRecord};
use super::record::KeyRecord;
pub use super::revision::Revision;
use super::secret::Digest;
use super::tenant::TenantId;
use super::text::{ClassName, CommandId, PrincipalId};
use super::time::Timestamp;

/// The identity of a row. Sorts rows in the order of a scan: tenants, then owners, then keys.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum RowKey {
    /// A tenant.
    Tenant(TenantId),
    /// An owner in a tenant.
    Owner(TenantId, PrincipalId),
    /// A key, including a removed one.
    Key(KeyId),
}

impl RowKey {
    /// Returns the row of a tenant or an owner that the entry's commit wrote to end or narrow keys.
    pub(crate) fn narrowed_by(entry: &AuditEntry) -> Option<Self> {
        let tenant = || entry.tenant.clone();
        match &entry.action {
            Action::TenantClosed => Some(Self::Tenant(tenant())),
            Action::OwnerRemoved { owner } | Action::OwnerRoleChanged { owner, .. } => {
                Some(Self::Owner(tenant(), owner.clone()))
            }
            _ => None,
        }
    }
}

/// A row of another tenant that a decision depends on, with the revision at which the row was read. The
/// commit fails if the row has changed since.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Guard {
    /// The identity of the row.
    pub row: RowKey,
    /// The revision of the commit that wrote the row. [`Revision::ZERO`] if the row did not exist.
    pub revision: Revision,
}

/// A selection of the rows of a tenant that a decision needs. The store loads every row that any field
/// selects.
///
/// A store may return more than the selection, never less. The tenant's own row, its revision and its audit
/// head are always loaded.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct LoadRequest {
    /// The keys with these ids.
    pub keys: Vec<KeyId>,
    /// For each of these classes, all of its keys that are neither revoked nor expired at the instant.
    pub live: BTreeMap<ClassName, Timestamp>,
    /// Selects the tenant's legacy key.
    pub legacy: bool,
    /// The rows of these owners. The rows of the owners of loaded keys are always loaded.
    pub owners: Vec<PrincipalId>,
    /// The audit entries of these commands: the first [`APPLIED_MAX`](Self::APPLIED_MAX) of each.
    pub commands: Vec<CommandId>,
}

impl LoadRequest {
    /// The maximum number of audit entries that are loaded for one command: 16, enough to recognise a retry.
    pub const APPLIED_MAX: usize = 16;

    /// Selects only the rows that are always loaded.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Selects one key.
    #[must_use]
    pub fn key(id: KeyId) -> Self {
        Self {
            keys: vec![id],
            ..Self::default()
        }
    }

    /// Selects the row of one owner.
    #[must_use]
    pub fn owner(owner: PrincipalId) -> Self {
        Self {
            owners: vec![owner],
            ..Self::default()
        }
    }

    /// Adds the selection `other`.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        let Self {
            keys,
            live,
            legacy,
            owners,
            commands,
        } = other;
        self.keys.extend(keys);
        for (class, at) in live {
            // A key that is live at the later instant is also live at the earlier one. Selecting the keys
            // that are live at the earlier instant therefore includes both selections.
            let earliest = self.live.entry(class).or_insert(at);
            *earliest = at.min(*earliest);
        }
        self.legacy |= legacy;
        self.owners.extend(owners);
        self.commands.extend(commands);
        self
    }

    /// Returns whether `record` is selected.
    #[must_use]
    pub fn matches(&self, record: &KeyRecord) -> bool {
        self.keys.contains(&record.id)
            || (self.legacy && record.legacy)
            || (self.live.get(&record.class)).is_some_and(|now| record.is_live(*now))
    }
}

/// The epoch of a store: the identity of one history of commits. A store gets a new epoch when it is restored
/// from a backup.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Epoch(pub u128);

impl Epoch {
    /// The epoch of a history that is not known. No store has it.
    pub const UNKNOWN: Self = Self(0);
}

/// The input of a decision: the tenant's revision, its rows and the selected records.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TenantView {
    /// The epoch of the store. Set even if the tenant is unknown.
    pub epoch: Epoch,
    /// The revision of the tenant's last commit. Zero if the tenant has no commit.
    pub revision: Revision,
    /// The instant of the tenant's latest committed decision. Never decreases, except by a commit that
    /// repairs the tenant's time.
    pub decided_at: Option<Timestamp>,
    /// The time of the store's server when the rows were read. `None` if the store has no server.
    pub server_time: Option<Timestamp>,
    /// The head of the tenant's audit chain.
    pub audit_head: AuditHead,
    /// The tenant's own row.
    pub tenant: Option<TenantRecord>,
    /// The rows of the selected owners.
    pub owners: Vec<OwnerRecord>,
    /// The selected keys.
    pub records: Vec<KeyRecord>,
    /// The revision of the commit that wrote each row above.
    pub revisions: BTreeMap<RowKey, Revision>,
    /// Selected keys whose stored bytes failed their checksum. Corrupt keys are refused, and count towards
    /// the cap.
    pub corrupt: Vec<KeyId>,
    /// The audit entries of the selected commands.
    pub applied: Vec<AuditEntry>,
}

impl TenantView {
    /// Returns the revision of the commit that wrote `row`. Falls back to the tenant's last commit if that
    /// revision is unknown.
    pub(crate) fn revision_of(&self, row: &RowKey) -> Revision {
        self.revisions.get(row).copied().unwrap_or(self.revision)
    }

    /// Returns the loaded key of this id.
    #[must_use]
    pub fn record(&self, id: KeyId) -> Option<&KeyRecord> {
        self.records.iter().find(|record| record.id == id)
    }

    /// Returns whether the key of this id was loaded, readable or not.
    #[must_use]
    pub fn knows(&self, id: KeyId) -> bool {
        self.record(id).is_some() || self.corrupt.contains(&id)
    }

    /// Returns the loaded row of this owner.
    #[must_use]
    pub fn owner(&self, owner: &PrincipalId) -> Option<&OwnerRecord> {
        self.owners.iter().find(|row| row.owner == *owner)
    }

    /// Returns this view with only the rows that `select` selects, for stores that keep whole tenants in
    /// memory.
    #[must_use]
    pub fn narrowed(&self, select: &LoadRequest) -> Self {
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

    /// Adds the rows of this tenant that `select` selects. `records` and `trail` must contain all these rows,
    /// and may contain others. `owner` looks up an owner's row. Each row comes with the revision of the
    /// commit that wrote it. `trail` is sorted oldest first.
    #[must_use]
    pub fn with_selected<'a>(
        mut self,
        select: &LoadRequest,
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
            self.applied
                .extend(mine.take(LoadRequest::APPLIED_MAX).cloned());
        }
        self
    }

    /// Applies the changes of a decision, so that the next decision sees them.
    pub fn apply(&mut self, effects: &Effects) {
        let Effects {
            puts,
            removes,
            owners,
            tenant,
            digests: _,
            audit,
            prune,
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
        self.applied.retain(|entry| Some(entry.sequence) > *prune);
    }
}

/// Returns whether `audit` contains an entry that repairs the tenant's newest commit time.
pub(crate) fn repairs_time(audit: &[AuditEntry]) -> bool {
    let repairs = |entry: &AuditEntry| matches!(entry.action, Action::TimeRepaired { .. });
    audit.iter().any(repairs)
}

/// The rows of ancestor tenants that a decision depends on.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Ancestry {
    /// Rows of owners in the ancestor tenants.
    pub owners: Vec<OwnerRecord>,
    /// The rows of the ancestor tenants.
    pub tenants: Vec<TenantRecord>,
    /// The acting keys that belong to ancestor tenants.
    pub keys: Vec<KeyRecord>,
    /// Acting keys of the ancestor tenants whose stored bytes failed their checksum.
    pub corrupt: Vec<KeyId>,
    /// The rows that must not change before the commit: the selected tenants and owners, including absent
    /// rows, and the acting keys. Each guard holds the revision at which its row was read.
    pub guards: BTreeSet<Guard>,
    /// The instant of the latest committed decision of each ancestor tenant.
    pub decided_at: BTreeMap<TenantId, Timestamp>,
    /// The epoch of the store at each read. More than one if the store was replaced between two reads.
    pub epochs: BTreeSet<Epoch>,
}

impl Ancestry {
    /// Adds `view`, which holds the rows of the ancestor tenant `above` that `select` selects.
    pub(crate) fn add(&mut self, above: &TenantId, select: &LoadRequest, view: TenantView) {
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
        // A command whose acting key is missing is refused, so a missing key needs no guard.
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

/// The changes of a decision, which one commit writes together.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Effects {
    /// The complete records of keys to write.
    pub puts: Vec<KeyRecord>,
    /// Keys to remove. The ids and imported digests of these keys can never be used again.
    pub removes: Vec<KeyId>,
    /// Rows of owners to write.
    pub owners: Vec<OwnerRecord>,
    /// The tenant's row to write.
    pub tenant: Option<TenantRecord>,
    /// Imported digests, or marks of imported digests, to reserve for a key. The digests of `puts` are
    /// reserved without being listed here. A reserved digest can never be imported again, even if the key is
    /// deleted.
    pub digests: Vec<(Digest, KeyId)>,
    /// The entries to add to the audit trail.
    pub audit: Vec<AuditEntry>,
    /// Removes the audit entries up to this number from the tenant's trail.
    pub prune: Option<u64>,
}

impl Effects {
    /// Returns whether there is nothing to commit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self {
            puts,
            removes,
            owners,
            tenant,
            digests,
            audit,
            prune,
        } = self;
        puts.is_empty()
            && removes.is_empty()
            && owners.is_empty()
            && tenant.is_none()
            && digests.is_empty()
            && audit.is_empty()
            && prune.is_none()
    }

    /// Adds the changes of a later decision.
    pub fn extend(&mut self, later: Self) {
        let Self {
            puts,
            removes,
            owners,
            tenant,
            digests,
            audit,
            prune,
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
        self.prune = self.prune.max(prune);
    }

    /// Returns the number of rows that a store writes, including audit entries.
    #[must_use]
    pub fn rows(&self) -> usize {
        let Self {
            puts,
            removes,
            owners,
            tenant,
            digests,
            audit,
            prune: _,
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
