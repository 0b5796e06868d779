//! Sets up the tables of a store. Runs at every connect.

use std::time::Duration;

use deadpool_postgres::GenericClient;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use super::fault::PostgresFault;
use super::session::{self, Database, Timeouts};
use super::trust;
use crate::core::view::Revision;
use crate::store::Epoch;
use crate::store::sql::{CommitRow, StoreRow};

/// 60 seconds for each statement that creates tables. Such a statement may have to wait while another node
/// creates the same tables.
pub(super) const SET_UP: Duration = Duration::from_secs(60);

/// 20 attempts to set up the tables. If several nodes create the same tables at the same time, the server
/// rolls some of them back. The number is an estimate.
const ATTEMPTS: usize = 20;

/// Creates the tables and their head row if these are missing, and upgrades tables of an earlier version. Without
/// `create`, missing tables are an error.
///
/// Fails on tables that this build may not use, and leaves those tables unchanged. Also fails on a schema or
/// tables that a role other than the connecting one and `owner` controls, and then creates nothing.
pub(super) async fn set_up(
    database: &Database,
    create: bool,
    owner: Option<&str>,
) -> Result<(), PostgresFault> {
    let mut last = PostgresFault::Refused("the tables could not be set up");
    for _ in 0..ATTEMPTS {
        match attempt(database, create, owner).await {
            Err(fault) if is_concurrent_set_up(&fault) => last = fault,
            done => return done,
        }
    }
    Err(last)
}

/// Returns `true` if another node may have set up the same tables concurrently. A retry may succeed.
fn is_concurrent_set_up(fault: &PostgresFault) -> bool {
    let met = [
        SqlState::UNIQUE_VIOLATION,
        SqlState::DUPLICATE_SCHEMA,
        SqlState::DUPLICATE_TABLE,
        SqlState::DUPLICATE_OBJECT,
        // The server returns this code for its internal error "tuple concurrently updated".
        SqlState::INTERNAL_ERROR,
    ];
    fault.is_contention() || fault.code().is_some_and(|code| met.contains(code))
}

async fn attempt(
    database: &Database,
    create: bool,
    owner: Option<&str>,
) -> Result<(), PostgresFault> {
    let mut conn = database.connection().await?;
    let client = conn.object()?;
    let standby = client.query_one("SELECT pg_is_in_recovery()", &[]).await?;
    if standby.try_get(0)? {
        return Err(PostgresFault::Standby);
    }
    let (name, prefix) = (database.schema.name(), database.schema.prefix());
    let tx = client.transaction().await?;
    tx.batch_execute(&database.settings()).await?;
    let versioned = "SELECT 1 FROM pg_catalog.pg_tables \
                     WHERE schemaname = $1 AND tablename = 'schema_version'";
    if tx.query_opt(versioned, &[&name]).await?.is_none() {
        if !create {
            return Err(PostgresFault::Missing);
        }
        let creating = Database {
            timeouts: Timeouts {
                statement: SET_UP,
                lock: SET_UP,
                ..database.timeouts
            },
            ..database.clone()
        };
        tx.batch_execute(&creating.settings()).await?;
        let there = "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1";
        // Check whether the schema exists: even for an existing schema, `CREATE SCHEMA IF NOT EXISTS` needs
        // the privilege to create schemas.
        if tx.query_opt(there, &[&name]).await?.is_none() {
            tx.batch_execute(&database.schema.create()).await?;
        }
        tx.batch_execute(&database.schema.create_tables()).await?;
    }
    // Before any other statement reads the tables, because a foreign part may run code.
    trust::check(&tx, &database.schema, owner).await?;
    let version = format!(
        "SELECT version, oldest, pg_is_in_recovery() FROM {prefix}schema_version WHERE one = 1"
    );
    let found = session::version(&tx.query(&version, &[]).await?)?;
    found.check_may_upgrade()?;
    if found.upgraded().is_some() {
        // Another node that upgrades the same tables waits for this lock, and then finds them upgraded.
        let found = session::version(&tx.query(&format!("{version} FOR UPDATE"), &[]).await?)?;
        if let Some(upgrade) = database.schema.upgrade(found) {
            tx.batch_execute(&upgrade).await?;
        }
    }
    if !has_head(&tx, prefix).await? {
        // Lock the version row until the transaction ends. Another node that sets up the same tables waits
        // here. It then finds the head row that this node has inserted.
        tx.query(&format!("{version} FOR UPDATE"), &[]).await?;
        if !has_head(&tx, prefix).await? {
            begin_history(&tx, prefix).await?;
        }
    }
    tx.commit().await?;
    conn.give_back();
    Ok(())
}

async fn has_head(client: &impl GenericClient, prefix: &str) -> Result<bool, PostgresFault> {
    let sql = format!("SELECT 1 FROM {prefix}head WHERE one = 1");
    Ok(client.query_opt(&sql, &[]).await?.is_some())
}

/// Inserts the head row of a new store. Fails if one of the tables already has rows. Such a store is not new
/// but has lost its head row.
async fn begin_history(
    tx: &deadpool_postgres::Transaction<'_>,
    prefix: &str,
) -> Result<(), PostgresFault> {
    for table in [
        "commits",
        "tenants",
        "rows",
        "digests",
        "gone",
        "audit",
        "documents",
        "usage_days",
        "usage_keys",
        "usage_boots",
        "usage_gaps",
        "usage_head",
    ] {
        let any = format!("SELECT 1 FROM {prefix}{table} LIMIT 1");
        if tx.query_opt(&any, &[]).await?.is_some() {
            return Err(PostgresFault::corrupt(
                "the head row of the store is missing",
            ));
        }
    }
    let store = StoreRow {
        epoch: Epoch(bits(&tx.query_one(RANDOM, &[]).await?)?),
        floor: Revision::ZERO,
        restored_from: None,
    };
    let (epoch, floor, restored_from, store_seal) = store.columns()?;
    let (revision, tag, seal) = CommitRow::NONE.columns()?;
    let sql = format!(
        "INSERT INTO {prefix}head \
         (one, epoch, floor, restored_from, store_seal, revision, tag, commit_seal) \
         VALUES (1, $1, $2, $3, $4, $5, $6, $7)"
    );
    tx.execute(
        &sql,
        &[
            &&epoch[..],
            &floor,
            &restored_from.as_ref().map(<[u8; 16]>::as_slice),
            &store_seal,
            &revision,
            &&tag[..],
            &seal,
        ],
    )
    .await?;
    Ok(())
}

/// Selects a random UUID, which has 122 random bits.
pub(super) const RANDOM: &str = "SELECT gen_random_uuid()::text";

/// Converts the UUID that [`RANDOM`] selects to a number.
pub(super) fn bits(row: &Row) -> Result<u128, PostgresFault> {
    let uuid: &str = row.try_get(0)?;
    let digits: String = uuid.chars().filter(|c| *c != '-').collect();
    u128::from_str_radix(&digits, 16)
        .map_err(|_| PostgresFault::Refused("the server returned no valid random UUID"))
}
