//! Batches with a command that may end or narrow a key and whose caller is gone. Their results must still reach
//! this process.
//!
//! Perhaps no caller polls these batches any more, and no runtime can be assumed. So whoever comes next polls
//! them: a verification, a command or a sync. A verification polls only a batch that the store has answered. If
//! no caller is left, the batch then starts no further call of the store.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use futures_util::FutureExt;

use crate::joint::{Joint, JointWait};

/// 256 batches at most, so that a store that never answers does not fill the memory. For any further batch,
/// the next sync reads the change from the store.
const MOST: usize = 256;

pub(crate) struct AbandonedBatches {
    /// Polls every batch, and never ends.
    all: Arc<Joint<()>>,
    batches: Arc<Mutex<Vec<JointWait<()>>>>,
}

impl Default for AbandonedBatches {
    fn default() -> Self {
        let batches = Arc::<Mutex<Vec<_>>>::default();
        let polled = batches.clone();
        let all = std::future::poll_fn(move |cx| {
            lock(&polled).retain_mut(|batch: &mut JointWait<()>| {
                // A store that panics must not take the verification down that polls its batch.
                let poll = || Pin::new(batch).poll(cx).is_pending();
                catch_unwind(AssertUnwindSafe(poll)).unwrap_or(false)
            });
            Poll::<()>::Pending
        });
        Self {
            all: Joint::new(all.boxed()),
            batches,
        }
    }
}

impl AbandonedBatches {
    /// Adds a batch. Returns whether there was room for it.
    pub(super) fn add(&self, batch: &Arc<Joint<()>>) -> bool {
        let mut batches = lock(&self.batches);
        if batches.len() == MOST {
            tracing::warn!("too many abandoned commits wait for the store's answer");
            return false;
        }
        batches.push(batch.wait());
        drop(batches);
        self.all.wake();
        true
    }

    /// Takes in the results of batches that the store has answered. Never waits.
    #[inline]
    pub(crate) fn settle(&self) {
        self.all.nudge();
    }

    /// Drives the batches for as long as the returned future is polled. It never resolves.
    pub(crate) fn drive(&self) -> JointWait<()> {
        self.all.wait()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
