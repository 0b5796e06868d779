//! Our own descriptors of files that SQLite has open.
//!
//! Whoever closes any descriptor of a file drops all locks that its process holds on that file, those
//! of SQLite included: other processes then take the log for abandoned. So what was opened here is
//! closed only when no connection of this process is left.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;

use super::file::Identity;

static OPEN: LazyLock<Mutex<HashMap<Identity, Open>>> = LazyLock::new(Mutex::default);

#[derive(Debug)]
struct Open {
    holders: usize,
    /// One; more if another file was put at the path just as it was opened.
    files: Vec<File>,
}

/// Keeps the descriptors of a file open.
#[derive(Debug)]
pub(super) struct Held(Identity);

impl Held {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let mut open = open();
        let there = Identity::of(&std::fs::metadata(path)?);
        // Elsewhere locks belong to descriptors, and nothing needs to be kept.
        if cfg!(not(unix)) {
            return Ok(Self(there));
        }
        if let Some(ready) = open.get_mut(&there) {
            ready.holders += 1;
            return Ok(Self(there));
        }
        let file = File::open(path)?;
        let identity = Identity::of(&file.metadata()?);
        let new = Open {
            holders: 0,
            files: Vec::new(),
        };
        let entry = open.entry(identity).or_insert(new);
        entry.holders += 1;
        entry.files.push(file);
        Ok(Self(identity))
    }

    /// Reads from a file through the descriptor that is kept.
    pub(super) fn read<T>(
        &self,
        path: &Path,
        read: impl FnOnce(&File) -> io::Result<T>,
    ) -> io::Result<T> {
        if cfg!(not(unix)) {
            return read(&File::open(path)?);
        }
        let open = open();
        let entry = open.get(&self.0);
        let file = entry.and_then(|entry| entry.files.first());
        read(file.ok_or(io::ErrorKind::NotFound)?)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut open = open();
        if let Some(entry) = open.get_mut(&self.0) {
            entry.holders -= 1;
            // Closed under the lock: nobody connects meanwhile.
            if entry.holders == 0 {
                open.remove(&self.0);
            }
        }
    }
}

fn open() -> MutexGuard<'static, HashMap<Identity, Open>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection, and what must stay open for as long as it lasts.
#[derive(Debug)]
pub(super) struct Conn {
    // Goes first.
    conn: Connection,
    _held: Held,
}

impl Conn {
    pub(super) const fn new(conn: Connection, held: Held) -> Self {
        Self { conn, _held: held }
    }
}

impl Deref for Conn {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.conn
    }
}

impl DerefMut for Conn {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.conn
    }
}
