//! Recovery of a store that was restored from a backup. Without recovery, the store would accept keys that
//! were ended after the backup.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use super::Keyward;
use super::losses::{
    PAGE, REPLAYED, RESTORED, cut_trails, has_damaged_entries, has_unrecorded_losses, is_lost_end,
    loss_of, read_trail, replace_mark, without_rows,
};
use crate::core::actor::Actor;
use crate::core::audit::{AuditEntry, AuditHead, ChainError, TrailGap};
use crate::core::command::{Command, CommandOutcome, Request};
use crate::core::decide::SWEEP_MAX;
use crate::core::id::KeyId;
use crate::core::kind::ErrorKind;
use crate::core::pepper::PepperCount;
use crate::core::principal::Author;
use crate::core::query::KeyQuery;
use crate::core::record::{KeyRecord, Status};
use crate::core::recovery::{
    self, ComparedTrail, KeyChanges, OwnerChanges, RecoveryIds, RecoveryStep, ReplaySource,
    RestoredTrail, TenantChanges, TrailEnd, TrailReach, UselessTrails,
};
use crate::core::tenant::TenantId;
use crate::core::text::{CommandId, PrincipalId};
use crate::core::time::Timestamp;
use crate::core::view::{Epoch, LoadRequest};
use crate::manager::{BulkReceipt, CommandError};
use crate::observe::WithSources;
use crate::store::{KeyStore, RowKey, StoreError};

/// The handling of changes that were made after the backup was taken.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Recovery {
    /// Disables every key that could verify, including publishable and legacy keys. These include keys that were
    /// revoked after the backup, so enable or rotate only known good keys afterwards.
    #[default]
    DisableAll,
    /// Repeats the changes that ended or narrowed keys since the backup, as recorded in another store's audit
    /// trail. The other store is the lost store, or a copy of the lost store that is newer than the backup.
    ///
    /// The other store must have the epoch of the store that was backed up, the newest restored entry of each tenant,
    /// and entries after the backup. A tenant without later entries was not changed, and stays as it is. Every key is
    /// disabled of a tenant whose trail is missing, or lacks entries that the lost store pruned after the backup.
    ///
    /// If a trail differs from the restored one or ends before it, the other store is not the lost one. Then every key
    /// of every tenant is disabled. So it is if the other store [lost](RecoveryReport::loss) anything.
    ReplayFrom(Arc<dyn KeyStore>),
    /// Repeats the changes that ended or narrowed keys since the backup, as recorded in separately stored audit
    /// entries, such as an exported trail.
    ///
    /// Applies the rules of [`ReplayFrom`](Self::ReplayFrom) to each tenant, with one addition. If a tenant has no
    /// later entries and [`is_whole`](Self::Replay::is_whole) is false, every key of the tenant is disabled. A trail
    /// that ends too early then concerns only its own tenant.
    Replay {
        /// The entries, in any order. Equal copies of an entry count once.
        entries: Vec<AuditEntry>,
        /// True if the entries are the whole trail of the lost store, from before the backup to the loss. Then
        /// a tenant without later entries was not changed.
        is_whole: bool,
    },
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
    /// The tenants of a replay, each with the reach of its given trail. Changes after the last entry of a trail
    /// are not repeated. A key that was revoked later verifies again.
    pub trails: Vec<ReplayedTrail>,
    /// A sign that the store to replay from lost rows or audit entries after the backup was taken: a fault of its
    /// integrity check, or the mark of a salvage. Its trails may then lack their ends, and those of other tenants too, so
    /// every key is disabled that they do not end.
    pub loss: Option<String>,
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
    /// The peppers that live keys need and that this process cannot verify with. They were usually retired after
    /// the backup. Unless these peppers are put back, these keys are refused.
    pub unverifiable: Vec<PepperCount>,
}

/// The trail of one tenant in a replay.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct ReplayedTrail {
    /// The tenant.
    pub tenant: TenantId,
    /// The number of the newest restored entry. Zero if the tenant is not in the restored store.
    pub restored: u64,
    /// The end of the given trail, compared with the restored trail.
    pub reach: TrailReach,
    /// The last entry of the given trail. `None` if the trail is missing.
    pub last: Option<TrailEnd>,
    /// True if every key of the tenant is disabled, because no trail proves the state of the keys. The trail of
    /// each tenant above and below counts too.
    pub disabled: bool,
}

/// Displays the last entry and the reach, without the tenant.
impl fmt::Display for ReplayedTrail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(TrailEnd { sequence, at }) = self.last else {
            return f.write_str("no trail was given");
        };
        write!(f, "the trail ends at entry {sequence} of {at}, ")?;
        match (self.reach, self.restored) {
            (TrailReach::Beyond, 0) => {
                f.write_str("and the restored store has no entry of the tenant")
            }
            (TrailReach::Beyond, end) => write!(f, "after the restored end, entry {end}"),
            (TrailReach::RestoredEnd, _) => f.write_str("which is the restored end"),
            (TrailReach::Short | TrailReach::Missing, end) => {
                write!(f, "before the restored end, entry {end}")
            }
            (TrailReach::Diverges, end) => {
                write!(f, "in another history than the restored end, entry {end}")
            }
            (TrailReach::Gap, 0) => f.write_str(
                "lacks its beginning, and the restored store has no entry of the tenant",
            ),
            (TrailReach::Gap, end) => {
                write!(
                    f,
                    "and begins too late: entry {} is missing",
                    end.saturating_add(1)
                )
            }
        }
    }
}

/// The progress of a recovery that disables keys.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct RecoveryProgress {
    /// The number of keys that were disabled so far.
    pub done: usize,
    /// The number of keys to disable.
    pub total: usize,
}

impl fmt::Display for RecoveryProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { done, total } = self;
        write!(f, "disabled {done} of {total} keys")
    }
}

/// The error of a recovery that did not complete.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoveryError {
    /// The given entries were altered or lack an entry. Nothing was changed.
    #[error(
        "the trail to replay of tenant {tenant} fails its check: {error}; replay from another copy of the lost store, or \
         disable every key"
    )]
    Chain {
        /// The tenant of the entries.
        tenant: TenantId,
        /// The fault in the tenant's audit chain.
        error: ChainError,
    },
    /// The store to replay from has the epoch of the restored store. Nothing was changed.
    #[error(
        "the store to replay from is the restored store itself, or a copy of its file: replay from the lost \
         store, or disable every key"
    )]
    SameStore,
    /// The store to replay from has another epoch than the store that was backed up. Nothing was changed.
    #[error(
        "the store to replay from has another epoch than the store that was backed up: it is a copy with a \
         history of its own, or got a new epoch since; replay from the lost store, replay its exported entries with \
         `keyctl recover --replay-file`, or disable every key"
    )]
    OtherHistory,
    /// The given trail contains the newest restored entry of no tenant. Nothing was changed.
    #[error(
        "the trail contains the newest entry of no restored tenant: it is empty, ends before the backup, begins \
         after it, or belongs to another store; replay the trail of the lost store, or disable every key"
    )]
    ForeignTrail,
    /// The given trail has no entry after the newest restored ones. Nothing was changed.
    #[error(
        "the trail ends where the restored store ends: it is that of the backup or of a restored copy, and \
         does not show later changes; replay the trail of the lost store, disable every key, or trust the backup if nothing \
         was revoked since"
    )]
    NothingLater,
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
            Self::SameStore => "replay-same-store",
            Self::OtherHistory => "replay-other-history",
            Self::ForeignTrail => "replay-foreign",
            Self::NothingLater => "replay-nothing-later",
            Self::Interrupted(error) => error.code(),
        }
    }

    /// Returns the kind of the cause, which determines the HTTP status.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Chain { .. }
            | Self::SameStore
            | Self::OtherHistory
            | Self::ForeignTrail
            | Self::NothingLater => ErrorKind::Invalid,
            Self::Interrupted(error) => error.kind(),
        }
    }

    /// Returns the text that a client may see.
    #[must_use]
    pub fn public_message(&self) -> String {
        match self {
            Self::Interrupted(error) => error.public_message(),
            refused => refused.to_string(),
        }
    }
}

impl From<UselessTrails> for RecoveryError {
    fn from(refused: UselessTrails) -> Self {
        match refused {
            UselessTrails::Foreign => Self::ForeignTrail,
            UselessTrails::NothingLater => Self::NothingLater,
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
    /// Finally records the audit entries that the salvage of a damaged file lost, in an entry of each trail that has a
    /// gap.
    ///
    /// After an interruption, repeat the call to continue. A repeated replay makes no change twice. Between the
    /// calls, nobody else may change a tenant or start a new epoch: a given trail then lacks a newer entry of the
    /// store, and every key of the tenant is disabled.
    ///
    /// # Errors
    ///
    /// [`RecoveryError::Chain`] if entries are altered or missing. [`RecoveryError::SameStore`],
    /// [`OtherHistory`](RecoveryError::OtherHistory), [`ForeignTrail`](RecoveryError::ForeignTrail) or [`NothingLater`](RecoveryError::NothingLater) if the
    /// source is the wrong one. In these cases nothing was changed.
    pub async fn recover(&self, recovery: Recovery) -> Result<RecoveryReport, RecoveryError> {
        self.recover_with(recovery, |_| {}).await
    }

    /// Recovers a store like [`recover`](Self::recover). Calls `progress` after each commit that disables the
    /// keys of a tenant.
    ///
    /// # Errors
    ///
    /// Those of [`recover`](Self::recover).
    pub async fn recover_with(
        &self,
        recovery: Recovery,
        mut progress: impl FnMut(RecoveryProgress) + Send,
    ) -> Result<RecoveryReport, RecoveryError> {
        let own = self.inner.store.scan(None, NonZeroUsize::MIN).await?;
        let ids = RecoveryIds::new(own.head.epoch);
        let mut report = match recovery {
            Recovery::DisableAll => {
                let mut report = RecoveryReport::default();
                let keys = self.restored_keys(&mut report).await?;
                report.tenants = keys.values().filter(|own| !own.usable.is_empty()).count();
                self.disable_restored(ids, keys, &mut report, &mut progress)
                    .await?;
                report
            }
            Recovery::ReplayFrom(source) => {
                let other = source.scan(None, NonZeroUsize::MIN).await?;
                if own.head.epoch == other.head.epoch {
                    return Err(RecoveryError::SameStore);
                }
                // A copy of the lost store that waits for its own recovery still has the lost history.
                let history = source.restored_from().await?.unwrap_or(other.head.epoch);
                let lost = self.inner.store.restored_from().await?;
                if !recovery::is_same_history(lost, history) {
                    return Err(RecoveryError::OtherHistory);
                }
                let mut entries = Vec::new();
                let ends = read_trail(&*source, &REPLAYED, |entry| entries.push(entry)).await?;
                let loss = loss_of(&*source).await?;
                let from = ReplaySource {
                    is_whole: true,
                    cut: &cut_trails(&*source, &ends).await?,
                    has_loss: loss.is_some(),
                };
                let report = self.replay(ids, entries, from, &mut progress).await?;
                RecoveryReport { loss, ..report }
            }
            Recovery::Replay { entries, is_whole } => {
                let from = ReplaySource {
                    is_whole,
                    cut: &BTreeSet::new(),
                    has_loss: false,
                };
                self.replay(ids, entries, from, &mut progress).await?
            }
            Recovery::TrustBackup => RecoveryReport::default(),
        };
        self.record_losses(ids, &mut report).await?;
        self.sync().await?;
        report.unverifiable = self.unverifiable();
        Ok(report)
    }

    /// Records the gaps that the salvage of a damaged file left in the trails, so that each check reports them as known.
    /// If the salvage lost anything, also records in each trail that its end may be lost. Repeats the changes to tenants
    /// and owners whose rows the salvage left out. Does nothing while the store has damaged entries, which a salvage
    /// would remove.
    async fn record_losses(
        &self,
        ids: RecoveryIds,
        report: &mut RecoveryReport,
    ) -> Result<(), RecoveryError> {
        if has_damaged_entries(&*self.inner.store).await? {
            return Ok(());
        }
        let store = &*self.inner.store;
        let is_marked = has_unrecorded_losses(store).await?;
        for tenant in store.tenants().await? {
            let mut narrowed = Vec::new();
            let (mut end, mut is_recorded) = (AuditHead::GENESIS, false);
            let look = |entry: &AuditEntry| {
                narrowed.extend(RowKey::narrowed_by(entry).map(|_| entry.clone()));
                match ids.is_of_this_recovery(entry) {
                    true => is_recorded |= is_lost_end(entry),
                    false => end = entry.head(),
                }
            };
            let (mut gaps, Epoch(epoch)) = self.unrecorded_gaps(&tenant, look).await?;
            let changes = TenantChanges::new(&narrowed);
            let lost = without_rows(store, &tenant, changes).await?;
            self.replay_tenant(ids, &tenant, (&lost, &[]), report)
                .await?;
            // The gap of a trail without any entry has its end.
            let has_end = end != AuditHead::GENESIS || gaps.is_empty();
            if is_marked && !is_recorded && has_end {
                // The number of entries after a lost end is not known.
                gaps.push(TrailGap {
                    after: end,
                    through: end,
                });
            }
            for TrailGap { after, through } in gaps {
                let what = if after == through { "end-lost" } else { "lost" };
                let id = ids.command(through.hash, what);
                let id = id.map_err(CommandError::from)?;
                let command = Command::RecordLoss {
                    after,
                    through,
                    epoch,
                };
                if self.execute_as_host(&tenant, id, command).await?.is_none() {
                    continue;
                }
                let (first, last) = (after.sequence + 1, through.sequence);
                tracing::warn!(%tenant, first, last, "audit entries are lost, and their loss is recorded");
            }
        }
        match is_marked {
            true => Ok(replace_mark(store).await?),
            false => Ok(()),
        }
    }

    /// Returns the keys of each tenant that a recovery may have to disable. Adds unreadable keys to the report.
    async fn restored_keys(
        &self,
        report: &mut RecoveryReport,
    ) -> Result<BTreeMap<TenantId, RestoredKeys>, StoreError> {
        // A clock that is ahead must not hide keys that verify after its correction, so no key counts as expired.
        let at = Timestamp::UNIX_EPOCH;
        let mut query = KeyQuery {
            limit: PAGE,
            ..KeyQuery::all(at).live()
        };
        let mut tenants: BTreeMap<_, RestoredKeys> = BTreeMap::new();
        loop {
            let page = self.inner.store.list(&query).await?;
            report.corrupt.extend(page.corrupt);
            for record in page.keys {
                let is_usable = record.status(at) != Status::Disabled;
                let (id, is_legacy) = (record.id, record.legacy);
                if is_usable || is_legacy {
                    let keys = tenants.entry(record.facts.tenant).or_default();
                    keys.usable.extend(is_usable.then_some(id));
                    keys.legacy.extend(is_legacy.then_some(id));
                }
            }
            match page.next {
                Some(next) => query.after = Some(next),
                None => return Ok(tenants),
            }
        }
    }

    /// Disables keys, in commits that follow each other.
    async fn disable_restored(
        &self,
        ids: RecoveryIds,
        tenants: BTreeMap<TenantId, RestoredKeys>,
        report: &mut RecoveryReport,
        progress: &mut (dyn FnMut(RecoveryProgress) + Send),
    ) -> Result<(), RecoveryError> {
        let run = self.inner.manager.command_id();
        let run = run.map_err(CommandError::from)?;
        let total = tenants.values().map(|keys| keys.usable.len()).sum();
        let mut done = 0;
        for (tenant, keys) in tenants {
            report.legacy.extend(keys.legacy);
            for (number, some) in keys.usable.chunks(SWEEP_MAX).enumerate() {
                // One id for each commit: a decision reads the entries of its id.
                let id = ids.sweep(&run, number).map_err(CommandError::from)?;
                let request = as_host(&tenant, id, Command::DisableMany);
                let request = request.with_sweep(some.to_vec());
                if let Some(CommandOutcome::Swept { ended, .. }) =
                    self.execute_accepted(request).await?
                {
                    report.disabled += ended;
                }
                done += some.len();
                tracing::info!(%tenant, done, total, "recovery disabled keys");
                progress(RecoveryProgress { done, total });
            }
        }
        Ok(())
    }

    async fn replay(
        &self,
        ids: RecoveryIds,
        entries: Vec<AuditEntry>,
        source: ReplaySource<'_>,
        progress: &mut (dyn FnMut(RecoveryProgress) + Send),
    ) -> Result<RecoveryReport, RecoveryError> {
        let mut report = RecoveryReport::default();
        let mut keys = self.restored_keys(&mut report).await?;
        let trails = self
            .compare_trails(ids, (entries, source.has_loss), &keys)
            .await?;
        let covered = recovery::covered(&trails, source)?;
        let mut changed = BTreeMap::new();
        for (tenant, trail) in trails {
            // Entries of another history are not changes to this tenant.
            if !trail.later.is_empty() && trail.reach != TrailReach::Diverges {
                changed.insert(tenant.clone(), TenantChanges::new(&trail.later));
            }
            report.trails.push(ReplayedTrail {
                disabled: !covered.contains(&tenant),
                tenant,
                restored: trail.restored,
                reach: trail.reach,
                last: trail.last,
            });
        }
        // All trails are checked, so changes may start.
        keys.retain(|tenant, _| !covered.contains(tenant));
        let affected: BTreeSet<_> = changed.keys().chain(keys.keys()).collect();
        report.tenants = affected.len();
        self.disable_restored(ids, keys, &mut report, progress)
            .await?;
        // The map's order puts a tenant before its descendants.
        for (tenant, later) in &changed {
            let path = tenant.paths().filter_map(|path| changed.get(path));
            let path: Vec<_> = path.collect();
            self.replay_tenant(ids, tenant, (later, &path), &mut report)
                .await?;
        }
        Ok(report)
    }

    /// Compares the given entries with the trails of the store. The result has every tenant of the store, and
    /// every tenant with given entries.
    async fn compare_trails(
        &self,
        ids: RecoveryIds,
        (entries, may_lack): (Vec<AuditEntry>, bool),
        keys: &BTreeMap<TenantId, RestoredKeys>,
    ) -> Result<BTreeMap<TenantId, ComparedTrail>, RecoveryError> {
        let mut given: BTreeMap<TenantId, Vec<AuditEntry>> = BTreeMap::new();
        for entry in entries {
            given.entry(entry.tenant.clone()).or_default().push(entry);
        }
        let known = given.keys().chain(keys.keys());
        let mut restored: BTreeMap<_, RestoredTrail> = known
            .map(|tenant| (tenant.clone(), RestoredTrail::default()))
            .collect();
        read_trail(&*self.inner.store, &RESTORED, |entry| {
            restored
                .entry(entry.tenant.clone())
                .or_default()
                .add(&entry, ids);
        })
        .await?;
        let mut trails = BTreeMap::new();
        for (tenant, restored) in restored {
            let mut given = given.remove(&tenant).unwrap_or_default();
            given.sort_by_key(|entry| entry.sequence);
            // Exports may overlap. Equal copies of an entry are merged. Two versions of an entry fail the
            // comparison.
            given.dedup();
            match restored.compare(&tenant, given, (&self.inner.peppers, may_lack)) {
                Ok(trail) => trails.insert(tenant, trail),
                Err(error) => return Err(RecoveryError::Chain { tenant, error }),
            };
        }
        Ok(trails)
    }

    async fn replay_tenant(
        &self,
        ids: RecoveryIds,
        tenant: &TenantId,
        (later, path): (&TenantChanges, &[&TenantChanges]),
        report: &mut RecoveryReport,
    ) -> Result<(), RecoveryError> {
        for (marks, hash) in &later.blocked {
            for (number, (mark, key)) in marks.iter().enumerate() {
                // Sends one command per digest. If a digest was imported again, its command is denied, and
                // the others still commit.
                let id = ids.command(*hash, &format!("digest-{number}"));
                let id = id.map_err(CommandError::from)?;
                let marks = vec![(*mark, *key)];
                let blocked = self.execute_as_host(tenant, id, Command::BlockDigests { marks });
                if blocked.await?.is_none() {
                    report.to_review.push(*key);
                }
            }
        }
        if let Some(hash) = later.closed {
            let id = ids.command(hash, "close").map_err(CommandError::from)?;
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
            self.replay_owner(ids, tenant, owner, became, report)
                .await?;
        }
        let mut keys: Vec<_> = later.keys.iter().collect();
        keys.sort_by_key(|(_, became)| !became.ended());
        for some in keys.chunks(SWEEP_MAX) {
            self.replay_keys(ids, tenant, (some, path), report).await?;
        }
        Ok(())
    }

    async fn replay_owner(
        &self,
        ids: RecoveryIds,
        tenant: &TenantId,
        owner: &PrincipalId,
        became: &OwnerChanges,
        report: &mut RecoveryReport,
    ) -> Result<(), RecoveryError> {
        let OwnerChanges { removed, role } = became;
        let mut changed = false;
        if let Some((hash, _)) = removed {
            let id = ids.command(*hash, "remove").map_err(CommandError::from)?;
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
            let id = ids.command(*hash, "role").map_err(CommandError::from)?;
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
        ids: RecoveryIds,
        tenant: &TenantId,
        (keys, path): (&[(&KeyId, &KeyChanges)], &[&TenantChanges]),
        report: &mut RecoveryReport,
    ) -> Result<(), RecoveryError> {
        let select = LoadRequest {
            keys: keys.iter().map(|(id, _)| **id).collect(),
            ..LoadRequest::none()
        };
        let view = self.inner.store.load(tenant, &select).await?;
        self.block_digests(ids, tenant, (keys, path), report)
            .await?;
        let policy = self.inner.policies.load().of(tenant).clone();
        let now = self.now();
        let mut planned = Vec::new();
        for (id, became) in keys {
            let Some(record) = view.record(**id) else {
                let list = match () {
                    // The report has all corrupt keys already.
                    () if view.corrupt.contains(id) || became.ended() => continue,
                    () if became.created => &mut report.lost,
                    () => &mut report.unknown,
                };
                list.push(**id);
                continue;
            };
            let steps = became
                .steps(record, &policy, (now, ids))
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
        ids: RecoveryIds,
        tenant: &TenantId,
        (keys, path): (&[(&KeyId, &KeyChanges)], &[&TenantChanges]),
        report: &mut RecoveryReport,
    ) -> Result<(), RecoveryError> {
        let now = self.now();
        for (key, became) in keys {
            let mark = became
                .mark_to_block(path, (now, ids))
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

/// The keys of one tenant in the restored store.
#[derive(Debug, Default)]
struct RestoredKeys {
    /// The keys that could verify.
    usable: Vec<KeyId>,
    /// The legacy key, even if it is disabled already.
    legacy: Vec<KeyId>,
}

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
            tracing::debug!(error = %WithSources(&denied), "recovery command denied");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
