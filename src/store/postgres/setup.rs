//! Setting up the tables of a store, at every connect.

use deadpool_postgres::GenericClient;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use super::fault::Fault;
use super::schema::VERSION;
use super::session::Database;
use crate::core::view::Revision;
use crate::store::Epoch;
use crate::store::sql::{CommitRow, StoreRow};

/// 20 attempts: nodes that create the same tables concurrently roll each other back. A judgement.
const ATTEMPTS: usize = 20;

/// Creates missing tables, and begins a missing history. Refuses tables of another version, and
/// leaves them unchanged. With `must_exist`, missing tables are an error.
pub(super) async fn set_up(database: &Database, must_exist: bool) -> Result<(), Fault> {
    let mut last = Fault::Refused("the tables could not be set up");
    for _ in 0..ATTEMPTS {
        match attempt(database, must_exist).await {
            Err(fault) if met_others(&fault) => last = fault,
            done => return done,
        }
    }
    Err(last)
}

/// Returns whether another node set up the same tables concurrently.
fn met_others(fault: &Fault) -> bool {
    let met = [
        SqlState::UNIQUE_VIOLATION,
        SqlState::DUPLICATE_SCHEMA,
        SqlState::DUPLICATE_TABLE,
        SqlState::DUPLICATE_OBJECT,
        // "tuple concurrently updated"
        SqlState::INTERNAL_ERROR,
    ];
    fault.is_contention() || fault.code().is_some_and(|code| met.contains(code))
}

async fn attempt(database: &Database, must_exist: bool) -> Result<(), Fault> {
    let mut conn = database.connection().await?;
    let client = conn.object()?;
    let standby = client.query_one("SELECT pg_is_in_recovery()", &[]).await?;
    if standby.try_get(0)? {
        return Err(Fault::Standby);
    }
    let (name, prefix) = (database.schema.name(), database.schema.prefix());
    let tx = client.transaction().await?;
    tx.batch_execute(&database.settings()).await?;
    let versioned = "SELECT 1 FROM pg_catalog.pg_tables \
                     WHERE schemaname = $1 AND tablename = 'schema_version'";
    if tx.query_opt(versioned, &[&name]).await?.is_none() {
        if must_exist {
            return Err(Fault::Missing);
        }
        let there = "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1";
        // A user without the right to create schemas may use a schema that someone else created.
        if tx.query_opt(there, &[&name]).await?.is_none() {
            tx.batch_execute(&database.schema.create()).await?;
        }
        tx.batch_execute(&database.schema.create_tables()).await?;
    }
    let version = format!("SELECT version FROM {prefix}schema_version WHERE one = 1");
    let found = tx.query_opt(&version, &[]).await?;
    let found = found.ok_or_else(|| Fault::corrupt("the schema's version is missing"))?;
    match found.try_get(0)? {
        VERSION => {}
        found => return Err(Fault::version(found, VERSION)),
    }
    if !has_head(&tx, prefix).await? {
        // The row stays locked until the transaction ends: another node waits here, and then finds
        // the head.
        tx.query(&format!("{version} FOR UPDATE"), &[]).await?;
        if !has_head(&tx, prefix).await? {
            begin_history(&tx, prefix).await?;
        }
    }
    tx.commit().await?;
    conn.give_back();
    Ok(())
}

async fn has_head(client: &impl GenericClient, prefix: &str) -> Result<bool, Fault> {
    let sql = format!("SELECT 1 FROM {prefix}head WHERE one = 1");
    Ok(client.query_opt(&sql, &[]).await?.is_some())
}

/// Writes the head of a new store, which begins a new history. Refuses tables that are not empty,
/// because they have lost their head.
async fn begin_history(tx: &deadpool_postgres::Transaction<'_>, prefix: &str) -> Result<(), Fault> {
    for table in ["commits", "tenants", "rows", "digests", "gone", "audit"] {
        let any = format!("SELECT 1 FROM {prefix}{table} LIMIT 1");
        if tx.query_opt(&any, &[]).await?.is_some() {
            return Err(Fault::corrupt("the store's own row is missing"));
        }
    }
    let store = StoreRow {
        epoch: Epoch(bits(&tx.query_one(RANDOM, &[]).await?)?),
        floor: Revision::ZERO,
        unrecovered: false,
    };
    let (epoch, floor, unrecovered, store_seal) = store.columns()?;
    let (revision, tag, seal) = CommitRow::NONE.columns()?;
    let sql = format!(
        "INSERT INTO {prefix}head \
         (one, epoch, floor, unrecovered, store_seal, revision, tag, commit_seal) \
         VALUES (1, $1, $2, $3, $4, $5, $6, $7)"
    );
    tx.execute(
        &sql,
        &[
            &&epoch[..],
            &floor,
            &unrecovered,
            &store_seal,
            &revision,
            &&tag[..],
            &seal,
        ],
    )
    .await?;
    Ok(())
}

/// Has the server draw 122 random bits.
pub(super) const RANDOM: &str = "SELECT gen_random_uuid()::text";

/// Returns the number that [`RANDOM`] found.
pub(super) fn bits(row: &Row) -> Result<u128, Fault> {
    let uuid: &str = row.try_get(0)?;
    let digits: String = uuid.chars().filter(|c| *c != '-').collect();
    u128::from_str_radix(&digits, 16).map_err(|_| Fault::Refused("the server drew no random uuid"))
}
