//! Commands about owners and tenants. The first commit writes one row, which narrows or ends every affected
//! key immediately. For a removal or a closing, later commits revoke the keys themselves.

use std::collections::BTreeSet;

use super::Work;
use crate::core::audit::Action;
use crate::core::authority::Effect;
use crate::core::command::{CommandOutcome, Denial};
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
    ) -> Result<CommandOutcome, Denial> {
        let known = self.view.owner(owner).cloned();
        let before = known.as_ref().and_then(|row| row.role.clone());
        let narrows = match (&before, &known) {
            (Some(before), _) => self.lowers(before, role),
            (None, Some(_)) => false,
            // The owner has no row in this tenant yet. A new row narrows only if an ancestor's row has a role
            // that allows at least as much. Any other role counts as widening, because the ancestor's role
            // may be raised later.
            (None, None) => {
                let owner_status = self.owner_status(&Owner::Principal(owner.clone()));
                let mut above = owner_status.roles.iter();
                !owner_status.removed && above.any(|above| self.lowers(above, role))
            }
        };
        let effect = match narrows {
            true => Effect::Narrows,
            false => Effect::Widens,
        };
        self.permit_administrator("change the role of owners", effect)?;
        if before.as_ref() == Some(role) {
            return Ok(CommandOutcome::Done);
        }
        if !narrows {
            self.check_time()?;
            self.check_role_within(role)?;
        }
        self.store_role(owner, role, known);
        Ok(CommandOutcome::Done)
    }

    /// Stores the role that the application states for an owner. Does nothing if the owner has no role in
    /// this tenant.
    pub(super) fn sync_owner_role(
        &mut self,
        owner: &PrincipalId,
        role: &Role,
    ) -> Result<CommandOutcome, Denial> {
        self.permit_application("sync roles")?;
        let known = self.view.owner(owner).cloned();
        let stored = known.as_ref().and_then(|row| row.role.as_ref());
        if stored.is_some_and(|stored| stored != role) {
            self.store_role(owner, role, known);
        }
        Ok(CommandOutcome::Done)
    }

    fn store_role(&mut self, owner: &PrincipalId, role: &Role, known: Option<OwnerRecord>) {
        let before = known.as_ref().and_then(|row| row.role.clone());
        let mut raised_from = known.as_ref().map(|row| row.raised_from.clone());
        let raised_from_now = raised_from.get_or_insert_default();
        let raises = |before: &&Role| !self.lowers(before, role);
        if let Some(before) = before.as_ref().filter(raises) {
            // A former role is not added to `raised_from` if that set already has a role that allows no more.
            // The existing role limits the same keys at least as much.
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

    pub(super) fn remove_owner(&mut self, owner: &PrincipalId) -> Result<CommandOutcome, Denial> {
        self.permit_administrator("remove owners", Effect::Narrows)?;
        let removal = |entry: &&crate::core::audit::AuditEntry| {
            matches!(entry.action, Action::OwnerRemoved { .. })
        };
        let first_removal = self.applied().find(removal).map(|entry| entry.at);
        // A retry applies only to keys that existed at the first commit of the command. If the owner was
        // restored since, newer keys keep working.
        let removed_at = match first_removal {
            Some(removed_at) => removed_at,
            None => {
                let known = self.view.owner(owner);
                let removed = known.filter(|row| row.role.is_none()).cloned();
                let row = OwnerRecord {
                    tenant: self.request.tenant.clone(),
                    owner: owner.clone(),
                    role: None,
                    // If the owner is already removed, the instant of that removal is kept. This command then
                    // only revokes the remaining keys.
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

    pub(super) fn close_tenant(&mut self) -> Result<CommandOutcome, Denial> {
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
