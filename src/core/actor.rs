//! The caller of a management command, as the application knows it.
//!
//! Pure: no I/O and no clock. Invariant: every fact here comes from the application or from a verified key,
//! never from a request body. So a caller cannot raise its own rights.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::id::KeyId;
use super::principal::Author;
use super::principal::Owner;
use super::scope::ScopeSet;
use super::tenant::TenantId;
use super::text::{CommandId, Entitlement, PrincipalId, Role};
use super::time::Timestamp;

/// The caller of a management command: the application, a person, or a key.
///
/// The kind of actor is an enum variant, not a reserved name: a principal called `system` has no special
/// rights.
///
/// [`Grant::actor`](crate::Grant::actor) makes an actor from a key. Each command of that actor reads the key
/// and its owner again, and commits only if both are unchanged.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Actor {
    kind: ActorKind,
    tenant: TenantId,
    descendants: bool,
    scopes: ScopeSet,
    entitlements: BTreeSet<Entitlement>,
    expires_at: Option<Timestamp>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum ActorKind {
    Application,
    Person { principal: PrincipalId, role: Role },
    Key(ActingKey),
}

/// The key that authenticated an actor.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ActingKey {
    pub(crate) id: KeyId,
    pub(crate) owner: Owner,
    /// The client address with which the key was verified. `None` if the address is unknown.
    pub(crate) address: Option<IpAddr>,
}

impl Actor {
    /// Creates an actor for a person who is signed in to the application. The actor may do what `role` allows
    /// in `tenant` and its descendants.
    #[must_use]
    pub fn new(tenant: TenantId, principal: PrincipalId, role: Role) -> Self {
        Self::of(ActorKind::Person { principal, role }, tenant)
    }

    /// Creates an actor for the application itself, for `tenant` and its descendants. The keys that the
    /// application issues have no limit except the policy.
    #[must_use]
    pub fn application(tenant: TenantId) -> Self {
        Self::of(ActorKind::Application, tenant)
    }

    fn of(kind: ActorKind, tenant: TenantId) -> Self {
        Self {
            kind,
            tenant,
            descendants: true,
            scopes: ScopeSet::all(),
            entitlements: BTreeSet::new(),
            expires_at: None,
        }
    }

    /// Creates an application actor with which maintenance finishes an interrupted bulk command. Commands of
    /// this actor cover descendant tenants only if `descendants` is true.
    pub(crate) fn finishing(tenant: TenantId, descendants: bool) -> Self {
        Self {
            descendants,
            ..Self::application(tenant)
        }
    }

    pub(crate) fn from_key(key: ActingKey, tenant: TenantId, descendants: bool) -> Self {
        Self {
            descendants,
            ..Self::of(ActorKind::Key(key), tenant)
        }
    }

    /// Limits the scopes of the keys that the actor issues. The actor's role limits these keys too, or, if
    /// the actor is a key, the scopes of that key. Without this call, only those limits apply.
    #[must_use]
    pub fn with_scopes(mut self, scopes: ScopeSet) -> Self {
        self.scopes = scopes;
        self
    }

    /// Adds an entitlement: a plan or feature that the actor's tenant has.
    #[must_use]
    pub fn with_entitlement(mut self, entitlement: Entitlement) -> Self {
        self.entitlements.insert(entitlement);
        self
    }

    /// Sets the expiry of the actor's own credential, such as a session. Keys that the actor issues cannot
    /// outlive the credential. For an acting key, the key's own expiry applies too.
    #[must_use]
    pub fn with_expiry(mut self, expires_at: Timestamp) -> Self {
        self.expires_at = Some(expires_at);
        self
    }

    /// Attaches an idempotency key to one command of this actor. Once that command is committed, a retry with
    /// the same idempotency key changes nothing.
    #[must_use]
    pub fn with_command_id(&self, id: CommandId) -> Invocation<'_> {
        Invocation {
            actor: self,
            command_id: Some(id),
        }
    }

    /// Returns the principal behind the actor: the person, or the owner if the actor is a key. `None` for the
    /// application, and for a key that its tenant owns.
    #[must_use]
    pub const fn principal(&self) -> Option<&PrincipalId> {
        match &self.kind {
            ActorKind::Application => None,
            ActorKind::Person { principal, .. } => Some(principal),
            ActorKind::Key(key) => key.owner.principal(),
        }
    }

    /// Returns the role that the application passed to [`new`](Self::new) for a person. `None` if the actor
    /// is the application or a key.
    #[must_use]
    pub const fn role(&self) -> Option<&Role> {
        match &self.kind {
            ActorKind::Person { role, .. } => Some(role),
            ActorKind::Application | ActorKind::Key(_) => None,
        }
    }

    /// Returns the id of the key, if the actor is a key.
    #[must_use]
    pub const fn key_id(&self) -> Option<KeyId> {
        match &self.kind {
            ActorKind::Key(key) => Some(key.id),
            ActorKind::Application | ActorKind::Person { .. } => None,
        }
    }

    pub(crate) const fn kind(&self) -> &ActorKind {
        &self.kind
    }

    /// Returns the author that audit entries and stamps record for this actor.
    #[must_use]
    pub fn author(&self) -> Author {
        match &self.kind {
            ActorKind::Application => Author::Application,
            ActorKind::Person { principal, .. } => Author::Principal(principal.clone()),
            ActorKind::Key(key) => Author::Key {
                key: key.id,
                owner: key.owner.clone(),
            },
        }
    }

    /// Returns the tenant that the actor is bound to.
    #[must_use]
    pub const fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Returns the scopes to which [`with_scopes`](Self::with_scopes) limits the keys that the actor issues.
    /// Roles may limit these keys further.
    #[must_use]
    pub const fn scopes(&self) -> &ScopeSet {
        &self.scopes
    }

    /// Returns whether the actor has `entitlement`. The application itself has every entitlement.
    #[must_use]
    pub fn is_entitled(&self, entitlement: &Entitlement) -> bool {
        self.is_application() || self.entitlements.contains(entitlement)
    }

    /// Returns the expiry of the actor's own credential, such as a session or a key. `None` if the credential
    /// never expires.
    #[must_use]
    pub const fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at
    }

    /// Returns whether `tenant` is the actor's own tenant, or a descendant that the actor reaches.
    #[must_use]
    pub fn reaches(&self, tenant: &TenantId) -> bool {
        if self.descendants {
            self.tenant.contains(tenant)
        } else {
            self.tenant == *tenant
        }
    }

    pub(crate) const fn reaches_descendants(&self) -> bool {
        self.descendants
    }

    /// Returns whether the actor is the application itself.
    #[must_use]
    pub const fn is_application(&self) -> bool {
        matches!(self.kind, ActorKind::Application)
    }
}

/// An actor together with the idempotency key of its command, if the caller chose one.
#[derive(Clone, Debug)]
pub struct Invocation<'a> {
    pub(crate) actor: &'a Actor,
    pub(crate) command_id: Option<CommandId>,
}

impl<'a> From<&'a Actor> for Invocation<'a> {
    fn from(actor: &'a Actor) -> Self {
        Self {
            actor,
            command_id: None,
        }
    }
}

impl<'a> From<&Invocation<'a>> for Invocation<'a> {
    fn from(invocation: &Invocation<'a>) -> Self {
        invocation.clone()
    }
}
