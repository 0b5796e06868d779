//! Loads of tenants: those that wait at once are one transaction. Deciding on sixteen tenants then asks
//! the server hardly more than deciding on one.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::calls::{Takes, Within};
use super::fault::Fault;
use super::link::Link;
use super::load;
use crate::core::tenant::TenantId;
use crate::core::view::{Select, TenantView};
use crate::store::{StoreError, StoreErrorKind};

/// How many tenants one transaction loads, at most. A judgement: what they ask for is kept until all of it
/// came.
const MOST: usize = 64;

/// How many transactions load at the same time, so that a tenant of many keys does not keep all others
/// waiting. A judgement: with more of them, fewer loads find company.
const AT_ONCE: usize = 2;

const DOING: &str = "loading a tenant";

/// A load on its way. Nobody may wait for it any more.
struct Order {
    asked: (TenantId, Select),
    until: Instant,
    answer: oneshot::Sender<Result<TenantView, StoreError>>,
}

#[derive(Default)]
struct Orders {
    waiting: VecDeque<Order>,
    /// How many tasks take of what waits.
    tasks: usize,
}

/// The way to those who load.
#[derive(Clone)]
pub(super) struct Loader {
    link: Arc<Link>,
    orders: Arc<Mutex<Orders>>,
}

impl Loader {
    pub(super) fn new(link: Arc<Link>) -> Self {
        let orders = Arc::default();
        Self { link, orders }
    }

    /// A tenant as it stands no earlier than now.
    pub(super) async fn load(
        &self,
        runtime: &Handle,
        asked: (TenantId, Select),
    ) -> Result<TenantView, StoreError> {
        let (answer, answered) = oneshot::channel();
        let order = Order {
            asked,
            until: Instant::now() + Takes::Moment.limit(&self.link),
            answer,
        };
        if let Some(task) = self.enter(order) {
            drop(runtime.spawn(task.run()));
        }
        // Each order that is taken gets its answer, unless the runtime comes to an end on the way.
        let gone = |_| Err(StoreError::new(StoreErrorKind::Unavailable, DOING));
        answered.await.unwrap_or_else(gone)
    }

    /// Has an order wait, and tells of the task that is to be started for it, if there are not enough.
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

/// Takes of what waits until nothing does.
struct Task {
    loader: Loader,
    counted: bool,
}

impl Task {
    async fn run(mut self) {
        while let Some(group) = self.next() {
            let left = settle(&self.loader.link, group).await;
            let mut orders = self.loader.orders();
            left.into_iter()
                .rev()
                .for_each(|order| orders.waiting.push_front(order));
        }
    }

    /// What to load next. Once it is nothing, whatever comes starts another task.
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
        // It did not come to its end, since the runtime did. Whoever waits for nobody is told by this.
        let mut orders = self.loader.orders();
        orders.tasks -= 1;
        if orders.tasks == 0 {
            orders.waiting.clear();
        }
    }
}

/// What can be loaded at once: of each tenant one, so that each is told of what it asked for alone. The
/// rest stays, in its order. Empty if nothing waits.
fn next_group(waiting: &mut VecDeque<Order>) -> Vec<Order> {
    let (mut group, mut tenants) = (Vec::new(), HashSet::new());
    for order in std::mem::take(waiting) {
        // Whoever gave up was told nothing.
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

/// Sees that each order gets its answer, but for those whose time is not over, though that of one which
/// came along was: they are left.
async fn settle(link: &Link, group: Vec<Order>) -> Vec<Order> {
    match load_all(link, &group).await {
        Some(Ok(views)) => {
            for (order, view) in group.into_iter().zip(views) {
                tell(order, view);
            }
        }
        // One tenant that cannot be loaded must not stop those that came along with it.
        Some(Err(Fault::Server { .. })) if group.len() > 1 => {
            for order in group {
                let alone = load_all(link, std::slice::from_ref(&order)).await;
                let view = alone.unwrap_or(Err(Fault::Late));
                let view = view.and_then(|mut views| views.pop().unwrap_or(Err(MISSING)));
                tell(order, view);
            }
        }
        Some(Err(fault)) => {
            let error = fault.told(DOING);
            for order in group {
                drop(order.answer.send(Err(error.clone())));
            }
        }
        None => {
            let (left, late) = still_in_time(group, Instant::now());
            late.into_iter()
                .for_each(|order| tell(order, Err(Fault::Late)));
            return left;
        }
    }
    Vec::new()
}

/// Those whose time is not over, and the others.
fn still_in_time(group: Vec<Order>, now: Instant) -> (Vec<Order>, Vec<Order>) {
    group.into_iter().partition(|order| order.until > now)
}

const MISSING: Fault = Fault::Refused("a tenant was not answered");

fn tell(order: Order, view: Result<TenantView, Fault>) {
    // Whoever asked may have stopped waiting.
    drop(order.answer.send(view.map_err(|fault| fault.told(DOING))));
}

/// Loads in one transaction. `None` once the time of one order is over.
async fn load_all(
    link: &Link,
    group: &[Order],
) -> Option<Result<Vec<Result<TenantView, Fault>>, Fault>> {
    let until = group.iter().map(|order| order.until).min()?;
    let asked: Vec<_> = group.iter().map(|order| order.asked.clone()).collect();
    let run = Within::Snapshot.run(link, Takes::Moment, |tx| {
        async move { load::load(tx, &asked).await }.boxed()
    });
    timeout_at(until, run).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(tenant: &str) -> (Order, oneshot::Receiver<Result<TenantView, StoreError>>) {
        let (answer, answered) = oneshot::channel();
        let order = Order {
            asked: (TenantId::new(tenant).unwrap(), Select::none()),
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
        // Nobody waits for "c" any more.
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
