//! The decision about a key that was looked up, once the clock has been read.
//!
//! Most keys are [accepted](Verifier::accept) without the full check: an equal key has passed it before. All others are
//! [checked in full](Verifier::conclude).

use std::time::Duration;

use subtle::Choice;

use super::Verifier;
use super::grant::Accepted;
use super::need::Need;
use super::snapshot::Snapshot;
use crate::clock::{MicroReading, micros};
use crate::core::check;
use crate::core::checked_time::{Ending, judge_end};
use crate::core::id::KeyId;
use crate::core::policy::Policy;
use crate::core::rejection::VerifyError;
use crate::core::subject::{KeyToVerify, KeyTraits, Lifecycle};
use crate::core::time::Timestamp;
use crate::core::token::Token;
use crate::core::usage::outcome::UseOutcome;
use crate::replica::{Attributes, Hit, IndexLookup, ProvenKey, RowState, View};

/// A reading of the clocks, and the time by which the expiry of a key is checked.
pub(super) type JudgedTime = (MicroReading, Timestamp);

/// The evidence that the index was current at the moment of use.
#[derive(Clone, Copy)]
pub(super) enum Confirmation {
    /// The time at which the last read that confirmed the index was sent; `None` if no read confirms the
    /// index.
    Sent(Option<MicroReading>),
    /// The index was confirmed after the call began.
    DuringCall,
}

/// A presented key that the index found, with its shared attributes.
pub(super) struct ResolvedKey<'v> {
    /// The key's place in the index. `None` if the secret does not match.
    hit: Option<Hit>,
    row: u32,
    attributes: Attributes<'v>,
    /// True if the lookup also computed a digest under a pepper other than the current one.
    under_other: bool,
}

impl Verifier {
    /// Accepts a key without the full check, if an equal key has passed it. Most keys are accepted here. `None` if the
    /// key must be checked in full.
    ///
    /// The slot proves the key enabled, used before, and not expired until `end`. The kind met the need before, and it
    /// [suffices](check::depends_on_kind_alone). What is left are the conditions that differ between keys of one kind,
    /// or from one moment to the next: the tenant of the need, the confirmation, the expiry, and the prefix.
    #[inline(always)]
    pub(super) fn accept(
        &self,
        snapshot: &Snapshot,
        token: &Token<'_>,
        key: &ProvenKey,
        (confirmed, (reading, now)): (Confirmation, JudgedTime),
        need: &Need,
    ) -> Option<Accepted> {
        let view = &*snapshot.view;
        let kind = snapshot.kind(key.attribute_ids.traits, key.status)?;
        let Confirmation::Sent(Some(sent)) = confirmed else {
            return None;
        };
        let prefix = view.traits(key.attribute_ids.traits)?.prefix.as_ref()?;
        let latest = now.max(view.index().newest());
        let accepted = need.tenant().is_none()
            && need.met().has(kind.sufficing())
            && reading.is_within(snapshot.shortest_bound, sent)
            && key.end.is_none_or(|end| latest < end)
            && prefix.as_str().as_bytes() == token.prefix_bytes();
        if !accepted {
            return None;
        }
        if need.counts() {
            view.count(key.row, now);
        }
        Some(Accepted {
            id: token.id(),
            row: key.row,
            attribute_ids: key.attribute_ids,
            status: key.status,
            at: now,
            address: need.address(),
            reached: None,
        })
    }

    /// Decides about a key that was looked up before the clock was read, and counts a refusal.
    #[inline(always)]
    pub(super) fn conclude(
        &self,
        snapshot: &Snapshot,
        token: Option<&Token<'_>>,
        resolved: Result<ResolvedKey<'_>, VerifyError>,
        (confirmed, read): (Confirmation, JudgedTime),
        need: &Need,
    ) -> Result<Accepted, VerifyError> {
        let row = resolved.as_ref().map_or(0, |resolved| resolved.row);
        let verdict = resolved.and_then(|resolved| {
            self.judge_key(snapshot, token, &resolved, (confirmed, read), need)
        });
        if let Err(refusal) = &verdict
            && need.counts()
        {
            // A layer that adds the address asks again.
            let asks_again = need.probes() && matches!(refusal, VerifyError::AddressUnknown { .. });
            let outcome = counted_outcome(refusal).filter(|_| !asks_again);
            outcome.inspect(|outcome| snapshot.view.count_refusal(row, *outcome, read.1));
        }
        verdict
    }

    #[inline(always)]
    fn judge_key(
        &self,
        snapshot: &Snapshot,
        token: Option<&Token<'_>>,
        resolved: &ResolvedKey<'_>,
        (confirmed, (reading, now)): (Confirmation, JudgedTime),
        need: &Need,
    ) -> Result<Accepted, VerifyError> {
        let view = &*snapshot.view;
        let ResolvedKey {
            hit,
            row: _,
            attributes,
            under_other,
        } = resolved;
        let policy = snapshot
            .policies
            .of_lazy(|| &attributes.key_owner.get().tenant);
        let newest = view.index().newest();
        check_fresh(policy, attributes.traits, confirmed, reading)?;
        let Some(hit) = hit else {
            return Err(self.wrong_secret(view, token, attributes));
        };
        // A descendant tenant may refuse the key: the tenant may be closed, may have removed the owner, or
        // may have lowered the owner's role.
        let reached = need
            .tenant()
            .and_then(|tenant| view.status_in(attributes, tenant));
        let (status, kind) = match &reached {
            Some(reached) => (&**reached, None),
            None => (
                attributes.status,
                snapshot.kind(hit.attribute_ids.traits, attributes.status_id),
            ),
        };
        let lifecycle = match view.state_for(hit, status, now.max(newest)) {
            RowState::Key(lifecycle) => lifecycle,
            RowState::Removed => return Err(VerifyError::Unknown),
            RowState::Corrupt => return Err(VerifyError::Corrupt { key: hit.id }),
        };
        let mut judged = Ok(now);
        if lifecycle
            .expires_at
            .is_some_and(|end| now < end && end <= newest)
        {
            let floor = view.index().floor(&attributes.key_owner.get().tenant);
            judged = self.judge_end((hit.id, &lifecycle), floor, (now, reading));
        }
        let subject = KeyToVerify {
            id: hit.id,
            owner_source: &attributes.key_owner,
            persons: attributes.persons,
            traits: attributes.traits,
            lifecycle: &lifecycle,
        };
        let passed =
            kind.is_some_and(|kind| need.met().has(kind) || need.met().has(kind.sufficing()));
        check::check_subject(
            subject,
            // The lookup compared 128 bits of the digest in constant time, which proves the secret.
            (Choice::from(1), token.map(Token::prefix_bytes)),
            policy,
            (status, passed),
            need.conditions(),
            *judged.as_ref().unwrap_or(&now),
        )?;
        if let Some(kind) = kind.filter(|_| !passed) {
            let bound = policy.propagation(&attributes.traits.class).bound;
            let suffices = check::depends_on_kind_alone(attributes.traits, status);
            need.met().note(match suffices && !bound.is_zero() {
                true => kind.sufficing(),
                false => kind,
            });
        }
        judged?;
        if let (true, Some(token)) = (*under_other, token) {
            self.notice_pepper(token, subject);
        }
        if need.counts() {
            view.count(hit.row(), now);
        }
        if lifecycle.awaits_first_use {
            view.note_first_use();
        }
        Ok(Accepted {
            id: hit.id,
            row: hit.row(),
            attribute_ids: hit.attribute_ids,
            status: attributes.status_id,
            at: now,
            address: need.address(),
            reached,
        })
    }

    /// Decides about a key that expires between the current time and the store's newest commit. At that
    /// commit's time the key has already expired. The argument `floor` is the newest commit time of the key's
    /// own tenant. Returns the time at which to check the key.
    #[cold]
    pub(super) fn judge_end(
        &self,
        (key, lifecycle): (KeyId, &Lifecycle),
        floor: Option<Timestamp>,
        (now, reading): (Timestamp, MicroReading),
    ) -> Result<Timestamp, VerifyError> {
        let (time, end) = (&self.clock, lifecycle.expires_at.unwrap_or(now));
        let confirmed = || time.confirms(now, reading.monotonic);
        match judge_end(end, now, floor, confirmed, time.allowance()) {
            Ending::Alive => Ok(now),
            Ending::Ended => Ok(end),
            Ending::Unsure => {
                let floor = floor.unwrap_or(end);
                Err(VerifyError::ClockUnsure { key, now, floor })
            }
        }
    }

    /// Returns the rejection of a secret that does not match, or of a key whose pepper is missing.
    fn wrong_secret(
        &self,
        view: &View,
        token: Option<&Token<'_>>,
        attributes: &Attributes<'_>,
    ) -> VerifyError {
        let missing = |attributes: &Attributes<'_>| {
            let pepper = attributes.traits.pepper.as_ref()?;
            self.peppers.live(pepper).is_none().then(|| pepper.clone())
        };
        // The first check may use the attributes of another key with the same hash. Only if that check finds
        // a missing pepper, which is rare, a second check searches the index by id.
        let pepper = missing(attributes).and_then(|_| missing(&view.attributes_of(token?.id())?));
        match pepper {
            Some(pepper) => {
                self.log_missing_pepper(&pepper, token.map(Token::id));
                VerifyError::UnknownPepper { pepper }
            }
            None => VerifyError::WrongSecret,
        }
    }
}

/// Returns the outcome under which a refusal is noted. An unknown key is noted like a wrong secret, so that it takes as
/// long, and counts for nobody.
const fn counted_outcome(refusal: &VerifyError) -> Option<UseOutcome> {
    match refusal {
        VerifyError::Unknown => Some(UseOutcome::WrongSecret),
        refusal => UseOutcome::of_refusal(refusal),
    }
}

/// Checks that the index was confirmed within the staleness bound of the key's class.
#[inline(always)]
pub(super) fn check_fresh(
    policy: &Policy,
    traits: &KeyTraits,
    confirmed: Confirmation,
    reading: MicroReading,
) -> Result<(), VerifyError> {
    let Confirmation::Sent(sent) = confirmed else {
        return Ok(());
    };
    let bound = policy.propagation(&traits.class).bound;
    if bound.is_zero() {
        return Err(VerifyError::NeedsFresh);
    }
    if sent.is_some_and(|sent| reading.is_within(micros(bound), sent)) {
        return Ok(());
    }
    let age = sent.map_or(Duration::MAX, |sent| {
        reading.to_reading().since(sent.to_reading())
    });
    Err(VerifyError::Stale { age, bound })
}

/// Turns a lookup's result into a key with its shared attributes, or into an error.
#[inline(always)]
pub(super) fn resolve(
    view: &View,
    answer: IndexLookup,
    under_other: bool,
) -> Result<ResolvedKey<'_>, VerifyError> {
    let (hit, row, attributes) = match answer {
        IndexLookup::Hit(hit) => {
            let attributes = view.attributes(hit.attribute_ids);
            (
                Some(hit),
                hit.row(),
                attributes.ok_or(VerifyError::Corrupt { key: hit.id })?,
            )
        }
        IndexLookup::WrongSecret(row, attribute_ids) => (
            None,
            row,
            view.attributes(attribute_ids)
                .ok_or(VerifyError::WrongSecret)?,
        ),
        IndexLookup::Corrupt(key) => return Err(VerifyError::Corrupt { key }),
        IndexLookup::Removed | IndexLookup::Unknown => return Err(VerifyError::Unknown),
    };
    Ok(ResolvedKey {
        hit,
        row,
        attributes,
        under_other,
    })
}
