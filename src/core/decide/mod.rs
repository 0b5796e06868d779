//! Decisions: the changes that a command makes, or the reason to refuse the command.
//!
//! Pure. Time, key material and peppers arrive as arguments; nothing here reads a clock or an RNG.
//!
//! Invariants:
//!
//! - The active keys of a tenant never exceed its cap.
//! - A revoked or deleted key never becomes valid again.
//! - A legacy key can only be rotated. Only a recovery may disable it.
//! - No actor grants more than it has.
//! - Every change has an audit entry.

mod authority;
mod end;
mod issue;
mod limits;
mod owners;
mod rotate;
mod select;
mod time;
mod trail;
mod update;

use std::collections::BTreeSet;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

pub(crate) use self::end::kept_until;
pub use self::select::{links, select};
use super::audit::{Action, AuditEntry, AuditHash, Evidence};
use super::authority::{self as core_authority, Caller};
use super::checked_time::CheckedTime;
use super::command::{Command, CommandOutcome, Denial, IssuedKey, Request};
use super::id::KeyId;
use super::invalid::{Invalid, Problem};
use super::owner::{OwnerStatus, TenantRecord};
use super::pepper::PepperRing;
use super::policy::{KeyClass, Policy};
use super::principal::{Author, Owner};
use super::reach::{self, Bounds, RoleReach};
use super::record::{KeyRecord, LastAction};
use super::scope::ScopeSet;
use super::secret::KeyMaterial;
use super::stamp::Stamp;
use super::text::CommandId;
use super::time::Timestamp;
use super::view::{Ancestry, Effects, TenantView};

/// 1000, the largest number of keys that one commit of a bulk command ends. The manager continues with the
/// next commit.
pub const SWEEP_MAX: usize = 1000;

/// The inputs of a decision, besides the rows of the tenant.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The tenant's policy.
    pub policy: &'a Policy,
    /// The policy of the actor's own tenant. An acting key's class is looked up in this policy.
    pub home: &'a Policy,
    /// The peppers. The current pepper digests new secrets and seals audit entries.
    pub peppers: &'a PepperRing,
    /// The checked time. The decision is dated with the later of the process's own time and the tenant's
    /// newest commit time.
    pub time: CheckedTime,
    /// The random parts of new keys. [`keys_needed`] returns the number required.
    pub material: &'a [KeyMaterial],
    /// The rows of the ancestor tenants.
    pub ancestry: &'a Ancestry,
    /// The policies of other tenants in which a role set by the command counts. These are descendant tenants,
    /// and ancestor tenants whose keys reach down to this tenant.
    pub elsewhere: &'a [Arc<Policy>],
    /// The successors whose first use this process has seen. Their stored records may not show that use yet.
    pub used: &'a BTreeSet<KeyId>,
}

/// The changes of a command, and its result for the caller.
#[derive(Debug)]
pub struct Decision {
    /// The changes to commit, conditional on the loaded revision. Empty if the command changes nothing.
    pub effects: Effects,
    /// The result for the caller once the changes are committed.
    pub outcome: CommandOutcome,
    /// The instant of the decision.
    pub at: Timestamp,
}

/// Returns the largest number of keys that a command may create.
#[must_use]
pub fn keys_needed(command: &Command, policy: &Policy) -> usize {
    let with_tenant = policy.spec().provision.len() + 1;
    match command {
        Command::Create(_) | Command::Import(_) => with_tenant + 1,
        Command::ProvisionTenant => with_tenant,
        Command::ProvisionResource(_) => with_tenant + policy.spec().provision.len(),
        Command::Rotate { .. } | Command::ReplaceLost { .. } => 1,
        _ => 0,
    }
}

/// Decides one command, based on the loaded rows of the command's tenant.
///
/// Deciding a committed command again returns its result and changes nothing.
///
/// # Errors
///
/// [`Denial`] with the reason to refuse the command. The caller must then write nothing.
pub fn decide(
    view: &TenantView,
    request: &Request,
    context: &Context<'_>,
) -> Result<Decision, Denial> {
    let mut work = Work::new(view, request, *context);
    let outcome = work.run()?;
    Ok(Decision {
        effects: work.effects,
        outcome,
        at: work.now,
    })
}

/// A decision in progress: the view after the changes so far, and the changes.
struct Work<'a> {
    request: &'a Request,
    /// The caller of the command. A placeholder until `run` has resolved the caller.
    caller: Caller,
    author: Author,
    policy: &'a Policy,
    home: &'a Policy,
    elsewhere: &'a [Arc<Policy>],
    peppers: &'a PepperRing,
    ancestry: &'a Ancestry,
    used: &'a BTreeSet<KeyId>,
    material: std::slice::Iter<'a, KeyMaterial>,
    time: CheckedTime,
    /// The instant of the decision.
    now: Timestamp,
    /// The command id and the command mark to write into audit entries.
    command: CommandId,
    mark: [u8; 8],
    view: TenantView,
    effects: Effects,
}

impl<'a> Work<'a> {
    fn new(view: &TenantView, request: &'a Request, context: Context<'a>) -> Self {
        let Context {
            policy,
            home,
            peppers,
            time,
            material,
            ancestry,
            elsewhere,
            used,
        } = context;
        let now = match request.command {
            Command::RepairTime => time.best(),
            _ => view
                .decided_at
                .map_or(time.own, |newest| newest.max(time.own)),
        };
        Self {
            request,
            caller: Caller::Application,
            author: request.author(),
            policy,
            home,
            elsewhere,
            peppers,
            ancestry,
            used,
            material: material.iter(),
            time,
            now,
            command: request.id.clone(),
            mark: mark_of(request),
            view: view.clone(),
            effects: Effects::default(),
        }
    }

    fn run(&mut self) -> Result<CommandOutcome, Denial> {
        self.check_reach()?;
        // Runs before the actor is authorised: a retry of a committed command succeeds even if the actor has
        // lost its authority since.
        if let Some(outcome) = self.replay()? {
            return Ok(outcome);
        }
        self.caller = self.resolve_caller()?;
        let first = self.applied().next().map(|entry| entry.actor.clone());
        if let Some(first) = first.filter(|_| self.is_unfinished()) {
            // Another key of the same principal may continue a bulk command. The audit trail then still names
            // the author of the first commit.
            self.author = first;
        }
        self.check_open()?;
        let known = self.view.tenant.as_ref();
        let known = known.is_some_and(TenantRecord::is_provisioned);
        let idle = known && matches!(self.request.command, Command::ProvisionTenant);
        if !idle && !self.request.command.is_safe_at_wrong_time() {
            self.check_time()?;
        }
        self.note_counted_uses();
        let outcome = self.execute()?;
        self.record_instant();
        Ok(outcome)
    }

    fn execute(&mut self) -> Result<CommandOutcome, Denial> {
        match &self.request.command {
            Command::ProvisionTenant => self.provision_tenant(),
            Command::ProvisionResource(resource) => self.provision_resource(resource),
            Command::CloseTenant => self.close_tenant(),
            Command::Create(key) => self.create(key),
            Command::Import(import) => self.import(import),
            Command::Update { key, change } => self.update(*key, change),
            Command::Disable { key } => self.disable(*key),
            Command::Enable { key } => self.enable(*key),
            Command::Revoke { key, revocation } => self.revoke(*key, *revocation),
            Command::Delete { key, deletion } => self.delete(*key, deletion),
            Command::Rotate { key, how } => self.rotate(*key, how),
            Command::FinishRotation { key } => self.finish_rotation(*key),
            Command::CancelRotation { key } => self.cancel_rotation(*key),
            Command::NoteFirstUse { key } => self.note_first_use(*key),
            Command::ReplaceLost { key } => self.replace_lost(*key),
            Command::ReportLeak { key, source } => self.report_leak(*key, source),
            Command::Redigest {
                key,
                from,
                to,
                replaces,
                digest,
            } => self.redigest(*key, from, to, (*replaces, *digest)),
            Command::RevokeMany { filter, reason } => self.revoke_many(filter, *reason),
            Command::DisableMany => self.disable_many(),
            Command::Purge => self.purge(),
            Command::ChangeOwnerRole { owner, role } => self.change_owner_role(owner, role),
            Command::RemoveOwner { owner } => self.remove_owner(owner),
            Command::SyncOwnerRole { owner, role } => self.sync_owner_role(owner, role),
            Command::BlockDigests { marks } => self.block_digests(marks),
            Command::RepairTime => self.repair_time(),
            Command::PruneAudit { through, epoch } => self.prune_audit(*through, *epoch),
            Command::RecordLoss {
                after,
                through,
                epoch,
            } => self.record_loss(*after, *through, *epoch),
        }
    }

    /// Returns the result of a command that an earlier attempt committed. `None` if the command is new or
    /// unfinished.
    fn replay(&self) -> Result<Option<CommandOutcome>, Denial> {
        let applied: Vec<_> = self.applied().collect();
        let Some(first) = applied.first() else {
            return Ok(None);
        };
        if first.command_mark != self.mark {
            return Err(Denial::CommandIdReused);
        }
        for entry in &applied {
            let made = match entry.action {
                Action::KeyCreated { .. } | Action::KeyImported { .. } => entry.key,
                Action::SecretReplaced => entry.key,
                Action::KeyRotated { successor, .. } => Some(successor),
                Action::KeyLeaked { revoked, .. } => {
                    return Ok(Some(CommandOutcome::LeakNoted { revoked }));
                }
                _ => None,
            };
            if let Some(id) = made {
                return Err(Denial::AlreadyCreated { id });
            }
        }
        Ok(match self.request.command {
            Command::ProvisionTenant | Command::ProvisionResource(_) => {
                Some(CommandOutcome::Issued {
                    key: None,
                    provisioned: Vec::new(),
                })
            }
            // An unfinished bulk command runs again, so it has no result yet. Processing a key twice is
            // harmless.
            ref bulk if bulk.is_bulk() && self.is_unfinished() => None,
            ref bulk if bulk.is_bulk() => Some(CommandOutcome::Swept {
                ended: 0,
                skipped: Vec::new(),
            }),
            _ => Some(CommandOutcome::Done),
        })
    }

    /// Returns whether a bulk command has begun and is unfinished.
    fn is_unfinished(&self) -> bool {
        let id = &self.request.id;
        let author = self.applied().next().map(|first| &first.actor);
        let named = |row: &TenantRecord| {
            let mut sweeps = row.sweeps.iter();
            sweeps.any(|own| own.command == *id && Some(&own.by) == author)
        };
        match self.request.command {
            // The application may repeat these commands under one id, so they always count as unfinished once
            // they have begun.
            Command::DisableMany | Command::Purge => self.began(),
            // An unregistered tenant has no row that could list the command, so a command that has begun
            // counts as unfinished. The tenant has no keys to end either.
            _ => self.began() && self.view.tenant.as_ref().is_none_or(named),
        }
    }

    /// Returns the audit entries from earlier commits of this command. A bulk command that continues from an
    /// ancestor tenant keeps its id. An unrelated command in this tenant may have the same id, so entries
    /// with another command mark are ignored.
    fn applied(&self) -> impl Iterator<Item = &AuditEntry> {
        let continues = self.request.continues.is_some();
        self.view.applied.iter().filter(move |entry| {
            entry.command == self.request.id && (!continues || entry.command_mark == self.mark)
        })
    }

    fn began(&self) -> bool {
        self.applied().next().is_some()
    }

    /// Returns the instant of the command's first commit, or the current instant if this commit is the first.
    /// The command does not affect keys created after that instant.
    fn began_at(&self) -> Timestamp {
        let first_commit = self.applied().next().map_or(self.now, |entry| entry.at);
        // A time repair may have set the tenant's time back since the first commit. The recorded instant then
        // lies in the future.
        first_commit.min(self.now)
    }

    fn record(&self, id: KeyId) -> Result<KeyRecord, Denial> {
        if self.view.corrupt.contains(&id) {
            return Err(Denial::CorruptRecord { key: id });
        }
        let found = self
            .view
            .record(id)
            .filter(|record| record.tenant == self.request.tenant);
        found.cloned().ok_or(Denial::NotFound)
    }

    fn class_of(&self, record: &KeyRecord) -> Result<&'a KeyClass, Denial> {
        let class = &record.class;
        self.policy
            .class(class)
            .ok_or_else(|| Denial::UnknownClass {
                class: class.clone(),
            })
    }

    fn stamp(&self) -> Stamp {
        Stamp {
            at: self.now,
            by: self.author.clone(),
        }
    }

    fn owner_status(&self, owner: &Owner) -> OwnerStatus {
        self.rows().owner_status(&self.request.tenant, owner)
    }

    /// Returns whether a key currently reaches every scope that its roles allow. Any other key must not
    /// manage keys.
    fn is_whole(&self, record: &KeyRecord) -> bool {
        let owner_status = self.owner_status(&record.owner);
        let roles = reach::roles_of(&record.owner, &record.bound, &owner_status);
        let role = RoleReach::of(&roles, self.policy);
        !roles.is_empty() && core_authority::is_whole(&self.scopes_of(record), &role)
    }

    /// Returns the current effective scopes of a key.
    fn scopes_of(&self, record: &KeyRecord) -> ScopeSet {
        let owner_status = self.owner_status(&record.owner);
        let bounds = Bounds::of_record(record);
        let class = self.policy.class(&record.class);
        class.map_or_else(ScopeSet::none, |class| {
            reach::scopes(bounds, self.policy, class, &owner_status)
        })
    }

    fn draw(&mut self) -> Result<&'a KeyMaterial, Denial> {
        let expected = "as much as keys_needed says";
        let missing = Invalid::new("key material", Problem::Format { expected });
        self.material.next().ok_or(Denial::Invalid(missing))
    }

    /// Adds a changed record to the decision. Sets the record's stamp and writes an audit entry.
    fn put(&mut self, record: KeyRecord, did: LastAction, action: Action) {
        self.put_with(record, did, action, None);
    }

    fn put_with(
        &mut self,
        mut record: KeyRecord,
        did: LastAction,
        action: Action,
        evidence: Option<Evidence>,
    ) {
        record.updated = self.stamp();
        record.last_action = did;
        let key = Some(record.id);
        self.change(Effects {
            puts: vec![record],
            ..Effects::default()
        });
        self.log_with(action, key, evidence);
    }

    fn change(&mut self, mut effects: Effects) {
        if let Some(tenant) = &mut effects.tenant {
            tenant.updated = self.stamp();
        }
        self.view.apply(&effects);
        self.effects.extend(effects);
    }

    fn log(&mut self, action: Action, key: Option<KeyId>) {
        self.log_with(action, key, None);
    }

    fn log_with(&mut self, action: Action, key: Option<KeyId>, evidence: Option<Evidence>) {
        let head = self.view.audit_head;
        let stated = self.request.actor.role();
        let by_caller = self.request.continues.is_none() && self.author == self.request.author();
        let entry = AuditEntry {
            tenant: self.request.tenant.clone(),
            sequence: head.sequence + 1,
            at: self.now,
            actor: self.author.clone(),
            role: stated.filter(|_| by_caller).cloned(),
            command: self.command.clone(),
            command_mark: self.mark,
            action,
            evidence,
            key,
            pepper: self.peppers.current().id().clone(),
            previous: head.hash,
            hash: AuditHash::GENESIS,
        };
        let audit = vec![entry.sealed(self.peppers)];
        self.change(Effects {
            audit,
            ..Effects::default()
        });
    }
}

fn issued(record: &KeyRecord, reach: ScopeSet, token: Option<super::secret::Secret>) -> IssuedKey {
    IssuedKey {
        reach,
        id: record.id,
        class: record.class.clone(),
        hint: record.hint.clone(),
        fingerprint: record.fingerprint,
        expires_at: record.expires_at,
        token,
    }
}

/// Returns a hash of the principal, the tenant and the command. Two different hashes under one command id
/// reveal that the id was reused. The hash leaves out the acting key, so that another key of the same
/// principal may retry the command. No command contains a secret, so the hash reveals none.
fn mark_of(request: &Request) -> [u8; 8] {
    let Request {
        id: _,
        actor: _,
        tenant,
        command,
        sweep: _,
        continues: _,
    } = request;
    let author = request.author();
    let is_application = author == Author::Application;
    let who = (is_application, author.principal());
    let mut command = command.clone();
    if let Command::RevokeMany { filter, .. } = &mut command
        && let Some(made_by) = &mut filter.made_by
    {
        // The caller names only the key that made the keys to revoke. The manager adds that key's lineage
        // when it runs the command, so the hash leaves the lineage out.
        made_by.lineage = None;
    }
    let request = postcard::to_allocvec(&(who, tenant, command)).unwrap_or_default();
    let mut mark = [0; 8];
    mark.copy_from_slice(&Sha256::digest(request)[..8]);
    mark
}
