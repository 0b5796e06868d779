//! Where the store stands, and where a tenant stands in it.

use rusqlite::{Connection, OptionalExtension, params};

use super::fault::Fault;
use super::schema;
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;
use crate::core::view::Revision;
use crate::store::rows::{CommitRow, StoreRow, TenantHead, signed};
use crate::store::{CommitTag, Cursor, Epoch};

/// The head of the store.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub(super) cursor: Cursor,
    pub(super) newest: Option<Timestamp>,
    pub(super) floor: Revision,
}

impl Head {
    pub(super) fn read(conn: &Connection) -> Result<Self, Fault> {
        let StoreRow { epoch, floor, .. } = schema::store(conn)?;
        let sql = "SELECT revision, tag, newest, seal FROM commits ORDER BY revision DESC LIMIT 1";
        let found = conn
            .prepare_cached(sql)?
            .query_row([], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })
            .optional()?;
        let mut head = Self {
            cursor: Cursor {
                epoch: Epoch(epoch),
                ..Cursor::default()
            },
            newest: None,
            floor: Revision(floor),
        };
        if let Some((revision, tag, newest, sealed)) = found {
            let row = CommitRow {
                revision,
                tag,
                newest,
            };
            let (revision, tag, newest) = row.sealed(sealed)?;
            head.cursor.revision = revision;
            head.cursor.tag = tag;
            head.newest = Some(newest);
        }
        Ok(head)
    }

    /// Makes the next commit the head.
    pub(super) fn advance(
        &mut self,
        conn: &Connection,
        tag: CommitTag,
        decided_at: Timestamp,
    ) -> Result<Revision, Fault> {
        let revision = Revision(self.cursor.revision.0 + 1);
        let newest = self.newest.max(Some(decided_at)).unwrap_or(decided_at);
        write_commit(conn, &CommitRow::new(revision, tag, newest)?)?;
        self.cursor.revision = revision;
        self.cursor.tag = tag;
        self.newest = Some(newest);
        Ok(revision)
    }

    /// The tag of an earlier commit; `None` if there was no such commit, or it was forgotten.
    pub(super) fn tag_at(
        self,
        conn: &Connection,
        revision: Revision,
    ) -> Result<Option<CommitTag>, Fault> {
        if revision == self.cursor.revision {
            return Ok(Some(self.cursor.tag));
        }
        if revision == Revision::ZERO {
            return Ok(Some(CommitTag::default()));
        }
        let found = conn
            .prepare_cached("SELECT tag FROM commits WHERE revision = ?1")?
            .query_row([signed(revision.0)?], |row| row.get::<_, [u8; 16]>(0))
            .optional()?;
        Ok(found.map(|tag| CommitTag(u128::from_be_bytes(tag))))
    }
}

pub(super) fn write_commit(conn: &Connection, row: &CommitRow) -> Result<(), Fault> {
    let sql = "INSERT INTO commits (revision, tag, newest, seal) VALUES (?1, ?2, ?3, ?4)";
    let columns = params![row.revision, row.tag, row.newest, row.seal()];
    conn.prepare_cached(sql)?.execute(columns)?;
    Ok(())
}

/// The head of a tenant; `None` if it never had a commit.
pub(super) fn tenant(conn: &Connection, tenant: &TenantId) -> Result<Option<TenantHead>, Fault> {
    let sql = "SELECT revision, decided_at, sequence, hash, seal FROM tenants WHERE tenant = ?1";
    let found = conn
        .prepare_cached(sql)?
        .query_row([tenant.as_str()], |row| {
            let numbers = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok((numbers, row.get::<_, [u8; 32]>(3)?, row.get(4)?))
        })
        .optional()?;
    let read = |(numbers, hash, sealed): (_, [u8; 32], _)| {
        TenantHead::sealed(tenant.as_str(), numbers, &hash, sealed)
    };
    Ok(found.map(read).transpose()?)
}

pub(super) fn write_tenant(
    conn: &Connection,
    tenant: &TenantId,
    head: &TenantHead,
) -> Result<(), Fault> {
    let (revision, decided_at, sequence, seal) = head.columns(tenant)?;
    let hash = head.audit.hash.as_bytes();
    let sql = "INSERT OR REPLACE INTO tenants \
               (tenant, revision, decided_at, sequence, hash, seal) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let tenant = tenant.as_str();
    conn.prepare_cached(sql)?
        .execute(params![tenant, revision, decided_at, sequence, hash, seal])?;
    Ok(())
}
