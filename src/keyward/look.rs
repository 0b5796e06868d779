//! Queries: lists, details, rotations, the audit trail.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::future::try_join_all;

use super::{KeyList, Keyward};
use crate::clock::Clock;
use crate::core::actor::Actor;
use crate::core::audit::{AuditEntry, AuditHead, ChainError, verify_chain};
use crate::core::authority::{Caller, Rows, Sight};
use crate::core::command::Denial;
use crate::core::id::KeyId;
use crate::core::info::KeyInfo;
use crate::core::policy::Policy;
use crate::core::query::{AuditPage, AuditQuery, KeyPosition, KeyQuery};
use crate::core::record::KeyRecord;
use crate::core::rotation::{self, RotationProgress};
use crate::core::sweep::MadeBy;
use crate::core::tenant::TenantId;
use crate::core::text::PrincipalId;
use crate::core::time::Timestamp;
use crate::core::view::{Ancestry, LoadRequest, TenantView};
use crate::events::{Events, ExpiryWindows};
use crate::manager::{CommandError, lineage_of, load_ancestry};
use crate::store::{Locator, Row, StoreError};
use crate::verifier::Grant;

/// The reason why an audit trail could not be verified.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The trail differs from the entries that were written.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The trail could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The tenant is outside the actor's reach.
    #[error(transparent)]
    Denied(#[from] Denial),
}

/// For queries as for commands, an actor sees only its own tenant and the tenants that it reaches.
impl Keyward {
    /// Returns the time of this process, from which statuses are derived. This time follows the wall clock,
    /// but never goes back.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.inner.time.now()
    }

    /// Returns the tenants whose newest commit lies in the future, each with the commit's instant.
    /// Either a clock was wrong at the commit, or this process's clock is behind.
    /// [`repair_time`](Self::repair_time) sets the instant back.
    #[must_use]
    pub fn tenants_ahead(&self) -> Vec<(TenantId, Timestamp)> {
        self.inner.replica.tenants_ahead()
    }

    /// Returns a query for the current keys of `tenant`, without its descendants; set `below` to
    /// include them.
    pub fn query(&self, tenant: &TenantId) -> KeyQuery {
        KeyQuery::tenant(tenant.clone(), self.now())
    }

    /// Lists the keys that the actor may look at, filtered, sorted and paged. A query without a
    /// tenant covers the actor's own tenant and its descendants.
    ///
    /// A class decides who may look at its keys
    /// ([`KeyClass::look`](crate::policy::KeyClass::look)). Other keys are left out.
    ///
    /// # Errors
    ///
    /// [`Denial::TenantNotFound`] outside the actor's reach, [`Denial::Forbidden`] for an actor who may
    /// look at no keys there.
    pub async fn list(&self, actor: &Actor, query: &KeyQuery) -> Result<KeyList, CommandError> {
        let mut query = query.clone();
        let tenant = query.tenant.take().unwrap_or_else(|| {
            query.below = true;
            actor.tenant().clone()
        });
        // An actor bound to one tenant sees no descendants, whatever the query asks for.
        query.below &= actor.reaches_descendants();
        query.made_by = self.with_lineage(query.made_by).await?;
        let policies = self.inner.policies.get();
        let root = self.seat(actor, &tenant, BTreeSet::new()).await?;
        let mut list = KeyList::default();
        // In a descendant the actor may see less.
        let sees_all = !query.below && root.caller.sees_all(policies.of(&tenant));
        let sees_all = sees_all || actor.is_application();
        match root.caller.sight(policies.of(&tenant))? {
            Sight::Some => {}
            Sight::Own(own) if query.owner.as_ref().is_none_or(|owner| *owner == own) => {
                query.owner = Some(own);
            }
            Sight::Own(_) => return Ok(list),
        }
        query.tenant = Some(tenant);
        let limit = query.limit.get();
        // Keys that the actor may not look at are left out here, so that a page may take several
        // reads.
        while list.keys.len() < limit {
            let page = self.inner.store.list(&query).await?;
            list.corrupt
                .extend(page.corrupt.into_iter().filter(|_| sees_all));
            let seats = self.seats(actor, &page.keys).await?;
            let mut more = page.keys.into_iter();
            for record in more.by_ref() {
                query.after = Some(KeyPosition::of(&record));
                let (seat, policy) = (seats.get(&record.tenant), policies.of(&record.tenant));
                list.keys
                    .extend(seat.and_then(|seat| seat.info(record, policy, query.at)));
                if list.keys.len() == limit {
                    break;
                }
            }
            if more.next().is_none() && page.next.is_none() {
                return Ok(list);
            }
        }
        list.next = query.after;
        Ok(list)
    }

    /// Lists the keys that were made by `key` or by another key of its chain of rotations, directly or
    /// through other keys. When `key` has leaked, these are the other keys to look at. Includes ended keys,
    /// and leaves out keys that the actor may not look at.
    ///
    /// [`revoke_many`](Self::revoke_many) with [`BulkFilter::made_by`](crate::command::BulkFilter::made_by)
    /// revokes them.
    ///
    /// # Errors
    ///
    /// The errors of [`list`](Self::list).
    pub async fn made_by(
        &self,
        actor: &Actor,
        tenant: &TenantId,
        key: KeyId,
    ) -> Result<Vec<KeyInfo>, CommandError> {
        let lineage = None;
        let mut query = KeyQuery {
            below: true,
            made_by: Some(MadeBy { key, lineage }),
            ..self.query(tenant)
        };
        let mut keys = Vec::new();
        loop {
            let page = self.list(actor, &query).await?;
            keys.extend(page.keys);
            match page.next {
                Some(next) => query.after = Some(next),
                None => return Ok(keys),
            }
        }
    }

    /// Returns everything that people see of one key, read from the store.
    ///
    /// # Errors
    ///
    /// [`Denial::NotFound`] if the actor reaches no such key, or may not look at it.
    pub async fn key(&self, actor: &Actor, id: KeyId) -> Result<KeyInfo, CommandError> {
        let (record, seat) = self.record(actor, id).await?;
        let policies = self.inner.policies.get();
        let policy = policies.of(&record.tenant);
        let info = seat.info(record, policy, self.now());
        info.ok_or_else(|| Denial::NotFound.into())
    }

    /// Returns everything that the holder of a verified key may see of it, read from the store.
    ///
    /// # Errors
    ///
    /// [`Denial::NotFound`] if the key was removed since.
    pub async fn key_for_grant(&self, grant: &Grant) -> Result<KeyInfo, CommandError> {
        // The key's holder asks, so the authority of an owner does not count.
        let holder = Actor::application(grant.tenant().clone());
        self.key(&holder, grant.key_id()).await
    }

    /// Returns the progress of a key's rotation; `None` if the key is not being replaced.
    /// `old_last_seen` is the time at which the old key was last presented, if the host records it.
    ///
    /// # Errors
    ///
    /// [`Denial::NotFound`] if the actor reaches no such key, or may not look at it.
    pub async fn rotation_progress(
        &self,
        actor: &Actor,
        old: KeyId,
        old_last_seen: Option<Timestamp>,
    ) -> Result<Option<RotationProgress>, CommandError> {
        let (old, _) = self.record(actor, old).await?;
        let successor = match &old.succession {
            Some(succession) => self.record(actor, succession.successor).await.ok(),
            None => None,
        };
        Ok(rotation::progress(
            &old,
            successor.as_ref().map(|(record, _)| record),
            old_last_seen,
            self.now(),
        ))
    }

    /// Reads the audit trail, oldest first. A query without a tenant reads the trail of the actor's own
    /// tenant. For administrators and [auditors](crate::policy::PolicySpec::auditors).
    ///
    /// # Errors
    ///
    /// [`Denial::TenantNotFound`] outside the actor's reach, [`Denial::Forbidden`] for any other actor.
    pub async fn audit(
        &self,
        actor: &Actor,
        query: &AuditQuery,
    ) -> Result<AuditPage, CommandError> {
        let tenant = query
            .tenant
            .clone()
            .unwrap_or_else(|| actor.tenant().clone());
        let seat = self.seat(actor, &tenant, BTreeSet::new()).await?;
        let policies = self.inner.policies.get();
        seat.caller.permit_audit(policies.of(&tenant))?;
        let query = AuditQuery {
            tenant: Some(tenant),
            ..query.clone()
        };
        Ok(self.inner.store.audit(&query).await?)
    }

    /// Verifies that a tenant's audit trail is exactly what was written, and returns its head. `seen` is a
    /// head that was recorded elsewhere before. Comparing `seen` with the trail reveals a truncation.
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
        let seat = self.seat(actor, tenant, BTreeSet::new()).await?;
        let policies = self.inner.policies.get();
        seat.caller.permit_audit(policies.of(tenant))?;
        // The chain must lead to the store's head. Otherwise a truncated trail would pass.
        let stands = self
            .inner
            .store
            .load(tenant, &LoadRequest::none())
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

    /// Returns the events of the whole store, with notices for `windows` before keys expire. For the host
    /// itself, since the events cover all tenants.
    pub fn events(&self, windows: ExpiryWindows) -> Events {
        let (store, clock) = (self.inner.store.clone(), self.inner.time.clone());
        Events::new(store, clock, windows)
    }

    async fn record(&self, actor: &Actor, id: KeyId) -> Result<(KeyRecord, Seat), CommandError> {
        let found = self.inner.store.find(&Locator::Id(id)).await?;
        let Some(Row::Key(record)) = found.map(|found| found.change.row) else {
            return Err(Denial::NotFound.into());
        };
        let owners = record.owner.principal().cloned().into_iter().collect();
        let seat = match self.seat(actor, &record.tenant, owners).await {
            Err(SeatError::Denied(Denial::TenantNotFound)) => return Err(Denial::NotFound.into()),
            seat => seat?,
        };
        let policies = self.inner.policies.get();
        let policy = policies.of(&record.tenant);
        match seat.caller.sees(policy, &record.class, &record.owner) {
            true => Ok((*record, seat)),
            false => Err(Denial::NotFound.into()),
        }
    }

    /// Returns the authority of `actor` in `tenant`, by the store's current state, with the rows of
    /// `owners`.
    async fn seat(
        &self,
        actor: &Actor,
        tenant: &TenantId,
        mut owners: BTreeSet<PrincipalId>,
    ) -> Result<Seat, SeatError> {
        if !actor.reaches(tenant) {
            return Err(Denial::TenantNotFound.into());
        }
        owners.extend(actor.principal().cloned());
        let at_home = actor.tenant() == tenant;
        let select = LoadRequest {
            keys: actor.key_id().filter(|_| at_home).into_iter().collect(),
            owners: owners.iter().cloned().collect(),
            ..LoadRequest::none()
        };
        let store = &*self.inner.store;
        let view = store.load(tenant, &select).await?;
        let ancestry = load_ancestry(store, tenant, owners, std::iter::once(actor)).await?;
        let rows = Rows {
            view: &view,
            ancestry: &ancestry,
        };
        let policies = self.inner.policies.get();
        let both = (&**policies.of(tenant), &**policies.of(actor.tenant()));
        let caller = Caller::resolve(actor, tenant, rows, both, self.now())?;
        Ok(Seat {
            caller,
            view,
            ancestry,
        })
    }

    /// Returns the authority of `actor` in each tenant of `records`, with the rows of their owners.
    async fn seats(
        &self,
        actor: &Actor,
        records: &[KeyRecord],
    ) -> Result<HashMap<TenantId, Seat>, CommandError> {
        let mut owners: BTreeMap<&TenantId, BTreeSet<PrincipalId>> = BTreeMap::new();
        for record in records {
            let of_tenant = owners.entry(&record.tenant).or_default();
            of_tenant.extend(record.owner.principal().cloned());
        }
        let seats = owners.into_iter().map(async |(tenant, owners)| {
            match self.seat(actor, tenant, owners).await {
                Ok(seat) => Ok(Some((tenant.clone(), seat))),
                // The acting key has no authority in this descendant, for example because the
                // tenant was closed.
                Err(SeatError::Denied(denied)) => {
                    tracing::debug!(%tenant, %denied, "keys are left out of a list");
                    Ok(None)
                }
                Err(SeatError::Store(error)) => Err(error),
            }
        });
        let seats = try_join_all(seats).await?;
        Ok(seats.into_iter().flatten().collect())
    }

    async fn with_lineage(&self, made_by: Option<MadeBy>) -> Result<Option<MadeBy>, CommandError> {
        let Some(mut made_by) = made_by.filter(|by| by.lineage.is_none()) else {
            return Ok(made_by);
        };
        made_by.lineage = Some(lineage_of(&*self.inner.store, made_by.key).await?);
        Ok(Some(made_by))
    }
}

/// The authority of an actor in a tenant, with the rows from which it was derived.
struct Seat {
    caller: Caller,
    view: TenantView,
    ancestry: Ancestry,
}

impl Seat {
    /// Returns the part of a key that the caller may see; `None` if the caller may not look at the
    /// key.
    fn info(&self, record: KeyRecord, policy: &Policy, at: Timestamp) -> Option<KeyInfo> {
        if !self.caller.sees(policy, &record.class, &record.owner) {
            return None;
        }
        let rows = Rows {
            view: &self.view,
            ancestry: &self.ancestry,
        };
        let standing = rows.standing(&record.tenant, &record.owner);
        Some(KeyInfo::new(record, policy, &standing, at))
    }
}

/// The reason why an actor's authority could not be derived.
enum SeatError {
    Denied(Denial),
    Store(StoreError),
}

impl From<Denial> for SeatError {
    fn from(denied: Denial) -> Self {
        Self::Denied(denied)
    }
}

impl From<StoreError> for SeatError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<SeatError> for CommandError {
    fn from(error: SeatError) -> Self {
        match error {
            SeatError::Denied(denied) => denied.into(),
            SeatError::Store(error) => error.into(),
        }
    }
}

impl From<SeatError> for AuditError {
    fn from(error: SeatError) -> Self {
        match error {
            SeatError::Denied(denied) => denied.into(),
            SeatError::Store(error) => error.into(),
        }
    }
}
