//! The world: real time that only events advance, tasks that run one at a time, and the faults of
//! nodes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use super::clock::{Hands, OwnTime};
use super::dice::{Dice, mix};
use super::ledger::Ledger;
use super::node::Node;
use super::{Invariant, Report};
use crate::Call;

/// Real time, in microseconds since the run began.
pub(super) type Instant = u64;

pub(super) const MILLI: u64 = 1_000;
pub(super) const SECOND: u64 = 1_000_000;

/// 5 million events, far more than any run takes. A run that takes more is in a loop.
const MOST_EVENTS: u64 = 5_000_000;

/// 120 events: a violation's trace has the last events of the run, up to this number.
const TRACE: usize = 120;

/// 2 levels: the events within an interrupted verification may be interrupted again, up to this
/// depth.
const MOST_NESTED: usize = 2;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;
type Job = Box<dyn FnOnce(&Arc<World>) + Send>;
type TaskId = u64;

/// An event at an instant.
enum Event {
    /// A task may be able to continue.
    Wake(TaskId),
    /// A request has reached the store.
    Serve(Job),
}

struct Scheduled {
    /// The sort key of the event. The instant comes first. Among the events of one instant the seed
    /// decides the order.
    order: (Instant, u32, u64),
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order.cmp(&other.order)
    }
}

struct Slot {
    /// The node that runs the task and the number of its life. `None` for the world's own tasks.
    place: Option<(usize, u32)>,
    /// The future of the task. `None` while the task runs.
    task: Option<Task>,
    /// Whether an event woke the task while it ran, so that it must run again.
    again: bool,
    waker: Waker,
}

/// The quality of a node's connection to the store.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    /// The usual latency of a message, in microseconds.
    pub(super) usual: u64,
    /// The highest latency of a message, in microseconds.
    pub(super) most: u64,
    /// The number of lost messages per thousand.
    pub(super) loss: u64,
}

/// A machine with a node on it.
pub(super) struct Place {
    pub(super) hands: Hands,
    /// The time that the machine's node derives from its own clock readings.
    pub(super) own_time: OwnTime,
    pub(super) weather: Weather,
    /// The instant at which the machine's network partition ends.
    pub(super) cut_off: Instant,
    /// The instant at which the machine's pause ends.
    pub(super) paused: Instant,
    /// The number of restarts of the node.
    pub(super) life: u32,
    /// Whether a notification of a commit has arrived, for nodes that listen.
    pub(super) hinted: bool,
    /// Whether a command is being carried out. The next command waits here, because the order in
    /// which a lock serves its waiters depends on the real clock.
    pub(super) busy: bool,
    /// The send time of the last answered request for changes.
    pub(super) served: Option<Instant>,
    pub(super) node: Option<Arc<dyn Node>>,
}

pub(super) struct State {
    pub(super) now: Instant,
    pub(super) dice: Dice,
    /// Whether the faults have ended.
    pub(super) calm: bool,
    pub(super) places: Vec<Place>,
    pub(super) ledger: Ledger,
    pub(super) report: Report,
    pub(super) found: Option<(Invariant, String)>,
    pub(super) last_commit: Instant,
    /// The number of commands created so far.
    pub(super) asked: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    tasks: BTreeMap<TaskId, Slot>,
    running: Vec<TaskId>,
    scheduled: u64,
    spawned: TaskId,
    trace: Option<VecDeque<String>>,
}

/// The simulated world.
pub(super) struct World {
    state: Mutex<State>,
    ready: Arc<Mutex<Vec<TaskId>>>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("World(…)")
    }
}

struct Ready {
    ready: Arc<Mutex<Vec<TaskId>>>,
    id: TaskId,
}

impl Wake for Ready {
    fn wake(self: Arc<Self>) {
        lock(&self.ready).push(self.id);
    }
}

impl World {
    pub(super) fn new(dice: Dice, places: Vec<Place>, ledger: Ledger, traced: bool) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                now: 0,
                dice,
                calm: false,
                places,
                ledger,
                report: Report::default(),
                found: None,
                last_commit: 0,
                asked: 0,
                queue: BinaryHeap::new(),
                tasks: BTreeMap::new(),
                running: Vec::new(),
                scheduled: 0,
                spawned: 0,
                trace: traced.then(VecDeque::new),
            }),
            ready: Arc::default(),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Starts a task on the current life of a node, or on no node.
    pub(super) fn spawn(
        &self,
        place: Option<usize>,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let mut state = self.state();
        state.spawned += 1;
        let id = state.spawned;
        let ready = self.ready.clone();
        let slot = Slot {
            place: place.map(|place| (place, state.places[place].life)),
            task: Some(Box::pin(task)),
            again: false,
            waker: Waker::from(Arc::new(Ready { ready, id })),
        };
        state.tasks.insert(id, slot);
        let now = state.now;
        state.schedule(now, Event::Wake(id));
    }

    /// Ends a node's life. The node's tasks stop. Requests that the node has sent are still carried
    /// out.
    pub(super) fn kill(&self, place: usize) {
        let mut state = self.state();
        state.places[place].life += 1;
        state.places[place].busy = false;
        let node = state.places[place].node.take();
        let on_it = |slot: &Slot| slot.place.is_some_and(|(on, _)| on == place);
        let tasks = std::mem::take(&mut state.tasks);
        let (gone, kept): (BTreeMap<_, _>, _) =
            tasks.into_iter().partition(|(_, slot)| on_it(slot));
        state.tasks = kept;
        drop(state);
        // Dropped without the lock, because a drop may wake other tasks.
        drop((gone, node));
    }

    /// Runs events until `limit`, or until an invariant is broken.
    pub(super) fn run_until(self: &Arc<Self>, limit: Instant) {
        loop {
            let mut state = self.state();
            if state.found.is_some() {
                return;
            }
            let woken = std::mem::take(&mut *lock(&self.ready));
            for id in woken {
                let now = state.now;
                state.schedule(now, Event::Wake(id));
            }
            let due = state
                .queue
                .peek()
                .is_some_and(|Reverse(next)| next.order.0 <= limit);
            let next = if due { state.queue.pop() } else { None };
            let Some(Reverse(next)) = next else {
                state.now = state.now.max(limit);
                return;
            };
            state.now = state.now.max(next.order.0);
            state.report.events += 1;
            if state.report.events > MOST_EVENTS {
                state.find(Invariant::Progress, "the run does not end".to_owned());
                return;
            }
            match next.event {
                Event::Serve(job) => {
                    drop(state);
                    job(self);
                }
                Event::Wake(id) => self.wake(state, id),
            }
        }
    }

    fn wake(self: &Arc<Self>, mut state: MutexGuard<'_, State>, id: TaskId) {
        let Some(slot) = state.tasks.get_mut(&id) else {
            return;
        };
        let place = slot.place;
        if let Some((on, _)) = place {
            let paused = state.places[on].paused;
            if paused > state.now {
                let later = paused + state.dice.between(0, 2 * MILLI);
                state.schedule(later, Event::Wake(id));
                return;
            }
        }
        let Some(slot) = state.tasks.get_mut(&id) else {
            return;
        };
        let Some(mut task) = slot.task.take() else {
            slot.again = true;
            return;
        };
        let waker = slot.waker.clone();
        state.running.push(id);
        drop(state);
        let polled = task.as_mut().poll(&mut Context::from_waker(&waker));
        let mut state = self.state();
        state.running.pop();
        let now = state.now;
        let kept = match (state.tasks.get_mut(&id), polled) {
            (Some(slot), Poll::Pending) => {
                slot.task = Some(task);
                if std::mem::take(&mut slot.again) {
                    state.schedule(now, Event::Wake(id));
                }
                return;
            }
            (Some(_), Poll::Ready(())) => state.tasks.remove(&id),
            // The task's node was killed while the task ran.
            (None, _) => None,
        };
        drop(state);
        drop((kept, task));
    }

    /// Waits until an instant.
    pub(super) async fn until(&self, at: Instant) {
        let mut asked = false;
        poll_fn(|_| {
            let mut state = self.state();
            if state.now >= at {
                return Poll::Ready(());
            }
            if !std::mem::replace(&mut asked, true) {
                state.wake_at(at);
            }
            Poll::Pending
        })
        .await;
    }

    /// Waits for so many microseconds.
    pub(super) async fn sleep(&self, micros: u64) {
        let at = self.state().now + micros;
        self.until(at).await;
    }

    /// Waits for so many microseconds, or until the node is notified.
    pub(super) async fn sleep_or_hint(&self, place: usize, micros: u64) {
        let at = self.state().now + micros;
        let mut asked = false;
        poll_fn(|_| {
            let mut state = self.state();
            let hinted = std::mem::take(&mut state.places[place].hinted);
            if state.now >= at || hinted {
                return Poll::Ready(());
            }
            if !std::mem::replace(&mut asked, true) {
                state.wake_at(at);
                // Polls only three times before the timeout. The time to the next poll acts as the
                // latency of the notification.
                for step in 1..4 {
                    let between = state.now + step * micros / 4;
                    state.wake_at(between);
                }
            }
            Poll::Pending
        })
        .await;
    }

    /// Waits for a future with a timeout. If the future takes longer, drops it and returns `None`.
    pub(super) async fn within<T>(
        &self,
        micros: u64,
        future: impl Future<Output = T>,
    ) -> Option<T> {
        let mut future = pin!(future);
        let at = self.state().now + micros;
        let mut asked = false;
        poll_fn(|cx| {
            if let Poll::Ready(done) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            let mut state = self.state();
            if state.now >= at {
                return Poll::Ready(None);
            }
            if !std::mem::replace(&mut asked, true) {
                state.wake_at(at);
            }
            Poll::Pending
        })
        .await
    }

    /// Marks a point where a node's task may be preempted.
    pub(super) async fn linger(&self) {
        let for_long = self.state().interruption();
        if let Some(micros) = for_long {
            self.sleep(micros).await;
        }
    }

    /// Marks a point where synchronous code may be preempted. Other events run in the meantime.
    pub(super) fn interrupt(self: &Arc<Self>, place: usize) {
        let mut state = self.state();
        if state.running.len() > MOST_NESTED {
            return;
        }
        let Some(micros) = state.interruption() else {
            return;
        };
        let mut until = state.now + micros;
        drop(state);
        loop {
            self.run_until(until);
            let state = self.state();
            // The machine may have been paused in the meantime.
            if state.found.is_some() || state.places[place].paused <= state.now {
                return;
            }
            until = state.places[place].paused;
        }
    }

    /// Waits until the node carries out no other command, and then marks the node as busy.
    pub(super) async fn turn(&self, place: usize) {
        while std::mem::replace(&mut self.state().places[place].busy, true) {
            self.sleep(5 * MILLI).await;
        }
    }

    /// Adds a line to the trace, if the run keeps one.
    pub(super) fn log(&self, what: impl FnOnce() -> String) {
        self.state().log(what);
    }

    /// Drops all tasks and nodes, to break reference cycles.
    pub(super) fn end(&self) {
        let mut state = self.state();
        let tasks = std::mem::take(&mut state.tasks);
        let queue = std::mem::take(&mut state.queue);
        let nodes: Vec<_> = state
            .places
            .iter_mut()
            .map(|place| place.node.take())
            .collect();
        drop(state);
        drop((tasks, queue, nodes));
    }
}

impl State {
    fn schedule(&mut self, at: Instant, event: Event) {
        self.scheduled += 1;
        let shuffle = u32::try_from(self.dice.next() >> 32).unwrap_or_default();
        let order = (at, shuffle, self.scheduled);
        self.queue.push(Reverse(Scheduled { order, event }));
    }

    /// Wakes the running task at an instant.
    pub(super) fn wake_at(&mut self, at: Instant) {
        if let Some(&id) = self.running.last() {
            self.schedule(at, Event::Wake(id));
        }
    }

    /// Returns the running task.
    pub(super) fn running(&self) -> Option<TaskId> {
        self.running.last().copied()
    }

    /// Wakes a task at an instant.
    pub(super) fn wake_task(&mut self, id: Option<TaskId>, at: Instant) {
        id.into_iter()
            .for_each(|id| self.schedule(at, Event::Wake(id)));
    }

    pub(super) fn serve_at(&mut self, at: Instant, job: Job) {
        self.schedule(at, Event::Serve(job));
    }

    fn interruption(&mut self) -> Option<u64> {
        let most = 3 * self.ledger.bound();
        let happens = !self.calm && self.dice.chance(120);
        happens.then(|| self.dice.tail(20 * MILLI, most))
    }

    /// Draws the latency of a message to or from a node; `None` if the message is lost.
    pub(super) fn message(&mut self, place: usize) -> Option<u64> {
        let Weather { usual, most, loss } = self.places[place].weather;
        let lost = self.places[place].cut_off > self.now || self.dice.chance(loss);
        let takes = self.dice.tail(usual, most);
        (!lost).then_some(takes)
    }

    pub(super) fn find(&mut self, invariant: Invariant, what: String) {
        self.log(|| format!("VIOLATION: {what}"));
        self.found.get_or_insert((invariant, what));
    }

    pub(super) fn log(&mut self, what: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            if trace.len() == TRACE {
                trace.pop_front();
            }
            let (seconds, micros) = (now / SECOND, now % SECOND);
            trace.push_back(format!("{seconds:>4}.{micros:06} {}", what()));
        }
    }

    pub(super) fn take_trace(&mut self) -> Vec<String> {
        self.trace.take().map(Vec::from).unwrap_or_default()
    }

    /// Mixes an event into the hash by which two runs are compared.
    pub(super) fn mark(&mut self, what: u64) {
        let now = self.now;
        let mark = &mut self.report.mark;
        *mark = mix(*mark ^ mix(now) ^ what);
    }

    /// Counts an answered call, and mixes it into the hash.
    pub(super) fn mark_call(&mut self, place: usize, call: Call) {
        self.report.calls += 1;
        self.mark((place as u64) << 8 | call as u64);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
