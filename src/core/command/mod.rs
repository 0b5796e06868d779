//! Commands: everything that can be asked of a tenant's keys, as data, with its refusals.
//!
//! Pure.

mod denied;
mod draft;

use std::time::Duration;

use serde::Serialize;

pub use self::denied::Denied;
pub use self::draft::{DeleteKey, ImportKey, KeyUpdate, NewKey, Replacement, RevokeKey};
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

/// One command with everything that a decision needs to know about who asks.
#[derive(Clone, Debug)]
pub struct Request {
    /// Names the command: the caller's idempotency key, or random. Deciding again a command that
    /// landed changes nothing.
    pub id: CommandId,
    /// Who asks.
    pub actor: Actor,
    /// The tenant whose keys it is about.
    pub tenant: TenantId,
    /// What is asked.
    pub command: Command,
    /// The part of a command over many keys that this commit does. Empty for the first commit.
    pub(crate) sweep: Sweep,
    /// The caller that began the command, where maintenance or a later commit goes on: it was authorised
    /// then, and what is left only narrows.
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

    /// Sets the keys that a command over many keys looks at in this commit. Keys that it does not apply to
    /// are passed over.
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

/// What can be asked. Variants are only added at the end: the mark by which a reused command id is
/// noticed counts them.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub enum Command {
    /// Make the tenant known, with the keys that its policy says come with it. Does nothing if it
    /// is known.
    ProvisionTenant,
    /// Make the keys that the policy says come with this resource.
    ProvisionResource(Resource),
    /// End every key of the tenant, for ever. Does nothing if it is closed.
    CloseTenant,
    /// Create a key. Made by [`NewKey::into_command`].
    #[non_exhaustive]
    Create(NewKey),
    /// Import a key that exists elsewhere, as a digest. Made by [`ImportKey::into_command`].
    #[non_exhaustive]
    Import(ImportKey),
    /// Change a key's name, scopes, expiry or other settings. Made by [`KeyUpdate::into_command`].
    #[non_exhaustive]
    Update {
        /// The key.
        key: KeyId,
        /// The changes.
        change: KeyUpdate,
    },
    /// Refuse a key until it is enabled again. Does nothing if it is disabled.
    Disable {
        /// Which key.
        key: KeyId,
    },
    /// Let a disabled key work again. Does nothing if it is enabled.
    Enable {
        /// Which key.
        key: KeyId,
    },
    /// Refuse a key for ever. Does nothing if it is revoked.
    Revoke {
        /// Which key.
        key: KeyId,
        /// Why, and whether that was confirmed.
        revocation: RevokeKey,
    },
    /// Remove a key for ever.
    Delete {
        /// Which key.
        key: KeyId,
        /// What the class may ask for.
        deletion: DeleteKey,
    },
    /// Replace a key by a successor.
    Rotate {
        /// Which key.
        key: KeyId,
        /// How.
        how: Replacement,
    },
    /// End the old key of a rotation now.
    FinishRotation {
        /// The old key.
        key: KeyId,
    },
    /// Call a rotation off: revoke the unused successor, and let the old key work as before.
    CancelRotation {
        /// The old key.
        key: KeyId,
    },
    /// Note that a successor was used for the first time, from when the old key's grace counts.
    NoteFirstUse {
        /// The successor.
        key: KeyId,
    },
    /// Give a key a new secret because the answer that held the first one was lost. Open for an
    /// hour after creation, to whoever created it.
    ReplaceLost {
        /// Which key.
        key: KeyId,
    },
    /// Note that a key was found in the open: a secret key is revoked at once.
    ReportLeak {
        /// Which key.
        key: KeyId,
        /// Where it was found.
        source: LeakSource,
    },
    /// Store the digest of a live key under the current pepper.
    Redigest {
        /// Which key.
        key: KeyId,
        /// The pepper under which the digest stands now.
        from: PepperId,
        /// The pepper of the new digest; it must be the current one.
        to: PepperId,
        /// The digest that stands now.
        #[serde(skip)]
        replaces: Digest,
        /// The new digest.
        #[serde(skip)]
        digest: Digest,
    },
    /// Revoke all keys that match.
    RevokeMany {
        /// Which keys.
        filter: BulkFilter,
        /// Why.
        reason: Reason,
    },
    /// Remove revoked and expired keys whose time to be kept is over.
    Purge,
    /// Set the role of a principal who owns keys. Brings back a removed one, but not its keys.
    ChangeOwnerRole {
        /// Whose.
        owner: PrincipalId,
        /// The role from now on.
        role: Role,
    },
    /// Refuse all keys of a principal from now on, and revoke them.
    RemoveOwner {
        /// Whose.
        owner: PrincipalId,
    },
    /// Refuse keys until they are enabled again, the legacy key included: after a backup was
    /// restored it may stand for a secret that was rotated away since. Only the host itself gives
    /// this command.
    DisableMany,
    /// Set the stored role of an owner to the one that the application has for it. Does nothing for an
    /// owner who has no role stored. Only the application gives this command.
    SyncOwnerRole {
        /// Whose.
        owner: PrincipalId,
        /// The role that it has.
        role: Role,
    },
    /// Keep digests from ever being imported again, by their marks. Only the application gives this
    /// command, after a backup was restored.
    BlockDigests {
        /// The marks, each with the key that had the digest.
        marks: Vec<(DigestMark, KeyId)>,
    },
    /// Set the tenant's newest instant back to the time, if a clock that was wrong left it in the future.
    /// Only the application gives this command.
    RepairTime,
}

impl Command {
    /// Returns whether the time may be wrong when it is decided: it makes no key, prolongs none, and forgets
    /// none before its time. Of an update the part that widens is decided apart.
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

    /// Returns whether it is about many keys, in more than one commit if need be.
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

    /// The key that the command is about, if it is about one that exists.
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

/// How long a key is to live.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub enum Expiry {
    /// As its class says.
    #[default]
    Class,
    /// For ever, if the class has no maximum (rule Y-17).
    Never,
    /// Until this instant.
    At(Timestamp),
    /// For so long, from the moment the command is decided.
    In(Duration),
}

/// How a key is replaced.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub enum RotationMode {
    /// With the grace that the class names.
    #[default]
    Class,
    /// The old key ends at once.
    Immediate,
    /// The old key works for so long.
    Grace(Duration),
    /// The old key works until the successor is first used, and for so long after that: a lost
    /// answer loses no access. It ends in any case when [`Replacement::no_later_than`] says.
    OnFirstUse(Duration),
}

/// What a decided command did.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// Keys that came into being, with the text of each that can be shown now.
    Issued {
        /// The key that was asked for; for [`Command::ProvisionTenant`] and
        /// [`Command::ProvisionResource`] there may be none.
        key: Option<IssuedKey>,
        /// Keys that came with the tenant, because this command was its first.
        provisioned: Vec<IssuedKey>,
    },
    /// A successor came into being.
    Rotated {
        /// The successor.
        successor: IssuedKey,
        /// The key that it replaces.
        predecessor: KeyId,
        /// The end of the old key; the latest one, if it counts from the successor's first use.
        until: Timestamp,
    },
    /// The key is as asked for, whether that was a change or not.
    Done,
    /// The tenant's newest instant was set back.
    TimeRepaired {
        /// The newest instant before.
        from: Timestamp,
        /// The newest instant from then on.
        to: Timestamp,
    },
    /// A leak was noted.
    LeakNoted {
        /// Whether that revoked the key.
        revoked: bool,
    },
    /// Keys were ended or disabled in bulk.
    Swept {
        /// How many were ended or disabled in this commit.
        ended: usize,
        /// Legacy keys that matched, and stay.
        skipped: Vec<KeyId>,
    },
}

/// A key that just came into being.
#[derive(Debug)]
pub struct IssuedKey {
    /// Its public id.
    pub id: KeyId,
    /// Its kind.
    pub class: ClassName,
    /// What a person sees of it later.
    pub hint: Hint,
    /// The mark that finds it.
    pub fingerprint: Fingerprint,
    /// When it ends; `None` for never.
    pub expires_at: Option<Timestamp>,
    /// The scopes that it effectively reaches now.
    pub reach: ScopeSet,
    /// Its whole text, shown now and, unless it is publishable, never again. An imported key has
    /// none: its holder has it.
    pub token: Option<Secret>,
}
