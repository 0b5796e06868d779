//! The node registry: a small SQLite file next to the store. A report shares no lock with commits, and needs no new
//! space. So a long transaction on the store, or a full disk, does not stop reports. A node that cannot report refuses
//! every key after its report allowance and its staleness bound.
//!
//! Invariants:
//!
//! - The file and its journal own their space before the first report. The file has free pages, and the journal has
//!   its full length and is never cut. A write-ahead log would not do: SQLite allocates its index again for the first
//!   connection, and another program may take that space.
//! - A report belongs to exactly one history, which is the epoch of the store. The epoch is read while the
//!   registry is locked, so a store that replaces the file cannot get a report of the earlier store.
//! - If the store has commits, but the registry lacks the store's history, the registry was lost or not moved
//!   along. It then has one entry for all nodes that may be missing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, Row, params};

use super::fault::{OpenError, SqliteFault};
use super::file::{OpenFiles, StoreFile, check_journal, set_journal};
use super::rows::{each, one};
use super::session::{Pool, Tx};
use super::unlocked::ReadConnection;
use super::{head, nodes};
use crate::core::view::Revision;
use crate::store::sql::{Cells, ENTRY_COLUMNS, IntegrityPass, NODE_COLUMNS, NodeRow, history_seal};
use crate::store::{Epoch, IntegrityReport, NodeId, NodeReport};

const TABLES: &str = "
CREATE TABLE histories (history BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE reports (
  node         BLOB    NOT NULL,          -- the columns of the table nodes of the store
  beat         INTEGER NOT NULL,
  lease        INTEGER NOT NULL,
  label        TEXT,
  epoch        BLOB,
  revision     INTEGER,
  tag          BLOB,
  clock        INTEGER NOT NULL,
  seal         INTEGER NOT NULL,
  history      BLOB    NOT NULL,          -- the epoch of the store that the node reported to
  history_seal INTEGER NOT NULL,          -- CRC-32 of the history and the seal
  process      TEXT,                      -- a seal of its own and JSON; null in a report of an earlier build
  PRIMARY KEY (history, node)
) STRICT, WITHOUT ROWID;
";

/// Takes the space of free pages, which later reports use: the rows of hundreds of nodes. The second transaction frees
/// the pages that the first one wrote. In one transaction, SQLite would not write them.
const TAKE_PAGES: &str = "
CREATE TABLE IF NOT EXISTS room (filler BLOB) STRICT;
INSERT INTO room VALUES (zeroblob(131072));
DELETE FROM room;
";

/// 16 pages, half of those that [`TAKE_PAGES`] takes: a file with fewer free pages takes them again.
const FEW_PAGES: i64 = 16;

/// 256 KiB: the length of the journal. A report changes at most ten pages of 4 KiB.
const JOURNAL: u64 = 256 << 10;

pub(super) struct Registry {
    pool: Arc<Pool>,
    file: StoreFile,
    open: Mutex<Option<(ReadConnection, OpenFiles)>>,
}

/// The history of the store, and the entries that the store itself has.
struct History {
    epoch: Epoch,
    has_commits: bool,
    /// A damaged entry is an error only for a caller that needs it. A report needs none.
    own: Result<Vec<NodeReport>, SqliteFault>,
}

impl History {
    fn read(conn: &Connection) -> Result<Self, SqliteFault> {
        let head = head::read(conn)?;
        let own = match nodes::all(conn) {
            Err(fault) if !fault.is_corrupt() => return Err(fault),
            own => own,
        };
        Ok(Self {
            epoch: head.store.epoch,
            has_commits: head.last.revision > Revision::ZERO,
            own,
        })
    }

    const fn name(&self) -> [u8; 16] {
        self.epoch.0.to_be_bytes()
    }

    fn is_known(&self, conn: &Connection) -> Result<bool, SqliteFault> {
        let sql = "SELECT 1 FROM histories WHERE history = ?1";
        Ok(conn.prepare_cached(sql)?.exists([self.name()])?)
    }

    /// Adds the history to the registry, with an entry for the nodes that may be missing.
    fn add(&self, conn: &Connection) -> Result<(), SqliteFault> {
        let sql = "INSERT INTO histories (history) VALUES (?1)";
        conn.execute(sql, [self.name()])?;
        match self.missing()? {
            Some(row) => put(conn, self, &row),
            None => Ok(()),
        }
    }

    /// Returns an entry for the nodes that a registry without this history lacks, unless the store has one.
    fn missing(&self) -> Result<Option<NodeRow>, SqliteFault> {
        let has_none = self.own.as_ref().is_ok_and(Vec::is_empty);
        match self.has_commits && has_none {
            true => Ok(Some(NodeRow::former(self.epoch.0, Duration::ZERO)?)),
            false => Ok(None),
        }
    }
}

impl Registry {
    pub(super) fn new(pool: Arc<Pool>) -> Self {
        let file = pool.file.registry();
        let open = Mutex::new(None);
        Self { pool, file, open }
    }

    /// Adds the present history to the registry before the history has a commit.
    pub(super) fn begin(&self) -> Result<(), SqliteFault> {
        match self.read(|conn, history| history.is_known(conn))? {
            (_, Some(true)) => Ok(()),
            _ => self.write(|_, _| Ok(())),
        }
    }

    pub(super) fn report(&self, report: &NodeReport) -> Result<bool, SqliteFault> {
        let row = NodeRow::of(report)?;
        self.write(|conn, history| {
            if beat(conn, history, report.node)?.is_some_and(|before| before >= row.beat) {
                return Ok(false);
            }
            put(conn, history, &row)?;
            Ok(true)
        })
    }

    pub(super) fn forget(&self, node: NodeId, upto: u64) -> Result<(), SqliteFault> {
        let upto = i64::try_from(upto).unwrap_or(i64::MAX);
        self.write(|conn, history| {
            if beat(conn, history, node)?.is_none_or(|before| before <= upto) {
                let sql = "DELETE FROM reports WHERE history = ?1 AND node = ?2";
                let node = node.to_u128().to_be_bytes();
                conn.prepare_cached(sql)?.execute([history.name(), node])?;
            }
            Ok(())
        })
    }

    /// Reads all reports. Fails if a report is damaged: if the report were skipped, its node would be treated as
    /// gone.
    pub(super) fn all(&self) -> Result<Vec<NodeReport>, SqliteFault> {
        let (history, found) = self.read(|conn, history| {
            let mut reports = Vec::new();
            let known = history.is_known(conn)?;
            each_report(conn, |row| {
                let (of, read) = read_report(row)?;
                if of == history.name() {
                    reports.push(read.report()?);
                }
                Ok(())
            })?;
            Ok((known, reports))
        })?;
        let (known, mut reports) = found.unwrap_or_default();
        if !known && let Some(row) = history.missing()? {
            reports.push(row.report()?);
        }
        reports.extend(history.own?);
        Ok(reports)
    }

    /// Adds the faults of the registry to an integrity report of the store.
    pub(super) fn check(&self, report: &mut IntegrityReport) -> Result<(), SqliteFault> {
        let mut own = IntegrityReport::default();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scan = || -> Result<(), SqliteFault> {
            let Some(ready) = self.connection(open.take())? else {
                return Ok(());
            };
            each_report(&ready.0.conn, |row| {
                own.look(IntegrityPass::Nodes, row);
                Ok(())
            })?;
            self.keep(&mut open, ready)
        };
        match self.named(scan()) {
            Err(fault) if fault.is_damage() => own.add(format!("the node registry: {fault}")),
            scanned => scanned?,
        }
        report.registry = own.faults;
        Ok(())
    }

    /// Runs `read` in one snapshot of the registry, with the history of the store. `None` if there is no registry.
    fn read<T>(
        &self,
        read: impl Fn(&Connection, &History) -> Result<T, SqliteFault>,
    ) -> Result<(History, Option<T>), SqliteFault> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let history = self.pool.read(History::read)?;
        let mut attempt = || -> Result<Option<T>, SqliteFault> {
            let Some(ready) = self.connection(open.take())? else {
                return Ok(None);
            };
            let tx = Tx::deferred(&ready.0.conn)?;
            let found = read(&ready.0.conn, &history)?;
            drop(tx);
            self.keep(&mut open, ready)?;
            Ok(Some(found))
        };
        let found = self.named(attempt())?;
        Ok((history, found))
    }

    /// Keeps a connection for later calls, if it locks the file. Fails if the registry was changed during a read
    /// without locks.
    fn keep(
        &self,
        open: &mut Option<(ReadConnection, OpenFiles)>,
        ready: (ReadConnection, OpenFiles),
    ) -> Result<(), SqliteFault> {
        ready.0.check_unchanged(&self.file)?;
        *open = Some(ready).filter(|(opened, _)| opened.is_shared());
        Ok(())
    }

    /// Adds the way out to the error of a registry that SQLite cannot read.
    fn named<T>(&self, done: Result<T, SqliteFault>) -> Result<T, SqliteFault> {
        done.map_err(|fault| fault.of_registry(&self.file.path))
    }

    /// Runs `write` in a durable transaction. Needs no space of the disk, once the registry has its own. To get that
    /// on a full disk, uses the reserve of the store.
    fn write<T>(
        &self,
        write: impl Fn(&Connection, &History) -> Result<T, SqliteFault>,
    ) -> Result<T, SqliteFault> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let store = &self.pool.file;
        store.with_reserve(|| self.try_write(&mut open, &write))
    }

    fn try_write<T>(
        &self,
        open: &mut Option<(ReadConnection, OpenFiles)>,
        write: impl Fn(&Connection, &History) -> Result<T, SqliteFault>,
    ) -> Result<T, SqliteFault> {
        let kept = open.take();
        let is_kept = kept.is_some();
        let ready = match self.connection(kept)? {
            Some(ready) => ready,
            None => {
                self.create()?;
                let missing = || SqliteFault::Refused("the node registry was removed");
                self.connection(None)?.ok_or_else(missing)?
            }
        };
        let conn = &ready.0.conn;
        let tx = self.named(Tx::immediate(conn))?;
        // Fails without space. The report may still fit into the journal that is there.
        drop(self.file.keep_journal(JOURNAL));
        // Happens under the lock of the registry. A report that read an earlier epoch is before this one.
        let history = self.pool.read(History::read)?;
        let step = || -> Result<T, SqliteFault> {
            if !has_processes(conn)? {
                conn.execute_batch("ALTER TABLE reports ADD COLUMN process TEXT")?;
            }
            if !history.is_known(conn)? {
                history.add(conn)?;
            }
            let written = write(conn, &history)?;
            tx.commit()?;
            Ok(written)
        };
        let written = self.named(step())?;
        if !is_kept {
            // Fails on a full disk, which leaves the pages that the file has.
            drop(take_pages(conn));
        }
        *open = Some(ready).filter(|(opened, _)| opened.is_shared());
        Ok(written)
    }

    /// Creates the registry with the present history. Does nothing if another process creates the registry first.
    fn create(&self) -> Result<(), SqliteFault> {
        let history = self.pool.read(History::read)?;
        let created = self.file.create_shared(|conn| {
            // The whole file is synced before it gets its name.
            set_journal(conn, "OFF")?;
            conn.pragma_update(None, "synchronous", "OFF")?;
            conn.execute_batch(TABLES)?;
            conn.execute_batch(TAKE_PAGES)?;
            history.add(conn)
        });
        match created {
            Err(OpenError::Exists { .. }) => Ok(()),
            created => Ok(created?),
        }
    }

    /// Returns the connection to the registry that is next to the store now. `None` if there is none.
    fn connection(
        &self,
        open: Option<(ReadConnection, OpenFiles)>,
    ) -> Result<Option<(ReadConnection, OpenFiles)>, SqliteFault> {
        let Some(identity) = self.file.identity()? else {
            return Ok(None);
        };
        let files = self.file.open_files(identity);
        if let Some(ready) = open.filter(|(opened, own)| own.are_current(files, &opened.conn)) {
            return Ok(Some(ready));
        }
        let connect = || -> Result<ReadConnection, SqliteFault> {
            let opened = ReadConnection::connect(&self.file)?;
            if opened.is_locked() {
                keep_journal(&opened.conn)?;
            }
            Ok(opened)
        };
        let opened = self.named(connect())?;
        Ok(Some((opened, self.file.open_files(identity))))
    }
}

/// Lets each transaction leave the journal at its length, and wait for the disk.
fn keep_journal(conn: &Connection) -> Result<(), SqliteFault> {
    match set_journal(conn, "PERSIST") {
        Err(fault) if fault.is_corrupt() => return Err(fault),
        // An earlier build gave the file a write-ahead log, which stays while another process has the file open.
        _ => check_journal(conn)?,
    }
    Ok(conn.pragma_update(None, "synchronous", "FULL")?)
}

fn take_pages(conn: &Connection) -> Result<(), SqliteFault> {
    let free: i64 = conn.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
    match free < FEW_PAGES {
        true => Ok(conn.execute_batch(TAKE_PAGES)?),
        false => Ok(()),
    }
}

/// Returns the longest [`NodeRow::former_lease`] in the registry of a store. Zero if it cannot be read.
pub(super) fn longest_lease(store: &StoreFile) -> Duration {
    let file = store.registry();
    let read = || -> Result<Duration, SqliteFault> {
        let mut longest = Duration::ZERO;
        if file.identity()?.is_none() {
            return Ok(longest);
        }
        let opened = ReadConnection::connect(&file)?;
        each_report(&opened.conn, |row| {
            longest = longest.max(NodeRow::former_lease(row)?);
            Ok(())
        })?;
        opened.check_unchanged(&file)?;
        Ok(longest)
    };
    read().unwrap_or_default()
}

/// Returns whether the table has the column `process`. A build before that column may have created the file. The first
/// report of this build adds the column, which such a build ignores.
fn has_processes(conn: &Connection) -> Result<bool, SqliteFault> {
    let sql = "SELECT 1 FROM pragma_table_info('reports') WHERE name = 'process'";
    Ok(conn.prepare_cached(sql)?.exists([])?)
}

fn each_report(
    conn: &Connection,
    mut look: impl FnMut(&Row<'_>) -> Result<(), SqliteFault>,
) -> Result<(), SqliteFault> {
    let columns = match has_processes(conn)? {
        true => NODE_COLUMNS,
        false => ENTRY_COLUMNS,
    };
    let sql = format!("SELECT {columns}, history, history_seal FROM reports");
    each(conn, &sql, [], |row| {
        look(row)?;
        Ok(true)
    })
}

fn read_report(row: &Row<'_>) -> Result<([u8; 16], NodeRow), SqliteFault> {
    let what = "a node's row";
    let read = NodeRow::read(row)?;
    let history = row.exactly(10, what)?;
    match row.number(11, what)? == history_seal(&history, &read) {
        true => Ok((history, read)),
        false => Err(SqliteFault::Corrupt(
            "the history of a node's row is damaged".to_owned(),
        )),
    }
}

/// Returns the beat (the report number) of the node's stored report. `None` if the row is missing or damaged.
/// So a new report always replaces a damaged row.
fn beat(conn: &Connection, history: &History, node: NodeId) -> Result<Option<i64>, SqliteFault> {
    let sql = format!(
        "SELECT {NODE_COLUMNS}, history, history_seal FROM reports WHERE history = ?1 AND node = ?2"
    );
    let node = node.to_u128().to_be_bytes();
    let beat = one(conn, &sql, [history.name(), node], |row| {
        Ok(read_report(row).ok().map(|(_, read)| read.beat))
    })?;
    Ok(beat.flatten())
}

fn put(conn: &Connection, history: &History, row: &NodeRow) -> Result<(), SqliteFault> {
    let (epoch, revision, tag) = row.position();
    let sql = format!(
        "INSERT OR REPLACE INTO reports ({NODE_COLUMNS}, history, history_seal) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)"
    );
    conn.prepare_cached(&sql)?.execute(params![
        row.node,
        row.beat,
        row.lease,
        row.label,
        epoch,
        revision,
        tag,
        row.clock,
        row.seal(),
        row.process,
        history.name(),
        history_seal(&history.name(), row),
    ])?;
    Ok(())
}
