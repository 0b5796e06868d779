//! Checks of a race that read the rows and the audit trail of its store.
//!
//! The checks do not call the crate's own rules, because these rules are under test.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::Arc;

use super::block_on;
use keyward::audit::{Action, AuditHead, verify_chain};
use keyward::command::CommandId;
use keyward::key::{KeyRecord, KeyState};
use keyward::policy::{LegacyRule, Policy};
use keyward::store::{AuditQuery, Change, Cursor, KeyStore, Revision, Row, RowKey};
use keyward::{KeyId, PepperRing, TenantId, Timestamp};

const PAGE: NonZeroUsize = NonZeroUsize::new(3).expect("the page size is not zero");

pub(super) type StoreRows = BTreeMap<RowKey, Change>;

/// The [`CommandTrace`] of each command.
pub(super) type CommandTraces = BTreeMap<CommandId, CommandTrace>;

/// The effects of one command, as the audit trail records them.
#[derive(Debug, Default)]
pub(super) struct CommandTrace {
    /// The revisions of the commits that contain audit entries of the command.
    pub(super) commits: BTreeSet<Revision>,
    /// The number of keys that the command created automatically with a tenant or a resource.
    pub(super) provisioned: usize,
}

#[derive(Debug)]
pub(super) struct RaceChecker {
    store: Arc<dyn KeyStore>,
    policy: Policy,
    now: Timestamp,
    /// Every head that the store had so far, each with the store's rows at that head.
    seen: Vec<(Cursor, StoreRows)>,
    ended: BTreeSet<KeyId>,
}

impl RaceChecker {
    pub(super) fn new(store: Arc<dyn KeyStore>, policy: Policy, now: Timestamp) -> Self {
        Self {
            store,
            policy,
            now,
            seen: Vec::new(),
            ended: BTreeSet::new(),
        }
    }

    pub(super) fn look(&mut self) -> Result<(), String> {
        let (head, rows) = self.read()?;
        for (cursor, known) in &self.seen {
            let followed = self.follow(*cursor, known.clone(), head)?;
            if followed != rows {
                return Err(format!("feed from {cursor:?} misses a change"));
            }
        }
        self.check_tenants(&rows)?;
        self.check_ended(&rows)?;
        if self.seen.iter().all(|(cursor, _)| *cursor != head) {
            self.seen.push((head, rows));
        }
        Ok(())
    }

    /// Reads the store's head and all of its rows except tombstones.
    pub(super) fn read(&self) -> Result<(Cursor, StoreRows), String> {
        let mut rows = StoreRows::new();
        let mut after = None;
        let mut head = None;
        loop {
            let page = block_on(self.store.scan(after, PAGE)).map_err(|e| e.to_string())?;
            head.get_or_insert(page.head);
            rows.extend(page.rows.into_iter().map(|row| (row.row.key(), row)));
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        rows.retain(|_, change| !matches!(change.row, Row::Removed { .. }));
        Ok((head.unwrap_or_default(), rows))
    }

    fn follow(&self, from: Cursor, mut rows: StoreRows, head: Cursor) -> Result<StoreRows, String> {
        let mut cursor = from;
        let mut last = from.revision;
        loop {
            let page = block_on(self.store.changes(cursor, PAGE))
                .map_err(|error| format!("feed after {cursor:?}: {error}"))?;
            for change in page.changes {
                if change.revision <= cursor.revision || change.revision < last {
                    return Err(format!("feed after {cursor:?} is out of order"));
                }
                last = change.revision;
                match change.row {
                    Row::Removed { .. } => rows.remove(&change.row.key()),
                    _ => rows.insert(change.row.key(), change),
                };
            }
            cursor = page.upto;
            if cursor == page.head {
                break;
            }
        }
        if cursor == head {
            Ok(rows)
        } else {
            Err(format!(
                "feed ends at {cursor:?}, the store's head is {head:?}"
            ))
        }
    }

    fn check_tenants(&self, rows: &StoreRows) -> Result<(), String> {
        let mut tenants: BTreeMap<&TenantId, Vec<&KeyRecord>> = BTreeMap::new();
        let mut open = BTreeSet::new();
        for change in rows.values() {
            match &change.row {
                Row::Key(record) => tenants.entry(&record.tenant).or_default().push(record),
                Row::Tenant(row) if row.closed.is_none() => {
                    open.insert(&row.tenant);
                }
                _ => {}
            }
        }
        for (tenant, keys) in &tenants {
            check_cap(&self.policy, self.now, tenant, keys)?;
        }
        for tenant in open {
            let keys = tenants.get(tenant).map_or(&[][..], Vec::as_slice);
            self.check_legacy(tenant, keys)?;
        }
        Ok(())
    }

    fn check_legacy(&self, tenant: &TenantId, keys: &[&KeyRecord]) -> Result<(), String> {
        let expected = usize::from(matches!(self.policy.spec().legacy, LegacyRule::One { .. }));
        let legacy: Vec<_> = keys.iter().filter(|key| key.legacy).collect();
        let ended = |key: &&&&KeyRecord| key.state != KeyState::Enabled;
        if legacy.len() != expected {
            return Err(format!("{tenant} has {} legacy keys", legacy.len()));
        }
        match legacy.iter().find(ended) {
            Some(key) => Err(format!("legacy key {} of {tenant} was ended", key.id)),
            None => Ok(()),
        }
    }

    fn check_ended(&mut self, rows: &StoreRows) -> Result<(), String> {
        let known = self.seen.last().map(|(_, rows)| rows);
        let gone = known
            .into_iter()
            .flatten()
            .filter_map(|(key, _)| match key {
                RowKey::Key(id) if !rows.contains_key(key) => Some(*id),
                _ => None,
            });
        self.ended.extend(gone);
        for change in rows.values() {
            if let Row::Key(record) = &change.row {
                if matches!(record.state, KeyState::Revoked { .. }) {
                    self.ended.insert(record.id);
                } else if self.ended.contains(&record.id) {
                    return Err(format!("key {} came back", record.id));
                }
            }
        }
        Ok(())
    }

    /// Reads the audit trail of each tenant, and verifies its hash chain. Returns the trace of each command.
    pub(super) fn audit(
        &self,
        tenants: &BTreeSet<TenantId>,
        peppers: &PepperRing,
    ) -> Result<CommandTraces, String> {
        let mut traces = CommandTraces::new();
        for tenant in tenants {
            let mut query = AuditQuery::tenant(tenant.clone());
            let mut entries = Vec::new();
            loop {
                let page = block_on(self.store.audit(&query)).map_err(|e| e.to_string())?;
                for row in page.rows {
                    let command = row.entry.command.clone();
                    let trace = traces.entry(command).or_default();
                    trace.commits.insert(row.revision);
                    let provisioned = matches!(row.entry.action, Action::KeyProvisioned { .. });
                    trace.provisioned += usize::from(provisioned);
                    entries.push(row.entry);
                }
                match page.next {
                    Some(next) => query.after = Some(next),
                    None => break,
                }
            }
            verify_chain(tenant, AuditHead::GENESIS, &entries, peppers, None)
                .map_err(|error| format!("audit trail of {tenant}: {error}"))?;
        }
        Ok(traces)
    }
}

/// Checks each cap of a tenant's policy: at most as many keys are active at `now` as it allows, and at most twice
/// as many are live.
pub(crate) fn check_cap(
    policy: &Policy,
    now: Timestamp,
    tenant: &TenantId,
    keys: &[&KeyRecord],
) -> Result<(), String> {
    let alive = |key: &KeyRecord| {
        !matches!(key.state, KeyState::Revoked { .. }) && key.expires_at.is_none_or(|end| now < end)
    };
    for cap in &policy.spec().caps {
        let limit = cap.limit.get() as usize;
        let counts = |key: &&&KeyRecord| {
            alive(key) && (cap.classes.is_empty() || cap.classes.contains(&key.class))
        };
        let live: Vec<_> = keys.iter().filter(counts).collect();
        let retiring = |key: &KeyRecord| {
            key.succession.as_ref().is_some_and(|succession| {
                succession.grace_from_first_use.is_none()
                    || live.iter().any(|other| other.id == succession.successor)
            })
        };
        let active = live.iter().filter(|key| !retiring(key)).count();
        if active > limit {
            return Err(format!("{tenant} has {active} active keys under {cap:?}"));
        }
        if live.len() > 2 * limit {
            let live = live.len();
            return Err(format!("{tenant} has {live} live keys under {cap:?}"));
        }
    }
    Ok(())
}
