//! A verifier over a replica of a synthetic store.

use std::hint::black_box;
use std::sync::Arc;

use keyward::clocks::SystemClock;
use keyward::node::{Replica, Verifier};
use keyward::policy::{LivePolicies, Policy, Propagation};
use keyward::{Clock, Need, VerifyError, days, profiles};
use pollster::block_on;

use crate::Random;
use crate::batch::Batch;
use crate::keys::{KeyKind, Keys, SCOPE};
use crate::store::{Feed, SyntheticStore};

/// A verifier with its replica and store, as a service keeps them in memory.
pub struct BenchVerifier {
    pub store: Arc<SyntheticStore>,
    pub replica: Arc<Replica>,
    pub verifier: Verifier,
    pub keys: Keys,
}

impl BenchVerifier {
    /// Creates a verifier with an empty replica.
    pub fn empty(keys: Keys, scanned: u64, feed: Feed) -> Self {
        Self::empty_at(keys, scanned, feed, Arc::new(SystemClock))
    }

    /// Creates a verifier with an empty replica, on the given clock.
    pub fn empty_at(keys: Keys, scanned: u64, feed: Feed, clock: Arc<dyn Clock>) -> Self {
        let store = Arc::new(SyntheticStore::new(keys.clone(), scanned, feed));
        let replica = Arc::new(Replica::new(store.clone(), clock.clone()));
        let mut spec = profiles::standard();
        // The staleness bound is so long that no verification during a run is refused as stale.
        spec.propagation = Propagation { bound: days(1) };
        let policies = Policy::new(spec).unwrap();
        let verifier = Verifier::new(
            replica.clone(),
            store.clone(),
            Arc::new(LivePolicies::new(policies)),
            Arc::new(keys.peppers()),
        );
        Self {
            store,
            replica,
            verifier,
            keys,
        }
    }

    pub fn load(keys: Keys, scanned: u64) -> Self {
        let served = Self::empty(keys, scanned, Feed::Mixed);
        served.sync();
        served
    }

    /// Creates a verifier and loads `keys` secret keys.
    pub fn secret(keys: u64) -> Self {
        Self::load(Keys::new(KeyKind::Secret, keys), keys)
    }

    pub fn sync(&self) {
        block_on(self.replica.sync()).unwrap();
    }

    /// Verifies the tokens of a batch one after another. Returns the number of accepted tokens.
    pub fn run(&self, batch: &Batch, need: &Need) -> usize {
        // `nothing` is 0, but the compiler cannot know this. So the next position depends on the last
        // verdict, and verifications cannot overlap.
        let nothing = black_box(0);
        let (mut at, mut granted) = (0, 0);
        while at < batch.len() {
            let verdict = black_box(self.verifier.verify(batch.at(at), need));
            granted += usize::from(verdict.is_ok());
            let word = match verdict {
                Ok(grant) => grant.key_id().to_u128() as usize,
                Err(rejection) => rejection.kind() as usize,
            };
            at += 1 + (word & nothing);
        }
        granted
    }

    /// Checks the verdicts of a batch with `right`, so that the benchmark measures the operation that its
    /// name promises.
    pub fn expect(&self, batch: &Batch, need: &Need, right: fn(&Result<(), VerifyError>) -> bool) {
        for at in 0..batch.len().min(50) {
            let verdict = self.verifier.verify(batch.at(at), need).map(drop);
            assert!(right(&verdict), "{verdict:?}");
        }
    }
}

/// Returns the need that every measured verification checks.
pub fn need() -> Need {
    Need::scope(SCOPE).unwrap()
}

/// The kinds of tokens that the benchmarks present.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TokenKind {
    Valid,
    WrongSecret,
    Unknown,
    Malformed,
    BadChecksum,
    Foreign,
}

impl TokenKind {
    pub const ALL: [Self; 6] = [
        Self::Valid,
        Self::WrongSecret,
        Self::Unknown,
        Self::Malformed,
        Self::BadChecksum,
        Self::Foreign,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::WrongSecret => "wrong secret",
            Self::Unknown => "unknown id",
            Self::Malformed => "malformed",
            Self::BadChecksum => "bad checksum",
            Self::Foreign => "another service's token",
        }
    }

    pub fn batch(self, keys: &Keys, among: u64, count: usize, random: &mut Random) -> Batch {
        match self {
            Self::Valid => Batch::valid(keys, among, count, random),
            Self::WrongSecret => Batch::wrong_secret(keys, among, count, random),
            Self::Unknown => Batch::unknown(keys, among, count, random),
            Self::Malformed => Batch::malformed(keys, among, count, random),
            Self::BadChecksum => Batch::bad_checksum(keys, among, count, random),
            Self::Foreign => Batch::foreign(count, random),
        }
    }

    pub const fn right(self) -> fn(&Result<(), VerifyError>) -> bool {
        match self {
            Self::Valid => |verdict| verdict.is_ok(),
            Self::WrongSecret => |verdict| *verdict == Err(VerifyError::WrongSecret),
            Self::Unknown => |verdict| *verdict == Err(VerifyError::Unknown),
            Self::Malformed | Self::BadChecksum | Self::Foreign => {
                |verdict| matches!(verdict, Err(VerifyError::Malformed(_)))
            }
        }
    }
}
