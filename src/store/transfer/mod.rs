//! Copies a whole store into another one, for example an SQLite file into a PostgreSQL database, or back. For
//! operators, while no service uses either store.
//!
//! A copy is one transaction into an empty target. The copy is compared with its source before the
//! transaction commits. If the copy fails or its process is killed, the target stays empty, and the operator
//! can start the copy again.
//!
//! A copy contains:
//!
//! - every row with its revision and its number within the commit, tombstones included
//! - the tag of every commit
//! - the audit trail with its hash chain
//! - imported digests, and the ids of removed keys, which no new key may use
//! - documents: the policies in use, the check values of peppers, and leases
//!
//! A copy contains no reports of nodes, because these reports are not part of the history.
//!
//! The copy has a new epoch, because both stores could be written to afterwards. Followers start over, and
//! nodes of the copy do not confirm a receipt of the source. The audit trail is unchanged:
//! [`verify_audit`](crate::Keyward::verify_audit) accepts trail heads that were recorded before the copy.
//!
//! # Examples
//!
//! ```
//! # #[cfg(feature = "sqlite")]
//! # pollster::block_on(async {
//! # let folder = tempfile::tempdir()?;
//! # let (old, new) = (folder.path().join("keys.db"), folder.path().join("new.db"));
//! use keyward::store::{SqliteStore, transfer};
//!
//! let from = SqliteStore::open(&old).await?;
//! let to = SqliteStore::open(&new).await?;
//! transfer::copy(&from, &to, transfer::PAGE, |progress| println!("{progress}")).await?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```

mod run;

use std::fmt;
use std::num::NonZeroUsize;
use std::time::Duration;

use async_trait::async_trait;

pub use self::run::copy;
use super::{AuditRow, Change, CommitTag, Cursor, Document, Epoch, Revision, StoreError};
use crate::core::audit::AuditHead;
use crate::core::id::KeyId;
use crate::core::secret::Digest;
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;

/// The usual page size: 2,000 items, about a megabyte.
pub const PAGE: NonZeroUsize = NonZeroUsize::new(2000).expect("2000 is not zero");

/// The parts of a store, in the order in which they are copied.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Part {
    /// The tags of the store's commits.
    Commits,
    /// The heads of the store's tenants.
    Tenants,
    /// Imported digests.
    Digests,
    /// Ids of removed keys whose tombstones were dropped.
    Gone,
    /// The audit trail.
    Audit,
    /// Rows of tenants, owners and keys, tombstones included.
    Rows,
    /// Documents that the processes share.
    Documents,
}

impl Part {
    /// All parts, in the order in which they are copied.
    pub const ALL: [Self; 7] = [
        Self::Commits,
        Self::Tenants,
        Self::Digests,
        Self::Gone,
        Self::Audit,
        Self::Rows,
        Self::Documents,
    ];
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Commits => "commits",
            Self::Tenants => "tenants",
            Self::Digests => "imported digests",
            Self::Gone => "forgotten ids",
            Self::Audit => "audit entries",
            Self::Rows => "rows",
            Self::Documents => "documents",
        })
    }
}

/// One item of a [`Part`]. Items of a part are ordered by their first field (entries and rows by their
/// revision), then by `number`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Item {
    /// A commit.
    Commit {
        /// The revision of the commit.
        revision: Revision,
        /// The tag of the commit.
        tag: CommitTag,
    },
    /// The head of a tenant. Ordered by the bytes of its path.
    Tenant {
        /// The tenant.
        tenant: TenantId,
        /// The revision of the tenant's last commit.
        revision: Revision,
        /// The latest instant at which a commit of the tenant was decided.
        decided_at: Timestamp,
        /// The head of the tenant's audit trail.
        audit: AuditHead,
    },
    /// An imported digest.
    Digest {
        /// The digest.
        digest: Digest,
        /// The key that has or had the digest.
        key: KeyId,
    },
    /// The id of a removed key.
    Gone {
        /// The removed key.
        key: KeyId,
    },
    /// An audit entry.
    Audit {
        /// The entry, with the revision of its commit.
        row: AuditRow,
        /// The number of the entry within its commit, from zero.
        number: u32,
    },
    /// The row of a tenant, of an owner or of a key.
    Row {
        /// The row, with the revision of its commit. Never a corrupt row.
        change: Change,
        /// The number of the row within its commit, from zero.
        number: u32,
    },
    /// A document. Ordered by the bytes of its name.
    Document(Document),
}

impl Item {
    /// Returns the part that the item belongs to.
    #[must_use]
    pub const fn part(&self) -> Part {
        match self {
            Self::Commit { .. } => Part::Commits,
            Self::Tenant { .. } => Part::Tenants,
            Self::Digest { .. } => Part::Digests,
            Self::Gone { .. } => Part::Gone,
            Self::Audit { .. } => Part::Audit,
            Self::Row { .. } => Part::Rows,
            Self::Document(_) => Part::Documents,
        }
    }
}

/// Displays the kind and the name of the item, without its content.
impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Commit { revision, .. } => write!(f, "commit {revision}"),
            Self::Tenant { tenant, .. } => write!(f, "tenant {tenant}"),
            Self::Digest { key, .. } => write!(f, "the imported digest of key {key}"),
            Self::Gone { key } => write!(f, "forgotten key {key}"),
            Self::Audit { row, .. } => {
                let (tenant, sequence) = (&row.entry.tenant, row.entry.sequence);
                write!(f, "audit entry {sequence} of tenant {tenant}")
            }
            Self::Row { change, number } => {
                write!(f, "row {number} of revision {}", change.revision)
            }
            Self::Document(document) => write!(f, "document {}", document.name),
        }
    }
}

/// The number of items of each part.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    by_part: [u64; Part::ALL.len()],
}

impl Counts {
    /// Returns the number of items of a part.
    #[must_use]
    pub const fn of(&self, part: Part) -> u64 {
        self.by_part[part as usize]
    }

    /// Returns these counts with `count` as the number of one part.
    #[must_use]
    pub const fn with(mut self, part: Part, count: u64) -> Self {
        self.by_part[part as usize] = count;
        self
    }
}

/// The state of the source when a copy begins.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Origin {
    /// The head of the source.
    pub head: Cursor,
    /// The floor of the source: tombstones of commits at or below this revision were dropped.
    pub floor: Revision,
    /// The value of [`KeyStore::restored_from`](super::KeyStore::restored_from) of the source, which the copy gets
    /// too.
    pub restored_from: Option<Epoch>,
    /// The longest lease of a node of the source: the time for which a node may accept keys without a new
    /// report.
    pub lease: Duration,
    /// The number of times that documents were written, which changes without a commit.
    pub document_writes: u64,
    /// The number of items of each part.
    pub counts: Counts,
}

impl Origin {
    /// Returns whether `head` and `floor` still equal those of this origin, so that nothing was written
    /// since.
    #[must_use]
    pub fn is_where(&self, head: Cursor, floor: Revision) -> bool {
        self.head == head && self.floor == floor
    }
}

/// A page of items of one part, from one snapshot.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CopyPage {
    /// The head of the store.
    pub head: Cursor,
    /// The floor of the store: tombstones of commits at or below this revision were dropped.
    pub floor: Revision,
    /// The items in order. Empty if no item follows the one where the page starts.
    pub items: Vec<Item>,
}

/// A store that can be the source of a copy.
#[async_trait]
pub trait CopySource: fmt::Debug + Send + Sync {
    /// Returns the head of the store and the number of its items.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn origin(&self) -> Result<Origin, StoreError>;

    /// Reads at most `limit` items of a part, starting after the item `after`.
    ///
    /// # Errors
    ///
    /// [`StoreError`]. Its kind is `Corrupt` if an item is damaged, so that no damage is copied.
    async fn page(
        &self,
        part: Part,
        after: Option<&Item>,
        limit: NonZeroUsize,
    ) -> Result<CopyPage, StoreError>;
}

/// A store that can be the target of a copy.
#[async_trait]
pub trait CopyTarget: fmt::Debug + Send + Sync {
    /// Begins the transaction of a copy of `origin`. Until the transaction ends, no other process can write
    /// to the store, and readers see an empty store.
    ///
    /// # Errors
    ///
    /// [`CopyError`] if the store is not empty, if the store is the source, or if the store fails. Nothing is
    /// changed.
    async fn begin(&self, origin: &Origin) -> Result<Box<dyn CopyTransaction>, CopyError>;
}

/// The open transaction of a copy. It rolls back after any error, when dropped without
/// [`commit`](Self::commit), and when the process is killed.
#[async_trait]
pub trait CopyTransaction: fmt::Debug + Send {
    /// Writes the next items of one part.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn write(&mut self, items: Vec<Item>) -> Result<(), StoreError>;

    /// Reads items back within the transaction, like [`CopySource::page`].
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn written(
        &mut self,
        part: Part,
        after: Option<&Item>,
        limit: NonZeroUsize,
    ) -> Result<Vec<Item>, StoreError>;

    /// Gives the copy of `origin` a new epoch, commits the transaction, and returns the head of the copy.
    ///
    /// # Errors
    ///
    /// [`StoreError`]. If its kind is `Indeterminate`, the target holds either the whole copy or nothing.
    async fn commit(self: Box<Self>, origin: &Origin) -> Result<Cursor, StoreError>;
}

/// A phase of a copy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CopyPhase {
    /// Items are written.
    Copying,
    /// Both sides are read and compared.
    Comparing,
}

/// The progress of a copy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CopyProgress {
    /// The phase.
    pub phase: CopyPhase,
    /// The part that is copied or compared.
    pub part: Part,
    /// The number of items of the part that are done.
    pub done: u64,
    /// The number of all items of the part.
    pub total: u64,
}

impl fmt::Display for CopyProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            part, done, total, ..
        } = self;
        let doing = match self.phase {
            CopyPhase::Copying => "copied",
            CopyPhase::Comparing => "compared",
        };
        write!(f, "{doing} {done} of {total} {part}")
    }
}

/// A finished copy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Copied {
    /// The head of the copy: the revision of the source, with a new epoch.
    pub head: Cursor,
    /// The number of items of each part.
    pub counts: Counts,
    /// True if the copy can be opened only to recover it, because its source was not recovered yet.
    pub unrecovered: bool,
}

/// The reason why a store was not copied. Neither store is changed, except that an `Indeterminate`
/// [`StoreError`] leaves the target's state unknown.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// The target contains keys, or the history of earlier keys.
    #[error("the target is not empty")]
    NotEmpty,
    /// The target and the source are the same store.
    #[error("source and target are the same store")]
    SameStore,
    /// The source was written to during the copy.
    #[error(
        "the source was changed during the copy: stop everything that uses it, then copy again"
    )]
    SourceMoved,
    /// The items read back from the target differ from those of the source.
    #[error("the copy differs from its source at {0}, and was rolled back")]
    Differs(String),
    /// One of the stores failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
