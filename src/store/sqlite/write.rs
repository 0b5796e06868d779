//! A commit, applied within a transaction.

use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, OptionalExtension, params};

use super::fault::Fault;
use super::head::{self, Head};
use super::rows::insert;
use crate::core::audit::AuditEntry;
use crate::core::id::KeyId;
use crate::core::record::KeyRecord;
use crate::core::secret::Digest;
use crate::core::view::Revision;
use crate::store::rows::{
    self, AuditColumns, Fields, KEY, OWNER, TENANT, TenantHead, digest_holder, digest_seal,
    id_bytes, revision_of,
};
use crate::store::{Commit, CommitError, Epoch, Row, RowKey};

/// What became of a commit: its revision, or why it was refused, with nothing written.
type Verdict = Result<Revision, CommitError>;

/// Checks a commit against what the transaction sees, and writes it at the next revision.
pub(super) fn apply(conn: &Connection, head: &mut Head, commit: &Commit) -> Result<Verdict, Fault> {
    let before = head::tenant(conn, &commit.tenant)?;
    let standing = match check(conn, commit, (head.cursor.epoch, before.as_ref()))? {
        Ok(standing) => standing,
        Err(refused) => return Ok(Err(refused)),
    };
    let revision = head.advance(conn, commit.tag, commit.decided_at)?;
    for (number, row) in commit.rows().enumerate() {
        let new = matches!(&row, Row::Key(record) if !standing.contains(&record.id));
        put(conn, rows::place(revision, number)?, &row, new)?;
    }
    for (digest, key) in commit.imported() {
        keep_digest(conn, &digest, key)?;
    }
    for (number, entry) in commit.effects.audit.iter().enumerate() {
        note(conn, rows::place(revision, number)?, entry)?;
    }
    let after = TenantHead::after(before, commit, revision);
    head::write_tenant(conn, &commit.tenant, &after)?;
    Ok(Ok(revision))
}

/// Tells which keys of the commit have a row, or why it is refused.
fn check(
    conn: &Connection,
    commit: &Commit,
    (epoch, before): (Epoch, Option<&TenantHead>),
) -> Result<Result<HashSet<KeyId>, CommitError>, Fault> {
    let at = before.map_or(Revision::ZERO, |head| head.revision);
    // Looked up beforehand, since looking up can fail.
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

/// The commit that wrote a row; zero for one that is not there.
fn row_at(conn: &Connection, row: &RowKey) -> Result<Revision, Fault> {
    let named = "SELECT place FROM rows WHERE kind = ?1 AND tenant = ?2 AND name = ?3";
    let place: Option<i64> = match row {
        RowKey::Tenant(tenant) => conn
            .prepare_cached(named)?
            .query_row(params![TENANT, tenant.as_str(), ""], |row| row.get(0)),
        RowKey::Owner(tenant, owner) => conn
            .prepare_cached(named)?
            .query_row(params![OWNER, tenant.as_str(), owner.as_str()], |row| {
                row.get(0)
            }),
        RowKey::Key(id) => conn
            .prepare_cached("SELECT place FROM rows WHERE id = ?1")?
            .query_row([id_bytes(*id)], |row| row.get(0)),
    }
    .optional()?;
    Ok(place.map_or(Revision::ZERO, revision_of))
}

/// Who has a record's id.
enum Holder {
    Nobody,
    /// It is the tenant's own key.
    Own,
    /// Another tenant's key, or one that was removed.
    Other,
}

fn holder_of(conn: &Connection, record: &KeyRecord) -> Result<Holder, Fault> {
    let id = id_bytes(record.id);
    let found = conn
        .prepare_cached("SELECT kind, tenant FROM rows WHERE id = ?1")?
        .query_row([id], |row| {
            let own = row.get_ref(1)?.as_bytes()? == record.tenant.as_str().as_bytes();
            Ok(row.get::<_, i64>(0)? == KEY && own)
        })
        .optional()?;
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

/// The key that has this imported digest, or had it.
pub(super) fn holder(conn: &Connection, digest: &Digest) -> Result<Option<KeyId>, Fault> {
    let found = conn
        .prepare_cached("SELECT id, seal FROM digests WHERE digest = ?1")?
        .query_row([digest.as_bytes()], |row| {
            Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, i64>(1)?))
        })
        .optional()?;
    let read = |(id, seal): (Vec<u8>, i64)| digest_holder(digest, &id, seal);
    Ok(found.map(read).transpose()?)
}

/// Says which key has an imported digest, unless that is said already.
pub(super) fn keep_digest(conn: &Connection, digest: &Digest, key: KeyId) -> Result<(), Fault> {
    let sql = "INSERT OR IGNORE INTO digests (digest, id, seal) VALUES (?1, ?2, ?3)";
    let (digest, id) = (digest.as_bytes(), id_bytes(key));
    conn.prepare_cached(sql)?
        .execute(params![digest, id, digest_seal(digest, &id)])?;
    Ok(())
}

/// Moves a row to its new place. A `new` one stands nowhere yet.
pub(super) fn put(conn: &Connection, place: i64, row: &Row, new: bool) -> Result<(), Fault> {
    let fields = Fields::of(row)?;
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
                .execute([fields.id])?;
        }
    }
    let sql = "INSERT INTO rows \
               (place, kind, tenant, name, id, ends, legacy, fingerprint, body, seal) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
    insert(&fields, place, &mut conn.prepare_cached(sql)?)
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
