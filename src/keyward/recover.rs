//! Recovery of a store that was restored from a backup. Without recovery, the store would accept keys that
//! were ended after the backup.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::num::NonZeroUsize;

use super::Keyward;
use crate::core::actor::Actor;
use crate::core::audit::{AuditEntry, AuditHead, ChainError};
use crate::core::command::{Command, CommandOutcome, Request};
use crate::core::decide::SWEEP_MAX;
use crate::core::id::KeyId;
use crate::core::kind::ErrorKind;
use crate::core::pepper::PepperCount;
use crate::core::principal::Author;
use crate::core::query::{AuditQuery, KeyQuery};
use crate::core::record::{KeyRecord, Status};
use crate::core::recovery::{self, KeyChanges, OwnerChanges, RecoveryStep, TenantChanges};
use crate::core::tenant::TenantId;
use crate::core::text::{CommandId, PrincipalId};
use crate::core::view::LoadRequest;
use crate::manager::{BulkReceipt, CommandError};
use crate::store::StoreError;

/// The handling of changes that were made after the backup was taken.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Recovery {
    /// Disables every key that could verify, including publishable and legacy keys. Keys that were revoked
    /// after the backup are among them: enable or rotate only known good keys afterwards.
    #[default]
    DisableAll,
    /// Repeats the changes that ended or narrowed keys since the backup. Reads them from audit entries that
    /// were kept elsewhere, such as an exported trail. Changes after the last entry are not repeated, so a
    /// key that was revoked later verifies again.
    Replay(Vec<AuditEntry>),
    /// Trusts the backup as it is. Choose this only if no key was ended or narrowed since the backup.
    TrustBackup,
}

/// The result of a recovery. The numbers count only changes of this call, not those of an earlier,
/// interrupted call. The lists are always complete.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// The number of tenants with keys to disable, or with audit entries after the backup.
    pub tenants: usize,
    /// The number of tenants that were closed again.
    pub closed: usize,
    /// The number of owners that were removed again, or whose role was set again.
    pub owners: usize,
    /// The number of keys that were disabled.
    pub disabled: usize,
    /// The number of keys that were revoked.
    pub revoked: usize,
    /// The number of keys that were removed.
    pub removed: usize,
    /// The number of keys whose scopes, networks or expiry were narrowed again.
    pub changed: usize,
    /// Legacy keys that are now disabled. Rotate them, or enable a key if its secret was not replaced since
    /// the backup.
    pub legacy: Vec<KeyId>,
    /// Keys that are disabled because a change could not be repeated exactly, such as a rotation whose
    /// successor is lost. Review them one by one.
    pub to_review: Vec<KeyId>,
    /// Keys that were created since the backup and are lost. Their holders need new keys.
    pub lost: Vec<KeyId>,
    /// Keys that are named in audit entries after the backup, but whose creation is neither in the backup nor
    /// in these entries.
    pub unknown: Vec<KeyId>,
    /// Keys whose stored bytes failed their checksum. They are always refused.
    pub corrupt: Vec<KeyId>,
    /// The peppers that live keys need and that this process cannot verify with, usually because they were
    /// retired after the backup. Put these peppers back, or these keys are refused.
    pub unverifiable: Vec<PepperCount>,
}

/// The error of a recovery that did not complete.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoveryError {
    /// The entries were altered, or do not continue the audit trail in the backup. Nothing was changed.
    #[error("entries of tenant {tenant} cannot be replayed: {error}")]
    Chain {
        /// The tenant of the entries.
        tenant: TenantId,
        /// The fault in the tenant's audit chain.
        error: ChainError,
    },
    /// The recovery was interrupted. Changes that were committed stay; repeat the call to continue.
    #[error(transparent)]
    Interrupted(#[from] CommandError),
}

impl RecoveryError {
    /// Returns the stable code of the cause, such as `replay-refused`.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Chain { .. } => "replay-refused",
            Self::Interrupted(error) => error.code(),
        }
    }

    /// Returns the kind of the cause, which determines the HTTP status.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Chain { .. } => ErrorKind::Invalid,
            Self::Interrupted(error) => error.kind(),
        }
    }

    /// Returns the text that a client may see.
    #[must_use]
    pub fn public_message(&self) -> String {
        match self {
            Self::Chain { .. } => self.to_string(),
            Self::Interrupted(error) => error.public_message(),
        }
    }
}

impl From<StoreError> for RecoveryError {
    fn from(error: StoreError) -> Self {
        Self::Interrupted(error.into())
    }
}

impl Keyward {
    /// Recovers a store that was restored from a backup. Call this method before the store serves requests:
    /// otherwise keys that were revoked, deleted, disabled, narrowed or rotated after the backup verify
    /// again.
    ///
    /// Covers the whole store, on any backend. Only for the host itself. Every change is a command with an
    /// audit entry, in commits of at most [`SWEEP_MAX`] keys.
    ///
    /// After an interruption, repeat the call to continue. A repeated replay makes no change twice: a key
    /// that an administrator enabled after the first replay stays enabled. [`Recovery::DisableAll`] disables
    /// such a key again.
    ///
    /// # Errors
    ///
    /// [`RecoveryError::Chain`] if entries are altered or missing, or belong to another trail. In this case
    /// nothing was changed.
    pub async fn recover(&self, recovery: Recovery) -> Result<RecoveryReport, RecoveryError> {
        let mut report = RecoveryReport::default();
        match recovery {
            Recovery::DisableAll => self.disable_everything(&mut report).await?,
            Recovery::Replay(entries) => self.replay(entries, &mut report).await?,
            Recovery::TrustBackup => {}
        }
        self.sync().await?;
        report.unverifiable = self.unverifiable();
        Ok(report)
    }

    async fn disable_everything(&self, report: &mut RecoveryReport) -> Result<(), RecoveryError> {
        let mut tenants = BTreeSet::new();
        let mut query = KeyQuery {
            limit: PAGE,
            ..KeyQuery::all(self.now()).live()
        };
        loop {
            let page = self.inner.store.list(&query).await?;
            report.corrupt.extend(page.corrupt);
            for record in page.keys {
                if record.legacy {
                    report.legacy.push(record.id);
                }
                if record.status(query.at) != Status::Disabled {
                    tenants.insert(record.facts.tenant);
                }
            }
            match page.next {
                Some(next) => query.after = Some(next),
                None => break,
            }
        }
        report.tenants = tenants.len();
        let id = self
            .inner
            .manager
            .command_id()
            .map_err(CommandError::from)?;
        for tenant in tenants {
            let command = Command::DisableMany;
            if let Some(done) = self
                .execute_bulk_as_host(&tenant, id.clone(), command)
                .await?
            {
                report.disabled += done.ended;
            }
        }
        Ok(())
    }

    async fn replay(
        &self,
        entries: Vec<AuditEntry>,
        report: &mut RecoveryReport,
    ) -> Result<(), RecoveryError> {
        let mut chains: BTreeMap<TenantId, Vec<AuditEntry>> = BTreeMap::new();
        for entry in entries {
            chains.entry(entry.tenant.clone()).or_default().push(entry);
        }
        let mut tenants = BTreeMap::new();
        for (tenant, mut given) in chains {
            given.sort_by_key(|entry| entry.sequence);
            // Exports may overlap: equal copies of an entry are merged, and two versions of an entry fail the
            // check below.
            given.dedup();
            let stored = self.stored_heads(&tenant, &given).await?;
            let later = recovery::later(&tenant, &stored, &given, &self.inner.peppers);
            match later {
                Ok([]) => {}
                Ok(later) => {
                    tenants.insert(tenant, TenantChanges::new(later));
                }
                Err(error) => return Err(RecoveryError::Chain { tenant, error }),
            }
        }
        // All chains are valid, so changes may start. The map's order puts a tenant before its descendants.
        report.tenants = tenants.len();
        for (tenant, later) in &tenants {
            let path = tenant.paths().filter_map(|path| tenants.get(path));
            let path: Vec<_> = path.collect();
            self.replay_tenant(tenant, (later, &path), report).await?;
        }
        Ok(())
    }

    /// Returns the audit head after each stored entry, by sequence, from one entry before the first entry of
    /// `given`. Always includes the newest head, and the one before the oldest entry: that of the newest
    /// removed entry, if old entries were pruned.
    async fn stored_heads(
        &self,
        tenant: &TenantId,
        given: &[AuditEntry],
    ) -> Result<BTreeMap<u64, AuditHead>, StoreError> {
        let first = given.first().map_or(0, |entry| entry.sequence);
        let mut heads = BTreeMap::new();
        let mut newest = AuditHead::GENESIS;
        let mut query = AuditQuery {
            limit: PAGE,
            ..AuditQuery::tenant(tenant.clone())
        };
        loop {
            let page = self.inner.store.audit(&query).await?;
            for row in page.rows {
                if newest == AuditHead::GENESIS {
                    let sequence = row.entry.sequence.saturating_sub(1);
                    let hash = row.entry.previous;
                    heads.insert(sequence, AuditHead { sequence, hash });
                }
                newest = row.entry.head();
                if row.entry.sequence.saturating_add(1) >= first {
                    heads.insert(newest.sequence, newest);
                }
            }
            match page.next {
                Some(next) => query.after = Some(next),
                None => break,
            }
        }
        heads.insert(newest.sequence, newest);
        Ok(heads)
    }

    async fn replay_tenant(
        &self,
        tenant: &TenantId,
        (later, path): (&TenantChanges, &[&TenantChanges]),
        report: &mut RecoveryReport,
    ) -> Result<(), RecoveryError> {
        for (marks, hash) in &later.blocked {
            for (number, (mark, key)) in marks.iter().enumerate() {
                // Sends one command per digest. If a digest was imported again, its command is denied, and
                // the others still commit.
                let id = recovery::command_id(*hash, &format!("digest-{number}"));
                let id = id.map_err(CommandError::from)?;
                let marks = vec![(*mark, *key)];
                let blocked = self.execute_as_host(tenant, id, Command::BlockDigests { marks });
                if blocked.await?.is_none() {
                    report.to_review.push(*key);
                }
            }
        }
        if let Some(hash) = later.closed {
            let id = recovery::command_id(hash, "close").map_err(CommandError::from)?;
            let committed = self.committed(tenant, [id.clone()]).await?;
            let command = Command::CloseTenant;
            if let Some(done) = self
                .execute_bulk_as_host(tenant, id.clone(), command)
                .await?
            {
                report.closed += usize::from(!committed.contains(&id));
                report.revoked += done.ended;
            }
        }
        for (owner, became) in &later.owners {
            self.replay_owner(tenant, owner, became, report).await?;
        }
        let mut keys: Vec<_> = later.keys.iter().collect();
        keys.sort_by_key(|(_, became)| !became.ended());
        for some in keys.chunks(SWEEP_MAX) {
            self.replay_keys(tenant, (some, path), report).await?;
        }
        Ok(())
    }

    async fn replay_owner(
        &self,
        tenant: &TenantId,
        owner: &PrincipalId,
        became: &OwnerChanges,
        report: &mut RecoveryReport,
    ) -> Result<(), RecoveryError> {
        let OwnerChanges { removed, role } = became;
        let mut changed = false;
        if let Some((hash, _)) = removed {
            let id = recovery::command_id(*hash, "remove").map_err(CommandError::from)?;
            let owner = owner.clone();
            let command = Command::RemoveOwner { owner };
            let committed = self.committed(tenant, [id.clone()]).await?;
            if let Some(done) = self
                .execute_bulk_as_host(tenant, id.clone(), command)
                .await?
            {
                changed |= !committed.contains(&id);
                report.revoked += done.ended;
            }
        }
        if let Some((role, hash)) = role {
            let id = recovery::command_id(*hash, "role").map_err(CommandError::from)?;
            let (owner, role) = (owner.clone(), role.clone());
            let command = Command::ChangeOwnerRole { owner, role };
            let committed = self.committed(tenant, [id.clone()]).await?;
            if !committed.contains(&id) {
                changed |= self.execute_as_host(tenant, id, command).await?.is_some();
            }
        }
        report.owners += usize::from(changed);
        Ok(())
    }

    async fn replay_keys(
        &self,
        tenant: &TenantId,
        (keys, path): (&[(&KeyId, &KeyChanges)], &[&TenantChanges]),
        report: &mut RecoveryReport,
    ) -> Result<(), RecoveryError> {
        let select = LoadRequest {
            keys: keys.iter().map(|(id, _)| **id).collect(),
            ..LoadRequest::none()
        };
        let view = self.inner.store.load(tenant, &select).await?;
        self.block_digests(tenant, (keys, path), report).await?;
        let policy = self.inner.policies.load().of(tenant).clone();
        let now = self.now();
        let mut planned = Vec::new();
        for (id, became) in keys {
            let Some(record) = view.record(**id) else {
                let list = match () {
                    () if view.corrupt.contains(id) => &mut report.corrupt,
                    () if became.ended() => continue,
                    () if became.created => &mut report.lost,
                    () => &mut report.unknown,
                };
                list.push(**id);
                continue;
            };
            let steps = became
                .steps(record, &policy, now)
                .map_err(CommandError::from)?;
            planned.extend(steps.into_iter().map(|step| (record, step)));
        }
        // Ends keys first. The end of a successor also ends its rotation, and the old key of a rotation accepts
        // no earlier expiry.
        planned.sort_by_key(|(_, step)| !step.ends);
        let ids = planned.iter().flat_map(|(_, step)| &step.ways);
        let committed = self
            .committed(tenant, ids.map(|(id, _)| id.clone()))
            .await?;
        for (record, step) in planned {
            self.replay_step(record, step, &committed, report).await?;
        }
        Ok(())
    }

    /// Blocks the digests of imported keys that were ended or narrowed since the backup, so that they cannot
    /// be imported again.
    async fn block_digests(
        &self,
        tenant: &TenantId,
        (keys, path): (&[(&KeyId, &KeyChanges)], &[&TenantChanges]),
        report: &mut RecoveryReport,
    ) -> Result<(), RecoveryError> {
        let now = self.now();
        for (key, became) in keys {
            let mark = became
                .mark_to_block(path, now)
                .map_err(CommandError::from)?;
            let Some((mark, id)) = mark else {
                continue;
            };
            // Sends one command per digest. If a digest was imported again, its command is denied, and the
            // others still commit.
            let key = **key;
            let marks = vec![(mark, key)];
            let blocked = self.execute_as_host(tenant, id, Command::BlockDigests { marks });
            if blocked.await?.is_none() {
                report.to_review.push(key);
            }
        }
        Ok(())
    }

    async fn replay_step(
        &self,
        record: &KeyRecord,
        step: RecoveryStep,
        committed: &HashSet<CommandId>,
        report: &mut RecoveryReport,
    ) -> Result<(), RecoveryError> {
        for (id, command) in step.ways {
            let mut done = 0;
            if !committed.contains(&id) {
                let request = as_host(&record.tenant, id, command.clone());
                let request = request.with_sweep(vec![record.id]);
                done = match self.execute_accepted(request).await? {
                    Some(CommandOutcome::Swept { ended, .. }) => ended,
                    Some(_) => 1,
                    None => continue,
                };
            }
            match command {
                Command::Delete { .. } => report.removed += done,
                Command::Revoke { .. } | Command::RevokeMany { .. } => report.revoked += done,
                Command::Update { .. } => report.changed += done,
                Command::ReportLeak { .. } => {}
                _ => {
                    report.disabled += done;
                    let list = match step.was_disabled {
                        _ if record.legacy => Some(&mut report.legacy),
                        false => Some(&mut report.to_review),
                        true => None,
                    };
                    // Several steps may affect one key. The report lists the key only once.
                    if let Some(list) = list.filter(|list| list.last() != Some(&record.id)) {
                        list.push(record.id);
                    }
                }
            }
            break;
        }
        Ok(())
    }

    /// Returns those of `ids` whose commands an earlier, interrupted recovery already committed.
    async fn committed(
        &self,
        tenant: &TenantId,
        ids: impl IntoIterator<Item = CommandId>,
    ) -> Result<HashSet<CommandId>, StoreError> {
        let ids: Vec<_> = ids.into_iter().collect();
        let mut committed = HashSet::new();
        for commands in ids.chunks(SWEEP_MAX) {
            let select = LoadRequest {
                commands: commands.to_vec(),
                ..LoadRequest::none()
            };
            let view = self.inner.store.load(tenant, &select).await?;
            let applied = view.applied.into_iter();
            // Only the host's own commands count: another author may have used the same id.
            let own = applied.filter(|entry| entry.actor == Author::Application);
            committed.extend(own.map(|entry| entry.command));
        }
        Ok(committed)
    }

    /// Executes a command as the host itself. Returns `None` if the rules deny it.
    async fn execute_as_host(
        &self,
        tenant: &TenantId,
        id: CommandId,
        command: Command,
    ) -> Result<Option<CommandOutcome>, CommandError> {
        self.execute_accepted(as_host(tenant, id, command)).await
    }

    async fn execute_accepted(
        &self,
        request: Request,
    ) -> Result<Option<CommandOutcome>, CommandError> {
        accepted(
            self.inner
                .manager
                .execute(request)
                .await
                .map(|committed| committed.outcome),
        )
    }

    /// Executes a bulk command as the host itself. Returns `None` if the rules deny it.
    async fn execute_bulk_as_host(
        &self,
        tenant: &TenantId,
        id: CommandId,
        command: Command,
    ) -> Result<Option<BulkReceipt>, CommandError> {
        let request = as_host(tenant, id, command);
        accepted(self.inner.manager.execute_bulk(request).await)
    }
}

/// The rows per page: [`SWEEP_MAX`], the largest number of keys in one commit.
const PAGE: NonZeroUsize = NonZeroUsize::new(SWEEP_MAX).expect("`SWEEP_MAX` is greater than zero");

fn as_host(tenant: &TenantId, id: CommandId, command: Command) -> Request {
    let actor = Actor::application(tenant.clone());
    Request::new(id, actor, tenant.clone(), command)
}

/// Turns a denial into `None`, because a denial does not fail a recovery. If the tenant is closed, no key
/// verifies there, so the command is unnecessary. Otherwise the caller tries another command.
fn accepted<T>(result: Result<T, CommandError>) -> Result<Option<T>, CommandError> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(CommandError::Denied(denied)) => {
            tracing::debug!(%denied, "recovery command denied");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
