//! Operations of an administrator: backup, restore, integrity check, statistics, dropping tombstones.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, Row};

use super::damage;
use super::fault::{OpenError, SqliteFault};
use super::file::{DraftStore, StoreFile, refuse_existing, refuse_leftovers};
use super::rows::{dialect, each, one};
use super::session::{self, Pool, ReadBound};
use super::{documents, head, nodes, pages, read, registry, schema};
use crate::core::view::Revision;
use crate::store::sql::{self, COUNTS, Head, IntegrityPass, StoreRow, Tombstones, signed};
use crate::store::{Cursor, Epoch, IntegrityReport, Stats};

/// Reads the whole file and names all damage. Continues after a page that cannot be read.
pub(super) fn check(conn: &Connection) -> Result<IntegrityReport, SqliteFault> {
    let definitions = schema::definitions(conn, |_| None)?;
    let mut report = IntegrityReport::default();
    report.add_first(definitions.damaged());
    for foreign in schema::foreign(conn)? {
        report.add(foreign);
    }
    let checked = pages::check_pages(conn, "PRAGMA integrity_check(100)", &mut report);
    go_on(&mut report, "the file", checked)?;
    check_rows(conn, IntegrityPass::ALL, report)
}

/// Returns the first sign that rows or audit entries are damaged or lost. Documents, and objects that another program
/// added, are no part of the history.
pub(super) fn find_loss(conn: &Connection) -> Result<Option<String>, SqliteFault> {
    let mut report = IntegrityReport::default();
    let checked = pages::check_pages(conn, "PRAGMA integrity_check(100)", &mut report);
    go_on(&mut report, "the file", checked)?;
    let history = |pass: &IntegrityPass| pass.is_of_history();
    let passes = IntegrityPass::ALL.into_iter().filter(history);
    let report = check_rows(conn, passes, report)?;
    Ok(report.faults.into_iter().next())
}

/// Checks a file like [`check`], also one that does not open. Reads a repaired copy then, which is removed again.
pub(super) fn check_damaged(file: &StoreFile) -> Result<IntegrityReport, OpenError> {
    let fail = |fault: SqliteFault| OpenError::of(&file.path, fault);
    match file.identity()?.map(|_| file.open_to_read()) {
        None => {
            return Err(OpenError::NotFound {
                path: file.path.clone(),
            });
        }
        Some(Ok(_) | Err(OpenError::Corrupt { .. } | OpenError::Foreign { .. })) => {}
        Some(Err(error)) => return Err(error),
    }
    // The file may be on a disk that is mounted read-only.
    let elsewhere = |_| DraftStore::beside(&std::env::temp_dir().join("keyward"));
    let draft = || DraftStore::beside(&file.path).or_else(elsewhere);
    let damaged = file.open_damaged(draft)?;
    let conn = &damaged.opened.conn;
    let checked = match damaged.is_copy() {
        false => check(conn),
        true => check_copy(conn),
    };
    damaged.check_unchanged(file)?;
    let mut report = checked.map_err(fail)?;
    if damaged.is_copy() && report.rows + report.audit == 0 {
        return Err(fail(SqliteFault::Corrupt("no row can be read".to_owned())));
    }
    report.add_first(damaged.repaired.clone());
    Ok(report)
}

/// Checks a repaired copy, which has pages that no table uses.
fn check_copy(conn: &Connection) -> Result<IntegrityReport, SqliteFault> {
    let mut report = IntegrityReport::default();
    for table in schema::tables(conn)? {
        let pragma = format!("PRAGMA integrity_check({table})");
        let checked = pages::check_pages(conn, &pragma, &mut report);
        go_on(&mut report, "the file", checked)?;
    }
    check_rows(conn, IntegrityPass::ALL, report)
}

fn check_rows(
    conn: &Connection,
    passes: impl IntoIterator<Item = IntegrityPass>,
    mut report: IntegrityReport,
) -> Result<IntegrityReport, SqliteFault> {
    let head = head::read(conn).map(drop);
    go_on(&mut report, "the head of the store", head)?;
    for check in passes {
        let Some(table) = check.table() else {
            let looked = each(conn, &dialect(&check.sql()), [], |row| {
                report.look(check, row);
                Ok(true)
            });
            go_on(&mut report, "the trails of all tenants", looked)?;
            continue;
        };
        let mut look = |row: &Row<'_>| {
            report.look(check, row);
            Ok(())
        };
        let Some(gap) = damage::each_readable(conn, table, &mut look)? else {
            continue;
        };
        match check {
            IntegrityPass::Rows => {
                let missing = damage::each_row_in_gap(conn, &gap, look)?;
                missing.iter().for_each(|row| report.damaged(row));
            }
            IntegrityPass::Audit => {
                let missing = damage::each_entry_in_gap(conn, &gap, look)?;
                missing.iter().for_each(|entry| report.unreadable(entry));
            }
            _ => {}
        }
        report.add(format!("table {}: {}", table.name, gap.fault));
    }
    Ok(report)
}

/// Reports damage that ended a part of the check, and lets the next part begin.
fn go_on(
    report: &mut IntegrityReport,
    what: &str,
    checked: Result<(), SqliteFault>,
) -> Result<(), SqliteFault> {
    match checked {
        Err(fault) if fault.is_damage() => report.add(format!("{what}: {fault}")),
        checked => checked?,
    }
    Ok(())
}

pub(super) fn stats(
    conn: &Connection,
    journal: &'static str,
    log_bytes: u64,
) -> Result<Stats, SqliteFault> {
    let pragma = |name: &str| -> Result<u64, SqliteFault> {
        let value: i64 = conn.pragma_query_value(None, name, |row| row.get(0))?;
        Ok(value.unsigned_abs())
    };
    let bytes = pragma("page_count")? * pragma("page_size")?;
    let engine = format!("SQLite {}, {journal}", rusqlite::version());
    let head = read::cursor(conn)?;
    let stats = one(conn, &dialect(COUNTS), [], |row| {
        Ok(sql::stats(row, head, (bytes, log_bytes), engine)?)
    })?;
    stats.ok_or(SqliteFault::Refused("nothing was counted"))
}

/// Writes a copy of the file from one snapshot, while the store is in use. The copy is marked as unrecovered, so
/// it can be opened only to recover it. If `verify` is true, reads the copy back before the copy gets its name.
pub(super) fn backup(from: &StoreFile, to: &Path, verify: bool) -> Result<Cursor, OpenError> {
    let fail = |fault: SqliteFault| of_copy(&from.path, to, fault);
    let before = match verify {
        true => Some(Pool::new(from.clone()).read(read::origin).map_err(fail)?),
        false => None,
    };
    let copy = copy(from, to)?;
    let conn = copy.file.open()?;
    let head = read::cursor(&conn).map_err(fail)?;
    let mark = || -> Result<(), SqliteFault> {
        let mut store = head::store(&conn)?;
        store.mark_unrecovered();
        head::write_store(&conn, &store)?;
        let longest = nodes::longest_lease(&conn)?.max(registry::longest_lease(from));
        nodes::end_history(&conn, longest)
    };
    mark()
        .and_then(|()| StoreFile::checkpoint(&conn))
        .map_err(fail)?;
    drop(conn);
    if let Some(before) = before {
        let conn = copy.file.open()?;
        refuse_damage(&conn, to)?;
        let marked = StoreFile {
            unrecovered: true,
            ..copy.file.clone()
        };
        let after = session::snapshot(&marked, &conn, read::origin).map_err(fail)?;
        let same = after.head == before.head && after.counts == before.counts;
        if !same && after.head.revision <= before.head.revision {
            return Err(OpenError::Corrupt {
                path: to.to_owned(),
                what: "it has fewer rows than the store".to_owned(),
            });
        }
    }
    copy.draft.publish(to)?;
    Ok(head)
}

fn refuse_damage(conn: &Connection, path: &Path) -> Result<(), OpenError> {
    let report = check(conn).map_err(|fault| OpenError::of(path, fault))?;
    match report.faults.first() {
        Some(first) => Err(OpenError::Corrupt {
            path: path.to_owned(),
            what: format!("{} faults, the first: {first}", report.faults.len()),
        }),
        None => Ok(()),
    }
}

/// Rewrites the file without free pages. Then empties the log, which contains the whole new file.
pub(super) fn vacuum(file: &StoreFile) -> Result<(), SqliteFault> {
    let conn = file.open()?;
    file.make_durable(&conn)?;
    // In memory, the new file could use up the memory of the process.
    conn.pragma_update(None, "temp_store", "FILE")?;
    conn.execute_batch("VACUUM")?;
    StoreFile::checkpoint(&conn)
}

/// Restores a backup to a new path. The restored store has a new epoch, and is marked as unrecovered.
pub(super) fn restore(backup: &StoreFile, to: &Path) -> Result<(), OpenError> {
    if backup.identity()?.is_none() {
        return Err(OpenError::NotFound {
            path: backup.path.clone(),
        });
    }
    refuse_existing(to)?;
    refuse_leftovers(to)?;
    let copy = copy(backup, to)?;
    let fail = |fault: SqliteFault| of_copy(&backup.path, to, fault);
    let conn = copy.file.open()?;
    schema::upgrade(&conn).map_err(fail)?;
    refuse_damage(&conn, &backup.path)?;
    start_epoch(&conn, registry::longest_lease(backup))
        .and_then(|()| StoreFile::checkpoint(&conn))
        .map_err(fail)?;
    drop(conn);
    copy.draft.publish(to)
}

/// Starts a new epoch in a file that was copied back without `restore`, and marks the file as unrecovered.
pub(super) fn start_new_epoch(file: &StoreFile) -> Result<(), SqliteFault> {
    let longest = registry::longest_lease(file);
    session::write(file, |conn| start_epoch(conn, longest))
}

/// Starts a new epoch, so that every follower starts over, even one whose revision exists in the file too. The
/// longest lease in the node registry is `longest`.
fn start_epoch(conn: &Connection, longest: Duration) -> Result<(), SqliteFault> {
    let Head {
        mut store, last, ..
    } = head::read(conn)?;
    store.mark_unrecovered();
    store.epoch = Epoch(schema::random(conn)?);
    store.floor = last.revision;
    head::write_store(conn, &store)?;
    documents::end_history(conn)?;
    nodes::end_history(conn, nodes::longest_lease(conn)?.max(longest))
}

/// A finished copy of the file that is not yet at its final path.
struct DraftCopy {
    draft: DraftStore,
    file: StoreFile,
}

/// Returns the error of a copy. Only the copy is written, so a full disk is its disk.
fn of_copy(from: &Path, to: &Path, fault: SqliteFault) -> OpenError {
    match fault.is_full() {
        true => OpenError::of(to, fault),
        false => OpenError::of(from, fault),
    }
}

fn copy(from: &StoreFile, to: &Path) -> Result<DraftCopy, OpenError> {
    refuse_existing(to)?;
    let draft = DraftStore::beside(to)?;
    let unfit = || std::io::Error::from(std::io::ErrorKind::InvalidFilename);
    let target = draft
        .path
        .to_str()
        .ok_or_else(|| OpenError::io(to, unfit()))?;
    let mut source = from.open_to_read()?;
    let bound = ReadBound::of(&mut source.conn, from);
    let copied = bound.hold(|| Ok(source.conn.execute("VACUUM INTO ?1", [target])?));
    source.check_unchanged(from)?;
    copied.map_err(|fault| of_copy(&from.path, to, fault))?;
    let file = StoreFile {
        path: draft.path.clone(),
        ..from.clone()
    };
    Ok(DraftCopy { draft, file })
}

pub(super) fn finish_recovery(file: &StoreFile) -> Result<(), SqliteFault> {
    session::write(file, |conn| {
        let store = StoreRow {
            restored_from: None,
            ..head::store(conn)?
        };
        head::write_store(conn, &store)
    })?;
    // Someone who copies the recovered file, or mounts it elsewhere, may leave its log behind.
    checkpoint(file)
}

pub(super) fn finish_upgrade(file: &StoreFile) -> Result<(), SqliteFault> {
    session::write(file, schema::finish_upgrade)
}

pub(super) fn checkpoint(file: &StoreFile) -> Result<(), SqliteFault> {
    // The main file may have to grow before the log shrinks.
    file.with_reserve(|| {
        let conn = file.open()?;
        StoreFile::checkpoint(&conn)
    })
}

/// Finds the tombstones of commits at or below the revision `upto`.
pub(super) fn tombstones(conn: &Connection, upto: Revision) -> Result<Tombstones, SqliteFault> {
    let mut found = Tombstones::upto(upto, &head::read(conn)?);
    each(conn, &dialect(Tombstones::SQL), [found.end()], |row| {
        found.places.push(row.get(0)?);
        Ok(true)
    })?;
    Ok(found)
}

/// Drops tombstones, and returns their number. The ids of the removed keys move to the table `gone`, so that no new
/// key can use them.
pub(super) fn compact(file: &StoreFile, found: &Tombstones) -> Result<u64, SqliteFault> {
    session::write(file, |conn| {
        file.check_mark(conn)?;
        drop_tombstones(conn, found)
    })
}

pub(super) fn drop_tombstones(conn: &Connection, found: &Tombstones) -> Result<u64, SqliteFault> {
    let head = head::read(conn)?;
    let floor = found.floor(&head)?;
    let mut dropped: u64 = 0;
    for place in &found.places {
        let keep =
            "INSERT OR IGNORE INTO gone (id) SELECT id FROM rows WHERE place = ?1 AND kind = 3";
        conn.prepare_cached(keep)?.execute([place])?;
        let drop = "DELETE FROM rows WHERE place = ?1 AND kind = 3";
        let count = conn.prepare_cached(drop)?.execute([place])?;
        dropped = dropped.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
    }
    // The feed refuses cursors below the floor, so the tags of these commits are not needed. The last
    // commit is never below the floor.
    let sql = "DELETE FROM commits WHERE revision < ?1";
    conn.execute(sql, [signed(floor.0)?])?;
    let store = StoreRow {
        floor,
        ..head.store
    };
    head::write_store(conn, &store)?;
    Ok(dropped)
}
