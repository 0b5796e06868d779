//! The names of the files next to the store, and the check that this process may use them.

use std::path::{Path, PathBuf};

/// Returns whether this process lacks the permission to use a file, a file of its journal, or its folder.
#[cfg(unix)]
pub(super) fn is_out_of_reach(path: &Path) -> bool {
    use rustix::fs::{Access, access};
    use rustix::io::Errno;

    let denied = |path: &Path, how| {
        matches!(
            access(path, how),
            Err(Errno::ACCESS | Errno::PERM | Errno::ROFS)
        )
    };
    let both = Access::READ_OK | Access::WRITE_OK;
    denied(folder_of(path), Access::WRITE_OK | Access::EXEC_OK)
        || ["", "-wal", "-shm", "-journal"]
            .iter()
            .any(|end| denied(&with_end(path, end), both))
}

#[cfg(not(unix))]
pub(super) fn is_out_of_reach(_path: &Path) -> bool {
    false
}

pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

pub(super) fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    PathBuf::from(name)
}
