//! Reads and writes the head of the store and the heads of its tenants.

use rusqlite::{Connection, params};

use super::fault::SqliteFault;
use super::rows::one;
use crate::core::tenant::TenantId;
use crate::core::view::Revision;
use crate::store::CommitTag;
use crate::store::sql::{CommitRow, Head, StoreRow, TENANT_COLUMNS, TenantHead, signed};

/// Reads the only row of the table `store`.
pub(super) fn store(conn: &Connection) -> Result<StoreRow, SqliteFault> {
    let sql = "SELECT epoch, floor, restored_from, seal FROM store WHERE one = 1";
    let found = one(conn, sql, [], |row| Ok(StoreRow::read(row, 0)?))?;
    Ok(found.ok_or_else(StoreRow::missing)?)
}

pub(super) fn write_store(conn: &Connection, store: &StoreRow) -> Result<(), SqliteFault> {
    let sql = "INSERT OR REPLACE INTO store (one, epoch, floor, restored_from, seal) \
               VALUES (1, ?1, ?2, ?3, ?4)";
    let (epoch, floor, restored_from, seal) = store.columns()?;
    conn.execute(sql, params![epoch, floor, restored_from, seal])?;
    Ok(())
}

pub(super) fn read(conn: &Connection) -> Result<Head, SqliteFault> {
    let sql = "SELECT revision, tag, seal FROM commits ORDER BY revision DESC LIMIT 1";
    let last = one(conn, sql, [], |row| Ok(CommitRow::read(row, 0)?))?;
    Ok(Head {
        store: store(conn)?,
        last: last.unwrap_or(CommitRow::NONE),
        server_time: None,
    })
}

pub(super) fn write_commit(conn: &Connection, commit: CommitRow) -> Result<(), SqliteFault> {
    let sql = "INSERT INTO commits (revision, tag, seal) VALUES (?1, ?2, ?3)";
    let (revision, tag, seal) = commit.columns()?;
    conn.prepare_cached(sql)?
        .execute(params![revision, tag, seal])?;
    Ok(())
}

/// Returns the tag of a revision in the table `commits`. `None` if the table has no row for the revision.
pub(super) fn stored_tag(
    conn: &Connection,
    revision: Revision,
) -> Result<Option<CommitTag>, SqliteFault> {
    let sql = "SELECT revision, tag, seal FROM commits WHERE revision = ?1";
    let Ok(revision) = signed(revision.0) else {
        return Ok(None);
    };
    one(
        conn,
        sql,
        [revision],
        |row| Ok(CommitRow::read(row, 0)?.tag),
    )
}

/// Reads the head of a tenant. `None` if the tenant never had a commit.
pub(super) fn tenant(
    conn: &Connection,
    tenant: &TenantId,
) -> Result<Option<TenantHead>, SqliteFault> {
    let sql = format!("SELECT {TENANT_COLUMNS} FROM tenants WHERE tenant = ?1");
    one(conn, &sql, [tenant.as_str()], |row| {
        Ok(TenantHead::read(row)?.1)
    })
}

pub(super) fn write_tenant(
    conn: &Connection,
    tenant: &TenantId,
    head: &TenantHead,
) -> Result<(), SqliteFault> {
    let (revision, decided_at, sequence, hash, seal) = head.columns(tenant)?;
    let sql = "INSERT OR REPLACE INTO tenants \
               (tenant, revision, decided_at, sequence, hash, seal) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let tenant = tenant.as_str();
    conn.prepare_cached(sql)?
        .execute(params![tenant, revision, decided_at, sequence, hash, seal])?;
    Ok(())
}
