//! The public view of a key: everything that a list or a details page shows.
//!
//! Pure: no I/O and no clock. The serialized form is part of the public interface:
//! `src/core/golden/key-info.json` pins it.

use std::ops::Deref;

use serde::Serialize;

use super::id::KeyId;
use super::owner::OwnerStatus;
use super::policy::Policy;
use super::principal::Author;
use super::reach::{self, Bounds};
use super::record::{KeyFacts, KeyRecord, KeyState, Reason, Status};
use super::scope::ScopeSet;
use super::stamp::Stamp;
use super::text::Stage;
use super::time::Timestamp;

/// The public details of a key at one instant, without its secret and its digest. Dereferences to its
/// [`KeyFacts`].
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct KeyInfo {
    /// The fields that the stored record holds too.
    #[serde(flatten)]
    pub facts: KeyFacts,
    /// The label of the key's class, such as `beta`, if the class is not final yet.
    pub stage: Option<Stage>,
    /// The effective scopes of the key at the requested instant. A disabled or ended key cannot use these
    /// scopes.
    pub reach: ScopeSet,
    /// The key that created this key, if a key did. For a successor, the key that created the first key
    /// of its chain.
    pub created_by_key: Option<KeyId>,
    /// The status of the key at the requested instant.
    pub status: Status,
    /// The revocation of the key; `None` if the key is not revoked.
    pub revocation: Option<KeyRevocation>,
}

/// The revocation of a key.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct KeyRevocation {
    /// The instant of the revocation.
    pub at: Timestamp,
    /// The author of the revocation.
    pub by: Author,
    /// The reason of the revocation.
    pub reason: Reason,
}

impl Deref for KeyInfo {
    type Target = KeyFacts;

    fn deref(&self) -> &KeyFacts {
        &self.facts
    }
}

impl KeyInfo {
    /// Returns the public view of `record` at `now`. `owner_status` combines the stored rows that affect the
    /// key: the owner's roles and removals, and the closing of tenants.
    #[must_use]
    pub fn new(
        record: KeyRecord,
        policy: &Policy,
        owner_status: &OwnerStatus,
        now: Timestamp,
    ) -> Self {
        let class = policy.class(&record.class);
        let reach = class
            .map(|class| reach::scopes(Bounds::of_record(&record), policy, class, owner_status));
        Self {
            stage: class.and_then(|class| class.stage.clone()),
            reach: reach.unwrap_or_default(),
            created_by_key: record.created_by_key(),
            status: record.status(now),
            revocation: match record.state {
                KeyState::Revoked { stamp, reason } => {
                    let Stamp { at, by } = stamp;
                    Some(KeyRevocation { at, by, reason })
                }
                KeyState::Enabled | KeyState::Disabled(_) => None,
            },
            facts: record.facts,
        }
    }
}
