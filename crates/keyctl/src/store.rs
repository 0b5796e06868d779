//! The store behind the command line. To use another store, change this file.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyward::store::sqlite::OpenError;
use keyward::store::transfer::{CopySource, CopyTarget};
use keyward::store::usage::UsageStore;
use keyward::store::{IntegrityReport, KeyStore, NodeRegistry, Revision, SqliteStore, Stats};
#[cfg(feature = "postgres")]
use keyward::store::{PostgresStore, postgres::PostgresOptions};
use keyward::{PepperFile, PepperRing};

use crate::args::CommonArgs;
use crate::failure::{CliError, CliErrorKind, CliResult};

/// The location of a store. A database URL may hold a password and is never printed.
#[derive(Clone)]
pub(crate) enum StoreLocation {
    File(PathBuf),
    #[cfg_attr(
        not(feature = "postgres"),
        expect(
            dead_code,
            reason = "without the feature a URL is only distinguished from a path"
        )
    )]
    Database(String),
    /// `env:NAME` where the variable `NAME` is not set.
    Unset,
}

impl TryFrom<OsString> for StoreLocation {
    type Error = &'static str;

    fn try_from(given: OsString) -> Result<Self, Self::Error> {
        match given.to_str().and_then(|text| text.strip_prefix("env:")) {
            Some(name) => std::env::var_os(name).map_or(Ok(Self::Unset), Self::at),
            None => Self::at(given),
        }
    }
}

/// The reason to refuse an argument that names nothing.
const EMPTY: &str = "must not be empty";

impl StoreLocation {
    fn at(given: OsString) -> Result<Self, &'static str> {
        if given.is_empty() {
            return Err(EMPTY);
        }
        let connection = {
            let text = given.to_string_lossy();
            is_connection_string(&text).then(|| text.trim().to_owned())
        };
        Ok(connection.map_or_else(|| Self::File(given.into()), Self::Database))
    }
}

/// Parses an argument that can only name a file. The error does not repeat the argument.
pub(crate) fn file_name(given: OsString) -> Result<PathBuf, &'static str> {
    if given.is_empty() {
        return Err(EMPTY);
    }
    if is_connection_string(&given.to_string_lossy()) {
        return Err("must be the name of a file, not a connection string");
    }
    Ok(given.into())
}

/// Parameters of connection strings, in libpq and in drivers that people know from other languages.
const PARAMETERS: [&str; 22] = [
    "application_name",
    "connect_timeout",
    "database",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "passfile",
    "password",
    "passwd",
    "port",
    "pwd",
    "server",
    "service",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
    "uid",
    "user",
    "username",
];

/// Returns whether `text` looks like a connection string: `scheme://…`, `host=… user=…` or
/// `user:password@host`, also with a mistyped scheme. Such text may hold a password, so it is never used as the name of a
/// file. The driver decides whether it is valid.
#[must_use]
pub fn is_connection_string(text: &str) -> bool {
    let scheme = text.trim_start().split(':').next().unwrap_or_default();
    let is_scheme = |name: &str| scheme.len() < text.len() && scheme.eq_ignore_ascii_case(name);
    let is_parameter = |(at, _): (usize, &str)| {
        let separators = |c: char| c.is_whitespace() || ";&?,'\"".contains(c);
        let name = text[..at].trim_end().rsplit(separators).next();
        name.is_some_and(|name| PARAMETERS.contains(&name.to_ascii_lowercase().as_str()))
    };
    // The path of a file may have such a part, as in `./a:b@c.db`. A URL may have lost its scheme.
    let is_path = text.starts_with(['.', '/']) && !text.starts_with("//");
    let has_credentials =
        || (text.split_once(':')).is_some_and(|(_, password)| password.contains('@'));
    let has_mistyped_scheme = || {
        let scheme = text.trim_start().split('/').next().unwrap_or_default();
        let (start, rest) = text.trim_start().split_at(scheme.len());
        let name = start.trim_end_matches(|c: char| c.is_ascii_punctuation());
        let is = |scheme| name.eq_ignore_ascii_case(scheme);
        rest.starts_with("//") && ["postgres", "postgresql"].into_iter().any(is)
    };
    text.contains("://")
        || is_scheme("postgres")
        || is_scheme("postgresql")
        || has_mistyped_scheme()
        || text.match_indices('=').any(is_parameter)
        || !is_path && has_credentials()
}

impl fmt::Display for StoreLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Database(_) => f.write_str("the database"),
            Self::Unset => f.write_str("the store"),
        }
    }
}

impl fmt::Debug for StoreLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreLocation({self})")
    }
}

/// The state in which a command expects its store.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) enum Expected {
    Existing,
    New,
    /// An existing store that the command only reads from, such as the lost store of a recovery.
    Source,
    /// The empty target of a copy.
    CopyTarget,
}

/// An open store.
#[derive(Clone, Debug)]
pub(crate) enum Store {
    File(SqliteStore),
    #[cfg(feature = "postgres")]
    Database(PostgresStore),
}

/// Runs the same expression on either kind of store.
macro_rules! each {
    ($store:expr, $it:ident => $does:expr) => {
        match $store {
            Store::File($it) => $does,
            #[cfg(feature = "postgres")]
            Store::Database($it) => $does,
        }
    };
}

impl Store {
    pub(crate) fn keys(&self) -> Arc<dyn KeyStore> {
        each!(self, store => Arc::new(store.clone()))
    }

    pub(crate) fn registry(&self) -> Arc<dyn NodeRegistry> {
        each!(self, store => Arc::new(store.clone()))
    }

    pub(crate) fn usage(&self) -> Arc<dyn UsageStore> {
        each!(self, store => Arc::new(store.clone()))
    }

    pub(crate) fn source(&self) -> &dyn CopySource {
        each!(self, store => store)
    }

    pub(crate) fn target(&self) -> &dyn CopyTarget {
        each!(self, store => store)
    }

    pub(crate) async fn check_integrity(&self) -> CliResult<IntegrityReport> {
        Ok(each!(self, store => store.check_integrity().await)?)
    }

    pub(crate) async fn stats(&self) -> CliResult<Stats> {
        Ok(each!(self, store => store.stats().await)?)
    }
    pub(crate) async fn start_new_epoch(&self) -> CliResult<()> {
        Ok(each!(self, store => store.start_new_epoch().await)?)
    }

    pub(crate) async fn finish_recovery(&self) -> CliResult<()> {
        Ok(each!(self, store => store.finish_recovery().await)?)
    }

    /// Drops the tombstones of keys that were removed at `upto` or before, and returns their number.
    pub(crate) async fn compact(&self, upto: Revision) -> CliResult<u64> {
        Ok(each!(self, store => store.compact(upto).await)?)
    }

    pub(crate) async fn finish_upgrade(&self) -> CliResult<()> {
        Ok(each!(self, store => store.finish_upgrade().await)?)
    }

    /// Returns the SQLite store, for commands that apply only to files.
    pub(crate) fn file(&self) -> CliResult<&SqliteStore> {
        match self {
            Self::File(store) => Ok(store),
            #[cfg(feature = "postgres")]
            Self::Database(_) => Err(file_only()),
        }
    }
}

fn file_only() -> CliError {
    CliError::usage(
        "this command works on files alone: use the database's own tools, such as pg_dump, psql and VACUUM; after a \
         restore run `keyctl start-new-epoch`, then `keyctl recover`",
    )
}

/// Opens the store that the command line names.
pub(crate) async fn open(common: &CommonArgs, expected: Expected) -> CliResult<Store> {
    open_at(&common.store, &common.schema, common, expected).await
}

/// Opens a store. Every command opens its stores through this function.
pub(crate) async fn open_at(
    place: &StoreLocation,
    schema: &str,
    common: &CommonArgs,
    expected: Expected,
) -> CliResult<Store> {
    match place {
        StoreLocation::File(path) => {
            let mut options = SqliteStore::options(path).busy_timeout(common.wait);
            options = match expected {
                Expected::Existing | Expected::Source => options.create(false),
                Expected::New => options.create_new(true),
                Expected::CopyTarget => options,
            };
            if common.allow_unrecovered {
                options = options.allow_unrecovered();
            }
            match options.open().await {
                Err(OpenError::NotFound { .. }) if expected == Expected::Source => {
                    Err(CliError::no_source(place))
                }
                opened => Ok(Store::File(opened?)),
            }
        }
        #[cfg(feature = "postgres")]
        StoreLocation::Database(url) => {
            let mut options = database(url, schema).lock_timeout(common.wait);
            if let Some(owner) = &common.schema_owner {
                options = options.owner(owner);
            }
            options = match expected {
                Expected::Existing | Expected::Source => options.create(false),
                Expected::New | Expected::CopyTarget => options,
            };
            if common.allow_unrecovered {
                options = options.allow_unrecovered();
            }
            let store = options.connect().await?;
            if expected == Expected::New && store.stats().await?.head.revision.0 > 0 {
                return Err(exists(place));
            }
            Ok(Store::Database(store))
        }
        #[cfg(not(feature = "postgres"))]
        StoreLocation::Database(_) => {
            let _ = (schema, &common.schema_owner);
            Err(no_databases())
        }
        StoreLocation::Unset => Err(unset()),
    }
}

fn unset() -> CliError {
    CliError::usage("the variable that env:NAME names is not set")
}

/// Returns options with at most two connections, because commands run one after the other.
#[cfg(feature = "postgres")]
fn database(url: &str, schema: &str) -> PostgresOptions {
    const FEW: std::num::NonZeroUsize = std::num::NonZeroUsize::new(2).expect("2 is not zero");
    PostgresStore::options(url)
        .schema(schema)
        .max_connections(FEW)
}

#[cfg(not(feature = "postgres"))]
fn no_databases() -> CliError {
    CliError::usage(
        "this keyctl was built for files alone: build it with `--features postgres` for a database",
    )
}

fn exists(place: &StoreLocation) -> CliError {
    let message = format!("{place} exists already, and was left as it is");
    CliError::new(CliErrorKind::Refused, message)
}

pub(crate) async fn restore(backup: &Path, to: &StoreLocation) -> CliResult<()> {
    match to {
        StoreLocation::File(to) => match SqliteStore::restore(backup, to).await {
            Err(OpenError::NotFound { path }) => Err(CliError::no_source(path.display())),
            restored => Ok(restored?),
        },
        StoreLocation::Database(_) => Err(file_only()),
        StoreLocation::Unset => Err(unset()),
    }
}

/// Returns the SQL that creates a database's tables.
pub(crate) fn schema_sql(common: &CommonArgs) -> CliResult<String> {
    #[cfg(feature = "postgres")]
    return Ok(PostgresStore::schema_sql(&common.schema)?);
    #[cfg(not(feature = "postgres"))]
    {
        let _ = common;
        Err(no_databases())
    }
}

/// Returns the path of the pepper. The default is next to the store, which suits a trial. In production,
/// store the pepper separately, on another volume or in a secret manager's mount, so that a copy of the store
/// contains no pepper.
pub(crate) fn pepper_path(common: &CommonArgs) -> CliResult<PathBuf> {
    match (&common.pepper_file, &common.store) {
        (Some(path), _) => Ok(path.clone()),
        (None, StoreLocation::File(store)) => {
            let mut path = store.clone().into_os_string();
            path.push(".pepper");
            Ok(path.into())
        }
        (None, StoreLocation::Database(_)) => Err(CliError::usage(
            "a database has no default pepper file: name one with --pepper-file <FILE>",
        )),
        (None, StoreLocation::Unset) => Err(unset()),
    }
}

/// Creates a store and its pepper. No other function creates a pepper: a new pepper cannot verify existing
/// keys.
pub(crate) async fn set_up(common: &CommonArgs) -> CliResult<(Store, PepperRing)> {
    let pepper = pepper_path(common)?;
    match &common.store {
        StoreLocation::File(path) if path.exists() => Err(exists(&common.store)),
        StoreLocation::File(path) => {
            SqliteStore::options(path).check_space()?;
            // Creates the pepper first. If the command is interrupted afterwards, repeating the command
            // completes the set-up.
            let peppers = PepperFile::open_or_create(pepper)?.ring();
            Ok((open(common, Expected::New).await?, peppers))
        }
        StoreLocation::Database(_) | StoreLocation::Unset => {
            // The tables may exist already, but must hold no keys.
            let store = open(common, Expected::New).await?;
            let file = PepperFile::open_or_create(pepper).map_err(|error| {
                let made = format!(
                    "set up {}, but it has no pepper: repeat the command",
                    common.store
                );
                CliError::from(error).after(made)
            })?;
            Ok((store, file.ring()))
        }
    }
}

pub(crate) fn peppers(common: &CommonArgs) -> CliResult<PepperRing> {
    Ok(PepperFile::open(pepper_path(common)?)?.ring())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_string_is_never_the_name_of_a_file() {
        for text in [
            "postgres://u:hunter2@h/db",
            "Postgres://u:hunter2@h/db",
            "POSTGRESQL://u:hunter2@h/db",
            " postgres://u:hunter2@h/db\n",
            "\"postgres://u:hunter2@h/db\"",
            "postgres:u:hunter2@h/db",
            "postgresql+psycopg2://u:hunter2@h/db",
            "jdbc:postgresql://h/db?user=u&password=hunter2",
            "mysql://u:hunter2@h/db",
            "u:hunter2@h:5432/db",
            "postgres//u:hunter2@127.0.0.1:1/x",
            "postgresql//u@h/db",
            "postgre//u:hunter2@h/db",
            "postgres/u:hunter2@h/db",
            "//u:hunter2@h/db",
            "postgres;//u:hun/ter2@h/db",
            "host=h password=hunter2",
            "Host=h;Username=u;Password=hunter2",
            "password = 'hunter2' host = h",
            "dbname=app",
            "service=prod",
        ] {
            let location = StoreLocation::try_from(OsString::from(text)).unwrap();
            assert!(matches!(location, StoreLocation::Database(_)), "{text}");
            let printed = format!("{location} {location:?}");
            assert!(!printed.contains("hunter2"), "{printed}");
            assert!(file_name(text.into()).is_err_and(|error| !error.contains("hunter2")));
        }
    }

    #[test]
    fn other_text_is_the_name_of_a_file() {
        for text in [
            "keys.db",
            "/var/lib/host=a/keys.db",
            "./host=a",
            "postgres.db",
            "postgres",
            "data=1.db",
            "back:up.db",
            "2026-11-29T12:00:00.db",
            "me@home.db",
            "./a:b@c.db",
            "/var/a:b@c/keys.db",
            "../a:b@c/keys.db",
            "postgres/keys.db",
            "postgres-old//keys.db",
        ] {
            let location = StoreLocation::try_from(OsString::from(text)).unwrap();
            assert!(matches!(location, StoreLocation::File(path) if path == Path::new(text)));
            assert_eq!(file_name(text.into()), Ok(PathBuf::from(text)));
        }
    }
}
