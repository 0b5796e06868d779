//! Where the store stands, where a tenant stands in it, and who has an imported digest.

use super::seal::Seal;
use super::{RowFault, id_of, instant, signed};
use crate::core::audit::{AuditEntry, AuditHash, AuditHead};
use crate::core::id::KeyId;
use crate::core::secret::Digest;
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;
use crate::core::view::Revision;
use crate::store::{Commit, CommitTag};

/// What is known of the store as a whole.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct StoreRow {
    pub(in crate::store) epoch: u128,
    /// Changes at or below this revision may be incomplete: tombstones were dropped.
    pub(in crate::store) floor: u64,
    pub(in crate::store) unrecovered: bool,
}

impl StoreRow {
    pub(in crate::store) fn seal(&self) -> Result<i64, RowFault> {
        let seal = Seal::default().bytes(self.epoch.to_be_bytes());
        let seal = seal.number(signed(self.floor)?);
        Ok(seal.number(i64::from(self.unrecovered)).end())
    }

    /// The row, if its bytes are those that were `sealed`.
    pub(in crate::store) fn sealed(self, sealed: i64) -> Result<Self, RowFault> {
        if self.seal()? == sealed {
            Ok(self)
        } else {
            Err(RowFault::corrupt("the store's own row is damaged"))
        }
    }
}

/// A commit: its number, its mark, and the latest instant decided until then.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct CommitRow {
    pub(in crate::store) revision: i64,
    pub(in crate::store) tag: [u8; 16],
    pub(in crate::store) newest: i64,
}

impl CommitRow {
    /// What stands for the last commit where there was none.
    #[cfg(feature = "postgres")]
    pub(in crate::store) const NONE: Self = Self {
        revision: 0,
        tag: [0; 16],
        newest: 0,
    };

    pub(in crate::store) fn new(
        revision: Revision,
        tag: CommitTag,
        newest: Timestamp,
    ) -> Result<Self, RowFault> {
        Ok(Self {
            revision: signed(revision.0)?,
            tag: tag.0.to_be_bytes(),
            newest: newest.as_micros(),
        })
    }

    pub(in crate::store) fn seal(&self) -> i64 {
        let seal = Seal::default().number(self.revision).bytes(self.tag);
        seal.number(self.newest).end()
    }

    /// What the row says, if its bytes are those that were `sealed`.
    pub(in crate::store) fn sealed(
        &self,
        sealed: i64,
    ) -> Result<(Revision, CommitTag, Timestamp), RowFault> {
        if self.seal() != sealed {
            let what = format!("commit {} is damaged", self.revision);
            return Err(RowFault::corrupt(what));
        }
        let revision = Revision(self.revision.unsigned_abs());
        let tag = CommitTag(u128::from_be_bytes(self.tag));
        Ok((revision, tag, instant(self.newest)?))
    }
}

/// The head of one tenant.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct TenantHead {
    pub(in crate::store) revision: Revision,
    pub(in crate::store) decided_at: Timestamp,
    pub(in crate::store) audit: AuditHead,
}

impl TenantHead {
    /// The head after `commit` was applied at `revision` to a tenant whose head was `before`.
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

    /// What a row says, if its bytes are those that were `sealed`.
    pub(in crate::store) fn sealed(
        tenant: &str,
        (revision, decided_at, sequence): (i64, i64, i64),
        hash: &[u8],
        sealed: i64,
    ) -> Result<Self, RowFault> {
        let intact = sealed == seal(tenant, revision, decided_at, sequence, hash);
        let hash: Option<[u8; 32]> = hash.try_into().ok().filter(|_| intact);
        let damaged = || RowFault::corrupt(format!("the row of tenant {tenant} is damaged"));
        Ok(Self {
            revision: Revision(revision.unsigned_abs()),
            decided_at: instant(decided_at)?,
            audit: AuditHead {
                sequence: sequence.unsigned_abs(),
                hash: AuditHash::from_bytes(hash.ok_or_else(damaged)?),
            },
        })
    }

    /// Revision, instant, sequence and seal, as they are written.
    pub(in crate::store) fn columns(
        &self,
        tenant: &TenantId,
    ) -> Result<(i64, i64, i64, i64), RowFault> {
        let revision = signed(self.revision.0)?;
        let decided_at = self.decided_at.as_micros();
        let sequence = signed(self.audit.sequence)?;
        let hash = self.audit.hash.as_bytes();
        let seal = seal(tenant.as_str(), revision, decided_at, sequence, hash);
        Ok((revision, decided_at, sequence, seal))
    }
}

fn seal(tenant: &str, revision: i64, decided_at: i64, sequence: i64, hash: &[u8]) -> i64 {
    let seal = Seal::default().bytes(tenant).number(revision);
    seal.number(decided_at).number(sequence).bytes(hash).end()
}

/// Seals the row that says which key has an imported digest, or had it.
pub(in crate::store) fn digest_seal(digest: &[u8], id: &[u8]) -> i64 {
    Seal::default().bytes(digest).bytes(id).end()
}

/// The key that has an imported digest, or had it, if its row's bytes are those that were `sealed`.
pub(in crate::store) fn digest_holder(
    digest: &Digest,
    id: &[u8],
    sealed: i64,
) -> Result<KeyId, RowFault> {
    let intact = sealed == digest_seal(digest.as_bytes(), id);
    let id = id_of(id).filter(|_| intact);
    id.ok_or_else(|| RowFault::corrupt("the holder of an imported digest is damaged"))
}
