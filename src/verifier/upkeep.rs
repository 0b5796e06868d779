//! A queue of tasks that replace digests under older peppers by digests under the current pepper.
//! Verifications add tasks without waiting, and a lost task does no harm. First uses are not queued, because
//! the index counts them.

use crossbeam_queue::ArrayQueue;

use crate::core::command::Command;
use crate::core::id::KeyId;
use crate::core::secret::Digest;
use crate::core::tenant::TenantId;
use crate::core::text::PepperId;

/// 1024 tasks at most, so that the queue's memory is bounded.
const CAPACITY: usize = 1024;

#[derive(Debug)]
pub(super) struct RedigestQueue(ArrayQueue<MaintenanceTask>);

impl Default for RedigestQueue {
    fn default() -> Self {
        Self(ArrayQueue::new(CAPACITY))
    }
}

impl RedigestQueue {
    pub(super) fn push(&self, task: MaintenanceTask) {
        // A full queue drops the task. The key's next use queues the task again.
        let _ = self.0.push(task);
    }

    pub(super) fn pop(&self) -> Option<MaintenanceTask> {
        self.0.pop()
    }
}

/// A command that this node issues by itself after a key was used.
#[derive(Debug)]
pub(crate) struct MaintenanceTask {
    pub(crate) tenant: TenantId,
    pub(crate) command: Command,
}

impl MaintenanceTask {
    pub(super) fn redigest(
        tenant: &TenantId,
        key: KeyId,
        (from, to): (&PepperId, &PepperId),
        (replaces, digest): (Digest, Digest),
    ) -> Self {
        let (from, to) = (from.clone(), to.clone());
        let command = Command::Redigest {
            key,
            from,
            to,
            replaces,
            digest,
        };
        Self {
            tenant: tenant.clone(),
            command,
        }
    }
}
