//! The failing disk: a library that stands between a child and the operating system.

use std::path::{Path, PathBuf};

/// Builds the shim. There is no test without it.
pub fn shim(folder: &Path) -> PathBuf {
    support::cc::library(include_str!("shim.c"), folder)
}
