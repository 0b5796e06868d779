//! Verifying against the store: for keys that must see the latest state, and keys not known here.

use std::hint::black_box;

use subtle::{Choice, ConstantTimeEq};

use super::grant::Taken;
use super::{Claim, Grant, Verifier};
use crate::core::check;
use crate::core::need::Need;
use crate::core::owner::Standing;
use crate::core::record::{Credential, KeyRecord};
use crate::core::rejection::Rejection;
use crate::core::secret::Digest;
use crate::core::subject::{Course, Shape, Subject};
use crate::core::token::Token;
use crate::core::view::{Select, lineage};
use crate::replica::Known;
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
        let record = KeyRecord::clone(record);
        let (standing, rows) = self.standing(&record).await.map_err(unavailable)?;
        self.replica.apply_fetched(&found, &rows);
        self.judge(&claim, record, standing, need)
    }

    /// Judges a key by its record.
    fn judge(
        &self,
        claim: &Claim<'_>,
        record: KeyRecord,
        standing: Standing,
        need: &Need,
    ) -> Result<Grant, Rejection> {
        let (id, course) = (record.id, Course::of(&record));
        let same = self.compare(claim, &record.credential)?;
        let (shape, holder) = Shape::of(record);
        let pinned = self.pinned();
        let policy = pinned.policies.of(&holder.tenant);
        let now = self.clock.now().max(pinned.view.index().newest());
        let subject = Subject {
            id,
            whose: &holder,
            persons: holder.is_person(),
            shape: &shape,
            course,
        };
        let presented = (same, claim.token().map(Token::prefix_bytes));
        check::check_subject(subject, presented, policy, (&standing, None), need, now)?;
        self.notice(claim.token(), subject, true);
        pinned.view.count_id(id, now);
        let taken = Taken {
            shape,
            holder,
            course,
            standing,
            policies: pinned.policies.clone(),
        };
        Ok(Grant::of_record(id, taken, now))
    }

    /// Digests what was presented in the way that `credential` was made, and compares.
    fn compare(&self, claim: &Claim<'_>, credential: &Credential) -> Result<Choice, Rejection> {
        Ok(match (credential, claim) {
            (Credential::Imported { digest, .. }, Claim::Foreign(presented, _)) => {
                digest.ct_eq(presented)
            }
            (Credential::Peppered { pepper, digest }, Claim::Token(token)) => {
                let Some(pepper) = self.peppers.live(pepper) else {
                    tracing::error!(%pepper, key = %token.id(), "pepper is not in the ring");
                    return Err(Rejection::UnknownPepper {
                        pepper: pepper.clone(),
                    });
                };
                digest.ct_eq(&pepper.digest(token.id_and_secret()))
            }
            (Credential::Imported { .. }, Claim::Token(..))
            | (Credential::Peppered { .. }, Claim::Foreign(..)) => Choice::from(0),
        })
    }

    /// What an unknown key is told, after the same work as for a known one (trap 6).
    fn unknown(&self, claim: &Claim<'_>) -> Rejection {
        match claim {
            Claim::Token(token) => {
                let digest = self.peppers.current().digest(token.id_and_secret());
                black_box(digest.ct_eq(&Digest::from_bytes([0; 32])));
                Rejection::Unknown
            }
            // Where there are imported keys, it may be one that was not heard of here yet.
            Claim::Foreign(..) if self.pinned().view.index().has_imported() => Rejection::Unknown,
            Claim::Foreign(_, error) => (*error).into(),
        }
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
            Err(Rejection::Unknown) if self.known(presented.as_ref()) == Some(Known::Removed) => {
                Err(Rejection::Unknown)
            }
            // The index tells keys apart by 32 bits of a hash until a secret matches: here it matters.
            Err(Rejection::WrongSecret) if self.known(presented.as_ref()).is_some() => {
                Err(Rejection::WrongSecret)
            }
            Err(Rejection::Unknown | Rejection::WrongSecret) => match self.fetches.try_acquire() {
                Some(_permit) => self.verify_fresh(presented, need).await,
                None => Err(Rejection::StoreUnavailable),
            },
            Err(Rejection::NeedsFresh) => self.verify_fresh(presented, need).await,
            verdict => verdict,
        }
    }

    fn known(&self, presented: &[u8]) -> Option<Known> {
        let view = &self.pinned().view;
        match Claim::of(presented).ok()? {
            Claim::Token(token) => view.known(token.id()),
            Claim::Foreign(digest, _) => view.known_import(&digest),
        }
    }

    async fn find(&self, claim: &Claim<'_>) -> Result<Option<Versioned>, StoreError> {
        let locator = match claim {
            Claim::Token(token) => Locator::Id(token.id()),
            Claim::Foreign(digest, _) => Locator::Imported(*digest),
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
