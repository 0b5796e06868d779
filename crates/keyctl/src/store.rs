//! The store behind the command line. To use another store, change this file.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyward::store::transfer::{Export, Import};
use keyward::store::{IntegrityReport, KeyStore, SqliteStore, Stats};
#[cfg(feature = "postgres")]
use keyward::store::{PostgresStore, postgres::PostgresOptions};
use keyward::{PepperFile, PepperRing};

use crate::args::Common;
use crate::failure::{Answer, Failure, Kind};

/// The location of a store. A database URL may hold a password and is never printed.
#[derive(Clone)]
pub(crate) enum Place {
    File(PathBuf),
    #[cfg_attr(
        not(feature = "postgres"),
        expect(
            dead_code,
            reason = "without the feature a URL is only distinguished from a path"
        )
    )]
    Database(String),
    /// The place names an environment variable that is not set.
    Unset,
}

impl From<OsString> for Place {
    fn from(given: OsString) -> Self {
        match given.to_str().and_then(|text| text.strip_prefix("env:")) {
            Some(name) => std::env::var_os(name).map_or(Self::Unset, Self::at),
            None => Self::at(given),
        }
    }
}

impl Place {
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

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Database(_) => f.write_str("the database"),
            Self::Unset => f.write_str("the store"),
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({self})")
    }
}

/// The state in which a command expects the store.
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

    pub(crate) fn source(&self) -> &dyn Export {
        each!(self, store => store)
    }

    pub(crate) fn target(&self) -> &dyn Import {
        each!(self, store => store)
    }

    pub(crate) async fn check_integrity(&self) -> Answer<IntegrityReport> {
        Ok(each!(self, store => store.check_integrity().await)?)
    }

    pub(crate) async fn stats(&self) -> Answer<Stats> {
        Ok(each!(self, store => store.stats().await)?)
    }

    pub(crate) async fn finish_recovery(&self) -> Answer<()> {
        Ok(each!(self, store => store.finish_recovery().await)?)
    }

    /// Returns the SQLite store, for commands that apply only to files.
    pub(crate) fn file(&self) -> Answer<&SqliteStore> {
        match self {
            Self::File(store) => Ok(store),
            #[cfg(feature = "postgres")]
            Self::Database(_) => Err(file_only()),
        }
    }
}

fn file_only() -> Failure {
    Failure::usage(
        "this is for files: back a database up and restore it with its own tools, such as pg_dump and \
         pg_restore; then `keyctl begin-anew`, and `keyctl recover`",
    )
}

/// Opens the store that the command line names.
pub(crate) async fn open(common: &Common, expected: Expected) -> Answer<Store> {
    open_at(&common.store, &common.schema, common, expected).await
}

/// Opens a store. Every command opens its stores through this function.
pub(crate) async fn open_at(
    place: &Place,
    schema: &str,
    common: &Common,
    expected: Expected,
) -> Answer<Store> {
    match place {
        Place::File(path) => {
            let mut options = SqliteStore::options(path).busy_timeout(common.wait);
            options = match expected {
                Expected::Existing => options.must_exist(),
                Expected::New => options.must_be_new(),
                Expected::CopyTarget => options,
            };
            if common.allow_unrecovered {
                options = options.allow_unrecovered();
            }
            Ok(Store::File(options.open().await?))
        }
        #[cfg(feature = "postgres")]
        Place::Database(url) => {
            let mut options = database(url, schema).lock_timeout(common.wait);
            options = match expected {
                Expected::Existing => options.must_exist(),
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
        Place::Database(_) => {
            let _ = schema;
            Err(no_databases())
        }
        Place::Unset => Err(unset()),
    }
}

fn unset() -> Failure {
    Failure::usage("the variable that env:NAME names is not set")
}

/// Limits the pool to two connections: commands run one after the other.
#[cfg(feature = "postgres")]
fn database(url: &str, schema: &str) -> PostgresOptions {
    const FEW: std::num::NonZeroUsize = std::num::NonZeroUsize::new(2).expect("2 is not zero");
    PostgresStore::options(url)
        .schema(schema)
        .max_connections(FEW)
}

#[cfg(not(feature = "postgres"))]
fn no_databases() -> Failure {
    Failure::usage(
        "this keyctl was built for files alone: build it with `--features sqlite,postgres` for a database",
    )
}

fn exists(place: &Place) -> Failure {
    let words = format!("{place} exists already, and was left as it is");
    Failure::new(Kind::Refused, words)
}

pub(crate) async fn restore(backup: &Path, to: &Place) -> Answer<()> {
    match to {
        Place::File(to) => Ok(SqliteStore::restore(backup, to).await?),
        Place::Database(_) => Err(file_only()),
        Place::Unset => Err(unset()),
    }
}

/// Starts a new history in a database whose tables were restored. A backup of a file is already marked as a
/// new history.
pub(crate) async fn start_new_epoch(common: &Common) -> Answer<()> {
    match open(common, Expected::Existing).await? {
        Store::File(_) => Err(Failure::usage(
            "this is for databases: `keyctl restore` makes a file from a backup",
        )),
        #[cfg(feature = "postgres")]
        Store::Database(store) => Ok(store.start_new_epoch().await?),
    }
}

/// The SQL of a database's tables.
pub(crate) fn schema_sql(common: &Common) -> Answer<String> {
    #[cfg(feature = "postgres")]
    return Ok(PostgresStore::schema_sql(&common.schema)?);
    #[cfg(not(feature = "postgres"))]
    {
        let _ = common;
        Err(no_databases())
    }
}

/// Returns the path of the pepper. The default, next to the store, is handy for a trial. In production, store
/// the pepper separately, on another volume or in a secret manager's mount, so that a copy of the store
/// contains no pepper.
pub(crate) fn pepper_path(common: &Common) -> Answer<PathBuf> {
    match (&common.pepper_file, &common.store) {
        (Some(path), _) => Ok(path.clone()),
        (None, Place::File(store)) => {
            let mut path = store.clone().into_os_string();
            path.push(".pepper");
            Ok(path.into())
        }
        (None, Place::Database(_)) => Err(Failure::usage(
            "beside a database stands no file: name that of the pepper, --pepper-file <FILE>",
        )),
        (None, Place::Unset) => Err(unset()),
    }
}

/// Creates a store and its pepper. Only this function creates a pepper: a new one in place of a lost one
/// would verify no key.
pub(crate) async fn set_up(common: &Common) -> Answer<(Store, PepperRing)> {
    let pepper = pepper_path(common)?;
    match &common.store {
        Place::File(path) if path.exists() => Err(exists(&common.store)),
        Place::File(_) => {
            // Creates the pepper first: if the command is interrupted afterwards, the same command completes
            // the set-up.
            let peppers = PepperFile::open_or_create(pepper)?.ring();
            Ok((open(common, Expected::New).await?, peppers))
        }
        Place::Database(_) | Place::Unset => {
            // The tables may exist already; keys may not.
            let store = open(common, Expected::New).await?;
            Ok((store, PepperFile::open_or_create(pepper)?.ring()))
        }
    }
}

pub(crate) fn peppers(common: &Common) -> Answer<PepperRing> {
    Ok(PepperFile::open(pepper_path(common)?)?.ring())
}
