//! A commit, applied within a transaction.

use rusqlite::{Connection, OptionalExtension, params};

use super::fault::Fault;
use super::head::{Head, TenantHead, signed};
use super::rows::{self, Fields, KEY, id_bytes, id_of};
use crate::core::audit::AuditEntry;
use crate::core::id::KeyId;
use crate::core::record::KeyRecord;
use crate::core::secret::Digest;
use crate::core::view::Revision;
use crate::store::{Commit, CommitError, Row};

/// What became of a commit: its revision, or why it was refused, with nothing written.
type Verdict = Result<Revision, CommitError>;

/// Checks a commit against what the transaction sees, and writes it at the next revision.
pub(super) fn apply(conn: &Connection, head: &mut Head, commit: &Commit) -> Result<Verdict, Fault> {
    let before = TenantHead::read(conn, &commit.tenant)?;
    if let Err(refused) = check(conn, commit, before.as_ref())? {
        return Ok(Err(refused));
    }
    let revision = head.advance(conn, commit.tag, commit.decided_at)?;
    for (number, row) in commit.rows().enumerate() {
        put(conn, rows::place(revision, number)?, &row)?;
    }
    for (digest, key) in commit.imported() {
        let sql = "INSERT OR IGNORE INTO digests (digest, id) VALUES (?1, ?2)";
        conn.prepare_cached(sql)?
            .execute(params![digest.as_bytes(), id_bytes(key)])?;
    }
    for (number, entry) in commit.effects.audit.iter().enumerate() {
        note(conn, rows::place(revision, number)?, entry)?;
    }
    let newest = commit.effects.audit.last().map(AuditEntry::head);
    let after = TenantHead {
        revision,
        decided_at: before.map_or(commit.decided_at, |head| {
            head.decided_at.max(commit.decided_at)
        }),
        audit: newest.or(before.map(|head| head.audit)).unwrap_or_default(),
    };
    after.write(conn, &commit.tenant)?;
    Ok(Ok(revision))
}

fn check(
    conn: &Connection,
    commit: &Commit,
    before: Option<&TenantHead>,
) -> Result<Result<(), CommitError>, Fault> {
    let at = before.map_or(Revision::ZERO, |head| head.revision);
    // Looked up beforehand, since looking up can fail.
    let mut taken = Vec::new();
    let mut holders = Vec::new();
    for record in &commit.effects.puts {
        if at == commit.expected && !writable(conn, record)? {
            taken.push(record.id);
        }
        if let Some(digest) = record.credential.imported()
            && let Some(holder) = holder(conn, digest)?
        {
            holders.push((*digest, holder));
        }
    }
    let holds = |digest: &Digest| {
        let mut all = holders.iter();
        all.find(|(own, _)| own == digest).map(|(_, key)| *key)
    };
    Ok(commit.check(at, |record| !taken.contains(&record.id), holds))
}

/// Whether the record's id is free, or the tenant's own key.
fn writable(conn: &Connection, record: &KeyRecord) -> Result<bool, Fault> {
    let id = id_bytes(record.id);
    let found = conn
        .prepare_cached("SELECT kind, tenant FROM rows WHERE id = ?1")?
        .query_row([id], |row| {
            let own = row.get_ref(1)?.as_bytes()? == record.tenant.as_str().as_bytes();
            Ok(row.get::<_, i64>(0)? == KEY && own)
        })
        .optional()?;
    Ok(match found {
        Some(own) => own,
        None => !conn
            .prepare_cached("SELECT 1 FROM gone WHERE id = ?1")?
            .exists([id])?,
    })
}

/// The key that has this imported digest, or had it.
pub(super) fn holder(conn: &Connection, digest: &Digest) -> Result<Option<KeyId>, Fault> {
    let found = conn
        .prepare_cached("SELECT id FROM digests WHERE digest = ?1")?
        .query_row([digest.as_bytes()], |row| row.get::<_, Vec<u8>>(0))
        .optional()?;
    let read = |bytes: Vec<u8>| {
        id_of(&bytes).ok_or(Fault::corrupt(
            "the holder of an imported digest is damaged",
        ))
    };
    found.map(read).transpose()
}

/// Moves a row to its new place.
fn put(conn: &Connection, place: i64, row: &Row) -> Result<(), Fault> {
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
        Row::Key(_) | Row::Removed { .. } | Row::Corrupt(_) => {
            conn.prepare_cached("DELETE FROM rows WHERE id = ?1")?
                .execute([fields.id])?;
        }
    }
    let sql = "INSERT INTO rows \
               (place, kind, tenant, name, id, ends, legacy, fingerprint, body, seal) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
    fields.insert(place, &mut conn.prepare_cached(sql)?)
}

fn note(conn: &Connection, place: i64, entry: &AuditEntry) -> Result<(), Fault> {
    let sequence = signed(entry.sequence)?;
    let (tenant, command) = (entry.tenant.as_str(), entry.command.as_str());
    let key = entry.key.map(id_bytes);
    let body = entry.to_bytes();
    let key_bytes = key.as_ref().map(|key| &key[..]);
    let seal = rows::audit_seal(place, tenant, sequence, command, key_bytes, &body);
    let sql = "INSERT INTO audit (place, tenant, sequence, command, key, body, seal) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let columns = params![place, tenant, sequence, command, key, body, seal];
    conn.prepare_cached(sql)?.execute(columns)?;
    Ok(())
}
