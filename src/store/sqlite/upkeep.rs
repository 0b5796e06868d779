//! What an operator does to a file: back it up, restore it, check it, measure it, shed tombstones.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, TransactionBehavior};

use super::fault::{Fault, OpenError};
use super::file::{Draft, Place, refuse_leftovers};
use super::head::{self, Head};
use super::schema;
use super::{nodes, rows};
use crate::core::tenant::TenantId;
use crate::core::view::Revision;
use crate::store::rows::{AUDIT_COLUMNS, COLUMNS, StoreRow, first_after, signed};
use crate::store::{Cursor, IntegrityReport, Stats};

pub(super) fn check(conn: &Connection) -> Result<IntegrityReport, Fault> {
    let mut report = IntegrityReport::default();
    let mut statement = conn.prepare("PRAGMA integrity_check(100)")?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        let line: String = row.get(0)?;
        if line != "ok" {
            report.add(format!("SQLite: {line}"));
        }
    }
    if let Err(fault) = Head::read(conn) {
        report.add(fault);
    }
    check_rows(conn, &mut report)?;
    check_audit(conn, &mut report)?;
    check_tenants(conn, &mut report)?;
    check_heads(conn, &mut report)?;
    check_digests(conn, &mut report)?;
    nodes::check(conn)?
        .into_iter()
        .for_each(|fault| report.add(fault));
    Ok(report)
}

fn check_rows(conn: &Connection, report: &mut IntegrityReport) -> Result<(), Fault> {
    let mut statement = conn.prepare(&format!("SELECT {COLUMNS} FROM rows ORDER BY place"))?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        report.row(rows::change(row));
    }
    Ok(())
}

fn check_audit(conn: &Connection, report: &mut IntegrityReport) -> Result<(), Fault> {
    let mut statement =
        conn.prepare(&format!("SELECT {AUDIT_COLUMNS} FROM audit ORDER BY place"))?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        report.entry(rows::entry(row)?);
    }
    Ok(())
}

/// Each tenant's head is that of its newest entry, and no entry is missing.
fn check_tenants(conn: &Connection, report: &mut IntegrityReport) -> Result<(), Fault> {
    let mut statement = conn.prepare("SELECT tenant FROM tenants ORDER BY tenant")?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        let name: String = row.get(0)?;
        let head = TenantId::new(&name)
            .map_err(|_| Fault::corrupt(format!("tenant {name:?} is damaged")))
            .and_then(|tenant| head::tenant(conn, &tenant));
        let head = match head {
            Ok(Some(head)) => head,
            Ok(None) => continue,
            Err(fault) => {
                report.add(fault);
                continue;
            }
        };
        let trail = conn
            .prepare_cached("SELECT count(*), max(sequence) FROM audit WHERE tenant = ?1")?
            .query_row([&name], |row| {
                Ok((row.get(0)?, row.get::<_, Option<i64>>(1)?.unwrap_or(0)))
            })?;
        report.trail(&name, &head, trail);
    }
    Ok(())
}

fn check_heads(conn: &Connection, report: &mut IntegrityReport) -> Result<(), Fault> {
    let sql = "SELECT tenant FROM rows UNION SELECT tenant FROM audit \
               EXCEPT SELECT tenant FROM tenants";
    let mut statement = conn.prepare(sql)?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        // What is no text is told with its own row.
        if let Ok(name) = row.get_ref(0)?.as_str() {
            report.headless(name);
        }
    }
    Ok(())
}

fn check_digests(conn: &Connection, report: &mut IntegrityReport) -> Result<(), Fault> {
    let mut statement = conn.prepare("SELECT digest, id, seal FROM digests")?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        let (digest, id): (Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(1)?);
        report.digest(&digest, &id, row.get(2)?);
    }
    Ok(())
}

pub(super) fn stats(conn: &Connection, journal: &'static str) -> Result<Stats, Fault> {
    let count = |what: &str| -> Result<u64, Fault> {
        let sql = format!("SELECT count(*) FROM {what}");
        let counted: i64 = conn.query_row(&sql, [], |row| row.get(0))?;
        Ok(counted.unsigned_abs())
    };
    let pragma = |name: &str| -> Result<u64, Fault> {
        let value: i64 = conn.pragma_query_value(None, name, |row| row.get(0))?;
        Ok(value.unsigned_abs())
    };
    Ok(Stats {
        head: Head::read(conn)?.cursor,
        keys: count("rows WHERE kind = 2")?,
        removed: count("rows WHERE kind = 3")?,
        owners: count("rows WHERE kind = 1")?,
        tenants: count("rows WHERE kind = 0")?,
        audit: count("audit")?,
        bytes: pragma("page_count")? * pragma("page_size")?,
        engine: format!("SQLite {}, {journal}", rusqlite::version()),
    })
}

/// Writes a copy of the file as it stands in one snapshot. The store goes on meanwhile. The copy is
/// marked, so that it does not open as if nothing had happened since.
pub(super) fn backup(from: &Place, to: &Path) -> Result<Cursor, OpenError> {
    let copy = copy(from, to)?;
    let fail = |fault: Fault| OpenError::of(&from.path, fault);
    let conn = copy.place.open()?;
    let head = Head::read(&conn).map_err(fail)?.cursor;
    let mark = || -> Result<(), Fault> {
        let store = StoreRow {
            unrecovered: true,
            ..schema::store(&conn)?
        };
        schema::write_store(&conn, &store)
    };
    mark().map_err(fail)?;
    drop(conn);
    copy.draft.publish(to)?;
    Ok(head)
}

/// Puts a backup where a store is to stand, as a history of its own.
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
    let mut conn = copy.place.open()?;
    schema::migrate(&mut conn).map_err(fail)?;
    let report = check(&conn).map_err(fail)?;
    if let Some(first) = report.faults.first() {
        return Err(OpenError::Corrupt {
            path: backup.path.clone(),
            what: format!("{} faults, the first: {first}", report.faults.len()),
        });
    }
    // Followers of the lost history are told that theirs is gone, whatever the revisions say.
    let begin_anew = || -> Result<(), Fault> {
        let store = StoreRow {
            epoch: schema::random(&conn)?,
            floor: Head::read(&conn)?.cursor.revision.0,
            unrecovered: true,
        };
        schema::write_store(&conn, &store)?;
        nodes::begin_anew(&conn, nodes::longest_lease(&conn)?)
    };
    begin_anew().map_err(fail)?;
    drop(conn);
    copy.draft.publish(to)
}

/// A copy in the making.
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
    let mut conn = place.open()?;
    place.make_durable(&conn)?;
    schema::check_version(&conn)?;
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let store = StoreRow {
        unrecovered: false,
        ..schema::store(&tx)?
    };
    schema::write_store(&tx, &store)?;
    tx.commit()?;
    Ok(())
}

/// Drops the tombstones of commits at or below `upto`, and tells how many there were. Their ids
/// stay taken.
pub(super) fn forget_removed(place: &Place, upto: Revision) -> Result<u64, Fault> {
    let mut conn = place.open()?;
    place.make_durable(&conn)?;
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    schema::check_version(&tx)?;
    let head = Head::read(&tx)?;
    let floor = upto.min(head.cursor.revision).max(head.floor);
    let end = first_after(floor);
    tx.execute(
        "INSERT OR IGNORE INTO gone (id) SELECT id FROM rows WHERE kind = 3 AND place < ?1",
        [end],
    )?;
    let dropped = tx.execute("DELETE FROM rows WHERE kind = 3 AND place < ?1", [end])?;
    // The head's own row stays; the rest is needed by no cursor that would still be served.
    let sql = "DELETE FROM commits WHERE revision < ?1";
    tx.execute(sql, [signed(floor.0)?])?;
    let store = StoreRow {
        floor: floor.0,
        ..schema::store(&tx)?
    };
    schema::write_store(&tx, &store)?;
    tx.commit()?;
    Ok(u64::try_from(dropped).unwrap_or(u64::MAX))
}
