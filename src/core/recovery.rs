//! The events after a backup, as the audit entries have them, and the commands that repeat them on the
//! restored keys.
//!
//! Pure. Invariant: a key that the later entries ended or narrowed accepts nothing afterwards that
//! it was refused before the loss (invariant 2). A widening is not repeated. A key is disabled if its
//! entries hold too little to repeat a change exactly.

use std::collections::BTreeMap;

use super::address::AddressAllowlist;
use super::audit::{
    Action, AuditEntry, AuditHash, AuditHead, ChainError, FieldChange, verify_chain,
};
use super::command::{Command, DeleteKey, Expiry, RevokeKey, UpdateSpec};
use super::id::KeyId;
use super::invalid::Invalid;
use super::pepper::PepperRing;
use super::policy::{Deletion, Policy, SelfRotation};
use super::principal::Owner;
use super::record::{KeyRecord, KeyState, Reason};
use super::scope::ScopeSet;
use super::secret::DigestMark;
use super::sweep::{BulkFilter, Sweep};
use super::tenant::TenantId;
use super::text::{CommandId, LeakSource, PrincipalId, Role};
use super::time::Timestamp;

/// Those of `given` that tell what is not `stored`. Both are of one tenant, `given` oldest first.
///
/// Checked first: they must be exactly what was written, and follow an entry that the store has.
/// The store may itself have gone on from there since, by a recovery that was interrupted first of
/// all: from the first entry that differs they tell the history that was lost, and their seals show
/// that it was one.
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
    // If the store does not have the entry before, what comes after its newest one is missing.
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

/// What later entries say became of one tenant.
#[derive(Debug, Default)]
pub(crate) struct Later {
    /// It was closed.
    pub(crate) closed: Option<AuditHash>,
    /// Digests that an earlier recovery blocked.
    pub(crate) blocked: Vec<(Vec<(DigestMark, KeyId)>, AuditHash)>,
    /// What became of its owners.
    pub(crate) owners: BTreeMap<PrincipalId, LaterOwner>,
    /// What became of its keys.
    pub(crate) keys: BTreeMap<KeyId, LaterKey>,
}

/// What later entries say became of an owner.
#[derive(Debug, Default)]
pub(crate) struct LaterOwner {
    /// It was removed, and when: its keys stay refused even if it came back.
    pub(crate) removed: Option<(AuditHash, Timestamp)>,
    /// The role it was last given, unless it was removed after that.
    pub(crate) role: Option<(Role, AuditHash)>,
}

/// What later entries say became of a key.
#[derive(Debug, Default)]
pub(crate) struct LaterKey {
    /// It came into being.
    pub(crate) created: bool,
    imported: Option<Imported>,
    removed: Option<AuditHash>,
    revoked: Option<(Reason, AuditHash)>,
    /// It came to an end that is told by no revocation of its own.
    gone: Option<(Reason, AuditHash)>,
    changed: Option<(Reach, AuditHash)>,
    retired: Option<(Timestamp, AuditHash)>,
    disabled: Option<AuditHash>,
    /// It was found in the open, and not revoked for that.
    exposed: Option<(LeakSource, AuditHash)>,
    /// The newest entry about it.
    newest: Option<AuditHash>,
}

/// The key of an import, as its entry describes it.
#[derive(Debug)]
struct Imported {
    mark: DigestMark,
    owner: Owner,
    at: Timestamp,
    expires_at: Option<Timestamp>,
}

/// The changes of a key's scopes, networks and end, in the words of the entries, oldest first.
#[derive(Clone, Debug, Default)]
struct Reach {
    scopes: Vec<String>,
    addresses: Vec<String>,
    expires: Vec<String>,
    /// True if some change took something from the key.
    narrowed: bool,
}

/// One thing to be repeated on a key: the first of `ways` that is not refused. Named after the entry
/// that tells of it, so that it is done once, however often it is asked for.
#[derive(Debug)]
pub(crate) struct Step {
    /// The commands, the one that is nearest to what happened first.
    pub(crate) ways: Vec<(CommandId, Command)>,
    /// Whether disabling the key is what happened, rather than the nearest to it.
    pub(crate) was_disabled: bool,
}

impl Later {
    /// Reads the entries of one tenant, oldest first.
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
            Action::DigestsBlocked { marks } => self.blocked.push((marks.clone(), hash)),
            _ => {}
        }
        if let Some(key) = entry.key {
            self.keys.entry(key).or_default().add(entry);
        }
    }
}

impl Later {
    /// Returns whether a row of the tenant ended a key that was imported, though no entry about the key says so.
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
        match &entry.action {
            Action::KeyCreated { .. } | Action::KeyProvisioned { .. } => self.created = true,
            Action::KeyImported {
                mark,
                owner,
                expires_at,
                ..
            } => {
                self.created = true;
                self.imported = Some(Imported {
                    mark: *mark,
                    owner: owner.clone(),
                    at: entry.at,
                    expires_at: *expires_at,
                });
            }
            Action::KeyUpdated { changes } => self.change(changes, hash),
            Action::KeyDisabled => self.disabled = Some(hash),
            Action::KeyEnabled => self.disabled = None,
            Action::KeyRevoked { reason } => self.revoked = Some((*reason, hash)),
            Action::KeyDeleted => self.removed = Some(hash),
            Action::KeyPurged => match self.retired {
                Some(_) => self.go(Reason::Rotated, hash),
                None => self.go(Reason::NoLongerNeeded, hash),
            },
            // The secret that the backup knows is not the key's any more.
            Action::SecretReplaced => self.go(Reason::Lost, hash),
            Action::LeakReported { revoked: true, .. } => self.go(Reason::Leaked, hash),
            Action::KeyRotated { until, .. } if *until <= entry.at => {
                self.go(Reason::Rotated, hash)
            }
            Action::KeyRotated { until, .. } | Action::GraceBegan { until } => {
                self.retired = Some((*until, hash));
            }
            Action::RotationCancelled { .. } => self.retired = None,
            Action::LeakReported {
                revoked: false,
                source,
            } => self.exposed = Some((source.clone(), hash)),
            Action::FirstUsed
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
            let FieldChange {
                field,
                before,
                after,
            } = change;
            // An unreadable change may have narrowed the key.
            let narrows = match field.as_str() {
                FieldChange::SCOPES => both(scopes_of, before, after, |b, a| !a.contains(b)),
                FieldChange::ADDRESSES => both(networks_of, before, after, |b, a| !b.is_within(a)),
                FieldChange::EXPIRES => both(end_of, before, after, |b, a| ends_before(*a, *b)),
                _ => continue,
            };
            let known = self.changed.take().map(|(reach, _)| reach);
            let mut reach = known.unwrap_or_default();
            match field.as_str() {
                FieldChange::SCOPES => reach.scopes.push(after.clone()),
                FieldChange::ADDRESSES => reach.addresses.push(after.clone()),
                _ => reach.expires.push(after.clone()),
            }
            reach.narrowed |= narrows.unwrap_or(true);
            self.changed = Some((reach, hash));
        }
    }

    /// The mark of its imported digest, if the digest must not be imported again, with the command that
    /// sees to it: what the key was refused before the loss, an import of the same digest would accept.
    /// `path` is what became of its tenant and of those above.
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
            .is_some_and(|(reach, _)| reach.narrowed);
        let narrowed = changed || self.retired.is_some() || self.disabled.is_some();
        let refused = path.iter().any(|later| later.refuses(imported));
        let expired = imported.expires_at.is_some_and(|end| end <= now);
        if !narrowed && !refused && !expired && !self.ended() {
            return Ok(None);
        }
        let newest = self.newest.unwrap_or(AuditHash::GENESIS);
        Ok(Some((imported.mark, command_id(newest, "digest")?)))
    }

    /// Whether it is gone for ever, so that nobody misses it in a backup.
    pub(crate) fn ended(&self) -> bool {
        self.removed.is_some() || self.revoked.is_some() || self.gone.is_some()
    }

    /// What is to be repeated on the restored `record`.
    pub(crate) fn steps(
        &self,
        record: &KeyRecord,
        policy: &Policy,
        now: Timestamp,
    ) -> Result<Vec<Step>, Invalid> {
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
            // Purged only: it had expired, as it has here.
            let purged = self.revoked.is_none() && !live;
            if !is_revoked && !purged {
                steps.push(self.step(hash, "end", revoke(record, reason))?);
            }
        } else if live {
            steps.extend(self.narrowing(record, policy, now)?);
        }
        Ok(steps)
    }

    /// What the entry of this hash tells. However many of them end in disabling the key, it is
    /// disabled once, so that whoever enables it is not overruled by a repetition.
    fn step(
        &self,
        hash: AuditHash,
        what: &str,
        ways: impl IntoIterator<Item = Command>,
    ) -> Result<Step, Invalid> {
        let named = |(way, command)| {
            let id = match command {
                Command::DisableMany { .. } => command_id(self.newest.unwrap_or(hash), DISABLED)?,
                _ => command_id(hash, &format!("{what}-{way}"))?,
            };
            Ok((id, command))
        };
        let ways = ways.into_iter().enumerate().map(named);
        Ok(Step {
            ways: ways.collect::<Result<_, Invalid>>()?,
            was_disabled: what == DISABLED,
        })
    }

    fn narrowing(
        &self,
        record: &KeyRecord,
        policy: &Policy,
        now: Timestamp,
    ) -> Result<Vec<Step>, Invalid> {
        let key = record.id;
        let mut steps = Vec::new();
        if let Some((reach, hash)) = &self.changed {
            let change = reach.narrowing(record);
            if change != Some(UpdateSpec::default()) {
                let update = change.map(|change| Command::Update { key, change });
                let ways = update.into_iter().chain([disable(key)]);
                steps.push(self.step(*hash, "change", ways)?);
            }
        }
        if let Some((source, hash)) = &self.exposed
            && record.exposed_at.is_none()
        {
            let source = source.clone();
            let ways = [Command::ReportLeak { key, source }, disable(key)];
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
                let change = UpdateSpec {
                    expiry: Some(Expiry::At(until)),
                    ..UpdateSpec::default()
                };
                // The legacy key is given no earlier end, and a key that was being replaced when the
                // backup was taken has its end from that rotation: both are disabled. So is one that
                // would rotate itself, not knowing that it was replaced.
                let update = Command::Update { key, change };
                let update = Some(update).filter(|_| !rotates_itself);
                let ways = update.into_iter().chain([disable(key)]);
                steps.push(self.step(hash, "retire", ways)?);
            }
            Some(_) | None => {}
        }
        if let Some(hash) = self.disabled {
            steps.push(self.step(hash, DISABLED, [disable(key)])?);
        }
        Ok(steps)
    }
}

impl Reach {
    /// Returns the part of the changes that narrows `record`; `None` if the changes do not split into parts. A
    /// widening is not repeated, because the entries do not name its author's bound. A narrowing is
    /// repeated, even if a later change undid it.
    fn narrowing(&self, record: &KeyRecord) -> Option<UpdateSpec> {
        let mut scopes = record.scopes.clone();
        for after in &self.scopes {
            scopes = scopes.intersection(&scopes_of(after)?);
        }
        let mut allowlist = record.allowlist.clone();
        for after in &self.addresses {
            let after = networks_of(after)?;
            if after.is_within(&allowlist) {
                allowlist = after;
            } else if !allowlist.is_within(&after) {
                return None;
            }
        }
        let mut end = record.expires_at;
        for after in &self.expires {
            let after = end_of(after)?;
            if ends_before(after, end) {
                end = after;
            }
        }
        if scopes.is_empty() {
            return None;
        }
        let shorter = end.filter(|_| end != record.expires_at);
        Some(UpdateSpec {
            scopes: (!scopes.contains(&record.scopes)).then_some(scopes),
            allowlist: (allowlist != record.allowlist).then_some(allowlist),
            expiry: shorter.map(Expiry::At),
            ..UpdateSpec::default()
        })
    }
}

fn scopes_of(text: &str) -> Option<ScopeSet> {
    ScopeSet::parse(text.split_whitespace()).ok()
}

fn networks_of(text: &str) -> Option<AddressAllowlist> {
    AddressAllowlist::parse(text.split_whitespace()).ok()
}

/// `Some(None)` for never.
fn end_of(text: &str) -> Option<Option<Timestamp>> {
    match text {
        FieldChange::NEVER => Some(None),
        text => text.parse().ok().map(Some),
    }
}

/// Returns whether `a` ends before `b`; `None` stands for never.
fn ends_before(a: Option<Timestamp>, b: Option<Timestamp>) -> bool {
    a.is_some_and(|a| b.is_none_or(|b| a < b))
}

/// Compares two values of a field; `None` if one cannot be read.
fn both<T>(
    read: impl Fn(&str) -> Option<T>,
    before: &str,
    after: &str,
    compare: impl Fn(&T, &T) -> bool,
) -> Option<bool> {
    Some(compare(&read(before)?, &read(after)?))
}

const DISABLED: &str = "disable";

/// The id of the command that repeats what the entry of this hash tells.
pub(crate) fn command_id(hash: AuditHash, what: &str) -> Result<CommandId, Invalid> {
    CommandId::new(format!("recovery:{hash}:{what}"))
}

fn delete(record: &KeyRecord, policy: &Policy) -> Command {
    // It was deleted once: whatever the class asked for was given then.
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

/// By itself, or in bulk, which asks no class. The legacy key cannot be revoked, whatever it stands
/// for by now, so that it is disabled.
fn revoke(record: &KeyRecord, reason: Reason) -> Vec<Command> {
    let key = record.id;
    if record.legacy {
        return vec![disable(key)];
    }
    let revocation = RevokeKey {
        reason,
        confirmed: true,
    };
    let (filter, sweep) = (BulkFilter::all(), Sweep::from(vec![key]));
    vec![
        Command::Revoke { key, revocation },
        Command::RevokeMany {
            filter,
            reason,
            sweep,
        },
    ]
}

fn disable(key: KeyId) -> Command {
    Command::DisableMany { sweep: vec![key] }
}
