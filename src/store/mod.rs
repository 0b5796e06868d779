//! The store contract: durable storage for key records, with the tenant as the unit of atomicity.
//!
//! A store holds no policy, reads no clock and draws no randomness. To write one, implement
//! [`KeyStore`] and run the suite of the crate `keyward-conformance` against it. [`NodeRegistry`]
//! is apart from it: where processes that share a store tell each other what they have applied.

mod error;
mod memory;
mod nodes;
mod pages;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod rows;
#[cfg(feature = "sqlite")]
pub mod sqlite;
pub mod transfer;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod upkeep;

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use async_trait::async_trait;

pub use self::error::{ChangesError, CommitError, StoreError, StoreErrorKind};
pub use self::memory::MemoryStore;
pub use self::nodes::{NodeId, NodeRegistry, NodeReport};
pub use self::pages::{TakePage, scan_by_pages};
#[cfg(feature = "postgres")]
pub use self::postgres::PostgresStore;
#[cfg(feature = "sqlite")]
pub use self::sqlite::SqliteStore;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use self::upkeep::{IntegrityReport, Stats};
use crate::core::id::KeyId;
use crate::core::owner::{OwnerRecord, TenantRecord};
pub use crate::core::query::{
    AuditPage, AuditPosition, AuditQuery, AuditRow, KeyPage, KeyPosition, KeyQuery, KeySort,
};
use crate::core::record::KeyRecord;
use crate::core::secret::Digest;
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;
use crate::core::view::repairs_time;
pub use crate::core::view::{Effects, Epoch, Guard, Revision, RowKey, Select, TenantView};
pub use crate::core::wire::DecodeError;

/// A random mark of one commit, so that two histories are told apart even at the same revision.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CommitTag(pub u128);

/// A place in a store's history.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Cursor {
    /// Which history.
    pub epoch: Epoch,
    /// The last commit in it.
    pub revision: Revision,
    /// That commit's own mark; zero before the first commit.
    pub tag: CommitTag,
}

/// A change of one tenant, to be applied as a whole or not at all.
///
/// Who commits sees to it that records, owners, the tenant's row and audit entries are the tenant's
/// own, that removed keys are its own, and that no row is named twice.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Commit {
    /// Whose.
    pub tenant: TenantId,
    /// The history in which the tenant was loaded; `None` if that does not matter.
    pub epoch: Option<Epoch>,
    /// The revision at which the tenant was loaded.
    pub expected: Revision,
    /// Rows of other tenants that the decision rested on: the key that acted, its owner's rows, the
    /// tenants above.
    pub guards: Vec<Guard>,
    /// A random mark of this commit.
    pub tag: CommitTag,
    /// The instant for which it was decided.
    pub decided_at: Timestamp,
    /// What changes.
    pub effects: Effects,
}

/// One row, as the feed and the scan tell it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Row {
    /// A tenant.
    Tenant(TenantRecord),
    /// An owner in a tenant.
    Owner(OwnerRecord),
    /// A key.
    Key(Box<KeyRecord>),
    /// A key that was removed: its tombstone.
    Removed {
        /// Which key.
        key: KeyId,
        /// Whose it was.
        tenant: TenantId,
    },
    /// A row whose stored bytes failed their checksum: refuse the key, or every key that the owner
    /// or tenant has a say in.
    Corrupt(RowKey),
}

impl Row {
    /// The row's name.
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

    /// Returns the tenant whose row it is and the instant for which it was written, if it holds one.
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
    /// Checks what must hold before the commit is applied, for stores that can tell at a time when
    /// nothing else is written: the store's history is `epoch`, the tenant is `at` the expected revision, every guarded row stands at
    /// its revision (`row_at` returns the commit that wrote a row, zero for a row that is not there),
    /// every record's id is free or already the tenant's own key (`writable`), and every imported digest
    /// is free or already the record's own (`holder` returns the key that has it, or had it).
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

    /// Where a store stands that applied the commit at `revision`.
    #[must_use]
    pub const fn cursor(&self, epoch: Epoch, revision: Revision) -> Cursor {
        let tag = self.tag;
        Cursor {
            epoch,
            revision,
            tag,
        }
    }

    /// The imported digests that the commit writes, and marks of them, with the keys that have them.
    pub fn imported(&self) -> impl Iterator<Item = (Digest, KeyId)> + '_ {
        let digest = |record: &KeyRecord| Some((*record.credential.imported()?, record.id));
        let of_puts = self.effects.puts.iter().filter_map(digest);
        of_puts.chain(self.effects.digests.iter().copied())
    }

    /// Returns the newest instant of a tenant after this commit, of which it was `before`. It goes back in
    /// a commit alone that repairs the tenant's time.
    #[must_use]
    pub fn newest_after(&self, before: Option<Timestamp>) -> Timestamp {
        match before {
            Some(before) if !repairs_time(&self.effects.audit) => before.max(self.decided_at),
            _ => self.decided_at,
        }
    }

    /// The rows that the commit writes, tombstones included.
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
    /// The commit.
    pub revision: Revision,
    /// The row as that commit left it.
    pub row: Row,
}

/// The rows that a process learns by a commit of its own.
#[derive(Clone, Debug)]
pub struct Learnt {
    /// The store's history.
    pub epoch: Epoch,
    /// The rows that the commit was decided on, then those that it wrote, each with the commit that wrote
    /// it.
    pub changes: Vec<Change>,
}

/// A page of the feed: one linearizable snapshot.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Changes {
    /// Changed rows by revision, oldest first. In a state-based feed a row stands at its newest
    /// revision only; in any other it may stand at earlier ones as well.
    pub changes: Vec<Change>,
    /// Where a follower stands that has applied them.
    pub upto: Cursor,
    /// Where the store stands.
    pub head: Cursor,
    /// The time by the store's server when this was read; `None` where there is none.
    pub server_time: Option<Timestamp>,
}

/// A page of a scan.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ScanPage {
    /// Where the store stood before the rows were read.
    pub head: Cursor,
    /// Rows in the order of [`RowKey`].
    pub rows: Vec<Change>,
    /// The row after which the next page goes on; `None` if this is the last one.
    pub next: Option<RowKey>,
}

/// By what one key is found.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Locator {
    /// Its public id.
    Id(KeyId),
    /// Its imported digest.
    Imported(Digest),
}

/// One key's row, with where it stands in the store's history.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Versioned {
    /// The row, and the commit that wrote it. Never a tenant's or an owner's.
    pub change: Change,
    /// Where the store stood when it was read, or before.
    pub head: Cursor,
}

/// Durable storage for key records. Stores hold no policy and read no clock; they may retry by
/// themselves only what provably rolled back.
///
/// Every method may be called at any time from any number of tasks. A future that is dropped leaves
/// nothing half done.
#[async_trait]
pub trait KeyStore: fmt::Debug + Send + Sync + 'static {
    /// Reads the part of a tenant that a decision needs. An unknown tenant is empty at revision
    /// zero.
    ///
    /// - The view's revision is read no later than its records, and reflects every commit that
    ///   returned before this call began.
    /// - The view holds, for each of its rows, the revision of the commit that wrote it, and the store's
    ///   epoch.
    /// - `select` narrows what is loaded; see [`Select`]. A store may return more than asked, never
    ///   less. A tenant with a million keys must not cost a million reads to revoke one.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`.
    async fn load(&self, tenant: &TenantId, select: &Select) -> Result<TenantView, StoreError>;

    /// Reads one key by its public id or its imported digest, as fresh as [`load`](Self::load). A
    /// removed key is found as its tombstone, for as long as the feed keeps it.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`.
    async fn find(&self, locator: &Locator) -> Result<Option<Versioned>, StoreError>;

    /// Applies a batch if the tenant is still at `commit.expected`, and every row that `commit.guards`
    /// names still stands at the revision named beside it. If `commit.epoch` names a history it has to be
    /// the store's: a decision on a file that was replaced by another since is a conflict.
    ///
    /// - Guards are checked after the lock is taken that orders commits: no commit that returned before
    ///   this call began is missed, and none changes a guarded row between the check and this commit.
    /// - All or nothing, even if the future is dropped; audit entries are part of the batch.
    /// - Ids and imported digests are unique across tenants, removed keys included; a record is
    ///   never overwritten by another tenant's, and a removed one never comes back. A key may be
    ///   removed that was never stored: its tombstone is all that is left of it.
    /// - The new revision exceeds all earlier ones in commit order: once any reader has seen `n`,
    ///   nothing at or below `n` may still appear. A sequence drawn before commit breaks this.
    /// - On return the batch is as durable as the store documents.
    ///
    /// # Errors
    ///
    /// [`CommitError`]. After `Indeterminate` the batch may or may not be there; after anything
    /// else, nothing was written.
    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError>;

    /// Reads changes after `after`, oldest first; `limit` is a target.
    ///
    /// - A revision's changes are never split across pages; nothing up to `upto` is missing.
    /// - An empty page means caught up with every commit that returned before this call began.
    /// - One linearizable snapshot: head and rows belong together. The feed may be state-based (the
    ///   newest row per key, tombstones included): nothing needs replaying.
    ///
    /// # Errors
    ///
    /// [`ChangesError::Compacted`] if that history is gone, or the cursor is ahead of the head or
    /// of another history. Otherwise a [`StoreError`]; never `Indeterminate`.
    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError>;

    /// Reads all rows in the order of [`RowKey`], for a follower that (re)starts; `limit` is a
    /// target. `head` is read before the rows; pages need not share a snapshot, followers replay
    /// changes from the first page's head. Removed keys may be left out.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`.
    async fn scan(
        &self,
        after: Option<RowKey>,
        limit: NonZeroUsize,
    ) -> Result<ScanPage, StoreError>;

    /// Hands all rows to `take`, a page at a time, for a follower that (re)starts; `limit` is a target.
    /// What a store that is far away does in one go. The default asks for one page of
    /// [`scan`](Self::scan) after the other.
    ///
    /// - Rows come in any order, each once; a page's `next` says nothing here.
    /// - There is at least one page. The head of the first is read before any row, that of any other
    ///   no earlier: followers replay changes from the first page's head. Removed keys may be left out.
    /// - It ends with the first error of `take`, and tells it.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`. What was handed out before is of no use then.
    async fn scan_all(&self, limit: NonZeroUsize, take: TakePage<'_>) -> Result<(), StoreError> {
        scan_by_pages(self, limit, take).await
    }

    /// Exact, filtered, sorted, paged listing for people; see [`KeyQuery`].
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`.
    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError>;

    /// Audit entries, filtered and paged, oldest first; see [`AuditQuery`].
    ///
    /// # Errors
    ///
    /// [`StoreError`]; never `Indeterminate`.
    async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, StoreError>;

    /// Resolves when the head may have passed `after`: a hint, possibly spurious. The default never
    /// resolves, which costs latency, not correctness, because followers also poll.
    ///
    /// # Errors
    ///
    /// [`StoreError`], after which the follower polls.
    async fn wait_past(&self, after: Cursor) -> Result<(), StoreError> {
        let _ = after;
        std::future::pending().await
    }

    /// Answers [`changes`](Self::changes) at once, if the store lives in this process and can do
    /// so without I/O and without waiting for anything but a short lock. A verifier uses it to
    /// confirm at the moment of use that it is up to date. The default cannot.
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
    async fn load(&self, tenant: &TenantId, select: &Select) -> Result<TenantView, StoreError> {
        (**self).load(tenant, select).await
    }

    async fn find(&self, locator: &Locator) -> Result<Option<Versioned>, StoreError> {
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
