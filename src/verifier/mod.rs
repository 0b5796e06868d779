//! The verifier: parse, look up, compare, check.
//!
//! [`Verifier::verify`] does no I/O and waits for nobody. Its order matters: the instant of the last
//! confirmation is loaded first, then the key is looked up, and only then the clock is read; any
//! other order accepts revoked keys past the bound.

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
pub use self::grant::Grant;
pub(crate) use self::upkeep::Chore;
use self::upkeep::Upkeep;
use crate::clock::{Clock, Reading};
use crate::core::check;
use crate::core::id::KeyId;
use crate::core::need::Need;
use crate::core::pepper::{Pepper, PepperRing};
use crate::core::policy::{LivePolicies, Policies, Policy};
use crate::core::record::Visibility;
use crate::core::rejection::Rejection;
use crate::core::secret::Digest;
use crate::core::subject::{Shape, Subject};
use crate::core::time::Timestamp;
use crate::core::token::{self, Glance, Token, TokenError};
use crate::replica::{Answer, Facts, Half, Kept, Parts, Replica, Sought, View};
use crate::store::KeyStore;

/// Verifies presented keys against a replica.
///
/// Stands alone, or inside [`Keyward`](crate::Keyward).
pub struct Verifier {
    replica: Arc<Replica>,
    store: Arc<dyn KeyStore>,
    policies: Arc<LivePolicies>,
    peppers: Arc<PepperRing>,
    clock: Arc<dyn Clock>,
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
    Token(Token<'a>, Sought),
    /// What may be a key that was imported, by its digest, and why it is no token of ours.
    Foreign(Digest, TokenError),
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
    Sent(Option<Duration>),
    /// It was confirmed after the call began.
    DuringCall,
}

impl Verifier {
    /// A verifier that reads `replica`, and `store` where it is told to.
    pub fn new(
        replica: Arc<Replica>,
        store: Arc<dyn KeyStore>,
        policies: Arc<LivePolicies>,
        peppers: Arc<PepperRing>,
        clock: Arc<dyn Clock>,
    ) -> Self {
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

    /// Verifies what was presented. No I/O, no waiting, and no allocation unless it refuses.
    ///
    /// # Errors
    ///
    /// [`Rejection`] says why not; [`Rejection::public_message`] is what a client may be told.
    pub fn verify(&self, presented: impl AsRef<[u8]>, need: &Need) -> Result<Grant, Rejection> {
        let confirmed = Confirmation::Sent(self.replica.confirmed_at());
        let pinned = self.pinned();
        let claim = Claim::of(presented.as_ref(), &pinned.view)?;
        match self.verify_known(&claim, need, confirmed, pinned) {
            // A store that lives in this process confirms at the moment of use.
            Err(Rejection::Stale { .. } | Rejection::NeedsFresh) if self.replica.confirm_now() => {
                let pinned = self.pinned();
                // Anew: it may be another index by now, in which nothing stands where it stood.
                let claim = Claim::of(presented.as_ref(), &pinned.view)?;
                self.verify_known(&claim, need, Confirmation::DuringCall, pinned)
            }
            verdict => verdict,
        }
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
        let text = token::trim(other.as_ref())?;
        if let Ok(id) = text.parse::<KeyId>() {
            return if id == grant.key_id() {
                Ok(grant)
            } else {
                Err(Rejection::PairMismatch)
            };
        }
        let identity = match self.verify(text, &need.of_publishable_half()) {
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
        self.pinned.store(Arc::new(pinned));
        let now = self.pinned.load();
        if now.versions == (self.replica.version(), self.policies.version()) {
            return now;
        }
        Guard::from_inner(Arc::new(Pinned::of(&self.replica, &self.policies)))
    }

    /// The order matters: the caller loaded `confirmed` first; the key is looked up here; only then
    /// is the clock read.
    fn verify_known(
        &self,
        claim: &Claim<'_>,
        need: &Need,
        confirmed: Confirmation,
        pinned: Guard<Arc<Pinned>>,
    ) -> Result<Grant, Rejection> {
        let view = &*pinned.view;
        let answer = match claim {
            Claim::Token(token, begun) => self.look_up(view, token, *begun),
            Claim::Foreign(digest, _) => view.imported(digest),
        };
        let (hit, facts) = match answer {
            Answer::Hit(hit) => match view.facts(hit.parts) {
                Some(facts) => (Some(hit), facts),
                None => return Err(Rejection::Corrupt { key: hit.id }),
            },
            Answer::WrongSecret(parts) => match view.facts(parts) {
                Some(facts) => (None, facts),
                None => return Err(Rejection::WrongSecret),
            },
            Answer::Corrupt(key) => return Err(Rejection::Corrupt { key }),
            Answer::Removed | Answer::Unknown => return Err(Rejection::Unknown),
        };
        let policy = pinned.policies.of_whose(|| &facts.holder.get().tenant);
        let Reading { wall, monotonic } = self.clock.read();
        let now = wall.max(view.index().newest());
        check_fresh(policy, facts.shape, confirmed, monotonic)?;
        let Some(hit) = hit else {
            return Err(self.wrong_secret(claim, &facts));
        };
        let course = match view.course(&hit, &facts, now) {
            Kept::Known(course) => course,
            Kept::Removed => return Err(Rejection::Unknown),
            Kept::Corrupt => return Err(Rejection::Corrupt { key: hit.id }),
        };
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
            (Choice::from(1), claim.prefix()),
            policy,
            (facts.standing, pinned.kind(hit.parts, &facts)),
            need,
            now,
        )?;
        self.notice(claim, subject);
        view.count(&hit, now);
        let (standing_id, id) = (facts.standing_id, hit.id);
        Ok(Grant::of_index(pinned, id, (&hit, standing_id), now))
    }

    /// Looks a token's key up by its id, and compares its secret.
    #[inline]
    fn look_up(&self, view: &View, token: &Token<'_>, begun: Sought) -> Answer {
        let half = half_of(self.peppers.current(), token);
        match view.end(token.id(), begun, half) {
            answer @ (Answer::Hit(_) | Answer::Corrupt(_)) => answer,
            answer => self.look_up_under_older(view, token, answer, (begun, half)),
        }
    }

    /// While there are older peppers: whatever the answer, one of them is tried, so that the time
    /// tells nothing about the key (trap 6).
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
        let facts = match answer {
            Answer::WrongSecret(parts) => view.facts(parts),
            _ => None,
        };
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
    fn wrong_secret(&self, claim: &Claim<'_>, facts: &Facts<'_>) -> Rejection {
        match &facts.shape.pepper {
            Some(pepper) if self.peppers.live(pepper).is_none() => {
                let key = claim.id().map(tracing::field::display);
                tracing::error!(%pepper, key, "pepper is not in the ring");
                Rejection::UnknownPepper {
                    pepper: pepper.clone(),
                }
            }
            _ => Rejection::WrongSecret,
        }
    }

    /// Queues what a successful verification leaves to do: nothing of it is done here (trap 24).
    fn notice(&self, claim: &Claim<'_>, subject: Subject<'_>) {
        let Subject {
            id, whose, shape, ..
        } = subject;
        if subject.course.awaits_first_use {
            self.upkeep
                .push(Chore::first_use(&whose.holder().tenant, id));
        }
        let current = self.peppers.current();
        if let (Some(pepper), Claim::Token(token, _)) = (&shape.pepper, claim)
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

/// Refuses if the index was not confirmed within the bound of the key's class.
fn check_fresh(
    policy: &Policy,
    shape: &Shape,
    confirmed: Confirmation,
    monotonic: Duration,
) -> Result<(), Rejection> {
    let Confirmation::Sent(sent) = confirmed else {
        return Ok(());
    };
    let bound = policy.propagation(&shape.class).bound;
    if bound.is_zero() {
        return Err(Rejection::NeedsFresh);
    }
    let age = sent.map(|sent| monotonic.saturating_sub(sent));
    match age {
        Some(age) if age <= bound => Ok(()),
        age => Err(Rejection::Stale {
            age: age.unwrap_or(Duration::MAX),
            bound,
        }),
    }
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
    /// What was presented, if it may be a key of those in `view`. Begins to look for it first, so
    /// that its memory comes while the text is checked and digested.
    #[inline]
    fn of(presented: &'a [u8], view: &View) -> Result<Self, TokenError> {
        let glance = Glance::at(presented);
        let begun = glance.id().map(|id| view.begin(id));
        match (glance.parse(), begun) {
            (Ok(token), Some(begun)) => Ok(Self::Token(token, begun)),
            (Ok(_), None) => Err(TokenError::Id),
            (Err(error), _) if !view.index().has_imported() => Err(error),
            (Err(error), _) => Self::foreign(presented, error),
        }
    }

    /// What was presented, if it is no token of ours.
    fn foreign(presented: &[u8], error: TokenError) -> Result<Self, TokenError> {
        let digest = Digest::sha256(token::trim(presented)?);
        Ok(Self::Foreign(digest, error))
    }

    const fn id(&self) -> Option<KeyId> {
        match self {
            Self::Token(token, _) => Some(token.id()),
            Self::Foreign(..) => None,
        }
    }

    const fn prefix(&self) -> Option<&'a [u8]> {
        match self {
            Self::Token(token, _) => Some(token.prefix_bytes()),
            Self::Foreign(..) => None,
        }
    }
}
