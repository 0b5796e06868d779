//! Retention: removing the keys and audit entries that the policies no longer keep.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use super::Keyward;
use super::trail::AuditError;
use crate::core::actor::Actor;
use crate::core::command::Denial;
use crate::core::decide::{SWEEP_MAX, kept_until};
use crate::core::policy::{Policy, Revocation};
use crate::core::query::{AuditQuery, KeyQuery};
use crate::core::record::Status;
use crate::core::tenant::TenantId;
use crate::core::time::{self, Timestamp};

/// The numbers of keys and entries that a tenant's policy no longer keeps.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct RetentionReport {
    /// The revoked and expired keys. Their class keeps them for
    /// [`keep`](crate::policy::Revocation::Allowed::keep).
    pub keys: u64,
    /// The audit entries. The policy keeps them for
    /// [`keep_audit`](crate::policy::PolicySpec::keep_audit), and at least for a day.
    pub entries: u64,
}

impl Keyward {
    /// Returns the numbers of keys and audit entries that [`apply_retention`](Self::apply_retention) would remove
    /// now. Verifies the tenant's trail if its policy limits the age of entries.
    ///
    /// # Errors
    ///
    /// [`AuditError`], also if another clock contradicts this process's clock.
    pub async fn expired_retention(
        &self,
        tenant: &TenantId,
    ) -> Result<RetentionReport, AuditError> {
        let now = self.certain_time().await?;
        let policies = self.inner.policies.get();
        let keys = self.purgeable(tenant, policies.of(tenant), now).await?;
        let mut entries = 0;
        if let Some(before) = self.audit_end(tenant, policies.of(tenant), now).await? {
            let host = Actor::application(tenant.clone());
            let (_, old) = self.read_trail(&host, tenant, Some(before), None).await?;
            entries = old.count();
        }
        Ok(RetentionReport { keys, entries })
    }

    /// Removes the keys and audit entries that the tenant's policy no longer keeps. Removes revoked and expired
    /// keys like [`purge`](Self::purge), and audit entries like [`prune_audit`](Self::prune_audit). Removes
    /// nothing unless the policy limits the age of keys or entries. Writes nothing if there is nothing to remove.
    ///
    /// Call this method regularly, for example once a day for each tenant. Several processes may do so at the same
    /// time. Each commit removes a limited number of keys or entries. If the call fails, the next call removes the
    /// rest.
    ///
    /// Removes nothing while another clock contradicts this process's clock. First reads the clock of the database
    /// server, and those of the other nodes of a [registry](crate::KeywardBuilder::registry). A node's clock counts
    /// once two of its reports were read. A file has no server, so a process that is alone with a file has no other
    /// clock: if its own clock is ahead, this method removes too much.
    ///
    /// A recovery from a backup repeats revocations from the audit trail. So the policy must keep entries for
    /// longer than the age of the oldest backup that may be restored. The ids and digests of purged keys cannot be
    /// used again.
    ///
    /// # Errors
    ///
    /// [`AuditError`]. A trail that fails its check stays as it is. [`Denial::ClockRefused`] if another clock
    /// contradicts this process's clock.
    pub async fn apply_retention(&self, tenant: &TenantId) -> Result<RetentionReport, AuditError> {
        let now = self.certain_time().await?;
        let policies = self.inner.policies.get();
        let host = Actor::application(tenant.clone());
        let mut done = RetentionReport::default();
        if self.purgeable(tenant, policies.of(tenant), now).await? > 0 {
            done.keys = self.purge(&host, tenant).await?.ended as u64;
        }
        if let Some(before) = self.audit_end(tenant, policies.of(tenant), now).await? {
            let pruned = self.prune_audit(&host, tenant, before, None).await?;
            done.entries = pruned.removed;
        }
        Ok(done)
    }

    /// Counts the keys that a purge would remove at `now`.
    async fn purgeable(
        &self,
        tenant: &TenantId,
        policy: &Policy,
        now: Timestamp,
    ) -> Result<u64, AuditError> {
        let limits = |revocation| matches!(revocation, Revocation::Allowed { keep: Some(_), .. });
        if !(policy.spec().classes.values()).any(|class| limits(class.revocation)) {
            return Ok(0);
        }
        let mut count = 0;
        let mut query = KeyQuery {
            statuses: BTreeSet::from([Status::Revoked, Status::Expired]),
            limit: NonZeroUsize::new(SWEEP_MAX).unwrap_or(NonZeroUsize::MIN),
            ..KeyQuery::tenant(tenant.clone(), now)
        };
        loop {
            let page = self.inner.store.list(&query).await?;
            let ends = page
                .keys
                .iter()
                .filter_map(|record| kept_until(policy, record));
            count += ends.filter(|end| now >= *end).count() as u64;
            match page.next {
                Some(next) => query.after = Some(next),
                None => return Ok(count),
            }
        }
    }

    /// Returns the instant before which the policy keeps no audit entries. `None` if the trail has no older entry.
    async fn audit_end(
        &self,
        tenant: &TenantId,
        policy: &Policy,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, AuditError> {
        let Some(keep) = policy.spec().keep_audit else {
            return Ok(None);
        };
        // A command that is repeated within a day must find its entry.
        let end = now.saturating_sub(keep.max(time::days(1)));
        let oldest = AuditQuery {
            limit: NonZeroUsize::MIN,
            ..AuditQuery::tenant(tenant.clone())
        };
        let page = self.inner.store.audit(&oldest).await?;
        let oldest = page.rows.first().map(|row| row.entry.at);
        Ok(oldest.filter(|oldest| *oldest < end).map(|_| end))
    }

    /// Compares this process's clock with the other clocks, and returns the earliest time that it can be.
    async fn certain_time(&self) -> Result<Timestamp, AuditError> {
        self.inner.replica.read_head().await?;
        let time = self.inner.time.check();
        let own = time.own;
        match time.reference {
            Some(reference) => Err(Denial::ClockRefused { own, reference }.into()),
            None => Ok(time.earliest()),
        }
    }
}
