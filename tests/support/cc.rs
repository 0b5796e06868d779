//! Shims in C, loaded between a process and the kernel.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles `source` into a library in `folder`, to be loaded before all others. Returns the library's path.
pub fn library(source: &str, folder: &Path) -> PathBuf {
    let (text, library) = (folder.join("shim.c"), folder.join("shim.so"));
    std::fs::write(&text, source).unwrap();
    let status = Command::new("cc")
        .args(["-O1", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(text)
        .status()
        .expect("a C compiler named `cc` is installed");
    assert!(status.success(), "the shim does not compile");
    library
}
