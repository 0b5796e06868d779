//! Recovery: derives the commands that repeat changes on a store restored from a backup. The changes come
//! from audit entries that are newer than the backup.
//!
//! Pure: no I/O and no clock. Invariant: if a later entry ended or narrowed a key, the recovered key accepts
//! nothing that it refused before the loss. A change that widened a key is not repeated. If a change cannot
//! be repeated exactly, the key is disabled.

use std::collections::{BTreeMap, BTreeSet};

use super::audit::{
    Action, AuditEntry, AuditHash, AuditHead, ChainCheck, ChainError, Evidence, FieldChange,
};
use super::command::{Command, DeleteKey, Expiry, RevokeKey, UpdateKey};
use super::id::KeyId;
use super::invalid::Invalid;
use super::pepper::PepperRing;
use super::policy::{Deletion, Policy, SelfRotation};
use super::principal::{Author, Owner};
use super::record::{KeyRecord, KeyState, Reason};
use super::secret::DigestMark;
use super::sweep::BulkFilter;
use super::tenant::TenantId;
use super::text::{CommandId, LeakSource, PrincipalId, Role};
use super::time::Timestamp;
use super::view::Epoch;

/// Returns whether `history` may be the epoch `lost` of the store that was backed up. If that epoch is not known,
/// only the trails show the difference.
pub(crate) fn is_same_history(lost: Option<Epoch>, history: Epoch) -> bool {
    lost.is_none_or(|lost| lost == Epoch::UNKNOWN || lost == history)
}

/// The audit trail of one tenant in the restored store.
#[derive(Debug, Default)]
pub(crate) struct RestoredTrail {
    /// The head after each entry, by sequence number. Also contains the head before the oldest entry. If old
    /// entries were pruned, this is the head of the newest removed entry.
    heads: BTreeMap<u64, AuditHead>,
    /// The restored end: the newest entry that was in the backup. An interrupted recovery may have added
    /// entries after it.
    end: AuditHead,
}

impl RestoredTrail {
    /// Adds the next entry. `ids` are those of this recovery.
    pub(crate) fn add(&mut self, entry: &AuditEntry, ids: RecoveryIds) {
        if self.heads.is_empty() {
            let sequence = entry.sequence.saturating_sub(1);
            let hash = entry.previous;
            self.end = AuditHead { sequence, hash };
            self.heads.insert(sequence, self.end);
        }
        self.heads.insert(entry.sequence, entry.head());
        if !ids.is_of_this_recovery(entry) {
            self.end = entry.head();
        }
    }

    /// Compares this trail with `given`, entries of the same tenant from outside the store, oldest first.
    ///
    /// `given` must hold the entries exactly as written. Each gap between them must be one that a later entry
    /// [records](Action::EntriesLost). If the store's trail was pruned, `given` may begin before its oldest entry. It may
    /// also fill gaps of the store's trail. With `may_lack`, gaps need no record, because the source is known to lack
    /// entries. The store may have newer entries of its own, from an interrupted recovery. The lost history begins at the
    /// first entry of `given` that differs from the store. The seals prove that the lost entries are genuine.
    pub(crate) fn compare(
        &self,
        tenant: &TenantId,
        given: Vec<AuditEntry>,
        (peppers, may_lack): (&PepperRing, bool),
    ) -> Result<ComparedTrail, ChainError> {
        let Some(last) = given.last() else {
            return Ok(ComparedTrail {
                restored: self.end.sequence,
                last: None,
                reach: TrailReach::Missing,
                later: given,
            });
        };
        let (newest, at) = (last.head(), last.at);
        let claimed = given.first().map_or(AuditHead::GENESIS, |first| AuditHead {
            sequence: first.sequence.saturating_sub(1),
            hash: first.previous,
        });
        let before = claimed.sequence;
        // Entries between the restored end and `given` are missing, for example because the lost store had
        // pruned them.
        let is_detached = before > self.end.sequence;
        // The store removed the entries up to this one. `given` must contain it, unless it ends earlier.
        let pruned = self
            .heads
            .values()
            .next()
            .filter(|oldest| oldest.sequence > before);
        // If the store lacks the entry before `given`, the check starts at the store's newest entry, and fails.
        let stored = self.heads.last_key_value().map(|(_, head)| head);
        let stored = self.heads.get(&before).or(stored).copied();
        let start = match () {
            () if before == 0 => AuditHead::GENESIS,
            () if is_detached || pruned.is_some() => claimed,
            () => stored.unwrap_or(AuditHead::GENESIS),
        };
        let reaches = |oldest: &&AuditHead| newest.sequence >= oldest.sequence;
        let awaited = pruned.filter(reaches).copied();
        let mut check = ChainCheck::new(tenant, start, peppers, awaited).with_recorded_gaps();
        given.iter().try_for_each(|entry| check.add(entry))?;
        if !may_lack {
            check.finish()?;
        }
        let has = |entry: &&AuditEntry| {
            let is_pruned = pruned.is_some_and(|oldest| entry.sequence <= oldest.sequence);
            match self.heads.get(&entry.sequence) {
                Some(own) => is_pruned || *own == entry.head(),
                // The chain proves an entry in a gap of the store's trail, if it continues after the gap.
                None => is_pruned || entry.sequence < self.end.sequence,
            }
        };
        let known = given.iter().take_while(has).count();
        let mut later = given;
        let common = match known.checked_sub(1).and_then(|last| later.get(last)) {
            Some(entry) => entry.sequence,
            None => before,
        };
        later.drain(..known);
        let reach = match (common < self.end.sequence, later.is_empty()) {
            _ if is_detached => TrailReach::Gap,
            (true, true) => TrailReach::Short,
            (true, false) => TrailReach::Diverges,
            (false, true) => TrailReach::RestoredEnd,
            (false, false) => TrailReach::Beyond,
        };
        let sequence = newest.sequence;
        Ok(ComparedTrail {
            restored: self.end.sequence,
            last: Some(TrailEnd { sequence, at }),
            reach,
            later,
        })
    }
}

/// The last entry of a trail.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TrailEnd {
    /// The number of the entry.
    pub sequence: u64,
    /// The instant of the entry.
    pub at: Timestamp,
}

/// The end of a given trail, compared with the restored trail of the same tenant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum TrailReach {
    /// No entry of the tenant was given.
    Missing,
    /// The trail ends before the restored trail ends.
    Short,
    /// The trail differs from an entry that was restored, so it belongs to another history.
    Diverges,
    /// The trail ends exactly where the restored trail ends.
    RestoredEnd,
    /// The trail contains the end of the restored trail, and later entries.
    Beyond,
    /// The trail begins after the restored trail ends, and entries between them are missing. Its entries are
    /// repeated, but do not prove the state of the keys.
    Gap,
}

impl TrailReach {
    /// Returns a stable word for the reach, such as `restored-end`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Short => "short",
            Self::Diverges => "diverges",
            Self::RestoredEnd => "restored-end",
            Self::Beyond => "beyond",
            Self::Gap => "gap",
        }
    }
}

/// The comparison of a given trail with the restored trail of the same tenant.
#[derive(Debug)]
pub(crate) struct ComparedTrail {
    /// The number of the newest restored entry. Zero if the tenant is not in the restored store.
    pub(crate) restored: u64,
    /// The last given entry.
    pub(crate) last: Option<TrailEnd>,
    pub(crate) reach: TrailReach,
    /// The entries that the store has lost, oldest first.
    pub(crate) later: Vec<AuditEntry>,
}

impl ComparedTrail {
    /// Returns whether the trail lost entries after the restored end.
    fn has_lost_entries(&self) -> bool {
        let is_later = |entry: &AuditEntry| match entry.action {
            // Without a number of lost entries, those after `through` are lost.
            Action::EntriesLost { after, through } if after == through => {
                through.sequence >= self.restored
            }
            Action::EntriesLost { through, .. } => through.sequence > self.restored,
            _ => false,
        };
        self.later.iter().any(is_later)
    }
}

/// The known properties of the source of all given trails.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReplaySource<'a> {
    /// True if the trails are all that the lost store had. A trail without later entries then proves that its tenant
    /// was not changed, if another trail goes on after the backup.
    pub(crate) is_whole: bool,
    /// The tenants whose trails are known to lack their newest entries. Such a trail proves nothing.
    pub(crate) cut: &'a BTreeSet<TenantId>,
    /// True if the source lost anything. Damage that removes the end of a trail can also remove each sign of it, so no
    /// trail of such a source proves anything.
    pub(crate) has_loss: bool,
}

/// The reason to refuse all given trails together.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum UselessTrails {
    /// No trail contains the restored end of its tenant.
    Foreign,
    /// No trail continues after the restored end of its tenant.
    NothingLater,
}

/// Returns the tenants whose keys a replay of the lost entries brings to their state at the loss. The keys of
/// every other tenant must be disabled.
///
/// `trails` has an entry for each tenant of the restored store, and for each tenant with given entries. A trail that
/// lost entries after the restored end proves nothing.
///
/// A trail that diverges from the backup shows that the given trails are of another history, so none of them proves
/// anything. So does a short one among trails that are whole: the lost store had all of the backup. A missing one does
/// not, because the salvage of a damaged store can lose a whole trail.
///
/// A tenant counts only with all tenants above and below it, because their rows limit its keys too.
pub(crate) fn covered(
    trails: &BTreeMap<TenantId, ComparedTrail>,
    source: ReplaySource<'_>,
) -> Result<BTreeSet<TenantId>, UselessTrails> {
    let ReplaySource { is_whole, cut, .. } = source;
    let is_restored = |trail: &&ComparedTrail| trail.restored > 0;
    let any = |reaches: &dyn Fn(&ComparedTrail) -> bool| trails.values().any(reaches);
    let short = |(tenant, trail): (&TenantId, &ComparedTrail)| {
        trail.reach == TrailReach::Short && !cut.contains(tenant)
    };
    if any(&|trail| is_restored(&trail)) {
        let contains = |reach| matches!(reach, TrailReach::RestoredEnd | TrailReach::Beyond);
        if !any(&|trail| is_restored(&trail) && contains(trail.reach)) {
            return Err(UselessTrails::Foreign);
        }
        let goes_on = |trail: &ComparedTrail| {
            trail.reach == TrailReach::Beyond && (is_whole || is_restored(&trail))
        };
        if !source.has_loss && !any(&goes_on) {
            return Err(UselessTrails::NothingLater);
        }
    }
    if source.has_loss {
        return Ok(BTreeSet::new());
    }
    let diverges = |trail: &ComparedTrail| trail.reach == TrailReach::Diverges;
    let is_other = any(&diverges) || (is_whole && trails.iter().any(short));
    let proves = |trail: &ComparedTrail| match trail.reach {
        TrailReach::Beyond => !is_other,
        TrailReach::RestoredEnd => !is_other && is_whole,
        TrailReach::Missing | TrailReach::Short | TrailReach::Diverges | TrailReach::Gap => false,
    };
    let unproven = trails.iter().filter(|(tenant, trail)| {
        cut.contains(*tenant) || trail.has_lost_entries() || !proves(trail)
    });
    let mut covered: BTreeSet<_> = trails.keys().cloned().collect();
    for (tenant, _) in unproven {
        for above in tenant.lineage() {
            covered.remove(&above);
        }
        for (below, _) in tenant.range_in(trails) {
            covered.remove(below);
        }
    }
    Ok(covered)
}

/// The changes to one tenant, collected from audit entries after the backup. Each hash identifies the entry
/// that recorded a change.
#[derive(Debug, Default)]
pub(crate) struct TenantChanges {
    /// The entry that closed the tenant, if it was closed.
    pub(crate) closed: Option<AuditHash>,
    /// Digests that an earlier recovery blocked, with one list for each audit entry. A blocked digest cannot
    /// be imported again.
    pub(crate) blocked: Vec<(Vec<(DigestMark, KeyId)>, AuditHash)>,
    /// The changes to owners.
    pub(crate) owners: BTreeMap<PrincipalId, OwnerChanges>,
    /// The changes to keys.
    pub(crate) keys: BTreeMap<KeyId, KeyChanges>,
}

/// The changes to an owner after the backup.
#[derive(Debug, Default)]
pub(crate) struct OwnerChanges {
    /// The entry and the instant of the owner's last removal. Keys created before the removal stay refused,
    /// even if the owner was added again.
    pub(crate) removed: Option<(AuditHash, Timestamp)>,
    /// The owner's last role and its entry, unless the owner was removed after that entry.
    pub(crate) role: Option<(Role, AuditHash)>,
}

/// The changes to a key after the backup, each with the hash of the audit entry that recorded it.
#[derive(Debug, Default)]
pub(crate) struct KeyChanges {
    /// True if later entries created, provisioned or imported the key.
    pub(crate) created: bool,
    imported: Option<RecordedImport>,
    removed: Option<AuditHash>,
    revoked: Option<(Reason, AuditHash)>,
    /// The reason and the entry, if an action other than a revocation or a deletion ended the key. Examples
    /// are a purge and a replaced secret.
    gone: Option<(Reason, AuditHash)>,
    changed: Option<(LimitChanges, AuditHash)>,
    retired: Option<(Timestamp, AuditHash)>,
    disabled: Option<AuditHash>,
    /// The source and the entry of a reported leak that did not revoke the key.
    exposed: Option<(LeakSource, AuditHash)>,
    /// The newest entry about the key.
    newest: Option<AuditHash>,
}

/// The import of a key, as its audit entry recorded it.
#[derive(Debug)]
struct RecordedImport {
    mark: DigestMark,
    owner: Owner,
    at: Timestamp,
    expires_at: Option<Timestamp>,
}

/// The changes to a key's scopes, allowed networks and expiry, oldest first.
#[derive(Debug, Default)]
struct LimitChanges {
    list: Vec<FieldChange>,
    /// True if at least one change narrowed the key.
    narrowed: bool,
}

/// A change to repeat on a key. The commands are tried in order until one is not denied. Their ids are
/// derived from the change's audit entry, so a second recovery does not make the change again.
#[derive(Debug)]
pub(crate) struct RecoveryStep {
    /// The commands to try. The first one is closest to the recorded change.
    pub(crate) ways: Vec<(CommandId, Command)>,
    /// True if the recorded change disabled the key. If false, a command that disables the key is a
    /// substitute for the recorded change.
    pub(crate) was_disabled: bool,
    /// True if the step ends the key.
    pub(crate) ends: bool,
}

impl TenantChanges {
    /// Collects the changes to one tenant from its entries, which are sorted oldest first.
    pub(crate) fn new<'a>(entries: impl IntoIterator<Item = &'a AuditEntry>) -> Self {
        let mut later = Self::default();
        for entry in entries {
            later.add(entry);
        }
        later
    }

    fn add(&mut self, entry: &AuditEntry) {
        let hash = entry.hash;
        match &entry.action {
            Action::TenantClosed => self.closed = Some(hash),
            Action::OwnerRemoved { owner } => {
                let removed = Some((hash, entry.at));
                let role = None;
                self.owners
                    .insert(owner.clone(), OwnerChanges { removed, role });
            }
            Action::OwnerRoleChanged { owner, after, .. } => {
                self.owners.entry(owner.clone()).or_default().role = Some((after.clone(), hash));
            }
            _ => {}
        }
        if let Some(Evidence::Blocked { marks }) = &entry.evidence {
            self.blocked.push((marks.clone(), hash));
        }
        if let Some(key) = entry.key {
            self.keys.entry(key).or_default().add(entry);
        }
    }
}

impl TenantChanges {
    /// Returns whether the imported key ended because its tenant was closed or its owner was removed. The key
    /// has no audit entry of its own for such an end.
    fn refuses(&self, imported: &RecordedImport) -> bool {
        let owner = imported.owner.principal();
        let owner = owner.and_then(|owner| self.owners.get(owner));
        let removed = owner.and_then(|owner| owner.removed);
        self.closed.is_some() || removed.is_some_and(|(_, at)| imported.at <= at)
    }
}

impl KeyChanges {
    fn add(&mut self, entry: &AuditEntry) {
        let hash = entry.hash;
        self.newest = Some(hash);
        if let Some(Evidence::Imported {
            mark,
            owner,
            expires_at,
        }) = &entry.evidence
        {
            self.imported = Some(RecordedImport {
                mark: *mark,
                owner: owner.clone(),
                at: entry.at,
                expires_at: *expires_at,
            });
        }
        match &entry.action {
            Action::KeyCreated { .. }
            | Action::KeyProvisioned { .. }
            | Action::KeyImported { .. } => self.created = true,
            Action::KeyUpdated { changes } => self.change(changes, hash),
            Action::KeyDisabled => self.disabled = Some(hash),
            Action::KeyEnabled => self.disabled = None,
            Action::KeyRevoked { reason } => self.revoked = Some((*reason, hash)),
            Action::KeyDeleted => self.removed = Some(hash),
            Action::KeyPurged => match self.retired {
                Some(_) => self.go(Reason::Rotated, hash),
                None => self.go(Reason::NoLongerNeeded, hash),
            },
            // The backup holds the digest of the old secret, so the restored key would accept that secret.
            // The key must end.
            Action::SecretReplaced => self.go(Reason::Lost, hash),
            Action::KeyLeaked { revoked: true, .. } => self.go(Reason::Leaked, hash),
            Action::KeyRotated { old_key_ends, .. } if *old_key_ends <= entry.at => {
                self.go(Reason::Rotated, hash)
            }
            Action::KeyRotated { old_key_ends, .. } | Action::GraceBegan { old_key_ends } => {
                self.retired = Some((*old_key_ends, hash));
            }
            Action::RotationCancelled { .. } => self.retired = None,
            Action::KeyLeaked {
                revoked: false,
                source,
            } => self.exposed = Some((source.clone(), hash)),
            Action::SuccessorFirstUsed
            | Action::KeyRedigested { .. }
            | Action::TenantProvisioned
            | Action::TenantClosed
            | Action::ResourceProvisioned { .. }
            | Action::OwnerAdded { .. }
            | Action::OwnerRoleChanged { .. }
            | Action::OwnerRemoved { .. }
            | Action::BulkRevocationBegan { .. }
            | Action::BulkCommandEnded
            | Action::DigestsBlocked { .. }
            | Action::TimeRepaired { .. }
            | Action::TrailPruned { .. }
            | Action::EntriesLost { .. } => {}
        }
    }

    fn go(&mut self, reason: Reason, hash: AuditHash) {
        self.gone.get_or_insert((reason, hash));
    }

    fn change(&mut self, changes: &[FieldChange], hash: AuditHash) {
        for change in changes {
            let narrows = match change {
                FieldChange::Scopes { before, after } => !after.contains(before),
                FieldChange::Allowlist { before, after } => !before.is_within(after),
                FieldChange::ExpiresAt { before, after } => ends_before(*after, *before),
                FieldChange::Name { .. }
                | FieldChange::Description { .. }
                | FieldChange::Purpose { .. }
                | FieldChange::Metadata { .. } => continue,
            };
            let known = self.changed.take().map(|(changes, _)| changes);
            let mut known = known.unwrap_or_default();
            known.list.push(change.clone());
            known.narrowed |= narrows;
            self.changed = Some((known, hash));
        }
    }

    /// Returns the mark of the key's imported digest, and the id of the command that blocks the digest.
    /// `None` if the digest may be imported again. It must not be if a new import would accept requests that
    /// the key refused before the loss. `path` holds the changes to the key's tenant and to the tenant's
    /// ancestors.
    pub(crate) fn mark_to_block(
        &self,
        path: &[&TenantChanges],
        (now, ids): (Timestamp, RecoveryIds),
    ) -> Result<Option<(DigestMark, CommandId)>, Invalid> {
        let Some(imported) = &self.imported else {
            return Ok(None);
        };
        let changed = self
            .changed
            .as_ref()
            .is_some_and(|(changes, _)| changes.narrowed);
        let narrowed = changed || self.retired.is_some() || self.disabled.is_some();
        let refused = path.iter().any(|later| later.refuses(imported));
        let expired = imported.expires_at.is_some_and(|end| end <= now);
        if !narrowed && !refused && !expired && !self.ended() {
            return Ok(None);
        }
        let newest = self.newest.unwrap_or(AuditHash::GENESIS);
        Ok(Some((imported.mark, ids.command(newest, "digest")?)))
    }

    /// Returns whether the key ended permanently. If the restored store lacks such a key, nothing is left to
    /// repeat.
    pub(crate) fn ended(&self) -> bool {
        self.removed.is_some() || self.revoked.is_some() || self.gone.is_some()
    }

    /// Returns the steps that repeat the changes on the restored `record`.
    pub(crate) fn steps(
        &self,
        record: &KeyRecord,
        policy: &Policy,
        (now, ids): (Timestamp, RecoveryIds),
    ) -> Result<Vec<RecoveryStep>, Invalid> {
        let is_revoked = matches!(record.state, KeyState::Revoked { .. });
        let mut steps = Vec::new();
        let revoked = self.revoked.or(self.gone);
        if let Some(hash) = self.removed {
            let mut ways = vec![delete(record, policy)];
            if !is_revoked {
                let reason = revoked.map_or(Reason::NoLongerNeeded, |(reason, _)| reason);
                ways.extend(revoke(record, reason));
            }
            steps.push(self.step((hash, ids), END, ways)?);
        } else if let Some((reason, hash)) = revoked.filter(|_| !is_revoked) {
            steps.push(self.step((hash, ids), END, revoke(record, reason))?);
        } else if !is_revoked {
            // An expired key too: the clock may be ahead.
            steps.extend(self.narrowing(record, policy, (now, ids))?);
        }
        Ok(steps)
    }

    /// Returns the step for the entry with this hash. All steps that disable the key share one command id, so
    /// that a second recovery does not disable a key that an administrator has enabled in between.
    fn step(
        &self,
        (hash, ids): (AuditHash, RecoveryIds),
        what: &str,
        ways: impl IntoIterator<Item = Command>,
    ) -> Result<RecoveryStep, Invalid> {
        let named = |(way, command)| {
            let id = match command {
                Command::DisableMany => ids.command(self.newest.unwrap_or(hash), DISABLED)?,
                _ => ids.command(hash, &format!("{what}-{way}"))?,
            };
            Ok((id, command))
        };
        let ways = ways.into_iter().enumerate().map(named);
        Ok(RecoveryStep {
            ways: ways.collect::<Result<_, Invalid>>()?,
            was_disabled: what == DISABLED,
            ends: what == END,
        })
    }

    fn narrowing(
        &self,
        record: &KeyRecord,
        policy: &Policy,
        (now, ids): (Timestamp, RecoveryIds),
    ) -> Result<Vec<RecoveryStep>, Invalid> {
        let key = record.id;
        let mut steps = Vec::new();
        if let Some((changes, hash)) = &self.changed {
            let change = changes.narrowing(record);
            if change != Some(UpdateKey::default()) {
                let update = change.map(|change| Command::Update { key, change });
                let ways = update.into_iter().chain([Command::DisableMany]);
                steps.push(self.step((*hash, ids), "change", ways)?);
            }
        }
        if let Some((source, hash)) = &self.exposed
            && record.exposed_at.is_none()
        {
            let source = source.clone();
            let ways = [Command::ReportLeak { key, source }, Command::DisableMany];
            steps.push(self.step((*hash, ids), "leak", ways)?);
        }
        let class = policy.class(&record.class);
        let rotates_itself = class.is_none_or(|class| class.self_rotation != SelfRotation::Never);
        match self.retired {
            Some((until, hash)) if until <= now => {
                steps.push(self.step((hash, ids), END, revoke(record, Reason::Rotated))?);
            }
            Some((until, hash))
                if record.expires_at.is_none_or(|end| until < end)
                    || (rotates_itself && record.succession.is_none()) =>
            {
                let change = UpdateKey {
                    expiry: Some(Expiry::At(until)),
                    ..UpdateKey::default()
                };
                // An earlier expiry is denied for the legacy key, and for a key that was already in a
                // rotation at the backup. Both are disabled instead. A key that may rotate itself is always
                // disabled: its record lacks the lost rotation, so the key could rotate itself again.
                let update = Command::Update { key, change };
                let update = Some(update).filter(|_| !rotates_itself);
                let ways = update.into_iter().chain([Command::DisableMany]);
                steps.push(self.step((hash, ids), "retire", ways)?);
            }
            Some(_) | None => {}
        }
        if let Some(hash) = self.disabled {
            steps.push(self.step((hash, ids), DISABLED, [Command::DisableMany])?);
        }
        Ok(steps)
    }
}

impl LimitChanges {
    /// Returns an update with only the changes that narrow `record`. `None` if no update can repeat them, so
    /// that the key must be disabled. This is so if no scope is left, or if a change of networks neither
    /// narrows nor widens. Widening changes are left out, because an entry does not record the bound of the
    /// change's author. A narrowing change is included even if a later change undid it.
    fn narrowing(&self, record: &KeyRecord) -> Option<UpdateKey> {
        let mut scopes = record.scopes.clone();
        let mut allowlist = record.allowlist.clone();
        let mut end = record.expires_at;
        for change in &self.list {
            match change {
                FieldChange::Scopes { after, .. } => scopes = scopes.intersection(after),
                FieldChange::Allowlist { after, .. } if after.is_within(&allowlist) => {
                    allowlist = after.clone();
                }
                FieldChange::Allowlist { after, .. } if !allowlist.is_within(after) => return None,
                FieldChange::ExpiresAt { after, .. } if ends_before(*after, end) => end = *after,
                _ => {}
            }
        }
        if scopes.is_empty() {
            return None;
        }
        let shorter = end.filter(|_| end != record.expires_at);
        Some(UpdateKey {
            scopes: (!scopes.contains(&record.scopes)).then_some(scopes),
            allowlist: (allowlist != record.allowlist).then_some(allowlist),
            expiry: shorter.map(Expiry::At),
            ..UpdateKey::default()
        })
    }
}

/// Returns whether the expiry `a` is before the expiry `b`. `None` means that a key never expires.
fn ends_before(a: Option<Timestamp>, b: Option<Timestamp>) -> bool {
    a.is_some_and(|a| b.is_none_or(|b| a < b))
}

const DISABLED: &str = "disable";
const END: &str = "end";

/// The ids of the commands of one recovery. They begin with the epoch of the restored store, which every restore
/// replaces. So the entries of an earlier recovery that are in the backup are part of the backup.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecoveryIds {
    epoch: Epoch,
}

impl RecoveryIds {
    /// Creates the ids for a restored store with this epoch.
    pub(crate) const fn new(epoch: Epoch) -> Self {
        Self { epoch }
    }

    fn beginning(self) -> String {
        format!("recovery:{:032x}:", self.epoch.0)
    }

    /// Returns the id of the command that repeats the change in the entry with this hash.
    pub(crate) fn command(self, hash: AuditHash, what: &str) -> Result<CommandId, Invalid> {
        CommandId::new(format!("{}{hash}:{what}", self.beginning()))
    }

    /// Returns the id of a command that disables keys that no replay covers. `run` is a random id, and `number`
    /// the number of the command in its tenant.
    pub(crate) fn sweep(self, run: &CommandId, number: usize) -> Result<CommandId, Invalid> {
        CommandId::new(format!("{}{run}:{DISABLED}-{number}", self.beginning()))
    }

    /// Returns whether this recovery wrote the entry, perhaps before an interruption. Only the host itself
    /// recovers a store.
    pub(crate) fn is_of_this_recovery(self, entry: &AuditEntry) -> bool {
        entry.actor == Author::Application && entry.command.as_str().starts_with(&self.beginning())
    }
}

fn delete(record: &KeyRecord, policy: &Policy) -> Command {
    // The original deletion met the conditions of the class. The repeated deletion therefore states that they
    // are met, without asking a person again.
    let class = policy.class(&record.class);
    let typed = class.and_then(|class| match &class.deletion {
        Deletion::Typed(text) => Some(text.clone()),
        _ => None,
    });
    Command::Delete {
        key: record.id,
        deletion: DeleteKey {
            typed,
            references: Some(0),
        },
    }
}

/// Returns the commands to try, in order, to revoke a key. A class may forbid [`Command::Revoke`], but not
/// [`Command::RevokeMany`]. The legacy key cannot be revoked, so it is disabled.
fn revoke(record: &KeyRecord, reason: Reason) -> Vec<Command> {
    let key = record.id;
    if record.legacy {
        return vec![Command::DisableMany];
    }
    let revocation = RevokeKey {
        reason,
        confirmed: true,
    };
    let filter = BulkFilter::all();
    vec![
        Command::Revoke { key, revocation },
        Command::RevokeMany { filter, reason },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_id_of_a_recovery_is_a_valid_command_id() {
        let ids = RecoveryIds::new(Epoch(u128::MAX));
        let hash = AuditHash::from_bytes([u8::MAX; 32]);
        for what in [
            "digest-9999999999999",
            "change-1",
            "disable",
            "retire-1",
            "remove",
        ] {
            ids.command(hash, what).unwrap();
        }
        let run = CommandId::new("0".repeat(64)).unwrap();
        assert!(ids.sweep(&run, 9_999_999).is_ok());
    }
}
