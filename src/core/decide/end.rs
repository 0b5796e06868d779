//! Keys that end: disabled for a while, revoked for ever, deleted, purged, leaked.

use super::Work;
use crate::core::audit::Action;
use crate::core::command::{BulkFilter, DeleteKey, Denied, Outcome, RevokeKey};
use crate::core::id::KeyId;
use crate::core::policy::{Access, Deletion, Revocation};
use crate::core::record::{KeyRecord, KeyState, LastAction, Reason, Status, Visibility};
use crate::core::text::LeakSource;
use crate::core::view::Effects;

impl Work<'_> {
    pub(super) fn disable(&mut self, id: KeyId) -> Result<Outcome, Denied> {
        let mut record = self.record(id)?;
        self.permit(
            &self.access(&record, |class| &class.update),
            Some(&record),
            "disable keys",
        )?;
        not_legacy(&record, "disabled")?;
        self.check_live(&record)?;
        if record.state == KeyState::Enabled {
            record.state = KeyState::Disabled(self.stamp());
            self.put(record, LastAction::Disabled, Action::KeyDisabled);
        }
        Ok(Outcome::Done)
    }

    pub(super) fn enable(&mut self, id: KeyId) -> Result<Outcome, Denied> {
        let mut record = self.record(id)?;
        let class = self.class_of(&record)?;
        self.permit(&class.update, Some(&record), "enable keys")?;
        self.check_live(&record)?;
        if record.state != KeyState::Enabled {
            self.check_key_contained(&record)?;
            record.state = KeyState::Enabled;
            self.put(record, LastAction::Enabled, Action::KeyEnabled);
        }
        Ok(Outcome::Done)
    }

    pub(super) fn revoke(&mut self, id: KeyId, how: RevokeKey) -> Result<Outcome, Denied> {
        let record = self.record(id)?;
        self.permit(
            &self.access(&record, |class| &class.revoke),
            Some(&record),
            "revoke keys",
        )?;
        not_legacy(&record, "revoked")?;
        let rule = self
            .policy
            .class(&record.class)
            .map(|class| class.revocation);
        match rule {
            Some(Revocation::None) => {
                return Err(Denied::NotRevocable {
                    class: record.class,
                });
            }
            Some(Revocation::Allowed { confirm: true, .. }) if !how.confirmed => {
                return Err(Denied::ConfirmationRequired);
            }
            _ => {}
        }
        self.end(record, how.reason);
        Ok(Outcome::Done)
    }

    pub(super) fn delete(&mut self, id: KeyId, how: &DeleteKey) -> Result<Outcome, Denied> {
        let record = self.record(id)?;
        let class = self.class_of(&record)?;
        self.permit(&class.revoke, Some(&record), "delete keys")?;
        not_legacy(&record, "deleted")?;
        match &class.deletion {
            Deletion::None => {
                return Err(Denied::NotDeletable {
                    class: record.class,
                });
            }
            Deletion::Plain => {}
            Deletion::Typed(text) if how.typed.as_ref() == Some(text) => {}
            Deletion::Typed(text) => {
                return Err(Denied::TypedConfirmationRequired { text: text.clone() });
            }
            Deletion::Unreferenced => match how.references {
                Some(0) => {}
                Some(references) => return Err(Denied::StillReferenced { references }),
                None => return Err(Denied::ReferencesUnknown),
            },
        }
        self.release_predecessor(&record);
        self.change(Effects {
            removes: vec![id],
            ..Effects::default()
        });
        self.log(Action::KeyDeleted, Some(id));
        Ok(Outcome::Done)
    }

    pub(super) fn report_leak(
        &mut self,
        id: KeyId,
        source: &LeakSource,
    ) -> Result<Outcome, Denied> {
        let record = self.record(id)?;
        let access = self.access(&record, |class| &class.revoke);
        if !self.is_support() {
            self.permit(&access, Some(&record), "report leaks")?;
        }
        let revoked = record.visibility == Visibility::Secret && !record.legacy;
        let noted = Action::LeakReported {
            source: source.clone(),
            revoked,
        };
        let ended = matches!(record.state, KeyState::Revoked { .. });
        self.put(record, LastAction::LeakReported, noted);
        if revoked && !ended {
            self.end(self.record(id)?, Reason::Leaked);
        }
        Ok(Outcome::LeakNoted { revoked })
    }

    pub(super) fn revoke_many(
        &mut self,
        filter: &BulkFilter,
        reason: Reason,
        sweep: &[KeyId],
    ) -> Result<Outcome, Denied> {
        self.permit_administrator("revoke keys in bulk")?;
        if !self.began() {
            // Marks the instant: a repetition is not about keys that were created since.
            self.log(Action::BulkRevocationBegan { reason }, None);
        }
        let began = self.began_at();
        Ok(self.sweep(sweep, reason, |record| {
            filter.matches(record) && record.created.at <= began
        }))
    }

    /// Whatever the class says, and whoever owns them: what a restored backup holds is not to verify
    /// until somebody looked at it.
    pub(super) fn disable_many(&mut self, sweep: &[KeyId]) -> Result<Outcome, Denied> {
        self.permit_host("disable keys in bulk")?;
        let mut ended = 0;
        for id in sweep.iter().take(super::SWEEP_MAX) {
            let usable =
                |record: &&KeyRecord| record.state == KeyState::Enabled && record.is_live(self.now);
            let Some(mut record) = self.view.record(*id).filter(usable).cloned() else {
                continue;
            };
            record.state = KeyState::Disabled(self.stamp());
            self.put(record, LastAction::Disabled, Action::KeyDisabled);
            ended += 1;
        }
        Ok(Outcome::Swept {
            ended,
            skipped: Vec::new(),
        })
    }

    pub(super) fn purge(&mut self, sweep: &[KeyId]) -> Result<Outcome, Denied> {
        self.permit_host("purge keys")?;
        let mut ended = 0;
        for id in sweep {
            let Some(record) = self.view.record(*id) else {
                continue;
            };
            if !self.is_purgeable(record) {
                continue;
            }
            let purged = record.clone();
            self.release_predecessor(&purged);
            self.change(Effects {
                removes: vec![*id],
                ..Effects::default()
            });
            self.log(Action::KeyPurged, Some(*id));
            ended += 1;
        }
        Ok(Outcome::Swept {
            ended,
            skipped: Vec::new(),
        })
    }

    fn is_purgeable(&self, record: &KeyRecord) -> bool {
        let keep = match self
            .policy
            .class(&record.class)
            .map(|class| class.revocation)
        {
            Some(Revocation::Allowed {
                keep: Some(keep), ..
            }) => keep,
            _ => return false,
        };
        let ended = match &record.state {
            KeyState::Revoked { stamp, .. } => Some(stamp.at),
            _ => record.expires_at,
        };
        !record.legacy && ended.is_some_and(|ended| self.now >= ended.saturating_add(keep))
    }

    /// Revokes those of `sweep` that match, legacy keys excepted.
    pub(super) fn sweep(
        &mut self,
        sweep: &[KeyId],
        reason: Reason,
        matches: impl Fn(&KeyRecord) -> bool,
    ) -> Outcome {
        let mut skipped = Vec::new();
        let mut ended = 0;
        for id in sweep.iter().take(super::SWEEP_MAX) {
            let Some(record) = self.view.record(*id).filter(|record| matches(record)) else {
                continue;
            };
            if record.legacy {
                skipped.push(*id);
            } else if !matches!(record.state, KeyState::Revoked { .. }) {
                self.end(record.clone(), reason);
                ended += 1;
            }
        }
        Outcome::Swept { ended, skipped }
    }

    /// Revokes all of `sweep`, legacy keys included: their tenant is closed.
    pub(super) fn sweep_all(&mut self, sweep: &[KeyId], reason: Reason) -> Outcome {
        let mut ended = 0;
        for id in sweep.iter().take(super::SWEEP_MAX) {
            let Some(record) = self.view.record(*id).cloned() else {
                continue;
            };
            if !matches!(record.state, KeyState::Revoked { .. }) {
                self.end(record, reason);
                ended += 1;
            }
        }
        Outcome::Swept {
            ended,
            skipped: Vec::new(),
        }
    }

    /// Revokes a key for ever. Does nothing if it is revoked: the first reason stays.
    pub(super) fn end(&mut self, mut record: KeyRecord, reason: Reason) {
        if matches!(record.state, KeyState::Revoked { .. }) {
            return;
        }
        self.release_predecessor(&record);
        record.state = KeyState::Revoked {
            stamp: self.stamp(),
            reason,
        };
        self.put(record, LastAction::Revoked, Action::KeyRevoked { reason });
    }

    /// Who may end a key; administrators if the policy no longer has its class.
    fn access<'p>(
        &'p self,
        record: &KeyRecord,
        of: impl Fn(&'p crate::core::policy::KeyClass) -> &'p Access,
    ) -> Access {
        match self.policy.class(&record.class) {
            Some(class) => of(class).clone(),
            None => Access::roles(self.policy.spec().administrators.iter().cloned()),
        }
    }

    /// Refuses for a key that is revoked or has expired.
    pub(super) fn check_live(&self, record: &KeyRecord) -> Result<(), Denied> {
        match record.status(self.now) {
            Status::Revoked => Err(Denied::Revoked),
            Status::Expired => Err(Denied::Expired),
            Status::Active | Status::Retiring | Status::Disabled => Ok(()),
        }
    }

    /// Refuses for a key that does not verify now, whatever the reason in itself or its owner.
    pub(super) fn check_usable(&self, record: &KeyRecord) -> Result<(), Denied> {
        self.check_live(record)?;
        if record.status(self.now) == Status::Disabled {
            return Err(Denied::Disabled);
        }
        match record.owner.principal() {
            Some(owner)
                if self
                    .standing(&record.owner)
                    .refuses_owner(record.created.at) =>
            {
                Err(Denied::OwnerRemoved {
                    owner: owner.clone(),
                })
            }
            _ => Ok(()),
        }
    }
}

fn not_legacy(record: &KeyRecord, action: &'static str) -> Result<(), Denied> {
    if record.legacy {
        Err(Denied::LegacyKey { action })
    } else {
        Ok(())
    }
}
