//! Commands that end keys or pause them: disable, enable, revoke, delete, purge, report a leak.

use super::Work;
use crate::core::audit::{Action, Evidence};
use crate::core::authority::Effect;
use crate::core::command::{CommandOutcome, DeleteKey, Denial, RevokeKey};
use crate::core::id::KeyId;
use crate::core::policy::{Access, Deletion, Policy, Revocation};
use crate::core::record::{KeyRecord, KeyState, KeyType, LastAction, Reason, Status};
use crate::core::secret::DigestMark;
use crate::core::sweep::{BulkFilter, PendingSweep, SweepKind};
use crate::core::text::LeakSource;
use crate::core::time::Timestamp;
use crate::core::view::Effects;

/// Returns the instant at which a purge may remove a key. `None` if the policy keeps the key forever.
pub(crate) fn kept_until(policy: &Policy, record: &KeyRecord) -> Option<Timestamp> {
    let class = policy.class(&record.class).filter(|_| !record.legacy)?;
    let Revocation::Allowed { keep, .. } = class.revocation else {
        return None;
    };
    let ended = match &record.state {
        KeyState::Revoked { stamp, .. } => Some(stamp.at),
        _ => record.expires_at,
    };
    Some(ended?.saturating_add(keep?))
}

impl<'a> Work<'a> {
    pub(super) fn disable(&mut self, id: KeyId) -> Result<CommandOutcome, Denial> {
        let mut record = self.record(id)?;
        self.permit(
            &self.access(&record, |class| &class.update),
            Some(&record),
            "disable keys",
            Effect::Narrows,
        )?;
        not_legacy(&record, "disabled")?;
        self.check_live(&record)?;
        if record.state == KeyState::Enabled {
            record.state = KeyState::Disabled(self.stamp());
            self.put(record, LastAction::Disabled, Action::KeyDisabled);
        }
        Ok(CommandOutcome::Done)
    }

    pub(super) fn enable(&mut self, id: KeyId) -> Result<CommandOutcome, Denial> {
        let mut record = self.record(id)?;
        let effect = Effect::Widens;
        self.permit_class(&record, |class| &class.update, "enable keys", effect)?;
        self.check_live(&record)?;
        if record.state != KeyState::Enabled {
            self.check_key_within(&record)?;
            record.makers = self.makers(&record.makers)?;
            record.state = KeyState::Enabled;
            self.put(record, LastAction::Enabled, Action::KeyEnabled);
        }
        Ok(CommandOutcome::Done)
    }

    pub(super) fn revoke(&mut self, id: KeyId, how: RevokeKey) -> Result<CommandOutcome, Denial> {
        let record = self.record(id)?;
        self.permit(
            &self.access(&record, |class| &class.revoke),
            Some(&record),
            "revoke keys",
            Effect::Narrows,
        )?;
        not_legacy(&record, "revoked")?;
        let rule = self
            .policy
            .class(&record.class)
            .map(|class| class.revocation);
        match rule {
            Some(Revocation::None) => {
                return Err(Denial::NotRevocable {
                    class: record.facts.class,
                });
            }
            Some(Revocation::Allowed { confirm: true, .. }) if !how.confirmed => {
                return Err(Denial::ConfirmationRequired);
            }
            _ => {}
        }
        self.end(record, how.reason);
        Ok(CommandOutcome::Done)
    }

    pub(super) fn delete(&mut self, id: KeyId, how: &DeleteKey) -> Result<CommandOutcome, Denial> {
        let record = self.record(id)?;
        let effect = Effect::Narrows;
        let class = self.permit_class(&record, |class| &class.revoke, "delete keys", effect)?;
        not_legacy(&record, "deleted")?;
        match &class.deletion {
            Deletion::None => {
                return Err(Denial::NotDeletable {
                    class: record.facts.class,
                });
            }
            Deletion::Plain => {}
            Deletion::Typed(text) if how.typed.as_ref() == Some(text) => {}
            Deletion::Typed(text) => {
                return Err(Denial::TypedConfirmationRequired { text: text.clone() });
            }
            Deletion::Unreferenced => match how.references {
                Some(0) => {}
                Some(references) => return Err(Denial::StillReferenced { references }),
                None => return Err(Denial::ReferencesUnknown),
            },
        }
        self.release_predecessor(&record);
        self.change(Effects {
            removes: vec![id],
            ..Effects::default()
        });
        self.log(Action::KeyDeleted, Some(id));
        Ok(CommandOutcome::Done)
    }

    pub(super) fn report_leak(
        &mut self,
        id: KeyId,
        source: &LeakSource,
    ) -> Result<CommandOutcome, Denial> {
        let mut record = self.record(id)?;
        let access = self.access(&record, |class| &class.revoke);
        let by =
            |access: &Access| self.permit(access, Some(&record), "report leaks", Effect::Narrows);
        by(&Access::support_only()).or_else(|_| by(&access))?;
        let ended = matches!(record.state, KeyState::Revoked { .. });
        let revoked = record.key_type == KeyType::Secret && !record.legacy && !ended;
        // Anyone who has the token may report it. A report that changes nothing must write nothing, or the
        // finder of one token could fill the store.
        if revoked || record.exposed_at.is_none() {
            record.exposed_at = record.exposed_at.or(Some(self.now));
            let noted = Action::KeyLeaked {
                source: source.clone(),
                revoked,
            };
            self.put(record, LastAction::LeakReported, noted);
            if revoked {
                self.end(self.record(id)?, Reason::Leaked);
            }
        }
        Ok(CommandOutcome::LeakNoted { revoked })
    }

    pub(super) fn revoke_many(
        &mut self,
        filter: &BulkFilter,
        reason: Reason,
    ) -> Result<CommandOutcome, Denial> {
        self.permit_administrator("revoke keys in bulk", Effect::Narrows)?;
        if !self.began() {
            // The audit entry records the start of the command, so that a retry does not revoke keys created
            // after the start.
            self.log(Action::BulkRevocationBegan { reason }, None);
            self.begin_sweep(SweepKind::Revoke(filter.clone(), reason));
        }
        // Revokes only keys that existed when the command began. In a descendant tenant, the start in the
        // command's first tenant counts.
        let continued = self.request.continues.as_ref().map(|(_, at)| *at);
        let began = continued.unwrap_or_else(|| self.began_at());
        let came_later = self.came_later(began);
        let outcome = self.sweep(reason, |record| {
            filter.matches(record) && !came_later(record)
        });
        self.end_sweep();
        Ok(outcome)
    }

    /// Lists the command as unfinished in the tenant's row, so that maintenance can finish it. The last
    /// commit of the command removes it from that list.
    pub(super) fn begin_sweep(&mut self, kind: SweepKind) {
        let Some(mut row) = self.view.tenant.clone() else {
            // An unregistered tenant has no keys to end, so maintenance has nothing to finish.
            return;
        };
        row.sweeps.push(PendingSweep {
            command: self.request.id.clone(),
            by: self.author.clone(),
            began_at: self.now,
            descendants: self.request.actor.reaches_descendants(),
            kind,
        });
        self.change(Effects {
            tenant: Some(row),
            ..Effects::default()
        });
    }

    /// Removes the command from the unfinished commands in the tenant's row, if this commit is its last one.
    pub(super) fn end_sweep(&mut self) {
        let last = self.request.sweep.last;
        let Some(mut row) = self.view.tenant.clone().filter(|_| last) else {
            return;
        };
        let pending = row.sweeps.len();
        let ends = |own: &PendingSweep| own.command == self.request.id && own.by == self.author;
        row.sweeps.retain(|own| !ends(own));
        if row.sweeps.len() < pending {
            self.change(Effects {
                tenant: Some(row),
                ..Effects::default()
            });
            self.log(Action::BulkCommandEnded, None);
        }
    }

    /// Prevents these digests from ever being imported again.
    pub(super) fn block_digests(
        &mut self,
        marks: &[(DigestMark, KeyId)],
    ) -> Result<CommandOutcome, Denial> {
        self.permit_application("block digests")?;
        if !marks.is_empty() {
            let digests = marks.iter().map(|(mark, key)| (mark.as_digest(), *key));
            self.change(Effects {
                digests: digests.collect(),
                ..Effects::default()
            });
            let count = u32::try_from(marks.len()).unwrap_or(u32::MAX);
            let marks = marks.to_vec();
            let evidence = Some(Evidence::Blocked { marks });
            self.log_with(Action::DigestsBlocked { count }, None, evidence);
        }
        Ok(CommandOutcome::Done)
    }

    /// Disables keys of any class and any owner. Used after a restore from a backup: no key may verify until
    /// a person has reviewed it.
    pub(super) fn disable_many(&mut self) -> Result<CommandOutcome, Denial> {
        self.permit_application("disable keys in bulk")?;
        let mut ended = 0;
        for id in self.swept() {
            // A key that has expired by a clock that is ahead verifies once the clock is right.
            let is_enabled = |record: &&KeyRecord| record.state == KeyState::Enabled;
            let Some(mut record) = self.view.record(*id).filter(is_enabled).cloned() else {
                continue;
            };
            record.state = KeyState::Disabled(self.stamp());
            self.put(record, LastAction::Disabled, Action::KeyDisabled);
            ended += 1;
        }
        Ok(CommandOutcome::Swept {
            ended,
            skipped: Vec::new(),
        })
    }

    pub(super) fn purge(&mut self) -> Result<CommandOutcome, Denial> {
        self.permit_application("purge keys")?;
        let mut ended = 0;
        for id in &self.request.sweep.keys {
            let Some(record) = self.view.record(*id) else {
                continue;
            };
            if kept_until(self.policy, record).is_none_or(|end| self.now < end) {
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
        Ok(CommandOutcome::Swept {
            ended,
            skipped: Vec::new(),
        })
    }

    /// Returns the keys that this commit of a bulk command processes.
    fn swept(&self) -> impl Iterator<Item = &'a KeyId> + use<'a> {
        self.request.sweep.keys.iter().take(super::SWEEP_MAX)
    }

    /// Revokes the keys that this commit of a bulk command covers and that match. Skips legacy keys.
    pub(super) fn sweep(
        &mut self,
        reason: Reason,
        matches: impl Fn(&KeyRecord) -> bool,
    ) -> CommandOutcome {
        let mut skipped = Vec::new();
        let mut ended = 0;
        for id in self.swept() {
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
        CommandOutcome::Swept { ended, skipped }
    }

    /// Revokes all keys of this commit, including legacy keys, because their tenant is closed.
    pub(super) fn sweep_all(&mut self, reason: Reason) -> CommandOutcome {
        let mut ended = 0;
        for id in self.swept() {
            let Some(record) = self.view.record(*id).cloned() else {
                continue;
            };
            if !matches!(record.state, KeyState::Revoked { .. }) {
                self.end(record, reason);
                ended += 1;
            }
        }
        CommandOutcome::Swept {
            ended,
            skipped: Vec::new(),
        }
    }

    /// Revokes a key permanently. Does nothing if the key is already revoked, so the first reason is kept.
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

    /// Returns the access rule that a caller must meet to end a key. If the policy no longer has the key's
    /// class, only administrators may end the key.
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

    /// Refuses a key that is revoked or has expired.
    pub(super) fn check_live(&self, record: &KeyRecord) -> Result<(), Denial> {
        match record.status(self.alive_at()) {
            Status::Revoked => Err(Denial::Revoked),
            Status::Expired => Err(Denial::Expired),
            Status::Active | Status::Retiring | Status::Disabled => Ok(()),
        }
    }

    /// Refuses a key that is revoked, expired or disabled, or whose owner was removed.
    pub(super) fn check_usable(&self, record: &KeyRecord) -> Result<(), Denial> {
        self.check_live(record)?;
        if record.status(self.alive_at()) == Status::Disabled {
            return Err(Denial::Disabled);
        }
        match record.owner.principal() {
            Some(owner)
                if self
                    .owner_status(&record.owner)
                    .refuses_owner(record.created.at) =>
            {
                Err(Denial::OwnerRemoved {
                    owner: owner.clone(),
                })
            }
            _ => Ok(()),
        }
    }
}

fn not_legacy(record: &KeyRecord, action: &'static str) -> Result<(), Denial> {
    if record.legacy {
        Err(Denial::LegacyKey { action })
    } else {
        Ok(())
    }
}
