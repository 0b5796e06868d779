//! What a verified key stands for.

use std::sync::Arc;

use crate::core::actor::Actor;
use crate::core::check::Rejection;
use crate::core::id::KeyId;
use crate::core::info::KeyInfo;
use crate::core::metadata::Metadata;
use crate::core::owner::{Owner, Standing};
use crate::core::policy::{OwnerCeiling, Policy, TenantReach};
use crate::core::reach;
use crate::core::record::{KeyRecord, Resource, Visibility};
use crate::core::scope::{Scope, ScopeSet};
use crate::core::tenant::TenantId;
use crate::core::text::{ClassName, Environment, KeyName, PrincipalId, Role};
use crate::core::time::Timestamp;

/// A key that was verified, as it stood at that moment. Holds no secret.
#[derive(Clone, Debug)]
pub struct Grant {
    record: Arc<KeyRecord>,
    standing: Arc<Standing>,
    policy: Arc<Policy>,
    at: Timestamp,
}

impl Grant {
    pub(super) const fn new(
        record: Arc<KeyRecord>,
        standing: Arc<Standing>,
        policy: Arc<Policy>,
        at: Timestamp,
    ) -> Self {
        Self {
            record,
            standing,
            policy,
            at,
        }
    }

    /// The key's public id: fit for logs.
    #[must_use]
    pub fn key_id(&self) -> KeyId {
        self.record.id
    }

    /// The tenant that the key belongs to. Act on this one, never on one that the request names,
    /// unless [`Need::for_tenant`](crate::Need::for_tenant) was checked.
    #[must_use]
    pub fn tenant(&self) -> &TenantId {
        &self.record.tenant
    }

    /// The key's kind.
    #[must_use]
    pub fn class(&self) -> &ClassName {
        &self.record.class
    }

    /// Whether it authenticates or only identifies.
    #[must_use]
    pub fn visibility(&self) -> Visibility {
        self.record.visibility
    }

    /// Where it may be used.
    #[must_use]
    pub fn environment(&self) -> &Environment {
        &self.record.environment
    }

    /// To whom it is linked.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.record.owner
    }

    /// What people call it.
    #[must_use]
    pub fn name(&self) -> &KeyName {
        &self.record.name
    }

    /// The host's own words about it.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.record.metadata
    }

    /// What it belongs to in the host's world.
    #[must_use]
    pub fn resource(&self) -> Option<&Resource> {
        self.record.resource.as_ref()
    }

    /// When it ends; `None` for never.
    #[must_use]
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.record.expires_at
    }

    /// Everything that people see of it.
    #[must_use]
    pub fn info(&self) -> KeyInfo {
        KeyInfo::new(KeyRecord::clone(&self.record), &self.policy, self.at)
    }

    /// Whether it reaches `scope`, within its class and its owner's role.
    #[must_use]
    pub fn allows(&self, scope: &Scope) -> bool {
        self.policy.class(&self.record.class).is_some_and(|class| {
            reach::reaches(&self.record, &self.policy, class, &self.standing, scope)
        })
    }

    /// Refuses if it does not reach `scope`.
    ///
    /// # Errors
    ///
    /// [`Rejection::MissingScope`].
    pub fn require(&self, scope: &Scope) -> Result<(), Rejection> {
        if self.allows(scope) {
            return Ok(());
        }
        Err(Rejection::MissingScope {
            key: self.key_id(),
            scope: scope.clone(),
        })
    }

    /// Everything that it reaches.
    #[must_use]
    pub fn scopes(&self) -> ScopeSet {
        let class = self.policy.class(&self.record.class);
        class.map_or_else(ScopeSet::none, |class| {
            reach::reach(&self.record, &self.policy, class, &self.standing)
        })
    }

    /// The actor that manages keys with this key: bound to its tenant, its reach and its life.
    ///
    /// It has its owner's role only if it reaches all that the role does: a key that was narrowed
    /// to reading reports does not close a tenant, though its owner may. Without a role it manages
    /// its owner's own keys, where their class lets owners. A key that belongs to its tenant never
    /// has a role.
    #[must_use]
    pub fn actor(&self) -> Actor {
        let class = self.policy.class(&self.record.class);
        let below = class.is_some_and(|class| class.tenant_reach == TenantReach::Below);
        let snapshot = class.is_some_and(|class| class.owner_ceiling == OwnerCeiling::Snapshot);
        let principal = match &self.record.owner {
            Owner::Principal(principal) => principal.clone(),
            Owner::Tenant => key_principal(self.record.id),
        };
        let role = if snapshot {
            self.record.owner_role.clone()
        } else {
            self.live_role()
        };
        let tenant = self.record.tenant.clone();
        let scopes = self.scopes();
        let whole = |role: &Role| scopes.contains(&self.policy.role_ceiling(role));
        let role = role.filter(whole);
        let actor = Actor::from_key(principal, role, tenant, below).with_scopes(scopes);
        match self.record.expires_at {
            Some(end) => actor.with_expiry(end),
            None => actor,
        }
    }

    /// The owner's role if the rows along its path agree on one.
    fn live_role(&self) -> Option<Role> {
        let (first, others) = self.standing.roles.split_first()?;
        others
            .iter()
            .all(|role| role == first)
            .then(|| first.clone())
    }
}

fn key_principal(id: KeyId) -> PrincipalId {
    PrincipalId::new(format!("key:{id}")).unwrap_or(PrincipalId::SYSTEM)
}
