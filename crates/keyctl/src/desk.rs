//! The context of most commands: the open store, and the actor that executes the commands.

use std::num::NonZeroUsize;
use std::str::FromStr;
use std::sync::Arc;

use keyward::command::{CommandId, Invocation};
use keyward::pepper::{PepperId, StoredPeppers};
use keyward::policy::{Policies, Policy, PolicySpec};
use keyward::store::{
    KeyQuery, KeyStore, LoadRequest, Locator, PositionError, Revision, Row, StoreErrorKind,
};
use keyward::{Actor, CommandError, Denial, Follow, KeyId, Keyward, PepperRing, Receipt, TenantId};
use serde_json::{Value, json};

use crate::args::{CommandIdArgs, CommonArgs};
use crate::failure::{CliError, CliErrorKind, CliResult};
use crate::output::Output;
use crate::store::{self, Expected, Store};

pub(crate) struct CliContext {
    common: CommonArgs,
    pub(crate) backend: Store,
    pub(crate) store: Arc<dyn KeyStore>,
    pub(crate) keys: Keyward,
    pub(crate) policies: Arc<Policies>,
    /// The newest current pepper of the store, if the pepper file lacks it.
    lacked_pepper: Option<PepperId>,
}

impl CliContext {
    /// Opens an existing store and its peppers.
    pub(crate) async fn open(common: CommonArgs) -> CliResult<Self> {
        let store = store::open(&common, Expected::Existing).await?;
        let peppers = store::peppers(&common)?;
        Self::over(common, store, peppers).await
    }

    pub(crate) async fn over(
        common: CommonArgs,
        backend: Store,
        peppers: PepperRing,
    ) -> CliResult<Self> {
        let store = backend.keys();
        // The build below may add the current pepper of the file to those of the store.
        let lacked_pepper = match common.pepper_lost {
            true => None,
            false => lacked_pepper(&*store, &peppers).await?,
        };
        // Each command reads the rows that its decision needs. The nodes' reports contain the time that a change
        // takes to reach them.
        let mut builder = Keyward::builder(store.clone(), peppers)
            .follow(Follow::Never)
            .registry(backend.registry())
            .usage_for_queries(backend.usage());
        // Without a file, the policies that the service has stored apply.
        if let Some(policy) = policy(&common)? {
            builder = builder.policy(policy);
        }
        if common.pepper_lost {
            builder = builder.replace_lost_peppers();
        }
        let keys = builder.build().await?;
        let policies = keys.policies();
        Ok(Self {
            common,
            backend,
            store,
            keys,
            policies,
            lacked_pepper,
        })
    }

    /// Warns if the pepper file is out of date, before a command that writes.
    pub(crate) fn warn_of_old_pepper_file(&self, output: &Output) {
        if let Some(pepper) = &self.lacked_pepper {
            output.warning(&format!(
                "the pepper file lacks pepper {pepper}, which other processes create keys with: this command uses an \
                 older pepper; put back the current pepper file"
            ));
        }
    }

    /// Returns the id of the command, and draws one if the command line names none. After an unknown outcome, the
    /// operator repeats the command under this id.
    pub(crate) fn command_id(&self, named: &mut Option<String>) -> CliResult<String> {
        if let Some(named) = named {
            return Ok(named.clone());
        }
        let drawn = self.keys.manager().command_id();
        let drawn = drawn.map_err(|error| CliError::from(CommandError::from(error)))?;
        Ok(named.insert(drawn.to_string()).clone())
    }

    pub(crate) const fn common(&self) -> &CommonArgs {
        &self.common
    }

    /// Returns the tenant that `--tenant` names, if any.
    pub(crate) fn tenant(&self) -> CliResult<Option<TenantId>> {
        let tenant = self.common.tenant.as_deref();
        Ok(tenant.map(TenantId::new).transpose()?)
    }

    pub(crate) fn named_tenant(&self) -> CliResult<TenantId> {
        let missing = || CliError::usage("name a tenant: --tenant <TENANT>");
        self.tenant()?.ok_or_else(missing)
    }

    /// Returns the tenant that `--tenant` names. Fails if the store has neither the tenant nor a key below it, as
    /// after a typing error.
    pub(crate) async fn known_tenant(&self) -> CliResult<TenantId> {
        let tenant = self.named_tenant()?;
        match self.knows(&tenant).await? || self.has_keys_below(&tenant).await? {
            true => Ok(tenant),
            false => Err(CliError::from(Denial::TenantNotFound).about(format!("tenant {tenant}"))),
        }
    }

    /// Returns the [`known_tenant`](Self::known_tenant) if `--tenant` is given.
    pub(crate) async fn some_tenant(&self) -> CliResult<Option<TenantId>> {
        match self.common.tenant {
            Some(_) => Ok(Some(self.known_tenant().await?)),
            None => Ok(None),
        }
    }

    /// Returns whether the store has a commit of the tenant.
    pub(crate) async fn knows(&self, tenant: &TenantId) -> CliResult<bool> {
        match self.store.load(tenant, &LoadRequest::none()).await {
            Ok(view) => Ok(view.revision > Revision::ZERO),
            Err(error) if error.kind() == StoreErrorKind::Corrupt => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    async fn has_keys_below(&self, tenant: &TenantId) -> CliResult<bool> {
        let mut query = KeyQuery::tenant(tenant.clone(), self.keys.now());
        query.below = true;
        query.limit = NonZeroUsize::MIN;
        let page = self.store.list(&query).await?;
        Ok(!page.keys.is_empty() || !page.corrupt.is_empty())
    }

    /// Returns whether the operator acts as the host itself, which sees all tenants.
    pub(crate) const fn is_host(&self) -> bool {
        self.common.principal.is_none()
    }

    /// Returns the actor for commands on `tenant`. A principal always acts in the tenant that `--tenant`
    /// names.
    pub(crate) fn actor(&self, tenant: &TenantId) -> CliResult<Actor> {
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

    /// Returns the actor for commands on a key. If the host itself names no tenant, uses the key's tenant.
    pub(crate) async fn actor_for(&self, key: KeyId) -> CliResult<Actor> {
        if let Some(tenant) = self.tenant()? {
            return self.actor(&tenant);
        }
        if !self.is_host() {
            return Err(CliError::usage(
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

/// Returns the newest current pepper of the store, if the pepper file lacks it.
pub(crate) async fn lacked_pepper(
    store: &dyn KeyStore,
    peppers: &PepperRing,
) -> CliResult<Option<PepperId>> {
    let stored = StoredPeppers::read(store).await?;
    let newest = stored.as_ref().and_then(StoredPeppers::newest);
    Ok(newest
        .filter(|newest| peppers.state(newest).is_none())
        .cloned())
}

/// Parses a key id given on the command line.
pub(crate) fn key_id(text: &str) -> CliResult<KeyId> {
    Ok(text.parse::<KeyId>()?)
}

/// Parses a position given on the command line.
pub(crate) fn position<P: FromStr<Err = PositionError>>(text: &str) -> CliResult<P> {
    Ok(text.parse::<P>()?)
}

/// Adds the command id to the actor, if the operator gave one.
pub(crate) fn invocation<'a>(actor: &'a Actor, named: &CommandIdArgs) -> CliResult<Invocation<'a>> {
    Ok(match &named.command_id {
        Some(id) => actor.with_command_id(CommandId::new(id)?),
        None => actor.into(),
    })
}

pub(crate) fn receipt(key: KeyId, done: &str, receipt: &Receipt) -> Value {
    let mut answer = change(done, receipt);
    answer["key"] = json!(key);
    answer
}

/// Returns the document of a change that is not about one key.
pub(crate) fn change(done: &str, receipt: &Receipt) -> Value {
    json!({
        "done": done,
        "revision": receipt.revision().0,
        "decided_at": receipt.decided_at(),
        "no_later_than": receipt.no_later_than(),
    })
}

/// Reads the file that `--policy` names, if any.
pub(crate) fn policy(common: &CommonArgs) -> CliResult<Option<Policy>> {
    let Some(path) = &common.policy else {
        return Ok(None);
    };
    let about = |error: &dyn std::fmt::Display| format!("policy {}: {error}", path.display());
    let text = std::fs::read(path)
        .map_err(|error| CliError::new(CliErrorKind::of_file(&error), about(&error)))?;
    let spec: PolicySpec =
        serde_json::from_slice(&text).map_err(|error| CliError::usage(about(&error)))?;
    Ok(Some(Policy::new(spec)?))
}
