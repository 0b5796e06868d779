//! Verification of several keys in one call.

use std::array;
use std::sync::Arc;

use arc_swap::Guard;

use super::{Grant, Need, Verifier, resolve};
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
    fn verify_some<P: AsRef<[u8]>>(
        &self,
        presented: &[P],
        need: &Need,
        verdicts: &mut Vec<Result<Grant, VerifyError>>,
    ) {
        let confirmed = self.confirmed();
        // One owned reference to the snapshot, which all grants share.
        let snapshot = Guard::into_inner(self.snapshot());
        let view = &*snapshot.view;
        let tokens: [_; BATCH_SIZE] = array::from_fn(|at| {
            let token = token::parse(presented.get(at)?.as_ref()).ok()?;
            Some((token, view.prefetch(token.id())))
        });
        let resolved = tokens.each_ref().map(|token| {
            let (token, prefetched) = token.as_ref()?;
            let (answer, under_older) = self.look_up(view, token, *prefetched);
            Some(resolve(view, answer, under_older))
        });
        let reading = self.clock.judged();
        let each = presented.iter().zip(tokens).zip(resolved);
        verdicts.extend(each.map(|((presented, token), resolved)| {
            let (Some((token, _)), Some(resolved)) = (token, resolved) else {
                return self.verify(presented.as_ref(), need);
            };
            let conclude = |resolved| {
                let times = (confirmed, reading);
                self.conclude(&snapshot, Some(&token), &resolved, times, need)
            };
            match resolved.and_then(conclude) {
                Ok(accepted) => {
                    let shared = Guard::from_inner(Arc::clone(&snapshot));
                    Ok(Grant::of_index(shared, accepted))
                }
                // If the store is in this process, it may confirm the index now. So verify the key again.
                Err(VerifyError::Stale { .. } | VerifyError::NeedsFresh) => {
                    self.verify(presented.as_ref(), need)
                }
                Err(rejection) => Err(rejection),
            }
        }));
    }
}
