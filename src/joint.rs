//! Futures that several callers await, and that any of them drives.
//!
//! An async lock that is held over an await point blocks everybody else if its holder is kept and not polled.
//! [`Joint`] has no holder: between two polls the future belongs to nobody, and the next caller that is
//! polled polls it. [`Turns`] uses this for work that must not overlap.

use std::collections::BTreeMap;
use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::future::BoxFuture;

/// The callers to wake when a future has news.
#[derive(Default)]
struct JointWakers {
    /// True if the future was woken since its last poll began.
    news: AtomicBool,
    by_caller: Mutex<BTreeMap<u64, Waker>>,
}

impl JointWakers {
    /// Wakes every caller. One of them may never be polled again, so it is not enough to wake one.
    fn wake_all(&self) {
        self.news.store(true, Ordering::Release);
        let wakers = mem::take(&mut *lock(&self.by_caller));
        wakers.into_values().for_each(Waker::wake);
    }
}

impl Wake for JointWakers {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_all();
    }
}

enum JointState<T> {
    Idle(BoxFuture<'static, T>),
    /// Some thread polls or drops the future at this moment.
    Busy,
    /// The result; `None` if the future was cancelled, or panicked.
    Ended(Option<T>),
}

/// A future that several callers await. A caller that is kept and not polled delays no other caller.
///
/// The `Shared` of `futures-util` loses a wake-up: a caller that is polled during another caller's poll is
/// not woken again for news that arrived during that poll. If the other caller is never polled again, the
/// first one hangs.
pub(crate) struct Joint<T> {
    state: Mutex<JointState<T>>,
    wakers: Arc<JointWakers>,
    callers: AtomicU64,
}

impl<T> std::fmt::Debug for Joint<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Joint").finish_non_exhaustive()
    }
}

impl<T: Clone> Joint<T> {
    pub(crate) fn new(future: BoxFuture<'static, T>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(JointState::Idle(future)),
            wakers: Arc::default(),
            callers: AtomicU64::new(0),
        })
    }

    /// Awaits and drives the future. The result is `None` if the future was cancelled, or panicked.
    pub(crate) fn wait(self: &Arc<Self>) -> JointWait<T> {
        JointWait {
            joint: self.clone(),
            caller: self.callers.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Wakes every caller, as if the future had news.
    pub(crate) fn wake(&self) {
        self.wakers.wake_all();
    }

    /// Polls the future once if it has news that no caller has seen. Never waits.
    #[inline]
    pub(crate) fn nudge(&self) {
        if self.wakers.news.load(Ordering::Acquire) {
            self.poll_once();
        }
    }

    #[cold]
    fn poll_once(&self) {
        drop(self.poll());
    }

    /// Drops the future, unless some thread polls it at this moment. Every caller is woken.
    pub(crate) fn cancel(&self) {
        let mut state = lock(&self.state);
        if let JointState::Idle(_) = &*state {
            let idle = mem::replace(&mut *state, JointState::Busy);
            drop(state);
            // The future is dropped before its end is visible, so that the next turn never overlaps it.
            let _end = EndGuard(self);
            drop(idle);
        }
    }

    pub(crate) fn is_ended(&self) -> bool {
        matches!(*lock(&self.state), JointState::Ended(_))
    }

    fn has_result(&self) -> bool {
        matches!(*lock(&self.state), JointState::Ended(Some(_)))
    }

    fn poll(&self) -> Poll<Option<T>> {
        // Declared before the future, so that a panic drops the future first.
        let end = EndGuard(self);
        let mut future = {
            let mut state = lock(&self.state);
            match mem::replace(&mut *state, JointState::Busy) {
                JointState::Idle(future) => future,
                JointState::Busy => {
                    mem::forget(end);
                    return Poll::Pending;
                }
                JointState::Ended(result) => {
                    mem::forget(end);
                    *state = JointState::Ended(result.clone());
                    return Poll::Ready(result);
                }
            }
        };
        // News from here on may be missed by this poll. Acquire: this poll sees earlier news.
        self.wakers.news.swap(false, Ordering::AcqRel);
        let waker = Waker::from(self.wakers.clone());
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        mem::forget(end);
        match polled {
            Poll::Ready(result) => {
                drop(future);
                self.end(Some(result.clone()));
                Poll::Ready(Some(result))
            }
            Poll::Pending => {
                *lock(&self.state) = JointState::Idle(future);
                // A caller that was polled meanwhile saw `Busy`, and registered its waker before. If news
                // arrived before that registration, nobody but this caller was woken, and this caller may
                // never be polled again. The lock of `state` orders that news before this load.
                if self.wakers.news.load(Ordering::Acquire) {
                    self.wakers.wake_all();
                }
                Poll::Pending
            }
        }
    }

    fn end(&self, result: Option<T>) {
        *lock(&self.state) = JointState::Ended(result);
        self.wakers.wake_all();
    }
}

/// Ends the future without a result, when dropped.
struct EndGuard<'a, T: Clone>(&'a Joint<T>);

impl<T: Clone> Drop for EndGuard<'_, T> {
    fn drop(&mut self) {
        self.0.end(None);
    }
}

/// One caller that awaits a [`Joint`].
pub(crate) struct JointWait<T> {
    joint: Arc<Joint<T>>,
    caller: u64,
}

impl<T: Clone> Future for JointWait<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Registers first, so that news after the poll below wakes this caller.
        lock(&self.joint.wakers.by_caller).insert(self.caller, cx.waker().clone());
        self.joint.poll()
    }
}

impl<T> Drop for JointWait<T> {
    fn drop(&mut self) {
        lock(&self.joint.wakers.by_caller).remove(&self.caller);
    }
}

/// Work in turns: two pieces of work never overlap, and concurrent callers share a piece that begins after
/// their calls.
#[derive(Debug)]
pub(crate) struct Turns<K, T> {
    state: Mutex<TurnState<K, T>>,
}

#[derive(Debug)]
struct TurnState<K, T> {
    /// The number of turns that have begun.
    begun: u64,
    current: Option<Turn<K, T>>,
}

#[derive(Debug)]
struct Turn<K, T> {
    kind: K,
    work: Arc<Joint<T>>,
    waiting: usize,
}

impl<K, T> Default for Turns<K, T> {
    fn default() -> Self {
        Self {
            state: Mutex::new(TurnState {
                begun: 0,
                current: None,
            }),
        }
    }
}

impl<K: Copy + PartialEq, T: Clone> Turns<K, T> {
    /// Returns the result of work of this kind that began after this call. Waits for, and drives, the turn
    /// in progress first.
    ///
    /// A caller that is dropped cancels the turn if nobody else waits for it, or if `is_stalled` returns
    /// true.
    pub(crate) async fn next(
        &self,
        kind: K,
        begin: impl Fn() -> BoxFuture<'static, T>,
        is_stalled: impl Fn() -> bool,
    ) -> T {
        let called = lock(&self.state).begun;
        loop {
            let mut caller = self.join((kind, called), &begin, &is_stalled);
            let result = caller.work.wait().await;
            caller.waits = false;
            if let Some(result) = result
                && caller.number > called
                && caller.kind == kind
            {
                return result;
            }
        }
    }

    /// Joins the turn in progress, or a turn that has ended and began after the call. Begins a turn if there is
    /// none.
    fn join<'a, S: Fn() -> bool>(
        &'a self,
        (kind, called): (K, u64),
        begin: impl Fn() -> BoxFuture<'static, T>,
        is_stalled: &'a S,
    ) -> TurnCaller<'a, K, T, S> {
        let mut state = lock(&self.state);
        let began_later = state.begun > called;
        state.current.take_if(|turn| {
            let serves = began_later && turn.kind == kind && turn.work.has_result();
            turn.work.is_ended() && !serves
        });
        if state.current.is_none() {
            state.begun += 1;
        }
        let number = state.begun;
        let turn = state.current.get_or_insert_with(|| Turn {
            kind,
            work: Joint::new(begin()),
            waiting: 0,
        });
        turn.waiting += 1;
        TurnCaller {
            turns: self,
            number,
            kind: turn.kind,
            work: turn.work.clone(),
            is_stalled,
            waits: true,
        }
    }
}

/// A caller that waits for a turn.
struct TurnCaller<'a, K, T: Clone, S: Fn() -> bool> {
    turns: &'a Turns<K, T>,
    number: u64,
    kind: K,
    work: Arc<Joint<T>>,
    is_stalled: &'a S,
    /// True until the work has ended.
    waits: bool,
}

impl<K, T: Clone, S: Fn() -> bool> Drop for TurnCaller<'_, K, T, S> {
    fn drop(&mut self) {
        let alone = {
            let mut state = lock(&self.turns.state);
            let begun = state.begun;
            let own = state.current.as_mut().filter(|_| begun == self.number);
            own.is_some_and(|turn| {
                turn.waiting -= 1;
                turn.waiting == 0
            })
        };
        if self.waits && (alone || (self.is_stalled)()) {
            self.work.cancel();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Poisoning is ignored: no code panics under one of these locks, and each guards whole values only.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn, ready};
    use std::pin::pin;
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc::channel;
    use std::thread;

    use futures_util::FutureExt;

    use super::*;

    #[derive(Default)]
    struct WakeCount(AtomicUsize);

    impl Wake for WakeCount {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn poll_with<F: Future + Unpin>(future: &mut F, count: &Arc<WakeCount>) -> Poll<F::Output> {
        let waker = Waker::from(count.clone());
        Pin::new(future).poll(&mut Context::from_waker(&waker))
    }

    #[test]
    fn a_caller_that_is_kept_delays_nobody() {
        let mut polls = 0;
        let future = poll_fn(move |_| {
            polls += 1;
            if polls == 3 {
                Poll::Ready(7)
            } else {
                Poll::Pending
            }
        });
        let joint = Joint::new(future.boxed());
        let (count, mut kept, mut other) = (Arc::default(), joint.wait(), joint.wait());
        assert!(poll_with(&mut kept, &count).is_pending());
        assert!(poll_with(&mut other, &count).is_pending());
        assert_eq!(poll_with(&mut other, &count), Poll::Ready(Some(7)));
        assert_eq!(count.0.load(Ordering::SeqCst), 2, "both were woken");
        assert_eq!(poll_with(&mut kept, &count), Poll::Ready(Some(7)));
    }

    /// One thread polls. During its poll the future is woken, and then another caller is polled. The first
    /// caller is never polled again.
    #[test]
    fn news_during_the_poll_of_another_caller_is_not_lost() {
        let (woken, is_woken) = channel();
        let (polled, is_polled) = channel::<()>();
        let mut first = true;
        let future = poll_fn(move |cx| {
            if !mem::take(&mut first) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            woken.send(()).unwrap();
            is_polled.recv().unwrap();
            Poll::Pending
        });
        let joint = Joint::new(future.boxed());
        let mut kept = joint.wait();
        let thread = thread::spawn(move || {
            let polled = poll_with(&mut kept, &Arc::default());
            (polled, kept)
        });
        is_woken.recv().unwrap();
        let (count, mut other) = (Arc::<WakeCount>::default(), joint.wait());
        assert!(poll_with(&mut other, &count).is_pending());
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
        polled.send(()).unwrap();
        let (_, _kept) = thread.join().unwrap();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert_eq!(poll_with(&mut other, &count), Poll::Ready(Some(())));
    }

    #[test]
    fn a_panic_ends_the_future_for_everybody() {
        let joint = Joint::<()>::new(poll_fn(|_| panic!("as a store may")).boxed());
        let (mut one, mut other) = (joint.wait(), joint.wait());
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            poll_with(&mut one, &Arc::default())
        }));
        assert!(polled.is_err());
        assert_eq!(poll_with(&mut other, &Arc::default()), Poll::Ready(None));
    }

    #[test]
    fn a_turn_that_began_before_a_call_does_not_serve_the_call() {
        let turns = Turns::<(), u32>::default();
        let begun = AtomicUsize::new(0);
        let open = Arc::new(AtomicBool::new(false));
        let begin = || {
            let number = begun.fetch_add(1, Ordering::SeqCst) as u32;
            let open = open.clone();
            poll_fn(move |_| match open.load(Ordering::SeqCst) {
                true => Poll::Ready(number),
                false => Poll::Pending,
            })
            .boxed()
        };
        let mut kept = pin!(turns.next((), begin, || false));
        let count = Arc::<WakeCount>::default();
        assert!(poll_with(&mut kept, &count).is_pending());
        let (mut one, mut other) = (
            pin!(turns.next((), begin, || false)),
            pin!(turns.next((), begin, || false)),
        );
        assert!(poll_with(&mut one, &count).is_pending());
        assert!(poll_with(&mut other, &count).is_pending());
        open.store(true, Ordering::SeqCst);
        assert_eq!(poll_with(&mut one, &count), Poll::Ready(1));
        assert_eq!(poll_with(&mut other, &count), Poll::Ready(1), "shared");
        assert_eq!(poll_with(&mut kept, &count), Poll::Ready(0));
    }

    #[test]
    fn a_turn_is_cancelled_by_its_last_caller_or_by_one_that_finds_it_stalled() {
        let turns = Turns::<(), ()>::default();
        let begun = AtomicUsize::new(0);
        let begin = || match begun.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => pending().boxed(),
            _ => ready(()).boxed(),
        };
        let count = Arc::default();
        let kept = &mut Box::pin(turns.next((), begin, || false));
        assert!(poll_with(kept, &count).is_pending());
        let mut patient = Box::pin(turns.next((), begin, || false));
        assert!(poll_with(&mut patient, &count).is_pending());
        drop(patient);
        let mut impatient = Box::pin(turns.next((), begin, || true));
        assert!(poll_with(&mut impatient, &count).is_pending());
        assert_eq!(begun.load(Ordering::SeqCst), 1);
        drop(impatient);
        let mut alone = Box::pin(turns.next((), begin, || false));
        assert!(poll_with(&mut alone, &count).is_pending());
        assert_eq!(begun.load(Ordering::SeqCst), 2);
        drop(alone);
        let mut served = Box::pin(turns.next((), begin, || false));
        assert!(poll_with(&mut served, &count).is_ready());
        assert!(poll_with(kept, &count).is_ready());
    }
}
