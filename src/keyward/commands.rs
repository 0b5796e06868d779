//! Commands: the methods that change keys.

use std::time::Duration;

use super::{Created, ImportedKey, Keyward, LeakReport, Rotated, TimeRepaired};
use crate::core::actor::{Actor, Invocation};
use crate::core::command::{
    Command, CommandOutcome, CreateKey, DeleteKey, Denial, ImportKey, IssuedKey, Request,
    RevokeKey, RotateKey, UpdateKey,
};
use crate::core::id::KeyId;
use crate::core::kind::ErrorKind;
use crate::core::policy::Propagation;
use crate::core::query::KeyQuery;
use crate::core::record::{Reason, Resource};
use crate::core::rejection::VerifyError;
use crate::core::secret::Fingerprint;
use crate::core::sweep::BulkFilter;
use crate::core::tenant::TenantId;
use crate::core::text::{LeakSource, PrincipalId, Role};
use crate::core::view::LoadRequest;
use crate::manager::{BulkReceipt, CommandError, Committed, Receipt};
use crate::observe::WithSources;
use crate::store::{Locator, Row, RowKey, StoreErrorKind};
use crate::verifier::Need;

/// One minute: the age at which maintenance takes over an unfinished bulk command, in case its caller
/// crashed. A page of a thousand keys takes well under a second. The caller and maintenance may run
/// concurrently without harm.
const SWEEP_PATIENCE: Duration = Duration::from_secs(60);

/// Commands. Each takes an [`Actor`], or an actor with an idempotency key ([`Actor::with_command_id`]). A
/// retry with the same idempotency key changes nothing.
///
/// A future that is kept and not polled delays no other caller. A future that is dropped before its commit
/// was sent changes nothing; afterwards the command may or may not commit. If a dropped command that ended or
/// narrowed a key landed, this process refuses the key from the store's answer on.
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
        let committed = self.execute(by, tenant, key.into_command()?).await?;
        Created::from_committed(committed).ok_or(CommandError::Denied(Denial::NotFound))
    }

    /// Imports a key of another system by its digest. Clients keep using the same key until it is rotated.
    ///
    /// # Errors
    ///
    /// [`CommandError`]; [`Denial::DigestTaken`] if the digest was imported before, even if that key was
    /// removed since.
    pub async fn import(
        &self,
        by: impl Into<Invocation<'_>>,
        key: ImportKey,
    ) -> Result<ImportedKey, CommandError> {
        let tenant = key.tenant().cloned();
        let committed = self.execute(by, tenant, key.into_command()?).await?;
        ImportedKey::from_committed(committed).ok_or(CommandError::Denied(Denial::NotFound))
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
        Ok(self.execute_on_key(by, command).await?.receipt)
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
        Ok(self
            .execute_on_key(by, Command::Disable { key })
            .await?
            .receipt)
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
        Ok(self
            .execute_on_key(by, Command::Enable { key })
            .await?
            .receipt)
    }

    /// Revokes a key permanently. When the call returns, this process refuses the key. Every other process
    /// refuses the key by [`Receipt::no_later_than`].
    ///
    /// # Errors
    ///
    /// [`CommandError`]; [`Denial::ConfirmationRequired`] if the class requires confirmation: pass
    /// `reason.confirmed()`.
    pub async fn revoke(
        &self,
        by: impl Into<Invocation<'_>>,
        key: KeyId,
        revocation: impl Into<RevokeKey>,
    ) -> Result<Receipt, CommandError> {
        let revocation = revocation.into();
        Ok(self
            .execute_on_key(by, Command::Revoke { key, revocation })
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
            .execute_on_key(by, Command::Delete { key, deletion })
            .await?
            .receipt)
    }

    /// Replaces a key with a successor. The successor of an imported key has a token in keyward's own format.
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
        let committed = self
            .execute_on_key(by, Command::Rotate { key, how })
            .await?;
        Rotated::from_committed(committed).ok_or(CommandError::Denied(Denial::NotFound))
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
            .execute_on_key(by, Command::FinishRotation { key: old })
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
            .execute_on_key(by, Command::CancelRotation { key: old })
            .await?
            .receipt)
    }

    /// Gives a key a new secret, because the response with the first secret was lost.
    ///
    /// # Errors
    ///
    /// [`CommandError`]; [`Denial::NotReplaceable`] if the key was created more than an hour ago, was
    /// imported, or was not created by the actor.
    pub async fn replace_lost(
        &self,
        by: impl Into<Invocation<'_>>,
        key: KeyId,
    ) -> Result<Created, CommandError> {
        let committed = self
            .execute_on_key(by, Command::ReplaceLost { key })
            .await?;
        Created::from_committed(committed).ok_or(CommandError::Denied(Denial::NotFound))
    }

    /// Sets the time of a tenant's newest commit back to the current time, if a wrong clock left it in the
    /// future. Only the application itself may call this method. Keys keep the times that the wrong clock
    /// gave them: check the creation and expiry times of the tenant's keys.
    ///
    /// # Errors
    ///
    /// [`CommandError`]; [`Denial::TenantNotFound`] for an unknown tenant.
    pub async fn repair_time(
        &self,
        by: impl Into<Invocation<'_>>,
        tenant: &TenantId,
    ) -> Result<TimeRepaired, CommandError> {
        let committed = self
            .execute(by, Some(tenant.clone()), Command::RepairTime)
            .await?;
        Ok(TimeRepaired::from_committed(committed))
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
        let committed = self
            .execute(by, Some(tenant.clone()), Command::ProvisionTenant)
            .await?;
        Ok(provisioned(committed))
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
            self.execute(by, Some(tenant.clone()), command).await?,
        ))
    }

    /// Closes a tenant: permanently ends every key of the tenant and of its descendants. The first commit
    /// already makes all these keys invalid. After an interruption, repeat the call to continue.
    ///
    /// # Errors
    ///
    /// [`CommandError`].
    pub async fn close_tenant(
        &self,
        by: impl Into<Invocation<'_>>,
        tenant: &TenantId,
    ) -> Result<BulkReceipt, CommandError> {
        self.execute_bulk(by, tenant, Command::CloseTenant).await
    }

    /// Removes a principal as an owner: refuses and revokes all keys of the principal in `tenant` and its
    /// descendants. After an interruption, repeat the call to continue.
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
        self.execute_bulk(by, tenant, Command::RemoveOwner { owner })
            .await
    }

    /// Corrects the stored role of an owner to `role` in `tenant` and in its ancestors that the actor
    /// reaches. Also corrects the role in descendants in which the owner has live keys. Resolves
    /// [`Denial::RoleDrift`]. Only the application itself may call this method.
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
            self.execute(&by, Some(above), command.clone()).await?;
        }
        Ok(self.execute_bulk(by, tenant, command).await?.receipt)
    }

    /// Sets the role of a key owner, in `tenant` and in descendants in which the owner has live keys. The
    /// current role of its owner limits every key, so the owner's keys narrow or widen immediately. Commands
    /// that the owner gives in person are not affected: the role in the [`Actor`] decides about them.
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
        Ok(self.execute_bulk(by, tenant, command).await?.receipt)
    }

    /// Revokes all matching keys of `tenant`, except legacy keys, in commits of at most
    /// [`SWEEP_MAX`](crate::rules::SWEEP_MAX) keys. A filter with [`BulkFilter::made_by`] also covers the
    /// descendants.
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
        self.execute_bulk(by, tenant, Command::RevokeMany { filter, reason })
            .await
    }

    /// Removes revoked and expired keys of `tenant` whose retention period is over. The host should call this
    /// method regularly.
    ///
    /// # Errors
    ///
    /// [`CommandError`].
    pub async fn purge(
        &self,
        by: impl Into<Invocation<'_>>,
        tenant: &TenantId,
    ) -> Result<BulkReceipt, CommandError> {
        self.execute_bulk(by, tenant, Command::Purge).await
    }

    /// Reports a key that was found in public, by its full text. Needs no actor, because anyone who has the
    /// full text may end the key. A secret key is revoked immediately. For a publishable key, the leak is
    /// only recorded, because such a key may be public. A repeated report changes nothing and writes nothing,
    /// whatever its source.
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
            Err(rejection) if rejection.key().is_none() && !is_final(&rejection) => {
                let kind = crate::store::StoreErrorKind::Unavailable;
                return Err(crate::store::StoreError::new(kind, "looking up a leaked key").into());
            }
            // The error contains a key id only if the presented secret was correct, so a forged token reveals
            // nothing.
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

    /// Reports a key that was found in public, by its fingerprint. Finds only keys within the actor's reach.
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
        let committed = self
            .execute_on_key(by, Command::ReportLeak { key, source })
            .await?;
        let revoked = matches!(
            committed.outcome,
            CommandOutcome::LeakNoted { revoked: true }
        );
        Ok(LeakReport {
            key,
            revoked,
            receipt: committed.receipt,
        })
    }

    /// Runs deferred work: records first uses of successors, stores digests under the current pepper, and
    /// finishes interrupted bulk commands. Returns the number of completed tasks.
    ///
    /// Call this method regularly: a grace period that counts from a successor's first use begins only when
    /// the use is recorded. Until then, this process keeps the first use in memory.
    ///
    /// # Errors
    ///
    /// [`CommandError`] of the store. A denied task is skipped.
    pub async fn run_maintenance(&self) -> Result<usize, CommandError> {
        let mut done = self.record_first_uses().await?;
        while let Some(chore) = self.inner.verifier.next_chore() {
            let host = Actor::application(chore.tenant);
            done += self.run_task(&host, chore.command).await?;
        }
        done += self.finish_sweeps().await?;
        Ok(done)
    }

    /// Records the first uses of successors that this process counted.
    ///
    /// # Errors
    ///
    /// [`CommandError`] of the store. If one tenant's rows are corrupt, the first uses of the other tenants
    /// are still recorded.
    pub(super) async fn record_first_uses(&self) -> Result<usize, CommandError> {
        let (mut done, mut damaged) = (0, None);
        for (tenant, key) in self.inner.replica.first_uses() {
            let host = Actor::application(tenant);
            match self.run_task(&host, Command::NoteFirstUse { key }).await {
                Ok(noted) => done += noted,
                Err(CommandError::Store(error)) if error.kind() == StoreErrorKind::Corrupt => {
                    damaged.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        damaged.map_or(Ok(done), |error| Err(error.into()))
    }

    /// Executes a maintenance command. Returns 1 if the command committed, and 0 if it was denied.
    async fn run_task(&self, host: &Actor, command: Command) -> Result<usize, CommandError> {
        let by = host.into();
        let tenant = self.tenant_of_command(&by, &command).await?;
        let request = self.request(by, tenant, command)?;
        match self.inner.manager.execute(request).await {
            Ok(_) => Ok(1),
            Err(CommandError::Denied(denied)) => {
                tracing::debug!(error = %WithSources(&denied), "maintenance task denied");
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// Finishes bulk commands that any process began at least [`SWEEP_PATIENCE`] ago.
    async fn finish_sweeps(&self) -> Result<usize, CommandError> {
        let mut done = 0;
        if self.inner.time.check().reference.is_some() {
            // Another clock contradicts this process's clock, so the age of a bulk command is unknown, and
            // this run finishes none.
            return Ok(done);
        }
        for tenant in self.inner.replica.unfinished() {
            let view = self.inner.store.load(&tenant, &LoadRequest::none()).await?;
            for pending in view.tenant.map(|row| row.sweeps).unwrap_or_default() {
                // Skips a command younger than a minute. A command whose start lies in the future also waits,
                // until `repair_time` corrects its tenant.
                if self.now() < pending.began_at.saturating_add(SWEEP_PATIENCE) {
                    continue;
                }
                match self.inner.manager.resume(&tenant, pending).await {
                    Ok(_) => done += 1,
                    Err(CommandError::Denied(denied)) => {
                        tracing::warn!(%tenant, error = %WithSources(&denied), "cannot continue a bulk command");
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(done)
    }

    /// Executes a command on an existing key, in the key's own tenant.
    async fn execute_on_key(
        &self,
        by: impl Into<Invocation<'_>>,
        command: Command,
    ) -> Result<Committed, CommandError> {
        let by = by.into();
        let tenant = self.tenant_of_command(&by, &command).await?;
        self.execute(by, tenant, command).await
    }

    async fn tenant_of_command(
        &self,
        by: &Invocation<'_>,
        command: &Command,
    ) -> Result<Option<TenantId>, CommandError> {
        Ok(match command.key() {
            Some(key) => Some(self.tenant_of(by.actor, key).await?),
            None => None,
        })
    }

    pub(super) async fn execute(
        &self,
        by: impl Into<Invocation<'_>>,
        tenant: Option<TenantId>,
        command: Command,
    ) -> Result<Committed, CommandError> {
        let request = self.request(by.into(), tenant, command)?;
        // Reads the epoch before the commit: the receipt must name the history that this process followed
        // when it sent the command.
        let epoch = self.inner.replica.epoch();
        let mut committed = self.inner.manager.execute(request).await?;
        committed.receipt = self.complete(committed.receipt.within(epoch)).await;
        Ok(committed)
    }

    async fn execute_bulk(
        &self,
        by: impl Into<Invocation<'_>>,
        tenant: &TenantId,
        command: Command,
    ) -> Result<BulkReceipt, CommandError> {
        let request = self.request(by.into(), Some(tenant.clone()), command)?;
        let epoch = self.inner.replica.epoch();
        let mut done = self.inner.manager.execute_bulk(request).await?;
        done.receipt = self.complete(done.receipt.within(epoch)).await;
        Ok(done)
    }

    /// Lets a receipt cover the nodes of the registry whose policies differ from those of this process.
    async fn complete(&self, receipt: Receipt) -> Receipt {
        match self.inner.replica.other_bound().await {
            Some(bound) => receipt.reaching(Propagation { bound }.worst_case()),
            None => receipt,
        }
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

    /// Returns a key's tenant, from the local index if possible: the tenant of a key never changes.
    async fn tenant_of(&self, by: &Actor, key: KeyId) -> Result<TenantId, CommandError> {
        if let Some(tenant) = self.inner.replica.tenant_of(key) {
            return Ok(tenant);
        }
        let found = self.inner.store.find(&Locator::Id(key)).await?;
        let row = found.map(|found| found.change.row);
        match &row {
            // The tenant of a corrupt row cannot be read, so only the host may learn that the key exists.
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

fn provisioned(committed: Committed) -> Vec<IssuedKey> {
    match committed.outcome {
        CommandOutcome::Issued { provisioned, .. } => provisioned,
        _ => Vec::new(),
    }
}

/// Returns whether a repetition of the verification would be refused in the same way.
const fn is_final(rejection: &VerifyError) -> bool {
    !matches!(
        rejection.kind(),
        ErrorKind::Unavailable | ErrorKind::LimitReached
    )
}
