//! Policies: the rules of a tenant's keys, as data.
//!
//! Pure: no I/O and no clock. A [`Policy`] is a [`PolicySpec`] without contradictions. A host reads a spec
//! from a policy file, and may use a different policy for each tenant.

mod book;
mod class;
mod shared;
mod unique;
mod validate;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::book::Policies;
pub use self::class::{
    Access, Deletion, KeyClass, Lifetime, Revocation, Rotation, SelfRotation, TenantReach,
};
pub use self::shared::PolicyConflict;
pub(crate) use self::shared::{MovedTenant, OutdatedPolicy, from_document, merge, to_document};
pub use self::validate::PolicyError;
use super::invalid::Invalid;
use super::scope::ScopeSet;
pub use super::text::PolicyName;
use super::text::{ClassName, KeyName, ResourceKind, Role};
use super::time;

/// The default staleness bound: 10 seconds. A verifier that has not synced within its staleness bound fails
/// closed.
///
/// In a simulation of an unreliable network, 0.07 % of verifications met a replica that was older than 10
/// seconds. With a bound of 2 seconds, 5 % met a replica past the bound.
pub const DEFAULT_STALENESS_BOUND: Duration = Duration::from_secs(10);

/// The rules of a policy, before validation. Start from [`PolicySpec::new`], from a
/// [profile](crate::profiles), or from a policy file. The JSON documents of the profiles are examples of
/// policy files.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct PolicySpec {
    /// The name of the policy, for people.
    pub name: PolicyName,
    /// The version of the policy. Raise it with every change. A store remembers the policies of its processes:
    /// a process whose policy has the same version and another content is refused. Defaults to 1.
    #[serde(default = "first_version", skip_serializing_if = "is_first_version")]
    pub version: u32,
    /// The classes of keys.
    #[serde(deserialize_with = "unique::deserialize")]
    pub classes: BTreeMap<ClassName, KeyClass>,
    /// The class of a key if its creator names none.
    pub default_class: ClassName,
    /// The scopes that each role allows, both to actors and to keys of owners with that role. A role that is
    /// missing here allows nothing.
    #[serde(deserialize_with = "unique::deserialize")]
    pub roles: BTreeMap<Role, ScopeSet>,
    /// The roles that may provision and close tenants, change and remove owners, and revoke keys in bulk.
    pub administrators: BTreeSet<Role>,
    /// The roles that may read the audit trail, besides the administrators.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub auditors: BTreeSet<Role>,
    /// The caps on active keys of a tenant. All of them hold. Without caps a tenant may have any number of
    /// keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caps: Vec<ActiveKeyCap>,
    /// The rule for legacy keys, which tenants can rotate but not end.
    #[serde(default)]
    pub legacy: LegacyRule,
    /// The rules for keys that are provisioned with a tenant or a resource.
    #[serde(default)]
    pub provision: Vec<ProvisionRule>,
    /// The longest time until a revocation takes effect everywhere.
    #[serde(default)]
    pub propagation: Propagation,
    /// The longest wait for the first use of a successor if the command sets none. Defaults to 30 days. At
    /// most [`Rotation::MAX_GRACE`].
    #[serde(
        default = "first_use_wait",
        with = "time::seconds",
        rename = "first_use_wait_seconds"
    )]
    pub first_use_wait: Duration,
    /// The time after which [`Keyward::apply_retention`](crate::Keyward::apply_retention) removes an entry of the
    /// audit trail, at least a day. `None` keeps entries forever. Defaults to `None`.
    ///
    /// Keep entries for longer than the age of the oldest backup that may be restored. A recovery repeats
    /// revocations from these entries.
    #[serde(
        default,
        with = "time::seconds::option",
        rename = "keep_audit_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub keep_audit: Option<Duration>,
    /// True if every key must state its purpose. Legacy and provisioned keys need no purpose until they are
    /// updated.
    #[serde(default)]
    pub purpose_required: bool,
}

const fn first_version() -> u32 {
    1
}

const fn is_first_version(version: &u32) -> bool {
    *version == first_version()
}

const fn first_use_wait() -> Duration {
    Rotation::DEFAULT_WAIT
}

/// A cap on the active keys that a tenant may have, of some classes or of all.
///
/// Active and disabled keys count, and so does a key with an unreadable record. A key that is retiring after
/// a rotation does not count, because its successor does.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ActiveKeyCap {
    /// The most active keys that a tenant may have.
    pub limit: NonZeroU32,
    /// The classes whose keys count together; all classes if the set is empty.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub classes: BTreeSet<ClassName>,
}

impl ActiveKeyCap {
    /// Creates a cap on the keys of all classes together.
    #[must_use]
    pub const fn new(limit: NonZeroU32) -> Self {
        Self {
            limit,
            classes: BTreeSet::new(),
        }
    }

    /// Creates a cap on the keys of one class.
    #[must_use]
    pub fn of_class(class: ClassName, limit: NonZeroU32) -> Self {
        Self {
            limit,
            classes: BTreeSet::from([class]),
        }
    }

    /// Returns whether keys of a class of the policy count.
    pub(crate) fn counts(&self, class: &ClassName) -> bool {
        self.classes.is_empty() || self.classes.contains(class)
    }
}

/// The rule for legacy keys. A legacy key is provisioned with its tenant and belongs to no person. A tenant
/// can rotate the key, but not disable, revoke or delete it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum LegacyRule {
    /// Tenants have no legacy key.
    #[default]
    None,
    /// Every tenant has exactly one legacy key.
    One {
        /// The class of the legacy key.
        class: ClassName,
        /// The name of the legacy key.
        name: KeyName,
        /// The scopes of the legacy key.
        scopes: ScopeSet,
    },
}

/// The event that provisions a key.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProvisionOn {
    /// The provisioning of a tenant.
    Tenant,
    /// The provisioning of a resource of this kind.
    Resource(ResourceKind),
}

/// The rule for a key that is provisioned with a tenant or a resource.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ProvisionRule {
    /// The event that provisions the key.
    pub on: ProvisionOn,
    /// The class of the key.
    pub class: ClassName,
    /// The name of the key.
    pub name: KeyName,
    /// The scopes of the key.
    pub scopes: ScopeSet,
}

/// The longest time until a revocation takes effect everywhere. A verifier that has not synced within this
/// time fails closed.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Propagation {
    /// The staleness bound, in whole seconds when serialized. With a bound of zero every verification reads
    /// the latest state.
    #[serde(with = "time::seconds", rename = "bound_seconds")]
    pub bound: Duration,
}

impl Default for Propagation {
    fn default() -> Self {
        Self {
            bound: DEFAULT_STALENESS_BOUND,
        }
    }
}

impl Propagation {
    /// The longest staleness bound that a policy may have.
    pub(crate) const LONGEST: Duration = validate::LONGEST;

    /// A bound of zero: every verification reads the latest state.
    pub const IMMEDIATE: Self = Self {
        bound: Duration::ZERO,
    };

    /// The assumed maximum rate error ρ of a node's monotonic clock: 1 ‰, far more than a quartz clock has.
    /// No bound relies on synchronized clocks.
    pub const CLOCK_RATE_ERROR_PER_MILLE: u32 = 1;

    /// Returns the longest time from the return of a revocation to the last verification that can still
    /// accept the key: `bound / (1 - ρ)`, where ρ is the clock's rate error.
    #[must_use]
    pub fn worst_case(self) -> Duration {
        Self::by_any_clock(self.bound)
    }

    /// Returns the longest time that one clock may measure while another clock measures `time`. This is `time
    /// / (1 - ρ)`, where ρ is the rate error of a clock.
    pub(crate) fn by_any_clock(time: Duration) -> Duration {
        time.saturating_mul(1000) / (1000 - Self::CLOCK_RATE_ERROR_PER_MILLE)
    }
}

/// The rules of a tenant's keys: a validated [`PolicySpec`] without contradictions.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "PolicySpec", into = "PolicySpec")]
pub struct Policy {
    spec: PolicySpec,
    /// True if any class has its own propagation instead of the policy's. If not, a lookup of the class can
    /// be skipped.
    own_propagations: bool,
}

impl PolicySpec {
    /// 100, the cap over all classes in a [new](Self::new) spec and in the
    /// [standard](crate::profiles::standard) profile. A person rarely oversees more keys.
    pub const DEFAULT_CAP: NonZeroU32 = NonZeroU32::new(100).expect("100 is not zero");

    /// Creates a spec with one class, which is the default class.
    ///
    /// Nobody but the application can use the policy until [roles](Self::with_role) have scopes. Only the
    /// application administers tenants until there are [administrators](Self::with_administrators). A tenant
    /// has up to [100](Self::DEFAULT_CAP) active keys and no legacy or provisioned key. A revocation takes
    /// effect everywhere within 10 seconds. Keys need no purpose.
    ///
    /// ```
    /// use keyward::policy::{ActiveKeyCap, KeyClass, Policy, PolicySpec};
    /// use keyward::token::TokenPrefix;
    /// use keyward::{Role, ScopeSet};
    ///
    /// let orders = ScopeSet::parse(["orders:*"])?;
    /// let server = KeyClass::secret(TokenPrefix::new("acme_sk_")?, orders.clone(), [Role::ADMIN]);
    /// let mobile = KeyClass::publishable(TokenPrefix::new("acme_pk_")?, orders, [Role::ADMIN]);
    /// let spec = PolicySpec::new("acme", "server", server)?
    ///     .with_class("mobile", mobile)?
    ///     .with_cap(ActiveKeyCap::of_class("server".parse()?, 5.try_into()?))
    ///     .with_role(Role::ADMIN, ScopeSet::all())
    ///     .with_administrators([Role::ADMIN]);
    /// let policy = Policy::new(spec)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Invalid`] if one of the names is malformed.
    pub fn new(
        name: impl TryInto<PolicyName, Error: Into<Invalid>>,
        default_class: impl TryInto<ClassName, Error: Into<Invalid>>,
        rules: KeyClass,
    ) -> Result<Self, Invalid> {
        let default_class: ClassName = default_class.try_into().map_err(Into::into)?;
        Ok(Self {
            version: first_version(),
            name: name.try_into().map_err(Into::into)?,
            classes: BTreeMap::from([(default_class.clone(), rules)]),
            default_class,
            roles: BTreeMap::new(),
            administrators: BTreeSet::new(),
            auditors: BTreeSet::new(),
            caps: vec![ActiveKeyCap::new(Self::DEFAULT_CAP)],
            legacy: LegacyRule::None,
            provision: Vec::new(),
            propagation: Propagation::default(),
            first_use_wait: first_use_wait(),
            keep_audit: None,
            purpose_required: false,
        })
    }

    /// Adds a class, or replaces the class of this name.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if the name is malformed.
    pub fn with_class(
        mut self,
        name: impl TryInto<ClassName, Error: Into<Invalid>>,
        rules: KeyClass,
    ) -> Result<Self, Invalid> {
        self.classes
            .insert(name.try_into().map_err(Into::into)?, rules);
        Ok(self)
    }

    /// Sets the scopes of a role.
    #[must_use]
    pub fn with_role(mut self, role: Role, scopes: ScopeSet) -> Self {
        self.roles.insert(role, scopes);
        self
    }

    /// Sets the roles that administer tenants and owners.
    #[must_use]
    pub fn with_administrators(mut self, roles: impl IntoIterator<Item = Role>) -> Self {
        self.administrators = roles.into_iter().collect();
        self
    }

    /// Adds a cap. Replaces the cap over the same classes, if there is one.
    #[must_use]
    pub fn with_cap(mut self, cap: ActiveKeyCap) -> Self {
        self.caps.retain(|other| other.classes != cap.classes);
        self.caps.push(cap);
        self
    }

    /// Returns the spec with `change` applied.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

impl Policy {
    /// Validates a spec.
    ///
    /// # Errors
    ///
    /// [`PolicyError`] for the first contradiction.
    pub fn new(spec: PolicySpec) -> Result<Self, PolicyError> {
        validate::validate(&spec)?;
        let mut classes = spec.classes.values();
        Ok(Self {
            own_propagations: classes.any(|class| class.propagation.is_some()),
            spec,
        })
    }

    /// Returns the spec of the policy.
    #[must_use]
    pub const fn spec(&self) -> &PolicySpec {
        &self.spec
    }

    /// Returns the class of this name.
    #[must_use]
    pub fn class(&self, name: &ClassName) -> Option<&KeyClass> {
        self.spec.classes.get(name)
    }

    /// Returns the scopes that `role` allows. Empty for a role that the policy does not name.
    #[must_use]
    pub fn role_ceiling(&self, role: &Role) -> ScopeSet {
        self.spec.roles.get(role).cloned().unwrap_or_default()
    }

    pub(crate) fn role_allows(&self, role: &Role, scope: &super::scope::Scope) -> bool {
        let own = self.spec.roles.get(role);
        own.is_some_and(|own| own.allows(scope))
    }

    /// Returns the longest time until a revocation of a key of this class takes effect everywhere.
    #[must_use]
    #[inline]
    pub fn propagation(&self, class: &ClassName) -> Propagation {
        let own = self.own_propagations.then(|| self.class(class)).flatten();
        own.and_then(|class| class.propagation)
            .unwrap_or(self.spec.propagation)
    }

    /// Returns the longest staleness bound of the policy's classes.
    pub(crate) fn longest_bound(&self) -> Duration {
        let classes = self.spec.classes.keys();
        let bounds = classes.map(|class| self.propagation(class).bound);
        bounds.max().unwrap_or_default()
    }

    /// Returns the non-zero staleness bounds of the policy's classes.
    pub(crate) fn bounds(&self) -> impl Iterator<Item = Duration> {
        let bounds = self
            .spec
            .classes
            .keys()
            .map(|name| self.propagation(name).bound);
        bounds.filter(|bound| !bound.is_zero())
    }

    /// Returns the caps that keys of this class count towards. Keys of a class that the policy does not have
    /// count towards no cap.
    pub fn caps(&self, class: &ClassName) -> impl Iterator<Item = &ActiveKeyCap> {
        let known = self.spec.classes.contains_key(class);
        let caps = self.spec.caps.iter();
        caps.filter(move |cap| known && cap.counts(class))
    }

    pub(crate) fn provisioned(&self, on: &ProvisionOn) -> impl Iterator<Item = &ProvisionRule> {
        self.spec
            .provision
            .iter()
            .filter(move |rule| rule.on == *on)
    }
}

impl TryFrom<PolicySpec> for Policy {
    type Error = PolicyError;

    fn try_from(spec: PolicySpec) -> Result<Self, PolicyError> {
        Self::new(spec)
    }
}

impl From<Policy> for PolicySpec {
    fn from(policy: Policy) -> Self {
        policy.spec
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::core::profiles::standard;

    /// Returns the standard policy as a policy file.
    fn file() -> Value {
        serde_json::to_value(standard()).unwrap()
    }

    fn read(file: Value) -> Result<Policy, String> {
        serde_json::from_value(file).map_err(|error| error.to_string())
    }

    #[test]
    fn durations_round_trip_as_whole_seconds() {
        let mut spec = standard();
        spec.propagation.bound = time::hours(6);
        let class = spec.classes.get_mut("secret").unwrap();
        class.lifetime = Lifetime {
            default: Some(time::days(30)),
            max: Some(time::days(90)),
        };
        class.rotation = Rotation::SupportOnly(time::hours(1));
        class.revocation = Revocation::Allowed {
            confirm: true,
            keep: Some(time::days(7)),
        };
        class.propagation = Some(Propagation::IMMEDIATE);
        let file = serde_json::to_value(&spec).unwrap();
        assert_eq!(file["propagation"], json!({"bound_seconds": 21_600}));
        let class = &file["classes"]["secret"];
        let lifetime = json!({"default_seconds": 2_592_000, "max_seconds": 7_776_000});
        assert_eq!(class["lifetime"], lifetime);
        assert_eq!(class["rotation"], json!({"support_only": 3600}));
        let revocation = json!({"allowed": {"confirm": true, "keep_seconds": 604_800}});
        assert_eq!(class["revocation"], revocation);
        assert_eq!(class["propagation"], json!({"bound_seconds": 0}));
        assert_eq!(serde_json::from_value::<PolicySpec>(file).unwrap(), spec);
    }

    #[test]
    fn a_fraction_of_a_second_is_not_written_as_something_else() {
        let mut spec = standard();
        spec.propagation.bound = Duration::from_millis(500);
        let error = serde_json::to_value(&spec).unwrap_err().to_string();
        assert_eq!(error, "500ms is not a whole number of seconds");
        let mut spec = standard();
        let class = spec.classes.get_mut("secret").unwrap();
        class.lifetime.max = Some(Duration::from_millis(1500));
        assert!(serde_json::to_value(&spec).is_err());
    }

    #[test]
    fn an_absent_field_is_not_written() {
        let text = serde_json::to_string(&standard()).unwrap();
        assert!(
            !text.contains("null"),
            "not every format can say it: {text}"
        );
    }

    #[test]
    fn a_config_file_may_leave_out_what_has_a_default() {
        let access = json!({"roles": ["admin"]});
        let policy = read(json!({
            "name": "small",
            "default_class": "secret",
            "classes": {"secret": {
                "key_type": "secret",
                "prefixes": {"live": "sk_"},
                "create": access, "look": access, "update": access, "rotate": access, "revoke": access,
                "ceiling": ["*:*"],
            }},
            "roles": {"admin": ["*:*"]},
            "administrators": ["admin"],
        }))
        .unwrap();
        let class = policy.class(&policy.spec().default_class).unwrap();
        let prefix = crate::core::token::TokenPrefix::new("sk_").unwrap();
        let expected = KeyClass::secret(prefix, ScopeSet::all(), [Role::ADMIN]);
        let managed = Access::roles([Role::ADMIN]);
        let expected = KeyClass {
            look: managed.clone(),
            update: managed.clone(),
            rotate: managed.clone(),
            revoke: managed,
            ..expected
        };
        assert_eq!(*class, expected);
    }

    #[test]
    fn an_unknown_field_anywhere_in_a_config_file_is_refused_by_name() {
        let places = [
            "",
            "/propagation",
            "/caps/0",
            "/legacy/one",
            "/provision/0",
            "/classes/secret",
            "/classes/secret/lifetime",
            "/classes/secret/revocation/allowed",
            "/classes/secret/create",
        ];
        for place in places {
            let mut file = file();
            let given = json!({"class": "secret", "name": "Key", "scopes": ["a:b"]});
            file["legacy"] = json!({"one": given});
            file["provision"] = json!([given]);
            file["provision"][0]["on"] = json!("tenant");
            let part = file.pointer_mut(place).unwrap();
            part.as_object_mut()
                .unwrap()
                .insert("keeep".to_owned(), json!(1));
            let error = read(file).unwrap_err();
            assert!(error.contains("unknown field `keeep`"), "{place}: {error}");
        }
    }

    #[test]
    fn a_role_class_or_environment_that_is_defined_twice_is_refused_by_name() {
        let text = serde_json::to_string(&standard()).unwrap();
        let class = serde_json::to_string(&standard().classes["secret"]).unwrap();
        for (map, name, value) in [
            ("roles", "admin", r#"["a:b"]"#),
            ("classes", "secret", &class),
            ("prefixes", "live", r#""sk_old_""#),
        ] {
            let once = format!("\"{map}\":{{");
            let twice = text.replacen(&once, &format!("{once}\"{name}\":{value},"), 1);
            let error = serde_json::from_str::<PolicySpec>(&twice).unwrap_err();
            let expected = format!("`{name}` is defined twice at line 1 ");
            assert!(error.to_string().starts_with(&expected), "{error}");
        }
    }

    #[test]
    fn a_config_file_that_contradicts_itself_is_refused() {
        let mut file = file();
        file["default_class"] = json!("other");
        let error = read(file).unwrap_err();
        assert_eq!(
            error,
            "default class names class other, which the policy does not have"
        );
    }

    #[test]
    fn the_worst_case_of_a_bound_allows_for_the_error_of_the_clock() {
        let worst = |bound| Propagation { bound }.worst_case();
        let ten = Duration::from_secs(10);
        let rate = 1.0 - f64::from(Propagation::CLOCK_RATE_ERROR_PER_MILLE) / 1000.0;
        let off = worst(ten).as_secs_f64() - ten.as_secs_f64() / rate;
        assert!(off.abs() < 1e-6, "{off}");
        assert!(worst(ten) > ten);
        assert_eq!(worst(Duration::from_secs(999)), Duration::from_secs(1000));
        assert_eq!(worst(Duration::ZERO), Duration::ZERO);
        assert!(worst(Duration::MAX) > Duration::ZERO, "and never panics");
    }

    #[test]
    fn a_class_may_have_a_bound_of_its_own() {
        let mut spec = standard();
        let own = Propagation::IMMEDIATE;
        spec.classes.get_mut("secret").unwrap().propagation = Some(own);
        let policy = Policy::new(spec).unwrap();
        let bound = |class| policy.propagation(&ClassName::new(class).unwrap());
        assert_eq!(bound("secret"), own);
        assert_eq!(bound("publishable"), Propagation::default());
    }

    #[test]
    fn an_unknown_role_reaches_nothing_whatever_its_name() {
        let policy = Policy::default();
        for name in ["other", "system", "application"] {
            let other = Role::new(name).unwrap();
            assert_eq!(policy.role_ceiling(&other), ScopeSet::none(), "{name}");
        }
    }

    #[test]
    fn a_cap_counts_the_classes_it_names_or_all() {
        let class = |name| ClassName::new(name).unwrap();
        let limit = |limit| NonZeroU32::new(limit).unwrap();
        let all = ActiveKeyCap::new(limit(3));
        let secret = ActiveKeyCap::of_class(class("secret"), limit(2));
        let caps = vec![all.clone(), secret.clone()];
        let policy = Policy::new(standard().with(|spec| spec.caps = caps)).unwrap();
        let of = |name| policy.caps(&class(name)).collect::<Vec<_>>();
        assert_eq!(of("secret"), [&all, &secret]);
        assert_eq!(of("publishable"), [&all]);
        assert_eq!(of("unknown"), [&all; 0]);
    }

    fn server() -> KeyClass {
        let prefix = crate::core::token::TokenPrefix::new("sk_").unwrap();
        KeyClass::secret(prefix, ScopeSet::all(), [Role::ADMIN])
    }

    #[test]
    fn a_new_spec_gives_nobody_access_and_has_a_cap() {
        let spec = PolicySpec::new("acme", "server", server()).unwrap();
        assert!(spec.roles.is_empty() && spec.administrators.is_empty());
        assert!(spec.auditors.is_empty());
        assert_eq!(spec.caps, standard().caps);
        assert_eq!(
            Policy::new(spec.clone()).unwrap_err().to_string(),
            "role admin may create keys of class server, but has no scope that the class allows"
        );
        let spec = spec.with_role(Role::ADMIN, ScopeSet::all());
        let file = json!({
            "name": "acme",
            "default_class": "server",
            "classes": {"server": server()},
            "roles": {"admin": ["*:*"]},
            "administrators": [],
            "caps": [{"limit": 100}],
        });
        assert_eq!(read(file).unwrap(), Policy::new(spec).unwrap());
    }

    #[test]
    fn a_malformed_name_of_a_policy_or_class_is_refused_where_it_is_written() {
        assert!(PolicySpec::new("", "server", server()).is_err());
        assert!(PolicySpec::new("acme", "", server()).is_err());
        let spec = PolicySpec::new("acme", "server", server()).unwrap();
        assert!(spec.with_class("", server()).is_err());
    }

    #[test]
    fn a_later_cap_replaces_the_cap_over_the_same_classes() {
        let cap = |limit| ActiveKeyCap::new(NonZeroU32::new(limit).unwrap());
        let of_server = ActiveKeyCap {
            classes: BTreeSet::from([ClassName::new("server").unwrap()]),
            ..cap(5)
        };
        let spec = PolicySpec::new("acme", "server", server()).unwrap();
        let spec = spec.with_cap(of_server.clone()).with_cap(cap(200));
        assert_eq!(spec.caps, [of_server, cap(200)]);
    }
}
