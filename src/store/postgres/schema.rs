//! The schema of a store: the schema's name, the version of the tables, and the SQL that creates the tables.

use super::fault::ConnectError;
use crate::store::sql::{TablesVersion, build_version};

const TABLES: &str = include_str!("schema.sql");

/// The schema that contains the tables of one store.
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

    /// Returns the prefix of table names in SQL: the quoted schema name and a dot.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Returns the name without quotes.
    pub(super) fn name(&self) -> &str {
        self.prefix.trim_end_matches('.').trim_matches('"')
    }

    /// Returns the quoted name of the `NOTIFY` channel for commits.
    pub(super) fn channel(&self) -> String {
        format!("\"keyward_{}\"", self.name())
    }

    /// Returns the names of the store's tables.
    pub(super) fn tables() -> Vec<&'static str> {
        let created = TABLES
            .lines()
            .filter_map(|line| line.strip_prefix("CREATE TABLE "));
        created
            .filter_map(|table| table.split(' ').next())
            .collect()
    }

    pub(super) fn create(&self) -> String {
        format!("CREATE SCHEMA IF NOT EXISTS \"{}\";", self.name())
    }

    /// Returns the statements that create the tables in an existing schema. They must run in a transaction,
    /// because they set `search_path` with `SET LOCAL`.
    pub(super) fn create_tables(&self) -> String {
        let (upgrade, own) = (TablesVersion::FIRST.postgres_upgrade(), build_version());
        format!(
            "{}\n\n{TABLES}{upgrade}\n\
             INSERT INTO schema_version (one, version, oldest) VALUES (1, {own}, {own});",
            self.search_path()
        )
    }

    /// Returns the statements of the first step of the upgrade from `found` to this build. They must run in a
    /// transaction. `None` if the tables have the version of this build, or of a later one.
    pub(super) fn upgrade(&self, found: TablesVersion) -> Option<String> {
        let TablesVersion { version, .. } = found.upgraded()?;
        Some(format!(
            "{} {} UPDATE schema_version SET version = {version} WHERE one = 1;",
            self.search_path(),
            found.postgres_upgrade()
        ))
    }

    fn search_path(&self) -> String {
        format!("SET LOCAL search_path TO \"{}\";", self.name())
    }

    /// Returns an SQL script that creates the schema and its tables.
    pub(super) fn script(&self) -> String {
        let own = build_version();
        format!(
            "-- The tables of a keyward store, version {own}. The user that the service connects as \
             needs\n-- USAGE on the schema, and SELECT, INSERT, UPDATE and DELETE on its tables. If another \
             role runs this\n-- script, name that role as the owner when the service connects.\n\
             BEGIN;\n{}\n{}\nCOMMIT;\n",
            self.create(),
            self.create_tables()
        )
    }
}
