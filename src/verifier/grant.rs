//! The grant: what a verified key may do.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::Guard;

use super::Snapshot;
use crate::core::actor::{ActingKey, Actor};
use crate::core::id::KeyId;
use crate::core::owner::OwnerStatus;
use crate::core::policy::{Policies, Policy, TenantReach};
use crate::core::principal::Owner;
use crate::core::reach::{self, Bounds};
use crate::core::record::{Resource, Visibility};
use crate::core::rejection::VerifyError;
use crate::core::scope::{Scope, ScopeSet};
use crate::core::subject::{Course, Holder, Life, Shape};
use crate::core::tenant::TenantId;
use crate::core::text::{ClassName, Environment};
use crate::core::time::Timestamp;
use crate::replica::{Facts, HolderAt, Kept, Parts};

/// A verified key, as it was at that moment. Holds no secret.
///
/// Meant for one request. A grant keeps the index that it was verified against in memory, so copy
/// what you need for longer. The name, metadata and description are not in it:
/// [`Keyward::key_for_grant`](crate::Keyward::key_for_grant) reads them from the store.
pub struct Grant {
    id: KeyId,
    at: Timestamp,
    /// The address that the key was verified for, if known.
    address: Option<IpAddr>,
    of: Of,
}

/// The source of the key's other attributes.
enum Of {
    /// The snapshot that the key was verified against.
    Index {
        snapshot: Guard<Arc<Snapshot>>,
        row: u32,
        parts: Parts,
        standing: u32,
    },
    /// The key's stored record, if the key was read from the store.
    Record(Arc<Taken>),
}

/// The place of an accepted key in an index.
pub(super) struct Accepted {
    pub(super) id: KeyId,
    pub(super) row: u32,
    pub(super) parts: Parts,
    /// The number of the owner's status in the index.
    pub(super) standing: u32,
    pub(super) at: Timestamp,
    pub(super) address: Option<IpAddr>,
    /// The owner's status in the tenant that the key reached into, if it differs from the status in
    /// the key's own tenant.
    pub(super) reached: Option<Box<OwnerStatus>>,
}

/// The parts of a stored record that decide what a key may do.
pub(super) struct Taken {
    pub(super) shape: Shape,
    pub(super) holder: Holder,
    pub(super) course: Course,
    pub(super) standing: OwnerStatus,
    pub(super) policies: Arc<Policies>,
}

impl Clone for Grant {
    fn clone(&self) -> Self {
        let of = match &self.of {
            Of::Index {
                snapshot,
                row,
                parts,
                standing,
            } => Of::Index {
                snapshot: Guard::from_inner(Arc::clone(snapshot)),
                row: *row,
                parts: *parts,
                standing: *standing,
            },
            Of::Record(taken) => Of::Record(taken.clone()),
        };
        let Self {
            id, at, address, ..
        } = *self;
        Self {
            id,
            at,
            address,
            of,
        }
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
    pub(super) fn of_index(snapshot: Guard<Arc<Snapshot>>, accepted: Accepted) -> Self {
        let Accepted {
            id,
            row,
            parts,
            standing,
            at,
            address,
            reached,
        } = accepted;
        let of = Of::Index {
            snapshot,
            row,
            parts,
            standing,
        };
        let grant = Self {
            id,
            at,
            address,
            of,
        };
        match reached {
            Some(reached) => grant.standing_as(*reached),
            None => grant,
        }
    }

    /// Returns the grant with `standing`, the status of the key's owner in the tenant that the key
    /// reached into.
    #[cold]
    fn standing_as(self, standing: OwnerStatus) -> Self {
        let Of::Index { snapshot, row, .. } = &self.of else {
            return self;
        };
        let course = match snapshot.view.kept(*row) {
            Kept::Known(course) => course,
            // The key was removed since, or its row became unreadable, so the key ends now.
            Kept::Removed | Kept::Corrupt => Course {
                life: Life::Disabled,
                created_at: self.at,
                expires_at: Some(self.at),
                awaits_first_use: false,
            },
        };
        let taken = Taken {
            shape: self.shape().clone(),
            holder: self.holder().clone(),
            course,
            standing,
            policies: snapshot.policies.clone(),
        };
        let of = Of::Record(Arc::new(taken));
        Self { of, ..self }
    }

    pub(super) fn of_record(
        id: KeyId,
        taken: Taken,
        at: Timestamp,
        address: Option<IpAddr>,
    ) -> Self {
        let of = Of::Record(Arc::new(taken));
        Self {
            id,
            at,
            address,
            of,
        }
    }

    fn facts(&self) -> Facts<'_> {
        match &self.of {
            Of::Index {
                snapshot,
                parts,
                standing,
                ..
            } => {
                let facts = snapshot.view.facts_with(*parts, *standing);
                facts.expect("a snapshot owns every shape and holder that it hands out")
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
            Of::Index { snapshot, .. } => &snapshot.policies,
            Of::Record(taken) => &taken.policies,
        };
        policies.of_whose(|| &self.holder().tenant)
    }

    /// Returns the key's public id, which may be logged.
    #[must_use]
    pub fn key_id(&self) -> KeyId {
        self.id
    }

    /// Returns the key's tenant. Act on this tenant, never on one that the request names, unless
    /// [`Need::for_tenant`](crate::Need::for_tenant) was checked.
    #[must_use]
    pub fn tenant(&self) -> &TenantId {
        &self.holder().tenant
    }

    /// Returns the key's class.
    #[must_use]
    pub fn class(&self) -> &ClassName {
        &self.shape().class
    }

    /// Returns whether the key authenticates or only identifies.
    #[must_use]
    pub fn visibility(&self) -> Visibility {
        self.shape().visibility
    }

    /// Returns the environment in which the key may be used.
    #[must_use]
    pub fn environment(&self) -> &Environment {
        &self.shape().environment
    }

    /// Returns the key's owner.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.holder().owner
    }

    /// Returns the host's resource that the key belongs to.
    #[must_use]
    pub fn resource(&self) -> Option<&Resource> {
        self.shape().resource.as_ref()
    }

    /// Returns the time at which the key expires, as far as is known now; `None` for never.
    #[must_use]
    pub fn expires_at(&self) -> Option<Timestamp> {
        let kept = match &self.of {
            Of::Index { snapshot, row, .. } => snapshot.view.kept(*row),
            Of::Record(taken) => Kept::Known(taken.course),
        };
        match kept {
            Kept::Known(course) => course.expires_at,
            // The key was removed since, or its row became unreadable, so the key ends now.
            Kept::Removed | Kept::Corrupt => Some(self.at),
        }
    }

    /// Returns whether the key reaches `scope`, within its class and its owner's role.
    #[must_use]
    pub fn allows(&self, scope: &Scope) -> bool {
        let (facts, policy) = (self.facts(), self.policy());
        let bounds = Bounds::of(facts.shape, facts.persons);
        policy
            .class(&facts.shape.class)
            .is_some_and(|class| reach::reaches(bounds, policy, class, facts.standing, scope))
    }

    /// Checks that the key reaches `scope`.
    ///
    /// # Errors
    ///
    /// [`VerifyError::MissingScope`].
    pub fn require(&self, scope: &Scope) -> Result<(), VerifyError> {
        if self.allows(scope) {
            return Ok(());
        }
        Err(VerifyError::MissingScope {
            key: self.key_id(),
            scope: scope.clone(),
        })
    }

    /// Returns every scope that the key reaches.
    #[must_use]
    pub fn scopes(&self) -> ScopeSet {
        let (facts, policy) = (self.facts(), self.policy());
        let bounds = Bounds::of(facts.shape, facts.persons);
        let class = policy.class(&facts.shape.class);
        class.map_or_else(ScopeSet::none, |class| {
            reach::scopes(bounds, policy, class, facts.standing)
        })
    }

    /// Returns the actor that manages keys with this key.
    ///
    /// The actor names the key. A command is judged by the state of the key and its owner at the
    /// moment of commit. A key that was revoked, disabled, narrowed or expired since then can do
    /// nothing, nor can a key whose owner was removed. The effect of a command stays within the key
    /// on every [`Dimension`](crate::key::Dimension).
    ///
    /// A key manages keys by the roles of its owner and of the recipient of its secret, and only if
    /// the key reaches everything that these roles do. A key narrowed to reading reports cannot
    /// close a tenant, even if its owner may. A tenant-owned key and a publishable key manage
    /// nothing.
    #[must_use]
    pub fn actor(&self) -> Actor {
        let class = self.policy().class(&self.shape().class);
        let descendants = class.is_some_and(|class| class.tenant_reach == TenantReach::Descendants);
        let key = ActingKey {
            id: self.id,
            owner: self.holder().owner.clone(),
            address: self.address,
        };
        let tenant = self.holder().tenant.clone();
        let actor = Actor::from_key(key, tenant, descendants).with_scopes(self.scopes());
        match self.expires_at() {
            Some(end) => actor.with_expiry(end),
            None => actor,
        }
    }
}
