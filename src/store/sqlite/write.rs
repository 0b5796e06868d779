//! Checks a commit and writes its rows, within the writer's transaction.

use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, params};

use super::fault::SqliteFault;
use super::head;
use super::read::holder;
use super::rows::one;
use crate::core::audit::AuditEntry;
use crate::core::id::KeyId;
use crate::core::record::KeyRecord;
use crate::core::secret::Digest;
use crate::core::view::Revision;
use crate::store::sql::{
    AuditColumns, Cell, Cells, Head, KEY, OWNER, RowColumns, TENANT, TenantHead, digest_seal,
    id_bytes, place, revision_of, signed,
};
use crate::store::{Commit, CommitError, Epoch, Row, RowKey};

/// Checks a commit against the current rows, and writes the commit at the next revision.
///
/// The inner result is the new revision, or the reason for a refusal. A refused commit writes nothing.
pub(super) fn apply(
    conn: &Connection,
    head: &mut Head,
    commit: &Commit,
) -> Result<Result<Revision, CommitError>, SqliteFault> {
    let before = head::tenant(conn, &commit.tenant)?;
    let existing = match check(conn, commit, (head.store.epoch, before.as_ref()))? {
        Ok(existing) => existing,
        Err(refused) => return Ok(Err(refused)),
    };
    let next = head.advance(commit.tag);
    let revision = next.revision;
    head::write_commit(conn, next)?;
    for (number, row) in commit.rows().enumerate() {
        let new = matches!(&row, Row::Key(record) if !existing.contains(&record.id));
        put(conn, place(revision, number)?, &row, new)?;
    }
    for (digest, key) in commit.imported() {
        insert_digest(conn, &digest, key)?;
    }
    for (number, entry) in commit.effects.audit.iter().enumerate() {
        insert_audit_entry(conn, place(revision, number)?, entry)?;
    }
    if let Some(through) = commit.effects.prune {
        let sql = "DELETE FROM audit WHERE tenant = ?1 AND sequence <= ?2";
        let with = params![commit.tenant.as_str(), signed(through)?];
        conn.prepare_cached(sql)?.execute(with)?;
    }
    let after = TenantHead::after(before, commit, revision);
    head::write_tenant(conn, &commit.tenant, &after)?;
    Ok(Ok(revision))
}

/// Returns the keys of the commit that already have a row, or the reason for refusing the commit.
fn check(
    conn: &Connection,
    commit: &Commit,
    (epoch, before): (Epoch, Option<&TenantHead>),
) -> Result<Result<HashSet<KeyId>, CommitError>, SqliteFault> {
    let at = before.map_or(Revision::ZERO, |head| head.revision);
    // Reads the revisions of the guarded rows first, because the closure passed to `Commit::check` cannot
    // return an error.
    let mut guarded = HashMap::new();
    for guard in &commit.guards {
        guarded.insert(&guard.row, row_at(conn, &guard.row)?);
    }
    let mut existing = HashSet::new();
    let mut taken = Vec::new();
    let mut holders = Vec::new();
    for record in &commit.effects.puts {
        if at == commit.expected {
            match id_status(conn, record)? {
                IdStatus::Free => {}
                IdStatus::OwnKey => drop(existing.insert(record.id)),
                IdStatus::Taken => taken.push(record.id),
            }
        }
    }
    for (digest, _) in commit.imported() {
        if let Some(holder) = holder(conn, &digest)? {
            holders.push((digest, holder));
        }
    }
    let holds = |digest: &Digest| {
        let mut all = holders.iter();
        all.find(|(own, _)| own == digest).map(|(_, key)| *key)
    };
    let row_at = |row: &RowKey| guarded.get(row).copied().unwrap_or_default();
    let writable = |record: &KeyRecord| !taken.contains(&record.id);
    let checked = commit.check((epoch, at), row_at, writable, holds);
    Ok(checked.map(|()| existing))
}

/// Returns the revision of the commit that last wrote a row. Zero if the row does not exist.
fn row_at(conn: &Connection, row: &RowKey) -> Result<Revision, SqliteFault> {
    let named = "SELECT place FROM rows WHERE kind = ?1 AND tenant = ?2 AND name = ?3";
    fn read(row: &rusqlite::Row<'_>) -> Result<i64, SqliteFault> {
        Ok(row.get(0)?)
    }
    let place: Option<i64> = match row {
        RowKey::Tenant(tenant) => one(conn, named, params![TENANT, tenant.as_str(), ""], read),
        RowKey::Owner(tenant, owner) => {
            let with = params![OWNER, tenant.as_str(), owner.as_str()];
            one(conn, named, with, read)
        }
        RowKey::Key(id) => {
            let by_id = "SELECT place FROM rows WHERE id = ?1";
            one(conn, by_id, [id_bytes(*id)], read)
        }
    }?;
    Ok(place.map_or(Revision::ZERO, revision_of))
}

/// The state of a key id in the store before the commit: free, used by the tenant's own key, or taken.
enum IdStatus {
    Free,
    /// A key of the record's tenant has the id.
    OwnKey,
    /// A removed key or another tenant's key has the id.
    Taken,
}

fn id_status(conn: &Connection, record: &KeyRecord) -> Result<IdStatus, SqliteFault> {
    let id = id_bytes(record.id);
    let sql = "SELECT kind, tenant FROM rows WHERE id = ?1";
    let found = one(conn, sql, [id], |row| {
        let own = row.cell(1) == Cell::Text(record.tenant.as_str());
        Ok(row.cell(0) == Cell::Number(KEY) && own)
    })?;
    let gone = || {
        conn.prepare_cached("SELECT 1 FROM gone WHERE id = ?1")?
            .exists([id])
    };
    Ok(match found {
        Some(true) => IdStatus::OwnKey,
        Some(false) => IdStatus::Taken,
        None if gone()? => IdStatus::Taken,
        None => IdStatus::Free,
    })
}

/// Stores the key of an imported digest, unless the digest already has a row.
pub(super) fn insert_digest(
    conn: &Connection,
    digest: &Digest,
    key: KeyId,
) -> Result<(), SqliteFault> {
    let sql = "INSERT OR IGNORE INTO digests (digest, id, seal) VALUES (?1, ?2, ?3)";
    let seal = digest_seal(digest, key);
    conn.prepare_cached(sql)?
        .execute(params![digest.as_bytes(), id_bytes(key), seal])?;
    Ok(())
}

/// Writes a row at `place`, and deletes the row's earlier version. If `new` is true, the row has no earlier
/// version.
pub(super) fn put(conn: &Connection, place: i64, row: &Row, new: bool) -> Result<(), SqliteFault> {
    let columns = RowColumns::of(row)?;
    match row {
        Row::Tenant(row) => {
            let sql = "DELETE FROM rows WHERE kind = 0 AND tenant = ?1 AND name = ''";
            conn.prepare_cached(sql)?.execute([row.tenant.as_str()])?;
        }
        Row::Owner(row) => {
            let sql = "DELETE FROM rows WHERE kind = 1 AND tenant = ?1 AND name = ?2";
            let place = [row.tenant.as_str(), row.owner.as_str()];
            conn.prepare_cached(sql)?.execute(place)?;
        }
        Row::Key(_) if new => {}
        Row::Key(_) | Row::Removed { .. } | Row::Corrupt(_) => {
            conn.prepare_cached("DELETE FROM rows WHERE id = ?1")?
                .execute([&columns.id])?;
        }
    }
    let sql = "INSERT INTO rows \
               (place, kind, tenant, name, id, class, ends, legacy, fingerprint, body, seal) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
    let seal = columns.seal(place);
    let RowColumns {
        kind,
        tenant,
        name,
        id,
        class,
        ends,
        legacy,
        fingerprint,
        body,
    } = columns;
    conn.prepare_cached(sql)?.execute(params![
        place,
        kind,
        tenant,
        name,
        id,
        class,
        ends,
        legacy,
        fingerprint,
        body,
        seal
    ])?;
    Ok(())
}

pub(super) fn insert_audit_entry(
    conn: &Connection,
    place: i64,
    entry: &AuditEntry,
) -> Result<(), SqliteFault> {
    let entry = AuditColumns::of(entry)?;
    let seal = entry.seal(place);
    let AuditColumns {
        tenant,
        sequence,
        command,
        key,
        body,
    } = entry;
    let sql = "INSERT INTO audit (place, tenant, sequence, command, key, body, seal) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let columns = params![place, tenant, sequence, command, key, body, seal];
    conn.prepare_cached(sql)?.execute(columns)?;
    Ok(())
}
