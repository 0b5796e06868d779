//! Rotation: replacing a live key while its predecessor drains.
//!
//! A retiring key is not active, so rotation succeeds at the cap. The old key's end is never later
//! than it was before (trap 7), and a cancelled rotation returns to exactly that end.

use std::time::Duration;

use super::Work;
use super::issue::{Plan, environment};
use crate::core::audit::Action;
use crate::core::command::{
    Denied, Expiry, KeySpec, Outcome, OwnerSpec, Replacement, RotationMode,
};
use crate::core::id::KeyId;
use crate::core::invalid::{Invalid, Problem};
use crate::core::policy::{KeyClass, Rotation};
use crate::core::record::{
    Credential, KeyRecord, KeyState, LastAction, Predecessor, Reason, Succession,
};
use crate::core::time::Timestamp;

impl Work<'_> {
    pub(super) fn rotate(&mut self, id: KeyId, how: Replacement) -> Result<Outcome, Denied> {
        let record = self.record(id)?;
        let class = self.class_of(&record)?;
        let mode = how.mode.resolved(self.permit_rotation(&record, class)?)?;
        match self.check_usable(&record) {
            // Nobody disables the legacy key but a recovery, and the way on from there is a
            // successor: the old key stays disabled.
            Err(Denied::Disabled) if record.legacy => {}
            usable => usable?,
        }
        if matches!(record.credential, Credential::Imported { .. }) {
            return Err(Denied::Imported);
        }
        let before = self.active();
        let mut old = self.without_unused_successor(record)?;
        self.check_key_contained(&old)?;
        let plan = self.successor_of(&old, class)?;
        self.check_contained(&self.reach_of(&old)?, plan.expires_at)?;

        let successor = self.next_id()?;
        old.legacy = false;
        old.succession = Some(Succession {
            successor,
            since: self.now,
            reason: how.reason,
            own_expiry: old.expires_at,
            grace_from_first_use: None,
        });
        let until = self.retire(&mut old, mode);
        let name = old.class.clone();
        let rotated = Action::KeyRotated {
            successor,
            reason: how.reason,
            until,
        };
        self.begin_grace_before(&old);
        self.put(old, LastAction::Rotated, rotated);
        let created = Action::KeyCreated {
            class: name.clone(),
        };
        let successor = self.issue(plan, LastAction::Created, created)?;
        self.check_not_raised(&name, before)?;
        Ok(Outcome::Rotated {
            successor,
            predecessor: id,
            until,
        })
    }

    pub(super) fn finish_rotation(&mut self, id: KeyId) -> Result<Outcome, Denied> {
        let old = self.record(id)?;
        let class = self.class_of(&old)?;
        self.permit_rotation(&old, class)?;
        if old.succession.is_none() {
            return Err(Denied::NotRotating);
        }
        if old.is_live(self.now) {
            self.end(old, Reason::Rotated);
        }
        Ok(Outcome::Done)
    }

    pub(super) fn cancel_rotation(&mut self, id: KeyId) -> Result<Outcome, Denied> {
        let mut old = self.record(id)?;
        let class = self.class_of(&old)?;
        self.permit_rotation(&old, class)?;
        let Some(succession) = old.succession.take() else {
            return Err(Denied::NotRotating);
        };
        self.check_live(&old)?;
        let before = self.active();
        old.expires_at = succession.own_expiry;
        if let Some(mut unused) = self.view.record(succession.successor).cloned() {
            if !unused.awaits_first_use() || unused.succession.is_some() {
                return Err(Denied::SuccessorInUse {
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
        self.check_key_contained(&old)?;
        let class = old.class.clone();
        self.restore(old, succession.successor);
        self.check_not_raised(&class, before)?;
        Ok(Outcome::Done)
    }

    pub(super) fn note_first_use(&mut self, id: KeyId) -> Result<Outcome, Denied> {
        self.permit_host("note a first use")?;
        let mut successor = self.record(id)?;
        let Some(link) = successor.predecessor.as_mut() else {
            return Ok(Outcome::Done);
        };
        if link.first_used_at.is_some() {
            return Ok(Outcome::Done);
        }
        link.first_used_at = Some(self.now);
        let old = self.view.record(link.key).cloned();
        self.put(successor, LastAction::FirstUsed, Action::FirstUsed);
        let Some(mut old) = old.filter(|old| old.is_live(self.now)) else {
            return Ok(Outcome::Done);
        };
        let waiting = old
            .succession
            .as_mut()
            .filter(|succession| succession.successor == id);
        if let Some(grace) = waiting.and_then(|succession| succession.grace_from_first_use.take()) {
            let until = self.retire(&mut old, Retirement::After(grace));
            self.put(old, LastAction::FirstUsed, Action::GraceBegan { until });
        }
        Ok(Outcome::Done)
    }

    /// A key that ends before anyone used it gives its place back to the key it was to replace.
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
            .filter(waits);
        if let Some(mut old) = old.filter(|old| old.is_live(self.now)).cloned() {
            old.expires_at = old.succession.take().and_then(|own| own.own_expiry);
            self.restore(old, ending.id);
        }
    }

    /// Rotating a successor says that somebody holds it: the key that waits for its first use waits
    /// no longer. Otherwise it would wait for ever once the successor has drained unused, beside
    /// all later ones, and the bound on live keys would not hold.
    fn begin_grace_before(&mut self, rotated: &KeyRecord) {
        let link = rotated.predecessor.as_ref();
        let old = link.and_then(|link| self.view.record(link.key)).cloned();
        let Some(mut old) = old.filter(|old| old.is_live(self.now)) else {
            return;
        };
        let waiting = (old.succession.as_mut())
            .filter(|succession| succession.successor == rotated.id)
            .and_then(|succession| succession.grace_from_first_use.take());
        if let Some(grace) = waiting {
            let until = self.retire(&mut old, Retirement::After(grace));
            self.put(old, LastAction::FirstUsed, Action::GraceBegan { until });
        }
    }

    fn restore(&mut self, old: KeyRecord, successor: KeyId) {
        let action = Action::RotationCancelled { successor };
        self.put(old, LastAction::RotationCancelled, action);
    }

    /// Who may rotate the key, and with which grace if none is named.
    fn permit_rotation(&self, record: &KeyRecord, class: &KeyClass) -> Result<Duration, Denied> {
        match class.rotation {
            Rotation::None => Err(Denied::NotRotatable {
                class: record.class.clone(),
            }),
            Rotation::SupportOnly(grace) if self.is_support() => Ok(grace),
            Rotation::SupportOnly(_) => Err(Denied::SupportOnly {
                action: "rotate keys",
            }),
            Rotation::SelfService(grace) => self
                .permit(&class.rotate, Some(record), "rotate keys")
                .map(|()| grace),
        }
    }

    /// A newer rotation cancels an unused successor; any other rotation has to be ended first.
    fn without_unused_successor(&mut self, record: KeyRecord) -> Result<KeyRecord, Denied> {
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
            return Err(Denied::BeingRotated { successor: id });
        };
        let legacy = std::mem::take(&mut unused.legacy);
        self.end(unused, Reason::RotationCancelled);
        let mut old = self.record(record.id)?;
        old.legacy = legacy;
        // An unused successor that had ended by itself gave nothing back.
        if let Some(succession) = old.succession.take() {
            old.expires_at = succession.own_expiry;
        }
        Ok(old)
    }

    /// The successor inherits the rules of the old key and the length of its life, not its end.
    fn successor_of(&self, old: &KeyRecord, class: &KeyClass) -> Result<Plan, Denied> {
        let lifetime = old.expires_at.map(|end| end.since(old.created.at));
        let lifetime = match (lifetime, class.lifetime.max) {
            (Some(own), Some(max)) => Some(own.min(max)),
            (own, max) => own.or(max),
        };
        let (environment, prefix) = environment(&old.class, class, Some(&old.environment))?;
        let spec = KeySpec {
            class: None,
            environment: None,
            name: old.name.clone(),
            description: old.description.clone(),
            purpose: old.purpose.clone(),
            metadata: old.metadata.clone(),
            owner: OwnerSpec::Creator,
            scopes: old.scopes.clone(),
            allowlist: old.allowlist.clone(),
            resource: old.resource.clone(),
            expiry: Expiry::Class,
        };
        Ok(Plan {
            class: old.class.clone(),
            environment,
            prefix,
            spec,
            owner: old.owner.clone(),
            owner_role: old.owner_role.clone(),
            expires_at: lifetime.map(|lifetime| self.now.saturating_add(lifetime)),
            legacy: old.legacy,
            predecessor: Some(Predecessor {
                key: old.id,
                first_used_at: None,
            }),
        })
    }

    /// Sets the old key's end, never later than its own; `None` while it waits for a first use.
    fn retire(&self, old: &mut KeyRecord, mode: Retirement) -> Option<Timestamp> {
        match mode {
            Retirement::After(grace) if grace.is_zero() => {
                let reason = Reason::Rotated;
                old.state = KeyState::Revoked {
                    stamp: self.stamp(),
                    reason,
                };
                Some(self.now)
            }
            Retirement::After(grace) => {
                let end = self.now.saturating_add(grace);
                old.expires_at = Some(old.expires_at.map_or(end, |own| own.min(end)));
                old.expires_at
            }
            Retirement::AfterFirstUse(grace) => {
                if let Some(succession) = &mut old.succession {
                    succession.grace_from_first_use = Some(grace);
                }
                None
            }
        }
    }

    fn next_id(&self) -> Result<KeyId, Denied> {
        let expected = "as much as keys_needed says";
        let missing = Invalid::new("key material", Problem::Form { expected });
        self.material
            .as_slice()
            .first()
            .map(|material| material.id())
            .ok_or(missing.into())
    }
}

/// How the old key of a rotation goes on.
#[derive(Clone, Copy)]
pub(super) enum Retirement {
    After(Duration),
    AfterFirstUse(Duration),
}

impl RotationMode {
    fn resolved(self, class_grace: Duration) -> Result<Retirement, Denied> {
        let retirement = match self {
            Self::Class => Retirement::After(class_grace),
            Self::Immediate => Retirement::After(Duration::ZERO),
            Self::Grace(grace) => Retirement::After(grace),
            Self::OnFirstUse(grace) => Retirement::AfterFirstUse(grace),
        };
        let (Retirement::After(grace) | Retirement::AfterFirstUse(grace)) = retirement;
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
