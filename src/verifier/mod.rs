//! The verifier: parse, look up, compare, check.
//!
//! [`Verifier::verify`] does no I/O and waits for nobody. Its order matters: the instant of the last
//! confirmation is loaded first, then the key is looked up, and only then the clock is read; any
//! other order accepts revoked keys past the bound.

mod batch;
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

use self::fetch::Flights;
pub use self::fetch::{PastBound, ReadThrough};
use self::grant::Accepted;
pub use self::grant::Grant;
pub(crate) use self::upkeep::Chore;
use self::upkeep::Upkeep;
use crate::clock::Reading;
use crate::core::check;
use crate::core::checked_time::{Ending, judge_end};
use crate::core::id::KeyId;
use crate::core::need::Need;
use crate::core::pepper::{Pepper, PepperRing};
use crate::core::policy::{LivePolicies, Policies, Policy};
use crate::core::record::Visibility;
use crate::core::rejection::Rejection;
use crate::core::secret::Digest;
use crate::core::subject::{Course, Shape, Subject};
use crate::core::time::Timestamp;
use crate::core::token::{self, Token, TokenError};
use crate::replica::{Answer, Facts, Half, Hit, Kept, Parts, Replica, Sought, View};
use crate::store::KeyStore;
use crate::timekeeper::Timekeeper;

/// Verifies presented keys against a replica.
///
/// Stands alone, or inside [`Keyward`](crate::Keyward).
pub struct Verifier {
    replica: Arc<Replica>,
    store: Arc<dyn KeyStore>,
    policies: Arc<LivePolicies>,
    peppers: Arc<PepperRing>,
    clock: Arc<Timekeeper>,
    pinned: ArcSwap<Pinned>,
    upkeep: Upkeep,
    flights: Flights,
    past_bound: PastBound,
}

/// All that a verification reads, so that one look at a shared place is enough.
struct Pinned {
    view: Arc<View>,
    policies: Arc<Policies>,
    /// Of which view and which policies.
    versions: (u64, u64),
    /// No two of a process have the same; `None` once there are no more of them.
    generation: Option<NonZeroU64>,
}

/// How a kind of key is told in one word: a third of its bits for each of the numbers that make it.
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

/// What was presented, once it is known to be worth hashing.
enum Claim<'a> {
    /// A token of ours. It is found by its id alone: a key that was deleted does not come back by an
    /// import of its digest, even where its tombstone is gone (invariant 2).
    Token(Token<'a>),
    /// What may be a key that was imported, by its digest, and why it is no token of ours.
    Foreign(Digest, TokenError),
}

/// What the index says of a key that was presented.
struct Seen<'v> {
    /// `None` if the secret is not the key's.
    hit: Option<Hit>,
    facts: Facts<'v>,
    /// Whether its digest was made under an older pepper.
    under_older: bool,
}

/// How often a key was accepted, and when last.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Uses {
    /// How often.
    pub count: u64,
    /// When last, or up to 64 seconds before that; `None` if it was not.
    pub last: Option<Timestamp>,
}

/// How far the index can be trusted at the moment of use.
#[derive(Clone, Copy)]
enum Confirmation {
    /// The read that confirmed it was sent then, if ever.
    Sent(Option<Reading>),
    /// It was confirmed after the call began.
    DuringCall,
}

impl Verifier {
    /// Returns a verifier that reads `replica` and its clock, and reads keys through `store` where it must.
    pub fn new(
        replica: Arc<Replica>,
        store: Arc<dyn KeyStore>,
        policies: Arc<LivePolicies>,
        peppers: Arc<PepperRing>,
    ) -> Self {
        let clock = replica.time().clone();
        let pinned = ArcSwap::from_pointee(Pinned::of(&replica, &policies));
        Self {
            replica,
            store,
            policies,
            peppers,
            clock,
            pinned,
            upkeep: Upkeep::default(),
            flights: Flights::new(ReadThrough::default()),
            past_bound: PastBound::default(),
        }
    }

    /// Sets how many keys it reads through the store. Defaults to [`ReadThrough::default`].
    #[must_use]
    pub fn with_read_through(mut self, bounds: ReadThrough) -> Self {
        self.flights = Flights::new(bounds);
        self
    }

    /// Sets what it does with a key once its bound is passed. Defaults to [`PastBound::Refuse`].
    #[must_use]
    pub const fn with_past_bound(mut self, past_bound: PastBound) -> Self {
        self.past_bound = past_bound;
        self
    }

    /// Verifies what was presented. No I/O, no waiting, and no allocation unless it refuses, but for
    /// what a [`Need`] remembers once of the kinds of keys that meet it.
    ///
    /// # Errors
    ///
    /// [`Rejection`] says why not; [`Rejection::public_message`] is what a client may be told.
    pub fn verify(&self, presented: impl AsRef<[u8]>, need: &Need) -> Result<Grant, Rejection> {
        let presented = presented.as_ref();
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
    fn verify_confirmed(&self, token: &Token<'_>, need: &Need) -> Result<Grant, Rejection> {
        self.verify_token(token, need, Confirmation::DuringCall)
    }

    /// Verifies what is no token of ours: it may be a key that was imported.
    #[inline(never)]
    fn verify_foreign(
        &self,
        presented: &[u8],
        error: TokenError,
        need: &Need,
    ) -> Result<Grant, Rejection> {
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

    /// Whether it was refused for want of a confirmation that a store in this process gave since, at
    /// the moment of use.
    #[inline]
    fn may_confirm(&self, verdict: &Result<Grant, Rejection>) -> bool {
        matches!(
            verdict,
            Err(Rejection::Stale { .. } | Rejection::NeedsFresh)
        ) && self.replica.confirm_now()
    }

    /// Verifies a secret key together with what goes with it: its own key id, or a publishable key
    /// of the same tenant and environment (rules A2-15, I-02). The grant is the secret key's.
    ///
    /// # Errors
    ///
    /// [`Rejection`], about the secret key first; about the other half only to a holder of the
    /// secret.
    pub fn verify_pair(
        &self,
        other: impl AsRef<[u8]>,
        secret: impl AsRef<[u8]>,
        need: &Need,
    ) -> Result<Grant, Rejection> {
        let grant = self.verify(secret, need)?;
        match publishable_half(&grant, other.as_ref())? {
            None => Ok(grant),
            Some(text) => together(grant, self.verify(text, &need.of_publishable_half())),
        }
    }

    /// What verifications read, as it is now.
    #[inline]
    fn pinned(&self) -> Guard<Arc<Pinned>> {
        let pinned = self.pinned.load();
        if pinned.versions == (self.replica.version(), self.policies.version()) {
            return pinned;
        }
        self.pin()
    }

    #[cold]
    fn pin(&self) -> Guard<Arc<Pinned>> {
        let pinned = Pinned::of(&self.replica, &self.policies);
        // Of two that do so at once the older may win: the next call sees its number.
        let old = self.pinned.swap(Arc::new(pinned));
        let now = self.pinned.load();
        if !Arc::ptr_eq(&old.view, &now.view) {
            // Freed by whoever syncs next, and not in the middle of a request: it may be a lot.
            self.replica.leave_behind(old.view.clone());
        }
        if now.versions == (self.replica.version(), self.policies.version()) {
            return now;
        }
        Guard::from_inner(Arc::new(Pinned::of(&self.replica, &self.policies)))
    }

    /// The order matters: the caller loaded `confirmed` first; the key is looked up here; only then
    /// is the clock read.
    #[inline(always)]
    fn verify_token(
        &self,
        token: &Token<'_>,
        need: &Need,
        confirmed: Confirmation,
    ) -> Result<Grant, Rejection> {
        let pinned = self.pinned();
        let view = &*pinned.view;
        // Its memory comes while the token is digested.
        let begun = view.begin(token.id());
        let (answer, under_older) = self.look_up(view, token, begun);
        let seen = see(view, answer, under_older);
        let times = (confirmed, self.clock.judged());
        let accepted = self.conclude(&pinned, Some(token), seen?, times, need)?;
        Ok(Grant::of_index(pinned, accepted))
    }

    /// The same for what may be a key that was imported.
    fn verify_digest(
        &self,
        digest: &Digest,
        error: TokenError,
        need: &Need,
        confirmed: Confirmation,
    ) -> Result<Grant, Rejection> {
        let pinned = self.pinned();
        let view = &*pinned.view;
        if !view.index().has_imported() {
            return Err(error.into());
        }
        let seen = see(view, view.imported(digest), false);
        let times = (confirmed, self.clock.judged());
        let accepted = self.conclude(&pinned, None, seen?, times, need)?;
        Ok(Grant::of_index(pinned, accepted))
    }

    /// Judges what was seen of a key before the clock was read.
    #[inline(always)]
    fn conclude(
        &self,
        pinned: &Pinned,
        token: Option<&Token<'_>>,
        seen: Seen<'_>,
        (confirmed, (reading, now)): (Confirmation, (Reading, Timestamp)),
        need: &Need,
    ) -> Result<Accepted, Rejection> {
        let view = &*pinned.view;
        let Seen {
            hit,
            facts,
            under_older,
        } = seen;
        let policy = pinned.policies.of_whose(|| &facts.holder.get().tenant);
        let newest = view.index().newest();
        check_fresh(policy, facts.shape, confirmed, reading)?;
        let Some(hit) = hit else {
            return Err(self.wrong_secret(view, token, &facts));
        };
        let own = (facts.standing, pinned.kind(hit.parts, &facts));
        // What a key reaches into has a say: it may be closed, or the owner removed or lowered there.
        let reached = need
            .tenant()
            .and_then(|tenant| view.standing_in(&facts, tenant));
        let standing = match &reached {
            Some(reached) => (&**reached, None),
            None => own,
        };
        let course = match view.course(&hit, standing.0, now.max(newest)) {
            Kept::Known(course) => course,
            Kept::Removed => return Err(Rejection::Unknown),
            Kept::Corrupt => return Err(Rejection::Corrupt { key: hit.id }),
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
            // Whoever holds half of the digest holds the secret: it was compared in constant time.
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

    /// Judges a key that ends between the time and the newest commit of the store: some tenant claims that
    /// its end has come. `floor` is the newest instant of the key's own tenant. Returns the instant at which the key
    /// is to be judged.
    #[cold]
    fn judge_end(
        &self,
        (key, course): (KeyId, &Course),
        floor: Option<Timestamp>,
        (now, reading): (Timestamp, Reading),
    ) -> Result<Timestamp, Rejection> {
        let (time, end) = (&self.clock, course.expires_at.unwrap_or(now));
        let confirmed = || time.confirms(now, reading.monotonic);
        match judge_end(end, now, floor, confirmed, time.allowance()) {
            Ending::Alive => Ok(now),
            Ending::Ended => Ok(end),
            Ending::Unsure => {
                let floor = floor.unwrap_or(end);
                Err(Rejection::ClockUnsure { key, now, floor })
            }
        }
    }

    /// Looks a token's key up by its id, and compares its secret. Tells whether it was digested under
    /// an older pepper.
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

    /// While there are older peppers: whatever the answer, one of them is tried, so that the time
    /// tells nothing about the key (trap 6).
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
        // Of the id's own row: the slot that was found first may be another key's of the same hash.
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
            // Meanwhile the key may have come under the current one, and is good all along.
            _ => view.end(token.id(), begun, current),
        }
    }

    /// A secret that nothing is known of: the key's pepper may be missing.
    fn wrong_secret(&self, view: &View, token: Option<&Token<'_>>, facts: &Facts<'_>) -> Rejection {
        let missing = |facts: &Facts<'_>| {
            let pepper = facts.shape.pepper.as_ref()?;
            self.peppers.live(pepper).is_none().then(|| pepper.clone())
        };
        // Seldom, and only then is it asked whether the key is the one that was meant.
        let pepper = missing(facts).and_then(|_| missing(&view.facts_of(token?.id())?));
        match pepper {
            Some(pepper) => {
                let key = token.map(Token::id).map(tracing::field::display);
                tracing::error!(%pepper, key, "pepper is not in the ring");
                Rejection::UnknownPepper { pepper }
            }
            None => Rejection::WrongSecret,
        }
    }

    /// Has the digest of a key stored anew later, if its pepper is not the current one: nothing of it is
    /// done here (trap 24).
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
            let chore =
                Chore::redigest(&whose.holder().tenant, id, (pepper, current.id()), digests);
            self.upkeep.push(chore);
        }
    }

    /// How often this verifier's process accepted a key since it started, and when last, to
    /// about a minute; `None` if it does not know the key. Counted in memory alone.
    #[must_use]
    pub fn uses(&self, key: KeyId) -> Option<Uses> {
        let (count, last) = self.pinned().view.uses(key)?;
        let last = (count > 0).then(|| Timestamp::from_unix_seconds(last.into()).ok());
        let last = last.flatten();
        Some(Uses { count, last })
    }

    /// Lets go of what later verifications will not read. A verification does so by itself; where
    /// none comes, memory would be kept.
    pub(crate) fn refresh(&self) {
        drop(self.pinned());
    }

    /// Takes the next thing that verifications left to do.
    pub(crate) fn next_chore(&self) -> Option<Chore> {
        self.upkeep.pop()
    }
}

/// What else was presented with a key, if it is not the key's own id: it has to be a publishable key.
fn publishable_half<'a>(grant: &Grant, other: &'a [u8]) -> Result<Option<&'a str>, Rejection> {
    let text = token::trim(other)?;
    match text.parse::<KeyId>() {
        Ok(id) if id == grant.key_id() => Ok(None),
        Ok(_) => Err(Rejection::PairMismatch),
        Err(_) => Ok(Some(text)),
    }
}

/// The grant of a pair's secret half, if what became of the other half belongs to it.
fn together(grant: Grant, other: Result<Grant, Rejection>) -> Result<Grant, Rejection> {
    let identity = match other {
        Err(Rejection::WrongClass { .. }) => return Err(Rejection::PairMismatch),
        verdict => verdict?,
    };
    let belongs = identity.visibility() == Visibility::Publishable
        && identity.tenant() == grant.tenant()
        && identity.environment() == grant.environment();
    if belongs {
        Ok(grant)
    } else {
        Err(Rejection::PairMismatch)
    }
}

/// Refuses if the index was not confirmed within the bound of the key's class.
#[inline(always)]
fn check_fresh(
    policy: &Policy,
    shape: &Shape,
    confirmed: Confirmation,
    reading: Reading,
) -> Result<(), Rejection> {
    let Confirmation::Sent(sent) = confirmed else {
        return Ok(());
    };
    let bound = policy.propagation(&shape.class).bound;
    if bound.is_zero() {
        return Err(Rejection::NeedsFresh);
    }
    if sent.is_some_and(|sent| reading.is_within(bound, sent)) {
        return Ok(());
    }
    let age = sent.map_or(Duration::MAX, |sent| reading.since(sent));
    Err(Rejection::Stale { age, bound })
}

#[inline]
fn half_of(pepper: &Pepper, token: &Token<'_>) -> Half {
    Half::of(pepper.digest(token.id_and_secret()).as_bytes())
}

impl Pinned {
    fn of(replica: &Replica, policies: &LivePolicies) -> Self {
        let (version, view) = replica.view();
        // First: the policies may be newer than their number, and never older.
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

    /// What a key has in common with all that meet a need as it does: the same policy, shape and
    /// standing (which differs for keys of a person and of a tenant). `None` where that cannot be told in one word.
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
    /// What was presented, whether it may be known here or not.
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

/// What the answer of an index means, and what the key shares with others as it stands.
#[inline(always)]
fn see(view: &View, answer: Answer, under_older: bool) -> Result<Seen<'_>, Rejection> {
    let (hit, facts) = match answer {
        Answer::Hit(hit) => {
            let facts = view.facts(hit.parts);
            (Some(hit), facts.ok_or(Rejection::Corrupt { key: hit.id })?)
        }
        Answer::WrongSecret(parts) => (None, view.facts(parts).ok_or(Rejection::WrongSecret)?),
        Answer::Corrupt(key) => return Err(Rejection::Corrupt { key }),
        Answer::Removed | Answer::Unknown => return Err(Rejection::Unknown),
    };
    Ok(Seen {
        hit,
        facts,
        under_older,
    })
}
