//! The file as the source of a copy, and as its target.

use std::num::NonZeroUsize;
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{
    Connection, Row as Columns, Transaction, TransactionBehavior, params, params_from_iter,
};

use super::fault::Fault;
use super::file::Place;
use super::head::{self, Head};
use super::list::MARKS;
use super::{SqliteStore, nodes, rows, schema, write};
use crate::core::secret::Digest;
use crate::core::tenant::TenantId;
use crate::core::view::Revision;
use crate::store::rows::{
    COPYING, CommitRow, RowFault, StoreRow, TenantHead, audit_item, digest_holder, id_bytes, id_of,
    is_copy, items_after, last_item, place_of, row_item, signed, table, tenant_item,
};
use crate::store::transfer::{CopyError, Counts, Export, Import, Item, Origin, Page, Part};
use crate::store::{CommitTag, Cursor, Epoch, StoreError};

/// The version of a file that is a copy in the making.
const UNDER_WAY: i32 = COPYING + schema::VERSION;

/// Where the source stood. The table is there for as long as the copy is under way.
const SOURCE: &str = "DROP TABLE IF EXISTS source; \
     CREATE TABLE source (revision INTEGER NOT NULL, tag BLOB NOT NULL) STRICT";

fn origin(conn: &Connection) -> Result<Origin, Fault> {
    let head = Head::read(conn)?;
    Ok(Origin {
        head: head.cursor,
        newest: head.newest,
        floor: head.floor,
        unrecovered: schema::store(conn)?.unrecovered,
        lease: Duration::from_micros(
            (nodes::longest_lease(conn)?.unwrap_or_default()).unsigned_abs(),
        ),
        counts: counts(conn)?,
    })
}

fn counts(conn: &Connection) -> Result<Counts, Fault> {
    let mut counts = Counts::default();
    for part in Part::ALL {
        let sql = format!("SELECT count(*) FROM {}", table(part).0);
        let count: i64 = conn.query_row(&sql, [], |row| row.get(0))?;
        counts = counts.with(part, count.unsigned_abs());
    }
    Ok(counts)
}

fn page(
    conn: &Connection,
    part: Part,
    after: Option<&Item>,
    limit: NonZeroUsize,
) -> Result<Page, Fault> {
    let Head { cursor, floor, .. } = Head::read(conn)?;
    let sql = items_after(part, after, limit.get(), MARKS)?;
    let mut statement = conn.prepare_cached(&sql.text)?;
    let mut found = statement.query(params_from_iter(&sql.with))?;
    let mut items = Vec::new();
    while let Some(row) = found.next()? {
        items.push(item(part, row)?);
    }
    Ok(Page {
        head: cursor,
        floor,
        items,
    })
}

fn last(conn: &Connection, part: Part) -> Result<Option<Item>, Fault> {
    let sql = last_item(part, MARKS);
    let mut statement = conn.prepare_cached(&sql.text)?;
    let mut found = statement.query(params_from_iter(&sql.with))?;
    let last = found.next()?.map(|row| item(part, row));
    last.transpose()
}

/// What a row of this part says, unless it is damaged.
fn item(part: Part, row: &Columns<'_>) -> Result<Item, Fault> {
    let damaged = |what: &str| RowFault::corrupt(format!("{what} is damaged"));
    Ok(match part {
        Part::Commits => {
            let commit = CommitRow {
                revision: row.get(0)?,
                tag: row.get(1)?,
                newest: row.get(2)?,
            };
            let (revision, tag, newest) = commit.sealed(row.get(3)?)?;
            Item::Commit {
                revision,
                tag,
                newest,
            }
        }
        Part::Tenants => {
            let name: String = row.get(0)?;
            let numbers = (row.get(1)?, row.get(2)?, row.get(3)?);
            let hash: Vec<u8> = row.get(4)?;
            let head = TenantHead::sealed(&name, numbers, &hash, row.get(5)?)?;
            let tenant = TenantId::new(&name).map_err(|_| damaged("a tenant's name"))?;
            tenant_item(tenant, head)
        }
        Part::Digests => {
            let digest = Digest::from_bytes(row.get(0)?);
            let id: Vec<u8> = row.get(1)?;
            let key = digest_holder(&digest, &id, row.get(2)?)?;
            Item::Digest { digest, key }
        }
        Part::Gone => {
            let id: Vec<u8> = row.get(0)?;
            let key = id_of(&id).ok_or_else(|| damaged("the id of a removed key"))?;
            Item::Gone { key }
        }
        Part::Audit => audit_item(row.get(0)?, rows::entry(row)?)?,
        Part::Rows => row_item(row.get(0)?, rows::change(row)?)?,
    })
}

/// A transaction on a copy in the making, which nobody else writes beside.
fn writing(conn: &mut Connection) -> Result<Transaction<'_>, Fault> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    match schema::version(&tx)? {
        UNDER_WAY => Ok(tx),
        found if is_copy(found) => Err(Fault::version(found)),
        _ => Err(Fault::Refused("no copy into this file is under way")),
    }
}

fn begin(conn: &mut Connection, origin: &Origin) -> Result<Result<Counts, CopyError>, Fault> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version = schema::version(&tx)?;
    let here = schema::store(&tx)?;
    let mut there = counts(&tx)?;
    let same_source = here.epoch == origin.head.epoch.0;
    match version {
        UNDER_WAY if !same_source => return Ok(Err(CopyError::OtherSource)),
        UNDER_WAY if origin.is_where(source(&tx)?, Revision(here.floor)) => return Ok(Ok(there)),
        UNDER_WAY => {}
        found if is_copy(found) => return Ok(Err(CopyError::OtherVersion)),
        schema::VERSION if same_source => return Ok(Err(CopyError::SameStore)),
        schema::VERSION if there != Counts::default() => return Ok(Err(CopyError::NotEmpty)),
        schema::VERSION => {}
        found => return Err(Fault::version(found)),
    }
    for part in Part::ALL {
        tx.execute(&format!("DELETE FROM {}", table(part).0), [])?;
        there = there.with(part, 0);
    }
    let store = StoreRow {
        epoch: origin.head.epoch.0,
        floor: origin.floor.0,
        unrecovered: origin.unrecovered,
    };
    schema::write_store(&tx, &store)?;
    let Cursor { revision, tag, .. } = origin.head;
    tx.execute_batch(SOURCE)?;
    let sql = "INSERT INTO source (revision, tag) VALUES (?1, ?2)";
    tx.execute(sql, params![signed(revision.0)?, tag.0.to_be_bytes()])?;
    tx.pragma_update(None, "user_version", UNDER_WAY)?;
    tx.commit()?;
    Ok(Ok(there))
}

/// Where the source stood whose copy this is.
fn source(conn: &Connection) -> Result<Cursor, Fault> {
    let sql = "SELECT revision, tag FROM source";
    let (revision, tag) = conn.query_row(sql, [], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, [u8; 16]>(1)?))
    })?;
    Ok(Cursor {
        epoch: Epoch(schema::store(conn)?.epoch),
        revision: Revision(revision.unsigned_abs()),
        tag: CommitTag(u128::from_be_bytes(tag)),
    })
}

fn write(conn: &mut Connection, items: &[Item]) -> Result<(), Fault> {
    let tx = writing(conn)?;
    for item in items {
        put(&tx, item)?;
    }
    tx.commit()?;
    Ok(())
}

fn put(conn: &Connection, item: &Item) -> Result<(), Fault> {
    match item {
        Item::Commit {
            revision,
            tag,
            newest,
        } => head::write_commit(conn, &CommitRow::new(*revision, *tag, *newest)?),
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
        Item::Digest { digest, key } => write::keep_digest(conn, digest, *key),
        Item::Gone { key } => {
            conn.prepare_cached("INSERT INTO gone (id) VALUES (?1)")?
                .execute([id_bytes(*key)])?;
            Ok(())
        }
        Item::Audit { row, number } => {
            write::note(conn, place_of(row.revision, *number)?, &row.entry)
        }
        Item::Row { change, number } => {
            let place = place_of(change.revision, *number)?;
            write::put(conn, place, &change.row, true)
        }
    }
}

fn finish(conn: &mut Connection, origin: &Origin) -> Result<Cursor, Fault> {
    let tx = writing(conn)?;
    let store = StoreRow {
        epoch: schema::random(&tx)?,
        floor: origin.floor.0,
        unrecovered: origin.unrecovered,
    };
    schema::write_store(&tx, &store)?;
    let lease = i64::try_from(origin.lease.as_micros()).unwrap_or(i64::MAX);
    nodes::begin_anew(&tx, Some(lease))?;
    tx.execute_batch("DROP TABLE source")?;
    tx.pragma_update(None, "user_version", schema::VERSION)?;
    let head = Head::read(&tx)?.cursor;
    tx.commit()?;
    Ok(head)
}

#[async_trait]
impl Export for SqliteStore {
    async fn origin(&self) -> Result<Origin, StoreError> {
        self.read("reading a store to copy it", origin).await
    }

    async fn page(
        &self,
        part: Part,
        after: Option<&Item>,
        limit: NonZeroUsize,
    ) -> Result<Page, StoreError> {
        let after = after.cloned();
        self.read("reading a store to copy it", move |conn| {
            page(conn, part, after.as_ref(), limit)
        })
        .await
    }
}

impl SqliteStore {
    /// Works on a copy in the making, through a connection of its own.
    async fn copying<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let place = Place {
            copy_target: true,
            ..self.place()
        };
        let work = move || {
            let mut conn = place.open()?;
            place.make_durable(&conn)?;
            work(&mut conn)
        };
        let done = blocking::unblock(work).await;
        done.map_err(|fault: Fault| fault.told("copying into a file"))
    }
}

#[async_trait]
impl Import for SqliteStore {
    async fn begin(&self, origin: &Origin) -> Result<Counts, CopyError> {
        let origin = origin.clone();
        self.copying(move |conn| begin(conn, &origin)).await?
    }

    async fn last(&self, part: Part) -> Result<Option<Item>, StoreError> {
        self.copying(move |conn| {
            let tx = writing(conn)?;
            last(&tx, part)
        })
        .await
    }

    async fn write(&self, items: &[Item]) -> Result<(), StoreError> {
        let items = items.to_vec();
        self.copying(move |conn| write(conn, &items)).await
    }

    async fn written(
        &self,
        part: Part,
        after: Option<&Item>,
        limit: NonZeroUsize,
    ) -> Result<Page, StoreError> {
        let after = after.cloned();
        self.copying(move |conn| {
            let tx = writing(conn)?;
            page(&tx, part, after.as_ref(), limit)
        })
        .await
    }

    async fn finish(&self, origin: &Origin) -> Result<Cursor, StoreError> {
        let origin = origin.clone();
        self.copying(move |conn| finish(conn, &origin)).await
    }
}
