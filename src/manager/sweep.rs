//! Commands over many keys: the row that refuses them all first, then the keys, page by page, in
//! the tenant and in all below it.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::time::Duration;

use super::{Error, KeyManager, Receipt};
use crate::core::command::{BulkFilter, Command, Denied, Outcome, Request};
use crate::core::decide::SWEEP_MAX;
use crate::core::id::KeyId;
use crate::core::query::KeyQuery;
use crate::core::record::{Reason, Status};
use crate::core::tenant::TenantId;
use crate::core::view::Select;

/// What a command over many keys did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BulkReceipt {
    /// How many keys it ended or disabled.
    pub ended: usize,
    /// Legacy keys that matched, and stay.
    pub skipped: Vec<KeyId>,
    /// Where and when the last of it landed.
    pub receipt: Receipt,
}

impl KeyManager {
    /// Carries out a command over many keys, in commits of at most [`SWEEP_MAX`] keys. Interrupted,
    /// the same request goes on where it stopped.
    ///
    /// [`Command::CloseTenant`], [`Command::RemoveOwner`] and [`Command::ChangeOwnerRole`] also
    /// apply to every tenant below that has keys concerned and that the actor reaches.
    ///
    /// # Errors
    ///
    /// [`Error`]; what landed before it stays.
    pub async fn execute_bulk(&self, request: Request) -> Result<BulkReceipt, Error> {
        let mut done = self.sweep_tenant(&request).await?;
        let mut failed = None;
        for tenant in self.tenants_below(&request).await? {
            // Where the actor does not reach, the row above refuses or narrows the keys already.
            if !request.actor.reaches(&tenant) {
                continue;
            }
            let below = self.request_below(&request, tenant).await?;
            match self.sweep_tenant(&below).await {
                Ok(also) => {
                    done.ended += also.ended;
                    done.skipped.extend(also.skipped);
                    done.receipt = done.receipt.and(also.receipt);
                }
                // Closed: every key there is refused for ever.
                Err(Error::Denied(Denied::TenantClosed { .. })) => {}
                // The others are not to wait for this one.
                Err(error) => {
                    tracing::warn!(tenant = %below.tenant, %error, "keys below are left");
                    failed.get_or_insert(error);
                }
            }
        }
        failed.map_or(Ok(done), Err)
    }

    /// The same for a tenant below. An owner's removal stands in the row above alone, so that
    /// bringing the owner back there is enough; what is left to do below is to revoke its keys.
    async fn request_below(&self, request: &Request, tenant: TenantId) -> Result<Request, Error> {
        let below = Request {
            tenant,
            ..request.clone()
        };
        let Command::RemoveOwner { owner, .. } = &request.command else {
            return Ok(below);
        };
        let select = Select::owner(owner.clone());
        let view = self.store.load(&request.tenant, &select).await?;
        let removed_at = view.owner(owner).and_then(|row| row.removed_at);
        let until = removed_at.map(|at| at.saturating_add(Duration::from_micros(1)));
        let filter = BulkFilter {
            created_before: until,
            ..BulkFilter::all().owner(owner.clone())
        };
        let command = Command::RevokeMany {
            filter,
            reason: Reason::OwnerRemoved,
            sweep: Vec::new(),
        };
        Ok(Request { command, ..below })
    }

    async fn sweep_tenant(&self, request: &Request) -> Result<BulkReceipt, Error> {
        // The row goes first: no key that is created after it escapes, and none before it is missed.
        let mut done = BulkReceipt {
            ended: 0,
            skipped: Vec::new(),
            receipt: self.sweep_page(request, Vec::new()).await?.1,
        };
        let Some(mut query) = self.swept_keys(request) else {
            return Ok(done);
        };
        loop {
            let page = self.store.list(&query).await?;
            let keys: Vec<_> = page.keys.iter().map(|record| record.id).collect();
            if !keys.is_empty() {
                let (outcome, receipt) = self.sweep_page(request, keys).await?;
                done.receipt = done.receipt.and(receipt);
                if let Outcome::Swept { ended, skipped } = outcome {
                    done.ended += ended;
                    done.skipped.extend(skipped);
                    tracing::info!(tenant = %request.tenant, ended = done.ended, "keys ended");
                }
            }
            match page.next {
                Some(next) => query.after = Some(next),
                None => return Ok(done),
            }
        }
    }

    async fn sweep_page(
        &self,
        request: &Request,
        keys: Vec<KeyId>,
    ) -> Result<(Outcome, Receipt), Error> {
        let command = with_sweep(&request.command, keys);
        let landed = self
            .execute(Request {
                command,
                ..request.clone()
            })
            .await?;
        Ok((landed.outcome, landed.receipt))
    }

    /// The keys that the command may be about; it looks at each once more.
    fn swept_keys(&self, request: &Request) -> Option<KeyQuery> {
        let limit = NonZeroUsize::new(SWEEP_MAX)?;
        let all = KeyQuery {
            limit,
            ..KeyQuery::tenant(request.tenant.clone(), self.now())
        };
        match &request.command {
            Command::CloseTenant { .. } => Some(all.live()),
            Command::RemoveOwner { owner, .. } => Some(KeyQuery {
                owner: Some(owner.clone()),
                ..all.live()
            }),
            Command::RevokeMany { filter, .. } => {
                let (owner, class) = (filter.owner.clone(), filter.class.clone());
                Some(KeyQuery {
                    owner,
                    class,
                    ..all.live()
                })
            }
            Command::DisableMany { .. } => {
                let statuses = BTreeSet::from([Status::Active, Status::Retiring]);
                Some(KeyQuery { statuses, ..all })
            }
            Command::Purge { .. } => {
                let statuses = BTreeSet::from([Status::Revoked, Status::Expired]);
                Some(KeyQuery { statuses, ..all })
            }
            _ => None,
        }
    }

    /// The tenants below that have keys concerned.
    async fn tenants_below(&self, request: &Request) -> Result<BTreeSet<TenantId>, Error> {
        let follows = matches!(
            request.command,
            Command::CloseTenant { .. }
                | Command::RemoveOwner { .. }
                | Command::ChangeOwnerRole { .. }
        );
        if !follows {
            return Ok(BTreeSet::new());
        }
        let tenant = request.tenant.clone();
        let mut query = KeyQuery {
            below: true,
            ..KeyQuery::tenant(tenant, self.now()).live()
        };
        if let Command::RemoveOwner { owner, .. } | Command::ChangeOwnerRole { owner, .. } =
            &request.command
        {
            query.owner = Some(owner.clone());
        }
        let mut below = BTreeSet::new();
        loop {
            let page = self.store.list(&query).await?;
            below.extend(page.keys.into_iter().map(|record| record.tenant));
            match page.next {
                Some(next) => query.after = Some(next),
                None => break,
            }
        }
        below.remove(&request.tenant);
        Ok(below)
    }
}

/// The same command with the keys to look at, if it is about many.
fn with_sweep(command: &Command, keys: Vec<KeyId>) -> Command {
    let mut command = command.clone();
    if let Command::CloseTenant { sweep }
    | Command::RevokeMany { sweep, .. }
    | Command::DisableMany { sweep }
    | Command::Purge { sweep }
    | Command::RemoveOwner { sweep, .. } = &mut command
    {
        *sweep = keys;
    }
    command
}
