//! Who asks: what the host knows about the caller of a management command.
//!
//! Pure. Invariant: every fact here comes from the host, never from a request body (trap 13).

use std::collections::BTreeSet;

use super::scope::ScopeSet;
use super::tenant::TenantId;
use super::text::{CommandId, Entitlement, PrincipalId, Role};
use super::time::Timestamp;

/// Who asks for a change: a principal with a role, bound to a tenant and all below it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Actor {
    principal: PrincipalId,
    role: Option<Role>,
    tenant: TenantId,
    below: bool,
    scopes: ScopeSet,
    entitlements: BTreeSet<Entitlement>,
    expires_at: Option<Timestamp>,
}

impl Actor {
    /// An actor who reaches `tenant` and all below it, with whatever its role allows.
    #[must_use]
    pub fn new(tenant: TenantId, principal: PrincipalId, role: Role) -> Self {
        Self {
            principal,
            role: Some(role),
            tenant,
            below: true,
            scopes: ScopeSet::all(),
            entitlements: BTreeSet::new(),
            expires_at: None,
        }
    }

    /// The host itself acting on `tenant` and all below it. Passes every check of role and reach.
    #[must_use]
    pub fn system(tenant: TenantId) -> Self {
        Self::new(tenant, PrincipalId::SYSTEM, Role::SYSTEM)
    }

    pub(crate) fn from_key(
        principal: PrincipalId,
        role: Option<Role>,
        tenant: TenantId,
        below: bool,
    ) -> Self {
        Self {
            principal,
            role: role.filter(|role| *role != Role::SYSTEM),
            tenant,
            below,
            scopes: ScopeSet::none(),
            entitlements: BTreeSet::new(),
            expires_at: None,
        }
    }

    /// Narrows what the actor may hand out to `scopes` (within its role). Defaults to everything.
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

    /// Sets the end of the actor's own credential: nothing it hands out may outlive it.
    #[must_use]
    pub fn with_expiry(mut self, expires_at: Timestamp) -> Self {
        self.expires_at = Some(expires_at);
        self
    }

    /// Names the command to come, so that repeating the call changes nothing.
    #[must_use]
    pub fn with_command_id(&self, id: CommandId) -> Invocation<'_> {
        Invocation {
            actor: self,
            command_id: Some(id),
        }
    }

    /// Who it is.
    #[must_use]
    pub const fn principal(&self) -> &PrincipalId {
        &self.principal
    }

    /// The role that the host gives it; none if it is a key that belongs to no person.
    #[must_use]
    pub const fn role(&self) -> Option<&Role> {
        self.role.as_ref()
    }

    /// The tenant it is bound to.
    #[must_use]
    pub const fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// The scopes it may hand out at most, before its role narrows them.
    #[must_use]
    pub const fn scopes(&self) -> &ScopeSet {
        &self.scopes
    }

    /// Whether the host says that it has `entitlement`.
    #[must_use]
    pub fn is_entitled(&self, entitlement: &Entitlement) -> bool {
        self.is_system() || self.entitlements.contains(entitlement)
    }

    /// When its own credential ends, if it does.
    #[must_use]
    pub const fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at
    }

    /// Whether it may see and change what belongs to `tenant`.
    #[must_use]
    pub fn reaches(&self, tenant: &TenantId) -> bool {
        if self.below {
            self.tenant.contains(tenant)
        } else {
            self.tenant == *tenant
        }
    }

    pub(crate) const fn reaches_below(&self) -> bool {
        self.below
    }

    /// Whether it is the host itself.
    #[must_use]
    pub fn is_system(&self) -> bool {
        self.role.as_ref() == Some(&Role::SYSTEM)
    }
}

/// An actor together with the id of its command, if the caller chose one.
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
