//! The verifier: parse, look up, compare, check.
//!
//! [`Verifier::verify`] does no I/O and waits for nobody. Its order matters: the instant of the last
//! confirmation is loaded first, then the key is looked up, and only then the clock is read; any
//! other order accepts revoked keys past the bound.

mod fetch;
mod grant;
mod upkeep;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use subtle::ConstantTimeEq;

pub use self::grant::Grant;
pub(crate) use self::upkeep::Chore;
use self::upkeep::Upkeep;
use crate::clock::Clock;
use crate::core::check::{self, Need, Presented, Rejection};
use crate::core::id::KeyId;
use crate::core::owner::Standing;
use crate::core::pepper::PepperRing;
use crate::core::policy::{Policies, Policy};
use crate::core::record::{Credential, ImportScheme, KeyRecord, Visibility};
use crate::core::secret::Digest;
use crate::core::time::Timestamp;
use crate::core::token::{self, Token, TokenError};
use crate::replica::{Index, Key, Replica};
use crate::store::KeyStore;

/// How many keys one verifier reads through the store at once: a flood of unknown ids must not
/// become a flood of reads. A judgement.
const MAX_FETCHES: usize = 16;

/// Verifies presented keys against a replica.
///
/// Stands alone, or inside [`Keyward`](crate::Keyward).
pub struct Verifier {
    replica: Arc<Replica>,
    store: Arc<dyn KeyStore>,
    policies: Arc<ArcSwap<Policies>>,
    peppers: Arc<PepperRing>,
    clock: Arc<dyn Clock>,
    upkeep: Upkeep,
    fetches: async_lock::Semaphore,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("peppers", &self.peppers)
            .finish_non_exhaustive()
    }
}

/// What was presented, once it is known to be worth hashing.
struct Claim<'a> {
    text: &'a str,
    token: Result<Token<'a>, TokenError>,
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
        policies: Arc<ArcSwap<Policies>>,
        peppers: Arc<PepperRing>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let fetches = async_lock::Semaphore::new(MAX_FETCHES);
        Self {
            replica,
            store,
            policies,
            peppers,
            clock,
            upkeep: Upkeep::default(),
            fetches,
        }
    }

    /// Verifies what was presented. No I/O, no waiting.
    ///
    /// # Errors
    ///
    /// [`Rejection`] says why not; [`Rejection::public_message`] is what a client may be told.
    pub fn verify(&self, presented: impl AsRef<[u8]>, need: &Need) -> Result<Grant, Rejection> {
        let claim = self.claim(presented.as_ref())?;
        let confirmed = Confirmation::Sent(self.replica.confirmed_at());
        match self.verify_known(&claim, need, confirmed) {
            // A store that lives in this process confirms at the moment of use.
            Err(Rejection::Stale { .. } | Rejection::NeedsFresh) if self.replica.confirm_now() => {
                self.verify_known(&claim, need, Confirmation::DuringCall)
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

    /// What was presented, if it may be a key of those known here.
    fn claim<'a>(&self, presented: &'a [u8]) -> Result<Claim<'a>, Rejection> {
        match Claim::of(presented)? {
            Claim {
                token: Err(error), ..
            } if !self.replica.index().has_imported() => Err(error.into()),
            claim => Ok(claim),
        }
    }

    fn verify_known(
        &self,
        claim: &Claim<'_>,
        need: &Need,
        confirmed: Confirmation,
    ) -> Result<Grant, Rejection> {
        let index = self.replica.index();
        let (record, standing) = match claim.look_up(&index) {
            Some(Key::Known { record, standing }) => (record, standing.load_full()),
            Some(Key::Corrupt) => return Err(self.unreadable(claim)),
            Some(Key::Removed) | None => return Err(self.unknown(claim)),
        };
        let policies = self.policies.load();
        let policy = policies.of(&record.tenant);
        let now = self.clock.now().max(index.newest());
        self.check_fresh(policy, &record, confirmed)?;
        self.judge(claim, record, standing, policy, need, now)
    }

    /// Refuses if the index was not confirmed within the bound of the key's class. Reads the clock,
    /// and so comes after the look-up.
    fn check_fresh(
        &self,
        policy: &Policy,
        record: &KeyRecord,
        confirmed: Confirmation,
    ) -> Result<(), Rejection> {
        let Confirmation::Sent(sent) = confirmed else {
            return Ok(());
        };
        let bound = policy.propagation(&record.class).bound;
        if bound.is_zero() {
            return Err(Rejection::NeedsFresh);
        }
        let age = sent.map(|sent| self.clock.monotonic().saturating_sub(sent));
        match age {
            Some(age) if age <= bound => Ok(()),
            age => Err(Rejection::Stale {
                age: age.unwrap_or(Duration::MAX),
                bound,
            }),
        }
    }

    fn judge(
        &self,
        claim: &Claim<'_>,
        record: Arc<KeyRecord>,
        standing: Arc<Standing>,
        policy: &Arc<Policy>,
        need: &Need,
        now: Timestamp,
    ) -> Result<Grant, Rejection> {
        let (digest, prefix) = self.digest(claim, &record.credential)?;
        let presented = Presented {
            digest: &digest,
            prefix,
        };
        check::check(&record, presented, policy, &standing, need, now)?;
        self.notice(claim, &record);
        Ok(Grant::new(record, standing, policy.clone(), now))
    }

    /// Digests what was presented in the way that `credential` was made.
    fn digest<'a>(
        &self,
        claim: &Claim<'a>,
        credential: &Credential,
    ) -> Result<(Digest, Option<&'a str>), Rejection> {
        match (credential, claim.token) {
            (
                Credential::Imported {
                    scheme: ImportScheme::Sha256,
                    ..
                },
                _,
            ) => Ok((Digest::sha256(claim.text), None)),
            (Credential::Peppered { pepper, .. }, Ok(token)) => match self.peppers.live(pepper) {
                Some(pepper) => Ok((pepper.digest(token.id_and_secret()), Some(token.prefix()))),
                None => {
                    tracing::error!(%pepper, key = %token.id(), "pepper is not in the ring");
                    Err(Rejection::UnknownPepper {
                        pepper: pepper.clone(),
                    })
                }
            },
            (Credential::Peppered { .. }, Err(_)) => Err(Rejection::WrongSecret),
        }
    }

    /// What an unknown key is told, after the same work as for a known one (trap 6).
    fn unknown(&self, claim: &Claim<'_>) -> Rejection {
        let token = match claim.token {
            Ok(token) => token,
            // Where there are imported keys, it may be one that was not heard of here yet.
            Err(_) if self.replica.index().has_imported() => return Rejection::Unknown,
            Err(error) => return error.into(),
        };
        let digest = self.peppers.current().digest(token.id_and_secret());
        let nothing = Digest::from_bytes([0; 32]);
        std::hint::black_box(digest.ct_eq(&nothing));
        Rejection::Unknown
    }

    fn unreadable(&self, claim: &Claim<'_>) -> Rejection {
        match claim.token {
            Ok(token) => Rejection::Corrupt { key: token.id() },
            Err(error) => error.into(),
        }
    }

    /// Queues what a successful verification leaves to do: nothing of it is done here (trap 24).
    fn notice(&self, claim: &Claim<'_>, record: &KeyRecord) {
        if record.awaits_first_use() {
            self.upkeep.push(Chore::first_use(record));
        }
        let current = self.peppers.current();
        if let (
            Credential::Peppered {
                pepper,
                digest: stands,
            },
            Ok(token),
        ) = (&record.credential, claim.token)
            && pepper != current.id()
        {
            let digest = current.digest(token.id_and_secret());
            self.upkeep.push(Chore::redigest(
                record,
                pepper,
                current.id(),
                (*stands, digest),
            ));
        }
    }

    /// Takes the next thing that verifications left to do.
    pub(crate) fn next_chore(&self) -> Option<Chore> {
        self.upkeep.pop()
    }
}

impl<'a> Claim<'a> {
    fn of(presented: &'a [u8]) -> Result<Self, TokenError> {
        let token = token::parse(presented);
        Ok(Self {
            text: token::trim(presented)?,
            token,
        })
    }

    /// A token of ours is found by its id alone: a key that was deleted does not come back by an
    /// import of its digest, even where its tombstone is gone (invariant 2).
    fn look_up(&self, index: &Index) -> Option<Key> {
        match self.token {
            Ok(token) => index.key(token.id()),
            Err(_) => {
                let id = index.imported(&Digest::sha256(self.text))?;
                index.key(id)
            }
        }
    }
}
