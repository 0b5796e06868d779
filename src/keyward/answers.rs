//! What the facade answers.

use crate::core::command::{IssuedKey, Outcome};
use crate::core::id::KeyId;
use crate::core::info::KeyInfo;
use crate::core::query::KeyPosition;
use crate::core::scope::ScopeSet;
use crate::core::secret::{Fingerprint, Secret};
use crate::core::text::{ClassName, Hint};
use crate::core::time::Timestamp;
use crate::manager::{Landed, Receipt};

/// A key that was created, with its secret: the only time it is shown.
#[derive(Debug)]
#[non_exhaustive]
pub struct Created {
    /// Its public id.
    pub id: KeyId,
    /// Its whole text. Hand it to the key's owner; it cannot be had again.
    pub secret: Secret,
    /// Its kind.
    pub class: ClassName,
    /// What a person sees of it later.
    pub hint: Hint,
    /// The mark that finds it.
    pub fingerprint: Fingerprint,
    /// When it ends; `None` for never.
    pub expires_at: Option<Timestamp>,
    /// The scopes that it effectively reaches: less than its own where a role, its bound or its class allows
    /// less.
    pub reach: ScopeSet,
    /// Keys that came with the tenant, because this was its first command.
    pub provisioned: Vec<IssuedKey>,
    /// Where and when it landed.
    pub receipt: Receipt,
}

/// A tenant whose time was repaired.
#[derive(Debug)]
#[non_exhaustive]
pub struct TimeRepaired {
    /// The tenant's newest instant before and after; `None` if it was not in the future.
    pub set_back: Option<(Timestamp, Timestamp)>,
    /// The place and time of the commit.
    pub receipt: Receipt,
}

impl TimeRepaired {
    pub(super) fn from_landed(landed: Landed) -> Self {
        let Landed { outcome, receipt } = landed;
        let set_back = match outcome {
            Outcome::TimeRepaired { from, to } => Some((from, to)),
            _ => None,
        };
        Self { set_back, receipt }
    }
}

/// A key that was taken over as a digest.
#[derive(Debug)]
#[non_exhaustive]
pub struct Imported {
    /// Its public id here.
    pub id: KeyId,
    /// The mark that finds it.
    pub fingerprint: Fingerprint,
    /// The scopes that it effectively reaches.
    pub reach: ScopeSet,
    /// Keys that came with the tenant, because this was its first command.
    pub provisioned: Vec<IssuedKey>,
    /// Where and when it landed.
    pub receipt: Receipt,
}

/// A successor that was created, with its secret: the only time it is shown.
#[derive(Debug)]
#[non_exhaustive]
pub struct Rotated {
    /// The successor's public id.
    pub id: KeyId,
    /// The successor's whole text.
    pub secret: Secret,
    /// When the successor ends; `None` for never.
    pub expires_at: Option<Timestamp>,
    /// The scopes that the successor effectively reaches.
    pub reach: ScopeSet,
    /// The key that it replaces.
    pub predecessor: KeyId,
    /// The end of the old key; the latest one, if it counts from the successor's first use.
    pub until: Timestamp,
    /// Where and when it landed.
    pub receipt: Receipt,
}

/// What came of a leak report.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct LeakReport {
    /// Which key was found.
    pub key: KeyId,
    /// Whether that revoked it; publishable and legacy keys are only recorded.
    pub revoked: bool,
    /// Where and when it landed.
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
    /// Where the next page goes on; `None` if this is the last one.
    pub next: Option<KeyPosition>,
}

impl Created {
    pub(super) fn from_landed(landed: Landed) -> Option<Self> {
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
    pub(super) fn from_landed(landed: Landed) -> Option<Self> {
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
    pub(super) fn from_landed(landed: Landed) -> Option<Self> {
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
