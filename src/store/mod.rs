//! The store contract: durable storage for key records, with the tenant as the unit of atomicity.
//!
//! A store holds no policy, reads no clock and draws no randomness. To write one, implement [`KeyStore`] and
//! run the suite of the crate `keyward-conformance` against it. [`NodeRegistry`] is a separate trait: each
//! process that shares a store reports there the revision that it has applied.

mod error;
mod memory;
mod nodes;
mod pages;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod sql;
#[cfg(feature = "sqlite")]
pub mod sqlite;
pub mod transfer;

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

pub use self::error::{ChangesError, CommitError, StoreError, StoreErrorKind};
pub use self::memory::MemoryStore;
pub use self::nodes::{NodeId, NodeRegistry, NodeReport};
pub use self::pages::{TakePage, scan_by_pages};
#[cfg(feature = "postgres")]
pub use self::postgres::PostgresStore;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub use self::sql::{IntegrityReport, Stats};
#[cfg(feature = "sqlite")]
pub use self::sqlite::SqliteStore;
use crate::core::id::KeyId;
pub use crate::core::owner::{OwnerRecord, TenantRecord, TimeRepair};
pub use crate::core::query::{
    AuditPage, AuditPosition, AuditQuery, AuditRow, KeyPage, KeyPosition, KeyQuery, KeySort,
};
use crate::core::record::KeyRecord;
use crate::core::secret::Digest;
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;
use crate::core::view::repairs_time;
pub use crate::core::view::{Effects, Epoch, Guard, LoadRequest, Revision, RowKey, TenantView};
pub use crate::core::wire::DecodeError;
pub use async_trait::async_trait;

/// A random tag of one commit, which distinguishes two histories at the same revision.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CommitTag(pub u128);

/// A position in a store's history.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Cursor {
    /// The epoch of the history.
    pub epoch: Epoch,
    /// The revision of the last commit before the position.
    pub revision: Revision,
    /// The tag of that last commit; zero before the first commit.
    pub tag: CommitTag,
}

/// A change of one tenant, applied as a whole or not at all.
///
/// The caller guarantees that all records, owners, audit entries and removed keys are the tenant's own,
/// and that no row is named twice.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Commit {
    /// The tenant that changes.
    pub tenant: TenantId,
    /// The epoch of the history in which the tenant was loaded. `None` accepts any history.
    pub epoch: Option<Epoch>,
    /// The revision at which the tenant was loaded.
    pub expected: Revision,
    /// Rows of other tenants that the decision used: the acting key, the rows of that key's owner, and the
    /// ancestor tenants.
    pub guards: Vec<Guard>,
    /// A random tag of this commit.
    pub tag: CommitTag,
    /// The instant that the decision took as the current time.
    pub decided_at: Timestamp,
    /// The rows to write and remove, and the audit entries.
    pub effects: Effects,
}

/// One row of the feed or of a scan.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Row {
    /// A tenant.
    Tenant(TenantRecord),
    /// An owner in a tenant.
    Owner(OwnerRecord),
    /// A key.
    Key(Box<KeyRecord>),
    /// The tombstone of a removed key.
    Removed {
        /// The id of the key.
        key: KeyId,
        /// The tenant that had the key.
        tenant: TenantId,
    },
    /// A row whose stored bytes failed their checksum. Refuse the key, or every key of the owner or
    /// tenant.
    Corrupt(RowKey),
}

impl Row {
    /// Returns the key of the row.
    #[must_use]
    pub fn key(&self) -> RowKey {
        match self {
            Self::Tenant(row) => RowKey::Tenant(row.tenant.clone()),
            Self::Owner(row) => RowKey::Owner(row.tenant.clone(), row.owner.clone()),
            Self::Key(record) => RowKey::Key(record.id),
            Self::Removed { key, .. } => RowKey::Key(*key),
            Self::Corrupt(row) => row.clone(),
        }
    }

    /// Returns the tenant of the row and the instant of the row's last update. `None` for a tombstone or a
    /// corrupt row.
    #[must_use]
    pub fn written_at(&self) -> Option<(&TenantId, Timestamp)> {
        match self {
            Self::Tenant(row) => Some((&row.tenant, row.updated.at)),
            Self::Owner(row) => Some((&row.tenant, row.updated.at)),
            Self::Key(row) => Some((&row.tenant, row.updated.at)),
            Self::Removed { .. } | Self::Corrupt(_) => None,
        }
    }
}

impl Commit {
    /// Checks the conditions of the commit. The store must not apply another commit during this call.
    ///
    /// - The store's epoch is `epoch`, and the tenant is `at` the expected revision.
    /// - Every guarded row is at its revision. `row_at` returns the commit that wrote a row, zero for a row
    ///   that does not exist.
    /// - Every record's id is free, or belongs to a key of this tenant. `writable` checks a record's id.
    /// - Every imported digest is free, or belongs to the record itself. `holder` returns the key that has
    ///   or had a digest.
    ///
    /// # Errors
    ///
    /// [`CommitError::Conflict`], [`IdTaken`](CommitError::IdTaken) or
    /// [`DigestTaken`](CommitError::DigestTaken).
    pub fn check(
        &self,
        (epoch, at): (Epoch, Revision),
        row_at: impl Fn(&RowKey) -> Revision,
        writable: impl Fn(&KeyRecord) -> bool,
        holder: impl Fn(&Digest) -> Option<KeyId>,
    ) -> Result<(), CommitError> {
        let stands = |guard: &Guard| row_at(&guard.row) == guard.revision;
        let same_history = self.epoch.is_none_or(|own| own == epoch);
        if !same_history || at != self.expected || !self.guards.iter().all(stands) {
            return Err(CommitError::Conflict);
        }
        for record in &self.effects.puts {
            if record.tenant != self.tenant || !writable(record) {
                return Err(CommitError::IdTaken(record.id));
            }
        }
        let mut batch = HashMap::new();
        for (digest, key) in self.imported() {
            let free = holder(&digest).is_none_or(|holder| holder == key);
            if !free || batch.insert(digest, key).is_some_and(|other| other != key) {
                return Err(CommitError::DigestTaken);
            }
        }
        Ok(())
    }

    /// Returns the head of the store after the commit was applied at `revision`.
    #[must_use]
    pub const fn cursor(&self, epoch: Epoch, revision: Revision) -> Cursor {
        let tag = self.tag;
        Cursor {
            epoch,
            revision,
            tag,
        }
    }

    /// Returns every imported digest, or mark of a digest, that the commit writes, each with its key.
    pub fn imported(&self) -> impl Iterator<Item = (Digest, KeyId)> + '_ {
        let digest = |record: &KeyRecord| Some((*record.credential.imported()?, record.id));
        let of_puts = self.effects.puts.iter().filter_map(digest);
        of_puts.chain(self.effects.digests.iter().copied())
    }

    /// Returns the newest instant of the tenant after this commit, if the newest instant until then was
    /// `before`. Only a commit that repairs the tenant's time moves that instant back.
    #[must_use]
    pub fn newest_after(&self, before: Option<Timestamp>) -> Timestamp {
        match before {
            Some(before) if !repairs_time(&self.effects.audit) => before.max(self.decided_at),
            _ => self.decided_at,
        }
    }

    /// Returns the rows that the commit writes, tombstones included.
    pub fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        let Effects {
            puts,
            removes,
            owners,
            tenant,
            digests: _,
            audit: _,
        } = &self.effects;
        let removed = |key: &KeyId| Row::Removed {
            key: *key,
            tenant: self.tenant.clone(),
        };
        (tenant.iter().cloned().map(Row::Tenant))
            .chain(owners.iter().cloned().map(Row::Owner))
            .chain(
                puts.iter()
                    .cloned()
                    .map(|record| Row::Key(Box::new(record))),
            )
            .chain(removes.iter().map(removed))
    }
}

/// A row with the commit that wrote it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// The revision of that commit.
    pub revision: Revision,
    /// The row as that commit left it.
    pub row: Row,
}

/// The rows that a process knows after a commit of its own.
#[derive(Clone, Debug)]
pub struct Learnt {
    /// The epoch of the store's history.
    pub epoch: Epoch,
    /// The rows that the decision used, then the rows that the commit wrote, each with the commit that
    /// wrote it.
    pub changes: Vec<Change>,
}

/// A page of the feed: one linearizable snapshot.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Changes {
    /// Changed rows by revision, oldest first. A state-based feed has each row only at its newest revision.
    /// A feed of any other kind may repeat the row at earlier revisions.
    pub changes: Vec<Change>,
    /// The position of a follower that has applied these changes.
    pub upto: Cursor,
    /// The head of the store.
    pub head: Cursor,
    /// The time of the store's server at the read. `None` if the store has no server.
    pub server_time: Option<Timestamp>,
}

/// A page of a scan.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ScanPage {
    /// The head of the store before the rows were read.
    pub head: Cursor,
    /// Rows in the order of [`RowKey`].
    pub rows: Vec<Change>,
    /// The row after which the next page starts. `None` on the last page.
    pub next: Option<RowKey>,
}

/// The property that identifies one key.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Locator {
    /// The public id of the key.
    Id(KeyId),
    /// The imported digest of the key.
    Imported(Digest),
}

/// One key's row, with its position in the store's history.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FoundKey {
    /// The row of the key, never of a tenant or owner, with the commit that wrote the row.
    pub change: Change,
    /// The head of the store when the key was read, or an earlier head.
    pub head: Cursor,
}

/// Durable storage for key records. A store holds no policy and reads no clock. A store may retry an
/// operation by itself only if the operation provably rolled back.
///
/// Every method may be called at any time from any number of tasks. A dropped future leaves nothing
/// half done.
#[async_trait]
pub trait KeyStore: fmt::Debug + Send + Sync + 'static {
    /// Reads the part of a tenant that a decision needs. An unknown tenant is empty, at revision zero.
    ///
    /// - The view's revision is read no later than its records, and reflects every commit that
    ///   returned before this call began.
    /// - The view has the store's epoch, and for each row the revision of the commit that wrote it.
    /// - `select` names the rows to load; see [`LoadRequest`]. A store may return more, never less. Revoking
    ///   one key of a tenant with a million must not cost a million reads.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`.
    async fn load(&self, tenant: &TenantId, select: &LoadRequest)
    -> Result<TenantView, StoreError>;

    /// Reads one key by its public id or its imported digest. The result is as fresh as that of
    /// [`load`](Self::load). A removed key is returned as its tombstone, while the feed keeps the tombstone.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`.
    async fn find(&self, locator: &Locator) -> Result<Option<FoundKey>, StoreError>;

    /// Applies a batch if the tenant is at `commit.expected`, and every row in `commit.guards` at the
    /// revision of its guard. If `commit.epoch` names a history, the store must have that history: a
    /// decision based on a file that was replaced afterwards is a conflict.
    ///
    /// - Guards are checked under the lock that orders commits. Every commit that returned before this call
    ///   began happens-before the check, and no commit changes a guarded row between the check and this
    ///   commit.
    /// - All or nothing, even if the future is dropped; audit entries are part of the batch.
    /// - Ids and imported digests are unique across tenants, removed keys included. A tenant never
    ///   overwrites another tenant's record, and a removed record never returns. Removing a key that was
    ///   never stored leaves a tombstone.
    /// - The new revision exceeds all earlier ones in commit order: after any reader has seen `n`, nothing
    ///   at or below `n` may appear. A sequence number drawn before the commit breaks this.
    /// - On return the batch is as durable as the store documents.
    ///
    /// # Errors
    ///
    /// [`CommitError`]. After `Indeterminate` the batch may or may not have been written. After any other
    /// error nothing was written.
    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError>;

    /// Reads about `limit` changes after `after`, oldest first.
    ///
    /// - A revision's changes are never split across pages. No change up to `upto` is missing.
    /// - After an empty page the follower has applied every commit that returned before this call began.
    /// - The head and the rows are from one linearizable snapshot. The feed may be state-based. A state-based
    ///   feed has the newest row of each key, tombstones included.
    ///
    /// # Errors
    ///
    /// [`ChangesError::Compacted`] if the history after the cursor is gone, if the cursor is ahead of the
    /// head, or if the cursor belongs to another history. Otherwise a [`StoreError`]; never `Indeterminate`.
    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError>;

    /// Reads all rows in the order of [`RowKey`], about `limit` per page, for a follower that starts. `head`
    /// is read before the rows. Pages need not share a snapshot: followers replay changes from the first
    /// page's head. Removed keys may be left out.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`.
    async fn scan(
        &self,
        after: Option<RowKey>,
        limit: NonZeroUsize,
    ) -> Result<ScanPage, StoreError>;

    /// Hands all rows to `take` in pages of about `limit` rows, for a follower that starts. A remote store
    /// streams them in one request. The default calls [`scan`](Self::scan) for each page.
    ///
    /// - Rows come in any order, each once. A page's `next` has no meaning.
    /// - There is at least one page. The head of the first page is read before any row, and no later page
    ///   has an older head. Followers replay changes from the first page's head. Removed keys may be left
    ///   out.
    /// - The first error of `take` ends the call and is returned.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`. The caller must discard the pages that `take` got before.
    async fn scan_all(&self, limit: NonZeroUsize, take: TakePage<'_>) -> Result<(), StoreError> {
        scan_by_pages(self, limit, take).await
    }

    /// Lists keys for people, filtered, sorted and paged; see [`KeyQuery`].
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`.
    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError>;

    /// Lists audit entries, filtered and paged, oldest first; see [`AuditQuery`].
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`.
    async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError>;

    /// Resolves when the head may have passed `after`: a hint, possibly spurious. The default never
    /// resolves. A missed hint costs latency, not correctness, since followers also poll.
    ///
    /// # Errors
    ///
    /// [`StoreError`]. After an error the follower polls.
    async fn wait_past(&self, after: Cursor) -> Result<(), StoreError> {
        let _ = after;
        std::future::pending().await
    }

    /// Reads [`changes`](Self::changes) synchronously, if the store is in this process and needs no I/O and
    /// no more than a short lock. A verifier calls this method at the moment of use to confirm that the
    /// verifier is current. The default returns `None`.
    fn changes_now(
        &self,
        after: Cursor,
        limit: NonZeroUsize,
    ) -> Option<Result<Changes, ChangesError>> {
        let _ = (after, limit);
        None
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<S: KeyStore + ?Sized> KeyStore for Arc<S> {
    async fn load(
        &self,
        tenant: &TenantId,
        select: &LoadRequest,
    ) -> Result<TenantView, StoreError> {
        (**self).load(tenant, select).await
    }

    async fn find(&self, locator: &Locator) -> Result<Option<FoundKey>, StoreError> {
        (**self).find(locator).await
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        (**self).commit(commit).await
    }

    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError> {
        (**self).changes(after, limit).await
    }

    async fn scan(
        &self,
        after: Option<RowKey>,
        limit: NonZeroUsize,
    ) -> Result<ScanPage, StoreError> {
        (**self).scan(after, limit).await
    }

    async fn scan_all(&self, limit: NonZeroUsize, take: TakePage<'_>) -> Result<(), StoreError> {
        (**self).scan_all(limit, take).await
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        (**self).list(query).await
    }

    async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError> {
        (**self).audit(query).await
    }

    async fn wait_past(&self, after: Cursor) -> Result<(), StoreError> {
        (**self).wait_past(after).await
    }

    fn changes_now(
        &self,
        after: Cursor,
        limit: NonZeroUsize,
    ) -> Option<Result<Changes, ChangesError>> {
        (**self).changes_now(after, limit)
    }
}
