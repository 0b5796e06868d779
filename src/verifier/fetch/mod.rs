//! Verification against the store, for three kinds of keys. These are keys that must be checked against the
//! latest state, keys that this node does not know, and, if the deployment chose so, keys past their
//! staleness bound.
//!
//! Concurrent callers with the same key share a read. A grant may come from a read that began
//! before the call, if it is within the staleness bound of the key's class. A refusal may not: the
//! key may have been created in between. No refusal is cached.

mod flights;
mod gate;
mod read;

use std::hint::black_box;

use subtle::{Choice, ConstantTimeEq};

pub(super) use self::flights::Flights;
use self::flights::{Fetched, Source};
pub use self::gate::ReadThroughLimits;
use self::read::Found;
use super::grant::Taken;
use super::{
    Claim, Confirmation, Credentials, Grant, Verifier, check_fresh, check_pair, publishable_half,
};
use crate::core::check;
use crate::core::need::Need;
use crate::core::owner::OwnerStatus;
use crate::core::record::{Credential, KeyRecord};
use crate::core::rejection::VerifyError;
use crate::core::secret::Digest;
use crate::core::subject::{Course, Holder, Shape, Subject};
use crate::core::time::Timestamp;
use crate::core::token::Token;
use crate::observe;
use crate::replica::{Answer, Known};
use crate::store::Locator;

/// The way [`verify_or_fetch`](crate::Keyward::verify_or_fetch) treats a known key once the staleness bound
/// of its class is passed. `verify` always refuses such a key.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum OnStale {
    /// Refuses the key as [`Stale`](VerifyError::Stale).
    #[default]
    Reject,
    /// Reads the key through the store, within the limits of [`ReadThroughLimits`], for a store whose
    /// keys can be read while its feed cannot. A busy service needs a rate that covers all of its
    /// verifications.
    ReadThrough,
}

/// The reads that may grant a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Sight {
    /// Reads within the staleness bound, including reads that began before the call.
    WithinBound,
    /// Only reads that began after the call.
    AfterCall,
}

/// The result of a verification without the store.
enum Here {
    Settled(Result<Grant, VerifyError>),
    /// The store has to be read. Holds the reads that may answer, and true if the caller holds a known key.
    Ask(Sight, bool),
}

impl Verifier {
    /// Verifies against the store's latest state. Every command that returned before this call
    /// began is seen. Concurrent callers with the same key share a read that began after all of
    /// their calls.
    ///
    /// # Errors
    ///
    /// [`VerifyError`]; [`StoreUnavailable`](VerifyError::StoreUnavailable) if the store did not answer, or
    /// if the caller holds no known key and [`ReadThroughLimits`] are exceeded.
    pub async fn verify_fresh<'a>(
        &self,
        credentials: impl Into<Credentials<'a>> + Send,
        need: &Need,
    ) -> Result<Grant, VerifyError> {
        let here = |key: &[u8], _: &Need| Here::Ask(Sight::AfterCall, self.is_held(key));
        self.verify_through(credentials.into(), need, here).await
    }

    /// Verifies a key, and reads the store if the replica cannot decide. The replica cannot decide about a
    /// key that it does not know yet (rule A1-25). Nor can the replica decide about a key whose class must
    /// see the latest state. Past the staleness bound, [`OnStale`] decides whether the store is read.
    ///
    /// Two changes become visible only with the next sync. One is the first imported key, on a node that
    /// knows no imported key yet. The other is a new secret that replaced a lost secret under the same key
    /// id.
    ///
    /// # Errors
    ///
    /// [`VerifyError`]. A refusal is never cached. Beyond the limits of [`ReadThroughLimits`] the refusal is
    /// [`StoreUnavailable`](VerifyError::StoreUnavailable).
    pub async fn verify_or_fetch<'a>(
        &self,
        credentials: impl Into<Credentials<'a>> + Send,
        need: &Need,
    ) -> Result<Grant, VerifyError> {
        let here = |key: &[u8], need: &Need| self.verify_here(key, need);
        self.verify_through(credentials.into(), need, here).await
    }

    /// Returns the verdict of [`verify_or_fetch`](Self::verify_or_fetch) without reading the store. `None` if
    /// the verdict requires a read of the store.
    #[cfg(feature = "http")]
    pub(crate) fn verify_unasked(
        &self,
        credentials: Credentials<'_>,
        need: &Need,
    ) -> Option<Result<Grant, VerifyError>> {
        let verdict = super::verify_halves(credentials, need, |key, need| {
            match self.verify_here(key, need) {
                Here::Settled(verdict) => verdict.map_err(Some),
                Here::Ask(..) => Err(None),
            }
        });
        verdict.map_or_else(|refused| refused.map(Err), |grant| Some(Ok(grant)))
    }

    /// Verifies each half with `here`, and reads the store if `here` cannot decide.
    async fn verify_through(
        &self,
        credentials: Credentials<'_>,
        need: &Need,
        here: impl Fn(&[u8], &Need) -> Here + Send + Sync,
    ) -> Result<Grant, VerifyError> {
        let verify = async |key: &[u8], need: &Need| match here(key, need) {
            Here::Settled(verdict) => verdict,
            Here::Ask(sight, holder) => self.read_through(key, need, sight, holder).await,
        };
        let (key, public) = credentials.halves();
        let grant = verify(key, need).await?;
        if let Some(key) = publishable_half(&grant, public)? {
            let public = verify(key, &need.of_publishable_half()).await?;
            check_pair(&grant, &public, need)?;
        }
        Ok(grant)
    }

    /// Verifies without the store, or returns how the store has to be read.
    fn verify_here(&self, presented: &[u8], need: &Need) -> Here {
        match self.verify(presented, need) {
            // A removed key never comes back, so a read is pointless.
            Err(VerifyError::Unknown) if self.known(presented) == Some(Known::Removed) => {
                Here::Settled(Err(VerifyError::Unknown))
            }
            // The index identifies a key by 32 bits of a hash until a secret matches, so the id
            // itself is checked here.
            Err(VerifyError::WrongSecret) if self.known(presented).is_some() => {
                Here::Settled(Err(VerifyError::WrongSecret))
            }
            Err(VerifyError::Unknown | VerifyError::WrongSecret) => {
                Here::Ask(Sight::WithinBound, false)
            }
            Err(VerifyError::NeedsFresh) => Here::Ask(Sight::AfterCall, self.is_held(presented)),
            Err(VerifyError::Stale { .. }) if self.past_bound == OnStale::ReadThrough => {
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
    ) -> Result<Grant, VerifyError> {
        let began = self.flights.turn();
        // The store may hold imported keys that this node does not know.
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
    ) -> Result<Grant, VerifyError> {
        match &fetched.found {
            Ok(Found::Key(record, standing, floor)) => {
                let confirmed = Confirmation::Sent(Some(fetched.sent));
                let same = self.compare(claim, &record.credential)?;
                // Only a holder of the secret causes this second read.
                let reached = match need.tenant() {
                    Some(tenant) if bool::from(same) => {
                        read::standing_in(&*self.store, record, standing, tenant).await
                    }
                    _ => Ok(None),
                };
                let reached = reached.map_err(|_| VerifyError::StoreUnavailable)?;
                let standing = reached.as_ref().unwrap_or(standing);
                let record = KeyRecord::clone(record);
                let known = (standing, *floor);
                self.judge_record(claim, (record, same), known, need, (confirmed, sight))
            }
            Ok(Found::Corrupt(key)) => Err(VerifyError::Corrupt { key: *key }),
            Ok(Found::Nothing) => Err(self.unknown(claim)),
            Err(_) => Err(VerifyError::StoreUnavailable),
        }
    }

    /// Judges a key by its stored record.
    fn judge_record(
        &self,
        claim: &Claim<'_>,
        (record, same): (KeyRecord, Choice),
        (standing, floor): (&OwnerStatus, Option<Timestamp>),
        need: &Need,
        (confirmed, sight): (Confirmation, Sight),
    ) -> Result<Grant, VerifyError> {
        let (id, course) = (record.id, Course::of(&record));
        let (shape, holder) = (Shape::of(&record), Holder::of(&record));
        let snapshot = self.snapshot();
        let policy = snapshot.policies.of(&holder.tenant);
        let (reading, now) = self.clock.judged();
        let newest = snapshot.view.index().newest().max(floor.unwrap_or(now));
        // The answer counts as old as the start of its read, however long the read took.
        match check_fresh(policy, &shape, confirmed, reading) {
            Err(VerifyError::NeedsFresh) if sight == Sight::AfterCall => {}
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
            let known = snapshot.view.index().floor(&holder.tenant).max(floor);
            judged = self.judge_end((id, &course), known, (now, reading));
        }
        let at = *judged.as_ref().unwrap_or(&now);
        check::check_subject(subject, presented, policy, (standing, None), need, at)?;
        judged?;
        if let Some(token) = claim.token() {
            self.notice_pepper(token, subject);
        }
        snapshot.view.count_id(id, now);
        if course.awaits_first_use {
            snapshot.view.note_first_use();
        }
        let taken = Taken {
            shape,
            holder,
            course,
            standing: standing.clone(),
            policies: snapshot.policies.clone(),
        };
        Ok(Grant::of_record(id, taken, now, need.address()))
    }

    /// Digests the claim by the method of `credential`, and compares the digests.
    fn compare(&self, claim: &Claim<'_>, credential: &Credential) -> Result<Choice, VerifyError> {
        Ok(match (credential, claim) {
            (Credential::Imported { digest, .. }, Claim::Foreign(presented, _)) => {
                digest.ct_eq(presented)
            }
            (Credential::Peppered { pepper, digest }, Claim::Token(token)) => {
                let Some(pepper) = self.peppers.live(pepper) else {
                    tracing::error!(%pepper, key = %token.id(), "pepper is not in the ring");
                    return Err(VerifyError::UnknownPepper {
                        pepper: pepper.clone(),
                    });
                };
                digest.ct_eq(&pepper.digest(token.id_and_secret()))
            }
            (Credential::Imported { .. }, Claim::Token(..))
            | (Credential::Peppered { .. }, Claim::Foreign(..)) => Choice::from(0),
        })
    }

    /// Returns the rejection of an unknown key, after the same work as for a known one (trap 6).
    fn unknown(&self, claim: &Claim<'_>) -> VerifyError {
        match claim {
            Claim::Token(token) => {
                let digest = self.peppers.current().digest(token.id_and_secret());
                black_box(digest.ct_eq(&Digest::from_bytes([0; 32])));
                VerifyError::Unknown
            }
            // If any key was imported, the claim may be an imported key that this node does not know yet.
            Claim::Foreign(..) if self.snapshot().view.index().has_imported() => {
                VerifyError::Unknown
            }
            Claim::Foreign(_, error) => (*error).into(),
        }
    }

    /// Returns the index's state of the presented key. Compares no secret.
    fn known(&self, presented: &[u8]) -> Option<Known> {
        let view = &self.snapshot().view;
        match Claim::of(presented).ok()? {
            Claim::Token(token) => view.known(token.id()),
            Claim::Foreign(digest, _) => view.known_import(&digest),
        }
    }

    /// Returns whether the presented secret belongs to a known key, in whatever state that key is.
    fn is_held(&self, presented: &[u8]) -> bool {
        let view = &self.snapshot().view;
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

/// Counts a read beyond the limits of [`ReadThroughLimits`], and returns its rejection.
fn too_many() -> VerifyError {
    observe::read_through("refused");
    VerifyError::StoreUnavailable
}
