//! Events: changes of keys, owners and tenants, in the form that a host sends on as a webhook or a mail.
//!
//! Pure. Each audit entry is one event, and notices of the ends of keys are the others. An event holds no
//! secret and no digest.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::id::EventId;
use crate::core::audit::{Action, AuditEntry, FieldChange};
use crate::core::id::KeyId;
use crate::core::principal::Author;
use crate::core::query::{AuditPosition, AuditRow};
use crate::core::record::KeyRecord;
use crate::core::tenant::TenantId;
use crate::core::text::PrincipalId;
use crate::core::time::{self, Timestamp};

/// A change, or a notice that a key ends.
///
/// The JSON of an event is stable: existing types and fields do not change, and new ones may be added. An
/// absent `tenant`, `key` or `actor` is left out, and so is the `data` of a kind without fields:
///
/// ```json
/// {
///   "id": "expired-0322fqxDqbiHfljmI6V3mU-1767344400000000",
///   "at": "2026-01-02T09:00:00Z",
///   "tenant": "acme",
///   "key": "0322fqxDqbiHfljmI6V3mU",
///   "type": "key_expired",
///   "data": { "expires_at": "2026-01-02T09:00:00Z", "owner": "alice" }
/// }
/// ```
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Event {
    /// The id, the same each time the event is emitted. A receiver drops ids that it has handled.
    pub id: EventId,
    /// The instant of the change. For a notice, the instant at which it fell due; for a damaged audit entry,
    /// the instant of the read.
    pub at: Timestamp,
    /// The tenant; `None` if the entry is damaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantId>,
    /// The key that changed or ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
    /// The author of the change; `None` for a notice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Author>,
    /// The kind, which is `type` and `data` in JSON.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// The kind of an event. The JSON of a kind has a `type`, and `data` if the kind has fields.
///
/// A kind that no audit entry records, such as a notice, has a variant of its own.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "type", content = "data", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// The key ends soon, and nobody is known to hold a successor that replaces the key.
    #[serde(rename = "key_expiring_soon")]
    ExpiringSoon {
        /// The instant at which the key ends.
        expires_at: Timestamp,
        /// The window that the key entered, in seconds. If the key entered several windows, the narrowest
        /// one.
        #[serde(with = "time::seconds")]
        within: Duration,
        /// The principal that owns the key; `None` if the tenant owns it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<PrincipalId>,
    },
    /// The key expired.
    #[serde(rename = "key_expired")]
    Expired {
        /// The instant at which the key ended.
        expires_at: Timestamp,
        /// The principal that owns the key; `None` if the tenant owns it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<PrincipalId>,
        /// The successor that replaces the key, if the key was rotated.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        successor: Option<KeyId>,
    },
    /// The audit entry of a change is damaged. If the change moved a key's end into a window, the notice of
    /// that end may be missing: look at the keys themselves.
    Unreadable {
        /// The commit that wrote the entry.
        revision: u64,
        /// The entry's number in its tenant's trail, if the number is not damaged too.
        sequence: u64,
    },
    /// A change that the audit trail records. The action is the event's `type` and `data`.
    #[serde(untagged)]
    Change(Action),
}

impl Event {
    /// Returns the event of an audit entry.
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
            actor: None,
            kind: EventKind::Unreadable {
                revision: position.revision.0,
                sequence: position.sequence,
            },
        }
    }

    /// Returns the notice that `record` ends at `expires_at`, or `within` before that.
    pub(super) fn notice(record: &KeyRecord, expires_at: Timestamp, within: Duration) -> Self {
        let owner = record.owner.principal().cloned();
        let successor = record.succession.as_ref().map(|s| s.successor);
        Self {
            id: EventId::notice(record.id, expires_at, within),
            at: expires_at.saturating_sub(within),
            tenant: Some(record.tenant.clone()),
            key: Some(record.id),
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

/// Returns the key whose end an entry may have set. The sweep may have passed the notice of the new end.
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
        | Action::TimeRepaired { .. } => false,
    };
    entry.key.filter(|_| sets)
}
