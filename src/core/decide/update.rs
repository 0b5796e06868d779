//! Keys that change: what they are called, may do, how long they live, under which pepper they stand.

use super::Work;
use super::issue::check_ceiling;
use crate::core::audit::{Action, FieldChange};
use crate::core::authority::Effect;
use crate::core::command::{Denied, Outcome, UpdateSpec};
use crate::core::hole;
use crate::core::id::KeyId;
use crate::core::reach::Reach;
use crate::core::record::{Credential, KeyRecord, LastAction};
use crate::core::secret::Digest;
use crate::core::text::PepperId;

impl Work<'_> {
    pub(super) fn update(&mut self, id: KeyId, change: &UpdateSpec) -> Result<Outcome, Denied> {
        let before = self.record(id)?;
        let (action, narrows) = ("update keys", Effect::Narrows);
        let class = self.permit_class(&before, |class| &class.update, action, narrows)?;
        self.check_live(&before)?;

        let UpdateSpec {
            name,
            description,
            purpose,
            metadata,
            scopes,
            allowlist,
            expiry,
        } = change.clone();
        let mut after = before.clone();
        after.name = name.unwrap_or(after.name);
        after.description = description.unwrap_or(after.description);
        after.purpose = purpose.unwrap_or(after.purpose);
        after.metadata = metadata.unwrap_or(after.metadata);
        after.scopes = scopes.unwrap_or(after.scopes);
        after.allowlist = allowlist.unwrap_or(after.allowlist);
        if let Some(expiry) = expiry {
            if let Some(succession) = &before.succession {
                // Its end is the rotation's to say; a later one would lengthen the old key's life.
                return Err(Denied::BeingRotated {
                    successor: succession.successor,
                });
            }
            after.expires_at = self.expiry(class, expiry, before.created.at)?;
        }
        let narrowed =
            !after.scopes.contains(&before.scopes) || after.allowlist != before.allowlist;
        if before.legacy && narrowed {
            // Without scopes, or without a network, it would be as good as disabled.
            return Err(Denied::LegacyKey { action: "narrowed" });
        }
        let shortened = match (after.expires_at, before.expires_at) {
            (Some(after), Some(before)) => after < before,
            (after, before) => after.is_some() && before.is_none(),
        };
        if before.legacy && shortened {
            let action = "given an earlier end";
            return Err(Denied::LegacyKey { action });
        }
        if self.policy.spec().purpose_required && after.purpose.is_none() {
            return Err(Denied::PurposeRequired);
        }
        let more_scopes = !before.scopes.contains(&after.scopes);
        if more_scopes {
            check_ceiling(&after.class, class, &after.scopes)?;
        }
        // Whatever is within the key as it was narrows it; all else is handed out.
        let widened = self.reach_of(&after)?.excess(&self.reach_of(&before)?);
        if more_scopes || widened.is_some() {
            self.check_time()?;
            self.permit(&class.update, Some(&before), action, Effect::Widens)?;
            let reach = self.reach_of(&after)?;
            // What is not allowed today is refused, not kept for a better day.
            let scopes = match more_scopes {
                true => after.scopes.clone(),
                false => reach.scopes.clone(),
            };
            let mut reach = Reach { scopes, ..reach };
            if let Some(limits) = self.caller.limits().filter(|_| hole::is_open("update")) {
                reach.role = limits.reach.role.clone();
            }
            self.caller.check_within(&reach)?;
            // Whoever widens a key may hold its secret: what bounds them bounds it from now on.
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
        Ok(Outcome::Done)
    }

    pub(super) fn redigest(
        &mut self,
        id: KeyId,
        from: &PepperId,
        to: &PepperId,
        (replaces, digest): (Digest, Digest),
    ) -> Result<Outcome, Denied> {
        self.permit_application("renew digests")?;
        let mut record = self.record(id)?;
        self.check_usable(&record)?;
        let (under, stands) = match &record.credential {
            Credential::Peppered { pepper, digest } => (pepper.clone(), *digest),
            Credential::Imported { .. } => return Err(Denied::Imported),
        };
        if under == *to {
            return Ok(Outcome::Done);
        }
        if under != *from || stands != replaces || *to != *self.peppers.current().id() {
            return Err(Denied::StaleRedigest { pepper: to.clone() });
        }
        record.credential = Credential::Peppered {
            pepper: to.clone(),
            digest,
        };
        let action = Action::KeyRedigested { pepper: to.clone() };
        self.put(record, LastAction::Redigested, action);
        Ok(Outcome::Done)
    }
}

/// What changed, as people read it. Free text may hold what does not belong in a log, so that only
/// its length is told.
fn changes(before: &KeyRecord, after: &KeyRecord) -> Vec<FieldChange> {
    let length =
        |text: Option<&str>| text.map_or("none".to_owned(), |t| format!("{} bytes", t.len()));
    let expiry = |record: &KeyRecord| {
        record
            .expires_at
            .map_or(FieldChange::NEVER.to_owned(), |end| end.to_string())
    };
    let metadata = |record: &KeyRecord| format!("{} pairs", record.metadata.iter().len());
    let networks = |record: &KeyRecord| {
        let networks: Vec<_> = record.allowlist.iter().map(ToString::to_string).collect();
        networks.join(" ")
    };
    let description =
        |record: &KeyRecord| length(record.description.as_ref().map(|text| text.as_str()));
    let purpose = |record: &KeyRecord| length(record.purpose.as_ref().map(|text| text.as_str()));
    let told = [
        (
            "name",
            before.name != after.name,
            before.name.to_string(),
            after.name.to_string(),
        ),
        (
            "description",
            before.description != after.description,
            description(before),
            description(after),
        ),
        (
            "purpose",
            before.purpose != after.purpose,
            purpose(before),
            purpose(after),
        ),
        (
            "metadata",
            before.metadata != after.metadata,
            metadata(before),
            metadata(after),
        ),
        (
            FieldChange::SCOPES,
            before.scopes != after.scopes,
            before.scopes.to_string(),
            after.scopes.to_string(),
        ),
        (
            FieldChange::ADDRESSES,
            before.allowlist != after.allowlist,
            networks(before),
            networks(after),
        ),
        (
            FieldChange::EXPIRES,
            before.expires_at != after.expires_at,
            expiry(before),
            expiry(after),
        ),
    ];
    let changed = told.into_iter().filter(|(_, changed, ..)| *changed);
    changed
        .map(|(field, _, before, after)| FieldChange {
            field: field.to_owned(),
            before,
            after,
        })
        .collect()
}
