//! Verifying against the store: for keys that must see the latest state, and keys not known here.

use std::sync::Arc;

use super::{Claim, Grant, Verifier};
use crate::core::check::{Need, Rejection};
use crate::core::owner::Standing;
use crate::core::record::KeyRecord;
use crate::core::secret::Digest;
use crate::core::view::{Select, lineage};
use crate::replica::Key;
use crate::store::{Change, Locator, Row, RowKey, StoreError, Versioned};

impl Verifier {
    /// Verifies against the store's latest state: whatever returned before this call began is seen.
    ///
    /// # Errors
    ///
    /// [`Rejection`]; [`StoreUnavailable`](Rejection::StoreUnavailable) if the store did not answer.
    pub async fn verify_fresh(
        &self,
        presented: impl AsRef<[u8]> + Send,
        need: &Need,
    ) -> Result<Grant, Rejection> {
        // The store may hold imported keys that nobody here has heard of.
        let claim = Claim::of(presented.as_ref())?;
        let found = self.find(&claim).await.map_err(unavailable)?;
        let Some(found) = found else {
            return Err(self.unknown(&claim));
        };
        let Row::Key(record) = &found.change.row else {
            self.replica.apply_fetched(&found, &[]);
            return Err(match found.change.row {
                Row::Corrupt(RowKey::Key(key)) => Rejection::Corrupt { key },
                _ => self.unknown(&claim),
            });
        };
        let record = Arc::new(KeyRecord::clone(record));
        let (standing, rows) = self.standing(&record).await.map_err(unavailable)?;
        self.replica.apply_fetched(&found, &rows);
        let policies = self.policies.load_full();
        let now = self.clock.now().max(self.replica.index().newest());
        let policy = policies.of(&record.tenant);
        self.judge(&claim, record, Arc::new(standing), policy, need, now)
    }

    /// Verifies, and asks the store where the replica cannot tell: for a key that it does not know
    /// yet (rule A1-25), and for classes that must see the latest state.
    ///
    /// # Errors
    ///
    /// [`Rejection`]. A refusal is never remembered.
    pub async fn verify_or_fetch(
        &self,
        presented: impl AsRef<[u8]> + Send,
        need: &Need,
    ) -> Result<Grant, Rejection> {
        match self.verify(presented.as_ref(), need) {
            // A removed key never comes back: there is nothing to ask for.
            Err(Rejection::Unknown) if self.is_removed(presented.as_ref()) => {
                Err(Rejection::Unknown)
            }
            Err(Rejection::Unknown) => match self.fetches.try_acquire() {
                Some(_permit) => self.verify_fresh(presented, need).await,
                None => Err(Rejection::StoreUnavailable),
            },
            Err(Rejection::NeedsFresh) => self.verify_fresh(presented, need).await,
            verdict => verdict,
        }
    }

    fn is_removed(&self, presented: &[u8]) -> bool {
        let index = self.replica.index();
        let claim = self.claim(presented);
        claim.is_ok_and(|claim| matches!(claim.look_up(&index), Some(Key::Removed)))
    }

    async fn find(&self, claim: &Claim<'_>) -> Result<Option<Versioned>, StoreError> {
        let locator = match claim.token {
            Ok(token) => Locator::Id(token.id()),
            Err(_) => Locator::Imported(Digest::sha256(claim.text)),
        };
        self.store.find(&locator).await
    }

    /// What the rows along a key's path say about it, with the rows.
    async fn standing(&self, record: &KeyRecord) -> Result<(Standing, Vec<Change>), StoreError> {
        let select = Select {
            owners: record.owner.principal().cloned().into_iter().collect(),
            ..Select::none()
        };
        let (mut owners, mut tenants, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for tenant in lineage(&record.tenant) {
            let view = self.store.load(&tenant, &select).await?;
            // No earlier than the commits that wrote the rows, and earlier than what follows them.
            let revision = view.revision;
            let own = view.tenant.iter().cloned().map(Row::Tenant);
            let all = own.chain(view.owners.iter().cloned().map(Row::Owner));
            rows.extend(all.map(|row| Change { revision, row }));
            owners.extend(view.owners);
            tenants.extend(view.tenant);
        }
        let standing = Standing::resolve(&record.tenant, &record.owner, &owners, &tenants);
        Ok((standing, rows))
    }
}

fn unavailable(error: StoreError) -> Rejection {
    tracing::warn!(%error, "cannot verify against the store");
    Rejection::StoreUnavailable
}
