//! Administrative operations: integrity check, statistics, compaction and recovery.

use super::fault::PostgresFault;
use super::schema::Schema;
use super::session::{Session, VERSIONED, version};
use super::setup::{RANDOM, bits};
use super::{documents, head, nodes};
use crate::core::view::Revision;
use crate::store::sql::{self, COUNTS, Cells, IntegrityPass, StoreRow, Tombstones, signed};
use crate::store::{Epoch, IntegrityReport, Stats};

/// 2,048 rows per fetch of the integrity check, to bound the memory in use. An estimate.
const FETCHED: usize = 2048;

/// Reads all tables, and reports the damage found. Fails if a table is missing or may not be read.
pub(super) async fn check(session: &Session) -> Result<IntegrityReport, PostgresFault> {
    let mut report = IntegrityReport::default();
    match head::read(session).await {
        Ok(_) => {}
        Err(PostgresFault::Corrupt(damage)) => report.add(damage),
        Err(fault) => return Err(fault),
    }
    // No pass reads the table `gone`.
    for table in Schema::tables() {
        let any = format!("SELECT 1 FROM $s.{table} LIMIT 1");
        session.query(&any, &[]).await?;
    }
    for check in IntegrityPass::ALL {
        let look = |row: &tokio_postgres::Row| {
            report.look(check, row);
            Ok(true)
        };
        session.each(&check.sql(), &[], FETCHED, look).await?;
    }
    Ok(report)
}

pub(super) async fn stats(session: &Session) -> Result<Stats, PostgresFault> {
    let head = head::read(session).await?.cursor();
    let size = "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint, \
                split_part(current_setting('server_version'), ' ', 1) \
                FROM pg_catalog.pg_class AS c \
                JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
                WHERE n.nspname = $1 AND c.relkind = 'r'";
    let size = session.query(size, &[&session.schema().name()]).await?;
    let counts = session.query(COUNTS, &[]).await?;
    let (Some(size), Some(counts)) = (size.first(), counts.first()) else {
        return Err(PostgresFault::Refused("the server returned no row counts"));
    };
    let bytes = size.number(0, "the size of the tables")?.unsigned_abs();
    let engine = format!("PostgreSQL {}", size.text(1, "the version of the server")?);
    Ok(sql::stats(counts, head, (bytes, 0), engine)?)
}

/// Finds the tombstones of commits at or below the revision `upto`.
pub(super) async fn tombstones(
    session: &Session,
    upto: Revision,
) -> Result<Tombstones, PostgresFault> {
    let mut found = Tombstones::upto(upto, &head::read(session).await?);
    for row in &session.query(Tombstones::SQL, &[&found.end()]).await? {
        found
            .places
            .push(row.number(0, "the place of a tombstone")?);
    }
    Ok(found)
}

/// Drops tombstones, and returns their number. The ids stay taken. The caller commits the session.
pub(super) async fn compact(session: &Session, found: &Tombstones) -> Result<u64, PostgresFault> {
    let head = head::lock(session).await?;
    let floor = found.floor(&head)?;
    let keep = "INSERT INTO $s.gone (id) SELECT id FROM $s.rows WHERE kind = 3 AND place = ANY($1) \
                ON CONFLICT DO NOTHING";
    session.execute(keep, &[&found.places]).await?;
    let drop = "DELETE FROM $s.rows WHERE kind = 3 AND place = ANY($1)";
    let dropped = session.execute(drop, &[&found.places]).await?;
    // A follower with a cursor below the floor gets `Compacted` and starts over. So no follower needs these
    // rows of `commits`.
    let sql = "DELETE FROM $s.commits WHERE revision < $1";
    session.execute(sql, &[&signed(floor.0)?]).await?;
    let store = StoreRow {
        floor,
        ..head.store
    };
    head::write_store(session, &store).await?;
    Ok(dropped)
}

/// Gives restored tables a new epoch, so that every follower of the lost history starts over. The caller
/// commits the session.
pub(super) async fn start_epoch(session: &Session) -> Result<(), PostgresFault> {
    let head = head::lock(session).await?;
    let mut store = head.store;
    store.mark_unrecovered();
    store.epoch = Epoch(random(session).await?);
    store.floor = head.last.revision;
    head::write_store(session, &store).await?;
    documents::end_history(session).await?;
    let longest = nodes::longest_lease(session).await?;
    nodes::end_history(session, random(session).await?, longest).await
}

/// Marks restored tables as recovered. The caller commits the session.
pub(super) async fn finish_recovery(session: &Session) -> Result<(), PostgresFault> {
    let head = head::lock(session).await?;
    let store = StoreRow {
        restored_from: None,
        ..head.store
    };
    head::write_store(session, &store).await
}

/// Ends the use of the tables by earlier builds. The caller commits the session.
pub(super) async fn finish_upgrade(session: &Session) -> Result<(), PostgresFault> {
    // A commit checks the version under the same lock. So no earlier build commits after this transaction.
    head::lock(session).await?;
    check_own_version(session).await?;
    let sql = "UPDATE $s.schema_version SET oldest = version WHERE one = 1";
    session.execute(sql, &[]).await.map(drop)
}

/// Fails if the tables have another version than this build.
pub(super) async fn check_own_version(session: &Session) -> Result<(), PostgresFault> {
    let found = session.query(VERSIONED, &[]).await?;
    Ok(version(&found)?.check_is_own()?)
}

/// Returns a number with 122 random bits, drawn by the server.
pub(super) async fn random(session: &Session) -> Result<u128, PostgresFault> {
    let drawn = session.query(RANDOM, &[]).await?;
    let drawn = drawn.first();
    bits(drawn.ok_or(PostgresFault::Refused(
        "the server returned no random number",
    ))?)
}
