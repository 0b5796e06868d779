//! What tenants are decided on, each with what was asked for, within one snapshot.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::future::{try_join, try_join5};
use tokio_postgres::Row as Columns;

use super::fault::Fault;
use super::head::{self, Head, TENANTS};
use super::link::{Bound, Tx};
use super::rows;
use crate::core::audit::AuditEntry;
use crate::core::owner::{OwnerRecord, TenantRecord};
use crate::core::tenant::TenantId;
use crate::core::text::PrincipalId;
use crate::core::view::{Revision, Select, TenantView};
use crate::store::rows::{
    AUDIT_COLUMNS, COLUMNS, Keys, OWNER, TENANT, TenantHead, damaged, id_bytes, id_of,
};
use crate::store::{Change, Row, RowKey};

/// What was found of a tenant.
struct Found<'a> {
    tenant: &'a TenantId,
    select: &'a Select,
    head: Option<TenantHead>,
    own: Option<(Revision, TenantRecord)>,
    keys: Keys,
    owners: HashMap<PrincipalId, (Revision, OwnerRecord)>,
    trail: Vec<AuditEntry>,
}

/// What was found of tenants; of some that something of theirs cannot be read.
struct AllFound<'a> {
    found: Vec<Result<Found<'a>, Fault>>,
    places: HashMap<&'a str, usize>,
}

impl<'a> AllFound<'a> {
    fn new(asked: &'a [(TenantId, Select)]) -> Self {
        let found = |(tenant, select): &'a (TenantId, Select)| {
            Ok(Found {
                tenant,
                select,
                head: None,
                own: None,
                keys: Keys::default(),
                owners: HashMap::new(),
                trail: Vec::new(),
            })
        };
        let places = asked.iter().enumerate();
        let places = places.map(|(place, (tenant, _))| (tenant.as_str(), place));
        Self {
            found: asked.iter().map(found).collect(),
            places: places.collect(),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Found<'a>> {
        self.found.iter().flatten()
    }

    /// Has the tenant of this name take something, or fail by it.
    fn give(&mut self, tenant: &str, take: impl FnOnce(&mut Found<'a>) -> Result<(), Fault>) {
        let place = self.places.get(tenant);
        if let Some(place) = place.and_then(|place| self.found.get_mut(*place)) {
            give(place, take);
        }
    }
}

fn give<'a>(
    place: &mut Result<Found<'a>, Fault>,
    take: impl FnOnce(&mut Found<'a>) -> Result<(), Fault>,
) {
    if let Ok(found) = place
        && let Err(fault) = take(found)
    {
        *place = Err(fault);
    }
}

/// What tenants are decided on, each of them once among those that are asked for.
pub(super) async fn load(
    tx: &Tx<'_>,
    asked: &[(TenantId, Select)],
) -> Result<Vec<Result<TenantView, Fault>>, Fault> {
    let names: Vec<&str> = asked.iter().map(|(tenant, _)| tenant.as_str()).collect();
    let ids = asked.iter().flat_map(|(_, select)| &select.keys);
    let ids: Vec<[u8; 16]> = ids.map(|id| id_bytes(*id)).collect();
    let ids: Vec<&[u8]> = ids.iter().map(|id| &id[..]).collect();
    let live = asked.iter().filter_map(|(tenant, select)| {
        let live_at = select.live_at?;
        Some((tenant.as_str(), live_at.as_micros()))
    });
    let (live_of, live_at): (Vec<&str>, Vec<i64>) = live.unzip();
    let legacy = asked.iter().filter(|(_, select)| select.legacy);
    let legacy: Vec<&str> = legacy.map(|(tenant, _)| tenant.as_str()).collect();
    let commands = asked.iter().flat_map(|(tenant, select)| {
        let commands = select.commands.iter();
        commands.map(|command| (tenant.as_str(), command.as_str()))
    });
    let (commands_of, commands): (Vec<&str>, Vec<&str>) = commands.unzip();

    let of_all: [Bound<'_>; 1] = [&names];
    let heads = try_join(Head::read(tx), tx.query(TENANTS, &of_all));
    let own = async {
        let sql = format!(
            "SELECT {COLUMNS} FROM $s.rows WHERE kind = {TENANT} AND tenant = ANY($1) AND name = ''"
        );
        tx.query(&sql, &of_all).await
    };
    let by_id = async {
        let sql = format!("SELECT {COLUMNS} FROM $s.rows WHERE id = ANY($1)");
        unless(ids.is_empty(), tx, &sql, &[&ids]).await
    };
    let live = async {
        // An offset keeps the server from reading the whole table to join it.
        let sql = format!(
            "SELECT {COLUMNS} FROM unnest($1::text[], $2::bigint[]) AS w (of_tenant, at) \
             CROSS JOIN LATERAL (SELECT {COLUMNS} FROM $s.rows \
             WHERE tenant = of_tenant AND ends > at OFFSET 0) AS r"
        );
        unless(live_of.is_empty(), tx, &sql, &[&live_of, &live_at]).await
    };
    let legacy = async {
        let sql =
            format!("SELECT {COLUMNS} FROM $s.rows WHERE tenant = ANY($1) AND legacy IS NOT NULL");
        unless(legacy.is_empty(), tx, &sql, &[&legacy]).await
    };
    let trail = async {
        let sql = format!(
            "SELECT {AUDIT_COLUMNS} FROM unnest($1::text[], $2::text[]) AS w (of_tenant, by) \
             CROSS JOIN LATERAL (SELECT {AUDIT_COLUMNS} FROM $s.audit \
             WHERE command = by AND tenant = of_tenant ORDER BY place LIMIT {}) AS e ORDER BY place",
            Select::APPLIED_MAX
        );
        let nothing = commands.is_empty();
        unless(nothing, tx, &sql, &[&commands_of, &commands]).await
    };
    let ((store, heads), (own, by_id, live, legacy, trail)) =
        try_join(heads, try_join5(own, by_id, live, legacy, trail)).await?;

    let mut found = AllFound::new(asked);
    for row in &heads {
        found.give(row.try_get(0)?, |found| {
            found.head = Some(head::tenant(row)?.1);
            Ok(())
        });
    }
    for row in &own {
        found.give(row.try_get(2)?, |found| match rows::change(row)? {
            Change {
                revision,
                row: Row::Tenant(row),
            } => {
                found.own = Some((revision, row));
                Ok(())
            }
            _ => Err(damaged(&RowKey::Tenant(found.tenant.clone())).into()),
        });
    }
    for row in &by_id {
        let id = id_of(row.try_get(4)?);
        for place in &mut found.found {
            give(place, |found| {
                if !id.is_some_and(|id| found.select.keys.contains(&id)) {
                    return Ok(());
                }
                let change = rows::change(row)?;
                let own = match &change.row {
                    Row::Key(record) => record.tenant == *found.tenant,
                    row => matches!(row, Row::Corrupt(_)),
                };
                found.keys.take(own.then_some(change));
                Ok(())
            });
        }
    }
    for row in live.iter().chain(&legacy) {
        found.give(row.try_get(2)?, |found| {
            found.keys.take([rows::change(row)?]);
            Ok(())
        });
    }
    for row in &trail {
        found.give(row.try_get(1)?, |found| {
            let entry = rows::entry(row)?.map_err(|place| {
                let (sequence, tenant) = (place.sequence, found.tenant);
                Fault::corrupt(format!(
                    "audit entry {sequence} of tenant {tenant} is damaged"
                ))
            })?;
            found.trail.push(entry.entry);
            Ok(())
        });
    }
    load_owners(tx, &mut found).await?;
    let views = found.found.into_iter();
    Ok(views.map(|found| Ok(found?.view(&store))).collect())
}

impl Found<'_> {
    fn view(self, store: &Head) -> TenantView {
        let (epoch, server_time) = (store.cursor.epoch, Some(store.server_time));
        let Some(head) = self.head else {
            return TenantView {
                epoch,
                server_time,
                ..TenantView::default()
            };
        };
        let key = RowKey::Tenant(self.tenant.clone());
        let (revisions, tenant) = match self.own {
            Some((revision, row)) => (BTreeMap::from([(key, revision)]), Some(row)),
            None => (BTreeMap::new(), None),
        };
        let view = TenantView {
            epoch,
            revision: head.revision,
            decided_at: Some(head.decided_at),
            server_time,
            audit_head: head.audit,
            tenant,
            revisions,
            corrupt: self.keys.corrupt,
            ..TenantView::default()
        };
        let owner = |owner: &PrincipalId| {
            let found = self.owners.get(owner);
            found.map(|(revision, row)| (*revision, row))
        };
        let records = self.keys.records.values();
        let records = records.map(|(revision, record)| (*revision, record));
        view.with_selected(self.select, records, owner, &self.trail)
    }
}

/// The rows of owners that were asked for, and of those whose keys were found.
async fn load_owners(tx: &Tx<'_>, found: &mut AllFound<'_>) -> Result<(), Fault> {
    let mut wanted = BTreeSet::new();
    for tenant in found.all().filter(|found| found.head.is_some()) {
        let of_keys = tenant.keys.records.values();
        let of_keys = of_keys.filter_map(|(_, record)| record.owner.principal());
        let owners = tenant.select.owners.iter().chain(of_keys);
        wanted.extend(owners.map(|owner| (tenant.tenant.clone(), owner.clone())));
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let (tenants, owners): (Vec<&str>, Vec<&str>) = wanted
        .iter()
        .map(|(tenant, owner)| (tenant.as_str(), owner.as_str()))
        .unzip();
    let sql = format!(
        "SELECT {COLUMNS} FROM unnest($1::text[], $2::text[]) AS w (of_tenant, who) \
         CROSS JOIN LATERAL (SELECT {COLUMNS} FROM $s.rows \
         WHERE kind = {OWNER} AND tenant = of_tenant AND name = who OFFSET 0) AS r"
    );
    for row in &tx.query(&sql, &[&tenants, &owners]).await? {
        found.give(row.try_get(2)?, |found| match rows::change(row)? {
            Change {
                revision,
                row: Row::Owner(row),
            } => {
                found.owners.insert(row.owner.clone(), (revision, row));
                Ok(())
            }
            change => Err(damaged(&change.row.key()).into()),
        });
    }
    Ok(())
}

/// Asks, unless there is nothing to ask for.
async fn unless(
    nothing: bool,
    tx: &Tx<'_>,
    sql: &str,
    with: &[Bound<'_>],
) -> Result<Vec<Columns>, Fault> {
    match nothing {
        true => Ok(Vec::new()),
        false => tx.query(sql, with).await,
    }
}
