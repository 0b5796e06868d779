//! C libraries that a test preloads into a process, to intercept the process's calls to the operating system.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles C code into a shared library in `folder`, and returns the library's path. A process loads it
/// through `LD_PRELOAD`.
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
