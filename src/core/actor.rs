//! The caller of a management command, as the application knows it.
//!
//! Pure. Invariant: every fact here comes from the application or from a verified key, never from a
//! request body (trap 13).

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
/// Each kind is an enum variant inside, never a name: a principal called `system` is a principal
/// like any other.
///
/// An actor made from a key ([`Grant::actor`](crate::Grant::actor)) carries the key's id. Each
/// command reads that key and its owner's rows again, and is judged by their state at the commit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Actor {
    identity: Identity,
    tenant: TenantId,
    descendants: bool,
    scopes: ScopeSet,
    entitlements: BTreeSet<Entitlement>,
    expires_at: Option<Timestamp>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Identity {
    Application,
    Person { principal: PrincipalId, role: Role },
    Key(ActingKey),
}

/// The key that an actor acts with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ActingKey {
    pub(crate) id: KeyId,
    pub(crate) owner: Owner,
    /// The address that the key was verified from, if it is known.
    pub(crate) address: Option<IpAddr>,
}

impl Actor {
    /// Returns a person in a session of the application, bound to `tenant` and its descendants, who
    /// may do what `role` allows.
    #[must_use]
    pub fn new(tenant: TenantId, principal: PrincipalId, role: Role) -> Self {
        Self::of(Identity::Person { principal, role }, tenant)
    }

    /// Returns the application itself, acting on `tenant` and its descendants. Nothing limits the
    /// keys that the application hands out.
    #[must_use]
    pub fn application(tenant: TenantId) -> Self {
        Self::of(Identity::Application, tenant)
    }

    fn of(identity: Identity, tenant: TenantId) -> Self {
        Self {
            identity,
            tenant,
            descendants: true,
            scopes: ScopeSet::all(),
            entitlements: BTreeSet::new(),
            expires_at: None,
        }
    }

    /// Returns the application, which finishes a command. The command covers descendant tenants
    /// only if `descendants` is true.
    pub(crate) fn finishing(tenant: TenantId, descendants: bool) -> Self {
        Self {
            descendants,
            ..Self::application(tenant)
        }
    }

    pub(crate) fn from_key(key: ActingKey, tenant: TenantId, descendants: bool) -> Self {
        Self {
            descendants,
            ..Self::of(Identity::Key(key), tenant)
        }
    }

    /// Narrows what the actor may hand out to `scopes`. Roles, and a key's own scopes, narrow the
    /// actor further. Defaults to all scopes.
    #[must_use]
    pub fn with_scopes(mut self, scopes: ScopeSet) -> Self {
        self.scopes = scopes;
        self
    }

    /// Adds a plan or feature that the actor's tenant has (rule A2-39).
    #[must_use]
    pub fn with_entitlement(mut self, entitlement: Entitlement) -> Self {
        self.entitlements.insert(entitlement);
        self
    }

    /// Sets the expiry of the actor's own credential. No key that the actor hands out may outlive
    /// the credential. If the actor is a key, the key's own end counts too.
    #[must_use]
    pub fn with_expiry(mut self, expires_at: Timestamp) -> Self {
        self.expires_at = Some(expires_at);
        self
    }

    /// Returns an invocation with this idempotency key. A retry with the same key changes nothing.
    #[must_use]
    pub fn with_command_id(&self, id: CommandId) -> Invocation<'_> {
        Invocation {
            actor: self,
            command_id: Some(id),
        }
    }

    /// Returns the person, or the owner of the key that acts; `None` for the application and for a
    /// key that belongs to its tenant.
    #[must_use]
    pub const fn principal(&self) -> Option<&PrincipalId> {
        match &self.identity {
            Identity::Application => None,
            Identity::Person { principal, .. } => Some(principal),
            Identity::Key(key) => key.owner.principal(),
        }
    }

    /// Returns the role that the application states for a person; `None` for the application and
    /// for a key.
    #[must_use]
    pub const fn role(&self) -> Option<&Role> {
        match &self.identity {
            Identity::Person { role, .. } => Some(role),
            Identity::Application | Identity::Key(_) => None,
        }
    }

    /// Returns the acting key, if there is one.
    #[must_use]
    pub const fn key_id(&self) -> Option<KeyId> {
        match &self.identity {
            Identity::Key(key) => Some(key.id),
            Identity::Application | Identity::Person { .. } => None,
        }
    }

    pub(crate) const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns the author that audit entries and stamps record for this actor.
    #[must_use]
    pub fn author(&self) -> Author {
        match &self.identity {
            Identity::Application => Author::Application,
            Identity::Person { principal, .. } => Author::Principal(principal.clone()),
            Identity::Key(key) => Author::Key {
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

    /// Returns the scopes that the actor may hand out at most, before roles narrow them.
    #[must_use]
    pub const fn scopes(&self) -> &ScopeSet {
        &self.scopes
    }

    /// Returns whether the application says that the actor has `entitlement`.
    #[must_use]
    pub fn is_entitled(&self, entitlement: &Entitlement) -> bool {
        self.is_application() || self.entitlements.contains(entitlement)
    }

    /// Returns the time at which the actor's own credential expires, if it does.
    #[must_use]
    pub const fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at
    }

    /// Returns whether the actor may see and change what belongs to `tenant`.
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
        matches!(self.identity, Identity::Application)
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
