//! A record of all commits, separate from every node, with which the simulation checks each accepted key.
//!
//! The ledger is naive on purpose. The ledger keeps every version of every row with its commit time, and
//! calls none of the crate's rules.

use std::collections::{BTreeMap, BTreeSet};

use super::Invariant;
use super::world::SimInstant;
use crate::explore::check_cap;
use keyward::audit::{AuditHead, verify_chain};
use keyward::command::CommandId;
use keyward::key::{Digest, KeyRecord, KeyState, Owner};
use keyward::policy::Policy;
use keyward::store::{Commit, Revision, Row, RowKey};
use keyward::{KeyId, PepperRing, Role, TenantId, Timestamp};

/// The contents of a row after one commit.
struct RowVersion {
    landed: SimInstant,
    revision: Revision,
    row: Row,
}

pub(super) struct CommitLedger {
    policy: Policy,
    peppers: PepperRing,
    /// The longest time until every verifier must follow a commit, in microseconds.
    bound: u64,
    rows: BTreeMap<RowKey, Vec<RowVersion>>,
    keys: BTreeMap<TenantId, Vec<KeyId>>,
    heads: BTreeMap<TenantId, AuditHead>,
    /// The latest decision time of all commits of each tenant.
    newest: BTreeMap<TenantId, Timestamp>,
    revision: Revision,
    /// The rows that each command wrote, oldest first. Each has the tenant and the revision of its commit.
    commands: BTreeMap<CommandId, Vec<(TenantId, RowKey, Revision)>>,
}

/// A node's decision to accept a key, to be checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acceptance<'a> {
    pub(super) key: KeyId,
    /// The scope that the client required, or `None` if any scope suffices.
    pub(super) needs: Option<&'a str>,
    /// The start of the time span whose rows the node may have used.
    pub(super) since: SimInstant,
    /// The time of the decision, which is the end of that time span.
    pub(super) until: SimInstant,
    /// The time that the node's wall clock showed at the decision.
    pub(super) wall: Timestamp,
}

type InvariantBreach = (Invariant, String);

impl CommitLedger {
    pub(super) fn new(policy: Policy, peppers: PepperRing) -> Self {
        let worst = policy.spec().propagation.worst_case();
        // Add 2 µs for rounding: simulated time has whole microseconds, but clocks have nanoseconds.
        let bound = u64::try_from(worst.as_micros()).unwrap_or(u64::MAX) + 2;
        Self {
            policy,
            peppers,
            bound,
            rows: BTreeMap::new(),
            keys: BTreeMap::new(),
            heads: BTreeMap::new(),
            newest: BTreeMap::new(),
            revision: Revision::ZERO,
            commands: BTreeMap::new(),
        }
    }

    pub(super) const fn bound(&self) -> u64 {
        self.bound
    }

    /// Returns the time by which a node judges a key: the later of `time` and the latest decision time of the
    /// key's tenant.
    pub(super) fn instant_for(&self, key: KeyId, time: Timestamp) -> Timestamp {
        let first = self.rows.get(&RowKey::Key(key)).and_then(|v| v.first());
        let tenant = first.and_then(|version| Some(version.row.written_at()?.0));
        let newest = tenant.and_then(|tenant| self.newest.get(tenant));
        newest.map_or(time, |newest| time.max(*newest))
    }

    pub(super) const fn peppers(&self) -> &PepperRing {
        &self.peppers
    }

    /// Returns the head of each tenant's audit trail after all recorded commits.
    pub(super) const fn heads(&self) -> &BTreeMap<TenantId, AuditHead> {
        &self.heads
    }

    /// Records a commit, and checks the rules that every commit must keep.
    pub(super) fn landed(
        &mut self,
        commit: &Commit,
        revision: Revision,
        now: SimInstant,
    ) -> Result<(), InvariantBreach> {
        if revision <= self.revision {
            let what = format!("revision {revision} follows {}", self.revision);
            return Err((Invariant::Progress, what));
        }
        self.revision = revision;
        let newest = self.newest.entry(commit.tenant.clone());
        let newest = newest.or_insert(commit.decided_at);
        *newest = commit.decided_at.max(*newest);
        for row in commit.rows() {
            let key = row.key();
            let versions = self.rows.entry(key).or_default();
            let before = versions.last().map(|version| &version.row);
            if let Row::Key(record) = &row {
                if before.is_none() {
                    let keys = self.keys.entry(record.tenant.clone()).or_default();
                    keys.push(record.id);
                }
                if before.is_some_and(is_ended) && !is_ended(&row) {
                    let what = format!("key {} came back in the store", record.id);
                    return Err((Invariant::TombstonesStick, what));
                }
            }
            let landed = now;
            versions.push(RowVersion {
                landed,
                revision,
                row,
            });
        }
        let commands: BTreeSet<_> = commit.effects.audit.iter().map(|e| &e.command).collect();
        for command in commands {
            let left = self.commands.entry(command.clone()).or_default();
            let rows = commit.rows().map(|row| row.key());
            left.extend(rows.map(|row| (commit.tenant.clone(), row, revision)));
        }
        self.check_trail(commit)?;
        let live = self.records(&commit.tenant);
        check_cap(&self.policy, commit.decided_at, &commit.tenant, &live)
            .map_err(|what| (Invariant::CapKept, what))
    }

    fn check_trail(&mut self, commit: &Commit) -> Result<(), InvariantBreach> {
        let head = self.heads.entry(commit.tenant.clone()).or_default();
        let entries = &commit.effects.audit;
        *head = verify_chain(&commit.tenant, *head, entries, &self.peppers, None)
            .map_err(|error| (Invariant::TrailIntact, error.to_string()))?;
        if entries.is_empty() {
            let what = format!("a commit of {} has no entry", commit.tenant);
            return Err((Invariant::TrailIntact, what));
        }
        Ok(())
    }

    fn records(&self, tenant: &TenantId) -> Vec<&KeyRecord> {
        let keys = self.keys.get(tenant).into_iter().flatten();
        keys.filter_map(
            |key| match &self.rows.get(&RowKey::Key(*key))?.last()?.row {
                Row::Key(record) => Some(&**record),
                _ => None,
            },
        )
        .collect()
    }

    /// Returns the index of the row version that a command wrote. If the command left the row unchanged,
    /// returns the version that it read.
    pub(super) fn version_of(
        &self,
        row: &RowKey,
        command: &CommandId,
        found: Revision,
    ) -> Option<usize> {
        let revision = match self.commands.get(command) {
            Some(left) => {
                let wrote = left.iter().rfind(|(_, own, _)| own == row);
                // The command left this row unchanged. The command read the row at the revision of its first
                // commit in the row's tenant.
                let read = || left.iter().find(|(tenant, ..)| self.is_of(row, tenant));
                wrote.or_else(read)?.2
            }
            None => found,
        };
        let versions = self.rows.get(row)?;
        versions
            .iter()
            .rposition(|version| version.revision <= revision)
    }

    /// Returns whether a row belongs to a tenant.
    fn is_of(&self, row: &RowKey, tenant: &TenantId) -> bool {
        match row {
            RowKey::Tenant(own) | RowKey::Owner(own, _) => own == tenant,
            RowKey::Key(key) => self.tenant_of(*key).as_ref() == Some(tenant),
        }
    }

    /// Returns the key that was imported with this digest, if any.
    pub(super) fn imported(&self, digest: &Digest) -> Option<KeyId> {
        self.rows
            .values()
            .find_map(|versions| match &versions.first()?.row {
                Row::Key(record) if record.credential.imported() == Some(digest) => Some(record.id),
                _ => None,
            })
    }

    /// Returns the tenant of a key.
    pub(super) fn tenant_of(&self, key: KeyId) -> Option<TenantId> {
        match &self.rows.get(&RowKey::Key(key))?.first()?.row {
            Row::Key(record) => Some(record.tenant.clone()),
            _ => None,
        }
    }

    /// Returns whether a key existed at `since` and was not removed afterwards.
    pub(super) fn is_there(&self, key: KeyId, since: SimInstant) -> bool {
        let versions = self.rows.get(&RowKey::Key(key));
        let there = |version: &RowVersion| version.landed <= since;
        versions.is_some_and(|versions| {
            let removed = |version: &RowVersion| matches!(version.row, Row::Removed { .. });
            versions.first().is_some_and(there) && !versions.last().is_some_and(removed)
        })
    }

    /// Returns whether a key is revoked or removed.
    pub(super) fn is_ended(&self, key: KeyId) -> bool {
        let versions = self.rows.get(&RowKey::Key(key));
        versions.is_some_and(|versions| versions.last().is_some_and(|last| is_ended(&last.row)))
    }

    /// Returns whether a key was ever revoked or removed.
    pub(super) fn was_revoked(&self, key: KeyId) -> bool {
        let versions = self.rows.get(&RowKey::Key(key));
        versions.is_some_and(|versions| versions.iter().any(|version| is_ended(&version.row)))
    }

    /// Returns whether the newest version of every row permits a key at `now`.
    pub(super) fn is_good(&self, key: KeyId, needs: Option<&str>, now: Timestamp) -> bool {
        let record = self.rows.get(&RowKey::Key(key)).and_then(|v| v.last());
        let Some(RowVersion {
            row: Row::Key(record),
            ..
        }) = record
        else {
            return false;
        };
        gates(record).iter().all(|gate| {
            let row = self.rows.get(gate).and_then(|versions| versions.last());
            row.is_none_or(|version| admits(&version.row, record, needs, now))
        })
    }

    /// Checks that a node was allowed to accept a key. Each row that can end the key must have a version that
    /// permits it and was current between `since` and `until`.
    ///
    /// If the node has changed such a row itself, versions before that change do not count. The function
    /// `own` returns the node's own version.
    pub(super) fn check(
        &self,
        acceptance: Acceptance<'_>,
        own: impl Fn(&RowKey) -> Option<usize>,
    ) -> Result<(), InvariantBreach> {
        let Acceptance {
            key,
            needs,
            since,
            until,
            wall,
        } = acceptance;
        let row = RowKey::Key(key);
        let first = self.rows.get(&row).and_then(|versions| versions.first());
        let Some(RowVersion {
            row: Row::Key(record),
            ..
        }) = first
        else {
            let what = format!("{key} was accepted, but never existed");
            return Err((Invariant::NeverPastBound, what));
        };
        for gate in gates(record) {
            let Some(versions) = self.rows.get(&gate) else {
                continue;
            };
            // The index of the version that was current at `since`. The node may also have used a later
            // version, up to `until`.
            let oldest = versions.iter().rposition(|version| version.landed <= since);
            let floor = own(&gate);
            let good = |from: Option<usize>| {
                // The tenant or owner had no row at that time, so its row cannot have ended the key.
                if from.is_none() && gate != row {
                    return true;
                }
                let candidates = versions.iter().skip(from.unwrap_or_default());
                let mut landed = candidates.take_while(|version| version.landed <= until);
                landed.any(|version| admits(&version.row, record, needs, wall))
            };
            if !good(oldest) {
                let late = self.ended_since(&gate, record, needs, wall, until);
                let what = format!(
                    "{key} was accepted {late} us after {gate:?} ended it; the bound is {} us",
                    self.bound
                );
                return Err((Invariant::NeverPastBound, what));
            }
            if !good(oldest.max(floor)) {
                let what = format!("{key} was accepted on the node that had changed {gate:?}");
                return Err((Invariant::AtOnceWhereApplied, what));
            }
        }
        Ok(())
    }

    /// Returns the microseconds between the end of a key and `until`. The key ended with the first version of
    /// the row that no longer permitted it.
    fn ended_since(
        &self,
        gate: &RowKey,
        record: &KeyRecord,
        needs: Option<&str>,
        wall: Timestamp,
        until: SimInstant,
    ) -> u64 {
        let versions = self.rows.get(gate).map_or(&[][..], Vec::as_slice);
        let last = versions.iter().rposition(|version| {
            version.landed <= until && admits(&version.row, record, needs, wall)
        });
        let ended = versions.get(last.map_or(0, |last| last + 1));
        ended.map_or(0, |version| until.saturating_sub(version.landed))
    }
}

/// Returns the rows that can end a key: the key's own row, and the rows of its owner and tenant, also in all
/// ancestors.
fn gates(record: &KeyRecord) -> Vec<RowKey> {
    let mut gates = vec![RowKey::Key(record.id)];
    for tenant in record.tenant.lineage() {
        if let Owner::Principal(owner) = &record.owner {
            gates.push(RowKey::Owner(tenant.clone(), owner.clone()));
        }
        gates.push(RowKey::Tenant(tenant));
    }
    gates
}

/// Returns whether a row permits the use of a key at `now`.
fn admits(row: &Row, about: &KeyRecord, needs: Option<&str>, now: Timestamp) -> bool {
    let reads = needs.is_none_or(|scope| scope.ends_with(":read"));
    let reaches = |role: &Role| *role != Role::MEMBER || reads;
    match row {
        Row::Key(record) => {
            let has = |scope| record.scopes.iter().any(|own| own.as_str() == scope);
            record.state == KeyState::Enabled
                && record.expires_at.is_none_or(|end| now < end)
                && needs.is_none_or(has)
                // The roles of the secret's recipient limit the key permanently, whatever role its owner gets
                // later.
                && record.bound.iter().all(reaches)
        }
        Row::Owner(owner) => {
            let lasting = owner.removed_at.is_none_or(|at| about.created.at > at);
            lasting && owner.role.as_ref().is_some_and(reaches)
        }
        Row::Tenant(tenant) => tenant.closed.is_none(),
        Row::Removed { .. } | Row::Corrupt(_) => false,
    }
}

fn is_ended(row: &Row) -> bool {
    match row {
        Row::Key(record) => matches!(record.state, KeyState::Revoked { .. }),
        Row::Removed { .. } => true,
        Row::Tenant(_) | Row::Owner(_) | Row::Corrupt(_) => false,
    }
}
