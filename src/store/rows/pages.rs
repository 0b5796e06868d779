//! What a decision and a follower are told, put together from rows.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use super::RowFault;
use crate::core::id::KeyId;
use crate::core::record::KeyRecord;
use crate::core::view::Revision;
use crate::store::{Change, Row, RowKey};

/// Keys as they are found, each once.
#[derive(Default)]
pub(in crate::store) struct Keys {
    /// Each with the commit that wrote it.
    pub(in crate::store) records: BTreeMap<KeyId, (Revision, KeyRecord)>,
    pub(in crate::store) corrupt: Vec<KeyId>,
}

impl Keys {
    pub(in crate::store) fn take(&mut self, found: impl IntoIterator<Item = Change>) {
        for change in found {
            match change.row {
                Row::Key(record) => {
                    self.records.insert(record.id, (change.revision, *record));
                }
                Row::Corrupt(RowKey::Key(id)) if !self.corrupt.contains(&id) => {
                    self.corrupt.push(id);
                }
                _ => {}
            }
        }
    }
}

/// A row without which no decision can be taken.
pub(in crate::store) fn damaged(row: &RowKey) -> RowFault {
    RowFault::corrupt(match row {
        RowKey::Tenant(tenant) => format!("the row of tenant {tenant} is damaged"),
        RowKey::Owner(tenant, owner) => {
            format!("the row of owner {owner} in tenant {tenant} is damaged")
        }
        RowKey::Key(key) => format!("the row of key {key} is damaged"),
    })
}

/// The revision with which a page of changes ends, if it ends before `next`: with a revision, never
/// within one.
pub(in crate::store) fn page_end(
    page: &[Change],
    limit: NonZeroUsize,
    next: &Change,
) -> Option<Revision> {
    let last = page.last()?.revision;
    (page.len() >= limit.get() && last != next.revision).then_some(last)
}
