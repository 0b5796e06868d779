//! Events: changes to keys, owners and tenants, for a host to send as webhooks or mails.
//!
//! Pure. Every audit entry is one event. All other events are notices that a key expires. An event contains
//! no secret and no digest.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::id::EventId;
use crate::core::audit::{Action, AuditEntry, FieldChange};
use crate::core::id::KeyId;
use crate::core::principal::Author;
use crate::core::query::{AuditPosition, AuditRow};
use crate::core::record::KeyRecord;
use crate::core::tenant::TenantId;
use crate::core::text::{KeyName, PrincipalId};
use crate::core::time::{self, Timestamp};

/// A change, or a notice that a key expires.
///
/// The JSON of an event is stable: existing types and fields do not change, and new ones may be added. An
/// absent `tenant`, `key`, `key_name` or `actor` is omitted, and a kind without fields has no `data`:
///
/// ```json
/// {
///   "id": "expired-0322fqxDqbiHfljmI6V3mU-1767344400000000",
///   "at": "2026-01-02T09:00:00Z",
///   "tenant": "acme",
///   "key": "0322fqxDqbiHfljmI6V3mU",
///   "key_name": "nightly export",
///   "type": "key_expired",
///   "data": { "expires_at": "2026-01-02T09:00:00Z", "owner": "alice" }
/// }
/// ```
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Event {
    /// The id, which is the same each time the event is emitted. A receiver can drop events whose ids it has
    /// already handled.
    pub id: EventId,
    /// The instant of the change, or the instant at which the notice fell due. For a damaged audit entry, the
    /// instant of the read.
    pub at: Timestamp,
    /// The tenant. `None` if the audit entry is damaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantId>,
    /// The key that changed or expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
    /// The name of the key when the event was read, for people. It may be newer than the change. `None` if
    /// the key was deleted since, or its record is damaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_name: Option<KeyName>,
    /// The author of the change. `None` for a notice or a damaged entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Author>,
    /// The kind, which is `type` and `data` in JSON.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// The kind of an event. The JSON of a kind has a `type`, and `data` if the kind has fields.
///
/// An event from an intact audit entry is a [`Change`](Self::Change). Every other kind has its own variant.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "type", content = "data", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// The key expires soon, and no successor has replaced the key. As long as a successor still waits for
    /// its first use, it has not replaced the key.
    #[serde(rename = "key_expiring_soon")]
    ExpiringSoon {
        /// The instant at which the key expires.
        expires_at: Timestamp,
        /// The narrowest window that the key has entered, in seconds.
        #[serde(with = "time::seconds")]
        within: Duration,
        /// The principal that owns the key. `None` if the tenant owns the key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<PrincipalId>,
    },
    /// The key expired.
    #[serde(rename = "key_expired")]
    Expired {
        /// The instant at which the key expired.
        expires_at: Timestamp,
        /// The principal that owns the key. `None` if the tenant owns the key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<PrincipalId>,
        /// The successor that replaces the key, if the key was rotated.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        successor: Option<KeyId>,
    },
    /// The audit entry of a change is damaged. If the change moved a key's expiry into a window, the notice
    /// may be missing: list the keys to find such a key.
    Unreadable {
        /// The commit that wrote the entry.
        revision: u64,
        /// The entry's number in its tenant's trail. This number may be damaged too.
        sequence: u64,
    },
    /// A change that the audit trail records. In JSON, the action provides `type` and `data`.
    #[serde(untagged)]
    Change(Action),
}

impl Event {
    /// Returns the event of an audit entry, without the name of its key.
    #[must_use]
    pub fn of(row: &AuditRow) -> Self {
        let id = EventId::entry(row);
        let AuditEntry {
            tenant,
            sequence: _,
            at,
            actor,
            role: _,
            command: _,
            command_mark: _,
            action,
            evidence: _,
            key,
            pepper: _,
            previous: _,
            hash: _,
        } = &row.entry;
        Self {
            id,
            at: *at,
            tenant: Some(tenant.clone()),
            key: *key,
            key_name: None,
            actor: Some(actor.clone()),
            kind: EventKind::Change(action.clone()),
        }
    }

    /// Returns the event of a damaged audit entry.
    #[must_use]
    pub fn unreadable(position: AuditPosition, found: Timestamp) -> Self {
        Self {
            id: EventId::unreadable(position),
            at: found,
            tenant: None,
            key: None,
            key_name: None,
            actor: None,
            kind: EventKind::Unreadable {
                revision: position.revision.0,
                sequence: position.sequence,
            },
        }
    }

    /// Returns the notice of a key's expiry at `expires_at`. The notice falls due `within` before the expiry.
    /// If `within` is zero, it is the notice of the expiry itself.
    pub(super) fn notice(record: &KeyRecord, expires_at: Timestamp, within: Duration) -> Self {
        let owner = record.owner.principal().cloned();
        let successor = record.succession.as_ref().map(|s| s.successor);
        Self {
            id: EventId::notice(record.id, expires_at, within),
            at: expires_at.saturating_sub(within),
            tenant: Some(record.tenant.clone()),
            key: Some(record.id),
            key_name: Some(record.name.clone()),
            actor: None,
            kind: if within.is_zero() {
                EventKind::Expired {
                    expires_at,
                    owner,
                    successor,
                }
            } else {
                EventKind::ExpiringSoon {
                    expires_at,
                    within,
                    owner,
                }
            },
        }
    }
}

/// Returns the key of an entry that may have changed the key's expiry. The notice of the new expiry may
/// already be due, and may lie before the reader's position among the notices.
pub(super) fn may_set_end(entry: &AuditEntry) -> Option<KeyId> {
    let sets = match &entry.action {
        Action::KeyCreated { .. }
        | Action::KeyProvisioned { .. }
        | Action::KeyImported { .. }
        | Action::KeyRotated { .. }
        | Action::RotationCancelled { .. }
        | Action::GraceBegan { .. } => true,
        Action::KeyUpdated { changes } => changes
            .iter()
            .any(|change| matches!(change, FieldChange::ExpiresAt { .. })),
        Action::TenantProvisioned
        | Action::TenantClosed
        | Action::ResourceProvisioned { .. }
        | Action::KeyDisabled
        | Action::KeyEnabled
        | Action::KeyRevoked { .. }
        | Action::KeyDeleted
        | Action::KeyPurged
        | Action::SuccessorFirstUsed
        | Action::SecretReplaced
        | Action::KeyLeaked { .. }
        | Action::KeyRedigested { .. }
        | Action::OwnerAdded { .. }
        | Action::OwnerRoleChanged { .. }
        | Action::OwnerRemoved { .. }
        | Action::BulkRevocationBegan { .. }
        | Action::BulkCommandEnded
        | Action::DigestsBlocked { .. }
        | Action::TimeRepaired { .. }
        | Action::TrailPruned { .. }
        | Action::EntriesLost { .. } => false,
    };
    entry.key.filter(|_| sets)
}
