//! Commands: every change of keys in one call.

use std::time::Duration;

use super::{Created, Imported, Keyward, LeakReport, Rotated, TimeRepaired};
use crate::core::actor::{Actor, Invocation};
use crate::core::command::{
    Command, CreateKey, DeleteKey, Denial, ImportKey, IssuedKey, Outcome, Request, RevokeKey,
    RotateKey, UpdateKey,
};
use crate::core::id::KeyId;
use crate::core::need::Need;
use crate::core::query::KeyQuery;
use crate::core::record::{Reason, Resource};
use crate::core::rejection::VerifyError;
use crate::core::secret::Fingerprint;
use crate::core::sweep::BulkFilter;
use crate::core::tenant::TenantId;
use crate::core::text::{LeakSource, PrincipalId, Role};
use crate::core::view::LoadRequest;
use crate::manager::{BulkReceipt, CommandError, Committed, Receipt};
use crate::store::{Locator, Row, RowKey, StoreErrorKind};

/// One minute, after which maintenance continues a command over many keys in place of its caller. A
/// judgement: a page of a thousand keys takes well under a second. The caller and maintenance may run
/// concurrently without harm.
const SWEEP_PATIENCE: Duration = Duration::from_secs(60);

/// Every call takes an [`Actor`], or an actor with an idempotency key ([`Actor::with_command_id`]). With an
/// idempotency key, a retry changes nothing. A call whose future is dropped may or may not commit.
impl Keyward {
    /// Creates a key.
    ///
    /// # Errors
    ///
    /// [`CommandError`]; [`Denial::AlreadyCreated`] if a command with this id has already created a key.
    pub async fn create(
        &self,
        by: impl Into<Invocation<'_>>,
        key: CreateKey,
    ) -> Result<Created, CommandError> {
        let tenant = key.tenant().cloned();
        let landed = self.give(by, tenant, key.into_command()?).await?;
        Created::from_committed(landed).ok_or(CommandError::Denied(Denial::NotFound))
    }

    /// Imports a key of another system as a digest. The client keeps using the key.
    ///
    /// # Errors
    ///
    /// [`CommandError`]; [`Denial::DigestTaken`] if the digest was ever imported before.
    pub async fn import(
        &self,
        by: impl Into<Invocation<'_>>,
        key: ImportKey,
    ) -> Result<Imported, CommandError> {
        let tenant = key.tenant().cloned();
        let landed = self.give(by, tenant, key.into_command()?).await?;
        Imported::from_committed(landed).ok_or(CommandError::Denied(Denial::NotFound))
    }

    /// Changes a key's name, attributes, permissions or lifetime.
    ///
    /// # Errors
    ///
    /// [`CommandError`].
    pub async fn update(
        &self,
        by: impl Into<Invocation<'_>>,
        key: KeyId,
        change: UpdateKey,
    ) -> Result<Receipt, CommandError> {
        let command = change.into_command(key)?;
        Ok(self.give_about(by, command).await?.receipt)
    }

    /// Disables a key until it is enabled again.
    ///
    /// # Errors
    ///
    /// [`CommandError`].
    pub async fn disable(
        &self,
        by: impl Into<Invocation<'_>>,
        key: KeyId,
    ) -> Result<Receipt, CommandError> {
        Ok(self.give_about(by, Command::Disable { key }).await?.receipt)
    }

    /// Enables a disabled key.
    ///
    /// # Errors
    ///
    /// [`CommandError`].
    pub async fn enable(
        &self,
        by: impl Into<Invocation<'_>>,
        key: KeyId,
    ) -> Result<Receipt, CommandError> {
        Ok(self.give_about(by, Command::Enable { key }).await?.receipt)
    }

    /// Revokes a key permanently. This process refuses the key when the call returns, every other
    /// process by [`Receipt::no_later_than`].
    ///
    /// # Errors
    ///
    /// [`CommandError`]; [`Denial::ConfirmationRequired`] if the class asks for confirmation: pass
    /// `reason.confirmed()`.
    pub async fn revoke(
        &self,
        by: impl Into<Invocation<'_>>,
        key: KeyId,
        revocation: impl Into<RevokeKey>,
    ) -> Result<Receipt, CommandError> {
        let revocation = revocation.into();
        Ok(self
            .give_about(by, Command::Revoke { key, revocation })
            .await?
            .receipt)
    }

    /// Removes a key permanently.
    ///
    /// # Errors
    ///
    /// [`CommandError`].
    pub async fn delete(
        &self,
        by: impl Into<Invocation<'_>>,
        key: KeyId,
        deletion: DeleteKey,
    ) -> Result<Receipt, CommandError> {
        Ok(self
            .give_about(by, Command::Delete { key, deletion })
            .await?
            .receipt)
    }

    /// Replaces a key by a successor.
    ///
    /// # Errors
    ///
    /// [`CommandError`]; [`Denial::AlreadyCreated`] if a command with this id has already created a
    /// successor.
    pub async fn rotate(
        &self,
        by: impl Into<Invocation<'_>>,
        key: KeyId,
        how: impl Into<RotateKey>,
    ) -> Result<Rotated, CommandError> {
        let how = how.into();
        let landed = self.give_about(by, Command::Rotate { key, how }).await?;
        Rotated::from_committed(landed).ok_or(CommandError::Denied(Denial::NotFound))
    }

    /// Ends the old key of a rotation immediately.
    ///
    /// # Errors
    ///
    /// [`CommandError`].
    pub async fn finish_rotation(
        &self,
        by: impl Into<Invocation<'_>>,
        old: KeyId,
    ) -> Result<Receipt, CommandError> {
        Ok(self
            .give_about(by, Command::FinishRotation { key: old })
            .await?
            .receipt)
    }

    /// Cancels a rotation: revokes the unused successor, and lets the old key work as before.
    ///
    /// # Errors
    ///
    /// [`CommandError`].
    pub async fn cancel_rotation(
        &self,
        by: impl Into<Invocation<'_>>,
        old: KeyId,
    ) -> Result<Receipt, CommandError> {
        Ok(self
            .give_about(by, Command::CancelRotation { key: old })
            .await?
            .receipt)
    }

    /// Gives a key a new secret because the response with the first one was lost.
    ///
    /// # Errors
    ///
    /// [`CommandError`]; [`Denial::NotReplaceable`] more than an hour after creation, or for any actor but
    /// the creator.
    pub async fn replace_lost(
        &self,
        by: impl Into<Invocation<'_>>,
        key: KeyId,
    ) -> Result<Created, CommandError> {
        let landed = self.give_about(by, Command::ReplaceLost { key }).await?;
        Created::from_committed(landed).ok_or(CommandError::Denied(Denial::NotFound))
    }

    /// Sets the newest instant of a tenant back to the current time, if a wrong clock left it in
    /// the future. Only the application may do so. Keys keep the times that the wrong clock gave
    /// them: check when the tenant's keys were created and when they expire.
    ///
    /// # Errors
    ///
    /// [`CommandError`]; [`Denial::TenantNotFound`] for an unknown tenant.
    pub async fn repair_time(
        &self,
        by: impl Into<Invocation<'_>>,
        tenant: &TenantId,
    ) -> Result<TimeRepaired, CommandError> {
        let landed = self
            .give(by, Some(tenant.clone()), Command::RepairTime)
            .await?;
        Ok(TimeRepaired::from_committed(landed))
    }

    /// Registers a tenant, and returns the keys that its policy provisions. Returns no keys if the tenant is
    /// already registered.
    ///
    /// # Errors
    ///
    /// [`CommandError`].
    pub async fn provision_tenant(
        &self,
        by: impl Into<Invocation<'_>>,
        tenant: &TenantId,
    ) -> Result<Vec<IssuedKey>, CommandError> {
        let landed = self
            .give(by, Some(tenant.clone()), Command::ProvisionTenant)
            .await?;
        Ok(provisioned(landed))
    }

    /// Creates the keys that the policy provisions with a resource.
    ///
    /// # Errors
    ///
    /// [`CommandError`]; [`Denial::UnknownResource`] if the policy provisions no keys with the resource.
    pub async fn provision_resource(
        &self,
        by: impl Into<Invocation<'_>>,
        tenant: &TenantId,
        resource: Resource,
    ) -> Result<Vec<IssuedKey>, CommandError> {
        let command = Command::ProvisionResource(resource);
        Ok(provisioned(
            self.give(by, Some(tenant.clone()), command).await?,
        ))
    }

    /// Ends every key of a tenant and of its descendants permanently. The keys are refused from the first
    /// commit on. Repeat an interrupted call: it continues where it stopped.
    ///
    /// # Errors
    ///
    /// [`CommandError`].
    pub async fn close_tenant(
        &self,
        by: impl Into<Invocation<'_>>,
        tenant: &TenantId,
    ) -> Result<BulkReceipt, CommandError> {
        self.give_bulk(by, tenant, Command::CloseTenant).await
    }

    /// Refuses all keys of a principal from now on, in `tenant` and its descendants, and revokes these keys.
    /// Repeat an interrupted call: it continues where it stopped.
    ///
    /// # Errors
    ///
    /// [`CommandError`].
    pub async fn remove_owner(
        &self,
        by: impl Into<Invocation<'_>>,
        tenant: &TenantId,
        owner: PrincipalId,
    ) -> Result<BulkReceipt, CommandError> {
        self.give_bulk(by, tenant, Command::RemoveOwner { owner })
            .await
    }

    /// Stores the role that the application has for an owner wherever another role is stored: in the
    /// ancestors of `tenant` that the actor reaches, in `tenant`, and in descendants with live keys of the
    /// owner. Resolves [`Denial::RoleDrift`](crate::Denial::RoleDrift). Only the application itself may call
    /// this method.
    ///
    /// # Errors
    ///
    /// [`CommandError`]; [`Denial::HostOnly`] for any other actor.
    pub async fn sync_role(
        &self,
        by: impl Into<Invocation<'_>>,
        tenant: &TenantId,
        owner: PrincipalId,
        role: Role,
    ) -> Result<Receipt, CommandError> {
        let by = by.into();
        let command = Command::SyncOwnerRole { owner, role };
        let above: Vec<_> = tenant
            .ancestors()
            .filter(|above| by.actor.reaches(above))
            .collect();
        for above in above.into_iter().rev() {
            self.give(&by, Some(above), command.clone()).await?;
        }
        Ok(self.give_bulk(by, tenant, command).await?.receipt)
    }

    /// Sets the role of a principal who owns keys, in `tenant` and in descendants with live keys of the
    /// principal. Every key of a class with a live ceiling narrows or widens immediately. For actions of the
    /// principal in person, the role in the [`Actor`] that the host makes counts.
    ///
    /// # Errors
    ///
    /// [`CommandError`].
    pub async fn change_owner_role(
        &self,
        by: impl Into<Invocation<'_>>,
        tenant: &TenantId,
        owner: PrincipalId,
        role: Role,
    ) -> Result<Receipt, CommandError> {
        let command = Command::ChangeOwnerRole { owner, role };
        Ok(self.give_bulk(by, tenant, command).await?.receipt)
    }

    /// Revokes all matching keys of `tenant`, except legacy keys, in commits of at most
    /// [`SWEEP_MAX`](crate::rules::SWEEP_MAX). [`BulkFilter::made_by`] includes the descendants
    /// too.
    ///
    /// Call [`Keyward::made_by`](crate::Keyward::made_by) first to list the keys that this call would revoke.
    ///
    /// # Errors
    ///
    /// [`CommandError`].
    pub async fn revoke_many(
        &self,
        by: impl Into<Invocation<'_>>,
        tenant: &TenantId,
        filter: BulkFilter,
        reason: Reason,
    ) -> Result<BulkReceipt, CommandError> {
        self.give_bulk(by, tenant, Command::RevokeMany { filter, reason })
            .await
    }

    /// Removes revoked and expired keys of `tenant` whose retention is over. The host itself calls this
    /// method from time to time.
    ///
    /// # Errors
    ///
    /// [`CommandError`].
    pub async fn purge(
        &self,
        by: impl Into<Invocation<'_>>,
        tenant: &TenantId,
    ) -> Result<BulkReceipt, CommandError> {
        self.give_bulk(by, tenant, Command::Purge).await
    }

    /// Reports that a key was found in public, by its whole text. Anyone who has the whole text may end the
    /// key. A secret key is revoked immediately (rule G-35), a publishable key only recorded (rule A2-14).
    ///
    /// # Errors
    ///
    /// [`CommandError`]; [`Denial::NotFound`] if the text is not a key of this store.
    pub async fn report_leaked_token(
        &self,
        token: impl AsRef<[u8]> + Send,
        source: LeakSource,
    ) -> Result<LeakReport, CommandError> {
        let key = match self
            .verify_fresh(token.as_ref(), &Need::any().or_publishable())
            .await
        {
            Ok(grant) => grant.key_id(),
            Err(VerifyError::StoreUnavailable) => {
                let kind = crate::store::StoreErrorKind::Unavailable;
                return Err(crate::store::StoreError::new(kind, "looking up a leaked key").into());
            }
            // A rejection names its key only after the secret was compared.
            Err(rejection) => rejection
                .key()
                .ok_or(CommandError::Denied(Denial::NotFound))?,
        };
        let tenant = match self.inner.store.find(&Locator::Id(key)).await? {
            Some(found) => tenant_of(&found.change.row),
            None => None,
        };
        let host = Actor::application(tenant.ok_or(CommandError::Denied(Denial::NotFound))?);
        self.report_leak(&host, key, source).await
    }

    /// Reports that a key was found in public, by its fingerprint, within the actor's reach.
    ///
    /// # Errors
    ///
    /// [`CommandError`]; [`Denial::NotFound`] if no key has this fingerprint.
    pub async fn report_leaked_fingerprint(
        &self,
        by: impl Into<Invocation<'_>>,
        fingerprint: Fingerprint,
        source: LeakSource,
    ) -> Result<LeakReport, CommandError> {
        let by = by.into();
        let query = KeyQuery::tenant(by.actor.tenant().clone(), self.now());
        let query = KeyQuery {
            below: true,
            fingerprint: Some(fingerprint),
            ..query
        };
        let page = self.inner.store.list(&query).await?;
        let found = page
            .keys
            .first()
            .ok_or(CommandError::Denied(Denial::NotFound))?;
        self.report_leak(by, found.id, source).await
    }

    async fn report_leak(
        &self,
        by: impl Into<Invocation<'_>>,
        key: KeyId,
        source: LeakSource,
    ) -> Result<LeakReport, CommandError> {
        let landed = self
            .give_about(by, Command::ReportLeak { key, source })
            .await?;
        let revoked = matches!(landed.outcome, Outcome::LeakNoted { revoked: true });
        Ok(LeakReport {
            key,
            revoked,
            receipt: landed.receipt,
        })
    }

    /// Does the work that verifications left behind: records first uses of successors, and stores
    /// digests under the current pepper. Returns the number of completed tasks. Call it from time
    /// to time: a grace period that counts from a first use begins only once the use is recorded. A
    /// first use stays counted in this process until a commit records it.
    ///
    /// # Errors
    ///
    /// [`CommandError`] of the store. A refused task is skipped.
    pub async fn run_maintenance(&self) -> Result<usize, CommandError> {
        let mut done = self.record_first_uses().await?;
        while let Some(chore) = self.inner.verifier.next_chore() {
            let host = Actor::application(chore.tenant);
            done += self.do_chore(&host, chore.command).await?;
        }
        done += self.finish_sweeps().await?;
        Ok(done)
    }

    /// Records the first uses of successors that this process counted.
    ///
    /// # Errors
    ///
    /// [`CommandError`] of the store. A tenant that cannot be read delays no other.
    pub(super) async fn record_first_uses(&self) -> Result<usize, CommandError> {
        let (mut done, mut damaged) = (0, None);
        for (tenant, key) in self.inner.replica.first_uses() {
            let host = Actor::application(tenant);
            match self.do_chore(&host, Command::NoteFirstUse { key }).await {
                Ok(noted) => done += noted,
                Err(CommandError::Store(error)) if error.kind() == StoreErrorKind::Corrupt => {
                    damaged.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        damaged.map_or(Ok(done), |error| Err(error.into()))
    }

    /// Returns the number of commands that committed: zero if the command is refused.
    async fn do_chore(&self, host: &Actor, command: Command) -> Result<usize, CommandError> {
        match self.give_about(host, command).await {
            Ok(_) => Ok(1),
            Err(CommandError::Denied(denied)) => {
                tracing::debug!(%denied, "chore passed over");
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// Finishes commands over many keys that any process began a while ago.
    async fn finish_sweeps(&self) -> Result<usize, CommandError> {
        let mut done = 0;
        if self.inner.time.check().reference.is_some() {
            // While other clocks contradict this one, the age of a command is unknown.
            return Ok(done);
        }
        for tenant in self.inner.replica.unfinished() {
            let view = self.inner.store.load(&tenant, &LoadRequest::none()).await?;
            for pending in view.tenant.map(|row| row.sweeps).unwrap_or_default() {
                // A command from the future waits until the repair of its tenant sets it back.
                if self.now() < pending.began_at.saturating_add(SWEEP_PATIENCE) {
                    continue;
                }
                match self.inner.manager.resume(&tenant, pending).await {
                    Ok(_) => done += 1,
                    Err(CommandError::Denied(denied)) => {
                        tracing::warn!(%tenant, %denied, "a command over many keys cannot go on");
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(done)
    }

    /// Gives a command about an existing key, in the key's own tenant.
    async fn give_about(
        &self,
        by: impl Into<Invocation<'_>>,
        command: Command,
    ) -> Result<Committed, CommandError> {
        let by = by.into();
        let tenant = match command.key() {
            Some(key) => Some(self.tenant_of(by.actor, key).await?),
            None => None,
        };
        self.give(by, tenant, command).await
    }

    async fn give(
        &self,
        by: impl Into<Invocation<'_>>,
        tenant: Option<TenantId>,
        command: Command,
    ) -> Result<Committed, CommandError> {
        let request = self.request(by.into(), tenant, command)?;
        // Read before the commit: a history that is unchanged afterwards was unchanged during it.
        let epoch = self.inner.replica.epoch();
        let mut landed = self.inner.manager.execute(request).await?;
        landed.receipt = landed.receipt.within(epoch);
        Ok(landed)
    }

    async fn give_bulk(
        &self,
        by: impl Into<Invocation<'_>>,
        tenant: &TenantId,
        command: Command,
    ) -> Result<BulkReceipt, CommandError> {
        let request = self.request(by.into(), Some(tenant.clone()), command)?;
        let epoch = self.inner.replica.epoch();
        let mut done = self.inner.manager.execute_bulk(request).await?;
        done.receipt = done.receipt.within(epoch);
        Ok(done)
    }

    fn request(
        &self,
        by: Invocation<'_>,
        tenant: Option<TenantId>,
        command: Command,
    ) -> Result<Request, CommandError> {
        let id = match by.command_id {
            Some(id) => id,
            None => self.inner.manager.command_id()?,
        };
        let actor = by.actor.clone();
        let tenant = tenant.unwrap_or_else(|| actor.tenant().clone());
        Ok(Request::new(id, actor, tenant, command))
    }

    /// Returns a key's tenant, which never changes and may therefore be cached.
    async fn tenant_of(&self, by: &Actor, key: KeyId) -> Result<TenantId, CommandError> {
        if let Some(tenant) = self.inner.replica.tenant_of(key) {
            return Ok(tenant);
        }
        let found = self.inner.store.find(&Locator::Id(key)).await?;
        let row = found.map(|found| found.change.row);
        match &row {
            // The row's tenant cannot be read, so only the host may see the key.
            Some(Row::Corrupt(RowKey::Key(key))) if by.is_application() => {
                Err(Denial::CorruptRecord { key: *key }.into())
            }
            row => row
                .as_ref()
                .and_then(tenant_of)
                .ok_or(Denial::NotFound.into()),
        }
    }
}

fn tenant_of(row: &Row) -> Option<TenantId> {
    match row {
        Row::Key(record) => Some(record.tenant.clone()),
        Row::Removed { tenant, .. } => Some(tenant.clone()),
        Row::Corrupt(_) | Row::Tenant(_) | Row::Owner(_) => None,
    }
}

fn provisioned(landed: Committed) -> Vec<IssuedKey> {
    match landed.outcome {
        Outcome::Issued { provisioned, .. } => provisioned,
        _ => Vec::new(),
    }
}
