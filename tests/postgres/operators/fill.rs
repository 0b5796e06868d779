//! Stores with test data, and comparisons of their contents.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use keyward::audit::AuditHead;
use keyward::command::{Created, DeleteKey, ImportKey};
use keyward::key::Digest;
use keyward::policy::Policy;
use keyward::store::transfer::{self, Copied, CopyError, CopySource, CopyTarget};
use keyward::store::{
    AuditQuery, AuditRow, Change, Cursor, KeyStore, Locator, NodeId, NodeRegistry, NodeReport,
    SqliteStore, TenantView,
};
use keyward::{KeyId, Keyward, ManualClock, Need, Reason, RotateKey, TenantId, days, hours};
use tempfile::TempDir;

use support::*;

pub(crate) const ALL: NonZeroUsize = NonZeroUsize::new(1_000_000).unwrap();

/// 3 items per page, so that even a small store has many pages.
pub(crate) const FEW: NonZeroUsize = NonZeroUsize::new(3).unwrap();

/// A database file in a temporary folder of its own.
pub(crate) struct File(TempDir);

impl File {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("keys.db")
    }

    pub(crate) fn open(&self) -> SqliteStore {
        wait(SqliteStore::open(self.path())).unwrap()
    }

    /// Changes the database file with SQL, as a fault or an attacker would, and not through the store.
    pub(crate) fn tamper(&self, sql: &str) {
        let file = rusqlite::Connection::open(self.path()).unwrap();
        file.execute_batch(sql).unwrap();
    }
}

pub(crate) fn copy(from: &dyn CopySource, to: &dyn CopyTarget) -> Result<Copied, CopyError> {
    wait(transfer::copy(from, to, FEW, |_| {}))
}

pub(crate) fn service(store: impl KeyStore) -> Keyward {
    let clock = Arc::new(ManualClock::at(at(START)));
    node(store, &clock, Policy::new(capped(50)).unwrap())
}

pub(crate) const TOKEN: &str = "token-from-elsewhere";

/// The keys in a store that [`fill`] has filled. The store has rows of every kind.
pub(crate) struct Filled {
    pub(crate) live: Created,
    pub(crate) revoked: Created,
    pub(crate) removed: Created,
    pub(crate) forgotten: KeyId,
    pub(crate) imported: KeyId,
}

/// Fills a store with live, revoked, imported and removed keys. The tombstone of the key `forgotten` is
/// already compacted.
pub(crate) fn fill(store: &SqliteStore) -> Filled {
    let keys = service(store.clone());
    let create = |name: &str| wait(keys.create(&admin(), reader(name))).unwrap();
    let (live, revoked, removed) = (create("live"), create("revoked"), create("removed"));
    let forgotten = create("forgotten");
    let delete = |key: &Created, name| wait(keys.delete(&admin(), key.id, DeleteKey::typed(name)));
    delete(&forgotten, "forgotten").unwrap();
    let head = wait(store.scan(None, ALL)).unwrap().head.revision;
    assert_eq!(wait(store.compact(head)).unwrap(), 1);
    delete(&removed, "removed").unwrap();
    wait(keys.revoke(&admin(), revoked.id, Reason::Lost)).unwrap();
    let import = ImportKey::sha256(Digest::sha256(TOKEN), reader("imported"));
    let imported = wait(keys.import(&host(), import)).unwrap().id;
    let other = actor("other/web", "bob", keyward::Role::ADMIN);
    let expires = reader("expires").expires_in(days(30));
    let expires = wait(keys.create(&other, expires)).unwrap();
    wait(keys.rotate(&other, expires.id, RotateKey::grace(hours(1)))).unwrap();
    let node = NodeReport {
        node: NodeId::from_u128(7),
        label: None,
        applied: None,
        lease: Duration::from_secs(2 * 60 * 60),
        beat: 1,
        clock: keyward::Timestamp::UNIX_EPOCH,
        process: None,
    };
    wait(store.report(node)).unwrap();
    Filled {
        live,
        revoked,
        removed,
        forgotten: forgotten.id,
        imported,
    }
}

/// Everything that can be read from a store, except its epoch, for comparing two stores.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Seen {
    head: (u64, u128),
    rows: Vec<Change>,
    feed: Vec<Change>,
    trail: Vec<AuditRow>,
    tenants: BTreeMap<TenantId, (u64, AuditHead, String)>,
}

pub(crate) fn seen(store: &dyn KeyStore) -> Seen {
    let scan = wait(store.scan(None, ALL)).unwrap();
    let trail = AuditQuery::all().with(|query| query.limit = ALL);
    let trail = wait(store.audit(&trail)).unwrap().rows;
    let view = |tenant: &TenantId| -> (u64, AuditHead, String) {
        let view: TenantView =
            wait(store.load(tenant, &keyward::store::LoadRequest::none())).unwrap();
        let state = format!("{:?} {:?}", view.decided_at, view.tenant);
        (view.revision.0, view.audit_head, state)
    };
    let tenants = trail.iter().map(|row| row.entry.tenant.clone());
    let tenants = tenants.map(|tenant| (tenant.clone(), view(&tenant)));
    Seen {
        head: (scan.head.revision.0, scan.head.tag.0),
        tenants: tenants.collect(),
        rows: scan.rows,
        feed: feed(store, scan.head),
        trail,
    }
}

/// Reads the change feed from the beginning. Returns no changes if the beginning was compacted.
fn feed(store: &dyn KeyStore, head: Cursor) -> Vec<Change> {
    let beginning = Cursor {
        epoch: head.epoch,
        ..Cursor::default()
    };
    match wait(store.changes(beginning, ALL)) {
        Ok(page) => page.changes,
        Err(_) => Vec::new(),
    }
}

pub(crate) fn head(store: &dyn KeyStore) -> Cursor {
    wait(store.scan(None, FEW)).unwrap().head
}

/// Returns whether a store has no rows, and never had a commit.
pub(crate) fn is_empty(store: &dyn KeyStore) -> bool {
    let trail = wait(store.audit(&AuditQuery::all())).unwrap();
    let scan = wait(store.scan(None, ALL)).unwrap();
    scan.head.revision == keyward::store::Revision::ZERO
        && scan.rows.is_empty()
        && trail.rows.is_empty()
}

/// Asserts that a service works on a copy of a filled store as it works on the source.
pub(crate) fn works(store: impl KeyStore + Clone, filled: &Filled) {
    let keys = service(store.clone());
    keys.verify(filled.live.secret.expose(), &reading())
        .unwrap();
    wait(keys.verify_or_fetch(TOKEN, &Need::any())).unwrap();
    for refused in [&filled.revoked, &filled.removed] {
        keys.verify(refused.secret.expose(), &Need::any())
            .unwrap_err();
    }
    let found = wait(store.find(&Locator::Imported(Digest::sha256(TOKEN)))).unwrap();
    assert_eq!(
        found.unwrap().change.row.key(),
        keyward::store::RowKey::Key(filled.imported)
    );
    for path in ["acme", "other/web"] {
        let path = tenant(path);
        let head = wait(store.load(&path, &keyward::store::LoadRequest::none()))
            .unwrap()
            .audit_head;
        let by = keyward::Actor::application(path.clone());
        wait(keys.verify_audit(&by, &path, Some(head))).unwrap();
    }
    let before = head(&store).revision.0;
    wait(keys.revoke(&admin(), filled.live.id, Reason::Lost)).unwrap();
    assert_eq!(
        head(&store).revision.0,
        before + 1,
        "revisions continue after the copied ones"
    );
    keys.verify(filled.live.secret.expose(), &reading())
        .unwrap_err();
}
