//! The file itself: who may read it, how it comes into being, how a connection is set up.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::fault::{Fault, OpenError};
use super::schema;
use crate::store::rows::is_copy;

/// The first SQLite without the fault by which a WAL that several connections share could corrupt
/// the file (3.7.0 to 3.51.2).
const SAFE_WAL: i32 = 3_051_003;

/// How much of a write-ahead log stays on disk between bursts.
const WAL_KEPT: i64 = 64 << 20;

/// How commits reach the disk. Both survive a power cut, since both wait for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum JournalMode {
    /// A write-ahead log with `synchronous=FULL`: readers and the writer do not wait for each other.
    Wal,
    /// A rollback journal with `synchronous=EXTRA`, where the linked SQLite is too old for the other.
    Truncate,
}

impl JournalMode {
    /// Its name in SQLite.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Wal => "wal",
            Self::Truncate => "truncate",
        }
    }
}

/// Where a store lies and how to connect to it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) group_access: bool,
    /// Whether a restored file may be used before it was recovered.
    pub(super) unrecovered: bool,
    /// Whether a file may be connected to into which another store is being copied.
    pub(super) copy_target: bool,
    pub(super) busy: Duration,
}

/// Which file a path leads to, so that a file put in its place is noticed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Identity(u64, u64);

impl Place {
    /// Which file is there, if it is one that may be opened.
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
        if mode & 0o077 != 0 && !self.group_access {
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

    /// A connection to a file that is a store, of a version that this build knows. Nothing of it is
    /// changed.
    ///
    /// The file is looked at through SQLite alone: closing a descriptor of one's own on it would drop
    /// the locks that other connections of this process hold.
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
        match schema::version(&conn).map_err(fail)? {
            found if found <= schema::VERSION || self.copy_target && is_copy(found) => Ok(conn),
            found => Err(fail(Fault::version(found))),
        }
    }

    /// A connection to the file that stands there now, to read keys from and write them to. It may be
    /// another one than was opened at first: restored, and not recovered yet.
    pub(super) fn serve(&self) -> Result<Connection, OpenError> {
        let mut conn = self.open()?;
        schema::migrate(&mut conn).map_err(|fault| OpenError::of(&self.path, fault))?;
        self.check_recovered(&conn)?;
        Ok(conn)
    }

    pub(super) fn check_recovered(&self, conn: &Connection) -> Result<(), OpenError> {
        let store = schema::store(conn).map_err(|fault| OpenError::of(&self.path, fault))?;
        if store.unrecovered && !self.unrecovered {
            return Err(OpenError::Unrecovered {
                path: self.path.clone(),
            });
        }
        Ok(())
    }

    /// A connection with everything set that does not change the file, whatever it is.
    fn connect(&self) -> Result<Connection, OpenError> {
        let fail = |fault: Fault| OpenError::of(&self.path, fault);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(&self.path, flags)
            .map_err(|error| fail(Fault::from(error)))?;
        let set_up = || -> Result<(), Fault> {
            conn.busy_timeout(self.busy)?;
            conn.set_prepared_statement_cache_capacity(64);
            // Or SQLite parses some statements anew for every value that they are given.
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

    /// Makes commits of this connection as durable as promised, in the best journal mode that the
    /// linked SQLite is safe in.
    pub(super) fn make_durable(&self, conn: &Connection) -> Result<JournalMode, OpenError> {
        let fail = |fault: Fault| OpenError::of(&self.path, fault);
        let now = journal(conn).map_err(fail)?;
        let wal_is_safe = rusqlite::version_number() >= SAFE_WAL;
        let mode = match (wal_is_safe, now.as_str()) {
            (true, "wal") => JournalMode::Wal,
            // Another process that has the file open keeps the mode it has, which is safe as well.
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

    /// Creates the store, whole and durable, unless something stands there already.
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
        // Should this fail, the file stays: another process may have opened it by now, and committed.
        sync_folder(path).map_err(|error| OpenError::io(path, error))
    }
}

/// Refuses a file that was put into WAL mode by another process while the linked SQLite is not safe
/// in it.
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

/// Refuses a journal beside a file that is still to be made: SQLite would apply it. An empty one is
/// what the truncating mode leaves behind, and says nothing.
pub(super) fn refuse_leftovers(path: &Path) -> Result<(), OpenError> {
    for end in ["-wal", "-journal"] {
        let journal = with_end(path, end);
        if fs::symlink_metadata(&journal).is_ok_and(|meta| meta.len() > 0) {
            return Err(OpenError::Leftover { path: journal });
        }
    }
    Ok(())
}

/// What the name of a draft has that no other name has: nobody would call a backup so.
const DRAFT: &str = ".keyward-draft-";

/// What may stand in the folder of a draft.
const PARTS: [&str; 4] = ["store", "store-wal", "store-shm", "store-journal"];

/// A file in the making, in a folder of its own beside the place where it is to stand. Gone again
/// when dropped; if the process is killed before that, the next to open a store beside it clears it
/// away.
pub(super) struct Draft {
    pub(super) path: PathBuf,
    folder: PathBuf,
    /// Says that the draft is somebody's. It lies on the folder: on the file, letting it go would drop
    /// the locks that SQLite holds once the file is published.
    _alive: Option<File>,
}

impl Draft {
    /// An empty file that only its owner can read.
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
            // Where folders cannot be locked, nobody can lock them to clear them away either.
            let alive = File::open(&folder).ok();
            let taken = alive.as_ref().map(File::try_lock);
            if matches!(taken, Some(Err(TryLockError::WouldBlock))) || !folder.exists() {
                // Cleared away before it was locked.
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

    /// Puts a file that nobody opens yet where it is to stand, durably, unless something stands there.
    pub(super) fn publish(self, path: &Path) -> Result<(), OpenError> {
        self.link(path)?;
        sync_folder(path).map_err(|error| {
            // Nobody is told of a file that may not be there after a power cut.
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

/// Removes the drafts that processes left beside `path` when they were killed. Whatever stands in the
/// way is left for the next to try.
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
        // Locked for as long as its process lives.
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

/// Removes what a draft may hold and nothing else.
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
