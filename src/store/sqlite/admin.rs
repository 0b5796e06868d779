//! Operations of an administrator: backup, restore, integrity check, statistics, dropping tombstones.

use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::fault::{Fault, OpenError};
use super::file::{Draft, Place, refuse_leftovers};
use super::rows::{dialect, each, one};
use super::{head, nodes, read, schema, session};
use crate::core::view::Revision;
use crate::store::sql::{self, COUNTS, Check, StoreRow, first_after, signed};
use crate::store::{Cursor, Epoch, IntegrityReport, Stats};

pub(super) fn check(conn: &Connection) -> Result<IntegrityReport, Fault> {
    let mut report = IntegrityReport::default();
    each(conn, "PRAGMA integrity_check(100)", [], |row| {
        let line: String = row.get(0)?;
        if line != "ok" {
            report.add(format!("SQLite: {line}"));
        }
        Ok(true)
    })?;
    if let Err(fault) = head::read(conn) {
        report.add(fault);
    }
    for check in Check::ALL {
        each(conn, &dialect(&check.sql()), [], |row| {
            report.look(check, row);
            Ok(true)
        })?;
    }
    Ok(report)
}

pub(super) fn stats(conn: &Connection, journal: &'static str) -> Result<Stats, Fault> {
    let pragma = |name: &str| -> Result<u64, Fault> {
        let value: i64 = conn.pragma_query_value(None, name, |row| row.get(0))?;
        Ok(value.unsigned_abs())
    };
    let bytes = pragma("page_count")? * pragma("page_size")?;
    let engine = format!("SQLite {}, {journal}", rusqlite::version());
    let head = read::cursor(conn)?;
    let stats = one(conn, &dialect(COUNTS), [], |row| {
        Ok(sql::stats(row, head, bytes, engine)?)
    })?;
    stats.ok_or(Fault::Refused("nothing was counted"))
}

/// Writes a copy of the file from one snapshot, while the store is in use. The copy is marked as
/// unrecovered, so that it opens only for recovery.
pub(super) fn backup(from: &Place, to: &Path) -> Result<Cursor, OpenError> {
    let copy = copy(from, to)?;
    let fail = |fault: Fault| OpenError::of(&from.path, fault);
    let conn = copy.place.open()?;
    let head = read::cursor(&conn).map_err(fail)?;
    let mark = || -> Result<(), Fault> {
        let store = StoreRow {
            unrecovered: true,
            ..head::store(&conn)?
        };
        head::write_store(&conn, &store)
    };
    mark().map_err(fail)?;
    drop(conn);
    copy.draft.publish(to)?;
    Ok(head)
}

/// Restores a backup to a new path, and begins a new history there.
pub(super) fn restore(backup: &Place, to: &Path) -> Result<(), OpenError> {
    if backup.look()?.is_none() {
        return Err(OpenError::NotFound {
            path: backup.path.clone(),
        });
    }
    refuse_existing(to)?;
    refuse_leftovers(to)?;
    let copy = copy(backup, to)?;
    let fail = |fault: Fault| OpenError::of(&backup.path, fault);
    let conn = copy.place.open()?;
    let report = check(&conn).map_err(fail)?;
    if let Some(first) = report.faults.first() {
        return Err(OpenError::Corrupt {
            path: backup.path.clone(),
            what: format!("{} faults, the first: {first}", report.faults.len()),
        });
    }
    // With a new epoch, followers of the lost history start over, whatever their revisions.
    let start_epoch = || -> Result<(), Fault> {
        let store = StoreRow {
            epoch: Epoch(schema::random(&conn)?),
            floor: head::read(&conn)?.last.revision,
            unrecovered: true,
        };
        head::write_store(&conn, &store)?;
        nodes::end_history(&conn, nodes::longest_lease(&conn)?)
    };
    start_epoch().map_err(fail)?;
    drop(conn);
    copy.draft.publish(to)
}

/// A copy of the file that is not published yet.
struct Copy {
    draft: Draft,
    place: Place,
}

fn copy(from: &Place, to: &Path) -> Result<Copy, OpenError> {
    refuse_existing(to)?;
    let draft = Draft::beside(to)?;
    let unfit = || std::io::Error::from(std::io::ErrorKind::InvalidFilename);
    let target = draft
        .path
        .to_str()
        .ok_or_else(|| OpenError::io(to, unfit()))?;
    from.open()?
        .execute("VACUUM INTO ?1", [target])
        .map_err(|error| OpenError::of(&from.path, error.into()))?;
    let place = Place {
        path: draft.path.clone(),
        ..from.clone()
    };
    Ok(Copy { draft, place })
}

fn refuse_existing(path: &Path) -> Result<(), OpenError> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Err(OpenError::Exists {
            path: PathBuf::from(path),
        }),
        Err(_) => Ok(()),
    }
}

pub(super) fn finish_recovery(place: &Place) -> Result<(), Fault> {
    session::write(place, |conn| {
        let store = StoreRow {
            unrecovered: false,
            ..head::store(conn)?
        };
        head::write_store(conn, &store)
    })
}

/// Drops the tombstones of commits at or below `upto`, and returns their number. The ids stay taken.
pub(super) fn compact(place: &Place, upto: Revision) -> Result<u64, Fault> {
    session::write(place, |conn| {
        let head = head::read(conn)?;
        let floor = upto.min(head.last.revision).max(head.store.floor);
        let end = first_after(floor);
        conn.execute(
            "INSERT OR IGNORE INTO gone (id) SELECT id FROM rows WHERE kind = 3 AND place < ?1",
            [end],
        )?;
        let dropped = conn.execute("DELETE FROM rows WHERE kind = 3 AND place < ?1", [end])?;
        // The row of the last commit stays. No cursor that is still served needs the deleted rows.
        let sql = "DELETE FROM commits WHERE revision < ?1";
        conn.execute(sql, [signed(floor.0)?])?;
        head::write_store(
            conn,
            &StoreRow {
                floor,
                ..head.store
            },
        )?;
        Ok(u64::try_from(dropped).unwrap_or(u64::MAX))
    })
}
