//! What people see of a key: everything that a list or a details page shows.
//!
//! Pure.

use serde::Serialize;

use super::address::AddressAllowlist;
use super::id::KeyId;
use super::metadata::Metadata;
use super::owner::Owner;
use super::policy::Policy;
use super::record::{
    KeyRecord, KeyState, LastAction, Predecessor, Reason, Resource, Status, Succession, Visibility,
};
use super::scope::ScopeSet;
use super::secret::Fingerprint;
use super::stamp::Stamp;
use super::tenant::TenantId;
use super::text::{ClassName, Description, Environment, Hint, KeyName, Purpose, Role, Stage};
use super::time::Timestamp;

/// A key as people see it at one instant. Holds neither secret nor digest.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct KeyInfo {
    /// The public id.
    pub id: KeyId,
    /// The tenant it belongs to.
    pub tenant: TenantId,
    /// Its kind.
    pub class: ClassName,
    /// The label of a kind that is not final yet (rule A1-28).
    pub stage: Option<Stage>,
    /// Whether it authenticates or identifies.
    pub visibility: Visibility,
    /// Where it may be used.
    pub environment: Environment,
    /// What people call it.
    pub name: KeyName,
    /// Longer words about it.
    pub description: Option<Description>,
    /// What it is for.
    pub purpose: Option<Purpose>,
    /// The host's own words.
    pub metadata: Metadata,
    /// To whom it is linked.
    pub owner: Owner,
    /// The owner's role when the key was created.
    pub owner_role: Option<Role>,
    /// What it may do, before class and owner narrow it.
    pub scopes: ScopeSet,
    /// From where it may be used.
    pub allowlist: AddressAllowlist,
    /// What it belongs to in the host's world.
    pub resource: Option<Resource>,
    /// When and by whom it was created.
    pub created: Stamp,
    /// When and by whom it was last changed.
    pub updated: Stamp,
    /// What that change was (rule A1-05).
    pub last_action: LastAction,
    /// When it ends; `None` for never.
    pub expires_at: Option<Timestamp>,
    /// What it is at the instant asked for.
    pub status: Status,
    /// When, by whom and why it was revoked.
    pub revoked: Option<(Stamp, Reason)>,
    /// Whether it is the tenant's legacy key.
    pub legacy: bool,
    /// The key that it replaces.
    pub predecessor: Option<Predecessor>,
    /// The key that replaces it.
    pub succession: Option<Succession>,
    /// What a person sees of its text.
    pub hint: Hint,
    /// The mark that finds it.
    pub fingerprint: Fingerprint,
    /// The whole text of a publishable key; `None` for secret keys, always.
    pub published: Option<String>,
}

impl KeyInfo {
    /// What people see of `record` at `now`.
    #[must_use]
    pub fn new(record: KeyRecord, policy: &Policy, now: Timestamp) -> Self {
        let status = record.status(now);
        let KeyRecord {
            id,
            tenant,
            class,
            visibility,
            environment,
            prefix: _,
            name,
            description,
            purpose,
            metadata,
            owner,
            owner_role,
            scopes,
            allowlist,
            resource,
            created,
            updated,
            last_action,
            expires_at,
            state,
            legacy,
            predecessor,
            succession,
            hint,
            fingerprint,
            credential: _,
            published,
        } = record;
        let stage = policy.class(&class).and_then(|class| class.stage.clone());
        let revoked = match state {
            KeyState::Revoked { stamp, reason } => Some((stamp, reason)),
            KeyState::Enabled | KeyState::Disabled(_) => None,
        };
        Self {
            id,
            tenant,
            class,
            stage,
            visibility,
            environment,
            name,
            description,
            purpose,
            metadata,
            owner,
            owner_role,
            scopes,
            allowlist,
            resource,
            created,
            updated,
            last_action,
            expires_at,
            status,
            revoked,
            legacy,
            predecessor,
            succession,
            hint,
            fingerprint,
            published,
        }
    }
}
