//! Queries: lists, details, rotations, the audit trail.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::future::try_join_all;

use super::{KeyList, Keyward};
use crate::clock::Clock;
use crate::core::actor::Actor;
use crate::core::authority::{AuthorityRows, Caller, VisibleKeys};
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
use crate::observe::WithSources;
use crate::store::{Locator, Row, StoreError};
use crate::verifier::Grant;

/// Queries. An actor sees only tenants that it reaches, as in commands.
impl Keyward {
    /// Returns the current time, from which key statuses are derived. This time follows the wall clock, but
    /// never goes backwards.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.inner.time.now()
    }

    /// Returns the tenants whose newest commit lies in the future, each with the time of that commit. Either
    /// a clock was wrong at the commit, or this process's clock is behind. [`repair_time`](Self::repair_time)
    /// corrects the tenant's time.
    #[must_use]
    pub fn tenants_ahead(&self) -> Vec<(TenantId, Timestamp)> {
        self.inner.replica.tenants_ahead()
    }

    /// Returns a query for the current keys of `tenant`. To include descendants of the tenant, set the
    /// query's field `below`.
    pub fn query(&self, tenant: &TenantId) -> KeyQuery {
        KeyQuery::tenant(tenant.clone(), self.now())
    }

    /// Lists the keys that the actor may look at, filtered, sorted and paged. A query without a
    /// tenant covers the actor's own tenant and its descendants.
    ///
    /// Leaves out keys that the actor may not look at, according to
    /// [`KeyClass::look`](crate::policy::KeyClass::look).
    ///
    /// # Errors
    ///
    /// [`Denial::TenantNotFound`] if the actor does not reach the tenant. [`Denial::Forbidden`] if no
    /// class lets the actor look at any key there. A class that lets owners look at their own keys is enough for an
    /// empty list.
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
        let root = self.authority(actor, &tenant, BTreeSet::new()).await?;
        let mut list = KeyList::default();
        // The class of a corrupt key is unknown, so only an actor that sees every key gets its id. An actor
        // may see fewer keys in a descendant tenant, so a query with descendants does not return the id.
        let sees_all = !query.below && root.caller.sees_all(policies.of(&tenant));
        let sees_all = sees_all || actor.is_application();
        match root.caller.visible_keys(policies.of(&tenant))? {
            VisibleKeys::OfAnyOwner => {}
            VisibleKeys::OfOwner(own) if query.owner.as_ref().is_none_or(|owner| *owner == own) => {
                query.owner = Some(own);
            }
            VisibleKeys::OfOwner(_) => return Ok(list),
        }
        query.tenant = Some(tenant);
        let limit = query.limit.get();
        // The store returns keys that the actor may not look at, so filling a page may take several reads.
        while list.keys.len() < limit {
            let page = self.inner.store.list(&query).await?;
            list.corrupt
                .extend(page.corrupt.into_iter().filter(|_| sees_all));
            let authorities = self.authorities(actor, &page.keys).await?;
            let mut more = page.keys.into_iter();
            for record in more.by_ref() {
                query.after = Some(KeyPosition::of(&record));
                let (authority, policy) =
                    (authorities.get(&record.tenant), policies.of(&record.tenant));
                list.keys.extend(
                    authority.and_then(|authority| authority.info(record, policy, query.at)),
                );
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

    /// Lists the keys that were made with `key` or with a key of its rotation chain, directly or through
    /// other keys. If `key` has leaked, review these keys too. Includes revoked and expired keys. Leaves out
    /// keys that the actor may not look at.
    ///
    /// [`revoke_many`](Self::revoke_many) with [`BulkFilter::made_by`](crate::command::BulkFilter::made_by)
    /// revokes all of these keys.
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

    /// Returns the details of one key, read from the store.
    ///
    /// # Errors
    ///
    /// [`Denial::NotFound`] if the actor reaches no such key, or may not look at it.
    pub async fn key(&self, actor: &Actor, id: KeyId) -> Result<KeyInfo, CommandError> {
        let (record, authority) = self.record(actor, id).await?;
        let policies = self.inner.policies.get();
        let policy = policies.of(&record.tenant);
        let info = authority.info(record, policy, self.now());
        info.ok_or_else(|| Denial::NotFound.into())
    }

    /// Returns the details of a verified key for the holder of the key, read from the store.
    ///
    /// # Errors
    ///
    /// [`Denial::NotFound`] if the key was removed since.
    pub async fn key_for_grant(&self, grant: &Grant) -> Result<KeyInfo, CommandError> {
        // The caller has proved that it holds the key, so no owner's permissions are checked.
        let holder = Actor::application(grant.tenant().clone());
        self.key(&holder, grant.key_id()).await
    }

    /// Returns the progress of a key's rotation; `None` if the key is not being replaced. The argument
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

    /// Reads the audit trail, oldest entry first. A query without a tenant reads the trail of the actor's own
    /// tenant. Administrators and [auditors](crate::policy::PolicySpec::auditors) may read it.
    ///
    /// # Errors
    ///
    /// [`Denial::TenantNotFound`] if the actor does not reach the tenant. [`Denial::Forbidden`] if the actor
    /// may not read the trail.
    pub async fn audit(
        &self,
        actor: &Actor,
        query: &AuditQuery,
    ) -> Result<AuditPage, CommandError> {
        let tenant = query
            .tenant
            .clone()
            .unwrap_or_else(|| actor.tenant().clone());
        let authority = self.authority(actor, &tenant, BTreeSet::new()).await?;
        let policies = self.inner.policies.get();
        authority.caller.permit_audit(policies.of(&tenant))?;
        let query = AuditQuery {
            tenant: Some(tenant),
            ..query.clone()
        };
        Ok(self.inner.store.audit(&query).await?)
    }

    /// Returns the events of the whole store, and notices before keys expire. The argument `windows` sets how
    /// long before the expiry. Only for the host itself, because the events cover all tenants.
    pub fn events(&self, windows: ExpiryWindows) -> Events {
        let (store, clock) = (self.inner.store.clone(), self.inner.time.clone());
        Events::new(store, clock, windows)
    }

    async fn record(
        &self,
        actor: &Actor,
        id: KeyId,
    ) -> Result<(KeyRecord, ActorAuthority), CommandError> {
        let found = self.inner.store.find(&Locator::Id(id)).await?;
        let Some(Row::Key(record)) = found.map(|found| found.change.row) else {
            return Err(Denial::NotFound.into());
        };
        let owners = record.owner.principal().cloned().into_iter().collect();
        let authority = match self.authority(actor, &record.tenant, owners).await {
            Err(AuthorityError::Denied(Denial::TenantNotFound)) => {
                return Err(Denial::NotFound.into());
            }
            authority => authority?,
        };
        let policies = self.inner.policies.get();
        let policy = policies.of(&record.tenant);
        match authority.caller.sees(policy, &record.class, &record.owner) {
            true => Ok((*record, authority)),
            false => Err(Denial::NotFound.into()),
        }
    }

    /// Loads the authority of `actor` in `tenant` from the store, and the rows of `owners`.
    pub(super) async fn authority(
        &self,
        actor: &Actor,
        tenant: &TenantId,
        mut owners: BTreeSet<PrincipalId>,
    ) -> Result<ActorAuthority, AuthorityError> {
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
        let rows = AuthorityRows {
            view: &view,
            ancestry: &ancestry,
        };
        let policies = self.inner.policies.get();
        let both = (&**policies.of(tenant), &**policies.of(actor.tenant()));
        let caller = Caller::resolve(actor, tenant, rows, both, self.now())?;
        Ok(ActorAuthority {
            caller,
            view,
            ancestry,
        })
    }

    /// Loads the authority of `actor` in each tenant of `records`, and the rows of the records' owners.
    async fn authorities(
        &self,
        actor: &Actor,
        records: &[KeyRecord],
    ) -> Result<HashMap<TenantId, ActorAuthority>, CommandError> {
        let mut owners: BTreeMap<&TenantId, BTreeSet<PrincipalId>> = BTreeMap::new();
        for record in records {
            let of_tenant = owners.entry(&record.tenant).or_default();
            of_tenant.extend(record.owner.principal().cloned());
        }
        let authorities = owners.into_iter().map(async |(tenant, owners)| {
            match self.authority(actor, tenant, owners).await {
                Ok(authority) => Ok(Some((tenant.clone(), authority))),
                // The acting key has no authority in this descendant, for example because the
                // tenant was closed.
                Err(AuthorityError::Denied(denied)) => {
                    tracing::debug!(%tenant, error = %WithSources(&denied), "keys are left out of a list");
                    Ok(None)
                }
                Err(AuthorityError::Store(error)) => Err(error),
            }
        });
        let authorities = try_join_all(authorities).await?;
        Ok(authorities.into_iter().flatten().collect())
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
pub(super) struct ActorAuthority {
    pub(super) caller: Caller,
    view: TenantView,
    ancestry: Ancestry,
}

impl ActorAuthority {
    /// Returns the part of a key that the caller may see; `None` if the caller may not look at the
    /// key.
    fn info(&self, record: KeyRecord, policy: &Policy, at: Timestamp) -> Option<KeyInfo> {
        if !self.caller.sees(policy, &record.class, &record.owner) {
            return None;
        }
        let rows = AuthorityRows {
            view: &self.view,
            ancestry: &self.ancestry,
        };
        let standing = rows.owner_status(&record.tenant, &record.owner);
        Some(KeyInfo::new(record, policy, &standing, at))
    }
}

/// The reason why the authority of an actor could not be loaded.
pub(super) enum AuthorityError {
    Denied(Denial),
    Store(StoreError),
}

impl From<Denial> for AuthorityError {
    fn from(denied: Denial) -> Self {
        Self::Denied(denied)
    }
}

impl From<StoreError> for AuthorityError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<AuthorityError> for CommandError {
    fn from(error: AuthorityError) -> Self {
        match error {
            AuthorityError::Denied(denied) => denied.into(),
            AuthorityError::Store(error) => error.into(),
        }
    }
}
