//! Verifying several keys in one call.

use std::array;
use std::sync::Arc;

use arc_swap::Guard;

use super::{Confirmation, Grant, Verifier, see};
use crate::core::need::Need;
use crate::core::rejection::Rejection;
use crate::core::token;

/// How many keys are looked for at a time. A judgement: about as many reads of memory as a processor
/// keeps under way.
const AT_ONCE: usize = 16;

impl Verifier {
    /// Verifies several keys for the same need, and answers in their order: each as
    /// [`verify`](Self::verify) would. Their memory comes at the same time, so that among a million
    /// keys a batch takes less time than its keys one by one.
    #[must_use]
    pub fn verify_many<P: AsRef<[u8]>>(
        &self,
        presented: &[P],
        need: &Need,
    ) -> Vec<Result<Grant, Rejection>> {
        let mut verdicts = Vec::with_capacity(presented.len());
        for some in presented.chunks(AT_ONCE) {
            self.verify_some(some, need, &mut verdicts);
        }
        verdicts
    }

    /// At most [`AT_ONCE`]. The order is that of a single verification: `confirmed` is loaded, all
    /// keys are looked up, and only then the clock is read.
    fn verify_some<P: AsRef<[u8]>>(
        &self,
        presented: &[P],
        need: &Need,
        verdicts: &mut Vec<Result<Grant, Rejection>>,
    ) {
        let confirmed = Confirmation::Sent(self.replica.confirmed_at());
        // A reference of its own: each grant shares it.
        let pinned = Guard::into_inner(self.pinned());
        let view = &*pinned.view;
        let tokens: [_; AT_ONCE] = array::from_fn(|at| {
            let token = token::parse(presented.get(at)?.as_ref()).ok()?;
            Some((token, view.begin(token.id())))
        });
        let seen = tokens.each_ref().map(|token| {
            let (token, begun) = token.as_ref()?;
            let (answer, under_older) = self.look_up(view, token, *begun);
            Some(see(view, answer, under_older))
        });
        let reading = self.clock.judged();
        let each = presented.iter().zip(tokens).zip(seen);
        verdicts.extend(each.map(|((presented, token), seen)| {
            let (Some((token, _)), Some(seen)) = (token, seen) else {
                return self.verify(presented, need);
            };
            let conclude = |seen| {
                let times = (confirmed, reading);
                self.conclude(&pinned, Some(&token), seen, times, need)
            };
            match seen.and_then(conclude) {
                Ok(accepted) => {
                    let shared = Guard::from_inner(Arc::clone(&pinned));
                    Ok(Grant::of_index(shared, accepted))
                }
                // A store that lives in this process may confirm now.
                Err(Rejection::Stale { .. } | Rejection::NeedsFresh) => {
                    self.verify(presented, need)
                }
                Err(rejection) => Err(rejection),
            }
        }));
    }
}
