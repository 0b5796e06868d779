//! Who may do what, and that nobody hands out more than they have.

use std::collections::BTreeSet;

use super::Work;
use crate::core::command::{ActorBound, Command, Denied};
use crate::core::invalid::{Invalid, Problem};
use crate::core::policy::{Access, KeyClass, OwnerCeiling};
use crate::core::record::KeyRecord;
use crate::core::scope::ScopeSet;
use crate::core::text::Role;
use crate::core::time::Timestamp;

impl Work<'_> {
    /// An actor whose own credential ended gets nowhere.
    pub(super) fn check_actor(&self) -> Result<(), Denied> {
        let ended = |end: Timestamp| self.now >= end;
        match self.request.actor.expires_at() {
            Some(end) if ended(end) => Err(Denied::ActorExpired),
            _ => Ok(()),
        }
    }

    /// An actor who does not reach the tenant is told nothing of it.
    pub(super) fn check_reach(&self) -> Result<(), Denied> {
        let actor = &self.request.actor;
        if actor.reaches(&self.request.tenant) {
            return Ok(());
        }
        // A key outside the actor's reach is told like one that does not exist (invariant 9).
        Err(match self.request.command.key() {
            Some(_) => Denied::NotFound,
            None => Denied::TenantNotFound,
        })
    }

    /// A closed tenant only goes on being closed, and forgets what it need not keep.
    pub(super) fn check_open(&self) -> Result<(), Denied> {
        if matches!(
            self.request.command,
            Command::CloseTenant { .. } | Command::Purge { .. }
        ) {
            return Ok(());
        }
        let own_and_above = self.view.tenant.iter().chain(&self.ancestry.tenants);
        match own_and_above.into_iter().find(|row| row.closed.is_some()) {
            Some(row) => Err(Denied::TenantClosed {
                tenant: row.tenant.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Whether the actor is among those who have access. `key` is what it would be used on.
    pub(super) fn permit(
        &self,
        access: &Access,
        key: Option<&KeyRecord>,
        action: &'static str,
    ) -> Result<(), Denied> {
        let actor = &self.request.actor;
        let by_role = actor.role().is_some_and(|role| access.roles.contains(role));
        let owns = |key: &KeyRecord| key.owner.principal() == Some(actor.principal());
        if actor.is_system() || by_role || (access.owner && key.is_some_and(owns)) {
            return Ok(());
        }
        if access.is_support_only() {
            return Err(Denied::SupportOnly { action });
        }
        Err(Denied::Forbidden {
            action,
            role: actor.role().cloned(),
        })
    }

    pub(super) fn permit_administrator(&self, action: &'static str) -> Result<(), Denied> {
        let administrators = self.policy.spec().administrators.iter().cloned();
        self.permit(&Access::roles(administrators), None, action)
    }

    pub(super) fn permit_host(&self, action: &'static str) -> Result<(), Denied> {
        if self.request.actor.is_system() {
            return Ok(());
        }
        Err(Denied::HostOnly { action })
    }

    pub(super) fn is_support(&self) -> bool {
        let actor = &self.request.actor;
        actor.is_system() || actor.role() == Some(&Role::SUPPORT)
    }

    /// What the actor may hand out: its scopes within its role.
    pub(super) fn actor_reach(&self) -> ScopeSet {
        let actor = &self.request.actor;
        match actor.role() {
            Some(role) => actor.scopes().intersection(&self.policy.role_ceiling(role)),
            None => actor.scopes().clone(),
        }
    }

    /// Refuses to hand out `scopes` until `expires_at` if the actor has less itself.
    pub(super) fn check_contained(
        &self,
        scopes: &ScopeSet,
        expires_at: Option<Timestamp>,
    ) -> Result<(), Denied> {
        let reach = self.actor_reach();
        if !reach.contains(scopes) {
            return Err(Denied::ExceedsActor {
                bound: ActorBound::Reach,
                reach,
            });
        }
        let ends = |end: Timestamp| expires_at.is_some_and(|own| own <= end);
        match self.request.actor.expires_at() {
            Some(end) if !ends(end) => Err(Denied::ExceedsActor {
                bound: ActorBound::Lifetime,
                reach,
            }),
            _ => Ok(()),
        }
    }

    /// The same for a key that exists, with all that narrows it: whoever holds it also acts with
    /// its owner's role.
    pub(super) fn check_key_contained(&self, record: &KeyRecord) -> Result<(), Denied> {
        let class = self.class_of(record)?;
        let live = self.standing(&record.owner).roles;
        let roles = match class.owner_ceiling {
            OwnerCeiling::Live => live.as_slice(),
            OwnerCeiling::Snapshot => record.owner_role.as_slice(),
        };
        roles
            .iter()
            .try_for_each(|role| self.check_no_stronger(role))?;
        let reach = if record.owner.principal() == Some(self.request.actor.principal()) {
            self.reach_of(record)?
        } else {
            // A role that narrows its owner today may be raised tomorrow; the secret stays.
            record.scopes.intersection(&class.ceiling)
        };
        self.check_contained(&reach, record.expires_at)
    }

    /// Refuses to hand out `role` if it reaches further or may do more than the actor's own.
    pub(super) fn check_grants_role(&self, role: &Role) -> Result<(), Denied> {
        if *role == Role::SYSTEM {
            let expected = "a role other than that of the host itself";
            return Err(Invalid::new("role", Problem::Form { expected }).into());
        }
        self.check_no_stronger(role)?;
        let reach = self.actor_reach();
        if reach.contains(&self.policy.role_ceiling(role)) {
            return Ok(());
        }
        Err(Denied::ExceedsActor {
            bound: ActorBound::Reach,
            reach,
        })
    }

    /// Refuses if `role` may do anything that the actor's own role may not: administer, act as
    /// support, or manage keys of a class.
    pub(super) fn check_no_stronger(&self, role: &Role) -> Result<(), Denied> {
        let actor = &self.request.actor;
        if actor.is_system() || actor.role() == Some(role) {
            return Ok(());
        }
        let spec = self.policy.spec();
        let accesses = spec.classes.values().flat_map(|class| {
            let KeyClass {
                create,
                update,
                rotate,
                revoke,
                ..
            } = class;
            [create, update, rotate, revoke]
        });
        let support = BTreeSet::from([Role::SUPPORT]);
        let mut lists = accesses
            .map(|access| &access.roles)
            .chain([&spec.administrators, &support]);
        let mine = |list: &BTreeSet<Role>| actor.role().is_some_and(|own| list.contains(own));
        if lists.any(|list| list.contains(role) && !mine(list)) {
            return Err(Denied::ExceedsActor {
                bound: ActorBound::Role,
                reach: self.actor_reach(),
            });
        }
        Ok(())
    }
}
