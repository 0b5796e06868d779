//! Looking at keys: lists, details, rotations, the audit trail.

use super::{KeyList, Keyward};
use crate::core::actor::Actor;
use crate::core::audit::{AuditEntry, AuditHead, ChainError, verify_chain};
use crate::core::command::Denied;
use crate::core::id::KeyId;
use crate::core::info::KeyInfo;
use crate::core::query::{AuditPage, AuditQuery, KeyQuery};
use crate::core::record::KeyRecord;
use crate::core::rotation::{self, RotationProgress};
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;
use crate::core::view::Select;
use crate::events::{Events, ExpiryWindows};
use crate::manager::Error;
use crate::store::{Locator, Row, StoreError};
use crate::verifier::Grant;

/// Why an audit trail could not be shown to be intact.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// It is not what was written.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// It could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The tenant is outside the actor's reach.
    #[error(transparent)]
    Denied(#[from] Denied),
}

/// What an actor sees is bound to its tenant, as what it changes is.
impl Keyward {
    /// The instant for which statuses are derived: the clock's, or the newest commit's if that is
    /// later.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.inner.clock.now().max(self.inner.replica.newest())
    }

    /// A query for the keys of `tenant` as they are now, without those of the tenants below; set
    /// `below` for these.
    pub fn query(&self, tenant: &TenantId) -> KeyQuery {
        KeyQuery::tenant(tenant.clone(), self.now())
    }

    /// Lists keys, filtered, sorted and paged. A query that names no tenant is about the actor's
    /// own and all below it.
    ///
    /// # Errors
    ///
    /// [`Denied::TenantNotFound`] outside the actor's reach.
    pub async fn list(&self, actor: &Actor, query: &KeyQuery) -> Result<KeyList, Error> {
        let mut query = query.clone();
        let tenant = query.tenant.take().unwrap_or_else(|| {
            query.below = true;
            actor.tenant().clone()
        });
        self.check_reach(actor, &tenant)?;
        // An actor bound to one tenant sees nothing below it, whatever it asks for.
        query.below &= actor.reaches_below();
        let at = query.at;
        let page = self
            .inner
            .store
            .list(&KeyQuery {
                tenant: Some(tenant),
                ..query
            })
            .await?;
        let policies = self.inner.policies.load();
        let info = |record: KeyRecord| {
            let policy = policies.of(&record.tenant).clone();
            KeyInfo::new(record, &policy, at)
        };
        let keys = page.keys.into_iter().map(info).collect();
        Ok(KeyList {
            keys,
            corrupt: page.corrupt,
            next: page.next,
        })
    }

    /// Everything that people see of one key, read from the store.
    ///
    /// # Errors
    ///
    /// [`Denied::NotFound`] if there is none within the actor's reach.
    pub async fn key(&self, actor: &Actor, id: KeyId) -> Result<KeyInfo, Error> {
        let record = self.record(actor, id).await?;
        let policy = self.inner.policies.load().of(&record.tenant).clone();
        Ok(KeyInfo::new(record, &policy, self.now()))
    }

    /// Everything that people see of a key that was verified, read from the store: what its holder
    /// may know of it.
    ///
    /// # Errors
    ///
    /// [`Denied::NotFound`] if it was removed since.
    pub async fn info(&self, grant: &Grant) -> Result<KeyInfo, Error> {
        let found = self.inner.store.find(&Locator::Id(grant.key_id())).await?;
        match found.map(|found| found.change.row) {
            Some(Row::Key(record)) => {
                let policy = self.inner.policies.get().of(&record.tenant).clone();
                Ok(KeyInfo::new(*record, &policy, self.now()))
            }
            _ => Err(Denied::NotFound.into()),
        }
    }

    /// Where the rotation of a key stands; `None` if it is not being replaced. `old_last_seen` is
    /// when the old key was last presented, if the host keeps count.
    ///
    /// # Errors
    ///
    /// [`Denied::NotFound`] if there is no such key within the actor's reach.
    pub async fn rotation(
        &self,
        actor: &Actor,
        old: KeyId,
        old_last_seen: Option<Timestamp>,
    ) -> Result<Option<RotationProgress>, Error> {
        let old = self.record(actor, old).await?;
        let successor = match &old.succession {
            Some(succession) => self.record(actor, succession.successor).await.ok(),
            None => None,
        };
        Ok(rotation::progress(
            &old,
            successor.as_ref(),
            old_last_seen,
            self.now(),
        ))
    }

    /// Reads the audit trail, oldest first. A query that names no tenant is about the actor's own.
    ///
    /// # Errors
    ///
    /// [`Denied::TenantNotFound`] outside the actor's reach.
    pub async fn audit(&self, actor: &Actor, query: &AuditQuery) -> Result<AuditPage, Error> {
        let tenant = query
            .tenant
            .clone()
            .unwrap_or_else(|| actor.tenant().clone());
        self.check_reach(actor, &tenant)?;
        let query = AuditQuery {
            tenant: Some(tenant),
            ..query.clone()
        };
        Ok(self.inner.store.audit(&query).await?)
    }

    /// Checks that a tenant's audit trail is exactly what was written, and tells where it ends.
    /// `seen` is an end that was noted elsewhere before: it shows a trail that was cut short.
    ///
    /// # Errors
    ///
    /// [`AuditError`] names the first entry that is not what was written.
    pub async fn verify_audit(
        &self,
        actor: &Actor,
        tenant: &TenantId,
        seen: Option<AuditHead>,
    ) -> Result<AuditHead, AuditError> {
        self.check_reach(actor, tenant)?;
        // The chain must lead to where the store says that it ends, or nothing would show an end
        // that is missing.
        let stands = self
            .inner
            .store
            .load(tenant, &Select::none())
            .await?
            .audit_head;
        let mut query = AuditQuery::tenant(tenant.clone());
        let mut entries = Vec::new();
        loop {
            let page = self.inner.store.audit(&query).await?;
            entries.extend(page.rows.into_iter().map(|row| row.entry));
            match page.next {
                Some(next) => query.after = Some(next),
                None => break,
            }
        }
        let head = verify_chain(
            tenant,
            AuditHead::GENESIS,
            &entries,
            &self.inner.peppers,
            seen,
        )?;
        let passed = |entry: &AuditEntry| entry.head() == stands;
        if stands != AuditHead::GENESIS && !entries.iter().any(passed) {
            let expected = stands.sequence;
            return Err(ChainError::Truncated { expected }.into());
        }
        Ok(head)
    }

    /// Events of the whole store, with notices for `windows` before the end of keys. For the host
    /// itself: it tells across tenants.
    pub fn events(&self, windows: ExpiryWindows) -> Events {
        let (store, clock) = (self.inner.store.clone(), self.inner.clock.clone());
        Events::new(store, clock, windows)
    }

    async fn record(&self, actor: &Actor, id: KeyId) -> Result<KeyRecord, Error> {
        let found = self.inner.store.find(&Locator::Id(id)).await?;
        match found.map(|found| found.change.row) {
            Some(Row::Key(record)) if actor.reaches(&record.tenant) => {
                self.check_reach(actor, &record.tenant)?;
                Ok(*record)
            }
            _ => Err(Denied::NotFound.into()),
        }
    }

    fn check_reach(&self, actor: &Actor, tenant: &TenantId) -> Result<(), Denied> {
        if !actor.reaches(tenant) {
            return Err(Denied::TenantNotFound);
        }
        match actor.expires_at() {
            Some(end) if self.now() >= end => Err(Denied::ActorExpired),
            _ => Ok(()),
        }
    }
}
