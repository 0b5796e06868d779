//! The failing disk: a library that stands between a child and the operating system.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the shim. There is no test without it.
pub fn shim(folder: &Path) -> PathBuf {
    let library = folder.join("shim.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sqlite_faults/shim.c");
    let status = Command::new("cc")
        .args(["-O1", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(source)
        .status()
        .expect("these tests need a C compiler by the name of `cc`");
    assert!(status.success(), "the shim does not compile");
    library
}
