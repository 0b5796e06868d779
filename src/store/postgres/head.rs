//! The head row of the store, and the head rows of its tenants.

use tokio_postgres::Row;

use super::fault::PostgresFault;
use super::session::Session;
use crate::core::time::Timestamp;
use crate::core::view::Revision;
use crate::store::CommitTag;
use crate::store::sql::{Cells, CommitRow, Head, StoreRow, signed};

/// Selects the store's head row, and the time of the server's clock.
pub(super) const HEAD: &str = "SELECT epoch, floor, restored_from, store_seal, revision, tag, commit_seal, \
     (extract(epoch FROM clock_timestamp()) * 1000000)::bigint FROM $s.head WHERE one = 1";

/// Selects the head rows of the tenants in the array `$1`.
pub(super) const TENANTS: &str = "SELECT tenant, revision, decided_at, sequence, hash, seal \
     FROM $s.tenants WHERE tenant = ANY($1)";

pub(super) async fn read(session: &Session) -> Result<Head, PostgresFault> {
    of(&session.query(HEAD, &[]).await?)
}

/// Reads the head and locks it. No other node can commit until this transaction ends.
pub(super) async fn lock(session: &Session) -> Result<Head, PostgresFault> {
    of(&session.query(&format!("{HEAD} FOR UPDATE"), &[]).await?)
}

/// Decodes the row that [`HEAD`] selects.
pub(super) fn of(found: &[Row]) -> Result<Head, PostgresFault> {
    let row = found.first().ok_or_else(StoreRow::missing)?;
    Ok(Head {
        store: StoreRow::read(row, 0)?,
        last: CommitRow::read(row, 4)?,
        server_time: Some(Timestamp::clamped(row.number(7, "the server's clock")?)),
    })
}

pub(super) async fn write_store(session: &Session, store: &StoreRow) -> Result<(), PostgresFault> {
    let sql = "UPDATE $s.head SET epoch = $1, floor = $2, restored_from = $3, store_seal = $4 \
               WHERE one = 1";
    let (epoch, floor, restored_from, seal) = store.columns()?;
    session
        .execute(
            sql,
            &[
                &&epoch[..],
                &floor,
                &restored_from.as_ref().map(<[u8; 16]>::as_slice),
                &seal,
            ],
        )
        .await
        .map(drop)
}

/// Reads the tag of the commit at a revision. `None` if the table `commits` has no such commit.
pub(super) async fn stored_tag(
    session: &Session,
    revision: Revision,
) -> Result<Option<CommitTag>, PostgresFault> {
    // No commit has a revision above `i64::MAX`. Use `i64::MAX` instead, which also matches no commit.
    let revision = signed(revision.0).unwrap_or(i64::MAX);
    let sql = "SELECT revision, tag, seal FROM $s.commits WHERE revision = $1";
    let found = session.query(sql, &[&revision]).await?;
    let commit = found
        .first()
        .map(|row| CommitRow::read(row, 0))
        .transpose()?;
    Ok(commit.map(|commit| commit.tag))
}
