//! The code that both SQL stores share: columns, seals, statements, and the decoding of rows.
//!
//! Pure: the stores run the statements and pass the resulting rows to this module. Statements are in
//! PostgreSQL's dialect, with the placeholder `$s.` for the schema. [`Sql`] holds a statement with its
//! parameters.
//!
//! Invariant: a row is decoded only if its seal, a checksum, matches. Every other row is reported as corrupt.

mod cells;
mod columns;
mod copy;
mod document;
mod entries;
mod feed;
mod heads;
mod integrity;
mod listing;
mod load;
mod node;
mod seal;
mod statement;
mod usage;
mod version;

pub(in crate::store) use self::cells::{Cell, Cells};
#[cfg(feature = "postgres")]
pub(in crate::store) use self::columns::place_at;
pub(in crate::store) use self::columns::{COLUMNS, RowColumns, change};
pub(in crate::store) use self::copy::{ORIGIN, counts_of, item, items_after, origin_of, place_of};
#[cfg(feature = "sqlite")]
pub(in crate::store) use self::copy::{StoredTable, table};
pub(in crate::store) use self::document::{
    DOCUMENT_COLUMNS, document_version_and_seal, lease_after_restore, read_document,
};
pub(in crate::store) use self::entries::{AUDIT_COLUMNS, AuditColumns, entry};
pub(in crate::store) use self::feed::{FeedPage, Scan, Tombstones};
pub(in crate::store) use self::heads::{
    CommitRow, DIGEST_COLUMNS, Head, StoreRow, TENANT_COLUMNS, TENANT_HEADS, TenantHead,
    digest_seal, read_digest,
};
pub(in crate::store) use self::integrity::{COUNTS, IntegrityPass, stats};
pub use self::integrity::{IntegrityReport, Stats};
pub(in crate::store) use self::listing::{AuditListing, KeyListing, audit_entries};
pub(in crate::store) use self::load::LoadedRows;
pub(in crate::store) use self::node::{ENTRY_COLUMNS, NODE_COLUMNS, NodeRow, lease};
#[cfg(feature = "sqlite")]
pub(in crate::store) use self::node::{LONGEST_LEASE, history_seal};
pub(in crate::store) use self::statement::{Sql, Value};
pub(in crate::store) use self::usage::{
    BOOT, BOOTS, GAPS, LedgerPruning, PUT_USAGE_HEAD, USAGE_HEAD, boot_columns, by_last_use,
    day_columns, gap_columns, last_use_columns, read_boot, read_day, read_gap, read_last_use,
    read_usage_head, usage_head_columns,
};
#[cfg(feature = "postgres")]
pub(in crate::store) use self::version::build_version;
pub(in crate::store) use self::version::{TablesVersion, VersionFault};
use crate::core::id::KeyId;
use crate::core::time::Timestamp;
use crate::core::view::Revision;

pub(in crate::store) const TENANT: i64 = 0;
pub(in crate::store) const OWNER: i64 = 1;
pub(in crate::store) const KEY: i64 = 2;
pub(in crate::store) const REMOVED: i64 = 3;

/// The value in the column `ends` for a key that never expires: the largest number.
const NEVER: i64 = i64::MAX;

/// 20: the number of bits that hold a row's number within its commit. A row's place is `revision * 2^20 +
/// number`, so all rows after a revision are one range.
const PLACE_BITS: u32 = 20;

/// The error of a row that cannot be read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub(in crate::store) enum RowFault {
    /// The stored bytes differ from those that were written.
    #[error("{0}")]
    Corrupt(String),
    /// The row cannot be written, for example because a number is out of range.
    #[error("{0}")]
    Refused(&'static str),
}

impl RowFault {
    pub(in crate::store) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt(what.into())
    }
}

/// Returns the place of the `number`th row of a commit, which is the row's position in commit order.
pub(in crate::store) fn place(revision: Revision, number: usize) -> Result<i64, RowFault> {
    let number = u64::try_from(number).unwrap_or(u64::MAX);
    let fits = number < 1 << PLACE_BITS && revision.0 < 1 << (63 - PLACE_BITS);
    if !fits {
        return Err(RowFault::Refused("a commit has at most 1,048,576 rows"));
    }
    i64::try_from(revision.0 << PLACE_BITS | number)
        .map_err(|_| RowFault::Refused("the revision is out of range"))
}

/// Returns the first place after all rows of `revision`.
pub(in crate::store) fn first_after(revision: Revision) -> i64 {
    place(Revision(revision.0.saturating_add(1)), 0).unwrap_or(i64::MAX)
}

pub(in crate::store) fn revision_of(place: i64) -> Revision {
    Revision(place.unsigned_abs() >> PLACE_BITS)
}

pub(in crate::store) fn id_bytes(id: KeyId) -> [u8; 16] {
    id.to_u128().to_be_bytes()
}

pub(in crate::store) fn id_of(bytes: &[u8]) -> Option<KeyId> {
    let bytes = bytes.try_into().ok()?;
    Some(KeyId::from_u128(u128::from_be_bytes(bytes)))
}

/// Returns the value in the column `ends` for a key that is not revoked.
pub(in crate::store) fn ends_at(expires_at: Option<Timestamp>) -> i64 {
    expires_at.map_or(NEVER, Timestamp::as_micros)
}

pub(in crate::store) fn signed(number: u64) -> Result<i64, RowFault> {
    i64::try_from(number).map_err(|_| RowFault::Refused("a number is out of range"))
}

fn instant(micros: i64) -> Result<Timestamp, RowFault> {
    Timestamp::from_micros(micros).map_err(|_| RowFault::corrupt("an instant is out of range"))
}
