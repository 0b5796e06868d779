//! Loads the parts of tenants that decisions need, all within one snapshot.

use std::collections::{BTreeSet, HashMap};

use futures_util::future::{try_join, try_join5};
use tokio_postgres::Row;

use super::fault::PostgresFault;
use super::head::{self, TENANTS};
use super::rows::SqlParam;
use super::session::Session;
use crate::core::tenant::TenantId;
use crate::core::view::{LoadRequest, TenantView};
use crate::store::sql::{
    AUDIT_COLUMNS, COLUMNS, Cells, LoadedRows, OWNER, RowFault, TENANT, TenantHead, change, entry,
    id_bytes, id_of,
};

/// The tenants to load. Each has the rows found so far, or an error if one of its rows is damaged.
struct Loaded<'a> {
    tenants: Vec<(&'a TenantId, &'a LoadRequest, Result<LoadedRows, RowFault>)>,
    places: HashMap<&'a str, usize>,
}

impl<'a> Loaded<'a> {
    fn new(asked: &'a [(TenantId, LoadRequest)]) -> Self {
        let places = asked.iter().enumerate();
        let places = places.map(|(place, (tenant, _))| (tenant.as_str(), place));
        let tenants = asked.iter();
        let tenants = tenants.map(|(tenant, select)| (tenant, select, Ok(LoadedRows::new(None))));
        Self {
            tenants: tenants.collect(),
            places: places.collect(),
        }
    }

    /// Adds a row to the tenant that is named in the row's column `column`.
    fn give(
        &mut self,
        row: &Row,
        column: usize,
        take: impl FnOnce(&mut LoadedRows, &'a TenantId) -> Result<(), RowFault>,
    ) {
        let name = row.text(column, "the name of a tenant");
        let place = name.ok().and_then(|name| self.places.get(name));
        if let Some((tenant, _, found)) = place.and_then(|place| self.tenants.get_mut(*place)) {
            give(found, |found| take(found, tenant));
        }
    }
}

/// Adds a row to a tenant. If the row is damaged, the load of this tenant fails as a whole.
fn give(
    tenant: &mut Result<LoadedRows, RowFault>,
    take: impl FnOnce(&mut LoadedRows) -> Result<(), RowFault>,
) {
    if let Ok(found) = tenant
        && let Err(fault) = take(found)
    {
        *tenant = Err(fault);
    }
}

/// Loads tenants. Each tenant may occur only once in `asked`.
pub(super) async fn load(
    session: &Session,
    asked: &[(TenantId, LoadRequest)],
) -> Result<Vec<Result<TenantView, PostgresFault>>, PostgresFault> {
    let names: Vec<&str> = asked.iter().map(|(tenant, _)| tenant.as_str()).collect();
    let ids = asked.iter().flat_map(|(_, select)| &select.keys);
    let ids: Vec<[u8; 16]> = ids.map(|id| id_bytes(*id)).collect();
    let ids: Vec<&[u8]> = ids.iter().map(|id| &id[..]).collect();
    let live: Vec<_> = asked
        .iter()
        .flat_map(|(tenant, select)| select.live.iter().map(move |live| (tenant, live)))
        .collect();
    let live_of: Vec<&str> = live.iter().map(|(tenant, _)| tenant.as_str()).collect();
    let live_class: Vec<&str> = live.iter().map(|(_, (class, _))| class.as_str()).collect();
    let live_at: Vec<i64> = live.iter().map(|(_, (_, at))| at.as_micros()).collect();
    let legacy = asked.iter().filter(|(_, select)| select.legacy);
    let legacy: Vec<&str> = legacy.map(|(tenant, _)| tenant.as_str()).collect();
    let commands = asked.iter().flat_map(|(tenant, select)| {
        let commands = select.commands.iter();
        commands.map(|command| (tenant.as_str(), command.as_str()))
    });
    let (commands_of, commands): (Vec<&str>, Vec<&str>) = commands.unzip();

    let of_all: [SqlParam<'_>; 1] = [&names];
    let heads = try_join(head::read(session), session.query(TENANTS, &of_all));
    let own = async {
        let sql = format!(
            "SELECT {COLUMNS} FROM $s.rows WHERE kind = {TENANT} AND tenant = ANY($1) AND name = ''"
        );
        session.query(&sql, &of_all).await
    };
    let by_id = async {
        let sql = format!("SELECT {COLUMNS} FROM $s.rows WHERE id = ANY($1)");
        unless(ids.is_empty(), session, &sql, &[&ids]).await
    };
    let live = async {
        // Without `OFFSET 0`, the server may merge the subquery into the join and read the whole table.
        let sql = format!(
            "SELECT {COLUMNS} FROM unnest($1::text[], $2::text[], $3::bigint[]) \
             AS w (of_tenant, of_class, at) CROSS JOIN LATERAL (SELECT {COLUMNS} FROM $s.rows \
             WHERE tenant = of_tenant AND class = of_class AND ends > at OFFSET 0) AS r"
        );
        let with: [SqlParam<'_>; 3] = [&live_of, &live_class, &live_at];
        unless(live_of.is_empty(), session, &sql, &with).await
    };
    let legacy = async {
        let sql =
            format!("SELECT {COLUMNS} FROM $s.rows WHERE tenant = ANY($1) AND legacy IS NOT NULL");
        unless(legacy.is_empty(), session, &sql, &[&legacy]).await
    };
    let trail = async {
        let sql = format!(
            "SELECT {AUDIT_COLUMNS} FROM unnest($1::text[], $2::text[]) AS w (of_tenant, by) \
             CROSS JOIN LATERAL (SELECT {AUDIT_COLUMNS} FROM $s.audit \
             WHERE command = by AND tenant = of_tenant ORDER BY place LIMIT {}) AS e ORDER BY place",
            LoadRequest::APPLIED_MAX
        );
        let nothing = commands.is_empty();
        unless(nothing, session, &sql, &[&commands_of, &commands]).await
    };
    let ((store, heads), (own, by_id, live, legacy, trail)) =
        try_join(heads, try_join5(own, by_id, live, legacy, trail)).await?;

    let mut loaded = Loaded::new(asked);
    for row in &heads {
        loaded.give(row, 0, |found, _| {
            found.head = Some(TenantHead::read(row)?.1);
            Ok(())
        });
    }
    for row in &own {
        loaded.give(row, 2, |found, _| found.take_tenant(change(row)?));
    }
    for row in &by_id {
        let id = id_of(row.bytes(4, "the id of a key")?);
        for (tenant, select, found) in &mut loaded.tenants {
            if id.is_some_and(|id| select.keys.contains(&id)) {
                give(found, |found| {
                    found.take_named(tenant, change(row)?);
                    Ok(())
                });
            }
        }
    }
    for row in live.iter().chain(&legacy) {
        loaded.give(row, 2, |found, _| {
            found.take_key(change(row)?);
            Ok(())
        });
    }
    for row in &trail {
        loaded.give(row, 1, |found, tenant| {
            found.take_entry(entry(row)?, tenant)
        });
    }
    load_owners(session, &mut loaded).await?;
    let epoch = (store.store.epoch, store.server_time);
    let views = loaded.tenants.into_iter();
    let views = views.map(|(tenant, select, found)| Ok(found?.view(tenant, select, epoch)));
    Ok(views.collect())
}

/// Loads the rows of the requested owners, and of the owners of the keys found.
async fn load_owners(session: &Session, loaded: &mut Loaded<'_>) -> Result<(), PostgresFault> {
    let mut wanted = BTreeSet::new();
    for (tenant, select, found) in &loaded.tenants {
        if let Ok(found) = found
            && found.head.is_some()
        {
            let owners = found.owners(select);
            wanted.extend(owners.map(|owner| (tenant.to_string(), owner.to_string())));
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let (tenants, owners): (Vec<String>, Vec<String>) = wanted.into_iter().unzip();
    let sql = format!(
        "SELECT {COLUMNS} FROM unnest($1::text[], $2::text[]) AS w (of_tenant, who) \
         CROSS JOIN LATERAL (SELECT {COLUMNS} FROM $s.rows \
         WHERE kind = {OWNER} AND tenant = of_tenant AND name = who OFFSET 0) AS r"
    );
    for row in &session.query(&sql, &[&tenants, &owners]).await? {
        loaded.give(row, 2, |found, _| found.take_owner(change(row)?));
    }
    Ok(())
}

/// Runs a statement. If `nothing` is true, returns no rows without asking the server.
async fn unless(
    nothing: bool,
    session: &Session,
    sql: &str,
    with: &[SqlParam<'_>],
) -> Result<Vec<Row>, PostgresFault> {
    match nothing {
        true => Ok(Vec::new()),
        false => session.query(sql, with).await,
    }
}
