//! Commands: every change to a tenant's keys, as data, and the reasons to refuse one.
//!
//! Pure.

mod denied;
mod draft;

use std::time::Duration;

use serde::Serialize;

pub use self::denied::Denial;
pub use self::draft::{CreateKey, DeleteKey, ImportKey, RevokeKey, RotateKey, UpdateKey};
pub(crate) use self::draft::{NewOwner, Recipient};
use super::actor::Actor;
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
    /// The idempotency key: the caller's own, or random. A command that was committed under this id changes
    /// nothing when it is decided again.
    pub id: CommandId,
    /// The actor.
    pub actor: Actor,
    /// The tenant of the keys.
    pub tenant: TenantId,
    /// The command.
    pub command: Command,
    /// The keys of a command over many keys that this commit handles. Empty for the first commit.
    pub(crate) sweep: Sweep,
    /// The caller that began the command, and the instant at which it began. Set if maintenance or a later
    /// commit continues the command. The command was authorised at that instant, and its remaining part only
    /// narrows.
    pub(crate) continues: Option<(Author, Timestamp)>,
}

impl Request {
    /// Returns the first request of a command.
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

    /// Sets the keys that a command over many keys looks at in this commit. The command skips keys to which
    /// it does not apply.
    #[must_use]
    pub fn with_sweep(mut self, keys: Vec<KeyId>) -> Self {
        self.sweep = keys.into();
        self
    }

    /// Returns the author that the audit trail names.
    pub(crate) fn author(&self) -> Author {
        let began = self.continues.as_ref().map(|(author, _)| author.clone());
        began.unwrap_or_else(|| self.actor.author())
    }
}

/// A change to a tenant's keys.
///
/// New variants are added at the end: the mark that reveals a reused command id depends on their order.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub enum Command {
    /// Register the tenant and create the keys that its policy provisions. Does nothing if the tenant is
    /// registered.
    ProvisionTenant,
    /// Create the keys that the policy provisions with this resource.
    ProvisionResource(Resource),
    /// End every key of the tenant permanently. Does nothing if the tenant is closed.
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
    /// Refuse a key until it is enabled again. Does nothing if the key is disabled.
    Disable {
        /// The key.
        key: KeyId,
    },
    /// Let a disabled key work again. Does nothing if the key is enabled.
    Enable {
        /// The key.
        key: KeyId,
    },
    /// Refuse a key permanently. Does nothing if the key is revoked.
    Revoke {
        /// The key.
        key: KeyId,
        /// The reason and its confirmation.
        revocation: RevokeKey,
    },
    /// Remove a key permanently.
    Delete {
        /// The key.
        key: KeyId,
        /// The answers to the questions that the class may ask.
        deletion: DeleteKey,
    },
    /// Replace a key by a successor.
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
    /// Record the first use of a successor. The grace of the old key begins with this use.
    NoteFirstUse {
        /// The successor.
        key: KeyId,
    },
    /// Give a key a new secret because the response with the first one was lost. Allowed for an hour after
    /// creation, to the key's creator and to the application.
    ReplaceLost {
        /// The key.
        key: KeyId,
    },
    /// Record that a key was found in the open. A secret key is revoked immediately.
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
        /// The new digest.
        #[serde(skip)]
        digest: Digest,
    },
    /// Revoke all keys that match.
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
    /// Refuse keys until they are enabled again, including the legacy key: the legacy key's secret in a
    /// restored backup may have been replaced since. Only the application gives this command.
    DisableMany,
    /// Set the stored role of an owner to the application's role for that owner. Does nothing for an owner
    /// without a stored role. Only the application gives this command.
    SyncOwnerRole {
        /// The principal.
        owner: PrincipalId,
        /// The role.
        role: Role,
    },
    /// Prevent the digests with these marks from ever being imported again. Only the application gives this
    /// command, after a backup was restored.
    BlockDigests {
        /// The marks, each with the former key of its digest.
        marks: Vec<(DigestMark, KeyId)>,
    },
    /// Set the tenant's newest instant back to the current time, if a wrong clock left it in the future. Only
    /// the application gives this command.
    RepairTime,
}

impl Command {
    /// Returns whether the command may be decided while the time is in doubt. Such a command creates or
    /// prolongs no key, and removes no key early. The widening part of an update is checked separately.
    pub(crate) const fn bears_wrong_time(&self) -> bool {
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
            | Self::RepairTime => true,
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

    /// The existing key that the command applies to, if there is a single one.
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
            | Self::RepairTime => None,
        }
    }
}

/// The end of a new key's life.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub enum Expiry {
    /// The default of the key's class.
    #[default]
    Class,
    /// No end, if the class has no maximum (rule Y-17).
    Never,
    /// At this instant.
    At(Timestamp),
    /// This long after the command is decided.
    In(Duration),
}

/// The fate of the old key in a rotation.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub enum RotationMode {
    /// The old key works for the grace of its class.
    #[default]
    Class,
    /// The old key ends immediately.
    Immediate,
    /// The old key works for this long.
    Grace(Duration),
    /// The old key works until the successor is first used, and for this long after that. A client that never
    /// received the successor keeps its access. [`RotateKey::no_later_than`] sets its latest end.
    OnFirstUse(Duration),
}

/// The result of a command.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// Keys were created. Each holds its token if the token can be shown.
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
        /// The end of the old key, or its latest end if it counts from the successor's first use.
        until: Timestamp,
    },
    /// The command succeeded, whether or not it changed anything.
    Done,
    /// The tenant's newest instant was set back.
    TimeRepaired {
        /// The newest instant before the repair.
        from: Timestamp,
        /// The newest instant after the repair.
        to: Timestamp,
    },
    /// A leak was recorded.
    LeakNoted {
        /// Whether the report revoked the key.
        revoked: bool,
    },
    /// Keys were ended or disabled in bulk.
    Swept {
        /// The number of keys that this commit ended or disabled.
        ended: usize,
        /// Legacy keys that matched and were left alone.
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
    /// The part of the token that people see later.
    pub hint: Hint,
    /// The fingerprint by which the key can be found.
    pub fingerprint: Fingerprint,
    /// The end. `None` for never.
    pub expires_at: Option<Timestamp>,
    /// The scopes that the key effectively reaches now.
    pub reach: ScopeSet,
    /// The whole token. It is shown now, and again only if the key is publishable. `None` for an imported
    /// key, whose holder has the token.
    pub token: Option<Secret>,
}
