//! Verifying against the store: for keys that must see the latest state, keys not known here, and,
//! where a deployment chose so, keys whose replica is past its bound.
//!
//! Callers who ask for the same key at once share a read. A grant may come from a read that began
//! before the call, if that is no longer ago than the bound of the key's class; a refusal never: the
//! key may have been created in between. No refusal is remembered.

mod flights;
mod gate;
mod read;

use std::hint::black_box;

use subtle::{Choice, ConstantTimeEq};

pub(super) use self::flights::Flights;
use self::flights::{Fetched, Source};
pub use self::gate::ReadThrough;
use self::read::Found;
use super::grant::Taken;
use super::{Claim, Confirmation, Grant, Verifier, check_fresh, publishable_half, together};
use crate::core::check;
use crate::core::need::Need;
use crate::core::owner::Standing;
use crate::core::record::{Credential, KeyRecord};
use crate::core::rejection::Rejection;
use crate::core::secret::Digest;
use crate::core::subject::{Course, Holder, Shape, Subject};
use crate::core::time::Timestamp;
use crate::core::token::Token;
use crate::observe;
use crate::replica::{Answer, Known};
use crate::store::Locator;

/// What [`verify_or_fetch`](crate::Keyward::verify_or_fetch) does with a key that is known here once
/// the bound of its class is passed without a confirmation. `verify` refuses in any case.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum PastBound {
    /// Refuses it as [`Stale`](Rejection::Stale).
    #[default]
    Refuse,
    /// Reads it through the store, within the bounds of [`ReadThrough`]: for a store whose keys can
    /// still be read while its feed cannot. A busy service needs a rate that fits all of its
    /// verifications.
    ReadThrough,
}

/// Which reads may grant a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Sight {
    /// One that began before the call, too.
    WithinBound,
    /// Only one that began after it.
    AfterCall,
}

/// How far a verification gets without the store.
enum Here {
    Settled(Result<Grant, Rejection>),
    /// By which reads the store may answer, and whether a holder of a known key asks.
    Ask(Sight, bool),
}

impl Verifier {
    /// Verifies against the store's latest state: whatever returned before this call began is seen.
    /// Callers who ask for the same key at once share a read that began after all of their calls.
    ///
    /// # Errors
    ///
    /// [`Rejection`]; [`StoreUnavailable`](Rejection::StoreUnavailable) if the store did not answer,
    /// or if more than [`ReadThrough`] allows ask for keys that they do not hold, as far as is known
    /// here.
    pub async fn verify_fresh(
        &self,
        presented: impl AsRef<[u8]> + Send,
        need: &Need,
    ) -> Result<Grant, Rejection> {
        let presented = presented.as_ref();
        let holder = self.is_held(presented);
        self.read_through(presented, need, Sight::AfterCall, holder)
            .await
    }

    /// Verifies, and asks the store where the replica cannot tell: for a key that it does not know
    /// yet (rule A1-25), for classes that must see the latest state, and past the bound if
    /// [`PastBound`] says so.
    ///
    /// Two things wait for the next sync: what is no token of ours is refused by a node that has never
    /// heard of an imported key, and so is a secret that replaced a lost one under the same id.
    ///
    /// # Errors
    ///
    /// [`Rejection`]. A refusal is never remembered. Beyond the bounds of [`ReadThrough`] it is
    /// [`StoreUnavailable`](Rejection::StoreUnavailable).
    pub async fn verify_or_fetch(
        &self,
        presented: impl AsRef<[u8]> + Send,
        need: &Need,
    ) -> Result<Grant, Rejection> {
        let presented = presented.as_ref();
        match self.verify_here(presented, need) {
            Here::Settled(verdict) => verdict,
            Here::Ask(sight, holder) => self.read_through(presented, need, sight, holder).await,
        }
    }

    /// Verifies a pair as [`verify_pair`](Self::verify_pair) does, and asks the store where this
    /// node cannot tell, as [`verify_or_fetch`](Self::verify_or_fetch) does.
    ///
    /// # Errors
    ///
    /// As those two.
    pub async fn verify_pair_or_fetch(
        &self,
        other: impl AsRef<[u8]> + Send,
        secret: impl AsRef<[u8]> + Send,
        need: &Need,
    ) -> Result<Grant, Rejection> {
        let (other, secret) = (other.as_ref(), secret.as_ref());
        let grant = self.verify_or_fetch(secret, need).await?;
        match publishable_half(&grant, other)? {
            None => Ok(grant),
            Some(text) => {
                let need = need.of_publishable_half();
                together(grant, self.verify_or_fetch(text, &need).await)
            }
        }
    }

    /// What [`verify_or_fetch`](Self::verify_or_fetch) answers if it need not ask the store.
    #[cfg(feature = "http")]
    pub(crate) fn verify_unasked(
        &self,
        presented: &[u8],
        need: &Need,
    ) -> Option<Result<Grant, Rejection>> {
        match self.verify_here(presented, need) {
            Here::Settled(verdict) => Some(verdict),
            Here::Ask(..) => None,
        }
    }

    /// What [`verify_pair_or_fetch`](Self::verify_pair_or_fetch) answers if it need not ask the store.
    #[cfg(feature = "http")]
    pub(crate) fn verify_pair_unasked(
        &self,
        other: &[u8],
        secret: &[u8],
        need: &Need,
    ) -> Option<Result<Grant, Rejection>> {
        let grant = match self.verify_unasked(secret, need)? {
            Ok(grant) => grant,
            refused => return Some(refused),
        };
        Some(match publishable_half(&grant, other) {
            Ok(None) => Ok(grant),
            Ok(Some(text)) => {
                let need = need.of_publishable_half();
                together(grant, self.verify_unasked(text.as_bytes(), &need)?)
            }
            Err(rejection) => Err(rejection),
        })
    }

    /// Verifies as far as no store is needed, and tells what is left to ask it.
    fn verify_here(&self, presented: &[u8], need: &Need) -> Here {
        match self.verify(presented, need) {
            // A removed key never comes back: there is nothing to ask for.
            Err(Rejection::Unknown) if self.known(presented) == Some(Known::Removed) => {
                Here::Settled(Err(Rejection::Unknown))
            }
            // The index tells keys apart by 32 bits of a hash until a secret matches: here it matters.
            Err(Rejection::WrongSecret) if self.known(presented).is_some() => {
                Here::Settled(Err(Rejection::WrongSecret))
            }
            Err(Rejection::Unknown | Rejection::WrongSecret) => {
                Here::Ask(Sight::WithinBound, false)
            }
            Err(Rejection::NeedsFresh) => Here::Ask(Sight::AfterCall, self.is_held(presented)),
            Err(Rejection::Stale { .. }) if self.past_bound == PastBound::ReadThrough => {
                Here::Ask(Sight::AfterCall, false)
            }
            verdict => Here::Settled(verdict),
        }
    }

    async fn read_through(
        &self,
        presented: &[u8],
        need: &Need,
        sight: Sight,
        holder: bool,
    ) -> Result<Grant, Rejection> {
        let began = self.flights.turn();
        // The store may hold imported keys that nobody here has heard of.
        let claim = Claim::of(presented)?;
        let locator = match &claim {
            Claim::Token(token) => Locator::Id(token.id()),
            Claim::Foreign(digest, _) => Locator::Imported(*digest),
        };
        let source = Source {
            store: &self.store,
            replica: &self.replica,
            clock: &self.clock,
        };
        let join = || self.flights.join(locator, &source, holder);
        let flight = join().ok_or_else(too_many)?;
        let fetched = flight.end().await;
        if fetched.turn > began {
            return self.judge(&claim, need, &fetched, Sight::AfterCall).await;
        }
        if sight == Sight::WithinBound
            && let Ok(grant) = self.judge(&claim, need, &fetched, sight).await
        {
            return Ok(grant);
        }
        let fetched = flight.next(join).await.ok_or_else(too_many)?;
        debug_assert!(fetched.turn > began, "a read that began after this call");
        self.judge(&claim, need, &fetched, Sight::AfterCall).await
    }

    async fn judge(
        &self,
        claim: &Claim<'_>,
        need: &Need,
        fetched: &Fetched,
        sight: Sight,
    ) -> Result<Grant, Rejection> {
        match &fetched.found {
            Ok(Found::Key(record, standing, floor)) => {
                let confirmed = Confirmation::Sent(Some(fetched.sent));
                let same = self.compare(claim, &record.credential)?;
                // Only for a holder of the secret: it asks the store once more.
                let reached = match need.tenant() {
                    Some(tenant) if bool::from(same) => {
                        read::standing_in(&*self.store, record, standing, tenant).await
                    }
                    _ => Ok(None),
                };
                let reached = reached.map_err(|_| Rejection::StoreUnavailable)?;
                let standing = reached.as_ref().unwrap_or(standing);
                let record = KeyRecord::clone(record);
                let known = (standing, *floor);
                self.judge_record(claim, (record, same), known, need, (confirmed, sight))
            }
            Ok(Found::Corrupt(key)) => Err(Rejection::Corrupt { key: *key }),
            Ok(Found::Nothing) => Err(self.unknown(claim)),
            Err(_) => Err(Rejection::StoreUnavailable),
        }
    }

    /// Judges a key by its record.
    fn judge_record(
        &self,
        claim: &Claim<'_>,
        (record, same): (KeyRecord, Choice),
        (standing, floor): (&Standing, Option<Timestamp>),
        need: &Need,
        (confirmed, sight): (Confirmation, Sight),
    ) -> Result<Grant, Rejection> {
        let (id, course) = (record.id, Course::of(&record));
        let (shape, holder) = (Shape::of(&record), Holder::of(&record));
        let pinned = self.pinned();
        let policy = pinned.policies.of(&holder.tenant);
        let (reading, now) = self.clock.judged();
        let newest = pinned.view.index().newest().max(floor.unwrap_or(now));
        // An answer that was long on its way is as old as its question.
        match check_fresh(policy, &shape, confirmed, reading) {
            Err(Rejection::NeedsFresh) if sight == Sight::AfterCall => {}
            verdict => verdict?,
        }
        let subject = Subject {
            id,
            whose: &holder,
            persons: holder.is_person(),
            shape: &shape,
            course,
        };
        let presented = (same, claim.token().map(Token::prefix_bytes));
        let mut judged = Ok(now);
        if course
            .expires_at
            .is_some_and(|end| now < end && end <= newest)
        {
            let known = pinned.view.index().floor(&holder.tenant).max(floor);
            judged = self.judge_end((id, &course), known, (now, reading));
        }
        let at = *judged.as_ref().unwrap_or(&now);
        check::check_subject(subject, presented, policy, (standing, None), need, at)?;
        judged?;
        if let Some(token) = claim.token() {
            self.notice_pepper(token, subject);
        }
        pinned.view.count_id(id, now);
        if course.awaits_first_use {
            pinned.view.note_first_use();
        }
        let taken = Taken {
            shape,
            holder,
            course,
            standing: standing.clone(),
            policies: pinned.policies.clone(),
        };
        Ok(Grant::of_record(id, taken, now, need.address()))
    }

    /// Digests what was presented in the way that `credential` was made, and compares.
    fn compare(&self, claim: &Claim<'_>, credential: &Credential) -> Result<Choice, Rejection> {
        Ok(match (credential, claim) {
            (Credential::Imported { digest, .. }, Claim::Foreign(presented, _)) => {
                digest.ct_eq(presented)
            }
            (Credential::Peppered { pepper, digest }, Claim::Token(token)) => {
                let Some(pepper) = self.peppers.live(pepper) else {
                    tracing::error!(%pepper, key = %token.id(), "pepper is not in the ring");
                    return Err(Rejection::UnknownPepper {
                        pepper: pepper.clone(),
                    });
                };
                digest.ct_eq(&pepper.digest(token.id_and_secret()))
            }
            (Credential::Imported { .. }, Claim::Token(..))
            | (Credential::Peppered { .. }, Claim::Foreign(..)) => Choice::from(0),
        })
    }

    /// What an unknown key is told, after the same work as for a known one (trap 6).
    fn unknown(&self, claim: &Claim<'_>) -> Rejection {
        match claim {
            Claim::Token(token) => {
                let digest = self.peppers.current().digest(token.id_and_secret());
                black_box(digest.ct_eq(&Digest::from_bytes([0; 32])));
                Rejection::Unknown
            }
            // Where there are imported keys, it may be one that was not heard of here yet.
            Claim::Foreign(..) if self.pinned().view.index().has_imported() => Rejection::Unknown,
            Claim::Foreign(_, error) => (*error).into(),
        }
    }

    /// What is known here of the key that may have been presented. Compares no secret.
    fn known(&self, presented: &[u8]) -> Option<Known> {
        let view = &self.pinned().view;
        match Claim::of(presented).ok()? {
            Claim::Token(token) => view.known(token.id()),
            Claim::Foreign(digest, _) => view.known_import(&digest),
        }
    }

    /// Whether it is the secret of a key that is known here, whatever became of that since.
    fn is_held(&self, presented: &[u8]) -> bool {
        let view = &self.pinned().view;
        let answer = match Claim::of(presented) {
            Ok(Claim::Token(token)) => {
                let begun = view.begin(token.id());
                self.look_up(view, &token, begun).0
            }
            Ok(Claim::Foreign(digest, _)) => view.imported(&digest),
            Err(_) => return false,
        };
        matches!(answer, Answer::Hit(_))
    }
}

/// The bounds of [`ReadThrough`] are reached.
fn too_many() -> Rejection {
    observe::read_through("refused");
    Rejection::StoreUnavailable
}
