//! Builders of commands that have more parameters than the id of a key.
//!
//! Pure: no I/O and no clock. Each setter parses its argument. The builder keeps the first error, and
//! `into_command` returns that error. A chain of setters therefore needs no `?`, and a [`Command`] contains
//! only parsed values.

use std::time::Duration;

use serde::Serialize;

use super::super::address::AddressAllowlist;
use super::super::id::KeyId;
use super::super::invalid::Invalid;
use super::super::metadata::Metadata;
use super::super::record::{ImportScheme, Reason, Resource, RotationReason};
use super::super::scope::{Scope, ScopeSet};
use super::super::secret::Digest;
use super::super::tenant::TenantId;
use super::super::text::{
    ClassName, Description, Environment, Hint, KeyName, PrincipalId, Purpose, Role,
};
use super::super::time::Timestamp;
use super::super::wire::digest as digest_bytes;
use super::{Command, Expiry, RotationMode};

/// A key to create.
///
/// # Examples
///
/// ```
/// use keyward::{CreateKey, days};
///
/// let draft = CreateKey::new("nightly export").scope("reports:read").expires_in(days(90));
/// ```
#[derive(Clone, Debug, Default, Serialize)]
#[must_use = "a draft creates nothing by itself"]
pub struct CreateKey {
    /// The tenant of the key. Not serialized, because the tenant is a field of the `Request`.
    #[serde(skip)]
    tenant: Option<TenantId>,
    pub(crate) class: Option<ClassName>,
    pub(crate) environment: Option<Environment>,
    /// The name. `None` only if `invalid` holds an error.
    pub(crate) name: Option<KeyName>,
    pub(crate) description: Option<Description>,
    pub(crate) purpose: Option<Purpose>,
    pub(crate) metadata: Metadata,
    pub(crate) owner: NewOwner,
    pub(crate) scopes: ScopeSet,
    pub(crate) allowlist: AddressAllowlist,
    pub(crate) resource: Option<Resource>,
    pub(crate) expiry: Expiry,
    pub(crate) recipient: Option<Recipient>,
    #[serde(skip)]
    invalid: Option<Invalid>,
}

/// The owner of a new key.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub(crate) enum NewOwner {
    /// The caller that creates the key.
    #[default]
    Creator,
    /// The tenant itself.
    Tenant,
    /// A principal, with the role to store for that principal. The role is stored only if the tenant has no
    /// role for the principal yet.
    Principal(PrincipalId, Role),
}

/// The person who receives a secret, and the role that the application states for that person.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct Recipient {
    pub(crate) principal: PrincipalId,
    pub(crate) role: Role,
}

/// Returns the parsed value. Stores an error in `first`, unless `first` already contains an earlier error.
fn parsed<T>(result: Result<T, impl Into<Invalid>>, first: &mut Option<Invalid>) -> Option<T> {
    let note = |error: _| {
        first.get_or_insert_with(|| Into::into(error));
    };
    result.map_err(note).ok()
}

fn parsed_scopes<S: TryInto<Scope, Error: Into<Invalid>>>(
    before: &ScopeSet,
    scopes: impl IntoIterator<Item = S>,
    first: &mut Option<Invalid>,
) -> Option<ScopeSet> {
    let scopes = scopes.into_iter().map(TryInto::try_into);
    let scopes: Vec<_> = scopes.filter_map(|scope| parsed(scope, first)).collect();
    parsed(ScopeSet::new(before.iter().cloned().chain(scopes)), first)
}

impl CreateKey {
    /// Creates a draft of a key with this name, in the actor's own tenant. By default the key has no scopes,
    /// belongs to its creator, and has the default lifetime of its class.
    pub fn new(name: impl TryInto<KeyName, Error: Into<Invalid>>) -> Self {
        let mut key = Self::default();
        key.name = parsed(name.try_into(), &mut key.invalid);
        key
    }

    /// Sets the tenant: the actor's own tenant or a descendant of it.
    pub fn in_tenant(mut self, tenant: TenantId) -> Self {
        self.tenant = Some(tenant);
        self
    }

    /// Sets the key's class. Defaults to the policy's default class.
    pub fn class(mut self, class: impl TryInto<ClassName, Error: Into<Invalid>>) -> Self {
        self.class = parsed(class.try_into(), &mut self.invalid);
        self
    }

    /// Sets the environment. Defaults to the acting key's environment, then to the class's only environment,
    /// then to `live`.
    pub fn environment(
        mut self,
        environment: impl TryInto<Environment, Error: Into<Invalid>>,
    ) -> Self {
        self.environment = parsed(environment.try_into(), &mut self.invalid);
        self
    }

    /// Adds a scope. A key without scopes cannot do anything.
    pub fn scope(self, scope: impl TryInto<Scope, Error: Into<Invalid>>) -> Self {
        self.scopes([scope])
    }

    /// Adds scopes.
    pub fn scopes<S: TryInto<Scope, Error: Into<Invalid>>>(
        mut self,
        scopes: impl IntoIterator<Item = S>,
    ) -> Self {
        let scopes = parsed_scopes(&self.scopes, scopes, &mut self.invalid);
        self.scopes = scopes.unwrap_or_default();
        self
    }

    /// Sets the description, a longer text for people.
    pub fn description(
        mut self,
        description: impl TryInto<Description, Error: Into<Invalid>>,
    ) -> Self {
        self.description = parsed(description.try_into(), &mut self.invalid);
        self
    }

    /// Sets the purpose of the key. A policy may require a purpose.
    pub fn purpose(mut self, purpose: impl TryInto<Purpose, Error: Into<Invalid>>) -> Self {
        self.purpose = parsed(purpose.try_into(), &mut self.invalid);
        self
    }

    /// Sets the application's own name-value pairs.
    pub fn metadata<N: Into<String>, V: Into<String>>(
        mut self,
        pairs: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        self.metadata = parsed(Metadata::new(pairs), &mut self.invalid).unwrap_or_default();
        self
    }

    /// Makes another principal the owner. If the tenant has no role for that principal yet, stores `role`.
    /// The command is refused if the principal's role allows more than the caller's own role.
    pub fn owned_by(mut self, owner: PrincipalId, role: Role) -> Self {
        self.owner = NewOwner::Principal(owner, role);
        self
    }

    /// Sets the person who receives the secret, with that person's role. This role and the owner's current
    /// roles then limit the key permanently. An exception is a recipient who is the owner, with a `role`
    /// equal to the stored role. Such a key follows the owner's stored role when it changes. Only the
    /// application may set a recipient. Without this call, the owner counts as the recipient of a key that
    /// the application creates.
    pub fn delivered_to(mut self, principal: PrincipalId, role: Role) -> Self {
        self.recipient = Some(Recipient { principal, role });
        self
    }

    /// Makes the tenant itself the owner. Only administrators may create such keys.
    pub fn owned_by_tenant(mut self) -> Self {
        self.owner = NewOwner::Tenant;
        self
    }

    /// Sets the networks and addresses from which the key may be used. Defaults to all addresses.
    pub fn allow_addresses<'a>(mut self, entries: impl IntoIterator<Item = &'a str>) -> Self {
        let allowlist = parsed(AddressAllowlist::parse(entries), &mut self.invalid);
        self.allowlist = allowlist.unwrap_or_default();
        self
    }

    /// Links the key to a resource of the application.
    pub fn resource(mut self, resource: Resource) -> Self {
        self.resource = Some(resource);
        self
    }

    /// Sets the lifetime of the key, counted from its creation.
    pub fn expires_in(self, lifetime: Duration) -> Self {
        self.expiry(Expiry::In(lifetime))
    }

    /// Sets the instant at which the key expires.
    pub fn expires_at(self, instant: Timestamp) -> Self {
        self.expiry(Expiry::At(instant))
    }

    /// Lets the key never expire. The command is refused if the class has a maximum lifetime.
    pub fn never_expires(self) -> Self {
        self.expiry(Expiry::Never)
    }

    fn expiry(mut self, expiry: Expiry) -> Self {
        self.expiry = expiry;
        self
    }

    /// Returns the tenant in which to create the key, if it was set.
    #[must_use]
    pub const fn tenant(&self) -> Option<&TenantId> {
        self.tenant.as_ref()
    }

    /// Returns the command that creates the key.
    ///
    /// # Errors
    ///
    /// The error of the first value that could not be parsed.
    pub fn into_command(self) -> Result<Command, Invalid> {
        self.checked().map(Command::Create)
    }

    fn checked(mut self) -> Result<Self, Invalid> {
        self.invalid.take().map_or(Ok(self), Err)
    }
}

/// A key of another system, to import by its digest. Its class must have secret keys.
///
/// Rotating an imported key creates a native successor. The successor keeps the key's class and environment,
/// and its token begins with their prefix.
#[derive(Clone, Debug, Serialize)]
#[must_use = "a draft imports nothing by itself"]
pub struct ImportKey {
    pub(crate) key: CreateKey,
    pub(crate) scheme: ImportScheme,
    #[serde(with = "digest_bytes")]
    pub(crate) digest: Digest,
    pub(crate) hint: Option<Hint>,
}

impl ImportKey {
    /// Checks the values that are set. The methods that set them keep the first error until here, or until
    /// [`into_command`](Self::into_command).
    ///
    /// # Errors
    ///
    /// The error of the first value that could not be parsed.
    pub fn check(&self) -> Result<(), Invalid> {
        self.key.invalid.clone().map_or(Ok(()), Err)
    }

    /// Creates an import of the token that has this SHA-256 digest. A token in keyward's own format never
    /// verifies as an imported key. To move such a key from another store, move its record instead.
    pub const fn sha256(digest: Digest, key: CreateKey) -> Self {
        Self {
            key,
            scheme: ImportScheme::Sha256,
            digest,
            hint: None,
        }
    }

    /// Sets the part of the token that lists show. Defaults to the start of the digest.
    pub fn hint(mut self, hint: Hint) -> Self {
        self.hint = Some(hint);
        self
    }

    /// Returns the tenant in which to import the key, if it was set.
    #[must_use]
    pub const fn tenant(&self) -> Option<&TenantId> {
        self.key.tenant()
    }

    /// Returns the command that imports the key.
    ///
    /// # Errors
    ///
    /// The error of the first value that could not be parsed.
    pub fn into_command(mut self) -> Result<Command, Invalid> {
        self.key = self.key.checked()?;
        Ok(Command::Import(self))
    }
}

/// Changes to a key. Fields that are not set stay unchanged.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[must_use = "a draft changes nothing by itself"]
pub struct UpdateKey {
    pub(crate) name: Option<KeyName>,
    /// `Some(None)` removes the description.
    pub(crate) description: Option<Option<Description>>,
    /// `Some(None)` removes the purpose.
    pub(crate) purpose: Option<Option<Purpose>>,
    pub(crate) metadata: Option<Metadata>,
    pub(crate) scopes: Option<ScopeSet>,
    pub(crate) allowlist: Option<AddressAllowlist>,
    /// The new expiry. [`Expiry::Class`] means the default lifetime of the class, counted from the key's
    /// creation.
    pub(crate) expiry: Option<Expiry>,
    #[serde(skip)]
    pub(crate) invalid: Option<Invalid>,
}

impl UpdateKey {
    /// Returns an update without changes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a new name.
    pub fn name(mut self, name: impl TryInto<KeyName, Error: Into<Invalid>>) -> Self {
        self.name = parsed(name.try_into(), &mut self.invalid);
        self
    }

    /// Sets a new description.
    pub fn description(
        mut self,
        description: impl TryInto<Description, Error: Into<Invalid>>,
    ) -> Self {
        self.description = parsed(description.try_into(), &mut self.invalid).map(Some);
        self
    }

    /// Removes the description.
    pub fn no_description(mut self) -> Self {
        self.description = Some(None);
        self
    }

    /// Sets a new purpose.
    pub fn purpose(mut self, purpose: impl TryInto<Purpose, Error: Into<Invalid>>) -> Self {
        self.purpose = parsed(purpose.try_into(), &mut self.invalid).map(Some);
        self
    }

    /// Removes the purpose. The command is refused if the policy requires a purpose.
    pub fn no_purpose(mut self) -> Self {
        self.purpose = Some(None);
        self
    }

    /// Replaces all metadata.
    pub fn metadata<N: Into<String>, V: Into<String>>(
        mut self,
        pairs: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        self.metadata = parsed(Metadata::new(pairs), &mut self.invalid);
        self
    }

    /// Replaces all scopes.
    pub fn scopes<S: TryInto<Scope, Error: Into<Invalid>>>(
        mut self,
        scopes: impl IntoIterator<Item = S>,
    ) -> Self {
        self.scopes = parsed_scopes(&ScopeSet::none(), scopes, &mut self.invalid);
        self
    }

    /// Replaces all networks and addresses from which the key may be used.
    pub fn allow_addresses<'a>(mut self, entries: impl IntoIterator<Item = &'a str>) -> Self {
        self.allowlist = parsed(AddressAllowlist::parse(entries), &mut self.invalid);
        self
    }

    /// Sets a new expiry.
    pub fn expiry(mut self, expiry: Expiry) -> Self {
        self.expiry = Some(expiry);
        self
    }

    /// Returns the command that changes `key`.
    ///
    /// # Errors
    ///
    /// The error of the first value that could not be parsed.
    pub fn into_command(mut self, key: KeyId) -> Result<Command, Invalid> {
        let change = self.invalid.take().map_or(Ok(self), Err)?;
        Ok(Command::Update { key, change })
    }
}

/// The reason of a revocation, with a flag for a person's confirmation.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct RevokeKey {
    /// The reason.
    pub reason: Reason,
    /// True if a person confirmed the revocation. A class may require a confirmation.
    pub confirmed: bool,
}

impl From<Reason> for RevokeKey {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            confirmed: false,
        }
    }
}

impl Reason {
    /// Returns a revocation for this reason that a person confirmed.
    #[must_use]
    pub const fn confirmed(self) -> RevokeKey {
        RevokeKey {
            reason: self,
            confirmed: true,
        }
    }
}

/// The confirmation that a class may require before a key is deleted.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct DeleteKey {
    /// The text that was typed to confirm the deletion.
    pub typed: Option<String>,
    /// The number of objects that still refer to the key, as counted by the application. `None` if the
    /// application did not count them.
    pub references: Option<u32>,
}

impl DeleteKey {
    /// Creates a deletion without any confirmation.
    #[must_use]
    pub fn plain() -> Self {
        Self::default()
    }

    /// Creates a deletion that a person confirmed by typing this text.
    #[must_use]
    pub fn typed(text: impl Into<String>) -> Self {
        Self {
            typed: Some(text.into()),
            references: None,
        }
    }

    /// Sets the number of objects that still refer to the key.
    #[must_use]
    pub const fn with_references(mut self, references: u32) -> Self {
        self.references = Some(references);
        self
    }
}

/// The mode and the reason of a rotation.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct RotateKey {
    pub(crate) mode: RotationMode,
    pub(crate) reason: RotationReason,
    pub(crate) no_later_than: Option<Duration>,
    pub(crate) recipient: Option<Recipient>,
}

impl RotateKey {
    /// Ends the old key immediately.
    #[must_use]
    pub fn immediate() -> Self {
        RotationMode::Immediate.into()
    }

    /// Lets the old key work for `grace`, but not beyond its own expiry.
    #[must_use]
    pub fn grace(grace: Duration) -> Self {
        RotationMode::Grace(grace).into()
    }

    /// Lets the old key work until the successor is first used, and for `grace` after that.
    #[must_use]
    pub fn on_first_use(grace: Duration) -> Self {
        RotationMode::OnFirstUse(grace).into()
    }

    /// Sets the latest end of the old key, counted from the rotation. The old key ends then even if its
    /// successor is never used. Must be at least one second, and at most
    /// [`MAX_GRACE`](crate::policy::Rotation::MAX_GRACE), or
    /// [`MAX_COMPROMISED_WAIT`](crate::policy::Rotation::MAX_COMPROMISED_WAIT) for a compromised key.
    ///
    /// Defaults to the policy's [`first_use_wait`](crate::policy::PolicySpec::first_use_wait). For a
    /// compromised key there is no default, so the wait must be set. The command is refused in any mode other
    /// than [`on_first_use`](Self::on_first_use).
    #[must_use]
    pub const fn no_later_than(mut self, wait: Duration) -> Self {
        self.no_later_than = Some(wait);
        self
    }

    /// Sets the reason.
    #[must_use]
    pub const fn because(mut self, reason: RotationReason) -> Self {
        self.reason = reason;
        self
    }

    /// Sets the person who receives the successor's secret, and that person's role, as
    /// [`CreateKey::delivered_to`] does.
    #[must_use]
    pub fn delivered_to(mut self, principal: PrincipalId, role: Role) -> Self {
        self.recipient = Some(Recipient { principal, role });
        self
    }
}

impl From<RotationMode> for RotateKey {
    fn from(mode: RotationMode) -> Self {
        Self {
            mode,
            ..Self::default()
        }
    }
}

impl From<RotationReason> for RotateKey {
    fn from(reason: RotationReason) -> Self {
        Self::default().because(reason)
    }
}
