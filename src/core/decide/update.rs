//! Commands that update a key's fields, or replace its digest by a digest under another pepper.

use super::Work;
use super::issue::check_ceiling;
use crate::core::audit::{Action, FieldChange};
use crate::core::authority::Effect;
use crate::core::command::{CommandOutcome, Denial, UpdateKey};
use crate::core::hole;
use crate::core::id::KeyId;
use crate::core::reach::EffectiveReach;
use crate::core::record::{Credential, KeyRecord, LastAction};
use crate::core::secret::Digest;
use crate::core::text::PepperId;

impl Work<'_> {
    pub(super) fn update(
        &mut self,
        id: KeyId,
        change: &UpdateKey,
    ) -> Result<CommandOutcome, Denial> {
        let before = self.record(id)?;
        let (action, narrows) = ("update keys", Effect::Narrows);
        let class = self.permit_class(&before, |class| &class.update, action, narrows)?;
        self.check_live(&before)?;

        let UpdateKey {
            name,
            description,
            purpose,
            metadata,
            scopes,
            allowlist,
            expiry,
            invalid: _,
        } = change.clone();
        let mut after = before.clone();
        after.facts.name = name.unwrap_or(after.facts.name);
        after.facts.description = description.unwrap_or(after.facts.description);
        after.facts.purpose = purpose.unwrap_or(after.facts.purpose);
        after.facts.metadata = metadata.unwrap_or(after.facts.metadata);
        after.facts.scopes = scopes.unwrap_or(after.facts.scopes);
        after.facts.allowlist = allowlist.unwrap_or(after.facts.allowlist);
        if let Some(expiry) = expiry {
            if let Some(succession) = &before.succession {
                // The rotation determines when this key ends. An update must not extend that time.
                return Err(Denial::BeingRotated {
                    successor: succession.successor,
                });
            }
            after.expires_at = self.expiry(class, expiry, before.created.at)?;
        }
        let narrowed =
            !after.scopes.contains(&before.scopes) || after.allowlist != before.allowlist;
        if before.legacy && narrowed {
            // Removing scopes or networks could make the legacy key useless, which would have the effect of
            // disabling it.
            return Err(Denial::LegacyKey { action: "narrowed" });
        }
        let shortened = match (after.expires_at, before.expires_at) {
            (Some(after), Some(before)) => after < before,
            (after, before) => after.is_some() && before.is_none(),
        };
        if before.legacy && shortened {
            let action = "given an earlier end";
            return Err(Denial::LegacyKey { action });
        }
        if self.policy.spec().purpose_required && after.purpose.is_none() {
            return Err(Denial::PurposeRequired);
        }
        let more_scopes = !before.scopes.contains(&after.scopes);
        if more_scopes {
            check_ceiling(&after.class, class, &after.scopes)?;
        }
        // The update narrows the key if the new reach is within the old reach. Every other update widens the
        // key, and needs more permissions.
        let widened = self.reach_of(&after)?.excess(&self.reach_of(&before)?);
        if more_scopes || widened.is_some() {
            self.check_time()?;
            self.permit(&class.update, Some(&before), action, Effect::Widens)?;
            let reach = self.reach_of(&after)?;
            // Compares the requested scopes, even if roles narrow them today: the roles may be raised later.
            let scopes = match more_scopes {
                true => after.scopes.clone(),
                false => reach.scopes.clone(),
            };
            let mut reach = EffectiveReach { scopes, ..reach };
            if let Some(limits) = self.caller.limits().filter(|_| hole::is_open("update")) {
                reach.role = limits.reach.role.clone();
            }
            self.caller.check_within(&reach)?;
            // The caller may have the secret of the widened key. From now on, the caller's roles limit the
            // key too.
            let received = self.bound_at_receipt(&after.owner, None)?;
            let received = received.into_iter();
            let received = received.filter(|_| !hole::is_open("update"));
            after.bound.extend(received);
            after.manages |= more_scopes;
            after.makers = self.makers(&after.makers)?;
        }
        after.manages &= self.is_whole(&after);
        let changes = changes(&before, &after);
        if !changes.is_empty() {
            self.put(after, LastAction::Updated, Action::KeyUpdated { changes });
        }
        Ok(CommandOutcome::Done)
    }

    pub(super) fn redigest(
        &mut self,
        id: KeyId,
        from: &PepperId,
        to: &PepperId,
        (replaces, digest): (Digest, Digest),
    ) -> Result<CommandOutcome, Denial> {
        self.permit_application("renew digests")?;
        let mut record = self.record(id)?;
        self.check_usable(&record)?;
        let (under, stands) = match &record.credential {
            Credential::Peppered { pepper, digest } => (pepper.clone(), *digest),
            Credential::Imported { .. } => {
                return Err(Denial::StaleRedigest { pepper: to.clone() });
            }
        };
        if under == *to {
            return Ok(CommandOutcome::Done);
        }
        let is_due = self.peppers.is_outdated(from) && *to == *self.peppers.current().id();
        if under != *from || stands != replaces || !is_due {
            return Err(Denial::StaleRedigest { pepper: to.clone() });
        }
        record.credential = Credential::Peppered {
            pepper: to.clone(),
            digest,
        };
        let action = Action::KeyRedigested { pepper: to.clone() };
        self.put(record, LastAction::Redigested, action);
        Ok(CommandOutcome::Done)
    }
}

/// Returns a change for each field that differs.
fn changes(before: &KeyRecord, after: &KeyRecord) -> Vec<FieldChange> {
    let description = |key: &KeyRecord| {
        key.description
            .as_ref()
            .map(|text| count(text.as_str().len()))
    };
    let purpose = |key: &KeyRecord| key.purpose.as_ref().map(|text| count(text.as_str().len()));
    let changes = [
        (before.name != after.name).then(|| FieldChange::Name {
            before: before.name.clone(),
            after: after.name.clone(),
        }),
        (before.description != after.description).then(|| FieldChange::Description {
            bytes_before: description(before),
            bytes_after: description(after),
        }),
        (before.purpose != after.purpose).then(|| FieldChange::Purpose {
            bytes_before: purpose(before),
            bytes_after: purpose(after),
        }),
        (before.metadata != after.metadata).then(|| FieldChange::Metadata {
            pairs_before: count(before.metadata.iter().len()),
            pairs_after: count(after.metadata.iter().len()),
        }),
        (before.scopes != after.scopes).then(|| FieldChange::Scopes {
            before: before.scopes.clone(),
            after: after.scopes.clone(),
        }),
        (before.allowlist != after.allowlist).then(|| FieldChange::Allowlist {
            before: before.allowlist.clone(),
            after: after.allowlist.clone(),
        }),
        (before.expires_at != after.expires_at).then_some(FieldChange::ExpiresAt {
            before: before.expires_at,
            after: after.expires_at,
        }),
    ];
    changes.into_iter().flatten().collect()
}

/// Converts a length to 32 bits. The length always fits, because the limits on a purpose, a description and
/// metadata are far lower.
fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
