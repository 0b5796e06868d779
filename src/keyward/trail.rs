//! The audit trail of a tenant: its verification, and the removal of old entries.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use super::Keyward;
use super::queries::AuthorityError;
use crate::core::actor::Actor;
use crate::core::audit::{AuditEntry, AuditHead, ChainCheck, ChainError, TrailGap};
use crate::core::command::{Command, Denial};
use crate::core::kind::ErrorKind;
use crate::core::query::{AuditQuery, AuditRow};
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;
use crate::core::view::{Epoch, LoadRequest};
use crate::manager::CommandError;
use crate::store::StoreError;

/// 1000 entries per page while an audit trail is verified: about 500 KB.
const AUDIT_PAGE: NonZeroUsize = NonZeroUsize::new(1000).expect("the page size is not zero");

/// 10,000 audit entries are removed in one commit, which takes a server a fraction of its statement timeout.
const PRUNED_AT_ONCE: u64 = 10_000;

/// The error of an audit trail that could not be verified.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The trail differs from the entries that were written.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The trail could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The actor does not reach the tenant, or may not read its audit trail. Also if another clock contradicts
    /// this process's clock, and the removal depends on the time.
    #[error(transparent)]
    Denied(#[from] Denial),
    /// Entries could not be removed.
    #[error(transparent)]
    Command(#[from] CommandError),
}

impl AuditError {
    /// Returns the stable code of the cause, such as `audit-altered`.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Chain(error) => error.code(),
            Self::Store(error) => error.code(),
            Self::Denied(denied) => denied.code(),
            Self::Command(error) => error.code(),
        }
    }

    /// Returns the kind of the cause, which determines the HTTP status.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Chain(error) => error.kind(),
            Self::Store(error) => error.error_kind(),
            Self::Denied(denied) => denied.kind(),
            Self::Command(error) => error.kind(),
        }
    }

    /// Returns the text that a client may see.
    #[must_use]
    pub fn public_message(&self) -> String {
        match self {
            Self::Chain(error) => error.public_message(),
            Self::Store(error) => error.public_message().to_owned(),
            Self::Denied(denied) => denied.public_message(),
            Self::Command(error) => error.public_message(),
        }
    }
}

/// The result of removing old audit entries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct PrunedAudit {
    /// The number of removed entries.
    pub removed: u64,
    /// The head of the trail after the removal. Record it outside the store, for the next check.
    pub head: AuditHead,
}

impl Keyward {
    /// Verifies that nobody altered a tenant's audit trail, and returns the trail's head. `seen` is an
    /// earlier head that was recorded outside the store. The check fails if the trail does not contain
    /// `seen`, for example because the trail was truncated. Reads the trail in pages, in constant memory.
    ///
    /// A trail whose old entries were [removed](Self::prune_audit) passes if a later entry records the removal. So
    /// does a trail with a gap, if a recovery [recorded](crate::audit::Action::EntriesLost) the loss.
    /// `seen` must then be at least as new as the newest removed entry.
    ///
    /// # Errors
    ///
    /// [`AuditError`], with the first entry that differs from what was written.
    pub async fn verify_audit(
        &self,
        actor: &Actor,
        tenant: &TenantId,
        seen: Option<AuditHead>,
    ) -> Result<AuditHead, AuditError> {
        let (head, _) = self.read_trail(actor, tenant, None, seen).await?;
        Ok(head)
    }

    /// Verifies a tenant's trail. Returns its head, and the entries from before `before`. If entries are
    /// removed meanwhile, begins again.
    pub(super) async fn read_trail(
        &self,
        actor: &Actor,
        tenant: &TenantId,
        before: Option<Timestamp>,
        seen: Option<AuditHead>,
    ) -> Result<(AuditHead, OldEntries), AuditError> {
        loop {
            let began_with = self.oldest(tenant).await?;
            let nothing = LoadRequest::none();
            let view = self.inner.store.load(tenant, &nothing).await?;
            let authority = self.authority(actor, tenant, BTreeSet::new()).await?;
            let policies = self.inner.policies.get();
            authority.caller.permit_audit(policies.of(tenant))?;
            // The chain must contain the head that the store records. Otherwise a truncated trail would pass.
            let stored = Some(view.audit_head).filter(|head| *head != AuditHead::GENESIS);
            let awaited = seen.into_iter().chain(stored).collect();
            let mut old = OldEntries::new(view.epoch);
            let look = |entry: &AuditEntry| old.add(entry, before);
            match self.check_trail(tenant, awaited, look).await {
                Err(AuditError::Chain(_)) if self.oldest(tenant).await? != began_with => {}
                checked => return Ok((checked?, old)),
            }
        }
    }

    /// Returns the number of the oldest entry of a tenant's trail.
    async fn oldest(&self, tenant: &TenantId) -> Result<Option<u64>, StoreError> {
        let query = AuditQuery {
            limit: NonZeroUsize::MIN,
            ..AuditQuery::tenant(tenant.clone())
        };
        let page = self.inner.store.audit(&query).await?;
        Ok(page.rows.first().map(|row| row.entry.sequence))
    }

    /// Checks the chain of a tenant's trail, which must contain the heads in `awaited`. Calls `look` with
    /// each entry that passed, oldest first. Returns the head of the chain.
    async fn check_trail(
        &self,
        tenant: &TenantId,
        awaited: Vec<AuditHead>,
        look: impl FnMut(&AuditEntry) + Send,
    ) -> Result<AuditHead, AuditError> {
        Ok(self.follow_trail(tenant, awaited, look).await?.finish()?)
    }

    /// Returns the gaps in a tenant's trail that no entry records, and the epoch of the store. A trail that fails its
    /// check otherwise has none. Calls `look` with each entry, oldest first.
    pub(super) async fn unrecorded_gaps(
        &self,
        tenant: &TenantId,
        look: impl FnMut(&AuditEntry) + Send,
    ) -> Result<(Vec<TrailGap>, Epoch), StoreError> {
        let view = (self.inner.store.load(tenant, &LoadRequest::none())).await?;
        let gaps = match self.follow_trail(tenant, Vec::new(), look).await {
            Ok(check) => check.unrecorded_gaps(view.audit_head),
            Err(AuditError::Store(error)) => return Err(error),
            Err(_) => Vec::new(),
        };
        Ok((gaps, view.epoch))
    }

    /// Adds a tenant's trail to a check, oldest entry first.
    async fn follow_trail<'a>(
        &'a self,
        tenant: &'a TenantId,
        awaited: Vec<AuditHead>,
        mut look: impl FnMut(&AuditEntry) + Send,
    ) -> Result<ChainCheck<'a>, AuditError> {
        let peppers = &self.inner.peppers;
        let mut check: Option<ChainCheck<'_>> = None;
        let mut query = AuditQuery {
            limit: AUDIT_PAGE,
            ..AuditQuery::tenant(tenant.clone())
        };
        loop {
            let page = self.inner.store.audit(&query).await?;
            for AuditRow { entry, .. } in &page.rows {
                let begin = || ChainCheck::of_trail(tenant, entry, peppers, awaited.clone());
                check.get_or_insert_with(begin).add(entry)?;
                look(entry);
            }
            match page.next {
                Some(next) => query.after = Some(next),
                None => break,
            }
        }
        let empty = || ChainCheck::new(tenant, AuditHead::GENESIS, peppers, awaited.clone());
        Ok(check.unwrap_or_else(empty))
    }

    /// Removes the entries of a tenant's audit trail that are older than `before`. Stops at the first entry
    /// that is not older. Only the application itself may call this method.
    ///
    /// First verifies the whole trail, like [`verify_audit`](Self::verify_audit). The trail then begins with
    /// its oldest remaining entry. A new entry, [`TrailPruned`](crate::audit::Action::TrailPruned), proves that
    /// this method removed the missing ones. Removes 10,000 entries in one commit. If the call fails, the
    /// entries of earlier commits are gone, and the rest stays.
    ///
    /// Four things need an entry, and do not work without it:
    ///
    /// - The command with the entry's command id is not recognised as a repetition.
    /// - A reader of [`events`](Self::events) that has not reached the entry never reports it.
    /// - A recovery from a backup cannot repeat the commands of removed entries.
    /// - A revocation of all keys that a deleted key [made](crate::command::MadeBy) does not find the keys that
    ///   its predecessors made, if the entry of its rotation is gone.
    ///
    /// So keep the entries since the oldest backup, and the entries that a reader of events has not read yet.
    /// Prune under a pepper that nobody else knows: whoever has a pepper of the ring, even an old one, and can
    /// write to the store, can forge the removal of entries.
    ///
    /// # Errors
    ///
    /// [`AuditError`]. A trail that fails the check stays as it is.
    pub async fn prune_audit(
        &self,
        actor: &Actor,
        tenant: &TenantId,
        before: Timestamp,
        seen: Option<AuditHead>,
    ) -> Result<PrunedAudit, AuditError> {
        if actor.principal().is_some() || actor.key_id().is_some() {
            let action = "remove audit entries";
            return Err(Denial::HostOnly { action }.into());
        }
        let (mut head, old) = self.read_trail(actor, tenant, Some(before), seen).await?;
        let (removed, epoch) = (old.count(), old.epoch.0);
        for through in old.into_marks() {
            let command = Command::PruneAudit { through, epoch };
            self.execute(actor, Some(tenant.clone()), command).await?;
        }
        if removed > 0 {
            (head, _) = self.read_trail(actor, tenant, None, None).await?;
        }
        Ok(PrunedAudit { removed, head })
    }
}

/// The entries at the beginning of a trail that are older than an instant.
///
/// A removal ends only where the next entry follows without a gap. Otherwise the trail would begin after a gap of
/// which the removal proves nothing.
pub(super) struct OldEntries {
    /// The epoch of the store that was read.
    epoch: Epoch,
    /// The number of old entries, and the newest one.
    read: u64,
    newest: Option<AuditHead>,
    /// The number of entries that can be removed, and the newest of them.
    removable: (u64, Option<AuditHead>),
    /// The newest entry that each commit removes, but for the last commit.
    marks: Vec<AuditHead>,
    marked: u64,
    ended: bool,
}

impl OldEntries {
    const fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            read: 0,
            newest: None,
            removable: (0, None),
            marks: Vec::new(),
            marked: 0,
            ended: false,
        }
    }

    /// Adds the next entry of the trail, if it and all entries before it are older than `before`.
    fn add(&mut self, entry: &AuditEntry, before: Option<Timestamp>) {
        if self.ended {
            return;
        }
        if let Some(newest) = self.newest
            && entry.sequence == newest.sequence + 1
        {
            self.removable = (self.read, self.newest);
            if self.read - self.marked >= PRUNED_AT_ONCE {
                self.marked = self.read;
                self.marks.push(newest);
            }
        }
        self.ended = before.is_none_or(|before| entry.at >= before);
        if !self.ended {
            self.read += 1;
            self.newest = Some(entry.head());
        }
    }

    /// Returns the number of entries that can be removed.
    pub(super) fn count(&self) -> u64 {
        self.end().0
    }

    /// Returns the number of entries that can be removed, and the newest of them.
    fn end(&self) -> (u64, Option<AuditHead>) {
        match self.ended {
            true => self.removable,
            // The entry of the removal follows the last entry.
            false => (self.read, self.newest),
        }
    }

    fn into_marks(mut self) -> Vec<AuditHead> {
        let (_, newest) = self.end();
        let last = newest.filter(|newest| self.marks.last() != Some(newest));
        self.marks.extend(last);
        self.marks
    }
}

impl From<AuthorityError> for AuditError {
    fn from(error: AuthorityError) -> Self {
        match error {
            AuthorityError::Denied(denied) => denied.into(),
            AuthorityError::Store(error) => error.into(),
        }
    }
}
