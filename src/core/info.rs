//! What people see of a key: everything that a list or a details page shows.
//!
//! Pure.

use std::collections::BTreeSet;

use serde::Serialize;

use super::address::AddressAllowlist;
use super::id::KeyId;
use super::metadata::Metadata;
use super::owner::Standing;
use super::policy::Policy;
use super::principal::Owner;
use super::reach::{self, Bounds};
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
    /// The roles that limited whoever received the secret; empty if the owner received it in person.
    pub bound: BTreeSet<Role>,
    /// Whether it may manage keys by its roles.
    pub manages: bool,
    /// Its scopes, before its class, its bound and its owner narrow them.
    pub scopes: ScopeSet,
    /// The scopes that it effectively reaches at the instant asked for, while it works.
    pub reach: ScopeSet,
    /// From where it may be used.
    pub allowlist: AddressAllowlist,
    /// What it belongs to in the host's world.
    pub resource: Option<Resource>,
    /// The instant at which it was first reported as found in the open.
    pub exposed_at: Option<Timestamp>,
    /// The key that created it, if a key did; for a successor, the one that created the first key of its
    /// chain.
    pub created_by_key: Option<KeyId>,
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
    /// What people see of `record` at `now`, whose owner stands as `standing` says.
    #[must_use]
    pub fn new(record: KeyRecord, policy: &Policy, standing: &Standing, now: Timestamp) -> Self {
        let status = record.status(now);
        let created_by_key = record.created_by_key();
        let reach = policy
            .class(&record.class)
            .map(|class| reach::scopes(Bounds::of_record(&record), policy, class, standing));
        let reach = reach.unwrap_or_default();
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
            bound,
            manages,
            scopes,
            allowlist,
            resource,
            exposed_at,
            makers: _,
            lineage: _,
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
            bound,
            manages,
            scopes,
            reach,
            allowlist,
            resource,
            exposed_at,
            created_by_key,
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
