//! Copies a store out of the database, or into the database.

use std::num::NonZeroUsize;

use async_trait::async_trait;
use futures_util::future::{BoxFuture, FutureExt};

use super::fault::PostgresFault;
use super::session::{Bundle, Session, SessionMode, TimeLimit};
use super::write::NewRows;
use super::{PostgresStore, admin, documents, head, nodes};
use crate::store::sql::{
    AuditColumns, CommitRow, ORIGIN, RowColumns, StoreRow, TenantHead, counts_of, item,
    items_after, origin_of, place_of,
};
use crate::store::transfer::{
    CopyError, CopyPage, CopySource, CopyTarget, CopyTransaction, Counts, Item, Origin, Part,
};
use crate::store::{Cursor, Epoch, StoreError};

const EXPORTING: &str = "reading a store to copy it";
const IMPORTING: &str = "copying into a database";

const NOTHING_COUNTED: PostgresFault = PostgresFault::Refused("the server returned no row counts");

async fn origin(session: &Session) -> Result<Origin, PostgresFault> {
    admin::check_own_version(session).await?;
    let head = head::read(session).await?;
    let found = session.query(ORIGIN, &[]).await?;
    let origin = origin_of(found.first().ok_or(NOTHING_COUNTED)?, &head)?;
    let lease = nodes::longest_lease(session).await?;
    Ok(Origin { lease, ..origin })
}

async fn page(
    session: &Session,
    part: Part,
    after: Option<&Item>,
    limit: NonZeroUsize,
) -> Result<CopyPage, PostgresFault> {
    let head = head::read(session).await?;
    Ok(CopyPage {
        head: head.cursor(),
        floor: head.store.floor,
        items: items(session, part, after, limit).await?,
    })
}

async fn items(
    session: &Session,
    part: Part,
    after: Option<&Item>,
    limit: NonZeroUsize,
) -> Result<Vec<Item>, PostgresFault> {
    let sql = items_after(part, after, limit.get())?;
    let found = session.query_of(&sql).await?;
    found.iter().map(|row| Ok(item(part, row)?)).collect()
}

#[async_trait]
impl CopySource for PostgresStore {
    async fn origin(&self) -> Result<Origin, StoreError> {
        let limit = TimeLimit::Day;
        self.within(SessionMode::Read, limit, EXPORTING, |session| {
            origin(session).boxed()
        })
        .await
    }

    async fn page(
        &self,
        part: Part,
        after: Option<&Item>,
        limit: NonZeroUsize,
    ) -> Result<CopyPage, StoreError> {
        let after = after.cloned();
        self.within(
            SessionMode::Read,
            TimeLimit::Long,
            EXPORTING,
            move |session| async move { page(session, part, after.as_ref(), limit).await }.boxed(),
        )
        .await
    }
}

#[async_trait]
impl CopyTarget for PostgresStore {
    async fn begin(&self, origin: &Origin) -> Result<Box<dyn CopyTransaction>, CopyError> {
        let source = origin.head.epoch;
        let database = self.inner.database.clone();
        let begin = async move {
            let session = Session::begin(&database, SessionMode::Write).await?;
            session.extend_timeouts().await?;
            // The head stays locked until the transaction ends, so no other node can commit.
            let head = head::lock(&session).await?;
            if head.store.epoch == source {
                return Ok(Err(CopyError::SameStore));
            }
            let found = session.query(ORIGIN, &[]).await?;
            // A service that was started once has written its settings. The copy replaces them.
            session.execute("DELETE FROM $s.documents", &[]).await?;
            let counts = counts_of(found.first().ok_or(NOTHING_COUNTED)?)?;
            match counts.with(Part::Documents, 0) == Counts::default() {
                true => Ok(Ok(session)),
                false => Ok(Err(CopyError::NotEmpty)),
            }
        };
        let begun = self
            .work(IMPORTING, TimeLimit::Long, PostgresFault::Late, begin)
            .await?;
        begun.map(|session| -> Box<dyn CopyTransaction> {
            Box::new(PostgresImport {
                store: self.clone(),
                session: Some(session),
            })
        })
    }
}

/// A copy into the database, in progress.
struct PostgresImport {
    store: PostgresStore,
    /// The transaction that writes the copy. `None` while a step uses it, and after a step has failed.
    session: Option<Session>,
}

impl std::fmt::Debug for PostgresImport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresImport").finish_non_exhaustive()
    }
}

impl PostgresImport {
    /// Runs a step of the copy in the open transaction. A failed step ends the copy.
    async fn step<T, F>(&mut self, step: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'s> FnOnce(&'s Session) -> BoxFuture<'s, Result<T, PostgresFault>> + Send + 'static,
    {
        let session = self.taken()?;
        let step = async move {
            let done = step(&session).await?;
            Ok((session, done))
        };
        let done = self
            .store
            .work(IMPORTING, TimeLimit::Long, PostgresFault::Late, step);
        let (session, done) = done.await?;
        self.session = Some(session);
        Ok(done)
    }

    fn taken(&mut self) -> Result<Session, StoreError> {
        let failed =
            || PostgresFault::Refused("an earlier step of the copy failed").into_error(IMPORTING);
        self.session.take().ok_or_else(failed)
    }
}

#[async_trait]
impl CopyTransaction for PostgresImport {
    async fn write(&mut self, items: Vec<Item>) -> Result<(), StoreError> {
        self.step(move |session| async move { write(session, &items).await }.boxed())
            .await
    }

    async fn written(
        &mut self,
        part: Part,
        after: Option<&Item>,
        limit: NonZeroUsize,
    ) -> Result<Vec<Item>, StoreError> {
        let after = after.cloned();
        self.step(move |session| {
            async move { items(session, part, after.as_ref(), limit).await }.boxed()
        })
        .await
    }

    async fn commit(mut self: Box<Self>, origin: &Origin) -> Result<Cursor, StoreError> {
        let (session, origin) = (self.taken()?, origin.clone());
        let finish = async move {
            finish(&session, &origin).await?;
            let head = head::read(&session).await?.cursor();
            session.commit().await?;
            Ok(head)
        };
        let late = PostgresFault::Unknown(Box::new(PostgresFault::Late));
        self.store
            .work(IMPORTING, TimeLimit::Long, late, finish)
            .await
    }
}

async fn write(session: &Session, items: &[Item]) -> Result<(), PostgresFault> {
    let mut written = NewRows::default();
    for item in items {
        match item {
            Item::Commit { revision, tag } => {
                let (revision, tag) = (*revision, *tag);
                written.commits.push(CommitRow { revision, tag });
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
                written.tenants.insert(tenant.clone(), head);
            }
            Item::Digest { digest, key } => written.digests.push((*digest, *key)),
            Item::Gone { key } => written.gone.push(*key),
            Item::Audit { row, number } => {
                let place = place_of(row.revision, *number)?;
                written.audit.push((place, AuditColumns::of(&row.entry)?));
            }
            Item::Row { change, number } => {
                let place = place_of(change.revision, *number)?;
                let columns = RowColumns::of(&change.row)?;
                written.rows.insert(change.row.key(), (place, columns));
            }
            Item::Document(document) => documents::put(session, document).await?,
        }
    }
    let mut bundle = Bundle::default();
    written.insert(&mut bundle, None)?;
    session.run(&bundle).await.map(drop)
}

async fn finish(session: &Session, origin: &Origin) -> Result<(), PostgresFault> {
    let store = StoreRow {
        epoch: Epoch(admin::random(session).await?),
        floor: origin.floor,
        restored_from: origin.restored_from,
    };
    head::write_store(session, &store).await?;
    let Cursor { revision, tag, .. } = origin.head;
    let (revision, tag, seal) = CommitRow { revision, tag }.columns()?;
    let sql = "UPDATE $s.head SET revision = $1, tag = $2, commit_seal = $3 WHERE one = 1";
    session.execute(sql, &[&revision, &&tag[..], &seal]).await?;
    let node = admin::random(session).await?;
    nodes::end_history(session, node, origin.lease).await
}
