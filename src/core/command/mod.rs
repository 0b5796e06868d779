//! Commands: changes to a tenant's keys, as data, and the reasons to refuse a command.
//!
//! Pure: no I/O and no clock.

mod denied;
mod draft;

use std::time::Duration;

use serde::Serialize;

pub use self::denied::Denial;
pub use self::draft::{CreateKey, DeleteKey, ImportKey, RevokeKey, RotateKey, UpdateKey};
pub(crate) use self::draft::{NewOwner, Recipient};
use super::actor::Actor;
use super::audit::AuditHead;
use super::id::KeyId;
use super::principal::Author;
use super::record::{Reason, Resource};
use super::scope::ScopeSet;
use super::secret::{Digest, DigestMark, Fingerprint, Secret};
use super::sweep::{BulkFilter, Sweep};
use super::tenant::TenantId;
use super::text::{ClassName, CommandId, Hint, LeakSource, PepperId, PrincipalId, Role};
use super::time::Timestamp;

/// A command with its id, its actor and its tenant.
#[derive(Clone, Debug)]
pub struct Request {
    /// The idempotency key, chosen by the caller or random. A retry of a committed command with the same id
    /// changes nothing.
    pub id: CommandId,
    /// The actor.
    pub actor: Actor,
    /// The tenant of the keys.
    pub tenant: TenantId,
    /// The command.
    pub command: Command,
    /// The keys of a bulk command that this commit processes. Empty for the first commit, which only begins
    /// the command.
    pub(crate) sweep: Sweep,
    /// The author and the start of a bulk command that this request continues, in maintenance or in a
    /// descendant tenant. The request is not authorised again, because the command was authorised at its
    /// start and now only narrows keys. `None` for any other request.
    pub(crate) continues: Option<(Author, Timestamp)>,
}

impl Request {
    /// Creates the first request of a command.
    #[must_use]
    pub const fn new(id: CommandId, actor: Actor, tenant: TenantId, command: Command) -> Self {
        Self {
            id,
            actor,
            tenant,
            command,
            sweep: Sweep {
                keys: Vec::new(),
                last: false,
            },
            continues: None,
        }
    }

    /// Sets the keys that a bulk command processes in this commit. The command skips keys to which it does
    /// not apply.
    #[must_use]
    pub fn with_sweep(mut self, keys: Vec<KeyId>) -> Self {
        self.sweep = keys.into();
        self
    }

    /// Returns the author to record in the audit trail. For the continuation of a bulk command, this is the
    /// author who began the command.
    pub(crate) fn author(&self) -> Author {
        let began = self.continues.as_ref().map(|(author, _)| author.clone());
        began.unwrap_or_else(|| self.actor.author())
    }
}

/// A change to a tenant's keys.
///
/// Add new variants at the end: [`AuditEntry::command_mark`](crate::audit::AuditEntry::command_mark) depends
/// on the order of the variants.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub enum Command {
    /// Register the tenant and create the keys that its policy provisions. Does nothing if the tenant is
    /// already registered.
    ProvisionTenant,
    /// Create the keys that the policy provisions with this resource.
    ProvisionResource(Resource),
    /// Close the tenant and end all its keys permanently. Does nothing if the tenant is already closed.
    CloseTenant,
    /// Create a key. Made by [`CreateKey::into_command`].
    #[non_exhaustive]
    Create(CreateKey),
    /// Import a key that exists elsewhere, as a digest. Made by [`ImportKey::into_command`].
    #[non_exhaustive]
    Import(ImportKey),
    /// Change a key's name, scopes, expiry or other settings. Made by [`UpdateKey::into_command`].
    #[non_exhaustive]
    Update {
        /// The key.
        key: KeyId,
        /// The changes.
        change: UpdateKey,
    },
    /// Refuse a key until it is enabled again. Does nothing if the key is already disabled.
    Disable {
        /// The key.
        key: KeyId,
    },
    /// Let a disabled key work again. Does nothing if the key is already enabled.
    Enable {
        /// The key.
        key: KeyId,
    },
    /// Refuse a key permanently. Does nothing if the key is already revoked.
    Revoke {
        /// The key.
        key: KeyId,
        /// The reason, and whether a person confirmed the revocation.
        revocation: RevokeKey,
    },
    /// Remove a key permanently.
    Delete {
        /// The key.
        key: KeyId,
        /// The confirmation that the class may require.
        deletion: DeleteKey,
    },
    /// Replace a key by a successor. The successor of an imported key is a native key.
    Rotate {
        /// The key.
        key: KeyId,
        /// The mode and the reason.
        how: RotateKey,
    },
    /// End the old key of a rotation immediately.
    FinishRotation {
        /// The old key.
        key: KeyId,
    },
    /// Cancel a rotation: revoke the unused successor and let the old key work as before.
    CancelRotation {
        /// The old key.
        key: KeyId,
    },
    /// Record the first use of a successor. If the old key waits for this use, its grace period begins.
    NoteFirstUse {
        /// The successor.
        key: KeyId,
    },
    /// Give a key a new secret because the response with the first secret was lost. Only the key's creator
    /// and the application may do so, within an hour of the creation.
    ReplaceLost {
        /// The key.
        key: KeyId,
    },
    /// Record that a key was found in a public place. Revokes a secret key immediately, unless it is the
    /// legacy key.
    ReportLeak {
        /// The key.
        key: KeyId,
        /// The place where the key was found.
        source: LeakSource,
    },
    /// Replace the digest of a live key by a digest under the current pepper.
    Redigest {
        /// The key.
        key: KeyId,
        /// The pepper of the stored digest.
        from: PepperId,
        /// The pepper of the new digest, which must be the current pepper.
        to: PepperId,
        /// The stored digest.
        #[serde(skip)]
        replaces: Digest,
        /// The digest that replaces the stored digest.
        #[serde(skip)]
        digest: Digest,
    },
    /// Revoke all keys that match a filter.
    RevokeMany {
        /// The filter that selects the keys.
        filter: BulkFilter,
        /// The reason.
        reason: Reason,
    },
    /// Remove revoked and expired keys at the end of their retention.
    Purge,
    /// Set the stored role of a principal who owns keys. Restores a removed principal, but not the
    /// principal's keys.
    ChangeOwnerRole {
        /// The principal.
        owner: PrincipalId,
        /// The new role.
        role: Role,
    },
    /// Refuse all keys of a principal immediately, and revoke them.
    RemoveOwner {
        /// The principal.
        owner: PrincipalId,
    },
    /// Disable keys in bulk after a restore. Includes the legacy key, whose secret in the backup may be
    /// outdated. Only the application may give this command.
    DisableMany,
    /// Set the stored role of an owner to the application's role for that owner. Does nothing for an owner
    /// without a stored role. Only the application may give this command.
    SyncOwnerRole {
        /// The principal.
        owner: PrincipalId,
        /// The role.
        role: Role,
    },
    /// Prevent the digests with these marks from ever being imported again. Only the application may give
    /// this command, after a backup was restored.
    BlockDigests {
        /// The marks of the digests, each with the id of the key that had the digest.
        marks: Vec<(DigestMark, KeyId)>,
    },
    /// Set the tenant's newest commit time back to the current time, if a wrong clock had dated a commit in
    /// the future. Only the application may give this command.
    RepairTime,
    /// Remove the oldest entries of the tenant's audit trail. Only the application may give this command,
    /// after it verified the trail.
    PruneAudit {
        /// The newest entry to remove.
        through: AuditHead,
        /// The epoch of the store whose trail was verified.
        epoch: u128,
    },
    /// Record that entries of the tenant's audit trail are lost. Only the application may give this command, during a
    /// recovery.
    RecordLoss {
        /// The newest entry before the gap.
        after: AuditHead,
        /// The newest lost entry.
        through: AuditHead,
        /// The epoch of the store whose trail was verified.
        epoch: u128,
    },
}

impl Command {
    /// Returns whether the command is allowed while clocks disagree about the time. Such a command never
    /// creates or prolongs a key, and never removes a key early. Updates and role changes that widen keys
    /// check the time separately.
    pub(crate) const fn is_safe_at_wrong_time(&self) -> bool {
        match self {
            Self::CloseTenant
            | Self::Update { .. }
            | Self::Disable { .. }
            | Self::Revoke { .. }
            | Self::Delete { .. }
            | Self::FinishRotation { .. }
            | Self::NoteFirstUse { .. }
            | Self::ReportLeak { .. }
            | Self::RevokeMany { .. }
            | Self::ChangeOwnerRole { .. }
            | Self::SyncOwnerRole { .. }
            | Self::RemoveOwner { .. }
            | Self::DisableMany
            | Self::BlockDigests { .. }
            | Self::RepairTime
            | Self::PruneAudit { .. }
            | Self::RecordLoss { .. } => true,
            Self::ProvisionTenant
            | Self::ProvisionResource(_)
            | Self::Create(_)
            | Self::Import(_)
            | Self::Enable { .. }
            | Self::Rotate { .. }
            | Self::CancelRotation { .. }
            | Self::ReplaceLost { .. }
            | Self::Redigest { .. }
            | Self::Purge => false,
        }
    }

    /// Returns whether the command applies to many keys and may need several commits.
    #[must_use]
    pub const fn is_bulk(&self) -> bool {
        matches!(
            self,
            Self::CloseTenant
                | Self::RemoveOwner { .. }
                | Self::RevokeMany { .. }
                | Self::DisableMany
                | Self::Purge
        )
    }

    /// Returns the single existing key that the command applies to, if there is one.
    #[must_use]
    pub const fn key(&self) -> Option<KeyId> {
        match self {
            Self::Update { key, .. }
            | Self::Disable { key }
            | Self::Enable { key }
            | Self::Revoke { key, .. }
            | Self::Delete { key, .. }
            | Self::Rotate { key, .. }
            | Self::FinishRotation { key }
            | Self::CancelRotation { key }
            | Self::NoteFirstUse { key }
            | Self::ReplaceLost { key }
            | Self::ReportLeak { key, .. }
            | Self::Redigest { key, .. } => Some(*key),
            Self::ProvisionTenant
            | Self::ProvisionResource(_)
            | Self::CloseTenant
            | Self::Create(_)
            | Self::Import(_)
            | Self::RevokeMany { .. }
            | Self::DisableMany
            | Self::Purge
            | Self::ChangeOwnerRole { .. }
            | Self::RemoveOwner { .. }
            | Self::SyncOwnerRole { .. }
            | Self::BlockDigests { .. }
            | Self::RepairTime
            | Self::PruneAudit { .. }
            | Self::RecordLoss { .. } => None,
        }
    }
}

/// The requested expiry of a key.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub enum Expiry {
    /// The default lifetime of the key's class.
    #[default]
    Class,
    /// The key never expires. Refused if the class has a maximum lifetime.
    Never,
    /// The key expires at this instant.
    At(Timestamp),
    /// The key expires this long after the command is decided.
    In(Duration),
}

/// The time at which a rotation ends the old key.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub enum RotationMode {
    /// The old key works for the grace period of its class.
    #[default]
    Class,
    /// The old key ends immediately.
    Immediate,
    /// The old key works for this grace period.
    Grace(Duration),
    /// The old key works until the successor is first used, and for this grace period after that. A client
    /// that never received the successor keeps access. [`RotateKey::no_later_than`] sets the old key's latest
    /// end.
    OnFirstUse(Duration),
}

/// The result of a command.
#[derive(Debug)]
#[non_exhaustive]
pub enum CommandOutcome {
    /// Keys were created. Each [`IssuedKey`] contains its token, if the token can be shown.
    Issued {
        /// The key that the command creates. `None` for [`Command::ProvisionTenant`] and
        /// [`Command::ProvisionResource`].
        key: Option<IssuedKey>,
        /// The keys that the policy provisions with the tenant or the resource.
        provisioned: Vec<IssuedKey>,
    },
    /// A successor was created.
    Rotated {
        /// The successor.
        successor: IssuedKey,
        /// The key that the successor replaces.
        predecessor: KeyId,
        /// The instant at which the old key ends. If the old key waits for the successor's first use, this is
        /// the latest possible instant.
        until: Timestamp,
    },
    /// The command succeeded, whether or not it changed anything.
    Done,
    /// The tenant's newest commit time was set back.
    TimeRepaired {
        /// The newest commit time before the repair.
        from: Timestamp,
        /// The newest commit time after the repair.
        to: Timestamp,
    },
    /// A leak is on record, from this report or from an earlier one.
    LeakNoted {
        /// True if this report revokes the key. False for publishable and legacy keys, and for a key that was
        /// already revoked.
        revoked: bool,
    },
    /// A commit of a bulk command ended or disabled keys.
    Swept {
        /// The number of keys that this commit ended or disabled.
        ended: usize,
        /// Legacy keys that matched the filter. They were not revoked, because a legacy key can only be
        /// rotated.
        skipped: Vec<KeyId>,
    },
}

/// A key that was just created.
#[derive(Debug)]
pub struct IssuedKey {
    /// The public id.
    pub id: KeyId,
    /// The class.
    pub class: ClassName,
    /// The part of the token that is kept, so that a list of keys can show it.
    pub hint: Hint,
    /// The fingerprint by which the key can be found.
    pub fingerprint: Fingerprint,
    /// The expiry. `None` for never.
    pub expires_at: Option<Timestamp>,
    /// The scopes that the key can use at its creation, after its class and all roles have limited the
    /// requested scopes.
    pub reach: ScopeSet,
    /// The whole token. Only a publishable key's token can be shown again later. `None` for an imported key,
    /// because the service never receives its token.
    pub token: Option<Secret>,
}
