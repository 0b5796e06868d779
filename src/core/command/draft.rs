//! What callers write: drafts of commands, from plain text and numbers.
//!
//! A draft keeps the first value it could not parse, and refuses as a whole when it is used, so that
//! chains of calls need no `?`.

use std::time::Duration;

use serde::Serialize;

use super::super::address::AddressAllowlist;
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
use super::{Command, Expiry, KeySpec, OwnerSpec, Recipient, RotationMode, UpdateSpec};

/// A key to be created.
///
/// # Examples
///
/// ```
/// use keyward::{NewKey, days};
///
/// let draft = NewKey::new("nightly export").scope("reports:read").expires_in(days(90));
/// ```
#[derive(Clone, Debug)]
#[must_use = "a draft creates nothing by itself"]
pub struct NewKey {
    tenant: Option<TenantId>,
    name: Option<KeyName>,
    scopes: Vec<Scope>,
    spec: Optional,
    invalid: Option<Invalid>,
}

#[derive(Clone, Debug, Default)]
struct Optional {
    class: Option<ClassName>,
    environment: Option<Environment>,
    description: Option<Description>,
    purpose: Option<Purpose>,
    metadata: Metadata,
    owner: OwnerSpec,
    allowlist: AddressAllowlist,
    resource: Option<Resource>,
    expiry: Expiry,
    recipient: Option<Recipient>,
}

fn parse<T, V>(value: V, invalid: &mut Option<Invalid>) -> Option<T>
where
    V: TryInto<T>,
    V::Error: Into<Invalid>,
{
    match value.try_into() {
        Ok(value) => Some(value),
        Err(error) => {
            invalid.get_or_insert(error.into());
            None
        }
    }
}

fn keep<T>(result: Result<T, Invalid>, invalid: &mut Option<Invalid>) -> Option<T> {
    result.map_err(|error| invalid.get_or_insert(error)).ok()
}

impl NewKey {
    /// A key of this name, in the actor's own tenant, with no scopes, owned by its creator, with
    /// the lifetime that its class says.
    pub fn new<N>(name: N) -> Self
    where
        N: TryInto<KeyName>,
        N::Error: Into<Invalid>,
    {
        let mut invalid = None;
        let name = parse(name, &mut invalid);
        Self {
            tenant: None,
            name,
            scopes: Vec::new(),
            spec: Optional::default(),
            invalid,
        }
    }

    /// Puts the key in a tenant below the actor's own.
    pub fn in_tenant(mut self, tenant: TenantId) -> Self {
        self.tenant = Some(tenant);
        self
    }

    /// Sets its kind. Defaults to the policy's default class.
    pub fn class<C>(mut self, class: C) -> Self
    where
        C: TryInto<ClassName>,
        C::Error: Into<Invalid>,
    {
        self.spec.class = parse(class, &mut self.invalid);
        self
    }

    /// Sets where it may be used. Defaults to the environment of the key that creates it, if one does,
    /// or to the class's only environment, or else to `live`.
    pub fn environment<E>(mut self, environment: E) -> Self
    where
        E: TryInto<Environment>,
        E::Error: Into<Invalid>,
    {
        self.spec.environment = parse(environment, &mut self.invalid);
        self
    }

    /// Adds a scope. Without any, the key may do nothing.
    pub fn scope<S>(mut self, scope: S) -> Self
    where
        S: TryInto<Scope>,
        S::Error: Into<Invalid>,
    {
        self.scopes.extend(parse(scope, &mut self.invalid));
        self
    }

    /// Adds scopes.
    pub fn scopes<S>(self, scopes: impl IntoIterator<Item = S>) -> Self
    where
        S: TryInto<Scope>,
        S::Error: Into<Invalid>,
    {
        scopes.into_iter().fold(self, Self::scope)
    }

    /// Adds longer words.
    pub fn description<D>(mut self, description: D) -> Self
    where
        D: TryInto<Description>,
        D::Error: Into<Invalid>,
    {
        self.spec.description = parse(description, &mut self.invalid);
        self
    }

    /// Says what it is for.
    pub fn purpose<P>(mut self, purpose: P) -> Self
    where
        P: TryInto<Purpose>,
        P::Error: Into<Invalid>,
    {
        self.spec.purpose = parse(purpose, &mut self.invalid);
        self
    }

    /// Sets the host's own words.
    pub fn metadata<N, V>(mut self, pairs: impl IntoIterator<Item = (N, V)>) -> Self
    where
        N: Into<String>,
        V: Into<String>,
    {
        self.spec.metadata = keep(Metadata::new(pairs), &mut self.invalid).unwrap_or_default();
        self
    }

    /// Links it to another principal, with the role it has if the tenant does not know it yet. Nobody
    /// creates keys for those whose role may do more than their own.
    pub fn owned_by(mut self, owner: PrincipalId, role: Role) -> Self {
        self.spec.owner = OwnerSpec::Principal(owner, role);
        self
    }

    /// Says who receives the secret, and with which role: the key never reaches more than that role and
    /// the owner's role at this moment do. Only the application says so. Defaults to the owner in
    /// person, whose key follows its live role.
    pub fn delivered_to(mut self, principal: PrincipalId, role: Role) -> Self {
        self.spec.recipient = Some(Recipient { principal, role });
        self
    }

    /// Links it to the tenant itself and to no person. Only administrators create such keys.
    pub fn owned_by_tenant(mut self) -> Self {
        self.spec.owner = OwnerSpec::Tenant;
        self
    }

    /// Sets from where it may be used, as networks or addresses. Defaults to anywhere.
    pub fn allow_addresses<'a>(mut self, entries: impl IntoIterator<Item = &'a str>) -> Self {
        let parsed = AddressAllowlist::parse(entries);
        self.spec.allowlist = keep(parsed, &mut self.invalid).unwrap_or_default();
        self
    }

    /// Links it to something in the host's world.
    pub fn resource(mut self, resource: Resource) -> Self {
        self.spec.resource = Some(resource);
        self
    }

    /// Ends it after `lifetime`, from the moment it is created.
    pub fn expires_in(mut self, lifetime: Duration) -> Self {
        self.spec.expiry = Expiry::In(lifetime);
        self
    }

    /// Ends it at `instant`.
    pub fn expires_at(mut self, instant: Timestamp) -> Self {
        self.spec.expiry = Expiry::At(instant);
        self
    }

    /// Lets it live for ever, if its class has no maximum.
    pub fn never_expires(mut self) -> Self {
        self.spec.expiry = Expiry::Never;
        self
    }

    /// The tenant that was named, if any.
    #[must_use]
    pub const fn tenant(&self) -> Option<&TenantId> {
        self.tenant.as_ref()
    }

    /// The checked command.
    ///
    /// # Errors
    ///
    /// The first value that could not be parsed.
    pub fn into_command(self) -> Result<Command, Invalid> {
        self.into_spec().map(Command::Create)
    }

    fn into_spec(self) -> Result<KeySpec, Invalid> {
        let Self {
            tenant: _,
            name,
            scopes,
            spec,
            invalid,
        } = self;
        let Optional {
            class,
            environment,
            description,
            purpose,
            metadata,
            owner,
            allowlist,
            resource,
            expiry,
            recipient,
        } = spec;
        match (invalid, name) {
            (None, Some(name)) => Ok(KeySpec {
                class,
                environment,
                name,
                description,
                purpose,
                metadata,
                owner,
                scopes: ScopeSet::new(scopes)?,
                allowlist,
                resource,
                expiry,
                recipient,
            }),
            (Some(invalid), _) => Err(invalid),
            (None, None) => Err(Invalid::new(
                "key name",
                super::super::invalid::Problem::Empty,
            )),
        }
    }
}

/// A key that exists elsewhere, to be taken over as a digest.
#[derive(Clone, Debug)]
#[must_use = "a draft imports nothing by itself"]
pub struct ImportKey {
    key: NewKey,
    digest: Digest,
    hint: Option<Hint>,
}

impl ImportKey {
    /// A key whose holder presents a token with this SHA-256. A token in the form of this crate's
    /// own is never taken for an imported one: move its record instead.
    pub const fn sha256(digest: Digest, key: NewKey) -> Self {
        Self {
            key,
            digest,
            hint: None,
        }
    }

    /// Sets what a person is to see of it. Defaults to the start of its digest.
    pub fn hint(mut self, hint: Hint) -> Self {
        self.hint = Some(hint);
        self
    }

    /// The tenant that was named, if any.
    #[must_use]
    pub const fn tenant(&self) -> Option<&TenantId> {
        self.key.tenant()
    }

    /// The checked command.
    ///
    /// # Errors
    ///
    /// The first value that could not be parsed.
    pub fn into_command(self) -> Result<Command, Invalid> {
        let Self { key, digest, hint } = self;
        let spec = key.into_spec()?;
        Ok(Command::Import {
            spec,
            scheme: ImportScheme::Sha256,
            digest,
            hint,
        })
    }
}

/// Changes to a key; what is not named stays.
#[derive(Clone, Debug, Default)]
#[must_use = "a draft changes nothing by itself"]
pub struct KeyUpdate {
    spec: UpdateSpec,
    invalid: Option<Invalid>,
}

impl KeyUpdate {
    /// No change yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a new name.
    pub fn name<N>(mut self, name: N) -> Self
    where
        N: TryInto<KeyName>,
        N::Error: Into<Invalid>,
    {
        self.spec.name = parse(name, &mut self.invalid);
        self
    }

    /// Sets a new description.
    pub fn description<D>(mut self, description: D) -> Self
    where
        D: TryInto<Description>,
        D::Error: Into<Invalid>,
    {
        self.spec.description = parse(description, &mut self.invalid).map(Some);
        self
    }

    /// Removes the description.
    pub fn no_description(mut self) -> Self {
        self.spec.description = Some(None);
        self
    }

    /// Sets a new purpose.
    pub fn purpose<P>(mut self, purpose: P) -> Self
    where
        P: TryInto<Purpose>,
        P::Error: Into<Invalid>,
    {
        self.spec.purpose = parse(purpose, &mut self.invalid).map(Some);
        self
    }

    /// Removes the purpose, unless the policy requires one.
    pub fn no_purpose(mut self) -> Self {
        self.spec.purpose = Some(None);
        self
    }

    /// Sets metadata in place of all there is.
    pub fn metadata<N, V>(mut self, pairs: impl IntoIterator<Item = (N, V)>) -> Self
    where
        N: Into<String>,
        V: Into<String>,
    {
        self.spec.metadata = keep(Metadata::new(pairs), &mut self.invalid);
        self
    }

    /// Sets scopes in place of all there are.
    pub fn scopes<S>(mut self, scopes: impl IntoIterator<Item = S>) -> Self
    where
        S: TryInto<Scope>,
        S::Error: Into<Invalid>,
    {
        let parsed: Vec<_> = scopes
            .into_iter()
            .filter_map(|scope| parse(scope, &mut self.invalid))
            .collect();
        self.spec.scopes = keep(ScopeSet::new(parsed), &mut self.invalid);
        self
    }

    /// Sets networks in place of all there are.
    pub fn allow_addresses<'a>(mut self, entries: impl IntoIterator<Item = &'a str>) -> Self {
        self.spec.allowlist = keep(AddressAllowlist::parse(entries), &mut self.invalid);
        self
    }

    /// Sets a new expiry.
    pub fn expiry(mut self, expiry: Expiry) -> Self {
        self.spec.expiry = Some(expiry);
        self
    }

    /// The checked changes.
    ///
    /// # Errors
    ///
    /// The first value that could not be parsed.
    pub fn into_spec(self) -> Result<UpdateSpec, Invalid> {
        self.invalid.map_or(Ok(self.spec), Err)
    }
}

/// Why a key is revoked, and whether the person who asked confirmed it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct RevokeKey {
    /// Why.
    pub reason: Reason,
    /// Whether it was confirmed; a class may ask for that (rules A1-15, G-20).
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
    /// The same, confirmed by the person who asked.
    #[must_use]
    pub const fn confirmed(self) -> RevokeKey {
        RevokeKey {
            reason: self,
            confirmed: true,
        }
    }
}

/// What a class may ask for before a key is deleted.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct DeleteKey {
    /// What was typed to confirm (rule A1-22).
    pub typed: Option<String>,
    /// How many things still refer to the key, as the host says; `None` if it did not look.
    pub references: Option<u32>,
}

impl DeleteKey {
    /// Nothing said.
    #[must_use]
    pub fn plain() -> Self {
        Self::default()
    }

    /// This was typed to confirm.
    #[must_use]
    pub fn typed(text: impl Into<String>) -> Self {
        Self {
            typed: Some(text.into()),
            references: None,
        }
    }

    /// So many things still refer to the key.
    #[must_use]
    pub const fn with_references(mut self, references: u32) -> Self {
        self.references = Some(references);
        self
    }
}

/// How and why a key is replaced.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Replacement {
    /// How.
    pub mode: RotationMode,
    /// Why.
    pub reason: RotationReason,
    /// The longest time from the rotation to the end of the old key, if the successor is not used. For
    /// [`RotationMode::OnFirstUse`] alone. Defaults to what the policy says
    /// ([`first_use_wait`](crate::policy::PolicySpec::first_use_wait)); a compromised key has no default.
    pub no_later_than: Option<Duration>,
    /// Who receives the successor's secret; only the application says so. Defaults to the owner in
    /// person.
    pub recipient: Option<Recipient>,
}

impl Replacement {
    /// The old key ends at once.
    #[must_use]
    pub const fn immediate() -> Self {
        Self {
            mode: RotationMode::Immediate,
            reason: RotationReason::Routine,
            no_later_than: None,
            recipient: None,
        }
    }

    /// The old key works for `grace`, at most to its own end.
    #[must_use]
    pub const fn grace(grace: Duration) -> Self {
        Self {
            mode: RotationMode::Grace(grace),
            reason: RotationReason::Routine,
            no_later_than: None,
            recipient: None,
        }
    }

    /// The old key works until the successor is first used, and for `grace` after that.
    #[must_use]
    pub const fn on_first_use(grace: Duration) -> Self {
        Self {
            mode: RotationMode::OnFirstUse(grace),
            reason: RotationReason::Routine,
            no_later_than: None,
            recipient: None,
        }
    }

    /// Ends the old key at the latest this long after the rotation, even if the successor is not used. From
    /// one second to [`MAX_GRACE`](crate::policy::Rotation::MAX_GRACE), or to
    /// [`MAX_COMPROMISED_WAIT`](crate::policy::Rotation::MAX_COMPROMISED_WAIT) for a compromised key. Only for
    /// [`on_first_use`](Self::on_first_use); other modes are refused with it.
    #[must_use]
    pub const fn no_later_than(mut self, wait: Duration) -> Self {
        self.no_later_than = Some(wait);
        self
    }

    /// Says why.
    #[must_use]
    pub const fn because(mut self, reason: RotationReason) -> Self {
        self.reason = reason;
        self
    }

    /// Says who receives the successor's secret, and with which role, as
    /// [`NewKey::delivered_to`] does.
    #[must_use]
    pub fn delivered_to(mut self, principal: PrincipalId, role: Role) -> Self {
        self.recipient = Some(Recipient { principal, role });
        self
    }
}

impl From<RotationMode> for Replacement {
    fn from(mode: RotationMode) -> Self {
        Self {
            mode,
            ..Self::default()
        }
    }
}
