//! Keys that come into being: created, imported, provisioned, replaced when lost.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Work, issued};
use crate::core::actor::Identity;
use crate::core::audit::{Action, Evidence};
use crate::core::authority::Effect;
use crate::core::command::{Denied, Expiry, IssuedKey, KeySpec, Outcome, OwnerSpec};
use crate::core::hole;
use crate::core::id::KeyId;
use crate::core::invalid::{Invalid, Problem};
use crate::core::owner::{OwnerRecord, TenantRecord};
use crate::core::policy::{KeyClass, LegacyRule, Trigger};
use crate::core::principal::Owner;
use crate::core::reach::{self, Classes, Reach, RoleReach, Tenants};
use crate::core::record::{
    Credential, ImportScheme, KeyRecord, KeyState, LastAction, Lineage, Maker, Predecessor,
    Resource, Visibility,
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
    pub(super) bound: BTreeSet<Role>,
    /// Whether it may come to manage. A successor does only if its predecessor did.
    pub(super) manages: bool,
    pub(super) makers: Vec<Maker>,
    /// `None` for the first key of a chain.
    pub(super) lineage: Option<Lineage>,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) legacy: bool,
    pub(super) predecessor: Option<Predecessor>,
}

impl<'a> Work<'a> {
    pub(super) fn create(&mut self, spec: &KeySpec) -> Result<Outcome, Denied> {
        let (name, class) = self.named_class(spec.class.as_ref())?;
        self.permit(&class.create, None, "create keys", Effect::Widens)?;
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
        // Whoever imports chooses the secret.
        self.permit_administrator("import keys", Effect::Widens)?;
        self.permit(&class.create, None, "import keys", Effect::Widens)?;
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
        let record = KeyRecord {
            manages: self.is_whole(&record),
            ..record
        };
        let key = issued(&record, self.scopes_of(&record), None);
        let imported = Action::KeyImported {
            class: class.clone(),
            scheme,
        };
        let evidence = Evidence::Imported {
            mark: self.peppers.current().mark(&digest),
            owner: record.owner.clone(),
            expires_at: record.expires_at,
        };
        // Taken under every pepper, so that a mark which a recovery laid is met.
        let marks = self.peppers.all().map(|pepper| pepper.mark(&digest));
        self.change(Effects {
            digests: marks.map(|mark| (mark.as_digest(), id)).collect(),
            ..Effects::default()
        });
        self.put_with(record, LastAction::Imported, imported, Some(evidence));
        self.bound_live(&class);
        Ok(Outcome::Issued {
            key: Some(key),
            provisioned,
        })
    }

    pub(super) fn provision_tenant(&mut self) -> Result<Outcome, Denied> {
        self.permit_administrator("provision tenants", Effect::Widens)?;
        let provisioned = self.ensure_provisioned()?;
        Ok(Outcome::Issued {
            key: None,
            provisioned,
        })
    }

    pub(super) fn provision_resource(&mut self, resource: &Resource) -> Result<Outcome, Denied> {
        self.permit_administrator("provision resources", Effect::Widens)?;
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
        let own_successor = self.made_by_itself(&record);
        if !own_successor {
            let (action, effect) = ("create keys", Effect::Widens);
            self.permit_class(&record, |class| &class.create, action, effect)?;
        }
        self.check_usable(&record)?;
        // The very one: another key of the same owner did not receive the first secret.
        let by_creator = record.created.by == self.author;
        let in_time = self.now.since(record.created.at) <= REPLACE_LOST_WITHIN;
        let unused = record.predecessor.is_none() || record.awaits_first_use();
        let secret = record.visibility == Visibility::Secret;
        let Some(prefix) = record.prefix.clone().filter(|_| {
            secret && in_time && unused && (by_creator || self.caller.is_application())
        }) else {
            return Err(Denied::NotReplaceable);
        };
        match own_successor {
            true => self.check_own_successor_within(&record)?,
            false => self.check_key_within(&record)?,
        }
        let received = self.bound_at_receipt(&record.owner, None)?;
        record.bound.extend(received);
        record.manages &= self.is_whole(&record);
        let material = KeyMaterial {
            id,
            secret: self.draw()?.secret,
        };
        let (text, credential) = self.seal_token(&prefix, &material);
        record.hint = token::hint_of(&prefix, &text)?;
        record.fingerprint = Fingerprint::of_token(text.as_bytes());
        record.credential = credential;
        let key = issued(&record, self.scopes_of(&record), Some(Secret::new(text)));
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
        // A key makes keys for its own environment, unless another one is named.
        let acting = self.caller.limits();
        let own = acting.and_then(|limits| limits.reach.environment.as_ref());
        let own = own.filter(|own| rules.prefixes.contains_key(*own));
        let asked = spec.environment.as_ref().or(own);
        let (environment, prefix) = environment(class, rules, asked)?;
        let expires_at = self.expiry(rules, spec.expiry, self.now)?;
        let owner = self.resolve_owner(&spec.owner)?;
        let mut bound = self.bound_at_receipt(&owner, spec.recipient.as_ref())?;
        if let OwnerSpec::Principal(_, stated) = &spec.owner {
            // Another role is stored for the owner: both must allow.
            let stored = self.standing(&owner).roles;
            let differs = stored.iter().any(|role| role != stated);
            bound.extend(differs.then(|| stated.clone()));
        }
        let plan = Plan {
            class: class.clone(),
            environment,
            prefix,
            spec: spec.clone(),
            owner,
            bound,
            manages: true,
            makers: self.makers(&[])?,
            lineage: None,
            expires_at,
            legacy: false,
            predecessor: None,
        };
        self.check_plan_within(&plan, rules)?;
        Ok(plan)
    }

    /// Refuses a key to come that would reach more than the caller. Scopes count as they are asked for,
    /// whatever narrows them today. Another owner counts as it stands, within what bounds the key that
    /// acts; the caller's own principal is bounded by all that bounds the caller.
    fn check_plan_within(&self, plan: &Plan, rules: &KeyClass) -> Result<(), Denied> {
        let mut roles: BTreeSet<_> = self.standing(&plan.owner).roles.into_iter().collect();
        match plan.owner.principal() {
            None => roles.clear(),
            owner if owner == self.request.actor.principal() => roles.extend(self.caller.roles()),
            Some(_) => roles.extend(self.caller.key_bound().cloned()),
        }
        let reach = Reach {
            scopes: plan.spec.scopes.clone(),
            role: RoleReach::of(&roles, self.policy),
            until: plan.expires_at,
            renewable_until: reach::renewable_until(rules, plan.expires_at, self.chain_began()),
            tenants: Tenants::of(self.request.tenant.clone(), rules),
            environment: Some(plan.environment.clone()),
            resource: plan.spec.resource.clone(),
            addresses: plan.spec.allowlist.clone(),
            key_type: rules.visibility,
            classes: Classes::of(&plan.class, rules),
            propagation: self.policy.propagation(&plan.class).bound,
        };
        self.caller.check_within(&reach)
    }

    /// Makes the tenant known, with the keys that come with it, unless it is known.
    fn ensure_provisioned(&mut self) -> Result<Vec<IssuedKey>, Denied> {
        let known = self.view.tenant.clone();
        if known.as_ref().is_some_and(TenantRecord::is_provisioned) {
            return Ok(Vec::new());
        }
        if !hole::is_open("anybody provisions") {
            self.permit_administrator("provision tenants", Effect::Widens)?;
        }
        let tenant = self.request.tenant.clone();
        let row = known.unwrap_or_else(|| TenantRecord::new(tenant, self.stamp()));
        let row = TenantRecord {
            provisioned: Some(self.stamp()),
            ..row
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
            recipient: None,
        };
        let plan = Plan {
            class: class.clone(),
            environment,
            prefix,
            spec,
            owner: Owner::Tenant,
            bound: self.bound_at_receipt(&Owner::Tenant, None)?,
            manages: true,
            makers: self.makers(&[])?,
            lineage: None,
            expires_at,
            legacy,
            predecessor: None,
        };
        // Its secret goes to whoever asked, so they may not get more by it than they have.
        self.check_plan_within(&plan, rules)?;
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
        record.manages &= self.is_whole(&record);
        if record.visibility == Visibility::Publishable {
            record.published = Some(text.to_string());
        }
        let key = issued(&record, self.scopes_of(&record), Some(Secret::new(text)));
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
            bound,
            manages,
            makers,
            lineage,
            expires_at,
            legacy,
            predecessor,
        } = plan;
        let created_by = self
            .caller
            .limits()
            .and_then(|limits| Some(limits.key.as_ref()?.id));
        let since = self.chain_began();
        let lineage = lineage.unwrap_or(Lineage {
            first: id,
            since,
            created_by,
        });
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
            recipient: _,
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
            bound,
            manages,
            makers,
            lineage,
            scopes,
            allowlist,
            resource,
            exposed_at: None,
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

    /// Returns when the chain of a new key begins. A key that a key made is as old as that one's chain, so
    /// that keys do not renew one another for ever.
    fn chain_began(&self) -> Timestamp {
        let acting = self.caller.limits().and_then(|limits| limits.key.as_ref());
        acting.map_or(self.now, |key| key.lineage.since)
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

    /// Finds the owner of a new key. An owner who has no role along the path yet is given one here, so
    /// that its keys can be narrowed by one row.
    fn resolve_owner(&mut self, spec: &OwnerSpec) -> Result<Owner, Denied> {
        let (principal, stated) = match (spec, self.request.actor.identity()) {
            (OwnerSpec::Tenant, _) => {
                let action = "create keys that belong to the tenant";
                self.permit_administrator(action, Effect::Widens)?;
                return Ok(Owner::Tenant);
            }
            (OwnerSpec::Principal(principal, role), _) => (principal, Some(role)),
            (OwnerSpec::Creator, Identity::Application) => return Ok(Owner::Tenant),
            (OwnerSpec::Creator, Identity::Person { principal, role }) => (principal, Some(role)),
            (OwnerSpec::Creator, Identity::Key(key)) => match key.owner.principal() {
                Some(principal) => (principal, None),
                None => {
                    let action = "own keys";
                    return Err(Denied::Forbidden { action, role: None });
                }
            },
        };
        let owner = Owner::Principal(principal.clone());
        let standing = self.standing(&owner);
        if standing.refuses_owner(self.now) {
            let owner = principal.clone();
            return Err(Denied::OwnerRemoved { owner });
        }
        // What a person states of itself is the application's to say.
        let stated = match self.request.actor.role() {
            Some(own) if self.request.actor.principal() == Some(principal) => Some(own),
            _ => stated,
        };
        if let Some(role) = stated.filter(|_| standing.roles.is_empty()) {
            if self.request.actor.principal() != Some(principal) {
                self.permit_administrator("set the role of others", Effect::Widens)?;
                self.check_role_within(role)?;
            }
            let (principal, role) = (principal.clone(), role.clone());
            let row = OwnerRecord {
                tenant: self.request.tenant.clone(),
                owner: principal.clone(),
                role: Some(role.clone()),
                removed_at: None,
                raised_from: Default::default(),
                updated: self.stamp(),
            };
            self.change(Effects {
                owners: vec![row],
                ..Effects::default()
            });
            let owner = principal;
            self.log(Action::OwnerAdded { owner, role }, None);
        }
        Ok(owner)
    }

    /// When a key ends that is to live as `expiry` says, counted from `from`.
    pub(super) fn expiry(
        &self,
        class: &KeyClass,
        expiry: Expiry,
        from: Timestamp,
    ) -> Result<Option<Timestamp>, Denied> {
        let (lifetime, now) = (class.lifetime, self.alive_at());
        let max = lifetime.max.map(|max| from.saturating_add(max));
        let end = match expiry {
            Expiry::Class => lifetime
                .default
                .or(lifetime.max)
                .map(|default| from.saturating_add(default)),
            Expiry::Never => None,
            Expiry::At(end) => Some(end),
            // From the later instant: in doubt it prolongs, which is refused, rather than ends a key.
            Expiry::In(lifetime) => Some(self.now.saturating_add(lifetime)),
        };
        let in_past = end.is_some_and(|end| end <= now);
        let beyond = max.is_some_and(|max| end.is_none_or(|end| end > max));
        if in_past || beyond {
            return Err(Denied::Expiry { after: now, max });
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
