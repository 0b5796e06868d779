//! Detects commits of other processes: a thread polls the counter that SQLite moves with every commit.
//! The result is only a hint; followers poll as well.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use event_listener::Event;
use rusqlite::Connection;

use super::fault::Fault;
use super::file::Identity;
use super::schema;
use super::session::Pool;

/// Starts the thread. The thread ends when the other end of `alive` is dropped.
pub(super) fn start(
    pool: &Arc<Pool>,
    moved: Weak<Event>,
    every: Duration,
    alive: Receiver<()>,
) -> std::io::Result<()> {
    let mut watch = Watch {
        pool: pool.clone(),
        conn: None,
        seen: None,
    };
    let run = move || {
        while alive.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
            // A failure wakes the waiters too: their next read reports it.
            if watch.changed().unwrap_or(true) {
                let Some(moved) = moved.upgrade() else { return };
                moved.notify(usize::MAX);
            }
        }
    };
    let name = "keyward-sqlite-watch".to_owned();
    thread::Builder::new().name(name).spawn(run).map(drop)
}

struct Watch {
    pool: Arc<Pool>,
    conn: Option<(Connection, Identity)>,
    seen: Option<i64>,
}

impl Watch {
    fn changed(&mut self) -> Result<bool, Fault> {
        let file = self.pool.current()?;
        let (conn, file) = match self.conn.take().filter(|(_, own)| *own == file) {
            Some(ready) => ready,
            None => {
                self.seen = None;
                (self.pool.place.open()?, file)
            }
        };
        let version = schema::data_version(&conn)?;
        self.conn = Some((conn, file));
        let changed = self.seen != Some(version);
        self.seen = Some(version);
        Ok(changed)
    }
}
