//! Copying a store as a whole into another one, usually of another kind: a file into a database, or
//! back. For operators, while no service uses either store.
//!
//! A copy is one transaction into an empty target. The copy is compared with its source before the
//! transaction commits. If the copy fails or is killed, the target stays empty, and the copy can be
//! started again.
//!
//! A copy contains every row at its revision and place, tombstones included, the tag of every commit,
//! and the audit trail with its chain. A copy also holds everything that stays taken: imported digests,
//! and ids whose tombstones were dropped. A copy contains no reports of nodes, since they are not part
//! of the history.
//!
//! The copy has a history and an epoch of its own, since both stores could be written to afterwards.
//! Followers start over, and nodes of the copy do not confirm a receipt of the source. The audit trail
//! is the same: [`verify_audit`](crate::Keyward::verify_audit) accepts trail ends noted before the
//! copy.
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
use super::{AuditRow, Change, CommitTag, Cursor, Revision, StoreError};
use crate::core::audit::AuditHead;
use crate::core::id::KeyId;
use crate::core::secret::Digest;
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;

/// 2,000 items, the usual size of a page: about a megabyte. A judgement.
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
}

impl Part {
    /// All parts, in the order in which they are copied.
    pub const ALL: [Self; 6] = [
        Self::Commits,
        Self::Tenants,
        Self::Digests,
        Self::Gone,
        Self::Audit,
        Self::Rows,
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
        })
    }
}

/// One item of a [`Part`]. Items of a part are ordered by their first field, then by `number` if they
/// have one.
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
    /// A row.
    Row {
        /// The row, with the revision of its commit. Never a corrupt row.
        change: Change,
        /// The number of the row within its commit, from zero.
        number: u32,
    },
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
        }
    }
}

/// Names the item without its content.
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

    /// Returns these counts with another number for one part.
    #[must_use]
    pub const fn with(mut self, part: Part, count: u64) -> Self {
        self.by_part[part as usize] = count;
        self
    }
}

/// The state of the source of a copy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Origin {
    /// The head of the source.
    pub head: Cursor,
    /// The floor of the source: tombstones of commits at or below this revision were dropped.
    pub floor: Revision,
    /// Whether the source was restored from a backup and not recovered yet. Then the copy is
    /// unrecovered too.
    pub unrecovered: bool,
    /// The longest time for which a node of the source may accept keys without a new report.
    pub lease: Duration,
    /// The number of items of each part.
    pub counts: Counts,
}

impl Origin {
    /// Returns whether the source is still at this head and floor.
    #[must_use]
    pub fn is_where(&self, head: Cursor, floor: Revision) -> bool {
        self.head == head && self.floor == floor
    }
}

/// Some items of one part, from one snapshot.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Page {
    /// The head of the store.
    pub head: Cursor,
    /// The floor of the store: tombstones of commits at or below this revision were dropped.
    pub floor: Revision,
    /// The items in their order. Empty after the last one.
    pub items: Vec<Item>,
}

/// A store that can be read as a whole.
#[async_trait]
pub trait Export: fmt::Debug + Send + Sync {
    /// Returns the head of the store and the number of its items.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn origin(&self) -> Result<Origin, StoreError>;

    /// Reads the first items of a part after the item `after`, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`StoreError`], `Corrupt` if an item is damaged: damage is never copied.
    async fn page(
        &self,
        part: Part,
        after: Option<&Item>,
        limit: NonZeroUsize,
    ) -> Result<Page, StoreError>;
}

/// A store that can be the target of a copy.
#[async_trait]
pub trait Import: fmt::Debug + Send + Sync {
    /// Begins the transaction of a copy of `origin`. Until the transaction ends, no one else writes to
    /// the store, and readers see an empty store.
    ///
    /// # Errors
    ///
    /// [`CopyError`], with nothing changed. The store must be empty, and not the source.
    async fn begin(&self, origin: &Origin) -> Result<Box<dyn Importing>, CopyError>;
}

/// A copy in progress: one transaction, which rolls back after any error, if it is dropped without
/// [`commit`](Self::commit), and if the process is killed.
#[async_trait]
pub trait Importing: fmt::Debug + Send {
    /// Writes the next items of one part.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn write(&mut self, items: Vec<Item>) -> Result<(), StoreError>;

    /// Reads back items within the transaction, as [`Export::page`] does.
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

    /// Gives the copy of `origin` an epoch of its own, and commits the copy. Returns the head of the
    /// copy.
    ///
    /// # Errors
    ///
    /// [`StoreError`]. After `Indeterminate` the target holds all of the copy or nothing.
    async fn commit(self: Box<Self>, origin: &Origin) -> Result<Cursor, StoreError>;
}

/// A phase of a copy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Items are written.
    Copying,
    /// Both sides are read and compared.
    Comparing,
}

/// The progress of a copy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Progress {
    /// The phase.
    pub step: Step,
    /// The part that is copied or compared.
    pub part: Part,
    /// The number of items of the part that are done.
    pub done: u64,
    /// The number of all items of the part.
    pub total: u64,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            part, done, total, ..
        } = self;
        let doing = match self.step {
            Step::Copying => "copied",
            Step::Comparing => "compared",
        };
        write!(f, "{doing} {done} of {total} {part}")
    }
}

/// A finished copy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Copied {
    /// The head of the copy: the revision of its source, in a new history.
    pub head: Cursor,
    /// The number of items of each part.
    pub counts: Counts,
    /// Whether the copy must be recovered before it opens, because its source must be.
    pub unrecovered: bool,
}

/// The reason why a store was not copied. Neither store was changed, except as [`StoreError`] says.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// The target contains keys, or the history of earlier keys.
    #[error("the target is not empty")]
    NotEmpty,
    /// The target is the source.
    #[error("source and target are the same store")]
    SameStore,
    /// The source was written to during the copy.
    #[error(
        "the source was changed during the copy: stop everything that uses it, then copy again"
    )]
    SourceMoved,
    /// The items read back from the target are not those of the source.
    #[error("the copy differs from its source at {0}, and was rolled back")]
    Differs(String),
    /// One of the stores failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
