//! Where the store stands, and where a tenant stands in it.

use rusqlite::{Connection, OptionalExtension, params};

use super::fault::Fault;
use super::rows::Seal;
use super::schema;
use crate::core::audit::{AuditHash, AuditHead};
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;
use crate::core::view::Revision;
use crate::store::{CommitTag, Cursor, Epoch};

/// The head of the store.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub(super) cursor: Cursor,
    pub(super) newest: Option<Timestamp>,
    pub(super) floor: Revision,
}

/// The head of one tenant.
#[derive(Clone, Copy)]
pub(super) struct TenantHead {
    pub(super) revision: Revision,
    pub(super) decided_at: Timestamp,
    pub(super) audit: AuditHead,
}

impl Head {
    pub(super) fn read(conn: &Connection) -> Result<Self, Fault> {
        let schema::Store { epoch, floor, .. } = schema::store(conn)?;
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
            let sealed: i64 = sealed;
            let row = CommitRow {
                revision,
                tag,
                newest,
            };
            if sealed != row.seal() {
                return Err(Fault::corrupt(format!("commit {revision} is damaged")));
            }
            head.cursor.revision = Revision(revision.unsigned_abs());
            head.cursor.tag = CommitTag(u128::from_be_bytes(tag));
            head.newest = Some(instant(newest)?);
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
        let row = CommitRow {
            revision: signed(revision.0)?,
            tag: tag.0.to_be_bytes(),
            newest: newest.as_micros(),
        };
        let sql = "INSERT INTO commits (revision, tag, newest, seal) VALUES (?1, ?2, ?3, ?4)";
        conn.prepare_cached(sql)?.execute(params![
            row.revision,
            row.tag,
            row.newest,
            row.seal()
        ])?;
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

struct CommitRow {
    revision: i64,
    tag: [u8; 16],
    newest: i64,
}

impl CommitRow {
    fn seal(&self) -> i64 {
        let seal = Seal::default().number(self.revision).bytes(self.tag);
        seal.number(self.newest).end()
    }
}

impl TenantHead {
    pub(super) fn read(conn: &Connection, tenant: &TenantId) -> Result<Option<Self>, Fault> {
        let sql =
            "SELECT revision, decided_at, sequence, hash, seal FROM tenants WHERE tenant = ?1";
        let found = conn
            .prepare_cached(sql)?
            .query_row([tenant.as_str()], |row| {
                let head = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
                Ok((head, row.get::<_, i64>(4)?))
            })
            .optional()?;
        let Some(((revision, decided_at, sequence, hash), sealed)) = found else {
            return Ok(None);
        };
        let hash: [u8; 32] = hash;
        if sealed != seal(tenant, revision, decided_at, sequence, &hash) {
            return Err(Fault::corrupt(format!(
                "the row of tenant {tenant} is damaged"
            )));
        }
        Ok(Some(Self {
            revision: Revision(revision.unsigned_abs()),
            decided_at: instant(decided_at)?,
            audit: AuditHead {
                sequence: sequence.unsigned_abs(),
                hash: AuditHash::from_bytes(hash),
            },
        }))
    }

    pub(super) fn write(&self, conn: &Connection, tenant: &TenantId) -> Result<(), Fault> {
        let revision = signed(self.revision.0)?;
        let decided_at = self.decided_at.as_micros();
        let sequence = signed(self.audit.sequence)?;
        let hash = self.audit.hash.as_bytes();
        let sql = "INSERT OR REPLACE INTO tenants \
                   (tenant, revision, decided_at, sequence, hash, seal) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        conn.prepare_cached(sql)?.execute(params![
            tenant.as_str(),
            revision,
            decided_at,
            sequence,
            hash,
            seal(tenant, revision, decided_at, sequence, hash),
        ])?;
        Ok(())
    }
}

fn seal(tenant: &TenantId, revision: i64, decided_at: i64, sequence: i64, hash: &[u8; 32]) -> i64 {
    let seal = Seal::default().bytes(tenant.as_str()).number(revision);
    seal.number(decided_at).number(sequence).bytes(hash).end()
}

pub(super) fn signed(number: u64) -> Result<i64, Fault> {
    i64::try_from(number).map_err(|_| Fault::Refused("a number is out of range"))
}

fn instant(micros: i64) -> Result<Timestamp, Fault> {
    Timestamp::from_micros(micros).map_err(|_| Fault::corrupt("an instant is out of range"))
}
