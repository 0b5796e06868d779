//! The simulated world. Time advances only from event to event, one task runs at a time, and machines have
//! faults.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use super::clock::{ClockState, NodeTime};
use super::dice::{Dice, mix};
use super::ledger::CommitLedger;
use super::node::Node;
use super::{Invariant, SimulationReport};
use crate::Call;

/// Simulated real time, in microseconds since the start of the run.
pub(super) type SimInstant = u64;

pub(super) const MILLI: u64 = 1_000;
pub(super) const SECOND: u64 = 1_000_000;

/// 5,000,000 events, far more than any run needs. A run that reaches this number is stuck in a loop.
const MOST_EVENTS: u64 = 5_000_000;

/// 120 lines: the trace of a violation contains this many of the last log lines.
const TRACE: usize = 120;

/// 2 levels of nested preemptions. While a verification is preempted, other events run. One of them may be a
/// verification that is preempted as well.
const MOST_NESTED: usize = 2;

type TaskFuture = Pin<Box<dyn Future<Output = ()> + Send>>;
type StoreCall = Box<dyn FnOnce(&Arc<SimulatedWorld>) + Send>;
type TaskId = u64;

/// An event that happens at a scheduled time.
enum SimulatedEvent {
    /// Polls a task.
    Wake(TaskId),
    /// Makes the store execute a request that has arrived.
    Serve(StoreCall),
}

struct Scheduled {
    /// The position of the event in the queue: its time, a random number and a counter. If two events have
    /// the same time, the random number, and so the seed, decides their order.
    order: (SimInstant, u32, u64),
    event: SimulatedEvent,
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

struct TaskSlot {
    /// The machine that runs the task, with the incarnation of its node. `None` for a task that belongs to no
    /// machine.
    machine: Option<(usize, u32)>,
    /// The future of the task. `None` while the world polls it.
    task: Option<TaskFuture>,
    /// Set if the task was woken while it was being polled, so that the world must poll it again.
    again: bool,
    waker: Waker,
}

/// The latency and the losses of the connection between a node and the store.
#[derive(Clone, Copy, Debug)]
pub(super) struct NetworkQuality {
    /// The usual latency of a message, in microseconds.
    pub(super) usual: u64,
    /// The highest latency of a message, in microseconds.
    pub(super) most: u64,
    /// The number of messages that are lost, of every thousand.
    pub(super) loss: u64,
}

/// A simulated machine, which runs one node.
pub(super) struct Machine {
    pub(super) clock: ClockState,
    /// The time by which the machine's node judges keys, derived from the node's clock readings.
    pub(super) node_time: NodeTime,
    pub(super) network: NetworkQuality,
    /// The simulated time until which the machine is disconnected from the store.
    pub(super) cut_off: SimInstant,
    /// The simulated time until which the machine is paused.
    pub(super) paused: SimInstant,
    /// The number of restarts of the node.
    pub(super) incarnation: u32,
    /// Set once a notification of a commit has reached the node since it last waited for one.
    pub(super) notified: bool,
    /// True if the node is executing a command. Another command polls this flag until it is false. A lock
    /// would wake the waiting commands in an order that depends on real time.
    pub(super) busy: bool,
    /// The time at which the node sent the last request for changes that the store has executed.
    pub(super) served: Option<SimInstant>,
    pub(super) node: Option<Arc<dyn Node>>,
}

pub(super) struct WorldState {
    pub(super) now: SimInstant,
    pub(super) dice: Dice,
    /// True if the faults have ended.
    pub(super) faults_ended: bool,
    pub(super) machines: Vec<Machine>,
    pub(super) ledger: CommitLedger,
    pub(super) report: SimulationReport,
    pub(super) found: Option<(Invariant, String)>,
    pub(super) last_commit: SimInstant,
    /// The number of commands that were planned so far, from which each gets its id.
    pub(super) planned: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    tasks: BTreeMap<TaskId, TaskSlot>,
    running: Vec<TaskId>,
    scheduled: u64,
    spawned: TaskId,
    trace: Option<VecDeque<String>>,
}

/// The simulated world, which the tasks of all machines share.
pub(super) struct SimulatedWorld {
    state: Mutex<WorldState>,
    ready: Arc<Mutex<Vec<TaskId>>>,
}

impl fmt::Debug for SimulatedWorld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimulatedWorld(…)")
    }
}

struct TaskWaker {
    ready: Arc<Mutex<Vec<TaskId>>>,
    id: TaskId,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        lock(&self.ready).push(self.id);
    }
}

impl SimulatedWorld {
    pub(super) fn new(
        dice: Dice,
        machines: Vec<Machine>,
        ledger: CommitLedger,
        traced: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(WorldState {
                now: 0,
                dice,
                faults_ended: false,
                machines,
                ledger,
                report: SimulationReport::default(),
                found: None,
                last_commit: 0,
                planned: 0,
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

    pub(super) fn state(&self) -> MutexGuard<'_, WorldState> {
        lock(&self.state)
    }

    /// Starts a task on a machine, or on no machine. If the machine's node is stopped, the task is stopped
    /// too.
    pub(super) fn spawn(
        &self,
        machine: Option<usize>,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let mut state = self.state();
        state.spawned += 1;
        let id = state.spawned;
        let ready = self.ready.clone();
        let slot = TaskSlot {
            machine: machine.map(|machine| (machine, state.machines[machine].incarnation)),
            task: Some(Box::pin(task)),
            again: false,
            waker: Waker::from(Arc::new(TaskWaker { ready, id })),
        };
        state.tasks.insert(id, slot);
        let now = state.now;
        state.schedule(now, SimulatedEvent::Wake(id));
    }

    /// Stops the node of a machine and all of its tasks. Requests that the node has already sent still reach
    /// the store.
    pub(super) fn kill(&self, machine: usize) {
        let mut state = self.state();
        state.machines[machine].incarnation += 1;
        state.machines[machine].busy = false;
        let node = state.machines[machine].node.take();
        let on_it = |slot: &TaskSlot| slot.machine.is_some_and(|(on, _)| on == machine);
        let tasks = std::mem::take(&mut state.tasks);
        let (gone, kept): (BTreeMap<_, _>, _) =
            tasks.into_iter().partition(|(_, slot)| on_it(slot));
        state.tasks = kept;
        drop(state);
        // Drops the tasks without holding the lock of the state, because dropping a task may wake other
        // tasks.
        drop((gone, node));
    }

    /// Runs all events up to the time `limit`. Stops early if an invariant is broken.
    pub(super) fn run_until(self: &Arc<Self>, limit: SimInstant) {
        loop {
            let mut state = self.state();
            if state.found.is_some() {
                return;
            }
            let woken = std::mem::take(&mut *lock(&self.ready));
            for id in woken {
                let now = state.now;
                state.schedule(now, SimulatedEvent::Wake(id));
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
                SimulatedEvent::Serve(job) => {
                    drop(state);
                    job(self);
                }
                SimulatedEvent::Wake(id) => self.wake(state, id),
            }
        }
    }

    fn wake(self: &Arc<Self>, mut state: MutexGuard<'_, WorldState>, id: TaskId) {
        let Some(slot) = state.tasks.get_mut(&id) else {
            return;
        };
        let machine = slot.machine;
        if let Some((on, _)) = machine {
            let paused = state.machines[on].paused;
            if paused > state.now {
                let later = paused + state.dice.between(0, 2 * MILLI);
                state.schedule(later, SimulatedEvent::Wake(id));
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
                    state.schedule(now, SimulatedEvent::Wake(id));
                }
                return;
            }
            (Some(_), Poll::Ready(())) => state.tasks.remove(&id),
            // The task is not kept, because its node was stopped while the task was being polled.
            (None, _) => None,
        };
        drop(state);
        drop((kept, task));
    }

    /// Waits until the simulated time `at`.
    pub(super) async fn until(&self, at: SimInstant) {
        let mut timer_set = false;
        poll_fn(|_| {
            let mut state = self.state();
            if state.now >= at {
                return Poll::Ready(());
            }
            if !std::mem::replace(&mut timer_set, true) {
                state.wake_at(at);
            }
            Poll::Pending
        })
        .await;
    }

    /// Waits for `micros` microseconds of simulated time.
    pub(super) async fn sleep(&self, micros: u64) {
        let at = self.state().now + micros;
        self.until(at).await;
    }

    /// Waits for `micros` microseconds of simulated time, but returns early if the node is notified of a
    /// commit.
    pub(super) async fn sleep_or_notified(&self, machine: usize, micros: u64) {
        let at = self.state().now + micros;
        let mut timer_set = false;
        poll_fn(|_| {
            let mut state = self.state();
            let notified = std::mem::take(&mut state.machines[machine].notified);
            if state.now >= at || notified {
                return Poll::Ready(());
            }
            if !std::mem::replace(&mut timer_set, true) {
                state.wake_at(at);
                // The task looks for a notification three times during the wait. The time until the next look
                // stands for the latency of the notification.
                for step in 1..4 {
                    let between = state.now + step * micros / 4;
                    state.wake_at(between);
                }
            }
            Poll::Pending
        })
        .await;
    }

    /// Returns the output of a future, or `None` if it is not complete after `micros` microseconds of
    /// simulated time.
    pub(super) async fn within<T>(
        &self,
        micros: u64,
        future: impl Future<Output = T>,
    ) -> Option<T> {
        let mut future = pin!(future);
        let at = self.state().now + micros;
        let mut timer_set = false;
        poll_fn(|cx| {
            if let Poll::Ready(done) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            let mut state = self.state();
            if state.now >= at {
                return Poll::Ready(None);
            }
            if !std::mem::replace(&mut timer_set, true) {
                state.wake_at(at);
            }
            Poll::Pending
        })
        .await
    }

    /// With some probability, sleeps for a random time, as if the operating system had preempted the node.
    pub(super) async fn maybe_preempt(&self) {
        let for_long = self.state().interruption();
        if let Some(micros) = for_long {
            self.sleep(micros).await;
        }
    }

    /// With some probability, runs other events for a random time. To the synchronous caller, this looks like
    /// a preemption of its thread.
    pub(super) fn interrupt(self: &Arc<Self>, machine: usize) {
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
            // One of these events may have paused the machine. The caller then continues only after the
            // pause.
            if state.found.is_some() || state.machines[machine].paused <= state.now {
                return;
            }
            until = state.machines[machine].paused;
        }
    }

    /// Waits until the node executes no other command, and then marks the node as busy.
    pub(super) async fn begin_command(&self, machine: usize) {
        while std::mem::replace(&mut self.state().machines[machine].busy, true) {
            self.sleep(5 * MILLI).await;
        }
    }

    /// Adds a line to the trace. The line is built only in a run that keeps a trace.
    pub(super) fn log(&self, what: impl FnOnce() -> String) {
        self.state().log(what);
    }

    /// Drops all tasks and nodes at the end of a run, because tasks and the world own each other.
    pub(super) fn end(&self) {
        let mut state = self.state();
        let tasks = std::mem::take(&mut state.tasks);
        let queue = std::mem::take(&mut state.queue);
        let nodes: Vec<_> = state
            .machines
            .iter_mut()
            .map(|machine| machine.node.take())
            .collect();
        drop(state);
        drop((tasks, queue, nodes));
    }
}

impl WorldState {
    fn schedule(&mut self, at: SimInstant, event: SimulatedEvent) {
        self.scheduled += 1;
        let shuffle = u32::try_from(self.dice.next() >> 32).unwrap_or_default();
        let order = (at, shuffle, self.scheduled);
        self.queue.push(Reverse(Scheduled { order, event }));
    }

    /// Wakes the task that is running now again at the time `at`.
    pub(super) fn wake_at(&mut self, at: SimInstant) {
        if let Some(&id) = self.running.last() {
            self.schedule(at, SimulatedEvent::Wake(id));
        }
    }

    /// Returns the id of the task that is running now.
    pub(super) fn running(&self) -> Option<TaskId> {
        self.running.last().copied()
    }

    /// Wakes the given task at the time `at`.
    pub(super) fn wake_task(&mut self, id: Option<TaskId>, at: SimInstant) {
        id.into_iter()
            .for_each(|id| self.schedule(at, SimulatedEvent::Wake(id)));
    }

    pub(super) fn serve_at(&mut self, at: SimInstant, job: StoreCall) {
        self.schedule(at, SimulatedEvent::Serve(job));
    }

    fn interruption(&mut self) -> Option<u64> {
        let most = 3 * self.ledger.bound();
        let happens = !self.faults_ended && self.dice.chance(120);
        happens.then(|| self.dice.tail(20 * MILLI, most))
    }

    /// Returns a random latency for a message to or from a node, or `None` if the message is lost.
    pub(super) fn message(&mut self, machine: usize) -> Option<u64> {
        let NetworkQuality { usual, most, loss } = self.machines[machine].network;
        let lost = self.machines[machine].cut_off > self.now || self.dice.chance(loss);
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

    /// Adds a value to the hash of the run's events, [`SimulationReport::mark`].
    pub(super) fn mark(&mut self, what: u64) {
        let now = self.now;
        let mark = &mut self.report.mark;
        *mark = mix(*mark ^ mix(now) ^ what);
    }

    /// Counts a call that the store has executed, and adds it to the hash of the run's events.
    pub(super) fn mark_call(&mut self, machine: usize, call: Call) {
        self.report.calls += 1;
        self.mark((machine as u64) << 8 | call as u64);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
