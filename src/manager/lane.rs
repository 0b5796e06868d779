//! One lane per tenant: commands queue, and whoever's turn it is takes all that wait along.
//!
//! A command whose future is dropped while it waits may be carried out all the same, as if only its
//! answer had been lost. One whose leader was dropped midway takes the turn itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Error, Landed, Receipt};
use crate::core::command::{Denied, Outcome, Request};
use crate::core::id::KeyId;
use crate::core::secret::KeyMaterial;
use crate::core::tenant::TenantId;
use crate::core::view::TenantView;

/// How many commands one commit takes along at most.
const MAX_BATCH: usize = 64;

/// A command on its way.
pub(super) struct Pending {
    pub(super) request: Request,
    material: Mutex<Arc<Vec<KeyMaterial>>>,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    /// What was decided, kept from before the commit: if its answer is lost, the secret is not.
    tentative: Option<Outcome>,
    result: Option<Result<Landed, Error>>,
}

impl Pending {
    pub(super) fn new(request: Request, material: Vec<KeyMaterial>) -> Self {
        let material = Mutex::new(Arc::new(material));
        Self {
            request,
            material,
            progress: Mutex::default(),
        }
    }

    pub(super) fn material(&self) -> Arc<Vec<KeyMaterial>> {
        lock(&self.material).clone()
    }

    pub(super) fn redraw(&self, material: Vec<KeyMaterial>) {
        *lock(&self.material) = Arc::new(material);
    }

    pub(super) fn decided(&self, outcome: Outcome) {
        lock(&self.progress).tentative = Some(outcome);
    }

    /// The keys that an earlier attempt made, if there was one.
    pub(super) fn made(&self) -> Vec<KeyId> {
        match &lock(&self.progress).tentative {
            Some(Outcome::Issued { key, provisioned }) => {
                key.iter().chain(provisioned).map(|key| key.id).collect()
            }
            Some(Outcome::Rotated { successor, .. }) => vec![successor.id],
            _ => Vec::new(),
        }
    }

    /// Nothing is left to change. What was decided before stands if it is what landed, as `keys`:
    /// the secrets in it are told nowhere else.
    pub(super) fn unchanged(&self, outcome: Outcome, keys: &[KeyId]) {
        let mut progress = lock(&self.progress);
        let landed = match &progress.tentative {
            Some(Outcome::Issued { provisioned, .. }) => {
                !provisioned.is_empty() && provisioned.iter().all(|key| keys.contains(&key.id))
            }
            _ => false,
        };
        if !landed {
            progress.tentative = Some(outcome);
        }
    }

    /// Gives the command its result: what was decided for it landed, or it was refused.
    pub(super) fn land(&self, denied: Option<Denied>, receipt: Receipt, view: &TenantView) {
        let mut progress = lock(&self.progress);
        let tentative = progress.tentative.take();
        progress.result = Some(match (denied, tentative) {
            // This command's own earlier attempt landed, though its answer was lost.
            (Some(Denied::AlreadyCreated { id }), Some(outcome)) if landed(&outcome, id, view) => {
                Ok(Landed { outcome, receipt })
            }
            (Some(denied), _) => Err(denied.into()),
            (None, outcome) => Ok(Landed {
                outcome: outcome.unwrap_or(Outcome::Done),
                receipt,
            }),
        });
    }

    pub(super) fn settle(&self, result: Result<Landed, Error>) {
        lock(&self.progress).result.get_or_insert(result);
    }

    pub(super) fn is_settled(&self) -> bool {
        lock(&self.progress).result.is_some()
    }

    pub(super) fn result(&self) -> Result<Landed, Error> {
        let result = lock(&self.progress).result.take();
        // A turn always leaves a result; if it did not, nothing is known to have landed.
        result.unwrap_or(Err(Error::Contended { attempts: 0 }))
    }
}

/// Whether the key `id`, as it stands, is the one that `outcome` tells of: not only of its id, for a
/// replaced secret has the id of the one before.
fn landed(outcome: &Outcome, id: KeyId, view: &TenantView) -> bool {
    let made = match outcome {
        Outcome::Issued { key: Some(key), .. } => key,
        Outcome::Rotated { successor, .. } => successor,
        _ => return false,
    };
    let stands = view.record(id).map(|record| record.fingerprint);
    made.id == id && stands == Some(made.fingerprint)
}

/// The commands of one tenant that wait, and whose turn it is.
#[derive(Default)]
struct Lane {
    waiting: Mutex<Vec<Arc<Pending>>>,
    turn: async_lock::Mutex<()>,
}

impl Lane {
    fn queue(&self, pending: Arc<Pending>) {
        lock(&self.waiting).push(pending);
    }

    async fn turn(&self) -> async_lock::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// `own` and others that wait. `own` may be missing from the queue: its leader was dropped.
    fn next_batch(&self, own: &Arc<Pending>) -> Vec<Arc<Pending>> {
        let mut waiting = lock(&self.waiting);
        waiting.retain(|other| !Arc::ptr_eq(other, own) && !other.is_settled());
        let others = waiting.len().min(MAX_BATCH - 1);
        std::iter::once(own.clone())
            .chain(waiting.drain(..others))
            .collect()
    }
}

/// The lanes in use.
#[derive(Default)]
pub(super) struct Lanes(Mutex<HashMap<TenantId, Arc<Lane>>>);

impl Lanes {
    pub(super) fn enter(&self, tenant: &TenantId) -> Visit<'_> {
        let lane = lock(&self.0).entry(tenant.clone()).or_default().clone();
        Visit {
            lanes: self,
            tenant: tenant.clone(),
            lane: Some(lane),
        }
    }
}

/// Being in a lane. The last to leave takes it away, commands that were dropped in it included.
pub(super) struct Visit<'a> {
    lanes: &'a Lanes,
    tenant: TenantId,
    /// Taken away on leaving, under the lock that counts who is left.
    lane: Option<Arc<Lane>>,
}

impl Visit<'_> {
    pub(super) fn queue(&self, pending: &Arc<Pending>) {
        self.lane
            .iter()
            .for_each(|lane| lane.queue(pending.clone()));
    }

    pub(super) async fn turn(&self) -> Option<async_lock::MutexGuard<'_, ()>> {
        match &self.lane {
            Some(lane) => Some(lane.turn().await),
            None => None,
        }
    }

    pub(super) fn next_batch(&self, own: &Arc<Pending>) -> Vec<Arc<Pending>> {
        self.lane
            .as_ref()
            .map_or_else(|| vec![own.clone()], |lane| lane.next_batch(own))
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        let mut lanes = lock(&self.lanes.0);
        drop(self.lane.take());
        // The map's own count is all that is left, and nobody can enter meanwhile.
        if lanes
            .get(&self.tenant)
            .is_some_and(|lane| Arc::strong_count(lane) == 1)
        {
            lanes.remove(&self.tenant);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these locks, and each guards whole values only.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
