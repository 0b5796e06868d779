//! The interface of a system that a test compares with the model, and its implementation for [`Keyward`].

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::rules::{ACTIONS, Mask, RESOURCES, ReferenceModel, RefusalReason};
use super::{CLASSES, ModelCommand, RequestedLifetime, RotationTiming, TENANTS, class_cap};
use crate::explore::block_on;
use keyward::command::{CommandId, DeleteKey, Expiry, ImportKey, IssuedKey};
use keyward::entropy::SeededEntropy;
use keyward::key::{ClassName, Digest, Status};
use keyward::pepper::Pepper;
use keyward::policy::{ActiveKeyCap, LegacyRule, Policy};
use keyward::profiles::standard;
use keyward::store::KeyStore;
use keyward::token::TokenPrefix;
use keyward::{
    Actor, Clock, CommandError, CreateKey, Denial, KeyId, KeyInfo, Keyward, ManualClock, Need,
    PepperRing, PrincipalId, Reason, Role, RotateKey, Scope, ScopeSet, TenantId, Timestamp,
    UpdateKey,
};

/// The actor of a command, as the host describes it to the system.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelActor {
    /// The principal. `None` for a key that belongs to its tenant and has no principal as its owner.
    pub principal: Option<&'static str>,
    /// The role that the host claims for a person. `None` if the actor is a key.
    pub role: Option<&'static str>,
    /// The actor's tenant, as an index into [`TENANTS`].
    pub tenant: usize,
    /// True if the actor may act in descendant tenants.
    pub below: bool,
    /// The scopes of the actor's session or key. The actor's roles limit them further.
    pub(super) reach: Mask,
    /// The expiry of the actor's session or key; `None` if it does not expire.
    pub expires: Option<Timestamp>,
    /// The number of the key that acts; `None` for a person.
    pub key: Option<usize>,
}

impl ModelActor {
    pub(super) fn is_narrow(&self) -> bool {
        self.key.is_some() || self.expires.is_some()
    }
}

/// The keys that a command created, each with its secret.
#[derive(Clone, Debug, Default)]
pub struct IssuedSecrets {
    /// The key that the command created, with its secret.
    pub made: Option<(KeyId, String)>,
    /// The keys that the system created automatically with the tenant, each with its secret.
    pub provisioned: Vec<(KeyId, String)>,
}

/// A key in the list of a tenant's keys.
#[derive(Clone, Copy, Debug)]
pub struct ListedKey {
    /// True if the key is neither revoked nor expired.
    pub live: bool,
    /// True if the key was rotated and a successor is replacing it.
    pub retiring: bool,
    /// True if the key is the legacy key.
    pub legacy: bool,
    /// The class, as an index into [`CLASSES`].
    pub class: usize,
}

/// A system that manages keys. The test controls the system's clock.
pub trait System {
    /// Executes a command with the command id `id`. The `model` maps the numbers of keys to their ids and
    /// secrets.
    ///
    /// # Errors
    ///
    /// The [`RefusalReason`] that corresponds to the system's error.
    fn execute(
        &mut self,
        model: &ReferenceModel,
        by: &ModelActor,
        id: &str,
        command: &ModelCommand,
    ) -> Result<IssuedSecrets, RefusalReason>;

    /// Verifies a key, and then runs the node's maintenance, which records the use.
    fn use_key(&mut self, secret: &str);

    /// Syncs a second node, and returns the permissions that the key has there. `None` if that node refuses
    /// the key.
    fn sees(&mut self, secret: &str) -> Option<u16>;

    /// Returns whether the node that executes the commands accepts the key, without a sync.
    fn accepts_here(&mut self, secret: &str) -> bool;

    /// Returns the keys of a tenant.
    fn list(&mut self, tenant: &str) -> Vec<ListedKey>;

    /// Returns the time of the wall clock.
    fn clock(&self) -> Timestamp;

    /// Moves the clock forward.
    fn wait(&mut self, by: Duration);

    /// Sets the wall clock back, but not the monotonic clock.
    fn jump_back(&mut self, by: Duration);
}

/// Returns the policy of the model: the standard profile with at most `cap` active keys, a legacy key, and a
/// second class of secret keys. The second class has a [cap](class_cap) of its own, and keys of both classes may
/// create keys of either. Developers may use reports and users, members may read, and support staff have no permissions.
///
/// # Panics
///
/// If `cap` is zero.
#[must_use]
pub fn policy(cap: usize) -> Policy {
    let mut spec = standard();
    for class in spec.classes.values_mut() {
        class
            .prefixes
            .retain(|environment, _| environment.as_str() == "live");
    }
    let scopes = |text: &[&'static str]| {
        ScopeSet::parse(text.iter().copied()).expect("valid scope literals")
    };
    let developer = scopes(&["reports:*", "users:*"]);
    spec.roles.insert(Role::DEVELOPER, developer);
    let class = |class: usize| ClassName::new(CLASSES[class]).expect("a valid class literal");
    let secret = &spec.classes[&class(0)];
    let second = secret.clone().with(|second| {
        let prefix = TokenPrefix::new("sx_live_").expect("a valid prefix literal");
        second
            .prefixes
            .values_mut()
            .for_each(|own| *own = prefix.clone());
    });
    spec.classes.insert(class(1), second);
    for number in 0..CLASSES.len() {
        let rules = spec.classes.get_mut(&class(number));
        let rules = rules.expect("the policy has both classes");
        rules.issues = (0..CLASSES.len()).map(class).collect();
    }
    let limit = |cap: usize| {
        let limit = u32::try_from(cap).ok().and_then(NonZeroU32::new);
        limit.expect("a cap is at least one")
    };
    let legacy = LegacyRule::One {
        class: spec.default_class.clone(),
        name: "legacy".try_into().expect("a valid name literal"),
        scopes: scopes(&["reports:read"]),
    };
    Policy::new(spec.with(|spec| {
        spec.caps = vec![
            ActiveKeyCap::new(limit(cap)),
            ActiveKeyCap::of_class(class(1), limit(class_cap(cap))),
        ];
        spec.legacy = legacy;
    }))
    .expect("the standard policy with a legacy key is consistent")
}

/// A [`Keyward`] service as the system under test, with a second node that only verifies keys.
#[derive(Debug)]
pub struct Facade {
    keys: Keyward,
    other: Keyward,
    clock: Arc<ManualClock>,
}

impl Facade {
    /// Returns the time by which the node judges keys, which does not go back when the wall clock does.
    pub fn time(&self) -> Timestamp {
        self.keys.now()
    }

    /// Creates the two nodes over one store, both with `policy`.
    ///
    /// # Panics
    ///
    /// If the store cannot be read.
    pub fn new(store: Arc<dyn KeyStore>, policy: Policy) -> Self {
        let start = Timestamp::from_unix_seconds(1_800_000_000).unwrap_or(Timestamp::MAX);
        let clock = Arc::new(ManualClock::at(start));
        let node = |seed| {
            let id = "model".try_into().expect("a valid pepper id literal");
            let pepper =
                Pepper::new(id, &[7; Pepper::MIN_LEN]).expect("a pepper of the minimum length");
            let builder = Keyward::builder(store.clone(), PepperRing::new(pepper))
                .policy(policy.clone())
                .clock(clock.clone())
                .entropy(SeededEntropy::new(seed));
            block_on(builder.build()).expect("the store of a model answers")
        };
        Self {
            keys: node(1),
            other: node(2),
            clock: clock.clone(),
        }
    }

    fn actor(&self, model: &ReferenceModel, by: &ModelActor) -> Result<Actor, RefusalReason> {
        if let Some(key) = by.key {
            let secret = &model.keys[key].secret;
            let grant = self.other.verify(secret, &Need::any());
            return grant
                .map(|grant| grant.actor())
                .map_err(|_| RefusalReason::Other);
        }
        let text = |text: Option<&'static str>| text.unwrap_or("nobody");
        let principal = PrincipalId::new(text(by.principal)).map_err(|_| RefusalReason::Other)?;
        let role = Role::new(text(by.role)).map_err(|_| RefusalReason::Other)?;
        let actor = Actor::new(tenant(by.tenant), principal, role);
        Ok(match by.expires {
            Some(end) => actor
                .with_scopes(ScopeSet::parse(["reports:read"]).map_err(|_| RefusalReason::Other)?)
                .with_expiry(end),
            None => actor,
        })
    }

    async fn carry_out(
        &self,
        model: &ReferenceModel,
        actor: &Actor,
        id: &str,
        command: &ModelCommand,
    ) -> Result<IssuedSecrets, CommandError> {
        let by = actor.with_command_id(CommandId::new(id)?);
        let key = command
            .key()
            .map_or(KeyId::from_u128(0), |key| model.keys[key].id);
        let keys = &self.keys;
        match command {
            ModelCommand::Create {
                tenant: place,
                class,
                scopes,
                lifetime,
            } => {
                let draft = draft(*place, *class, scopes, *lifetime);
                let created = keys.create(by, draft).await?;
                Ok(IssuedSecrets {
                    made: Some((created.id, created.secret.expose().to_owned())),
                    provisioned: given(created.provisioned),
                })
            }
            ModelCommand::Import {
                tenant: place,
                class,
                token,
                scopes,
                lifetime,
            } => {
                let text = format!("ext-token-{token}");
                let draft = draft(*place, *class, scopes, *lifetime);
                let import = ImportKey::sha256(Digest::sha256(&text), draft);
                let imported = keys.import(by, import).await?;
                Ok(IssuedSecrets {
                    made: Some((imported.id, text)),
                    provisioned: given(imported.provisioned),
                })
            }
            ModelCommand::Update {
                scopes, lifetime, ..
            } => {
                let mut change = UpdateKey::new();
                if let Some(scopes) = scopes {
                    change = change.scopes(scopes.iter().copied());
                }
                if let Some(lifetime) = lifetime {
                    change = change.expiry(match lifetime {
                        RequestedLifetime::Class => Expiry::Class,
                        RequestedLifetime::Ever => Expiry::Never,
                        RequestedLifetime::For(lifetime) => Expiry::In(*lifetime),
                    });
                }
                keys.update(by, key, change)
                    .await
                    .map(|_| IssuedSecrets::default())
            }
            ModelCommand::Revoke { .. } => keys
                .revoke(by, key, Reason::Lost)
                .await
                .map(|_| IssuedSecrets::default()),
            ModelCommand::Disable { .. } => keys
                .disable(by, key)
                .await
                .map(|_| IssuedSecrets::default()),
            ModelCommand::Enable { .. } => {
                keys.enable(by, key).await.map(|_| IssuedSecrets::default())
            }
            ModelCommand::Delete { .. } => {
                let deleted = keys.delete(by, key, DeleteKey::plain()).await;
                deleted.map(|_| IssuedSecrets::default())
            }
            ModelCommand::Rotate { mode, .. } => {
                let how = match mode {
                    RotationTiming::Now => RotateKey::immediate(),
                    RotationTiming::Grace(grace) => RotateKey::grace(*grace),
                    RotationTiming::FirstUse(grace) => RotateKey::on_first_use(*grace),
                };
                let rotated = keys.rotate(by, key, how).await?;
                Ok(IssuedSecrets {
                    made: Some((rotated.id, rotated.secret.expose().to_owned())),
                    provisioned: Vec::new(),
                })
            }
            ModelCommand::Finish { .. } => keys
                .finish_rotation(by, key)
                .await
                .map(|_| IssuedSecrets::default()),
            ModelCommand::Cancel { .. } => keys
                .cancel_rotation(by, key)
                .await
                .map(|_| IssuedSecrets::default()),
            ModelCommand::ChangeRole {
                tenant: place,
                owner,
                role,
            } => {
                let (owner, role) = (PrincipalId::new(owner)?, Role::new(role)?);
                let changed = keys
                    .change_owner_role(by, &tenant(*place), owner, role)
                    .await;
                changed.map(|_| IssuedSecrets::default())
            }
            ModelCommand::RemoveOwner {
                tenant: place,
                owner,
            } => {
                let removed = keys
                    .remove_owner(by, &tenant(*place), PrincipalId::new(owner)?)
                    .await;
                removed.map(|_| IssuedSecrets::default())
            }
            ModelCommand::Close { tenant: place } => keys
                .close_tenant(by, &tenant(*place))
                .await
                .map(|_| IssuedSecrets::default()),
            ModelCommand::Provision { tenant: place } => {
                let provisioned = keys.provision_tenant(by, &tenant(*place)).await?;
                Ok(IssuedSecrets {
                    made: None,
                    provisioned: given(provisioned),
                })
            }
        }
    }
}

impl System for Facade {
    fn execute(
        &mut self,
        model: &ReferenceModel,
        by: &ModelActor,
        id: &str,
        command: &ModelCommand,
    ) -> Result<IssuedSecrets, RefusalReason> {
        let actor = self.actor(model, by)?;
        block_on(self.carry_out(model, &actor, id, command)).map_err(|error| reason(&error))
    }

    fn use_key(&mut self, secret: &str) {
        let _ = self.keys.verify(secret, &Need::any());
        let _ = block_on(self.keys.run_maintenance());
    }

    fn sees(&mut self, secret: &str) -> Option<u16> {
        block_on(self.other.sync()).ok()?;
        let grant = self.other.verify(secret, &Need::any()).ok()?;
        let mut mask = 0;
        for (i, resource) in RESOURCES.iter().enumerate() {
            for (j, action) in ACTIONS.iter().enumerate() {
                let scope = Scope::new(format!("{resource}:{action}")).ok()?;
                mask |= u16::from(grant.allows(&scope)) << (3 * i + j);
            }
        }
        Some(mask)
    }

    fn accepts_here(&mut self, secret: &str) -> bool {
        self.keys.verify(secret, &Need::any()).is_ok()
    }

    fn list(&mut self, path: &str) -> Vec<ListedKey> {
        let Ok(tenant) = TenantId::new(path) else {
            return Vec::new();
        };
        let host = Actor::application(tenant.clone());
        let query = self.keys.query(&tenant);
        let listed = block_on(self.keys.list(&host, &query));
        let keys = listed.map(|listed| listed.keys).unwrap_or_default();
        let of = |key: &KeyInfo| ListedKey {
            live: !matches!(key.status, Status::Revoked | Status::Expired),
            retiring: key.succession.is_some(),
            legacy: key.legacy,
            class: usize::from(key.class.as_str() == CLASSES[1]),
        };
        keys.iter().map(of).collect()
    }

    fn clock(&self) -> Timestamp {
        self.clock.now()
    }

    fn wait(&mut self, by: Duration) {
        self.clock.advance(by);
    }

    fn jump_back(&mut self, by: Duration) {
        // Both nodes read the clock first, so that they detect that the clock is set back.
        let _seen = (self.keys.now(), self.other.now());
        self.clock.set_wall(self.clock.now().saturating_sub(by));
    }
}

fn tenant(place: usize) -> TenantId {
    TenantId::new(TENANTS[place % TENANTS.len()]).expect("a valid tenant literal")
}

fn draft(
    place: usize,
    class: usize,
    scopes: &[&'static str],
    lifetime: RequestedLifetime,
) -> CreateKey {
    // The first class is the default class.
    let key = match class {
        0 => CreateKey::new("key"),
        _ => CreateKey::new("key").class(CLASSES[class]),
    };
    let key = key.in_tenant(tenant(place)).scopes(scopes.iter().copied());
    match lifetime {
        RequestedLifetime::Class => key,
        RequestedLifetime::Ever => key.never_expires(),
        RequestedLifetime::For(lifetime) => key.expires_in(lifetime),
    }
}

fn given(keys: Vec<IssuedKey>) -> Vec<(KeyId, String)> {
    let text = |key: &IssuedKey| {
        let token = key.token.as_ref();
        token.map_or(String::new(), |token| token.expose().to_owned())
    };
    keys.iter().map(|key| (key.id, text(key))).collect()
}

fn reason(error: &CommandError) -> RefusalReason {
    match error.denied() {
        Some(Denial::NotFound) => RefusalReason::NotFound,
        Some(Denial::TenantNotFound) => RefusalReason::TenantNotFound,
        Some(Denial::ActorExpired) => RefusalReason::ActorExpired,
        Some(Denial::Forbidden { .. } | Denial::SupportOnly { .. } | Denial::HostOnly { .. }) => {
            RefusalReason::Role
        }
        Some(Denial::CapReached { .. }) => RefusalReason::Cap,
        Some(Denial::ExceedsActor { .. }) => RefusalReason::Exceeds,
        Some(Denial::LegacyKey { .. }) => RefusalReason::Legacy,
        Some(Denial::Revoked) => RefusalReason::Revoked,
        Some(Denial::Expired) => RefusalReason::Expired,
        Some(Denial::Disabled) => RefusalReason::Disabled,
        Some(Denial::TenantClosed { .. }) => RefusalReason::Closed,
        Some(Denial::OwnerRemoved { .. }) => RefusalReason::OwnerRemoved,
        Some(Denial::BeingRotated { .. }) => RefusalReason::BeingRotated,
        Some(Denial::NotRotating) => RefusalReason::NotRotating,
        Some(Denial::SuccessorInUse { .. }) => RefusalReason::InUse,
        Some(Denial::DigestTaken) => RefusalReason::Taken,
        Some(Denial::AlreadyCreated { .. }) => RefusalReason::Already,
        Some(Denial::RoleDrift { .. }) => RefusalReason::Drift,
        _ => RefusalReason::Other,
    }
}
