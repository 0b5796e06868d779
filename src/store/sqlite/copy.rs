//! Copying a store out of the file, and into the file.

use std::num::NonZeroUsize;

use async_trait::async_trait;
use rusqlite::Connection;

use super::fault::SqliteFault;
use super::file::{StoreFile, check_journal};
use super::rows::{dialect, one};
use super::{SqliteStore, documents, head, nodes, read, registry, schema, write};
use crate::observe::WithSources;
use crate::store::sql::{CommitRow, ORIGIN, StoreRow, TenantHead, counts_of, id_bytes, place_of};
use crate::store::transfer::{
    CopyError, CopyPage, CopySource, CopyTarget, CopyTransaction, Counts, Item, Origin, Part,
};
use crate::store::{Cursor, Epoch, StoreError};

const EXPORTING: &str = "reading a store to copy it";
const IMPORTING: &str = "copying into a file";

#[async_trait]
impl CopySource for SqliteStore {
    async fn origin(&self) -> Result<Origin, StoreError> {
        let mut origin = self.read(EXPORTING, read::origin).await?;
        let file = self.file();
        let lease = blocking::unblock(move || registry::longest_lease(&file)).await;
        origin.lease = origin.lease.max(lease);
        Ok(origin)
    }

    async fn page(
        &self,
        part: Part,
        after: Option<&Item>,
        limit: NonZeroUsize,
    ) -> Result<CopyPage, StoreError> {
        let after = after.cloned();
        let page = move |conn: &Connection| read::page(conn, part, after.as_ref(), limit);
        self.read(EXPORTING, page).await
    }
}

#[async_trait]
impl CopyTarget for SqliteStore {
    async fn begin(&self, origin: &Origin) -> Result<Box<dyn CopyTransaction>, CopyError> {
        let (file, source) = (self.file(), origin.head.epoch);
        let begun = blocking::unblock(move || begin(&file, source)).await;
        let begun = begun.map_err(|fault| fault.into_error(IMPORTING))?;
        begun.map(|conn| -> Box<dyn CopyTransaction> { Box::new(SqliteCopy { conn: Some(conn) }) })
    }
}

/// Begins the transaction of a copy on a new connection, if the file is empty and is not the source. Closing
/// the connection rolls the transaction back.
fn begin(file: &StoreFile, source: Epoch) -> Result<Result<Connection, CopyError>, SqliteFault> {
    let conn = file.open()?;
    file.make_durable(&conn)?;
    conn.execute_batch("BEGIN IMMEDIATE")?;
    check_journal(&conn)?;
    schema::check_version(&conn)?;
    if head::store(&conn)?.epoch == source {
        return Ok(Err(CopyError::SameStore));
    }
    let counts = one(&conn, &dialect(ORIGIN), [], |row| Ok(counts_of(row)?))?;
    // A service that was started once has written its settings. The copy replaces them.
    conn.execute("DELETE FROM documents", [])?;
    match counts.map(|counts| counts.with(Part::Documents, 0)) == Some(Counts::default()) {
        true => Ok(Ok(conn)),
        false => Ok(Err(CopyError::NotEmpty)),
    }
}

/// The open transaction of a copy into the file.
#[derive(Debug)]
struct SqliteCopy {
    /// The connection with the transaction. `None` while a step runs, and after a failed step.
    conn: Option<Connection>,
}

impl SqliteCopy {
    /// Runs a step of the transaction. A failed step drops the connection, which rolls the transaction back.
    async fn step<T: Send + 'static>(
        &mut self,
        step: impl FnOnce(&Connection) -> Result<T, SqliteFault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let conn = self.conn.take();
        let step = move || {
            let conn = conn.ok_or(SqliteFault::Refused("the copy has failed before"))?;
            let done = step(&conn)?;
            Ok((conn, done))
        };
        let done: Result<_, SqliteFault> = blocking::unblock(step).await;
        let (conn, done) = done.map_err(|fault| fault.into_error(IMPORTING))?;
        self.conn = Some(conn);
        Ok(done)
    }
}

#[async_trait]
impl CopyTransaction for SqliteCopy {
    async fn write(&mut self, items: Vec<Item>) -> Result<(), StoreError> {
        self.step(move |conn| items.iter().try_for_each(|item| put(conn, item)))
            .await
    }

    async fn written(
        &mut self,
        part: Part,
        after: Option<&Item>,
        limit: NonZeroUsize,
    ) -> Result<Vec<Item>, StoreError> {
        let after = after.cloned();
        self.step(move |conn| read::items(conn, part, after.as_ref(), limit))
            .await
    }

    async fn commit(mut self: Box<Self>, origin: &Origin) -> Result<Cursor, StoreError> {
        let origin = origin.clone();
        let finish = move |conn: &Connection| {
            let store = StoreRow {
                epoch: Epoch(schema::random(conn)?),
                floor: origin.floor,
                restored_from: origin.restored_from,
            };
            head::write_store(conn, &store)?;
            nodes::end_history(conn, origin.lease)?;
            let head = read::cursor(conn)?;
            let committed = conn.execute_batch("COMMIT");
            committed.map_err(SqliteFault::of_commit)?;
            // The copy is durable in any case. An operator may move the file without its log.
            if let Err(fault) = StoreFile::checkpoint(conn) {
                tracing::warn!(error = %WithSources(&fault), "copied, but the file needs its -wal file");
            }
            Ok(head)
        };
        self.step(finish).await
    }
}

pub(super) fn put(conn: &Connection, item: &Item) -> Result<(), SqliteFault> {
    match item {
        Item::Commit { revision, tag } => {
            let (revision, tag) = (*revision, *tag);
            head::write_commit(conn, CommitRow { revision, tag })
        }
        Item::Tenant {
            tenant,
            revision,
            decided_at,
            audit,
        } => {
            let head = TenantHead {
                revision: *revision,
                decided_at: *decided_at,
                audit: *audit,
            };
            head::write_tenant(conn, tenant, &head)
        }
        Item::Digest { digest, key } => write::insert_digest(conn, digest, *key),
        Item::Gone { key } => {
            conn.prepare_cached("INSERT INTO gone (id) VALUES (?1)")?
                .execute([id_bytes(*key)])?;
            Ok(())
        }
        Item::Audit { row, number } => {
            write::insert_audit_entry(conn, place_of(row.revision, *number)?, &row.entry)
        }
        Item::Row { change, number } => {
            let place = place_of(change.revision, *number)?;
            write::put(conn, place, &change.row, true)
        }
        Item::Document(document) => documents::put(conn, document),
    }
}
