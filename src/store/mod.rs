//! The store contract: durable storage for key records, with the tenant as the unit of atomicity.
//!
//! A store applies no policy, reads no clock and draws no randomness. To write a store, implement
//! [`KeyStore`] and run the suite of the crate `keyward-conformance`.
//!
//! [`NodeRegistry`] is a separate trait, in which a registry stores the reports of nodes. Each process that
//! shares a store reports the revision up to which it has applied changes.

mod documents;
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
pub mod usage;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

pub(crate) use self::documents::SalvageMark;
pub use self::documents::{
    Document, DocumentError, DocumentGuard, DocumentName, DocumentRead, DocumentWrite, Documents,
};
pub use self::error::{ChangesError, CommitError, StoreError, StoreErrorKind};
pub use self::memory::MemoryStore;
#[cfg(all(feature = "testing", any(feature = "sqlite", feature = "postgres")))]
use self::nodes::TABLES_VERSION;
pub use self::nodes::{NodeId, NodeProcess, NodeRegistry, NodeReport, tables_version};
pub use self::pages::{TakePage, scan_by_pages, tenants_of_rows};
#[cfg(feature = "postgres")]
pub use self::postgres::PostgresStore;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub use self::sql::{IntegrityReport, Stats};
#[cfg(feature = "sqlite")]
pub use self::sqlite::SqliteStore;
use crate::core::audit::AuditEntry;
use crate::core::id::KeyId;
pub use crate::core::owner::{OwnerRecord, TenantRecord, TimeRepair};
pub use crate::core::position::PositionError;
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

/// A random number that identifies one commit. Two histories of a store can have a commit at the same
/// revision. The tag distinguishes these two commits.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CommitTag(pub u128);

/// A position in a store's history.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Cursor {
    /// The epoch of the history.
    pub epoch: Epoch,
    /// The revision of the last commit that a follower at this position has applied.
    pub revision: Revision,
    /// The tag of the commit at `revision`. Zero before the first commit.
    pub tag: CommitTag,
}

/// A change of one tenant, which the store applies as a whole or not at all.
///
/// The caller guarantees that all records, owners, audit entries and removed keys belong to this tenant. The
/// caller also guarantees that no row occurs twice.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Commit {
    /// The tenant that changes.
    pub tenant: TenantId,
    /// The epoch that the store must still have, which is its epoch when the tenant was loaded. With `None`,
    /// the store applies the commit in any epoch.
    pub epoch: Option<Epoch>,
    /// The revision that the tenant must still have, which is its revision when the tenant was loaded.
    pub expected: Revision,
    /// The rows of other tenants that the decision used, each with the revision that the row must still have.
    /// These are the acting key, the row of the acting key's owner in each tenant, and the ancestor tenants.
    pub guards: Vec<Guard>,
    /// A random tag of this commit.
    pub tag: CommitTag,
    /// The time at which the change was decided.
    pub decided_at: Timestamp,
    /// The rows to write and remove, and the audit entries.
    pub effects: Effects,
}

/// A row of the feed or of a scan.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Row {
    /// A tenant.
    Tenant(TenantRecord),
    /// An owner of keys in a tenant.
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
    /// A row whose stored bytes failed their checksum. If it is a key's row, verifiers must refuse the key.
    /// If it is the row of an owner or a tenant, verifiers must refuse all keys of that owner or tenant.
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

    /// Returns the tenant of the row and the time of the row's last update. `None` for a tombstone or a
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
    /// Checks the conditions of this commit against the state of the store. The store must not apply another
    /// commit during this call.
    ///
    /// - If the commit names an epoch, it must equal `epoch`. The tenant's expected revision must equal `at`.
    /// - Every guarded row must have the revision of its guard. The closure `row_at` returns the revision of
    ///   a row, or zero if the row does not exist.
    /// - Every record must belong to this tenant, and the closure `writable` must return `true` for it.
    ///   `writable` returns `true` if the record's id is free, or belongs to an existing key of this tenant.
    /// - Every imported digest must be free, or belong to the record itself. The closure `holder` returns the
    ///   key that has or had a digest.
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
        let is_current = |guard: &Guard| row_at(&guard.row) == guard.revision;
        let same_history = self.epoch.is_none_or(|own| own == epoch);
        if !same_history || at != self.expected || !self.guards.iter().all(is_current) {
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

    /// Returns the position of the store after this commit, if the store applies it at `revision`.
    #[must_use]
    pub const fn cursor(&self, epoch: Epoch, revision: Revision) -> Cursor {
        let tag = self.tag;
        Cursor {
            epoch,
            revision,
            tag,
        }
    }

    /// Returns the imported digests of the keys that this commit writes or claims, each with its key. After
    /// the commit, no other key can have one of these digests.
    pub fn imported(&self) -> impl Iterator<Item = (Digest, KeyId)> + '_ {
        let digest = |record: &KeyRecord| Some((*record.credential.imported()?, record.id));
        let of_puts = self.effects.puts.iter().filter_map(digest);
        of_puts.chain(self.effects.digests.iter().copied())
    }

    /// Returns the tenant's latest decision time after this commit. `before` is the latest decision time
    /// before the commit.
    ///
    /// The result is never earlier than `before`, unless the commit repairs the tenant's time.
    #[must_use]
    pub fn newest_after(&self, before: Option<Timestamp>) -> Timestamp {
        match before {
            Some(before) if !repairs_time(&self.effects.audit) => before.max(self.decided_at),
            _ => self.decided_at,
        }
    }

    /// Returns whether every change of the commit takes authority away and grants none, such as a revocation. A
    /// store with little free space should keep this space for such commits.
    #[must_use]
    pub fn only_narrows(&self) -> bool {
        let audit = &self.effects.audit;
        !audit.is_empty() && audit.iter().all(|entry| entry.action.only_narrows())
    }

    /// Returns whether the commit removes `entry` from the audit trail.
    #[must_use]
    pub fn prunes(&self, entry: &AuditEntry) -> bool {
        entry.tenant == self.tenant && Some(entry.sequence) <= self.effects.prune
    }

    /// Returns the rows that the commit writes, including tombstones.
    pub fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        let Effects {
            puts,
            removes,
            owners,
            tenant,
            digests: _,
            audit: _,
            prune: _,
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

/// A row with the revision of the commit that wrote the row.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// The revision of the commit that wrote the row.
    pub revision: Revision,
    /// The row after that commit.
    pub row: Row,
}

/// The rows that a process knows from its own commit, so that it need not read them from the feed.
#[derive(Clone, Debug)]
pub struct Learnt {
    /// The epoch of the store's history.
    pub epoch: Epoch,
    /// The position of the store after the process's own commit. `None` if the rows were only read.
    pub committed: Option<Cursor>,
    /// The rows that the decision used, then the rows that the commit wrote.
    pub changes: Vec<Change>,
}

/// A page of the feed, read from one linearizable snapshot.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Changes {
    /// The changed rows in the order of their revisions, oldest first.
    ///
    /// If the feed is state-based, it contains each row only once, at its newest revision. Any other feed may
    /// also contain earlier versions of a row.
    pub changes: Vec<Change>,
    /// The position that a follower has reached once it has applied these changes.
    pub upto: Cursor,
    /// The head of the store when the page was read.
    pub head: Cursor,
    /// The time of the database server's clock when the page was read. `None` if the store has no server.
    pub server_time: Option<Timestamp>,
}

/// A page of a scan.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ScanPage {
    /// The head of the store, read before the rows.
    pub head: Cursor,
    /// Rows in the order of [`RowKey`].
    pub rows: Vec<Change>,
    /// The row after which the next page starts: pass it to [`KeyStore::scan`] as `after`. `None` on the last
    /// page.
    pub next: Option<RowKey>,
}

/// A property by which a store finds one key.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Locator {
    /// The public id of the key.
    Id(KeyId),
    /// The imported digest of the key.
    Imported(Digest),
}

/// The row of a key that [`KeyStore::find`] found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FoundKey {
    /// The row of the key: a record, a tombstone or a corrupt row.
    pub change: Change,
    /// The head of the store, from the same snapshot as the row, or read before the row. It includes every
    /// commit that returned before the call began, so a lower head reveals a store that went back in time.
    pub head: Cursor,
}

/// Durable storage for key records. A store applies no policy and reads no clock.
///
/// - Every method can be called concurrently from any number of tasks.
/// - If the caller drops a future, its operation takes effect completely or not at all.
/// - A store may retry an operation only if the earlier attempt was certainly rolled back. Otherwise it could
///   apply the operation twice.
#[async_trait]
pub trait KeyStore: fmt::Debug + Send + Sync + 'static {
    /// Reads the part of a tenant that a decision needs. The view of an unknown tenant is empty, at revision
    /// zero.
    ///
    /// - The store reads the view's revision before its records, or in the same snapshot. The view includes
    ///   every commit that returned before this call began.
    /// - The view contains the store's epoch, and the revision of each row.
    /// - `select` names the rows to load; see [`LoadRequest`]. A store may return more rows, but not fewer. A
    ///   store must not read all keys of a tenant if `select` names only one.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`.
    async fn load(&self, tenant: &TenantId, select: &LoadRequest)
    -> Result<TenantView, StoreError>;

    /// Reads one key by its public id or its imported digest.
    ///
    /// The result includes every commit that returned before this call began. A removed key is returned as a
    /// tombstone, until the feed drops the tombstone.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`.
    async fn find(&self, locator: &Locator) -> Result<Option<FoundKey>, StoreError>;

    /// Applies a commit if the conditions of [`Commit::check`] hold, and returns the new revision.
    ///
    /// - The tenant must be at `commit.expected`, and every guarded row at the revision of its guard. If
    ///   `commit.epoch` is set, the store must be in that epoch, because a restored backup may have replaced
    ///   the history.
    /// - The store checks the conditions under the lock that orders commits. Every commit that returned
    ///   before this call happens-before the check. No commit changes a guarded row between the check and
    ///   this commit.
    /// - A commit is applied completely or not at all, including its audit entries, even if the future is
    ///   dropped.
    /// - Ids and imported digests are unique across all tenants, including those of removed keys. A tenant
    ///   never overwrites another tenant's record, and a removed record never returns.
    /// - If a commit removes a key that was never stored, the key's id is taken, and the store keeps a
    ///   tombstone.
    /// - The audit entries that [`Commit::prunes`] selects are removed. The tenant's audit head stays.
    /// - Revisions increase in commit order. Once a reader has seen revision `n`, no new row may appear at or
    ///   below `n`. A sequence number that is drawn before the commit breaks this rule.
    /// - When this method returns, the commit is as durable as the store documents.
    ///
    /// # Errors
    ///
    /// [`CommitError`]. After `Indeterminate` the commit may or may not have been applied. After any other
    /// error nothing was written.
    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError>;

    /// Reads about `limit` changes after the position `after`, oldest first.
    ///
    /// - A page contains all changes of a revision or none, and every change up to `upto`.
    /// - An empty page means that the follower has applied every commit that returned before this call began.
    /// - The head and the rows are read from one linearizable snapshot.
    /// - The feed may be state-based: it then contains only the newest version of each row, including
    ///   tombstones.
    ///
    /// # Errors
    ///
    /// - [`ChangesError::Compacted`] if `after` belongs to another epoch, or if the history after `after` was
    ///   dropped.
    /// - Otherwise [`ChangesError::Diverged`] if the store has no commit with the revision and the tag of `after`:
    ///   `after` is ahead of the head, or its revision has another tag. Someone copied a backup back, or a
    ///   failover lost commits. A store that returned `Compacted` or a page would let followers accept keys whose
    ///   revocations are lost.
    /// - Otherwise [`ChangesError::Store`]; never `Indeterminate`.
    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError>;

    /// Reads a page of about `limit` rows in the order of [`RowKey`], starting after the row `after`. A
    /// follower reads all pages when it starts.
    ///
    /// - The store reads `head` before the rows, or in the same snapshot.
    /// - Pages need not share a snapshot, because followers then apply the changes since the first page's
    ///   head.
    /// - Tombstones may be left out.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`.
    async fn scan(
        &self,
        after: Option<RowKey>,
        limit: NonZeroUsize,
    ) -> Result<ScanPage, StoreError>;

    /// Passes all rows to `take` in pages of about `limit` rows. A follower calls this method when it starts.
    ///
    /// The default calls [`scan`](Self::scan) for each page. A remote store can stream all rows in one
    /// request.
    ///
    /// - Each row is passed once, in any order. `ScanPage::next` has no meaning here.
    /// - `take` gets at least one page. The head of the first page is read before any row, and no later page
    ///   has an older head.
    /// - Followers apply the changes since the first page's head. Tombstones may be left out.
    /// - The first error of `take` ends the call and is returned.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`. After an error the caller must discard all pages.
    async fn scan_all(&self, limit: NonZeroUsize, take: TakePage<'_>) -> Result<(), StoreError> {
        scan_by_pages(self, limit, take).await
    }

    /// Lists keys with filters, sorting and paging; see [`KeyQuery`].
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`.
    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError>;

    /// Lists audit entries with filters and paging, oldest first; see [`AuditQuery`].
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`.
    async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError>;

    /// Returns every tenant that ever had a commit. Includes closed tenants, and those whose rows and audit entries
    /// were all removed or lost.
    ///
    /// The default calls [`tenants_of_rows`], which reads the whole store, and misses tenants without rows and
    /// entries.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`.
    async fn tenants(&self) -> Result<BTreeSet<TenantId>, StoreError> {
        tenants_of_rows(self).await
    }

    /// Returns the epoch of the store that was backed up, if this is a backup, or a restored store that is not recovered
    /// yet. [`Epoch::UNKNOWN`] if damage hides that epoch. [`recover`](crate::Keyward::recover) replays no changes of
    /// a store with another epoch.
    ///
    /// The default returns `None`, which accepts every store to replay from.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`.
    async fn restored_from(&self) -> Result<Option<Epoch>, StoreError> {
        Ok(None)
    }

    /// Checks the whole store. Returns a sign that rows or audit entries of it are damaged or lost, for example the
    /// first fault of an integrity check. `None` if there is none. [`recover`](crate::Keyward::recover) trusts the end
    /// of no trail in a store with such a sign.
    ///
    /// The default returns `None`.
    ///
    /// # Errors
    ///
    /// [`StoreError`], if the store cannot be checked.
    async fn known_loss(&self) -> Result<Option<String>, StoreError> {
        Ok(None)
    }

    /// Resolves when the head of the store may have moved past `after`. The default never resolves.
    ///
    /// The result is only a hint: this method may resolve although nothing has changed. If it does not
    /// resolve although the head moved, followers only lag, because they also poll.
    ///
    /// # Errors
    ///
    /// [`StoreError`]. The follower then relies on polling.
    async fn wait_past(&self, after: Cursor) -> Result<(), StoreError> {
        let _ = after;
        std::future::pending().await
    }

    /// Reads [`changes`](Self::changes) synchronously. The default returns `None`, which means that the store
    /// does not support synchronous reads.
    ///
    /// Implement this method only if the store is in this process and needs no I/O, only a short lock. During
    /// each verification, the verifier calls this method to apply all changes first.
    fn changes_now(
        &self,
        after: Cursor,
        limit: NonZeroUsize,
    ) -> Option<Result<Changes, ChangesError>> {
        let _ = (after, limit);
        None
    }

    /// Returns the documents of the store, which hold the settings that all its processes share. The default
    /// returns `None`: nothing is remembered, so nothing notices a process with another policy or pepper.
    fn documents(&self) -> Option<&dyn Documents> {
        None
    }

    /// Prepares the store for the end of the process, for example by writing a log back into its file. The
    /// default does nothing. Other clones and other processes may go on using the store.
    ///
    /// # Errors
    ///
    /// [`StoreError`]. Every commit that returned is still durable.
    async fn close(&self) -> Result<(), StoreError> {
        Ok(())
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

    async fn tenants(&self) -> Result<BTreeSet<TenantId>, StoreError> {
        (**self).tenants().await
    }

    async fn restored_from(&self) -> Result<Option<Epoch>, StoreError> {
        (**self).restored_from().await
    }

    async fn known_loss(&self) -> Result<Option<String>, StoreError> {
        (**self).known_loss().await
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

    fn documents(&self) -> Option<&dyn Documents> {
        (**self).documents()
    }

    async fn close(&self) -> Result<(), StoreError> {
        (**self).close().await
    }
}
