//! The integrity check and the statistics of a store.

use std::collections::{BTreeMap, BTreeSet};

use super::cells::{Cell, Cells};
use super::copy::{StoredTable, table};
use super::{
    ENTRY_COLUMNS, NODE_COLUMNS, NodeRow, PLACE_BITS, RowFault, TenantHead, change, entry, id_of,
    read_digest, read_document, revision_of,
};
use crate::core::audit::Action;
use crate::core::tenant::TenantId;
use crate::core::view::Revision;
use crate::store::transfer::Part;
use crate::store::{AuditPosition, AuditRow, Change, Cursor, Row, RowKey};

/// The largest number of faults in a report: 1,000, because a damaged store can have millions.
const MAX_FAULTS: usize = 1000;

/// The number of places of one revision.
const PLACES: i64 = 1 << PLACE_BITS;

/// The result of an integrity check.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct IntegrityReport {
    /// The number of rows of tenants, owners and keys that were read, tombstones included.
    pub rows: u64,
    /// The number of audit entries that were read.
    pub audit: u64,
    /// The faults, 1,000 at most. Each fault names its row. Empty if the store is sound.
    pub faults: Vec<String>,
    /// The faults of the node registry of a file, 1,000 at most. The registry is a file of its own, next to the
    /// store. No key depends on it.
    pub registry: Vec<String>,
    /// The lost audit entries whose loss a later entry [records](Action::EntriesLost), after a recovery. These are no
    /// faults.
    pub losses: Vec<String>,
    /// The number of audit entries of each tenant that the tenant's head counts and the store lacks. Entries that were
    /// removed on purpose, and losses that an entry records, are not counted.
    pub missing: BTreeMap<TenantId, u64>,
    /// The checkpoints of pruned trails: the tenant, and the number of the newest removed entry.
    checkpoints: BTreeSet<(TenantId, u64)>,
    /// The recorded gaps of each trail: the numbers of the entry before the gap and of the newest lost entry.
    gaps: BTreeMap<TenantId, BTreeSet<(u64, u64)>>,
    /// The revisions of the rows of tenants and owners.
    written: BTreeMap<RowKey, Revision>,
    /// The tenants with audit entries.
    audited: BTreeSet<TenantId>,
    /// The commit before which audit entries may be missing: they were removed on purpose, or an entry records their loss.
    explained_before: Revision,
}

/// The size of a store, and its database engine.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// The head of the store.
    pub head: Cursor,
    /// The number of keys, revoked and expired keys included.
    pub keys: u64,
    /// The number of tombstones of removed keys that are still in the feed.
    pub removed: u64,
    /// The number of rows of owners.
    pub owners: u64,
    /// The number of rows of tenants.
    pub tenants: u64,
    /// The number of audit entries.
    pub audit: u64,
    /// The size in bytes: of the SQLite file without its log, or of the PostgreSQL tables with their indexes.
    pub bytes: u64,
    /// The size in bytes of the SQLite file's write-ahead log, which is on the same disk. Zero for PostgreSQL.
    pub log_bytes: u64,
    /// The engine and its version: `SQLite 3.51.3, wal` or `PostgreSQL 15.18`.
    pub engine: String,
}

/// One pass of the integrity check. Each pass runs one statement and checks every row of the result.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) enum IntegrityPass {
    /// Checks the rows of tenants, owners and keys.
    Rows,
    /// Checks the audit entries.
    Audit,
    /// Compares the head of each tenant with the tenant's audit trail.
    Trails,
    /// Finds tenants that have rows but no row in the table `tenants`. The store would treat such a tenant as
    /// empty.
    Headless,
    /// Finds rows and audit entries without their commit, and commits without any of them.
    Commits,
    /// Finds keys whose rows are older than an audit entry about them.
    Outdated,
    /// Finds tenants with a row of a later commit than their heads name.
    Ahead,
    /// Checks the imported digests.
    Digests,
    /// Checks the reports of nodes.
    Nodes,
    /// Checks the documents.
    Documents,
}

impl IntegrityPass {
    pub(in crate::store) const ALL: [Self; 10] = [
        Self::Rows,
        Self::Audit,
        Self::Trails,
        Self::Headless,
        Self::Commits,
        Self::Outdated,
        Self::Ahead,
        Self::Digests,
        Self::Nodes,
        Self::Documents,
    ];

    /// Returns whether the pass reads keys, their owners and tenants, or audit entries.
    #[cfg(feature = "sqlite")]
    pub(in crate::store) const fn is_of_history(self) -> bool {
        !matches!(self, Self::Nodes | Self::Documents)
    }

    /// Returns the table of a file that the pass reads, if it is one.
    pub(in crate::store) const fn table(self) -> Option<StoredTable> {
        match self {
            Self::Rows => Some(table(Part::Rows)),
            Self::Audit => Some(table(Part::Audit)),
            Self::Digests => Some(table(Part::Digests)),
            Self::Documents => Some(table(Part::Documents)),
            Self::Nodes => Some(StoredTable {
                name: "nodes",
                columns: ENTRY_COLUMNS,
                order: "node",
            }),
            Self::Trails | Self::Headless | Self::Commits | Self::Outdated | Self::Ahead => None,
        }
    }

    pub(in crate::store) fn sql(self) -> String {
        if matches!(self, Self::Nodes) {
            return format!("SELECT {NODE_COLUMNS} FROM $s.nodes ORDER BY node");
        }
        if let Some(StoredTable {
            name,
            columns,
            order,
        }) = self.table()
        {
            return format!("SELECT {columns} FROM $s.{name} ORDER BY {order}");
        }
        match self {
            Self::Trails => {
                "SELECT t.tenant, t.revision, t.decided_at, t.sequence, t.hash, t.seal, \
                 coalesce(a.entries, 0), coalesce(a.newest, 0), coalesce(a.oldest, 1) \
                 FROM $s.tenants AS t LEFT JOIN \
                 (SELECT tenant, count(*) AS entries, max(sequence) AS newest, min(sequence) AS oldest \
                 FROM $s.audit \
                 GROUP BY tenant) AS a ON a.tenant = t.tenant ORDER BY t.tenant"
                    .to_owned()
            }
            Self::Commits => format!(
                "SELECT (SELECT max(revision) FROM $s.commits), (SELECT max(place) FROM $s.rows), \
                 (SELECT max(place) FROM $s.audit), 0 UNION ALL \
                 SELECT c.revision, 0, 0, 1 FROM $s.commits AS c WHERE NOT EXISTS (SELECT 1 FROM $s.audit AS a \
                 WHERE a.place >= c.revision * {PLACES} AND a.place < (c.revision + 1) * {PLACES}) \
                 AND NOT EXISTS (SELECT 1 FROM $s.rows AS r \
                 WHERE r.place >= c.revision * {PLACES} AND r.place < (c.revision + 1) * {PLACES})"
            ),
            // A division by a constant is written alike in both dialects.
            Self::Outdated => format!(
                "SELECT r.id, r.place, a.place FROM $s.rows AS r JOIN \
                 (SELECT key, max(place) AS place FROM $s.audit WHERE key IS NOT NULL GROUP BY key) AS a \
                 ON a.key = r.id WHERE r.place / {PLACES} < a.place / {PLACES}"
            ),
            Self::Ahead => format!(
                "SELECT t.tenant, r.place, t.revision FROM $s.tenants AS t JOIN \
                 (SELECT tenant, max(place) AS place FROM $s.rows GROUP BY tenant) AS r \
                 ON r.tenant = t.tenant WHERE r.place / {PLACES} > t.revision"
            ),
            _ => "SELECT tenant FROM $s.rows UNION SELECT tenant FROM $s.audit \
                 EXCEPT SELECT tenant FROM $s.tenants"
                .to_owned(),
        }
    }
}

impl IntegrityReport {
    /// Returns whether there is no fault.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty() && self.registry.is_empty()
    }

    pub(in crate::store) fn add(&mut self, fault: impl ToString) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(fault.to_string());
        }
    }

    /// Puts faults before the others.
    #[cfg(feature = "sqlite")]
    pub(in crate::store) fn add_first(&mut self, faults: Vec<String>) {
        self.faults.splice(0..0, faults);
        self.faults.truncate(MAX_FAULTS);
    }

    /// Adds an item that lies on a page that cannot be read.
    #[cfg(feature = "sqlite")]
    pub(in crate::store) fn unreadable(&mut self, what: &str) {
        self.add(format!("{what}: cannot be read"));
    }

    /// Checks one row that the statement of a pass found.
    pub(in crate::store) fn look(&mut self, check: IntegrityPass, row: &impl Cells) {
        let done = match check {
            IntegrityPass::Rows => self.row(row),
            IntegrityPass::Audit => self.entry(row),
            IntegrityPass::Trails => self.trail(row),
            IntegrityPass::Headless => {
                // If the name is not text, another pass reports the damaged row that contains the name.
                if let Cell::Text(tenant) = row.cell(0) {
                    self.add(format!(
                        "tenant {tenant:?}: has rows or audit entries, and no head"
                    ));
                }
                Ok(())
            }
            IntegrityPass::Commits => self.commits(row),
            IntegrityPass::Outdated => self.outdated(row),
            IntegrityPass::Ahead => {
                if let Cell::Text(tenant) = row.cell(0) {
                    self.add(format!(
                        "tenant {tenant:?}: a row is of a later commit than its head names, so its newest audit \
                         entries may be lost"
                    ));
                }
                Ok(())
            }
            IntegrityPass::Digests => read_digest(row).map(drop),
            IntegrityPass::Documents => read_document(row).map(drop),
            IntegrityPass::Nodes => {
                if NodeRow::read(row).and_then(NodeRow::report).is_err() {
                    self.add(format!("node {}: its row is damaged", NodeRow::id(row)));
                }
                Ok(())
            }
        };
        if let Err(fault) = done {
            self.add(fault);
        }
    }

    fn commits(&mut self, row: &impl Cells) -> Result<(), RowFault> {
        let number = |column, what| match row.cell(column) {
            Cell::Null => Ok(0),
            _ => row.number(column, what),
        };
        let last = Revision(number(0, "the newest commit")?.unsigned_abs());
        if number(3, "the kind of a fault")? != 0 {
            // Each commit of a service adds an audit entry. A trail that lacks some is named already.
            let is_known = last < self.explained_before || !self.missing.is_empty();
            if last > Revision::ZERO && !is_known {
                self.add(format!(
                    "rows and audit entries of commit {last} are missing"
                ));
            }
            return Ok(());
        }
        let rows = revision_of(number(1, "the place of the newest row")?);
        let entries = revision_of(number(2, "the place of the newest audit entry")?);
        let newest = rows.max(entries);
        if newest > last {
            self.add(format!(
                "commit {newest} is missing, and rows or audit entries of it are not"
            ));
        }
        Ok(())
    }

    fn outdated(&mut self, row: &impl Cells) -> Result<(), RowFault> {
        let id = row.bytes(0, "the id of a key")?;
        let Some(key) = id_of(id) else {
            // The pass over the rows reports the damaged id.
            return Ok(());
        };
        let own = revision_of(row.number(1, "the place of a row")?);
        let entry = revision_of(row.number(2, "the place of an audit entry")?);
        self.add(format!(
            "key {key}: its row is of revision {own}, and an audit entry about it is of revision {entry}"
        ));
        Ok(())
    }

    fn row(&mut self, row: &impl Cells) -> Result<(), RowFault> {
        self.rows += 1;
        let Change { revision, row } = change(row)?;
        match &row {
            Row::Corrupt(name) => {
                self.damaged(name);
                // Its own fault is enough.
                self.written.insert(name.clone(), Revision(u64::MAX));
            }
            Row::Tenant(_) | Row::Owner(_) => {
                let newest = self.written.entry(row.key()).or_default();
                *newest = revision.max(*newest);
            }
            Row::Key(_) | Row::Removed { .. } => {}
        }
        Ok(())
    }

    /// Adds a damaged row.
    pub(in crate::store) fn damaged(&mut self, row: &RowKey) {
        self.add(format!("{}: its row is damaged", described(row)));
    }

    /// Adds a whole row of a tenant that has no head and no audit entry.
    #[cfg(feature = "sqlite")]
    pub(in crate::store) fn headless(&mut self, row: &RowKey) {
        let row = described(row);
        self.add(format!(
            "{row}: left out, because its tenant has no head and no audit entry"
        ));
    }

    fn entry(&mut self, row: &impl Cells) -> Result<(), RowFault> {
        self.audit += 1;
        match entry(row)? {
            Ok(row) => {
                self.explain(&row);
                let AuditRow { entry, revision } = row;
                if let Some(name) = RowKey::narrowed_by(&entry) {
                    let own = self.written.get(&name).copied().unwrap_or_default();
                    if own < revision {
                        let is = match own {
                            Revision::ZERO => "missing".to_owned(),
                            own => format!("of revision {own}"),
                        };
                        let name = described(&name);
                        self.add(format!(
                            "{name}: its row is {is}, and an audit entry about it is of revision {revision}"
                        ));
                    }
                }
            }
            Err(AuditPosition { revision, sequence }) => self.add(format!(
                "audit entry {sequence} of revision {revision} is damaged"
            )),
        }
        Ok(())
    }

    /// Keeps the removal or the loss of entries that an audit entry records.
    pub(in crate::store) fn explain(&mut self, AuditRow { entry, revision }: &AuditRow) {
        if self.audited.insert(entry.tenant.clone()) && entry.sequence > 1 {
            self.explained_before = self.explained_before.max(*revision);
        }
        match &entry.action {
            Action::TrailPruned { through } => {
                let checkpoint = (entry.tenant.clone(), through.sequence);
                self.checkpoints.insert(checkpoint);
            }
            Action::EntriesLost { after, through } => {
                self.explained_before = self.explained_before.max(*revision);
                let gaps = self.gaps.entry(entry.tenant.clone()).or_default();
                gaps.insert((after.sequence, through.sequence));
            }
            _ => {}
        }
    }

    /// Adds the recorded losses of a trail that begins with the entry `oldest`. Returns the number of lost entries
    /// after it, and whether the entries before it are lost.
    fn lost(&mut self, tenant: &TenantId, oldest: u64) -> (u64, bool) {
        let (mut lost, mut counted, mut is_begin_lost) = (0, 0, false);
        for (after, through) in self.gaps.get(tenant).into_iter().flatten() {
            // A gap before the oldest entry was pruned, unless it is all that comes before the entry.
            let is_begin = *after == 0 && through + 1 == oldest;
            is_begin_lost |= is_begin;
            if !is_begin && *after < oldest {
                continue;
            }
            let from = counted.max(*after);
            counted = counted.max(*through);
            if !is_begin {
                lost += counted - from;
            }
            let lost = match after == through {
                true => format!("audit entries after {after} may be lost"),
                false => format!("audit entries {} to {through} are lost", after + 1),
            };
            self.losses
                .push(format!("tenant {tenant}: {lost}, as a later entry records"));
        }
        (lost, is_begin_lost)
    }

    /// Compares a tenant's head with its audit trail. The trail must end with the entry that the head names and
    /// have no gap, unless a later entry records the gap. If it does not begin with the first entry, a checkpoint must
    /// record the removal.
    fn trail(&mut self, row: &impl Cells) -> Result<(), RowFault> {
        let (tenant, head) = TenantHead::read(row)?;
        let count = row.number(6, "the number of audit entries")?.unsigned_abs();
        let newest = row.number(7, "the newest audit entry")?.unsigned_abs();
        let oldest = row.number(8, "the oldest audit entry")?.unsigned_abs();
        let removed = oldest.saturating_sub(1);
        let expected = head.audit.sequence;
        let (lost, is_begin_lost) = self.lost(&tenant, oldest);
        let present = removed.saturating_add(count).saturating_add(lost);
        let is_explained =
            removed == 0 || is_begin_lost || self.checkpoints.contains(&(tenant.clone(), removed));
        let unexplained = if is_explained { 0 } else { removed };
        let missing = expected.saturating_sub(present).saturating_add(unexplained);
        if missing > 0 {
            self.missing.insert(tenant.clone(), missing);
        }
        if (present, newest) != (expected, expected) {
            self.add(format!(
                "tenant {tenant}: {count} audit entries from {oldest} up to {newest}, should be {expected}"
            ));
        } else if !is_explained {
            self.add(format!(
                "tenant {tenant}: its audit trail begins at entry {oldest}, and no checkpoint says why"
            ));
        }
        Ok(())
    }
}

fn described(row: &RowKey) -> String {
    match row {
        RowKey::Key(id) => format!("key {id}"),
        RowKey::Owner(tenant, owner) => format!("owner {owner} in tenant {tenant}"),
        RowKey::Tenant(tenant) => format!("tenant {tenant}"),
    }
}

/// Selects the row counts of a store, for [`stats`].
pub(in crate::store) const COUNTS: &str = "SELECT count(*) FILTER (WHERE kind = 2), \
     count(*) FILTER (WHERE kind = 3), count(*) FILTER (WHERE kind = 1), \
     count(*) FILTER (WHERE kind = 0), (SELECT count(*) FROM $s.audit) FROM $s.rows";

/// Builds the statistics of a store from a row of [`COUNTS`].
pub(in crate::store) fn stats(
    counts: &impl Cells,
    head: Cursor,
    (bytes, log_bytes): (u64, u64),
    engine: String,
) -> Result<Stats, RowFault> {
    let count = |column| Ok(counts.number(column, "a count")?.unsigned_abs());
    Ok(Stats {
        head,
        keys: count(0)?,
        removed: count(1)?,
        owners: count(2)?,
        tenants: count(3)?,
        audit: count(4)?,
        bytes,
        log_bytes,
        engine,
    })
}
