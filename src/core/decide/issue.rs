//! Keys that come into being: created, imported, provisioned, replaced when lost.

use std::time::Duration;

use super::{Work, issued};
use crate::core::audit::Action;
use crate::core::command::{Denied, Expiry, IssuedKey, KeySpec, Outcome, OwnerSpec};
use crate::core::id::KeyId;
use crate::core::invalid::{Invalid, Problem};
use crate::core::owner::{Owner, OwnerRecord, TenantRecord};
use crate::core::policy::{KeyClass, LegacyRule, Trigger};
use crate::core::record::{
    Credential, ImportScheme, KeyRecord, KeyState, LastAction, Predecessor, Resource, Visibility,
};
use crate::core::scope::ScopeSet;
use crate::core::secret::{Digest, Fingerprint, KeyMaterial, Secret};
use crate::core::text::{ClassName, Environment, Hint, KeyName, Role};
use crate::core::time::{self, Timestamp};
use crate::core::token::{self, TokenPrefix};
use crate::core::view::Effects;

/// How long a lost secret can be replaced: an hour. A judgement: long enough for a retry after an
/// outage, too short to stand in for a rotation that the policy forbids.
const REPLACE_LOST_WITHIN: Duration = time::hours(1);

/// A key to come, with everything resolved but its token.
pub(super) struct Plan {
    pub(super) class: ClassName,
    pub(super) environment: Environment,
    pub(super) prefix: TokenPrefix,
    pub(super) spec: KeySpec,
    pub(super) owner: Owner,
    pub(super) owner_role: Option<Role>,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) legacy: bool,
    pub(super) predecessor: Option<Predecessor>,
}

impl<'a> Work<'a> {
    pub(super) fn create(&mut self, spec: &KeySpec) -> Result<Outcome, Denied> {
        let (name, class) = self.named_class(spec.class.as_ref())?;
        self.permit(&class.create, None, "create keys")?;
        let provisioned = self.ensure_provisioned()?;
        let plan = self.plan(name, class, spec)?;
        self.check_room(&plan.class)?;
        let class = plan.class.clone();
        let key = self.issue(plan, LastAction::Created, Action::KeyCreated { class })?;
        Ok(Outcome::Issued {
            key: Some(key),
            provisioned,
        })
    }

    pub(super) fn import(
        &mut self,
        spec: &KeySpec,
        scheme: ImportScheme,
        digest: Digest,
        hint: Option<&Hint>,
    ) -> Result<Outcome, Denied> {
        let (name, class) = self.named_class(spec.class.as_ref())?;
        self.permit(&class.create, None, "import keys")?;
        if class.visibility == Visibility::Publishable {
            let expected = "a class of secret keys: a digest cannot be shown again";
            return Err(Invalid::new("class", Problem::Form { expected }).into());
        }
        let provisioned = self.ensure_provisioned()?;
        let plan = self.plan(name, class, spec)?;
        self.check_room(&plan.class)?;
        let id = self.draw()?.id();
        let fingerprint = Fingerprint::of_sha256(&digest);
        let hint = match hint {
            Some(hint) => hint.clone(),
            None => Hint::new(format!("{fingerprint}…"))?,
        };
        let credential = Credential::Imported { scheme, digest };
        let class = plan.class.clone();
        let record = KeyRecord {
            prefix: None,
            ..self.assemble(plan, id, hint, fingerprint, credential)
        };
        let key = issued(&record, None);
        let imported = Action::KeyImported {
            class: class.clone(),
            scheme,
        };
        self.put(record, LastAction::Imported, imported);
        self.bound_live(&class);
        Ok(Outcome::Issued {
            key: Some(key),
            provisioned,
        })
    }

    pub(super) fn provision_tenant(&mut self) -> Result<Outcome, Denied> {
        self.permit_administrator("provision tenants")?;
        let provisioned = self.ensure_provisioned()?;
        Ok(Outcome::Issued {
            key: None,
            provisioned,
        })
    }

    pub(super) fn provision_resource(&mut self, resource: &Resource) -> Result<Outcome, Denied> {
        self.permit_administrator("provision resources")?;
        let on = Trigger::Resource(resource.kind.clone());
        let rules: Vec<_> = self.policy.provisioned(&on).collect();
        if rules.is_empty() {
            return Err(Denied::UnknownResource);
        }
        let mut provisioned = self.ensure_provisioned()?;
        self.log(
            Action::ResourceProvisioned {
                resource: resource.id.clone(),
            },
            None,
        );
        for rule in rules {
            let given = (&rule.class, &rule.name, &rule.scopes);
            provisioned.push(self.give(given, Some(resource), false)?);
        }
        Ok(Outcome::Issued {
            key: None,
            provisioned,
        })
    }

    pub(super) fn replace_lost(&mut self, id: KeyId) -> Result<Outcome, Denied> {
        let mut record = self.record(id)?;
        let class = self.class_of(&record)?;
        self.permit(&class.create, Some(&record), "create keys")?;
        self.check_usable(&record)?;
        let by_creator = record.created.by == *self.request.actor.principal();
        let in_time = self.now.since(record.created.at) <= REPLACE_LOST_WITHIN;
        let unused = record.predecessor.is_none() || record.awaits_first_use();
        let secret = record.visibility == Visibility::Secret;
        let Some(prefix) = record.prefix.clone().filter(|_| {
            secret && in_time && unused && (by_creator || self.request.actor.is_system())
        }) else {
            return Err(Denied::NotReplaceable);
        };
        self.check_key_contained(&record)?;
        let material = KeyMaterial {
            id,
            secret: self.draw()?.secret,
        };
        let (text, credential) = self.seal_token(&prefix, &material);
        record.hint = token::hint_of(&prefix, &text)?;
        record.fingerprint = Fingerprint::of_token(text.as_bytes());
        record.credential = credential;
        let key = issued(&record, Some(Secret::new(text)));
        self.put(record, LastAction::Replaced, Action::SecretReplaced);
        Ok(Outcome::Issued {
            key: Some(key),
            provisioned: Vec::new(),
        })
    }

    /// Resolves what a caller asked for against its class, its owner and the caller's own reach.
    fn plan(
        &mut self,
        class: &ClassName,
        rules: &'a KeyClass,
        spec: &KeySpec,
    ) -> Result<Plan, Denied> {
        if let Some(needed) = &rules.entitlement
            && !self.request.actor.is_entitled(needed)
        {
            let (class, entitlement) = (class.clone(), needed.clone());
            return Err(Denied::NotEntitled { class, entitlement });
        }
        if self.policy.spec().purpose_required && spec.purpose.is_none() {
            return Err(Denied::PurposeRequired);
        }
        check_ceiling(class, rules, &spec.scopes)?;
        let (environment, prefix) = environment(class, rules, spec.environment.as_ref())?;
        let expires_at = self.expiry(rules, spec.expiry, self.now)?;
        self.check_contained(&spec.scopes, expires_at)?;
        let (owner, owner_role) = self.resolve_owner(&spec.owner)?;
        Ok(Plan {
            class: class.clone(),
            environment,
            prefix,
            spec: spec.clone(),
            owner,
            owner_role,
            expires_at,
            legacy: false,
            predecessor: None,
        })
    }

    /// Makes the tenant known, with the keys that come with it, unless it is known.
    fn ensure_provisioned(&mut self) -> Result<Vec<IssuedKey>, Denied> {
        if self.view.tenant.is_some() {
            return Ok(Vec::new());
        }
        let tenant = self.request.tenant.clone();
        let row = TenantRecord {
            tenant,
            provisioned: self.stamp(),
            closed: None,
        };
        self.change(Effects {
            tenant: Some(row),
            ..Effects::default()
        });
        self.log(Action::TenantProvisioned, None);
        let mut keys = Vec::new();
        if let LegacyRule::One {
            class,
            name,
            scopes,
        } = &self.policy.spec().legacy
        {
            keys.push(self.give((class, name, scopes), None, true)?);
        }
        for rule in self.policy.provisioned(&Trigger::Tenant) {
            keys.push(self.give((&rule.class, &rule.name, &rule.scopes), None, false)?);
        }
        Ok(keys)
    }

    /// Makes a key that comes by itself and belongs to the tenant.
    fn give(
        &mut self,
        (class, name, scopes): (&ClassName, &KeyName, &ScopeSet),
        resource: Option<&Resource>,
        legacy: bool,
    ) -> Result<IssuedKey, Denied> {
        let (class, rules) = self.named_class(Some(class))?;
        let (environment, prefix) = environment(class, rules, None)?;
        let expires_at = self.expiry(rules, Expiry::Class, self.now)?;
        if rules.visibility == Visibility::Secret {
            // Its secret goes to whoever asked, so they may not get more by it than they have.
            self.check_contained(scopes, expires_at)?;
        }
        self.check_room(class)?;
        let spec = KeySpec {
            class: None,
            environment: None,
            name: name.clone(),
            description: None,
            purpose: None,
            metadata: Default::default(),
            owner: OwnerSpec::Tenant,
            scopes: scopes.clone(),
            allowlist: Default::default(),
            resource: resource.cloned(),
            expiry: Expiry::Class,
        };
        let plan = Plan {
            class: class.clone(),
            environment,
            prefix,
            spec,
            owner: Owner::Tenant,
            owner_role: None,
            expires_at,
            legacy,
            predecessor: None,
        };
        let action = Action::KeyProvisioned {
            class: class.clone(),
        };
        self.issue(plan, LastAction::Created, action)
    }

    /// Makes the key of `plan`: token, digest, record, audit entry.
    pub(super) fn issue(
        &mut self,
        plan: Plan,
        did: LastAction,
        action: Action,
    ) -> Result<IssuedKey, Denied> {
        let material = self.draw()?;
        let (text, credential) = self.seal_token(&plan.prefix, material);
        let hint = token::hint_of(&plan.prefix, &text)?;
        let fingerprint = Fingerprint::of_token(text.as_bytes());
        let mut record = self.assemble(plan, material.id(), hint, fingerprint, credential);
        if record.visibility == Visibility::Publishable {
            record.published = Some(text.to_string());
        }
        let key = issued(&record, Some(Secret::new(text)));
        let class = record.class.clone();
        self.put(record, did, action);
        self.bound_live(&class);
        Ok(key)
    }

    fn seal_token(
        &self,
        prefix: &TokenPrefix,
        material: &KeyMaterial,
    ) -> (zeroize::Zeroizing<String>, Credential) {
        let text = token::compose(prefix, material);
        let pepper = self.peppers.current();
        let digest = pepper.digest(token::id_and_secret(&text));
        (
            text,
            Credential::Peppered {
                pepper: pepper.id().clone(),
                digest,
            },
        )
    }

    fn assemble(
        &self,
        plan: Plan,
        id: KeyId,
        hint: Hint,
        fingerprint: Fingerprint,
        credential: Credential,
    ) -> KeyRecord {
        let Plan {
            class,
            environment,
            prefix,
            spec,
            owner,
            owner_role,
            expires_at,
            legacy,
            predecessor,
        } = plan;
        let KeySpec {
            class: _,
            environment: _,
            name,
            description,
            purpose,
            metadata,
            owner: _,
            scopes,
            allowlist,
            resource,
            expiry: _,
        } = spec;
        let visibility = self
            .policy
            .class(&class)
            .map_or(Visibility::Secret, |c| c.visibility);
        KeyRecord {
            id,
            tenant: self.request.tenant.clone(),
            class,
            visibility,
            environment,
            prefix: Some(prefix),
            name,
            description,
            purpose,
            metadata,
            owner,
            owner_role,
            scopes,
            allowlist,
            resource,
            created: self.stamp(),
            updated: self.stamp(),
            last_action: LastAction::Created,
            expires_at,
            state: KeyState::Enabled,
            legacy,
            predecessor,
            succession: None,
            hint,
            fingerprint,
            credential,
            published: None,
        }
    }

    fn named_class(
        &self,
        name: Option<&ClassName>,
    ) -> Result<(&'a ClassName, &'a KeyClass), Denied> {
        let spec = self.policy.spec();
        let name = name.unwrap_or(&spec.default_class);
        let unknown = || Denied::UnknownClass {
            class: name.clone(),
        };
        spec.classes.get_key_value(name).ok_or_else(unknown)
    }

    /// Finds or makes the row of a new key's owner.
    fn resolve_owner(&mut self, spec: &OwnerSpec) -> Result<(Owner, Option<Role>), Denied> {
        let actor = &self.request.actor;
        let (principal, role) = match spec {
            OwnerSpec::Tenant => {
                self.permit_administrator("create keys that belong to the tenant")?;
                return Ok((Owner::Tenant, None));
            }
            OwnerSpec::Creator if actor.is_system() => return Ok((Owner::Tenant, None)),
            OwnerSpec::Creator => match actor.role() {
                Some(role) => (actor.principal().clone(), role.clone()),
                None => {
                    return Err(Denied::Forbidden {
                        action: "own keys",
                        role: None,
                    });
                }
            },
            OwnerSpec::Principal(principal, role) => {
                // Whoever holds the key acts as its owner.
                self.check_grants_role(role)?;
                (principal.clone(), role.clone())
            }
        };
        let owner = Owner::Principal(principal.clone());
        if self.standing(&owner).refuses_owner(self.now) {
            return Err(Denied::OwnerRemoved { owner: principal });
        }
        if let Some(known) = self.view.owner(&principal).and_then(|row| row.role.clone()) {
            if *spec != OwnerSpec::Creator {
                self.check_grants_role(&known)?;
            }
            return Ok((owner, Some(known)));
        }
        let row = OwnerRecord {
            tenant: self.request.tenant.clone(),
            owner: principal.clone(),
            role: Some(role.clone()),
            removed_at: None,
            updated: self.stamp(),
        };
        self.change(Effects {
            owners: vec![row],
            ..Effects::default()
        });
        self.log(
            Action::OwnerAdded {
                owner: principal,
                role: role.clone(),
            },
            None,
        );
        Ok((owner, Some(role)))
    }

    /// When a key ends that is to live as `expiry` says, counted from `from`.
    pub(super) fn expiry(
        &self,
        class: &KeyClass,
        expiry: Expiry,
        from: Timestamp,
    ) -> Result<Option<Timestamp>, Denied> {
        let lifetime = class.lifetime;
        let max = lifetime.max.map(|max| from.saturating_add(max));
        let end = match expiry {
            Expiry::Class => lifetime
                .default
                .or(lifetime.max)
                .map(|default| from.saturating_add(default)),
            Expiry::Never => None,
            Expiry::At(end) => Some(end),
            Expiry::In(lifetime) => Some(self.now.saturating_add(lifetime)),
        };
        let in_past = end.is_some_and(|end| end <= self.now);
        let beyond = max.is_some_and(|max| end.is_none_or(|end| end > max));
        if in_past || beyond {
            return Err(Denied::Expiry {
                after: self.now,
                max,
            });
        }
        Ok(end)
    }
}

pub(super) fn check_ceiling(
    class: &ClassName,
    rules: &KeyClass,
    scopes: &ScopeSet,
) -> Result<(), Denied> {
    match scopes.iter().find(|scope| !rules.ceiling.allows(scope)) {
        Some(scope) => Err(Denied::ScopeNotAllowed {
            class: class.clone(),
            scope: scope.clone(),
        }),
        None => Ok(()),
    }
}

pub(super) fn environment(
    class: &ClassName,
    rules: &KeyClass,
    asked: Option<&Environment>,
) -> Result<(Environment, TokenPrefix), Denied> {
    let found = match asked {
        Some(asked) => rules.prefixes.get_key_value(asked),
        None => rules.default_environment(),
    };
    let clone =
        |(environment, prefix): (&Environment, &TokenPrefix)| (environment.clone(), prefix.clone());
    found.map(clone).ok_or_else(|| Denied::Environment {
        class: class.clone(),
        asked: asked.cloned(),
        offered: rules.prefixes.keys().cloned().collect(),
    })
}
