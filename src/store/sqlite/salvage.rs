//! Copies the undamaged rows of a file to a new file.
//!
//! Invariant: a key of the new file accepts nothing that the key refused in the damaged file. So the salvage
//! leaves out each damaged row, and every key that the row might narrow. It also leaves out a row that is older than
//! an audit entry about it, because a damaged page can make SQLite return an older version. If that file has no trace of
//! the entry either, nothing shows that the row is old.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, Row as SqlRow, params};

use super::copy::put;
use super::damage::{each_entry_in_gap, each_readable, each_row_in_gap, named_rows, numbered_keys};
use super::fault::{OpenError, SqliteFault};
use super::file::{DraftStore, StoreFile, refuse_existing, refuse_leftovers};
use super::rows::{dialect, each, one};
use super::{documents, head, nodes, registry, schema, write};
use crate::core::audit::AuditHead;
use crate::core::id::KeyId;
use crate::core::record::KeyRecord;
use crate::core::tenant::TenantId;
use crate::core::view::Revision;
use crate::store::sql::{
    AUDIT_COLUMNS, Cells, CommitRow, Head, IntegrityPass, StoreRow, TENANT_COLUMNS, TenantHead,
    change, entry, id_bytes, id_of, item, place_of, revision_of, table,
};
use crate::store::transfer::{Item, Part};
use crate::store::{
    AuditRow, Change, CommitTag, Document, DocumentName, Epoch, IntegrityReport, Row, RowKey,
    SalvageMark,
};

/// Copies every undamaged row of `from` to a new file at `to`, which is marked as unrecovered. The report counts
/// the copied rows, and names the rows that were left out.
pub(super) fn salvage(from: &StoreFile, to: &Path) -> Result<IntegrityReport, OpenError> {
    if from.identity()?.is_none() {
        return Err(OpenError::NotFound {
            path: from.path.clone(),
        });
    }
    refuse_existing(to)?;
    refuse_leftovers(to)?;
    let damaged = from.open_damaged(|| DraftStore::beside(to));
    let damaged = damaged.map_err(OpenError::unsalvageable)?;
    let draft = DraftStore::beside(to)?;
    let file = StoreFile {
        path: draft.path.clone(),
        ..from.clone()
    };
    let mut target = file.connect()?;
    schema::create(&mut target).map_err(|fault| OpenError::of(to, fault))?;
    let lease = registry::longest_lease(from);
    let copied = copy(&damaged.opened.conn, &target, lease).and_then(|report| {
        StoreFile::checkpoint(&target)?;
        Ok(report)
    });
    damaged.check_unchanged(from)?;
    let fail = |fault| OpenError::of(&from.path, fault).unsalvageable();
    let report = copied.map_err(fail)?;
    if damaged.is_copy() && report.rows + report.audit == 0 {
        return Err(fail(SqliteFault::Corrupt("no row can be read".to_owned())));
    }
    drop((damaged, target));
    draft.publish(to)?;
    Ok(report)
}

/// Copies between two connections. The longest lease in the node registry of the source is `lease`.
fn copy(
    from: &Connection,
    to: &Connection,
    lease: Duration,
) -> Result<IntegrityReport, SqliteFault> {
    from.execute_batch("BEGIN")?;
    to.execute_batch("BEGIN IMMEDIATE")?;
    let mut salvage = Salvage {
        from,
        to,
        report: IntegrityReport::default(),
        tenants: BTreeSet::new(),
        lost: Vec::new(),
        named: BTreeSet::new(),
        narrowed: BTreeMap::new(),
    };
    salvage.items(Part::Audit)?;
    salvage.tenants()?;
    salvage.count_missing_entries()?;
    salvage.items(Part::Digests)?;
    salvage.items(Part::Gone)?;
    salvage.items(Part::Documents)?;
    salvage.owners()?;
    salvage.keys()?;
    salvage.lost_ends()?;
    salvage.end(lease)?;
    let Salvage { report, .. } = salvage;
    to.execute_batch("COMMIT")?;
    Ok(report)
}

/// The rows that a scan could not read.
struct Unread {
    /// The names of those that an index names.
    names: Vec<RowKey>,
    /// The places of those whose own name cannot be read.
    unnamed: Vec<i64>,
    /// True if every row of the table could be read far enough to have a name.
    all_named: bool,
}

struct Salvage<'a> {
    from: &'a Connection,
    to: &'a Connection,
    report: IntegrityReport,
    /// The tenants that have a head in the new file.
    tenants: BTreeSet<TenantId>,
    /// The rows of tenants and owners that are damaged. They may end or narrow keys.
    lost: Vec<RowKey>,
    /// The keys that the report names.
    named: BTreeSet<KeyId>,
    /// The tenants and owners that a whole audit entry ended or narrowed, each with the revision of that entry.
    narrowed: BTreeMap<RowKey, Revision>,
}

impl Salvage<'_> {
    /// Writes an item. Skips an item that is already in the new file.
    fn put(&mut self, item: &Item) -> Result<bool, SqliteFault> {
        match put(self.to, item) {
            Err(SqliteFault::Sql(error))
                if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) =>
            {
                self.report.add(format!(
                    "an item of the {} was read twice, because a page is damaged",
                    item.part()
                ));
                Ok(false)
            }
            written => written.map(|()| true),
        }
    }

    /// Copies the items of a part. Reports those that are damaged.
    fn items(&mut self, part: Part) -> Result<(), SqliteFault> {
        let (from, table) = (self.from, table(part));
        let gap = each_readable(from, table, |row| self.item(part, row))?;
        let Some(gap) = gap else {
            return Ok(());
        };
        if part == Part::Audit {
            for name in each_entry_in_gap(from, &gap, |row| self.item(part, row))? {
                self.report.unreadable(&name);
            }
        }
        self.report
            .add(format!("table {}: {}", table.name, gap.fault));
        Ok(())
    }

    fn item(&mut self, part: Part, row: &SqlRow<'_>) -> Result<(), SqliteFault> {
        let item = match item(part, row) {
            Ok(item) => item,
            Err(fault) => {
                self.report.add(fault);
                return Ok(());
            }
        };
        if self.put(&item)? {
            match item {
                Item::Audit { row, .. } => {
                    self.report.audit += 1;
                    self.report.explain(&row);
                    if let Some(name) = RowKey::narrowed_by(&row.entry) {
                        let newest = self.narrowed.entry(name).or_default();
                        *newest = row.revision.max(*newest);
                    }
                }
                Item::Tenant { tenant, .. } => drop(self.tenants.insert(tenant)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Copies the heads of tenants. The newest whole audit entry of a tenant replaces a head that is damaged, or that
    /// is older because a write to its page was lost.
    fn tenants(&mut self) -> Result<(), SqliteFault> {
        self.items(Part::Tenants)?;
        let mut newest = Vec::new();
        let sql = format!(
            "SELECT {AUDIT_COLUMNS} FROM audit AS a WHERE \
             NOT EXISTS (SELECT 1 FROM tenants AS t WHERE t.tenant = a.tenant AND t.sequence >= a.sequence) AND \
             sequence = (SELECT max(sequence) FROM audit WHERE tenant = a.tenant)"
        );
        each(self.to, &sql, [], |row| {
            newest.extend(entry(row)?);
            Ok(true)
        })?;
        for AuditRow { revision, entry } in newest {
            let tenant = entry.tenant.clone();
            self.report.add(format!(
                "tenant {tenant}: its head is damaged or old; its newest whole audit entry, {}, replaces the head",
                entry.sequence
            ));
            let head = TenantHead {
                revision,
                decided_at: entry.at,
                audit: entry.head(),
            };
            head::write_tenant(self.to, &tenant, &head)?;
            self.tenants.insert(tenant);
        }
        Ok(())
    }

    /// Finds the trails that lack their ends: a row of the tenant is of a later commit than its head. The row is kept,
    /// so the head must not be older.
    fn lost_ends(&mut self) -> Result<(), SqliteFault> {
        let sql = format!(
            "SELECT {TENANT_COLUMNS}, newest FROM tenants JOIN \
             (SELECT tenant AS name, max(place) AS newest FROM rows GROUP BY tenant) ON name = tenant"
        );
        let mut behind = Vec::new();
        each(self.to, &sql, [], |row| {
            let (tenant, head) = TenantHead::read(row)?;
            let newest = revision_of(row.get("newest")?);
            if newest > head.revision {
                behind.push((
                    tenant,
                    TenantHead {
                        revision: newest,
                        ..head
                    },
                ));
            }
            Ok(true)
        })?;
        for (tenant, head) in behind {
            head::write_tenant(self.to, &tenant, &head)?;
            self.report.add(format!(
                "tenant {tenant}: a row is of a later commit than its newest audit entry, {}, so later entries are \
                 lost",
                head.audit.sequence
            ));
        }
        Ok(())
    }

    /// Counts the audit entries that the new file lacks, damaged ones included. Their own lines name them.
    fn count_missing_entries(&mut self) -> Result<(), SqliteFault> {
        let mut trails = self.report.clone();
        let pass = IntegrityPass::Trails;
        each(self.to, &dialect(&pass.sql()), [], |row| {
            trails.look(pass, row);
            Ok(true)
        })?;
        self.report.missing = trails.missing;
        Ok(())
    }

    /// Calls `look` with every row of tenants, owners and keys that can be read.
    fn each_row(
        &mut self,
        mut look: impl FnMut(&mut Self, Change, i64) -> Result<(), SqliteFault>,
    ) -> Result<Unread, SqliteFault> {
        let from = self.from;
        let mut unnamed = Vec::new();
        let mut read = |row: &SqlRow<'_>| match change(row) {
            Ok(change) => look(self, change, row.get(0)?),
            Err(_) => {
                unnamed.push(row.get(0)?);
                Ok(())
            }
        };
        let gap = each_readable(from, table(Part::Rows), &mut read)?;
        let has_gap = gap.is_some();
        let names = match gap {
            Some(gap) => each_row_in_gap(from, &gap, read)?,
            None => Vec::new(),
        };
        Ok(Unread {
            names,
            all_named: unnamed.is_empty() && !has_gap,
            unnamed,
        })
    }

    /// Copies the rows of tenants and owners. Records the damaged rows.
    fn owners(&mut self) -> Result<(), SqliteFault> {
        let mut whole: BTreeMap<RowKey, (i64, Change)> = BTreeMap::new();
        let mut lost = BTreeSet::new();
        let unread = self.each_row(|_, change, place| {
            let name = change.row.key();
            match &change.row {
                Row::Tenant(_) | Row::Owner(_) => {
                    let newest = whole.get(&name).map_or(i64::MIN, |(place, _)| *place);
                    if place > newest {
                        whole.insert(name, (place, change));
                    }
                }
                Row::Corrupt(RowKey::Tenant(_) | RowKey::Owner(..)) => drop(lost.insert(name)),
                _ => {}
            }
            Ok(())
        })?;
        match named_rows(self.from)? {
            Some(named) => {
                let named: BTreeMap<_, _> =
                    named.into_iter().map(|(at, name)| (name, at)).collect();
                // The index has no seal. If it does not name a whole row, either of the two may be wrong.
                let differs =
                    |(name, (place, _)): &(RowKey, (i64, Change))| named.get(name) != Some(place);
                let (other, same): (BTreeMap<_, _>, BTreeMap<_, _>) =
                    whole.into_iter().partition(differs);
                whole = same;
                lost.extend(other.into_keys());
                lost.extend(named.into_keys().filter(|name| !whole.contains_key(name)));
            }
            // The name of a damaged row may be wrong, and no index corrects it.
            None if unread.all_named && lost.is_empty() => {}
            None => {
                return Err(SqliteFault::Corrupt(
                    "the rows of tenants and owners and their index are damaged, so the keys that \
                     they end are unknown"
                        .to_owned(),
                ));
            }
        }
        for (name, revision) in mem::take(&mut self.narrowed) {
            let own = whole.get(&name).map(|(_, change)| change.revision);
            if own.is_none_or(|own| own < revision) {
                lost.insert(name);
            }
        }
        let mut headless = Vec::new();
        for (name, (place, change)) in whole {
            let tenant = match &name {
                RowKey::Tenant(tenant) | RowKey::Owner(tenant, _) => tenant,
                RowKey::Key(_) => continue,
            };
            match &change.row {
                _ if lost.contains(&name) => {}
                _ if self.tenants.contains(tenant) => self.row(change, place)?,
                // Nobody may open the tenant again. Its keys are left out.
                Row::Tenant(row) if row.closed.is_some() => {
                    let head = TenantHead {
                        revision: change.revision,
                        decided_at: row.updated.at,
                        audit: AuditHead::GENESIS,
                    };
                    head::write_tenant(self.to, tenant, &head)?;
                    let fault =
                        format!("tenant {tenant}: its audit entries are lost; it stays closed");
                    self.report.add(fault);
                    self.row(change, place)?;
                }
                _ => headless.push(name),
            }
        }
        lost.iter().for_each(|row| self.report.damaged(row));
        headless.iter().for_each(|row| self.report.headless(row));
        self.lost.extend(lost);
        self.lost.extend(headless);
        Ok(())
    }

    fn row(&mut self, change: Change, place: i64) -> Result<(), SqliteFault> {
        let Ok(number) = u32::try_from(place - place_of(change.revision, 0)?) else {
            return Ok(());
        };
        let copied = self.put(&Item::Row { change, number })?;
        self.report.rows += u64::from(copied);
        Ok(())
    }

    /// Copies the rows of keys, and the tombstones.
    fn keys(&mut self) -> Result<(), SqliteFault> {
        let mut damaged = BTreeMap::new();
        let unread = self.each_row(|salvage, change, place| match &change.row {
            Row::Key(record) => match salvage.reason_against(record, place)? {
                None => {
                    if let Some(digest) = record.credential.imported() {
                        write::insert_digest(salvage.to, digest, record.id)?;
                    }
                    salvage.row(change, place)
                }
                Some(why) => {
                    salvage.named.insert(record.id);
                    salvage
                        .report
                        .add(format!("key {}: left out, because {why}", record.id));
                    Ok(())
                }
            },
            Row::Removed { key, tenant } if !salvage.tenants.contains(tenant) => {
                // No key may use the id again.
                let sql = "INSERT OR IGNORE INTO gone (id) VALUES (?1)";
                salvage.to.execute(sql, [id_bytes(*key)])?;
                Ok(())
            }
            Row::Removed { .. } => salvage.row(change, place),
            Row::Corrupt(name @ RowKey::Key(_)) => {
                damaged.insert(place, name.clone());
                Ok(())
            }
            Row::Corrupt(_) | Row::Tenant(_) | Row::Owner(_) => Ok(()),
        })?;
        if !damaged.is_empty() || !unread.unnamed.is_empty() {
            // The damage may be in the id. The index of keys has the id too.
            for (place, name) in numbered_keys(self.from)?.unwrap_or_default() {
                if damaged.contains_key(&place) || unread.unnamed.contains(&place) {
                    damaged.insert(place, name);
                }
            }
        }
        for place in unread.unnamed {
            if !damaged.contains_key(&place) {
                let revision = revision_of(place);
                self.report.add(format!(
                    "a row of revision {revision} is damaged, and its name too"
                ));
            }
        }
        for name in damaged.into_values().chain(unread.names) {
            if let RowKey::Key(id) = name {
                self.named.insert(id);
                self.report.damaged(&name);
            }
        }
        self.missing_keys()
    }

    /// Reports the keys that only the audit trail still names: neither their rows nor their index can be read.
    fn missing_keys(&mut self) -> Result<(), SqliteFault> {
        let sql = "SELECT DISTINCT key FROM audit AS a WHERE key IS NOT NULL \
                   AND NOT EXISTS (SELECT 1 FROM rows WHERE id = a.key) \
                   AND NOT EXISTS (SELECT 1 FROM gone WHERE id = a.key)";
        let mut missing = Vec::new();
        each(self.to, sql, [], |row| {
            missing.extend(id_of(row.bytes(0, "the key of an audit entry")?));
            Ok(true)
        })?;
        for key in missing {
            if self.named.insert(key) {
                self.report.unreadable(&format!("key {key}"));
            }
        }
        Ok(())
    }

    /// Returns the reason for leaving out a whole row of a key.
    fn reason_against(
        &self,
        record: &KeyRecord,
        place: i64,
    ) -> Result<Option<&'static str>, SqliteFault> {
        let related =
            |tenant: &TenantId| tenant.contains(&record.tenant) || record.tenant.contains(tenant);
        let narrows = |row: &RowKey| match row {
            RowKey::Tenant(tenant) => related(tenant),
            RowKey::Owner(tenant, owner) => {
                related(tenant) && record.owner.principal() == Some(owner)
            }
            RowKey::Key(_) => false,
        };
        Ok(if !self.tenants.contains(&record.tenant) {
            Some("its tenant has no head and no audit entry")
        } else if self.lost.iter().any(narrows) {
            Some("the row of its owner or of a tenant above or below is damaged")
        } else if !self.is_newest(record.id, place)? {
            Some("this row is an older version of it")
        } else {
            None
        })
    }

    /// Returns whether the row at `place` is the newest version of the key's row: it must not be older than the newest
    /// audit entry about the key, and must be the one that the index of keys names. If the index is damaged,
    /// there must be such an entry.
    fn is_newest(&self, key: KeyId, place: i64) -> Result<bool, SqliteFault> {
        let id = id_bytes(key);
        let by_key = "SELECT max(place) FROM audit WHERE key = ?1";
        let newest = |conn| one(conn, by_key, params![id], |row| Ok(row.get(0)?));
        let entry: Option<i64> = newest(self.to)?.flatten();
        // A damaged entry still names its key.
        let any: Option<i64> = readable(newest(self.from))?.flatten().flatten();
        let entry = entry.max(any);
        if entry.is_some_and(|entry| revision_of(entry) > revision_of(place)) {
            return Ok(false);
        }
        let by_id = "SELECT place FROM rows INDEXED BY rows_by_id WHERE id = ?1";
        let newest: Option<Option<i64>> =
            readable(one(self.from, by_id, [id], |row| Ok(row.get(0)?)))?;
        Ok(match newest.flatten() {
            Some(newest) => newest == place,
            None => entry.is_some(),
        })
    }

    /// Writes the head of the new file: a history of its own, which must be recovered.
    fn end(&mut self, lease: Duration) -> Result<(), SqliteFault> {
        let head = readable(head::read(self.from))?;
        let origin = head.map(|Head { mut store, .. }| {
            store.mark_unrecovered();
            store.restored_from
        });
        let newest = "SELECT coalesce(max(place), 0) FROM \
                      (SELECT max(place) AS place FROM rows UNION ALL SELECT max(place) FROM audit)";
        let newest = one(self.to, newest, [], |row| Ok(revision_of(row.get(0)?)))?;
        let revision = newest.unwrap_or_default();
        let pass = IntegrityPass::Commits;
        let commits = each(self.from, &dialect(&pass.sql()), [], |row| {
            self.report.look(pass, row);
            Ok(true)
        });
        readable(commits)?;
        if revision > Revision::ZERO {
            let tag = CommitTag(schema::random(self.to)?);
            head::write_commit(self.to, CommitRow { revision, tag })?;
        }
        let store = StoreRow {
            epoch: Epoch(schema::random(self.to)?),
            floor: revision,
            restored_from: origin.flatten().or(Some(Epoch::UNKNOWN)),
        };
        head::write_store(self.to, &store)?;
        documents::end_history(self.to)?;
        if !self.report.is_sound() || !self.report.missing.is_empty() {
            let name = DocumentName::SALVAGE;
            let known = documents::find(self.to, &name)?;
            let version = known.map_or(1, |known| known.version.saturating_add(1));
            let body = SalvageMark::Unrecorded.body().to_vec();
            documents::put(
                self.to,
                &Document {
                    name,
                    version,
                    body,
                },
            )?;
        }
        let own = readable(nodes::longest_lease(self.from))?;
        nodes::end_history(self.to, lease.max(own.unwrap_or_default()))
    }
}

/// Returns `None` for a read that a damaged page ended.
fn readable<T>(read: Result<T, SqliteFault>) -> Result<Option<T>, SqliteFault> {
    match read {
        Err(fault) if fault.is_damage() => Ok(None),
        read => read.map(Some),
    }
}
