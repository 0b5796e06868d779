//! Where the store stands, and where a tenant stands in it.

use tokio_postgres::Row as Columns;

use super::fault::Fault;
use super::link::Tx;
use super::rows::exactly;
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;
use crate::core::view::Revision;
use crate::store::rows::{CommitRow, StoreRow, TenantHead};
use crate::store::{CommitTag, Cursor, Epoch};

/// The head as a read meets it, and the server's clock.
pub(super) const HEAD: &str = "SELECT epoch, floor, unrecovered, store_seal, revision, tag, newest, commit_seal, \
     (extract(epoch FROM clock_timestamp()) * 1000000)::bigint FROM $s.head WHERE one = 1";

/// The heads of some tenants.
pub(super) const TENANTS: &str = "SELECT tenant, revision, decided_at, sequence, hash, seal \
     FROM $s.tenants WHERE tenant = ANY($1)";

/// The head of the store.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub(super) cursor: Cursor,
    pub(super) newest: Option<Timestamp>,
    pub(super) floor: Revision,
    pub(super) unrecovered: bool,
    /// The server's clock when the head was read.
    pub(super) server_time: Timestamp,
}

impl Head {
    pub(super) async fn read(tx: &Tx<'_>) -> Result<Self, Fault> {
        Self::of(&tx.query(HEAD, &[]).await?)
    }

    /// The head that [`HEAD`] found.
    pub(super) fn of(found: &[Columns]) -> Result<Self, Fault> {
        let row = found.first();
        let row = row.ok_or_else(|| Fault::corrupt("the store's own row is missing"))?;
        let store = StoreRow {
            epoch: u128::from_be_bytes(exactly(row.try_get(0)?, "the store's own row")?),
            floor: row.try_get::<_, i64>(1)?.unsigned_abs(),
            unrecovered: row.try_get(2)?,
        };
        let store = store.sealed(row.try_get(3)?)?;
        let newest: Option<i64> = row.try_get(6)?;
        let last = CommitRow {
            revision: row.try_get(4)?,
            tag: exactly(row.try_get(5)?, "the last commit")?,
            newest: newest.unwrap_or_default(),
        };
        let (revision, tag, latest) = last.sealed(row.try_get(7)?)?;
        Ok(Self {
            cursor: Cursor {
                epoch: Epoch(store.epoch),
                revision,
                tag,
            },
            newest: newest.map(|_| latest),
            floor: Revision(store.floor),
            unrecovered: store.unrecovered,
            server_time: Timestamp::clamped(row.try_get(8)?),
        })
    }

    /// Makes the next commit the head, in memory alone.
    pub(super) fn advance(
        &mut self,
        tag: CommitTag,
        decided_at: Timestamp,
    ) -> Result<(Revision, CommitRow), Fault> {
        let revision = Revision(self.cursor.revision.0 + 1);
        let newest = self.newest.max(Some(decided_at)).unwrap_or(decided_at);
        let row = CommitRow::new(revision, tag, newest)?;
        self.cursor.revision = revision;
        self.cursor.tag = tag;
        self.newest = Some(newest);
        Ok((revision, row))
    }

    /// The tag of an earlier commit, of which `stands` was found; `None` if there was no such commit, or
    /// it was forgotten.
    pub(super) fn tag_at(self, revision: Revision, stands: Option<CommitTag>) -> Option<CommitTag> {
        match revision {
            last if last == self.cursor.revision => Some(self.cursor.tag),
            Revision::ZERO => Some(CommitTag::default()),
            _ => stands,
        }
    }
}

/// The tag of a commit that stands in the tables.
pub(super) async fn stored_tag(
    tx: &Tx<'_>,
    revision: Revision,
) -> Result<Option<CommitTag>, Fault> {
    // There is no commit at what no column can hold.
    let revision = i64::try_from(revision.0).unwrap_or(i64::MAX);
    let sql = "SELECT tag FROM $s.commits WHERE revision = $1";
    let found = tx.query(sql, &[&revision]).await?;
    let Some(row) = found.first() else {
        return Ok(None);
    };
    let tag = exactly(row.try_get(0)?, "the tag of a commit")?;
    Ok(Some(CommitTag(u128::from_be_bytes(tag))))
}

/// A tenant's head that [`TENANTS`] found.
pub(super) fn tenant(row: &Columns) -> Result<(TenantId, TenantHead), Fault> {
    let name: &str = row.try_get(0)?;
    let numbers = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
    let head = TenantHead::sealed(name, numbers, row.try_get(4)?, row.try_get(5)?)?;
    let tenant = TenantId::new(name)
        .map_err(|_| Fault::corrupt(format!("the row of tenant {name:?} is damaged")))?;
    Ok((tenant, head))
}
