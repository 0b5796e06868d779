//! Loads of tenants. Loads that wait concurrently share one transaction: loading sixteen tenants costs
//! the server little more than loading one.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::fault::Fault;
use super::load;
use super::session::{Database, Mode, Takes, within};
use crate::core::tenant::TenantId;
use crate::core::view::{LoadRequest, TenantView};
use crate::store::{StoreError, StoreErrorKind};

/// 64 tenants in one transaction at most. A judgement: the rows of all tenants stay in memory until the
/// last row arrives.
const MOST: usize = 64;

/// 2 concurrent transactions, so that a tenant of many keys does not block all others. A judgement: with
/// more transactions, fewer loads share each.
const AT_ONCE: usize = 2;

const DOING: &str = "loading a tenant";

/// A load in flight, whose caller may have stopped waiting.
struct Order {
    asked: (TenantId, LoadRequest),
    until: Instant,
    answer: oneshot::Sender<Result<TenantView, StoreError>>,
}

#[derive(Default)]
struct Orders {
    waiting: VecDeque<Order>,
    /// The number of tasks that serve the queue.
    tasks: usize,
}

/// The queue of loads.
#[derive(Clone)]
pub(super) struct Loader {
    database: Arc<Database>,
    orders: Arc<Mutex<Orders>>,
}

impl Loader {
    pub(super) fn new(database: Arc<Database>) -> Self {
        let orders = Arc::default();
        Self { database, orders }
    }

    /// Loads a tenant. The view reflects every commit that returned before this call.
    pub(super) async fn load(
        &self,
        runtime: &Handle,
        asked: (TenantId, LoadRequest),
    ) -> Result<TenantView, StoreError> {
        let (answer, answered) = oneshot::channel();
        let order = Order {
            asked,
            until: Instant::now() + self.database.limit(Takes::Moment),
            answer,
        };
        if let Some(task) = self.enter(order) {
            drop(runtime.spawn(task.run()));
        }
        // Each order gets its answer, unless the runtime ends before.
        let gone = |_| Err(StoreError::new(StoreErrorKind::Unavailable, DOING));
        answered.await.unwrap_or_else(gone)
    }

    /// Queues an order. Returns a task to start, if fewer than [`AT_ONCE`] are running.
    fn enter(&self, order: Order) -> Option<Task> {
        let mut orders = self.orders();
        orders.waiting.push_back(order);
        let start = orders.tasks < AT_ONCE;
        orders.tasks += usize::from(start);
        start.then(|| Task {
            loader: self.clone(),
            counted: true,
        })
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves the queue until it is empty.
struct Task {
    loader: Loader,
    counted: bool,
}

impl Task {
    async fn run(mut self) {
        while let Some(group) = self.next() {
            let left = settle(&self.loader.database, group).await;
            let mut orders = self.loader.orders();
            left.into_iter()
                .rev()
                .for_each(|order| orders.waiting.push_front(order));
        }
    }

    /// Takes the next group from the queue. If the queue is empty, the next order starts another task.
    fn next(&mut self) -> Option<Vec<Order>> {
        let mut orders = self.loader.orders();
        let group = next_group(&mut orders.waiting);
        if group.is_empty() {
            orders.tasks -= 1;
            self.counted = false;
            return None;
        }
        Some(group)
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if !self.counted {
            return;
        }
        // The runtime ended. If no task is left, clearing the queue fails the waiting calls.
        let mut orders = self.loader.orders();
        orders.tasks -= 1;
        if orders.tasks == 0 {
            orders.waiting.clear();
        }
    }
}

/// Takes the orders that can share a transaction: one per tenant, so that each order gets the rows it
/// selected. The other orders stay queued in sequence. The result is empty if no order waits.
fn next_group(waiting: &mut VecDeque<Order>) -> Vec<Order> {
    let (mut group, mut tenants) = (Vec::new(), HashSet::new());
    for order in std::mem::take(waiting) {
        // The caller stopped waiting.
        if order.answer.is_closed() {
            continue;
        }
        let tenant = &order.asked.0;
        match group.len() < MOST && tenants.insert(tenant.clone()) {
            true => group.push(order),
            false => waiting.push_back(order),
        }
    }
    group
}

/// Answers each order. If the time of one order runs out, returns the orders with time left instead.
async fn settle(database: &Arc<Database>, group: Vec<Order>) -> Vec<Order> {
    match load_all(database, &group).await {
        Some(Ok(views)) => {
            for (order, view) in group.into_iter().zip(views) {
                answer(order, view);
            }
        }
        // A tenant that cannot be loaded must not fail the others of its group.
        Some(Err(Fault::Server { .. })) if group.len() > 1 => {
            for order in group {
                let alone = load_all(database, std::slice::from_ref(&order)).await;
                let view = alone.unwrap_or(Err(Fault::Late));
                let view = view.and_then(|mut views| views.pop().unwrap_or(Err(MISSING)));
                answer(order, view);
            }
        }
        Some(Err(fault)) => {
            let error = fault.into_error(DOING);
            for order in group {
                drop(order.answer.send(Err(error.clone())));
            }
        }
        None => {
            let (left, late) = still_in_time(group, Instant::now());
            late.into_iter()
                .for_each(|order| answer(order, Err(Fault::Late)));
            return left;
        }
    }
    Vec::new()
}

/// Splits the orders into those with time left, and the others.
fn still_in_time(group: Vec<Order>, now: Instant) -> (Vec<Order>, Vec<Order>) {
    group.into_iter().partition(|order| order.until > now)
}

const MISSING: Fault = Fault::Refused("a tenant was not answered");

fn answer(order: Order, view: Result<TenantView, Fault>) {
    // The caller may have stopped waiting.
    drop(
        order
            .answer
            .send(view.map_err(|fault| fault.into_error(DOING))),
    );
}

/// Loads a group of tenants in one transaction. `None` if the time of one order runs out first.
async fn load_all(
    database: &Arc<Database>,
    group: &[Order],
) -> Option<Result<Vec<Result<TenantView, Fault>>, Fault>> {
    let until = group.iter().map(|order| order.until).min()?;
    let asked: Vec<_> = group.iter().map(|order| order.asked.clone()).collect();
    let run = within(database, Mode::Read, Takes::Moment, |session| {
        async move { load::load(session, &asked).await }.boxed()
    });
    timeout_at(until, run).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(tenant: &str) -> (Order, oneshot::Receiver<Result<TenantView, StoreError>>) {
        let (answer, answered) = oneshot::channel();
        let order = Order {
            asked: (TenantId::new(tenant).unwrap(), LoadRequest::none()),
            until: Instant::now(),
            answer,
        };
        (order, answered)
    }

    fn names<'a>(orders: impl IntoIterator<Item = &'a Order>) -> Vec<&'a str> {
        let name = |order: &'a Order| order.asked.0.as_str();
        orders.into_iter().map(name).collect()
    }

    #[test]
    fn each_tenant_is_in_a_group_once_and_what_stays_keeps_its_order() {
        let waiting = ["a", "b", "a", "c", "b", "a"].map(order);
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
        let orders = ["a", "b", "c"].map(order).into_iter().zip(0..);
        let (group, _answered): (Vec<_>, Vec<_>) = orders
            .map(|((mut order, answered), second)| {
                order.until = start + std::time::Duration::from_secs(second);
                (order, answered)
            })
            .unzip();
        let now = start + std::time::Duration::from_secs(1);
        let (left, late) = still_in_time(group, now);
        assert_eq!((names(&left), names(&late)), (vec!["c"], vec!["a", "b"]));
    }

    #[test]
    fn a_group_has_so_many_tenants_and_no_more() {
        let name = |number: usize| format!("t{number}");
        let orders = (0..=MOST).map(|number| order(&name(number)));
        let (mut waiting, _answered): (VecDeque<_>, Vec<_>) = orders.unzip();
        assert_eq!(next_group(&mut waiting).len(), MOST);
        assert_eq!(names(&waiting), [name(MOST)]);
    }
}
