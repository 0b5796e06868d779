//! A batch of commands of one tenant. The rows for all of them are loaded together. Each command is decided
//! on the result of the commands before it, and all changes are one commit.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::queue::Pending;
use super::{BatchExecutor, CommandError, Receipt};
use crate::clock::Clock;
use crate::core::actor::Actor;
use crate::core::audit::AuditEntry;
use crate::core::command::{Command, Denial, Request};
use crate::core::decide::{self, Context};
use crate::core::id::KeyId;
use crate::core::policy::{Policies, Policy, Propagation};
use crate::core::record::KeyRecord;
use crate::core::tenant::TenantId;
use crate::core::text::PrincipalId;
use crate::core::time::Timestamp;
use crate::core::view::{Ancestry, Effects, LoadRequest, Revision, TenantView, repairs_time};
use crate::entropy::EntropyError;
use crate::observe::WithSources;
use crate::store::{
    Change, Commit, CommitError, Cursor, KeyStore, Learnt, Row, RowKey, StoreError, StoreErrorKind,
};

/// 128 attempts to commit a batch after conflicts or unknown outcomes.
///
/// Only other nodes cause conflicts, because the commands of one node are batched. In each round, the commit
/// of one node succeeds. Suppose that sixteen nodes write to one tenant without a pause and in random order.
/// Then about one batch in a few thousand fails.
const MAX_ATTEMPTS: u32 = 128;

/// 4 rounds of loading keys that other keys refer to. A chain of references has at most two links, so this is
/// enough.
const MAX_LINK_ROUNDS: usize = 4;

impl BatchExecutor {
    /// Carries a batch out. Afterwards every command whose caller is still there has a result.
    pub(super) async fn settle(self: Arc<Self>, tenant: TenantId, batch: Vec<Arc<Pending>>) {
        let (tenant, batch) = (&tenant, &batch[..]);
        // A repair needs a commit of its own: it voids the instants of all commits before it.
        let repairs =
            |pending: &Arc<Pending>| matches!(pending.request.command, Command::RepairTime);
        if batch.len() > 1 && batch.iter().any(repairs) {
            return self.settle_one_by_one(tenant, batch).await;
        }
        let failed = match self.carry_out(tenant, batch).await {
            Ok(()) => return,
            Err(failed) => failed,
        };
        match failed {
            Failed::Taken if batch.len() > 1 => self.settle_one_by_one(tenant, batch).await,
            failed => {
                let error = CommandError::from(failed);
                batch
                    .iter()
                    .for_each(|pending| pending.settle(Err(error.clone())));
            }
        }
    }

    async fn settle_one_by_one(&self, tenant: &TenantId, batch: &[Arc<Pending>]) {
        for one in batch.chunks(1) {
            if let Err(failed) = self.carry_out(tenant, one).await {
                one[0].settle(Err(failed.into()));
            }
            // Wakes the caller of this command, who need not wait for the others.
            yield_once().await;
        }
    }

    /// Executes a batch. If an attempt had an unknown outcome and a later attempt fails, returns the unknown
    /// outcome, because the first commit may have been applied.
    async fn carry_out(&self, tenant: &TenantId, batch: &[Arc<Pending>]) -> Result<(), Failed> {
        let mut unknown = None;
        let result = self.attempt(tenant, batch, &mut unknown).await;
        result.map_err(|failed| unknown.map_or(failed, Failed::Store))
    }

    async fn attempt(
        &self,
        tenant: &TenantId,
        all: &[Arc<Pending>],
        unknown: &mut Option<StoreError>,
    ) -> Result<(), Failed> {
        for attempt in 1..=MAX_ATTEMPTS {
            if all.iter().all(|pending| pending.is_left()) {
                return Ok(());
            }
            if let Some(check) = &self.history {
                check()?;
            }
            let policies = self.policies.load().clone();
            let policy = policies.of(tenant);
            let sent = self.time.monotonic();
            let (view, ancestry) = self
                .load(tenant, all, policy, self.time.check().earliest())
                .await
                .inspect_err(StoreError::count)?;
            // A command whose caller is gone is left out, unless an earlier commit with it may have landed.
            let wanted = all.iter().filter(|pending| pending.is_wanted());
            let batch: Vec<_> = wanted.cloned().collect();
            let batch = &batch[..];
            self.time.saw_server(view.server_time, sent);
            let time = self.time.check();
            if ancestry.epochs.iter().any(|epoch| *epoch != view.epoch) {
                tracing::debug!(%tenant, attempt, "store was replaced, deciding again");
                continue;
            }
            let elsewhere = policies.elsewhere(tenant);
            let used = self.used_of(&view);
            let mut verdicts = Verdicts::new(&view, time.own);
            for pending in batch {
                let material = pending.material();
                let context = Context {
                    policy,
                    home: policies.of(pending.request.actor.tenant()),
                    peppers: &self.peppers,
                    time,
                    material: &material,
                    ancestry: &ancestry,
                    elsewhere: &elsewhere,
                    used: &used,
                };
                verdicts.add(pending, &context);
            }
            let Verdicts {
                effects,
                decided_at,
                denied,
                repeated,
                view: _,
            } = verdicts;
            let mut known = known_rows(&view, &ancestry);
            known.extend(concerned_keys(&view, batch));
            if repeated {
                self.notify_loaded(&view, known.clone(), batch, &denied);
            }
            let result = if effects.is_empty() {
                Ok(view.revision)
            } else {
                let tag = self.tag()?;
                let tenant = tenant.clone();
                let expected = view.revision;
                let commit = Commit {
                    tenant,
                    epoch: Some(view.epoch),
                    expected,
                    guards: ancestry.guards.iter().cloned().collect(),
                    tag,
                    decided_at,
                    effects,
                };
                self.commit(commit, known).await
            };
            if let Err(CommitError::Store(error)) = &result {
                error.count();
            }
            match result {
                Ok(revision) => {
                    let bound = batch
                        .iter()
                        .map(|pending| bound(&self.policies.load(), pending, &view))
                        .max();
                    let after = bound.unwrap_or_default();
                    let no_later_than = self.time.now().max(decided_at).saturating_add(after);
                    let receipt = Receipt {
                        epoch: None,
                        revision,
                        decided_at,
                        no_later_than,
                        returned: self.time.monotonic(),
                        bound: after,
                    };
                    for (pending, denied) in batch.iter().zip(denied) {
                        pending.land(denied, receipt, &view);
                    }
                    return Ok(());
                }
                Err(CommitError::Conflict) => {
                    tracing::debug!(%tenant, attempt, "conflict, deciding again");
                }
                Err(CommitError::Store(error)) if error.kind() == StoreErrorKind::Indeterminate => {
                    tracing::warn!(%tenant, attempt, error = %WithSources(&error), "commit may have landed, asking again");
                    batch
                        .iter()
                        .for_each(|pending| pending.note_unknown_outcome());
                    *unknown = Some(error);
                }
                Err(CommitError::Store(error)) => return Err(Failed::Store(error)),
                // The earlier attempt with the unknown outcome may have been applied, and so have taken the
                // digest. Decide again.
                Err(CommitError::DigestTaken) if unknown.take().is_some() => {}
                Err(CommitError::DigestTaken) => return Err(Failed::Taken),
                Err(CommitError::IdTaken(key)) => {
                    tracing::warn!(%tenant, %key, "key id is taken, drawing another");
                    for pending in batch {
                        pending.redraw(self.draw(pending.material().len())?);
                    }
                }
            }
        }
        Err(Failed::Contended)
    }

    /// Returns the rotation successors among the loaded keys that were used in this process, but have no
    /// recorded first use.
    fn used_of(&self, view: &TenantView) -> BTreeSet<KeyId> {
        let Some(used) = &self.used else {
            return BTreeSet::new();
        };
        let waiting = view.records.iter().filter(|key| key.awaits_first_use());
        let waiting: Vec<_> = waiting.map(|key| key.id).collect();
        match waiting.is_empty() {
            true => BTreeSet::new(),
            false => used(&waiting),
        }
    }

    /// Commits, and then passes two kinds of rows to the listener: the rows that the commit wrote, and the
    /// rows on which it was decided.
    async fn commit(&self, commit: Commit, known: Vec<Change>) -> Result<Revision, CommitError> {
        let rows: Vec<_> = commit.rows().collect();
        let epoch = commit.epoch.unwrap_or_default();
        let (tenant, tag) = (commit.tenant.clone(), commit.tag);
        let revision = self.store.commit(commit).await?;
        tracing::debug!(%tenant, %revision, rows = rows.len(), "committed");
        if let Some(landed) = &self.landed {
            let rows = rows.into_iter().map(|row| Change { revision, row });
            landed(&Learnt {
                epoch,
                committed: Some(Cursor {
                    epoch,
                    revision,
                    tag,
                }),
                changes: known.into_iter().chain(rows).collect(),
            });
        }
        Ok(revision)
    }

    /// Passes the loaded rows to the listener. Needed if the reply to an earlier commit was lost, or its
    /// future was dropped. The listener then learns of this commit here, before any caller does.
    fn notify_loaded(
        &self,
        view: &TenantView,
        known: Vec<Change>,
        batch: &[Arc<Pending>],
        denied: &[Option<Denial>],
    ) {
        let Some(landed) = &self.landed else {
            return;
        };
        let done = batch
            .iter()
            .zip(denied)
            .filter(|(_, denied)| denied.is_none());
        let gone = done.flat_map(|(pending, _)| {
            let Request {
                tenant,
                command,
                sweep,
                ..
            } = &pending.request;
            let purged: &[KeyId] = match command {
                Command::Purge => &sweep.keys,
                _ => &[],
            };
            let asked = command.key().into_iter().chain(purged.iter().copied());
            let gone = asked.filter(|key| !view.knows(*key));
            gone.map(|key| Row::Removed {
                key,
                tenant: tenant.clone(),
            })
        });
        let keys = view.records.iter().cloned();
        let rows = keys.map(|record| Row::Key(Box::new(record))).chain(gone);
        let rows = rows.map(|row| Change {
            revision: view.revision_of(&row.key()),
            row,
        });
        landed(&Learnt {
            epoch: view.epoch,
            committed: None,
            changes: known.into_iter().chain(rows).collect(),
        });
    }

    /// Loads the rows that the commands of a batch need, including the keys that other loaded keys refer to.
    async fn load(
        &self,
        tenant: &TenantId,
        batch: &[Arc<Pending>],
        policy: &Policy,
        now: Timestamp,
    ) -> Result<(TenantView, Ancestry), StoreError> {
        let selects = batch
            .iter()
            .map(|pending| decide::select(&pending.request, policy, now));
        let mut select = selects.fold(LoadRequest::none(), LoadRequest::and);
        let mut view = self.store.load(tenant, &select).await?;
        for _ in 0..MAX_LINK_ROUNDS {
            let links = batch
                .iter()
                .flat_map(|pending| decide::links(&view, &pending.request));
            let missing: Vec<_> = links.filter(|id| !select.keys.contains(id)).collect();
            if missing.is_empty() {
                break;
            }
            select.keys.extend(missing);
            view = self.store.load(tenant, &select).await?;
        }
        let mut owners: BTreeSet<_> = select.owners.into_iter().collect();
        // Load the owners only of keys that a command names. When a bulk command ends a key, the row of the
        // key's owner does not matter.
        let asked = batch
            .iter()
            .filter_map(|pending| pending.request.command.key());
        let asked = asked.filter_map(|key| view.record(key));
        owners.extend(asked.filter_map(|record| record.owner.principal().cloned()));
        let actors = batch.iter().map(|pending| &pending.request.actor);
        let ancestry = load_ancestry(&*self.store, tenant, owners, actors).await?;
        Ok((view, ancestry))
    }
}

/// Returns the rows of tenants and owners that a decision depends on, each with the commit that
/// wrote it.
fn known_rows(view: &TenantView, ancestry: &Ancestry) -> Vec<Change> {
    let at = |row: &RowKey| view.revisions.get(row).copied();
    let guards = ancestry.guards.iter();
    let guards: BTreeMap<_, _> = guards.map(|guard| (&guard.row, guard.revision)).collect();
    let tenants = view.tenant.iter().chain(&ancestry.tenants).cloned();
    let owners = view.owners.iter().chain(&ancestry.owners).cloned();
    let rows = tenants.map(Row::Tenant).chain(owners.map(Row::Owner));
    let change = |row: Row| {
        let key = row.key();
        let revision = at(&key).or_else(|| guards.get(&key).copied())?;
        Some(Change { revision, row })
    };
    rows.filter_map(change).collect()
}

/// Returns the rows of the keys that the commands of a batch name, and of the keys linked to them.
///
/// A command may find its key as the caller wants it, because another node has changed the key, and still commit other
/// rows, such as the first use of a successor. When the command returns, this node must know the key's row too.
fn concerned_keys<'a>(
    view: &'a TenantView,
    batch: &[Arc<Pending>],
) -> impl Iterator<Item = Change> + use<'a> {
    let requests = batch.iter().map(|pending| &pending.request);
    let named = requests.flat_map(|request| {
        let asked = request.command.key().into_iter();
        asked.chain(request.sweep.keys.iter().copied())
    });
    let named: BTreeSet<_> = named.collect();
    let is_concerned = move |record: &&KeyRecord| {
        let before = record.predecessor.as_ref().map(|old| old.key);
        let after = record.succession.as_ref().map(|new| new.successor);
        let mut keys = [Some(record.id), before, after].into_iter().flatten();
        keys.any(|key| named.contains(&key))
    };
    view.records.iter().filter(is_concerned).map(|record| {
        let row = Row::Key(Box::new(record.clone()));
        Change {
            revision: view.revision_of(&row.key()),
            row,
        }
    })
}

/// Loads rows from each ancestor of `tenant`. These are the ancestor's own row, the rows of `owners` in it,
/// and the rows of those actors that are keys of the ancestor.
pub(crate) async fn load_ancestry<'a>(
    store: &dyn KeyStore,
    tenant: &TenantId,
    owners: BTreeSet<PrincipalId>,
    actors: impl Iterator<Item = &'a Actor> + Clone,
) -> Result<Ancestry, StoreError> {
    let owners: Vec<_> = owners.into_iter().collect();
    let mut ancestry = Ancestry::default();
    for above in tenant.ancestors() {
        let acts = actors.clone().filter(|actor| *actor.tenant() == above);
        let keys: BTreeSet<_> = acts.filter_map(Actor::key_id).collect();
        let select = LoadRequest {
            owners: owners.clone(),
            keys: keys.into_iter().collect(),
            ..LoadRequest::none()
        };
        let view = store.load(&above, &select).await?;
        ancestry.add(&above, &select, view);
    }
    Ok(ancestry)
}

/// Returns to the executor once, and wakes all callers of the batch.
async fn yield_once() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Returns the longest time until the effect of a command has reached every verifier.
fn bound(policies: &Policies, pending: &Pending, view: &TenantView) -> Duration {
    let Request {
        tenant, command, ..
    } = &pending.request;
    let alone = match command {
        // A rotation of one key may also end another key, of any class: the oldest key in its grace period.
        // So use the longest bound.
        Command::Rotate { .. } => None,
        command => command.key(),
    };
    let bound = match alone.and_then(|key| view.record(key)) {
        Some(record) => policies.of(tenant).propagation(&record.class).bound,
        // The command changes the row of an owner or a tenant, which affects keys of every class, also in
        // descendant tenants. So use the longest bound.
        None => policies.longest_bound_at(tenant),
    };
    Propagation { bound }.worst_case()
}

/// The decisions on a batch, each based on the result of those before it.
struct Verdicts {
    view: TenantView,
    effects: Effects,
    decided_at: Timestamp,
    denied: Vec<Option<Denial>>,
    /// True if some command of the batch changes nothing. Such a command may have been applied before,
    /// without the knowledge of this process.
    repeated: bool,
}

impl Verdicts {
    fn new(view: &TenantView, now: Timestamp) -> Self {
        Self {
            view: view.clone(),
            effects: Effects::default(),
            decided_at: view.decided_at.map_or(now, |newest| newest.max(now)),
            denied: Vec::new(),
            repeated: false,
        }
    }

    fn add(&mut self, pending: &Pending, context: &Context<'_>) {
        match decide::decide(&self.view, &pending.request, context) {
            Ok(decision) => {
                let unchanged = decision.effects.is_empty();
                self.repeated |= unchanged;
                self.view.apply(&decision.effects);
                self.decided_at = match repairs_time(&decision.effects.audit) {
                    true => decision.at,
                    false => self.decided_at.max(decision.at),
                };
                self.effects.extend(decision.effects);
                if unchanged {
                    let mine = |entry: &&AuditEntry| entry.command == pending.request.id;
                    let landed = self.view.applied.iter().filter(mine);
                    let keys: Vec<_> = landed.filter_map(|entry| entry.key).collect();
                    pending.unchanged(decision.outcome, &keys);
                } else {
                    pending.decided(decision.outcome);
                }
                self.denied.push(None);
            }
            Err(denied) => {
                self.repeated |= matches!(denied, Denial::AlreadyCreated { .. });
                self.denied.push(Some(denied));
            }
        }
    }
}

/// The reason why a whole batch failed.
enum Failed {
    Contended,
    Taken,
    Store(StoreError),
    Entropy(EntropyError),
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<EntropyError> for Failed {
    fn from(error: EntropyError) -> Self {
        Self::Entropy(error)
    }
}

impl From<Failed> for CommandError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Contended => Self::Contended {
                attempts: MAX_ATTEMPTS,
            },
            Failed::Taken => Self::Denied(Denial::DigestTaken),
            Failed::Store(error) => Self::Store(error),
            Failed::Entropy(error) => Self::Entropy(error),
        }
    }
}
