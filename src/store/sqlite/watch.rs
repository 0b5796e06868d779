//! Detects commits of other processes: a thread polls SQLite's `data_version`, which changes with each of
//! their commits. The result is only a hint, because followers poll the store too.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use event_listener::Event;
use rusqlite::Connection;

use super::fault::SqliteFault;
use super::file::OpenFiles;
use super::schema;
use super::session::Pool;

/// Starts the thread, which ends when the sender of `alive` is dropped.
pub(super) fn start(
    pool: &Arc<Pool>,
    on_commit: Weak<Event>,
    every: Duration,
    alive: Receiver<()>,
) -> std::io::Result<()> {
    let mut watcher = CommitWatcher {
        pool: pool.clone(),
        conn: None,
        seen: None,
    };
    let run = move || {
        while alive.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
            // A failed check wakes the waiters too, so that their next read returns the error.
            if watcher.changed().unwrap_or(true) {
                let Some(on_commit) = on_commit.upgrade() else {
                    return;
                };
                on_commit.notify(usize::MAX);
            }
        }
    };
    let name = "keyward-sqlite-watch".to_owned();
    thread::Builder::new().name(name).spawn(run).map(drop)
}

struct CommitWatcher {
    pool: Arc<Pool>,
    conn: Option<(Connection, OpenFiles)>,
    seen: Option<i64>,
}

impl CommitWatcher {
    fn changed(&mut self) -> Result<bool, SqliteFault> {
        let (file, main) = (&self.pool.file, self.pool.current()?);
        let files = file.open_files(main);
        let (conn, files) = match self
            .conn
            .take()
            .filter(|(conn, own)| own.are_current(files, conn))
        {
            Some(ready) => ready,
            None => {
                self.seen = None;
                let conn = file.open()?;
                (conn, file.open_files(main))
            }
        };
        let version = schema::data_version(&conn)?;
        self.conn = Some((conn, files));
        let changed = self.seen != Some(version);
        self.seen = Some(version);
        Ok(changed)
    }
}
