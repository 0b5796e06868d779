//! The failing disk: a library between a child and the operating system.

use std::path::{Path, PathBuf};

/// Builds the shim, which every test with a failing disk needs.
pub fn shim(folder: &Path) -> PathBuf {
    support::cc::library(include_str!("shim.c"), folder)
}
