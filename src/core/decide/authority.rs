//! Who may do what, and that nobody hands out more than they have.

use super::Work;
use crate::core::command::{ActorBound, Command, Denied};
use crate::core::policy::Access;
use crate::core::record::KeyRecord;
use crate::core::scope::ScopeSet;
use crate::core::text::Role;
use crate::core::time::Timestamp;

impl Work<'_> {
    /// An actor whose own credential ended, or who does not reach the tenant, gets nowhere.
    pub(super) fn check_actor(&self) -> Result<(), Denied> {
        let actor = &self.request.actor;
        if actor.expires_at().is_some_and(|end| self.now >= end) {
            return Err(Denied::ActorExpired);
        }
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

    /// The same for a key that exists, with all that narrows it.
    pub(super) fn check_key_contained(&self, record: &KeyRecord) -> Result<(), Denied> {
        self.check_contained(&self.reach_of(record)?, record.expires_at)
    }
}
