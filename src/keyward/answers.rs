//! The results of the facade's commands and queries.

use crate::core::command::{IssuedKey, Outcome};
use crate::core::id::KeyId;
use crate::core::info::KeyInfo;
use crate::core::query::KeyPosition;
use crate::core::scope::ScopeSet;
use crate::core::secret::{Fingerprint, Secret};
use crate::core::text::{ClassName, Hint};
use crate::core::time::Timestamp;
use crate::manager::{Committed, Receipt};

/// A created key, with its secret. The secret is shown only this once.
#[derive(Debug)]
#[non_exhaustive]
pub struct Created {
    /// The key's public id.
    pub id: KeyId,
    /// The key's whole text. Hand it to the key's owner; it cannot be shown again.
    pub secret: Secret,
    /// The key's class.
    pub class: ClassName,
    /// The part of the key's text that people see later.
    pub hint: Hint,
    /// The fingerprint by which the key can be found.
    pub fingerprint: Fingerprint,
    /// The time at which the key expires; `None` for never.
    pub expires_at: Option<Timestamp>,
    /// The scopes that the key effectively reaches. They are fewer than the key's own scopes if a role,
    /// the key's bound or the key's class allows fewer.
    pub reach: ScopeSet,
    /// The keys that the policy provisioned with the tenant, because this was the tenant's first
    /// command.
    pub provisioned: Vec<IssuedKey>,
    /// The place and time of the commit.
    pub receipt: Receipt,
}

/// A tenant whose time was repaired.
#[derive(Debug)]
#[non_exhaustive]
pub struct TimeRepaired {
    /// The tenant's newest instant before and after the repair. `None` if that instant was not in the
    /// future.
    pub set_back: Option<(Timestamp, Timestamp)>,
    /// The place and time of the commit.
    pub receipt: Receipt,
}

impl TimeRepaired {
    pub(super) fn from_committed(landed: Committed) -> Self {
        let Committed { outcome, receipt } = landed;
        let set_back = match outcome {
            Outcome::TimeRepaired { from, to } => Some((from, to)),
            _ => None,
        };
        Self { set_back, receipt }
    }
}

/// A key that was imported as a digest.
#[derive(Debug)]
#[non_exhaustive]
pub struct Imported {
    /// The key's public id in this store.
    pub id: KeyId,
    /// The fingerprint by which the key can be found.
    pub fingerprint: Fingerprint,
    /// The scopes that the key effectively reaches.
    pub reach: ScopeSet,
    /// The keys that the policy provisioned with the tenant, because this was the tenant's first
    /// command.
    pub provisioned: Vec<IssuedKey>,
    /// The place and time of the commit.
    pub receipt: Receipt,
}

/// The created successor of a rotation, with its secret. The secret is shown only this once.
#[derive(Debug)]
#[non_exhaustive]
pub struct Rotated {
    /// The successor's public id.
    pub id: KeyId,
    /// The successor's whole text.
    pub secret: Secret,
    /// The time at which the successor expires; `None` for never.
    pub expires_at: Option<Timestamp>,
    /// The scopes that the successor effectively reaches.
    pub reach: ScopeSet,
    /// The key that the successor replaces.
    pub predecessor: KeyId,
    /// The end of the old key. If that end counts from the successor's first use, this is the latest
    /// possible end.
    pub until: Timestamp,
    /// The place and time of the commit.
    pub receipt: Receipt,
}

/// The result of a leak report.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct LeakReport {
    /// The leaked key.
    pub key: KeyId,
    /// Whether the report revoked the key; publishable and legacy keys are only recorded.
    pub revoked: bool,
    /// The place and time of the commit.
    pub receipt: Receipt,
}

/// A page of keys, as people see them.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct KeyList {
    /// The keys, in order.
    pub keys: Vec<KeyInfo>,
    /// Keys whose stored bytes failed their checksum.
    pub corrupt: Vec<KeyId>,
    /// The start of the next page; `None` if this is the last one.
    pub next: Option<KeyPosition>,
}

impl Created {
    pub(super) fn from_committed(landed: Committed) -> Option<Self> {
        let Outcome::Issued {
            key: Some(key),
            provisioned,
        } = landed.outcome
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
        let (secret, receipt) = (token?, landed.receipt);
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

impl Imported {
    pub(super) fn from_committed(landed: Committed) -> Option<Self> {
        let Outcome::Issued {
            key: Some(key),
            provisioned,
        } = landed.outcome
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
            receipt: landed.receipt,
        })
    }
}

impl Rotated {
    pub(super) fn from_committed(landed: Committed) -> Option<Self> {
        let Outcome::Rotated {
            successor,
            predecessor,
            until,
        } = landed.outcome
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
        let (secret, receipt) = (token?, landed.receipt);
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
