//! One lane per tenant, in which commands queue. One command at a time has the turn: as the leader,
//! it carries out all waiting commands as a batch.
//!
//! A command whose future is dropped while it waits may be carried out nevertheless, like a command
//! whose reply was lost. A command whose leader is dropped midway takes the turn itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{CommandError, Committed, Receipt};
use crate::core::command::{Denial, Outcome, Request};
use crate::core::id::KeyId;
use crate::core::secret::KeyMaterial;
use crate::core::tenant::TenantId;
use crate::core::view::TenantView;

/// At most 64 commands in one commit.
const MAX_BATCH: usize = 64;

/// A command in flight.
pub(super) struct Pending {
    pub(super) request: Request,
    material: Mutex<Arc<Vec<KeyMaterial>>>,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    /// The decided outcome, stored before the commit. If the commit's reply is lost, the secret is
    /// kept here.
    tentative: Option<Outcome>,
    result: Option<Result<Committed, CommandError>>,
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

    /// Returns the keys that an earlier attempt decided to make.
    pub(super) fn made(&self) -> Vec<KeyId> {
        match &lock(&self.progress).tentative {
            Some(Outcome::Issued { key, provisioned }) => {
                key.iter().chain(provisioned).map(|key| key.id).collect()
            }
            Some(Outcome::Rotated { successor, .. }) => vec![successor.id],
            _ => Vec::new(),
        }
    }

    /// Records that nothing is left to change. An earlier outcome stays if its keys have landed,
    /// that is, if `keys` contains them. Only that outcome has the keys' secrets.
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

    /// Sets the result of the command: the decided outcome has landed, or the command was refused.
    pub(super) fn land(&self, denied: Option<Denial>, receipt: Receipt, view: &TenantView) {
        let mut progress = lock(&self.progress);
        let tentative = progress.tentative.take();
        progress.result = Some(match (denied, tentative) {
            // This command's own earlier attempt landed, but its reply was lost.
            (Some(Denial::AlreadyCreated { id }), Some(outcome)) if landed(&outcome, id, view) => {
                Ok(Committed { outcome, receipt })
            }
            (Some(denied), _) => Err(denied.into()),
            (None, outcome) => Ok(Committed {
                outcome: outcome.unwrap_or(Outcome::Done),
                receipt,
            }),
        });
    }

    pub(super) fn settle(&self, result: Result<Committed, CommandError>) {
        lock(&self.progress).result.get_or_insert(result);
    }

    pub(super) fn is_settled(&self) -> bool {
        lock(&self.progress).result.is_some()
    }

    pub(super) fn result(&self) -> Result<Committed, CommandError> {
        let result = lock(&self.progress).result.take();
        // A command that had the turn always has a result. Without a result, no commit is known to
        // have landed.
        result.unwrap_or(Err(CommandError::Contended { attempts: 0 }))
    }
}

/// Returns whether the stored key `id` is the one in `outcome`. Compares the fingerprint too,
/// because a replaced secret keeps the id.
fn landed(outcome: &Outcome, id: KeyId, view: &TenantView) -> bool {
    let made = match outcome {
        Outcome::Issued { key: Some(key), .. } => key,
        Outcome::Rotated { successor, .. } => successor,
        _ => return false,
    };
    let stands = view.record(id).map(|record| record.fingerprint);
    made.id == id && stands == Some(made.fingerprint)
}

/// The waiting commands of one tenant, and the lock that gives one of them the turn.
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

    /// Returns `own` and other waiting commands. `own` may be missing from the queue if its leader
    /// was dropped.
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

/// A command's visit to a lane. The last visit to end removes the lane, with any dropped commands
/// in it.
pub(super) struct Visit<'a> {
    lanes: &'a Lanes,
    tenant: TenantId,
    /// `None` only during drop. The reference is dropped under the lock of `lanes`, so that the
    /// count of the remaining visits is exact.
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
        // Only the map's own reference is left. Nobody can enter, because entering takes the lock
        // held here.
        if lanes
            .get(&self.tenant)
            .is_some_and(|lane| Arc::strong_count(lane) == 1)
        {
            lanes.remove(&self.tenant);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Poisoning is ignored: no code panics under one of these locks, and each guards whole values
    // only.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
