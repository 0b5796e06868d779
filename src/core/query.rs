//! Queries for keys and for the audit trail, and their results in pages.
//!
//! Pure: no I/O and no clock. This module alone defines the rows that match a query, and their order. A store
//! may answer queries from its own indexes. A store that holds its rows in memory calls [`KeyQuery::page`]
//! and [`AuditQuery::page`].

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use super::audit::AuditEntry;
use super::id::KeyId;
use super::record::{KeyRecord, Status};
use super::secret::Fingerprint;
use super::sweep::MadeBy;
use super::tenant::TenantId;
use super::text::{ClassName, CommandId, Environment, KeyName, PrincipalId, ResourceId};
use super::time::Timestamp;
use super::view::Revision;

/// The default size of a page: 100 rows, about two screens.
const DEFAULT_LIMIT: NonZeroUsize = NonZeroUsize::new(100).expect("100 is not zero");

/// A query for keys. A key matches if it meets every condition that is set. Without conditions every key
/// matches.
#[derive(Clone, Debug)]
#[must_use = "a query lists nothing by itself"]
#[non_exhaustive]
pub struct KeyQuery {
    /// Keys of this tenant; `None` for the whole store.
    pub tenant: Option<TenantId>,
    /// True if keys of the tenant's descendants match too.
    pub below: bool,
    /// The instant at which the status of each key is evaluated.
    pub at: Timestamp,
    /// Keys with one of these statuses at the instant [`at`](Self::at). Empty for any status.
    pub statuses: BTreeSet<Status>,
    /// Keys whose name contains this text, ignoring case.
    pub name: Option<String>,
    /// Keys of this class.
    pub class: Option<ClassName>,
    /// Keys that this principal owns.
    pub owner: Option<PrincipalId>,
    /// Keys for this environment.
    pub environment: Option<Environment>,
    /// Keys of this resource.
    pub resource: Option<ResourceId>,
    /// Keys whose hint contains this text.
    pub hint: Option<String>,
    /// The key of this fingerprint.
    pub fingerprint: Option<Fingerprint>,
    /// Keys that the given key made, directly or through keys that the given key made.
    pub made_by: Option<MadeBy>,
    /// Keys that expire at or after this instant, or never.
    pub expires_from: Option<Timestamp>,
    /// Keys that expire before this instant. Excludes keys that never expire.
    pub expires_before: Option<Timestamp>,
    /// The order of the page.
    pub sort: KeySort,
    /// The position after which the page starts; `None` for the first page.
    pub after: Option<KeyPosition>,
    /// The maximum number of rows in the page.
    pub limit: NonZeroUsize,
}

/// The sort order of keys. Ties are broken by id.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum KeySort {
    /// Oldest first: by id.
    #[default]
    Created,
    /// Newest first: by id, descending.
    Newest,
    /// By name, byte by byte.
    Name,
    /// By expiry, earliest first. Keys that never expire come last.
    Expiry,
}

/// A position in a sorted list of keys: the sort fields of the last key of a page. The next page starts after
/// it, even if that key was changed or deleted since.
///
/// Displays as text, parses from it and serializes as it. The text fits in a URL without escapes, and contains the
/// name of the key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyPosition {
    /// The name of the last key of the previous page.
    pub name: KeyName,
    /// The expiry of the last key of the previous page; `None` if that key never expires.
    pub expires_at: Option<Timestamp>,
    /// The id of the last key of the previous page.
    pub id: KeyId,
}

impl KeyPosition {
    /// Returns the position of `record`.
    #[must_use]
    pub fn of(record: &KeyRecord) -> Self {
        Self {
            name: record.name.clone(),
            expires_at: record.expires_at,
            id: record.id,
        }
    }

    /// Compares two positions in the order `sort`.
    #[must_use]
    pub fn cmp(&self, other: &Self, sort: KeySort) -> Ordering {
        // Keys that never expire sort last, even after a key with the last possible expiry.
        let end = |place: &Self| (place.expires_at.is_none(), place.expires_at);
        match sort {
            KeySort::Created => self.id.cmp(&other.id),
            KeySort::Newest => other.id.cmp(&self.id),
            KeySort::Name => self.name.cmp(&other.name).then(self.id.cmp(&other.id)),
            KeySort::Expiry => end(self).cmp(&end(other)).then(self.id.cmp(&other.id)),
        }
    }
}

/// A page of records.
#[derive(Clone, Debug, Default)]
pub struct KeyPage {
    /// The records, in order.
    pub keys: Vec<KeyRecord>,
    /// Keys whose stored bytes failed their checksum, among the keys that the page covers. They may or may
    /// not match the query.
    pub corrupt: Vec<KeyId>,
    /// The position after which the next page starts; `None` if this is the last page.
    pub next: Option<KeyPosition>,
}

impl KeyQuery {
    /// Queries the keys of `tenant` alone, oldest first, with their statuses at the instant `at`.
    pub fn tenant(tenant: TenantId, at: Timestamp) -> Self {
        Self {
            tenant: Some(tenant),
            ..Self::all(at)
        }
    }

    /// Queries the keys of the whole store. For the host itself only, because the result spans all tenants.
    pub fn all(at: Timestamp) -> Self {
        Self {
            tenant: None,
            below: false,
            at,
            statuses: BTreeSet::new(),
            name: None,
            class: None,
            owner: None,
            environment: None,
            resource: None,
            hint: None,
            fingerprint: None,
            made_by: None,
            expires_from: None,
            expires_before: None,
            sort: KeySort::Created,
            after: None,
            limit: DEFAULT_LIMIT,
        }
    }

    /// Returns the query with `change` applied.
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Narrows to keys that are neither revoked nor expired: active, retiring or disabled.
    pub fn live(mut self) -> Self {
        self.statuses = BTreeSet::from([Status::Active, Status::Retiring, Status::Disabled]);
        self
    }

    /// Returns whether `record` meets every condition. Ignores [`after`](Self::after).
    #[must_use]
    pub fn matches(&self, record: &KeyRecord) -> bool {
        let Self {
            tenant,
            below,
            at,
            statuses,
            name,
            class,
            owner,
            environment,
            resource,
            hint,
            fingerprint,
            made_by,
            expires_from,
            expires_before,
            sort: _,
            after: _,
            limit: _,
        } = self;
        let in_tenant = |wanted: &TenantId| {
            if *below {
                wanted.contains(&record.tenant)
            } else {
                record.tenant == *wanted
            }
        };
        let named = |part: &String| {
            record
                .name
                .as_str()
                .to_lowercase()
                .contains(&part.to_lowercase())
        };
        let of_resource =
            |id: &ResourceId| record.resource.as_ref().is_some_and(|own| own.id == *id);
        tenant.as_ref().is_none_or(in_tenant)
            && (statuses.is_empty() || statuses.contains(&record.status(*at)))
            && name.as_ref().is_none_or(named)
            && class.as_ref().is_none_or(|class| record.class == *class)
            && owner
                .as_ref()
                .is_none_or(|owner| record.owner.principal() == Some(owner))
            && environment
                .as_ref()
                .is_none_or(|wanted| record.environment == *wanted)
            && resource.as_ref().is_none_or(of_resource)
            && hint
                .as_ref()
                .is_none_or(|part| record.hint.as_str().contains(part.as_str()))
            && fingerprint.is_none_or(|wanted| record.fingerprint == wanted)
            && made_by.is_none_or(|by| record.was_made_by(by.key, by.lineage))
            && expires_from.is_none_or(|from| record.expires_at.is_none_or(|end| end >= from))
            && expires_before.is_none_or(|before| record.expires_at.is_some_and(|end| end < before))
    }

    /// Returns whether `place` comes after [`after`](Self::after), the position at which the page starts.
    #[must_use]
    pub fn reaches(&self, place: &KeyPosition) -> bool {
        self.after
            .as_ref()
            .is_none_or(|after| place.cmp(after, self.sort).is_gt())
    }

    /// Runs this query over `records`: all records of a store that holds them in memory.
    pub fn page<'a>(&self, records: impl IntoIterator<Item = &'a KeyRecord>) -> KeyPage {
        let after = |place: &KeyPosition| self.reaches(place);
        let matching = records.into_iter().filter(|record| self.matches(record));
        let mut found: Vec<_> = matching
            .map(|record| (KeyPosition::of(record), record))
            .filter(|(place, _)| after(place))
            .collect();
        found.sort_by(|(a, _), (b, _)| a.cmp(b, self.sort));
        let limit = self.limit.get();
        let next = (found.len() > limit).then(|| found[limit - 1].0.clone());
        found.truncate(limit);
        let keys = found
            .into_iter()
            .map(|(_, record)| record.clone())
            .collect();
        KeyPage {
            keys,
            corrupt: Vec::new(),
            next,
        }
    }
}

/// A query for audit entries, oldest first. An entry matches if it meets every condition that is set. Without
/// conditions every entry matches.
#[derive(Clone, Debug)]
#[must_use = "a query reads nothing by itself"]
#[non_exhaustive]
pub struct AuditQuery {
    /// Entries of this tenant's chain; `None` for the whole store.
    pub tenant: Option<TenantId>,
    /// Entries about this key.
    pub key: Option<KeyId>,
    /// Entries of commands by this principal, either in person or through one of the principal's own keys.
    pub actor: Option<PrincipalId>,
    /// Entries of this command.
    pub command: Option<CommandId>,
    /// Entries at or after this instant.
    pub from: Option<Timestamp>,
    /// Entries before this instant.
    pub before: Option<Timestamp>,
    /// The position after which the page starts; `None` for the first page.
    pub after: Option<AuditPosition>,
    /// The maximum number of rows in the page.
    pub limit: NonZeroUsize,
}

/// A position in the store-wide order of audit entries.
///
/// Displays as text, parses from it and serializes as it. The text fits in a URL without escapes.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct AuditPosition {
    /// The revision of the commit that wrote the entry.
    pub revision: Revision,
    /// The entry's number in its tenant's audit chain. A commit concerns one tenant, so revision and number
    /// together order all entries of the store.
    pub sequence: u64,
}

/// An audit entry with the revision of the commit that wrote it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuditRow {
    /// The revision of the commit.
    pub revision: Revision,
    /// The entry.
    pub entry: AuditEntry,
}

impl AuditRow {
    /// Returns the position of the entry in the store-wide order.
    #[must_use]
    pub const fn position(&self) -> AuditPosition {
        AuditPosition {
            revision: self.revision,
            sequence: self.entry.sequence,
        }
    }
}

/// A page of audit entries.
#[derive(Clone, Debug, Default)]
pub struct AuditPage {
    /// The entries, oldest first.
    pub rows: Vec<AuditRow>,
    /// Entries whose stored bytes failed their checksum, among the entries that the page covers. They may or
    /// may not match the query.
    pub corrupt: Vec<AuditPosition>,
    /// The position after which the next page starts; `None` if this is the last page for now.
    pub next: Option<AuditPosition>,
}

impl AuditQuery {
    /// Queries the chain of one tenant.
    pub fn tenant(tenant: TenantId) -> Self {
        Self {
            tenant: Some(tenant),
            ..Self::all()
        }
    }

    /// Queries the entries of the whole store. For the host itself only, because the result spans all
    /// tenants.
    pub const fn all() -> Self {
        Self {
            tenant: None,
            key: None,
            actor: None,
            command: None,
            from: None,
            before: None,
            after: None,
            limit: DEFAULT_LIMIT,
        }
    }

    /// Returns the query with `change` applied.
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Narrows to entries about one key.
    pub const fn about(mut self, key: KeyId) -> Self {
        self.key = Some(key);
        self
    }

    /// Returns whether `row` meets every condition, including [`after`](Self::after).
    #[must_use]
    pub fn matches(&self, row: &AuditRow) -> bool {
        let Self {
            tenant,
            key,
            actor,
            command,
            from,
            before,
            after,
            limit: _,
        } = self;
        let entry = &row.entry;
        tenant.as_ref().is_none_or(|tenant| entry.tenant == *tenant)
            && key.is_none_or(|key| entry.key == Some(key))
            && (actor.as_ref()).is_none_or(|actor| entry.actor.principal() == Some(actor))
            && command
                .as_ref()
                .is_none_or(|command| entry.command == *command)
            && from.is_none_or(|from| entry.at >= from)
            && before.is_none_or(|before| entry.at < before)
            && after.is_none_or(|after| row.position() > after)
    }

    /// Runs this query over `rows`, which are in the store-wide order.
    pub fn page<'a>(&self, rows: impl IntoIterator<Item = &'a AuditRow>) -> AuditPage {
        let mut matching = rows.into_iter().filter(|row| self.matches(row));
        let rows: Vec<_> = matching.by_ref().take(self.limit.get()).cloned().collect();
        let next = matching.next().and(rows.last()).map(AuditRow::position);
        AuditPage {
            rows,
            corrupt: Vec::new(),
            next,
        }
    }
}
