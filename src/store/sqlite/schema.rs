//! The tables of the file and their version.

use std::collections::BTreeMap;

use rusqlite::{Connection, Row, Transaction, TransactionBehavior, params};

use super::damage::each_readable;
use super::fault::SqliteFault;
use super::head::write_store;
use crate::core::view::Revision;
use crate::store::Epoch;
use crate::store::sql::{StoreRow, StoredTable, TablesVersion};

/// The `PRAGMA application_id` of every keyward file: "kwrd" in ASCII.
pub(super) const APPLICATION_ID: i32 = 0x6b77_7264;

/// Returns the statements that create the tables of this build.
fn table_statements() -> String {
    include_str!("schema.sql").to_owned() + &TablesVersion::FIRST.sqlite_upgrade()
}

/// Returns the `application_id` of the file.
pub(super) fn application(conn: &Connection) -> Result<i32, SqliteFault> {
    Ok(conn.pragma_query_value(None, "application_id", |row| row.get(0))?)
}

/// Returns the versions of the file's tables, which `PRAGMA user_version` holds as one number.
fn version(conn: &Connection) -> Result<TablesVersion, SqliteFault> {
    let mut statement = conn.prepare_cached("PRAGMA user_version")?;
    let packed = statement.query_row([], |row| row.get(0))?;
    let found = TablesVersion::unpacked(packed);
    match found.is_possible() {
        true => Ok(found),
        false => Err(SqliteFault::Corrupt(
            "the version of the tables in its header is damaged".to_owned(),
        )),
    }
}

/// Returns whether a file has the tables of a store, although its header names another application.
pub(super) fn has_tables_of_a_store(conn: &Connection) -> Result<bool, SqliteFault> {
    let sql = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' \
               AND name IN ('store', 'commits', 'tenants', 'rows', 'digests', 'gone', 'audit')";
    Ok(conn.query_row(sql, [], |row| row.get::<_, i64>(0))? == 7)
}

/// Returns a counter that changes with every commit of another connection, but not with commits of
/// `conn`.
pub(super) fn data_version(conn: &Connection) -> Result<i64, SqliteFault> {
    let mut statement = conn.prepare_cached("PRAGMA data_version")?;
    Ok(statement.query_row([], |row| row.get(0))?)
}

/// Refuses a file that this build may not use.
pub(super) fn check_version(conn: &Connection) -> Result<(), SqliteFault> {
    Ok(version(conn)?.check()?)
}

/// Refuses a file that this build may neither use nor upgrade.
pub(super) fn check_may_upgrade(conn: &Connection) -> Result<(), SqliteFault> {
    Ok(version(conn)?.check_may_upgrade()?)
}

/// Takes the first step of the upgrade to this build, which earlier builds ignore. Does nothing if another process
/// took it.
pub(super) fn upgrade(conn: &Connection) -> Result<(), SqliteFault> {
    if version(conn)?.upgraded().is_none() {
        return Ok(());
    }
    let tx = Transaction::new_unchecked(conn, TransactionBehavior::Immediate)?;
    let found = version(conn)?;
    found.check_may_upgrade()?;
    if let Some(upgraded) = found.upgraded() {
        conn.execute_batch(&found.sqlite_upgrade())?;
        conn.pragma_update(None, "user_version", upgraded.packed())?;
    }
    Ok(tx.commit()?)
}

/// Refuses a file whose tables have another version than this build.
pub(super) fn check_own_version(conn: &Connection) -> Result<(), SqliteFault> {
    Ok(version(conn)?.check_is_own()?)
}

/// Ends the use of the file by earlier builds. Does nothing if their use has ended. The caller commits.
pub(super) fn finish_upgrade(conn: &Connection) -> Result<(), SqliteFault> {
    check_own_version(conn)?;
    conn.pragma_update(None, "user_version", TablesVersion::own().packed())?;
    Ok(())
}

/// Creates the tables of a new store, and gives the store a random epoch.
pub(super) fn create(conn: &mut Connection) -> Result<(), SqliteFault> {
    conn.pragma_update(None, "application_id", APPLICATION_ID)?;
    let tx = conn.transaction()?;
    tx.execute_batch(&table_statements())?;
    let store = StoreRow {
        epoch: Epoch(random(&tx)?),
        floor: Revision::ZERO,
        restored_from: None,
    };
    write_store(&tx, &store)?;
    tx.pragma_update(None, "user_version", TablesVersion::own().packed())?;
    tx.commit()?;
    Ok(())
}

/// The definition of a table or an index. The columns of a row of `sqlite_schema`.
#[derive(Clone)]
pub(super) struct Definition {
    kind: String,
    name: String,
    table: String,
    /// The page where the rows begin.
    root: i64,
    /// `None` for an index that SQLite creates by itself.
    sql: Option<String>,
}

impl Definition {
    /// Reads a row of [`SCHEMA`]. `None` for a damaged row.
    fn read(row: &Row<'_>) -> Option<Self> {
        Some(Self {
            kind: row.get(1).ok()?,
            name: row.get(2).ok()?,
            table: row.get(3).ok()?,
            root: row.get(4).ok()?,
            sql: row.get(5).ok()?,
        })
    }

    /// Returns whether the root page of the table or the index may have this first byte, which is its type.
    fn begins_with(&self, page_type: u8) -> bool {
        let sql = self.sql.as_deref().unwrap_or_default();
        match self.kind == "table" && !sql.contains("WITHOUT ROWID") {
            true => [5, 13].contains(&page_type),
            false => [2, 10].contains(&page_type),
        }
    }

    /// Returns whether both definitions have the same text, without comments and spaces.
    fn is_like(&self, other: &Self) -> bool {
        let text = |of: &Self| {
            let lines = of.sql.iter().flat_map(|sql| sql.lines());
            let code = lines.filter_map(|line| line.split("--").next());
            code.flat_map(str::split_whitespace).collect::<String>()
        };
        (&self.kind, &self.table, text(self)) == (&other.kind, &other.table, text(other))
    }
}

const SCHEMA: StoredTable = StoredTable {
    name: "sqlite_schema",
    columns: "rowid, type, name, tbl_name, rootpage, sql",
    order: "rowid",
};

/// Returns the definitions that can be read, by name.
fn readable(conn: &Connection) -> Result<BTreeMap<String, Definition>, SqliteFault> {
    let mut found = BTreeMap::new();
    each_readable(conn, SCHEMA, |row| {
        let read = Definition::read(row);
        found.extend(read.map(|read| (read.name.clone(), read)));
        Ok(())
    })?;
    Ok(found)
}

/// Returns the definitions of a store. SQLite numbers the roots in a fixed order: one in a new file, and another one
/// in a backup or after `VACUUM`.
fn layouts() -> Result<[BTreeMap<String, Definition>; 2], SqliteFault> {
    let new = Connection::open_in_memory()?;
    new.execute_batch(&table_statements())?;
    let created = readable(&new)?;
    new.execute_batch("VACUUM")?;
    Ok([created, readable(&new)?])
}

/// The right definitions of a file's tables and indexes.
pub(super) struct Definitions {
    right: Vec<Definition>,
    /// The names of those that are missing in the file or differ.
    damaged: Vec<String>,
}

impl Definitions {
    /// Returns the faults of the definitions.
    pub(super) fn damaged(&self) -> Vec<String> {
        let named = |name| format!("the definition of {name} is damaged");
        self.damaged.iter().map(named).collect()
    }
}

/// Compares the definitions in a file with those of a store. If most roots are those of a new or of a vacuumed file,
/// the other roots must be too. In any other file, keeps the roots that can be read. `page_type` returns the first
/// byte of a page, and decides if too few definitions can be read.
pub(super) fn definitions(
    conn: &Connection,
    page_type: impl Fn(i64) -> Option<u8>,
) -> Result<Definitions, SqliteFault> {
    let found = readable(conn)?;
    let root = |name: &String| found.get(name).map(|found| found.root);
    let agreeing = |layout: &BTreeMap<String, Definition>| {
        let agrees = |(name, known): &(&String, &Definition)| root(name) == Some(known.root);
        let fits =
            |known: &&Definition| page_type(known.root).is_some_and(|byte| known.begins_with(byte));
        let by_root = layout.iter().filter(agrees).count();
        (by_root, layout.values().filter(fits).count())
    };
    let [created, vacuumed] = layouts()?;
    let (new, old) = (agreeing(&created), agreeing(&vacuumed));
    let mut layout = if old > new { vacuumed } else { created };
    let known = found.keys().filter(|name| layout.contains_key(*name));
    if new.max(old).0 * 2 < known.count() {
        for (name, definition) in &mut layout {
            definition.root = root(name).unwrap_or(definition.root);
        }
    }
    let is_damaged = |(name, right): &(&String, &Definition)| {
        let same = |found: &Definition| found.root == right.root && found.is_like(right);
        !found.get(*name).is_some_and(same)
    };
    Ok(Definitions {
        damaged: (layout.iter().filter(is_damaged))
            .map(|(name, _)| name.clone())
            .collect(),
        right: layout.into_values().collect(),
    })
}

/// Returns a sentence for each object in a file that the store did not create, such as a trigger. A trigger or a view
/// never runs in this process, but other programs may run it, and it may hide or change rows.
pub(super) fn foreign(conn: &Connection) -> Result<Vec<String>, SqliteFault> {
    let [own, _] = layouts()?;
    // A later build may have added tables and indexes.
    let is_of_this_build = version(conn).is_ok_and(|found| found.check_is_own().is_ok());
    let is_foreign = |found: &Definition| {
        let may_be_added = ["table", "index"].contains(&&*found.kind);
        // SQLite itself uses this prefix, for example for the statistics of `ANALYZE`.
        !own.contains_key(&found.name)
            && !found.name.starts_with("sqlite_")
            && (is_of_this_build || !may_be_added)
    };
    let named = |found: Definition| {
        format!(
            "the store did not create the {} {:?} of table {:?}: examine it, then remove it",
            found.kind, found.name, found.table
        )
    };
    let found = readable(conn)?.into_values().filter(is_foreign);
    Ok(found.map(named).collect())
}

/// Returns the names of the tables and indexes of a file, by the page where each begins.
pub(super) fn names_by_root(conn: &Connection) -> Result<BTreeMap<i64, String>, SqliteFault> {
    let found = readable(conn)?.into_values();
    let named = |found: Definition| (found.root, format!("{} {}", found.kind, found.name));
    let mut names: BTreeMap<_, _> = found.map(named).collect();
    names.insert(1, "the definitions of tables".to_owned());
    Ok(names)
}

/// Returns the names of the tables of a file.
pub(super) fn tables(conn: &Connection) -> Result<Vec<String>, SqliteFault> {
    let tables = readable(conn)?
        .into_values()
        .filter(|found| found.kind == "table");
    Ok(tables.map(|table| table.name).collect())
}

/// Writes definitions into a file without tables.
pub(super) fn define(conn: &Connection, definitions: &Definitions) -> Result<(), SqliteFault> {
    let sql = "INSERT INTO sqlite_schema (type, name, tbl_name, rootpage, sql) \
               VALUES (?1, ?2, ?3, ?4, ?5)";
    // SQLite reads the tables first, and creates an index only with its table.
    let mut ordered: Vec<_> = definitions.right.iter().collect();
    ordered.sort_by_key(|definition| definition.kind != "table");
    for Definition {
        kind,
        name,
        table,
        root,
        sql: text,
    } in ordered
    {
        conn.execute(sql, params![kind, name, table, root, text])?;
    }
    Ok(())
}

/// Returns 16 random bytes.
pub(super) fn random(conn: &Connection) -> Result<u128, SqliteFault> {
    let bytes: [u8; 16] = conn.query_row("SELECT randomblob(16)", [], |row| row.get(0))?;
    Ok(u128::from_be_bytes(bytes))
}
