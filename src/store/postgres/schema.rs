//! What the tables look like, and how older ones become that.

use deadpool_postgres::GenericClient;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use super::fault::{ConnectError, Fault};
use super::link::Link;
use crate::core::view::Revision;
use crate::store::rows::{COPYING, CommitRow, StoreRow, is_copy, signed};

/// The version that this build writes, in `schema_version`.
pub(super) const VERSION: i32 = 1;

/// The version of a schema that is a copy in the making.
pub(super) const UNDER_WAY: i32 = COPYING + VERSION;

/// The steps from each version to the next. A released step is never edited.
const MIGRATIONS: [&str; VERSION as usize] = [include_str!("schema/1.sql")];

/// How often tables are set up anew when others do so at the same time. A judgement.
const ATTEMPTS: usize = 20;

/// Refuses what is no copy in the making.
pub(super) fn under_way(version: i32) -> Result<(), Fault> {
    match version {
        UNDER_WAY => Ok(()),
        found if is_copy(found) => Err(Fault::version(found)),
        _ => Err(Fault::Refused("no copy into this schema is under way")),
    }
}

/// The schema that a store has for itself.
#[derive(Clone, Debug)]
pub(super) struct Schema {
    prefix: String,
}

impl Schema {
    pub(super) fn new(name: &str) -> Result<Self, ConnectError> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        let first = name
            .bytes()
            .next()
            .is_some_and(|byte| !byte.is_ascii_digit());
        if !first || name.len() > 48 || !name.bytes().all(plain) {
            return Err(ConnectError::Schema);
        }
        Ok(Self {
            prefix: format!("\"{name}\"."),
        })
    }

    /// What stands before a table's name.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Its name, made of lower-case letters, digits and underscores.
    pub(super) fn name(&self) -> &str {
        self.prefix.trim_end_matches('.').trim_matches('"')
    }

    fn create(&self) -> String {
        format!("CREATE SCHEMA IF NOT EXISTS \"{}\"", self.name())
    }

    fn create_version(&self) -> String {
        let prefix = self.prefix();
        format!(
            "CREATE TABLE IF NOT EXISTS {prefix}schema_version \
             (one smallint PRIMARY KEY CHECK (one = 1), version integer NOT NULL)"
        )
    }

    /// Where commits are told.
    pub(super) fn channel(&self) -> String {
        format!("\"keyward_{}\"", self.name())
    }
}

/// Brings the tables to this build's version. Tables that are up to date are only read, and those of
/// a newer version are left as they are. Where there are none they are set up, unless they `must_exist`.
pub(super) async fn migrate(link: &Link, must_exist: bool) -> Result<(), Fault> {
    let mut last = Fault::Refused("the tables could not be set up");
    for _ in 0..ATTEMPTS {
        match step(link, must_exist).await {
            // Others did the same at the same time.
            Err(fault) if met_others(&fault) => last = fault,
            done => return done,
        }
    }
    Err(last)
}

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

async fn step(link: &Link, must_exist: bool) -> Result<(), Fault> {
    let mut conn = link.connection().await?;
    let client = conn.object()?;
    let standby = client.query_one("SELECT pg_is_in_recovery()", &[]).await?;
    if standby.try_get(0)? {
        return Err(Fault::Standby);
    }
    let name = link.schema.name();
    let prefix = link.schema.prefix();
    let versioned = "SELECT 1 FROM pg_catalog.pg_tables \
                     WHERE schemaname = $1 AND tablename = 'schema_version'";
    if client.query_opt(versioned, &[&name]).await?.is_none() {
        if must_exist {
            return Err(Fault::Missing);
        }
        let there = "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1";
        // Whoever may not create schemas can be given one.
        if client.query_opt(there, &[&name]).await?.is_none() {
            client.batch_execute(&link.schema.create()).await?;
        }
        client.batch_execute(&link.schema.create_version()).await?;
    }
    let sql = format!("SELECT version FROM {prefix}schema_version WHERE one = 1");
    let found = client.query_opt(&sql, &[]).await?;
    match found.map(|row| row.try_get(0)).transpose()? {
        Some(VERSION) if has_head(&*client, prefix).await? => {
            conn.give_back();
            return Ok(());
        }
        Some(found) if found > VERSION => return Err(Fault::version(found)),
        Some(_) => {}
        None => {
            let first = format!(
                "INSERT INTO {prefix}schema_version (one, version) VALUES (1, 0) \
                 ON CONFLICT DO NOTHING"
            );
            client.batch_execute(&first).await?;
        }
    }
    let tx = client.transaction().await?;
    tx.batch_execute(&link.settings()).await?;
    // Locked until the end: others wait here, and then find nothing left to do.
    let row = tx.query_one(&format!("{sql} FOR UPDATE"), &[]).await?;
    let from: i32 = row.try_get(0)?;
    if from > VERSION {
        return Err(Fault::version(from));
    }
    if from > 0 {
        // Whoever commits looks at the version once more when it has this lock.
        let lock = format!("SELECT 1 FROM {prefix}head WHERE one = 1 FOR UPDATE");
        tx.query(&lock, &[]).await?;
    }
    tx.batch_execute(&format!("SET LOCAL search_path TO \"{name}\""))
        .await?;
    for step in MIGRATIONS.iter().skip(usize::try_from(from).unwrap_or(0)) {
        tx.batch_execute(step).await?;
    }
    // New tables, or some that were set up by hand. The head of others is lost.
    if !has_head(&tx, prefix).await? {
        for table in ["commits", "tenants", "rows", "digests", "gone", "audit"] {
            let any = format!("SELECT 1 FROM {prefix}{table} LIMIT 1");
            if tx.query_opt(&any, &[]).await?.is_some() {
                return Err(Fault::corrupt("the store's own row is missing"));
            }
        }
        begin_history(&tx, prefix).await?;
    }
    if from < VERSION {
        let done = format!("UPDATE {prefix}schema_version SET version = $1 WHERE one = 1");
        tx.execute(&done, &[&VERSION]).await?;
    }
    tx.commit().await?;
    conn.give_back();
    Ok(())
}

async fn has_head(client: &impl GenericClient, prefix: &str) -> Result<bool, Fault> {
    let sql = format!("SELECT 1 FROM {prefix}head WHERE one = 1");
    Ok(client.query_opt(&sql, &[]).await?.is_some())
}

/// The statements that bring a schema of version `from` to this build's; of a schema that does not
/// exist, that is zero.
pub(super) fn sql(schema: &Schema, from: i32) -> Result<String, ConnectError> {
    let steps = usize::try_from(from)
        .ok()
        .and_then(|from| MIGRATIONS.get(from..));
    let steps = steps.ok_or(ConnectError::Newer {
        found: from,
        supported: VERSION,
    })?;
    let (name, prefix) = (schema.name(), schema.prefix());
    let mut sql = format!(
        "-- The tables of a keyward store, from version {from} to {VERSION}. The user that the service \
         connects as\n-- needs USAGE on the schema, and SELECT, INSERT, UPDATE and DELETE on its tables.\n\
         BEGIN;\n"
    );
    if from == 0 {
        let (create, versioned) = (schema.create(), schema.create_version());
        sql += &format!(
            "{create};\n{versioned};\n\
             INSERT INTO {prefix}schema_version (one, version) VALUES (1, 0);\n"
        );
    } else {
        // Whoever commits looks at the version once more when it has the lock of the head.
        sql += &format!(
            "-- Ends with a division by zero, and changes nothing, if the version is not {from}.\n\
             SELECT 1 / count(*) FROM {prefix}schema_version WHERE version = {from};\n\
             SELECT 1 FROM {prefix}head WHERE one = 1 FOR UPDATE;\n"
        );
    }
    sql += &format!("SET LOCAL search_path TO \"{name}\";\n\n");
    for step in steps {
        sql += step.trim_end();
        sql += "\n\n";
    }
    sql +=
        &format!("UPDATE {prefix}schema_version SET version = {VERSION} WHERE one = 1;\nCOMMIT;\n");
    Ok(sql)
}

/// Writes the head of a new store, with a history of its own.
async fn begin_history(tx: &deadpool_postgres::Transaction<'_>, prefix: &str) -> Result<(), Fault> {
    let store = StoreRow {
        epoch: random(tx).await?,
        floor: 0,
        unrecovered: false,
    };
    let nothing = CommitRow::NONE;
    let sql = format!(
        "INSERT INTO {prefix}head \
         (one, epoch, floor, unrecovered, store_seal, revision, tag, newest, commit_seal) \
         VALUES (1, $1, $2, $3, $4, $5, $6, NULL, $7)"
    );
    let epoch = store.epoch.to_be_bytes();
    let floor = signed(Revision(store.floor).0)?;
    let (store_seal, seal) = (store.seal()?, nothing.seal());
    tx.execute(
        &sql,
        &[
            &&epoch[..],
            &floor,
            &store.unrecovered,
            &store_seal,
            &nothing.revision,
            &&nothing.tag[..],
            &seal,
        ],
    )
    .await?;
    Ok(())
}

/// 122 random bits, drawn by the server.
async fn random(client: &impl GenericClient) -> Result<u128, Fault> {
    bits(&client.query_one(RANDOM, &[]).await?)
}

/// Has the server draw a random number.
pub(super) const RANDOM: &str = "SELECT gen_random_uuid()::text";

/// The number that [`RANDOM`] found.
pub(super) fn bits(row: &Row) -> Result<u128, Fault> {
    let uuid: &str = row.try_get(0)?;
    let digits: String = uuid.chars().filter(|c| *c != '-').collect();
    u128::from_str_radix(&digits, 16).map_err(|_| Fault::Refused("the server drew no random uuid"))
}
