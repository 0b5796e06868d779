//! The shim, a library that a child process preloads. The library makes calls to the operating system fail,
//! as on a failing disk.

use std::path::{Path, PathBuf};

/// Compiles the shim into `folder`, and returns the path of the library.
pub fn shim(folder: &Path) -> PathBuf {
    support::cc::library(include_str!("shim.c"), folder)
}
