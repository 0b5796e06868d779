//! Bulk commands, such as closing a tenant.
//!
//! The first commit of a bulk command writes the row of the tenant or owner. From this commit on, verifiers
//! refuse all keys of the closed tenant or removed owner. Later commits change the keys themselves, page by
//! page, in the tenant and in its descendants.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::time::Duration;

use super::{CommandError, KeyManager, Receipt};
use crate::core::actor::Actor;
use crate::core::audit::Action;
use crate::core::command::{Command, CommandOutcome, Denial, Request};
use crate::core::decide::SWEEP_MAX;
use crate::core::id::KeyId;
use crate::core::principal::Author;
use crate::core::query::{AuditQuery, KeyQuery};
use crate::core::record::{Reason, Status};
use crate::core::sweep::{BulkFilter, PendingSweep, Sweep, SweepKind};
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;
use crate::core::view::LoadRequest;
use crate::observe::WithSources;
use crate::store::{KeyStore, Locator, Row, StoreError};

/// 10,000 keys per read of a tenant with its descendants, about 10 MB. A store sorts the ids of all these keys
/// for each read.
const READ_BELOW: NonZeroUsize = NonZeroUsize::new(10_000).expect("10,000 is not zero");

/// The outcome of a bulk command.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BulkReceipt {
    /// The number of keys that the command ended or disabled.
    pub ended: usize,
    /// The legacy keys that the command matched, but did not change.
    pub skipped: Vec<KeyId>,
    /// One receipt for all commits of the command.
    pub receipt: Receipt,
}

impl KeyManager {
    /// Executes a bulk command, in commits of at most [`SWEEP_MAX`] keys.
    ///
    /// Only the first commit is authorised. The later commits can only take permissions away, so they
    /// continue even if the actor loses its authority. After an interruption, the command continues if the
    /// request is repeated, or when maintenance runs.
    ///
    /// [`Command::CloseTenant`], [`Command::RemoveOwner`], [`Command::ChangeOwnerRole`] and
    /// [`Command::SyncOwnerRole`] also apply to descendant tenants that have affected keys and that the actor
    /// reaches. [`Command::RevokeMany`] does so too, if its filter selects the keys that one key has made.
    ///
    /// # Errors
    ///
    /// [`CommandError`]. Commits before the error are kept.
    pub async fn execute_bulk(&self, request: Request) -> Result<BulkReceipt, CommandError> {
        let request = self.with_lineage(request).await?;
        let mut done = self.sweep_tenant(&request).await?;
        let continues = self.continuation(&request).await?;
        let mut failed = None;
        for tenant in self.tenants_below(&request).await? {
            // Skip a tenant that the actor does not reach. The row of the ancestor already refuses or limits
            // the keys of this tenant.
            if !request.actor.reaches(&tenant) {
                continue;
            }
            let continues = continues.clone();
            let below = self.request_below(&request, tenant, continues).await?;
            match self.sweep_below(&below).await {
                Ok(also) => {
                    done.ended += also.ended;
                    done.skipped.extend(also.skipped);
                    done.receipt = done.receipt.and(also.receipt);
                }
                // A closed tenant already refuses every key permanently.
                Err(CommandError::Denied(Denial::TenantClosed { .. })) => {}
                // If the command fails in one tenant, continue with the other tenants, and return the error
                // at the end.
                Err(error) => {
                    tracing::warn!(tenant = %below.tenant, error = %WithSources(&error), "bulk command failed in a descendant tenant");
                    failed.get_or_insert(error);
                }
            }
        }
        match failed {
            None => self.end_sweep(&request).await?,
            Some(error) => return Err(error),
        }
        Ok(done)
    }

    /// Continues a bulk command that was interrupted before its last commit.
    ///
    /// # Errors
    ///
    /// [`CommandError`]. Commits before the error are kept.
    pub(crate) async fn resume(
        &self,
        tenant: &TenantId,
        pending: PendingSweep,
    ) -> Result<BulkReceipt, CommandError> {
        let PendingSweep {
            command: id,
            by,
            began_at,
            descendants,
            kind,
        } = pending;
        let command = match kind {
            SweepKind::CloseTenant => Command::CloseTenant,
            SweepKind::RemoveOwner(owner) => Command::RemoveOwner { owner },
            SweepKind::Revoke(filter, reason) => Command::RevokeMany { filter, reason },
        };
        let actor = Actor::finishing(tenant.clone(), descendants);
        let request = Request {
            continues: Some((by, began_at)),
            ..Request::new(id, actor, tenant.clone(), command)
        };
        self.execute_bulk(request).await
    }

    /// Replaces the key in the filter's `made_by` by the first key of its rotation chain. All keys of a chain
    /// count as one maker.
    async fn with_lineage(&self, mut request: Request) -> Result<Request, CommandError> {
        let Command::RevokeMany { filter, .. } = &mut request.command else {
            return Ok(request);
        };
        if let Some(made_by) = filter.made_by.as_mut().filter(|by| by.lineage.is_none()) {
            made_by.lineage = Some(lineage_of(&*self.executor.store, made_by.key).await?);
        }
        Ok(request)
    }

    /// Returns the request for a descendant tenant.
    ///
    /// The removal of an owner is recorded only in the row of the ancestor tenant. So to restore the owner,
    /// it suffices to change that row. In the descendant, the request only revokes the owner's keys.
    async fn request_below(
        &self,
        request: &Request,
        tenant: TenantId,
        continues: Option<(Author, Timestamp)>,
    ) -> Result<Request, CommandError> {
        let below = Request {
            tenant,
            ..request.clone()
        };
        if matches!(
            request.command,
            Command::ChangeOwnerRole { .. } | Command::SyncOwnerRole { .. }
        ) {
            return Ok(below);
        }
        let Command::RemoveOwner { owner } = &request.command else {
            return Ok(Request { continues, ..below });
        };
        let select = LoadRequest::owner(owner.clone());
        let view = self.executor.store.load(&request.tenant, &select).await?;
        let removed_at = view.owner(owner).and_then(|row| row.removed_at);
        // While the command continues, do not limit it to keys created before the removal. The command's
        // start is the limit then. It also covers keys that a wrong clock dated in the future.
        let removed_at = removed_at.filter(|_| continues.is_none());
        let until = removed_at.map(|at| at.saturating_add(Duration::from_micros(1)));
        let filter = BulkFilter {
            created_before: until,
            ..BulkFilter::all().owner(owner.clone())
        };
        let command = Command::RevokeMany {
            filter,
            reason: Reason::OwnerRemoved,
        };
        Ok(Request {
            command,
            continues,
            ..below
        })
    }

    /// Returns the author and the start of a bulk command that is still pending in the tenant. Descendant
    /// tenants need not authorise the command again.
    ///
    /// `None` if the command has ended. Descendant tenants then authorise it like any other command.
    async fn continuation(
        &self,
        request: &Request,
    ) -> Result<Option<(Author, Timestamp)>, CommandError> {
        let view = self
            .executor
            .store
            .load(&request.tenant, &LoadRequest::none())
            .await?;
        let sweeps = view.tenant.map(|row| row.sweeps).unwrap_or_default();
        let pending = sweeps.into_iter().find(|own| own.command == request.id);
        Ok(pending.map(|own| (own.by, own.began_at)))
    }

    async fn sweep_below(&self, request: &Request) -> Result<BulkReceipt, CommandError> {
        let done = self.sweep_tenant(request).await?;
        self.end_sweep(request).await?;
        Ok(done)
    }

    /// Records that the command is finished in the tenant.
    async fn end_sweep(&self, request: &Request) -> Result<(), CommandError> {
        if matches!(
            request.command,
            Command::CloseTenant | Command::RemoveOwner { .. } | Command::RevokeMany { .. }
        ) {
            let last = Sweep {
                keys: Vec::new(),
                last: true,
            };
            self.sweep_page(request, last).await?;
        }
        Ok(())
    }

    async fn sweep_tenant(&self, request: &Request) -> Result<BulkReceipt, CommandError> {
        // Commit the row before listing the keys. The list then contains every key that was created before
        // the row, and the row refuses every key created later.
        let mut done = BulkReceipt {
            ended: 0,
            skipped: Vec::new(),
            receipt: self.sweep_page(request, Sweep::default()).await?.1,
        };
        let Some(mut query) = self.swept_keys(request) else {
            return Ok(done);
        };
        loop {
            let page = self.executor.store.list(&query).await?;
            let keys: Vec<_> = page.keys.iter().map(|record| record.id).collect();
            if !keys.is_empty() {
                let (outcome, receipt) = self.sweep_page(request, keys.into()).await?;
                done.receipt = done.receipt.and(receipt);
                if let CommandOutcome::Swept { ended, skipped } = outcome {
                    done.ended += ended;
                    done.skipped.extend(skipped);
                    tracing::info!(tenant = %request.tenant, ended = done.ended, "bulk command ended keys");
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
        sweep: Sweep,
    ) -> Result<(CommandOutcome, Receipt), CommandError> {
        let request = Request {
            sweep,
            ..request.clone()
        };
        let landed = self.execute(request).await?;
        Ok((landed.outcome, landed.receipt))
    }

    /// Returns a query for the keys that the command may affect. The query may return too many keys, so the
    /// command checks each of them.
    fn swept_keys(&self, request: &Request) -> Option<KeyQuery> {
        let limit = NonZeroUsize::new(SWEEP_MAX)?;
        let all = KeyQuery {
            limit,
            ..KeyQuery::tenant(
                request.tenant.clone(),
                self.executor.time.check().earliest(),
            )
        };
        match &request.command {
            Command::CloseTenant => Some(all.live()),
            Command::RemoveOwner { owner } => Some(KeyQuery {
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
            Command::DisableMany => {
                let statuses = BTreeSet::from([Status::Active, Status::Retiring]);
                Some(KeyQuery { statuses, ..all })
            }
            Command::Purge => {
                let statuses = BTreeSet::from([Status::Revoked, Status::Expired]);
                Some(KeyQuery { statuses, ..all })
            }
            _ => None,
        }
    }

    /// Returns the descendant tenants that have affected keys.
    async fn tenants_below(&self, request: &Request) -> Result<BTreeSet<TenantId>, CommandError> {
        let follows = matches!(
            request.command,
            Command::CloseTenant
                | Command::RemoveOwner { .. }
                | Command::ChangeOwnerRole { .. }
                | Command::SyncOwnerRole { .. }
        ) || matches!(&request.command, Command::RevokeMany { filter, .. } if filter.made_by.is_some());
        if !follows {
            return Ok(BTreeSet::new());
        }
        let tenant = request.tenant.clone();
        let mut query = KeyQuery {
            below: true,
            limit: READ_BELOW,
            ..KeyQuery::tenant(tenant, self.executor.time.check().earliest()).live()
        };
        if let Command::RemoveOwner { owner }
        | Command::ChangeOwnerRole { owner, .. }
        | Command::SyncOwnerRole { owner, .. } = &request.command
        {
            query.owner = Some(owner.clone());
        }
        let mut below = BTreeSet::new();
        loop {
            let page = self.executor.store.list(&query).await?;
            below.extend(page.keys.into_iter().map(|record| record.facts.tenant));
            match page.next {
                Some(next) => query.after = Some(next),
                None => break,
            }
        }
        below.remove(&request.tenant);
        Ok(below)
    }
}

/// Returns the first key in the rotation chain of `key`. If a key of the chain was deleted, reads its
/// predecessor from the audit trail.
pub(crate) async fn lineage_of(store: &dyn KeyStore, key: KeyId) -> Result<KeyId, StoreError> {
    let (mut first, mut seen) = (key, BTreeSet::new());
    while seen.insert(first) {
        let found = store.find(&Locator::Id(first)).await?;
        if let Some(Row::Key(record)) = found.map(|found| found.change.row) {
            return Ok(record.lineage.first);
        }
        match predecessor_of(store, first).await? {
            Some(old) => first = old,
            None => break,
        }
    }
    Ok(first)
}

/// Returns the key that `key` replaced, according to the audit trail.
async fn predecessor_of(store: &dyn KeyStore, key: KeyId) -> Result<Option<KeyId>, StoreError> {
    let about = AuditQuery {
        key: Some(key),
        limit: NonZeroUsize::MIN,
        ..AuditQuery::all()
    };
    let Some(created) = store.audit(&about).await?.rows.into_iter().next() else {
        return Ok(None);
    };
    let mut same_command = AuditQuery {
        command: Some(created.entry.command),
        ..AuditQuery::tenant(created.entry.tenant)
    };
    loop {
        let page = store.audit(&same_command).await?;
        let rotated = page.rows.iter().find(|row| {
            matches!(row.entry.action, Action::KeyRotated { successor, .. } if successor == key)
        });
        match (rotated, page.next) {
            (Some(rotated), _) => return Ok(rotated.entry.key),
            (None, Some(next)) => same_command.after = Some(next),
            (None, None) => return Ok(None),
        }
    }
}
