//! The tables `store`, `commits`, `tenants` and `digests`: their columns and their decoding.

use super::cells::{Cells, is_damaged};
use super::seal::Seal;
use super::{RowFault, id_bytes, id_of, instant, signed};
use crate::core::audit::{AuditEntry, AuditHash, AuditHead};
use crate::core::id::KeyId;
use crate::core::secret::Digest;
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;
use crate::core::view::Revision;
use crate::store::{ChangesError, Commit, CommitTag, Cursor, Epoch};

const STORE: &str = "the store's own row";

/// The only row of the table `store`, without its seal.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct StoreRow {
    pub(in crate::store) epoch: Epoch,
    /// The revision up to which tombstones were dropped. The feed cannot continue from a cursor below this
    /// revision.
    pub(in crate::store) floor: Revision,
    /// The epoch of the store that was backed up, if this is a backup or a restored store that is not recovered
    /// yet. [`Epoch::UNKNOWN`] if damage hides it.
    pub(in crate::store) restored_from: Option<Epoch>,
}

/// The columns of a [`StoreRow`], with the seal last.
type StoreColumns = ([u8; 16], i64, Option<[u8; 16]>, i64);

impl StoreRow {
    /// Marks the store as unrecovered. A store that is unrecovered already keeps the epoch that it was restored from.
    pub(in crate::store) fn mark_unrecovered(&mut self) {
        self.restored_from.get_or_insert(self.epoch);
    }

    #[cfg(feature = "sqlite")]
    pub(in crate::store) const fn is_unrecovered(&self) -> bool {
        self.restored_from.is_some()
    }

    /// Returns the error for a store whose table `store` is empty.
    pub(in crate::store) fn missing() -> RowFault {
        RowFault::corrupt("the store's own row is missing")
    }

    /// Decodes the columns that start at index `first`.
    pub(in crate::store) fn read(row: &impl Cells, first: usize) -> Result<Self, RowFault> {
        let store = Self {
            epoch: Epoch(u128::from_be_bytes(row.exactly(first, STORE)?)),
            floor: Revision(row.number(first + 1, STORE)?.unsigned_abs()),
            restored_from: row
                .exactly_or_null(first + 2, STORE)?
                .map(|epoch| Epoch(u128::from_be_bytes(epoch))),
        };
        let (.., seal) = store.columns()?;
        match row.number(first + 3, STORE)? == seal {
            true => Ok(store),
            false => Err(is_damaged(STORE)),
        }
    }

    /// Returns the columns to write, with the seal last.
    pub(in crate::store) fn columns(&self) -> Result<StoreColumns, RowFault> {
        let (epoch, floor) = (self.epoch.0.to_be_bytes(), signed(self.floor.0)?);
        let restored_from = self.restored_from.map(|epoch| epoch.0.to_be_bytes());
        let seal = Seal::default().bytes(epoch).number(floor);
        let seal = seal.maybe(restored_from).end();
        Ok((epoch, floor, restored_from, seal))
    }
}

/// A row of the table `commits`, without its seal.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct CommitRow {
    pub(in crate::store) revision: Revision,
    pub(in crate::store) tag: CommitTag,
}

impl CommitRow {
    /// A placeholder for the last commit of a store that has no commit yet.
    pub(in crate::store) const NONE: Self = Self {
        revision: Revision::ZERO,
        tag: CommitTag(0),
    };

    /// Decodes the columns that start at index `first`.
    pub(in crate::store) fn read(row: &impl Cells, first: usize) -> Result<Self, RowFault> {
        let number = row.number(first, "the revision of a commit")?;
        let what = format!("commit {number}");
        let commit = Self {
            revision: Revision(number.unsigned_abs()),
            tag: CommitTag(u128::from_be_bytes(row.exactly(first + 1, &what)?)),
        };
        let (.., seal) = commit.columns()?;
        match row.number(first + 2, &what)? == seal {
            true => Ok(commit),
            false => Err(is_damaged(&what)),
        }
    }

    /// Returns the columns to write, with the seal last.
    pub(in crate::store) fn columns(&self) -> Result<(i64, [u8; 16], i64), RowFault> {
        let (revision, tag) = (signed(self.revision.0)?, self.tag.0.to_be_bytes());
        let seal = Seal::default().number(revision).bytes(tag).end();
        Ok((revision, tag, seal))
    }
}

/// The head of the store: its own row and its last commit.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Head {
    pub(in crate::store) store: StoreRow,
    pub(in crate::store) last: CommitRow,
    /// The clock of the database's server when the head was read. `None` for an SQLite file, which has no
    /// server.
    pub(in crate::store) server_time: Option<Timestamp>,
}

impl Head {
    pub(in crate::store) const fn cursor(&self) -> Cursor {
        Cursor {
            epoch: self.store.epoch,
            revision: self.last.revision,
            tag: self.last.tag,
        }
    }

    /// Makes a commit with `tag` the new head, in memory only, and returns the commit.
    pub(in crate::store) const fn advance(&mut self, tag: CommitTag) -> CommitRow {
        let revision = Revision(self.last.revision.0 + 1);
        self.last = CommitRow { revision, tag };
        self.last
    }

    /// Checks that the feed can continue after a cursor. The argument `stored` is the tag that the table
    /// `commits` has for the cursor's revision, if any.
    pub(in crate::store) fn check_cursor(
        &self,
        after: Cursor,
        stored: Option<CommitTag>,
    ) -> Result<(), ChangesError> {
        if after.epoch != self.store.epoch || after.revision < self.store.floor {
            return Err(ChangesError::Compacted);
        }
        let is_ahead = after.revision > self.last.revision;
        match self.tag_at(after.revision, stored) == Some(after.tag) && !is_ahead {
            true => Ok(()),
            false => Err(ChangesError::Diverged),
        }
    }

    /// Returns the tag of the commit at `revision`. The argument `stored` is the tag that the table `commits`
    /// has for this revision, if any. The tags of the head and of revision zero are known without it.
    pub(super) fn tag_at(
        &self,
        revision: Revision,
        stored: Option<CommitTag>,
    ) -> Option<CommitTag> {
        match revision {
            last if last == self.last.revision => Some(self.last.tag),
            Revision::ZERO => Some(CommitTag::default()),
            _ => stored,
        }
    }
}

/// The columns of the table `tenants`, in the order that [`TenantHead::read`] expects.
pub(in crate::store) const TENANT_COLUMNS: &str =
    "tenant, revision, decided_at, sequence, hash, seal";

/// Selects the heads of all tenants.
pub(in crate::store) const TENANT_HEADS: &str =
    "SELECT tenant, revision, decided_at, sequence, hash, seal FROM $s.tenants";

/// The head of one tenant.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct TenantHead {
    pub(in crate::store) revision: Revision,
    pub(in crate::store) decided_at: Timestamp,
    pub(in crate::store) audit: AuditHead,
}

impl TenantHead {
    /// Returns the head after `commit` was applied at `revision` to a tenant with the head `before`.
    pub(in crate::store) fn after(
        before: Option<Self>,
        commit: &Commit,
        revision: Revision,
    ) -> Self {
        let newest = commit.effects.audit.last().map(AuditEntry::head);
        Self {
            revision,
            decided_at: commit.newest_after(before.map(|head| head.decided_at)),
            audit: newest.or(before.map(|head| head.audit)).unwrap_or_default(),
        }
    }

    /// Decodes a row of [`TENANT_COLUMNS`].
    pub(in crate::store) fn read(row: &impl Cells) -> Result<(TenantId, Self), RowFault> {
        let name = row.text(0, "the name of a tenant")?;
        let what = format!("the row of tenant {name}");
        let tenant = TenantId::new(name).map_err(|_| is_damaged(&what))?;
        let head = Self {
            revision: Revision(row.number(1, &what)?.unsigned_abs()),
            decided_at: instant(row.number(2, &what)?)?,
            audit: AuditHead {
                sequence: row.number(3, &what)?.unsigned_abs(),
                hash: AuditHash::from_bytes(row.exactly(4, &what)?),
            },
        };
        let (.., seal) = head.columns(&tenant)?;
        match row.number(5, &what)? == seal {
            true => Ok((tenant, head)),
            false => Err(is_damaged(&what)),
        }
    }

    /// Returns the columns to write after the tenant's name, with the seal last.
    pub(in crate::store) fn columns(
        &self,
        tenant: &TenantId,
    ) -> Result<(i64, i64, i64, [u8; 32], i64), RowFault> {
        let (revision, sequence) = (signed(self.revision.0)?, signed(self.audit.sequence)?);
        let (decided_at, hash) = (self.decided_at.as_micros(), *self.audit.hash.as_bytes());
        let seal = Seal::default().bytes(tenant.as_str()).number(revision);
        let seal = seal.number(decided_at).number(sequence).bytes(hash).end();
        Ok((revision, decided_at, sequence, hash, seal))
    }
}

/// The columns of the table `digests`, in the order that [`read_digest`] expects.
pub(in crate::store) const DIGEST_COLUMNS: &str = "digest, id, seal";

/// Returns the seal of a row of the table `digests`.
pub(in crate::store) fn digest_seal(digest: &Digest, key: KeyId) -> i64 {
    let seal = Seal::default().bytes(digest.as_bytes());
    seal.bytes(id_bytes(key)).end()
}

/// Decodes a row of [`DIGEST_COLUMNS`]: an imported digest, and the key that has or had the digest.
pub(in crate::store) fn read_digest(row: &impl Cells) -> Result<(Digest, KeyId), RowFault> {
    let what = "an imported digest";
    let digest = Digest::from_bytes(row.exactly(0, what)?);
    let key = id_of(row.bytes(1, what)?).ok_or_else(|| is_damaged(what))?;
    match row.number(2, what)? == digest_seal(&digest, key) {
        true => Ok((digest, key)),
        false => Err(is_damaged(what)),
    }
}
