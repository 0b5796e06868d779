//! Listings for people, as SQLite reads them.

use rusqlite::{Connection, params_from_iter};

use super::fault::Fault;
use super::rows as read;
use crate::core::query::{AuditQuery, KeyQuery};
use crate::store::rows::{AuditListing, KeyListing, Marks, audit_entries, key_candidates};
use crate::store::{AuditPage, KeyPage};

pub(super) const MARKS: Marks<'static> = Marks {
    bound: '?',
    schema: "",
};

pub(super) fn keys(conn: &Connection, query: &KeyQuery) -> Result<KeyPage, Fault> {
    let (sql, ordered) = key_candidates(query, MARKS);
    let mut listing = KeyListing::new(query, ordered);
    let mut statement = conn.prepare_cached(&sql.text)?;
    let mut rows = statement.query(params_from_iter(&sql.with))?;
    while let Some(row) = rows.next()? {
        if listing.add(read::change(row)?) {
            break;
        }
    }
    Ok(listing.end())
}

pub(super) fn audit(conn: &Connection, query: &AuditQuery) -> Result<AuditPage, Fault> {
    let sql = audit_entries(query, MARKS);
    let mut listing = AuditListing::new(query);
    let mut statement = conn.prepare_cached(&sql.text)?;
    let mut rows = statement.query(params_from_iter(&sql.with))?;
    while let Some(row) = rows.next()? {
        if listing.add(read::entry(row)?) {
            break;
        }
    }
    Ok(listing.page)
}
