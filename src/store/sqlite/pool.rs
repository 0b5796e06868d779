//! Connections for reading, and the check that the file is still the one that was opened.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;

use super::fault::{Fault, OpenError};
use super::file::{Identity, Place};
use super::tx::snapshot;

/// How many idle connections are kept. A judgement: more readers than this at once are rare.
const IDLE: usize = 8;

#[derive(Debug)]
pub(super) struct Pool {
    pub(super) place: Place,
    idle: Mutex<Vec<Reader>>,
}

#[derive(Debug)]
struct Reader {
    conn: Connection,
    file: Identity,
}

impl Pool {
    pub(super) const fn new(place: Place) -> Self {
        Self {
            place,
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Reads within one snapshot of the file that stands at the path now: one that was put in its
    /// place is read instead of the one that was there before.
    pub(super) fn read<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let file = self.current()?;
        let idle = self.idle().pop().filter(|reader| reader.file == file);
        let reader = match idle {
            Some(reader) => reader,
            None => self.open(file)?,
        };
        // What fails leaves a connection behind of which nothing is assumed.
        let read = snapshot(&reader.conn, read)?;
        let mut idle = self.idle();
        if idle.len() < IDLE {
            idle.push(reader);
        }
        Ok(read)
    }

    /// The file at the path.
    pub(super) fn current(&self) -> Result<Identity, Fault> {
        let missing = || OpenError::NotFound {
            path: self.place.path.clone(),
        };
        Ok(self.place.look()?.ok_or_else(missing)?)
    }

    fn open(&self, file: Identity) -> Result<Reader, Fault> {
        let conn = self.place.serve()?;
        conn.pragma_update(None, "query_only", true)?;
        Ok(Reader { conn, file })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Reader>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
