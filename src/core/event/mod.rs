//! What happened to keys, owners and tenants, as a host tells others: a webhook, a mail.
//!
//! Pure. Each audit entry is one event; notices about the end of keys are the rest. An event holds
//! nothing that an audit entry must not hold: no secret, no digest.

mod cursor;
mod id;
mod notice;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::cursor::EventCursor;
pub(crate) use self::cursor::{Found, OtherHistory};
pub use self::id::EventId;
pub(crate) use self::notice::Due;
pub use self::notice::ExpiryWindows;
use super::audit::{Action, AuditEntry, FieldChange};
use super::id::KeyId;
use super::principal::Author;
use super::query::{AuditPosition, AuditRow};
use super::record::{ImportScheme, KeyRecord, Reason, RotationReason};
use super::tenant::TenantId;
use super::text::{ClassName, LeakSource, PepperId, PrincipalId, ResourceId, Role};
use super::time::{self, Timestamp};

/// One thing that happened.
///
/// Its JSON is stable: what stands in it stays as it is; more types and more fields may come. `tenant`,
/// `key` and `actor` are left out where there is none, `data` where a kind has no fields:
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
    /// Names the event, the same each time it is told: drop what was handled before.
    pub id: EventId,
    /// When it happened. For a notice, the instant at which it fell due; for an audit entry that
    /// cannot be read, when that was found.
    pub at: Timestamp,
    /// In which tenant; `None` if the entry cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantId>,
    /// To which key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
    /// Who did it; `None` for what time alone did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Author>,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "type", content = "data", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// The tenant became known.
    TenantProvisioned,
    /// The tenant was closed; its keys are refused from then on.
    TenantClosed,
    /// A resource's keys were created.
    ResourceProvisioned {
        /// The host's id of the resource.
        resource: ResourceId,
    },
    /// The key was created.
    KeyCreated {
        /// Its class.
        class: ClassName,
    },
    /// The key came with its tenant or resource.
    KeyProvisioned {
        /// Its class.
        class: ClassName,
    },
    /// The key was imported as a digest.
    KeyImported {
        /// Its class.
        class: ClassName,
        /// How the digest was made.
        scheme: ImportScheme,
    },
    /// Fields of the key changed.
    KeyUpdated {
        /// Which, and how. Long and free text is told by its length alone.
        changes: Vec<FieldChange>,
    },
    /// The key is refused until it is enabled again.
    KeyDisabled,
    /// The key works again.
    KeyEnabled,
    /// The key is refused for ever. A rotation that was finished tells so with
    /// [`Reason::Rotated`], a rotation that was called off with [`Reason::RotationCancelled`].
    KeyRevoked {
        /// Why.
        reason: Reason,
    },
    /// The key is gone for ever.
    KeyDeleted,
    /// The revoked or expired key was removed when the time to keep it was over.
    KeyPurged,
    /// A successor was created, which has an event of its own.
    KeyRotated {
        /// The successor.
        successor: KeyId,
        /// Why.
        reason: RotationReason,
        /// The end of the old key; the latest one, if it counts from the successor's first use.
        old_key_ends: Timestamp,
    },
    /// The rotation was called off, and the key works as before.
    RotationCancelled {
        /// The successor that was revoked.
        successor: KeyId,
    },
    /// The first use of a successor was noticed.
    SuccessorFirstUsed,
    /// The grace of an old key began with its successor's first use.
    GraceBegan {
        /// When the old key ends.
        old_key_ends: Timestamp,
    },
    /// The secret was replaced because the answer that held it was lost.
    SecretReplaced,
    /// The key was found in the open.
    KeyLeaked {
        /// Where.
        source: LeakSource,
        /// Whether that revoked it, which has an event of its own.
        revoked: bool,
    },
    /// The digest was renewed.
    KeyRedigested {
        /// Under which pepper.
        pepper: PepperId,
    },
    /// A principal owns keys here from now on.
    OwnerAdded {
        /// Who.
        owner: PrincipalId,
        /// With which role.
        role: Role,
    },
    /// A principal's role changed, and the reach of its keys with it.
    OwnerRoleChanged {
        /// Who.
        owner: PrincipalId,
        /// The role before; `None` if it was removed.
        before: Option<Role>,
        /// The role now.
        after: Role,
    },
    /// A principal was removed; its keys are refused from then on.
    OwnerRemoved {
        /// Who.
        owner: PrincipalId,
    },
    /// Keys that match a filter are revoked from here on, each with an event of its own.
    BulkRevocationBegan {
        /// Why.
        reason: Reason,
    },
    /// A command over many keys came to its end.
    BulkCommandEnded,
    /// Digests that a backup had forgotten can never be imported again.
    DigestsBlocked {
        /// The number of digests.
        count: u32,
    },
    /// The tenant's newest instant was set back, because a clock had been wrong.
    TimeRepaired {
        /// The newest instant before.
        from: Timestamp,
        /// The newest instant from then on.
        to: Timestamp,
    },
    /// The key ends soon, and no successor that is known to be in somebody's hands replaces it.
    KeyExpiringSoon {
        /// When.
        expires_at: Timestamp,
        /// The window that it came to stand in, in seconds; the narrowest of several.
        #[serde(with = "time::seconds")]
        within: Duration,
        /// Whom it is linked to; `None` if the tenant owns it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<PrincipalId>,
    },
    /// The key's time has passed.
    KeyExpired {
        /// When.
        expires_at: Timestamp,
        /// Whom it is linked to; `None` if the tenant owns it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<PrincipalId>,
        /// The key that replaces it, if it was rotated.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        successor: Option<KeyId>,
    },
    /// Something happened, and the audit entry that told what is damaged. If it gave a key an end
    /// that was near already, the notice of that may be missing: look at the keys themselves.
    Unreadable {
        /// The commit that wrote it.
        revision: u64,
        /// The entry's number in its tenant's trail, if that is not damaged too.
        sequence: u64,
    },
}

impl Event {
    /// The event that an audit entry tells of.
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
            kind: action.clone().into(),
        }
    }

    /// The event that something happened which an audit entry no longer tells.
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

    /// The notice that `record` ends at `expires_at`, or soon will.
    pub(crate) fn notice(record: &KeyRecord, expires_at: Timestamp, within: Duration) -> Self {
        let owner = record.owner.principal().cloned();
        let successor = record.succession.as_ref().map(|s| s.successor);
        Self {
            id: EventId::notice(record.id, expires_at, within),
            at: expires_at.saturating_sub(within),
            tenant: Some(record.tenant.clone()),
            key: Some(record.id),
            actor: None,
            kind: if within.is_zero() {
                EventKind::KeyExpired {
                    expires_at,
                    owner,
                    successor,
                }
            } else {
                EventKind::KeyExpiringSoon {
                    expires_at,
                    within,
                    owner,
                }
            },
        }
    }
}

impl From<Action> for EventKind {
    fn from(action: Action) -> Self {
        match action {
            Action::TenantProvisioned => Self::TenantProvisioned,
            Action::TenantClosed => Self::TenantClosed,
            Action::ResourceProvisioned { resource } => Self::ResourceProvisioned { resource },
            Action::KeyCreated { class } => Self::KeyCreated { class },
            Action::KeyProvisioned { class } => Self::KeyProvisioned { class },
            Action::KeyImported { class, scheme, .. } => Self::KeyImported { class, scheme },
            Action::KeyUpdated { changes } => Self::KeyUpdated { changes },
            Action::KeyDisabled => Self::KeyDisabled,
            Action::KeyEnabled => Self::KeyEnabled,
            Action::KeyRevoked { reason } => Self::KeyRevoked { reason },
            Action::KeyDeleted => Self::KeyDeleted,
            Action::KeyPurged => Self::KeyPurged,
            Action::KeyRotated {
                successor,
                reason,
                until,
            } => Self::KeyRotated {
                successor,
                reason,
                old_key_ends: until,
            },
            Action::RotationCancelled { successor } => Self::RotationCancelled { successor },
            Action::FirstUsed => Self::SuccessorFirstUsed,
            Action::GraceBegan { until } => Self::GraceBegan {
                old_key_ends: until,
            },
            Action::SecretReplaced => Self::SecretReplaced,
            Action::LeakReported { source, revoked } => Self::KeyLeaked { source, revoked },
            Action::KeyRedigested { pepper } => Self::KeyRedigested { pepper },
            Action::OwnerAdded { owner, role } => Self::OwnerAdded { owner, role },
            Action::OwnerRoleChanged {
                owner,
                before,
                after,
            } => Self::OwnerRoleChanged {
                owner,
                before,
                after,
            },
            Action::OwnerRemoved { owner } => Self::OwnerRemoved { owner },
            Action::BulkRevocationBegan { reason } => Self::BulkRevocationBegan { reason },
            Action::BulkCommandEnded => Self::BulkCommandEnded,
            Action::DigestsBlocked { marks } => Self::DigestsBlocked {
                count: u32::try_from(marks.len()).unwrap_or(u32::MAX),
            },
            Action::TimeRepaired { from, to } => Self::TimeRepaired { from, to },
        }
    }
}

/// The key to which an entry may have given another end, or the first one: a notice about it may
/// already be behind where the sweep stands.
pub(crate) fn may_set_end(entry: &AuditEntry) -> Option<KeyId> {
    let sets = match &entry.action {
        Action::KeyCreated { .. }
        | Action::KeyProvisioned { .. }
        | Action::KeyImported { .. }
        | Action::KeyRotated { .. }
        | Action::RotationCancelled { .. }
        | Action::GraceBegan { .. } => true,
        Action::KeyUpdated { changes } => changes
            .iter()
            .any(|change| change.field == FieldChange::EXPIRES),
        Action::TenantProvisioned
        | Action::TenantClosed
        | Action::ResourceProvisioned { .. }
        | Action::KeyDisabled
        | Action::KeyEnabled
        | Action::KeyRevoked { .. }
        | Action::KeyDeleted
        | Action::KeyPurged
        | Action::FirstUsed
        | Action::SecretReplaced
        | Action::LeakReported { .. }
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
