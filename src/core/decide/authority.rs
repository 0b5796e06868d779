//! Permissions: checks that the actor may give a command, and grants no more than its own reach.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Work;
use crate::core::authority::{AuthorityRows, Caller, Effect};
use crate::core::command::{Command, Denial, Recipient};
use crate::core::hole;
use crate::core::policy::{Access, KeyClass, Policy, TenantReach};
use crate::core::principal::Owner;
use crate::core::reach::{self, Bounds, Classes, Dimension, EffectiveReach, RoleReach, Tenants};
use crate::core::record::{KeyRecord, Maker};
use crate::core::scope::ScopeSet;
use crate::core::text::Role;

impl<'a> Work<'a> {
    pub(super) fn rows(&self) -> AuthorityRows<'_> {
        AuthorityRows {
            view: &self.view,
            ancestry: self.ancestry,
        }
    }

    /// Resolves the caller of the command. The first commit of a bulk command authorises the command. Later
    /// commits only narrow keys, so they run as the application. They succeed even if the caller has lost its
    /// authority in between.
    pub(super) fn resolve_caller(&self) -> Result<Caller, Denial> {
        let request = self.request;
        if request.continues.is_some() || (request.command.is_bulk() && self.is_unfinished()) {
            return Ok(Caller::Application);
        }
        let policies = (self.policy, self.home);
        Caller::resolve(
            &request.actor,
            &request.tenant,
            self.rows(),
            policies,
            self.caller_alive_at(),
        )
    }

    /// Refuses an actor that does not reach the tenant, without revealing whether the tenant exists.
    pub(super) fn check_reach(&self) -> Result<(), Denial> {
        let actor = &self.request.actor;
        if actor.reaches(&self.request.tenant) {
            return Ok(());
        }
        // The error is the same as for a key or tenant that does not exist (invariant 9).
        Err(match self.request.command.key() {
            Some(_) => Denial::NotFound,
            None => Denial::TenantNotFound,
        })
    }

    /// Refuses the command if its tenant, or an ancestor of its tenant, is closed. Commands that close,
    /// purge, block digests, record a first use or a loss, repair the time or prune the trail are still allowed.
    pub(super) fn check_open(&self) -> Result<(), Denial> {
        if matches!(
            self.request.command,
            Command::CloseTenant
                | Command::Purge
                | Command::BlockDigests { .. }
                | Command::NoteFirstUse { .. }
                | Command::RepairTime
                | Command::PruneAudit { .. }
                | Command::RecordLoss { .. }
        ) {
            return Ok(());
        }
        let own_and_above = self.view.tenant.iter().chain(&self.ancestry.tenants);
        match own_and_above.into_iter().find(|row| row.closed.is_some()) {
            Some(row) => Err(Denial::TenantClosed {
                tenant: row.tenant.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Checks that `access` includes the caller. `key` is the affected key, or `None` for a command that does
    /// not affect one particular key.
    pub(super) fn permit(
        &self,
        access: &Access,
        key: Option<&KeyRecord>,
        action: &'static str,
        effect: Effect,
    ) -> Result<(), Denial> {
        let owner = key.map(|key| &key.owner);
        self.caller.permit(access, owner, action, effect)
    }

    /// Checks that the caller has access to `key`, and returns the key's class. If the policy no longer has
    /// that class, an administrator gets an error that says so. Any other caller is refused as forbidden.
    pub(super) fn permit_class(
        &self,
        key: &KeyRecord,
        access: impl Fn(&KeyClass) -> &Access,
        action: &'static str,
        effect: Effect,
    ) -> Result<&'a KeyClass, Denial> {
        match self.policy.class(&key.class) {
            Some(class) => {
                self.permit(access(class), Some(key), action, effect)?;
                Ok(class)
            }
            None => {
                self.permit_administrator(action, effect)?;
                self.class_of(key)
            }
        }
    }

    pub(super) fn permit_administrator(
        &self,
        action: &'static str,
        effect: Effect,
    ) -> Result<(), Denial> {
        let administrators = self.policy.spec().administrators.iter().cloned();
        self.permit(&Access::roles(administrators), None, action, effect)
    }

    pub(super) fn permit_application(&self, action: &'static str) -> Result<(), Denial> {
        if self.caller.is_application() {
            return Ok(());
        }
        Err(Denial::HostOnly { action })
    }

    /// Returns the reach that the key in `record` would have with the given scopes and roles. All other
    /// limits come from the record, its class and the policy.
    pub(super) fn reach_with(
        &self,
        record: &KeyRecord,
        scopes: ScopeSet,
        roles: &BTreeSet<Role>,
    ) -> Result<EffectiveReach, Denial> {
        let class = self.class_of(record)?;
        Ok(EffectiveReach {
            scopes,
            role: RoleReach::of(roles, self.policy),
            until: record.expires_at,
            renewable_until: reach::renewable_until(class, record.expires_at, record.lineage.since),
            tenants: Tenants::of(record.tenant.clone(), class),
            environment: Some(record.environment.clone()),
            resource: record.resource.clone(),
            addresses: record.allowlist.clone(),
            key_type: record.key_type,
            classes: Classes::of(&record.class, class),
            propagation: self.policy.propagation(&record.class).bound,
        })
    }

    /// Returns everything that the caller could do with an existing key, now or later. If the caller is the
    /// owner, this is the key's current reach. For any other caller, the owner's role does not narrow the
    /// result: the role may be raised later, while the caller still has the secret.
    pub(super) fn reach_of(&self, record: &KeyRecord) -> Result<EffectiveReach, Denial> {
        let class = self.class_of(record)?;
        let owner_status = self.owner_status(&record.owner);
        let mut bounds = Bounds::of_record(record);
        // The owner may act in a session that has fewer scopes than the key. The owner's role does not narrow
        // the result then either. A session never grants more than its own scopes, so the comparison must see
        // all scopes of the key.
        bounds.persons &= self.caller.is_person(record.owner.principal())
            && self.request.actor.scopes().contains(bounds.scopes);
        let scopes = reach::scopes(bounds, self.policy, class, &owner_status);
        let roles = reach::roles_of(&record.owner, &record.bound, &owner_status);
        self.reach_with(record, scopes, &roles)
    }

    /// Refuses a caller that does not itself reach everything that the key in `record` reaches.
    pub(super) fn check_key_within(&self, record: &KeyRecord) -> Result<(), Denial> {
        self.caller.check_within(&self.reach_of(record)?)?;
        if self.class_of(record)?.tenant_reach == TenantReach::Own {
            return Ok(());
        }
        let owner_status = self.owner_status(&record.owner);
        self.check_roles_within(&reach::roles_of(
            &record.owner,
            &record.bound,
            &owner_status,
        ))
    }

    /// Refuses roles that, under the policy of another tenant, allow more than the caller's own roles allow
    /// there. The same role may allow different things in different tenants.
    fn check_roles_within<'r>(
        &self,
        roles: impl IntoIterator<Item = &'r Role> + Clone,
    ) -> Result<(), Denial> {
        let Some(limits) = self.caller.limits() else {
            return Ok(());
        };
        let own = self.caller.roles();
        let exceeds = |policy: &Arc<Policy>| {
            !RoleReach::of(roles.clone(), policy).is_within(&RoleReach::of(&own, policy))
        };
        match self.elsewhere.iter().any(exceeds) {
            true => Err(Denial::ExceedsActor {
                dimension: Dimension::Role,
                reach: limits.reach.scopes.clone(),
            }),
            false => Ok(()),
        }
    }

    /// Refuses to grant `role` if the role allows more than the caller's own reach, here or in another tenant
    /// where the role applies. A role has no expiry, class, environment or network. A key always has such
    /// limits, so a key can never grant a role.
    pub(super) fn check_role_within(&self, role: &Role) -> Result<(), Denial> {
        let own = RoleReach::of([role], self.policy);
        let reach = EffectiveReach {
            scopes: own.ceiling().clone(),
            role: own,
            ..EffectiveReach::unlimited(&self.request.tenant)
        };
        self.caller.check_within(&reach)?;
        self.check_roles_within([role])
    }

    /// Returns whether the role `after` allows no more than `before`, here and in every other tenant where
    /// the role applies.
    pub(super) fn lowers(&self, before: &Role, after: &Role) -> bool {
        let policies = self.elsewhere.iter().map(|policy| &**policy);
        let mut policies = policies.chain([self.policy]);
        policies.all(|policy| {
            RoleReach::of([after], policy).is_within(&RoleReach::of([before], policy))
        })
    }

    /// Returns the roles to add to a key's `bound` when its secret is handed out. These are the roles of the
    /// recipient, and the current roles of `owner`. Empty if the owner receives the secret in person, or if
    /// the application hands out the secret without naming a recipient.
    pub(super) fn bound_at_receipt(
        &self,
        owner: &Owner,
        recipient: Option<&Recipient>,
    ) -> Result<BTreeSet<Role>, Denial> {
        if hole::is_open("secret rises with its owner") {
            return Ok(BTreeSet::new());
        }
        let live = self.owner_status(owner).roles;
        let in_person = |role: &Role| !live.is_empty() && live.iter().all(|own| own == role);
        let roles = match recipient {
            Some(Recipient { principal, role }) => {
                self.permit_application("say who receives a secret")?;
                if owner.principal() == Some(principal) && in_person(role) {
                    return Ok(BTreeSet::new());
                }
                BTreeSet::from([role.clone()])
            }
            None if self.caller.is_application() => return Ok(BTreeSet::new()),
            None => {
                let stated = self.caller.stated_role(owner.principal());
                if stated.is_some_and(in_person) {
                    return Ok(BTreeSet::new());
                }
                self.caller.roles()
            }
        };
        Ok(roles.into_iter().chain(live).collect())
    }

    /// Returns the makers to record in a key: the makers in `before`, and those of the caller. Keys of the
    /// same rotation chain count as one maker.
    pub(super) fn makers(&self, before: &[Maker]) -> Result<Vec<Maker>, Denial> {
        let mut makers = before.to_vec();
        for maker in self.caller.makers() {
            if !makers.iter().any(|own| own.lineage == maker.lineage) {
                makers.push(maker);
            }
        }
        let limit = KeyRecord::MAKERS_MAX;
        if makers.len() > limit {
            return Err(Denial::TooManyMakers { limit });
        }
        Ok(makers)
    }
}
