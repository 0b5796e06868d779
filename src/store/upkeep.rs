//! What an operator learns of a store: whether it is sound, and how large it is.

use super::rows::{TenantHead, digest_seal};
use super::{AuditPosition, AuditRow, Change, Cursor, Row, RowKey};

/// How many faults a report names at most; a damaged store can have millions.
const MAX_FAULTS: usize = 1000;

/// What an integrity check found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct IntegrityReport {
    /// How many rows of tenants, owners and keys were read, tombstones included.
    pub rows: u64,
    /// How many audit entries were read.
    pub audit: u64,
    /// What is broken, each by name; empty if the store is sound. A thousand at most.
    pub faults: Vec<String>,
}

/// How large a store is, and how it is kept.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Where it stands.
    pub head: Cursor,
    /// Keys, revoked and expired ones included.
    pub keys: u64,
    /// Tombstones of removed keys that followers are still told of.
    pub removed: u64,
    /// Rows of owners.
    pub owners: u64,
    /// Rows of tenants.
    pub tenants: u64,
    /// Audit entries.
    pub audit: u64,
    /// What it takes on disk: of a file without its log, of a database with its indexes.
    pub bytes: u64,
    /// What keeps it, with its version: `SQLite 3.51.3, wal` or `PostgreSQL 15.18`.
    pub engine: String,
}

impl IntegrityReport {
    /// Whether nothing is broken.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty()
    }

    pub(super) fn add(&mut self, fault: impl ToString) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(fault.to_string());
        }
    }

    /// Counts a row, and names it if it is damaged.
    pub(super) fn row(&mut self, found: Result<Change, impl ToString>) {
        self.rows += 1;
        match found.map(|change| change.row) {
            Ok(Row::Corrupt(RowKey::Key(id))) => self.add(format!("key {id}: its row is damaged")),
            Ok(Row::Corrupt(RowKey::Owner(tenant, owner))) => {
                self.add(format!(
                    "owner {owner} in tenant {tenant}: its row is damaged"
                ));
            }
            Ok(Row::Corrupt(RowKey::Tenant(tenant))) => {
                self.add(format!("tenant {tenant}: its row is damaged"));
            }
            Ok(_) => {}
            Err(fault) => self.add(fault),
        }
    }

    /// Counts an audit entry, and names it if it is damaged.
    pub(super) fn entry(&mut self, found: Result<AuditRow, AuditPosition>) {
        self.audit += 1;
        if let Err(AuditPosition { revision, sequence }) = found {
            self.add(format!(
                "audit entry {sequence} of revision {revision} is damaged"
            ));
        }
    }

    /// Compares a tenant's head with its trail: `count` entries up to number `newest`. The head is that
    /// of the newest one, and none is missing.
    pub(super) fn trail(&mut self, tenant: &str, head: &TenantHead, (count, newest): (i64, i64)) {
        let expected = head.audit.sequence;
        if (count.unsigned_abs(), newest.unsigned_abs()) != (expected, expected) {
            self.add(format!(
                "tenant {tenant}: {count} audit entries up to {newest}, should be {expected}"
            ));
        }
    }

    /// A tenant without a head passes for one that is not known yet, whatever keys it has.
    pub(super) fn headless(&mut self, tenant: &str) {
        self.add(format!(
            "tenant {tenant:?}: has rows or audit entries, and no head"
        ));
    }

    /// Checks the row that says which key has an imported digest.
    pub(super) fn digest(&mut self, digest: &[u8], id: &[u8], sealed: i64) {
        if digest_seal(digest, id) != sealed {
            self.add("an imported digest is damaged");
        }
    }
}
