//! Verification of several keys in one call.

use std::array;
use std::sync::Arc;

use arc_swap::Guard;

use super::{Grant, Need, Verifier, digest_prefix_of};
use crate::core::rejection::VerifyError;
use crate::core::token;

/// 16 keys: a batch looks up this many at a time, about as many memory reads as a processor keeps in flight.
const BATCH_SIZE: usize = 16;

impl Verifier {
    /// Verifies several keys for the same need. Returns one verdict for each key, in order, equal to the
    /// verdict of [`verify`](Self::verify). The memory reads of different keys overlap, so in a large index a
    /// batch is faster than single calls.
    #[must_use]
    pub fn verify_many<P: AsRef<[u8]>>(
        &self,
        presented: &[P],
        need: &Need,
    ) -> Vec<Result<Grant, VerifyError>> {
        let mut verdicts = Vec::with_capacity(presented.len());
        for some in presented.chunks(BATCH_SIZE) {
            self.verify_some(some, need, &mut verdicts);
        }
        verdicts
    }

    /// Verifies at most [`BATCH_SIZE`] keys, in the order of a single verification: load the time of the last
    /// confirmation, look up all keys, and then read the clock.
    ///
    /// Each step is taken for all keys before the next one. So the memory of all slots is on its way at the same time,
    /// and a digest begins before the one before it has ended.
    fn verify_some<P: AsRef<[u8]>>(
        &self,
        presented: &[P],
        need: &Need,
        verdicts: &mut Vec<Result<Grant, VerifyError>>,
    ) {
        let confirmed = self.confirmed();
        // One owned reference to the snapshot, which all grants share.
        let snapshot = Guard::into_inner(self.snapshot());
        let (view, pepper) = (&*snapshot.view, self.peppers.current());
        let sought: [_; BATCH_SIZE] = array::from_fn(|at| {
            let token = token::parse(presented.get(at)?.as_ref()).ok()?;
            Some((token, view.prefetch(token.id())))
        });
        let digests = sought
            .each_ref()
            .map(|sought| Some(digest_prefix_of(pepper, &sought.as_ref()?.0)));
        let found: [_; BATCH_SIZE] = array::from_fn(|at| {
            let found = view.search(sought[at].as_ref()?.1, digests[at]?);
            Some((view.proven(&found), found))
        });
        let read = self.clock.judged();
        for (at, presented) in presented.iter().enumerate() {
            let (Some((token, sought)), Some(digest), Some((proven, found))) =
                (&sought[at], digests[at], &found[at])
            else {
                verdicts.push(self.verify(presented.as_ref(), need));
                continue;
            };
            let shared = || Guard::from_inner(Arc::clone(&snapshot));
            let accepted = proven
                .as_ref()
                .and_then(|key| self.accept(&snapshot, token, key, (confirmed, read), need));
            if let Some(accepted) = accepted {
                verdicts.push(Ok(Grant::of_index(shared(), accepted)));
                continue;
            }
            let found = (*sought, digest, *found);
            let verdict = self.verify_found(&snapshot, token, found, confirmed, need);
            verdicts.push(match verdict {
                Ok(accepted) => Ok(Grant::of_index(shared(), accepted)),
                // If the store is in this process, it may confirm the index now. So verify the key again.
                Err(VerifyError::Stale { .. } | VerifyError::NeedsFresh) => {
                    self.verify(presented.as_ref(), need)
                }
                Err(rejection) => Err(rejection),
            });
        }
    }
}
