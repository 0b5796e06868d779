//! The grant: what a verified key may do.

#[cfg(feature = "http")]
use std::any::Any;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::Guard;

use super::snapshot::Snapshot;
use crate::core::actor::{ActingKey, Actor};
use crate::core::id::KeyId;
use crate::core::owner::OwnerStatus;
use crate::core::policy::{Policies, Policy, TenantReach};
use crate::core::principal::Owner;
use crate::core::reach::{self, Bounds};
use crate::core::record::{KeyType, Resource};
use crate::core::rejection::VerifyError;
use crate::core::scope::{Scope, ScopeSet};
use crate::core::subject::{KeyOwner, KeyTraits, Lifecycle, LifecyclePhase};
use crate::core::tenant::TenantId;
use crate::core::text::{ClassName, Environment};
use crate::core::time::Timestamp;
use crate::replica::{AttributeIds, Attributes, OwnerRef, RowState};

/// A verified key, as it was at the moment of verification. Contains no secret.
///
/// Meant for one request: a new grant borrows the index that verified it, and keeps that version of the index in
/// memory. To keep a grant for longer, [`detach`](Self::detach) it. The key's name, metadata and description are not in a grant:
/// [`Keyward::key_for_grant`](crate::Keyward::key_for_grant) reads them from the store.
pub struct Grant {
    id: KeyId,
    at: Timestamp,
    /// The address that the key was verified for, if known.
    address: Option<IpAddr>,
    source: GrantSource,
    /// The context that the HTTP layer keeps with the grant of a request.
    #[cfg(feature = "http")]
    attached: Option<Arc<dyn Any + Send + Sync>>,
}

/// The source of the key's other attributes.
enum GrantSource {
    /// The snapshot that the key was verified against.
    Index {
        snapshot: Guard<Arc<Snapshot>>,
        row: u32,
        attribute_ids: AttributeIds,
        status: u32,
    },
    /// The key's stored record, if the key was read from the store.
    Record(Arc<RecordAttributes>),
}

/// An accepted key, and its position in the index.
pub(super) struct Accepted {
    pub(super) id: KeyId,
    pub(super) row: u32,
    pub(super) attribute_ids: AttributeIds,
    /// The number under which the attribute tables store the owner's status.
    pub(super) status: u32,
    pub(super) at: Timestamp,
    pub(super) address: Option<IpAddr>,
    /// The owner's status in the tenant that the need names, if it differs from the status in the key's own
    /// tenant.
    pub(super) reached: Option<Box<OwnerStatus>>,
}

/// The fields of a stored record that decide what a key may do.
pub(super) struct RecordAttributes {
    pub(super) traits: KeyTraits,
    pub(super) key_owner: KeyOwner,
    pub(super) lifecycle: Lifecycle,
    pub(super) status: OwnerStatus,
    pub(super) policies: Arc<Policies>,
}

impl Clone for Grant {
    fn clone(&self) -> Self {
        let source = match &self.source {
            GrantSource::Index {
                snapshot,
                row,
                attribute_ids,
                status,
            } => GrantSource::Index {
                snapshot: Guard::from_inner(Arc::clone(snapshot)),
                row: *row,
                attribute_ids: *attribute_ids,
                status: *status,
            },
            GrantSource::Record(record) => GrantSource::Record(record.clone()),
        };
        let Self {
            id, at, address, ..
        } = *self;
        Self {
            id,
            at,
            address,
            source,
            #[cfg(feature = "http")]
            attached: self.attached.clone(),
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
            attribute_ids,
            status,
            at,
            address,
            reached,
        } = accepted;
        let grant = |snapshot| Self {
            id,
            at,
            address,
            source: GrantSource::Index {
                snapshot,
                row,
                attribute_ids,
                status,
            },
            #[cfg(feature = "http")]
            attached: None,
        };
        // Two grants in two branches, so that the usual one is built where the caller needs it.
        match reached {
            None => grant(snapshot),
            Some(reached) => grant(snapshot).with_status(*reached),
        }
    }

    /// Returns the grant with its own copy of all that it needs, so that it keeps no version of the index in memory.
    /// From now on, [`expires_at`](Self::expires_at) returns the time that this node knows at this moment.
    ///
    /// Allocates, unless the grant is detached already. Clones of a detached grant share the copy.
    #[must_use]
    pub fn detach(self) -> Self {
        let status = self.attributes().status.clone();
        self.with_status(status)
    }

    /// Returns the grant detached, with `status`, the owner's status in the tenant that the need names.
    #[cold]
    fn with_status(self, status: OwnerStatus) -> Self {
        let GrantSource::Index { snapshot, row, .. } = &self.source else {
            return self;
        };
        let lifecycle = match snapshot.view.row_state(*row) {
            RowState::Key(lifecycle) => lifecycle,
            // The key was removed since its verification, or its row became unreadable. So the key ends now.
            RowState::Removed | RowState::Corrupt => Lifecycle {
                phase: LifecyclePhase::Disabled,
                created_at: self.at,
                expires_at: Some(self.at),
                awaits_first_use: false,
            },
        };
        let record = RecordAttributes {
            traits: self.traits().clone(),
            key_owner: self.key_owner().clone(),
            lifecycle,
            status,
            policies: snapshot.policies.clone(),
        };
        let source = GrantSource::Record(Arc::new(record));
        Self { source, ..self }
    }

    pub(super) fn of_record(
        id: KeyId,
        record: RecordAttributes,
        at: Timestamp,
        address: Option<IpAddr>,
    ) -> Self {
        let source = GrantSource::Record(Arc::new(record));
        Self {
            id,
            at,
            address,
            source,
            #[cfg(feature = "http")]
            attached: None,
        }
    }

    #[cfg(feature = "http")]
    pub(crate) fn attach(&mut self, data: Arc<dyn Any + Send + Sync>) {
        self.attached = Some(data);
    }

    #[cfg(feature = "http")]
    pub(crate) const fn attached(&self) -> Option<&Arc<dyn Any + Send + Sync>> {
        self.attached.as_ref()
    }

    fn attributes(&self) -> Attributes<'_> {
        match &self.source {
            GrantSource::Index {
                snapshot,
                attribute_ids,
                status,
                ..
            } => {
                let attributes = snapshot.view.attributes_with(*attribute_ids, *status);
                attributes
                    .expect("a snapshot keeps every attribute entry that a lookup in it returned")
            }
            GrantSource::Record(record) => Attributes {
                traits: &record.traits,
                key_owner: OwnerRef::Direct(&record.key_owner),
                persons: record.key_owner.is_person(),
                status: &record.status,
                status_id: 0,
            },
        }
    }

    fn traits(&self) -> &KeyTraits {
        self.attributes().traits
    }

    fn key_owner(&self) -> &KeyOwner {
        self.attributes().key_owner.get()
    }

    fn policy(&self) -> &Policy {
        let policies = match &self.source {
            GrantSource::Index { snapshot, .. } => &snapshot.policies,
            GrantSource::Record(record) => &record.policies,
        };
        policies.of_lazy(|| &self.key_owner().tenant)
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
        &self.key_owner().tenant
    }

    /// Returns the key's class.
    #[must_use]
    pub fn class(&self) -> &ClassName {
        &self.traits().class
    }

    /// Returns whether the key authenticates or only identifies.
    #[must_use]
    pub fn key_type(&self) -> KeyType {
        self.traits().key_type
    }

    /// Returns the environment in which the key may be used.
    #[must_use]
    pub fn environment(&self) -> &Environment {
        &self.traits().environment
    }

    /// Returns the key's owner.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.key_owner().owner
    }

    /// Returns the resource of the host application that the key belongs to.
    #[must_use]
    pub fn resource(&self) -> Option<&Resource> {
        self.traits().resource.as_ref()
    }

    /// Returns the time at which the key expires, as far as this node knows at the moment of the call; `None`
    /// for never.
    #[must_use]
    pub fn expires_at(&self) -> Option<Timestamp> {
        let state = match &self.source {
            GrantSource::Index { snapshot, row, .. } => snapshot.view.row_state(*row),
            GrantSource::Record(record) => RowState::Key(record.lifecycle),
        };
        match state {
            RowState::Key(lifecycle) => lifecycle.expires_at,
            // The key was removed since its verification, or its row became unreadable. So the key ends now.
            RowState::Removed | RowState::Corrupt => Some(self.at),
        }
    }

    /// Returns whether the key reaches `scope`, within its class and its owner's role.
    #[must_use]
    pub fn allows(&self, scope: &Scope) -> bool {
        let (attributes, policy) = (self.attributes(), self.policy());
        let bounds = Bounds::of(attributes.traits, attributes.persons);
        policy
            .class(&attributes.traits.class)
            .is_some_and(|class| reach::reaches(bounds, policy, class, attributes.status, scope))
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
        let (attributes, policy) = (self.attributes(), self.policy());
        let bounds = Bounds::of(attributes.traits, attributes.persons);
        let class = policy.class(&attributes.traits.class);
        class.map_or_else(ScopeSet::none, |class| {
            reach::scopes(bounds, policy, class, attributes.status)
        })
    }

    /// Returns an actor that manages keys on behalf of this key.
    ///
    /// Each command is checked against the state of the key and its owner at the moment of commit. The
    /// command is denied if, by that moment, the key was revoked, disabled, narrowed or expired, or its owner
    /// was removed. A command's effect never exceeds the key on any [`Dimension`](crate::key::Dimension).
    ///
    /// A key may manage only those keys that the roles of both its owner and the recipient of its secret may
    /// manage. The key itself must also reach everything that these roles reach. For example, a key limited
    /// to reading reports cannot close a tenant, even if its owner may. Tenant-owned keys and publishable
    /// keys cannot manage keys.
    #[must_use]
    pub fn actor(&self) -> Actor {
        let class = self.policy().class(&self.traits().class);
        let descendants = class.is_some_and(|class| class.tenant_reach == TenantReach::Descendants);
        let key = ActingKey {
            id: self.id,
            owner: self.key_owner().owner.clone(),
            address: self.address,
        };
        let tenant = self.key_owner().tenant.clone();
        let actor = Actor::from_key(key, tenant, descendants).with_scopes(self.scopes());
        match self.expires_at() {
            Some(end) => actor.with_expiry(end),
            None => actor,
        }
    }
}
