//! Connections that only read, also from a full disk or a read-only folder.
//!
//! A file in WAL mode needs a log and its index (`-shm`). The first connection creates the index, for which a full
//! disk has no space. SQLite then reads the file alone, with an index in memory. In a read-only folder it reads the
//! file without a log, and without locks.
//!
//! Invariant: a read without locks succeeds only if no process changed the file during the read. Another process may
//! have the file in a folder that it can write: a read-only mount of that folder, or a folder of another user. On
//! such a connection SQLite never sees later commits, so each read needs a new one.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use rusqlite::Connection;

use super::access::with_end;
use super::fault::OpenError;
use super::file::{FileIdentity, StoreFile};
use super::schema;

/// A connection that only reads.
#[derive(Debug)]
pub(super) struct ReadConnection {
    pub(super) conn: Connection,
    lock: ReadLock,
}

#[derive(Debug)]
enum ReadLock {
    /// Other connections may read and write the file.
    Shared,
    /// No other connection can use the file.
    Alone,
    /// SQLite does not lock the file. The file had this state before the connection was opened.
    None(FileState),
}

impl ReadConnection {
    /// Connects to any SQLite file. A file that SQLite cannot lock is refused, unless the options allow a file that
    /// does not serve.
    pub(super) fn connect(file: &StoreFile) -> Result<Self, OpenError> {
        match file.connect_with_log()? {
            Some(conn) => match schema::application(&conn) {
                Err(fault) if fault.is_full() => {
                    drop(conn);
                    let (conn, lock) = (file.connect_alone()?, ReadLock::Alone);
                    Ok(Self { conn, lock })
                }
                _ => Ok(Self {
                    conn,
                    lock: ReadLock::Shared,
                }),
            },
            None if file.unrecovered => {
                let lock = ReadLock::None(FileState::of(file)?);
                let conn = file.connect_without_log()?;
                Ok(Self { conn, lock })
            }
            None => Err(file.needs_writable_folder()),
        }
    }

    /// Returns whether SQLite locks the file.
    pub(super) const fn is_locked(&self) -> bool {
        !matches!(self.lock, ReadLock::None(_))
    }

    /// Returns whether the connection may be kept for later reads.
    pub(super) const fn is_shared(&self) -> bool {
        matches!(self.lock, ReadLock::Shared)
    }

    /// Fails if a process may have changed the file since the connection was opened. The caller must then drop
    /// everything that it read.
    pub(super) fn check_unchanged(&self, file: &StoreFile) -> Result<(), OpenError> {
        match &self.lock {
            ReadLock::None(before) if FileState::of(file)? != *before => Err(OpenError::io(
                &file.path,
                io::Error::other("another process changed the file during the read: repeat it"),
            )),
            _ => Ok(()),
        }
    }
}

impl StoreFile {
    /// Like [`open`](Self::open), for a connection that only reads.
    pub(super) fn open_to_read(&self) -> Result<ReadConnection, OpenError> {
        self.check_length()?;
        let opened = ReadConnection::connect(self)?;
        self.check_store(&opened.conn)?;
        Ok(opened)
    }

    /// Returns the error for a file in a read-only folder.
    pub(super) fn needs_writable_folder(&self) -> OpenError {
        let why = "a store that serves needs a folder that can be written: copy the file to another folder, or only \
                   read it with --allow-unrecovered";
        match FileState::of(self) {
            Ok(_) => {
                let source = io::Error::new(io::ErrorKind::ReadOnlyFilesystem, why);
                OpenError::io(&self.path, source)
            }
            Err(error) => error,
        }
    }
}

/// The state of a file without a log. A commit of any process changes it, or creates a log.
#[derive(Debug, Eq, PartialEq)]
struct FileState {
    identity: FileIdentity,
    len: u64,
    modified: Option<SystemTime>,
}

impl FileState {
    /// Fails if the file has a log or a journal, which may hold commits.
    fn of(file: &StoreFile) -> Result<Self, OpenError> {
        let path = &file.path;
        let len = |end| fs::symlink_metadata(with_end(path, end)).map_or(0, |meta| meta.len());
        let shared = fs::symlink_metadata(with_end(path, "-shm")).is_ok();
        if shared || len("-wal") > 0 || len("-journal") > 0 {
            let why = "its log cannot be read in a read-only folder: copy the file and its -wal or -journal file to \
                       another folder, and name the copy";
            let read_only = io::Error::new(io::ErrorKind::ReadOnlyFilesystem, why);
            return Err(OpenError::io(path, read_only));
        }
        let gone = || OpenError::Gone {
            path: PathBuf::from(path),
        };
        let identity = file.identity()?.ok_or_else(gone)?;
        let meta = fs::symlink_metadata(path).map_err(|error| OpenError::io(path, error))?;
        Ok(Self {
            identity,
            len: meta.len(),
            modified: meta.modified().ok(),
        })
    }
}
