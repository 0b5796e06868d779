//! Owners and tenants: one row that narrows or ends every key, then the keys themselves.

use super::Work;
use crate::core::audit::Action;
use crate::core::command::{Denied, Outcome};
use crate::core::id::KeyId;
use crate::core::owner::{OwnerRecord, TenantRecord};
use crate::core::record::Reason;
use crate::core::text::{PrincipalId, Role};
use crate::core::view::Effects;

impl Work<'_> {
    pub(super) fn change_owner_role(
        &mut self,
        owner: &PrincipalId,
        role: &Role,
    ) -> Result<Outcome, Denied> {
        self.permit_administrator("change the role of owners")?;
        let known = self.view.owner(owner).cloned();
        let before = known.as_ref().and_then(|row| row.role.clone());
        if before.as_ref() == Some(role) {
            return Ok(Outcome::Done);
        }
        let after = self.policy.role_ceiling(role);
        let narrows = before
            .as_ref()
            .is_some_and(|before| self.policy.role_ceiling(before).contains(&after));
        self.check_no_stronger(role)?;
        if !narrows || *role == Role::SYSTEM {
            self.check_grants_role(role)?;
        }
        let row = OwnerRecord {
            tenant: self.request.tenant.clone(),
            owner: owner.clone(),
            role: Some(role.clone()),
            removed_at: known.and_then(|row| row.removed_at),
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
        Ok(Outcome::Done)
    }

    pub(super) fn remove_owner(
        &mut self,
        owner: &PrincipalId,
        sweep: &[KeyId],
    ) -> Result<Outcome, Denied> {
        self.permit_administrator("remove owners")?;
        let removal = |entry: &&crate::core::audit::AuditEntry| {
            entry.command == self.request.id && matches!(entry.action, Action::OwnerRemoved { .. })
        };
        let landed = self.view.applied.iter().find(removal).map(|entry| entry.at);
        let removed_before = self
            .view
            .owner(owner)
            .filter(|row| row.role.is_none())
            .and_then(|row| row.removed_at);
        // A repeated command goes on with the keys of its own time: an owner who came back since
        // keeps the keys created since.
        let removed_at = match landed.or(removed_before) {
            Some(removed_at) => removed_at,
            None => {
                let row = OwnerRecord {
                    tenant: self.request.tenant.clone(),
                    owner: owner.clone(),
                    role: None,
                    removed_at: Some(self.now),
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
                self.now
            }
        };
        Ok(self.sweep(sweep, Reason::OwnerRemoved, |record| {
            record.owner.principal() == Some(owner) && record.created.at <= removed_at
        }))
    }

    pub(super) fn close_tenant(&mut self, sweep: &[KeyId]) -> Result<Outcome, Denied> {
        self.permit_administrator("close tenants")?;
        let known = self.view.tenant.clone();
        if known.as_ref().is_none_or(|row| row.closed.is_none()) {
            let provisioned = known.map_or_else(|| self.stamp(), |row| row.provisioned);
            let tenant = self.request.tenant.clone();
            let row = TenantRecord {
                tenant,
                provisioned,
                closed: Some(self.stamp()),
            };
            self.change(Effects {
                tenant: Some(row),
                ..Effects::default()
            });
            self.log(Action::TenantClosed, None);
        }
        Ok(self.sweep_all(sweep, Reason::TenantClosed))
    }
}
