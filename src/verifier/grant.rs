//! What a verified key stands for.

use std::fmt;
use std::sync::Arc;

use arc_swap::Guard;

use super::Pinned;
use crate::core::actor::Actor;
use crate::core::id::KeyId;
use crate::core::owner::{Owner, Standing};
use crate::core::policy::{OwnerCeiling, Policies, Policy, TenantReach};
use crate::core::reach::{self, Bounds};
use crate::core::record::{Resource, Visibility};
use crate::core::rejection::Rejection;
use crate::core::scope::{Scope, ScopeSet};
use crate::core::subject::{Course, Holder, Shape};
use crate::core::tenant::TenantId;
use crate::core::text::{ClassName, Environment, PrincipalId, Role};
use crate::core::time::Timestamp;
use crate::replica::{Facts, HolderAt, Kept, Parts};

/// A key that was verified, as it stood at that moment. Holds no secret.
///
/// For one request. It holds on to what it was verified against: keep what you need of it, not the
/// grant, for longer than that. What only people read (name, metadata, description) is not in it:
/// [`Keyward::info`](crate::Keyward::info) reads that from the store.
pub struct Grant {
    id: KeyId,
    at: Timestamp,
    of: Of,
}

/// Where the rest stands.
enum Of {
    /// In the index that was read.
    Index {
        pinned: Guard<Arc<Pinned>>,
        row: u32,
        parts: Parts,
        standing: u32,
    },
    /// Here: it was read from the store.
    Record(Arc<Taken>),
}

/// Where in an index a key stands that was accepted.
pub(super) struct Accepted {
    pub(super) id: KeyId,
    pub(super) row: u32,
    pub(super) parts: Parts,
    /// How its holder stood.
    pub(super) standing: u32,
    pub(super) at: Timestamp,
}

/// What decides, of a record from the store.
pub(super) struct Taken {
    pub(super) shape: Shape,
    pub(super) holder: Holder,
    pub(super) course: Course,
    pub(super) standing: Standing,
    pub(super) policies: Arc<Policies>,
}

impl Clone for Grant {
    fn clone(&self) -> Self {
        let of = match &self.of {
            Of::Index {
                pinned,
                row,
                parts,
                standing,
            } => Of::Index {
                pinned: Guard::from_inner(Arc::clone(pinned)),
                row: *row,
                parts: *parts,
                standing: *standing,
            },
            Of::Record(taken) => Of::Record(taken.clone()),
        };
        let (id, at) = (self.id, self.at);
        Self { id, at, of }
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grant")
            .field("key_id", &self.id)
            .field("tenant", self.tenant())
            .field("class", self.class())
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl Grant {
    #[inline]
    pub(super) const fn of_index(pinned: Guard<Arc<Pinned>>, accepted: Accepted) -> Self {
        let Accepted {
            id,
            row,
            parts,
            standing,
            at,
        } = accepted;
        let of = Of::Index {
            pinned,
            row,
            parts,
            standing,
        };
        Self { id, at, of }
    }

    pub(super) fn of_record(id: KeyId, taken: Taken, at: Timestamp) -> Self {
        let of = Of::Record(Arc::new(taken));
        Self { id, at, of }
    }

    fn facts(&self) -> Facts<'_> {
        match &self.of {
            Of::Index {
                pinned,
                parts,
                standing,
                ..
            } => {
                let facts = pinned.view.facts_with(*parts, *standing);
                facts.expect("an index keeps what it told for as long as it is")
            }
            Of::Record(taken) => Facts {
                shape: &taken.shape,
                holder: HolderAt::Here(&taken.holder),
                persons: taken.holder.is_person(),
                standing: &taken.standing,
                standing_id: 0,
            },
        }
    }

    fn shape(&self) -> &Shape {
        self.facts().shape
    }

    fn holder(&self) -> &Holder {
        self.facts().holder.get()
    }

    fn policy(&self) -> &Policy {
        let policies = match &self.of {
            Of::Index { pinned, .. } => &pinned.policies,
            Of::Record(taken) => &taken.policies,
        };
        policies.of_whose(|| &self.holder().tenant)
    }

    /// The key's public id: fit for logs.
    #[must_use]
    pub fn key_id(&self) -> KeyId {
        self.id
    }

    /// The tenant that the key belongs to. Act on this one, never on one that the request names,
    /// unless [`Need::for_tenant`](crate::Need::for_tenant) was checked.
    #[must_use]
    pub fn tenant(&self) -> &TenantId {
        &self.holder().tenant
    }

    /// The key's kind.
    #[must_use]
    pub fn class(&self) -> &ClassName {
        &self.shape().class
    }

    /// Whether it authenticates or only identifies.
    #[must_use]
    pub fn visibility(&self) -> Visibility {
        self.shape().visibility
    }

    /// Where it may be used.
    #[must_use]
    pub fn environment(&self) -> &Environment {
        &self.shape().environment
    }

    /// To whom it is linked.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.holder().owner
    }

    /// What it belongs to in the host's world.
    #[must_use]
    pub fn resource(&self) -> Option<&Resource> {
        self.shape().resource.as_ref()
    }

    /// When it ends, as far as is known now; `None` for never.
    #[must_use]
    pub fn expires_at(&self) -> Option<Timestamp> {
        let kept = match &self.of {
            Of::Index { pinned, row, .. } => pinned.view.kept(*row),
            Of::Record(taken) => Kept::Known(taken.course),
        };
        match kept {
            Kept::Known(course) => course.expires_at,
            // It was removed since, or cannot be read any more.
            Kept::Removed | Kept::Corrupt => Some(self.at),
        }
    }

    /// Whether it reaches `scope`, within its class and its owner's role.
    #[must_use]
    pub fn allows(&self, scope: &Scope) -> bool {
        let (facts, policy) = (self.facts(), self.policy());
        let bounds = Bounds::of(facts.shape, facts.persons);
        policy
            .class(&facts.shape.class)
            .is_some_and(|class| reach::reaches(bounds, policy, class, facts.standing, scope))
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
        let (facts, policy) = (self.facts(), self.policy());
        let bounds = Bounds::of(facts.shape, facts.persons);
        let class = policy.class(&facts.shape.class);
        class.map_or_else(ScopeSet::none, |class| {
            reach::reach(bounds, policy, class, facts.standing)
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
        let policy = self.policy();
        let class = policy.class(&self.shape().class);
        let below = class.is_some_and(|class| class.tenant_reach == TenantReach::Below);
        let snapshot = class.is_some_and(|class| class.owner_ceiling == OwnerCeiling::Snapshot);
        let principal = match &self.holder().owner {
            Owner::Principal(principal) => principal.clone(),
            Owner::Tenant => key_principal(self.id),
        };
        let role = if snapshot {
            self.shape().owner_role.clone()
        } else {
            self.live_role()
        };
        let tenant = self.holder().tenant.clone();
        let scopes = self.scopes();
        let whole = |role: &Role| scopes.contains(&policy.role_ceiling(role));
        let role = role.filter(whole);
        let actor = Actor::from_key(principal, role, tenant, below).with_scopes(scopes);
        match self.expires_at() {
            Some(end) => actor.with_expiry(end),
            None => actor,
        }
    }

    /// The owner's role if the rows along its path agree on one.
    fn live_role(&self) -> Option<Role> {
        let (first, others) = self.facts().standing.roles.split_first()?;
        others
            .iter()
            .all(|role| role == first)
            .then(|| first.clone())
    }
}

fn key_principal(id: KeyId) -> PrincipalId {
    PrincipalId::new(format!("key:{id}")).unwrap_or(PrincipalId::SYSTEM)
}
