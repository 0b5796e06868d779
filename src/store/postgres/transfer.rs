//! The database as the source of a copy, and as its target.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::FutureExt;
use tokio_postgres::Row as Columns;

use super::calls::{Takes, Within};
use super::exchange::Bundle;
use super::fault::Fault;
use super::head::{self, HEAD, Head};
use super::link::{Link, Tx};
use super::read::marks;
use super::rows::{bound, exactly};
use super::schema::{UNDER_WAY, VERSION};
use super::write::Written;
use super::{PostgresStore, nodes, rows, upkeep};
use crate::core::secret::Digest;
use crate::store::rows::{
    AuditColumns, CommitRow, Fields, Sql, StoreRow, TenantHead, audit_item, digest_holder, id_of,
    is_copy, items_after, last_item, place_of, row_item, table, tenant_item,
};
use crate::store::transfer::{CopyError, Counts, Export, Import, Item, Origin, Page, Part};
use crate::store::{Cursor, StoreError};

const EXPORTING: &str = "reading a store to copy it";
const IMPORTING: &str = "copying into a database";

async fn origin(tx: &Tx<'_>) -> Result<Origin, Fault> {
    let head = Head::read(tx).await?;
    let lease = nodes::longest_lease(tx).await?.unwrap_or_default();
    Ok(Origin {
        head: head.cursor,
        newest: head.newest,
        floor: head.floor,
        unrecovered: head.unrecovered,
        lease: Duration::from_micros(lease.unsigned_abs()),
        counts: counts(tx).await?,
    })
}

async fn counts(tx: &Tx<'_>) -> Result<Counts, Fault> {
    let mut counts = Counts::default();
    for part in Part::ALL {
        let sql = format!("SELECT count(*) FROM $s.{}", table(part).0);
        let found = tx.query(&sql, &[]).await?;
        let count: Option<i64> = found.first().map(|row| row.try_get(0)).transpose()?;
        counts = counts.with(part, count.unwrap_or_default().unsigned_abs());
    }
    Ok(counts)
}

async fn page(
    tx: &Tx<'_>,
    part: Part,
    after: Option<&Item>,
    limit: NonZeroUsize,
) -> Result<Page, Fault> {
    let Head { cursor, floor, .. } = Head::read(tx).await?;
    Ok(Page {
        head: cursor,
        floor,
        items: items(
            tx,
            part,
            items_after(part, after, limit.get(), marks(tx.schema()))?,
        )
        .await?,
    })
}

async fn last(tx: &Tx<'_>, part: Part) -> Result<Option<Item>, Fault> {
    Ok(items(tx, part, last_item(part, marks(tx.schema())))
        .await?
        .pop())
}

async fn items(tx: &Tx<'_>, part: Part, sql: Sql<'_>) -> Result<Vec<Item>, Fault> {
    let found = tx.query(&sql.text, &bound(&sql.with)).await?;
    found.iter().map(|row| item(part, row)).collect()
}

/// What a row of this part says, unless it is damaged.
fn item(part: Part, row: &Columns) -> Result<Item, Fault> {
    Ok(match part {
        Part::Commits => {
            let commit = CommitRow {
                revision: row.try_get(0)?,
                tag: exactly(row.try_get(1)?, "the tag of a commit")?,
                newest: row.try_get(2)?,
            };
            let (revision, tag, newest) = commit.sealed(row.try_get(3)?)?;
            Item::Commit {
                revision,
                tag,
                newest,
            }
        }
        Part::Tenants => {
            let (tenant, head) = head::tenant(row)?;
            tenant_item(tenant, head)
        }
        Part::Digests => {
            let digest = Digest::from_bytes(exactly(row.try_get(0)?, "an imported digest")?);
            let key = digest_holder(&digest, row.try_get(1)?, row.try_get(2)?)?;
            Item::Digest { digest, key }
        }
        Part::Gone => {
            let key = id_of(row.try_get(0)?);
            let key = key.ok_or_else(|| Fault::corrupt("the id of a removed key is damaged"))?;
            Item::Gone { key }
        }
        Part::Audit => audit_item(row.try_get(0)?, rows::entry(row)?)?,
        Part::Rows => row_item(row.try_get(0)?, rows::change(row)?)?,
    })
}

async fn begin(
    tx: &Tx<'_>,
    version: i32,
    origin: &Origin,
) -> Result<Result<Counts, CopyError>, Fault> {
    tx.be_patient().await?;
    let here = Head::of(&tx.query(&format!("{HEAD} FOR UPDATE"), &[]).await?)?;
    let mut there = counts(tx).await?;
    let same_source = here.cursor.epoch == origin.head.epoch;
    match version {
        UNDER_WAY if !same_source => return Ok(Err(CopyError::OtherSource)),
        UNDER_WAY if origin.is_where(here.cursor, here.floor) => return Ok(Ok(there)),
        UNDER_WAY => {}
        found if is_copy(found) => return Ok(Err(CopyError::OtherVersion)),
        VERSION if same_source => return Ok(Err(CopyError::SameStore)),
        VERSION if there != Counts::default() => return Ok(Err(CopyError::NotEmpty)),
        VERSION => {}
        found => return Err(Fault::version(found)),
    }
    for part in Part::ALL {
        let sql = format!("DELETE FROM $s.{}", table(part).0);
        tx.execute(&sql, &[]).await?;
        there = there.with(part, 0);
    }
    let Cursor {
        epoch,
        revision,
        tag,
    } = origin.head;
    let store = StoreRow {
        epoch: epoch.0,
        floor: origin.floor.0,
        unrecovered: origin.unrecovered,
    };
    upkeep::write_store(tx, &store).await?;
    let head = match origin.newest {
        Some(newest) => CommitRow::new(revision, tag, newest)?,
        None => CommitRow::NONE,
    };
    let newest = origin.newest.map(|_| head.newest);
    let (tag, seal) = (&head.tag[..], head.seal());
    let sql = "UPDATE $s.head SET revision = $1, tag = $2, newest = $3, commit_seal = $4 \
               WHERE one = 1";
    tx.execute(sql, &[&head.revision, &tag, &newest, &seal])
        .await?;
    set_version(tx, UNDER_WAY).await?;
    Ok(Ok(there))
}

async fn set_version(tx: &Tx<'_>, version: i32) -> Result<(), Fault> {
    let sql = "UPDATE $s.schema_version SET version = $1 WHERE one = 1";
    tx.execute(sql, &[&version]).await.map(drop)
}

async fn write(tx: &Tx<'_>, items: &[Item]) -> Result<(), Fault> {
    let mut written = Written::default();
    for item in items {
        match item {
            Item::Commit {
                revision,
                tag,
                newest,
            } => (written.commits).push(CommitRow::new(*revision, *tag, *newest)?),
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
                let entry = AuditColumns::of(&row.entry)?;
                written.audit.push((place, entry));
            }
            Item::Row { change, number } => {
                let place = place_of(change.revision, *number)?;
                let fields = Fields::of(&change.row)?;
                written.rows.insert(change.row.key(), (place, fields));
            }
        }
    }
    let mut bundle = Bundle::default();
    written.insert(&mut bundle, None)?;
    bundle.run(tx).await
}

async fn finish(tx: &Tx<'_>, origin: &Origin) -> Result<Cursor, Fault> {
    let store = StoreRow {
        epoch: upkeep::random(tx).await?,
        floor: origin.floor.0,
        unrecovered: origin.unrecovered,
    };
    upkeep::write_store(tx, &store).await?;
    let lease = i64::try_from(origin.lease.as_micros()).unwrap_or(i64::MAX);
    upkeep::end_nodes(tx, Some(lease)).await?;
    set_version(tx, VERSION).await?;
    Ok(Head::read(tx).await?.cursor)
}

#[async_trait]
impl Export for PostgresStore {
    async fn origin(&self) -> Result<Origin, StoreError> {
        self.within(Within::Snapshot, Takes::AsLongAsItNeeds, EXPORTING, |tx| {
            origin(tx).boxed()
        })
        .await
    }

    async fn page(
        &self,
        part: Part,
        after: Option<&Item>,
        limit: NonZeroUsize,
    ) -> Result<Page, StoreError> {
        let after = after.cloned();
        self.within(Within::Snapshot, Takes::While, EXPORTING, move |tx| {
            async move { page(tx, part, after.as_ref(), limit).await }.boxed()
        })
        .await
    }
}

#[async_trait]
impl Import for PostgresStore {
    async fn begin(&self, origin: &Origin) -> Result<Counts, CopyError> {
        let origin = origin.clone();
        let write = move |link: Arc<Link>| async move {
            let mut conn = link.connection().await?;
            let (tx, version) = link.apart(&mut conn).await?;
            let begun = begin(&tx, version, &origin).await?;
            if begun.is_ok() {
                tx.commit().await?;
                conn.give_back();
            }
            Ok(begun)
        };
        let begun = self.work(IMPORTING, Takes::AsLongAsItNeeds, write).await;
        let late = || Err(Fault::Unknown(Box::new(Fault::Late)).told(IMPORTING));
        begun.unwrap_or_else(late)?
    }

    async fn last(&self, part: Part) -> Result<Option<Item>, StoreError> {
        self.within(Within::Copy, Takes::While, IMPORTING, move |tx| {
            last(tx, part).boxed()
        })
        .await
    }

    async fn write(&self, items: &[Item]) -> Result<(), StoreError> {
        let items = items.to_vec();
        self.within(Within::CopyWriting, Takes::Moment, IMPORTING, move |tx| {
            async move { write(tx, &items).await }.boxed()
        })
        .await
    }

    async fn written(
        &self,
        part: Part,
        after: Option<&Item>,
        limit: NonZeroUsize,
    ) -> Result<Page, StoreError> {
        let after = after.cloned();
        self.within(Within::Copy, Takes::While, IMPORTING, move |tx| {
            async move { page(tx, part, after.as_ref(), limit).await }.boxed()
        })
        .await
    }

    async fn finish(&self, origin: &Origin) -> Result<Cursor, StoreError> {
        let origin = origin.clone();
        self.within(Within::CopyWriting, Takes::Moment, IMPORTING, move |tx| {
            async move { finish(tx, &origin).await }.boxed()
        })
        .await
    }
}
