//! A store that computes its rows when they are read. So ten million keys use memory only in the index under
//! test.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};

use keyward::store::*;
use keyward::{KeyId, Role};

use crate::keys::Keys;
use crate::mixed;

type StoreResult<T> = Result<T, StoreError>;

/// The kind of changes in the feed after the first scan.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Feed {
    /// Each revision adds a new key.
    Grow,
    /// Each revision changes a random key; every tenth revision adds a new key.
    Mixed,
    /// Each revision changes the role of the first owner. An even revision takes all permissions away, and an odd one
    /// gives them back.
    Roles,
}

#[derive(Debug)]
pub struct SyntheticStore {
    pub keys: Keys,
    /// The number of keys that a scan returns.
    scanned: u64,
    feed: Feed,
    head: AtomicU64,
}

/// The revision of all rows that a scan returns.
const FILLED: u64 = 1;

impl SyntheticStore {
    pub const fn new(keys: Keys, scanned: u64, feed: Feed) -> Self {
        Self {
            keys,
            scanned,
            feed,
            head: AtomicU64::new(FILLED),
        }
    }

    /// Appends `commits` changes to the feed. Returns the new head revision.
    pub fn commit_more(&self, commits: u64) -> u64 {
        self.head.fetch_add(commits, Ordering::AcqRel) + commits
    }

    fn cursor(revision: u64) -> Cursor {
        Cursor {
            epoch: Epoch(1),
            revision: Revision(revision),
            tag: CommitTag(revision.into()),
        }
    }

    fn head(&self) -> Cursor {
        Self::cursor(self.head.load(Ordering::Acquire))
    }

    /// Returns the change of the commit at `revision`.
    pub fn change(&self, revision: u64) -> Change {
        let nth = revision - FILLED - 1;
        let number = match self.feed {
            Feed::Roles => {
                let mut row = self.keys.owner_row(0);
                if revision.is_multiple_of(2) {
                    row.role = Role::new("nobody").ok();
                }
                return Change {
                    revision: Revision(revision),
                    row: Row::Owner(row),
                };
            }
            Feed::Grow => self.scanned + nth,
            Feed::Mixed if nth.is_multiple_of(10) => self.scanned + nth / 10,
            Feed::Mixed => mixed(nth) % self.scanned,
        };
        self.keys.change(Revision(revision), number, revision)
    }

    /// Returns a page of a scan, as [`KeyStore::scan`] does.
    pub fn page(&self, after: Option<&RowKey>, limit: usize) -> ScanPage {
        let owners = self.keys.owners();
        let from = match after {
            None | Some(RowKey::Tenant(_)) => 0,
            Some(RowKey::Owner(tenant, owner)) => Keys::place(tenant, owner) + 1,
            Some(RowKey::Key(id)) => owners + Keys::number(*id) + 1,
        };
        let end = owners + self.scanned;
        let upto = end.min(from + limit as u64);
        let revision = Revision(FILLED);
        let row = |place: u64| match place.checked_sub(owners) {
            Some(number) => self.keys.change(revision, number, 0),
            None => Change {
                revision,
                row: Row::Owner(self.keys.owner_row(place)),
            },
        };
        let rows: Vec<_> = (from..upto).map(row).collect();
        let last = rows.last().filter(|_| upto < end);
        ScanPage {
            head: self.head(),
            next: last.map(|change| change.row.key()),
            rows,
        }
    }
}

fn refused(doing: &'static str) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, doing)
}

#[keyward::store::async_trait]
impl KeyStore for SyntheticStore {
    async fn load(&self, _: &keyward::TenantId, _: &LoadRequest) -> StoreResult<TenantView> {
        Err(refused("loading what is only made up"))
    }

    async fn find(&self, locator: &Locator) -> StoreResult<Option<FoundKey>> {
        let head = self.head();
        let own = |id: &KeyId| {
            let number = Keys::number(*id);
            (number < self.scanned && self.keys.id(number) == *id).then_some(number)
        };
        Ok(match locator {
            Locator::Id(id) => own(id).map(|number| FoundKey {
                change: self.keys.change(Revision(FILLED), number, 0),
                head,
            }),
            Locator::Imported(_) => None,
        })
    }

    async fn commit(&self, _: Commit) -> Result<Revision, CommitError> {
        Err(refused("committing to what is only made up").into())
    }

    async fn changes(&self, after: Cursor, limit: NonZeroUsize) -> Result<Changes, ChangesError> {
        let (from, head) = (after.revision.0, self.head());
        let upto = head.revision.0.min(from + limit.get() as u64);
        Ok(Changes {
            changes: (from + 1..=upto).map(|at| self.change(at)).collect(),
            upto: Self::cursor(upto),
            head,
            server_time: None,
        })
    }

    async fn scan(&self, after: Option<RowKey>, limit: NonZeroUsize) -> StoreResult<ScanPage> {
        Ok(self.page(after.as_ref(), limit.get()))
    }

    async fn list(&self, _: &KeyQuery) -> StoreResult<KeyPage> {
        Err(refused("listing what is only made up"))
    }

    async fn audit(&self, _: &AuditQuery) -> StoreResult<AuditPage> {
        Err(refused("reading the trail of what is only made up"))
    }
}
