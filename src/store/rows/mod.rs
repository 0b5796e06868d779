//! Rows as the tables of an SQL store hold them, whatever the database: their columns, their order,
//! the seal that tells bytes which changed since they were written, and how a listing is asked for.
//!
//! Pure.

mod copying;
mod entries;
mod heads;
mod listing;
mod nodes;
mod pages;
mod row;
mod seal;

pub(in crate::store) use self::copying::{
    COPYING, audit_item, is_copy, items_after, last_item, place_of, row_item, table, tenant_item,
};
pub(in crate::store) use self::entries::{AUDIT_COLUMNS, AuditColumns};
pub(in crate::store) use self::heads::{
    CommitRow, StoreRow, TenantHead, digest_holder, digest_seal,
};
#[cfg(feature = "postgres")]
pub(in crate::store) use self::listing::Sql;
pub(in crate::store) use self::listing::{
    AuditListing, KeyListing, Marks, Value, audit_entries, key_candidates,
};
pub(in crate::store) use self::nodes::{NODE_COLUMNS, NodeRow};
pub(in crate::store) use self::pages::{Keys, damaged, page_end};
pub(in crate::store) use self::row::{COLUMNS, Columns, Fields};
use crate::core::id::KeyId;
use crate::core::time::Timestamp;
use crate::core::view::Revision;

pub(in crate::store) const TENANT: i64 = 0;
pub(in crate::store) const OWNER: i64 = 1;
pub(in crate::store) const KEY: i64 = 2;
pub(in crate::store) const REMOVED: i64 = 3;

/// What `ends` says of a key that never ends.
const NEVER: i64 = i64::MAX;

/// Rows of one commit stand at `revision * 2^20` and on, so that a follower's read is one range.
pub(in crate::store) const PLACE_BITS: u32 = 20;

/// What is wrong with a row, or with what should become one.
#[derive(Clone, Debug, thiserror::Error)]
pub(in crate::store) enum RowFault {
    /// Stored bytes are not what was written.
    #[error("{0}")]
    Corrupt(String),
    /// No table could hold it.
    #[error("{0}")]
    Refused(&'static str),
}

impl RowFault {
    pub(in crate::store) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt(what.into())
    }
}

/// Where the `number`th row of a commit stands.
pub(in crate::store) fn place(revision: Revision, number: usize) -> Result<i64, RowFault> {
    let number = u64::try_from(number).unwrap_or(u64::MAX);
    let fits = number < 1 << PLACE_BITS && revision.0 < 1 << (63 - PLACE_BITS);
    if !fits {
        return Err(RowFault::Refused("a commit has at most 1,048,576 rows"));
    }
    i64::try_from(revision.0 << PLACE_BITS | number)
        .map_err(|_| RowFault::Refused("the revision is out of range"))
}

/// Where the first row stands that a commit after `revision` may have written.
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

/// What `ends` says of a key that is not revoked and ends then.
pub(in crate::store) fn ends_at(expires_at: Option<Timestamp>) -> i64 {
    expires_at.map_or(NEVER, Timestamp::as_micros)
}

pub(in crate::store) fn signed(number: u64) -> Result<i64, RowFault> {
    i64::try_from(number).map_err(|_| RowFault::Refused("a number is out of range"))
}

fn instant(micros: i64) -> Result<Timestamp, RowFault> {
    Timestamp::from_micros(micros).map_err(|_| RowFault::corrupt("an instant is out of range"))
}
