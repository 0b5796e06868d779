//! A queue of digests that are to be stored again under the current pepper. Verifications add to it
//! without waiting, and a lost entry does no harm. First uses are not queued, because the index
//! counts them.

use crossbeam_queue::ArrayQueue;

use crate::core::command::Command;
use crate::core::id::KeyId;
use crate::core::secret::Digest;
use crate::core::tenant::TenantId;
use crate::core::text::PepperId;

/// 1024 tasks. A dropped task returns with the key's next use.
const CAPACITY: usize = 1024;

#[derive(Debug)]
pub(super) struct Upkeep(ArrayQueue<MaintenanceTask>);

impl Default for Upkeep {
    fn default() -> Self {
        Self(ArrayQueue::new(CAPACITY))
    }
}

impl Upkeep {
    pub(super) fn push(&self, chore: MaintenanceTask) {
        // A full queue drops the task, and the key's next use queues it again.
        let _ = self.0.push(chore);
    }

    pub(super) fn pop(&self) -> Option<MaintenanceTask> {
        self.0.pop()
    }
}

/// A command that the host itself gives after a key was used.
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
