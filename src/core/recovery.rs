//! Recovery: derives commands that repeat, on a restored store, the changes in audit entries after the
//! backup.
//!
//! Pure. Invariant: after a recovery, a key that later entries ended or narrowed accepts nothing that it
//! refused before the loss (invariant 2). A widening is not repeated. If the entries do not suffice to repeat
//! a change exactly, the key is disabled.

use std::collections::BTreeMap;

use super::audit::{
    Action, AuditEntry, AuditHash, AuditHead, ChainError, Evidence, FieldChange, verify_chain,
};
use super::command::{Command, DeleteKey, Expiry, RevokeKey, UpdateKey};
use super::id::KeyId;
use super::invalid::Invalid;
use super::pepper::PepperRing;
use super::policy::{Deletion, Policy, SelfRotation};
use super::principal::Owner;
use super::record::{KeyRecord, KeyState, Reason};
use super::secret::DigestMark;
use super::sweep::BulkFilter;
use super::tenant::TenantId;
use super::text::{CommandId, LeakSource, PrincipalId, Role};
use super::time::Timestamp;

/// Returns the entries of `given` that are not `stored`. Both belong to one tenant. `given` is sorted oldest
/// first.
///
/// `given` must hold the entries exactly as they were written, and must follow an entry in the store. The
/// store may have newer entries of its own, such as those of an interrupted recovery. The lost history begins
/// with the first given entry that differs from the store. The seals of the lost entries prove that this
/// history existed.
pub(crate) fn later<'a>(
    tenant: &TenantId,
    stored: &BTreeMap<u64, AuditHead>,
    given: &'a [AuditEntry],
    peppers: &PepperRing,
) -> Result<&'a [AuditEntry], ChainError> {
    let before = given
        .first()
        .map_or(0, |entry| entry.sequence.saturating_sub(1));
    let newest = stored.last_key_value();
    // If the store lacks the entry before the first given one, the entries in between are missing.
    let start = stored.get(&before).or(newest.map(|(_, head)| head));
    let start = start.copied().filter(|_| before > 0);
    verify_chain(
        tenant,
        start.unwrap_or(AuditHead::GENESIS),
        given,
        peppers,
        None,
    )?;
    let has = |entry: &&AuditEntry| stored.get(&entry.sequence) == Some(&entry.head());
    let known = given.iter().take_while(has).count();
    Ok(given.get(known..).unwrap_or_default())
}

/// The changes of one tenant in the audit entries after the backup. Each hash identifies the entry that
/// recorded a change.
#[derive(Debug, Default)]
pub(crate) struct Later {
    /// The entry that closed the tenant, if it was closed.
    pub(crate) closed: Option<AuditHash>,
    /// Digests that an earlier recovery blocked.
    pub(crate) blocked: Vec<(Vec<(DigestMark, KeyId)>, AuditHash)>,
    /// The changes of owners.
    pub(crate) owners: BTreeMap<PrincipalId, LaterOwner>,
    /// The changes of keys.
    pub(crate) keys: BTreeMap<KeyId, LaterKey>,
}

/// The changes of an owner in later entries.
#[derive(Debug, Default)]
pub(crate) struct LaterOwner {
    /// The entry and the instant of the owner's last removal. The owner's keys stay refused even if the
    /// owner was added again.
    pub(crate) removed: Option<(AuditHash, Timestamp)>,
    /// The owner's last role and its entry, unless the owner was removed after that entry.
    pub(crate) role: Option<(Role, AuditHash)>,
}

/// The changes of a key in later entries.
#[derive(Debug, Default)]
pub(crate) struct LaterKey {
    /// Whether later entries created, provisioned or imported the key.
    pub(crate) created: bool,
    imported: Option<Imported>,
    removed: Option<AuditHash>,
    revoked: Option<(Reason, AuditHash)>,
    /// The reason and the entry of an end that another action implies, such as a purge or a replaced secret.
    gone: Option<(Reason, AuditHash)>,
    changed: Option<(Changes, AuditHash)>,
    retired: Option<(Timestamp, AuditHash)>,
    disabled: Option<AuditHash>,
    /// A reported leak that did not revoke the key.
    exposed: Option<(LeakSource, AuditHash)>,
    /// The newest entry about the key.
    newest: Option<AuditHash>,
}

/// The import of a key, from its entry.
#[derive(Debug)]
struct Imported {
    mark: DigestMark,
    owner: Owner,
    at: Timestamp,
    expires_at: Option<Timestamp>,
}

/// The changes of a key's scopes, networks and end, oldest first.
#[derive(Debug, Default)]
struct Changes {
    list: Vec<FieldChange>,
    /// Whether at least one change narrowed the key.
    narrowed: bool,
}

/// A change to repeat on a key. The first of `ways` that is not denied repeats the change. The ids of the
/// commands are derived from the change's entry, so that a repeated recovery makes the change once.
#[derive(Debug)]
pub(crate) struct RecoveryStep {
    /// The commands, starting with the one closest to the recorded change.
    pub(crate) ways: Vec<(CommandId, Command)>,
    /// Whether the recorded change was to disable the key. If not, a command that disables the key is a
    /// substitute.
    pub(crate) was_disabled: bool,
}

impl Later {
    /// Collects the changes of one tenant from its entries, oldest first.
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
                    .insert(owner.clone(), LaterOwner { removed, role });
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

impl Later {
    /// Returns whether a change of the tenant or of an owner ended an imported key. No entry about the key
    /// itself records such an end.
    fn refuses(&self, imported: &Imported) -> bool {
        let owner = imported.owner.principal();
        let owner = owner.and_then(|owner| self.owners.get(owner));
        let removed = owner.and_then(|owner| owner.removed);
        self.closed.is_some() || removed.is_some_and(|(_, at)| imported.at <= at)
    }
}

impl LaterKey {
    fn add(&mut self, entry: &AuditEntry) {
        let hash = entry.hash;
        self.newest = Some(hash);
        if let Some(Evidence::Imported {
            mark,
            owner,
            expires_at,
        }) = &entry.evidence
        {
            self.imported = Some(Imported {
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
            // The backup holds the digest of the secret that was replaced.
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
            | Action::TimeRepaired { .. } => {}
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

    /// Returns the mark of the key's imported digest if the digest must not be imported again, with the id of
    /// the command that blocks it. A new import of the digest would accept requests that the key refused
    /// before the loss. `path` has the changes of the key's tenant and of the tenant's ancestors.
    pub(crate) fn mark_to_block(
        &self,
        path: &[&Later],
        now: Timestamp,
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
        Ok(Some((imported.mark, command_id(newest, "digest")?)))
    }

    /// Returns whether the key ended permanently, so that its absence from a backup is no loss.
    pub(crate) fn ended(&self) -> bool {
        self.removed.is_some() || self.revoked.is_some() || self.gone.is_some()
    }

    /// Returns the steps to be repeated on the restored `record`.
    pub(crate) fn steps(
        &self,
        record: &KeyRecord,
        policy: &Policy,
        now: Timestamp,
    ) -> Result<Vec<RecoveryStep>, Invalid> {
        let is_revoked = matches!(record.state, KeyState::Revoked { .. });
        let live = record.is_live(now);
        let mut steps = Vec::new();
        let revoked = self.revoked.or(self.gone);
        if let Some(hash) = self.removed {
            let mut ways = vec![delete(record, policy)];
            if !is_revoked {
                let reason = revoked.map_or(Reason::NoLongerNeeded, |(reason, _)| reason);
                ways.extend(revoke(record, reason));
            }
            steps.push(self.step(hash, "end", ways)?);
        } else if let Some((reason, hash)) = revoked {
            // An expired key was purged without a revocation. The key in the backup has expired too.
            let purged = self.revoked.is_none() && !live;
            if !is_revoked && !purged {
                steps.push(self.step(hash, "end", revoke(record, reason))?);
            }
        } else if live {
            steps.extend(self.narrowing(record, policy, now)?);
        }
        Ok(steps)
    }

    /// Returns the step for the entry of this hash. Several steps may disable the key; they share one command
    /// id, so that a repeated recovery does not disable a key that an administrator has enabled since.
    fn step(
        &self,
        hash: AuditHash,
        what: &str,
        ways: impl IntoIterator<Item = Command>,
    ) -> Result<RecoveryStep, Invalid> {
        let named = |(way, command)| {
            let id = match command {
                Command::DisableMany => command_id(self.newest.unwrap_or(hash), DISABLED)?,
                _ => command_id(hash, &format!("{what}-{way}"))?,
            };
            Ok((id, command))
        };
        let ways = ways.into_iter().enumerate().map(named);
        Ok(RecoveryStep {
            ways: ways.collect::<Result<_, Invalid>>()?,
            was_disabled: what == DISABLED,
        })
    }

    fn narrowing(
        &self,
        record: &KeyRecord,
        policy: &Policy,
        now: Timestamp,
    ) -> Result<Vec<RecoveryStep>, Invalid> {
        let key = record.id;
        let mut steps = Vec::new();
        if let Some((changes, hash)) = &self.changed {
            let change = changes.narrowing(record);
            if change != Some(UpdateKey::default()) {
                let update = change.map(|change| Command::Update { key, change });
                let ways = update.into_iter().chain([Command::DisableMany]);
                steps.push(self.step(*hash, "change", ways)?);
            }
        }
        if let Some((source, hash)) = &self.exposed
            && record.exposed_at.is_none()
        {
            let source = source.clone();
            let ways = [Command::ReportLeak { key, source }, Command::DisableMany];
            steps.push(self.step(*hash, "leak", ways)?);
        }
        let class = policy.class(&record.class);
        let rotates_itself = class.is_none_or(|class| class.self_rotation != SelfRotation::Never);
        match self.retired {
            Some((until, hash)) if until <= now => {
                steps.push(self.step(hash, "end", revoke(record, Reason::Rotated))?);
            }
            Some((until, hash))
                if record.expires_at.is_none_or(|end| until < end)
                    || (rotates_itself && record.succession.is_none()) =>
            {
                let change = UpdateKey {
                    expiry: Some(Expiry::At(until)),
                    ..UpdateKey::default()
                };
                // Three kinds of keys are disabled instead. The legacy key accepts no earlier end. A key that
                // was in a rotation at the backup has its end from that rotation. A key that may rotate
                // itself would do so again, because its record lacks the later rotation.
                let update = Command::Update { key, change };
                let update = Some(update).filter(|_| !rotates_itself);
                let ways = update.into_iter().chain([Command::DisableMany]);
                steps.push(self.step(hash, "retire", ways)?);
            }
            Some(_) | None => {}
        }
        if let Some(hash) = self.disabled {
            steps.push(self.step(hash, DISABLED, [Command::DisableMany])?);
        }
        Ok(steps)
    }
}

impl Changes {
    /// Returns the part of the changes that narrows `record`. `None` if a change of networks neither narrows
    /// nor widens, or if no scope is left. A widening is not repeated, because its entry does not record the
    /// bound of its author. A narrowing is repeated even if a later change undid it.
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

/// Returns whether `a` ends before `b`; `None` means never.
fn ends_before(a: Option<Timestamp>, b: Option<Timestamp>) -> bool {
    a.is_some_and(|a| b.is_none_or(|b| a < b))
}

const DISABLED: &str = "disable";

/// Returns the id of the command that repeats the change in the entry of this hash.
pub(crate) fn command_id(hash: AuditHash, what: &str) -> Result<CommandId, Invalid> {
    CommandId::new(format!("recovery:{hash}:{what}"))
}

fn delete(record: &KeyRecord, policy: &Policy) -> Command {
    // The class's conditions for a deletion were met when the key was deleted before the loss.
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

/// Returns the commands that revoke a key: a revocation of this key alone, or else in bulk, which no class
/// restricts. The legacy key cannot be revoked, so it is disabled.
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
