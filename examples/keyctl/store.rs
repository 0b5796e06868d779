//! The store behind the command line: to put another in its place, change this file.

use std::path::{Path, PathBuf};

use keyward::store::SqliteStore;
use keyward::{PepperFile, PepperRing};

use crate::args::Common;
use crate::failure::{Answer, Failure, Kind};

/// What a command expects to find.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) enum Expected {
    Existing,
    New,
}

/// The one place that opens a store.
pub(crate) async fn open(common: &Common, expected: Expected) -> Answer<SqliteStore> {
    let mut options = SqliteStore::options(&common.store).busy_timeout(common.wait);
    options = match expected {
        Expected::Existing => options.must_exist(),
        Expected::New => options.must_be_new(),
    };
    if common.allow_unrecovered {
        options = options.allow_unrecovered();
    }
    Ok(options.open().await?)
}

pub(crate) async fn restore(backup: &Path, to: &Path) -> Answer<()> {
    Ok(SqliteStore::restore(backup, to).await?)
}

/// Where the pepper is. Beside the store is handy for a trial; in production it lives elsewhere, on
/// another volume or in a secret manager's mount, so that whoever copies the store has no pepper.
pub(crate) fn pepper_path(common: &Common) -> PathBuf {
    common.pepper_file.clone().unwrap_or_else(|| {
        let mut path = common.store.clone().into_os_string();
        path.push(".pepper");
        path.into()
    })
}

/// A pepper for a store that does not exist yet. One in place of a lost pepper would verify nothing,
/// so that only setting up a store ever makes one.
pub(crate) fn first_peppers(common: &Common) -> Answer<PepperRing> {
    if common.store.exists() {
        let words = format!(
            "{} exists already, and was left as it is",
            common.store.display()
        );
        return Err(Failure::new(Kind::Refused, words));
    }
    Ok(PepperFile::open_or_create(pepper_path(common))?)
}

pub(crate) fn peppers(common: &Common) -> Answer<PepperRing> {
    Ok(PepperFile::read(pepper_path(common))?)
}
