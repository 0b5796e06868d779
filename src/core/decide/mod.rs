//! Deciding: what a command changes, or why it is refused.
//!
//! Pure. Time, key material and peppers arrive as arguments; nothing here reads a clock or an RNG.
//!
//! Invariants kept here: the cap (1), revoked is for ever (2), the legacy key (3), nobody hands out
//! more than they have (5), and an audit entry for every change (6). DESIGN numbers them.

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
use super::command::{Command, Denied, IssuedKey, Outcome, Request};
use super::id::KeyId;
use super::invalid::{Invalid, Problem};
use super::owner::{Standing, TenantRecord};
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

/// How many keys one commit of a bulk command ends at most. The manager goes on with the next.
pub const SWEEP_MAX: usize = 1000;

/// What a decision is taken with, beside the tenant's own view.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The tenant's rules.
    pub policy: &'a Policy,
    /// The rules of the tenant that the actor is bound to. A key that acts is judged by them.
    pub home: &'a Policy,
    /// The peppers: the current one digests new secrets, and seals audit entries.
    pub peppers: &'a PepperRing,
    /// The time. Decisions are for the later of the own time and the tenant's newest commit.
    pub time: CheckedTime,
    /// Random parts of keys to come, as many as [`keys_needed`].
    pub material: &'a [KeyMaterial],
    /// What the tenants above say.
    pub ancestry: &'a Ancestry,
    /// The other rules under which roles that are set here count as well: those of the tenants below, and of
    /// the tenants above whose keys reach down.
    pub elsewhere: &'a [Arc<Policy>],
    /// The successors that this process saw in use; their records may not say so yet.
    pub used: &'a BTreeSet<KeyId>,
}

/// What a command changes, and what its caller is told.
#[derive(Debug)]
pub struct Decision {
    /// What is to be committed, conditional on the revision that was loaded. Empty if the command
    /// changes nothing.
    pub effects: Effects,
    /// What the caller is told once that landed.
    pub outcome: Outcome,
    /// The instant for which it was decided.
    pub at: Timestamp,
}

/// How many keys a command may make at most.
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

/// Decides one command on what was loaded of its tenant.
///
/// Deciding again a command that landed returns what it did and changes nothing.
///
/// # Errors
///
/// [`Denied`] says why the command is refused; nothing is to be written then.
pub fn decide(
    view: &TenantView,
    request: &Request,
    context: &Context<'_>,
) -> Result<Decision, Denied> {
    let mut work = Work::new(view, request, *context);
    let outcome = work.run()?;
    Ok(Decision {
        effects: work.effects,
        outcome,
        at: work.now,
    })
}

/// A decision in the making: the view as it will be, and what leads there.
struct Work<'a> {
    request: &'a Request,
    /// The caller of the command; the application until that is known.
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
    /// The instant for which it is decided.
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

    fn run(&mut self) -> Result<Outcome, Denied> {
        self.check_reach()?;
        // First: what landed has landed, whatever became of the actor since.
        if let Some(outcome) = self.replay()? {
            return Ok(outcome);
        }
        self.caller = self.resolve_caller()?;
        let first = self.applied().next().map(|entry| entry.actor.clone());
        if let Some(first) = first.filter(|_| self.goes_on()) {
            // Another key of the same principal may go on with it.
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

    fn carry_out(&mut self) -> Result<Outcome, Denied> {
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

    /// What this command did if it landed before; `None` if it did not, or goes on.
    fn replay(&self) -> Result<Option<Outcome>, Denied> {
        let applied: Vec<_> = self.applied().collect();
        let Some(first) = applied.first() else {
            return Ok(None);
        };
        if first.command_mark != self.mark {
            return Err(Denied::CommandIdReused);
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
                return Err(Denied::AlreadyCreated { id });
            }
        }
        Ok(match self.request.command {
            Command::ProvisionTenant | Command::ProvisionResource(_) => Some(Outcome::Issued {
                key: None,
                provisioned: Vec::new(),
            }),
            // Commands over many keys go on where they stopped; each step is harmless to repeat.
            ref bulk if bulk.is_bulk() && self.goes_on() => None,
            ref bulk if bulk.is_bulk() => Some(Outcome::Swept {
                ended: 0,
                skipped: Vec::new(),
            }),
            _ => Some(Outcome::Done),
        })
    }

    /// Whether a command over many keys that landed has not come to its end.
    fn goes_on(&self) -> bool {
        let id = &self.request.id;
        let author = self.applied().next().map(|first| &first.actor);
        let named = |row: &TenantRecord| {
            let mut sweeps = row.sweeps.iter();
            sweeps.any(|own| own.command == *id && Some(&own.by) == author)
        };
        match self.request.command {
            // The application repeats these as often as it likes.
            Command::DisableMany | Command::Purge => self.began(),
            // A tenant that is not known has nothing to end, and nowhere to say so.
            _ => self.began() && self.view.tenant.as_ref().is_none_or(named),
        }
    }

    /// The entries that this command wrote before. What was authorised above goes on below, even where
    /// somebody took its id there for a command of their own.
    fn applied(&self) -> impl Iterator<Item = &AuditEntry> {
        let goes_on = self.request.continues.is_some();
        self.view.applied.iter().filter(move |entry| {
            entry.command == self.request.id && (!goes_on || entry.command_mark == self.mark)
        })
    }

    fn began(&self) -> bool {
        self.applied().next().is_some()
    }

    /// When this command first landed, or now: what came later is none of its business.
    fn began_at(&self) -> Timestamp {
        let landed = self.applied().next().map_or(self.now, |entry| entry.at);
        // Before a repair of the time it was later than it is.
        landed.min(self.now)
    }

    fn record(&self, id: KeyId) -> Result<KeyRecord, Denied> {
        if self.view.corrupt.contains(&id) {
            return Err(Denied::CorruptRecord { key: id });
        }
        let found = self
            .view
            .record(id)
            .filter(|record| record.tenant == self.request.tenant);
        found.cloned().ok_or(Denied::NotFound)
    }

    fn class_of(&self, record: &KeyRecord) -> Result<&'a KeyClass, Denied> {
        let class = &record.class;
        self.policy
            .class(class)
            .ok_or_else(|| Denied::UnknownClass {
                class: class.clone(),
            })
    }

    fn stamp(&self) -> Stamp {
        Stamp {
            at: self.now,
            by: self.author.clone(),
        }
    }

    fn standing(&self, owner: &Owner) -> Standing {
        self.rows().standing(&self.request.tenant, owner)
    }

    /// Returns whether a key reaches all that its roles allow, as it stands.
    fn is_whole(&self, record: &KeyRecord) -> bool {
        let standing = self.standing(&record.owner);
        let roles = reach::roles_of(&record.owner, &record.bound, &standing);
        let role = RoleReach::of(&roles, self.policy);
        !roles.is_empty() && core_authority::is_whole(&self.scopes_of(record), &role)
    }

    /// Returns the scopes that a key effectively reaches as it stands.
    fn scopes_of(&self, record: &KeyRecord) -> ScopeSet {
        let standing = self.standing(&record.owner);
        let bounds = Bounds::of_record(record);
        let class = self.policy.class(&record.class);
        class.map_or_else(ScopeSet::none, |class| {
            reach::scopes(bounds, self.policy, class, &standing)
        })
    }

    fn draw(&mut self) -> Result<&'a KeyMaterial, Denied> {
        let expected = "as much as keys_needed says";
        let missing = Invalid::new("key material", Problem::Form { expected });
        self.material.next().ok_or(Denied::Invalid(missing))
    }

    /// Takes a changed record over, with its stamp and its audit entry.
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

/// A mark of who asked for what, so that a command id that is used twice for different things is
/// noticed. Names the principal, not the key that acted for it, so that its next key may repeat a
/// command. Holds no secret: no command does.
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
        // Found out on the way.
        made_by.lineage = None;
    }
    let request = postcard::to_allocvec(&(who, tenant, command)).unwrap_or_default();
    let mut mark = [0; 8];
    mark.copy_from_slice(&Sha256::digest(request)[..8]);
    mark
}
