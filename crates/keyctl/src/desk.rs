//! The state most commands share: the open store, and the actor that commands run as.

use std::sync::Arc;

use keyward::command::{CommandId, Invocation};
use keyward::policy::{Policies, Policy, PolicySpec};
use keyward::store::{KeyStore, Locator, Row};
use keyward::{Actor, Denial, KeyId, Keyward, PepperRing, Receipt, TenantId};
use serde_json::{Value, json};

use crate::args::{Common, Repeatable};
use crate::failure::{Answer, Failure, Kind};
use crate::store::{self, Expected, Store};

pub(crate) struct Desk {
    common: Common,
    pub(crate) whole: Store,
    pub(crate) store: Arc<dyn KeyStore>,
    pub(crate) keys: Keyward,
    pub(crate) policies: Policies,
}

impl Desk {
    /// Opens an existing store and its peppers.
    pub(crate) async fn open(common: Common) -> Answer<Self> {
        let store = store::open(&common, Expected::Existing).await?;
        let peppers = store::peppers(&common)?;
        Self::over(common, store, peppers).await
    }

    pub(crate) async fn over(common: Common, whole: Store, peppers: PepperRing) -> Answer<Self> {
        let policies = policies(&common)?;
        let store = whole.keys();
        let builder = Keyward::builder(store.clone(), peppers).policy(policies.clone());
        let keys = builder.build().await?;
        Ok(Self {
            common,
            whole,
            store,
            keys,
            policies,
        })
    }

    pub(crate) const fn common(&self) -> &Common {
        &self.common
    }

    /// The tenant named by `--tenant`, if any.
    pub(crate) fn tenant(&self) -> Answer<Option<TenantId>> {
        let tenant = self.common.tenant.as_deref();
        Ok(tenant.map(TenantId::new).transpose()?)
    }

    pub(crate) fn named_tenant(&self) -> Answer<TenantId> {
        let missing = || Failure::usage("name a tenant: --tenant <TENANT>");
        self.tenant()?.ok_or_else(missing)
    }

    /// Returns whether the operator acts as the host itself, which sees all tenants.
    pub(crate) const fn is_host(&self) -> bool {
        self.common.principal.is_none()
    }

    /// Returns the actor for commands on `tenant`. A principal stays bound to the tenant named by `--tenant`.
    pub(crate) fn actor(&self, tenant: &TenantId) -> Answer<Actor> {
        match (&self.common.principal, &self.common.role) {
            (Some(principal), Some(role)) => {
                let principal = principal.as_str().try_into()?;
                Ok(Actor::new(
                    self.named_tenant()?,
                    principal,
                    role.as_str().try_into()?,
                ))
            }
            _ => Ok(Actor::application(tenant.clone())),
        }
    }

    /// Returns the actor for commands on a key. The host itself need not name the key's tenant.
    pub(crate) async fn actor_for(&self, key: KeyId) -> Answer<Actor> {
        if let Some(tenant) = self.tenant()? {
            return self.actor(&tenant);
        }
        if !self.is_host() {
            return Err(Failure::usage(
                "--as needs the principal's tenant: --tenant <TENANT>",
            ));
        }
        let found = self.store.find(&Locator::Id(key)).await?;
        match found.map(|found| found.change.row) {
            Some(Row::Key(record)) => self.actor(&record.tenant),
            Some(Row::Removed { tenant, .. }) => self.actor(&tenant),
            Some(Row::Corrupt(_)) => Err(Denial::CorruptRecord { key }.into()),
            _ => Err(Denial::NotFound.into()),
        }
    }
}

/// Parses a key id given on the command line.
pub(crate) fn key_id(text: &str) -> Answer<KeyId> {
    Ok(text.parse::<KeyId>()?)
}

/// Adds the command id to the actor, if the operator gave one.
pub(crate) fn invocation<'a>(actor: &'a Actor, named: &Repeatable) -> Answer<Invocation<'a>> {
    Ok(match &named.command_id {
        Some(id) => actor.with_command_id(CommandId::new(id)?),
        None => actor.into(),
    })
}

pub(crate) fn receipt(key: KeyId, done: &str, receipt: &Receipt) -> Value {
    json!({
        "key": key,
        "done": done,
        "revision": receipt.revision().0,
        "decided_at": receipt.decided_at(),
        "no_later_than": receipt.no_later_than(),
    })
}

fn policies(common: &Common) -> Answer<Policies> {
    let Some(path) = &common.policy else {
        return Ok(Policy::default().into());
    };
    let about = |error: &dyn std::fmt::Display| format!("policy {}: {error}", path.display());
    let text = std::fs::read(path).map_err(|error| {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => Kind::NotFound,
            _ => Kind::Unavailable,
        };
        Failure::new(kind, about(&error))
    })?;
    let spec: PolicySpec =
        serde_json::from_slice(&text).map_err(|error| Failure::usage(about(&error)))?;
    Ok(Policy::new(spec)?.into())
}
