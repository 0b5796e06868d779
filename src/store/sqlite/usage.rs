//! The usage file: an SQLite file next to the store, with the counted uses of keys. A flush of counts shares no lock
//! and no log with commits. So a long flush delays no revocation, and a damaged usage file stops no key.
//!
//! Invariants:
//!
//! - Only [`open_boot`](UsageFile::open_boot) creates the file. Other processes never see an incomplete file.
//! - A connection to a replaced file, or to a removed log, is closed before a new connection is opened. All connections
//!   of a process to one file share one index of the log, so the old connection would break the new one.
//! - A thread that takes both locks takes the lock of the writer first.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;

use super::fault::{OpenError, SqliteFault};
use super::file::{OpenFiles, StoreFile, has_application_id};
use super::rows::{dialect, each, each_of, one};
use super::schema;
use super::session::Tx;
use super::unlocked::ReadConnection;
use super::usage_rows::{
    DAYS_OF_KEY, FORGET_KEY, LAST_USE_OF_KEY, PRUNE_DAYS, PUT_BOOT, PUT_DAY, PUT_GAP, PUT_LAST_USE,
    REMOVE_BOOT, REMOVE_GAP,
};
use crate::core::id::KeyId;
use crate::core::usage::day::Day;
use crate::store::sql::{
    BOOT, BOOTS, GAPS, LedgerPruning, PUT_USAGE_HEAD, USAGE_HEAD, boot_columns, by_last_use,
    day_columns, gap_columns, id_bytes, last_use_columns, read_boot, read_day, read_gap,
    read_last_use, read_usage_head, usage_head_columns,
};
use crate::store::usage::{
    BootClosing, BootId, BootOpening, KeyDay, LastUse, LastUseQuery, LedgerChange, UsageBatch,
    UsageError, UsageLedger, UsagePruning,
};

/// The `PRAGMA application_id` of every usage file: "kwru" in ASCII.
const APPLICATION_ID: i32 = 0x6b77_7275;

/// The `PRAGMA user_version` of the tables of this build.
const VERSION: i32 = 1;

const TABLES: &str = "
CREATE TABLE usage_days (
  key    BLOB    NOT NULL,                -- 16 bytes, big endian
  day    INTEGER NOT NULL,                -- the number of days since 1970-01-01, in UTC
  counts BLOB    NOT NULL,                -- counts by outcome and hour, in the packed form of DayCounts
  seal   INTEGER NOT NULL,                -- CRC-32 of the row, in every table
  PRIMARY KEY (key, day)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_days_by_day ON usage_days (day);

-- The first and the last use at which a key was accepted.
CREATE TABLE usage_keys (
  key       BLOB    PRIMARY KEY,
  tenant    TEXT    NOT NULL,
  first_day INTEGER NOT NULL,
  last_day  INTEGER NOT NULL,             -- the day of last_at
  last_at   INTEGER NOT NULL,             -- in microseconds, as all times
  seal      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_keys_by_last_day ON usage_keys (tenant, last_day, key);

-- The processes that count.
CREATE TABLE usage_boots (
  boot       BLOB    PRIMARY KEY,         -- 16 random bytes
  node       BLOB,
  opened_at  INTEGER NOT NULL,
  sequence   INTEGER NOT NULL,            -- the number of the last batch
  sent_until INTEGER NOT NULL,
  closed_at  INTEGER,                     -- null while the boot is open
  seal       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The periods of which uses may be missing.
CREATE TABLE usage_gaps (
  since INTEGER NOT NULL,
  until INTEGER NOT NULL,
  boot  BLOB    NOT NULL,                 -- empty if uses of any process may be missing
  seal  INTEGER NOT NULL,
  PRIMARY KEY (since, until, boot)
) STRICT, WITHOUT ROWID;

CREATE TABLE usage_head (
  one           INTEGER PRIMARY KEY CHECK (one = 1),
  history       BLOB    NOT NULL,         -- the epoch of the store whose uses are counted
  counted_since INTEGER NOT NULL,
  seal          INTEGER NOT NULL
) STRICT;
";

/// A connection, and the files that it uses. `None` if there is none.
type Kept = Option<(ReadConnection, OpenFiles)>;

/// The usage file of a store. It need not exist.
pub(super) struct UsageFile {
    file: StoreFile,
    writer: Mutex<Kept>,
    /// A connection of its own, so that reads do not wait for a flush.
    reader: Mutex<Kept>,
}

impl UsageFile {
    pub(super) fn beside(store: &StoreFile) -> Self {
        Self {
            file: store.usage(),
            writer: Mutex::new(None),
            reader: Mutex::new(None),
        }
    }

    pub(super) fn open_boot(&self, opening: &BootOpening) -> Result<(), SqliteFault> {
        let open = |conn: &Connection| match ledger(conn)?.open(opening) {
            Some(change) => put_change(conn, &change),
            None => Ok(()),
        };
        if self.write(open)?.is_some() {
            return Ok(());
        }
        self.create()?;
        let removed = || SqliteFault::Refused("the usage file was removed");
        self.write(open)?.ok_or_else(removed)
    }

    pub(super) fn add(&self, batch: &UsageBatch) -> Result<Result<(), UsageError>, SqliteFault> {
        let added = self.write(|conn| add(conn, batch))?;
        Ok(added.unwrap_or(Err(UsageError::UnknownBoot { boot: batch.boot })))
    }

    pub(super) fn close_boot(&self, closing: &BootClosing) -> Result<bool, SqliteFault> {
        let closed = self.write(|conn| match ledger(conn)?.close(closing) {
            Some(change) => put_change(conn, &change).map(|()| true),
            None => Ok(false),
        })?;
        Ok(closed.unwrap_or_default())
    }

    pub(super) fn ledger(&self) -> Result<UsageLedger, SqliteFault> {
        self.read(ledger)
    }

    pub(super) fn days(
        &self,
        keys: &BTreeSet<KeyId>,
        from: Day,
        to: Day,
    ) -> Result<Vec<KeyDay>, SqliteFault> {
        let (from, to) = (i64::from(from.number()), i64::from(to.number()));
        self.read(|conn| {
            let sql = dialect(DAYS_OF_KEY);
            let mut days = Vec::new();
            for key in keys {
                each(conn, &sql, (id_bytes(*key), from, to), |row| {
                    days.push(read_day(row)?);
                    Ok(true)
                })?;
            }
            Ok(days)
        })
    }

    pub(super) fn last_uses(
        &self,
        keys: &BTreeSet<KeyId>,
    ) -> Result<BTreeMap<KeyId, LastUse>, SqliteFault> {
        self.read(|conn| {
            let sql = dialect(LAST_USE_OF_KEY);
            let mut uses = BTreeMap::new();
            for key in keys {
                uses.extend(one(conn, &sql, [id_bytes(*key)], |row| {
                    Ok(read_last_use(row)?)
                })?);
            }
            Ok(uses)
        })
    }

    pub(super) fn by_last_use(
        &self,
        query: &LastUseQuery,
    ) -> Result<Vec<(KeyId, LastUse)>, SqliteFault> {
        self.read(|conn| {
            let mut page = Vec::new();
            each_of(conn, &by_last_use(query), |row| {
                page.push(read_last_use(row)?);
                Ok(true)
            })?;
            Ok(page)
        })
    }

    pub(super) fn prune(&self, pruning: &UsagePruning) -> Result<usize, SqliteFault> {
        let pruned = self.write(|conn| {
            let LedgerPruning { head, boots, gaps } = LedgerPruning::of(ledger(conn)?, pruning);
            for boot in boots {
                let id = id_of_boot(boot.id);
                conn.prepare_cached(&dialect(REMOVE_BOOT))?.execute([id])?;
            }
            for gap in gaps {
                let (since, until, boot, _) = gap_columns(&gap);
                conn.prepare_cached(&dialect(REMOVE_GAP))?
                    .execute((since, until, boot))?;
            }
            put_change(
                conn,
                &LedgerChange {
                    head,
                    ..LedgerChange::default()
                },
            )?;
            let before = i64::from(pruning.before.number());
            let limit = i64::try_from(pruning.limit.get()).unwrap_or(i64::MAX);
            let mut days = conn.prepare_cached(&dialect(PRUNE_DAYS))?;
            Ok(days.execute((before, limit))?)
        })?;
        Ok(pruned.unwrap_or_default())
    }

    pub(super) fn forget(&self, keys: &BTreeSet<KeyId>) -> Result<(), SqliteFault> {
        self.write(|conn| {
            for sql in FORGET_KEY {
                let mut forget = conn.prepare_cached(&dialect(sql))?;
                for key in keys {
                    forget.execute([id_bytes(*key)])?;
                }
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Moves all counts from the log into the file, and closes the connections. Does nothing if this process has
    /// written no counts. The counts are durable in the log too, so another process that reads them is no error.
    pub(super) fn close(&self) -> Result<(), SqliteFault> {
        let attempt = || -> Result<(), SqliteFault> {
            let mut writer = locked(&self.writer);
            let mut reader = locked(&self.reader);
            let now = self.files()?;
            close_unless_current(&mut writer, now);
            close_unless_current(&mut reader, now);
            *reader = None;
            match writer.take() {
                Some((opened, _)) => StoreFile::empty_log(&opened.conn).map(drop),
                None => Ok(()),
            }
        };
        attempt().map_err(|fault| self.named(fault))
    }

    /// Runs `read` in one snapshot. Returns the default value if there is no file.
    fn read<T: Default>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, SqliteFault>,
    ) -> Result<T, SqliteFault> {
        let attempt = || -> Result<T, SqliteFault> {
            let mut open = locked(&self.reader);
            let now = self.files()?;
            if !is_current(&open, now) {
                drop(open);
                let mut writer = locked(&self.writer);
                close_unless_current(&mut writer, now);
                open = locked(&self.reader);
                close_unless_current(&mut open, now);
            }
            let Some(ready) = self.connection(open.take(), |_| Ok(()))? else {
                return Ok(T::default());
            };
            let tx = Tx::deferred(&ready.0.conn)?;
            check_version(&self.file.path, &ready.0.conn)?;
            let found = read(&ready.0.conn)?;
            drop(tx);
            ready.0.check_unchanged(&self.file)?;
            *open = Some(ready).filter(|(opened, _)| opened.is_shared());
            Ok(found)
        };
        attempt().map_err(|fault| self.named(fault))
    }

    /// Runs `write` in a durable transaction. `None` if there is no file.
    fn write<T>(
        &self,
        write: impl FnOnce(&Connection) -> Result<T, SqliteFault>,
    ) -> Result<Option<T>, SqliteFault> {
        let attempt = || -> Result<Option<T>, SqliteFault> {
            let mut open = locked(&self.writer);
            let now = self.files()?;
            if !is_current(&open, now) {
                close_unless_current(&mut open, now);
                close_unless_current(&mut locked(&self.reader), now);
            }
            let durable = |opened: &ReadConnection| match opened.is_locked() {
                true => self.file.make_durable(&opened.conn).map(drop),
                false => Err(self.file.needs_writable_folder()),
            };
            let Some(ready) = self.connection(open.take(), durable)? else {
                return Ok(None);
            };
            let tx = Tx::immediate(&ready.0.conn)?;
            check_version(&self.file.path, &ready.0.conn)?;
            let written = write(&ready.0.conn)?;
            tx.commit()?;
            *open = Some(ready).filter(|(opened, _)| opened.is_shared());
            Ok(Some(written))
        };
        attempt().map_err(|fault| self.named(fault))
    }

    /// Adds the path to a fault, and the way out if the file is damaged.
    fn named(&self, fault: SqliteFault) -> SqliteFault {
        fault.of_usage(&self.file.path)
    }

    /// Creates the file. Does nothing if another process creates the file first.
    fn create(&self) -> Result<(), SqliteFault> {
        let created = self.file.create_shared(|conn| {
            // Later, another connection could prevent the change to WAL mode.
            self.file.make_durable(conn)?;
            conn.pragma_update(None, "application_id", APPLICATION_ID)?;
            conn.execute_batch(TABLES)?;
            Ok(conn.pragma_update(None, "user_version", VERSION)?)
        });
        match created {
            Err(OpenError::Exists { .. }) => Ok(()),
            created => created.map_err(|error| self.named(error.into())),
        }
    }

    /// Returns the files that are at the path now. `None` if there is no file.
    fn files(&self) -> Result<Option<OpenFiles>, SqliteFault> {
        let identity = self.file.identity()?;
        Ok(identity.map(|identity| self.file.open_files(identity)))
    }

    /// Returns the connection that was kept, or a new one after `set_up`. `None` if there is no file.
    fn connection(
        &self,
        kept: Kept,
        set_up: impl FnOnce(&ReadConnection) -> Result<(), OpenError>,
    ) -> Result<Kept, SqliteFault> {
        if kept.is_some() {
            return Ok(kept);
        }
        let Some(identity) = self.file.identity()? else {
            return Ok(None);
        };
        self.file.check_length()?;
        let opened = ReadConnection::connect(&self.file)?;
        check_file(&self.file.path, &opened.conn)?;
        set_up(&opened)?;
        Ok(Some((opened, self.file.open_files(identity))))
    }
}

fn locked(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_current(kept: &Kept, now: Option<OpenFiles>) -> bool {
    let current = |(opened, files): &(ReadConnection, OpenFiles)| {
        now.is_some_and(|now| files.are_current(now, &opened.conn))
    };
    kept.as_ref().is_some_and(current)
}

fn close_unless_current(kept: &mut Kept, now: Option<OpenFiles>) {
    if !is_current(kept, now) {
        *kept = None;
    }
}

/// Refuses a file of another program, and a file of a later build.
fn check_file(path: &Path, conn: &Connection) -> Result<(), SqliteFault> {
    let foreign = |what| OpenError::Foreign {
        path: path.to_owned(),
        what,
    };
    match schema::application(conn) {
        Ok(APPLICATION_ID) => check_version(path, conn),
        Ok(_) => Err(foreign("it is another program's SQLite file").into()),
        Err(fault) if fault.is_no_database() && !has_application_id(path, APPLICATION_ID) => {
            Err(foreign("it is no SQLite file").into())
        }
        Err(fault) => Err(fault),
    }
}

fn check_version(path: &Path, conn: &Connection) -> Result<(), SqliteFault> {
    let mut statement = conn.prepare_cached("PRAGMA user_version")?;
    let found: i32 = statement.query_row([], |row| row.get(0))?;
    match found {
        VERSION => Ok(()),
        ..=0 => Err(SqliteFault::Corrupt(
            "the version of its tables is damaged".to_owned(),
        )),
        _ => Err(SqliteFault::NoUsage {
            path: path.to_owned(),
            what: format!(
                "its tables have version {found}, and this build uses version {VERSION}: upgrade this process"
            ),
        }),
    }
}

const fn id_of_boot(boot: BootId) -> [u8; 16] {
    boot.to_u128().to_be_bytes()
}

fn ledger(conn: &Connection) -> Result<UsageLedger, SqliteFault> {
    let head = one(conn, &dialect(USAGE_HEAD), [], |row| {
        Ok(read_usage_head(row)?)
    })?;
    let mut ledger = UsageLedger {
        history: head.map(|(history, _)| history),
        counted_since: head.map(|(_, since)| since),
        ..UsageLedger::default()
    };
    each(conn, &dialect(BOOTS), [], |row| {
        ledger.boots.push(read_boot(row)?);
        Ok(true)
    })?;
    each(conn, &dialect(GAPS), [], |row| {
        ledger.gaps.push(read_gap(row)?);
        Ok(true)
    })?;
    Ok(ledger)
}

fn put_change(conn: &Connection, change: &LedgerChange) -> Result<(), SqliteFault> {
    if let Some((history, since)) = change.head {
        let columns = usage_head_columns(history, since);
        conn.prepare_cached(&dialect(PUT_USAGE_HEAD))?
            .execute(columns)?;
    }
    for boot in &change.boots {
        let columns = boot_columns(boot)?;
        conn.prepare_cached(&dialect(PUT_BOOT))?.execute(columns)?;
    }
    for gap in &change.gaps {
        let columns = gap_columns(gap);
        conn.prepare_cached(&dialect(PUT_GAP))?.execute(columns)?;
    }
    Ok(())
}

fn add(conn: &Connection, batch: &UsageBatch) -> Result<Result<(), UsageError>, SqliteFault> {
    let boot = one(conn, &dialect(BOOT), [id_of_boot(batch.boot)], |row| {
        Ok(read_boot(row)?)
    })?;
    let Some(boot) = boot else {
        return Ok(Err(UsageError::UnknownBoot { boot: batch.boot }));
    };
    let boot = match boot.admit(batch) {
        Ok(Some(boot)) => boot,
        Ok(None) => return Ok(Ok(())),
        Err(refused) => return Ok(Err(refused)),
    };
    let (day_of_key, last_use) = (dialect(DAYS_OF_KEY), dialect(LAST_USE_OF_KEY));
    let mut put_day = conn.prepare_cached(&dialect(PUT_DAY))?;
    let mut put_last_use = conn.prepare_cached(&dialect(PUT_LAST_USE))?;
    for uses in &batch.uses {
        let (key, day) = (id_bytes(uses.key), i64::from(uses.day.number()));
        if uses.counts.total() > 0 {
            let known = one(conn, &day_of_key, (key, day, day), |row| Ok(read_day(row)?))?;
            let mut counts = known.map(|known| known.counts).unwrap_or_default();
            counts.merge(&uses.counts);
            put_day.execute(day_columns(uses.key, uses.day, &counts))?;
        }
        if let Some(at) = uses.last {
            let first_day = uses.day;
            let own = LastUse { first_day, at };
            let known = one(conn, &last_use, [key], |row| Ok(read_last_use(row)?))?;
            let merged = known.map_or(own, |(_, known)| known.merged(own));
            put_last_use.execute(last_use_columns(uses.key, &uses.tenant, merged))?;
        }
    }
    put_change(
        conn,
        &LedgerChange {
            boots: vec![boot],
            ..LedgerChange::default()
        },
    )?;
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::time::Duration;

    use rusqlite::{StatementStatus, params_from_iter};

    use super::*;
    use crate::core::tenant::TenantId;
    use crate::core::usage::day::DayCounts;
    use crate::core::usage::outcome::UseOutcome;
    use crate::store::Epoch;
    use crate::store::usage::KeyUses;

    /// 3,000 keys of each of two tenants, so that a read of a whole tenant takes many more steps than one of a page.
    const KEYS: u32 = 3_000;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).unwrap()
    }

    fn key(number: u32) -> KeyId {
        KeyId::from_u128(u128::from(number) << 90)
    }

    /// Creates a usage file in which two tenants used a key on each of many days.
    fn used() -> (UsageFile, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let usage = UsageFile::beside(&StoreFile {
            path: folder.path().join("keys.db"),
            group_access: false,
            unrecovered: false,
            busy: Duration::ZERO,
        });
        let boot = BootId::from_u128(1);
        let at = Day::from_number(20_000).unwrap().start();
        let opening = BootOpening {
            boot,
            node: None,
            history: Epoch(1),
            at,
            unsent_since: at,
            replaces: None,
        };
        usage.open_boot(&opening).unwrap();
        let mut counts = DayCounts::default();
        counts.add(7, UseOutcome::Accepted, 1);
        let uses = (0..2 * KEYS).map(|number| {
            let day = Day::from_number(20_000 + number / 4).unwrap();
            KeyUses {
                key: key(number),
                tenant: tenant(["a", "b"][number as usize % 2]),
                day,
                counts: counts.clone(),
                last: Some(day.start()),
            }
        });
        let batch = UsageBatch {
            boot,
            sequence: 1,
            sent_until: at,
            uses: uses.collect(),
        };
        usage.add(&batch).unwrap().unwrap();
        (usage, folder)
    }

    fn plan(conn: &Connection, sql: &str, with: impl rusqlite::Params) -> Vec<String> {
        let mut explain = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let lines = explain.query_map(with, |row| row.get(3)).unwrap();
        lines.map(Result::unwrap).collect()
    }

    #[test]
    fn a_page_of_last_uses_is_one_range_of_the_index() {
        let (usage, _folder) = used();
        let day = |number| Day::from_number(number).unwrap();
        let middle = (day(20_700), key(2_800));
        for newest_first in [false, true] {
            for after in [None, Some(middle)] {
                let query = LastUseQuery {
                    tenant: tenant("a"),
                    from: day(20_100),
                    to: day(21_400),
                    newest_first,
                    after,
                    limit: NonZeroUsize::new(10).unwrap(),
                };
                assert_eq!(usage.by_last_use(&query).unwrap().len(), 10);
                let reader = locked(&usage.reader);
                let conn = &reader.as_ref().unwrap().0.conn;
                let sql = by_last_use(&query);
                let text = dialect(&sql.text);
                let plan = plan(conn, &text, params_from_iter(&sql.with));
                let index = "SEARCH usage_keys USING INDEX usage_keys_by_last_day (tenant=? AND ";
                assert!(plan.len() == 1 && plan[0].starts_with(index), "{plan:?}");
                let mut statement = conn.prepare(&text).unwrap();
                let mut rows = statement.query(params_from_iter(&sql.with)).unwrap();
                let mut found = 0;
                while rows.next().unwrap().is_some() {
                    found += 1;
                }
                drop(rows);
                let steps = statement.get_status(StatementStatus::VmStep);
                assert!(
                    found == 10 && steps < 300,
                    "{found} rows in {steps} steps: {text}"
                );
            }
        }
    }

    #[test]
    fn a_key_and_the_days_to_prune_are_found_through_an_index() {
        let (usage, _folder) = used();
        let writer = locked(&usage.writer);
        let conn = &writer.as_ref().unwrap().0.conn;
        let id = id_bytes(key(3));
        let mut plans = plan(conn, &dialect(DAYS_OF_KEY), (id, 0, 30_000));
        plans.extend(plan(conn, &dialect(LAST_USE_OF_KEY), [id]));
        plans.extend(plan(conn, &dialect(BOOT), [id]));
        for sql in FORGET_KEY {
            plans.extend(plan(conn, &dialect(sql), [id]));
        }
        plans.extend(plan(conn, &dialect(PRUNE_DAYS), (20_010, 7)));
        let named: Vec<_> = plans
            .iter()
            .filter(|step| step.contains("_by_day"))
            .collect();
        assert_eq!(named.len(), 1, "{plans:?}");
        for step in &plans {
            let expected = step.starts_with("SEARCH ") || step.starts_with("LIST SUBQUERY");
            assert!(expected, "{plans:#?}");
        }
        let mut prune = conn.prepare(&dialect(PRUNE_DAYS)).unwrap();
        assert_eq!(prune.execute((20_010, 7)).unwrap(), 7);
        let steps = prune.get_status(StatementStatus::VmStep);
        assert!(steps < 1_000, "{steps} steps");
    }
}
