//! The results of the facade's commands and queries.

use crate::core::command::{CommandOutcome, IssuedKey};
use crate::core::id::KeyId;
use crate::core::info::KeyInfo;
use crate::core::query::KeyPosition;
use crate::core::scope::ScopeSet;
use crate::core::secret::{Fingerprint, Secret};
use crate::core::text::{ClassName, Hint};
use crate::core::time::Timestamp;
use crate::manager::{Committed, Receipt};

/// A created key and its secret. No later call can return the secret.
#[derive(Debug)]
#[non_exhaustive]
pub struct Created {
    /// The key's public id.
    pub id: KeyId,
    /// The full text of the key. Give it to the key's owner; it cannot be shown again.
    pub secret: Secret,
    /// The key's class.
    pub class: ClassName,
    /// A part of the key's text that is safe to show, so that people can recognize the key later.
    pub hint: Hint,
    /// The fingerprint by which the key can be found.
    pub fingerprint: Fingerprint,
    /// The time at which the key expires; `None` for never.
    pub expires_at: Option<Timestamp>,
    /// The effective scopes of the key. They are fewer than the scopes in the key if a role, the key's bound
    /// or the key's class allows fewer.
    pub reach: ScopeSet,
    /// The keys that the policy provisioned with the tenant. Empty unless this was the tenant's first
    /// command.
    pub provisioned: Vec<IssuedKey>,
    /// The position and time of the commit.
    pub receipt: Receipt,
}

/// The result of correcting a tenant's time after a wrong clock.
#[derive(Debug)]
#[non_exhaustive]
pub struct TimeRepaired {
    /// The time of the tenant's newest commit, before and after the repair. `None` if nothing had to be
    /// repaired.
    pub set_back: Option<(Timestamp, Timestamp)>,
    /// The position and time of the commit.
    pub receipt: Receipt,
}

impl TimeRepaired {
    pub(super) fn from_committed(committed: Committed) -> Self {
        let Committed { outcome, receipt } = committed;
        let set_back = match outcome {
            CommandOutcome::TimeRepaired { from, to } => Some((from, to)),
            _ => None,
        };
        Self { set_back, receipt }
    }
}

/// A key that was imported as a digest.
#[derive(Debug)]
#[non_exhaustive]
pub struct ImportedKey {
    /// The key's public id in this store.
    pub id: KeyId,
    /// The fingerprint by which the key can be found.
    pub fingerprint: Fingerprint,
    /// The effective scopes of the key.
    pub reach: ScopeSet,
    /// The keys that the policy provisioned with the tenant. Empty unless this was the tenant's first
    /// command.
    pub provisioned: Vec<IssuedKey>,
    /// The position and time of the commit.
    pub receipt: Receipt,
}

/// The successor that a rotation created, and its secret. No later call can return the secret.
#[derive(Debug)]
#[non_exhaustive]
pub struct Rotated {
    /// The successor's public id.
    pub id: KeyId,
    /// The full text of the successor.
    pub secret: Secret,
    /// The time at which the successor expires; `None` for never.
    pub expires_at: Option<Timestamp>,
    /// The effective scopes of the successor.
    pub reach: ScopeSet,
    /// The key that the successor replaces.
    pub predecessor: KeyId,
    /// The time at which the old key stops working. If its grace period starts at the successor's first use,
    /// this is the latest possible time.
    pub until: Timestamp,
    /// The position and time of the commit.
    pub receipt: Receipt,
}

/// The result of a leak report.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct LeakReport {
    /// The leaked key.
    pub key: KeyId,
    /// True if this report revoked the key. False for publishable and legacy keys, whose leak is only recorded,
    /// and for a key that was already revoked.
    pub revoked: bool,
    /// The position and time of the commit.
    pub receipt: Receipt,
}

/// A page of keys, without their secrets.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct KeyList {
    /// The keys, in the query's order.
    pub keys: Vec<KeyInfo>,
    /// Keys whose stored bytes failed their checksum.
    pub corrupt: Vec<KeyId>,
    /// The start of the next page; `None` if this is the last one.
    pub next: Option<KeyPosition>,
}

impl Created {
    pub(super) fn from_committed(committed: Committed) -> Option<Self> {
        let CommandOutcome::Issued {
            key: Some(key),
            provisioned,
        } = committed.outcome
        else {
            return None;
        };
        let IssuedKey {
            id,
            class,
            hint,
            fingerprint,
            expires_at,
            reach,
            token,
        } = key;
        let (secret, receipt) = (token?, committed.receipt);
        Some(Self {
            id,
            secret,
            class,
            hint,
            fingerprint,
            expires_at,
            reach,
            provisioned,
            receipt,
        })
    }
}

impl ImportedKey {
    pub(super) fn from_committed(committed: Committed) -> Option<Self> {
        let CommandOutcome::Issued {
            key: Some(key),
            provisioned,
        } = committed.outcome
        else {
            return None;
        };
        let IssuedKey {
            id,
            fingerprint,
            reach,
            ..
        } = key;
        Some(Self {
            id,
            fingerprint,
            reach,
            provisioned,
            receipt: committed.receipt,
        })
    }
}

impl Rotated {
    pub(super) fn from_committed(committed: Committed) -> Option<Self> {
        let CommandOutcome::Rotated {
            successor,
            predecessor,
            until,
        } = committed.outcome
        else {
            return None;
        };
        let IssuedKey {
            id,
            expires_at,
            reach,
            token,
            ..
        } = successor;
        let (secret, receipt) = (token?, committed.receipt);
        Some(Self {
            id,
            secret,
            expires_at,
            reach,
            predecessor,
            until,
            receipt,
        })
    }
}
