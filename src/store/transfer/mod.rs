//! Copying a store as a whole into another one, of another kind most often: a file into a database, or
//! back. For operators, while nobody uses either.
//!
//! What is copied is every row at its revision and place, tombstones included, the mark of every
//! commit, the audit trail with its chain, and what is taken for ever: imported digests, and ids whose
//! tombstones were dropped. Nodes' reports are not: they are no part of the history.
//!
//! The copy is a history of its own, with an epoch of its own, since both could be written to from then
//! on: followers start over, and a receipt of the one is not confirmed by nodes of the other. The trail
//! is the same one: [`verify_audit`](crate::Keyward::verify_audit) accepts the ends that were noted
//! before.
//!
//! # Examples
//!
//! ```
//! # pollster::block_on(async {
//! # let folder = tempfile::tempdir()?;
//! # let (old, new) = (folder.path().join("keys.db"), folder.path().join("new.db"));
//! use keyward::store::{SqliteStore, transfer};
//!
//! let from = SqliteStore::open(&old).await?;
//! // Opens as any other store from the end of the copy on, and not before.
//! let to = SqliteStore::options(&new).copy_target().open().await?;
//! transfer::copy(&from, &to, transfer::PAGE, |progress| println!("{progress}")).await?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```

mod run;

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use self::run::copy;
use super::{AuditRow, Change, CommitTag, Cursor, Revision, StoreError};
use crate::core::audit::AuditHead;
use crate::core::id::KeyId;
use crate::core::secret::Digest;
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;

/// How many items a page has, where nothing asks for another size. A judgement: about a megabyte.
pub const PAGE: NonZeroUsize = NonZeroUsize::new(2000).expect("2000 is not zero");

/// What a store consists of, in the order in which it is copied.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Part {
    /// The marks of its commits.
    Commits,
    /// The heads of its tenants.
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
    /// All of them.
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

/// One thing of a [`Part`]. Items of a part are ordered by what names them: the first field, and the
/// number where there is one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Item {
    /// A commit.
    Commit {
        /// Its revision.
        revision: Revision,
        /// Its mark.
        tag: CommitTag,
        /// The latest instant decided until then.
        newest: Timestamp,
    },
    /// Where a tenant stands. Ordered by the bytes of its path.
    Tenant {
        /// Which tenant.
        tenant: TenantId,
        /// Its last commit.
        revision: Revision,
        /// The latest instant decided.
        decided_at: Timestamp,
        /// Its newest audit entry.
        audit: AuditHead,
    },
    /// An imported digest.
    Digest {
        /// Which digest.
        digest: Digest,
        /// The key that has it, or had it.
        key: KeyId,
    },
    /// The id of a removed key.
    Gone {
        /// Which key.
        key: KeyId,
    },
    /// An audit entry.
    Audit {
        /// The entry, with its commit.
        row: AuditRow,
        /// Which of its commit's it is, from zero.
        number: u32,
    },
    /// A row.
    Row {
        /// The row, with its commit. Never a corrupt one.
        change: Change,
        /// Which of its commit's it is, from zero.
        number: u32,
    },
}

impl Item {
    /// What it is a part of.
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

/// Names it, without what it says.
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

/// How many items a store has of each part.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    by_part: [u64; Part::ALL.len()],
}

impl Counts {
    /// Of this part.
    #[must_use]
    pub const fn of(&self, part: Part) -> u64 {
        self.by_part[part as usize]
    }

    /// The same with another count of one part.
    #[must_use]
    pub const fn with(mut self, part: Part, count: u64) -> Self {
        self.by_part[part as usize] = count;
        self
    }
}

/// What is copied, as a whole.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Origin {
    /// Where it stands.
    pub head: Cursor,
    /// The latest instant for which any commit was decided.
    pub newest: Option<Timestamp>,
    /// Tombstones of commits at or below this revision were dropped.
    pub floor: Revision,
    /// Whether it was restored from a backup and not recovered yet. Neither is the copy then.
    pub unrecovered: bool,
    /// For how long nodes that use it may go on accepting keys on their own.
    pub lease: Duration,
    /// How much it holds.
    pub counts: Counts,
}

impl Origin {
    /// Whether both are the same state of the same store.
    #[must_use]
    pub fn is_where(&self, head: Cursor, floor: Revision) -> bool {
        self.head == head && self.floor == floor
    }
}

/// Some items of one part, read at one instant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Page {
    /// Where the store stood.
    pub head: Cursor,
    /// Tombstones of commits at or below this revision were dropped.
    pub floor: Revision,
    /// The items in their order; none if there are no more.
    pub items: Vec<Item>,
}

/// A store that can be read as a whole.
#[async_trait]
pub trait Export: fmt::Debug + Send + Sync {
    /// Where it stands, and how much it holds.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn origin(&self) -> Result<Origin, StoreError>;

    /// Reads the first items of a part after one of them, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`StoreError`], `Corrupt` if one of them is damaged: damage is never copied.
    async fn page(
        &self,
        part: Part,
        after: Option<&Item>,
        limit: NonZeroUsize,
    ) -> Result<Page, StoreError>;
}

/// A store that a copy can be written into. From `begin` to `finish` it is no store to anybody else:
/// whoever opens it is refused, and told why.
#[async_trait]
pub trait Import: fmt::Debug + Send + Sync {
    /// Begins a copy of `origin`, or goes on with one. What was written of an earlier state of the
    /// same store is cleared away. Tells how much is there already.
    ///
    /// # Errors
    ///
    /// [`CopyError`], with nothing changed: the target holds anything else.
    async fn begin(&self, origin: &Origin) -> Result<Counts, CopyError>;

    /// The last item of a part that was written; a copy goes on after it.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn last(&self, part: Part) -> Result<Option<Item>, StoreError>;

    /// Writes the next items of one part, all or none, durably.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn write(&self, items: &[Item]) -> Result<(), StoreError>;

    /// Reads back what was written, as [`Export::page`] does.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn written(
        &self,
        part: Part,
        after: Option<&Item>,
        limit: NonZeroUsize,
    ) -> Result<Page, StoreError>;

    /// Makes the copy of `origin` a store of its own, with a new epoch, and tells where it stands.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn finish(&self, origin: &Origin) -> Result<Cursor, StoreError>;
}

/// What a copy is at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Items are written.
    Copying,
    /// Both sides are read and compared.
    Comparing,
}

/// How far a copy has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Progress {
    /// What it is at.
    pub step: Step,
    /// With which part.
    pub part: Part,
    /// How many items of it are done, those of an earlier attempt included.
    pub done: u64,
    /// How many there are.
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

/// A copy that is done and was compared with its source.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Copied {
    /// Where the copy stands: at its source's revision, in a history of its own.
    pub head: Cursor,
    /// How much it holds.
    pub counts: Counts,
    /// Whether it is to be recovered, as its source was.
    pub unrecovered: bool,
}

/// Why a store was not copied, or not to the end. The source is as it was.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// The target holds keys, or the history of some. Nothing was changed.
    #[error("the target is not empty")]
    NotEmpty,
    /// The target is the source. Nothing was changed.
    #[error("source and target are the same store")]
    SameStore,
    /// The target holds a part of another store's copy. Nothing was changed.
    #[error(
        "the target holds a part of another store's copy: finish that one, or clear the target"
    )]
    OtherSource,
    /// Another version of this crate began the copy. Nothing was changed.
    #[error("another version began this copy: finish it with that one, or clear the target")]
    OtherVersion,
    /// No copy into the target is under way.
    #[error("no copy is under way")]
    NotBegun,
    /// The source was written to meanwhile. The copy begins anew when it is tried again.
    #[error("the source was changed during the copy: stop all that use it, then copy again")]
    SourceMoved,
    /// What was written is not what was read. The target stays closed.
    #[error("the copy differs from its source at {0}: clear the target and copy again")]
    Differs(String),
    /// One of the stores failed. The copy goes on when it is tried again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<S: Export + ?Sized> Export for Arc<S> {
    async fn origin(&self) -> Result<Origin, StoreError> {
        (**self).origin().await
    }

    async fn page(
        &self,
        part: Part,
        after: Option<&Item>,
        limit: NonZeroUsize,
    ) -> Result<Page, StoreError> {
        (**self).page(part, after, limit).await
    }
}
