//! Commands that issue keys: create, import, provision, and replace a lost secret.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Work, issued};
use crate::core::actor::ActorKind;
use crate::core::audit::{Action, Evidence};
use crate::core::authority::Effect;
use crate::core::command::{
    CommandOutcome, CreateKey, Denial, Expiry, ImportKey, IssuedKey, NewOwner,
};
use crate::core::hole;
use crate::core::id::KeyId;
use crate::core::invalid::{Invalid, Problem};
use crate::core::owner::{OwnerRecord, TenantRecord};
use crate::core::policy::{KeyClass, LegacyRule, ProvisionOn};
use crate::core::principal::Owner;
use crate::core::record::{
    Credential, KeyFacts, KeyRecord, KeyState, KeyType, LastAction, Lineage, Resource,
};
use crate::core::scope::ScopeSet;
use crate::core::secret::{Fingerprint, KeyMaterial, Secret};
use crate::core::text::{ClassName, Environment, Hint, KeyName};
use crate::core::time::{self, Timestamp};
use crate::core::token::{self, TokenPrefix};
use crate::core::view::Effects;

/// One hour, the time after creation within which a lost secret can be replaced. Long enough for a retry
/// after an outage, but too short to bypass a policy that forbids rotation.
const REPLACE_LOST_WITHIN: Duration = time::hours(1);

/// The parts of a key that are derived from its token, or from an imported digest.
pub(super) struct Minted {
    pub(super) id: KeyId,
    /// The token's prefix. `None` for an imported key.
    pub(super) prefix: Option<TokenPrefix>,
    pub(super) hint: Hint,
    pub(super) fingerprint: Fingerprint,
    pub(super) credential: Credential,
    /// The token. `None` for an imported key.
    pub(super) token: Option<Secret>,
}

impl<'a> Work<'a> {
    pub(super) fn create(&mut self, key: &CreateKey) -> Result<CommandOutcome, Denial> {
        let (name, rules) = self.named_class(key.class.as_ref())?;
        self.permit(&rules.create, None, "create keys", Effect::Widens)?;
        let provisioned = self.ensure_provisioned()?;
        let (record, token) = self.resolve(name, rules, key, None)?;
        self.check_room(name)?;
        let action = Action::KeyCreated {
            class: name.clone(),
        };
        let key = self.issue(record, token, action);
        Ok(CommandOutcome::Issued {
            key: Some(key),
            provisioned,
        })
    }

    pub(super) fn import(&mut self, import: &ImportKey) -> Result<CommandOutcome, Denial> {
        let (name, rules) = self.named_class(import.key.class.as_ref())?;
        // The caller of an import knows the secret and chose it, so only administrators import keys.
        self.permit_administrator("import keys", Effect::Widens)?;
        self.permit(&rules.create, None, "import keys", Effect::Widens)?;
        if rules.key_type == KeyType::Publishable {
            let expected = "a class of secret keys: a digest cannot be shown again";
            return Err(Invalid::new("class", Problem::Format { expected }).into());
        }
        let provisioned = self.ensure_provisioned()?;
        let (record, token) = self.resolve(name, rules, &import.key, Some(import))?;
        self.check_room(name)?;
        let imported = Action::KeyImported {
            class: name.clone(),
            scheme: import.scheme,
        };
        let evidence = Evidence::Imported {
            mark: self.peppers.current().mark(&import.digest),
            owner: record.owner.clone(),
            expires_at: record.expires_at,
        };
        // A recovery may have blocked this digest by its mark under any pepper. Reserving the marks under all
        // peppers refuses the import if one of them is blocked.
        let marks = self.peppers.all().map(|pepper| pepper.mark(&import.digest));
        self.change(Effects {
            digests: marks.map(|mark| (mark.as_digest(), record.id)).collect(),
            ..Effects::default()
        });
        let (did, evidence) = (LastAction::Imported, Some(evidence));
        let key = self.issue_with(record, token, did, imported, evidence);
        Ok(CommandOutcome::Issued {
            key: Some(key),
            provisioned,
        })
    }

    pub(super) fn provision_tenant(&mut self) -> Result<CommandOutcome, Denial> {
        self.permit_administrator("provision tenants", Effect::Widens)?;
        let provisioned = self.ensure_provisioned()?;
        Ok(CommandOutcome::Issued {
            key: None,
            provisioned,
        })
    }

    pub(super) fn provision_resource(
        &mut self,
        resource: &Resource,
    ) -> Result<CommandOutcome, Denial> {
        self.permit_administrator("provision resources", Effect::Widens)?;
        let on = ProvisionOn::Resource(resource.kind.clone());
        let rules: Vec<_> = self.policy.provisioned(&on).collect();
        if rules.is_empty() {
            return Err(Denial::UnknownResource);
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
        Ok(CommandOutcome::Issued {
            key: None,
            provisioned,
        })
    }

    pub(super) fn replace_lost(&mut self, id: KeyId) -> Result<CommandOutcome, Denial> {
        let mut record = self.record(id)?;
        let own_successor = self.made_by_itself(&record);
        if !own_successor {
            let (action, effect) = ("create keys", Effect::Widens);
            self.permit_class(&record, |class| &class.create, action, effect)?;
        }
        self.check_usable(&record)?;
        // An author is one specific key, not its owner. Another key of the same owner never received the
        // first secret, so it may not replace that secret.
        let by_creator = record.created.by == self.author;
        let in_time = self.now.since(record.created.at) <= REPLACE_LOST_WITHIN;
        let unused = record.predecessor.is_none() || record.awaits_first_use();
        let secret = record.key_type == KeyType::Secret;
        let Some(prefix) = record.prefix.clone().filter(|_| {
            secret && in_time && unused && (by_creator || self.caller.is_application())
        }) else {
            return Err(Denial::NotReplaceable);
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
        let minted = self.mint(&prefix, &material)?;
        record.hint = minted.hint;
        record.fingerprint = minted.fingerprint;
        record.credential = minted.credential;
        let key = issued(&record, self.scopes_of(&record), minted.token);
        self.put(record, LastAction::Replaced, Action::SecretReplaced);
        Ok(CommandOutcome::Issued {
            key: Some(key),
            provisioned: Vec::new(),
        })
    }

    /// Builds the record of a requested key. Checks the key against its class, its owner and the caller's own
    /// reach.
    fn resolve(
        &mut self,
        class: &ClassName,
        rules: &KeyClass,
        key: &CreateKey,
        import: Option<&ImportKey>,
    ) -> Result<(KeyRecord, Option<Secret>), Denial> {
        if let Some(needed) = &rules.entitlement
            && !self.request.actor.is_entitled(needed)
        {
            let (class, entitlement) = (class.clone(), needed.clone());
            return Err(Denial::NotEntitled { class, entitlement });
        }
        if self.policy.spec().purpose_required && key.purpose.is_none() {
            return Err(Denial::PurposeRequired);
        }
        check_ceiling(class, rules, &key.scopes)?;
        // An acting key creates keys for its own environment, unless the command names another environment.
        let acting = self.caller.limits();
        let own = acting.and_then(|limits| limits.reach.environment.as_ref());
        let own = own.filter(|own| rules.prefixes.contains_key(*own));
        let asked = key.environment.as_ref().or(own);
        let (environment, prefix) = environment(class, rules, asked)?;
        let owner = self.resolve_owner(&key.owner)?;
        let minted = match import {
            Some(import) => self.mint_import(import)?,
            None => {
                let material = self.draw()?;
                self.mint(&prefix, material)?
            }
        };
        let (mut record, token) = self.assemble((class, rules), key, environment, owner, minted)?;
        if let NewOwner::Principal(_, stated) = &key.owner {
            // The role in the command may differ from the owner's stored role. The key's bound then gets the
            // role in the command, so that both roles limit the key.
            let stored = self.owner_status(&record.owner).roles;
            let differs = stored.iter().any(|role| role != stated);
            record.bound.extend(differs.then(|| stated.clone()));
        }
        self.check_new_within(&record)?;
        Ok((record, token))
    }

    /// Refuses a new key that would reach more than the caller. Compares the requested scopes, even if roles
    /// narrow them today, because roles may be raised later. The key's roles in this comparison are:
    ///
    /// - for a key of the tenant: none
    /// - for a key of the caller: the caller's roles and the stored roles
    /// - for a key of another owner: that owner's stored roles and the acting key's bound
    fn check_new_within(&self, record: &KeyRecord) -> Result<(), Denial> {
        let mut roles: BTreeSet<_> = self.owner_status(&record.owner).roles.into_iter().collect();
        match record.owner.principal() {
            None => roles.clear(),
            owner if owner == self.request.actor.principal() => roles.extend(self.caller.roles()),
            Some(_) => roles.extend(self.caller.key_bound().cloned()),
        }
        let reach = self.reach_with(record, record.scopes.clone(), &roles)?;
        self.caller.check_within(&reach)
    }

    /// Registers the tenant and creates the keys that its policy provisions. Does nothing if the tenant is
    /// already registered.
    fn ensure_provisioned(&mut self) -> Result<Vec<IssuedKey>, Denial> {
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
        for rule in self.policy.provisioned(&ProvisionOn::Tenant) {
            keys.push(self.give((&rule.class, &rule.name, &rule.scopes), None, false)?);
        }
        Ok(keys)
    }

    /// Creates a key that the policy provisions. The tenant owns the key.
    fn give(
        &mut self,
        (class, name, scopes): (&ClassName, &KeyName, &ScopeSet),
        resource: Option<&Resource>,
        legacy: bool,
    ) -> Result<IssuedKey, Denial> {
        let (class, rules) = self.named_class(Some(class))?;
        let (environment, prefix) = environment(class, rules, None)?;
        self.check_room(class)?;
        let mut key = CreateKey::new(name.clone()).owned_by_tenant();
        key.scopes = scopes.clone();
        key.resource = resource.cloned();
        let material = self.draw()?;
        let minted = self.mint(&prefix, material)?;
        let of = (class, rules);
        let (mut record, token) = self.assemble(of, &key, environment, Owner::Tenant, minted)?;
        record.legacy = legacy;
        // The caller receives the secret, so the key must be within the caller's reach.
        self.check_new_within(&record)?;
        let action = Action::KeyProvisioned {
            class: class.clone(),
        };
        Ok(self.issue(record, token, action))
    }

    /// Adds the record and the audit entry of a new key. If the tenant then has too many live keys, ends the
    /// oldest grace periods.
    pub(super) fn issue(
        &mut self,
        record: KeyRecord,
        token: Option<Secret>,
        action: Action,
    ) -> IssuedKey {
        self.issue_with(record, token, LastAction::Created, action, None)
    }

    fn issue_with(
        &mut self,
        mut record: KeyRecord,
        token: Option<Secret>,
        did: LastAction,
        action: Action,
        evidence: Option<Evidence>,
    ) -> IssuedKey {
        record.manages &= self.is_whole(&record);
        let key = issued(&record, self.scopes_of(&record), token);
        let class = record.class.clone();
        self.put_with(record, did, action, evidence);
        self.bound_live(&class);
        key
    }

    /// Creates a token from `material`, and the parts of the record that are derived from the token.
    pub(super) fn mint(
        &self,
        prefix: &TokenPrefix,
        material: &KeyMaterial,
    ) -> Result<Minted, Denial> {
        let text = token::compose(prefix, material);
        let pepper = self.peppers.current();
        Ok(Minted {
            id: material.id(),
            prefix: Some(prefix.clone()),
            hint: token::hint_of(prefix, &text)?,
            fingerprint: Fingerprint::of_token(text.as_bytes()),
            credential: Credential::Peppered {
                pepper: pepper.id().clone(),
                digest: pepper.digest(token::id_and_secret(&text)),
            },
            token: Some(Secret::new(text)),
        })
    }

    fn mint_import(&mut self, import: &ImportKey) -> Result<Minted, Denial> {
        let fingerprint = Fingerprint::of_sha256(&import.digest);
        let hint = match &import.hint {
            Some(hint) => hint.clone(),
            None => Hint::new(format!("{fingerprint}…"))?,
        };
        Ok(Minted {
            id: self.draw()?.id(),
            prefix: None,
            hint,
            fingerprint,
            credential: Credential::Imported {
                scheme: import.scheme,
                digest: import.digest,
            },
            token: None,
        })
    }

    /// Returns the record of a new key, and its token.
    fn assemble(
        &self,
        (class, rules): (&ClassName, &KeyClass),
        key: &CreateKey,
        environment: Environment,
        owner: Owner,
        minted: Minted,
    ) -> Result<(KeyRecord, Option<Secret>), Denial> {
        let Minted {
            id,
            prefix,
            hint,
            fingerprint,
            credential,
            token,
        } = minted;
        let acting = self.caller.limits().and_then(|limits| limits.key.as_ref());
        let unnamed = Invalid::new("key name", Problem::Empty);
        let record = KeyRecord {
            facts: KeyFacts {
                id,
                tenant: self.request.tenant.clone(),
                class: class.clone(),
                key_type: rules.key_type,
                environment,
                name: key.name.clone().ok_or(unnamed)?,
                description: key.description.clone(),
                purpose: key.purpose.clone(),
                metadata: key.metadata.clone(),
                bound: self.bound_at_receipt(&owner, key.recipient.as_ref())?,
                owner,
                manages: true,
                scopes: key.scopes.clone(),
                allowlist: key.allowlist.clone(),
                resource: key.resource.clone(),
                exposed_at: None,
                created: self.stamp(),
                updated: self.stamp(),
                last_action: LastAction::Created,
                expires_at: self.expiry(rules, key.expiry, self.now)?,
                legacy: false,
                predecessor: None,
                succession: None,
                hint,
                fingerprint,
                published: published(rules, token.as_ref()),
            },
            prefix,
            makers: self.makers(&[])?,
            lineage: Lineage {
                first: id,
                since: self.chain_began(),
                created_by: acting.map(|key| key.id),
            },
            state: KeyState::Enabled,
            credential,
        };
        Ok((record, token))
    }

    /// Returns the instant at which the rotation chain of a new key begins. If a key creates the new key,
    /// this is the beginning of the creator's chain. The age of a chain limits self-rotation, so keys cannot
    /// renew one another forever.
    fn chain_began(&self) -> Timestamp {
        let acting = self.caller.limits().and_then(|limits| limits.key.as_ref());
        acting.map_or(self.now, |key| key.lineage.since)
    }

    fn named_class(
        &self,
        name: Option<&ClassName>,
    ) -> Result<(&'a ClassName, &'a KeyClass), Denial> {
        let spec = self.policy.spec();
        let name = name.unwrap_or(&spec.default_class);
        let unknown = || Denial::UnknownClass {
            class: name.clone(),
        };
        spec.classes.get_key_value(name).ok_or_else(unknown)
    }

    /// Resolves the owner of a new key. If neither the tenant nor an ancestor has a role for the owner,
    /// stores a role in this tenant. Lowering the role in that one row later narrows all keys of the owner.
    fn resolve_owner(&mut self, spec: &NewOwner) -> Result<Owner, Denial> {
        let (principal, stated) = match (spec, self.request.actor.kind()) {
            (NewOwner::Tenant, _) => {
                let action = "create keys that belong to the tenant";
                self.permit_administrator(action, Effect::Widens)?;
                return Ok(Owner::Tenant);
            }
            (NewOwner::Principal(principal, role), _) => (principal, Some(role)),
            (NewOwner::Creator, ActorKind::Application) => return Ok(Owner::Tenant),
            (NewOwner::Creator, ActorKind::Person { principal, role }) => (principal, Some(role)),
            (NewOwner::Creator, ActorKind::Key(key)) => match key.owner.principal() {
                Some(principal) => (principal, None),
                None => {
                    let action = "own keys";
                    return Err(Denial::Forbidden { action, role: None });
                }
            },
        };
        let owner = Owner::Principal(principal.clone());
        let owner_status = self.owner_status(&owner);
        if owner_status.refuses_owner(self.now) {
            let owner = principal.clone();
            return Err(Denial::OwnerRemoved { owner });
        }
        // If the actor is the owner, uses the role that the application states for the actor instead of the
        // role in the command.
        let stated = match self.request.actor.role() {
            Some(own) if self.request.actor.principal() == Some(principal) => Some(own),
            _ => stated,
        };
        if let Some(role) = stated.filter(|_| owner_status.roles.is_empty()) {
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

    /// Returns the instant at which a key with the requested `expiry` ends. The default and maximum lifetimes
    /// of the class count from the instant `from`.
    pub(super) fn expiry(
        &self,
        class: &KeyClass,
        expiry: Expiry,
        from: Timestamp,
    ) -> Result<Option<Timestamp>, Denial> {
        let (lifetime, now) = (class.lifetime, self.alive_at());
        let max = lifetime.max.map(|max| from.saturating_add(max));
        let end = match expiry {
            Expiry::Class => lifetime
                .default
                .or(lifetime.max)
                .map(|default| from.saturating_add(default)),
            Expiry::Never => None,
            Expiry::At(end) => Some(end),
            // While the clocks disagree, `now` is the earliest plausible time. An expiry counted from it
            // could be too early and end a live key. `self.now` is never earlier.
            Expiry::In(lifetime) => Some(self.now.saturating_add(lifetime)),
        };
        let in_past = end.is_some_and(|end| end <= now);
        let beyond = max.is_some_and(|max| end.is_none_or(|end| end > max));
        if in_past || beyond {
            return Err(Denial::Expiry { after: now, max });
        }
        Ok(end)
    }
}

/// Returns the token to store in the record of a publishable key. `None` for a secret key, whose token is
/// never stored.
pub(super) fn published(rules: &KeyClass, token: Option<&Secret>) -> Option<String> {
    let shown = token.filter(|_| rules.key_type == KeyType::Publishable);
    shown.map(Secret::publish)
}

pub(super) fn check_ceiling(
    class: &ClassName,
    rules: &KeyClass,
    scopes: &ScopeSet,
) -> Result<(), Denial> {
    match scopes.iter().find(|scope| !rules.ceiling.allows(scope)) {
        Some(scope) => Err(Denial::ScopeNotAllowed {
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
) -> Result<(Environment, TokenPrefix), Denial> {
    let found = match asked {
        Some(asked) => rules.prefixes.get_key_value(asked),
        None => rules.default_environment(),
    };
    let clone =
        |(environment, prefix): (&Environment, &TokenPrefix)| (environment.clone(), prefix.clone());
    found.map(clone).ok_or_else(|| Denial::Environment {
        class: class.clone(),
        asked: asked.cloned(),
        offered: rules.prefixes.keys().cloned().collect(),
    })
}
