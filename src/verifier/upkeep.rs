//! Digests that verifications leave to be stored anew: noted without waiting, done later, and lost
//! without harm. First uses are not: the index counts them.

use crossbeam_queue::ArrayQueue;

use crate::core::command::Command;
use crate::core::id::KeyId;
use crate::core::secret::Digest;
use crate::core::tenant::TenantId;
use crate::core::text::PepperId;

/// How many chores wait at most; the next use of the key brings a dropped one back.
const CAPACITY: usize = 1024;

#[derive(Debug)]
pub(super) struct Upkeep(ArrayQueue<Chore>);

impl Default for Upkeep {
    fn default() -> Self {
        Self(ArrayQueue::new(CAPACITY))
    }
}

impl Upkeep {
    pub(super) fn push(&self, chore: Chore) {
        // Full: dropped, and brought back by the key's next use.
        let _ = self.0.push(chore);
    }

    pub(super) fn pop(&self) -> Option<Chore> {
        self.0.pop()
    }
}

/// A command that the host itself gives once a key was used.
#[derive(Debug)]
pub(crate) struct Chore {
    pub(crate) tenant: TenantId,
    pub(crate) command: Command,
}

impl Chore {
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
