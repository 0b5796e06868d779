//! Changes of owners and tenants. One row narrows or ends every key first. The keys themselves follow.

use std::collections::BTreeSet;

use super::Work;
use crate::core::audit::Action;
use crate::core::authority::Effect;
use crate::core::command::{Denial, Outcome};
use crate::core::owner::{OwnerRecord, TenantRecord};
use crate::core::principal::Owner;
use crate::core::record::Reason;
use crate::core::sweep::SweepKind;
use crate::core::text::{PrincipalId, Role};
use crate::core::view::Effects;

impl Work<'_> {
    pub(super) fn change_owner_role(
        &mut self,
        owner: &PrincipalId,
        role: &Role,
    ) -> Result<Outcome, Denial> {
        let known = self.view.owner(owner).cloned();
        let before = known.as_ref().and_then(|row| row.role.clone());
        let narrows = match (&before, &known) {
            (Some(before), _) => self.lowers(before, role),
            (None, Some(_)) => false,
            // The owner has no row in this tenant yet. A new row counts as narrowing only if its role is
            // within an ancestor's role, because the ancestor's role may be raised later.
            (None, None) => {
                let standing = self.standing(&Owner::Principal(owner.clone()));
                let mut above = standing.roles.iter();
                !standing.removed && above.any(|above| self.lowers(above, role))
            }
        };
        let effect = match narrows {
            true => Effect::Narrows,
            false => Effect::Widens,
        };
        self.permit_administrator("change the role of owners", effect)?;
        if before.as_ref() == Some(role) {
            return Ok(Outcome::Done);
        }
        if !narrows {
            self.check_time()?;
            self.check_role_within(role)?;
        }
        self.store_role(owner, role, known);
        Ok(Outcome::Done)
    }

    /// Stores the role that the application states for an owner who has a role in this tenant.
    pub(super) fn sync_owner_role(
        &mut self,
        owner: &PrincipalId,
        role: &Role,
    ) -> Result<Outcome, Denial> {
        self.permit_application("sync roles")?;
        let known = self.view.owner(owner).cloned();
        let stored = known.as_ref().and_then(|row| row.role.as_ref());
        if stored.is_some_and(|stored| stored != role) {
            self.store_role(owner, role, known);
        }
        Ok(Outcome::Done)
    }

    fn store_role(&mut self, owner: &PrincipalId, role: &Role, known: Option<OwnerRecord>) {
        let before = known.as_ref().and_then(|row| row.role.clone());
        let mut raised_from = known.as_ref().map(|row| row.raised_from.clone());
        let raised_from_now = raised_from.get_or_insert_default();
        let raises = |before: &&Role| !self.lowers(before, role);
        if let Some(before) = before.as_ref().filter(raises) {
            // If `raised_from` contains a role within the former role, that role limits as much.
            if !raised_from_now
                .iter()
                .any(|lower| self.lowers(before, lower))
            {
                raised_from_now.insert(before.clone());
            }
        }
        let row = OwnerRecord {
            tenant: self.request.tenant.clone(),
            owner: owner.clone(),
            role: Some(role.clone()),
            removed_at: known.and_then(|row| row.removed_at),
            raised_from: raised_from.unwrap_or_default(),
            updated: self.stamp(),
        };
        self.change(Effects {
            owners: vec![row],
            ..Effects::default()
        });
        let (owner, after) = (owner.clone(), role.clone());
        self.log(
            Action::OwnerRoleChanged {
                owner,
                before,
                after,
            },
            None,
        );
    }

    pub(super) fn remove_owner(&mut self, owner: &PrincipalId) -> Result<Outcome, Denial> {
        self.permit_administrator("remove owners", Effect::Narrows)?;
        let removal = |entry: &&crate::core::audit::AuditEntry| {
            matches!(entry.action, Action::OwnerRemoved { .. })
        };
        let landed = self.applied().find(removal).map(|entry| entry.at);
        // A repeated command applies only to keys that existed when it first committed. An owner who was
        // restored since then keeps newer keys.
        let removed_at = match landed {
            Some(removed_at) => removed_at,
            None => {
                let known = self.view.owner(owner);
                let removed = known.filter(|row| row.role.is_none()).cloned();
                let row = OwnerRecord {
                    tenant: self.request.tenant.clone(),
                    owner: owner.clone(),
                    role: None,
                    // If the owner was removed before, the instant of that removal stays, and this command
                    // ends the remaining keys.
                    removed_at: removed.and_then(|row| row.removed_at).or(Some(self.now)),
                    raised_from: BTreeSet::new(),
                    updated: self.stamp(),
                };
                self.change(Effects {
                    owners: vec![row],
                    ..Effects::default()
                });
                self.log(
                    Action::OwnerRemoved {
                        owner: owner.clone(),
                    },
                    None,
                );
                self.begin_sweep(SweepKind::RemoveOwner(owner.clone()));
                self.now
            }
        };
        let came_later = self.came_later(removed_at);
        let outcome = self.sweep(Reason::OwnerRemoved, |record| {
            record.owner.principal() == Some(owner) && !came_later(record)
        });
        self.end_sweep();
        Ok(outcome)
    }

    pub(super) fn close_tenant(&mut self) -> Result<Outcome, Denial> {
        self.permit_administrator("close tenants", Effect::Narrows)?;
        let known = self.view.tenant.clone();
        if known.as_ref().is_none_or(|row| row.closed.is_none()) {
            let tenant = self.request.tenant.clone();
            let row = known.unwrap_or_else(|| TenantRecord::new(tenant, self.stamp()));
            let row = TenantRecord {
                closed: Some(self.stamp()),
                ..row
            };
            self.change(Effects {
                tenant: Some(row),
                ..Effects::default()
            });
            self.log(Action::TenantClosed, None);
            self.begin_sweep(SweepKind::CloseTenant);
        }
        let outcome = self.sweep_all(Reason::TenantClosed);
        self.end_sweep();
        Ok(outcome)
    }
}
