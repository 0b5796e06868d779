//! The store behind the command line. To use another store, change this file.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyward::store::transfer::{CopySource, CopyTarget};
use keyward::store::{IntegrityReport, KeyStore, SqliteStore, Stats};
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

impl From<OsString> for StoreLocation {
    fn from(given: OsString) -> Self {
        match given.to_str().and_then(|text| text.strip_prefix("env:")) {
            Some(name) => std::env::var_os(name).map_or(Self::Unset, Self::at),
            None => Self::at(given),
        }
    }
}

impl StoreLocation {
    fn at(given: OsString) -> Self {
        let url = given.to_str().filter(|text| {
            let schemes = ["postgres://", "postgresql://"];
            schemes.iter().any(|scheme| text.starts_with(scheme))
        });
        match url {
            Some(url) => Self::Database(url.to_owned()),
            None => Self::File(given.into()),
        }
    }
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

    pub(crate) async fn finish_recovery(&self) -> CliResult<()> {
        Ok(each!(self, store => store.finish_recovery().await)?)
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
        "this is for files: back a database up and restore it with its own tools, such as pg_dump and \
         pg_restore; then `keyctl start-new-epoch`, and `keyctl recover`",
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
                Expected::Existing => options.create(false),
                Expected::New => options.create_new(true),
                Expected::CopyTarget => options,
            };
            if common.allow_unrecovered {
                options = options.allow_unrecovered();
            }
            Ok(Store::File(options.open().await?))
        }
        #[cfg(feature = "postgres")]
        StoreLocation::Database(url) => {
            let mut options = database(url, schema).lock_timeout(common.wait);
            if let Some(owner) = &common.schema_owner {
                options = options.owner(owner);
            }
            options = match expected {
                Expected::Existing => options.create(false),
                Expected::New => options,
                Expected::CopyTarget => options,
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
            let _ = schema;
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
        "this keyctl was built for files alone: build it with `--features sqlite,postgres` for a database",
    )
}

fn exists(place: &StoreLocation) -> CliError {
    let message = format!("{place} exists already, and was left as it is");
    CliError::new(CliErrorKind::Refused, message)
}

pub(crate) async fn restore(backup: &Path, to: &StoreLocation) -> CliResult<()> {
    match to {
        StoreLocation::File(to) => Ok(SqliteStore::restore(backup, to).await?),
        StoreLocation::Database(_) => Err(file_only()),
        StoreLocation::Unset => Err(unset()),
    }
}

/// Starts a new epoch in a database whose tables were restored. A file needs no such step, because its backup
/// is already marked.
pub(crate) async fn start_new_epoch(common: &CommonArgs) -> CliResult<()> {
    match open(common, Expected::Existing).await? {
        Store::File(_) => Err(CliError::usage(
            "this is for databases: `keyctl restore` makes a file from a backup",
        )),
        #[cfg(feature = "postgres")]
        Store::Database(store) => Ok(store.start_new_epoch().await?),
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
        StoreLocation::File(_) => {
            // Creates the pepper first. If the command is interrupted afterwards, repeating the command
            // completes the set-up.
            let peppers = PepperFile::open_or_create(pepper)?.ring();
            Ok((open(common, Expected::New).await?, peppers))
        }
        StoreLocation::Database(_) | StoreLocation::Unset => {
            // The tables may exist already, but must hold no keys.
            let store = open(common, Expected::New).await?;
            Ok((store, PepperFile::open_or_create(pepper)?.ring()))
        }
    }
}

pub(crate) fn peppers(common: &CommonArgs) -> CliResult<PepperRing> {
    Ok(PepperFile::open(pepper_path(common)?)?.ring())
}
