//! Loads tenants. Loads that wait at the same time share one transaction: loading sixteen tenants in one
//! transaction costs the server little more than loading one.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::fault::PostgresFault;
use super::load;
use super::session::{Database, SessionMode, TimeLimit, within};
use crate::core::tenant::TenantId;
use crate::core::view::{LoadRequest, TenantView};
use crate::store::{StoreError, StoreErrorKind};

/// At most 64 tenants are loaded in one transaction, because the rows of all of them stay in memory until the
/// last row arrives.
const MAX_GROUP: usize = 64;

/// 2 tasks load tenants concurrently, so that a tenant with many keys does not block all others. With more
/// tasks, fewer loads would share a transaction.
const MAX_TASKS: usize = 2;

const DOING: &str = "loading a tenant";

/// A load that was requested. Its caller may have stopped waiting.
struct QueuedLoad {
    asked: (TenantId, LoadRequest),
    until: Instant,
    answer: oneshot::Sender<Result<TenantView, StoreError>>,
}

#[derive(Default)]
struct LoadQueue {
    waiting: VecDeque<QueuedLoad>,
    /// The number of tasks that serve the queue.
    tasks: usize,
}

/// The queue of loads.
#[derive(Clone)]
pub(super) struct Loader {
    database: Arc<Database>,
    queue: Arc<Mutex<LoadQueue>>,
}

impl Loader {
    pub(super) fn new(database: Arc<Database>) -> Self {
        let queue = Arc::default();
        Self { database, queue }
    }

    /// Loads a tenant. The view reflects every commit that returned before this call.
    pub(super) async fn load(
        &self,
        runtime: &Handle,
        asked: (TenantId, LoadRequest),
    ) -> Result<TenantView, StoreError> {
        let (answer, answered) = oneshot::channel();
        let queued = QueuedLoad {
            asked,
            until: Instant::now() + self.database.limit(TimeLimit::Short),
            answer,
        };
        if let Some(task) = self.enter(queued) {
            drop(runtime.spawn(task.run()));
        }
        // A task answers every load, unless the tokio runtime shuts down before.
        let gone = |_| Err(StoreError::new(StoreErrorKind::Unavailable, DOING));
        answered.await.unwrap_or_else(gone)
    }

    /// Puts a load into the queue. If fewer than [`MAX_TASKS`] tasks are running, returns one for the caller
    /// to start.
    fn enter(&self, queued: QueuedLoad) -> Option<LoadTask> {
        let mut queue = self.queue();
        queue.waiting.push_back(queued);
        let start = queue.tasks < MAX_TASKS;
        queue.tasks += usize::from(start);
        start.then(|| LoadTask {
            loader: self.clone(),
            counted: true,
        })
    }

    fn queue(&self) -> MutexGuard<'_, LoadQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves the queue until it is empty.
struct LoadTask {
    loader: Loader,
    counted: bool,
}

impl LoadTask {
    async fn run(mut self) {
        while let Some(group) = self.next() {
            let left = settle(&self.loader.database, group).await;
            let mut queue = self.loader.queue();
            left.into_iter()
                .rev()
                .for_each(|queued| queue.waiting.push_front(queued));
        }
    }

    /// Takes the next group of loads from the queue. If the queue is empty, this task ends, and the next load
    /// starts a new one.
    fn next(&mut self) -> Option<Vec<QueuedLoad>> {
        let mut queue = self.loader.queue();
        let group = next_group(&mut queue.waiting);
        if group.is_empty() {
            queue.tasks -= 1;
            self.counted = false;
            return None;
        }
        Some(group)
    }
}

impl Drop for LoadTask {
    fn drop(&mut self) {
        if !self.counted {
            return;
        }
        // The task is dropped before its end only if the runtime shuts down. If no other task is left, clear
        // the queue, so that the waiting calls fail.
        let mut queue = self.loader.queue();
        queue.tasks -= 1;
        if queue.tasks == 0 {
            queue.waiting.clear();
        }
    }
}

/// Takes the loads that can share a transaction. Each tenant occurs only once, so that each load gets the
/// rows that it selected. All other loads stay in the queue, in their order. The result is empty if no load
/// waits.
fn next_group(waiting: &mut VecDeque<QueuedLoad>) -> Vec<QueuedLoad> {
    let (mut group, mut tenants) = (Vec::new(), HashSet::new());
    for queued in std::mem::take(waiting) {
        // The caller stopped waiting.
        if queued.answer.is_closed() {
            continue;
        }
        let tenant = &queued.asked.0;
        match group.len() < MAX_GROUP && tenants.insert(tenant.clone()) {
            true => group.push(queued),
            false => waiting.push_back(queued),
        }
    }
    group
}

/// Answers the loads of a group. If the deadline of one load passes before the rows arrive, returns the loads
/// that still have time.
async fn settle(database: &Arc<Database>, group: Vec<QueuedLoad>) -> Vec<QueuedLoad> {
    match load_all(database, &group).await {
        Some(Ok(views)) => {
            for (queued, view) in group.into_iter().zip(views) {
                answer(queued, view);
            }
        }
        // Retry the loads of the group one by one, so that a tenant that cannot be loaded does not fail the
        // other tenants.
        Some(Err(PostgresFault::Server { .. })) if group.len() > 1 => {
            for queued in group {
                let alone = load_all(database, std::slice::from_ref(&queued)).await;
                let view = alone.unwrap_or(Err(PostgresFault::Late));
                let view = view.and_then(|mut views| views.pop().unwrap_or(Err(MISSING)));
                answer(queued, view);
            }
        }
        Some(Err(fault)) => {
            let error = fault.into_error(DOING);
            for queued in group {
                drop(queued.answer.send(Err(error.clone())));
            }
        }
        None => {
            let (left, late) = still_in_time(group, Instant::now());
            late.into_iter()
                .for_each(|queued| answer(queued, Err(PostgresFault::Late)));
            return left;
        }
    }
    Vec::new()
}

/// Splits the loads into those with time left, and those whose deadline has passed.
fn still_in_time(group: Vec<QueuedLoad>, now: Instant) -> (Vec<QueuedLoad>, Vec<QueuedLoad>) {
    group.into_iter().partition(|queued| queued.until > now)
}

const MISSING: PostgresFault = PostgresFault::Refused("a tenant was not answered");

fn answer(queued: QueuedLoad, view: Result<TenantView, PostgresFault>) {
    // The caller may have stopped waiting.
    drop(
        queued
            .answer
            .send(view.map_err(|fault| fault.into_error(DOING))),
    );
}

/// Loads a group of tenants in one transaction. `None` if the deadline of one load passes first.
async fn load_all(
    database: &Arc<Database>,
    group: &[QueuedLoad],
) -> Option<Result<Vec<Result<TenantView, PostgresFault>>, PostgresFault>> {
    let until = group.iter().map(|queued| queued.until).min()?;
    let asked: Vec<_> = group.iter().map(|queued| queued.asked.clone()).collect();
    let run = within(database, SessionMode::Read, TimeLimit::Short, |session| {
        async move { load::load(session, &asked).await }.boxed()
    });
    timeout_at(until, run).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queued(
        tenant: &str,
    ) -> (
        QueuedLoad,
        oneshot::Receiver<Result<TenantView, StoreError>>,
    ) {
        let (answer, answered) = oneshot::channel();
        let queued = QueuedLoad {
            asked: (TenantId::new(tenant).unwrap(), LoadRequest::none()),
            until: Instant::now(),
            answer,
        };
        (queued, answered)
    }

    fn names<'a>(queue: impl IntoIterator<Item = &'a QueuedLoad>) -> Vec<&'a str> {
        let name = |queued: &'a QueuedLoad| queued.asked.0.as_str();
        queue.into_iter().map(name).collect()
    }

    #[test]
    fn each_tenant_is_in_a_group_once_and_what_stays_keeps_its_order() {
        let waiting = ["a", "b", "a", "c", "b", "a"].map(queued);
        let (waiting, mut answered): (VecDeque<_>, Vec<_>) = waiting.into_iter().unzip();
        let mut waiting = waiting;
        // The caller of "c" stopped waiting.
        drop(answered.remove(3));
        let group = next_group(&mut waiting);
        assert_eq!(names(&group), ["a", "b"]);
        assert_eq!(names(&waiting), ["a", "b", "a"]);
        assert_eq!(names(&next_group(&mut waiting)), ["a", "b"]);
        assert_eq!(names(&next_group(&mut waiting)), ["a"]);
        assert!(next_group(&mut waiting).is_empty());
    }

    #[test]
    fn those_who_came_later_are_not_late_with_the_first() {
        let start = Instant::now();
        let queue = ["a", "b", "c"].map(queued).into_iter().zip(0..);
        let (group, _answered): (Vec<_>, Vec<_>) = queue
            .map(|((mut queued, answered), second)| {
                queued.until = start + std::time::Duration::from_secs(second);
                (queued, answered)
            })
            .unzip();
        let now = start + std::time::Duration::from_secs(1);
        let (left, late) = still_in_time(group, now);
        assert_eq!((names(&left), names(&late)), (vec!["c"], vec!["a", "b"]));
    }

    #[test]
    fn a_group_has_so_many_tenants_and_no_more() {
        let name = |number: usize| format!("t{number}");
        let queue = (0..=MAX_GROUP).map(|number| queued(&name(number)));
        let (mut waiting, _answered): (VecDeque<_>, Vec<_>) = queue.unzip();
        assert_eq!(next_group(&mut waiting).len(), MAX_GROUP);
        assert_eq!(names(&waiting), [name(MAX_GROUP)]);
    }
}
