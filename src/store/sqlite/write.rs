//! A commit, applied within a transaction.

use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, params};

use super::fault::Fault;
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
    id_bytes, place, revision_of,
};
use crate::store::{Commit, CommitError, Epoch, Row, RowKey};

/// The revision of a commit, or the reason why it was refused, with nothing written.
type Verdict = Result<Revision, CommitError>;

/// Checks a commit against what the transaction sees, and writes it at the next revision.
pub(super) fn apply(conn: &Connection, head: &mut Head, commit: &Commit) -> Result<Verdict, Fault> {
    let before = head::tenant(conn, &commit.tenant)?;
    let standing = match check(conn, commit, (head.store.epoch, before.as_ref()))? {
        Ok(standing) => standing,
        Err(refused) => return Ok(Err(refused)),
    };
    let next = head.advance(commit.tag);
    let revision = next.revision;
    head::write_commit(conn, next)?;
    for (number, row) in commit.rows().enumerate() {
        let new = matches!(&row, Row::Key(record) if !standing.contains(&record.id));
        put(conn, place(revision, number)?, &row, new)?;
    }
    for (digest, key) in commit.imported() {
        keep_digest(conn, &digest, key)?;
    }
    for (number, entry) in commit.effects.audit.iter().enumerate() {
        note(conn, place(revision, number)?, entry)?;
    }
    let after = TenantHead::after(before, commit, revision);
    head::write_tenant(conn, &commit.tenant, &after)?;
    Ok(Ok(revision))
}

/// Returns the keys of the commit that have a row, or the reason why the commit is refused.
fn check(
    conn: &Connection,
    commit: &Commit,
    (epoch, before): (Epoch, Option<&TenantHead>),
) -> Result<Result<HashSet<KeyId>, CommitError>, Fault> {
    let at = before.map_or(Revision::ZERO, |head| head.revision);
    // The revisions are read here, because the callback of the check cannot fail.
    let mut guarded = HashMap::new();
    for guard in &commit.guards {
        guarded.insert(&guard.row, row_at(conn, &guard.row)?);
    }
    let mut standing = HashSet::new();
    let mut taken = Vec::new();
    let mut holders = Vec::new();
    for record in &commit.effects.puts {
        if at == commit.expected {
            match holder_of(conn, record)? {
                Holder::Nobody => {}
                Holder::Own => drop(standing.insert(record.id)),
                Holder::Other => taken.push(record.id),
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
    Ok(checked.map(|()| standing))
}

/// Returns the commit that wrote a row; zero for a row that does not exist.
fn row_at(conn: &Connection, row: &RowKey) -> Result<Revision, Fault> {
    let named = "SELECT place FROM rows WHERE kind = ?1 AND tenant = ?2 AND name = ?3";
    fn read(row: &rusqlite::Row<'_>) -> Result<i64, Fault> {
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

/// The holder of a record's id.
enum Holder {
    Nobody,
    /// The tenant's own key.
    Own,
    /// Another tenant's key, or a removed one.
    Other,
}

fn holder_of(conn: &Connection, record: &KeyRecord) -> Result<Holder, Fault> {
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
        Some(true) => Holder::Own,
        Some(false) => Holder::Other,
        None if gone()? => Holder::Other,
        None => Holder::Nobody,
    })
}

/// Records which key has an imported digest, unless the digest has a row already.
pub(super) fn keep_digest(conn: &Connection, digest: &Digest, key: KeyId) -> Result<(), Fault> {
    let sql = "INSERT OR IGNORE INTO digests (digest, id, seal) VALUES (?1, ?2, ?3)";
    let seal = digest_seal(digest, key);
    conn.prepare_cached(sql)?
        .execute(params![digest.as_bytes(), id_bytes(key), seal])?;
    Ok(())
}

/// Moves a row to its new place. A `new` row has no earlier place.
pub(super) fn put(conn: &Connection, place: i64, row: &Row, new: bool) -> Result<(), Fault> {
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
               (place, kind, tenant, name, id, ends, legacy, fingerprint, body, seal) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
    let seal = columns.seal(place);
    let RowColumns {
        kind,
        tenant,
        name,
        id,
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
        ends,
        legacy,
        fingerprint,
        body,
        seal
    ])?;
    Ok(())
}

pub(super) fn note(conn: &Connection, place: i64, entry: &AuditEntry) -> Result<(), Fault> {
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
