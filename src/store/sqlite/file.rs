//! The file: its permissions, its creation, and the setup of a connection.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::fault::{Fault, OpenError};
use super::{head, schema};

/// SQLite 3.51.3, the first version without the bug that could corrupt a file in WAL mode with several
/// connections (3.7.0 to 3.51.2).
const SAFE_WAL: i32 = 3_051_003;

/// 64 MiB of the write-ahead log stay on disk between bursts.
const WAL_KEPT: i64 = 64 << 20;

/// The way in which commits reach the disk. Both modes wait for the disk, and survive a power cut.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum JournalMode {
    /// A write-ahead log with `synchronous=FULL`: readers and the writer do not block each other.
    Wal,
    /// A rollback journal with `synchronous=EXTRA`, if the linked SQLite is too old for WAL mode.
    Truncate,
}

impl JournalMode {
    /// Returns the mode's name in SQLite.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Wal => "wal",
            Self::Truncate => "truncate",
        }
    }
}

/// The path of a store, and the options for connecting to it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) group_access: bool,
    /// Whether a restored file may be used before it was recovered.
    pub(super) unrecovered: bool,
    pub(super) busy: Duration,
}

/// The identity of the file at a path, which reveals that the file was replaced.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Identity(u64, u64);

impl Place {
    /// Returns the identity of the file, if there is one and it may be opened.
    pub(super) fn look(&self) -> Result<Option<Identity>, OpenError> {
        let path = &self.path;
        let meta = match fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(OpenError::io(path, error)),
        };
        let kind = meta.file_type();
        let what = if kind.is_symlink() {
            "a symbolic link"
        } else if kind.is_dir() {
            "a directory"
        } else if kind.is_file() {
            return self.admit(&meta).map(Some);
        } else {
            "a device, a pipe or a socket"
        };
        Err(OpenError::NotAFile {
            path: path.clone(),
            what,
        })
    }

    #[cfg(unix)]
    fn admit(&self, meta: &fs::Metadata) -> Result<Identity, OpenError> {
        use std::os::unix::fs::MetadataExt;

        let mode = meta.mode() & 0o777;
        let refused = if self.group_access { 0o007 } else { 0o077 };
        if mode & refused != 0 {
            return Err(OpenError::ReadableByOthers {
                path: self.path.clone(),
                mode,
            });
        }
        Ok(Identity(meta.dev(), meta.ino()))
    }

    #[cfg(not(unix))]
    fn admit(&self, _meta: &fs::Metadata) -> Result<Identity, OpenError> {
        Ok(Identity(0, 0))
    }

    /// Connects to the file, if the file is a store of a version that this build knows. Does not change
    /// the file.
    ///
    /// Only SQLite opens the file: if this process closed another descriptor of the file, all SQLite
    /// connections of the process would lose their locks.
    pub(super) fn open(&self) -> Result<Connection, OpenError> {
        let path = &self.path;
        let fail = |fault: Fault| OpenError::of(path, fault);
        let len = fs::metadata(path)
            .map_err(|error| OpenError::io(path, error))?
            .len();
        let what = match len {
            0 => "it is empty",
            1..512 => "it ends within its first page",
            _ => "",
        };
        if !what.is_empty() {
            return Err(OpenError::Corrupt {
                path: path.clone(),
                what: what.to_owned(),
            });
        }
        let conn = self.connect()?;
        let foreign = |what| OpenError::Foreign {
            path: path.clone(),
            what,
        };
        let ours = match schema::application(&conn) {
            Ok(id) => id == schema::APPLICATION_ID,
            Err(fault) if fault.is_no_database() => return Err(foreign("it is no SQLite file")),
            Err(fault) => return Err(fail(fault)),
        };
        if !ours {
            return Err(foreign("it is another program's SQLite file"));
        }
        schema::check_version(&conn).map_err(fail)?;
        Ok(conn)
    }

    /// Connects to the file that is now at the path, to read and write keys. Refuses an unrecovered
    /// file: a restored backup may have replaced the file that was opened.
    pub(super) fn serve(&self) -> Result<Connection, OpenError> {
        let conn = self.open()?;
        self.check_recovered(&conn)?;
        Ok(conn)
    }

    pub(super) fn check_recovered(&self, conn: &Connection) -> Result<(), OpenError> {
        let store = head::store(conn).map_err(|fault| OpenError::of(&self.path, fault))?;
        if store.unrecovered && !self.unrecovered {
            return Err(OpenError::Unrecovered {
                path: self.path.clone(),
            });
        }
        Ok(())
    }

    /// Connects to any SQLite file, with settings that do not change the file.
    fn connect(&self) -> Result<Connection, OpenError> {
        let fail = |fault: Fault| OpenError::of(&self.path, fault);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(&self.path, flags)
            .map_err(|error| fail(Fault::from(error)))?;
        let set_up = || -> Result<(), Fault> {
            conn.busy_timeout(self.busy)?;
            conn.set_prepared_statement_cache_capacity(64);
            // Otherwise SQLite would parse some statements again for each new parameter.
            conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
            conn.pragma_update(None, "trusted_schema", false)?;
            conn.pragma_update(None, "cell_size_check", true)?;
            conn.pragma_update(None, "journal_size_limit", WAL_KEPT)?;
            conn.pragma_update(None, "temp_store", "MEMORY")?;
            Ok(())
        };
        set_up().map_err(fail)?;
        Ok(conn)
    }

    /// Makes commits of this connection durable, in the best journal mode that the linked SQLite can use
    /// safely.
    pub(super) fn make_durable(&self, conn: &Connection) -> Result<JournalMode, OpenError> {
        let fail = |fault: Fault| OpenError::of(&self.path, fault);
        let now = journal(conn).map_err(fail)?;
        let wal_is_safe = rusqlite::version_number() >= SAFE_WAL;
        let mode = match (wal_is_safe, now.as_str()) {
            (true, "wal") => JournalMode::Wal,
            // If another process has the file open, the file keeps its mode, which is safe as well.
            (true, _) => match set_journal(conn, "WAL") {
                Ok(mode) if mode == "wal" => JournalMode::Wal,
                _ => self.truncate(conn)?,
            },
            (false, _) => self.truncate(conn)?,
        };
        let synchronous = match mode {
            JournalMode::Wal => "FULL",
            JournalMode::Truncate => "EXTRA",
        };
        conn.pragma_update(None, "synchronous", synchronous)
            .map_err(|error| fail(error.into()))?;
        Ok(mode)
    }

    fn truncate(&self, conn: &Connection) -> Result<JournalMode, OpenError> {
        match set_journal(conn, "TRUNCATE") {
            Ok(mode) if mode == "truncate" => Ok(JournalMode::Truncate),
            Ok(_) => Err(self.unsafe_wal()),
            Err(Fault::Sql(error))
                if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) =>
            {
                Err(self.unsafe_wal())
            }
            Err(fault) => Err(OpenError::of(&self.path, fault)),
        }
    }

    fn unsafe_wal(&self) -> OpenError {
        OpenError::UnsafeWal {
            path: self.path.clone(),
            linked: rusqlite::version(),
        }
    }

    /// Creates the store, complete and durable, unless something exists at the path.
    pub(super) fn create(&self) -> Result<(), OpenError> {
        let path = &self.path;
        refuse_leftovers(path)?;
        let draft = Draft::beside(path)?;
        let new = Self {
            path: draft.path.clone(),
            ..self.clone()
        };
        let mut conn = new.connect()?;
        schema::create(&mut conn).map_err(|fault| OpenError::of(path, fault))?;
        drop(conn);
        draft.link(path)?;
        // If the fsync fails, the file stays: another process may have opened the file and committed.
        sync_folder(path).map_err(|error| OpenError::io(path, error))
    }
}

/// Refuses a file that another process put into WAL mode, if the linked SQLite is not safe in that mode.
pub(super) fn check_journal(conn: &Connection) -> Result<(), Fault> {
    if rusqlite::version_number() < SAFE_WAL && journal(conn)? == "wal" {
        return Err(Fault::Refused(
            "another process put the file into WAL mode, which the linked SQLite is not safe in",
        ));
    }
    Ok(())
}

fn journal(conn: &Connection) -> Result<String, Fault> {
    Ok(conn.pragma_query_value(None, "journal_mode", |row| row.get(0))?)
}

fn set_journal(conn: &Connection, mode: &str) -> Result<String, Fault> {
    Ok(conn.pragma_update_and_check(None, "journal_mode", mode, |row| row.get(0))?)
}

/// Refuses a journal at a path without a file: SQLite would apply the journal to the new file. An empty
/// journal is harmless, since the truncating mode leaves one.
pub(super) fn refuse_leftovers(path: &Path) -> Result<(), OpenError> {
    for end in ["-wal", "-journal"] {
        let journal = with_end(path, end);
        if fs::symlink_metadata(&journal).is_ok_and(|meta| meta.len() > 0) {
            return Err(OpenError::Leftover { path: journal });
        }
    }
    Ok(())
}

/// The part of a folder's name that marks a draft. No one would give a backup such a name.
const DRAFT: &str = ".keyward-draft-";

/// The files that the folder of a draft may contain.
const PARTS: [&str; 4] = ["store", "store-wal", "store-shm", "store-journal"];

/// A file that is not published yet, in a separate folder next to its final path. Dropping the draft
/// removes the folder. If the process is killed, the next process that opens a store next to the draft
/// removes the draft.
pub(super) struct Draft {
    pub(super) path: PathBuf,
    folder: PathBuf,
    /// The lock that marks the draft as in use. The folder is locked, not the file: releasing a lock on
    /// the file would drop the locks that SQLite holds after the file is published.
    _alive: Option<File>,
}

impl Draft {
    /// Creates an empty file that only its owner can read.
    pub(super) fn beside(path: &Path) -> Result<Self, OpenError> {
        clear_drafts(path);
        let fail = |error: io::Error| OpenError::io(path, error);
        for attempt in 0..1000 {
            let folder = with_end(path, &format!("{DRAFT}{}-{attempt}", std::process::id()));
            match create_folder(&folder) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(fail(error)),
            }
            // If folders cannot be locked here, no other process can lock this folder to remove it.
            let alive = File::open(&folder).ok();
            let taken = alive.as_ref().map(File::try_lock);
            if matches!(taken, Some(Err(TryLockError::WouldBlock))) || !folder.exists() {
                // Another process removed the folder before it was locked.
                continue;
            }
            let draft = Self {
                path: folder.join(PARTS[0]),
                folder,
                _alive: alive,
            };
            let mut options = OpenOptions::new();
            options.write(true).create_new(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            options.open(&draft.path).map_err(fail)?;
            return Ok(draft);
        }
        Err(fail(io::ErrorKind::AlreadyExists.into()))
    }

    /// Publishes a file that no process has open, durably, unless something exists at the path.
    pub(super) fn publish(self, path: &Path) -> Result<(), OpenError> {
        self.link(path)?;
        sync_folder(path).map_err(|error| {
            // A power cut could remove the file: it must not be reported as published.
            drop(fs::remove_file(path));
            OpenError::io(path, error)
        })
    }

    fn link(&self, path: &Path) -> Result<(), OpenError> {
        let fail = |error: io::Error| OpenError::io(path, error);
        let written = File::open(&self.path).and_then(|file| file.sync_all());
        written.map_err(fail)?;
        match fs::hard_link(&self.path, path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(OpenError::Exists {
                path: path.to_owned(),
            }),
            Err(error) => Err(fail(error)),
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        remove_draft(&self.folder);
    }
}

/// Removes the drafts that killed processes left next to `path`. A draft that cannot be removed is left
/// for a later attempt.
pub(super) fn clear_drafts(path: &Path) {
    let Ok(entries) = fs::read_dir(folder_of(path)) else {
        return;
    };
    for entry in entries.flatten() {
        let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !folder || !is_draft(&entry.file_name().to_string_lossy()) {
            continue;
        }
        let path = entry.path();
        // A living process holds the lock.
        let Ok(lock) = File::open(&path) else {
            continue;
        };
        if lock.try_lock().is_ok() {
            remove_draft(&path);
            tracing::info!(path = %path.display(), "removed a draft whose process is gone");
        }
    }
}

fn is_draft(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    name.rsplit_once(DRAFT)
        .and_then(|(_, end)| end.split_once('-'))
        .is_some_and(|(process, attempt)| number(process) && number(attempt))
}

/// Removes the files that a draft may contain, and nothing else.
fn remove_draft(folder: &Path) {
    for part in PARTS {
        drop(fs::remove_file(folder.join(part)));
    }
    drop(fs::remove_dir(folder));
}

fn create_folder(path: &Path) -> io::Result<()> {
    #[cfg_attr(not(unix), allow(unused_mut, reason = "there are no modes to set"))]
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(unix)]
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

#[cfg(not(unix))]
fn sync_folder(_path: &Path) -> io::Result<()> {
    Ok(())
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    PathBuf::from(name)
}
