//! The audit trail of a tenant: its verification, and the removal of old entries.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use super::Keyward;
use super::queries::AuthorityError;
use crate::core::actor::Actor;
use crate::core::audit::{AuditEntry, AuditHead, ChainCheck, ChainError};
use crate::core::command::{Command, Denial};
use crate::core::query::{AuditQuery, AuditRow};
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;
use crate::core::view::LoadRequest;
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
    /// The actor does not reach the tenant, or may not read its audit trail.
    #[error(transparent)]
    Denied(#[from] Denial),
    /// Entries could not be removed.
    #[error(transparent)]
    Command(#[from] CommandError),
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
    /// # Errors
    ///
    /// [`AuditError`], with the first entry that differs from what was written.
    pub async fn verify_audit(
        &self,
        actor: &Actor,
        tenant: &TenantId,
        seen: Option<AuditHead>,
    ) -> Result<AuditHead, AuditError> {
        let awaited = self.awaited_heads(actor, tenant, seen).await?;
        self.check_trail(tenant, awaited, |_| ()).await
    }

    /// Returns the heads that a tenant's chain must contain, if `actor` may read the trail.
    async fn awaited_heads(
        &self,
        actor: &Actor,
        tenant: &TenantId,
        seen: Option<AuditHead>,
    ) -> Result<Vec<AuditHead>, AuditError> {
        let authority = self.authority(actor, tenant, BTreeSet::new()).await?;
        let policies = self.inner.policies.get();
        authority.caller.permit_audit(policies.of(tenant))?;
        // The chain must contain the head that the store records. Otherwise a truncated trail would pass.
        let stored_head = self
            .inner
            .store
            .load(tenant, &LoadRequest::none())
            .await?
            .audit_head;
        let stored_head = Some(stored_head).filter(|head| *head != AuditHead::GENESIS);
        Ok(seen.into_iter().chain(stored_head).collect())
    }

    /// Checks the chain of a tenant's trail, which must contain the heads in `awaited`. Calls `look` with
    /// each entry that passed, oldest first. Returns the head of the chain.
    async fn check_trail(
        &self,
        tenant: &TenantId,
        awaited: Vec<AuditHead>,
        mut look: impl FnMut(&AuditEntry) + Send,
    ) -> Result<AuditHead, AuditError> {
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
        Ok(check.unwrap_or_else(empty).finish()?)
    }

    /// Removes the oldest entries of a tenant's audit trail: those from before `before`, up to the first
    /// later one. Returns what was removed. Only the application itself may call this method.
    ///
    /// First checks the whole trail, like [`verify_audit`](Self::verify_audit). The trail then begins with
    /// its oldest remaining entry, and an entry [`TrailPruned`](crate::audit::Action::TrailPruned) that is
    /// sealed like every other proves that the missing ones were removed by this method. Removes 10,000
    /// entries in one commit. If the call fails, the entries of earlier commits are gone, and the rest stays.
    ///
    /// Three things need an entry, and do not work without it:
    ///
    /// - The command with the entry's command id is not recognised as a repetition.
    /// - A reader of [`events`](Self::events) that has not reached the entry never reports it.
    /// - A recovery from a backup cannot repeat the commands of removed entries.
    ///
    /// So keep the entries since the oldest backup, and what some reader has not read.
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
        let awaited = self.awaited_heads(actor, tenant, seen).await?;
        // The newest entry of each commit, and then the newest of all.
        let mut marks = Vec::new();
        let mut last = AuditHead::GENESIS;
        let (mut is_old, mut removed) = (true, 0_u64);
        self.check_trail(tenant, awaited, |entry| {
            is_old &= entry.at < before;
            if is_old {
                removed += 1;
                last = entry.head();
                marks.extend(removed.is_multiple_of(PRUNED_AT_ONCE).then_some(last));
            }
        })
        .await?;
        marks.extend(Some(last).filter(|last| removed > 0 && marks.last() != Some(last)));
        for through in marks {
            let command = Command::PruneAudit { through };
            self.execute(actor, Some(tenant.clone()), command).await?;
        }
        let head = self.verify_audit(actor, tenant, None).await?;
        Ok(PrunedAudit { removed, head })
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
