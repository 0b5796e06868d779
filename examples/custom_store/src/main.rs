//! A minimal custom store, in memory, which the conformance suite tests.
//!
//! `cargo run --package custom-store`; to test it, `cargo test --package custom-store`.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::{Mutex, MutexGuard, PoisonError};

use keyward::key::{Digest, KeyRecord};
use keyward::store::*;
use keyward::{Actor, CreateKey, KeyId, Keyward, Need, PepperRing, Role, TenantId};

type StoreResult<T> = Result<T, StoreError>;

/// A store that keeps all state behind one lock, so that every call is atomic.
#[derive(Debug, Default)]
struct Shelf(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    head: Cursor,
    /// The store's head after each commit: revision `n` at index `n - 1`.
    heads: Vec<Cursor>,
    /// Every row with the revision that last wrote it. Tombstones stay, so that no id is used twice.
    rows: BTreeMap<RowKey, Change>,
    /// The rows and the audit trail of each tenant.
    tenants: HashMap<TenantId, TenantView>,
    /// Imported digests, which are kept after their keys are removed.
    imported: HashMap<Digest, KeyId>,
    audit: Vec<AuditRow>,
}

impl Shelf {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[keyward::store::async_trait]
impl KeyStore for Shelf {
    async fn load(&self, tenant: &TenantId, select: &LoadRequest) -> StoreResult<TenantView> {
        let state = self.state();
        let narrowed = state.tenants.get(tenant).map(|all| all.narrowed(select));
        Ok(narrowed.unwrap_or_default())
    }

    async fn find(&self, locator: &Locator) -> StoreResult<Option<FoundKey>> {
        let state = self.state();
        let head = state.head;
        let key = match locator {
            Locator::Id(id) => Some(*id),
            Locator::Imported(digest) => state.imported.get(digest).copied(),
        };
        let change = key.and_then(|id| state.rows.get(&RowKey::Key(id)).cloned());
        Ok(change.map(|change| FoundKey { change, head }))
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        let state = &mut *self.state();
        let view = state.tenants.entry(commit.tenant.clone()).or_default();
        let rows = &state.rows;
        let row_at = |row: &RowKey| rows.get(row).map_or(Revision::ZERO, |last| last.revision);
        let writable = |record: &KeyRecord| {
            let own = rows.get(&RowKey::Key(record.id));
            own.is_none_or(|own| matches!(&own.row, Row::Key(own) if own.tenant == record.tenant))
        };
        let holder = |digest: &Digest| state.imported.get(digest).copied();
        commit.check((Epoch::default(), view.revision), row_at, writable, holder)?;
        // Nothing below can fail. The epoch is constant, because this store is never restored. A store that
        // can be restored from a backup needs a new random epoch after each restore.
        let revision = Revision(state.heads.len() as u64 + 1);
        state.head = commit.cursor(Epoch::default(), revision);
        state.heads.push(state.head);
        state.imported.extend(commit.imported());
        for row in commit.rows() {
            view.revisions.insert(row.key(), revision);
            state.rows.insert(row.key(), Change { revision, row });
        }
        let entries = commit.effects.audit.iter().cloned();
        (state.audit).extend(entries.map(|entry| AuditRow { revision, entry }));
        state.audit.retain(|row| !commit.prunes(&row.entry));
        view.apply(&commit.effects);
        view.revision = revision;
        view.decided_at = view.decided_at.max(Some(commit.decided_at));
        Ok(revision)
    }

    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError> {
        let state = self.state();
        if after.epoch != Epoch::default() {
            return Err(ChangesError::Compacted);
        } else if after != Cursor::default() && !state.heads.contains(&after) {
            return Err(ChangesError::Diverged);
        }
        let rows = state.rows.values();
        let later = rows.filter(|change| change.revision > after.revision);
        let mut changes: Vec<_> = later.cloned().collect();
        changes.sort_by_key(|change| change.revision);
        // A page ends at the end of a revision, never inside one.
        let last = changes.get(limit.get() - 1).map(|change| change.revision.0);
        let upto = last.map_or(state.head, |last| state.heads[last as usize - 1]);
        changes.retain(|change| change.revision <= upto.revision);
        Ok(Changes {
            changes,
            upto,
            head: state.head,
            server_time: None,
        })
    }

    async fn scan(&self, after: Option<RowKey>, limit: NonZeroUsize) -> StoreResult<ScanPage> {
        let state = self.state();
        let from = after.map_or(Unbounded, Excluded);
        let later = state.rows.range((from, Unbounded)).take(limit.get());
        let rows: Vec<_> = later.map(|(_, row)| row.clone()).collect();
        let next = rows.last().map(|change| change.row.key());
        Ok(ScanPage {
            head: state.head,
            rows,
            next,
        })
    }

    async fn list(&self, query: &KeyQuery) -> StoreResult<KeyPage> {
        Ok(query.page(self.state().tenants.values().flat_map(|view| &view.records)))
    }

    async fn audit(&self, query: &AuditQuery) -> StoreResult<AuditPage> {
        Ok(query.page(&self.state().audit))
    }
}

#[pollster::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let peppers = PepperRing::generate()?;
    let keys = Keyward::builder(Shelf::default(), peppers).build().await?;
    let admin = Actor::new("acme".try_into()?, "alice".try_into()?, Role::ADMIN);
    let created = keys.create(&admin, CreateKey::new("export")).await?;
    let grant = keys.verify(created.secret.expose(), &Need::any())?;
    println!("key {} works", grant.key_id());
    Ok(())
}

#[cfg(test)]
keyward_conformance::suite! {
    mod shelf;
    store = Shelf::default();
}
