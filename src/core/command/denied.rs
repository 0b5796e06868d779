//! Why a command was refused.

use std::num::NonZeroU32;
use std::time::Duration;

use super::super::id::KeyId;
use super::super::invalid::Invalid;
use super::super::reach::Dimension;
use super::super::rejection::Rejection;
use super::super::scope::{Scope, ScopeSet};
use super::super::tenant::TenantId;
use super::super::text::{ClassName, Entitlement, Environment, PepperId, PrincipalId, Role};
use super::super::time::Timestamp;

/// Why a management command was refused. Nothing was written.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Denied {
    /// A value in the command is malformed.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// No such key within the actor's reach. Also the answer for a key outside it.
    #[error("no such key")]
    NotFound,
    /// The tenant is outside the actor's reach.
    #[error("no such tenant")]
    TenantNotFound,
    /// The actor's own credential has ended.
    #[error("the actor's own credential has ended")]
    ActorExpired,
    /// The actor's role may not do this.
    #[error("{} may not {action}", who(role.as_ref()))]
    Forbidden {
        /// What was asked, in words.
        action: &'static str,
        /// The role that the application stated; `None` for a key.
        role: Option<Role>,
    },
    /// Only the host's support staff may do this (rules A2-02, A2-35).
    #[error("only support may {action}")]
    SupportOnly {
        /// What was asked, in words.
        action: &'static str,
    },
    /// A plan or feature is needed (rule A2-39).
    #[error("class {class} needs {entitlement}")]
    NotEntitled {
        /// The class.
        class: ClassName,
        /// What is needed.
        entitlement: Entitlement,
    },
    /// Creating the key would exceed the tenant's active-key cap.
    #[error("tenant already has {limit} active keys")]
    CapReached {
        /// The cap in force when the command was decided.
        limit: NonZeroU32,
    },
    /// The policy has no class of this name.
    #[error("no class {class}")]
    UnknownClass {
        /// The class.
        class: ClassName,
    },
    /// The class has no such environment, or several and none was named.
    #[error("class {class} {}", environment_problem(asked.as_ref(), offered))]
    Environment {
        /// The class.
        class: ClassName,
        /// The environment that was asked for, if any.
        asked: Option<Environment>,
        /// Those that the class has.
        offered: Vec<Environment>,
    },
    /// The policy has no keys that come with a resource of this kind.
    #[error("no keys come with such a resource")]
    UnknownResource,
    /// The policy wants every key to say what it is for (rule G-38).
    #[error("a purpose is required")]
    PurposeRequired,
    /// A scope that the class does not allow (rule A2-13).
    #[error("class {class} does not allow scope {scope}")]
    ScopeNotAllowed {
        /// The class.
        class: ClassName,
        /// The first scope that is not allowed.
        scope: Scope,
    },
    /// An end in the past, or beyond what the class allows.
    #[error("expiry must lie after {after}{}", before(*max))]
    Expiry {
        /// The instant of the decision.
        after: Timestamp,
        /// The last instant that the class allows; `None` for any.
        max: Option<Timestamp>,
    },
    /// The command would hand out more than the actor has itself (invariant 5).
    #[error("actor cannot hand out more than its own {dimension}")]
    ExceedsActor {
        /// More of what.
        dimension: Dimension,
        /// The scopes that the actor may hand out.
        reach: ScopeSet,
    },
    /// The key that acts does not work any more, or not for this.
    #[error("acting key {key} is refused: {why}")]
    ActingKey {
        /// Which key.
        key: KeyId,
        /// Why a verification would refuse it.
        why: Box<Rejection>,
    },
    /// The application states a role for the actor that exceeds the one that is stored. The application
    /// settles it with [`Keyward::sync_role`](crate::Keyward::sync_role).
    #[error(
        "role {stated} was stated, and {stored} is stored; the application has to sync the role"
    )]
    RoleDrift {
        /// The role that the application states.
        stated: Role,
        /// A role that is stored and allows less.
        stored: Role,
    },
    /// A key may not rotate itself, or not in this way.
    #[error("key cannot rotate itself: {reason}")]
    SelfRotation {
        /// Why not.
        reason: &'static str,
    },
    /// This process's clock is contradicted by others (the store's server, other nodes): nothing is issued
    /// or prolonged by it.
    #[error("clock says {own}, and others say {reference}")]
    ClockRefused {
        /// The time of this process.
        own: Timestamp,
        /// The time by the other clocks.
        reference: Timestamp,
    },
    /// The newest commit of a tenant lies in the future: a clock was wrong when it was decided, or this
    /// process's clock is behind. `keyctl time repair` sets it back.
    #[error("newest commit of tenant {tenant} is of {floor}, and the clock says {own}")]
    TenantAhead {
        /// The tenant of the command, or that of the key that acts.
        tenant: TenantId,
        /// The instant of the tenant's newest commit.
        floor: Timestamp,
        /// The time of this process.
        own: Timestamp,
    },
    /// A rotation on first use names no latest end for a compromised key, or one that is out of bounds.
    #[error("no_later_than of a rotation on first use must be from 1 s to {max:?} for this key")]
    FirstUseWait {
        /// The longest allowed.
        max: Duration,
        /// The wait named; `None` if none was.
        actual: Option<Duration>,
    },
    /// Too many keys have a part in the key to come.
    #[error("more than {limit} keys made one another")]
    TooManyMakers {
        /// The most that may.
        limit: usize,
    },
    /// The command needs to be confirmed (rules A1-15, G-20).
    #[error("needs to be confirmed")]
    ConfirmationRequired,
    /// The exact text must be typed (rule A1-22).
    #[error("type {text} to confirm")]
    TypedConfirmationRequired {
        /// What must be typed.
        text: String,
    },
    /// Something still refers to the key (rule A2-28).
    #[error("{references} references to the key remain")]
    StillReferenced {
        /// How many, as the host said.
        references: u32,
    },
    /// The host must say how many things refer to the key (rule A2-28).
    #[error("say how many references to the key remain")]
    ReferencesUnknown,
    /// The legacy key cannot be disabled, revoked or deleted (rule A1-11); only a recovery disables
    /// it.
    #[error("the legacy key cannot be {action}, only rotated")]
    LegacyKey {
        /// What was asked, in words.
        action: &'static str,
    },
    /// Keys of this class are not revoked; delete them.
    #[error("keys of class {class} are deleted, not revoked")]
    NotRevocable {
        /// The class.
        class: ClassName,
    },
    /// Keys of this class are not deleted; revoke them.
    #[error("keys of class {class} are revoked, not deleted")]
    NotDeletable {
        /// The class.
        class: ClassName,
    },
    /// Keys of this class are not rotated (rule A2-01).
    #[error("keys of class {class} are not rotated")]
    NotRotatable {
        /// The class.
        class: ClassName,
    },
    /// An imported key has no form of its own to be made again in.
    #[error("imported keys have no successor; create a key and revoke the imported one")]
    Imported,
    /// The key is revoked, for ever (rule G-24).
    #[error("key is revoked")]
    Revoked,
    /// The key has expired.
    #[error("key has expired")]
    Expired,
    /// The key is disabled; enable it first.
    #[error("key is disabled")]
    Disabled,
    /// The key is being replaced already.
    #[error("key is being replaced by {successor}")]
    BeingRotated {
        /// By which key.
        successor: KeyId,
    },
    /// The key is not being replaced.
    #[error("key is not being replaced")]
    NotRotating,
    /// The successor was used, so that the rotation can only be finished.
    #[error("successor {successor} was used; finish the rotation, or rotate the successor")]
    SuccessorInUse {
        /// Which key.
        successor: KeyId,
    },
    /// The secret cannot be replaced as lost; rotate the key.
    #[error("only its creator can replace a lost secret, within an hour of creation")]
    NotReplaceable,
    /// The owner was removed.
    #[error("owner {owner} was removed")]
    OwnerRemoved {
        /// Who.
        owner: PrincipalId,
    },
    /// The tenant was closed.
    #[error("tenant {tenant} was closed")]
    TenantClosed {
        /// Which tenant.
        tenant: TenantId,
    },
    /// The key's stored bytes failed their checksum.
    #[error("record of key {key} is corrupt")]
    CorruptRecord {
        /// Which key.
        key: KeyId,
    },
    /// The digest belongs to another key, or to one that was deleted.
    #[error("digest is taken")]
    DigestTaken,
    /// The digest to renew is not the one that is stored, or the pepper is not the current one.
    #[error("pepper {pepper} is not current, or the digest changed meanwhile")]
    StaleRedigest {
        /// The pepper of the new digest.
        pepper: PepperId,
    },
    /// This command landed before; its secret cannot be shown again.
    #[error("command already created key {id}; its secret cannot be shown again")]
    AlreadyCreated {
        /// The key that it created.
        id: KeyId,
    },
    /// Another command has this id.
    #[error("command id was used for another command")]
    CommandIdReused,
    /// A command that only the host itself gives.
    #[error("only the host itself may {action}")]
    HostOnly {
        /// What was asked, in words.
        action: &'static str,
    },
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
