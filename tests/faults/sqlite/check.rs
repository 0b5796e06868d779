//! The invariants of a database file, which must hold after any fault.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::Path;

use keyward::audit::Action;
use keyward::key::{KeyRecord, KeyState};
use keyward::store::{AuditQuery, KeyStore, Row, SqliteStore};
use keyward::{Actor, KeyId, TenantId};

use crate::sqlite::child::{NO_CAP, open, service};
use support::wait;

/// The contents of a database file that was checked.
pub struct Held {
    pub store: SqliteStore,
    pub revision: u64,
    pub keys: BTreeMap<KeyId, KeyRecord>,
    /// The keys that are named in the audit trail, each with the revision of the commit that names it.
    pub named: BTreeSet<(u64, KeyId)>,
}

/// Opens a database file, checks its integrity and its audit trails, and returns its contents.
#[track_caller]
pub fn examine(path: &Path) -> Held {
    let store = open(path);
    let report = wait(store.check_integrity()).unwrap();
    assert!(report.is_sound(), "{:?}", report.faults);
    let all = NonZeroUsize::new(1_000_000).unwrap();
    let mut named = BTreeSet::new();
    let mut revisions = BTreeSet::new();
    let mut tenants: BTreeSet<TenantId> = BTreeSet::new();
    let query = AuditQuery::all().with(|query| query.limit = all);
    for row in wait(store.audit(&query)).unwrap().rows {
        let revision = row.revision.0;
        revisions.insert(revision);
        named.extend(row.entry.key.map(|key| (revision, key)));
        if let Action::KeyRotated { successor, .. } = row.entry.action {
            named.insert((revision, successor));
        }
        tenants.insert(row.entry.tenant);
    }
    let page = wait(store.scan(None, all)).unwrap();
    let revision = page.head.revision.0;
    assert!(
        revisions.iter().copied().eq(1..=revision),
        "every commit up to {revision} has its entry"
    );
    let mut keys = BTreeMap::new();
    for change in page.rows {
        if let Row::Key(record) = change.row {
            let last = (change.revision.0, record.id);
            assert!(named.contains(&last), "{last:?} has no entry");
            keys.insert(record.id, *record);
        }
    }
    for (revision, key) in &named {
        assert!(keys.contains_key(key), "{key} of {revision} has no row");
    }
    let service = service(store.clone(), NO_CAP);
    for tenant in tenants {
        wait(service.verify_audit(&Actor::application(tenant.clone()), &tenant, None)).unwrap();
    }
    Held {
        store,
        revision,
        keys,
        named,
    }
}

impl Held {
    pub fn is_revoked(&self, key: KeyId) -> bool {
        matches!(self.keys[&key].state, KeyState::Revoked { .. })
    }

    /// Checks that the file has the change that a child process has reported. The argument `line` is a report
    /// of the function `done`.
    #[track_caller]
    pub fn has(&self, line: &str) {
        let words: Vec<_> = line.split(' ').collect();
        let ["done", revision, what, key] = words[..] else {
            panic!("{line}");
        };
        let (revision, key) = (revision.parse().unwrap(), key.parse().unwrap());
        assert!(
            revision <= self.revision,
            "{line} is past {}",
            self.revision
        );
        assert!(self.named.contains(&(revision, key)), "{line} is lost");
        match what {
            "created" => assert!(self.keys.contains_key(&key), "{line} is lost"),
            "rotated" => assert!(self.keys[&key].succession.is_some(), "{line} is lost"),
            "revoked" => assert!(self.is_revoked(key), "{line} is lost"),
            _ => panic!("{line}"),
        }
    }
}
