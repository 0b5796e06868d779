//! Rotation: creates a successor for a key, while the old key keeps working for a grace period.
//!
//! A retiring key does not count towards the cap, so a rotation succeeds at the cap. A rotation never extends
//! the old key's expiry. Cancelling a rotation restores the old key's expiry, unless the key is compromised.
//! Every rotated key ends: an old key that waits for its successor's first use has a latest end.

use std::time::Duration;

use super::issue::{Minted, environment, published};
use super::{Work, mark_of};
use crate::core::actor::Actor;
use crate::core::audit::Action;
use crate::core::authority::{Effect, earlier};
use crate::core::command::{
    Command, CommandOutcome, Denial, Expiry, Recipient, Request, RotateKey, RotationMode,
};
use crate::core::hole;
use crate::core::id::KeyId;
use crate::core::invalid::{Invalid, Problem};
use crate::core::policy::{Access, KeyClass, Rotation, SelfRotation};
use crate::core::principal::Author;
use crate::core::reach::{self, EffectiveReach};
use crate::core::record::{
    KeyFacts, KeyRecord, KeyState, LastAction, Predecessor, Reason, RotationReason, Succession,
};
use crate::core::secret::Secret;
use crate::core::text::CommandId;
use crate::core::time::Timestamp;

impl<'a> Work<'a> {
    pub(super) fn rotate(&mut self, id: KeyId, how: &RotateKey) -> Result<CommandOutcome, Denial> {
        let record = self.record(id)?;
        let class = self.rotated_class(&record, Effect::Widens)?;
        let by_itself = self.rotates_itself(&record, class)?;
        let grace = match (by_itself, class.rotation) {
            (true, Rotation::SelfService(grace)) => grace,
            _ => self.permit_rotation(&record, class, Effect::Widens)?,
        };
        let wait = self.policy.spec().first_use_wait;
        let compromised = how.reason == RotationReason::Compromise || is_compromised(&record);
        let mode = how.resolved(grace, wait, compromised)?;
        if by_itself && matches!(mode, Retirement::After(grace) if grace.is_zero()) {
            let reason = "only with grace or on first use";
            return Err(Denial::SelfRotation { reason });
        }
        match self.check_usable(&record) {
            // A recovery after a restore may have disabled the legacy key. Rotation is still allowed, so that
            // a successor can replace the key. The old key stays disabled.
            Err(Denial::Disabled) if record.legacy => {}
            usable => usable?,
        }
        let before = self.active_before(&record.class);
        let latest = record.expires_at.filter(|_| is_compromised(&record));
        let known = record.succession.as_ref().map(|own| own.reason);
        let reason = match known {
            Some(RotationReason::Compromise) => RotationReason::Compromise,
            _ => how.reason,
        };
        let mut old = self.without_unused_successor(record)?;
        let (mut new, token) = self.successor_of(&old, class, how.recipient.as_ref())?;
        if by_itself {
            new.expires_at = self.end_of_self_rotated(&old, class, new.expires_at)?;
        }
        // The caller must itself reach everything that the successor reaches. The successor has the old key's
        // reach, except for the expiry.
        let since = old.lineage.since;
        let mut reach = EffectiveReach {
            until: new.expires_at,
            renewable_until: reach::renewable_until(class, new.expires_at, since),
            ..self.reach_of(&old)?
        };
        if by_itself {
            reach = self.as_own_successor(reach, &old);
        }
        self.caller.check_within(&reach)?;

        let successor = new.id;
        old.legacy = false;
        old.succession = Some(Succession {
            successor,
            since: self.now,
            reason,
            own_expiry: old.expires_at,
            grace_from_first_use: None,
        });
        self.retire(&mut old, mode);
        // A second rotation must not give a compromised key more time than the first rotation.
        old.expires_at = earlier(old.expires_at, latest);
        let until = self.end_of(&old);
        let name = old.class.clone();
        let rotated = Action::KeyRotated {
            successor,
            reason,
            old_key_ends: until,
        };
        self.begin_grace_before(&old);
        self.put(old, LastAction::Rotated, rotated);
        let created = Action::KeyCreated {
            class: name.clone(),
        };
        let successor = self.issue(new, token, created);
        self.check_not_raised(&before)?;
        Ok(CommandOutcome::Rotated {
            successor,
            predecessor: id,
            until,
        })
    }

    pub(super) fn finish_rotation(&mut self, id: KeyId) -> Result<CommandOutcome, Denial> {
        let old = self.record(id)?;
        let class = self.rotated_class(&old, Effect::Narrows)?;
        self.permit_rotation(&old, class, Effect::Narrows)?;
        if old.succession.is_none() {
            return Err(Denial::NotRotating);
        }
        if old.is_live(self.alive_at()) {
            self.end(old, Reason::Rotated);
        }
        Ok(CommandOutcome::Done)
    }

    pub(super) fn cancel_rotation(&mut self, id: KeyId) -> Result<CommandOutcome, Denial> {
        let mut old = self.record(id)?;
        let class = self.rotated_class(&old, Effect::Widens)?;
        self.permit_rotation(&old, class, Effect::Widens)?;
        let compromised = is_compromised(&old);
        let Some(succession) = old.succession.take() else {
            return Err(Denial::NotRotating);
        };
        self.check_live(&old)?;
        let before = self.active_before(&old.class);
        // Cancelling the rotation of a compromised key must not let the key work for longer, so the earlier
        // expiry counts.
        old.expires_at = match compromised {
            true => earlier(succession.own_expiry, old.expires_at),
            false => succession.own_expiry,
        };
        if let Some(mut unused) = self.view.record(succession.successor).cloned() {
            if !unused.awaits_first_use() || unused.succession.is_some() {
                return Err(Denial::SuccessorInUse {
                    successor: unused.id,
                });
            }
            old.legacy = std::mem::take(&mut unused.legacy);
            if !matches!(unused.state, KeyState::Revoked { .. }) {
                let reason = Reason::RotationCancelled;
                unused.state = KeyState::Revoked {
                    stamp: self.stamp(),
                    reason,
                };
                self.put(unused, LastAction::Revoked, Action::KeyRevoked { reason });
            }
        }
        self.check_key_within(&old)?;
        old.makers = self.makers(&old.makers)?;
        self.restore(old, succession.successor);
        self.check_not_raised(&before)?;
        Ok(CommandOutcome::Done)
    }

    pub(super) fn note_first_use(&mut self, id: KeyId) -> Result<CommandOutcome, Denial> {
        self.permit_application("note a first use")?;
        let successor = self.record(id)?;
        self.note_use_of(successor);
        Ok(CommandOutcome::Done)
    }

    /// Records first uses of loaded keys that this process has seen, but that the store does not record yet.
    /// Runs before the command, so that the command never treats a used successor as unused.
    pub(super) fn note_counted_uses(&mut self) {
        // Skips a successor whose old key is not loaded, because recording the use must also begin the old
        // key's grace period.
        let waits = |record: &&KeyRecord| {
            let before = record.predecessor.as_ref();
            before.is_some_and(|old| self.view.knows(old.key))
        };
        let counted = self.view.records.iter();
        let counted = counted.filter(|record| self.used.contains(&record.id));
        let counted: Vec<_> = counted.filter(waits).cloned().collect();
        for successor in counted {
            // Writes these changes as a separate command of the application, so that the audit trail does not
            // attribute them to the caller.
            let key = successor.id;
            let Ok(id) = CommandId::new(format!("first-use:{key}")) else {
                continue;
            };
            let tenant = self.request.tenant.clone();
            let host = Actor::application(tenant.clone());
            let command = Command::NoteFirstUse { key };
            let mark = mark_of(&Request::new(id.clone(), host, tenant, command));
            let own = (
                std::mem::replace(&mut self.author, Author::Application),
                std::mem::replace(&mut self.command, id),
                std::mem::replace(&mut self.mark, mark),
            );
            self.note_use_of(successor);
            (self.author, self.command, self.mark) = own;
        }
    }

    /// Records the first use of a successor. If the old key waits for this use, its grace period begins.
    fn note_use_of(&mut self, mut successor: KeyRecord) {
        let id = successor.id;
        let unused = |link: &&mut Predecessor| link.first_used_at.is_none();
        let Some(link) = successor.predecessor.as_mut().filter(unused) else {
            return;
        };
        link.first_used_at = Some(self.now);
        let old = link.key;
        self.put(successor, LastAction::FirstUsed, Action::SuccessorFirstUsed);
        self.begin_grace(old, id);
    }

    /// Begins the grace period of `old`, if `old` waits for the first use of `successor`.
    fn begin_grace(&mut self, old: KeyId, successor: KeyId) {
        let old = self.view.record(old).cloned();
        let Some(mut old) = old.filter(|old| old.is_live(self.alive_at())) else {
            return;
        };
        let waiting = (old.succession.as_mut())
            .filter(|succession| succession.successor == successor)
            .and_then(|succession| succession.grace_from_first_use.take());
        if let Some(grace) = waiting {
            self.retire(&mut old, Retirement::After(grace));
            let old_key_ends = self.end_of(&old);
            let began = Action::GraceBegan { old_key_ends };
            self.put(old, LastAction::FirstUsed, began);
        }
    }

    /// Restores the old key of an `OnFirstUse` rotation when its successor ends unused. Does not restore a
    /// compromised key: another process may have seen a use of the successor that is not recorded yet.
    pub(super) fn release_predecessor(&mut self, ending: &KeyRecord) {
        let link = ending
            .predecessor
            .as_ref()
            .filter(|link| link.first_used_at.is_none());
        let waits = |old: &&KeyRecord| {
            old.succession.as_ref().is_some_and(|succession| {
                succession.successor == ending.id && succession.grace_from_first_use.is_some()
            })
        };
        let old = link
            .and_then(|link| self.view.record(link.key))
            .filter(|old| waits(old) && old.is_live(self.now) && !is_compromised(old))
            // Restoring the old key gives it more time, and no key gets more time while the clocks disagree.
            .filter(|_| self.check_time().is_ok());
        if let Some(mut old) = old.cloned() {
            old.expires_at = old.succession.take().and_then(|own| own.own_expiry);
            self.restore(old, ending.id);
        }
    }

    /// Begins the grace period of the predecessor of `rotated`, a key that is being rotated itself. The
    /// predecessor may still wait for the first use of that key, but the rotation shows that a client has it.
    /// Otherwise the predecessor could keep waiting after that key has ended, and too many keys could be
    /// live.
    fn begin_grace_before(&mut self, rotated: &KeyRecord) {
        if let Some(link) = &rotated.predecessor {
            self.begin_grace(link.key, rotated.id);
        }
    }

    fn restore(&mut self, old: KeyRecord, successor: KeyId) {
        let action = Action::RotationCancelled { successor };
        self.put(old, LastAction::RotationCancelled, action);
    }

    /// Checks that the caller may rotate the key. Returns the default grace period of the key's class.
    fn permit_rotation(
        &self,
        record: &KeyRecord,
        class: &KeyClass,
        effect: Effect,
    ) -> Result<Duration, Denial> {
        let support = Access::support_only();
        let (access, grace) = match class.rotation {
            Rotation::None => (&class.rotate, None),
            Rotation::SupportOnly(grace) => (&support, Some(grace)),
            Rotation::SelfService(grace) => (&class.rotate, Some(grace)),
        };
        self.permit(access, Some(record), "rotate keys", effect)?;
        grace.ok_or_else(|| Denial::NotRotatable {
            class: record.class.clone(),
        })
    }

    /// Returns the class of the key to rotate. If the policy no longer has that class, an administrator gets
    /// an error that says so. Any other caller is refused as forbidden.
    fn rotated_class(&self, record: &KeyRecord, effect: Effect) -> Result<&'a KeyClass, Denial> {
        match self.policy.class(&record.class) {
            Some(class) => Ok(class),
            None => self.permit_class(record, |class| &class.rotate, "rotate keys", effect),
        }
    }

    /// Returns whether the acting key created `record` by rotating itself. If the response with the
    /// successor's secret was lost, the acting key may replace that secret.
    pub(super) fn made_by_itself(&self, record: &KeyRecord) -> bool {
        let acting = self.caller.limits().and_then(|limits| limits.key.as_ref());
        let before = record.predecessor.as_ref().map(|old| old.key);
        let class = self.policy.class(&record.class);
        class.is_some_and(|class| class.self_rotation != SelfRotation::Never)
            && record.created.by == self.author
            && acting.is_some_and(|key| before == Some(key.id))
    }

    /// Prepares a successor's reach for the comparison with the key that rotates itself. The expiry times
    /// become those of the acting key, because the class's self-rotation rule limits the successor's expiry
    /// separately. The scopes become the current scopes of `record`, because the current roles limit the
    /// successor.
    fn as_own_successor(&self, reach: EffectiveReach, record: &KeyRecord) -> EffectiveReach {
        let Some(limits) = self.caller.limits() else {
            return reach;
        };
        EffectiveReach {
            until: limits.reach.until,
            renewable_until: limits.reach.renewable_until,
            scopes: self.scopes_of(record),
            ..reach
        }
    }

    /// Refuses to give a successor's secret to the old key if the successor reaches more than the old key
    /// does now. The successor may expire later than the old key, as far as self-rotation allows.
    pub(super) fn check_own_successor_within(&self, successor: &KeyRecord) -> Result<(), Denial> {
        let class = self.class_of(successor)?;
        let reach = self.reach_of(successor)?;
        let before = successor.predecessor.as_ref().map(|old| old.key);
        let before = before.and_then(|old| self.view.record(old));
        let latest = before.map(|old| latest_of_self_rotated(old, class));
        let in_time = latest
            .is_some_and(|latest| earlier(successor.expires_at, latest) == successor.expires_at);
        let reach = match in_time {
            true => self.as_own_successor(reach, successor),
            false => reach,
        };
        self.caller.check_within(&reach)
    }

    /// Returns whether the acting key rotates itself. Refuses self-rotation if the class does not allow it.
    /// Also refuses a key that rotates another key of its own chain, because the holder of an old key could
    /// otherwise replace the successor.
    fn rotates_itself(&self, record: &KeyRecord, class: &KeyClass) -> Result<bool, Denial> {
        let acting = self.caller.limits().and_then(|limits| limits.key.as_ref());
        let Some(acting) = acting.filter(|key| key.lineage.first == record.lineage.first) else {
            return Ok(false);
        };
        let reason = if class.self_rotation == SelfRotation::Never {
            "its class does not allow it"
        } else if acting.id != record.id || record.succession.is_some() {
            "it is being replaced"
        } else if record.exposed_at.is_some() {
            "it was found in the open"
        } else {
            return Ok(true);
        };
        Err(Denial::SelfRotation { reason })
    }

    /// Returns the expiry of the successor of a key that rotates itself. `end` is the expiry that the
    /// successor would get if another actor rotated the key.
    fn end_of_self_rotated(
        &self,
        old: &KeyRecord,
        class: &KeyClass,
        end: Option<Timestamp>,
    ) -> Result<Option<Timestamp>, Denial> {
        let end = match class.self_rotation {
            SelfRotation::Renews { .. } => self.expiry(class, Expiry::Class, self.now)?,
            SelfRotation::WithinLife | SelfRotation::Never => end,
        };
        let latest = latest_of_self_rotated(old, class);
        let end = match (end, latest) {
            (Some(end), Some(latest)) => Some(end.min(latest)),
            (end, latest) => end.or(latest),
        };
        match end {
            Some(end) if end <= self.now => Err(Denial::Expiry {
                after: self.now,
                max: latest,
            }),
            end => Ok(end),
        }
    }

    /// Prepares a key for another rotation. If the key still waits for its successor's first use, ends the
    /// unused successor and restores the key. Any other key with a successor is refused, because its rotation
    /// must be finished first.
    fn without_unused_successor(&mut self, record: KeyRecord) -> Result<KeyRecord, Denial> {
        let Some(succession) = &record.succession else {
            return Ok(record);
        };
        let id = succession.successor;
        let waits = succession.grace_from_first_use.is_some();
        let successor = self
            .view
            .record(id)
            .filter(|successor| waits && successor.awaits_first_use());
        let Some(mut unused) = successor
            .filter(|successor| successor.succession.is_none())
            .cloned()
        else {
            return Err(Denial::BeingRotated { successor: id });
        };
        let legacy = std::mem::take(&mut unused.legacy);
        self.end(unused, Reason::RotationCancelled);
        let mut old = self.record(record.id)?;
        old.legacy = legacy;
        // Ending the successor has restored the old key already, with two exceptions: the old key is
        // compromised, or the successor was revoked before.
        if let Some(succession) = old.succession.take() {
            old.expires_at = succession.own_expiry;
        }
        Ok(old)
    }

    /// Returns the successor of `old` and its token. The successor inherits the old key's settings. Its
    /// lifetime is as long as the old key's, but counts from now.
    fn successor_of(
        &mut self,
        old: &KeyRecord,
        class: &KeyClass,
        recipient: Option<&Recipient>,
    ) -> Result<(KeyRecord, Option<Secret>), Denial> {
        // A rotation never widens: the roles in the old key's `bound` limit the successor too.
        let received = self.bound_at_receipt(&old.owner, recipient)?;
        let lifetime = old.expires_at.map(|end| end.since(old.created.at));
        let lifetime = match (lifetime, class.lifetime.max) {
            (Some(own), Some(max)) => Some(own.min(max)),
            (own, max) => own.or(max),
        };
        let (environment, prefix) = environment(&old.class, class, Some(&old.environment))?;
        let makers = self.makers(&old.makers)?;
        let material = self.draw()?;
        let Minted {
            id,
            prefix,
            hint,
            fingerprint,
            credential,
            token,
        } = self.mint(&prefix, material)?;
        let record = KeyRecord {
            facts: KeyFacts {
                id,
                key_type: class.key_type,
                environment,
                bound: old.bound.iter().cloned().chain(received).collect(),
                exposed_at: None,
                created: self.stamp(),
                expires_at: lifetime.map(|lifetime| self.now.saturating_add(lifetime)),
                predecessor: Some(Predecessor {
                    key: old.id,
                    first_used_at: None,
                }),
                succession: None,
                hint,
                fingerprint,
                published: published(class, token.as_ref()),
                ..old.facts.clone()
            },
            prefix,
            makers,
            state: KeyState::Enabled,
            credential,
            ..old.clone()
        };
        Ok((record, token))
    }

    /// Sets the old key's expiry, never later than the key's existing expiry. A grace period of zero revokes
    /// the key.
    fn retire(&self, old: &mut KeyRecord, mode: Retirement) {
        let wait = match mode {
            Retirement::After(grace) if grace.is_zero() => {
                let reason = Reason::Rotated;
                old.state = KeyState::Revoked {
                    stamp: self.stamp(),
                    reason,
                };
                return;
            }
            Retirement::After(grace) => grace,
            Retirement::AfterFirstUse { grace, wait } => {
                if let Some(succession) = &mut old.succession {
                    succession.grace_from_first_use = Some(grace);
                }
                wait
            }
        };
        let end = self.now.saturating_add(wait);
        old.expires_at = Some(old.expires_at.map_or(end, |own| own.min(end)));
    }

    /// Returns the latest instant at which a rotated key can end: its expiry, or the current instant if the
    /// key has already ended.
    fn end_of(&self, old: &KeyRecord) -> Timestamp {
        let end = old.expires_at.filter(|_| old.is_live(self.alive_at()));
        end.unwrap_or(self.now)
    }
}

/// Returns the latest expiry of the successor of a key that rotates itself. `None` for no limit.
fn latest_of_self_rotated(old: &KeyRecord, class: &KeyClass) -> Option<Timestamp> {
    match class.self_rotation {
        SelfRotation::Renews { .. } if hole::is_open("keys renew themselves for ever") => None,
        SelfRotation::Renews { until_age } => Some(old.lineage.since.saturating_add(until_age)),
        SelfRotation::WithinLife | SelfRotation::Never => old.expires_at,
    }
}

/// Returns whether the record shows that another party may have the key.
fn is_compromised(record: &KeyRecord) -> bool {
    let reason = record.succession.as_ref().map(|own| own.reason);
    record.exposed_at.is_some() || reason == Some(RotationReason::Compromise)
}

/// The time at which a rotation ends the old key.
#[derive(Clone, Copy)]
pub(super) enum Retirement {
    After(Duration),
    /// The old key ends `grace` after the successor's first use, and at most `wait` after the rotation.
    AfterFirstUse {
        grace: Duration,
        wait: Duration,
    },
}

impl RotateKey {
    /// Converts the requested rotation mode to the end of the old key. `grace` and `wait` are the policy's
    /// defaults, for a command that sets none. For a compromised key there is no default wait, so a rotation
    /// on first use must set one.
    fn resolved(
        &self,
        grace: Duration,
        wait: Duration,
        compromised: bool,
    ) -> Result<Retirement, Denial> {
        let max = match compromised {
            true => Rotation::MAX_COMPROMISED_WAIT,
            false => Rotation::MAX_GRACE,
        };
        let actual = self.no_later_than;
        let wait = actual.or(Some(wait).filter(|_| !compromised));
        let wait = wait.filter(|wait| (Duration::from_secs(1)..=max).contains(wait));
        let retirement = match self.mode {
            RotationMode::OnFirstUse(grace) => Retirement::AfterFirstUse {
                grace,
                wait: wait.ok_or(Denial::FirstUseWait { max, actual })?,
            },
            _ if actual.is_some() => {
                let expected = "only with a rotation on first use";
                return Err(Invalid::new("no_later_than", Problem::Format { expected }).into());
            }
            RotationMode::Class => Retirement::After(grace),
            RotationMode::Immediate => Retirement::After(Duration::ZERO),
            RotationMode::Grace(grace) => Retirement::After(grace),
        };
        let (Retirement::After(grace) | Retirement::AfterFirstUse { grace, .. }) = retirement;
        if grace > Rotation::MAX_GRACE {
            let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
            let (max, actual) = (seconds(Rotation::MAX_GRACE), seconds(grace));
            let problem = Problem::OutOfRange {
                min: 0,
                max,
                actual,
            };
            return Err(Invalid::new("grace in seconds", problem).into());
        }
        Ok(retirement)
    }
}
