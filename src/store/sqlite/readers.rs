//! A bounded number of threads that read for everybody. A read runs to its end on its thread, so a caller
//! that is dropped, or kept and not polled, holds nothing that another read needs.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;

use super::fault::SqliteFault;
use super::session::Pool;

type FileRead = Box<dyn FnOnce(&Pool) + Send>;

/// A queue of reads, and the threads that serve it.
pub(super) struct Readers {
    pool: Arc<Pool>,
    most: usize,
    queue: Arc<Mutex<ReadQueue>>,
}

#[derive(Default)]
struct ReadQueue {
    waiting: VecDeque<FileRead>,
    threads: usize,
}

impl Readers {
    /// Returns readers that use at most `most` threads.
    pub(super) fn new(pool: Arc<Pool>, most: usize) -> Self {
        let queue = Arc::default();
        Self { pool, most, queue }
    }

    /// Runs `read` within one snapshot. A read whose caller is dropped before it begins is left out.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, SqliteFault> + Send + 'static,
    ) -> Result<T, SqliteFault> {
        let (answer, answered) = async_channel::bounded(1);
        let read = move |pool: &Pool| {
            if !answer.is_closed() {
                drop(answer.try_send(pool.read(read)));
            }
        };
        let starts = {
            let mut queue = lock(&self.queue);
            queue.waiting.push_back(Box::new(read));
            let starts = queue.threads < self.most;
            queue.threads += usize::from(starts);
            starts
        };
        if starts {
            let (pool, queue) = (self.pool.clone(), self.queue.clone());
            blocking::unblock(move || serve(&pool, &queue)).detach();
        }
        let panicked = |_| Err(SqliteFault::Refused("a read panicked"));
        answered.recv().await.unwrap_or_else(panicked)
    }
}

/// Serves the queue until it is empty.
fn serve(pool: &Pool, queue: &Mutex<ReadQueue>) {
    while let Some(read) = next(queue) {
        // A read that panics must not end the thread, which other reads wait for. Its caller gets an error.
        drop(catch_unwind(AssertUnwindSafe(|| read(pool))));
    }
}

/// Takes the next read. If there is none, the thread counts as ended under the same lock, so that the next
/// read starts another one.
fn next(queue: &Mutex<ReadQueue>) -> Option<FileRead> {
    let mut queue = lock(queue);
    let next = queue.waiting.pop_front();
    if next.is_none() {
        queue.threads -= 1;
    }
    next
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
