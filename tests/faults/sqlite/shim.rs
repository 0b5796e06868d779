//! The shim that makes a disk fail: a library preloaded into the child process.

use std::path::{Path, PathBuf};

/// Builds the shim, which every test with a failing disk needs.
pub fn shim(folder: &Path) -> PathBuf {
    support::cc::library(include_str!("shim.c"), folder)
}
