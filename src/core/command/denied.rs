//! The reasons to refuse a command.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;

use super::super::id::KeyId;
use super::super::invalid::Invalid;
use super::super::kind::ErrorKind;
use super::super::reach::Dimension;
use super::super::rejection::VerifyError;
use super::super::scope::{Scope, ScopeSet};
use super::super::tenant::TenantId;
use super::super::text::{
    ClassName, Entitlement, Environment, PepperId, PrincipalId, Role, of_classes,
};
use super::super::time::Timestamp;

/// The reason to refuse a command. Nothing was written.
///
/// [`Display`](std::fmt::Display) is for the service's own logs. Show a client
/// [`public_message`](Self::public_message), with the [`code`](Self::code) and the status of the
/// [`kind`](Self::kind).
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Denial {
    /// A value in the command is malformed.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The key does not exist, or belongs to a tenant that the actor does not reach.
    #[error("no such key")]
    NotFound,
    /// The tenant does not exist, or the actor does not reach it.
    #[error("no such tenant")]
    TenantNotFound,
    /// The actor's own credential has expired.
    #[error("the actor's own credential has ended")]
    ActorExpired,
    /// The actor's role does not allow the action.
    #[error("{} may not {action}", who(role.as_ref()))]
    Forbidden {
        /// The action, in words.
        action: &'static str,
        /// The role that the application stated for the actor. `None` if the actor is a key.
        role: Option<Role>,
    },
    /// Only the application's support staff may take the action.
    #[error("only support may {action}")]
    SupportOnly {
        /// The action, in words.
        action: &'static str,
    },
    /// The class needs a plan or feature.
    #[error("class {class} needs {entitlement}")]
    NotEntitled {
        /// The class.
        class: ClassName,
        /// The plan or feature.
        entitlement: Entitlement,
    },
    /// The command would exceed a cap on the tenant's active keys.
    #[error("tenant already has {limit} active key{}{}", if limit.get() == 1 { "" } else { "s" }, of_classes(classes))]
    CapReached {
        /// The limit of the cap in force when the command was decided.
        limit: NonZeroU32,
        /// The classes whose keys count towards the cap; all classes if the set is empty.
        classes: BTreeSet<ClassName>,
    },
    /// The policy has no class of this name.
    #[error("no class {class}")]
    UnknownClass {
        /// The class.
        class: ClassName,
    },
    /// The class does not have the environment, or the command named no environment and the class has no
    /// default.
    #[error("class {class} {}", environment_problem(asked.as_ref(), offered))]
    Environment {
        /// The class.
        class: ClassName,
        /// The environment that the command named, if any.
        asked: Option<Environment>,
        /// The environments of the class.
        offered: Vec<Environment>,
    },
    /// The policy provisions no keys with a resource of this kind.
    #[error("the policy provisions no keys for such a resource")]
    UnknownResource,
    /// The policy requires every key to have a purpose.
    #[error("a purpose is required")]
    PurposeRequired,
    /// The class does not allow a scope.
    #[error("class {class} does not allow scope {scope}")]
    ScopeNotAllowed {
        /// The class.
        class: ClassName,
        /// The first scope that the class does not allow.
        scope: Scope,
    },
    /// The expiry lies in the past, or beyond the class's maximum.
    #[error("expiry must lie after {after}{}", before(*max))]
    Expiry {
        /// The instant of the decision. The expiry must be later.
        after: Timestamp,
        /// The last instant that the class allows. `None` if the class allows any.
        max: Option<Timestamp>,
    },
    /// The command would grant more than the actor itself has.
    #[error("actor cannot hand out more than its own {dimension}")]
    ExceedsActor {
        /// The dimension in which the command exceeds the actor.
        dimension: Dimension,
        /// The scopes that the actor may grant.
        reach: ScopeSet,
    },
    /// The acting key is no longer valid, or is not valid for this action.
    #[error("acting key {key} is refused: {why}")]
    ActingKey {
        /// The key.
        key: KeyId,
        /// The reason why a verification would refuse the key.
        why: Box<VerifyError>,
    },
    /// The application stated a role for the actor that exceeds the stored role. If the role was changed, the
    /// application must store the new role with [`Keyward::sync_role`](crate::Keyward::sync_role).
    #[error(
        "role {stated} was stated, and {stored} is stored; the application has to sync the role"
    )]
    RoleDrift {
        /// The role that the application stated.
        stated: Role,
        /// A stored role that allows less.
        stored: Role,
    },
    /// The key may not rotate itself, or may not do so in this mode.
    #[error("key cannot rotate itself: {reason}")]
    SelfRotation {
        /// The reason, in words.
        reason: &'static str,
    },
    /// Other clocks (the store's server, other nodes) contradict this process's clock. This process neither
    /// issues nor prolongs keys until the clocks agree.
    #[error("this process's clock says {own}, but other clocks say {reference}")]
    ClockRefused {
        /// The time of this process.
        own: Timestamp,
        /// The time according to the other clocks.
        reference: Timestamp,
    },
    /// The newest commit of a tenant is dated in the future. Either a clock was wrong when the commit was
    /// decided, or this process's clock is behind. `keyctl time repair` sets the tenant's newest commit time
    /// back.
    #[error("newest commit of tenant {tenant} is dated {floor}, but the clock says {own}")]
    TenantAhead {
        /// The tenant of the command, or the tenant of the acting key.
        tenant: TenantId,
        /// The instant of the tenant's newest commit.
        floor: Timestamp,
        /// The time of this process.
        own: Timestamp,
    },
    /// [`RotateKey::no_later_than`](super::RotateKey::no_later_than) is out of range, or missing for a
    /// compromised key.
    #[error(
        "the longest wait for the first use of this key's successor must be from 1 s to {max:?}"
    )]
    FirstUseWait {
        /// The longest wait allowed.
        max: Duration,
        /// The wait that the command named, if any.
        actual: Option<Duration>,
    },
    /// Too many keys made the new key, directly or through other keys.
    #[error("more than {limit} keys took part in making the key")]
    TooManyMakers {
        /// The largest number of makers allowed.
        limit: usize,
    },
    /// The command needs a confirmation.
    #[error("needs to be confirmed")]
    ConfirmationRequired,
    /// The deletion must be confirmed with this exact text.
    #[error("type {text} to confirm")]
    TypedConfirmationRequired {
        /// The text.
        text: String,
    },
    /// Other objects still refer to the key.
    #[error("{references} references to the key remain")]
    StillReferenced {
        /// The number of references, as counted by the application.
        references: u32,
    },
    /// The deletion must state how many objects still refer to the key, and this command did not.
    #[error("say how many references to the key remain")]
    ReferencesUnknown,
    /// The legacy key cannot be disabled, revoked or deleted. Only a recovery after a restore from a backup
    /// may disable it.
    #[error("the legacy key cannot be {action}, only rotated")]
    LegacyKey {
        /// The action, in words.
        action: &'static str,
    },
    /// Keys of the class are not revoked. Delete the key instead.
    #[error("keys of class {class} are deleted, not revoked")]
    NotRevocable {
        /// The class.
        class: ClassName,
    },
    /// Keys of the class are not deleted. Revoke the key instead.
    #[error("keys of class {class} are revoked, not deleted")]
    NotDeletable {
        /// The class.
        class: ClassName,
    },
    /// Keys of the class are not rotated.
    #[error("keys of class {class} are not rotated")]
    NotRotatable {
        /// The class.
        class: ClassName,
    },
    /// The key is revoked permanently.
    #[error("key is revoked")]
    Revoked,
    /// The key has expired.
    #[error("key has expired")]
    Expired,
    /// The key is disabled. Enable it first.
    #[error("key is disabled")]
    Disabled,
    /// The key already has a successor.
    #[error("key is being replaced by {successor}")]
    BeingRotated {
        /// The successor.
        successor: KeyId,
    },
    /// The key has no successor.
    #[error("key is not being replaced")]
    NotRotating,
    /// The successor was used, so the rotation can be finished but not cancelled.
    #[error("successor {successor} was used; finish the rotation, or rotate the successor")]
    SuccessorInUse {
        /// The successor.
        successor: KeyId,
    },
    /// The lost secret cannot be replaced. Rotate the key instead.
    #[error(
        "only its creator can replace a lost secret, within an hour of creation; rotate the key instead"
    )]
    NotReplaceable,
    /// The owner was removed.
    #[error("owner {owner} was removed")]
    OwnerRemoved {
        /// The owner.
        owner: PrincipalId,
    },
    /// The tenant was closed.
    #[error("tenant {tenant} was closed")]
    TenantClosed {
        /// The tenant.
        tenant: TenantId,
    },
    /// The key's stored bytes failed their checksum.
    #[error("record of key {key} is corrupt")]
    CorruptRecord {
        /// The key.
        key: KeyId,
    },
    /// The imported digest already belongs to a key. A digest stays taken after its key was deleted.
    #[error("digest is taken")]
    DigestTaken,
    /// The digest cannot be replaced, for one of three reasons. The stored digest is not the digest to replace.
    /// Its pepper did not become current before the new pepper. Or the new pepper is not the current pepper.
    #[error(
        "pepper {pepper} is not newer than the digest's pepper, or the digest changed concurrently"
    )]
    StaleRedigest {
        /// The pepper of the new digest.
        pepper: PepperId,
    },
    /// This command was already committed, and its secret cannot be shown again.
    #[error("command already created key {id}; its secret cannot be shown again")]
    AlreadyCreated {
        /// The key that the command created.
        id: KeyId,
    },
    /// The command id was already used for a different command.
    #[error("command id was used for another command")]
    CommandIdReused,
    /// Only the application itself may give the command.
    #[error("only the host itself may {action}")]
    HostOnly {
        /// The action, in words.
        action: &'static str,
    },
}

impl Denial {
    /// Returns the stable code of the denial, such as `cap-reached`. The code of a malformed value is that of its
    /// [`Problem`](super::super::invalid::Problem).
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Invalid(invalid) => invalid.code(),
            Self::ActingKey { .. } => "acting-key-refused",
            Self::NotFound => "key-not-found",
            Self::TenantNotFound => "tenant-not-found",
            Self::ActorExpired => "actor-expired",
            Self::Forbidden { .. } => "action-forbidden",
            Self::SupportOnly { .. } => "support-only",
            Self::HostOnly { .. } => "host-only",
            Self::NotEntitled { .. } => "not-entitled",
            Self::CapReached { .. } => "cap-reached",
            Self::UnknownClass { .. } => "unknown-class",
            Self::Environment { .. } => "environment-not-offered",
            Self::UnknownResource => "unknown-resource",
            Self::PurposeRequired => "purpose-required",
            Self::ScopeNotAllowed { .. } => "scope-not-allowed",
            Self::Expiry { .. } => "expiry-not-allowed",
            Self::ExceedsActor { .. } => "exceeds-actor",
            Self::RoleDrift { .. } => "role-drift",
            Self::SelfRotation { .. } => "self-rotation",
            Self::ClockRefused { .. } => "clock-refused",
            Self::TenantAhead { .. } => "tenant-ahead",
            Self::FirstUseWait { .. } => "first-use-wait-not-allowed",
            Self::TooManyMakers { .. } => "too-many-makers",
            Self::ConfirmationRequired => "confirmation-required",
            Self::TypedConfirmationRequired { .. } => "typed-confirmation-required",
            Self::StillReferenced { .. } => "still-referenced",
            Self::ReferencesUnknown => "references-unknown",
            Self::LegacyKey { .. } => "legacy-key",
            Self::NotRevocable { .. } => "not-revocable",
            Self::NotDeletable { .. } => "not-deletable",
            Self::NotRotatable { .. } => "not-rotatable",
            Self::Revoked => "target-revoked",
            Self::Expired => "target-expired",
            Self::Disabled => "target-disabled",
            Self::BeingRotated { .. } => "being-rotated",
            Self::NotRotating => "not-rotating",
            Self::SuccessorInUse { .. } => "successor-in-use",
            Self::NotReplaceable => "not-replaceable",
            Self::OwnerRemoved { .. } => "owner-removed",
            Self::TenantClosed { .. } => "tenant-closed",
            Self::CorruptRecord { .. } => "corrupt-record",
            Self::DigestTaken => "digest-taken",
            Self::StaleRedigest { .. } => "stale-redigest",
            Self::AlreadyCreated { .. } => "already-created",
            Self::CommandIdReused => "command-id-reused",
        }
    }

    /// Returns the kind of the denial, which determines the HTTP status. A refused acting key has the kind of the
    /// reason.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid(invalid) => invalid.kind(),
            Self::ActingKey { why, .. } => why.kind(),
            Self::UnknownClass { .. }
            | Self::Environment { .. }
            | Self::UnknownResource
            | Self::PurposeRequired
            | Self::ScopeNotAllowed { .. }
            | Self::Expiry { .. }
            | Self::FirstUseWait { .. }
            | Self::ConfirmationRequired
            | Self::TypedConfirmationRequired { .. }
            | Self::ReferencesUnknown => ErrorKind::Invalid,
            Self::ActorExpired => ErrorKind::Unauthenticated,
            Self::Forbidden { .. }
            | Self::SupportOnly { .. }
            | Self::HostOnly { .. }
            | Self::NotEntitled { .. }
            | Self::ExceedsActor { .. }
            | Self::RoleDrift { .. }
            | Self::SelfRotation { .. }
            | Self::TooManyMakers { .. } => ErrorKind::Forbidden,
            Self::NotFound | Self::TenantNotFound => ErrorKind::NotFound,
            Self::CapReached { .. }
            | Self::StillReferenced { .. }
            | Self::LegacyKey { .. }
            | Self::NotRevocable { .. }
            | Self::NotDeletable { .. }
            | Self::NotRotatable { .. }
            | Self::Revoked
            | Self::Expired
            | Self::Disabled
            | Self::BeingRotated { .. }
            | Self::NotRotating
            | Self::SuccessorInUse { .. }
            | Self::NotReplaceable
            | Self::OwnerRemoved { .. }
            | Self::TenantClosed { .. }
            | Self::DigestTaken
            | Self::StaleRedigest { .. }
            | Self::AlreadyCreated { .. }
            | Self::CommandIdReused => ErrorKind::Conflict,
            Self::ClockRefused { .. } | Self::TenantAhead { .. } => ErrorKind::Unavailable,
            Self::CorruptRecord { .. } => ErrorKind::Internal,
        }
    }

    /// Returns the text that the actor may see. It hides the causes that only an operator can remove, and the reason
    /// why a key no longer authenticates.
    #[must_use]
    pub fn public_message(&self) -> String {
        match self {
            Self::ActingKey { why, .. } => why.public_message(),
            _ => match self.kind().cover() {
                Some(cover) => cover.to_owned(),
                None => self.to_string(),
            },
        }
    }
}

fn who(role: Option<&Role>) -> String {
    role.map_or_else(
        || "a key without the whole role of its owner".to_owned(),
        |role| format!("role {role}"),
    )
}

fn environment_problem(asked: Option<&Environment>, offered: &[Environment]) -> String {
    let offered: Vec<_> = offered.iter().map(Environment::as_str).collect();
    let offered = offered.join(", ");
    match asked {
        Some(asked) => format!("has no environment {asked}; it has {offered}"),
        None => format!("needs an environment: one of {offered}"),
    }
}

fn before(max: Option<Timestamp>) -> String {
    max.map_or_else(String::new, |max| format!(" and not after {max}"))
}
