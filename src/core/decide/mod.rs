//! Decisions: the changes of a command, or the reason to refuse it.
//!
//! Pure. Time, key material and peppers arrive as arguments; nothing here reads a clock or an RNG.
//!
//! Invariants kept here: the cap (1), revocation is permanent (2), the legacy key (3), no actor grants more
//! than it has (5), and an audit entry for every change (6). DESIGN numbers them.

mod authority;
mod end;
mod issue;
mod limits;
mod owners;
mod rotate;
mod select;
mod time;
mod update;

use std::collections::BTreeSet;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

pub use self::select::{links, select};
use super::audit::{Action, AuditEntry, AuditHash, Evidence};
use super::authority::{self as core_authority, Caller};
use super::checked_time::CheckedTime;
use super::command::{Command, Denial, IssuedKey, Outcome, Request};
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

/// The input of a decision, beside the tenant's own view.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The tenant's policy.
    pub policy: &'a Policy,
    /// The policy of the tenant that the actor is bound to. An acting key is judged by it.
    pub home: &'a Policy,
    /// The peppers. The current one digests new secrets and seals audit entries.
    pub peppers: &'a PepperRing,
    /// The time. A decision is for the later of the process's own time and the tenant's newest commit.
    pub time: CheckedTime,
    /// The random parts of new keys. [`keys_needed`] returns the number required.
    pub material: &'a [KeyMaterial],
    /// The rows of the ancestor tenants.
    pub ancestry: &'a Ancestry,
    /// The other policies under which a role set by the command also counts. They belong to descendant
    /// tenants, and to ancestor tenants whose keys reach down.
    pub elsewhere: &'a [Arc<Policy>],
    /// The successors that this process saw in use. The records of these keys may not show the use yet.
    pub used: &'a BTreeSet<KeyId>,
}

/// The changes of a command, and its result for the caller.
#[derive(Debug)]
pub struct Decision {
    /// The changes to commit, conditional on the loaded revision. Empty if the command changes nothing.
    pub effects: Effects,
    /// The result for the caller once the changes are committed.
    pub outcome: Outcome,
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
/// [`Denial`] with the reason to refuse the command. Nothing may be written then.
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
    /// The caller of the command. It is the application until `run` resolves the caller.
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
    /// The id and the mark of the command that entries are written for.
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

    fn run(&mut self) -> Result<Outcome, Denial> {
        self.check_reach()?;
        // This check comes first: a committed command stays committed, even if the actor has lost its
        // authority since.
        if let Some(outcome) = self.replay()? {
            return Ok(outcome);
        }
        self.caller = self.resolve_caller()?;
        let first = self.applied().next().map(|entry| entry.actor.clone());
        if let Some(first) = first.filter(|_| self.goes_on()) {
            // Another key of the same principal may continue the command, so the first author stays the
            // author.
            self.author = first;
        }
        self.check_open()?;
        let known = self.view.tenant.as_ref();
        let known = known.is_some_and(TenantRecord::is_provisioned);
        let idle = known && matches!(self.request.command, Command::ProvisionTenant);
        if !idle && !self.request.command.bears_wrong_time() {
            self.check_time()?;
        }
        self.note_counted_uses();
        let outcome = self.carry_out()?;
        self.leave_instant();
        Ok(outcome)
    }

    fn carry_out(&mut self) -> Result<Outcome, Denial> {
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
        }
    }

    /// Returns the result of a command that was committed before. `None` for a command that was not
    /// committed, or that is unfinished.
    fn replay(&self) -> Result<Option<Outcome>, Denial> {
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
                    return Ok(Some(Outcome::LeakNoted { revoked }));
                }
                _ => None,
            };
            if let Some(id) = made {
                return Err(Denial::AlreadyCreated { id });
            }
        }
        Ok(match self.request.command {
            Command::ProvisionTenant | Command::ProvisionResource(_) => Some(Outcome::Issued {
                key: None,
                provisioned: Vec::new(),
            }),
            // A command over many keys continues where it stopped. Repeating a step is harmless.
            ref bulk if bulk.is_bulk() && self.goes_on() => None,
            ref bulk if bulk.is_bulk() => Some(Outcome::Swept {
                ended: 0,
                skipped: Vec::new(),
            }),
            _ => Some(Outcome::Done),
        })
    }

    /// Returns whether a command over many keys was committed and is unfinished.
    fn goes_on(&self) -> bool {
        let id = &self.request.id;
        let author = self.applied().next().map(|first| &first.actor);
        let named = |row: &TenantRecord| {
            let mut sweeps = row.sweeps.iter();
            sweeps.any(|own| own.command == *id && Some(&own.by) == author)
        };
        match self.request.command {
            // The application may repeat these commands any number of times, so they count as unfinished.
            Command::DisableMany | Command::Purge => self.began(),
            // A tenant that is not registered has no keys to end, and no row that could list the command.
            _ => self.began() && self.view.tenant.as_ref().is_none_or(named),
        }
    }

    /// Returns the entries that this command wrote before. A command authorised in an ancestor tenant
    /// continues in a descendant, even if another caller used the command's id there.
    fn applied(&self) -> impl Iterator<Item = &AuditEntry> {
        let goes_on = self.request.continues.is_some();
        self.view.applied.iter().filter(move |entry| {
            entry.command == self.request.id && (!goes_on || entry.command_mark == self.mark)
        })
    }

    fn began(&self) -> bool {
        self.applied().next().is_some()
    }

    /// Returns the instant of the command's first commit, or now if there was none. The command spares keys
    /// created later.
    fn began_at(&self) -> Timestamp {
        let landed = self.applied().next().map_or(self.now, |entry| entry.at);
        // The tenant's time may have been set back since the first commit.
        landed.min(self.now)
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

    fn standing(&self, owner: &Owner) -> OwnerStatus {
        self.rows().standing(&self.request.tenant, owner)
    }

    /// Returns whether a key reaches all that its roles allow now.
    fn is_whole(&self, record: &KeyRecord) -> bool {
        let standing = self.standing(&record.owner);
        let roles = reach::roles_of(&record.owner, &record.bound, &standing);
        let role = RoleReach::of(&roles, self.policy);
        !roles.is_empty() && core_authority::is_whole(&self.scopes_of(record), &role)
    }

    /// Returns the scopes that a key effectively reaches now.
    fn scopes_of(&self, record: &KeyRecord) -> ScopeSet {
        let standing = self.standing(&record.owner);
        let bounds = Bounds::of_record(record);
        let class = self.policy.class(&record.class);
        class.map_or_else(ScopeSet::none, |class| {
            reach::scopes(bounds, self.policy, class, &standing)
        })
    }

    fn draw(&mut self) -> Result<&'a KeyMaterial, Denial> {
        let expected = "as much as keys_needed says";
        let missing = Invalid::new("key material", Problem::Format { expected });
        self.material.next().ok_or(Denial::Invalid(missing))
    }

    /// Adds a changed record to the decision, with its stamp and its audit entry.
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

/// Returns a mark of actor, tenant and command. Two different marks for one command id reveal that the id was
/// reused. The mark covers the principal, not the acting key, so that the principal's next key may repeat a
/// command. No command holds a secret, and neither does the mark.
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
        // The manager adds the lineage while the command runs, so the mark leaves the lineage out.
        made_by.lineage = None;
    }
    let request = postcard::to_allocvec(&(who, tenant, command)).unwrap_or_default();
    let mut mark = [0; 8];
    mark.copy_from_slice(&Sha256::digest(request)[..8]);
    mark
}
