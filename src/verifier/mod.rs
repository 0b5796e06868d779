//! The verifier: parse, look up, compare, check.
//!
//! [`Verifier::verify`] does no I/O and never waits. The order of its steps matters: load the time of the
//! last confirmation, look the key up, and then read the clock. In any other order, a revoked key could be
//! accepted after the staleness bound has passed.

mod batch;
mod credentials;
mod decision;
mod fetch;
mod grant;
mod kinds;
mod need;
mod snapshot;
mod upkeep;

use std::fmt;
use std::hint::black_box;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

pub use self::credentials::Credentials;
use self::credentials::verify_halves;
use self::decision::{Confirmation, resolve};
use self::fetch::Flights;
pub use self::fetch::{OnStale, ReadThroughLimits};
use self::grant::Accepted;
pub use self::grant::Grant;
pub use self::need::{Need, check};
use self::snapshot::Snapshot;
pub(crate) use self::upkeep::MaintenanceTask;
use self::upkeep::RedigestQueue;
use crate::core::id::KeyId;
use crate::core::pepper::{Pepper, PepperRing};
use crate::core::rejection::VerifyError;
use crate::core::secret::Digest;
use crate::core::subject::KeyToVerify;
use crate::core::text::PepperId;
use crate::core::time::Timestamp;
use crate::core::token::{self, Token, TokenError};
use crate::live_policies::LivePolicies;
use crate::manager::{AbandonedBatches, KeyManager};
use crate::observe::LogSampler;
use crate::replica::{DigestPrefix, IndexLookup, Prefetched, Replica, Search, View};
use crate::store::KeyStore;
use crate::timekeeper::Timekeeper;

/// Verifies keys against a replica.
///
/// Usable alone, or inside [`Keyward`](crate::Keyward).
pub struct Verifier {
    replica: Arc<Replica>,
    store: Arc<dyn KeyStore>,
    policies: Arc<LivePolicies>,
    peppers: Arc<PepperRing>,
    clock: Arc<Timekeeper>,
    snapshot: ArcSwap<Snapshot>,
    redigests: RedigestQueue,
    flights: Flights,
    on_stale: OnStale,
    abandoned: Arc<AbandonedBatches>,
    outage_lines: LogSampler,
    #[cfg(feature = "http")]
    refusal_lines: LogSampler,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("peppers", &self.peppers)
            .finish_non_exhaustive()
    }
}

/// Presented text that may be a key.
enum Claim<'a> {
    /// A well-formed token. It is looked up by its id alone, never by its digest among the imported keys. So
    /// importing the digest of a deleted key does not revive that key, even after its tombstone is gone.
    Token(Token<'a>),
    /// Text that is not a token, but may be an imported key. Holds the text's digest, and the reason why the
    /// text is not a token.
    Foreign(Digest, TokenError),
}

/// The uses of a key that this process has counted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    /// The number of times that the key was accepted. With a [usage store](crate::KeywardBuilder::usage), only the uses
    /// of the last hour that were not sent to the store.
    pub count: u64,
    /// The time of the last use, up to 4 seconds early; `None` if the key was not used.
    pub last: Option<Timestamp>,
}

impl Verifier {
    /// Returns a verifier that looks keys up in `replica` and uses its clock. If the replica cannot decide
    /// about a key, the verifier reads `store`.
    pub fn new(
        replica: Arc<Replica>,
        store: Arc<dyn KeyStore>,
        policies: Arc<LivePolicies>,
        peppers: Arc<PepperRing>,
    ) -> Self {
        let clock = replica.time().clone();
        let snapshot = ArcSwap::from_pointee(Snapshot::of(&replica, &policies));
        Self {
            replica,
            store,
            policies,
            peppers,
            clock,
            snapshot,
            redigests: RedigestQueue::default(),
            flights: Flights::new(ReadThroughLimits::default()),
            on_stale: OnStale::default(),
            abandoned: Arc::default(),
            outage_lines: LogSampler::default(),
            #[cfg(feature = "http")]
            refusal_lines: LogSampler::default(),
        }
    }

    /// Makes every verification first take in the commits of `manager` whose callers are gone.
    #[must_use]
    pub fn with_manager(mut self, manager: &KeyManager) -> Self {
        self.abandoned = manager.abandoned().clone();
        self
    }

    /// Sets the limits for reads through the store. Defaults to [`ReadThroughLimits::default`].
    #[must_use]
    pub fn with_read_through(mut self, bounds: ReadThroughLimits) -> Self {
        self.flights = Flights::new(bounds);
        self
    }

    /// Sets the handling of known keys, if this node has not synced within the staleness bound of the key's
    /// class. Defaults to [`OnStale::Reject`].
    #[must_use]
    pub const fn with_on_stale(mut self, on_stale: OnStale) -> Self {
        self.on_stale = on_stale;
        self
    }

    /// Verifies a key (a `&str` or `&[u8]`), or a [pair](Credentials::Pair) of a secret key and its public
    /// half. Does no I/O and never waits.
    ///
    /// Allocates only in four cases:
    ///
    /// - to refuse a key;
    /// - once in each thread, for the list of the uses that it has not added to the counts yet;
    /// - once in each [`Need`], for a cache that records which kinds of keys met the need;
    /// - if rows of a descendant tenant change the status of the key's owner.
    ///
    /// # Errors
    ///
    /// [`VerifyError`]; show the client only [`VerifyError::public_message`].
    pub fn verify<'a>(
        &self,
        credentials: impl Into<Credentials<'a>>,
        need: &Need,
    ) -> Result<Grant, VerifyError> {
        let presented = match credentials.into() {
            Credentials::Key(key) => key,
            pair @ Credentials::Pair { .. } => return self.verify_pair(pair, need),
        };
        let token = match token::parse(presented) {
            Ok(token) => token,
            Err(error) => return self.verify_foreign(presented, error, need),
        };
        let confirmed = self.confirmed();
        match self.verify_token(&token, need, confirmed) {
            Err(refusal) if self.may_confirm(&refusal) => self.verify_confirmed(&token, need),
            verdict => verdict,
        }
    }

    #[cold]
    fn verify_confirmed(&self, token: &Token<'_>, need: &Need) -> Result<Grant, VerifyError> {
        self.verify_token(token, need, Confirmation::DuringCall)
    }

    /// Verifies text that is not a token, but may be an imported key.
    #[inline(never)]
    fn verify_foreign(
        &self,
        presented: &[u8],
        error: TokenError,
        need: &Need,
    ) -> Result<Grant, VerifyError> {
        if !self.replica.has_imported() {
            return Err(error.into());
        }
        let digest = Digest::sha256(token::trim(presented)?);
        let confirmed = self.confirmed();
        match self.verify_digest(&digest, error, need, confirmed) {
            Err(refusal) if self.may_confirm(&refusal) => {
                self.verify_digest(&digest, error, need, Confirmation::DuringCall)
            }
            verdict => verdict,
        }
    }

    /// Returns whether a second attempt may succeed: the key was refused for lack of a confirmation, and a
    /// store in this process has now confirmed the index.
    #[inline]
    fn may_confirm(&self, refusal: &VerifyError) -> bool {
        match refusal {
            VerifyError::NeedsFresh => self.replica.confirm_now(),
            VerifyError::Stale { bound, .. } => {
                let confirmed = self.replica.confirm_now();
                if !confirmed {
                    self.replica.note_stale(*bound);
                }
                confirmed
            }
            _ => false,
        }
    }

    #[inline(never)]
    fn verify_pair(&self, pair: Credentials<'_>, need: &Need) -> Result<Grant, VerifyError> {
        verify_halves(pair, need, |key, need| self.verify(key, need))
    }

    /// Returns the time of the last confirmation. Every verification begins with this call.
    #[inline]
    fn confirmed(&self) -> Confirmation {
        self.abandoned.settle();
        Confirmation::Sent(self.replica.confirmed_at())
    }

    /// Returns the current snapshot.
    #[inline]
    fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        let snapshot = self.snapshot.load();
        if snapshot.versions == (self.replica.version(), self.policies.version()) {
            return snapshot;
        }
        self.refresh()
    }

    #[cold]
    fn refresh(&self) -> Guard<Arc<Snapshot>> {
        let snapshot = Snapshot::of(&self.replica, &self.policies);
        // Of two concurrent refreshes, the one with the older snapshot may store last. The next call then
        // compares the versions, and refreshes again.
        let old = self.snapshot.swap(Arc::new(snapshot));
        let now = self.snapshot.load();
        if !Arc::ptr_eq(&old.view, &now.view) {
            // Freeing a view is slow, so the next sync frees it instead of a request.
            self.replica.retire(old.view.clone());
        }
        if now.versions == (self.replica.version(), self.policies.version()) {
            return now;
        }
        Guard::from_inner(Arc::new(Snapshot::of(&self.replica, &self.policies)))
    }

    /// Verifies a token. The order matters: the caller loads `confirmed` first, this function looks the key
    /// up, and reads the clock last.
    #[inline(always)]
    fn verify_token(
        &self,
        token: &Token<'_>,
        need: &Need,
        confirmed: Confirmation,
    ) -> Result<Grant, VerifyError> {
        let snapshot = self.snapshot();
        let view = &*snapshot.view;
        // The processor fetches the slot's memory while this thread computes the digest.
        let sought = view.prefetch(token.id());
        let digest_prefix = digest_prefix_of(self.peppers.current(), token);
        let found = view.search(sought, digest_prefix);
        if let Some(key) = view.proven(&found) {
            let times = (confirmed, self.clock.judged());
            if let Some(accepted) = self.accept(&snapshot, token, &key, times, need) {
                return Ok(Grant::of_index(snapshot, accepted));
            }
        }
        let found = (sought, digest_prefix, found);
        let accepted = self.verify_found(&snapshot, token, found, confirmed, need)?;
        Ok(Grant::of_index(snapshot, accepted))
    }

    /// Verifies a token in full, after the search for its slot. Reads the clock again, after all that it looks up.
    #[inline(never)]
    fn verify_found(
        &self,
        snapshot: &Snapshot,
        token: &Token<'_>,
        (sought, digest_prefix, found): (Prefetched, DigestPrefix, Search),
        confirmed: Confirmation,
        need: &Need,
    ) -> Result<Accepted, VerifyError> {
        let view = &*snapshot.view;
        let answer = view.answer(token.id(), found);
        let (answer, under_other) = self.with_others(view, token, answer, (sought, digest_prefix));
        let resolved = resolve(view, answer, under_other);
        let times = (confirmed, self.clock.judged());
        self.conclude(snapshot, Some(token), resolved, times, need)
    }

    /// Verifies text that may be an imported key, by its digest. Takes the same steps in the same order as
    /// `verify_token`.
    fn verify_digest(
        &self,
        digest: &Digest,
        error: TokenError,
        need: &Need,
        confirmed: Confirmation,
    ) -> Result<Grant, VerifyError> {
        let snapshot = self.snapshot();
        let view = &*snapshot.view;
        if !view.index().has_imported() {
            return Err(error.into());
        }
        let resolved = resolve(view, view.imported(digest), false);
        let times = (confirmed, self.clock.judged());
        let accepted = self.conclude(&snapshot, None, resolved, times, need)?;
        Ok(Grant::of_index(snapshot, accepted))
    }

    /// Looks a token's key up by its id, and compares the secret.
    fn look_up(&self, view: &View, token: &Token<'_>) -> IndexLookup {
        let sought = view.prefetch(token.id());
        let digest_prefix = digest_prefix_of(self.peppers.current(), token);
        let answer = view.lookup(token.id(), sought, digest_prefix);
        self.with_others(view, token, answer, (sought, digest_prefix))
            .0
    }

    /// Returns the answer of a lookup under the current pepper. If the secret did not match, looks the key up under
    /// another pepper. Also returns whether another pepper was tried.
    #[inline]
    fn with_others(
        &self,
        view: &View,
        token: &Token<'_>,
        answer: IndexLookup,
        sought: (Prefetched, DigestPrefix),
    ) -> (IndexLookup, bool) {
        match answer {
            IndexLookup::Hit(_) | IndexLookup::Corrupt(_) => (answer, false),
            answer if !self.peppers.has_others() => (answer, false),
            answer => (self.look_up_under_others(view, token, answer, sought), true),
        }
    }

    /// Looks a token's key up under a pepper other than the current one. Computes one more digest for every key,
    /// known or not, so that timing reveals nothing about the key.
    #[inline(never)]
    fn look_up_under_others(
        &self,
        view: &View,
        token: &Token<'_>,
        answer: IndexLookup,
        (prefetched, current): (Prefetched, DigestPrefix),
    ) -> IndexLookup {
        let Some(any) = self.peppers.not_current().next() else {
            return answer;
        };
        // Read the row by id, because the slot found first may belong to another key with the same hash.
        let attributes = view.attributes_of(token.id());
        let own = attributes.and_then(|attributes| attributes.traits.pepper.as_ref());
        let own = own.and_then(|id| self.peppers.not_current().find(|pepper| pepper.id() == id));
        let digest_prefix = digest_prefix_of(own.unwrap_or(any), token);
        let answer = match own {
            Some(_) => view.lookup(token.id(), prefetched, digest_prefix),
            None => {
                black_box(digest_prefix);
                answer
            }
        };
        match answer {
            IndexLookup::Hit(_) | IndexLookup::Corrupt(_) => answer,
            // The writer may have replaced the key's digest by one under the current pepper since the first
            // lookup. Without this second lookup, a valid key would be rejected.
            _ => view.lookup(token.id(), prefetched, current),
        }
    }

    /// Returns whether a line about an outage may be logged now: the number of such lines that were left out since
    /// the last one.
    pub(crate) fn log_outage(&self, what: &'static str) -> Option<u64> {
        let now = self.clock.raw().monotonic;
        self.outage_lines.admit(now, (what, None))
    }

    /// Returns whether a line about a refused key may be logged now: the number of such lines that were left out
    /// since the last one.
    #[cfg(feature = "http")]
    pub(crate) fn log_refusal(&self, what: &'static str, key: KeyId) -> Option<u64> {
        let now = self.clock.raw().monotonic;
        self.refusal_lines.admit(now, (what, Some(key)))
    }

    fn log_missing_pepper(&self, pepper: &PepperId, key: Option<KeyId>) {
        if let Some(suppressed) = self.log_outage("pepper is missing") {
            let key = key.map(tracing::field::display);
            tracing::error!(%pepper, key, suppressed, "pepper is not in the ring");
        }
    }

    /// Queues a digest under the current pepper, if the key's digest is [outdated](PepperRing::is_outdated). A
    /// verification itself writes nothing to the store.
    #[cold]
    fn notice_pepper(&self, token: &Token<'_>, subject: KeyToVerify<'_>) {
        let KeyToVerify {
            id,
            owner_source,
            traits,
            ..
        } = subject;
        let current = self.peppers.current();
        if let Some(pepper) = &traits.pepper
            && self.peppers.is_outdated(pepper)
            && let Some(own) = self.peppers.live(pepper)
        {
            let digest = |pepper: &Pepper| pepper.digest(token.id_and_secret());
            let digests = (digest(own), digest(current));
            let task = MaintenanceTask::redigest(
                &owner_source.key_owner().tenant,
                id,
                (pepper, current.id()),
                digests,
            );
            self.redigests.push(task);
        }
    }

    /// Returns the number of times that this process accepted a key, and the time of the last use to a few seconds. The
    /// count is kept in memory only. `None` if the verifier does not know the key.
    #[must_use]
    pub fn usage(&self, key: KeyId) -> Option<Usage> {
        let used = self.snapshot().view.uses(key)?;
        Some(used.map_or_else(Usage::default, |(count, last)| Usage {
            count,
            last: Timestamp::from_unix_seconds(last.into()).ok(),
        }))
    }

    /// Replaces an outdated snapshot, so that its memory is freed. A verification also replaces it, but while
    /// there are no verifications, the old snapshot would stay in memory.
    pub(crate) fn drop_stale_snapshot(&self) {
        drop(self.snapshot());
    }

    /// Takes the next task that a verification has queued.
    pub(crate) fn next_chore(&self) -> Option<MaintenanceTask> {
        self.redigests.pop()
    }
}

#[inline]
fn digest_prefix_of(pepper: &Pepper, token: &Token<'_>) -> DigestPrefix {
    DigestPrefix::of(pepper.digest(token.id_and_secret()).as_bytes())
}

impl<'a> Claim<'a> {
    /// Parses presented text without looking the key up.
    fn of(presented: &'a [u8]) -> Result<Self, TokenError> {
        match token::parse(presented) {
            Ok(token) => Ok(Self::Token(token)),
            Err(error) => Ok(Self::Foreign(
                Digest::sha256(token::trim(presented)?),
                error,
            )),
        }
    }

    const fn token(&self) -> Option<&Token<'a>> {
        match self {
            Self::Token(token) => Some(token),
            Self::Foreign(..) => None,
        }
    }
}
