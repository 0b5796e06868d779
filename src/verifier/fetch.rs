//! Verifying against the store: for keys that must see the latest state, and keys not known here.

use std::sync::Arc;

use super::{Claim, Grant, Verifier};
use crate::core::check::{Need, Rejection};
use crate::core::owner::Standing;
use crate::core::record::KeyRecord;
use crate::core::secret::Digest;
use crate::core::view::Select;
use crate::manager::load_ancestry;
use crate::store::{Locator, Row, StoreError, Versioned};

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
        let claim = self.claim(presented.as_ref())?;
        let found = self.find(&claim).await.map_err(unavailable)?;
        let Some(found) = found else {
            return Err(self.unknown(&claim));
        };
        self.replica.apply_fetched(&found);
        let record = match &found.change.row {
            Row::Key(record) => Arc::new(KeyRecord::clone(record)),
            Row::Corrupt(key) => return Err(Rejection::Corrupt { key: *key }),
            _ => return Err(self.unknown(&claim)),
        };
        let standing = self.standing(&record).await.map_err(unavailable)?;
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
            Err(Rejection::Unknown) => match self.fetches.try_acquire() {
                Some(_permit) => self.verify_fresh(presented, need).await,
                None => Err(Rejection::StoreUnavailable),
            },
            Err(Rejection::NeedsFresh) => self.verify_fresh(presented, need).await,
            verdict => verdict,
        }
    }

    async fn find(&self, claim: &Claim<'_>) -> Result<Option<Versioned>, StoreError> {
        if let Ok(token) = claim.token {
            let found = self.store.find(&Locator::Id(token.id())).await?;
            if found.is_some() || !self.replica.index().has_imported() {
                return Ok(found);
            }
        }
        self.store
            .find(&Locator::Imported(Digest::sha256(claim.text)))
            .await
    }

    async fn standing(&self, record: &KeyRecord) -> Result<Standing, StoreError> {
        let owners: Vec<_> = record.owner.principal().cloned().into_iter().collect();
        let select = Select {
            owners: owners.clone(),
            ..Select::none()
        };
        let own = self.store.load(&record.tenant, &select).await?;
        let above = load_ancestry(&*self.store, &record.tenant, owners).await?;
        let owners = own.owners.iter().chain(&above.owners);
        let tenants = own.tenant.iter().chain(&above.tenants);
        Ok(Standing::resolve(
            &record.tenant,
            &record.owner,
            owners,
            tenants,
        ))
    }
}

fn unavailable(error: StoreError) -> Rejection {
    tracing::warn!(%error, "cannot verify against the store");
    Rejection::StoreUnavailable
}
