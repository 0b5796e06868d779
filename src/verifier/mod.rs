//! The verifier: parse, look up, compare, check.
//!
//! [`Verifier::verify`] does no I/O and never waits. Its order matters: it loads the instant of the
//! last confirmation first, then looks the key up, and reads the clock last. Any other order
//! accepts revoked keys past the staleness bound.

mod batch;
mod credentials;
mod fetch;
mod grant;
mod upkeep;

use std::fmt;
use std::hint::black_box;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use subtle::Choice;

pub use self::credentials::Credentials;
use self::fetch::Flights;
pub use self::fetch::{OnStale, ReadThroughLimits};
use self::grant::Accepted;
pub use self::grant::Grant;
pub(crate) use self::upkeep::MaintenanceTask;
use self::upkeep::Upkeep;
use crate::clock::Reading;
use crate::core::check;
use crate::core::checked_time::{Ending, judge_end};
use crate::core::id::KeyId;
use crate::core::need::Need;
use crate::core::pepper::{Pepper, PepperRing};
use crate::core::policy::{LivePolicies, Policies, Policy};
use crate::core::record::Visibility;
use crate::core::rejection::VerifyError;
use crate::core::secret::Digest;
use crate::core::subject::{Course, Shape, Subject};
use crate::core::time::Timestamp;
use crate::core::token::{self, Token, TokenError};
use crate::replica::{Answer, Facts, Half, Hit, Kept, Parts, Replica, Sought, View};
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
    upkeep: Upkeep,
    flights: Flights,
    past_bound: OnStale,
}

/// Everything that a verification reads, behind one atomic pointer.
struct Snapshot {
    view: Arc<View>,
    policies: Arc<Policies>,
    /// The versions of the view and of the policies.
    versions: (u64, u64),
    /// The number of this snapshot, unique within the process. `None` once all numbers are used up.
    generation: Option<NonZeroU64>,
}

/// The layout of the word that `Snapshot::kind` returns: 18 bits of shape, 24 of standing and 22 of
/// generation.
const SHAPE_BITS: u32 = 18;
const STANDING_BITS: u32 = 24;
const GENERATION_BITS: u32 = 22;
static GENERATIONS: AtomicU64 = AtomicU64::new(1);

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("peppers", &self.peppers)
            .finish_non_exhaustive()
    }
}

/// Presented text that may be a key and is worth hashing.
enum Claim<'a> {
    /// A well-formed token. It is found by its id alone: the import of a deleted key's digest does
    /// not bring that key back, even after its tombstone is gone (invariant 2).
    Token(Token<'a>),
    /// Text that is not a token and may be an imported key. Holds the text's digest, and the reason
    /// why the text is no token.
    Foreign(Digest, TokenError),
}

/// The index's answer about a presented key.
struct Seen<'v> {
    /// `None` if the secret does not match.
    hit: Option<Hit>,
    facts: Facts<'v>,
    /// Whether the digest was made under an older pepper.
    under_older: bool,
}

/// The use of a key in this process.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    /// The number of times that the key was accepted.
    pub count: u64,
    /// The time of the last use, at most 64 seconds early; `None` if there was none.
    pub last: Option<Timestamp>,
}

/// The evidence that the index was current at the moment of use.
#[derive(Clone, Copy)]
enum Confirmation {
    /// The instant at which the confirming read was sent, if there was one.
    Sent(Option<Reading>),
    /// The index was confirmed after the call began.
    DuringCall,
}

impl Verifier {
    /// Returns a verifier over `replica` and its clock. If the replica cannot decide about a key,
    /// the verifier reads `store`.
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
            upkeep: Upkeep::default(),
            flights: Flights::new(ReadThroughLimits::default()),
            past_bound: OnStale::default(),
        }
    }

    /// Sets the limits for reads through the store. Defaults to [`ReadThroughLimits::default`].
    #[must_use]
    pub fn with_read_through(mut self, bounds: ReadThroughLimits) -> Self {
        self.flights = Flights::new(bounds);
        self
    }

    /// Sets what happens to a key once its staleness bound is passed. Defaults to
    /// [`OnStale::Reject`].
    #[must_use]
    pub const fn with_past_bound(mut self, past_bound: OnStale) -> Self {
        self.past_bound = past_bound;
        self
    }

    /// Verifies a key (a `&str` or `&[u8]`), or a [pair](Credentials::Pair) of a secret key and its
    /// public half. Does no I/O and never waits. Allocates only to refuse a key, and once in each
    /// [`Need`], to remember the kinds of keys that met this need.
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
        let confirmed = Confirmation::Sent(self.replica.confirmed_at());
        let verdict = self.verify_token(&token, need, confirmed);
        if self.may_confirm(&verdict) {
            return self.verify_confirmed(&token, need);
        }
        verdict
    }

    #[cold]
    fn verify_confirmed(&self, token: &Token<'_>, need: &Need) -> Result<Grant, VerifyError> {
        self.verify_token(token, need, Confirmation::DuringCall)
    }

    /// Verifies text that is not a token, which may be an imported key.
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
        let confirmed = Confirmation::Sent(self.replica.confirmed_at());
        let verdict = self.verify_digest(&digest, error, need, confirmed);
        if self.may_confirm(&verdict) {
            return self.verify_digest(&digest, error, need, Confirmation::DuringCall);
        }
        verdict
    }

    /// Returns whether the key was refused for lack of a confirmation, and a store in this process
    /// has confirmed the index since.
    #[inline]
    fn may_confirm(&self, verdict: &Result<Grant, VerifyError>) -> bool {
        matches!(
            verdict,
            Err(VerifyError::Stale { .. } | VerifyError::NeedsFresh)
        ) && self.replica.confirm_now()
    }

    #[inline(never)]
    fn verify_pair(&self, pair: Credentials<'_>, need: &Need) -> Result<Grant, VerifyError> {
        verify_halves(pair, need, |key, need| self.verify(key, need))
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
        // Of two concurrent refreshes, the older snapshot may win. The next call notices its old
        // version.
        let old = self.snapshot.swap(Arc::new(snapshot));
        let now = self.snapshot.load();
        if !Arc::ptr_eq(&old.view, &now.view) {
            // Freeing the view may take long, so the next sync frees it, not a request.
            self.replica.retire(old.view.clone());
        }
        if now.versions == (self.replica.version(), self.policies.version()) {
            return now;
        }
        Guard::from_inner(Arc::new(Snapshot::of(&self.replica, &self.policies)))
    }

    /// Verifies a token. The order matters: the caller loaded `confirmed` first, the key is looked
    /// up here, and the clock is read last.
    #[inline(always)]
    fn verify_token(
        &self,
        token: &Token<'_>,
        need: &Need,
        confirmed: Confirmation,
    ) -> Result<Grant, VerifyError> {
        let snapshot = self.snapshot();
        let view = &*snapshot.view;
        // The slot's memory is fetched while the token is digested.
        let begun = view.begin(token.id());
        let (answer, under_older) = self.look_up(view, token, begun);
        let seen = see(view, answer, under_older);
        let times = (confirmed, self.clock.judged());
        let accepted = self.conclude(&snapshot, Some(token), seen?, times, need)?;
        Ok(Grant::of_index(snapshot, accepted))
    }

    /// Verifies the digest of a key that may be imported, in the order of `verify_token`.
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
        let seen = see(view, view.imported(digest), false);
        let times = (confirmed, self.clock.judged());
        let accepted = self.conclude(&snapshot, None, seen?, times, need)?;
        Ok(Grant::of_index(snapshot, accepted))
    }

    /// Judges a key that was looked up before the clock was read.
    #[inline(always)]
    fn conclude(
        &self,
        snapshot: &Snapshot,
        token: Option<&Token<'_>>,
        seen: Seen<'_>,
        (confirmed, (reading, now)): (Confirmation, (Reading, Timestamp)),
        need: &Need,
    ) -> Result<Accepted, VerifyError> {
        let view = &*snapshot.view;
        let Seen {
            hit,
            facts,
            under_older,
        } = seen;
        let policy = snapshot.policies.of_whose(|| &facts.holder.get().tenant);
        let newest = view.index().newest();
        check_fresh(policy, facts.shape, confirmed, reading)?;
        let Some(hit) = hit else {
            return Err(self.wrong_secret(view, token, &facts));
        };
        let own = (facts.standing, snapshot.kind(hit.parts, &facts));
        // The tenant that a key reaches into may refuse the key: the tenant may be closed, or have
        // removed or lowered the owner.
        let reached = need
            .tenant()
            .and_then(|tenant| view.standing_in(&facts, tenant));
        let standing = match &reached {
            Some(reached) => (&**reached, None),
            None => own,
        };
        let course = match view.course(&hit, standing.0, now.max(newest)) {
            Kept::Known(course) => course,
            Kept::Removed => return Err(VerifyError::Unknown),
            Kept::Corrupt => return Err(VerifyError::Corrupt { key: hit.id }),
        };
        let mut judged = Ok(now);
        if course
            .expires_at
            .is_some_and(|end| now < end && end <= newest)
        {
            let floor = view.index().floor(&facts.holder.get().tenant);
            judged = self.judge_end((hit.id, &course), floor, (now, reading));
        }
        let subject = Subject {
            id: hit.id,
            whose: &facts.holder,
            persons: facts.persons,
            shape: facts.shape,
            course,
        };
        check::check_subject(
            subject,
            // The index compared half of the digest in constant time, which proves the secret.
            (Choice::from(1), token.map(Token::prefix_bytes)),
            policy,
            standing,
            need,
            *judged.as_ref().unwrap_or(&now),
        )?;
        judged?;
        if let (true, Some(token)) = (under_older, token) {
            self.notice_pepper(token, subject);
        }
        view.count(&hit, now);
        if course.awaits_first_use {
            view.note_first_use();
        }
        Ok(Accepted {
            id: hit.id,
            row: hit.row(),
            parts: hit.parts,
            standing: facts.standing_id,
            at: now,
            address: need.address(),
            reached,
        })
    }

    /// Judges a key that expires between the current time and the store's newest commit. Some
    /// tenant's commit then claims that the key has expired. `floor` is the newest instant of the
    /// key's own tenant. Returns the instant at which to judge the key.
    #[cold]
    fn judge_end(
        &self,
        (key, course): (KeyId, &Course),
        floor: Option<Timestamp>,
        (now, reading): (Timestamp, Reading),
    ) -> Result<Timestamp, VerifyError> {
        let (time, end) = (&self.clock, course.expires_at.unwrap_or(now));
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

    /// Looks a token's key up by its id, and compares its secret. Returns whether the digest was
    /// made under an older pepper.
    #[inline]
    fn look_up(&self, view: &View, token: &Token<'_>, begun: Sought) -> (Answer, bool) {
        let half = half_of(self.peppers.current(), token);
        match view.end(token.id(), begun, half) {
            answer @ (Answer::Hit(_) | Answer::Corrupt(_)) => (answer, false),
            answer if self.peppers.retired().is_empty() => (answer, false),
            answer => {
                let answer = self.look_up_under_older(view, token, answer, (begun, half));
                (answer, true)
            }
        }
    }

    /// Looks a token's key up under an older pepper. One older pepper is tried whatever the answer,
    /// so that the time reveals nothing about the key (trap 6).
    #[inline(never)]
    fn look_up_under_older(
        &self,
        view: &View,
        token: &Token<'_>,
        answer: Answer,
        (begun, current): (Sought, Half),
    ) -> Answer {
        let Some(any) = self.peppers.retired().first() else {
            return answer;
        };
        // Reads the row of the id itself, because the slot found first may belong to another key
        // with the same hash.
        let facts = view.facts_of(token.id());
        let own = facts.and_then(|facts| facts.shape.pepper.as_ref());
        let own = own.and_then(|id| {
            self.peppers
                .retired()
                .iter()
                .find(|pepper| pepper.id() == id)
        });
        let half = half_of(own.unwrap_or(any), token);
        let answer = match own {
            Some(_) => view.end(token.id(), begun, half),
            None => {
                black_box(half);
                answer
            }
        };
        match answer {
            Answer::Hit(_) | Answer::Corrupt(_) => answer,
            // The key may have moved to the current pepper in the meantime.
            _ => view.end(token.id(), begun, current),
        }
    }

    /// Returns the rejection of a secret that does not match, or of a key whose pepper is missing.
    fn wrong_secret(
        &self,
        view: &View,
        token: Option<&Token<'_>>,
        facts: &Facts<'_>,
    ) -> VerifyError {
        let missing = |facts: &Facts<'_>| {
            let pepper = facts.shape.pepper.as_ref()?;
            self.peppers.live(pepper).is_none().then(|| pepper.clone())
        };
        // A missing pepper is rare, so the index is searched for the id only if the first check
        // found one missing.
        let pepper = missing(facts).and_then(|_| missing(&view.facts_of(token?.id())?));
        match pepper {
            Some(pepper) => {
                let key = token.map(Token::id).map(tracing::field::display);
                tracing::error!(%pepper, key, "pepper is not in the ring");
                VerifyError::UnknownPepper { pepper }
            }
            None => VerifyError::WrongSecret,
        }
    }

    /// Queues the key's digest to be stored under the current pepper, if it was made under an older
    /// one. Nothing is written here (trap 24).
    #[cold]
    fn notice_pepper(&self, token: &Token<'_>, subject: Subject<'_>) {
        let Subject {
            id, whose, shape, ..
        } = subject;
        let current = self.peppers.current();
        if let Some(pepper) = &shape.pepper
            && pepper != current.id()
            && let Some(own) = self.peppers.live(pepper)
        {
            let digest = |pepper: &Pepper| pepper.digest(token.id_and_secret());
            let digests = (digest(own), digest(current));
            let chore = MaintenanceTask::redigest(
                &whose.holder().tenant,
                id,
                (pepper, current.id()),
                digests,
            );
            self.upkeep.push(chore);
        }
    }

    /// Returns the number of times that this process accepted a key, and the time of the last use
    /// to about a minute. Counted in memory only, since the process started. `None` if the verifier
    /// does not know the key.
    #[must_use]
    pub fn uses(&self, key: KeyId) -> Option<Usage> {
        let (count, last) = self.snapshot().view.uses(key)?;
        let last = (count > 0).then(|| Timestamp::from_unix_seconds(last.into()).ok());
        let last = last.flatten();
        Some(Usage { count, last })
    }

    /// Drops a snapshot that is no longer current. A verification drops it too, but without
    /// verifications the snapshot would stay in memory.
    pub(crate) fn drop_stale_snapshot(&self) {
        drop(self.snapshot());
    }

    /// Takes the next task that a verification left behind.
    pub(crate) fn next_chore(&self) -> Option<MaintenanceTask> {
        self.upkeep.pop()
    }
}

/// Verifies a key by itself, or each half of a pair, with `verify`.
fn verify_halves<E: From<VerifyError>>(
    credentials: Credentials<'_>,
    need: &Need,
    verify: impl Fn(&[u8], &Need) -> Result<Grant, E>,
) -> Result<Grant, E> {
    let (key, public) = credentials.halves();
    let grant = verify(key, need)?;
    if let Some(key) = publishable_half(&grant, public)? {
        check_pair(&grant, &verify(key, &need.of_publishable_half())?, need)?;
    }
    Ok(grant)
}

/// Returns the publishable key that has to be verified too. `None` for a key without a public half,
/// and for a key whose public half is its own id.
fn publishable_half<'a>(
    grant: &Grant,
    public: Option<&'a [u8]>,
) -> Result<Option<&'a [u8]>, VerifyError> {
    let Some(public) = public else {
        return Ok(None);
    };
    match token::trim(public)?.parse::<KeyId>() {
        Ok(id) if id == grant.key_id() => Ok(None),
        Ok(_) => Err(VerifyError::PairMismatch),
        Err(_) => Ok(Some(public)),
    }
}

/// Checks that the halves of a pair belong together (rule A2-15).
fn check_pair(grant: &Grant, public: &Grant, need: &Need) -> Result<(), VerifyError> {
    let belongs = public.visibility() == Visibility::Publishable
        && public.tenant() == grant.tenant()
        && public.environment() == grant.environment()
        && need.accepts_beside(public.class());
    if belongs {
        Ok(())
    } else {
        Err(VerifyError::PairMismatch)
    }
}

/// Checks that the index was confirmed within the bound of the key's class.
#[inline(always)]
fn check_fresh(
    policy: &Policy,
    shape: &Shape,
    confirmed: Confirmation,
    reading: Reading,
) -> Result<(), VerifyError> {
    let Confirmation::Sent(sent) = confirmed else {
        return Ok(());
    };
    let bound = policy.propagation(&shape.class).bound;
    if bound.is_zero() {
        return Err(VerifyError::NeedsFresh);
    }
    if sent.is_some_and(|sent| reading.is_within(bound, sent)) {
        return Ok(());
    }
    let age = sent.map_or(Duration::MAX, |sent| reading.since(sent));
    Err(VerifyError::Stale { age, bound })
}

#[inline]
fn half_of(pepper: &Pepper, token: &Token<'_>) -> Half {
    Half::of(pepper.digest(token.id_and_secret()).as_bytes())
}

impl Snapshot {
    fn of(replica: &Replica, policies: &LivePolicies) -> Self {
        let (version, view) = replica.view();
        // Loaded first: the policies may be newer than this version, and never older.
        let policies_version = policies.version();
        Self {
            view,
            policies: policies.get(),
            versions: (version, policies_version),
            generation: {
                let next = GENERATIONS.fetch_add(1, Ordering::Relaxed);
                NonZeroU64::new(next).filter(|next| next.get() >> GENERATION_BITS == 0)
            },
        }
    }

    /// Returns the key's kind: keys of one kind have the same policy, shape and standing, and meet
    /// a need alike. (The standing differs for keys of a person and of a tenant.) `None` if the
    /// kind does not fit in one word.
    #[inline]
    fn kind(&self, parts: Parts, facts: &Facts<'_>) -> Option<NonZeroU64> {
        let (shape, standing) = (parts.shape, facts.standing_id);
        let fits = shape >> SHAPE_BITS == 0 && standing >> STANDING_BITS == 0;
        if !fits || !self.policies.is_one() {
            return None;
        }
        let standing = u64::from(standing) << SHAPE_BITS;
        let generation = self.generation?.get() << (STANDING_BITS + SHAPE_BITS);
        NonZeroU64::new(generation | standing | u64::from(shape))
    }
}

impl<'a> Claim<'a> {
    /// Parses presented text, whether or not the key is known here.
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

/// Interprets an answer of the index, and resolves the attributes that the key shares with others.
#[inline(always)]
fn see(view: &View, answer: Answer, under_older: bool) -> Result<Seen<'_>, VerifyError> {
    let (hit, facts) = match answer {
        Answer::Hit(hit) => {
            let facts = view.facts(hit.parts);
            (
                Some(hit),
                facts.ok_or(VerifyError::Corrupt { key: hit.id })?,
            )
        }
        Answer::WrongSecret(parts) => (None, view.facts(parts).ok_or(VerifyError::WrongSecret)?),
        Answer::Corrupt(key) => return Err(VerifyError::Corrupt { key }),
        Answer::Removed | Answer::Unknown => return Err(VerifyError::Unknown),
    };
    Ok(Seen {
        hit,
        facts,
        under_older,
    })
}
