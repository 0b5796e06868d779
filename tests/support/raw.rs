//! Commits that a test makes directly on a store, without a service. Each commit removes a key that never
//! existed, and so writes one tombstone.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};

use keyward::store::{
    Commit, CommitError, CommitTag, Cursor, Effects, KeyStore, PostgresStore, Revision, Row,
};
use keyward::{KeyId, TenantId, Timestamp};

use crate::*;

pub const ALL: NonZeroUsize = NonZeroUsize::new(1_000_000).unwrap();

/// Returns a commit for a tenant that is at the revision `expected`, and the id of the key that the commit
/// removes.
pub fn next(tenant: &TenantId, expected: Revision) -> (KeyId, Commit) {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = u128::from(NEXT.fetch_add(1, Ordering::Relaxed));
    // The number contains the process id, so that no other process uses the same key id or tag.
    let number = number << 32 | u128::from(std::process::id());
    let key = KeyId::from_u128(number << 32 | 1);
    let commit = Commit {
        tenant: tenant.clone(),
        epoch: None,
        expected,
        guards: Vec::new(),
        tag: CommitTag(number),
        decided_at: Timestamp::UNIX_EPOCH,
        effects: Effects {
            removes: vec![key],
            ..Effects::default()
        },
    };
    (key, commit)
}

/// Commits to the tenant `name` up to `most` times, but stops at the first error. Returns the successful
/// commits, and the error, if any.
pub fn write(
    store: &PostgresStore,
    name: &str,
    most: usize,
    mut acknowledged: impl FnMut(),
) -> (Vec<(Revision, KeyId)>, Option<CommitError>) {
    let tenant = tenant(name);
    let mut at = Revision::ZERO;
    let mut done = Vec::new();
    while done.len() < most {
        let (key, commit) = next(&tenant, at);
        match wait(store.commit(commit)) {
            Ok(revision) => {
                done.push((revision, key));
                acknowledged();
                at = revision;
            }
            Err(error) => return (done, Some(error)),
        }
    }
    (done, None)
}

/// Returns the cursor at the beginning of the store's history, before its first commit.
pub fn beginning(store: &PostgresStore) -> Cursor {
    let page = wait(store.scan(None, ALL)).unwrap();
    Cursor {
        epoch: page.head.epoch,
        ..Cursor::default()
    }
}

/// Reads one page of the feed after the cursor `after`. Returns the tombstones on the page, and the cursor
/// for the next page.
pub fn removed_since(
    store: &PostgresStore,
    after: Cursor,
    limit: NonZeroUsize,
) -> (Vec<(Revision, KeyId)>, Cursor) {
    let page = wait(store.changes(after, limit)).unwrap();
    let key = |row: Row| match row {
        Row::Removed { key, .. } => key,
        other => panic!("{other:?}"),
    };
    let changes = page.changes.into_iter();
    let removed = changes.map(|change| (change.revision, key(change.row)));
    (removed.collect(), page.upto)
}
