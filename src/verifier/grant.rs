//! What a verified key stands for.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::Guard;

use super::Pinned;
use crate::core::actor::{ActingKey, Actor};
use crate::core::id::KeyId;
use crate::core::owner::Standing;
use crate::core::policy::{Policies, Policy, TenantReach};
use crate::core::principal::Owner;
use crate::core::reach::{self, Bounds};
use crate::core::record::{Resource, Visibility};
use crate::core::rejection::Rejection;
use crate::core::scope::{Scope, ScopeSet};
use crate::core::subject::{Course, Holder, Life, Shape};
use crate::core::tenant::TenantId;
use crate::core::text::{ClassName, Environment};
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
    /// The address it was verified from, if that was known.
    address: Option<IpAddr>,
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
    pub(super) address: Option<IpAddr>,
    /// The standing of its holder in the tenant that the key reached into, if not as at home.
    pub(super) reached: Option<Box<Standing>>,
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
    pub(super) fn of_index(pinned: Guard<Arc<Pinned>>, accepted: Accepted) -> Self {
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
            pinned,
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

    /// The same key, whose holder stands otherwise where it reached than at home.
    #[cold]
    fn standing_as(self, standing: Standing) -> Self {
        let Of::Index { pinned, row, .. } = &self.of else {
            return self;
        };
        let course = match pinned.view.kept(*row) {
            Kept::Known(course) => course,
            // It was removed since, or cannot be read any more: it ends now.
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
            policies: pinned.policies.clone(),
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
            reach::scopes(bounds, policy, class, facts.standing)
        })
    }

    /// Returns the actor that manages keys with this key.
    ///
    /// It names the key, and every command that it gives is judged by how that key and its owner stand
    /// when the command commits: a key that was revoked, disabled, narrowed or expired since does
    /// nothing, and so does one whose owner was removed. What comes of a command is within the key on
    /// every [`Dimension`](crate::Dimension).
    ///
    /// A key manages by the roles of its owner and of whoever received its secret, and only if it
    /// reaches all that these roles do: a key that was narrowed to reading reports does not close a
    /// tenant, though its owner may. A key that belongs to its tenant, and a publishable key, manage
    /// nothing.
    #[must_use]
    pub fn actor(&self) -> Actor {
        let class = self.policy().class(&self.shape().class);
        let descendants = class.is_some_and(|class| class.tenant_reach == TenantReach::Below);
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
