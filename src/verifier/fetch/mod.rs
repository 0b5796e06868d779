//! Verification against the store, for three kinds of keys:
//!
//! - keys that must be checked against the latest state;
//! - keys that this node does not know;
//! - keys whose class has a shorter staleness bound than the time since the last sync, if
//!   [`OnStale::ReadThrough`] is set.
//!
//! Concurrent callers with the same key share a read. A read that began before the call may grant a key, if
//! the read is within the staleness bound of the key's class. Such a read may not refuse a key, because the
//! key may have been created since. No refusal is cached.

mod flights;
mod gate;
mod read;

use std::hint::black_box;
use std::pin::pin;

use futures_util::future::{Either, select};
use subtle::{Choice, ConstantTimeEq};

pub(super) use self::flights::Flights;
use self::flights::{Fetched, ReadContext};
pub use self::gate::ReadThroughLimits;
use self::read::StoreLookup;
use super::credentials::{check_pair, publishable_half};
use super::decision::check_fresh;
use super::grant::RecordAttributes;
use super::{Claim, Confirmation, Credentials, Grant, Need, Verifier};
use crate::clock::{Clock, MicroReading};
use crate::core::check;
use crate::core::owner::OwnerStatus;
use crate::core::record::{Credential, KeyRecord};
use crate::core::rejection::VerifyError;
use crate::core::secret::Digest;
use crate::core::subject::{KeyOwner, KeyToVerify, KeyTraits, Lifecycle};
use crate::core::time::Timestamp;
use crate::core::token::Token;
use crate::core::usage::outcome::UseOutcome;
use crate::observe::{self, WithSources};
use crate::replica::{IndexLookup, RowKind};
use crate::store::{Locator, StoreError};

/// The way in which [`verify_or_fetch`](crate::Keyward::verify_or_fetch) handles a known key, if this node
/// has not synced within the staleness bound of the key's class. `verify` always refuses such a key.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum OnStale {
    /// Refuses the key as [`Stale`](VerifyError::Stale).
    #[default]
    Reject,
    /// Reads the key through the store, within the limits of [`ReadThroughLimits`]. Useful if the store can
    /// still read keys while its change feed fails. Set a rate that covers all verifications of the service.
    ReadThrough,
}

/// The reads that may grant a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum RequiredFreshness {
    /// Reads within the staleness bound, including reads that began before the call.
    WithinBound,
    /// Only reads that began after the call.
    AfterCall,
}

/// The result of a verification without the store.
enum LocalVerdict {
    Final(Result<Grant, VerifyError>),
    /// The store must be read. Holds the required freshness, and whether the caller presented the secret of a
    /// known key.
    NeedsStore(RequiredFreshness, bool),
}

impl Verifier {
    /// Verifies against the store's latest state: sees every command that returned before this call.
    /// Concurrent callers with the same key share a read that began after all of their calls.
    ///
    /// # Errors
    ///
    /// [`VerifyError`]; [`StoreUnavailable`](VerifyError::StoreUnavailable) if the store did not answer in time,
    /// and [`Busy`](VerifyError::Busy) if [`ReadThroughLimits`] are exceeded and the caller holds no known key.
    pub async fn verify_fresh<'a>(
        &self,
        credentials: impl Into<Credentials<'a>> + Send,
        need: &Need,
    ) -> Result<Grant, VerifyError> {
        let local = |key: &[u8], _: &Need| {
            LocalVerdict::NeedsStore(RequiredFreshness::AfterCall, self.is_held(key))
        };
        self.verify_through(credentials.into(), need, local).await
    }

    /// Verifies a key, and reads the store if the replica cannot decide. The replica cannot decide about a
    /// key that it does not know yet, or whose class requires the latest state. If this node has not synced
    /// within the staleness bound, [`OnStale`] decides whether the store is read.
    ///
    /// Two changes become visible only with the next sync. One is the first imported key, on a node that
    /// knows no imported key yet. The other is a new secret that replaced a lost secret under the same key
    /// id.
    ///
    /// # Errors
    ///
    /// [`VerifyError`]. A refusal is never cached. Beyond the limits of [`ReadThroughLimits`] the refusal is
    /// [`Busy`](VerifyError::Busy). If the store does not answer in time, it is
    /// [`StoreUnavailable`](VerifyError::StoreUnavailable).
    pub async fn verify_or_fetch<'a>(
        &self,
        credentials: impl Into<Credentials<'a>> + Send,
        need: &Need,
    ) -> Result<Grant, VerifyError> {
        let local = |key: &[u8], need: &Need| self.verify_locally(key, need);
        self.verify_through(credentials.into(), need, local).await
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
            match self.verify_locally(key, need) {
                LocalVerdict::Final(verdict) => verdict.map_err(Some),
                LocalVerdict::NeedsStore(..) => Err(None),
            }
        });
        verdict.map_or_else(|refused| refused.map(Err), |grant| Some(Ok(grant)))
    }

    /// Verifies each half with `local`, and reads the store if `local` cannot decide.
    async fn verify_through(
        &self,
        credentials: Credentials<'_>,
        need: &Need,
        local: impl Fn(&[u8], &Need) -> LocalVerdict + Send + Sync,
    ) -> Result<Grant, VerifyError> {
        let verify = async |key: &[u8], need: &Need| match local(key, need) {
            LocalVerdict::Final(verdict) => verdict,
            LocalVerdict::NeedsStore(required, holds_key) => {
                self.read_through(key, need, required, holds_key).await
            }
        };
        let (key, public) = credentials.halves();
        let grant = verify(key, need).await?;
        if let Some(key) = publishable_half(&grant, public)? {
            let public = verify(key, &need.of_publishable_half()).await?;
            check_pair(&grant, &public, need)?;
        }
        Ok(grant)
    }

    /// Verifies without the store, or returns how the store must be read.
    fn verify_locally(&self, presented: &[u8], need: &Need) -> LocalVerdict {
        match self.verify(presented, need) {
            // A removed key never comes back, so do not read the store.
            Err(VerifyError::Unknown) if self.row_kind(presented) == Some(RowKind::Removed) => {
                LocalVerdict::Final(Err(self.refusal_of_known(VerifyError::Unknown)))
            }
            // If the secret does not match, the index has compared only a 32-bit hash of the id. So look up
            // the id itself.
            Err(VerifyError::WrongSecret) if self.row_kind(presented).is_some() => {
                LocalVerdict::Final(Err(self.refusal_of_known(VerifyError::WrongSecret)))
            }
            Err(VerifyError::Unknown | VerifyError::WrongSecret) => {
                LocalVerdict::NeedsStore(RequiredFreshness::WithinBound, false)
            }
            Err(VerifyError::NeedsFresh) => {
                LocalVerdict::NeedsStore(RequiredFreshness::AfterCall, self.is_held(presented))
            }
            Err(VerifyError::Stale { .. }) if self.on_stale == OnStale::ReadThrough => {
                LocalVerdict::NeedsStore(RequiredFreshness::AfterCall, false)
            }
            verdict => LocalVerdict::Final(verdict),
        }
    }

    /// Returns `refusal`, unless an unknown key would be refused as [`Busy`](VerifyError::Busy) now.
    fn refusal_of_known(&self, refusal: VerifyError) -> VerifyError {
        match self.flights.admits(self.clock.raw().monotonic) {
            true => refusal,
            false => too_many(),
        }
    }

    /// Reads the key through the store, and decides within [`ReadThroughLimits::timeout`].
    async fn read_through(
        &self,
        presented: &[u8],
        need: &Need,
        required: RequiredFreshness,
        holds_key: bool,
    ) -> Result<Grant, VerifyError> {
        let read = pin!(self.read_key(presented, need, required, holds_key));
        let timeout = self.flights.timeout();
        match select(read, self.clock.sleep(timeout)).await {
            Either::Left((verdict, _)) => verdict,
            Either::Right(((), _)) => {
                observe::read_through("timed_out");
                if let Some(suppressed) = self.log_outage("store timed out") {
                    tracing::warn!(?timeout, suppressed, "the store did not answer in time");
                }
                Err(VerifyError::StoreUnavailable)
            }
        }
    }

    async fn read_key(
        &self,
        presented: &[u8],
        need: &Need,
        required: RequiredFreshness,
        holds_key: bool,
    ) -> Result<Grant, VerifyError> {
        let called = self.flights.tick();
        // The text may be an imported key even if this node knows no imported key: the store may hold some.
        let claim = Claim::of(presented)?;
        let locator = match &claim {
            Claim::Token(token) => Locator::Id(token.id()),
            Claim::Foreign(digest, _) => Locator::Imported(*digest),
        };
        let context = ReadContext {
            store: &self.store,
            replica: &self.replica,
            clock: &self.clock,
        };
        let join = || self.flights.join(locator, &context, holds_key);
        let flight = join().ok_or_else(too_many)?;
        let fetched = flight.end().await.ok_or(VerifyError::StoreUnavailable)?;
        if fetched.started > called {
            return self
                .judge(&claim, need, &fetched, RequiredFreshness::AfterCall)
                .await;
        }
        if required == RequiredFreshness::WithinBound
            && let Ok(grant) = self.judge(&claim, need, &fetched, required).await
        {
            return Ok(grant);
        }
        let fetched = flight.next(join).await.ok_or_else(too_many)?;
        debug_assert!(
            fetched.started > called,
            "a read that began after this call"
        );
        self.judge(&claim, need, &fetched, RequiredFreshness::AfterCall)
            .await
    }

    async fn judge(
        &self,
        claim: &Claim<'_>,
        need: &Need,
        fetched: &Fetched,
        required: RequiredFreshness,
    ) -> Result<Grant, VerifyError> {
        match &fetched.found {
            Ok(StoreLookup::Key(record, status, floor)) => {
                let confirmed = Confirmation::Sent(Some(MicroReading::of(fetched.sent)));
                let same = self.compare(claim, &record.credential)?;
                // Read the other tenant's rows only for a caller who presented the right secret.
                let reached = match need.tenant() {
                    Some(tenant) if bool::from(same) => {
                        read::status_in(&*self.store, record, status, tenant).await
                    }
                    _ => Ok(None),
                };
                let reached = reached.map_err(|error| {
                    error.count();
                    self.store_failed(&error)
                })?;
                let status = reached.as_ref().unwrap_or(status);
                let record = KeyRecord::clone(record);
                let known = (status, *floor);
                self.judge_record(claim, (record, same), known, need, (confirmed, required))
            }
            Ok(StoreLookup::Corrupt(key)) => Err(VerifyError::Corrupt { key: *key }),
            Ok(StoreLookup::Nothing) => Err(self.unknown(claim)),
            Err(error) => Err(self.store_failed(error)),
        }
    }

    /// Logs that a read for a verification failed, and returns the refusal.
    fn store_failed(&self, error: &StoreError) -> VerifyError {
        if let Some(suppressed) = self.log_outage("store failed") {
            tracing::warn!(error = %WithSources(error), suppressed, "cannot verify against the store");
        }
        VerifyError::StoreUnavailable
    }

    /// Decides about a key by its stored record.
    fn judge_record(
        &self,
        claim: &Claim<'_>,
        (record, same): (KeyRecord, Choice),
        (status, floor): (&OwnerStatus, Option<Timestamp>),
        need: &Need,
        (confirmed, required): (Confirmation, RequiredFreshness),
    ) -> Result<Grant, VerifyError> {
        let (id, lifecycle) = (record.id, Lifecycle::of(&record));
        let (traits, key_owner) = (KeyTraits::of(&record), KeyOwner::of(&record));
        let snapshot = self.snapshot();
        let policy = snapshot.policies.of(&key_owner.tenant);
        let (reading, now) = self.clock.judged();
        let newest = snapshot.view.index().newest().max(floor.unwrap_or(now));
        // The record's age counts from the start of the read, because the record may have changed while the
        // read was in flight.
        let subject = KeyToVerify {
            id,
            owner_source: &key_owner,
            persons: key_owner.is_person(),
            traits: &traits,
            lifecycle: &lifecycle,
        };
        let presented = (same, claim.token().map(Token::prefix_bytes));
        let check = || {
            match check_fresh(policy, &traits, confirmed, reading) {
                Err(VerifyError::NeedsFresh) if required == RequiredFreshness::AfterCall => {}
                verdict => verdict?,
            }
            let mut judged = Ok(now);
            if lifecycle
                .expires_at
                .is_some_and(|end| now < end && end <= newest)
            {
                let known = snapshot.view.index().floor(&key_owner.tenant).max(floor);
                judged = self.judge_end((id, &lifecycle), known, (now, reading));
            }
            let at = *judged.as_ref().unwrap_or(&now);
            let known = (status, false);
            check::check_subject(subject, presented, policy, known, need.conditions(), at)?;
            judged.map(drop)
        };
        let uses = (id, &key_owner.tenant);
        if let Err(refusal) = check() {
            // Another read follows one that began before the call, and its refusal counts.
            let outcome = UseOutcome::of_refusal(&refusal);
            let is_final = required == RequiredFreshness::AfterCall;
            if let Some(outcome) = outcome.filter(|_| is_final && need.counts()) {
                self.replica.count_fetched(uses, outcome, now);
            }
            return Err(refusal);
        }
        if let Some(token) = claim.token() {
            self.notice_pepper(token, subject);
        }
        if need.counts() {
            self.replica.count_fetched(uses, UseOutcome::Accepted, now);
        }
        if lifecycle.awaits_first_use {
            snapshot.view.note_first_use();
        }
        let record = RecordAttributes {
            traits,
            key_owner,
            lifecycle,
            status: status.clone(),
            policies: snapshot.policies.clone(),
        };
        Ok(Grant::of_record(id, record, now, need.address()))
    }

    /// Digests the claim by the method of `credential`, and compares the digests.
    fn compare(&self, claim: &Claim<'_>, credential: &Credential) -> Result<Choice, VerifyError> {
        Ok(match (credential, claim) {
            (Credential::Imported { digest, .. }, Claim::Foreign(presented, _)) => {
                digest.ct_eq(presented)
            }
            (Credential::Peppered { pepper, digest }, Claim::Token(token)) => {
                let Some(pepper) = self.peppers.live(pepper) else {
                    self.log_missing_pepper(pepper, Some(token.id()));
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

    /// Returns the rejection of an unknown key. Does the same work as for a known key, so that timing does
    /// not reveal that the id is unknown.
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

    /// Returns the kind of the presented key's row in the index. Compares no secret.
    fn row_kind(&self, presented: &[u8]) -> Option<RowKind> {
        let view = &self.snapshot().view;
        match Claim::of(presented).ok()? {
            Claim::Token(token) => view.row_kind(token.id()),
            Claim::Foreign(digest, _) => view.row_kind_of_import(&digest),
        }
    }

    /// Returns whether the presented secret belongs to a known key, in any state of that key.
    fn is_held(&self, presented: &[u8]) -> bool {
        let view = &self.snapshot().view;
        let answer = match Claim::of(presented) {
            Ok(Claim::Token(token)) => self.look_up(view, &token),
            Ok(Claim::Foreign(digest, _)) => view.imported(&digest),
            Err(_) => return false,
        };
        matches!(answer, IndexLookup::Hit(_))
    }
}

/// Counts a refusal beyond the limits of [`ReadThroughLimits`], and returns its rejection.
fn too_many() -> VerifyError {
    observe::read_through("refused");
    VerifyError::Busy
}
